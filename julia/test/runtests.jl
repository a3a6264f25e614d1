# Run as a plain script in the environment (julia --project=ENV julia/test/runtests.jl): Pkg.test would precompile a
# second family of images.

push!(LOAD_PATH, dirname(@__DIR__))

using Test
using LinearAlgebra
using PyJODE
using OrdinaryDiffEqTsit5, OrdinaryDiffEqLowOrderRK, OrdinaryDiffEqVerner, OrdinaryDiffEqRosenbrock
using SciMLSensitivity: GaussAdjoint, ZygoteVJP

@testset "PyJODE" begin
    include("test_tableau.jl")
    include("test_discrete_adjoint.jl")
    include("test_events.jl")
    include("test_rhs.jl")
    include("test_algorithms.jl")
    include("test_adjoint.jl")
    include("test_native.jl")
    include("test_independent.jl")
    include("test_source.jl")
end
