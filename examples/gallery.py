"""What the scripts of the gallery share: options, data, the training of a classifier, what they save."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import os
import platform
import sys
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image
from torch import nn
from tqdm import tqdm

import pyjode

ROOT = Path(__file__).resolve().parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"


def parser(docstring: str, name: str, **sizes: tuple[int, int]) -> argparse.ArgumentParser:
    """The options every script has.

    Args:
        docstring: the script's; its title and first paragraph become the help text.
        name: the script's, for the default of ``--out``.
        **sizes: numbers that decide how long it takes: ``epochs=(1000, 20)`` is an option ``--epochs`` which is 1000,
            and 20 with ``--quick``.
    """
    title, _, rest = docstring.strip().partition("\n")
    paragraph = rest.strip("=\n").strip().split("\n\n")[0]
    made = argparse.ArgumentParser(description=f"{title}. {' '.join(paragraph.split())}")
    made.add_argument("--quick", action="store_true", help="small sizes, to see that it runs: at most a minute or two")
    made.add_argument(
        "--data", type=Path, default=SHARED_DATA if SHARED_DATA.is_dir() else Path("data"), help="folder of data sets"
    )
    made.add_argument("--engine", default="auto", choices=["auto", "julia", "torchdiffeq"])
    made.add_argument("--seed", type=int, default=0, help="of the networks' starts and of the batches")
    made.add_argument(
        "--out",
        type=Path,
        default=Path("runs") / name,
        help="folder of figures and metrics.json (default: %(default)s)",
    )
    for size, (full, quick) in sizes.items():
        made.add_argument(f"--{size.replace('_', '-')}", type=int, help=f"{full}; with --quick {quick}")
    made.set_defaults(_sizes=sizes, _name=name)
    return made


def start(made: argparse.ArgumentParser, *, threads: int | None = None) -> argparse.Namespace:
    """Reads the command line, chooses the engine and seeds torch.

    The result has ``engine_in_use``, the engine that ``--engine auto`` came to. ``threads=1`` is for tensors so small
    that torch is slower on several threads.
    """
    args = made.parse_args()
    for size, (full, quick) in args._sizes.items():
        if getattr(args, size) is None:
            setattr(args, size, quick if args.quick else full)
    args.out.mkdir(parents=True, exist_ok=True)
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(args.seed)
    pyjode.set_default_engine(None if args.engine == "auto" else args.engine)  # auto: PYJODE_ENGINE has a say
    args._started = time.perf_counter()
    probe = pyjode.ODEProblem(lambda t, y: -y, torch.ones(1), (0.0, 1.0))
    args.engine_in_use = pyjode.solve(probe, saveat=[0.0, 1.0]).engine
    print(f"{args._name} on engine {args.engine_in_use}; figures and metrics.json go to {args.out}")
    plt.rcParams.update({"font.size": 10, "axes.grid": True, "grid.alpha": 0.3, "savefig.dpi": 110})
    return args


def save(args: argparse.Namespace, figure: plt.Figure, name: str) -> None:
    """As a PNG of 256 colours: less than half of the size, and no difference to see."""
    path = args.out / f"{name}.png"
    figure.savefig(path)
    with Image.open(path) as image:
        few_colours = image.convert("RGB").quantize(256)
    few_colours.save(path, optimize=True)


def write_metrics(
    args: argparse.Namespace, study: str, runs: list[dict], comparison: list[tuple[str, str, str]], **more: object
) -> None:
    """Writes metrics.json.

    Args:
        study: which report and which of its studies.
        runs: a row a run, as the script likes.
        comparison: rows of the results table: what it is, the report's figure ("" where it gives none), ours.
        **more: anything else.
    """
    sizes = {size: getattr(args, size) for size in args._sizes}
    cuts = [
        f"{size.replace('_', ' ')}: {sizes[size]} for {full}"
        for size, (full, _) in args._sizes.items()
        if sizes[size] < full
    ]
    metrics = {
        "study": study,
        "engine": args.engine_in_use,
        "seed": args.seed,
        "quick": args.quick,
        "sizes": sizes,
        "cut": cuts,
        "seconds": round(time.perf_counter() - args._started, 1),
        "versions": {"python": platform.python_version(), "pyjode": pyjode.__version__, "torch": torch.__version__},
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "comparison": [{"what": what, "report": report, "ours": ours} for what, report, ours in comparison],
        "runs": runs,
        **more,
    }
    (args.out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    print()
    for what, report, ours in comparison:
        print(f"{what}: {ours}" + (f" (report: {report})" if report else ""))


# Data


class DataMissing(SystemExit):
    """A data set is not there and cannot be had. Uncaught, it ends the script with its one line."""


def stop(message: str) -> None:
    """Ends the script with one line."""
    raise SystemExit(f"{Path(sys.argv[0]).name}: {message}")


def mnist(args: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Train images (60000, 1, 28, 28) in [0, 1], train labels, test images (10000, 1, 28, 28), test labels."""
    raw = args.data / "MNIST" / "raw"
    if not (raw / "train-images-idx3-ubyte").exists():
        download(args, "MNIST", "MNIST/raw")

    def read(name: str, header: int) -> torch.Tensor:
        return torch.from_numpy(np.fromfile(raw / name, dtype=np.uint8)[header:].copy())

    tensors = []
    for part in ("train", "t10k"):
        tensors += [
            read(f"{part}-images-idx3-ubyte", 16).reshape(-1, 1, 28, 28) / 255,
            read(f"{part}-labels-idx1-ubyte", 8).long(),
        ]
    return tuple(tensors)


