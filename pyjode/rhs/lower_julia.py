"""Fused loops as Julia source.

Loads and stores go through pointers; loops are plain ``while`` loops over literal sizes with a vector width that fits
them, so that LLVM vectorizes them with masked ends (``N.@vector``, julia/src/native/vectors.jl).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

import torch

from pyjode.rhs.lower_fuse import Loop, Plan, squeezed
from pyjode.rhs.lower_steps import BLAS_FROM, JULIA_TYPES, Matmul, Reduce, Scan, Scatter, Step, Store, reads
from pyjode.rhs.lower_values import Buffer, Gather, Literal, Pointwise, Time, Value, View

# An axis this short is written out, not looped over.
_UNROLLED = 4
_VECTOR_BYTES = 64
# Functions that LLVM cannot vectorize: asked to, it would say so on the user's terminal.
_ONE_BY_ONE = re.compile(
    r"\bN\.(sin|cos|tan|asin|acos|atan|atan2|sinh|cosh|asinh|acosh|atanh|log2|log10|exp2|hypot|pow|erf|erfc|fmod|"
    r"remainder|floor_divide|position)\("
)


def function_source(name: str, arguments: Sequence[str], plan: Plan, dtype: torch.dtype) -> str:
    """One Julia function ``name(arguments..., t, w, c)``: pointers, the time, the workspace, the pointer table."""
    return _Function(plan, dtype).source(name, arguments)


class _Function:
    def __init__(self, plan: Plan, dtype: torch.dtype):
        self.plan = plan
        self.dtype = dtype
        self.body: list[str] = []
        self.count = 0

    def source(self, name: str, arguments: Sequence[str]) -> str:
        for loop in self.plan.loops:
            if loop.domain is not None:
                _LoopNest(self, loop).write()
            else:
                self.write_step(loop.steps[0])
        head = [*self.pointers(), f"tt = {JULIA_TYPES[self.dtype]}(t)"]
        lines = "\n".join("    " + line for line in (*head, *self.body, "return nothing"))
        return f"function {name}({', '.join((*arguments, 't', 'w', 'c'))})\n{lines}\nend\n"

    def pointers(self) -> list[str]:
        found: dict[Buffer, None] = {}
        for loop in self.plan.loops:
            for step in loop.steps:
                for view in (*reads(step), step.c if isinstance(step, Matmul) else step.target):
                    found[view.buffer] = None
        lines = []
        for b in found:
            julia = JULIA_TYPES[b.dtype]
            if b.kind == "table":
                lines.append(f"{b.name} = Ptr{{{julia}}}(unsafe_load(c, {b.name[1:]}))")
            elif b.home is not None:
                lines.append(f"{b.name} = {b.home[0].name} + {b.home[1] * b.dtype.itemsize}")
            elif b in self.plan.offsets:
                lines.append(f"{b.name} = Ptr{{{julia}}}(w + {self.plan.offsets[b]})")
        return lines

    def new_name(self, prefix: str = "x") -> str:
        self.count += 1
        return f"{prefix}{self.count}"

    def write_step(self, step: Step) -> None:
        if isinstance(step, Matmul):
            self.write_matmul(step)
        else:
            _LoopNest(self, Loop(None, [step])).write()

    def write_matmul(self, s: Matmul) -> None:
        batch, m, n = s.c.shape
        k = s.a.shape[2]
        julia = JULIA_TYPES[s.c.dtype]

        def operand(v: View | None, i: str) -> str:
            if v is None:
                return f"Ptr{{{julia}}}(0), 0, 0"
            size = v.dtype.itemsize
            shift = f" + {v.offset * size}" if v.offset else ""
            shift += f" + {v.strides[0] * size} * {i}" if i and v.strides[0] else ""
            return f"{v.buffer.name}{shift}, {v.strides[1]}, {v.strides[2]}"

        function = "N.big_matmul!" if m * n * k >= BLAS_FROM else "N.matmul!"
        i = self.new_name("i") if batch > 1 else ""
        call = f"{function}({', '.join(operand(v, i) for v in (s.c, s.a, s.b, s.start))}, {m}, {n}, {k})"
        if batch > 1:
            self.body += [f"for {i} in 0:{batch - 1}", f"    {call}", "end"]
        else:
            self.body.append(call)


class _LoopNest:
    """The loops of one group of stores, or of one reduction, scan or scatter."""

    def __init__(self, function: _Function, loop: Loop):
        self.function = function
        self.loop = loop
        self.steps = loop.steps
        first = self.steps[0]
        assert not isinstance(first, Matmul)
        shape = first.value.shape if isinstance(first, Scatter) else first.target.shape
        self.axes = [d for d, n in enumerate(shape) if n != 1]
        if isinstance(first, Store):
            self.sizes = list(loop.domain or ())
        else:
            self.sizes = [shape[d] for d in self.axes]
        self.ordered = {self.axes.index(d) for d in self._ordered_axes(first) if d in self.axes}
        self.runs = self._merge()
        self.lengths = [math.prod(self.sizes[d] for d in run) for run in self.runs]
        self.variables = [function.new_name("i") for _ in self.runs]
        self.known: dict[object, str] = {}
        self.order: list[int] = []
        self.unrolled: int | None = None
        self.lines: list[list[str]] = []

    def write(self) -> None:
        first = self.steps[0]
        if isinstance(first, Store):
            self._write_stores()
        elif isinstance(first, Reduce):
            self._write_reduce(first)
        elif isinstance(first, Scan):
            self._write_scan(first)
        else:
            assert isinstance(first, Scatter)
            self._write_scatter(first)

    # Domain

    @staticmethod
    def _ordered_axes(step: Step) -> tuple[int, ...]:
        if isinstance(step, Reduce):
            return step.dims
        return (step.dim,) if isinstance(step, Scan) else ()

    def _views(self) -> Iterator[View]:
        for step in self.steps:
            yield from reads(step)
            if not isinstance(step, Matmul):
                yield step.target

    def _merge(self) -> list[list[int]]:
        """Neighbouring axes that every view walks through as if they were one."""
        strides = [squeezed(v)[1] for v in self._views()]
        runs: list[list[int]] = []
        for d in range(len(self.sizes)):
            if (
                runs
                and (d in self.ordered) == (d - 1 in self.ordered)
                and all(s[d - 1] == s[d] * self.sizes[d] for s in strides)
            ):
                runs[-1].append(d)
            else:
                runs.append([d])
        return runs

    def _strides(self, view: View) -> list[int]:
        strides = squeezed(view)[1]
        return [strides[run[-1]] for run in self.runs]

    def _start(self, order: list[int], unrolled: int | None = None) -> None:
        self.order = order
        self.unrolled = unrolled
        self.lines = [[] for _ in range(len(order) + 1)]

    # Expressions

    def _index(self, view: View, r: int | None) -> str:
        offset = view.offset
        terms = []
        for d, s in enumerate(self._strides(view)):
            if s == 0:
                continue
            if d == self.unrolled:
                offset += s * (r or 0)
            elif s == 1:
                terms.append(self.variables[d])
            elif s == -1:
                terms.append(f"(-{self.variables[d]})")
            else:
                terms.append(f"{s} * {self.variables[d]}")
        if offset or not terms:
            terms.append(str(offset))
        return " + ".join(terms)

    def _level(self, view: View) -> int:
        strides = self._strides(view)
        return max((i + 1 for i, d in enumerate(self.order) if strides[d] != 0), default=0)

    def _varies(self, view: View) -> bool:
        return self.unrolled is not None and self._strides(view)[self.unrolled] != 0

    def value(self, x: Value, r: int | None) -> tuple[str, int, bool]:
        """Writes the lines that compute ``x``.

        Returns:
            Its name, the depth of loops it is known at, and whether it differs from one unrolled copy to the next.
        """
        if isinstance(x, Literal):
            return literal(x), 0, False
        if isinstance(x, Time):
            return "tt", 0, False
        if isinstance(x, View) and x.buffer.kind == "register":
            return x.buffer.name, 0, False
        key: object = (x.buffer, *squeezed(x)) if isinstance(x, View) else id(x)
        for k in ((key, None), (key, r)):
            if k in self.known:
                return self.known[k]  # type: ignore[return-value]
        if isinstance(x, View):
            code, level, varies = f"N.ld({x.buffer.name}, {self._index(x, r)})", self._level(x), self._varies(x)
        elif isinstance(x, Gather):
            code, level, varies = self._gather(x, r)
        else:
            assert isinstance(x, Pointwise)
            args = [self.value(a, r) for a in x.args]
            code = x.code.format(*(a[0] for a in args))
            level = max(a[1] for a in args)
            varies = any(a[2] for a in args)
        name = self.function.new_name()
        self.lines[level].append(f"{name} = {code}")
        out = (name, level, varies)
        self.known[(key, r if varies else None)] = out  # type: ignore[assignment]
        return out

    def _gather(self, x: Gather, r: int | None) -> tuple[str, int, bool]:
        index, level, varies = self._place(x.base, x.indices, r)
        return f"N.ld({x.base.buffer.name}, {index})", level, varies

    def _place(self, base: View, indices: tuple[tuple[Value, int, int], ...], r: int | None) -> tuple[str, int, bool]:
        """Where in the base's buffer an indexed element is."""
        terms = [self._index(base, r)]
        level, varies = self._level(base), self._varies(base)
        for value, stride, n in indices:
            i, at, v = self.value(value, r)
            terms.append(f"{stride} * N.position({i}, {n})")
            level, varies = max(level, at), varies or v
        return " + ".join(terms), level, varies

    # Loops

    def _close(self, innermost: Sequence[str], after: tuple[int, str] | None = None, hints: bool = True) -> None:
        """Puts the lines of all depths together.

        Args:
            innermost: goes last into the deepest loop.
            after: a depth, and the line that follows the loops deeper than it.
            hints: whether the iterations of the deepest loop may be reordered.
        """
        body = self.function.body
        for depth, lines in enumerate(self.lines):
            body += ["    " * depth + line for line in lines]
            if depth < len(self.order):
                d = self.order[depth]
                body.append("    " * depth + f"{self.variables[d]} = 0")
                body.append("    " * depth + f"while {self.variables[d]} < {self.lengths[d]}")
        deepest = len(self.order)
        body += ["    " * deepest + line for line in innermost]
        for depth in range(deepest, -1, -1):
            if after is not None and after[0] == depth:
                body.append("    " * depth + after[1])
            if depth == 0:
                break
            d = self.order[depth - 1]
            body.append("    " * depth + f"{self.variables[d]} += 1")
            if depth == deepest and hints:
                body += self._hint(self.lengths[d], depth)
            body.append("    " * (depth - 1) + "end")

    def _hint(self, n: int, depth: int) -> list[str]:
        if any(_ONE_BY_ONE.search(line) for line in self.lines[-1]):
            return []
        sizes = [v.dtype.itemsize for v in self._views() if v.dtype.is_floating_point]
        width = _VECTOR_BYTES // max(sizes, default=self.function.dtype.itemsize)
        while width >= 2 * n:
            width //= 2
        return ["    " * depth + f"N.@vector {width} {'true' if n % width else 'false'}"]

    def _transpose(self) -> str | None:
        """The call that stands for the loops, where they only transpose a matrix."""
        step = self.steps[0]
        if len(self.steps) > 1 or not isinstance(step, Store) or not isinstance(step.value, View):
            return None
        x, y = step.target, step.value
        if len(self.runs) != 2 or x.dtype != y.dtype or x.dtype not in (torch.float32, torch.float64):
            return None
        cols, rows = self.lengths
        (to, one), (unit, ld) = self._strides(x), self._strides(y)
        if one != 1 or to != rows or unit != 1 or ld < cols:
            return None
        size = x.dtype.itemsize
        pointers = f"{x.buffer.name} + {x.offset * size}, {y.buffer.name} + {y.offset * size}"
        return f"N.transpose!({pointers}, {ld}, {rows}, {cols})"

    def _write_stores(self) -> None:
        call = self._transpose()
        if call is not None:
            self.function.body.append(call)
            return
        runs = list(range(len(self.runs)))
        target = self.steps[0].target  # type: ignore[union-attr]
        strides = self._strides(target)
        order = sorted(runs, key=lambda d: (abs(strides[d]) == 1, d)) if runs else []
        unrolled = None
        if len(order) > 1 and self.lengths[order[-1]] <= _UNROLLED:
            rest = order[:-1]
            if max(self.lengths[d] for d in rest) > self.lengths[order[-1]]:
                unrolled = order[-1]
                order = sorted(rest, key=lambda d: self.lengths[d] > _UNROLLED)
        self._start(order, unrolled)
        stores: list[str] = []
        for r in range(self.lengths[unrolled]) if unrolled is not None else (None,):
            for step in self.steps:
                assert isinstance(step, Store)
                name, level, varies = self.value(step.value, r)
                buffer = step.target.buffer
                if buffer.kind == "register":
                    self.lines[0].append(f"{buffer.name} = {name}")
                    continue
                self.known[((buffer, *squeezed(step.target)), r)] = (name, level, varies)  # type: ignore[assignment]
                if step in self.loop.kept:
                    stores.append(f"N.st({buffer.name}, {name}, {self._index(step.target, r)})")
        self._close(stores)

    def _write_reduce(self, step: Reduce) -> None:
        runs = range(len(self.runs))
        inner = [d for d in runs if self.runs[d][0] in self.ordered]
        kept = [d for d in runs if d not in inner]
        wide = kept and kept[-1] == len(self.runs) - 1
        if wide and inner and (self.lengths[kept[-1]] >= 8 or math.prod(self.lengths[d] for d in inner) < 8):
            self._reduce_in_memory(step, kept, inner)
        else:
            self._reduce_in_register(step, kept, inner)

    def _reduce_in_register(self, step: Reduce, kept: list[int], inner: list[int]) -> None:
        """One accumulator for each kept position."""
        self._start([*kept, *inner])
        name, _, _ = self.value(step.value, None)
        buffer = step.target.buffer
        register = buffer.kind == "register"
        acc = buffer.name if register else self.function.new_name("a")
        self.lines[len(kept)].append(f"{acc} = {step.start}")
        store = f"N.st({buffer.name}, {acc}, {self._index(step.target, None)})"
        # Reordering is for the loop over what is reduced.
        self._close(
            [f"{acc} = {step.code.format(acc, name)}"], None if register else (len(kept), store), hints=bool(inner)
        )

    def _reduce_in_memory(self, step: Reduce, kept: list[int], inner: list[int]) -> None:
        """The kept, contiguous axis innermost; the accumulators are the target."""
        target = step.target.buffer.name
        self._start(kept)
        self._close([f"N.st({target}, {step.start}, {self._index(step.target, None)})"])
        self.known.clear()
        self._start([*kept[:-1], *inner, kept[-1]])
        name, _, _ = self.value(step.value, None)
        at = self._index(step.target, None)
        code = step.code.format(f"N.ld({target}, {at})", name)
        self._close([f"N.st({target}, {code}, {at})"])

    def _write_scan(self, step: Scan) -> None:
        runs = range(len(self.runs))
        along = [d for d in runs if self.runs[d][0] in self.ordered]
        rest = [d for d in runs if d not in along]
        self._start([*rest, *along])
        name, _, _ = self.value(step.value, None)
        buffer = step.target.buffer
        if not along:  # of length 1
            is_register = buffer.kind == "register"
            store = f"N.st({buffer.name}, {name}, {self._index(step.target, None)})"
            self._close([f"{buffer.name} = {name}" if is_register else store], hints=False)
            return
        at = self._index(step.target, None)
        before = f"N.ld({buffer.name}, {at} - {self._strides(step.target)[along[0]]})"
        code = step.code.format(before, name)
        first = f"{self.variables[along[0]]} == 0"
        self._close([f"N.st({buffer.name}, {first} ? {name} : {code}, {at})"], hints=False)

    def _write_scatter(self, step: Scatter) -> None:
        self._start(list(range(len(self.runs))))
        name, _, _ = self.value(step.value, None)
        index, _, _ = self._place(step.target, step.indices, None)
        at = self.function.new_name("j")
        target = step.target.buffer.name
        value = f"N.ld({target}, {at}) + {name}" if step.accumulate else name
        self._close([f"{at} = {index}", f"N.st({target}, {value}, {at})"], hints=False)


def literal(x: Literal) -> str:
    """A number as Julia writes it in its type."""
    julia = JULIA_TYPES[x.dtype]
    if x.dtype == torch.bool:
        return "true" if x.value else "false"
    if not x.dtype.is_floating_point:
        return f"{julia}({int(x.value)})"
    value = float(x.value)
    if math.isnan(value):
        return f"{julia}(NaN)"
    if math.isinf(value):
        return f"{julia}({'-' if value < 0 else ''}Inf)"
    return f"{julia}({value!r})"
