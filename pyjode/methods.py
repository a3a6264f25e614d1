"""The solvers by name: every plain first-order ODE algorithm of OrdinaryDiffEq.jl v7, and torchdiffeq's names.

``methods()`` lists them, ``find_method(name)`` finds one. Orders, step control and constructors were read from the
sources of the sub-packages of OrdinaryDiffEq 7.1 and are checked against a running Julia in the tests.

Kinds:
    explicit       explicit Runge-Kutta, for non-stiff problems
    stabilized     explicit with a long real stability interval: mildly stiff, parabolic problems, no Jacobian
    stiff          implicit, Rosenbrock, BDF: stiff problems; they take a Jacobian and solve linear systems
    multistep      Adams methods, non-stiff: few evaluations of f a step
    extrapolation  explicit extrapolation, non-stiff, for tight tolerances
    auto           starts non-stiff and changes to a stiff method where the problem turns stiff

Left out, and why:
    SplitEuler, SBDF*, IMEXEuler*, ARS*, IMEXSSP*, BHR553, CNAB2, CNLF2, IRKC, multirate: want f split in two parts.
    Exponential, Magnus, Lie and RKIP methods: want a linear operator.
    Symplectic, Runge-Kutta-Nystroem and Newmark methods: second-order equations.
    DFBDF, DABDF2, DImplicitEuler, Tsit5DA, HybridExplicitImplicitRK: differential-algebraic equations.
    Taylor methods: push Taylor numbers through f, which torch code cannot take.
    SIMDRK: only for immutable states. FunctionMap: a map, no ODE. AMF: wants the operator's factors.
    ExplicitRK, JVODE: want an argument; what they are used for has its own name below.
    pRRK22, pRRK33, pRRK54: without their argument kappa they are SSPRK22, SSPRK33 and SSPRK54.
    DefaultImplicitODEAlgorithm: DefaultODEAlgorithm that may not leave its stiff half.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from pyjode.errors import InputError
from pyjode.hash_once import hash_once

Kind = Literal["explicit", "stabilized", "stiff", "multistep", "extrapolation", "auto"]
KINDS: tuple[Kind, ...] = ("explicit", "stabilized", "stiff", "multistep", "extrapolation", "auto")
ENGINES = ("julia", "torchdiffeq")


@hash_once
@dataclass(frozen=True)
class Method:
    """One solver.

    Attributes:
        name: the name to pass as ``method``.
        kind: one of ``KINDS``.
        order: order of accuracy; ``None`` where it varies during the solve.
        adaptive: step size control by default. Without it ``dt`` (or ``step_size``, or the save points) sets the steps.
        engines: engines that run it.
        julia_package: Julia packages to load, separated by a space.
        julia_expr: Julia expression that makes the algorithm.
        interpolation: degree of the dense output between two steps; ``None`` where it varies with the order. Below
            ``order - 1`` the values between steps are less accurate than those at the steps, and no tolerance
            controls that: see ``rough_output``.
        stiff_interpolation: the dense output is made for stiff solutions (it does not overshoot after a jump).
        description: what it is, in a line.
        citation: where it comes from.
        torchdiffeq_name: what the embedded engine runs for it.
        note: for torchdiffeq's names: exactly what Julia runs, and how that differs.
    """

    name: str
    kind: Kind
    order: int | None
    adaptive: bool
    engines: tuple[str, ...]
    julia_package: str
    julia_expr: str
    interpolation: int | None
    stiff_interpolation: bool
    description: str
    citation: str
    torchdiffeq_name: str | None = None
    note: str = ""

    @property
    def has_pi_controller(self) -> bool:
        """Whether Julia's step size controller is a PI one, and can be an integral one as well."""
        tuned = self.julia_package == "OrdinaryDiffEqLowStorageRK"  # controllers fitted to each of these methods
        return self.kind == "explicit" and self.adaptive and not tuned

    @property
    def stiff(self) -> bool:
        """Whether it can meet a stiff problem, and so wants a Jacobian: kinds "stiff" and "auto"."""
        return self.kind in ("stiff", "auto")

    @property
    def rough_output(self) -> bool:
        """Whether a non-stiff method's values between steps are worse than at its steps.

        A dense output of degree q is off by O(h^(q+1)). Save points of such a method should be steps (``tstops``).
        """
        if self.kind not in ("explicit", "multistep", "extrapolation"):
            return False
        return self.order is None or self.interpolation is None or self.interpolation + 1 < self.order


class MethodTable(list[Method]):
    """A list of methods that prints as a table."""

    def __repr__(self) -> str:
        head = ("name", "kind", "order", "steps", "engines", "")
        rows = [head]
        for m in self:
            order = "varies" if m.order is None else str(m.order)
            steps = "adaptive" if m.adaptive else "fixed"
            rows.append((m.name, m.kind, order, steps, ", ".join(m.engines), m.description))
        widths = [max(len(row[i]) for row in rows) for i in range(len(head) - 1)]
        columns = (zip(row, [*widths, 0], strict=True) for row in rows)
        lines = ["  ".join(cell.ljust(width) for cell, width in line).rstrip() for line in columns]
        return "\n".join([*lines, f"({len(self)} methods)"])

    __str__ = __repr__


def methods(kind: str | None = None, engine: str | None = None, adaptive: bool | None = None) -> MethodTable:
    """The methods there are; prints as a table.

    Args:
        kind: only this kind, one of ``KINDS``.
        engine: only what this engine runs, ``"julia"`` or ``"torchdiffeq"``.
        adaptive: only methods with (``True``) or without (``False``) step size control.

    Raises:
        InputError: kind or engine is none there is.
    """
    if kind is not None and kind not in KINDS:
        raise InputError(f"kind={kind!r} is no kind of method; it is one of {', '.join(KINDS)}.")
    if engine is not None and engine not in ENGINES:
        raise InputError(f"engine={engine!r} is no engine; it is one of {', '.join(ENGINES)}.")
    return MethodTable(
        m
        for m in _METHODS.values()
        if (kind is None or m.kind == kind)
        and (engine is None or engine in m.engines)
        and (adaptive is None or m.adaptive == adaptive)
    )


