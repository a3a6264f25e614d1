"""Solutions as plots, pandas data frames and xarray data sets."""

from __future__ import annotations

import math
import sys

import matplotlib
import numpy as np
import pytest
import torch

from pyjode import InputError, ODEProblem, Solution, UnsupportedError, solve

matplotlib.use("Agg")


def solved(y0: object, f: object = None, **options: object) -> Solution:
    problem = ODEProblem(f or (lambda t, y: -y), y0, (0.0, 1.0))  # type: ignore[arg-type]
    return solve(problem, saveat=0.25, engine="torchdiffeq", rtol=1e-9, atol=1e-11, **options)  # type: ignore[arg-type]


TIMES = [0.0, 0.25, 0.5, 0.75, 1.0]
DECAY = np.exp(-np.array(TIMES))


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    from matplotlib import pyplot

    pyplot.close("all")


def test_to_pandas_has_a_row_a_time_and_a_column_an_entry() -> None:
    pandas = pytest.importorskip("pandas")
    y0 = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64, requires_grad=True)
    frame = solved(y0).to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert frame.index.name == "t" and frame.index.tolist() == TIMES
    assert frame.columns.tolist() == ["y[0,0]", "y[0,1]", "y[1,0]", "y[1,1]"]
    np.testing.assert_allclose(frame["y[1,0]"], 3 * DECAY, rtol=1e-7)


def test_to_pandas_names_the_entries_of_a_nest() -> None:
    pytest.importorskip("pandas")
    y0 = {"a": torch.tensor(1.0, dtype=torch.float64), "b": (torch.ones(2), torch.ones(1))}
    frame = solved(y0, lambda t, y: {"a": -y["a"], "b": (-y["b"][0], -y["b"][1])}).to_pandas()
    assert frame.columns.tolist() == ["y.a", "y.b.0[0]", "y.b.0[1]", "y.b.1[0]"]
    assert frame.dtypes["y.a"] == np.float64 and frame.dtypes["y.b.0[0]"] == np.float32


def test_to_xarray_keeps_shapes_and_says_who_solved() -> None:
    xarray = pytest.importorskip("xarray")
    solution = solved({"q": torch.ones(2, 3, dtype=torch.float64), "p": torch.ones(2)}, lambda t, y: y)
    data = solution.to_xarray()
    assert isinstance(data, xarray.Dataset)
    assert dict(data["y.q"].sizes) == {"t": 5, "y.q_dim_0": 2, "y.q_dim_1": 3}
    np.testing.assert_allclose(data["y.q"].sel(t=1.0), math.e, rtol=1e-7)
    assert data.attrs["method"] == solution.method and data.attrs["nfe"] == solution.stats.nfe
    single = solved(torch.ones(2)).to_xarray()
    assert list(single) == ["y"] and single["y"].dims == ("t", "y_dim_0")


def test_plot_draws_each_entry_and_returns_the_axes() -> None:
    axes = solved(torch.tensor([1.0, 2.0], dtype=torch.float64)).plot()
    assert [line.get_label() for line in axes.lines] == ["y[0]", "y[1]"]
    np.testing.assert_allclose(axes.lines[1].get_ydata(), 2 * DECAY, rtol=1e-7)
    assert axes.get_xlabel() == "t" and axes.get_legend() is not None
    again = solved(torch.ones(1)).plot(axes, color="black", linestyle="--")
    assert again is axes and len(axes.lines) == 3 and axes.lines[2].get_color() == "black"


def test_plot_by_dense_output_and_of_complex_states() -> None:
    y0 = torch.tensor([1.0 + 0.0j], dtype=torch.complex128)
    axes = solved(y0, lambda t, y: 1j * y).plot(points=50)
    assert [line.get_label() for line in axes.lines] == ["Re y[0]", "Im y[0]"]
    t, y = axes.lines[1].get_data()
    assert len(t) == 50
    np.testing.assert_allclose(y, np.sin(t), atol=1e-7)
    with pytest.raises(InputError, match="a line needs two"):
        solved(torch.ones(1)).plot(points=1)
    with pytest.raises(UnsupportedError, match="dense=True"):
        solved(torch.ones(1), dense=False).plot(points=5)


def test_many_entries_get_no_legend() -> None:
    assert solved(torch.ones(13)).plot().get_legend() is None


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [("plot", "matplotlib.pyplot", "matplotlib"), ("to_pandas", "pandas", "pandas"), ("to_xarray", "xarray", "xarray")],
)
def test_a_library_that_is_not_there_is_named(
    name: str, module: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UnsupportedError, match=f"{name} needs {package}: pip install {package}"):
        getattr(solved(torch.ones(1)), name)()
