"""diffeqpy: the same Julia solvers, called the way its documentation shows."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from pyjode.compare.adapters.base import Adapter, Outcome, OutOfTime, Solver
from pyjode.compare.problem import Problem
from pyjode.compare.reference import Loss
from pyjode.errors import InputError, UnsupportedError


class DiffeqpyAdapter(Adapter):
    """diffeqpy with a Python f(du, u, p, t), in pyjode's Julia session. Jacobians by finite differences."""

    name = "diffeqpy"
    package = "diffeqpy"
    gradients = False

    def unavailable(self) -> str | None:
        from pyjode.engines.julia import config

        if config.find_julia() is None:
            return "Julia is not set up (pyjode setup)"
        return super().unavailable()

    def methods(self, problem: Problem, gradient: bool) -> tuple[str, ...]:
        return ("Rodas5P", "FBDF") if problem.stiff else ("Tsit5", "Vern7")

    def prepare(self, problem: Problem, method: str, loss: Loss | None, limit_s: float) -> Solver:
        if loss is not None:
            raise UnsupportedError("diffeqpy has no gradients of a Python f")
        return _DiffeqpySolver(problem, method, limit_s)


class _DiffeqpySolver(Solver):
    def __init__(self, problem: Problem, method: str, limit_s: float):
        from pyjode.engines.julia.diffeqpy import load_ode

        self.ode = load_ode()
        algorithm = getattr(self.ode, method, None)
        if algorithm is None:
            raise InputError(f"diffeqpy's ode has no method {method!r}")
        self.algorithm = algorithm(autodiff=self.ode.AutoFiniteDiff()) if problem.stiff else algorithm()
        self.problem, self.limit_s, self.deadline = problem, limit_s, np.inf
        f, parameters = problem.in_numpy(), problem.params

        def in_place(du: Any, u: Any, p: Any, t: float) -> None:
            if time.thread_time() > self.deadline:
                raise OutOfTime(limit_s)
            np.asarray(du)[...] = f(t, np.asarray(u), parameters)

        from juliacall import Main

        start = Main.collect(problem.y0)  # numpy's own memory is no state that the solvers take
        self.ode_problem = self.ode.ODEProblem(in_place, start, (problem.t0, problem.t1))

    def solve(self, rtol: float, atol: float) -> Any:
        self.deadline = time.thread_time() + self.limit_s
        try:
            return self.ode.solve(
                self.ode_problem, self.algorithm, saveat=self.problem.ts, reltol=rtol, abstol=atol, maxiters=1_000_000
            )
        except Exception as error:
            if "OutOfTime" in str(error):
                raise OutOfTime(self.limit_s) from None
            raise

    def outcome(self, raw: Any) -> Outcome:
        if str(raw.retcode) != "Success":
            raise ArithmeticError(f"diffeqpy stopped: {raw.retcode}")
        # saveat leaves t0 out unless it is asked for.
        ys = np.stack([np.asarray(u) for u in raw.u])[-len(self.problem.ts) :]
        return Outcome(ys, nfe=int(raw.stats.nf), steps=int(raw.stats.naccept))
