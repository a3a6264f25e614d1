"""A solve in pieces, between which f jumps: each sees f from inside its own ends only."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from pyjode.engines.julia.step_options import fixed_grid, refuse_perturb
from pyjode.engines.request import Answer, Request

Piece = Callable[[Request, Tensor, Tensor, tuple[float, float]], Answer]
"""Solves a request from u0 over ts, its f asked for no time outside two ends."""


def jumps_of(request: Request, ts: Float64[Tensor, " T"], u0: Float[Tensor, " *shape"]) -> Float64[Tensor, " j"] | None:
    """Where the solve must be cut: times strictly within the span, in its direction; ``None``: f does not jump.

    Raises:
        UnsupportedError: see :func:`~pyjode.engines.julia.step_options.refuse_perturb`.
    """
    options = request.options
    if options is None:
        return None
    if options.perturb and not request.steps.adaptive:
        refuse_perturb(request)
        grid = fixed_grid(request, options, request.steps, ts, u0)
        jumps = ts.detach() if grid is None else grid
    elif options.jump_t is not None:
        jumps = options.jump_t
    else:
        return None
    sign = -1 if ts[-1] < ts[0] else 1
    inside = (sign * jumps > sign * ts[0].detach()) & (sign * jumps <= sign * ts[-1].detach())
    return (sign * jumps[inside]).sort().values * sign


def solve_in_pieces(
    solve: Piece, request: Request, u0: Float[Tensor, " n"], ts: Float64[Tensor, " T"], jumps: Float64[Tensor, " j"]
) -> Answer:
    """Solve over ``ts`` piece after piece, and put the answers together; autograd goes back through all of them.

    Just before a jump f is asked for the last time before it in the state's precision, just after it for the next one,
    as torchdiffeq does.
    """
    assert request.options is not None
    sign = -1 if ts[-1] < ts[0] else 1
    times = ts.detach()
    at_end = bool(len(jumps)) and bool(jumps[-1] == times[-1])
    starts = [times[:1], *(jumps[:-1] if at_end else jumps).reshape(-1, 1)]
    ends = [*starts[1:], times[-1:]]
    plain = replace(request, options=replace(request.options, jump_t=None, perturb=False))
    if request.options.perturb:
        # Each piece is one step.
        one_step = replace(request.options, jump_t=None, perturb=False, grid_constructor=lambda f, y, t: t[[0, -1]])
        plain = replace(request, steps=replace(request.steps, dt=None), options=one_step)
    perturbed = request.options.perturb
    us, pieces = [u0[None]], []
    for k, (start, end) in enumerate(zip(starts, ends, strict=True)):
        within = (sign * times > sign * start) & (sign * times <= sign * end)
        has_end = bool((times[within] == end).any()) if bool(within.any()) else False
        grid = torch.cat([ts[:1] if k == 0 else start, ts[within], *([] if has_end else [end])])
        dtype = request.layout.dtype
        # At an end of the whole solve f does not jump, unless it is said to.
        first = -sign * math.inf if k == 0 and not perturbed else _beyond(start, sign, dtype)
        last = sign * math.inf if end is ends[-1] and not (at_end or perturbed) else _beyond(end, -sign, dtype)
        if k > 0:
            # The first step's size was for the first piece.
            adaptive = plain.steps.adaptive
            plain = replace(plain, steps=replace(plain.steps, dt=None)) if adaptive else plain
        answer = solve(plain, u0, grid, (min(first, last), max(first, last)))
        pieces.append(answer)
        u0 = answer.us[-1]
        us.append(answer.us[1 : 1 + int(within.sum())])
        if not answer.success:
            break
    states = torch.cat(us)
    missing = len(ts) - len(states)
    if missing:
        states = torch.cat([states, states.new_full((missing, states.shape[1]), torch.nan)])
    end = pieces[-1]
    stats = {name: sum(piece.stats[name] for piece in pieces) for name in end.stats}
    return Answer(ts, states, end.success, end.retcode, end.t_reached, stats, _piecewise(pieces, jumps, sign))


def _beyond(time: Tensor, sign: int, dtype: torch.dtype) -> float:
    """The next number of ``dtype`` after ``time`` in the direction ``sign``."""
    rounded = time.to(dtype)
    return float(torch.nextafter(rounded, torch.full_like(rounded, sign * math.inf)))


def _piecewise(pieces: list[Answer], jumps: Tensor, sign: int) -> Callable[[Tensor], Tensor] | None:
    if any(piece.interpolate is None for piece in pieces):
        return None

    def interpolate(times: Tensor) -> Tensor:
        which = torch.bucketize(sign * times, sign * jumps).clamp(max=len(pieces) - 1)
        parts: list[Tensor | None] = [None] * len(times)
        for k, piece in enumerate(pieces):
            rows = (which == k).nonzero()[:, 0].tolist()
            if rows and piece.interpolate is not None:
                for row, part in zip(rows, piece.interpolate(times[rows]), strict=True):
                    parts[row] = part
        return torch.stack([part for part in parts if part is not None])

    return interpolate
