"""SciML's door: ``solve(ODEProblem(f, y0, (t0, t1)), "Tsit5")``."""

from __future__ import annotations

import functools
import itertools
import logging
import math
import operator
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pyjode.callbacks import has_callbacks
from pyjode.door import door
from pyjode.engines import Engine, choose_engine
from pyjode.engines.julia.values import Options, is_julia
from pyjode.engines.request import (
    ALL,
    Adjoint,
    Answer,
    IntegralController,
    Request,
    StepControl,
    StepOptions,
    Tolerances,
    cpu_times,
    rows,
)
from pyjode.errors import InputError, SolverError, SolverFailure, UnsupportedError
from pyjode.events import Event, checked_events
from pyjode.independent import BATCHINGS, independent_solution, refuse_progress, sample_layout, solve_batch
from pyjode.methods import Method, find_method
from pyjode.progress import reporting
from pyjode.segments import Chain, Segment, solve_chain
from pyjode.sensealgs import DiscreteAdjoint, SenseAlg, find_sensealg
from pyjode.solution import Solution, Stats
from pyjode.state import Leaf, StateLayout
from pyjode.trust import (
    adjoint_tolerances,
    check_pair,
    default_adjoint_method,
    default_sensealg,
    has_discrete_adjoint,
)

log = logging.getLogger("pyjode")

_WAYS = ("auto", "native", "traced", "eager")
_SHORT = 128  # up to here Python compares a list faster than numpy is called


@dataclass(frozen=True)
class ODEProblem:
    """The initial value problem dy/dt = f(t, y), y(t0) = y0, on the time span (t0, t1).

    Attributes:
        f: any callable ``f(t, y)`` with ``t`` a tensor of shape ``()`` and ``y`` the nest that ``y0`` is; returns a
            nest like it. A ``torch.nn.Module`` is one.
        y0: initial state: a tensor of any shape, or any nest of tensors; float32, float64 or complex.
        tspan: start and end, numbers or tensors of shape ``()`` (which may require grad); backwards if ``t1 < t0``.
        params: tensors (or a module) f depends on, in case pyjode cannot find them in f; it finds the parameters of a
            module and the tensors a traced or called f closes over.
    """

    f: Callable[..., Any]
    y0: Any
    tspan: tuple[float | Tensor, float | Tensor]
    params: nn.Module | Iterable[Tensor] | None = None


