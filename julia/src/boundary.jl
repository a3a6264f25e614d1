# The C functions Python calls. Each returns OK, PYTHON_RAISED (the exception is in `RAISED`), JULIA_ERROR, UNSUPPORTED
# or SOURCE_ERROR (the text is in `MESSAGE`); no Julia exception and no Julia object crosses.

const OK, PYTHON_RAISED, JULIA_ERROR, UNSUPPORTED, SOURCE_ERROR = Cint(0), Cint(1), Cint(2), Cint(3), Cint(4)

"Text that Python reads after a call: an error, or the return code of a solve."
const MESSAGE = Ref("")

function guarded(body)
    try
        body()
        return OK
    catch e
        e isa PythonRaised && return PYTHON_RAISED
        in_source = source_error(e, catch_backtrace())
        if in_source !== nothing
            MESSAGE[] = "$(in_source.line)\n$(in_source.message)"
            return SOURCE_ERROR
        end
        unsupported = e isa NotRungeKutta || e isa NotRosenbrock || e isa NoSafetyFactor
        MESSAGE[] = unsupported ? sprint(showerror, e) : sprint(showerror, e, catch_backtrace())
        return unsupported ? UNSUPPORTED : JULIA_ERROR
    end
end

"""
A right-hand side in Python. Same layout as `RHSArgs` in pyjode/engines/julia/boundary.py. Addresses of Python
functions are 0 where the solve does not need them; Python keeps the functions and the mailbox alive.
"""
struct RHSArgs
    double::Int              # 1: Float64, 0: Float32
    n::Int
    np::Int
    sign::Int
    blocks::Int
    slots::Ptr{UInt}
    t::Ptr{Cvoid}
    f::Ptr{Cvoid}
    vjp_u::Ptr{Cvoid}
    vjp_p::Ptr{Cvoid}
    vjp_up::Ptr{Cvoid}
    jac::Ptr{Cvoid}
    tgrad::Ptr{Cvoid}
end

function python_rhs(a::RHSArgs, ::Type{T}) where {T}
    box = Mailbox{T}(a.slots, Ptr{T}(a.t))
    return RHS{T}(
        a.n, a.np, Float64(a.sign), a.blocks,
        StateFunction{T}(PythonStateFunction{T}(box, a.f, a.n)),
        VJPFunction{T}(PythonVJP{T}(box, a.vjp_u, a.vjp_p, a.vjp_up, a.n, a.np)),
        StateFunction{T}(PythonJacobian{T}(box, a.jac, a.n ÷ a.blocks, a.blocks)),
        StateFunction{T}(PythonStateFunction{T}(box, a.tgrad, a.n)),
    )
end

function c_rhs(args::Ptr{RHSArgs}, handle::Ptr{Int})
    return guarded() do
        a = unsafe_load(args)
        unsafe_store!(handle, keep!(a.double == 1 ? python_rhs(a, Float64) : python_rhs(a, Float32)))
    end
end

"""
A right-hand side in generated code. Same layout as `NativeArgs` in pyjode/engines/julia/boundary.py. Python owns the
table of the parameters' and constants' addresses.
"""
struct NativeArgs
    double::Int
    n::Int
    np::Int
    sign::Int
    blocks::Int
    table::Ptr{Ptr{Cvoid}}
    workspace::Int
end

function c_native_rhs(args::Ptr{NativeArgs}, source::Cstring, handle::Ptr{Int})
    return guarded() do
        a = unsafe_load(args)
        code = native_code(unsafe_string(source), a.workspace)
        T = a.double == 1 ? Float64 : Float32
        unsafe_store!(handle, keep!(native_rhs(T, code, a.table, a.n, a.np, a.sign, a.blocks)))
    end
end

function products_handle(make::F, args::Ptr{NativeArgs}, source::Cstring, handle::Ptr{Int}) where {F}
    return guarded() do
        a = unsafe_load(args)
        code = native_code(unsafe_string(source), a.workspace)
        T = a.double == 1 ? Float64 : Float32
        unsafe_store!(handle, keep!(make(T, code, a.table)))
    end
end

"The second-order products of a right-hand side in generated code: a function `second` of its own source."
c_native_second(args::Ptr{NativeArgs}, source::Cstring, handle::Ptr{Int}) =
    products_handle(native_second, args, source, handle)

