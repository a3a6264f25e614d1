"""What a node of a graph becomes while it is lowered: strided memory, or an expression not yet computed.

A view of torch (permute, select, expand, ...) is only another offset, shape and strides; of an expression it is the
view of each of its leaves. Concatenations stay lists of parts, so that ``cat([x, y])[0]`` is ``x`` and the zeros that
the backward of ``select`` is made of are never added.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

Shape = tuple[int, ...]


class NotLowerable(Exception):
    """A graph holds something that has no Julia code.

    Attributes:
        op: the operator or effect, in torch's name for it.
        why: for the user.
    """

    def __init__(self, op: str, why: str):
        super().__init__(f"{op}: {why}")
        self.op = op
        self.why = why


@dataclass(eq=False)
class Buffer:
    """Memory, or for ``kind`` "register" a local variable of the generated code.

    Attributes:
        name: of the pointer in the generated code.
        kind: "input", "output", "table" (address from the pointer table), "temp" or "register".
        home: for a temp that is part of an output: the output, and the offset in it.
    """

    name: str
    kind: str
    dtype: torch.dtype
    numel: int
    home: tuple[Buffer, int] | None = None


@dataclass(frozen=True)
class View:
    """Strided memory; strides and offset in elements."""

    buffer: Buffer
    offset: int
    shape: Shape
    strides: Shape

    @property
    def dtype(self) -> torch.dtype:
        return self.buffer.dtype

    @property
    def is_contiguous(self) -> bool:
        expected = contiguous_strides(self.shape)
        return all(n == 1 or s == e for n, s, e in zip(self.shape, self.strides, expected, strict=True))


@dataclass(frozen=True)
class Literal:
    """The same number everywhere."""

    value: float | int | bool
    shape: Shape
    dtype: torch.dtype


@dataclass(frozen=True)
class Time:
    """t everywhere, rounded to the state's dtype."""

    shape: Shape
    dtype: torch.dtype


@dataclass(eq=False)
class Pointwise:
    """One elementwise operator on arguments of its own shape.

    Attributes:
        code: Julia with ``{0}``, ``{1}`` for the arguments.
        ops: number of operators in the tree, transcendental ones counted as 20.
    """

    code: str
    args: tuple[Value, ...]
    shape: Shape
    dtype: torch.dtype
    ops: int


@dataclass(eq=False)
class Gather:
    """``base`` displaced by indices times strides: ``base.buffer[base.offset + ... + sum(index_k * stride_k)]``.

    Attributes:
        base: its strides are those of the axes that are not indexed, 0 elsewhere.
        indices: integers (any expression) of shape ``base.shape``, with stride and length of the axis they run over.
    """

    base: View
    indices: tuple[tuple[Value, int, int], ...]

    @property
    def shape(self) -> Shape:
        return self.base.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.base.dtype

    @property
    def ops(self) -> int:
        return 2 + sum(ops(i) for i, _, _ in self.indices)


@dataclass(frozen=True, eq=False)
class Cat:
    """Parts one after the other along ``dim``."""

    dim: int
    parts: tuple[Value, ...]
    shape: Shape
    dtype: torch.dtype


Value = View | Literal | Time | Pointwise | Gather | Cat


def ops(x: Value) -> int:
    """The work of computing one element of ``x`` from memory."""
    if isinstance(x, (Pointwise, Gather)):
        return x.ops
    if isinstance(x, Cat):
        return max(map(ops, x.parts), default=0)
    return 0


def numel(shape: Shape) -> int:
    return math.prod(shape)


def contiguous_strides(shape: Shape) -> Shape:
    strides: list[int] = []
    step = 1
    for n in reversed(shape):
        strides.append(step)
        step *= max(n, 1)
    return tuple(reversed(strides))


def whole(buffer: Buffer, shape: Shape) -> View:
    """All of a buffer, contiguous."""
    return View(buffer, 0, shape, contiguous_strides(shape))


