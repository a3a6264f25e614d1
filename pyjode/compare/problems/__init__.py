"""The standard problems by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pyjode.compare.problem import Problem
from pyjode.compare.problems import classic, detest, networks, stiff
from pyjode.errors import InputError
from pyjode.methods import nearest

_MAKERS: dict[str, Callable[[], Problem]] = {
    **classic.PROBLEMS,
    **stiff.PROBLEMS,
    **networks.PROBLEMS,
    **detest.PROBLEMS,
}


def problem_names() -> tuple[str, ...]:
    """Names of the standard problems."""
    return tuple(_MAKERS)


def find_problem(name: str) -> Problem:
    """The standard problem of that name; DETEST's are ``A1`` to ``E5``.

    Raises:
        InputError: there is none; the message names the nearest.
    """
    key = name if name in _MAKERS else name.lower()
    if key not in _MAKERS:
        raise InputError(f"There is no problem {name!r}{nearest(name, _MAKERS)} There are {', '.join(_MAKERS)}.")
    return _MAKERS[key]()


def find_problems(names: str) -> Iterator[Problem]:
    """The problems of a list separated by commas; ``all``, ``detest``, ``stiff`` and ``nonstiff`` are groups."""
    for name in names.split(","):
        match name.strip():
            case "all":
                chosen = list(_MAKERS)
            case "detest":
                chosen = list(detest.PROBLEMS)
            case "stiff":
                chosen = list(stiff.PROBLEMS)
            case "nonstiff":
                chosen = [*classic.PROBLEMS, *networks.PROBLEMS]
            case one:
                chosen = [one]
        yield from map(find_problem, chosen)
