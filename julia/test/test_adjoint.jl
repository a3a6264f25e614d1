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
