"""What explain tells."""

from __future__ import annotations

import torch

from pyjode.rhs import explain

from .zoo import DTYPE, MLP, Conv, Counting, closure_leaf, state


def test_native() -> None:
    told = explain(MLP(), state(2))
    assert told.way == "native"
    assert told.parameters["self.net.0.weight"] == 14 and len(told.parameters) == 6
    assert told.operators["addmm"] == 3 and told.operators["tanh"] == 2
    assert not told.depends_on_time
    text = str(told)
    assert "way: native" in text and "self.net.4.bias: 2" in text and "addmm x3" in text


def test_traced_says_what_could_not_be_compiled() -> None:
    told = explain(Conv(), state(2, 2, 4, 4))
    assert told.way == "traced" and "convolution" in told.reason


def test_eager() -> None:
    told = explain(Counting(), state(2))
    assert told.way == "eager" and "self.nfe" in told.reason and told.operators == {}


def test_closed_over() -> None:
    told = explain(closure_leaf(), state(2), 0.5)
    assert told.closed_over == {"w": 4} and told.parameters == {}


def test_other_params() -> None:
    extra = torch.ones(3, dtype=DTYPE, requires_grad=True)
    assert sum(explain(MLP(), state(2), params=[extra]).closed_over.values()) == 3
