"""diffeqpy in pyjode's Julia session."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyjode.engines.julia import config
from pyjode.engines.julia.runtime import runtime
from pyjode.errors import EngineUnavailable


def load_ode() -> Any:
    """diffeqpy's ``ode`` module (OrdinaryDiffEq.jl), loaded into the Julia that pyjode runs.

    Raises:
        EngineUnavailable: diffeqpy is not installed, or Julia's environment has no OrdinaryDiffEq.
    """
    runtime()
    try:
        with _julia_in_path():
            from diffeqpy import ode
    except ImportError as error:
        raise EngineUnavailable(f"diffeqpy is not installed: pip install diffeqpy ({error})") from error
    return ode


@contextlib.contextmanager
def _julia_in_path() -> Iterator[None]:
    """diffeqpy looks for ``julia`` in PATH, and downloads one where there is none."""
    location = config.find_julia()
    if location is None or shutil.which("julia") is not None:
        yield
        return
    before = os.environ.get("PATH", "")
    os.environ["PATH"] = f"{Path(location.exe).parent}{os.pathsep}{before}"
    try:
        yield
    finally:
        os.environ["PATH"] = before
