@testset "right-hand side" begin
    r = PyJODE.workload_rhs(Float64)
    u, du = [1.0, 2.0], zeros(2)
    r(du, u, r.p, 0.0)
    @test du == [-5.0, 0.0]
    # Views, which Interpolating- and BacksolveAdjoint pass.
    big, out = [9.0, 1.0, 2.0, 9.0], zeros(4)
    r(view(out, 2:3), view(big, 2:3), r.p, 0.0)
    @test out == [0.0, -5.0, 0.0, 0.0]
    Jv, Jpv = zeros(2), zeros(1)
    PyJODE.VJP(r)(Jv, [1.0, 1.0], u, r.p, 0.0)
    @test Jv == [1.0, -3.0]
    PyJODE.ParamVJP(r)(Jpv, [1.0, 1.0], u, r.p, 0.0)
    @test Jpv == [3.0]

    # Joint calls: the kept half is used at the same point only.
    r.joint = true
    PyJODE.VJP(r)(Jv, [1.0, 1.0], u, r.p, 0.0)
    fill!(r.kept_p, 42.0)
    PyJODE.ParamVJP(r)(Jpv, [1.0, 1.0], u, r.p, 0.0)
    @test Jpv == [42.0]
    PyJODE.ParamVJP(r)(Jpv, [1.0, 1.0], u .+ 1, r.p, 0.0)
    @test Jpv == [5.0]

    blocks = PyJODE.workload_rhs(Float64; blocks = 3)
    J = PyJODE.jacobian_prototype(blocks)
    PyJODE.Jacobian(blocks)(J, ones(6), blocks.p, 0.0)
    @test Matrix(J) == kron(I(3), [-1 -2; 2 -1])
end
