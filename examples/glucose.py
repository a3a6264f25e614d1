r"""
Blood glucose: a latent neural ODE against a GRU
================================================

Two hours of continuous glucose readings, with gaps, predict the next hour. This is study 3b of report 3 (an empirical
study of neural ODEs, Berkeley CS282), which finds a neural ODE about as accurate as a GRU, sometimes better. Look at
``errors.png``: the error in mg/dL at each horizon, beside persistence (the last reading stays), which nobody should
lose to, and ridge regression on the same readings.

The data are traces of five people, a reading every 5 minutes with gaps. Each trace is split by time: the first 70 % to
train, the next 15 % to choose the epoch, the last 15 % to test; a window never crosses a split. Both models read the
history with the same GRU. The baseline then rolls a GRU cell forward, 5 minutes a step; the latent neural ODE solves
dz/dt = f(z) and reads the glucose off z at any time. Both predict the change from the last reading.
"""

from __future__ import annotations

import csv
import datetime
import statistics
import time

import gallery
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn
from tqdm import tqdm

import pyjode

parser = gallery.parser(__doc__, "glucose", epochs=(10, 2), seeds=(3, 1), windows=(20000, 600))
args = gallery.start(parser, threads=1)

# %%
# The traces
# ----------
# Readings are put on a grid of 5 minutes; where there is none the grid says so.

HISTORY, HORIZON, STEP = 24, 12, 5  # grid points, grid points, minutes
path = args.data / "cgm" / "example_data_5_subject.csv"
if not path.exists():
    gallery.stop(f"no {path}: pass --data DIR, a folder with cgm/example_data_5_subject.csv (columns id, time, gl)")
readings: dict[str, list] = {}
with open(path, newline="") as file:
    for row in csv.DictReader(file):
        readings.setdefault(row["id"], []).append((datetime.datetime.fromisoformat(row["time"]), float(row["gl"])))


def on_grid(trace):
    """Glucose in mg/dL every 5 minutes, NaN where nothing was read."""
    start = trace[0][0]
    slots = [round((at - start).total_seconds() / 60 / STEP) for at, _ in trace]
    grid = np.full(slots[-1] + 1, np.nan, dtype=np.float32)
    grid[slots] = [value for _, value in trace]
    return grid


traces = {name: on_grid(trace) for name, trace in readings.items()}


def windows(grid):
    """Windows of history and future whose last history reading is there, and at least half of each part.

    Returns the histories (n, 24) and futures (n, 12), NaN in gaps.
    """
    if len(grid) < HISTORY + HORIZON:
        return np.empty((0, HISTORY + HORIZON), dtype=np.float32)
    every = np.lib.stride_tricks.sliding_window_view(grid, HISTORY + HORIZON)
    there = ~np.isnan(every)
    good = there[:, HISTORY - 1] & (there[:, :HISTORY].mean(1) >= 0.5) & (there[:, HISTORY:].mean(1) >= 0.5)
    return every[good]


parts = {"train": [], "validate": [], "test": []}
for grid in traces.values():
    a, b = int(0.7 * len(grid)), int(0.85 * len(grid))
    for part, piece in zip(parts, (grid[:a], grid[a:b], grid[b:]), strict=True):
        parts[part].append(windows(piece))
data = {part: torch.from_numpy(np.concatenate(pieces)) for part, pieces in parts.items()}
if len(data["train"]) > args.windows:
    chosen = torch.randperm(len(data["train"]), generator=torch.Generator().manual_seed(0))[: args.windows]
    data["train"] = data["train"][chosen]
print("windows: " + ", ".join(f"{len(rows)} to {part}" for part, rows in data.items()))

MEAN, SCALE = 140.0, 50.0  # mg/dL, so that numbers are about one


def features(history):
    """(n, 24, 4): the reading (0 in a gap), whether there is one, hours since the last one, and the window's level.

    Readings count from the window's last one, which is the level: people differ in level more than in how they change.
    """
    there, last = ~history.isnan(), history[:, -1:]
    value = torch.where(there, (history - last) / SCALE, torch.zeros_like(history))
    since, gap = [], torch.zeros(len(history))
    for i in range(HISTORY):
        gap = torch.where(there[:, i], torch.zeros_like(gap), gap + STEP / 60)
        since.append(gap)
    level = ((last - MEAN) / SCALE).expand_as(history)
    return torch.stack([value, there.float(), torch.stack(since, 1), level], dim=2)


# %%
# The two models
# --------------

HIDDEN = 32
hours = torch.arange(HORIZON + 1) * STEP / 60


