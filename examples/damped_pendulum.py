"""
Damped pendulum
===============

A small network learns how a damped pendulum moves from one recorded swing. This is study 1a of report 1 (neural ODE
report, master DAC, Sorbonne, 2023): theta'' + w0^2 sin(theta) + a theta' = 0, with w0 = pi/6 and a = 0.2, seen as
1000 points on t in [0, 25] from (theta, theta') = (2, 0). The network takes the place of the equation's right-hand
side. It is trained on windows of 10 consecutive points with RK4 and the L1 loss, and tested on 20 other starts. Look
at ``predictions.png``: does the learned pendulum, in black, lie on the true one for starts it has never seen? The goal
is a mean error in theta below 0.02 rad.

The test starts are random, with no more energy than the training swing starts with. This bounds the angle by 2 rad and
the angular velocity by 0.88 rad/s, and since friction only takes energy, the bound holds all the way. Some starts lie
between the turns of the training spiral, others outside it, where the network has to guess more; the worst errors are
there. Starts from the whole box (angle up to 2 rad, angular velocity up to 1 rad/s) are measured too, and reported as
``whole_box_error_rad``: one of those swings up to 2.9 rad, almost upright, far beyond anything in the training data.

``--compare`` also learns the same with Tsit5, an adaptive solver, and with GaussAdjoint, a continuous adjoint;
``--help`` lists the other options. Figures and ``metrics.json`` go to ``runs/damped_pendulum``.
"""

from __future__ import annotations

import math
import statistics
import time
from itertools import accumulate

import gallery
import matplotlib.pyplot as plt
import torch
from torch import nn
from tqdm import tqdm

import pyjode

parser = gallery.parser(__doc__, "damped_pendulum", epochs=(1000, 20))
parser.add_argument("--method", default="rk4", help="solver, by its name in torchdiffeq or DifferentialEquations.jl")
parser.add_argument(
    "--sensealg", default="none", help='an adjoint, such as GaussAdjoint; "none": odeint\'s own gradient'
)
parser.add_argument("--compare", action="store_true", help="also train with Tsit5 and with GaussAdjoint")
args = gallery.start(parser, threads=1)
epochs = args.epochs
torch.set_default_dtype(torch.float64)

# %%
# The pendulum and the training data
# ----------------------------------
# ``solve`` returns the states and what the solver did. "auto" is Julia where ``pyjode setup`` has been run, else
# torchdiffeq; the solution says which it was.

W0, FRICTION = math.pi / 6, 0.2


def pendulum(t, y):
    """The true right-hand side; y = (theta, theta') in its last axis."""
    theta, velocity = y[..., 0], y[..., 1]
    return torch.stack([velocity, -(W0**2) * torch.sin(theta) - FRICTION * velocity], dim=-1)


def true_swings(y0):
    """Accurate swings from y0, saved at the 1000 times."""
    return pyjode.solve(pyjode.ODEProblem(pendulum, y0, (0.0, 25.0)), saveat=times, rtol=1e-10, atol=1e-12)


times = torch.linspace(0.0, 25.0, 1000)
truth = true_swings(torch.tensor([2.0, 0.0]))
swing, engine = truth.ys, truth.engine
print(f"engine: {engine}; training data by {truth.method}, {truth.stats.nfe} evaluations of f")

WINDOW = 10
windows = swing.unfold(0, WINDOW, 1).permute(2, 0, 1)  # (10, 991, 2): every window of 10 consecutive points
window_times = times[:WINDOW]  # f does not depend on t, so every window may start at t = 0

# %%
# The report's first figure.

ANGLE, VELOCITY = r"angle $\theta$ (rad)", r"angular velocity $\theta'$ (rad/s)"

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
left.plot(times, swing[:, 0], ".", markersize=3, label=ANGLE)
left.plot(times, swing[:, 1], ".", markersize=3, label=VELOCITY)
left.set(xlabel="t (s)", ylabel="state", title="1000 points over time")
left.legend()
right.plot(swing[:, 0], swing[:, 1], ".", markersize=3, color="0.6", label="points")
for i, start in enumerate(range(60, 991, 155)):
    label = f"windows of {WINDOW} points" if i == 0 else None
    right.plot(*windows[:, start].T, "o-", markersize=3, color="tab:red", label=label)
right.set(xlabel=ANGLE, ylabel=VELOCITY, title="in the phase plane")
right.legend(loc="upper right")
figure.suptitle("Training data: one swing from (2, 0)")
gallery.save(args, figure, "training_data")

# %%
# The test data
# -------------
# Drawn with a seed of their own, so that the test is the same whatever ``--seed`` is.


def energy(y):
    """Energy per mass and squared length, in 1/s^2."""
    return y[..., 1] ** 2 / 2 + W0**2 * (1 - torch.cos(y[..., 0]))


