"""Problems, functions and solutions of diffeqpy (juliacall's values) in pyjode's Julia session."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import pyjode
import pyjode.diffeqpy
from pyjode.engines.julia.values import is_julia
from pyjode.errors import InputError, SolverError, UnsupportedError

TIGHT = {"rtol": 1e-10, "atol": 1e-12}


def test_ordinary_values_are_no_julia_values() -> None:
    assert not any(is_julia(x) for x in (None, 1.0, torch.ones(1), pyjode.ODEProblem(lambda t, y: y, None, (0, 1))))


@pytest.fixture
def ode() -> Any:
    pytest.importorskip("diffeqpy")
    return pyjode.diffeqpy.load_ode()


@pytest.fixture
def julia() -> Any:
    from pyjode.engines.julia.runtime import runtime

    runtime()
    from juliacall import Main

    return Main


@pytest.mark.julia
def test_diffeqpy_shares_the_session(ode: Any, julia: Any) -> None:
    assert bool(julia.seval('m -> m === Base.loaded_modules[Base.identify_package("OrdinaryDiffEq")]')(ode))


@pytest.mark.julia
@pytest.mark.parametrize("method", ["Vern9", "theirs", None])
def test_a_problem_of_diffeqpy_is_solved(ode: Any, method: str | None) -> None:
    problem = ode.ODEProblem(lambda u, p, t: -p * u, 0.5, (0.0, 2.0), 1.5)
    chosen = ode.Tsit5() if method == "theirs" else method
    solution = pyjode.solve(problem, chosen, saveat=torch.linspace(0, 2, 5), **TIGHT)
    exact = 0.5 * torch.exp(-1.5 * torch.linspace(0, 2, 5, dtype=torch.float64))
    torch.testing.assert_close(solution.ys, exact, rtol=1e-8, atol=1e-9)
    assert solution.method == {"theirs": "Tsit5", None: "Tsit5"}.get(method, method)
    assert solution.success and solution.stats.nfe > 10 and solution.stats.naccept
    assert float(solution.julia.t[0]) == 0.0


@pytest.mark.julia
def test_in_place_functions_dense_output_and_stiff_methods(ode: Any) -> None:
    def f(du: Any, u: Any, p: Any, t: float) -> None:
        du[0], du[1] = u[1], -u[0]

    problem = ode.ODEProblem(f, np.array([0.0, 1.0]), (0.0, 3.0))
    for method in ("Tsit5", "Rodas5P"):
        solution = pyjode.solve(problem, method, **TIGHT)
        assert solution.ys.shape == (len(solution.ts), 2)
        at = torch.tensor([0.5, 1.7], dtype=torch.float64)
        torch.testing.assert_close(solution(at), torch.stack([at.sin(), at.cos()], 1), rtol=1e-6, atol=1e-7)


@pytest.mark.julia
def test_a_julia_function_as_f(julia: Any) -> None:
    f = julia.seval("(u, p, t) -> [p[1] * u[2], -p[2] * u[1]]")
    y0, p = torch.tensor([0.0, 1.0], dtype=torch.float64), torch.tensor([2.0, 2.0], dtype=torch.float64)
    for given in (f, julia.seval("f -> PyJODE.SciMLBase.ODEFunction(f)")(f)):
        solution = pyjode.solve(pyjode.ODEProblem(given, y0, (0.0, 1.0), [p]), "Tsit5", saveat=[1.0], **TIGHT)
        torch.testing.assert_close(solution.ys[0], torch.tensor([math.sin(2), math.cos(2)], dtype=torch.float64))
    with pytest.raises(UnsupportedError, match="no gradients"):
        pyjode.solve(pyjode.ODEProblem(f, y0, (0.0, 1.0), [p.clone().requires_grad_()]), "Tsit5")


@pytest.mark.julia
def test_a_function_of_diffeqpy_and_its_solution_as_ours_and_theirs(ode: Any) -> None:
    f = ode.ODEFunction(lambda u, p, t: [p[0] * u[0], p[0] * u[1]])
    y0, p = torch.tensor([1.0, 2.0], dtype=torch.float64), torch.tensor([-0.5], dtype=torch.float64)
    ours = pyjode.solve(pyjode.ODEProblem(f, y0, (0.0, 1.0), [p]), "Tsit5", saveat=[1.0], **TIGHT)
    theirs = pyjode.solve(ode.ODEProblem(f, y0.numpy(), (0.0, 1.0), p.numpy()), "Tsit5", saveat=[1.0], **TIGHT)
    for solution in (ours, theirs):
        torch.testing.assert_close(solution.ys[-1], y0 * math.exp(-0.5), rtol=1e-8, atol=1e-9)
        again = pyjode.diffeqpy.from_diffeqpy(solution.julia)  # theirs, and ours again
        assert torch.equal(again.ys, solution.ys) and str(solution.julia.retcode) == "Success"


@pytest.mark.julia
def test_there_and_back(ode: Any) -> None:
    rate = torch.nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
    y0 = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    theirs = pyjode.diffeqpy.to_diffeqpy(pyjode.ODEProblem(lambda t, y: -rate * y + t, y0, (0.0, 1.0)))
    raw = ode.solve(theirs, ode.Tsit5(), reltol=1e-10, abstol=1e-12)
    back = pyjode.diffeqpy.from_diffeqpy(raw)
    ours = pyjode.solve(pyjode.ODEProblem(lambda t, y: -rate * y + t, y0, (0.0, 1.0)), "Tsit5", engine="julia", **TIGHT)
    torch.testing.assert_close(back.ys[-1], ours.ys[-1].detach(), rtol=1e-8, atol=1e-9)
    assert back.ys.shape[1:] == (2, 2) and back.method == "Tsit5"


@pytest.mark.julia
def test_what_cannot_be_is_said(julia: Any) -> None:
    problem = julia.seval("PyJODE.SciMLBase.ODEProblem((u, p, t) -> u .^ 2, [1.0], (0.0, 2.0))")
    with pytest.raises(SolverError, match=r"stopped at t = (0.99|1)"):
        pyjode.solve(problem, "Tsit5")
    assert not pyjode.solve(problem, "Tsit5", throw=False).success
    with pytest.raises(UnsupportedError, match="Julia engine"):
        pyjode.solve(problem, "Tsit5", engine="torchdiffeq")
    with pytest.raises(UnsupportedError, match="sensealg"):
        pyjode.solve(problem, "Tsit5", sensealg="GaussAdjoint")
    with pytest.raises(InputError, match="not a"):
        pyjode.solve(julia.seval("[1.0]"), "Tsit5")
    with pytest.raises(InputError, match="no ODE solution"):
        pyjode.diffeqpy.from_diffeqpy(problem)
