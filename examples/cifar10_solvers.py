r"""
CIFAR-10: an ODE net against a ResNet, and what each solver costs
=================================================================

An ODE net and a small ResNet learn CIFAR-10, and five solver settings are held against each other by memory and by
evaluations of the dynamics, forward and backward. This is study 3a of report 3 (an empirical study of neural ODEs,
Berkeley CS282). Look at the table that is printed (``solvers.png``): how an error-controlled solver compares with one
step of RK4, midpoint or Euler.

The report's table was measured on a GPU, with the memory of a whole training step there; ours is the growth of the
process's memory in one training step. Backward evaluations are calls of the dynamics in the backward pass of the
adjoint method. With ``--data`` a folder that has ``cifar10-subset``, 5000 training and 1000 test images are used; else
torchvision downloads all 60000.
"""

from __future__ import annotations

import time

import gallery
import matplotlib.pyplot as plt
import torch
from torch import nn

import pyjode

sizes = {"epochs": (10, 1), "images": (50000, 256), "tests": (10000, 200), "width": (64, 8), "batch": (128, 32)}
parser = gallery.parser(__doc__, "cifar10_solvers", **sizes)
args = gallery.start(parser)
julia = args.engine_in_use == "julia"

train_x, train_y, test_x, test_y = gallery.cifar10(args)
order = torch.randperm(len(train_x), generator=torch.Generator().manual_seed(0))
test_order = torch.randperm(len(test_x), generator=torch.Generator().manual_seed(0))
args.images, args.tests = min(args.images, len(train_x)), min(args.tests, len(test_x))
mean, std = train_x.mean((0, 2, 3), keepdim=True), train_x.std((0, 2, 3), keepdim=True)
data = (
    ((train_x - mean) / std)[order[: args.images]],
    train_y[order[: args.images]],
    ((test_x - mean) / std)[test_order[: args.tests]],
    test_y[test_order[: args.tests]],
)

# %%
# The two networks
# ----------------
# The same down-sampling and the same head; between them six residual blocks or one ODE block.


