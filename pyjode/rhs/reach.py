"""What a right-hand side can reach: the modules, attributes, closure cells and globals its code names.

Three things need this list: the search for parameters (closure.py), the watch for side effects while tracing
(effects.py) and the checks that a cached graph is still valid (guards.py).
"""

from __future__ import annotations

import dis
import functools
import random
import sys
import types
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

PRIMITIVES = (int, float, bool, str, bytes, complex, type(None), torch.dtype, torch.device, torch.Size)
# Keys of nn.Module.__dict__ that are torch's own bookkeeping.
_HOOK_KEYS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)
_MODULE_INTERNALS = frozenset(vars(nn.Module())) - {"training"}
# Modules whose functions give another answer each time.
_CLOCKS = frozenset({"time", "datetime", "uuid", "secrets", "random"})
_FILES = frozenset({"open", "input"})
# Code of these packages is not scanned: it does what its documentation says.
_LIBRARIES = frozenset({"torch", "numpy", "functorch"}) | sys.stdlib_module_names - {"__main__"}
_MAX_OBJECTS = 20_000
_MAX_DEPTH = 8
_MAX_ENTRIES = 256


@dataclass(frozen=True, eq=False)
class Slot:
    """One place that holds a value: ``holder[key]`` of a dict or list, or a closure cell's content (``key`` None)."""

    name: str
    holder: Any
    key: Any
    gate: str | None = None
    """Attribute name that f's code must mention for this slot to matter to f; ``None``: it always matters."""

    def get(self) -> Any:
        """The value; ``KeyError``, ``IndexError`` or ``ValueError`` when it is gone."""
        return self.holder.cell_contents if self.key is None else self.holder[self.key]

    def put(self, value: Any) -> None:
        if self.key is None:
            self.holder.cell_contents = value
        else:
            self.holder[self.key] = value


