# The forward solve.

"""
What Python asks of a solve. Same layout as `SolveArgs` in pyjode/engines/julia/boundary.py: eight bytes a field. NaN
stands for "not given".
"""
struct SolveArgs
    rhs::Int            # handle
    alg::Int            # handle
    u0::Ptr{Cvoid}      # (n,)
    ts::Ptr{Float64}    # (nt,), increasing; ts[1] is the start, ts[nt] the end
    nt::Int
    first::Int          # states are wanted at `nsaves` times, after the first so many
    nsaves::Int
    ys::Ptr{Cvoid}      # out, (nsaves, n) of torch = (n, nsaves) here; C_NULL: only the steps are wanted
    abstol::Ptr{Float64}
    reltol::Ptr{Float64}
    per_element::Int    # 1: the tolerances have n entries, 0: one
    dt::Float64
    adaptive::Int       # 0 or 1
    dtmin::Float64
    dtmax::Float64
    maxiters::Int
    factors::Factors
    with_jac::Int
    stop_at_ts::Int     # 1: steps end at every save point
    dense::Int          # 1: keep the solution for dense output and adjoints
    reuse::Int          # 1: the next solve of this right-hand side may overwrite the solution
    options::Ptr{StepOptions}
end

"What came of it; same layout as `SolveReport` in boundary.py."
struct SolveReport
    solution::Int       # handle, 0 where nothing is kept
    success::Int
    t_reached::Float64
    nsaved::Int         # save points reached; with `dense`, steps stored
    nf::Int
    naccept::Int
    nreject::Int
    njacs::Int
    nsolve::Int
    nw::Int
    nnonliniter::Int
    nnonlinconvfail::Int
end

"A finished forward solve, kept for dense output and for the adjoints."
struct Forward{S, R}
    sol::S
    rhs::R
    "Straight lines between steps."
    linear::Bool
end
Forward(sol, r) = Forward(sol, r, false)

"Those of the times `ts` that states are wanted at, or cotangents are of."
save_times(a, ts::Vector{Float64}) = a.nsaves == length(ts) ? ts : ts[(a.first + 1):(a.first + a.nsaves)]

tolerance(p::Ptr{Float64}, n::Int, per_element::Bool) =
    per_element ? copy(unsafe_wrap(Vector{Float64}, p, n)) : unsafe_load(p)

given(x::Float64, default::Float64) = isnan(x) ? default : x

"An adaptive solve chooses its own first step, a fixed-step one goes as far as it is let."
first_step(dt::Float64, fixed::Bool, span::Float64) = isnan(dt) ? (fixed ? span : nothing) : dt

function forward(a::SolveArgs)
    r = object(a.rhs)
    ts = copy(unsafe_wrap(Vector{Float64}, a.ts, a.nt))
    per_element = a.per_element == 1
    abstol, reltol = tolerance(a.abstol, r.n, per_element), tolerance(a.reltol, r.n, per_element)
    # The types that vary are settled here, once: inside, every call is a direct one.
    return forward(a, r, object(a.alg), ts, abstol, reltol, first_step(a.dt, a.adaptive == 0, ts[end] - ts[1]))::SolveReport
end

function forward(a::SolveArgs, r::RHS{T}, alg, ts::Vector{Float64}, abstol, reltol, dt) where {T}
    options = load_options(a.options)
    r.lowest, r.highest = options === nothing ? (-Inf, Inf) : (options.lowest, options.highest)
    kept = a.reuse == 1 ? r.integrator : nothing
    if kept isa Kept && kept.alg === alg && kept.tolerances === typeof((abstol, reltol)) && kept.factors === a.factors
        # Whatever goes wrong, a broken integrator is not used again.
        r.integrator = nothing
        u0 = unsafe_wrap(Vector{T}, Ptr{T}(a.u0), r.n)
        return again(kept, a, r, kept.integrator, u0, ts, abstol, reltol, dt)::SolveReport
    end
    u0 = copy(unsafe_wrap(Vector{T}, Ptr{T}(a.u0), r.n))
    prob = a.with_jac == 1 ? implicit_problem(r, u0, (ts[1], ts[end])) : explicit_problem(r, u0, (ts[1], ts[end]))
    return forward(a, r, prob, alg, ts, abstol, reltol, dt)
end

function forward(a::SolveArgs, r::RHS{T}, prob::ODEProblem, alg, ts, abstol, reltol, dt) where {T}
    dense = a.dense == 1
    options = load_options(a.options)
    # With init, since a solution with save points does not say where a failed solve stopped.
    integrator = SciMLBase.init(
        prob, alg; abstol, reltol, dt, tstops = with_tstops(a.stop_at_ts == 1 ? ts : Float64[], options),
        adaptive = a.adaptive == 1, dtmin = given(a.dtmin, 0.0), dtmax = given(a.dtmax, ts[end] - ts[1]), maxiters = a.maxiters,
        saveat = dense ? Float64[] : save_times(a, ts), dense, save_everystep = dense, verbose = SILENT,
        internalnorm = StateNorm(options), force_dtmin = options !== nothing && options.force_dtmin == 1
    )
    tune!(integrator, a.factors)
    report = complete!(a, r, integrator, ts, options)
    if a.reuse == 1 && dense && report.success == 1 && known_tableau(alg, T)
        r.integrator = Kept(alg, typeof((abstol, reltol)), a.factors, integrator)
    end
    return report
