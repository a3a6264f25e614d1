# Solvers and sensealgs by the expression that makes them, in a module of their own that has only what is loaded.

baremodule Sandbox
using Base
using ADTypes: AutoFiniteDiff
using ..PyJODE: DiscreteAdjoint, RosenbrockAdjoint
end

const LOADED = Set{String}()

"Load `package` (a sub-package of OrdinaryDiffEq, or SciMLSensitivity) if it is not, and make its names usable."
function load!(package::AbstractString)
    package in LOADED && return nothing
    Core.eval(Main, :(import $(Symbol(package))))
    mod = Base.invokelatest(getfield, Main, Symbol(package))
    Core.eval(Sandbox, :(const $(Symbol(package)) = $mod))
    Core.eval(Sandbox, :(using .$(Symbol(package))))
    push!(LOADED, package)
    return nothing
end

"""
    construct(packages, code)

The value of `code`, e.g. `"Rodas5P(autodiff=AutoFiniteDiff())"`, after loading `packages` (space separated).
Names that a package has but does not export are found as `Package.name`.
"""
function construct(packages::AbstractString, code::AbstractString)
    foreach(load!, split(packages))
    return Core.eval(Sandbox, Meta.parse(code))
end
