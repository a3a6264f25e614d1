"""What ``pyjode doctor`` tells: what is found, what is missing, and what a first gradient costs."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable
from typing import Any

from pyjode._version import __version__
from pyjode.engines.julia import sysimage
from pyjode.engines.julia.config import (
    JuliaLocation,
    config_file,
    find_julia,
    julia_environment,
    julia_source_dir,
    julia_version,
    manifest_versions,
    missing_packages,
    needed_packages,
    python_command,
    why_not,
)
from pyjode.errors import InputError

RESULT = "pyjode-first-gradient: "
SETUP = "pyjode setup"


def examine(limit: float) -> dict[str, Any]:
    """Everything ``pyjode doctor`` knows, as plain JSON values.

    Args:
        limit: seconds that the first gradient may take.
    """
    location = find_julia()
    report: dict[str, Any] = {
        "pyjode": __version__,
        "python": platform.python_version(),
        **{name: _installed(name) for name in ("torch", "torchdiffeq", "juliacall")},
        "config_file": str(config_file()),
        "pyjode_jl": str(julia_source_dir()),
        "julia": None,
        "packages": [],
        "missing": [],
        "outside_compat": [],
        "sysimage": None,
        "first_gradient": None,
        "works": False,
        "problem": why_not() or None,
        "next": None,
    }
    if location is not None:
        try:
            _examine_julia(location, report, limit)
        except InputError as error:
            report["problem"] = str(error)
    report["works"] = report["problem"] is None
    if not report["works"]:
        report["next"] = _next_command(location, report)
    return report


def _examine_julia(location: JuliaLocation, report: dict[str, Any], limit: float) -> None:
    report["julia"] = {
        "exe": str(location.exe),
        "version": ".".join(map(str, julia_version(location.exe))),
        "project": str(location.project),
        "depot": location.depot or os.environ.get("JULIA_DEPOT_PATH"),
        "source": location.source,
    }
    versions = manifest_versions(location.project)
    image = sysimage.state(location)
    report["sysimage"] = {"state": image.state, "reason": image.reason, "path": str(image.path) if image.path else None}
    report["missing"] = missing_packages(location)
    report["packages"] = [
        {"name": package.name, "version": versions.get(package.name), "compat": package.compat}
        for package in needed_packages()
    ]
    report["outside_compat"] = [
        package["name"] for package in report["packages"] if not _allowed(package["version"], package["compat"])
    ]
    if report["missing"]:
        report["problem"] = f"Julia packages are missing: {', '.join(report['missing'])}"
        return
    report["first_gradient"] = time_first_gradient(location, limit)
    report["problem"] = report["first_gradient"].get("error")


def _next_command(location: JuliaLocation | None, report: dict[str, Any]) -> str:
    """The command to type: the one that the problem names, where it names one."""
    if location is None:
        commands = str(report["problem"]).split("`")[1::2]
        return commands[0] if commands else SETUP
    if location.source == "juliapkg" or not report["missing"]:
        return SETUP
    add = ", ".join(f'"{name}"' for name in report["missing"])
    return f"{location.exe} --project={location.project} -e 'import Pkg; Pkg.add([{add}])'"


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _allowed(version: str | None, compat: str) -> bool:
    from juliapkg.compat import Compat, Version

    return version is None or Version.parse(version.split("+")[0]) in Compat.parse(compat)


def time_first_gradient(
    location: JuliaLocation, limit: float, variables: dict[str, str] | None = None
) -> dict[str, Any]:
    """Seconds of each part of a first gradient, in a fresh process; ``{"error": ...}`` where it fails.

    Args:
        limit: seconds that it may take.
        variables: environment variables besides those of ``location``.
    """
    # In a process of its own: it must start from nothing, and a crash of Julia must not take the report with it.
    # The imports are timed out there: importing this module imports both.
    code = (
        "import time; a = time.perf_counter(); import torch; b = time.perf_counter(); import pyjode; "
        "c = time.perf_counter(); from pyjode.engines.julia.doctor import first_gradient_here as f; "
        "f({'import torch': b - a, 'import pyjode': c - b})"
    )
    command = python_command(code)
    try:
        done = subprocess.run(
            command,
            env=julia_environment(location) | (variables or {}),
            capture_output=True,
            text=True,
            timeout=limit,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"a first gradient was not done after {limit:.0f} s; `{SETUP}` precompiles the Julia packages"}
    for line in done.stdout.splitlines():
        if line.startswith(RESULT):
            result: dict[str, Any] = json.loads(line.removeprefix(RESULT))
            return result
    said = done.stderr.strip().splitlines()
    return {"error": f"a first gradient failed with status {done.returncode}: {said[-1] if said else 'no message'}"}


def first_gradient_here(imports: dict[str, float]) -> None:
    """Solve and differentiate a small neural ODE in this process; print the seconds of each part as one JSON line.

    First as ``odeint`` does by default (Tsit5, discrete adjoint: nothing of SciMLSensitivity is needed), then with
    GaussAdjoint.

    Args:
        imports: seconds that the imports took.
    """
    seconds = {part: round(value, 3) for part, value in imports.items()}
    last = 0.0

    def lap(part: str) -> None:
        nonlocal last
        now = time.perf_counter()
        seconds[part] = round(now - last, 3)
        last = now

    import torch

    import pyjode
    from pyjode.engines.julia.engine import start_julia
    from pyjode.engines.julia.runtime import julia_eval, runtime

    start_julia(None)  # as a first solve does
    seconds |= {part: round(value, 3) for part, value in runtime().seconds.items()}
    threads = julia_eval("Threads.nthreads()")
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 50), torch.nn.Tanh(), torch.nn.Linear(50, 2))
    y0, t = torch.tensor([2.0, 0.0]), torch.linspace(0.0, 1.0, 10)

    def gradient(solve: Callable[..., Any]) -> None:
        solve(lambda t, y: net(y), y0, t, method="Tsit5", engine="julia").square().sum().backward()

    last = time.perf_counter()
    gradient(pyjode.odeint)
    lap("first gradient (Tsit5)")
    gradient(pyjode.odeint)
    lap("second gradient (Tsit5)")
    julia_eval('load!("SciMLSensitivity")')
    lap("load SciMLSensitivity")
    gradient(pyjode.odeint_adjoint)
    lap("first gradient (GaussAdjoint)")
    gradient(pyjode.odeint_adjoint)
    lap("second gradient (GaussAdjoint)")
    signals = os.environ.get("PYTHON_JULIACALL_HANDLE_SIGNALS", "no")
    print(
        RESULT + json.dumps({"seconds": seconds, "julia_threads": int(threads), "handle_signals": signals}), flush=True
    )


def as_text(report: dict[str, Any]) -> str:
    """The report for reading."""
    lines = [
        f"pyjode {report['pyjode']}, Python {report['python']}, torch {report['torch']}, "
        f"torchdiffeq {report['torchdiffeq']}, juliacall {report['juliacall']}",
        f"per-user file   {report['config_file']}",
        f"PyJODE.jl       {report['pyjode_jl']}",
    ]
    julia = report["julia"]
    if julia is not None:
        lines += [
            f"Julia           {julia['version']}, {julia['exe']} (from: {julia['source']})",
            f"project         {julia['project']}",
            f"depot           {julia['depot'] or 'the default one'}",
            f"system image    {_image_as_text(report['sysimage'])}",
            "packages",
        ]
        for package in report["packages"]:
            note = ""
            if package["name"] in report["missing"]:
                note = "  MISSING"
            elif package["name"] in report["outside_compat"]:
                note = "  outside of what pyjode asks for"
            lines.append(f"  {package['name']:36} {package['version'] or '-':10} (wants {package['compat']}){note}")
    gradient = report["first_gradient"]
    if gradient is not None and "seconds" in gradient:
        lines.append(f"Julia threads   {gradient['julia_threads']}; handles signals: {gradient['handle_signals']}")
        lines.append("import order    torch before juliacall, as pyjode does: works here")
        lines.append("time to a first gradient, seconds")
        lines += [f"  {part:28} {seconds:8.2f}" for part, seconds in gradient["seconds"].items()]
    if report["works"]:
        lines.append("the Julia engine works")
    else:
        lines.append(f"the Julia engine does not work here, only the embedded one: {report['problem']}")
        lines.append(f"type: {report['next']}")
    return "\n".join(lines)


def _image_as_text(image: dict[str, Any]) -> str:
    if image["state"] == "none":
        return "none (`pyjode setup --sysimage` builds one: a faster start)"
    if image["state"] == "stale":
        return f"STALE, not used: {image['reason']}; `pyjode setup --sysimage` builds a new one"
    return f"used: {image['path']}"
