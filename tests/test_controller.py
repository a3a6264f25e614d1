"""Step size controllers: torchdiffeq's in ``odeint``, Julia's or torchdiffeq's in ``solve``."""

from __future__ import annotations

import pytest
import torch
import torchdiffeq
from torch import Tensor, nn

import pyjode
from pyjode import InputError, UnsupportedError


class Decay(nn.Module):
    """Towards a slow oscillation; remembers the steps that were accepted."""

    def __init__(self) -> None:
        super().__init__()
        self.accepted: list[tuple[float, float]] = []

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.cos(t) - y

    def callback_accept_step(self, t0: Tensor, y0: Tensor, dt: Tensor) -> None:
        self.accepted.append((float(t0), float(dt)))


def network(dtype: torch.dtype) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 50), nn.Tanh(), nn.Linear(50, 50), nn.Tanh(), nn.Linear(50, 2)).to(dtype)
    y0 = torch.randn(20, 2, generator=torch.Generator().manual_seed(1)).to(dtype)
    return net, y0, torch.linspace(0.0, 2.5, 5, dtype=torch.float64)


def solved(dtype: torch.dtype, method: str = "Tsit5", **how: object) -> pyjode.Solution:
    net, y0, t = network(dtype)
    problem = pyjode.ODEProblem(lambda t, y: net(y), y0, (0.0, 2.5))
    with torch.no_grad():
        return pyjode.solve(problem, method, saveat=t, rtol=1e-6, atol=1e-6, engine="julia", **how)


@pytest.mark.julia
@pytest.mark.parametrize(("method", "within"), [("dopri5", 0.03), ("bosh3", 1e-3)])
def test_the_steps_of_odeint_are_those_of_torchdiffeq(method: str, within: float) -> None:
    found, expected = Decay(), Decay()
    y0, t = torch.tensor([3.0], dtype=torch.float64), torch.tensor([0.0, 3.0], dtype=torch.float64)
    how = {"rtol": 1e-7, "atol": 1e-9, "method": method, "options": {"first_step": 0.01}}
    pyjode.odeint(found, y0, t, engine="julia", **how)
    torchdiffeq.odeint(expected, y0, t, **how)
    # As long as steps grow: of one accepted with little to spare the next is smaller here and the same size there.
    # dopri5's error estimate here is a multiple of torchdiffeq's, and so are its steps after the first two.
    ratios = [a / b for (_, a), (_, b) in zip(found.accepted, expected.accepted, strict=False)][2:11]
    assert len(ratios) == 9 and max(ratios) < (1 + within) * min(ratios), ratios
    assert 0.9 < min(ratios) < 0.95 if method == "dopri5" else abs(ratios[0] - 1) < within


@pytest.mark.julia
def test_options_change_nothing_of_the_controller_they_do_not_name() -> None:
    net, y0, t = network(torch.float64)
    counts = []
    for options in (None, {"safety": 0.9}, {"ifactor": 10.0}, {"max_num_steps": 1000}):
        calls = 0

        def f(t: Tensor, y: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            return net(y)

        with torch.no_grad():
            pyjode.odeint(f, y0, t, rtol=1e-9, atol=1e-9, options=options, engine="julia")
        counts.append(calls)
    assert calls > 0 and len(set(counts)) == 1, counts


@pytest.mark.julia
@pytest.mark.parametrize(("dtype", "usual"), [(torch.float64, "PI"), (torch.float32, "I")])
@pytest.mark.parametrize("method", ["Tsit5", "dopri5", "BS3"])
def test_the_default_is_by_precision(dtype: torch.dtype, usual: str, method: str) -> None:
    default, same = solved(dtype, method), solved(dtype, method, controller=usual)
    assert torch.equal(default.ys, same.ys) and default.stats == same.stats


@pytest.mark.julia
def test_rounding_noise_costs_an_integral_controller_no_steps() -> None:
    exact = solved(torch.float64, "Vern9").ys
    integral, pi = solved(torch.float32), solved(torch.float32, controller="PI")
    assert integral.stats.nfe < 0.6 * pi.stats.nfe
    assert (integral.ys - exact).abs().max() < 2e-5


@pytest.mark.julia
def test_samples_of_their_own_have_the_controller_too() -> None:
    net, y0, t = network(torch.float64)
    f = lambda t, y: net(y)  # noqa: E731
    for controller in ("I", "PI"):
        how = {"saveat": t, "rtol": 1e-7, "atol": 1e-7, "controller": controller, "engine": "julia"}
        with torch.no_grad():
            batch = pyjode.solve(pyjode.ODEProblem(f, y0, (0.0, 2.5)), batching="independent", **how)
            alone = [pyjode.solve(pyjode.ODEProblem(f, y, (0.0, 2.5)), **how) for y in y0[:, None]]
        assert batch.stats.naccept.tolist() == [solution.stats.naccept for solution in alone]
    # They differ, or the test would see nothing.
    assert solved(torch.float64, controller="I").stats.naccept != solved(torch.float64, controller="PI").stats.naccept


@pytest.mark.julia
def test_gradients_with_either_are_right() -> None:
    net, y0, t = network(torch.float64)
    parameters = tuple(net.parameters())

    def gradient(solve: object) -> Tensor:
        loss = solve().square().sum()
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, parameters)])

    f = lambda t, y: net(y)  # noqa: E731
    truth = gradient(lambda: torchdiffeq.odeint(f, y0, t, rtol=1e-11, atol=1e-11, method="dopri8"))
    for sensealg in ("DiscreteAdjoint", "GaussAdjoint"):
        for controller in ("I", "PI"):
            how = {"rtol": 1e-9, "atol": 1e-9, "controller": controller, "sensealg": sensealg, "engine": "julia"}
            problem = pyjode.ODEProblem(net_of(net), y0, (0.0, 2.5))
            found = gradient(lambda how=how, problem=problem: pyjode.solve(problem, saveat=t, **how).ys)
            assert (found - truth).norm() < 1e-6 * truth.norm(), (sensealg, controller)