@door
def solve(
    problem: ODEProblem | Any,
    method: str | Any | None = None,
    *,
    saveat: float | Tensor | Iterable[float] | None = None,
    rtol: float | Tensor = 1e-6,
    atol: float | Tensor = 1e-8,
    dt: float | None = None,
    adaptive: bool | None = None,
    dtmin: float | None = None,
    dtmax: float | None = None,
    maxiters: int = 100_000,
    controller: str | None = None,
    dense: bool = True,
    sensealg: str | SenseAlg | None = None,
    adjoint_method: str | None = None,
    adjoint_rtol: float | None = None,
    adjoint_atol: float | None = None,
    check_gradient: bool = False,
    rhs: str = "auto",
    batching: str = "joint",
    engine: str | None = None,
    throw: bool = True,
    progress: bool | Callable[[float], Any] = False,
    events: Event | Iterable[Event] = (),
    max_events: int = 1000,
) -> Solution:
    """Solve an initial value problem; the solution is differentiable.

    Args:
        problem: what to solve; or an ``ODEProblem`` of diffeqpy, without gradients (see :mod:`pyjode.diffeqpy`).
        method: a solver by its name in OrdinaryDiffEq.jl or torchdiffeq (see :func:`pyjode.methods`); ``"Tsit5"``
            by default.
        saveat: times to save at, shape ``(T,)`` within the time span, in its direction (may require grad); or the
            spacing of evenly spaced ones, both ends included; by default every step of the solver.
        rtol, atol: relative and absolute tolerance, numbers or tensors shaped like a state that is one tensor.
        dt: step size of a fixed-step solve; first step of an adaptive one.
        adaptive: ``False`` for fixed steps of ``dt`` with an adaptive method; the method's own default.
        dtmin, dtmax: bounds of an adaptive step.
        maxiters: most steps tried.
        controller: of an explicit Runge-Kutta method's step size: ``"PI"``, Julia's, or ``"I"``, torchdiffeq's and
            diffrax's (see :class:`pyjode.engines.request.IntegralController`). By default ``"PI"`` in float64, ``"I"``
            in float32: there the error estimate has rounding noise, which keeps a PI controller's steps up to two times
            too small. Other methods have controllers of their own.
        dense: whether ``solution(t)`` will be used.
        sensealg: how gradients are computed (see :mod:`pyjode.sensealgs`); by default ``DiscreteAdjoint`` for explicit
            Runge-Kutta methods and, where f is native, Rosenbrock methods, else the adjoint that is trusted and cheap
            for the method (see :mod:`pyjode.trust`).
        adjoint_method: solver of the adjoint equation; by default one trusted with the method and sensealg.
        adjoint_rtol, adjoint_atol: its tolerances; by default the forward ones, tighter for stiff methods.
        check_gradient: compare every backward pass with a directional finite difference (two more solves) and warn
            where they differ (Julia engine).
        rhs: how f reaches the solver: ``"auto"``, ``"native"``, ``"traced"`` or ``"eager"`` (see
            :func:`pyjode.explain`).
        batching: ``"joint"``: y0 is one state, with one step size for all of it. ``"independent"``: the first axis of
            y0 counts samples, each solved alone, with steps, error control, stats and return code of its own, on
            several threads where f is native (see :mod:`pyjode.independent`). f sees one sample, as a batch of one.
            Wants ``saveat``; for times that differ from sample to sample there is :func:`pyjode.odeint`.
        engine: ``"auto"``, ``"julia"`` or ``"torchdiffeq"``; see :func:`pyjode.set_default_engine`.
        throw: raise where the solver stops early; else return what there is, with its retcode.
        events: what happens where the solution makes a condition zero (see :class:`pyjode.Event`): changes of the
            state, an early end. A save time that is an event's has the state before it, and so has dense output;
            without ``saveat`` both sides of every event are saved. An event that ends the solve leaves out later save
            times (retcode ``"Terminated"``, which is a success).
        max_events: most events; more raise SolverError.
        progress: ``True`` shows how much of the time span is done, in a bar; or a function of that fraction.

    Returns:
        The :class:`~pyjode.Solution`; with ``batching="independent"`` an
        :class:`~pyjode.independent.IndependentSolution`.

    Raises:
        InputError: an argument that cannot be used.
        SolverError: the solver stopped before ``t1`` (too many steps, step size underflow, blow-up).
        UnsupportedError: what was asked for is beyond the engine.
        EngineUnavailable: ``engine="julia"`` without Julia.
    """
    alone = _one_of(batching, BATCHINGS, "batching") == "independent"
    if is_julia(problem) or is_julia(problem.f):
        given = Options(saveat, rtol, atol, dt, adaptive, dtmin, dtmax, maxiters)
        other: dict[str, Any] = {
            "sensealg": sensealg,
            "adjoint_method": adjoint_method,
            "check_gradient": check_gradient,
        }
        other |= {"controller": controller, "events": events, "progress": progress, "batching": alone}
        return _solve_of_julia(problem, method, given, [name for name, x in other.items() if x], engine, throw)
    layout = sample_layout(problem.y0) if alone else StateLayout.of(problem.y0)
    if alone and saveat is None:
        raise UnsupportedError('batching="independent": each sample takes steps of its own, so pass saveat')
    plain = _plain_save_times(saveat, problem.tspan)
    if plain is None:
        grid, saved = _save_times(saveat, *(_time(t, "tspan") for t in problem.tspan))
    else:
        grid, saved = plain
    chosen = choose_engine(engine)
    how = (method, rtol, atol, dt, adaptive, dtmin, dtmax, maxiters, controller, adjoint_rtol, adjoint_atol)
    # What the user chose of the adjoint may have to be warned of, each time.
    usual = sensealg is None and adjoint_method is None and _PLAIN.issuperset(map(type, how))
    way = _usual_way if usual else _way
    found, steps, adjoint = way(chosen.name, layout.dtype, *how, sensealg, adjoint_method)
    options = StepOptions() if has_callbacks(problem.f) else None
    if adjoint is not None:
        adjoint = adjoint.with_options(options)
    request = Request(
        f=problem.f,
        layout=layout,
        params=tensors(problem.params, "params"),
        exact_params=False,
        method=found,
        tolerances=tolerances(rtol, atol, layout),
        steps=steps,
        adjoint=adjoint,
        rhs_way=_one_of(rhs, _WAYS, "rhs"),
        save_steps=saveat is None,
        dense=dense,
        check_gradient=check_gradient,
        options=options,
    )
    if alone:
        refuse_progress(progress)
        if events:
            raise UnsupportedError('events are for batching="joint"')
        answers = solve_batch(chosen, request, problem.y0, grid, throw=throw)
        return independent_solution(answers, request, chosen, grid, saved, problem.y0)
    happening = checked_events(events)
    if happening:
        u0 = checked_state(request, problem.y0)
        with watched(chosen, request, grid, progress):
            chain = solve_chain(chosen, request, happening, u0, grid, max_events=max_events)
        answer = chain.answer
    else:
        answer = run(chosen, request, problem.y0, grid, progress, saved)
    if throw:
        raise_on_failure(answer, request)
    if happening:
        return _chain_solution(chain, rows(answer, saved), request, chosen)
    return _solution(answer, request, chosen, problem.y0, grid)


