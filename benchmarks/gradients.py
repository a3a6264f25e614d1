"""Gradients of the Julia engine against two independent truths: finite differences and torchdiffeq.

    python -m benchmarks.gradients            # the table
    python -m benchmarks.gradients --json

Each row: a problem, a method and a sensealg; the largest relative error (2-norm) of the gradients by y0, parameters
and times, against central finite differences in float64 of the same engine's solve at 1e-12 ("FD"), and against
torchdiffeq's backpropagation with dopri5 at rtol 1e-10 ("td").
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torchdiffeq
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import pyjode

SENSEALGS = ("GaussAdjoint", "GaussKronrodAdjoint", "InterpolatingAdjoint", "QuadratureAdjoint", "BacksolveAdjoint")


@dataclass(frozen=True)
class Problem:
    """An initial value problem with a scalar loss of its solution.

    Attributes:
        make: a fresh f with its parameters.
        y0: initial state (a nest).
        ts: save times, shape ``(T,)``.
    """

    name: str
    make: Callable[[], nn.Module]
    y0: Any
    ts: Tensor


class MLP(nn.Module):
    """2-16-2, tanh."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2)).to(torch.float64)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y)


class Pendulum(nn.Module):
    """Damped pendulum with its two constants as scalar parameters."""

    def __init__(self):
        super().__init__()
        self.w0 = nn.Parameter(torch.tensor(torch.pi / 6, dtype=torch.float64))
        self.a = nn.Parameter(torch.tensor(0.2, dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[1], -(self.w0**2) * torch.sin(y[0]) - self.a * y[1]])


