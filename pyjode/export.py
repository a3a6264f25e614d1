"""A solution as a plot, a pandas data frame, an xarray data set: each where that library is installed."""

from __future__ import annotations

import importlib
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pyjode.errors import InputError, UnsupportedError

if TYPE_CHECKING:
    from pyjode.solution import Solution

_LEGEND_LIMIT = 12


def plot(solution: Solution, ax: Any = None, *, points: int | None = None, **style: Any) -> Any:
    """See :meth:`pyjode.Solution.plot`."""
    pyplot = _library("matplotlib.pyplot", "matplotlib", "plot")
    if points is None:
        ts, leaves = solution.ts.detach(), _leaves(solution.ys)
    else:
        if points < 2:
            raise InputError(f"points is {points}; a line needs two")
        ts = torch.linspace(float(solution.ts[0].detach()), solution.t_reached, points, dtype=torch.float64)
        with torch.no_grad():
            leaves = _leaves(solution(ts))
    if ax is None:
        _, ax = pyplot.subplots()
    lines = 0
    for name, y in leaves:
        for label, values in _components(name, y):
            parts = [(label, values)] if not values.is_complex() else _parts(label, values)
            for part, numbers in parts:
                ax.plot(ts.numpy(), numbers.numpy(), **({"label": part} | style))
                lines += 1
    ax.set_xlabel("t")
    if lines <= _LEGEND_LIMIT:
        ax.legend()
    return ax


def to_pandas(solution: Solution) -> Any:
    """See :meth:`pyjode.Solution.to_pandas`."""
    pandas = _library("pandas", "pandas", "to_pandas")
    columns = {label: values.numpy() for name, y in _leaves(solution.ys) for label, values in _components(name, y)}
    return pandas.DataFrame(columns, index=pandas.Index(solution.ts.detach().numpy(), name="t"))


def to_xarray(solution: Solution) -> Any:
    """See :meth:`pyjode.Solution.to_xarray`."""
    xarray = _library("xarray", "xarray", "to_xarray")
    variables = {
        name: (("t", *(f"{name}_dim_{i}" for i in range(y.ndim - 1))), y.numpy()) for name, y in _leaves(solution.ys)
    }
    counts = {name: n for name, n in asdict(solution.stats).items() if n is not None}
    attributes = {"method": solution.method, "engine": solution.engine, "retcode": solution.retcode, **counts}
    return xarray.Dataset(variables, coords={"t": solution.ts.detach().numpy()}, attrs=attributes)


def _library(module: str, package: str, method: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UnsupportedError(f"Solution.{method} needs {package}: pip install {package}") from None


def _leaves(ys: Any) -> list[tuple[str, Tensor]]:
    """The tensors of a nest with a name for each: ``y``, or where it lies in the nest, as ``y.a`` or ``y.0``."""
    named = pytree.tree_flatten_with_path(ys)[0]
    return [(".".join(["y", *map(_key, path)]), y.detach().cpu()) for path, y in named]


def _key(key: Any) -> str:
    return str(next(getattr(key, name) for name in ("key", "idx", "name") if hasattr(key, name)))


def _components(name: str, y: Tensor) -> list[tuple[str, Tensor]]:
    """Each entry of a state of shape ``(T, *shape)`` as a series of shape ``(T,)``."""
    if y.ndim == 1:
        return [(name, y)]
    indices = torch.cartesian_prod(*(torch.arange(n) for n in y.shape[1:])).reshape(-1, y.ndim - 1).tolist()
    flat = y.reshape(len(y), -1)
    return [(f"{name}[{','.join(map(str, index))}]", flat[:, i]) for i, index in enumerate(indices)]


def _parts(label: str, values: Tensor) -> list[tuple[str, Tensor]]:
    return [(f"Re {label}", values.real), (f"Im {label}", values.imag)]
