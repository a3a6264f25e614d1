"""torchdiffeq's events (its FURTHER_DOCUMENTATION, "Differentiable event handling"), on both engines."""

from __future__ import annotations

import functools
import math

import pytest
import torch
import torchdiffeq
from torch import nn

from pyjode import odeint, odeint_adjoint, odeint_event
from pyjode.errors import InputError, SolverError

D = torch.float64
ZERO = torch.zeros((), dtype=D)


class Fall(nn.Module):
    """Height and velocity, as a tuple or as one tensor; the ground is at ``level + tilt t``."""

    def __init__(self, tuples=False):
        super().__init__()
        self.g = nn.Parameter(torch.tensor(9.81, dtype=D))
        self.level = nn.Parameter(torch.tensor(0.2, dtype=D))
        self.tilt = nn.Parameter(torch.tensor(0.1, dtype=D))
        self.tuples = tuples

    def forward(self, t, y):
        return (y[1], -self.g * torch.ones_like(y[1])) if self.tuples else torch.stack([y[1], -self.g])

    def ground(self, t, y):
        return y[0] - self.level - self.tilt * t


def impact_time(f, x, v, t0):
    """x + v s - g s^2 / 2 = level + tilt (t0 + s)."""
    rise = v - f.tilt
    return t0 + (rise + torch.sqrt(rise**2 + 2 * f.g * (x - f.level - f.tilt * t0))) / f.g


@pytest.mark.parametrize("interface", [odeint, odeint_adjoint])
@pytest.mark.parametrize("tuples", [False, True])
def test_time_and_state_with_all_gradients_in_closed_form(engine, interface, tuples):
    """By y0, t0, parameters of f and, which torchdiffeq leaves out, parameters of event_fn."""
    f = Fall(tuples)
    x, v, t0 = (torch.tensor(a, dtype=D, requires_grad=True) for a in (1.0, 0.5, 0.3))
    y0 = (x, v) if tuples else torch.stack([x, v])
    event_t, solution = odeint_event(
        f, y0, t0, event_fn=f.ground, odeint_interface=interface, rtol=1e-9, atol=1e-11, engine=engine
    )
    truth_t = impact_time(f, x, v, t0)
    s = truth_t - t0
    truth = [x + v * s - f.g * s**2 / 2, v - f.g * s]
    ends = [solution[0][-1], solution[1][-1]] if tuples else list(solution[-1])
    starts = [solution[0][0], solution[1][0]] if tuples else list(solution[0])
    assert event_t.shape == () and torch.allclose(event_t, truth_t, rtol=0, atol=1e-9)
    assert torch.allclose(torch.stack(ends), torch.stack(truth), atol=1e-8)
    assert torch.equal(torch.stack(starts), torch.stack([x, v]))
    inputs = (x, v, t0, f.g, f.level, f.tilt)
    found = torch.autograd.grad(1.3 * event_t - 0.7 * ends[0] + 0.4 * ends[1], inputs)
    wanted = torch.autograd.grad(1.3 * truth_t - 0.7 * truth[0] + 0.4 * truth[1], inputs)
    for a, b in zip(found, wanted, strict=True):
        assert torch.allclose(a, b, rtol=1e-7, atol=1e-8)


