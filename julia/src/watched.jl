"""
    Watched(alg)

`alg` that remembers how its last solve ended. `adjoint_sensitivities` returns numbers even where its solve stopped
half-way; with this the caller can look. Its adjoint solves follow `factors` and `options`.
"""
mutable struct Watched{A} <: SciMLBase.AbstractODEAlgorithm
    const alg::A
    const factors::Factors
    const options::Union{Nothing, StepOptions}
    const forward::Any
    success::Bool
    retcode::ReturnCode.T
    t::Float64
    nf::Int
    naccept::Int
    nreject::Int
end
Watched(alg, factors) = Watched(alg, factors, nothing, nothing)
Watched(alg, factors, options, forward) = Watched(alg, factors, options, forward, false, ReturnCode.Default, NaN, 0, 0, 0)

SciMLBase.isadaptive(w::Watched) = SciMLBase.isadaptive(w.alg)
SciMLBase.isautodifferentiable(w::Watched) = SciMLBase.isautodifferentiable(w.alg)
SciMLBase.allows_arbitrary_number_types(w::Watched) = SciMLBase.allows_arbitrary_number_types(w.alg)
SciMLBase.allowscomplex(w::Watched) = SciMLBase.allowscomplex(w.alg)
SciMLBase.forwarddiffs_model(w::Watched) = SciMLBase.forwarddiffs_model(w.alg)
SciMLBase.forwarddiffs_model_time(w::Watched) = SciMLBase.forwarddiffs_model_time(w.alg)

function SciMLBase.__solve(prob::SciMLBase.AbstractODEProblem, w::Watched, args...; kwargs...)
    # A checkpointing sensealg also solves the forward problem again, which is not what the options are for.
    o, factors = prob.tspan[2] < prob.tspan[1] ? (w.options, w.factors) : (nothing, OWN_CONTROLLER)
    integrator = SciMLBase.__init(prob, w.alg, args...; kwargs..., adjoint_keywords(o, kwargs, prob)...)
    cut_first_step!(integrator)
    tune!(integrator, factors)
    sol = has_hooks(o) ? observed_solve!(integrator, adjoint_hooks(o, w.forward)) : SciMLBase.solve!(integrator)
    w.success = SciMLBase.successful_retcode(sol)
    w.retcode = sol.retcode
    w.t = integrator.t
    w.nf += sol.stats.nf
    w.naccept += sol.stats.naccept
    w.nreject += sol.stats.nreject
    return sol
end

"The same keywords with and without options, so that neither compiles for itself."
function adjoint_keywords(o, kwargs, prob)
    span = abs(prob.tspan[2] - prob.tspan[1])
    tstops = collect(Float64, something(get(kwargs, :tstops, nothing), Float64[]))
    o === nothing && return (; tstops, internalnorm = ROOT_MEAN_SQUARE, dtmin = 0.0, dtmax = span, force_dtmin = false)
    return (;
        tstops = with_tstops(tstops, o), internalnorm = StateNorm(o), dtmin = given(o.dtmin, 0.0),
        dtmax = given(o.dtmax, span), force_dtmin = o.force_dtmin == 1,
    )
end

function adjoint_hooks(o::StepOptions, s)
    T = eltype(s.rhs.p)
    return Hooks(o, s.rhs.sign, (y, t) -> s.sol(y, t), zeros(T, s.rhs.n))
end
