"""The layer that every test here uses as torch users use layers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pyjode import NeuralODE

MakeLayer = Callable[..., NeuralODE]


class Field(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y)


@pytest.fixture
def make_layer(engine: str) -> MakeLayer:
    """The same layer, with the same weights, each time."""

    def make(**options: object) -> NeuralODE:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return NeuralODE(Field(), **({"engine": engine} | options))

    return make


@pytest.fixture
def y0() -> Tensor:
    return torch.tensor([[0.5, -1.0], [1.5, 0.2], [-0.3, 0.8]])


def gradients(layer: nn.Module, *inputs: Tensor) -> list[Tensor]:
    """Of the sum of squares of what the layer gives, by its parameters."""
    layer.zero_grad()
    layer(*inputs).square().sum().backward()
    return [p.grad.clone() for p in layer.parameters()]


@pytest.fixture(name="gradients")
def _gradients() -> Callable[..., list[Tensor]]:
    return gradients
