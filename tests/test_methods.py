from __future__ import annotations

import re
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchdiffeq import odeint
from torchdiffeq._impl.fehlberg2 import _FEHLBERG2_TABLEAU
from torchdiffeq._impl.odeint import SOLVERS
from torchdiffeq._impl.solvers import FixedGridODESolver

from pyjode.errors import InputError
from pyjode.methods import KINDS, find_method, methods

ALL = methods()
NAMES = [m.name for m in ALL]
# torchdiffeq's names; "auto" is pyjode's.
ALIASES = [m for m in ALL if m.note]
JULIAS_OWN = [m for m in ALL if not m.note and m.name != "auto"]


def test_every_method_is_found_by_its_name():
    assert len(ALL) > 200 and len(set(NAMES)) == len(NAMES)
    for m in ALL:
        assert find_method(m.name) is m and find_method(m) is m
        assert m.description and m.citation and m.kind in KINDS and m.julia_package.startswith("OrdinaryDiffEq")
        assert m.order is None or m.order >= 1


@given(st.sampled_from(NAMES), st.randoms())
def test_a_name_in_the_wrong_case_is_suggested(name, random):
    wrong = "".join(random.choice((c.lower(), c.upper())) for c in name)
    if wrong in NAMES:
        return
    with pytest.raises(InputError, match="did you mean") as refusal:
        find_method(wrong)
    suggested = re.search(r"did you mean '(\w+)'\?", str(refusal.value))
    assert suggested is not None and suggested.group(1).lower() == name.lower()


@pytest.mark.parametrize(("wrong", "right"), [("rodas5p", "Rodas5P"), ("Tist5", "Tsit5"), ("KenCarp", "KenCarp4")])
def test_a_mistyped_name_gets_the_nearest(wrong, right):
    with pytest.raises(InputError, match=f"'{wrong}'; did you mean .*'{right}'"):
        find_method(wrong)


@pytest.mark.parametrize("wrong", ["", "zzz", "scipy", "SBDF2", "KahanLi8"])
def test_what_is_not_there_is_refused(wrong):
    with pytest.raises(InputError, match=r"methods\(\)"):
        find_method(wrong)


@pytest.mark.parametrize("wrong", [5, None, torch.zeros(1), str])
def test_a_method_must_be_a_name(wrong):
    with pytest.raises(InputError, match="name of a method"):
        find_method(wrong)


def test_filters():
    assert {m.kind for m in ALL} == set(KINDS)
    for kind in KINDS:
        assert [m.name for m in methods(kind=kind)] == [m.name for m in ALL if m.kind == kind] != []
    assert set(methods(adaptive=True)) | set(methods(adaptive=False)) == set(ALL)
    assert "Rodas5P" in {m.name for m in methods("stiff", "julia", True)}
    with pytest.raises(InputError, match="stiff"):
        methods(kind="implicit")
    with pytest.raises(InputError, match="torchdiffeq"):
        methods(engine="jax")


def test_the_table_prints_a_line_for_each():
    stiff = methods(kind="stiff")
    lines = str(stiff).splitlines()
    assert len(lines) == len(stiff) + 2 and lines[0].split() == ["name", "kind", "order", "steps", "engines"]
    assert any(line.split()[:4] == ["Rodas5P", "stiff", "5", "adaptive"] for line in lines)
    assert any(line.split()[:4] == ["FBDF", "stiff", "varies", "adaptive"] for line in lines)


# In torchdiffeq's source since 2025, in no release up to 0.2.5.
NEWER = {"tsit5", "implicit_euler", "implicit_midpoint", "trapezoid", "radauIIA3", "radauIIA5", "gl4", "gl6", "sdirk2"}
NEWER |= {"trbdf2"}


def test_every_torchdiffeq_method_is_an_alias_with_its_own_step_control():
    names = set(SOLVERS)
    assert names | NEWER == {m.name for m in ALIASES}
    for m in ALIASES:
        assert "Julia runs" in m.note
        if m.name in names - {"scipy_solver"} - NEWER:
            solver = SOLVERS[m.name]
            assert m.torchdiffeq_name == m.name and "torchdiffeq" in m.engines and "Julia runs" in m.note
            assert m.adaptive != issubclass(solver, FixedGridODESolver)
            assert m.kind == "multistep" or m.order == solver.order


def test_the_embedded_engine_has_only_what_torchdiffeq_has():
    for m in methods(engine="torchdiffeq"):
        assert m.torchdiffeq_name is not None
        if m.name == "scipy_solver":
            continue
        assert m.adaptive != issubclass(SOLVERS[m.torchdiffeq_name], FixedGridODESolver)
    own = {m.name for m in methods(engine="torchdiffeq") if not m.note}
    assert own == {"DP5", "BS3", "Heun", "Euler"}  # neither RK4 (another tableau) nor Midpoint (adaptive)
    assert all(m.torchdiffeq_name is None for m in ALL if m.engines == ("julia",))


def tableau(expr: str) -> tuple[list[list[float]], ...]:
    """The matrices written in a Julia expression."""
    found = re.findall(r"Float64\[(.*?)\]", expr)
    rows = ([re.split(r"[, ]+", row.strip()) for row in matrix.split(";")] for matrix in found)
    return tuple([[float(Fraction(x)) for x in row] for row in matrix] for matrix in rows)


def step(a, c, b, f, t, y, h):
    k = []
    for row, node in zip(a, c, strict=True):
        k.append(f(t + node * h, y + h * sum((x * kj for x, kj in zip(row, k, strict=False)), torch.zeros_like(y))))
    return y + h * sum(x * kj for x, kj in zip(b, k, strict=True))


