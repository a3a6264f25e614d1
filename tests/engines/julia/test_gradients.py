"""Gradients of the real engine against finite differences and torchdiffeq: the table of benchmarks/gradients.py."""

import warnings

import pytest
import torch
from torch import nn

import pyjode
from benchmarks import gradients as g

pytestmark = pytest.mark.julia

PROBLEMS = {p.name: p for p in g.problems()}


@pytest.fixture(scope="module", params=PROBLEMS, ids=lambda name: name.replace(" ", "-"))
def truths(request):
    """A problem with its two independent truths."""
    problem = PROBLEMS[request.param]
    fd = g.finite_differences(problem, g.julia("Vern9", "GaussAdjoint", 1e-13))
    return problem, fd, g.gradients(problem, g.flattened)


@pytest.mark.parametrize("sensealg", [*g.SENSEALGS, "DiscreteAdjoint"])
def test_every_sensealg(truths, sensealg):
    problem, fd, td = truths
    # BacksolveAdjoint's error is that of solving y backwards; GaussKronrod's quadrature stops at 1e-7.
    found = g.gradients(problem, g.julia("Vern7", sensealg, 1e-11))
    assert max(g.relative_errors(found, fd)) < 1e-6
    assert max(g.relative_errors(found, td)) < 1e-7


# The usual ones, and one of each further family: every method costs seconds of compilation.
EXPLICIT = [
    "Euler",
    "Midpoint",
    "Heun",
    "Ralston",
    "RK4",
    "BS3",
    "OwrenZen5",
    "DP5",
    "Tsit5",
    "BS5",
    "Vern6",
    "Vern7",
    "Vern8",
    "Vern9",
    "DP8",
    "TsitPap8",
    "SSPRK43",
    "CKLLSRK54_3C",
    "Feagin10",
    "rk4",
]


@pytest.mark.parametrize("name", EXPLICIT)
def test_discrete_adjoint_is_the_derivative_of_the_steps(name):
    """Fixed steps, so the solution is a smooth function of its inputs: central differences are the truth.

    Save points inside steps go through each method's interpolant.
    """
    f = g.Driven()
    y0 = torch.tensor([0.4, -0.2], dtype=torch.float64)
    t = torch.tensor([0.0, 0.13, 0.5, 0.71, 1.0], dtype=torch.float64)

    def value(y0):
        problem = pyjode.ODEProblem(f, y0, (0.0, 1.0))
        s = pyjode.solve(
            problem, name, saveat=t, adaptive=False, dt=0.25, sensealg="DiscreteAdjoint", engine="julia", rhs="eager"
        )
        return g.loss(s.ys)

    start = y0.clone().requires_grad_()
    value(start).backward()
    found = torch.cat([start.grad, f.matrix.grad.reshape(-1), f.frequency.grad.reshape(1)])
    truth, h = [], 1e-4
    for x in (y0, f.matrix.data, f.frequency.data):
        flat = x.view(-1)
        for i in range(flat.numel()):
            samples = []
            for k in (-2, -1, 1, 2):
                flat[i] += k * h
                with torch.no_grad():
                    samples.append(value(y0).item())
                flat[i] -= k * h
            truth.append((samples[0] - 8 * samples[1] + 8 * samples[2] - samples[3]) / (12 * h))
    truth = torch.tensor(truth, dtype=torch.float64)
    assert (found - truth).norm() / truth.norm() < 1e-8


