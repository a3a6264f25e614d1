"""States and parameters of every kind: complex, tuples, zero-length spans, decreasing times, times that require grad,
parameters frozen, shared, unused, not contiguous, expanded. torchdiffeq itself is the truth."""

import pytest
import torch
import torchdiffeq
from torch import nn

import pyjode

D = torch.float64
T = torch.tensor([0.0, 0.4, 1.0], dtype=D)
DOORS = {
    "odeint": (pyjode.odeint, torchdiffeq.odeint),
    "odeint_adjoint": (pyjode.odeint_adjoint, torchdiffeq.odeint_adjoint),
}
TIGHT = {"rtol": 1e-8, "atol": 1e-9}


@pytest.fixture(params=DOORS)
def doors(request):
    """Ours and torchdiffeq's."""
    return DOORS[request.param]


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_states_and_parameters(engine, dtype):
    """y' = k y; by y0 and by a complex k, in closed form."""
    k = torch.tensor(-0.3 + 1.2j, dtype=dtype, requires_grad=True)
    y0 = torch.tensor([1.0 + 0.5j, -0.5j], dtype=dtype, requires_grad=True)
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.complex64 else TIGHT
    ys = pyjode.odeint(lambda t, y: k * y, y0, T, engine=engine, **tolerance)
    assert ys.dtype == dtype and ys.shape == (3, 2)
    weights = torch.tensor([[1.0, 2.0], [0.5j, 1.0], [1.0 - 1.0j, 0.3]], dtype=dtype)
    found = torch.autograd.grad((weights * ys).real.sum(), (y0, k))
    closed = torch.stack([torch.exp(k * t.to(dtype)) * y0 for t in T])
    truth = torch.autograd.grad((weights * closed).real.sum(), (y0, k))
    close = {"rtol": 1e-3, "atol": 1e-3} if dtype == torch.complex64 else {"rtol": 1e-5, "atol": 1e-6}
    assert torch.allclose(ys, closed, **close)
    for a, b in zip(found, truth, strict=True):
        assert torch.allclose(a, b, **close)


def test_a_tuple_of_a_complex_and_a_real_tensor(engine):
    y0 = (torch.tensor([1.0 + 0j], dtype=torch.complex128), torch.ones(2, 1, dtype=D))
    z, x = pyjode.odeint(lambda t, y: (1j * y[0], -y[1] * y[0].abs()), y0, T, engine=engine, **TIGHT)
    assert torch.allclose(z[:, 0], torch.exp(1j * T), atol=1e-6)
    assert torch.allclose(x[:, 0, 0], torch.exp(-T), atol=1e-6)


class Net(nn.Module):
    """A frozen, a shared, an unused and a used parameter."""

    def __init__(self):
        super().__init__()
        g = torch.Generator().manual_seed(1)
        self.used = nn.Parameter(torch.randn(2, 2, dtype=D, generator=g))
        self.frozen = nn.Parameter(torch.randn(2, dtype=D, generator=g), requires_grad=False)
        self.unused = nn.Parameter(torch.randn(3, dtype=D, generator=g))
        self.one = nn.Linear(2, 2).double()
        self.two = self.one

    def forward(self, t, y):
        return torch.tanh(self.two(self.one(y)) @ self.used + self.frozen) * torch.cos(t)


def test_frozen_shared_and_unused_parameters(engine, doors):
    """Zero or None, whichever torchdiffeq gives: None by odeint, zeros by odeint_adjoint."""
    grads = []
    for door, extra in zip(doors, ({"engine": engine}, {}), strict=True):
        torch.manual_seed(0)
        f, y0 = Net(), torch.tensor([[0.4, -1.0]], dtype=D)
        door(f, y0, T, **TIGHT, **extra).pow(2).sum().backward()
        grads.append({name: p.grad for name, p in f.named_parameters()})
    ours, theirs = grads
    assert set(ours) == set(theirs) == {"used", "frozen", "unused", "one.weight", "one.bias"}
    for name in theirs:
        assert (ours[name] is None) == (theirs[name] is None), name
        if theirs[name] is not None:
            assert torch.allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-7), name
    assert ours["frozen"] is None


