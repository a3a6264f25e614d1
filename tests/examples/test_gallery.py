"""The gallery's scripts, run as a user runs them, small enough for seconds each, on made-up data."""

from __future__ import annotations

import json
import math
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.image
import numpy as np
import pytest
import torch

import pyjode

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"

Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder as the scripts want it: digits that are noisy templates, coloured images, glucose that swings."""
    root = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)

    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    templates = np.kron(random.uniform(0, 200, (10, 7, 7)), np.ones((4, 4)))
    for part, n in (("train", 512), ("t10k", 100)):
        labels = np.arange(n, dtype=np.uint8) % 10
        images = (templates[labels] + random.uniform(0, 50, (n, 28, 28))).astype(np.uint8)
        header = np.array([2051, n, 28, 28], dtype=">i4").tobytes()
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(header[:8] + labels.tobytes())

    colours = random.uniform(0.2, 0.8, (10, 3))
    for part, n in (("train", 8), ("test", 2)):
        for label, colour in enumerate(colours):
            folder = root / "cifar10-subset" / part / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(n):
                noisy = np.clip(colour + random.uniform(-0.2, 0.2, (32, 32, 3)), 0, 1)
                matplotlib.image.imsave(folder / f"{i:04}.jpg", noisy)

    (root / "cgm").mkdir()
    start = np.datetime64("2015-06-06T16:50:27")
    rows = ['"","id","time","gl"']
    for subject in (1, 2):
        for i in range(500):
            if random.random() > 0.05:  # gaps
                at = str(start + np.timedelta64(5 * i, "m")).replace("T", " ")
                glucose = 140 + 40 * math.sin(i / 12 + subject) + random.normal(0, 2)
                rows.append(f'"{len(rows)}","Subject {subject}",{at},{glucose:.0f}')
    (root / "cgm" / "example_data_5_subject.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture
def run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Runs a script with ``--quick`` and options, in this process; returns its metrics.json."""
    import matplotlib.pyplot as plt

    def run(script: str, engine: str, *options: str) -> dict[str, Any]:
        monkeypatch.syspath_prepend(EXAMPLES)
        out = tmp_path / script
        arguments = ["--quick", "--data", str(data), "--engine", engine, "--out", str(out), *options]
        monkeypatch.setattr(sys, "argv", [str(EXAMPLES / f"{script}.py"), *arguments])
        runpy.run_path(str(EXAMPLES / f"{script}.py"), run_name="__main__")
        return check_saved(out, engine)

    dtype, style = torch.get_default_dtype(), matplotlib.rcParams.copy()
    yield run
    torch.set_default_dtype(dtype)
    matplotlib.rcParams.update(style)
    plt.close("all")
    pyjode.set_default_engine(None)


def check_saved(out: Path, engine: str) -> dict[str, Any]:
    """The metrics in ``out``, once they and the figures beside them are seen to be what the results page needs."""
    metrics: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    assert metrics["engine"] == engine
    assert metrics["quick"] and metrics["cut"]
    assert metrics["runs"] and metrics["comparison"]
    for row in metrics["comparison"]:
        assert row["what"] and row["ours"]
        assert "nan" not in row["ours"], row
    figures = list(out.glob("*.png"))
    assert figures
    for figure in figures:
        assert figure.stat().st_size < 150_000, figure
        assert matplotlib.image.imread(figure)[..., :3].std() > 0.02, f"{figure} is blank"
    return metrics


def test_linear_system(run: Run, engine: str) -> None:
    metrics = run("linear_system", engine, "--epochs", "30")
    assert len(metrics["gradient_errors"]) == (5 if engine == "julia" else 2)
    for sensealg, errors in metrics["gradient_errors"].items():
        assert set(errors) == {"dL/dz0", "dL/dA", "dL/dt0", "dL/dt1"}
        assert max(errors.values()) < 1e-7, sensealg
    for row in metrics["runs"]:
        assert row["final_loss"] < row["first_loss"] / 100
    assert metrics["runs"][1]["learned_A"][0][1] == pytest.approx(-1.0, abs=0.05)


def test_engine_auto_is_what_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr(sys, "argv", ["some_script.py", "--out", str(tmp_path)])
    import gallery

    monkeypatch.setenv("PYJODE_ENGINE", "nonsense")
    with pytest.raises(pyjode.InputError, match="nonsense"):
        gallery.start(gallery.parser("Title\n=====\n\nText.", "some_script"))


def test_spiral(run: Run, engine: str) -> None:
    metrics = run("spiral", engine, "--iterations", "12", "--measured", "1")
    assert {row["run"] for row in metrics["runs"]} == {
        f"{system}, {sensealg}" for system in ("linear", "spiral") for sensealg in ("DiscreteAdjoint", "Backsolve")
    }
    for errors in metrics["gradient_errors"].values():
        assert errors[0]["DiscreteAdjoint"] < 0.05  # a tolerance of 1e-4 over the whole curve
        if engine == "julia":
            assert errors[0]["GaussAdjoint"] < 0.05


