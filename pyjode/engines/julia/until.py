"""A forward solve on the Julia side that ends at the first event."""

from __future__ import annotations

import warnings
from ctypes import addressof, byref, c_double, c_int64
from math import inf
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from pyjode.callbacks import has_callbacks
from pyjode.door import refuse_forward_mode
from pyjode.engines.crossings import Crossings
from pyjode.engines.embedded_events import Found, solve_to_crossing
from pyjode.engines.julia.bound import give_back, take
from pyjode.engines.julia.boundary import UntilArgs, gate
from pyjode.engines.julia.engine import (
    JuliaEngine,
    _Differentiable,
    _Solve,
    _solve_arguments,
    bound_parameters,
    direction,
    with_possible_adjoint,
)
from pyjode.engines.julia.step_options import forward_options
from pyjode.engines.request import Answer, Request
from pyjode.errors import UnsupportedError
from pyjode.rhs.condition import build_condition


class Conditions:
    """The conditions of one solve, bound to Julia.

    Attributes:
        calls_python: whether one of them is called back, so that the solve needs the GIL.
        args: for Julia; holds as long as this object.
    """

    def __init__(self, crossings: Crossings, layout: Any, u0: Tensor, t0: float):
        y0 = layout.unflatten(u0.detach())
        self._functions = []
        handles, sizes = [], []
        for condition, size in zip(crossings.conditions, crossings.sizes, strict=True):
            for i, rhs in enumerate(build_condition(condition, layout, y0, t0, size)):
                function = take(rhs, rhs.params, 1, False)
                self._functions.append((rhs, function))
                handles.append(function.handle)
                sizes.append(min(layout.n, size - i * layout.n))
        self.calls_python = any(function.calls_python for _, function in self._functions)
        holds = [crossings.holds.get(i) for i in range(crossings.count)]
        self._fired = (c_int64 * crossings.count)()
        self._memory = (
            (c_int64 * len(handles))(*handles),
            (c_int64 * len(sizes))(*sizes),
            (c_int64 * crossings.count)(*crossings.directions),
            (c_double * crossings.count)(*(1.0 if h is None else h.sign for h in holds)),
            (c_double * crossings.count)(*(-1.0 if h is None else h.duration for h in holds)),
        )
        conditions, entries, directions, signs, durations = (addressof(x) for x in self._memory)
        self.args = UntilArgs(
            nconditions=len(handles),
            conditions=conditions,
            sizes=entries,
            directions=directions,
            signs=signs,
            holds=durations,
            interp_points=crossings.interp_points,
            fired=addressof(self._fired),
        )

    def __del__(self) -> None:
        for rhs, function in self.__dict__.get("_functions", ()):
            give_back(rhs, function, 1, False)

    def fired(self) -> tuple[int, ...]:
        """Indices of the values that crossed zero."""
        return tuple(i for i, direction in enumerate(self._fired) if direction != 0)


