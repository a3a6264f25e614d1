"""Tells a user which way f goes to the solver, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pyjode.door import door
from pyjode.rhs.build import build_rhs
from pyjode.rhs.closure import module_params, name_of
from pyjode.rhs.graphs import operator_counts
from pyjode.rhs.native import NativeRHS
from pyjode.rhs.reach import Reach
from pyjode.rhs.trace import TracedRHS


@dataclass(frozen=True)
class Explanation:
    """What pyjode does with a right-hand side.

    Attributes:
        way: ``"native"``, ``"traced"`` or ``"eager"``.
        reason: why this way.
        parameters: name and number of entries of each parameter of f's modules.
        closed_over: the same for the other tensors that get gradients.
        depends_on_time: whether f uses t (``True`` when unknown).
        operators: how often each torch operator is in the graph; empty when there is none.
    """

    way: str
    reason: str
    parameters: dict[str, int]
    closed_over: dict[str, int]
    depends_on_time: bool
    operators: dict[str, int]

    def __str__(self) -> str:
        lines = [f"way: {self.way}", f"reason: {self.reason}"]
        for title, tensors in (("parameters", self.parameters), ("closed-over tensors", self.closed_over)):
            lines.append(f"{title}: {len(tensors)} ({sum(tensors.values())} entries)")
            lines += [f"  {name}: {count}" for name, count in tensors.items()]
        if not self.depends_on_time:
            lines.append("f does not use t")
        if self.operators:
            calls = ", ".join(f"{name} x{count}" for name, count in self.operators.items())
            lines.append(f"operators: {sum(self.operators.values())} ({calls})")
        return "\n".join(lines)


@door
def explain(
    f: Callable[[Tensor, Any], Any],
    y0: Any,
    t0: float = 0.0,
    *,
    params: Iterable[Any] | nn.Module | None = None,
) -> Explanation:
    """Which way ``f`` goes to the solver for states like ``y0``, and why.

    Args:
        f: the right-hand side, f(t, y).
        y0: tensor or nest of tensors.
        t0: a time at which f can be evaluated.
        params: as in a solve.

    Raises:
        InputError: y0, params or what f returns cannot be used.
        Exception: whatever f raises.
    """
    rhs = build_rhs(f, y0, t0, params=params)
    reach = Reach(f)
    of_modules = {id(p) for p in module_params(reach)}
    parameters: dict[str, int] = {}
    closed_over: dict[str, int] = {}
    for i, p in enumerate(rhs.params):
        group = parameters if id(p) in of_modules else closed_over
        name = name_of(p, reach)
        group[name if name not in group else f"{name} ({i})"] = p.numel()
    traced = rhs.traced if isinstance(rhs, NativeRHS) else rhs
    operators = operator_counts(traced.forward_graph) if isinstance(traced, TracedRHS) else {}
    return Explanation(rhs.way, rhs.reason, parameters, closed_over, rhs.depends_on_time, operators)
