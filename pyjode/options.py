"""torchdiffeq's ``options``: which method takes which, what they mean, and their values checked.

Source of the meanings: torchdiffeq's further documentation (FURTHER_DOCUMENTATION.md) and source, version 0.2.5.
``docs/switching.md`` says what each becomes on the Julia engine.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyjode.engines.request import IntegralController, StepControl, StepOptions, cpu_times
from pyjode.errors import InputError, UnsupportedError
from pyjode.methods import Method, find_method, nearest
from pyjode.solve import step_control

ADAPTIVE = (
    "first_step", "safety", "ifactor", "dfactor", "min_step", "max_step", "max_num_steps", "dtype", "step_t", "jump_t",
    "norm",
)  # fmt: skip
"""Options of the methods with step size control."""
FIXED = ("step_size", "grid_constructor", "interp", "perturb")
"""Options of the methods with fixed steps."""
ADAMS = (*FIXED, "max_order", "max_iters")
"""Options of explicit_adams, implicit_adams and fixed_adams."""
IMPLICIT = (*FIXED, "max_iters")
"""Options of torchdiffeq's implicit methods with fixed steps."""
SCIPY = ("solver", "min_step", "max_step")
"""Options of scipy_solver."""
OPTIONS = tuple(dict.fromkeys((*ADAPTIVE, *ADAMS, *SCIPY)))
"""All of them."""

_STEPS = ("first_step", "step_size", "min_step", "max_step", "max_num_steps", "safety", "ifactor", "dfactor")
MAX_NUM_STEPS = 2**31 - 1
"""torchdiffeq's default of ``max_num_steps``."""

_SILENTLY_UNUSED = ("norm", "eps", "grid_points")
_SCIPY = {"RK45": "DP5", "RK23": "BS3", "DOP853": "DP8", "Radau": "RadauIIA5", "BDF": "QNDF", "LSODA": "AutoTsit5"}
# By torchdiffeq's max_order, the predictor's order plus one; its default of 12 is more than Julia has.
_ADAMS = {
    "explicit_adams": {4: "VCAB3", 5: "VCAB4", 6: "VCAB5"},
    "implicit_adams": {4: "VCABM4", 5: "VCABM5"},
    "fixed_adams": {4: "VCABM4", 5: "VCABM5"},
}
_BROYDEN_ITERS, _ADAMS_ITERS, _ADAMS_ORDER = 100, 4, 12


def options_of(method: Method) -> tuple[str, ...]:
    """The options that ``method`` takes; a method by its name in Julia takes those of torchdiffeq's with its steps."""
    if method.name == "scipy_solver":
        return SCIPY
    if method.name in _ADAMS:
        return ADAMS
    if method.note and method.kind == "stiff":
        return IMPLICIT
    return ADAPTIVE if method.adaptive else FIXED


def read_options(
    method: Method, options: dict[str, Any] | None, name: str, *, needed: bool = False
) -> tuple[Method, StepControl, StepOptions | None]:
    """The method that runs, its step control, and what further options say; ``None`` where they say nothing.

    An option of another method is ignored with a warning, as torchdiffeq does.

    Args:
        method: what was asked for; ``max_order`` and ``solver`` choose another Julia method for it.
        options: as passed by the user.
        name: what error messages call them: ``"options"`` or ``"adjoint_options"``.
        needed: always make the further options.

    Raises:
        InputError: a value that cannot be used.
        UnsupportedError: an option that torchdiffeq has not either.
    """
    options = {} if options is None else options
    if not options and not needed and method.name != "scipy_solver":
        return method, _plain_control(method), None
    taken = options_of(method)
    _check_names(method, options, taken, name)
    given = {key: value for key, value in options.items() if key in taken}
    _check_numbers(given, name)
    dt = given.get("step_size", given.get("first_step"))
    steps = step_control(
        method,
        dt=None if dt is None else float(dt),
        adaptive=None,
        dtmin=_positive(given.get("min_step")),
        dtmax=_finite(given.get("max_step")),
        maxiters=given.get("max_num_steps", MAX_NUM_STEPS),
        controller=_controller(method, given),
    )
    if given.get("step_size") is not None and given.get("grid_constructor") is not None:
        raise InputError(f"{name}: step_size and grid_constructor exclude each other; pass one of them")
    further = StepOptions(
        step_t=_times(given.get("step_t"), f"{name}: step_t"),
        jump_t=_times(given.get("jump_t"), f"{name}: jump_t"),
        norm=_norm(given.get("norm"), name),
        grid_constructor=_callable(given.get("grid_constructor"), f"{name}: grid_constructor"),
        interp=None if method.adaptive else _interp(given.get("interp", "linear"), name),
        perturb=_flag(given.get("perturb", False), f"{name}: perturb"),
        time_dtype=_dtype(given.get("dtype"), name),
        max_order=given.get("max_order"),
        max_iters=given.get("max_iters"),
        solver=given.get("solver"),
    )
    _check_no_repeats(further, name)
    return _julia_method(method, further, name), steps, further


def refuse_beyond_steps(options: dict[str, Any] | None, name: str) -> None:
    """
    Raises:
        UnsupportedError: an option other than a step size, a bound of it, a count or a factor of the
            controller, for samples solved one by one.
    """
    others = sorted(set(options or ()) - set(_STEPS))
    if others:
        raise UnsupportedError(
            f'{name}: batching="independent" takes {", ".join(_STEPS)}; for {", ".join(others)} take batching="joint"'
        )


def _plain_control(method: Method) -> StepControl:
    return StepControl(adaptive=method.adaptive, maxiters=MAX_NUM_STEPS, controller=_controller(method, {}))


