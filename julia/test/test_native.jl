# What generated code calls: accuracy of the functions, matrix kernels on every layout, no allocation, and one
# right-hand side written as the generator writes it.

using Test
@isdefined(PyJODE) || using PyJODE

const N = PyJODE.Native
const FLOATS = (Float32, Float64)

ulps(got::T, want::BigFloat) where {T} = Float64(abs(big(got) - want) / max(eps(abs(T(want))), eps(zero(T))))

function worst(f, exact, xs)
    return maximum(xs) do x
        want = exact(big(x))
        isfinite(eltype(xs)(want)) ? ulps(f(x), want) : Float64(f(x) != eltype(xs)(want))
    end
end

@testset "functions within their stated error, $T" for T in FLOATS
    normal = randn(T, 20_000)
    both = vcat(normal, 30 .* normal, T(1.0e-3) .* normal, T(1.0e-6) .* normal)
    spread = vcat(exp.(20 .* normal), 1 .+ T(0.01) .* normal)
    spread = filter(x -> 0 < x < Inf, spread)
    sigmoid(x) = 1 / (1 + exp(-x))
    @test worst(N.exp, exp, both) < 1.1
    @test worst(N.expm1, expm1, both) < 2
    @test worst(N.log, log, spread) < 1
    @test worst(N.log1p, log1p, filter(>(-1), vcat(both, spread))) < 1.5
    @test worst(N.tanh, tanh, both) < 1.5
    @test worst(N.sigmoid, sigmoid, filter(x -> x > -80, both)) < 2.5
end

@testset "ends of the functions' domains, $T" for T in FLOATS
    inf, nan = T(Inf), T(NaN)
    same(a, b) = a === b || (isnan(a) && isnan(b))
    for (f, pairs) in (
            N.exp => (inf => inf, -inf => 0, nan => nan, 0 => 1, 1000 => inf, -1000 => 0),
            N.expm1 => (inf => inf, -inf => -1, nan => nan, 0 => 0, 1000 => inf, -1000 => -1),
            N.log => (inf => inf, -inf => nan, nan => nan, 0 => -inf, -1 => nan, 1 => 0),
            N.log1p => (inf => inf, -1 => -inf, -2 => nan, nan => nan, 0 => 0),
            N.tanh => (inf => 1, -inf => -1, nan => nan, 0 => 0),
            N.sigmoid => (inf => 1, -inf => 0, nan => nan),
            N.sin => (inf => nan, nan => nan), N.sqrt => (-1 => nan,), N.asin => (2 => nan,), N.acosh => (0 => nan,),
            N.relu => (nan => nan, -1 => 0), N.sign => (nan => 0, -3 => -1),
        )
        for (x, want) in pairs
            @test same(f(T(x)), T(want))
        end
    end
    @test N.log(nextfloat(zero(T))) ≈ log(nextfloat(zero(T)))
    @test N.exp(log(floatmin(T)) - 2) ≈ exp(log(floatmin(T)) - 2) rtol = 1.0e-5
    @test isnan(N.maximum(nan, T(1))) && isnan(N.maximum(T(1), nan)) && N.maximum(T(1), T(2)) == 2
    @test isnan(N.minimum(nan, T(1))) && isnan(N.minimum(T(1), nan)) && N.minimum(T(1), T(2)) == 1
end

const SIZES = (
    (20, 50, 50), (1, 50, 50), (20, 50, 2), (20, 2, 50), (2, 50, 20), (50, 2, 20), (1, 2, 50), (3, 5, 7), (50, 50, 1),
    (7, 33, 17), (1, 1, 1), (9, 65, 3), (5, 70, 100), (4, 3, 0),
)

"A matrix of that shape in row- or column-major memory, with its strides."
stored(x, rowmajor) = rowmajor ? (permutedims(x), size(x, 2), 1) : (copy(x), 1, size(x, 1))

