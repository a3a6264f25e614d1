"""Who is fastest at a true error: interpolation, ratios, and what is said where pyjode loses."""

from __future__ import annotations

import math

import pytest

from pyjode.compare import Problem, Results, compare, find_problem, markdown, overview, standings, time_to
from pyjode.compare.results import Row

MACHINE = {
    "date": "2026-11-25 12:00", "processor": "a processor", "cores": 2, "load": 1.0, "threads": 1, "clock": "cpu",
    "libraries": {"pyjode": "0.1.0"},
}  # fmt: skip


def rows(library: str, method: str, errors: list[float], seconds: list[float], problem: str = "p") -> list[Row]:
    return [
        Row(problem, library, method, "forward", 10.0**-k, 10.0**-k, error=error, seconds=s)
        for k, (error, s) in enumerate(zip(errors, seconds, strict=True), 4)
    ]


def test_times_are_interpolated_as_the_diagrams_lines_are_drawn() -> None:
    found = rows("a", "m", [1e-4, 1e-6, 1e-8], [1.0, 10.0, 1000.0])
    assert time_to(found, 1e-5) == pytest.approx(math.sqrt(10.0))
    assert time_to(found, 1e-7) == pytest.approx(100.0)
    assert time_to(found, 1e-2) == pytest.approx(1.0)  # the loosest tolerance is better than asked for
    assert time_to(found, 1e-9) is None
    assert time_to([Row("p", "a", "m", "forward", 1e-4, 1e-4, status="failed")], 1e-2) is None
    # Where a tighter tolerance is both better and faster its time counts.
    assert time_to(rows("a", "m", [1e-3, 1e-8], [5.0, 2.0]), 1e-3) == pytest.approx(2.0)


def test_the_table_says_who_wins_and_where_pyjode_loses() -> None:
    results = Results(
        (
            *rows("pyjode", "slow", [1e-5, 1e-7], [1.0, 4.0]),
            *rows("pyjode", "fast", [1e-6], [0.001]),
            *rows("other", "x", [1e-6, 1e-9], [0.002, 0.004]),
            *rows("pyjode", "fast", [1e-6, 1e-9], [0.006, 0.008], "q"),
            *rows("other", "x", [1e-6], [0.003], "q"),
            *rows("nobody", "x", [1e-2], [0.003], "r"),
        ),
        {},
        MACHINE,
    )
    first, second, *_ = standings(results)
    assert first.ours is not None and (first.ours.method, first.ratio) == ("fast", pytest.approx(2.0))
    assert second.ours is None and second.peer is not None and second.ratio is None
    text = markdown(results)
    lines = {line.split(" | ")[0]: line for line in text.splitlines() if line.startswith("| ")}
    assert lines["| p"] == (
        "| p | fast 1 ms | other x 2 ms | 2x | not reached | other x 4 ms | **pyjode loses here** |"
    )
    assert lines["| q"] == (
        "| q | fast 6 ms | other x 3 ms | 0.5x, **pyjode loses here** | fast 8 ms | not reached | **no other** |"
    )
    assert lines["| r"].count("not reached") == 4
    assert text.startswith("Measured 2026-11-25 12:00: a processor, 2 cores") and "processor time" in text


def test_the_overview_has_a_panel_a_problem_and_a_line_a_library() -> None:
    results = Results(
        tuple(
            row
            for problem in ("p", "q", "r", "s", "t")
            for library in ("one", "two")
            for row in rows(library, "m", [1e-4, 1e-8], [0.1, 0.2], problem)
        ),
        {},
        MACHINE,
    )
    figure = overview(results, columns=3)
    shown = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in shown] == ["p", "q", "r", "s", "t"]
    for axes in shown:
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
        assert [line.get_label() for line in axes.lines] == ["one", "two"]
        assert len({line.get_marker() for line in axes.lines}) == 2


def test_processor_time_is_not_lengthened_by_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    from pyjode.compare.adapters import scipy

    solve = scipy._ScipySolver.solve

    def slowly(self: object, rtol: float, atol: float) -> object:
        time.sleep(0.2)
        return solve(self, rtol, atol)

    monkeypatch.setattr(scipy._ScipySolver, "solve", slowly)
    problem: Problem = find_problem("lotka-volterra")
    for clock, waits in (("wall", True), ("cpu", False)):
        (row,) = compare(problem, methods=["scipy:RK45"], modes=["forward"], tolerances=(1e-3,), repeats=1,
                         clock=clock).rows  # fmt: skip
        assert row.seconds is not None and (row.seconds >= 0.2) is waits
