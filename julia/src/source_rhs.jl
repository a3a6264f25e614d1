# Right-hand sides that call a user's Julia function: `f(u, p, t)` or `f!(du, u, p, t)`. It sees ordinary arrays with the
# shapes and indices the tensors have in torch; torch's memory has the last index fastest, Julia's the first, so that
# what crosses is copied in the other order.

"A parameter of no dimensions: a number, at `at` of the flat parameters."
struct ScalarAt
    at::Int
end
leaf_value(x::Array, flat) = x
leaf_value(x::ScalarAt, flat) = @inbounds flat[x.at]

"How one array of parameters lies in torch's memory, and where its gradient goes (-1: nowhere)."
struct LeafSpec
    dims::Vector{Int}
    offset::Int
    gradient::Int
end

"Everything about the parameters but their number type."
struct ParamSpec
    leaves::Vector{LeafSpec}
    "Leaves as a tuple to what the user's function gets, and back."
    assemble::Any
    take_apart::Any
    "For each entry in Julia's order: its place in torch's memory, and in the gradient (0: it has none)."
    order::Vector{Int}
    gradient::Vector{Int}
    "Entries that have a gradient."
    trained::Vector{Int}
end

"Places in row-major memory of the entries of an array, in Julia's order."
function row_major(dims)
    isempty(dims) && return [1]
    strides = [prod(dims[(i + 1):end]; init = 1) for i in eachindex(dims)]
    return [1 + sum((Tuple(I) .- 1) .* strides) for I in vec(CartesianIndices(Tuple(dims)))]
end

const STRUCTURES = Dict{String, Tuple{Any, Any}}()

"""
`structure` is two Julia functions, e.g. `(x -> (a = x[1], b = x[2]), p -> (p.a, p.b))`, written by Python from the names
the user gave.
"""
function ParamSpec(leaves::Vector{LeafSpec}, structure::String)
    assemble, take_apart = get!(() -> Core.eval(Module(:Structure), Meta.parse(structure)), STRUCTURES, structure)
    order, gradient = Int[], Int[]
    for leaf in leaves
        places = row_major(leaf.dims)
        append!(order, leaf.offset .+ places)
        append!(gradient, leaf.gradient < 0 ? zero(places) : leaf.gradient .+ places)
    end
    return ParamSpec(leaves, assemble, take_apart, order, gradient, findall(!iszero, gradient))
end

"The parameters as arrays of one number type."
struct Params{S, L <: Tuple, F}
    flat::Vector{S}
    leaves::L
    assemble::F
end

function Params{S}(spec::ParamSpec) where {S}
    flat = zeros(S, length(spec.order))
    at = Ref(0)
    leaves = map(Tuple(spec.leaves)) do leaf
        start = at[] + 1
        at[] += prod(leaf.dims; init = 1)
        isempty(leaf.dims) ? ScalarAt(start) : unsafe_wrap(Array, pointer(flat, start), Tuple(leaf.dims))
    end
    return Params{S, typeof(leaves), typeof(spec.assemble)}(flat, leaves, spec.assemble)
end

value(p::Params) = p.assemble(map(leaf -> leaf_value(leaf, p.flat), p.leaves))

"Where Python keeps the parameters' values, row-major, and a number that it changes with them."
struct ParamMemory{T}
    values::Ptr{T}
    version::Ptr{Int}
end

"""
A user's function with arrays of number type `S` to call it with: one row of a batched state, or the whole state.
"""
struct Evaluator{S, N, I, F, P <: Params}
    f::F
    u::Vector{S}
    U::Array{S, N}
    du::Vector{S}
    dU::Array{S, N}
    p::P
    spec::ParamSpec
    version::Base.RefValue{Int}
    "Places of the state's entries in torch's memory; empty: the same."
    order::Vector{Int}
end

