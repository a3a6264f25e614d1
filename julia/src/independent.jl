# Independent trajectories: a batch of initial states of one ODE, each solved with step sizes of its own, on several
# threads where the right-hand side needs no Python.

"""
Right-hand sides of one function for several threads: each has memory of its own. `make` is `nothing` where there can
be only one, which calls Python.
"""
struct RHSPool{T}
    make::Any
    made::Vector{RHS{T}}
end

RHSPool(r::RHS{T}) where {T} = RHSPool{T}(nothing, [r])
as_pool(pool::RHSPool) = pool
as_pool(r::RHS) = RHSPool(r)

"The first `count` of the pool, fewer where there are no more to have."
function members(pool::RHSPool, count::Int)
    pool.make === nothing && return pool.made
    while length(pool.made) < count
        push!(pool.made, pool.make())
    end
    return pool.made
end

"""
What Python asks of a batch of solves. Same layout as `IndependentArgs` in pyjode/engines/julia/boundary.py: eight
bytes a field.
"""
struct IndependentArgs
    rhs::Int             # handle of an RHS or RHSPool
    alg::Int             # handle
    u0::Ptr{Cvoid}       # (batch, n) of torch = (n, batch) here
    ts::Ptr{Float64}     # (batch, nt) of torch, each row increasing
    batch::Int
    nt::Int
    ys::Ptr{Cvoid}       # out, (nt, batch, n) of torch = (n, batch, nt) here
    abstol::Ptr{Float64}
    reltol::Ptr{Float64}
    per_element::Int     # 1: the tolerances have n entries, 0: one
    dt::Float64
    adaptive::Int
    dtmin::Float64
    dtmax::Float64
    maxiters::Int
    factors::Factors
    with_jac::Int
    stop_at_ts::Int
    keep::Int            # KEEP_NOTHING, KEEP_STEPS or KEEP_SOLUTIONS
    reuse::Int           # 1: an integrator can start again (one-step methods)
    threads::Int
    t_reached::Ptr{Float64}   # out, (batch,)
    counts::Ptr{Int}          # out, (batch, COUNTS) of torch
end

const KEEP_NOTHING, KEEP_STEPS, KEEP_SOLUTIONS = 0, 1, 2

"Columns of `counts`: return code, save points reached, then the work counts in the order of `SolveReport`."
const COUNTS = 10

"What came of it; same layout as `IndependentReport` in boundary.py."
struct IndependentReport
    solution::Int    # handle, 0 where nothing is kept
    failed::Int      # how many did not reach their end
end

"One worker's steps, end to end."
struct StepStore{T}
    t::Vector{Float64}
    u::Vector{T}
end
StepStore{T}() where {T} = StepStore{T}(Float64[], T[])

"The kept part of a batch of solves. Sample `b`'s is in the store of worker `owner[b]`, from `first[b]` to `last[b]`."
struct Trajectories{T}
    pool::RHSPool{T}
    ts::Matrix{Float64}
    nsaved::Vector{Int}
    owner::Vector{Int}
    first::Vector{Int}
    last::Vector{Int}
    stores::Vector{StepStore{T}}
    "`Forward`s, where whole solutions are kept."
    solutions::Vector{Any}
end

"A few samples at a time, so that claiming costs nothing and the last ones leave nobody idle for long."
forward_chunk(batch::Int, threads::Int) = clamp(batch ÷ (32 * threads), 1, 64)

function independent(a::IndependentArgs)
    pool = as_pool(object(a.rhs))
    return independent(a, pool, object(a.alg))::IndependentReport
end

