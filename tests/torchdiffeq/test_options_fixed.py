"""Options of the solvers with fixed steps: the same tableaus on the same steps give the same numbers on both engines.

torchdiffeq itself is the truth here; both engines are compared with it, to rounding.
"""

import math

import pytest
import torch
import torchdiffeq
from torch import nn

import pyjode

RUNGE_KUTTA = ["euler", "midpoint", "heun2", "heun3", "rk4"]
ADAMS = ["explicit_adams", "implicit_adams", "fixed_adams"]
T = torch.tensor([0.2, 0.55, 0.9, 1.0, 1.37], dtype=torch.float64)
Y0 = torch.tensor([0.7, -0.4], dtype=torch.float64)


class Field(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([[-0.5, 1.2], [-1.0, 0.3]], dtype=torch.float64))

    def forward(self, t, y):
        return torch.tanh(y @ self.w.T) + torch.sin(3 * t) * y


def gradients(ys, y0, f):
    weights = torch.linspace(-1.0, 2.0, ys.numel(), dtype=ys.dtype).reshape(ys.shape)
    return torch.autograd.grad((weights * ys).sum(), (y0, f.w))


def compare(engine, options, method, t=T):
    """Values and gradients through the steps, ours and torchdiffeq's."""
    f, y0 = Field(), Y0.clone().requires_grad_()
    ours = pyjode.odeint(f, y0, t, method=method, options=dict(options), engine=engine)
    theirs = torchdiffeq.odeint(f, y0, t, method=method, options=dict(options))
    assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-10)
    for a, b in zip(gradients(ours, y0, f), gradients(theirs, y0, f), strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("method", RUNGE_KUTTA)
@pytest.mark.parametrize("interp", ["linear", "cubic"])
def test_step_size_with_save_points_between_steps(engine, method, interp):
    compare(engine, {"step_size": 0.1, "interp": interp}, method)


@pytest.mark.parametrize("method", RUNGE_KUTTA)
def test_from_time_to_time_without_a_step_size(engine, method):
    compare(engine, {}, method)


@pytest.mark.parametrize("direction", [1, -1])
def test_grid_constructor(engine, direction):
    seen = []

    def grid(func, y0, t):
        seen.append((func, y0, t))
        s = torch.linspace(0, 1, 9, dtype=t.dtype)
        return t[0] + (t[-1] - t[0]) * s**2

    compare(engine, {"grid_constructor": grid}, "rk4", t=direction * T)
    for func, y0, t in seen[:1]:
        assert callable(func) and torch.equal(y0.reshape(-1), Y0) and torch.equal(t, direction * T)


def test_grid_constructor_of_a_nested_state_sees_the_nest(engine):
    def grid(func, y0, t):
        assert isinstance(y0, tuple) and y0[0].shape == (2, 1)
        return torch.linspace(0.25, 0.75, 5)

    t = torch.tensor([0.25, 0.75], dtype=torch.float64)
    ys = pyjode.odeint(
        lambda t, y: (-y[0],), (torch.ones(2, 1, dtype=torch.float64),), t, method="rk4",
        options={"grid_constructor": grid}, engine=engine,
    )  # fmt: skip
    assert torch.allclose(ys[0][-1], torch.full((2, 1), math.exp(-0.5), dtype=torch.float64), atol=1e-5)


def test_decreasing_times(engine):
    compare(engine, {"step_size": 0.1}, "heun3", t=T.flip(0))


def test_a_last_step_that_does_not_fit(engine):
    compare(engine, {"step_size": 0.5}, "midpoint")
    compare(engine, {"step_size": 7.0}, "midpoint")


def test_a_step_size_that_fits_but_for_rounding(engine):
    compare(engine, {"step_size": 0.1}, "rk4", t=torch.tensor([0.0, 0.1, 0.3, 0.6, 0.7], dtype=torch.float64))


@pytest.mark.parametrize("door", [pyjode.odeint, pyjode.odeint_adjoint])
def test_single_precision(engine, door):
    f, y0 = Field().float(), Y0.float().requires_grad_()
    ours = door(f, y0, T.float(), method="rk4", options={"step_size": 0.1}, engine=engine)
    theirs = torchdiffeq.odeint(f, y0, T.float(), method="rk4", options={"step_size": 0.1})
    assert ours.dtype == torch.float32
    assert torch.allclose(ours, theirs, atol=1e-5)
    for a, b in zip(gradients(ours, y0, f), gradients(theirs, y0, f), strict=True):
        assert torch.allclose(a, b, rtol=1e-2, atol=1e-3)  # the continuous adjoint: to the steps' own error


@pytest.mark.parametrize("method", ADAMS)
def test_adams_methods_converge_to_the_solution(engine, method):
    """Other formulas and starting steps on each engine, so values agree to the error of the steps only."""
    ends = torch.tensor([0.0, 0.6], dtype=torch.float64)
    truth = torchdiffeq.odeint(Field(), Y0, ends, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        errors = [
            (pyjode.odeint(Field(), Y0, ends, method=method, options={"step_size": h, "max_order": 5}, engine=engine)
             - truth)[-1].abs().max()
            for h in (0.03, 0.015)
        ]  # fmt: skip
    assert errors[1] < 1e-5 and errors[0] / errors[1] > 7


@pytest.mark.parametrize("method", ["explicit_adams", "implicit_adams"])
def test_max_order(engine, method):
    options = {"step_size": 0.03, "max_order": 4}
    ends = torch.tensor([0.0, 0.6], dtype=torch.float64)
    low = pyjode.odeint(Field(), Y0, ends, method=method, options=options, engine=engine)
    high = pyjode.odeint(Field(), Y0, ends, method=method, options={"step_size": 0.03}, engine=engine)
    truth = torchdiffeq.odeint(Field(), Y0, ends, rtol=1e-10, atol=1e-10)
    assert (low - truth)[-1].abs().max() < 1e-3 and not torch.allclose(high[-1], low[-1], rtol=1e-9)
    with pytest.raises(pyjode.InputError, match="at most 12"):
        pyjode.odeint(Field(), Y0, T, method=method, options={"max_order": 13}, engine=engine)


@pytest.mark.parametrize("method", ["explicit_adams", "implicit_adams"])
def test_a_max_order_below_four_is_rk4(engine, method):
    with pytest.warns(UserWarning, match="max_order is below 4"):
        ours = pyjode.odeint(Field(), Y0, T, method=method, options={"step_size": 0.1, "max_order": 3}, engine=engine)
    theirs = torchdiffeq.odeint(Field(), Y0, T, method="rk4", options={"step_size": 0.1})
    assert torch.allclose(ours, theirs, rtol=1e-12)


def test_max_iters_is_allowed(engine):
    options = {"step_size": 0.05, "max_iters": 8}
    ys = pyjode.odeint(Field(), Y0, T, method="implicit_adams", options=options, engine=engine)
    assert torch.isfinite(ys).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step_size": 0.1, "grid_constructor": lambda f, y, t: t}, "exclude each other"),
        ({"step_size": -0.1}, "positive"),
        ({"interp": "quartic"}, "'linear' or 'cubic'"),
        ({"perturb": 1}, "perturb is 1"),
        ({"grid_constructor": 5}, "cannot be called"),
    ],
)
def test_values_that_cannot_be_used(engine, options, message):
    with pytest.raises(pyjode.InputError, match=message):
        pyjode.odeint(Field(), Y0, T, method="rk4", options=options, engine=engine)