def view_strides(shape: Shape, strides: Shape, new: Shape) -> Shape | None:
    """Strides of ``new`` on the same memory, or ``None`` where only a copy can have that shape.

    Source: ``at::detail::computeStride`` of ATen.
    """
    if numel(shape) == 0:
        return contiguous_strides(new)
    # Runs of axes that are contiguous among themselves, innermost last.
    runs: list[tuple[int, int]] = []
    for n, s in zip(shape, strides, strict=True):
        if n == 1:
            continue
        if runs and runs[-1][1] == s * n:
            runs[-1] = (runs[-1][0] * n, s)
        else:
            runs.append((n, s))
    out: list[int] = []
    left, step = runs.pop() if runs else (1, 1)
    for n in reversed(new):
        if n == 1:
            out.append(step)
            continue
        if left == 1 and runs:
            left, step = runs.pop()
        if left % n:
            return None
        out.append(step)
        left //= n
        step *= n
    return tuple(reversed(out))


@dataclass
class _OnLeaves:
    """Applies a change of strides to every leaf of an expression."""

    change: Callable[[View], View | None]
    shape: Shape
    memo: dict[int, Value | None] = field(default_factory=dict)

    def __call__(self, x: Value) -> Value | None:
        if isinstance(x, View):
            return self.change(x)
        if isinstance(x, Literal):
            return Literal(x.value, self.shape, x.dtype)
        if isinstance(x, Time):
            return Time(self.shape, x.dtype)
        if id(x) not in self.memo:
            self.memo[id(x)] = self._inner(x)
        return self.memo[id(x)]

    def _inner(self, x: Value) -> Value | None:
        if isinstance(x, Pointwise):
            args = [self(a) for a in x.args]
            if any(a is None for a in args):
                return None
            return Pointwise(x.code, tuple(args), self.shape, x.dtype, x.ops)  # type: ignore[arg-type]
        assert isinstance(x, Gather)
        base = self.change(x.base)
        indices = [(self(i), stride, n) for i, stride, n in x.indices]
        if base is None or any(i is None for i, _, _ in indices):
            return None
        return Gather(base, tuple(indices))  # type: ignore[arg-type]


def permute(x: Value, dims: Shape) -> Value:
    shape = tuple(x.shape[d] for d in dims)
    if isinstance(x, Cat):
        return Cat(dims.index(x.dim), tuple(permute(p, dims) for p in x.parts), shape, x.dtype)
    return _sure(x, lambda v: View(v.buffer, v.offset, shape, tuple(v.strides[d] for d in dims)), shape)


def unsqueeze(x: Value, dim: int) -> Value:
    shape = (*x.shape[:dim], 1, *x.shape[dim:])
    if isinstance(x, Cat):
        return Cat(x.dim + (dim <= x.dim), tuple(unsqueeze(p, dim) for p in x.parts), shape, x.dtype)
    return _sure(x, lambda v: View(v.buffer, v.offset, shape, (*v.strides[:dim], 0, *v.strides[dim:])), shape)


def squeeze(x: Value, dim: int) -> Value:
    """Without axis ``dim``, of length 1."""
    return select(x, dim, 0)


def select(x: Value, dim: int, index: int) -> Value:
    shape = (*x.shape[:dim], *x.shape[dim + 1 :])
    if isinstance(x, Cat):
        if dim == x.dim:
            for part in x.parts:
                if index < part.shape[dim]:
                    return select(part, dim, index)
                index -= part.shape[dim]
        return Cat(x.dim - (dim < x.dim), tuple(select(p, dim, index) for p in x.parts), shape, x.dtype)
    return _sure(
        x,
        lambda v: View(v.buffer, v.offset + index * v.strides[dim], shape, (*v.strides[:dim], *v.strides[dim + 1 :])),
        shape,
    )


def cut(x: Value, dim: int, start: int, length: int, step: int = 1) -> Value:
    """``x[start : start + length * step : step]`` along ``dim``; ``step`` may be negative."""
    if start == 0 and step == 1 and length == x.shape[dim]:
        return x
    shape = (*x.shape[:dim], length, *x.shape[dim + 1 :])
    if isinstance(x, Cat) and dim == x.dim:
        return _cut_cat(x, start, length, step, shape)
    if isinstance(x, Cat):
        return Cat(x.dim, tuple(cut(p, dim, start, length, step) for p in x.parts), shape, x.dtype)

    def change(v: View) -> View:
        s = v.strides[dim]
        return View(v.buffer, v.offset + start * s, shape, (*v.strides[:dim], s * step, *v.strides[dim + 1 :]))

    return _sure(x, change, shape)


