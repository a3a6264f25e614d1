"""A solve with events, as a chain of solves from one event to the next.

The engine finds where a segment ends; the chain is ordinary torch code, so autograd differentiates all of it: the
segments by the engine's adjoint, the event times by the implicit function theorem, the jumps as the functions they are.
With c the condition, y the solution and f its right-hand side, the time t_e of an event has

    dt_e = -dc / (dc/dt + dc/dy f),    dy(t_e) = dy + f dt_e,

where dc and dy are taken at a fixed time. The jump of the sensitivities that follows (the saltation matrix) is what
the chain rule makes of it with the affect and the next segment's initial time.

Source: Hiskens, Pai, Trajectory sensitivity analysis of hybrid systems, IEEE Trans. Circuits Syst. I 47 (2000), III;
Chen, Amos, Nickel, Learning neural event functions for ordinary differential equations, ICLR 2021, 3.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyjode.door import refuse_batched_backward
from pyjode.engines import Engine
from pyjode.engines.crossings import Crossings, Hold, Passage, passage
from pyjode.engines.request import Answer, Request
from pyjode.errors import InputError, SolverError, SolverFailure, UnsupportedError
from pyjode.events import Event, EventLog
from pyjode.rhs.condition import condition_values
from pyjode.state import StateLayout

# So many events without a step forward in time, and one more for every condition, are Zeno's.
_STALLED = 10


@dataclass(frozen=True)
class Occurrence:
    """One event that happened; states are flat, ``(n,)``."""

    event: int
    entry: int
    t: Tensor
    before: Tensor
    after: Tensor


@dataclass(frozen=True)
class Segment:
    """One solve of the chain: from ``u0`` at ``t0`` to ``t_end``."""

    t0: Tensor
    u0: Tensor
    t_end: float
    answer: Answer


@dataclass(frozen=True)
class Chain:
    """What came of it.

    Attributes:
        answer: of the whole. Rows are those of the times asked for, as far as they were reached; with ``save_steps``
            the steps of every segment, both ends included.
        occurrences: the events.
        segments: the solves between them.
    """

    answer: Answer
    occurrences: list[Occurrence]
    segments: list[Segment]

    def log(self, layout: StateLayout) -> EventLog:
        """The events for the user."""

        def states(of: str) -> Any:
            rows = [getattr(o, of) for o in self.occurrences]
            empty = torch.empty(0, layout.n, dtype=layout.dtype, device=layout.device)
            return layout.unflatten(torch.stack(rows) if rows else empty)

        return EventLog(
            ts=torch.stack([o.t for o in self.occurrences])
            if self.occurrences
            else torch.empty(0, dtype=torch.float64),
            indices=torch.tensor([o.event for o in self.occurrences], dtype=torch.int64),
            entries=torch.tensor([o.entry for o in self.occurrences], dtype=torch.int64),
            before=states("before"),
            after=states("after"),
        )


def solve_chain(
    engine: Engine,
    request: Request,
    events: Sequence[Event],
    u0: Tensor,
    ts: Tensor,
    *,
    max_events: int,
    zero_at_start_fires: bool = False,
) -> Chain:
    """Solve from ``u0`` ``(n,)`` at ``ts[0]`` to ``ts[-1]``, which may be infinite, through all events.

    Args:
        engine, request: as for a plain solve.
        events: what may happen.
        u0: flat initial state.
        ts: times to save at, ``(T,)``, strictly monotonic.
        max_events: so many events and no more.
        zero_at_start_fires: a condition that is zero at the start is an event there, as torchdiffeq has it.

    Raises:
        InputError: a condition or an affect gives what it must not.
        SolverError: more than ``max_events`` events, or events that pile up at one time.
    """
    if not request.steps.adaptive and request.steps.dt is None:
        raise InputError("events with fixed steps need a step size: dt=, or options={'step_size': ...}")
    return _Run(engine, request, events, u0, ts, max_events, zero_at_start_fires).run()


class _EventTime(torch.autograd.Function):
    """The time of an event as a function of its condition's value at that time: dt = -dc / rate."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, t: float, rate: float, flat: bool) -> Tensor:
        ctx.t, ctx.rate, ctx.flat, ctx.dtype, ctx.device = t, rate, flat, value.dtype, value.device
        return torch.tensor(t, dtype=torch.float64)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise UnsupportedError("second derivatives (create_graph=True) do not go through events")
        refuse_batched_backward(cotangent)
        if ctx.flat:
            raise UnsupportedError(
                f"the event at t = {ctx.t:.6g} touches zero without crossing it: its time has no derivative there"
            )
        return (-cotangent / ctx.rate).to(ctx.device, ctx.dtype), None, None, None


