"""
    Watched(alg)

`alg` that remembers how its last solve ended. `adjoint_sensitivities` returns numbers even where its solve stopped
half-way; with this the caller can look.
"""
mutable struct Watched{A} <: SciMLBase.AbstractODEAlgorithm
    const alg::A
    success::Bool
    retcode::ReturnCode.T
    t::Float64
    nf::Int
    naccept::Int
    nreject::Int
end
Watched(alg) = Watched(alg, false, ReturnCode.Default, NaN, 0, 0, 0)

SciMLBase.isadaptive(w::Watched) = SciMLBase.isadaptive(w.alg)
SciMLBase.isautodifferentiable(w::Watched) = SciMLBase.isautodifferentiable(w.alg)
SciMLBase.allows_arbitrary_number_types(w::Watched) = SciMLBase.allows_arbitrary_number_types(w.alg)
SciMLBase.allowscomplex(w::Watched) = SciMLBase.allowscomplex(w.alg)
SciMLBase.forwarddiffs_model(w::Watched) = SciMLBase.forwarddiffs_model(w.alg)
SciMLBase.forwarddiffs_model_time(w::Watched) = SciMLBase.forwarddiffs_model_time(w.alg)

function SciMLBase.__solve(prob::SciMLBase.AbstractODEProblem, w::Watched, args...; kwargs...)
    integrator = SciMLBase.__init(prob, w.alg, args...; kwargs...)
    sol = SciMLBase.solve!(integrator)
    w.success = SciMLBase.successful_retcode(sol)
    w.retcode = sol.retcode
    w.t = integrator.t
    w.nf += sol.stats.nf
    w.naccept += sol.stats.naccept
    w.nreject += sol.stats.nreject
    return sol
end
