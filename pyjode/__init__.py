"""pyjode: DifferentialEquations.jl's solvers and SciMLSensitivity's adjoints as differentiable PyTorch functions."""

from pyjode._version import __version__
from pyjode.engines import set_default_engine
from pyjode.errors import EngineUnavailable, InputError, PyjodeError, SolverError, UnsupportedError
from pyjode.methods import methods
from pyjode.neural import NeuralODE
from pyjode.odeint import odeint, odeint_adjoint
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
    "BacksolveAdjoint",
    "DiscreteAdjoint",
    "EngineUnavailable",
    "GaussAdjoint",
    "GaussKronrodAdjoint",
    "InputError",
    "InterpolatingAdjoint",
    "NeuralODE",
    "ODEProblem",
    "PyjodeError",
    "QuadratureAdjoint",
    "Solution",
    "SolverError",
    "UnsupportedError",
    "__version__",
    "explain",
    "methods",
    "odeint",
    "odeint_adjoint",
    "set_default_engine",
    "solve",
]