function independent(a::IndependentArgs, pool::RHSPool{T}, alg) where {T}
    rs = members(pool, a.threads)
    n = rs[1].n
    threads = min(a.threads, length(rs))
    ts = copy(unsafe_wrap(Matrix{Float64}, a.ts, (a.nt, a.batch)))
    per_element = a.per_element == 1
    abstol, reltol = tolerance(a.abstol, n, per_element), tolerance(a.reltol, n, per_element)
    kept = Trajectories{T}(
        pool, ts, zeros(Int, a.batch), zeros(Int, a.batch), zeros(Int, a.batch), zeros(Int, a.batch),
        [StepStore{T}() for _ in 1:threads], a.keep == KEEP_SOLUTIONS ? Vector{Any}(undef, a.batch) : Any[]
    )
    counts = unsafe_wrap(Matrix{Int}, a.counts, (COUNTS, a.batch))
    workers = Vector{Any}(undef, threads)
    work = (worker, range) -> solve_range!(workers, worker, range, a, rs[worker], alg, abstol, reltol, kept, counts)
    crew(work, threads, a.batch, forward_chunk(a.batch, threads))
    codes = unique(view(counts, 1, :))
    MESSAGE[] = join(("$code=$(ReturnCode.T(code))" for code in codes), " ")
    failed = count(b -> !SciMLBase.successful_retcode(ReturnCode.T(counts[1, b])), 1:(a.batch))
    return IndependentReport(a.keep == KEEP_NOTHING ? 0 : keep!(kept), failed)
end

function solve_range!(workers, worker::Int, range, a::IndependentArgs, r::RHS{T}, alg, abstol, reltol, kept, counts) where {T}
    if a.keep == KEEP_SOLUTIONS || a.reuse == 0
        for b in range
            integrator = new_integrator(a, r, alg, abstol, reltol, kept.ts, b)
            solve_sample!(integrator, a, r, kept, counts, worker, b)
        end
    else
        for b in range
            integrator = isassigned(workers, worker) ? workers[worker] : nothing
            if integrator === nothing
                integrator = new_integrator(a, r, alg, abstol, reltol, kept.ts, b)
                success = solve_sample!(integrator, a, r, kept, counts, worker, b)
            else
                success = restart!(integrator, a, r, kept, counts, worker, b)
            end
            # Where a solve broke off, its integrator is left in no state to trust.
            workers[worker] = success ? integrator : nothing
        end
    end
    return nothing
end

initial_state(a::IndependentArgs, r::RHS{T}, b) where {T} =
    unsafe_wrap(Vector{T}, Ptr{T}(a.u0) + (b - 1) * r.n * sizeof(T), r.n)

function new_integrator(a::IndependentArgs, r::RHS{T}, alg, abstol, reltol, ts::Matrix{Float64}, b::Int) where {T}
    u0, t0, t1 = copy(initial_state(a, r, b)), ts[1, b], ts[end, b]
    prob = a.with_jac == 1 ? implicit_problem(r, u0, (t0, t1)) : explicit_problem(r, u0, (t0, t1))
    dt = first_step(a.dt, a.adaptive == 0, t1 - t0)
    dense = a.keep == KEEP_SOLUTIONS
    # calck: save points ask for the interpolant. Saving is on, though nothing is saved: that is where lazy methods forget
    # the last step's further stages.
    integrator = SciMLBase.init(
        prob, alg; abstol, reltol, dt, tstops = a.stop_at_ts == 1 ? ts[:, b] : Float64[], adaptive = a.adaptive == 1,
        dtmin = given(a.dtmin, 0.0), dtmax = given(a.dtmax, t1 - t0), maxiters = a.maxiters, saveat = Float64[], dense,
        save_everystep = dense, save_start = dense, save_end = dense, calck = true, verbose = SILENT
    )
    tune!(integrator, a.factors)
    return integrator
end

"As if `integrator` were made for sample `b`, without what making one costs; and solves it."
function restart!(integrator, a::IndependentArgs, r::RHS{T}, kept::Trajectories{T}, counts, worker::Int, b::Int) where {T}
    ts = kept.ts
    t0, t1 = ts[1, b], ts[end, b]
    fixed = a.adaptive == 0
    clear!(integrator.stats)
    integrator.opts.dtmax = given(a.dtmax, t1 - t0)
    integrator.force_stepfail = integrator.last_stepfail = integrator.just_hit_tstop = false
    if !isnan(a.dt) || fixed
        integrator.dt = integrator.dtcache = given(a.dt, t1 - t0)
        integrator.dtpropose = integrator.dt
    end
    SciMLBase.reinit!(
        integrator, initial_state(a, r, b); t0, tf = t1, tstops = a.stop_at_ts == 1 ? ts[:, b] : (), saveat = (),
        d_discontinuities = (), reset_dt = !fixed && isnan(a.dt),
        reinit_retcode = integrator.sol.retcode != ReturnCode.Default
    )
    return solve_sample!(integrator, a, r, kept, counts, worker, b)
