"""torchdiffeq."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyjode.compare.adapters.base import Adapter, Solver, TorchSolver, Watched, split_method
from pyjode.compare.problem import Problem
from pyjode.compare.reference import Loss


class TorchdiffeqAdapter(Adapter):
    """torchdiffeq.

    ``"dopri5"`` differentiates through the solver, ``"dopri5+adjoint"`` by ``odeint_adjoint``; for
    ``"dopri5+compile"`` ``torch.compile`` compiles f.
    """

    name = "torchdiffeq"
    package = "torchdiffeq"

    def methods(self, problem: Problem, gradient: bool) -> tuple[str, ...]:
        if problem.stiff:
            return ("dopri5",)  # it has no stiff method; the row says what then happens
        return ("dopri5", "dopri5+adjoint") if gradient else ("dopri5", "dopri8")

    def prepare(self, problem: Problem, method: str, loss: Loss | None, limit_s: float) -> Solver:
        return _TorchdiffeqSolver(problem, method, loss, limit_s)


class _TorchdiffeqSolver(TorchSolver):
    def __init__(self, problem: Problem, method: str, loss: Loss | None, limit_s: float):
        super().__init__(problem, loss)
        import torchdiffeq

        self.method, variant = split_method(method)
        self.odeint = torchdiffeq.odeint_adjoint if variant == "adjoint" else torchdiffeq.odeint
        if variant == "compile":
            self.module.compile()
        self.f = Watched(self.module, limit_s)
        self.grid = torch.cat([torch.tensor([self.t0], dtype=self.ts.dtype), self.ts])

    def states(self, rtol: float, atol: float) -> tuple[Tensor, Any]:
        self.f.start()
        ys = self.odeint(self.f, self.y0, self.grid, method=self.method, rtol=rtol, atol=atol)
        return ys[1:], self.f.nfe

    def work(self, info: Any) -> tuple[int | None, int | None]:
        return info, None
