"""A traced right-hand side as Julia source: f, its vector-Jacobian products and df/dt as functions on pointers.

A graph becomes expressions and steps (lower_ops.py), steps share loops (lower_fuse.py), loops become text
(lower_julia.py). Each operator that the table does not have is decomposed by torch first.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._decomp import decomposition_table
from torch.fx.experimental.proxy_tensor import make_fx

from pyjode.rhs.graphs import functional, has_mutation, select_outputs, simplify, trace
from pyjode.rhs.lower_fuse import plan
from pyjode.rhs.lower_julia import function_source
from pyjode.rhs.lower_ops import FACTORIES_LIKE, TABLE, Call, operator_name
from pyjode.rhs.lower_steps import JULIA_TYPES, Builder, Matmul
from pyjode.rhs.lower_values import Buffer, Literal, NotLowerable, Time, Value, View, numel, whole
from pyjode.rhs.trace import TracedRHS

__all__ = ["NativeSource", "NotLowerable", "lower", "lower_second", "lower_stages"]

_MAX_NODES = 4000


@dataclass(frozen=True)
class NativeSource:
    """
    Attributes:
        source: Julia functions ``f(du, u, t, w, c)``, ``vjp_u(Ju, v, u, t, w, c)``, ``vjp_p(Jp, v, u, t, w, c)``,
            ``vjp_up(Ju, Jp, v, u, t, w, c)`` and, where f depends on t, ``tgrad(out, u, t, w, c)``: pointers, the time,
            a workspace and a table of addresses; or ``second`` alone (see :func:`lower_second`), or ``stages`` (see
            :func:`lower_stages`). Equal source is equal code, whatever the tensors.
        workspace: bytes that the functions need at ``w``, aligned to 64.
        dtype: of the state.
        n: entries of the state.
        np: entries of all parameters.
        constants: tensors whose addresses follow those of the parameters in the table.
        multiplications: of the matrix products in ``vjp_p``.
    """

    source: str
    workspace: int
    dtype: torch.dtype
    n: int
    np: int
    constants: tuple[Tensor, ...]
    multiplications: int = 0

    def table(self, params: Sequence[Tensor]) -> tuple[int, ...]:
        """Addresses for ``c``. They hold as long as the tensors keep their memory: ask again for each solve.

        Args:
            params: values of the parameters, contiguous, of the state's dtype.
        """
        return tuple(x.data_ptr() for x in (*params, *self.constants))

    def addresses(self, params: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The table as a tensor.

        Args:
            params: values of the parameters.

        Returns:
            The table, int64, and the tensors it points into. Both must live, where they are, as long as the table is
            used; ask again for each solve, for a tensor may get new memory (``p.data = ...``).
        """
        values = tuple(p.detach().to(self.dtype).contiguous() for p in params)
        return torch.tensor([*self.table(values), 0], dtype=torch.int64), values


def lower(traced: TracedRHS) -> NativeSource:
    """
    Raises:
        NotLowerable: an operator has no Julia code, or a tensor has a dtype, layout or device that has none.
    """
    dtype = traced.layout.dtype
    if dtype not in (torch.float32, torch.float64):
        raise NotLowerable("state", f"a state of dtype {dtype} has no Julia code; use float32 or float64")
    for x in (*traced.params, *traced.constants):
        if x.device.type != "cpu" or x.layout is not torch.strided:
            raise NotLowerable("tensor", f"a tensor on {x.device} cannot be read by Julia; move it to the CPU")
    for p in traced.params:
        if p.dtype != dtype:
            raise NotLowerable("parameter", f"it is {p.dtype}, the state {dtype}; convert one of them")
    return _Lowering(traced).run()


def lower_second(traced: TracedRHS) -> NativeSource:
    """The second-order products of a right-hand side that :func:`lower` has taken:
    ``second(Su, Sp, v, k, s, u, t, w, c)`` writes the derivatives by u and by the parameters of
    v^T (df/du k + s df/dt).

    Raises:
        NotLowerable: an operator of the second derivative has no Julia code.
    """
    return _Lowering(traced).second()


