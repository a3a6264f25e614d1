r"""
A linear system, and the four gradients of the adjoint
======================================================

Two networks learn the linear system z' = A z with A = [[-0.1, -1], [1, -0.1]] from its spiral out of z(0) = (2, 0).
This is report 2 (neural ODEs project paper, E. Ribando-Gros): Linear-tanh-Linear and Linear-Linear, normalised Xavier
initialisation, zero biases, mini-batches, L2 loss, ode45 (Dormand-Prince 5(4), here ``dopri5``). Look at
``phase_space.png``: the learned curve over the true one for t in [0, 25]; the goal is an error below 1e-2 everywhere.

The report also states the four gradients of the adjoint method, by z(t0), the parameters, t0 and t1. Before any
training, the script prints a table of all four against closed forms, for every adjoint that the engine has. (The
report's printed dL/dt1 has a sign slip: it is +dL/dz(t1) . f(z(t1), t1).)
"""

from __future__ import annotations

import gallery
import matplotlib.pyplot as plt
import torch
from torch import nn
from tqdm import tqdm

import pyjode

args = gallery.start(gallery.parser(__doc__, "linear_system", epochs=(2000, 60)), threads=1)
torch.set_default_dtype(torch.float64)

A = torch.tensor([[-0.1, -1.0], [1.0, -0.1]])
z0 = torch.tensor([2.0, 0.0])

# %%
# The four gradients
# ------------------
# The loss is L = w . z(t1). With Phi = exp(A (t1 - t0)) the solution is z(t1) = Phi z0, so dL/dz0 = Phi^T w,
# dL/dt1 = w . A z(t1) and dL/dt0 = -w . A z(t1). dL/dA is the derivative of the matrix exponential, which torch has.

T0, T1, W = 0.5, 3.0, torch.tensor([1.0, -2.0])


def closed_forms():
    weights = A.clone().requires_grad_()
    (torch.linalg.matrix_exp(weights * (T1 - T0)) @ z0 @ W).backward()
    flow = torch.linalg.matrix_exp(A * (T1 - T0))
    rate = W @ A @ flow @ z0
    return {"dL/dz0": flow.T @ W, "dL/dA": weights.grad, "dL/dt0": -rate, "dL/dt1": rate}


def by_backward_pass(sensealg):
    start, weights = z0.clone().requires_grad_(), A.clone().requires_grad_()
    t0, t1 = torch.tensor(T0, requires_grad=True), torch.tensor(T1, requires_grad=True)
    problem = pyjode.ODEProblem(lambda t, z: weights @ z, start, (t0, t1), params=[weights])
    solution = pyjode.solve(problem, "dopri5", saveat=torch.stack([t0, t1]), rtol=1e-10, atol=1e-12, sensealg=sensealg)
    (W @ solution.ys[-1]).backward()
    return {"dL/dz0": start.grad, "dL/dA": weights.grad, "dL/dt0": t0.grad, "dL/dt1": t1.grad}


if args.engine_in_use == "julia":
    sensealgs = ["DiscreteAdjoint", "GaussAdjoint", "InterpolatingAdjoint", "QuadratureAdjoint", "BacksolveAdjoint"]
else:
    sensealgs = ["DiscreteAdjoint", "BacksolveAdjoint"]
exact = closed_forms()
gradient_errors = {}
print("\nrelative errors of the gradients, dopri5 at rtol 1e-10")
print(f"{'':22}" + "".join(f"{name:>10}" for name in exact))
for sensealg in sensealgs:
    gradients = by_backward_pass(sensealg)
    errors = {name: ((gradients[name] - exact[name]).norm() / exact[name].norm()).item() for name in exact}
    gradient_errors[sensealg] = errors
    print(f"{sensealg:22}" + "".join(f"{error:10.1e}" for error in errors.values()))
print()

# %%
# The data
# --------
# 1000 points on [0, 25]; a mini-batch is 20 windows of 10 consecutive points. The system does not depend on time, so
# every window may start at t = 0.

