"""What is asked of an engine and what it answers: plain data, engine-neutral."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Float64, Real
from torch import Tensor

from pyjode.hash_once import hash_once
from pyjode.methods import Method
from pyjode.sensealgs import DiscreteAdjoint, SenseAlg
from pyjode.state import StateLayout


@dataclass(frozen=True)
class Tolerances:
    """rtol and atol: numbers, or float64 vectors of shape ``(n,)`` with an entry for each entry of the flat state."""

    rtol: float | Tensor
    atol: float | Tensor


@hash_once
@dataclass(frozen=True)
class IntegralController:
    """The step after one of size h and error estimate e: h clamp(safety e^(-1 / (k + 1)), dfactor, ifactor).

    k is the order of the error estimate. torchdiffeq's and diffrax's controller, with torchdiffeq's names and defaults.

    Source: Hairer, Nørsett, Wanner, Solving Ordinary Differential Equations I, II.4.
    """

    safety: float = 0.9
    ifactor: float = 10.0
    dfactor: float = 0.2


@hash_once
@dataclass(frozen=True)
class StepControl:
    """How steps are chosen. ``None``: the method's or the engine's own default.

    Attributes:
        adaptive: whether the step size follows the error estimate.
        dt: the step size of a fixed-step solve, the first step of an adaptive one. A fixed-step solve without it steps
            from save point to save point.
        dtmin, dtmax: bounds of an adaptive step.
        maxiters: most steps tried.
        controller: of the step size.
    """

    adaptive: bool
    dt: float | None = None
    dtmin: float | None = None
    dtmax: float | None = None
    maxiters: int = 100_000
    controller: IntegralController | None = None


@dataclass(frozen=True, eq=False)
class StepOptions:
    """torchdiffeq's further ``options``, checked (:mod:`pyjode.options`). ``None``: not given.

    Attributes:
        step_t: times that must be steps' ends, float64.
        jump_t: the same, where f jumps.
        norm: of the error estimate: takes a state (an adjoint state, for an adjoint solve) and returns a number; or
            ``"seminorm"``.
        grid_constructor: ``(f, y0, t) -> grid``, the steps of a fixed-step solve.
        interp: ``"linear"`` or ``"cubic"`` between the steps of a fixed-step solve; ``None``: the method's own.
        perturb: whether fixed steps see f just inside both ends.
        time_dtype: ``dtype``, ``max_order``, ``max_iters``, ``solver``: as passed, for torchdiffeq.
    """

    step_t: Float64[Tensor, " s"] | None = None
    jump_t: Float64[Tensor, " j"] | None = None
    norm: Callable[..., Any] | str | None = None
    grid_constructor: Callable[..., Any] | None = None
    interp: str | None = None
    perturb: bool = False
    time_dtype: torch.dtype | None = None
    max_order: int | None = None
    max_iters: int | None = None
    solver: str | None = None


@hash_once
@dataclass(frozen=True)
class Adjoint:
    """How gradients are computed.

    Attributes:
        sensealg: the sensitivity algorithm.
        method: solver of the adjoint equation.
        rtol, atol: its tolerances; on the embedded engine whatever torchdiffeq takes.
        steps: its step control.
        options: torchdiffeq's further options of it.
        otherwise: what takes its place where the sensealg, which nobody asked for, is beyond the right-hand side: the
            discrete adjoint of a Rosenbrock method needs second derivatives of f in Julia.
    """

    sensealg: SenseAlg
    method: Method
    rtol: Any
    atol: Any
    steps: StepControl
    options: StepOptions | None = None
    otherwise: Adjoint | None = None

    def with_options(self, options: StepOptions | None) -> Adjoint:
        """The same with ``options`` of the adjoint solve, where there is one."""
        if options is None:
            return self
        if self.otherwise is not None:
            return replace(self, otherwise=self.otherwise.with_options(options))
        return self if isinstance(self.sensealg, DiscreteAdjoint) else replace(self, options=options)


@dataclass(frozen=True)
class Request:
    """One initial value problem and how to solve it.

    Attributes:
        f: the user's right-hand side, ``f(t, y)``.
        layout: of the state ``y``.
        params: tensors to differentiate by besides those found in f, or ``None``.
        exact_params: whether ``params`` are all that is differentiated by (torchdiffeq's ``adjoint_params``).
        method: the solver.
        rhs_way: ``"auto"``, ``"native"``, ``"traced"`` or ``"eager"``.
        save_steps: save every step the solver takes, instead of at given times.
        dense: whether ``Solution(t)`` will be asked for.
        check_gradient: compare each backward pass with a directional finite difference.
        options: torchdiffeq's further options; not ``None`` also asks for its norm of nested states and its callbacks.
    """

    f: Callable[..., Any]
    layout: StateLayout
    params: tuple[Tensor, ...] | None
    exact_params: bool
    method: Method
    tolerances: Tolerances
    steps: StepControl
    adjoint: Adjoint | None
    rhs_way: str = "auto"
    save_steps: bool = False
    dense: bool = False
    check_gradient: bool = False
    options: StepOptions | None = None


@dataclass
class Answer:
    """What a solve gave.

    Attributes:
        ts: times of the saved states, shape ``(T,)``, float64.
        us: saved states, shape ``(T, n)``, or ``(T, *shape)`` of a solve from ``u0`` of that shape; entries that a
            failed solve did not reach are NaN.
        success: whether the end was reached.
        retcode: SciML return code.
        t_reached: the last time reached.
        stats: counts by SciML's names (``nf``, ``naccept``, ``nreject``, ``njacs``, ``nsolve``, ...).
        interpolate: dense output: times ``(m,)`` to states ``(m, n)``; ``None`` where it was not asked for.
    """

    ts: Float64[Tensor, " T"]
    us: Float[Tensor, " T *shape"]
    success: bool
    retcode: str
    t_reached: float
    stats: dict[str, int] = field(default_factory=dict)
    interpolate: Callable[[Tensor], Tensor] | None = None


@dataclass
class IndependentAnswer:
    """What a batch of independent solves gave.

    Attributes:
        us: saved states, shape ``(T, B, n)``; entries that a failed solve did not reach are NaN.
        retcodes: SciML return code of each of the B.
        t_reached: the last time each reached, shape ``(B,)``, float64.
        stats: counts by SciML's names, each of shape ``(B,)``, int64.
    """

    us: Float[Tensor, "T B n"]
    retcodes: tuple[str, ...]
    t_reached: Float64[Tensor, " B"]
    stats: dict[str, Tensor] = field(default_factory=dict)

    @property
    def failed(self) -> list[int]:
        """The samples that did not reach their end."""
        return [b for b, retcode in enumerate(self.retcodes) if retcode != "Success"]


ALL = slice(None)
"""Every time asked for."""


def rows(answer: Answer, saved: slice) -> Answer:
    """The answer at some of its times."""
    return answer if saved is ALL else replace(answer, ts=answer.ts[saved], us=answer.us[saved])


def cpu_times(ts: Real[Tensor, "*any"]) -> Float64[Tensor, "*any"]:
    """Times as engines want them: float64 on the host; differentiable."""
    return ts.to(device="cpu", dtype=torch.float64)