def _way(
    engine: str,
    dtype: torch.dtype,
    method: str | Method | None,
    rtol: float | Tensor,
    atol: float | Tensor,
    dt: float | None,
    adaptive: bool | None,
    dtmin: float | None,
    dtmax: float | None,
    maxiters: int,
    controller: str | None,
    adjoint_rtol: float | None,
    adjoint_atol: float | None,
    sensealg: str | SenseAlg | None,
    adjoint_method: str | None,
) -> tuple[Method, StepControl, Adjoint | None]:
    """How to solve and to differentiate: the arguments of :func:`solve` that say so, checked and completed."""
    found = find_method(method or ("Tsit5" if engine == "julia" else "dopri5"))
    steps = step_control(
        found, dt=dt, adaptive=adaptive, dtmin=dtmin, dtmax=dtmax, maxiters=maxiters,
        controller=_controller(controller, found, dtype, engine),
    )  # fmt: skip
    return (
        found,
        steps,
        adjoint_for(engine, found, steps, dtype, rtol, atol, sensealg, adjoint_method, adjoint_rtol, adjoint_atol),
    )


# Remembered where all that it depends on are plain values: a small solve takes less time than working it out.
_usual_way = functools.lru_cache(maxsize=256)(_way)
_PLAIN = frozenset((str, float, int, bool, type(None)))


def _solve_of_julia(
    problem: Any, method: Any, options: Options, unusable: list[str], engine: str | None, throw: bool
) -> Solution:
    """Solve a problem whose right-hand side is Julia's already (see :mod:`pyjode.diffeqpy`)."""
    from pyjode.engines.julia.diffeqpy import check_no_gradients, problem_to_julia, solve_julia

    if engine == "torchdiffeq":
        raise UnsupportedError('a problem of Julia needs the Julia engine: leave engine out, or pass engine="julia"')
    if unusable:
        raise UnsupportedError(f"a problem of Julia is only solved, without {', '.join(unusable)}: write f in torch")
    if not is_julia(problem):
        if not isinstance(problem.y0, Tensor):
            raise InputError("a Julia function's state is an array: y0 must be one tensor, not a nest")
        params = tensors(problem.params, "params") or ()
        check_no_gradients(problem.y0, *params)
        t0, t1 = (float(_time(t, "tspan")) for t in problem.tspan)
        problem = problem_to_julia(problem.f, problem.y0, (t0, t1), params)
    found = None if is_julia(method) else find_method(method or "Tsit5")
    return solve_julia(problem, method, found, options, throw)


def run(
    engine: Engine,
    request: Request,
    y0: Any,
    ts: Tensor,
    progress: bool | Callable[[float], Any] = False,
    saved: slice = ALL,
) -> Answer:
    """Check the initial state, flatten it where need be, and let the engine solve, telling how far it is.

    Returns:
        The states at ``ts[saved]``, to be read with :func:`states`.

    Raises:
        InputError: NaN or infinity in ``y0``.
    """
    as_it_is = request.layout.is_single_tensor and request.options is None and not request.save_steps
    u0 = y0 if as_it_is else request.layout.flatten(y0)
    _check_finite(u0)
    if progress is False and not log.isEnabledFor(logging.DEBUG):
        return engine.solve(request, u0, ts, saved)
    started = time.perf_counter()
    with watched(engine, request, ts, progress):
        answer = engine.solve(request, u0, ts, saved)
    counts = ", ".join(f"{name} {count}" for name, count in answer.stats.items() if count)
    milliseconds = 1e3 * (time.perf_counter() - started)
    log.debug("%s on %s: %s, %s, %.3g ms", request.method.name, engine.name, answer.retcode, counts, milliseconds)
    return answer


