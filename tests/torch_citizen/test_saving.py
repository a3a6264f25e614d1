"""state_dict, deepcopy, pickle, torch.save, .to: of a fresh layer and of one that has solved and been trained."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch

from pyjode import NeuralODE


def through_torch_save(layer):
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda layer: pickle.loads(pickle.dumps(layer)),
    "torch.save": through_torch_save,
}


@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_copies(copied, used, make_layer, y0, gradients):
    layer = make_layer()
    if used:
        gradients(layer, y0)
    twin = copied(layer)
    assert torch.equal(twin(y0), layer(y0))
    expected = gradients(layer, y0)
    torch.testing.assert_close(gradients(twin, y0), expected)
    # Its own weights: training the copy leaves the original alone.
    before = layer(y0)
    with torch.no_grad():
        next(twin.parameters()).add_(1.0)
    assert torch.equal(layer(y0), before) and not torch.equal(twin(y0), before)


def test_what_a_solve_keeps_is_not_pickled(make_layer, y0, gradients):
    fresh, used = make_layer(), make_layer()
    gradients(used, y0)
    used.zero_grad()
    assert len(pickle.dumps(used)) == len(pickle.dumps(fresh))


def test_state_dict(make_layer, y0, gradients):
    layer = make_layer()
    gradients(layer, y0)
    assert set(layer.state_dict()) == {"f.net.0.weight", "f.net.0.bias", "f.net.2.weight", "f.net.2.bias"}
    other = make_layer()
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    other(y0)  # what it remembers of its old weights must not survive the new ones
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(y0), layer(y0))


def test_state_dict_assigned(make_layer, y0):
    """``assign=True`` puts new parameters in the place of the old ones."""
    layer, other = make_layer(), make_layer()
    other(y0)
    weights = {name: 2 * x for name, x in layer.state_dict().items()}
    other.load_state_dict(weights, assign=True)
    layer.load_state_dict(weights)
    assert torch.equal(other(y0), layer(y0))


def test_to_dtype_after_use(make_layer, y0, gradients):
    layer = make_layer(rtol=1e-9, atol=1e-9)
    gradients(layer, y0)
    layer.to(torch.float64)
    got = gradients(layer, y0.double())
    assert all(g.dtype == torch.float64 for g in got)
    expected = gradients(make_layer(rtol=1e-9, atol=1e-9).double(), y0.double())
    torch.testing.assert_close(got, expected)
    assert layer.t.dtype == torch.float64


def test_learned_times(engine, y0):
    """An ``nn.Parameter`` as t is the layer's own, and trained."""
    t = torch.nn.Parameter(torch.tensor([0.0, 1.0], dtype=torch.float64))
    layer = NeuralODE(lambda t, y: y, t, engine=engine, rtol=1e-9, atol=1e-9)
    assert [name for name, _ in layer.named_parameters()] == ["t"]
    for _ in range(2):
        layer.zero_grad()
        layer(y0.double())[-1].sum().backward()
        # d/dt1 of e^(t1 - t0) sum(y0)
        expected = y0.double().sum() * torch.exp(t[1] - t[0]).detach() * torch.tensor([-1.0, 1.0])
        torch.testing.assert_close(t.grad, expected.double(), rtol=1e-6, atol=1e-8)
        with torch.no_grad():
            t[1] += 0.5
