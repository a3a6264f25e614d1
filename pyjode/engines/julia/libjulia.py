"""Where libjulia is, remembered: juliacall starts a Julia to ask that at each import, which takes half a second.

The answer depends on nothing but the executable, so it is kept for each, with the size and time of change of the
executable and of the library: another Julia in its place is asked again. Launchers that choose a Julia anew at each
start (juliaup's) are always asked.
"""

from __future__ import annotations

import contextlib
import json
import logging
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyjode.engines.julia.config import config_file, write_json

log = logging.getLogger("pyjode")

QUESTION = 'Libdl.dlpath("libjulia")'
"""What juliacall's command to find libjulia has in it (juliacall 0.9.26 to 0.9.37)."""


def memory_file() -> Path:
    """The per-user file of remembered answers."""
    return config_file().with_name("libjulia.json")


def recall(exe: str) -> tuple[str, str] | None:
    """The path of libjulia and ``Sys.BINDIR`` for this executable, or ``None`` where Julia must be asked."""
    entry = _read().get(exe)
    try:
        if entry and entry["exe"] == _stamp(exe) and entry["lib"] == _stamp(entry["libjulia"]):
            return entry["libjulia"], entry["bindir"]
    except (KeyError, TypeError, OSError):
        pass
    return None


def remember(exe: str, libjulia: str, bindir: str) -> None:
    """Keep Julia's answer. Where that is not possible (a read-only home) Julia is asked again next time."""
    if "launcher" in Path(exe).resolve().name:
        return
    try:
        entry = {"libjulia": libjulia, "bindir": bindir, "exe": _stamp(exe), "lib": _stamp(libjulia)}
        write_json(memory_file(), {**_read(), exe: entry})
    except OSError as error:
        log.debug("the place of libjulia could not be remembered: %s", error)


@contextlib.contextmanager
def remembered_while_juliacall_loads() -> Iterator[None]:
    """Answer juliacall's question from memory, without a process; where there is no answer keep Julia's."""
    run = subprocess.run

    def answer(command: Any, *args: Any, **kwargs: Any) -> Any:
        if not (isinstance(command, list) and command and QUESTION in str(command[-1])):
            return run(command, *args, **kwargs)
        exe = str(command[0])
        known = recall(exe)
        if known is not None:
            return subprocess.CompletedProcess(command, 0, "\0".join(known), "")
        done = run(command, *args, **kwargs)
        libjulia, _, bindir = done.stdout.partition("\0")
        remember(exe, libjulia, bindir)
        return done

    subprocess.run = answer  # type: ignore[assignment]
    try:
        yield
    finally:
        subprocess.run = run


def _read() -> dict[str, Any]:
    try:
        content = json.loads(memory_file().read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _stamp(path: str) -> list[int]:
    status = Path(path).stat()
    return [status.st_mtime_ns, status.st_size]
