"""Where the time of a small forward plus gradient goes: Julia, torch's autograd, pyjode's Python.

    python -m benchmarks.overhead                # the MLP rows of benchmarks.peers
    python -m benchmarks.overhead --profile      # and Python's profile of the first

Microseconds a call, medians:

- all: ``solve``, the loss and ``torch.autograd.grad``.
- Julia: inside PyJODE's C functions, measured around them in calls of their own.
- torch: the same autograd graph (a Function of y0, the times and the parameters, the loss, the gradient), whose
  Function only hands out results that are there already, each after a whole call and with the caches as that leaves
  them. No solver that is a Function of torch's can take less.
- pyjode: the rest.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import pyjode
from benchmarks.peers import CASES
from pyjode.compare import Problem
from pyjode.engines.julia.boundary import Gate, gate


class _HandOut(torch.autograd.Function):
    """What is known already, as a function of tensors."""

    @staticmethod
    def forward(
        ctx: Any, result: Tensor, gradients: tuple[Tensor, ...], u0: Tensor, ts: Tensor, *params: Tensor
    ) -> Tensor:
        ctx.gradients = gradients
        ctx.save_for_backward(u0, ts, *params)
        return result.detach()

    @staticmethod
    def backward(ctx: Any, cotangents: Tensor) -> tuple[Any, ...]:
        assert ctx.saved_tensors
        du0, *dps = ctx.gradients
        return None, None, du0, None, *dps


class _Case:
    """One problem, as its user would call it and as torch alone would."""

    def __init__(self, problem: Problem, rtol: float):
        self.module = problem.in_torch()
        self.y0 = torch.tensor(problem.y0, requires_grad=True)
        self.variables = [self.y0, *(p for p in self.module.parameters() if p.requires_grad)]
        self.problem = pyjode.ODEProblem(self.module, self.y0, (problem.t0, problem.t1))
        self.saveat = torch.tensor(problem.ts, dtype=torch.float64)
        self.options: dict[str, Any] = {"saveat": self.saveat, "rtol": rtol, "atol": rtol * problem.atol}
        self.options |= {"dense": False, "engine": "julia"}
        self.result, self.gradients = self.states().detach(), self.all()

    def states(self) -> Tensor:
        return pyjode.solve(self.problem, "Tsit5", **self.options).ys

    def all(self) -> tuple[Tensor, ...]:
        return torch.autograd.grad(self.states().square().mean(), self.variables)

    def torch(self) -> tuple[Tensor, ...]:
        ys = _HandOut.apply(self.result, self.gradients, self.y0, self.saveat, *self.variables[1:])
        return torch.autograd.grad(ys.square().mean(), self.variables)


def measure(case: _Case, calls: int) -> dict[str, float]:
    """Medians in microseconds by part."""
    for _ in range(calls // 10):
        case.all()
        case.torch()
    whole, torchs = [], []
    for _ in range(calls):
        start = time.perf_counter()
        case.all()
        middle = time.perf_counter()
        case.torch()
        torchs.append(time.perf_counter() - middle)
        whole.append(middle - start)
    found = {"all": 1e6 * statistics.median(whole), "Julia": _julia(case.all, calls)}
    found["torch"] = 1e6 * statistics.median(torchs)
    return found | {"pyjode": found["all"] - found["Julia"] - found["torch"]}


def _julia(work: Callable[[], object], calls: int) -> float:
    """Microseconds of a call inside Julia's functions, the median."""
    spent = 0.0

    def timed(function: Callable[..., int]) -> Callable[..., int]:
        def run(*args: Any) -> int:
            nonlocal spent
            start = time.perf_counter()
            code = function(*args)
            spent += time.perf_counter() - start
            return code

        return run

    julia: Gate = gate()
    kept = julia._functions, julia._without_gil
    julia._functions, julia._without_gil = ({name: timed(f) for name, f in fs.items()} for fs in kept)
    each = []
    try:
        for _ in range(calls):
            spent = 0.0
            work()
            each.append(spent)
    finally:
        julia._functions, julia._without_gil = kept
    return 1e6 * statistics.median(each)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="mlp 1 x 10,mlp 20 x 10,mlp 20 x 100", help="some of benchmarks.peers'")
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--profile", action="store_true", help="Python's profile, which slows calls of functions down")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'':14}{'all':>8}{'Julia':>8}{'torch':>8}{'pyjode':>8}   (us a call, medians)")
    cases = {name: _Case(CASES[name].problem(), CASES[name].rtol) for name in args.cases.split(",")}
    for name, case in cases.items():
        found = measure(case, args.calls)
        print(f"{name:14}" + "".join(f"{found[part]:8.0f}" for part in ("all", "Julia", "torch", "pyjode")))
    if args.profile:
        first = next(iter(cases.values()))
        with cProfile.Profile() as profile:
            for _ in range(args.calls):
                first.all()
        pstats.Stats(profile).sort_stats("tottime").print_stats(45)


if __name__ == "__main__":
    main()
