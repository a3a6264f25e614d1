# One concrete right-hand side type for every f: the solvers are compiled once, into the package image, and a new f
# costs only its own few lines.

"f, jac or tgrad: (out, u, t)"
const StateFunction{T} = FunctionWrapper{Nothing, Tuple{Ptr{T}, Ptr{T}, Float64}}
"(Jᵀv by u or C_NULL, Jᵀv by p or C_NULL, v, u, t)"
const VJPFunction{T} = FunctionWrapper{Nothing, Tuple{Ptr{T}, Ptr{T}, Ptr{T}, Ptr{T}, Float64}}

"""
    RHS{T}

du/dτ = g(τ, u) = s f(sτ, u), with s = -1 where the user integrates backwards in time, so that every solver and every
adjoint here runs forwards.

`blocks` is the number of equal diagonal blocks of df/du (1: dense). `joint` asks for both halves of a vjp in one call
and keeps the parameters' half for the `vjp_p` that follows at the same point (Interpolating- and BacksolveAdjoint ask
for the two in turn).
"""
mutable struct RHS{T} <: Function
    const n::Int
    const np::Int
    const sign::Float64
    const blocks::Int
    const f::StateFunction{T}
    const vjp::VJPFunction{T}
    const jac::StateFunction{T}
    const tgrad::StateFunction{T}
    "Placeholder: the solvers see only its length; f reads the parameters itself."
    const p::Vector{T}
    "f is asked for no time, the user's, outside [lowest, highest]: it may jump at either end of a solve."
    lowest::Float64
    highest::Float64
    joint::Bool
    kept::Bool
    kept_t::Float64
    const kept_u::Vector{T}
    const kept_v::Vector{T}
    const kept_p::Vector{T}
    "The `ODEFunction`s around it, once made: SciMLBase looks their methods up each time it makes one."
    explicit::Any
    implicit::Any
    "A `Kept` integrator, or nothing."
    integrator::Any
    "The last discrete adjoint's `Sweep`, or nothing."
    sweep::Any
end

function RHS{T}(n, np, sign, blocks, f, vjp, jac, tgrad) where {T}
    return RHS{T}(
        n, np, sign, blocks, f, vjp, jac, tgrad, zeros(T, np), -Inf, Inf,
        false, false, 0.0, zeros(T, n), zeros(T, n), zeros(T, np), nothing, nothing, nothing, nothing
    )
end

"The user's time for the solver's, in which every solve runs forwards."
@inline user_time(r::RHS, t) = clamp(r.sign * t, r.lowest, r.highest)

"Entries of `x` where solvers pass a vector or a contiguous view of one."
@inline dataptr(x::StridedVector) = pointer(x)

@inline function flip!(r::RHS{T}, x::Ptr{T}, n::Int) where {T}
    if r.sign < 0
        for i in 1:n
            unsafe_store!(x, -unsafe_load(x, i), i)
        end
    end
    return nothing
end

@inline function (r::RHS{T})(du, u, p, t) where {T}
    poll(r.sign * t)
    GC.@preserve du u begin
        r.f(dataptr(du), dataptr(u), user_time(r, t))
        flip!(r, dataptr(du), r.n)
    end
    return nothing
end

struct VJP{T} <: Function
    r::RHS{T}
end
struct ParamVJP{T} <: Function
    r::RHS{T}
end
struct Jacobian{T} <: Function
    r::RHS{T}
end
struct TimeGradient{T} <: Function
    r::RHS{T}
end

function (g::VJP{T})(Jv, v, u, p, t) where {T}
    r = g.r
    poll()
    GC.@preserve Jv v u r begin
        if r.joint && r.np > 0
            r.vjp(dataptr(Jv), pointer(r.kept_p), dataptr(v), dataptr(u), user_time(r, t))
            flip!(r, pointer(r.kept_p), r.np)
            copyto!(r.kept_u, u)
            copyto!(r.kept_v, v)
            r.kept_t = t
            r.kept = true
        else
            r.vjp(dataptr(Jv), Ptr{T}(0), dataptr(v), dataptr(u), user_time(r, t))
        end
        flip!(r, dataptr(Jv), r.n)
    end
    return nothing
end

function (g::ParamVJP{T})(Jpv, v, u, p, t) where {T}
    r = g.r
    if r.kept && t == r.kept_t && u == r.kept_u && v == r.kept_v
        copyto!(Jpv, r.kept_p)
        return nothing
    end
    poll()
    GC.@preserve Jpv v u begin
        r.vjp(Ptr{T}(0), dataptr(Jpv), dataptr(v), dataptr(u), user_time(r, t))
        flip!(r, dataptr(Jpv), r.np)
    end
    return nothing
end

@inline storage(J::Matrix) = J
@inline storage(J::SparseMatrixCSC) = nonzeros(J)

# Entries would be others than meant. OrdinaryDiffEqDifferentiation's extension for sparse matrices is not loaded while
# PyJODE's own extensions are compiled: its Jacobians are full there.
other_entries() = ccall(:jl_generating_output, Cint, ()) == 1 || error("the solver's Jacobian has not the entries of its prototype")

function (g::Jacobian{T})(J, u, p, t) where {T}
    r = g.r
    poll()
    x = storage(J)
    length(x) == r.n * (r.n ÷ r.blocks) || other_entries()
    GC.@preserve x u begin
        r.jac(pointer(x), dataptr(u), user_time(r, t))
        flip!(r, pointer(x), length(x))
    end
    return nothing
end

"dg/dτ = d(s f(sτ, u))/dτ = df/dt: s enters twice."
function (g::TimeGradient{T})(dT, u, p, t) where {T}
    r = g.r
    GC.@preserve dT u r.tgrad(dataptr(dT), dataptr(u), user_time(r, t))
    return nothing
end

"Where the Jacobian is stored: a dense matrix, or a block-diagonal sparse one with its blocks full."
function jacobian_prototype(r::RHS{T}) where {T}
    r.blocks == 1 && return zeros(T, r.n, r.n)
    d = r.n ÷ r.blocks
    colptr = collect(1:d:(r.n * d + 1))
    rowval = [d * ((j - 1) ÷ d) + i for j in 1:(r.n) for i in 1:d]
    # Ones: products and transposes may drop stored zeros.
    return SparseMatrixCSC(r.n, r.n, colptr, rowval, ones(T, r.n * d))
end
