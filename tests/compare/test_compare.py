"""The comparison itself: errors against known ones, failures as rows, tables and diagrams."""

from __future__ import annotations

import csv
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.adjoint_tolerances import gradient_error
from pyjode.cli import main
from pyjode.compare import (
    Adapter,
    Outcome,
    Problem,
    Results,
    Solver,
    adapters,
    compare,
    find_problem,
    plot,
    reference,
    register,
    torch_problem,
)
from pyjode.compare.adapters import base
from pyjode.compare.reference import Loss
from pyjode.errors import InputError

FEW = {"tolerances": (1e-3, 1e-6), "repeats": 1}


def decay() -> Problem:
    """y' = -p y, with everything known."""

    def make(xp: Any) -> Any:
        return lambda t, y, p: -p[0] * y

    return Problem(
        "decay", make, np.array([1.0, 2.0]), np.array([0.5, 1.0]), params=(np.array(1.5),),
        exact=lambda ts: np.exp(-1.5 * ts)[:, None] * np.array([1.0, 2.0]),
    )  # fmt: skip


def test_the_reference_and_its_gradient_are_exact_where_everything_is_known() -> None:
    truth = reference(decay(), gradient=True)
    e, ts = np.exp(-1.5 * decay().ts), decay().ts
    np.testing.assert_allclose(truth.loss.scale, [1.0, 2.0])
    assert truth.gradient is not None
    by_y0 = np.array([(e**2).sum(), (e**2).sum() * 2 / 4])
    by_p = -2 * (ts * e**2).sum()
    np.testing.assert_allclose(truth.gradient, [*by_y0, by_p], rtol=1e-10)
    assert truth.error(truth.ys + np.array([1e-3, 2e-3])) == pytest.approx(1e-3)
    assert truth.gradient_error(1.01 * truth.gradient) == pytest.approx(0.01)


@pytest.mark.parametrize(
    "name",
    [
        "decay",
        pytest.param("lotka-volterra", marks=pytest.mark.slow),
        pytest.param("robertson", marks=pytest.mark.slow),
    ],
)
def test_the_gradient_of_the_reference_by_finite_differences(name: str) -> None:
    problem = dataclasses.replace(decay(), exact=None) if name == "decay" else find_problem(name)
    truth = reference(problem, gradient=True)
    assert truth.gradient is not None
    direction = np.random.default_rng(1).normal(size=truth.unit.size) * truth.unit
    n = problem.y0.size

    def loss(step: float) -> float:
        moved = dataclasses.replace(
            problem,
            y0=problem.y0 + step * direction[:n].reshape(problem.y0.shape),
            params=_moved(problem.params, step * direction[n:]),
        )
        return float((((reference(moved, gradient=False).ys) / truth.loss.scale) ** 2).sum() / 2)

    h = 1e-4
    by_differences = (8 * (loss(h) - loss(-h)) - (loss(2 * h) - loss(-2 * h))) / (12 * h)
    assert truth.gradient @ direction == pytest.approx(by_differences, rel=2e-6)


@pytest.mark.julia
@pytest.mark.slow
# Tolerances at which the adjoint is that good: POLLU's has rounding errors, more of them the tighter it is.
@pytest.mark.parametrize(("name", "rtol", "part"), [("hires", 1e-9, 0.01), ("orego", 1e-9, 0.01), ("pollu", 1e-6, 0.1)])
def test_the_gradient_of_the_reference_where_variables_differ_in_size(name: str, rtol: float, part: float) -> None:
    problem = find_problem(name)
    truth = reference(problem, gradient=True)
    assert gradient_error(problem, truth, "Rodas5P", rtol, part) < 1e-5


def _moved(params: tuple[np.ndarray, ...], by: np.ndarray) -> tuple[np.ndarray, ...]:
    parts = np.split(by, np.cumsum([p.size for p in params])[:-1])
    return tuple(p + d.reshape(p.shape) for p, d in zip(params, parts, strict=True))


@pytest.mark.parametrize("library", ["torchdiffeq", "scipy"])
def test_errors_fall_with_the_tolerance(library: str) -> None:
    results = compare(decay(), libraries=[library], **FEW)
    for _, mode, rows in results.groups():
        if mode == "gradient" and library == "scipy":
            assert [row.status for row in rows] == ["no gradients"]
            continue
        for method in {row.method for row in rows}:
            loose, tight = (row for row in rows if row.method == method)
            assert loose.ok and tight.ok and loose.nfe and tight.nfe and tight.nfe >= loose.nfe
            assert loose.shown_error is not None and tight.shown_error is not None
            # Each may take the same few steps for both.
            assert tight.shown_error <= 1.5 * loose.shown_error and loose.shown_error < 1e-2
            assert tight.shown_error < 1e-4
            assert tight.seconds and tight.first_seconds and tight.calls >= 1


