"""Networks: one linear, with a closed form, and one neural."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from pyjode.compare.problem import Problem, RightHandSide


def linear_network() -> Problem:
    """dy/dt = W y, 50 units, W a damped random rotation: exact by the matrix exponential."""
    units = 50
    draw = np.random.default_rng(2024).normal(size=(units, units)) / np.sqrt(2 * units)
    weights = (draw - draw.T) - 0.1 * np.eye(units)
    y0 = np.linspace(-1.0, 1.0, units)

    def make(xp: Any) -> RightHandSide:
        return lambda t, y, p: p[0] @ y

    def exact(ts: np.ndarray) -> np.ndarray:
        from scipy.linalg import expm

        return np.stack([expm(t * weights) @ y0 for t in ts])

    return Problem(
        "linear-network",
        make,
        y0,
        np.linspace(1.0, 10.0, 10),
        params=(weights,),
        source="a constant-coefficient system; weights by numpy's default_rng(2024)",
        exact=exact,
    )


def neural_network() -> Problem:
    """A tanh network 2-50-50-2 on 20 states at once, as in Chen et al.'s spiral."""
    draw = np.random.default_rng(2018)
    sizes = (2, 50, 50, 2)
    params: list[np.ndarray] = []
    for inputs, outputs in pairwise(sizes):
        bound = 1 / np.sqrt(inputs)
        params += [draw.uniform(-bound, bound, size=(outputs, inputs)), draw.uniform(-bound, bound, size=outputs)]

    def make(xp: Any) -> RightHandSide:
        def f(t: Any, y: Any, p: Any) -> Any:
            w1, b1, w2, b2, w3, b3 = p
            return xp.tanh(xp.tanh(y @ w1.T + b1) @ w2.T + b2) @ w3.T + b3

        return f

    return Problem(
        "neural-network",
        make,
        draw.normal(size=(20, 2)),
        np.linspace(0.5, 5.0, 10),
        params=tuple(params),
        source="Chen, Rubanova, Bettencourt, Duvenaud, NeurIPS (2018); weights as torch.nn.Linear draws them",
    )


PROBLEMS = {"linear-network": linear_network, "neural-network": neural_network}
