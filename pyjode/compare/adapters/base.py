"""What a solver library must offer to be compared, and the list of those that do."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from pyjode.compare.problem import Problem
from pyjode.compare.reference import Loss
from pyjode.errors import InputError
from pyjode.methods import nearest


@dataclass(frozen=True)
class Outcome:
    """What one solve gave.

    Attributes:
        ys: states at the problem's times, shape ``(T, *y0.shape)``.
        gradient: of the loss by y0 and each parameter, as one vector; ``None`` for a forward solve.
        nfe: evaluations of f of the forward solve, where the library or a counter in f says.
        steps: accepted steps, where the library says.
    """

    ys: np.ndarray
    gradient: np.ndarray | None = None
    nfe: int | None = None
    steps: int | None = None


class Solver(ABC):
    """One library's method made ready for one problem."""

    @abstractmethod
    def solve(self, rtol: float, atol: float) -> Any:
        """Solve, and differentiate if it was prepared to. This is what is timed; it returns when the work is done.

        Raises:
            Exception: any, where the method fails; its message becomes the row's.
        """

    @abstractmethod
    def outcome(self, raw: Any) -> Outcome:
        """What ``solve`` returned, as numpy arrays. Not timed."""


class Adapter(ABC):
    """One solver library.

    To add a library: subclass, then ``pyjode.compare.register(MyAdapter())``.
    """

    name: ClassVar[str]
    """The library's name in tables."""
    package: ClassVar[str]
    """What must be importable; also the distribution's name for its version."""
    gradients: ClassVar[bool] = True
    """Whether it differentiates."""

    def unavailable(self) -> str | None:
        """Why the library cannot be used here, or ``None``."""
        if importlib.util.find_spec(self.package) is None:
            return f"not installed (pip install {self.package})"
        return None

    def version(self) -> str:
        """The library's version."""
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            return "unknown"

    @abstractmethod
    def methods(self, problem: Problem, gradient: bool) -> tuple[str, ...]:
        """The methods worth running on the problem when none are asked for."""

    @abstractmethod
    def prepare(self, problem: Problem, method: str, loss: Loss | None, limit_s: float) -> Solver:
        """A solver for the problem; with a loss one that differentiates it, too.

        Args:
            problem: what to solve.
            method: a name as in ``methods``.
            loss: differentiate this by y0 and the problem's parameters; ``None``: forward only.
            limit_s: seconds of its thread's processor time after which a solve should raise ``OutOfTime``, where the
                library lets it.

        Raises:
            UnsupportedError: the library cannot do it.
        """


class OutOfTime(Exception):
    """A solve took longer than it was allowed to."""

    def __init__(self, limit_s: float):
        super().__init__(f"stopped after {limit_s:g} s")


class Watched(nn.Module):
    """f that counts its calls and stops the solver that calls it when the time is over.

    Only for libraries that call f for each evaluation.
    """

    def __init__(self, module: nn.Module, limit_s: float):
        super().__init__()
        self.module = module
        self.limit_s = limit_s
        self.start()

    def start(self) -> None:
        """Set the counter and the clock to zero."""
        self.nfe = 0
        self._deadline = time.thread_time() + self.limit_s

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        self.nfe += 1
        if time.thread_time() > self._deadline:
            raise OutOfTime(self.limit_s)
        return self.module(t, y)


class TorchSolver(Solver):
    """A solver of a library of torch's: the loss and its gradient are torch's."""

    def __init__(self, problem: Problem, loss: Loss | None):
        self.module = problem.in_torch()
        self.loss = loss
        self.y0 = torch.tensor(problem.y0, requires_grad=loss is not None)
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        self.variables = [self.y0, *parameters] if loss is not None else []
        if loss is None:
            self.module.requires_grad_(False)
        self.ts = torch.tensor(problem.ts, dtype=self.y0.dtype)
        self.t0, self.t1 = problem.t0, problem.t1

    @abstractmethod
    def states(self, rtol: float, atol: float) -> tuple[Tensor, Any]:
        """States at the problem's times, shape ``(T, *y0.shape)``, and whatever ``work`` reads its counts from."""

    @abstractmethod
    def work(self, info: Any) -> tuple[int | None, int | None]:
        """Evaluations of f and accepted steps of the forward solve."""

    def solve(self, rtol: float, atol: float) -> Any:
        ys, info = self.states(rtol, atol)
        if self.loss is None:
            return ys, None, info
        return ys, torch.autograd.grad(self.loss.torch(ys), self.variables, materialize_grads=True), info

    def outcome(self, raw: Any) -> Outcome:
        ys, gradients, info = raw
        gradient = None if gradients is None else np.concatenate([g.numpy().reshape(-1) for g in gradients])
        return Outcome(ys.detach().numpy(), gradient, *self.work(info))


def split_method(method: str) -> tuple[str, str | None]:
    """``"dopri5+adjoint"`` as ``("dopri5", "adjoint")``."""
    name, _, rest = method.partition("+")
    return name, rest or None


_ADAPTERS: dict[str, Adapter] = {}


def register(adapter: Adapter) -> None:
    """Let ``compare`` know a library; one of the same name is replaced."""
    _ADAPTERS[adapter.name] = adapter


def adapters() -> dict[str, Adapter]:
    """The libraries known, by name."""
    return dict(_ADAPTERS)


def find_adapter(name: str) -> Adapter:
    """The library of that name.

    Raises:
        InputError: none; the message names those there are.
    """
    if name not in _ADAPTERS:
        raise InputError(f"There is no library {name!r}{nearest(name, _ADAPTERS)} There are {', '.join(_ADAPTERS)}.")
    return _ADAPTERS[name]
