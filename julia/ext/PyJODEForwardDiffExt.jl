# Derivatives of a user's Julia function by dual numbers, a chunk of directions at a time.
module PyJODEForwardDiffExt

using ForwardDiff: Dual, Partials, partials
using PyJODE: PyJODE, Evaluator, ParamMemory, ParamSpec, call!, clear!, load!, place, refresh!

struct SourceTag end

const MAX_CHUNK = 8

"A function with dual numbers: directions 1 ... d are the state's entries, the following the trained parameters'."
struct DualSide{E <: Evaluator, T, N}
    e::E
    memory::ParamMemory{T}
    seeds::NTuple{N, Partials{N, T}}
    rows::Int
    np::Int
end

unit(::Type{T}, ::Val{N}, j) where {T, N} = Partials{N, T}(ntuple(i -> T(i == j), Val(N)))

PyJODE.not_set(::Type{Dual{G, T, N}}) where {G, T, N} = Dual{G, T, N}(T(NaN), Partials{N, T}(ntuple(_ -> T(NaN), Val(N))))

function seed!(e::Evaluator{Dual{G, T, N}}, direction::Int, seed::Partials{N, T}) where {G, T, N}
    d = length(e.u)
    if direction <= d
        e.u[direction] = Dual{G, T, N}(e.u[direction].value, seed)
    else
        at = e.spec.trained[direction - d]
        e.p.flat[at] = Dual{G, T, N}(e.p.flat[at].value, seed)
    end
    return nothing
end

"`found(direction, j)` for each direction of `range`, whose derivative of du is partial number j of each entry."
function each_direction(found, s::DualSide{E, T, N}, range, t) where {E, T, N}
    zero_seed = zero(Partials{N, T})
    # An exception on the way leaves seeds among the parameters: they count as stale until the end.
    version, s.e.version[] = s.e.version[], -1
    for first in range[begin]:N:range[end]
        last = min(first + N - 1, range[end])
        for direction in first:last
            seed!(s.e, direction, s.seeds[direction - first + 1])
        end
        call!(s.e, t)
        for direction in first:last
            seed!(s.e, direction, zero_seed)
            found(direction, direction - first + 1)
        end
    end
    s.e.version[] = version
    return nothing
end

struct DualVJP{S}
    s::S
end

function (g::DualVJP{DualSide{E, T, N}})(Ju::Ptr{T}, Jp::Ptr{T}, v::Ptr{T}, u::Ptr{T}, t::Float64) where {E, T, N}
    s, e = g.s, g.s.e
    refresh!(e, s.memory)
    d = length(e.u)
    Jp == C_NULL || clear!(Jp, s.np)
    from = Ju == C_NULL ? d + 1 : 1
    to = Jp == C_NULL ? d : d + length(e.spec.trained)
    from <= to || return nothing
    for b in 0:(s.rows - 1)
        load!(e, u + b * d * sizeof(T))
        each_direction(s, from:to, T(t)) do direction, j
            total = zero(T)
            for i in 1:d
                total = muladd(unsafe_load(v, b * d + place(e, i)), partials(e.du[i], j), total)
            end
            if direction <= d
                unsafe_store!(Ju, total, b * d + place(e, direction))
            else
                at = e.spec.gradient[e.spec.trained[direction - d]]
                unsafe_store!(Jp, unsafe_load(Jp, at) + total, at)
            end
        end
    end
    return nothing
end

struct DualJacobian{S}
    s::S
end

function (g::DualJacobian{DualSide{E, T, N}})(out::Ptr{T}, u::Ptr{T}, t::Float64) where {E, T, N}
    s, e = g.s, g.s.e
    refresh!(e, s.memory)
    d = length(e.u)
    for b in 0:(s.rows - 1)
        load!(e, u + b * d * sizeof(T))
        each_direction(s, 1:d, T(t)) do direction, j
            for i in 1:d
                unsafe_store!(out, partials(e.du[i], j), b * d * d + (place(e, direction) - 1) * d + place(e, i))
            end
        end
    end
    return nothing
end

struct DualTimeGradient{S}
    s::S
end

function (g::DualTimeGradient{DualSide{E, T, N}})(out::Ptr{T}, u::Ptr{T}, t::Float64) where {E, T, N}
    s, e = g.s, g.s.e
    refresh!(e, s.memory)
    d = length(e.u)
    for b in 0:(s.rows - 1)
        load!(e, u + b * d * sizeof(T))
        call!(e, Dual{SourceTag, T, N}(T(t), s.seeds[1]))
        for i in 1:d
            unsafe_store!(out, partials(e.du[i], 1), b * d + place(e, i))
        end
    end
    return nothing
end

function PyJODE.dual_derivatives(::Type{T}, f, in_place, dims, spec::ParamSpec, memory, rows, np) where {T}
    N = clamp(prod(dims; init = 1) + length(spec.trained), 1, MAX_CHUNK)
    return derivatives(T, Val(N), f, in_place, dims, spec, memory, rows, np)
end

function derivatives(::Type{T}, ::Val{N}, f, in_place, dims, spec, memory, rows, np) where {T, N}
    seeds = ntuple(j -> unit(T, Val(N), j), Val(N))
    # Each its own arrays: they are called in turns, and one must not leave its seeds to another.
    side() = DualSide(Evaluator{Dual{SourceTag, T, N}}(f, in_place, dims, spec), memory, seeds, rows, np)
    return (vjp = DualVJP(side()), jac = DualJacobian(side()), tgrad = DualTimeGradient(side()))
end

end
