"""batching="independent": every sample as if it were alone, on both engines."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import pyjode
from pyjode import ODEProblem, odeint, odeint_adjoint, solve
from pyjode.engines.julia import runtime

DOUBLE = torch.float64


class Lorenz(nn.Module):
    def __init__(self):
        super().__init__()
        self.p = nn.Parameter(torch.tensor([10.0, 28.0, 8 / 3], dtype=DOUBLE))

    def forward(self, t, y):
        x, y_, z = y[..., 0], y[..., 1], y[..., 2]
        return torch.stack(
            [self.p[0] * (y_ - x), x * (self.p[1] - z) - y_ + torch.sin(t), x * y_ - self.p[2] * z], dim=-1
        )


class Eager(Lorenz):
    """Called back: it changes Python state."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, t, y):
        self.calls += 1
        return super().forward(t, y)


def starts(batch, seed=0):
    return 5 * torch.randn(batch, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def gradients(f, y0, t, solver):
    """States, and gradients of a loss by y0, parameters and times."""
    f.zero_grad()
    y0, t = y0.clone().requires_grad_(), t.clone().requires_grad_()
    ys = solver(f, y0, t)
    weights = torch.linspace(0.5, 1.5, ys.numel(), dtype=DOUBLE).reshape(ys.shape)
    (weights * torch.sin(ys)).sum().backward()
    return ys.detach(), y0.grad, f.p.grad.clone(), t.grad


def one_by_one(f, y0, t, **options):
    """The same by a solve for each sample."""
    rows = t if t.ndim == 2 else [t] * len(y0)
    return torch.stack([odeint(f, y0[b : b + 1], row, **options)[:, 0] for b, row in enumerate(rows)], dim=1)


T = torch.tensor([0.0, 0.03, 0.1, 0.14], dtype=DOUBLE)


@pytest.mark.parametrize("kind", [Lorenz, Eager])
def test_same_as_a_solve_for_each(engine, kind):
    f, y0 = kind(), starts(3)
    options = {"rtol": 1e-6, "atol": 1e-8, "engine": engine}
    found = gradients(f, y0, T, lambda f, y0, t: odeint(f, y0, t, batching="independent", **options))
    wanted = gradients(f, y0, T, lambda f, y0, t: one_by_one(f, y0, t, **options))
    for a, b in zip(found, wanted, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-11)


@pytest.mark.julia
def test_gradients_are_those_of_finite_differences():
    f, y0 = Lorenz(), starts(3)
    options = {"rtol": 1e-11, "atol": 1e-12, "batching": "independent", "engine": "julia", "method": "Vern7"}
    _, by_y0, by_p, by_t = gradients(f, y0, T, lambda f, y0, t: odeint(f, y0, t, **options))

    def loss():
        with torch.no_grad():
            ys = odeint(f, y0, T + shift, **options)
            weights = torch.linspace(0.5, 1.5, ys.numel(), dtype=DOUBLE).reshape(ys.shape)
            return float((weights * torch.sin(ys)).sum())

    def at(entry, i, value):
        before = entry[i].item()
        entry[i] = before + value
        found = loss()
        entry[i] = before
        return found

    # Of fourth order: y moves hundreds of units a unit of time.
    shift, h = torch.zeros_like(T), 2e-5
    for x, gradient in ((y0, by_y0), (f.p.data, by_p), (shift, by_t)):
        for i in range(min(x.numel(), 4)):
            near, far = (at(x.view(-1), i, k * h) - at(x.view(-1), i, -k * h) for k in (1, 2))
            difference = (8 * near - far) / (12 * h)
            assert gradient.reshape(-1)[i].item() == pytest.approx(difference, rel=2e-6, abs=2e-5)


def test_each_sample_has_times_of_its_own(engine):
    f, y0 = Lorenz(), starts(2)
    t = torch.stack([T, 0.1 + 0.5 * T])
    found = gradients(f, y0, t, lambda f, y0, t: odeint(f, y0, t, batching="independent", engine=engine))
    wanted = gradients(f, y0, t, lambda f, y0, t: one_by_one(f, y0, t, engine=engine))
    for a, b in zip(found, wanted, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-11)


def test_backwards_in_time(engine):
    y0 = torch.tensor([[1.0], [2.0]], dtype=DOUBLE, requires_grad=True)
    ys = odeint(lambda t, y: -y, y0, torch.tensor([1.0, 0.0], dtype=DOUBLE), batching="independent", engine=engine)
    ys[-1].sum().backward()
    assert torch.allclose(ys[-1], math.e * y0.detach(), rtol=1e-6)
    assert torch.allclose(y0.grad, torch.full_like(y0, math.e), rtol=1e-6)


def test_a_stiff_sample_does_not_slow_the_others(engine):
    """The rate is a part of the state: a fast sample needs more steps, the others take what they take alone."""

    def f(t, y):
        x, rate = y[..., :1], y[..., 1:]
        return torch.cat([-rate * (x - torch.cos(t)), torch.zeros_like(rate)], dim=-1)

    y0 = torch.tensor([[0.0, 1.0], [0.0, 80.0], [0.0, 2.0]], dtype=DOUBLE)
    s = solve(ODEProblem(f, y0, (0.0, 1.0)), "DP5", saveat=[1.0], batching="independent", engine=engine)
    alone = [solve(ODEProblem(f, y0[b : b + 1], (0.0, 1.0)), "DP5", saveat=[1.0], engine=engine) for b in range(3)]
    for name in ("nfe", "naccept", "nreject"):
        assert getattr(s.stats, name).tolist() == [getattr(a.stats, name) for a in alone]
    assert s.stats.naccept[1] > 2 * s.stats.naccept[0]
    assert torch.allclose(s.ys, torch.cat([a.ys for a in alone], dim=1), rtol=1e-12)
    assert s.retcode == "Success" and s.success and s.retcodes == ("Success",) * 3
    assert s.t_reached.tolist() == [1.0] * 3


def test_failures_name_their_samples(engine):
    def f(t, y):
        return y**2  # blows up at 1 / y0

    y0 = torch.tensor([[0.5], [2.0], [0.1], [4.0]], dtype=DOUBLE, requires_grad=True)
    problem = ODEProblem(f, y0, (0.0, 1.0))
    options = {"saveat": [0.2, 1.0], "batching": "independent", "engine": engine, "maxiters": 80, "rtol": 1e-4}
    with pytest.raises(pyjode.SolverError, match="2 of 4 samples .*samples 1, 3") as caught:
        solve(problem, "DP5", **options)
    assert caught.value.retcode != "Success"
    s = solve(problem, "DP5", throw=False, **options)
    good = torch.tensor([True, False, True, False])
    assert [r == "Success" for r in s.retcodes] == good.tolist() and s.retcode == s.retcodes[1] and not s.success
    assert torch.allclose(s.ys[-1, good], (y0 / (1 - y0))[good], rtol=1e-2)
    assert s.ys[-1, ~good].isnan().all()
    # Those that reached their end have their gradients.
    s.ys[-1, good].sum().backward()
    wanted = torch.where(good[:, None], 1 / (1 - y0.detach()) ** 2, 0.0)
    assert torch.allclose(y0.grad, wanted, rtol=1e-2)


def test_f_that_mixes_samples_is_refused(engine):
    y0 = torch.randn(4, 2, dtype=DOUBLE)
    with pytest.raises(pyjode.InputError, match="beside other samples"):
        odeint(lambda t, y: y - y.mean(dim=0, keepdim=True), y0, T, batching="independent", engine=engine)


def test_the_check_does_not_count_as_calls(engine):
    f = Eager()
    s = solve(ODEProblem(f, starts(2), (0.0, 0.1)), "DP5", saveat=[0.1], batching="independent", engine=engine)
    assert f.calls == s.stats.nfe.sum()


def test_wrong_arguments(engine):
    y0 = torch.ones(3, 2)

    def f(t, y):
        return -y

    with pytest.raises(pyjode.InputError, match="batching='each'"):
        odeint(f, y0, T, batching="each", engine=engine)
    with pytest.raises(pyjode.InputError, match="first axis"):
        odeint(f, (y0, torch.ones(2)), T, batching="independent", engine=engine)
    with pytest.raises(pyjode.InputError, match="first axis"):
        odeint(f, torch.tensor(1.0), T, batching="independent", engine=engine)
    with pytest.raises(pyjode.InputError, match="2 samples, y0 has 3"):
        odeint(f, y0, torch.stack([T, T]), batching="independent", engine=engine)
    with pytest.raises(pyjode.InputError, match="every row"):
        odeint(f, y0, torch.stack([T, -T, T]), batching="independent", engine=engine)
    with pytest.raises(pyjode.InputError, match="NaN or infinite entries .sample 1"):
        odeint(f, torch.tensor([[1.0], [math.nan]]), T, batching="independent", engine=engine)
    with pytest.raises(pyjode.UnsupportedError, match="pass saveat"):
        solve(ODEProblem(f, y0, (0.0, 1.0)), batching="independent", engine=engine)


def test_dense_output(engine):
    y0 = torch.tensor([[1.0], [3.0]], dtype=DOUBLE, requires_grad=True)
    s = solve(ODEProblem(lambda t, y: -y, y0, (0.0, 1.0)), "DP5", saveat=[1.0], batching="independent", engine=engine)
    times = torch.tensor([0.7, 0.0, 0.2], dtype=DOUBLE)
    assert torch.allclose(s(times), torch.exp(-times)[:, None, None] * y0, rtol=1e-5)
    s(0.5).sum().backward()
    assert torch.allclose(y0.grad, torch.full_like(y0, math.exp(-0.5)), rtol=1e-5)


def test_layer(engine):
    class Linear(nn.Linear):
        def forward(self, t, y):
            return super().forward(y)

    layer = pyjode.NeuralODE(Linear(2, 2).double(), batching="independent", engine=engine, method="dopri5")
    y0 = torch.randn(3, 2, dtype=DOUBLE)
    joint = odeint(layer.f, y0, torch.tensor([0.0, 1.0], dtype=DOUBLE), engine=engine)[-1]
    assert torch.allclose(layer(y0), joint, rtol=1e-5)
    layer(y0).sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


@settings(max_examples=6, deadline=None)
@given(
    batch=st.integers(1, 6),
    inner=st.lists(st.integers(1, 3), max_size=2).map(tuple),
    nested=st.booleans(),
    times=st.integers(2, 4),
)
def test_any_shape_on_the_embedded_engine(batch, inner, nested, times):
    check_shape("torchdiffeq", batch, inner, nested, times)


@pytest.mark.julia
@settings(max_examples=6, deadline=None)
@given(
    batch=st.integers(1, 200),
    inner=st.lists(st.integers(1, 3), max_size=2).map(tuple),
    nested=st.booleans(),
    times=st.integers(2, 4),
)
def test_any_shape_on_the_julia_engine(batch, inner, nested, times):
    check_shape("julia", batch, inner, nested, times)


def check_shape(engine, batch, inner, nested, times):
    """dy/dt = -k y has its closed form at any shape; k's gradient is the sum over the samples."""
    k = torch.tensor(0.7, dtype=DOUBLE, requires_grad=True)
    y0 = torch.rand(batch, *inner, dtype=DOUBLE).requires_grad_()
    t = torch.linspace(0.0, 1.0, times, dtype=DOUBLE)
    if nested:
        ys = odeint(
            lambda t, y: {"a": -k * y["a"], "b": y["b"]}, {"a": y0, "b": torch.ones(batch, dtype=DOUBLE)}, t,
            batching="independent", engine=engine,
        )  # fmt: skip
        assert ys["b"].shape == (times, batch)
        assert torch.allclose(ys["b"], torch.exp(t)[:, None].expand(times, batch), rtol=1e-6)
        ys = ys["a"]
    else:
        ys = odeint(lambda t, y: -k * y, y0, t, batching="independent", engine=engine)
    factor = torch.exp(-k.detach() * t).reshape(-1, *[1] * y0.ndim)
    assert ys.shape == (times, *y0.shape)
    assert torch.allclose(ys, factor * y0, rtol=1e-6)
    ys.sum().backward()
    assert torch.allclose(y0.grad, factor.sum().expand_as(y0), rtol=1e-6)
    assert k.grad.item() == pytest.approx(float(-(t * torch.exp(-k.detach() * t)).sum() * y0.detach().sum()), rel=1e-6)


@pytest.mark.julia
@pytest.mark.parametrize("method", ["Tsit5", "BS3", "Vern7", "rk4", "Rodas5P"])
def test_methods_are_the_same_as_one_by_one(method):
    """Restarted integrators take the very steps of fresh ones, with every kind of method."""
    f, y0 = Lorenz(), starts(7)
    options = {"saveat": T, "engine": "julia"} | ({"dt": 0.05} if method == "rk4" else {})
    s = solve(ODEProblem(f, y0, (0.0, 0.14)), method, batching="independent", **options)
    for b in range(len(y0)):
        with torch.no_grad():
            one = solve(ODEProblem(f, y0[b : b + 1], (0.0, 0.14)), method, dense=False, **options)
        assert torch.equal(s.ys[:, b].detach(), one.ys[:, 0])
        assert s.stats.naccept[b] == one.stats.naccept and s.stats.nfe[b] == one.stats.nfe


@pytest.mark.julia
@pytest.mark.parametrize(("method", "sensealg"), [("Tsit5", "GaussAdjoint"), ("Rodas5P", None)])
def test_continuous_adjoints(method, sensealg):
    f, y0 = Lorenz(), starts(4)
    options = {"method": method, "sensealg": sensealg, "rtol": 1e-9, "atol": 1e-11, "engine": "julia"}
    found = gradients(f, y0, T, lambda f, y0, t: odeint_adjoint(f, y0, t, batching="independent", **options))
    wanted = gradients(f, y0, T, lambda f, y0, t: one_by_one(f, y0, t, rtol=1e-10, atol=1e-12, engine="julia"))
    for a, b in zip(found, wanted, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.julia
def test_many_samples_on_all_threads_give_the_same_bits_every_time():
    f, y0 = Lorenz(), starts(500)

    def run():
        return gradients(f, y0, T, lambda f, y0, t: odeint(f, y0, t, batching="independent", engine="julia"))

    first, second = run(), run()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.julia
def test_an_exception_in_f_comes_out_as_itself():
    class MyError(Exception):
        pass

    def f(t, y):
        if float(t) > 0.05:
            raise MyError
        return -y

    with pytest.raises(MyError):
        odeint(f, torch.ones(3, 1), T, batching="independent", engine="julia")
    assert torch.isfinite(odeint(lambda t, y: -y, torch.ones(3, 1), T, batching="independent", engine="julia")).all()


def test_threads_setting(monkeypatch):
    monkeypatch.setenv("PYJODE_THREADS", "3")
    assert runtime.wanted_threads() == 3
    monkeypatch.delenv("PYJODE_THREADS")
    assert runtime.wanted_threads() == runtime.allowed_processors() >= 1
    for wrong in ("0", "two", "-1", ""):
        monkeypatch.setenv("PYJODE_THREADS", wrong)
        with pytest.raises(pyjode.InputError, match="PYJODE_THREADS"):
            runtime.wanted_threads()


@pytest.mark.julia
def test_check_gradient_is_silent_when_right_and_warns_when_wrong(monkeypatch):
    from pyjode.engines.julia import independent
    from pyjode.trust import UntrustedGradient

    def work():
        problem = ODEProblem(Lorenz(), starts(3), (0.0, 0.14))
        solution = solve(problem, saveat=T, batching="independent", check_gradient=True, engine="julia")
        solution.ys.sin().sum().backward()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        work()
    right = independent._Solves.backward

    def wrong(self, *args):
        du0, dts, dps = right(self, *args)
        return du0, dts, [1.1 * dp for dp in dps]

    monkeypatch.setattr(independent._Solves, "backward", wrong)
    with pytest.warns(UntrustedGradient, match="finite difference"):
        work()
