"""Puts the Julia sources into the wheel, where ``pyjode.engines.julia.config.julia_source_dir`` looks for them.

A build hook and not ``force-include``: an editable install must read them from the checkout, not from a copy.
"""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

IN_WHEEL = {
    "julia/Project.toml": "pyjode/_julia/Project.toml",
    "julia/src": "pyjode/_julia/src",
    "julia/ext": "pyjode/_julia/ext",
    "Project.toml": "pyjode/_julia/environment/Project.toml",
}


class JuliaSources(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version != "editable":
            build_data["force_include"].update(IN_WHEEL)
