"""Right-hand sides bound to Julia, used again from solve to solve.

Binding costs tens of microseconds and a solution needs its own until its last backward pass, so those that no solution
holds any more wait for the next.
"""

from __future__ import annotations

import weakref
from collections import deque
from typing import Any

from torch import Tensor

from pyjode.engines.julia.boundary import gate
from pyjode.engines.julia.callbacks import Callbacks
from pyjode.engines.julia.native import NativeFunction, NativePool
from pyjode.engines.julia.source import SourceFunction, SourcePool
from pyjode.julia_function import JuliaRHS
from pyjode.rhs.interface import RightHandSide
from pyjode.rhs.native import NativeRHS

_KEPT = 4


Function = Callbacks | NativeFunction | SourceFunction


def take(rhs: RightHandSide, params: tuple[Tensor, ...], sign: int, with_jac: bool, pool: bool = False) -> Function:
    """``rhs`` bound to Julia, the caller's alone until it is given back.

    Args:
        rhs: the right-hand side.
        params: values to use for ``rhs.params``.
        sign: -1 to integrate backwards in time.
        with_jac: whether the method asks for Jacobians.
        pool: whether several threads are to use it at once, where it calls no Python.
    """
    if not isinstance(rhs, NativeRHS):
        params = tuple(p.detach() for p in params)
    function: Function
    try:
        # One atomic step: solves come from many threads, finalizers at any time.
        function = _free(rhs, sign, with_jac, pool).pop()
        function.params = params
    except IndexError:
        if isinstance(rhs, NativeRHS):
            function = (NativePool if pool else NativeFunction)(rhs, params, sign, with_jac)
        elif isinstance(rhs, JuliaRHS):
            function = (SourcePool if pool else SourceFunction)(rhs, params, sign, with_jac)
        else:
            function = Callbacks(rhs, params, sign, with_jac)
        weakref.finalize(function, gate().release, function.handle)
    return function


def give_back(rhs: RightHandSide, function: Function, sign: int, with_jac: bool, pool: bool = False) -> None:
    """The function is free for the next solve. Safe in finalizers."""
    _free(rhs, sign, with_jac, pool).append(function)


def _free(rhs: RightHandSide, sign: int, with_jac: bool, pool: bool) -> deque[Any]:
    # Kept on the right-hand side itself: they refer to it, and must not outlive it.
    pools: dict[tuple[int, bool, bool], deque[Any]] = vars(rhs).setdefault("_free_functions", {})
    return pools.setdefault((sign, with_jac, pool), deque(maxlen=_KEPT))
