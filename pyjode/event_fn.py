"""torchdiffeq's ``event_fn``: a solve that ends at the first zero."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from math import copysign, inf
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils import _pytree as pytree

from pyjode.engines import Engine
from pyjode.engines.crossings import Crossings, passage
from pyjode.engines.request import Request
from pyjode.errors import SolverError, SolverFailure
from pyjode.events import Event
from pyjode.rhs.condition import condition_values
from pyjode.segments import link, solve_chain
from pyjode.solve import checked_state, watched
from pyjode.state import StateLayout

_LONGEST: ContextVar[float] = ContextVar("pyjode_longest_search", default=inf)


@contextmanager
def searching_for(duration: float) -> Iterator[None]:
    """Solves to an event in this block give up after this time, counted from t0."""
    token = _LONGEST.set(duration)
    try:
        yield
    finally:
        _LONGEST.reset(token)


def solve_to_event(
    engine: Engine,
    request: Request,
    y0: Any,
    times: Float[Tensor, " 2"],
    event_fn: Callable[..., Any],
    like: Tensor,
    progress: bool | Callable[[float], Any],
) -> tuple[Float[Tensor, ""], Any]:
    """Solve from ``times[0]`` towards ``times[1]`` and beyond, to the first zero of ``event_fn``.

    Args:
        engine, request, y0: as for a plain solve.
        times: where to start, and any time on the side to go to.
        event_fn: as in :func:`pyjode.odeint_event`.
        like: the user's times, whose dtype and device the event's time has.
        progress: as for :func:`pyjode.odeint`; tells little where the search has no end.

    Returns:
        The event's time, shape ``()``, and the states at ``times[0]`` and at the event.

    Raises:
        SolverError: no event before the solver stopped, or before the time to give up.
    """
    t0 = float(times[0].detach())
    ahead = copysign(1.0, float(times[1].detach()) - t0)
    longest = _LONGEST.get()
    grid = torch.stack([times[0], torch.tensor(t0 + ahead * longest, dtype=times.dtype)])
    u0 = checked_state(request, y0)
    request = replace(request, save_steps=False, dense=False)
    event = Event(event_fn, terminal=True)
    with watched(engine, request, grid, progress):
        chain = solve_chain(engine, request, [event], u0, grid, max_events=2, zero_at_start_fires=True)
    if not chain.occurrences:
        answer = chain.answer
        steps = answer.stats.get("naccept", 0) + answer.stats.get("nreject", 0)
        why = "the time to give up" if answer.success else answer.retcode
        raise SolverError(
            f"event_fn did not cross zero between t = {t0:.6g} and {answer.t_reached:.6g} "
            f"({request.method.name}, {steps} steps: {why}); check its sign and the direction of time (reverse_time), "
            "or raise options={'max_num_steps': ...} or max_time",
            SolverFailure("NoEvent" if answer.success else answer.retcode, answer.t_reached, steps),
        )
    end = chain.occurrences[0]
    return end.t.to(like.device, like.dtype), request.layout.unflatten(torch.stack([u0, end.before]))


def linked(
    func: Callable[..., Any], y0: Any, event_fn: Callable[..., Any], event_t: Tensor, solution: Any
) -> tuple[Tensor, Any]:
    """The result of any ``odeint(..., event_fn=)`` with the gradient of its time.

    pyjode's own has it; torchdiffeq's has the state's at a fixed time only.
    """
    layout = StateLayout.of(y0)
    rows = torch.stack([layout.flatten(pytree.tree_map(lambda x, i=i: x[i], solution)) for i in (0, 1)])
    if event_t.requires_grad or not (torch.is_grad_enabled() and rows.requires_grad):
        return event_t, solution
    with torch.no_grad():
        y = layout.unflatten(rows[1].detach().clone())
        values = condition_values(event_fn, event_t.to(layout.device, layout.dtype), y)
    crossings = Crossings((event_fn,), (len(values),), (0,) * len(values), {})
    p = passage(func, layout, crossings, int(values.abs().argmin()), float(event_t), rows[1])
    when, at_event = link(p, float(event_t), rows[1])
    return when.to(event_t.device, event_t.dtype), layout.unflatten(torch.stack([rows[0], at_event]))
