"""What f does besides computing: seen, told, and not lost."""

from __future__ import annotations

import functools
import logging
import random
import sys
import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pyjode.rhs import build_rhs

from .zoo import (
    DTYPE,
    GRAPHS,
    MLP,
    Branching,
    Conv,
    Counting,
    Double,
    Dropping,
    Hamiltonian,
    Normalised,
    Printing,
    state,
)

counter = 0
scale = 2.0


def counts_globally(t: Tensor, y: Tensor) -> Tensor:
    global counter
    counter += 1
    return scale * y


def reason_of(f: Any, y0: Any = None) -> str:
    rhs = build_rhs(f, state(2) if y0 is None else y0, 0.3)
    assert rhs.way == "eager", rhs.reason
    return rhs.reason


def test_counter_is_named_kept_and_keeps_counting() -> None:
    f = Counting()
    rhs = build_rhs(f, state(2), 0.3)
    assert (rhs.way, rhs.reason) == (
        "eager",
        "f changes self.nfe; Solution.stats counts evaluations for free",
    )
    assert f.nfe == 0
    t = torch.tensor(0.3, dtype=DTYPE)
    for _ in range(3):
        rhs.f(t, state(2), rhs.params)
    assert f.nfe == 3


def test_counter_does_not_make_the_next_solve_build_again() -> None:
    f = Counting()
    rhs = build_rhs(f, state(2), 0.3)
    f.nfe = 17
    assert build_rhs(f, state(2), 0.3) is rhs
    assert f.nfe == 17


def test_number_of_calls() -> None:
    calls = []
    net = MLP()

    class Quiet:
        def __call__(self, t: Tensor, y: Tensor) -> Tensor:
            sys.modules["_calls_of_f"].append(1)  # type: ignore[attr-defined]
            return net(t, y)

    sys.modules["_calls_of_f"] = calls  # type: ignore[assignment]
    try:
        assert build_rhs(Quiet(), state(2), 0.3).way in GRAPHS
        assert len(calls) == 2
        calls.clear()
        assert build_rhs(Quiet(), state(2), 0.3, way="eager").way == "eager"
        assert len(calls) == 1
    finally:
        del sys.modules["_calls_of_f"]


def test_global_and_closure_counters() -> None:
    global counter
    counter = 0
    assert "the global counter" in reason_of(counts_globally)
    assert counter == 0
    n = 0

    def f(t: Tensor, y: Tensor) -> Tensor:
        nonlocal n
        n += 1
        return y

    assert reason_of(f).startswith("f changes n")
    assert n == 0


def test_history_list() -> None:
    seen: list[Tensor] = []

    def f(t: Tensor, y: Tensor) -> Tensor:
        seen.append(t)
        return y

    assert "f changes seen" in reason_of(f)
    assert seen == []


def test_deep_state() -> None:
    class Inner:
        def __init__(self) -> None:
            self.stats = {"calls": [0]}

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            self.inner.stats["calls"][0] += 1
            return y

    f = Outer()
    assert "self.inner.stats['calls'][0]" in reason_of(f)
    assert f.inner.stats == {"calls": [0]}


def test_keeping_its_input() -> None:
    class Keeps(MLP):
        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            self.last = y
            return self.net(y)

    assert "self.last" in reason_of(Keeps()) or "f changes self" in reason_of(Keeps())


def test_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert "stdout" in reason_of(Printing())
    assert capsys.readouterr().out.startswith("called")

    def warns(t: Tensor, y: Tensor) -> Tensor:
        sys.stderr.write("x")
        return y

    assert "stderr" in reason_of(warns)

    def logs(t: Tensor, y: Tensor) -> Tensor:
        logging.getLogger("mine").info("x")
        logging.getLogger("mine").error("x")
        return y

    assert "log" in reason_of(logs)


def test_random_numbers_are_noticed_and_the_users_are_not_shifted() -> None:
    f = Dropping()
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    assert "random numbers (torch)" in reason_of(f)
    assert torch.equal(torch.rand(3), want)
    assert build_rhs(Dropping().eval(), state(2), 0.3).way in GRAPHS
    assert "mentions random" in reason_of(lambda t, y: y * random.random())
    draw = random.random
    assert "generator draw" in reason_of(lambda t, y: y * draw())
    assert "numpy.random" in reason_of(lambda t, y: y * np.random.rand())  # noqa: NPY002
    own = random.Random(1)
    assert "own" in reason_of(lambda t, y: y * own.random())


def test_clock() -> None:
    assert "time" in reason_of(lambda t, y: y * (time.time() > 0))


