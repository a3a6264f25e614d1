"""A right-hand side whose calls are Julia code: no Python inside the solve."""

from __future__ import annotations

import functools
from typing import ClassVar

from torch import Tensor

from pyjode.rhs.graphs import Untraceable
from pyjode.rhs.interface import RightHandSide, Way
from pyjode.rhs.lower import NativeSource, NotLowerable, lower, lower_second, lower_stages
from pyjode.rhs.trace import TracedRHS

STAGES_FROM = 2**14
"""So many parameter entries, at least, for the vjps of all stages at once: what no longer fits the nearest cache."""
STAGES_PER_STATE = 16
"""So many for each entry of the state, at least: what f keeps for all stages must be little beside them."""
STAGES_REUSE = 4
"""So many multiplications for each, at most."""


class NativeRHS(RightHandSide):
    """A traced right-hand side with its Julia source.

    The engine that has Julia runs the source; called from Python (the embedded engine, a check of gradients) it is the
    traced graph it was made of.

    Attributes:
        traced: the graphs.
        source: what they were lowered to.
    """

    way: ClassVar[Way] = "native"

    def __init__(self, traced: TracedRHS):
        """
        Raises:
            NotLowerable: f has something that has no Julia code; use the traced way.
        """
        self.traced = traced
        self.source: NativeSource = lower(traced)
        self.reason = "every operator of f and of its derivative has Julia code"
        self.layout = traced.layout
        self.params = traced.params
        self.depends_on_time = traced.depends_on_time
        self.unused = traced.unused
        self._stages: dict[int, NativeSource | None] = {}

    @functools.cached_property
    def second_source(self) -> NativeSource | str:
        """Second-order products, for the discrete adjoint of a Rosenbrock method, lowered when first asked for; or why
        there are none."""
        try:
            return lower_second(self.traced)
        except (NotLowerable, Untraceable, RuntimeError, NotImplementedError) as e:
            return str(e)

    def stages_source(self, count: int) -> NativeSource | None:
        """The parameters' vjps at ``count`` stages at once, lowered when first asked for; ``None`` where one a stage is
        as good.

        Vjps of few rows are as fast as the gradient's memory is read and written. All stages of a step at once go
        through it once, but go forwards through f once more: not for few parameters, nor where each meets many rows.
        """
        source = self.source
        few = source.np < max(STAGES_FROM, STAGES_PER_STATE * source.n)
        if count < 1 or few or source.multiplications > STAGES_REUSE * source.np:
            return None
        if count not in self._stages:
            try:
                self._stages[count] = lower_stages(self.traced, count)
            except (NotLowerable, Untraceable, RuntimeError, NotImplementedError):
                self._stages[count] = None
        return self._stages[count]

    def f(self, t: Tensor, u: Tensor, params: tuple[Tensor, ...]) -> Tensor:
        return self.traced.f(t, u, params)

    def vjp_u(self, t: Tensor, u: Tensor, v: Tensor, params: tuple[Tensor, ...]) -> Tensor:
        return self.traced.vjp_u(t, u, v, params)

    def vjp_p(self, t: Tensor, u: Tensor, v: Tensor, params: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return self.traced.vjp_p(t, u, v, params)

    def vjp_up(self, t: Tensor, u: Tensor, v: Tensor, params: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self.traced.vjp_up(t, u, v, params)

    def jacobian(self, t: Tensor, u: Tensor, params: tuple[Tensor, ...]) -> Tensor:
        return self.traced.jacobian(t, u, params)

    def jacobian_blocks(self, t: Tensor, u: Tensor, params: tuple[Tensor, ...]) -> Tensor:
        return self.traced.jacobian_blocks(t, u, params)

    @property
    def batch_size(self) -> int | None:
        return self.traced.batch_size

    def time_gradient(self, t: Tensor, u: Tensor, params: tuple[Tensor, ...]) -> Tensor:
        return self.traced.time_gradient(t, u, params)
