"""``pyjode compare``."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyjode.compare.plot import save_plots
from pyjode.compare.problem import Problem
from pyjode.compare.problems import find_problem, find_problems, problem_names
from pyjode.compare.results import Results
from pyjode.compare.run import MODES, TOLERANCES, Say, compare
from pyjode.compare.summary import markdown
from pyjode.errors import InputError, UnsupportedError


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    if args.list:
        for name in problem_names():
            problem = find_problem(name)
            print(f"{name:16} {problem.y0.size:3} states  {'stiff' if problem.stiff else '     '}  {problem.source}")
        return 0
    try:
        from rich.console import Console
    except ImportError:
        raise UnsupportedError('pyjode compare needs rich and matplotlib: pip install "pyjode[compare]"') from None
    if not args.keep_threads:
        import torch

        torch.set_num_threads(1)  # small problems are slower, and times less steady, on several
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    folder = None if args.out is None else Path(args.out)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    if args.again:
        whole = _stored(folder)
        for table in whole.tables():
            console.print(table)
    else:
        whole = _solve(args, console, folder)
    if folder is not None:
        whole.to_csv(folder / "results.csv")
        written = [folder / "results.json", folder / "results.csv", *save_plots(whole, folder)]
        console.print(f"written: {', '.join(map(str, written))}", soft_wrap=True)
    if args.markdown is not None:
        Path(args.markdown).write_text(markdown(whole))
        console.print(f"written: {args.markdown}", soft_wrap=True)
    return 0 if any(row.ok for row in whole.rows) else 1


def _solve(args: argparse.Namespace, console: Any, folder: Path | None) -> Results:
    problems = [p for given in args.problem for p in _problems(given)]
    whole: Results | None = None
    for problem in problems:
        with _progress(console) as say:
            results = compare(
                problem,
                libraries=args.library,
                methods=args.method,
                tolerances=args.tolerance or TOLERANCES,
                modes=[args.mode] if args.mode else MODES,
                repeats=args.repeats,
                limit_s=args.time_limit,
                clock=args.clock,
                progress=say,
            )
        for table in results.tables():
            console.print(table)
        whole = results if whole is None else whole.followed_by(results)
        if folder is not None:
            whole.to_json(folder / "results.json")  # after each problem: a long run may be interrupted
    if whole is None:
        raise InputError("--problem names no problem")
    return whole


def _stored(folder: Path | None) -> Results:
    if folder is None or not (folder / "results.json").is_file():
        raise InputError("--again goes with --out DIR, where a run before wrote its results.json")
    return Results.from_json(folder / "results.json")


@contextlib.contextmanager
def _progress(console: Any) -> Iterator[Say]:
    if not console.is_terminal:
        yield lambda line: print(line, file=sys.stderr, flush=True)
        return
    with console.status("starting") as status:
        yield lambda line: status.update(line)


def _problems(given: str) -> list[Problem]:
    path, _, name = given.rpartition(":")
    if not path.endswith(".py"):
        return list(find_problems(given))
    if not Path(path).is_file():
        raise InputError(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location("pyjode_compare_problem", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = getattr(module, name, None)
    if not isinstance(found, Problem):
        raise InputError(f"{path} has no pyjode.compare.Problem named {name} (make one with torch_problem)")
    return [found]
