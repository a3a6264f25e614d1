"""The differentiable tensors a right-hand side depends on: found, or refused, never forgotten.

Parameters of modules and tensors the code names are found by walking f's Python objects (reach.py); what that walk
cannot see is found from the traced graph's constants or from the autograd graph of one evaluation.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction

from pyjode.errors import InputError
from pyjode.rhs.reach import Reach


def explicit_params(params: Iterable[Any] | nn.Module | None) -> tuple[Tensor, ...]:
    """What ``params=`` names, each once, in order.

    Args:
        params: tensors that require grad, or a module (its parameters that require grad), or ``None``.

    Raises:
        InputError: an entry is no tensor or does not require grad.
    """
    if params is None:
        return ()
    if isinstance(params, nn.Module):
        return unique(p for p in params.parameters() if p.requires_grad)
    if isinstance(params, Tensor):
        params = (params,)
    given = tuple(params)
    for i, p in enumerate(given):
        if not isinstance(p, Tensor):
            raise InputError(f"params[{i}] is {type(p).__name__}, not a torch tensor")
        if not p.requires_grad:
            raise InputError(
                f"params[{i}], of shape {tuple(p.shape)}, does not require grad: "
                f"leave it out, or call requires_grad_() on it"
            )
    return unique(given)


def module_params(reach: Reach) -> tuple[Tensor, ...]:
    """The parameters that require grad of every module f reaches, in module order, shared ones once."""
    return unique(p for _, m in reach.modules for p in m._parameters.values() if p is not None and p.requires_grad)


def reached_leaves(reach: Reach) -> tuple[Tensor, ...]:
    """The leaves that require grad behind every tensor f's code names (the tensor itself, where it is a leaf)."""
    found: list[Tensor] = []
    for slot in reach.guarded_slots():
        try:
            x = slot.get()
        except (KeyError, IndexError, ValueError):
            continue
        if isinstance(x, Tensor) and x.requires_grad:
            found.extend(graph_leaves(x).leaves)
    return unique(found)


@dataclass(frozen=True)
class GraphLeaves:
    """What an autograd graph rests on."""

    leaves: tuple[Tensor, ...]
    custom_functions: tuple[str, ...]
    """Names of the ``torch.autograd.Function`` classes in it."""


def graph_leaves(out: Tensor, stops: Iterable[Any] = ()) -> GraphLeaves:
    """The leaf tensors that the autograd graph of ``out`` would send gradients to.

    Args:
        out: any tensor.
        stops: tensors whose own graphs are not walked: they are known already.
    """
    if not out.requires_grad:
        return GraphLeaves((), ())
    if out.grad_fn is None:
        return GraphLeaves((out,), ())
    nodes = _nodes(out.grad_fn, {s.grad_fn for s in stops if s.grad_fn is not None})
    leaves = [x for x in map(_variable, nodes) if x is not None]
    custom = [type(n).__name__.removesuffix("Backward") for n in nodes if isinstance(n, BackwardCFunction)]
    return GraphLeaves(unique(reversed(leaves)), tuple(dict.fromkeys(custom)))


def overlap(params: tuple[Tensor, ...]) -> tuple[Tensor, Tensor] | None:
    """Two parameters of which the first is computed from the second, if there are any.

    Autograd's gradient for the second then contains what goes through the first.
    """
    for p in params:
        if p.grad_fn is None:
            continue
        nodes = _nodes(p.grad_fn)
        variables = {id(x) for x in map(_variable, nodes) if x is not None}
        for x in params:
            if x is not p and (id(x) in variables or (x.grad_fn is not None and x.grad_fn in nodes)):
                return p, x
    return None


def check_no_overlap(params: tuple[Tensor, ...]) -> None:
    """Refuses parameters of which one is computed from another, where autograd would count a gradient twice.

    Raises:
        InputError: such a pair is there.
    """
    pair = overlap(params)
    if pair is not None:
        raise InputError(
            f"f depends on a tensor of shape {tuple(pair[0].shape)} and on the tensor of shape "
            f"{tuple(pair[1].shape)} it was computed from; name only one of them in params="
        )


def _nodes(root: Any, stops: set[Any] | None = None) -> dict[Any, None]:
    """Every node of an autograd graph, in order of the walk."""
    # Node wrappers held here stay alive, which is what makes their identity stable during the walk.
    nodes: dict[Any, None] = {}
    stack = [root]
    while stack:
        node = stack.pop()
        if node is None or node in nodes or (stops and node in stops):
            continue
        nodes[node] = None
        stack.extend(next_node for next_node, _ in node.next_functions)
    return nodes


def _variable(node: Any) -> Tensor | None:
    """The leaf tensor an AccumulateGrad node belongs to."""
    return node.variable if type(node).__name__ == "AccumulateGrad" else None


def unique(tensors: Iterable[Any]) -> tuple[Tensor, ...]:
    """Each tensor object once, in order."""
    return tuple({id(x): x for x in tensors}.values())


def name_of(tensor: Tensor, reach: Reach) -> str:
    """What a user would call it, else its shape."""
    return reach.tensors.get(id(tensor), f"a tensor of shape {tuple(tensor.shape)}")
