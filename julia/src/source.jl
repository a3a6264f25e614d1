# A user's own Julia source: evaluated in a module of its own, and what went wrong in it, by line.

"Something is wrong with a user's source at `line` (0: nowhere in particular)."
struct SourceError <: Exception
    line::Int
    message::String
end

"With the text of the line."
function SourceError(line::Int, message::String, file::Symbol)
    for (text, its_file) in SOURCE_FILES
        its_file == file || continue
        lines = split(text, '\n')
        1 <= line <= length(lines) && return SourceError(line, "$message\n  $line | $(lines[line])")
    end
    return SourceError(line, message)
end
Base.showerror(io::IO, e::SourceError) = print(io, e.line > 0 ? "line $(e.line): " : "", e.message)

"Name of the file that the code of every user's source says it comes from, and a number."
const SOURCE_FILE = "JuliaFunction#"

"What one source text evaluates to."
struct Source
    text::String
    file::Symbol
    f::Any
    "Whether it has variables of its own that calls can change: then each thread evaluates it for itself."
    has_state::Bool
end

const SOURCE_FILES = Dict{String, Symbol}()
const SOURCES = Dict{String, Source}()

"""
    user_function(text)

The function a text stands for: a function expression, a file of definitions whose last is the function (or names it),
or just a body in `u`, `p`, `t` (and `du`, which makes it an in-place one). Evaluated once a text.
"""
user_function(text::String) = get!(() -> evaluate_source(text), SOURCES, text)

"The same for one more thread."
another(s::Source) = s.has_state ? evaluate_source(s.text) : s

function evaluate_source(text::String)
    file = get!(() -> Symbol(SOURCE_FILE, length(SOURCE_FILES) + 1), SOURCE_FILES, text)
    parsed = Meta.parseall(text; filename = string(file))
    for (x, line) in statements(parsed, file)
        x isa Expr && x.head in (:error, :incomplete) && throw(parse_error(x, line))
    end
    m = Module(:JuliaFunction)
    value = nothing
    for (x, line) in statements(as_function(parsed, file), file)
        try
            value = Core.eval(m, Expr(:toplevel, line, x))
        catch e
            e isa SourceError && rethrow()
            at, _ = error_line(e, catch_backtrace(), file)
            throw(SourceError(at > 0 ? at : line.line, said(unwrap(e)), file))
        end
    end
    value isa Function || throw(
        SourceError(0, "the source ends in $(value === nothing ? "nothing" : "a value of type $(typeof(value))"), not in a function")
    )
    return Source(text, file, value, has_state(m, value))
end

"Top-level expressions with where they begin."
function statements(parsed::Expr, file::Symbol)
    found, line = Tuple{Any, LineNumberNode}[], LineNumberNode(1, file)
    for x in parsed.args
        x isa LineNumberNode ? (line = x) : push!(found, (x, line))
    end
    return found
end

function parse_error(x::Expr, line::LineNumberNode)
    text = x.args[1] isa Exception ? sprint(showerror, x.args[1]) : string(x.args[1])
    found = match(r":(\d+):\d+", text)
    at = found === nothing ? line.line : parse(Int, found[1])
    return SourceError(at, replace(text, r"# Error @ \S+\n" => "", "ParseError:\n" => "syntax error:\n"))
end

"A text that is only a body becomes a function of it; others stay as they are."
function as_function(parsed::Expr, file::Symbol)
    any(x -> mentions(x, (:u, :du)), first.(statements(parsed, file))) || return parsed
    outside, body, line = Any[], Any[], LineNumberNode(1, file)
    for (x, at) in statements(parsed, file)
        apart = x isa Expr && (x.head in (:using, :import, :const) || is_definition(x))
        append!(apart ? outside : body, (at, x))
        isempty(body) || (line = line.line == 1 ? body[1] : line)
    end
    in_place = any(x -> mentions(x, (:du,)), body)
    arguments = in_place ? Expr(:tuple, :du, :u, :p, :t) : Expr(:tuple, :u, :p, :t)
    in_place && push!(body, :(return nothing))
    return Expr(:toplevel, outside..., line, Expr(:function, arguments, Expr(:block, body...)))
end

is_definition(x) = x isa Expr && (
    x.head in (:function, :->, :macro, :struct, :module) || (x.head == :(=) && x.args[1] isa Expr && x.args[1].head in (:call, :where, :(::)))
)

"Whether one of `names` is used outside of any function's definition."
function mentions(x, names)
    x isa Symbol && return x in names
    x isa Expr && !is_definition(x) || return false
    x.head == :macrocall && return any(y -> mentions(y, names), x.args[3:end])
    return any(y -> mentions(y, names), x.args)
end

function has_state(m::Module, f)
    isbits(f) || sizeof(f) == 0 || return true
    return any(names(m; all = true)) do name
        isdefined(m, name) || return false
        x = getglobal(m, name)
        !(x isa Union{Function, Type, Module} || isbits(x) || x isa Union{String, Symbol})
    end
end

"3 or 4: `f(u, p, t)` or `f!(du, u, p, t)`."
function argument_count(f, wanted = (4, 3), usage = "f(u, p, t) or f!(du, u, p, t)")
    counts = [m.nargs - 1 for m in methods(f)]
    for n in wanted
        n in counts && return n
    end
    throw(SourceError(0, "the function takes $(join(unique(counts), " or ")) arguments; it must be $usage"))
end

"What was thrown, out of what Julia wraps it in."
unwrap(e) = e isa LoadError ? unwrap(e.error) : e isa CapturedException ? unwrap(e.ex) : e

function said(e)
    text = sprint(showerror, e)
    lines = split(text, '\n')
    text = join(first(lines, 6), '\n')
    occursin("ForwardDiff.Dual", text) && (
        text *= "\n(derivatives are taken by calling the function with dual numbers in place of Float64: let arguments be " *
            "any Real, and allocate with similar(u) or zeros(eltype(u), ...), parameters included)"
    )
    return text
end

frames(e, trace) = e isa CapturedException ? [f for (f, _) in e.processed_bt] : stacktrace(trace)

"The innermost line of a user's source that an exception went through, and its file; 0 where there is none."
function error_line(e, trace, file::Union{Symbol, Nothing} = nothing)
    for frame in frames(e, trace)
        # Julia shows files that are nowhere as in the working folder.
        name = basename(string(frame.file))
        mine = file === nothing ? startswith(name, SOURCE_FILE) : name == string(file)
        mine && return Int(frame.line), Symbol(name)
    end
    return 0, :none
end

"An exception as a `SourceError`, if it comes from a user's source; else `nothing`."
function source_error(e, trace)
    e isa CapturedException && e.ex isa SourceError && return e.ex
    e isa SourceError && return e
    line, file = error_line(e, trace)
    return line == 0 ? nothing : SourceError(line, said(unwrap(e)), file)
end
