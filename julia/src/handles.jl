# Objects Python refers to by number. Python's gate lets one thread in at a time, so no lock here.

const OBJECTS = Dict{Int, Any}()
const LAST_HANDLE = Ref(0)

function keep!(object)
    handle = LAST_HANDLE[] += 1
    OBJECTS[handle] = object
    return handle
end

object(handle::Integer) = OBJECTS[handle]
release!(handle::Integer) = (delete!(OBJECTS, handle); nothing)
