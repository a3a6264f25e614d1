"""Where a condition first crosses zero, by torchdiffeq."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyjode.engines.crossings import Crossings, Hold, passage
from pyjode.engines.request import Answer, Request

_REFINEMENTS = 6


@dataclass(frozen=True)
class Found:
    """Which value crossed zero (``None``: none did before the end), when, and the state there."""

    index: int | None
    t: float
    u: Tensor


@torch.no_grad()
def find_crossing(
    integrate: Callable[..., Any], request: Request, u0: Tensor, ts: Tensor, crossings: Crossings, tolerance: float
) -> Found:
    """The first crossing that counts between ``ts[0]`` and ``ts[-1]``.

    Args:
        integrate: ``integrate(u0, t, event_fn)`` gives time and states, as torchdiffeq's odeint does.
        request, u0, ts, crossings: as for ``solve_until``.
        tolerance: of the time, as torchdiffeq will find it.
    """
    t, t_end = float(ts[0].detach()), float(ts[-1].detach())
    sign = -1.0 if t_end < t else 1.0
    u, holds = u0.detach(), crossings.holds
    while True:
        values = _Held(request, replace(crossings, holds=holds), t, t_end, sign)
        time, states = integrate(u, torch.tensor([t, t + sign], dtype=torch.float64), values)
        t, u = float(time), states[-1]
        index = values.crossed(t + sign * 2 * tolerance, u)
        if index is None or sign * t >= sign * t_end:
            return Found(None, t_end, u)
        direction = -float(values.signs[index])
        if crossings.directions[index] in (0, direction):
            return Found(index, t, u)
        holds = {index: Hold(direction, 4 * tolerance + 8 * math.ulp(t))}


class _Held:
    """All values, and the time that is left, as torchdiffeq's event function."""

    def __init__(self, request: Request, crossings: Crossings, t0: float, t_end: float, sign: float):
        self._layout, self._crossings = request.layout, crossings
        self._t0, self._t_end, self._sign = t0, t_end, sign
        self.signs = torch.empty(0)

    def __call__(self, t: Tensor, u: Tensor) -> Tensor:
        values = self._crossings.values(self._layout, t.to(u.dtype), u).double()
        since = self._sign * (float(t) - self._t0)
        for i, hold in self._crossings.holds.items():
            if since <= hold.duration:
                values[i] = hold.sign
        if math.isfinite(self._t_end):
            values = torch.cat([values, values.new_tensor([self._sign * (self._t_end - float(t))])])
        if not len(self.signs):
            self.signs = torch.sign(values)
        return values

    def crossed(self, t: float, u: Tensor) -> int | None:
        """Which value has become the least of all, turned to be positive at the start; ``None`` where it is time."""
        values = self(torch.tensor(t, dtype=torch.float64), u) * self.signs
        index = int(values[: self._crossings.count].argmin())
        late = len(values) > self._crossings.count and float(values[-1]) <= 0 < float(values[index])
        return None if late else index


def solve_to_crossing(
    solve: Callable[[Request, Tensor, Tensor], Answer],
    request: Request,
    u0: Tensor,
    ts: Tensor,
    crossings: Crossings,
    found: Found,
) -> Answer:
    """Solve to a crossing that is known roughly, improving its time by Newton's method.

    Args:
        solve: the engine's plain solve.
        request, u0, ts, crossings: as for ``solve_until``.
        found: the crossing.

    Returns:
        States at the times of ``ts`` before the crossing and at the crossing. Differentiable, its time held fixed.
    """
    start, end = float(ts[0].detach()), float(ts[-1].detach())
    sign = -1.0 if end < start else 1.0
    assert found.index is not None
    t, u = found.t, found.u
    for refinement in range(_REFINEMENTS):
        with torch.no_grad():
            p = passage(request.f, request.layout, crossings, found.index, t, u)
        step = 0.0 if p.flat else -float(p.value.detach()) / p.rate
        # Where the condition is not smooth the search's own time is the better one.
        if not abs(step) <= 0.1 * abs(t - start):
            step = 0.0
        t = sign * min(max(sign * (t + step), sign * start), sign * end)
        if refinement > 0 and abs(step) <= 1e-13 * max(abs(t), abs(t - start)):
            break
        if t == start:
            return Answer(ts[:1], u0[None], True, "Success", t)
        inner = ts[1:][sign * ts[1:].detach() < sign * t]
        grid = torch.cat([ts[:1], inner, torch.tensor([t], dtype=torch.float64)])
        answer = solve(request, u0, grid)
        if not answer.success:
            return answer
        u = answer.us[-1].detach()
    return answer
