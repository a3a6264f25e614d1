"""Values and derivatives of every kind of right-hand side, each way, against autograd and finite differences."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pyjode.errors import InputError, UnsupportedError
from pyjode.rhs import build_rhs
from pyjode.rhs.eager import EagerRHS
from pyjode.state import StateLayout

from .zoo import CASES, DTYPE, GRAPHS, MLP, Branching, Hamiltonian, Pendulum, closure_non_leaf, state

T = 0.7


def flat_of(f: Any, layout: StateLayout) -> Any:
    return lambda t, u: layout.flatten_derivative(f(t, layout.unflatten(u)))


def check_all(rhs: Any, f: Any, u: Tensor, t: Tensor) -> None:
    """Every method of the interface against plain autograd on f."""
    flat = flat_of(f, rhs.layout)
    v = torch.randn(u.shape, dtype=u.dtype, generator=torch.Generator().manual_seed(3))
    u_leaf = u.clone().requires_grad_()
    out = flat(t, u_leaf * 1)
    want = [torch.zeros_like(x) for x in (u, *rhs.params)]
    if out.requires_grad:
        found = torch.autograd.grad(out, [u_leaf, *rhs.params], v, allow_unused=True, retain_graph=True)
        want = [w if g is None else g for w, g in zip(want, found, strict=True)]
    close = {"rtol": 1e-12, "atol": 1e-12}
    with torch.no_grad():
        value = rhs.f(t, u, rhs.params)
        torch.testing.assert_close(value, out.detach(), **close)
        assert value.is_contiguous() and value.shape == u.shape
        torch.testing.assert_close(rhs.vjp_u(t, u, v, rhs.params), want[0], **close)
        got_p = rhs.vjp_p(t, u, v, rhs.params)
        both_u, both_p = rhs.vjp_up(t, u, v, rhs.params)
        torch.testing.assert_close(both_u, want[0], **close)
        for got in (got_p, both_p):
            assert len(got) == len(rhs.params)
            for g, w in zip(got, want[1:], strict=True):
                torch.testing.assert_close(g, w, **close)
        jacobian = rhs.jacobian(t, u, rhs.params)
        dt = rhs.time_gradient(t, u, rhs.params)
    if out.requires_grad:
        truth = torch.autograd.functional.jacobian(lambda u: flat(t, u * 1), u)
    else:
        truth = torch.zeros(u.numel(), u.numel(), dtype=u.dtype)
    torch.testing.assert_close(jacobian, truth, **close)
    h = 1e-6
    finite = (flat(t + h, u.clone()) - flat(t - h, u.clone())).detach() / (2 * h)
    torch.testing.assert_close(dt, finite, rtol=1e-7, atol=1e-7)
    for x in (value, dt, jacobian, both_u, *both_p):
        assert not x.requires_grad


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("way", ["auto", "eager"])
def test_zoo(name: str, way: str) -> None:
    torch.manual_seed(0)
    case = CASES[name]
    f = case.make()
    rhs = build_rhs(f, case.y0, T, way=way)
    assert rhs.way in (GRAPHS if way == "auto" and case.way == "graph" else ("eager",))
    assert len(rhs.params) == case.params
    u = rhs.layout.flatten(case.y0)
    check_all(rhs, f, u, torch.tensor(T, dtype=DTYPE))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=0, max_size=3), st.integers(1, 4), st.integers(0, 3), st.booleans())
def test_random_mlps(widths: list[int], d: int, batch: int, bias: bool) -> None:
    sizes = [d, *widths, d]
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b, bias=bias), nn.Softplus()]
    net = nn.Sequential(*layers).to(DTYPE)
    y0 = state(batch, d) if batch else state(d)
    rhs = build_rhs(lambda t, y: net(y), y0, T)
    assert rhs.way in GRAPHS
    check_all(rhs, lambda t, y: net(y), y0.reshape(-1), torch.tensor(T, dtype=DTYPE))


shapes = st.lists(st.integers(1, 3), max_size=2).map(tuple)
nests = st.recursive(
    shapes.map(lambda s: state(*s)),
    lambda inner: (
        st.tuples(inner, inner) | st.lists(inner, min_size=1, max_size=2) | st.fixed_dictionaries({"a": inner})
    ),
    max_leaves=4,
)


@settings(max_examples=15, deadline=None)
@given(nests)
def test_random_nests(y0: Any) -> None:
    w = nn.Parameter(torch.tensor(0.3, dtype=DTYPE))

    def f(t: Tensor, y: Any) -> Any:
        return torch.utils._pytree.tree_map(lambda x: torch.sin(w * x) + t, y)

    rhs = build_rhs(f, y0, T)
    assert rhs.way in GRAPHS and rhs.params == (w,)
    check_all(rhs, f, rhs.layout.flatten(y0), torch.tensor(T, dtype=DTYPE))


@pytest.mark.parametrize("way", ["traced", "eager"])
def test_other_parameter_values_are_used(way: str) -> None:
    f = MLP()
    u, t, v = state(2), torch.tensor(T, dtype=DTYPE), state(2, seed=1)
    rhs = build_rhs(f, u, T, way=way)
    other = MLP()
    values = tuple(p.detach().clone() for p in other.parameters())
    want = build_rhs(other, u, T)
    before = [p.detach().clone() for p in f.parameters()]
    torch.testing.assert_close(rhs.f(t, u, values), want.f(t, u, want.params))
    torch.testing.assert_close(rhs.vjp_up(t, u, v, values), want.vjp_up(t, u, v, want.params))
    torch.testing.assert_close(rhs.jacobian(t, u, values), want.jacobian(t, u, want.params))
    assert all(torch.equal(a, b) for a, b in zip(before, f.parameters(), strict=True))
    assert all(a is b for a, b in zip(rhs.params, f.parameters(), strict=True))


def test_no_tape_when_gradients_are_on() -> None:
    f = MLP()
    u = state(2).requires_grad_()
    t = torch.tensor(T, dtype=DTYPE, requires_grad=True)
    for way in ("traced", "eager"):
        rhs = build_rhs(f, u, T, way=way)
        gu, gp = rhs.vjp_up(t, u, state(2), rhs.params)
        for x in (
            rhs.f(t, u, rhs.params),
            gu,
            *gp,
            rhs.jacobian(t, u, rhs.params),
            rhs.time_gradient(t, u, rhs.params),
        ):
            assert not x.requires_grad


def test_closed_over_non_leaf_traced_is_itself_eager_is_its_leaf() -> None:
    f = closure_non_leaf()
    w2 = f.__closure__[0].cell_contents
    traced = build_rhs(f, state(2), T)
    assert traced.params == (w2,)
    eager = build_rhs(f, state(2), T, way="eager")
    (w,) = eager.params
    assert w.is_leaf and w is not w2
    t, u, v = torch.tensor(T, dtype=DTYPE), state(2), state(2, seed=1)
    (g2,), (g,) = traced.vjp_p(t, u, v, traced.params), eager.vjp_p(t, u, v, eager.params)
    torch.testing.assert_close(2 * g2, g)
    torch.testing.assert_close(eager.vjp_p(t, u, v, eager.params)[0], g)  # the shared graph outlives a call


def test_param_found_in_the_other_branch_of_an_eager_f() -> None:
    a = torch.ones(2, dtype=DTYPE, requires_grad=True)
    b = torch.ones(2, dtype=DTYPE, requires_grad=True)
    rhs = build_rhs(lambda t, y: a * y if y.sum() > 0 else b * y, torch.ones(2, dtype=DTYPE), T)
    assert rhs.way == "eager"
    assert {id(p) for p in rhs.params} == {id(a), id(b)}


def test_unknown_leaf_is_refused_not_forgotten() -> None:
    hidden = {"late": None}

    def f(t: Tensor, y: Tensor) -> Tensor:
        return y * next(iter(source())) if y.sum() > 0 else y

    def source() -> Any:
        yield hidden["late"] if hidden["late"] is not None else 1.0

    rhs = build_rhs(f, -torch.ones(2, dtype=DTYPE), T)
    assert rhs.way == "eager"
    hidden["late"] = torch.ones(2, dtype=DTYPE, requires_grad=True)
    u = torch.ones(2, dtype=DTYPE)
    with pytest.raises(InputError, match=r"shape \(2,\) that requires grad and was not found.*params="):
        rhs.vjp_up(torch.tensor(T, dtype=DTYPE), u, u, rhs.params)


def test_autograd_inside_without_create_graph_is_refused() -> None:
    class Forgets(Hamiltonian):
        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            with torch.enable_grad():
                y = y.detach().requires_grad_()
                (g,) = torch.autograd.grad(self.h(y).sum(), y)
            return torch.stack([g[1], -g[0]])

    rhs = build_rhs(Forgets(), state(2), T)
    t, u = torch.tensor(T, dtype=DTYPE), state(2)
    assert rhs.f(t, u, rhs.params).shape == (2,)
    with pytest.raises(InputError, match="create_graph=True"):
        rhs.vjp_u(t, u, u, rhs.params)


def test_explicit_params() -> None:
    w = torch.ones(2, dtype=DTYPE, requires_grad=True)
    extra = torch.ones(3, dtype=DTYPE, requires_grad=True)
    rhs = build_rhs(lambda t, y: w * y, state(2), T, params=[extra])
    assert len(rhs.params) == 2 and rhs.params[0] is extra and rhs.params[1] is w
    gradients = rhs.vjp_p(torch.tensor(T, dtype=DTYPE), state(2), state(2), rhs.params)
    assert torch.equal(gradients[0], torch.zeros(3, dtype=DTYPE)) and gradients[1].any()
    with pytest.raises(InputError, match=r"params\[0\].*does not require grad"):
        build_rhs(lambda t, y: w * y, state(2), T, params=[torch.ones(2)])
    with pytest.raises(InputError, match=r"params\[1\] is int"):
        build_rhs(lambda t, y: w * y, state(2), T, params=[w, 3])  # type: ignore[list-item]


def test_overlapping_params_are_refused_where_they_would_count_twice() -> None:
    w = torch.ones(2, dtype=DTYPE, requires_grad=True)
    w2 = 2 * w
    with pytest.raises(InputError, match="computed from"):
        build_rhs(lambda t, y: w2 * y + w, state(2), T, params=[w2], way="eager")
    traced = build_rhs(lambda t, y: w2 * y + w, state(2), T, params=[w2])
    assert traced.way in GRAPHS and len(traced.params) == 2


@pytest.mark.parametrize("way", ["auto", "eager"])
def test_wrong_derivative_is_an_input_error(way: str) -> None:
    with pytest.raises(InputError, match=r"shape \(3,\)"):
        build_rhs(lambda t, y: y.repeat(2)[:3], state(2), T, way=way)
    with pytest.raises(InputError, match="dtype"):
        build_rhs(lambda t, y: y.float(), state(2), T, way=way)
    with pytest.raises(InputError, match="NoneType"):
        build_rhs(lambda t, y: None, state(2), T, way=way)


def test_exception_of_f_comes_out_as_itself() -> None:
    class MyError(Exception):
        pass

    def f(t: Tensor, y: Tensor) -> Tensor:
        raise MyError("mine")

    with pytest.raises(MyError, match="mine"):
        build_rhs(f, state(2), T)


def test_ways_that_are_impossible_say_why() -> None:
    with pytest.raises(UnsupportedError, match="value out of a tensor"):
        build_rhs(Branching(), state(2), T, way="traced")
    with pytest.raises(UnsupportedError, match="convolution"):
        build_rhs(CASES["conv"].make(), CASES["conv"].y0, T, way="native")
    with pytest.raises(InputError, match="way='fast'"):
        build_rhs(MLP(), state(2), T, way="fast")


def test_eager_f_may_keep_and_change_its_arguments() -> None:
    kept = []

    def f(t: Tensor, y: Tensor) -> Tensor:
        kept.append((t, y))
        y *= 2
        return y

    rhs = build_rhs(f, state(2), T)
    assert rhs.way == "eager"
    u, t = torch.ones(2, dtype=DTYPE), torch.tensor(T, dtype=DTYPE)
    rhs.f(t, u, ())
    u[0] = 5
    assert kept[-1][1][0] == 2
    assert torch.equal(rhs.vjp_u(t, u, torch.ones(2, dtype=DTYPE), ()), torch.full((2,), 2.0, dtype=DTYPE))
    assert torch.equal(u, torch.tensor([5.0, 1.0], dtype=DTYPE))


def test_depends_on_time() -> None:
    assert not build_rhs(Pendulum(), state(2), T).depends_on_time
    assert build_rhs(lambda t, y: t * y, state(2), T).depends_on_time


def test_eager_jacobian_of_a_large_state_takes_all_rows_at_once() -> None:
    w = state(20, 20)
    u = state(20)
    rhs = build_rhs(lambda t, y: torch.tanh(w @ y) * t, u, T, way="eager")
    t = torch.tensor(T, dtype=DTYPE)
    want = torch.autograd.functional.jacobian(lambda u: torch.tanh(w @ u) * t, u)
    torch.testing.assert_close(rhs.jacobian(t, u, ()), want)
    assert isinstance(rhs, EagerRHS)