def find_method(name: Any) -> Method:
    """The method of that name.

    Args:
        name: a string, or a ``Method``, which comes back as it is.

    Raises:
        InputError: no such method; the message names the nearest. Or no name at all.
    """
    if isinstance(name, Method):
        return name
    if not isinstance(name, str):
        raise InputError(f"method must be the name of a method, e.g. 'Tsit5', not {type(name).__name__}.")
    if name in _METHODS:
        return _METHODS[name]
    raise InputError(f"There is no method {name!r}{nearest(name, _METHODS)} pyjode.methods() lists all.")


def nearest(name: str, names: Iterable[str]) -> str:
    """``"; did you mean 'Rodas5P'?"`` for what a user mistyped, else ``"."``; upper and lower case are the same."""
    spelled: dict[str, str] = {}
    for n in names:
        spelled.setdefault(n.lower(), n)
    wanted = name.strip().removesuffix("()").lower()
    close = [wanted] if wanted in spelled else difflib.get_close_matches(wanted, spelled, n=3)
    return f"; did you mean {' or '.join(repr(spelled[c]) for c in close)}?" if close else "."


# Each line: name | order ("-" varies) | steps (A adaptive, F fixed) | degree of dense output | what it is | source.
# "=" as the source repeats the line above's.

_TSIT5 = """
Tsit5 | 5 | A | 4 | first choice for non-stiff problems | Tsitouras, Comput. Math. Appl. 62 (2011)
"""

# Not RKV76IIa: in place, OrdinaryDiffEqVerner 2's gives NaN with fixed steps and is off by 1e-3 at a tolerance of 1e-6.
_VERNER = """
Vern6 | 6 | A | 6 | tight tolerances, 6(5) pair | Verner, Numer. Algorithms 53 (2010)
Vern7 | 7 | A | 7 | tight tolerances, 7(6) pair | =
Vern8 | 8 | A | 8 | tight tolerances, 8(7) pair | =
Vern9 | 9 | A | 9 | very tight tolerances, 9(8) pair | =
"""

_LOW_ORDER = """
Euler | 1 | F | 3 | forward Euler | Hairer, Norsett, Wanner, Solving ODEs I (1993)
Heun | 2 | A | 3 | Heun's second-order method, Euler embedded | =
Ralston | 2 | A | 3 | Ralston's second-order method, Euler embedded | =
Midpoint | 2 | A | 3 | explicit midpoint rule, Euler embedded | =
RK4 | 4 | A | 3 | the classical method; steps by a residual estimate | Shampine, Appl. Numer. Math. 52 (2005)
BS3 | 3 | A | 3 | loose tolerances, 3(2) pair | Bogacki, Shampine, Appl. Math. Lett. 2 (1989)
OwrenZen3 | 3 | A | 3 | 3(2) pair made for its dense output | Owren, Zennaro, SIAM J. Sci. Stat. Comput. 13 (1992)
OwrenZen4 | 4 | A | 4 | 4(3) pair made for its dense output | =
OwrenZen5 | 5 | A | 5 | 5(4) pair made for its dense output | =
DP5 | 5 | A | 4 | Dormand-Prince 5(4), MATLAB's ode45 | Dormand, Prince, J. Comput. Appl. Math. 6 (1980)
Anas5 | 5 | F | 3 | periodic problems of frequency 1 | Anastassi, Simos, J. Comput. Appl. Math. 175 (2005)
RKO65 | 5 | F | 3 | Runge-Kutta-Oliver, six stages | Tsitouras, Appl. Math. Comput. 354 (2019)
FRK65 | 6 | A | 3 | 6(5) pair for periodic problems | Medvedev, Simos, Tsitouras, Math. Methods Appl. Sci. 41 (2018)
RKM | 4 | F | 3 | pseudospectral hyperbolic problems | Mead, Renaut, J. Comput. Phys. 152 (1999)
Ralston4 | 4 | F | 3 | four stages, least truncation error | Ralston, Math. Comp. 16 (1962)
MSRK5 | 5 | F | 3 | fifth order | Stepanov, arXiv:2202.08443
MSRK6 | 6 | F | 3 | sixth order | =
PSRK4p7q6 | 4 | F | 3 | pseudo-symplectic of order 7, six stages | Aubry, Chartier, BIT 38 (1998)
PSRK3p5q4 | 3 | F | 3 | pseudo-symplectic of order 5, four stages | =
PSRK3p6q5 | 3 | F | 3 | pseudo-symplectic of order 6, five stages | =
Stepanov5 | 5 | A | 3 | 5(4) pair | Stepanov, arXiv:2108.12590
SIR54 | 5 | A | 3 | 5(4) pair for epidemic models | Kovalnogov, Simos, Tsitouras, Math. Methods Appl. Sci. (2020)
Alshina2 | 2 | A | 3 | two stages, best parameters | Alshina, Zaks, Kalitkin, Comput. Math. Math. Phys. 48 (2008)
Alshina3 | 3 | A | 3 | three stages, best parameters | =
Alshina6 | 6 | F | 3 | seven stages, best parameters | =
"""

_BS5 = """
BS5 | 5 | A | 5 | 5(4) pair, two error estimates | Bogacki, Shampine, Comput. Math. Appl. 32 (1996)
"""

_HIGH_ORDER = """
DP8 | 8 | A | 7 | Hairer's DOP853, 8(5,3) | Hairer, Norsett, Wanner, Solving ODEs I (1993)
TanYam7 | 7 | A | 3 | 7(6) pair | Tanaka, Muramatsu, Yamashita, IPSJ 33 (1992)
TsitPap8 | 8 | A | 3 | 8(7) pair | Tsitouras, Papakostas, SIAM J. Sci. Comput. 20 (1999)
PFRK87 | 8 | A | 3 | 8(7) pair for periodic problems | Tsitouras, Famelis, Simos, J. Comput. Appl. Math. 321 (2017)
"""

_FEAGIN = """
Feagin10 | 10 | A | 3 | tenth order, for tolerances near round-off | Feagin, Neural Parallel Sci. Comput. 20 (2012)
Feagin12 | 12 | A | 3 | twelfth order | =
Feagin14 | 14 | A | 3 | fourteenth order | Feagin, Numer. Algorithms (2009)
"""

