# What torchdiffeq's further options become: times to stop at, the step size controller's limits, another norm, straight
# lines between steps, callbacks into Python at each step.

"""
Same layout as `StepOptions` in pyjode/engines/julia/step_options.py: eight bytes a field. NaN, 0 and null pointers stand
for "not given".
"""
struct StepOptions
    tstops::Ptr{Float64}     # (ntstops,), times that end a step
    ntstops::Int
    dtmin::Float64           # of an adjoint solve; a forward one has its own in `SolveArgs`
    dtmax::Float64
    force_dtmin::Int         # 1: a step of dtmin is accepted whatever its error
    lowest::Float64          # f is asked for no time, the user's, outside [lowest, highest]
    highest::Float64
    linear::Int              # 1: straight lines between steps
    n::Int                   # length of the states the norm is for
    ranges::Ptr{Int}         # (3, nranges): first, last and count of entries of each part of the norm
    nranges::Int
    norm::Ptr{Cvoid}         # Python functions of no arguments
    on_step::Ptr{Cvoid}
    on_accept::Ptr{Cvoid}
    on_reject::Ptr{Cvoid}
    slots::Ptr{UInt}         # what they are called about: see `SLOT_STATE` and the others
end

"The mailbox's slots, 8 bytes each: addresses of the state and of y in an adjoint solve; t; dt; what the norm is."
const SLOT_STATE, SLOT_Y, SLOT_T, SLOT_DT, SLOT_NORM = 1, 2, 3, 4, 5

"""
The factors of torchdiffeq's step size controller (its safety, dfactor, ifactor), three doubles of the structures that
Python fills. `gamma` NaN: the method keeps its own controller.
"""
struct Factors
    gamma::Float64
    qmin::Float64
    qmax::Float64
end

const OWN_CONTROLLER = Factors(NaN, NaN, NaN)
const INTEGRAL_CONTROLLER = Factors(0.9, 0.2, 10.0)

load_options(p::Ptr{StepOptions}) = p == C_NULL ? nothing : unsafe_load(p)

"""
The norm of error estimates: root mean square; or the largest of the root mean squares of parts of the state; or a Python
function's. One type, so that whichever it is no solver compiles again. Of single entries it is the absolute value.
"""
struct StateNorm <: Function
    n::Int
    ranges::Matrix{Int}
    callable::Ptr{Cvoid}
    slots::Ptr{UInt}
end

const ROOT_MEAN_SQUARE = StateNorm(0, zeros(Int, 3, 0), C_NULL, C_NULL)

StateNorm(::Nothing) = ROOT_MEAN_SQUARE
function StateNorm(o::StepOptions)
    o.norm == C_NULL && o.nranges == 0 && return ROOT_MEAN_SQUARE
    ranges = o.nranges == 0 ? ROOT_MEAN_SQUARE.ranges : copy(unsafe_wrap(Matrix{Int}, o.ranges, (3, o.nranges)))
    return StateNorm(o.n, ranges, o.norm, o.slots)
end

(::StateNorm)(u, t) = OrdinaryDiffEqCore.ODE_DEFAULT_NORM(u, t)

function (norm::StateNorm)(u::Vector{T}, t) where {T <: AbstractFloat}
    if length(u) != norm.n
        return OrdinaryDiffEqCore.ODE_DEFAULT_NORM(u, t)
    elseif norm.callable != C_NULL
        unsafe_store!(norm.slots, UInt(pointer(u)), SLOT_STATE)
        GC.@preserve u call_python(norm.callable)
        return T(unsafe_load(Ptr{Float64}(norm.slots), SLOT_NORM))
    end
    largest = zero(T)
    for part in axes(norm.ranges, 2)
        sum = zero(T)
        @inbounds @simd for i in norm.ranges[1, part]:norm.ranges[2, part]
            sum += abs2(u[i])
        end
        # Not max: NaN must stay.
        root = sqrt(sum / norm.ranges[3, part])
        largest = root <= largest ? largest : root
    end
    return largest
end

"Times to stop at, with those of the options."
with_tstops(tstops, ::Nothing) = tstops
function with_tstops(tstops, o::StepOptions)
    o.ntstops == 0 && return tstops
    return sort!(vcat(tstops, unsafe_wrap(Vector{Float64}, o.tstops, o.ntstops)))
end

struct NoSafetyFactor <: Exception
    alg::Any
end
function Base.showerror(io::IO, e::NoSafetyFactor)
    return print(
        io, nameof(typeof(e.alg)), " has a step size controller of its own, which does not take safety, ifactor and ",
        "dfactor: leave them out, or take another method"
    )
end

