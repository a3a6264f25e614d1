"""``solve(events=)``: what happens at events, in which order, and gradients through all of it."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

import pyjode
from pyjode import Event, ODEProblem, solve
from pyjode.errors import InputError, SolverError, UnsupportedError

D = torch.float64
TIGHT = {"rtol": 1e-10, "atol": 1e-12}


class Ball(nn.Module):
    """Height and velocity of a ball that falls."""

    def __init__(self, gravity=9.81, restitution=0.9, dtype=D):
        super().__init__()
        self.gravity = nn.Parameter(torch.tensor(gravity, dtype=dtype))
        self.restitution = nn.Parameter(torch.tensor(restitution, dtype=dtype))

    def forward(self, t, y):
        return torch.stack([y[1], -self.gravity])

    def ground(self, t, y):
        return y[0]

    def bounce(self, t, y):
        return torch.stack([torch.zeros_like(y[0]), -self.restitution * y[1]])


def bounce_times(height, velocity, gravity, restitution, n):
    """In closed form: up and down in 2 v / g, and each bounce takes the restitution's part of v."""
    impact = torch.sqrt(velocity**2 + 2 * gravity * height)
    first = (velocity + impact) / gravity
    flights = [2 * impact * restitution**k / gravity for k in range(1, n)]
    return torch.stack(list(itertools.accumulate([first, *flights])))


def start(*values, dtype=D):
    return torch.tensor(values, dtype=dtype, requires_grad=True)


def test_the_tenth_bounce_in_closed_form_with_its_gradients(engine):
    ball, y0 = Ball(), start(1.3, 0.4)
    event = Event(ball.ground, ball.bounce, direction=-1, terminal=10)
    solution = solve(ODEProblem(ball, y0, (0.0, 30.0)), events=event, saveat=0.25, engine=engine, **TIGHT)
    times = solution.events.ts
    g, r, x0 = (p.detach().clone().requires_grad_() for p in (ball.gravity, ball.restitution, y0))
    truth = bounce_times(x0[0], x0[1], g, r, 10)
    assert solution.retcode == "Terminated" and solution.success
    assert torch.allclose(times, truth, rtol=0, atol=1e-9)
    assert solution.events.indices.tolist() == [0] * 10
    for i in (0, 4, 9):
        found = torch.autograd.grad(
            times[i], (ball.gravity, ball.restitution, y0), retain_graph=True, allow_unused=True
        )
        wanted = torch.autograd.grad(truth[i], (g, r, x0), retain_graph=True, allow_unused=True)
        for a, b in zip(found, wanted, strict=True):
            a, b = (torch.zeros(()) if x is None else x for x in (a, b))
            assert torch.allclose(a.to(D), b.to(D), rtol=1e-8, atol=1e-8)


def test_states_on_both_sides_and_later_segments_have_gradients(engine):
    """The impact velocities, and a state between the third and the fourth bounce, in closed form."""
    ball, y0 = Ball(), start(1.0, 0.0)
    event = Event(ball.ground, ball.bounce, direction=-1)
    solution = solve(ODEProblem(ball, y0, (0.0, 2.5)), events=event, saveat=[2.4], engine=engine, **TIGHT)

    g, r, x0 = (p.detach().clone().requires_grad_() for p in (ball.gravity, ball.restitution, y0))
    impact = torch.sqrt(x0[1] ** 2 + 2 * g * x0[0])
    times = bounce_times(x0[0], x0[1], g, r, len(solution.events))
    since = 2.4 - times[-1]
    up = impact * r ** len(times)
    state = torch.stack([up * since - g * since**2 / 2, up - g * since])
    speeds = torch.stack([impact * r**k for k in range(1, 1 + len(times))])
    assert torch.allclose(solution.ys[0], state, atol=1e-9)
    assert torch.allclose(solution.events.after[:, 1], speeds, atol=1e-9)
    assert torch.allclose(solution.events.before[:, 1], -speeds / r, atol=1e-9)

    w = torch.tensor([0.7, -1.1], dtype=D)
    loss = w @ solution.ys[0] + solution.events.before[:, 1].square().sum() + solution.events.after[1, 1]
    truth = w @ state + (speeds / r).square().sum() + speeds[1]
    found = torch.autograd.grad(loss, (ball.gravity, ball.restitution, y0))
    wanted = torch.autograd.grad(truth, (g, r, x0))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