class LatentODE(nn.Module):
    """A GRU reads the history into z(0), dz/dt = f(z) goes on from there."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.GRU(4, HIDDEN, batch_first=True)
        f = nn.Sequential(nn.Linear(HIDDEN, 64), nn.Tanh(), nn.Linear(64, HIDDEN))
        self.ode = pyjode.NeuralODE(Autonomous(f), hours, method="dopri5", rtol=1e-3, atol=1e-3)
        self.read = nn.Linear(HIDDEN, 1)

    def forward(self, x):
        _, z0 = self.encoder(x)
        z = self.ode(z0[0])  # (13, n, hidden)
        return self.read(z[1:] - z[0]).squeeze(2).T


class Autonomous(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, t, z):
        return self.net(z)


class GRUForecast(nn.Module):
    """The same encoder; a GRU cell goes on, one grid point a step, fed its own prediction."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.GRU(4, HIDDEN, batch_first=True)
        self.cell = nn.GRUCell(1, HIDDEN)
        self.read = nn.Linear(HIDDEN, 1)

    def forward(self, x):
        _, h = self.encoder(x)
        h, change, out = h[0], torch.zeros(len(x), 1), []
        for _ in range(HORIZON):
            h = self.cell(change, h)
            change = change + self.read(h)
            out.append(change)
        return torch.cat(out, dim=1)


def predict(model, rows):
    """Glucose in mg/dL at the next 12 grid points, (n, 12)."""
    return rows[:, HISTORY - 1 : HISTORY] + SCALE * model(features(rows[:, :HISTORY]))


def squared_error(predicted, rows):
    """Mean over the readings that are there, in (mg/dL)^2."""
    future = rows[:, HISTORY:]
    there = ~future.isnan()
    return (predicted - future)[there].square().mean()


