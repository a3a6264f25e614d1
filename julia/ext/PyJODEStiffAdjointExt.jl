# The adjoint that all stiff methods take by default, precompiled: tens of seconds in each process otherwise.
module PyJODEStiffAdjointExt

using PyJODE: workload
using ADTypes: AutoFiniteDiff
using OrdinaryDiffEqRosenbrock: Rodas5P
using PrecompileTools: @compile_workload
using SciMLSensitivity: GaussAdjoint, ZygoteVJP

@compile_workload for blocks in (1, 2)
    workload(
        Float64, Rodas5P(autodiff = AutoFiniteDiff()), GaussAdjoint(autojacvec = ZygoteVJP()); with_jac = true, blocks
    )
end

end
