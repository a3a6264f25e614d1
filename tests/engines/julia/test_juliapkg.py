"""``pyjode setup`` by juliapkg itself, Julia's own package manager and a package server on the loopback.

What is installed is a small part, PythonCall and what it needs: pyjode's whole list takes ten minutes to compile.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

import pyjode
from pyjode.engines.julia import config
from tests.package_server import GENERAL, Package, serving, tree_hash, tree_of

pytestmark = [pytest.mark.julia, pytest.mark.slow]

WANTED = ("PythonCall", "FunctionWrappers", "PrecompileTools")

# What an environment has, whether it was installed from a registry or is a folder: one line a package.
LIST = """
import Pkg
for (uuid, package) in Pkg.dependencies()
    Pkg.Types.is_stdlib(uuid) && continue
    deps = join((string(name, "=", id) for (name, id) in package.dependencies), ",")
    println(join(("package", package.name, uuid, package.version, package.source, deps), '\\t'))
end
for depot in DEPOT_PATH, name in readdir(Sys.STDLIB)
    folder = joinpath(depot, "compiled", "v$(VERSION.major).$(VERSION.minor)", name)
    for file in (isdir(folder) ? readdir(folder; join = true) : String[])
        println(join(("stdlib", file), '\\t'))
    end
end
"""

# In a process of its own: juliapkg reads its settings when it is imported. Nothing is compiled for an engine that has
# only a part of its packages.
SETUP = """
import sys
from pyjode.cli import main
from pyjode.engines.julia import config, setup
setup.precompile = lambda *arguments: None
status = main(["setup", "--time-limit", "15"])
location = config.find_julia()
print("found", None if location is None else (location.source, str(location.project)), flush=True)
sys.exit(status)
"""


def installed() -> tuple[list[Package], list[Path]]:
    """The packages of this environment that PythonCall needs, with what juliacall wants besides; and the files of the
    standard library's compiled packages."""
    location = config.find_julia()
    assert location is not None
    said = subprocess.run(
        [location.exe, f"--project={location.project}", "--startup-file=no", "-e", LIST],
        capture_output=True, text=True, check=True, timeout=300, env=config.julia_environment(location),
    ).stdout  # fmt: skip
    found = {}
    lines = [line.split("\t") for line in said.splitlines()]
    for _, name, uuid, version, source, deps in (line for line in lines if line[0] == "package"):
        found[name] = uuid, version, Path(source), dict(dep.split("=") for dep in deps.split(",") if dep)
    wanted, packages = list(WANTED), {}
    while wanted:
        name = wanted.pop()
        if name in found and name not in packages:
            uuid, version, source, deps = found[name]
            packages[name] = Package(name, uuid, version, tree_of(source), deps)
            wanted += deps
    # juliacall wants the OpenSSL that Python has; its library would be a download of its own.
    major, minor, patch = ssl.OPENSSL_VERSION_INFO[:3]
    openssl = f"{major}.{0 if major >= 3 else minor}.{0 if major >= 3 else patch}"
    uuid = "458c3c95-2e84-50aa-8efc-19380b2a3a95"
    files = {
        "Project.toml": (f'name = "OpenSSL_jll"\nuuid = "{uuid}"\nversion = "{openssl}"\n'.encode(), False),
        "src/OpenSSL_jll.jl": (b"module OpenSSL_jll\nend\n", False),
    }
    compiled = [Path(file) for kind, file, *_ in lines if kind == "stdlib"]
    return [*packages.values(), Package("OpenSSL_jll", uuid, openssl, files, {})], compiled


