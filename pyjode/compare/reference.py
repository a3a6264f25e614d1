"""What the libraries are measured against: a solve at 1e-13, or the closed form, and its gradient."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pyjode.compare.problem import Problem
from pyjode.errors import SolverError

_STIFF_RTOL = 1e-12
"""Of LSODA, below which it crawls; it is then within 1e-9 of the printed end values."""
_MOST_SENSITIVITIES = 3000
"""Most equations of the variational system; beyond it the gradient comes from backpropagation."""
_MOST_DIFFERENCES = 200
"""Most variables of a stiff problem whose gradient is taken by finite differences, four solves each and step."""
_STEPS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
"""Of finite differences, in units of a variable's size."""
_AGREE = 1e-7
"""Relative difference of a derivative by two steps at which no further one is tried."""


@dataclass(frozen=True)
class Loss:
    """L = 1/2 Σ (y / scale)² over times and components, each component by its own size.

    Attributes:
        scale: the largest absolute value of each component, shape of y0.
    """

    scale: np.ndarray

    def torch(self, ys: torch.Tensor) -> torch.Tensor:
        """The loss of ``ys``, shape ``(T, *y0.shape)``."""
        return (ys / torch.as_tensor(self.scale, dtype=ys.dtype)).square().sum() / 2


@dataclass(frozen=True)
class Reference:
    """The solution taken as true.

    Attributes:
        ys: states at the problem's times, shape ``(T, *y0.shape)``.
        loss: the loss whose gradient is compared.
        gradient: its gradient by y0 and then each parameter, as one vector; ``None`` if not asked for or not to be had.
        unit: size of each of those variables: gradients are compared per relative change.
        by: what computed it.
    """

    ys: np.ndarray
    loss: Loss
    gradient: np.ndarray | None
    unit: np.ndarray
    by: str

    def error(self, ys: np.ndarray) -> float:
        """Root mean square over times and components of (ys - true) / scale."""
        return float(np.sqrt(np.mean(((np.asarray(ys, np.float64) - self.ys) / self.loss.scale) ** 2)))

    def gradient_error(self, gradient: np.ndarray) -> float:
        """Relative error (2-norm) of the gradient, each entry times the size of its variable."""
        if self.gradient is None:
            return float("nan")
        difference = self.unit * (np.asarray(gradient, np.float64) - self.gradient)
        return float(np.linalg.norm(difference) / np.linalg.norm(self.unit * self.gradient))


def reference(problem: Problem, gradient: bool) -> Reference:
    """The reference of a problem, with the gradient of its loss if asked for."""
    problem = problem.double()
    shape = (len(problem.ts), *problem.y0.shape)
    if problem.exact is not None:
        ys, by = problem.exact(problem.ts).reshape(shape), "closed form"
    else:
        flat, by = _solve(problem)
        ys = flat.reshape(shape)
    largest = np.abs(np.concatenate([problem.y0[None], ys])).max(axis=0)
    loss = Loss(np.where(largest > 0, largest, 1.0))
    units = [loss.scale.ravel(), *(_size(p).ravel() for p in problem.params)]
    found = None
    if gradient:
        found, how = _gradient(problem, loss, np.concatenate(units))
        by = f"{by}; gradient: {how}"
    return Reference(ys, loss, found, np.concatenate(units), by)


def _size(p: np.ndarray) -> np.ndarray:
    largest = float(np.abs(p).max()) if p.size else 1.0
    if p.ndim >= 2:
        return np.full(p.shape, largest or 1.0)
    # Each entry's own: POLLU's rate constants span 15 orders of magnitude.
    return np.where(p == 0, largest or 1.0, np.abs(p))


def _solve(problem: Problem, module: torch.nn.Module | None = None) -> tuple[np.ndarray, str]:
    """States at the problem's times; ``module`` is its f in torch if there is one already."""
    if problem.stiff and problem.make is not None:
        from pyjode.engines.julia import config

        if config.find_julia() is not None:
            found = _solve_in_julia(problem, problem.in_torch() if module is None else module)
            return found, f"RadauIIA9 of pyjode at {problem.reference:.0e}"
    f = problem.in_numpy()
    shape = problem.y0.shape

    def flat(t: float, y: np.ndarray) -> np.ndarray:
        return np.asarray(f(t, y.reshape(shape), problem.params)).reshape(-1)

    return _scipy(problem, flat, problem.y0.reshape(-1))


