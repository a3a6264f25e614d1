"""``norm``: what the accept/reject criterion is measured with; the default norms. From the further documentation."""

import pytest
import torch
from torch import nn

import pyjode
from pyjode.solve import ODEProblem, solve

D = torch.float64
T = torch.tensor([0.0, 1.0], dtype=D)


class Counted(nn.Module):
    """Two uncoupled, unequally fast parts: a plain tensor, or a tuple of a big slow one and a small fast one."""

    def __init__(self, nested=False):
        super().__init__()
        self.nested = nested
        self.w = nn.Parameter(torch.tensor(1.0, dtype=D))
        self.accepted = self.rejected = 0

    def forward(self, t, y):
        if self.nested:
            return (-0.1 * self.w * y[0], torch.cos(12 * t) * 12 * self.w * y[1])
        return torch.cos(12 * t) * 12 * self.w * y

    def callback_accept_step(self, t0, y0, dt):
        self.accepted += 1

    def callback_reject_step(self, t0, y0, dt):
        self.rejected += 1


def run(engine, y0, nested=False, tolerance=1e-6, **options):
    f = Counted(nested)
    with torch.no_grad():
        ys = pyjode.odeint(f, y0, T, rtol=tolerance, atol=tolerance, method="dopri5", options=options, engine=engine)
    return f, ys


FAST = torch.exp(torch.sin(12 * T[1]))


def test_a_norm_is_called_with_states(engine):
    seen = []

    def norm(y):
        seen.append(y.shape)
        return y.abs().max()

    _, ys = run(engine, torch.ones(2, 3, dtype=D), norm=norm)
    assert set(seen) == {torch.Size([2, 3])}
    assert torch.allclose(ys[-1], FAST.expand(2, 3), atol=1e-3)


def test_a_norm_that_is_always_zero_accepts_every_step(engine):
    f, _ = run(engine, torch.ones(2, dtype=D), norm=lambda y: 0.0, max_step=0.1)
    assert f.rejected == 0 and f.accepted <= 25


def test_a_norm_twice_as_large_is_a_tolerance_half_as_large(engine):
    """On Julia's side the default norm is its own; on both, the same steps to rounding."""
    rms = lambda y: y.pow(2).mean().sqrt()  # noqa: E731
    y0 = torch.ones(3, dtype=D)
    double, half = (
        run(engine, y0, first_step=0.01, norm=lambda y: 2 * rms(y))[0],
        run(engine, y0, first_step=0.01, tolerance=0.5e-6)[0],
    )
    assert abs(double.accepted - half.accepted) <= 1
    assert double.accepted > run(engine, y0, first_step=0.01, tolerance=3e-5)[0].accepted


def test_the_default_for_a_tensor_is_the_root_mean_square(engine):
    given, default = (
        run(engine, torch.linspace(0.5, 2, 4, dtype=D), **options)[1]
        for options in ({"norm": lambda y: y.abs().pow(2).mean().sqrt()}, {})
    )
    assert torch.allclose(given, default, rtol=1e-8)


def test_a_norm_of_a_tuple_gets_the_tuple(engine):
    y0 = (torch.ones(4, 2, dtype=D), torch.ones((), dtype=D))

    def norm(y):
        slow, fast = y
        assert slow.shape == (4, 2) and fast.shape == ()
        return fast.abs()

    _, (_, fast) = run(engine, y0, nested=True, norm=norm)
    assert torch.allclose(fast[-1], FAST, atol=1e-3)


def test_the_default_for_a_tuple_is_the_largest_root_mean_square(engine):
    """A small tensor counts as much as a large one; over all entries together its error would hardly show."""
    y0 = (torch.ones(2500, dtype=D), torch.ones((), dtype=D))
    mixed = lambda y: max(x.abs().pow(2).mean().sqrt() for x in y)  # noqa: E731
    together = lambda y: torch.cat([x.reshape(-1) for x in y]).pow(2).mean().sqrt()  # noqa: E731
    results = {
        name: run(engine, y0, nested=True, first_step=0.001, **options)
        for name, options in {"default": {}, "mixed": {"norm": mixed}, "together": {"norm": together}}.items()
    }
    assert torch.allclose(results["default"][1][1], results["mixed"][1][1], rtol=1e-7)
    assert results["default"][0].accepted > results["together"][0].accepted
    assert (results["default"][1][1][-1] - FAST).abs() < (results["together"][1][1][-1] - FAST).abs()


def test_a_complex_tensor_counts_its_moduli(engine):
    y0 = torch.ones(2, dtype=torch.complex128)
    seen = []

    def norm(y):
        seen.append(y.dtype)
        return y.abs().max()

    ys = pyjode.odeint(lambda t, y: 1j * y, y0, T, method="dopri5", options={"norm": norm}, engine=engine)
    assert set(seen) == {torch.complex128}
    assert torch.allclose(ys[-1], torch.exp(1j * T[1]).expand(2), atol=1e-5)


