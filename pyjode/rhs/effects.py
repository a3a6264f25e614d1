"""Does calling f do something that a graph of its tensor operations would not repeat?

One call of f, the one that is traced, is watched: Python state before and after, output, random generators, and the
torch functions that take a value out of a tensor or depend on autograd. f is never called an extra time for it.
"""

from __future__ import annotations

import logging
import random
import sys
import threading
import types
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyjode.rhs.reach import PRIMITIVES, Reach

_VALUE_TAKERS = frozenset(
    {
        "item",
        "tolist",
        "numpy",
        "__array__",
        "__bool__",
        "__float__",
        "__int__",
        "__index__",
        "__complex__",
        "__format__",
        "__contains__",
        "__dlpack__",
        "data_ptr",
        "untyped_storage",
        "storage",
        "equal",
        "allclose",
        "is_nonzero",
        "nonzero",
    }
)
_AUTOGRAD_CALLS = frozenset({"grad", "backward", "register_hook", "retain_grad"})
_MAX_ARRAY_BYTES = 16_384
_PYTHON_RANDOM = "random"
_GONE = object()


def static_reason(reach: Reach) -> str | None:
    """Why f cannot be traced, as far as its Python objects tell without calling it; ``None`` when nothing is found."""
    if any(reach.hook_dicts()):
        named = [
            n for n, m in reach.modules if m._forward_hooks or m._forward_pre_hooks or m._backward_hooks
        ]  # a global hook has no module
        return f"a module of f has hooks ({', '.join(named[:3]) or 'global module hooks'}), which a graph does not run"
    if reach.clocks:
        return f"f's code mentions {reach.clocks[0]}: a graph would keep the value of the first call"
    if reach.generators:
        return f"f uses the random generator {reach.generators[0]}"
    for name, array in reach.arrays:
        if array.nbytes > _MAX_ARRAY_BYTES:
            return f"f reads the numpy array {name}, whose changes cannot be noticed: make it a tensor or a buffer"
    return None


class Watch(TorchFunctionMode):
    """Watches one call of f.

    Used in two layers: ``with watch.outside():`` round everything, and ``with watch:`` directly round f (a torch
    function mode, which must be the innermost one). Afterwards :attr:`findings` says what was seen.

    Attributes:
        findings: sentences for the user, in order of importance.
        changed: the places (holder id, key) that the call changed.
        calls_autograd: f called ``torch.autograd.grad`` or ``backward``.
        forgets_graph: it did so without ``create_graph=True``.
    """

    def __init__(self, reach: Reach):
        super().__init__()
        self.findings: list[str] = []
        self.changed: set[tuple[int, Any]] = set()
        self.calls_autograd = False
        self.forgets_graph = False
        self._reach = reach
        self._taken: list[str] = []
        self._no_grad = False

    @property
    def changes_state(self) -> bool:
        """Whether Python state or a tensor was changed by the call."""
        return bool(self.changed)

    def outside(self) -> _Surroundings:
        return _Surroundings(self, self._reach)

    def __torch_function__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _VALUE_TAKERS:
            self._taken.append(name)
        elif name in _AUTOGRAD_CALLS and not _inside_torch_func():
            self.calls_autograd = True
            if name in ("grad", "backward") and not kwargs.get("create_graph", len(args) > 4 and args[4]):
                self.forgets_graph = True
        elif func is torch._C._set_grad_enabled and args and args[0] is False:
            self._no_grad = True
        return func(*args, **kwargs)

    def conclude(self) -> None:
        """Puts what the torch functions told into :attr:`findings`."""
        if self.calls_autograd:
            self.findings.append("f calls autograd itself (torch.autograd.grad, backward or a tensor hook)")
        if self._taken:
            call = self._taken[0]
            self.findings.append(f"f takes a value out of a tensor ({call}), which a graph would keep as a constant")
        if self._no_grad and not self.calls_autograd:
            self.findings.append("f switches gradients off inside (torch.no_grad), which a graph does not repeat")


def _inside_torch_func() -> bool:
    """Whether the call comes from torch.func's transforms (grad, jacrev, vjp), which a trace sees through."""
    frame: types.FrameType | None = sys._getframe(1)
    in_autograd = False
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if in_autograd and not module.startswith("torch.autograd"):
            return bool(module.startswith("torch._functorch"))
        in_autograd = in_autograd or module.startswith("torch.autograd")
        frame = frame.f_back
    return False


