"""States on a GPU: solved on the host, by an f that stays where it is."""

from __future__ import annotations

from dataclasses import replace

from jaxtyping import Float, Float64
from torch import Tensor

from pyjode.engines import Engine
from pyjode.engines.request import Answer, Request, Tolerances
from pyjode.rhs import build_rhs
from pyjode.rhs.host import on_host


def solve_from_device(
    engine: Engine, request: Request, u0: Float[Tensor, " *shape"], ts: Float64[Tensor, " T"], saved: slice
) -> Answer:
    """``engine.solve`` with the state brought to the host and the solution back to the device of ``u0``."""
    device = u0.device
    y0 = request.layout.unflatten(u0.detach().reshape(-1))
    rhs = on_host(build_rhs(request.f, y0, float(ts[0].detach()), params=request.params, way=request.rhs_way))
    request = replace(request, f=rhs, layout=rhs.layout, tolerances=tolerances_on_host(request.tolerances))
    answer = engine.solve(request, u0.to(rhs.layout.device), ts, saved)
    interpolate = answer.interpolate
    return replace(
        answer,
        us=answer.us.to(device),
        interpolate=None if interpolate is None else lambda times: interpolate(times).to(device),
    )


def tolerances_on_host(tolerances: Tolerances) -> Tolerances:
    """Tolerances for a solve on the host."""
    return Tolerances(*(_on_host(x) for x in (tolerances.rtol, tolerances.atol)))


def _on_host(tolerance: float | Tensor) -> float | Tensor:
    return tolerance.cpu() if isinstance(tolerance, Tensor) else tolerance
