"""Problems, functions and solutions of diffeqpy, which are juliacall's values, in the Julia session of pyjode."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyjode.engines.julia import config
from pyjode.engines.julia.runtime import runtime
from pyjode.engines.julia.values import Options, is_julia
from pyjode.errors import EngineUnavailable, InputError, SolverError, SolverFailure, UnsupportedError
from pyjode.methods import Method
from pyjode.solution import Solution, Stats
from pyjode.state import StateLayout

_COUNTS = ("naccept", "nreject", "njacs", "nsolve", "nw", "nnonliniter", "nnonlinconvfail")

# A state that is still numpy's memory (PyArray) stops OrdinaryDiffEq: the states it makes from it are Julia arrays.
_OWN_STATE = """
p -> p.u0 isa AbstractArray && !(p.u0 isa Array) ? PyJODE.SciMLBase.remake(p; u0=Array(p.u0)) : p
"""


def load_ode() -> Any:
    """diffeqpy's ``ode`` module (OrdinaryDiffEq.jl), loaded into the Julia that pyjode runs.

    Raises:
        EngineUnavailable: diffeqpy is not installed, or Julia's environment has no OrdinaryDiffEq.
    """
    runtime()
    try:
        with _julia_in_path():
            from diffeqpy import ode
    except ImportError as error:
        raise EngineUnavailable(f"diffeqpy is not installed: pip install diffeqpy ({error})") from error
    except Exception as error:
        raise EngineUnavailable(f"diffeqpy did not load ({error}): its ode module needs OrdinaryDiffEq.jl") from error
    return ode


def solve_julia(problem: Any, method: Any, found: Method | None, options: Options, throw: bool) -> Solution:
    """Solve a Julia ``ODEProblem``; no gradients.

    Args:
        problem: an ``ODEProblem`` of diffeqpy or juliacall.
        method: one of its algorithms (``de.Tsit5()``), or ``None``.
        found: the method by pyjode's name, where that was given.
        options: tolerances and the like.
        throw: raise where the solver stops early.

    Returns:
        pyjode's solution; ``solution.julia`` is Julia's own.

    Raises:
        InputError: it is no ODEProblem.
        SolverError: the solver stopped early, with ``throw``.
    """
    main = _main()
    if not bool(main.seval("p -> p isa PyJODE.SciMLBase.AbstractODEProblem")(problem)):
        kind = str(main.seval("p -> string(nameof(typeof(p)))")(problem))
        raise InputError(f"solve takes ODEProblems of Julia, not a {kind}")
    if found is not None:
        make = "(p, c) -> Base.invokelatest(PyJODE.construct, p, c)"
        method = main.seval(make)(found.julia_package, found.julia_expr)
    solver = main.seval("(args...; kwargs...) -> Base.invokelatest(PyJODE.SciMLBase.solve, args...; kwargs...)")
    raw = solver(main.seval(_OWN_STATE)(problem), method, **options.as_julia())
    name = found.name if found is not None else str(main.seval("a -> string(nameof(typeof(a)))")(method))
    solution = from_julia(raw, name)
    if throw and not solution.success:
        steps = int(solution.stats.naccept or 0) + int(solution.stats.nreject or 0)
        raise SolverError(
            f"{name} stopped at t = {solution.t_reached:.6g} after {steps} steps: {solution.retcode}",
            SolverFailure(solution.retcode, solution.t_reached, steps),
        )
    return solution


def from_julia(raw: Any, method: str | None = None) -> Solution:
    """A solution of diffeqpy's (or juliacall's) as one of pyjode's: copied, without gradients.

    Raises:
        InputError: it is no ODE solution with real numbers or arrays of them.
    """
    main = _main()
    if not (is_julia(raw) and bool(main.seval("s -> s isa PyJODE.SciMLBase.AbstractODESolution")(raw))):
        raise InputError(f"this is no ODE solution of Julia: {type(raw).__name__}")
    ts = torch.from_numpy(np.array(raw.t, dtype=np.float64))
    ys = _states(main.seval("s -> collect(s.u)")(raw))
    layout = StateLayout.of(ys[0])
    counts = {name: _count(raw.stats, name) for name in _COUNTS}
    stats = Stats(nfe=_count(raw.stats, "nf") or 0, **counts)
    algorithm = method or str(main.seval("s -> string(nameof(typeof(s.alg)))")(raw))
    at = main.seval("(s, t) -> collect(s(t).u)")

    def interpolate(times: Tensor) -> Tensor:
        return _states(at(raw, times.numpy())).reshape(len(times), -1)

    return Solution(
        ts=ts,
        ys=ys,
        stats=stats,
        retcode=str(raw.retcode),
        t_reached=float(raw.t[len(raw.t) - 1]),
        engine="julia",
        method=algorithm,
        _layout=layout,
        _interpolate=interpolate if bool(main.seval("s -> s.dense")(raw)) else None,
        julia=raw,
    )


def problem_to_julia(f: Any, y0: Tensor, tspan: tuple[float, float], params: tuple[Tensor, ...]) -> Any:
    """A Julia ``ODEProblem`` from a function of Julia, or from torch's f(t, y), called without a tape."""
    main = _main()
    start = y0.detach().numpy()
    if is_julia(f):
        p = main.seval("PyJODE.SciMLBase.NullParameters()")
        if params:
            p = torch.cat([q.detach().reshape(-1) for q in params]).numpy() if len(params) > 1 else params[0].numpy()
        make = (
            "(f, u0, a, b, p) -> PyJODE.SciMLBase.ODEProblem("
            "f, collect(u0), (a, b), p isa AbstractArray ? collect(p) : p)"
        )
        return main.seval(make)(f, start, *tspan, p)

    def in_place(du: Any, u: Any, p: Any, t: float) -> None:
        with torch.no_grad():
            found = f(torch.tensor(t, dtype=torch.float64), torch.from_numpy(np.array(u)))
        np.asarray(du)[...] = found.numpy()

    # The order of arguments as SciML has it; said to be in place, since Julia cannot count a Python function's.
    make = (
        "(f, u0, a, b) -> PyJODE.SciMLBase.ODEProblem{true}("
        "PyJODE.SciMLBase.ODEFunction{true}((du, u, p, t) -> (f(du, u, p, t); nothing)), collect(u0), (a, b))"
    )
    return main.seval(make)(in_place, start, *tspan)


