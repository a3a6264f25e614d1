"""An initial value problem that every library can be given."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyjode.errors import InputError, UnsupportedError

RightHandSide = Callable[[Any, Any, Any], Any]


@dataclass(frozen=True)
class Published:
    """The solution at one time as printed in the literature.

    Attributes:
        t: the time.
        y: the state there, shape of y0.
        rtol: how far a tight solve may be from it, relative to the largest entry of each component's printed value.
    """

    t: float
    y: np.ndarray
    rtol: float


@dataclass(frozen=True)
class Problem:
    """dy/dt = f(t, y, p), y(t0) = y0, with the times at which solutions are compared.

    Attributes:
        name: what to call it in tables.
        make: from an array module (numpy, torch or jax.numpy) to ``f(t, y, p)`` written in its functions; ``None`` for
            a problem that has only torch code (``module``).
        y0: initial state, any shape, float64 (float32 only for the user's own f).
        ts: times to compare at, shape ``(T,)``, increasing, the last one the end of the span.
        params: the parameters p, whose gradients are compared.
        t0: the start.
        stiff: whether explicit methods are hopeless.
        atol: absolute tolerance as a multiple of the relative one.
        source: where the problem and its numbers come from.
        exact: closed form, from times ``(T,)`` to states ``(T, *y0.shape)``.
        published: a value from the literature.
        module: the user's own f(t, y) in torch; a ``make`` beside it is its jax code, with the module's parameters, in
            their order, as p.
        batch: the rows of y0 are samples that do not depend on each other.
        reference: tolerance of the reference; looser for what is too large for 1e-13.
    """

    name: str
    make: Callable[[Any], RightHandSide] | None
    y0: np.ndarray
    ts: np.ndarray
    params: tuple[np.ndarray, ...] = ()
    t0: float = 0.0
    stiff: bool = False
    atol: float = 1.0
    source: str = ""
    exact: Callable[[np.ndarray], np.ndarray] | None = None
    published: Published | None = None
    module: nn.Module | None = field(default=None, repr=False)
    batch: bool = False
    reference: float = 1e-13

    @property
    def t1(self) -> float:
        """The end of the time span."""
        return float(self.ts[-1])

    def in_numpy(self) -> RightHandSide:
        """f(t, y, p) in numpy: the problem's own, or the torch one called without a tape."""
        if self.make is not None and self.module is None:
            return self.make(np)
        module = self.in_torch()

        def f(t: float, y: np.ndarray, p: Any) -> np.ndarray:
            with torch.no_grad():
                y_ = torch.from_numpy(y)
                return module(torch.as_tensor(t, dtype=y_.dtype), y_).numpy()

        return f

    def in_torch(self) -> nn.Module:
        """f(t, y) as a module of its own whose parameters are p."""
        if self.module is not None:
            return copy.deepcopy(self.module)
        return _TorchProblem(self)

    def in_jax(self) -> RightHandSide:
        """f(t, y, p) in jax.

        Raises:
            UnsupportedError: the problem has only torch code.
        """
        if self.make is None:
            raise UnsupportedError(f"{self.name} is given in torch only; jax needs make= in the Problem")
        import jax.numpy

        return self.make(jax.numpy)

    def double(self) -> Problem:
        """The same in float64, for the reference."""
        if self.y0.dtype == np.float64:
            return self
        return dataclasses.replace(
            self,
            y0=self.y0.astype(np.float64),
            params=tuple(p.astype(np.float64) for p in self.params),
            module=None if self.module is None else copy.deepcopy(self.module).double(),
        )


class _TorchProblem(nn.Module):
    def __init__(self, problem: Problem):
        super().__init__()
        assert problem.make is not None
        self.f = problem.make(torch)
        self.p = nn.ParameterList([nn.Parameter(torch.tensor(p)) for p in problem.params])

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.f(t, y, tuple(self.p))


class _Called(nn.Module):
    """A plain function as a module, with the tensors it depends on."""

    def __init__(self, f: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.f = f

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.f(t, y)


def torch_problem(
    f: nn.Module | Callable[[Tensor, Tensor], Tensor],
    y0: Tensor,
    ts: Tensor | np.ndarray,
    *,
    t0: float = 0.0,
    name: str = "f",
    stiff: bool = False,
    atol: float = 1.0,
    make: Callable[[Any], RightHandSide] | None = None,
    batch: bool = False,
) -> Problem:
    """A problem from the user's own f(t, y) in torch.

    Args:
        f: the right-hand side; the parameters of a module are what gradients are compared for. It is copied.
        y0: initial state, one tensor, float32 or float64.
        ts: times to compare at, shape ``(T,)``, increasing, after ``t0``.
        t0: the start.
        name: what to call it in tables.
        stiff: whether to try the stiff methods.
        atol: absolute tolerance as a multiple of the relative one.
        make: from ``jax.numpy`` to the same f(t, y, p) in jax, with the parameters in their order as p.
        batch: the rows of y0 are samples that do not depend on each other.

    Raises:
        InputError: y0 is not one real tensor on the CPU, or ts are not increasing times after t0.
    """
    if not isinstance(y0, Tensor) or y0.dtype not in (torch.float32, torch.float64) or y0.device.type != "cpu":
        raise InputError("compare takes a y0 that is one float32 or float64 tensor on the CPU")
    times = np.asarray(ts.detach() if isinstance(ts, Tensor) else ts, dtype=np.float64)
    if times.ndim != 1 or len(times) == 0 or not (np.diff(np.concatenate([[t0], times])) > 0).all():
        raise InputError(f"ts must be increasing times after t0 = {t0}, shape (T,)")
    module = copy.deepcopy(f) if isinstance(f, nn.Module) else _Called(f)
    return Problem(
        name=name,
        make=make,
        y0=y0.detach().numpy().copy(),
        ts=times,
        params=tuple(p.detach().numpy().copy() for p in module.parameters() if p.requires_grad),
        t0=t0,
        stiff=stiff,
        atol=atol,
        source="the user's own",
        module=module,
        batch=batch,
    )