def test_small_mnist(run: Run) -> None:
    metrics = run("mnist_8x8_runge_kutta", "torchdiffeq", "--epochs", "3", "--images", "512")
    assert [row["data"] for row in metrics["runs"]] == ["MNIST"] * 3 + ["CIFAR-10"] * 3
    for row in metrics["runs"][:3]:
        assert row["train_loss"][-1] < row["train_loss"][0]
    assert [row["forward_nfe"] for row in metrics["runs"][:2]] == [10, 40]


def test_small_digits_stand_in_for_mnist(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    metrics = run("mnist_8x8_runge_kutta", "torchdiffeq", "--data", str(tmp_path / "nothing"))
    assert {row["data"] for row in metrics["runs"]} == {"digits"}


def test_mnist_three_ways(run: Run) -> None:
    metrics = run("mnist_three_ways", "torchdiffeq", "--images", "128", "--tests", "50", "--finest", "4")
    assert [row["parameters"] for row in metrics["runs"]][1] == metrics["runs"][2]["parameters"]
    for row in metrics["growth"]:
        assert row["gradient_difference"] < 0.05  # four steps only: the adjoint's own error


def test_cifar10(run: Run) -> None:
    metrics = run("cifar10_solvers", "torchdiffeq", "--images", "32", "--tests", "20", "--batch", "16")
    counts = {row["solver"]: row["forward_evaluations"] for row in metrics["solvers"]}
    assert (counts["rk4"], counts["midpoint"], counts["euler"]) == (4, 2, 1)
    assert counts["dopri5, tol 1e-3"] >= counts["dopri5, tol 1e-1"] > 4
    assert all(row["backward_evaluations"] > 0 for row in metrics["solvers"])


def test_resnet18(run: Run) -> None:
    pytest.importorskip("torchvision")
    metrics = run("mnist_resnet18", "torchdiffeq", "--images", "64", "--tests", "20")
    assert metrics["runs"][1]["parameters"] > 11_000_000


def test_glucose(run: Run) -> None:
    metrics = run("glucose", "torchdiffeq", "--epochs", "1")
    rmse = {row["run"]: row["rmse"] for row in metrics["runs"]}
    assert set(rmse) == {"persistence", "ridge regression", "neural ODE", "GRU"}
    assert rmse["ridge regression"] < 0.5 * rmse["persistence"]  # these made-up traces are almost linear
    assert 0 < rmse["neural ODE"] < 1.5 * rmse["persistence"]


@pytest.mark.julia
def test_stiff_kinetics(run: Run) -> None:
    metrics = run("stiff_kinetics", "julia", "--iterations", "15")
    assert metrics["gradient_error"] < 1e-3
    assert metrics["runs"][0]["final_loss"] < metrics["runs"][0]["first_loss"]
    assert metrics["dopri5_reached"] < 100


def test_stiff_kinetics_without_julia(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="pyjode setup"):
        run("stiff_kinetics", "torchdiffeq")
    assert "MaxIters" in capsys.readouterr().out


def test_missing_data(run: Run, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="pass --data DIR"):
        run("glucose", "torchdiffeq", "--data", str(tmp_path / "nothing"))


def test_bouncing_ball(run: Run) -> None:
    metrics = run("bouncing_ball", "torchdiffeq", "--iterations", "5", "--bounces", "3")
    assert max(metrics["errors"].values()) < 1e-8
    assert metrics["runs"][0]["bounces"] >= 4


def test_augmented(run: Run) -> None:
    metrics = run("augmented", "torchdiffeq", "--iterations", "20")
    assert [row["run"] for row in metrics["runs"]] == ["neural ODE", "augmented by 3"]
    assert all(row["test_loss"] < row["first_loss"] for row in metrics["runs"])


def test_regularized(run: Run) -> None:
    metrics = run("regularized", "torchdiffeq", "--images", "512")
    assert [row["weight"] for row in metrics["runs"]] == [0.0, 0.01, 0.1, 1.0]
    assert all(row["forward_nfe"] > 0 for row in metrics["runs"])


def test_results_page_is_what_its_metrics_say() -> None:
    made = runpy.run_path(str(EXAMPLES / "results" / "make_readme.py"))["readme"]()
    assert (EXAMPLES / "results" / "README.md").read_text() == made, "run: python examples/results/make_readme.py"
    for figure in (EXAMPLES / "results").glob("*/*.png"):
        assert figure.stat().st_size < 150_000, figure


def test_distributed_training(tmp_path: Path) -> None:
    options = ["--quick", "--engine", "torchdiffeq", "--iterations", "5", "--out", str(tmp_path)]
    path = os.pathsep.join(filter(None, [str(EXAMPLES.parent), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "distributed_training.py"), *options],
        env={**os.environ, "PYTHONPATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (row,) = check_saved(tmp_path, "torchdiffeq")["runs"]
    assert row["difference_between_processes"] == 0
    assert row["loss_difference"] < 1e-10
    assert row["weight_difference"] < 1e-10
