"""The embedded engine: torchdiffeq, so that everything but Julia's own methods runs without Julia."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import asdict, replace
from typing import Any

import torch
import torchdiffeq
from jaxtyping import Float, Float64
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torchdiffeq._impl.odeint import SOLVERS

from pyjode.callbacks import NAMES, Callback, Callbacks, callbacks_of
from pyjode.door import FirstDerivativeOnly, refuse_forward_mode, without_autocast
from pyjode.engines.crossings import Crossings
from pyjode.engines.embedded_events import find_crossing, solve_to_crossing
from pyjode.engines.request import ALL, Adjoint, Answer, IndependentAnswer, Request, StepControl, StepOptions, rows
from pyjode.errors import UnsupportedError
from pyjode.options import options_of
from pyjode.progress import Report
from pyjode.rhs import build_rhs
from pyjode.sensealgs import BacksolveAdjoint, DiscreteAdjoint
from pyjode.state import StateLayout

# Asked for at each evaluation; a solve's backward pass comes after and reports nothing.
_report: ContextVar[Report | None] = ContextVar("_report", default=None)


class EmbeddedEngine:
    """Solves with torchdiffeq.

    Gradients: by backpropagation through the solver's steps (:class:`~pyjode.DiscreteAdjoint`, the default), or by
    torchdiffeq's continuous adjoint (:class:`~pyjode.BacksolveAdjoint`).
    """

    name = "torchdiffeq"

    @contextlib.contextmanager
    def watched(self, report: Report | None) -> Iterator[None]:
        """See :class:`pyjode.engines.Engine`."""
        token = _report.set(report)
        try:
            yield
        finally:
            _report.reset(token)

    def solve(
        self, request: Request, u0: Float[Tensor, " *shape"], ts: Float64[Tensor, " T"], saved: slice = ALL
    ) -> Answer:
        """See :class:`pyjode.engines.Engine`.

        Raises:
            UnsupportedError: the method, the sensealg or an option is one that only Julia has.
        """
        refuse_forward_mode()
        f, arguments = self._prepared(request)
        flat = u0.reshape(-1)
        solver = _backpropagated if request.adjoint is None else _adjoint_solver(request, f, flat, ts)
        answer = self._answer(request, f, solver, flat, ts, arguments)
        if flat.shape != u0.shape:
            answer.us = answer.us.reshape(-1, *u0.shape)
        return rows(answer, saved)

    def _prepared(self, request: Request) -> tuple[_FlatFunction, dict[str, Any]]:
        """f and the arguments of torchdiffeq's solvers."""
        method = request.method.torchdiffeq_name or request.method.name
        if method not in SOLVERS:
            raise UnsupportedError(
                f"method {request.method.name!r} needs the Julia engine (set it up with: pyjode setup); the embedded "
                f"engine, torchdiffeq {torchdiffeq.__version__}, has {', '.join(SOLVERS)}"
            )
        if hasattr(type(request.f), "__pyjode_rhs__"):
            raise UnsupportedError(
                f"a {type(request.f).__name__} is solved by the Julia engine only (set it up with: pyjode setup)"
            )
        if request.save_steps:
            raise UnsupportedError(
                "the embedded engine saves at given times only: pass saveat=, or use the Julia engine (pyjode setup)"
            )
        if request.rhs_way in ("native", "traced"):
            raise UnsupportedError(f"rhs={request.rhs_way!r} is the Julia engine's; the embedded engine calls f itself")
        if request.check_gradient:
            raise UnsupportedError("check_gradient=True needs the Julia engine (set it up with: pyjode setup)")
        f = _flat_function(request)
        return f, {
            "rtol": request.tolerances.rtol,
            "atol": request.tolerances.atol,
            "method": method,
            "options": _options(request, request.steps, request.options),
        }

    def solve_until(
        self, request: Request, u0: Float[Tensor, " n"], ts: Float64[Tensor, " T"], crossings: Crossings
    ) -> tuple[Answer, tuple[int, ...]]:
        """See :class:`pyjode.engines.Engine`. torchdiffeq's search, then Newton's method to rounding.

        Raises:
            UnsupportedError: as :meth:`solve`; or a tolerance for each entry, which torchdiffeq's search cannot have.
        """
        f, arguments = self._prepared(request)
        rtol, atol = request.tolerances.rtol, request.tolerances.atol
        if isinstance(rtol, Tensor) or isinstance(atol, Tensor):
            raise UnsupportedError(
                "events with a tolerance for each entry need the Julia engine (set it up with: pyjode setup)"
            )

        def integrate(u: Tensor, t: Tensor, event_fn: Callable[..., Any]) -> Any:
            return torchdiffeq.odeint(f, u, t, event_fn=event_fn, **arguments)

        try:
            found = find_crossing(integrate, request, u0, ts, crossings, atol)
        except (AssertionError, RuntimeError) as error:
            retcode = _retcode(str(error))
            if retcode is None or f.raised:
                raise
            nothing = torch.full((len(ts), u0.numel()), torch.nan, dtype=u0.dtype)
            return Answer(ts, nothing, False, retcode, f.t_reached(ts), f.stats()), ()
        fired: tuple[int, ...] = ()
        if found.index is None:
            answer = self.solve(request, u0, ts)
        else:
            answer = solve_to_crossing(self.solve, request, u0, ts, crossings, found)
            fired = (found.index,) if answer.success else ()
        answer.stats = {name: n + f.stats().get(name, 0) for name, n in (answer.stats or f.stats()).items()}
        return answer, fired

    def solve_independent(
        self, request: Request, u0: Float[Tensor, "B n"], ts: Float64[Tensor, "B T"]
    ) -> IndependentAnswer:
        """See :class:`pyjode.engines.Engine`: one solve after the other."""
        answers = [self.solve(request, u, t) for u, t in zip(u0, ts, strict=True)]
        return IndependentAnswer(
            torch.stack([answer.us for answer in answers], dim=1),
            tuple(answer.retcode for answer in answers),
            torch.tensor([answer.t_reached for answer in answers], dtype=torch.float64),
            {name: torch.tensor([answer.stats[name] for answer in answers]) for name in answers[0].stats},
        )

    def _answer(
        self,
        request: Request,
        f: _FlatFunction,
        solver: Callable[..., Tensor],
        u0: Tensor,
        ts: Tensor,
        arguments: dict[str, Any],
    ) -> Answer:
        grid = ts.to(u0.device)
        try:
            us = solver(f, u0, grid, **arguments)
        except AssertionError as error:
            retcode = _retcode(str(error))
            if retcode is None or f.raised:
                raise
            nothing = torch.full((len(ts), u0.numel()), torch.nan, dtype=u0.dtype, device=u0.device)
            return Answer(ts, nothing, False, retcode, f.t_reached(ts), f.stats())

        interpolate: Callable[[Tensor], Tensor]
        if request.dense and solver is _backpropagated and arguments["method"] == "dopri5":
            interpolate = _kept_dense_output(f, u0, grid, arguments)
        else:

            def interpolate(times: Tensor) -> Tensor:
                return _at_times(lambda at: solver(f, u0, at, **arguments), grid[0], times.to(u0.device))

        finite = bool(torch.isfinite(us.detach()).all())
        return Answer(
            ts,
            us,
            finite,
            "Success" if finite else "Unstable",
            f.t_reached(ts),
            f.stats(),
            interpolate if request.dense else None,
        )