"The parameters' vjps at several stages at once, in generated code: a function `stages` of its own source."
c_native_stages(args::Ptr{NativeArgs}, source::Cstring, handle::Ptr{Int}) =
    products_handle(native_stages, args, source, handle)

"The right-hand side, for as many threads as will ask."
function c_native_pool(args::Ptr{NativeArgs}, source::Cstring, handle::Ptr{Int})
    return guarded() do
        a = unsafe_load(args)
        code = native_code(unsafe_string(source), a.workspace)
        T = a.double == 1 ? Float64 : Float32
        make() = native_rhs(T, code, a.table, a.n, a.np, a.sign, a.blocks)
        unsafe_store!(handle, keep!(RHSPool{T}(make, RHS{T}[])))
    end
end

"A right-hand side that calls a user's Julia function; `pool`: for as many threads as will ask."
function source_handle(args::Ptr{SourceArgs}, texts, handle::Ptr{Int}, pool::Bool)
    return guarded() do
        a = unsafe_load(args)
        T = a.double == 1 ? Float64 : Float32
        spec = SourceSpec(a, map(unsafe_string, texts)...)
        made = Base.invokelatest(source_pool, T, a, spec)
        unsafe_store!(handle, keep!(pool ? made : first(members(made, 1))))
    end
end

c_source_rhs(args::Ptr{SourceArgs}, f::Cstring, vjp::Cstring, jac::Cstring, structure::Cstring, handle::Ptr{Int}) =
    source_handle(args, (f, vjp, jac, structure), handle, false)
c_source_pool(args::Ptr{SourceArgs}, f::Cstring, vjp::Cstring, jac::Cstring, structure::Cstring, handle::Ptr{Int}) =
    source_handle(args, (f, vjp, jac, structure), handle, true)

"One call of a right-hand side; `what` is one of CALL_F, ..."
function c_call_rhs(
        handle::Int, what::Int, out::Ptr{Cvoid}, out_p::Ptr{Cvoid}, v::Ptr{Cvoid}, u::Ptr{Cvoid}, t::Float64
    )
    return guarded() do
        r = object(handle)
        T = eltype(r.p)
        Base.invokelatest(call_rhs, r, what, Ptr{T}(out), Ptr{T}(out_p), Ptr{T}(v), Ptr{T}(u), t)
    end
end

function c_independent(args::Ptr{IndependentArgs}, report::Ptr{IndependentReport})
    return guarded() do
        unsafe_store!(report, Base.invokelatest(independent, unsafe_load(args))::IndependentReport)
    end
end

function c_independent_adjoint(args::Ptr{IndependentAdjointArgs}, report::Ptr{IndependentAdjointReport})
    return guarded() do
        unsafe_store!(report, Base.invokelatest(independent_adjoint, unsafe_load(args))::IndependentAdjointReport)
    end
end

"Handle of what an expression makes: a solver or a sensealg."
function c_construct(packages::Cstring, code::Cstring, handle::Ptr{Int})
    return guarded() do
        unsafe_store!(handle, keep!(construct(unsafe_string(packages), unsafe_string(code))))
    end
end

function c_solve(args::Ptr{SolveArgs}, report::Ptr{SolveReport})
    return guarded() do
        unsafe_store!(report, Base.invokelatest(forward, unsafe_load(args))::SolveReport)
    end
end

function c_solve_until(args::Ptr{SolveArgs}, until::Ptr{UntilArgs}, report::Ptr{SolveReport})
    return guarded() do
        unsafe_store!(report, Base.invokelatest(forward_until, unsafe_load(args), unsafe_load(until))::SolveReport)
    end
end

function c_adjoint(args::Ptr{AdjointArgs}, report::Ptr{AdjointReport})
    return guarded() do
        unsafe_store!(report, Base.invokelatest(adjoint, unsafe_load(args))::AdjointReport)
    end
end

function c_dense_output(handle::Int, ts::Ptr{Float64}, nt::Int, order::Int, out::Ptr{Cvoid})
    return guarded() do
        s = object(handle)::Forward
        τs = s.rhs.sign .* unsafe_wrap(Vector{Float64}, ts, nt)
        Base.invokelatest(dense_output!, s, out, τs, order)
    end
end

