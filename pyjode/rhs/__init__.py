"""How the user's f(t, y) reaches a solver: as graphs traced by torch, or as f itself."""

from pyjode.rhs.build import build_rhs, remembered_rhs
from pyjode.rhs.explain import Explanation, explain
from pyjode.rhs.interface import RightHandSide

__all__ = ["Explanation", "RightHandSide", "build_rhs", "explain", "remembered_rhs"]
