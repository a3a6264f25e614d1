"""Forward plus gradient of a small network, pyjode beside torchdiffeq, in one run.

    python -m benchmarks.peers

A 2-50-50-2 tanh MLP, float32, rtol = atol = 1e-6, save points 0.025 apart. Median milliseconds of a forward solve and
a backward pass, solvers interleaved, and the relative error of the parameters' gradient against torchdiffeq in float64
at 1e-10.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
import torchdiffeq
from torch import Tensor, nn

import pyjode

CASES = ((1, 10), (20, 10), (20, 100))


class Network(nn.Module):
    """2-50-50-2, tanh."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, 50), nn.Tanh(), nn.Linear(50, 50), nn.Tanh(), nn.Linear(50, 2))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y)


def solvers() -> dict[str, Callable[[nn.Module, Tensor, Tensor], Tensor]]:
    """Each takes f, y0 and times to the solution."""
    tolerances = {"rtol": 1e-6, "atol": 1e-6}
    return {
        "torchdiffeq odeint": lambda f, y, t: torchdiffeq.odeint(f, y, t, **tolerances),
        "torchdiffeq adjoint": lambda f, y, t: torchdiffeq.odeint_adjoint(f, y, t, **tolerances),
        "pyjode odeint": lambda f, y, t: pyjode.odeint(f, y, t, method="Tsit5", engine="julia", **tolerances),
        "pyjode adjoint": lambda f, y, t: pyjode.odeint_adjoint(f, y, t, method="Tsit5", engine="julia", **tolerances),
    }


def gradient(f: nn.Module, solve: Callable[..., Tensor], y0: Tensor, t: Tensor) -> Tensor:
    """The parameters' gradient of the sum of squares, as one vector."""
    f.zero_grad()
    solve(f, y0, t).square().sum().backward()
    return torch.cat([p.grad.reshape(-1) for p in f.parameters()])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for states, points in CASES:
        f, double = Network(), Network().double()
        double.load_state_dict(f.state_dict())
        y0, t = torch.randn(states, 2), torch.arange(points) * 0.025
        truth = gradient(
            double, lambda f, y, t: torchdiffeq.odeint(f, y, t, rtol=1e-10, atol=1e-12), y0.double(), t.double()
        )
        times: dict[str, list[float]] = {name: [] for name in solvers()}
        errors = {}
        for name, solve in solvers().items():  # first calls compile
            found = gradient(f, solve, y0, t).double()
            errors[name] = ((found - truth).norm() / truth.norm()).item()
        for repeat in range(args.repeats):
            order = list(solvers().items())
            for name, solve in order if repeat % 2 == 0 else order[::-1]:
                start = time.perf_counter()
                gradient(f, solve, y0, t)
                times[name].append((time.perf_counter() - start) * 1e3)
        rows += [
            {"states": states, "points": points, "solver": name, "ms": statistics.median(ms), "error": errors[name]}
            for name, ms in times.items()
        ]
    if args.json:
        print(json.dumps(rows, indent=1))
        return
    print(f"{'states x points':16}{'solver':22}{'ms':>9}{'gradient error':>17}")
    for row in rows:
        case = f"{row['states']} x {row['points']}"
        print(f"{case:16}{row['solver']:22}{row['ms']:9.2f}{row['error']:17.1e}")


if __name__ == "__main__":
    main()
