r"""
Augmented neural ODEs: what a flow cannot do
============================================

A disc inside a ring cannot be separated from it by a flow in the plane: paths of an ODE do not cross, so the disc never
gets out. With a few zeros appended to the state it can, through the extra dimensions. This is the related work that
report 4 (reimplementation of the classical neural ODE, Purdue) wants next: Dupont, Doucet and Teh, "Augmented neural
ODEs", NeurIPS 2019. ``NeuralODE(f, augment=3)`` is all it takes. Look at ``regions.png``, what each has learned to call
disc and ring, and at ``training.png``, the loss and the evaluations of f, which grow as the plane's flow is strained.
"""

from __future__ import annotations

import statistics

import gallery
import matplotlib.pyplot as plt
import torch
from torch import nn
from tqdm import tqdm

import pyjode

parser = gallery.parser(__doc__, "augmented", iterations=(1500, 60), seeds=(3, 1))
args = gallery.start(parser, threads=1)

# %%
# The data
# --------
# 500 points in the disc of radius 0.5 and 1000 in the ring between the radii 1 and 1.5.


def disc_and_ring(n, generator):
    radius = torch.cat(
        [0.5 * torch.rand(n, generator=generator).sqrt(), 1 + 0.5 * torch.rand(2 * n, generator=generator)]
    )
    angle = 2 * torch.pi * torch.rand(3 * n, generator=generator)
    points = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
    return points, torch.cat([torch.zeros(n), torch.ones(2 * n)])


points, labels = disc_and_ring(500, torch.Generator().manual_seed(1))
test_points, test_labels = disc_and_ring(500, torch.Generator().manual_seed(2))

# %%
# The two models
# --------------
# The same network of dynamics but for its width at both ends, and a linear layer that reads the class off the end
# state.


class Dynamics(nn.Module):
    def __init__(self, dimensions):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(dimensions, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, dimensions)
        )

    def forward(self, t, y):
        return self.net(y)


class Classifier(nn.Module):
    def __init__(self, augment):
        super().__init__()
        self.ode = pyjode.NeuralODE(Dynamics(2 + augment), augment=augment, method="dopri5", rtol=1e-4, atol=1e-4)
        self.read = nn.Linear(2 + augment, 1)

    def forward(self, x):
        return self.read(self.ode(x)).squeeze(1)

    def evaluations(self, x):
        """Evaluations of f in one forward solve from the points x."""
        start = torch.cat([x, x.new_zeros(len(x), self.ode.augment)], dim=1)
        with torch.no_grad():
            problem = pyjode.ODEProblem(self.ode.f, start, (0.0, 1.0))
            return pyjode.solve(problem, "dopri5", saveat=[0.0, 1.0], rtol=1e-4, atol=1e-4).stats.nfe


# %%
# Training
# --------

MODELS = {"neural ODE": 0, "augmented by 3": 3}
runs, curves, kept = [], {}, {}
for name, augment in MODELS.items():
    for seed in range(args.seed, args.seed + args.seeds):
        torch.manual_seed(seed)
        model = Classifier(augment)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        losses, evaluations = [], []
        with tqdm(range(args.iterations), desc=f"{name}, seed {seed}", unit="it") as progress:
            for iteration in progress:
                chosen = torch.randint(len(points), (128,))
                loss = nn.functional.binary_cross_entropy_with_logits(model(points[chosen]), labels[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
                if iteration % max(args.iterations // 30, 1) == 0:
                    evaluations.append((iteration, model.evaluations(points)))
                progress.set_postfix(loss=f"{loss.item():.3f}")
        with torch.no_grad():
            scores = model(test_points)
            accuracy = 100 * ((scores > 0) == test_labels.bool()).float().mean().item()
            test_loss = nn.functional.binary_cross_entropy_with_logits(scores, test_labels).item()
        curves[name, seed] = losses, evaluations
        kept.setdefault(name, model)
        runs.append(
            {
                "run": name,
                "seed": seed,
                "iterations": args.iterations,
                "first_loss": losses[0],
                "test_loss": test_loss,
                "test_accuracy": accuracy,
                "forward_nfe": evaluations[-1][1],
            }
        )

# %%
# Disc and ring
# -------------

grid = torch.linspace(-1.7, 1.7, 120)
square = torch.cartesian_prod(grid, grid)
figure, panels = plt.subplots(1, 2, figsize=(9, 4.4), layout="constrained")
for axes, (name, model) in zip(panels, kept.items(), strict=True):
    with torch.no_grad():
        probability = model(square).sigmoid().reshape(120, 120).T
    image = axes.contourf(grid, grid, probability, levels=torch.linspace(0, 1, 21), cmap="coolwarm")
    axes.scatter(*points[::5].T, s=4, c=labels[::5], cmap="coolwarm", edgecolors="k", linewidths=0.2)
    first = next(run for run in runs if run["run"] == name)
    axes.set(
        title=f"{name}\ntest loss {first['test_loss']:.3f}, accuracy {first['test_accuracy']:.1f} %", aspect="equal"
    )
figure.colorbar(image, ax=panels, label="probability of the ring")
gallery.save(args, figure, "regions")

# %%
# Loss and evaluations
# --------------------

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for (name, seed), (losses, evaluations) in curves.items():
    color = "tab:red" if MODELS[name] == 0 else "tab:blue"
    label = name if seed == args.seed else None
    smooth = torch.tensor(losses).unfold(0, 20, 20).mean(1)
    left.semilogy(20 * torch.arange(len(smooth)) + 10, smooth, color=color, linewidth=1, label=label)
    right.plot(*zip(*evaluations, strict=True), "o-", color=color, markersize=2, linewidth=1, label=label)
left.set(xlabel="iteration", ylabel="cross-entropy, mean of 20")
right.set(xlabel="iteration", ylabel="evaluations of f, forward")
left.legend()
gallery.save(args, figure, "training")

# %%
# metrics.json
# ------------

comparison = []
for name in MODELS:
    rows = [run for run in runs if run["run"] == name]
    comparison.append(
        (
            f"{name}: test loss; test accuracy; evaluations of f at the end (mean of {args.seeds} seeds)",
            "wanted next",
            f"{statistics.mean(row['test_loss'] for row in rows):.4f}; "
            f"{statistics.mean(row['test_accuracy'] for row in rows):.1f} %; "
            f"{statistics.mean(row['forward_nfe'] for row in rows):.0f}",
        )
    )
gallery.write_metrics(args, "beyond the reports: augmented neural ODEs", runs, comparison)
