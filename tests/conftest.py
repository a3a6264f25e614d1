"""What every test shares: one thread, fixed seeds, and the ``julia`` mark."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

# Before torch loads. Thread barriers cost more than these small networks do.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@cache
def julia_found() -> tuple[bool, str]:
    """Whether tests marked ``julia`` can run, and what was found or why not; starts nothing."""
    # Not at the top: importing pyjode is for the tests to fail on, one by one.
    from pyjode.engines.julia.config import find_julia, why_not

    location = find_julia()
    if location is None:
        return False, why_not()
    return True, f"{location.exe}, project {location.project} (from: {location.source})"


_marked: set[str] = set()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("julia") is not None:
        # Not by the report's keywords: those have the names of folders too.
        _marked.add(item.nodeid)
        found, reason = julia_found()
        if not found:
            pytest.skip(f"needs the Julia engine: {reason}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which engine the ``julia`` tests ran on, or why they did not."""
    reports = [
        report
        for outcome in ("passed", "failed", "skipped")
        for report in terminalreporter.stats.get(outcome, [])
        if report.nodeid in _marked and (report.when == "call" or report.skipped)
    ]
    if not reports:
        return
    found, what = julia_found()
    skipped = sum(report.skipped for report in reports)
    terminalreporter.write_sep("-", "julia engine")
    terminalreporter.write_line(f"julia engine: {what if found else 'none'}")
    terminalreporter.write_line(
        f"{len(reports) - skipped} julia tests ran, {skipped} skipped{'' if found else ': ' + what}"
    )


@pytest.fixture(autouse=True)
def _reproducible() -> None:
    import numpy as np
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - code under test may use the global generator
    random.seed(0)


@pytest.fixture
def no_julia(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user who has no Julia and no network, in this process and in those it starts; the test's own folder."""
    from juliapkg.state import STATE

    from pyjode.engines.julia import runtime

    monkeypatch.setattr(runtime, "_runtime", None)  # that of earlier tests
    for name in ("PYTHON_JULIACALL_EXE", "PYTHON_JULIACALL_PROJECT", "JULIA_DEPOT_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYJODE_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("PYTHON_JULIAPKG_PROJECT", str(tmp_path / "julia_env"))
    monkeypatch.setitem(STATE, "project", str(tmp_path / "julia_env"))
    monkeypatch.setitem(STATE, "meta", str(tmp_path / "julia_env" / "pyjuliapkg" / "meta.json"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    return tmp_path


@pytest.fixture(params=["torchdiffeq", pytest.param("julia", marks=pytest.mark.julia)])
def engine(request: pytest.FixtureRequest) -> str:
    """The name of each engine in turn."""
    name: str = request.param
    return name


@pytest.fixture
def julia_eval() -> Callable[[str], str]:
    """Evaluates Julia code in the engine's session, as a string. Its tests need the mark ``julia``."""
    from pyjode.engines.julia.runtime import julia_eval

    return julia_eval