def norm(width):
    """Of two channels a group or more: of one, the average pooling before the head would see next to nothing."""
    return nn.GroupNorm(min(32, width // 2), width)


def convolutions(width):
    return nn.Sequential(
        norm(width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1),
        norm(width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1),
    )  # fmt: skip


class ResidualBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.change = convolutions(width)

    def forward(self, x):
        return x + self.change(x)


class Dynamics(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.change = convolutions(width)
        self.last = norm(width)

    def forward(self, t, x):
        return self.last(self.change(x))


def network(*middle):
    width = args.width
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), norm(width), nn.ReLU(),
        nn.Conv2d(width, width, 4, stride=2, padding=1), norm(width), nn.ReLU(),
        nn.Conv2d(width, width, 4, stride=2, padding=1), *middle,
        norm(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10),
    )  # fmt: skip


ADJOINT = "GaussAdjoint" if julia else "BacksolveAdjoint"
SOLVERS = {
    "dopri5, tol 1e-3": {"method": "dopri5", "rtol": 1e-3, "atol": 1e-3},
    "dopri5, tol 1e-1": {"method": "dopri5", "rtol": 1e-1, "atol": 1e-1},
    "rk4": {"method": "rk4", "dt": 1.0},
    "midpoint": {"method": "midpoint", "dt": 1.0},
    "euler": {"method": "euler", "dt": 1.0},
}

# %%
# Training
# --------

runs, histories = [], {}
for name in ("ResNet", "ODE net"):
    torch.manual_seed(args.seed)
    if name == "ResNet":
        model = network(*[ResidualBlock(args.width) for _ in range(6)])
    else:
        model = network(pyjode.NeuralODE(Dynamics(args.width), sensealg=ADJOINT, **SOLVERS["dopri5, tol 1e-3"]))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    histories[name] = history = gallery.train_classifier(
        model, optimizer, data, epochs=args.epochs, batch_size=args.batch, label=name, seed=args.seed
    )
    runs.append(
        {
            "run": name,
            "images": len(data[0]),
            "epochs": args.epochs,
            "width": args.width,
            "parameters": gallery.parameters(model),
            "train_loss": history["train_loss"],
            "train_accuracy": history["train_acc"],
            "test_accuracy": history["test_acc"],
            "seconds_per_epoch": sum(history["seconds"]) / args.epochs,
        }
    )

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
epochs = range(1, args.epochs + 1)
for name, history in histories.items():
    left.plot(epochs, history["train_loss"], "o-", markersize=4, label=name)
    right.plot(epochs, history["test_acc"], "o-", markersize=4, label=name)
left.set(xlabel="epoch", ylabel="training loss")
right.set(xlabel="epoch", ylabel="test accuracy (%)")
left.legend()
figure.suptitle(f"CIFAR-10, {len(data[0])} training images, {args.width} channels")
gallery.save(args, figure, "training")

# %%
# The solver table
# ----------------
# One training step of the ODE net with each solver, by the adjoint method. An f that counts its calls goes to Julia as
# it is (``pyjode.explain`` says so), which is the point here: every call counts, also those of the backward pass.


class Counted(nn.Module):
    def __init__(self, f):
        super().__init__()
        self.f, self.calls = f, 0

    def forward(self, t, x):
        self.calls += 1
        return self.f(t, x)


def with_solver(f, options):
    torch.manual_seed(args.seed)
    return network(pyjode.NeuralODE(f, sensealg=ADJOINT, **options))


def evaluations(options):
    """Forward and backward evaluations of f in one training step."""
    f = Counted(Dynamics(args.width))
    model = with_solver(f, options)
    loss = nn.functional.cross_entropy(model(data[0][: args.batch]), data[1][: args.batch])
    forward = f.calls
    loss.backward()
    return forward, f.calls - forward


def one_step(model):
    """Seconds and MB of one training step."""
    x, y = data[0][: args.batch], data[1][: args.batch]
    model.zero_grad()
    with gallery.PeakMemory() as memory:
        started = time.perf_counter()
        nn.functional.cross_entropy(model(x), y).backward()
        seconds = time.perf_counter() - started
    return seconds, memory.megabytes


table = []
for solver, options in reversed(SOLVERS.items()):  # the least memory first, see PeakMemory
    forward, backward = evaluations(options)
    model = with_solver(Dynamics(args.width), options)
    one_step(model)  # traces f and compiles, which is not timed
    steps = [one_step(model) for _ in range(3)]
    table.insert(
        0,
        {
            "solver": solver,
            "memory_mb": max(step[1] for step in steps),
            "forward_evaluations": forward,
            "backward_evaluations": backward,
            "seconds": min(step[0] for step in steps),
        },
    )

REPORT = {
    "dopri5, tol 1e-3": (3060, 21, 24),
    "dopri5, tol 1e-1": (2534, 17, 15),
    "rk4": (1701, 4, 5),
    "midpoint": (1598, 2, 3),
    "euler": (1367, 1, 2),
}
print(f"\n{'solver':18}{'memory (MB)':>13}{'forward':>9}{'backward':>10}{'time (s)':>10}")
for row in table:
    print(
        f"{row['solver']:18}{row['memory_mb']:13.0f}{row['forward_evaluations']:9}{row['backward_evaluations']:10}"
        f"{row['seconds']:10.2f}"
    )

figure, panels = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
names = list(SOLVERS)
positions = torch.arange(len(names))
panels[0].barh(positions, [row["memory_mb"] for row in table], color="tab:blue")
panels[0].set(title="memory of a training step (MB)")
panels[1].barh(positions - 0.2, [row["forward_evaluations"] for row in table], 0.4, label="forward")
panels[1].barh(positions + 0.2, [row["backward_evaluations"] for row in table], 0.4, label="backward")
panels[1].set(title="evaluations of f")
panels[1].legend()
panels[2].barh(positions, [row["seconds"] for row in table], color="tab:green")
panels[2].set(title="time of a training step (s)")
for axes in panels:
    axes.set_yticks(positions, names if axes is panels[0] else [""] * len(names))
    axes.invert_yaxis()
gallery.save(args, figure, "solvers")

# %%
# metrics.json
# ------------

comparison = [
    (
        f"{run['run']}: training loss / test accuracy",
        "shown in a figure only",
        f"{run['train_loss'][-1]:.3f} / {run['test_accuracy'][-1]:.1f} %",
    )
    for run in runs
]
for row in table:
    memory, forward, backward = REPORT[row["solver"]]
    comparison.append(
        (
            f"{row['solver']}: memory; forward, backward evaluations; time of a step",
            f"{memory} MB; {forward}, {backward}",
            f"{row['memory_mb']:.0f} MB; {row['forward_evaluations']}, {row['backward_evaluations']}; "
            f"{row['seconds']:.2f} s",
        )
    )
gallery.write_metrics(args, "report 3a, CIFAR-10", runs, comparison, solvers=table, adjoint=ADJOINT)