def lower_stages(traced: TracedRHS, count: int) -> NativeSource:
    """The parameters' half of the vjps at ``count`` stages at once, of a right-hand side that :func:`lower` has taken:
    ``stages(Jp, v, s, u, t, w, c)`` writes the sum of v_i^T df/dp(s_i, u_i); ``v`` and ``u`` have a row a stage, ``s``
    their times.

    Raises:
        NotLowerable: an operator has no Julia code when it is applied to all stages.
    """
    return _Lowering(traced).stages(count)


class _Lowering:
    def __init__(self, traced: TracedRHS):
        self.traced = traced
        self.dtype = traced.layout.dtype
        self.n = traced.layout.n
        self.np = sum(p.numel() for p in traced.params)
        self.table: list[Tensor] = list(traced.params)
        self.live = frozenset(map(id, (*traced.params, *traced.constants)))
        self.workspace = 0
        self.multiplications = 0

    def run(self) -> NativeSource:
        """f, its vector-Jacobian products and df/dt."""
        traced = self.traced
        t, u, params = traced._t0, traced._u0, traced.params
        v = torch.ones_like(u)
        forward = _ready(traced.forward_graph, (t, u, *params))
        vjp = _ready(traced.vjp_graph, (t, u, v, *params))
        by_p = slice(1, None)
        sources = [
            self.function("f", forward, ["u"], [("du", 1)]),
            self.function("vjp_u", select_outputs(vjp, slice(0, 1)), ["v", "u"], [("Ju", 1)]),
            self.function("vjp_p", select_outputs(vjp, by_p), ["v", "u"], [("Jp", len(params))], counted=True),
            self.function("vjp_up", vjp, ["v", "u"], [("Ju", 1), ("Jp", len(params))]),
        ]
        if traced.depends_on_time:
            graph = _ready(_time_gradient(traced), (t, u, *params))
            sources.append(self.function("tgrad", graph, ["u"], [("out", 1)]))
        return self.finished(sources)

    def second(self) -> NativeSource:
        """The second-order products alone."""
        traced = self.traced
        t, u, params = traced._t0, traced._u0, traced.params
        v, k, s = torch.ones_like(u), torch.ones_like(u), torch.ones((), dtype=self.dtype)
        graph = _ready(traced.second_graph(), (t, u, v, k, s, *params))
        source = self.function("second", graph, ["v", "k", "s", "u"], [("Su", 1), ("Sp", len(params))])
        return self.finished([source])

    def stages(self, count: int) -> NativeSource:
        """The parameters' half of the vjps at several stages alone."""
        traced = self.traced
        us, vs, ts = (torch.ones(s, dtype=self.dtype) for s in ((count, self.n), (count, self.n), (count,)))
        graph = _ready(traced.stages_graph(count), (traced._t0, us, vs, ts, *traced.params))
        shapes = {"v": (count, self.n), "s": (count,), "u": (count, self.n)}
        return self.finished([self.function("stages", graph, list(shapes), [("Jp", len(traced.params))], shapes)])

    def finished(self, sources: list[str]) -> NativeSource:
        constants = tuple(self.table[len(self.traced.params) :])
        return NativeSource(
            "\n".join(sources), self.workspace, self.dtype, self.n, self.np, constants, self.multiplications
        )

    def function(
        self,
        name: str,
        graph: fx.GraphModule,
        inputs: Sequence[str],
        outputs: Sequence[tuple[str, int]],
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        counted: bool = False,
    ) -> str:
        """
        Args:
            graph: of ``(t, u, *params)``, ``(t, u, v, *params)``, ``(t, u, v, s, *params)`` or
                ``(t, u, v, k, s, *params)``.
            inputs: the vectors as the function's arguments come: "u", "v" and "u", or "v", "k", "s" and "u", ...
            outputs: names of the results, with the number of the graph's outputs that each holds, end to end.
            shapes: of the inputs; by default "s" points to one number, the others to the state's size.
            counted: whether its matrix products' multiplications are those that the source tells of.
        """
        builder = Builder(self.dtype, self.table, self.live)
        if shapes is None:
            shapes = {x: () if x == "s" else (self.n,) for x in inputs}
        given = {x: whole(Buffer(x, "input", self.dtype, numel(shape)), shape) for x, shape in shapes.items()}
        arguments: list[Value] = [Time((), self.dtype), *(given[x] for x in ("u", "v", "k", "s") if x in given)]
        arguments += [whole(builder.from_table(p).buffer, tuple(p.shape)) for p in self.traced.params]
        results = _Interpreter(graph, builder).run(arguments)
        start = 0
        for out, count in outputs:
            part = results[start : start + count]
            start += count
            sizes = [numel(x.shape) for x in part]
            buffer = Buffer(out, "output", self.dtype, sum(sizes))
            offset = 0
            for x, size in zip(part, sizes, strict=True):
                _deliver(builder, x, View(buffer, offset, (size,), (1,)))
                offset += size
        if counted:
            products = (step for step in builder.steps if isinstance(step, Matmul))
            self.multiplications = sum(numel(step.c.shape) * step.a.shape[2] for step in products)
        planned = plan(builder.steps)
        self.workspace = max(self.workspace, planned.size)
        return function_source(name, [*(o for o, _ in outputs), *inputs], planned, self.dtype)


