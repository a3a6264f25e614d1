"""Options of the adaptive solvers, from torchdiffeq's further documentation: what they promise, on both engines.

Step sequences differ between the engines (Julia's methods steer by another error estimate and end on the last time,
torchdiffeq steps beyond it), so tests look at what an option promises of any sequence.
"""

import itertools
import math

import pytest
import torch
from torch import nn

import pyjode

Y0 = torch.tensor([1.0, 0.5], dtype=torch.float64)


class Watched(nn.Module):
    """An oscillator whose frequency jumps up smoothly at t = 2, and its steps."""

    def __init__(self, kick=20.0):
        super().__init__()
        self.kick = kick
        self.tried, self.accepted, self.rejected = [], [], []

    def forward(self, t, y):
        w = 1 + self.kick * torch.sigmoid(40 * (t - 2))
        return torch.stack([w * y[1], -w * y[0]])

    def callback_step(self, t0, y0, dt):
        self.tried.append((float(t0), float(dt)))

    def callback_accept_step(self, t0, y0, dt):
        self.accepted.append((float(t0), float(dt)))

    def callback_reject_step(self, t0, y0, dt):
        self.rejected.append((float(t0), float(dt)))


def solve(engine, t1=2.5, method="dopri5", f=None, tolerance=1e-6, **options):
    f = f or Watched()
    t = torch.tensor([0.0, t1], dtype=torch.float64)
    y = pyjode.odeint(f, Y0, t, rtol=tolerance, atol=tolerance, method=method, options=options, engine=engine)
    return f, y[-1]


def exact(t1, kick=20.0):
    """Rotation by the integral of the frequency."""
    softplus = lambda x: max(x, 0.0) + math.log1p(math.exp(-abs(x)))  # noqa: E731
    angle = t1 + kick * (softplus(40 * (t1 - 2)) - softplus(-80.0)) / 40
    c, s = math.cos(angle), math.sin(angle)
    return torch.tensor([c * Y0[0] + s * Y0[1], -s * Y0[0] + c * Y0[1]], dtype=torch.float64)


def test_first_step(engine):
    f, y = solve(engine, first_step=0.0625)
    assert f.tried[0] == (0.0, 0.0625)
    assert torch.allclose(y, exact(2.5), atol=1e-4)


@pytest.mark.parametrize("method", ["dopri5", "bosh3"])
def test_steps_grow_by_no_more_than_ifactor_and_shrink_by_no_more_than_dfactor(engine, method):
    f, y = solve(engine, method=method, first_step=0.001, safety=0.8, ifactor=1.5, dfactor=0.7)
    assert torch.allclose(y, exact(2.5), atol=1e-3)
    sizes = [dt for _, dt in f.tried]
    inner = sizes[:-1]  # the last is cut at the end
    ratios = [b / a for a, b in itertools.pairwise(inner)]
    assert max(ratios) <= 1.5 * (1 + 1e-6) and min(ratios) >= 0.7 * (1 - 1e-6)
    assert max(ratios) > 1.49  # the first step was far too small
    assert f.rejected and any(abs(r - 0.7) < 1e-3 for r in ratios)  # and the kick too sudden


def test_safety_makes_steps_smaller(engine):
    steps = {safety: len(solve(engine, t1=1.9, tolerance=1e-9, safety=safety)[0].accepted) for safety in (0.9, 0.45)}
    assert 1.5 < steps[0.45] / steps[0.9] < 2.7


def test_min_step_is_taken_whatever_the_error(engine):
    f, y = solve(engine, tolerance=1e-12, min_step=0.05, first_step=0.05)
    assert torch.isfinite(y).all()
    assert all(dt >= 0.05 * (1 - 1e-9) for t, dt in f.tried if t + dt < 2.5 - 1e-9)
    assert len(f.accepted) <= 51 and not f.rejected


def test_max_step(engine):
    f, y = solve(engine, t1=1.9, tolerance=1e-3, max_step=0.05)
    assert max(dt for _, dt in f.tried) <= 0.05 * (1 + 1e-9)
    assert 38 <= len(f.accepted) <= 40
    assert torch.allclose(y, exact(1.9), atol=1e-4)


def test_infinite_and_zero_bounds_are_none(engine):
    plain, bounded = solve(engine, t1=1.0)[1], solve(engine, t1=1.0, min_step=0, max_step=float("inf"))[1]
    assert torch.equal(plain, bounded)


def test_max_num_steps(engine):
    solve(engine, max_num_steps=1000)
    with pytest.raises(pyjode.SolverError, match="MaxIters"):
        solve(engine, max_num_steps=10)


def test_time_in_single_precision_is_allowed(engine):
    """Julia's times stay float64, which is no less exact."""
    assert torch.allclose(solve(engine, t1=1.0, dtype=torch.float32)[1], exact(1.0), atol=1e-5)


@pytest.mark.parametrize("direction", [1, -1])
def test_step_t_ends_steps(engine, direction):
    f = Watched(kick=0.0)
    stops = direction * torch.tensor([0.75, 0.3, 7.0, 1.5], dtype=torch.float64)  # unsorted, one out of the span
    t = direction * torch.tensor([0.0, 2.0], dtype=torch.float64)
    y = pyjode.odeint(
        f, Y0, t, rtol=1e-8, atol=1e-8, method="dopri5", options={"step_t": stops, "jump_t": None}, engine=engine
    )
    ends = {round(direction * t0 + dt, 12) for t0, dt in f.accepted}
    assert {0.3, 0.75, 1.5} <= ends
    assert torch.allclose(y[-1], exact(direction * 2.0, kick=0.0), atol=1e-6)