@testset "$kernel of $(m)x$(k) by $(k)x$(n), $T" for T in FLOATS, kernel in (N.matmul!, N.big_matmul!), (m, n, k) in SIZES
    for layout in Iterators.product(ntuple(_ -> (true, false), 3)...), start in (:none, :full, :row, :column, :one)
        a, b, s = randn(T, m, k), randn(T, k, n), randn(T, m, n)
        A, am, ak = stored(a, layout[1])
        B, bk, bn = stored(b, layout[2])
        C, cm, cn = stored(fill(T(NaN), m, n), layout[3])
        S = permutedims(s)
        sm, sn, first = if start == :none
            0, 0, zeros(T, m, n)
        elseif start == :full
            n, 1, s
        elseif start == :row
            0, 1, repeat(s[1:1, :], m)
        elseif start == :column
            n, 0, repeat(s[:, 1:1], 1, n)
        else
            0, 0, fill(s[1, 1], m, n)
        end
        GC.@preserve A B C S begin
            from = start == :none ? Ptr{T}(0) : pointer(S)
            kernel(pointer(C), cm, cn, pointer(A), am, ak, pointer(B), bk, bn, from, sm, sn, m, n, k)
        end
        got = layout[3] ? permutedims(C) : C
        @test isapprox(got, big.(a) * big.(b) .+ first; rtol = 20 * eps(T) * max(k, 1))
    end
end

@testset "transpose of $(rows)x$(cols), $T" for T in FLOATS, rows in (1, 3, 16, 50), cols in (1, 2, 8, 17, 50)
    x, y = randn(T, cols + 2, rows), zeros(T, rows, cols)
    GC.@preserve x y N.transpose!(pointer(y), pointer(x), cols + 2, rows, cols)
    @test y == permutedims(x[1:cols, :])
end

const SOURCE = """
function f(du, u, t, w, c)
    c1 = Ptr{Float64}(unsafe_load(c, 1))
    b1 = Ptr{Float64}(w)
    i = 0
    while i < 3
        N.st(b1, N.ld(c1, i) * N.ld(u, i), i)
        i += 1
        N.@vector 4 true
    end
    i = 0
    while i < 3
        N.st(du, N.ld(b1, i) + t, i)
        i += 1
        N.@vector 4 true
    end
    return nothing
end
function vjp_u(Ju, v, u, t, w, c)
    c1 = Ptr{Float64}(unsafe_load(c, 1))
    for i in 0:2; N.st(Ju, N.ld(c1, i) * N.ld(v, i), i); end
    return nothing
end
function vjp_p(Jp, v, u, t, w, c)
    for i in 0:2; N.st(Jp, N.ld(u, i) * N.ld(v, i), i); end
    return nothing
end
function vjp_up(Ju, Jp, v, u, t, w, c)
    vjp_u(Ju, v, u, t, w, c)
    vjp_p(Jp, v, u, t, w, c)
    return nothing
end
"""

function allocated(r, out, u, v)
    once() = (r.f(out, u, 0.5); r.vjp(out, Ptr{Float64}(0), v, u, 0.5); r.vjp(Ptr{Float64}(0), out, v, u, 0.5); nothing)
    once()
    return @allocated once()
end

@testset "a right-hand side from source" begin
    p, q = [1.0, 2.0, 3.0], [10.0, 20.0, 30.0]
    table = [Ptr{Cvoid}(pointer(p))]
    code = PyJODE.native_code(SOURCE, 64)
    @test PyJODE.native_code(SOURCE, 64) === code
    GC.@preserve p q table begin
        r = PyJODE.native_rhs(Float64, code, pointer(table), 3, 3, 1, 1)
        u, v, du, Ju, Jp, J = [1.0, 1.0, 2.0], [1.0, -1.0, 2.0], zeros(3), zeros(3), zeros(3), zeros(3, 3)
        null = Ptr{Float64}(0)
        GC.@preserve u v du Ju Jp J begin
            r.f(pointer(du), pointer(u), 0.5)
            @test du == p .* u .+ 0.5
            r.vjp(pointer(Ju), null, pointer(v), pointer(u), 0.5)
            @test Ju == p .* v && Jp == zeros(3)
            r.vjp(null, pointer(Jp), pointer(v), pointer(u), 0.5)
            @test Jp == u .* v
            fill!(Ju, 0)
            r.vjp(pointer(Ju), pointer(Jp), pointer(v), pointer(u), 0.5)
            @test Ju == p .* v
            r.jac(pointer(J), pointer(u), 0.5)
            @test J == [1 0 0; 0 2 0; 0 0 3]
            r.tgrad(pointer(du), pointer(u), 0.5)
            @test du == zeros(3)
            table[1] = Ptr{Cvoid}(pointer(q))
            r.f(pointer(du), pointer(u), 0.5)
            @test du == q .* u .+ 0.5
            @test allocated(r, pointer(du), pointer(u), pointer(v)) == 0
        end
    end
end
