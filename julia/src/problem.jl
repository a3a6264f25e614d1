"The ODE of `r` from `u0` over `tspan`; `with_jac` gives implicit methods torch's own Jacobian and time gradient."
function problem(r::RHS{T}, u0::Vector{T}, tspan::Tuple{Float64, Float64}, with_jac::Bool) where {T}
    return with_jac ? implicit_problem(r, u0, tspan, jacobian_prototype(r)) : explicit_problem(r, u0, tspan)
end

function explicit_problem(r::RHS{T}, u0::Vector{T}, tspan) where {T}
    f = ODEFunction{true, SciMLBase.FullSpecialize}(r; vjp = VJP(r), vjp_p = ParamVJP(r))
    return ODEProblem{true, SciMLBase.FullSpecialize}(f, u0, tspan, r.p)
end

# The prototype makes SciMLSensitivity use the Jacobian in the adjoint solve too (it asks for both).
function implicit_problem(r::RHS{T}, u0::Vector{T}, tspan, jac_prototype) where {T}
    f = ODEFunction{true, SciMLBase.FullSpecialize}(
        r; vjp = VJP(r), vjp_p = ParamVJP(r), jac = Jacobian(r), tgrad = TimeGradient(r), jac_prototype
    )
    return ODEProblem{true, SciMLBase.FullSpecialize}(f, u0, tspan, r.p)
end
