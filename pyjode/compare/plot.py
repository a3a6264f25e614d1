"""Work-precision diagrams: time against error, both logarithmic."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyjode.compare.results import Results, Row
from pyjode.compare.summary import time_to
from pyjode.errors import UnsupportedError

# Okabe and Ito's colours, which colour-blind readers tell apart; a library has one. Its methods differ by line style,
# and every line by its marker, so that the diagram also reads in black and white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = ("-", "--", ":", "-.")
_ERRORS = tuple(10.0**-k for k in range(3, 12))
"""At which an overview's lines are drawn."""
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "h", "p", "8", "d", "H")


def plot(results: Results, problem: str, mode: str = "forward") -> Any:
    """One problem's diagram, as a matplotlib figure: lower and further right is better.

    Raises:
        UnsupportedError: matplotlib is not installed.
    """
    figure = _figure((9, 5))
    rows = next((found for name, kind, found in results.groups() if (name, kind) == (problem, mode)), [])
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


def overview(results: Results, mode: str = "forward", columns: int = 4) -> Any:
    """All problems side by side, a line for each library: the least time that any of its methods needs for an error.

    Raises:
        UnsupportedError: matplotlib is not installed.
    """
    groups = [(problem, rows) for problem, kind, rows in results.groups() if kind == mode]
    libraries = list(dict.fromkeys(row.library for _, rows in groups for row in rows if _drawn(row)))
    across = max(1, min(columns, len(groups)))
    down = max(1, -(-len(groups) // across))
    figure = _figure((2.6 * across, 2.1 * down + 0.5))
    panels = figure.subplots(down, across, squeeze=False, sharex=True).ravel()
    for axes, (problem, rows) in zip(panels, groups, strict=False):
        for number, library in enumerate(libraries):
            ours = [row for row in rows if row.library == library]
            methods = [[row for row in ours if row.method == name] for name in dict.fromkeys(r.method for r in ours)]
            times = [
                (error, 1e3 * min(found))
                for error in _ERRORS
                if (found := [s for s in (time_to(method, error) for method in methods) if s is not None])
            ]
            axes.plot(
                [error for error, _ in times],
                [ms for _, ms in times],
                color=_COLOURS[number % len(_COLOURS)],
                linestyle=_STYLES[number % len(_STYLES)],
                marker=_MARKERS[number % len(_MARKERS)],
                markersize=4,
                linewidth=1.2,
                label=library,
            )
        axes.set(xscale="log", yscale="log")
        axes.set_title(problem, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.grid(True, which="major", alpha=0.4)
    panels[0].set_xlim(2 * _ERRORS[0], _ERRORS[-1] / 2)
    for axes in panels[max(0, len(groups) - across) : len(groups)]:
        axes.tick_params(labelbottom=True)  # also above a place that is empty
    for axes in panels[len(groups) :]:
        axes.set_axis_off()
    figure.supxlabel("true error (relative)", fontsize=9)
    figure.supylabel("time of a call (ms)", fontsize=9)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=max(1, len(labels)), fontsize=8.5)
    return figure


def save_plots(results: Results, folder: str | Path) -> Iterator[Path]:
    """Write each problem's diagrams into a folder, as ``<problem>-<mode>.png``, and ``overview-<mode>.png``."""
    for mode in dict.fromkeys(row.mode for row in results.rows if _drawn(row)):
        path = Path(folder) / f"overview-{mode}.png"
        overview(results, mode).savefig(path)
        yield path
    for problem, mode, rows in results.groups():
        if any(_drawn(row) for row in rows):
            path = Path(folder) / f"{re.sub('[^A-Za-z0-9_.-]+', '-', problem)}-{mode}.png"
            plot(results, problem, mode).savefig(path)
            yield path


def _figure(size: tuple[float, float]) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UnsupportedError('the diagram needs matplotlib: pip install "pyjode[compare]"') from None
    return Figure(figsize=size, layout="constrained", dpi=130)


def _drawn(row: Row) -> bool:
    error = row.shown_error
    return row.ok and row.seconds is not None and error is not None and 0 < error < float("inf")
