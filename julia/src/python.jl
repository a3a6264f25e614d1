# What PyJODE needs of CPython's C API. Python gives the addresses once (`connect_python!`): no Python package of Julia
# is needed for it, and a call costs what the C API costs.

mutable struct PythonAPI
    call_no_args::Ptr{Cvoid}
    as_void_ptr::Ptr{Cvoid}
    decref::Ptr{Cvoid}
    err_fetch::Ptr{Cvoid}
    check_signals::Ptr{Cvoid}
    gil_ensure::Ptr{Cvoid}
    gil_release::Ptr{Cvoid}
end

const PYTHON = PythonAPI(C_NULL, C_NULL, C_NULL, C_NULL, C_NULL, C_NULL, C_NULL)

"The Python exception that ended the last call: type, value, traceback (owned references)."
const RAISED = Ptr{Cvoid}[C_NULL, C_NULL, C_NULL]

"A Python exception was raised in a callback or by a signal handler; it waits in `RAISED`."
struct PythonRaised <: Exception end

function fetch_and_throw()
    GC.@preserve RAISED begin
        p = pointer(RAISED)
        ccall(
            PYTHON.err_fetch, Cvoid, (Ptr{Ptr{Cvoid}}, Ptr{Ptr{Cvoid}}, Ptr{Ptr{Cvoid}}),
            p, p + sizeof(Ptr{Cvoid}), p + 2 * sizeof(Ptr{Cvoid})
        )
    end
    throw(PythonRaised())
end

"Call a Python function of no arguments that returns an address. The caller holds the GIL."
function call_python(callable::Ptr{Cvoid})
    result = ccall(PYTHON.call_no_args, Ptr{Cvoid}, (Ptr{Cvoid},), callable)
    result == C_NULL && fetch_and_throw()
    address = ccall(PYTHON.as_void_ptr, Ptr{Cvoid}, (Ptr{Cvoid},), result)
    ccall(PYTHON.decref, Cvoid, (Ptr{Cvoid},), result)
    address == C_NULL && fetch_and_throw()
    return address
end

const POLL_INTERVAL = UInt64(50_000_000)
const NEXT_POLL = Ref(UInt64(0))

"Who wants to know how far a solve is: a Python callable, and where it reads the time. C_NULL: nobody."
mutable struct Watcher
    callable::Ptr{Cvoid}
    t::Ptr{Float64}
end
const WATCHER = Watcher(C_NULL, C_NULL)

"""
    poll(t = NaN)

Give Python's signal handlers a chance, at most every 50 ms, and tell the watcher that `t` is reached. Ctrl-C thus ends a
solve from inside the right-hand side, which every solver and every quadrature of an adjoint calls.
"""
@inline function poll(t::Float64 = NaN)
    now = time_ns()
    now < NEXT_POLL[] || check_signals(now, t)
    return nothing
end

@noinline function check_signals(now::UInt64, t::Float64)
    if POLLER[] != 0
        STOPPED[] && throw(Stopped())
        Threads.threadid() == POLLER[] || return nothing
    end
    NEXT_POLL[] = now + POLL_INTERVAL
    PYTHON.check_signals == C_NULL && return nothing
    state = ccall(PYTHON.gil_ensure, Cint, ())
    try
        ccall(PYTHON.check_signals, Cint, ()) == 0 || fetch_and_throw()
        if WATCHER.callable != C_NULL && !isnan(t)
            unsafe_store!(WATCHER.t, t)
            call_python(WATCHER.callable)
        end
    finally
        ccall(PYTHON.gil_release, Cvoid, (Cint,), state)
    end
    return nothing
end
