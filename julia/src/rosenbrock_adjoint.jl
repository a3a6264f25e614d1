"""
The discrete adjoint of a Rosenbrock solve: reverse-mode differentiation of its accepted steps, step sizes held
constant, save points through the method's own interpolant.

A step of size h from u at t, J = ∂f/∂u(u, t), W = I/(hγ) - J:

    U_i = u + Σ_{j<i} a_ij k_j,   W k_i = f(U_i, t + c_i h) + h d_i ∂f/∂t(u, t) + Σ_{j<i} (c̃_ij / h) k_j,
    u_{n+1} = u + Σ b_i k_i,   u(t + θh) = (1 - θ) u + θ (u_{n+1} + (1 - θ) Σ_l θ^{l-1} Σ_i η_li k_i).

Going back, from the cotangent of k_i: μ_i = W⁻ᵀ k̄_i, then ∂f/∂u(U_i)ᵀ μ_i goes to u and, times a_ij, to k̄_j,
c̃_ij / h μ_i to k̄_j, and what J and ∂f/∂t themselves depend on gives the second-order products

    ∂/∂(u, p) μ_iᵀ (J k_i + h d_i ∂f/∂t),

which Python has code for (`SecondOrder`). The stages are computed again: a solution stores only its dense output.

Source: Hairer, Wanner, Solving Ordinary Differential Equations II, IV.7 (the method, in the variables that save
products with J); Daescu, Sandu, Carmichael, Direct and adjoint sensitivity analysis of chemical kinetic systems with
KPP: II, Atmospheric Environment 37 (2003), 2.3 (its discrete adjoint).
"""
struct RosenbrockAdjoint end

"(S_u, S_p, v, k, κ, u, t): ∂/∂u and ∂/∂p of vᵀ (∂f/∂u k + κ ∂f/∂t)"
const SecondFunction{T} = FunctionWrapper{Nothing, Tuple{Ptr{T}, Ptr{T}, Ptr{T}, Ptr{T}, T, Ptr{T}, Float64}}

"The second-order products of one right-hand side."
struct SecondOrder{T}
    product::SecondFunction{T}
end

struct NativeSecond{F}
    code::F
    memory::NativeMemory
end

function (g::NativeSecond)(Su::Ptr{T}, Sp::Ptr{T}, v::Ptr{T}, k::Ptr{T}, κ::T, u::Ptr{T}, t::Float64) where {T}
    m, factor = g.memory, Ref(κ)
    GC.@preserve m factor g.code(Su, Sp, v, k, Base.unsafe_convert(Ptr{T}, factor), u, t, m.workspace, m.table)
    return nothing
end

function native_second(::Type{T}, code::NativeCode, table::Ptr{Ptr{Cvoid}}) where {T}
    product = Base.invokelatest(getglobal, code.functions, :second)
    return SecondOrder{T}(SecondFunction{T}(NativeSecond(product, NativeMemory(table, code.workspace))))
end

"A Rosenbrock method in the variables of its solver."
struct RosenbrockTableau{T}
    a::Matrix{T}
    c̃::Matrix{T}
    γ::T
    b::Vector{T}
    c::Vector{Float64}
    d::Vector{T}
    "Dense output, (terms, stages); no terms: cubic Hermite."
    η::Matrix{T}
end

stages(tab::RosenbrockTableau) = length(tab.b)

struct NotRosenbrock <: Exception
    alg::Any
end
function Base.showerror(io::IO, e::NotRosenbrock)
    return print(
        io, nameof(typeof(e.alg)), " does not take the steps of one Rosenbrock tableau with the Jacobian of each step's ",
        "start, so it has no discrete adjoint: pass sensealg=\"GaussAdjoint\""
    )
end

const ROSENBROCK_TABLEAUS = IdDict{Any, Dict{DataType, Any}}()

"The tableau that the solver holds for `alg`."
function rosenbrock_tableau(alg, ::Type{T}) where {T}
    known = get!(Dict{DataType, Any}, ROSENBROCK_TABLEAUS, alg)
    return get!(() -> read_rosenbrock(alg, T), known, T)::RosenbrockTableau{T}