def _backpropagated(f: _FlatFunction, u0: Tensor, ts: Tensor, **arguments: Any) -> Tensor:
    us = torchdiffeq.odeint(f, u0, ts, **arguments)
    if arguments["method"] == "scipy_solver" and torch.is_grad_enabled():
        us = _NoGradient.apply(us, u0, ts, *_parameters(f, u0, ts))
    return us


def _adjoint_solver(request: Request, f: _FlatFunction, u0: Tensor, ts: Tensor) -> Callable[..., Tensor]:
    adjoint = request.adjoint
    assert adjoint is not None
    if isinstance(adjoint.sensealg, DiscreteAdjoint):
        return _backpropagated
    if not isinstance(adjoint.sensealg, BacksolveAdjoint):
        raise UnsupportedError(
            f"{type(adjoint.sensealg).__name__} needs the Julia engine (set it up with: pyjode setup); the embedded "
            "engine has DiscreteAdjoint and BacksolveAdjoint"
        )
    options = _adjoint_options(request, adjoint)

    def solve(f: _FlatFunction, u0: Tensor, ts: Tensor, **arguments: Any) -> Tensor:
        us = torchdiffeq.odeint_adjoint(
            f,
            u0,
            ts,
            adjoint_rtol=adjoint.rtol,
            adjoint_atol=adjoint.atol,
            adjoint_method=adjoint.method.torchdiffeq_name,
            adjoint_options=options,
            adjoint_params=params,
            **arguments,
        )
        # torchdiffeq's own backward gives a gradient without a graph there, in silence.
        return FirstDerivativeOnly.apply(us)

    params = _parameters(f, u0, ts)
    return solve


def _parameters(f: _FlatFunction, u0: Tensor, ts: Tensor) -> tuple[Tensor, ...]:
    """The tensors f depends on: those given as all there are, or those found in it and given."""
    request = f.request
    if request.exact_params:
        return request.params or ()
    y0 = request.layout.unflatten(u0.detach())
    return build_rhs(request.f, y0, float(ts[0].detach()), params=request.params, way="eager").params