@pytest.mark.parametrize("name", ["euler", "midpoint", "rk4"])
def test_discrete_adjoint_equals_backpropagation_through_the_same_steps(name):
    """torchdiffeq's fixed-step solvers take the same steps, so the gradients agree to rounding."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    y0 = torch.randn(3, 2, dtype=torch.float64)
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    results = []
    for engine in ("julia", "torchdiffeq"):
        net.zero_grad()
        start = y0.clone().requires_grad_()
        ys = pyjode.odeint(lambda t, y: net(y), start, t, method=name, engine=engine)
        g.loss(ys).backward()
        results.append(torch.cat([start.grad.reshape(-1), *(p.grad.reshape(-1) for p in net.parameters())]))
    assert (results[0] - results[1]).norm() / results[1].norm() < 1e-12


@pytest.mark.parametrize("way", ["traced", "eager"])
@pytest.mark.parametrize("sensealg", ["GaussAdjoint", "InterpolatingAdjoint", "DiscreteAdjoint"])
def test_both_callback_ways_and_backwards_in_time(way, sensealg):
    """y' = -k y from t = 1 to 0: y = exp(k (1 - t))."""
    k = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    class F(nn.Module):
        def __init__(self):
            super().__init__()
            self.k = k

        def forward(self, t, y):
            return -self.k * y

    y0 = torch.ones(1, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([1.0, 0.25, 0.0], dtype=torch.float64, requires_grad=True)
    s = pyjode.solve(
        pyjode.ODEProblem(F(), y0, (t[0], t[-1])), "Tsit5", saveat=t, sensealg=sensealg, rhs=way, engine="julia",
        rtol=1e-10, atol=1e-12,
    )  # fmt: skip
    s.ys[-1].sum().backward()
    e = torch.exp(torch.tensor(0.7, dtype=torch.float64))
    assert torch.allclose(y0.grad, e.reshape(1), rtol=1e-8)
    assert torch.allclose(k.grad, e, rtol=1e-8)
    assert torch.allclose(t.grad, torch.stack([0.7 * e, 0 * e, -0.7 * e]), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("door", [pyjode.odeint, pyjode.odeint_adjoint])
def test_float32_gradients_are_float32_and_right(door):
    torch.manual_seed(0)
    net = nn.Linear(2, 2)
    double = nn.Linear(2, 2).double()
    double.load_state_dict(net.state_dict())
    y0, t = torch.randn(4, 2), torch.tensor([0.0, 1.0])
    door(lambda t, y: torch.tanh(net(y)), y0, t, rtol=1e-6, atol=1e-6, engine="julia")[-1].sum().backward()
    truth = g.torchdiffeq.odeint(lambda t, y: torch.tanh(double(y)), y0.double(), t.double(), rtol=1e-10, atol=1e-12)
    truth[-1].sum().backward()
    assert net.weight.grad.dtype == torch.float32
    assert torch.allclose(net.weight.grad.double(), double.weight.grad, rtol=1e-3, atol=1e-4)


def test_parameters_changed_between_forward_and_backward_are_noticed():
    f = g.MLP()
    y0 = torch.ones(2, dtype=torch.float64)
    ys = pyjode.odeint(f, y0, torch.tensor([0.0, 1.0]), engine="julia")
    with torch.no_grad():
        f.net[0].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        ys.sum().backward()


def test_second_derivatives_are_refused():
    y0 = torch.ones(2, dtype=torch.float64, requires_grad=True)
    ys = pyjode.odeint(g.MLP(), y0, torch.tensor([0.0, 1.0]), engine="julia")
    with pytest.raises(pyjode.UnsupportedError, match="second derivatives"):
        torch.autograd.grad(ys.sum(), y0, create_graph=True)


def test_a_failed_adjoint_solve_raises():
    y0 = torch.ones(2, dtype=torch.float64, requires_grad=True)
    ys = pyjode.odeint_adjoint(
        g.MLP(), y0, torch.tensor([0.0, 5.0]), engine="julia", adjoint_rtol=1e-13, adjoint_atol=1e-15,
        adjoint_options={"max_num_steps": 3},
    )  # fmt: skip
    with pytest.raises(pyjode.SolverError, match="adjoint solve.*MaxIters"):
        ys.sum().backward()


def test_backward_twice_and_unused_solutions():
    f = g.MLP()
    y0 = torch.ones(2, dtype=torch.float64, requires_grad=True)
    ys = pyjode.odeint(f, y0, torch.tensor([0.0, 1.0]), engine="julia")
    (first,) = torch.autograd.grad(ys.sum(), y0, retain_graph=True)
    (second,) = torch.autograd.grad(ys.sum(), y0)
    assert torch.equal(first, second)


def test_check_gradient_is_silent_when_right_and_warns_when_wrong(monkeypatch):
    from pyjode.engines.julia import engine
    from pyjode.trust import UntrustedGradient

    def work():
        f = g.MLP()
        problem = pyjode.ODEProblem(f, torch.ones(2, dtype=torch.float64), (0.0, 1.0))
        s = pyjode.solve(problem, "Tsit5", saveat=[0.0, 0.5, 1.0], check_gradient=True, engine="julia")
        g.loss(s.ys).backward()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        work()
    right = engine._Solve.backward

    def wrong(self, *args):
        du0, dts, dps = right(self, *args)
        return du0 * 1.1, dts, dps

    monkeypatch.setattr(engine._Solve, "backward", wrong)
    with pytest.warns(UntrustedGradient, match="finite difference"):
        work()


@pytest.mark.parametrize("name", ["QPRK98", "VCABM", "Rosenbrock23", "KenCarp4"])
def test_a_method_without_a_discrete_adjoint_says_so(name):
    problem = pyjode.ODEProblem(g.MLP(), torch.ones(2, dtype=torch.float64), (0.0, 1.0))
    with pytest.raises(pyjode.UnsupportedError, match=f"{name}.*Adjoint"):
        pyjode.solve(problem, name, saveat=[0.0, 1.0], sensealg="DiscreteAdjoint", engine="julia")


@pytest.mark.parametrize("door", [pyjode.odeint, pyjode.odeint_adjoint])
def test_a_convolution_stays_in_torch_called_back(door):
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 2, 3, padding=1, dtype=torch.float64)

    def f(t, y):
        return torch.tanh(conv(y)) * torch.cos(t)

    y0 = torch.randn(3, 2, 5, 5, dtype=torch.float64)
    t = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    assert pyjode.explain(f, y0).way == "traced"
    results = []
    for solver in (
        lambda y: door(f, y, t, method="Tsit5", rtol=1e-10, atol=1e-12, engine="julia"),
        lambda y: g.torchdiffeq.odeint(f, y, t, rtol=1e-11, atol=1e-13),
    ):
        conv.zero_grad()
        start = y0.clone().requires_grad_()
        g.loss(solver(start)).backward()
        results.append(torch.cat([start.grad.reshape(-1), conv.weight.grad.reshape(-1), conv.bias.grad]))
    assert (results[0] - results[1]).norm() / results[1].norm() < 1e-8


@pytest.mark.parametrize("sensealg", ["GaussAdjoint", "GaussKronrodAdjoint"])
def test_a_first_adjoint_step_cut_at_a_save_point(sensealg):
    """So smooth a problem that one step would do; OrdinaryDiffEqCore 4.6 reads within such a step at wrong times."""
    g = torch.tensor(9.81, dtype=torch.float64, requires_grad=True)

    def falling(t, y):
        return torch.stack([y[1], -g])

    ts = torch.tensor([0.1, 0.45], dtype=torch.float64)
    weights = torch.tensor([0.6, -0.2], dtype=torch.float64)
    solution = pyjode.solve(
        pyjode.ODEProblem(falling, torch.tensor([1.0, 0.0], dtype=torch.float64), (0.0, 0.45)), "Rodas5P", saveat=ts,
        sensealg=sensealg, rtol=1e-8, atol=1e-10, engine="julia",
    )  # fmt: skip
    (found,) = torch.autograd.grad((solution.ys[-1] * weights).sum(), g)
    assert found.item() == pytest.approx(-0.6 * 0.45**2 / 2 + 0.2 * 0.45, abs=1e-9)
