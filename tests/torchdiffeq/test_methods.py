"""Every method of torchdiffeq's current source, by its name, on the engines that have it: the solution to the method's
order, and its steps where the tableau is the same."""

import math

import pytest
import torch
from torch import nn
from torchdiffeq._impl.odeint import SOLVERS

import pyjode
from pyjode.methods import find_method, methods

D = torch.float64
ADAPTIVE = ["dopri8", "dopri5", "tsit5", "bosh3", "fehlberg2", "adaptive_heun"]
FIXED = ["euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams", "implicit_adams", "fixed_adams"]
IMPLICIT = [
    "implicit_euler", "implicit_midpoint", "trapezoid", "radauIIA3", "radauIIA5", "gl4", "gl6", "sdirk2", "trbdf2",
]  # fmt: skip
SCIPY = ["RK45", "RK23", "DOP853", "Radau", "BDF", "LSODA"]


class Swing(nn.Module):
    """y'' = -w y: exact in closed form, differentiable in w."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(1.3, dtype=D))

    def forward(self, t, y):
        return torch.stack([y[1], -self.w * y[0]])


Y0 = torch.tensor([1.0, 0.0], dtype=D)


def exact(t, w):
    return torch.stack([torch.cos(w.sqrt() * t), -w.sqrt() * torch.sin(w.sqrt() * t)])


def runs_here(engine, method):
    return engine == "julia" or method in SOLVERS


def test_torchdiffeqs_current_methods_are_all_there():
    assert set(SOLVERS) <= {m.name for m in methods()}
    for name in (*ADAPTIVE, *FIXED, *IMPLICIT, "scipy_solver"):
        assert "Julia runs" in find_method(name).note, name


@pytest.mark.parametrize("door", [pyjode.odeint, pyjode.odeint_adjoint])
@pytest.mark.parametrize("method", ADAPTIVE)
def test_adaptive_methods(engine, method, door):
    if not runs_here(engine, method):
        with pytest.raises(pyjode.UnsupportedError, match="needs the Julia engine"):
            door(Swing(), Y0, torch.tensor([0.0, 1.0], dtype=D), method=method, engine=engine)
        return
    f, tolerance = Swing(), 1e-5 if find_method(method).order == 2 else 1e-7
    t = torch.tensor([0.0, 1.0], dtype=D)
    y = door(f, Y0, t, method=method, rtol=tolerance, atol=tolerance, engine=engine)[-1]
    # torchdiffeq steps beyond the end and interpolates with a last stage that is f there to first order only.
    accuracy = 5e-3 if method == "fehlberg2" else 1e-4
    assert torch.allclose(y, exact(1.0, f.w), atol=accuracy)
    y[0].backward()
    assert float(f.w.grad) == pytest.approx(-math.sin(math.sqrt(1.3)) / (2 * math.sqrt(1.3)), abs=10 * accuracy)


@pytest.mark.parametrize("method", [*FIXED, *IMPLICIT])
def test_fixed_methods_have_their_order(engine, method):
    if not runs_here(engine, method):
        with pytest.raises(pyjode.UnsupportedError, match="needs the Julia engine"):
            pyjode.odeint(Swing(), Y0, torch.tensor([0.0, 1.0], dtype=D), method=method, engine=engine)
        return
    order = find_method(method).order
    adams = "adams" in method
    sizes = (0.02, 0.01) if adams else {5: (0.5, 0.25), 6: (1.0, 0.5)}.get(order, (0.1, 0.05))
    f, t = Swing(), torch.tensor([0.0, 2.0], dtype=D)
    options = {"max_order": 5} if adams else {}
    with torch.no_grad():
        errors = [
            float(
                (pyjode.odeint(f, Y0, t, rtol=1e-11, atol=1e-12, method=method, options={"step_size": h} | options,
                               engine=engine)[-1] - exact(2.0, f.w)).norm()
            )
            for h in sizes
        ]  # fmt: skip
    lowest = 3.5 if adams else order - 0.35
    assert math.log2(errors[0] / errors[1]) > lowest
    assert adams or math.log2(errors[0] / errors[1]) < order + 0.8


@pytest.mark.julia
@pytest.mark.parametrize("method", IMPLICIT)
def test_implicit_methods_step_by_their_tableau(method):
    """For y' = k y one step multiplies by the tableau's stability function R(h k)."""
    z = -0.8
    s2, gamma = math.sqrt(2), 1 - math.sqrt(2) / 2
    stability = {
        "implicit_euler": 1 / (1 - z),
        "implicit_midpoint": (1 + z / 2) / (1 - z / 2),
        "trapezoid": (1 + z / 2) / (1 - z / 2),
        "radauIIA3": (1 + z / 3) / (1 - 2 * z / 3 + z**2 / 6),
        "radauIIA5": (1 + 2 * z / 5 + z**2 / 20) / (1 - 3 * z / 5 + 3 * z**2 / 20 - z**3 / 60),
        "gl4": (1 + z / 2 + z**2 / 12) / (1 - z / 2 + z**2 / 12),
        "gl6": (1 + z / 2 + z**2 / 10 + z**3 / 120) / (1 - z / 2 + z**2 / 10 - z**3 / 120),
    }
    if method == "trbdf2":
        first = (1 + gamma * z) / (1 - gamma * z)
        stability["trbdf2"] = (1 + s2 / 4 * z * (1 + first)) / (1 - gamma * z)
    if method == "sdirk2":  # of Alexander's tableau, which is torchdiffeq's
        second = (1 + (1 - gamma) * z / (1 - gamma * z)) / (1 - gamma * z)
        stability["sdirk2"] = 1 + z * ((1 - gamma) / (1 - gamma * z) + gamma * second)
    y0 = torch.ones(1, dtype=D)
    with torch.no_grad():
        y = pyjode.odeint(
            lambda t, y: z * y, y0, torch.tensor([0.0, 1.0], dtype=D), rtol=1e-12, atol=1e-13, method=method,
            engine="julia",
        )  # fmt: skip
    assert float(y[-1]) == pytest.approx(stability[method], rel=1e-8)


@pytest.mark.julia
@pytest.mark.parametrize("door", [pyjode.odeint, pyjode.odeint_adjoint])
@pytest.mark.parametrize("method", ["implicit_euler", "radauIIA5", "gl4", "trbdf2"])
def test_gradients_of_implicit_methods(method, door):
    """By a continuous adjoint, so those of the exact solution up to the steps' own error."""
    f, t = Swing(), torch.tensor([0.0, 1.0], dtype=D)
    y = door(f, Y0, t, rtol=1e-9, atol=1e-10, method=method, options={"step_size": 0.01}, engine="julia")[-1]
    y[0].backward()
    error = {"implicit_euler": 2e-2}.get(method, 1e-3)
    assert float(f.w.grad) == pytest.approx(-math.sin(math.sqrt(1.3)) / (2 * math.sqrt(1.3)), abs=error)


