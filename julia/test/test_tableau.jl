@testset "tableau" begin
    # Runge and Kutta's classical method.
    tab = PyJODE.tableau(RK4(), Float64)
    @test tab.a[1:4, 1:4] ≈ [0 0 0 0; 1 / 2 0 0 0; 0 1 / 2 0 0; 0 0 1 0]
    @test tab.b[1:4] ≈ [1 / 6, 1 / 3, 1 / 3, 1 / 6]
    @test tab.c[1:4] ≈ [0, 1 / 2, 1 / 2, 1]

    # Dormand and Prince's 5(4) pair (Hairer, Nørsett, Wanner, table II.5.2).
    tab = PyJODE.tableau(DP5(), Float64)
    @test tab.b[1:6] ≈ [35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84]
    @test tab.last == 7 && !tab.stored

    @test PyJODE.tableau(Tsit5(), Float64).stored
    @test PyJODE.tableau(Tsit5(), Float32) isa PyJODE.Tableau{Float32}

    # Dense output of order q: Σ w_i(θ) c_i^(k-1) = θ^k / k up to k = q (HNW II.6).
    for (alg, q) in ((DP5(), 4), (Tsit5(), 4), (RK4(), 3), (Vern6(lazy = false), 6), (Vern7(lazy = false), 7))
        tab = PyJODE.tableau(alg, Float64)
        w = zeros(PyJODE.MAX_STAGES)
        for θ in (0.1, 0.5, 0.9), k in 1:q
            PyJODE.weights!(w, tab, θ)
            @test sum(w[i] * tab.c[i]^(k - 1) for i in 1:PyJODE.stages(tab)) ≈ θ^k / k atol = 1.0e-10
        end
    end

    @test_throws PyJODE.NotRungeKutta PyJODE.tableau(Rodas5P(), Float64)
end