def test_an_exception_in_a_norm_comes_out_as_itself(engine):
    def norm(y):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run(engine, torch.ones(2, dtype=D), norm=norm)


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([[-0.3, 1.0], [-1.0, -0.2]], dtype=D))
        self.b = nn.Parameter(torch.tensor([0.1, -0.2], dtype=D))

    def forward(self, t, y):
        return y @ self.w.T + self.b * torch.cos(t)


def adjoint_gradients(engine, norm=None, nested=False, sensealg=None, tolerance=1e-8):
    f = Linear()
    y0 = torch.tensor([1.0, -0.5], dtype=D, requires_grad=True)
    g = (lambda t, y: (f(t, y[0]), y[1] * 0.1)) if nested else f
    start = (y0, y0.sum().reshape(1, 1)) if nested else y0
    ys = pyjode.odeint_adjoint(
        g, start, T, rtol=tolerance, atol=tolerance, method="dopri5", engine=engine, sensealg=sensealg,
        adjoint_options={} if norm is None else {"norm": norm}, adjoint_params=tuple(f.parameters()),
    )  # fmt: skip
    last = ys[0][-1] if nested else ys[-1]
    return torch.autograd.grad(last.pow(2).sum(), (y0, f.w, f.b))


@pytest.fixture(scope="module")
def truth():
    return adjoint_gradients("torchdiffeq", tolerance=1e-10)


SENSEALGS = [
    None,
    pytest.param("InterpolatingAdjoint", marks=pytest.mark.julia),
    pytest.param("BacksolveAdjoint", marks=pytest.mark.julia),
    pytest.param("QuadratureAdjoint", marks=pytest.mark.julia),
]


@pytest.mark.parametrize("sensealg", SENSEALGS)
@pytest.mark.parametrize("norm", ["seminorm", lambda state: max(x.abs().max() for x in state), None])
def test_adjoint_norms(engine, truth, norm, sensealg):
    if engine == "torchdiffeq" and sensealg is not None:
        sensealg = "BacksolveAdjoint"
    for a, b in zip(adjoint_gradients(engine, norm, sensealg=sensealg), truth, strict=True):
        assert torch.allclose(a, b, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("sensealg", SENSEALGS)
@pytest.mark.parametrize("nested", [False, True])
def test_an_adjoint_norm_gets_the_adjoint_state(engine, nested, sensealg):
    """(time's adjoint, y, y's adjoint, *parameters' adjoints), with y's tensors one by one where y is a tuple."""
    seen = set()
    if engine == "torchdiffeq" and sensealg is not None:
        sensealg = "BacksolveAdjoint"

    def norm(state):
        seen.add(tuple(tuple(x.shape) for x in state))
        return max(x.abs().max() for x in state)

    adjoint_gradients(engine, norm, nested, sensealg)
    y = ((2,), (1, 1)) if nested else ((2,),)
    assert seen == {((), *y, *y, (2, 2), (2,))}


@pytest.mark.julia
def test_the_seminorm_leaves_the_parameters_out():
    """With InterpolatingAdjoint, whose state holds them: their error must not cost steps."""
    calls = {}
    for norm in ("seminorm", None):
        f = Linear()
        wide = nn.Parameter(torch.linspace(0, 1e4, 200, dtype=D))
        count = 0

        class G(nn.Module):
            def forward(self, t, y, f=f, wide=wide):
                return f(t, y) + 1e-3 * torch.sin(wide * t).mean()

            def callback_step_adjoint(self, t0, y, dt):
                nonlocal count
                count += 1

        y0 = torch.tensor([1.0, -0.5], dtype=D, requires_grad=True)
        ys = pyjode.odeint_adjoint(
            G(), y0, T, rtol=1e-6, atol=1e-6, method="dopri5", engine="julia", sensealg="InterpolatingAdjoint",
            adjoint_options={} if norm is None else {"norm": norm}, adjoint_params=(wide,),
        )  # fmt: skip
        ys[-1].sum().backward()
        calls[norm] = count
    assert calls["seminorm"] <= calls[None]


@pytest.mark.julia
def test_scimls_door_keeps_julias_norm():
    """``solve`` is not torchdiffeq's interface: the root mean square of all entries."""
    y0 = (torch.ones(2500, dtype=D), torch.ones((), dtype=D))
    f = Counted(nested=True)
    own = solve(ODEProblem(f, y0, (0.0, 1.0)), "DP5", rtol=1e-6, atol=1e-6, dt=0.001, engine="julia")
    assert own.stats.naccept < run("julia", y0, nested=True, first_step=0.001)[0].accepted
