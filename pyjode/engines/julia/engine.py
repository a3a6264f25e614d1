"""The Julia engine: OrdinaryDiffEq solves, SciMLSensitivity differentiates."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager
from ctypes import byref
from dataclasses import replace
from math import inf, nan
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from pyjode.door import refuse_batched_backward, refuse_forward_mode, refuse_second_derivative, without_autocast
from pyjode.engines.crossings import Crossings
from pyjode.engines.julia.bound import give_back, take
from pyjode.engines.julia.boundary import AdjointArgs, AdjointReport, Gate, SolveArgs, SolveReport, gate
from pyjode.engines.julia.device import solve_from_device
from pyjode.engines.julia.gradient_check import Moved, check_gradient
from pyjode.engines.julia.native import NativeFunction
from pyjode.engines.julia.runtime import runtime
from pyjode.engines.julia.segments import jumps_of, solve_in_pieces
from pyjode.engines.julia.step_options import adjoint_options, forward_options
from pyjode.engines.request import ALL, Adjoint, Answer, IndependentAnswer, Request, StepControl, rows
from pyjode.errors import SolverError, SolverFailure, UnsupportedError
from pyjode.methods import Method
from pyjode.progress import Report
from pyjode.rhs import build_rhs, remembered_rhs
from pyjode.rhs.graphs import warm_tracer
from pyjode.rhs.interface import RightHandSide
from pyjode.rhs.lower import NativeSource
from pyjode.rhs.native import NativeRHS
from pyjode.sensealgs import BacksolveAdjoint, DiscreteAdjoint, InterpolatingAdjoint

_STATS = ("nf", "naccept", "nreject", "njacs", "nsolve", "nw", "nnonliniter", "nnonlinconvfail")
_ANY_TIME = (-inf, inf)


class JuliaEngine:
    """Solves with DifferentialEquations.jl in this process."""

    name = "julia"

    def watched(self, report: Report | None) -> AbstractContextManager[None]:
        """See :class:`pyjode.engines.Engine`."""
        return gate().watched(report)

    def solve(
        self, request: Request, u0: Float[Tensor, " *shape"], ts: Float64[Tensor, " T"], saved: slice = ALL
    ) -> Answer:
        """See :class:`pyjode.engines.Engine`.

        Raises:
            EngineUnavailable: Julia does not start.
            UnsupportedError: what was asked for is beyond the engine.
        """
        if u0.device.type != "cpu":
            return solve_from_device(self, request, u0, ts, saved)
        refuse_forward_mode()
        jumps = jumps_of(request, ts, u0)
        if jumps is not None:
            return rows(solve_in_pieces(self._solve, request, u0, ts, jumps), saved)
        return self._solve(request, u0, ts, _ANY_TIME, saved)

    def _solve(self, request: Request, u0: Tensor, ts: Tensor, ends: tuple[float, float], saved: slice = ALL) -> Answer:
        rhs, params = bound_parameters(request, u0, ts)
        sign = direction(ts)
        differentiable = torch.is_grad_enabled() and any(x.requires_grad for x in (u0, ts, *params))
        if differentiable:
            request = with_possible_adjoint(request, rhs)
        solve = _Solve(request, rhs, params, sign, ends, saved)
        if request.save_steps:
            with torch.no_grad():
                us = solve.forward(u0, ts, dense=True)
            if not (differentiable and solve.report.success):
                return solve.answer(*solve.steps())
            # Where the steps fell is known now; the states there are asked for as at any save points.
            ts = torch.cat([ts[:1], solve.steps()[0][1:-1], ts[-1:]])
            # And f's callbacks, which are all that its options are for, have been made.
            solve = _Solve(replace(request, options=None), rhs, params, sign, ends)
        if differentiable:
            us = _Differentiable.apply(solve, u0, ts, *params)
        else:
            with torch.no_grad():
                us = solve.forward(u0, ts, dense=request.dense)
        return solve.answer(ts if saved is ALL else ts[saved], us)

    def solve_until(
        self, request: Request, u0: Float[Tensor, " n"], ts: Float64[Tensor, " T"], crossings: Crossings
    ) -> tuple[Answer, tuple[int, ...]]:
        """See :class:`pyjode.engines.Engine`."""
        from pyjode.engines.julia.until import solve_until

        return solve_until(self, request, u0, ts, crossings)

    def solve_independent(
        self, request: Request, u0: Float[Tensor, "B n"], ts: Float64[Tensor, "B T"]
    ) -> IndependentAnswer:
        """See :class:`pyjode.engines.Engine`."""
        from pyjode.engines.julia.independent import solve_independent

        return solve_independent(request, u0, ts)


def direction(ts: Float64[Tensor, " T"]) -> int:
    """1 where times increase, -1 where they decrease."""
    times = (ts.detach() if ts.requires_grad else ts).numpy()
    return -1 if times[-1] < times[0] else 1


def bound_parameters(request: Request, u0: Tensor, ts: Tensor) -> tuple[RightHandSide, tuple[Tensor, ...]]:
    """f's right-hand side, and its parameters, those that no gradient is wanted for detached."""
    rhs = remembered_rhs(request.f, request.layout, params=request.params, way=request.rhs_way)
    if rhs is None:
        start_julia(request.f)
        y0 = request.layout.unflatten(u0.detach().reshape(-1))
        rhs = build_rhs(request.f, y0, ts[0], params=request.params, way=request.rhs_way)
    params = rhs.params
    if request.exact_params:
        wanted = {id(p) for p in request.params or ()}
        params = tuple(p if id(p) in wanted else p.detach() for p in params)
    return rhs, params


