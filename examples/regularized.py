r"""
Regularised neural ODEs: fewer evaluations, the same accuracy
=============================================================

A neural ODE that classifies small digits is trained with and without a price on its path: the kinetic energy, the
integral of ``f^2``, and the squared Frobenius norm of the Jacobian. This is what report 4 (reimplementation of the
classical neural ODE, Purdue) wants next: Finlay et al., "How to train your neural ODE", ICML 2020. ``NeuralODE(f,
regularize=...)`` integrates both in the same solve. Look at ``tradeoff.png``: how many evaluations of f a tolerance of
1e-5 takes after training, against the accuracy.

MNIST averaged to 8x8 pixels, as in report 5; without its files and without network, scikit-learn's 8x8 digits stand in.
"""

from __future__ import annotations

import statistics

import gallery
import matplotlib.pyplot as plt
import torch
from torch import nn
from tqdm import tqdm

import pyjode

parser = gallery.parser(__doc__, "regularized", epochs=(5, 2), images=(60000, 4000), seeds=(2, 1))
args = gallery.start(parser, threads=1)
data_name, (train_x, train_y, test_x, test_y) = gallery.mnist_8x8(args, args.images)

# %%
# The network
# -----------


class Dynamics(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64))

    def forward(self, t, y):
        return self.net(y)


TOLERANCES = {"rtol": 1e-5, "atol": 1e-5}
WEIGHTS = (0.0, 0.01, 0.1, 1.0)  # of both penalties, divided by the 64 dimensions


def evaluations(f, x):
    """Evaluations of f alone in one forward solve, without the integrals."""
    with torch.no_grad():
        problem = pyjode.ODEProblem(f, x, (0.0, 1.0))
        return pyjode.solve(problem, "dopri5", saveat=[0.0, 1.0], **TOLERANCES).stats.nfe


# %%
# Training
# --------

runs = []
for weight in WEIGHTS:
    for seed in range(args.seed, args.seed + args.seeds):
        torch.manual_seed(seed)
        regularize = ("kinetic", "jacobian") if weight else None
        ode = pyjode.NeuralODE(Dynamics(), regularize=regularize, method="dopri5", **TOLERANCES)
        read = nn.Linear(64, 10)
        optimizer = torch.optim.Adam([*ode.parameters(), *read.parameters()], lr=1e-2)
        batches = torch.cat([torch.randperm(len(train_x)) for _ in range(args.epochs)]).split(256)
        losses = []
        with tqdm(batches, desc=f"weight {weight:g}, seed {seed}", unit="batch") as progress:
            for chosen in progress:
                y1, penalties = ode(train_x[chosen]) if weight else (ode(train_x[chosen]), {})
                loss = nn.functional.cross_entropy(read(y1), train_y[chosen])
                losses.append(loss.item())
                for penalty in penalties.values():
                    loss = loss + weight / 64 * penalty.mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                progress.set_postfix(loss=f"{losses[-1]:.3f}")
        plain = pyjode.NeuralODE(ode.f, method="dopri5", **TOLERANCES)
        test_loss, accuracy = gallery.evaluate(nn.Sequential(plain, read), test_x, test_y)
        runs.append(
            {
                "run": f"weight {weight:g}",
                "weight": weight,
                "seed": seed,
                "epochs": args.epochs,
                "first_loss": losses[0],
                "final_loss": statistics.mean(losses[-10:]),
                "test_loss": test_loss,
                "test_accuracy": accuracy,
                "forward_nfe": evaluations(ode.f, test_x[:256]),
            }
        )

# %%
# Evaluations against accuracy
# ----------------------------

figure, axes = plt.subplots(figsize=(7, 4.4), layout="constrained")
for weight, marker in zip(WEIGHTS, "osD^", strict=True):
    rows = [run for run in runs if run["weight"] == weight]
    label = f"weight {weight:g}" if weight else "not regularised"
    axes.plot([run["forward_nfe"] for run in rows], [run["test_accuracy"] for run in rows], marker, label=label)
axes.set(
    xlabel="evaluations of f, forward, tolerance 1e-5", ylabel="test accuracy (%)", title=f"{data_name} at 8x8 pixels"
)
axes.legend()
gallery.save(args, figure, "tradeoff")

# %%
# metrics.json
# ------------

comparison = []
for weight in WEIGHTS:
    rows = [run for run in runs if run["weight"] == weight]
    comparison.append(
        (
            f"regularisation {weight:g}: evaluations of f; test accuracy (mean of {args.seeds} seeds)",
            "wanted next",
            f"{statistics.mean(run['forward_nfe'] for run in rows):.0f}; "
            f"{statistics.mean(run['test_accuracy'] for run in rows):.2f} %",
        )
    )
gallery.write_metrics(args, "beyond the reports: regularised neural ODEs", runs, comparison, data=data_name)