_QPRK = """
QPRK98 | 9 | A | 3 | 9(8) pair made for quadruple precision | Kovalnogov et al., Numer. Algorithms (2023)
"""

_PRK = """
KuttaPRK2p5 | 5 | F | 3 | fifth order, made for two processors | Jackson, Norsett, SIAM J. Numer. Anal. 32 (1995)
"""

# Strong stability preserving: each step is a convex combination of Euler steps.
_SSPRK = """
SSPRK22 | 2 | F | 2 | SSP, 2 stages | Shu, Osher, J. Comput. Phys. 77 (1988)
SSPRK33 | 3 | F | 2 | SSP, 3 stages | =
SSPRK53 | 3 | F | 3 | SSP, 5 stages | Ruuth, Math. Comp. 75 (2006)
SSPRK63 | 3 | F | 3 | SSP, 6 stages | =
SSPRK73 | 3 | F | 3 | SSP, 7 stages | =
SSPRK83 | 3 | F | 3 | SSP, 8 stages | =
SSPRK54 | 4 | F | 3 | SSP, 5 stages | =
SSPRK104 | 4 | F | 3 | SSP, 10 stages | Ketcheson, SIAM J. Sci. Comput. 30 (2008)
SSPRK53_2N1 | 3 | F | 3 | SSP, 5 stages, low storage | Higueras, Roldan, arXiv:1809.04807
SSPRK53_2N2 | 3 | F | 3 | SSP, 5 stages, low storage | =
SSPRK53_H | 3 | F | 3 | SSP, 5 stages, low storage | =
SSPRK43 | 3 | A | 2 | SSP, 4 stages, the SSP method to try first | Conde, Fekete, Shadid, arXiv:1806.08693
SSPRK432 | 3 | A | 2 | SSP, 4 stages | Gottlieb, Ketcheson, Shu, SSP Time Discretizations (2011)
SSPRK932 | 3 | A | 3 | SSP, 9 stages | =
KYKSSPRK42 | 2 | F | 3 | SSP for discontinuous Galerkin | Kubatko, Yeager, Ketcheson, J. Sci. Comput. 60 (2014)
KYK2014DGSSPRK_3S2 | 2 | F | 3 | SSP for discontinuous Galerkin, 3 stages | =
"""

# No error estimate, although Julia types them as adaptive.
_SSP_MULTISTEP = """
SSPRKMSVS32 | 2 | F | 3 | SSP, three-step | Shu, SIAM J. Sci. Stat. Comput. 9 (1988)
SSPRKMSVS43 | 3 | F | 3 | SSP, four-step | =
"""

# Low storage: two to five registers the size of the state, for very large states.
_LOW_STORAGE = """
ORK256 | 2 | F | 3 | low storage, waves | Bernardini, Pirozzoli, J. Comput. Phys. 228 (2009)
CarpenterKennedy2N54 | 4 | F | 3 | low storage, 5 stages | Carpenter, Kennedy, NASA TM-109112 (1994)
SHLDDRK64 | 4 | F | 3 | low storage, acoustics | Stanescu, Habashi, J. Comput. Phys. 143 (1998)
SHLDDRK_2N | 4 | F | 3 | low storage, acoustics | =
SHLDDRK52 | 2 | F | 3 | low storage, acoustics | =
DGLDDRK73_C | 3 | F | 3 | low storage, discontinuous Galerkin | Toulorge, Desmet, J. Comput. Phys. 231 (2012)
DGLDDRK84_C | 4 | F | 3 | low storage, discontinuous Galerkin | =
DGLDDRK84_F | 4 | F | 3 | low storage, discontinuous Galerkin | =
NDBLSRK124 | 4 | F | 3 | low storage, advection, 12 stages | Niegemann, Diehl, Busch, J. Comput. Phys. 231 (2012)
NDBLSRK134 | 4 | F | 3 | low storage, advection, 13 stages | =
NDBLSRK144 | 4 | F | 3 | low storage, advection, 14 stages | =
CFRLDDRK64 | 4 | F | 3 | low storage, acoustics | Calvo, Franco, Randez, J. Comput. Phys. 201 (2004)
TSLDDRK74 | 4 | F | 3 | low storage, acoustics | Tselios, Simos, J. Comput. Appl. Math. 175 (2005)
RK46NL | 4 | F | 3 | low storage, acoustics, 6 stages | Berland, Bogey, Bailly, Comput. Fluids 35 (2006)
CKLLSRK43_2 | 3 | A | 3 | low storage, Navier-Stokes | Kennedy, Carpenter, Lewis, Appl. Numer. Math. 35 (2000)
CKLLSRK54_3C | 4 | A | 3 | low storage, Navier-Stokes | =
CKLLSRK95_4S | 5 | A | 3 | low storage, Navier-Stokes | =
CKLLSRK95_4C | 5 | A | 3 | low storage, Navier-Stokes | =
CKLLSRK95_4M | 5 | A | 3 | low storage, Navier-Stokes | =
CKLLSRK54_3C_3R | 4 | A | 3 | low storage, Navier-Stokes | =
CKLLSRK54_3M_3R | 4 | A | 3 | low storage, Navier-Stokes | =
CKLLSRK54_3N_3R | 4 | A | 3 | low storage, Navier-Stokes | =
CKLLSRK85_4C_3R | 5 | A | 3 | low storage, Navier-Stokes | =
CKLLSRK85_4M_3R | 5 | A | 3 | low storage, Navier-Stokes | =
CKLLSRK85_4P_3R | 5 | A | 3 | low storage, Navier-Stokes | =
CKLLSRK54_3N_4R | 4 | A | 3 | low storage, Navier-Stokes | =
CKLLSRK54_3M_4R | 4 | A | 3 | low storage, Navier-Stokes | =
CKLLSRK65_4M_4R | 5 | A | 3 | low storage, Navier-Stokes | =
CKLLSRK85_4FM_4R | 5 | A | 3 | low storage, Navier-Stokes | =
CKLLSRK75_4M_5R | 5 | A | 3 | low storage, Navier-Stokes | =
ParsaniKetchesonDeconinck3S32 | 2 | F | 3 | low storage, spectral difference, 3 stages | \
Parsani, Ketcheson, Deconinck, SIAM J. Sci. Comput. 35 (2013)
ParsaniKetchesonDeconinck3S82 | 2 | F | 3 | low storage, spectral difference, 8 stages | =
ParsaniKetchesonDeconinck3S53 | 3 | F | 3 | low storage, spectral difference, 5 stages | =
ParsaniKetchesonDeconinck3S173 | 3 | F | 3 | low storage, spectral difference, 17 stages | =
ParsaniKetchesonDeconinck3S94 | 4 | F | 3 | low storage, spectral difference, 9 stages | =
ParsaniKetchesonDeconinck3S184 | 4 | F | 3 | low storage, spectral difference, 18 stages | =
ParsaniKetchesonDeconinck3S105 | 5 | F | 3 | low storage, spectral difference, 10 stages | =
ParsaniKetchesonDeconinck3S205 | 5 | F | 3 | low storage, spectral difference, 20 stages | =
RDPK3Sp35 | 3 | A | 3 | low storage, compressible flow | Ranocha et al., arXiv:2104.06836
RDPK3SpFSAL35 | 3 | A | 3 | low storage, compressible flow | =
RDPK3Sp49 | 4 | A | 3 | low storage, compressible flow | =
RDPK3SpFSAL49 | 4 | A | 3 | low storage, compressible flow | =
RDPK3Sp510 | 5 | A | 3 | low storage, compressible flow | =
RDPK3SpFSAL510 | 5 | A | 3 | low storage, compressible flow | =
"""

