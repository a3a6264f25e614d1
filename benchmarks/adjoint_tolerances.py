"""Gradient errors of stiff methods by how much tighter than the forward solve the adjoint solve is.

    python -m benchmarks.adjoint_tolerances                         # every problem: five minutes
    python -m benchmarks.adjoint_tolerances --problems orego,hires

What :func:`pyjode.trust.adjoint_tolerances` rests on: the continuous adjoint, by GaussAdjoint. Errors are against
finite differences of tight solves (:func:`pyjode.compare.reference`), in the relative change of each variable; a row
has one forward solve's tolerance and a column one adjoint's, as the part of it.
"""

from __future__ import annotations

import argparse
import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import pyjode
from benchmarks.peers import robertson, van_der_pol
from pyjode.compare import Problem, Reference, find_problem, reference
from pyjode.trust import UntrustedGradient, default_adjoint_method

PROBLEMS: dict[str, Callable[[], Problem]] = {
    "robertson": robertson,
    "van der Pol": van_der_pol,
    **{name: functools.partial(find_problem, name) for name in ("hires", "orego", "pollu")},
}
METHODS = ("Rodas5P", "FBDF", "KenCarp4")
RTOLS = (1e-4, 1e-6, 1e-8)
PARTS: dict[str, float | None] = {"the same": 1.0, "1/3": 1 / 3, "1/10": 0.1, "1/100": 0.01, "1e-11": None}


def gradient(problem: Problem, truth: Reference, f: Any, method: str, rtol: float, **options: Any) -> Tensor:
    """Of the loss by y0 and f's parameters, end to end."""
    y0 = torch.tensor(problem.y0, requires_grad=True)
    solution = pyjode.solve(
        pyjode.ODEProblem(f, y0, (problem.t0, problem.t1)),
        method,
        saveat=torch.tensor(problem.ts),
        rtol=rtol,
        atol=rtol * problem.atol,
        maxiters=1_000_000,
        dense=False,
        engine="julia",
        **options,
    )
    gradients = torch.autograd.grad(truth.loss.torch(solution.ys), (y0, *f.parameters()))
    return torch.cat([g.reshape(-1) for g in gradients])


def gradient_error(problem: Problem, truth: Reference, method: str, rtol: float, part: float | None) -> float:
    """Of :func:`gradient` by the continuous adjoint, solved at ``part`` of the tolerance; ``None``: at 1e-11."""
    found = gradient(
        problem,
        truth,
        problem.in_torch(),
        method,
        rtol,
        sensealg="GaussAdjoint",
        adjoint_method=default_adjoint_method(method, "GaussAdjoint"),
        adjoint_rtol=1e-11 if part is None else part * rtol,
        adjoint_atol=1e-13 if part is None else part * rtol * problem.atol,
    )
    return truth.gradient_error(found.numpy())


def main() -> None:
    """Print a table for each problem."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", default=",".join(PROBLEMS), help=f"some of: {', '.join(PROBLEMS)}")
    args = parser.parse_args()
    for name in args.problems.split(","):
        if name not in PROBLEMS:
            parser.error(f"no problem {name!r}; there are {', '.join(PROBLEMS)}")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", UntrustedGradient)
    for name in args.problems.split(","):
        problem = PROBLEMS[name]()
        truth = reference(problem, gradient=True)
        print(f"{name}: {truth.by}\n{'':18}" + "".join(f"{part:>10}" for part in PARTS), flush=True)
        for method in METHODS:
            for rtol in RTOLS:
                errors = (gradient_error(problem, truth, method, rtol, part) for part in PARTS.values())
                print(f"{method:10}{rtol:8.0e}" + "".join(f"{error:10.1e}" for error in errors), flush=True)


if __name__ == "__main__":
    main()