class _Surroundings:
    """Snapshot before, comparison after, of what f can reach and of the process's output and random state."""

    def __init__(self, watch: Watch, reach: Reach):
        self._watch = watch
        self._reach = reach

    def __enter__(self) -> None:
        reach = self._reach
        self._slots = [(s, _content(s.get)) for s in reach.slots]
        self._holders = [(name, h, _copy(h)) for name, h in reach.holders]
        tensors = {id(x): (name, x) for s in reach.slots for name, x in [(s.name, _content(s.get))] if _is_tensor(x)}
        self._versions = [(name, x, _version(x)) for name, x in tensors.values()]
        self._rng = _random_states()
        self._output = _Output()
        self._output.__enter__()

    def __exit__(self, *_: object) -> None:
        self._output.__exit__()
        watch = self._watch
        self._compare_slots()
        self._compare_holders()
        for name, x, version in self._versions:
            if _version(x) != version:
                watch.changed.add((id(x), None))
                watch.findings.append(f"f changes the tensor {name} in place")
        if self._output.used:
            watch.findings.append(f"f writes to {self._output.used[0]}, which a graph would not do again")
        now = _random_states()
        for name, (state, restore) in self._rng.items():
            if not _same_state(state, now[name][0]):
                # Type checkers (beartype) draw from Python's generator too; f's own use of it static_reason has seen.
                if name != _PYTHON_RANDOM:
                    watch.findings.append(f"f draws random numbers ({name})")
                # The draws of this extra call must not shift the user's own.
                restore(state)
        watch.conclude()

    def _compare_slots(self) -> None:
        for slot, before in self._slots:
            after = _content(slot.get)
            if _same(before, after):
                continue
            self._watch.changed.add((id(slot.holder), slot.key))
            counter = _is_number(before) and _is_number(after)
            hint = "; Solution.stats counts evaluations for free" if counter and after == before + 1 else ""
            self._watch.findings.append(f"f changes {slot.name}{hint}")
            if counter:
                # Our call is not one of the user's: their counter should not show it.
                slot.put(before)

    def _compare_holders(self) -> None:
        for name, holder, before in self._holders:
            if len(holder) == len(before):
                continue
            if isinstance(holder, list) and all(x is y for x, y in zip(holder, before, strict=False)):
                del holder[len(before) :]
            known = {id(s.holder) for s, _ in self._slots}
            new = [k for k in holder if k not in before] if isinstance(holder, dict) else []
            self._watch.changed.add((id(holder), None))
            self._watch.changed.update((id(holder), k) for k in new)
            what = f"{name}.{new[0]}" if new and id(holder) in known and isinstance(new[0], str) else name
            self._watch.findings.append(f"f changes {what}")


class _Output:
    """Notices writes of this thread to stdout, stderr and the logging module, and passes them on."""

    def __init__(self) -> None:
        self.used: list[str] = []

    def __enter__(self) -> None:
        self._thread = threading.get_ident()
        self._streams = sys.stdout, sys.stderr
        self._factory = logging.getLogRecordFactory()
        sys.stdout = _Stream(sys.stdout, lambda: self._note("stdout"))
        sys.stderr = _Stream(sys.stderr, lambda: self._note("stderr"))
        logging.setLogRecordFactory(self._record)

    def __exit__(self, *_: object) -> None:
        sys.stdout, sys.stderr = self._streams
        logging.setLogRecordFactory(self._factory)

    def _note(self, what: str) -> None:
        if threading.get_ident() == self._thread:
            self.used.append(what)

    def _record(self, name: str, *args: Any, **kwargs: Any) -> logging.LogRecord:
        if not name.startswith("torch"):
            self._note("a log")
        return self._factory(name, *args, **kwargs)


class _Stream:
    def __init__(self, stream: Any, note: Callable[[], None]):
        self._stream = stream
        self._note = note

    def write(self, text: str) -> int:
        # A warning is shown once a process, not once a call; torch gives some of its own while tracing.
        if sys._getframe(1).f_globals.get("__name__") not in ("warnings", "_py_warnings", "logging"):
            self._note()
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _content(get: Callable[[], Any]) -> Any:
    try:
        return get()
    except (KeyError, IndexError, ValueError):
        return _GONE


def _same(before: Any, after: Any) -> bool:
    if before is after:
        return True
    primitive = isinstance(before, PRIMITIVES) and type(before) is type(after)
    return primitive and (before == after or (before != before and after != after))


def _copy(holder: Any) -> Any:
    return list(holder) if isinstance(holder, deque) else holder.copy()


def _is_tensor(x: Any) -> bool:
    return isinstance(x, Tensor)


def _is_number(x: Any) -> bool:
    return type(x) in (int, float)


def _version(x: Tensor) -> int:
    # Inference tensors have no version counter; torch refuses in-place changes to them outside inference mode.
    return -1 if x.is_inference() else x._version


def _random_states() -> dict[str, tuple[Any, Callable[[Any], None]]]:
    states: dict[str, tuple[Any, Callable[[Any], None]]] = {
        "torch": (torch.get_rng_state(), torch.set_rng_state),
        _PYTHON_RANDOM: (random.getstate(), random.setstate),
    }
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        states["numpy.random"] = (numpy_random.get_state(), numpy_random.set_state)
    return states


def _same_state(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return bool(torch.equal(a, b))
    if hasattr(a, "tobytes"):
        return bool((a == b).all())
    if isinstance(a, tuple) and any(hasattr(x, "tobytes") for x in a):
        return all(_same_state(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)