@pytest.mark.parametrize("library", ["torchode", pytest.param("diffrax", marks=pytest.mark.slow)])
def test_optional_libraries(library: str) -> None:
    pytest.importorskip(library)
    results = compare(decay(), libraries=[library], tolerances=(1e-6,), repeats=1)
    assert {row.mode for row in results.rows} == {"forward", "gradient"}
    for row in results.rows:
        assert row.ok, row
        assert row.error is not None and row.error < 1e-5 and row.nfe and row.steps
        assert row.mode == "forward" or (row.gradient_error is not None and row.gradient_error < 1e-4)


@pytest.mark.julia
@pytest.mark.parametrize("name", ["decay", "robertson"])
def test_pyjode_in_the_comparison(name: str) -> None:
    problem = decay() if name == "decay" else find_problem(name)
    results = compare(problem, libraries=["pyjode"], tolerances=(1e-8,), repeats=1)
    for row in results.rows:
        assert row.ok, row
        assert row.error is not None and row.error < 1e-5 and row.nfe
        assert row.mode == "forward" or (row.gradient_error is not None and row.gradient_error < 1e-4)


@pytest.mark.julia
def test_diffeqpy_in_the_comparison() -> None:
    pytest.importorskip("diffeqpy")
    for name, problem in (("Tsit5", decay()), ("Rodas5P", find_problem("robertson"))):
        results = compare(problem, methods=[f"diffeqpy:{name}"], modes=["forward"], tolerances=(1e-8,), repeats=1)
        (row,) = results.rows
        assert row.ok, row
        assert row.error is not None and row.error < 1e-5 and row.nfe and row.steps


class Network(torch.nn.Module):
    def __init__(self, dtype: torch.dtype):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).to(dtype)

    def forward(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.net(y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_users_own_f(dtype: torch.dtype) -> None:
    f = Network(dtype)
    before = [p.clone() for p in f.parameters()]
    y0 = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, -1.0]], dtype=dtype)
    results = compare(f, y0, [0.5, 1.0], libraries=["torchdiffeq", "scipy"], tolerances=(1e-5,), repeats=1)
    good = [row for row in results.rows if row.ok]
    assert {row.library for row in good} == {"torchdiffeq", "scipy"}
    assert all(row.error is not None and row.error < 1e-4 for row in good)
    assert all(row.gradient_error is not None and row.gradient_error < 1e-3 for row in good if row.mode == "gradient")
    assert all(p.grad is None and torch.equal(p, q) for p, q in zip(f.parameters(), before, strict=True))


def test_torch_code_is_not_for_jax_and_that_is_a_row() -> None:
    pytest.importorskip("diffrax")
    y0 = torch.ones(2, dtype=torch.float64)
    results = compare(lambda t, y: -y, y0, [1.0], libraries=["diffrax"], modes=["forward"], tolerances=(1e-3,))
    assert all("torch only" in row.status for row in results.rows)


class Broken(Adapter):
    name = "broken"
    package = "numpy"

    def methods(self, problem: Problem, gradient: bool) -> tuple[str, ...]:
        return ("raises", "wrong-shape", "unprepared")

    def prepare(self, problem: Problem, method: str, loss: Loss | None, limit_s: float) -> Solver:
        if method == "unprepared":
            raise RuntimeError("cannot be prepared\nsecond line")
        return _Broken(method)


class _Broken(Solver):
    def __init__(self, method: str):
        self.method = method

    def solve(self, rtol: float, atol: float) -> Any:
        if self.method == "raises":
            raise ZeroDivisionError
        return np.zeros(3)

    def outcome(self, raw: Any) -> Outcome:
        return Outcome(raw)


class Missing(Broken):
    name = "missing"
    package = "no_such_package_at_all"


def test_a_registered_library_that_fails_is_rows_that_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_ADAPTERS", adapters())
    register(Broken())
    register(Missing())
    results = compare(decay(), libraries=["broken", "missing"], modes=["forward"], tolerances=(1e-3,))
    said = {(row.library, row.method): row.status for row in results.rows}
    assert said["broken", "raises"] == "ZeroDivisionError"
    assert said["broken", "wrong-shape"].startswith("gave shape (3,)")
    assert said["broken", "unprepared"] == "cannot be prepared"
    assert said["missing", ""] == "not installed (pip install no_such_package_at_all)"


