"""The site: built by Sphinx, opened in a real browser."""

from __future__ import annotations

import html.parser
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(path.stem for path in (ROOT / "examples").glob("*.py") if path.stem != "gallery")
# As root Chromium has no sandbox; it looks nothing up on the network.
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built pages, with one script run in the build."""
    for module in ("sphinx", "sphinx_gallery", "myst_parser", "furo"):
        pytest.importorskip(module)
    copy = tmp_path_factory.mktemp("site")
    for folder in ("docs", "examples", "pyjode"):
        # The build writes into docs/.
        ignored = shutil.ignore_patterns("_build", "__pycache__", *(["gallery"] if folder == "docs" else []))
        shutil.copytree(ROOT / folder, copy / folder, ignore=ignored)
    environment = {**os.environ, "PYJODE_DOCS_RUN": "bouncing_ball", "PYJODE_ENGINE": "torchdiffeq"}
    command = [sys.executable, "-m", "sphinx", "-b", "html", str(copy / "docs"), str(copy / "html")]
    built = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=550)
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-4000:]
    broken = [line for line in built.stderr.splitlines() if "image file not readable" in line or "failed to" in line]
    assert not broken
    return copy / "html"


class References(html.parser.HTMLParser):
    """The images and the local pages that a page refers to."""

    def __init__(self, page: Path):
        super().__init__()
        self.page, self.images, self.links = page, set[Path](), set[Path]()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        if tag == "img" and (source := found.get("src")) and not source.startswith(("http", "data:")):
            self.images.add((self.page.parent / source).resolve())
        if tag == "a" and (link := (found.get("href") or "").split("#")[0]) and not re.match(r"[a-z]+:", link):
            self.links.add((self.page.parent / link).resolve())


def test_every_script_is_a_page_with_its_figures(site: Path) -> None:
    for script in SCRIPTS:
        page = References(site / "gallery" / f"{script}.html")
        missing = [image for image in page.images if not image.exists()]
        assert not missing, (script, missing)
        # By content: Sphinx renames the second of two figures of one name.
        shown = {image.read_bytes() for image in page.images}
        for figure in (ROOT / "examples" / "results" / script).glob("*.png"):
            assert figure.read_bytes() in shown, figure
    assert any(
        "sphx_glr_bouncing_ball" in image.name for image in References(site / "gallery/bouncing_ball.html").images
    )


def test_the_gallery_is_in_the_order_of_the_reports(site: Path) -> None:
    index = (site / "gallery" / "index.html").read_text()
    names = ("damped_pendulum", "mnist_three_ways", "linear_system", "cifar10_solvers", "glucose", "mnist_resnet18")
    places = [index.index(f"{name}.html") for name in (*names, "mnist_8x8_runge_kutta", "stiff_kinetics")]
    assert places == sorted(places)


def test_every_markdown_page_and_public_name_is_there(site: Path) -> None:
    import pyjode

    for page in (ROOT / "docs").glob("*.md"):
        assert (site / f"{page.stem}.html").exists(), page
    reference = (site / "api.html").read_text(encoding="utf-8")
    for name in pyjode.__all__:
        assert name == "__version__" or f'id="pyjode.{name}"' in reference, name


def test_every_page_can_be_reached(site: Path) -> None:
    start, seen = (site / "index.html").resolve(), set[Path]()
    waiting = [start]
    while waiting:
        page = waiting.pop()
        if page not in seen and page.suffix == ".html" and page.exists():
            seen.add(page)
            waiting += References(page).links
    pages = {site / f"gallery/{script}.html" for script in SCRIPTS}
    pages |= {site / f"{page.stem}.html" for page in (ROOT / "docs").glob("*.md")}
    assert {page.resolve() for page in pages} <= seen


def test_no_page_says_an_error_in_a_browser(site: Path, tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium: apt-get install chromium")
    pages = [site / "index.html", site / "api.html", site / "gallery" / "index.html"]
    pages += [site / "gallery" / f"{script}.html" for script in SCRIPTS]
    for page in pages:
        command = [chromium, *FLAGS, f"--user-data-dir={tmp_path / page.stem}", "--enable-logging=stderr", "--dump-dom"]
        opened = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120)
        assert opened.returncode == 0, opened.stderr[-2000:]
        assert "</html>" in opened.stdout and "pyjode" in opened.stdout, page
        console = [line for line in opened.stderr.splitlines() if "CONSOLE" in line]
        assert not console, (page, console)
