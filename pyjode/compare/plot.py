"""The work-precision diagram: time against error, both logarithmic."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyjode.compare.results import Results, Row
from pyjode.errors import UnsupportedError

# Okabe and Ito's colours, which colour-blind readers tell apart; a library has one. Its methods differ by line style,
# and every line by its marker, so that the diagram also reads in black and white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "h", "p", "8", "d", "H")


def plot(results: Results, problem: str, mode: str = "forward") -> Any:
    """One problem's diagram, as a matplotlib figure: lower and further right is better.

    Raises:
        UnsupportedError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UnsupportedError('the diagram needs matplotlib: pip install "pyjode[compare]"') from None
    rows = next((found for name, kind, found in results.groups() if (name, kind) == (problem, mode)), [])
    figure = Figure(figsize=(9, 5), layout="constrained", dpi=130)
    axes = figure.add_subplot()
    libraries = list(dict.fromkeys(row.library for row in rows))
    lines = dict.fromkeys((row.library, row.method) for row in rows if _drawn(row))
    seen: dict[str, int] = {}
    for number, (library, method) in enumerate(lines):
        points = sorted((row for row in rows if (row.library, row.method) == (library, method) and _drawn(row)),
                        key=lambda row: -row.rtol)  # fmt: skip
        style = seen[library] = seen.get(library, -1) + 1
        axes.plot(
            [row.shown_error or 0 for row in points],
            [1e3 * (row.seconds or 0) for row in points],
            color=_COLOURS[libraries.index(library) % len(_COLOURS)],
            linestyle=_STYLES[style % len(_STYLES)],
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=6,
            markerfacecolor="white" if style % 2 else None,
            label=f"{library} {method}",
        )
    axes.set(xscale="log", yscale="log", ylabel="time of a call (ms, median)")
    axes.set_xlabel(
        "error of the gradient (relative)" if mode == "gradient" else "error of the solution (relative, rms)"
    )
    axes.invert_xaxis()
    axes.grid(True, which="major", alpha=0.4)
    axes.grid(True, which="minor", alpha=0.12)
    axes.set_title(f"{problem}: {'forward and gradient' if mode == 'gradient' else 'forward'}")
    if lines:
        figure.legend(loc="outside right upper", fontsize=8.5, title="lower and further right is better",
                      title_fontsize=8)  # fmt: skip
    else:
        axes.text(0.5, 0.5, "nothing was solved", transform=axes.transAxes, ha="center")
    return figure


def save_plots(results: Results, folder: str | Path) -> Iterator[Path]:
    """Write each problem's diagrams into a folder, as ``<problem>-<mode>.png``."""
    for problem, mode, rows in results.groups():
        if any(_drawn(row) for row in rows):
            path = Path(folder) / f"{re.sub('[^A-Za-z0-9_.-]+', '-', problem)}-{mode}.png"
            plot(results, problem, mode).savefig(path)
            yield path


def _drawn(row: Row) -> bool:
    error = row.shown_error
    return row.ok and row.seconds is not None and error is not None and 0 < error < float("inf")
