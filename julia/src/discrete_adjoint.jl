"""
The discrete adjoint: reverse-mode differentiation of the accepted steps of an explicit Runge-Kutta solve, step sizes
held constant, save points through the method's own interpolant. What backpropagation through the solver gives, with
the stored steps for memory instead of a tape.

Source: Hairer, Nørsett, Wanner, Solving Ordinary Differential Equations I, II.6 (dense output); Kidger, On Neural
Differential Equations, 5.1 (discretise-then-optimise).

For a step with cotangent λ of u_{n+1} and cotangents g_m of save points at θ_m inside it, the stages' cotangents are
K_i = h b_i λ + h Σ_m w_i(θ_m) g_m; going back through the stages, U_i' = J_iᵀ K_i adds to u_n's cotangent, h a_ij U_i'
to K_j, and (∂f/∂p)ᵀ K_i to the parameters'.
"""
struct DiscreteAdjoint end

const StagesFunction{T} = FunctionWrapper{Nothing, Tuple{Ptr{T}, Ptr{T}, Ptr{T}, Ptr{T}}}

"""
The parameters' half of the vjps at all stages of a step but the first, at once: (J_p, v, times, u), where v and u have a
column a stage, gives J_p = Σ_i v_iᵀ ∂f/∂p(u_i, t_i).
"""
struct StageProducts{T}
    product::StagesFunction{T}
end

struct NativeStages{F}
    code::F
    memory::NativeMemory
end

function (g::NativeStages)(Jp::Ptr{T}, v::Ptr{T}, times::Ptr{T}, u::Ptr{T}) where {T}
    m = g.memory
    GC.@preserve m g.code(Jp, v, times, u, NaN, m.workspace, m.table)
    return nothing
end

function native_stages(::Type{T}, code::NativeCode, table::Ptr{Ptr{Cvoid}}) where {T}
    product = Base.invokelatest(getglobal, code.functions, :stages)
    return StageProducts{T}(StagesFunction{T}(NativeStages(product, NativeMemory(table, code.workspace))))
end

mutable struct Sweep{T}
    const r::RHS{T}
    const λ::Vector{T}
    const dp::Vector{T}
    "Cotangent of a step's first stage, which is the last stage of the step before, or f at the boundary."
    const pending::Vector{T}
    const k::Matrix{T}
    const K::Matrix{T}
    const U::Matrix{T}
    const w::Vector{T}
    const Ju::Vector{T}
    const Jp::Vector{T}
    const times::Vector{T}
    nvjp::Int
    "Straight lines between steps, instead of the method's interpolant."
    linear::Bool
    "`StageProducts`, where they pay."
    products::Any
end

function Sweep(r::RHS{T}, tab::Tableau{T}) where {T}
    n, s = r.n, stages(tab)
    return Sweep{T}(
        r, zeros(T, n), zeros(T, r.np), zeros(T, n), zeros(T, n, s), zeros(T, n, s), zeros(T, n, s),
        zeros(T, MAX_STAGES), zeros(T, n), zeros(T, r.np), zeros(T, s), 0, false, nothing
    )
end

"The sweep of the last backward pass again where it fits: its memory is more than a small problem's work."
function sweep_for(r::RHS{T}, tab::Tableau{T}) where {T}
    known = r.sweep
    if known isa Sweep{T} && size(known.k, 2) == stages(tab)
        known.nvjp = 0
        return known
    end
    return r.sweep = Sweep(r, tab)
end

"""
J(t, U)ᵀ v for du/dτ; the parameters' half is added to dp, unless `with_p` is false. For every sweep with `Ju`, `Jp` and
`dp`.
"""
function pull!(s, v::Ptr{T}, U::Ptr{T}, t::Float64, with_p::Bool = true) where {T}
    r = s.r
    poll()
    with_p &= r.np > 0
    r.vjp(pointer(s.Ju), with_p ? pointer(s.Jp) : Ptr{T}(0), v, U, user_time(r, t))
    flip!(r, pointer(s.Ju), r.n)
    if with_p
        axpy!(T(r.sign), s.Jp, s.dp)
    end
    s.nvjp += 1
    return s.Ju
end

function discrete_adjoint!(s::Sweep{T}, sol, tab::Tableau{T}, ts::Vector{Float64}, cotangents::Matrix{T}) where {T}
    fill!(s.λ, 0)
    fill!(s.dp, 0)
    fill!(s.pending, 0)
    GC.@preserve s backwards!(s.λ, sol.t, ts, cotangents) do n, inside
        step!(s, sol, tab, n, ts, cotangents, inside)
    end
    GC.@preserve s boundary!(s, sol.u[1], sol.t[1])
    return s.λ, s.dp
end

