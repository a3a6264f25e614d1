"""An fx graph of ATen calls as one plain Python function.

``torch.ops.aten.mm.default`` goes through torch's generic dispatcher for Python calls, ``torch.mm`` through generated
bindings: the same kernel, about a microsecond less a call (benchmarks/rhs_cost.py). So each call is made through the
binding of the same name where there is one, and the result compared once with the graph's own.
"""

from __future__ import annotations

import math
import operator
import re
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

# Keeping a small intermediate a little longer costs nothing; dropping it costs a store.
_LARGE = 4096


def compile_graph(graph_module: fx.GraphModule, example: tuple[Tensor, ...]) -> Callable[..., Any]:
    """A function that does what the graph does.

    Args:
        graph_module: only ``call_function`` nodes besides placeholders, ``get_attr`` and the output. Tensors it holds
            (``get_attr``) are referred to, not copied.
        example: one set of inputs, on which the two are compared.

    Returns:
        A function of the graph's inputs: a tensor, or a tuple where the graph has several outputs.
    """
    plain = _generate(graph_module, bindings=False)
    quick = _generate(graph_module, bindings=True)
    with torch.no_grad():
        want = plain(*example)
        try:
            got = quick(*example)
        except (RuntimeError, TypeError):
            return plain
    return quick if _equal(want, got) else plain


def _generate(graph_module: fx.GraphModule, *, bindings: bool) -> Callable[..., Any]:
    space: dict[str, Any] = {}
    used: dict[Any, str] = {}

    def constant(x: Any, prefix: str = "_c") -> str:
        key = (prefix, id(x))
        if key not in used:
            used[key] = f"{prefix}{len(used)}"
            space[used[key]] = x
        return used[key]

    def text(a: Any) -> str:
        if isinstance(a, fx.Node):
            return name(a)
        if isinstance(a, (list, tuple)):
            inner = ", ".join(map(text, a))
            return f"[{inner}]" if isinstance(a, list) else f"({inner}{',' if a else ''})"
        if a is None or isinstance(a, (bool, int, str)) or (isinstance(a, float) and math.isfinite(a)):
            return repr(a)
        return constant(a)

    def name(node: fx.Node) -> str:
        # Tensors of the graph become globals of the function; the rest are its locals.
        return constants[node] if node in constants else "x_" + re.sub(r"\W", "_", node.name)

    nodes = list(graph_module.graph.nodes)
    constants = {n: constant(_attribute(graph_module, n.target), "_k") for n in nodes if n.op == "get_attr"}
    last_use = {a: n for n in nodes for a in n.all_input_nodes}
    lines: list[str] = []
    for node in nodes:
        if node.op == "call_function":
            function = constant(_callee(node.target, bindings), "_f")
            arguments = [text(a) for a in node.args] + [f"{k}={text(v)}" for k, v in node.kwargs.items()]
            lines.append(f"{name(node)} = {function}({', '.join(arguments)})")
            done = [a for a in node.all_input_nodes if last_use[a] is node and a.op == "call_function" and _is_large(a)]
            if done:
                lines.append(" = ".join(map(name, done)) + " = None")
        elif node.op == "output":
            lines.append(f"return {text(node.args[0])}")
    parameters = ", ".join(name(n) for n in nodes if n.op == "placeholder")
    source = f"def run({parameters}):\n    " + "\n    ".join(lines)
    exec(compile(source, "<pyjode traced right-hand side>", "exec"), space)
    run: Callable[..., Any] = space["run"]
    return run


def _callee(target: Any, bindings: bool) -> Callable[..., Any]:
    if not isinstance(target, torch._ops.OpOverload):
        return target
    if bindings and target.namespace == "aten":
        op = target._schema.name.removeprefix("aten::")
        for owner in (torch, Tensor):
            binding = getattr(owner, op, None)
            if isinstance(binding, (types.BuiltinFunctionType, types.MethodDescriptorType)):
                return binding
    return target._op


def _attribute(graph_module: fx.GraphModule, target: str) -> Any:
    return operator.attrgetter(target)(graph_module)


def _is_large(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return not isinstance(value, Tensor) or value.numel() >= _LARGE


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        return bool(torch.allclose(a, b, rtol=1e-6, atol=1e-12, equal_nan=True))
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)