"""
Give the controller torchdiffeq's rule: the next step is dt * clamp(gamma / EEst^(1 / (k + 1)), qmin, qmax).

Source: Hairer, Nørsett, Wanner, Solving Ordinary Differential Equations I, II.4.
"""
function tune!(integrator, factors::Factors)
    isnan(factors.gamma) && return nothing
    cache = integrator.controller_cache
    hasfield(typeof(cache), :controller) && hasfield(typeof(cache.controller), :basic) ||
        throw(NoSafetyFactor(integrator.alg))
    cache.controller = tuned(cache.controller, integrator.alg, limited(cache.controller.basic, factors))
    return nothing
end

function limited(basic::B, f::Factors) where {B <: OrdinaryDiffEqCore.CommonControllerOptions}
    given = (qmin = f.qmin, qmax = f.qmax, qmax_first_step = f.qmax, gamma = f.gamma)
    return B((get(given, name, getfield(basic, name)) for name in fieldnames(B))...)
end

function tuned(c::OrdinaryDiffEqCore.PIController{B, T}, alg, basic::B) where {B, T}
    return OrdinaryDiffEqCore.PIController{B, T}(
        basic, inv(OrdinaryDiffEqCore.get_current_adaptive_order(alg, nothing) + 1), zero(T), c.qoldinit
    )
end
tuned(::C, alg, basic) where {C <: OrdinaryDiffEqCore.IController} = C(basic)
tuned(::C, alg, basic) where {C <: OrdinaryDiffEqCore.PredictiveController} = C(basic)
tuned(_, alg, basic) = throw(NoSafetyFactor(alg))

"""
Cuts the first step to the first stop. OrdinaryDiffEqCore 4.6 does so itself, but then `integrator.dt` is the size before
the cut when callbacks read `integrator(t)`, and GaussAdjoint's quadrature, or an event's search, is at wrong times.
"""
function cut_first_step!(integrator)
    integrator.opts.adaptive && !isempty(integrator.opts.tstops) || return nothing
    distance = first(integrator.opts.tstops) - integrator.tdir * integrator.t
    0 < distance < abs(integrator.dt) && (integrator.dt = integrator.tdir * distance)
    return nothing
end

"""
Whom to tell about steps: torchdiffeq's callbacks. `y!(out, t)` is the state in an adjoint solve.
"""
struct Hooks{F, T}
    on_step::Ptr{Cvoid}
    on_accept::Ptr{Cvoid}
    on_reject::Ptr{Cvoid}
    slots::Ptr{UInt}
    sign::Float64
    y!::F
    y::Vector{T}
end

has_hooks(::Nothing) = false
has_hooks(o::StepOptions) = !(o.on_step == o.on_accept == o.on_reject == C_NULL)
Hooks(o::StepOptions, sign::Float64, y!, y) = Hooks(o.on_step, o.on_accept, o.on_reject, o.slots, sign, y!, y)

function tell(h::Hooks, callable::Ptr{Cvoid}, u, t, dt)
    callable == C_NULL && return nothing
    isempty(h.y) || h.y!(h.y, t)
    y = h.y
    GC.@preserve u y begin
        unsafe_store!(h.slots, UInt(pointer(u)), SLOT_STATE)
        unsafe_store!(h.slots, UInt(pointer(y)), SLOT_Y)
        unsafe_store!(Ptr{Float64}(h.slots), h.sign * t, SLOT_T)
        unsafe_store!(Ptr{Float64}(h.slots), abs(dt), SLOT_DT)
        call_python(callable)
    end
    return nothing
end

"`solve!(integrator)` of a forward solve, telling the options' callbacks if there are any."
function solve_telling!(integrator, options, r::RHS{T}) where {T}
    has_hooks(options) || return SciMLBase.solve!(integrator)
    return observed_solve!(integrator, Hooks(options, r.sign, nothing, T[]))
end

"""
`solve!(integrator)` of OrdinaryDiffEqCore 4 with someone told before each try of a step and of what became of it; the
package has callbacks after accepted steps only.
"""
function observed_solve!(integrator, h::Hooks)
    core = OrdinaryDiffEqCore
    while !isempty(integrator.opts.tstops)
        next = first(integrator.opts.tstops)
        while integrator.tdir * integrator.t < next
            core.loopheader!(integrator)
            integrator.do_error_check && SciMLBase.check_error!(integrator) != ReturnCode.Success &&
                return integrator.sol
            t, dt = integrator.t, integrator.dt
            tell(h, h.on_step, integrator.uprev, t, dt)
            at_tstop = integrator.next_step_tstop
            at_tstop ? core.handle_tstop_step!(integrator) : core.perform_step!(integrator, integrator.cache)
            core.loopfooter!(integrator)
            tell(h, integrator.accept_step ? h.on_accept : h.on_reject, integrator.uprev, t, dt)
            (isempty(integrator.opts.tstops) || at_tstop) && break
        end
        core.handle_tstop!(integrator)
    end
    core.postamble!(integrator)
    integrator.sol.retcode == ReturnCode.Default || return integrator.sol
    return integrator.sol = SciMLBase.solution_new_retcode(integrator.sol, ReturnCode.Success)
end
