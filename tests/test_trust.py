from __future__ import annotations

import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyjode.errors import InputError, UnsupportedError
from pyjode.methods import find_method, methods
from pyjode.sensealgs import (
    BacksolveAdjoint,
    DiscreteAdjoint,
    GaussAdjoint,
    GaussKronrodAdjoint,
    InterpolatingAdjoint,
    QuadratureAdjoint,
)
from pyjode.trust import (
    UntrustedGradient,
    adjoint_tolerances,
    check_pair,
    default_adjoint_method,
    default_sensealg,
)

NAMES = [m.name for m in methods()]
STIFF = [m.name for m in methods(kind="stiff")]
SENSEALGS = [
    GaussAdjoint(),
    GaussKronrodAdjoint(),
    InterpolatingAdjoint(),
    InterpolatingAdjoint(checkpointing=True),
    QuadratureAdjoint(),
    BacksolveAdjoint(),
    BacksolveAdjoint(checkpointing=False),
    DiscreteAdjoint(),
]


@pytest.mark.parametrize("name", NAMES)
def test_every_method_has_a_verdict_for_every_sensealg(name):
    for sensealg in SENSEALGS:
        for backward in (None, default_adjoint_method(name, sensealg), "Rodas5P"):
            verdict = check_pair(name, sensealg, backward)
            assert verdict.level in ("trusted", "warn", "refused")
            assert verdict.reason and verdict.evidence and name in verdict.pair


@pytest.mark.parametrize("name", NAMES)
def test_defaults_are_trusted(name):
    sensealg = default_sensealg(name)
    verdict = check_pair(name, sensealg, default_adjoint_method(name, sensealg))
    assert verdict.level == "trusted", verdict
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        verdict.enforce()


@pytest.mark.parametrize("name", NAMES)
def test_a_default_adjoint_method_is_never_worse_than_the_forward_one(name):
    levels = ["trusted", "warn", "refused"]
    for sensealg in SENSEALGS:
        own = check_pair(name, sensealg)
        default = check_pair(name, sensealg, default_adjoint_method(name, sensealg))
        assert levels.index(default.level) <= levels.index(own.level)


# What was seen, row by row: (method, sensealg, adjoint method, verdict).
SEEN = [
    *[
        (method, sensealg, None, "trusted")
        for method in ("Tsit5", "DP5", "BS3", "DP8", "RK4", "Vern7", "Vern9")
        for sensealg in (
            "GaussAdjoint", "GaussKronrodAdjoint", "InterpolatingAdjoint", "QuadratureAdjoint", "BacksolveAdjoint",
        )
    ],
    ("Rodas5P", "DiscreteAdjoint", None, "trusted"),
    ("Rodas5P", "GaussAdjoint", None, "trusted"),
    ("Rodas5P", "GaussKronrodAdjoint", None, "trusted"),
    ("Rodas5P", "InterpolatingAdjoint", None, "trusted"),
    ("Rodas5P", "QuadratureAdjoint", None, "warn"),
    ("Rodas5P", InterpolatingAdjoint(checkpointing=True), None, "refused"),
    ("Euler", InterpolatingAdjoint(checkpointing=True), None, "refused"),
    ("Tsit5", InterpolatingAdjoint(checkpointing=True), None, "trusted"),
    ("FBDF", "GaussAdjoint", None, "warn"),
    ("QNDF", "GaussAdjoint", None, "warn"),
    ("FBDF", "GaussKronrodAdjoint", None, "trusted"),
    ("FBDF", "InterpolatingAdjoint", None, "trusted"),
    *[
        (method, sensealg, None, "refused")
        for method in ("KenCarp4", "KenCarp47", "TRBDF2", "Kvaerno5")
        for sensealg in ("GaussAdjoint", "GaussKronrodAdjoint", "QuadratureAdjoint")
    ],
    ("KenCarp4", "InterpolatingAdjoint", None, "trusted"),
    ("KenCarp47", "InterpolatingAdjoint", None, "trusted"),
    ("KenCarp4", "GaussAdjoint", "Rodas5P", "trusted"),
    *[(method, "BacksolveAdjoint", None, "refused") for method in ("Rodas5P", "FBDF", "KenCarp4")],
]  # fmt: skip


@pytest.mark.parametrize(("method", "sensealg", "backward", "level"), SEEN)
def test_what_was_measured(method, sensealg, backward, level):
    verdict = check_pair(method, sensealg, backward)
    assert verdict.level == level
    assert verdict.measured or method in ("TRBDF2", "Kvaerno5")  # run, but with other sensealgs or without their cause


@pytest.mark.parametrize("name", STIFF)
def test_no_stiff_method_backsolves(name):
    for checkpointing in (True, False):
        verdict = check_pair(name, BacksolveAdjoint(checkpointing=checkpointing))
        with pytest.raises(UnsupportedError, match=f"{name} with BacksolveAdjoint.*blows up"):
            verdict.enforce()