def a_part_of_pyjode(folder: Path) -> None:
    """pyjode as it is, but for the list of the Julia packages it needs."""
    package = Path(pyjode.__file__).parent
    shutil.copytree(package, folder / "pyjode", ignore=shutil.ignore_patterns("__pycache__", "_julia"))
    listed = json.loads((package / "juliapkg.json").read_text())
    listed["packages"] = {name: spec for name, spec in listed["packages"].items() if name in WANTED}
    (folder / "pyjode" / "juliapkg.json").write_text(json.dumps(listed))
    # juliapkg takes the first folder of a name: other packages here may want more of Julia.
    for other in (file.parent.name for path in sys.path for file in Path(path).glob("*/juliapkg.json")):
        if other not in ("pyjode", "juliacall", "juliapkg"):
            (folder / other).mkdir(exist_ok=True)
            (folder / other / "juliapkg.json").write_text("{}")


def test_a_tree_has_gits_hash(tmp_path: Path) -> None:
    git = shutil.which("git")
    if git is None:
        pytest.skip("no git")
    for path, text in {"a/b.jl": "x", "a.jl": "y", "a-b": "z", "ab/c/d": ""}.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    (tmp_path / "a-b").chmod(0o755)
    for command in (["init", "-q"], ["add", "-A"]):
        subprocess.run([git, *command], cwd=tmp_path, check=True)
    written = subprocess.run([git, "write-tree"], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert tree_hash(tree_of(tmp_path)) == written.strip()


@pytest.mark.timeout(2400)  # it compiles PythonCall
def test_juliapkg_installs_from_a_package_server_and_goes_on_after_an_interruption(tmp_path: Path) -> None:
    location = config.find_julia()
    assert location is not None
    a_part_of_pyjode(tmp_path / "python")
    broken = {"FunctionWrappers"}
    packages, stdlib = installed()
    for file in stdlib:  # a fresh depot would have Julia's own package manager compiled first
        link = tmp_path / "stdlib" / file.relative_to(file.parents[3])
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(file)
    with serving(packages, broken) as (address, asked):
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("JULIA", "PYTHON", "PYJODE")) and not name.lower().endswith("_proxy")
        } | {
            "PATH": os.pathsep.join([str(location.exe.parent), os.environ["PATH"]]),
            "PYTHONPATH": str(tmp_path / "python"),
            "PYJODE_CONFIG_DIR": str(tmp_path / "config"),
            "PYTHON_JULIAPKG_PROJECT": str(tmp_path / "environment"),
            "JULIA_DEPOT_PATH": os.pathsep.join([str(tmp_path / "depot"), str(tmp_path / "stdlib"), ""]),
            "JULIA_PKG_SERVER": address,
        }

        def set_up() -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [sys.executable, "-c", SETUP], cwd=tmp_path, env=environment, capture_output=True, text=True,
                timeout=1500,
            )  # fmt: skip

        first = set_up()
        assert first.returncode == 1, first.stdout + first.stderr
        assert "pyjode: could not install Julia or its packages: Julia's package manager failed" in first.stderr
        assert "found None" in first.stdout
        assert f"/registry/{GENERAL}" in "".join(asked)

        broken.clear()
        before = len(asked)
        second = set_up()
        assert second.returncode == 0, second.stdout + second.stderr
        assert str(("juliapkg", str(tmp_path / "environment"))) in second.stdout
        # What the first run had installed is not fetched again.
        fetched_first = {path for path in asked[:before] if path.startswith("/package/")}
        fetched_then = {path for path in asked[before:] if path.startswith("/package/")}
        refused = {
            path for path in fetched_first if any(p.name == "FunctionWrappers" and p.uuid in path for p in packages)
        }
        assert refused and fetched_first & fetched_then <= refused and refused <= fetched_then

        done = subprocess.run(
            [location.exe, f"--project={tmp_path / 'environment'}", "--startup-file=no", "-e",
             "import FunctionWrappers, PythonCall; print(pkgversion(PythonCall), ' ', pathof(PythonCall))"],
            env=environment | {"JULIA_PYTHONCALL_EXE": sys.executable, "JULIA_CONDAPKG_BACKEND": "Null"},
            capture_output=True, text=True, timeout=900,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    version, path = done.stdout.split()
    assert version == importlib.metadata.version("juliacall")
    assert Path(path).is_relative_to(tmp_path / "depot" / "packages")
