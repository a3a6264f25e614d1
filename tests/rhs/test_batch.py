"""Batches of independent rows are found, and nothing else is taken for one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyjode.rhs import build_rhs

from .zoo import DTYPE, MLP, Branching, Conv, Counting, Normalised, state

T = torch.tensor(0.3, dtype=DTYPE)


@pytest.mark.parametrize("way", ["traced", "eager"])
@pytest.mark.parametrize("size", [2, 5, 100])
def test_rows_of_an_mlp(way: str, size: int) -> None:
    f = MLP()
    y = state(size, 2)
    rhs = build_rhs(f, y, 0.3, way=way)
    assert rhs.batch_size == size
    blocks = rhs.jacobian_blocks(T, y.reshape(-1), rhs.params)
    assert blocks.shape == (size, 2, 2)
    for b in (0, size - 1):
        want = torch.autograd.functional.jacobian(lambda row: f(T, row), y[b])
        torch.testing.assert_close(blocks[b], want)


def test_conv_rows() -> None:
    rhs = build_rhs(Conv(), state(3, 2, 4, 4), 0.3)
    assert rhs.batch_size == 3
    u = state(3, 2, 4, 4).reshape(-1)
    full = rhs.jacobian(T, u, rhs.params).reshape(3, 32, 3, 32)
    blocks = rhs.jacobian_blocks(T, u, rhs.params)
    for b in range(3):
        torch.testing.assert_close(blocks[b], full[b, :, b])


def couples(t: Tensor, y: Tensor) -> Tensor:
    return y - y.mean(0, keepdim=True)


def couples_two_rows(t: Tensor, y: Tensor) -> Tensor:
    return torch.cat([y[:-1], (y[-1:] + y[2:3])])


def couples_behind_a_mask(t: Tensor, y: Tensor) -> Tensor:
    return y * torch.where(torch.isnan(y), torch.zeros_like(y), y).sum(0, keepdim=True)


def couples_by_roll(t: Tensor, y: Tensor) -> Tensor:
    return y + torch.roll(y, 1, 0).nan_to_num() ** 2


@pytest.mark.parametrize("f", [couples, couples_two_rows, couples_behind_a_mask, couples_by_roll])
@pytest.mark.parametrize("way", ["traced", "eager"])
def test_coupled_rows(f: Any, way: str) -> None:
    rhs = build_rhs(f, state(9, 2), 0.3, way=way)
    assert rhs.way == way
    assert rhs.batch_size is None


@pytest.mark.parametrize("y0", [state(2), state(1, 2), (state(3, 2),), state(3, 2, dtype=torch.complex128)])
def test_no_batch(y0: Any) -> None:
    f = nn.Tanh()
    rhs = build_rhs(lambda t, y: torch.utils._pytree.tree_map(f, y), y0, 0.3)
    if isinstance(y0, Tensor) and y0.dim() == 1:
        assert rhs.batch_size == 2  # rows of one entry: a diagonal Jacobian
    else:
        assert rhs.batch_size in (None, 3) if isinstance(y0, tuple) else rhs.batch_size is None


def test_f_that_changes_state_is_not_probed() -> None:
    f = Normalised()
    rhs = build_rhs(f, state(4, 3), 0.3)
    before = f.norm.running_mean.clone()
    assert rhs.batch_size is None
    assert torch.equal(f.norm.running_mean, before)
    counting = Counting()
    assert build_rhs(counting, state(4, 2), 0.3).batch_size is None
    assert counting.nfe == 0


def test_branching_f_is_never_given_nan() -> None:
    class Careful(Branching):
        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            assert not torch.isnan(y).any()
            return super().forward(t, y)

    assert build_rhs(Careful(), state(4, 2), 0.3).batch_size == 4
