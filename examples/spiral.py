r"""
Fitting a spiral, and how stable the adjoints are
=================================================

A network recovers a linear ODE and a nonlinear spiral, z' = A z^3, from samples. This is study 3c of report 3 (an
empirical study of neural ODEs, Berkeley CS282), which also says that training with the adjoint method is less stable
than without it. Look at ``fits.png`` for the fits, and at ``gradient_errors.png`` for the claim: while the network
learns, the gradient of the whole curve's loss by each adjoint, at the tolerance the training uses, is compared with an
accurate one.

The adjoint method of the report solves the state backwards (``BacksolveAdjoint``, and torchdiffeq's
``odeint_adjoint``). ``InterpolatingAdjoint`` and ``GaussAdjoint`` read it from the forward solution instead, and
``DiscreteAdjoint`` goes back through the solver's own steps.
"""

from __future__ import annotations

import warnings

import gallery
import matplotlib.pyplot as plt
import torch
from torch import nn
from tqdm import tqdm

import pyjode

parser = gallery.parser(__doc__, "spiral", iterations=(2000, 30), seeds=(3, 1), measured=(20, 2))
args = gallery.start(parser, threads=1)
torch.set_default_dtype(torch.float64)
julia = args.engine_in_use == "julia"

# %%
# The two systems and their samples
# ---------------------------------

A = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]])
z0 = torch.tensor([2.0, 0.0])
times = torch.linspace(0.0, 25.0, 1000)
SYSTEMS = {"linear": lambda t, z: z @ A, "spiral": lambda t, z: z**3 @ A}
truths = {name: pyjode.odeint(f, z0, times, method="dopri5", rtol=1e-8, atol=1e-10) for name, f in SYSTEMS.items()}
WINDOW, BATCH = 10, 20
TOLERANCES = {"method": "dopri5", "rtol": 1e-4, "atol": 1e-6}


class Field(nn.Module):
    """The learned right-hand side; it sees z (linear) or z^3 (spiral)."""

    def __init__(self, power):
        super().__init__()
        self.power = power
        self.net = nn.Sequential(nn.Linear(2, 50), nn.Tanh(), nn.Linear(50, 2))
        for layer in (self.net[0], self.net[2]):
            nn.init.normal_(layer.weight, std=0.1)
            nn.init.zeros_(layer.bias)

    def forward(self, t, z):
        return self.net(z**self.power)


# %%
# The gradients, measured along the training
# ------------------------------------------
# Truth is the discrete adjoint at a tolerance of 1e-8, whose discretisation error does not count here.


def curve_gradient(field, truth, sensealg, rtol=1e-4, atol=1e-6):
    """The gradient, as one vector, of the mean squared error over the whole curve."""
    field.zero_grad()
    curve = pyjode.odeint(field, z0, times[::40], method="dopri5", rtol=rtol, atol=atol, sensealg=sensealg)
    (curve - truth[::40]).square().mean().backward()
    return torch.cat([p.grad.flatten() for p in field.parameters()])


def gradient_error(field, truth, sensealg, reference):
    """Relative error of that gradient, infinite where the backward solve fails."""
    try:
        gradient = curve_gradient(field, truth, sensealg)
    except pyjode.SolverError:
        return float("inf")
    return ((gradient - reference).norm() / reference.norm()).item()


MEASURED = {"DiscreteAdjoint": pyjode.DiscreteAdjoint()}
if julia:
    MEASURED |= {
        "GaussAdjoint": pyjode.GaussAdjoint(),
        "InterpolatingAdjoint": pyjode.InterpolatingAdjoint(),
        "Backsolve, checkpoints": pyjode.BacksolveAdjoint(),
        "Backsolve": pyjode.BacksolveAdjoint(checkpointing=False),
    }
else:  # torchdiffeq's adjoint: y is put back at the save points
    MEASURED |= {"Backsolve": pyjode.BacksolveAdjoint()}


