# Solves that go into the package image, so that a process's first solve compiles nothing. Everything but the numbers
# is the same as in a solve that Python asks for.

using PrecompileTools: @compile_workload

"A linear right-hand side without Python: du = (A + p₁ I) u, A of four entries."
function workload_rhs(::Type{T}; blocks = 1) where {T}
    n = 2 * blocks
    each(g) = (out, u, t) -> (for b in 0:(blocks - 1); g(out + 2b * sizeof(T), u + 2b * sizeof(T)); end; nothing)
    f = each() do out, u
        u1, u2 = unsafe_load(u, 1), unsafe_load(u, 2)
        unsafe_store!(out, -u1 - 2u2, 1)
        unsafe_store!(out, 2u1 - u2, 2)
    end
    function vjp(Ju, Jp, v, u, t)
        for b in 0:(blocks - 1)
            v1, v2 = unsafe_load(v, 2b + 1), unsafe_load(v, 2b + 2)
            Ju == C_NULL || (unsafe_store!(Ju, -v1 + 2v2, 2b + 1); unsafe_store!(Ju, -2v1 - v2, 2b + 2))
        end
        Jp == C_NULL || unsafe_store!(Jp, sum(unsafe_load(v, i) * unsafe_load(u, i) for i in 1:n))
        return nothing
    end
    function jac(out, u, t)
        for b in 0:(blocks - 1), (i, x) in enumerate((-1, 2, -2, -1))
            unsafe_store!(out, T(x), 4b + i)
        end
        return nothing
    end
    zero!(out, u, t) = (for i in 1:n; unsafe_store!(out, zero(T), i); end; nothing)
    return RHS{T}(n, 1, 1.0, blocks, StateFunction{T}(f), VJPFunction{T}(vjp), StateFunction{T}(jac), StateFunction{T}(zero!))
end

"Of `workload_rhs`: ∂/∂(u, p) vᵀ (A + p₁ I) k."
function workload_second(::Type{T}, n) where {T}
    function product(Su, Sp, v, k, κ, u, t)
        for i in 1:n
            unsafe_store!(Su, zero(T), i)
        end
        unsafe_store!(Sp, sum(unsafe_load(v, i) * unsafe_load(k, i) for i in 1:n))
        return nothing
    end
    return SecondOrder{T}(SecondFunction{T}(product))
end

# The discrete adjoint three times: integrators are used again once its tableau is known.
"Solve, and with `sensealg` differentiate, as Python would; returns λ(t0)."
function workload(::Type{T}, alg, sensealg = nothing; adaptive = true, with_jac = false, blocks = 1, adjoint_alg = alg) where {T}
    r = workload_rhs(T; blocks)
    ts, u0, ys = [0.0, 0.1, 0.2], ones(T, r.n), zeros(T, r.n, 3)
    abstol, reltol = [1.0e-6], [1.0e-3]
    du0, dp, dts, cotangents = zeros(T, r.n), zeros(T, 1), zeros(3), ones(T, r.n, 3)
    factors = with_jac ? OWN_CONTROLLER : INTEGRAL_CONTROLLER
    handles = [keep!(r), keep!(alg), keep!(adjoint_alg), keep!(sensealg), keep!(workload_second(T, r.n))]
    GC.@preserve ts u0 ys abstol reltol du0 dp dts cotangents begin
        for dense in (sensealg isa DiscreteAdjoint ? (0, 1, 1, 1) : (0, 1))
            args = SolveArgs(
                handles[1], handles[2], pointer(u0), pointer(ts), 3, 0, 3, pointer(ys), pointer(abstol), pointer(reltol),
                0, NaN, adaptive, NaN, NaN, 100, factors, with_jac, 0, dense, sensealg isa DiscreteAdjoint, C_NULL
            )
            report = forward(args)
            dense == 0 && continue
            push!(handles, report.solution)
            dense_output!(object(report.solution), Ptr{Cvoid}(pointer(ys)), ts, 0)
            sensealg === nothing && continue
            adjoint(
                AdjointArgs(
                    report.solution, handles[3], handles[4], 0, pointer(ts), 3, 0, 3, pointer(cotangents), 1.0e-6,
                    1.0e-3, NaN, adaptive, 100, factors, 1, pointer(du0), pointer(dp), pointer(dts), C_NULL,
                    sensealg isa RosenbrockAdjoint ? handles[5] : 0
                )
            )
        end
    end
    foreach(release!, handles)
    return du0
