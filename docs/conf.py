"""The site, ``make docs``: the .md files here, the scripts of the gallery, and the docstrings.

Each script becomes a page with the figures and the table of its full run (``examples/results``). Those that take a
minute or less with ``--quick`` are also run while the site is built. ``PYJODE_DOCS_RUN`` names others, by commas, or
``none``.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
# pyjode; gallery.py, which is no page; make_readme.py and gallery_order.py, for the order of the gallery.
sys.path[:0] = [str(path) for path in (ROOT, ROOT / "examples", ROOT / "examples" / "results", HERE)]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pyjode  # noqa: E402
from pyjode.engines.julia.config import find_julia  # noqa: E402

project = "pyjode"
author = "pyjode developers"
release = version = pyjode.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_gallery.gen_gallery",
]
source_suffix = {".rst": "restructuredtext", ".md": "markdown"}
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"pyjode {release}"
html_copy_source = False
html_show_sourcelink = False
myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath"]
autodoc_typehints = "none"  # shapes and dtypes are in the docstrings, in words
autodoc_member_order = "groupwise"
napoleon_use_rtype = False
# The pages link to files of the repository too, which are no pages of the site.
suppress_warnings = ["myst.xref_missing", "config.cache"]
warnings.filterwarnings("ignore", message="pyjode uses its embedded engine")

# The order of the side bar; a page that is not named comes last.
GUIDE = ["quickstart", "switching", "from_diffeqpy", "choosing_a_solver", "choosing_a_sensealg", "how_f_reaches_julia"]
GUIDE += [
    "events",
    "independent",
    "julia_functions",
    "clusters_and_offline",
    "troubleshooting",
    "limits",
    "comparisons",
    "findings",
]

RUN = ["linear_system", "bouncing_ball", "augmented"]
if find_julia() is not None:
    RUN += ["stiff_kinetics", "ensemble"]
if "PYJODE_DOCS_RUN" in os.environ:
    RUN = [name for name in os.environ["PYJODE_DOCS_RUN"].split(",") if name not in ("", "none")]


def contents() -> str:
    """The side bar: what the first page has on GitHub as links, Sphinx wants as a toctree."""
    pages = {path.stem for path in HERE.glob("*.md")} - {"index"}
    order = [name for name in GUIDE if name in pages] + sorted(pages - set(GUIDE))
    trees = [("Guide", order), ("Gallery", ["gallery/index"]), ("Reference", ["api"])]
    return "".join(
        f"\n\n```{{toctree}}\n:hidden:\n:maxdepth: 1\n:caption: {caption}\n\n" + "\n".join(names) + "\n```\n"
        for caption, names in trees
    )


# Scripts are staged with their results, so that sphinx-gallery sees one cell more.
STAGED = HERE / "_build" / "examples"


def stage() -> None:
    shutil.rmtree(STAGED, ignore_errors=True)
    STAGED.mkdir(parents=True)
    shutil.copy(ROOT / "examples" / "GALLERY_HEADER.rst", STAGED)
    for script in set((ROOT / "examples").glob("*.py")) - {ROOT / "examples" / "gallery.py"}:
        text = script.read_text(encoding="utf-8") + full_run(ROOT / "examples" / "results" / script.stem)
        (STAGED / script.name).write_text(text, encoding="utf-8")


def full_run(results: Path) -> str:
    """The cell with the table and the figures of a full run, if there was one."""
    if not (results / "metrics.json").exists():
        return ""
    metrics = json.loads((results / "metrics.json").read_text(encoding="utf-8"))
    figures = sorted(results.glob("*.png"))
    cut = "; ".join(metrics["cut"]) or "nothing"
    lines = [
        "%%",
        "The full run",
        "------------",
        f"Engine: {metrics['engine']}; cut from the report's sizes: {cut}; {metrics['seconds']:.0f} s on shared cores.",
        "",
        ".. list-table::",
        "   :header-rows: 1",
        "",
        "   * - what",
        "     - report",
        "     - ours",
    ]
    for row in metrics["comparison"]:
        lines += [f"   * - {row['what']}", f"     - {row['report'] or chr(8211)}", f"     - {row['ours']}"]
    for figure in figures:
        lines += ["", f".. image:: /{os.path.relpath(figure, HERE)}", f"   :alt: {results.name}: {figure.stem}"]
    cell = "\n" + "\n".join(f"# {line}".rstrip() for line in lines) + "\n"
    return cell + (f"\n# sphinx_gallery_thumbnail_path = {os.path.relpath(figures[-1], HERE)!r}\n" if figures else "")


def command_line(gallery_conf: dict[str, Any], script_vars: dict[str, Any]) -> list[str]:
    """Of a script that is run in a build."""
    out = HERE / "_build" / "runs" / Path(script_vars["src_file"]).stem
    return ["--quick", "--data", str(ROOT.parent / "shared" / "data"), "--out", str(out)]


def forget_last_script(gallery_conf: dict[str, Any], fname: str) -> None:
    """What a script sets for its process must not reach the next one."""
    import torch

    torch.set_default_dtype(torch.float32)
    pyjode.set_default_engine(None)


sphinx_gallery_conf = {
    "examples_dirs": str(STAGED),
    "gallery_dirs": "gallery",
    "within_subsection_order": "gallery_order.ReportsOrder",
    "filename_pattern": rf"/({'|'.join(RUN) or 'none'})\.py$",
    "reset_argv": command_line,
    "reset_modules": ("matplotlib", forget_last_script),
    "download_all_examples": False,
    "remove_config_comments": True,
    "abort_on_example_error": True,
}


def setup(app: Any) -> None:
    stage()

    def add_contents(app: Any, docname: str, source: list[str]) -> None:
        if docname == "index":
            source[0] += contents()

    app.connect("source-read", add_contents)
