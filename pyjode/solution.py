"""What a solve returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from pyjode import export
from pyjode.errors import InputError, UnsupportedError
from pyjode.events import EventLog
from pyjode.state import StateLayout


@dataclass(frozen=True)
class Stats:
    """Work counts of a forward solve; ``None`` where the engine does not count it.

    Of independent solves (``batching="independent"``) each is an int64 tensor of shape ``(B,)``.

    Attributes:
        nfe: evaluations of f (finite-difference Jacobians would be in it; pyjode's come from torch and are not).
        naccept, nreject: accepted and rejected steps.
        njacs: Jacobian evaluations.
        nsolve: linear solves.
        nw: factorisations of W = I/(gamma h) - J.
        nnonliniter, nnonlinconvfail: iterations and convergence failures of the nonlinear solver.
    """

    nfe: int | Int64[Tensor, " B"]
    naccept: int | Int64[Tensor, " B"] | None = None
    nreject: int | Int64[Tensor, " B"] | None = None
    njacs: int | Int64[Tensor, " B"] | None = None
    nsolve: int | Int64[Tensor, " B"] | None = None
    nw: int | Int64[Tensor, " B"] | None = None
    nnonliniter: int | Int64[Tensor, " B"] | None = None
    nnonlinconvfail: int | Int64[Tensor, " B"] | None = None

    @staticmethod
    def of(counts: Mapping[str, int | Tensor]) -> Stats:
        """From SciML's names, where f's evaluations are ``nf``."""
        return Stats(nfe=counts["nf"], **{name: n for name, n in counts.items() if name != "nf"})


@dataclass(frozen=True)
class Solution:
    """The solution of an initial value problem.

    Attributes:
        ts: times of the saved states, shape ``(T,)``, float64.
        ys: the saved states: the nest that y0 was, each tensor with a leading axis of length ``T``. Differentiable in
            y0, in every parameter of f and in the times.
        stats: work counts of the forward solve.
        retcode: SciML return code: ``"Success"``, or why the solve stopped (only with ``throw=False``).
        t_reached: the last time the solver reached.
        engine, method: names of what solved it.
        events: the events that happened, where ``events=`` was given.
        julia: Julia's own solution object, where the problem was Julia's (see :mod:`pyjode.diffeqpy`).
    """

    ts: Float64[Tensor, " T"]
    ys: Any
    stats: Stats
    retcode: str
    t_reached: float
    engine: str
    method: str
    _layout: StateLayout = field(repr=False)
    _interpolate: Callable[[Tensor], Tensor] | None = field(repr=False, default=None)
    events: EventLog | None = None
    _t_start: float | None = field(repr=False, default=None)
    julia: Any = field(repr=False, default=None)

    @property
    def success(self) -> bool:
        """Whether the solve reached the end of its time span, or a terminal event."""
        return self.retcode in ("Success", "Terminated")

    def __call__(self, t: float | Tensor) -> Any:
        """Dense output: the state at any time of the solved span, by the method's own interpolant.

        Where the solution is differentiable, so is this, at the price of another solve.

        Args:
            t: a time, or times of shape ``(m,)``.

        Returns:
            The nest that y0 was; with times of shape ``(m,)`` each tensor has a leading axis of length ``m``.

        Raises:
            InputError: a time outside the span, or the state of ``t`` not ``()`` or ``(m,)``.
            UnsupportedError: dense output was switched off (``dense=False``).
        """
        if self._interpolate is None:
            raise UnsupportedError("this solution keeps no dense output: solve with dense=True")
        times = torch.as_tensor(t, dtype=torch.float64)
        if times.ndim > 1:
            raise InputError(f"dense output takes a time or times of shape (m,), not {tuple(times.shape)}")
        start = float(self.ts[0].detach()) if self._t_start is None else self._t_start
        low, high = sorted((start, self.t_reached))
        outside = (times.detach() < low) | (times.detach() > high) | times.detach().isnan()
        if bool(outside.any()):
            raise InputError(f"dense output holds between t = {low:.6g} and {high:.6g} only")
        us = self._interpolate(times.reshape(-1))
        return self._layout.unflatten(us if times.ndim == 1 else us[0])

    def plot(self, ax: Any = None, *, points: int | None = None, **style: Any) -> Any:
        """Draw every entry of the state over time, with matplotlib.

        Args:
            ax: matplotlib axes to draw in; new ones by default.
            points: draw the dense output at that many times, instead of the saved states.
            style: passed to ``ax.plot``.

        Returns:
            The axes; a notebook shows the figure.

        Raises:
            UnsupportedError: matplotlib is not installed; or ``points`` without dense output.
        """
        return export.plot(self, ax, points=points, **style)

    def to_pandas(self) -> Any:
        """The saved states as a pandas DataFrame: a row for each time (index ``t``), a column for each entry.

        Columns are called ``y[0]``, ``y[0,1]``, ...; in a nest ``y.a[0]``, where ``a`` is the key or position.

        Raises:
            UnsupportedError: pandas is not installed.
        """
        return export.to_pandas(self)

    def to_xarray(self) -> Any:
        """The saved states as an xarray Dataset: a variable for each tensor, the first dimension is ``t``.

        ``attrs`` hold the method, the engine, the retcode and the work counts.

        Raises:
            UnsupportedError: xarray is not installed.
        """
        return export.to_xarray(self)