def mnist_8x8(args: argparse.Namespace, images: int, *, digits: bool = False) -> tuple[str, tuple[torch.Tensor, ...]]:
    """Its name, and MNIST averaged to 8x8 pixels: ``images`` to train and 10000 to test, (n, 64), with labels.

    scikit-learn's 1797 digits instead, the last 360 to test, where ``digits`` or where MNIST cannot be had.
    """
    if not digits:
        try:
            train_x, train_y, test_x, test_y = mnist(args)
            return "MNIST", (to_8x8(train_x[:images]), train_y[:images], to_8x8(test_x), test_y)
        except DataMissing as missing:
            print(f"{missing}; scikit-learn's digits stand in")
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataMissing("no MNIST, and scikit-learn's digits need: pip install scikit-learn") from None
    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x, dtype=torch.float32) / 16 - 0.5, torch.tensor(y)
    return "digits", (x[:-360][:images], y[:-360][:images], x[-360:], y[-360:])


def to_8x8(images: torch.Tensor) -> torch.Tensor:
    """(n, c, h, w) to (n, 64): grey, averaged to 8x8, centred."""
    return nn.functional.adaptive_avg_pool2d(images.mean(1, keepdim=True), 8).flatten(1) - 0.5


def cifar10(args: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Train images (n, 3, 32, 32) in [0, 1], train labels, test images, test labels: a subset in folders, or all."""
    subset = args.data / "cifar10-subset"
    if subset.is_dir():
        return (*image_folder(subset / "train"), *image_folder(subset / "test"))
    parts = download(args, "CIFAR10", "cifar10-subset")
    tensors = []
    for part in parts:
        tensors += [torch.from_numpy(part.data).permute(0, 3, 1, 2) / 255, torch.tensor(part.targets)]
    return tuple(tensors)


def image_folder(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (n, 3, h, w) in [0, 1] and labels of the layout ``<folder>/<class>/<image>``."""
    images, labels = [], []
    for label, of_class in enumerate(sorted(path for path in folder.iterdir() if path.is_dir())):
        for path in sorted(of_class.iterdir()):
            images.append(torch.from_numpy(plt.imread(path).copy()).permute(2, 0, 1) / 255)
            labels.append(label)
    return torch.stack(images), torch.tensor(labels)


def download(args: argparse.Namespace, name: str, looked_for: str) -> list:
    """The train and the test part of torchvision's data set of that name, downloaded into ``--data``."""
    try:
        from torchvision import datasets

        return [getattr(datasets, name)(args.data, train=train, download=True) for train in (True, False)]
    except Exception as error:  # no torchvision, no network, a mirror that is down: all come to the same for a user
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataMissing(
            f"no {looked_for} in {args.data}, and torchvision could not download it ({reason}): pass --data DIR"
        ) from None


# Training of a classifier


def train_classifier(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
    *,
    epochs: int,
    batch_size: int,
    label: str,
    seed: int,
) -> dict[str, list[float]]:
    """Trains with cross-entropy; of every epoch the losses and accuracies (in %), and the seconds of its training."""
    train_x, train_y, test_x, test_y = data
    shuffle = torch.Generator().manual_seed(seed)
    kinds = ("batch_loss", "train_loss", "train_acc", "test_loss", "test_acc", "seconds")
    history: dict[str, list[float]] = {kind: [] for kind in kinds}
    batches = (len(train_x) + batch_size - 1) // batch_size
    with tqdm(total=epochs * batches, desc=label, unit="batch") as progress:
        for _ in range(epochs):
            started, loss_sum, right = time.perf_counter(), 0.0, 0
            model.train()
            for chosen in torch.randperm(len(train_x), generator=shuffle).split(batch_size):
                scores = model(train_x[chosen])
                loss = nn.functional.cross_entropy(scores, train_y[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                loss_sum += loss.item() * len(chosen)
                right += (scores.argmax(1) == train_y[chosen]).sum().item()
                history["batch_loss"].append(loss.item())
                progress.update()
                progress.set_postfix(loss=f"{loss.item():.3f}")
            history["seconds"].append(time.perf_counter() - started)
            history["train_loss"].append(loss_sum / len(train_x))
            history["train_acc"].append(100 * right / len(train_x))
            loss, accuracy = evaluate(model, test_x, test_y)
            history["test_loss"].append(loss)
            history["test_acc"].append(accuracy)
            progress.set_postfix(loss=f"{history['train_loss'][-1]:.3f}", test=f"{accuracy:.1f} %")
    return history


@torch.no_grad()
def evaluate(model: nn.Module, x: torch.Tensor, y: torch.Tensor, batch_size: int = 500) -> tuple[float, float]:
    """Mean cross-entropy and accuracy in %."""
    model.eval()
    scores = torch.cat([model(part) for part in x.split(batch_size)])
    return nn.functional.cross_entropy(scores, y).item(), 100 * (scores.argmax(1) == y).float().mean().item()


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# Memory


class PeakMemory:
    """Growth of this process's resident memory, at its highest inside the block: ``.megabytes`` (NaN but on Linux).

    Memory that was freed before, but that an allocator kept (Julia's, say), does not show: run what needs least first.
    """

    megabytes = float("nan")

    def __enter__(self) -> PeakMemory:
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):  # glibc: what was freed goes back to the system
            ctypes.CDLL(None).malloc_trim(0)
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
            self._before = _status("VmRSS")
        except OSError:
            self._before = float("nan")
        return self

    def __exit__(self, *_: object) -> None:
        if self._before == self._before:
            self.megabytes = _status("VmHWM") - self._before


def _status(name: str) -> float:
    """An entry of /proc/self/status, in MB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024 / 1e6
