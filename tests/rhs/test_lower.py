"""Lowering without Julia: what is refused and how it is said, what code comes out, views as strides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pyjode.rhs import build_rhs
from pyjode.rhs import lower_values as lv
from pyjode.rhs.lower import NativeSource, NotLowerable, lower
from pyjode.rhs.native import NativeRHS
from pyjode.rhs.trace import TracedRHS


def traced(f: Callable[..., Any], y: Tensor) -> TracedRHS:
    rhs = build_rhs(f, y, 0.0, way="traced")
    assert isinstance(rhs, TracedRHS)
    return rhs


def lowered(f: Callable[..., Any], y: Tensor) -> NativeSource:
    return lower(traced(f, y))


def function(source: NativeSource, name: str) -> str:
    start = source.source.index(f"function {name}(")
    return source.source[start : source.source.index("\nend\n", start)]


def test_refusals_name_the_operator() -> None:
    conv = nn.Conv1d(2, 2, 3, padding=1)
    with pytest.raises(NotLowerable, match="convolution: this operator has no Julia code") as e:
        lowered(lambda t, y: conv(y), torch.rand(4, 2, 5))
    assert e.value.op == "convolution"
    with pytest.raises(NotLowerable, match="sort"):
        lowered(lambda t, y: y.sort().values, torch.rand(5))
    with pytest.raises(NotLowerable, match="max.*use amax"):
        lowered(lambda t, y: y * y.max(-1, keepdim=True).values, torch.rand(3, 5))


def test_parameters_of_another_dtype_are_refused() -> None:
    scale = nn.Parameter(torch.ones(3, dtype=torch.float32))
    with pytest.raises(NotLowerable, match=r"parameter: it is torch.float32, the state torch.float64"):
        lowered(lambda t, y: y * scale, torch.rand(3, dtype=torch.float64))


def test_code_does_not_depend_on_the_numbers_in_tensors() -> None:
    def source() -> str:
        net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3))
        shift = torch.rand(3)
        return lowered(lambda t, y: net(y) + shift, torch.rand(5, 3)).source

    assert source() == source()


def test_an_elementwise_chain_is_one_loop_without_memory() -> None:
    source = lowered(lambda t, y: torch.tanh(y * 2 + 1).exp() * y.square() - y.sigmoid(), torch.rand(4, 50))
    assert function(source, "f").count("while") == 1
    assert function(source, "vjp_u").count("while") == 1
    assert source.workspace == 0


def test_a_small_system_has_no_loops_and_no_memory() -> None:
    def lorenz(t: Tensor, y: Tensor) -> Tensor:
        x, y, z = y.unbind(-1)
        return torch.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z], -1)

    source = lowered(lorenz, torch.rand(3))
    assert "while" not in source.source
    assert source.workspace == 0
    many = lowered(lorenz, torch.rand(100, 3))
    assert function(many, "f").count("while") == 1
    assert function(many, "vjp_u").count("while") == 1
    assert many.workspace == 0


def test_half_a_vjp_computes_only_its_half() -> None:
    net = nn.Sequential(nn.Linear(4, 30), nn.Tanh(), nn.Linear(30, 4))
    source = lowered(lambda t, y: net(y), torch.rand(10, 4))
    products = {name: function(source, name).count("matmul!") for name in ("f", "vjp_u", "vjp_p", "vjp_up")}
    # By u: the first layer, and two products back. By p: the first layer, one back, two of parameters.
    assert products == {"f": 2, "vjp_u": 3, "vjp_p": 4, "vjp_up": 5}


def test_memory_is_used_again() -> None:
    def deep(layers: int) -> int:
        net = nn.Sequential(*(m for _ in range(layers) for m in (nn.Linear(64, 64), nn.Tanh())))
        source = lowered(lambda t, y: net(y), torch.rand(8, 64))
        offsets = [line for line in function(source, "f").splitlines() if "(w + " in line]
        return len({line.split("(w + ")[1] for line in offsets})

    assert deep(12) == deep(6)


def test_the_table_holds_parameters_then_constants() -> None:
    class Field(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.rand(3))
            self.register_buffer("b", torch.rand(3))

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return self.a * y + self.b

    field = Field()
    native = NativeRHS(traced(field, torch.rand(3)))
    assert native.source.np == 3
    assert native.source.table(native.params) == (field.a.data_ptr(), field.b.data_ptr())
    other = torch.rand(6)[::2]
    table, kept = native.source.addresses((other,))
    assert kept[0].is_contiguous()
    assert torch.equal(kept[0], other)
    assert table.tolist()[:2] == [kept[0].data_ptr(), field.b.data_ptr()]


def test_a_native_rhs_called_from_python_is_the_traced_one() -> None:
    rhs = NativeRHS(traced(lambda t, y: y * t, torch.rand(3)))
    t, u = torch.tensor(2.0), torch.rand(3)
    assert rhs.way == "native"
    assert rhs.depends_on_time
    assert torch.equal(rhs.f(t, u, ()), 2 * u)
    assert torch.equal(rhs.jacobian(t, u, ()), 2 * torch.eye(3))
    assert torch.equal(rhs.time_gradient(t, u, ()), u)


# Views: the strides of lower_values against torch's own.


def _as_torch(x: lv.View, memory: Tensor) -> Tensor:
    """What the view reads (torch has no negative strides)."""
    index = torch.full(x.shape, x.offset)
    for d, (n, s) in enumerate(zip(x.shape, x.strides, strict=True)):
        index += (torch.arange(n) * s).reshape([-1 if e == d else 1 for e in range(len(x.shape))])
    return memory[index]


steps = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 20), st.integers(0, 20)), max_size=8)


@given(shape=st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple), steps=steps)
@settings(max_examples=300, deadline=None)
def test_views_are_those_of_torch(shape: tuple[int, ...], steps: list[tuple[int, int, int]]) -> None:
    want = torch.arange(lv.numel(shape)).reshape(shape)
    memory = want.reshape(-1).clone()
    got: lv.Value = lv.whole(lv.Buffer("b", "temp", torch.int64, memory.numel()), shape)
    for kind, i, j in steps:
        rank = want.dim()
        d = i % rank if rank else 0
        if kind == 0:
            got, want = lv.unsqueeze(got, i % (rank + 1)), want.unsqueeze(i % (rank + 1))
        elif kind == 1 and rank:
            order = torch.randperm(rank, generator=torch.Generator().manual_seed(j)).tolist()
            got, want = lv.permute(got, tuple(order)), want.permute(order)
        elif kind == 2 and rank:
            got, want = lv.select(got, d, j % want.shape[d]), want.select(d, j % want.shape[d])
        elif kind == 3 and rank:
            start = j % want.shape[d]
            length = (want.shape[d] - start + 1) // 2
            got, want = lv.cut(got, d, start, length, 2), want.narrow(d, start, want.shape[d] - start)[
                (slice(None),) * d + (slice(None, None, 2),)
            ]  # fmt: skip
        elif kind == 4 and rank:
            n = want.shape[d]
            got, want = lv.cut(got, d, n - 1, n, -1), want.flip(d)
        elif kind == 5 and want.numel() < 500:
            new = (2, *(3 if n == 1 else n for n in want.shape))
            got, want = lv.expand(got, new), want.expand(new)
        elif kind == 6:
            new = (want.numel(),) if j % 2 else (*want.shape[:-2], -1) if rank > 1 else (1, *want.shape)
            target = tuple(want.reshape(new).shape)
            changed = lv.reshape(got, target)
            if changed is not None:
                got, want = changed, want.reshape(target)
    assert isinstance(got, lv.View)
    assert got.shape == tuple(want.shape)
    assert torch.equal(_as_torch(got, memory), want)
