"""The benchmark against peers: its problems are the same in every library, and its table says what it should."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import apart, memory, peers
from pyjode.compare import Problem, compare, register
from pyjode.compare.adapters import base
from pyjode.compare.results import Results, Row

PROBLEMS = {
    "mlp": lambda: peers.mlp(3, 4),
    "recurrent": lambda: peers.recurrent(6),
    "lorenz": lambda: peers.lorenz_trajectories(3),
    "robertson": peers.robertson,
    "van der Pol": peers.van_der_pol,
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_f_is_the_same_in_torch_and_in_arrays(name: str) -> None:
    problem = PROBLEMS[name]()
    assert problem.make is not None
    y = problem.y0 + np.float32(0.1)
    in_torch = problem.in_torch()(torch.tensor(0.3, dtype=torch.float64), torch.from_numpy(y)).detach().numpy()
    in_arrays = problem.make(np)(0.3, y, problem.params)
    assert in_torch.dtype == y.dtype
    np.testing.assert_allclose(in_torch, in_arrays, rtol=1e-5, atol=1e-5 * np.abs(in_arrays).max())


def test_the_conv_block_is_the_same_in_jax() -> None:
    jax = pytest.importorskip("jax")
    problem = dataclasses.replace(peers.conv_block())
    assert problem.make is not None
    y = problem.y0[:2]
    in_torch = problem.in_torch()(torch.tensor(0.0), torch.from_numpy(y)).detach().numpy()
    in_jax = np.asarray(problem.make(jax.numpy)(0.0, jax.numpy.asarray(y), problem.params))
    np.testing.assert_allclose(in_jax, in_torch, rtol=1e-3, atol=1e-4)


@pytest.mark.julia
@pytest.mark.parametrize("name", PROBLEMS)
def test_the_hand_written_julia_is_right(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_ADAPTERS", base.adapters())
    register(peers.Limit())
    problem: Problem = PROBLEMS[name]()
    method = "Rodas5P" if problem.stiff else "Tsit5"
    rtol = 1e-8 if problem.y0.dtype == np.float64 else 1e-5
    (row,) = compare(
        problem, methods=[f"Julia by hand:{method}"], modes=["gradient"], tolerances=(rtol,), repeats=1
    ).rows
    assert row.ok, row
    assert row.error is not None and row.error < 1e3 * rtol
    assert row.gradient_error is not None and row.gradient_error < 1e4 * rtol


def test_the_table_has_ratios_to_ours_and_to_the_limit() -> None:
    from rich.console import Console

    row = Row("case", "pyjode", "Tsit5", "gradient", 1e-6, 1e-6, 1e-7, 1e-6, 2e-3, 1.0, 50, 8, 5)
    rows = [
        row,
        dataclasses.replace(row, library="diffrax", seconds=4e-3),
        dataclasses.replace(row, library="Julia by hand", seconds=1e-3),
        dataclasses.replace(row, library="torchode", status="it failed"),
        dataclasses.replace(row, library="scipy", mode="forward", gradient_error=None),
        dataclasses.replace(row, rtol=4e-6, seconds=1e-3),
    ]
    shown, failed = peers.table(rows)
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(shown)
    lines = {line.split("│")[2].strip(): line.split("│")[3:6] for line in console.export_text().splitlines()
             if line.count("│") > 5}  # fmt: skip
    assert [cell.strip() for cell in lines["diffrax Tsit5"]] == ["4", "2.00", "4.00"]
    assert [cell.strip() for cell in lines["Julia by hand Tsit5"]] == ["1", "0.50", "1.00"]
    assert [cell.strip() for cell in lines["scipy Tsit5 (f)"]] == ["2", "", ""]
    assert [cell.strip() for cell in lines["pyjode Tsit5 at 4e-06"]] == ["1", "0.50", "1.00"]
    assert failed == ["case: torchode Tsit5: it failed"]


def test_pyjode_has_a_row_at_diffraxs_error(monkeypatch: pytest.MonkeyPatch) -> None:
    row = Row("case", "pyjode", "Tsit5", "gradient", 1e-6, 1e-6, 1e-7, 1e-7, 2e-3, 1.0, 50, 8, 5)

    def pretended(problem: Problem, *, methods: tuple[str, ...], tolerances: tuple[float, ...], **_: object) -> Results:
        rows = [
            dataclasses.replace(row, library=name.split(":")[0], rtol=rtol, error=rtol / 10, gradient_error=rtol / 10)
            for name in methods
            for rtol in tolerances
        ]
        less = [dataclasses.replace(r, error=5e-7, gradient_error=6e-7) if r.library == "diffrax" else r for r in rows]
        return Results(tuple(less), {}, {})

    monkeypatch.setattr(peers, "compare", pretended)
    case = peers.Case(lambda: peers.mlp(1, 3), ("pyjode:Tsit5", "diffrax:Tsit5"), forward=())
    found = peers.measure(case, 1, 1.0, print)
    assert [(r.library, r.rtol) for r in found.rows] == [("pyjode", 1e-6), ("diffrax", 1e-6), ("pyjode", 4e-6)]


@pytest.mark.julia
def test_independent_samples_are_a_row_that_can_be_written(tmp_path: Path) -> None:
    options = {"modes": ["gradient"], "tolerances": (1e-6,), "repeats": 1}
    results = compare(peers.lorenz_trajectories(3), methods=["pyjode:Tsit5+independent"], **options)
    results.to_json(tmp_path / "results.json")
    (row,) = Results.from_json(tmp_path / "results.json").rows
    assert row.ok, row
    assert row.nfe is not None and row.steps is not None and row.nfe > row.steps > 5


def test_memory_is_plotted_and_measured(tmp_path: Path) -> None:
    rows = [{"solver": solver, "steps": steps, "MiB": 0.1 * steps} for solver in memory.SOLVERS for steps in (10, 100)]
    memory.plot(rows, tmp_path / "memory.png")
    assert (tmp_path / "memory.png").stat().st_size > 10_000
    f, y0 = memory.Network(), torch.randn(4, memory.FEATURES)
    assert memory.gradient("torchdiffeq odeint", f, y0, 3) > 0


def test_libraries_apart_are_one_process_each_but_for_julias_two() -> None:
    methods = ("pyjode:Tsit5", "diffrax:Tsit5", "Julia by hand:Tsit5", "torchode:Tsit5", "diffrax:Tsit5+vmap")
    assert apart.processes(methods) == ["pyjode,Julia by hand", "diffrax", "torchode"]
    assert apart.processes(("diffrax:Tsit5", "pyjode:Tsit5")) == ["diffrax", "pyjode"]


def test_rounds_of_processes_run_in_turn_and_are_merged_by_medians(monkeypatch: pytest.MonkeyPatch) -> None:
    row = Row("case", "pyjode", "Tsit5", "gradient", 1e-6, 1e-6, 1e-7, 1e-6, 0.0, 1.0, 50, 8, 5)
    seconds = {"pyjode": iter((3.0, 1.0, 2.0)), "diffrax": iter((9.0, 8.0, 7.0))}
    ran = []

    def run(command: list[str], **_: object) -> None:
        library, out = command[1], Path(command[2])
        ran.append(library)
        fast = dataclasses.replace(row, library=library, seconds=next(seconds[library]))
        failed = dataclasses.replace(row, library=library, method="other", seconds=None, status="it failed")
        Results((fast, failed), {"case, gradient": "truth"}, {"processor": "x"}).to_json(out)

    monkeypatch.setattr(apart.subprocess, "run", run)
    found = apart.measure_apart(lambda name, out: [name, str(out)], ("pyjode:a", "diffrax:b"), 3, lambda _: None)
    assert ran == ["pyjode", "diffrax", "diffrax", "pyjode", "pyjode", "diffrax"]
    assert {(r.library, r.method): r.seconds for r in found.rows} == {
        ("pyjode", "Tsit5"): 2.0, ("pyjode", "other"): None, ("diffrax", "Tsit5"): 8.0, ("diffrax", "other"): None
    }  # fmt: skip
    assert [r.calls for r in found.rows if r.ok] == [15, 15]
    assert [r.status for r in found.rows if not r.ok] == ["it failed"] * 2


def test_a_case_is_cut_to_some_libraries() -> None:
    case = peers.only(peers.CASES["robertson"], ["pyjode", "scipy"])
    assert case.methods == ("pyjode:Rodas5P", "pyjode:FBDF")
    assert case.forward == ("scipy:LSODA", "scipy:Radau")
    assert peers.only(peers.CASES["robertson"], ["diffrax"]).forward == ()