end

decay!(du, u, p, t) = (du .= .-u; nothing)

function read_rosenbrock(alg, ::Type{T}) where {T}
    OrdinaryDiffEqCore.isWmethod(alg) && throw(NotRosenbrock(alg))
    prob = ODEProblem{true, SciMLBase.FullSpecialize}(
        ODEFunction{true, SciMLBase.FullSpecialize}(decay!), ones(T, 2), (0.0, 1.0)
    )
    cache = SciMLBase.init(prob, alg; dt = 0.1, verbose = SILENT).cache
    hasproperty(cache, :tab) || throw(NotRosenbrock(alg))
    tab = cache.tab
    all(x -> hasproperty(tab, x), (:A, :C, :gamma, :b, :c, :d, :H)) || throw(NotRosenbrock(alg))
    s = length(tab.b)
    square(x) = T[i <= size(x, 1) && j <= size(x, 2) && j < i ? x[i, j] : zero(T) for i in 1:s, j in 1:s]
    # Some tableaus have one more row, for an error test.
    terms = hasproperty(cache, :interp_order) ? max(cache.interp_order, 0) : size(tab.H, 1)
    η = T[tab.H[l, i] for l in 1:terms, i in 1:s]
    return RosenbrockTableau{T}(
        square(tab.A), square(tab.C), T(tab.gamma), Vector{T}(tab.b), Vector{Float64}(tab.c), Vector{T}(tab.d), η
    )
end

mutable struct RosenbrockSweep{T}
    const r::RHS{T}
    const second::SecondOrder{T}
    const tab::RosenbrockTableau{T}
    const λ::Vector{T}
    const dp::Vector{T}
    "Cotangents of a step's start that do not come through its stages."
    const λ0::Vector{T}
    "Stages, where f is taken for them, their cotangents."
    const k::Matrix{T}
    const U::Matrix{T}
    const K::Matrix{T}
    "W⁻ᵀ of the stages' cotangents."
    const μ::Matrix{T}
    "Cotangents of the dense output's terms."
    const D::Matrix{T}
    "Jacobians of the blocks, end to end, then their factors."
    const J::Vector{T}
    const factors::Vector{LU{T, Matrix{T}, Vector{Int}}}
    "Arguments of a second-order product that stands for several stages."
    const v::Vector{T}
    const direction::Vector{T}
    const tgrad::Vector{T}
    const Ju::Vector{T}
    const Jp::Vector{T}
    nvjp::Int
    "Straight lines between steps, instead of the method's interpolant."
    linear::Bool
end

function RosenbrockSweep(r::RHS{T}, second::SecondOrder{T}, tab::RosenbrockTableau{T}) where {T}
    n, s, d = r.n, stages(tab), r.n ÷ r.blocks
    return RosenbrockSweep{T}(
        r, second, tab, zeros(T, n), zeros(T, r.np), zeros(T, n), zeros(T, n, s), zeros(T, n, s), zeros(T, n, s),
        zeros(T, n, s), zeros(T, n, max(2, size(tab.η, 1))), zeros(T, n * d), [lu!(Matrix{T}(I, d, d)) for _ in 1:(r.blocks)],
        zeros(T, n), zeros(T, n), zeros(T, n), zeros(T, n), zeros(T, r.np), 0, false
    )
end

"The sweep of the last backward pass again where it fits."
function rosenbrock_sweep(r::RHS{T}, second::SecondOrder{T}, tab::RosenbrockTableau{T}) where {T}
    known = r.sweep
    if known isa RosenbrockSweep{T} && known.second === second && known.tab === tab
        known.nvjp = 0
        return known
    end
    return r.sweep = RosenbrockSweep(r, second, tab)
end

