# Loads, stores and hints for generated loops; short vectors for the matrix kernels.

"Element `k` (from 0) of memory at `p`."
@inline ld(p::Ptr, k::Int) = unsafe_load(p, k + 1)
@inline st(p::Ptr{T}, x, k::Int) where {T} = unsafe_store!(p, convert(T, x), k + 1)

"""
Bytes of a vector register, and how many such registers there are: what loops and tiles are cut to. Longer vectors than
the processor has are split by LLVM, which then has too few registers for a tile; masked ends cost more than they save
where masks are no registers of their own (AVX2).
"""
const REGISTER_BYTES, REGISTERS, MASKS = let cpu = Base.BinaryPlatforms.CPUID
    x86 = Sys.ARCH in (:x86_64, :i686)
    x86 && cpu.test_cpu_feature(cpu.JL_X86_avx512f) ? (64, 32, true) :
        x86 && cpu.test_cpu_feature(cpu.JL_X86_avx) ? (32, 16, false) : x86 ? (16, 16, false) : (16, 32, false)
end

"""
    @vector width ragged

At the end of a loop's body: LLVM may reorder its iterations, should vectorize them `width` wide, and where the number of
iterations is `ragged` (no multiple of it) do the last ones with a mask rather than one by one.
"""
macro vector(width, ragged)
    # Float32 lanes; twice as many Float64 as fit are two registers, which a loop has room for.
    lanes = Base.min(width, REGISTER_BYTES ÷ 4)
    hints = Any[Symbol("julia.simdloop"), Symbol("julia.ivdep"), (Symbol("llvm.loop.vectorize.width"), lanes)]
    ragged && MASKS && push!(hints, (Symbol("llvm.loop.vectorize.predicate.enable"), true))
    return Expr(:loopinfo, hints...)
end

"An index as torch counts: negative ones from the end. `n` = 0: it is known to be right."
@inline function position(i, n::Int)
    n == 0 && return Int(i)
    k = ifelse(i < 0, Int(i) + n, Int(i))
    0 <= k < n || throw(BoundsError(1:n, k + 1))
    return k
end

const Vec{W, T} = NTuple{W, VecElement{T}}

"Lanes of a vector register, at least four of them."
lanes(::Type{T}) where {T} = Base.max(REGISTER_BYTES ÷ sizeof(T), 4)

llvm_name(::Type{Float32}) = "float"
llvm_name(::Type{Float64}) = "double"
suffix(::Type{T}) where {T} = T === Float32 ? "f32" : "f64"
llvm_type(W, T) = "<$W x $(llvm_name(T))>"
pointer_type(W, T) = VERSION < v"1.12-" ? llvm_type(W, T) * "*" : "ptr"
pointer_suffix(W, T) = VERSION < v"1.12-" ? "p0v$W$(suffix(T))" : "p0"
splat_mask(W) = """
%one = insertelement <$W x i32> undef, i32 %1, i32 0
%all = shufflevector <$W x i32> %one, <$W x i32> undef, <$W x i32> zeroinitializer
%mask = icmp ult <$W x i32> <$(join(("i32 $i" for i in 0:(W - 1)), ", "))>, %all
"""

"The first `n` lanes from memory, the rest zero."
@generated function vload(::Type{Vec{W, T}}, p::Ptr{T}, n::Int) where {W, T}
    v, ptr, name = llvm_type(W, T), pointer_type(W, T), "llvm.masked.load.v$W$(suffix(T)).$(pointer_suffix(W, T))"
    ir = """
    declare $v @$name($ptr, i32, <$W x i1>, $v)
    define $v @entry(i64 %0, i32 %1) alwaysinline {
    $(splat_mask(W))
    %p = inttoptr i64 %0 to $ptr
    %x = call $v @$name($ptr %p, i32 $(sizeof(T)), <$W x i1> %mask, $v zeroinitializer)
    ret $v %x
    }
    """
    return :(Base.llvmcall(($ir, "entry"), Vec{W, T}, Tuple{UInt64, Int32}, UInt64(p), n % Int32))
end