def test_reverse_time(engine):
    """Backwards from t0 = 0.3 the ball comes from the ground: the earlier root."""
    f = Fall()
    y0 = torch.tensor([1.0, 0.5], dtype=D, requires_grad=True)
    t0 = torch.tensor([0.3], dtype=D)
    event_t, _ = odeint_event(f, y0, t0, event_fn=f.ground, reverse_time=True, engine=engine, atol=1e-10)
    rise = y0[1] - f.tilt
    truth = t0[0] + (rise - torch.sqrt(rise**2 + 2 * f.g * (y0[0] - f.level - f.tilt * 0.3))) / f.g
    assert truth < 0.3 and torch.allclose(event_t, truth, rtol=0, atol=1e-8)
    inputs = (y0, f.g, f.level, f.tilt)
    for a, b in zip(torch.autograd.grad(event_t, inputs), torch.autograd.grad(truth, inputs), strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("adjoint", [False, True])
def test_as_torchdiffeq(engine, adjoint):
    """The spiral of its documentation, a nonlinear f; torchdiffeq's gradients of y0 and f are the truth."""
    torch.manual_seed(1)
    f = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).to(D)

    class Dynamics(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = f

        def forward(self, t, y):
            return torch.stack([-y[1], y[0]]) + 0.3 * self.net(y) * torch.cos(t)

    dynamics = Dynamics()

    def event_fn(t, y):
        return torch.stack([y[0] + 0.5, y[1] - 3.0])

    def run(package_event, interface, **extra):
        y0 = torch.tensor([1.0, 0.2], dtype=D, requires_grad=True)
        t, ys = package_event(
            dynamics, y0, ZERO, event_fn=event_fn, odeint_interface=interface, rtol=1e-8, atol=1e-9, **extra
        )
        loss = t + ys[-1] @ torch.tensor([0.3, 1.0], dtype=D)
        return t, ys, torch.autograd.grad(loss, (y0, *f.parameters()))

    ours, theirs = (odeint_adjoint, torchdiffeq.odeint_adjoint) if adjoint else (odeint, torchdiffeq.odeint)
    t, ys, gradients = run(odeint_event, ours, engine=engine)
    t_truth, ys_truth, truth = run(torchdiffeq.odeint_event, theirs)
    # Other steps, other errors: both are right to the tolerance.
    assert torch.allclose(t, t_truth, rtol=0, atol=1e-7)
    assert torch.allclose(ys, ys_truth, atol=1e-7)
    for a, b in zip(gradients, truth, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)


def test_the_first_of_several_event_functions_to_cross(engine):
    y0 = torch.tensor([1.0], dtype=D)

    def f(t, y):
        return -torch.ones_like(y)

    t, _ = odeint_event(f, y0, ZERO, event_fn=lambda t, y: torch.cat([y + 5, 0.4 - y, y]), engine=engine, atol=1e-10)
    assert float(t) == pytest.approx(0.6, abs=1e-9)


def test_odeint_with_event_fn_gives_time_and_solution(engine):
    f, y0 = Fall(), torch.tensor([1.0, 0.5], dtype=D)
    t = torch.tensor([0.0, 123.0], dtype=torch.float32)
    event_t, solution = odeint(f, y0, t, event_fn=f.ground, engine=engine)
    truth = impact_time(f, y0[0], y0[1], ZERO)
    assert event_t.dtype == torch.float32 and solution.shape == (2, 2)
    assert float(event_t.detach()) == pytest.approx(float(truth.detach()), abs=1e-6)
    with pytest.raises(InputError, match="two entries"):
        odeint(f, y0, torch.tensor([0.0, 1.0, 2.0]), event_fn=f.ground, engine=engine)
    with pytest.raises(ValueError, match="two entries"):  # torchdiffeq's class of error
        odeint(f, y0, torch.tensor([0.0]), event_fn=f.ground, engine=engine)


def test_an_event_at_t0(engine):
    y0 = torch.tensor([0.0, -1.0], dtype=D, requires_grad=True)
    t0 = torch.tensor(2.0, dtype=D, requires_grad=True)
    event_t, solution = odeint_event(
        lambda t, y: torch.stack([y[1], 0 * y[1]]), y0, t0, event_fn=lambda t, y: y[0], engine=engine
    )
    assert float(event_t.detach()) == 2.0 and torch.equal(solution[0], solution[1])
    by_y0, by_t0 = torch.autograd.grad(event_t, (y0, t0))
    assert torch.allclose(by_y0, torch.tensor([1.0, 0.0], dtype=D)) and float(by_t0) == pytest.approx(1.0)


def test_fixed_steps(engine):
    f, y0 = Fall(), torch.tensor([1.0, 0.5], dtype=D, requires_grad=True)
    event_t, _ = odeint_event(
        f, y0, ZERO, event_fn=f.ground, method="rk4", options={"step_size": 0.03}, engine=engine, atol=1e-10
    )
    truth = impact_time(f, y0[0], y0[1], ZERO)
    assert float(event_t.detach()) == pytest.approx(float(truth.detach()), abs=1e-8)
    assert torch.allclose(*(torch.autograd.grad(t, y0)[0] for t in (event_t, truth)), atol=1e-7)
    with pytest.raises(InputError, match="step size"):
        odeint_event(f, y0, ZERO, event_fn=f.ground, method="rk4", engine=engine)


def test_no_event(engine):
    def f(t, y):
        return -y

    y0 = torch.ones(1, dtype=D)
    with pytest.raises(SolverError, match="did not cross zero between t = 0 and 5 ") as raised:
        odeint_event(f, y0, ZERO, event_fn=lambda t, y: y + 1, max_time=5.0, engine=engine)
    assert raised.value.retcode == "NoEvent"
    with pytest.raises(SolverError, match="max_num_steps") as raised:
        odeint_event(f, y0, ZERO, event_fn=lambda t, y: y + 1, options={"max_num_steps": 50}, engine=engine)
    assert raised.value.retcode == "MaxIters"
    with pytest.raises(InputError, match="max_time"):
        odeint_event(f, y0, ZERO, event_fn=lambda t, y: y, max_time=-1.0, engine=engine)


def test_an_interface_of_ones_own(engine):
    """A function round ours, and torchdiffeq's own, whose missing gradient of the time is put in."""
    f, y0 = Fall(), torch.tensor([1.0, 0.5], dtype=D, requires_grad=True)
    truth = impact_time(f, y0[0], y0[1], ZERO)
    wanted = torch.autograd.grad(truth, (y0, f.g, f.level))
    for interface in (functools.partial(odeint, engine=engine, atol=1e-10), torchdiffeq.odeint):
        event_t, _ = odeint_event(f, y0, ZERO, event_fn=f.ground, odeint_interface=interface)
        for a, b in zip(torch.autograd.grad(event_t, (y0, f.g, f.level)), wanted, strict=True):
            assert torch.allclose(a, b, rtol=1e-6, atol=1e-7)


def test_bouncing_by_calls_in_turn(engine):
    """torchdiffeq's bouncing ball: one call a bounce, the time and state of each handed on; the fifth bounce."""
    f = Fall()
    with torch.no_grad():
        f.level.zero_()
        f.tilt.zero_()
    e = torch.tensor(0.8, dtype=D, requires_grad=True)
    y, t = torch.tensor([1.0, 0.0], dtype=D), ZERO
    for _ in range(5):
        t, ys = odeint_event(f, y, t, event_fn=lambda t, y: y[0], engine=engine, rtol=1e-9, atol=1e-11)
        # As its example does it: the ball is put back, a little above the ground so that the sign is right.
        y = torch.stack([ys[-1][0].detach() + 1e-12, -e * ys[-1][1]])
    v = math.sqrt(2 * 9.81)
    fall = v / 9.81
    truth = fall * (1 + 2 * sum(0.8**k for k in range(1, 5)))
    by_e = 2 * fall * sum(k * 0.8 ** (k - 1) for k in range(1, 5))
    assert float(t.detach()) == pytest.approx(truth, abs=1e-7)
    found = torch.autograd.grad(t, (e, f.g))
    assert float(found[0]) == pytest.approx(by_e, rel=1e-6)
    assert float(found[1]) == pytest.approx(-truth / (2 * 9.81), rel=1e-6)


def test_float32(engine):
    f = Fall().float()
    y0 = torch.tensor([1.0, 0.5], requires_grad=True)
    event_t, solution = odeint_event(f, y0, torch.tensor(0.0), event_fn=f.ground, engine=engine, rtol=1e-5, atol=1e-6)
    assert event_t.dtype == torch.float32 and solution.dtype == torch.float32
    truth = impact_time(f, y0[0], y0[1], torch.tensor(0.0))
    assert torch.allclose(event_t, truth, atol=1e-5)
    for a, b in zip(*(torch.autograd.grad(t, (y0, f.level)) for t in (event_t, truth)), strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("height", [1.0, 5.0])
def test_a_condition_that_ends_the_search_by_being_zero_hides_no_crossing(engine, height):
    """torchdiffeq's way to search for so long and no longer; steps here are as long as one likes."""
    f = Fall()
    y0 = torch.tensor([height, 0.5], dtype=D, requires_grad=True)
    end = 0.6

    def ground(t, y):
        return torch.zeros_like(t) if t > end else f.ground(t, y).reshape(())

    event_t, _ = odeint_event(f, y0, ZERO, event_fn=ground, engine=engine, rtol=1e-9, atol=1e-9)
    truth = impact_time(f, y0[0], y0[1], ZERO)
    assert float(event_t.detach()) == pytest.approx(min(end, float(truth.detach())), abs=1e-8)
    if height == 1.0:
        (found,), (wanted,) = (torch.autograd.grad(t, y0) for t in (event_t, truth))
        assert torch.allclose(found, wanted, rtol=1e-6, atol=1e-7)


def test_an_event_in_a_first_step_cut_at_step_t(engine):
    """A first step of 5 would do; it ends at step_t, and the event is before that."""
    f, y0, t0 = Fall(), torch.tensor([1.0, 0.0], dtype=D), torch.tensor(0.0, dtype=D)
    times = torch.tensor([0.0, 1.0], dtype=D)
    options = {"step_t": torch.tensor([0.5, 4.0], dtype=D), "first_step": 5.0}
    method = "dopri5" if engine == "torchdiffeq" else "Rodas5P"
    t, _ = odeint(f, y0, times, method=method, event_fn=f.ground, options=options, engine=engine)
    assert t.item() == pytest.approx(impact_time(f, y0[0], y0[1], t0).item(), abs=1e-7)
