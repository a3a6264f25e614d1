"""The embedded engine: torchdiffeq, so that everything but Julia's own methods runs without Julia."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import torch
import torchdiffeq
from jaxtyping import Float, Float64
from torch import Tensor, nn

from pyjode.door import FirstDerivativeOnly, refuse_forward_mode, without_autocast
from pyjode.engines.crossings import Crossings
from pyjode.engines.embedded_events import find_crossing, solve_to_crossing
from pyjode.engines.request import Answer, IndependentAnswer, Request
from pyjode.errors import UnsupportedError
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

    def solve(self, request: Request, u0: Float[Tensor, " n"], ts: Float64[Tensor, " T"]) -> Answer:
        """See :class:`pyjode.engines.Engine`.

        Raises:
            UnsupportedError: the method, the sensealg or an option is one that only Julia has.
        """
        refuse_forward_mode()
        f, arguments = self._prepared(request)
        solver = _backpropagated if request.adjoint is None else _adjoint_solver(request, f, u0, ts)
        return self._answer(request, f, solver, u0, ts, arguments)

    def _prepared(self, request: Request) -> tuple[_FlatFunction, dict[str, Any]]:
        """f and the arguments of torchdiffeq's solvers."""
        method = request.method.torchdiffeq_name
        if method is None:
            raise UnsupportedError(
                f"method {request.method.name!r} needs the Julia engine (set it up with: pyjode setup); "
                "the embedded engine has dopri5, dopri8, bosh3, fehlberg2, adaptive_heun, euler, midpoint, rk4, ..."
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
        f = (_AdaptiveFunction if request.steps.adaptive else _FlatFunction)(request.f, request.layout)
        return f, {
            "rtol": request.tolerances.rtol,
            "atol": request.tolerances.atol,
            "method": method,
            "options": _options(request),
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


def _backpropagated(f: nn.Module, u0: Tensor, ts: Tensor, **arguments: Any) -> Tensor:
    return torchdiffeq.odeint(f, u0, ts, **arguments)


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
    if request.exact_params:
        params = request.params or ()
    else:
        y0 = request.layout.unflatten(u0.detach())
        params = build_rhs(request.f, y0, float(ts[0].detach()), params=request.params, way="eager").params

    def solve(f: nn.Module, u0: Tensor, ts: Tensor, **arguments: Any) -> Tensor:
        us = torchdiffeq.odeint_adjoint(
            f,
            u0,
            ts,
            adjoint_rtol=adjoint.rtol,
            adjoint_atol=adjoint.atol,
            adjoint_method=adjoint.method.torchdiffeq_name,
            adjoint_params=tuple(params),
            **arguments,
        )
        # torchdiffeq's own backward gives a gradient without a graph there, in silence.
        return FirstDerivativeOnly.apply(us)

    return solve


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


def _options(request: Request) -> dict[str, Any]:
    steps = request.steps
    options: dict[str, Any] = {}
    if steps.adaptive:
        options["max_num_steps"] = steps.maxiters
        if steps.dt is not None:
            options["first_step"] = steps.dt
        if steps.dtmin is not None or steps.dtmax is not None:
            # torchdiffeq 0.2.5 has neither; silently going on without would be another solve than was asked for.
            raise UnsupportedError("dtmin and dtmax need the Julia engine (set it up with: pyjode setup)")
    elif steps.dt is not None:
        options["step_size"] = steps.dt
    if len(request.layout.leaves) > 1:
        options["norm"] = _largest_leaf_rms(request.layout)
    return options


def _largest_leaf_rms(layout: StateLayout) -> Callable[[Tensor], Tensor]:
    """torchdiffeq's norm of a tuple: the largest root mean square among its tensors."""

    def norm(u: Tensor) -> Tensor:
        return torch.stack([u[leaf.start : leaf.stop].pow(2).mean().sqrt() for leaf in layout.leaves]).max()

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
    """f on flat states, counting what torchdiffeq does not report."""

    def __init__(self, f: Callable[..., Any], layout: StateLayout):
        super().__init__()
        self.f = f
        self.layout = layout
        self.nf = 0
        self.raised = False

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
        return self.f(t, y)

    def t_reached(self, ts: Tensor) -> float:
        return float(ts[-1].detach())

    def stats(self) -> dict[str, int]:
        return {"nf": self.nf}


class _AdaptiveFunction(_FlatFunction):
    """With the callbacks that torchdiffeq's adaptive solvers make."""

    def __init__(self, f: Callable[..., Any], layout: StateLayout):
        super().__init__(f, layout)
        self.naccept = self.nreject = 0
        self.t: float | None = None

    def callback_accept_step(self, t0: Tensor, y0: Tensor, dt: Tensor) -> None:
        self.naccept += 1
        self.t = float((t0 + dt).detach())

    def callback_reject_step(self, t0: Tensor, y0: Tensor, dt: Tensor) -> None:
        self.nreject += 1

    def t_reached(self, ts: Tensor) -> float:
        start, end = float(ts[0].detach()), float(ts[-1].detach())
        if self.t is None:
            return start
        # The last step goes beyond the end: torchdiffeq interpolates there.
        return min(self.t, end) if end > start else max(self.t, end)

    def stats(self) -> dict[str, int]:
        return {"nf": self.nf, "naccept": self.naccept, "nreject": self.nreject}
