"""Surgery on traced graphs: constants to inputs and back, fewer nodes for the same result, a subset of the outputs."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from pyjode.rhs.tape import plain_tape

aten = torch.ops.aten
_COPIES = (aten.lift_fresh_copy.default, aten.lift_fresh.default)
_SAME = (aten.detach.default, aten.alias.default)
_VIEWS = (aten.view.default, aten._unsafe_view.default)
_FACTORIES = (
    aten.zeros.default,
    aten.ones.default,
    aten.full.default,
    aten.arange.default,
    aten.arange.start,
    aten.arange.start_step,
    aten.eye.default,
    aten.eye.m,
    aten.scalar_tensor.default,
    aten.linspace.default,
)
_MAX_FOLDED = 65_536


class Untraceable(Exception):
    """The graph holds something that cannot be worked with; the message is for the user."""


def trace(function: Callable[..., Any], *inputs: Tensor) -> fx.GraphModule:
    """The ATen graph of one call of ``function``, run on real tensors."""
    # A table, though an empty one: without any, torch 2.14 turns each detach into an alias, which has a derivative.
    # The caller's saved_tensors_hooks (torch.utils.checkpoint's) are not for tapes that only make a graph.
    with plain_tape():
        return make_fx(function, {}, "real")(*inputs)


def warm_tracer() -> None:
    """Have torch import now what it imports when it first traces: its compiler, seconds in torch 2.14."""
    trace(torch.neg, torch.zeros(1))


def functional(graph_module: fx.GraphModule, *inputs: Tensor) -> fx.GraphModule:
    """The graph with functional operators in place of in-place ones (``dy[0] = ...`` becomes a select_scatter).

    Raises:
        Untraceable: an in-place operation remains.
    """
    function = torch.func.functionalize(graph_module, remove="mutations")
    with torch.no_grad():
        # Functionalization leaves aten.copy, which has no derivative.
        traced = make_fx(function, {aten.copy.default: _copied}, "real")(*(x.detach() for x in inputs))
    if has_mutation(traced):
        raise Untraceable("f changes tensors in place in a way that cannot be made functional")
    return traced


def _copied(into: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    return source.to(into.dtype).expand(into.shape)


def captured_tensors(graph_module: fx.GraphModule) -> tuple[Tensor, ...]:
    """The tensors the graph refers to (not those made inside by ``torch.tensor(...)``), each once, in order of use.

    Raises:
        Untraceable: the graph refers to something else (a sub-graph of a higher-order operator), or calls something
            other than an ATen operator.
    """
    found: dict[int, Tensor] = {}
    for node in graph_module.graph.nodes:
        if node.op == "get_attr" and not _is_literal(node):
            x = operator.attrgetter(node.target)(graph_module)
            if not isinstance(x, Tensor):
                raise Untraceable(f"f's graph holds a {type(x).__name__}")
            found[id(x)] = x
        elif node.op == "call_function" and not (
            isinstance(node.target, torch._ops.OpOverload) or node.target is operator.getitem
        ):
            raise Untraceable(f"f uses {node.target}, which is no plain torch operator")
        elif _has_dynamic_shape(node):
            raise Untraceable("f makes tensors whose size depends on values (a boolean index, nonzero or the like)")
    return tuple(found.values())


def with_inputs(graph_module: fx.GraphModule, tensors: Sequence[Tensor]) -> fx.GraphModule:
    """The graph with extra inputs, after its own, in the place of the tensors it refers to."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    old = list(graph_module.graph.nodes)
    for node in old:
        if node.op == "placeholder":
            copies[node] = graph.node_copy(node, copies.__getitem__)
    inputs = {id(x): graph.placeholder(f"p{i}") for i, x in enumerate(tensors)}
    for x, node in zip(tensors, inputs.values(), strict=True):
        node.meta["val"] = x
    for node in old:
        if node.op == "get_attr" and not _is_literal(node):
            x = operator.attrgetter(node.target)(graph_module)
            if id(x) in inputs:
                copies[node] = inputs[id(x)]
                continue
        if node.op != "placeholder":
            copies[node] = graph.node_copy(node, copies.__getitem__)
    return fx.GraphModule(graph_module, graph)


def with_constants(graph_module: fx.GraphModule, tensors: Sequence[Tensor]) -> fx.GraphModule:
    """The graph with its last inputs replaced by these very tensors: the opposite of :func:`with_inputs`."""
    placeholders = [n for n in graph_module.graph.nodes if n.op == "placeholder"]
    for i, (node, x) in enumerate(zip(placeholders[len(placeholders) - len(tensors) :], tensors, strict=True)):
        name = f"_captured{i}"
        # A plain attribute: registered as a parameter or buffer, it would be moved and counted as the graph's own.
        object.__setattr__(graph_module, name, x)
        with graph_module.graph.inserting_before(node):
            constant = graph_module.graph.create_node("get_attr", name)
        constant.meta["val"] = x
        node.replace_all_uses_with(constant)
        graph_module.graph.erase_node(node)
    graph_module.recompile()
    return graph_module


def has_mutation(graph_module: fx.GraphModule) -> bool:
    """Whether an operator of the graph writes to one of its arguments."""
    return any(
        isinstance(n.target, torch._ops.OpOverload) and n.target._schema.is_mutable for n in _calls(graph_module)
    )