class Reach:
    """Everything found from f, by name. Built once before f is traced.

    Attributes:
        slots: places with values: attributes, parameters, buffers, submodules, cells, globals, list and dict entries.
        holders: (name, dict or list or set) whose own size matters.
        modules: (name, module), each once, f's own order.
        tensors: id of a tensor -> its name.
        arrays: (name, numpy array).
        classes: (class, attribute name) whose value is baked in.
        clocks: names of clocks, Python's ``random`` and file functions the code mentions.
        generators: names of random generators other than the global ones.
    """

    def __init__(self, f: Callable[..., Any]):
        self.slots: list[Slot] = []
        self.holders: list[tuple[str, Any]] = []
        self.modules: list[tuple[str, nn.Module]] = []
        self.tensors: dict[int, str] = {}
        self.arrays: list[tuple[str, Any]] = []
        self.classes: list[tuple[type, str]] = []
        self.clocks: list[str] = []
        self.generators: list[str] = []
        self._names: set[str] = set()
        self._seen: dict[int, Any] = {}
        self._waiting: dict[str, list[tuple[str, Any, int]]] = {}
        self._instances: list[tuple[str, Any]] = []
        self._todo: deque[tuple[str, Any, int]] = deque()
        root = "f" if isinstance(f, types.FunctionType) else "self"
        self._visit(root, f, 0)
        self._follow()

    def guarded_slots(self) -> Iterator[Slot]:
        """The slots that f's code can read."""
        return (s for s in self.slots if s.gate is None or s.gate in self._names)

    def slots_of(self, tensor: Tensor) -> list[Slot]:
        """Every place that holds this very tensor."""
        found = []
        for slot in self.slots:
            try:
                if slot.get() is tensor:
                    found.append(slot)
            except (KeyError, IndexError, ValueError):
                continue
        return found

    def hook_dicts(self) -> list[dict[Any, Any]]:
        """The hook registries of every module reached, and torch's global ones."""
        per_module = [getattr(m, key) for _, m in self.modules for key in _HOOK_KEYS if hasattr(m, key)]
        registry = torch.nn.modules.module
        return [
            *per_module,
            registry._global_forward_hooks,
            registry._global_forward_pre_hooks,
            registry._global_backward_hooks,
            registry._global_backward_pre_hooks,
        ]

    def _follow(self) -> None:
        """Visits what is queued until nothing new is named."""
        done_methods: set[tuple[type, str]] = set()
        while True:
            while self._todo:
                self._visit_now(*self._todo.popleft())
            for key in [k for k in self._waiting if k in self._names]:
                for entry in self._waiting.pop(key):
                    self._visit(*entry)
            for name, x in self._instances:
                for cls in type(x).__mro__:
                    if _is_library(cls.__module__):
                        continue
                    for key, member in vars(cls).items():
                        if (key in self._names or key in ("forward", "__call__")) and (cls, key) not in done_methods:
                            done_methods.add((cls, key))
                            self._visit_member(name, cls, key, member)
            if not self._todo:
                return

    def _visit_member(self, name: str, cls: type, key: str, member: Any) -> None:
        if isinstance(member, (staticmethod, classmethod)):
            member = member.__func__
        if isinstance(member, property):
            member = member.fget
        if isinstance(member, functools.cached_property):
            member = member.func
        if isinstance(member, types.FunctionType):
            self._visit(f"{name}.{key}", member, 1)
        elif not isinstance(member, (types.MemberDescriptorType, types.GetSetDescriptorType)):
            self.classes.append((cls, key))
            self._visit(f"{name}.{key}", member, 1)

    def _visit(self, name: str, x: Any, depth: int) -> None:
        if isinstance(x, PRIMITIVES) or id(x) in self._seen or depth > _MAX_DEPTH or len(self._seen) > _MAX_OBJECTS:
            return
        # Holding x keeps its id from being used again during the walk.
        self._seen[id(x)] = x
        self._todo.append((name, x, depth))

    def _visit_now(self, name: str, x: Any, depth: int) -> None:
        if isinstance(x, Tensor):
            self.tensors[id(x)] = name
        elif isinstance(x, nn.Module):
            self._visit_module(name, x, depth)
        elif isinstance(x, types.FunctionType):
            self._visit_function(name, x, depth)
        elif isinstance(x, types.MethodType):
            self._visit(name.rpartition(".")[0] or "self", x.__self__, depth)
            self._visit(name, x.__func__, depth)
        elif isinstance(x, functools.partial):
            self._visit(name, x.func, depth)
            for i, value in enumerate(x.args):
                self._visit(f"{name}.args[{i}]", value, depth + 1)
            self._entries(f"{name}.keywords", x.keywords, x.keywords.keys(), depth)
        elif isinstance(x, (list, tuple, dict, set, frozenset, deque)):
            self._visit_container(name, x, depth)
        elif isinstance(x, types.ModuleType):
            self._visit_python_module(name, x, depth)
        elif isinstance(x, (types.BuiltinFunctionType, type)):
            if isinstance(getattr(x, "__self__", None), random.Random):
                self.generators.append(name)
            if (getattr(x, "__module__", None) or "") in _CLOCKS:
                self.clocks.append(name)
        elif type(x).__module__.partition(".")[0] == "numpy":
            if hasattr(x, "tobytes"):
                self.arrays.append((name, x))
            elif hasattr(x, "bit_generator"):
                self.generators.append(name)
        elif isinstance(x, (random.Random, torch.Generator)):
            self.generators.append(name)
        else:
            self._visit_object(name, x, depth)

    def _visit_module(self, name: str, m: nn.Module, depth: int) -> None:
        self.modules.append((name, m))
        self._instances.append((name, m))
        registries: tuple[Any, ...] = (m._parameters, m._buffers, m._modules)
        for registry in registries:
            if not isinstance(registry, dict):  # TorchScript's view of its own storage: nothing can be put there
                for key, value in registry.items():
                    self._visit(f"{name}.{key}", value, 0 if isinstance(value, nn.Module) else depth + 1)
                continue
            self.holders.append((name, registry))
            for key, value in registry.items():
                self.slots.append(Slot(f"{name}.{key}", registry, key))
                self._visit(f"{name}.{key}", value, 0 if isinstance(value, nn.Module) else depth + 1)
        gated = not _is_library(type(m).__module__)
        keys = [k for k in vars(m) if k not in _MODULE_INTERNALS]
        self._entries(name, vars(m), keys, depth, gated=gated, always=("training",))
        self.holders.append((name, vars(m)))

    def _visit_object(self, name: str, x: Any, depth: int) -> None:
        self._instances.append((name, x))
        attributes = getattr(x, "__dict__", None)
        if isinstance(attributes, dict):
            self.holders.append((name, attributes))
            self._entries(name, attributes, attributes.keys(), depth, gated=not _is_library(type(x).__module__))
        for cls in type(x).__mro__:
            slots = vars(cls).get("__slots__", ())
            for key in (slots,) if isinstance(slots, str) else slots:
                if hasattr(x, key):
                    self._visit(f"{name}.{key}", getattr(x, key), depth + 1)

    def _visit_container(self, name: str, x: Any, depth: int) -> None:
        if not isinstance(x, (tuple, frozenset)):
            self.holders.append((name, x))
        if isinstance(x, dict):
            self._entries(name, x, list(x)[:_MAX_ENTRIES], depth, brackets=True)
        elif isinstance(x, (list, deque)):
            self._entries(name, x, range(min(len(x), _MAX_ENTRIES)), depth, brackets=True)
        else:
            for value in list(x)[:_MAX_ENTRIES]:
                self._visit(f"an entry of {name}", value, depth + 1)

    def _visit_python_module(self, name: str, x: types.ModuleType, depth: int) -> None:
        if x.__name__ in _CLOCKS:
            self.clocks.append(x.__name__)
        elif not _is_library(x.__name__):
            keys = [k for k in vars(x) if not k.startswith("__")]
            self._entries(name, vars(x), keys, depth, gated=True)

    def _visit_function(self, name: str, function: types.FunctionType, depth: int) -> None:
        function = _unwrapped(function)
        if _is_library(function.__module__):
            return
        for value in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self._visit(f"a default argument of {name}", value, depth + 1)
        for key, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            self.slots.append(Slot(key, cell, None))
            try:
                self._visit(key, cell.cell_contents, depth + 1)
            except ValueError:  # a cell not filled yet
                continue
        self._entries(name, vars(function), vars(function).keys(), depth)
        for code in _codes(function.__code__):
            self._names.update(code.co_names)
            self._names.update(c for c in code.co_consts if isinstance(c, str) and c.isidentifier())
            for op in dis.get_instructions(code):
                if op.opname in ("LOAD_GLOBAL", "STORE_GLOBAL", "LOAD_NAME"):
                    self._visit_global(function.__globals__, op.argval, depth)
                elif op.opname == "IMPORT_NAME" and op.argval in _CLOCKS:
                    self.clocks.append(op.argval)

    def _visit_global(self, space: dict[str, Any], key: str, depth: int) -> None:
        if key in space:
            value = space[key]
            self.slots.append(Slot(f"the global {key}", space, key))
            self._visit(key, value, depth + 1)
        elif key in _FILES:
            self.clocks.append(f"{key}()")

    def _entries(
        self,
        name: str,
        holder: Any,
        keys: Any,
        depth: int,
        *,
        gated: bool = False,
        always: tuple[str, ...] = (),
        brackets: bool = False,
    ) -> None:
        """Registers ``holder[key]`` for each key; a gated one is visited when f's code names it."""
        for key in list(keys):
            value = holder[key]
            full = f"{name}[{key!r}]" if brackets else f"{name}.{key}"
            gate = str(key) if gated and key not in always else None
            self.slots.append(Slot(full, holder, key, gate))
            if gate is None or gate in self._names:
                self._visit(full, value, depth + 1)
            else:
                self._waiting.setdefault(gate, []).append((full, value, depth + 1))


def _is_library(module: str | None) -> bool:
    return module is None or module.partition(".")[0] in _LIBRARIES


def _unwrapped(function: types.FunctionType) -> types.FunctionType:
    """The user's function under a torch decorator such as ``torch.no_grad()``, which is itself library code."""
    while _is_library(function.__module__) and isinstance(getattr(function, "__wrapped__", None), types.FunctionType):
        function = function.__wrapped__  # type: ignore[attr-defined]
    return function


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for c in code.co_consts:
        if isinstance(c, types.CodeType):
            yield from _codes(c)
