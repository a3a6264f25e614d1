"""torchdiffeq's further options and callbacks on their way to Julia: a structure of numbers, and Python functions that
Julia calls with what is in a mailbox."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from ctypes import c_char, c_double, c_uint64
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.utils import _pytree as pytree

from pyjode.callbacks import Callback, Callbacks, callbacks_of
from pyjode.engines.julia.boundary import StepOptionsArgs
from pyjode.engines.julia.callbacks import reals, shaped_like
from pyjode.engines.request import Adjoint, Request, StepControl, StepOptions
from pyjode.errors import InputError, UnsupportedError
from pyjode.sensealgs import BacksolveAdjoint, InterpolatingAdjoint
from pyjode.state import StateLayout

_STATE, _Y, _T, _DT, _NORM = range(5)

Range = tuple[int, int, int]
"""First and last entry of a part of a vector, from 1, and what its sum of squares is divided by for the mean."""


class BoundOptions:
    """Options of one solve in memory that Julia reads. Keep it until the solve is over.

    Attributes:
        args: the structure.
        calls_python: whether Julia calls Python in the solve.
        sets_steps: whether the steps of a fixed-step solve are among the times to stop at.
        linear: whether values between steps are on straight lines.
    """

    def __init__(self, n: int, dtype: torch.dtype):
        self.args = StepOptionsArgs(
            dtmin=math.nan, dtmax=math.nan, lowest=-math.inf, highest=math.inf, n=n
        )  # fmt: skip
        self.calls_python = False
        self.sets_steps = False
        self.linear = False
        self._n = n
        self._dtype = dtype
        self._kept: list[Any] = []
        self._slots = (c_uint64 * 8)()
        self._numbers = (c_double * 8).from_buffer(self._slots)
        self.args.slots = ctypes.addressof(self._slots)

    @property
    def address(self) -> int:
        return ctypes.addressof(self.args)

    def tstops(self, times: list[Tensor], sign: int) -> None:
        """End steps at ``times``, the user's."""
        if times:
            stops = (sign * torch.cat(times)).sort().values.unique().contiguous()
            self._kept.append(stops)
            self.args.tstops, self.args.ntstops = stops.data_ptr(), len(stops)

    def norm_of_parts(self, ranges: list[Range]) -> None:
        """The norm is the largest root mean square of these parts."""
        table = torch.tensor(ranges, dtype=torch.int64)
        self._kept.append(table)
        self.args.ranges, self.args.nranges = table.data_ptr(), len(table)

    def norm(self, norm: Callable[[Tensor], Any]) -> None:
        """The norm is what ``norm`` makes of a vector of shape ``(n,)``."""

        def called() -> int:
            with torch.no_grad():
                value = abs(float(norm(self._vector(_STATE, self._n))))
            self._numbers[_NORM] = value
            return 1

        self.args.norm = self._function(called)

    def tell(self, callbacks: Callbacks, state: Callable[[Tensor, Tensor], Any], n_y: int = 0) -> None:
        """Call back with ``state(u, y)``: the solver's vector and, of an adjoint solve, y; both are copies."""
        for name, callback in (
            ("on_step", callbacks.step), ("on_accept", callbacks.accept), ("on_reject", callbacks.reject)
        ):  # fmt: skip
            if callback is not None:
                setattr(self.args, name, self._function(self._teller(callback, state, n_y)))

    def _teller(self, callback: Callback, state: Callable[[Tensor, Tensor], Any], n_y: int) -> Callable[[], int]:
        def called() -> int:
            t, dt = (torch.tensor(self._numbers[slot], dtype=torch.float64) for slot in (_T, _DT))
            u = self._vector(_STATE, self._n).clone()
            y = self._vector(_Y, n_y).clone() if n_y else u
            with torch.no_grad():
                callback(t, state(u, y), dt)
            return 1

        return called

    def _vector(self, slot: int, n: int) -> Tensor:
        memory = (c_char * (n * self._dtype.itemsize)).from_address(self._slots[slot])
        return torch.frombuffer(memory, dtype=self._dtype, count=n)

    def _function(self, function: Callable[[], int]) -> int:
        self._kept.append(function)
        self.calls_python = True
        return id(function)


