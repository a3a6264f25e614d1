# Small matrix products on strided memory: c = a b + start. Each operand is a pointer and the strides of its rows and
# columns; `start` may be null. OpenBLAS packs its operands, which costs more than the whole product at these sizes.

# Most vectors of a tile of 1, 2, 3, 4 rows: its accumulators, a row of b and one entry of a stay in registers, and there
# are enough of them that the products do not wait for each other.
const TILE_M = 4
const TILE_N = REGISTERS >= 32 ? (8, 8, 4, 4) : (8, 4, 3, 3)
const DOT_ROWS = REGISTERS >= 32 ? 4 : 2

"""
    matmul!(c, cm, cn, a, am, ak, b, bk, bn, s, sm, sn, m, n, k)

c[i, j] = s[i, j] + sum over l of a[i, l] b[l, j], for m x k and k x n operands.
"""
@noinline function matmul!(
        c::Ptr{T}, cm::Int, cn::Int, a::Ptr{T}, am::Int, ak::Int, b::Ptr{T}, bk::Int, bn::Int,
        s::Ptr{T}, sm::Int, sn::Int, m::Int, n::Int, k::Int
    ) where {T <: Union{Float32, Float64}}
    if cn == 1 && (bn == 1 || n == 1)
        rows!(c, cm, a, am, ak, b, bk, s, sm, sn, m, n, k)
    elseif cm == 1 && (am == 1 || m == 1)
        rows!(c, cn, b, bn, bk, a, ak, s, sn, sm, n, m, k)
    elseif cn == 1 && ak == 1 && bk == 1 && k > 4
        dots!(c, cm, a, am, b, bn, s, sm, sn, m, n, k)
    elseif cm == 1 && ak == 1 && bk == 1 && k > 4
        dots!(c, cn, b, bn, a, am, s, sn, sm, n, m, k)
    else
        plain!(c, cm, cn, a, am, ak, b, bk, bn, s, sm, sn, m, n, k)
    end
    return nothing
end

function plain!(c::Ptr{T}, cm, cn, a, am, ak, b, bk, bn, s, sm, sn, m, n, k) where {T}
    for i in 0:(m - 1)
        row = c + i * cm * sizeof(T)
        for j in 0:(n - 1)
            st(row, s == C_NULL ? zero(T) : ld(s, i * sm + j * sn), j * cn)
        end
        for l in 0:(k - 1)
            x = ld(a, i * am + l * ak)
            j = 0
            while j < n
                st(row, muladd(x, ld(b, l * bk + j * bn), ld(row, j * cn)), j * cn)
                j += 1
                @vector 8 true
            end
        end
    end
    return nothing
end

# Columns of c contiguous, and those of b: vectors along them.

function rows!(c::Ptr{T}, cm, a, am, ak, b, bk, s, sm, sn, m, n, k) where {T}
    W, size = lanes(T), sizeof(T)
    most = TILE_N[Base.min(m, TILE_M)]
    j = 0
    while j < n
        # As many to each tile as to the others: a tile of few waits for its own sums.
        left = cld(n - j, W)
        vectors = cld(left, cld(left, most))
        # The last vector of a row starts early rather than end in a masked store, which is slow on many processors;
        # what two vectors share is computed twice.
        last = Base.min(W, n - j - (vectors - 1) * W)
        early = n < W ? 0 : W - last
        cj, bj, sj = c + j * size, b + j * size, s == C_NULL ? s : s + j * sn * size
        if n < W
            columns!(Val(true), Val(1), cj, cm, a, am, ak, bj, bk, sj, sm, sn, m, k, last)
        else
            Base.Cartesian.@nif 8 v -> (vectors == v) v -> (
                columns!(Val(false), Val(v), cj, cm, a, am, ak, bj, bk, sj, sm, sn, m, k, early)
            )
        end
        j += vectors * W
    end
    return nothing
end

