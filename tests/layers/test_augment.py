"""Augmented neural ODEs (Dupont, Doucet, Teh 2019)."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pyjode import InputError, NeuralODE


def test_zeros_are_appended_to_the_last_dimension(engine):
    layer = NeuralODE(lambda t, y: torch.zeros_like(y), augment=2, engine=engine)
    y0 = torch.randn(3, 4)
    torch.testing.assert_close(layer(y0), torch.cat([y0, torch.zeros(3, 2)], 1))
    assert layer(torch.randn(5)).shape == (7,)


def test_channels_of_images(engine):
    conv = nn.Conv2d(4, 4, 3, padding=1)
    layer = NeuralODE(lambda t, y: conv(y), augment=3, augment_dim=1, engine=engine)
    image = torch.randn(2, 1, 5, 5, requires_grad=True)
    out = layer(image)
    assert out.shape == (2, 4, 5, 5)
    out.sum().backward()
    assert image.grad.shape == image.shape and conv.weight.grad.any()


def test_what_no_flow_of_one_dimension_can_do(engine):
    """Swapping -1 and 1 takes trajectories that cross; with one more dimension they go round each other."""
    swap = torch.tensor([[0.0, -torch.pi], [torch.pi, 0.0]], dtype=torch.float64)
    layer = NeuralODE(lambda t, y: y @ swap.T, augment=1, engine=engine, rtol=1e-9, atol=1e-9)
    y0 = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    torch.testing.assert_close(layer(y0)[:, :1], -y0, rtol=1e-6, atol=1e-6)


def test_gradients_and_save_times(engine):
    torch.manual_seed(0)
    net = nn.Linear(3, 3).double()
    times = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)
    options = {"engine": engine, "rtol": 1e-9, "atol": 1e-9}
    layer = NeuralODE(lambda t, y: torch.tanh(net(y)), times, augment=1, **options)
    y0 = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    ys = layer(y0)
    assert ys.shape == (3, 2, 3)
    got = torch.autograd.grad(ys.square().sum(), [y0, *net.parameters()])
    by_hand = NeuralODE(lambda t, y: torch.tanh(net(y)), times, **options)
    ys = by_hand(torch.cat([y0, torch.zeros(2, 1, dtype=y0.dtype)], 1))
    expected = torch.autograd.grad(ys.square().sum(), [y0, *net.parameters()])
    torch.testing.assert_close(got, expected)


def test_errors():
    with pytest.raises(InputError, match="augment is -1"):
        NeuralODE(lambda t, y: y, augment=-1)
    layer = NeuralODE(lambda t, y: y, augment=1, augment_dim=2, engine="torchdiffeq")
    with pytest.raises(InputError, match=r"augment_dim is 2, y0 has shape \(3, 4\)"):
        layer(torch.ones(3, 4))
    with pytest.raises(InputError, match="one tensor, not tuple"):
        layer((torch.ones(3), torch.ones(3)))


def test_repr_and_copies():
    layer = NeuralODE(nn.Linear(3, 3), augment=1, regularize="kinetic")
    assert "augment=1" in repr(layer) and "kinetic" in repr(layer)
    assert layer.dynamics is layer.dynamics
    twin = copy.deepcopy(layer)
    assert twin.dynamics.f is twin.f is not layer.f
    assert set(layer.state_dict()) == {"f.weight", "f.bias"}
