"""An optional system image with PyJODE.jl and the solvers in it, by PackageCompiler.jl: less to load at each start.

An image belongs to one Julia, one set of packages, one version of PyJODE.jl and one sort of processor. It is used only
while all four are what they were when it was built, and only after a first gradient with it has worked.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pyjode.engines.julia.config import (
    JuliaLocation,
    config_file,
    find_manifest,
    julia_environment,
    julia_source_dir,
    needed_packages,
    tomllib,
    write_json,
)
from pyjode.errors import EngineUnavailable

PACKAGES = (
    "PyJODE", "OrdinaryDiffEqTsit5", "OrdinaryDiffEqRosenbrock", "SciMLSensitivity", "OrdinaryDiffEqBDF",
    "OrdinaryDiffEqDefault", "OrdinaryDiffEqLowOrderRK", "OrdinaryDiffEqSDIRK", "ForwardDiff",
)  # fmt: skip
"""What goes into the image: PyJODE.jl and what it has extensions for, which would otherwise be compiled once more, for
the image. Not PythonCall: it must find its Python while it starts."""

# The arguments: PackageCompiler's own environment, the project to build from, the image, the packages.
BUILD = """
import Pkg
if Base.find_package("PackageCompiler") === nothing
    Pkg.activate(ARGS[1])
    try
        Pkg.add(Pkg.PackageSpec(name = "PackageCompiler", uuid = "9b87118b-4619-50d2-8e1e-99f35a4d4d9d", version = "2"))
    catch err
        showerror(stderr, err)
        exit(3)
    end
end
import PackageCompiler
PackageCompiler.create_sysimage(
    ARGS[4:end]; project = ARGS[2], sysimage_path = ARGS[3], include_transitive_dependencies = false
)
# An image with nothing in it is a success to PackageCompiler.
there = "all(name -> any(id -> id.name == name, keys(Base.loaded_modules)), ARGS) || exit(4)"
run(`$(first(Base.julia_cmd())) --sysimage=$(ARGS[3]) --startup-file=no -e $there $(ARGS[4:end])`)
"""
_NO_PACKAGECOMPILER = 3


class State(NamedTuple):
    """Whether an image is used, and why not: ``state`` is ``"none"``, ``"used"`` or ``"stale"``."""

    state: Literal["none", "used", "stale"]
    reason: str
    path: Path | None


def folder() -> Path:
    """Where images are kept, with what they were built from."""
    return config_file().parent / "sysimage"


def state(location: JuliaLocation) -> State:
    """What there is for this Julia and project; starts nothing, reads a few files."""
    try:
        record = json.loads((folder() / "sysimage.json").read_text())
        image, built_from = Path(record["path"]), dict(record["built_from"])
    except FileNotFoundError:
        return State("none", "", None)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return State("stale", f"{folder() / 'sysimage.json'} is damaged ({error!r})", None)
    if not image.is_file():
        return State("stale", f"{image} is gone", image)
    now = origin(location)
    changed = [what for what in now if now[what] != built_from.get(what)]
    if changed:
        return State("stale", f"since it was built there is another {', another '.join(changed)}", image)
    return State("used", "", image)


def usable(location: JuliaLocation) -> Path | None:
    """The image to start Julia with, if there is one that fits."""
    found = state(location)
    return found.path if found.state == "used" else None


def origin(location: JuliaLocation) -> dict[str, str]:
    """What an image for this Julia and project depends on, as short strings by name."""
    stamp = location.exe.stat()
    manifest = find_manifest(location.project)
    sources = hashlib.sha256()
    root = julia_source_dir()
    for path in sorted([root / "Project.toml", *(root / "src").rglob("*.jl"), *(root / "ext").rglob("*.jl")]):
        sources.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return {
        "Julia": f"{location.exe} {stamp.st_size} {stamp.st_mtime_ns}",
        "set of packages": "" if manifest is None else hashlib.sha256(manifest.read_bytes()).hexdigest(),
        "PyJODE.jl": sources.hexdigest(),
        "processor": _processor(),
    }


def build(
    location: JuliaLocation,
    say: Callable[[str], None],
    run: Callable[[list[str], dict[str, str]], int | None],
    trial: Callable[[dict[str, str]], dict[str, Any]],
) -> Path:
    """Build the image, try it, and have it used from now on.

    Args:
        say: called with each line of progress.
        run: runs a command with an environment; its status, ``None`` where it was stopped at its time limit.
        trial: does a first gradient in a fresh process with these further variables; ``{"error": ...}`` if it failed.

    Raises:
        EngineUnavailable: it did not work; the message says why. What was used before is used further.
    """
    if not os.environ.get("JULIA_CC") and not any(map(shutil.which, ("gcc", "clang", "cc"))):
        raise EngineUnavailable("a system image needs a C compiler: install gcc, or name one in JULIA_CC")
    project = folder() / "project"
    shutil.rmtree(project, ignore_errors=True)
    project.mkdir(parents=True)
    write_project(location, project)
    suffix = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
    new = folder() / f"new{suffix}"
    say("building a system image with PackageCompiler.jl (ten minutes and more, about a gigabyte)")
    command = [str(location.exe), "--startup-file=no", f"--project={folder() / 'packagecompiler'}", "-e", BUILD]
    code = run(
        [*command, str(folder() / "packagecompiler"), str(project), str(new), *PACKAGES], build_variables(location)
    )
    if code is None:
        raise EngineUnavailable("the system image was not ready in time: give it more with --time-limit MINUTES")
    if code == _NO_PACKAGECOMPILER:
        raise EngineUnavailable(
            "PackageCompiler.jl could not be installed, see Julia's message above. Without network copy the depot of a "
            f"machine where `{location.exe.name} -e 'import Pkg; Pkg.add(\"PackageCompiler\")'` was run"
        )
    if code != 0 or not new.is_file():
        raise EngineUnavailable(f"PackageCompiler.jl failed with status {code}, see its messages above")
    say("trying it: PythonCall is compiled for it once")
    for _ in range(2):
        tried = trial({"PYTHON_JULIACALL_SYSIMAGE": str(new)})
        if "error" in tried:
            raise EngineUnavailable(f"the system image was built but does not work: {tried['error']}")
    name = hashlib.sha256(json.dumps(origin(location)).encode()).hexdigest()[:16]
    image = folder() / f"{name}{suffix}"
    os.replace(new, image)
    write_json(folder() / "sysimage.json", {"path": str(image), "built_from": origin(location)})
    for other in folder().glob(f"*{suffix}"):
        if other != image:
            other.unlink(missing_ok=True)
    say(f"the system image is used from now on: {image}")
    return image


def build_variables(location: JuliaLocation) -> dict[str, str]:
    """``os.environ`` for the build: Julia's default environments are searched for PackageCompiler."""
    return {name: value for name, value in julia_environment(location).items() if name != "JULIA_LOAD_PATH"}


