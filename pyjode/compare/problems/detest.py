"""The nonstiff DETEST problems, classes A to E, from t = 0 to 20.

Hull, Enright, Fellen, Sedgwick, "Comparing numerical methods for ordinary differential equations", SIAM J. Numer. Anal.
9 (1972), 603-637, in the form, and with the end values, of Enright, Pryce, "Two FORTRAN packages for assessing initial
value methods", ACM Trans. Math. Softw. 13 (1987), 1-27 (Algorithm 648).

A: single equations. B: small systems. C: moderate systems. D: orbits of eccentricity 0.1 to 0.9. E: higher order.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from pyjode.compare.problem import Problem, Published, RightHandSide

_SOURCE = "Hull, Enright, Fellen, Sedgwick, SIAM J. Numer. Anal. 9 (1972); Enright, Pryce, ACM TOMS 13 (1987)"
_TS = np.linspace(2.0, 20.0, 10)

_Field = Callable[[Any, Any, Any], list[Any]]
"""From an array module, t and y to the components of f."""


def _small(
    name: str, f: _Field, y0: list[float], end: list[float], exact: Callable[[np.ndarray], list[np.ndarray]] | None
) -> Problem:
    def make(xp: Any) -> RightHandSide:
        return lambda t, y, p: xp.stack(f(xp, t, y))

    return Problem(
        name,
        make,
        np.array(y0),
        _TS,
        source=f"{_SOURCE}, {name}",
        exact=None if exact is None else (lambda ts: np.stack(exact(ts), axis=1)),
        published=Published(20.0, np.array(end), 1e-8),
    )


def _matrix(name: str, matrix: np.ndarray, end: list[float]) -> Problem:
    def make(xp: Any) -> RightHandSide:
        a = xp.asarray(matrix)
        return lambda t, y, p: a @ y

    def exact(ts: np.ndarray) -> np.ndarray:
        from scipy.linalg import expm

        return np.stack([expm(t * matrix)[:, 0] for t in ts])

    y0 = np.zeros(len(matrix))
    y0[0] = 1.0
    return Problem(
        name, make, y0, _TS, source=f"{_SOURCE}, {name}", exact=exact, published=Published(20.0, np.array(end), 1e-8)
    )


def _c1() -> Problem:
    end = [
        2.061153622240064e-09, 4.122307244619555e-08, 4.122307244716968e-07, 2.748204829855288e-06,
        1.374102414941961e-05, 5.496409659803266e-05, 1.832136553274552e-04, 5.234675866508716e-04,
        1.308668966628220e-03, 9.979127409508656e-01,
    ]  # fmt: skip
    return _matrix("C1", np.diag([-1.0] * 9 + [0.0]) + np.diag([1.0] * 9, -1), end)


def _c2() -> Problem:
    end = [
        2.061153577984930e-09, 2.061153573736588e-09, 2.061153569488245e-09, 2.061153565239902e-09,
        2.061153560991560e-09, 2.061153556743217e-09, 2.061153552494874e-09, 2.061153548246532e-09,
        2.061153543998189e-09, 9.999999814496180e-01,
    ]  # fmt: skip
    rates = np.arange(1.0, 10.0)
    return _matrix("C2", np.diag([*-rates, 0.0]) + np.diag(rates, -1), end)


def _heat(n: int) -> np.ndarray:
    return np.diag([-2.0] * n) + np.diag([1.0] * (n - 1), 1) + np.diag([1.0] * (n - 1), -1)


def _c3() -> Problem:
    end = [
        2.948119211022058e-03, 5.635380154844266e-03, 7.829072515926013e-03, 9.348257908594937e-03,
        1.007943610301970e-02, 9.982674171429909e-03, 9.088693332766085e-03, 7.489115195185912e-03,
        5.322964130953349e-03, 2.762434379029886e-03,
    ]  # fmt: skip
    return _matrix("C3", _heat(10), end)


def _c4() -> Problem:
    end = [
        3.124111453721466e-03, 6.015416842150318e-03, 8.470021834842650e-03, 1.033682931733337e-02,
        1.153249572873923e-02, 1.204549525737964e-02, 1.192957068015293e-02, 1.128883207111195e-02,
        1.025804501391024e-02, 8.982017581934167e-03, 7.597500902492453e-03, 6.219920556824985e-03,
        4.935916341009131e-03, 3.801432544256119e-03, 2.844213677587894e-03, 2.069123394222672e-03,
        1.464687282843915e-03, 1.009545263941126e-03, 6.779354330227017e-04, 4.437815269118510e-04,
        2.833264542938954e-04, 1.765005798796805e-04, 1.073342592697238e-04, 6.374497601777217e-05,
        3.698645309704183e-05, 2.097466832643746e-05, 1.162956710412555e-05, 6.306710405783322e-06,
        3.346286430868515e-06, 1.737760074184334e-06, 8.835366904275847e-07, 4.399520411127637e-07,
        2.146181897152360e-07, 1.025981211654928e-07, 4.807864068784215e-08, 2.209175152474847e-08,
        9.956251263138180e-09, 4.402193653748924e-09, 1.910149382204028e-09, 8.135892921473050e-10,
        3.402477118549235e-10, 1.397485617545782e-10, 5.638575303049199e-11, 2.235459707956947e-11,
        8.710498036398032e-12, 3.336554275346643e-12, 1.256679567784939e-12, 4.654359053128788e-13,
        1.693559145599857e-13, 5.996593816663054e-14, 1.891330702629865e-14,
    ]  # fmt: skip
    return _matrix("C4", _heat(51), end)


def _c5() -> Problem:
    """Sun and five outer planets; positions, then velocities, planet by planet; AU, 100 days, solar masses."""
    gravity, sun = 2.95912208286, 1.00000597682
    masses = np.array([0.954786104043e-3, 0.285583733151e-3, 0.437273164546e-4, 0.517759138449e-4, 0.277777777778e-5])

    def make(xp: Any) -> RightHandSide:
        m, identity = xp.asarray(masses), xp.eye(5, dtype=xp.float64)

        def f(t: Any, y: Any, p: Any) -> Any:
            x = y[:15].reshape(5, 3)
            away = x[None, :, :] - x[:, None, :]
            near = (away**2).sum(2) + identity
            to_sun = (x**2).sum(1) ** 1.5
            pulled = (m / near**1.5)[:, :, None] * away
            # Indirect term: the sun, the origin, is pulled by the other planets.
            shared = (m / to_sun)[:, None] * x
            others = pulled.sum(1) - (shared.sum(0)[None, :] - shared)
            acceleration = gravity * (others - ((sun + m) / to_sun)[:, None] * x)
            return xp.concatenate([y[15:], acceleration.reshape(15)])

        return f

    y0 = [
        3.42947415189, 3.35386959711, 1.35494901715, 6.64145542550, 5.97156957878, 2.18231499728, 11.2630437207,
        14.6952576794, 6.27960525067, -30.1552268759, 1.65699966404, 1.43785752721, -21.1238353380, 28.4465098142,
        15.3882659679, -0.557160570446, 0.505696783289, 0.230578543901, -0.415570776342, 0.365682722812,
        0.169143213293, -0.325325669158, 0.189706021964, 0.0877265322780, -0.0240476254170, -0.287659532608,
        -0.117219543175, -0.176860753121, -0.216393453025, -0.0148647893090,
    ]  # fmt: skip
    end = [
        -4.792730224323733, -2.420550725448973, -9.212509306014886e-01, -4.217310404035213, 7.356202947498970,
        3.223785985421212, 4.035559443262270, 17.19865528670555, 7.478910794233703, -29.98759326324844,
        -4.107310937550929, -9.277008321754407e-01, -24.42125302518482, 23.81459045746554, 14.92096306951359,
        3.499208963063806e-01, -5.748487687912825e-01, -2.551694020879149e-01, -5.237040978903326e-01,
        -2.493000463579661e-01, -8.045341642044464e-02, -3.875289237334110e-01, 5.648603288767891e-02,
        3.023606472143342e-02, 4.133856546712445e-02, -2.862393029841379e-01, -1.183032405136207e-01,
        -1.511986457359206e-01, -2.460068894318766e-01, -3.189687411323877e-02,
    ]  # fmt: skip
    return Problem(
        "C5", make, np.array(y0), _TS, source=f"{_SOURCE}, C5", published=Published(20.0, np.array(end), 1e-8)
    )


def _orbit(number: int) -> Problem:
    eccentricity = 0.2 * number - 0.1
    end = {
        1: [2.198835352008397e-01, 9.427076846341813e-01, -9.787659841058176e-01, 3.287977990962036e-01],
        2: [-1.777027357140412e-01, 9.467784719905892e-01, -1.030294163192969e00, 1.211074890053952e-01],
        3: [-5.780432953035361e-01, 8.633840009194193e-01, -9.595083730380727e-01, -6.504915126712089e-02],
        4: [-9.538990293416394e-01, 6.907409024219432e-01, -8.212674270877433e-01, -1.539574259125825e-01],
        5: [-1.295266250987574e00, 4.003938963792321e-01, -6.775390924707566e-01, -1.270838154278686e-01],
    }[number]

    def f(xp: Any, t: Any, y: Any) -> list[Any]:
        r3 = (y[0] ** 2 + y[1] ** 2) ** 1.5
        return [y[2], y[3], -y[0] / r3, -y[1] / r3]

    def exact(ts: np.ndarray) -> list[np.ndarray]:
        e, anomaly = eccentricity, ts.copy()
        for _ in range(100):  # Kepler's equation by Newton's method, damped where the orbit is near the sun
            step = (anomaly - e * np.sin(anomaly) - ts) / (1 - e * np.cos(anomaly))
            anomaly -= np.clip(step, -0.5, 0.5)
        c, s, root = np.cos(anomaly), np.sin(anomaly), np.sqrt(1 - e**2)
        return [c - e, root * s, -s / (1 - e * c), root * c / (1 - e * c)]

    y0 = [1 - eccentricity, 0.0, 0.0, np.sqrt((1 + eccentricity) / (1 - eccentricity))]
    return _small(f"D{number}", f, y0, end, exact)


def _e1() -> Problem:
    """Bessel's equation of order 1/2, shifted."""

    def f(xp: Any, t: Any, y: Any) -> list[Any]:
        return [y[1], -(y[1] / (t + 1) + (1 - 0.25 / (t + 1) ** 2) * y[0])]

    def exact(ts: np.ndarray) -> list[np.ndarray]:
        x = ts + 1
        bessel = np.sqrt(2 / (np.pi * x)) * np.sin(x)
        return [bessel, np.sqrt(2 / (np.pi * x)) * np.cos(x) - bessel / (2 * x)]

    y0 = [float(v[0]) for v in exact(np.zeros(1))]
    return _small("E1", f, y0, [1.456723600728308e-01, -9.883500195574063e-02], exact)