def _solve_in_julia(problem: Problem, module: torch.nn.Module) -> np.ndarray:
    import pyjode

    solution = pyjode.solve(
        pyjode.ODEProblem(module.requires_grad_(False), torch.tensor(problem.y0), (problem.t0, problem.t1)),
        "RadauIIA9",
        saveat=torch.tensor(problem.ts),
        rtol=problem.reference,
        atol=problem.reference * min(problem.atol, 1.0) * 1e-2,
        engine="julia",
        maxiters=10_000_000,
    )
    found: np.ndarray = solution.ys.numpy()
    return found


def _scipy(
    problem: Problem,
    f: Callable[[float, np.ndarray], np.ndarray],
    y0: np.ndarray,
    *,
    rtol: float | None = None,
    atol: float | np.ndarray | None = None,
) -> tuple[np.ndarray, str]:
    from scipy.integrate import solve_ivp

    method = "LSODA" if problem.stiff else "DOP853"
    rtol = rtol or max(problem.reference, _STIFF_RTOL if problem.stiff else 0.0)
    atol = rtol * problem.atol * (1e-4 if problem.stiff else 1e-2) if atol is None else atol
    # Save points are ends of steps for DOP853, whose dense output has order 7 only.
    ends = [problem.ts] if problem.stiff else [problem.ts[i : i + 1] for i in range(len(problem.ts))]
    rows, t, y = [], problem.t0, y0
    for ts in ends:
        solution = solve_ivp(f, (t, ts[-1]), y, method=method, rtol=rtol, atol=atol, t_eval=ts)
        if not solution.success:
            raise ArithmeticError(f"no reference for {problem.name}: {solution.message}")
        t, y = float(ts[-1]), solution.y[:, -1]
        rows.append(solution.y.T)
    return np.concatenate(rows), f"{method} of scipy at {rtol:.0e}"


def _gradient(problem: Problem, loss: Loss, unit: np.ndarray) -> tuple[np.ndarray | None, str]:
    n = problem.y0.size
    if problem.stiff:
        if unit.size > _MOST_DIFFERENCES:
            return None, "none: too many parameters for finite differences"
        return _by_differences(problem, loss, unit), "finite differences of fourth order of such solves"
    if n * (1 + unit.size) <= _MOST_SENSITIVITIES:
        return _by_sensitivities(problem, loss, unit), "forward sensitivities, DOP853 of scipy at 1e-12"
    return _by_backpropagation(problem, loss), f"torchdiffeq's backpropagation at {10 * problem.reference:.0e}"


def _by_differences(problem: Problem, loss: Loss, unit: np.ndarray) -> np.ndarray:
    """Central differences: no adjoint, and no sensitivity equation, is trusted for a stiff problem.

    How far a variable may be moved is not known beforehand (OREGO's y2 starts at 2 and reaches 1500), so its derivative
    is taken with smaller and smaller steps until two agree, or else by the smaller of the two that agree best.

    Source: Ridders, Adv. Eng. Softw. 4 (1982) 75-76, for the choice; without his extrapolation.
    """
    n = problem.y0.size
    ends = np.cumsum([n, *(p.size for p in problem.params)])
    at = np.concatenate([problem.y0.reshape(-1), *(p.reshape(-1) for p in problem.params)])

    # One for all solves, so that it is compiled once.
    module = problem.in_torch()
    trained = [p for p in module.parameters() if p.requires_grad]

    def value(x: np.ndarray) -> float:
        y0, *params = np.split(x, ends[:-1])
        with torch.no_grad():
            for p, value in zip(trained, params, strict=True):
                p.copy_(torch.from_numpy(value).reshape(p.shape))
        moved = dataclasses.replace(
            problem,
            y0=y0.reshape(problem.y0.shape),
            params=tuple(q.reshape(p.shape) for p, q in zip(problem.params, params, strict=True)),
            module=None if problem.module is None else module,
        )
        return float(((_solve(moved, module)[0].reshape(-1, *loss.scale.shape) / loss.scale) ** 2).sum() / 2)

    def derivative(i: int, step: float) -> float:
        h = np.zeros_like(at)
        h[i] = step * unit[i]
        try:
            near, far = value(at + h) - value(at - h), value(at + 2 * h) - value(at - 2 * h)
        except (SolverError, ArithmeticError):  # no such state, no such rate
            return float("nan")
        return (8 * near - far) / (12 * h[i])

    def settled(i: int) -> float:
        found, apart = [derivative(i, _STEPS[0])], []
        for step in _STEPS[1:]:
            found.append(derivative(i, step))
            apart.append(abs(found[-1] - found[-2]))
            if apart[-1] <= _AGREE * abs(found[-1]):
                return found[-1]
        if np.all(np.isnan(apart)):
            raise ArithmeticError(f"no reference gradient for {problem.name}: variable {i} cannot be moved")
        return found[int(np.nanargmin(apart)) + 1]

    return np.array([settled(i) for i in range(at.size)])


