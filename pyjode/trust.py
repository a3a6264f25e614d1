"""Which gradients to trust: a verdict on each (method, sensealg, adjoint method), and defaults taken from it.

The evidence is of two sorts, and each verdict says which is its own. *Measured*: 515 runs on a Julia 1.11 stack with
OrdinaryDiffEq 7.1 and SciMLSensitivity 7.112 in November 2026, gradients by y0 and parameters against tight finite
differences, on Lotka-Volterra and a 2-20-2 tanh network (non-stiff), Robertson and van der Pol with mu = 1000
(stiff), at tolerances of 1e-6 and 1e-9. *Source*: not run, but the cause of what was
measured is present, or absent, in its code.

What went wrong, and why:

    - SDIRK methods and others without a dense output of their own are interpolated by cubic Hermite. In the step after
      a save point's jump of λ that overshoots (by 172 where the ends of the step are right to 7e-4), and Gauss,
      GaussKronrod and Quadrature read it: parameter gradients wrong by 2x to 1000x, without a warning
      (OrdinaryDiffEq.jl #144). Rodas5P as the adjoint's solver has a stiff dense output, and is right.
    - Gauss takes (order + 1) / 2 points a step, and variable-order methods call their order 1 (FBDF, QNDF, VCABM).
    - Backsolve solves y backward, which no stiff or diffusive problem bears.
    - Methods of high order without a dense output of that order are inaccurate between steps, where y is read.

On van der Pol with mu = 1000 FBDF, QNDF, KenCarp4, TRBDF2 and Kvaerno5 were wrong by 0.3 and more with every sensealg,
and how much of that is the forward solution's own error was not separated: on such problems check the gradient
(``check_gradient=True``) and take Rodas5P at a tight tolerance (3e-5 at 1e-9). Measured again since a fault of the
adjoint's first step is mended (``benchmarks.adjoint_tolerances``): FBDF is off by 3e-3 at 1e-6 and 1e-4 at 1e-8,
KenCarp4 by 20 times the gradient at both.

The discrete adjoint of Rodas5P is the gradient of the steps it took, to round-off, so its error is what these steps are
off by (``benchmarks.stiff_gradients``, at 1e-4, 1e-6 and 1e-8): Robertson 2e-6, 5e-7, 2e-7; HIRES 2e-4, 8e-6, 1e-6;
OREGO 1e-2, 1e-4, 1e-6; POLLU 3e-6, 1e-7, 6e-8; van der Pol 0.9, 4e-3, 3e-6. GaussAdjoint, whose y(t) is that of the
same steps but whose equation is solved a hundred times tighter, is as good on the first two, and better at loose
tolerances on OREGO (4e-3, 6e-6) and van der Pol (2e-2, 9e-5); at 1e-8 the discrete one is better on these two, on
POLLU at 1e-6 already.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Literal

from pyjode.errors import UnsupportedError
from pyjode.methods import Method, find_method
from pyjode.sensealgs import (
    BacksolveAdjoint,
    DiscreteAdjoint,
    GaussAdjoint,
    GaussKronrodAdjoint,
    InterpolatingAdjoint,
    QuadratureAdjoint,
    SenseAlg,
    find_sensealg,
)

Level = Literal["trusted", "warn", "refused"]


class UntrustedGradient(UserWarning):
    """A gradient that is computed, but by a pair of method and sensealg that is not trusted."""


@dataclass(frozen=True)
class Verdict:
    """Whether gradients of a (method, sensealg, adjoint method) are right.

    Attributes:
        level: "trusted"; "warn": computed with a warning; "refused": known to be wrong or to fail.
        reason: why, and what to take instead.
        evidence: where that is known from.
        measured: whether this very combination was among the runs (else by the same cause in the sources).
        pair: the combination, in words.
    """

    level: Level
    reason: str
    evidence: str
    measured: bool = False
    pair: str = ""

    def enforce(self) -> None:
        """Nothing where trusted; a warning; or an error.

        Raises:
            UnsupportedError: the combination is refused.
        """
        if self.level == "refused":
            raise UnsupportedError(f"{self.pair}: refused, because {self.reason}. Evidence: {self.evidence}.")
        if self.level == "warn":
            warnings.warn(
                f"{self.pair}: {self.reason}. Evidence: {self.evidence}. check_gradient=True compares with a finite "
                "difference.",
                UntrustedGradient,
                stacklevel=3,
            )


_RUNS = "measured (515 runs)"
_SOURCE = "source of OrdinaryDiffEq 7.1 and SciMLSensitivity 7.112, not run"

# Measured with the sensealgs that are trusted below.
_MEASURED_NON_STIFF = {"Tsit5", "DP5", "dopri5", "tsit5", "BS3", "bosh3", "DP8", "dopri8", "RK4", "Vern7", "Vern9"}

Group = Literal["explicit", "rough", "multistep", "stabilized", "rodas", "bdf", "stiff output", "hermite", "auto"]


def _group(method: Method) -> Group:
    """Methods that behave alike as far as gradients go.

    explicit      explicit Runge-Kutta whose dense output is as good as its steps
    rough         non-stiff, dense output worse than its steps
    multistep     other Adams and extrapolation methods
    stabilized    stabilized Runge-Kutta
    rodas         Rosenbrock of order 4 and more with a stiff dense output
    bdf           FBDF, QNDF, QBDF: a stiff dense output, order called 1
    stiff output  other implicit methods with a stiff dense output
    hermite       implicit methods interpolated by cubic Hermite
    auto          composite methods
    """
    if method.kind == "stabilized":
        return "stabilized"
    if method.kind == "auto":
        return "auto"
    if method.kind != "stiff":
        if method.rough_output:
            return "rough"
        return "explicit" if method.kind == "explicit" else "multistep"
    if not method.stiff_interpolation:
        return "hermite"
    if method.order is None:
        return "bdf" if method.julia_package == "OrdinaryDiffEqBDF" else "stiff output"
    rosenbrock = method.julia_package == "OrdinaryDiffEqRosenbrock"
    return "rodas" if rosenbrock and method.order >= 4 else "stiff output"


# Those whose Jacobian may be an older step's, and Rosenbrock23 and 32, which have no tableau like the others'.
_NO_ROSENBROCK_TABLEAU = {
    "Rosenbrock23", "Rosenbrock32", "Rodas23W", "Rodas4PW", "ROS2S", "ROS34PW1a", "ROS34PW1b", "ROS34PW2", "ROS34PW3",
    "ROS34PRw", "ROK4a", "RosenbrockW6S4OS",
}  # fmt: skip


def has_discrete_adjoint(method: Method) -> bool:
    """Whether :class:`~pyjode.DiscreteAdjoint` can follow the method's steps: explicit Runge-Kutta methods, and
    Rosenbrock methods with a tableau and the Jacobian of each step's start.

    Not QPRK98: its gradient came out off by 1e-5 where all others agree with finite differences to 1e-8
    (tests/engines/julia/test_gradients.py); the reason is not known.
    """
    if method.julia_package == "OrdinaryDiffEqRosenbrock":
        return method.name not in _NO_ROSENBROCK_TABLEAU
    return method.kind == "explicit" and method.name != "QPRK98"


def default_sensealg(method: str | Method) -> SenseAlg:
    """The continuous adjoint to take with ``method``; with :func:`default_adjoint_method` it is trusted."""
    group = _group(find_method(method))
    if group == "stabilized":  # explicit, so parameters in the state cost no linear algebra
        return InterpolatingAdjoint()
    if group == "rough":  # the only one that never reads y between steps
        return BacksolveAdjoint()
    return GaussAdjoint()


def default_adjoint_method(method: str | Method, sensealg: str | type[SenseAlg] | SenseAlg) -> str | None:
    """The solver to take for the adjoint equation; ``None``: the forward one."""
    forward, chosen = find_method(method), find_sensealg(sensealg)
    if not chosen.continuous:
        return None
    group = _group(forward)
    if forward.kind in ("multistep", "extrapolation"):  # start anew at each save point's jump, order 1 or unknown
        return "Tsit5"
    if forward.kind == "stiff" and not forward.adaptive:  # λ has transients that fixed steps do not see
        return "Rodas5P"
    if _reads_between_steps(chosen):
        if group in ("hermite", "bdf", "stiff output", "stabilized"):
            return "Rodas5P"
        if group == "rough":
            return "Tsit5" if forward.order is not None and forward.order <= 5 else "Vern9"
    return None


def adjoint_tolerances(
    rtol: float, atol: float, method: str | Method, eps: float = 2.220446049250313e-16
) -> tuple[float, float]:
    """Tolerances ``(rtol, atol)`` of the adjoint solve for a forward solve's.

    Non-stiff: the same. Stiff and auto: a hundredth, at most 1e-8 and 1e-10; but no tighter than round-off allows,
    unless the forward ones are. ``eps`` is that of the state's dtype (``torch.finfo(dtype).eps``).

    Measured with Rodas5P, FBDF and KenCarp4, the forward solve at 1e-4, 1e-6 and 1e-8 and the adjoint at the same, a
    third, a tenth, a hundredth of that and at 1e-11 (``benchmarks.adjoint_tolerances``). On Robertson, HIRES and POLLU
    a third is enough. With Rodas5P on OREGO at 1e-6 a tenth leaves an error of 6e-4 and a hundredth 1e-4; at 1e-4 a
    tenth is off by half, a hundredth by 6e-3. On van der Pol with mu = 1000 at 1e-6 they leave 9e-4 and 2e-4.
    """
    if not find_method(method).stiff:
        return rtol, atol
    lowest_rtol, lowest_atol = min(rtol, max(1e-12, 10 * eps)), min(atol, 10 * eps)
    return max(min(rtol / 100, 1e-8), lowest_rtol), max(min(atol / 100, 1e-10), lowest_atol)


def check_pair(
    method: str | Method,
    sensealg: str | type[SenseAlg] | SenseAlg,
    adjoint_method: str | Method | None = None,
    *,
    rtol: float | None = None,
) -> Verdict:
    """The verdict on gradients of a solve by ``method``, by ``sensealg``, its adjoint solved by ``adjoint_method``.

    Args:
        adjoint_method: ``None``: ``method`` itself (not the default: that is :func:`default_adjoint_method`).
        rtol: of the adjoint solve, where known: below some sensealgs' own floor there is a warning.

    Raises:
        InputError: an unknown name.
    """
    forward, chosen = find_method(method), find_sensealg(sensealg)
    backward = forward if adjoint_method is None else find_method(adjoint_method)
    verdict = _worst(
        _forward_verdict(forward, chosen), _backward_verdict(forward, chosen, backward), _floor(chosen, rtol)
    )
    # Every run but these solved both equations by the same method.
    ran = backward is forward or not chosen.continuous or (forward.name, backward.name) == ("KenCarp4", "Rodas5P")
    return replace(verdict, measured=verdict.measured and ran, pair=_words(forward, chosen, backward))


def _worst(*verdicts: Verdict) -> Verdict:
    levels: tuple[Level, ...] = ("trusted", "warn", "refused")
    worst = max(verdicts, key=lambda v: levels.index(v.level))
    if worst.level != "trusted":
        return worst
    # Trusted only as measured where every part was.
    return next((v for v in verdicts if not v.measured), verdicts[0])


def _words(forward: Method, sensealg: SenseAlg, backward: Method) -> str:
    adjoint = "" if not sensealg.continuous or backward is forward else f", adjoint by {backward.name}"
    return f"{forward.name} with {sensealg!r}{adjoint}"


def _reads_between_steps(sensealg: SenseAlg) -> bool:
    """Whether the parameter gradient is an integral over the adjoint solution's dense output."""
    return isinstance(sensealg, GaussAdjoint | GaussKronrodAdjoint | QuadratureAdjoint)


