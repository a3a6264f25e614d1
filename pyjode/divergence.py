"""The divergence of f, tr(df/dy), exactly or by an unbiased estimate, and what it shares a sweep with.

Everything here is per row: the first dimension of a state with two or more dimensions is the batch, whose rows must
not depend on each other; a state of one dimension is one row.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyjode.errors import InputError

NOISES = ("rademacher", "gaussian")
# Up to this many, one sweep each is quicker than one batched sweep.
_FEW = 8


def exact_divergence(f: Callable[[Tensor, Tensor], Tensor], t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """f(t, y) and tr(df/dy), by one reverse sweep for each entry of a row.

    Args:
        f: dynamics whose rows do not depend on each other.
        t: time, shape ``()``.
        y: state, shape ``(B, ...)`` or ``(d,)``.

    Returns:
        ``f(t, y)``, shaped like ``y``, and the trace, shape ``(B,)`` (``()`` for one row).

    Source: Chen et al., "Neural ordinary differential equations", NeurIPS 2018, theorem 1.
    """
    dy, pullback = vjp(f, t, y)
    rows = _rows(y)
    d = rows.shape[1]
    # One cotangent serves an entry of every row: entry [i] of the basis is the i-th unit vector in each.
    basis = torch.eye(d, dtype=y.dtype, device=y.device).unsqueeze(1).expand(d, *rows.shape).reshape(d, *y.shape)
    swept = _each(pullback, basis).reshape(d, *rows.shape)
    return dy, torch.diagonal(swept, dim1=0, dim2=2).sum(-1).reshape(_row_shape(y))


def hutchinson_divergence(
    f: Callable[[Tensor, Tensor], Tensor], t: Tensor, y: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """f(t, y) and an unbiased estimate of tr(df/dy), noise^T (df/dy) noise, by one reverse sweep.

    Args:
        f, t, y: as in :func:`exact_divergence`.
        noise: shaped like ``y``, of mean zero and unit covariance; the same for all of a solve, or the solver chases
            noise (:func:`draw_noise`).

    Returns:
        ``f(t, y)``; the estimate, shape ``(B,)``; and ``noise^T df/dy``, shaped like ``y``.

    Source: Hutchinson, "A stochastic estimator of the trace of the influence matrix", 1990; Grathwohl et al.,
    "FFJORD", ICLR 2019, section 3.1.
    """
    dy, pullback = vjp(f, t, y)
    swept = pullback(noise)
    return dy, sum_rows(swept * noise), swept


def draw_noise(y: Tensor, kind: str = "rademacher") -> Tensor:
    """Noise for :func:`hutchinson_divergence`, shaped like ``y``, from torch's generator.

    Args:
        y: state.
        kind: ``"rademacher"`` (plus or minus one: of the least variance) or ``"gaussian"``.

    Raises:
        InputError: another kind.
    """
    if checked_noise(kind) == "gaussian":
        return torch.randn_like(y, requires_grad=False)
    return torch.empty_like(y, requires_grad=False).bernoulli_().mul_(2).sub_(1)


def checked_noise(kind: str) -> str:
    """
    Raises:
        InputError: there is no such noise.
    """
    if kind not in NOISES:
        raise InputError(f"noise={kind!r}; it is one of {', '.join(map(repr, NOISES))}")
    return kind


def sum_rows(x: Tensor) -> Tensor:
    """The sum of each row: shape ``(B,)`` for ``(B, ...)``, ``()`` for one row."""
    return _rows(x).sum(1).reshape(_row_shape(x))


def vjp(f: Callable[[Tensor, Tensor], Tensor], t: Tensor, y: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """f(t, y), and the function v -> v^T df/dy; both differentiable again.

    By torch.func, which graphs can be traced of; where f has something that torch.func does not know (a
    ``torch.autograd.Function`` without ``setup_context``), by autograd.
    """
    try:
        dy, pullback, *_ = torch.func.vjp(lambda y: f(t, y), y)
    except RuntimeError as error:
        if "functorch" not in str(error):
            raise
        return _vjp_by_autograd(f, t, y)
    return dy, lambda v: pullback(v)[0]


def _each(pullback: Callable[[Tensor], Tensor], cotangents: Tensor) -> Tensor:
    if len(cotangents) > _FEW:
        # What vmap cannot batch is done one by one.
        with contextlib.suppress(RuntimeError):
            return torch.func.vmap(pullback)(cotangents)
    return torch.stack([pullback(v) for v in cotangents])


def _vjp_by_autograd(f: Callable[[Tensor, Tensor], Tensor], t: Tensor, y: Tensor) -> tuple[Tensor, Any]:
    with torch.enable_grad():
        x = y if y.requires_grad else y.detach().requires_grad_()
        dy = f(t, x)

    def pullback(v: Tensor) -> Tensor:
        if not dy.requires_grad:
            return torch.zeros_like(y)
        with torch.enable_grad():
            (found,) = torch.autograd.grad(dy, x, v, create_graph=True, allow_unused=True)
        return torch.zeros_like(y) if found is None else found

    return dy, pullback


def _rows(x: Tensor) -> Tensor:
    return x.reshape(1, -1) if x.ndim < 2 else x.flatten(1)


def _row_shape(x: Tensor) -> tuple[int, ...]:
    return () if x.ndim < 2 else (x.shape[0],)
