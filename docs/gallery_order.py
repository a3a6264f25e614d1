"""The order of the gallery's pages: the reports', as in examples/results; then what none of them could do."""

from __future__ import annotations

from pathlib import Path

from make_readme import ORDER


class ReportsOrder:
    """Sort key of sphinx-gallery: made with a folder, called with a script's name."""

    def __init__(self, folder: str):
        self.folder = folder

    def __call__(self, script: str) -> int:
        name = Path(script).stem
        return ORDER.index(name) if name in ORDER else len(ORDER)
