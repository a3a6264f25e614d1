"""What the boundary costs beside Python's own work, in one run.

    python -m benchmarks.boundary

Prints medians in microseconds: a right-hand side called by Julia inside a solve, the same Python function called
from Python, and the difference, which is the boundary (goal: 2 us or less).
"""

from __future__ import annotations

import statistics
import time

import torch
from torch import nn

import pyjode
from pyjode.rhs import build_rhs


def microseconds(work, count: int, repeats: int = 15) -> float:
    """Median time of one of ``count`` calls made by ``work()``."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append((time.perf_counter() - start) / count * 1e6)
    return statistics.median(times)


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 50), nn.Tanh(), nn.Linear(50, 50), nn.Tanh(), nn.Linear(50, 2))
    cases = {
        "identity, 2 states": (lambda t, y: y, torch.ones(2)),
        "MLP 2-50-50-2, 1 state": (lambda t, y: net(y), torch.ones(1, 2)),
        "MLP 2-50-50-2, 20 states": (lambda t, y: net(y), torch.ones(20, 2)),
    }
    print(f"{'':28}{'in a solve':>12}{'from Python':>13}{'boundary':>10}   (us a call, medians)")
    for name, (f, y0) in cases.items():
        rhs = build_rhs(f, y0, 0.0)
        u, t = y0.reshape(-1).clone(), torch.tensor(0.5)
        evaluations = 4000

        def solve(f=f, y0=y0, evaluations=evaluations):
            # Forward Euler: one evaluation a step and next to nothing else. Two more at the ends.
            pyjode.solve(
                pyjode.ODEProblem(f, y0, (0.0, 1e-3)), "Euler", saveat=[1e-3], dt=1e-3 / evaluations, engine="julia",
                dense=False, maxiters=10**9, rhs="traced",
            )  # fmt: skip

        def call(rhs=rhs, t=t, u=u, evaluations=evaluations):
            f, params = rhs.f, rhs.params
            with torch.no_grad():
                for _ in range(evaluations):
                    f(t, u, params)

        with torch.no_grad():
            solve()
            inside, outside = [], []
            for _ in range(3):
                inside.append(microseconds(solve, evaluations))
                outside.append(microseconds(call, evaluations))
        a, b = statistics.median(inside), statistics.median(outside)
        print(f"{name:28}{a:12.2f}{b:13.2f}{a - b:10.2f}")


if __name__ == "__main__":
    main()
