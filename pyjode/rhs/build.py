"""Chooses the way f goes to the solver, once per f and state layout, and remembers it."""

from __future__ import annotations

import contextlib
import threading
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pyjode.errors import InputError, UnsupportedError
from pyjode.rhs.closure import (
    check_no_overlap,
    explicit_params,
    graph_leaves,
    module_params,
    overlap,
    reached_leaves,
    unique,
)
from pyjode.rhs.eager import EagerRHS, Recorded, hooks_off, record
from pyjode.rhs.effects import Watch, static_reason
from pyjode.rhs.graphs import Untraceable, captured_tensors
from pyjode.rhs.guards import Guards
from pyjode.rhs.host import HostRHS
from pyjode.rhs.interface import RightHandSide
from pyjode.rhs.lower import NotLowerable
from pyjode.rhs.native import NativeRHS
from pyjode.rhs.reach import Reach
from pyjode.rhs.tape import plain_tape
from pyjode.rhs.trace import TracedRHS, trace_flat
from pyjode.state import StateLayout

_KEPT_PER_F = 8
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-8}


def build_rhs(
    f: Callable[[Tensor, Any], Any],
    y0: Any,
    t0: float | Tensor,
    *,
    params: Iterable[Any] | nn.Module | None = None,
    way: str = "auto",
    layout: StateLayout | None = None,
) -> RightHandSide:
    """The right-hand side of ``f`` for states like ``y0``.

    The first call for an f, layout and way calls f at most three times: once to trace it, once to check the graph
    against it (a traced f), or once to find its parameters (an eager f); modules with lazy parameters once more, first.
    Numbers that f counts up in attributes, cells or globals, and random generators, are put back to what they were;
    tensors that f changes in place (running statistics) and objects that it replaces are not.
    Later calls do not call f while everything the graph depends on is unchanged (guards.py).

    Args:
        f: any callable or module, ``f(t, y) -> dy/dt``; ``t`` is a tensor of shape ``()``. Or a HostRHS, which is
            its own.
        y0: tensor or nest of tensors.
        t0: initial time.
        params: tensors that need gradients besides those that are found, or a module.
        way: ``"auto"`` (the first that is possible of the following), ``"native"``, ``"traced"`` or ``"eager"``.
        layout: of ``y0``, where f returns something else than a derivative (condition.py).

    Raises:
        InputError: y0, params or what f returns cannot be used.
        UnsupportedError: the way asked for is impossible for this f; the message says why.
        Exception: whatever f raises.
    """
    if isinstance(f, HostRHS):
        return f
    if not callable(f):
        raise InputError(f"f is {type(f).__name__}, which cannot be called; it is a function or module f(t, y)")
    if way not in ("auto", *_WAYS):
        raise InputError(f"way={way!r}; it is one of 'auto', {', '.join(map(repr, _WAYS))}")
    layout = layout or StateLayout.of(y0)
    if hasattr(type(f), "__pyjode_rhs__"):  # f knows its own way (JuliaFunction)
        return f.__pyjode_rhs__(layout, y0, t0, params, way)  # type: ignore[attr-defined]
    with _LOCK:
        known = remembered_rhs(f, layout, params=params, way=way)
        if known is not None:
            return known
        explicit, entries = explicit_params(params), _entries_of(f)
        with torch.no_grad():
            t0 = t0.detach() if isinstance(t0, Tensor) else t0
            t = torch.tensor(float(t0), dtype=layout.dtype, device=layout.device)
            u = layout.flatten(y0).detach().clone()
        with plain_tape():
            entry = _Attempt(f, layout, t, u, explicit).build(way)
        key = _key(layout, way, explicit)
        entries[key] = entry
        entries.move_to_end(key)
        while len(entries) > _KEPT_PER_F:
            entries.popitem(last=False)
        return entry.rhs(f)


