r"""
Distributed training: two processes, one model
==============================================

A neural ODE learns a spiral in two processes at once, each on its half of every batch, by torch's
DistributedDataParallel over gloo; each process has a Julia of its own. None of the reports has it; report 3 (an
empirical study of neural ODEs, Berkeley CS282) has the spiral. Look at ``losses.png``: two processes take the very path
that one process takes on whole batches.

Started plainly the script starts itself under torchrun; ``torchrun --nproc-per-node 2
examples/distributed_training.py`` is the same.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

import gallery
import matplotlib.pyplot as plt
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import pyjode

parser = gallery.parser(__doc__, "distributed_training", iterations=(500, 40))
if "RANK" not in os.environ:
    parser.parse_args()
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *sys.argv]
    raise SystemExit(subprocess.run([sys.executable, *command]).returncode)

args = gallery.start(parser, threads=1)
torch.set_default_dtype(torch.float64)
dist.init_process_group("gloo")
rank, processes = dist.get_rank(), dist.get_world_size()

# %%
# The data: the spiral of report 3
# --------------------------------

A = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]])
times = torch.linspace(0.0, 25.0, 1000)
with torch.no_grad():
    truth = pyjode.odeint(lambda t, z: z**3 @ A, torch.tensor([2.0, 0.0]), times, rtol=1e-8, atol=1e-10)
WINDOW, BATCH = 10, 32
windows = truth.unfold(0, WINDOW, 1).permute(2, 0, 1)


class Field(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 50), nn.Tanh(), nn.Linear(50, 2))

    def forward(self, t, z):
        return self.net(z**3)


# %%
# Training
# --------
# RK4 from point to point, so that a half batch takes the very steps that the whole batch does: an adaptive solver
# chooses its steps for all the states it is given. Both trainings see the same batches.


def train(distributed):
    torch.manual_seed(args.seed)
    model = pyjode.NeuralODE(Field(), times[:WINDOW], method="rk4")
    if distributed:
        model = DistributedDataParallel(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    batches = torch.Generator().manual_seed(args.seed)
    losses, started = [], time.perf_counter()
    label = f"{processes} processes" if distributed else "1 process"
    with tqdm(range(args.iterations), desc=label, unit="it", disable=rank != 0) as progress:
        for _ in progress:
            chosen = torch.randint(windows.shape[1], (BATCH,), generator=batches)
            if distributed:
                chosen = chosen[rank::processes]
            batch = windows[:, chosen]
            loss = (model(batch[0]) - batch).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            whole = loss.detach()
            if distributed:
                dist.all_reduce(whole)
                whole = whole / processes
            losses.append(whole.item())
            progress.set_postfix(loss=f"{losses[-1]:.1e}")
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    return losses, weights, time.perf_counter() - started


losses, weights, seconds = train(distributed=True)
everyone = [torch.empty_like(weights) for _ in range(processes)]
dist.all_gather(everyone, weights)
apart = max((other - weights).abs().max().item() for other in everyone)
dist.barrier()

# %%
# The same in one process, and the figure
# ---------------------------------------

if rank == 0:
    losses_alone, weights_alone, seconds_alone = train(distributed=False)
    loss_difference = max(abs(a - b) / b for a, b in zip(losses, losses_alone, strict=True))
    weight_difference = ((weights - weights_alone).norm() / weights_alone.norm()).item()

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.semilogy(losses_alone, color="tab:blue", linewidth=4, alpha=0.4, label="one process, whole batches")
    axes.semilogy(losses, "k--", linewidth=1, label=f"{processes} processes, each its part")
    axes.set(xlabel="iteration", ylabel="squared error", title="The same training, split and whole")
    axes.legend()
    gallery.save(args, figure, "losses")

    comparison = [
        ("weights of the processes: largest difference", "", f"{apart:.0e}"),
        (f"loss, {processes} processes against one: largest relative difference", "", f"{loss_difference:.0e}"),
        ("trained weights, the same: relative difference", "", f"{weight_difference:.0e}"),
        (
            f"time of {args.iterations} iterations, {processes} processes / one",
            "",
            f"{seconds:.1f} / {seconds_alone:.1f} s",
        ),
    ]
    run = {
        "run": f"{processes} processes",
        "iterations": args.iterations,
        "first_loss": losses[0],
        "final_loss": losses[-1],
        "difference_between_processes": apart,
        "loss_difference": loss_difference,
        "weight_difference": weight_difference,
    }
    gallery.write_metrics(args, "beyond the reports: distributed training", [run], comparison)

# %%
# Neither leaves before the other is done.

dist.barrier()
dist.destroy_process_group()