"All rows of N vectors of columns, in tiles as high as there are registers for."
@generated function columns!(masked, ::Val{N}, c::Ptr{T}, cm, a, am, ak, b, bk, s, sm, sn, m, k, ragged) where {N, T}
    most, size = something(findlast(>=(N), TILE_N), 1), sizeof(T)
    tile(h) = :(
        tile!(
            masked, Val($h), Val(N), c + i * cm * $size, cm, a + i * am * $size, am, ak, b, bk,
            s == C_NULL ? s : s + i * sm * $size, sm, sn, k, ragged
        )
    )
    rest = [:(if i + $h <= m; $(tile(h)); i += $h; end) for h in (most - 1):-1:1]
    return quote
        i = 0
        while i + $most <= m
            $(tile(most))
            i += $most
        end
        $(rest...)
        return nothing
    end
end

"""
A tile of M rows by N vectors. Masked: of its one vector, the first `ragged` lanes. Not masked: its last vector starts
`ragged` lanes early.
"""
@generated function tile!(
        ::Val{masked}, ::Val{M}, ::Val{N}, c::Ptr{T}, cm, a, am, ak, b, bk, s, sm, sn, k, ragged
    ) where {masked, M, N, T}
    W, size = lanes(T), sizeof(T)
    V = Vec{W, T}
    acc(i, v) = Symbol("acc_", i, "_", v)
    at(v) = v == N && !masked ? :($((v - 1) * W) - ragged) : :($((v - 1) * W))
    mask = masked ? (:ragged,) : ()
    load(p) = Expr(:call, :vload, V, p, mask...)
    code = quote
        if s == C_NULL
            $((:($(acc(i, v)) = splat($V, zero(T))) for i in 1:M for v in 1:N)...)
        elseif sn == 1
            $((:($(acc(i, v)) = $(load(:(s + ($(i - 1) * sm + $(at(v))) * $size)))) for i in 1:M for v in 1:N)...)
        elseif sn == 0
            $((:($(acc(i, v)) = splat($V, ld(s, $(i - 1) * sm))) for i in 1:M for v in 1:N)...)
        else
            $((:($(acc(i, v)) = strided($V, s + ($(i - 1) * sm + $(at(v)) * sn) * $size, sn, $(masked ? :ragged : W))) for i in 1:M for v in 1:N)...)
        end
        for l in 0:(k - 1)
            $((:($(Symbol("b_", v)) = $(load(:(b + (l * bk + $(at(v))) * $size)))) for v in 1:N)...)
            $((quote
                x = splat($V, ld(a, $(i - 1) * am + l * ak))
                $((:($(acc(i, v)) = vfma(x, $(Symbol("b_", v)), $(acc(i, v)))) for v in 1:N)...)
            end for i in 1:M)...)
        end
        $((Expr(:call, :vstore, :(c + ($(i - 1) * cm + $(at(v))) * $size), acc(i, v), mask...) for i in 1:M for v in 1:N)...)
        return nothing
    end
    return code
end

@inline strided(::Type{Vec{W, T}}, p, stride, n) where {W, T} =
    ntuple(i -> VecElement(i <= n ? ld(p, (i - 1) * stride) : zero(T)), Val(W))

# Rows of a and columns of b contiguous: dot products, four columns at once.

function dots!(c::Ptr{T}, cm, a, am, b, bn, s, sm, sn, m, n, k) where {T}
    size = sizeof(T)
    i = 0
    while i < m
        height = m - i >= DOT_ROWS ? DOT_ROWS : 1
        j = 0
        while j < n
            width = Base.min(4, n - j)
            ci, ai = c + (i * cm + j) * size, a + i * am * size
            si = s == C_NULL ? s : s + (i * sm + j * sn) * size
            if height == DOT_ROWS
                dot_tile!(Val(DOT_ROWS), ci, cm, ai, am, b + j * bn * size, bn, si, sm, sn, k, width)
            else
                dot_tile!(Val(1), ci, cm, ai, am, b + j * bn * size, bn, si, sm, sn, k, width)
            end
            j += 4
        end
        i += height
    end
    return nothing
end

