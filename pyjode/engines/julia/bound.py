"""Right-hand sides bound to Julia, used again from solve to solve.

Binding costs tens of microseconds and a solution needs its own until its last backward pass, so those that no solution
holds any more wait for the next.
"""

from __future__ import annotations

import weakref
from collections import deque

from torch import Tensor

from pyjode.engines.julia.boundary import gate
from pyjode.engines.julia.callbacks import Callbacks
from pyjode.engines.julia.native import NativeFunction
from pyjode.rhs.interface import RightHandSide
from pyjode.rhs.native import NativeRHS

_KEPT = 4


def bound_function(
    owner: object, rhs: RightHandSide, params: tuple[Tensor, ...], sign: int, with_jac: bool
) -> Callbacks | NativeFunction:
    """``rhs`` bound to Julia, nobody else's until ``owner`` is collected.

    Args:
        owner: who uses it.
        rhs: the right-hand side.
        params: values to use for ``rhs.params``.
        sign: -1 to integrate backwards in time.
        with_jac: whether the method asks for Jacobians.
    """
    # Kept on the right-hand side itself: they refer to it, and must not outlive it.
    pools: dict[tuple[int, bool], deque[Callbacks | NativeFunction]] = vars(rhs).setdefault("_free_functions", {})
    free = pools.setdefault((sign, with_jac), deque(maxlen=_KEPT))
    try:
        # One atomic step: solves come from many threads, finalizers at any time.
        function = free.pop()
        function.params = params
    except IndexError:
        if isinstance(rhs, NativeRHS):
            function = NativeFunction(rhs, params, sign, with_jac)
        else:
            function = Callbacks(rhs, params, sign, with_jac)
        weakref.finalize(function, gate().release, function.handle)
    weakref.finalize(owner, free.append, function)
    return function