def test_a_method_that_takes_too_long_is_stopped() -> None:
    results = compare("robertson", methods=["torchdiffeq:dopri5"], modes=["forward"], tolerances=(1e-6, 1e-8),
                      limit_s=0.2)  # fmt: skip
    (row,) = results.rows
    assert row.status == "stopped after 0.2 s"


def test_tables_files_and_diagrams(tmp_path: Path) -> None:
    results = compare(decay(), libraries=["torchdiffeq", "scipy"], **FEW)
    from rich.console import Console

    console = Console(width=120, record=True, file=(tmp_path / "table.txt").open("w"))
    for table in results.tables():
        console.print(table)
    text = console.export_text()
    assert "decay, forward and gradient" in text and "scipy: no gradients" in text and "1e-06" in text
    results.to_json(tmp_path / "r.json")
    results.to_csv(tmp_path / "r.csv")
    assert Results.from_json(tmp_path / "r.json") == results
    with (tmp_path / "r.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(results.rows)
    axes = plot(results, "decay", "gradient").axes[0]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    shown = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in axes.lines}
    assert len(shown) == len({row.method for row in results.rows if row.mode == "gradient" and row.ok})
    assert len({line.get_marker() for line in axes.lines}) == len(axes.lines)  # tells lines apart without colour


def test_the_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "mine.py"
    script.write_text(
        "import torch\nfrom pyjode.compare import torch_problem\n"
        "problem = torch_problem(lambda t, y: -y, torch.ones(2, dtype=torch.float64), [1.0], name='mine')\n"
    )
    command = ["compare", "--problem", f"{script}:problem", "--library", "scipy", "--mode", "forward",
               "--tolerance", "1e-4", "--repeats", "1", "--out", str(tmp_path / "out")]  # fmt: skip
    assert main(command) == 0
    assert "mine, forward" in capfd.readouterr().out
    assert (tmp_path / "out" / "mine-forward.png").stat().st_size > 10_000
    assert json.loads((tmp_path / "out" / "results.json").read_text())["rows"][0]["problem"] == "mine"
    assert (tmp_path / "out" / "overview-forward.png").stat().st_size > 5_000
    again = ["compare", "--again", "--out", str(tmp_path / "out"), "--markdown", str(tmp_path / "table.md")]
    assert main(again) == 0
    assert "mine, forward" in capfd.readouterr().out
    assert "| mine | not reached | " in (tmp_path / "table.md").read_text()
    assert main(["compare", "--again"]) == 1
    assert "--out" in capfd.readouterr().err
    assert main(["compare", "--list"]) == 0
    assert "POLLU".lower() in capfd.readouterr().out
    assert main(["compare", "--problem", "nonsense"]) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"problem": "lorenz", "modes": ["backward"]}, "no mode"),
        ({"problem": "lorenz", "clock": "sundial"}, "no clock"),
        ({"problem": "lorenz", "libraries": ["sundials"]}, "no library"),
        ({"problem": "lorenz", "methods": ["Tsit5"]}, "library:method"),
        ({"problem": "lorenz", "tolerances": [0.0]}, "positive"),
        ({"problem": lambda t, y: y}, "initial state"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        compare(**arguments)


def test_times_of_a_torch_problem_are_checked() -> None:
    with pytest.raises(InputError, match="increasing"):
        torch_problem(lambda t, y: y, torch.ones(1), [2.0, 1.0])
    with pytest.raises(InputError, match="y0"):
        torch_problem(lambda t, y: y, torch.ones(1, dtype=torch.int64), [1.0])


def test_importing_pyjode_imports_none_of_it() -> None:
    code = """
import sys, pyjode
assert not {m for m in sys.modules if m.split(".")[0] in ("rich", "matplotlib", "torchode", "diffrax", "diffeqpy")}
assert not any(m.startswith("pyjode.compare") for m in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_short_calls_are_made_in_a_row_and_the_first_are_not_counted():
    from pyjode.compare.run import _IN_A_ROW, _UNCOUNTED, _rounds

    class Pretended:
        def __init__(self, seconds):
            self.seconds, self.calls = seconds, 0

        def solve(self, rtol, atol):
            self.calls += 1
            time[0] += self.seconds if self.calls > _UNCOUNTED else 10 * self.seconds

    time = [0.0]
    short, long = Pretended(1e-3), Pretended(0.1)
    times = _rounds([short, long], 1e-3, 1e-3, 2, 20.0, lambda: time[0])
    assert times[0] == pytest.approx([1e-3] * 2 * (_IN_A_ROW - _UNCOUNTED))
    assert times[1] == pytest.approx([1.0, 1.0])