@contextmanager
def watched(engine: Engine, request: Request, ts: Tensor, progress: bool | Callable[[float], Any]) -> Iterator[None]:
    """Solves in it tell ``progress`` how far on the way from ``ts[0]`` to ``ts[-1]`` they are."""
    ends = (float(ts[0].detach()), float(ts[-1].detach()))
    with reporting(progress, *ends, request.method.name) as report, engine.watched(report):
        yield


def checked_state(request: Request, y0: Any) -> Tensor:
    """The initial state as a flat vector ``(n,)``.

    Raises:
        InputError: NaN or infinity in it.
    """
    u0 = request.layout.flatten(y0)
    _check_finite(u0)
    return u0


def states(answer: Answer, layout: StateLayout) -> Any:
    """The nest that an answer's states are."""
    us = answer.us
    whole = layout.is_single_tensor and us.shape[1:] == layout.leaves[0].shape
    return us if whole else layout.unflatten(us)


def raise_on_failure(answer: Answer, request: Request) -> None:
    """Raise SolverError if the solve stopped early."""
    if answer.success:
        return
    advice = {
        "MaxIters": "raise maxiters, loosen rtol and atol, or, if steps are tiny, take a stiff method (Rodas5P, FBDF)",
        "DtLessThanMin": "the solution may blow up or jump here; loosen the tolerances or take a stiff method",
        "Unstable": "the solution or f became NaN or infinite: check f around this time, or take smaller steps",
    }.get(answer.retcode, "try another method or other tolerances")
    steps = answer.stats.get("naccept", 0) + answer.stats.get("nreject", 0)
    raise SolverError(
        f"{request.method.name} stopped at t = {answer.t_reached:.6g} after {steps} steps: {answer.retcode}; {advice}",
        SolverFailure(answer.retcode, answer.t_reached, steps),
    )


def step_control(
    method: Method,
    *,
    dt: float | None,
    adaptive: bool | None,
    dtmin: float | None = None,
    dtmax: float | None = None,
    maxiters: int = 100_000,
    controller: IntegralController | None = None,
) -> StepControl:
    """Step control for ``method``, checked.

    Raises:
        InputError: a step size or count that is not positive, or ``adaptive=True`` for a method that cannot.
    """
    for name, value in (("dt", dt), ("dtmin", dtmin), ("dtmax", dtmax), ("maxiters", maxiters)):
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise InputError(f"{name} is {value}; it must be positive and finite")
    if adaptive and not method.adaptive:
        raise InputError(f"method {method.name!r} has fixed steps only: leave adaptive out and pass dt")
    adaptive = method.adaptive if adaptive is None else adaptive
    return StepControl(
        adaptive=adaptive,
        dt=None if dt is None else float(dt),
        dtmin=dtmin,
        dtmax=dtmax,
        maxiters=int(maxiters),
        controller=controller if adaptive else None,
    )


def _controller(asked: str | None, method: Method, dtype: torch.dtype, engine: str) -> IntegralController | None:
    if asked is None:
        integral = engine == "julia" and method.has_pi_controller and dtype == torch.float32
        return IntegralController() if integral else None
    _one_of(asked, ("I", "PI"), "controller")
    if not method.has_pi_controller:
        raise UnsupportedError(f"{method.name} has a step size controller of its own, or none: leave controller out")
    if asked == "PI" and engine == "torchdiffeq":
        raise UnsupportedError('the embedded engine has an integral controller: leave controller out, or pass "I"')
    return IntegralController() if asked == "I" else None


def tolerances(rtol: float | Tensor, atol: float | Tensor, layout: StateLayout) -> Tolerances:
    """Tolerances as numbers or flat float64 vectors.

    Raises:
        InputError: negative, NaN, or of a shape that does not fit the state.
    """
    if type(rtol) is float and type(atol) is float:
        return _plain_tolerances(rtol, atol)
    return Tolerances(*(_tolerance(name, x, layout) for name, x in (("rtol", rtol), ("atol", atol))))