class Driven(nn.Module):
    """A time-dependent f: a driven, damped oscillator with a parameter inside the forcing."""

    def __init__(self):
        super().__init__()
        self.frequency = nn.Parameter(torch.tensor(1.3, dtype=torch.float64))
        self.matrix = nn.Parameter(torch.tensor([[-0.1, 1.0], [-1.0, -0.1]], dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        force = torch.stack([torch.zeros_like(t), torch.cos(self.frequency * t)])
        return self.matrix @ y + force


class Nested(nn.Module):
    """A nested state: a batch of positions and a matrix, coupled."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.weight = nn.Parameter(0.3 * torch.randn(3, 3, dtype=torch.float64))
        self.rate = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def forward(self, t: Tensor, y: dict[str, Any]) -> dict[str, Any]:
        x, (m,) = y["x"], y["rest"]
        return {"x": torch.tanh(x @ self.weight), "rest": (-self.rate * m + x.mean(),)}


def problems() -> list[Problem]:
    """The problems of the table."""
    torch.manual_seed(2)
    ts = torch.linspace(0.0, 2.0, 6, dtype=torch.float64)
    y0 = torch.tensor([1.2, -0.4], dtype=torch.float64)
    nested = {"x": torch.randn(4, 3, dtype=torch.float64), "rest": (torch.randn(2, 2, dtype=torch.float64),)}
    return [
        Problem("MLP", MLP, torch.randn(5, 2, dtype=torch.float64), ts),
        Problem("pendulum", Pendulum, y0, ts),
        Problem("time-dependent", Driven, y0, ts),
        Problem("nested state", Nested, nested, ts),
    ]


def loss(ys: Any) -> Tensor:
    """A scalar with a different cotangent at every entry."""
    total = torch.zeros((), dtype=torch.float64)
    for x in pytree.tree_leaves(ys):
        weights = torch.cos(torch.arange(x.numel(), dtype=x.dtype)).view(x.shape)
        total = total + (weights * x).sum() + 0.1 * (x**2).sum()
    return total


def gradients(problem: Problem, solver: Callable[..., Any]) -> list[Tensor]:
    """Gradients of the loss by the tensors of y0, the parameters and the times, flattened into three vectors."""
    f = problem.make()
    y0 = pytree.tree_map(lambda x: x.clone().requires_grad_(), problem.y0)
    ts = problem.ts.clone().requires_grad_()
    groups = [pytree.tree_leaves(y0), list(f.parameters()), [ts]]
    flat = [x for group in groups for x in group]
    grads = iter(torch.autograd.grad(loss(solver(f, y0, ts)), flat))
    return [torch.cat([next(grads).reshape(-1) for _ in group]) for group in groups]


def finite_differences(problem: Problem, solver: Callable[..., Any], step: float = 1e-5) -> list[Tensor]:
    """Central differences (fourth order) of the loss, as :func:`gradients`."""
    f = problem.make()
    y0 = pytree.tree_map(torch.clone, problem.y0)
    ts = problem.ts.clone()
    result = []
    for group in (pytree.tree_leaves(y0), [p.data for p in f.parameters()], [ts]):
        entries = []
        for x in group:
            flat = x.view(-1)
            for i in range(flat.numel()):
                value = flat[i].item()
                h = step * max(1.0, abs(value)) * 10
                samples = []
                for k in (-2, -1, 1, 2):
                    flat[i] = value + k * h
                    with torch.no_grad():
                        samples.append(loss(solver(f, y0, ts)).item())
                flat[i] = value
                entries.append((samples[0] - 8 * samples[1] + 8 * samples[2] - samples[3]) / (12 * h))
        result.append(torch.tensor(entries, dtype=torch.float64))
    return result


def relative_errors(found: list[Tensor], truth: list[Tensor]) -> list[float]:
    """Relative error in the 2-norm by y0, parameters, times."""
    return [((a - b).norm() / b.norm()).item() for a, b in zip(found, truth, strict=True)]


def flattened(f: nn.Module, y0: Any, ts: Tensor) -> Any:
    """torchdiffeq's solution, also for nests it does not take."""
    layout = pyjode.state.StateLayout.of(y0)
    us = torchdiffeq.odeint(
        lambda t, u: layout.flatten_derivative(f(t, layout.unflatten(u))),
        layout.flatten(y0),
        ts,
        rtol=1e-10,
        atol=1e-12,
        method="dopri5",
    )
    return layout.unflatten(us)


def julia(method: str, sensealg: str, tolerance: float) -> Callable[..., Any]:
    """The Julia engine as a solver of the table."""

    def solver(f: nn.Module, y0: Any, ts: Tensor) -> Any:
        return pyjode.odeint_adjoint(
            f,
            y0,
            ts,
            rtol=tolerance,
            atol=tolerance * 1e-2,
            adjoint_rtol=tolerance,
            adjoint_atol=tolerance * 1e-2,
            method=method,
            sensealg=sensealg,
            engine="julia",
        )

    return solver


def table(method: str = "Vern7") -> list[dict[str, Any]]:
    """A row for each problem and sensealg."""
    rows = []
    for problem in problems():
        fd = finite_differences(problem, julia("Vern9", "GaussAdjoint", 1e-13))
        td = gradients(problem, flattened)
        for sensealg in SENSEALGS:
            found = gradients(problem, julia(method, sensealg, 1e-11))
            row: dict[str, Any] = {"problem": problem.name, "method": method, "sensealg": sensealg}
            for name, truth in (("FD", fd), ("td", td)):
                row |= {
                    f"{name} {what}": error
                    for what, error in zip(("y0", "params", "t"), relative_errors(found, truth), strict=True)
                }
            rows.append(row)
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--method", default="Vern7")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = table(args.method)
    if args.json:
        print(json.dumps(rows, indent=1))
        return
    keys = [key for key in rows[0] if key not in ("problem", "method", "sensealg")]
    print(f"{'problem':15} {'method':7} {'sensealg':22}" + "".join(f"{key:>11}" for key in keys))
    for row in rows:
        print(f"{row['problem']:15} {row['method']:7} {row['sensealg']:22}" + "".join(f"{row[k]:11.1e}" for k in keys))


if __name__ == "__main__":
    main()