class SolveUntil(_Solve):
    """A solve that :meth:`search` has ended at an event, to be read and differentiated like any other."""

    def search(self, u0: Float[Tensor, " n"], ts: Float64[Tensor, " T"], crossings: Crossings) -> tuple[int, ...]:
        """Solve from ``u0`` at ``ts[0]`` until a value crosses zero, at most to ``ts[-1]``; which ones did."""
        layout = self.request.layout
        u0 = u0.detach().to(layout.dtype).contiguous()
        ends = (self.sign * ts.detach()[[0, -1]]).contiguous()
        conditions = Conditions(crossings, layout, u0, float(ts[0].detach()))
        args, _tolerances = _solve_arguments(self.request, self.with_jac)
        args.rhs = self.function.handle
        args.u0 = u0.data_ptr()
        args.ts = ends.data_ptr()
        args.nt = args.nsaves = len(ends)
        args.dense = 1
        calls_python = self.function.calls_python or conditions.calls_python
        further = self.request.options
        options = None
        if further is not None:
            options = forward_options(self.request, further, ts.detach()[[0, -1]], u0, to_event=True)
        if options is not None:
            args.options = options.address
            calls_python = calls_python or options.calls_python
        with gate().locked():
            gate().call(
                "solve_until", byref(args), byref(conditions.args), byref(self.report), without_gil=not calls_python
            )
            self.retcode = "Success" if self.report.success else gate().message()
        return conditions.fired()

    def forward(self, u0: Float[Tensor, " n"], ts: Float64[Tensor, " T"], *, dense: bool) -> Float[Tensor, "T n"]:
        """States of the solve at ``ts``, ``(T, n)``; rows that were not reached are NaN."""
        self.grid = (self.sign * ts.detach()).contiguous()
        return self._interpolate(ts)

    def times(self, ts: Float64[Tensor, " T"], fired: bool) -> Float64[Tensor, " S"]:
        """The times of ``ts`` up to the event, and the event's; all of them where there was none."""
        if self.request.save_steps and self.report.success:
            steps = self.steps()[0]
            return torch.cat([ts[:1], steps[1:-1], steps[-1:] if fired else ts[-1:]])
        if not fired:
            return ts
        t = self.report.t_reached
        before = self.sign * ts.detach()[1:] < self.sign * t
        return torch.cat([ts[:1], ts[1:][before], torch.tensor([t], dtype=torch.float64)])


def solve_until(
    engine: JuliaEngine, request: Request, u0: Float[Tensor, " n"], ts: Float64[Tensor, " T"], crossings: Crossings
) -> tuple[Answer, tuple[int, ...]]:
    """See :meth:`pyjode.engines.Engine.solve_until`."""
    if u0.device.type != "cpu":
        raise UnsupportedError(f"y0 is on {u0.device}; the Julia engine takes states on the CPU: y0.cpu()")
    refuse_forward_mode()
    _refuse_options(request)
    rhs, params = bound_parameters(request, u0, ts)
    differentiable = torch.is_grad_enabled() and any(x.requires_grad for x in (u0, ts, *params))
    if differentiable:
        request = with_possible_adjoint(request, rhs)
    solve = SolveUntil(request, rhs, params, direction(ts), (-inf, inf))
    with torch.no_grad():
        fired = solve.search(u0, ts, crossings)
        t, success = solve.report.t_reached, bool(solve.report.success)
    if success and request.method.rough_output:
        # Such a method is to be read at its steps only, and the event was found between them.
        if not fired:
            return engine.solve(request, u0, ts), ()
        (at_event,) = solve._interpolate(torch.tensor([t], dtype=torch.float64))
        found = Found(fired[0], t, at_event)
        return solve_to_crossing(engine.solve, request, u0, ts, crossings, found), fired
    if fired and t == float(ts[0].detach()):
        return solve.answer(ts[:1], u0[None]), fired
    times = solve.times(ts, bool(fired))
    if differentiable:
        us = _Differentiable.apply(solve, u0, times, *params)
    else:
        us = solve.forward(u0, times, dense=True)
    return solve.answer(times, us), fired


def _refuse_options(request: Request) -> None:
    """A warning about ``interp``, which events do without.

    Raises:
        UnsupportedError: an option that a solve to an event does not know, or a callback of f it does not make.
    """
    options = request.options
    if options is None:
        return
    given = [name for name in ("jump_t", "grid_constructor") if getattr(options, name) is not None]
    if options.perturb:
        given.append("perturb")
    if given:
        raise UnsupportedError(
            f"{', '.join(given)} together with events: not available on the Julia engine; "
            'engine="torchdiffeq" has them with event_fn'
        )
    if options.interp is not None:
        warnings.warn(
            "interp is not used in a solve to an event on the Julia engine: events are found on the method's own dense "
            "output",
            UserWarning,
            stacklevel=4,
        )
    if has_callbacks(request.f) and request.method.rough_output:
        # The event is found by one solve and reached by others.
        raise UnsupportedError(
            f"{request.method.name} makes no callbacks of f in a solve to an event on the Julia engine; take rk4, or "
            'engine="torchdiffeq"'
        )
