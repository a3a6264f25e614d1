"""SciML's door, on both engines where both can."""

import math

import pytest
import torch
from torch import nn

import pyjode
from pyjode import ODEProblem, solve
from pyjode.solve import _plain_save_times, _save_times, _time


def decay(t, y):
    return -y


ONE = torch.ones(1, dtype=torch.float64)


def test_solution_fields(engine):
    s = solve(ODEProblem(decay, ONE, (0.0, 1.0)), "DP5", saveat=[0.0, 0.5, 1.0], engine=engine)
    assert torch.equal(s.ts, torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))
    assert torch.allclose(s.ys[:, 0], torch.exp(-s.ts), rtol=1e-5)
    assert s.retcode == "Success" and s.success and s.engine == engine and s.method == "DP5"
    assert s.stats.nfe > 6 and s.stats.naccept >= 1 and s.stats.nreject >= 0
    assert s.t_reached == 1.0


def test_dense_output(engine):
    s = solve(ODEProblem(decay, ONE, (0.0, 2.0)), "DP5", saveat=[0.0, 2.0], engine=engine, rtol=1e-8, atol=1e-10)
    times = torch.tensor([1.3, 0.2, 0.2, 2.0, 0.0], dtype=torch.float64)
    assert torch.allclose(s(times)[:, 0], torch.exp(-times), rtol=1e-6)
    assert s(0.7).shape == (1,)
    with pytest.raises(pyjode.InputError, match="between t = 0 and 2"):
        s(2.5)
    with pytest.raises(pyjode.UnsupportedError, match="dense=True"):
        solve(ODEProblem(decay, ONE, (0.0, 2.0)), "DP5", saveat=[2.0], dense=False, engine=engine)(1.0)


def test_dense_output_is_differentiable(engine):
    k = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    y0 = ONE.clone().requires_grad_()
    s = solve(
        ODEProblem(lambda t, y: -k * y, y0, (0.0, 2.0)), "DP5", saveat=[0.0, 2.0], engine=engine, rtol=1e-9, atol=1e-11
    )
    s(torch.tensor([1.5, 0.5], dtype=torch.float64))[0].sum().backward()
    assert torch.allclose(k.grad, torch.tensor(-1.5 * math.exp(-1.2), dtype=torch.float64), rtol=1e-6)
    assert torch.allclose(y0.grad, torch.tensor([math.exp(-1.2)], dtype=torch.float64), rtol=1e-6)


def test_saveat_inside_the_span(engine):
    s = solve(ODEProblem(decay, ONE, (0.0, 2.0)), "DP5", saveat=[0.5, 1.0], engine=engine)
    assert s.ts.tolist() == [0.5, 1.0] and s.ys.shape == (2, 1)
    assert torch.allclose(s.ys[:, 0], torch.exp(-s.ts), rtol=1e-5)


@pytest.mark.parametrize("shape", [(), (2,), (3, 2), (2, 1, 2)])
@pytest.mark.parametrize("rows", [slice(0, 4), slice(1, 4), slice(0, 3), slice(1, 3)])
def test_states_at_some_times_are_those_at_all_and_so_are_their_gradients(engine, shape, rows):
    times = torch.tensor([0.0, 0.4, 0.9, 1.5], dtype=torch.float64)
    k = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    y0 = torch.rand(shape, dtype=torch.float64).requires_grad_()
    # A view, as y0 often is; and the other way round in memory.
    start = y0.expand_as(y0) if len(shape) < 2 else y0.transpose(0, 1).contiguous().transpose(0, 1)
    saved = times[rows].clone().requires_grad_()
    for saveat in (times[rows].tolist(), saved):
        s = solve(
            ODEProblem(lambda t, y: -k * y * torch.cos(t), start, (0.0, 1.5)), "DP5", saveat=saveat, engine=engine,
            rtol=1e-11, atol=1e-13,
        )  # fmt: skip
        # A first time that is the start's is the start: the solution depends on it as on t0.
        begin = saved[0] if rows.start == 0 else torch.tensor(0.0, dtype=torch.float64)
        exact = y0 * torch.exp(-k * (torch.sin(saved) - torch.sin(begin))).reshape(-1, *[1] * len(shape))
        assert s.ys.shape == exact.shape and torch.equal(s.ts, times[rows])
        assert torch.allclose(s.ys, exact, rtol=1e-8)
        s.ys.mul_(2)  # what is returned is the user's
        weights = torch.rand_like(exact)
        wanted = [y0, k, *([saved] if saveat is saved else [])]
        found = torch.autograd.grad((weights * s.ys).sum(), wanted)
        for a, b in zip(found, torch.autograd.grad((2 * weights * exact).sum(), wanted), strict=True):
            assert torch.allclose(a, b, rtol=1e-6, atol=1e-9)


