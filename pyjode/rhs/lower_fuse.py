"""Which steps share a loop, which results never reach memory, and where the others are kept."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from pyjode.rhs.lower_steps import Step, Store, reads, values, written
from pyjode.rhs.lower_values import Buffer, Shape, View, gathers, numel, ops, reshape

_ALIGNMENT = 64
# Beyond these, a loop runs out of registers, and the compiler out of patience.
_MAX_STORES = 16
_MAX_WORK = 800


@dataclass(eq=False)
class Loop:
    """Stores over one domain, element by element in one loop; or a single other step.

    Attributes:
        domain: shape without axes of length 1; ``None`` for a single other step.
    """

    domain: Shape | None
    steps: list[Step] = field(default_factory=list)
    kept: set[Store] = field(default_factory=set)
    """Stores whose target is memory that something outside the loop reads."""


@dataclass
class Plan:
    """
    Attributes:
        loops: in order.
        offsets: of each temp that needs memory, in bytes.
        size: of the workspace, in bytes.
    """

    loops: list[Loop]
    offsets: dict[Buffer, int]
    size: int


def plan(steps: list[Step]) -> Plan:
    """Fuses the steps and lays out the workspace."""
    loops = _fuse(_needed(steps))
    forwarded = _forwarded(loops)
    for loop in loops:
        loop.kept = {s for s in loop.steps if isinstance(s, Store) and s.target.buffer not in forwarded}
    return _with_memory(loops, forwarded)


def squeezed(view: View) -> tuple[int, Shape]:
    """What tells apart two views of one buffer over the same domain."""
    return view.offset, tuple(s for s, n in zip(view.strides, view.shape, strict=True) if n != 1)


def _is_result(buffer: Buffer) -> bool:
    return buffer.kind == "output" or buffer.home is not None


def _needed(steps: list[Step]) -> list[Step]:
    wanted: set[Buffer] = set()
    kept = []
    for step in reversed(steps):
        buffer = written(step).buffer
        if buffer in wanted or _is_result(buffer):
            kept.append(step)
            wanted.update(v.buffer for v in reads(step))
    return kept[::-1]


def _fuse(steps: list[Step]) -> list[Loop]:
    loops: list[Loop] = []
    writers: dict[Buffer, list[tuple[int, Step]]] = defaultdict(list)
    by_domain: dict[Shape, list[int]] = defaultdict(list)
    for step in steps:
        at = None
        if isinstance(step, Store) and not step.alone:
            for domain in _domains(step, by_domain):
                shaped = _with_domain(step, domain)
                at = None if shaped is None else _place(shaped, domain, loops, by_domain[domain], writers)
                if at is not None and shaped is not None:
                    step = shaped
                    break
        if at is None:
            at = len(loops)
            loops.append(Loop(_domain(step) if isinstance(step, Store) else None))
            if isinstance(step, Store) and not step.alone:
                by_domain[_domain(step)].append(at)
        loops[at].steps.append(step)
        writers[written(step).buffer].append((at, step))
    return loops


def _domain(step: Store) -> Shape:
    return tuple(n for n in step.target.shape if n != 1)


def _domains(step: Store, known: dict[Shape, list[int]]) -> list[Shape]:
    """The shapes that the step could have, its own first."""
    own = _domain(step)
    return [own, *(d for d in list(known) if d != own and numel(d) == numel(own))]


def _with_domain(step: Store, domain: Shape) -> Store | None:
    """The same step over another shape, if all of its memory can be seen in that shape."""
    if _domain(step) == domain:
        return step
    target, value = reshape(step.target, domain), reshape(step.value, domain)
    return Store(target, value) if isinstance(target, View) and value is not None else None


def _place(
    step: Store, domain: Shape, loops: list[Loop], candidates: list[int], writers: dict[Buffer, list[tuple[int, Step]]]
) -> int | None:
    """The first of the loops that the step can join."""
    first = max((_earliest(v, writers, domain) for v in reads(step)), default=0)
    for buffer in _indexed(step):
        first = max((first, *(i + 1 for i, _ in writers[buffer])))
    for i, other in writers[step.target.buffer]:
        first = max(first, i if isinstance(other, Store) and not other.alone else i + 1)
    return next((i for i in candidates if i >= first and _has_room(loops[i], step)), None)


def _indexed(step: Step) -> set[Buffer]:
    """Memory that the step reads at places known only when it runs."""
    return {g.base.buffer for x in values(step) for g in gathers(x)}


def _earliest(view: View, writers: dict[Buffer, list[tuple[int, Step]]], domain: Shape) -> int:
    """The first loop in which what ``view`` reads is known."""
    first = 0
    for i, step in writers[view.buffer]:
        same = (
            isinstance(step, Store)
            and not step.alone
            and _domain(step) == domain
            and squeezed(step.target) == squeezed(view)
        )
        first = max(first, i if same else i + 1)
    return first


def _has_room(loop: Loop, step: Store) -> bool:
    work = sum(ops(s.value) for s in loop.steps if isinstance(s, Store)) + ops(step.value)
    return not loop.domain or (len(loop.steps) < _MAX_STORES and work < _MAX_WORK)


def _forwarded(loops: list[Loop]) -> set[Buffer]:
    """Temps whose every reader sits in the loop of their stores: they stay local variables there."""
    stores: dict[Buffer, dict[tuple[int, Shape], int]] = defaultdict(dict)
    other: set[Buffer] = set()
    for i, loop in enumerate(loops):
        for step in loop.steps:
            buffer = written(step).buffer
            if isinstance(step, Store) and buffer.kind == "temp" and not _is_result(buffer):
                stores[buffer][squeezed(step.target)] = i
            else:
                other.add(buffer)
    for i, loop in enumerate(loops):
        for step in loop.steps:
            indexed = _indexed(step)
            for view in reads(step):
                if stores.get(view.buffer, {}).get(squeezed(view)) != i or view.buffer in indexed:
                    other.add(view.buffer)
    return set(stores) - other


def _with_memory(loops: list[Loop], forwarded: set[Buffer]) -> Plan:
    first: dict[Buffer, int] = {}
    last: dict[Buffer, int] = {}
    for i, loop in enumerate(loops):
        for step in loop.steps:
            for buffer in (written(step).buffer, *(v.buffer for v in reads(step))):
                if buffer.kind == "temp" and buffer.home is None and buffer not in forwarded:
                    first.setdefault(buffer, i)
                    last[buffer] = i
    placed: list[tuple[int, int, Buffer]] = []
    offsets: dict[Buffer, int] = {}
    for buffer in sorted(first, key=lambda b: first[b]):
        size = -(-max(buffer.numel, 1) * buffer.dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
        taken = sorted((o, s) for o, s, b in placed if last[b] >= first[buffer])
        at = 0
        for o, s in taken:
            if at + size <= o:
                break
            at = max(at, o + s)
        placed.append((at, size, buffer))
        offsets[buffer] = at
    return Plan(loops, offsets, max((o + s for o, s, _ in placed), default=0))