@generated function dot_tile!(
        ::Val{M}, c::Ptr{T}, cm, a, am, b, bn, s, sm, sn, k, width
    ) where {M, T}
    W, size = lanes(T), sizeof(T)
    V = Vec{W, T}
    acc(i, j) = Symbol("acc_", i, "_", j)
    step(loads) = quote
        $((Expr(:(=), Symbol("b_", j), Expr(:call, :vload, V, :($(Symbol("p_", j)) + l * $size), loads...)) for j in 1:4)...)
        $((quote
            x = $(Expr(:call, :vload, V, :(a + ($(i - 1) * am + l) * $size), loads...))
            $((:($(acc(i, j)) = vfma(x, $(Symbol("b_", j)), $(acc(i, j)))) for j in 1:4)...)
        end for i in 1:M)...)
    end
    return quote
        # Columns past the end repeat the last one, and are not stored.
        $((:($(Symbol("p_", j)) = b + Base.min($(j - 1), width - 1) * bn * $size) for j in 1:4)...)
        $((:($(acc(i, j)) = splat($V, zero(T))) for i in 1:M for j in 1:4)...)
        l = 0
        while l + $W <= k
            $(step(()))
            l += $W
        end
        if l < k
            rest = k - l
            $(step((:rest,)))
        end
        $((quote
            x = sums($((acc(i, j) for j in 1:4)...))
            if s != C_NULL
                x = vadd(x, strided(Vec{4, T}, s + $(i - 1) * sm * $size, sn, width))
            end
            if width == 4
                vstore(c + $(i - 1) * cm * $size, x)
            else
                for j in 1:width
                    st(c, x[j].value, $(i - 1) * cm + j - 1)
                end
            end
        end for i in 1:M)...)
        return nothing
    end
end

# Transposes, in square blocks of registers.

"dst[j, i] = src[i, j] for a rows x cols source whose columns are contiguous and whose rows are `ld` apart."
@noinline function transpose!(dst::Ptr{T}, src::Ptr{T}, ld::Int, rows::Int, cols::Int) where {T}
    W, size = lanes(T), sizeof(T)
    if rows < W || cols < W
        for i in 0:(rows - 1), j in 0:(cols - 1)
            st(dst, unsafe_load(src, i * ld + j + 1), j * rows + i)
        end
        return nothing
    end
    # The last blocks start early: what two blocks share is copied twice.
    for i in 0:W:(rows - 1), j in 0:W:(cols - 1)
        i0, j0 = Base.min(i, rows - W), Base.min(j, cols - W)
        transpose_block!(dst + (j0 * rows + i0) * size, src + (i0 * ld + j0) * size, rows, ld)
    end
    return nothing
end

@generated function transpose_block!(dst::Ptr{T}, src::Ptr{T}, dst_ld, src_ld) where {T}
    W, size = lanes(T), sizeof(T)
    x(i) = Symbol("x_", i)
    code = quote
        $((:($(x(i)) = vload(Vec{$W, T}, src + $i * src_ld * $size)) for i in 0:(W - 1))...)
    end
    h = W ÷ 2
    while h >= 1
        # Swap the off-diagonal blocks of size h of each pair of rows.
        first = Tuple(iszero(l & h) ? l : l - h + W for l in 0:(W - 1))
        second = Tuple(iszero(l & h) ? l + h : l + W for l in 0:(W - 1))
        for i in 0:(W - 1)
            iszero(i & h) || continue
            a, b = x(i), x(i + h)
            push!(code.args, :(($a, $b) = (shuffle($a, $b, Val($first)), shuffle($a, $b, Val($second)))))
        end
        h ÷= 2
    end
    for i in 0:(W - 1)
        push!(code.args, :(vstore(dst + $i * dst_ld * $size, $(x(i)))))
    end
    push!(code.args, :(return nothing))
    return code
end

# Large ones: BLAS through the library every Julia has, on column-major transposes.

for (T, name) in ((Float32, :sgemv_64_), (Float64, :dgemv_64_))
    @eval function gemv!(flag, m, n, a::Ptr{$T}, lda, x, incx, y, incy)
        one_ = Ref(one($T))
        return ccall(
            ($(QuoteNode(name)), Base.libblas_name), Cvoid,
            (
                Ref{UInt8}, Ref{Int64}, Ref{Int64}, Ref{$T}, Ptr{$T}, Ref{Int64}, Ptr{$T}, Ref{Int64}, Ref{$T}, Ptr{$T},
                Ref{Int64}, Clong,
            ),
            flag, m, n, one_, a, lda, x, incx, one_, y, incy, 1
        )
    end
