# The backward pass: from cotangents at the save points to gradients by y0, parameters and times.

"""
Same layout as `AdjointArgs` in pyjode/engines/julia/boundary.py.
"""
struct AdjointArgs
    solution::Int            # handle of a `Forward`
    alg::Int                 # handle of the adjoint solve's algorithm
    sensealg::Int            # handle
    joint::Int               # 1: the sensealg asks for both halves of a vjp at each point
    ts::Ptr{Float64}         # (nt,), increasing
    nt::Int
    first::Int               # cotangents are given of `nsaves` times, after the first so many; the others' are zero
    nsaves::Int
    cotangents::Ptr{Cvoid}   # (nsaves, n) of torch = (n, nsaves) here
    abstol::Float64
    reltol::Float64
    dt::Float64
    adaptive::Int
    maxiters::Int
    factors::Factors
    want_t::Int
    du0::Ptr{Cvoid}          # out, (n,)
    dp::Ptr{Cvoid}           # out, (np,)
    dts::Ptr{Float64}        # out, (nt,), by the user's time
    options::Ptr{StepOptions}
    products::Int            # handle of a `SecondOrder` or of `StageProducts`; 0: none
end

"Same layout as `AdjointReport` in boundary.py."
struct AdjointReport
    success::Int
    t_reached::Float64
    nf::Int
    naccept::Int
    nreject::Int
end

"Cotangents of save points 2 to nt, as SciMLSensitivity asks for them."
struct Cotangents{T} <: Function
    values::Matrix{T}
end
function (c::Cotangents)(out, u, p, t, i)
    copyto!(out, view(c.values, :, i + 1))
    return nothing
end

"Cotangents of the states at all times, (n, nt)."
function all_cotangents(a::AdjointArgs, r::RHS{T}) where {T}
    given = unsafe_wrap(Matrix{T}, Ptr{T}(a.cotangents), (r.n, a.nsaves))
    a.nsaves == a.nt && return copy(given)
    all = zeros(T, r.n, a.nt)
    copyto!(all, 1 + a.first * r.n, given, 1, length(given))
    return all
end

function adjoint(a::AdjointArgs)
    s = object(a.solution)::Forward
    return adjoint(a, s, s.rhs, object(a.alg), object(a.sensealg))::AdjointReport
end

"The continuous adjoint, by SciMLSensitivity: in the extension, which is loaded with it."
function continuous_adjoint end

function adjoint(a::AdjointArgs, s::Forward, r::RHS{T}, alg, sensealg) where {T}
    ts = copy(unsafe_wrap(Vector{Float64}, a.ts, a.nt))
    cotangents = all_cotangents(a, r)
    watched = Watched(alg, a.factors, load_options(a.options), s)
    r.joint, r.kept = a.joint == 1, false
    λ0, dp = try
        continuous_adjoint(s.sol, watched, sensealg, ts, cotangents, a)
    finally
        r.joint, r.kept = false, false
    end
    MESSAGE[] = string(watched.retcode)
    finish!(a, s, r, ts, cotangents, λ0, dp)
    return AdjointReport(
        watched.success ? 1 : 0, r.sign * watched.t, watched.nf, watched.naccept, watched.nreject
    )
end

function adjoint(a::AdjointArgs, s::Forward, r::RHS{T}, alg, ::DiscreteAdjoint) where {T}
    ts = copy(unsafe_wrap(Vector{Float64}, a.ts, a.nt))
    cotangents = all_cotangents(a, r)
    tab = tableau(alg, T)
    sweep = sweep_for(r, tab)
    sweep.linear = s.linear
    sweep.products = a.products == 0 ? nothing : object(a.products)
    λ0, dp = discrete_adjoint!(sweep, s.sol, tab, ts, cotangents)
    finish!(a, s, r, ts, cotangents, λ0, dp)
    return AdjointReport(1, r.sign * ts[1], sweep.nvjp, length(s.sol.t) - 1, 0)
end

function adjoint(a::AdjointArgs, s::Forward, r::RHS{T}, alg, ::RosenbrockAdjoint) where {T}
    ts = copy(unsafe_wrap(Vector{Float64}, a.ts, a.nt))
    cotangents = all_cotangents(a, r)
    sweep = rosenbrock_sweep(r, object(a.products)::SecondOrder{T}, rosenbrock_tableau(alg, T))
    sweep.linear = s.linear
    λ0, dp = discrete_adjoint!(sweep, s.sol.t, s.sol.u, ts, cotangents)
    finish!(a, s, r, ts, cotangents, λ0, dp)
    return AdjointReport(1, r.sign * ts[1], sweep.nvjp, length(s.sol.t) - 1, 0)
end

"Gradients by time, and everything into Python's memory; `λ0` is without the cotangent of y(t0) = y0 itself."
function finish!(a::AdjointArgs, s::Forward, r::RHS{T}, ts, cotangents, λ0, dp) where {T}
    a.want_t == 1 && time_cotangents!(unsafe_wrap(Vector{Float64}, a.dts, a.nt), s.sol, r, ts, cotangents, λ0)
    λ0 .+= view(cotangents, :, 1)
    GC.@preserve λ0 dp begin
        unsafe_copyto!(Ptr{T}(a.du0), pointer(λ0), r.n)
        r.np > 0 && unsafe_copyto!(Ptr{T}(a.dp), pointer(dp), r.np)
    end
    return nothing
end

"dL/dt_i = cotangent_i ⋅ f(t_i, y_i), dL/dt_0 = -λ(t_0) ⋅ f(t_0, y_0); λ0 without the cotangent of y(t_0) = y0."
function time_cotangents!(dts, sol, r::RHS{T}, ts, cotangents, λ0) where {T}
    u, du = zeros(T, r.n), zeros(T, r.n)
    for (i, τ) in pairs(ts)
        sol(u, τ)
        GC.@preserve u du r.f(pointer(du), pointer(u), user_time(r, τ))
        λ = i == 1 ? -λ0 : view(cotangents, :, i)
        dts[i] = sum(Float64(λ[k]) * Float64(du[k]) for k in 1:(r.n))
    end
    return nothing
end