end

"Solve a batch, and differentiate it by the discrete adjoint, as Python would; returns λ(t0) of each sample."
function workload_independent(::Type{T}, alg) where {T}
    n, batch, nt = 2, 3, 3
    u0, ts, ys = ones(T, n, batch), repeat([0.0, 0.1, 0.2], 1, batch), zeros(T, n, batch, nt)
    abstol, reltol, t_reached, counts = [1.0e-6], [1.0e-3], zeros(batch), zeros(Int, COUNTS, batch)
    du0, dp, dts = zeros(T, n, batch), zeros(T, 1), zeros(nt, batch)
    handles = [keep!(RHSPool{T}(() -> workload_rhs(T), RHS{T}[])), keep!(alg), keep!(DiscreteAdjoint())]
    GC.@preserve u0 ts ys abstol reltol t_reached counts du0 dp dts for keep in (KEEP_NOTHING, KEEP_STEPS)
        report = independent(
            IndependentArgs(
                handles[1], handles[2], pointer(u0), pointer(ts), batch, nt, pointer(ys), pointer(abstol),
                pointer(reltol), 0, NaN, 1, NaN, NaN, 100, INTEGRAL_CONTROLLER, 0, 0, keep, 1, 1, pointer(t_reached), pointer(counts)
            )
        )
        keep == KEEP_NOTHING && continue
        independent_adjoint(
            IndependentAdjointArgs(
                report.solution, handles[2], handles[3], 0, batch, nt, pointer(ys), pointer(ys), NaN, NaN, NaN, 1, 100,
                INTEGRAL_CONTROLLER, 1, 1, pointer(du0), pointer(dp), pointer(dts)
            )
        )
        push!(handles, report.solution)
    end
    foreach(release!, handles)
    return du0
end

"Solve to an event, as Python would; returns its time."
function workload_events(::Type{T}, alg) where {T}
    r = workload_rhs(T)
    value!(out, u, t) = (unsafe_store!(out, unsafe_load(u) - T(0.9)); unsafe_store!(out, zero(T), 2); nothing)
    condition = RHS{T}(2, 0, 1.0, 1, StateFunction{T}(value!), r.vjp, r.jac, r.tgrad)
    handles = [keep!(r), keep!(alg), keep!(condition)]
    ts, u0, abstol, reltol = [0.0, Inf], ones(T, r.n), [1.0e-6], [1.0e-3]
    sizes, directions, signs, holds, fired = [1], [0], [1.0], [-1.0], [0]
    GC.@preserve ts u0 abstol reltol handles sizes directions signs holds fired begin
        report = forward_until(
            SolveArgs(
                handles[1], handles[2], pointer(u0), pointer(ts), 2, 0, 2, C_NULL, pointer(abstol), pointer(reltol),
                0, NaN, true, NaN, NaN, 100, INTEGRAL_CONTROLLER, false, 0, 1, false, C_NULL
            ),
            UntilArgs(
                1, pointer(handles, 3), pointer(sizes), pointer(directions), pointer(signs), pointer(holds), 10,
                pointer(fired)
            )
        )
    end
    foreach(release!, (handles..., report.solution))
    return report.t_reached
end

@compile_workload for T in (Float64, Float32)
    workload(T, OrdinaryDiffEqTsit5.Tsit5(), DiscreteAdjoint())
    workload_independent(T, OrdinaryDiffEqTsit5.Tsit5())
    workload_events(T, OrdinaryDiffEqTsit5.Tsit5())
end

# A C function's address costs its compilation.
for (f, _, taken) in C_FUNCTIONS
    precompile(getfield(@__MODULE__, f), taken)
end
precompile(entry_points, ())