def start_julia(f: Any) -> None:
    """Start Julia before f is traced: what that needs is imported while Julia loads."""
    runtime(None if hasattr(type(f), "__pyjode_rhs__") else warm_tracer)


def with_possible_adjoint(request: Request, rhs: RightHandSide, *, alone: bool = False) -> Request:
    """The request, with what takes the place of its adjoint where that is impossible for this right-hand side.

    Args:
        alone: whether samples are solved each by itself.

    Raises:
        UnsupportedError: the adjoint was asked for, and is impossible.
    """
    adjoint = request.adjoint
    if adjoint is None or not (isinstance(adjoint.sensealg, DiscreteAdjoint) and adjoint.method.stiff):
        return request
    obstacle = 'it is for batching="joint"' if alone else _no_second_derivatives(rhs)
    if obstacle is None:
        return request
    if adjoint.otherwise is None:
        raise UnsupportedError(
            f'the discrete adjoint of {adjoint.method.name}: {obstacle}. Pass sensealg="GaussAdjoint"'
        )
    return replace(request, adjoint=adjoint.otherwise)


def _no_second_derivatives(rhs: RightHandSide) -> str | None:
    """Why there is no Julia code for f's second derivatives; ``None``: there is."""
    needs = "it needs f's second derivatives in Julia"
    if not isinstance(rhs, NativeRHS):
        return f"{needs}, and f is {rhs.way}: {rhs.reason}"
    return None if isinstance(rhs.second_source, NativeSource) else f"{needs}: {rhs.second_source}"


def as_backpropagated(rhs: RightHandSide, adjoint: Adjoint | None, dps: list[Tensor]) -> list[Tensor | None]:
    """Through the steps, what f does not use has no gradient; of a continuous adjoint it is zero."""
    assert adjoint is not None
    if not rhs.unused or not isinstance(adjoint.sensealg, DiscreteAdjoint):
        return list(dps)
    return [None if i in rhs.unused and not bool(dp.any()) else dp for i, dp in enumerate(dps)]