_STABILIZED = """
ROCK2 | 2 | A | 3 | large parabolic problems | Abdulle, Medovikov, Numer. Math. 90 (2001)
ROCK4 | 4 | A | 3 | large parabolic problems | Abdulle, SIAM J. Sci. Comput. 23 (2002)
RKC | 2 | A | 3 | Runge-Kutta-Chebyshev | Sommeijer, Shampine, Verwer, J. Comput. Appl. Math. 88 (1998)
RKMC2 | 2 | A | 3 | monotonic Runge-Kutta-Chebyshev | Faleichik, Moisa, J. Comput. Appl. Math. 476 (2026)
SERK2 | 2 | A | 3 | stabilized Runge-Kutta | Kleefeld, Martin-Vaquero, Numer. Methods PDE 29 (2013)
ESERK4 | 4 | A | 3 | stabilized by extrapolation | Martin-Vaquero, Kleefeld, J. Comput. Phys. 326 (2016)
ESERK5 | 5 | A | 3 | stabilized by extrapolation | Martin-Vaquero, Kleefeld, J. Comput. Appl. Math. 356 (2019)
TSRKC2 | 2 | A | 3 | two-step Runge-Kutta-Chebyshev | Moisa, J. Comput. Appl. Math. 446 (2024)
TSRKC3 | 3 | A | 3 | two-step Runge-Kutta-Chebyshev | Moisa, J. Comput. Appl. Math. 457 (2025)
RKL1 | 1 | A | 3 | Runge-Kutta-Legendre super time stepping | Meyer, Balsara, Aslam, J. Comput. Phys. 257 (2014)
RKL2 | 2 | A | 3 | Runge-Kutta-Legendre super time stepping | =
RKG1 | 1 | A | 3 | Runge-Kutta-Gegenbauer super time stepping | Skaras et al., J. Comput. Phys. 425 (2021)
RKG2 | 2 | A | 3 | Runge-Kutta-Gegenbauer super time stepping | =
"""

_ROSENBROCK_STIFF_OUTPUT = """
Rosenbrock23 | 2 | A | 2 | small stiff problems at loose tolerances | Shampine, Reichelt, SIAM J. Sci. Comput. 18 (1997)
Rosenbrock32 | 3 | A | 2 | mildly stiff problems without oscillations | =
Rodas23W | 3 | A | 2 | W-method with an error test of the dense output | Steinebach, Proc. JuliaCon Conf. (2024)
Rodas3P | 3 | A | 3 | with an error test of the dense output | =
Rodas4 | 4 | A | 3 | stiff problems at middling tolerances | Hairer, Wanner, Solving ODEs II (1996)
Rodas42 | 4 | A | 3 | variant of Rodas4 | =
Rodas4P | 4 | A | 3 | keeps its order on linear parabolic problems | Steinebach, Preprint 1741, TH Darmstadt (1995)
Rodas4P2 | 4 | A | 3 | Rodas4P, better with an inexact Jacobian | Steinebach, DAE Forum, Springer (2020)
Rodas4PW | 4 | A | 3 | Rodas4P as a W-method | Steinebach, in preparation (2026)
Rodas5 | 5 | A | 4 | stiff problems at tight tolerances | Di Marzo, thesis, Univ. Geneva (1993)
Rodas5P | 5 | A | 4 | first choice for stiff problems | Steinebach, BIT 63 (2023)
Rodas5Pe | 5 | A | 4 | Rodas5P with another embedded scheme | Steinebach, Proc. JuliaCon Conf. (2024)
Rodas5Pr | 5 | A | 4 | Rodas5P with residual control | =
Rodas6P | 6 | A | 5 | stiff problems at tight tolerances | Steinebach, arXiv:2511.21252
"""