class Relay(nn.Module):
    """A thermostat without a closed form: nonlinear cooling, switched heating, thresholds and kick of its own."""

    def __init__(self):
        super().__init__()
        self.p = nn.Parameter(torch.tensor([0.9, 3.0, 0.7, 1.6, 0.15], dtype=D))

    def forward(self, t, y):
        cooling, heating = self.p[0], self.p[1]
        return torch.stack(
            [-cooling * torch.sin(y[0]) + heating * y[1] + 0.2 * torch.cos(3 * t), torch.zeros_like(y[1])]
        )

    def cold(self, t, y):
        return y[0] - self.p[2]

    def hot(self, t, y):
        return y[0] - self.p[3] - 0.05 * torch.sin(t)

    def switch_on(self, t, y):
        return torch.stack([y[0] + self.p[4] * (1 + t), torch.ones_like(y[1])])

    def switch_off(self, t, y):
        return torch.stack([y[0] - self.p[4] * y[0] ** 2, torch.zeros_like(y[1])])

    def events(self):
        return [
            Event(self.cold, self.switch_on, direction=-1),
            Event(self.hot, self.switch_off, direction=1),
        ]


@pytest.mark.parametrize("backwards", [False, True])
def test_gradients_through_several_events_against_finite_differences(engine, backwards):
    """By y0, t0, a save time, parameters of f, of conditions and of affects."""
    relay = Relay()
    # The difference divides the solver's error by h; torchdiffeq is too slow for tighter tolerances here.
    tolerance, h, allowed = (1e-10, 1e-3, 1e-6) if engine == "julia" else (1e-8, 1e-3, 5e-5)
    t1, saves = (-1.4, [-0.5, -1.3]) if backwards else (1.65, [0.6, 1.6])
    w = torch.tensor([[0.3, 0.0], [1.0, 0.2]], dtype=D)

    def loss(p, y0, t0, save, happened=None):
        with torch.no_grad():
            relay.p.copy_(p)
        saveat = torch.stack([save, torch.tensor(saves[1], dtype=D)])
        solution = solve(
            ODEProblem(relay, y0, (t0, t1)),
            events=relay.events(),
            saveat=saveat,
            engine=engine,
            rtol=tolerance,
            atol=tolerance,
        )
        if happened is not None:
            happened.append(solution.events.indices.tolist())
        return (w * solution.ys).sum() + solution.events.ts.sum() + solution.events.after[:, 0].sum()

    p0 = relay.p.detach().clone()
    y0, t0, save = start(1.0, 0.0), start(0.0)[0].detach(), torch.tensor(saves[0], dtype=D)
    inputs = [x.requires_grad_() for x in (y0, t0, save)]
    happened: list[list[int]] = []
    loss(p0, *inputs, happened).backward()
    assert len(happened[0]) >= 2 and len(set(happened[0])) == (1 if backwards else 2)
    # One direction in all inputs, by a finite difference of the fourth order; the second entry of y0 is a switch.
    directions = [torch.randn_like(x) for x in (p0, *inputs)]
    directions[1][1] = 0.0

    def moved(k):
        with torch.no_grad():
            return float(loss(*(x + k * h * d for x, d in zip((p0, *inputs), directions, strict=True))))

    difference = (moved(-2) - 8 * moved(-1) + 8 * moved(1) - moved(2)) / (12 * h)
    gradients = (relay.p.grad, *(x.grad for x in inputs))
    found = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True))
    assert found == pytest.approx(difference, rel=allowed, abs=allowed)


@pytest.mark.parametrize(
    ("engine", "sensealg"),
    [
        ("torchdiffeq", "BacksolveAdjoint"),
        *(
            pytest.param("julia", name, marks=pytest.mark.julia)
            for name in ("BacksolveAdjoint", "GaussAdjoint", "InterpolatingAdjoint", "QuadratureAdjoint")
        ),
    ],
)
def test_continuous_adjoints_of_the_segments(engine, sensealg):
    ball, y0 = Ball(), start(1.3, 0.4)
    event = Event(ball.ground, ball.bounce, direction=-1, terminal=4)
    solution = solve(
        ODEProblem(ball, y0, (0.0, 30.0)), events=event, saveat=[1.0], engine=engine, sensealg=sensealg, **TIGHT
    )
    found = torch.autograd.grad(solution.events.ts[-1] + solution.ys[-1].sum(), (ball.gravity, ball.restitution, y0))
    again = solve(ODEProblem(ball, y0, (0.0, 30.0)), events=event, saveat=[1.0], engine=engine, **TIGHT)
    wanted = torch.autograd.grad(again.events.ts[-1] + again.ys[-1].sum(), (ball.gravity, ball.restitution, y0))
    for a, b in zip(found, wanted, strict=True):
        assert torch.allclose(a, b, rtol=1e-7, atol=1e-7)


