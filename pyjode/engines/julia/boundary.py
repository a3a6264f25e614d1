"""The one gate into Julia: C function pointers, structures of eight-byte fields, and a lock.

No Julia object and no Python object crosses. Python memory is read and written by Julia in place (pointers into torch
tensors); Julia memory is seen by torch in place during a callback. One thread at a time is inside.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import threading
from collections import deque
from collections.abc import Callable, Iterator
from ctypes import CFUNCTYPE, POINTER, PYFUNCTYPE, Structure, byref, c_char_p, c_double, c_int, c_int64, c_void_p
from typing import Any

from pyjode.engines.julia.runtime import Runtime, runtime
from pyjode.errors import EngineUnavailable, JuliaSourceError, PyjodeError, UnsupportedError

_POINTER = c_void_p


def _structure(name: str, fields: str, doc: str) -> type[Structure]:
    """A structure from ``"name:type"`` words; i is an int64, d a double, p a pointer."""
    types = {"i": c_int64, "d": c_double, "p": _POINTER}
    pairs = [(word.split(":")[0], types[word.split(":")[1]]) for word in fields.split()]
    return type(name, (Structure,), {"_fields_": pairs, "__doc__": doc})


RHSArgs = _structure(
    "RHSArgs",
    "double:i n:i np:i sign:i blocks:i slots:p t:p f:p vjp_u:p vjp_p:p vjp_up:p jac:p tgrad:p",
    "``RHSArgs`` of julia/src/boundary.jl.",
)
NativeArgs = _structure(
    "NativeArgs",
    "double:i n:i np:i sign:i blocks:i table:p workspace:i",
    "``NativeArgs`` of julia/src/boundary.jl.",
)
SolveArgs = _structure(
    "SolveArgs",
    "rhs:i alg:i u0:p ts:p nt:i first:i nsaves:i ys:p abstol:p reltol:p per_element:i dt:d adaptive:i dtmin:d dtmax:d "
    "maxiters:i gamma:d qmin:d qmax:d with_jac:i stop_at_ts:i dense:i reuse:i options:p",
    "``SolveArgs`` of julia/src/forward.jl.",
)
UntilArgs = _structure(
    "UntilArgs",
    "nconditions:i conditions:p sizes:p directions:p signs:p holds:p interp_points:i fired:p",
    "``UntilArgs`` of julia/src/events.jl.",
)
SolveReport = _structure(
    "SolveReport",
    "solution:i success:i t_reached:d nsaved:i nf:i naccept:i nreject:i njacs:i nsolve:i nw:i nnonliniter:i "
    "nnonlinconvfail:i",
    "``SolveReport`` of julia/src/forward.jl.",
)
AdjointArgs = _structure(
    "AdjointArgs",
    "solution:i alg:i sensealg:i joint:i ts:p nt:i first:i nsaves:i cotangents:p abstol:d reltol:d dt:d adaptive:i "
    "maxiters:i gamma:d qmin:d qmax:d want_t:i du0:p dp:p dts:p options:p products:i",
    "``AdjointArgs`` of julia/src/adjoint.jl.",
)
StepOptionsArgs = _structure(
    "StepOptionsArgs",
    "tstops:p ntstops:i dtmin:d dtmax:d force_dtmin:i lowest:d highest:d linear:i n:i ranges:p "
    "nranges:i norm:p on_step:p on_accept:p on_reject:p slots:p",
    "``StepOptions`` of julia/src/options.jl.",
)
AdjointReport = _structure(
    "AdjointReport",
    "success:i t_reached:d nf:i naccept:i nreject:i",
    "``AdjointReport`` of julia/src/adjoint.jl.",
)
IndependentArgs = _structure(
    "IndependentArgs",
    "rhs:i alg:i u0:p ts:p batch:i nt:i ys:p abstol:p reltol:p per_element:i dt:d adaptive:i dtmin:d dtmax:d "
    "maxiters:i gamma:d qmin:d qmax:d with_jac:i stop_at_ts:i keep:i reuse:i threads:i t_reached:p counts:p",
    "``IndependentArgs`` of julia/src/independent.jl.",
)
IndependentReport = _structure(
    "IndependentReport", "solution:i failed:i", "``IndependentReport`` of julia/src/independent.jl."
)
IndependentAdjointArgs = _structure(
    "IndependentAdjointArgs",
    "solution:i alg:i sensealg:i joint:i batch:i nt:i ys:p cotangents:p abstol:d reltol:d dt:d adaptive:i maxiters:i "
    "gamma:d qmin:d qmax:d want_t:i threads:i du0:p dp:p dts:p",
    "``IndependentAdjointArgs`` of julia/src/independent.jl.",
)
IndependentAdjointReport = _structure(
    "IndependentAdjointReport",
    "sample:i t_reached:d steps:i",
    "``IndependentAdjointReport`` of julia/src/independent.jl.",
)
SourceArgs = _structure(
    "SourceArgs",
    "double:i n:i np:i sign:i blocks:i rows:i ndims:i dims:p nleaves:i leaves:p values:p version:p",
    "``SourceArgs`` of julia/src/source_rhs.jl.",
)

_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "rhs": (POINTER(RHSArgs), POINTER(c_int64)),
    "native_rhs": (POINTER(NativeArgs), c_char_p, POINTER(c_int64)),
    "native_second": (POINTER(NativeArgs), c_char_p, POINTER(c_int64)),
    "native_stages": (POINTER(NativeArgs), c_char_p, POINTER(c_int64)),
    "native_pool": (POINTER(NativeArgs), c_char_p, POINTER(c_int64)),
    "independent": (POINTER(IndependentArgs), POINTER(IndependentReport)),
    "independent_adjoint": (POINTER(IndependentAdjointArgs), POINTER(IndependentAdjointReport)),
    "source_rhs": (POINTER(SourceArgs), c_char_p, c_char_p, c_char_p, c_char_p, POINTER(c_int64)),
    "source_pool": (POINTER(SourceArgs), c_char_p, c_char_p, c_char_p, c_char_p, POINTER(c_int64)),
    "call_rhs": (c_int64, c_int64, c_void_p, c_void_p, c_void_p, c_void_p, c_double),
    "construct": (c_char_p, c_char_p, POINTER(c_int64)),
    "solve": (POINTER(SolveArgs), POINTER(SolveReport)),
    "solve_until": (POINTER(SolveArgs), POINTER(UntilArgs), POINTER(SolveReport)),
    "adjoint": (POINTER(AdjointArgs), POINTER(AdjointReport)),
    "dense_output": (c_int64, c_void_p, c_int64, c_int64, c_void_p),
    "steps": (c_int64, c_void_p, c_void_p),
    "release": (c_int64,),
    "eval": (c_char_p,),
    "watch": (c_void_p, c_void_p),
}
_OK, _PYTHON_RAISED, _UNSUPPORTED, _SOURCE_ERROR = 0, 1, 3, 4


class Gate:
    """Julia's C functions behind a lock. Get it from :func:`gate`."""

    def __init__(self, rt: Runtime):
        self._runtime = rt
        self._lock = threading.RLock()
        # PYFUNCTYPE keeps the GIL: a solve that calls Python back hundreds of times would otherwise queue for it at
        # every call, behind whatever other threads compute.
        self._functions = {
            name: PYFUNCTYPE(c_int, *types)(rt.entry_points[name]) for name, types in _SIGNATURES.items()
        }
        # CFUNCTYPE lets it go: other Python threads run during a solve in Julia alone.
        self._without_gil = {
            name: CFUNCTYPE(c_int, *_SIGNATURES[name])(rt.entry_points[name])
            for name in ("solve", "solve_until", "adjoint", "independent", "independent_adjoint")
        }
        self._message = PYFUNCTYPE(c_int64, c_void_p, c_int64)(rt.entry_points["message"])
        self._raised = self._connect_python()
        self._constructed: dict[tuple[str, str], int] = {}
        # Finalizers run at any time, on any thread, inside a solve too: they only leave a note here.
        self._released: deque[int] = deque()

    def call(self, name: str, *args: Any, without_gil: bool = False) -> None:
        """Call one of PyJODE's C functions.

        Args:
            name: of the function.
            args: its arguments.
            without_gil: let other Python threads run meanwhile (a solve or an adjoint of a native f).

        Raises:
            EngineUnavailable: called from another thread than Julia was started in, where that is not possible; or
                in a forked child.
            JuliaSourceError: Julia raised an exception in a user's own source.
            PyjodeError: Julia raised an exception.
            BaseException: what a Python callback, or a signal handler, raised.
        """
        runtime()
        if not self._runtime.any_thread and threading.get_ident() != self._runtime.thread:
            raise EngineUnavailable(
                "juliacall was loaded without PYTHON_JULIACALL_HANDLE_SIGNALS=yes, so only the thread that loaded it "
                "may solve. Set that variable before Python starts, or use pyjode before importing juliacall"
            )
        with self._lock:
            while self._released:
                self._functions["release"](self._released.popleft())
            code = (self._without_gil if without_gil else self._functions)[name](*args)
            if code == _OK:
                return
            if code == _PYTHON_RAISED:
                self._reraise()
            if code == _UNSUPPORTED:
                raise UnsupportedError(self.message())
            if code == _SOURCE_ERROR:
                line, _, text = self.message().partition("\n")
                raise JuliaSourceError(text, int(line))
            raise PyjodeError(f"Julia: {self.message()}")

    def message(self) -> str:
        """The text Julia left after the last call: an error, or a return code."""
        buffer = ctypes.create_string_buffer(4096)
        size = self._message(ctypes.addressof(buffer), len(buffer))
        if size > len(buffer):
            buffer = ctypes.create_string_buffer(size)
            self._message(ctypes.addressof(buffer), size)
        return buffer.raw[:size].decode(errors="replace")

    def construct(self, packages: str, code: str) -> int:
        """Handle of what a Julia expression makes, after loading ``packages``; made once."""
        key = (packages, code)
        with self._lock:
            if key not in self._constructed:
                handle = c_int64()
                self.call("construct", packages.encode(), code.encode(), byref(handle))
                self._constructed[key] = handle.value
            return self._constructed[key]

    def evaluate(self, code: str) -> str:
        """What Julia code evaluates to in module PyJODE, as a string."""
        with self._lock:
            self.call("eval", code.encode())
            return self.message()

    @contextlib.contextmanager
    def watched(self, report: Callable[[float], None] | None) -> Iterator[None]:
        """While it lasts, right-hand sides have ``report`` called with the time, at most every 50 ms.

        What it raises ends the solve. One at a time: other threads wait to solve.
        """
        if report is None:
            yield
            return
        t = c_double()

        def read() -> int:
            report(t.value)
            return 1

        with self._lock:
            self.call("watch", id(read), ctypes.addressof(t))
            try:
                yield
            finally:
                self.call("watch", None, None)

    @property
    def threads(self) -> int:
        """How many of Julia's threads may share a batch of solves."""
        return self._runtime.threads

    def locked(self) -> threading.RLock:
        """The lock, for a call and the reading of its message."""
        return self._lock

    def release(self, handle: int) -> None:
        """Let Julia drop an object, at the next call. Safe in finalizers."""
        self._released.append(handle)

    def _connect_python(self) -> Any:
        api = ctypes.pythonapi
        names = [
            "PyObject_CallNoArgs",
            "PyLong_AsVoidPtr",
            "Py_DecRef",
            "PyErr_Fetch",
            "PyErr_CheckSignals",
            "PyGILState_Ensure",
            "PyGILState_Release",
        ]
        addresses = (c_void_p * len(names))(*(ctypes.cast(getattr(api, name), c_void_p).value for name in names))
        connect = PYFUNCTYPE(c_void_p, c_void_p)(self._runtime.entry_points["connect_python"])
        raised = connect(ctypes.addressof(addresses))
        return (c_void_p * 3).from_address(raised)

    def _reraise(self) -> None:
        restore = ctypes.PYFUNCTYPE(None, c_void_p, c_void_p, c_void_p)(("PyErr_Restore", ctypes.pythonapi))
        pointers = tuple(self._raised)
        self._raised[:] = (None, None, None)
        if pointers[0] is None:
            raise PyjodeError("a callback failed without an exception")
        restore(*pointers)


@functools.cache
def gate() -> Gate:
    """The process's gate; starts Julia at first use.

    Raises:
        EngineUnavailable: see :func:`pyjode.engines.julia.runtime.runtime`.
    """
    return Gate(runtime())