def check_no_gradients(*tensors: Tensor) -> None:
    """Raise UnsupportedError if any tensor requires grad."""
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        raise UnsupportedError(
            "a right-hand side that is a Julia value has no gradients here: detach y0 and params, or write f in torch"
        )


def _count(stats: Any, name: str) -> int | None:
    try:
        return int(getattr(stats, name))
    except (AttributeError, TypeError, ValueError):
        return None


def _states(us: Any) -> Tensor:
    """States one after the other, shape ``(T, *state)``, as a copy."""
    try:
        stacked = np.stack([np.array(u) for u in us])
    except (TypeError, ValueError) as error:
        raise InputError(f"the states of this solution are no real arrays: {error}") from None
    if stacked.dtype not in (np.float32, np.float64):
        raise InputError(f"the states of this solution are {stacked.dtype}: float32 or float64 is what pyjode takes")
    return torch.from_numpy(stacked)


def _main() -> Any:
    started = runtime()
    if not started.any_thread and threading.get_ident() != started.thread:
        raise EngineUnavailable("Julia values can be used only in the thread that loaded juliacall")
    from juliacall import Main

    return Main


@contextlib.contextmanager
def _julia_in_path() -> Iterator[None]:
    """diffeqpy looks for ``julia`` in PATH, and downloads one where there is none."""
    location = config.find_julia()
    if location is None or shutil.which("julia") is not None:
        yield
        return
    before = os.environ.get("PATH", "")
    os.environ["PATH"] = f"{Path(location.exe).parent}{os.pathsep}{before}"
    try:
        yield
    finally:
        os.environ["PATH"] = before
