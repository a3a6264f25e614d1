"""Stiff problems: Jacobians from torch, gradients against finite differences."""

import pytest
import torch
from torch import nn

import pyjode

pytestmark = pytest.mark.julia


class Robertson(nn.Module):
    """Robertson's kinetics (Hairer, Wanner, Solving Ordinary Differential Equations II, IV.1)."""

    def __init__(self):
        super().__init__()
        self.k = nn.Parameter(torch.tensor([0.04, 3e7, 1e4], dtype=torch.float64))

    def forward(self, t, y):
        a, b, c = y[..., 0], y[..., 1], y[..., 2]
        r1, r2, r3 = self.k[0] * a, self.k[1] * b * b, self.k[2] * b * c
        return torch.stack([-r1 + r3, r1 - r2 - r3, r2], dim=-1)


Y0 = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
T = torch.cat([torch.zeros(1), torch.logspace(-2, 2, 10)]).double()
WEIGHTS = torch.tensor([1.0, 1e4, 1.0], dtype=torch.float64)


def solve(method, k=None, **keywords):
    f = Robertson()
    if k is not None:
        f.k.data = k
    s = pyjode.solve(
        pyjode.ODEProblem(f, Y0, (0.0, 100.0)), method, saveat=T, engine="julia",
        **({"rtol": 1e-8, "atol": 1e-10} | keywords),
    )  # fmt: skip
    return f, s


@pytest.fixture(scope="module")
def truth():
    """Central differences of the loss by log k, from solves at 1e-12."""
    k0 = Robertson().k.detach()
    entries = []
    for i in range(3):
        values = []
        for sign in (1, -1):
            k = k0.clone()
            k[i] *= 1 + sign * 1e-4
            with torch.no_grad():
                values.append((solve("Rodas5P", k, rtol=1e-12, atol=1e-14)[1].ys * WEIGHTS).sum().item())
        entries.append((values[0] - values[1]) / 2e-4 / k0[i].item())
    return torch.tensor(entries, dtype=torch.float64)


@pytest.mark.parametrize("method", ["Rodas5P", "Rodas4", "FBDF", "QNDF", "KenCarp4", "TRBDF2", "Kvaerno5"])
def test_robertson_with_the_default_adjoint(method, truth):
    f, s = solve(method)
    assert torch.allclose(s.ys[-1].detach(), torch.tensor([0.61723, 6.153e-6, 0.38276], dtype=torch.float64), rtol=1e-3)
    assert s.stats.njacs > 0 and s.stats.nfe < 10_000
    (s.ys * WEIGHTS).sum().backward()
    assert ((f.k.grad - truth) * f.k.detach()).norm() / (truth * f.k.detach()).norm() < 1e-3


def test_the_jacobian_comes_from_torch_not_from_finite_differences():
    """Finite differences would call f n + 1 times a Jacobian; f's own count would show it."""
    _, s = solve("Rodas5P")
    # 8 stages a step, one Jacobian each; nothing of order n more.
    assert s.stats.nfe <= 10 * (s.stats.naccept + s.stats.nreject) + 10


def test_a_batch_uses_its_block_structure():
    torch.manual_seed(0)
    y0 = torch.rand(12, 3, dtype=torch.float64)
    f = Robertson()
    problem = pyjode.ODEProblem(f, y0, (0.0, 10.0))
    together = pyjode.solve(problem, "Rodas5P", saveat=[0.0, 10.0], rtol=1e-9, atol=1e-11, engine="julia")
    from pyjode.rhs import build_rhs

    assert build_rhs(f, y0, 0.0).batch_size == 12
    for i in (0, 11):
        alone = pyjode.solve(
            pyjode.ODEProblem(f, y0[i], (0.0, 10.0)),
            "Rodas5P",
            saveat=[0.0, 10.0],
            rtol=1e-9,
            atol=1e-11,
            engine="julia",
        )
        assert torch.allclose(together.ys[-1][i], alone.ys[-1], rtol=1e-6, atol=1e-9)
    together.ys[-1].sum(0)[0].backward()
    assert torch.isfinite(f.k.grad).all() and f.k.grad.abs().sum() > 0


def test_time_dependent_stiff_problem():
    """Prothero-Robinson: y' = -1000 (y - cos t) - sin t, y(0) = 1, so y = cos t."""
    s = pyjode.solve(
        pyjode.ODEProblem(lambda t, y: -1000 * (y - torch.cos(t)) - torch.sin(t), Y0[:1], (0.0, 3.0)),
        "Rodas5P", saveat=[0.0, 1.0, 3.0], rtol=1e-8, atol=1e-10, engine="julia",
    )  # fmt: skip
    assert torch.allclose(s.ys[:, 0], torch.cos(s.ts), atol=1e-6)


def test_backsolve_is_refused_for_stiff_methods():
    with pytest.raises(pyjode.UnsupportedError, match="Backsolve"):
        solve("Rodas5P", sensealg="BacksolveAdjoint")


def test_discrete_adjoint_is_refused_for_other_implicit_methods():
    with pytest.raises(pyjode.UnsupportedError, match="explicit"):
        solve("KenCarp4", sensealg="DiscreteAdjoint")
