"""torchdiffeq's ``odeint_dense``: a solve that returns the solution as a function of time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pyjode.door import door
from pyjode.engines import choose_engine
from pyjode.errors import InputError
from pyjode.odeint import _request
from pyjode.sensealgs import SenseAlg
from pyjode.solve import adjoint_for, differentiable_dense_output, raise_on_failure, run


class DenseOutput:
    """The solution of an initial value problem between its two ends, as a function of time.

    Attributes:
        t0, t1: where it begins and ends, float64.
    """

    def __init__(self, t0: float, t1: float, states: Callable[[Tensor], Any]):
        self.t0 = t0
        self.t1 = t1
        self._states = states

    def __call__(self, t: float | Float[Tensor, ""] | Float[Tensor, " m"]) -> Any:
        """The state at ``t``, by the method's own interpolant; differentiable in y0, every parameter and ``t``.

        Args:
            t: a time, or times of shape ``(m,)``.

        Returns:
            The nest that ``y0`` was; with times of shape ``(m,)`` each tensor has a leading axis of length ``m``.

        Raises:
            InputError: a time outside the solved span, or of another shape.
        """
        times = torch.as_tensor(t, dtype=torch.float64).cpu()
        if times.ndim > 1:
            raise InputError(f"dense output takes a time or times of shape (m,), not {tuple(times.shape)}")
        low, high = sorted((self.t0, self.t1))
        values = times.detach()
        if not bool(((values >= low) & (values <= high)).all()):
            raise InputError(f"dense output holds between t = {low:.6g} and {high:.6g} only")
        return self._states(times)

    def __repr__(self) -> str:
        return f"DenseOutput(t0={self.t0:g}, t1={self.t1:g})"


@door
def odeint_dense(
    func: Callable[..., Any],
    y0: Any,
    t0: float | Float[Tensor, ""],
    t1: float | Float[Tensor, ""],
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: dict[str, Any] | None = None,
    sensealg: str | SenseAlg | None = None,
    engine: str | None = None,
) -> DenseOutput:
    """Solve dy/dt = func(t, y), y(t0) = y0 once, for evaluation at any time between ``t0`` and ``t1``.

    torchdiffeq has it for ``dopri5`` and a state of one tensor, forwards in time; the embedded engine also takes nests
    and goes backwards, the Julia engine takes every method.

    Args:
        func, y0, rtol, atol, method, options, sensealg, engine: as :func:`pyjode.odeint`.
        t0, t1: numbers or tensors of shape ``()``; ``t0`` may require grad (on the Julia engine).

    Returns:
        :class:`DenseOutput`: call it with a time. On the Julia engine a call that is differentiable solves again.

    Raises:
        InputError, SolverError, UnsupportedError, EngineUnavailable: as :func:`pyjode.solve`.
    """
    start, end = (torch.as_tensor(t, dtype=torch.float64).reshape(()) for t in (t0, t1))
    chosen = choose_engine(engine)
    request, ts = _request(func, y0, torch.stack([start, end.detach()]), rtol, atol, method, options, None)
    adjoint = adjoint_for(
        chosen.name,
        request.method,
        request.steps,
        request.layout.dtype,
        request.tolerances.rtol,
        request.tolerances.atol,
        sensealg,
        None,
        None,
        None,
    )
    request = replace(request, adjoint=adjoint, dense=True)
    answer = run(chosen, request, y0, ts)
    raise_on_failure(answer, request)
    assert answer.interpolate is not None
    layout, interpolate = request.layout, answer.interpolate
    again = answer.us.requires_grad and chosen.name == "julia"

    def states(times: Tensor) -> Any:
        flat = times.reshape(-1)
        # The kept solution is plain numbers; another solve, which saves at these times, is differentiable.
        differentiable = torch.is_grad_enabled() and (again or (chosen.name == "julia" and times.requires_grad))
        us = differentiable_dense_output(chosen, request, y0, ts[:1], flat) if differentiable else interpolate(flat)
        return layout.unflatten(us if times.ndim == 1 else us[0])

    return DenseOutput(float(start.detach()), float(end.detach()), states)
