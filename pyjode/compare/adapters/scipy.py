"""scipy's solve_ivp."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from pyjode.compare.adapters.base import Adapter, Outcome, OutOfTime, Solver
from pyjode.compare.problem import Problem
from pyjode.compare.reference import Loss
from pyjode.errors import UnsupportedError


class ScipyAdapter(Adapter):
    """``scipy.integrate.solve_ivp``: f in numpy for the standard problems, else the torch one without a tape."""

    name = "scipy"
    package = "scipy"
    gradients = False

    def methods(self, problem: Problem, gradient: bool) -> tuple[str, ...]:
        return ("LSODA", "Radau", "BDF") if problem.stiff else ("RK45", "DOP853", "LSODA")

    def prepare(self, problem: Problem, method: str, loss: Loss | None, limit_s: float) -> Solver:
        if loss is not None:
            raise UnsupportedError("solve_ivp has no gradients")
        return _ScipySolver(problem, method, limit_s)


class _ScipySolver(Solver):
    def __init__(self, problem: Problem, method: str, limit_s: float):
        from scipy.integrate import solve_ivp

        self.solve_ivp, self.problem, self.method, self.limit_s = solve_ivp, problem, method, limit_s
        self.f, self.shape, self.dtype = problem.in_numpy(), problem.y0.shape, problem.y0.dtype

    def solve(self, rtol: float, atol: float) -> Any:
        deadline = time.thread_time() + self.limit_s
        shape, p, f = self.shape, self.problem.params, self.f
        one = len(shape) == 1

        def flat(t: float, y: np.ndarray) -> np.ndarray:
            if time.thread_time() > deadline:
                raise OutOfTime(self.limit_s)
            y = y.astype(self.dtype, copy=False)
            return f(t, y, p) if one else f(t, y.reshape(shape), p).reshape(-1)

        problem = self.problem
        solution = self.solve_ivp(
            flat,
            (problem.t0, problem.t1),
            problem.y0.reshape(-1),
            method=self.method,
            t_eval=problem.ts,
            rtol=rtol,
            atol=atol,
        )
        if not solution.success:
            raise ArithmeticError(f"solve_ivp stopped: {solution.message}")
        return solution

    def outcome(self, raw: Any) -> Outcome:
        return Outcome(raw.y.T.reshape(len(self.problem.ts), *self.shape), nfe=int(raw.nfev))