class _NoGradient(torch.autograd.Function):
    """What is differentiable on the Julia engine and not through SciPy: asking for the gradient is an error."""

    @staticmethod
    def forward(ctx: Any, us: Tensor, *inputs: Tensor) -> Tensor:
        return us.clone()

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, ...]:
        raise UnsupportedError(
            "SciPy's solvers have no gradient on the embedded engine: take odeint_adjoint, another method, or the "
            "Julia engine (pyjode setup)"
        )


def _kept_dense_output(
    f: _FlatFunction, u0: Tensor, ts: Tensor, arguments: dict[str, Any]
) -> Callable[[Tensor], Tensor]:
    """torchdiffeq's odeint_dense, which knows dopri5 and forward time; made at first use."""
    sign = -1 if ts[-1] < ts[0] else 1
    made: list[Callable[[Tensor], Tensor]] = []

    def interpolate(times: Tensor) -> Tensor:
        if not made:
            options = arguments | {"options": dict(arguments["options"])}
            made.append(torchdiffeq.odeint_dense(f, u0, ts[0].detach(), ts[-1].detach(), **options))
        # It gives times backwards in time with their sign changed.
        return torch.stack([made[0](sign * t) for t in times.to(u0.device)])

    return interpolate


def _at_times(solve: Callable[[Tensor], Tensor], t0: Tensor, times: Tensor) -> Tensor:
    """torchdiffeq keeps no interpolant of any method but one: dense output solves again, through ``times``."""
    sorted_times, order = torch.unique(times, sorted=True, return_inverse=True)
    forwards = bool(sorted_times[-1] > t0)
    if not forwards:
        sorted_times, order = sorted_times.flip(0), len(sorted_times) - 1 - order
    starts = bool(sorted_times[0] == t0)
    if starts and len(sorted_times) == 1:
        sorted_times = torch.cat([sorted_times, sorted_times + 1e-6])
    grid = sorted_times if starts else torch.cat([t0.detach().reshape(1), sorted_times])
    us = solve(grid)
    return (us if starts else us[1:])[order]


def _options(request: Request, steps: StepControl, further: StepOptions | None) -> dict[str, Any]:
    """torchdiffeq's options again, their callables for flat states."""
    layout = request.layout
    options: dict[str, Any]
    bounds = {"min_step": steps.dtmin, "max_step": steps.dtmax}
    if request.method.name == "scipy_solver":
        options = {"solver": further.solver if further is not None else None, **bounds}
    elif steps.adaptive:
        options = {"max_num_steps": steps.maxiters, "first_step": steps.dt, **bounds}
        if steps.controller is not None:
            options |= asdict(steps.controller)
    else:
        options = {"step_size": steps.dt}
    if not layout.is_single_tensor:
        options["norm"] = _largest_leaf_rms(layout)
    if further is not None:
        given = {
            "step_t": further.step_t,
            "jump_t": further.jump_t,
            "dtype": further.time_dtype,
            "interp": further.interp,
            "perturb": further.perturb or None,
            "max_order": further.max_order,
            "max_iters": further.max_iters,
        }
        options |= {name: value for name, value in given.items() if name in options_of(request.method)}
        if callable(further.norm):
            norm = further.norm
            options["norm"] = lambda u: torch.as_tensor(norm(layout.unflatten(u)))
        if further.grid_constructor is not None:
            make = further.grid_constructor
            options["grid_constructor"] = lambda f, u, t: make(request.f, layout.unflatten(u), t).to(t)
    return {name: value for name, value in options.items() if value is not None}


def _adjoint_options(request: Request, adjoint: Adjoint) -> dict[str, Any]:
    """Options of the adjoint solve, whose state is (time's adjoint, y, y's adjoint, *parameters' adjoints)."""
    options = _options(replace(request, method=adjoint.method), adjoint.steps, adjoint.options)
    options.pop("norm", None)
    further, layout = adjoint.options, request.layout
    if further is not None and callable(further.norm):
        norm = further.norm

        def of_flat(state: tuple[Tensor, ...]) -> Any:
            t, u, adjoint_u, *params = state
            y, adjoint_y = (pytree.tree_leaves(layout.unflatten(x)) for x in (u, adjoint_u))
            return torch.as_tensor(norm((t, *y, *adjoint_y, *params)))

        options["norm"] = of_flat
    elif further is not None and further.norm is not None:
        options["norm"] = further.norm
    if further is not None and further.grid_constructor is not None:
        options["grid_constructor"] = lambda f, u, t: further.grid_constructor(f, u, t).to(t)
    return options