def test_parameters_that_are_views(engine, doors):
    """Transposed, strided, expanded and sliced tensors, and one tensor as two arguments of f."""
    base = torch.linspace(-1, 1, 12, dtype=D).reshape(3, 4).requires_grad_()
    scale = torch.tensor(0.7, dtype=D, requires_grad=True)

    class F(nn.Module):
        def forward(self, t, y):
            return torch.tanh(y @ base[:, ::2].T @ base.T[:3, :3]) * scale.expand(3) + base[1, 1]

    y0 = torch.tensor([0.3, -0.2], dtype=D)

    class G(F):
        def forward(self, t, y):
            return super().forward(t, y)[:2]

    grads = []
    for door, extra in zip(doors, ({"engine": engine}, {}), strict=True):
        if door.__name__ == "odeint_adjoint":
            extra = extra | {"adjoint_params": (base, scale)}
        ys = door(G(), y0, T, **TIGHT, **extra)
        grads.append(torch.autograd.grad(ys[-1].sum(), (base, scale)))
    for a, b in zip(*grads, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("make", [lambda x: x.T, lambda x: x[:, ::2], lambda x: x[:1].expand(3, 4), lambda x: x.conj()])
def test_y0_that_is_a_view(engine, doors, make):
    grads = []
    for door, extra in zip(doors, ({"engine": engine}, {}), strict=True):
        base = torch.linspace(-1, 1, 12, dtype=D).reshape(3, 4).requires_grad_()

        class F(nn.Module):
            def forward(self, t, y):
                return -y * y.mean() + torch.sin(t)

        ys = door(F(), make(base), T, **TIGHT, **extra)
        assert ys.shape[1:] == make(base).shape
        grads.append(torch.autograd.grad(ys[-1].pow(2).sum(), base)[0])
    assert torch.allclose(*grads, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("requires", ["y0", "t", "params", "none", "all"])
@pytest.mark.parametrize("direction", [1, -1])
def test_whatever_requires_grad_gets_it(engine, doors, requires, direction):
    k0, k1 = (torch.tensor([0.7, -0.4], dtype=D, requires_grad=requires in ("params", "all")) for _ in "01")
    grads = []
    for (door, extra), k in zip(zip(doors, ({"engine": engine}, {}), strict=True), (k0, k1), strict=True):

        class F(nn.Module):
            def __init__(self, k=k):
                super().__init__()
                self.k = nn.Parameter(k.detach().clone(), requires_grad=k.requires_grad)

            def forward(self, t, y):
                return self.k * y * torch.cos(3 * t)

        f = F()
        y0 = torch.tensor([1.0, 2.0], dtype=D, requires_grad=requires in ("y0", "all"))
        t = (direction * T).requires_grad_(requires in ("t", "all"))
        ys = door(f, y0, t, **TIGHT, **extra)
        assert ys.requires_grad == (requires != "none")
        if requires != "none":
            (ys * torch.tensor([[1.0], [2.0], [-1.0]], dtype=D)).sum().backward()
        grads.append((y0.grad, t.grad, f.k.grad))
    # By its steps torchdiffeq differentiates the polynomial between them by t; the Julia engine has f itself.
    for (a, b), close in zip(zip(*grads, strict=True), (1e-7, 1e-3, 1e-7), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert torch.allclose(a, b, rtol=max(1e-5, close), atol=close)


def test_a_span_of_no_length(engine, doors):
    """One time only: the initial state, with its gradient and without f being called."""

    class F(nn.Module):
        def forward(self, t, y):
            raise AssertionError("called")

    outs = []
    for door, extra in zip(doors, ({"engine": engine}, {"method": "rk4"}), strict=True):
        y0 = torch.tensor([1.0, 2.0], dtype=D, requires_grad=True)
        ys = door(F(), y0, torch.tensor([0.5], dtype=D), **extra)
        ys.sum().backward()
        outs.append((ys, y0.grad))
    for a, b in zip(*outs, strict=True):
        assert torch.equal(a, b)


def test_a_span_of_no_length_of_a_tuple(engine):
    y0 = (torch.ones(2, dtype=D), torch.ones((), dtype=torch.complex128))
    ys = pyjode.odeint(lambda t, y: y, y0, torch.tensor([0.5]), engine=engine)
    assert [y.shape for y in ys] == [(1, 2), (1,)] and ys[1].dtype == torch.complex128


def test_an_adjoint_without_parameters(engine):
    y0 = torch.ones(1, dtype=D, requires_grad=True)
    ys = pyjode.odeint_adjoint(lambda t, y: -y, y0, T, adjoint_params=(), engine=engine, **TIGHT)
    ys[-1].sum().backward()
    assert torch.allclose(y0.grad, torch.exp(-T[-1:]), rtol=1e-5)


def test_parameters_of_another_precision(engine):
    """A float32 parameter in a float64 state's f gets a float32 gradient."""
    k = torch.tensor(0.5, requires_grad=True)
    ys = pyjode.odeint(lambda t, y: -k.double() * y, torch.ones(1, dtype=D), T, engine=engine, **TIGHT)
    ys[-1].sum().backward()
    assert k.grad.dtype == torch.float32
    assert torch.allclose(k.grad, torch.tensor(-torch.exp(torch.tensor(-0.5)).item()), rtol=1e-5)