def test_heun3_writes_torchdiffeqs_tableau():
    a, (c,), (b,) = tableau(find_method("heun3").julia_expr)
    f = lambda t, y: torch.sin(3 * t) * y - y**2  # noqa: E731
    y0, ts = torch.tensor([0.7], dtype=torch.float64), torch.tensor([0.2, 0.9], dtype=torch.float64)
    one_step = odeint(f, y0, ts, method="heun3")[1]
    assert torch.allclose(step(a, c, b, f, ts[0], y0, ts[1] - ts[0]), one_step, rtol=1e-15, atol=0)


def test_fehlberg2_writes_torchdiffeqs_tableau():
    a, (c,), (b,), (low,) = tableau(find_method("fehlberg2").julia_expr)
    theirs = _FEHLBERG2_TABLEAU
    assert c[1:] == theirs.alpha.tolist() and b == theirs.c_sol.tolist()
    assert [row[: i + 1] for i, row in enumerate(a[1:])] == [x.tolist() for x in theirs.beta]
    assert [x - y for x, y in zip(b, low, strict=True)] == pytest.approx(theirs.c_error.tolist(), abs=1e-17)


def test_constructors_fit_a_callback_into_python():
    for m in ALL:
        if m.stiff:
            assert "AutoFiniteDiff()" in m.julia_expr, m.name
        if "Verner" in m.julia_package or m.name == "BS5":
            assert "lazy=false" in m.julia_expr, m.name
        if "Extrapolation" in m.name or m.name in ("PDIRK44", "KuttaPRK2p5"):
            assert "threading=false" in m.julia_expr, m.name
    assert not find_method("ROCK4").stiff and find_method("AutoTsit5").stiff


def test_rough_output_names_methods_whose_dense_output_falls_behind():
    rough = {m.name for m in ALL if m.rough_output}
    assert {"Feagin14", "TanYam7", "VCABM", "ABM54"} <= rough
    assert not rough & {"Tsit5", "DP5", "dopri5", "BS3", "RK4", "rk4", "DP8", "Vern7", "Vern9", "Rodas5P", "KenCarp4"}


# Julia types these as adaptive, but they have no error estimate.
NO_ERROR_ESTIMATE = {"SSPRKMSVS32", "SSPRKMSVS43"}
# Made from Rodas4's kind of interpolant, but left out of Julia's list.
UNLISTED_STIFF_OUTPUT = {"Rodas42"}


@pytest.mark.julia
@pytest.mark.parametrize("name", NAMES)
def test_julia_agrees(name, julia_eval):
    m = find_method(name)
    alg = f'construct("{m.julia_package}", "{m.julia_expr}")'
    if m.order is not None:
        assert int(julia_eval(f"Base.invokelatest(SciMLBase.alg_order, {alg})")) == m.order
    adaptive = julia_eval(f"Base.invokelatest(OrdinaryDiffEqCore.isadaptive, {alg})") == "true"
    assert adaptive == m.adaptive or (adaptive and (m in ALIASES or name in NO_ERROR_ESTIMATE))
    if m.kind != "auto":
        lazy = julia_eval(f"Base.invokelatest(SciMLBase.has_lazy_interpolation, {alg})")
        assert lazy == "false"
        stiff_output = julia_eval(f"Base.invokelatest(OrdinaryDiffEqCore.has_stiff_interpolation, {alg})") == "true"
        assert stiff_output == (m.stiff_interpolation and name not in UNLISTED_STIFF_OUTPUT)


LEFT_OUT = re.compile(
    r"SplitEuler|SBDF\d?|IMEX\w+|ARS\d+|BHR553|IRKC|D(FBDF|ABDF2|ImplicitEuler|NordsieckBDF)|Tsit5DA"
    r"|HybridExplicitImplicitRK|ExplicitRK|JVODE|pRRK\d+|DefaultImplicitODEAlgorithm|Predictor"
    # Wrong in place: see pyjode/methods.py.
    r"|RKV76IIa"
    # Exported, and no algorithms.
    r"|\w*Cache|full_cache|\w+Tableau"
)


@pytest.mark.julia
@pytest.mark.parametrize("package", sorted({p for m in ALL for p in m.julia_package.split() if "Tableaus" not in p}))
def test_no_algorithm_of_the_packages_is_missing(package, julia_eval):
    own = "(x -> (x isa Type || x isa Function) && parentmodule(x) === mod)"
    names = julia_eval(
        f'load!("{package}"); let mod = getfield(Sandbox, :{package}); '
        f'join((string(n) for n in names(mod) if {own}(Base.invokelatest(getfield, mod, n))), " ") end'
    )
    missing = [n for n in names.split() if n not in NAMES and not LEFT_OUT.fullmatch(n)]
    assert names and not missing


@pytest.mark.julia
def test_rk4_is_torchdiffeqs_three_eighths_rule(julia_eval):
    m = find_method("rk4")
    made = f'construct("{m.julia_package}", "{m.julia_expr}").tableau'
    a = torch.tensor([float(x) for x in julia_eval(f'join(vec(permutedims({made}.A)), " ")').split()]).double()
    c, b = ([float(x) for x in julia_eval(f'join({made}.{x}, " ")').split()] for x in ("c", "α"))
    f = lambda t, y: torch.sin(3 * t) * y - y**2  # noqa: E731
    y0, ts = torch.tensor([0.7], dtype=torch.float64), torch.tensor([0.2, 0.9], dtype=torch.float64)
    one_step = odeint(f, y0, ts, method="rk4")[1]
    ours = step(a.reshape(4, 4).tolist(), c, b, f, ts[0], y0, ts[1] - ts[0])
    assert torch.allclose(ours, one_step, rtol=1e-7)