function Evaluator{S}(f, in_place::Bool, dims::NTuple{N, Int}, spec::ParamSpec) where {S, N}
    u, du = zeros(S, prod(dims)), zeros(S, prod(dims))
    shaped(x) = N == 1 ? x : unsafe_wrap(Array, pointer(x), dims)
    p = Params{S}(spec)
    order = N < 2 ? Int[] : row_major(dims)
    return Evaluator{S, N, in_place, typeof(f), typeof(p)}(f, u, shaped(u), du, shaped(du), p, spec, Ref(-1), order)
end

@inline place(e::Evaluator, i::Int) = isempty(e.order) ? i : @inbounds e.order[i]

"Take over the parameters where Python has changed them."
@inline function refresh!(e::Evaluator{S}, m::ParamMemory) where {S}
    version = unsafe_load(m.version)
    version == e.version[] && return nothing
    for (i, at) in pairs(e.spec.order)
        e.p.flat[i] = S(unsafe_load(m.values, at))
    end
    e.version[] = version
    return nothing
end

@inline function load!(e::Evaluator{S}, u::Ptr{T}) where {S, T}
    for i in eachindex(e.u)
        @inbounds e.u[i] = S(unsafe_load(u, place(e, i)))
    end
    return nothing
end

not_set(::Type{S}) where {S} = S(NaN)

"du ← f at the loaded state."
function call!(e::Evaluator{S, N, true}, t) where {S, N}
    # An entry that the function forgets is no number rather than last time's.
    fill!(e.du, not_set(S))
    e.f(e.dU, e.U, value(e.p), t)
    return nothing
end

function call!(e::Evaluator{S, N, false}, t) where {S, N}
    result = e.f(N == 0 ? e.u[1] : e.U, value(e.p), t)
    take!(e, result)
    return nothing
end

take!(e::Evaluator{S, 0}, x::Number) where {S} = (e.du[1] = x; nothing)
take!(e::Evaluator{S, 1}, x::Tuple) where {S} =
    length(x) == length(e.du) ? (e.du .= x; nothing) : throw(wrong_shape("$(length(x)) numbers", e))
function take!(e::Evaluator{S, N}, x::AbstractArray) where {S, N}
    size(x) == size(e.U) || throw(wrong_shape("an array of size $(size(x))", e))
    copyto!(e.du, x)
    return nothing
end
take!(e::Evaluator, x) = throw(wrong_shape("a $(typeof(x))", e))

wrong_shape(what, e::Evaluator{S, N}) where {S, N} =
    SourceError(0, "f returned $what; the derivative has the state's size, $(N == 0 ? "a number" : size(e.U))")

"f as the solvers call it: (out, u, t)"
struct SourceFunction{E <: Evaluator, T}
    e::E
    memory::ParamMemory{T}
    rows::Int
end

function (g::SourceFunction{E, T})(out::Ptr{T}, u::Ptr{T}, t::Float64) where {E, T}
    e = g.e
    refresh!(e, g.memory)
    d = length(e.u)
    for b in 0:(g.rows - 1)
        load!(e, u + b * d * sizeof(T))
        call!(e, T(t))
        for i in 1:d
            @inbounds unsafe_store!(out, e.du[i], b * d + place(e, i))
        end
    end
    return nothing
end

"vjp by the user's own function, `(v, u, p, t) -> (by_u, by_p)`; v and by_u are like u, by_p is like p."
struct UserVJP{F, E <: Evaluator, T}
    vjp::F
    e::E
    memory::ParamMemory{T}
    rows::Int
    np::Int
end

function (g::UserVJP{F, E, T})(Ju::Ptr{T}, Jp::Ptr{T}, v::Ptr{T}, u::Ptr{T}, t::Float64) where {F, E, T}
    e = g.e
    refresh!(e, g.memory)
    d = length(e.u)
    Jp == C_NULL || clear!(Jp, g.np)
    for b in 0:(g.rows - 1)
        load!(e, u + b * d * sizeof(T))
        for i in 1:d
            @inbounds e.du[i] = unsafe_load(v, b * d + place(e, i))
        end
        by_u, by_p = two(g.vjp(shaped_v(e), shaped_u(e), value(e.p), T(t)))
        if Ju != C_NULL
            take!(e, by_u)
            for i in 1:d
                @inbounds unsafe_store!(Ju, e.du[i], b * d + place(e, i))
            end
        end
        Jp == C_NULL || add_gradient!(Jp, e.spec, by_p)
    end
    return nothing
