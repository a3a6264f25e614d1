"""Conditions that end a solve, and what is known of a condition at one point of a solution."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyjode.rhs.condition import condition_values
from pyjode.state import StateLayout

# Rounding errors of a condition are taken to be this often the machine epsilon, term by term.
_ROUNDINGS = 64.0


@dataclass(frozen=True)
class Hold:
    """The sign a condition counts as having from the start of a solve until ``duration`` later.

    After an event its condition is zero to rounding: without this, the event would be found again at once, or its
    next one missed.
    """

    sign: float
    duration: float


@dataclass(frozen=True)
class Crossings:
    """A solve ends where one of these values crosses zero.

    Attributes:
        conditions: functions ``(t, y)`` of the user's.
        sizes: how many values each gives.
        directions: for every value: 1 counts only crossings from below, -1 from above, 0 both; as time goes on in the
            solve, which may be backwards.
        holds: for some values, by index: see :class:`Hold`.
        interp_points: points within each step at which the values are looked at.
    """

    conditions: tuple[Callable[[Tensor, Any], Tensor], ...]
    sizes: tuple[int, ...]
    directions: tuple[int, ...]
    holds: dict[int, Hold]
    interp_points: int = 10

    @property
    def count(self) -> int:
        return sum(self.sizes)

    def place(self, index: int) -> tuple[int, int]:
        """Which condition, and which of its values, has this index."""
        which = 0
        while index >= self.sizes[which]:
            index -= self.sizes[which]
            which += 1
        return which, index

    def values(self, layout: StateLayout, t: Tensor, u: Tensor) -> Tensor:
        """All values at a point, ``(count,)``."""
        y = layout.unflatten(u)
        return torch.cat([condition_values(c, t, y).to(layout.dtype) for c in self.conditions])


@dataclass(frozen=True)
class Passage:
    """A condition's value where the solution passes a point.

    Attributes:
        value: of the condition, differentiable in the state and in what the condition depends on.
        rate: its total time derivative along the solution, dc/dt + dc/dy f.
        f: the derivative of the flat state, ``(n,)``.
        noise: what rounding errors may amount to in the value.
        flat: whether the rate is zero as far as rounding lets one see.
    """

    value: Tensor
    rate: float
    f: Tensor
    noise: float
    flat: bool


def passage(
    f: Callable[..., Any], layout: StateLayout, crossings: Crossings, index: int, t: float, u: Tensor
) -> Passage:
    """The condition with this index at time ``t`` and flat state ``u`` ``(n,)`` of a solution of dy/dt = f(t, y)."""
    which, entry = crossings.place(index)
    condition = crossings.conditions[which]
    time = torch.tensor(t, dtype=layout.dtype, device=u.device)
    value = condition_values(condition, time, layout.unflatten(u))[entry]
    with torch.no_grad():
        y = layout.unflatten(u.detach().clone())
        dy = layout.flatten_derivative(f(time.clone(), y)).detach()
    with torch.inference_mode(False), torch.enable_grad():
        t_leaf, u_leaf = time.clone().requires_grad_(), u.detach().clone().requires_grad_()
        again = condition_values(condition, t_leaf, layout.unflatten(u_leaf))[entry]
        by_t, by_u = (
            torch.autograd.grad(again, (t_leaf, u_leaf), allow_unused=True) if again.requires_grad else (None, None)
        )
    by_t = torch.zeros_like(time) if by_t is None else by_t
    by_u = torch.zeros_like(u) if by_u is None else by_u
    by_t, by_u, dy64, u64 = by_t.double(), by_u.double(), dy.double(), u.detach().double()
    eps = _ROUNDINGS * torch.finfo(layout.dtype).eps
    rate = float(by_t + by_u @ dy64)
    noise = eps * float(by_t.abs() * abs(t) + by_u.abs() @ u64.abs())
    flat = abs(rate) <= eps * float(by_t.abs() + by_u.abs() @ dy64.abs())
    return Passage(value, rate, dy, noise, flat)
