"""Processes beside a solve: DataLoader workers, DistributedDataParallel."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

_DDP = """
import os, sys
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from pyjode import NeuralODE

engine, steps, many = sys.argv[1], 3, "RANK" in os.environ
torch.set_num_threads(1)
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()
model = nn.Sequential(NeuralODE(lambda t, y: net(y), engine=engine), nn.Linear(2, 1).double())
model[0].add_module("net", net)
x = torch.randn(8, 2, dtype=torch.float64)
if many:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    x = x[4 * rank : 4 * rank + 4]
    model = DistributedDataParallel(model)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(steps):
    optimizer.zero_grad()
    loss = model(x).square().mean()
    loss.backward()
    optimizer.step()
with torch.no_grad():
    loss = model(x).square().mean()
    if many:
        dist.all_reduce(loss)
        loss /= dist.get_world_size()
if not many or rank == 0:
    print(repr(loss.item()))
if many:
    dist.destroy_process_group()
"""


def _start(script: Path, engine: str, **environment: str) -> subprocess.Popen:
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    return subprocess.Popen(
        [sys.executable, str(script), engine],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ
        | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        | environment,
    )


@pytest.mark.slow
def test_two_processes_reach_the_loss_of_one(engine, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(_DDP)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    processes = [_start(script, engine), *(_start(script, engine, RANK=str(r), **address) for r in range(2))]
    try:
        outputs = [p.communicate(timeout=300) for p in processes]
    finally:
        for p in processes:
            p.kill()
    assert all(p.returncode == 0 for p in processes), outputs
    one, two = float(outputs[0][0]), float(outputs[1][0])
    # The batch of two processes is solved in two halves, each with its own steps.
    assert two == pytest.approx(one, rel=1e-5)


@pytest.mark.slow
def test_data_loader_workers(make_layer, y0, gradients):
    """Workers are forked while the engine runs in the parent, which goes on solving."""
    layer = make_layer()
    expected = gradients(layer, y0)
    loader = DataLoader(TensorDataset(y0.repeat(4, 1)), batch_size=3, num_workers=2)
    for _ in range(2):
        batches = [gradients(layer, batch) for (batch,) in loader]
        assert len(batches) == 4
        for got in batches:
            torch.testing.assert_close(got, expected)
