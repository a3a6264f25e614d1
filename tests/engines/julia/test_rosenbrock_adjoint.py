"""The discrete adjoint of Rosenbrock methods: against autograd through the same steps, and finite differences."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn

import pyjode
from pyjode.methods import find_method, methods
from pyjode.trust import has_discrete_adjoint

pytestmark = pytest.mark.julia
DOUBLE = torch.float64
ROSENBROCK = [m.name for m in methods(kind="stiff") if m.stiff and has_discrete_adjoint(find_method(m.name))]


class Driven(nn.Module):
    """Nonlinear in the state and the parameters, and in time; rows of a batch apart."""

    def __init__(self, d: int, hidden: int = 4) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(1)
        self.a = nn.Parameter(torch.randn(d, hidden, generator=random, dtype=DOUBLE) / d**0.5)
        self.b = nn.Parameter(torch.randn(hidden, d, generator=random, dtype=DOUBLE) / hidden**0.5)
        self.rate = nn.Parameter(torch.tensor(3.0, dtype=DOUBLE))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(y @ self.a) @ self.b * torch.cos(self.rate * t) - self.rate * y**3 + torch.sin(t)


def tableau(name: str) -> dict[str, Tensor]:
    """What the solver holds, by PyJODE."""
    from pyjode.engines.julia.boundary import gate

    method = find_method(name)
    handle = gate().construct(method.julia_package, method.julia_expr)
    text = gate().evaluate(
        f"let t = Base.invokelatest(rosenbrock_tableau, object({handle}), Float64); "
        'rows(x) = "[" * join(["[" * join(x[i, :], ",") * "]" for i in axes(x, 1)], ",") * "]"; '
        '"{\\"a\\": $(rows(t.a)), \\"e\\": $(rows(t.c̃)), \\"g\\": $(t.γ), \\"b\\": $(t.b), \\"c\\": $(t.c), '
        '\\"d\\": $(t.d), \\"h\\": $(rows(t.η))}" end'
    )
    return {k: torch.tensor(x, dtype=DOUBLE) for k, x in json.loads(text.strip('"').replace('\\"', '"')).items()}


def by_autograd(f: nn.Module, tab: dict[str, Tensor], y0: Tensor, ts: Tensor, n_steps: int) -> Tensor:
    """States at ``ts`` by fixed steps from ``ts[0]`` to ``ts[-1]``, all of it on torch's tape."""
    t0, t1 = ts[0], ts[-1]
    h, shape = (t1 - t0) / n_steps, y0.shape
    g = lambda t, u: f(t, u.reshape(shape)).reshape(-1)  # noqa: E731
    u, out, s = y0.reshape(-1), [y0.reshape(-1)], len(tab["b"])
    for n in range(n_steps):
        t = t0 + n * h
        jac = torch.autograd.functional.jacobian(lambda u, t=t: g(t, u), u, create_graph=True)
        by_t = torch.autograd.functional.jacobian(lambda t, u=u: g(t, u), t, create_graph=True)
        w = torch.eye(len(u), dtype=DOUBLE) / (h * tab["g"]) - jac
        k: list[Tensor] = []
        for i in range(s):
            at = u + sum((tab["a"][i, j] * k[j] for j in range(i)), torch.zeros_like(u))
            right = g(t + tab["c"][i] * h, at) + h * tab["d"][i] * by_t
            right = right + sum((tab["e"][i, j] / h * k[j] for j in range(i)), torch.zeros_like(u))
            k.append(torch.linalg.solve(w, right))
        new = u + sum(tab["b"][i] * k[i] for i in range(s))
        for x in ts[1:]:
            theta = (x - t) / h
            if 1e-9 < theta <= 1 + 1e-9:
                rest = 1 - theta
                if theta > 1 - 1e-9:
                    out.append(new)
                elif len(tab["h"]):
                    terms = [tab["h"][m] @ torch.stack(k) for m in range(len(tab["h"]))]
                    poly = sum(theta**m * term for m, term in enumerate(terms))
                    out.append(rest * u + theta * (new + rest * poly))
                else:
                    slopes = g(t, u), g(t + h, new)
                    bump = (1 - 2 * theta) * (new - u) + (theta - 1) * h * slopes[0] + theta * h * slopes[1]
                    out.append(rest * u + theta * new + theta * (theta - 1) * bump)
        u = new
    return torch.stack(out).reshape(len(ts), *shape)


