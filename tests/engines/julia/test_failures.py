"""What users see when something goes wrong on the Julia engine."""

import os
import subprocess
import sys

import pytest
import torch

import pyjode

ONE = torch.ones(1, dtype=torch.float64)
T = torch.tensor([0.0, 1.0], dtype=torch.float64)


def test_julia_missing(tmp_path):
    code = """
import torch, pyjode, warnings
y0, t = torch.ones(1), torch.tensor([0.0, 1.0])
try:
    pyjode.odeint(lambda t, y: -y, y0, t, engine="julia")
except pyjode.EngineUnavailable as e:
    print("ERROR", "pyjode setup" in str(e))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(3):
        ys = pyjode.odeint(lambda t, y: -y, y0, t)
print(len(caught), "pyjode setup" in str(caught[0].message), round(ys[-1].item(), 3))
"""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON_JULIACALL", "JULIA", "PYJODE"))}
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=clean | {"PYJODE_CONFIG_DIR": str(tmp_path), "PYTHON_JULIAPKG_PROJECT": str(tmp_path / "none")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.split("\n")[:2] == ["ERROR True", "1 True 0.368"], result.stdout + result.stderr


@pytest.mark.julia
def test_an_exception_in_the_backward_pass_comes_out_as_itself():
    class MyError(Exception):
        pass

    class Fragile(torch.autograd.Function):
        @staticmethod
        def forward(ctx, y):
            return -y

        @staticmethod
        def backward(ctx, g):
            raise MyError("in backward")

    y0 = ONE.clone().requires_grad_()
    ys = pyjode.odeint(lambda t, y: Fragile.apply(y), y0, T, engine="julia")
    with pytest.raises(MyError, match="in backward"):
        ys.sum().backward()
    # The engine goes on.
    assert torch.isfinite(pyjode.odeint(lambda t, y: -y, ONE, T, engine="julia")).all()


@pytest.mark.julia
def test_nan_from_f_says_so():
    with pytest.raises(pyjode.SolverError) as caught:
        pyjode.odeint(lambda t, y: y * torch.nan, ONE, T, engine="julia")
    assert caught.value.retcode in ("Unstable", "DtNaN", "DtLessThanMin", "Failure")


@pytest.mark.julia
def test_step_size_underflow():
    with pytest.raises(pyjode.SolverError, match="t = 0.99|t = 1"):
        pyjode.odeint(lambda t, y: y**2, ONE, torch.tensor([0.0, 2.0]), method="Rodas5P", engine="julia")


@pytest.mark.julia
def test_f_that_changes_its_shape_later():
    def f(t, y):
        return -y if float(t) < 0.5 else -y[:0]

    with pytest.raises(pyjode.InputError, match="shape"):
        pyjode.odeint(f, ONE, T, engine="julia")


@pytest.mark.julia
def test_python_state_keeps_changing():
    class Counter(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.nfe = 0

        def forward(self, t, y):
            self.nfe += 1
            return -y

    f = Counter()
    s = pyjode.solve(pyjode.ODEProblem(f, ONE, (0.0, 1.0)), "Tsit5", saveat=[1.0], engine="julia", dense=False)
    assert abs(f.nfe - s.stats.nfe) <= 4
    assert pyjode.explain(f, ONE).way == "eager"


@pytest.mark.julia
def test_the_solution_f_keeps_is_its_own():
    """An eager f may keep what it is given: it must not be the solver's memory."""
    seen = []

    def f(t, y):
        seen.append((float(t), y))
        return -y

    pyjode.odeint(f, ONE, T, engine="julia", rtol=1e-9, atol=1e-11)
    for t, y in seen[-20:]:
        assert abs(y.item() - torch.exp(torch.tensor(-t)).item()) < 0.05


@pytest.mark.julia
def test_memory_is_given_back():
    from pyjode.engines.julia.runtime import julia_eval

    def objects():
        pyjode.odeint(lambda t, y: -y, ONE, T, engine="julia")
        return int(julia_eval("length(OBJECTS)"))

    k = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    before = objects()
    for _ in range(20):
        pyjode.odeint(lambda t, y: -k * y, ONE, T, engine="julia").sum().backward()
    assert objects() <= before + 4


@pytest.mark.julia
def test_right_hand_sides_are_not_kept_alive():
    import gc
    import weakref

    class F(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.k = torch.nn.Parameter(torch.ones((), dtype=torch.float64))

        def forward(self, t, y):
            return -self.k * y

    f = F()
    pyjode.odeint(f, ONE, T, engine="julia").sum().backward()
    gone = weakref.ref(f)
    del f
    gc.collect()
    assert gone() is None


@pytest.mark.julia
def test_solutions_of_one_f_do_not_share_their_parameters():
    """Two forward solves before two backward passes: each has its own function on the Julia side."""
    k = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)

    def f(t, y):
        return -k * y

    first = pyjode.odeint(f, ONE, T, engine="julia", rtol=1e-9, atol=1e-11)[-1].sum()
    second = pyjode.odeint(f, 2 * ONE, T, engine="julia", rtol=1e-9, atol=1e-11)[-1].sum()
    (by_second,) = torch.autograd.grad(second, k)
    (by_first,) = torch.autograd.grad(first, k)
    truth = -torch.exp(torch.tensor(-0.5, dtype=torch.float64))
    assert torch.allclose(by_first, truth, rtol=1e-7) and torch.allclose(by_second, 2 * truth, rtol=1e-7)
