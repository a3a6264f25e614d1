"""Every sensealg on one non-stiff and one stiff problem: time and error of forward plus gradient, in one table.

    python -m benchmarks.sensealgs            # the table of docs/choosing_a_sensealg.md
    python -m benchmarks.sensealgs --json

Non-stiff: a 2-50-50-2 tanh network, 20 states, 100 save points, by Tsit5. Stiff: Robertson's equations to t = 100, 10
save points, three parameters, by Rodas5P. float64, rtol 1e-6, atol 1e-8. Median milliseconds; the error is the relative
one (2-norm) of the parameters' gradient against DiscreteAdjoint with Vern9, or GaussAdjoint with Rodas5P, at 1e-11.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import pyjode
import pyjode.trust

SENSEALGS = (
    "DiscreteAdjoint",
    "GaussAdjoint",
    "GaussKronrodAdjoint",
    "InterpolatingAdjoint",
    "QuadratureAdjoint",
    "BacksolveAdjoint",
)


@dataclass(frozen=True)
class Case:
    """A problem, its parameters, the method to solve it by, and the (method, sensealg) of the reference."""

    name: str
    problem: pyjode.ODEProblem
    params: tuple[Tensor, ...]
    saveat: Tensor
    method: str
    reference: tuple[str, str]


def network() -> Case:
    """The non-stiff case."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 50), nn.Tanh(), nn.Linear(50, 50), nn.Tanh(), nn.Linear(50, 2)).double()
    t = torch.linspace(0.0, 2.5, 100, dtype=torch.float64)
    problem = pyjode.ODEProblem(lambda t, y: net(y), torch.randn(20, 2, dtype=torch.float64), (0.0, 2.5))
    return Case("network, Tsit5", problem, tuple(net.parameters()), t, "Tsit5", ("Vern9", "DiscreteAdjoint"))


def robertson() -> Case:
    """The stiff case."""
    k = torch.tensor([0.04, 3e7, 1e4], dtype=torch.float64, requires_grad=True)

    def f(t: Tensor, y: Tensor) -> Tensor:
        r1, r2, r3 = k[0] * y[0], k[1] * y[1] * y[1], k[2] * y[1] * y[2]
        return torch.stack([-r1 + r3, r1 - r2 - r3, r2])

    problem = pyjode.ODEProblem(f, torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64), (0.0, 100.0))
    t = torch.linspace(10.0, 100.0, 10, dtype=torch.float64)
    return Case("Robertson, Rodas5P", problem, (k,), t, "Rodas5P", ("Rodas5P", "GaussAdjoint"))


def gradient(case: Case, method: str, sensealg: str, rtol: float, atol: float) -> Tensor:
    """The parameters' gradient of the sum of squares, as one vector; each scaled by its parameter."""
    solution = pyjode.solve(
        case.problem, method, saveat=case.saveat, sensealg=sensealg, rtol=rtol, atol=atol, engine="julia"
    )
    grads = torch.autograd.grad(solution.ys.square().sum(), case.params)
    return torch.cat([(g * p.detach()).reshape(-1) for g, p in zip(grads, case.params, strict=True)])


def measure(case: Case, sensealg: str, truth: Tensor, repeats: int) -> dict[str, object]:
    """One row of the table."""
    row: dict[str, object] = {"case": case.name, "sensealg": sensealg}

    def run() -> Tensor:
        return gradient(case, case.method, sensealg, 1e-6, 1e-8)

    try:
        error = ((run() - truth).norm() / truth.norm()).item()
        times = [_milliseconds(run) for _ in range(repeats)]
    except pyjode.PyjodeError as failure:
        return row | {"ms": None, "error": None, "note": str(failure).split(":")[0]}
    return row | {"ms": statistics.median(times), "error": error, "note": ""}


def _milliseconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", pyjode.trust.UntrustedGradient)
    rows = []
    for case in (network(), robertson()):
        truth = gradient(case, *case.reference, 1e-11, 1e-13)
        rows += [measure(case, sensealg, truth, args.repeats) for sensealg in SENSEALGS]
    if args.json:
        print(json.dumps(rows, indent=1))
        return
    print("| problem, method | sensealg | ms | gradient error |")
    print("|---|---|---|---|")
    for row in rows:
        figures = f"{row['ms']:.2f} | {row['error']:.0e}" if row["ms"] is not None else "refused | "
        print(f"| {row['case']} | `{row['sensealg']}` | {figures} |")


if __name__ == "__main__":
    main()
