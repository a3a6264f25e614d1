"""torchdiffeq's door: ``odeint`` and ``odeint_adjoint``, with its signatures and meaning."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from pyjode.door import door
from pyjode.engines import Engine, choose_engine
from pyjode.engines.request import Request, StepControl, cpu_times
from pyjode.errors import InputError, UnsupportedError
from pyjode.event_fn import solve_to_event
from pyjode.independent import BATCHINGS, check_times, refuse_progress, sample_layout, solve_batch, unflatten_batch
from pyjode.methods import Method, find_method
from pyjode.sensealgs import BacksolveAdjoint, SenseAlg
from pyjode.solve import adjoint_for, check_monotonic, raise_on_failure, run, step_control, tensors, tolerances
from pyjode.state import StateLayout

_OPTIONS = {"step_size", "first_step", "min_step", "max_step", "max_num_steps"}


@door
def odeint(
    func: Callable[..., Any],
    y0: Any,
    t: Float[Tensor, " T"],
    *,
    rtol: float | Tensor = 1e-7,
    atol: float | Tensor = 1e-9,
    method: str | None = None,
    options: dict[str, Any] | None = None,
    event_fn: Callable[..., Any] | None = None,
    sensealg: str | SenseAlg | None = None,
    batching: str = "joint",
    engine: str | None = None,
    progress: bool | Callable[[float], Any] = False,
) -> Any:
    """Solve dy/dt = func(t, y), y(t[0]) = y0.

    Args:
        func: any callable ``func(t, y)``, a ``torch.nn.Module`` for example; ``t`` has shape ``()``, ``y`` is like
            ``y0``.
        y0: a tensor of any shape, or any nest (tuple, list, dict) of tensors.
        t: times, shape ``(T,)``, strictly increasing or decreasing; ``y0`` holds at ``t[0]``. May require grad.
        rtol, atol: relative and absolute tolerance.
        method: a name of torchdiffeq (``"dopri5"``, the default) or of OrdinaryDiffEq.jl (``"Rodas5P"``).
        options: ``step_size`` (fixed-step methods; without it they step from one entry of ``t`` to the next),
            ``first_step``, ``min_step``, ``max_step``, ``max_num_steps``.
        event_fn: ``event_fn(t, y)``, a tensor; the solve ends where one of its numbers crosses zero. Then ``t`` has
            two entries of which the second only tells the direction. See :func:`pyjode.odeint_event`.
        sensealg: how gradients are computed; by default through the solver's steps (``DiscreteAdjoint``) where the
            method is an explicit Runge-Kutta one, as torchdiffeq does.
        batching: ``"joint"``: y0 is one state. ``"independent"``: the first axis of y0 counts samples, each solved
            alone with steps of its own (see :func:`pyjode.solve`); ``t`` may then be of shape ``(B, T)``: times for
            each sample. The states keep their order: ``(T, B, ...)``.
        engine: ``"auto"``, ``"julia"`` or ``"torchdiffeq"``.
        progress: ``True`` shows how much of the time span is done, in a bar; or a function of that fraction.

    Returns:
        The states at ``t``: the nest that ``y0`` is, each tensor with a leading axis of length ``T``. Differentiable
        in ``y0``, every parameter of ``func`` and ``t``. With ``event_fn``: the event's time, shape ``()``, and the
        states at ``t[0]`` and at the event; differentiable also in what ``event_fn`` depends on.

    Raises:
        InputError, SolverError, UnsupportedError, EngineUnavailable: as :func:`pyjode.solve`.
    """
    chosen = choose_engine(engine)
    request, times = _request(func, y0, t, rtol, atol, method, options, event_fn, batching)
    adjoint = adjoint_for(
        chosen, request.method, request.steps, request.layout.dtype, rtol, atol, sensealg, None, None, None
    )
    return _solve(chosen, replace(request, adjoint=adjoint), y0, times, event_fn, t, batching, progress)


@door
def odeint_adjoint(
    func: Callable[..., Any],
    y0: Any,
    t: Float[Tensor, " T"],
    *,
    rtol: float | Tensor = 1e-7,
    atol: float | Tensor = 1e-9,
    method: str | None = None,
    options: dict[str, Any] | None = None,
    event_fn: Callable[..., Any] | None = None,
    adjoint_rtol: float | None = None,
    adjoint_atol: float | None = None,
    adjoint_method: str | None = None,
    adjoint_options: dict[str, Any] | None = None,
    adjoint_params: Iterable[Tensor] | nn.Module | None = None,
    sensealg: str | SenseAlg | None = None,
    batching: str = "joint",
    engine: str | None = None,
    progress: bool | Callable[[float], Any] = False,
) -> Any:
    """:func:`odeint` with gradients from a continuous adjoint equation.

    The Julia engine takes ``GaussAdjoint`` by default (``InterpolatingAdjoint`` or another solver where the method
    needs it, see :mod:`pyjode.trust`); the embedded engine takes torchdiffeq's, which is ``BacksolveAdjoint``.

    Args:
        func, y0, t, rtol, atol, method, options, event_fn, batching, engine, progress: as :func:`odeint`.
        adjoint_rtol, adjoint_atol: tolerances of the adjoint solve; by default the forward ones, tighter for stiff
            methods.
        adjoint_method: its solver; by default the forward one, or one trusted with it.
        adjoint_options: its options, as ``options``; by default the forward ones where the solver is the same.
        adjoint_params: the tensors to differentiate by, instead of those found in ``func``.
        sensealg: the adjoint, by name or as an object (see :mod:`pyjode.sensealgs`).

    Returns:
        As :func:`odeint`.

    Raises:
        As :func:`odeint`.
    """
    chosen = choose_engine(engine)
    request, times = _request(func, y0, t, rtol, atol, method, options, event_fn, batching)
    if sensealg is None and chosen.name == "torchdiffeq":
        sensealg = BacksolveAdjoint()
    solver = request.method if adjoint_method is None else find_method(adjoint_method)
    adjoint_steps = None if adjoint_options is None else _steps(solver, adjoint_options, "adjoint_options")
    adjoint = adjoint_for(
        chosen,
        request.method,
        request.steps,
        request.layout.dtype,
        rtol,
        atol,
        sensealg,
        adjoint_method,
        adjoint_rtol,
        adjoint_atol,
        adjoint_steps,
        continuous=True,
    )
    request = replace(
        request,
        adjoint=adjoint,
        params=tensors(adjoint_params, "adjoint_params"),
        exact_params=adjoint_params is not None,
    )
    return _solve(chosen, request, y0, times, event_fn, t, batching, progress)


def _request(
    func: Callable[..., Any],
    y0: Any,
    t: Tensor,
    rtol: float | Tensor,
    atol: float | Tensor,
    method: str | None,
    options: dict[str, Any] | None,
    event_fn: Callable[..., Any] | None,
    batching: str,
) -> tuple[Request, Tensor]:
    if not callable(func):
        raise InputError(f"func is {type(func).__name__}, which cannot be called as func(t, y)")
    if not isinstance(t, Tensor):
        raise InputError(f"t is {type(t).__name__}, not a torch tensor")
    if not t.is_floating_point():
        raise InputError(f"t has dtype {t.dtype}; times are floating point numbers: t.to(torch.float64)")
    if batching not in BATCHINGS:
        raise InputError(f"batching={batching!r}; choose from {', '.join(map(repr, BATCHINGS))}")
    alone = batching == "independent"
    if alone and event_fn is not None:
        raise UnsupportedError('event_fn is for batching="joint"')
    if alone and t.ndim == 2:
        check_times(t)
    else:
        check_monotonic(t, "t")
    if event_fn is not None and len(t) != 2:
        raise InputError(f"with event_fn t has two entries, t0 and any other on the side to go to; it has {len(t)}")
    layout = sample_layout(y0) if alone else StateLayout.of(y0)
    found = find_method(method or "dopri5")
    request = Request(
        f=func,
        layout=layout,
        params=None,
        exact_params=False,
        method=found,
        tolerances=tolerances(rtol, atol, layout),
        steps=_steps(found, options or {}, "options"),
        adjoint=None,
    )
    return request, cpu_times(t)


def _steps(method: Method, options: dict[str, Any], name: str) -> StepControl:
    unknown = set(options) - _OPTIONS
    if unknown:
        raise UnsupportedError(
            f"{name}: {', '.join(sorted(unknown))} not available; there are {', '.join(sorted(_OPTIONS))}"
        )
    return step_control(
        method,
        dt=options.get("step_size", options.get("first_step")),
        adaptive=None,
        dtmin=options.get("min_step"),
        dtmax=options.get("max_step"),
        maxiters=options.get("max_num_steps", 100_000),
    )


def _solve(
    engine: Engine,
    request: Request,
    y0: Any,
    times: Tensor,
    event_fn: Callable[..., Any] | None,
    t: Tensor,
    batching: str,
    progress: bool | Callable[[float], Any],
) -> Any:
    if event_fn is not None:
        return solve_to_event(engine, request, y0, times, event_fn, t, progress)
    if times.shape[-1] == 1:
        # Nothing to solve; the state is still checked and keeps its gradient.
        layout = StateLayout.of(y0)
        return layout.unflatten(layout.flatten(y0)[None])
    if batching == "independent":
        refuse_progress(progress)
        return unflatten_batch(solve_batch(engine, request, y0, times).us, request.layout)
    answer = run(engine, request, y0, times, progress)
    raise_on_failure(answer, request)
    return request.layout.unflatten(answer.us)