class _Solve:
    """One forward solve on the Julia side, and the backward passes from it."""

    def __init__(
        self,
        request: Request,
        rhs: Any,
        params: tuple[Tensor, ...],
        sign: int,
        ends: tuple[float, float],
        saved: slice = ALL,
    ):
        self.request = request
        self.saved = saved
        self.rhs = rhs
        self.sign = sign
        self.ends = ends
        self.with_jac = request.method.stiff
        self.function = take(rhs, params, sign, self.with_jac)
        self.report = SolveReport()
        self.retcode = ""
        self.grid: Tensor | None = None

    def __del__(self) -> None:
        # Plain, not weakref.finalize: a small solve takes no longer than two of those.
        function = self.__dict__.get("function")
        if function is not None:
            if self.report.solution:
                gate().release(self.report.solution)
            give_back(self.rhs, function, self.sign, self.with_jac)

    def forward(
        self, u0: Float[Tensor, " *shape"], ts: Float64[Tensor, " T"], *, dense: bool
    ) -> Float[Tensor, " S *shape"]:
        """States at ``ts[saved]``; rows that were not reached are NaN."""
        layout, julia = self.request.layout, gate()
        if u0.dtype != layout.dtype or not u0.is_contiguous():
            u0 = u0.detach().to(layout.dtype).contiguous()
        if ts.requires_grad or self.sign < 0 or not ts.is_contiguous():
            grid = (self.sign * ts.detach()).contiguous()
        else:
            grid = ts
        nt = grid.shape[0]
        first, end, _ = self.saved.indices(nt)
        us = torch.empty((end - first, *u0.shape), dtype=layout.dtype)
        args, _tolerances = _solve_arguments(self.request, self.with_jac)
        args.rhs = self.function.handle
        args.u0 = u0.data_ptr()
        args.ts = grid.data_ptr()
        args.nt = nt
        args.first = first
        args.nsaves = end - first
        args.ys = us.data_ptr()
        args.dense = dense
        adjoint = self.request.adjoint
        args.reuse = dense and adjoint is not None and isinstance(adjoint.sensealg, DiscreteAdjoint)
        calls_python = self.function.calls_python
        if self.request.options is not None:
            options = forward_options(self.request, self.request.options, ts.detach(), u0)
            options.args.lowest, options.args.highest = self.ends
            args.options, args.reuse = options.address, 0
            if options.sets_steps:
                args.dt, args.stop_at_ts = nan, 0
            args.dense = dense or options.linear
            calls_python = calls_python or options.calls_python
        with julia.locked():
            julia.call("solve", byref(args), byref(self.report), without_gil=not calls_python)
            self.retcode = "Success" if self.report.success else julia.message()
        self.grid = grid
        return us

    def moved(self, ts: Float64[Tensor, " T"]) -> Moved:
        """The same solve from other values, for :func:`check_gradient`."""

        def states(request: Request, u0: Tensor, *params: Tensor) -> Tensor:
            other = _Solve(request, self.rhs, params, self.sign, self.ends, self.saved)
            return other.forward(u0, ts, dense=False)

        return states

    def steps(self) -> tuple[Float64[Tensor, " m"], Float[Tensor, "m n"]]:
        """Times ``(m,)`` and states ``(m, n)`` of the stored steps."""
        ts = torch.empty(self.report.nsaved, dtype=torch.float64)
        us = torch.empty(self.report.nsaved, self.request.layout.n, dtype=self.request.layout.dtype)
        gate().call("steps", self.report.solution, ts.data_ptr(), us.data_ptr())
        return ts, us

    def answer(self, ts: Tensor, us: Tensor) -> Answer:
        report = self.report
        return Answer(
            ts,
            us,
            bool(report.success),
            self.retcode,
            report.t_reached,
            {name: getattr(report, name) for name in _STATS},
            self._interpolate if self.report.solution else None,
        )

    def backward(
        self, cotangents: Float[Tensor, " S *shape"], params: tuple[Tensor, ...], want_t: bool
    ) -> tuple[Float[Tensor, " *shape"], Float64[Tensor, " T"] | None, list[Tensor]]:
        """Gradients by u0, times ``(T,)`` if wanted, and parameters, from cotangents of the states at ``ts[saved]``."""
        adjoint = self.request.adjoint
        assert adjoint is not None and self.grid is not None
        self.function.params = params
        layout, julia = self.request.layout, gate()
        nt = self.grid.shape[0]
        first, end, _ = self.saved.indices(nt)
        if cotangents.dtype != layout.dtype or not cotangents.is_contiguous():
            cotangents = cotangents.to(layout.dtype).contiguous()
        du0 = torch.empty(cotangents.shape[1:], dtype=layout.dtype)
        dp = torch.empty(self.function.n_params, dtype=layout.dtype)
        dts = torch.empty(nt, dtype=torch.float64) if want_t else None
        args = AdjointArgs.from_buffer_copy(_adjoint_arguments(julia, adjoint))
        args.solution = self.report.solution
        args.ts = self.grid.data_ptr()
        args.nt = nt
        args.first = first
        args.nsaves = end - first
        args.cotangents = cotangents.data_ptr()
        args.want_t = want_t
        args.du0 = du0.data_ptr()
        args.dp = dp.data_ptr()
        if dts is not None:
            args.dts = dts.data_ptr()
        calls_python = self.function.calls_python
        if isinstance(adjoint.sensealg, DiscreteAdjoint) and isinstance(self.function, NativeFunction):
            if adjoint.method.stiff:
                args.products = self.function.second().handle
            else:
                stages = self.function.stages(stage_count(julia, adjoint.method) - 1)
                args.products = 0 if stages is None else stages.handle
        if adjoint.options is not None:
            options = adjoint_options(self.request, adjoint, adjoint.options, params, self.sign * self.grid)
            args.options = options.address
            calls_python = calls_python or options.calls_python
        report = AdjointReport()
        with julia.locked():
            julia.call("adjoint", byref(args), byref(report), without_gil=not calls_python)
            if not report.success:
                raise _adjoint_failure(adjoint, julia.message(), report)
        return du0, dts, self.function.parameter_gradients(dp)

    def _interpolate(self, times: Float[Tensor, " m"]) -> Float[Tensor, "m n"]:
        """Dense output at ``times`` ``(m,)``: ``(m, n)``."""
        times = times.detach().to(device="cpu", dtype=torch.float64).contiguous()
        out = torch.full((len(times), self.request.layout.n), nan, dtype=self.request.layout.dtype)
        gate().call("dense_output", self.report.solution, times.data_ptr(), len(times), 0, out.data_ptr())
        return out


