"""How gradients are computed: SciMLSensitivity's continuous adjoints by their own names, and the discrete adjoint.

The continuous ones solve the adjoint equation backward in time,

    dλ/dt = -(df/dy)ᵀ λ,   λ jumps by dL/dy(t_i) at each save point,   dL/dp = ∫ (df/dp)ᵀ λ dt,

and differ in where they take y(t) from and how they do the integral. f's two vector-Jacobian products come from torch.
Which to trust with which method is in :mod:`pyjode.trust`.

The expressions say ``autojacvec=ZygoteVJP()`` although Zygote never runs: SciMLSensitivity takes the ``vjp`` and
``vjp_p`` that the ODEFunction carries before it looks at autojacvec (derivative_wrappers.jl, gauss_adjoint.jl and
quadrature_adjoint.jl of 7.112). What autojacvec still decides is scratch memory: its default tries Enzyme on f first,
and ``false`` allocates dense matrices of n x n and n x (number of parameters), beyond any memory for a convolutional f.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from pyjode.errors import InputError
from pyjode.methods import nearest

_VJP = "autojacvec=ZygoteVJP()"


@dataclass(frozen=True)
class SenseAlg:
    """Base class of the sensitivity algorithms."""

    continuous: ClassVar[bool] = True
    """Whether it solves the adjoint differential equation, with a solver and tolerances of its own."""

    @property
    def julia_expr(self) -> str | None:
        """Julia expression that makes it, with SciMLSensitivity loaded; ``None``: not one of SciMLSensitivity's."""
        return f"{type(self).__name__}({_VJP})"

    @property
    def needs_dense(self) -> bool:
        """Whether the forward solve must keep its dense output."""
        return True


@dataclass(frozen=True)
class GaussAdjoint(SenseAlg):
    """Adjoint equation for λ alone; the parameter integral by Gauss quadrature at each step's end.

    Cost: an adjoint state of n numbers whatever the number of parameters, and memory for the forward steps. The
    default: cheapest with many parameters and, with an implicit method, the only affordable one.
    The quadrature has (order + 1) / 2 points a step and no error estimate: its error follows the steps. It reads λ
    between steps, so the adjoint's solver needs a good dense output.

    Cite: Norcliffe, Deisenroth, "Faster training of neural ODEs using Gauss-Legendre quadrature", TMLR (2023).
    """


@dataclass(frozen=True)
class GaussKronrodAdjoint(SenseAlg):
    """:class:`GaussAdjoint` with an error estimate of the quadrature, which halves a step until it is below 1e-7.

    Cost: two to four times GaussAdjoint's vector-Jacobian products. The 1e-7 is absolute and fixed in SciMLSensitivity:
    at tolerances below it no better than GaussAdjoint, for gradients much smaller than 1e-7 no check at all.

    Cite: Norcliffe, Deisenroth, TMLR (2023); Laurie, Math. Comp. 66 (1997) for the quadrature.
    """


@dataclass(frozen=True)
class InterpolatingAdjoint(SenseAlg):
    """Adjoint equation for λ and the parameter gradient together, y(t) from the forward solve's dense output.

    Cost: an adjoint state of n + (number of parameters) numbers, all under error control; with an implicit method its
    linear systems grow with the parameters: 2800 of them took 17 to 31 s where GaussAdjoint takes about one. Use it for
    few parameters, with explicit or stabilized methods, and to check the others.

    Args:
        checkpointing: keep only the states at the steps and solve each step again for y(t): less memory, about one more
            forward solve. Not with Rosenbrock or fixed-step methods.

    Cite: Rackauckas et al., "Universal differential equations for scientific machine learning", arXiv:2001.04385
    (2020); Ma et al., "A comparison of automatic differentiation and continuous sensitivity analysis for derivatives of
    differential equation solutions", IEEE HPEC (2021).
    """

    checkpointing: bool = False

    @property
    def julia_expr(self) -> str:
        return f"InterpolatingAdjoint({_VJP}, checkpointing={_julia(self.checkpointing)})"


