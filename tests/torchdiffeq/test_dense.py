"""odeint_dense: one solve, then the state at any time in between."""

import pytest
import torch
import torchdiffeq

import pyjode

D = torch.float64
Y0 = torch.tensor([0.7, 0.3], dtype=D)


def f(t, y):
    return torch.sin(3 * t) * y - y**2


@pytest.fixture(scope="module")
def truth():
    t = torch.linspace(0.0, 2.0, 9, dtype=D)
    return t, torchdiffeq.odeint(f, Y0, t, rtol=1e-12, atol=1e-13)


def test_values(engine, truth):
    t, ys = truth
    y = pyjode.odeint_dense(f, Y0, t[0], t[-1], rtol=1e-9, atol=1e-11, engine=engine)
    assert torch.allclose(y(t), ys, atol=1e-7)
    assert torch.allclose(torch.stack([y(s) for s in t]), ys, atol=1e-7)
    assert torch.allclose(y(float(t[3])), ys[3], atol=1e-7) and y(t[3]).shape == (2,)
    assert torch.equal(y(0.0), Y0)


def test_the_embedded_engine_is_torchdiffeqs(truth):
    t0, t1 = truth[0][0], truth[0][-1]
    ours = pyjode.odeint_dense(f, Y0, t0, t1, engine="torchdiffeq")
    theirs = torchdiffeq.odeint_dense(f, Y0, t0, t1)
    for s in (0.1, 0.77, 1.9):
        assert torch.equal(ours(s), theirs(torch.tensor(s, dtype=D)))


def test_backwards(engine):
    g = lambda t, y: torch.cos(t) * y  # noqa: E731
    y = pyjode.odeint_dense(g, Y0, 2.0, 0.5, rtol=1e-9, atol=1e-11, engine=engine)
    t = torch.tensor([2.0, 1.3, 0.5], dtype=D)
    assert torch.allclose(y(t), Y0 * torch.exp(torch.sin(t) - torch.sin(t[0]))[:, None], atol=1e-7)


def test_a_nest(engine):
    y = pyjode.odeint_dense(
        lambda t, y: {"a": -y["a"], "b": (y["b"][0] * 2,)},
        {"a": torch.ones(3, dtype=D), "b": (torch.ones(1, 2, dtype=D),)},
        0.0,
        1.0,
        rtol=1e-9,
        atol=1e-11,
        engine=engine,
    )
    out = y(torch.tensor([0.25, 0.5], dtype=D))
    assert out["a"].shape == (2, 3) and out["b"][0].shape == (2, 1, 2)
    assert torch.allclose(out["b"][0][1], torch.exp(torch.ones(1, 2, dtype=D)), atol=1e-7)


def test_gradients(engine):
    k = torch.tensor(1.5, dtype=D, requires_grad=True)
    y0 = torch.tensor([0.5], dtype=D, requires_grad=True)
    y = pyjode.odeint_dense(lambda t, y: -k * y, y0, 0.0, 2.0, rtol=1e-10, atol=1e-12, engine=engine)
    s = torch.tensor([0.4, 1.2], dtype=D, requires_grad=True)
    by_y0, by_k, by_s = torch.autograd.grad(y(s).sum(), (y0, k, s))
    decay = torch.exp(-k * s).detach()
    assert torch.allclose(by_y0, decay.sum().reshape(1), rtol=1e-6)
    assert torch.allclose(by_k, -(0.5 * s * decay).sum(), rtol=1e-6)
    assert torch.allclose(by_s, -1.5 * 0.5 * decay, rtol=1e-5)


@pytest.mark.parametrize("t", [-0.1, 2.1, float("nan"), torch.zeros(1, 1)])
def test_times_that_cannot_be_asked_for(engine, t):
    y = pyjode.odeint_dense(f, Y0, 0.0, 2.0, engine=engine)
    with pytest.raises(pyjode.InputError, match="dense output"):
        y(t)


def test_other_methods_and_options(engine):
    y = pyjode.odeint_dense(
        f, Y0, 0.0, 2.0, rtol=1e-8, atol=1e-8, method="bosh3", options={"max_step": 0.05}, engine=engine
    )
    reference = torchdiffeq.odeint(f, Y0, torch.tensor([0.0, 1.1], dtype=D), rtol=1e-11, atol=1e-12)[-1]
    assert torch.allclose(y(1.1), reference, atol=1e-6)
    assert repr(y) == "DenseOutput(t0=0, t1=2)"


def test_a_failed_solve_raises(engine):
    with pytest.raises(pyjode.SolverError):
        pyjode.odeint_dense(lambda t, y: y**2, torch.ones(1, dtype=D), 0.0, 2.0, engine=engine)
