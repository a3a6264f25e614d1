"""Sets Julia up: by juliacall's own installer, or by registering a Julia that is already there.

Each step that may hang on a bad network runs in a process of its own, with a time limit.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pyjode.engines.julia.config import (
    JuliaLocation,
    chosen_but_unusable,
    find_julia,
    julia_environment,
    missing_packages,
    needed_packages,
    register,
    why_not,
)
from pyjode.errors import EngineUnavailable

NETWORK_TIMEOUT = 20.0
"""Seconds that one connection, or one read from it, may take."""

WITHOUT_NETWORK = "on a machine without network use: pyjode setup --julia PATH --project DIR"

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


def set_up(say: Say, limit: float) -> JuliaLocation:
    """Find Julia, or have juliapkg install it and the packages; then precompile.

    Args:
        say: called with each line of progress.
        limit: seconds that each of the two steps may take.

    Raises:
        EngineUnavailable: it did not work; the message says why and what to type.
    """
    unusable = chosen_but_unusable()
    if unusable:
        raise EngineUnavailable(unusable)
    location = find_julia()
    if location is None:
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
    say(f"remembered: Julia {location.exe}, project {location.project}")
    precompile(location, say, limit)
    return location


def _resolve(say: Say, limit: float) -> None:
    say("installing Julia and its packages with juliapkg (several minutes, about 2 GB)")
    with tempfile.TemporaryDirectory() as folder:
        cause = Path(folder) / "cause"
        resolve = "import sys; from pyjode.engines.julia.setup import resolve_here; resolve_here(sys.argv[1])"
        code = run_limited([sys.executable, "-c", resolve, str(cause)], os.environ, limit)
        if code == 0:
            return
        reason = cause.read_text() if cause.is_file() else f"juliapkg ended with status {code}"
    if code is None:
        reason = f"not done after {limit / 60:.0f} minutes (--time-limit gives it more)"
    raise EngineUnavailable(f"could not download Julia or its packages: {reason}; {WITHOUT_NETWORK}")


def resolve_here(cause: str) -> None:
    """Run juliapkg's resolver in this process; where it fails write why to the file ``cause`` and exit with 1."""
    import socket
    import urllib.error

    import juliapkg

    # juliapkg sets no time limit on its downloads.
    socket.setdefaulttimeout(NETWORK_TIMEOUT)
    try:
        juliapkg.resolve()
    except urllib.error.URLError as error:
        reason = f"no network ({error.reason})"
    except subprocess.CalledProcessError as error:
        reason = f"Julia's package manager failed with status {error.returncode}, see its messages above"
    except Exception as error:  # juliapkg raises bare Exceptions
        reason = " ".join(str(error).split()) or type(error).__name__
    else:
        return
    Path(cause).write_text(reason)
    sys.exit(1)


def precompile(location: JuliaLocation, say: Say, limit: float) -> None:
    """Compile the Julia packages once, so that later sessions only load them.

    Raises:
        EngineUnavailable: a package does not load, or the time limit has passed.
    """
    say("precompiling the Julia packages (once; about ten minutes on two cores, seconds when done already)")
    environment = julia_environment(location)
    names = [package.name for package in needed_packages()]
    project = f"--project={location.project}"
    start = time.monotonic()
    code = run_limited([str(location.exe), project, "--startup-file=no", "-e", PRECOMPILE, *names], environment, limit)
    if code is not None:
        # Through juliacall: images depend on the flags that Julia is started with, so start it as the engine does.
        command = [sys.executable, "-c", "from pyjode.engines.julia.setup import load_here; load_here()"]
        code = run_limited(command, environment, limit - (time.monotonic() - start))
    if code is None:
        raise EngineUnavailable(
            f"precompiling was not done after {limit / 60:.0f} minutes: run the command again with a larger "
            "--time-limit, it goes on from where it was"
        )
    if code != 0:
        raise EngineUnavailable("a Julia package does not load, see the messages above; `pyjode doctor` says more")
    say(f"the Julia engine is ready ({time.monotonic() - start:.0f} s)")


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
