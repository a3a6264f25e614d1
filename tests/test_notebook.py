"""pyjode in a notebook: results, plots inline, the progress bar, the interrupt button."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("matplotlib_inline")

pytestmark = pytest.mark.slow

CELLS = [
    """
import math, sys, time, torch, pyjode
torch.set_num_threads(1)
pyjode.set_default_engine(ENGINE)
k = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
y0 = torch.tensor([1.0, 0.0], dtype=torch.float64)
def f(t, y):
    return torch.stack([y[1], -k * y[0]])
def solve(end, **options):
    return pyjode.solve(pyjode.ODEProblem(f, y0, (0.0, end)), saveat=torch.linspace(0.0, end, 20), **options)
solution = solve(1.0)
solution.ys[-1, 0].backward()
print(abs(solution.ys[-1, 0].item() - math.cos(1.0)) < 1e-4, abs(k.grad.item() + math.sin(1.0) / 2) < 1e-4)
""",
    "solution.plot()",
    "solution.to_pandas().tail(1)",
    "solve(1.0, progress=True);",
    "print(sorted(name for name in sys.modules if name == 'juliacall.ipython'))",
    """
print("started", flush=True)
try:
    solve(1e6, rtol=1e-10, maxiters=10**9)
    print("not interrupted")
except KeyboardInterrupt:
    print("interrupted")
""",
    "print(abs(solve(1.0).ys[-1, 0].item() - math.cos(1.0)) < 1e-4)",
]


def text(cell: dict, stream: str = "stdout") -> str:
    return "".join(out["text"] for out in cell["outputs"] if out.get("name") == stream)


def test_a_notebook_from_top_to_bottom(engine: str, tmp_path: Path) -> None:
    cells = [cell.replace("ENGINE", repr(engine)).strip() for cell in CELLS]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )

    def interrupt() -> None:
        # The button: pressed once the long solve has said that it starts.
        cell = notebook.cells[5]
        while not cell["outputs"]:
            time.sleep(0.1)
        time.sleep(1.0)
        os.kill(client.km.provisioner.pid, signal.SIGINT)  # what Jupyter does

    watcher = threading.Thread(target=interrupt, daemon=True)
    watcher.start()
    client.execute()
    first, plot, frame, bar, modules, long, after = notebook.cells
    assert text(first) == "True True\n"
    assert any("image/png" in out.get("data", {}) for out in plot["outputs"])
    assert any("y[0]" in out.get("data", {}).get("text/html", "") for out in frame["outputs"])
    shown = text(bar, "stderr") + "".join(str(out.get("data", "")) for out in bar["outputs"])
    assert "100%" in shown
    assert text(modules) == "[]\n"
    assert text(long) == "started\ninterrupted\n"
    assert text(after) == "True\n"
