r"""
Stiff kinetics: rate constants from data
========================================

Robertson's reaction, three species whose rate constants differ by a factor of a thousand million, is learned from noisy
concentrations over ten decades of time. None of the five reports could do this: torchdiffeq has no adaptive method for
stiff problems, and its explicit ones would take millions of steps. Look at ``fit.png`` for the concentrations before
and after, and at ``constants.png``: three constants that start wrong by factors of 3 to 8 and come back to their
values.

The solver is Rodas5P with Jacobians from torch, the gradient GaussAdjoint's, the pair that pyjode trusts for stiff
problems (``pyjode/trust.py`` says why others are refused). The gradient is compared with finite differences first. This
script needs the Julia engine; on the embedded one it shows how far an explicit method gets, and ends.
"""

from __future__ import annotations

import gallery
import matplotlib.pyplot as plt
import torch
from torch import nn
from tqdm import tqdm

import pyjode

parser = gallery.parser(__doc__, "stiff_kinetics", iterations=(300, 60), seeds=(3, 1))
args = gallery.start(parser, threads=1)
torch.set_default_dtype(torch.float64)

# %%
# The reaction
# ------------
# A -> B (slow), B + B -> B + C (very fast), B + C -> A + C (fast). The constants are learned as logarithms.

TRUE = torch.tensor([0.04, 3e7, 1e4])


class Robertson(nn.Module):
    def __init__(self, constants):
        super().__init__()
        self.log_k = nn.Parameter(constants.log())

    def forward(self, t, y):
        k = self.log_k.exp()
        slow, very_fast, fast = k[0] * y[0], k[1] * y[1] * y[1], k[2] * y[1] * y[2]
        return torch.stack([fast - slow, slow - very_fast - fast, very_fast])


y0 = torch.tensor([1.0, 0.0, 0.0])
END = 1e5
times = torch.cat([torch.zeros(1), torch.logspace(-5, 5, 41)])

# %%
# What an explicit method does
# ----------------------------
# 10,000 steps of dopri5 do not get beyond the first seconds of 100,000 s.

with torch.no_grad():
    explicit = pyjode.solve(
        pyjode.ODEProblem(Robertson(TRUE), y0, (0.0, END)),
        "dopri5",
        saveat=[0.0, END],
        rtol=1e-6,
        atol=1e-10,
        maxiters=10_000 if not args.quick else 1000,
        engine="torchdiffeq",
        throw=False,
    )
steps = explicit.stats.naccept + explicit.stats.nreject
print(f"dopri5 in torchdiffeq: {explicit.retcode} at t = {explicit.t_reached:.3g} of {END:.0e} after {steps} steps")
if args.engine_in_use != "julia":
    gallery.stop("stiff methods need the Julia engine: pyjode setup")

# %%
# The data
# --------
# Concentrations at 41 times, each with noise of 2 % of its species' largest value.


def concentrations(f, sensealg=None, rtol=1e-6, atol=1e-10):
    problem = pyjode.ODEProblem(f, y0, (0.0, END))
    return pyjode.solve(problem, "Rodas5P", saveat=times, sensealg=sensealg, rtol=rtol, atol=atol, dense=False)


with torch.no_grad():
    exact = concentrations(Robertson(TRUE), rtol=1e-9, atol=1e-13)
truth = exact.ys
scale = truth.max(0).values
print(f"Rodas5P in Julia: {exact.stats.naccept} steps to t = {END:.0e} at rtol 1e-9")


def loss_of(f, data):
    """Mean squared difference, each species in units of its largest value."""
    return ((concentrations(f).ys[1:] - data[1:]) / scale).square().mean()


# %%
# The gradient against finite differences
# ---------------------------------------

f = Robertson(TRUE * torch.tensor([1.5, 0.7, 1.3]))


def accurate_loss(f):
    return ((concentrations(f, rtol=1e-9, atol=1e-13).ys[1:] - truth[1:]) / scale).square().mean()


accurate_loss(f).backward()
differences = []
for i in range(3):
    values = []
    for sign in (1, -1):
        moved = Robertson(TRUE)
        with torch.no_grad():
            moved.log_k.copy_(f.log_k)
            moved.log_k[i] += sign * 1e-4
            values.append(accurate_loss(moved).item())
    differences.append((values[0] - values[1]) / 2e-4)