def remembered_rhs(
    f: Callable[[Tensor, Any], Any],
    layout: StateLayout,
    *,
    params: Iterable[Any] | nn.Module | None = None,
    way: str = "auto",
) -> RightHandSide | None:
    """What :func:`build_rhs` made of f for states of ``layout``, if that is what f still means."""
    explicit = explicit_params(params)
    with _LOCK:
        entries = _entries_of(f)
        key = _key(layout, way, explicit)
        entry = entries.get(key)
        if entry is None or not entry.guards.hold():
            return None
        entries.move_to_end(key)
        return entry.rhs(f)


def _key(layout: StateLayout, way: str, explicit: tuple[Tensor, ...]) -> Any:
    return layout, way, tuple(map(id, explicit))


@dataclass
class _Entry:
    """What is remembered. Not f, whose life it must not prolong: the eager way is remembered as a recipe."""

    guards: Guards
    recipe: Callable[[Callable[..., Any]], RightHandSide]
    explicit: tuple[Tensor, ...]
    """Kept so that their ids, part of the key, stay theirs."""
    _made: weakref.ref[RightHandSide] | None = None

    def rhs(self, f: Callable[..., Any]) -> RightHandSide:
        made = self._made() if self._made is not None else None
        if made is None:
            made = self.recipe(f)
            self._made = weakref.ref(made)
        return made


class _Refused(Exception):
    """A way is not possible for this f; the message says why."""


