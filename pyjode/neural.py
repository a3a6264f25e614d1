"""A neural ODE as a layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pyjode.divergence import checked_noise
from pyjode.door import door
from pyjode.errors import InputError
from pyjode.integrals import WithIntegrals, regularizers, with_integrals
from pyjode.rhs.explain import Explanation, explain
from pyjode.sensealgs import SenseAlg
from pyjode.solve import ODEProblem, solve


class NeuralODE(nn.Module):
    """The layer that maps an initial state to the solution of dy/dt = f(t, y).

    Source: Chen et al., "Neural ordinary differential equations", NeurIPS 2018, section 2. ``augment``: Dupont, Doucet
    and Teh, "Augmented neural ODEs", NeurIPS 2019, section 4. ``regularize``: Finlay et al., "How to train your neural
    ODE: the world of Jacobian and kinetic regularization", ICML 2020, section 4.

    Args:
        f: the dynamics, ``f(t, y)``; a module's parameters become this layer's.
        t: the time span ``(t0, t1)``, or save times of shape ``(T,)`` (learned, if they are an ``nn.Parameter``).
        method: the solver (see :func:`pyjode.methods`).
        sensealg: how gradients are computed (see :mod:`pyjode.sensealgs`).
        augment: append this many zeros to the initial state, a tensor; f works on the longer state, which is also what
            comes out (a linear layer usually follows).
        augment_dim: the dimension they are appended to; 1, the channels, for images.
        regularize: ``"kinetic"`` (the integral of ``|f|^2`` along the solution), ``"jacobian"`` (that of the squared
            Frobenius norm of df/dy, by Hutchinson's estimate) or both, in the same solve, to be added to the loss with
            weights of your choice; :meth:`forward` then returns them beside the state. The state is one tensor, batch
            first, and the rows of the batch do not depend on each other.
        noise: of the estimate, ``"rademacher"`` or ``"gaussian"``; drawn anew for each solve.
        options: further keyword arguments of :func:`pyjode.solve`: ``rtol``, ``atol``, ``dt``, ``adaptive``,
            ``engine``, ``maxiters``, ``adjoint_rtol``, ...

    Raises:
        InputError: times, ``augment`` or ``regularize`` that cannot be used.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
        >>> layer = NeuralODE(lambda t, y: net(y), augment=1, regularize="kinetic", engine="torchdiffeq")
        >>> y1, regularization = layer(torch.randn(8, 2))
        >>> loss = y1.square().mean() + 0.01 * regularization["kinetic"].mean()
    """

    def __init__(
        self,
        f: Callable[..., Any],
        t: tuple[float, float] | Tensor = (0.0, 1.0),
        *,
        method: str | None = None,
        sensealg: str | SenseAlg | None = None,
        augment: int = 0,
        augment_dim: int = -1,
        regularize: str | Iterable[str] | None = None,
        noise: str = "rademacher",
        **options: Any,
    ):
        super().__init__()
        if augment < 0:
            raise InputError(f"augment is {augment}; it is a number of zeros to append")
        self.f = f
        self.augment = augment
        self.augment_dim = augment_dim
        self.regularize = regularizers(regularize)
        self.noise = checked_noise(noise)
        self.method = method
        self.sensealg = sensealg
        self.options = options
        times = t if isinstance(t, Tensor) else torch.as_tensor(t, dtype=torch.float64)
        if times.ndim != 1 or len(times) < 2:
            raise InputError(f"t must be a time span (t0, t1) or save times of shape (T,), not {t!r}")
        self.returns_trajectory = isinstance(t, Tensor)
        # A buffer would be cast by .to(dtype) and be in the state_dict; times are neither weights nor activations.
        self.t = times

    @door
    def forward(self, y0: Any, t: Tensor | None = None) -> Any:
        """Solve from ``y0``.

        Args:
            y0: initial state: a tensor of any shape (batch first by custom), or a nest of tensors.
            t: save times of shape ``(T,)``, instead of the layer's own.

        Returns:
            The state at the end of the layer's time span; with save times (here or in the constructor) the states at
            them, each tensor with a leading axis of length ``T``. With ``regularize``, a pair: that, and a dict of the
            integrals over the whole time span, each of shape ``(B,)``.

        Raises:
            InputError, SolverError, UnsupportedError, EngineUnavailable: as :func:`pyjode.solve`.
        """
        times = self.t if t is None else t
        start = self._start(y0)
        problem = ODEProblem(self.dynamics, start, (times[0], times[-1]))
        solution = solve(
            problem, self.method, saveat=times, sensealg=self.sensealg, **({"dense": False} | self.options)
        )
        ys = solution.ys["y"] if self.regularize else solution.ys
        if t is None and not self.returns_trajectory:
            ys = pytree.tree_map(lambda y: y[-1], ys)
        if not self.regularize:
            return ys
        # Integrals of squares are positive, whichever way time runs.
        sign = 1 if bool(times[-1] > times[0]) else -1
        return ys, {name: sign * solution.ys[name][-1] for name in self.regularize}

    @property
    def dynamics(self) -> Callable[..., Any]:
        """What is solved: ``f``, or with ``regularize`` ``f`` together with its integrals."""
        return with_integrals(self, self.regularize, noise=self.noise) if self.regularize else self.f

    def explain(self, y0: Any) -> Explanation:
        """Which way the layer's dynamics go to the solver, and why: :func:`pyjode.explain`."""
        return explain(self.dynamics, self._start(y0), float(self.t[0].detach()))

    def _start(self, y0: Any) -> Any:
        if self.augment:
            y0 = append_zeros(y0, self.augment, self.augment_dim)
        dynamics = self.dynamics
        return dynamics.start(y0) if isinstance(dynamics, WithIntegrals) else y0

    def extra_repr(self) -> str:
        augment = f", augment={self.augment}, augment_dim={self.augment_dim}" if self.augment else ""
        regularize = f", regularize={self.regularize}" if self.regularize else ""
        return f"t={self.t.tolist()}, method={self.method!r}, sensealg={self.sensealg!r}{augment}{regularize}"


def append_zeros(y0: Any, n: int, dim: int) -> Tensor:
    """``y0`` with ``n`` zeros more along dimension ``dim``.

    Raises:
        InputError: ``y0`` is no tensor, or has no such dimension.
    """
    if not isinstance(y0, Tensor):
        raise InputError(f"augment needs a state that is one tensor, not {type(y0).__name__}")
    if not -y0.ndim <= dim < y0.ndim:
        raise InputError(f"augment_dim is {dim}, y0 has shape {tuple(y0.shape)}")
    shape = list(y0.shape)
    shape[dim] = n
    return torch.cat([y0, y0.new_zeros(shape)], dim)
