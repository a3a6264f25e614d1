@testset "algorithms by expression" begin
    @test PyJODE.construct("OrdinaryDiffEqTsit5", "Tsit5()") isa Tsit5
    @test PyJODE.construct("OrdinaryDiffEqRosenbrock", "Rodas5P(autodiff=AutoFiniteDiff())") isa Rodas5P
    @test PyJODE.construct("", "DiscreteAdjoint()") === PyJODE.DiscreteAdjoint()
    @test_throws UndefVarError PyJODE.construct("OrdinaryDiffEqTsit5", "NoSuchMethod()")
end
