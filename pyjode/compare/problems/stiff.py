"""Stiff problems of Hairer and Wanner and of the Test Set for IVP Solvers, with its end values."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyjode.compare.problem import Problem, Published, RightHandSide

_HW = "Hairer, Wanner, Solving Ordinary Differential Equations II, 2nd ed. (1996), IV.10"
_TEST_SET = "Mazzia, Magherini, Test Set for IVP Solvers 2.4, University of Bari (2008)"


def robertson() -> Problem:
    """Robertson's reaction. Compared to t = 100, where most of the stiffness shows; the end value is at 1e11."""

    def make(xp: Any) -> RightHandSide:
        def f(t: Any, y: Any, p: Any) -> Any:
            r1, r2, r3 = p[0] * y[0], p[1] * y[1] * y[1], p[2] * y[1] * y[2]
            return xp.stack([r3 - r1, r1 - r2 - r3, r2])

        return f

    return Problem(
        "robertson",
        make,
        np.array([1.0, 0.0, 0.0]),
        np.linspace(10.0, 100.0, 10),
        params=tuple(map(np.array, (0.04, 3e7, 1e4))),
        stiff=True,
        atol=1e-4,
        source=f"Robertson (1966); {_HW}; end value: {_TEST_SET}, rober",
        published=Published(1e11, np.array([0.2083340149701255e-7, 0.8333360770334713e-13, 0.9999999791665050]), 1e-6),
    )


def hires() -> Problem:
    """High irradiance response of photomorphogenesis, 8 species (Schaefer 1975)."""
    rates = [1.71, 0.43, 8.32, 0.0007, 8.75, 10.03, 0.035, 1.12, 1.745, 280.0, 0.69, 1.81]

    def make(xp: Any) -> RightHandSide:
        def f(t: Any, y: Any, p: Any) -> Any:
            k = p[0]
            made = k[9] * y[5] * y[7] - k[11] * y[6]
            return xp.stack(
                [
                    -k[0] * y[0] + k[1] * y[1] + k[2] * y[2] + k[3],
                    k[0] * y[0] - k[4] * y[1],
                    -k[5] * y[2] + k[1] * y[3] + k[6] * y[4],
                    k[2] * y[1] + k[0] * y[2] - k[7] * y[3],
                    -k[8] * y[4] + k[1] * (y[5] + y[6]),
                    -k[9] * y[5] * y[7] + k[10] * y[3] + k[0] * y[4] - k[1] * y[5] + k[10] * y[6],
                    made,
                    -made,
                ]
            )

        return f

    y0 = np.zeros(8)
    y0[[0, 7]] = 1.0, 0.0057
    end = [
        0.7371312573325668e-3, 0.1442485726316185e-3, 0.5888729740967575e-4, 0.1175651343283149e-2,
        0.2386356198831331e-2, 0.6238968252742796e-2, 0.2849998395185769e-2, 0.2850001604814231e-2,
    ]  # fmt: skip
    return Problem(
        "hires",
        make,
        y0,
        np.array([1.0, 3.0, 10.0, 30.0, 100.0, 200.0, 321.8122]),
        params=(np.array(rates),),
        stiff=True,
        atol=1e-3,
        source=f"Schaefer, J. Math. Biol. 2 (1975); {_HW}; {_TEST_SET}, hires",
        published=Published(321.8122, np.array(end), 1e-7),
    )


def orego() -> Problem:
    """The Oregonator of the Belousov-Zhabotinskii reaction, over its first limit cycle."""

    def make(xp: Any) -> RightHandSide:
        def f(t: Any, y: Any, p: Any) -> Any:
            s, q, w = p
            return xp.stack(
                [s * (y[1] + y[0] * (1 - q * y[0] - y[1])), (y[2] - (1 + y[0]) * y[1]) / s, w * (y[0] - y[2])]
            )

        return f

    return Problem(
        "orego",
        make,
        np.array([1.0, 2.0, 3.0]),
        np.linspace(30.0, 360.0, 12),
        params=tuple(map(np.array, (77.27, 8.375e-6, 0.161))),
        stiff=True,
        source=f"Field, Noyes, J. Chem. Phys. 60 (1974); {_HW}; {_TEST_SET}, orego",
        published=Published(360.0, np.array([1.000814870318523, 1228.178521549917, 132.0554942846706]), 1e-6),
    )


