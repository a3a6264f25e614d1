"""A batch of independent solves on the Julia engine: one crossing forward, one backward, whatever the batch."""

from __future__ import annotations

import warnings
import weakref
from ctypes import byref
from dataclasses import replace
from math import nan
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from pyjode.callbacks import has_callbacks
from pyjode.door import refuse_batched_backward, refuse_forward_mode, refuse_second_derivative, without_autocast
from pyjode.engines.julia.bound import give_back, take
from pyjode.engines.julia.boundary import (
    IndependentAdjointArgs,
    IndependentAdjointReport,
    IndependentArgs,
    IndependentReport,
    gate,
)
from pyjode.engines.julia.device import tolerances_on_host
from pyjode.engines.julia.engine import (
    _STATS,
    _handle,
    _nan,
    _sensealg_handle,
    _step_arguments,
    _tolerance_vectors,
    as_backpropagated,
    start_julia,
    with_possible_adjoint,
)
from pyjode.engines.julia.gradient_check import Moved, check_gradient
from pyjode.engines.request import IndependentAnswer, Request
from pyjode.errors import SolverError, SolverFailure
from pyjode.rhs import build_rhs
from pyjode.rhs.host import on_host
from pyjode.sensealgs import BacksolveAdjoint, DiscreteAdjoint, InterpolatingAdjoint

_KEEP_NOTHING, _KEEP_STEPS, _KEEP_SOLUTIONS = 0, 1, 2


def solve_independent(request: Request, u0: Float[Tensor, "B n"], ts: Float64[Tensor, "B T"]) -> IndependentAnswer:
    """See :meth:`pyjode.engines.Engine.solve_independent`.

    Raises:
        EngineUnavailable: Julia does not start.
        UnsupportedError: an adjoint was asked for that is for one state only.
    """
    refuse_forward_mode()
    if has_callbacks(request.f):
        warnings.warn(
            'batching="independent" makes no callbacks of f on the Julia engine: samples are solved at once',
            UserWarning,
            stacklevel=4,
        )
    start_julia(request.f)
    first = request.layout.unflatten(u0[0].detach())
    rhs = build_rhs(request.f, first, float(ts[0, 0].detach()), params=request.params, way=request.rhs_way)
    request = with_possible_adjoint(request, rhs, alone=True)
    if u0.device.type != "cpu":
        rhs = on_host(rhs)
        request = replace(request, f=rhs, layout=rhs.layout, tolerances=tolerances_on_host(request.tolerances))
        answer = solve_independent(request, u0.to(rhs.layout.device), ts)
        return replace(answer, us=answer.us.to(u0.device))
    params = rhs.params
    if request.exact_params:
        wanted = {id(p) for p in request.params or ()}
        params = tuple(p if id(p) in wanted else p.detach() for p in params)
    solve = _Solves(request, rhs, params, -1 if ts[0, -1] < ts[0, 0] else 1)
    if torch.is_grad_enabled() and any(x.requires_grad for x in (u0, ts, *params)):
        us = _Differentiable.apply(solve, u0, ts, *params)
    else:
        us = solve.forward(u0, ts, keep=_KEEP_NOTHING)
    return solve.answer(us)


