"""torchdiffeq's door, on both engines: values, gradients, shapes, refusals."""

import itertools
import math

import pytest
import torch
import torchdiffeq
from torch import nn

import pyjode

A = torch.tensor([[-0.1, -1.0], [1.0, -0.1]], dtype=torch.float64)
Y0 = torch.tensor([2.0, 0.0], dtype=torch.float64)


def exact(t):
    """exp(A t) Y0."""
    return torch.stack([torch.linalg.matrix_exp(A * s) @ Y0 for s in t])


class Linear(nn.Module):
    def __init__(self, dtype=torch.float64):
        super().__init__()
        self.a = nn.Parameter(A.to(dtype).clone())

    def forward(self, t, y):
        return self.a @ y


@pytest.mark.parametrize("door", [pyjode.odeint, pyjode.odeint_adjoint])
@pytest.mark.parametrize("direction", [1, -1])
def test_linear_system_and_its_gradients_in_closed_form(engine, door, direction):
    f, y0 = Linear(), Y0.clone().requires_grad_()
    t = (direction * torch.tensor([0.0, 0.3, 1.0, 2.5], dtype=torch.float64)).requires_grad_()
    ys = door(f, y0, t, engine=engine, rtol=1e-9, atol=1e-11)
    assert torch.allclose(ys, exact(t.detach()), atol=1e-8)

    weights = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (weights * ys).sum().backward()
    y0_truth, t_truth, a_truth = (x.detach().clone().requires_grad_() for x in (Y0, t, A))
    closed = torch.stack([torch.linalg.matrix_exp(a_truth * (s - t_truth[0])) @ y0_truth for s in t_truth])
    (weights * closed).sum().backward()
    for found, truth in ((y0.grad, y0_truth.grad), (t.grad, t_truth.grad), (f.a.grad, a_truth.grad)):
        assert torch.allclose(found, truth, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_stays(engine, dtype):
    f, y0 = Linear(dtype), Y0.clone().to(dtype).requires_grad_()
    ys = pyjode.odeint(f, y0, torch.tensor([0.0, 1.0]), engine=engine, rtol=1e-5, atol=1e-6)
    assert ys.dtype == dtype
    ys.sum().backward()
    assert y0.grad.dtype == dtype and f.a.grad.dtype == dtype
    assert torch.allclose(ys[-1].double(), exact([1.0])[0], atol=1e-4)


def test_nested_state(engine):
    def f(t, y):
        return {"x": (-y["x"][0],), "k": y["k"] * 2.0}

    y0 = {"x": (torch.ones(2, 3),), "k": torch.tensor(0.5, dtype=torch.float64)}
    ys = pyjode.odeint(f, y0, torch.tensor([0.0, 0.5, 1.0]), engine=engine, rtol=1e-6, atol=1e-8)
    assert ys["x"][0].shape == (3, 2, 3) and ys["x"][0].dtype == torch.float32
    assert ys["k"].shape == (3,) and ys["k"].dtype == torch.float64
    assert torch.allclose(ys["k"][-1], 0.5 * torch.exp(torch.tensor(2.0, dtype=torch.float64)), rtol=1e-5)


def test_complex_state(engine):
    ys = pyjode.odeint(
        lambda t, z: 1j * z, torch.ones(1, dtype=torch.complex128), torch.tensor([0.0, math.pi]), engine=engine
    )
    assert ys.dtype == torch.complex128
    assert abs(ys[-1, 0] - (-1)) < 1e-6


def test_a_single_time_is_the_initial_state(engine):
    y0 = Y0.clone().requires_grad_()
    ys = pyjode.odeint(Linear(), y0, torch.tensor([0.0]), engine=engine)
    assert ys.shape == (1, 2)
    ys.sum().backward()
    assert torch.equal(y0.grad, torch.ones(2, dtype=torch.float64))


def test_first_row_is_y0_exactly(engine):
    assert torch.equal(pyjode.odeint(Linear(), Y0, torch.tensor([0.5, 1.0]), engine=engine)[0], Y0)


@pytest.mark.parametrize(
    ("name", "tableau"),
    [
        ("euler", ([0.0], [[]], [1.0])),
        ("midpoint", ([0.0, 0.5], [[], [0.5]], [0.0, 1.0])),
        ("rk4", ([0, 1 / 3, 2 / 3, 1], [[], [1 / 3], [-1 / 3, 1], [1, -1, 1]], [1 / 8, 3 / 8, 3 / 8, 1 / 8])),
    ],
)
def test_fixed_steps_go_from_one_time_to_the_next_like_torchdiffeqs(engine, name, tableau):
    """By hand, from the tableau: the same steps, so the same numbers to rounding."""
    f, t = Linear(), torch.tensor([0.0, 0.1, 0.3, 0.4], dtype=torch.float64)
    c, a, b = tableau
    y, rows = Y0, [Y0]
    with torch.no_grad():
        for t0, t1 in itertools.pairwise(t):
            h, ks = t1 - t0, []
            for ci, ai in zip(c, a, strict=True):
                ks.append(f(t0 + ci * h, y + h * sum((w * k for w, k in zip(ai, ks, strict=True)), 0 * y)))
            y = y + h * sum(w * k for w, k in zip(b, ks, strict=True))
            rows.append(y)
    ys = pyjode.odeint(f, Y0, t, method=name, engine=engine)
    assert torch.allclose(ys, torch.stack(rows), rtol=1e-13, atol=1e-14)


def test_step_size(engine):
    f = Linear()
    coarse, fine = (
        pyjode.odeint(f, Y0, torch.tensor([0.0, 1.0]), method="rk4", options={"step_size": h}, engine=engine)[-1]
        for h in (0.25, 0.125)
    )
    truth = exact([1.0])[0]
    ratio = (coarse - truth).norm() / (fine - truth).norm()
    assert 12 < ratio < 20  # fourth order: 16


def test_agrees_with_torchdiffeq_at_tight_tolerance(engine):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 20), nn.Tanh(), nn.Linear(20, 2)).double()
    y0, t = torch.randn(5, 2, dtype=torch.float64), torch.linspace(0, 1, 4, dtype=torch.float64)

    def f(t, y):
        return net(y) * torch.cos(t)

    ours = pyjode.odeint(f, y0, t, engine=engine, rtol=1e-9, atol=1e-11)
    theirs = torchdiffeq.odeint(f, y0, t, rtol=1e-11, atol=1e-13)
    assert torch.allclose(ours, theirs, rtol=1e-7, atol=1e-9)