def train(name, model, seed):
    """The model as it was in the epoch that did best on the validation windows; every epoch's errors in mg/dL."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)
    shuffle = torch.Generator().manual_seed(seed)
    best, best_state, curve, seconds = float("inf"), None, [], 0.0
    with tqdm(range(args.epochs), desc=f"{name}, seed {seed}", unit="epoch") as progress:
        for _ in progress:
            started, losses = time.perf_counter(), []
            for chosen in torch.randperm(len(data["train"]), generator=shuffle).split(128):
                rows = data["train"][chosen]
                loss = squared_error(predict(model, rows), rows) / SCALE**2
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                losses.append(loss.item())
            schedule.step()
            seconds += time.perf_counter() - started
            with torch.no_grad():
                validation = squared_error(predict(model, data["validate"]), data["validate"]).sqrt().item()
            if validation < best:
                best, best_state = validation, {key: value.clone() for key, value in model.state_dict().items()}
            curve.append((SCALE * statistics.mean(losses) ** 0.5, validation))
            progress.set_postfix(loss=f"{statistics.mean(losses):.4f}", validation=f"{validation:.1f} mg/dL")
    model.load_state_dict(best_state)
    return curve, seconds


# %%
# Baselines
# ---------


def filled(history):
    """Gaps filled with the last reading before (the first one after, at the start)."""
    values = history.numpy().copy()
    for i in range(1, HISTORY):
        values[:, i] = np.where(np.isnan(values[:, i]), values[:, i - 1], values[:, i])
    for i in range(HISTORY - 2, -1, -1):
        values[:, i] = np.where(np.isnan(values[:, i]), values[:, i + 1], values[:, i])
    return torch.from_numpy(values)


def persistence(rows):
    return rows[:, HISTORY - 1 : HISTORY].expand(-1, HORIZON)


def ridge():
    """Linear in the 24 readings, a fit for every horizon, on those training windows where it is there."""

    def inputs(rows):
        history = (filled(rows[:, :HISTORY]) - rows[:, HISTORY - 1 : HISTORY]) / SCALE
        level = (rows[:, HISTORY - 1 : HISTORY] - MEAN) / SCALE
        return torch.cat([history[:, :-1], level, torch.ones(len(rows), 1)], dim=1)

    x, future = inputs(data["train"]), data["train"][:, HISTORY:] - data["train"][:, HISTORY - 1 : HISTORY]
    weights = []
    for i in range(HORIZON):
        there = ~future[:, i].isnan()
        a = x[there]
        weights.append(torch.linalg.solve(a.T @ a + 1.0 * torch.eye(a.shape[1]), a.T @ future[there, i]))
    weights = torch.stack(weights, 1)
    return lambda rows: rows[:, HISTORY - 1 : HISTORY] + inputs(rows) @ weights


def errors(predicted):
    """Root mean square error in mg/dL on the test windows: at each horizon, and over all."""
    future = data["test"][:, HISTORY:]
    there = ~future.isnan()
    squared = torch.where(there, predicted - future, torch.zeros_like(future)).square()
    return (squared.sum(0) / there.sum(0)).sqrt().tolist(), (squared.sum() / there.sum()).sqrt().item()


# %%
# Training and testing
# --------------------

runs, curves, shown = [], {}, {}
for name, predictor in (("persistence", persistence), ("ridge regression", ridge())):
    by_horizon, overall = errors(predictor(data["test"]))
    runs.append({"run": name, "seed": None, "rmse": overall, "rmse_by_horizon": by_horizon})
for name, kind in (("neural ODE", LatentODE), ("GRU", GRUForecast)):
    for seed in range(args.seed, args.seed + args.seeds):
        torch.manual_seed(seed)
        model = kind()
        curve, seconds = train(name, model, seed)
        with torch.no_grad():
            predicted = predict(model, data["test"])
        by_horizon, overall = errors(predicted)
        curves[name, seed], shown[name] = curve, predicted
        runs.append(
            {
                "run": name,
                "seed": seed,
                "epochs": args.epochs,
                "parameters": gallery.parameters(model),
                "rmse": overall,
                "rmse_by_horizon": by_horizon,
                "training_seconds": seconds,
            }
        )

# %%
# The error at each horizon
# -------------------------

COLORS = {"persistence": "0.5", "ridge regression": "tab:green", "neural ODE": "tab:blue", "GRU": "tab:orange"}
minutes = [STEP * (i + 1) for i in range(HORIZON)]
figure, axes = plt.subplots(figsize=(7, 4.4), layout="constrained")
for name, color in COLORS.items():
    of_seeds = torch.tensor([run["rmse_by_horizon"] for run in runs if run["run"] == name])
    axes.plot(minutes, of_seeds.mean(0), "o-", markersize=3, color=color, label=name)
    axes.fill_between(minutes, of_seeds.min(0).values, of_seeds.max(0).values, color=color, alpha=0.2, linewidth=0)
axes.set(
    xlabel="horizon (minutes)", ylabel="root mean square error (mg/dL)", title="Error on the last 15 % of each trace"
)
axes.set_ylim(bottom=0)
axes.legend(title=f"mean of {args.seeds} seeds, band: their range" if args.seeds > 1 else None)
gallery.save(args, figure, "errors")

# %%
# Predictions
# -----------
# Windows from all over the test part.

figure, panels = plt.subplots(2, 3, figsize=(11, 5.4), sharex=True, layout="constrained")
history_minutes = [STEP * (i - HISTORY + 1) for i in range(HISTORY)]
for axes, i in zip(panels.flat, torch.linspace(0, len(data["test"]) - 1, 6).long().tolist(), strict=True):
    axes.plot(history_minutes, data["test"][i, :HISTORY], "k.", markersize=4, label="read")
    axes.plot(minutes, data["test"][i, HISTORY:], "o", color="0.4", mfc="none", markersize=4, label="to come")
    for name in ("neural ODE", "GRU"):
        axes.plot(minutes, shown[name][i], color=COLORS[name], linewidth=2, label=name)
    axes.axvline(0, color="0.7", linewidth=0.8)
for axes in panels[1]:
    axes.set_xlabel("minutes")
for axes in panels[:, 0]:
    axes.set_ylabel("glucose (mg/dL)")
panels[0, 0].legend(fontsize=8)
gallery.save(args, figure, "predictions")

# %%
# Learning curves
# ---------------

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for (name, seed), curve in curves.items():
    first = seed == args.seed
    epochs = range(1, len(curve) + 1)
    axes.plot(
        epochs, [a for a, _ in curve], "--", color=COLORS[name], lw=1, label=f"{name}, training" if first else None
    )
    axes.plot(epochs, [b for _, b in curve], color=COLORS[name], lw=1.5, label=f"{name}, validation" if first else None)
axes.set(xlabel="epoch", ylabel="root mean square error (mg/dL)", title="Training")
axes.legend()
gallery.save(args, figure, "training")

# %%
# metrics.json
# ------------

comparison = []
for name in COLORS:
    rows = [run for run in runs if run["run"] == name]
    at = [statistics.mean(run["rmse_by_horizon"][i] for run in rows) for i in (2, 5, 11)]
    spread = (
        f" (seeds {min(run['rmse'] for run in rows):.1f} to {max(run['rmse'] for run in rows):.1f})"
        if len(rows) > 1
        else ""
    )
    comparison.append(
        (
            f"{name}: RMSE after 15, 30, 60 min, and over all (mg/dL)",
            {"neural ODE": "about as the GRU, sometimes better", "GRU": "the baseline"}.get(name, ""),
            ", ".join(f"{value:.1f}" for value in at) + f"; {statistics.mean(run['rmse'] for run in rows):.1f}{spread}",
        )
    )
gallery.write_metrics(
    args, "report 3b, blood glucose", runs, comparison, windows={part: len(rows) for part, rows in data.items()}
)
