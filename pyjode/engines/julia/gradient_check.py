"""``check_gradient=True``: each backward pass against a finite difference."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from pyjode.engines.request import Request, Tolerances
from pyjode.trust import UntrustedGradient

Moved = Callable[..., Tensor]
"""``moved(request, u0, *params)``: the states that a solve gives from these."""


@torch.no_grad()
def check_gradient(
    request: Request, moved: Moved, at: tuple[Tensor, ...], cotangents: Tensor, gradients: tuple[Tensor, ...]
) -> None:
    """Warn where a gradient and a central difference of the loss disagree along one random direction.

    The direction is relative to the size of each tensor; the two solves have a thousandth of the tolerances, so that
    their own error does not decide.

    Args:
        request: what was solved.
        moved: solves it again from elsewhere.
        at: u0 and the parameters.
        cotangents: shaped like the states.
        gradients: by each of ``at``.
    """
    random = torch.Generator().manual_seed(0)
    directions = [
        torch.randn(x.shape, generator=random, dtype=x.dtype).to(x.device) * x.abs().mean().clamp(min=1e-3) for x in at
    ]
    step, allowed = (1e-4, 1e-3) if request.layout.dtype == torch.float64 else (1e-2, 5e-2)
    tight = Tolerances(*(torch.as_tensor(x) * 1e-3 for x in (request.tolerances.rtol, request.tolerances.atol)))
    losses = []
    for sign in (1, -1):
        there = [x + sign * step * d for x, d in zip(at, directions, strict=True)]
        states = moved(replace(request, tolerances=tight), *there)
        losses.append(float((states.double() * cotangents.double()).sum()))
    difference = (losses[0] - losses[1]) / (2 * step)
    gradient = sum(float((g.double() * d.double()).sum()) for g, d in zip(gradients, directions, strict=True))
    if not abs(gradient - difference) <= allowed * max(abs(gradient), abs(difference)) + 1e-12:
        adjoint = request.adjoint
        assert adjoint is not None
        warnings.warn(
            f"the gradient of {request.method.name} by {type(adjoint.sensealg).__name__} (adjoint solved by "
            f"{adjoint.method.name}) differs from a finite difference along a random direction: {gradient:.6g} against "
            f"{difference:.6g}. Try tighter adjoint_rtol and adjoint_atol, or another sensealg",
            UntrustedGradient,
            stacklevel=3,
        )
