"""What is told of a solve while it runs."""

from __future__ import annotations

import itertools
import sys
import time
from typing import Any

import pytest
import torch

from pyjode import InputError, NeuralODE, ODEProblem, odeint, odeint_adjoint, progress, solve


def slow(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    time.sleep(0.002)  # an effect that no graph has: called back on either engine
    return torch.stack([y[1], -y[0]])


Y0 = torch.tensor([1.0, 0.0], dtype=torch.float64)


def grows_from_nought_to_one(told: list[float]) -> bool:
    return len(told) > 2 and all(0 < a < b for a, b in itertools.pairwise(told)) and told[-1] == 1.0


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "INTERVAL", 0.0)


def test_a_function_gets_the_fraction_done(engine: str) -> None:
    told: list[float] = []
    problem = ODEProblem(slow, Y0, (1.0, 21.0))
    solution = solve(
        problem,
        "Tsit5" if engine == "julia" else "dopri5",
        saveat=5.0,
        engine=engine,
        rhs="auto" if engine == "torchdiffeq" else "eager",
        progress=told.append,
    )
    assert grows_from_nought_to_one(told)
    plain = solve(
        problem, solution.method, saveat=5.0, engine=engine, rhs="auto" if engine == "torchdiffeq" else "eager"
    )
    assert torch.equal(solution.ys, plain.ys)


def test_backwards_in_time(engine: str) -> None:
    told: list[float] = []
    way = "auto" if engine == "torchdiffeq" else "eager"
    solve(ODEProblem(slow, Y0, (5.0, -15.0)), saveat=5.0, engine=engine, rhs=way, progress=told.append)
    assert grows_from_nought_to_one(told)


@pytest.mark.julia
def test_a_native_solve_tells_too(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[float] = []
    k = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.0, 3e4], dtype=torch.float64)
    y = odeint(lambda t, y: torch.stack([y[1], -k * y[0]]), Y0, t, rtol=1e-10, atol=1e-12, engine="julia",
               options={"max_num_steps": 10**9}, progress=told.append)  # fmt: skip
    assert grows_from_nought_to_one(told)
    n = len(told)
    y.sum().backward()
    assert len(told) == n and k.grad is not None


@pytest.mark.parametrize("door", [odeint, odeint_adjoint])
def test_the_other_doors(door: Any) -> None:
    told: list[float] = []
    y0 = Y0.clone().requires_grad_()
    y = door(slow, y0, torch.linspace(0.0, 5.0, 3), engine="torchdiffeq", progress=told.append)
    assert grows_from_nought_to_one(told)
    n = len(told)
    y.sum().backward()
    assert len(told) == n
    layer = NeuralODE(slow, (0.0, 5.0), engine="torchdiffeq", progress=told.append)
    layer(Y0)
    assert len(told) > n


def test_what_the_function_raises_comes_out(engine: str) -> None:
    class Enough(Exception):
        pass

    def stop(fraction: float) -> None:
        raise Enough

    way = "auto" if engine == "torchdiffeq" else "eager"
    with pytest.raises(Enough):
        solve(ODEProblem(slow, Y0, (0.0, 20.0)), saveat=5.0, engine=engine, rhs=way, progress=stop)
    solve(ODEProblem(slow, Y0, (0.0, 0.1)), saveat=0.1, engine=engine, rhs=way)


@pytest.mark.parametrize("tqdm", [True, False])
def test_a_bar_on_the_terminal(tqdm: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if not tqdm:
        monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    odeint(slow, Y0, torch.tensor([0.0, 5.0]), engine="torchdiffeq", progress=True)
    said = capsys.readouterr()
    assert "dopri5" in said.err and "100%" in said.err and said.err.endswith("\n")
    assert said.out == ""


def test_reports_are_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "INTERVAL", 3600.0)
    told: list[float] = []
    odeint(slow, Y0, torch.tensor([0.0, 5.0]), engine="torchdiffeq", progress=told.append)
    assert len(told) <= 2


def test_neither_true_nor_a_function() -> None:
    with pytest.raises(InputError, match="progress is 1"):
        odeint(slow, Y0, torch.tensor([0.0, 1.0]), engine="torchdiffeq", progress=1)  # type: ignore[arg-type]
