"""Together with diffeqpy: both run in one Julia session, whichever was imported first.

    from diffeqpy import ode
    import pyjode

    problem = ode.ODEProblem(f, [1.0, 0.0], (0.0, 1.0))       # f(u, p, t) or f(du, u, p, t), diffeqpy's way
    solution = pyjode.solve(problem, "Vern9", saveat=0.1)      # or ode.Vern9()
    solution.ys                                                # a tensor
    solution.julia                                             # diffeqpy's own solution object

    theirs = pyjode.diffeqpy.to_diffeqpy(pyjode.ODEProblem(g, y0, (0.0, 1.0)))   # g(t, y) in torch
    ode.solve(theirs, ode.Tsit5())
    pyjode.diffeqpy.from_diffeqpy(ode.solve(theirs, ode.Tsit5()))                # pyjode's Solution of it

A Julia function, or an ``ODEFunction``, is also accepted as the ``f`` of ``pyjode.ODEProblem``. No gradients go through
any of these: for gradients write f in torch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyjode.errors import InputError
from pyjode.solution import Solution
from pyjode.solve import ODEProblem, tensors


def to_diffeqpy(problem: ODEProblem) -> Any:
    """An ``ODEProblem`` of Julia that calls the problem's f, without a tape.

    Args:
        problem: its y0 is one tensor.

    Raises:
        InputError: y0 is a nest.
        EngineUnavailable: no Julia.
    """
    from pyjode.engines.julia.diffeqpy import problem_to_julia

    if not isinstance(problem.y0, Tensor):
        raise InputError("diffeqpy's states are arrays: y0 must be one tensor, not a nest")
    tspan = (float(torch.as_tensor(problem.tspan[0])), float(torch.as_tensor(problem.tspan[1])))
    return problem_to_julia(problem.f, problem.y0, tspan, tensors(problem.params, "params") or ())


def from_diffeqpy(solution: Any) -> Solution:
    """pyjode's :class:`~pyjode.Solution` of one of diffeqpy's; the numbers are copied, ``.julia`` is the original.

    Raises:
        InputError: it is no ODE solution of Julia.
    """
    from pyjode.engines.julia.diffeqpy import from_julia

    return from_julia(solution)


def load_ode() -> Any:
    """``diffeqpy.ode`` in pyjode's Julia, also where ``julia`` is not in PATH (diffeqpy would download one).

    Raises:
        EngineUnavailable: no Julia, or diffeqpy is not installed.
    """
    from pyjode.engines.julia import diffeqpy

    return diffeqpy.load_ode()
