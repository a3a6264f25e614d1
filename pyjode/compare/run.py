"""Run one problem on several libraries: errors, times, evaluations."""

from __future__ import annotations

import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pyjode.compare.adapters import Adapter, Solver, adapters, find_adapter
from pyjode.compare.problem import Problem, torch_problem
from pyjode.compare.problems import find_problem
from pyjode.compare.reference import Reference, reference
from pyjode.compare.results import Results, Row
from pyjode.errors import InputError

TOLERANCES = (1e-3, 1e-5, 1e-7, 1e-9)
MODES = ("forward", "gradient")
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
_TIMING_S = 2.0
"""Seconds after which a slow method is timed no further at a tolerance."""
_IN_A_ROW, _UNCOUNTED, _SHORT_S = 10, 4, 0.05
"""How many calls are made in a row, how many of them are not counted, and how many seconds they are shorter than."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class _Entry:
    adapter: Adapter
    method: str
    solver: Solver


def compare(
    problem: str | Problem | nn.Module | Callable[[Tensor, Tensor], Tensor],
    y0: Tensor | None = None,
    ts: Tensor | Sequence[float] | None = None,
    *,
    libraries: Iterable[str] | None = None,
    methods: Iterable[str] | None = None,
    tolerances: Sequence[float] = TOLERANCES,
    modes: Sequence[str] = MODES,
    stiff: bool = False,
    repeats: int = 7,
    limit_s: float = 20.0,
    clock: str = "wall",
    progress: Say | None = None,
) -> Results:
    """The same problem on several solver libraries, each at a ladder of tolerances.

    Args:
        problem: a name (see :func:`problem_names`), a :class:`Problem`, or your own ``f(t, y)`` in torch with ``y0``
            and ``ts``.
        y0: with your own f: initial state, one tensor, float32 or float64.
        ts: with your own f: times to compare at, shape ``(T,)``, increasing, after t = 0.
        libraries: names of adapters; by default all that are registered. One that is not installed is a row that says
            so.
        methods: ``"library:method"`` pairs to run instead of each library's own choice.
        tolerances: relative ones; the absolute ones are these times the problem's ``atol``.
        modes: ``"forward"``, ``"gradient"`` or both.
        stiff: with your own f: whether to try the stiff methods.
        repeats: rounds of timed calls, forwards and backwards in turn; fewer where calls are slow.
        limit_s: a method stops at a tolerance that takes it longer than this, in processor time of its thread, so that
            a busy machine stops nothing; tighter ones are then left out.
        clock: what times are: ``"wall"``, or ``"cpu"`` for this process's processor time, all its threads together,
            which other work on a busy machine does not lengthen.
        progress: called with a line for each thing started.

    Returns:
        The :class:`Results`; nothing a library does raises.

    Raises:
        InputError: no such problem, library, mode, clock; or your own f without y0 and ts.
    """
    chosen = _problem(problem, y0, ts, stiff)
    for mode in modes:
        if mode not in MODES:
            raise InputError(f"there is no mode {mode!r}: forward, gradient")
    if clock not in CLOCKS:
        raise InputError(f"there is no clock {clock!r}: {', '.join(CLOCKS)}")
    if not tolerances or not all(t > 0 for t in tolerances):
        raise InputError(f"tolerances must be positive numbers, got {tuple(tolerances)}")
    wanted = _wanted(libraries, methods)
    say = progress or (lambda line: None)
    rows: list[Row] = []
    references: dict[str, str] = {}
    for mode in modes:
        say(f"{chosen.name}, {mode}: reference")
        try:
            truth = reference(chosen, gradient=mode == "gradient")
        except Exception as error:
            rows.append(_no_numbers(chosen, "reference", "", mode, _message(error)))
            continue
        references[f"{chosen.name}, {mode}"] = truth.by
        entries, failures = _prepare(chosen, mode, wanted, truth, limit_s)
        solved = _ladder(
            chosen, mode, entries, truth, sorted(tolerances, reverse=True), repeats, limit_s, CLOCKS[clock], say
        )
        rows += [*solved, *failures]
    return Results(tuple(rows), references, machine(adapter for adapter, _ in wanted) | {"clock": clock})


def machine(libraries: Iterable[Adapter]) -> dict[str, Any]:
    """What the figures of a comparison depend on."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "libraries": {a.name: a.version() for a in libraries if a.unavailable() is None},
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _problem(problem: Any, y0: Tensor | None, ts: Any, stiff: bool) -> Problem:
    if isinstance(problem, str):
        return find_problem(problem)
    if isinstance(problem, Problem):
        return problem
    if y0 is None or ts is None:
        raise InputError("compare(f, y0, ts): your own f needs an initial state and the times to compare at")
    return torch_problem(problem, y0, torch.as_tensor(ts), stiff=stiff)