class _Attempt:
    """One choice of a way. What one way learns about f by calling it, the next one uses."""

    def __init__(self, f: Callable[..., Any], layout: StateLayout, t: Tensor, u: Tensor, explicit: tuple[Tensor, ...]):
        self.f = f
        self.layout = layout
        self.t, self.u = t, u
        self.explicit = explicit
        self.reach = Reach(f)
        if any(is_lazy(p) for _, m in self.reach.modules for p in m._parameters.values() if p is not None):
            with torch.no_grad():
                f(t.clone(), layout.unflatten(u.clone()))  # lazy parameters get their shapes
            self.reach = Reach(f)
        self.watches: list[Watch] = []
        self.recorded: Recorded | None = None
        self.graph_result: _Entry | _Refused | None = None

    def build(self, way: str) -> _Entry:
        """Tries the ways in order, or only the one asked for."""
        refusal = "asked for (way='eager')"
        for name in _WAYS if way == "auto" else (way,):
            try:
                return _WAYS[name](self, refusal)
            except _Refused as e:
                if way == name:
                    raise UnsupportedError(f"f cannot go to the solver the {name} way: {e}") from e
                refusal = str(e)
        raise AssertionError("the eager way refuses no f")

    def native(self, refusal: str) -> _Entry:
        """
        Raises:
            _Refused: a graph could not stand for f, or something in it has no Julia code.
        """
        entry = self.traced(refusal)
        traced = entry.recipe(self.f)
        assert isinstance(traced, TracedRHS)
        elsewhere = next(
            (x.device for x in (self.u, *traced.params, *traced.constants) if x.device.type != "cpu"), None
        )
        if elsewhere is not None:
            raise _Refused(f"f works on {elsewhere}, and stays there")
        try:
            native = NativeRHS(traced)
        except NotLowerable as e:
            traced.reason += f"; not compiled to Julia: {e}"
            raise _Refused(str(e)) from e
        return _Entry(entry.guards, lambda _: native, self.explicit)

    def traced(self, _: str) -> _Entry:
        """
        Raises:
            _Refused: a graph could not stand for f.
        """
        # The native way asks first: f is called no second time for the same answer.
        if self.graph_result is None:
            try:
                self.graph_result = self._trace()
            except _Refused as e:
                self.graph_result = e
        if isinstance(self.graph_result, _Refused):
            raise self.graph_result
        return self.graph_result

    def _trace(self) -> _Entry:
        reason = static_reason(self.reach)
        if reason is not None:
            raise _Refused(reason)
        graph = self._traced_graph()
        try:
            captured = captured_tensors(graph)
        except Untraceable as e:
            raise _Refused(str(e)) from e
        self._check_captured(captured)
        params = unique((*module_params(self.reach), *self.explicit, *(x for x in captured if x.requires_grad)))
        known = {id(p) for p in params}
        constants = tuple(x for x in captured if id(x) not in known)
        try:
            rhs = TracedRHS(
                graph, self.layout, params, constants, self.t, self.u,
                "f was traced to a graph of torch operators",
            )  # fmt: skip
        except (Untraceable, RuntimeError, NotImplementedError) as e:
            raise _Refused(f"the derivative of f's graph could not be made ({_first_line(e)})") from e
        self._verify(rhs)
        return _Entry(Guards(self.reach, (*params, *constants)), lambda _: rhs, self.explicit)

    def eager(self, reason: str) -> _Entry:
        if self.recorded is None:
            with self._watching() as watch, watch:
                self.recorded = record(self.f, self.layout, self.t, self.u)
        known = (*module_params(self.reach), *self.explicit)
        found = graph_leaves(self.recorded.out, known).leaves
        mine = (self.recorded.t, self.recorded.u)
        params = unique(
            (*known, *reached_leaves(self.reach), *(x for x in found if x is not mine[0] and x is not mine[1]))
        )
        check_no_overlap(params)
        layout, t, u = self.layout, self.t, self.u
        changed: set[tuple[int, Any]] = set().union(*(w.changed for w in self.watches))
        flags = {
            "calls_autograd": any(w.calls_autograd for w in self.watches),
            "forgets_graph": any(w.forgets_graph for w in self.watches),
            "changes_state": bool(changed),
        }

        reached = {id(x) for x in found}
        unused = frozenset(i for i, p in enumerate(params) if id(p) not in reached)

        def recipe(f: Callable[..., Any]) -> RightHandSide:
            rhs = EagerRHS(f, layout, params, t, u, reason, **flags)
            rhs.unused = unused
            return rhs

        return _Entry(Guards(self.reach, params, changed), recipe, self.explicit)

    @contextlib.contextmanager
    def _watching(self) -> Iterator[Watch]:
        watch = Watch(self.reach)
        self.watches.append(watch)
        with watch.outside():
            yield watch

    def _traced_graph(self) -> torch.fx.GraphModule:
        t, u = self.t.clone(), self.u.clone()
        failure: Exception | None = None
        with self._watching() as watch:
            try:
                graph = trace_flat(self.f, self.layout, t, u, watch)
            except InputError:
                raise
            except Exception as e:  # f's own exceptions come out as themselves in the eager way's plain call
                failure = e
        if watch.findings:
            raise _Refused(watch.findings[0]) from failure
        if failure is not None:
            raise _Refused(_failure_reason(failure)) from failure
        if u._version != 0 or t._version != 0:
            raise _Refused("f changes its argument t or y in place")
        return graph

    def _check_captured(self, captured: tuple[Tensor, ...]) -> None:
        """A tensor that no watched place holds may be replaced unnoticed, or be made anew in each call."""
        for x in captured:
            if id(x) not in self.reach.tensors and not any(x is p for p in self.explicit):
                raise _Refused(
                    f"f uses a tensor of shape {tuple(x.shape)} that is neither an attribute, a closed-over variable "
                    f"nor a global it names, so a change could not be noticed"
                )

    def _verify(self, rhs: TracedRHS) -> None:
        """Compares the graph, its value and vjp, with f and autograd at a point near (t0, y0)."""
        random = torch.Generator(device=self.u.device).manual_seed(0)

        def noise(x: Tensor) -> Tensor:
            return torch.randn(x.shape, generator=random, dtype=x.dtype, device=x.device)

        # Positive entries stay positive: f may take their logarithm.
        u = self.u * (1 + 1e-3 * noise(self.u)) + 1e-3 * noise(self.u).abs()
        t = self.t * (1 + 1e-3) + 1e-3
        v = noise(u)
        with _random_state_kept():
            call = record(self.f, self.layout, t, u)
        below = graph_leaves(call.out, rhs.params)
        if below.custom_functions:
            self.recorded = call
            raise _Refused(
                f"f uses {below.custom_functions[0]}, a torch.autograd.Function, whose own backward a graph loses"
            )
        known = {id(x) for x in (*rhs.params, call.t, call.u)}
        missing = [x for x in below.leaves if id(x) not in known]
        if missing:
            self.recorded = call
            raise _Refused(f"f depends on a tensor of shape {tuple(missing[0].shape)} in a way the graph does not show")
        got_u, got_p = rhs.vjp_up(t, u, v, rhs.params)
        with hooks_off((*rhs.params, *below.leaves)):
            same = _close(rhs.f(t, u, rhs.params), call.out.detach()) and all(
                map(_close, *_comparable(call, v, rhs.params, got_u, got_p))
            )
        if not same:
            self.recorded = call
            raise _Refused("the graph traced from f does not reproduce f's values or gradients at a second point")


