"""Engines: who does the solving. ``"julia"`` is the product; ``"torchdiffeq"`` is what runs without Julia."""

from __future__ import annotations

import functools
import os
import warnings
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from pyjode.errors import EngineUnavailable, InputError

if TYPE_CHECKING:  # `pyjode setup` passes here, and needs no torch
    from jaxtyping import Float, Float64
    from torch import Tensor

    from pyjode.engines.crossings import Crossings
    from pyjode.engines.request import Answer, IndependentAnswer, Request
    from pyjode.progress import Report

__all__ = ["ENGINES", "Engine", "choose_engine", "set_default_engine"]

ENGINES = ("auto", "julia", "torchdiffeq")

_default: str | None = None


@runtime_checkable
class Engine(Protocol):
    """What solves a :class:`~pyjode.engines.request.Request`."""

    name: str

    def solve(
        self, request: Request, u0: Float[Tensor, " *shape"], ts: Float64[Tensor, " T"], saved: slice = ...
    ) -> Answer:
        """Solve from ``u0`` at ``ts[0]`` to the end of ``ts`` (``(T,)``, float64, strictly monotonic).

        The answer has the states at ``ts[saved]``, by default at all of ``ts``, differentiable in ``u0``, ``ts`` and
        the request's parameters.

        Args:
            u0: the flat state, ``(n,)``; or a state that is one real tensor as it is, without options: reshaping and
                slicing are nodes of the autograd graph, and each takes as long as a short solve's step.
        """
        ...

    def solve_independent(
        self, request: Request, u0: Float[Tensor, "B n"], ts: Float64[Tensor, "B T"]
    ) -> IndependentAnswer:
        """Solve B problems that share f, each from its row of ``u0`` at its row of ``ts``, with steps of its own.

        The request's layout is that of one sample. Differentiable as :meth:`solve`.
        """
        ...

    def watched(self, report: Report | None) -> AbstractContextManager[None]:
        """While it lasts, solves call ``report`` with the times they reach, now and then."""
        ...

    def solve_until(
        self, request: Request, u0: Float[Tensor, " n"], ts: Float64[Tensor, " T"], crossings: Crossings
    ) -> tuple[Answer, tuple[int, ...]]:
        """:meth:`solve`, but only to the first crossing; ``ts[-1]`` may be infinite.

        Returns:
            The answer, and which values crossed zero. If any did, the answer's last time is the crossing's, those
            before it are the times of ``ts`` that it has passed; the states are differentiable with the crossing's
            time held fixed.
        """
        ...


def set_default_engine(name: str | None) -> None:
    """Choose the engine for calls that do not name one.

    Args:
        name: ``"auto"`` (Julia where it is set up, else torchdiffeq), ``"julia"``, ``"torchdiffeq"``, or ``None`` to
            go back to the environment variable ``PYJODE_ENGINE`` (``"auto"`` where that is not set).

    Raises:
        InputError: another name.
    """
    global _default
    _default = None if name is None else _checked(name, "set_default_engine")


def choose_engine(name: str | None) -> Engine:
    """The engine for one call.

    Args:
        name: as in :func:`set_default_engine`; ``None`` takes the default.

    Raises:
        InputError: an unknown name.
        EngineUnavailable: ``"julia"`` was asked for where Julia is not set up.
    """
    if name is not None:
        wanted = _checked(name, "engine")
    elif _default is not None:
        wanted = _default
    else:
        wanted = _checked(os.environ.get("PYJODE_ENGINE") or "auto", "PYJODE_ENGINE")
    if wanted == "torchdiffeq":
        return _embedded()
    from pyjode.engines.julia import config, runtime

    if runtime.started() or config.find_julia() is not None:
        return _julia()
    if wanted == "julia":
        raise EngineUnavailable(config.why_not())
    _warn_once(config.why_not())
    return _embedded()


def _checked(name: str, where: str) -> str:
    if name not in ENGINES:
        raise InputError(f"{where}: {name!r} is no engine; choose from {', '.join(map(repr, ENGINES))}")
    return name


@functools.cache
def _warn_once(reason: str) -> None:
    warnings.warn(
        f"pyjode uses its embedded engine (torchdiffeq) in this process: {reason} "
        'Silence this with engine="torchdiffeq" or PYJODE_ENGINE=torchdiffeq.',
        stacklevel=5,
    )


@functools.cache
def _embedded() -> Engine:
    from pyjode.engines.embedded import EmbeddedEngine

    return EmbeddedEngine()


@functools.cache
def _julia() -> Engine:
    from pyjode.engines.julia.engine import JuliaEngine

    return JuliaEngine()