end

clear!(s::SciMLBase.DEStats) = (for i in 1:fieldcount(typeof(s)); setfield!(s, i, zero(fieldtype(typeof(s), i))); end; nothing)

function solve_sample!(integrator, a::IndependentArgs, r::RHS{T}, kept::Trajectories{T}, counts, worker::Int, b::Int) where {T}
    ts, n, nt = kept.ts, r.n, a.nt
    store = kept.stores[worker]
    keep_steps = a.keep == KEEP_STEPS
    kept.owner[b] = worker
    kept.first[b] = length(store.t) + 1
    keep_steps && push_step!(store, integrator)
    ys, stride = Ptr{T}(a.ys) + (b - 1) * n * sizeof(T), a.batch * n * sizeof(T)
    u = integrator.u
    GC.@preserve u unsafe_copyto!(ys, pointer(u), n)
    m = 2
    retcode = ReturnCode.Success
    while m <= nt && !isempty(integrator.opts.tstops)
        SciMLBase.step!(integrator)
        code = integrator.sol.retcode
        if code != ReturnCode.Default && code != ReturnCode.Success
            retcode = code
            break
        end
        t = integrator.t
        while m <= nt && ts[m, b] <= t
            out = ys + (m - 1) * stride
            if ts[m, b] == t
                u = integrator.u
                GC.@preserve u unsafe_copyto!(out, pointer(u), n)
            else
                integrator(unsafe_wrap(Vector{T}, out, n), ts[m, b])
            end
            m += 1
        end
        keep_steps && push_step!(store, integrator)
    end
    # A last step can end within rounding of the end.
    if retcode == ReturnCode.Success && m == nt && isempty(integrator.opts.tstops)
        u = integrator.u
        GC.@preserve u unsafe_copyto!(ys + (m - 1) * stride, pointer(u), n)
        m += 1
    end
    if a.keep == KEEP_SOLUTIONS
        OrdinaryDiffEqCore.postamble!(integrator)
        integrator.sol = SciMLBase.solution_new_retcode(integrator.sol, retcode)
        kept.solutions[b] = Forward(integrator.sol, r)
    end
    kept.last[b] = length(store.t)
    kept.nsaved[b] = m - 1
    unsafe_store!(a.t_reached, r.sign * integrator.t, b)
    counts[1, b], counts[2, b] = Int(retcode), m - 1
    for (i, c) in enumerate(work_counts(integrator.stats))
        counts[i + 2, b] = c
    end
    return retcode == ReturnCode.Success
end

work_counts(s) = (s.nf + s.nf2, s.naccept, s.nreject, s.njacs, s.nsolve, s.nw, s.nnonliniter, s.nnonlinconvfail)

function push_step!(store::StepStore, integrator)
    push!(store.t, integrator.t)
    append!(store.u, integrator.u)
    return nothing
end

"""
What Python asks of the backward pass. Same layout as `IndependentAdjointArgs` in boundary.py.
"""
struct IndependentAdjointArgs
    solution::Int            # handle of a `Trajectories`
    alg::Int                 # handle of the adjoint solve's algorithm
    sensealg::Int            # handle
    joint::Int
    batch::Int
    nt::Int
    ys::Ptr{Cvoid}           # what the solve gave, (nt, batch, n) of torch
    cotangents::Ptr{Cvoid}   # (nt, batch, n) of torch
    abstol::Float64
    reltol::Float64
    dt::Float64
    adaptive::Int
    maxiters::Int
    factors::Factors
    want_t::Int
    threads::Int
    du0::Ptr{Cvoid}          # out, (batch, n) of torch
    dp::Ptr{Cvoid}           # out, (np,): the sum over the samples
    dts::Ptr{Float64}        # out, (batch, nt) of torch, by the user's time
end

"Same layout as `IndependentAdjointReport` in boundary.py. `sample`: the first that failed, from 0; -1: none did."
struct IndependentAdjointReport
    sample::Int
    t_reached::Float64
    steps::Int
end

function independent_adjoint(a::IndependentAdjointArgs)
    kept = object(a.solution)::Trajectories
    return independent_adjoint(a, kept, object(a.alg), object(a.sensealg))::IndependentAdjointReport
end

const MAX_PARTS = 256

