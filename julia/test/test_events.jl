@testset "solves to events" begin
    # A spring from u = (1, 0): cos t and -sin t. Conditions: u1, u2, and t - 2.
    f!(out, u, t) = (unsafe_store!(out, unsafe_load(u, 2), 1); unsafe_store!(out, -unsafe_load(u, 1), 2); nothing)
    nothing!(args...) = nothing
    jac!(out, u, t) = foreach((x, i) -> unsafe_store!(out, x, i), (0, -1, 1, 0), 1:4)
    tgrad!(out, u, t) = foreach(i -> unsafe_store!(out, 0, i), 1:2)
    function rhs(T, f, sign = 1.0)
        jac, tgrad = PyJODE.StateFunction{T}(jac!), PyJODE.StateFunction{T}(tgrad!)
        return PyJODE.RHS{T}(2, 0, sign, 1, PyJODE.StateFunction{T}(f), PyJODE.VJPFunction{T}(nothing!), jac, tgrad)
    end
    first!(out, u, t) = (unsafe_store!(out, unsafe_load(u, 1), 1); unsafe_store!(out, zero(eltype(u)), 2); nothing)
    both!(out, u, t) = (unsafe_store!(out, unsafe_load(u, 1), 1); unsafe_store!(out, unsafe_load(u, 2), 2); nothing)
    late!(out, u, t) = (unsafe_store!(out, eltype(u)(t - 2), 1); unsafe_store!(out, zero(eltype(u)), 2); nothing)

    function search(
            T, conditions, sizes; directions = zeros(Int, sum(sizes)), signs = ones(sum(sizes)),
            holds = fill(-1.0, sum(sizes)), u0 = T[1, 0], ts = [0.0, 10.0], sign = 1.0, alg = Tsit5(), with_jac = 0,
            points = 10
        )
        handles = [PyJODE.keep!(rhs(T, f!, sign)), PyJODE.keep!(alg), (PyJODE.keep!(rhs(T, c)) for c in conditions)...]
        abstol, reltol = [1.0e-10], [1.0e-10]
        fired = zeros(Int, sum(sizes))
        GC.@preserve handles abstol reltol fired sizes directions signs holds u0 ts begin
            report = PyJODE.forward_until(
                PyJODE.SolveArgs(
                    handles[1], handles[2], pointer(u0), pointer(ts), length(ts), 0, length(ts), C_NULL,
                    pointer(abstol), pointer(reltol), 0, NaN, 1, NaN, NaN, 10_000, PyJODE.OWN_CONTROLLER, with_jac, 0, 1, 0, C_NULL
                ),
                PyJODE.UntilArgs(
                    length(conditions), pointer(handles, 3), pointer(sizes), pointer(directions), pointer(signs),
                    pointer(holds), points, pointer(fired)
                )
            )
        end
        sol = PyJODE.object(report.solution).sol
        return report.t_reached, fired, sol
    end

    t, fired, sol = search(Float64, [first!], [1])
    @test t ≈ π / 2 atol = 1.0e-9
    @test fired == [-1]
    @test sol.t[end] == t && abs(sol.u[end][1]) < 1.0e-14
    @test allunique(sol.t)
    # The solution is its own between the last two steps too.
    @test sol((sol.t[end - 1] + t) / 2)[1] ≈ cos((sol.t[end - 1] + t) / 2) atol = 1.0e-8
    @test search(Float64, [first!], [1]; directions = [1])[1] ≈ 3π / 2 atol = 1.0e-8
    # u2 is zero at the start and falls: with the sign held it is found when it comes back.
    @test search(Float64, [both!], [2]; directions = [1, 0], signs = [1.0, -1.0], holds = [-1.0, 0.0])[1] ≈ π atol = 1.0e-8
    @test search(Float64, [first!, late!], [1, 1]; directions = [1, 0])[2] == [0, 1]
    @test search(Float64, [first!], [1]; ts = [0.0, 1.0])[1:2] == (1.0, [0])
    @test search(Float64, [first!], [1]; ts = [0.0, Inf])[1] ≈ π / 2 atol = 1.0e-9
    # Backwards: time runs from -10 to 0 in the user's sense, from 0 to 10 here.
    @test search(Float64, [late!], [1]; sign = -1.0, ts = [-5.0, 10.0])[1] ≈ 2 atol = 1.0e-12
    # A condition that is zero from t = 2 on hides neither the crossing before nor where that begins.
    ends!(out, u, t) = (unsafe_store!(out, t > 2 ? zero(eltype(u)) : unsafe_load(u, 1), 1); unsafe_store!(out, zero(eltype(u)), 2); nothing)
    far!(out, u, t) = (unsafe_store!(out, t > 2 ? zero(eltype(u)) : unsafe_load(u, 1) + 5, 1); unsafe_store!(out, zero(eltype(u)), 2); nothing)
    for points in (1, 10)
        @test search(Float64, [ends!], [1]; points)[1] ≈ π / 2 atol = 1.0e-9
        @test search(Float64, [far!], [1]; points)[1:2] == (nextfloat(2.0), [-1])
    end
    @test search(Float32, [first!], [1])[1] ≈ π / 2 atol = 1.0e-5
    @test search(Float64, [first!], [1]; alg = Rodas5P(autodiff = PyJODE.AutoFiniteDiff()), with_jac = 1)[1] ≈ π / 2 atol = 1.0e-8
end