"""
Call `step!(n, inside)` for each step n, the last first, with the numbers of the save points inside it. The cotangents of
those at a step's end, which are its state, are added to `λ` before.
"""
function backwards!(step!::F, λ::Vector{T}, steps, ts::Vector{Float64}, cotangents::Matrix{T}) where {F, T}
    m = length(ts)
    for n in length(steps):-1:2
        while m > 1 && ts[m] >= steps[n]
            λ .+= view(cotangents, :, m)
            m -= 1
        end
        from = m + 1
        while from > 2 && ts[from - 1] > steps[n - 1]
            from -= 1
        end
        step!(n, from:m)
        m = from - 1
    end
    return nothing
end

"Settle the pending cotangent of f(t, u)."
function boundary!(s::Sweep{T}, u::Vector{T}, t::Float64) where {T}
    iszero(s.pending) && return nothing
    GC.@preserve u s.λ .+= pull!(s, pointer(s.pending), pointer(u), t)
    fill!(s.pending, 0)
    return nothing
end

function step!(s::Sweep{T}, sol, tab::Tableau{T}, n, ts, cotangents, inside) where {T}
    t0, h = sol.t[n - 1], sol.t[n] - sol.t[n - 1]
    hT = T(h)
    q = stages(tab)
    K = s.K
    fill!(K, 0)
    for m in inside
        output_weights!(s, tab, (ts[m] - t0) / h)
        for i in 1:q
            iszero(s.w[i]) || axpy!(hT * s.w[i], view(cotangents, :, m), view(K, :, i))
        end
    end
    if tab.last > 0
        view(K, :, tab.last) .+= s.pending
        fill!(s.pending, 0)
    else
        boundary!(s, sol.u[n], sol.t[n])
    end
    for i in 1:q
        iszero(tab.b[i]) || axpy!(hT * tab.b[i], s.λ, view(K, :, i))
    end
    for m in inside
        s.λ .+= view(cotangents, :, m)
    end
    needed = highest_nonzero(K, q)
    stage_values!(s, sol, tab, n, needed)
    for i in needed:-1:2
        v = view(K, :, i)
        iszero(v) && continue
        Ju = pull!(s, pointer(v), pointer(s.U, (i - 1) * s.r.n + 1), t0 + tab.c[i] * h, s.products === nothing)
        s.λ .+= Ju
        for j in 1:(i - 1)
            iszero(tab.a[i, j]) || axpy!(hT * tab.a[i, j], Ju, view(K, :, j))
        end
    end
    s.products === nothing || needed < 2 || all_stages!(s, s.products, tab, t0, h, sol.u[n - 1], needed)
    s.pending .= view(K, :, 1)
    return nothing
end

"The parameters' half at the stages 2 to the last, of which those after `needed` have no cotangents."
function all_stages!(s::Sweep{T}, products::StageProducts{T}, tab, t0, h, u0, needed) where {T}
    r, q = s.r, stages(tab)
    for i in 2:q
        s.times[i] = T(user_time(r, t0 + tab.c[i] * h))
        # No cotangent makes up for what f may be at a stage that was never computed.
        i > needed && copyto!(view(s.U, :, i), u0)
    end
    poll()
    products.product(pointer(s.Jp), pointer(s.K, r.n + 1), pointer(s.times, 2), pointer(s.U, r.n + 1))
    axpy!(T(r.sign), s.Jp, s.dp)
    return nothing
end

function output_weights!(s::Sweep{T}, tab::Tableau{T}, θ::Float64) where {T}
    s.linear || return weights!(s.w, tab, θ)
    for i in 1:stages(tab)
        s.w[i] = T(θ) * tab.b[i]
    end
    return nothing
end

highest_nonzero(K, q) = something(findlast(i -> !iszero(view(K, :, i)), 1:q), 1)

"U_2 ... U_needed of a step, from the stored stages or from new ones."
function stage_values!(s::Sweep{T}, sol, tab::Tableau{T}, n, needed) where {T}
    t0, h = sol.t[n - 1], sol.t[n] - sol.t[n - 1]
    u0, hT, N = sol.u[n - 1], T(h), s.r.n
    for i in 1:needed
        U = view(s.U, :, i)
        copyto!(U, u0)
        for j in 1:(i - 1)
            iszero(tab.a[i, j]) || axpy!(hT * tab.a[i, j], view(s.k, :, j), U)
        end
        i == needed && break
        if tab.stored
            copyto!(view(s.k, :, i), sol.k[n][i])
        else
            poll()
            k = pointer(s.k, (i - 1) * N + 1)
            s.r.f(k, pointer(s.U, (i - 1) * N + 1), user_time(s.r, t0 + tab.c[i] * h))
            flip!(s.r, k, N)
        end
    end
    return nothing
end

function axpy!(a::T, x::AbstractVector{T}, y::AbstractVector{T}) where {T}
    @inbounds @simd ivdep for i in eachindex(x, y)
        y[i] = muladd(a, x[i], y[i])
    end
    return nothing
end