class _Differentiable(torch.autograd.Function):
    """The solve as a function of u0, ts and the parameters."""

    @staticmethod
    def forward(ctx: Any, solve: _Solve, u0: Tensor, ts: Tensor, *params: Tensor) -> Tensor:
        ctx.solve = solve
        # Saved for autograd's check that no optimizer changed them in between.
        ctx.save_for_backward(u0, ts, *params)
        return solve.forward(u0, ts, dense=True)

    @staticmethod
    @without_autocast
    def backward(ctx: Any, cotangents: Tensor) -> tuple[Any, ...]:
        refuse_second_derivative()
        refuse_batched_backward(cotangents)
        u0, ts, *params = ctx.saved_tensors
        du0, dts, dps = ctx.solve.backward(cotangents, tuple(params), ctx.needs_input_grad[2])
        if ctx.solve.request.check_gradient:
            check_gradient(ctx.solve.request, ctx.solve.moved(ts), (u0, *params), cotangents, (du0, *dps))
        dps = as_backpropagated(ctx.solve.rhs, ctx.solve.request.adjoint, dps)
        return (None, du0, dts, *dps)


def _handle(method: Method) -> int:
    return gate().construct(method.julia_package, method.julia_expr)


def _sensealg_handle(adjoint: Adjoint) -> int:
    if isinstance(adjoint.sensealg, DiscreteAdjoint):
        return gate().construct("", "RosenbrockAdjoint()" if adjoint.method.stiff else "DiscreteAdjoint()")
    assert adjoint.sensealg.julia_expr is not None
    return gate().construct("SciMLSensitivity", adjoint.sensealg.julia_expr)


@functools.lru_cache(maxsize=256)
def stage_count(julia: Gate, method: Method) -> int:
    """Stages of an explicit Runge-Kutta method, those of its dense output among them."""
    return int(julia.evaluate(f"stages(tableau(object({_handle(method)}), Float64))"))


def _nan(value: float | None) -> float:
    return nan if value is None else float(value)


