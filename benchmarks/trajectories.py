"""Many Lorenz trajectories, each with steps of its own: pyjode's independent batching beside its peers, in one run.

    python -m benchmarks.trajectories [--batch 10000] [--json]

float64, y0 drawn around the attractor, t from 0 to 1, rtol = atol = 1e-6, forward plus the gradient by three parameters
and every y0. Median milliseconds of interleaved runs, the time of the first call, and the largest relative error among
the gradients against the same in Julia at 1e-11. torchdiffeq takes the batch as one state, with one step size for all.
Peers that are not installed are left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

import pyjode
from pyjode.engines.julia.boundary import gate

Gradient = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
END, TOLERANCE = 1.0, 1e-6


def lorenz(p: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """f(t, y) for y of shape (..., 3)."""

    def f(t: Tensor, y: Tensor) -> Tensor:
        x, v, z = y[..., 0], y[..., 1], y[..., 2]
        return torch.stack([p[0] * (v - x), x * (p[1] - z) - v, x * v - p[2] * z], dim=-1)

    return f


JULIA = """
function lorenz!(du, u, p, t)
    du[1] = p[1] * (u[2] - u[1])
    du[2] = u[1] * (p[2] - u[3]) - u[2]
    du[3] = u[1] * u[2] - p[3] * u[3]
end
"""


def _torch_gradient(solve: Callable[[Tensor, Tensor], Tensor]) -> Gradient:
    def gradient(p: Tensor, y0: Tensor) -> tuple[Tensor, Tensor]:
        p, y0 = p.clone().requires_grad_(), y0.clone().requires_grad_()
        end = solve(p, y0)
        return torch.autograd.grad(end.square().sum(), (p, y0))

    return gradient


def _pyjode(batching: str = "independent", tolerance: float = TOLERANCE, **options: object) -> Gradient:
    state: dict[str, Tensor] = {}

    def f(t: Tensor, y: Tensor) -> Tensor:
        return lorenz(state["p"])(t, y)

    def gradient(p: Tensor, y0: Tensor) -> tuple[Tensor, Tensor]:
        # One f for all calls, as in training: its parameter is a leaf that keeps its place.
        leaf = state.setdefault("p", p.clone().requires_grad_())
        y0 = y0.clone().requires_grad_()
        t = torch.tensor([0.0, END], dtype=torch.float64)
        ys = pyjode.odeint(f, y0, t, batching=batching, rtol=tolerance, atol=tolerance, engine="julia", **options)
        return torch.autograd.grad(ys[-1].square().sum(), (leaf, y0))

    return gradient


def _julia_function() -> Gradient:
    leaf = torch.tensor(_P, dtype=torch.float64).requires_grad_()
    f = pyjode.JuliaFunction(JULIA, params=leaf, batched=True)

    def gradient(p: Tensor, y0: Tensor) -> tuple[Tensor, Tensor]:
        y0 = y0.clone().requires_grad_()
        t = torch.tensor([0.0, END], dtype=torch.float64)
        ys = pyjode.odeint(
            f, y0, t, method="Tsit5", batching="independent", rtol=TOLERANCE, atol=TOLERANCE, engine="julia"
        )
        return torch.autograd.grad(ys[-1].square().sum(), (leaf, y0))

    return gradient


def _torchdiffeq() -> Gradient:
    import torchdiffeq

    t = torch.tensor([0.0, END], dtype=torch.float64)
    return _torch_gradient(
        lambda p, y0: torchdiffeq.odeint(lorenz(p), y0, t, method="dopri5", rtol=TOLERANCE, atol=TOLERANCE)[-1]
    )


def _torchode() -> Gradient:
    import torchode

    def solve(p: Tensor, y0: Tensor) -> Tensor:
        term = torchode.ODETerm(lorenz(p))
        controller = torchode.IntegralController(atol=TOLERANCE, rtol=TOLERANCE, term=term)
        solver = torchode.AutoDiffAdjoint(torchode.Tsit5(term=term), controller)
        t = torch.tensor([0.0, END], dtype=torch.float64).expand(len(y0), 2)
        return solver.solve(torchode.InitialValueProblem(y0=y0, t_eval=t)).ys[:, -1]

    return _torch_gradient(solve)


def _diffrax() -> Gradient:
    import diffrax
    import jax

    jax.config.update("jax_enable_x64", True)
    import jax.numpy as jnp
    import numpy as np

    def f(t, y, p):
        return jnp.stack([p[0] * (y[1] - y[0]), y[0] * (p[1] - y[2]) - y[1], y[0] * y[1] - p[2] * y[2]])

    def end(p, y0):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(f), diffrax.Tsit5(), 0.0, END, None, y0, args=p, saveat=diffrax.SaveAt(t1=True),
            stepsize_controller=diffrax.PIDController(rtol=TOLERANCE, atol=TOLERANCE), max_steps=4096,
        )  # fmt: skip
        return solution.ys[0]

    loss = jax.jit(jax.grad(lambda p, y0: (jax.vmap(end, (None, 0))(p, y0) ** 2).sum(), argnums=(0, 1)))

    def gradient(p: Tensor, y0: Tensor) -> tuple[Tensor, Tensor]:
        return tuple(torch.from_numpy(np.array(x)) for x in loss(p.numpy(), y0.numpy()))  # type: ignore[return-value]

    return gradient


_P = (10.0, 28.0, 8 / 3)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--batch", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    p = torch.tensor(_P, dtype=torch.float64)
    y0 = 10 * torch.randn(args.batch, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y0[:, 2] += 20
    truth = _pyjode(tolerance=1e-11, method="Vern9")(p, y0)
    makers: dict[str, Callable[[], Gradient]] = {
        "pyjode independent": lambda: _pyjode(method="Tsit5"),
        "pyjode JuliaFunction": _julia_function,
        "pyjode joint": lambda: _pyjode("joint", method="Tsit5"),
        "torchdiffeq (joint)": _torchdiffeq,
        "torchode": _torchode,
        "diffrax vmap, jit": _diffrax,
    }
    solvers: dict[str, Gradient] = {}
    first, errors, times = {}, {}, {}
    for name, make in makers.items():
        try:
            solvers[name] = make()
        except ImportError:
            continue
        start = time.perf_counter()
        found = solvers[name](p, y0)
        first[name] = (time.perf_counter() - start) * 1e3
        errors[name] = max(((a - b).norm() / b.norm()).item() for a, b in zip(found, truth, strict=True))
        times[name] = []
    for repeat in range(args.repeats):
        order = list(solvers.items())
        for name, gradient in order if repeat % 2 == 0 else order[::-1]:
            start = time.perf_counter()
            gradient(p, y0)
            times[name].append((time.perf_counter() - start) * 1e3)
    rows = [
        {"solver": name, "ms": statistics.median(times[name]), "first ms": first[name], "error": errors[name]}
        for name in solvers
    ]
    if args.json:
        print(json.dumps({"batch": args.batch, "threads": gate().threads, "rows": rows}, indent=1))
        return
    print(f"{args.batch} trajectories, Julia on {gate().threads} threads, torch on 1")
    print(f"{'solver':22}{'ms':>10}{'first ms':>11}{'gradient error':>17}")
    for row in rows:
        print(f"{row['solver']:22}{row['ms']:10.1f}{row['first ms']:11.0f}{row['error']:17.1e}")


if __name__ == "__main__":
    main()
