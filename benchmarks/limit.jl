# The limit: what someone who knows these problems writes by hand in Julia, without pyjode. f and its vector-Jacobian
# product are given by hand, in place; the solves are OrdinaryDiffEq's; the gradient of the explicit solves is a reverse
# sweep through Tsit5's steps written out here, of the stiff ones SciMLSensitivity's GaussAdjoint.
#
# Each maker takes arrays and returns a closure (rtol, atol, with_gradient) -> (states, gradient, evaluations, steps);
# states have the time as their last axis, the gradient is by y0 and then by each parameter, each in row-major order.
module Limit

using ADTypes, LinearAlgebra, LoopVectorization, SciMLBase, SciMLSensitivity, StaticArrays
using OrdinaryDiffEqRosenbrock, OrdinaryDiffEqTsit5
using OrdinaryDiffEqTsit5.OrdinaryDiffEqCore: IController, PIController

# Tsitouras, Comput. Math. Appl. 62 (2011) 770-775: stage weights and interpolant.
const A = (
    (),
    (0.161,),
    (-0.008480655492356989, 0.335480655492357),
    (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
    (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
    (5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383),
    (0.09646076681806523, 0.01, 0.4798896504144996, 1.379008574103742, -3.290069515436081, 2.324710524099774),
)

function weights(x)
    return (
        x * (1 + x * (-2.763706197274826 + x * (2.9132554618219126 - 1.0530884977290216x))),
        x^2 * (0.13169999999999998 + x * (-0.2234 + 0.1017x)),
        x^2 * (3.9302962368947516 + x * (-5.941033872131505 + 2.490627285651253x)),
        x^2 * (-12.411077166933676 + x * (30.33818863028232 - 16.548102889244902x)),
        x^2 * (37.50931341651104 + x * (-88.1789048947664 + 47.37952196281928x)),
        x^2 * (-27.896526289197286 + x * (65.09189467479366 - 34.87065786149661x)),
        x^2 * (1.5 + x * (-4 + 2.5x)),
    )
end

# 2-50-50-2 tanh network, a state a column.
struct Network{T}
    W1::Matrix{T}
    b1::Vector{T}
    W2::Matrix{T}
    b2::Vector{T}
    W3::Matrix{T}
    b3::Vector{T}
    h1::Matrix{T}
    h2::Matrix{T}
    d1::Matrix{T}
    d2::Matrix{T}
    gradients::Tuple{Matrix{T}, Vector{T}, Matrix{T}, Vector{T}, Matrix{T}, Vector{T}}
end

function Network(params, samples)
    T = eltype(params[1])
    hidden() = zeros(T, size(params[1], 1), samples)
    return Network{T}(params..., hidden(), hidden(), hidden(), hidden(), Tuple(zero.(params)))
end

function bias_tanh!(h, b)
    @turbo for j in axes(h, 2), i in axes(h, 1)
        h[i, j] = tanh_fast(h[i, j] + b[i])
    end
    return h
end

function times_slope!(d, h)
    @turbo for i in eachindex(d)
        d[i] *= 1 - h[i] * h[i]
    end
    return d
end

function add_columns!(b, d)
    @inbounds for j in axes(d, 2)
        @simd for i in axes(d, 1)
            b[i] += d[i, j]
        end
    end
    return b
end

function hidden!(m::Network, y)
    bias_tanh!(mul!(m.h1, m.W1, y), m.b1)
    return bias_tanh!(mul!(m.h2, m.W2, m.h1), m.b2)
end

function f!(dy, y, m::Network, t)
    mul!(dy, m.W3, hidden!(m, y))
    dy .+= m.b3
    return nothing
end

function vjp!(dy, v, y, m::Network)
    one_ = one(eltype(y))
    g1, gb1, g2, gb2, g3, gb3 = m.gradients
    hidden!(m, y)
    mul!(g3, v, m.h2', one_, one_)
    add_columns!(gb3, v)
    times_slope!(mul!(m.d2, m.W3', v), m.h2)
    mul!(g2, m.d2, m.h1', one_, one_)
    add_columns!(gb2, m.d2)
    times_slope!(mul!(m.d1, m.W2', m.d2), m.h1)
    mul!(g1, m.d1, y', one_, one_)
    add_columns!(gb1, m.d1)
    mul!(dy, m.W1', m.d1)
    return nothing
end

# dy/dt = W tanh(y) - y.
struct Recurrent{T}
    W::Matrix{T}
    h::Vector{T}
    gradients::Tuple{Matrix{T}}
end

Recurrent(W) = Recurrent{eltype(W)}(W, zeros(eltype(W), size(W, 1)), (zero(W),))

function activate!(h, y)
    @turbo for i in eachindex(h)
        h[i] = tanh_fast(y[i])
    end
    return h
end

function f!(dy, y, m::Recurrent, t)
    mul!(dy, m.W, activate!(m.h, y))
    dy .-= y
    return nothing
end

function vjp!(dy, v, y, m::Recurrent)
    BLAS.ger!(one(eltype(v)), v, activate!(m.h, y), m.gradients[1])
    times_slope!(mul!(dy, m.W', v), m.h)
    dy .-= v
    return nothing
end

row_major(x::AbstractVector) = x
row_major(x::AbstractMatrix) = vec(permutedims(x))

"""Which step each time lies in, and where in it."""
function places(t, ts)
    return map(ts) do s
        n = clamp(searchsortedfirst(t, s) - 1, 1, length(t) - 1)
        (n, (s - t[n]) / (t[n + 1] - t[n]))
    end
end

function interpolated!(out, y, k, h, x)
    T = eltype(out)
    b = T.(h .* weights(x))
    @. out = y + b[1] * k[1] + b[2] * k[2] + b[3] * k[3] + b[4] * k[4] + b[5] * k[5] + b[6] * k[6] + b[7] * k[7]
    return out
end

# pyjode's choice: rounding noise in the error estimate keeps the default controller's steps small.
controller(::Type{Float32}) = IController()
controller(::Type{Float64}) = PIController(Float64, Tsit5())

function explicit(model, y0, t0, ts, scale)
    T = eltype(y0)
    problem = ODEProblem{true, SciMLBase.FullSpecialize}(f!, y0, (t0, ts[end]), model)
    states = zeros(T, size(y0)..., length(ts))
    k_bar = ntuple(_ -> similar(y0), 7)
    y_bar, stage, pulled = similar(y0), similar(y0), similar(y0)
    axis = ndims(y0) + 1
    return function (rtol, atol, with_gradient)
        sol = solve(problem, Tsit5(); reltol = rtol, abstol = atol, maxiters = 1_000_000, controller = controller(T))
        at = places(sol.t, ts)
        for (i, (n, x)) in enumerate(at)
            interpolated!(selectdim(states, axis, i), sol.u[n], sol.k[n + 1], sol.t[n + 1] - sol.t[n], x)
        end
        done = (states, nothing, sol.stats.nf, sol.stats.naccept)
        with_gradient || return done
        foreach(g -> fill!(g, 0), model.gradients)
        fill!(y_bar, 0)
        foreach(k -> fill!(k, 0), k_bar)
        i = length(ts)
        for n in (length(sol.t) - 1):-1:1
            h, y, k = sol.t[n + 1] - sol.t[n], sol.u[n], sol.k[n + 1]
            # Of the step after this one's: its first stage is this one's last.
            later = k_bar[1]
            copyto!(k_bar[7], later)
            for j in 1:6
                fill!(k_bar[j], 0)
            end
            fill!(stage, 0)  # what reaches y directly, from save points
            while i >= 1 && at[i][1] == n
                state, b = selectdim(states, axis, i), T.(h .* weights(at[i][2]))
                @. pulled = state / scale^2
                stage .+= pulled
                for j in 1:7
                    @. k_bar[j] += b[j] * pulled
                end
                i -= 1
            end
            saved = copy(stage)
            vjp!(pulled, k_bar[7], sol.u[n + 1], model)
            y_bar .+= pulled
            for j in 1:6
                @. k_bar[j] += T(h * A[7][j]) * y_bar
            end
            for s in 6:-1:2
                copyto!(stage, y)
                for j in 1:(s - 1)
                    @. stage += T(h * A[s][j]) * k[j]
                end
                vjp!(pulled, k_bar[s], stage, model)
                y_bar .+= pulled
                for j in 1:(s - 1)
                    @. k_bar[j] += T(h * A[s][j]) * pulled
                end
            end
            y_bar .+= saved
        end
        vjp!(pulled, k_bar[1], y0, model)
        y_bar .+= pulled
        return (states, vcat(vec(y_bar), row_major.(model.gradients)...), done[3], done[4])
    end
end

network(y0, t0, ts, scale, params...) = explicit(Network(params, size(y0, 2)), y0, t0, ts, scale)
recurrent(y0, t0, ts, scale, W) = explicit(Recurrent(W), y0, t0, ts, scale)

# Independent Lorenz trajectories, each with its own steps, on static arrays.
lorenz(u, p, t) = SA[p[1] * (u[2] - u[1]), u[1] * (p[2] - u[3]) - u[2], u[1] * u[2] - p[3] * u[3]]

function lorenz_vjp(v, u, p)
    du = SA[-p[1] * v[1] + (p[2] - u[3]) * v[2] + u[2] * v[3], p[1] * v[1] - v[2] + u[1] * v[3], -u[1] * v[2] - p[3] * v[3]]
    return du, SA[(u[2] - u[1]) * v[1], u[1] * v[2], -u[3] * v[3]]
end

combined(a, k, n) = sum(a[j] * k[j] for j in 1:n)

function one_lorenz!(states, y0, p, t0, ts, scale, rtol, atol, with_gradient)
    T = eltype(y0)
    problem = ODEProblem{false, SciMLBase.FullSpecialize}(lorenz, y0, (t0, ts[end]), p)
    sol = solve(problem, Tsit5(); reltol = rtol, abstol = atol, maxiters = 1_000_000, controller = controller(T))
    at = places(sol.t, ts)
    for (i, (n, x)) in enumerate(at)
        states[:, i] .= sol.u[n] + (sol.t[n + 1] - sol.t[n]) * combined(weights(x), sol.k[n + 1], 7)
    end
    y_bar, p_bar, first_bar, i = zero(y0), zero(p), zero(y0), length(ts)
    with_gradient || return y_bar, p_bar, sol.stats.nf, sol.stats.naccept
    for n in (length(sol.t) - 1):-1:1
        h, y, k = sol.t[n + 1] - sol.t[n], sol.u[n], sol.k[n + 1]
        k_bar = MVector(ntuple(j -> j == 7 ? first_bar : zero(y), 7))
        saved = zero(y)
        while i >= 1 && at[i][1] == n
            g = SVector{3, T}(states[1, i], states[2, i], states[3, i]) ./ scale .^ 2
            b = h .* weights(at[i][2])
            saved += g
            for j in 1:7
                k_bar[j] += b[j] * g
            end
            i -= 1
        end
        pulled, by_p = lorenz_vjp(k_bar[7], sol.u[n + 1], p)
        y_bar += pulled
        p_bar += by_p
        for j in 1:6
            k_bar[j] += h * A[7][j] * y_bar
        end
        for s in 6:-1:2
            pulled, by_p = lorenz_vjp(k_bar[s], y + h * combined(A[s], k, s - 1), p)
            y_bar += pulled
            p_bar += by_p
            for j in 1:(s - 1)
                k_bar[j] += h * A[s][j] * pulled
            end
        end
        y_bar += saved
        first_bar = k_bar[1]
    end
    pulled, by_p = lorenz_vjp(first_bar, y0, p)
    return y_bar + pulled, p_bar + by_p, sol.stats.nf, sol.stats.naccept
end

function lorenz_batch(y0, t0, ts, scale, params...)
    T, B = eltype(y0), size(y0, 2)
    p = SVector{3, T}(map(only, params))
    states, by_y0 = zeros(T, 3, length(ts), B), zeros(T, 3, B)
    return function (rtol, atol, with_gradient)
        by_p, nf, steps = zero(p), 0, 0
        for b in 1:B
            start, size_ = SVector{3, T}(view(y0, :, b)), SVector{3, T}(view(scale, :, b))
            found = one_lorenz!(view(states, :, :, b), start, p, t0, ts, size_, rtol, atol, with_gradient)
            by_y0[:, b] .= found[1]
            by_p, nf, steps = by_p + found[2], nf + found[3], steps + found[4]
        end
        return (permutedims(states, (1, 3, 2)), with_gradient ? vcat(vec(by_y0), by_p) : nothing, nf, steps)
    end
end

# Stiff problems: f, Jacobian and both vector-Jacobian products by hand.
function robertson!(du, u, p, t)
    r1, r2, r3 = p[1] * u[1], p[2] * u[2]^2, p[3] * u[2] * u[3]
    du[1], du[2], du[3] = r3 - r1, r1 - r2 - r3, r2
    return nothing
end
function robertson_jac!(J, u, p, t)
    a, b, c = p[1], 2p[2] * u[2], p[3]
    J[1, 1], J[1, 2], J[1, 3] = -a, c * u[3], c * u[2]
    J[2, 1], J[2, 2], J[2, 3] = a, -b - c * u[3], -c * u[2]
    J[3, 1], J[3, 2], J[3, 3] = 0, b, 0
    return nothing
end
function robertson_vjp!(out, v, u, p, t)
    d = v[1] - v[2]
    out[1] = -p[1] * d
    out[2] = p[3] * u[3] * d + 2p[2] * u[2] * (v[3] - v[2])
    out[3] = p[3] * u[2] * d
    return nothing
end
function robertson_vjp_p!(out, v, u, p, t)
    out[1], out[2], out[3] = u[1] * (v[2] - v[1]), u[2]^2 * (v[3] - v[2]), u[2] * u[3] * (v[1] - v[2])
    return nothing
end

function van_der_pol!(du, u, p, t)
    du[1], du[2] = u[2], p[1]^2 * ((1 - u[1]^2) * u[2] - u[1])
    return nothing
end
function van_der_pol_jac!(J, u, p, t)
    m = p[1]^2
    J[1, 1], J[1, 2] = 0, 1
    J[2, 1], J[2, 2] = m * (-2u[1] * u[2] - 1), m * (1 - u[1]^2)
    return nothing
end
function van_der_pol_vjp!(out, v, u, p, t)
    m = p[1]^2 * v[2]
    out[1], out[2] = m * (-2u[1] * u[2] - 1), v[1] + m * (1 - u[1]^2)
    return nothing
end
function van_der_pol_vjp_p!(out, v, u, p, t)
    out[1] = 2p[1] * ((1 - u[1]^2) * u[2] - u[1]) * v[2]
    return nothing
end

no_time!(out, u, p, t) = fill!(out, 0)

function stiff(f, jac, vjp, vjp_p, y0, t0, ts, scale, params)
    p = collect(Float64, map(only, params))
    made = ODEFunction{true, SciMLBase.FullSpecialize}(f; jac, tgrad = no_time!, vjp, vjp_p)
    problem = ODEProblem(made, y0, (t0, ts[end]), p)
    inverse = 1 ./ scale .^ 2
    dg!(out, u, p, t, i) = (out .= u .* inverse)
    return function (rtol, atol, with_gradient)
        sol = solve(problem, Rodas5P(); reltol = rtol, abstol = atol, maxiters = 1_000_000)
        states = reduce(hcat, sol(ts).u)
        with_gradient || return (states, nothing, sol.stats.nf, sol.stats.naccept)
        by_y0, by_p = adjoint_sensitivities(
            sol, Rodas5P(); t = ts, dgdu_discrete = dg!, sensealg = GaussAdjoint(autojacvec = false),
            abstol = min(atol / 100, 1.0e-10), reltol = min(rtol / 100, 1.0e-8),  # pyjode's: see pyjode/trust.py
        )
        return (states, vcat(vec(by_y0), vec(by_p)), sol.stats.nf, sol.stats.naccept)
    end
end

robertson(y0, t0, ts, scale, params...) =
    stiff(robertson!, robertson_jac!, robertson_vjp!, robertson_vjp_p!, y0, t0, ts, scale, params)
van_der_pol(y0, t0, ts, scale, params...) =
    stiff(van_der_pol!, van_der_pol_jac!, van_der_pol_vjp!, van_der_pol_vjp_p!, y0, t0, ts, scale, params)

# From Python: row-major arrays, of which a matrix of states becomes one with a state a column.
columns(x::AbstractVector) = collect(x)
columns(x::AbstractMatrix) = permutedims(x)
plain(x::AbstractArray) = collect(x)
plain(x::Number) = [x]

function make(name, y0, t0, ts, scale, params)
    maker = getfield(Limit, Symbol(name))
    return maker(columns(y0), Float64(t0), collect(Float64, ts), columns(scale), map(plain, params)...)
end

end