end

shaped_u(e::Evaluator{S, N}) where {S, N} = N == 0 ? e.u[1] : e.U
shaped_v(e::Evaluator{S, N}) where {S, N} = N == 0 ? e.du[1] : e.dU

two(x::Tuple{Any, Any}) = x
two(x) = throw(SourceError(0, "vjp returned a $(typeof(x)); it returns a tuple (by_u, by_p)"))

function clear!(x::Ptr{T}, n::Int) where {T}
    for i in 1:n
        unsafe_store!(x, zero(T), i)
    end
    return nothing
end

function add_gradient!(Jp::Ptr{T}, spec::ParamSpec, by_p) where {T}
    start = 0
    for (leaf, g) in zip(spec.leaves, spec.take_apart(by_p))
        n = prod(leaf.dims; init = 1)
        if leaf.gradient >= 0 && g !== nothing
            size(g) == Tuple(leaf.dims) || throw(
                SourceError(0, "vjp returned a parameter gradient of size $(size(g)) for a parameter of size $(Tuple(leaf.dims))")
            )
            for (i, x) in enumerate(g)
                at = spec.gradient[start + i]
                unsafe_store!(Jp, unsafe_load(Jp, at) + T(x), at)
            end
        end
        start += n
    end
    return nothing
end

"df/du by the user's own function: `(u, p, t) -> J`, or `(J, u, p, t)`."
struct UserJacobian{F, I, E <: Evaluator, T}
    jac::F
    in_place::Val{I}
    e::E
    memory::ParamMemory{T}
    rows::Int
    J::Matrix{T}
end

function (g::UserJacobian{F, I, E, T})(out::Ptr{T}, u::Ptr{T}, t::Float64) where {F, I, E, T}
    e = g.e
    refresh!(e, g.memory)
    d = length(e.u)
    for b in 0:(g.rows - 1)
        load!(e, u + b * d * sizeof(T))
        if I
            fill!(g.J, T(NaN))
            g.jac(g.J, shaped_u(e), value(e.p), T(t))
        else
            J = g.jac(shaped_u(e), value(e.p), T(t))
            length(J) == d * d || throw(SourceError(0, "jac returned size $(size(J)); it is ($d, $d)"))
            copyto!(g.J, J)
        end
        for j in 1:d, i in 1:d
            unsafe_store!(out, g.J[i, j], b * d * d + (place(e, j) - 1) * d + place(e, i))
        end
    end
    return nothing
end

"""
    dual_derivatives(T, f, in_place, dims, spec, memory, rows, np)

vjp, jac and tgrad by ForwardDiff: in the extension, which is loaded with it.
"""
function dual_derivatives end

"What Python says of a source. Same layout as `SourceArgs` in pyjode/engines/julia/boundary.py."
struct SourceArgs
    double::Int
    n::Int
    np::Int
    sign::Int
    blocks::Int
    rows::Int               # 1: the function sees the whole state
    ndims::Int
    dims::Ptr{Int}          # of what the function sees
    nleaves::Int
    leaves::Ptr{Int}        # for each: ndims, dims..., offset of its gradient or -1
    values::Ptr{Cvoid}
    version::Ptr{Int}
end

struct SourceSpec
    f::Source
    vjp::Union{Source, Nothing}
    jac::Union{Source, Nothing}
    in_place::Bool
    jac_in_place::Bool
    dims::Vector{Int}
    params::ParamSpec
end

