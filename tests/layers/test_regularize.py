"""Kinetic energy and Jacobian norm along the solution (Finlay et al. 2020)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pyjode import InputError, NeuralODE

BOTH = ("kinetic", "jacobian")
TIGHT = {"rtol": 1e-9, "atol": 1e-9}


class Field(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.net = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 2)).double()

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y) * (1 + t)


@pytest.fixture
def y0() -> Tensor:
    return torch.tensor([[0.5, -1.0], [1.5, 0.2], [-0.3, 0.8]], dtype=torch.float64)


def linear(a: Tensor, **options: object) -> NeuralODE:
    return NeuralODE(lambda t, y: y @ a.T, **(TIGHT | options))


@pytest.mark.parametrize("t", [(0.0, 0.8), (0.8, 0.0)], ids=["forwards", "backwards"])
def test_against_the_closed_form(engine, y0, t):
    """y' = a y: |f|^2 integrates to a (e^(2aT) - 1) / 2 |y0|^2, and the Jacobian is a, exactly, for a rotation too."""
    a = 0.7 * torch.eye(2, dtype=torch.float64)
    y1, found = linear(a, t=t, regularize=BOTH, engine=engine)(y0)
    change = torch.tensor(0.7 * (t[1] - t[0]), dtype=torch.float64)
    torch.testing.assert_close(y1, y0 * change.exp(), rtol=1e-6, atol=1e-8)
    kinetic = y0.square().sum(1) * 0.7 * ((2 * change).exp() - 1).abs() / 2
    torch.testing.assert_close(found["kinetic"], kinetic, rtol=1e-6, atol=1e-8)
    # Rademacher noise has no variance where the Jacobian is diagonal.
    torch.testing.assert_close(found["jacobian"], torch.full((3,), 0.8 * 2 * 0.49, dtype=torch.float64))


def test_the_state_is_what_it_is_without(engine, y0):
    field = Field()
    plain = NeuralODE(field, engine=engine, **TIGHT)(y0)
    y1, found = NeuralODE(field, engine=engine, regularize=BOTH, **TIGHT)(y0)
    torch.testing.assert_close(y1, plain, rtol=1e-7, atol=1e-8)
    assert set(found) == set(BOTH) and all(x.shape == (3,) for x in found.values())


@pytest.mark.parametrize("noise", ["rademacher", "gaussian"])
def test_jacobian_estimate_is_unbiased(noise, y0):
    """The mean over many rows that are the same point is the squared Frobenius norm."""
    a = torch.tensor([[0.3, -0.8], [0.5, 0.1]], dtype=torch.float64)
    rows = y0[:1].repeat(4000, 1)
    torch.manual_seed(0)
    _, found = linear(a, regularize="jacobian", noise=noise, engine="torchdiffeq", rtol=1e-4)(rows)
    estimates = found["jacobian"]
    error = estimates.std() / len(rows) ** 0.5
    assert abs(estimates.mean() - a.square().sum()) < 4 * error


def loss_of(layer: NeuralODE, y0: Tensor) -> Tensor:
    torch.manual_seed(5)  # the same noise each time
    y1, found = layer(y0)
    return y1.sum() + 0.3 * found["kinetic"].sum() + 0.2 * found["jacobian"].sum()


@pytest.mark.parametrize("sensealg", [None, "BacksolveAdjoint"])
def test_gradients_against_finite_differences(engine, y0, sensealg):
    layer = NeuralODE(Field(), engine=engine, regularize=BOTH, sensealg=sensealg, **TIGHT)
    y0.requires_grad_()
    weight = layer.f.net[0].weight
    by_y, by_w = torch.autograd.grad(loss_of(layer, y0), [y0, weight])
    step = 1e-4
    with torch.no_grad():
        for x, gradient in ((y0, by_y), (weight, by_w)):
            direction = torch.randn_like(x)
            losses = []
            for sign in (1, -1):
                x += sign * step * direction
                losses.append(loss_of(layer, y0))
                x -= sign * step * direction
            difference = (losses[0] - losses[1]) / (2 * step)
            torch.testing.assert_close((gradient * direction).sum(), difference, rtol=1e-5, atol=1e-6)