def _cut_cat(x: Cat, start: int, length: int, step: int, shape: Shape) -> Value:
    parts: list[Value] = []
    begin = 0
    wanted = range(start, start + length * step, step)
    for part in x.parts:
        n = part.shape[x.dim]
        inside = [i - begin for i in wanted if begin <= i < begin + n]
        if inside:
            parts.append(cut(part, x.dim, inside[0], len(inside), step))
        begin += n
    if step < 0:
        parts.reverse()
    return concatenate(parts, x.dim, shape, x.dtype)


def concatenate(parts: list[Value], dim: int, shape: Shape, dtype: torch.dtype) -> Value:
    flat: list[Value] = []
    for p in parts:
        if p.shape[dim] == 0:
            continue
        if isinstance(p, Cat) and p.dim == dim:
            flat.extend(p.parts)
        else:
            flat.append(p)
    if len(flat) == 1:
        return flat[0]
    if not flat:
        return Literal(0, shape, dtype)
    return Cat(dim, tuple(flat), shape, dtype)


def expand(x: Value, shape: Shape) -> Value:
    """Broadcast to ``shape``, as torch's expand."""
    if tuple(x.shape) == tuple(shape):
        return x
    for _ in range(len(shape) - len(x.shape)):
        x = unsqueeze(x, 0)
    if tuple(x.shape) == tuple(shape):
        return x
    if isinstance(x, Cat):
        parts = tuple(expand(p, tuple(p.shape[d] if d == x.dim else n for d, n in enumerate(shape))) for p in x.parts)
        return Cat(x.dim, parts, shape, x.dtype)
    old = x.shape

    def change(v: View) -> View:
        strides = tuple(0 if o == 1 and n != 1 else s for s, o, n in zip(v.strides, old, shape, strict=True))
        return View(v.buffer, v.offset, shape, strides)

    return _sure(x, change, shape)


def reshape(x: Value, shape: Shape) -> Value | None:
    """As torch's view; ``None`` where the memory does not allow it."""
    if tuple(x.shape) == tuple(shape):
        return x
    if isinstance(x, Cat):
        return _reshape_cat(x, shape)

    def change(v: View) -> View | None:
        strides = view_strides(v.shape, v.strides, shape)
        return None if strides is None else View(v.buffer, v.offset, shape, strides)

    return _OnLeaves(change, shape)(x)


def _reshape_cat(x: Cat, shape: Shape) -> Value | None:
    """Possible where the axes before ``dim`` keep their product, and those after it too or are taken in."""
    before = numel(x.shape[: x.dim])
    for dim in range(len(shape)):
        if numel(shape[:dim]) != before:
            continue
        after = numel(shape[dim + 1 :])
        sizes = [numel(p.shape[x.dim :]) for p in x.parts]
        if after == 0 or any(n % after for n in sizes):
            continue
        parts = [reshape(p, (*shape[:dim], n // after, *shape[dim + 1 :])) for p, n in zip(x.parts, sizes, strict=True)]
        if all(p is not None for p in parts):
            return Cat(dim, tuple(parts), shape, x.dtype)  # type: ignore[arg-type]
    return None


def _sure(x: Value, change: Callable[[View], View], shape: Shape) -> Value:
    out = _OnLeaves(change, shape)(x)
    assert out is not None
    return out


def leaves(x: Value, found: dict[View, None] | None = None, seen: set[int] | None = None) -> dict[View, None]:
    """The strided memory that ``x`` reads, each view once, in order (not that of gathers' bases)."""
    found = {} if found is None else found
    seen = set() if seen is None else seen
    if isinstance(x, View):
        found[x] = None
    elif isinstance(x, (Pointwise, Gather, Cat)) and id(x) not in seen:
        seen.add(id(x))
        for a in children(x):
            leaves(a, found, seen)
    return found


def gathers(x: Value) -> list[Gather]:
    out = [x] if isinstance(x, Gather) else []
    for a in children(x):
        out += gathers(a)
    return out


def children(x: Value) -> tuple[Value, ...]:
    if isinstance(x, Pointwise):
        return x.args
    if isinstance(x, Gather):
        return tuple(i for i, _, _ in x.indices)
    if isinstance(x, Cat):
        return x.parts
    return ()
