"""The order of the gallery's pages: the reports', as in examples/results; then what none of them could do."""

from __future__ import annotations

import importlib.util
from pathlib import Path

_FILE = Path(__file__).resolve().parents[1] / "examples" / "results" / "make_readme.py"
_SPEC = importlib.util.spec_from_file_location("make_readme", _FILE)
assert _SPEC is not None and _SPEC.loader is not None
_RESULTS = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_RESULTS)


class ReportsOrder:
    """Sort key of sphinx-gallery: made with a folder, called with a script's name."""

    def __init__(self, folder: str):
        self.folder = folder

    def __call__(self, script: str) -> int:
        name = Path(script).stem
        return _RESULTS.ORDER.index(name) if name in _RESULTS.ORDER else len(_RESULTS.ORDER)