_ROSENBROCK = """
ROS2 | 2 | A | 3 | L-stable, two stages | Verwer et al., SIAM J. Sci. Comput. 20 (1999)
ROS2PR | 2 | A | 3 | stiffly accurate | Rang, TU Braunschweig (2014)
ROS2S | 2 | A | 3 | stiffly accurate W-method | =
ROS3 | 3 | A | 3 | L-stable | Hairer, Wanner, Solving ODEs II (1996)
ROS3P | 3 | A | 3 | nonlinear parabolic problems | Lang, Verwer, BIT 41 (2001)
ROS3PR | 3 | A | 3 | stiffly accurate | Rang, TU Braunschweig (2014)
ROS3PRL | 3 | A | 3 | stiffly accurate, four stages | =
ROS3PRL2 | 3 | A | 3 | stiffly accurate, four stages, keeps its order | =
Scholz4_7 | 3 | A | 3 | fourth order in the stiff limit | =
Rodas3 | 3 | A | 3 | stiffly accurate, atmospheric chemistry | Sandu et al., Atmos. Environ. 31 (1997)
ROS34PW1a | 3 | A | 3 | W-method | Rang, Angermann, BIT 45 (2005)
ROS34PW1b | 3 | A | 3 | W-method | =
ROS34PW2 | 3 | A | 3 | W-method, stiffly accurate | =
ROS34PW3 | 4 | A | 3 | W-method | =
ROS34PRw | 3 | A | 3 | W-method, stiffly accurate | Rang, J. Comput. Appl. Math. 286 (2015)
ROK4a | 4 | A | 3 | Rosenbrock-Krylov tableau | Tranquilli, Sandu, SIAM J. Sci. Comput. 36 (2014)
RosShamp4 | 4 | A | 3 | A-stable | Shampine, ACM TOMS 8 (1982)
Veldd4 | 4 | A | 3 | D-stable | van Veldhuizen, Computing 32 (1984)
Velds4 | 4 | A | 3 | A-stable | =
GRK4T | 4 | A | 3 | efficient, not A-stable | Kaps, Rentrop, Numer. Math. 33 (1979)
GRK4A | 4 | A | 3 | A-stable | =
Ros4LStab | 4 | A | 3 | L-stable | Hairer, Wanner, Solving ODEs II (1996)
RosenbrockW6S4OS | 4 | F | 3 | W-method | Rahunanthan, Stanescu, J. Comput. Appl. Math. 233 (2010)
"""

_BDF_STIFF_OUTPUT = """
FBDF | - | A | - | BDF of order 1 to 5, large stiff problems | Shampine, Comput. Math. Appl. 44 (2002)
QNDF | - | A | - | NDF of order 1 to 5, like MATLAB's ode15s | Shampine, Reichelt, SIAM J. Sci. Comput. 18 (1997)
QBDF | - | A | - | QNDF with kappa = 0, that is BDF | =
"""

_BDF = """
QNDF1 | 1 | A | 3 | NDF of order 1 | Shampine, Reichelt, SIAM J. Sci. Comput. 18 (1997)
QNDF2 | 2 | A | 3 | NDF of order 2 | =
QBDF1 | 1 | A | 3 | BDF of order 1 | =
QBDF2 | 2 | A | 3 | BDF of order 2 | =
ABDF2 | 2 | A | 3 | BDF of order 2 with variable steps | Alberdi Celaya et al., Procedia Comput. Sci. 29 (2014)
MEBDF2 | 2 | F | 3 | modified extended BDF of order 2 | Cash, Comput. Math. Appl. 39 (2000)
"""

_SDIRK = """
ImplicitEuler | 1 | A | 3 | backward Euler, most robust | Hairer, Wanner, Solving ODEs II (1996)
ImplicitMidpoint | 2 | F | 3 | symplectic, symmetric | =
Trapezoid | 2 | A | 3 | symmetric, A-stable; Crank-Nicolson | Vladimirescu, The Spice Book (1994)
TRBDF2 | 2 | A | 3 | L-stable, stiffly accurate, loose tolerances | Hosea, Shampine, Appl. Numer. Math. 20 (1996)
SDIRK2 | 2 | A | 3 | A-stable, not L-stable | Hindmarsh et al., ACM TOMS 31 (2005)
SDIRK22 | 2 | A | 3 | Trapezoid again, which is what Julia's SDIRK22() makes | Vladimirescu, The Spice Book (1994)
SSPSDIRK2 | 2 | F | 3 | strong stability preserving | Ketcheson, Macdonald, Gottlieb, Appl. Numer. Math. 59 (2009)
Kvaerno3 | 3 | A | 3 | ESDIRK, stiffly accurate | Kvaerno, BIT 44 (2004)
Kvaerno4 | 4 | A | 3 | ESDIRK, stiffly accurate | =
Kvaerno5 | 5 | A | 3 | ESDIRK, stiffly accurate | =
KenCarp3 | 3 | A | 3 | ESDIRK, stiffly accurate | Kennedy, Carpenter, NASA TM-2001-211038
KenCarp4 | 4 | A | 3 | ESDIRK, stiffly accurate | =
KenCarp5 | 5 | A | 3 | ESDIRK, stiffly accurate | =
KenCarp47 | 4 | A | 3 | ESDIRK, seven stages | Kennedy, Carpenter, Appl. Numer. Math. 136 (2019)
KenCarp58 | 5 | A | 3 | ESDIRK, eight stages | =
CFNLIRK3 | 3 | F | 3 | linearly implicit | Calvo, de Frutos, Novo, Appl. Numer. Math. 37 (2001)
Cash4 | 4 | A | 3 | L-stable | Hindmarsh et al., ACM TOMS 31 (2005)
Hairer4 | 4 | A | 3 | L-stable | Hairer, Wanner, Solving ODEs II (1996)
Hairer42 | 4 | A | 3 | L-stable | =
SFSDIRK4 | 4 | F | 3 | strong stability preserving, 4 stages | Ferracina, Spijker, Appl. Numer. Math. 58 (2008)
SFSDIRK5 | 4 | F | 3 | strong stability preserving, 5 stages | =
SFSDIRK6 | 4 | F | 3 | strong stability preserving, 6 stages | =
SFSDIRK7 | 4 | F | 3 | strong stability preserving, 7 stages | =
SFSDIRK8 | 4 | F | 3 | strong stability preserving, 8 stages | =
ESDIRK325L2SA | 3 | A | 3 | optimised ESDIRK, 5 stages | Kennedy, Carpenter, Appl. Numer. Math. 146 (2019)
ESDIRK436L2SA2 | 4 | A | 3 | optimised ESDIRK, 6 stages | =
ESDIRK437L2SA | 4 | A | 3 | optimised ESDIRK, 7 stages | =
ESDIRK54I8L2SA | 5 | A | 3 | optimised ESDIRK, 8 stages | =
ESDIRK547L2SA2 | 5 | A | 3 | optimised ESDIRK, 7 stages | =
ESDIRK659L2SA | 6 | A | 3 | optimised ESDIRK, 9 stages; unstable at times (OrdinaryDiffEq #1933) | =
"""

