"""pyjode itself, on Julia."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyjode.compare.adapters.base import Adapter, Solver, TorchSolver, split_method
from pyjode.compare.problem import Problem
from pyjode.compare.reference import Loss


class PyjodeAdapter(Adapter):
    """pyjode on the Julia engine.

    A method is a solver, or a solver and a sensealg: ``"Tsit5+GaussAdjoint"``; ``"Tsit5+independent"`` lets each sample
    of a batch have its own steps.
    """

    name = "pyjode"
    package = "pyjode"

    def unavailable(self) -> str | None:
        from pyjode.engines.julia import config

        return None if config.find_julia() is not None else "Julia is not set up (pyjode setup)"

    def version(self) -> str:
        from pyjode._version import __version__

        return __version__

    def methods(self, problem: Problem, gradient: bool) -> tuple[str, ...]:
        if problem.stiff:
            return ("Rodas5P", "FBDF") if gradient else ("Rodas5P", "FBDF", "KenCarp47", "RadauIIA5")
        return ("Tsit5", "Vern7", "Tsit5+GaussAdjoint") if gradient else ("Tsit5", "Vern7", "DP8")

    def prepare(self, problem: Problem, method: str, loss: Loss | None, limit_s: float) -> Solver:
        return _PyjodeSolver(problem, method, loss)


class _PyjodeSolver(TorchSolver):
    def __init__(self, problem: Problem, method: str, loss: Loss | None):
        super().__init__(problem, loss)
        from pyjode.solve import ODEProblem, solve

        self.call = solve
        self.method, variant = split_method(method)
        self.options: dict[str, Any] = {}
        if variant == "independent":
            self.options["batching"] = variant
        elif variant is not None and loss is not None:
            self.options["sensealg"] = variant
        self.problem = ODEProblem(self.module, self.y0, (self.t0, self.t1))
        self.saveat = torch.tensor(problem.ts, dtype=torch.float64)  # not rounded to the state's precision

    def states(self, rtol: float, atol: float) -> tuple[Tensor, Any]:
        solution = self.call(
            self.problem,
            self.method,
            saveat=self.saveat,
            rtol=rtol,
            atol=atol,
            maxiters=1_000_000,
            dense=False,
            engine="julia",
            **self.options,
        )
        return solution.ys, solution.stats

    def work(self, info: Any) -> tuple[int | None, int | None]:
        # Of independent samples, that which took most.
        return _largest(info.nfe), _largest(info.naccept)


def _largest(count: int | Tensor) -> int:
    return int(torch.as_tensor(count).max())
