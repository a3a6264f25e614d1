"""Dynamics as Julia source: gradients against torch's of the same dynamics, errors by their line."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import pyjode
from pyjode import JuliaFunction, ODEProblem, odeint, odeint_adjoint, solve

DOUBLE = torch.float64
T = torch.tensor([0.0, 0.2, 0.5], dtype=DOUBLE)


def test_needs_the_julia_engine(no_julia):
    f = JuliaFunction("(u, p, t) -> -u")
    with pytest.raises(pyjode.UnsupportedError, match="Julia engine"):
        odeint(f, torch.ones(2), T, engine="torchdiffeq")
    with pytest.raises(pyjode.EngineUnavailable, match="pyjode setup"):
        odeint(f, torch.ones(2), T, engine="julia")


def test_params_become_parameters():
    rate = nn.Parameter(torch.tensor(2.0))
    f = JuliaFunction("(u, p, t) -> -u", params={"rate": rate, "inner": {"w": torch.ones(2, 3)}, "l": [1.5]})
    assert dict(f.named_parameters()) == {"rate": rate}
    assert [tuple(x.shape) for x in f.leaves] == [(), (2, 3), ()]
    f.double()
    assert all(x.dtype == DOUBLE for x in f.leaves)
    module = nn.Sequential(nn.Linear(2, 3), nn.Tanh())
    g = JuliaFunction("(u, p, t) -> -u", params=module)
    assert g.leaves[0] is module[0].weight and len(list(g.parameters())) == 2
    twice = JuliaFunction("(u, p, t) -> -u", params=[rate, rate])
    assert twice.leaves[0] is twice.leaves[1] is rate


def test_wrong_params():
    with pytest.raises(pyjode.InputError, match="holds a str"):
        JuliaFunction("(u, p, t) -> -u", params={"a": "b"})
    with pytest.raises(pyjode.InputError, match="bool"):
        JuliaFunction("(u, p, t) -> -u", params=torch.tensor([True]))
    with pytest.raises(pyjode.InputError, match="source is empty"):
        JuliaFunction(" ")
    with pytest.raises(pyjode.InputError, match="without quotes"):
        JuliaFunction("(u, p, t) -> -u", params={'a"': torch.ones(1)})


# What follows needs Julia. The same dynamics in torch and in each form of source.


class Torch(nn.Module):
    def __init__(self, a, w):
        super().__init__()
        self.a, self.w = nn.Parameter(a), nn.Parameter(w)

    def forward(self, t, y):
        return torch.tanh(y @ self.w.T) * self.a - y * torch.sin(t)


FORMS = {
    "expression": "(u, p, t) -> tanh.(p.w * u) .* p.a .- u .* sin(t)",
    "in place": """
        function f!(du, u, p, t)
            for i in eachindex(u)
                du[i] = p.a * tanh(sum(p.w[i, j] * u[j] for j in eachindex(u))) - u[i] * sin(t)
            end
        end
        """,
    "definitions": """
        using LinearAlgebra
        const ONE = 1
        helper(w, u, i) = tanh(dot(w[i, :], u))
        f(u, p, t) = [p.a * helper(p.w, u, i) - ONE * u[i] * sin(t) for i in 1:length(u)]
        """,
    "body": "mul = p.w * u\ntanh.(mul) .* p.a .- u .* sin(t)",
    "body in place": "du .= tanh.(p.w * u) .* p.a\ndu .-= u .* sin(t)",
}


def values(dtype=DOUBLE):
    random = torch.Generator().manual_seed(1)
    return torch.tensor(0.8, dtype=dtype), torch.randn(3, 3, generator=random, dtype=dtype)


def julia(form="expression", dtype=DOUBLE, **options):
    a, w = values(dtype)
    return JuliaFunction(FORMS[form], params={"a": nn.Parameter(a), "w": nn.Parameter(w)}, **options)


def gradients(f, y0, run):
    f.zero_grad()
    y0, t = y0.clone().requires_grad_(), T.clone().requires_grad_()
    ys = run(f, y0, t)
    weights = torch.linspace(0.5, 1.5, ys.numel(), dtype=ys.dtype).reshape(ys.shape)
    (weights * ys).sum().backward()
    return [ys.detach(), y0.grad, t.grad, *(p.grad.clone() for p in f.parameters())]


def same(found, wanted, rtol=1e-9):
    assert len(found) == len(wanted)
    return all(torch.allclose(a, b, rtol=rtol, atol=rtol) for a, b in zip(found, wanted, strict=True))


Y0 = torch.tensor([0.3, -1.0, 0.7], dtype=DOUBLE)


@pytest.mark.julia
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_source(form):
    def run(f, y0, t):
        return odeint(f, y0, t, engine="julia")

    assert same(gradients(julia(form), Y0, run), gradients(Torch(*values()), Y0, run))


@pytest.mark.julia
@pytest.mark.parametrize("sensealg", ["GaussAdjoint", "InterpolatingAdjoint", "QuadratureAdjoint", "BacksolveAdjoint"])
def test_every_sensealg(sensealg):
    def run(f, y0, t):
        return odeint_adjoint(f, y0, t, sensealg=sensealg, rtol=1e-10, atol=1e-12, engine="julia")

    wanted = gradients(Torch(*values()), Y0, lambda f, y0, t: odeint(f, y0, t, rtol=1e-11, atol=1e-12, engine="julia"))
    assert same(gradients(julia(), Y0, run), wanted, 1e-7)


@pytest.mark.julia
@pytest.mark.parametrize("jac", [None, "own", "own in place"])
def test_stiff_methods(jac):
    source = {
        None: None,
        "own": "(u, p, t) -> [i == j ? -p.k[i] : zero(p.k[1]) for i in 1:2, j in 1:2]",
        "own in place": "function (J, u, p, t)\nJ .= 0\nfor i in 1:2\nJ[i, i] = -p.k[i]\nend\nend",
    }[jac]
    k = torch.tensor([1.0, 1000.0], dtype=DOUBLE, requires_grad=True)
    f = JuliaFunction("(u, p, t) -> -p.k .* (u .- sin(t))", params={"k": k}, jac=source)

    def g(t, y):
        return -k * (y - torch.sin(t))

    found = []
    for x in (f, g):
        s = solve(ODEProblem(x, torch.ones(2, dtype=DOUBLE), (0.0, 1.0)), "Rodas5P", saveat=[0.3, 1.0], engine="julia")
        (grad,) = torch.autograd.grad(s.ys.sum(), k)
        found.append((s.ys.detach(), grad, s.stats))
    assert torch.allclose(found[0][0], found[1][0], rtol=1e-8)
    assert torch.allclose(found[0][1], found[1][1], rtol=1e-6, atol=1e-10)
    assert found[0][2].naccept == found[1][2].naccept and found[0][2].njacs > 0


@pytest.mark.julia
def test_own_vjp_is_used():
    vjp = """
    function (v, u, p, t)
        c = 1 .- tanh.(p.w * u) .^ 2
        back = p.w' * (v .* c .* p.a)
        (back .- v .* sin(t), (a = sum(v .* tanh.(p.w * u)), w = (v .* c .* p.a) * u'))
    end
    """

    def run(f, y0, t):
        return odeint(f, y0, t, engine="julia")

    assert same(gradients(julia(vjp=vjp), Y0, run), gradients(Torch(*values()), Y0, run))
    wrong = "(v, u, p, t) -> (zero(u), (a = nothing, w = nothing))"
    assert gradients(julia(vjp=wrong), Y0, run)[3].item() == 0
    with pytest.raises(pyjode.JuliaSourceError, match="tuple"):
        gradients(julia(vjp="(v, u, p, t) -> zero(u)"), Y0, run)


@pytest.mark.julia
@settings(max_examples=8, deadline=None)
@given(rows=st.integers(1, 5), double=st.booleans(), independent=st.booleans())
def test_batched(rows, double, independent):
    """The source sees a row; Jacobian and gradients are of the whole batch."""
    dtype = DOUBLE if double else torch.float32
    y0 = torch.linspace(-1, 1, 3 * rows, dtype=dtype).reshape(rows, 3)

    def run(f, y0, t):
        batching = "independent" if independent else "joint"
        return odeint(f, y0, t, batching=batching, rtol=1e-5, atol=1e-6, engine="julia")

    found = gradients(julia("in place", dtype, batched=True), y0, run)
    assert same(found, gradients(Torch(*values(dtype)), y0, run), 1e-9 if double else 1e-3)


@pytest.mark.julia
def test_shapes_are_torchs():
    """A state of three axes, and an array of parameters: same indices, from 1."""
    y0 = torch.randn(2, 3, 4, dtype=DOUBLE)
    m = nn.Parameter(torch.randn(2, 3, dtype=DOUBLE))
    source = "[p[i, j] * u[i, j, k] * (i + 10j + 100k) / 500 for i in 1:2, j in 1:3, k in 1:4]"
    f = JuliaFunction(source, params=m)
    i, j, k = torch.meshgrid(*(torch.arange(1, n + 1, dtype=DOUBLE) for n in (2, 3, 4)), indexing="ij")

    class Same(nn.Module):
        def __init__(self):
            super().__init__()
            self.m = m

        def forward(self, t, y):
            return self.m[:, :, None] * y * (i + 10 * j + 100 * k) / 500

    def run(f, y0, t):
        return odeint(f, y0, t, engine="julia")

    assert same(gradients(f, y0, run), gradients(Same(), y0, run))


@pytest.mark.julia
def test_many_parameters_take_several_chunks():
    net = nn.Sequential(nn.Linear(3, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    source = """
    layers(u, p) = p.var"2".weight * tanh.(p.var"0".weight * u .+ p.var"0".bias) .+ p.var"2".bias
    (u, p, t) -> layers(u, p)
    """

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, t, y):
            return self.net(y)

    def run(f, y0, t):
        return odeint(f, y0, t, engine="julia")

    assert same(gradients(JuliaFunction(source, params=net), Y0, run), gradients(Net(), Y0, run))


@pytest.mark.julia
def test_it_is_a_torch_function_too():
    f, g = julia(), Torch(*values())
    y = Y0.clone().requires_grad_()
    t = torch.tensor(0.4, dtype=DOUBLE, requires_grad=True)
    found = torch.autograd.grad(f(t, y).square().sum(), (t, y, *f.parameters()))
    wanted = torch.autograd.grad(g(t, y).square().sum(), (t, y, *g.parameters()))
    assert same(found, wanted, 1e-12)

    # Inside an f of torch's.
    class Sum(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, t, y):
            return self.inner(t, y) + y.flip(0)

    def run(f, y0, t):
        return odeint(f, y0, t, engine="julia")

    assert same(gradients(Sum(f), Y0, run), gradients(Sum(g), Y0, run))
    assert pyjode.explain(f, Y0).way == "native"


@pytest.mark.julia
def test_a_layer_that_trains():
    layer = pyjode.NeuralODE(
        JuliaFunction("(u, p, t) -> -p .* u", params=nn.Parameter(torch.tensor(0.3, dtype=DOUBLE))), engine="julia"
    )
    optimizer = torch.optim.LBFGS(layer.parameters(), lr=1.0, line_search_fn="strong_wolfe")
    y0 = torch.ones(1, dtype=DOUBLE)

    def closure():
        optimizer.zero_grad()
        loss = (layer(y0) - 0.25).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    (k,) = layer.parameters()
    assert k.item() == pytest.approx(math.log(4), abs=1e-3)
    other = copy.deepcopy(layer)
    other.f.leaves[0].data.fill_(0.0)
    assert torch.allclose(other(y0), y0) and not torch.allclose(layer(y0), y0)
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer))
    assert torch.equal(other(y0), layer(y0))


@pytest.mark.julia
def test_values_changed_between_solves_count():
    scale = torch.ones(1, dtype=DOUBLE)
    f = JuliaFunction("(u, p, t) -> -p .* u", params=scale)
    first = odeint(f, Y0, T, engine="julia")
    scale.mul_(2)
    assert torch.allclose(odeint(f, Y0, T, engine="julia")[-1], first[-1].square() / Y0, rtol=1e-5)
    assert not torch.allclose(first[-1], odeint(f, Y0, T, engine="julia")[-1])


@pytest.mark.julia
def test_source_with_memory_of_its_own_is_safe_on_threads():
    source = """
    const SEEN = [0.0]
    function f!(du, u, p, t)
        SEEN[1] = 0.0
        for i in eachindex(u), _ in 1:50
            SEEN[1] += 0.02
        end
        du .= -(SEEN[1] / length(u)) .* u
    end
    """
    f = JuliaFunction(source, batched=True, vjp="(v, u, p, t) -> (-v, ())")
    y0 = torch.ones(400, 2, dtype=DOUBLE)
    ys = odeint(f, y0, T, batching="independent", engine="julia")
    assert torch.allclose(ys, torch.exp(-T)[:, None, None].expand_as(ys), rtol=1e-6)


@pytest.mark.julia
@pytest.mark.parametrize(
    ("source", "line", "says"),
    [
        ("function f(u, p, t)\n  x = (1 +\n  return u\nend", None, "syntax"),
        ("(u, p, t) -> -u\n)", 2, "syntax"),
        ("f(u, p, t) = begin\n  a = 1\n  b * u\nend", 3, "b.* not defined"),
        ("using NoSuchPackage\n(u, p, t) -> u", 1, "NoSuchPackage"),
        ("function (u, p, t)\n  sqrt.(-abs.(u) .- 1)\nend", 2, "DomainError"),
        ("(u, p, t) -> u[1:2]", 0, "size"),
        ("(u, p, t) -> \"x\"", 0, "String"),
        ("(u, t) -> u", 0, "takes 2 arguments"),
        ("x = 3", 0, "not in a function"),
        ("function f!(du, u, p, t)\n  du[1] = u[9]\nend", 2, "BoundsError"),
        ("du[1] = 1.0\ndu[2] = oops(u)", 2, "oops.* not defined"),
    ],
)  # fmt: skip
def test_errors_say_where(source, line, says):
    with pytest.raises(pyjode.JuliaSourceError, match=f"(?s){says}") as caught:
        odeint(JuliaFunction(source), Y0, T, engine="julia")
    if line is not None:
        assert caught.value.line == line
        if line:
            assert f"line {line}" in str(caught.value)
            assert source.splitlines()[line - 1] in str(caught.value)
    # The engine goes on.
    assert torch.isfinite(odeint(JuliaFunction("(u, p, t) -> -u"), Y0, T, engine="julia")).all()


@pytest.mark.julia
def test_an_error_in_the_solve_says_where_and_derivatives_explain_themselves():
    later = JuliaFunction('function (u, p, t)\n  t > 0.3 && error("late")\n  -u\nend')
    with pytest.raises(pyjode.JuliaSourceError, match="late") as caught:
        odeint(later, Y0, T, engine="julia")
    assert caught.value.line == 2
    with pytest.raises(pyjode.JuliaSourceError, match="late"):
        odeint(later, torch.ones(9, 3), T, batching="independent", engine="julia")
    floats = JuliaFunction("function (u, p, t)\n  a = zeros(3)\n  a .= -u\n  a\nend")
    y0 = Y0.clone().requires_grad_()
    with pytest.raises(pyjode.JuliaSourceError, match="dual numbers") as caught:
        odeint(floats, y0, T, engine="julia").sum().backward()
    assert caught.value.line == 3


@pytest.mark.julia
def test_entries_that_are_not_set_are_found():
    with pytest.raises(pyjode.InputError, match=r"du\[2\].* NaN"):
        odeint(JuliaFunction("du[1] = u[1]\ndu[3] = 0.0"), Y0, T, engine="julia")
    with pytest.raises(pyjode.InputError, match="batched=True"):
        odeint(JuliaFunction("du[1] = -u[1]\ndu[2] = -u[2]"), torch.ones(4, 2), T, engine="julia")
    with pytest.raises(pyjode.UnsupportedError, match="one real tensor"):
        odeint(JuliaFunction("(u, p, t) -> -u"), (Y0, Y0), T, engine="julia")


@pytest.mark.julia
def test_a_number_as_state():
    k = torch.tensor(0.5, dtype=DOUBLE, requires_grad=True)
    y = odeint(JuliaFunction("(u, p, t) -> -p * u", params=k), torch.tensor(2.0, dtype=DOUBLE), T, engine="julia")
    y[-1].backward()
    assert y.shape == (3,)
    assert k.grad.item() == pytest.approx(-0.5 * 2 * torch.exp(torch.tensor(-0.25)).item(), rel=1e-6)
