# The adjoint problem has the type of the forward solution in its own, and would be compiled anew for each forward method:
# half a minute for a stiff one. Here a solution of a type that does not tell the method.

"Dense output behind a function pointer: into a vector, at a time, from the right or not."
struct ErasedInterpolation{T} <: SciMLBase.AbstractDiffEqInterpolation
    read!::FunctionWrapper{Nothing, Tuple{Vector{T}, Float64, Bool}}
    n::Int
end

function (id::ErasedInterpolation{T})(v::Vector{T}, t, ::Nothing, ::Type{Val{0}}, p, continuity) where {T}
    id.read!(v, t, continuity === :right)
    return v
end
(id::ErasedInterpolation{T})(v, t, idxs::Nothing, deriv::Type{Val{0}}, p, continuity) where {T} =
    copyto!(v, id(t, idxs, deriv, p, continuity))
(id::ErasedInterpolation{T})(t::Number, idxs::Nothing, deriv::Type{Val{0}}, p, continuity) where {T} =
    id(Vector{T}(undef, id.n), t, idxs, deriv, p, continuity)

"`sol` for adjoints that read it by its dense output alone: those that neither solve again nor ask for its method."
function erased(sol, ::Type{T}) where {T}
    read!(v, t, right) = (sol(v, t; continuity = right ? :right : :left); nothing)
    interp = ErasedInterpolation{T}(read!, length(sol.prob.u0))
    return SciMLBase.build_solution(
        sol.prob, nothing, sol.t, sol.u; dense = true, interp, retcode = sol.retcode, stats = sol.stats,
        calculate_error = false
    )
end
