"""The table: ATen operator to steps and expressions. What is not here is decomposed by torch, or has no lowering.

Names are those of ATen without the overload. Functions called in the code (``N.``) are in julia/src/native/math.jl.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import ELEMENTWISE_TYPE_PROMOTION_KIND as KIND
from torch._prims_common import elementwise_dtypes

from pyjode.rhs import lower_values as lv
from pyjode.rhs.lower_steps import JULIA_TYPES, Builder, Scan, Scatter
from pyjode.rhs.lower_values import Gather, Literal, NotLowerable, Shape, Value, View

Lowering = Callable[..., Any]
_HEAVY = 20
_BOOL = torch.bool

# name: (code, work). One result of the operator's own dtype; arguments are cast to it.
_UNARY: dict[str, tuple[str, int]] = {
    "neg": ("(-{0})", 1),
    "abs": ("abs({0})", 1),
    "sqrt": ("N.sqrt({0})", 4),
    "rsqrt": ("(1 / N.sqrt({0}))", 8),
    "reciprocal": ("(1 / {0})", 4),
    "square": ("N.square({0})", 1),
    "exp": ("N.exp({0})", _HEAVY),
    "exp2": ("N.exp2({0})", _HEAVY),
    "expm1": ("N.expm1({0})", _HEAVY),
    "log": ("N.log({0})", _HEAVY),
    "log1p": ("N.log1p({0})", _HEAVY),
    "log2": ("N.log2({0})", _HEAVY),
    "log10": ("N.log10({0})", _HEAVY),
    "sin": ("N.sin({0})", _HEAVY),
    "cos": ("N.cos({0})", _HEAVY),
    "tan": ("N.tan({0})", _HEAVY),
    "asin": ("N.asin({0})", _HEAVY),
    "acos": ("N.acos({0})", _HEAVY),
    "atan": ("N.atan({0})", _HEAVY),
    "sinh": ("N.sinh({0})", _HEAVY),
    "cosh": ("N.cosh({0})", _HEAVY),
    "asinh": ("N.asinh({0})", _HEAVY),
    "acosh": ("N.acosh({0})", _HEAVY),
    "atanh": ("N.atanh({0})", _HEAVY),
    "tanh": ("N.tanh({0})", _HEAVY),
    "sigmoid": ("N.sigmoid({0})", _HEAVY),
    "erf": ("N.erf({0})", _HEAVY),
    "erfc": ("N.erfc({0})", _HEAVY),
    "relu": ("N.relu({0})", 1),
    "floor": ("floor({0})", 1),
    "ceil": ("ceil({0})", 1),
    "trunc": ("trunc({0})", 1),
    "frac": ("({0} - trunc({0}))", 2),
    "sgn": ("N.sign({0})", 2),
    "sign": ("N.sign({0})", 2),
}
_BINARY: dict[str, tuple[str, int]] = {
    "mul": ("({0} * {1})", 1),
    "maximum": ("N.maximum({0}, {1})", 1),
    "minimum": ("N.minimum({0}, {1})", 1),
    "atan2": ("N.atan2({0}, {1})", _HEAVY),
    "hypot": ("N.hypot({0}, {1})", _HEAVY),
    "remainder": ("N.remainder({0}, {1})", _HEAVY),
    "fmod": ("N.fmod({0}, {1})", _HEAVY),
    "copysign": ("copysign({0}, {1})", 1),
    "xlogy": ("N.xlogy({0}, {1})", _HEAVY),
    "tanh_backward": ("({0} * (1 - {1} * {1}))", 3),
    "sigmoid_backward": ("({0} * ({1} * (1 - {1})))", 3),
    "heaviside": ("N.heaviside({0}, {1})", 2),
    "hardshrink_backward": ("ifelse(abs({1}) <= {2}, zero({0}), {0})", 2),
    "softshrink_backward": ("ifelse(abs({1}) <= {2}, zero({0}), {0})", 2),
    "threshold_backward": ("ifelse({1} <= {2}, zero({0}), {0})", 2),
}
_COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_LOGIC = {
    "logical_and": ("({0} & {1})", 2),
    "logical_or": ("({0} | {1})", 2),
    "logical_xor": ("({0} ⊻ {1})", 2),
    "logical_not": ("(!{0})", 1),
}
_BITWISE = {
    "bitwise_and": "({0} & {1})",
    "bitwise_or": "({0} | {1})",
    "bitwise_xor": "({0} ⊻ {1})",
    "bitwise_not": "(~{0})",
}
_TESTS = {
    "isnan": "isnan({0})",
    "isinf": "isinf({0})",
    "isfinite": "isfinite({0})",
    "signbit": "signbit({0})",
}

TABLE: dict[str, Lowering] = {}
FACTORIES_LIKE: dict[str, int | None] = {
    "zeros_like": 0, "ones_like": 1, "full_like": None, "new_zeros": 0, "new_ones": 1, "new_full": None,
    "empty_like": 0, "new_empty": 0,
}  # fmt: skip


def operator_name(target: Any) -> str:
    """ATen's name without the overload; torch's decompositions use some "prims" of the same names and meaning."""
    return target._schema.name.split("::")[1]


def lowering(*names: str) -> Callable[[Lowering], Lowering]:
    def add(function: Lowering) -> Lowering:
        for name in names:
            TABLE[name] = function
        return function

    return add


class Call:
    """One node being lowered.

    Attributes:
        b: where steps go.
        out: what torch says of the result (shape and dtype), or ``None`` where there are several.
        name: of the operator.
    """

    def __init__(self, b: Builder, out: Any, name: str):
        self.b = b
        self.out = out
        self.name = name

    @property
    def dtype(self) -> torch.dtype:
        return self.out.dtype

    @property
    def shape(self) -> Shape:
        return tuple(self.out.shape)

    def value(self, x: Any, dtype: torch.dtype | None = None) -> Value:
        """An argument (number, constant tensor or value), cast where a dtype is given."""
        if isinstance(x, Tensor):
            x = self.b.constant(x)
        if isinstance(x, (bool, int, float)):
            natural = _BOOL if isinstance(x, bool) else torch.int64 if isinstance(x, int) else torch.float64
            x = Literal(x, (), natural)
        return x if dtype is None else self.b.cast(x, dtype)

    def pointwise(self, code: str, *args: Any, work: int = 1, dtype: torch.dtype | None = None) -> Value:
        """``code`` on arguments cast to ``dtype``, by default the result's."""
        dtype = dtype or self.dtype
        return self.b.pointwise(code, *(self.value(a, dtype) for a in args), dtype=dtype, work=work)

    def refuse(self, why: str) -> NotLowerable:
        return NotLowerable(self.name, why)


