"""Errors and times of stiff gradients: through Rodas5P's own steps against the continuous adjoint.

    python -m benchmarks.stiff_gradients                           # every problem: some minutes
    python -m benchmarks.stiff_gradients --problems orego --json results.json

Gradients of the problem's loss by y0 and the parameters, in the relative change of each variable, against finite
differences of tight solves (:func:`pyjode.compare.reference`); times are medians of forward and backward together.
What :func:`pyjode.trust.has_discrete_adjoint` rests on for Rosenbrock methods.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.adjoint_tolerances import PROBLEMS, RTOLS, gradient
from pyjode.compare import Problem, Reference, reference

SENSEALGS = ("DiscreteAdjoint", "GaussAdjoint")


def measured(problem: Problem, truth: Reference, method: str, rtol: float, repeats: int) -> dict[str, Any]:
    """Error and time of each sensealg, taken in turn."""
    f = problem.in_torch()
    row: dict[str, Any] = {"problem": problem.name, "method": method, "rtol": rtol}
    times: dict[str, list[float]] = {name: [] for name in SENSEALGS}
    for name in SENSEALGS:
        row[f"{name} error"] = truth.gradient_error(gradient(problem, truth, f, method, rtol, sensealg=name).numpy())
    for i in range(repeats):
        for name in SENSEALGS[:: 1 if i % 2 == 0 else -1]:
            start = time.perf_counter()
            gradient(problem, truth, f, method, rtol, sensealg=name)
            times[name].append(time.perf_counter() - start)
    return row | {f"{name} ms": 1e3 * statistics.median(ts) for name, ts in times.items()}


def main() -> None:
    """Print a row for each problem and tolerance."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", default=",".join(PROBLEMS), help=f"some of: {', '.join(PROBLEMS)}")
    parser.add_argument("--method", default="Rodas5P")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path, help="also write the rows there")
    args = parser.parse_args()
    unknown = [name for name in args.problems.split(",") if name not in PROBLEMS]
    if unknown:
        parser.error(f"no problem {unknown[0]!r}; there are {', '.join(PROBLEMS)}")
    torch.set_num_threads(1)
    rows = []
    print(f"{'':22}" + "".join(f"{name:>26}" for name in SENSEALGS))
    for name in args.problems.split(","):
        problem = PROBLEMS[name]()
        truth = reference(problem, gradient=True)
        for rtol in RTOLS:
            row = measured(problem, truth, args.method, rtol, args.repeats)
            rows.append(row)
            cells = (f"{row[f'{s} error']:14.1e}{row[f'{s} ms']:9.2f} ms" for s in SENSEALGS)
            print(f"{name:14}{rtol:8.0e}" + "".join(cells), flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
