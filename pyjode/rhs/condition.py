"""Event conditions on their way to the solver: the ways of a right-hand side, with another result.

What a solver calls is a function that fills a vector like the state. A condition's values go into the first entries of
one, so that everything a right-hand side has (tracing, guards, Julia code, callbacks) serves conditions too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyjode.errors import InputError
from pyjode.rhs.build import build_rhs
from pyjode.rhs.interface import RightHandSide
from pyjode.state import StateLayout


def condition_values(condition: Callable[[Tensor, Any], Tensor], t: Tensor, y: Any) -> Tensor:
    """What a condition gives, as a vector ``(k,)``.

    Raises:
        InputError: it gives something else than a real floating point tensor.
    """
    return _checked(condition(t, y))


def _checked(values: Any) -> Tensor:
    if not isinstance(values, Tensor):
        raise InputError(f"an event's condition returned {type(values).__name__}, not a torch tensor")
    if not values.is_floating_point() or values.numel() == 0:
        raise InputError(
            f"an event's condition returned shape {tuple(values.shape)}, dtype {values.dtype}; it returns a real "
            "number, or several, whose change of sign is the event"
        )
    return values.reshape(-1)


@dataclass(frozen=True)
class ConditionLayout(StateLayout):
    """A state's layout that takes a condition's values ``start`` to ``start + n`` where f's derivative would be."""

    start: int = 0

    @staticmethod
    def like(layout: StateLayout, start: int = 0) -> ConditionLayout:
        """For states of ``layout``."""
        return ConditionLayout(layout.treespec, layout.leaves, layout.n, layout.dtype, layout.device, start)

    def flatten_derivative(self, dy: Any) -> Tensor:
        """The values, padded with zeros to ``(n,)``."""
        values = _checked(dy)[self.start : self.start + self.n].to(self.dtype)
        if len(values) == self.n:
            return values
        return torch.cat([values, torch.zeros(self.n - len(values), dtype=self.dtype, device=values.device)])


def build_condition(
    condition: Callable[[Tensor, Any], Tensor], layout: StateLayout, y0: Any, t0: float, size: int
) -> list[RightHandSide]:
    """A condition of ``size`` values as right-hand sides: as many as hold them, ``layout.n`` values each."""
    return [
        build_rhs(condition, y0, t0, layout=ConditionLayout.like(layout, start)) for start in range(0, size, layout.n)
    ]