def _controller(method: Method, given: dict[str, Any]) -> IntegralController | None:
    """torchdiffeq's, of methods that take it; of others where the user says something about it."""
    factors = {name: given[name] for name in ("safety", "ifactor", "dfactor") if given.get(name) is not None}
    return IntegralController(**factors) if factors or method.has_pi_controller else None


def _check_names(method: Method, options: dict[str, Any], taken: tuple[str, ...], name: str) -> None:
    for key in options:
        if key in taken or key in _SILENTLY_UNUSED:
            continue
        if key not in OPTIONS:
            raise UnsupportedError(
                f"{name}: there is no option {key!r}{nearest(str(key), OPTIONS)} {method.name} takes {', '.join(taken)}"
            )
        warnings.warn(
            f"{name}: {method.name} does not use {key}; it takes {', '.join(taken)}", UserWarning, stacklevel=5
        )


def _check_numbers(given: dict[str, Any], name: str) -> None:
    for key in ("safety", "ifactor", "dfactor", "first_step", "step_size", "max_step"):
        value = given.get(key)
        if value is not None:
            _check_number(value, f"{name}: {key}")
    for key in ("safety", "ifactor", "dfactor"):
        if given.get(key) is not None:
            given[key] = float(given[key])
    if given.get("ifactor", 1.0) < 1 or given.get("dfactor", 1.0) > 1:
        raise InputError(
            f"{name}: ifactor is the most a step grows by, at least 1, and dfactor the most it shrinks by, at most 1; "
            f"got {given.get('ifactor')} and {given.get('dfactor')}"
        )
    if not isinstance(given.get("solver", ""), str):
        raise InputError(f"{name}: solver is {given['solver']!r}; it is the name of one of SciPy's solvers")
    for key in ("max_order", "max_iters", "max_num_steps"):
        value = given.get(key)
        if value is not None:
            if isinstance(value, bool) or int(value) != value or value < 1:
                raise InputError(f"{name}: {key} is {value!r}; it is a whole number of at least 1")
            given[key] = int(value)


def _check_number(value: Any, name: str) -> None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise InputError(f"{name} is {type(value).__name__}; it must be a number") from None
    if not number > 0:
        raise InputError(f"{name} is {number}; it must be positive")


def _positive(min_step: Any) -> float | None:
    """torchdiffeq's min_step is 0 where there is none."""
    if min_step is None or float(min_step) == 0:
        return None
    return float(min_step)


def _finite(max_step: Any) -> float | None:
    """torchdiffeq's max_step is infinite where there is none."""
    if max_step is None or math.isinf(float(max_step)):
        return None
    return float(max_step)


def _times(value: Any, name: str) -> Tensor | None:
    if value is None:
        return None
    times = torch.as_tensor(value)
    if times.ndim != 1 or times.is_complex() or times.dtype == torch.bool:
        raise InputError(f"{name} has shape {tuple(times.shape)} and dtype {times.dtype}; it must be a vector of times")
    times = cpu_times(times.detach())
    if not bool(torch.isfinite(times).all()):
        raise InputError(f"{name} holds NaN or infinite times")
    return times.sort().values


def _check_no_repeats(further: StepOptions, name: str) -> None:
    both = torch.cat(
        [x for x in (further.step_t, further.jump_t, torch.empty(0, dtype=torch.float64)) if x is not None]
    )
    if len(both.unique()) != len(both):
        raise InputError(f"{name}: step_t and jump_t must not have any repeated elements between them")


def _norm(value: Any, name: str) -> Any:
    if isinstance(value, str):
        if value == "seminorm" and name == "adjoint_options":
            return value
        raise InputError(f"{name}: norm is {value!r}; it is a callable, or 'seminorm' in adjoint_options")
    return _callable(value, f"{name}: norm")


def _callable(value: Any, name: str) -> Callable[..., Any] | None:
    if value is not None and not callable(value):
        raise InputError(f"{name} is {type(value).__name__}, which cannot be called")
    return value


def _interp(value: Any, name: str) -> str:
    if value not in ("linear", "cubic"):
        raise InputError(f"{name}: interp is {value!r}; it is 'linear' or 'cubic'")
    return str(value)


def _flag(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"{name} is {value!r}; it is True or False")
    return value


def _dtype(value: Any, name: str) -> torch.dtype | None:
    if value is not None and not (isinstance(value, torch.dtype) and value.is_floating_point):
        raise InputError(f"{name}: dtype is {value!r}; it is a floating point dtype, that of times")
    return value


def _julia_method(method: Method, further: StepOptions, name: str) -> Method:
    """The Julia method that ``max_order`` or ``solver`` stands for, under torchdiffeq's name."""
    if method.name == "scipy_solver":
        solver = further.solver or "LSODA"
        if not isinstance(solver, str) or solver not in _SCIPY:
            raise InputError(f"{name}: solver is {solver!r}; it is one of {', '.join(map(repr, _SCIPY))}")
        return _renamed(find_method(_SCIPY[solver]), method)
    if method.name not in _ADAMS:
        return method
    orders = _ADAMS[method.name]
    wanted = _ADAMS_ORDER if further.max_order is None else further.max_order
    if wanted > _ADAMS_ORDER:
        raise InputError(f"{name}: max_order is {wanted}; it must be at most {_ADAMS_ORDER}")
    if wanted < min(orders):
        warnings.warn(f"{name}: max_order is below {min(orders)}, so {method.name} is rk4", UserWarning, stacklevel=5)
        return _renamed(find_method("rk4"), method)
    return _renamed(find_method(orders[min(wanted, max(orders))]), method)


def _renamed(runs: Method, asked: Method) -> Method:
    return replace(
        runs,
        name=asked.name,
        adaptive=asked.adaptive,
        engines=asked.engines,
        torchdiffeq_name=asked.torchdiffeq_name,
        note=asked.note,
    )
