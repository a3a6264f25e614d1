"""Where Julia is: found, remembered and forgotten, without starting it.

Looked for in this order, and the first that says anything decides:

1. the environment: ``PYTHON_JULIACALL_EXE`` and ``PYTHON_JULIACALL_PROJECT``, both;
2. the per-user file that ``pyjode setup --julia PATH --project DIR`` writes;
3. the environment that juliapkg (juliacall's own installer) resolved for this Python earlier.

Reading is fast: no subprocess, no network, and neither torch nor juliacall is imported.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal

import platformdirs

from pyjode.errors import InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PACKAGE = Path(__file__).resolve().parents[2]
OLDEST_JULIA = (1, 10)
CHECK_LIMIT = 300.0
"""Seconds that Julia may take to say its version, or which packages it can locate."""

NOT_SET_UP = "Julia is not set up: run `pyjode setup`, or `pyjode setup --julia PATH --project DIR` without network"
UNSET = "unset PYTHON_JULIACALL_EXE PYTHON_JULIACALL_PROJECT"

LOCATE = """
for wanted in ARGS
    name, uuid = split(wanted, '=')
    id = Base.identify_package(String(name))
    found = id !== nothing && string(id.uuid) == uuid && Base.locate_package(id) !== nothing
    println(found ? "found " : "missing ", name)
end
"""


@dataclass(frozen=True)
class JuliaLocation:
    """A Julia and the environment that pyjode's Julia packages are installed in.

    Attributes:
        exe: the ``julia`` executable.
        project: the folder of the environment's Project.toml and Manifest.toml.
        depot: value for ``JULIA_DEPOT_PATH``, or ``None`` to leave that variable alone.
        source: which of the three places named it.
    """

    exe: Path
    project: Path
    depot: str | None
    source: Literal["environment", "user file", "juliapkg"]

    def variables(self) -> dict[str, str]:
        """The environment variables that make juliacall start this Julia, without asking juliapkg."""
        variables = {"PYTHON_JULIACALL_EXE": str(self.exe), "PYTHON_JULIACALL_PROJECT": str(self.project)}
        if self.depot is not None:
            variables["JULIA_DEPOT_PATH"] = self.depot
        return variables


@dataclass(frozen=True)
class NeededPackage:
    """A Julia package that pyjode loads: its UUID and the versions it may have, as Julia's [compat] writes them."""

    name: str
    uuid: str
    compat: str


@cache
def needed_packages() -> tuple[NeededPackage, ...]:
    """The packages of ``pyjode/juliapkg.json`` (the same as the top-level Project.toml), by name."""
    packages = json.loads((PACKAGE / "juliapkg.json").read_text())["packages"]
    return tuple(NeededPackage(name, spec["uuid"], spec["version"]) for name, spec in sorted(packages.items()))


def julia_source_dir() -> Path:
    """The folder of PyJODE.jl's Project.toml and src: in a wheel ``pyjode/_julia``, in a checkout ``julia/``."""
    in_wheel = PACKAGE / "_julia"
    return in_wheel if (in_wheel / "Project.toml").is_file() else PACKAGE.parent / "julia"


def config_file() -> Path:
    """The per-user file; ``PYJODE_CONFIG_DIR`` names another folder for it."""
    folder = os.environ.get("PYJODE_CONFIG_DIR")
    return (Path(folder) if folder else platformdirs.user_config_path("pyjode")) / "julia.json"


def find_julia() -> JuliaLocation | None:
    """Where Julia is, or ``None``; :func:`why_not` then says why."""
    found = _look()
    return found if isinstance(found, JuliaLocation) else None


def why_not() -> str:
    """One sentence: why :func:`find_julia` finds nothing and what to type; empty where it finds Julia."""
    found = _look()
    return f"{found}." if isinstance(found, str) else ""


def chosen_but_unusable() -> str:
    """Why the Julia that the user chose (environment, per-user file) cannot be used; empty where none was chosen, or
    where it can. A download would change nothing about it."""
    found = _chosen()
    return f"{found}." if isinstance(found, str) else ""


