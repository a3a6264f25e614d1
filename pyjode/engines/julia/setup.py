"""Sets Julia up: by juliacall's own installer, or by registering a Julia that is already there.

Each step that may hang on a bad network runs in a process of its own, with a time limit.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pyjode.engines.julia.config import (
    JuliaLocation,
    chosen_but_unusable,
    find_julia,
    julia_environment,
    julia_version,
    missing_packages,
    needed_packages,
    python_command,
    read_only_depot,
    register,
    why_not,
)
from pyjode.errors import EngineUnavailable, InputError

NETWORK_TIMEOUT = 20.0
"""Seconds that one connection, or one read from it, may take."""

WITHOUT_NETWORK = (
    "on a machine without network copy the Julia, the project folder and the depot (~/.julia) of a machine where it "
    "worked, and run: pyjode setup --julia PATH --project DIR --depot DEPOT"
)

# Several packages at a time, which loading them one after the other does not do. What fails here fails again, with its
# reason, when the package is loaded.
PRECOMPILE = """
import Pkg
try
    Pkg.precompile(String.(ARGS); already_instantiated = true)
catch err
    println("precompiling ahead did not work here, going on one by one: ", first(split(sprint(showerror, err), '\\n')))
end
"""

Say = Callable[[str], None]


def set_up(say: Say, limit: float, julia: str | None = None) -> JuliaLocation:
    """Find Julia, or have juliapkg install it and the packages; then precompile.

    What an interrupted run has finished is found by the next one.

    Args:
        say: called with each line of progress.
        limit: seconds that each of the two steps may take.
        julia: an executable to install the packages for; by default one in PATH that is new enough, else a download.

    Raises:
        InputError: ``julia`` is no Julia.
        EngineUnavailable: it did not work; the message says why and what to type.
    """
    unusable = chosen_but_unusable()
    if unusable:
        raise EngineUnavailable(unusable)
    location = find_julia()
    if julia is not None:
        executable = _given(julia)
        if location is None or location.exe != executable:
            if location is not None and location.source != "juliapkg":
                raise InputError(
                    f"--julia {julia}: {location.exe} is chosen already ({location.source}): give --project too, or "
                    "run `pyjode setup --forget`"
                )
            _resolve(say, limit, executable)
            location = find_julia()
    elif location is None:
        _resolve(say, limit)
        location = find_julia()
    if location is None:
        raise EngineUnavailable(why_not())
    missing = missing_packages(location)
    if missing:
        raise EngineUnavailable(
            f"the Julia environment {location.project} ({location.source}) lacks {', '.join(missing)}: add them, or "
            f"name another one with `pyjode setup --julia PATH --project DIR`"
        )
    precompile(location, say, limit)
    return location


def set_up_registered(exe: str, project: str, depot: str | None, say: Say, limit: float) -> JuliaLocation:
    """Remember an existing Julia and environment for this user, and precompile there.

    Raises:
        InputError: they cannot be used; the message says what is wrong with them.
        EngineUnavailable: a package does not load there.
    """
    location = register(exe, project, depot)
    if location.depot != depot:
        say(f"the first folder of the depot cannot be written; Julia compiles into yours: {location.depot}")
    say(f"remembered: Julia {location.exe}, project {location.project}")
    precompile(location, say, limit)
    return location


def _given(julia: str) -> Path:
    executable = shutil.which(str(Path(julia).expanduser()))
    if executable is None:
        raise InputError(f"--julia {julia} is no executable file: give the path of a julia executable")
    julia_version(Path(executable))
    return Path(executable).absolute()


def _resolve(say: Say, limit: float, julia: Path | None = None) -> None:
    say("installing Julia and its packages with juliapkg (several minutes, about 2 GB)")
    variables = os.environ if julia is None else os.environ | {"PYTHON_JULIAPKG_EXE": str(julia)}
    with tempfile.TemporaryDirectory() as folder:
        cause = Path(folder) / "cause"
        resolve = "import sys; from pyjode.engines.julia.setup import resolve_here; resolve_here(sys.argv[1])"
        code = run_limited(python_command(resolve, str(cause)), variables, limit)
        if code == 0:
            return
        reason = cause.read_text() if cause.is_file() else f"juliapkg ended with status {code}"
    if code is None:
        reason = f"not done after {limit / 60:.0f} minutes (--time-limit gives it more)"
    raise EngineUnavailable(f"could not install Julia or its packages: {reason}; {WITHOUT_NETWORK}")


def resolve_here(cause: str) -> None:
    """Run juliapkg's resolver in this process; where it fails write why to the file ``cause`` and exit with 1."""
    import socket
    import urllib.error

    import juliapkg
    from juliapkg.deps import find_requirements
    from juliapkg.state import STATE

    # juliapkg sets no time limit on its downloads.
    socket.setdefaulttimeout(NETWORK_TIMEOUT)
    unfit = ""
    try:
        wanted, _ = find_requirements()
        chosen = STATE["override_executable"]
        if chosen and _version(chosen) not in wanted:
            raise EngineUnavailable(f"{chosen} is Julia {_version(chosen)}, and pyjode needs {wanted}")
        found = julias_in_path()
        if not chosen and not shutil.which("juliaup"):
            fit = [(exe, version) for exe, version in found if version in wanted]
            if found and not fit:
                unfit = "; " + ", ".join(f"{exe} is Julia {version}" for exe, version in found) + f", wanted: {wanted}"
            # juliapkg looks at the first julia in PATH only.
            if fit and fit[0] != found[0]:
                STATE["override_executable"] = str(fit[0][0])
            if len(found) > 1 and fit:
                listed = ", ".join(f"{exe} ({version})" for exe, version in found)
                print(
                    f"pyjode: several Julias in PATH: {listed}; taking {fit[0][0]}, --julia takes another", flush=True
                )
        juliapkg.resolve()
    except urllib.error.URLError as error:
        reason = _network_reason(error) + unfit
    except subprocess.CalledProcessError as error:
        reason = f"Julia's package manager failed with status {error.returncode}, see its messages above{_proxy()}"
    except Exception as error:  # juliapkg raises bare Exceptions
        reason = " ".join(str(error).split()) or type(error).__name__
    else:
        return
    Path(cause).write_text(reason)
    sys.exit(1)


