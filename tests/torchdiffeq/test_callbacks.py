"""Callbacks on f: callback_step, callback_accept_step, callback_reject_step and their _adjoint twins.

From torchdiffeq's further documentation: called with t0, y0, dt, tensors as the solver has them.
"""

import itertools
import warnings

import pytest
import torch
from torch import nn

import pyjode
from pyjode.callbacks import has_callbacks

D = torch.float64


class Told(nn.Module):
    def __init__(self):
        super().__init__()
        self.k = nn.Parameter(torch.tensor(1.0, dtype=D))
        self.calls = []

    def forward(self, t, y):
        return self.k * torch.stack([y[1], -y[0]]) * (1 + 20 * torch.sigmoid(50 * (t.abs() - 1)))

    def callback_step(self, t0, y0, dt):
        self.calls.append(("step", t0, y0, dt))

    def callback_accept_step(self, t0, y0, dt):
        self.calls.append(("accept", t0, y0, dt))

    def callback_reject_step(self, t0, y0, dt):
        self.calls.append(("reject", t0, y0, dt))

    def of(self, name):
        return [(float(t0.detach()), y0, float(dt.detach())) for kind, t0, y0, dt in self.calls if kind == name]


class ToldBackward(Told):
    def callback_step_adjoint(self, t0, y0, dt):
        self.calls.append(("step_adjoint", t0, y0, dt))

    def callback_accept_step_adjoint(self, t0, y0, dt):
        self.calls.append(("accept_adjoint", t0, y0, dt))

    def callback_reject_step_adjoint(self, t0, y0, dt):
        self.calls.append(("reject_adjoint", t0, y0, dt))


Y0 = torch.tensor([1.0, 0.0], dtype=D)