def _forward_verdict(method: Method, sensealg: SenseAlg) -> Verdict:
    """What of the gradient depends on the forward solve."""
    group, stiff = _group(method), method.kind in ("stiff", "stabilized", "auto")
    if isinstance(sensealg, DiscreteAdjoint):
        if method.kind == "explicit":
            return Verdict(
                "trusted", "a reverse sweep over the solver's own steps", "Tsit5 to 1e-10", method.name == "Tsit5"
            )
        if has_discrete_adjoint(method):
            return Verdict(
                "trusted",
                "a reverse sweep over the solver's own steps",
                "benchmarks.stiff_gradients: Robertson, HIRES, OREGO, POLLU, van der Pol",
                method.name == "Rodas5P",
            )
        return Verdict(
            "refused",
            "the discrete adjoint is for explicit Runge-Kutta and Rosenbrock methods; take GaussAdjoint",
            "its definition",
        )
    if isinstance(sensealg, BacksolveAdjoint):
        if stiff:
            measured = group in ("rodas", "bdf", "hermite")
            return Verdict(
                "refused",
                "solving y backward in time blows up on stiff problems (always wrong there, up to 1e300); take "
                f"{type(default_sensealg(method)).__name__}",
                _RUNS if measured else f"{_RUNS} with other stiff methods",
                measured,
            )
        if not sensealg.checkpointing:
            return Verdict(
                "warn",
                "without checkpoints y is solved backward over the whole span, and where y decays that blows up; take "
                "checkpointing=True",
                "Gholami, Keutzer, Biros, IJCAI (2019)",
            )
        return Verdict("trusted", "y is put back at each step", _RUNS, method.name in _MEASURED_NON_STIFF)
    if isinstance(sensealg, InterpolatingAdjoint) and sensealg.checkpointing:
        rosenbrock = method.julia_package.endswith("Rosenbrock")
        if rosenbrock or not method.adaptive:
            return Verdict(
                "refused",
                "checkpointing solves each step again, which throws with Rosenbrock methods (time gradient) and with "
                "fixed steps (no dt is passed on); take checkpointing=False",
                _RUNS,
                (rosenbrock and group == "rodas") or method.name in ("Euler", "euler"),
            )
        if stiff:
            return Verdict("warn", "checkpointing was not tried with this method; take checkpointing=False", _SOURCE)
    if group == "rough":
        return Verdict(
            "warn",
            f"{method.name} is less accurate between its steps than at them, no tolerance controls that, and the "
            "adjoint reads y there; take BacksolveAdjoint, or Vern7 or Vern9",
            _SOURCE,
        )
    if group in ("explicit", "multistep"):
        steps = "" if method.adaptive else ", up to the discretisation error of the fixed steps"
        return Verdict("trusted", f"y(t) is as accurate as the steps{steps}", _RUNS, method.name in _MEASURED_NON_STIFF)
    return Verdict(
        "trusted",
        "y(t) from the method's dense output",
        f"{_RUNS}, Robertson",
        method.name in ("Rodas5P", "FBDF", "KenCarp4", "KenCarp47"),
    )


