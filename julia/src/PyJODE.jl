"""
PyJODE: the Julia half of pyjode.

Python hands over a right-hand side (callables into torch, or Julia code lowered from a torch graph), times and
pointers into torch memory; PyJODE solves with OrdinaryDiffEq, differentiates with SciMLSensitivity, and writes into
that memory. Python enters only through the C functions of `boundary.jl`.
"""
module PyJODE

using ADTypes: AutoFiniteDiff
using FunctionWrappers: FunctionWrapper
using LinearAlgebra: I, LU, ldiv!, lu!
using SciMLBase: SciMLBase, ODEFunction, ODEProblem, ReturnCode, solve
using SparseArrays: SparseArrays, SparseMatrixCSC, nonzeros
import OrdinaryDiffEqCore
import OrdinaryDiffEqTsit5

const SILENT = OrdinaryDiffEqCore.DEVerbosity(OrdinaryDiffEqCore.SciMLLogging.None())

include("python.jl")
include("rhs.jl")
include("native.jl")
include("python_rhs.jl")
include("handles.jl")
include("problem.jl")
include("options.jl")
include("forward.jl")
include("events.jl")
include("watched.jl")
include("tableau.jl")
include("discrete_adjoint.jl")
include("rosenbrock_adjoint.jl")
include("algorithms.jl")
include("erased_solution.jl")
include("adjoint.jl")
include("crew.jl")
include("independent.jl")
include("source.jl")
include("source_rhs.jl")
include("boundary.jl")
include("precompile.jl")

end