def write_project(location: JuliaLocation, target: Path) -> None:
    """An environment with what goes into the image: PyJODE.jl, which is no package of ``location``, beside the others
    at the versions that are there. No more: PackageCompiler first compiles all that an environment lists."""
    source = julia_source_dir()
    package = tomllib.loads((source / "Project.toml").read_text())
    manifest = find_manifest(location.project)
    assert manifest is not None
    uuids = {needed.name: needed.uuid for needed in needed_packages()} | {"PyJODE": package["uuid"]}
    listed = next(p for p in (location.project / n for n in ("JuliaProject.toml", "Project.toml")) if p.is_file())
    lines = ["[deps]", *(f'{name} = "{uuids[name]}"' for name in PACKAGES), *_preferences(listed.read_text())]
    (target / "Project.toml").write_text("\n".join(lines) + "\n")
    if (location.project / "LocalPreferences.toml").is_file():
        shutil.copy(location.project / "LocalPreferences.toml", target)
    names = sorted(package["deps"])
    entry = [
        "",
        "[[deps.PyJODE]]",
        f"deps = {json.dumps(names)}",
        f"path = {json.dumps(str(source))}",
        f'uuid = "{package["uuid"]}"',
        f'version = "{package["version"]}"',
    ]
    for table in ("weakdeps", "extensions"):
        if package.get(table):
            entry.append(f"\n    [deps.PyJODE.{table}]")
            entry += [f"    {name} = {json.dumps(value)}" for name, value in sorted(package[table].items())]
    # Relative paths in the manifest are relative to its folder.
    text = _absolute_paths(manifest.read_text(), location.project)
    (target / "Manifest.toml").write_text(text.rstrip() + "\n" + "\n".join(entry) + "\n")


def _preferences(project: str) -> list[str]:
    """The lines of a Project.toml that set preferences, which packages are compiled by."""
    kept, inside = [], False
    for line in project.splitlines():
        if line.startswith("["):
            inside = line.startswith(("[preferences]", "[preferences."))
        if inside:
            kept.append(line)
    return kept


def _absolute_paths(manifest: str, base: Path) -> str:
    lines = []
    for line in manifest.splitlines():
        name, _, value = line.partition(" = ")
        if name == "path":
            line = f"path = {json.dumps(os.path.normpath(base / json.loads(value)))}"
        lines.append(line)
    return "\n".join(lines)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    wanted = {
        line.split(":", 1)[0].strip(): line for line in lines if line.startswith(("model name", "flags", "Features"))
    }
    return hashlib.sha256("".join(wanted.values()).encode()).hexdigest()[:16]