function independent_adjoint(a::IndependentAdjointArgs, kept::Trajectories{T}, alg, ::DiscreteAdjoint) where {T}
    rs = members(kept.pool, a.threads)
    np, threads = rs[1].np, min(a.threads, length(rs))
    tab = tableau(alg, T)
    # Parameter gradients are summed by parts that do not depend on who computes them: the same bits at every run.
    parts = min(a.batch, clamp(2^24 ÷ max(np, 1), threads, MAX_PARTS))
    size = cld(a.batch, parts)
    parts = cld(a.batch, size)
    sums = zeros(T, np, parts)
    sweeps = Vector{SampleSweep{T}}(undef, threads)
    crew(threads, a.batch, size) do worker, range
        isassigned(sweeps, worker) || (sweeps[worker] = SampleSweep(rs[worker], tab))
        s = sweeps[worker]
        fill!(s.dp, 0)
        for b in range
            sweep_sample!(s, a, kept, b)
        end
        copyto!(view(sums, :, cld(last(range), size)), s.dp)
    end
    deliver_sum!(a, sums)
    return IndependentAdjointReport(-1, NaN, 0)
end

function deliver_sum!(a::IndependentAdjointArgs, sums::Matrix{T}) where {T}
    np = size(sums, 1)
    np > 0 && copyto!(unsafe_wrap(Vector{T}, Ptr{T}(a.dp), np), sum(sums; dims = 2))
    return nothing
end

"""
The discrete adjoint of one sample at a time (see `discrete_adjoint.jl`): the same reverse sweep, over steps of which only
times and states are stored; stages are computed again.
"""
struct SampleSweep{T, W}
    r::RHS{T}
    tab::W
    λ::Vector{T}
    pending::Vector{T}
    dp::Vector{T}
    k::Matrix{T}
    K::Matrix{T}
    U::Matrix{T}
    w::Vector{T}
    Ju::Vector{T}
    Jp::Vector{T}
    f::Vector{T}
end

function SampleSweep(r::RHS{T}, tab::Tableau{T}) where {T}
    n, q = r.n, stages(tab)
    return SampleSweep{T, typeof(tab)}(
        r, tab, zeros(T, n), zeros(T, n), zeros(T, r.np), zeros(T, n, q), zeros(T, n, q), zeros(T, n, q),
        zeros(T, MAX_STAGES), zeros(T, n), zeros(T, r.np), zeros(T, n)
    )
end

"Columns of `x`, (n, ...), as addresses."
@inline column(x::Matrix{T}, i::Int) where {T} = pointer(x) + (i - 1) * size(x, 1) * sizeof(T)

@inline function add!(y::Ptr{T}, a::T, x::Ptr{T}, n::Int) where {T}
    @simd ivdep for i in 1:n
        unsafe_store!(y, muladd(a, unsafe_load(x, i), unsafe_load(y, i)), i)
    end
    return nothing
end

@inline function all_zero(x::Ptr{T}, n::Int) where {T}
    for i in 1:n
        iszero(unsafe_load(x, i)) || return false
    end
    return true
end

"u0, λ and parameter gradients of sample `b` from its cotangents; into Python's memory, dp of the worker."
function sweep_sample!(s::SampleSweep{T}, a::IndependentAdjointArgs, kept::Trajectories{T}, b::Int) where {T}
    r, ts, n = s.r, kept.ts, s.r.n
    store = kept.stores[kept.owner[b]]
    stride = a.batch * n * sizeof(T)
    cotangents = Ptr{T}(a.cotangents) + (b - 1) * n * sizeof(T)
    fill!(s.λ, 0)
    fill!(s.pending, 0)
    m = kept.nsaved[b]
    GC.@preserve s store begin
        λ = pointer(s.λ)
        for j in kept.last[b]:-1:(kept.first[b] + 1)
            t0, t1 = store.t[j - 1], store.t[j]
            while m > 1 && ts[m, b] >= t1
                add!(λ, one(T), cotangents + (m - 1) * stride, n)
                m -= 1
            end
            from = m + 1
            while from > 2 && ts[from - 1, b] > t0
                from -= 1
            end
            sweep_step!(s, store, ts, cotangents, stride, b, j, from, m)
            m = from - 1
        end
        settle!(s, pointer(store.u, (kept.first[b] - 1) * n + 1), ts[1, b])
        a.want_t == 1 && time_cotangents!(s, a, kept, cotangents, stride, b)
        add!(λ, one(T), cotangents, n)
        if any(i -> !all_zero(cotangents + (i - 1) * stride, n), (kept.nsaved[b] + 1):(a.nt))
            # A loss that asks for states beyond where the solve broke off, which are NaN.
            fill!(s.λ, T(NaN))
            fill!(s.dp, T(NaN))
        end
        unsafe_copyto!(Ptr{T}(a.du0) + (b - 1) * n * sizeof(T), λ, n)
    end
    return nothing
