# Precompiled solves with the default stiff method, and its discrete adjoint, dense and block-diagonal Jacobians.
module PyJODERosenbrockExt

using PyJODE: RosenbrockAdjoint, workload
using ADTypes: AutoFiniteDiff
using OrdinaryDiffEqRosenbrock: Rodas5P
using PrecompileTools: @compile_workload

@compile_workload for blocks in (1, 2)
    workload(Float64, Rodas5P(autodiff = AutoFiniteDiff()), RosenbrockAdjoint(); with_jac = true, blocks)
end

end