def test_a_step_size_that_is_changed_in_place_is_seen(engine):
    dt = torch.tensor(0.5)
    counts = []
    for _ in range(2):
        s = solve(
            ODEProblem(decay, ONE, (0.0, 1.0)), "RK4" if engine == "julia" else "rk4", saveat=[1.0], dt=dt,
            adaptive=False, engine=engine,
        )  # fmt: skip
        counts.append(s.stats.nfe)
        dt /= 2
    assert counts[1] >= 2 * counts[0] - 2


def test_saveat_spacing(engine):
    s = solve(ODEProblem(decay, ONE, (0.0, 1.0)), "DP5", saveat=0.3, engine=engine)
    assert torch.allclose(s.ts, torch.tensor([0.0, 0.3, 0.6, 0.9, 1.0], dtype=torch.float64))
    back = solve(ODEProblem(decay, ONE, (1.0, 0.0)), "DP5", saveat=0.5, engine=engine)
    assert torch.allclose(back.ts, torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64))
    assert torch.allclose(back.ys[-1], torch.tensor([math.e], dtype=torch.float64), rtol=1e-5)


def test_gradients_by_the_ends_of_the_span(engine):
    """y(t1) = y0 exp(-(t1 - t0)); report 2's dL/dt0 and dL/dt1."""
    t0, t1 = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (0.2, 1.2))
    solve(ODEProblem(decay, ONE, (t0, t1)), "DP5", saveat=torch.stack([t0, t1]), engine=engine).ys[-1].sum().backward()
    assert torch.allclose(t0.grad, torch.tensor(math.exp(-1.0), dtype=torch.float64), rtol=1e-5)
    assert torch.allclose(t1.grad, torch.tensor(-math.exp(-1.0), dtype=torch.float64), rtol=1e-5)


def test_throw_false_returns_what_there_is(engine):
    s = solve(
        ODEProblem(lambda t, y: y**2, ONE, (0.0, 2.0)), "DP5", saveat=[0.0, 0.5, 2.0], engine=engine, throw=False,
        maxiters=500,
    )  # fmt: skip
    assert not s.success and s.retcode in ("MaxIters", "DtLessThanMin", "Unstable")
    assert s.ys[-1].isnan().all()


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"saveat": [0.0, 3.0]}, "outside the time span"),
        ({"saveat": [1.0, 0.0]}, "against the direction"),
        ({"saveat": -0.1}, "spacing"),
        ({"method": "Tsit"}, "Tsit5"),
        ({"method": "euler", "adaptive": True}, "fixed steps only"),
        ({"maxiters": 0}, "maxiters"),
        ({"dt": math.inf}, "dt"),
        ({"rhs": "fast"}, "rhs"),
        ({"sensealg": "GausAdjoint"}, "GaussAdjoint"),
        ({"atol": math.nan}, "atol"),
    ],
)
def test_refusals(engine, keywords, message):
    keywords = {"method": "DP5", "saveat": [0.0, 1.0]} | keywords
    with pytest.raises(pyjode.InputError, match=message):
        solve(ODEProblem(decay, ONE, (0.0, 1.0)), engine=engine, **keywords)


@pytest.mark.parametrize("tspan", [(0.0, 0.0), (0.0, math.inf), (torch.zeros(2), 1.0)])
def test_time_spans_that_are_refused(engine, tspan):
    with pytest.raises(pyjode.InputError):
        solve(ODEProblem(decay, ONE, tspan), "DP5", engine=engine)


def test_julias_own_is_refused_on_the_embedded_engine():
    problem = ODEProblem(decay, ONE.clone().requires_grad_(), (0.0, 1.0))
    with pytest.raises(pyjode.UnsupportedError, match="Rodas5P.*pyjode setup"):
        solve(problem, "Rodas5P", saveat=[1.0], engine="torchdiffeq")
    with pytest.raises(pyjode.UnsupportedError, match="GaussAdjoint.*pyjode setup"):
        solve(problem, "DP5", saveat=[1.0], sensealg="GaussAdjoint", engine="torchdiffeq")
    with pytest.raises(pyjode.UnsupportedError, match="saveat"):
        solve(problem, "DP5", engine="torchdiffeq")


@pytest.mark.julia
def test_every_step_is_saved_by_default():
    s = solve(ODEProblem(decay, ONE, (0.0, 1.0)), "Tsit5", engine="julia")
    assert len(s.ts) == s.stats.naccept + 1 and s.ts[0] == 0.0 and s.ts[-1] == 1.0
    assert torch.allclose(s.ys[:, 0], torch.exp(-s.ts), rtol=1e-5)


