"""Finding and starting Julia, once per process, at first use.

Start-up is the delicate part: environment variables must be set before juliacall loads, Ctrl-C must not hit Julia
half-way through its start, and Julia must leave Python's signal handling and process exit alone.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from pyjode.engines.julia import config, sysimage
from pyjode.engines.julia.libjulia import remembered_while_juliacall_loads
from pyjode.errors import EngineUnavailable, InputError, PyjodeError

log = logging.getLogger("pyjode")


@dataclass(frozen=True)
class Runtime:
    """A started Julia.

    Attributes:
        entry_points: addresses of PyJODE's C functions by name.
        any_thread: whether threads other than the one that started Julia may enter (Julia handles its own signals).
        threads: how many threads Julia computes on.
        pid, thread: the process and the thread (``threading.get_ident()``) Julia was started in.
        seconds: what start-up cost, by stage: ``"start Julia"``, ``"load PyJODE"``.
    """

    entry_points: dict[str, int]
    any_thread: bool
    threads: int
    pid: int
    thread: int
    seconds: dict[str, float]


_runtime: Runtime | None = None
_starting = threading.Lock()


def started() -> bool:
    """Whether Julia runs in this process already."""
    return _runtime is not None


def runtime(meanwhile: Callable[[], object] | None = None) -> Runtime:
    """The process's Julia, started now if it was not.

    Args:
        meanwhile: called in a thread of its own while Julia loads PyJODE, if it does; what it raises is dropped.

    Raises:
        EngineUnavailable: no Julia is set up, it does not start, or this is a forked child of a process that had
            started it.
    """
    global _runtime
    if _runtime is None:
        with _starting:
            if _runtime is None:
                main = threading.current_thread() is threading.main_thread()
                _runtime = _start(_at_exit_here, meanwhile) if main else _start_in_a_thread_of_its_own(meanwhile)
    if _runtime.pid != os.getpid():
        raise EngineUnavailable(
            "this process was forked from one in which Julia runs already; a forked copy of Julia is not safe to use. "
            'Start worker processes with the "spawn" method (multiprocessing.set_start_method("spawn"), '
            'DataLoader(multiprocessing_context="spawn")), or use engine="torchdiffeq" in the child'
        )
    return _runtime


def wanted_threads() -> int:
    """How many threads Julia is to start with: ``PYJODE_THREADS``, or the processors this process may use.

    ``PYTHON_JULIACALL_THREADS``, juliacall's own variable, goes before both.

    Raises:
        InputError: ``PYJODE_THREADS`` is no positive whole number.
    """
    wanted = os.environ.get("PYJODE_THREADS")
    if wanted is None:
        return allowed_processors()
    if not wanted.strip().isdecimal() or int(wanted) < 1:
        raise InputError(f"PYJODE_THREADS={wanted!r}: set it to the number of threads Julia is to have, 1 or more")
    return int(wanted)


def allowed_processors() -> int:
    """Processors this process may use: its affinity mask, and the quota of its control group (containers)."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        count = min(count, max(1, int(quota) // int(period)))
    return count


def julia_eval(code: str) -> str:
    """What ``code`` evaluates to in the engine's Julia session, inside the module PyJODE, as a string."""
    from pyjode.engines.julia.boundary import gate

    return gate().evaluate(code)


def _start_in_a_thread_of_its_own(meanwhile: Callable[[], object] | None) -> Runtime:
    """Start Julia in a thread that lives as long as the process.

    The thread that starts Julia must not end before it: with a worker's thread Julia's own would be gone. All others
    enter as guests.
    """
    outcome: list[Runtime | BaseException] = []
    ready, leave, left = threading.Event(), threading.Event(), threading.Event()

    def at_exit(finish: Callable[[], None]) -> None:
        def live() -> None:
            leave.wait()
            finish()
            left.set()

        outcome_hooks.append(live)

        def ask() -> None:
            leave.set()
            left.wait(timeout=10)

        atexit.register(_only_in_this_process(ask))

    outcome_hooks: list[Callable[[], None]] = []

    def host() -> None:
        try:
            outcome.append(_start(at_exit, meanwhile))
        except BaseException as error:
            outcome.append(error)
        ready.set()
        for live in outcome_hooks:
            live()

    threading.Thread(target=host, name="pyjode-julia", daemon=True).start()
    ready.wait()
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