def _elementwise(code: str, work: int) -> Lowering:
    def lower(c: Call, *args: Any) -> Value:
        return c.pointwise(code, *args, work=work)

    return lower


for _name, (_code, _work) in (_UNARY | _BINARY).items():
    TABLE[_name] = _elementwise(_code, _work)


def _comparison(sign: str) -> Lowering:
    def lower(c: Call, a: Any, b: Any) -> Value:
        dtype = _common_dtype(c, a, b)
        return c.b.pointwise(f"({{0}} {sign} {{1}})", c.value(a, dtype), c.value(b, dtype), dtype=_BOOL)

    return lower


for _name, _sign in _COMPARE.items():
    TABLE[_name] = _comparison(_sign)


def _logic(code: str) -> Lowering:
    def lower(c: Call, *args: Any) -> Value:
        return c.b.pointwise(code, *(c.value(a, _BOOL) for a in args), dtype=_BOOL)

    return lower


for _name, (_code, _work) in _LOGIC.items():
    TABLE[_name] = _logic(_code)
for _name, _code in _BITWISE.items():
    TABLE[_name] = _elementwise(_code, 1)


def _test(code: str) -> Lowering:
    def lower(c: Call, x: Any) -> Value:
        return c.b.pointwise(code, c.value(x), dtype=_BOOL)

    return lower


for _name, _code in _TESTS.items():
    TABLE[_name] = _test(_code)


def _common_dtype(c: Call, *args: Any) -> torch.dtype:
    """What torch computes in: numbers and tensors of no dimensions count less than the others."""
    stand_ins = []
    for a in args:
        if isinstance(a, (View, Literal, lv.Time, lv.Pointwise, Gather, lv.Cat)):
            a = torch.empty(a.shape, dtype=a.dtype, device="meta")
        stand_ins.append(a.to("meta") if isinstance(a, Tensor) else a)
    return elementwise_dtypes(*stand_ins, type_promotion_kind=KIND.DEFAULT)[0]


def _is(x: Any, number: int) -> bool:
    if isinstance(x, Literal):
        x = x.value
    return isinstance(x, (bool, int, float)) and x == number


# Arithmetic


@lowering("add")
def _add(c: Call, a: Any, b: Any, alpha: Any = 1) -> Value:
    b = _times(c, b, alpha)
    if _is_zero(b):
        return c.b.expanded(c.value(a, c.dtype), c.shape)
    if _is_zero(a):
        return c.b.expanded(c.value(b, c.dtype), c.shape)
    return _by_parts(c, "({0} + {1})", a, b)


