"""The standard problems against their printed end values and closed forms, in every array library."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from pyjode.compare import Problem, find_problem, problem_names
from pyjode.compare.problems import find_problems
from pyjode.errors import InputError

DETEST = [f"{family}{i}" for family in "ABCDE" for i in range(1, 6)]


def solved(problem: Problem, ts: np.ndarray) -> np.ndarray:
    f, shape = problem.in_numpy(), problem.y0.shape
    found = solve_ivp(
        lambda t, y: np.asarray(f(t, y.reshape(shape), problem.params)).reshape(-1),
        (problem.t0, float(ts[-1])),
        problem.y0.reshape(-1),
        method="LSODA" if problem.stiff else "DOP853",
        rtol=1e-9 if problem.stiff else 1e-12,
        atol=1e-14 * (problem.atol if problem.stiff else 1),
        t_eval=ts,
    )
    assert found.success
    return found.y.T.reshape(len(ts), *shape)


def test_the_standard_set_is_complete() -> None:
    wanted = {
        "pendulum", "lotka-volterra", "lorenz", "pleiades", "arenstorf", "robertson", "hires", "orego", "van-der-pol",
        "pollu", "linear-network", "neural-network", *DETEST,
    }  # fmt: skip
    assert set(problem_names()) == wanted
    assert [p.name for p in find_problems("detest")] == DETEST
    assert all(find_problem(name).source for name in wanted)


@pytest.mark.parametrize(
    "name",
    [name for name in problem_names() if find_problem(name).published is not None],
)
def test_the_printed_end_value(name: str) -> None:
    problem = find_problem(name)
    printed = problem.published
    assert printed is not None
    end = solved(problem, np.array([printed.t]))[-1]
    # A stiff problem's components differ by powers of ten, so none may hide behind another.
    absolute = 0.0 if problem.stiff else 1e-11 + 10 * printed.rtol * np.abs(printed.y).max()
    assert end == pytest.approx(printed.y, rel=10 * printed.rtol, abs=absolute)


@pytest.mark.parametrize("name", [name for name in problem_names() if find_problem(name).exact is not None])
def test_the_closed_form(name: str) -> None:
    problem = find_problem(name)
    assert problem.exact is not None
    assert solved(problem, problem.ts) == pytest.approx(problem.exact(problem.ts), rel=1e-8, abs=1e-9)


@pytest.mark.parametrize("name", problem_names())
def test_f_is_the_same_in_numpy_and_torch(name: str) -> None:
    problem = find_problem(name)
    y = problem.y0 + np.random.default_rng(0).uniform(0.1, 0.3, problem.y0.shape)
    module = problem.in_torch()
    in_numpy = problem.in_numpy()(0.7, y, problem.params)
    in_torch = module(torch.tensor(0.7, dtype=torch.float64), torch.tensor(y)).detach().numpy()
    np.testing.assert_allclose(in_torch, in_numpy, rtol=1e-13, atol=1e-13 * np.abs(in_numpy).max())
    assert len(list(module.parameters())) == len(problem.params)


def test_an_unknown_name_is_an_error_with_the_nearest() -> None:
    with pytest.raises(InputError, match="lorenz"):
        find_problem("lorentz")
