"""States on a GPU: the state crosses to the host, f and its parameters stay.

``Elsewhere`` stands for a GPU where there is none: tensors that refuse to meet others, as a device's do. What it cannot
show is that CUDA itself plays along: the last tests do, where there is a GPU.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import pyjode
from pyjode import NeuralODE, ODEProblem, solve
from pyjode.rhs import build_rhs
from pyjode.rhs.host import HostRHS, on_host

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


class Elsewhere(Tensor):
    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            inputs = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
            strangers = [x for x in inputs if not isinstance(x, Elsewhere) and x.ndim > 0]
            if strangers and func is not Tensor.to:
                raise RuntimeError(f"{getattr(func, '__name__', func)} of tensors on two devices")
        return super().__torch_function__(func, types, args, kwargs)


@pytest.fixture
def crossings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Makes HostRHS cross to ``Elsewhere``; lists the crossings."""
    made: list[str] = []

    def there(self: HostRHS, x: Tensor) -> Tensor:
        assert not isinstance(x, Elsewhere)
        made.append("there")
        return x.clone().as_subclass(Elsewhere)

    def back(self: HostRHS, x: Tensor) -> Tensor:
        assert isinstance(x, Elsewhere)
        made.append("back")
        return x.as_subclass(Tensor).clone()

    monkeypatch.setattr(HostRHS, "_there", there)
    monkeypatch.setattr(HostRHS, "_back", back)
    return made


class Field:
    """A plain callable with its weights elsewhere, or here."""

    def __init__(self, elsewhere: bool) -> None:
        torch.manual_seed(0)
        weights = torch.randn(3, 3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
        self.a, self.b = ((x.as_subclass(Elsewhere) if elsewhere else x).requires_grad_() for x in weights)
        self.calls = 0

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        self.calls += 1  # so that f is called itself: graphs do not see where a tensor claims to be
        return torch.tanh(y @ self.a + self.b * t)


def test_every_call_crosses_and_comes_back(crossings):
    t = torch.tensor(0.4, dtype=torch.float64)
    u, v = torch.randn(2, 6, dtype=torch.float64)
    y0 = torch.randn(2, 3, dtype=torch.float64)
    here = build_rhs(Field(False), y0, 0.0, way="eager")
    host = on_host(build_rhs(Field(True), y0.as_subclass(Elsewhere), 0.0, way="eager"))
    assert on_host(host.inner) is host and host.layout.device.type == "cpu"
    for call in (
        lambda rhs: rhs.f(t, u, rhs.params),
        lambda rhs: rhs.vjp_u(t, u, v, rhs.params),
        lambda rhs: rhs.vjp_p(t, u, v, rhs.params),
        lambda rhs: rhs.vjp_up(t, u, v, rhs.params),
    ):
        got = call(host)
        assert not any(isinstance(x, Elsewhere) for x in pytree.tree_leaves(got))
        torch.testing.assert_close(got, call(here))
    assert {"there", "back"} == set(crossings)


@pytest.mark.parametrize("way", ["eager", "traced"])
def test_the_rest_of_the_interface(way):
    """With the host as the device."""
    net = nn.Linear(3, 3).double()
    y0 = torch.randn(2, 3, dtype=torch.float64)
    inner = build_rhs(lambda t, y: torch.tanh(net(y)) * t, y0, 0.3, way=way)
    host = on_host(inner)
    t, u = torch.tensor(0.4, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    assert (host.way, host.params, host.batch_size) == (way, inner.params, 2)
    for name in ("jacobian", "jacobian_blocks", "time_gradient"):
        assert torch.equal(getattr(host, name)(t, u, host.params), getattr(inner, name)(t, u, inner.params))


@pytest.mark.julia
def test_a_solve_with_f_elsewhere(crossings):
    times = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    found = []
    for elsewhere in (False, True):
        field = Field(elsewhere)
        y0 = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3).requires_grad_()
        if elsewhere:
            rhs = on_host(build_rhs(field, y0.detach().as_subclass(Elsewhere), 0.0, way="eager"))
        else:
            rhs = field
        options = {"saveat": times, "rtol": 1e-8, "atol": 1e-8, "engine": "julia", "rhs": "eager"}
        ys = solve(ODEProblem(rhs, y0, (0.0, 1.0)), "Tsit5", **options).ys
        ys.square().sum().backward()
        found.append([ys.detach(), *(x.grad.as_subclass(Tensor) for x in (y0, field.a, field.b))])
    torch.testing.assert_close(found[1], found[0])
    assert crossings


def test_native_is_refused_for_an_f_on_a_device():
    """Its code would read the device's memory by address. (meta tensors have none, and stand for a device.)"""
    y0 = torch.ones(2, device="meta")
    with pytest.raises(pyjode.UnsupportedError):
        build_rhs(lambda t, y: torch.tanh(y), y0, 0.0, way="native")


@needs_gpu
@pytest.mark.parametrize("sensealg", [None, "BacksolveAdjoint"])
def test_cuda(engine, sensealg):
    found = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double().to(device)
        layer = NeuralODE(
            lambda t, y, net=net: net(y) * t.cos(), engine=engine, sensealg=sensealg, rtol=1e-8, atol=1e-8
        )
        y0 = torch.linspace(-1, 1, 6, dtype=torch.float64, device=device).reshape(3, 2).requires_grad_()
        y1 = layer(y0)
        grads = torch.autograd.grad(y1.square().sum(), [y0, *net.parameters()])
        assert {x.device.type for x in (y1, *grads)} == {device}
        found.append([x.detach().cpu() for x in (y1, *grads)])
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-7)


@needs_gpu
@pytest.mark.julia
def test_cuda_steps_and_dense_output():
    y0 = torch.ones(2, device="cuda", dtype=torch.float64)
    solution = solve(ODEProblem(lambda t, y: -y, y0, (0.0, 1.0)), "Rodas5P", engine="julia")
    assert solution.ys.device.type == "cuda"
    at = solution(torch.tensor([0.5], dtype=torch.float64))
    torch.testing.assert_close(at[0], y0 * torch.tensor(-0.5, device="cuda").exp(), rtol=1e-5, atol=1e-6)
