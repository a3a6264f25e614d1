"""The pyjode command as a user runs it, most of it on a machine without Julia."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pyjode._version import __version__
from pyjode.cli import main
from pyjode.engines.julia import setup
from pyjode.errors import EngineUnavailable
from tests.fake_julia import environment, fake_julia

ROOT = Path(__file__).parents[1]
Capture = pytest.CaptureFixture[str]


def test_version_from_a_shell() -> None:
    command = [sys.executable, "-c", "import sys; from pyjode.cli import main; sys.exit(main())", "--version"]
    variables = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, f"pyjode {__version__}\n")


@pytest.mark.usefixtures("no_julia")
def test_doctor_without_julia_says_what_to_type(capfd: Capture) -> None:
    assert main(["doctor", "--json"]) == 1
    report = json.loads(capfd.readouterr().out)
    assert report["julia"] is None
    assert report["works"] is False
    assert report["next"] == "pyjode setup"
    assert report["torch"]
    assert main(["doctor"]) == 1
    assert capfd.readouterr().out.splitlines()[-1] == "type: pyjode setup"


def test_doctor_names_the_missing_package(no_julia: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    monkeypatch.setenv("PYTHON_JULIACALL_EXE", str(fake_julia(no_julia, missing="SciMLSensitivity")))
    monkeypatch.setenv("PYTHON_JULIACALL_PROJECT", str(environment(no_julia / "env")))
    assert main(["doctor", "--json"]) == 1
    report = json.loads(capfd.readouterr().out)
    assert report["missing"] == ["SciMLSensitivity"]
    assert report["julia"]["version"] == "1.11.5"
    assert report["julia"]["source"] == "environment"
    assert 'Pkg.add(["SciMLSensitivity"])' in report["next"]
    assert main(["doctor"]) == 1
    assert "MISSING" in capfd.readouterr().out


def test_doctor_reports_a_julia_that_cannot_start(
    no_julia: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    monkeypatch.setenv("PYTHON_JULIACALL_EXE", str(fake_julia(no_julia)))
    monkeypatch.setenv("PYTHON_JULIACALL_PROJECT", str(environment(no_julia / "env")))
    assert main(["doctor", "--json"]) == 1
    report = json.loads(capfd.readouterr().out)
    assert "a first gradient failed" in report["problem"]
    assert report["missing"] == []


@pytest.mark.usefixtures("no_julia")
def test_setup_without_network_says_so_in_one_line(capfd: Capture) -> None:
    assert main(["setup"]) == 1
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert "no network" in lines[0]
    assert "pyjode setup --julia PATH --project DIR" in lines[0]


@pytest.mark.slow
def test_setup_stops_at_its_time_limit(no_julia: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    julia = no_julia / "bin" / "julia"
    julia.parent.mkdir()
    julia.write_text("#!/bin/sh\nsleep 60\n")
    julia.chmod(0o755)
    monkeypatch.setenv("PATH", f"{julia.parent}:/usr/bin:/bin")
    start = time.monotonic()
    assert main(["setup", "--time-limit", "0.05"]) == 1
    assert time.monotonic() - start < 30
    assert "--time-limit" in capfd.readouterr().err


@pytest.mark.usefixtures("no_julia")
@pytest.mark.parametrize("arguments", [["--project", "x"], ["--depot", "x"], ["--julia", "x", "--depot", "y"]])
def test_setup_wants_julia_and_project_together(arguments: list[str], capfd: Capture) -> None:
    assert main(["setup", *arguments]) == 1
    said = "pyjode: --project goes with --julia, and --depot with both: give them\n"
    assert capfd.readouterr().err == said


def test_setup_forget_gets_rid_of_a_damaged_file(no_julia: Path, capfd: Capture) -> None:
    file = no_julia / "config" / "julia.json"
    file.parent.mkdir()
    file.write_text("{")
    assert main(["setup"]) == 1
    assert "damaged" in capfd.readouterr().err
    assert main(["setup", "--forget"]) == 0
    assert not file.exists()
    assert main(["setup", "--forget", "--julia", "x"]) == 1


@pytest.mark.slow
def test_a_failing_package_fails_the_setup(no_julia: Path, capfd: Capture) -> None:
    # The fake Julia passes every check of register, but there is no libjulia behind it.
    assert main(["setup", "--julia", str(fake_julia(no_julia)), "--project", str(environment(no_julia / "env"))]) == 1
    said = capfd.readouterr()
    assert "remembered" in said.out
    assert "does not load" in said.err.splitlines()[-1]


def test_setup_names_what_a_chosen_environment_lacks(
    no_julia: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    monkeypatch.setenv("PYTHON_JULIACALL_EXE", str(fake_julia(no_julia, missing="LinearSolve")))
    monkeypatch.setenv("PYTHON_JULIACALL_PROJECT", str(environment(no_julia / "env")))
    assert main(["setup"]) == 1
    assert "lacks LinearSolve" in capfd.readouterr().err


def test_run_limited_ends_the_children_too(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = setup.run_limited(["/bin/sh", "-c", f"sleep 100 & echo $! > {pid}; wait"], os.environ, 1.0)
    assert code is None
    state = subprocess.run(["ps", "-o", "stat=", "-p", pid.read_text()], capture_output=True, text=True).stdout
    assert not state.strip() or state.strip().startswith("Z")


def test_run_limited_returns_the_status() -> None:
    assert setup.run_limited(["/bin/sh", "-c", "exit 3"], os.environ, 60.0) == 3


def test_precompile_says_that_the_time_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    location = setup.JuliaLocation(fake_julia(tmp_path), environment(tmp_path / "env"), None, "user file")
    monkeypatch.setattr(setup, "run_limited", lambda *args: None)
    with pytest.raises(EngineUnavailable, match="--time-limit"):
        setup.precompile(location, lambda line: None, 60.0)


def test_methods_lists_names(capfd: Capture) -> None:
    assert main(["methods"]) == 0
    assert {"Tsit5", "Rodas5P"} <= {line.split()[0] for line in capfd.readouterr().out.splitlines()}
    assert main(["methods", "--kind", "stiff"]) == 0
    stiff = {line.split()[0] for line in capfd.readouterr().out.splitlines()}
    assert "Rodas5P" in stiff
    assert "Tsit5" not in stiff
    with pytest.raises(SystemExit):
        main(["methods", "--kind", "magic"])
    said = capfd.readouterr().err
    assert "magic" in said
    assert "stiff" in said


@pytest.mark.julia
@pytest.mark.slow
def test_doctor_times_a_first_gradient(capfd: Capture) -> None:
    code = main(["doctor", "--json"])
    report = json.loads(capfd.readouterr().out)
    assert code == 0, report
    assert report["missing"] == []
    seconds = report["first_gradient"]["seconds"]
    assert seconds["second gradient (Tsit5)"] < seconds["first gradient (Tsit5)"]