def simplify(graph_module: fx.GraphModule, *, keep_detach: bool = False) -> fx.GraphModule:
    """The same function in fewer nodes: no detach, no double transpose or view, no repeated operator, no dead code.

    For graphs without mutation, run without autograd.

    Args:
        graph_module: changed in place.
        keep_detach: the graph will be differentiated again, so a ``detach`` of f's own has a meaning.
    """
    graph = graph_module.graph
    known: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op == "get_attr":
            first = known.setdefault(("get_attr", node.target), node)
            if first is not node:
                _replace(node, first)
            continue
        if node.op != "call_function":
            continue
        if node.target in _VIEWS and node.args[0].target in _VIEWS:
            node.args = (node.args[0].args[0], *node.args[1:])
        same = _equivalent(node, keep_detach)
        if same is not None:
            _replace(node, same)
            continue
        if node.target in _FACTORIES and _fold(graph_module, node, node.target):
            continue
        key = _key(node)
        if key is not None and known.setdefault(key, node) is not node:
            _replace(node, known[key])
    graph.eliminate_dead_code()
    graph_module.recompile()
    return graph_module


def select_outputs(graph_module: fx.GraphModule, keep: slice | int) -> fx.GraphModule:
    """A copy that computes only some of the outputs."""
    graph = fx.Graph()
    out = graph.graph_copy(graph_module.graph, {})
    graph.output(out[keep])  # type: ignore[index]
    graph.eliminate_dead_code()
    return fx.GraphModule(graph_module, graph)


def operator_counts(graph_module: fx.GraphModule) -> dict[str, int]:
    """How often each operator is called, most frequent first."""
    operators = (n.target for n in _calls(graph_module) if isinstance(n.target, torch._ops.OpOverload))
    return dict(Counter(op._schema.name.removeprefix("aten::") for op in operators).most_common())


def _calls(graph_module: fx.GraphModule) -> list[fx.Node]:
    return [n for n in graph_module.graph.nodes if n.op == "call_function"]


def _is_literal(node: fx.Node) -> bool:
    """A tensor that the code of f spells out, ``torch.tensor([1.0, 2.0])``: made anew in each call."""
    return bool(node.users) and all(user.target in _COPIES for user in node.users)


def _equivalent(node: fx.Node, keep_detach: bool) -> fx.Node | None:
    """An earlier node with the same value."""
    x = node.args[0] if node.args else None
    if not isinstance(x, fx.Node):
        return None
    if node.target in _COPIES or (node.target in _SAME and not keep_detach):
        return x
    if node.target is aten.t.default and x.target is aten.t.default:
        return x.args[0]  # type: ignore[return-value]
    before, after = _shape(x), _shape(node)
    if before is None or before != after:
        return None
    if node.target in _VIEWS or node.target is aten.expand.default:
        return x
    if node.target is aten.sum.dim_IntList and not node.kwargs and len(node.args) == 3:
        # Equal shapes with keepdim: only axes of length 1 are summed.
        return x if node.args[2] and node.args[1] else None
    return None


def _has_dynamic_shape(node: fx.Node) -> bool:
    """Whether the size of the result depends on values; what f computed from that size would be a constant."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or torch.Tag.dynamic_output_shape not in target.tags:
        return False
    if target is not aten.index.Tensor:
        return True
    indices = (i.meta.get("val") for i in node.args[1] if isinstance(i, fx.Node))  # type: ignore[union-attr]
    return any(not isinstance(i, Tensor) or i.dtype in (torch.bool, torch.uint8) for i in indices)


def _shape(node: fx.Node) -> torch.Size | None:
    value = node.meta.get("val")
    return value.shape if isinstance(value, Tensor) else None


def _replace(node: fx.Node, other: fx.Node) -> None:
    node.replace_all_uses_with(other)


def _key(node: fx.Node) -> Any:
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or torch.Tag.nondeterministic_seeded in target.tags:
        return None
    try:
        key = (target, _frozen(node.args), _frozen(tuple(sorted(node.kwargs.items()))))
        hash(key)
    except TypeError:
        return None
    return key


def _frozen(a: Any) -> Any:
    if isinstance(a, (list, tuple)):
        return tuple(map(_frozen, a))
    # 1, 1.0 and True are equal but not the same argument.
    return (type(a), repr(a)) if isinstance(a, (bool, int, float)) else a


def _fold(graph_module: fx.GraphModule, node: fx.Node, factory: Callable[..., Tensor]) -> bool:
    """Replaces a factory call by its value, computed once, where that value cannot leave the graph."""
    shape = _shape(node)
    if node.all_input_nodes or shape is None or shape.numel() > _MAX_FOLDED:
        return False
    if any(user.op == "output" or _may_alias(user) for user in node.users):
        return False
    name = f"_folded_{node.name}"
    object.__setattr__(graph_module, name, factory(*node.args, **node.kwargs))
    with graph_module.graph.inserting_before(node):
        constant = graph_module.graph.create_node("get_attr", name)
    constant.meta["val"] = getattr(graph_module, name)
    _replace(node, constant)
    return True


def _may_alias(user: fx.Node) -> bool:
    """Whether a result of ``user`` may be memory of its argument."""
    target = user.target
    return not isinstance(target, torch._ops.OpOverload) or any(
        r.alias_info is not None for r in target._schema.returns
    )