# Name: f, y0, published end, closed form where there is one.
_SMALL: dict[str, tuple[_Field, list[float], list[float], Callable[[np.ndarray], list[np.ndarray]] | None]] = {
    "A1": (lambda xp, t, y: [-y[0]], [1.0], [2.061153353012535e-09], lambda t: [np.exp(-t)]),
    "A2": (lambda xp, t, y: [-0.5 * y[0] ** 3], [1.0], [2.182178902359887e-01], lambda t: [(1 + t) ** -0.5]),
    "A3": (lambda xp, t, y: [y[0] * xp.cos(t)], [1.0], [2.491650271850414], lambda t: [np.exp(np.sin(t))]),
    "A4": (
        lambda xp, t, y: [y[0] / 4 * (1 - y[0] / 20)],
        [1.0],
        [17.73016648131483],
        lambda t: [20 / (1 + 19 * np.exp(-t / 4))],
    ),
    "A5": (lambda xp, t, y: [(y[0] - t) / (y[0] + t)], [4.0], [-7.887826688964196e-01], None),
    "B1": (
        lambda xp, t, y: [2 * (y[0] - y[0] * y[1]), -(y[1] - y[0] * y[1])],
        [1.0, 3.0],
        [6.761876008576667e-01, 1.860816099640036e-01],
        None,
    ),
    "B2": (
        lambda xp, t, y: [-y[0] + y[1], y[0] - 2 * y[1] + y[2], y[1] - y[2]],
        [2.0, 0.0, 1.0],
        [1.000000001030576, 1.0, 9.999999989694235e-01],
        lambda t: [
            1 + np.exp(-t) / 2 + np.exp(-3 * t) / 2,
            1 - np.exp(-3 * t),
            1 - np.exp(-t) / 2 + np.exp(-3 * t) / 2,
        ],
    ),
    "B3": (
        lambda xp, t, y: [-y[0], y[0] - y[1] ** 2, y[1] ** 2],
        [1.0, 0.0, 0.0],
        [2.061153488557776e-09, 5.257228022048349e-02, 9.474277177183630e-01],
        None,
    ),
    "B4": (
        lambda xp, t, y: [
            -y[1] - y[0] * y[2] / xp.sqrt(y[0] ** 2 + y[1] ** 2),
            y[0] - y[1] * y[2] / xp.sqrt(y[0] ** 2 + y[1] ** 2),
            y[0] / xp.sqrt(y[0] ** 2 + y[1] ** 2),
        ],
        [3.0, 0.0, 0.0],
        [9.826950928005993e-01, 2.198447081694832, 9.129452507276399e-01],
        None,
    ),
    "B5": (
        lambda xp, t, y: [y[1] * y[2], -y[0] * y[2], -0.51 * y[0] * y[1]],
        [0.0, 1.0, 1.0],
        [-9.396570798729192e-01, -3.421177754000779e-01, 7.414126596199957e-01],
        lambda t: _elliptic(t),
    ),
    "E2": (
        lambda xp, t, y: [y[1], (1 - y[0] ** 2) * y[1] - y[0]],
        [2.0, 0.0],
        [2.008149762174948, -4.250887527320057e-02],
        None,
    ),
    "E3": (
        lambda xp, t, y: [y[1], y[0] ** 3 / 6 - y[0] + 2 * xp.sin(2.78535 * t)],
        [0.0, 0.0],
        [-1.004178858647128e-01, 2.411400132095954e-01],
        None,
    ),
    "E4": (
        lambda xp, t, y: [y[1], 0.032 - 0.4 * y[1] ** 2],
        [30.0, 0.0],
        [33.95091444646555, 2.767822659672869e-01],
        lambda t: [30 + 2.5 * np.log(np.cosh(np.sqrt(0.0128) * t)), np.sqrt(0.08) * np.tanh(np.sqrt(0.0128) * t)],
    ),
    "E5": (
        lambda xp, t, y: [y[1], xp.sqrt(1 + y[1] ** 2) / (25 - t)],
        [0.0, 0.0],
        [14.11797390542629, 2.400000000000002],
        None,
    ),
}


def _elliptic(t: np.ndarray) -> list[np.ndarray]:
    from scipy.special import ellipj

    sn, cn, dn, _ = ellipj(t, 0.51)
    return [sn, cn, dn]


PROBLEMS: dict[str, Callable[[], Problem]] = {name: partial(_small, name, *rest) for name, rest in _SMALL.items()}
PROBLEMS |= {"C1": _c1, "C2": _c2, "C3": _c3, "C4": _c4, "C5": _c5, "E1": _e1}
PROBLEMS |= {f"D{i}": partial(_orbit, i) for i in range(1, 6)}
PROBLEMS = dict(sorted(PROBLEMS.items()))
