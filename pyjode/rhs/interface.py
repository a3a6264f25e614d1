"""What an engine needs of a right-hand side, however f reaches it.

Everything here is flat: the state is one vector ``u`` of shape ``(n,)`` (:class:`pyjode.state.StateLayout`), the
parameters are a tuple of tensors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from pyjode.state import StateLayout

Way = Literal["native", "traced", "eager"]


class RightHandSide(ABC):
    """du/dt = f(t, u) of one problem.

    Attributes:
        way: ``"native"`` (compiled to Julia), ``"traced"`` (a torch graph, called back) or ``"eager"`` (f itself,
            called back).
        reason: one sentence for the user: why this way and not a faster one.
        layout: the state's layout; ``u`` has shape ``(layout.n,)`` and dtype ``layout.dtype``.
        params: the tensors that receive gradients, in the order every ``params`` argument and gradient has here.
        depends_on_time: whether f uses ``t``; ``True`` when unknown.
        unused: which of :attr:`params`, by number, f was seen not to use.
    """

    way: ClassVar[Way]
    reason: str
    layout: StateLayout
    params: tuple[Tensor, ...]
    depends_on_time: bool = True
    unused: frozenset[int] = frozenset()

    @abstractmethod
    def f(self, t: Float[Tensor, ""], u: Float[Tensor, " n"], params: tuple[Tensor, ...]) -> Float[Tensor, " n"]:
        """du/dt, shape ``(n,)``, contiguous.

        Args:
            t: time, shape ``()``, dtype ``layout.dtype``.
            u: state, shape ``(n,)``. The memory is the solver's: it may change after the call returns.
            params: values to use for :attr:`params`.
        """

    @abstractmethod
    def vjp_u(
        self, t: Float[Tensor, ""], u: Float[Tensor, " n"], v: Float[Tensor, " n"], params: tuple[Tensor, ...]
    ) -> Float[Tensor, " n"]:
        """v^T df/du, shape ``(n,)``, contiguous; ``v`` has shape ``(n,)``."""

    @abstractmethod
    def vjp_p(
        self, t: Float[Tensor, ""], u: Float[Tensor, " n"], v: Float[Tensor, " n"], params: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """v^T df/dp for each parameter, shaped and typed like it."""

    @abstractmethod
    def vjp_up(
        self, t: Float[Tensor, ""], u: Float[Tensor, " n"], v: Float[Tensor, " n"], params: tuple[Tensor, ...]
    ) -> tuple[Float[Tensor, " n"], tuple[Tensor, ...]]:
        """:meth:`vjp_u` and :meth:`vjp_p` at the price of one."""

    @abstractmethod
    def jacobian(
        self, t: Float[Tensor, ""], u: Float[Tensor, " n"], params: tuple[Tensor, ...]
    ) -> Float[Tensor, "n n"]:
        """df/du, shape ``(n, n)``; entry ``[i, j]`` is df_i/du_j."""

    @abstractmethod
    def jacobian_blocks(
        self, t: Float[Tensor, ""], u: Float[Tensor, " n"], params: tuple[Tensor, ...]
    ) -> Float[Tensor, "B d d"]:
        """df/du of a batched state that :attr:`batch_size` says is block diagonal, shape ``(B, d, d)``:
        entry ``[b, i, j]`` is df_(b,i)/du_(b,j), with ``n = B d``."""

    @property
    @abstractmethod
    def batch_size(self) -> int | None:
        """B, when the state is one tensor of shape ``(B, ...)`` and no row's derivative depends on another row;
        else ``None``. Found by evaluating f, once."""

    @abstractmethod
    def time_gradient(
        self, t: Float[Tensor, ""], u: Float[Tensor, " n"], params: tuple[Tensor, ...]
    ) -> Float[Tensor, " n"]:
        """df/dt, shape ``(n,)``, contiguous."""