gradient_error = ((f.log_k.grad - torch.tensor(differences)).norm() / torch.tensor(differences).norm()).item()
print(f"gradient by log k: {f.log_k.grad.tolist()}\nfinite differences: {differences}")
print(f"relative error: {gradient_error:.1e}")

# %%
# Learning the constants
# ----------------------

START = torch.tensor([0.3, 8.0, 0.2])  # factors on the true constants
runs, tracks, fitted = [], {}, None
for seed in range(args.seed, args.seed + args.seeds):
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(seed))
    data = truth + 0.02 * scale * noise
    f = Robertson(TRUE * START)
    if seed == args.seed:
        with torch.no_grad():
            before, first_data = concentrations(f).ys, data
    optimizer = torch.optim.Adam(f.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.iterations)
    losses, track = [], []
    with tqdm(range(args.iterations), desc=f"Robertson, seed {seed}", unit="it") as progress:
        for _ in progress:
            loss = loss_of(f, data)
            optimizer.zero_grad()
            loss.backward()
            track.append((f.log_k.detach().exp() / TRUE).tolist())
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            progress.set_postfix(loss=f"{loss.item():.2e}")
    factor = f.log_k.detach().exp() / TRUE
    tracks[seed] = torch.tensor(track)
    if seed == args.seed:
        with torch.no_grad():
            fitted = concentrations(f).ys
    runs.append(
        {
            "run": "Robertson, Rodas5P, GaussAdjoint",
            "seed": seed,
            "iterations": args.iterations,
            "first_loss": losses[0],
            "final_loss": losses[-1],
            "constants": f.log_k.detach().exp().tolist(),
            "relative_errors": (factor - 1).abs().tolist(),
        }
    )

# %%
# Concentrations
# --------------

figure, panels = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
for i, (axes, species) in enumerate(zip(panels, "ABC", strict=True)):
    axes.semilogx(times[1:], before[1:, i], color="tab:red", linestyle="--", label="before")
    axes.semilogx(times[1:], truth[1:, i], color="tab:green", linewidth=5, alpha=0.35, label="true")
    axes.semilogx(times[1:], fitted[1:, i], color="k", linewidth=1, label="learned")
    axes.semilogx(times[1:], first_data[1:, i], ".", color="0.4", markersize=4, label="data, 2 % noise")
    axes.set(xlabel="t (s)", title=f"species {species}")
panels[0].set_ylabel("concentration")
panels[0].legend(fontsize=8)
gallery.save(args, figure, "fit")

# %%
# The constants
# -------------

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for i, (color, style) in enumerate((("tab:blue", "-"), ("tab:orange", "--"), ("tab:green", "-."))):
    for seed, track in tracks.items():
        label = f"$k_{i + 1}$" if seed == args.seed else None
        axes.semilogy(track[:, i], style, color=color, linewidth=1.2, label=label)
axes.axhline(1, color="k", linewidth=0.8, linestyle=":")
axes.set(xlabel="iteration", ylabel="constant / its true value", title="Learned rate constants, every seed")
axes.set_yticks([0.2, 0.5, 1, 2, 5, 10], ["0.2", "0.5", "1", "2", "5", "10"])
axes.minorticks_off()
axes.legend()
gallery.save(args, figure, "constants")

# %%
# metrics.json
# ------------

worst = [max(run["relative_errors"][i] for run in runs) for i in range(3)]
comparison = [
    ("gradient by the constants against finite differences", "not possible", f"{gradient_error:.0e}"),
    (
        f"error of k1, k2, k3 learned from 2 % noise, worst of {args.seeds} seeds",
        "not possible",
        ", ".join(f"{100 * x:.1f} %" for x in worst),
    ),
    (f"t reached by dopri5 in {steps} steps, of {END:.0e} s", "not possible", f"{explicit.t_reached:.2g} s"),
]
gallery.write_metrics(
    args,
    "beyond the reports: stiff kinetics",
    runs,
    comparison,
    gradient_error=gradient_error,
    dopri5_reached=explicit.t_reached,
)