def gradients(f: nn.Module, y0: Tensor, ys: Tensor) -> list[Tensor]:
    weights = torch.linspace(0.3, 2.0, ys.numel(), dtype=DOUBLE).reshape(ys.shape)
    return list(torch.autograd.grad((weights * ys**2).sum(), (y0, *f.parameters())))


def fixed_steps(f: nn.Module, name: str, y0: Tensor, ts: Tensor, n_steps: int, **options: object) -> Tensor:
    span = (ts[0].item(), ts[-1].item())
    s = pyjode.solve(
        pyjode.ODEProblem(f, y0, span), name, saveat=ts, adaptive=False, dt=abs(span[1] - span[0]) / n_steps,
        sensealg="DiscreteAdjoint", engine="julia", **options,
    )  # fmt: skip
    return s.ys


def same(got: list[Tensor], wanted: list[Tensor], rtol: float) -> None:
    for a, b in zip(got, wanted, strict=True):
        assert (a - b).norm() <= rtol * b.norm()


TS = torch.tensor([0.0, 0.21, 0.4, 0.43, 0.79, 0.8], dtype=DOUBLE)


# The others compile for seconds each.
QUICK = {"Rodas5P", "Rodas4", "ROS3P", "Rodas3P"}


@pytest.mark.parametrize("name", [x if x in QUICK else pytest.param(x, marks=pytest.mark.slow) for x in ROSENBROCK])
def test_every_method_is_the_reverse_of_its_steps(name: str) -> None:
    f, y0 = Driven(2), torch.tensor([0.6, -0.4], dtype=DOUBLE, requires_grad=True)
    ys = fixed_steps(f, name, y0, TS, 4)
    wanted = by_autograd(f, tableau(name), y0, TS, 4)
    assert torch.allclose(ys, wanted, rtol=1e-11, atol=1e-12)
    same(gradients(f, y0, ys), gradients(f, y0, wanted), 1e-11)


