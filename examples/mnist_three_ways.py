r"""
MNIST, three ways
=================

The same classifier with three feature extractors: six residual blocks, an ODE block on t in [0, 1] trained by the
adjoint method, and the same ODE block differentiated through the solver's steps. This is study 1b of report 1 (neural
ODE report, master DAC, Sorbonne, 2023). It claims the same accuracy as the residual net, ODE nets slower and the
adjoint slowest, no memory advantage at this size, and a growing one with a finer integration. Look at ``accuracy.png``
for the first claim and at ``steps.png`` for the last: time and memory of one gradient as the integration gets finer.

All three have the same down-sampling block of convolutions before and the same head after. The report's settings: 10
epochs, batches of 128, SGD with learning rate 0.1. What it does not say is as in torchdiffeq's MNIST example, which it
follows: a momentum of 0.9, and 64 channels. ``--width`` takes fewer, which is faster.
"""

from __future__ import annotations

import time

import gallery
import matplotlib.pyplot as plt
import torch
from torch import nn

import pyjode

sizes = {"epochs": (10, 1), "images": (60000, 512), "tests": (10000, 500), "width": (64, 8), "finest": (1024, 16)}
parser = gallery.parser(__doc__, "mnist_three_ways", **sizes)
args = gallery.start(parser)
julia = args.engine_in_use == "julia"

train_x, train_y, test_x, test_y = gallery.mnist(args)
data = (train_x[: args.images], train_y[: args.images], test_x[: args.tests], test_y[: args.tests])

# %%
# The three networks
# ------------------