@pytest.mark.julia
def test_every_step_is_differentiable():
    y0 = ONE.clone().requires_grad_()
    s = solve(ODEProblem(decay, y0, (0.0, 1.0)), "Tsit5", engine="julia", rtol=1e-8, atol=1e-10)
    s.ys.sum().backward()
    assert torch.allclose(y0.grad, torch.exp(-s.ts).sum().reshape(1), rtol=1e-6)


def test_neural_ode(engine):
    torch.manual_seed(0)
    net = nn.Linear(2, 2, dtype=torch.float64)

    class F(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, t, y):
            return self.net(y)

    y0 = torch.randn(3, 2, dtype=torch.float64)
    layer = pyjode.NeuralODE(F(), t=(0.0, 1.0), method="DP5", engine=engine, rtol=1e-9, atol=1e-11)
    assert [name for name, _ in layer.named_parameters()] == ["f.net.weight", "f.net.bias"]
    end = layer(y0)
    assert end.shape == (3, 2)
    times = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)
    path = layer(y0, times)
    assert path.shape == (3, 3, 2) and torch.allclose(path[-1], end, rtol=1e-7)
    augmented = torch.zeros(3, 3, dtype=torch.float64)
    augmented[:2, :2], augmented[:2, 2] = net.weight.detach(), net.bias.detach()
    start = torch.cat([y0, torch.ones(3, 1, dtype=torch.float64)], dim=1)
    truth = (start @ torch.linalg.matrix_exp(augmented).T)[:, :2]
    assert torch.allclose(end, truth, rtol=1e-7)
    end.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())


def test_times_given_as_numbers_are_not_rounded(engine):
    solution = solve(ODEProblem(lambda t, y: y, torch.ones(1), (0.0, 0.7)), saveat=[0.1, 0.7], engine=engine)
    assert solution.ts.tolist() == [0.1, 0.7]


def test_solves_are_logged_for_who_listens(caplog: pytest.LogCaptureFixture) -> None:
    problem = ODEProblem(lambda t, y: -y, torch.ones(2), (0.0, 1.0))
    # Not the root logger's own level: what other libraries set it to is theirs.
    with caplog.at_level("WARNING", logger="pyjode"):
        solve(problem, saveat=0.5, engine="torchdiffeq")
    assert not caplog.records
    with caplog.at_level("DEBUG", logger="pyjode"):
        solution = solve(problem, saveat=0.5, engine="torchdiffeq")
    (record,) = caplog.records
    assert record.getMessage().startswith(f"dopri5 on torchdiffeq: Success, nf {solution.stats.nfe}, naccept ")


@pytest.mark.parametrize("span", [(0.0, 2.0), (2.0, 0.0), (0, 2), (0.5, 1.5), (1.5, 0.5)])
@pytest.mark.parametrize("times", [[0.5, 1.0, 1.5], [1.5, 0.5], [1.0], [0.0, 2.0], [2.0, 1.0, 0.0], [0.5, 1.0, 1.0]])
def test_usual_save_times_are_read_the_short_way_and_mean_the_same(span, times):
    saveat = torch.tensor(times, dtype=torch.float64)
    ends = [_time(t, "tspan") for t in span]
    plain = _plain_save_times(saveat, span)
    if plain is None:  # then something is wrong with it
        with pytest.raises(pyjode.InputError):
            _save_times(saveat, *ends)
        return
    grid, saved = plain
    wanted, which = _save_times(saveat, *ends)
    assert grid[0] == ends[0] and torch.equal(grid, wanted) and saved == which and grid.dtype == torch.float64
    as_list = _plain_save_times(times, span)
    assert as_list is not None and torch.equal(as_list[0], wanted) and as_list[1] == which
    saveat.zero_()  # the solution's times are its own
    assert torch.equal(grid, wanted)


@pytest.mark.parametrize(
    ("saveat", "span"),
    [
        (torch.tensor([0.5]), (0.0, 1.0)),  # float32
        (torch.tensor([0.5], dtype=torch.float64, requires_grad=True), (0.0, 1.0)),
        (torch.tensor([0.5], dtype=torch.float64), (torch.tensor(0.0), 1.0)),
        (torch.tensor([0.5], dtype=torch.float64), (0.0, float("inf"))),
        (torch.tensor([float("nan")], dtype=torch.float64), (0.0, 1.0)),
        (torch.tensor(0.5, dtype=torch.float64), (0.0, 1.0)),
        ([torch.tensor(0.5)], (0.0, 1.0)),
        ([], (0.0, 1.0)),
        ([0.5, float("nan")], (0.0, 1.0)),
        (0.5, (0.0, 1.0)),
        (None, (0.0, 1.0)),
    ],
)
def test_other_save_times_are_not_read_the_short_way(saveat, span):
    assert _plain_save_times(saveat, span) is None
