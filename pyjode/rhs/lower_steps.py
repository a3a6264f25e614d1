"""The steps that a lowered graph is made of, and the builder that the operators of the table write them with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyjode.rhs.lower_values import (
    Buffer,
    Cat,
    Gather,
    Literal,
    NotLowerable,
    Pointwise,
    Shape,
    Value,
    View,
    concatenate,
    cut,
    expand,
    gathers,
    leaves,
    numel,
    ops,
    reshape,
    whole,
)

_FLOATS = (torch.float32, torch.float64)
JULIA_TYPES = {
    torch.float32: "Float32",
    torch.float64: "Float64",
    torch.bool: "Bool",
    torch.int64: "Int64",
    torch.int32: "Int32",
    torch.int16: "Int16",
    torch.int8: "Int8",
    torch.uint8: "UInt8",
}
_MAX_PARTS = 64
_MAX_OPS = 400
# An expression this cheap is computed again for each use rather than stored and loaded.
_CHEAP = 2
# Matrix products that only OpenBLAS's packing makes fast; below, its calls cost more than the work.
BLAS_FROM = 96**3


@dataclass(eq=False)
class Store:
    """target .= value

    Attributes:
        alone: not to share a loop with others (a transpose, quicker by its own kernel, wanted just before its use).
    """

    target: View
    value: Value
    alone: bool = False


@dataclass(eq=False)
class Reduce:
    """target .= the reduction of value over ``dims`` (axes of value's shape).

    Attributes:
        target: shaped like ``value``, with stride 0 along ``dims``.
        code: Julia for the next accumulator, from ``{0}`` (accumulator) and ``{1}`` (element).
        start: Julia for the first accumulator.
    """

    target: View
    value: Value
    dims: tuple[int, ...]
    code: str
    start: str


@dataclass(eq=False)
class Scan:
    """target[..., i, ...] = code(target[..., i - 1, ...], value[..., i, ...]) along ``dim``."""

    target: View
    value: Value
    dim: int
    code: str


@dataclass(eq=False)
class Matmul:
    """c = a b + start: (batch, m, n) from (batch, m, k) and (batch, k, n)."""

    c: View
    a: View
    b: View
    start: View | None


@dataclass(eq=False)
class Scatter:
    """target[where the indices say] = (or +=) value, element after element.

    Attributes:
        target: as the base of a :class:`Gather` of shape ``value.shape``.
        indices: as in :class:`Gather`.
    """

    target: View
    indices: tuple[tuple[Value, int, int], ...]
    value: Value
    accumulate: bool


Step = Store | Reduce | Scan | Matmul | Scatter


def written(step: Step) -> View:
    return step.c if isinstance(step, Matmul) else step.target


def values(step: Step) -> tuple[Value, ...]:
    """What the step reads."""
    if isinstance(step, Matmul):
        return (step.a, step.b) if step.start is None else (step.a, step.b, step.start)
    if isinstance(step, Scatter):
        return (step.value, *(i for i, _, _ in step.indices))
    return (step.value,)


def reads(step: Step) -> dict[View, None]:
    """Every strided view that the step loads from; gathers count with their base."""
    found: dict[View, None] = {}
    for x in values(step):
        leaves(x, found)
        for g in gathers(x):
            found[g.base] = None
    return found


class Builder:
    """Collects steps in order. A buffer is written once, or in disjoint parts, before it is read."""

    def __init__(self, dtype: torch.dtype, table: list[Tensor], live: frozenset[int]):
        """
        Args:
            dtype: of the state.
            table: tensors whose addresses the generated code is given; grows.
            live: ids of tensors whose contents may change between calls.
        """
        self.dtype = dtype
        self.steps: list[Step] = []
        self._table = table
        self._live = live
        self._tables: dict[int, Buffer] = {}
        self._interned: dict[tuple[object, ...], Pointwise] = {}
        self._realized: dict[int, tuple[Value, View]] = {}
        self._copies: dict[View, View] = {}
        self._count = 0

    # Where values come from

    def temp(self, shape: Shape, dtype: torch.dtype) -> View:
        """New memory; one element is a local variable instead."""
        kind = "register" if numel(shape) == 1 else "temp"
        return whole(Buffer(self.new_name(), kind, dtype, numel(shape)), shape)

    def memory(self, shape: Shape, dtype: torch.dtype) -> View:
        """New memory, also for one element."""
        return whole(Buffer(self.new_name(), "temp", dtype, numel(shape)), shape)

    def new_name(self) -> str:
        self._count += 1
        return f"b{self._count}"

    def from_table(self, x: Tensor) -> View:
        """A tensor read through the pointer table."""
        if x.dtype not in JULIA_TYPES:
            raise NotLowerable("constant", f"a tensor of dtype {x.dtype} cannot be read; use float32 or float64")
        buffer = self._tables.get(id(x))
        if buffer is None:
            index = next((i for i, y in enumerate(self._table) if y is x), len(self._table))
            if index == len(self._table):
                self._table.append(x)
            size = 1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
            buffer = self._tables[id(x)] = Buffer(f"c{index + 1}", "table", x.dtype, size)
        return View(buffer, 0, tuple(x.shape), tuple(x.stride()))

    def is_live(self, x: Tensor) -> bool:
        return id(x) in self._live

    def constant(self, x: Tensor) -> Value:
        """A tensor known now."""
        if x.numel() and not self.is_live(x):
            first = x.reshape(-1)[0]
            if x.numel() == 1 or bool((x == first).all()):
                return Literal(first.item(), tuple(x.shape), x.dtype)
        return self.from_table(x)

    # Expressions

    def pointwise(self, code: str, *args: Value, dtype: torch.dtype, work: int = 1) -> Value:
        """``code`` on each element of the arguments, broadcast."""
        shape = tuple(torch.broadcast_shapes(*(a.shape for a in args)))
        args = tuple(expand(a, shape) for a in args)
        cats = [a for a in args if isinstance(a, Cat)]
        if cats:
            return self._pointwise_parts(code, args, cats[0].dim, shape, dtype, work)
        args = tuple(self.stored(a) if ops(a) > _MAX_OPS else a for a in args)
        key = (code, shape, dtype, *(id(a) if isinstance(a, (Pointwise, Gather)) else a for a in args))
        # 0.0 and -0.0, 1 and 1.0 are equal but not the same argument.
        key += tuple(repr(a.value) for a in args if isinstance(a, Literal))
        found = self._interned.get(key)
        if found is None:
            found = Pointwise(code, args, shape, dtype, work + sum(map(ops, args)))
            self._interned[key] = found
        return found

    def _pointwise_parts(
        self, code: str, args: tuple[Value, ...], dim: int, shape: Shape, dtype: torch.dtype, work: int
    ) -> Value:
        ends = {shape[dim]}
        for a in args:
            if isinstance(a, Cat) and a.dim == dim:
                end = 0
                for p in a.parts:
                    end += p.shape[dim]
                    ends.add(end)
        if len(ends) > _MAX_PARTS:
            args = tuple(self.stored(a) if isinstance(a, Cat) else a for a in args)
            return self.pointwise(code, *args, dtype=dtype, work=work)
        parts, start = [], 0
        for end in sorted(ends):
            pieces = (cut(a, dim, start, end - start) for a in args)
            parts.append(self.pointwise(code, *pieces, dtype=dtype, work=work))
            start = end
        return concatenate(parts, dim, shape, dtype)

    def cast(self, x: Value, dtype: torch.dtype) -> Value:
        """As ``x.to(dtype)``."""
        if x.dtype == dtype:
            return x
        if dtype not in JULIA_TYPES:
            raise NotLowerable("_to_copy", f"dtype {dtype} has no Julia code; use float32 or float64")
        if isinstance(x, Literal):
            return Literal(torch.tensor(x.value, dtype=x.dtype).to(dtype).item(), x.shape, dtype)
        if dtype == torch.bool:
            return self.pointwise("({0} != 0)", x, dtype=dtype)
        if dtype not in _FLOATS and x.dtype in _FLOATS:
            return self.pointwise(f"unsafe_trunc({JULIA_TYPES[dtype]}, {{0}})", x, dtype=dtype)
        return self.pointwise(f"{JULIA_TYPES[dtype]}({{0}})", x, dtype=dtype)

    # Memory

    def store(self, target: View, x: Value) -> None:
        if isinstance(x, Cat):
            start = 0
            for p in x.parts:
                n = p.shape[x.dim]
                part = cut(target, x.dim, start, n)
                assert isinstance(part, View)
                self.store(part, p)
                start += n
        elif numel(target.shape):
            self.steps.append(Store(target, x))

    def stored(self, x: Value) -> View:
        """``x`` in memory (or a register), in whatever strides it has."""
        if isinstance(x, View):
            return x
        known = self._realized.get(id(x))
        if known is not None and known[0] is x:
            return known[1]
        target = self.temp(x.shape, x.dtype)
        self.store(target, x)
        self._realized[id(x)] = (x, target)
        return target

    def in_memory(self, x: Value, dtype: torch.dtype) -> View:
        """``x`` as memory of ``dtype`` that a matrix product can read."""
        x = self.stored(self.cast(x, dtype))
        if x.buffer.kind != "register":
            return x
        target = self.memory((), x.dtype)
        self.steps.append(Store(target, View(x.buffer, x.offset, (), ())))
        return View(target.buffer, 0, x.shape, (0,) * len(x.shape))

    def shared(self, x: Value, uses: int) -> Value:
        """``x``, stored if computing it again for each of its uses would cost more."""
        if isinstance(x, Cat):
            parts = tuple(self.shared(p, uses) for p in x.parts)
            return Cat(x.dim, parts, x.shape, x.dtype)
        if uses > 1 and ops(x) > _CHEAP:
            return self.stored(x)
        return x

    def expanded(self, x: Value, shape: Shape) -> Value:
        """Broadcast; what is costly is computed before it is repeated."""
        if numel(shape) > numel(x.shape) and ops(x) > _CHEAP:
            x = self.shared(x, 2)
        return expand(x, shape)

    def reshaped(self, x: Value, shape: Shape) -> Value:
        out = reshape(x, shape)
        if out is None:
            if isinstance(x, View):
                target = self.temp(x.shape, x.dtype)
                self.store(target, x)
                x = target
            else:
                x = self.stored(x)
            out = reshape(x, shape)
        if out is None:  # an expression stored before, in strides that do not allow it
            assert isinstance(x, View)
            target = self.temp(x.shape, x.dtype)
            self.store(target, x)
            out = reshape(target, shape)
        assert out is not None
        return out

    # Steps

    def reduce(self, x: Value, dims: Sequence[int], keepdim: bool, code: str, start: str, dtype: torch.dtype) -> Value:
        """The reduction over ``dims`` (all where empty)."""
        rank = len(x.shape)
        axes = {d % rank for d in dims} if dims and rank else set(range(rank))
        kept = tuple(1 if d in axes else n for d, n in enumerate(x.shape))
        out_shape = kept if keepdim else tuple(n for d, n in enumerate(x.shape) if d not in axes)
        if isinstance(x, Cat):
            x = self.stored(x)
        target = self.temp(kept, dtype)
        over = View(target.buffer, 0, x.shape, tuple(0 if d in axes else s for d, s in enumerate(target.strides)))
        self.steps.append(Reduce(over, x, tuple(sorted(axes)), code, start))
        return whole(target.buffer, out_shape)

    def matmul(self, a: Value, b: Value, start: Value | None = None) -> View:
        """(batch, m, k) times (batch, k, n), plus ``start``, broadcast to (batch, m, n)."""
        dtype = a.dtype
        left, right = self.in_memory(a, dtype), self.in_memory(b, dtype)
        batch, m, k = left.shape
        n = right.shape[2]
        shape = (batch, m, n)
        first = None if start is None else self.in_memory(expand(start, shape), dtype)
        if first is None and k == 0:
            return self.stored(Literal(0.0, shape, dtype))
        c = self.memory(shape, dtype)
        self._product(c, left, right, first, batch, m, n, k)
        return c

    def _product(self, c: View, a: View, b: View, start: View | None, batch: int, m: int, n: int, k: int) -> None:
        """Brings the operands into a form that the kernels (julia/src/native/matmul.jl) are quick on."""
        if m * n * k >= BLAS_FROM:
            self.steps.append(Matmul(c, a, b, start))
            return
        if n == 1 and m > 1:
            c, a, b = _transposed(c), _transposed(b), _transposed(a)
            start = None if start is None else _transposed(start)
            m, n = n, m
        if n <= 4 and k > 4 and m >= 8 and b.strides[2] == 1 and n > 1:
            if a.strides[2] == 1:  # dot products want both operands contiguous along k
                b = _transposed(self._packed(_transposed(b)))
            elif a.strides[1] == 1:  # the wide axis is the one to vectorize
                flipped = self.temp((batch, n, m), c.dtype)
                first = None if start is None else _transposed(start)
                self.steps.append(Matmul(flipped, _transposed(b), _transposed(a), first))
                self.steps.append(Store(c, _transposed(flipped), alone=True))
                return
        elif m >= 4 and b.strides[2] != 1 and n > 4:
            # Vectors along n are quicker than dot products along k, even with the transpose before them.
            b = self._packed(b)
        self.steps.append(Matmul(c, a, b, start))

    def _packed(self, x: View) -> View:
        """A contiguous copy, one for all uses."""
        if x not in self._copies:
            self._copies[x] = self.temp(x.shape, x.dtype)
            self.steps.append(Store(self._copies[x], x, alone=True))
        return self._copies[x]


def _transposed(x: View) -> View:
    batch, m, n = x.shape
    s, sm, sn = x.strides
    return View(x.buffer, x.offset, (batch, n, m), (s, sn, sm))