@lowering("sub")
def _sub(c: Call, a: Any, b: Any, alpha: Any = 1) -> Value:
    b = _times(c, b, alpha)
    if _is_zero(b):
        return c.b.expanded(c.value(a, c.dtype), c.shape)
    return _by_parts(c, "({0} - {1})", a, b)


@lowering("rsub")
def _rsub(c: Call, a: Any, b: Any, alpha: Any = 1) -> Value:
    return _sub(c, b, a, alpha)


def _times(c: Call, x: Any, alpha: Any) -> Any:
    return x if _is(alpha, 1) else c.pointwise("({0} * {1})", x, alpha)


def _is_zero(x: Any) -> bool:
    return isinstance(x, Literal) and x.value == 0 and not isinstance(x.value, bool)


def _by_parts(c: Call, code: str, a: Any, b: Any) -> Value:
    """A sum or difference in which the zeros of padded parts are left out."""
    out = c.pointwise(code, a, b)
    return _without_zeros(c, out)


def _without_zeros(c: Call, x: Value) -> Value:
    if isinstance(x, lv.Cat):
        return lv.Cat(x.dim, tuple(_without_zeros(c, p) for p in x.parts), x.shape, x.dtype)
    if isinstance(x, lv.Pointwise) and len(x.args) == 2:
        a, b = x.args
        if _is_zero(b) and x.code in ("({0} + {1})", "({0} - {1})"):
            return a
        if _is_zero(a) and x.code == "({0} + {1})":
            return b
    return x


@lowering("div")
def _div(c: Call, a: Any, b: Any, rounding_mode: str | None = None) -> Value:
    if rounding_mode is None:
        if isinstance(b, (int, float)) and b != 0 and math.frexp(b)[0] in (0.5, -0.5) and 1e-30 < abs(b) < 1e30:
            return c.pointwise("({0} * {1})", a, 1 / b)  # exact for powers of two
        return c.pointwise("({0} / {1})", a, b, work=4)
    if rounding_mode == "trunc":
        return c.pointwise("trunc({0} / {1})", a, b, work=5)
    return c.pointwise("N.floor_divide({0}, {1})", a, b, work=_HEAVY)


@lowering("floor_divide")
def _floor_divide(c: Call, a: Any, b: Any) -> Value:
    return _div(c, a, b, "floor")


@lowering("true_divide")
def _true_divide(c: Call, a: Any, b: Any) -> Value:
    return _div(c, a, b)


@lowering("pow")
def _pow(c: Call, a: Any, b: Any) -> Value:
    n = b.value if isinstance(b, Literal) else b
    if isinstance(n, (int, float)) and not isinstance(n, bool):
        if n == int(n) if math.isfinite(n) else False:
            if 0 <= n <= 16:
                return _power(c, c.value(a, c.dtype), int(n))
            if -16 <= n < 0:
                return c.pointwise("(1 / {0})", _power(c, c.value(a, c.dtype), -int(n)), work=4)
        if n == 0.5:
            return c.pointwise("N.sqrt({0})", a, work=4)
        if n == -0.5:
            return c.pointwise("(1 / N.sqrt({0}))", a, work=8)
        if n == 1.5:
            return c.pointwise("({0} * N.sqrt({0}))", a, work=5)
    return c.pointwise("N.pow({0}, {1})", a, b, work=_HEAVY)


