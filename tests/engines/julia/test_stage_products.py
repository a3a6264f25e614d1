"""Parameter gradients of all stages of a step at once: where they are taken, and that they are the same gradients."""

from __future__ import annotations

import itertools

import pytest
import torch
import torchdiffeq
from torch import Tensor, nn

import pyjode
from pyjode.rhs import native
from pyjode.rhs.build import remembered_rhs
from pyjode.rhs.lower import NotLowerable
from pyjode.state import StateLayout

pytestmark = pytest.mark.julia


class Dynamics(nn.Module):
    """Depends on time and has a parameter that is no matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(5, 12).double(), nn.Linear(12, 4).double()
        self.rate = nn.Parameter(torch.rand(4, dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        hidden = torch.tanh(self.inner(torch.cat([y, t.expand(*y.shape[:-1], 1)], -1)))
        return self.outer(hidden) * torch.cos(t * self.rate) - 0.3 * torch.sin(y)


def stages_of(f: nn.Module, y0: Tensor) -> dict[int, object]:
    rhs = remembered_rhs(f, StateLayout.of(y0))
    assert isinstance(rhs, native.NativeRHS)
    return {count: source for count, source in rhs._stages.items() if source is not None}


@pytest.fixture
def _always(monkeypatch: pytest.MonkeyPatch) -> None:
    for least in ("STAGES_FROM", "STAGES_PER_STATE"):
        monkeypatch.setattr(native, least, 0)
    monkeypatch.setattr(native, "STAGES_REUSE", 10**9)


def compared(ys: Tensor, wanted: Tensor, f: nn.Module, y0: Tensor, tolerance: float) -> None:
    weights = torch.rand_like(wanted)
    variables = [y0, *f.parameters()]
    found, truth = (torch.autograd.grad((weights * y.square()).sum(), variables) for y in (ys, wanted))
    for a, b in zip(found, truth, strict=True):
        assert float((a - b).abs().max()) <= tolerance * float(b.abs().max())


@pytest.mark.usefixtures("_always")
@pytest.mark.parametrize("shape", [(4,), (1, 4), (3, 4), (2, 3, 4)])
@pytest.mark.parametrize("ends", [(0.0, 1.0), (1.0, 0.0)])
@pytest.mark.parametrize(("method", "theirs"), [("Midpoint", "midpoint"), ("RK4", "rk4_classic"), ("Heun", "heun2")])
def test_fixed_steps_are_differentiated_as_by_torch(
    shape: tuple[int, ...], ends: tuple[float, float], method: str, theirs: str
) -> None:
    f, y0 = Dynamics(), torch.randn(shape, dtype=torch.float64, requires_grad=True)
    times = torch.linspace(*ends, 5, dtype=torch.float64)
    solution = pyjode.solve(
        pyjode.ODEProblem(f, y0, ends), method, saveat=times, dt=0.125, adaptive=False, engine="julia"
    )
    wanted = _steps(f, y0, times, theirs)
    assert torch.allclose(solution.ys, wanted, rtol=1e-12)
    compared(solution.ys, wanted, f, y0, 1e-12)
    assert stages_of(f, y0)


def _steps(f: nn.Module, y0: Tensor, times: Tensor, method: str) -> Tensor:
    """Two steps between save points, by torch alone."""
    y, ys = y0, [y0]
    for start, end in itertools.pairwise(times):
        h = (end - start) / 2
        for t in (start, start + h):
            k1 = f(t, y)
            if method == "midpoint":
                y = y + h * f(t + h / 2, y + h / 2 * k1)
            elif method == "heun2":
                y = y + h / 2 * (k1 + f(t + h, y + h * k1))
            else:
                k2 = f(t + h / 2, y + h / 2 * k1)
                k3 = f(t + h / 2, y + h / 2 * k2)
                y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + f(t + h, y + h * k3))
        ys.append(y)
    return torch.stack(ys)


@pytest.mark.usefixtures("_always")
@pytest.mark.parametrize("method", ["Tsit5", "DP5", "BS3", "Vern7", "DP8"])
def test_adaptive_steps_and_save_points_inside_them(method: str) -> None:
    f, y0 = Dynamics(), torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    times = torch.tensor([0.0, 0.31, 0.77, 2.0], dtype=torch.float64)
    solution = pyjode.solve(
        pyjode.ODEProblem(f, y0, (0.0, 2.0)), method, saveat=times, rtol=1e-10, atol=1e-12, engine="julia"
    )
    options = {"step_t": times[1:]}
    wanted = torchdiffeq.odeint(f, y0, times, method="dopri8", rtol=1e-12, atol=1e-13, options=options)
    compared(solution.ys, wanted, f, y0, 1e-7)
    assert stages_of(f, y0)


def test_many_parameters_that_each_meet_one_state_take_it_and_the_gradient_is_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = []
    for least in (native.STAGES_FROM, 10**9):
        monkeypatch.setattr(native, "STAGES_FROM", least)
        torch.manual_seed(0)
        f = nn.Linear(150, 150).double()
        y0 = torch.randn(150, dtype=torch.float64, requires_grad=True)
        problem = pyjode.ODEProblem(_Saturated(f), y0, (0.0, 1.0))
        ys = pyjode.solve(problem, "Tsit5", saveat=[0.4, 1.0], engine="julia").ys
        found.append(torch.autograd.grad(ys.square().sum(), [y0, *f.parameters()]))
        assert bool(stages_of(problem.f, y0)) == (least < 10**9)
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, rtol=1e-11, atol=1e-13)


class _Scaled(nn.Module):
    def __init__(self, size: int):
        super().__init__()
        self.scale = nn.Parameter(torch.rand(size, dtype=torch.float64))

    def forward(self, y: Tensor) -> Tensor:
        return self.scale * y


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(8, 8).double(), (8,)),
        (nn.Linear(150, 150).double(), (40, 150)),  # many rows
        (_Scaled(20_000), (20_000,)),  # as many states
    ],
)
def test_where_it_does_not_pay_it_is_not_taken(layer: nn.Module, shape: tuple[int, ...]) -> None:
    f = _Saturated(layer)
    y0 = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    pyjode.solve(pyjode.ODEProblem(f, y0, (0.0, 0.1)), "Tsit5", saveat=[0.1], engine="julia").ys.sum().backward()
    assert not stages_of(f, y0)


class _Saturated(nn.Module):
    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(self.layer(y)) - y


def test_what_has_no_code_for_all_stages_is_taken_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise NotLowerable("tanh", "not of several stages")

    monkeypatch.setattr(native, "lower_stages", refuse)
    monkeypatch.setattr(native, "STAGES_FROM", 0)
    monkeypatch.setattr(native, "STAGES_PER_STATE", 0)
    f, y0 = Dynamics(), torch.randn(4, dtype=torch.float64, requires_grad=True)
    times = torch.tensor([0.0, 0.25, 0.5], dtype=torch.float64)
    solution = pyjode.solve(
        pyjode.ODEProblem(f, y0, (0.0, 0.5)), "Midpoint", saveat=times, dt=0.125, adaptive=False, engine="julia"
    )
    compared(solution.ys, _steps(f, y0, times, "midpoint"), f, y0, 1e-12)
    assert not stages_of(f, y0)


@pytest.mark.parametrize("kind", ["vector", "matrix", "cotangent"])
@pytest.mark.parametrize("flipped", [False, True])
def test_large_products_of_what_is_expanded(kind: str, flipped: bool) -> None:
    f = _Expanded(1000, kind, flipped)
    y0 = torch.randn(1000, dtype=torch.float64, requires_grad=True)
    times = torch.tensor([0.0, 0.25, 0.5], dtype=torch.float64)
    solution = pyjode.solve(
        pyjode.ODEProblem(f, y0, (0.0, 0.5)), "Midpoint", saveat=times, dt=0.125, adaptive=False, engine="julia"
    )
    wanted = _steps(f, y0, times, "midpoint")
    assert torch.allclose(solution.ys, wanted, rtol=1e-11, atol=1e-13)
    compared(solution.ys, wanted, f, y0, 1e-11)


class _Expanded(nn.Module):
    """One operand, or its cotangent, is the same number or row again and again."""

    def __init__(self, size: int, kind: str, flipped: bool):
        super().__init__()
        self.kind, self.flipped = kind, flipped
        shape = (size,) if kind == "matrix" else (size, size)
        self.weight = nn.Parameter(torch.randn(shape, dtype=torch.float64) / size**0.5)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        weight = self.weight.expand(len(y), -1) if self.kind == "matrix" else self.weight
        weight = weight.T if self.flipped else weight
        if self.kind == "vector":
            return torch.tanh(weight @ y.mean().expand(len(y)))
        product = weight @ y
        return product.mean() * torch.cos(y) if self.kind == "cotangent" else torch.tanh(product)


@pytest.mark.parametrize("shape", [(1000,), (1, 1000), (2, 1000)])
@pytest.mark.parametrize("flipped", [False, True])
def test_large_matrices_times_vectors(shape: tuple[int, ...], flipped: bool) -> None:
    f = _Product(1000, flipped)
    y0 = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    times = torch.tensor([0.0, 0.25, 0.5], dtype=torch.float64)
    solution = pyjode.solve(
        pyjode.ODEProblem(f, y0, (0.0, 0.5)), "Midpoint", saveat=times, dt=0.125, adaptive=False, engine="julia"
    )
    wanted = _steps(f, y0, times, "midpoint")
    assert torch.allclose(solution.ys, wanted, rtol=1e-11, atol=1e-13)
    compared(solution.ys, wanted, f, y0, 1e-11)


class _Product(nn.Module):
    """Rows times a matrix, or its transpose: both orders in memory."""

    def __init__(self, size: int, flipped: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size, size, dtype=torch.float64) / size**0.5)
        self.flipped = flipped

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(y @ (self.weight.T if self.flipped else self.weight))
