# Work on several of Julia's threads, from whichever thread Python entered by.

"Set while a crew works: the only thread that asks Python for signals, for the others do not hold a Python thread state."
const POLLER = Ref(0)

"Whether the crew at work is to stop: one of it failed, or Ctrl-C."
const STOPPED = Threads.Atomic{Bool}(false)

"A thread of a crew that stops because another one failed."
struct Stopped <: Exception end

mutable struct Crew
    @atomic open::Bool
    @atomic inside::Int
    @atomic next::Int
    const lock::Threads.SpinLock
    failure::Any
end

"""
    crew(work, threads, items, chunk)

`work(worker, range)` for ranges of at most `chunk` that together are `1:items`, on this thread (worker 1) and up to
`threads - 1` others of Julia's, whoever is free next. Calls of one worker never overlap. Rethrows the first exception.

Not `Threads.@threads`: that waits in the scheduler, which may put a part on the thread that Python's main thread is, and
that one may be in Python for as long as it likes. Here the calling thread works itself and waits only for threads that
have begun.
"""
function crew(work, threads::Int, items::Int, chunk::Int)
    threads = clamp(threads, 1, min(Threads.threadpoolsize(:default), cld(items, chunk)))
    c = Crew(true, 0, 1, Threads.SpinLock(), nothing)
    STOPPED[] = false
    POLLER[] = threads == 1 ? 0 : Threads.threadid()
    try
        for worker in 2:threads
            Threads.@spawn :default help(work, c, worker, items, chunk)
        end
        take_part(work, c, 1, items, chunk)
        @atomic c.open = false
        spins = 0
        while (@atomic c.inside) > 0
            GC.safepoint()
            ccall(:jl_cpu_pause, Cvoid, ())
            (spins += 1) % 1024 == 0 && wait_a_little(c)
        end
    finally
        POLLER[] = 0
    end
    c.failure === nothing || throw(c.failure)
    return nothing
end

function wait_a_little(c::Crew)
    Libc.systemsleep(5.0e-5)
    try
        poll()
    catch e
        fail!(c, e)
    end
    return nothing
end

function help(work, c::Crew, worker::Int, items::Int, chunk::Int)
    @atomic c.inside += 1
    (@atomic c.open) && take_part(work, c, worker, items, chunk)
    @atomic c.inside -= 1
    return nothing
end

function take_part(work, c::Crew, worker::Int, items::Int, chunk::Int)
    try
        while !STOPPED[]
            from = (@atomic c.next += chunk) - chunk
            from > items && break
            work(worker, from:min(from + chunk - 1, items))
        end
    catch e
        fail!(c, e)
    end
    return nothing
end

function fail!(c::Crew, e)
    lock(c.lock) do
        # What the others throw when they are told to stop is no news.
        if c.failure === nothing || c.failure isa Stopped
            c.failure = e isa Union{PythonRaised, Stopped, NotRungeKutta} ? e : CapturedException(e, catch_backtrace())
        end
    end
    STOPPED[] = true
    return nothing
end