def test_closed_over_tensors_get_their_gradients(engine):
    k = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    doubled = 2 * k  # not a leaf
    for door in (pyjode.odeint, pyjode.odeint_adjoint):
        k.grad = None
        ys = door(
            lambda t, y: -doubled * y, torch.ones(1, dtype=torch.float64), torch.tensor([0.0, 1.0]), engine=engine
        )
        ys[-1].sum().backward(retain_graph=True)
        assert torch.allclose(k.grad, torch.tensor(-2 * math.exp(-1.4), dtype=torch.float64), rtol=1e-6)


def test_adjoint_params_are_all_that_is_differentiated_by(engine):
    f = Linear()
    extra = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    ys = pyjode.odeint_adjoint(
        lambda t, y: f(t, y) * extra, Y0, torch.tensor([0.0, 1.0]), adjoint_params=(extra,), engine=engine
    )
    ys.sum().backward()
    assert extra.grad is not None and f.a.grad is None


def good(**changes):
    return {"func": Linear(), "y0": Y0, "t": torch.tensor([0.0, 1.0])} | changes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (good(t=torch.tensor([])), "t is empty"),
        (good(t=torch.tensor([0.0, 2.0, 1.0])), "strictly increasing or decreasing"),
        (good(t=torch.tensor([0.0, 1.0, 1.0])), "repeated"),
        (good(t=torch.tensor([0, 1])), "int64"),
        (good(t=[0.0, 1.0]), "not a torch tensor"),
        (good(t=torch.tensor([0.0, math.nan])), "NaN"),
        (good(t=torch.tensor(1.0)), "one-dimensional"),
        (good(y0=torch.tensor([1, 2])), "int64"),
        (good(y0=torch.tensor([1.0, math.nan], dtype=torch.float64)), "NaN"),
        (good(func=lambda t, y: y[:1]), r"shape \(1,\)"),
        (good(func=lambda t, y: y.float()), "float32"),
        (good(func=lambda t, y: None), "NoneType"),
        (good(func=3), "cannot be called"),
        (good(func=lambda t, y: torch.empty(2, dtype=y.dtype, device="meta")), "meta"),
        (good(method="dopri6"), "dopri5"),
        (good(engine="jax"), "engine"),
        (good(rtol=-1.0), "rtol"),
        (good(rtol=torch.ones(5)), "does not fit"),
        (good(method="rk4", options={"step_size": 0.0}), "positive"),
    ],
)
def test_refusals(engine, arguments, message):
    with pytest.raises(pyjode.InputError, match=message):
        pyjode.odeint(**({"engine": engine} | arguments))


def test_unknown_options_are_named(engine):
    with pytest.raises(pyjode.UnsupportedError, match="frobnicate"):
        pyjode.odeint(Linear(), Y0, torch.tensor([0.0, 1.0]), options={"frobnicate": 1}, engine=engine)


def test_an_exception_in_f_comes_out_as_itself(engine):
    class MyError(Exception):
        pass

    def f(t, y):
        if t > 0.5:
            raise MyError("from f")
        return -y

    with pytest.raises(MyError, match="from f"):
        pyjode.odeint(f, Y0, torch.tensor([0.0, 1.0]), engine=engine)


def test_blow_up(engine):
    with pytest.raises(pyjode.SolverError) as caught:
        pyjode.odeint(
            lambda t, y: y**2, torch.ones(1, dtype=torch.float64), torch.tensor([0.0, 2.0]), engine=engine,
            options={"max_num_steps": 2000},
        )  # fmt: skip
    assert caught.value.retcode in ("DtLessThanMin", "Unstable", "MaxIters")
    assert 0.9 < caught.value.t < 1.1 or math.isnan(caught.value.t)


def test_too_many_steps(engine):
    with pytest.raises(pyjode.SolverError, match="MaxIters") as caught:
        pyjode.odeint(
            lambda t, y: torch.stack([y[1], -1e4 * y[0]]), Y0, torch.tensor([0.0, 100.0]), engine=engine,
            options={"max_num_steps": 50},
        )  # fmt: skip
    assert caught.value.retcode == "MaxIters"