def net_of(net: nn.Module) -> nn.Module:
    class Field(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return self.net(y)

    return Field()


@pytest.mark.julia
@pytest.mark.slow
def test_every_method_that_says_so_takes_both() -> None:
    f = lambda t, y: torch.stack([1.5 * y[0] - y[0] * y[1], y[0] * y[1] - 3 * y[1]])  # noqa: E731
    problem = pyjode.ODEProblem(f, torch.tensor([1.0, 1.0], dtype=torch.float64), (0.0, 3.0))
    expected = pyjode.solve(problem, "Vern9", saveat=[3.0], rtol=1e-12, atol=1e-12, engine="julia").ys
    taken = 0
    for method in pyjode.methods(kind="explicit", engine="julia", adaptive=True):
        if not method.has_pi_controller:
            continue
        how = {"saveat": [3.0], "rtol": 1e-6, "atol": 1e-6, "engine": "julia", "throw": False}
        pi, integral = (pyjode.solve(problem, method.name, controller=c, **how) for c in ("PI", "I"))
        # The error estimates of some of Julia's methods are such that none gets anywhere.
        if pi.retcode == "Success":
            taken += 1
            assert torch.allclose(integral.ys, expected, rtol=1e-3), method.name
            assert integral.stats.naccept + integral.stats.nreject <= 1.1 * (pi.stats.naccept + pi.stats.nreject) + 2
    assert taken >= 25


@pytest.mark.parametrize(
    ("method", "controller", "error", "message"),
    [
        ("dopri5", "PID", InputError, "controller"),
        ("rk4", "I", UnsupportedError, "rk4 has a step size controller of its own, or none"),
        ("dopri5", "PI", UnsupportedError, "embedded engine has an integral controller"),
    ],
)
def test_what_cannot_be_is_said(method: str, controller: str, error: type[Exception], message: str) -> None:
    problem = pyjode.ODEProblem(lambda t, y: -y, torch.ones(1), (0.0, 1.0))
    with pytest.raises(error, match=message):
        pyjode.solve(problem, method, saveat=0.5, controller=controller, engine="torchdiffeq")


@pytest.mark.julia
def test_stiff_methods_have_their_own() -> None:
    problem = pyjode.ODEProblem(lambda t, y: -y, torch.ones(1), (0.0, 1.0))
    with pytest.raises(UnsupportedError, match="Rodas5P has a step size controller of its own"):
        pyjode.solve(problem, "Rodas5P", saveat=0.5, controller="I", engine="julia")


def test_the_embedded_engine_takes_the_one_it_has() -> None:
    problem = pyjode.ODEProblem(lambda t, y: -y, torch.ones(1), (0.0, 1.0))
    default, integral = (
        pyjode.solve(problem, "dopri5", saveat=0.5, controller=c, engine="torchdiffeq") for c in (None, "I")
    )
    assert torch.equal(default.ys, integral.ys)
