"""Is a cached graph still what f means? Cheap checks of everything the trace baked in."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Iterable
from typing import Any

import torch

from pyjode.rhs.reach import PRIMITIVES, Reach

# The shape apart: in one tuple with the rest it costs three times as much.
_META = operator.attrgetter("requires_grad", "dtype", "device")
_SHAPE = operator.attrgetter("shape")


class Guards:
    """Checks that hold when they are made and stop holding when something the graph depends on is replaced.

    Watched: parameters, buffers and submodules (which objects), ``training`` and other Python numbers and strings
    in attributes, closure cells and globals that f's code names (their values), other objects there (their
    identity), lists and dicts (their length and entries), hooks, numpy arrays (their bytes), a tensor's shape,
    dtype, device and ``requires_grad``, torch's default dtype and autocast.

    A change of a tensor's values is no reason: graphs refer to the tensors themselves.
    """

    def __init__(self, reach: Reach, tensors: Iterable[Any], ignore: set[tuple[int, Any]] = frozenset()):  # type: ignore[assignment]
        """
        Args:
            reach: what f reaches.
            tensors: what the graph refers to, parameters included.
            ignore: places (holder id, key) that f itself changes at each call.
        """
        self._valid = True
        values: tuple[list[Any], list[Any], list[Any]] = [], [], []
        objects: tuple[list[Any], list[Any], list[int]] = [], [], []
        cells: tuple[list[Any], list[Any]] = [], []
        self._kept: list[Any] = []
        done: set[tuple[int, Any]] = set()
        for slot in reach.guarded_slots():
            place = (id(slot.holder), slot.key)
            if place in ignore or place in done:
                continue
            done.add(place)
            try:
                x = slot.get()
            except (KeyError, IndexError, ValueError):
                continue
            if slot.key is None:
                cells[0].append(slot.holder)
                cells[1].append(x)
                if not isinstance(x, PRIMITIVES):
                    self._keep_identity(x)
            elif isinstance(x, PRIMITIVES):
                values[0].append(slot.holder)
                values[1].append(slot.key)
                values[2].append(x)
            else:
                objects[0].append(slot.holder)
                objects[1].append(slot.key)
                objects[2].append(id(x))
                self._keep_identity(x)
        self._value_holders, self._value_keys, self._values = values
        self._value_types = list(map(type, self._values))
        self._object_holders, self._object_keys, self._object_ids = objects
        self._cells = cells[0]
        self._cell_ids = [None if isinstance(x, PRIMITIVES) else id(x) for x in cells[1]]
        self._cell_values = [x if isinstance(x, PRIMITIVES) else None for x in cells[1]]
        self._classes = [(cls, key, vars(cls)[key]) for cls, key in reach.classes if (id(vars(cls)), key) not in ignore]
        sized = [h for _, h in reach.holders if (id(h), None) not in ignore and not _is_attribute_dict(h, reach)]
        self._sized, self._sizes = sized, list(map(len, sized))
        self._tensors = list({id(x): x for x in tensors}.values())
        self._metas = list(map(_META, self._tensors))
        self._shapes = list(map(_SHAPE, self._tensors))
        self._hooks = reach.hook_dicts()
        self._had_hooks = any(self._hooks)
        self._hook_sizes = list(map(len, self._hooks))
        self._arrays = [(x, x.tobytes()) for _, x in reach.arrays]
        self._modes = _modes()

    def hold(self) -> bool:
        """Whether nothing has changed."""
        try:
            return (
                self._valid
                and list(map(id, map(operator.getitem, self._object_holders, self._object_keys))) == self._object_ids
                and self._values_hold()
                and list(map(_META, self._tensors)) == self._metas
                and list(map(_SHAPE, self._tensors)) == self._shapes
                and any(self._hooks) == self._had_hooks
                and (not self._had_hooks or list(map(len, self._hooks)) == self._hook_sizes)
                and list(map(len, self._sized)) == self._sizes
                and self._cells_hold()
                and all(vars(cls).get(key) is x for cls, key, x in self._classes)
                and all(x.tobytes() == old for x, old in self._arrays)
                and _modes() == self._modes
            )
        except (KeyError, IndexError, ValueError):
            return False

    def _values_hold(self) -> bool:
        now = list(map(operator.getitem, self._value_holders, self._value_keys))
        # Types first: a tensor compared with a number would give a tensor.
        return list(map(type, now)) == self._value_types and now == self._values

    def _cells_hold(self) -> bool:
        for cell, known, value in zip(self._cells, self._cell_ids, self._cell_values, strict=True):
            now = cell.cell_contents
            if known is None:
                if now is not value and (type(now) is not type(value) or now != value):
                    return False
            elif id(now) != known:
                return False
        return True

    def _keep_identity(self, x: Any) -> None:
        """Makes sure that an equal id later means the same object.

        Weakly where possible: what f holds may lead back to f, which a cache must not keep alive.
        """
        try:
            self._kept.append(weakref.ref(x, self._expire))
        except TypeError:
            self._kept.append(x)

    def _expire(self, _: object) -> None:
        self._valid = False


def _is_attribute_dict(holder: Any, reach: Reach) -> bool:
    """Attribute dictionaries may grow by attributes that f never reads."""
    return any(vars(m) is holder for _, m in reach.modules) or any(
        holder is getattr(x, "__dict__", None) for _, x in reach._instances
    )


def _modes() -> tuple[Any, ...]:
    return torch.get_default_dtype(), torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")