@pytest.mark.parametrize("shape", [(), (1,), (9,), (5, 2), (3, 9)])
def test_every_shape(shape: tuple[int, ...]) -> None:
    """Fewer and more rows than stages, one block and several."""
    d = shape[-1] if shape else 1
    inner = Driven(d)
    if shape:
        f = inner
    else:

        class Scalar(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = inner

            def forward(self, t: Tensor, y: Tensor) -> Tensor:
                return self.inner(t, y[None])[0]

        f = Scalar()
    y0 = torch.linspace(-0.5, 0.7, max(1, torch.Size(shape).numel()), dtype=DOUBLE).reshape(shape).requires_grad_()
    ys = fixed_steps(f, "Rodas5P", y0, TS, 4)
    same(gradients(f, y0, ys), gradients(f, y0, by_autograd(f, tableau("Rodas5P"), y0, TS, 4)), 1e-11)


LAYERS = {
    "elu": nn.ELU, "gelu": nn.GELU, "silu": nn.SiLU, "softplus": nn.Softplus, "sigmoid": nn.Sigmoid, "mish": nn.Mish,
    "norm": lambda: nn.Sequential(nn.LayerNorm(4), nn.Tanh()), "softmax": lambda: nn.Softmax(-1),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_second_derivatives_of_layers(name: str) -> None:
    torch.manual_seed(2)
    f = nn.Sequential(nn.Linear(3, 4), LAYERS[name](), nn.Linear(4, 3)).double()

    class OfState(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = f

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return self.f(y) - y

    field, y0 = OfState(), torch.tensor([0.6, -0.4, 0.9], dtype=DOUBLE, requires_grad=True)
    ts = torch.tensor([0.0, 0.3, 0.8], dtype=DOUBLE)
    wanted = by_autograd(field, tableau("Rodas4"), y0, ts, 2)
    same(gradients(field, y0, fixed_steps(field, "Rodas4", y0, ts, 2)), gradients(field, y0, wanted), 1e-10)


def test_backwards_in_time() -> None:
    f, y0 = Driven(3), torch.tensor([0.6, -0.4, 0.2], dtype=DOUBLE, requires_grad=True)
    ts = torch.tensor([0.5, 0.31, 0.1], dtype=DOUBLE)
    ys = fixed_steps(f, "Rodas4", y0, ts, 4)
    same(gradients(f, y0, ys), gradients(f, y0, by_autograd(f, tableau("Rodas4"), y0, ts, 4)), 1e-11)


def test_gradients_by_times() -> None:
    """Against finite differences of a tight solve."""
    f, y0 = Driven(2), torch.tensor([0.6, -0.4], dtype=DOUBLE)

    def loss(ts: Tensor) -> Tensor:
        ys = pyjode.odeint(f, y0, ts, method="Rodas5P", rtol=1e-10, atol=1e-12, engine="julia")
        return (ys[1:] ** 2).sum()

    ts = torch.tensor([0.1, 0.5, 0.9], dtype=DOUBLE, requires_grad=True)
    (got,) = torch.autograd.grad(loss(ts), ts)
    for i in range(3):
        e = torch.zeros(3, dtype=DOUBLE)
        e[i] = 1e-4
        with torch.no_grad():
            wanted = (loss(ts + e) - loss(ts - e)) / 2e-4
        assert got[i].item() == pytest.approx(wanted.item(), rel=1e-5)


def test_adaptive_steps_and_float32() -> None:
    f, y0 = Driven(2), torch.tensor([0.6, -0.4], dtype=DOUBLE, requires_grad=True)

    def solved(f: nn.Module, y0: Tensor, method: str, rtol: float) -> Tensor:
        problem = pyjode.ODEProblem(f, y0, (0.0, 3.0))
        return pyjode.solve(problem, method, saveat=TS.to(y0) * 3, rtol=rtol, atol=rtol / 100, engine="julia").ys

    wanted = gradients(f, y0, solved(f, y0, "Vern9", 1e-12))
    same(gradients(f, y0, solved(f, y0, "Rodas5P", 1e-9)), wanted, 1e-6)
    single = Driven(2).float()
    y1 = y0.detach().float().requires_grad_()
    same([g.double() for g in gradients(single, y1, solved(single, y1, "Rodas5P", 1e-5))], wanted, 1e-3)


def test_it_is_the_default_of_a_native_f_alone() -> None:
    y0 = torch.tensor([0.6, -0.4], dtype=DOUBLE, requires_grad=True)
    f = Driven(2)
    problem = pyjode.ODEProblem(f, y0, (0.0, 0.8))
    options = {"saveat": TS, "engine": "julia", "rtol": 1e-9, "atol": 1e-11}
    default = gradients(f, y0, pyjode.solve(problem, "Rodas5P", **options).ys)
    asked = gradients(f, y0, pyjode.solve(problem, "Rodas5P", sensealg="DiscreteAdjoint", **options).ys)
    assert all(torch.equal(a, b) for a, b in zip(default, asked, strict=True))
    for way in ("traced", "eager"):
        continuous = gradients(f, y0, pyjode.solve(problem, "Rodas5P", rhs=way, **options).ys)
        same(continuous, default, 1e-6)
        assert not all(torch.equal(a, b) for a, b in zip(continuous, default, strict=True))
        with pytest.raises(pyjode.UnsupportedError, match=f"f is {way}.*GaussAdjoint"):
            pyjode.solve(problem, "Rodas5P", rhs=way, sensealg="DiscreteAdjoint", **options)


def test_without_second_derivatives_the_default_is_continuous(monkeypatch: pytest.MonkeyPatch) -> None:
    from pyjode.rhs import native

    def refuse(_: object) -> None:
        raise native.NotLowerable("op", "there is no Julia code")

    monkeypatch.setattr(native, "lower_second", refuse)
    f, y0 = Driven(2), torch.tensor([0.6, -0.4], dtype=DOUBLE, requires_grad=True)
    problem = pyjode.ODEProblem(f, y0, (0.0, 0.8))
    options = {"saveat": TS, "engine": "julia", "rtol": 1e-9, "atol": 1e-11}
    wanted = gradients(f, y0, pyjode.solve(problem, "Rodas5P", sensealg="GaussAdjoint", **options).ys)
    got = gradients(f, y0, pyjode.solve(problem, "Rodas5P", **options).ys)
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    for _ in range(2):
        with pytest.raises(pyjode.UnsupportedError, match="second derivatives in Julia.*no Julia code"):
            pyjode.solve(problem, "Rodas5P", sensealg="DiscreteAdjoint", **options)


def test_samples_alone_take_the_continuous_adjoint() -> None:
    f, y0 = Driven(2), torch.rand(3, 2, dtype=DOUBLE, requires_grad=True)
    problem = pyjode.ODEProblem(f, y0, (0.0, 0.8))
    options = {"saveat": TS, "engine": "julia", "rtol": 1e-9, "atol": 1e-11}
    alone = pyjode.solve(problem, "Rodas5P", batching="independent", **options).ys
    same(gradients(f, y0, alone), gradients(f, y0, pyjode.solve(problem, "Rodas5P", **options).ys), 1e-6)
    with pytest.raises(pyjode.UnsupportedError, match="joint"):
        pyjode.solve(problem, "Rodas5P", batching="independent", sensealg="DiscreteAdjoint", **options)


def test_parameters_changed_between_solves() -> None:
    """In place, and by a tensor elsewhere in memory: the code reads them through a table of addresses."""
    f, y0 = Driven(2), torch.tensor([0.6, -0.4], dtype=DOUBLE, requires_grad=True)
    tab = tableau("Rodas5P")
    for change in (lambda: None, lambda: f.a.data.mul_(0.5), lambda: setattr(f.b, "data", f.b.data.clone() * 2)):
        change()
        same(
            gradients(f, y0, fixed_steps(f, "Rodas5P", y0, TS, 4)),
            gradients(f, y0, by_autograd(f, tab, y0, TS, 4)),
            1e-11,
        )


def test_no_other_rosenbrock_method_could_have_one() -> None:
    others = [m.name for m in methods(kind="stiff") if "Rosenbrock" in m.julia_package and m.name not in ROSENBROCK]
    assert "Rosenbrock23" in others
    for name in others:
        with pytest.raises(pyjode.PyjodeError, match="does not take the steps of one Rosenbrock tableau"):
            tableau(name)


def test_check_gradient_names_the_adjoint_that_took_over(monkeypatch: pytest.MonkeyPatch) -> None:
    from pyjode.engines.julia import engine

    seen = []
    monkeypatch.setattr(engine, "check_gradient", lambda request, *_: seen.append(request.adjoint.sensealg))
    problem = pyjode.ODEProblem(Driven(2), torch.ones(2, dtype=DOUBLE, requires_grad=True), (0.0, 0.3))
    for way in ("native", "traced"):
        s = pyjode.solve(problem, "Rodas5P", saveat=[0.3], rhs=way, check_gradient=True, engine="julia")
        s.ys.sum().backward()
    assert seen == [pyjode.DiscreteAdjoint(), pyjode.GaussAdjoint()]


@pytest.mark.parametrize(
    "name", sorted(m.name for m in methods(kind="stiff") if not has_discrete_adjoint(find_method(m.name)))
)
def test_the_others_say_so(name: str) -> None:
    problem = pyjode.ODEProblem(Driven(2), torch.ones(2, dtype=DOUBLE), (0.0, 1.0))
    with pytest.raises(pyjode.UnsupportedError, match=f"{name} is none it can follow"):
        pyjode.solve(problem, name, saveat=[1.0], sensealg="DiscreteAdjoint", engine="julia")
