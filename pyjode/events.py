"""Events: what happens where the solution makes a condition zero."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, dataclass
from typing import Any

from jaxtyping import Float64, Int64
from torch import Tensor

from pyjode.errors import InputError


@dataclass(frozen=True, eq=False)
class Event:
    """Something that happens where ``condition(t, y)`` crosses zero: SciML's continuous callback.

    Attributes:
        condition: ``condition(t, y)`` gives one real number, a tensor of one entry, which is continuous along the
            solution; the event is where its sign changes. It may give ``k`` numbers (a batch of balls): each has its
            own crossings, and ``affect`` is told which one it was.
        affect: ``affect(t, y)`` gives the state right after the event, a nest like ``y``: a new one, for ``y`` itself
            must not be changed. With a condition of ``k > 1`` numbers it is called as ``affect(t, y, index)``. ``None``
            changes nothing: the event is only noted down.
        terminal: ``True``: the solve ends at the event; a number: at that occurrence of it (its affect still happens).
        direction: 1: only crossings from below zero to above count, -1: only from above to below, 0: both. "To" is
            as the solve goes on, also where that is backwards in time.
        interp_points: at so many points within each step the condition is looked at, so that two crossings in one step
            are noticed (Julia engine; torchdiffeq looks at the ends of its steps only).

    ``t`` has shape ``()`` and the state's real dtype. Both functions are ordinary torch code: gradients flow to every
    tensor they use. Keep an ``Event`` and use it again: a condition is compiled once.

    An event that has just happened is not found again until its condition has left zero. At the start of a solve a
    condition that is zero happens at once only if ``direction`` is set and the solution moves that way.
    """

    condition: Callable[[Tensor, Any], Tensor]
    affect: Callable[..., Any] | None = None
    _: KW_ONLY
    terminal: bool | int = False
    direction: int = 0
    interp_points: int = 10

    def __post_init__(self) -> None:
        if not callable(self.condition):
            raise InputError(f"condition is {type(self.condition).__name__}; it is a function condition(t, y)")
        if self.affect is not None and not callable(self.affect):
            raise InputError(f"affect is {type(self.affect).__name__}; it is a function affect(t, y), or None")
        if self.terminal is not True and (not isinstance(self.terminal, int) or self.terminal < 0):
            raise InputError(f"terminal is {self.terminal!r}; it is True, False or at which occurrence the solve ends")
        if self.direction not in (-1, 0, 1):
            raise InputError(f"direction is {self.direction!r}; it is 1, -1 or 0")
        if not isinstance(self.interp_points, int) or self.interp_points < 0:
            raise InputError(f"interp_points is {self.interp_points!r}; it is a number of points, 0 or more")


@dataclass(frozen=True)
class EventLog:
    """The events of a solution, in the order they happened.

    Attributes:
        ts: their times, shape ``(E,)``. Differentiable.
        indices: which event of ``events=`` each was, shape ``(E,)``.
        entries: which number of its condition crossed zero, shape ``(E,)``; 0 where there is only one.
        before: the states just before, the nest that y0 was, each tensor with a leading axis of length ``E``.
            Differentiable.
        after: the states just after, as ``affect`` made them. Differentiable.
    """

    ts: Float64[Tensor, " E"]
    indices: Int64[Tensor, " E"]
    entries: Int64[Tensor, " E"]
    before: Any
    after: Any

    def __len__(self) -> int:
        return len(self.ts)


def checked_events(events: Event | Iterable[Event]) -> tuple[Event, ...]:
    """The events as a tuple.

    Raises:
        InputError: something in it is none.
    """
    listed = (events,) if isinstance(events, Event) else tuple(events)
    for x in listed:
        if not isinstance(x, Event):
            raise InputError(f"events holds {type(x).__name__}; make each an Event(condition, affect)")
    return listed