def _step_arguments(steps: StepControl) -> dict[str, Any]:
    controller = steps.controller
    return {
        "dt": _nan(steps.dt),
        "adaptive": int(steps.adaptive),
        "maxiters": steps.maxiters,
        "gamma": nan if controller is None else controller.safety,
        "qmin": nan if controller is None else controller.dfactor,
        "qmax": nan if controller is None else controller.ifactor,
    }


def _tolerance_vectors(request: Request, n: int) -> tuple[Tensor, Tensor, bool]:
    rtol, atol = (torch.as_tensor(x, dtype=torch.float64) for x in (request.tolerances.rtol, request.tolerances.atol))
    per_element = rtol.numel() > 1 or atol.numel() > 1
    shape = (n,) if per_element else (1,)
    return rtol.broadcast_to(shape).contiguous(), atol.broadcast_to(shape).contiguous(), per_element


def _solve_arguments(request: Request, with_jac: bool) -> tuple[Any, tuple[Tensor, Tensor]]:
    """Arguments of a solve but for its memory, and the tolerances they point to (to be kept until it is done)."""
    rtol, atol = request.tolerances.rtol, request.tolerances.atol
    if isinstance(rtol, float) and isinstance(atol, float):
        args, vectors = _plain_solve_arguments(gate(), request.method, request.steps, rtol, atol, with_jac)
        return SolveArgs.from_buffer_copy(args), vectors
    r, a, _ = _tolerance_vectors(request, request.layout.n)
    return _new_solve_arguments(request.method, request.steps, r, a, with_jac), (r, a)


@functools.lru_cache(maxsize=256)
def _plain_solve_arguments(
    _: Gate, method: Method, steps: StepControl, rtol: float, atol: float, with_jac: bool
) -> tuple[Any, tuple[Tensor, Tensor]]:
    r, a = (torch.tensor([x], dtype=torch.float64) for x in (rtol, atol))
    return _new_solve_arguments(method, steps, r, a, with_jac), (r, a)


def _new_solve_arguments(method: Method, steps: StepControl, rtol: Tensor, atol: Tensor, with_jac: bool) -> Any:
    return SolveArgs(
        alg=_handle(method),
        abstol=atol.data_ptr(),
        reltol=rtol.data_ptr(),
        per_element=int(len(rtol) > 1),
        **_step_arguments(steps),
        dtmin=_nan(steps.dtmin),
        dtmax=_nan(steps.dtmax),
        with_jac=int(with_jac),
        # Without a dt of their own, fixed steps go from save point to save point, as torchdiffeq's do. A method
        # whose dense output is worse than its steps must step on the save points.
        stop_at_ts=int((not steps.adaptive and steps.dt is None) or method.rough_output),
    )


def _adjoint_arguments(julia: Gate, adjoint: Adjoint) -> Any:
    """Arguments of a backward pass but for its memory."""
    # Options may hold the user's functions, which the cache must not keep alive.
    return _plain_adjoint_arguments(julia, adjoint if adjoint.options is None else replace(adjoint, options=None))


@functools.lru_cache(maxsize=256)
def _plain_adjoint_arguments(_: Gate, adjoint: Adjoint) -> Any:
    return AdjointArgs(
        alg=_handle(adjoint.method),
        sensealg=_sensealg_handle(adjoint),
        joint=int(isinstance(adjoint.sensealg, InterpolatingAdjoint | BacksolveAdjoint)),
        abstol=getattr(adjoint.sensealg, "abstol", None) or adjoint.atol,
        reltol=getattr(adjoint.sensealg, "reltol", None) or adjoint.rtol,
        **_step_arguments(adjoint.steps),
    )


def _adjoint_failure(adjoint: Adjoint, retcode: str, report: Any) -> SolverError:
    name, steps = type(adjoint.sensealg).__name__, report.naccept + report.nreject
    return SolverError(
        f"the adjoint solve of the backward pass ({name}, {adjoint.method.name}) stopped at t = {report.t_reached:.6g} "
        f"after {steps} steps: {retcode}. Try another sensealg or adjoint_method, looser adjoint_rtol and "
        "adjoint_atol, or more maxiters",
        SolverFailure(retcode, report.t_reached, steps),
    )