def forward_options(
    request: Request,
    options: StepOptions,
    ts: Float64[Tensor, " T"],
    u0: Float[Tensor, " n"],
    *,
    to_event: bool = False,
) -> BoundOptions:
    """The options of a forward solve from ``u0`` over ``ts``.

    A solve ``to_event`` may end anywhere: its fixed steps are of the size that was asked for, and values between them
    are of the method's own dense output.

    Raises:
        InputError: a ``grid_constructor`` that makes no steps from the first to the last time.
    """
    layout, steps = request.layout, request.steps
    bound = BoundOptions(layout.n, layout.dtype)
    sign = -1 if ts[-1] < ts[0] else 1
    if steps.adaptive:
        bound.tstops([x for x in (options.step_t,) if x is not None], sign)
        bound.args.force_dtmin = int(steps.dtmin is not None)
    elif not to_event:
        grid = fixed_grid(request, options, steps, ts, u0)
        if grid is not None:
            bound.tstops([grid], sign)
            bound.sets_steps = True
            bound.linear = options.interp == "linear"
            bound.args.linear = int(bound.linear)
    if callable(options.norm):
        norm = options.norm
        bound.norm(lambda u: norm(layout.unflatten(u)))
    elif not layout.is_single_tensor:
        bound.norm_of_parts(_leaf_ranges(layout, 0))
    bound.tell(callbacks_of(request.f, request.method), lambda u, y: layout.unflatten(u))
    return bound