def _start(at_exit: Callable[[Callable[[], None]], None], meanwhile: Callable[[], object] | None) -> Runtime:
    location = config.find_julia()
    if location is None:
        raise EngineUnavailable(config.why_not())
    juliacall_was_loaded = "juliacall" in sys.modules
    if not juliacall_was_loaded:
        _set_environment(location)
        _say(f"starting Julia ({location.exe}), once in this process")
    before = perf_counter()
    with _deferred_sigint(), _signal_mask_kept(), _exit_hook_caught() as exit_hooks:
        try:
            with warnings.catch_warnings():
                # juliacall warns when torch was imported first; both orders work (see docs: troubleshooting).
                warnings.filterwarnings("ignore", message="torch was imported before juliacall")
                with remembered_while_juliacall_loads():
                    import juliacall
        except PyjodeError:
            raise
        except Exception as error:
            raise EngineUnavailable(f"Julia did not start ({location.exe}): {error}. Try: pyjode doctor") from error
        started_at = perf_counter()
        with _in_a_thread(meanwhile):
            entry_points, threads = _load_pyjode(juliacall.CONFIG.get("libpath"), location)
    loaded_at = perf_counter()
    any_thread = juliacall.CONFIG.get("opt_handle_signals") == "yes"
    if not any_thread:  # Julia's collector stops the other threads by a fault that only its own handlers survive
        threads = 1
    leave_safe_state = _enter_gc_safe_state(juliacall.CONFIG["libpath"]) if any_thread else None

    def finish() -> None:
        if leave_safe_state is not None:
            leave_safe_state()
        for hook in exit_hooks:
            hook()

    at_exit(finish)
    seconds = {"start Julia": started_at - before, "load PyJODE": loaded_at - started_at}
    _say("Julia is ready: " + ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items()))
    return Runtime(entry_points, any_thread, threads, os.getpid(), threading.get_ident(), seconds)


def _say(message: str) -> None:
    """Tell who waits: on the terminal or in the notebook; programs hear it from the logger "pyjode"."""
    log.info(message)
    if (sys.stderr is not None and sys.stderr.isatty()) or "ipykernel" in sys.modules:
        print(f"pyjode: {message}", file=sys.stderr, flush=True)


def _set_environment(location: config.JuliaLocation) -> None:
    os.environ["PYTHON_JULIACALL_EXE"] = str(location.exe)
    os.environ["PYTHON_JULIACALL_PROJECT"] = str(location.project)
    if location.depot:
        os.environ["JULIA_DEPOT_PATH"] = location.depot
    image = sysimage.state(location)
    if image.state == "used":
        os.environ.setdefault("PYTHON_JULIACALL_SYSIMAGE", str(image.path))
    elif image.state == "stale":
        _say(f"the system image is not used: {image.reason}. `pyjode setup --sysimage` builds a new one")
    # Julia's own signal handlers are what makes its collector safe with several threads; Python's are put back after.
    os.environ.setdefault("PYTHON_JULIACALL_HANDLE_SIGNALS", "yes")
    own_signals = os.environ["PYTHON_JULIACALL_HANDLE_SIGNALS"] == "yes"
    os.environ.setdefault("PYTHON_JULIACALL_THREADS", str(wanted_threads() if own_signals else 1))
    os.environ.setdefault("PYTHON_JULIACALL_STARTUP_FILE", "no")
    os.environ.setdefault("PYTHON_JULIACALL_AUTOLOAD_IPYTHON_EXTENSION", "no")


def _load_pyjode(libjulia: str | None, location: config.JuliaLocation) -> tuple[dict[str, int], int]:
    """Addresses of PyJODE's C functions by name, and how many threads Julia has."""
    source = _julia_string(config.julia_source_dir())
    code = f"""
        try
            push!(LOAD_PATH, {source})
            Core.eval(Main, :(import PyJODE))
            let entries = Base.invokelatest(Base.invokelatest(getglobal, Main, :PyJODE).entry_points)
                join((string(k, "=", v) for (k, v) in entries), ";") * " " * string(Threads.threadpoolsize(:default))
            end
        catch reason
            "error: " * sprint(showerror, reason)
        end
        """
    answer = _evaluate(libjulia, code)
    if answer is None or answer.startswith("error: "):
        raise EngineUnavailable(
            f"Julia started, but PyJODE could not be loaded in the project {location.project}: "
            f"{(answer or 'no reason given').removeprefix('error: ')}. Try: pyjode doctor"
        )
    table, threads = answer.rsplit(" ", 1)
    return {name: int(address) for name, address in (entry.split("=") for entry in table.split(";"))}, int(threads)


