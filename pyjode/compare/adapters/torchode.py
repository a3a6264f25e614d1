"""torchode."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyjode.compare.adapters.base import Adapter, Solver, TorchSolver, Watched
from pyjode.compare.problem import Problem
from pyjode.compare.reference import Loss
from pyjode.errors import InputError


class TorchodeAdapter(Adapter):
    """torchode, differentiated through the solver (its ``AutoDiffAdjoint``). The state is one sample of a batch."""

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

        self.library, shape = torchode, self.y0.shape
        step_method = getattr(torchode, method, None)
        if step_method is None:
            raise InputError(f"torchode has no method {method!r}: Tsit5, Dopri5, Heun, Euler")
        self.f = Watched(self.module, limit_s)
        self.term = torchode.ODETerm(lambda t, y: self.f(t[0], y[0].reshape(shape)).reshape(1, -1))
        self.step_method = step_method(term=self.term)
        self.start = torch.tensor([self.t0], dtype=self.ts.dtype)
        self.end = self.ts[-1:]

    def states(self, rtol: float, atol: float) -> tuple[Tensor, Any]:
        self.f.start()
        controller = self.library.IntegralController(atol=atol, rtol=rtol, term=self.term)
        adjoint = self.library.AutoDiffAdjoint(self.step_method, controller)
        solution = adjoint.solve(
            self.library.InitialValueProblem(
                y0=self.y0.reshape(1, -1), t_start=self.start, t_end=self.end, t_eval=self.ts[None]
            )
        )
        if int(solution.status[0]) != 0:
            raise ArithmeticError(f"torchode stopped: {self.library.Status(int(solution.status[0])).name}")
        ys = solution.ys[0].reshape(len(self.ts), *self.y0.shape)
        return ys, (self.f.nfe, int(solution.stats["n_accepted"][0]))

    def work(self, info: Any) -> tuple[int | None, int | None]:
        return info