@functools.lru_cache(maxsize=256)
def _plain_tolerances(rtol: float, atol: float) -> Tolerances:
    for name, value in (("rtol", rtol), ("atol", atol)):
        if not value >= 0:
            raise InputError(f"{name} must be zero or positive, got {value}")
    return Tolerances(rtol, atol)


def _tolerance(name: str, value: Any, layout: StateLayout) -> float | Tensor:
    if isinstance(value, tuple | list) or not layout.treespec.is_leaf():
        return _tolerance_of_nest(name, value, layout)
    flat = torch.as_tensor(value, dtype=torch.float64).detach()
    if not bool((flat >= 0).all()):
        raise InputError(f"{name} must be zero or positive, got {value}")
    return float(flat) if flat.ndim == 0 else _spread(name, flat, layout.leaves[0])


def _tolerance_of_nest(name: str, value: Any, layout: StateLayout) -> float | Tensor:
    """One tolerance for all tensors of a state, or one for each."""
    values = pytree.tree_leaves(value)
    if not isinstance(value, tuple | list | dict) and torch.as_tensor(value).ndim == 0:
        values = values * len(layout.leaves)
    elif isinstance(value, Tensor) and value.ndim == 1:
        values = list(value)
    if len(values) != len(layout.leaves):
        raise InputError(f"{name} holds {len(values)} tolerances for a state of {len(layout.leaves)} tensors")
    parts = [torch.as_tensor(x, dtype=torch.float64).detach() for x in values]
    if not all(bool((part >= 0).all()) for part in parts):
        raise InputError(f"{name} must be zero or positive, got {value}")
    if all(part.ndim == 0 and part == parts[0] for part in parts):
        return float(parts[0])
    return torch.cat([_spread(name, part, leaf) for part, leaf in zip(parts, layout.leaves, strict=True)])


def _spread(name: str, tolerance: Tensor, leaf: Leaf) -> Tensor:
    """A tensor's tolerance as one number for each of its reals."""
    if tolerance.ndim == 1 and tolerance.numel() == leaf.shape.numel():
        tolerance = tolerance.reshape(leaf.shape)
    try:
        spread = tolerance.broadcast_to(leaf.shape).reshape(-1)
    except RuntimeError:
        raise InputError(
            f"{name} has shape {tuple(tolerance.shape)}, which does not fit the state's {tuple(leaf.shape)}"
        ) from None
    return spread.repeat_interleave(2) if leaf.is_complex else spread.contiguous()


def adjoint_for(
    engine: str,
    method: Method,
    steps: StepControl,
    dtype: torch.dtype,
    rtol: float | Tensor,
    atol: float | Tensor,
    sensealg: str | SenseAlg | None,
    adjoint_method: str | None,
    adjoint_rtol: float | None,
    adjoint_atol: float | None,
    adjoint_steps: StepControl | None = None,
    *,
    continuous: bool = False,
) -> Adjoint | None:
    """How gradients are computed: what was asked for, completed from the tested table.

    By default the discrete adjoint where there is one (explicit Runge-Kutta and Rosenbrock methods), unless
    ``continuous``; for a Rosenbrock method with what takes its place where f is not native. ``None`` on the embedded
    engine where nothing was asked for: backpropagation through the solver.

    Raises:
        InputError: an unknown name.
        UnsupportedError: a pair of method and sensealg that is known to give wrong gradients.
    """
    plain = type(rtol) is float and type(atol) is float
    # Not where the user chose something: that may have to warn, each time.
    usual = plain and sensealg is None and adjoint_method is None and adjoint_steps is None
    complete = _usual_adjoint if usual else _complete_adjoint
    return complete(
        engine, method, steps, dtype, rtol, atol, sensealg, adjoint_method, adjoint_rtol, adjoint_atol,
        adjoint_steps, continuous,
    )  # fmt: skip