@pytest.mark.parametrize("name", [n for n in STIFF if not find_method(n).stiff_interpolation])
@pytest.mark.parametrize("sensealg", ["GaussAdjoint", "GaussKronrodAdjoint", "QuadratureAdjoint"])
def test_hermite_adjoints_are_refused_and_rodas5p_takes_over(name, sensealg):
    assert check_pair(name, sensealg).level == "refused"
    assert default_adjoint_method(name, sensealg) == "Rodas5P"
    assert check_pair(name, sensealg, "Rodas5P").level != "refused"


def test_only_explicit_runge_kutta_and_rosenbrock_methods_have_a_discrete_adjoint():
    reuse_jacobians = {"ROS2S", "ROS34PW1a", "ROS34PW1b", "ROS34PW2", "ROS34PW3", "ROS34PRw", "ROK4a", "Rodas4PW"}
    others = reuse_jacobians | {"RosenbrockW6S4OS", "Rodas23W", "Rosenbrock23", "Rosenbrock32"}
    for m in methods():
        rosenbrock = m.julia_package == "OrdinaryDiffEqRosenbrock" and m.name not in others
        assert (check_pair(m, DiscreteAdjoint()).level == "trusted") == (m.kind == "explicit" or rosenbrock)
        assert default_adjoint_method(m, DiscreteAdjoint()) is None


@pytest.mark.parametrize(
    ("method", "sensealg", "backward", "level"),
    [
        ("Rodas5P", "GaussAdjoint", "Tsit5", "warn"),  # a stiff adjoint by a non-stiff method
        ("Tsit5", "GaussAdjoint", "KenCarp4", "refused"),  # the adjoint's interpolation is what counts
        ("Tsit5", "GaussAdjoint", "Euler", "refused"),  # no step size to take
        ("rk4", "GaussAdjoint", None, "trusted"),
        ("Feagin14", "GaussAdjoint", "Vern9", "warn"),  # y(t) by cubic interpolation
        ("Feagin14", "BacksolveAdjoint", None, "trusted"),
        ("Tsit5", BacksolveAdjoint(checkpointing=False), None, "warn"),
        ("ExtrapolationMidpointDeuflhard", "GaussAdjoint", None, "refused"),
        ("AutoTsit5", "BacksolveAdjoint", None, "refused"),
        ("ROCK4", "GaussAdjoint", None, "refused"),
        ("ROCK4", "BacksolveAdjoint", None, "refused"),
    ],
)
def test_what_follows_from_the_sources(method, sensealg, backward, level):
    assert check_pair(method, sensealg, backward).level == level


def test_a_warning_names_pair_reason_and_way_out():
    with pytest.warns(UntrustedGradient, match=r"FBDF with GaussAdjoint\(\).*one quadrature point.*check_gradient"):
        check_pair("FBDF", "GaussAdjoint").enforce()


def test_gauss_kronrods_fixed_tolerance():
    assert check_pair("Tsit5", "GaussKronrodAdjoint", rtol=1e-6).level == "trusted"
    assert check_pair("Tsit5", "GaussKronrodAdjoint", rtol=1e-9).level == "warn"
    assert check_pair("Tsit5", "GaussAdjoint", rtol=1e-9).level == "trusted"


def test_unknown_names_are_refused():
    with pytest.raises(InputError, match="Tsit5"):
        check_pair("Tsit6", "GaussAdjoint")
    with pytest.raises(InputError, match="GaussAdjoint"):
        check_pair("Tsit5", "Gauss")
    with pytest.raises(InputError, match="Rodas5P"):
        check_pair("Tsit5", "GaussAdjoint", "Rodas5p")


@given(
    st.sampled_from(NAMES),
    st.floats(1e-14, 1e-1),
    st.floats(1e-16, 1e-1),
    st.sampled_from([2.220446049250313e-16, 1.1920928955078125e-07]),
)
def test_adjoint_tolerances_are_no_looser_and_reachable(name, rtol, atol, eps):
    adjoint_rtol, adjoint_atol = adjoint_tolerances(rtol, atol, name, eps)
    assert 0 < adjoint_rtol <= rtol and 0 < adjoint_atol <= atol
    assert adjoint_rtol == rtol or adjoint_rtol >= 10 * eps
    if not find_method(name).stiff:
        assert (adjoint_rtol, adjoint_atol) == (rtol, atol)
    elif eps < 1e-10:
        assert adjoint_rtol <= max(1e-8, 1e-12)


def test_adjoint_tolerances_of_a_stiff_method():
    assert adjoint_tolerances(1e-6, 1e-8, "Rodas5P") == pytest.approx((1e-8, 1e-10))
    assert adjoint_tolerances(1e-3, 1e-6, "KenCarp4") == pytest.approx((1e-8, 1e-10))
    assert adjoint_tolerances(1e-6, 1e-8, "Tsit5") == (1e-6, 1e-8)