def _evaluate(libjulia: str | None, code: str) -> str | None:
    """The string that Julia code evaluates to; ``None`` where it throws.

    Not by juliacall's ``seval``, whose first call compiles for two seconds, and without the GIL, for what goes on
    meanwhile.
    """
    library = ctypes.PyDLL(libjulia)
    address = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p)(("jl_eval_string", library))(code.encode())
    if not address:
        return None
    read = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.c_void_p)(("jl_string_ptr", library))
    return bytes(read(address)).decode()


@contextlib.contextmanager
def _in_a_thread(work: Callable[[], object] | None) -> Iterator[None]:
    """``work`` goes on beside the block; both are over at its end."""
    if work is None:
        yield
        return

    def dropping_errors() -> None:
        with contextlib.suppress(Exception):
            work()

    beside = threading.Thread(target=dropping_errors, name="pyjode-beside-julia", daemon=True)
    beside.start()
    try:
        yield
    finally:
        beside.join()


def _julia_string(text: str | Path) -> str:
    escaped = str(text).replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$")
    return f'"{escaped}"'


@contextlib.contextmanager
def _deferred_sigint() -> Iterator[None]:
    """Hold Ctrl-C back while Julia starts: a process interrupted half-way can never start it again."""
    if threading.current_thread() is not threading.main_thread() or not callable(signal.getsignal(signal.SIGINT)):
        yield
        return
    interrupted: list[tuple[int, Any]] = []
    handler = signal.signal(signal.SIGINT, lambda number, frame: interrupted.append((number, frame)))
    try:
        yield
    finally:
        # Installs Python's C-level handler again too, which Julia may have replaced.
        signal.signal(signal.SIGINT, handler)
    if interrupted:
        handler(*interrupted[0])  # type: ignore[operator,misc]


@contextlib.contextmanager
def _signal_mask_kept() -> Iterator[None]:
    """Undo Julia's blocking of SIGINT, SIGTERM and others in this thread: they are Python's."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextlib.contextmanager
def _exit_hook_caught() -> Iterator[list[Callable[[], object]]]:
    """Collect what juliacall registers with atexit, instead of letting it run in forked children too."""
    hooks: list[Callable[[], object]] = []
    register = atexit.register

    def catch(function: Callable[..., object], *args: Any, **kwargs: Any) -> Callable[..., object]:
        if getattr(function, "__module__", None) == "juliacall" and not args and not kwargs:
            hooks.append(function)
            return function
        return register(function, *args, **kwargs)

    atexit.register = catch  # type: ignore[assignment]
    try:
        yield hooks
    finally:
        atexit.register = register


def _at_exit_here(finish: Callable[[], None]) -> None:
    atexit.register(_only_in_this_process(finish))


def _only_in_this_process(finish: Callable[[], None]) -> Callable[[], None]:
    """``finish`` for atexit: nothing in forked children, whose copy of Julia must not be touched."""
    pid = os.getpid()

    def at_exit() -> None:
        if os.getpid() == pid:
            finish()

    return at_exit


def _enter_gc_safe_state(libjulia: str) -> Callable[[], object]:
    """Tell Julia's collector that it need not wait for this thread while it runs Python.

    Without it a collection started in another thread waits for ever for a thread that waits in Python. Entering
    through a C function pointer leaves the state for the time of the call.
    """
    internal = ctypes.PyDLL(str(_internal_library(Path(libjulia))))
    internal.jl_gc_safe_enter.restype = ctypes.c_int8
    internal.jl_gc_safe_enter.argtypes = []
    internal.jl_gc_safe_leave.argtypes = [ctypes.c_int8]
    internal.jl_gc_safe_leave.restype = None
    state = internal.jl_gc_safe_enter()
    return lambda: internal.jl_gc_safe_leave(state)


def _internal_library(libjulia: Path) -> Path:
    suffix = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
    for folder in (libjulia.parent, libjulia.parent / "julia", libjulia.resolve().parent):
        for name in (f"libjulia-internal{suffix}", *(p.name for p in folder.glob(f"libjulia-internal{suffix}.*"))):
            if (folder / name).exists():
                return folder / name
    raise EngineUnavailable(f"libjulia-internal was not found beside {libjulia}")
