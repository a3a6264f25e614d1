"""pyjode: DifferentialEquations.jl's solvers and SciMLSensitivity's adjoints as differentiable PyTorch functions.

Names are imported when they are first used, so that the command line and ``pyjode.__version__`` need no torch. A new
public name goes into three places here: the import, ``__all__`` and ``_HOMES``; a test compares them.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

from pyjode._version import __version__

if TYPE_CHECKING:
    from pyjode.engines import set_default_engine
    from pyjode.errors import (
        EngineUnavailable,
        InputError,
        JuliaSourceError,
        PyjodeError,
        SolverError,
        UnsupportedError,
    )
    from pyjode.events import Event
    from pyjode.flow import CNF
    from pyjode.integrals import WithIntegrals
    from pyjode.julia_function import JuliaFunction
    from pyjode.methods import methods
    from pyjode.neural import NeuralODE
    from pyjode.odeint import odeint, odeint_adjoint
    from pyjode.odeint_dense import DenseOutput, odeint_dense
    from pyjode.odeint_event import odeint_event
    from pyjode.rhs.explain import explain
    from pyjode.sensealgs import (
        BacksolveAdjoint,
        DiscreteAdjoint,
        GaussAdjoint,
        GaussKronrodAdjoint,
        InterpolatingAdjoint,
        QuadratureAdjoint,
    )
    from pyjode.solution import Solution
    from pyjode.solve import ODEProblem, solve

__all__ = [
    "CNF",
    "BacksolveAdjoint",
    "DenseOutput",
    "DiscreteAdjoint",
    "EngineUnavailable",
    "Event",
    "GaussAdjoint",
    "GaussKronrodAdjoint",
    "InputError",
    "InterpolatingAdjoint",
    "JuliaFunction",
    "JuliaSourceError",
    "NeuralODE",
    "ODEProblem",
    "PyjodeError",
    "QuadratureAdjoint",
    "Solution",
    "SolverError",
    "UnsupportedError",
    "WithIntegrals",
    "__version__",
    "explain",
    "methods",
    "odeint",
    "odeint_adjoint",
    "odeint_dense",
    "odeint_event",
    "set_default_engine",
    "solve",
]

_HOMES = {
    "engines": ("set_default_engine",),
    "errors": ("EngineUnavailable", "InputError", "JuliaSourceError", "PyjodeError", "SolverError", "UnsupportedError"),
    "events": ("Event",),
    "flow": ("CNF",),
    "integrals": ("WithIntegrals",),
    "julia_function": ("JuliaFunction",),
    "methods": ("methods",),
    "neural": ("NeuralODE",),
    "odeint": ("odeint", "odeint_adjoint"),
    "odeint_event": ("odeint_event",),
    "odeint_dense": ("DenseOutput", "odeint_dense"),
    "rhs.explain": ("explain",),
    "sensealgs": (
        "BacksolveAdjoint",
        "DiscreteAdjoint",
        "GaussAdjoint",
        "GaussKronrodAdjoint",
        "InterpolatingAdjoint",
        "QuadratureAdjoint",
    ),
    "solution": ("Solution",),
    "solve": ("ODEProblem", "solve"),
}
_HOME = {name: f"pyjode.{module}" for module, names in _HOMES.items() for name in names}


class _Package(types.ModuleType):
    """The package, where a submodule (``pyjode.solve``) never hides the function of its name."""

    def __getattr__(self, name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(_HOME[name]), name)
        setattr(self, name, value)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        # The import system sets each submodule as an attribute of its package.
        if isinstance(value, types.ModuleType) and _HOME.get(name) == value.__name__:
            value = getattr(value, name)
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Package