_FIRK_STIFF_OUTPUT = """
RadauIIA3 | 3 | A | 2 | Radau IIA, two stages | Hairer, Wanner, J. Comput. Appl. Math. 111 (1999)
RadauIIA5 | 5 | A | 3 | Radau IIA, very stiff problems at tight tolerances | =
RadauIIA9 | 9 | A | 5 | Radau IIA, five stages | =
AdaptiveRadau | - | A | - | Radau IIA of order 5 to 13 | Ekanathan, Smith, Rackauckas, IEEE HPEC (2025)
"""

_FIRK = """
GaussLegendre | 4 | A | 3 | symplectic, two stages | Butcher, Numerical Methods for ODEs (2008)
"""

_PDIRK = """
PDIRK44 | 4 | F | 3 | made for two processors | Iserles, Norsett, IMA J. Numer. Anal. 10 (1990)
"""

_IMPLICIT_EXTRAPOLATION = """
ImplicitEulerExtrapolation | - | A | 3 | implicit Euler, extrapolated; like SEULEX | Elrod et al., IEEE HPEC (2022)
ImplicitEulerBarycentricExtrapolation | - | A | 3 | implicit Euler, extrapolated | =
ImplicitDeuflhardExtrapolation | - | A | 3 | implicit midpoint, extrapolated | =
ImplicitHairerWannerExtrapolation | - | A | 3 | implicit midpoint, extrapolated; like SODEX | =
"""

_EXTRAPOLATION = """
AitkenNeville | 5 | A | 3 | Euler, extrapolated | Hairer, Norsett, Wanner, Solving ODEs I (1993)
ExtrapolationMidpointDeuflhard | - | A | 3 | midpoint, extrapolated | =
ExtrapolationMidpointHairerWanner | - | A | 3 | midpoint, extrapolated; like ODEX | =
"""

_ADAMS = """
AB3 | 3 | F | 3 | Adams-Bashforth, equal steps | Hairer, Norsett, Wanner, Solving ODEs I (1993)
AB4 | 4 | F | 3 | Adams-Bashforth, equal steps | =
AB5 | 5 | F | 3 | Adams-Bashforth, equal steps | =
ABM32 | 3 | F | 3 | Adams-Bashforth-Moulton, equal steps | =
ABM43 | 4 | F | 3 | Adams-Bashforth-Moulton, equal steps | =
ABM54 | 5 | F | 3 | Adams-Bashforth-Moulton, equal steps | =
VCAB3 | 3 | A | 3 | Adams-Bashforth, variable steps | =
VCAB4 | 4 | A | 3 | Adams-Bashforth, variable steps | =
VCAB5 | 5 | A | 3 | Adams-Bashforth, variable steps | =
VCABM3 | 3 | A | 3 | Adams-Bashforth-Moulton, variable steps | =
VCABM4 | 4 | A | 3 | Adams-Bashforth-Moulton, variable steps | =
VCABM5 | 5 | A | 3 | Adams-Bashforth-Moulton, variable steps | =
VCABM | - | A | 3 | Adams-Bashforth-Moulton of order 1 to 12, costly f | =
"""

# Experimental in Julia. JVODE_BDF iterates without a Jacobian, so it is no method for stiff problems.
_NORDSIECK = """
AN5 | 5 | A | - | Adams in Nordsieck form, experimental | Byrne, Hindmarsh, ACM TOMS 1 (1975)
JVODE_Adams | - | A | - | VODE's Adams, experimental | =
JVODE_BDF | - | A | - | VODE's BDF by fixed-point iteration, experimental | =
"""

# What the embedded engine runs for a Julia name: where torchdiffeq has the same tableau and step control.
_EMBEDDED = {"DP5": "dopri5", "BS3": "bosh3", "Heun": "adaptive_heun", "Euler": "euler"}

_FINITE_DIFFERENCES = "autodiff=AutoFiniteDiff()"  # f cannot take dual numbers; jac and tgrad are given where exact


def _rows(
    table: str, kind: Kind, package: str, arguments: str = "", *, stiff_interpolation: bool = False
) -> Iterator[Method]:
    source = ""
    for line in table.strip().splitlines():
        name, order, steps, dense, what, cited = (cell.strip() for cell in line.split("|"))
        source = source if cited == "=" else cited
        embedded = _EMBEDDED.get(name)
        yield Method(
            name=name,
            kind=kind,
            order=None if order == "-" else int(order),
            adaptive=steps == "A",
            engines=ENGINES if embedded else ENGINES[:1],
            julia_package=f"OrdinaryDiffEq{package}",
            julia_expr=f"{name}({arguments})",
            interpolation=None if dense == "-" else int(dense),
            stiff_interpolation=stiff_interpolation,
            description=what,
            citation=source,
            torchdiffeq_name=embedded,
        )


def _auto(name: str, non_stiff: str, stiff: str, order: int) -> Method:
    package = {"AutoTsit5": "Tsit5", "AutoDP5": "LowOrderRK"}.get(name, "Verner")
    lazy = ", lazy=false" if package == "Verner" else ""
    return Method(
        name=name,
        kind="auto",
        order=order,
        adaptive=True,
        engines=ENGINES[:1],
        julia_package=f"OrdinaryDiffEq{package} OrdinaryDiffEqRosenbrock",
        julia_expr=f"{name}({stiff}({_FINITE_DIFFERENCES}){lazy})",
        interpolation=None,
        stiff_interpolation=True,
        description=f"{non_stiff} until the problem turns stiff, then {stiff}",
        citation="Rackauckas, Nie, J. Open Res. Softw. 5 (2017)",
    )


def _default(name: str) -> Method:
    return Method(
        name=name,
        kind="auto",
        order=7,
        adaptive=True,
        engines=ENGINES[:1],
        julia_package="OrdinaryDiffEqDefault",
        julia_expr=f"DefaultODEAlgorithm(lazy=false, {_FINITE_DIFFERENCES})",
        interpolation=None,
        stiff_interpolation=True,
        description="Tsit5 or Vern7 by tolerance; Rosenbrock23, Rodas5P or FBDF by tolerance and size where stiff",
        citation="Rackauckas, Nie, J. Open Res. Softw. 5 (2017)",
    )