@generated function vload(::Type{Vec{W, T}}, p::Ptr{T}) where {W, T}
    v, ptr = llvm_type(W, T), pointer_type(W, T)
    type = VERSION < v"1.12-" ? "$v, $ptr" : "$v, ptr"
    ir = """
    %p = inttoptr i64 %0 to $ptr
    %x = load $type %p, align $(sizeof(T))
    ret $v %x
    """
    return :(Base.llvmcall($ir, Vec{W, T}, Tuple{UInt64}, UInt64(p)))
end

@generated function vstore(p::Ptr{T}, x::Vec{W, T}, n::Int) where {W, T}
    v, ptr, name = llvm_type(W, T), pointer_type(W, T), "llvm.masked.store.v$W$(suffix(T)).$(pointer_suffix(W, T))"
    ir = """
    declare void @$name($v, $ptr, i32, <$W x i1>)
    define void @entry(i64 %0, i32 %1, $v %2) alwaysinline {
    $(splat_mask(W))
    %p = inttoptr i64 %0 to $ptr
    call void @$name($v %2, $ptr %p, i32 $(sizeof(T)), <$W x i1> %mask)
    ret void
    }
    """
    return :(Base.llvmcall(($ir, "entry"), Cvoid, Tuple{UInt64, Int32, Vec{W, T}}, UInt64(p), n % Int32, x))
end

@generated function vstore(p::Ptr{T}, x::Vec{W, T}) where {W, T}
    v, ptr = llvm_type(W, T), pointer_type(W, T)
    target = VERSION < v"1.12-" ? "$ptr %p" : "ptr %p"
    ir = """
    %p = inttoptr i64 %0 to $ptr
    store $v %1, $target, align $(sizeof(T))
    ret void
    """
    return :(Base.llvmcall($ir, Cvoid, Tuple{UInt64, Vec{W, T}}, UInt64(p), x))
end

@inline splat(::Type{Vec{W, T}}, x::T) where {W, T} = ntuple(_ -> VecElement(x), Val(W))

@generated function vfma(a::Vec{W, T}, b::Vec{W, T}, c::Vec{W, T}) where {W, T}
    return :(ccall($("llvm.fma.v$W$(suffix(T))"), llvmcall, Vec{W, T}, (Vec{W, T}, Vec{W, T}, Vec{W, T}), a, b, c))
end

@generated function vadd(a::Vec{W, T}, b::Vec{W, T}) where {W, T}
    v = llvm_type(W, T)
    ir = "%x = fadd $v %0, %1\nret $v %x"
    return :(Base.llvmcall($ir, Vec{W, T}, Tuple{Vec{W, T}, Vec{W, T}}, a, b))
end

"Lanes of `a` (counted from 0) and, from W on, of `b`."
@generated function shuffle(a::Vec{W, T}, b::Vec{W, T}, ::Val{picks}) where {W, T, picks}
    v, L = llvm_type(W, T), length(picks)
    list = join(("i32 $i" for i in picks), ", ")
    ir = "%x = shufflevector $v %0, $v %1, <$L x i32> <$list>\nret $(llvm_type(L, T)) %x"
    return :(Base.llvmcall($ir, Vec{$L, T}, Tuple{Vec{W, T}, Vec{W, T}}, a, b))
end

"The sums of the lanes of four vectors, as one vector of four."
@generated function sums(a::Vec{W, T}, b::Vec{W, T}, c::Vec{W, T}, d::Vec{W, T}) where {W, T}
    even = Tuple(i + s for i in 0:2:(W - 1) for s in (0, W))
    odd = even .+ 1
    low = Tuple(i + s + j for i in 0:4:(W - 1) for s in (0, W) for j in (0, 1))
    high = low .+ 2
    code = quote
        ab = vadd(shuffle(a, b, Val($even)), shuffle(a, b, Val($odd)))
        cd = vadd(shuffle(c, d, Val($even)), shuffle(c, d, Val($odd)))
        x = vadd(shuffle(ab, cd, Val($low)), shuffle(ab, cd, Val($high)))
    end
    n = W
    while n > 4
        n ÷= 2
        first, second = Tuple(0:(n - 1)), Tuple(n:(2n - 1))
        push!(code.args, :(x = vadd(shuffle(x, x, Val($first)), shuffle(x, x, Val($second)))))
    end
    push!(code.args, :(return x))
    return code
end