def _deliver(b: Builder, x: Value, target: View) -> None:
    """Writes a result, or lets the step that makes it write there."""
    x = b.cast(x, target.dtype)
    if (
        isinstance(x, View)
        and x.buffer.kind == "temp"
        and x.buffer.home is None
        and x.offset == 0
        and x.is_contiguous
        and x.buffer.numel == target.shape[0]
        and x.dtype == target.dtype
    ):
        x.buffer.home = (target.buffer, target.offset)
        return
    flat = View(target.buffer, target.offset, tuple(x.shape), whole(target.buffer, tuple(x.shape)).strides)
    b.store(flat, x)


class _Interpreter:
    """Runs a graph on values: what depends on no input is computed by torch, once, here."""

    def __init__(self, graph: fx.GraphModule, builder: Builder):
        self.graph = graph
        self.b = builder
        self.env: dict[fx.Node, Any] = {}

    def run(self, arguments: Sequence[Value]) -> list[Value]:
        inputs = iter(arguments)
        for node in self.graph.graph.nodes:
            if node.op == "placeholder":
                self.env[node] = next(inputs)
            elif node.op == "get_attr":
                x = operator.attrgetter(node.target)(self.graph)
                self.env[node] = self.b.from_table(x) if self.b.is_live(x) else x
            elif node.op == "call_function":
                self.env[node] = self._call(node)
            elif node.op == "output":
                out = fx.node.map_arg(node.args[0], self.env.__getitem__)
                return [self._value(x) for x in (out if isinstance(out, (tuple, list)) else (out,))]
        raise AssertionError("a graph has an output")

    def _value(self, x: Any) -> Value:
        return self.b.constant(x) if isinstance(x, Tensor) else x

    def _call(self, node: fx.Node) -> Any:
        args: Any = fx.node.map_arg(node.args, self.env.__getitem__)
        kwargs: Any = fx.node.map_arg(node.kwargs, self.env.__getitem__)
        if node.target is operator.getitem:
            return args[0][args[1]]
        name = operator_name(node.target)
        if not any(isinstance(self.env[a], _VALUES) or _holds_values(self.env[a]) for a in node.all_input_nodes):
            return self._now(node, name, args, kwargs)
        out = node.meta.get("val")
        if name in FACTORIES_LIKE:
            return _filled(name, args, kwargs, out)
        lowering = TABLE.get(name)
        if lowering is None:
            raise NotLowerable(name, "this operator has no Julia code")
        if isinstance(out, Tensor) and out.dtype not in JULIA_TYPES:
            raise NotLowerable(name, f"a result of dtype {out.dtype} has no Julia code; use float32 or float64")
        kwargs = _known_options(kwargs)
        try:
            inspect.signature(lowering).bind(None, *args, **kwargs)
        except TypeError as e:
            raise NotLowerable(name, f"this form of the operator has no Julia code ({e})") from e
        return self._shared(lowering(Call(self.b, out, name), *args, **kwargs), len(node.users))

    def _shared(self, value: Any, uses: int) -> Any:
        if isinstance(value, list):
            return [self.b.shared(x, 2) for x in value]
        return self.b.shared(value, uses)

    def _now(self, node: fx.Node, name: str, args: Any, kwargs: Any) -> Any:
        if torch.Tag.nondeterministic_seeded in node.target.tags:  # type: ignore[union-attr]
            raise NotLowerable(name, "random numbers are drawn anew in each call")
        with torch.no_grad():
            return node.target(*args, **kwargs)  # type: ignore[operator]


