"""The pyjode command, run as a user runs it, on a machine without Julia."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pyjode._version import __version__
from pyjode.engines.julia import setup
from pyjode.errors import EngineUnavailable
from tests.fake_julia import environment, fake_julia


@pytest.fixture
def variables(tmp_path: Path) -> dict[str, str]:
    """Environment variables of a user who has no Julia and no network."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON_JULIACALL_")}
    nowhere = "http://127.0.0.1:9"
    return variables | {
        "PYJODE_CONFIG_DIR": str(tmp_path / "config"),
        "PYTHON_JULIAPKG_PROJECT": str(tmp_path / "julia_env"),
        "PATH": "/usr/bin:/bin",
        "http_proxy": nowhere,
        "https_proxy": nowhere,
    }


def pyjode(variables: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "import sys; from pyjode.cli import main; sys.exit(main())", *arguments]
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)


def test_help_names_every_command(variables: dict[str, str]) -> None:
    done = pyjode(variables, "--help")
    assert done.returncode == 0
    assert all(command in done.stdout for command in ("setup", "doctor", "methods"))


def test_version(variables: dict[str, str]) -> None:
    assert pyjode(variables, "--version").stdout == f"pyjode {__version__}\n"


def test_the_command_itself_needs_neither_torch_nor_juliacall() -> None:
    # The package's own __init__ is left out: what it imports is its own concern.
    code = """
import sys, types
package = types.ModuleType("pyjode")
package.__path__ = [sys.argv[1]]
sys.modules["pyjode"] = package
from pyjode.cli import main
try:
    main(["--help"])
finally:
    assert not {"torch", "juliacall", "juliapkg"} & set(sys.modules)
"""
    source = str(Path(setup.__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", code, source], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_doctor_without_julia_says_what_to_type(variables: dict[str, str]) -> None:
    done = pyjode(variables, "doctor", "--json")
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert report["julia"] is None
    assert report["works"] is False
    assert report["next"] == "pyjode setup"
    assert report["torch"]
    text = pyjode(variables, "doctor")
    assert text.returncode == 1
    assert text.stdout.splitlines()[-1] == "type: pyjode setup"


def test_doctor_names_the_missing_package(variables: dict[str, str], tmp_path: Path) -> None:
    exe, project = fake_julia(tmp_path, missing="SciMLSensitivity"), environment(tmp_path / "env")
    variables |= {"PYTHON_JULIACALL_EXE": str(exe), "PYTHON_JULIACALL_PROJECT": str(project)}
    done = pyjode(variables, "doctor", "--json")
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert report["missing"] == ["SciMLSensitivity"]
    assert report["julia"]["version"] == "1.11.5"
    assert report["julia"]["source"] == "environment"
    assert 'Pkg.add(["SciMLSensitivity"])' in report["next"]


def test_doctor_reports_a_julia_that_cannot_start(variables: dict[str, str], tmp_path: Path) -> None:
    exe, project = fake_julia(tmp_path), environment(tmp_path / "env")
    variables |= {"PYTHON_JULIACALL_EXE": str(exe), "PYTHON_JULIACALL_PROJECT": str(project)}
    done = pyjode(variables, "doctor", "--json")
    assert done.returncode == 1
    assert "a first gradient failed" in json.loads(done.stdout)["problem"]


def test_setup_without_network_says_so_in_one_line(variables: dict[str, str]) -> None:
    done = pyjode(variables, "setup")
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert "no network" in lines[0]
    assert "pyjode setup --julia PATH --project DIR" in lines[0]


def test_setup_stops_at_its_time_limit(variables: dict[str, str], tmp_path: Path) -> None:
    slow = tmp_path / "bin" / "julia"
    slow.parent.mkdir()
    slow.write_text("#!/bin/sh\nsleep 60\n")
    slow.chmod(0o755)
    variables["PATH"] = f"{slow.parent}:{variables['PATH']}"
    start = time.monotonic()
    done = pyjode(variables, "setup", "--time-limit", "0.1")
    assert done.returncode == 1
    assert time.monotonic() - start < 30
    assert "--time-limit" in done.stderr


@pytest.mark.parametrize("arguments", [["--julia", "x"], ["--project", "x"], ["--depot", "x"]])
def test_setup_wants_julia_and_project_together(variables: dict[str, str], arguments: list[str]) -> None:
    done = pyjode(variables, "setup", *arguments)
    assert done.returncode == 1
    assert done.stderr == "pyjode: --julia and --project go together (and --depot only with both): give both\n"


def test_setup_forget_gets_rid_of_a_damaged_file(variables: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "config" / "julia.json"
    file.parent.mkdir()
    file.write_text("{")
    done = pyjode(variables, "setup")
    assert done.returncode == 1
    assert "damaged" in done.stderr
    assert pyjode(variables, "setup", "--forget").returncode == 0
    assert not file.exists()


def test_a_failing_package_fails_the_setup(variables: dict[str, str], tmp_path: Path) -> None:
    # The fake Julia passes every check of register, but there is no libjulia behind it.
    done = pyjode(
        variables, "setup", "--julia", str(fake_julia(tmp_path)), "--project", str(environment(tmp_path / "env"))
    )
    assert done.returncode == 1
    assert "remembered" in done.stdout
    assert "does not load" in done.stderr.splitlines()[-1]


def test_run_limited_ends_the_children_too(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = setup.run_limited(["/bin/sh", "-c", f"sleep 100 & echo $! > {pid}; wait"], os.environ, 1.0)
    assert code is None
    state = subprocess.run(["ps", "-o", "stat=", "-p", pid.read_text()], capture_output=True, text=True).stdout
    assert not state.strip() or state.strip().startswith("Z")


def test_run_limited_returns_the_status() -> None:
    assert setup.run_limited([sys.executable, "-c", "raise SystemExit(3)"], os.environ, 60.0) == 3


def test_precompile_says_that_the_time_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    location = setup.JuliaLocation(fake_julia(tmp_path), environment(tmp_path / "env"), None, "user file")
    monkeypatch.setattr(setup, "run_limited", lambda *args: None)
    with pytest.raises(EngineUnavailable, match="--time-limit"):
        setup.precompile(location, lambda line: None, 60.0)


def test_methods_lists_names(variables: dict[str, str]) -> None:
    done = pyjode(variables, "methods")
    assert done.returncode == 0
    assert {"Tsit5", "Rodas5P"} <= {line.split()[0] for line in done.stdout.splitlines()}


@pytest.mark.julia
@pytest.mark.slow
def test_doctor_times_a_first_gradient() -> None:
    done = pyjode(dict(os.environ), "doctor", "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 0, report
    assert report["missing"] == []
    seconds = report["first_gradient"]["seconds"]
    assert seconds["second solve and gradient"] < seconds["first solve and gradient"]
