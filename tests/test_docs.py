"""Every Python block of the README and of docs/ runs, in the order of its page, and prints what the page says.

A page is one script. ``<!-- julia -->`` on the line before a block says that it needs the Julia engine; before the
page's first heading, that the whole page does. A ``text`` block right after a Python block is its output: words must be
the same, numbers agree to three digits.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
import sys
import types
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MARK = "<!-- julia -->"
BLOCK = re.compile(
    rf"(?P<mark>{re.escape(MARK)}\n)?^```python\n(?P<code>.*?)^```\n(?:\n```text\n(?P<output>.*?)^```\n)?",
    re.DOTALL | re.MULTILINE,
)
NUMBER = re.compile(r"[-+]?\d+\.?\d*(?:e[-+]?\d+)?")


@dataclass(frozen=True)
class Block:
    """A block of Python, its line in the page, and the output that the page shows."""

    code: str
    line: int
    julia: bool
    output: str | None


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    whole = MARK in text.split("# ", 1)[0]
    return [
        Block(m["code"], text.count("\n", 0, m.start("code")), whole or bool(m["mark"]), m["output"])
        for m in BLOCK.finditer(text)
    ]


def run(page: Path, found: list[Block]) -> None:
    module = types.ModuleType("__main__")
    for block in found:
        # Line numbers in tracebacks are the page's own.
        code = compile("\n" * block.line + block.code, str(page), "exec")
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(code, module.__dict__)
        if block.output is not None:
            assert_same(said.getvalue(), block.output, f"{page.name}:{block.line}")


def assert_same(said: str, shown: str, where: str) -> None:
    assert " ".join(NUMBER.sub("#", said).split()) == " ".join(NUMBER.sub("#", shown).split()), where
    pairs = zip(NUMBER.findall(said), NUMBER.findall(shown), strict=True)
    for a, b in pairs:
        assert math.isclose(float(a), float(b), rel_tol=2e-3, abs_tol=1e-3), f"{where}: printed {a}, page says {b}"


@pytest.fixture(autouse=True)
def _as_a_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import matplotlib
    import torch

    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="FigureCanvasAgg is non-interactive")
        yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


def pages(julia: bool) -> list[object]:
    wanted = [page for page in PAGES if any(block.julia is julia for block in blocks(page))]
    return [pytest.param(page, id=page.name) for page in wanted]


@pytest.mark.parametrize("page", pages(julia=False))
def test_page_without_julia(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYJODE_ENGINE", "torchdiffeq")
    run(page, [block for block in blocks(page) if not block.julia])


@pytest.mark.julia
@pytest.mark.parametrize("page", pages(julia=True))
def test_page_with_julia(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYJODE_ENGINE", "julia")
    run(page, blocks(page))


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_output_is_compared() -> None:
    assert_same("loss 0.12345, done\n", "loss 0.1234, done", "here")
    for other in ("loss 0.13, done", "loss 0.12345, gone", "loss"):
        with pytest.raises((AssertionError, ValueError)):
            assert_same("loss 0.12345, done", other, "here")
