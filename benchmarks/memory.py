"""Memory of a gradient against the number of steps: the discrete adjoint, GaussAdjoint, and backpropagation.

    python -m benchmarks.memory                     # the table
    python -m benchmarks.memory --out memory.png    # and the plot

A 32-256-32 tanh network on 64 states, float32, fixed steps of RK4 from t = 0 to 1 (Tsit5 for
GaussAdjoint), 10 to 10,000 of them. Each measurement is a process of its own; what counts is how far its memory
rises above where it stood after a first, two-step gradient, which loads and compiles what there is to load.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

STEPS = (10, 30, 100, 300, 1000, 3000, 10_000)
SOLVERS = ("pyjode DiscreteAdjoint", "pyjode GaussAdjoint", "torchdiffeq odeint", "torchdiffeq adjoint")
STATES, FEATURES, HIDDEN = 64, 32, 256


class Network(nn.Module):
    """32-256-32, tanh."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, FEATURES))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y)


def gradient(solver: str, f: nn.Module, y0: Tensor, steps: int) -> Tensor:
    """One forward and backward pass of ``steps`` steps; the norm of the gradient."""
    f.zero_grad()
    dt, ends = 1.0 / steps, torch.tensor([0.0, 1.0])
    if solver.startswith("pyjode"):
        import pyjode

        method, sensealg = ("rk4", "DiscreteAdjoint") if "Discrete" in solver else ("Tsit5", "GaussAdjoint")
        problem = pyjode.ODEProblem(f, y0, (0.0, 1.0))
        solution = pyjode.solve(
            problem, method, saveat=ends, dt=dt, adaptive=False, sensealg=sensealg, dense=False, engine="julia",
            maxiters=10 * steps + 1000,
        )  # fmt: skip
        ys = solution.ys
    else:
        import torchdiffeq

        odeint = torchdiffeq.odeint if solver.endswith("odeint") else torchdiffeq.odeint_adjoint
        ys = odeint(f, y0, ends, method="rk4", options={"step_size": dt})
    ys[-1].square().mean().backward()
    return torch.cat([p.grad.reshape(-1) for p in f.parameters()]).norm()


def resident(kind: str) -> float:
    """Memory of this process in MiB: ``VmHWM``, the most so far, or ``VmRSS``, now."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(kind):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"{kind} is not in /proc/self/status: this benchmark needs Linux")


def measure(solver: str, steps: int) -> dict[str, float | int | str]:
    """In this process: how far the memory rises."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    f, y0 = Network(), torch.randn(STATES, FEATURES)
    gradient(solver, f, y0, 2)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the most so far is from now on
    norm = gradient(solver, f, y0, steps)
    return {"solver": solver, "steps": steps, "MiB": max(resident("VmHWM") - before, 0.0), "gradient": norm.item()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", nargs=2, metavar=("SOLVER", "STEPS"), help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    parser.add_argument("--solvers", nargs="+", default=SOLVERS, choices=SOLVERS)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--limit-mib", type=float, default=2000, help="a solver's next size is left out above this")
    parser.add_argument("--out", type=Path, help="file of the plot")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one[0], int(args.one[1]))))
        return
    rows = []
    for solver in args.solvers:
        for steps in args.steps:
            command = [sys.executable, "-m", "benchmarks.memory", "--one", solver, str(steps)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                lines = done.stderr.strip().splitlines()
                print(f"{solver}, {steps} steps: {lines[-1] if lines else 'failed'}", file=sys.stderr)
                break
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{solver:24}{steps:8}{rows[-1]['MiB']:10.1f} MiB", file=sys.stderr, flush=True)
            if rows[-1]["MiB"] > args.limit_mib:
                break
    if args.json:
        print(json.dumps(rows, indent=1))
    else:
        print(f"{'solver':24}{'steps':>8}{'MiB':>10}")
        for row in rows:
            print(f"{row['solver']:24}{row['steps']:8}{row['MiB']:10.1f}")
    if args.out is not None:
        plot(rows, args.out)


def plot(rows: list[dict[str, float]], path: Path) -> None:
    """Memory against steps, both logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.5), layout="constrained", dpi=130)
    axes = figure.add_subplot()
    looks = (("#0072B2", "o-"), ("#009E73", "^-."), ("#D55E00", "s--"), ("#CC79A7", "D:"))
    for solver, (colour, style) in zip(SOLVERS, looks, strict=True):
        points = [(row["steps"], max(row["MiB"], 0.1)) for row in rows if row["solver"] == solver]
        if points:
            axes.plot(*zip(*points, strict=True), style, color=colour, label=solver)
    axes.set(xscale="log", yscale="log", xlabel="steps of the solve", ylabel="memory of one gradient (MiB, rise)")
    axes.grid(True, which="major", alpha=0.4)
    axes.legend()
    axes.set_title(f"A {FEATURES}-{HIDDEN}-{FEATURES} network, {STATES} states, float32, fixed steps")
    figure.savefig(path)


if __name__ == "__main__":
    main()
