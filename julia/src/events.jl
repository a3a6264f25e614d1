# Solves that end where a condition crosses zero, found by a VectorContinuousCallback.

"""
What ends a solve early. Same layout as `UntilArgs` in pyjode/engines/julia/boundary.py.
"""
struct UntilArgs
    nconditions::Int
    conditions::Ptr{Int}     # (nconditions,) handles of right-hand sides whose f gives a condition's values
    sizes::Ptr{Int}          # (nconditions,) how many of them, the first ones, are values
    directions::Ptr{Int}     # a value each: 1, -1: only crossings from below, from above; 0: both
    signs::Ptr{Float64}      # a value each: the sign it counts as having until ...
    holds::Ptr{Float64}      # ... so long after the start; negative: never
    interp_points::Int
    fired::Ptr{Int}          # out, a value each: the direction in which it crossed, 0: it did not
end

"The conditions of one solve, and what the callback found."
struct Crossings{T}
    conditions::Vector{RHS{T}}
    sizes::Vector{Int}
    directions::Vector{Int}
    signs::Vector{Float64}
    holds::Vector{Float64}
    start::Float64
    sign::Float64
    values::Vector{T}
    "What a value of exactly zero is taken for, see `sign_zeros!`."
    zeros::Vector{T}
    fired::Vector{Int}
end

function Crossings{T}(a::UntilArgs, r::RHS{T}, start::Float64) where {T}
    k = a.nconditions
    sizes = copy(unsafe_wrap(Vector{Int}, a.sizes, k))
    n = sum(sizes; init = 0)
    own(p, size) = copy(unsafe_wrap(Vector{eltype(p)}, p, size))
    conditions = RHS{T}[object(handle) for handle in own(a.conditions, k)]
    return Crossings{T}(
        conditions, sizes, own(a.directions, n), own(a.signs, n), own(a.holds, n), start, r.sign,
        zeros(T, r.n), zeros(T, n), zeros(Int, n)
    )
end

struct Condition{T} <: Function
    crossings::Crossings{T}
end

function (g::Condition{T})(out, u, τ, integrator) where {T}
    c = g.crossings
    values = c.values
    i = 0
    for k in eachindex(c.conditions)
        GC.@preserve u values c.conditions[k].f(pointer(values), dataptr(u), c.sign * τ)
        for j in 1:c.sizes[k]
            i += 1
            value = τ - c.start <= c.holds[i] ? T(c.signs[i]) : values[j]
            out[i] = iszero(value) ? c.zeros[i] : value
        end
    end
    return nothing
end

"Ends the solve, unless all that crossed zero did so in a direction that was not asked for."
struct Stop{T} <: Function
    crossings::Crossings{T}
end

function (s::Stop)(integrator, crossed)
    c = s.crossings
    for i in eachindex(c.fired)
        direction = Int(crossed[i])
        if direction != 0 && (c.directions[i] == 0 || c.directions[i] == direction)
            c.fired[i] = direction
        end
        # The sign at the start is no longer the one it has.
        direction == 0 || (c.zeros[i] = 0)
    end
    SciMLBase.derivative_discontinuity!(integrator, false)
    all(iszero, c.fired) || SciMLBase.terminate!(integrator)
    return nothing
end

function stop_at(c::Crossings, interp_points::Int)
    # Where zeros have a sign, the zero itself is on the right of a root.
    rootfind = all(iszero, c.zeros) ? SciMLBase.LeftRootFind : SciMLBase.RightRootFind
    # DiffEqBase asks for a range from one end to another, which cannot have a single point.
    points = interp_points == 1 ? 2 : interp_points
    return SciMLBase.VectorContinuousCallback(
        Condition(c), Stop(c), length(c.fired); interp_points = points, rootfind, save_positions = (true, false)
    )
end

