"""The flat layout: round trips for any nest, and what it refuses."""

from collections import OrderedDict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

from pyjode.errors import InputError
from pyjode.state import StateLayout

DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]

leaves = st.builds(
    lambda shape, dtype, seed: torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed)),
    st.lists(st.integers(1, 3), max_size=3).map(tuple),
    st.sampled_from(DTYPES),
    st.integers(0, 1000),
)
nests = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(tuple),
        st.lists(inner, min_size=1, max_size=3),
        st.dictionaries(st.sampled_from("abc"), inner, min_size=1),
    ),
    max_leaves=6,
)


def assert_same(a, b):
    xs, spec_a = pytree.tree_flatten(a)
    ys, spec_b = pytree.tree_flatten(b)
    assert spec_a == spec_b
    for x, y in zip(xs, ys, strict=True):
        assert x.shape == y.shape and x.dtype == y.dtype
        assert torch.equal(x, y)


@given(nests)
def test_round_trip(y):
    layout = StateLayout.of(y)
    u = layout.flatten(y)
    assert u.shape == (layout.n,) and u.dtype == layout.dtype and u.dtype in (torch.float32, torch.float64)
    assert_same(layout.unflatten(u), y)
    assert_same(layout.unflatten(layout.flatten_derivative(y)), y)


@given(nests, st.integers(1, 3))
def test_leading_axis(y, count):
    layout = StateLayout.of(y)
    us = torch.stack([layout.flatten(y) * (k + 1) for k in range(count)])
    ys = layout.unflatten(us)
    for x, many in zip(pytree.tree_leaves(y), pytree.tree_leaves(ys), strict=True):
        assert many.shape == (count, *x.shape)
        assert torch.allclose(many[-1], x * count)


@given(nests)
def test_layout_is_a_cache_key(y):
    assert hash(StateLayout.of(y)) == hash(StateLayout.of(pytree.tree_map(torch.clone, y)))
    assert StateLayout.of(y) == StateLayout.of(pytree.tree_map(torch.clone, y))


def test_gradients_pass_through_both_ways():
    y = (torch.randn(2, dtype=torch.complex128, requires_grad=True), torch.randn(3, requires_grad=True))
    layout = StateLayout.of(y)

    def there_and_back(a, b):
        return layout.unflatten(layout.flatten((a, b)))

    z, x = there_and_back(*y)
    (z.abs().pow(2).sum() + x.pow(3).sum()).backward()
    assert torch.allclose(y[0].grad, 2 * y[0].detach())
    assert torch.allclose(y[1].grad, 3 * y[1].detach() ** 2, rtol=1e-5)


def test_non_contiguous_and_expanded_states():
    x = torch.arange(6.0).view(2, 3).t()
    y = torch.tensor([1.0, 2.0]).expand(4, 2)
    layout = StateLayout.of((x, y))
    assert_same(layout.unflatten(layout.flatten((x, y))), (x, y))


@pytest.mark.parametrize(
    ("y0", "message"),
    [
        (torch.tensor([1, 2]), "int64"),
        (torch.ones(2, dtype=torch.float16), "float16"),
        ((torch.ones(2), 1.0), "tensor 1 of y0 is float"),
        ((), "no tensor"),
        (torch.empty(0, 3), "no entries"),
        ([1.0], "float, not a torch tensor"),
    ],
)
def test_states_that_are_refused(y0, message):
    with pytest.raises(InputError, match=message):
        StateLayout.of(y0)


@pytest.mark.parametrize(
    ("dy", "message"),
    [
        ((torch.ones(2), torch.ones(4)), r"tensor 1, shape \(4,\)"),
        ((torch.ones(2), torch.ones(3, dtype=torch.float64)), "float64"),
        ((torch.ones(2),), "1 tensors for a state of 2"),
        ((torch.ones(2), 3.0), "float, not a torch tensor"),
    ],
)
def test_derivatives_that_are_refused(dy, message):
    layout = StateLayout.of((torch.ones(2), torch.ones(3)))
    with pytest.raises(InputError, match=message):
        layout.flatten_derivative(dy)


def test_a_list_may_stand_for_a_tuple():
    layout = StateLayout.of((torch.ones(2), torch.ones(3)))
    assert torch.equal(layout.flatten_derivative([torch.ones(2), torch.zeros(3)]), torch.tensor([1.0, 1, 0, 0, 0]))


def test_dict_order_does_not_matter_for_ordered_dicts_of_the_same_keys():
    layout = StateLayout.of(OrderedDict(a=torch.ones(1), b=torch.zeros(1)))
    assert torch.equal(layout.flatten(OrderedDict(a=torch.ones(1), b=torch.zeros(1))), torch.tensor([1.0, 0.0]))