@pytest.mark.parametrize("direction", [1, -1])
def test_every_try_is_a_step_and_then_accepted_or_rejected(engine, direction):
    f = Told()
    t = direction * torch.tensor([0.0, 0.4, 1.2], dtype=D)
    pyjode.odeint(f, Y0, t, rtol=1e-6, atol=1e-6, engine=engine)
    kinds = [kind for kind, *_ in f.calls]
    assert kinds[::2] == ["step"] * (len(kinds) // 2) and set(kinds[1::2]) == {"accept", "reject"}
    for (_, t0, y0, dt), (_, t1, y1, dt1) in zip(f.calls[::2], f.calls[1::2], strict=True):
        assert t0 == t1 and torch.equal(y0, y1) and 0 < dt1 <= dt
    # The user's times, and steps' sizes without a sign.
    accepted = f.of("accept")
    assert accepted[0][0] == 0.0
    for (t0, _, dt), (t1, _, _) in itertools.pairwise(accepted):
        assert t1 == pytest.approx(t0 + direction * dt, abs=1e-12)
    t0, _, dt = accepted[-1]
    assert direction * t0 + dt >= 1.2 - 1e-12


def test_arguments_are_tensors_that_may_be_kept(engine):
    f = Told()
    with torch.no_grad():
        pyjode.odeint(f, Y0.reshape(2, 1), torch.tensor([0.0, 1.2], dtype=D), rtol=1e-6, atol=1e-8, engine=engine)
    for _, t0, y0, dt in f.calls:
        assert t0.shape == dt.shape == () and t0.dtype == dt.dtype == D and y0.shape == (2, 1) and y0.dtype == D
    # y0 is the solution at t0, not what the memory held later.
    some = f.of("accept")[1:-1:6]
    times = torch.tensor([0.0, *(t0 for t0, _, _ in some)], dtype=D)
    truth = pyjode.odeint(Told(), Y0.reshape(2, 1), times, rtol=1e-7, atol=1e-8, engine=engine)
    assert torch.allclose(torch.stack([y0 for _, y0, _ in some]), truth[1:], atol=1e-4)


def test_a_tuple_comes_as_a_tuple(engine):
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.seen = []

        def forward(self, t, y):
            return (-y[0], y[1] * 0.5)

        def callback_step(self, t0, y0, dt):
            self.seen.append(y0)

    f = Pair()
    pyjode.odeint(f, (torch.ones(2, dtype=D), torch.ones(1, 3, dtype=D)), torch.tensor([0.0, 1.0]), engine=engine)
    assert f.seen and all(isinstance(y, tuple) and [x.shape for x in y] == [(2,), (1, 3)] for y in f.seen)


def test_callbacks_may_be_attributes_of_a_function(engine):
    def f(t, y):
        return -y

    starts = []
    f.callback_step = lambda t0, y0, dt: starts.append(float(t0))
    pyjode.odeint(f, torch.ones(1, dtype=D), torch.tensor([0.0, 1.0]), engine=engine)
    assert starts[0] == 0.0 and len(starts) > 1


def test_fixed_steps_call_callback_step_only_and_say_so(engine):
    f, t = Told(), torch.tensor([0.0, 0.5, 1.0], dtype=D)
    with pytest.warns(UserWarning, match="rk4 does not make the callbacks callback_accept_step, callback_reject_step"):
        pyjode.odeint(f, Y0, t, method="rk4", options={"step_size": 0.25}, engine=engine)
    assert [(t0, dt) for t0, _, dt in f.of("step")] == [(0.0, 0.25), (0.25, 0.25), (0.5, 0.25), (0.75, 0.25)]
    assert len(f.calls) == 4


def test_scipy_makes_none(engine):
    f = Told()
    with pytest.warns(UserWarning, match="scipy_solver does not make"), torch.no_grad():
        pyjode.odeint(f, Y0, torch.tensor([0.0, 0.5]), method="scipy_solver", options={"solver": "RK45"}, engine=engine)
    assert not f.calls


def test_an_exception_in_a_callback_comes_out_as_itself(engine):
    class Stops(Told):
        def callback_accept_step(self, t0, y0, dt):
            if len(self.calls) > 3:
                raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        pyjode.odeint(Stops(), Y0, torch.tensor([0.0, 1.5]), engine=engine)
    # And the next solve is right.
    ys = pyjode.odeint(lambda t, y: -y, torch.ones(1, dtype=D), torch.tensor([0.0, 1.0]), engine=engine)
    assert torch.allclose(ys[-1], torch.exp(torch.tensor([-1.0], dtype=D)), atol=1e-6)


def test_gradients_with_callbacks(engine):
    grads = {}
    for f in (Told(), ToldBackward()):
        for door in (pyjode.odeint, pyjode.odeint_adjoint):
            f.k.grad = None
            y = door(f, Y0, torch.tensor([0.0, 0.9], dtype=D), rtol=1e-6, atol=1e-7, engine=engine)
            y[-1, 0].backward()
            grads[type(f).__name__, door.__name__] = float(f.k.grad)
    assert max(grads.values()) - min(grads.values()) < 1e-4


def test_adjoint_callbacks(engine):
    """The state there is (time's adjoint, y, y's adjoint, *parameters' adjoints); time runs backwards."""
    f = ToldBackward()
    y0 = Y0.clone().requires_grad_()
    t = torch.tensor([0.0, 0.3, 0.9], dtype=D)
    ys = pyjode.odeint_adjoint(f, y0, t, rtol=1e-6, atol=1e-7, engine=engine)
    forward = len(f.calls)
    assert forward and not f.of("step_adjoint")
    ys[-1, 0].backward()
    assert len(f.calls) > forward and {kind for kind, *_ in f.calls[forward:]} <= {
        "step_adjoint",
        "accept_adjoint",
        "reject_adjoint",
    }
    steps = f.of("accept_adjoint")
    starts = [t0 for t0, _, _ in steps]
    assert (
        starts == sorted(starts, reverse=True) and starts[0] == pytest.approx(0.9) and all(dt > 0 for *_, dt in steps)
    )
    with torch.no_grad():
        for t0, (by_t, y, by_y, by_k), _ in steps[1:9:4]:
            assert by_t.shape == () and y.shape == by_y.shape == (2,) and by_k.shape == ()
            truth = pyjode.odeint(f.forward, Y0, torch.tensor([0.0, t0], dtype=D), engine=engine)[-1]
            assert torch.allclose(y, truth, atol=1e-5)
    assert torch.allclose(steps[0][1][2], torch.tensor([1.0, 0.0], dtype=D))


def test_odeint_makes_no_adjoint_callbacks(engine):
    f = ToldBackward()
    pyjode.odeint(f, Y0, torch.tensor([0.0, 0.9], dtype=D), engine=engine)[-1, 0].backward()
    assert not f.of("step_adjoint")


@pytest.mark.julia
def test_f_with_callbacks_is_still_native():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(2, 2).double()
            self.steps = 0

        def forward(self, t, y):
            return torch.tanh(self.net(y))

        def callback_step(self, t0, y0, dt):
            self.steps += 1

    f = Counts()
    pyjode.odeint(f, Y0, torch.tensor([0.0, 1.0]), engine="julia")
    assert f.steps > 0
    assert "native" in str(pyjode.explain(f, Y0))


def test_without_callbacks_nothing_is_said(engine):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pyjode.odeint(lambda t, y: -y, torch.ones(1, dtype=D), torch.tensor([0.0, 1.0]), engine=engine)


def crossing(t, y):
    return y[0] - 0.5


def test_callbacks_in_a_solve_to_an_event(engine):
    """Every try of a step up to the event is told, the event's own step too."""
    f = Told()
    event_t, _ = pyjode.odeint_event(
        f, Y0, torch.zeros((), dtype=D), event_fn=crossing, rtol=1e-6, atol=1e-8, engine=engine
    )
    kinds = [kind for kind, *_ in f.calls]
    assert kinds[::2] == ["step"] * (len(kinds) // 2) and set(kinds[1::2]) <= {"accept", "reject"}
    starts = [(t0, dt) for t0, _, dt in f.of("accept")]
    assert starts[0][0] == 0.0 and all(t0 < float(event_t) for t0, _ in starts)
    assert max(t0 + dt for t0, dt in starts) >= float(event_t)


def test_callbacks_in_a_solve_to_an_event_with_fixed_steps(engine):
    f = Told()
    options = {"step_size": 0.25}
    with pytest.warns(UserWarning, match="rk4 does not make the callbacks"):
        event_t, _ = pyjode.odeint_event(
            f, Y0, torch.zeros((), dtype=D), event_fn=crossing, method="rk4", options=options, engine=engine
        )
    steps = [(t0, dt) for t0, _, dt in f.of("step")]
    # torchdiffeq makes none where it searches for an event, and solves again up to it.
    last = int(float(event_t) / 0.25)
    assert [t0 for t0, _ in steps[: last + 1]] == pytest.approx([0.25 * k for k in range(last + 1)])


@pytest.mark.julia
def test_callbacks_that_a_solve_to_an_event_cannot_make():
    with pytest.raises(pyjode.UnsupportedError, match="implicit_adams makes no callbacks"):
        pyjode.odeint_event(
            Told(), Y0, torch.zeros((), dtype=D), event_fn=crossing, method="implicit_adams",
            options={"step_size": 0.1}, engine="julia",
        )  # fmt: skip


@pytest.mark.julia
def test_interp_is_not_for_events_and_that_is_said():
    def found(**extra):
        options = {"step_size": 0.1} | extra
        return pyjode.odeint_event(
            lambda t, y: torch.stack([y[1], -y[0]]), Y0, torch.zeros((), dtype=D), event_fn=crossing, method="rk4",
            options=options, engine="julia",
        )[0]  # fmt: skip

    with pytest.warns(UserWarning, match="interp is not used in a solve to an event"):
        linear = found(interp="linear")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert float(found()) == float(linear)


@pytest.mark.parametrize("grad", [False, True])
def test_solve_makes_callbacks_too(engine, grad):
    f, saveat = Told(), [0.0, 1.0]
    f.k.requires_grad_(grad)
    pyjode.solve(pyjode.ODEProblem(f, Y0, (0.0, 1.0)), "dopri5", saveat=saveat, engine=engine)
    kinds = [kind for kind, *_ in f.calls]
    assert len(f.of("accept")) > 1 and kinds[::2] == ["step"] * (len(kinds) // 2)


@pytest.mark.julia
def test_solve_that_saves_its_steps_tells_each_once():
    f = Told()
    solution = pyjode.solve(pyjode.ODEProblem(f, Y0, (0.0, 1.0)), engine="julia")
    assert [t0 for t0, *_ in f.of("accept")] == solution.ts.tolist()[:-1]


def test_callbacks_of_a_solve_with_events(engine):
    f = Told()
    event = pyjode.Event(crossing, lambda t, y: torch.stack([y[0], -y[1]]), direction=-1)
    problem = pyjode.ODEProblem(f, Y0, (0.0, 1.1))
    solution = pyjode.solve(problem, "dopri5", saveat=[0.0, 1.1], events=event, engine=engine)
    assert len(solution.events.ts) >= 1
    starts = [t0 for t0, *_ in f.of("accept")]
    # After the event the next piece starts there.
    assert any(t0 == pytest.approx(float(solution.events.ts[0]), abs=1e-9) for t0 in starts)


@pytest.mark.julia
def test_independent_solves_say_that_they_make_none():
    f = Told()
    f.forward = lambda t, y: -y
    with pytest.warns(UserWarning, match="makes no callbacks of f"):
        pyjode.odeint(f, torch.ones(3, 2, dtype=D), torch.tensor([0.0, 1.0]), batching="independent", engine="julia")
    assert not f.calls


def test_callbacks_are_found_wherever_they_are():
    class Asked:
        def __getattr__(self, name):
            if name == "callback_step_adjoint":
                return print
            raise AttributeError(name)

    class Method(nn.Module):
        def callback_accept_step(self, t, y, dt):
            pass

    attribute, submodule = nn.Identity(), nn.Identity()
    attribute.callback_reject_step = print
    submodule.callback_step = nn.Identity()
    assert all(map(has_callbacks, (Asked(), Method(), attribute, submodule)))
    switched_off = nn.Identity()
    switched_off.callback_step = None
    assert not any(map(has_callbacks, (nn.Identity(), switched_off, lambda t, y: y, torch.sin)))
