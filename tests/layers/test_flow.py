"""Divergences and continuous normalising flows (Chen et al. 2018; Grathwohl et al. 2019)."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pyjode import CNF, InputError, WithIntegrals, odeint
from pyjode.divergence import draw_noise, exact_divergence, hutchinson_divergence

TIGHT = {"rtol": 1e-9, "atol": 1e-9}


class Field(nn.Module):
    def __init__(self, d: int = 2) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.net = nn.Sequential(nn.Linear(d, 6), nn.Tanh(), nn.Linear(6, d)).double()

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y) * (1 + t)


@pytest.fixture
def x() -> Tensor:
    return torch.tensor([[0.5, -1.0], [1.5, 0.2], [-0.3, 0.8]], dtype=torch.float64)


def standard(d: int = 2) -> torch.distributions.Distribution:
    return torch.distributions.Normal(torch.zeros(d, dtype=torch.float64), torch.ones(d, dtype=torch.float64))


@settings(max_examples=15, deadline=None)
@given(shape=st.sampled_from([(3,), (1,), (2, 3), (1, 2), (4, 2, 2), (2, 10), (2, 3, 4)]), seed=st.integers(0, 99))
def test_divergences_against_the_jacobian(shape, seed):
    torch.manual_seed(seed)
    y = torch.randn(shape, dtype=torch.float64)
    t = torch.tensor(0.3, dtype=torch.float64)
    d = y.numel() if y.ndim < 2 else y[0].numel()
    weight = torch.randn(d, d, dtype=torch.float64)

    def f(t, y):
        return torch.sin(y.reshape(-1, d) @ weight * t).reshape(y.shape)

    rows = y.reshape(-1, d)
    jacobians = [torch.autograd.functional.jacobian(lambda row: f(t, row), row) for row in rows]
    traces = torch.stack([j.trace() for j in jacobians]).reshape(shape[:1] if len(shape) > 1 else ())
    dy, trace = exact_divergence(f, t, y)
    torch.testing.assert_close((dy, trace), (f(t, y), traces))

    noise = draw_noise(y)
    assert noise.shape == y.shape and set(noise.unique().tolist()) <= {-1.0, 1.0}
    dy, estimate, swept = hutchinson_divergence(f, t, y, noise)
    by_row = [n @ j for n, j in zip(noise.reshape(-1, d), jacobians, strict=True)]
    torch.testing.assert_close(swept.reshape(-1, d), torch.stack(by_row))
    expected = torch.stack([v @ n for v, n in zip(by_row, noise.reshape(-1, d), strict=True)])
    torch.testing.assert_close((dy, estimate.reshape(-1)), (f(t, y), expected))


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_hutchinson_is_unbiased(kind):
    torch.manual_seed(0)
    a = torch.tensor([[0.3, -0.8], [0.5, 0.1]], dtype=torch.float64)
    y = torch.ones(5000, 2, dtype=torch.float64)
    noise = draw_noise(y, kind)
    _, estimate, _ = hutchinson_divergence(lambda t, y: y @ a.T, torch.tensor(0.0), y, noise)
    assert abs(estimate.mean() - 0.4) < 4 * estimate.std() / math.sqrt(5000)


def test_density_of_a_linear_flow(engine, x):
    """y' = a y carries a normal distribution to one with covariance e^A e^A^T."""
    a = torch.tensor([[0.3, -0.8], [0.5, 0.1]], dtype=torch.float64)
    flow = CNF(lambda t, y: y @ a.T, (0.0, 0.7), divergence="exact", engine=engine, **TIGHT)
    m = torch.matrix_exp(0.7 * a)
    there = torch.distributions.MultivariateNormal(torch.zeros(2, dtype=torch.float64), m @ m.T)
    torch.testing.assert_close(flow.log_prob(x, standard()), there.log_prob(x), rtol=1e-6, atol=1e-7)


def test_there_and_back(engine, x):
    flow = CNF(Field(), divergence="exact", engine=engine, **TIGHT)
    log_p = torch.tensor([0.1, -2.0, 3.0], dtype=torch.float64)
    y, carried = flow(x, log_p)
    back, log_p_back = flow.inverse(y, carried)
    torch.testing.assert_close((back, log_p_back), (x, log_p), rtol=1e-6, atol=1e-7)
    assert not torch.allclose(carried, log_p, atol=1e-2)


