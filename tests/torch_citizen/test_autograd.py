"""Checkpointing, hooks, accumulation, retained graphs, second derivatives, functorch transforms."""

from __future__ import annotations

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint

from pyjode import ODEProblem, UnsupportedError, odeint, odeint_adjoint, solve


@pytest.mark.parametrize("reentrant", [False, True], ids=["saved_tensors", "reentrant"])
def test_checkpoint(reentrant, make_layer, y0):
    grads = []
    for call in (lambda layer, x: layer(x), lambda layer, x: checkpoint(layer, x, use_reentrant=reentrant)):
        layer, x = make_layer(), y0.clone().requires_grad_()
        call(layer, x).square().sum().backward()
        grads.append([x.grad, *(p.grad for p in layer.parameters())])
    torch.testing.assert_close(grads[1], grads[0])


def test_hooks_on_parameters(make_layer, y0, gradients):
    expected = gradients(make_layer(), y0)
    layer = make_layer()
    weight, *_, bias = layer.parameters()
    seen = []
    weight.register_hook(lambda g: 2 * g)
    bias.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
    got = gradients(layer, y0)
    torch.testing.assert_close(got[0], 2 * expected[0])
    torch.testing.assert_close(seen, [expected[-1]])


@pytest.mark.julia
@pytest.mark.parametrize("way", ["auto", "eager"])
@pytest.mark.parametrize("leaf", [True, False], ids=["leaf", "computed"])
def test_hooks_run_once(way, leaf, y0):
    """An eager f is differentiated by autograd in every step: the hook is for the gradient that comes out."""
    found = []
    for factor in (None, 3.0):
        root = torch.tensor([[0.1, 1.0], [-1.0, 0.3]], requires_grad=True)
        weight = root if leaf else root * 1.0
        if factor is not None:
            weight.register_hook(lambda g: 3 * g)
        problem = ODEProblem(lambda t, y, w=weight: torch.tanh(y @ w), y0, (0.0, 1.0))
        solve(problem, saveat=[1.0], rhs=way, engine="julia", dense=False).ys.square().sum().backward()
        found.append(root.grad)
    torch.testing.assert_close(found[1], 3 * found[0])


def test_hooks_on_the_layer(make_layer, y0):
    layer = make_layer()
    seen = []
    layer.register_forward_hook(lambda module, args, out: seen.append("forward"))
    layer.register_full_backward_hook(lambda module, grad_in, grad_out: seen.append(grad_in[0].shape))
    x = y0.clone().requires_grad_()
    layer(x).sum().backward()
    assert seen == ["forward", y0.shape]


def test_accumulation(make_layer, y0, gradients):
    """One backward pass of two batches, two backward passes, two forward passes first: all the same."""
    whole = gradients(make_layer(rtol=1e-8, atol=1e-8), y0)
    apart = make_layer(rtol=1e-8, atol=1e-8)
    for row in y0.split(1):
        apart(row).square().sum().backward()
    together = make_layer(rtol=1e-8, atol=1e-8)
    sum(together(row).square().sum() for row in y0.split(1)).backward()
    for layer in (apart, together):
        torch.testing.assert_close([p.grad for p in layer.parameters()], whole, rtol=1e-4, atol=1e-5)