def _by_sensitivities(problem: Problem, loss: Loss, unit: np.ndarray) -> np.ndarray:
    """Forward sensitivities S = dy/d(y0, p): S' = (df/dy) S + df/dp, solved with y."""
    module = problem.in_torch()
    trained = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
    sizes = [p.numel() for p in trained.values()]
    n, m, shape = problem.y0.size, sum(sizes), problem.y0.shape
    packed = torch.cat([p.reshape(-1) for p in trained.values()]) if m else torch.zeros(0, dtype=torch.float64)

    def call(t: torch.Tensor, y: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        parts = p.split(sizes) if m else ()
        given = {name: q.reshape(trained[name].shape) for name, q in zip(trained, parts, strict=True)}
        found: torch.Tensor = torch.func.functional_call(module, given, (t, y.reshape(shape)))
        return found.reshape(-1)

    jacobians: Callable[..., Any] = torch.func.jacfwd(call, argnums=(1, 2) if m else (1,))
    if problem.make is not None:  # the standard problems have no branches that a graph would freeze
        from torch.fx.experimental.proxy_tensor import make_fx

        start = torch.tensor(problem.t0, dtype=torch.float64), torch.tensor(problem.y0.reshape(-1)), packed
        jacobians = make_fx(jacobians)(*start)
    f = problem.in_numpy()

    @torch.no_grad()
    def augmented(t: float, z: np.ndarray) -> np.ndarray:
        y, s = z[:n], z[n:].reshape(n + m, n)  # a row of s is one variable's sensitivity
        by_y, *by_p = jacobians(torch.tensor(t, dtype=torch.float64), torch.from_numpy(y), packed)
        ds = s @ by_y.numpy().T
        if m:
            ds[n:] += by_p[0].numpy().T
        return np.concatenate([np.asarray(f(t, y.reshape(shape), problem.params)).reshape(-1), ds.reshape(-1)])

    rtol = 1e-12
    atol = rtol * 1e-2 * np.concatenate([np.ones(n), (loss.scale.reshape(1, -1) / unit[:, None]).reshape(-1)])
    z0 = np.concatenate([problem.y0.reshape(-1), np.eye(n + m, n).reshape(-1)])
    zs, _ = _scipy(problem, augmented, z0, rtol=rtol, atol=atol)
    weights = zs[:, :n] / loss.scale.reshape(-1) ** 2
    return np.einsum("ti,tji->j", weights, zs[:, n:].reshape(len(zs), n + m, n))


def _by_backpropagation(problem: Problem, loss: Loss) -> np.ndarray:
    import torchdiffeq
    from torch.utils.checkpoint import checkpoint

    module = problem.in_torch()

    def f(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        # The tape of each call would be several states, and there are thousands of calls.
        return checkpoint(module, t, y, use_reentrant=False) if y.requires_grad else module(t, y)

    y0 = torch.tensor(problem.y0, requires_grad=True)
    t = torch.tensor([problem.t0, *problem.ts])
    rtol = 10 * problem.reference
    ends = {"step_t": t[1:]}  # its dense output has order 4 only
    ys = torchdiffeq.odeint(f, y0, t, method="dopri8", rtol=rtol, atol=rtol / 100, options=ends)[1:]
    variables = [y0, *(p for p in module.parameters() if p.requires_grad)]
    found = torch.autograd.grad(loss.torch(ys), variables, materialize_grads=True)
    return np.concatenate([g.numpy().reshape(-1) for g in found])