def _tableau(a: str, c: str, b: str, order: int, embedded: str = "") -> str:
    """A Butcher tableau in Julia, for ``ExplicitRK``; ``embedded`` are the weights of the lower order."""
    pair = f"; αEEst=Float64[{embedded}], adaptiveorder={order - 1}" if embedded else ""
    made = "OrdinaryDiffEqExplicitTableaus.DiffEqBase.ExplicitRKTableau"
    return f"ExplicitRK(tableau={made}(Float64[{a}], Float64[{c}], Float64[{b}], {order}{pair}))"


_TABLEAUS = "ExplicitRK OrdinaryDiffEqExplicitTableaus"


def _torchdiffeq(
    name: str,
    order: int,
    package: str,
    expr: str,
    note: str,
    *,
    adaptive: bool = False,
    kind: Kind = "explicit",
    interpolation: int = 3,
    citation: str = "Hairer, Norsett, Wanner, Solving ODEs I (1993)",
    runs: str | None = None,
    embedded: bool = True,
) -> Method:
    return Method(
        name=name,
        kind=kind,
        order=order,
        adaptive=adaptive,
        engines=ENGINES if embedded else ENGINES[:1],
        julia_package=f"OrdinaryDiffEq{package}",
        julia_expr=expr,
        interpolation=interpolation,
        stiff_interpolation=False,
        description=f"torchdiffeq's name; Julia runs {runs or expr[:-2]}{'' if adaptive else ' with fixed steps'}",
        citation=citation,
        torchdiffeq_name=name if embedded else None,
        note=note,
    )


def _implicit_aliases() -> Iterator[Method]:
    """torchdiffeq's implicit fixed-step family: in its source since April 2025, in no release up to 0.2.5."""
    same = (
        "the same tableau. torchdiffeq solves the stages by Broyden's method to a residual of 1e-8, Julia by Newton's "
    )
    same += "with torch's Jacobian, to the tolerances."
    for name, order, package, method, does in (
        ("implicit_euler", 1, "SDIRK", "ImplicitEuler", same),
        ("implicit_midpoint", 2, "SDIRK", "ImplicitMidpoint", same),
        ("trapezoid", 2, "SDIRK", "Trapezoid", same),
        ("trbdf2", 2, "SDIRK", "TRBDF2", same),
        ("radauIIA3", 3, "FIRK", "RadauIIA3", same),
        ("radauIIA5", 5, "FIRK", "RadauIIA5", same),
        ("gl4", 4, "FIRK", "GaussLegendre", f"{same} (torchdiffeq's nodes for f's time are misprinted: both are the "
            "first, which costs its order where f depends on time.)"),
        ("gl6", 6, "FIRK", "GaussLegendre", same),
        # Not Julia's SDIRK2: that one is not L-stable (its stability function goes to -1/2), torchdiffeq's is.
        ("sdirk2", 2, "SDIRK", "TRBDF2", "another L-stable tableau of second order than torchdiffeq's, which is "
            "Alexander's of 1977 and which Julia has not, with the same stability function: the same results where f "
            "is linear in y and free of t, agreement within the order elsewhere."),
    ):  # fmt: skip
        stages = "num_stages=3, " if name == "gl6" else ""
        runs = f"{method}({stages}{_FINITE_DIFFERENCES})"
        yield replace(
            _torchdiffeq(
                name, order, package, runs, kind="stiff", interpolation=3, embedded=False,
                citation="Hairer, Wanner, Solving ODEs II (1996)", runs=method,
                note=f"Julia runs {method} with fixed steps: {does} Gradients are those of a continuous adjoint, "
                "torchdiffeq's odeint goes back through the steps.",
            ),
            stiff_interpolation=name in ("radauIIA3", "radauIIA5"),
            interpolation={"radauIIA3": 2}.get(name, 3),
        )  # fmt: skip


