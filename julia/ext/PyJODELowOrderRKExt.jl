# Precompiled solves with torchdiffeq's default method.
module PyJODELowOrderRKExt

using PyJODE: DiscreteAdjoint, workload, workload_events, workload_independent
using OrdinaryDiffEqLowOrderRK: DP5
using PrecompileTools: @compile_workload

@compile_workload for T in (Float64, Float32)
    workload(T, DP5(), DiscreteAdjoint())
    workload_independent(T, DP5())
    workload_events(T, DP5())
end

end
