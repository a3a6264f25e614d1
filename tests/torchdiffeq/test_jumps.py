"""``jump_t``: f jumps at these times; f is asked for from the side a step is on. From the further documentation."""

import math
from typing import ClassVar

import pytest
import torch
from torch import nn

import pyjode

T = torch.float64
DOORS = [pyjode.odeint, pyjode.odeint_adjoint]


class Bang(nn.Module):
    """y' = -y before the jump, y' = -y + k after it: in closed form."""

    sides: ClassVar = {
        "<": lambda t, jump: t < jump,
        "<=": lambda t, jump: t <= jump,
        "not >": lambda t, jump: ~(t > jump),
    }

    def __init__(self, jump=1.0, side="<", dtype=T):
        super().__init__()
        self.k = nn.Parameter(torch.tensor(3.0, dtype=dtype))
        self.jump, self.side = jump, self.sides[side]
        self.rejected = 0

    def forward(self, t, y):
        return torch.where(self.side(t, self.jump), -y, -y + self.k)

    def callback_reject_step(self, t0, y0, dt):
        self.rejected += 1


def exact(t, y0, k, jump=1.0):
    """Differentiable in y0 and k."""
    rows = [y0 * math.exp(-s) + (k * (1 - math.exp(-(s - jump))) if s > jump else 0 * k) for s in t.tolist()]
    return torch.stack(rows)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("side", ["<", "<=", "not >"])
def test_on_whichever_side_f_puts_the_jump_itself(engine, side, dtype):
    f, t = Bang(side=side, dtype=dtype), torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0], dtype=T)
    y0 = torch.tensor([2.0], dtype=dtype)
    ys = pyjode.odeint(
        f, y0, t, rtol=1e-6, atol=1e-8, method="dopri5", options={"jump_t": torch.tensor([1.0])}, engine=engine
    )
    assert torch.allclose(ys.double(), exact(t, y0.double(), 3.0), atol=1e-5)


def test_without_it_the_solver_has_to_find_the_jump(engine):
    rejected = {}
    for options in (None, {"jump_t": [1.0]}):
        f, t = Bang(), torch.tensor([0.0, 2.0], dtype=T)
        pyjode.odeint(
            f, torch.tensor([2.0], dtype=T), t, rtol=1e-6, atol=1e-8, method="dopri5", options=options, engine=engine
        )
        rejected[options is None] = f.rejected
    assert rejected[True] >= rejected[False] + 3


@pytest.mark.parametrize("door", DOORS)
def test_gradients_through_a_jump(engine, door):
    f, t = Bang(), torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0], dtype=T)
    y0 = torch.tensor([2.0, -1.0], dtype=T, requires_grad=True)
    options = {"jump_t": torch.tensor([1.0], dtype=T)}
    ys = door(f, y0, t, rtol=1e-9, atol=1e-11, method="dopri5", options=options, engine=engine)
    weights = torch.linspace(-1, 2, 10, dtype=T).reshape(5, 2)
    found = torch.autograd.grad((weights * ys).sum(), (y0, f.k))
    y, k = y0.detach().clone().requires_grad_(), f.k.detach().clone().requires_grad_()
    truth = torch.autograd.grad((weights * exact(t, y, k)).sum(), (y, k))
    for a, b in zip(found, truth, strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-8)


def test_several_jumps_backwards_in_time_and_some_that_do_not_matter(engine):
    """y' = the number of jumps passed; jumps before the start, at both ends and beyond the end change nothing."""
    jumps = torch.tensor([1.5, 0.5, 3.0, 9.0, 0.0], dtype=T)
    f = lambda t, y: sum((t > j).to(y.dtype) for j in (0.5, 1.5)) + 0 * y  # noqa: E731
    t = torch.tensor([3.0, 2.0, 1.0, 0.0], dtype=T)
    ys = pyjode.odeint(
        f, torch.zeros(1, dtype=T), t, rtol=1e-8, atol=1e-8, method="dopri5", options={"jump_t": jumps}, engine=engine
    )
    assert torch.allclose(ys[:, 0], torch.tensor([0.0, -2.0, -3.5, -4.0], dtype=T), atol=1e-7)


@pytest.mark.parametrize("method", ["rk4", "euler", "midpoint"])
def test_perturb_does_the_same_for_fixed_steps(engine, method):
    """Steps end at the jump; without perturb a stage lands on the wrong side of it."""
    f = lambda t, y: torch.where(t < 1.0, 1.0, -2.0).to(y.dtype) + 0 * y  # noqa: E731
    t = torch.tensor([0.0, 1.0, 2.0], dtype=T)
    options = {"step_size": 0.25, "perturb": True}
    ys = pyjode.odeint(f, torch.zeros(1, dtype=T), t, method=method, options=options, engine=engine)
    assert torch.allclose(ys[:, 0], torch.tensor([0.0, 1.0, -1.0], dtype=T), atol=1e-9)
    g = lambda t, y: torch.where(t <= 1.0, 1.0, -2.0).to(y.dtype) + 0 * y  # noqa: E731
    if method != "midpoint":  # whose only weight is in the middle
        unperturbed = pyjode.odeint(
            g, torch.zeros(1, dtype=T), t, method=method, options={"step_size": 0.25}, engine=engine
        )
        assert abs(unperturbed[-1, 0] + 1.0) > 1e-2
    perturbed = pyjode.odeint(g, torch.zeros(1, dtype=T), t, method=method, options=options, engine=engine)
    assert torch.allclose(perturbed, ys, atol=1e-9)


@pytest.mark.parametrize("door", DOORS)
def test_gradients_with_perturb(engine, door):
    f, t = Bang(), torch.tensor([0.0, 1.0, 2.0], dtype=T)
    y0 = torch.tensor([2.0], dtype=T, requires_grad=True)
    ys = door(f, y0, t, method="rk4", options={"step_size": 0.1, "perturb": True}, engine=engine)
    found = torch.autograd.grad(ys[-1].sum(), (y0, f.k))
    assert torch.allclose(found[0], torch.tensor([math.exp(-2)], dtype=T), rtol=1e-4)
    assert torch.allclose(found[1], torch.tensor(1 - math.exp(-1), dtype=T), rtol=1e-4)


def test_dense_output_across_a_jump(engine):
    f, y0 = Bang(), torch.tensor([2.0], dtype=T)
    with torch.no_grad():
        y = pyjode.odeint_dense(
            f, y0, 0.0, 2.0, rtol=1e-9, atol=1e-11, method="dopri5", options={"jump_t": torch.tensor([1.0])},
            engine=engine,
        )  # fmt: skip
        t = torch.tensor([0.25, 0.9, 1.1, 1.9], dtype=T)
        assert torch.allclose(y(t), exact(t, y0, 3.0), atol=1e-6)
