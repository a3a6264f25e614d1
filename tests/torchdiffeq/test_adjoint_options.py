"""adjoint_rtol, adjoint_atol, adjoint_method, adjoint_options, adjoint_params. From the further documentation."""

import pytest
import torch
from torch import nn

import pyjode

D = torch.float64
T = torch.tensor([0.0, 0.5, 1.5], dtype=D)


class Field(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([[-0.2, 1.5], [-1.0, 0.1]], dtype=D))
        self.forward_steps, self.backward_steps = [], []

    def forward(self, t, y):
        return torch.tanh(y @ self.w.T) + 0.1 * torch.cos(5 * t)

    def callback_step(self, t0, y0, dt):
        self.forward_steps.append((float(t0), float(dt)))

    def callback_step_adjoint(self, t0, y0, dt):
        self.backward_steps.append((float(t0), float(dt)))


def gradient(engine, **arguments):
    f, y0 = Field(), torch.tensor([1.0, -0.3], dtype=D, requires_grad=True)
    arguments = {"rtol": 1e-6, "atol": 1e-8, "method": "dopri5"} | arguments
    ys = pyjode.odeint_adjoint(f, y0, T, engine=engine, **arguments)
    ys.pow(2).sum().backward()
    return f, torch.cat([y0.grad, f.w.grad.reshape(-1)])


@pytest.fixture(scope="module")
def truth():
    return gradient("torchdiffeq", rtol=1e-10, atol=1e-11)[1]


def test_tolerances_of_the_adjoint(engine, truth):
    loose_f, loose = gradient(engine, adjoint_rtol=1e-2, adjoint_atol=1e-2)
    tight_f, tight = gradient(engine, rtol=1e-8, atol=1e-9, adjoint_rtol=1e-8, adjoint_atol=1e-9)
    assert torch.allclose(tight, truth, rtol=1e-5, atol=1e-6)
    assert len(loose_f.backward_steps) < len(tight_f.backward_steps)
    assert (loose - truth).abs().max() > (tight - truth).abs().max()


def test_the_adjoint_takes_the_forward_tolerances_by_default(engine):
    default = len(gradient(engine)[0].backward_steps)
    given = len(gradient(engine, adjoint_rtol=1e-6, adjoint_atol=1e-8)[0].backward_steps)
    assert default == given


def test_tolerances_for_each_part_of_the_adjoint_state(engine, truth):
    """One for each of (t, y, y's adjoint, *parameters' adjoints); the Julia engine takes the smallest."""
    each = {"adjoint_rtol": (1e-8,) * 4, "adjoint_atol": (1e-2, 1e-9, 1e-9, 1e-9)}
    assert torch.allclose(gradient(engine, rtol=1e-8, atol=1e-9, **each)[1], truth, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["bosh3", "adaptive_heun", "dopri8"])
def test_another_method_for_the_adjoint(engine, truth, method):
    tolerance = 1e-5 if method == "adaptive_heun" else 1e-7
    found = gradient(engine, adjoint_method=method, adjoint_options={}, adjoint_rtol=tolerance, adjoint_atol=tolerance)
    assert torch.allclose(found[1], truth, rtol=1e-2, atol=1e-3)


def test_an_adaptive_forward_and_a_fixed_adjoint(engine, truth):
    if engine == "julia":
        # No step size control in the adjoint of an adaptive solve: refused as untrusted (pyjode.trust).
        with pytest.raises(pyjode.UnsupportedError, match="fixed steps"):
            gradient(engine, adjoint_method="rk4", adjoint_options={"step_size": 0.05})
    else:
        found = gradient(engine, adjoint_method="rk4", adjoint_options={"step_size": 0.05})[1]
        assert torch.allclose(found, truth, rtol=1e-3, atol=1e-4)