@pytest.mark.julia
@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (lambda f, y, t: t[1:], "from t\\[0\\]"),
        (lambda f, y, t: t.flip(0), "strictly"),
        (lambda f, y, t: 3, "vector"),
        (lambda f, y, t: t[:, None], "vector"),
    ],
)
def test_grids_that_cannot_be_used(grid, message):
    """torchdiffeq asserts the ends, and takes or crashes on the rest."""
    with pytest.raises(pyjode.InputError, match=message):
        pyjode.odeint(Field(), Y0, T, method="rk4", options={"grid_constructor": grid}, engine="julia")


def test_an_exception_in_a_grid_constructor_comes_out_as_itself(engine):
    def grid(f, y, t):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        pyjode.odeint(Field(), Y0, T, method="rk4", options={"grid_constructor": grid}, engine=engine)


def test_norm_is_no_matter_to_fixed_steps(engine):
    def norm(y):
        raise AssertionError("called")

    compare(engine, {"step_size": 0.1, "norm": norm}, "rk4")


def test_an_option_of_adaptive_methods_is_ignored_with_a_warning(engine):
    with pytest.warns(UserWarning, match="rk4 does not use safety"):
        pyjode.odeint(Field(), Y0, T, method="rk4", options={"safety": 0.9}, engine=engine)