def falling(t, y):
    return torch.stack([y[1], -torch.ones_like(y[1])])


def test_save_times_at_and_after_events(engine):
    """y falls with speed 1 and is put back to 1 at 0: a saw. A save time at the jump has the state before it."""
    event = Event(lambda t, y: y - 0.25, lambda t, y: torch.ones_like(y))
    problem = ODEProblem(lambda t, y: -torch.ones_like(y), torch.ones(1, dtype=D), (0.0, 2.0))
    solution = solve(problem, events=event, saveat=[0.0, 0.5, 0.75, 1.0, 1.5, 2.0], engine=engine, **TIGHT)
    assert torch.allclose(solution.ts, torch.tensor([0.0, 0.5, 0.75, 1.0, 1.5, 2.0], dtype=D))
    at_jump = solution.ys[2, 0]
    assert min(abs(at_jump - 0.25), abs(at_jump - 1.0)) < 1e-9
    rest = solution.ys[[0, 1, 3, 4, 5], 0]
    assert torch.allclose(rest, torch.tensor([1.0, 0.5, 0.75, 0.25, 0.5], dtype=D), atol=1e-9)
    assert torch.allclose(solution.events.ts, torch.tensor([0.75, 1.5], dtype=D), atol=1e-9)
    assert torch.allclose(solution.events.before[:, 0], torch.tensor([0.25, 0.25], dtype=D), atol=1e-9)
    assert torch.allclose(solution.events.after[:, 0], torch.tensor([1.0, 1.0], dtype=D), atol=1e-9)


def test_a_terminal_event_leaves_out_later_save_times(engine):
    solution = solve(
        ODEProblem(falling, torch.tensor([1.0, 0.0], dtype=D), (0.0, 9.0)),
        events=Event(lambda t, y: y[0], terminal=True),
        saveat=[0.5, 1.0, 1.5, 2.0],
        engine=engine,
        **TIGHT,
    )
    assert solution.ts.tolist() == [0.5, 1.0]
    assert solution.retcode == "Terminated"
    assert solution.t_reached == pytest.approx(math.sqrt(2), abs=1e-10)


def test_dense_output_between_events(engine):
    ball = Ball()
    event = Event(ball.ground, ball.bounce, direction=-1)
    solution = solve(ODEProblem(ball, start(1.0, 0.0), (0.0, 2.0)), events=event, saveat=[2.0], engine=engine, **TIGHT)
    t1, t2 = (float(t.detach()) for t in solution.events.ts[:2])
    times = torch.tensor([0.2, (t1 + t2) / 2, t2, t2 + 1e-6], dtype=D)
    ys = solution(times)
    g, r = 9.81, 0.9
    v = math.sqrt(2 * g)
    assert torch.allclose(ys[0].detach(), torch.tensor([1 - g * 0.02, -g * 0.2], dtype=D), atol=1e-8)
    assert torch.allclose(ys[1].detach(), torch.tensor([(r * v) ** 2 / (2 * g), 0.0], dtype=D), atol=1e-7)
    assert ys[2, 1] < 0 < ys[3, 1], "at the event the state before it"
    (by_g,) = torch.autograd.grad(ys[1, 0], ball.gravity, retain_graph=True)
    # At the fixed time (t1 + t2) / 2, s after the first bounce: y = r v s - g s^2 / 2, and both v and s move with g.
    s = r * v / g
    dv, ds = v / (2 * g), 0.5 * t1 / g
    assert float(by_g) == pytest.approx(r * dv * s - s * s / 2 + (r * v - g * s) * ds, rel=1e-6)


@pytest.mark.julia
def test_every_step_with_both_sides_of_events():
    ball = Ball()
    event = Event(ball.ground, ball.bounce, direction=-1)
    solution = solve(ODEProblem(ball, start(1.0, 0.0), (0.0, 2.0)), events=event, engine="julia")
    ts = solution.ts.detach()
    twice = ts[1:][ts[1:] == ts[:-1]]
    assert torch.equal(twice, solution.events.ts.detach())
    assert (ts[1:] >= ts[:-1]).all() and float(ts[-1]) == 2.0
    rows = (ts == float(solution.events.ts[0])).nonzero()[:, 0]
    assert torch.equal(solution.ys[rows[0]], solution.events.before[0])
    assert torch.equal(solution.ys[rows[1]], solution.events.after[0])
    (found,) = torch.autograd.grad(solution.ys[rows[0], 1], ball.gravity)
    assert float(found) == pytest.approx(-0.5 * math.sqrt(2 / 9.81), rel=1e-6)


