"""autocast, inference mode, no_grad, torch.compile."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pyjode import UnsupportedError, explain, odeint, odeint_adjoint


def bf16():
    return torch.autocast("cpu", dtype=torch.bfloat16)


def test_autocast_leaves_a_solve_as_it_is(make_layer, y0, gradients):
    expected, expected_gradients = make_layer()(y0), gradients(make_layer(), y0)
    layer = make_layer()
    with bf16():
        y1 = layer(y0)
    assert y1.dtype == torch.float32 and torch.equal(y1, expected)
    y1.square().sum().backward()
    torch.testing.assert_close([p.grad for p in layer.parameters()], expected_gradients)


def test_autocast_between_layers(make_layer, y0):
    """What autocast made bfloat16 is solved as float32, and its gradient comes back."""
    first = nn.Linear(2, 2)
    model = nn.Sequential(first, make_layer(), nn.Linear(2, 1))
    with bf16():
        out = model(y0)
        assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert first.weight.grad.abs().sum() > 0
    with pytest.raises(Exception, match="bfloat16"):
        make_layer()(y0.bfloat16())


@pytest.mark.julia
@pytest.mark.parametrize("solve", [odeint, odeint_adjoint])
def test_autocast_in_the_backward_pass(solve, y0):
    """Discouraged by torch, but done; an eager f is called then, with autograd."""
    weight = torch.tensor([[0.1, 1.0], [-1.0, 0.3]], requires_grad=True)
    calls = []

    def f(t, y):
        calls.append(t)  # keeps the Julia engine from tracing f
        return torch.tanh(y @ weight)

    t = torch.tensor([0.0, 1.0])
    grads = []
    for context in (torch.enable_grad, bf16):
        with context():
            (g,) = torch.autograd.grad(solve(f, y0, t, engine="julia")[-1].sum(), weight)
        grads.append(g)
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-5)


def test_first_solve_in_inference_mode(make_layer, y0, gradients):
    """What it leaves behind must not spoil the training that follows."""
    layer = make_layer()
    with torch.inference_mode():
        inferred = layer(y0.clone())
    expected = make_layer()
    torch.testing.assert_close(inferred, expected(y0))
    torch.testing.assert_close(gradients(layer, y0), gradients(expected, y0))


def test_inference_mode_with_an_eager_f(engine, y0):
    weight = nn.Parameter(torch.tensor([[0.1, 1.0], [-1.0, 0.3]]))
    calls = []

    def f(t, y):
        calls.append(t)
        return torch.tanh(y @ weight)

    t = torch.tensor([0.0, 1.0])
    with torch.inference_mode():
        inferred = odeint(f, y0.clone(), t, engine=engine)
    y = odeint(f, y0, t, engine=engine)
    assert torch.equal(inferred, y)
    y[-1].sum().backward()
    assert weight.grad.abs().min() > 0


def test_explain_in_inference_mode(y0):
    net = nn.Linear(2, 2)

    def f(t, y):
        return net(y)

    with torch.inference_mode():
        assert explain(f, y0.clone()).way != "eager"


def test_no_grad(make_layer, y0):
    with torch.no_grad():
        assert not make_layer()(y0).requires_grad


def test_set_grad_enabled_inside_no_grad(make_layer, y0, gradients):
    layer = make_layer()
    expected = gradients(make_layer(), y0)
    with torch.no_grad(), torch.enable_grad():
        torch.testing.assert_close(gradients(layer, y0), expected)


def test_compile_is_a_graph_break_with_the_same_values(make_layer, y0):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(3)
            self.before, self.layer, self.after = nn.Linear(2, 2), make_layer(), nn.Linear(2, 1)

        def forward(self, y):
            y = torch.relu(self.before(y))
            y = self.layer(y)
            return self.after(y)

    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    plain, compiled = Model(), Model()
    run = torch.compile(compiled, backend=backend)
    for _ in range(2):
        expected, got = plain(y0), run(y0)
        assert torch.equal(got, expected)
        for net, out in ((plain, expected), (compiled, got)):
            net.zero_grad()
            out.sum().backward()
        torch.testing.assert_close(*([p.grad for p in net.parameters()] for net in (compiled, plain)))
    # What comes before the solve and what comes after is compiled, and nothing else.
    assert len(graphs) == 2


def test_compiled_f(engine, y0):
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2))

    def f(t, y):
        return net(y)

    t = torch.tensor([0.0, 1.0])
    compiled = torch.compile(f, backend="eager")
    expected = torch.autograd.grad(odeint(f, y0, t, engine=engine)[-1].sum(), list(net.parameters()))
    got = torch.autograd.grad(odeint(compiled, y0, t, engine=engine)[-1].sum(), list(net.parameters()))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_tracers_are_refused(make_layer, y0):
    """They would record the result of one solve as a constant."""
    layer = make_layer()
    with pytest.raises(UnsupportedError, match="cannot be traced"):
        torch.jit.trace(layer, y0)
    with pytest.raises(UnsupportedError, match="cannot be traced"):
        torch.fx.experimental.proxy_tensor.make_fx(layer)(y0)