function SourceSpec(a::SourceArgs, f::String, vjp::String, jac::String, structure::String)
    leaves, at, offset = LeafSpec[], 1, 0
    for _ in 1:(a.nleaves)
        nd = unsafe_load(a.leaves, at)
        dims = [unsafe_load(a.leaves, at + i) for i in 1:nd]
        push!(leaves, LeafSpec(dims, offset, unsafe_load(a.leaves, at + nd + 1)))
        at += nd + 2
        offset += prod(dims; init = 1)
    end
    source = user_function(f)
    in_place = Base.invokelatest(argument_count, source.f) == 4
    in_place && a.ndims == 0 && throw(SourceError(0, "a state of no dimensions is a number, which f!(du, ...) cannot change: write f(u, p, t)"))
    of_vjp = isempty(vjp) ? nothing : user_function(vjp)
    of_vjp === nothing || Base.invokelatest(argument_count, of_vjp.f, (4,), "(v, u, p, t) -> (by_u, by_p)")
    of_jac = isempty(jac) ? nothing : user_function(jac)
    jac_in_place = of_jac !== nothing && Base.invokelatest(argument_count, of_jac.f, (4, 3), "jac(u, p, t) or jac!(J, u, p, t)") == 4
    dims = [unsafe_load(a.dims, i) for i in 1:(a.ndims)]
    return SourceSpec(source, of_vjp, of_jac, in_place, jac_in_place, dims, ParamSpec(leaves, structure))
end

"A right-hand side with memory of its own, for one thread."
function source_rhs(::Type{T}, a::SourceArgs, spec::SourceSpec, first::Bool) where {T}
    mine(s) = s === nothing ? nothing : (first ? s : another(s)).f
    f, dims = mine(spec.f), Tuple(spec.dims)
    memory = ParamMemory{T}(Ptr{T}(a.values), a.version)
    plain() = Evaluator{T}(f, spec.in_place, dims, spec.params)
    derivatives = nothing
    if spec.vjp === nothing || spec.jac === nothing
        derivatives = Base.invokelatest(dual_derivatives, T, f, spec.in_place, dims, spec.params, memory, a.rows, a.np)
    end
    vjp = spec.vjp === nothing ? derivatives.vjp : UserVJP(mine(spec.vjp), plain(), memory, a.rows, a.np)
    d = prod(dims; init = 1)
    jac = spec.jac === nothing ? derivatives.jac :
        UserJacobian(mine(spec.jac), Val(spec.jac_in_place), plain(), memory, a.rows, zeros(T, d, d))
    tgrad = derivatives === nothing ?
        Base.invokelatest(dual_derivatives, T, f, spec.in_place, dims, spec.params, memory, a.rows, a.np).tgrad : derivatives.tgrad
    return RHS{T}(
        a.n, a.np, Float64(a.sign), a.blocks, StateFunction{T}(SourceFunction(plain(), memory, a.rows)),
        VJPFunction{T}(vjp), StateFunction{T}(jac), StateFunction{T}(tgrad)
    )
end

function source_pool(::Type{T}, a::SourceArgs, spec::SourceSpec) where {T}
    made = RHS{T}[]
    make() = Base.invokelatest(source_rhs, T, a, spec, isempty(made))::RHS{T}
    return RHSPool{T}(make, made)
end

const CALL_F, CALL_VJP, CALL_JACOBIAN, CALL_TGRAD = 0, 1, 2, 3

"One call of a right-hand side, by the user's time, outside of any solve."
function call_rhs(r::RHS{T}, what::Int, out::Ptr{T}, out_p::Ptr{T}, v::Ptr{T}, u::Ptr{T}, t::Float64) where {T}
    if what == CALL_F
        r.f(out, u, t)
    elseif what == CALL_VJP
        r.vjp(out, out_p, v, u, t)
    elseif what == CALL_JACOBIAN
        r.jac(out, u, t)
    else
        r.tgrad(out, u, t)
    end
    return nothing
end