@pytest.mark.parametrize(("direction", "expected"), [(0, [1, 2, 3]), (1, [2]), (-1, [1, 3])])
def test_direction(engine, direction, expected):
    """cos has zeros at pi/2 (down), 3 pi/2 (up), 5 pi/2 (down)."""
    y0 = torch.tensor([1.0, 0.0], dtype=D)
    solution = solve(
        ODEProblem(lambda t, y: torch.stack([-y[1], y[0]]), y0, (0.0, 8.0)),
        events=Event(lambda t, y: y[0], direction=direction),
        saveat=[8.0],
        engine=engine,
        rtol=1e-8,
        atol=1e-9,
    )
    truth = torch.tensor([(k - 0.5) * math.pi for k in expected], dtype=D)
    assert torch.allclose(solution.events.ts, truth, atol=1e-6)
    assert torch.allclose(solution.ys[-1], torch.tensor([math.cos(8.0), math.sin(8.0)], dtype=D), atol=1e-6)


def test_backwards_directions_are_as_the_solve_goes(engine):
    y0 = torch.tensor([1.0, 0.0], dtype=D)
    solution = solve(
        ODEProblem(lambda t, y: torch.stack([-y[1], y[0]]), y0, (0.0, -5.0)),
        events=Event(lambda t, y: y[0], direction=-1),
        saveat=[-5.0],
        engine=engine,
        **TIGHT,
    )
    assert torch.allclose(solution.events.ts, torch.tensor([-math.pi / 2], dtype=D), atol=1e-8)


def test_a_vector_condition_tells_its_affect_which_number_it_was(engine):
    """Three balls in one solve, each with its own ground."""
    heights = torch.tensor([0.5, 1.0, 2.0], dtype=D, requires_grad=True)
    g, r = 9.81, 0.8

    def f(t, y):
        return torch.stack([y[1], torch.full_like(y[1], -g)])

    def bounce(t, y, i):
        hit = torch.arange(3) == i
        return torch.stack([torch.where(hit, 0.0, y[0]), torch.where(hit, -r * y[1], y[1])])

    y0 = torch.stack([heights, torch.zeros_like(heights)])
    event = Event(lambda t, y: y[0], bounce, direction=-1)
    solution = solve(ODEProblem(f, y0, (0.0, 1.5)), events=event, saveat=[1.5], engine=engine, **TIGHT)
    log = solution.events
    for i in range(3):
        mine = log.ts[log.entries == i]
        truth = bounce_times(heights[i], torch.zeros((), dtype=D), torch.tensor(g), torch.tensor(r), len(mine))
        assert torch.allclose(mine, truth, atol=1e-8)
        (found,) = torch.autograd.grad(mine.sum(), heights, retain_graph=True)
        (wanted,) = torch.autograd.grad(truth.sum(), heights)
        assert torch.allclose(found, wanted, atol=1e-7)


def test_events_at_the_same_time_happen_in_order(engine):
    """Two conditions with one zero: the first one's affect, then the second one's."""
    events = [
        Event(lambda t, y: y[0] - 1.0, lambda t, y: torch.stack([y[0], 2 * y[1] + 1])),
        Event(lambda t, y: 2.0 * (y[0] - 1.0), lambda t, y: torch.stack([y[0], 3 * y[1]])),
    ]
    y0 = torch.tensor([0.0, 1.0], dtype=D)
    problem = ODEProblem(lambda t, y: torch.stack([torch.ones_like(y[0]), torch.zeros_like(y[1])]), y0, (0.0, 3.0))
    solution = solve(problem, events=events, saveat=[3.0], engine=engine)
    assert solution.events.indices.tolist() == [0, 1]
    assert torch.allclose(solution.ys[-1], torch.tensor([3.0, 9.0], dtype=D))