def _backward_verdict(forward: Method, sensealg: SenseAlg, method: Method) -> Verdict:
    """What of the gradient depends on the solver of the adjoint equation."""
    group, name = _group(method), method.name
    if not sensealg.continuous:
        return Verdict("trusted", "no adjoint equation", _SOURCE, True)
    if forward.adaptive and not method.adaptive:
        return Verdict(
            "refused", f"{name} has fixed steps, and an adaptive forward solve gives it no step size", "its definition"
        )
    if forward.kind == "stiff" and not method.adaptive:
        return Verdict(
            "refused" if _reads_between_steps(sensealg) else "warn",
            f"fixed steps of {name} miss the transients of the adjoint after each save point; take Rodas5P for it",
            _SOURCE,
        )
    if forward.kind == "stiff" and not method.stiff and method.kind != "stabilized":
        return Verdict(
            "warn", f"the adjoint of a stiff problem is stiff, and {name} is not for that; take Rodas5P", "not run"
        )
    if not _reads_between_steps(sensealg):
        measured = name in _MEASURED_NON_STIFF | {"Rodas5P", "FBDF", "KenCarp4", "KenCarp47"}
        return Verdict("trusted", "the parameter gradient is under error control", _RUNS, measured)
    if group in ("hermite", "stabilized"):
        measured = name in ("KenCarp4", "KenCarp47")
        return Verdict(
            "refused",
            f"{name}'s cubic interpolation overshoots after each save point, and the parameter gradient is read from "
            "it (off by 2x to 1000x); take adjoint_method='Rodas5P', or InterpolatingAdjoint",
            f"{_RUNS}, Robertson; OrdinaryDiffEq.jl #144" if measured else f"{_RUNS} with KenCarp4; {_SOURCE}",
            measured,
        )
    if isinstance(sensealg, GaussAdjoint | GaussKronrodAdjoint) and method.kind == "extrapolation":
        return Verdict(
            "refused",
            f"{name} has no order from which to take the number of quadrature points; take Tsit5 for the adjoint",
            _SOURCE,
        )
    if group == "bdf" or (method.order is None and group != "auto"):
        if isinstance(sensealg, GaussKronrodAdjoint) and name == "FBDF":
            return Verdict("trusted", "the quadrature has an error estimate", f"{_RUNS}, Robertson", True)
        return Verdict(
            "warn",
            f"{name} calls its order 1, so there is one quadrature point a step (5e-6 at a tolerance of 1e-9, whatever "
            "the tolerance); take adjoint_method='Rodas5P', or InterpolatingAdjoint",
            _RUNS if name in ("FBDF", "QNDF") else _SOURCE,
            name in ("FBDF", "QNDF"),
        )
    if group == "rough":
        return Verdict(
            "warn", f"{name} is less accurate between its steps than at them; take Vern7 for the adjoint", _SOURCE
        )
    if group == "stiff output":
        return Verdict("warn", f"{name} was not tried as the adjoint's solver; take Rodas5P", _SOURCE)
    if isinstance(sensealg, QuadratureAdjoint) and forward.stiff:
        return Verdict(
            "warn",
            "an error of 1.5e-5 stays on Robertson's problem whatever the tolerance; take GaussAdjoint",
            _RUNS,
            name == "Rodas5P",
        )
    return Verdict(
        "trusted",
        f"{name}'s dense output is as accurate as its steps",
        _RUNS,
        name in _MEASURED_NON_STIFF or name == "Rodas5P",
    )


def _floor(sensealg: SenseAlg, rtol: float | None) -> Verdict:
    if rtol is not None and rtol < 1e-7 and isinstance(sensealg, GaussKronrodAdjoint):
        return Verdict(
            "warn",
            f"its quadrature's tolerance is fixed at 1e-7 (absolute), above the rtol of {rtol:g}; take GaussAdjoint or "
            "InterpolatingAdjoint",
            _RUNS,
            True,
        )
    return Verdict("trusted", "no floor above the tolerance", _RUNS, True)
