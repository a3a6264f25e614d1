"""What the world around a package reads from it."""

from __future__ import annotations

import re
from pathlib import Path

import pyjode

ROOT = Path(__file__).parents[1]


def test_the_version_is_semantic_and_the_citation_has_it() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?", pyjode.__version__)
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^version: (.*)$", citation, re.MULTILINE)[1] == pyjode.__version__  # type: ignore[index]
    assert re.search(r"^license: (.*)$", citation, re.MULTILINE)[1] == "MIT"  # type: ignore[index]


def test_the_changelog_has_a_place_for_what_comes_and_one_for_each_release() -> None:
    headings = re.findall(r"^## \[(.*?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert len(set(headings)) == len(headings)


def test_the_workflow_runs_what_ci_runs_and_asks_for_julia_that_pyjode_takes() -> None:
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert "run: .ci/run" in workflow
    from pyjode.engines.julia.config import OLDEST_JULIA

    (versions,) = re.findall(r"julia: \[(.*)\]", workflow)
    oldest = min(tuple(map(int, v.split("."))) for v in re.findall(r'"([\d.]+)"', versions))
    assert oldest == OLDEST_JULIA
