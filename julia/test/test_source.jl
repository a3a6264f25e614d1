using ForwardDiff

"A right-hand side of a source with parameters a (a number) and w (2 x 3 of torch, trained)."
function from_source(f; vjp = "", jac = "", dims = [2], rows = 1, T = Float64)
    values, version = T[0.5, 1, 2, 3, 4, 5, 6], [1]
    leaves = [0, -1, 2, 2, 3, 0]
    d = copy(dims)
    GC.@preserve values version leaves d begin
        a = PyJODE.SourceArgs(
            Int(T == Float64), rows * prod(d), 6, 1, rows, rows, length(d), pointer(d), 2, pointer(leaves),
            pointer(values), pointer(version)
        )
        structure = "(x -> (a = x[1], w = x[2]), p -> (p.a, p.w))"
        spec = PyJODE.SourceSpec(a, f, vjp, jac, structure)
        r = Base.invokelatest(PyJODE.source_rhs, T, a, spec, true)
    end
    return r, values, version
end

call(r::PyJODE.RHS{T}, what, out, out_p, v, u, t) where {T} = GC.@preserve out out_p v u Base.invokelatest(
    PyJODE.call_rhs, r, what, pointer(out), pointer(out_p), pointer(v), pointer(u), t
)

@testset "Julia source" begin
    r, values, version = from_source("(u, p, t) -> [p.a * t * sum(p.w[1, :]) * u[1]^2, p.w[2, 3] * u[1] * u[2]]")
    u, v, out, dp, none = [2.0, 3.0], [1.0, 10.0], zeros(2), zeros(6), Float64[]
    GC.@preserve values version begin
        call(r, PyJODE.CALL_F, out, dp, v, u, 0.5)
        @test out == [0.5 * 0.5 * 6 * 4, 6 * 6]
        call(r, PyJODE.CALL_VJP, out, dp, v, u, 0.5)
        # w row by row, as torch has it.
        @test out == [0.25 * 6 * 4 + 10 * 6 * 3, 10 * 6 * 2]
        @test dp == [0.25 * 4, 0.25 * 4, 0.25 * 4, 0, 0, 60]
        J = zeros(2, 2)
        call(r, PyJODE.CALL_JACOBIAN, J, dp, v, u, 0.5)
        @test J == [6 0; 18 12]
        call(r, PyJODE.CALL_TGRAD, out, dp, v, u, 0.5)
        @test out == [0.5 * 6 * 4, 0]
        # New values count from the next version on.
        values[1] = 1.0
        version[1] += 1
        call(r, PyJODE.CALL_F, out, dp, v, u, 0.5)
        @test out[1] == 12.0
    end

    batched, kept... = from_source("du .= u .* p.a"; rows = 3)
    u, v, out = collect(1.0:6), ones(6), zeros(6)
    GC.@preserve kept begin
        call(batched, PyJODE.CALL_F, out, dp, v, u, 0.0)
        @test out == u ./ 2
    end

    @test PyJODE.row_major([2, 3]) == [1, 4, 2, 5, 3, 6]
    error_of(f) = try
        f()
    catch e
        PyJODE.source_error(e, catch_backtrace())
    end
    @test error_of(() -> PyJODE.user_function("f(u, p, t) = begin\n 1\n )\nend")).line == 3
    @test error_of(() -> PyJODE.user_function("x = 1\nundefined_name\n(u, p, t) -> u")).line == 2
    @test error_of(() -> PyJODE.user_function("3")).line == 0
    late, kept... = from_source("function (u, p, t)\n error(\"late\")\nend")
    e = error_of(() -> call(late, PyJODE.CALL_F, out, dp, v, u, 0.0))
    @test e.line == 2 && occursin("late", e.message) && occursin("2 |  error", e.message)
    @test PyJODE.user_function("const A = [1.0]\n(u, p, t) -> u").has_state
    @test !PyJODE.user_function("const A = 1.0\nh(x) = x\n(u, p, t) -> h.(u)").has_state
end
