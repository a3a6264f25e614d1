"""What a comparison found, as a table, CSV or JSON."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pyjode.errors import UnsupportedError


@dataclass(frozen=True)
class Row:
    """One library's method on one problem at one tolerance.

    Attributes:
        problem, library, method: names.
        mode: ``"forward"``, or ``"gradient"`` for a forward solve and the gradient of a loss by y0 and the parameters.
        rtol, atol: tolerances asked for.
        error: root mean square, over times and components, of the error relative to each component's size.
        gradient_error: relative error of the gradient in the 2-norm, each entry per relative change of its variable.
        seconds: median time of a call.
        first_seconds: time of the first one, which compiles what there is to compile.
        nfe, steps: evaluations of f and accepted steps of the forward solve, where the library says.
        calls: how many were timed.
        status: ``"ok"``, or why there are no numbers.
    """

    problem: str
    library: str
    method: str
    mode: str
    rtol: float
    atol: float
    error: float | None = None
    gradient_error: float | None = None
    seconds: float | None = None
    first_seconds: float | None = None
    nfe: int | None = None
    steps: int | None = None
    calls: int = 0
    status: str = "ok"

    @property
    def ok(self) -> bool:
        """Whether it was solved."""
        return self.status == "ok"

    @property
    def shown_error(self) -> float | None:
        """The error of what the mode asks for: the solution, or the gradient."""
        return self.gradient_error if self.mode == "gradient" else self.error


@dataclass(frozen=True)
class Results:
    """The rows of a comparison and where they were measured.

    Attributes:
        rows: one for each problem, library, method, mode and tolerance.
        references: for each problem and mode what the truth was computed by.
        machine: the processor, threads, versions of the libraries.
    """

    rows: tuple[Row, ...]
    references: dict[str, str]
    machine: dict[str, Any]

    def groups(self) -> Iterator[tuple[str, str, list[Row]]]:
        """(problem, mode, its rows), in order."""
        for problem, mode in dict.fromkeys((row.problem, row.mode) for row in self.rows):
            yield problem, mode, [row for row in self.rows if (row.problem, row.mode) == (problem, mode)]

    def followed_by(self, other: Results) -> Results:
        """The rows of both; the machine is as this one found it."""
        return Results(self.rows + other.rows, self.references | other.references, self.machine)

    def to_json(self, path: str | Path) -> None:
        """Write everything as one JSON object; numbers that are not finite become ``null``."""
        rows = [{k: _finite(v) for k, v in asdict(row).items()} for row in self.rows]
        whole = {"machine": self.machine, "references": self.references, "rows": rows}
        Path(path).write_text(json.dumps(whole, indent=1) + "\n")

    def to_csv(self, path: str | Path) -> None:
        """Write the rows."""
        with Path(path).open("w", newline="") as file:
            writer = csv.DictWriter(file, [f.name for f in fields(Row)])
            writer.writeheader()
            writer.writerows(asdict(row) for row in self.rows)

    @staticmethod
    def from_json(path: str | Path) -> Results:
        """Read what ``to_json`` wrote."""
        whole = json.loads(Path(path).read_text())
        return Results(tuple(Row(**row) for row in whole["rows"]), whole["references"], whole["machine"])

    def tables(self) -> Iterator[Any]:
        """For rich to print: a table for each problem and mode, and a line for each row without numbers.

        Raises:
            UnsupportedError: rich is not installed.
        """
        try:
            from rich.table import Table
        except ImportError:
            raise UnsupportedError('the table needs rich: pip install "pyjode[compare]"') from None
        for problem, mode, rows in self.groups():
            title = f"{problem}, {'forward' if mode == 'forward' else 'forward and gradient'}"
            table = Table(title=title, caption=f"truth: {self.references.get(f'{problem}, {mode}', '?')}")
            table.add_column("library", no_wrap=True)
            table.add_column("method", no_wrap=True)
            for head in ("rtol", "error", *(["gradient error"] if mode == "gradient" else [])):
                table.add_column(head, justify="right")
            for head in ("ms", "first ms", "nfe", "steps"):
                table.add_column(head, justify="right")
            best = {rtol: _fastest([r for r in rows if r.rtol == rtol]) for rtol in {r.rtol for r in rows}}
            previous = None
            failed = [row for row in rows if not row.ok]
            for row in (row for row in rows if row.ok):
                if previous is not None and (row.library, row.method) != previous:
                    table.add_section()
                repeated = (row.library, row.method) == previous
                previous = (row.library, row.method)
                names = ("", "") if repeated else previous
                errors = [row.error, *([row.gradient_error] if mode == "gradient" else [])]
                ms = f"{1e3 * (row.seconds or 0):.3g}"
                table.add_row(
                    *names,
                    f"{row.rtol:.0e}",
                    *(_number(e) for e in errors),
                    f"[bold]{ms}[/bold]" if row is best[row.rtol] else ms,
                    f"{1e3 * (row.first_seconds or 0):.3g}",
                    "" if row.nfe is None else str(row.nfe),
                    "" if row.steps is None else str(row.steps),
                )
            yield table
            yield from (_escape(_line(row)) for row in failed)


def _line(row: Row) -> str:
    at = f" at rtol {row.rtol:.0e}" if row.rtol else ""
    return f"  {row.library}{' ' if row.method else ''}{row.method}{at}: {row.status}"


def _fastest(rows: list[Row]) -> Row | None:
    return min((r for r in rows if r.ok and r.seconds is not None), key=lambda r: r.seconds or 0, default=None)


def _escape(text: str) -> str:
    return text.replace("[", r"\[")


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.1e}"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