def _largest_leaf_rms(layout: StateLayout) -> Callable[[Tensor], Tensor]:
    """torchdiffeq's norm of a tuple: the largest root mean square among its tensors."""

    def norm(u: Tensor) -> Tensor:
        leaves = pytree.tree_leaves(layout.unflatten(u))
        return torch.stack([leaf.abs().pow(2).mean().sqrt().to(layout.dtype) for leaf in leaves]).max()

    return norm


def _retcode(message: str) -> str | None:
    if "max_num_steps" in message or "maximum number of iterations" in message:
        return "MaxIters"
    if "underflow in dt" in message:
        return "DtLessThanMin"
    if "non-finite" in message:
        return "Unstable"
    return None


class _FlatFunction(nn.Module):
    """f on flat states, counting what torchdiffeq does not report, with f's own callbacks on the nests they expect."""

    def __init__(self, request: Request, callbacks: Callbacks):
        super().__init__()
        self.request = request
        self.layout = request.layout
        self.nf = 0
        self.raised = False
        self.callbacks = callbacks
        if callbacks.step is not None:
            self.callback_step = self._called(callbacks.step)

    def forward(self, t: Tensor, u: Tensor) -> Tensor:
        self.nf += 1
        report = _report.get()
        if report is not None:
            report(float(t.detach()))
        self.raised = True
        dy = self._call(t, self.layout.unflatten(u))
        self.raised = False
        return self.layout.flatten_derivative(dy)

    @without_autocast
    def _call(self, t: Tensor, y: Any) -> Any:
        """f; torchdiffeq's adjoint calls it in a backward pass too, where the user's autocast may be on."""
        return self.request.f(t, y)

    def t_reached(self, ts: Tensor) -> float:
        return float(ts[-1].detach())

    def stats(self) -> dict[str, int]:
        return {"nf": self.nf}

    def _called(self, callback: Callback) -> Callback:
        def on_nest(t0: Tensor, u0: Tensor, dt: Tensor) -> None:
            self.raised = True
            callback(t0, self.layout.unflatten(u0), dt)
            self.raised = False

        return on_nest


class _AdaptiveFunction(_FlatFunction):
    """With the callbacks that torchdiffeq's adaptive solvers make."""

    def __init__(self, request: Request, callbacks: Callbacks):
        super().__init__(request, callbacks)
        self.naccept = self.nreject = 0
        self.t: float | None = None
        self._accepted = None if callbacks.accept is None else self._called(callbacks.accept)
        self._rejected = None if callbacks.reject is None else self._called(callbacks.reject)

    def callback_accept_step(self, t0: Tensor, y0: Tensor, dt: Tensor) -> None:
        self.naccept += 1
        self.t = float((t0 + dt).detach())
        if self._accepted is not None:
            self._accepted(t0, y0, dt)

    def callback_reject_step(self, t0: Tensor, y0: Tensor, dt: Tensor) -> None:
        self.nreject += 1
        if self._rejected is not None:
            self._rejected(t0, y0, dt)

    def t_reached(self, ts: Tensor) -> float:
        start, end = float(ts[0].detach()), float(ts[-1].detach())
        if self.t is None:
            return start
        # The last step goes beyond the end: torchdiffeq interpolates there.
        return min(self.t, end) if end > start else max(self.t, end)

    def stats(self) -> dict[str, int]:
        return {"nf": self.nf, "naccept": self.naccept, "nreject": self.nreject}


def _flat_function(request: Request) -> _FlatFunction:
    asked = request.options is not None
    callbacks = callbacks_of(request.f, request.method) if asked else Callbacks()
    counts = request.steps.adaptive and request.method.name != "scipy_solver"
    flat = (_AdaptiveFunction if counts else _FlatFunction)(request, callbacks)
    adjoint = request.adjoint
    if asked and adjoint is not None and isinstance(adjoint.sensealg, BacksolveAdjoint):
        single = request.layout.treespec.is_leaf()
        backward = callbacks_of(request.f, adjoint.method, adjoint=True)
        for name, callback in zip(NAMES, (backward.step, backward.accept, backward.reject), strict=True):
            if callback is not None:
                setattr(flat, f"{name}_adjoint", _on_adjoint_state(callback, request.layout) if single else callback)
    return flat


def _on_adjoint_state(callback: Callback, layout: StateLayout) -> Callback:
    """For (time's adjoint, y, y's adjoint, *parameters' adjoints); the two y's stay flat where y is a nest."""

    def called(t0: Tensor, state: tuple[Tensor, ...], dt: Tensor) -> None:
        t, u, adjoint_u, *params = state
        callback(t0, (t, layout.unflatten(u), layout.unflatten(adjoint_u), *params), dt)

    return called
