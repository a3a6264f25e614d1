"""Integrators are used again from solve to solve of one f: nothing of an earlier solve may show in a later one."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pyjode
from pyjode import SolverError

pytestmark = pytest.mark.julia

SPANS = {"short": (0.0, 0.3), "long": (0.5, 4.0), "backwards": (2.0, -1.0)}
CASES: dict[str, dict[str, Any]] = {
    "loose": {"rtol": 1e-3, "atol": 1e-5},
    "tight": {"rtol": 1e-9, "atol": 1e-11},
    "first step": {"rtol": 1e-6, "atol": 1e-8, "dt": 1e-3},
    "integral controller": {"rtol": 1e-6, "atol": 1e-8, "controller": "I"},
    "largest step": {"rtol": 1e-6, "atol": 1e-8, "dtmax": 0.05},
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()


class Dynamics(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y) * torch.cos(t)


def solve(f: nn.Module, y0: Tensor, span: tuple[float, float], **how: Any) -> list[Tensor]:
    """States, and the gradients of their sum of squares by y0 and each parameter."""
    y0 = y0.clone().requires_grad_()
    times = torch.linspace(*span, 5, dtype=torch.float64)
    states = pyjode.solve(pyjode.ODEProblem(f, y0, span), saveat=times, engine="julia", **how).ys
    return [states.detach(), *torch.autograd.grad(states.square().sum(), (y0, *f.parameters()))]


@pytest.mark.parametrize("method", ["dopri5", "Tsit5", "rk4"])
def test_a_solve_is_the_same_after_others(method: str) -> None:
    f, random = Dynamics(), torch.Generator().manual_seed(1)
    cases = [{}] if method == "rk4" else list(CASES.values())
    asked = [
        (torch.randn(3, 2, generator=random, dtype=torch.float64), span, how)
        for span in SPANS.values()
        for how in cases
    ]
    alone = [solve(copy.deepcopy(f), y0, span, method=method, **how) for y0, span, how in asked]
    for _ in range(2):
        for (y0, span, how), expected in zip(asked, alone, strict=True):
            for found, wanted in zip(solve(f, y0, span, method=method, **how), expected, strict=True):
                assert torch.equal(found, wanted)


def test_a_solve_is_the_same_after_one_that_failed() -> None:
    f, y0 = Dynamics(), torch.ones(3, 2, dtype=torch.float64)
    expected = solve(copy.deepcopy(f), y0, SPANS["long"])
    for _ in range(3):
        solve(f, y0, SPANS["short"])
    with pytest.raises(SolverError):
        solve(f, y0, SPANS["long"], rtol=1e-12, atol=1e-14, maxiters=3)
    for found, wanted in zip(solve(f, y0, SPANS["long"]), expected, strict=True):
        assert torch.equal(found, wanted)


def test_earlier_graphs_stay_theirs() -> None:
    """A later solve does not overwrite what an earlier one's backward pass needs."""
    f, y0 = Dynamics(), torch.ones(3, 2, dtype=torch.float64)
    times = torch.linspace(0.0, 2.0, 4, dtype=torch.float64)

    def started(g: nn.Module) -> tuple[Tensor, Tensor]:
        y = y0.clone().requires_grad_()
        return y, pyjode.odeint(g, y, times, engine="julia").sum()

    y, loss = started(copy.deepcopy(f))
    alone = torch.autograd.grad(loss, y)[0]
    solve(f, y0, SPANS["short"])
    solve(f, y0, SPANS["short"])
    y, loss = started(f)
    solve(f, 2 * y0, SPANS["long"])
    assert torch.equal(torch.autograd.grad(loss, y)[0], alone)
