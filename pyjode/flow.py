"""Continuous normalising flows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pyjode.divergence import checked_noise, sum_rows
from pyjode.door import door
from pyjode.errors import InputError
from pyjode.integrals import WithIntegrals, regularizers, with_integrals
from pyjode.rhs.explain import Explanation, explain
from pyjode.sensealgs import SenseAlg
from pyjode.solve import ODEProblem, solve


class CNF(nn.Module):
    """Carries points, and the logarithm of their density, along dy/dt = f(t, y): d log p/dt = -tr(df/dy).

    At ``t0`` is the base distribution, at ``t1`` the data.

    Source: Chen et al., "Neural ordinary differential equations", NeurIPS 2018, section 4; Grathwohl et al.,
    "FFJORD: free-form continuous dynamics for scalable reversible generative models", ICLR 2019. ``regularize``:
    Finlay et al., "How to train your neural ODE", ICML 2020.

    Args:
        f: the dynamics, ``f(t, y)`` of points of shape ``(B, ...)``; a module's parameters become this layer's. The
            rows of the batch must not depend on each other (no batch normalisation).
        t: the time span ``(t0, t1)``.
        divergence: ``"hutchinson"``, an unbiased estimate at the cost of one more sweep, or ``"exact"``, one sweep for
            each entry of a row.
        noise: of the estimate, ``"rademacher"`` or ``"gaussian"``; drawn anew for each solve, one for all of it.
        regularize: ``"kinetic"``, ``"jacobian"`` or both: see :class:`pyjode.NeuralODE`.
        method: the solver (see :func:`pyjode.methods`).
        sensealg: how gradients are computed (see :mod:`pyjode.sensealgs`).
        options: further keyword arguments of :func:`pyjode.solve`.

    Raises:
        InputError: an argument that cannot be used.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))
        >>> flow = CNF(lambda t, y: net(y), divergence="exact", engine="torchdiffeq")
        >>> base = torch.distributions.Normal(torch.zeros(2), torch.ones(2))
        >>> loss = -flow.log_prob(torch.randn(8, 2), base).mean()
        >>> samples = flow.sample(base, 100)
    """

    def __init__(
        self,
        f: Callable[[Tensor, Tensor], Tensor],
        t: tuple[float, float] = (0.0, 1.0),
        *,
        divergence: str = "hutchinson",
        noise: str = "rademacher",
        regularize: str | Iterable[str] | None = None,
        method: str | None = None,
        sensealg: str | SenseAlg | None = None,
        **options: Any,
    ):
        super().__init__()
        if divergence not in ("hutchinson", "exact"):
            raise InputError(f"divergence={divergence!r}; it is 'hutchinson' or 'exact'")
        if len(t) != 2 or float(t[0]) == float(t[1]):
            raise InputError(f"t={t!r}; it is a time span (t0, t1)")
        self.t = (float(t[0]), float(t[1]))
        self.regularize = regularizers(regularize)
        self.f = f
        self.divergence = divergence
        self.noise = checked_noise(noise)
        self.method = method
        self.sensealg = sensealg
        self.options = options

    @property
    def dynamics(self) -> WithIntegrals:
        """What is solved: f with the integrals along its solution."""
        integrals = ("divergence", *self.regularize)
        return with_integrals(self, integrals, exact=self.divergence == "exact", noise=self.noise)

    def forward(self, y: Tensor, log_p: Tensor | None = None) -> Any:
        """From the base to the data.

        Args:
            y: points at ``t0``, shape ``(B, ...)``.
            log_p: the logarithm of their density, shape ``(B,)``; zeros if left out.

        Returns:
            The points at ``t1``, shaped like ``y``, and the logarithm of their density, shape ``(B,)``; with
            ``regularize``, third, a dict of the integrals along the way, each of shape ``(B,)``.

        Raises:
            InputError, SolverError, UnsupportedError, EngineUnavailable: as :func:`pyjode.solve`.
        """
        return self._carry(y, log_p, self.t)

    def inverse(self, y: Tensor, log_p: Tensor | None = None) -> Any:
        """From the data to the base: :meth:`forward`, backwards."""
        return self._carry(y, log_p, self.t[::-1])

    def log_prob(self, x: Tensor, base: Any) -> Any:
        """The logarithm of the density of data ``x`` under the flow, an estimate where the divergence is one.

        Args:
            x: points at ``t1``, shape ``(B, ...)``.
            base: distribution at ``t0``, with a ``log_prob`` of a number a row, or of one an entry, which are summed.

        Returns:
            Shape ``(B,)``; with ``regularize``, a pair: that, and a dict of the integrals.

        Raises:
            InputError, SolverError, UnsupportedError, EngineUnavailable: as :func:`pyjode.solve`.
        """
        z, gained, *integrals = self.inverse(x)
        at_base = base.log_prob(z)
        if at_base.shape == z.shape and z.ndim > 1:
            at_base = sum_rows(at_base)
        if at_base.shape != gained.shape:
            raise InputError(
                f"base.log_prob has shape {tuple(at_base.shape)} for points of shape {tuple(z.shape)}; it must be one "
                "number a row, or one an entry"
            )
        log_p = at_base - gained
        return (log_p, *integrals) if integrals else log_p

    @door
    def sample(self, base: Any, n: int) -> Tensor:
        """``n`` points at ``t1`` from points drawn from ``base`` (``base.sample((n,))``); differentiable in f.

        Raises:
            InputError, SolverError, UnsupportedError, EngineUnavailable: as :func:`pyjode.solve`.
        """
        return self._solve(self.f, base.sample((n,)), self.t)

    def explain(self, y: Tensor) -> Explanation:
        """Which way the flow's dynamics go to the solver, and why: :func:`pyjode.explain`."""
        return explain(self.dynamics, self.dynamics.start(y), self.t[0])

    @door
    def _carry(self, y: Tensor, log_p: Tensor | None, t: tuple[float, ...]) -> Any:
        # The integral of the divergence is what log p loses.
        start = self.dynamics.start(y, **({} if log_p is None else {"divergence": -log_p}))
        end = self._solve(self.dynamics, start, t)
        # Integrals of squares are positive, whichever way time runs.
        sign = 1 if t[1] > t[0] else -1
        carried = end["y"], -end["divergence"]
        return (*carried, {name: sign * end[name] for name in self.regularize}) if self.regularize else carried

    def _solve(self, f: Callable[..., Any], start: Any, t: tuple[float, ...]) -> Any:
        times = torch.tensor(t, dtype=torch.float64)
        solution = solve(
            ODEProblem(f, start, (t[0], t[1])),
            self.method,
            saveat=times,
            sensealg=self.sensealg,
            **({"dense": False} | self.options),
        )
        if isinstance(solution.ys, Tensor):
            return solution.ys[-1]
        return {name: y[-1] for name, y in solution.ys.items()}

    def extra_repr(self) -> str:
        how = f"divergence={self.divergence!r}" + (f", regularize={self.regularize}" if self.regularize else "")
        return f"t={self.t}, {how}, method={self.method!r}, sensealg={self.sensealg!r}"