@pytest.mark.parametrize("solver", SCIPY)
def test_scipy_solvers(engine, solver):
    f, t = Swing(), torch.tensor([0.0, 0.5, 1.0], dtype=D)
    ys = pyjode.odeint(f, Y0, t, rtol=1e-7, atol=1e-8, method="scipy_solver", options={"solver": solver}, engine=engine)
    assert torch.allclose(ys[-1], exact(1.0, f.w), atol=1e-4)
    # torchdiffeq's loses the gradient in silence.
    if engine == "torchdiffeq":
        with pytest.raises(pyjode.UnsupportedError, match="no gradient"):
            ys[-1, 0].backward()
    else:
        ys[-1, 0].backward()
        assert float(f.w.grad) == pytest.approx(-math.sin(math.sqrt(1.3)) / (2 * math.sqrt(1.3)), rel=1e-2)


def test_scipy_by_the_adjoint_has_a_gradient(engine):
    f, t = Swing(), torch.tensor([0.0, 1.0], dtype=D)
    ys = pyjode.odeint_adjoint(
        f, Y0, t, rtol=1e-7, atol=1e-8, method="scipy_solver", options={"solver": "RK45"}, engine=engine
    )
    ys[-1, 0].backward()
    assert float(f.w.grad) == pytest.approx(-math.sin(math.sqrt(1.3)) / (2 * math.sqrt(1.3)), rel=1e-4)


@pytest.mark.parametrize("solver", ["RK54", 5])
def test_scipy_solvers_that_do_not_exist(engine, solver):
    with pytest.raises(pyjode.InputError, match="solver is"):
        pyjode.odeint(
            Swing(), Y0, torch.tensor([0.0, 1.0]), method="scipy_solver", options={"solver": solver}, engine=engine
        )
