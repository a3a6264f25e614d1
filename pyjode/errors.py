"""The exceptions pyjode raises: one family, so that one ``except PyjodeError`` catches them all.

An exception raised by the user's own right-hand side is never wrapped: it comes out as itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyjode.solution import Solution


class PyjodeError(Exception):
    """Base class of every exception pyjode raises on its own account."""


class InputError(PyjodeError, ValueError):
    """An argument cannot be used; the message names it, what it was and what is wanted.

    Also a ``ValueError``, which is what torchdiffeq's users catch.
    """


class JuliaSourceError(InputError):
    """The source of a :class:`~pyjode.JuliaFunction` does not parse, or raised an exception.

    Attributes:
        line: where in the source, from 1; 0 where it is no line in particular.
    """

    def __init__(self, message: str, line: int):
        super().__init__(f"the Julia source{f', line {line}' if line > 0 else ''}: {message}")
        self.line = line


class UnsupportedError(PyjodeError, NotImplementedError):
    """The chosen engine, method or sensealg cannot do what was asked; the message says which can."""


class EngineUnavailable(PyjodeError, RuntimeError):
    """The Julia engine was asked for and cannot be used here; the message names the command that helps."""


@dataclass(frozen=True)
class SolverFailure:
    """What is known about a solve that stopped early."""

    retcode: str
    """SciML return code, e.g. ``"MaxIters"``, ``"DtLessThanMin"``, ``"Unstable"``."""
    t: float
    """Time reached."""
    steps: int
    """Steps tried (accepted and rejected)."""


class SolverError(PyjodeError, RuntimeError):
    """A solve, or the adjoint solve of a backward pass, did not reach its end.

    Attributes:
        retcode: SciML return code (``"MaxIters"``, ``"DtLessThanMin"``, ``"Unstable"``, ...).
        t: time reached.
        steps: steps tried, accepted and rejected.
        solution: what was computed before the failure, where the engine has it, else ``None``.
    """

    def __init__(self, message: str, failure: SolverFailure, solution: Solution | None = None):
        super().__init__(message)
        self.retcode = failure.retcode
        self.t = failure.t
        self.steps = failure.steps
        self.solution = solution
