# A right-hand side that lives in Python: torch graphs or f itself, called back. Arguments go through a mailbox in
# memory that Python owns (addresses of u and v, and t as a number of the state's type); a result comes back as the
# address of a contiguous tensor. One crossing a call.

"The mailbox's slots, 8 bytes each: addresses of u, v; where vjp_up puts its two results."
const SLOT_U, SLOT_V, SLOT_OUT_U, SLOT_OUT_P = 1, 2, 3, 4

struct Mailbox{T}
    slots::Ptr{UInt}
    t::Ptr{T}
end

@inline function put!(box::Mailbox{T}, u::Ptr{T}, t::Float64) where {T}
    unsafe_store!(box.t, T(t))
    unsafe_store!(box.slots, UInt(u), SLOT_U)
    return nothing
end

struct PythonStateFunction{T}
    box::Mailbox{T}
    callable::Ptr{Cvoid}
    n::Int
end

function (g::PythonStateFunction{T})(out::Ptr{T}, u::Ptr{T}, t::Float64) where {T}
    put!(g.box, u, t)
    unsafe_copyto!(out, Ptr{T}(call_python(g.callable)), g.n)
    return nothing
end

struct PythonVJP{T}
    box::Mailbox{T}
    by_u::Ptr{Cvoid}
    by_p::Ptr{Cvoid}
    by_both::Ptr{Cvoid}
    n::Int
    np::Int
end

function (g::PythonVJP{T})(Ju::Ptr{T}, Jp::Ptr{T}, v::Ptr{T}, u::Ptr{T}, t::Float64) where {T}
    put!(g.box, u, t)
    unsafe_store!(g.box.slots, UInt(v), SLOT_V)
    if Jp == C_NULL
        unsafe_copyto!(Ju, Ptr{T}(call_python(g.by_u)), g.n)
    elseif Ju == C_NULL
        unsafe_copyto!(Jp, Ptr{T}(call_python(g.by_p)), g.np)
    else
        call_python(g.by_both)
        unsafe_copyto!(Ju, Ptr{T}(unsafe_load(g.box.slots, SLOT_OUT_U)), g.n)
        unsafe_copyto!(Jp, Ptr{T}(unsafe_load(g.box.slots, SLOT_OUT_P)), g.np)
    end
    return nothing
end

"Blocks come row-major from torch, [b, i, j]; Julia's storage has i fastest."
struct PythonJacobian{T}
    box::Mailbox{T}
    callable::Ptr{Cvoid}
    d::Int
    blocks::Int
end

function (g::PythonJacobian{T})(out::Ptr{T}, u::Ptr{T}, t::Float64) where {T}
    put!(g.box, u, t)
    rows = Ptr{T}(call_python(g.callable))
    d = g.d
    for b in 0:(g.blocks - 1), j in 0:(d - 1), i in 0:(d - 1)
        unsafe_store!(out, unsafe_load(rows, b * d * d + i * d + j + 1), b * d * d + j * d + i + 1)
    end
    return nothing
end
