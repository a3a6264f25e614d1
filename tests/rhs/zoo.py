"""Right-hand sides of every kind that the tests of pyjode.rhs run through. All in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

DTYPE = torch.float64


class MLP(nn.Module):
    def __init__(self, d: int = 2, width: int = 7, frozen: bool = False):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(d, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, d)
        )
        self.to(DTYPE)
        if frozen:
            self.net[0].requires_grad_(False)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y)


class Pendulum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w0 = nn.Parameter(torch.tensor(0.5, dtype=DTYPE))
        self.a = nn.Parameter(torch.tensor(0.2, dtype=DTYPE))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[1], -(self.w0**2) * torch.sin(y[0]) - self.a * y[1]])


class InPlacePendulum(Pendulum):
    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        dy = torch.zeros_like(y)
        dy[0] = y[1]
        dy[1] = -(self.w0**2) * torch.sin(y[0]) - self.a * y[1]
        return dy


class Forced(Pendulum):
    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return super().forward(t, y) * torch.exp(-t) + torch.tensor([0.5, 1.5], dtype=DTYPE) * torch.sin(
            3 * t * self.w0
        )


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3).to(DTYPE)
        self.second = self.first

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(y)))


class Conv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3, padding=1).to(DTYPE)
        self.norm = nn.GroupNorm(1, 2).to(DTYPE)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        time = t.expand(y.shape[0], 1, *y.shape[2:])
        return self.norm(torch.relu(self.conv(torch.cat([time, y], 1))))


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, 3, dtype=DTYPE))

    def forward(self, t: Tensor, y: Any) -> Any:
        return {"x": torch.tanh(self.w @ y["x"]) + y["z"][0].sum(), "z": (y["z"][0] * t, y["z"][1].sin() * y["x"][0])}


class Rotation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(1.3, dtype=DTYPE))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return 1j * self.w * y * y.abs() + y.conj()


class Hamiltonian(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.h = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1)).to(DTYPE)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        with torch.enable_grad():
            y = y if y.requires_grad else y.detach().requires_grad_()
            (g,) = torch.autograd.grad(self.h(y).sum(), y, create_graph=True)
        return torch.stack([g[1], -g[0]])


class Counting(MLP):
    nfe: int

    def __init__(self) -> None:
        super().__init__()
        self.nfe = 0

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        self.nfe += 1
        return self.net(y)


class Branching(MLP):
    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y) if y.sum() > 0 else -2 * y


class Printing(MLP):
    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        print("called")
        return self.net(y)


class Normalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(3, 3).to(DTYPE)
        self.norm = nn.BatchNorm1d(3).to(DTYPE)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.norm(self.lin(y))


class Dropping(MLP):
    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return nn.functional.dropout(self.net(y), 0.5, self.training)


class Double(torch.autograd.Function):
    """Forward y^2, backward (on purpose not its derivative) 7."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        return y * y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 7 * g


def state(*shape: int, seed: int = 0, dtype: torch.dtype = DTYPE) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def closure_leaf() -> Callable[..., Any]:
    w = torch.randn(2, 2, dtype=DTYPE, requires_grad=True)
    return lambda t, y: torch.tanh(w @ y)


def closure_non_leaf() -> Callable[..., Any]:
    w = torch.randn(2, 2, dtype=DTYPE, requires_grad=True)
    w2 = 2 * w
    return lambda t, y: torch.tanh(w2 @ y) * t


# The ways that run a graph made of f: compiled where every operator can be.
GRAPHS = ("native", "traced")


@dataclass(frozen=True)
class Case:
    make: Callable[[], Callable[..., Any]]
    y0: Any
    way: str
    params: int


CASES = {
    "mlp": Case(MLP, state(2), "graph", 6),
    "mlp batch": Case(MLP, state(5, 2), "graph", 6),
    "frozen": Case(lambda: MLP(frozen=True), state(2), "graph", 4),
    "pendulum": Case(Pendulum, state(2), "graph", 2),
    "in-place pendulum": Case(InPlacePendulum, state(2), "graph", 2),
    "forced": Case(Forced, state(2), "graph", 2),
    "shared": Case(Shared, state(4, 3), "graph", 2),
    "conv": Case(Conv, state(2, 2, 4, 4), "graph", 4),
    "nested": Case(Nested, {"x": state(3), "z": (state(2), state(2, 2))}, "graph", 1),
    "complex": Case(Rotation, state(3, dtype=torch.complex128), "graph", 1),
    "closure leaf": Case(closure_leaf, state(2), "graph", 1),
    "closure non-leaf": Case(closure_non_leaf, state(2), "graph", 1),
    "identity": Case(lambda: lambda t, y: y, state(2), "graph", 0),
    "constant": Case(lambda: lambda t, y: torch.ones(2, dtype=DTYPE), state(2), "graph", 0),
    "expanded": Case(lambda: lambda t, y: y.sum().expand(3), state(3), "graph", 0),
    "transposed": Case(lambda: lambda t, y: (y * y).t(), state(3, 3), "graph", 0),
    "bound method": Case(lambda: MLP().forward, state(2), "graph", 6),
    "hamiltonian": Case(Hamiltonian, state(2), "eager", 4),
    "counting": Case(Counting, state(2), "eager", 6),
    "branching": Case(Branching, state(2), "eager", 6),
    "printing": Case(Printing, state(2), "eager", 6),
}