"W = I/(hγ) - J(u, t), block by block."
function factorize!(s::RosenbrockSweep{T}, u::Vector{T}, t::Float64, h::Float64) where {T}
    r, J = s.r, s.J
    d = r.n ÷ r.blocks
    poll()
    GC.@preserve J u begin
        r.jac(pointer(J), pointer(u), user_time(r, t))
        flip!(r, pointer(J), length(J))
    end
    diagonal = T(1 / (h * s.tab.γ))
    for b in 1:(r.blocks)
        W = s.factors[b].factors
        offset = (b - 1) * d * d
        @inbounds for i in 1:(d * d)
            W[i] = -J[offset + i]
        end
        @inbounds for i in 1:d
            W[i, i] += diagonal
        end
        s.factors[b] = lu!(W; check = false)
    end
    return nothing
end

"x ← W⁻¹ x, or W⁻ᵀ x."
function divide!(s::RosenbrockSweep, x, transposed::Bool)
    d = s.r.n ÷ s.r.blocks
    for b in 1:(s.r.blocks)
        part = view(x, ((b - 1) * d + 1):(b * d))
        F = s.factors[b]
        transposed ? ldiv!(transpose(F), part) : ldiv!(F, part)
    end
    return nothing
end

"λ and dp += ∂/∂(u, p) vᵀ (J k + κ ∂g/∂τ), for du/dτ = g."
function pull_second!(s::RosenbrockSweep{T}, v::Ptr{T}, k::Ptr{T}, κ::T, u::Vector{T}, t::Float64) where {T}
    r, σ = s.r, T(s.r.sign)
    poll()
    # g = σ f(σ τ): σ once before f's Jacobian, twice before its time derivative.
    GC.@preserve u s.second.product(pointer(s.Ju), pointer(s.Jp), v, k, σ * κ, pointer(u), user_time(r, t))
    axpy!(σ, s.Ju, s.λ)
    r.np > 0 && axpy!(σ, s.Jp, s.dp)
    s.nvjp += 1
    return nothing
end

"`steps` and `states` of the solution: not itself, so that all methods share this code."
function discrete_adjoint!(
        s::RosenbrockSweep{T}, steps::Vector{Float64}, states::Vector{Vector{T}}, ts::Vector{Float64}, cotangents::Matrix{T}
    ) where {T}
    fill!(s.λ, 0)
    fill!(s.dp, 0)
    GC.@preserve s states backwards!(s.λ, steps, ts, cotangents) do n, inside
        step!(s, states[n - 1], states[n], steps[n - 1], steps[n] - steps[n - 1], ts, cotangents, inside)
    end
    return s.λ, s.dp
end

function step!(s::RosenbrockSweep{T}, u, u1, t0, h, ts, cotangents, inside) where {T}
    tab, r = s.tab, s.r
    q = stages(tab)
    fill!(s.λ0, 0)
    fill!(s.D, 0)
    for m in inside
        save_point!(s, view(cotangents, :, m), (ts[m] - t0) / h, T(h))
    end
    if isempty(tab.η) && !isempty(inside) && !s.linear
        # Hermite: its terms are f at both ends.
        s.λ .+= pull!(s, pointer(s.D, r.n + 1), pointer(u1), t0 + h)
        s.λ0 .+= pull!(s, pointer(s.D), pointer(u), t0)
    end
    stages!(s, u, t0, h)
    fill!(s.K, 0)
    for i in 1:q
        K = view(s.K, :, i)
        iszero(tab.b[i]) || axpy!(tab.b[i], s.λ, K)
        for l in axes(tab.η, 1)
            isempty(inside) || iszero(tab.η[l, i]) || axpy!(tab.η[l, i], view(s.D, :, l), K)
        end
    end
    s.λ .+= s.λ0
    for i in q:-1:1
        μ = view(s.μ, :, i)
        copyto!(μ, view(s.K, :, i))
        iszero(μ) && continue
        divide!(s, μ, true)
        Ju = pull!(s, pointer(s.μ, (i - 1) * r.n + 1), pointer(s.U, (i - 1) * r.n + 1), t0 + tab.c[i] * h)
        s.λ .+= Ju
        for j in 1:(i - 1)
            iszero(tab.a[i, j]) || axpy!(tab.a[i, j], Ju, view(s.K, :, j))
            iszero(tab.c̃[i, j]) || axpy!(T(tab.c̃[i, j] / h), μ, view(s.K, :, j))
        end
    end
    second_order!(s, u, t0, h)
    return nothing
