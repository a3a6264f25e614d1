"""What one call of a lowered right-hand side costs, beside torch eager and Julia written by hand.

    python -m benchmarks.lowered            # the table
    python -m benchmarks.lowered --json

A 2-50-50-2 tanh network at one state and at 20, float32 and float64: microseconds a call of f, of the vjp by the
state, and of the vjp by state and parameters; the quickest of 20 runs of many calls, one thread. Each is compared with
torch (largest difference over the largest entry). "new f" is what a new right-hand side costs once: its lowering in
Python and the compilation of all four functions in Julia; the first row's holds what a process compiles once.

By hand is what one would write in Julia without pyjode: mul! and broadcasts into preallocated arrays.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pyjode.engines.julia.boundary import gate
from pyjode.rhs import build_rhs
from pyjode.rhs.native import NativeRHS
from pyjode.rhs.trace import TracedRHS

JULIA = {torch.float32: "Float32", torch.float64: "Float64"}
HAND_WRITTEN = r"""
module LoweredBenchmark
using LinearAlgebra: mul!, BLAS
BLAS.set_num_threads(1)

function quickest(f)
    f()
    calls = max(1, round(Int, 2.0e-3 / (@elapsed f())))
    best = minimum(1:20) do _
        start = time_ns()
        for _ in 1:calls
            f()
        end
        (time_ns() - start) / calls
    end
    return best / 1000
end

struct Network{T}
    W1::Matrix{T}; b1::Vector{T}; W2::Matrix{T}; b2::Vector{T}; W3::Matrix{T}; b3::Vector{T}
    h1::Matrix{T}; h2::Matrix{T}; g1::Matrix{T}; g2::Matrix{T}
end