end

"λ += J(t, U)ᵀ v for du/dτ, dp += its parameters' half."
function pull!(s::SampleSweep{T}, v::Ptr{T}, U::Ptr{T}, t::Float64) where {T}
    r = s.r
    poll()
    r.vjp(pointer(s.Ju), r.np > 0 ? pointer(s.Jp) : Ptr{T}(0), v, U, r.sign * t)
    flip!(r, pointer(s.Ju), r.n)
    add!(pointer(s.λ), one(T), pointer(s.Ju), r.n)
    r.np > 0 && add!(pointer(s.dp), T(r.sign), pointer(s.Jp), r.np)
    return pointer(s.Ju)
end

"Settle the pending cotangent of f(t, u)."
function settle!(s::SampleSweep{T}, u::Ptr{T}, t::Float64) where {T}
    all_zero(pointer(s.pending), s.r.n) && return nothing
    pull!(s, pointer(s.pending), u, t)
    fill!(s.pending, 0)
    return nothing
end

function sweep_step!(
        s::SampleSweep{T}, store::StepStore{T}, ts, cotangents::Ptr{T}, stride::Int, b::Int, j::Int, from::Int, to::Int
    ) where {T}
    r, tab, n = s.r, s.tab, s.r.n
    t0, h = store.t[j - 1], store.t[j] - store.t[j - 1]
    u0, u1, hT = pointer(store.u, (j - 2) * n + 1), pointer(store.u, (j - 1) * n + 1), T(h)
    q = stages(tab)
    fill!(s.K, 0)
    for m in from:to
        weights!(s.w, tab, (ts[m, b] - t0) / h)
        for i in 1:q
            iszero(s.w[i]) || add!(column(s.K, i), hT * s.w[i], cotangents + (m - 1) * stride, n)
        end
    end
    if tab.last > 0
        add!(column(s.K, tab.last), one(T), pointer(s.pending), n)
        fill!(s.pending, 0)
    else
        settle!(s, u1, store.t[j])
    end
    for i in 1:q
        iszero(tab.b[i]) || add!(column(s.K, i), hT * tab.b[i], pointer(s.λ), n)
    end
    for m in from:to
        add!(pointer(s.λ), one(T), cotangents + (m - 1) * stride, n)
    end
    top = q
    while top > 1 && (top == tab.last || all_zero(column(s.K, top), n))
        top -= 1
    end
    for i in 1:top
        U = column(s.U, i)
        unsafe_copyto!(U, u0, n)
        for l in 1:(i - 1)
            iszero(tab.a[i, l]) || add!(U, hT * tab.a[i, l], column(s.k, l), n)
        end
        i == top && break
        poll()
        r.f(column(s.k, i), U, r.sign * (t0 + tab.c[i] * h))
        flip!(r, column(s.k, i), n)
    end
    for i in max(top, tab.last):-1:2
        v = column(s.K, i)
        ((i > top && i != tab.last) || all_zero(v, n)) && continue
        Ju = pull!(s, v, i == tab.last ? u1 : column(s.U, i), t0 + tab.c[i] * h)
        for l in 1:(i - 1)
            iszero(tab.a[i, l]) || add!(column(s.K, l), hT * tab.a[i, l], Ju, n)
        end
    end
    unsafe_copyto!(pointer(s.pending), column(s.K, 1), n)
    return nothing
end

"dL/dt_i = cotangent_i ⋅ f(t_i, y_i), dL/dt_0 = -λ(t_0) ⋅ f(t_0, y_0); λ without the cotangent of y(t_0)."
function time_cotangents!(s::SampleSweep{T}, a::IndependentAdjointArgs, kept::Trajectories{T}, cotangents, stride, b) where {T}
    return time_cotangents!(s.r, s.f, pointer(s.λ), a, kept, cotangents, stride, b)
