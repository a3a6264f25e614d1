"""Who is fastest: for each problem the time that a library needs for a given true error."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pyjode.compare.results import Results, Row

ERRORS = (1e-6, 1e-9)


@dataclass(frozen=True)
class Contender:
    """A library's best method at a true error.

    Attributes:
        library, method: names.
        seconds: time of a call that reaches the error.
    """

    library: str
    method: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.library} {self.method} {1e3 * self.seconds:.3g} ms"


@dataclass(frozen=True)
class Standing:
    """How a library stands against the others on one problem, at one true error.

    Attributes:
        problem, mode: as in :class:`Row`.
        error: the true error.
        ours: the best of the library's methods, ``None`` where none reaches the error.
        peer: the best of all other libraries' methods, ``None`` where none does.
    """

    problem: str
    mode: str
    error: float
    ours: Contender | None
    peer: Contender | None

    @property
    def ratio(self) -> float | None:
        """How many times faster than the best peer the library is; below 1 it loses."""
        return None if self.ours is None or self.peer is None else self.peer.seconds / self.ours.seconds


def time_to(rows: Sequence[Row], error: float) -> float | None:
    """Seconds that one method needs for a true error, from its rows at several tolerances.

    Between two tolerances time and error are interpolated, both logarithmic, as the line of a work-precision diagram
    is drawn. ``None`` where it does not reach the error.
    """
    points = [
        (math.log(row.shown_error), math.log(row.seconds))
        for row in sorted(rows, key=lambda row: -row.rtol)
        if row.ok and row.seconds and row.shown_error and math.isfinite(row.shown_error)
    ]
    wanted = math.log(error)
    found = [time for at, time in points if at <= wanted]
    for (loose, before), (tight, after) in itertools.pairwise(points):
        if tight <= wanted < loose:
            found.append(before + (after - before) * (loose - wanted) / (loose - tight))
    return math.exp(min(found)) if found else None


def standings(results: Results, errors: Sequence[float] = ERRORS, library: str = "pyjode") -> Iterator[Standing]:
    """Each problem, mode and true error in turn, from the point of view of ``library``."""
    for problem, mode, rows in results.groups():
        methods = dict.fromkeys((row.library, row.method) for row in rows)
        for error in errors:
            found = []
            for name, method in methods:
                seconds = time_to([row for row in rows if (row.library, row.method) == (name, method)], error)
                if seconds is not None:
                    found.append(Contender(name, method, seconds))
            found.sort(key=lambda contender: contender.seconds)
            ours = next((c for c in found if c.library == library), None)
            peer = next((c for c in found if c.library != library), None)
            yield Standing(problem, mode, error, ours, peer)


def markdown(results: Results, errors: Sequence[float] = ERRORS, library: str = "pyjode") -> str:
    """A Markdown table for each mode, with where and when it was measured."""
    machine = results.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine.get("libraries", {}).items())
    clock = {"cpu": "processor time", "wall": "time"}[machine.get("clock", "wall")]
    lines = [
        f"Measured {machine['date']}: {machine['processor']}, {machine['cores']} cores, load {machine['load']:.1f}, "
        f"torch threads {machine['threads']}; median {clock} of a call; {versions}."
    ]
    all_standings = list(standings(results, errors, library))
    for mode in dict.fromkeys(s.mode for s in all_standings):
        heads = [head for e in errors for head in (f"{library}, error {e:.0e}", "best other", "ratio")]
        lines += ["", f"{'Forward' if mode == 'forward' else 'Forward and gradient'}:", ""]
        lines += [f"| problem | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
        for problem in dict.fromkeys(s.problem for s in all_standings if s.mode == mode):
            cells = [
                cell
                for s in all_standings
                if (s.problem, s.mode) == (problem, mode)
                for cell in (_cell(s.ours, library), _cell(s.peer), _verdict(s, library))
            ]
            lines.append(f"| {problem} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(contender: Contender | None, library: str = "") -> str:
    return "not reached" if contender is None else str(contender).removeprefix(f"{library} ")


def _verdict(standing: Standing, library: str) -> str:
    if standing.ratio is None:
        if standing.ours is None and standing.peer is None:
            return ""
        return "**no other**" if standing.peer is None else f"**{library} loses here**"
    said = f"{standing.ratio:.2g}x" if standing.ratio < 100 else f"{standing.ratio:.0f}x"
    return said if standing.ratio >= 1 else f"{said}, **{library} loses here**"
