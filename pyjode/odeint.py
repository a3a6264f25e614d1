"""torchdiffeq's door: ``odeint`` and ``odeint_adjoint``, with its signatures and meaning."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyjode.callbacks import has_callbacks
from pyjode.door import door
from pyjode.engines import Engine, choose_engine
from pyjode.engines.request import Adjoint, Request, StepOptions, cpu_times
from pyjode.errors import InputError, UnsupportedError
from pyjode.event_fn import solve_to_event
from pyjode.independent import BATCHINGS, check_times, refuse_progress, sample_layout, solve_batch, unflatten_batch
from pyjode.methods import find_method
from pyjode.options import read_options, refuse_beyond_steps
from pyjode.sensealgs import BacksolveAdjoint, SenseAlg
from pyjode.solve import adjoint_for, check_monotonic, raise_on_failure, run, states, tensors, tolerances
from pyjode.state import StateLayout


@door
def odeint(
    func: Callable[..., Any],
    y0: Any,
    t: Float[Tensor, " T"],
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
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
        rtol, atol: relative and absolute tolerance: a number; a tensor that broadcasts to ``y0``; for a nest one of
            these for each of its tensors, as a tuple.
        method: a name of torchdiffeq (``"dopri5"``, the default) or of OrdinaryDiffEq.jl (``"Rodas5P"``).
        options: torchdiffeq's, as a dict; :mod:`pyjode.options` lists which method takes which, ``docs/switching.md``
            what they become.
        event_fn: ``event_fn(t, y)``, a tensor; the solve ends where one of its numbers crosses zero. Then ``t`` has
            two entries of which the second only tells the direction. See :func:`pyjode.odeint_event`.
        sensealg: how gradients are computed; by default through the solver's steps (``DiscreteAdjoint``) where the
            method is an explicit Runge-Kutta one, as torchdiffeq does, or a Rosenbrock one and f native.
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
        chosen.name,
        request.method,
        request.steps,
        request.layout.dtype,
        request.tolerances.rtol,
        request.tolerances.atol,
        sensealg,
        None,
        None,
        None,
    )
    return _solve(chosen, replace(request, adjoint=adjoint), y0, times, event_fn, t, batching, progress)


@door
def odeint_adjoint(
    func: Callable[..., Any],
    y0: Any,
    t: Float[Tensor, " T"],
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: dict[str, Any] | None = None,
    event_fn: Callable[..., Any] | None = None,
    adjoint_rtol: Any = None,
    adjoint_atol: Any = None,
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
        adjoint_options: its options, as ``options``; by default the forward ones, but for ``norm``, where the solver is
            the same. ``norm`` may be ``"seminorm"`` (Kidger, Chen, Lyons, "Hey, that's not an ODE", ICML 2021), or
            take the tuple ``(t, y, adjoint of y, *adjoint of params)``.
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
    asked = method or "dopri5"
    same = adjoint_method is None or adjoint_method == asked
    adjoint_steps, further = None, None
    if adjoint_options is not None or not same:
        _, read_steps, further = read_options(
            find_method(adjoint_method or asked),
            adjoint_options,
            "adjoint_options",
            needed=_needs_options(func, request.layout),
        )
        adjoint_steps = None if adjoint_options is None else read_steps
    elif request.options is not None:
        further = replace(request.options, norm=None)
        adjoint_steps = request.steps if options and request.steps.adaptive else None
    adjoint = adjoint_for(
        chosen.name,
        request.method,
        request.steps,
        request.layout.dtype,
        request.tolerances.rtol,
        request.tolerances.atol,
        sensealg,
        adjoint_method,
        _adjoint_tolerance(adjoint_rtol, chosen),
        _adjoint_tolerance(adjoint_atol, chosen),
        adjoint_steps,
        continuous=True,
    )
    request = replace(
        request,
        adjoint=_with_options(adjoint, further),
        params=_that_require_grad(tensors(adjoint_params, "adjoint_params")),
        exact_params=adjoint_params is not None,
    )
    return _solve(chosen, request, y0, times, event_fn, t, batching, progress)


def _request(
    func: Callable[..., Any],
    y0: Any,
    t: Tensor,
    rtol: Any,
    atol: Any,
    method: str | None,
    options: dict[str, Any] | None,
    event_fn: Callable[..., Any] | None,
    batching: str = "joint",
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
    asked = find_method(method or "dopri5")
    needed = _needs_options(func, layout)
    found, steps, further = read_options(asked, options, "options", needed=needed)
    if event_fn is not None and further is not None and not (options and "interp" in options):
        further = replace(further, interp=None)
    if alone:
        refuse_beyond_steps(options, "options")
    request = Request(
        f=func,
        layout=layout,
        params=None,
        exact_params=False,
        method=found,
        tolerances=tolerances(rtol, atol, layout),
        steps=steps,
        adjoint=None,
        options=further,
    )
    return request, cpu_times(t)


def _needs_options(func: Callable[..., Any], layout: StateLayout) -> bool:
    """Whether torchdiffeq does something of its own even where no option is given: its norm of a nest, callbacks."""
    return not layout.is_single_tensor or has_callbacks(func)


def _with_options(adjoint: Adjoint | None, options: StepOptions | None) -> Adjoint | None:
    return None if adjoint is None else adjoint.with_options(options)


def _that_require_grad(params: tuple[Tensor, ...] | None) -> tuple[Tensor, ...] | None:
    """torchdiffeq leaves the others out, too."""
    return None if params is None else tuple(p for p in params if p.requires_grad)


def _adjoint_tolerance(tolerance: Any, engine: Engine) -> Any:
    """torchdiffeq takes one for each of (t, y, adjoint of y, *params); the Julia engine its smallest entry."""
    if tolerance is None or isinstance(tolerance, float) or engine.name == "torchdiffeq":
        return tolerance
    entries = tolerance if isinstance(tolerance, tuple | list) else (tolerance,)
    return min(float(torch.as_tensor(x).detach().min()) for x in entries)


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
    return states(answer, request.layout)
