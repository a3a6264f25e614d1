"""A right-hand side of states on a device (a GPU), seen from the host, where the solver is.

The state crosses to the device for each call and the result comes back; f and its parameters stay where they are.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyjode.rhs.interface import RightHandSide

_HOST = torch.device("cpu")


class HostRHS(RightHandSide):
    """``inner`` for states on the host.

    Attributes:
        inner: the right-hand side on the device; :attr:`params` are its, and stay there.
    """

    def __init__(self, inner: RightHandSide):
        self.inner = inner
        self.way = inner.way  # type: ignore[misc]
        self.reason = inner.reason
        self.layout = replace(inner.layout, device=_HOST)
        self.params = inner.params
        self.depends_on_time = inner.depends_on_time

    def __call__(self, t: Tensor, y: Any) -> Any:
        """As the f(t, y) of a request."""
        return self.layout.unflatten(self.f(t, self.layout.flatten(y), self.params))

    def f(self, t: Tensor, u: Tensor, params: tuple[Tensor, ...]) -> Tensor:
        return self._back(self.inner.f(self._there(t), self._there(u), params))

    def vjp_u(self, t: Tensor, u: Tensor, v: Tensor, params: tuple[Tensor, ...]) -> Tensor:
        return self._back(self.inner.vjp_u(self._there(t), self._there(u), self._there(v), params))

    def vjp_p(self, t: Tensor, u: Tensor, v: Tensor, params: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return self._all_back(self.inner.vjp_p(self._there(t), self._there(u), self._there(v), params))

    def vjp_up(self, t: Tensor, u: Tensor, v: Tensor, params: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        by_u, by_p = self.inner.vjp_up(self._there(t), self._there(u), self._there(v), params)
        return self._back(by_u), self._all_back(by_p)

    def jacobian(self, t: Tensor, u: Tensor, params: tuple[Tensor, ...]) -> Tensor:
        return self._back(self.inner.jacobian(self._there(t), self._there(u), params))

    def jacobian_blocks(self, t: Tensor, u: Tensor, params: tuple[Tensor, ...]) -> Tensor:
        return self._back(self.inner.jacobian_blocks(self._there(t), self._there(u), params))

    @property
    def batch_size(self) -> int | None:
        return self.inner.batch_size

    def time_gradient(self, t: Tensor, u: Tensor, params: tuple[Tensor, ...]) -> Tensor:
        return self._back(self.inner.time_gradient(self._there(t), self._there(u), params))

    def _there(self, x: Tensor) -> Tensor:
        return x.to(self.inner.layout.device)

    def _back(self, x: Tensor) -> Tensor:
        return x.to(_HOST).contiguous()

    def _all_back(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """In one crossing, where they are of one dtype: each costs more than its bytes."""
        if len({x.dtype for x in tensors}) != 1:
            return tuple(map(self._back, tensors))
        flat = self._back(torch.cat([x.reshape(-1) for x in tensors]))
        parts = flat.split([x.numel() for x in tensors])
        return tuple(part.view(x.shape) for part, x in zip(parts, tensors, strict=True))


def on_host(rhs: RightHandSide) -> HostRHS:
    """The one :class:`HostRHS` of ``rhs``."""
    # Kept on it: what an engine remembers of a right-hand side it remembers by object.
    host = vars(rhs).get("_on_host")
    if host is None:
        host = vars(rhs)["_on_host"] = HostRHS(rhs)
    return host
