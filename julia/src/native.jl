# Right-hand sides as Julia code lowered from torch graphs (pyjode/rhs/lower.py). The generated functions take pointers:
# results, state, then t, a workspace, and a table of addresses of parameters and constants, which Python owns and may
# change between calls.

"What generated code calls, by the name `N`."
module Native

include("native/vectors.jl")
include("native/math.jl")
include("native/matmul.jl")

end

"The functions of one source, compiled when first called."
struct NativeCode
    functions::Module
    workspace::Int
end

const COMPILED = Dict{String, NativeCode}()

"The code of `source`, defined once however many right-hand sides share it."
function native_code(source::String, workspace::Int)
    return get!(COMPILED, source) do
        m = Module(:Lowered)
        Core.eval(m, :(const N = $Native))
        Base.include_string(m, source, "right-hand side lowered by pyjode")
        NativeCode(m, workspace)
    end
end

"Memory of one right-hand side: `table` is Python's, the workspace its own, so two copies can run at the same time."
struct NativeMemory
    table::Ptr{Ptr{Cvoid}}
    storage::Vector{UInt8}
    workspace::Ptr{UInt8}
end

function NativeMemory(table, size::Int)
    storage = Vector{UInt8}(undef, size + 64)
    address = UInt(pointer(storage))
    return NativeMemory(table, storage, Ptr{UInt8}((address + 63) & ~UInt(63)))
end

"f or df/dt: (out, u, t)"
struct NativeStateFunction{F}
    code::F
    memory::NativeMemory
end

function (g::NativeStateFunction)(out::Ptr{T}, u::Ptr{T}, t::Float64) where {T}
    m = g.memory
    GC.@preserve m g.code(out, u, t, m.workspace, m.table)
    return nothing
end

"One half of a vjp: (out, v, u, t)"
struct NativeHalf{F}
    code::F
    memory::NativeMemory
end

function (g::NativeHalf)(out::Ptr{T}, v::Ptr{T}, u::Ptr{T}, t::Float64) where {T}
    m = g.memory
    GC.@preserve m g.code(out, v, u, t, m.workspace, m.table)
    return nothing
end

struct NativeBoth{F}
    code::F
    memory::NativeMemory
end

function (g::NativeBoth)(Ju::Ptr{T}, Jp::Ptr{T}, v::Ptr{T}, u::Ptr{T}, t::Float64) where {T}
    m = g.memory
    GC.@preserve m g.code(Ju, Jp, v, u, t, m.workspace, m.table)
    return nothing
end

const HalfFunction{T} = FunctionWrapper{Nothing, Tuple{Ptr{T}, Ptr{T}, Ptr{T}, Float64}}

"Wrapped one by one: each is compiled when it is first needed."
struct NativeVJP{T}
    by_u::HalfFunction{T}
    by_p::HalfFunction{T}
    by_both::VJPFunction{T}
end

function (g::NativeVJP{T})(Ju::Ptr{T}, Jp::Ptr{T}, v::Ptr{T}, u::Ptr{T}, t::Float64) where {T}
    if Jp == C_NULL
        g.by_u(Ju, v, u, t)
    elseif Ju == C_NULL
        g.by_p(Jp, v, u, t)
    else
        g.by_both(Ju, Jp, v, u, t)
    end
    return nothing
end

"df/du by one vjp for each row of a block; the same rows of all blocks at once."
struct NativeJacobian{T}
    vjp_u::HalfFunction{T}
    blocks::Int
    v::Vector{T}
    row::Vector{T}
end

function (g::NativeJacobian{T})(out::Ptr{T}, u::Ptr{T}, t::Float64) where {T}
    v, row = g.v, g.row
    d = length(v) ÷ g.blocks
    for i in 1:d
        fill!(v, zero(T))
        for b in 0:(g.blocks - 1)
            v[b * d + i] = one(T)
        end
        GC.@preserve v row g.vjp_u(pointer(row), pointer(v), u, t)
        for b in 0:(g.blocks - 1), j in 1:d
            unsafe_store!(out, row[b * d + j], b * d * d + (j - 1) * d + i)
        end
    end
    return nothing
end

struct NativeZero{T}
    n::Int
end

function (g::NativeZero{T})(out::Ptr{T}, u::Ptr{T}, t::Float64) where {T}
    for i in 1:(g.n)
        unsafe_store!(out, zero(T), i)
    end
    return nothing
end

"""
    native_rhs(T, code, table, n, np, sign, blocks)

A right-hand side of `n` states and `np` parameter entries, with a workspace of its own. `table` must outlive it.
"""
function native_rhs(::Type{T}, code::NativeCode, table::Ptr{Ptr{Cvoid}}, n::Int, np::Int, sign::Int, blocks::Int) where {T}
    memory = NativeMemory(table, code.workspace)
    m = code.functions
    get_function(name) = Base.invokelatest(getglobal, m, name)
    by_u = HalfFunction{T}(NativeHalf(get_function(:vjp_u), memory))
    by_p = HalfFunction{T}(NativeHalf(get_function(:vjp_p), memory))
    by_both = VJPFunction{T}(NativeBoth(get_function(:vjp_up), memory))
    tgrad = Base.invokelatest(isdefined, m, :tgrad) ? NativeStateFunction(get_function(:tgrad), memory) : NativeZero{T}(n)
    return RHS{T}(
        n, np, Float64(sign), blocks,
        StateFunction{T}(NativeStateFunction(get_function(:f), memory)),
        VJPFunction{T}(NativeVJP{T}(by_u, by_p, by_both)),
        StateFunction{T}(NativeJacobian{T}(by_u, blocks, zeros(T, n), zeros(T, n))),
        StateFunction{T}(tgrad),
    )
end
