"""How far a solve is: a bar on the terminal or in the notebook, or a function of the user's."""

from __future__ import annotations

import contextlib
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from pyjode.errors import InputError

Report = Callable[[float], None]
"""Gets the time a solver has reached."""

INTERVAL = 0.05
"""Seconds between two reports, at least; Julia looks up from its work as often."""


@contextlib.contextmanager
def reporting(progress: bool | Callable[[float], Any], t0: float, t1: float, name: str) -> Iterator[Report | None]:
    """What an engine is to call with the times it reaches; ``None`` where nobody wants to know.

    Args:
        progress: ``True`` for a bar (tqdm's where that is installed), or a function that gets the fraction of the time
            span done, from 0 to 1, never less than before.
        t0, t1: the time span.
        name: what the bar is called.

    Raises:
        InputError: ``progress`` is neither.
    """
    if progress is False or progress is None:
        yield None
        return
    if progress is not True and not callable(progress):
        raise InputError(f"progress is {progress!r}; it is True, False or a function of the fraction done")
    show: Callable[[float], Any] = _Bar(name) if progress is True else progress
    done, last = 0.0, 0.0

    def report(t: float) -> None:
        nonlocal done, last
        now = time.monotonic()
        fraction = (t - t0) / (t1 - t0)
        # A step may be tried beyond the end, and tried again from further back.
        if now - last < INTERVAL or not done < fraction <= 1.0:
            return
        done, last = fraction, now
        show(fraction)

    try:
        yield report
        if done < 1.0:
            show(1.0)
    finally:
        if isinstance(show, _Bar):
            show.close()


class _Bar:
    """tqdm's bar, for notebooks too; without tqdm one line of text that is written over."""

    def __init__(self, name: str):
        self._name = name
        self._bar = None
        self._written = ""
        try:
            with warnings.catch_warnings():
                # In a notebook without ipywidgets tqdm warns and takes text, which is what is wanted there.
                warnings.simplefilter("ignore")
                from tqdm.auto import tqdm

                layout = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
                self._bar = tqdm(total=1.0, desc=name, bar_format=layout, leave=True)
        except ImportError:
            pass

    def __call__(self, fraction: float) -> None:
        if self._bar is not None:
            self._bar.update(fraction - self._bar.n)
            return
        text = f"\r{self._name} {fraction:4.0%}"
        if text != self._written:
            self._written = text
            print(text, end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._written:
            print(file=sys.stderr, flush=True)