box = torch.tensor([2.0, 1.0])
random_starts = box * (2 * torch.rand(1000, 2, generator=torch.Generator().manual_seed(2023)) - 1)
test_starts = random_starts[energy(random_starts) <= energy(swing[0])][:20]
box_starts = random_starts[:20]
test_swings, box_swings = true_swings(test_starts).ys, true_swings(box_starts).ys

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
left.plot(times, test_swings[..., 0], linewidth=1)
left.set(xlabel="t (s)", ylabel=ANGLE, title="angle over time")
right.plot(test_swings[..., 0], test_swings[..., 1], linewidth=1)
right.plot(*test_starts.T, "ko", markersize=3, label="test starts")
right.plot(*swing.T, color="0.6", linewidth=3, zorder=0, label="training swing")
angle = torch.linspace(-2.0, 2.0, 401)
limit = torch.sqrt(2 * (energy(swing[0]) - W0**2 * (1 - torch.cos(angle))).clamp(min=0))
right.plot(angle, limit, "k:", label="energy of (2, 0)")
right.plot(angle, -limit, "k:")
right.set(xlabel=ANGLE, ylabel=VELOCITY, title="in the phase plane", ylim=(-1.0, 1.35))
right.legend(loc="upper center", ncols=3)
figure.suptitle("Test data: swings from 20 random starts")
gallery.save(args, figure, "test_data")

# %%
# Learning
# --------
# Coming from torchdiffeq, only the import changes. An epoch sees as many points as there are: 5 batches of 20 windows
# of 10. Adam's learning rate falls from 0.001 to 0 along a cosine.

BATCHES, BATCH_SIZE = 5, 20
TOLERANCES = {"rtol": 1e-6, "atol": 1e-8}  # for adaptive methods; rk4 steps from one saved time to the next


class LearnedPendulum(nn.Module):
    """The learned right-hand side: two hidden layers."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 50), nn.Tanh(), nn.Linear(50, 50), nn.Tanh(), nn.Linear(50, 2))

    def forward(self, t, y):
        return self.net(y)


def swings(f, y0, t, method, sensealg):
    """States at t, shape (len(t), batch, 2), differentiable in the parameters of f."""
    if sensealg == "none":
        return pyjode.odeint(f, y0, t, method=method, **TOLERANCES)
    return pyjode.odeint_adjoint(f, y0, t, method=method, sensealg=sensealg, **TOLERANCES)


def train(method, sensealg):
    """A trained network, and of every epoch its mean loss and its seconds."""
    torch.manual_seed(args.seed)
    f = LearnedPendulum()
    optimizer = torch.optim.Adam(f.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    losses, seconds = [], []
    with tqdm(range(epochs), desc=name(method, sensealg), unit="epoch") as progress:
        for _ in progress:
            started, losses_of_epoch = time.perf_counter(), []
            for starts in torch.randint(windows.shape[1], (BATCHES, BATCH_SIZE)):
                batch = windows[:, starts]  # (10, 20, 2)
                loss = (swings(f, batch[0], window_times, method, sensealg) - batch).abs().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses_of_epoch.append(loss.item())
            schedule.step()
            losses.append(statistics.mean(losses_of_epoch))
            seconds.append(time.perf_counter() - started)
            progress.set_postfix(loss=f"{losses[-1]:.1e}")
    return f, losses, seconds


def predict(f, method):
    """The predicted test swings, and the errors of theta in rad there and from the whole box."""
    with torch.no_grad():
        predicted = pyjode.odeint(f, test_starts, times, method=method, **TOLERANCES)
        predicted_box = pyjode.odeint(f, box_starts, times, method=method, **TOLERANCES)
    return predicted, errors(predicted, test_swings), errors(predicted_box, box_swings)


def errors(predicted, true):
    """|theta - true theta| in rad: its mean, the mean of the median and of the worst start, and the largest of all."""
    error = (predicted - true)[..., 0].abs()  # (1000, starts)
    of_starts = error.mean(0)
    return {
        "mean": error.mean().item(),
        "median_start": of_starts.median().item(),
        "worst_start": of_starts.max().item(),
        "max": error.max().item(),
    }


def count_evaluations(f, method):
    """Evaluations of f in one forward solve of a batch: the solution has them."""
    problem = pyjode.ODEProblem(f, windows[0, :BATCH_SIZE], (0.0, window_times[-1]))
    fixed_step = next(not m.adaptive for m in pyjode.methods() if m.name == method)
    dt = window_times[1].item() if fixed_step else None
    with torch.no_grad():
        return pyjode.solve(problem, method, saveat=window_times, dt=dt, **TOLERANCES).stats.nfe


def name(method, sensealg):
    """How a run is called."""
    return method if sensealg == "none" else f"{method}, {sensealg}"


def learn_and_test(method, sensealg):
    """The predicted test swings, every epoch's loss, a row for metrics.json, and when every epoch ended, in s."""
    f, losses, seconds = train(method, sensealg)
    predicted, test_error, box_error = predict(f, method)
    row = {
        "run": name(method, sensealg),
        "engine": engine,
        "method": method,
        "sensealg": sensealg,
        "seed": args.seed,
        "epochs": epochs,
        "first_loss": losses[0],
        "final_loss": losses[-1],
        "test_error_rad": test_error,
        "whole_box_error_rad": box_error,
        "seconds_per_epoch": statistics.median(seconds),
        "seconds": sum(seconds),
        "forward_nfe_per_epoch": BATCHES * count_evaluations(f, method),
    }
    print(f"{row['run']}: final loss {losses[-1]:.1e}, mean test error {test_error['mean']:.4f} rad")
    return predicted, losses, row, list(accumulate(seconds))