"""
Whether a value that ended the solve was zero already shortly before. A condition that is zero from some time on
(torchdiffeq's way to end a search) hides the crossing before it: the root finder is content with the zero at the end of
its interval.
"""
function zero_for_a_while(c::Crossings{T}, sol) where {T}
    length(sol.t) > 1 && any(!iszero, c.fired) || return false
    before, at = zeros(T, length(c.fired)), zeros(T, length(c.fired))
    t = sol.t[end]
    shortly = t - 1.0e-6 * (t - sol.t[end - 1])
    Condition(c)(before, sol(shortly), shortly, nothing)
    Condition(c)(at, sol.u[end], t, nothing)
    return any(i -> c.fired[i] != 0 && before[i] == at[i] == 0, eachindex(before))
end

"From now on take zeros for the smallest numbers of the other sign than at the start, and forget what fired."
function sign_zeros!(c::Crossings{T}, u0) where {T}
    c.fired .= 0
    start = zeros(T, length(c.fired))
    Condition(c)(start, u0, c.start, nothing)
    @. c.zeros = -sign(start) * eps(T)
    return nothing
end

function forward_until(a::SolveArgs, e::UntilArgs)
    r = object(a.rhs)
    ts = copy(unsafe_wrap(Vector{Float64}, a.ts, a.nt))
    per_element = a.per_element == 1
    abstol, reltol = tolerance(a.abstol, r.n, per_element), tolerance(a.reltol, r.n, per_element)
    return forward_until(
        a, e, r, object(a.alg), ts, abstol, reltol, first_step(a.dt, a.adaptive == 0, ts[end] - ts[1])
    )::SolveReport
end

function forward_until(a::SolveArgs, e::UntilArgs, r::RHS{T}, alg, ts::Vector{Float64}, abstol, reltol, dt) where {T}
    # No bounds of f's time: an event may be anywhere.
    r.lowest, r.highest = -Inf, Inf
    u0 = copy(unsafe_wrap(Vector{T}, Ptr{T}(a.u0), r.n))
    prob = a.with_jac == 1 ? implicit_problem(r, u0, (ts[1], ts[end])) : explicit_problem(r, u0, (ts[1], ts[end]))
    crossings = Crossings{T}(e, r, ts[1])
    return forward_until(a, e, r, prob, alg, ts, abstol, reltol, dt, crossings)
end

function forward_until(a::SolveArgs, e::UntilArgs, r::RHS, prob::ODEProblem, alg, ts, abstol, reltol, dt, crossings)
    integrator, sol = solve_until(a, e, r, prob, alg, ts, abstol, reltol, dt, crossings)
    if zero_for_a_while(crossings, sol)
        sign_zeros!(crossings, prob.u0)
        integrator, sol = solve_until(a, e, r, prob, alg, ts, abstol, reltol, dt, crossings)
    end
    success = SciMLBase.successful_retcode(sol)
    MESSAGE[] = success ? "Success" : string(sol.retcode)
    fired = crossings.fired
    GC.@preserve fired unsafe_copyto!(e.fired, pointer(fired), length(fired))
    st = sol.stats
    return SolveReport(
        keep!(Forward(sol, r, false)), success ? 1 : 0, r.sign * integrator.t, length(sol.t), st.nf + st.nf2,
        st.naccept, st.nreject, st.njacs, st.nsolve, st.nw, st.nnonliniter, st.nnonlinconvfail
    )
end

function solve_until(a::SolveArgs, e::UntilArgs, r::RHS, prob::ODEProblem, alg, ts, abstol, reltol, dt, crossings)
    options = load_options(a.options)
    integrator = SciMLBase.init(
        prob, alg; abstol, reltol, dt, tstops = with_tstops(Float64[], options), adaptive = a.adaptive == 1,
        dtmin = given(a.dtmin, 0.0), dtmax = given(a.dtmax, ts[end] - ts[1]), maxiters = a.maxiters, dense = true,
        save_everystep = true, callback = stop_at(crossings, e.interp_points), verbose = SILENT,
        internalnorm = StateNorm(options), force_dtmin = options !== nothing && options.force_dtmin == 1
    )
    tune!(integrator, a.factors)
    cut_first_step!(integrator)
    sol = solve_telling!(integrator, options, r)
    return integrator, sol
end
