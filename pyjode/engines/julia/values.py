"""Values of Julia that users hand over, and the options of their solves. Light: nothing here starts Julia."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Options:
    """What a solve of a Julia problem can be given.

    Attributes:
        saveat: times, or spacing; ``None``: every step.
        rtol, atol: tolerances.
        dt: (first) step size.
        adaptive: whether steps adapt; ``None``: as the method does.
        dtmin, dtmax: bounds of a step.
        maxiters: most steps.
    """

    saveat: Any
    rtol: Any
    atol: Any
    dt: float | None = None
    adaptive: bool | None = None
    dtmin: float | None = None
    dtmax: float | None = None
    maxiters: int = 100_000

    def as_julia(self) -> dict[str, Any]:
        """By the names of SciML."""
        given = {
            "saveat": self.saveat.detach().numpy() if isinstance(self.saveat, Tensor) else self.saveat,
            "reltol": self.rtol,
            "abstol": self.atol,
            "dt": self.dt,
            "adaptive": self.adaptive,
            "dtmin": self.dtmin,
            "dtmax": self.dtmax,
            "maxiters": self.maxiters,
        }
        return {
            name: value.numpy() if isinstance(value, Tensor) else value
            for name, value in given.items()
            if value is not None
        }


def is_julia(value: Any) -> bool:
    """Whether it is one of juliacall's values. Cheap: nothing is imported for it."""
    juliacall = sys.modules.get("juliacall")
    return juliacall is not None and isinstance(value, juliacall.AnyValue)