POINTS, WINDOW, BATCH = 1000, 10, 20
times = torch.linspace(0.0, 25.0, POINTS)
truth = torch.linalg.matrix_exp(A * times[:, None, None]) @ z0  # (1000, 2)
windows = truth.unfold(0, WINDOW, 1).permute(2, 0, 1)  # (10, 991, 2)
window_times = times[:WINDOW]

# %%
# Learning
# --------
# Adam; its learning rate falls from 0.01 to 0 along a cosine.


class Field(nn.Module):
    """The learned right-hand side: two linear layers, with tanh between them or nothing."""

    def __init__(self, activation):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 50), activation, nn.Linear(50, 2))
        for layer in (self.net[0], self.net[2]):
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, t, z):
        return self.net(z)


def train(name, field):
    optimizer = torch.optim.Adam(field.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)
    losses = []
    with tqdm(range(args.epochs), desc=name, unit="epoch") as progress:
        for _ in progress:
            epoch = []
            for starts in torch.randint(windows.shape[1], (5, BATCH)):
                batch = windows[:, starts]
                predicted = pyjode.odeint(field, batch[0], window_times, method="dopri5", rtol=1e-6, atol=1e-8)
                loss = (predicted - batch).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                epoch.append(loss.item())
            schedule.step()
            losses.append(sum(epoch) / len(epoch))
            progress.set_postfix(loss=f"{losses[-1]:.1e}")
    return losses


runs, curves, learned = [], {}, {}
for name, activation in (("Linear-tanh-Linear", nn.Tanh()), ("Linear-Linear", nn.Identity())):
    torch.manual_seed(args.seed)
    field = Field(activation)
    curves[name] = train(name, field)
    with torch.no_grad():
        learned[name] = pyjode.odeint(field, z0, times, method="dopri5", rtol=1e-8, atol=1e-10)
    distance = (learned[name] - truth).norm(dim=1)
    run = {
        "run": name,
        "epochs": args.epochs,
        "first_loss": curves[name][0],
        "final_loss": curves[name][-1],
        "phase_space_error_mean": distance.mean().item(),
        "phase_space_error_max": distance.max().item(),
    }
    if name == "Linear-Linear":
        matrix = (field.net[2].weight @ field.net[0].weight).detach()
        run["learned_A"] = matrix.tolist()
        print(f"the product of the two layers' weights: {[[round(x, 5) for x in row] for row in matrix.tolist()]}")
    runs.append(run)

# %%
# The report's two figures
# ------------------------

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for name, losses in curves.items():
    axes.semilogy(losses, linewidth=1, label=name)
axes.set(xlabel="epoch", ylabel="L2 loss, mean of the epoch", title="Loss")
axes.legend()
gallery.save(args, figure, "loss")

figure, panels = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained")
for axes, (name, curve), run in zip(panels, learned.items(), runs, strict=True):
    axes.plot(*truth.T, color="tab:blue", linewidth=5, alpha=0.35, label="true")
    axes.plot(*curve.T, "k--", linewidth=1, label="learned")
    axes.plot(*z0, "ko", markersize=4)
    axes.set(xlabel="$z_1$", ylabel="$z_2$", title=f"{name}: largest error {run['phase_space_error_max']:.1e}")
    axes.set_aspect("equal")
    axes.legend()
figure.suptitle("Phase space, t from 0 to 25")
gallery.save(args, figure, "phase_space")

# %%
# metrics.json
# ------------

comparison = [
    (f"{run['run']}: phase-space error over [0, 25], mean / largest", "shown in a figure only",
     f"{run['phase_space_error_mean']:.1e} / {run['phase_space_error_max']:.1e}")
    for run in runs
]  # fmt: skip
for name in exact:
    worst = max(gradient_errors, key=lambda sensealg: gradient_errors[sensealg][name])
    comparison.append(
        (f"{name} against its closed form, worst of {len(sensealgs)} adjoints", "formula",
         f"{gradient_errors[worst][name]:.0e} ({worst})")
    )  # fmt: skip
gallery.write_metrics(args, "report 2, a linear system", runs, comparison, gradient_errors=gradient_errors)
