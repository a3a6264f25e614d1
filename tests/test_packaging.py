"""The wheel holds what it must, and the three lists of Julia packages agree."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from pyjode._version import __version__
from pyjode.engines.julia.config import julia_source_dir, needed_packages

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
JULIAS_OWN = {"LinearAlgebra", "SparseArrays", "Libdl", "Printf", "Random", "Test"}


def toml(path: Path) -> dict[str, dict[str, str]]:
    return tomllib.loads(path.read_text())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl")
    return built


def test_juliapkg_json_and_project_toml_say_the_same() -> None:
    project = toml(ROOT / "Project.toml")
    wanted = json.loads((ROOT / "pyjode" / "juliapkg.json").read_text())
    assert {name: spec["uuid"] for name, spec in wanted["packages"].items()} == project["deps"]
    compat = {name: spec["version"] for name, spec in wanted["packages"].items()}
    assert {**compat, "julia": wanted["julia"].removeprefix("^")} == project["compat"]
    assert [package.name for package in needed_packages()] == sorted(project["deps"])


def test_both_halves_have_one_version() -> None:
    assert str(toml(ROOT / "julia" / "Project.toml")["version"]) == __version__


def test_julia_package_asks_for_nothing_that_the_environment_lacks() -> None:
    environment, package = toml(ROOT / "Project.toml"), toml(ROOT / "julia" / "Project.toml")
    asked = {**package["deps"], **package.get("weakdeps", {})}
    ours = {name: uuid for name, uuid in asked.items() if name not in JULIAS_OWN}
    assert ours.items() <= environment["deps"].items()
    bounds = {name: bound for name, bound in package["compat"].items() if name in environment["compat"]}
    assert bounds.items() <= environment["compat"].items()


def test_every_method_comes_from_a_package_of_the_environment() -> None:
    from pyjode.methods import methods

    packages = {name for method in methods(engine="julia") for name in method.julia_package.split()}
    assert packages
    assert packages <= set(toml(ROOT / "Project.toml")["deps"])


@pytest.mark.slow
def test_wheel_holds_the_julia_sources(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    sources = {
        f"pyjode/_julia/{path.relative_to(ROOT / 'julia').as_posix()}"
        for folder in ("src", "ext")
        for path in (ROOT / "julia" / folder).rglob("*.jl")
    }
    assert sources
    assert sources <= names
    files = {"_julia/Project.toml", "_julia/environment/Project.toml", "juliapkg.json", "py.typed", "cli.py"}
    assert {f"pyjode/{file}" for file in files} <= names
    assert all(name.startswith(("pyjode/", "pyjode-")) for name in names)
    assert not [name for name in names if "Manifest" in name or "/test/" in name]


@pytest.mark.slow
def test_wheel_works_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    code = """
import sys
sys.path.insert(0, sys.argv[1])
import torch, pyjode
from pyjode.engines.julia.config import julia_source_dir, needed_packages, _environment_file
assert pyjode.__file__.startswith(sys.argv[1]), pyjode.__file__
assert str(julia_source_dir()).startswith(sys.argv[1]), julia_source_dir()
assert (julia_source_dir() / "src" / "PyJODE.jl").is_file()
assert _environment_file().is_file() and str(_environment_file()).startswith(sys.argv[1])
y = pyjode.odeint(lambda t, y: -y, torch.ones(1), torch.tensor([0.0, 1.0]), engine="torchdiffeq")
assert abs(float(y[-1]) - 0.36787944) < 1e-5
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(site)], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_import_starts_no_julia_and_is_quick() -> None:
    code = """
import sys, time, torch
start = time.process_time()  # processor time: other processes of the machine must not decide
import pyjode
for name in pyjode.__all__:  # names are imported when they are first used
    getattr(pyjode, name)
print(time.process_time() - start)
assert "juliacall" not in sys.modules
"""
    for _ in range(3):
        run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        seconds = float(run.stdout)
        if seconds < 0.3:
            return
    pytest.fail(f"importing pyjode took {seconds:.2f} s beyond torch")


@pytest.mark.julia
@pytest.mark.slow
def test_julia_package_passes_its_own_tests() -> None:
    from pyjode.engines.julia.config import find_julia, julia_environment

    location = find_julia()
    assert location is not None
    # Not Pkg.test: it starts Julia with --check-bounds=yes, for which every package would be compiled once more.
    variables = julia_environment(location) | {"JULIA_LOAD_PATH": f"@:{julia_source_dir()}:@stdlib"}
    command = [location.exe, f"--project={location.project}", "--startup-file=no", ROOT / "julia/test/runtests.jl"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
