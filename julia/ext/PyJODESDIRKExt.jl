# Precompiled solves with the commonest of the SDIRK methods.
module PyJODESDIRKExt

using PyJODE: workload
using ADTypes: AutoFiniteDiff
using OrdinaryDiffEqSDIRK: KenCarp4, TRBDF2
using PrecompileTools: @compile_workload

@compile_workload begin
    workload(Float64, KenCarp4(autodiff = AutoFiniteDiff()); with_jac = true)
    workload(Float64, TRBDF2(autodiff = AutoFiniteDiff()); with_jac = true)
end

end
