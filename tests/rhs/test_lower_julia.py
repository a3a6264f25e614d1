"""Generated code against torch: value, both vector-Jacobian products, Jacobian and time gradient, in Julia."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pyjode.rhs import build_rhs
from pyjode.rhs.lower import NativeSource, lower
from pyjode.rhs.trace import TracedRHS

pytestmark = [pytest.mark.julia, pytest.mark.slow]

JuliaEval = Callable[[str], str]
DTYPES = (torch.float32, torch.float64)
TOLERANCE = {torch.float32: 2e-5, torch.float64: 2e-13}
JULIA = {torch.float32: "Float32", torch.float64: "Float64"}


class Native:
    """The generated code of f at states like y, called in Julia."""

    def __init__(self, julia_eval: JuliaEval, f: Callable[..., Any], y: Any, blocks: int = 1, t0: float = 0.5):
        rhs = build_rhs(f, y, t0, way="traced")
        assert isinstance(rhs, TracedRHS)
        self.eval = julia_eval
        self.rhs = rhs
        self.source: NativeSource = lower(rhs)
        self.dtype = rhs.layout.dtype
        self.table = torch.tensor([*self.source.table(rhs.params), 0], dtype=torch.int64)
        self.t = torch.tensor(t0, dtype=self.dtype)
        code = self.source
        julia_eval(
            f"global native_test = PyJODE.native_rhs({JULIA[self.dtype]}, "
            f'PyJODE.native_code(raw"""{code.source}""", {code.workspace}), '
            f"Ptr{{Ptr{{Cvoid}}}}({self.table.data_ptr()}), {code.n}, {code.np}, 1, {blocks}); nothing"
        )
        self.name = "native_test"

    def pointer(self, x: Tensor | None) -> str:
        return f"Ptr{{{JULIA[self.dtype]}}}({0 if x is None else x.data_ptr()})"

    def empty(self, n: int) -> Tensor:
        return torch.full((n,), math.nan, dtype=self.dtype)

    def f(self, u: Tensor) -> Tensor:
        out = self.empty(self.source.n)
        self.eval(f"{self.name}.f({self.pointer(out)}, {self.pointer(u)}, {float(self.t)})")
        return out

    def vjp(self, u: Tensor, v: Tensor, by_u: bool, by_p: bool) -> tuple[Tensor, Tensor]:
        Ju, Jp = self.empty(self.source.n), self.empty(self.source.np)
        arguments = (Ju if by_u else None, Jp if by_p else None, v, u)
        self.eval(f"{self.name}.vjp({', '.join(map(self.pointer, arguments))}, {float(self.t)})")
        return Ju, Jp

    def into(self, name: str, u: Tensor, n: int) -> Tensor:
        out = self.empty(n)
        self.eval(f"{self.name}.{name}({self.pointer(out)}, {self.pointer(u)}, {float(self.t)})")
        return out


def close(got: Tensor, want: Tensor, tolerance: float) -> None:
    scale = want[want.isfinite()].abs().max().item() if want.isfinite().any() else 0.0
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance * scale, equal_nan=True)


def check(julia_eval: JuliaEval, f: Callable[..., Any], y: Any, tolerance: float | None = None) -> Native:
    """Value and vjps, separately and together, at y and at another point."""
    native = Native(julia_eval, f, y)
    rhs, t = native.rhs, native.t
    tolerance = tolerance or TOLERANCE[native.dtype]
    u0 = rhs.layout.flatten(y).detach().clone()
    for u in (u0, u0 * 1.1):
        v = torch.randn_like(u)
        by_u, by_p = rhs.vjp_up(t, u, v, rhs.params)
        flat_p = torch.cat([x.reshape(-1) for x in by_p]) if by_p else torch.zeros(0, dtype=native.dtype)
        close(native.f(u), rhs.f(t, u, rhs.params), tolerance)
        close(native.vjp(u, v, True, False)[0], by_u, tolerance)
        got_u, got_p = native.vjp(u, v, True, True)
        close(got_u, by_u, tolerance)
        if native.source.np:
            close(native.vjp(u, v, False, True)[1], flat_p, tolerance)
            close(got_p, flat_p, tolerance)
    return native


class With(nn.Module):
    """f(t, y) = body(y, a, b, t) with two parameters."""

    def __init__(self, body: Callable[..., Tensor], a: tuple[int, ...], b: tuple[int, ...], dtype: torch.dtype):
        super().__init__()
        self.body = body
        self.a = nn.Parameter(torch.rand(a, dtype=dtype) + 0.5)
        self.b = nn.Parameter(torch.rand(b, dtype=dtype) + 0.5)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.body(y, self.a, self.b, t)


# Values lie in (0.5, 1.5), states in (-2, 2).
UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "neg": lambda x: -x,
    "abs": torch.abs,
    "sqrt": lambda x: torch.sqrt(x.abs() + 0.1),
    "rsqrt": lambda x: torch.rsqrt(x.abs() + 0.1),
    "reciprocal": lambda x: torch.reciprocal(x + 3),
    "square": torch.square,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "expm1": torch.expm1,
    "log": lambda x: torch.log(x.abs() + 0.1),
    "log1p": lambda x: torch.log1p(x.abs()),
    "log2": lambda x: torch.log2(x.abs() + 0.1),
    "log10": lambda x: torch.log10(x.abs() + 0.1),
    "sin": torch.sin,
    "cos": torch.cos,
    "tan": lambda x: torch.tan(x / 2),
    "asin": lambda x: torch.asin(x / 4),
    "acos": lambda x: torch.acos(x / 4),
    "atan": torch.atan,
    "sinh": torch.sinh,
    "cosh": torch.cosh,
    "asinh": torch.asinh,
    "acosh": lambda x: torch.acosh(x.abs() + 1.5),
    "atanh": lambda x: torch.atanh(x / 4),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "erf": torch.erf,
    "erfc": torch.erfc,
    "floor": lambda x: torch.floor(x) * x,
    "ceil": lambda x: torch.ceil(x) * x,
    "round": lambda x: torch.round(x) * x,
    "trunc": lambda x: torch.trunc(x) * x,
    "frac": torch.frac,
    "sign": lambda x: torch.sign(x) * x,
    "sinc": torch.sinc,
    "relu": torch.relu,
    "relu6": lambda x: F.relu6(4 * x),
    "leaky_relu": lambda x: F.leaky_relu(x, 0.1),
    "elu": F.elu,
    "selu": F.selu,
    "celu": lambda x: F.celu(x, 0.7),
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    "softplus": F.softplus,
    "softplus_sharp": lambda x: F.softplus(x, beta=20.0, threshold=20.0),
    "softsign": F.softsign,
    "logsigmoid": F.logsigmoid,
    "hardtanh": F.hardtanh,
    "hardsigmoid": lambda x: F.hardsigmoid(3 * x),
    "hardswish": lambda x: F.hardswish(3 * x),
    "hardshrink": F.hardshrink,
    "softshrink": F.softshrink,
    "tanhshrink": F.tanhshrink,
    "threshold": lambda x: F.threshold(x, 0.2, -1.0),
    "square_of": lambda x: x**2,
    "cube": lambda x: x**3,
    "power_7": lambda x: x**7,
    "power_-2": lambda x: (x + 3) ** -2,
    "power_half": lambda x: (x + 3) ** 0.5,
    "power_1.5": lambda x: (x + 3) ** 1.5,
    "power_real": lambda x: (x + 3) ** 1.7,
    "base": lambda x: 2.0**x,
    "clamp": lambda x: x.clamp(-0.5, 0.7),
    "clamp_min": lambda x: x.clamp(min=-0.5),
    "clamp_max": lambda x: x.clamp(max=0.5),
    "nan_to_num": lambda x: torch.nan_to_num(x),
    "remainder": lambda x: torch.remainder(x, 0.7),
    "fmod": lambda x: torch.fmod(x, 0.7),
    "where": lambda x: torch.where(x > 0, x * 2, x.exp()),
    "where_number": lambda x: torch.where(x > 0.3, x, 0.0),
    "logic": lambda x: torch.where((x > -1) & (x < 1) | ~(x <= 1.5), x, -x),
    "comparison": lambda x: (x > 0).to(x.dtype) * x,
    "heaviside": lambda x: x * torch.heaviside(x.detach(), torch.zeros((), dtype=x.dtype)),
    "masked_fill": lambda x: x.masked_fill(x < 0, 0.3),
    "lerp": lambda x: torch.lerp(x, x.sin(), 0.3),
    "addcmul": lambda x: torch.addcmul(x, x, x.sin(), value=0.5),
    "addcdiv": lambda x: torch.addcdiv(x, x, x + 4, value=0.5),
    "logit": lambda x: torch.logit(torch.sigmoid(x)),
    "deg2rad": torch.deg2rad,
    "float_and_back": lambda x: x.double().float().to(x.dtype) if x.dtype == torch.float32 else x.float().double(),
    "full_like": lambda x: x + torch.full_like(x, 2.0) * torch.ones_like(x) + torch.zeros_like(x),
    "detach": lambda x: x * x.detach(),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", UNARY)
def test_function_of_one_argument(julia_eval: JuliaEval, name: str, dtype: torch.dtype) -> None:
    y = torch.rand(3, 7, dtype=dtype) * 4 - 2
    # torch rounds 1/6 to float32 in hardsigmoid, whatever the dtype.
    loose = 1e-6 if name in ("float_and_back", "hardsigmoid") else None
    check(julia_eval, lambda t, y: UNARY[name](y), y, loose)


BINARY: dict[str, Callable[..., Tensor]] = {
    "add": lambda y, a: y + a,
    "add_alpha": lambda y, a: torch.add(y, a, alpha=0.5),
    "sub": lambda y, a: y - a,
    "rsub": lambda y, a: torch.rsub(y, a),
    "mul": lambda y, a: y * a,
    "div": lambda y, a: y / a,
    "pow": lambda y, a: (y.abs() + 0.1) ** a,
    "maximum": lambda y, a: torch.maximum(y, a),
    "minimum": lambda y, a: torch.minimum(y, a),
    "atan2": torch.atan2,
    "hypot": torch.hypot,
    "remainder": torch.remainder,
    "fmod": torch.fmod,
    "floor_divide": lambda y, a: torch.div(y, a, rounding_mode="floor") * y,
    "trunc_divide": lambda y, a: torch.div(y, a, rounding_mode="trunc") * y,
    "xlogy": lambda y, a: torch.xlogy(y, a),
    "where": lambda y, a: torch.where(y > a, y * a, y - a),
    "clamp": lambda y, a: torch.clamp(y, -a, a),
    "logaddexp": torch.logaddexp,
    "copysign": torch.copysign,
    "lerp": lambda y, a: torch.lerp(y, y * y, a),
}
BROADCASTS = (((4, 5), (4, 5)), ((4, 5), (5,)), ((4, 5), (4, 1)), ((4, 5), ()), ((3, 1, 17), (2, 1)), ((6,), (6,)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shapes", BROADCASTS, ids=str)
@pytest.mark.parametrize("name", BINARY)
def test_function_of_two_arguments(
    julia_eval: JuliaEval, name: str, shapes: tuple[tuple[int, ...], tuple[int, ...]], dtype: torch.dtype
) -> None:
    y = torch.rand(shapes[0], dtype=dtype) * 4 - 2

    def body(y: Tensor, a: Tensor, b: Tensor, t: Tensor) -> Tensor:
        out = BINARY[name](y, a)
        return out.sum(0) if out.shape != y.shape and out.shape[1:] == y.shape else _back(out, y)

    check(julia_eval, With(body, shapes[1], (), dtype), y)


def _back(out: Tensor, y: Tensor) -> Tensor:
    """Something shaped like y that depends on all of ``out``."""
    return out if out.shape == y.shape else y * out.sum()


STRUCTURE: dict[str, Callable[..., Tensor]] = {
    "permute": lambda y, a, b, t: y.permute(2, 0, 1).contiguous().view(3, 4, 5) * 2,
    "transpose": lambda y, a, b, t: (y.transpose(0, 2) * 3).sin().transpose(0, 2),
    "mT": lambda y, a, b, t: y.mT.exp().mT,
    "select": lambda y, a, b, t: torch.stack([y[0], y[2], y[1] * y[0]]),
    "slice": lambda y, a, b, t: torch.cat([y[:, 1:], y[:, :1] * y[:, 2:3]], 1),
    "steps": lambda y, a, b, t: torch.cat([y[..., ::2], y[..., 1::2].exp()], -1),
    "negative": lambda y, a, b, t: y * y[-1] + y[..., -1:],
    "stack": lambda y, a, b, t: torch.stack([y[..., i] * i for i in range(5)], -1),
    "split": lambda y, a, b, t: torch.cat([x * i for i, x in enumerate(y.split(2, -1))], -1),
    "chunk": lambda y, a, b, t: torch.cat([x * i for i, x in enumerate(y.chunk(2, 1))][::-1], 1),
    "unbind": lambda y, a, b, t: torch.stack([x * i for i, x in enumerate(y.unbind(1))], 1),
    "flip": lambda y, a, b, t: y.flip(0, 2) * y,
    "roll": lambda y, a, b, t: y.roll(1, 0) * y.roll((2, -1), (1, 2)),
    "roll_flat": lambda y, a, b, t: y.roll(7) * y,
    "repeat": lambda y, a, b, t: y[:1].repeat(3, 1, 1) * y,
    "repeat_interleave": lambda y, a, b, t: y[:, :2].repeat_interleave(2, 1) * y,
    "expand": lambda y, a, b, t: y[:1].exp().expand(3, 4, 5) * y,
    "squeeze": lambda y, a, b, t: y[:1].squeeze(0) * y.unsqueeze(1).squeeze(),
    "flatten": lambda y, a, b, t: (y.flatten() * y.reshape(-1)).reshape(5, 12).t().reshape(3, 4, 5),
    "tril": lambda y, a, b, t: torch.tril(y, 1) + torch.triu(y),
    "index": lambda y, a, b, t: y[torch.tensor([2, 0, 1])] * y,
    "index_two": lambda y, a, b, t: y * y[[0, 1, 2], [1, 1, -1]].sum(),
    "index_split": lambda y, a, b, t: y * y[[0, 1], :, [1, 2]].sum(),
    "index_repeated": lambda y, a, b, t: y[:, [0, 0, 3, 3]] * y,
    "index_select": lambda y, a, b, t: y.index_select(1, torch.tensor([3, 3, 0, 1])) * y,
    "gather": lambda y, a, b, t: y.gather(2, torch.arange(60).reshape(3, 4, 5) % 5) * y,
    "scatter_add": lambda y, a, b, t: y.scatter_add(1, torch.arange(60).reshape(3, 4, 5) % 4, y.sin()),
    "index_add": lambda y, a, b, t: y.index_add(0, torch.tensor([0, 0]), y[1:].cos()),
    "index_put": lambda y, a, b, t: y.index_put((torch.tensor([0, 2]),), y[:2].sin()),
    "pad": lambda y, a, b, t: F.pad(y[:, 1:-1, 2:], (1, 1, 2, 0)) * y,
    "diagonal": lambda y, a, b, t: y * y.diagonal(0, 1, 2).sum(),
    "diff": lambda y, a, b, t: F.pad(torch.diff(y, dim=-1), (0, 1)),
    "cumsum": lambda y, a, b, t: y.cumsum(1) * y.cumsum(-1),
    "cumprod": lambda y, a, b, t: y * y.sin().cumsum(0),
    "meshgrid": lambda y, a, b, t: y * torch.meshgrid(y[0, :, 0], y[0, 0], indexing="ij")[0],
    "arange": lambda y, a, b, t: y * torch.arange(5, dtype=y.dtype),
    "linspace": lambda y, a, b, t: y * torch.linspace(0, 1, 5, dtype=y.dtype),
    "eye": lambda y, a, b, t: y @ (torch.eye(5, dtype=y.dtype) * 2),
    "sum": lambda y, a, b, t: y * y.sum() + y.sum(1, keepdim=True),
    "sum_dims": lambda y, a, b, t: y * y.sum((0, 2), keepdim=True) + y.sum((0, 1)),
    "mean": lambda y, a, b, t: y - y.mean(-1, keepdim=True) * y.mean(),
    "prod": lambda y, a, b, t: y * y.prod(-1, keepdim=True),
    "amax": lambda y, a, b, t: y - y.amax(-1, keepdim=True) + y.amin((0, 1)),
    "max": lambda y, a, b, t: y * y.max() - y.min(),
    "norm": lambda y, a, b, t: y / y.norm() + y * y.norm(dim=-1, keepdim=True),
    "vector_norm": lambda y, a, b, t: y * torch.linalg.vector_norm(y, 1, dim=1, keepdim=True),
    "std": lambda y, a, b, t: y / y.std(-1, keepdim=True) + y.var(1, keepdim=True, unbiased=False),
    "logsumexp": lambda y, a, b, t: y - y.logsumexp(-1, keepdim=True),
    "softmax": lambda y, a, b, t: y.softmax(-1) * y.softmax(0),
    "log_softmax": lambda y, a, b, t: y.log_softmax(1),
    "normalize": lambda y, a, b, t: F.normalize(y, dim=-1),
    "layer_norm": lambda y, a, b, t: F.layer_norm(y, (5,), a[0], a[1]),
    "layer_norm_2": lambda y, a, b, t: F.layer_norm(y, (4, 5)),
    "any": lambda y, a, b, t: torch.where((y > 1).any(-1, keepdim=True), y, -y),
    "mm": lambda y, a, b, t: y * (y[0] @ a).sum(),
    "matmul": lambda y, a, b, t: y @ a,
    "matmul_t": lambda y, a, b, t: y @ a.t() + b[:5],
    "linear": lambda y, a, b, t: F.linear(y, a, b[:5]),
    "bmm": lambda y, a, b, t: torch.bmm(y, y.transpose(1, 2)) @ y,
    "mv": lambda y, a, b, t: y * (a @ y[0, 0]),
    "dot": lambda y, a, b, t: y * torch.dot(a[0], y[0, 0]),
    "outer": lambda y, a, b, t: y * torch.outer(y[0, :, 0], a[0]),
    "einsum": lambda y, a, b, t: torch.einsum("bij,jk->bik", y, a) + torch.einsum("bij,bij->b", y, y)[:, None, None],
    "baddbmm": lambda y, a, b, t: torch.baddbmm(y, torch.bmm(y, y.mT), y, beta=0.5, alpha=2.0),
    "addmm": lambda y, a, b, t: torch.addmm(b[:5], y[0], a, beta=2.0, alpha=0.5) * y,
    "addmv": lambda y, a, b, t: torch.addmv(b[:5], a, y[0, 0]) * y,
    "cross": lambda y, a, b, t: torch.linalg.cross(y, y.sin(), dim=0),
    "matrix_power": lambda y, a, b, t: y @ a @ a @ a,
    "attention": lambda y, a, b, t: torch.softmax((y @ a) @ y.mT / 5**0.5, -1) @ y,
    "glu": lambda y, a, b, t: F.glu(torch.cat([y, y * a[0]], -1), -1),
    "bilinear": lambda y, a, b, t: y * torch.einsum("bi,ij,bj->b", y[:, 0], a, y[:, 1])[:, None, None],
    "time": lambda y, a, b, t: y * t + torch.sin(t) * a[0] + torch.stack([t, t**2, 1 / (1 + t)])[:, None, None],
    "time_cat": lambda y, a, b, t: F.linear(torch.cat([y, t.expand(3, 4, 1)], -1), b[:30].reshape(5, 6)),
    "unused": lambda y, a, b, t: torch.zeros_like(y),
    "identity": lambda y, a, b, t: y,
    "constant": lambda y, a, b, t: torch.ones(3, 4, 5, dtype=y.dtype),
    "parameter": lambda y, a, b, t: a[0].expand(3, 4, 5),
    "repeated_use": lambda y, a, b, t: (lambda h: h * h + h.sum(0) + h[..., :1] * h.flip(1))(torch.tanh(y @ a)),
    "assignment": lambda y, a, b, t: _assigned(y),
    "new_tensors": lambda y, a, b, t: y + y.new_zeros(5) + y.new_full((4, 1), 2.0) + y.new_ones(()),
    "distances": lambda y, a, b, t: (
        y * (y[:, None] - y[None]).square().sum(-1).add(1e-3).sqrt().sum((0, 2))[:, None, None]
    ),
}  # fmt: skip


def _assigned(y: Tensor) -> Tensor:
    out = torch.zeros_like(y)
    out[0] = y[1] * 2
    out[:, 1] = y[:, 2] ** 2
    out[1, 2:, 3] += 1.0
    return out


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", STRUCTURE)
def test_structure(julia_eval: JuliaEval, name: str, dtype: torch.dtype) -> None:
    y = torch.rand(3, 4, 5, dtype=dtype) * 2 - 1
    check(julia_eval, With(STRUCTURE[name], (5, 5), (30,), dtype), y, 5 * TOLERANCE[dtype])


MATRICES = (
    (1, 2, 50),
    (1, 50, 50),
    (1, 50, 2),
    (20, 2, 50),
    (20, 50, 50),
    (20, 50, 2),
    (3, 1, 7),
    (33, 17, 9),
    (1, 1, 1),
)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", MATRICES, ids=str)
def test_linear_layer(julia_eval: JuliaEval, sizes: tuple[int, int, int], dtype: torch.dtype) -> None:
    batch, inner, outer = sizes
    net = nn.Sequential(nn.Linear(inner, outer), nn.Tanh(), nn.Linear(outer, inner)).to(dtype)
    check(julia_eval, lambda t, y: net(y), torch.randn(batch, inner, dtype=dtype), 5 * TOLERANCE[dtype])
    check(julia_eval, lambda t, y: net(y), torch.randn(inner, dtype=dtype), 5 * TOLERANCE[dtype])


def test_large_matrices_go_through_blas(julia_eval: JuliaEval) -> None:
    net = nn.Sequential(nn.Linear(128, 200), nn.Tanh(), nn.Linear(200, 128)).double()
    native = check(julia_eval, lambda t, y: net(y), torch.randn(100, 128, dtype=torch.float64), 1e-11)
    assert "big_matmul!" in native.source.source


class Ops:
    """What random graphs are made of: each takes the tensors so far and two numbers that choose among them."""

    @staticmethod
    def unary(name: str) -> Callable[..., Tensor]:
        def apply(pool: list[Tensor], i: int, j: int) -> Tensor:
            return getattr(torch, name)(pool[i % len(pool)])

        return apply

    @staticmethod
    def binary(name: str) -> Callable[..., Tensor]:
        def apply(pool: list[Tensor], i: int, j: int) -> Tensor:
            x, y = pool[i % len(pool)], pool[j % len(pool)]
            try:
                torch.broadcast_shapes(x.shape, y.shape)
            except RuntimeError:
                y = y.mean()
            return getattr(torch, name)(x, y)

        return apply

    @staticmethod
    def structural(change: Callable[[Tensor, int], Tensor]) -> Callable[..., Tensor]:
        def apply(pool: list[Tensor], i: int, j: int) -> Tensor:
            x = pool[i % len(pool)]
            return change(x, j % x.dim()) if x.dim() else x

        return apply

    @staticmethod
    def matmul(pool: list[Tensor], i: int, j: int) -> Tensor:
        x, y = pool[i % len(pool)], pool[j % len(pool)]
        if x.dim() < 2 or y.dim() < 2:
            return x
        x, y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
        return x @ y.T if x.shape[1] == y.shape[1] else x.T @ x

    @staticmethod
    def where(pool: list[Tensor], i: int, j: int) -> Tensor:
        x, y = pool[i % len(pool)], pool[j % len(pool)]
        return torch.where(x > y.mean(), x, y.amax())


OPS: list[Callable[..., Tensor]] = [
    *map(Ops.unary, ("tanh", "sin", "cos", "square", "neg", "sigmoid", "abs", "relu", "atan")),
    *map(Ops.binary, ("add", "sub", "mul", "maximum", "minimum", "atan2")),
    Ops.matmul,
    Ops.where,
    *map(
        Ops.structural,
        (
            lambda x, d: x.sum(d),
            lambda x, d: x.mean(d, keepdim=True),
            lambda x, d: x.amax(d, keepdim=True),
            lambda x, d: x.flip(d),
            lambda x, d: x.transpose(0, d),
            lambda x, d: x.select(d, x.shape[d] - 1),
            lambda x, d: x.narrow(d, 0, (x.shape[d] + 1) // 2),
            lambda x, d: torch.cat([x, x.flip(d).sin()], d) if x.numel() < 200 else x,
            lambda x, d: torch.stack([x.select(d, 0), x.select(d, -1) * 2], d),
            lambda x, d: x.flatten(),
            lambda x, d: x.unsqueeze(d),
            lambda x, d: x.softmax(d),
            lambda x, d: x.roll(1, d),
            lambda x, d: x.cumsum(d) / x.shape[d],
            lambda x, d: x.index_select(d, torch.tensor([0, -1 % x.shape[d], 0])),
        ),
    ),
]

programs = st.lists(
    st.tuples(st.sampled_from(range(len(OPS))), st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=14
)
shapes = st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple)


@given(program=programs, shape=shapes, dtype=st.sampled_from(DTYPES))
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_graphs(
    julia_eval: JuliaEval, program: list[tuple[int, int, int]], shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    y = torch.rand(shape, dtype=dtype) + 0.25
    p = nn.Parameter(torch.rand(shape[-1:], dtype=dtype) + 0.5)

    def f(t: Tensor, y: Tensor) -> Tensor:
        pool = [y, p, y * t]
        for op, i, j in program:
            pool.append(OPS[op](pool, i, j))
        # All of them count, and none dwarfs the others.
        total = sum(torch.tanh(x).mean() for x in pool)
        return y * total + (pool[-1] if pool[-1].shape == y.shape else pool[-1].mean())

    check(julia_eval, f, y, 20 * TOLERANCE[dtype])


def test_jacobian_and_time_gradient(julia_eval: JuliaEval) -> None:
    rate = nn.Parameter(torch.tensor([0.04, 1e4, 3e7], dtype=torch.float64))

    def robertson(t: Tensor, y: Tensor) -> Tensor:
        a, b, c = rate[0] * y[0] * (1 + t**2), rate[1] * y[1] * y[2], rate[2] * y[1] ** 2
        return torch.stack([b - a, a - b - c, c])

    y = torch.tensor([0.9, 2e-5, 0.1], dtype=torch.float64)
    native = check(julia_eval, robertson, y)
    rhs = native.rhs
    jacobian = native.into("jac", y, 9).reshape(3, 3).T
    close(jacobian, rhs.jacobian(native.t, y, rhs.params), 1e-14)
    close(native.into("tgrad", y, 3), rhs.time_gradient(native.t, y, rhs.params), 1e-14)
    autonomous = Native(julia_eval, lambda t, y: -y, y)
    assert torch.equal(autonomous.into("tgrad", y, 3), torch.zeros(3, dtype=torch.float64))


def test_blocks_of_the_jacobian(julia_eval: JuliaEval) -> None:
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    y = torch.randn(4, 3, dtype=torch.float64)
    native = Native(julia_eval, lambda t, y: net(y), y, blocks=4)
    u = y.reshape(-1).clone()
    blocks = native.into("jac", u, 36).reshape(4, 3, 3).transpose(1, 2)
    close(blocks, native.rhs.jacobian_blocks(native.t, u, native.rhs.params), 1e-13)


def test_changes_of_parameters_and_buffers_are_seen(julia_eval: JuliaEval) -> None:
    class Field(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.rand(3, dtype=torch.float64))
            self.register_buffer("b", torch.rand(3, dtype=torch.float64))
            self.register_buffer("mask", torch.tensor([True, False, True]))
            self.register_buffer("order", torch.tensor([2, 0, -2]))

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return self.a * y[self.order] + torch.where(self.mask, self.b, 0.0)

    field = Field()
    y = torch.rand(3, dtype=torch.float64)
    native = check(julia_eval, field, y)
    with torch.no_grad():
        field.a += 1
        field.b *= 2
        field.mask.logical_not_()
        field.order.copy_(torch.tensor([0, 1, 2]))
    close(native.f(y), field(None, y).detach(), 1e-15)
    other = torch.rand(3, dtype=torch.float64)
    native.table[0] = other.data_ptr()
    close(native.f(y), other * y + torch.where(field.mask, field.b, 0.0), 1e-15)


def test_an_index_out_of_range_is_an_error(julia_eval: JuliaEval) -> None:
    order = torch.tensor([1, 0])
    native = Native(julia_eval, lambda t, y: y[order], torch.rand(2))
    order[0] = 7
    with pytest.raises(Exception, match="BoundsError"):
        native.f(torch.rand(2))


def test_no_call_allocates(julia_eval: JuliaEval) -> None:
    net = nn.Sequential(nn.Linear(5, 20), nn.GELU(), nn.LayerNorm(20), nn.Linear(20, 5))

    def f(t: Tensor, y: Tensor) -> Tensor:
        y = net(y) + torch.softmax(y, -1) @ y.T @ y
        return torch.cat([y[:, :2] * t, y[:, [4, 3, 2]].cumsum(0)], 1)

    native = Native(julia_eval, f, torch.rand(6, 5))
    u, v, out, by_p = torch.rand(30), torch.rand(30), torch.zeros(30), torch.zeros(native.source.np)
    x, w, y, z = map(native.pointer, (out, by_p, v, u))
    null = native.pointer(None)
    julia_eval(
        "function allocated_test(r, x, w, y, z, null)\n"
        "once() = (r.f(x, z, 0.5); r.vjp(x, w, y, z, 0.5); r.vjp(x, null, y, z, 0.5); r.vjp(null, w, y, z, 0.5); "
        "r.tgrad(x, z, 0.5); nothing)\n"
        "once(); @allocated once()\nend; nothing"
    )
    assert julia_eval(f"allocated_test(native_test, {x}, {w}, {y}, {z}, {null})") == "0"


def test_equal_source_is_compiled_once(julia_eval: JuliaEval) -> None:
    def source(scale: float) -> str:
        net = nn.Linear(2, 2)
        net.weight.data *= scale
        return Native(julia_eval, lambda t, y: net(y), torch.rand(2)).source.source

    assert source(1.0) == source(2.0)