def _chosen() -> JuliaLocation | str | None:
    found = _from_environment()
    if found is None:
        found = _from_user_file()
    if isinstance(found, JuliaLocation):
        return _pythoncall_mismatch(found) or found
    return found


def _look() -> JuliaLocation | str:
    found = _chosen()
    if found is None:
        found = _from_juliapkg()
    return NOT_SET_UP if found is None else found


def _from_environment() -> JuliaLocation | str | None:
    exe, project = os.environ.get("PYTHON_JULIACALL_EXE"), os.environ.get("PYTHON_JULIACALL_PROJECT")
    if not exe and not project:
        return None
    if not exe or not project:
        return f"of PYTHON_JULIACALL_EXE and PYTHON_JULIACALL_PROJECT only one is set: set both, or `{UNSET}`"
    executable = shutil.which(exe)
    if executable is None:
        return f"PYTHON_JULIACALL_EXE={exe} is no executable file: correct it, or `{UNSET}`"
    if not Path(project).is_dir():
        return f"PYTHON_JULIACALL_PROJECT={project} is no folder: correct it, or `{UNSET}`"
    return JuliaLocation(Path(executable).absolute(), Path(project).absolute(), None, "environment")


def _from_user_file() -> JuliaLocation | str | None:
    file = config_file()
    try:
        text = file.read_text()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        return f"{file} cannot be read ({error}): run `pyjode setup --forget`, then set Julia up again"
    try:
        exe, project, depot = _parse(text)
    except ValueError as error:
        return f"{file} is damaged ({error}): run `pyjode setup --forget`, then set Julia up again"
    for what, path, there in (("Julia", exe, exe.is_file()), ("project", project, find_manifest(project) is not None)):
        if not there:
            return (
                f"the {what} that {file} names is gone ({path}): run `pyjode setup --julia PATH --project DIR` again, "
                "or `pyjode setup --forget`"
            )
    return JuliaLocation(exe, project, depot, "user file")


def _parse(text: str) -> tuple[Path, Path, str | None]:
    content = json.loads(text)
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    exe, project, depot = content.get("julia"), content.get("project"), content.get("depot")
    if not isinstance(exe, str) or not isinstance(project, str) or not isinstance(depot, str | None):
        raise ValueError('wants strings "julia" and "project", and "depot" a string or null')
    return Path(exe), Path(project), depot