def norm(width):
    """Of two channels a group or more: of one, the average pooling before the head would see next to nothing."""
    return nn.GroupNorm(min(32, width // 2), width)


def down_sampling(width):
    """(n, 1, 28, 28) to (n, width, 6, 6)."""
    return [
        nn.Conv2d(1, width, 3),
        norm(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 4, stride=2, padding=1),
        norm(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 4, stride=2, padding=1),
    ]


def head(width):
    return [norm(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)]


class ResidualBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.change = nn.Sequential(
            norm(width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1, bias=False),
            norm(width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1, bias=False),
        )  # fmt: skip

    def forward(self, x):
        return x + self.change(x)


class Dynamics(nn.Module):
    """dx/dt: two convolutions that see the time as one more channel."""

    def __init__(self, width):
        super().__init__()
        self.norms = nn.ModuleList(norm(width) for _ in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(width + 1, width, 3, padding=1) for _ in range(2))

    def forward(self, t, x):
        time_channel = torch.ones_like(x[:, :1]) * t
        x = torch.relu(self.norms[0](x))
        x = self.convs[0](torch.cat([x, time_channel], 1))
        x = torch.relu(self.norms[1](x))
        x = self.convs[1](torch.cat([x, time_channel], 1))
        return self.norms[2](x)


ADJOINT = "GaussAdjoint" if julia else "BacksolveAdjoint"
TOLERANCES = {"rtol": 1e-3, "atol": 1e-3}


def ode_block(width, sensealg):
    return pyjode.NeuralODE(Dynamics(width), (0.0, 1.0), method="dopri5", sensealg=sensealg, **TOLERANCES)


WAYS = {
    "residual net": lambda width: [ResidualBlock(width) for _ in range(6)],
    "ODE, through the steps": lambda width: [ode_block(width, "DiscreteAdjoint")],
    f"ODE, adjoint ({ADJOINT})": lambda width: [ode_block(width, ADJOINT)],
}

# %%
# Training
# --------

runs, histories = [], {}
for way, extractor in WAYS.items():
    torch.manual_seed(args.seed)
    model = nn.Sequential(*down_sampling(args.width), *extractor(args.width), *head(args.width))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with gallery.PeakMemory() as memory:
        histories[way] = history = gallery.train_classifier(
            model, optimizer, data, epochs=args.epochs, batch_size=128, label=way, seed=args.seed
        )
    runs.append(
        {
            "run": way,
            "images": len(data[0]),
            "epochs": args.epochs,
            "width": args.width,
            "parameters": gallery.parameters(model),
            "train_loss": history["train_loss"],
            "train_accuracy": history["train_acc"],
            "test_accuracy": history["test_acc"],
            "seconds_per_epoch": sum(history["seconds"]) / args.epochs,
            "peak_memory_mb": memory.megabytes,
        }
    )

# %%
# The report's three figures
# --------------------------

figure, panels = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
epochs = range(1, args.epochs + 1)
for way, history in histories.items():
    loss = torch.tensor(history["batch_loss"])
    every = max(len(loss) // 60, 1)
    smooth = loss.unfold(0, every, every).mean(1)
    panels[0].semilogy((torch.arange(len(smooth)) + 0.5) / len(smooth) * args.epochs, smooth, label=way)
    panels[1].plot(epochs, history["train_acc"], "o-", markersize=4, label=way)
    panels[2].plot(epochs, history["test_acc"], "o-", markersize=4, label=way)
panels[0].set(title="training loss", ylabel="cross-entropy")
panels[1].set(title="training accuracy, during the epoch", ylabel="%")
panels[2].set(title="test accuracy", ylabel="%")
for axes in panels:
    axes.set_xlabel("epoch")
panels[0].legend(fontsize=8)
gallery.save(args, figure, "accuracy")

# %%
# A finer integration
# -------------------
# One gradient of the ODE block, RK4 with more and more steps. "Tape" is plain backpropagation through torchdiffeq's
# solver, which keeps every intermediate result of every step. pyjode's discrete adjoint keeps the steps' stages,
# GaussAdjoint the forward solution, BacksolveAdjoint without checkpoints the end alone.

LINES = {"tape (torchdiffeq)": ("torchdiffeq", "DiscreteAdjoint")}
if julia:
    LINES |= {
        "DiscreteAdjoint": ("julia", "DiscreteAdjoint"),
        "GaussAdjoint": ("julia", "GaussAdjoint"),
        "BacksolveAdjoint": ("julia", pyjode.BacksolveAdjoint(checkpointing=False)),
    }
else:
    LINES |= {"BacksolveAdjoint": ("torchdiffeq", "BacksolveAdjoint")}


def one_gradient(dynamics, engine, sensealg, steps):
    block = pyjode.NeuralODE(
        dynamics,
        (0.0, 1.0),
        method="rk4",
        dt=1 / steps,
        sensealg=sensealg,
        engine=engine,
    )
    torch.manual_seed(args.seed)
    x = torch.randn(32, args.width, 6, 6)
    dynamics.zero_grad()
    with gallery.PeakMemory() as memory:
        started = time.perf_counter()
        block(x).square().mean().backward()
        seconds = time.perf_counter() - started
    gradient = torch.cat([p.grad.flatten() for p in dynamics.parameters()])
    return seconds, memory.megabytes, gradient


steps_list = [n for n in (4, 16, 64, 256, 1024) if n <= args.finest]
growth = []
for label, (engine, sensealg) in reversed(LINES.items()):  # the least memory first, see PeakMemory
    torch.manual_seed(args.seed)
    dynamics = Dynamics(args.width)
    one_gradient(dynamics, engine, sensealg, 4)  # traces f and compiles, which is not timed
    for steps in steps_list:
        seconds, megabytes, gradient = one_gradient(dynamics, engine, sensealg, steps)
        growth.append({"line": label, "steps": steps, "seconds": seconds, "megabytes": megabytes, "gradient": gradient})
for row in growth:
    truth = next(r["gradient"] for r in growth if r["line"] == "tape (torchdiffeq)" and r["steps"] == row["steps"])
    row["gradient_difference"] = ((row["gradient"] - truth).norm() / truth.norm()).item()
for row in growth:
    del row["gradient"]

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for label in LINES:
    rows = [row for row in growth if row["line"] == label]
    left.loglog(steps_list, [row["seconds"] for row in rows], "o-", markersize=4, label=label)
    right.loglog(steps_list, [max(row["megabytes"], 0.1) for row in rows], "o-", markersize=4, label=label)
left.set(xlabel="RK4 steps over [0, 1]", ylabel="time of one gradient (s)")
right.set(xlabel="RK4 steps over [0, 1]", ylabel="growth of the process's memory (MB)")
left.legend()
figure.suptitle(f"One gradient of the ODE block: 32 images, {args.width} channels")
gallery.save(args, figure, "steps")

# %%
# metrics.json
# ------------

residual = runs[0]
comparison = []
for run in runs:
    difference = run["test_accuracy"][-1] - residual["test_accuracy"][-1]
    comparison += [
        (
            f"{run['run']}: test accuracy" + ("" if run is residual else ", and its difference to the residual net"),
            "the same for all three",
            f"{run['test_accuracy'][-1]:.2f} %" + ("" if run is residual else f", {difference:+.2f} points"),
        ),
        (
            f"{run['run']}: time an epoch",
            {0: "fastest", 1: "slower", 2: "slowest"}[runs.index(run)],
            f"{run['seconds_per_epoch']:.1f} s, {run['seconds_per_epoch'] / residual['seconds_per_epoch']:.1f}x",
        ),
    ]
for label in LINES:
    rows = [row for row in growth if row["line"] == label]
    comparison.append(
        (
            f"{label}: time and memory of one gradient, {rows[0]['steps']} to {rows[-1]['steps']} RK4 steps",
            "the adjoint's memory advantage grows",
            f"{rows[0]['seconds']:.2f} to {rows[-1]['seconds']:.1f} s, "
            f"{rows[0]['megabytes']:.0f} to {rows[-1]['megabytes']:.0f} MB",
        )
    )
gallery.write_metrics(args, "report 1b, MNIST three ways", runs, comparison, growth=growth)