def train(system, sensealg_name, seed, measure):
    """Losses, the fitted curve, and the gradient errors of every adjoint along the way."""
    truth = truths[system]
    windows = truth.unfold(0, WINDOW, 1).permute(2, 0, 1)
    torch.manual_seed(seed)
    field = Field(3 if system == "spiral" else 1)
    optimizer = torch.optim.Adam(field.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.iterations)
    losses, errors = [], []
    with tqdm(range(args.iterations), desc=f"{system}, {sensealg_name}, seed {seed}", unit="it") as progress:
        for iteration in progress:
            if measure and iteration % max(args.iterations // args.measured, 1) == 0:
                reference = curve_gradient(field, truth, pyjode.DiscreteAdjoint(), 1e-8, 1e-10)
                errors.append(
                    {"iteration": iteration}
                    | {name: gradient_error(field, truth, adjoint, reference) for name, adjoint in MEASURED.items()}
                )
            batch = windows[:, torch.randint(windows.shape[1], (BATCH,))]
            sensealg = MEASURED[sensealg_name]
            predicted = pyjode.odeint(field, batch[0], times[:WINDOW], sensealg=sensealg, **TOLERANCES)
            loss = (predicted - batch).abs().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            progress.set_postfix(loss=f"{loss.item():.1e}")
    with torch.no_grad():
        fitted = pyjode.odeint(field, z0, times, method="dopri5", rtol=1e-6, atol=1e-8)
    return losses, fitted, errors


runs, curves, fits, gradient_errors = [], {}, {}, {}
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # pyjode warns of adjoints it does not trust: measuring them is the point here
    for system in SYSTEMS:
        for sensealg_name in ("DiscreteAdjoint", "Backsolve"):
            for seed in range(args.seed, args.seed + args.seeds):
                first = sensealg_name == "DiscreteAdjoint" and seed == args.seed
                losses, fitted, errors = train(system, sensealg_name, seed, measure=first)
                curves[system, sensealg_name, seed] = losses
                if first:
                    fits[system], gradient_errors[system] = fitted, errors
                distance = (fitted - truths[system]).norm(dim=1)
                runs.append(
                    {
                        "run": f"{system}, {sensealg_name}",
                        "seed": seed,
                        "iterations": args.iterations,
                        "first_loss": losses[0],
                        "final_loss": sum(losses[-20:]) / len(losses[-20:]),
                        "curve_error_mean": distance.mean().item(),
                        "curve_error_max": distance.max().item(),
                    }
                )

# %%
# The fits
# --------

figure, panels = plt.subplots(1, 2, figsize=(10, 5), layout="constrained")
for axes, system in zip(panels, SYSTEMS, strict=True):
    axes.plot(*truths[system].T, color="tab:green", linewidth=4, alpha=0.4, label="true")
    axes.plot(*fits[system].T, "k--", linewidth=1, label="learned")
    error = next(run for run in runs if run["run"] == f"{system}, DiscreteAdjoint")["curve_error_mean"]
    axes.set(xlabel="$z_1$", ylabel="$z_2$", title=f"{system}: mean distance {error:.1e}")
    axes.set_aspect("equal")
    axes.legend()
gallery.save(args, figure, "fits")

# %%
# Training with and without the adjoint
# -------------------------------------

figure, panels = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
for axes, system in zip(panels, SYSTEMS, strict=True):
    for sensealg_name, color, style in (("DiscreteAdjoint", "tab:blue", "-"), ("Backsolve", "tab:red", "--")):
        for seed in range(args.seed, args.seed + args.seeds):
            losses = torch.tensor(curves[system, sensealg_name, seed])
            smooth = losses.unfold(0, 20, 20).mean(1) if len(losses) >= 40 else losses
            label = sensealg_name if seed == args.seed else None
            at = torch.arange(len(smooth)) * (len(losses) / len(smooth))
            axes.semilogy(at, smooth, style, color=color, linewidth=1, label=label)
    axes.set(xlabel="iteration", title=system)
panels[0].set_ylabel("L1 loss, mean of 20 iterations")
panels[0].legend()
gallery.save(args, figure, "losses")

# %%
# Errors of the gradients
# -----------------------

figure, panels = plt.subplots(1, 2, figsize=(10, 4.4), sharey=True, layout="constrained")
for axes, system in zip(panels, SYSTEMS, strict=True):
    at = [row["iteration"] for row in gradient_errors[system]]
    for name, marker, width in zip(MEASURED, "osD^v", (1, 4, 1.5, 1, 1), strict=False):  # two of them nearly coincide
        errors = [min(row[name], 1e6) for row in gradient_errors[system]]
        axes.semilogy(at, errors, f"{marker}-", markersize=4, linewidth=width, label=name)
    axes.axhline(1, color="0.5", linestyle=":")
    axes.set(xlabel="iteration of the training", title=system)
panels[0].set_ylabel("relative error of the gradient, dopri5 at rtol 1e-4")
panels[0].legend()
gallery.save(args, figure, "gradient_errors")

# %%
# metrics.json
# ------------

comparison = []
for system in SYSTEMS:
    for sensealg_name in ("DiscreteAdjoint", "Backsolve"):
        rows = [run for run in runs if run["run"] == f"{system}, {sensealg_name}"]
        errors = ", ".join(f"{run['curve_error_mean']:.1e}" for run in rows)
        comparison.append(
            (
                f"{system}, trained with {sensealg_name}: mean distance to the curve, by seed",
                "shown in a figure only",
                errors,
            )
        )
    for name in MEASURED:
        values = sorted(row[name] for row in gradient_errors[system])
        comparison.append(
            (
                f"{system}: error of the {name} gradient along training, median / worst",
                "the adjoint is less stable" if name.startswith("Backsolve") else "",
                f"{values[len(values) // 2]:.0e} / {values[-1]:.0e}",
            )
        )
gallery.write_metrics(args, "report 3c, function fitting", runs, comparison, gradient_errors=gradient_errors)