class _Solves:
    """The forward solves of a batch on the Julia side, and the backward passes from them."""

    def __init__(self, request: Request, rhs: Any, params: tuple[Tensor, ...], sign: int):
        self.request = request
        self.rhs = rhs
        self.sign = sign
        self.with_jac = request.method.stiff
        self.function = function = take(rhs, params, sign, self.with_jac, pool=True)
        weakref.finalize(self, give_back, rhs, function, sign, self.with_jac, pool=True)
        self.threads = 1 if self.function.calls_python else gate().threads
        self.report = IndependentReport()
        self.retcodes: tuple[str, ...] = ()
        self.batch = 0

    @property
    def kept(self) -> int:
        """What the backward pass needs of the forward one."""
        adjoint = self.request.adjoint
        discrete = adjoint is not None and isinstance(adjoint.sensealg, DiscreteAdjoint)
        return _KEEP_STEPS if discrete else _KEEP_SOLUTIONS

    @torch.no_grad()
    def forward(self, u0: Float[Tensor, "B n"], ts: Float64[Tensor, "B T"], *, keep: int) -> Float[Tensor, "T B n"]:
        """States at ``ts``, shape ``(T, B, n)``; rows that were not reached are NaN."""
        request, layout = self.request, self.request.layout
        method, steps = request.method, request.steps
        u0 = u0.detach().to(layout.dtype).contiguous()
        grid = (self.sign * ts.detach()).contiguous()
        self.batch = batch = len(u0)
        us = torch.full((grid.shape[1], batch, layout.n), nan, dtype=layout.dtype)
        rtol, atol, per_element = _tolerance_vectors(request, layout.n)
        self.t_reached = torch.empty(batch, dtype=torch.float64)
        self.counts = torch.zeros(batch, 2 + len(_STATS), dtype=torch.int64)
        args = IndependentArgs(
            rhs=self.function.handle,
            alg=_handle(method),
            u0=u0.data_ptr(),
            ts=grid.data_ptr(),
            batch=batch,
            nt=grid.shape[1],
            ys=us.data_ptr(),
            abstol=atol.data_ptr(),
            reltol=rtol.data_ptr(),
            per_element=int(per_element),
            **_step_arguments(steps),
            dtmin=_nan(steps.dtmin),
            dtmax=_nan(steps.dtmax),
            with_jac=int(self.with_jac),
            stop_at_ts=int((not steps.adaptive and steps.dt is None) or method.rough_output),
            keep=keep,
            reuse=int(method.kind == "explicit"),
            threads=self.threads,
            t_reached=self.t_reached.data_ptr(),
            counts=self.counts.data_ptr(),
        )
        with gate().locked():
            gate().call("independent", byref(args), byref(self.report), without_gil=not self.function.calls_python)
            names = {int(code): name for code, name in (entry.split("=") for entry in gate().message().split())}
        self.retcodes = tuple(map(names.__getitem__, self.counts[:, 0].tolist()))
        if self.report.solution:
            weakref.finalize(self, gate().release, self.report.solution)
        return us

    def moved(self, ts: Float64[Tensor, "B T"]) -> Moved:
        """The same solves from other values, for :func:`check_gradient`."""

        def states(request: Request, u0: Tensor, *params: Tensor) -> Tensor:
            return _Solves(request, self.rhs, params, self.sign).forward(u0, ts, keep=_KEEP_NOTHING)

        return states

    def answer(self, us: Tensor) -> IndependentAnswer:
        stats = dict(zip(_STATS, self.counts[:, 2:].unbind(1), strict=True))
        return IndependentAnswer(us, self.retcodes, self.t_reached, stats)

    @torch.no_grad()
    def backward(
        self, us: Float[Tensor, "T B n"] | None, cotangents: Float[Tensor, "T B n"], params: tuple[Tensor, ...]
    ) -> tuple[Float[Tensor, "B n"], Float64[Tensor, "B T"], list[Tensor]]:
        """Gradients by u0 ``(B, n)``, times ``(B, T)`` and parameters, from cotangents ``(T, B, n)``.

        Those by times want ``us``, what :meth:`forward` gave.
        """
        adjoint = self.request.adjoint
        assert adjoint is not None
        self.function.params = params
        layout = self.request.layout
        cotangents = cotangents.to(layout.dtype).contiguous()
        du0 = torch.zeros(self.batch, layout.n, dtype=layout.dtype)
        dp = torch.zeros(self.function.n_params, dtype=layout.dtype)
        dts = torch.zeros(self.batch, len(cotangents), dtype=torch.float64)
        args = IndependentAdjointArgs(
            solution=self.report.solution,
            alg=_handle(adjoint.method),
            sensealg=_sensealg_handle(adjoint),
            joint=int(isinstance(adjoint.sensealg, InterpolatingAdjoint | BacksolveAdjoint)),
            batch=self.batch,
            nt=len(cotangents),
            ys=0 if us is None else us.data_ptr(),
            cotangents=cotangents.data_ptr(),
            abstol=getattr(adjoint.sensealg, "abstol", None) or adjoint.atol,
            reltol=getattr(adjoint.sensealg, "reltol", None) or adjoint.rtol,
            **_step_arguments(adjoint.steps),
            want_t=int(us is not None),
            threads=self.threads,
            du0=du0.data_ptr(),
            dp=dp.data_ptr(),
            dts=dts.data_ptr(),
        )
        report = IndependentAdjointReport()
        call = gate().call
        with gate().locked():
            call("independent_adjoint", byref(args), byref(report), without_gil=not self.function.calls_python)
            retcode = gate().message()
        if report.sample >= 0:
            raise SolverError(
                f"the adjoint solve of sample {report.sample} ({type(adjoint.sensealg).__name__}, "
                f"{adjoint.method.name}) stopped at t = {report.t_reached:.6g} after {report.steps} steps: {retcode}. "
                "Try another sensealg or adjoint_method, looser adjoint_rtol and adjoint_atol, or more maxiters",
                SolverFailure(retcode, report.t_reached, report.steps),
            )
        return du0, dts, self.function.parameter_gradients(dp)


class _Differentiable(torch.autograd.Function):
    """The solves as a function of u0, ts and the parameters."""

    @staticmethod
    def forward(ctx: Any, solve: _Solves, u0: Tensor, ts: Tensor, *params: Tensor) -> Tensor:
        us = solve.forward(u0, ts, keep=solve.kept)
        ctx.solve = solve
        # Saved for autograd's check that no optimizer changed them in between.
        ctx.save_for_backward(u0, ts, us if ctx.needs_input_grad[2] else None, *params)
        return us

    @staticmethod
    @without_autocast
    def backward(ctx: Any, cotangents: Tensor) -> tuple[Any, ...]:
        refuse_second_derivative()
        refuse_batched_backward(cotangents)
        u0, ts, us, *params = ctx.saved_tensors
        du0, dts, dps = ctx.solve.backward(us, cotangents, tuple(params))
        if ctx.solve.request.check_gradient:
            check_gradient(ctx.solve.request, ctx.solve.moved(ts), (u0, *params), cotangents, (du0, *dps))
        dps = as_backpropagated(ctx.solve.rhs, ctx.solve.request.adjoint, dps)
        return (None, du0, None if us is None else dts, *dps)
