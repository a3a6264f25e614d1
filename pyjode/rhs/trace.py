"""A right-hand side as torch graphs: traced once, then run as plain functions without an autograd tape.

The derivative graphs come from tracing torch's own reverse mode over the forward graph (make_fx over autograd, as in
AOTAutograd): torch is the AD, the graph is its result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from pyjode.rhs.batch import find_batch_size
from pyjode.rhs.compile import compile_graph
from pyjode.rhs.graphs import (
    functional,
    has_mutation,
    select_outputs,
    simplify,
    trace,
    with_constants,
    with_inputs,
)
from pyjode.rhs.interface import RightHandSide, Way
from pyjode.state import StateLayout


def trace_flat(f: Callable[..., Any], layout: StateLayout, t: Tensor, u: Tensor, around: Any) -> fx.GraphModule:
    """Traces one call of ``f``.

    Args:
        f: the user's f(t, y).
        layout: of the state.
        t: time, shape ``()``, memory f may keep.
        u: state, shape ``(n,)``, memory f may keep.
        around: context manager to enter directly round the call.

    Returns:
        A graph of ``(t, u)``; tensors f closes over are constants in it.
    """

    def flat(t: Tensor, u: Tensor) -> Tensor:
        y = layout.unflatten(u)
        with around:
            dy = f(t, y)
        return layout.flatten_derivative(dy)

    # Gradients on: some modules choose other kernels, without derivatives, when they are off.
    with torch.enable_grad():
        return trace(flat, t, u)


class TracedRHS(RightHandSide):
    """f as ATen graphs.

    Results may share memory with arguments (an f that returns y, a vjp that returns v). ``t``, ``u``, ``v`` must be
    contiguous. Nothing returned carries an autograd tape, whether or not the caller has gradients on. A tensor that
    f refers to and that is no parameter (a buffer) is used as it is at the time of the call.

    Attributes:
        forward_graph: ``(t, u, *params) -> du/dt``.
        vjp_graph: ``(t, u, v, *params) -> (v^T df/du, *v^T df/dp)``.
    """

    way: ClassVar[Way] = "traced"

    def __init__(
        self,
        graph: fx.GraphModule,
        layout: StateLayout,
        params: tuple[Tensor, ...],
        constants: tuple[Tensor, ...],
        t0: Tensor,
        u0: Tensor,
        reason: str,
    ):
        """
        Args:
            graph: from :func:`trace_flat`.
            layout: of the state.
            params: tensors that receive gradients; those in the graph become inputs.
            constants: the other tensors in the graph.
            t0, u0: a point at which f can be evaluated.
            reason: for the user.
        """
        self.reason = reason
        self.layout = layout
        self.params = params
        self.constants = constants
        self._t0, self._u0 = t0, u0
        self.forward_graph = _forward_graph(graph, params, constants, t0, u0)
        self.vjp_graph = self._trace_vjp()
        self.depends_on_time = _uses_input(self.forward_graph, 0)
        self.unused = frozenset(i for i in range(len(params)) if not _uses_input(self.forward_graph, 2 + i))
        self._functions: dict[str, Any] = {}
        self._forward = compile_graph(self.forward_graph, (t0, u0, *params))
        self._vjp_u: Callable[..., Any] | None = None
        self._vjp_p: Callable[..., Any] | None = None
        self._vjp_up: Callable[..., Any] | None = None
        self._batch: int | str | None = "unknown"

    def f(self, t: Tensor, u: Tensor, params: tuple[Tensor, ...]) -> Tensor:
        if torch.is_grad_enabled():
            with torch.no_grad():
                return self._forward(t, u, *params).contiguous()
        return self._forward(t, u, *params).contiguous()

    def vjp_u(self, t: Tensor, u: Tensor, v: Tensor, params: tuple[Tensor, ...]) -> Tensor:
        run = self._vjp_u
        if run is None:
            run = self._vjp_u = self._compile_vjp(0)
        if torch.is_grad_enabled():
            with torch.no_grad():
                return run(t, u, v, *params).contiguous()
        return run(t, u, v, *params).contiguous()

    def vjp_p(self, t: Tensor, u: Tensor, v: Tensor, params: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        run = self._vjp_p
        if run is None:
            run = self._vjp_p = self._compile_vjp(slice(1, None))
        if torch.is_grad_enabled():
            with torch.no_grad():
                return tuple(run(t, u, v, *params))
        return tuple(run(t, u, v, *params))

    def vjp_up(self, t: Tensor, u: Tensor, v: Tensor, params: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        run = self._vjp_up
        if run is None:
            run = self._vjp_up = self._compile_vjp(slice(0, None))
        if torch.is_grad_enabled():
            with torch.no_grad():
                out = run(t, u, v, *params)
        else:
            out = run(t, u, v, *params)
        return out[0].contiguous(), tuple(out[1:])

    def jacobian(self, t: Tensor, u: Tensor, params: tuple[Tensor, ...]) -> Tensor:
        """Source: one reverse sweep a row, all rows at once (vmap over the vjp)."""
        with torch.no_grad():
            return self._rows("jacobian", self._jacobian_cotangents)(t, u, *params).contiguous()

    def jacobian_blocks(self, t: Tensor, u: Tensor, params: tuple[Tensor, ...]) -> Tensor:
        """Source: with a block-diagonal Jacobian, one cotangent serves a row of every block."""
        size = self.layout.leaves[0].shape[0]
        with torch.no_grad():
            rows = self._rows("blocks", self._block_cotangents)(t, u, *params)
        return rows.reshape(-1, size, self.layout.n // size).transpose(0, 1).contiguous()

    @property
    def batch_size(self) -> int | None:
        if self._batch == "unknown":
            self._batch = find_batch_size(self, self._t0, self._u0, probe_with_nan=True)
        return self._batch  # type: ignore[return-value]

    def time_gradient(self, t: Tensor, u: Tensor, params: tuple[Tensor, ...]) -> Tensor:
        """Source: v^T df/dt is linear in v, its derivative in v is df/dt (forward mode by two reverse sweeps)."""
        if not self.depends_on_time:
            return torch.zeros_like(u, requires_grad=False)
        run = self._functions.get("time")
        if run is None:
            run = self._functions["time"] = self._compile_time_gradient()
        with torch.no_grad():
            return run(t, u, *params).contiguous()

    def second_graph(self) -> fx.GraphModule:
        """``(t, u, v, k, s, *params)`` -> derivatives by u and by each parameter of v^T (df/du k + s df/dt).

        Source: reverse mode over reverse mode, since v^T df/du k is the vjp's product with k.
        """
        forward = self.forward_graph

        def second(t: Tensor, u: Tensor, v: Tensor, k: Tensor, s: Tensor, *params: Tensor) -> tuple[Tensor, ...]:
            with torch.enable_grad():
                t, *inputs = (x.detach().requires_grad_() for x in (t, u, *params))
                out = forward(t, *inputs)
                if not out.requires_grad:
                    return _or_zeros(inputs, (None,) * len(inputs))
                products = torch.autograd.grad(out, (inputs[0], t), v, create_graph=True, allow_unused=True)
                further = [(x, d) for x, d in zip(products, (k, s), strict=True) if x is not None and x.requires_grad]
                if not further:
                    return _or_zeros(inputs, (None,) * len(inputs))
                found = torch.autograd.grad([x for x, _ in further], inputs, [d for _, d in further], allow_unused=True)
                return _or_zeros(inputs, found)

        # Two tensors: one for both would be one input.
        v, k, s = torch.ones_like(self._u0), torch.ones_like(self._u0), torch.ones((), dtype=self.layout.dtype)
        return _clean(trace(second, self._t0, self._u0, v, k, s, *self.params))

    def stages_graph(self, count: int) -> fx.GraphModule:
        """``(t, us, vs, ts, *params)`` -> the sum over i of v_i^T df/dp(t_i, u_i), for each parameter.

        ``us`` and ``vs`` have shape ``(count, n)``, ``ts`` ``(count,)``; t is not used. Of a matrix that f multiplies
        by, the derivative is one product of all stages' vectors instead of the sum of one a stage.
        """
        forward = self.forward_graph

        def stages(t: Tensor, us: Tensor, vs: Tensor, ts: Tensor, *params: Tensor) -> tuple[Tensor, ...]:
            with torch.enable_grad():
                inputs = [x.detach().requires_grad_() for x in params]
                out = torch.func.vmap(lambda t, u: forward(t, u, *inputs))(ts, us)
                return _gradients(out, inputs, vs)

        us, vs = (torch.ones(count, self.layout.n, dtype=self.layout.dtype) for _ in range(2))
        ts = torch.ones(count, dtype=self.layout.dtype)
        return _clean(trace(stages, self._t0, us, vs, ts, *self.params))

    def _trace_vjp(self) -> fx.GraphModule:
        forward = self.forward_graph

        def vjp(t: Tensor, u: Tensor, v: Tensor, *params: Tensor) -> tuple[Tensor, ...]:
            with torch.enable_grad():
                inputs = [x.detach().requires_grad_() for x in (u, *params)]
                out = forward(t, *inputs)
                return _gradients(out, inputs, v)

        return _clean(trace(vjp, self._t0, self._u0, torch.ones_like(self._u0), *self.params))

    def _compile_vjp(self, keep: slice | int) -> Callable[..., Any]:
        graph = self.vjp_graph if keep == slice(0, None) else select_outputs(self.vjp_graph, keep)
        return compile_graph(graph, (self._t0, self._u0, torch.ones_like(self._u0), *self.params))

    def _rows(self, name: str, cotangents: Callable[[], Tensor]) -> Callable[..., Tensor]:
        """The vjp of several cotangents at once, shape ``(rows, n)``."""
        if name not in self._functions:
            vjp = select_outputs(self.vjp_graph, 0)
            many = cotangents()

            def rows(t: Tensor, u: Tensor, *params: Tensor) -> Tensor:
                return torch.func.vmap(lambda v: vjp(t, u, v, *params))(many)

            example = (self._t0, self._u0, *self.params)
            try:
                graph = _clean(trace(rows, *example))
                self._functions[name] = compile_graph(graph, example)
            except (RuntimeError, NotImplementedError):  # an operator that vmap cannot batch

                def one_by_one(t: Tensor, u: Tensor, *params: Tensor) -> Tensor:
                    return torch.stack([self.vjp_u(t, u, v, params) for v in many])

                self._functions[name] = one_by_one
        return self._functions[name]

    def _jacobian_cotangents(self) -> Tensor:
        return torch.eye(self.layout.n, dtype=self.layout.dtype, device=self.layout.device)

    def _block_cotangents(self) -> Tensor:
        size = self.layout.leaves[0].shape[0]
        d = self.layout.n // size
        return torch.eye(d, dtype=self.layout.dtype, device=self.layout.device).repeat(1, size)

    def _compile_time_gradient(self) -> Callable[..., Tensor]:
        forward = self.forward_graph

        def time_gradient(t: Tensor, u: Tensor, *params: Tensor) -> Tensor:
            with torch.enable_grad():
                t = t.detach().requires_grad_()
                v = torch.ones_like(u).requires_grad_()
                (product,) = torch.autograd.grad(forward(t, u, *params), t, v, create_graph=True)
                return _gradients(product, [v], None)[0]

        example = (self._t0, self._u0, *self.params)
        return compile_graph(_clean(trace(time_gradient, *example)), example)


def _clean(derivative: fx.GraphModule) -> fx.GraphModule:
    # Some derivative formulas work in place on their own intermediates; what simplify does is not safe there.
    return derivative if has_mutation(derivative) else simplify(derivative)


def _forward_graph(
    graph: fx.GraphModule, params: tuple[Tensor, ...], constants: tuple[Tensor, ...], t0: Tensor, u0: Tensor
) -> fx.GraphModule:
    lifted = with_inputs(graph, (*params, *constants))
    if has_mutation(lifted):
        lifted = functional(lifted, t0, u0, *params, *constants)
    return simplify(with_constants(lifted, constants), keep_detach=True)


def _gradients(out: Tensor, inputs: list[Tensor], v: Tensor | None) -> tuple[Tensor, ...]:
    """v^T d(out)/d(input) for each input; zeros where out does not depend on it."""
    if not out.requires_grad:
        return _or_zeros(inputs, (None,) * len(inputs))
    return _or_zeros(inputs, torch.autograd.grad(out, inputs, v, allow_unused=True))


def _or_zeros(inputs: list[Tensor], found: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True))


def _uses_input(graph: fx.GraphModule, index: int) -> bool:
    placeholders = [n for n in graph.graph.nodes if n.op == "placeholder"]
    return bool(placeholders[index].users)