predicted, losses, row, ends = learn_and_test(args.method, args.sensealg)
curves, rows = [(losses, ends)], [row]

# %%
# Predictions over the truth
# --------------------------
# The report's third figure. In grey and dotted the swing it learned from: where a test swing runs far from it, the
# network has to guess.

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
shown = test_starts[:, 0].argsort()[::4]  # five of the twenty, from the most negative angle up
left.plot(times, test_swings[:, shown, 0], linewidth=4, alpha=0.45)
left.plot(times, predicted[:, shown, 0], "k--", linewidth=1)
left.set(xlabel="t (s)", ylabel=ANGLE, title="five of them over time")
right.plot(test_swings[..., 0], test_swings[..., 1], linewidth=4, alpha=0.45)
right.plot(predicted[..., 0], predicted[..., 1], "k--", linewidth=0.8)
right.plot(*swing.T, color="0.4", linestyle=":", linewidth=1.5, label="training swing")
right.set(xlabel=ANGLE, ylabel=VELOCITY, title="all twenty in the phase plane", ylim=(-1.25, 1.0))
for axes in (left, right):
    axes.plot([], [], color="tab:blue", linewidth=4, alpha=0.45, label="true (colours)")
    axes.plot([], [], "k--", linewidth=1, label="predicted")
left.legend()
right.legend(loc="lower center", ncols=3)
error = row["test_error_rad"]
figure.suptitle(
    f"Predictions over the truth on test data ({row['run']}, {epochs} epochs): mean error {error['mean']:.4f} rad, "
    f"worst start {error['worst_start']:.4f} rad"
)
gallery.save(args, figure, "predictions")

# %%
# The same with Tsit5 and with GaussAdjoint
# -----------------------------------------
# Tsit5 chooses its steps itself, by its error estimate. GaussAdjoint gets the gradient from a second differential
# equation, solved backwards in time. The figure shows whether all three learn the same, and how long they take. Without
# Julia, the nearest that torchdiffeq has stands in.

if args.compare:
    if engine == "julia":
        others = [("Tsit5", "none"), ("Tsit5", "GaussAdjoint")]
    else:
        others = [("dopri5", "none"), ("rk4", "BacksolveAdjoint")]
        print("Tsit5 and GaussAdjoint need Julia (pyjode setup): dopri5 and BacksolveAdjoint stand in")
    for method, sensealg in others:
        _, losses, row, ends = learn_and_test(method, sensealg)
        curves.append((losses, ends))
        rows.append(row)

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), sharey=True, layout="constrained")
    for row, (losses, ends), width in zip(rows, curves, (5, 2.5, 1), strict=True):  # the first lie under the others
        label = f"{row['run']} ({row['test_error_rad']['mean']:.4f} rad)"
        left.semilogy(losses, linewidth=width, alpha=0.8, label=label)
        right.semilogy(ends, losses, linewidth=1, alpha=0.8)
    left.set(xlabel="epoch", ylabel="L1 loss, mean of the epoch", title="over epochs")
    left.legend(title="solver (mean test error)")
    right.set(xlabel="time (s)", title="over time, compilation in the first epoch")
    figure.suptitle(f"The same learned with three solvers, engine: {engine}")
    gallery.save(args, figure, "loss_curves")

# %%
# metrics.json
# ------------

comparison = []
for row in rows:
    test, box = row["test_error_rad"], row["whole_box_error_rad"]
    comparison += [
        (
            f"{row['run']}: mean error in theta on 20 test starts, worst start (rad)",
            "shown in a figure only",
            f"{test['mean']:.4f}, {test['worst_start']:.4f}",
        ),
        (f"{row['run']}: the same from the whole box", "", f"{box['mean']:.4f}, {box['worst_start']:.4f}"),
        (f"{row['run']}: time an epoch", "", f"{1000 * row['seconds_per_epoch']:.0f} ms"),
    ]
gallery.write_metrics(args, "report 1a, damped pendulum", rows, comparison)