def test_a_fixed_forward_and_an_adaptive_adjoint(engine, truth):
    found = gradient(engine, method="rk4", options={"step_size": 0.05}, adjoint_method="dopri5", adjoint_options={})
    assert torch.allclose(found[1], truth, rtol=1e-3, atol=1e-4)


def test_fixed_both_ways(engine, truth):
    f, found = gradient(engine, method="rk4", options={"step_size": 0.05})
    assert torch.allclose(found, truth, rtol=1e-3, atol=1e-4)
    assert all(dt <= 0.05 + 1e-9 for _, dt in f.backward_steps) and len(f.backward_steps) >= 30


@pytest.mark.parametrize("how", ["options", "adjoint_options"])
def test_options_of_the_adjoint(engine, truth, how):
    """Its own, or by default the forward ones."""
    f, found = gradient(engine, **{how: {"max_step": 0.1}})
    assert torch.allclose(found, truth, rtol=1e-3, atol=1e-4)
    assert max(dt for _, dt in f.backward_steps) <= 0.1 + 1e-9
    assert (max(dt for _, dt in f.forward_steps) <= 0.1 + 1e-9) == (how == "options")


def test_step_t_of_the_adjoint(engine, truth):
    f, found = gradient(engine, adjoint_options={"step_t": torch.tensor([0.77, 1.23], dtype=D)})
    assert torch.allclose(found, truth, rtol=1e-3, atol=1e-4)
    starts = {round(t0, 9) for t0, _ in f.backward_steps}
    assert {0.77, 1.23} <= starts


def test_first_step_of_the_adjoint(engine):
    f, _ = gradient(engine, adjoint_options={"first_step": 0.03125})
    assert f.backward_steps[0] == (1.5, 0.03125)


def test_safety_factors_of_the_adjoint(engine, truth):
    few, many = (gradient(engine, adjoint_options={"safety": s})[0].backward_steps for s in (0.9, 0.3))
    assert len(many) > 1.5 * len(few)


def test_norm_is_not_inherited(engine, truth):
    """A forward norm that sees one entry only must not be asked about the adjoint state."""
    _, found = gradient(engine, options={"norm": lambda y: y[0].abs()})
    assert torch.allclose(found, truth, rtol=1e-2, atol=1e-3)


def test_adjoint_params_of_a_plain_function(engine):
    k = torch.tensor(0.7, dtype=D, requires_grad=True)
    other = torch.tensor(1.0, dtype=D, requires_grad=True)
    y0 = torch.ones(1, dtype=D, requires_grad=True)
    f = lambda t, y: -k * other * y  # noqa: E731
    ys = pyjode.odeint_adjoint(f, y0, T, rtol=1e-8, atol=1e-9, adjoint_params=(k,), engine=engine)
    ys[-1].sum().backward()
    assert other.grad is None
    assert torch.allclose(k.grad, -T[-1] * torch.exp(-0.7 * T[-1]), rtol=1e-5)
    assert torch.allclose(y0.grad, torch.exp(-0.7 * T[-1]).reshape(1), rtol=1e-5)


def test_adjoint_params_that_do_not_require_grad(engine):
    f = Field()
    frozen = torch.ones((), dtype=D)
    y0 = torch.ones(2, dtype=D, requires_grad=True)
    ys = pyjode.odeint_adjoint(f, y0, T, adjoint_params=(frozen, f.w), engine=engine)
    ys.sum().backward()
    assert frozen.grad is None and f.w.grad.abs().max() > 0


def test_wrong_options_of_the_adjoint_are_named(engine):
    with pytest.raises(pyjode.UnsupportedError, match="adjoint_options: there is no option 'saefty'"):
        gradient(engine, adjoint_options={"saefty": 0.9})
    with pytest.raises(pyjode.InputError, match="adjoint_options: safety is -1"):
        gradient(engine, adjoint_options={"safety": -1})
    with pytest.warns(UserWarning, match="adjoint_options: dopri5 does not use step_size"):
        gradient(engine, adjoint_options={"step_size": 0.1})
