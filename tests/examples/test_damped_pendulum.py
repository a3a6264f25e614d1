"""The damped pendulum example, run as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest

ROOT = Path(__file__).parents[2]


def run_quick(out: Path, *options: str) -> tuple[list[dict[str, Any]], str]:
    """The rows of metrics.json and what was printed, after ``--quick``."""
    command = [sys.executable, str(ROOT / "examples" / "damped_pendulum.py"), "--quick", "--out", str(out), *options]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        command, cwd=out, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-4000:]
    metrics = json.loads((out / "metrics.json").read_text())
    assert set(metrics["versions"]) >= {"python", "pyjode", "torch"}
    return metrics["runs"], done.stdout


def check_figures(out: Path, *names: str) -> None:
    assert sorted(path.stem for path in out.glob("*.png")) == sorted(names)
    for name in names:
        pixels = matplotlib.image.imread(out / f"{name}.png")
        assert pixels.shape[0] > 400
        assert pixels.shape[1] > 800
        assert pixels[..., :3].std() > 0.02, f"{name}.png is blank"


def check_learned(row: dict[str, Any]) -> None:
    """That 20 epochs brought the loss and the error down: after one epoch the mean error is 0.7 rad."""
    assert row["epochs"] == 20
    assert row["final_loss"] < row["first_loss"] / 5
    error, box_error = row["test_error_rad"], row["whole_box_error_rad"]
    assert 0 < error["mean"] < 0.1
    assert error["mean"] <= error["worst_start"] <= error["max"]
    assert error["median_start"] <= error["worst_start"]
    assert box_error["mean"] > 0
    assert 0 < row["seconds_per_epoch"] < row["seconds"]


def test_pendulum_on_each_engine(tmp_path: Path, engine: str) -> None:
    (row,), printed = run_quick(tmp_path, "--engine", engine, "--seed", "3")
    assert (row["engine"], row["method"], row["sensealg"], row["seed"]) == (engine, "rk4", "none", 3)
    assert row["forward_nfe_per_epoch"] == pytest.approx(5 * 9 * 4, rel=0.1)  # batches, steps, stages
    check_learned(row)
    check_figures(tmp_path, "training_data", "test_data", "predictions")
    assert f"engine: {engine}" in printed


@pytest.mark.slow
def test_other_solvers_learn_the_same(tmp_path: Path, engine: str) -> None:
    rows, _ = run_quick(tmp_path, "--engine", engine, "--compare")
    others = ["Tsit5", "Tsit5, GaussAdjoint"] if engine == "julia" else ["dopri5", "rk4, BacksolveAdjoint"]
    assert [row["run"] for row in rows] == ["rk4", *others]
    for row in rows:
        check_learned(row)
        # The solvers agree far better than the network does with the pendulum: training takes the same path.
        assert row["final_loss"] == pytest.approx(rows[0]["final_loss"], rel=0.01)
    check_figures(tmp_path, "training_data", "test_data", "predictions", "loss_curves")
