"""A nest of tensors as one flat vector and back.

Engines see a state as one real vector of shape ``(n,)``; users see the tensor, tuple, list or dict of tensors they
passed. Both directions are ordinary torch operations, so autograd sees through them.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils import _pytree as pytree

from pyjode.errors import InputError
from pyjode.hash_once import hash_once

_REAL_OF = {torch.complex64: torch.float32, torch.complex128: torch.float64}
_SUPPORTED = (torch.float32, torch.float64, torch.complex64, torch.complex128)


@dataclass(frozen=True)
class Leaf:
    """Shape and dtype of one tensor of a state, and the slice of the flat vector it occupies."""

    shape: torch.Size
    dtype: torch.dtype
    start: int
    stop: int

    @property
    def is_complex(self) -> bool:
        return self.dtype.is_complex


@hash_once
@dataclass(frozen=True)
class StateLayout:
    """How a state (any nest of tensors) maps to a flat real vector of shape ``(n,)``.

    Complex leaves occupy two reals an entry (real part, imaginary part, interleaved). The flat dtype is the widest
    real dtype among the leaves. Hashable: caches use it as a key.
    """

    treespec: Any
    leaves: tuple[Leaf, ...]
    n: int
    dtype: torch.dtype
    device: torch.device

    @staticmethod
    def of(y0: Any, name: str = "y0") -> StateLayout:
        """The layout of ``y0``.

        Args:
            y0: a tensor of any shape, or any nest (tuple, list, dict, namedtuple) of tensors; float32, float64,
                complex64 or complex128.
            name: what error messages call it.

        Raises:
            InputError: an entry is no tensor, has an integer or half-precision dtype, the nest is empty, or its
                tensors are on several devices.
        """
        if isinstance(y0, Tensor):
            return _tensor_layout(y0.shape, y0.dtype, y0.device, name)
        tensors, treespec = pytree.tree_flatten(y0)
        if not tensors:
            raise InputError(f"{name} holds no tensor")
        return StateLayout._of_leaves(tensors, treespec, name)

    @staticmethod
    def _of_leaves(tensors: list[Any], treespec: Any, name: str) -> StateLayout:
        leaves, start = [], 0
        for i, x in enumerate(tensors):
            where = name if len(tensors) == 1 else f"tensor {i} of {name}"
            if not isinstance(x, Tensor):
                raise InputError(f"{where} is {type(x).__name__}, not a torch tensor")
            if x.dtype not in _SUPPORTED:
                raise InputError(
                    f"{where} has dtype {x.dtype}; a state is float32, float64, complex64 or complex128: "
                    f"convert it, e.g. with .to(torch.float32)"
                )
            if x.device != tensors[0].device:
                raise InputError(f"{where} is on {x.device}, the first tensor of {name} on {tensors[0].device}")
            size = math.prod(x.shape) * (2 if x.dtype.is_complex else 1)
            leaves.append(Leaf(x.shape, x.dtype, start, start + size))
            start += size
        if start == 0:
            raise InputError(f"{name} has no entries: shape {tuple(tensors[0].shape)}")
        reals = {_REAL_OF.get(leaf.dtype, leaf.dtype) for leaf in leaves}
        dtype = torch.float64 if torch.float64 in reals else torch.float32
        return StateLayout(treespec, tuple(leaves), start, dtype, tensors[0].device)

    @functools.cached_property
    def is_single_tensor(self) -> bool:
        """Whether the state is one bare real tensor of the flat dtype."""
        return self.treespec.is_leaf() and not self.leaves[0].is_complex

    def flatten(self, y: Any) -> Float[Tensor, " n"]:
        """``y`` (nest with this layout) as a vector of shape ``(n,)`` and the flat dtype."""
        return self._flatten_leaves([y] if isinstance(y, Tensor) else pytree.tree_leaves(y))

    def unflatten(self, u: Float[Tensor, "*lead n"]) -> Any:
        """The nest that a vector of shape ``(*lead, n)`` stands for; each leaf has shape ``(*lead, *leaf.shape)``."""
        lead = u.shape[:-1]
        parts = []
        for leaf in self.leaves:
            x = u if len(self.leaves) == 1 else u[..., leaf.start : leaf.stop]
            if leaf.is_complex:
                # Not view_as_complex: the slice may start at an odd offset.
                x = x.reshape((*lead, *leaf.shape, 2))
                x = torch.complex(x[..., 0], x[..., 1]).to(leaf.dtype)
            else:
                x = x.reshape((*lead, *leaf.shape))
                if x.dtype != leaf.dtype:
                    x = x.to(leaf.dtype)
            parts.append(x)
        return parts[0] if self.treespec.is_leaf() else pytree.tree_unflatten(parts, self.treespec)

    def flatten_derivative(self, dy: Any) -> Float[Tensor, " n"]:
        """What f returned, checked against this layout, as a vector of shape ``(n,)``.

        Raises:
            InputError: another structure, shape, dtype or device than the state's.
        """
        parts, treespec = pytree.tree_flatten(dy)
        if treespec != self.treespec and len(parts) == len(self.leaves):
            # A list where the state is a tuple is harmless; another number of tensors is not.
            parts = list(parts)
        elif len(parts) != len(self.leaves):
            raise InputError(f"f returned {len(parts)} tensors for a state of {len(self.leaves)}")
        for i, (x, leaf) in enumerate(zip(parts, self.leaves, strict=True)):
            which = "f returned" if len(parts) == 1 else f"f returned, as tensor {i},"
            if not isinstance(x, Tensor):
                raise InputError(f"{which} {type(x).__name__}, not a torch tensor")
            if x.shape != leaf.shape:
                raise InputError(
                    f"{which} shape {tuple(x.shape)}; the derivative has the state's shape, {tuple(leaf.shape)}"
                )
            if x.dtype != leaf.dtype:
                raise InputError(
                    f"{which} dtype {x.dtype}; the state has {leaf.dtype}: convert f's parameters and constants "
                    f"(module.to({leaf.dtype})) or y0"
                )
            if x.device != self.device:
                raise InputError(f"{which} a tensor on {x.device}; the state is on {self.device}")
        return self._flatten_leaves(parts)

    def _flatten_leaves(self, tensors: list[Tensor]) -> Tensor:
        flat = []
        for x in tensors:
            if x.dtype.is_complex:
                x = torch.view_as_real(x.resolve_conj())
            x = x.reshape(-1)
            flat.append(x if x.dtype == self.dtype else x.to(self.dtype))
        return flat[0] if len(flat) == 1 else torch.cat(flat)


@functools.lru_cache(maxsize=256)
def _tensor_layout(shape: torch.Size, dtype: torch.dtype, device: torch.device, name: str) -> StateLayout:
    """The layout of one tensor: what most states are, looked up rather than worked out at each solve."""
    meta = torch.empty(shape, dtype=dtype, device="meta")
    layout = StateLayout._of_leaves([meta], pytree.tree_structure(meta), name)
    return dataclasses.replace(layout, device=device)
