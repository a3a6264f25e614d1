"""Is the state a batch of independent rows? Then the Jacobian is block diagonal.

Rows are told apart by the bits of their index: any two rows differ in some bit, so 2 log2(B) evaluations, each
disturbing the rows with one value of one bit, see every pair. A disturbance is NaN where that is safe (it spreads
through anything that depends on it), and a random cotangent in the vjp where it is not. Masks (where, max) can hide a
NaN, hence a last check: the blocks reproduce the vjp at two random points.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pyjode.rhs.interface import RightHandSide

_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-8}


def find_batch_size(rhs: RightHandSide, t0: Tensor, u0: Tensor, *, probe_with_nan: bool) -> int | None:
    """B, if the state is one real tensor of shape ``(B, ...)``, B > 1, whose rows do not see each other; else ``None``.

    Args:
        rhs: whose f, vjp_u and jacobian_blocks are evaluated.
        t0, u0: a point at which f can be evaluated.
        probe_with_nan: whether f may be called with NaN (a traced graph may; f itself might loop or keep the NaN).
    """
    layout = rhs.layout
    shape = layout.leaves[0].shape
    if not layout.is_single_tensor or len(shape) < 1 or shape[0] < 2:
        return None
    size = shape[0]
    with torch.no_grad():
        independent = _independent_by_nan if probe_with_nan else _independent_by_vjp
        if independent(rhs, t0, u0, size) and _blocks_reproduce_vjp(rhs, t0, u0, size):
            return size
    return None


def _groups(size: int, device: torch.device) -> Iterator[Tensor]:
    """Masks over the rows such that any two rows are told apart in both directions."""
    rows = torch.arange(size, device=device)
    for bit in range((size - 1).bit_length()):
        mask = ((rows >> bit) & 1).bool()
        yield mask
        yield ~mask


def _independent_by_nan(rhs: RightHandSide, t0: Tensor, u0: Tensor, size: int) -> bool:
    base = torch.isnan(rhs.f(t0, u0, rhs.params)).reshape(size, -1)
    for mask in _groups(size, u0.device):
        u = u0.clone().reshape(size, -1)
        u[mask] = torch.nan
        out = torch.isnan(rhs.f(t0, u.reshape(-1), rhs.params)).reshape(size, -1)
        if (out & ~base)[~mask].any():
            return False
    return True


def _independent_by_vjp(rhs: RightHandSide, t0: Tensor, u0: Tensor, size: int) -> bool:
    random = _generator(u0)
    for u in _points(u0, random):
        for mask in _groups(size, u0.device):
            v = torch.randn(u0.shape, generator=random, dtype=u0.dtype, device=u0.device).reshape(size, -1)
            v[~mask] = 0
            if rhs.vjp_u(t0, u, v.reshape(-1), rhs.params).reshape(size, -1)[~mask].any():
                return False
    return True


def _blocks_reproduce_vjp(rhs: RightHandSide, t0: Tensor, u0: Tensor, size: int) -> bool:
    random = _generator(u0)
    for u in _points(u0, random):
        v = torch.randn(u0.shape, generator=random, dtype=u0.dtype, device=u0.device)
        want = rhs.vjp_u(t0, u, v, rhs.params)
        blocks = rhs.jacobian_blocks(t0, u, rhs.params)
        got = torch.einsum("bi,bij->bj", v.reshape(size, -1), blocks).reshape(-1)
        scale = want.abs().nan_to_num().max().item()
        tolerance = _TOLERANCE[u0.dtype]
        if not torch.allclose(got, want, rtol=tolerance, atol=tolerance * scale, equal_nan=True):
            return False
    return True


def _points(u0: Tensor, random: torch.Generator) -> list[Tensor]:
    noise = [torch.randn(u0.shape, generator=random, dtype=u0.dtype, device=u0.device) for _ in range(2)]
    return [u0 + scale * (u0.abs() + 1) * x for scale, x in zip((0.01, 1.0), noise, strict=True)]


def _generator(u0: Tensor) -> torch.Generator:
    # Its own generator: the user's random numbers must not depend on whether a solver asked.
    return torch.Generator(device=u0.device).manual_seed(0)