def _complete_adjoint(
    engine: str,
    method: Method,
    steps: StepControl,
    dtype: torch.dtype,
    rtol: float | Tensor,
    atol: float | Tensor,
    sensealg: str | SenseAlg | None,
    adjoint_method: str | None,
    adjoint_rtol: float | None,
    adjoint_atol: float | None,
    adjoint_steps: StepControl | None,
    continuous: bool,
) -> Adjoint | None:
    otherwise = None
    if sensealg is None:
        if engine == "torchdiffeq":
            return None
        # What is said of an adjoint solve asks for one.
        asked = method.stiff and not (adjoint_method is None and adjoint_rtol is None and adjoint_atol is None)
        discrete = has_discrete_adjoint(method) and not continuous and not asked
        chosen = DiscreteAdjoint() if discrete else default_sensealg(method)
        if isinstance(chosen, DiscreteAdjoint) and method.stiff:
            otherwise = _complete_adjoint(
                engine, method, steps, dtype, rtol, atol, sensealg, adjoint_method, adjoint_rtol, adjoint_atol,
                adjoint_steps, True,
            )  # fmt: skip
    else:
        chosen = find_sensealg(sensealg)
    if isinstance(chosen, DiscreteAdjoint) and engine == "julia" and not has_discrete_adjoint(method):
        raise UnsupportedError(
            "DiscreteAdjoint follows the steps of explicit Runge-Kutta and Rosenbrock methods; "
            f"{method.name} is none it can follow. Leave sensealg out, or pass {default_sensealg(method)!r}"
        )
    if adjoint_method is None:
        adjoint_method = default_adjoint_method(method, chosen) if engine == "julia" else None
    solver = method if adjoint_method is None else find_method(adjoint_method)
    if engine == "julia":
        check_pair(method, chosen, solver).enforce()
    default_rtol, default_atol = adjoint_tolerances(_smallest(rtol), _smallest(atol), method, torch.finfo(dtype).eps)
    if adjoint_steps is None:
        fixed = not solver.adaptive or (solver is method and not steps.adaptive)
        adaptive = StepControl(
            True, maxiters=steps.maxiters, controller=steps.controller if solver.has_pi_controller else None
        )
        adjoint_steps = replace(steps, dtmin=None, dtmax=None) if fixed else adaptive
    return Adjoint(
        sensealg=chosen,
        method=solver,
        rtol=default_rtol if adjoint_rtol is None else adjoint_rtol,
        atol=default_atol if adjoint_atol is None else adjoint_atol,
        steps=adjoint_steps,
        otherwise=otherwise,
    )


# Remembered where all that it depends on are plain values: a small solve takes less time than working it out.
_usual_adjoint = functools.lru_cache(maxsize=256)(_complete_adjoint)


def tensors(params: nn.Module | Iterable[Tensor] | None, name: str) -> tuple[Tensor, ...] | None:
    """The tensors of a module or an iterable, or ``None``.

    Raises:
        InputError: something in it is no tensor.
    """
    if params is None:
        return None
    if isinstance(params, nn.Module):
        return tuple(p for p in params.parameters() if p.requires_grad)
    listed = (params,) if isinstance(params, Tensor) else tuple(params)
    for x in listed:
        if not isinstance(x, Tensor):
            raise InputError(f"{name} holds a {type(x).__name__}, not only tensors")
    return listed


def _solution(answer: Answer, request: Request, engine: Engine, y0: Any, ts: Tensor) -> Solution:
    layout = request.layout
    interpolate = answer.interpolate
    if interpolate is not None and answer.us.requires_grad and engine.name == "julia":

        def interpolate(times: Tensor) -> Tensor:
            return differentiable_dense_output(engine, request, y0, ts[:1], times)

    return Solution(
        ts=answer.ts,
        ys=states(answer, layout),
        stats=Stats.of(answer.stats),
        retcode=answer.retcode,
        t_reached=answer.t_reached,
        engine=engine.name,
        method=request.method.name,
        _layout=layout,
        _interpolate=interpolate,
    )


def _chain_solution(chain: Chain, answer: Answer, request: Request, engine: Engine) -> Solution:
    """The solution of a solve with events; its dense output asks the segments."""
    layout = request.layout
    starts = torch.stack([s.t0.detach() for s in chain.segments]) if chain.segments else torch.empty(0)
    ends = [s.t_end for s in chain.segments]
    sign = -1.0 if ends and ends[-1] < float(starts[0]) else 1.0

    def interpolate(times: Tensor) -> Tensor:
        # At an event's time the segment before it answers: the first that ends there or later.
        which = torch.searchsorted(sign * torch.tensor(ends, dtype=torch.float64), sign * times.detach())
        which = which.clamp(max=len(ends) - 1)
        out = torch.empty(len(times), layout.n, dtype=layout.dtype, device=layout.device)
        for i in which.unique().tolist():
            mine = (which == i).nonzero()[:, 0]
            out = out.index_copy(0, mine, _segment_dense_output(engine, request, chain.segments[i], times[mine]))
        return out

    available = bool(chain.segments) and all(s.answer.interpolate is not None for s in chain.segments)
    solution = _solution(replace(answer, interpolate=None), request, engine, None, answer.ts)
    # Where the first event is at t0 and terminal, nothing was solved.
    start = float(chain.segments[0].t0.detach()) if chain.segments else solution.t_reached
    return replace(
        solution,
        events=chain.log(layout),
        _interpolate=interpolate if available else None,
        _t_start=start,
    )