def test_zero_at_the_start(engine):
    """Thrown up from the ground nothing happens there; thrown down at the ground it bounces at once."""
    ball = Ball()
    event = Event(ball.ground, ball.bounce, direction=-1)
    up = solve(ODEProblem(ball, start(0.0, 1.0), (0.0, 0.3)), events=event, saveat=[0.3], engine=engine, **TIGHT)
    assert torch.allclose(up.events.ts, torch.tensor([2 / 9.81], dtype=D), atol=1e-9)
    y0 = start(0.0, -1.0)
    down = solve(ODEProblem(ball, y0, (0.0, 0.1)), events=event, saveat=[0.1], engine=engine, **TIGHT)
    assert down.events.ts.tolist() == [0.0]
    assert torch.allclose(down.ys[-1, 1], torch.tensor(0.9 - 0.981, dtype=D), atol=1e-9)
    # The closed form with the impact at t = -y / v.
    (found,) = torch.autograd.grad(down.ys[-1, 0], y0)
    h, v = start(0.0)[0], start(-1.0)[0]
    t = h / -v
    truth = 0.9 * (-v + 9.81 * t) * (0.1 - t) - 9.81 * (0.1 - t) ** 2 / 2
    assert torch.allclose(found, torch.stack(torch.autograd.grad(truth, (h, v))), atol=1e-7)


def test_no_event_is_a_plain_solve(engine):
    y0 = start(1.0, 0.0)
    solution = solve(
        ODEProblem(falling, y0, (0.0, 1.0)),
        events=Event(lambda t, y: y[0] + 100, terminal=True),
        saveat=[1.0],
        engine=engine,
    )
    assert solution.retcode == "Success" and len(solution.events) == 0
    assert solution.events.before.shape == (0, 2)
    solution.ys.sum().backward()
    assert torch.allclose(y0.grad, torch.tensor([1.0, 2.0], dtype=D), atol=1e-6)


def test_events_without_end_are_an_error(engine):
    """The times between bounces go to zero: the error says so."""
    ball = Ball(restitution=0.1)
    event = Event(ball.ground, ball.bounce, direction=-1)
    problem = ODEProblem(ball, torch.tensor([1.0, 0.0], dtype=D), (0.0, 1.0))
    with torch.no_grad():
        with pytest.raises(SolverError, match="4 events by t = .* apart") as raised:
            solve(problem, events=event, saveat=[1.0], max_events=4, engine=engine)
        assert raised.value.retcode == "MaxEvents"
        with pytest.raises(SolverError) as raised:
            solve(problem, events=event, saveat=[1.0], engine=engine)
    assert raised.value.retcode in ("Zeno", "DtLessThanMin")


def test_an_affect_that_leaves_the_condition_at_zero_is_not_found_again(engine):
    """Reflection of either direction: with direction 0 rounding must not make a second event of the first."""
    ball = Ball(dtype=torch.float32)
    y0 = torch.tensor([100.0, 0.0], requires_grad=True)
    event = Event(lambda t, y: y[0] - 50.0, lambda t, y: torch.stack([y[0], -ball.restitution * y[1]]))
    solution = solve(ODEProblem(ball, y0, (0.0, 9.5)), events=event, saveat=[9.5], engine=engine, rtol=1e-6, atol=1e-6)
    g, r = torch.tensor(9.81), torch.tensor(0.9)
    truth = bounce_times(torch.tensor(50.0), torch.tensor(0.0), g, r, len(solution.events))
    assert len(solution.events) == 2
    assert torch.allclose(solution.events.ts.float(), truth, rtol=1e-4)


def test_nested_states_and_event_objects_are_used_again(engine):
    def f(t, y):
        return {"x": y["v"], "v": -torch.ones_like(y["v"])}

    def bounce(t, y):
        return {"x": y["x"], "v": -0.5 * y["v"]}

    event = Event(lambda t, y: y["x"], bounce, direction=-1, terminal=2)
    for h in (0.5, 2.0):
        y0 = {"x": torch.tensor([h], dtype=D), "v": torch.zeros(1, dtype=D)}
        solution = solve(ODEProblem(f, y0, (0.0, 9.0)), events=event, saveat=[0.1], engine=engine, **TIGHT)
        fall = math.sqrt(2 * h)
        assert torch.allclose(solution.events.ts, torch.tensor([fall, 2 * fall], dtype=D), atol=1e-9)
        assert solution.events.after["v"].shape == (2, 1)


