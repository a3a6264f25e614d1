"""A comparison with each library in a process of its own: jax's threads and allocator slow every other library down."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from pyjode.compare import Results, Row

TOGETHER = (("pyjode", "Julia by hand"),)
"""Libraries that are one process: both are the same Julia, and setting it up takes longer than a case."""


def processes(methods: Iterable[str]) -> list[str]:
    """The libraries of ``"library:method"`` names, those of one process as one comma-separated string."""
    libraries = list(dict.fromkeys(name.partition(":")[0] for name in methods))
    found = []
    for library in libraries:
        group = next((g for g in TOGETHER if library in g), (library,))
        found.append(",".join(x for x in group if x in libraries))
    return list(dict.fromkeys(found))


def measure_apart(
    command: Callable[[str, Path], list[str]], methods: Iterable[str], rounds: int, say: Callable[[str], None]
) -> Results:
    """Medians over ``rounds`` of processes, forwards and backwards in turn.

    Args:
        command: arguments to Python that measure the libraries of a string and write JSON results to a file.
        methods: all that is to be measured.
        rounds: how often each library's process runs.
        say: told what runs.
    """
    groups = processes(methods)
    found: list[Results] = []
    with tempfile.TemporaryDirectory() as folder:
        for i in range(rounds):
            for libraries in groups[:: 1 if i % 2 == 0 else -1]:
                say(f"  round {i + 1} of {rounds}: {libraries}")
                out = Path(folder) / "results.json"
                out.unlink(missing_ok=True)
                subprocess.run([sys.executable, *command(libraries, out)], check=True, stdout=subprocess.DEVNULL)
                found.append(Results.from_json(out))
    return merged(found)


def merged(found: list[Results]) -> Results:
    """One row for each library, method, mode and tolerance, with the medians of their times."""
    rows: dict[tuple[object, ...], list[Row]] = {}
    for results in found:
        for row in results.rows:
            rows.setdefault((row.problem, row.library, row.method, row.mode, row.rtol), []).append(row)
    return Results(
        tuple(_median(of_one) for of_one in rows.values()),
        {k: v for results in found for k, v in results.references.items()},
        found[0].machine,
    )


def _median(rows: list[Row]) -> Row:
    timed = [row for row in rows if row.ok and row.seconds is not None]
    if not timed:
        return rows[0]
    return replace(
        timed[0],
        seconds=statistics.median(row.seconds for row in timed if row.seconds is not None),
        first_seconds=statistics.median(row.first_seconds or 0.0 for row in timed),
        calls=sum(row.calls for row in timed),
    )