def _segment_dense_output(engine: Engine, request: Request, segment: Segment, times: Tensor) -> Tensor:
    answer = segment.answer
    assert answer.interpolate is not None
    if not (answer.us.requires_grad and engine.name == "julia"):
        return answer.interpolate(times)
    y0 = request.layout.unflatten(segment.u0)
    return differentiable_dense_output(engine, request, y0, segment.t0.reshape(1), times)


def differentiable_dense_output(engine: Engine, request: Request, y0: Any, t0: Tensor, times: Tensor) -> Tensor:
    """States at ``times`` by another solve that saves there, which is what makes them differentiable."""
    ordered, order = torch.unique(times.detach(), sorted=True, return_inverse=True)
    if bool(ordered[0] < t0.detach()):
        ordered, order = ordered.flip(0), len(ordered) - 1 - order
    # The times themselves may require grad: take each from the caller's tensor.
    first = torch.stack([(order == i).nonzero()[0, 0] for i in range(len(ordered))])
    grid = times[first]
    at_start = bool(ordered[0] == t0.detach())
    request = replace(request, save_steps=False, dense=False)
    u0 = request.layout.flatten(y0)
    if at_start:
        us = u0[None] if len(ordered) == 1 else engine.solve(request, u0, grid).us
    else:
        us = engine.solve(request, u0, torch.cat([t0, grid])).us[1:]
    return us[order]


def _time(t: float | Tensor, name: str) -> Tensor:
    # Numbers as float64: torch's default would round 0.7.
    value = t if isinstance(t, Tensor) else torch.as_tensor(t, dtype=torch.float64)
    if value.numel() != 1 or value.is_complex():
        raise InputError(f"{name} holds {t!r}; a time is one real number")
    value = cpu_times(value.reshape(()))
    if not bool(torch.isfinite(value.detach())):
        raise InputError(f"{name} holds {float(value.detach())}; times must be finite")
    return value


def _plain_save_times(saveat: Any, tspan: Any) -> tuple[Tensor, slice] | None:
    """What :func:`_save_times` gives, in a few microseconds, where all is as usual and right; else ``None``."""
    t0, t1 = tspan
    if not (isinstance(t0, float | int) and isinstance(t1, float | int) and math.isfinite(t0) and math.isfinite(t1)):
        return None
    values = _few_numbers(saveat)
    if not values or not _increase_or_decrease(values):
        return None
    first, last = values[0], values[-1]
    forwards = t0 <= first <= last <= t1 and t0 < t1
    if not forwards and not (t0 >= first >= last >= t1 and t0 > t1):
        return None
    if first == t0 and last == t1:
        return _times(values), ALL
    before = [] if first == t0 else [t0]
    after = [] if last == t1 else [t1]
    return _times([*before, *values, *after]), slice(len(before), len(before) + len(values))


def _times(values: list[float]) -> Tensor:
    return torch.from_numpy(np.array(values, dtype=np.float64))  # torch.tensor takes five times as long


def _few_numbers(saveat: Any) -> list[float] | None:
    """A vector or list of at most _SHORT float64 numbers, not to be differentiated by; ``None``: something else."""
    if type(saveat) is Tensor:
        plain = saveat.dtype == torch.float64 and saveat.device.type == "cpu" and not saveat.requires_grad
        return saveat.tolist() if plain and saveat.ndim == 1 and saveat.shape[0] <= _SHORT else None
    if type(saveat) is list and len(saveat) <= _SHORT and all(type(x) is float for x in saveat):
        return saveat
    return None


