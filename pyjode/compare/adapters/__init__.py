"""One small class for each solver library."""

from pyjode.compare.adapters.base import Adapter, Outcome, OutOfTime, Solver, adapters, find_adapter, register
from pyjode.compare.adapters.diffeqpy import DiffeqpyAdapter
from pyjode.compare.adapters.diffrax import DiffraxAdapter
from pyjode.compare.adapters.pyjode import PyjodeAdapter
from pyjode.compare.adapters.scipy import ScipyAdapter
from pyjode.compare.adapters.torchdiffeq import TorchdiffeqAdapter
from pyjode.compare.adapters.torchode import TorchodeAdapter

__all__ = ["Adapter", "OutOfTime", "Outcome", "Solver", "adapters", "find_adapter", "register"]

for _adapter in (
    PyjodeAdapter(),
    TorchdiffeqAdapter(),
    TorchodeAdapter(),
    ScipyAdapter(),
    DiffeqpyAdapter(),
    DiffraxAdapter(),
):
    register(_adapter)
