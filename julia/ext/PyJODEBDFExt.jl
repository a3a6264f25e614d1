# Precompiled solves with the method for large stiff problems.
module PyJODEBDFExt

using PyJODE: workload
using ADTypes: AutoFiniteDiff
using OrdinaryDiffEqBDF: FBDF
using PrecompileTools: @compile_workload

@compile_workload begin
    workload(Float64, FBDF(autodiff = AutoFiniteDiff()); with_jac = true)
end

end