# The order in which the ways are tried.
_WAYS: dict[str, Callable[[_Attempt, str], _Entry]] = {
    "native": _Attempt.native,
    "traced": _Attempt.traced,
    "eager": _Attempt.eager,
}
_LOCK = threading.RLock()
_Entries = OrderedDict[Any, _Entry]
_CACHE: weakref.WeakKeyDictionary[Any, dict[Any, _Entries]] = weakref.WeakKeyDictionary()


def _entries_of(f: Any) -> _Entries:
    """The remembered entries of f; an empty, forgotten one where f cannot be a weak key."""
    owner, function = (f.__self__, f.__func__) if isinstance(f, types.MethodType) else (f, None)
    by_identity = isinstance(owner, (nn.Module, types.FunctionType)) or type(owner).__hash__ is object.__hash__
    if not by_identity:
        return OrderedDict()
    try:
        return _CACHE.setdefault(owner, {}).setdefault(function, OrderedDict())
    except TypeError:
        return OrderedDict()


class _random_state_kept:
    """Puts torch's random state back: our call of f is not one of the user's."""

    def __enter__(self) -> None:
        self._state = torch.get_rng_state()

    def __exit__(self, *_: object) -> None:
        torch.set_rng_state(self._state)


def _comparable(
    call: Recorded, v: Tensor, params: tuple[Tensor, ...], got_u: Tensor, got_p: tuple[Tensor, ...]
) -> tuple[list[Tensor], list[Tensor]]:
    """A graph's vjp and autograd's, of the same things."""
    if overlap(params) is None:
        return [got_u, *got_p], _autograd((call.out,), (call.u, *params), (v,))
    # Autograd cannot tell a parameter from one computed from it, so both are carried on to the leaves.
    leaves = unique(leaf for p in params for leaf in graph_leaves(p).leaves)
    return [got_u, *_autograd(params, leaves, got_p)], _autograd((call.out,), (call.u, *leaves), (v,))


def _autograd(outs: tuple[Tensor, ...], inputs: tuple[Tensor, ...], vs: tuple[Tensor, ...]) -> list[Tensor]:
    pairs = [(out, v) for out, v in zip(outs, vs, strict=True) if out.requires_grad]
    if not pairs:
        return [torch.zeros_like(x) for x in inputs]
    found = torch.autograd.grad(
        [out for out, _ in pairs], inputs, [v for _, v in pairs], allow_unused=True, retain_graph=True
    )
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]


def _close(a: Tensor, b: Tensor) -> bool:
    tolerance = _TOLERANCE.get(b.dtype, 1e-3)
    scale = b.detach().abs().nan_to_num(posinf=0.0).max().item() if b.numel() else 0.0
    return bool(torch.allclose(a, b, rtol=tolerance, atol=tolerance * scale, equal_nan=True))


def _failure_reason(e: Exception) -> str:
    text = str(e)
    if "dynamo-optimized" in text:
        return "f is compiled by torch.compile, which cannot be traced: pass f as it was before"
    if "get value out of a tracing tensor" in text or "data-dependent" in text.lower():
        return "f takes a value out of a tensor (an if on a tensor, item() or float()), which a graph cannot follow"
    return f"torch could not trace f ({type(e).__name__}: {_first_line(e)})"


def _first_line(e: Exception) -> str:
    return (str(e).strip().splitlines() or [type(e).__name__])[0][:200]