def link(p: Passage, t: float, u: Tensor) -> tuple[Tensor, Tensor]:
    """Time and state of an event with their derivatives; ``u`` is the state at the fixed time ``t``."""
    if not (torch.is_grad_enabled() and p.value.requires_grad):
        return torch.tensor(t, dtype=torch.float64), u
    when = _EventTime.apply(p.value, t, p.rate, p.flat)
    return when, _moved(u, p.f, when - t)


def _moved(u: Tensor, f: Tensor, dt: Tensor) -> Tensor:
    """The state a time ``dt`` later, where ``dt`` is zero but has a derivative."""
    return u + f * dt.to(u.device, u.dtype)


class _Run:
    def __init__(
        self,
        engine: Engine,
        request: Request,
        events: Sequence[Event],
        u0: Tensor,
        ts: Tensor,
        max_events: int,
        zero_at_start_fires: bool,
    ):
        self.engine, self.request, self.events = engine, request, events
        self.max_events, self.zero_at_start_fires = max_events, zero_at_start_fires
        self.ts, self.t_end = ts, float(ts[-1].detach())
        self.sign = -1.0 if self.t_end < float(ts[0].detach()) else 1.0
        with torch.no_grad():
            t, y = ts[0].detach().to(u0.device, request.layout.dtype), request.layout.unflatten(u0.detach().clone())
            sizes = tuple(len(condition_values(e.condition, t, y)) for e in events)
        self.directions = tuple(e.direction for e, k in zip(events, sizes, strict=True) for _ in range(k))
        self.crossings = Crossings(
            conditions=tuple(e.condition for e in events),
            sizes=sizes,
            directions=self.directions,
            holds={},
            interp_points=max((e.interp_points for e in events), default=0),
        )
        # Where the next segment starts.
        self.t, self.u = ts[0], u0
        self.next_row = 1
        self.rows_t: list[Tensor] = [] if request.save_steps else [ts[:1]]
        self.rows_u: list[Tensor] = [] if request.save_steps else [u0[None]]
        self.occurrences: list[Occurrence] = []
        self.counts: Counter[int] = Counter()
        self.segments: list[Segment] = []
        self.stats: Counter[str] = Counter()
        self.residuals: dict[int, float] = {}
        # The largest value of each condition so far.
        self.scales = [0.0] * self.crossings.count
        self.stalled = 0

    def run(self) -> Chain:
        pending = self._zero_at_start()
        here: set[int] = set()
        while True:
            start, t = self._now(), self._now()
            if pending:
                index, *pending = pending
                at_event = _moved(self.u, self._f(t, self.u), t - self.t)
            else:
                if self.sign * t >= self.sign * self.t_end:
                    return self._end("Success")
                holds = self._holds(here)
                answer, fired = self._segment(holds)
                if not fired:
                    return self._end(answer.retcode, answer)
                t = float(answer.ts[-1].detach())
                at_event = _moved(self.u, self._f(t, self.u), t - self.t) if len(answer.ts) == 1 else answer.us[-1]
                self._save_inner(answer, t, at_event)
                gone = self.sign * (t - start) - 8 * math.ulp(t)
                here = {i for i in here if i in holds and gone <= holds[i].duration}
                self.stalled = self.stalled if here else 0
                index, *pending = sorted({*fired, *self._zero_too(t, at_event, here)})
            here.add(index)
            if self._fire(index, t, at_event):
                return self._end("Terminated")
            pending = [i for i in pending if self._still_zero(i)]

    def _now(self) -> float:
        return float(self.t.detach())

    def _f(self, t: float, u: Tensor) -> Tensor:
        layout = self.request.layout
        with torch.no_grad():
            y = layout.unflatten(u.detach().clone())
            return layout.flatten_derivative(self.request.f(self._clock(t), y)).detach()

    def _clock(self, t: float) -> Tensor:
        """A time as f, conditions and affects see it."""
        return torch.tensor(t, dtype=self.request.layout.dtype, device=self.request.layout.device)

    def _values(self, t: float, u: Tensor) -> list[float]:
        with torch.no_grad():
            found: list[float] = self.crossings.values(self.request.layout, self._clock(t), u.detach().clone()).tolist()
        self.scales = [max(abs(x), old) for x, old in zip(found, self.scales, strict=True)]
        return found

    def _segment(self, holds: dict[int, Hold]) -> tuple[Answer, tuple[int, ...]]:
        """Solve to the next event or to the end."""
        steps = self.request.steps
        used = self.stats["naccept"] + self.stats["nreject"]
        request = replace(self.request, steps=replace(steps, maxiters=max(1, steps.maxiters - used)))
        grid = torch.cat([self.t.reshape(1), self.ts[self.next_row :]])
        answer, fired = self.engine.solve_until(request, self.u, grid, replace(self.crossings, holds=holds))
        self.stats.update(answer.stats)
        reached = float(answer.ts[-1].detach()) if answer.success else answer.t_reached
        self.segments.append(Segment(self.t, self.u, reached, answer))
        if not fired:
            rows = slice(None) if request.save_steps else slice(1, None)
            self._save(answer.ts[rows], answer.us[rows])
        return answer, fired

    def _save(self, ts: Tensor, us: Tensor) -> None:
        self.rows_t.append(ts)
        self.rows_u.append(us)

    def _save_inner(self, answer: Answer, t: float, at_event: Tensor) -> None:
        """The rows before the event at ``t``; a save point at its very time has the state before it."""
        if self.request.save_steps:
            return self._save(answer.ts[:-1], answer.us[:-1])
        inner = max(0, len(answer.ts) - 2)
        self._save(self.ts[self.next_row : self.next_row + inner], answer.us[1 : 1 + inner])
        self.next_row += inner
        if self.next_row < len(self.ts) and float(self.ts[self.next_row].detach()) == t:
            time = self.ts[self.next_row]
            row = _moved(at_event, self._f(t, at_event), time - t) if time.requires_grad else at_event
            self._save(time.reshape(1), row[None])
            self.next_row += 1

    def _fire(self, index: int, t: float, at_event: Tensor) -> bool:
        """Let an event happen; whether it ends the solve. ``at_event`` is the state at the fixed time ``t``."""
        p = passage(self.request.f, self.request.layout, self.crossings, index, t, at_event)
        self.residuals[index] = abs(float(p.value.detach()))
        when, before = link(p, t, at_event)
        which, entry = self.crossings.place(index)
        event = self.events[which]
        after = self._affected(which, when, before, entry)
        self.occurrences.append(Occurrence(which, entry, when, before, after))
        if self.request.save_steps:
            self._save(when.reshape(1), before[None])
        self.counts[which] += 1
        self.t, self.u = when, after
        if event.terminal and self.counts[which] >= event.terminal:
            if self.request.save_steps and event.affect is not None:
                self._save(when.reshape(1), after[None])
            return True
        self.stalled += 1
        if self.stalled > self.crossings.count + _STALLED:
            self._fail(
                "Zeno", f"events pile up at t = {t:.15g}: the time between them has become smaller than rounding"
            )
        if len(self.occurrences) >= self.max_events:
            times = [float(o.t.detach()) for o in self.occurrences[-2:]]
            gap = f", the last two {abs(times[-1] - times[0]):.3g} apart" if len(times) == 2 else ""
            self._fail(
                "MaxEvents",
                f"{self.max_events} events by t = {t:.6g}{gap}; raise max_events, or make an event terminal. Events "
                "that come ever faster (a ball at rest) need an affect that ends them",
            )
        return False

    def _fail(self, retcode: str, message: str) -> None:
        steps = self.stats["naccept"] + self.stats["nreject"]
        raise SolverError(message, SolverFailure(retcode, self._now(), steps))

    def _affected(self, which: int, when: Tensor, before: Tensor, entry: int) -> Tensor:
        affect, layout = self.events[which].affect, self.request.layout
        if affect is None:
            return before
        # A clone: an affect that works in place must not change what is saved.
        arguments = (when.to(layout.device, layout.dtype), layout.unflatten(before.clone()))
        y = affect(*arguments) if self.crossings.sizes[which] == 1 else affect(*arguments, entry)
        if y is None:
            raise InputError(f"the affect of event {which} returned None; it returns the state after the event")
        found = StateLayout.of(y, f"what the affect of event {which} returned")
        if found != layout:
            shapes = [[(tuple(x.shape), x.dtype, str(at.device)) for x in at.leaves] for at in (found, layout)]
            raise InputError(f"the affect of event {which} returned {shapes[0]}; the state is {shapes[1]}")
        return layout.flatten(y)

    def _zero_at_start(self) -> list[int]:
        t = self._now()
        zeros = [i for i, value in enumerate(self._values(t, self.u)) if value == 0]
        return zeros if self.zero_at_start_fires else [i for i in zeros if self._enters(i, t, self.u)]

    def _enters(self, index: int, t: float, u: Tensor) -> bool:
        """Whether the solution is on its way through zero in the direction asked for, of which there must be one."""
        with torch.no_grad():
            p = passage(self.request.f, self.request.layout, self.crossings, index, t, u)
        return not p.flat and self.directions[index] * self.sign * p.rate > 0

    def _zero_too(self, t: float, u: Tensor, here: set[int]) -> list[int]:
        """Conditions that are zero to rounding at an event and on their way through: they happen at the same time."""
        if self.crossings.count == 1:
            return []
        values = self._values(t, u)
        close = (i for i, x in enumerate(values) if abs(x) <= 1e-6 * self.scales[i])
        return [i for i in close if i not in here and self._passes(i, t, u)]

    def _passes(self, index: int, t: float, u: Tensor) -> bool:
        with torch.no_grad():
            p = passage(self.request.f, self.request.layout, self.crossings, index, t, u)
        zero = abs(float(p.value.detach())) <= p.noise
        return zero and not p.flat and self.directions[index] * self.sign * p.rate >= 0

    def _still_zero(self, index: int) -> bool:
        """Whether an earlier event's affect at the same time has left this one's condition at zero."""
        with torch.no_grad():
            p = passage(self.request.f, self.request.layout, self.crossings, index, self._now(), self.u)
        return abs(float(p.value.detach())) <= p.noise

    def _holds(self, here: set[int]) -> dict[int, Hold]:
        """For conditions that are zero at the start of a segment: which side they are about to be on."""
        t = self._now()
        zeros = {i for i, value in enumerate(self._values(t, self.u)) if value == 0}
        found = {}
        for i in here | zeros:
            with torch.no_grad():
                p = passage(self.request.f, self.request.layout, self.crossings, i, t, self.u)
            noise = p.noise + 4 * self.residuals.get(i, 0.0)
            if abs(float(p.value.detach())) > noise:
                continue
            longest = 1e-3 * (abs(self.t_end - t) if math.isfinite(self.t_end) else max(1.0, abs(t)))
            if not p.flat:
                found[i] = Hold(math.copysign(1.0, self.sign * p.rate), min(2 * noise / abs(p.rate), longest))
            else:
                found[i] = self._probed(i, t, p.f, 0.1 * longest)
        return found

    def _probed(self, index: int, t: float, f: Tensor, dt: float) -> Hold:
        """Where the first derivative does not tell: the side after a small midpoint step."""
        h = self.sign * dt
        u = self.u.detach()
        u = u + h * self._f(t + h / 2, u + h / 2 * f)
        return Hold(math.copysign(1.0, self._values(t + h, u)[index]), dt)

    def _end(self, retcode: str, answer: Answer | None = None) -> Chain:
        last = self.segments[-1].answer if answer is None and self.segments else answer
        whole = Answer(
            ts=torch.cat(self.rows_t),
            us=torch.cat(self.rows_u),
            success=retcode in ("Success", "Terminated"),
            retcode=retcode,
            t_reached=self._now() if answer is None else answer.t_reached,
            stats=dict(self.stats),
            interpolate=None if last is None else last.interpolate,
        )
        return Chain(whole, self.occurrences, self.segments)
