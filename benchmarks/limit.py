"""The limit as a library of ``pyjode.compare``: the same problems written by hand in Julia (``limit.jl``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pyjode.compare import Adapter, Loss, Outcome, Problem, Solver
from pyjode.errors import UnsupportedError

_MAKERS = {
    "mlp": "network",
    "recurrent": "recurrent",
    "lorenz": "lorenz_batch",
    "robertson": "robertson",
    "van der Pol": "van_der_pol",
}
"""Makers in ``limit.jl`` by the start of a problem's name."""


class Limit(Adapter):
    """Tsit5 with a reverse sweep by hand; Rodas5P with GaussAdjoint for stiff problems."""

    name = "Julia by hand"
    package = "pyjode"

    def unavailable(self) -> str | None:
        from pyjode.engines.julia import config

        return None if config.find_julia() is not None else "Julia is not set up (pyjode setup)"

    def methods(self, problem: Problem, gradient: bool) -> tuple[str, ...]:
        return ("Rodas5P",) if problem.stiff else ("Tsit5",)

    def prepare(self, problem: Problem, method: str, loss: Loss | None, limit_s: float) -> Solver:
        maker = next((m for start, m in _MAKERS.items() if problem.name.startswith(start)), None)
        if maker is None:
            raise UnsupportedError("not written by hand")
        return _LimitSolver(problem, maker, loss)


class _LimitSolver(Solver):
    def __init__(self, problem: Problem, maker: str, loss: Loss | None):
        from pyjode.engines.julia.runtime import runtime

        runtime()
        from juliacall import Main

        if not bool(Main.seval("isdefined(Main, :Limit)")):
            Main.include(str(Path(__file__).with_suffix(".jl")))
        scale = np.ones_like(problem.y0) if loss is None else loss.scale.astype(problem.y0.dtype)
        self.run = Main.Limit.make(maker, problem.y0, problem.t0, problem.ts, scale, problem.params)
        self.gradient = loss is not None

    def solve(self, rtol: float, atol: float) -> Any:
        return self.run(rtol, atol, self.gradient)

    def outcome(self, raw: Any) -> Outcome:
        states, gradient, nfe, steps = raw
        flat = None if gradient is None else np.array(gradient)
        return Outcome(np.array(states).T, flat, int(nfe), int(steps))
