"""``batching="independent"``: a batch of initial states of one ODE, each solved with step sizes of its own.

Source of the idea: Lienen and Günnemann, "torchode: a parallel ODE solver for PyTorch", 2022. A batch solved as one
state shares its steps, so that the stiffest sample sets them for all; here no sample sees another.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor
from torch.utils import _pytree as pytree

from pyjode.engines import Engine
from pyjode.engines.request import IndependentAnswer, Request
from pyjode.errors import InputError, SolverError, SolverFailure, UnsupportedError
from pyjode.rhs import build_rhs
from pyjode.rhs.effects import Watch
from pyjode.rhs.reach import Reach
from pyjode.solution import Solution, Stats
from pyjode.state import StateLayout

BATCHINGS = ("joint", "independent")

_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-8}


@dataclass(frozen=True)
class IndependentSolution(Solution):
    """The solutions of a batch of independent initial value problems.

    Attributes:
        ts: times of the saved states, shape ``(T,)``.
        ys: the saved states: the nest that y0 was, each tensor with a leading axis of length ``T`` before its batch
            axis. Differentiable in y0, in every parameter of f and in the times. NaN where a sample was not reached.
        stats: work counts, each a tensor of shape ``(B,)``.
        retcode: ``"Success"`` if every sample reached its end, else the first other return code.
        retcodes: the return code of each sample.
        t_reached: the last time each sample reached, shape ``(B,)``.
        engine, method: names of what solved it.
    """

    t_reached: Float64[Tensor, " B"]  # type: ignore[assignment]
    retcodes: tuple[str, ...] = field(default=(), repr=False)
    _span: tuple[float, float] = field(default=(math.nan, math.nan), repr=False)

    def __call__(self, t: float | Tensor) -> Any:
        """The states at any time of the solved span, by another solve that saves there; differentiable.

        Args:
            t: a time, or times of shape ``(m,)``, for all samples.

        Returns:
            The nest that y0 was; with times of shape ``(m,)`` each tensor has a leading axis of length ``m``.

        Raises:
            InputError: a time outside the span, or the shape of ``t`` not ``()`` or ``(m,)``.
            UnsupportedError: dense output was switched off (``dense=False``).
        """
        if self._interpolate is None:
            raise UnsupportedError("this solution keeps no dense output: solve with dense=True")
        times = torch.as_tensor(t, dtype=torch.float64)
        if times.ndim > 1:
            raise InputError(f"dense output takes a time or times of shape (m,), not {tuple(times.shape)}")
        low, high = sorted(self._span)
        if not bool(((times.detach() >= low) & (times.detach() <= high)).all()):
            raise InputError(f"dense output holds between t = {low:.6g} and {high:.6g} only")
        us = self._interpolate(times.reshape(-1))
        ys = unflatten_batch(us, self._layout)
        return ys if times.ndim == 1 else pytree.tree_map(lambda y: y[0], ys)


def batch_size(y0: Any) -> int:
    """B of a state whose tensors all have shape ``(B, ...)``.

    Raises:
        InputError: they have not, or B is 0.
    """
    leaves = pytree.tree_leaves(y0)
    sizes = {tuple(x.shape[:1]) for x in leaves if isinstance(x, Tensor)}
    if len(sizes) != 1 or () in sizes:
        shapes = ", ".join(str(tuple(x.shape)) for x in leaves if isinstance(x, Tensor))
        raise InputError(f'batching="independent" wants y0 with the batch as first axis of each tensor, got {shapes}')
    return next(iter(sizes))[0]


def sample_layout(y0: Any) -> StateLayout:
    """The layout of one sample of a batched state: each tensor of shape ``(1, ...)``.

    Raises:
        InputError: as :func:`batch_size`, and as for any state.
    """
    StateLayout.of(y0)
    batch_size(y0)
    return StateLayout.of(pytree.tree_map(lambda x: x[:1], y0))


def flatten_batch(y0: Any, layout: StateLayout) -> Tensor:
    """A batched state as rows, shape ``(B, n)``, of what ``layout.flatten`` gives for each sample."""
    rows = []
    for x in pytree.tree_leaves(y0):
        if x.dtype.is_complex:
            x = torch.view_as_real(x.resolve_conj())
        rows.append(x.reshape(len(x), -1).to(layout.dtype))
    return rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)


def unflatten_batch(us: Tensor, layout: StateLayout) -> Any:
    """States of shape ``(T, B, n)`` as the nest, each tensor ``(T, B, ...)``."""
    return pytree.tree_map(lambda x: x.flatten(1, 2), layout.unflatten(us))


def solve_batch(
    engine: Engine, request: Request, y0: Any, ts: Float64[Tensor, "*B T"], *, throw: bool = True
) -> IndependentAnswer:
    """Solve each sample of ``y0`` on its own.

    Args:
        engine: who solves.
        request: with the layout of one sample (:func:`sample_layout`).
        y0: the batched state, each tensor of shape ``(B, ...)``.
        ts: save times, shape ``(T,)``, or ``(B, T)`` for each sample's own, all in one direction.
        throw: raise if a sample does not reach its end.

    Raises:
        InputError: NaN or infinity in ``y0``; times of another shape; f mixes samples.
        SolverError: a sample did not reach its end; the message names which.
    """
    u0 = flatten_batch(y0, request.layout)
    finite = torch.isfinite(u0.detach()).all(dim=1)
    if not bool(finite.all()):
        raise InputError(f"y0 holds NaN or infinite entries ({_some((~finite).nonzero()[:, 0].tolist())})")
    if ts.ndim == 2 and len(ts) != len(u0):
        raise InputError(f"t has times for {len(ts)} samples, y0 has {len(u0)}")
    check_samples_apart(request, y0, float(ts.detach().reshape(-1)[0]))
    answer = engine.solve_independent(request, u0, ts.broadcast_to(len(u0), ts.shape[-1]))
    if throw:
        raise_on_failures(answer, request)
    return answer


def check_samples_apart(request: Request, y0: Any, t0: float) -> None:
    """Raise InputError where f gives a sample another derivative beside other samples than alone.

    Evaluates f, at two samples moved a little and at each alone; once for a right-hand side.
    """
    layout = request.layout
    if batch_size(y0) < 2:
        return
    two = pytree.tree_map(lambda x: x[:2].detach().clone(), y0)
    rhs = build_rhs(request.f, pytree.tree_map(lambda x: x[:1], two), t0, params=request.params, way=request.rhs_way)
    if vars(rhs).get("_samples_apart"):
        return
    random = torch.Generator().manual_seed(0)

    def moved(x: Tensor) -> Tensor:
        noise = torch.randn(x.shape, generator=random, dtype=x.dtype).to(x.device)
        return x * (1 + 1e-2 * noise) + 1e-2 * noise.abs()

    two = pytree.tree_map(moved, two)
    t = torch.tensor(t0, dtype=layout.dtype, device=layout.device)
    # Counters that f counts up, and random generators, are put back: these calls are none of the user's.
    with torch.no_grad(), Watch(Reach(request.f)).outside():
        u = flatten_batch(two, layout)
        try:
            together = flatten_batch(request.f(t, pytree.tree_map(torch.clone, two)), layout)
        except Exception:  # an f for one sample at a time cannot mix several
            together = None
        alone = torch.stack([rhs.f(t, x.clone(), rhs.params) for x in u])
    if together is not None and together.shape == alone.shape:
        tolerance = _TOLERANCE[layout.dtype]
        scale = alone.abs().nan_to_num(posinf=0.0).max().item()
        if not torch.allclose(together, alone, rtol=tolerance, atol=tolerance * scale, equal_nan=True):
            raise InputError(
                'batching="independent" solves each sample alone, and f gives a sample another derivative alone than '
                "beside other samples (batch statistics, a mean over the batch, random numbers): use "
                'batching="joint", or write f for a batch of one'
            )
    vars(rhs)["_samples_apart"] = True


def refuse_progress(progress: Any) -> None:
    """Raise UnsupportedError if ``progress`` was asked for: samples that are solved at once have no time in common."""
    if progress is not False:
        raise UnsupportedError('batching="independent" has no progress to show: leave progress out')


def raise_on_failures(answer: IndependentAnswer, request: Request) -> None:
    """Raise SolverError if any sample stopped early."""
    failed = answer.failed
    if not failed:
        return
    b = failed[0]
    retcode, t = answer.retcodes[b], float(answer.t_reached[b])
    counts = [answer.stats[name][b] for name in ("naccept", "nreject") if name in answer.stats]
    steps = int(sum(int(c) for c in counts))
    raise SolverError(
        f"{request.method.name}: {len(failed)} of {len(answer.retcodes)} samples did not reach their end "
        f"({_some(failed)}); sample {b} stopped at t = {t:.6g} after {steps} steps: {retcode}. throw=False in "
        "pyjode.solve gives the others, and each one's retcode",
        SolverFailure(retcode, t, steps),
    )


def independent_solution(
    answer: IndependentAnswer, request: Request, engine: Engine, ts: Float64[Tensor, " T"], saved: slice, y0: Any
) -> IndependentSolution:
    """What :func:`pyjode.solve` returns."""

    def interpolate(times: Tensor) -> Tensor:
        return _at_times(engine, request, y0, ts[:1], times)

    failed = answer.failed
    return IndependentSolution(
        ts=ts[saved],
        ys=unflatten_batch(answer.us[saved], request.layout),
        stats=Stats.of(answer.stats),
        retcode=answer.retcodes[failed[0]] if failed else "Success",
        t_reached=answer.t_reached,
        engine=engine.name,
        method=request.method.name,
        _layout=request.layout,
        _interpolate=interpolate if request.dense else None,
        retcodes=answer.retcodes,
        _span=(float(ts.detach()[0]), float(ts.detach()[-1])),
    )


def _at_times(engine: Engine, request: Request, y0: Any, t0: Tensor, times: Tensor) -> Tensor:
    """States at ``times`` (m,): ``(m, B, n)``."""
    ordered, order = torch.unique(times.detach(), sorted=True, return_inverse=True)
    if bool(ordered[0] < t0.detach()):
        ordered, order = ordered.flip(0), len(ordered) - 1 - order
    # The times themselves may require grad: take each from the caller's tensor.
    first = torch.stack([(order == i).nonzero()[0, 0] for i in range(len(ordered))])
    grid = times[first]
    if bool(ordered[0] == t0.detach()):
        if len(ordered) == 1:
            return flatten_batch(y0, request.layout)[None][order]
        return solve_batch(engine, request, y0, grid).us[order]
    return solve_batch(engine, request, y0, torch.cat([t0, grid])).us[1:][order]


def check_times(t: Tensor) -> None:
    """Raise InputError unless the rows of ``t``, shape ``(B, T)``, are all strictly increasing or all decreasing."""
    values = t.detach()
    if t.shape[0] == 0 or t.shape[1] == 0:
        raise InputError(f"t is empty: shape {tuple(t.shape)}")
    if not bool(torch.isfinite(values).all()):
        raise InputError("t holds NaN or infinite times")
    steps = values[:, 1:] - values[:, :-1]
    if not (bool((steps > 0).all()) or bool((steps < 0).all())):
        raise InputError("t of shape (B, T) must increase strictly in every row, or decrease in every row")


def _some(samples: list[int]) -> str:
    listed = ", ".join(map(str, samples[:8])) + (", ..." if len(samples) > 8 else "")
    return f"sample {listed}" if len(samples) == 1 else f"samples {listed}"
