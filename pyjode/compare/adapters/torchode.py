"""torchode."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyjode.compare.adapters.base import Adapter, Solver, TorchSolver, Watched, split_method
from pyjode.compare.problem import Problem
from pyjode.compare.reference import Loss
from pyjode.errors import InputError


class TorchodeAdapter(Adapter):
    """torchode, differentiated through the solver (its ``AutoDiffAdjoint``).

    A problem whose rows are independent, and whose f does not use t, is a batch, each row with its own steps; else the
    state is one sample.
    ``"Tsit5+compile"`` has the whole solver compiled by ``torch.compile``.
    """

    name = "torchode"
    package = "torchode"

    def methods(self, problem: Problem, gradient: bool) -> tuple[str, ...]:
        return ("Tsit5",) if problem.stiff else ("Tsit5", "Dopri5")

    def prepare(self, problem: Problem, method: str, loss: Loss | None, limit_s: float) -> Solver:
        return _TorchodeSolver(problem, method, loss, limit_s)


class _TorchodeSolver(TorchSolver):
    def __init__(self, problem: Problem, method: str, loss: Loss | None, limit_s: float):
        super().__init__(problem, loss)
        import torchode

        self.library, name = torchode, split_method(method)[0]
        step_method = getattr(torchode, name, None)
        if step_method is None:
            raise InputError(f"torchode has no method {name!r}: Tsit5, Dopri5, Heun, Euler")
        shape = self.y0.shape
        self.rows = shape[0] if problem.batch and self._autonomous() else 1
        self.f = Watched(self.module, limit_s)
        self.compiled = split_method(method)[1] == "compile"
        # A batch's rows are at different times, and f takes one: hence only where f does not use it.
        f = self.module if self.compiled else self.f
        self.term = torchode.ODETerm(lambda t, y: f(t[0], y.reshape(shape)).reshape(self.rows, -1))
        self.step_method = step_method(term=self.term)
        self.start = torch.full((self.rows,), self.t0, dtype=self.ts.dtype)
        self.end = self.ts[-1:].expand(self.rows)
        self.grid = self.ts[None].expand(self.rows, -1)
        self.solvers: dict[tuple[float, float], Any] = {}

    @torch.no_grad()
    def _autonomous(self) -> bool:
        early, late = (self.module(torch.tensor(t, dtype=self.ts.dtype), self.y0) for t in (self.t0, self.t1))
        return torch.equal(early, late)

    def _solver(self, rtol: float, atol: float) -> Any:
        if (rtol, atol) not in self.solvers:
            controller = self.library.IntegralController(atol=atol, rtol=rtol, term=self.term)
            solver = self.library.AutoDiffAdjoint(self.step_method, controller)
            self.solvers[rtol, atol] = torch.compile(solver.solve) if self.compiled else solver.solve
        return self.solvers[rtol, atol]

    def states(self, rtol: float, atol: float) -> tuple[Tensor, Any]:
        self.f.start()
        solution = self._solver(rtol, atol)(
            self.library.InitialValueProblem(
                y0=self.y0.reshape(self.rows, -1), t_start=self.start, t_end=self.end, t_eval=self.grid
            )
        )
        failed = solution.status.nonzero()
        if len(failed):
            raise ArithmeticError(f"torchode stopped: {self.library.Status(int(solution.status[failed[0, 0]])).name}")
        ys = solution.ys.transpose(0, 1).reshape(len(self.ts), *self.y0.shape)
        return ys, (None if self.compiled else self.f.nfe, int(solution.stats["n_accepted"].max()))

    def work(self, info: Any) -> tuple[int | None, int | None]:
        return info