def julias_in_path() -> list[tuple[Path, Any]]:
    """Every julia in PATH with its version (as juliapkg compares them), in PATH's order, each only once."""
    found: dict[Path, tuple[Path, Any]] = {}
    for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
        exe = shutil.which("julia", path=folder) if folder else None
        if exe is not None and Path(exe).resolve() not in found:
            version = _version(exe)
            if version is not None:
                found[Path(exe).resolve()] = (Path(exe), version)
    return list(found.values())


def _version(exe: str) -> Any:
    from juliapkg.find_julia import julia_version as version

    return version(exe)


def _network_reason(error: Any) -> str:
    said = str(getattr(error, "reason", error))
    if hasattr(error, "code"):
        return f"the server of {error.url} answered {error.code} ({said}){_proxy()}"
    return f"no network ({said}){_proxy()}"


def _proxy() -> str:
    """The proxy in use, or how to name one; without a password that may be in it."""
    import urllib.request

    proxy = urllib.request.getproxies().get("https")
    if proxy is None:
        return ", or a proxy is needed: export https_proxy=http://HOST:PORT"
    return f", through the proxy {re.sub(r'//[^/@]*@', '//', proxy)} (https_proxy)"


def precompile(location: JuliaLocation, say: Say, limit: float) -> None:
    """Compile the Julia packages once, so that later sessions only load them.

    Raises:
        EngineUnavailable: a package does not load, Julia cannot write its depot, or the time limit has passed.
    """
    read_only = read_only_depot(location)
    if read_only:
        raise EngineUnavailable(read_only)
    say("precompiling the Julia packages (once; about a quarter of an hour on two cores, seconds when done already)")
    environment = julia_environment(location)
    names = [package.name for package in needed_packages()]
    project = f"--project={location.project}"
    start = time.monotonic()
    code = run_limited([str(location.exe), project, "--startup-file=no", "-e", PRECOMPILE, *names], environment, limit)
    if code is not None:
        # Through juliacall: images depend on the flags that Julia is started with, so start it as the engine does.
        command = python_command("from pyjode.engines.julia.setup import load_here; load_here()")
        code = run_limited(command, environment, limit - (time.monotonic() - start))
    if code is None:
        raise EngineUnavailable(
            f"precompiling was not done after {limit / 60:.0f} minutes: run the command again with a larger "
            "--time-limit, it goes on from where it was"
        )
    if code != 0:
        raise EngineUnavailable("a Julia package does not load, see the messages above; `pyjode doctor` says more")
    say(f"the Julia engine is ready ({time.monotonic() - start:.0f} s)")


def build_sysimage(location: JuliaLocation, say: Say, limit: float) -> None:
    """Build a system image for ``location`` and have it used.

    Args:
        limit: seconds that the build, and then each trial of the image, may take.

    Raises:
        EngineUnavailable: no compiler, no PackageCompiler.jl, or it failed.
    """
    from pyjode.engines.julia import doctor, sysimage

    sysimage.build(
        location,
        say,
        lambda command, variables: run_limited(command, variables, limit),
        lambda variables: doctor.time_first_gradient(location, limit, variables),
    )


def load_here() -> None:
    """Start Julia in this process and load PyJODE.jl and the needed packages, saying how long each took."""
    from pyjode.engines.julia.runtime import julia_eval

    print("  starting Julia and PyJODE.jl (about a minute the first time)", flush=True)
    start = time.perf_counter()
    version = julia_eval("VERSION")
    print(f"  Julia {version} with PyJODE.jl, {time.perf_counter() - start:.1f} s", flush=True)
    names = [package.name for package in needed_packages()]
    for i, name in enumerate(names, 1):
        start = time.perf_counter()
        julia_eval(f"Core.eval(Main, :(import {name}))")
        print(f"  [{i}/{len(names)}] {name}, {time.perf_counter() - start:.1f} s", flush=True)


def run_limited(command: Sequence[str], environment: Mapping[str, str], limit: float) -> int | None:
    """Run a command with this process's output; its exit status, or ``None`` where it was stopped at the limit.

    It and all that it started are ended at the limit (seconds) and on Ctrl-C.
    """
    process = subprocess.Popen(
        command, env=dict(environment), stdin=subprocess.DEVNULL, start_new_session=os.name == "posix"
    )
    try:
        return process.wait(max(limit, 0.0))
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            if os.name == "posix":
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
            process.wait()
