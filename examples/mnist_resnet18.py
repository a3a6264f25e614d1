r"""
MNIST: a neural ODE against ResNet-18
=====================================

A small convolutional neural ODE and ResNet-18 learn MNIST. This is report 4 (reimplementation of the classical neural
ODE, Purdue), which finds both in the high 90s and ResNet-18 better. Look at ``training.png``: loss and accuracy of
both, on training and test images, and at the numbers of parameters in ``metrics.json``: the ODE net has about a
hundredth.

ResNet-18 is torchvision's, its first convolution changed to one channel, from scratch unless ``--weights FILE`` gives
pretrained ones (a state_dict). The neural ODE as in the report: Conv(1 to 64, 3x3), norm, ReLU, Conv(64 to 64), which
makes 64x12x12, an ODE layer whose function takes the time as an extra channel (Conv, ReLU, norm, Conv, ReLU, norm),
average pooling, Linear(64, 10). Adam, cross-entropy, batches of 64, 10 epochs, learning rates 1e-4 (ODE) and 1e-3
(ResNet), the adjoint method with a fixed-step Runge-Kutta solver: RK4, 4 steps.
"""

from __future__ import annotations

from pathlib import Path

import gallery
import matplotlib.pyplot as plt
import torch
from torch import nn

import pyjode

sizes = {"epochs": (10, 1), "images": (60000, 256), "tests": (10000, 200), "width": (64, 8), "steps": (4, 1)}
parser = gallery.parser(__doc__, "mnist_resnet18", **sizes)
parser.add_argument("--weights", type=Path, help="ResNet-18's pretrained weights (a state_dict); else from scratch")
parser.add_argument("--ode-lr", type=float, default=1e-4, help="the ODE net's learning rate (default: %(default)s)")
args = gallery.start(parser)
julia = args.engine_in_use == "julia"
try:
    from torchvision.models import resnet18
except ImportError:
    gallery.stop("ResNet-18 is torchvision's: pip install torchvision")

train_x, train_y, test_x, test_y = gallery.mnist(args)
data = (train_x[: args.images], train_y[: args.images], test_x[: args.tests], test_y[: args.tests])

# %%
# The two networks
# ----------------


def norm(width):
    """Of two channels a group or more: of one, the average pooling at the end would see next to nothing."""
    return nn.GroupNorm(min(32, width // 2), width)


class Dynamics(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(width + 1, width, 3, padding=1) for _ in range(2))
        self.norms = nn.ModuleList(norm(width) for _ in range(2))

    def forward(self, t, x):
        for conv, norm in zip(self.convs, self.norms, strict=True):
            time_channel = torch.ones_like(x[:, :1]) * t
            x = norm(torch.relu(conv(torch.cat([x, time_channel], 1))))
        return x


def ode_net():
    width = args.width
    ode = pyjode.NeuralODE(
        Dynamics(width),
        (0.0, 1.0),
        method="RK4" if julia else "rk4",
        dt=1 / args.steps,
        adaptive=False,  # Julia's RK4 would choose its steps
        sensealg="GaussAdjoint" if julia else "BacksolveAdjoint",
    )
    return nn.Sequential(
        nn.Conv2d(1, width, 3), norm(width), nn.ReLU(), nn.Conv2d(width, width, 4, stride=2),
        ode, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10),
    )  # fmt: skip


def resnet():
    model = resnet18(num_classes=10)
    if args.weights:
        weights = {name: w for name, w in torch.load(args.weights).items() if not name.startswith(("conv1", "fc"))}
        model.load_state_dict(weights, strict=False)
    model.conv1 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
    return model


# %%
# Training
# --------

runs, histories = [], {}
for name, make, rate in (("neural ODE", ode_net, args.ode_lr), ("ResNet-18", resnet, 1e-3)):
    torch.manual_seed(args.seed)
    model = make()
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    histories[name] = history = gallery.train_classifier(
        model, optimizer, data, epochs=args.epochs, batch_size=64, label=name, seed=args.seed
    )
    runs.append(
        {
            "run": name,
            "images": len(data[0]),
            "epochs": args.epochs,
            "learning_rate": rate,
            "parameters": gallery.parameters(model),
            "pretrained": bool(args.weights) and name == "ResNet-18",
            "train_loss": history["train_loss"],
            "test_loss": history["test_loss"],
            "train_accuracy": history["train_acc"],
            "test_accuracy": history["test_acc"],
            "seconds_per_epoch": sum(history["seconds"]) / args.epochs,
        }
    )

# %%
# Loss and accuracy, the report's figures
# ---------------------------------------

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
epochs = range(1, args.epochs + 1)
for (name, history), color in zip(histories.items(), ("tab:blue", "tab:orange"), strict=True):
    for part, style in (("train", "--"), ("test", "-")):
        label = f"{name}, {'training' if part == 'train' else 'test'}"
        left.plot(epochs, history[f"{part}_loss"], style, marker="o", markersize=4, color=color, label=label)
        right.plot(epochs, history[f"{part}_acc"], style, marker="o", markersize=4, color=color, label=label)
left.set(xlabel="epoch", ylabel="cross-entropy", yscale="log", title="loss")
right.set(xlabel="epoch", ylabel="%", title="accuracy")
right.legend()
figure.suptitle(f"MNIST, {len(data[0])} training images")
gallery.save(args, figure, "training")

# %%
# metrics.json
# ------------

comparison = []
for run in runs:
    comparison += [
        (f"{run['run']}: test accuracy", "high 90s; ResNet-18 better", f"{run['test_accuracy'][-1]:.2f} %"),
        (f"{run['run']}: parameters", "", f"{run['parameters']:,}"),
        (f"{run['run']}: time an epoch", "", f"{run['seconds_per_epoch']:.0f} s"),
    ]
gallery.write_metrics(args, "report 4, MNIST against ResNet-18", runs, comparison)