end

"""
An integrator for the next solve of the same right-hand side by the same method: making one costs more than a small
solve. Only where the method is an explicit Runge-Kutta one, which carries nothing from step to step, and only where
nobody needs the problem of the solution (the continuous adjoints do).
"""
struct Kept
    alg::Any
    tolerances::Type
    factors::Factors
    integrator::Any
end

function again(kept::Kept, a::SolveArgs, r::RHS{T}, integrator, u0, ts, abstol, reltol, dt) where {T}
    opts = integrator.opts
    opts.abstol, opts.reltol = abstol, reltol
    opts.adaptive, opts.maxiters = a.adaptive == 1, a.maxiters
    opts.dtmin, opts.dtmax = given(a.dtmin, 0.0), given(a.dtmax, ts[end] - ts[1])
    zero_counts!(integrator.stats)
    integrator.dt = integrator.dtcache = dt === nothing ? 0.0 : dt
    SciMLBase.reinit!(
        integrator, u0; t0 = ts[1], tf = ts[end], tstops = a.stop_at_ts == 1 ? ts : NO_TIMES, saveat = NO_TIMES,
        d_discontinuities = NO_TIMES, reset_dt = dt === nothing, reinit_dae = false, reinit_callbacks = false
    )
    report = complete!(a, r, integrator, ts, nothing)
    report.success == 1 && (r.integrator = kept)
    return report
end

const NO_TIMES = Float64[]

function zero_counts!(stats::S) where {S}
    for i in 1:fieldcount(S)
        fieldtype(S, i) <: Real && setfield!(stats, i, zero(fieldtype(S, i)))
    end
    return nothing
end

function complete!(a::SolveArgs, r::RHS{T}, integrator, ts, options) where {T}
    sol = solve_telling!(integrator, options, r)
    linear = options !== nothing && options.linear == 1
    if a.dense == 1
        a.ys == C_NULL || interpolate!(Ptr{T}(a.ys), sol, save_times(a, ts), r.n, Val{0}, linear)
        nsaved, handle = length(sol.t), keep!(Forward(sol, r, linear))
    else
        nsaved, handle = copy_saved!(Ptr{T}(a.ys), sol, a.nsaves, r.n), 0
    end
    success = SciMLBase.successful_retcode(sol)
    MESSAGE[] = success ? "Success" : string(sol.retcode)
    st = sol.stats
    return SolveReport(
        handle, success ? 1 : 0, r.sign * integrator.t, nsaved, st.nf + st.nf2,
        st.naccept, st.nreject, st.njacs, st.nsolve, st.nw, st.nnonliniter, st.nnonlinconvfail
    )
end

"Save points that a failed solve did not reach become NaN."
function copy_saved!(ys::Ptr{T}, sol, nt::Int, n::Int) where {T}
    nsaved = min(length(sol.u), nt)
    for i in 1:nsaved
        u = sol.u[i]
        GC.@preserve u unsafe_copyto!(ys + (i - 1) * sizeof(u), pointer(u), length(u))
    end
    not_reached!(ys, nsaved, nt, n)
    return nsaved
end

function interpolate!(out::Ptr{T}, sol, ts::Vector{Float64}, n::Int, deriv, linear::Bool = false) where {T}
    for (i, t) in pairs(ts)
        t > sol.t[end] && return not_reached!(out, i - 1, length(ts), n)
        linear && (straight!(unsafe_wrap(Vector{T}, out + (i - 1) * n * sizeof(T), n), sol, t); continue)
        sol(unsafe_wrap(Vector{T}, out + (i - 1) * n * sizeof(T), n), t, deriv)
    end
    return nothing
end

function not_reached!(ys::Ptr{T}, reached::Int, nt::Int, n::Int) where {T}
    for i in (reached * n + 1):(nt * n)
        unsafe_store!(ys, T(NaN), i)
    end
    return nothing
end

"u(t) on the straight line between two steps."
function straight!(out::Vector{T}, sol, t::Float64) where {T}
    i = clamp(searchsortedlast(sol.t, t), 1, length(sol.t) - 1)
    θ = T((t - sol.t[i]) / (sol.t[i + 1] - sol.t[i]))
    @. out = sol.u[i] + θ * (sol.u[i + 1] - sol.u[i])
    return nothing
end

"Dense output: the solution (order 0) or its time derivative (order 1) at `ts`, into `out` (n, nt)."
function dense_output!(s::Forward, out::Ptr{Cvoid}, ts::Vector{Float64}, order::Int)
    T = eltype(s.rhs.p)
    interpolate!(Ptr{T}(out), s.sol, ts, s.rhs.n, order == 0 ? Val{0} : Val{1}, s.linear && order == 0)
    return nothing
end

"Times (the user's) and states of the stored steps, into `ts` (m,) and `out` (n, m)."
function steps!(s::Forward, ts::Ptr{Float64}, out::Ptr{Cvoid})
    T, n = eltype(s.rhs.p), s.rhs.n
    for (i, (t, u)) in enumerate(zip(s.sol.t, s.sol.u))
        unsafe_store!(ts, s.rhs.sign * t, i)
        GC.@preserve u unsafe_copyto!(Ptr{T}(out) + (i - 1) * sizeof(u), pointer(u), n)
    end
    return nothing
end
