"""A right-hand side as f itself with ordinary autograd: for an f that cannot, or must not, be traced."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyjode.errors import InputError, UnsupportedError
from pyjode.rhs.batch import find_batch_size
from pyjode.rhs.closure import graph_leaves
from pyjode.rhs.interface import RightHandSide, Way
from pyjode.rhs.reach import Reach, Slot
from pyjode.rhs.tape import plain_tape
from pyjode.state import StateLayout

# Below this many rows one backward pass each is quicker than one vmapped pass.
_FEW_ROWS = 8


@dataclass(frozen=True)
class Recorded:
    """One evaluation with its autograd graph."""

    out: Tensor
    t: Tensor
    u: Tensor


def record(f: Callable[..., Any], layout: StateLayout, t: Tensor, u: Tensor) -> Recorded:
    """Calls ``f`` with gradients on; ``out`` is flat, ``t`` and ``u`` are the leaves to differentiate by.

    f gets copies, which it may keep or change in place.
    """
    with torch.enable_grad(), plain_tape():
        t_leaf = t.detach().requires_grad_()
        u_leaf = u.detach().requires_grad_()
        out = layout.flatten_derivative(f(t_leaf.clone(), layout.unflatten(u_leaf.clone())))
    return Recorded(out, t_leaf, u_leaf)


@contextlib.contextmanager
def hooks_off(params: tuple[Tensor, ...]) -> Iterator[None]:
    """Keeps hooks on leaves (``register_hook``) from running: they are for the gradient that comes out in the end.

    ``torch.autograd.grad`` runs them on every gradient it captures.
    """
    held = [(p, p._backward_hooks) for p in params if p.is_leaf and p._backward_hooks]
    for p, _ in held:
        p._backward_hooks = None
    try:
        yield
    finally:
        for p, hooks in held:
            p._backward_hooks = hooks


class EagerRHS(RightHandSide):
    """f itself.

    Values for :attr:`params` other than the tensors themselves are put in their place for the call, where a module,
    attribute, closure cell or global holds them (which is not safe if another thread uses the module meanwhile).

    Raises (every derivative):
        InputError: f depends on a tensor that requires grad and was not found before; or f calls
            ``torch.autograd.grad`` without ``create_graph=True``, so that its own derivative would be wrong.
    """

    way: ClassVar[Way] = "eager"

    def __init__(
        self,
        f: Callable[..., Any],
        layout: StateLayout,
        params: tuple[Tensor, ...],
        t0: Tensor,
        u0: Tensor,
        reason: str,
        *,
        calls_autograd: bool = False,
        forgets_graph: bool = False,
        changes_state: bool = False,
    ):
        """
        Args:
            f: the user's f(t, y).
            layout: of the state.
            params: tensors that receive gradients.
            t0, u0: a point at which f can be evaluated.
            reason: for the user.
            calls_autograd: f needs gradients switched on even for its value.
            forgets_graph: f calls autograd without ``create_graph=True``.
            changes_state: f changes Python state, so it is not called to find out :attr:`batch_size`.
        """
        self.reason = reason
        self.layout = layout
        self.params = params
        self._f = f
        self._t0, self._u0 = t0, u0
        self._calls_autograd = calls_autograd
        self._forgets_graph = forgets_graph
        self._changes_state = changes_state
        self._known = {id(p) for p in params}
        self._reach: Reach | None = None
        self._batched_backward = True
        self._batch: int | str | None = "unknown"

    def f(self, t: Tensor, u: Tensor, params: tuple[Tensor, ...]) -> Tensor:
        with self._in_place_of(params):
            if self._calls_autograd:
                return record(self._f, self.layout, t, u).out.detach().contiguous()
            with torch.no_grad():
                y = self.layout.unflatten(u.clone())
                return self.layout.flatten_derivative(self._f(t.clone(), y)).contiguous()

    def vjp_u(self, t: Tensor, u: Tensor, v: Tensor, params: tuple[Tensor, ...]) -> Tensor:
        with self._in_place_of(params) as own:
            call = self._record(t, u, own)
            return _grads(call.out, (call.u,), v)[0].contiguous()

    def vjp_p(self, t: Tensor, u: Tensor, v: Tensor, params: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        with self._in_place_of(params) as own:
            return _grads(self._record(t, u, own).out, own, v)

    def vjp_up(self, t: Tensor, u: Tensor, v: Tensor, params: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        with self._in_place_of(params) as own:
            call = self._record(t, u, own)
            gradients = _grads(call.out, (call.u, *own), v)
            return gradients[0].contiguous(), gradients[1:]

    def jacobian(self, t: Tensor, u: Tensor, params: tuple[Tensor, ...]) -> Tensor:
        eye = torch.eye(self.layout.n, dtype=self.layout.dtype, device=self.layout.device)
        with self._in_place_of(params) as own:
            call = self._record(t, u, own)
            return self._rows(call.out, call.u, eye)

    def jacobian_blocks(self, t: Tensor, u: Tensor, params: tuple[Tensor, ...]) -> Tensor:
        size = self.layout.leaves[0].shape[0]
        d = self.layout.n // size
        eye = torch.eye(d, dtype=self.layout.dtype, device=self.layout.device).repeat(1, size)
        with self._in_place_of(params) as own:
            call = self._record(t, u, own)
            return self._rows(call.out, call.u, eye).reshape(d, size, d).transpose(0, 1).contiguous()

    @property
    def batch_size(self) -> int | None:
        if self._batch == "unknown":
            self._batch = (
                None if self._changes_state else find_batch_size(self, self._t0, self._u0, probe_with_nan=False)
            )
        return self._batch  # type: ignore[return-value]

    def time_gradient(self, t: Tensor, u: Tensor, params: tuple[Tensor, ...]) -> Tensor:
        """Source: v^T df/dt is linear in v, its derivative in v is df/dt; else row by row."""
        with self._in_place_of(params) as own:
            call = self._record(t, u, own)
            if not call.out.requires_grad:
                return torch.zeros_like(u, requires_grad=False)
            v = torch.ones_like(u).requires_grad_()
            try:
                with torch.enable_grad():
                    found: Sequence[Tensor | None] = torch.autograd.grad(
                        call.out, call.t, v, create_graph=True, allow_unused=True
                    )
                product = found[0]
                if product is None:
                    return torch.zeros_like(u, requires_grad=False)
                return _grads(product, (v,), None)[0].contiguous()
            except RuntimeError:  # once_differentiable functions
                eye = torch.eye(self.layout.n, dtype=u.dtype, device=u.device)
                return self._rows(call.out, call.t, eye)

    def _record(self, t: Tensor, u: Tensor, own: tuple[Tensor, ...]) -> Recorded:
        call = record(self._f, self.layout, t, u)
        if self._forgets_graph:
            raise InputError(
                "f calls torch.autograd.grad without create_graph=True, so gradients through it would be missing: "
                "pass create_graph=True (and detach() the result if it is meant as a constant)"
            )
        known = {id(p) for p in own} | {id(call.t), id(call.u)}
        for leaf in graph_leaves(call.out, own).leaves:
            if id(leaf) not in known:
                raise InputError(
                    f"f depends on a tensor of shape {tuple(leaf.shape)} that requires grad and was not found when "
                    f"the problem was set up: name it in params="
                )
        return call

    def _rows(self, out: Tensor, x: Tensor, cotangents: Tensor) -> Tensor:
        """d(out)/dx for each cotangent, shape ``(rows, *x.shape)``."""
        if not out.requires_grad:
            return torch.zeros(len(cotangents), *x.shape, dtype=x.dtype, device=x.device)
        if len(cotangents) > _FEW_ROWS and self._batched_backward:
            try:
                (rows,) = torch.autograd.grad(
                    out, x, cotangents, retain_graph=True, allow_unused=True, is_grads_batched=True
                )
                return x.new_zeros(len(cotangents), *x.shape) if rows is None else rows.contiguous()
            except RuntimeError:  # an operator that vmap cannot batch
                self._batched_backward = False
        return torch.stack([_grads(out, (x,), v)[0] for v in cotangents])

    @contextlib.contextmanager
    def _in_place_of(self, values: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, ...]]:
        """Puts ``values`` where f finds its parameters; yields the tensors to differentiate by."""
        changed = [
            i
            for i, (p, x) in enumerate(zip(self.params, values, strict=True))
            # A computed tensor's hooks are on its graph: only another tensor in its place is without them.
            if not _same_memory(p, x) or (p._backward_hooks and not p.is_leaf)
        ]
        if not changed:
            with hooks_off(self.params):
                yield self.params
            return
        if self._reach is None:
            self._reach = Reach(self._f)
        own = list(self.params)
        slots: list[tuple[Slot, Tensor, Tensor]] = []
        for i in changed:
            places = self._reach.slots_of(self.params[i])
            if not places:
                raise UnsupportedError(
                    f"f closes over a tensor of shape {tuple(own[i].shape)} in a way that does not let another value "
                    f"take its place; make it a parameter of an nn.Module"
                )
            own[i] = values[i].detach().requires_grad_()
            if isinstance(self.params[i], torch.nn.Parameter):
                own[i] = torch.nn.Parameter(own[i])
            slots.extend((slot, self.params[i], own[i]) for slot in places)
        try:
            for slot, _, x in slots:
                slot.put(x)
            with hooks_off(tuple(own)):
                yield tuple(own)
        finally:
            for slot, p, _ in slots:
                slot.put(p)


def _grads(out: Tensor, inputs: tuple[Tensor, ...], v: Tensor | None) -> tuple[Tensor, ...]:
    """v^T d(out)/d(input) for each input, zeros where out does not depend on it."""
    if not out.requires_grad or not inputs:
        return tuple(torch.zeros_like(x, requires_grad=False) for x in inputs)
    # What f closes over may be computed from parameters: that part of the graph is needed again in the next call.
    found = torch.autograd.grad(out, inputs, v, allow_unused=True, retain_graph=True)
    return tuple(
        torch.zeros_like(x, requires_grad=False) if g is None else g for x, g in zip(inputs, found, strict=True)
    )


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride())