end

"The cotangent of u(t + θ h), to the step's ends and the dense output's terms."
function save_point!(s::RosenbrockSweep{T}, g, θ::Float64, h::T) where {T}
    θT, rest = T(θ), T(1 - θ)
    if s.linear
        axpy!(θT, g, s.λ)
        axpy!(rest, g, s.λ0)
        return nothing
    end
    if isempty(s.tab.η)
        bump = θT * (θT - 1) * (1 - 2θT)
        axpy!(θT + bump, g, s.λ)
        axpy!(rest - bump, g, s.λ0)
        axpy!(θT * (θT - 1) * (θT - 1) * h, g, view(s.D, :, 1))
        axpy!(θT * (θT - 1) * θT * h, g, view(s.D, :, 2))
        return nothing
    end
    axpy!(θT, g, s.λ)
    axpy!(rest, g, s.λ0)
    power = θT * rest
    for l in axes(s.tab.η, 1)
        axpy!(power, g, view(s.D, :, l))
        power *= θT
    end
    return nothing
end

"The stages of a step again, and the points at which f is taken for them."
function stages!(s::RosenbrockSweep{T}, u::Vector{T}, t0::Float64, h::Float64) where {T}
    tab, r = s.tab, s.r
    factorize!(s, u, t0, h)
    tgrad = s.tgrad
    GC.@preserve tgrad u r.tgrad(pointer(tgrad), pointer(u), user_time(r, t0))
    for i in 1:stages(tab)
        U, k = view(s.U, :, i), view(s.k, :, i)
        copyto!(U, u)
        for j in 1:(i - 1)
            iszero(tab.a[i, j]) || axpy!(tab.a[i, j], view(s.k, :, j), U)
        end
        poll()
        at = pointer(s.k, (i - 1) * r.n + 1)
        r.f(at, pointer(s.U, (i - 1) * r.n + 1), user_time(r, t0 + tab.c[i] * h))
        flip!(r, at, r.n)
        iszero(tab.d[i]) || axpy!(T(h) * tab.d[i], tgrad, k)
        for j in 1:(i - 1)
            iszero(tab.c̃[i, j]) || axpy!(T(tab.c̃[i, j] / h), view(s.k, :, j), k)
        end
        divide!(s, k, false)
    end
    return nothing
end

"""
Σ_i ∂/∂(u, p) μ_iᵀ (J k_i + h d_i ∂f/∂t). It depends on the stages through Σ_i μ_i k_iᵀ and Σ_i d_i μ_i alone: where a
block has fewer rows than the method stages, a product for each row is enough.
"""
function second_order!(s::RosenbrockSweep{T}, u::Vector{T}, t0::Float64, h::Float64) where {T}
    tab, r, q = s.tab, s.r, stages(s.tab)
    n, d = r.n, r.n ÷ r.blocks
    if d + 1 >= q
        for i in 1:q
            at = (i - 1) * n + 1
            pull_second!(s, pointer(s.μ, at), pointer(s.k, at), T(h) * tab.d[i], u, t0)
        end
        return nothing
    end
    v, k = s.v, s.direction
    GC.@preserve v k begin
        for row in 1:d
            fill!(v, 0)
            fill!(k, 0)
            for b in 0:(r.blocks - 1)
                at = b * d
                v[at + row] = one(T)
                for i in 1:q
                    factor = s.μ[at + row, i]
                    for j in 1:d
                        k[at + j] = muladd(factor, s.k[at + j, i], k[at + j])
                    end
                end
            end
            pull_second!(s, pointer(v), pointer(k), zero(T), u, t0)
        end
        iszero(s.tgrad) && return nothing
        fill!(v, 0)
        fill!(k, 0)
        for i in 1:q
            axpy!(T(h) * tab.d[i], view(s.μ, :, i), v)
        end
        pull_second!(s, pointer(v), pointer(k), one(T), u, t0)
    end
    return nothing
end