def test_step_t_with_a_kink_saves_rejections(engine):
    class Kink(Watched):
        def forward(self, t, y):
            return -y + 50 * torch.relu(t - 1.0)

    y0 = torch.tensor([1.0, 0.0], dtype=torch.float64)
    rejected = {}
    for options in ({}, {"step_t": torch.tensor([1.0])}):
        f = Kink()
        ys = pyjode.odeint(
            f, y0, torch.tensor([0.0, 2.0]), rtol=1e-6, atol=1e-6, method="dopri5", options=options, engine=engine
        )
        rejected[bool(options)] = len(f.rejected)
        s = 1.0  # after the kink, y' = -y + 50 s
        truth = y0 * math.exp(-2) + 50 * (s - 1 + math.exp(-s))
        assert torch.allclose(ys[-1], truth, atol=1e-3)
    assert rejected[True] < rejected[False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"first_step": -0.1}, "first_step is -0.1"),
        ({"first_step": "0.1s"}, "must be a number"),
        ({"safety": 0.0}, "safety is 0"),
        ({"ifactor": 0.5}, "ifactor is the most"),
        ({"dfactor": 2.0}, "dfactor the most"),
        ({"max_num_steps": 0}, "max_num_steps is 0"),
        ({"max_num_steps": 2.5}, "whole number"),
        ({"dtype": torch.int64}, "dtype is torch.int64"),
        ({"step_t": torch.tensor([[0.5]])}, "step_t has shape"),
        ({"jump_t": torch.tensor([float("nan")])}, "jump_t holds NaN"),
        ({"step_t": torch.tensor([0.5]), "jump_t": torch.tensor([0.5])}, "repeated"),
        ({"norm": 3}, "norm is int"),
        ({"norm": "seminorm"}, "adjoint_options"),
    ],
)
def test_values_that_cannot_be_used(engine, options, message):
    with pytest.raises(pyjode.InputError, match=message):
        solve(engine, **options)


def test_an_option_of_another_method_is_ignored_with_a_warning(engine):
    with pytest.warns(UserWarning, match="dopri5 does not use step_size"):
        _, y = solve(engine, t1=1.0, step_size=0.5)
    assert torch.equal(y, solve(engine, t1=1.0)[1])


def test_an_option_that_does_not_exist_gets_the_nearest(engine):
    with pytest.raises(pyjode.UnsupportedError, match="'first_stpe'; did you mean 'first_step'"):
        solve(engine, first_stpe=0.1)


def test_the_users_options_stay_as_they_are(engine):
    options = {"safety": 0.9, "step_t": torch.tensor([0.5]), "norm": lambda y: y.abs().max()}
    before = dict(options)
    pyjode.odeint(Watched(), Y0, torch.tensor([0.0, 1.0]), method="dopri5", options=options, engine=engine)
    assert options == before


def uncoupled(t, y):
    return torch.stack([torch.cos(3 * t) * y[0], torch.cos(5 * t) * y[1]])


@pytest.mark.parametrize("which", [0, 1])
def test_tolerances_for_each_entry(engine, which):
    """Only the entry with a tight tolerance has to be right."""
    t = torch.tensor([0.0, 1.5], dtype=torch.float64)
    truth = torch.stack([Y0[0] * torch.exp(torch.sin(3 * t[1]) / 3), Y0[1] * torch.exp(torch.sin(5 * t[1]) / 5)])
    loose = torch.full((2,), 10.0, dtype=torch.float64)
    tight = loose.clone()
    tight[which] = 1e-9
    rough = pyjode.odeint(uncoupled, Y0, t, rtol=0.0, atol=loose, engine=engine)[-1]
    fine = pyjode.odeint(uncoupled, Y0, t, rtol=torch.zeros(2), atol=tight, engine=engine)[-1]
    assert (fine - truth)[which].abs() < 1e-7 < (rough - truth)[which].abs()


def test_equal_tolerances_for_each_entry_are_the_number(engine):
    t = torch.tensor([0.0, 1.5], dtype=torch.float64)
    number = pyjode.odeint(uncoupled, Y0, t, rtol=1e-6, atol=1e-7, engine=engine)
    tensor = pyjode.odeint(uncoupled, Y0, t, rtol=torch.full((2,), 1e-6), atol=torch.full((2,), 1e-7), engine=engine)
    assert torch.allclose(number, tensor, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("shape", [(), (2, 3), (6,), (3,)])
def test_tolerances_for_each_tensor_of_a_tuple(engine, shape):
    """Each a number, or shaped like the tensor, flat or not, or what broadcasts to it."""
    a, b = torch.ones(2, 3, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    f = lambda t, y: (torch.cos(3 * t) * y[0], torch.cos(5 * t) * y[1])  # noqa: E731
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    tight = torch.full(shape, 1e-7, dtype=torch.float64)
    ys = pyjode.odeint(f, (a, b), t, rtol=0.0, atol=(tight, 10.0), engine=engine)
    assert torch.allclose(ys[0][-1], torch.exp(torch.sin(3 * t[1]) / 3).expand(2, 3), atol=1e-5)
    both = pyjode.odeint(f, (a, b), t, rtol=0.0, atol=(tight, 1e-9), engine=engine)
    assert not torch.equal(ys[1], both[1])


@pytest.mark.parametrize(
    ("atol", "message"),
    [((1e-6,), "1 tolerances for a state of 2"), ((1e-6, -1e-6), "zero or positive"), ((1e-6, [1e-6] * 2), "3 tol")],
)
def test_tolerances_that_fit_no_tuple(engine, atol, message):
    y0 = (torch.ones(2, 3, dtype=torch.float64), torch.ones((), dtype=torch.float64))
    with pytest.raises(pyjode.InputError, match=message):
        pyjode.odeint(lambda t, y: y, y0, torch.tensor([0.0, 1.0]), rtol=0.0, atol=atol, engine=engine)
