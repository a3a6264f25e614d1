# Precompiled solves with method="auto".
module PyJODEDefaultExt

using PyJODE: workload
using ADTypes: AutoFiniteDiff
using OrdinaryDiffEqDefault: DefaultODEAlgorithm
using PrecompileTools: @compile_workload

@compile_workload begin
    workload(Float64, DefaultODEAlgorithm(lazy = false, autodiff = AutoFiniteDiff()); with_jac = true)
end

end
