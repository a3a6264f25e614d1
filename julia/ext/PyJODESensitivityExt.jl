module PyJODESensitivityExt

using PyJODE: PyJODE, AdjointArgs, Cotangents, Watched, erased
using OrdinaryDiffEqTsit5: Tsit5
using PrecompileTools: @compile_workload
using SciMLSensitivity: BacksolveAdjoint, GaussAdjoint, ZygoteVJP, adjoint_sensitivities, ischeckpointing

reads_dense_output_alone(sol, sensealg) = !(sensealg isa BacksolveAdjoint) && !ischeckpointing(sensealg, sol)

function PyJODE.continuous_adjoint(sol, alg::Watched, sensealg, ts, cotangents, a::AdjointArgs)
    reads_dense_output_alone(sol, sensealg) || return solved_adjoint(sol, alg, sensealg, ts, cotangents, a)
    return solved_adjoint(erased(sol, eltype(cotangents)), alg, sensealg, ts, cotangents, a)
end

function solved_adjoint(sol, alg::Watched, sensealg, ts, cotangents, a::AdjointArgs)
    span = ts[end] - ts[1]
    adaptive = a.adaptive == 1
    dt = PyJODE.first_step(a.dt, !adaptive, span)
    λ0, dp = adjoint_sensitivities(
        sol, alg; t = ts[2:end], dgdu_discrete = Cotangents(cotangents), sensealg,
        abstol = a.abstol, reltol = a.reltol, dt, adaptive, maxiters = a.maxiters
    )
    return collect(vec(λ0)), isempty(dp) ? similar(λ0, 0) : collect(vec(dp))
end

@compile_workload for T in (Float64, Float32)
    PyJODE.workload(T, Tsit5(), GaussAdjoint(autojacvec = ZygoteVJP()))
end

end