def _save_times(saveat: Any, t0: Tensor, t1: Tensor) -> tuple[Tensor, slice]:
    """Times for the engine, from ``t0`` to ``t1``, and which of them to save; for ``saveat=None`` just both ends."""
    if bool(t0.detach() == t1.detach()):
        raise InputError(f"the time span is empty: t0 = t1 = {float(t0.detach())}")
    if saveat is None:
        return torch.stack([t0, t1]), ALL
    direction = 1.0 if bool(t1.detach() > t0.detach()) else -1.0
    given = saveat if isinstance(saveat, Tensor | float | int) else list(saveat)
    times = cpu_times(given if isinstance(given, Tensor) else torch.as_tensor(given, dtype=torch.float64))
    if times.ndim == 0:
        step = float(times.detach())
        if not step > 0:
            raise InputError(f"saveat is {step}; as a number it is the spacing of save points, and positive")
        span = abs(float((t1 - t0).detach()))
        inner = direction * step * torch.arange(1, math.ceil(span / step - 1e-9), dtype=torch.float64)
        return torch.cat([t0.reshape(1), t0.detach() + inner, t1.reshape(1)]), ALL
    check_monotonic(times, "saveat")
    ends = direction * torch.stack([t0, t1]).detach()
    if bool((direction * times.detach() < ends[0]).any()) or bool((direction * times.detach() > ends[1]).any()):
        raise InputError(f"saveat has times outside the time span from {float(t0.detach())} to {float(t1.detach())}")
    if len(times) > 1 and bool((times[1] - times[0]).detach() * direction < 0):
        raise InputError("saveat runs against the direction of the time span")
    before = [] if bool(times[0].detach() == t0.detach()) else [t0.reshape(1)]
    after = [] if bool(times[-1].detach() == t1.detach()) else [t1.reshape(1)]
    if not before and not after:
        return times.clone(), ALL
    return torch.cat([*before, times, *after]), slice(len(before), len(before) + len(times))


def check_monotonic(times: Tensor, name: str) -> None:
    """Raise InputError unless ``times`` is a vector of finite, strictly increasing or decreasing numbers."""
    if times.ndim != 1:
        raise InputError(f"{name} has shape {tuple(times.shape)}; it must be one-dimensional")
    if len(times) == 0:
        raise InputError(f"{name} is empty")
    values = times.detach()
    if values.device.type == "cpu" and _plainly_monotonic(values):
        return
    if not bool(torch.isfinite(values).all()):
        raise InputError(f"{name} holds NaN or infinite times")
    steps = values[1:] - values[:-1]
    if not (bool((steps > 0).all()) or bool((steps < 0).all())):
        raise InputError(f"{name} must be strictly increasing or decreasing, without repeated times")


def _check_finite(u: Tensor) -> None:
    if u.is_cpu and 0 < u.ndim < 3 and u.numel() <= _SHORT:
        values = u.tolist()
        finite = all(map(math.isfinite, values if u.ndim == 1 else itertools.chain.from_iterable(values)))
    else:
        finite = bool(np.isfinite(u.detach().numpy()).all() if u.is_cpu else torch.isfinite(u.detach()).all())
    if not finite:
        raise InputError("y0 holds NaN or infinite entries")


def _plainly_monotonic(values: Tensor) -> bool:
    """Whether all is well, in a few microseconds; what is wrong is for the caller to find out."""
    if len(values) <= _SHORT:
        return _increase_or_decrease(values.tolist())
    array = values.numpy()
    first, last, steps = float(array[0]), float(array[-1]), array[1:] - array[:-1]
    ordered = bool((steps > 0).all() or (steps < 0).all())
    # Between two finite ends, what increases strictly is finite: comparisons with NaN are false.
    return ordered and math.isfinite(first) and math.isfinite(last)


def _increase_or_decrease(values: list[float]) -> bool:
    first, last, following = values[0], values[-1], itertools.islice(values, 1, None)
    ordered = all(map(operator.lt if first < last else operator.gt, values, following))
    return ordered and math.isfinite(first) and math.isfinite(last)


def _smallest(tolerance: float | Tensor) -> float:
    return tolerance if isinstance(tolerance, float) else float(torch.as_tensor(tolerance).detach().min())


def _one_of(value: str, choices: tuple[str, ...], name: str) -> str:
    if value not in choices:
        raise InputError(f"{name}: {value!r}; choose from {', '.join(map(repr, choices))}")
    return value