def _aliases() -> Iterator[Method]:
    yield _torchdiffeq(
        "dopri5", 5, "LowOrderRK", "DP5()", adaptive=True, interpolation=4,
        citation="Dormand, Prince, J. Comput. Appl. Math. 6 (1980)",
        note="Julia runs DP5: the same stages and weights. torchdiffeq estimates the error with Shampine's weights, "
        "DP5 with Dormand and Prince's, so the steps are up to a tenth smaller.",
    )  # fmt: skip
    yield _torchdiffeq(
        "dopri8", 8, "HighOrderRK", "DP8()", adaptive=True, interpolation=7,
        note="Julia runs DP8, Hairer's DOP853 (12 stages, error by a fifth- and a third-order formula, dense output of "
        "degree 7). torchdiffeq has another tableau, Prince and Dormand's 8(7) of 1981 (13 stages), and a quartic "
        "between steps. Same order, other steps; agreement within tolerance.",
    )  # fmt: skip
    yield _torchdiffeq(
        "tsit5", 5, "Tsit5", "Tsit5()", adaptive=True, interpolation=4, embedded=False,
        citation="Tsitouras, Comput. Math. Appl. 62 (2011)",
        note="Julia runs Tsit5: the same tableau. torchdiffeq has it in its source since 2025 but in no release up to "
        "0.2.5, so the embedded engine does not run it there.",
    )  # fmt: skip
    yield _torchdiffeq(
        "bosh3", 3, "LowOrderRK", "BS3()", adaptive=True,
        citation="Bogacki, Shampine, Appl. Math. Lett. 2 (1989)",
        note="Julia runs BS3: the same tableau, error estimate and controller: the same steps, as long as they grow.",
    )  # fmt: skip
    yield _torchdiffeq(
        "fehlberg2", 2, _TABLEAUS,
        _tableau("0 0 0; 1/2 0 0; 1/256 255/256 0", "0, 1/2, 1", "1/512, 255/256, 1/512", 2, "1/256, 255/256, 0"),
        adaptive=True, citation="Fehlberg, NASA TR R-315 (1969)", runs="Fehlberg's 1(2) pair",
        note="Julia runs Fehlberg's 1(2) pair, the same tableau, as a generic Runge-Kutta method. torchdiffeq takes "
        "the last stage for f at the new point, which it is only to first order; Julia evaluates f there.",
    )  # fmt: skip
    yield _torchdiffeq(
        "adaptive_heun", 2, "LowOrderRK", "Heun()", adaptive=True,
        note="Julia runs Heun: the same tableau with Euler embedded. torchdiffeq takes the second stage for f at the "
        "new point, which it is only to first order; Julia evaluates f there.",
    )  # fmt: skip
    yield _torchdiffeq("euler", 1, "LowOrderRK", "Euler()", note="Julia runs Euler: the same method.")
    yield _torchdiffeq(
        "midpoint", 2, "LowOrderRK", "Midpoint()",
        note="Julia runs Midpoint with fixed steps: the same method. Julia's own name steps adaptively.",
    )  # fmt: skip
    yield _torchdiffeq(
        "heun2", 2, "LowOrderRK", "Heun()",
        note="Julia runs Heun with fixed steps: the same method. Julia's own name steps adaptively.",
    )  # fmt: skip
    yield _torchdiffeq(
        "heun3", 3, _TABLEAUS, _tableau("0 0 0; 1/3 0 0; 0 2/3 0", "0, 1/3, 2/3", "1/4, 0, 3/4", 3),
        runs="Heun's third-order method",
        note="Julia runs Heun's third-order method, the same tableau, as a generic method with fixed steps.",
    )  # fmt: skip
    yield _torchdiffeq(
        "rk4", 4, _TABLEAUS, "ExplicitRK(tableau=OrdinaryDiffEqExplicitTableaus.RK438Rule())", runs="Kutta's 3/8 rule",
        note="Julia runs Kutta's 3/8 rule with fixed steps, which is what torchdiffeq means by rk4. Julia's own RK4 is "
        "the classical tableau and steps adaptively.",
    )  # fmt: skip
    for name, method, does in (
        ("explicit_adams", "VCAB5", "Adams-Bashforth of fifth order"),
        ("implicit_adams", "VCABM5", "Adams-Bashforth-Moulton of fifth order, corrected once"),
        ("fixed_adams", "VCABM5", "Adams-Bashforth-Moulton of fifth order, corrected once"),
    ):
        yield _torchdiffeq(
            name, 5, "AdamsBashforthMoulton", f"{method}()", kind="multistep",
            note=f"Julia runs {method} with fixed steps: {does}, with coefficients for unequal steps. torchdiffeq goes "
            "up to order 12 as steps accumulate, with coefficients for equal steps only, and iterates its corrector.",
        )  # fmt: skip
    yield from _implicit_aliases()
    # One Julia method for each of SciPy's is chosen by the option `solver` (pyjode/options.py).
    yield replace(
        _auto("AutoTsit5", "Tsit5", "Rosenbrock23", 5),
        name="scipy_solver",
        engines=ENGINES,
        description="torchdiffeq's name; Julia runs the counterpart of the option solver",
        citation="Virtanen et al., Nature Methods 17 (2020)",
        torchdiffeq_name="scipy_solver",
        note="Julia runs DP5 for solver='RK45', BS3 for 'RK23', DP8 for 'DOP853', RadauIIA5 for 'Radau', QNDF for "
        "'BDF' and AutoTsit5, which changes to Rosenbrock23 where the problem turns stiff, for 'LSODA' (the default). "
        "The Runge-Kutta tableaus are SciPy's, steps and the multistep formulas are not. Gradients flow; through SciPy "
        "they do not, except by odeint_adjoint.",
    )


def _all() -> Iterator[Method]:
    stiff = _FINITE_DIFFERENCES
    yield from _rows(_TSIT5, "explicit", "Tsit5")
    # Lazy stages are made when the dense output is first read, which breaks it for adjoints: julia-facts, cause 2.
    yield from _rows(_VERNER, "explicit", "Verner", "lazy=false")
    yield from _rows(_BS5, "explicit", "LowOrderRK", "lazy=false")
    yield from _rows(_LOW_ORDER, "explicit", "LowOrderRK")
    yield from _rows(_HIGH_ORDER, "explicit", "HighOrderRK")
    yield from _rows(_FEAGIN, "explicit", "Feagin")
    yield from _rows(_QPRK, "explicit", "QPRK")
    # Python's f must not be called from several Julia threads at once.
    yield from _rows(_PRK, "explicit", "PRK", "threading=false")
    yield from _rows(_SSPRK, "explicit", "SSPRK")
    yield from _rows(_LOW_STORAGE, "explicit", "LowStorageRK")
    yield from _rows(_STABILIZED, "stabilized", "StabilizedRK")
    yield from _rows(_ROSENBROCK_STIFF_OUTPUT, "stiff", "Rosenbrock", stiff, stiff_interpolation=True)
    yield from _rows(_ROSENBROCK, "stiff", "Rosenbrock", stiff)
    yield from _rows(_BDF_STIFF_OUTPUT, "stiff", "BDF", stiff, stiff_interpolation=True)
    yield from _rows(_BDF, "stiff", "BDF", stiff)
    yield from _rows(_SDIRK, "stiff", "SDIRK", stiff)
    yield from _rows(_FIRK_STIFF_OUTPUT, "stiff", "FIRK", stiff, stiff_interpolation=True)
    yield from _rows(_FIRK, "stiff", "FIRK", stiff)
    yield from _rows(_PDIRK, "stiff", "PDIRK", f"threading=false, {stiff}")
    yield from _rows(_IMPLICIT_EXTRAPOLATION, "stiff", "Extrapolation", f"threading=false, {stiff}")
    yield from _rows(_ADAMS, "multistep", "AdamsBashforthMoulton")
    yield from _rows(_SSP_MULTISTEP, "multistep", "SSPRK")
    yield from _rows(_NORDSIECK, "multistep", "Nordsieck")
    yield from _rows(_EXTRAPOLATION, "extrapolation", "Extrapolation", "threading=false")
    yield _auto("AutoTsit5", "Tsit5", "Rosenbrock23", 5)
    yield _auto("AutoDP5", "DP5", "Rodas5P", 5)
    yield _auto("AutoVern6", "Vern6", "Rodas5P", 6)
    yield _auto("AutoVern7", "Vern7", "Rodas5P", 7)
    yield _auto("AutoVern8", "Vern8", "Rodas5P", 8)
    yield _auto("AutoVern9", "Vern9", "Rodas5P", 9)
    yield _default("DefaultODEAlgorithm")
    yield _default("auto")
    yield from _aliases()


_METHODS: dict[str, Method] = {m.name: m for m in _all()}