def test_two_solves_before_a_backward_pass_keep_their_noise(engine, y0):
    layer = NeuralODE(Field(), engine=engine, regularize="jacobian", **TIGHT)
    alone = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        layer.zero_grad()
        layer(y0)[1]["jacobian"].sum().backward()
        alone.append(layer.f.net[0].weight.grad.clone())
    layer.zero_grad()
    together = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        together.append(layer(y0)[1]["jacobian"].sum())
    sum(together).backward()
    torch.testing.assert_close(layer.f.net[0].weight.grad, alone[0] + alone[1])
    assert not torch.equal(*alone)


def test_goes_to_julia_natively(y0):
    explanation = NeuralODE(Field(), regularize=BOTH).explain(y0)
    assert explanation.way == "native", explanation.reason


def test_save_times(engine, y0):
    times = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    ys, found = NeuralODE(Field(), times, engine=engine, regularize="kinetic", **TIGHT)(y0)
    y1, whole = NeuralODE(Field(), engine=engine, regularize="kinetic", **TIGHT)(y0)
    assert ys.shape == (3, 3, 2)
    torch.testing.assert_close((ys[-1], found["kinetic"]), (y1, whole["kinetic"]), rtol=1e-6, atol=1e-8)


def test_a_state_of_one_row(engine):
    _, found = NeuralODE(Field(), engine=engine, regularize=BOTH)(torch.ones(2, dtype=torch.float64))
    assert found["kinetic"].shape == found["jacobian"].shape == ()


def test_augmented_and_regularized(engine):
    net = nn.Linear(3, 3)
    layer = NeuralODE(lambda t, y: net(y), augment=1, regularize=BOTH, engine=engine)
    y1, found = layer(torch.randn(4, 2))
    assert y1.shape == (4, 3) and found["kinetic"].shape == (4,)


class Square(torch.autograd.Function):
    """Without setup_context: torch.func does not know it."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, v):
        (x,) = ctx.saved_tensors
        return 2 * x * v


def test_f_that_torch_func_does_not_know(engine, y0):
    y0.requires_grad_()
    found = []
    for square in (Square.apply, torch.square):
        layer = NeuralODE(lambda t, y, square=square: -0.2 * square(y), engine=engine, regularize=BOTH, **TIGHT)
        torch.manual_seed(0)
        y1, integrals = layer(y0)
        loss = y1.sum() + integrals["jacobian"].sum() + integrals["kinetic"].sum()
        found.append((loss.detach(), *torch.autograd.grad(loss, y0)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-8)


def test_errors(y0):
    with pytest.raises(InputError, match="'energy'; choose from 'kinetic', 'jacobian'"):
        NeuralODE(Field(), regularize="energy")
    with pytest.raises(InputError, match="noise='white'"):
        NeuralODE(Field(), noise="white")
    with pytest.raises(InputError, match="one real tensor"):
        NeuralODE(Field(), regularize="kinetic", engine="torchdiffeq")((y0, y0))


def test_each_layer_has_its_own_integrals_whatever_f_is_shared(engine, y0):
    """And a layer whose regularizers or noise change follows."""
    field = Field()
    one = NeuralODE(field, regularize="kinetic", engine=engine, **TIGHT)
    two = NeuralODE(field, regularize="jacobian", noise="gaussian", engine=engine, **TIGHT)
    assert set(one(y0)[1]) == {"kinetic"} and set(two(y0)[1]) == {"jacobian"} and set(one(y0)[1]) == {"kinetic"}
    kinetic = one(y0)[1]["kinetic"]
    assert one.dynamics is one.dynamics
    one.regularize = BOTH
    _, found = one(y0)
    assert set(found) == set(BOTH)
    torch.testing.assert_close(found["kinetic"], kinetic, rtol=1e-6, atol=1e-8)
    one.noise = "gaussian"
    assert one.dynamics.noise == "gaussian"
