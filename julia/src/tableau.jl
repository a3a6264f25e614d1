const MAX_STAGES = 64

"""
    Weights(probe, stages)

w(θ), the dense output of a probe (see `tableau`): polynomials, taken down once at Chebyshev nodes, since asking a
solution costs more than the few products they are. Where they are no polynomials of low degree, the probe is asked.

Source: Berrut, Trefethen, Barycentric Lagrange Interpolation, SIAM Review 46 (2004), 5.
"""
struct Weights{T, S}
    probe::S
    nodes::Vector{Float64}
    "Barycentric weights of the nodes."
    factors::Vector{Float64}
    "(stages, nodes)"
    values::Matrix{T}
end

const MOST_NODES = 16

function Weights(probe, ::Type{T}, stages::Int) where {T}
    w = zeros(T, MAX_STAGES)
    seen(θ) = (probe(w, θ); w[1:stages])
    for m in 2:MOST_NODES
        nodes = [(1 - cospi((2k - 1) / 2m)) / 2 for k in 1:m]
        factors = [(-1.0)^k * sinpi((2k - 1) / 2m) for k in 1:m]
        found = Weights(probe, nodes, factors, reduce(hcat, map(seen, nodes)))
        at(θ) = (weights!(w, found, θ); w[1:stages])
        scale = maximum(abs, found.values)
        all(θ -> maximum(abs, at(θ) - seen(θ)) <= 32eps(T) * scale, (0.0123, 0.3, 0.456, 0.789, 0.9876)) && return found
    end
    return Weights(probe, Float64[], Float64[], zeros(T, stages, 0))
end

function weights!(w::Vector{T}, p::Weights{T}, θ::Float64) where {T}
    isempty(p.nodes) && return p.probe(w, θ)
    fill!(w, zero(T))
    total = 0.0
    s = size(p.values, 1)
    @inbounds for k in eachindex(p.nodes)
        gap = θ - p.nodes[k]
        if gap == 0
            copyto!(w, view(p.values, :, k))
            return w
        end
        factor = p.factors[k] / gap
        total += factor
        x = T(factor)
        @simd ivdep for i in 1:s
            w[i] = muladd(x, p.values[i, k], w[i])
        end
    end
    scale = T(1 / total)
    @inbounds @simd ivdep for i in 1:s
        w[i] *= scale
    end
    return w
end

"""
    Tableau{T}

The explicit Runge-Kutta method a solver really runs: stage values
U_i = u_n + h Σ_{j<i} a_ij k_j, k_i = f(t_n + c_i h, U_i), next state u_{n+1} = u_n + h Σ b_i k_i, and dense output
u(t_n + θ h) = u_n + h Σ w_i(θ) k_i. Stages that only the dense output or the next step uses are among them.

Found by asking the solver (`tableau(alg, T)`), so it holds for every explicit Runge-Kutta method of OrdinaryDiffEq, its
own coefficients to the last bit, its own interpolant included.
"""
struct Tableau{T, S}
    a::Matrix{T}
    b::Vector{T}
    c::Vector{Float64}
    "The dense output's weights as a function of θ, for all stages."
    weights::Weights{T, S}
    "Whether the solver stores k_1 ... k_s of each step, in this order."
    stored::Bool
    "The stage that the next step takes for its first (first same as last), 0 where there is none."
    last::Int
end

stages(tab::Tableau) = length(tab.b)

"Weights of the dense output at 0 < θ < 1, for all stages: the probe's dense output at θ."
weights!(w::Vector{T}, tab::Tableau{T}, θ::Float64) where {T} = weights!(w, tab.weights, θ)

struct NotRungeKutta <: Exception
    alg::Any
end
function Base.showerror(io::IO, e::NotRungeKutta)
    return print(
        io, nameof(typeof(e.alg)), " does not take the steps of one explicit Runge-Kutta tableau, so it has no discrete ",
        "adjoint: pass a continuous one, sensealg=\"GaussAdjoint\""
    )
end

const TABLEAUS = IdDict{Any, Dict{DataType, Any}}()

"""
    tableau(alg, T)

One step of length 1 from zero with an f that returns the i-th unit vector at its i-th call: what it is called with are
the rows of the tableau, what the step gives is b, what its dense output gives is w(θ).
"""
function tableau(alg, ::Type{T}) where {T}
    known = get!(Dict{DataType, Any}, TABLEAUS, alg)
    return get!(() -> probe(alg, T), known, T)
end

"Whether a backward pass has asked for the tableau before."
known_tableau(alg, ::Type{T}) where {T} = haskey(TABLEAUS, alg) && haskey(TABLEAUS[alg], T)

mutable struct Probe{T} <: Function
    const rows::Vector{Vector{T}}
    const c::Vector{Float64}
end

function (f::Probe{T})(du, u, p, t) where {T}
    push!(f.rows, copy(u))
    push!(f.c, t)
    fill!(du, zero(T))
    length(f.rows) <= MAX_STAGES || throw(NotRungeKutta(nothing))
    du[length(f.rows)] = one(T)
    return nothing
end

function probe(alg, ::Type{T}) where {T}
    f = Probe{T}(Vector{T}[], Float64[])
    prob = ODEProblem{true, SciMLBase.FullSpecialize}(
        ODEFunction{true, SciMLBase.FullSpecialize}(f), zeros(T, MAX_STAGES), (0.0, 1.0)
    )
    sol = try
        solve(prob, alg; adaptive = false, dt = 1.0, dense = true, verbose = SILENT)
    catch
        throw(NotRungeKutta(alg))
    end
    sol(zeros(T, MAX_STAGES), 0.5)
    s = length(f.rows)
    a = T[f.rows[i][j] for i in 1:s, j in 1:s]
    b = sol.u[end][1:s]
    explicit = all(iszero, (a[i, j] for i in 1:s for j in i:s)) && length(sol.t) == 2
    # Not asked for: row sums equal to c. CKLLSRK54_3C calls f at other times than its rows say, and is taken as it is.
    explicit && isapprox(sum(b), 1; atol = 1.0e-4) || throw(NotRungeKutta(alg))
    k = sol.k[end]
    stored = length(k) >= s && all(k[i][j] == (i == j) for i in 1:s, j in 1:s)
    # To rounding: low-storage methods add up their last stage in another order.
    last = something(findlast(i -> f.c[i] ≈ 1 && isapprox(a[i, :], b; atol = 1.0e-6), 1:s), 0)
    return Tableau(a, b, f.c, Weights(sol, T, s), stored, last)
end
