@testset "continuous adjoint of the workload's linear system" begin
    # du = A u with cotangents of ones at t = 0, 0.1, 0.2: λ(0) = Σ exp(Aᵀ t) 1.
    A = [-1.0 -2.0; 2.0 -1.0]
    truth = sum(exp(A' * t) * ones(2) for t in (0.0, 0.1, 0.2))
    gauss = GaussAdjoint(autojacvec = ZygoteVJP())
    @test PyJODE.workload(Float64, Tsit5(), gauss) ≈ truth rtol = 1.0e-4
    @test PyJODE.workload(Float64, Tsit5(), PyJODE.DiscreteAdjoint()) ≈ truth rtol = 1.0e-3
    stiff = Rodas5P(autodiff = PyJODE.AutoFiniteDiff())
    for blocks in (1, 2)
        λ = PyJODE.workload(Float64, stiff, gauss; with_jac = true, blocks)
        @test λ ≈ repeat(truth, blocks) rtol = 1.0e-3
    end
end

@testset "a solution of a type that does not tell the method" begin
    prob = PyJODE.explicit_problem(PyJODE.workload_rhs(Float64), [1.0, 2.0], (0.0, 1.0))
    solved = [PyJODE.solve(prob, alg; dense = true) for alg in (Tsit5(), Vern7(), DP5())]
    erased = [PyJODE.erased(sol, Float64) for sol in solved]
    @test allequal(typeof.(erased))
    @test !allequal(typeof.(solved))
    for (sol, e) in zip(solved, erased), t in (0.0, 0.37, 1.0), continuity in (:left, :right)
        truth, into, view_into = zeros(2), zeros(2), view(zeros(4), 2:3)
        sol(truth, t; continuity)
        e(into, t; continuity)
        e(view_into, t; continuity)
        @test e(t; continuity) == into == view_into == truth
    end
end