function c_steps(handle::Int, ts::Ptr{Float64}, out::Ptr{Cvoid})
    return guarded(() -> steps!(object(handle)::Forward, ts, out))
end

c_release(handle::Int) = guarded(() -> release!(handle))

"Evaluate code in PyJODE and leave what it shows in `MESSAGE`: for tests and `pyjode doctor`."
function c_eval(code::Cstring)
    return guarded() do
        MESSAGE[] = string(Core.eval(@__MODULE__, Meta.parseall(unsafe_string(code))))
    end
end

"Whom right-hand sides tell the time from now on (see `Watcher`); two C_NULL: nobody."
c_watch(callable::Ptr{Cvoid}, t::Ptr{Float64}) = guarded(() -> (WATCHER.callable = callable; WATCHER.t = t))

"Copy of `MESSAGE`, cut to `size` bytes; returns its full length in bytes."
function c_message(buffer::Ptr{UInt8}, size::Int)
    bytes = codeunits(MESSAGE[])
    GC.@preserve bytes unsafe_copyto!(buffer, pointer(bytes), min(size, length(bytes)))
    return length(bytes)
end

"Addresses from Python in the order of `PythonAPI`'s fields; where it finds a raised exception."
function c_connect_python(api::Ptr{Ptr{Cvoid}})
    for i in 1:fieldcount(PythonAPI)
        setfield!(PYTHON, i, unsafe_load(api, i))
    end
    return pointer(RAISED)
end

"The C functions by name: the Julia function, what it returns, what it takes."
const C_FUNCTIONS = (
    connect_python = (:c_connect_python, Ptr{Ptr{Cvoid}}, (Ptr{Ptr{Cvoid}},)),
    rhs = (:c_rhs, Cint, (Ptr{RHSArgs}, Ptr{Int})),
    native_rhs = (:c_native_rhs, Cint, (Ptr{NativeArgs}, Cstring, Ptr{Int})),
    native_second = (:c_native_second, Cint, (Ptr{NativeArgs}, Cstring, Ptr{Int})),
    native_stages = (:c_native_stages, Cint, (Ptr{NativeArgs}, Cstring, Ptr{Int})),
    native_pool = (:c_native_pool, Cint, (Ptr{NativeArgs}, Cstring, Ptr{Int})),
    source_rhs = (:c_source_rhs, Cint, (Ptr{SourceArgs}, Cstring, Cstring, Cstring, Cstring, Ptr{Int})),
    source_pool = (:c_source_pool, Cint, (Ptr{SourceArgs}, Cstring, Cstring, Cstring, Cstring, Ptr{Int})),
    call_rhs = (:c_call_rhs, Cint, (Int, Int, Ptr{Cvoid}, Ptr{Cvoid}, Ptr{Cvoid}, Ptr{Cvoid}, Float64)),
    independent = (:c_independent, Cint, (Ptr{IndependentArgs}, Ptr{IndependentReport})),
    independent_adjoint = (:c_independent_adjoint, Cint, (Ptr{IndependentAdjointArgs}, Ptr{IndependentAdjointReport})),
    construct = (:c_construct, Cint, (Cstring, Cstring, Ptr{Int})),
    solve = (:c_solve, Cint, (Ptr{SolveArgs}, Ptr{SolveReport})),
    solve_until = (:c_solve_until, Cint, (Ptr{SolveArgs}, Ptr{UntilArgs}, Ptr{SolveReport})),
    adjoint = (:c_adjoint, Cint, (Ptr{AdjointArgs}, Ptr{AdjointReport})),
    dense_output = (:c_dense_output, Cint, (Int, Ptr{Float64}, Int, Int, Ptr{Cvoid})),
    steps = (:c_steps, Cint, (Int, Ptr{Float64}, Ptr{Cvoid})),
    release = (:c_release, Cint, (Int,)),
    watch = (:c_watch, Cint, (Ptr{Cvoid}, Ptr{Float64})),
    eval = (:c_eval, Cint, (Cstring,)),
    message = (:c_message, Int, (Ptr{UInt8}, Int)),
)

# Their addresses, for ctypes.
@eval function entry_points()
    return Dict{String, UInt}(
        $((
            :($(string(name)) => UInt(@cfunction($f, $returned, ($(taken...),))))
            for (name, (f, returned, taken)) in pairs(C_FUNCTIONS)
        )...)
    )
end