@dataclass(frozen=True)
class QuadratureAdjoint(SenseAlg):
    """Adjoint equation for λ, kept dense; then the parameter integral by adaptive Gauss-Kronrod quadrature.

    Cost: memory for the dense λ as well as the dense y. For stiff problems of moderate size (Kim et al.); seen there
    with errors that tighter tolerances do not remove (1.5e-5 on Robertson's problem).

    Args:
        abstol, reltol: tolerances of the adjoint solve and the quadrature; ``None``: those of the adjoint solve.

    Cite: Kim, Ji, Deng, Ma, Rackauckas, "Stiff neural ordinary differential equations", Chaos 31 (2021).
    """

    abstol: float | None = None
    reltol: float | None = None

    def __post_init__(self) -> None:
        for name in ("abstol", "reltol"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and 0 < value < math.inf):
                raise InputError(f"QuadratureAdjoint's {name} must be a positive number, got {value!r}.")

    @property
    def julia_expr(self) -> str:
        given = {"abstol": self.abstol, "reltol": self.reltol}
        options = "".join(f", {name}={float(value)!r}" for name, value in given.items() if value is not None)
        return f"QuadratureAdjoint({_VJP}{options})"


@dataclass(frozen=True)
class BacksolveAdjoint(SenseAlg):
    """Adjoint equation for λ, the parameter gradient and y together, y solved backward from its end.

    Cost: an adjoint state of 2n + (number of parameters) numbers; with ``checkpointing=False`` no memory for the
    forward steps at all. What torchdiffeq's ``odeint_adjoint`` does (without checkpoints). For non-stiff problems only:
    a decaying y grows backward in time, and on stiff problems the gradient was always wrong, up to 1e300.

    Args:
        checkpointing: put y back to the forward solve's value at each of its steps.

    Cite: Chen, Rubanova, Bettencourt, Duvenaud, "Neural ordinary differential equations", NeurIPS (2018).
    """

    checkpointing: bool = True

    @property
    def julia_expr(self) -> str:
        return f"BacksolveAdjoint({_VJP}, checkpointing={_julia(self.checkpointing)})"

    @property
    def needs_dense(self) -> bool:
        return False


@dataclass(frozen=True)
class DiscreteAdjoint(SenseAlg):
    """The gradient of the numbers the solver computed: a reverse sweep over its accepted steps, stage by stage.

    For explicit Runge-Kutta methods, and for Rosenbrock methods (Rodas5P and its kin) of a native f. Exact to round-off
    for the discrete solution, at any tolerance; what backpropagation through the solver means, without its tape: only
    the steps are kept, and there is no stop at each save point. Step sizes count as constants. For a loose solve it is
    the gradient of that loose solution.

    A Rosenbrock method's steps depend on f's Jacobian, so their derivative needs f's second derivatives, as products of
    vectors; pyjode lowers them to Julia with f. Its cost: a step's stages again, and for each stage a linear solve with
    the step's factors, a vector-Jacobian product and a second-order one (or one for each row of a
    block, where these are fewer).

    Cite: Hairer, Norsett, Wanner, Solving ODEs I (1993), II.6 (derivatives of Runge-Kutta solutions); Kidger, "On
    neural differential equations", thesis, Oxford (2022), 5.1 (discretise-then-optimise); Daescu, Sandu, Carmichael,
    "Direct and adjoint sensitivity analysis of chemical kinetic systems with KPP: II", Atmos. Environ. 37 (2003), 2.3
    (Rosenbrock methods).
    """

    continuous: ClassVar[bool] = False

    @property
    def julia_expr(self) -> None:
        return None


_SENSEALGS: dict[str, type[SenseAlg]] = {
    cls.__name__: cls
    for cls in (
        GaussAdjoint,
        GaussKronrodAdjoint,
        InterpolatingAdjoint,
        QuadratureAdjoint,
        BacksolveAdjoint,
        DiscreteAdjoint,
    )
}


def find_sensealg(name: Any) -> SenseAlg:
    """The sensitivity algorithm of that name.

    Args:
        name: a string or a class, for its default options; or an object, which comes back as it is.

    Raises:
        InputError: none of that name; the message names the nearest. Or neither name, class nor object.
    """
    if isinstance(name, SenseAlg) and type(name) is not SenseAlg:
        return name
    if isinstance(name, type) and name in _SENSEALGS.values():
        return name()
    if not isinstance(name, str):
        raise InputError(f"sensealg must be a name, e.g. 'GaussAdjoint', or an object of that class, not {name!r}.")
    if name in _SENSEALGS:
        return _SENSEALGS[name]()
    known = ", ".join(_SENSEALGS)
    raise InputError(f"There is no sensealg {name!r}{nearest(name, _SENSEALGS)} There are {known}.")


def _julia(value: bool) -> str:
    return "true" if value else "false"
