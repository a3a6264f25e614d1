"""Seconds from ``import pyjode`` to the first gradient of a process, torch imported before.

    python -m benchmarks.first_gradient
    python -m benchmarks.first_gradient --methods "FBDF,Rodas5P+GaussAdjoint"

Robertson's reaction to t = 100 for stiff methods, a pendulum for others, float64, by y0 and the parameters. Each method
in processes of its own, in turn; medians. With a system image (``pyjode setup --sysimage``) it is what that brings.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

import torch
from torch import Tensor

METHODS = ("Tsit5", "Tsit5+GaussAdjoint", "Rodas5P", "FBDF")


def _robertson(k: Tensor, y: Tensor) -> Tensor:
    a, b, c = y
    return torch.stack([-k[0] * a + k[2] * b * c, k[0] * a - k[2] * b * c - k[1] * b * b, k[1] * b * b])


def _pendulum(k: Tensor, y: Tensor) -> Tensor:
    return torch.stack([y[1], -k[0] * torch.sin(y[0]) - k[1] * y[1]])


def first_gradient(asked: str) -> float:
    """Seconds it takes here; for a process that has not imported pyjode."""
    start = time.perf_counter()
    import pyjode

    name, _, sensealg = asked.partition("+")
    f, k, y0, end = _pendulum, [9.81, 0.1], [1.0, 0.0], 1.0
    if any(method.name == name and method.stiff for method in pyjode.methods()):
        f, k, y0, end = _robertson, [0.04, 3e7, 1e4], [1.0, 0.0, 0.0], 100.0
    p = torch.tensor(k, dtype=torch.float64, requires_grad=True)
    u = torch.tensor(y0, dtype=torch.float64, requires_grad=True)
    problem = pyjode.ODEProblem(lambda t, y: f(p, y), u, (0.0, end))
    solution = pyjode.solve(problem, name, saveat=[end / 2, end], sensealg=sensealg or None, engine="julia")
    torch.autograd.grad(solution.ys.square().sum(), (u, p))
    return time.perf_counter() - start


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(METHODS), help="solvers, with +sensealg or without")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--here", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        print(first_gradient(args.here))
        return
    seconds: dict[str, list[float]] = {method: [] for method in args.methods.split(",")}
    for i in range(args.rounds):
        for method in list(seconds)[:: 1 if i % 2 == 0 else -1]:
            command = [sys.executable, "-m", "benchmarks.first_gradient", "--here", method]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            seconds[method].append(float(done.stdout.split()[-1]))
    for method, times in seconds.items():
        print(f"{method:24}{statistics.median(times):6.1f} s   ({', '.join(f'{t:.1f}' for t in times)})")


if __name__ == "__main__":
    main()