def test_retained_graph(make_layer, y0):
    layer = make_layer()
    loss = layer(y0).square().sum()
    first = torch.autograd.grad(loss, list(layer.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(layer.parameters()))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_an_optimizer_step_between_forward_and_backward_is_noticed(make_layer, y0):
    layer = make_layer()
    loss = layer(y0).square().sum()
    with torch.no_grad():
        for p in layer.parameters():
            p.mul_(1.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_lbfgs(make_layer, y0):
    """Its closure is called several times a step; the loss falls as with torch alone."""
    layer = make_layer()
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=5, line_search_fn="strong_wolfe")
    losses = []

    def closure():
        optimizer.zero_grad()
        loss = layer(y0).square().sum()
        loss.backward()
        losses.append(loss.item())
        return loss

    optimizer.step(closure)
    assert len(losses) > 2 and min(losses) < 0.5 * losses[0]


def test_functional_call(make_layer, y0):
    """Other values, computed ones, in the place of the parameters: their gradients too."""
    layer = make_layer()
    scale = torch.tensor(1.2, requires_grad=True)
    layer(y0)
    values = {name: scale * p.detach() for name, p in layer.named_parameters()}
    out = torch.func.functional_call(layer, values, (y0,))
    (by_scale,) = torch.autograd.grad(out.sum(), scale)
    assert all(p.grad is None for p in layer.parameters())

    scaled = make_layer()
    with torch.no_grad():
        for p in scaled.parameters():
            p.mul_(1.2)
    expected = scaled(y0)
    torch.testing.assert_close(out, expected)
    expected.sum().backward()
    chain = sum((p.grad * p / 1.2).sum() for p in scaled.parameters())
    torch.testing.assert_close(by_scale, chain.detach(), rtol=1e-3, atol=1e-5)
    # And its own parameters afterwards.
    torch.testing.assert_close(layer(y0), make_layer()(y0))


def reference_gradients(layer, y0):
    """torchdiffeq's, by backpropagation, at tight tolerances."""
    layer.options |= {"engine": "torchdiffeq", "rtol": 1e-9, "atol": 1e-9}
    out = layer(y0)
    return out, torch.autograd.grad(out.square().sum(), list(layer.parameters()))


@pytest.mark.parametrize("cached", [False, True], ids=["computed in f", "cached"])
def test_weight_norm(cached, make_layer, y0):
    layer = make_layer(rtol=1e-9, atol=1e-9).double()
    weight_norm(layer.f.net[0])
    x = y0.double()
    if cached:
        with parametrize.cached():
            out = layer(x)
    else:
        out = layer(x)
    got = torch.autograd.grad(out.square().sum(), list(layer.parameters()))
    expected, expected_gradients = reference_gradients(layer, x)
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(got, expected_gradients, rtol=1e-5, atol=1e-6)


def test_spectral_norm(make_layer, y0):
    layer = make_layer(rtol=1e-9, atol=1e-9).double()
    spectral_norm(layer.f.net[0])
    layer.eval()  # in training each call of f moves its estimate: f is another function each time
    x = y0.double()
    out = layer(x)
    got = torch.autograd.grad(out.square().sum(), list(layer.parameters()))
    expected, expected_gradients = reference_gradients(layer, x)
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(got, expected_gradients, rtol=1e-5, atol=1e-6)
    layer.train()
    estimate = layer.f.net[0].parametrizations.weight[0]._u
    estimate.copy_(torch.nn.functional.normalize(torch.ones(4, dtype=x.dtype), dim=0))
    before = estimate.clone()
    layer(x).sum().backward()
    assert not torch.equal(estimate, before)


def test_second_derivatives_by_backpropagation(y0):
    """d2/dy0^2 of y1 = y0 / (1 - y0 t): 2t / (1 - y0 t)^3."""
    x = torch.tensor([0.2, -0.5], dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.0, 0.7], dtype=torch.float64)
    y1 = odeint(lambda t, y: y * y, x, t, rtol=1e-10, atol=1e-10, engine="torchdiffeq")[-1]
    (first,) = torch.autograd.grad(y1.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    torch.testing.assert_close(second, (2 * 0.7 / (1 - 0.7 * x) ** 3).detach(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("solve", [odeint, odeint_adjoint])
def test_second_derivatives_are_right_or_refused(solve, engine, y0):
    """A gradient that had lost its graph would drop out of the next one in silence."""
    if engine == "torchdiffeq" and solve is odeint:
        pytest.skip("has them: the test before")
    x = y0.clone().requires_grad_()
    weight = torch.eye(2, requires_grad=True)
    y1 = solve(lambda t, y: torch.sin(y @ weight), x, torch.tensor([0.0, 1.0]), engine=engine)[-1]
    with pytest.raises(UnsupportedError, match="second derivatives"):
        torch.autograd.grad(y1.sum(), x, create_graph=True)
    # Refusing does not spoil the first one.
    (g,) = torch.autograd.grad(y1.sum(), x)
    assert torch.isfinite(g).all()


def test_transforms_are_refused(make_layer, y0):
    layer = make_layer()
    for call in (
        lambda: torch.func.vmap(layer)(y0),
        lambda: torch.func.jvp(layer, (y0,), (y0,)),
        lambda: torch.func.jacrev(layer)(y0),
        lambda: torch.func.grad(lambda y: layer(y).sum())(y0),
    ):
        with pytest.raises(UnsupportedError, match=r"torch\.func transform.*torch\.autograd"):
            call()


def test_forward_mode_is_refused(make_layer, y0):
    with forward_ad.dual_level(), pytest.raises(UnsupportedError, match="forward-mode"):
        make_layer()(forward_ad.make_dual(y0, torch.ones_like(y0)))


def test_jacobian(make_layer, y0):
    """torch.autograd.functional.jacobian, which the messages recommend."""
    layer = make_layer(rtol=1e-9, atol=1e-9).double()
    x = y0[0].double()
    rows = torch.autograd.functional.jacobian(layer, x)
    step = 1e-5
    with torch.no_grad():
        columns = [(layer(x + step * e) - layer(x - step * e)) / (2 * step) for e in torch.eye(2, dtype=x.dtype)]
    torch.testing.assert_close(rows, torch.stack(columns, dim=1), rtol=1e-5, atol=1e-7)


@pytest.mark.julia
def test_vectorised_backward_is_refused(make_layer, y0, engine):
    if engine != "julia":
        pytest.skip("torchdiffeq's backpropagation has it")
    with pytest.raises(UnsupportedError, match="vectorised"):
        torch.autograd.functional.jacobian(make_layer(), y0, vectorize=True)


def test_frozen_shared_and_unused_parameters(make_layer, y0):
    layer = make_layer()
    layer.f.net[0].bias.requires_grad_(False)
    layer.f.unused = nn.Parameter(torch.ones(3))
    layer(y0).sum().backward()
    assert layer.f.net[0].bias.grad is None
    assert layer.f.net[0].weight.grad.abs().sum() > 0
    assert layer.f.unused.grad is None or not layer.f.unused.grad.any()
