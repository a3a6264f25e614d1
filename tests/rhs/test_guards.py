"""A cached graph is used while it is right, and not a call longer."""

from __future__ import annotations

import functools
import gc
import time
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pyjode.rhs import build_rhs
from pyjode.rhs.guards import Guards
from pyjode.rhs.reach import Reach

from .zoo import DTYPE, GRAPHS, MLP, Counting, state

factor = 2.0
T = torch.tensor(0.3, dtype=DTYPE)
ONE = torch.ones(2, dtype=DTYPE)


def by_global(t: Tensor, y: Tensor) -> Tensor:
    return factor * y


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = 2.0
        self.unused = 0
        self.table = [1.0, 2.0]
        self.register_buffer("shift", torch.zeros(2, dtype=DTYPE))
        self.lin = nn.Linear(2, 2).to(DTYPE)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.scale * self.lin(y) + self.shift * self.table[1]


def value(f: Any) -> Tensor:
    rhs = build_rhs(f, ONE, 0.3)
    assert rhs.way in GRAPHS, rhs.reason
    with torch.no_grad():
        torch.testing.assert_close(rhs.f(T, ONE, rhs.params), f(T, ONE))
    return rhs.f(T, ONE, rhs.params)


def test_same_object_while_nothing_changes() -> None:
    f = Scaled()
    rhs = build_rhs(f, ONE, 0.3)
    with torch.no_grad():
        f.lin.weight.add_(1.0)  # an optimiser's step
        f.shift.add_(1.0)
    f.unused += 1
    assert build_rhs(f, ONE, 0.9) is rhs
    value(f)
    assert build_rhs(f, torch.ones(3, 2, dtype=DTYPE), 0.3) is not rhs
    assert build_rhs(f, ONE, 0.3) is rhs


def set_scale(f: Scaled) -> None:
    f.scale = 3.0


def set_table(f: Scaled) -> None:
    f.table[1] = 7.0


def replace_buffer(f: Scaled) -> None:
    f.shift = torch.ones(2, dtype=DTYPE)


def replace_parameter(f: Scaled) -> None:
    f.lin.weight = nn.Parameter(torch.ones(2, 2, dtype=DTYPE))


def replace_module(f: Scaled) -> None:
    f.lin = nn.Linear(2, 2).to(DTYPE)


def freeze(f: Scaled) -> None:
    f.lin.weight.requires_grad_(False)


def switch_mode(f: Scaled) -> None:
    f.eval()


def scale_by_int(f: Scaled) -> None:
    f.scale = 2  # equal, but not the same kind


@pytest.mark.parametrize(
    "change",
    [set_scale, set_table, replace_buffer, replace_parameter, replace_module, freeze, switch_mode, scale_by_int],
)
def test_change_is_seen(change: Any) -> None:
    f = Scaled()
    rhs = build_rhs(f, ONE, 0.3)
    value(f)
    change(f)
    assert build_rhs(f, ONE, 0.3) is not rhs
    value(f)


def test_frozen_parameter_is_no_longer_one() -> None:
    f = Scaled()
    assert len(build_rhs(f, ONE, 0.3).params) == 2
    f.lin.bias.requires_grad_(False)
    assert len(build_rhs(f, ONE, 0.3).params) == 1


def test_hook_added() -> None:
    f = Scaled()
    assert build_rhs(f, ONE, 0.3).way in GRAPHS
    handle = f.lin.register_forward_hook(lambda *_: None)
    assert build_rhs(f, ONE, 0.3).way == "eager"
    handle.remove()
    assert build_rhs(f, ONE, 0.3).way in GRAPHS


def test_global_and_closure_and_default_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    global factor
    factor = 2.0
    assert torch.equal(value(by_global), 2 * ONE)
    factor = 5.0
    assert torch.equal(value(by_global), 5 * ONE)
    gain = 2.0

    def f(t: Tensor, y: Tensor) -> Tensor:
        return gain * y

    assert torch.equal(value(f), 2 * ONE)
    gain = 4.0
    assert torch.equal(value(f), 4 * ONE)
    rhs = build_rhs(f, ONE, 0.3)
    torch.set_default_dtype(torch.float64)
    try:
        assert build_rhs(f, ONE, 0.3) is not rhs
    finally:
        torch.set_default_dtype(torch.float32)


def test_numpy_array_changed_in_place() -> None:
    array = np.array([1.0, 2.0])

    def f(t: Tensor, y: Tensor) -> Tensor:
        return y * torch.tensor(array)

    value(f)
    array[0] = 9.0
    assert value(f)[0] == 9


def test_class_attribute_and_helper_method() -> None:
    class F:
        gain = 2.0

        def __init__(self) -> None:
            self.offset = 1.0

        def helper(self, y: Tensor) -> Tensor:
            return y * self.gain + self.offset

        def __call__(self, t: Tensor, y: Tensor) -> Tensor:
            return self.helper(y)

    f = F()
    assert torch.equal(value(f), 3 * ONE)
    f.offset = 2.0
    assert torch.equal(value(f), 4 * ONE)
    F.gain = 4.0
    assert torch.equal(value(f), 6 * ONE)


def test_partial_and_bound_method() -> None:
    f = Scaled()

    def g(t: Tensor, y: Tensor, model: nn.Module) -> Tensor:
        return model(t, y)

    part = functools.partial(g, model=f)
    assert len(build_rhs(part, ONE, 0.3).params) == 2
    value(part)
    f.scale = 9.0
    value(part)
    rhs = build_rhs(f.forward, ONE, 0.3)
    assert build_rhs(f.forward, ONE, 0.3) is rhs
    assert len(rhs.params) == 2


def test_explicit_params_are_part_of_the_key() -> None:
    f = Scaled()
    extra = torch.ones(2, requires_grad=True)
    assert len(build_rhs(f, ONE, 0.3).params) == 2
    assert len(build_rhs(f, ONE, 0.3, params=[extra]).params) == 3


@pytest.mark.parametrize("make", [Scaled, Counting])
def test_cache_does_not_keep_f_alive(make: Any) -> None:
    f = make()
    build_rhs(f, ONE, 0.3)
    seen = weakref.ref(f)
    del f
    gc.collect()
    assert seen() is None


def test_checks_are_quick() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers: list[nn.Module] = []
            for _ in range(5):
                layers += [nn.Linear(8, 8), nn.Tanh()]
            self.net = nn.Sequential(*layers)

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return self.net(y)

    f = Deep()
    guards = Guards(Reach(f), f.parameters())
    assert guards.hold()
    best = min(_timed(guards) for _ in range(30))
    # 10 us on a quiet machine (benchmarks/rhs_cost.py); this only catches a change of kind.
    assert best < 1e-4


def _timed(guards: Guards) -> float:
    start = time.perf_counter()
    for _ in range(10):
        guards.hold()
    return (time.perf_counter() - start) / 10


def test_mlp_is_cached_over_many_layouts() -> None:
    f = MLP()
    made = [build_rhs(f, state(n, 2), 0.3) for n in range(1, 12)]
    assert build_rhs(f, state(11, 2), 0.3) is made[-1]