def _from_juliapkg() -> JuliaLocation | str | None:
    # Not juliapkg.resolve(dry_run=True): that starts Julia, and takes a lock in the project's folder.
    from juliapkg.deps import load_meta
    from juliapkg.state import STATE

    try:
        meta = load_meta()
        if meta is None:
            return None
        exe, project = Path(meta["executable"]), Path(STATE["project"])
        resolved_for = {record["hash_sha256"] for record in meta["deps_files"].values()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{STATE['meta']} is damaged ({error!r}): delete it and run `pyjode setup`"
    if not exe.is_file() or find_manifest(project) is None:
        return f"the Julia that juliapkg installed is gone ({exe}, {project}): run `pyjode setup`"
    if hashlib.sha256((PACKAGE / "juliapkg.json").read_bytes()).hexdigest() not in resolved_for:
        return "the Julia packages were installed for another version of pyjode: run `pyjode setup`"
    location = JuliaLocation(exe, project, None, "juliapkg")
    if _pythoncall_mismatch(location):
        return "the Julia packages were installed for another version of juliacall: run `pyjode setup`"
    return location


def find_manifest(project: Path) -> Path | None:
    """The manifest of a Julia environment, or ``None`` where it has none."""
    for name in ("JuliaManifest.toml", "Manifest.toml"):
        if (project / name).is_file():
            return project / name
    return max(project.glob("Manifest-v*.toml"), default=None)


def manifest_versions(project: Path) -> dict[str, str]:
    """Package versions by name, from the environment's manifest; empty where that cannot be read."""
    manifest = find_manifest(project)
    return {} if manifest is None else _read_manifest(manifest, manifest.stat().st_mtime_ns)


# Cached: reading it takes 20 ms, and every solve asks where Julia is.
@lru_cache(maxsize=4)
def _read_manifest(manifest: Path, modified: int) -> dict[str, str]:
    try:
        content: dict[str, Any] = tomllib.loads(manifest.read_text())
    except (OSError, ValueError):
        return {}
    packages = content.get("deps", {})
    return {name: entries[0]["version"] for name, entries in packages.items() if "version" in entries[0]}


@cache
def _juliacall_version() -> str:
    return importlib.metadata.version("juliacall")


def _pythoncall_mismatch(location: JuliaLocation) -> str | None:
    """PythonCall.jl and juliacall are two halves of one release: other pairs fail in obscure ways."""
    julia_half = manifest_versions(location.project).get("PythonCall")
    python_half = _juliacall_version()
    if julia_half is None or julia_half == python_half:
        return None
    return (
        f"the Julia environment {location.project} has PythonCall {julia_half}, this Python has juliacall "
        f"{python_half}; the two must be equal: run `pip install juliacall=={julia_half}`"
    )


def julia_environment(location: JuliaLocation) -> dict[str, str]:
    """``os.environ`` and what Julia, or a Python that starts it, needs besides."""
    # PythonCall would otherwise look for a Python of its own, and try to download one.
    return {**os.environ, **location.variables(), "JULIA_PYTHONCALL_EXE": sys.executable}


def python_command(code: str, *arguments: str) -> list[str]:
    """A command that runs ``code`` in a Python whose pyjode is this one.

    ``python -c`` looks in the working directory first: in a checkout beside an installed pyjode that is another one,
    with a PyJODE.jl of its own to compile.
    """
    ours = f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r}); import pyjode; del sys.path[0]; "
    return [sys.executable, "-c", ours + code, *arguments]


