"A pool of right-hand sides as native code makes them, `rate` times as stiff at each further sample's own rate."
function workload_pool(::Type{T}) where {T}
    return PyJODE.RHSPool{T}(() -> PyJODE.workload_rhs(T), PyJODE.RHS{T}[])
end

"Solve and differentiate a batch, as Python would; (ys, counts, du0, dp, dts)."
function solve_batch(pool, alg, u0::Matrix{T}, ts::Matrix{Float64}; threads = 1, sensealg = PyJODE.DiscreteAdjoint(), reuse = 1, maxiters = 1000) where {T}
    n, batch = size(u0)
    nt = size(ts, 1)
    ys, t_reached, counts = fill(T(NaN), n, batch, nt), zeros(batch), zeros(Int, PyJODE.COUNTS, batch)
    abstol, reltol = [1.0e-9], [1.0e-8]
    du0, dp, dts, cotangents = zeros(T, n, batch), zeros(T, 1), zeros(nt, batch), ones(T, n, batch, nt)
    handles = PyJODE.keep!.((pool, alg, sensealg))
    GC.@preserve u0 ts ys t_reached counts abstol reltol du0 dp dts cotangents begin
        report = PyJODE.independent(
            PyJODE.IndependentArgs(
                handles[1], handles[2], pointer(u0), pointer(ts), batch, nt, pointer(ys), pointer(abstol), pointer(reltol), 0,
                NaN, 1, NaN, NaN, maxiters, PyJODE.OWN_CONTROLLER, 0, 0,
                sensealg isa PyJODE.DiscreteAdjoint ? PyJODE.KEEP_STEPS : PyJODE.KEEP_SOLUTIONS, reuse, threads,
                pointer(t_reached), pointer(counts)
            )
        )
        PyJODE.independent_adjoint(
            PyJODE.IndependentAdjointArgs(
                report.solution, handles[2], handles[3], 0, batch, nt, pointer(ys), pointer(cotangents), 1.0e-9, 1.0e-8, NaN,
                1, 1000, PyJODE.OWN_CONTROLLER, 1, threads, pointer(du0), pointer(dp), pointer(dts)
            )
        )
        PyJODE.release!(report.solution)
    end
    foreach(PyJODE.release!, handles)
    return (; ys, t_reached, counts, du0, dp, dts)
end

@testset "independent trajectories" begin
    u0, ts = randn(2, 40), repeat([0.0, 0.4, 1.0], 1, 40)
    A = [-1.0 -2.0; 2.0 -1.0]
    exact(t) = exp(t * A)
    one = solve_batch(workload_pool(Float64), Tsit5(), u0, ts)
    for m in 1:3
        @test one.ys[:, :, m] ≈ exact(ts[m, 1]) * u0 rtol = 1.0e-7
    end
    @test one.du0 ≈ repeat(sum(exact(t)' * ones(2) for t in ts[:, 1]), 1, 40) rtol = 1.0e-7
    # p multiplies u, once: dy/dp = t y.
    @test one.dp[1] ≈ sum(ts[m, 1] * sum(exact(ts[m, 1]) * u0) for m in 1:3) rtol = 1.0e-6
    @test all(==(1.0), one.t_reached)

    # The same bits on more threads, and with fresh integrators.
    for other in (
            solve_batch(workload_pool(Float64), Tsit5(), u0, ts; threads = 4),
            solve_batch(workload_pool(Float64), Tsit5(), u0, ts; reuse = 0),
        )
        @test other.ys == one.ys && other.counts == one.counts
        @test other.du0 == one.du0 && other.dp == one.dp && other.dts == one.dts
    end
    continuous = solve_batch(workload_pool(Float64), Tsit5(), u0, ts; sensealg = GaussAdjoint(autojacvec = ZygoteVJP()))
    @test continuous.ys ≈ one.ys rtol = 1.0e-7
    @test continuous.du0 ≈ one.du0 rtol = 1.0e-6
    @test continuous.dp ≈ one.dp rtol = 1.0e-6
    @test continuous.dts ≈ one.dts rtol = 1.0e-6

    # Samples with times of their own, of which one needs too many steps.
    own = ts .* (1:40)'
    own[:, 7] .*= 1.0e4
    failed = solve_batch(workload_pool(Float64), Tsit5(), u0, own; maxiters = 300)
    codes = PyJODE.ReturnCode.T.(failed.counts[1, :])
    @test codes[7] == PyJODE.ReturnCode.MaxIters
    @test all(==(PyJODE.ReturnCode.Success), codes[[1:6; 8:40]])
    @test all(isnan, failed.du0[:, 7]) && all(isfinite, failed.du0[:, [1:6; 8:40]])
    @test failed.ys[:, 9, 3] ≈ exact(own[3, 9]) * u0[:, 9] atol = 1.0e-7
end

@testset "crew" begin
    seen = zeros(Int, 1000)
    workers = zeros(Int, 1000)
    PyJODE.crew(8, 1000, 7) do worker, range
        seen[range] .+= 1
        workers[range] .= worker
    end
    @test all(==(1), seen) && all(in(1:Threads.nthreads()), workers)
    @test_throws "in the middle" PyJODE.crew((_, range) -> 500 in range && error("in the middle"), 8, 1000, 7)
    @test PyJODE.POLLER[] == 0
end