def _wanted(
    libraries: Iterable[str] | None, methods: Iterable[str] | None
) -> list[tuple[Adapter, tuple[str, ...] | None]]:
    pairs = list(methods or ())
    for pair in pairs:
        if ":" not in pair:
            raise InputError(f"methods are library:method, such as pyjode:Vern9; got {pair!r}")
    given: dict[str, list[str]] = {}
    for pair in pairs:
        library, _, method = pair.partition(":")
        given.setdefault(library, []).append(method)
    names = list(libraries) if libraries is not None else list(given or adapters())
    names += [library for library in given if library not in names]
    return [(find_adapter(name), tuple(given[name]) if name in given else None) for name in names]


def _prepare(
    problem: Problem,
    mode: str,
    wanted: list[tuple[Adapter, tuple[str, ...] | None]],
    truth: Reference,
    limit_s: float,
) -> tuple[list[_Entry], list[Row]]:
    entries, failures = [], []
    for adapter, methods in wanted:
        reason = adapter.unavailable()
        if reason is None and mode == "gradient" and not adapter.gradients:
            reason = "no gradients"
        if reason is not None:
            failures.append(_no_numbers(problem, adapter.name, "", mode, reason))
            continue
        for method in methods or adapter.methods(problem, mode == "gradient"):
            try:
                solver = adapter.prepare(problem, method, truth.loss if mode == "gradient" else None, limit_s)
            except Exception as error:
                failures.append(_no_numbers(problem, adapter.name, method, mode, _message(error)))
            else:
                entries.append(_Entry(adapter, method, solver))
    return entries, failures


def _ladder(
    problem: Problem,
    mode: str,
    entries: list[_Entry],
    truth: Reference,
    tolerances: Sequence[float],
    repeats: int,
    limit_s: float,
    clock: Callable[[], float],
    say: Say,
) -> list[Row]:
    found: dict[int, list[Row]] = {i: [] for i in range(len(entries))}
    running = list(range(len(entries)))
    for rtol in tolerances:
        atol = rtol * problem.atol
        going = []
        for i in running:
            entry = entries[i]
            say(f"{problem.name}, {mode}, rtol {rtol:.0e}: {entry.adapter.name} {entry.method}")
            row = _first(problem, mode, entry, truth, rtol, atol, clock)
            found[i].append(row)
            if row.ok:
                going.append(i)
        say(f"{problem.name}, {mode}, rtol {rtol:.0e}: timing")
        for i, times in _rounds([entries[i].solver for i in going], rtol, atol, repeats, limit_s, clock).items():
            at = going[i]
            if times:
                found[at][-1] = replace(found[at][-1], seconds=statistics.median(times), calls=len(times))
        running = [i for i in going if (found[i][-1].seconds or 0) < limit_s]
    return [row for rows in found.values() for row in rows]


def _first(
    problem: Problem,
    mode: str,
    entry: _Entry,
    truth: Reference,
    rtol: float,
    atol: float,
    clock: Callable[[], float],
) -> Row:
    row = Row(problem.name, entry.adapter.name, entry.method, mode, rtol, atol)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            start = clock()
            raw = entry.solver.solve(rtol, atol)
            first = clock() - start
            outcome = entry.solver.outcome(raw)
    except Exception as error:
        return replace(row, status=_message(error))
    if outcome.ys.shape != truth.ys.shape:
        return replace(row, status=f"gave shape {outcome.ys.shape}, not {truth.ys.shape}")
    gradient_error = None
    if mode == "gradient":
        if outcome.gradient is None:
            return replace(row, status="gave no gradient")
        gradient_error = truth.gradient_error(outcome.gradient)
    return replace(
        row,
        error=truth.error(outcome.ys),
        gradient_error=gradient_error,
        seconds=first,
        first_seconds=first,
        nfe=outcome.nfe,
        steps=outcome.steps,
        calls=1,
    )


def _rounds(
    solvers: list[Solver], rtol: float, atol: float, repeats: int, limit_s: float, clock: Callable[[], float]
) -> dict[int, list[float]]:
    """Times of each solver's calls: in rounds, so that all see the same of a busy machine, in both orders.

    Short calls are made several in a row, as training does, and the first of them are not counted: they find the
    processor's caches full of the other libraries.
    """
    times: dict[int, list[float]] = {i: [] for i in range(len(solvers))}
    for turn in range(repeats):
        order = range(len(solvers)) if turn % 2 == 0 else range(len(solvers) - 1, -1, -1)
        for i in order:
            if sum(times[i]) > min(limit_s / 4, _TIMING_S):
                continue
            try:
                in_a_row: list[float] = []
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    while len(in_a_row) < _IN_A_ROW and all(x < _SHORT_S for x in in_a_row):
                        start = clock()
                        solvers[i].solve(rtol, atol)
                        in_a_row.append(clock() - start)
                times[i] += in_a_row[min(_UNCOUNTED, len(in_a_row) - 1) :]
            except Exception:
                break
    return times


def _no_numbers(problem: Problem, library: str, method: str, mode: str, status: str) -> Row:
    return Row(problem.name, library, method, mode, 0.0, 0.0, status=status)


def _message(error: BaseException) -> str:
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return first if len(first) <= 150 else f"{first[:147]}..."