def julia_version(exe: Path) -> tuple[int, int, int]:
    """Major, minor and patch number of a Julia, from ``julia --version``.

    Raises:
        InputError: ``exe`` cannot be run, or is not Julia.
    """
    try:
        output = subprocess.run(
            [exe, "--version"], capture_output=True, text=True, timeout=CHECK_LIMIT, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise InputError(
            f"--julia {exe} does not run ({_last_line(error)}): give the path of a julia executable"
        ) from None
    match = re.match(r"julia version (\d+)\.(\d+)\.(\d+)", output)
    if match is None:
        raise InputError(f"--julia {exe} is not Julia: `--version` says {output.strip()!r}")
    return int(match[1]), int(match[2]), int(match[3])


def missing_packages(location: JuliaLocation) -> list[str]:
    """Names of the needed packages that Julia cannot locate there; starts Julia, takes about a second.

    Raises:
        InputError: Julia does not run in that project.
    """
    wanted = [f"{package.name}={package.uuid}" for package in needed_packages()]
    command = [str(location.exe), f"--project={location.project}", "--startup-file=no", "-e", LOCATE, *wanted]
    try:
        output = subprocess.run(
            command, capture_output=True, text=True, timeout=CHECK_LIMIT, check=True, env=julia_environment(location)
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise InputError(f"Julia does not run in the project {location.project}: {_last_line(error)}") from None
    found = {line.removeprefix("found ") for line in output.splitlines() if line.startswith("found ")}
    return [package.name for package in needed_packages() if package.name not in found]


def _last_line(error: Exception) -> str:
    said = getattr(error, "stderr", None) or str(error)
    return said.strip().splitlines()[-1] if said.strip() else type(error).__name__


def register(exe: str | Path, project: str | Path, depot: str | None = None) -> JuliaLocation:
    """Remember an existing Julia and environment for this user, after checking them.

    Args:
        exe: a julia executable, by path or by name.
        project: folder of an environment (Project.toml and Manifest.toml) with the needed packages.
        depot: value for ``JULIA_DEPOT_PATH``, for packages that are not in the default depot. Where its first folder
            is read-only (a shared depot), one of the user's is put before it.

    Raises:
        InputError: no Julia 1.10 or newer, no environment, packages missing (all are named), or a PythonCall.jl that
            does not match juliacall.
    """
    executable = shutil.which(str(Path(exe).expanduser()))
    if executable is None:
        raise InputError(f"--julia {exe} is no executable file: give the path of a julia executable")
    folder = Path(project).expanduser().absolute()
    if not any((folder / name).is_file() for name in ("JuliaProject.toml", "Project.toml")):
        raise InputError(f"--project {folder} has no Project.toml: give the folder of a Julia environment")
    if find_manifest(folder) is None:
        raise InputError(
            f"--project {folder} has no Manifest.toml: "
            f"run `{exe} --project={folder} -e 'import Pkg; Pkg.instantiate()'`"
        )
    location = JuliaLocation(Path(executable).absolute(), folder, with_writable_depot(depot), "user file")
    version = julia_version(location.exe)
    if version[:2] < OLDEST_JULIA:
        raise InputError(f"--julia {exe} is Julia {'.'.join(map(str, version))}; pyjode needs 1.10 or newer")
    missing = missing_packages(location)
    if missing:
        raise InputError(
            f"--project {folder} lacks {len(missing)} Julia packages: {', '.join(missing)}; add them "
            f"(Project.toml of pyjode lists all: {_environment_file()}), or name the depot that has them with --depot"
        )
    mismatch = _pythoncall_mismatch(location)
    if mismatch:
        raise InputError(mismatch)
    write_json(config_file(), {"julia": str(location.exe), "project": str(folder), "depot": location.depot})
    return location


def with_writable_depot(depot: str | None) -> str | None:
    """``depot`` with a folder that this user can write before it, where its own first one cannot be.

    Julia writes what it compiles to the first depot, and PyJODE.jl is compiled there even where every package is.
    """
    paths = depot if depot is not None else os.environ.get("JULIA_DEPOT_PATH") or ""
    first = paths.split(os.pathsep)[0]
    # An empty entry stands for Julia's default depots, of which the user's own is the first.
    if is_writable(Path(first).expanduser() if first else Path.home() / ".julia"):
        return depot
    mine = next((d for d in (Path.home() / ".julia", own_depot()) if str(d) != first and is_writable(d)), own_depot())
    # Without entries of its own the variable must still end in an empty one: Julia's default depots.
    return os.pathsep.join([str(mine), paths])


def own_depot() -> Path:
    """pyjode's own depot, for users whose others cannot be written."""
    return config_file().parent / "depot"


def is_writable(folder: Path) -> bool:
    """Whether files can be made in ``folder``, or it can be made itself. Permission bits alone do not tell."""
    try:
        with tempfile.TemporaryFile(dir=next(path for path in (folder, *folder.parents) if path.exists())):
            return True
    except OSError:
        return False


def read_only_depot(location: JuliaLocation) -> str:
    """One sentence where Julia cannot write what it compiles for ``location``; else empty."""
    paths = location.depot if location.depot is not None else os.environ.get("JULIA_DEPOT_PATH") or ""
    layered = with_writable_depot(location.depot)
    if layered == location.depot:
        return ""
    return (
        f"the first folder of JULIA_DEPOT_PATH ({paths.split(os.pathsep)[0] or 'the default, ~/.julia'}) cannot be "
        f"written, and Julia compiles into it: run `export JULIA_DEPOT_PATH={layered}`"
    )


def _environment_file() -> Path:
    in_wheel = PACKAGE / "_julia" / "environment" / "Project.toml"
    return in_wheel if in_wheel.is_file() else PACKAGE.parent / "Project.toml"


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Replace a file of the user's configuration folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    # A reader, or a crash half-way, sees the old file or the new one, never a part of it.
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=".julia-", suffix=".json")
    try:
        with os.fdopen(handle, "w") as stream:
            json.dump(content, stream, indent=2)
            stream.write("\n")
        os.replace(temporary, file)
    except BaseException:
        os.unlink(temporary)
        raise


def forget() -> bool:
    """Delete the per-user file; whether there was one."""
    try:
        config_file().unlink()
    except FileNotFoundError:
        return False
    return True
