"""Nonstiff problems that everyone knows."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyjode.compare.problem import Problem, Published, RightHandSide

_HNW = "Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I, 2nd ed. (1993)"


def pendulum() -> Problem:
    """The undamped pendulum from 2 rad at rest: exact by Jacobi's elliptic functions."""

    def make(xp: Any) -> RightHandSide:
        return lambda t, y, p: xp.stack([y[1], -(p[0] ** 2) * xp.sin(y[0])])

    def exact(ts: np.ndarray) -> np.ndarray:
        from scipy.special import ellipj, ellipk

        k = np.sin(2.0 / 2)
        sn, cn, _, _ = ellipj(ellipk(k**2) - ts, k**2)
        return np.stack([2 * np.arcsin(k * sn), -2 * k * cn], axis=1)

    return Problem(
        "pendulum",
        make,
        np.array([2.0, 0.0]),
        np.linspace(1.0, 20.0, 20),
        params=(np.array(1.0),),
        source="Whittaker, A Treatise on the Analytical Dynamics of Particles and Rigid Bodies (1937), 44",
        exact=exact,
    )


def lotka_volterra() -> Problem:
    """Predator and prey, about three periods."""

    def make(xp: Any) -> RightHandSide:
        def f(t: Any, y: Any, p: Any) -> Any:
            return xp.stack([(p[0] - p[1] * y[1]) * y[0], (p[3] * y[0] - p[2]) * y[1]])

        return f

    return Problem(
        "lotka-volterra",
        make,
        np.array([1.0, 1.0]),
        np.linspace(0.5, 10.0, 20),
        params=tuple(map(np.array, (1.5, 1.0, 3.0, 1.0))),
        source="Lotka, Elements of Physical Biology (1925); the numbers are DifferentialEquations.jl's",
    )


def lorenz() -> Problem:
    """Lorenz's convection cells, chaotic; short enough for a reference to mean something."""

    def make(xp: Any) -> RightHandSide:
        def f(t: Any, y: Any, p: Any) -> Any:
            sigma, r, b = p
            return xp.stack([sigma * (y[1] - y[0]), y[0] * (r - y[2]) - y[1], y[0] * y[1] - b * y[2]])

        return f

    return Problem(
        "lorenz",
        make,
        np.array([0.0, 1.0, 0.0]),
        np.linspace(0.5, 10.0, 20),
        params=tuple(map(np.array, (10.0, 28.0, 8.0 / 3.0))),
        source="Lorenz, J. Atmos. Sci. 20 (1963), 130-141",
    )


def pleiades() -> Problem:
    """Seven stars in a plane, with quasi-collisions; y = (x, y, x', y')."""
    masses = np.arange(1.0, 8.0)

    def make(xp: Any) -> RightHandSide:
        identity = xp.eye(7, dtype=xp.float64)

        def f(t: Any, y: Any, p: Any) -> Any:
            dx, dy = (q[None, :] - q[:, None] for q in (y[:7], y[7:14]))
            pull = p[0] / (dx**2 + dy**2 + identity) ** 1.5
            return xp.concatenate([y[14:], (pull * dx).sum(1), (pull * dy).sum(1)])

        return f

    y0 = np.zeros(28)
    y0[:14] = [3, 3, -1, -3, 2, -2, 2, 3, -3, 2, 0, 0, -4, 4]
    y0[[19, 20, 24, 25]] = [1.75, -1.5, -1.25, 1.0]
    end = [
        0.3706139143970502, 3.237284092057233, -3.222559032418324, 0.6597091455775310, 0.3425581707156584,
        1.562172101400631, -0.7003092922212495, -3.943437585517392, -3.271380973972550, 5.225081843456543,
        -2.590612434977470, 1.198213693392275, -0.2429682344935824, 1.091449240428980, 3.417003806314313,
        1.354584501625501, -2.590065597810775, 2.025053734714242, -1.155815100160448, -0.8072988170223021,
        0.5952396354208710, -3.741244961234010, 0.3773459685750630, 0.9386858869551073, 0.3667922227200571,
        -0.3474046353808490, 2.344915448180937, -1.947020434263292,
    ]  # fmt: skip
    return Problem(
        "pleiades",
        make,
        y0,
        np.linspace(0.3, 3.0, 10),
        params=(masses,),
        source=f"{_HNW}, II.10; end values: Mazzia, Magherini, Test Set for IVP Solvers 2.4 (2008), plei",
        published=Published(3.0, np.array(end), 1e-9),
    )


def arenstorf() -> Problem:
    """A closed orbit of the restricted three-body problem; one period ends where it starts."""

    def make(xp: Any) -> RightHandSide:
        def f(t: Any, y: Any, p: Any) -> Any:
            mu = p[0]
            earth, moon = y[0] + mu, y[0] - (1 - mu)
            d1, d2 = (earth**2 + y[1] ** 2) ** 1.5, (moon**2 + y[1] ** 2) ** 1.5
            return xp.stack(
                [
                    y[2],
                    y[3],
                    y[0] + 2 * y[3] - (1 - mu) * earth / d1 - mu * moon / d2,
                    y[1] - 2 * y[2] - (1 - mu) * y[1] / d1 - mu * y[1] / d2,
                ]
            )

        return f

    y0, period = np.array([0.994, 0.0, 0.0, -2.00158510637908252240537862224]), 17.0652165601579625588917206249
    return Problem(
        "arenstorf",
        make,
        y0,
        np.linspace(period / 10, period, 10),
        params=(np.array(0.012277471),),
        source=f"Arenstorf, Amer. J. Math. 85 (1963); {_HNW}, II.0 (0.1, 0.2)",
        published=Published(period, y0, 1e-5),  # errors grow a million times over one period
    )


PROBLEMS = {
    "pendulum": pendulum,
    "lotka-volterra": lotka_volterra,
    "lorenz": lorenz,
    "pleiades": pleiades,
    "arenstorf": arenstorf,
}