def test_the_density_is_normalised():
    """In one dimension the density of a flow integrates to one."""
    flow = CNF(Field(1), divergence="hutchinson", engine="torchdiffeq", rtol=1e-6, atol=1e-8)
    grid = torch.linspace(-12, 12, 600, dtype=torch.float64)
    with torch.no_grad():
        density = flow.log_prob(grid[:, None], standard(1)).exp()  # one entry a row: the estimate is exact
    assert torch.trapezoid(density, grid) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
@pytest.mark.parametrize("sensealg", [None, "BacksolveAdjoint"])
def test_gradients_against_finite_differences(divergence, sensealg, engine, x):
    field = Field()
    flow = CNF(field, divergence=divergence, engine=engine, sensealg=sensealg, **TIGHT)

    def loss():
        torch.manual_seed(3)
        return -flow.log_prob(x, standard()).mean()

    weight = field.net[0].weight
    (gradient,) = torch.autograd.grad(loss(), weight)
    direction, step, losses = torch.randn_like(weight), 1e-4, []
    with torch.no_grad():
        for sign in (1, -1):
            weight += sign * step * direction
            losses.append(loss())
            weight -= sign * step * direction
    torch.testing.assert_close((gradient * direction).sum(), (losses[0] - losses[1]) / (2 * step), rtol=1e-5, atol=1e-6)


def test_mean_of_the_estimate_is_the_exact_density(x):
    field = Field()
    exact = CNF(field, divergence="exact", engine="torchdiffeq")(x[:1])[1]
    flow = CNF(field, engine="torchdiffeq")
    torch.manual_seed(0)
    with torch.no_grad():
        estimates = flow(x[:1].repeat(3000, 1))[1]
    assert abs(estimates.mean() - exact) < 4 * estimates.std() / math.sqrt(3000)


def test_sample_has_the_density(engine):
    flow = CNF(lambda t, y: 0.5 * y, engine=engine)
    torch.manual_seed(0)
    samples = flow.sample(standard(), 4000)
    assert samples.shape == (4000, 2)
    assert samples.std() == pytest.approx(math.exp(0.5), rel=0.03)


def test_regularized_flow(engine, x):
    flow = CNF(Field(), regularize=("kinetic", "jacobian"), engine=engine)
    log_p, found = flow.log_prob(x, standard())
    assert log_p.shape == found["kinetic"].shape == found["jacobian"].shape == (3,)
    assert (found["kinetic"] > 0).all()
    assert len(flow(x)) == 3


def test_goes_to_julia_natively(x):
    for flow in (CNF(Field(), divergence="exact"), CNF(Field(), regularize=("kinetic", "jacobian"))):
        explanation = flow.explain(x)
        assert explanation.way == "native", explanation.reason


def test_names_of_parameters():
    assert {name.split(".")[0] for name in CNF(Field()).state_dict()} == {"f"}


def test_by_hand_with_odeint(engine, x):
    """The dynamics alone, for users of odeint."""
    field = Field()
    dynamics = WithIntegrals(field, ("divergence",), exact=True)
    ys = odeint(dynamics, dynamics.start(x), torch.tensor([0.0, 1.0]), engine=engine)
    y, log_p = CNF(field, divergence="exact", engine=engine, **TIGHT)(x)
    torch.testing.assert_close((ys["y"][-1], -ys["divergence"][-1]), (y, log_p), rtol=1e-5, atol=1e-6)


def test_errors(x):
    with pytest.raises(InputError, match="'hutchinson' or 'exact'"):
        CNF(Field(), divergence="trace")
    with pytest.raises(InputError, match="time span"):
        CNF(Field(), (1.0, 1.0))
    with pytest.raises(InputError, match="integrals holds 'entropy'"):
        WithIntegrals(Field(), ("entropy",))
    flow = CNF(Field(), engine="torchdiffeq")
    with pytest.raises(InputError, match="one number a row"):
        flow(x, torch.zeros(2, dtype=torch.float64))
    with pytest.raises(InputError, match=r"log_prob has shape"):
        flow.log_prob(x, torch.distributions.Normal(torch.zeros(4, 1, 1), 1.0))