def test_batch_norm() -> None:
    f = Normalised()
    assert "in place" in reason_of(f, state(4, 3))
    assert build_rhs(f.eval(), state(4, 3), 0.3).way in GRAPHS


@pytest.mark.parametrize(
    "f",
    [
        lambda t, y: y * y.detach().sum().item(),
        lambda t, y: y * float(t),
        lambda t, y: y if t < 1 else 2 * y,
        lambda t, y: y * torch.arange(10.0, dtype=DTYPE)[(t * 5).long()],
        lambda t, y: torch.from_numpy(2 * y.detach().numpy()),
        lambda t, y: y * torch.tensor(y.tolist(), dtype=DTYPE).sum(),
        Branching(),
    ],
)
def test_values_taken_out(f: Any) -> None:
    assert "value out of a tensor" in reason_of(f)


def test_value_of_a_parameter_taken_out() -> None:
    class Gated(MLP):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.tensor(1.0, dtype=DTYPE))

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return self.net(y) * self.gain.item()

    assert "item" in reason_of(Gated())


def test_autograd_inside_hooks_and_no_grad() -> None:
    assert "autograd" in reason_of(Hamiltonian())
    f = MLP()
    f.net[0].register_forward_hook(lambda *_: None)
    assert "hooks" in reason_of(f) and "self.net.0" in reason_of(f)

    def stops(t: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            gain = y.sum()
        return gain * y

    assert "no_grad" in reason_of(stops)


def test_detach_stays_a_detach() -> None:
    rhs = build_rhs(lambda t, y: y.detach() * y, torch.ones(2, dtype=DTYPE), 0.3)
    assert rhs.way in GRAPHS
    one = torch.ones(2, dtype=DTYPE)
    assert torch.equal(rhs.vjp_u(torch.tensor(0.3, dtype=DTYPE), 3 * one, one, ()), 3 * one)


def test_custom_function_keeps_its_backward() -> None:
    rhs = build_rhs(lambda t, y: Double.apply(y), state(2), 0.3)
    assert rhs.way == "eager" and "Double" in rhs.reason
    one = torch.ones(2, dtype=DTYPE)
    assert torch.equal(rhs.vjp_u(torch.tensor(0.3, dtype=DTYPE), one, one, ()), 7 * one)


def test_argument_changed_in_place() -> None:
    def f(t: Tensor, y: Tensor) -> Tensor:
        y.mul_(2)
        return y

    assert "in place" in reason_of(f)


def test_tensor_nobody_names() -> None:
    @functools.lru_cache
    def table() -> Tensor:
        return torch.ones(2, dtype=DTYPE)

    table()
    assert "neither an attribute" in reason_of(lambda t, y: y * table())


def test_convolution_is_traced_as_it_is() -> None:
    rhs = build_rhs(Conv(), state(2, 2, 4, 4), 0.3)
    assert rhs.way in GRAPHS
    assert "convolution" in rhs.forward_graph.code  # type: ignore[attr-defined]


def test_sizes_that_depend_on_values() -> None:
    assert "size depends on values" in reason_of(lambda t, y: y * y[y > 0].shape[0])
    order = torch.tensor([1, 0])
    assert build_rhs(lambda t, y: y[order], state(2), 0.3).way in GRAPHS


def test_torch_func_inside_is_traced() -> None:
    net = MLP()

    def flow(t: Tensor, y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        jacobians = torch.func.vmap(torch.func.jacrev(net.net))(y[0])
        return net.net(y[0]), -torch.einsum("bii->b", jacobians)

    rhs = build_rhs(flow, (state(4, 2), state(4)), 0.3)
    assert rhs.way in GRAPHS, rhs.reason
    u, v = state(12, seed=1), state(12, seed=2)
    t = torch.tensor(0.3, dtype=DTYPE)
    eager = build_rhs(flow, (state(4, 2), state(4)), 0.3, way="eager")
    torch.testing.assert_close(rhs.vjp_up(t, u, v, rhs.params), eager.vjp_up(t, u, v, eager.params))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_torchscript() -> None:
    scripted = torch.jit.script(MLP().net)
    rhs = build_rhs(lambda t, y: scripted(y), state(2), 0.3)
    assert len(rhs.params) == 6
    gradients = rhs.vjp_p(torch.tensor(0.3, dtype=DTYPE), state(2), state(2), rhs.params)
    assert all(g.any() for g in gradients)


def test_lazy_modules() -> None:
    class Lazy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.LazyLinear(2, dtype=DTYPE)

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return self.lin(y)

    rhs = build_rhs(Lazy(), state(2), 0.3)
    assert rhs.way in GRAPHS and len(rhs.params) == 2
