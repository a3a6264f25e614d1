"""torchdiffeq's door to events: ``odeint_event``, with its signature and meaning."""

from __future__ import annotations

import math
from collections.abc import Callable
from math import inf
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pyjode.door import door
from pyjode.errors import InputError
from pyjode.event_fn import linked, searching_for
from pyjode.odeint import odeint


@door
def odeint_event(
    func: Callable[..., Any],
    y0: Any,
    t0: Float[Tensor, ""],
    *,
    event_fn: Callable[..., Any],
    reverse_time: bool = False,
    odeint_interface: Callable[..., Any] = odeint,
    max_time: float | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, ""], Any]:
    """Solve dy/dt = func(t, y), y(t0) = y0, to the first time at which ``event_fn(t, y)`` is zero.

    Differs from torchdiffeq's in that the event's time and state are differentiable also in what ``event_fn`` depends
    on, that a search has an end (``max_time``, and ``options={"max_num_steps": ...}``), and that crossings within a
    step are seen, not only at its end (Julia engine).

    Args:
        func, y0: as for :func:`pyjode.odeint`.
        t0: initial time, shape ``()`` or ``(1,)``. May require grad.
        event_fn: ``event_fn(t, y)``, a tensor of one or several real numbers; the event is where the first of them
            changes its sign. One that is zero at ``t0`` is the event.
        reverse_time: solve backwards in time.
        odeint_interface: ``odeint`` or ``odeint_adjoint``, or a function that calls one of them.
        max_time: give up where no event has happened so long after (or before) ``t0``; by default the solver goes on
            as far as its steps reach.
        **kwargs: for ``odeint_interface``.

    Returns:
        The event's time, shape ``()``, and the states at ``t0`` and at the event: the nest that ``y0`` is, each tensor
        with a leading axis of length 2. Differentiable in ``y0``, ``t0``, and every parameter of ``func`` and
        ``event_fn``.

    Raises:
        SolverError: no event was found.
        InputError, UnsupportedError, EngineUnavailable: as :func:`pyjode.odeint`.
    """
    if event_fn is None or not callable(event_fn):
        raise InputError(f"event_fn is {type(event_fn).__name__}; it is a function event_fn(t, y)")
    if not isinstance(t0, Tensor) or t0.numel() != 1:
        raise InputError("t0 is a tensor of one entry, the initial time")
    if max_time is not None and not (max_time > 0 and not math.isnan(max_time)):
        raise InputError(f"max_time is {max_time}; it is a positive duration")
    start = t0.reshape(1)
    t = torch.cat([start, start.detach() + (-1.0 if reverse_time else 1.0)])
    with searching_for(inf if max_time is None else float(max_time)):
        event_t, solution = odeint_interface(func, y0, t, event_fn=event_fn, **kwargs)
    return linked(func, y0, event_fn, event_t, solution)