def test_refusals(engine):
    problem = ODEProblem(falling, torch.tensor([1.0, 0.0], dtype=D), (0.0, 2.0))

    def run(*args, **kwargs):
        return solve(problem, events=Event(*args, **kwargs), saveat=[2.0], engine=engine)

    with pytest.raises(InputError, match="returned None"):
        run(lambda t, y: y[0], lambda t, y: None)
    with pytest.raises(InputError, match="the state is"):
        run(lambda t, y: y[0], lambda t, y: y[:1])
    with pytest.raises(InputError, match="not a torch tensor"):
        run(lambda t, y: 1.0)
    with pytest.raises(InputError, match="real"):
        run(lambda t, y: y[0] > 0)
    with pytest.raises(InputError, match="direction"):
        run(lambda t, y: y[0], direction=2)
    with pytest.raises(InputError, match="terminal"):
        run(lambda t, y: y[0], terminal="yes")
    with pytest.raises(InputError, match="Event"):
        solve(problem, events=[lambda t, y: y[0]], saveat=[2.0], engine=engine)
    with pytest.raises(InputError, match="step size"):
        solve(problem, "rk4", events=Event(lambda t, y: y[0]), saveat=[2.0], engine=engine)
    with pytest.raises(ZeroDivisionError):
        run(lambda t, y: y[0] * (1 / 0 if float(t) > 0.5 else 1.0))


def test_what_has_no_derivative_raises(engine):
    y0 = start(1.0, 0.0)
    solution = solve(
        ODEProblem(falling, y0, (0.0, 2.0)), events=Event(lambda t, y: y[0], terminal=True), saveat=[0.0], engine=engine
    )
    with pytest.raises((UnsupportedError, RuntimeError), match="second derivatives"):
        torch.autograd.grad(solution.events.ts[0], y0, create_graph=True)
    touching = solve(
        ODEProblem(lambda t, y: torch.stack([3 * (t - 1) ** 2, torch.zeros_like(t)]), start(-1.0, 0.0), (0.0, 2.0)),
        "rk4",
        events=Event(lambda t, y: y[0], terminal=True),
        dt=0.5,
        saveat=[0.0],
        engine=engine,
    )
    assert float(touching.events.ts[0].detach()) == pytest.approx(1.0, abs=1e-3)


def test_fixed_steps(engine):
    ball, y0 = Ball(), start(1.0, 0.0)
    event = Event(ball.ground, ball.bounce, direction=-1, terminal=3)
    solution = solve(ODEProblem(ball, y0, (0.0, 9.0)), "rk4", dt=0.05, events=event, saveat=[0.1], engine=engine)
    truth = bounce_times(y0[0], y0[1], ball.gravity, ball.restitution, 3)
    assert torch.allclose(solution.events.ts, truth, atol=1e-9)
    found = torch.autograd.grad(solution.events.ts[-1], (ball.gravity, ball.restitution, y0))
    for a, b in zip(found, torch.autograd.grad(truth[-1], (ball.gravity, ball.restitution, y0)), strict=True):
        assert torch.allclose(a, b, atol=1e-8)


@pytest.mark.julia
def test_two_crossings_in_one_step_are_seen():
    """The whole flight is one step of a fifth-order method: only a look inside the step finds the threshold."""
    solution = solve(
        ODEProblem(falling, torch.tensor([0.0, 10.0], dtype=D), (0.0, 30.0)),
        events=Event(lambda t, y: y[0] - 45.0),
        saveat=[30.0],
        dt=40.0,
        engine="julia",
    )
    assert torch.allclose(solution.events.ts, 10 + math.sqrt(10) * torch.tensor([-1.0, 1.0], dtype=D), atol=1e-9)


@pytest.mark.julia
@pytest.mark.parametrize("method", ["Rodas5P", "Vern9", "DP8", "FBDF"])
def test_methods_with_other_dense_outputs(method):
    ball, y0 = Ball(), start(1.0, 0.0)
    event = Event(ball.ground, ball.bounce, direction=-1, terminal=3)
    tight = {"rtol": 1e-8, "atol": 1e-10}
    solution = solve(ODEProblem(ball, y0, (0.0, 9.0)), method, events=event, saveat=[0.1], engine="julia", **tight)
    truth = bounce_times(y0[0], y0[1], ball.gravity, ball.restitution, 3)
    assert torch.allclose(solution.events.ts, truth, atol=1e-6)
    found = torch.autograd.grad(solution.events.ts[-1], (ball.gravity, ball.restitution, y0))
    for a, b in zip(found, torch.autograd.grad(truth[-1], (ball.gravity, ball.restitution, y0)), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_public_names():
    assert pyjode.Event is Event and callable(pyjode.odeint_event)
