"The ODE of `r` from `u0` over `tspan`, for methods that need no Jacobian."
function explicit_problem(r::RHS{T}, u0::Vector{T}, tspan) where {T}
    if r.explicit === nothing
        r.explicit = ODEFunction{true, SciMLBase.FullSpecialize}(r; vjp = VJP(r), vjp_p = ParamVJP(r))
    end
    return ODEProblem{true, SciMLBase.FullSpecialize}(r.explicit, u0, tspan, r.p)
end

# With torch's own Jacobian and time gradient. The prototype makes SciMLSensitivity use the Jacobian in the adjoint solve
# too: it asks for both.
function implicit_problem(r::RHS{T}, u0::Vector{T}, tspan) where {T}
    if r.implicit === nothing
        r.implicit = ODEFunction{true, SciMLBase.FullSpecialize}(
            r; vjp = VJP(r), vjp_p = ParamVJP(r), jac = Jacobian(r), tgrad = TimeGradient(r),
            jac_prototype = jacobian_prototype(r)
        )
    end
    return ODEProblem{true, SciMLBase.FullSpecialize}(r.implicit, u0, tspan, r.p)
end