def _power(c: Call, x: Value, n: int) -> Value:
    if n == 0:
        return Literal(1.0, x.shape, c.dtype)
    if n == 1:
        return x
    half = _power(c, x, n // 2)
    square = c.pointwise("N.square({0})", half)
    return square if n % 2 == 0 else c.pointwise("({0} * {1})", square, x)


@lowering("clamp", "clip")
def _clamp(c: Call, x: Any, low: Any = None, high: Any = None) -> Value:
    x = c.value(x, c.dtype)
    if low is not None:
        x = c.pointwise("N.maximum({0}, {1})", x, low)
    if high is not None:
        x = c.pointwise("N.minimum({0}, {1})", x, high)
    return x


@lowering("clamp_min")
def _clamp_min(c: Call, x: Any, low: Any) -> Value:
    return _clamp(c, x, low)


@lowering("clamp_max")
def _clamp_max(c: Call, x: Any, high: Any) -> Value:
    return _clamp(c, x, None, high)


@lowering("round")
def _round(c: Call, x: Any, decimals: int = 0) -> Value:
    if decimals:
        raise c.refuse("only rounding to whole numbers has Julia code; leave decimals out")
    return c.pointwise("round({0})", x)


@lowering("where")
def _where(c: Call, condition: Any, a: Any, b: Any) -> Value:
    args = (c.value(condition, _BOOL), c.value(a, c.dtype), c.value(b, c.dtype))
    return c.b.pointwise("ifelse({0}, {1}, {2})", *args, dtype=c.dtype)


@lowering("masked_fill")
def _masked_fill(c: Call, x: Any, mask: Any, value: Any) -> Value:
    return _where(c, mask, value, x)


@lowering("addcmul")
def _addcmul(c: Call, x: Any, a: Any, b: Any, value: Any = 1) -> Value:
    return _add(c, x, c.pointwise("({0} * {1})", a, b), value)


# Copies and constants


@lowering("alias", "detach", "lift_fresh", "lift_fresh_copy", "clone", "contiguous")
def _same(c: Call, x: Any, **_: Any) -> Value:
    return c.value(x)


@lowering("_to_copy", "to", "copy")
def _to_copy(c: Call, x: Any, source: Any = None, **_: Any) -> Value:
    if isinstance(source, (View, Literal, lv.Time, lv.Pointwise, Gather, lv.Cat, Tensor)):
        x = source
    return c.b.expanded(c.value(x, c.dtype), c.shape)


# Views


@lowering("view", "_unsafe_view", "reshape", "_reshape_copy", "flatten")
def _view(c: Call, x: Any, *_: Any) -> Value:
    return c.b.reshaped(c.value(x), c.shape)


@lowering("t")
def _t(c: Call, x: Any) -> Value:
    x = c.value(x)
    return lv.permute(x, tuple(reversed(range(len(x.shape)))))


@lowering("transpose")
def _transpose(c: Call, x: Any, a: int, b: int) -> Value:
    x = c.value(x)
    if not x.shape:
        return x
    dims = list(range(len(x.shape)))
    a, b = a % len(dims), b % len(dims)
    dims[a], dims[b] = dims[b], dims[a]
    return lv.permute(x, tuple(dims))


@lowering("permute")
def _permute(c: Call, x: Any, dims: Sequence[int]) -> Value:
    x = c.value(x)
    return lv.permute(x, tuple(d % len(x.shape) for d in dims))


@lowering("select")
def _select(c: Call, x: Any, dim: int, index: int) -> Value:
    x = c.value(x)
    dim %= len(x.shape)
    return lv.select(x, dim, index % x.shape[dim])


@lowering("slice")
def _slice(c: Call, x: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Value:
    x = c.value(x)
    dim %= len(x.shape)
    where = range(x.shape[dim])[slice(start, end, step)]
    return lv.cut(x, dim, where.start, len(where), step)


@lowering("narrow")
def _narrow(c: Call, x: Any, dim: int, start: int, length: int) -> Value:
    return _slice(c, x, dim, start, start + length)


@lowering("expand")
def _expand(c: Call, x: Any, *_: Any, **__: Any) -> Value:
    return c.b.expanded(c.value(x), c.shape)


@lowering("unsqueeze")
def _unsqueeze(c: Call, x: Any, dim: int) -> Value:
    x = c.value(x)
    return lv.unsqueeze(x, dim % (len(x.shape) + 1))


@lowering("squeeze")
def _squeeze(c: Call, x: Any, dims: Any = None) -> Value:
    x = c.value(x)
    rank = len(x.shape)
    wanted = range(rank) if dims is None else [dims] if isinstance(dims, int) else dims
    for d in sorted({d % rank for d in wanted} if rank else (), reverse=True):
        if x.shape[d] == 1:
            x = lv.squeeze(x, d)
    return x


@lowering("split", "split_with_sizes")
def _split(c: Call, x: Any, sizes: Any, dim: int = 0) -> list[Value]:
    x = c.value(x)
    dim %= len(x.shape)
    n = x.shape[dim]
    if isinstance(sizes, int):
        sizes = [min(sizes, n - i) for i in range(0, n, sizes)]
    parts, start = [], 0
    for size in sizes:
        parts.append(lv.cut(x, dim, start, size))
        start += size
    return parts


@lowering("unbind")
def _unbind(c: Call, x: Any, dim: int = 0) -> list[Value]:
    x = c.value(x)
    dim %= len(x.shape)
    return [lv.select(x, dim, i) for i in range(x.shape[dim])]


@lowering("flip")
def _flip(c: Call, x: Any, dims: Sequence[int]) -> Value:
    x = c.value(x)
    for d in {d % len(x.shape) for d in dims} if x.shape else ():
        n = x.shape[d]
        x = lv.cut(x, d, n - 1, n, -1)
    return x


@lowering("diagonal")
def _diagonal(c: Call, x: Any, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Value:
    x = c.b.stored(c.value(x))
    a, b = dim1 % len(x.shape), dim2 % len(x.shape)
    rest = [d for d in range(len(x.shape)) if d not in (a, b)]
    start = x.offset + (offset * x.strides[b] if offset >= 0 else -offset * x.strides[a])
    return View(x.buffer, start, c.shape, (*(x.strides[d] for d in rest), x.strides[a] + x.strides[b]))


# Joining


@lowering("cat")
def _cat(c: Call, xs: Sequence[Any], dim: int = 0) -> Value:
    parts = [c.value(x, c.dtype) for x in xs]
    parts = [p for p in parts if p.shape != (0,) or c.shape == (0,)]
    dim %= len(c.shape)
    return lv.concatenate(parts, dim, c.shape, c.dtype)


@lowering("stack")
def _stack(c: Call, xs: Sequence[Any], dim: int = 0) -> Value:
    dim %= len(c.shape)
    return lv.concatenate([lv.unsqueeze(c.value(x, c.dtype), dim) for x in xs], dim, c.shape, c.dtype)


@lowering("roll")
def _roll(c: Call, x: Any, shifts: Any, dims: Any = ()) -> Value:
    x = c.value(x)
    shifts = [shifts] if isinstance(shifts, int) else list(shifts)
    dims = [dims] if isinstance(dims, int) else list(dims)
    if not dims:
        flat = c.b.reshaped(x, (lv.numel(x.shape),))
        return c.b.reshaped(_rolled(flat, 0, shifts[0]), c.shape)
    for shift, dim in zip(shifts, dims, strict=True):
        x = _rolled(x, dim % len(x.shape), shift)
    return x


def _rolled(x: Value, dim: int, shift: int) -> Value:
    n = x.shape[dim]
    if n == 0 or shift % n == 0:
        return x
    shift %= n
    parts = [lv.cut(x, dim, n - shift, shift), lv.cut(x, dim, 0, n - shift)]
    return lv.concatenate(parts, dim, x.shape, x.dtype)


@lowering("repeat")
def _repeat(c: Call, x: Any, repeats: Sequence[int]) -> Value:
    x = c.value(x)
    for _ in range(len(repeats) - len(x.shape)):
        x = lv.unsqueeze(x, 0)
    x = c.b.shared(x, 2)
    # (r0, n0, r1, n1, ...), broadcast, then read as one axis each.
    for d in reversed(range(len(repeats))):
        x = lv.unsqueeze(x, d)
    shape = tuple(n for r, d in zip(repeats, x.shape[1::2], strict=True) for n in (r, d))
    return c.b.reshaped(lv.expand(x, shape), c.shape)


@lowering("select_scatter")
def _select_scatter(c: Call, x: Any, source: Any, dim: int, index: int) -> Value:
    x, source = c.value(x, c.dtype), c.value(source, c.dtype)
    dim %= len(x.shape)
    return _replaced(x, lv.unsqueeze(source, dim), dim, index % x.shape[dim], 1)


@lowering("slice_scatter")
def _slice_scatter(
    c: Call, x: Any, source: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Value:
    x, source = c.value(x, c.dtype), c.value(source, c.dtype)
    dim %= len(x.shape)
    where = range(x.shape[dim])[slice(start, end, step)]
    return _replaced(x, lv.expand(source, (*x.shape[:dim], len(where), *x.shape[dim + 1 :])), dim, where.start, step)


def _replaced(x: Value, source: Value, dim: int, start: int, step: int) -> Value:
    """``x`` with ``source`` in place of every ``step``-th slice from ``start``."""
    n, count = x.shape[dim], source.shape[dim]
    if count == 0:
        return x
    parts = [lv.cut(x, dim, 0, start)]
    if step == 1:
        parts.append(source)
        end = start + count
    else:
        for i in range(count):
            at = start + i * step
            parts.append(lv.cut(source, dim, i, 1))
            parts.append(lv.cut(x, dim, at + 1, min(step - 1, n - at - 1)))
        end = n if start + count * step >= n else start + count * step
    parts.append(lv.cut(x, dim, end, n - end))
    return lv.concatenate(parts, dim, x.shape, x.dtype)


@lowering("select_backward")
def _select_backward(c: Call, g: Any, sizes: Sequence[int], dim: int, index: int) -> Value:
    dim %= len(sizes)
    g = lv.unsqueeze(c.value(g, c.dtype), dim)
    return _replaced(Literal(0.0, tuple(sizes), c.dtype), g, dim, index % sizes[dim], 1)


@lowering("slice_backward")
def _slice_backward(c: Call, g: Any, sizes: Sequence[int], dim: int, start: int, end: int, step: int) -> Value:
    dim %= len(sizes)
    where = range(sizes[dim])[slice(start, end, step)]
    zeros = Literal(0.0, tuple(sizes), c.dtype)
    return _replaced(zeros, c.value(g, c.dtype), dim, where.start, step)


@lowering("constant_pad_nd")
def _constant_pad(c: Call, x: Any, pad: Sequence[int], value: Any = 0) -> Value:
    x = c.value(x)
    rank = len(x.shape)
    for i in range(len(pad) // 2):
        dim, before, after = rank - 1 - i, pad[2 * i], pad[2 * i + 1]
        start, n = max(0, -before), x.shape[dim]
        x = lv.cut(x, dim, start, n - start - max(0, -after))
        parts = []
        for amount in (before, None, after):
            if amount is None:
                parts.append(x)
            elif amount > 0:
                shape = (*x.shape[:dim], amount, *x.shape[dim + 1 :])
                parts.append(c.value(value, c.dtype) if shape == () else lv.expand(c.value(value, c.dtype), shape))
        n = sum(p.shape[dim] for p in parts)
        x = lv.concatenate(parts, dim, (*x.shape[:dim], n, *x.shape[dim + 1 :]), c.dtype)
    return x


@lowering("diagonal_backward")
def _diagonal_backward(c: Call, g: Any, sizes: Sequence[int], offset: int, dim1: int, dim2: int) -> Value:
    return _diagonal_scatter(c, Literal(0.0, tuple(sizes), c.dtype), g, offset, dim1, dim2)


@lowering("diagonal_scatter")
def _diagonal_scatter(c: Call, x: Any, source: Any, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Value:
    x, source = c.value(x, c.dtype), c.value(source, c.dtype)
    target = _copied(c, x)
    c.out = torch.empty(source.shape, dtype=c.dtype, device="meta")
    part = _diagonal(c, target, offset, dim1, dim2)
    c.b.steps.append(Scatter(part, (), c.b.stored(source), False))
    return target


def _copied(c: Call, x: Value) -> View:
    """A copy of ``x`` that may be written to."""
    target = c.b.temp(x.shape, x.dtype)
    c.b.store(target, x)
    return target


# Masks


@lowering("tril")
def _tril(c: Call, x: Any, diagonal: int = 0) -> Value:
    x = c.value(x)
    return _where(c, torch.ones(x.shape[-2:], dtype=_BOOL).tril(diagonal), x, 0)


@lowering("triu")
def _triu(c: Call, x: Any, diagonal: int = 0) -> Value:
    x = c.value(x)
    return _where(c, torch.ones(x.shape[-2:], dtype=_BOOL).triu(diagonal), x, 0)


# Reductions

_REDUCTIONS = {
    "sum": ("{0} + {1}", "zero(TYPE)"),
    "prod": ("{0} * {1}", "one(TYPE)"),
    "amax": ("N.maximum({0}, {1})", "typemin(TYPE)"),
    "amin": ("N.minimum({0}, {1})", "typemax(TYPE)"),
    "any": ("{0} | {1}", "false"),
    "all": ("{0} & {1}", "true"),
}


def _reduced(c: Call, x: Any, dims: Any, keepdim: bool, name: str) -> Value:
    code, start = _REDUCTIONS[name]
    x = c.value(x, c.dtype)
    dims = [] if dims is None else [dims] if isinstance(dims, int) else list(dims)
    return c.b.reduce(x, dims, keepdim, code, start.replace("TYPE", JULIA_TYPES[c.dtype]), c.dtype)


def _reduction(name: str) -> Lowering:
    def lower(c: Call, x: Any, dims: Any = None, keepdim: bool = False, dtype: Any = None) -> Value:
        return _reduced(c, x, dims, keepdim, name)

    return lower


for _name in _REDUCTIONS:
    TABLE[_name] = _reduction(_name)


@lowering("max", "min")
def _max(c: Call, x: Any, *dims: Any) -> Value:
    if dims:
        raise c.refuse("the position of the largest or smallest entry has no Julia code; use amax, amin or maximum")
    return _reduced(c, x, None, False, "a" + c.name)


@lowering("mean")
def _mean(c: Call, x: Any, dims: Any = None, keepdim: bool = False, dtype: Any = None) -> Value:
    total = _reduced(c, x, dims, keepdim, "sum")
    n = lv.numel(c.value(x).shape) / max(1, lv.numel(total.shape))
    return c.pointwise("({0} * {1})", total, 1 / n) if n else total


def _variance(c: Call, x: Any, dims: Any, correction: Any, keepdim: bool) -> tuple[Value, Value]:
    x = c.b.shared(c.value(x), 2)
    total = _reduced(c, x, dims, True, "sum")
    n = lv.numel(x.shape) / lv.numel(total.shape)
    mean = c.b.stored(c.pointwise("({0} * {1})", total, 1 / n))
    squares = c.pointwise("N.square({0} - {1})", x, mean, work=2)
    total = _reduced(c, squares, dims, keepdim, "sum")
    free = n - (1 if correction is None else correction)
    variance = c.pointwise("({0} * {1})", total, 1 / free if free > 0 else math.nan)
    if not keepdim:
        mean = c.b.reshaped(mean, total.shape)  # type: ignore[assignment]
    return variance, mean


@lowering("var")
def _var(c: Call, x: Any, dims: Any = None, correction: Any = None, keepdim: bool = False) -> Value:
    if isinstance(dims, bool):
        raise c.refuse("give var and std their dim and correction")
    return _variance(c, x, dims, correction, keepdim)[0]


@lowering("var_mean")
def _var_mean(c: Call, x: Any, dims: Any = None, correction: Any = None, keepdim: bool = False) -> list[Value]:
    c.out = c.out[0]
    return list(_variance(c, x, dims, correction, keepdim))


@lowering("cumsum", "cumprod")
def _cumsum(c: Call, x: Any, dim: int, dtype: Any = None) -> Value:
    x = c.value(x, c.dtype)
    if not x.shape:
        return x
    target = c.b.temp(x.shape, c.dtype)
    x = c.b.stored(x) if isinstance(x, lv.Cat) else x
    c.b.steps.append(Scan(target, x, dim % len(x.shape), "{0} + {1}" if c.name == "cumsum" else "{0} * {1}"))
    return target


# Matrix products


def _floating(c: Call) -> None:
    if c.dtype not in (torch.float32, torch.float64):
        raise c.refuse(f"matrix products of {c.dtype} have no Julia code; use float32 or float64")


def _mm(c: Call, a: Any, b: Any, start: Any = None) -> Value:
    """(m, k) times (k, n)."""
    _floating(c)
    a, b = (lv.unsqueeze(c.value(x, c.dtype), 0) for x in (a, b))
    return lv.select(c.b.matmul(a, b, start), 0, 0)


@lowering("mm")
def _plain_mm(c: Call, a: Any, b: Any) -> Value:
    return _mm(c, a, b)


@lowering("addmm")
def _addmm(c: Call, x: Any, a: Any, b: Any, beta: Any = 1, alpha: Any = 1) -> Value:
    if _is(alpha, 1) and _is(beta, 1):
        return _mm(c, a, b, c.value(x, c.dtype))
    return _add(c, _times(c, _mm(c, a, b), alpha), x, beta)


@lowering("bmm")
def _bmm(c: Call, a: Any, b: Any) -> Value:
    _floating(c)
    return c.b.matmul(c.value(a, c.dtype), c.value(b, c.dtype))


@lowering("baddbmm")
def _baddbmm(c: Call, x: Any, a: Any, b: Any, beta: Any = 1, alpha: Any = 1) -> Value:
    if _is(alpha, 1) and _is(beta, 1):
        return c.b.matmul(c.value(a, c.dtype), c.value(b, c.dtype), c.value(x, c.dtype))
    return _add(c, _times(c, _bmm(c, a, b), alpha), x, beta)


@lowering("mv")
def _mv(c: Call, a: Any, x: Any) -> Value:
    return lv.select(_mm(c, a, lv.unsqueeze(c.value(x), 1)), 1, 0)


@lowering("addmv")
def _addmv(c: Call, y: Any, a: Any, x: Any, beta: Any = 1, alpha: Any = 1) -> Value:
    return _add(c, _times(c, _mv(c, a, x), alpha), y, beta)


@lowering("dot", "vdot")
def _dot(c: Call, a: Any, b: Any) -> Value:
    return _reduced(c, c.pointwise("({0} * {1})", a, b), None, False, "sum")


# Indexing


@lowering("index", "_unsafe_index")
def _index(c: Call, x: Any, indices: Sequence[Any]) -> Value:
    x = c.b.stored(c.value(x))
    base, where = _positions(c, x, indices)
    return c.b.stored(_gathered(c, base, where, c.shape))


def _gathered(c: Call, base: View, where: tuple[tuple[Value, int, int], ...], shape: Shape) -> Value:
    if base.buffer.kind == "register":
        return View(base.buffer, 0, shape, (0,) * len(shape))
    return Gather(base, where)


def _positions(c: Call, x: View, indices: Sequence[Any]) -> tuple[View, tuple[tuple[Value, int, int], ...]]:
    """Where ``x[indices]`` is, as the parts of a :class:`Gather`."""
    if any(i is not None and not _is_integer(c.value(i)) for i in indices):
        raise c.refuse("only indices of integers have Julia code; replace a mask by torch.where")
    used = [d for d, i in enumerate(indices) if i is not None]
    parts = [c.value(indices[d]) for d in used]
    common = tuple(torch.broadcast_shapes(*(p.shape for p in parts)))
    together = used == list(range(used[0], used[-1] + 1))
    rest = [d for d in range(len(x.shape)) if d not in used]
    # As numpy: the indexed axes come where they were, or first when they were not side by side.
    lead = [d for d in rest if d < used[0]] if together else []
    tail = [d for d in rest if d not in lead]
    shape = (*(x.shape[d] for d in lead), *common, *(x.shape[d] for d in tail))
    strides = (*(x.strides[d] for d in lead), *(0 for _ in common), *(x.strides[d] for d in tail))
    where = []
    for d, p in zip(used, parts, strict=True):
        p = lv.expand(p, common)
        for _ in tail:
            p = lv.unsqueeze(p, len(p.shape))
        where.append((lv.expand(p, shape), x.strides[d], x.shape[d]))
    return View(x.buffer, x.offset, shape, strides), tuple(where)


def _is_integer(x: Value) -> bool:
    return x.dtype in (torch.int64, torch.int32, torch.int16, torch.int8)


@lowering("index_put", "_unsafe_index_put", "_index_put_impl")
def _index_put(c: Call, x: Any, indices: Sequence[Any], source: Any, accumulate: bool = False, *_: Any) -> Value:
    source = c.value(source, c.dtype)
    target = _memory(c, c.value(x, c.dtype))
    base, where = _positions(c, target, indices)
    source = c.b.stored(lv.expand(source, base.shape))
    c.b.steps.append(Scatter(base, where, source, accumulate))
    return target


def _memory(c: Call, x: Value) -> View:
    """A copy of ``x`` in memory, also where it has one element."""
    target = c.b.memory(x.shape, x.dtype)
    c.b.store(target, x)
    return target


@lowering("index_select")
def _index_select(c: Call, x: Any, dim: int, index: Any) -> Value:
    x = c.value(x)
    indices: list[Any] = [None] * len(x.shape)
    indices[dim % len(x.shape)] = index
    return _index(c, x, indices)


@lowering("embedding")
def _embedding(c: Call, weight: Any, index: Any, *_: Any) -> Value:
    return _index(c, weight, [index])


def _along(c: Call, x: View, dim: int, index: Any) -> tuple[View, tuple[tuple[Value, int, int], ...]]:
    """Where gather and scatter look: the index replaces the position along ``dim`` only."""
    index = c.value(index)
    strides = tuple(0 if d == dim else s for d, s in enumerate(x.strides))
    return View(x.buffer, x.offset, tuple(index.shape), strides), ((index, x.strides[dim], x.shape[dim]),)


@lowering("gather")
def _gather(c: Call, x: Any, dim: int, index: Any, sparse_grad: bool = False) -> Value:
    x = c.b.stored(c.value(x))
    if not x.shape:
        return x
    base, where = _along(c, x, dim % len(x.shape), index)
    return c.b.stored(_gathered(c, base, where, c.shape))


def _scattered(c: Call, x: Any, dim: int, index: Any, source: Any, accumulate: bool) -> Value:
    target = _memory(c, c.value(x, c.dtype))
    source = c.value(source, c.dtype)
    base, where = _along(c, target, dim % max(1, len(target.shape)), index)
    if source.shape:
        for d, n in enumerate(base.shape):
            source = lv.cut(source, d, 0, n)
    c.b.steps.append(Scatter(base, where, c.b.stored(lv.expand(source, base.shape)), accumulate))
    return target


@lowering("scatter")
def _scatter(c: Call, x: Any, dim: int, index: Any, source: Any) -> Value:
    return _scattered(c, x, dim, index, source, False)


@lowering("scatter_add")
def _scatter_add(c: Call, x: Any, dim: int, index: Any, source: Any) -> Value:
    return _scattered(c, x, dim, index, source, True)


@lowering("index_add")
def _index_add(c: Call, x: Any, dim: int, index: Any, source: Any, alpha: Any = 1) -> Value:
    x = c.value(x, c.dtype)
    indices: list[Any] = [None] * len(x.shape)
    indices[dim % len(x.shape)] = index
    return _index_put(c, x, indices, _times(c, source, alpha), True)