def adjoint_options(
    request: Request, adjoint: Adjoint, options: StepOptions, params: tuple[Tensor, ...], ts: Float64[Tensor, " T"]
) -> BoundOptions:
    """The options of the adjoint solve.

    Its state is the adjoint of y; with InterpolatingAdjoint and BacksolveAdjoint the parameters' follow, with
    BacksolveAdjoint y itself after these.
    """
    layout, steps = request.layout, adjoint.steps
    n, sizes = layout.n, reals(params)
    has_params = isinstance(adjoint.sensealg, InterpolatingAdjoint | BacksolveAdjoint)
    has_y = isinstance(adjoint.sensealg, BacksolveAdjoint)
    n_params = sum(sizes) if has_params else 0
    bound = BoundOptions(n + n_params + (n if has_y else 0), layout.dtype)
    bound.args.dtmin = math.nan if steps.dtmin is None else steps.dtmin
    bound.args.dtmax = math.nan if steps.dtmax is None else steps.dtmax
    bound.args.force_dtmin = int(steps.dtmin is not None)
    sign = -1 if ts[-1] < ts[0] else 1
    stops = [x for x in (options.step_t, options.jump_t) if x is not None]
    if options.grid_constructor is not None and not steps.adaptive:
        u_end = torch.zeros(n, dtype=layout.dtype)
        for start, end in zip(ts[1:], ts[:-1], strict=True):
            interval = torch.stack([start, end]).detach()
            stops.append(_constructed(request, options, interval, u_end))
    bound.tstops(stops, sign)

    def whole(u: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """torchdiffeq's adjoint state, in which what this solve has not is zero."""
        if has_params:
            parts = shaped_like(u[n : n + n_params], params)
        else:
            parts = [torch.zeros_like(p) for p in params]
        return torch.zeros((), dtype=layout.dtype), y, u[:n], *parts

    if callable(options.norm):
        norm, zero = options.norm, torch.zeros(n, dtype=layout.dtype)

        def of_adjoint(u: Tensor) -> Any:
            t, y, adjoint_y, *parts = whole(u, u[-n:] if has_y else zero)
            leaves = (pytree.tree_leaves(layout.unflatten(x)) for x in (y, adjoint_y))
            return norm((t, *(leaf for nest in leaves for leaf in nest), *parts))

        bound.norm(of_adjoint)
    elif has_params or not layout.is_single_tensor:
        ranges = _leaf_ranges(layout, 0)
        if has_params and options.norm != "seminorm":
            ranges += _ranges(sizes, n)
        if has_y:
            ranges += _leaf_ranges(layout, n + n_params)
        bound.norm_of_parts(ranges)
    unflatten = layout.unflatten if layout.treespec.is_leaf() else lambda x: x

    def shaped(u: Tensor, y: Tensor) -> Any:
        t, y, adjoint_y, *parts = whole(u, y)
        return (t, unflatten(y), unflatten(adjoint_y), *parts)

    bound.tell(callbacks_of(request.f, adjoint.method, adjoint=True), shaped, n)
    return bound


def step_grid(step: float, ts: Float64[Tensor, " T"]) -> Float64[Tensor, " G"]:
    """Steps of ``step`` from ``ts[0]``, the last one shorter, to ``ts[-1]``."""
    start, end = float(ts[0].detach()), float(ts[-1].detach())
    signed = math.copysign(step, end - start)
    count = math.ceil((end - start) / signed)
    inner = start + signed * torch.arange(count, dtype=torch.float64)
    # By rounding there may be one more than there is room for.
    inner = inner[(inner - end).abs() > 1e-12 * max(abs(start), abs(end))]
    return torch.cat([inner, torch.tensor([end], dtype=torch.float64)])


def fixed_grid(
    request: Request, options: StepOptions, steps: StepControl, ts: Tensor, u0: Tensor
) -> Float64[Tensor, " G"] | None:
    if options.grid_constructor is not None:
        return _constructed(request, options, ts.detach(), u0)
    return None if steps.dt is None else step_grid(steps.dt, ts)


def _constructed(request: Request, options: StepOptions, ts: Tensor, u: Tensor) -> Float64[Tensor, " G"]:
    assert options.grid_constructor is not None
    with torch.no_grad():
        grid = options.grid_constructor(request.f, request.layout.unflatten(u.detach()), ts)
    if not isinstance(grid, Tensor) or grid.ndim != 1 or len(grid) < 2:
        raise InputError("grid_constructor must return a vector of at least two times")
    grid = grid.detach().to(device="cpu", dtype=torch.float64)
    forwards = 1 if ts[-1] > ts[0] else -1
    if not bool((forwards * grid.diff() > 0).all()):
        raise InputError("grid_constructor must return times that go strictly from the first to the last of t")
    # In the precision of the user's times.
    slack = 1e-6 * float((ts[-1] - ts[0]).abs())
    if abs(float(grid[0] - ts[0])) > slack or abs(float(grid[-1] - ts[-1])) > slack:
        raise InputError(
            f"grid_constructor must return times from t[0] = {float(ts[0]):g} to t[-1] = {float(ts[-1]):g}, not from "
            f"{float(grid[0]):g} to {float(grid[-1]):g}"
        )
    return torch.cat([ts[:1], grid[1:-1], ts[-1:]])


def _leaf_ranges(layout: StateLayout, offset: int) -> list[Range]:
    """Of a complex tensor the mean is over its entries, of two reals each."""
    return [
        (offset + leaf.start + 1, offset + leaf.stop, max(1, (leaf.stop - leaf.start) // (2 if leaf.is_complex else 1)))
        for leaf in layout.leaves
    ]


def _ranges(sizes: list[int], offset: int) -> list[Range]:
    ranges = []
    for size in sizes:
        ranges.append((offset + 1, offset + size, max(1, size)))
        offset += size
    return ranges


def refuse_perturb(request: Request) -> None:
    """Adams methods remember earlier steps, and seeing f from both sides of each starts them anew.

    Raises:
        UnsupportedError: ``perturb`` with such a method.
    """
    if request.method.kind == "multistep":
        raise UnsupportedError(
            f"perturb=True starts {request.method.name} anew at each step on the Julia engine, which leaves a method "
            "of low order; take rk4, or the embedded engine"
        )
