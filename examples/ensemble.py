r"""
An ensemble: thousands of Lorenz starts
=======================================

Thousands of starts of the Lorenz system, each solved with step sizes of its own and spread over threads:
``batching="independent"``. None of the five reports has it. As one joint state, the usual way, all starts share the
steps that their mean error asks for, too short for most and too long for a few. Look at ``steps.png``: how different
the starts are; at the times, where the joint state's long loops can still win; and at ``attractor.png``, where the
ensemble is after a while. A gradient of the ensemble's mean by the three parameters comes
last, checked against finite differences.
"""

from __future__ import annotations

import time

import gallery
import matplotlib.pyplot as plt
import torch
from torch import nn

import pyjode

args = gallery.start(gallery.parser(__doc__, "ensemble", starts=(10000, 20)))
torch.set_default_dtype(torch.float64)
julia = args.engine_in_use == "julia"


class Lorenz(nn.Module):
    """dx = sigma (y - x), dy = x (rho - z) - y, dz = x y - beta z."""

    def __init__(self, values=(10.0, 28.0, 8 / 3)):
        super().__init__()
        self.values = nn.Parameter(torch.tensor(values))

    def forward(self, t, u):
        x, y, z = u.unbind(-1)
        sigma, rho, beta = self.values.unbind()
        return torch.stack([sigma * (y - x), x * (rho - z) - y, x * y - beta * z], dim=-1)


# %%
# Solving
# -------
# Starts near the attractor and, one in a hundred, far from it, where the motion is fast.

END = 1.0
generator = torch.Generator().manual_seed(args.seed)
starts = torch.tensor([0.0, 0.0, 25.0]) + 10 * torch.randn(args.starts, 3, generator=generator)
starts[::100] *= 4
lorenz = Lorenz()
save = torch.linspace(0.0, END, 11)
METHOD = "Tsit5" if julia else "dopri5"


def solve(f, y0, batching, rtol=1e-6, atol=1e-6):
    problem = pyjode.ODEProblem(f, y0, (0.0, END))
    return pyjode.solve(problem, METHOD, saveat=save, batching=batching, rtol=rtol, atol=atol, dense=False)


solutions, seconds = {}, {}
with torch.no_grad():
    for batching in ("joint", "independent"):
        solve(lorenz, starts, batching)  # compiles
        started = time.perf_counter()
        solutions[batching] = solve(lorenz, starts, batching)
        seconds[batching] = time.perf_counter() - started
    few = starts[: 20 if julia else 3]
    exact = torch.stack([solve(lorenz, y0, "joint", 1e-10, 1e-10).ys for y0 in few], dim=1)
distance = {
    batching: (solution.ys[:, : len(few)] - exact).norm(dim=-1).amax(0).median().item()
    for batching, solution in solutions.items()
}
own = solutions["independent"].stats.naccept
shared = int(solutions["joint"].stats.naccept)
for batching in solutions:
    print(f"{batching:12}: {seconds[batching]:.3f} s, median error {distance[batching]:.1e}")
mean_own = own.double().mean().item()
print(f"accepted steps: {shared} for all together; alone {int(own.min())} to {int(own.max())}, mean {mean_own:.1f}")

# %%
# Steps
# -----

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
axes.hist(own, bins=60, color="tab:blue", label="each start alone")
axes.axvline(shared, color="tab:red", linewidth=2, label="all as one state")
axes.set(
    xlabel=f"accepted steps to t = {END:g}",
    ylabel="starts",
    yscale="log",
    title=f"{args.starts} starts, {METHOD} at 1e-6",
)
axes.legend()
gallery.save(args, figure, "steps")

# %%
# The ensemble
# ------------

figure, panels = plt.subplots(1, 3, figsize=(11, 3.8), sharex=True, sharey=True, layout="constrained")
for axes, i in zip(panels, (0, 2, 10), strict=True):
    points = solutions["independent"].ys[i]
    shown = points[:: max(len(points) // 3000, 1)]
    axes.scatter(shown[:, 0], shown[:, 2], s=1, c=shown[:, 1], cmap="viridis", rasterized=True)
    axes.set(xlabel="x", title=f"t = {save[i]:.1f}", xlim=(-40, 40), ylim=(-20, 80))
panels[0].set_ylabel("z")
gallery.save(args, figure, "attractor")

# %%
# A gradient through the ensemble
# -------------------------------
# The mean height z at the end, by sigma, rho and beta: all starts' gradients summed. The far starts bend it so much
# that the differences must be small, and so the tolerance.

few = starts[: 1000 if julia else 5]


def mean_height(f):
    return solve(f, few, "independent", 1e-10, 1e-10).ys[-1, :, 2].mean()


started = time.perf_counter()
mean_height(lorenz).backward()
gradient_seconds = time.perf_counter() - started
differences = []
with torch.no_grad():
    for i in range(3):
        values = []
        for sign in (1, -1):
            moved = Lorenz()
            moved.values[i] += sign * 1e-5
            values.append(mean_height(moved).item())
        differences.append((values[0] - values[1]) / 2e-5)
differences = torch.tensor(differences)
gradient_error = ((lorenz.values.grad - differences).norm() / differences.norm()).item()
print(
    f"d mean(z) / d (sigma, rho, beta): {lorenz.values.grad.tolist()}; error against differences {gradient_error:.1e}"
)

# %%
# metrics.json
# ------------

rate = args.starts / seconds["independent"]
comparison = [
    (f"{args.starts} starts, one joint state", "", f"{seconds['joint']:.2f} s, {shared} steps for every start"),
    (
        f"{args.starts} starts, each on its own",
        "",
        f"{seconds['independent']:.2f} s, {mean_own:.0f} steps on average",
    ),
    ("starts solved a second, each on its own", "", f"{rate:,.0f}"),
    ("gradient of the ensemble's mean against finite differences", "", f"{gradient_error:.0e}"),
]
run = {
    "run": "Lorenz",
    "starts": args.starts,
    "method": METHOD,
    "seconds": seconds,
    "median_error": distance,
    "joint_steps": shared,
    "own_steps": {"least": int(own.min()), "mean": mean_own, "most": int(own.max())},
    "gradient_error": gradient_error,
    "gradient_seconds": gradient_seconds,
    "threads": torch.get_num_threads(),
}
gallery.write_metrics(args, "beyond the reports: an ensemble", [run], comparison)
