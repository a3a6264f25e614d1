"""A neural ODE as a layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pyjode.door import door
from pyjode.errors import InputError
from pyjode.sensealgs import SenseAlg
from pyjode.solve import ODEProblem, solve


class NeuralODE(nn.Module):
    """The layer that maps an initial state to the solution of dy/dt = f(t, y).

    Source: Chen et al., "Neural ordinary differential equations", NeurIPS 2018, section 2.

    Args:
        f: the dynamics, ``f(t, y)``; a module's parameters become this layer's.
        t: the time span ``(t0, t1)``, or save times of shape ``(T,)`` (learned, if they are an ``nn.Parameter``).
        method: the solver (see :func:`pyjode.methods`).
        sensealg: how gradients are computed (see :mod:`pyjode.sensealgs`).
        options: further keyword arguments of :func:`pyjode.solve`: ``rtol``, ``atol``, ``dt``, ``adaptive``,
            ``engine``, ``maxiters``, ``adjoint_rtol``, ...

    Example:
        >>> layer = NeuralODE(torch.nn.Linear(2, 2), t=(0.0, 1.0))  # doctest: +SKIP
    """

    def __init__(
        self,
        f: Callable[..., Any],
        t: tuple[float, float] | Tensor = (0.0, 1.0),
        *,
        method: str | None = None,
        sensealg: str | SenseAlg | None = None,
        **options: Any,
    ):
        super().__init__()
        self.f = f
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
            them, each tensor with a leading axis of length ``T``.

        Raises:
            InputError, SolverError, UnsupportedError, EngineUnavailable: as :func:`pyjode.solve`.
        """
        times = self.t if t is None else t
        problem = ODEProblem(self.f, y0, (times[0], times[-1]))
        solution = solve(
            problem, self.method, saveat=times, sensealg=self.sensealg, **({"dense": False} | self.options)
        )
        if t is not None or self.returns_trajectory:
            return solution.ys
        return pytree.tree_map(lambda y: y[-1], solution.ys)

    def extra_repr(self) -> str:
        return f"t={self.t.tolist()}, method={self.method!r}, sensealg={self.sensealg!r}"