end

for (T, name) in ((Float32, :sgemm_64_), (Float64, :dgemm_64_))
    @eval function gemm!(flags, m, n, k, a::Ptr{$T}, lda, b, ldb, c, ldc)
        one_ = Ref(one($T))
        return ccall(
            ($(QuoteNode(name)), Base.libblas_name), Cvoid,
            (
                Ref{UInt8}, Ref{UInt8}, Ref{Int64}, Ref{Int64}, Ref{Int64}, Ref{$T}, Ptr{$T}, Ref{Int64}, Ptr{$T},
                Ref{Int64}, Ref{$T}, Ptr{$T}, Ref{Int64}, Clong, Clong,
            ),
            flags[1], flags[2], m, n, k, one_, a, lda, b, ldb, one_, c, ldc, 1, 1
        )
    end
end

"Matrix times vector."
function big_vector!(c::Ptr{T}, cm, a::Ptr{T}, am, ak, b::Ptr{T}, bk, s::Ptr{T}, sm, m, k) where {T}
    for i in 0:(m - 1)
        st(c, s == C_NULL ? zero(T) : ld(s, i * sm), i * cm)
    end
    if ak == 1
        gemv!(UInt8('T'), k, m, a, Base.max(am, k), b, bk, c, cm)
    else
        gemv!(UInt8('N'), m, k, a, Base.max(ak, m), b, bk, c, cm)
    end
    return nothing
end

"As [`matmul!`](@ref), for sizes where packing pays."
@noinline function big_matmul!(
        c::Ptr{T}, cm::Int, cn::Int, a::Ptr{T}, am::Int, ak::Int, b::Ptr{T}, bk::Int, bn::Int,
        s::Ptr{T}, sm::Int, sn::Int, m::Int, n::Int, k::Int
    ) where {T}
    # BLAS knows neither a matrix with the same row again and again nor a vector of one entry: strides of 0.
    plain(x, y, rows, cols) = (y == 1 && (x >= cols || rows == 1)) || (x == 1 && (y >= rows || cols == 1))
    if n == 1 && plain(am, ak, m, k) && bk > 0
        return big_vector!(c, cm, a, am, ak, b, bk, s, sm, m, k)
    elseif m == 1 && plain(bk, bn, k, n) && ak > 0
        return big_vector!(c, cn, b, bn, bk, a, ak, s, sn, n, k)
    elseif !(cn == 1 && plain(am, ak, m, k) && plain(bk, bn, k, n)) || m == 1 || n == 1
        return matmul!(c, cm, cn, a, am, ak, b, bk, bn, s, sm, sn, m, n, k)
    end
    for i in 0:(m - 1)
        j = 0
        while j < n
            st(c, s == C_NULL ? zero(T) : ld(s, i * sm + j * sn), i * cm + j)
            j += 1
            @vector 16 true
        end
    end
    # cᵀ = bᵀ aᵀ
    flags = (bn == 1 ? UInt8('N') : UInt8('T'), ak == 1 ? UInt8('N') : UInt8('T'))
    # An axis of length 1 may have any stride; BLAS wants a leading dimension all the same.
    ldb = bn == 1 ? Base.max(bk, n) : Base.max(bn, k)
    lda = ak == 1 ? Base.max(am, k) : Base.max(ak, m)
    gemm!(flags, n, m, k, b, ldb, a, lda, c, Base.max(cm, n))
    return nothing
end

for T in (Float32, Float64)
    P, I = Ptr{T}, Int
    precompile(matmul!, (P, I, I, P, I, I, P, I, I, P, I, I, I, I, I))
    precompile(transpose!, (P, P, I, I, I))
    precompile(big_matmul!, (P, I, I, P, I, I, P, I, I, P, I, I, I, I, I))
end