# Columns are states; torch's weights are the transposes of these.
function f!(du, n::Network, u)
    mul!(n.h1, n.W1', u)
    n.h1 .= tanh.(n.h1 .+ n.b1)
    mul!(n.h2, n.W2', n.h1)
    n.h2 .= tanh.(n.h2 .+ n.b2)
    mul!(du, n.W3', n.h2)
    du .+= n.b3
    return nothing
end

function vjp!(Ju, gradients, n::Network, v, u)
    f!(Ju, n, u)
    mul!(n.g2, n.W3, v)
    n.g2 .*= 1 .- n.h2 .^ 2
    mul!(n.g1, n.W2, n.g2)
    n.g1 .*= 1 .- n.h1 .^ 2
    mul!(Ju, n.W1, n.g1)
    if gradients !== nothing
        dW1, db1, dW2, db2, dW3, db3 = gradients
        mul!(dW3, n.h2, v')
        sum!(db3, v)
        mul!(dW2, n.h1, n.g2')
        sum!(db2, n.g2)
        mul!(dW1, u, n.g1')
        sum!(db1, n.g1)
    end
    return nothing
end

at(T, address, size...) = unsafe_wrap(Array, Ptr{T}(address), size)

function by_hand(::Type{T}, states, weights, u, v, du, Ju) where {T}
    sizes = ((2, 50), (50,), (50, 50), (50,), (50, 2), (2,))
    p = [at(T, w, s...) for (w, s) in zip(weights, sizes)]
    n = Network{T}(p..., (zeros(T, 50, states) for _ in 1:4)...)
    x, y, dx, Jx = (at(T, a, 2, states) for a in (u, v, du, Ju))
    gradients = Tuple(similar(w) for w in p)
    f!(dx, n, x)
    vjp!(Jx, gradients, n, y, x)
    return (
        quickest(() -> f!(dx, n, x)), quickest(() -> vjp!(Jx, nothing, n, y, x)),
        quickest(() -> vjp!(Jx, gradients, n, y, x)),
    )
end

function lowered(r, ::Type{T}, u, v, du, Ju, Jp) where {T}
    x, y, dx, Jx, Jq = (Ptr{T}(a) for a in (u, v, du, Ju, Jp))
    return (
        quickest(() -> r.f(dx, x, 0.0)), quickest(() -> r.vjp(Jx, Ptr{T}(0), y, x, 0.0)),
        quickest(() -> r.vjp(Jx, Jq, y, x, 0.0)),
    )
end

end
"""


def quickest(f: Callable[[], Any]) -> float:
    """Microseconds a call."""
    f()
    best = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        for _ in range(50):
            f()
        best = min(best, (time.perf_counter() - start) / 50)
    return best * 1e6


def error(got: Tensor, want: Tensor) -> float:
    return ((got - want).abs().max() / want.abs().max()).item()


def measure(states: int, dtype: torch.dtype) -> dict[str, Any]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 50), nn.Tanh(), nn.Linear(50, 50), nn.Tanh(), nn.Linear(50, 2)).to(dtype)
    y, v = torch.randn(states, 2, dtype=dtype), torch.randn(states, 2, dtype=dtype)
    traced = build_rhs(lambda t, y: net(y), y, 0.0, way="traced")
    assert isinstance(traced, TracedRHS)
    T, julia = JULIA[dtype], gate()

    def pointers(*xs: Tensor) -> str:
        return ", ".join(f"UInt({x.data_ptr()})" for x in xs)

    start = time.perf_counter()
    native = NativeRHS(traced)
    lowering = time.perf_counter() - start
    table, kept = native.source.addresses(native.params)
    source = native.source
    u, w = y.reshape(-1).clone(), v.reshape(-1).clone()
    du, Ju, Jp = torch.zeros_like(u), torch.zeros_like(u), torch.zeros(source.np, dtype=dtype)
    rhs = (
        f'native_rhs({T}, native_code(raw"""{source.source}""", {source.workspace}), '
        f"Ptr{{Ptr{{Cvoid}}}}({table.data_ptr()}), {source.n}, {source.np}, 1, 1)"
    )
    null = f"Ptr{{{T}}}(0)"
    x, z, dx, Jx, Jq = (f"Ptr{{{T}}}({a.data_ptr()})" for a in (u, w, du, Ju, Jp))
    start = time.perf_counter()
    julia.evaluate(f"global benchmarked = {rhs}; nothing")
    julia.evaluate(
        f"benchmarked.f({dx}, {x}, 0.0); benchmarked.vjp({Jx}, {null}, {z}, {x}, 0.0); "
        f"benchmarked.vjp({null}, {Jq}, {z}, {x}, 0.0); benchmarked.vjp({Jx}, {Jq}, {z}, {x}, 0.0)"
    )
    compilation = time.perf_counter() - start

    out = net(y.requires_grad_())
    want_u, *want_p = torch.autograd.grad(out, (y, *net.parameters()), v)
    errors = {
        "f": error(du, out.detach().reshape(-1)),
        "vjp_u": error(Ju, want_u.reshape(-1)),
        "vjp": error(Jp, torch.cat([g.reshape(-1) for g in want_p])),
    }

    def eager_f() -> None:
        with torch.no_grad():
            net(y)

    def eager_vjp(*wanted: Tensor) -> None:
        torch.autograd.grad(net(y), wanted, v)

    eager = (
        quickest(eager_f), quickest(lambda: eager_vjp(y)), quickest(lambda: eager_vjp(y, *net.parameters())),
    )  # fmt: skip
    lowered = julia.evaluate(f"Main.LoweredBenchmark.lowered(benchmarked, {T}, {pointers(u, w, du, Ju, Jp)})")
    weights = ", ".join(str(p.data_ptr()) for p in kept)
    hand = julia.evaluate(f"Main.LoweredBenchmark.by_hand({T}, {states}, UInt[{weights}], {pointers(u, w, du, Ju)})")
    names = ("f", "vjp_u", "vjp")
    return {
        "states": states,
        "dtype": T,
        "eager_us": dict(zip(names, eager, strict=True)),
        "lowered_us": dict(zip(names, _numbers(lowered), strict=True)),
        "by_hand_us": dict(zip(names, _numbers(hand), strict=True)),
        "error": errors,
        "lowering_s": lowering,
        "compilation_s": compilation,
    }


def _numbers(text: str) -> list[float]:
    return [float(x) for x in text.strip("()").split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON list")
    args = parser.parse_args()
    torch.set_num_threads(1)
    gate().evaluate(f"Base.include_string(Main, raw'''{HAND_WRITTEN}'''); nothing".replace("'''", '"""'))
    rows = [measure(states, dtype) for dtype in JULIA for states in (1, 20)]
    if args.json:
        print(json.dumps(rows, indent=1))
        return
    print("us a call          torch eager            lowered             by hand in Julia     largest   new f: lower")
    print("                 f  vjp_u    vjp      f  vjp_u    vjp      f  vjp_u    vjp      error     and compile, s")
    for r in rows:
        times = "   ".join(
            "".join(f"{r[who][n]:7.2f}" for n in ("f", "vjp_u", "vjp"))
            for who in ("eager_us", "lowered_us", "by_hand_us")
        )
        largest = max(r["error"].values())
        print(
            f"{r['states']:2d} x 2 {r['dtype']}{times}   {largest:.1e}   "
            f"{r['lowering_s']:.3f} + {r['compilation_s']:.2f}"
        )


if __name__ == "__main__":
    main()