def van_der_pol() -> Problem:
    """van der Pol's oscillator in slow time, mu = 1000 (epsilon = 1e-6): two jumps."""

    def make(xp: Any) -> RightHandSide:
        def f(t: Any, y: Any, p: Any) -> Any:
            return xp.stack([y[1], p[0] ** 2 * ((1 - y[0] ** 2) * y[1] - y[0])])

        return f

    return Problem(
        "van-der-pol",
        make,
        np.array([2.0, 0.0]),
        np.linspace(0.2, 2.0, 10),
        params=(np.array(1000.0),),
        stiff=True,
        source=f"{_HW}; the end value of {_TEST_SET}, vdpol, where t is 1000 times longer",
        published=Published(2.0, np.array([1.706167732170483, -0.8928097010247975]), 1e-6),
    )


def pollu() -> Problem:
    """The chemistry of an air pollution model, 25 reactions of 20 species, in ppm and minutes."""
    rates = [
        0.35, 26.6, 1.23e4, 8.6e-4, 8.2e-4, 1.5e4, 1.3e-4, 2.4e4, 1.65e4, 9e3, 0.022, 1.2e4, 1.88, 1.63e4, 4.8e6,
        3.5e-4, 0.0175, 1e8, 4.44e11, 1240.0, 2.1, 5.78, 0.0474, 1780.0, 3.12,
    ]  # fmt: skip
    # The two reactants of each reaction (a second one of -1: none), then each species' reactions: +made, -used.
    reactants = [
        (0, -1), (1, 3), (4, 1), (6, -1), (6, -1), (6, 5), (8, -1), (8, 5), (10, 1), (10, 0), (12, -1), (9, 1),
        (13, -1), (0, 5), (2, -1), (3, -1), (3, -1), (15, -1), (15, -1), (16, 5), (18, -1), (18, -1), (0, 3),
        (18, 0), (19, -1),
    ]  # fmt: skip
    terms = [
        (-1, -10, -14, -23, -24, 2, 3, 9, 11, 12, 22, 25), (-2, -3, -9, -12, 1, 21), (-15, 1, 17, 19, 22),
        (-2, -16, -17, -23, 15), (-3, 4, 4, 6, 7, 13, 20), (-6, -8, -14, -20, 3, 18, 18), (-4, -5, -6, 13),
        (4, 5, 6, 7), (-7, -8), (-12, 7, 9), (-9, -10, 8, 11), (9,), (-11, 10), (-13, 12), (14,), (-18, -19, 16),
        (-20,), (20,), (-21, -22, -24, 23, 25), (-25, 24),
    ]  # fmt: skip

    def make(xp: Any) -> RightHandSide:
        def f(t: Any, y: Any, p: Any) -> Any:
            k = p[0]
            r = [k[j] * y[a] if b < 0 else k[j] * y[a] * y[b] for j, (a, b) in enumerate(reactants)]
            rates_of = ([r[i - 1] if i > 0 else -r[-i - 1] for i in species] for species in terms)
            return xp.stack([sum(made[1:], start=made[0]) for made in rates_of])

        return f

    y0 = np.zeros(20)
    y0[[1, 3, 6, 7, 8, 16]] = 0.2, 0.04, 0.1, 0.3, 0.01, 0.007
    end = [
        0.5646255480022769e-01, 0.1342484130422339e00, 0.4139734331099427e-08, 0.5523140207484359e-02,
        0.2018977262302196e-06, 0.1464541863493966e-06, 0.7784249118997964e-01, 0.3245075353396018e00,
        0.7494013383880406e-02, 0.1622293157301561e-07, 0.1135863833257075e-07, 0.2230505975721359e-02,
        0.2087162882798630e-03, 0.1396921016840158e-04, 0.8964884856898295e-02, 0.4352846369330103e-17,
        0.6899219696263405e-02, 0.1007803037365946e-03, 0.1772146513969984e-05, 0.5682943292316392e-04,
    ]  # fmt: skip
    return Problem(
        "pollu",
        make,
        y0,
        np.array([0.1, 1.0, 5.0, 10.0, 20.0, 40.0, 60.0]),
        params=(np.array(rates),),
        stiff=True,
        atol=1e-6,
        source=f"Verwer, SIAM J. Sci. Comput. 15 (1994), 1243-1259; {_HW}; {_TEST_SET}, pollu",
        published=Published(60.0, np.array(end), 1e-7),
    )


PROBLEMS = {
    "robertson": robertson,
    "hires": hires,
    "orego": orego,
    "van-der-pol": van_der_pol,
    "pollu": pollu,
}
