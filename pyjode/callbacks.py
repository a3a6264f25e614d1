"""torchdiffeq's callbacks: methods of f that are called at each step of a solve."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import repeat
from typing import Any

from torch import Tensor, nn

from pyjode.methods import Method

NAMES = ("callback_step", "callback_accept_step", "callback_reject_step")
_ALL = (*NAMES, *(f"{name}_adjoint" for name in NAMES))
_NAMES = frozenset(_ALL)

Callback = Callable[[Tensor, Any, Tensor], object]


@dataclass(frozen=True)
class Callbacks:
    """Called with ``t0`` and ``dt`` (tensors of shape ``()``, float64) and ``y0``, a state or an adjoint state.

    Attributes:
        step: before each try of a step of ``dt`` from ``(t0, y0)``.
        accept: after a step was accepted.
        reject: after a step was rejected.
    """

    step: Callback | None = None
    accept: Callback | None = None
    reject: Callback | None = None

    def __bool__(self) -> bool:
        return not (self.step is None and self.accept is None and self.reject is None)


def has_callbacks(f: Any) -> bool:
    """Whether f has a callback, of the forward or the adjoint solve."""
    cls = type(f)
    if getattr(cls, "__getattr__", None) in (None, nn.Module.__getattr__) and not any(map(hasattr, repeat(cls), _ALL)):
        # Asking a module for what it has not takes microseconds, each time.
        held = vars(f) if hasattr(f, "__dict__") else {}
        if _NAMES.isdisjoint(held) and _NAMES.isdisjoint(held.get("_modules", ())):
            return False
    return any(getattr(f, name, None) is not None for name in _ALL)


def callbacks_of(f: Any, method: Method, *, adjoint: bool = False) -> Callbacks:
    """The callbacks of f that ``method`` makes; a warning about those it does not, as torchdiffeq gives.

    Source: torchdiffeq's further documentation, "Callbacks".
    """
    found = {name: getattr(f, f"{name}_adjoint" if adjoint else name, None) for name in NAMES}
    made = supported(method)
    if not adjoint:
        others = sorted(name for name in NAMES if found[name] is not None and name not in made)
        if others:
            warnings.warn(f"{method.name} does not make the callbacks {', '.join(others)}", UserWarning, stacklevel=4)
    return Callbacks(*(found[name] if name in made else None for name in NAMES))


def supported(method: Method) -> tuple[str, ...]:
    """The callbacks that a solve by ``method`` makes."""
    if method.name == "scipy_solver":
        return ()
    return NAMES if method.adaptive else NAMES[:1]
