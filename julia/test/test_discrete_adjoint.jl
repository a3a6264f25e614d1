@testset "discrete adjoint against finite differences of the same steps" begin
    A = [-0.3 -1.1; 0.9 -0.2]
    function make(k)
        f(out, u, t) = (x = unsafe_wrap(Vector{Float64}, u, 2); y = unsafe_wrap(Vector{Float64}, out, 2); y .= k[1] .* sin.(A * x) .+ cos(t); nothing)
        function vjp(Ju, Jp, v, u, t)
            x, w = unsafe_wrap(Vector{Float64}, u, 2), unsafe_wrap(Vector{Float64}, v, 2)
            Ju == C_NULL || (unsafe_wrap(Vector{Float64}, Ju, 2) .= k[1] .* (A' * (w .* cos.(A * x))))
            Jp == C_NULL || unsafe_store!(Jp, dot(w, sin.(A * x)))
            return nothing
        end
        nothing!(out, u, t) = nothing
        return PyJODE.RHS{Float64}(
            2, 1, 1.0, 1, PyJODE.StateFunction{Float64}(f), PyJODE.VJPFunction{Float64}(vjp),
            PyJODE.StateFunction{Float64}(nothing!), PyJODE.StateFunction{Float64}(nothing!)
        )
    end
    ts = [0.0, 0.17, 0.5, 0.83, 1.0]
    cotangents = [cos(i + 2j) for i in 1:2, j in 1:5]
    for alg in (Euler(), Midpoint(), Heun(), RK4(), BS3(), DP5(), Tsit5(), Vern6(lazy = false), Vern7(lazy = false), Vern9(lazy = false))
        steps(u0, k) = PyJODE.solve(
            PyJODE.explicit_problem(make([k]), u0, (0.0, 1.0)), alg; dt = 0.25, adaptive = false, dense = true
        )
        value(u0, k) = (s = steps(u0, k); sum(cotangents[:, j] ⋅ s(ts[j]) for j in 2:5))
        u0, k = [0.4, -0.7], 1.3
        tab = PyJODE.tableau(alg, Float64)
        sweep = PyJODE.Sweep(make([k]), tab)
        λ, dp = PyJODE.discrete_adjoint!(sweep, steps(u0, k), tab, ts, cotangents)
        # Sixth order, so that the step can be large: Vern6's big coefficients leave rounding of 1e-12 in the solution.
        h = 1.0e-2
        d(g) = (45(g(h) - g(-h)) - 9(g(2h) - g(-2h)) + g(3h) - g(-3h)) / 60h
        @test λ[1] ≈ d(e -> value(u0 + [e, 0], k)) rtol = 1.0e-9
        @test λ[2] ≈ d(e -> value(u0 + [0, e], k)) rtol = 1.0e-9
        @test dp[1] ≈ d(e -> value(u0, k + e)) rtol = 1.0e-9
    end
end
