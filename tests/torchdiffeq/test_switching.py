"""docs/switching.md says what the code does: every keyword, option and method is in its tables, and nothing else."""

import inspect
import re
from pathlib import Path

import pytest
import torchdiffeq
from torchdiffeq._impl.odeint import SOLVERS
from torchdiffeq._impl.solvers import FixedGridODESolver

import pyjode
from pyjode.methods import find_method, methods
from pyjode.options import ADAMS, ADAPTIVE, FIXED, IMPLICIT, OPTIONS, SCIPY, options_of

PAGE = (Path(__file__).parents[2] / "docs" / "switching.md").read_text()
DOORS = ("odeint", "odeint_adjoint", "odeint_event", "odeint_dense")
OURS = {"batching", "engine", "max_time", "progress", "sensealg"}
FAMILIES = {"adaptive": ADAPTIVE, "fixed": FIXED, "Adams": ADAMS, "implicit": IMPLICIT, "scipy": SCIPY}


def table(heading: str) -> list[list[str]]:
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    return [[cell.strip(" |") for cell in row] for row in rows]


def named(rows: list[list[str]]) -> list[str]:
    return [name for row in rows for name in re.findall(r"`(\w+)`", row[0])]


def test_every_keyword_is_there_once():
    found = named(table("Keywords"))
    ours = {p for door in DOORS for p in inspect.signature(getattr(pyjode, door)).parameters}
    assert sorted(found) == sorted(ours - OURS - {"kwargs"})


@pytest.mark.parametrize("door", DOORS)
def test_every_keyword_of_torchdiffeq_is_ours_with_its_default(door):
    ours = inspect.signature(getattr(pyjode, door)).parameters
    for name, theirs in inspect.signature(getattr(torchdiffeq, door)).parameters.items():
        assert name in ours and ours[name].kind == theirs.kind, name
        if name == "odeint_interface":  # each its own
            assert ours[name].default is pyjode.odeint
        else:
            assert ours[name].default == theirs.default, name


def solver_options(name):
    """The options that torchdiffeq's solver of that name takes, by its constructors."""
    taken = {p for cls in SOLVERS[name].__mro__[:-1] for p in inspect.signature(cls.__init__).parameters}
    given = {"self", "func", "y0", "rtol", "atol", "kwargs", "unused_kwargs", "implicit"}
    # Fixed steps drop the norm that torchdiffeq passes to every solver.
    return taken - given - ({"norm"} if issubclass(SOLVERS[name], FixedGridODESolver) else set())


@pytest.mark.parametrize("name", SOLVERS)
def test_every_option_of_torchdiffeqs_solvers_is_known(name):
    assert solver_options(name) - {"args"} == set(options_of(find_method(name)))


def test_every_option_is_there_once_with_the_methods_that_take_it():
    rows = table("Options")
    assert sorted(named(rows)) == sorted(OPTIONS)
    for name, taken_by, *_ in rows:
        option = name.strip("`")
        families = set(taken_by.split(", "))
        if "fixed" in families:
            families |= {"Adams", "implicit"}
        assert families == {family for family, options in FAMILIES.items() if option in options}, option


def test_every_method_is_there_with_what_runs():
    rows = {row[0].strip("`"): row[1:] for row in table("Methods")}
    listed = [m for m in methods() if m.note]
    assert list(rows) == [m.name for m in listed] and set(SOLVERS) <= set(rows)
    for m in listed:
        order, steps, engines, note = rows[m.name]
        assert note == m.note.strip(" |") and order == str(m.order)
        assert steps == ("adaptive" if m.adaptive else "fixed")
        assert (engines == "both") == ("torchdiffeq" in m.engines)


@pytest.mark.parametrize(
    ("method", "family"),
    [("dopri5", "adaptive"), ("Tsit5", "adaptive"), ("Rodas5P", "adaptive"), ("rk4", "fixed"), ("Euler", "fixed"),
     ("implicit_adams", "Adams"), ("gl6", "implicit"), ("ImplicitMidpoint", "fixed"), ("scipy_solver", "scipy")],
)  # fmt: skip
def test_which_options_a_method_takes(method, family):
    assert options_of(find_method(method)) == FAMILIES[family]


def test_the_callbacks_are_named():
    for name in ("callback_step", "callback_accept_step", "callback_reject_step", "_adjoint"):
        assert f"`{name}`" in PAGE