end

function time_cotangents!(
        r::RHS{T}, du::Vector{T}, λ::Ptr{T}, a::IndependentAdjointArgs, kept::Trajectories{T}, cotangents::Ptr{T}, stride, b
    ) where {T}
    n = r.n
    for m in 1:kept.nsaved[b]
        v = m == 1 ? λ : cotangents + (m - 1) * stride
        if all_zero(v, n)
            unsafe_store!(a.dts, 0.0, (b - 1) * a.nt + m)
            continue
        end
        GC.@preserve du r.f(
            pointer(du), Ptr{T}(a.ys) + (m - 1) * stride + (b - 1) * n * sizeof(T), r.sign * kept.ts[m, b]
        )
        dot = sum(Float64(unsafe_load(v, i)) * Float64(du[i]) for i in 1:n)
        unsafe_store!(a.dts, m == 1 ? -dot : dot, (b - 1) * a.nt + m)
    end
    return nothing
end

# Continuous adjoints: one after the other of what a worker solved, since its solutions use its right-hand side; the
# workers at the same time.
function independent_adjoint(a::IndependentAdjointArgs, kept::Trajectories{T}, alg, sensealg) where {T}
    workers = length(kept.stores)
    r = kept.pool.made[1]
    sums = zeros(T, r.np, workers)
    failures = fill(IndependentAdjointReport(-1, NaN, 0), workers)
    single = AdjointArgs(
        a.solution, a.alg, a.sensealg, a.joint, C_NULL, a.nt, 0, a.nt, C_NULL, a.abstol, a.reltol, a.dt, a.adaptive,
        a.maxiters, a.factors, a.want_t, C_NULL, C_NULL, C_NULL, C_NULL, 0
    )
    messages = fill("", workers)
    crew(min(a.threads, workers), workers, 1) do _, range
        for w in range, b in eachindex(kept.owner)
            kept.owner[b] == w || continue
            watched = continuous_sample!(a, single, kept, alg, sensealg, view(sums, :, w), b)
            if !watched.success
                steps = watched.naccept + watched.nreject
                failures[w] = IndependentAdjointReport(b - 1, kept.pool.made[w].sign * watched.t, steps)
                messages[w] = string(watched.retcode)
                break
            end
        end
    end
    deliver_sum!(a, sums)
    w = something(findfirst(f -> f.sample >= 0, failures), 1)
    MESSAGE[] = messages[w]
    return failures[w]
end

function continuous_sample!(a::IndependentAdjointArgs, single::AdjointArgs, kept::Trajectories{T}, alg, sensealg, dp, b::Int) where {T}
    forward = kept.solutions[b]::Forward
    r, nt = forward.rhs::RHS{T}, a.nt
    n = r.n
    stride = a.batch * n * sizeof(T)
    first_cotangent = Ptr{T}(a.cotangents) + (b - 1) * n * sizeof(T)
    cotangents = zeros(T, n, nt)
    for m in 1:nt
        GC.@preserve cotangents unsafe_copyto!(column(cotangents, m), first_cotangent + (m - 1) * stride, n)
    end
    watched = Watched(alg, a.factors)
    reached = kept.nsaved[b]
    λ0 = zeros(T, n)
    if any(!iszero, view(cotangents, :, (reached + 1):nt))
        fill!(λ0, T(NaN))
        fill!(dp, T(NaN))
        watched.success = true
    elseif reached < 2 || all(iszero, view(cotangents, :, 2:reached))
        watched.success = true
    else
        r.joint, r.kept = a.joint == 1, false
        λ0, part = try
            continuous_adjoint(
                forward.sol, watched, sensealg, kept.ts[1:reached, b], cotangents[:, 1:reached], single
            )
        finally
            r.joint, r.kept = false, false
        end
        isempty(part) || (dp .+= part)
    end
    GC.@preserve λ0 begin
        a.want_t == 1 && time_cotangents!(r, zeros(T, n), pointer(λ0), a, kept, first_cotangent, stride, b)
        λ0 .+= view(cotangents, :, 1)
        unsafe_copyto!(Ptr{T}(a.du0) + (b - 1) * n * sizeof(T), pointer(λ0), n)
    end
    return watched
end
