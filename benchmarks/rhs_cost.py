"""What one call of a right-hand side costs, the traced way and the eager way, and what checking a cached graph costs.

    python benchmarks/rhs_cost.py [--seconds 0.3]

Microseconds a call, the median of several rounds, on one thread.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pyjode.rhs import build_rhs
from pyjode.rhs.guards import Guards
from pyjode.rhs.reach import Reach

ROUNDS = 15


class MLP(nn.Module):
    """Linear layers of the given sizes with tanh between them."""

    def __init__(self, *sizes: int):
        super().__init__()
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(sizes):
            layers += [nn.Linear(a, b), nn.Tanh()]
        self.net = nn.Sequential(*layers[:-1])

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y)


class Pendulum(nn.Module):
    """theta'' = -w0^2 sin(theta) - a theta'."""

    def __init__(self) -> None:
        super().__init__()
        self.w0 = nn.Parameter(torch.tensor(0.5))
        self.a = nn.Parameter(torch.tensor(0.2))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[1], -(self.w0**2) * torch.sin(y[0]) - self.a * y[1]])


def microseconds(call: Callable[[], Any], seconds: float) -> float:
    """Median time of one call over rounds that take ``seconds`` together."""
    start = time.perf_counter()
    for _ in range(20):
        call()
    each = (time.perf_counter() - start) / 20
    count = max(1, int(seconds / ROUNDS / each))
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(count):
            call()
        times.append((time.perf_counter() - start) / count)
    return statistics.median(times) * 1e6


def costs(f: nn.Module, y0: Tensor, way: str, seconds: float) -> list[float]:
    """Of each method, of a build_rhs that finds its result in the cache, and of the guards."""
    t, u = torch.tensor(0.3), y0.reshape(-1)
    v = torch.randn_like(u)
    rhs = build_rhs(f, y0, 0.3, way=way)
    p = rhs.params
    calls: list[Callable[[], Any]] = [
        lambda: rhs.f(t, u, p),
        lambda: rhs.vjp_u(t, u, v, p),
        lambda: rhs.vjp_p(t, u, v, p),
        lambda: rhs.vjp_up(t, u, v, p),
        lambda: rhs.jacobian(t, u, p),
        lambda: build_rhs(f, y0, 0.3, way=way),
        Guards(Reach(f), p).hold,
    ]
    with torch.no_grad():
        return [microseconds(call, seconds) for call in calls]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=0.3, help="time spent on each number")
    seconds = parser.parse_args().seconds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    problems = [
        ("MLP 2-50-50-2, one state", MLP(2, 50, 50, 2), torch.randn(2)),
        ("MLP 2-50-50-2, 20 states", MLP(2, 50, 50, 2), torch.randn(20, 2)),
        ("pendulum", Pendulum(), torch.randn(2)),
    ]
    methods = ("f", "vjp_u", "vjp_p", "vjp_up", "jacobian")
    print(f"torch {torch.__version__}, microseconds a call")
    print(f"{'':28}{'way':8}" + "".join(f"{m:>10}" for m in methods) + f"{'build_rhs':>11}{'guards':>8}")
    for name, f, y0 in problems:
        for way in ("traced", "eager"):
            cells = costs(f, y0, way, seconds)
            print(
                f"{name:28}{way:8}" + "".join(f"{c:10.1f}" for c in cells[:-2]) + f"{cells[-2]:11.1f}{cells[-1]:8.1f}"
            )
    deep = MLP(8, 8, 8, 8, 8, 8)
    guards = Guards(Reach(deep), deep.parameters())
    print(f"guards of a 5-layer MLP: {microseconds(guards.hold, seconds):.1f}")


if __name__ == "__main__":
    main()
