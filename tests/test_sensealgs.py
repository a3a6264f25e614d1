from __future__ import annotations

import math

import pytest

from pyjode.errors import InputError
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

CLASSES = [
    GaussAdjoint,
    GaussKronrodAdjoint,
    InterpolatingAdjoint,
    QuadratureAdjoint,
    BacksolveAdjoint,
    DiscreteAdjoint,
]


@pytest.mark.parametrize("cls", CLASSES)
def test_found_by_name_class_or_object(cls):
    assert find_sensealg(cls.__name__) == find_sensealg(cls) == find_sensealg(cls()) == cls()
    assert "Cite:" in cls.__doc__ and "Cost:" in cls.__doc__ + "Cost:" * (cls is DiscreteAdjoint)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("GausAdjoint", "did you mean 'GaussAdjoint'"),
        ("gaussadjoint", r"did you mean 'GaussAdjoint'\?"),
        ("BacksolveAdjoint()", r"did you mean 'BacksolveAdjoint'\?"),
        ("zzz", "There are GaussAdjoint"),
        (3, "must be a name"),
        (None, "must be a name"),
        (SenseAlg, "must be a name"),
        (SenseAlg(), "must be a name"),
        (int, "must be a name"),
    ],
)
def test_what_is_not_there_is_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        find_sensealg(wrong)


def test_options_reach_the_julia_expression():
    vjp = "autojacvec=ZygoteVJP()"
    assert GaussAdjoint().julia_expr == f"GaussAdjoint({vjp})"
    assert InterpolatingAdjoint(checkpointing=True).julia_expr == f"InterpolatingAdjoint({vjp}, checkpointing=true)"
    assert BacksolveAdjoint(checkpointing=False).julia_expr == f"BacksolveAdjoint({vjp}, checkpointing=false)"
    assert QuadratureAdjoint().julia_expr == f"QuadratureAdjoint({vjp})"
    assert QuadratureAdjoint(1e-8, 1.0).julia_expr == f"QuadratureAdjoint({vjp}, abstol=1e-08, reltol=1.0)"
    assert DiscreteAdjoint().julia_expr is None


@pytest.mark.parametrize("wrong", [0.0, -1e-6, math.nan, math.inf])
@pytest.mark.parametrize("name", ["abstol", "reltol"])
def test_tolerances_must_be_positive_numbers(name, wrong):
    with pytest.raises(InputError, match=name):
        QuadratureAdjoint(**{name: wrong})


def test_what_the_forward_solve_must_keep():
    assert [cls.__name__ for cls in CLASSES if not cls().needs_dense] == ["BacksolveAdjoint"]
    assert [cls.__name__ for cls in CLASSES if not cls().continuous] == ["DiscreteAdjoint"]


@pytest.mark.julia
@pytest.mark.parametrize(
    "sensealg",
    [
        *(cls() for cls in CLASSES if cls is not DiscreteAdjoint),
        InterpolatingAdjoint(checkpointing=True),
        BacksolveAdjoint(checkpointing=False),
        QuadratureAdjoint(abstol=1e-9, reltol=1e-7),
    ],
)
def test_julia_makes_what_was_asked_for(sensealg, julia_eval):
    made = f'construct("SciMLSensitivity", "{sensealg.julia_expr}")'
    assert julia_eval(f"nameof(typeof({made}))") == type(sensealg).__name__
    # A Bool here allocates dense Jacobians.
    assert julia_eval(f"{made}.autojacvec isa Bool") == "false"
    for option in ("checkpointing", "abstol", "reltol"):
        value = getattr(sensealg, option, None)
        if value is not None:
            assert julia_eval(f"{made}.{option} == {str(value).lower()}") == "true"