_VALUES = tuple(Value.__args__)


def _holds_values(x: Any) -> bool:
    return isinstance(x, (list, tuple)) and any(isinstance(y, _VALUES) for y in x)


def _known_options(kwargs: dict[str, Any]) -> dict[str, Any]:
    placement = ("layout", "device", "pin_memory", "memory_format", "non_blocking", "implicit")
    return {k: v for k, v in kwargs.items() if k not in placement}


def _filled(name: str, args: Any, kwargs: Any, out: Any) -> Value:
    number = FACTORIES_LIKE[name]
    if number is None:
        number = kwargs["fill_value"] if "fill_value" in kwargs else args[1 if name == "full_like" else 2]
    if isinstance(number, _VALUES):
        raise NotLowerable(name, "its number depends on the state; write torch.where or an expand")
    return Literal(number, tuple(out.shape), out.dtype)


def _ready(graph: fx.GraphModule, example: tuple[Tensor, ...]) -> fx.GraphModule:
    """The graph in operators of the table, as far as torch can decompose it to them."""
    nodes = [n for n in graph.graph.nodes if n.op == "call_function"]
    if len(nodes) > _MAX_NODES:
        raise NotLowerable("graph", f"{len(nodes)} operators are too many to compile; write loops over vectors instead")
    example = tuple(x.detach() for x in example)
    if has_mutation(graph):
        graph = simplify(functional(graph, *example))
        nodes = [n for n in graph.graph.nodes if n.op == "call_function"]
    if all(_in_table(n) for n in nodes):
        return graph
    with torch.no_grad():
        # Real values: a graph made of real tensors may ask for them (item, nonzero).
        decomposed = make_fx(graph, _decompositions(), "real")(*example)
    return simplify(decomposed)


def _in_table(node: fx.Node) -> bool:
    if node.target is operator.getitem:
        return True
    name = operator_name(node.target)
    return name in TABLE or name in FACTORIES_LIKE


def _decompositions() -> dict[Any, Callable[..., Any]]:
    return {
        op: function
        for op, function in decomposition_table.items()
        if isinstance(op, torch._ops.OpOverload) and operator_name(op) not in TABLE
    }


def _time_gradient(traced: TracedRHS) -> fx.GraphModule:
    """df/dt as a graph of ``(t, u, *params)``. v^T df/dt is linear in v; its derivative in v is df/dt."""
    forward = traced.forward_graph

    def time_gradient(t: Tensor, u: Tensor, *params: Tensor) -> Tensor:
        with torch.enable_grad():
            t = t.detach().requires_grad_()
            v = torch.ones_like(u).requires_grad_()
            out = forward(t, u, *params)
            if not out.requires_grad:
                return torch.zeros_like(u)
            product = torch.autograd.grad(out, t, v, create_graph=True, allow_unused=True)[0]
            if product is None or not product.requires_grad:
                return torch.zeros_like(u)
            found = torch.autograd.grad(product, v, allow_unused=True)[0]
            return torch.zeros_like(u) if found is None else found

    return simplify(trace(time_gradient, traced._t0, traced._u0, *traced.params))
