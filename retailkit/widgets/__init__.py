"""Explorers and the explanation tool: the only room that imports ipywidgets.

The tool consists of `model` (what is known and computed, without widgets), `page` (what each view shows), `layout`
(controls and their places), `tool` (what they do) and `start` (its data sets and models).
"""

from typing import Any

from retailkit.widgets.explorer import Explorer, explorer

__all__ = ["ExplanationTool", "Explorer", "explorer"]


def __getattr__(name: str) -> Any:  # explorers alone need no torch, which takes seconds to import
    if name != "ExplanationTool":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from retailkit.widgets.tool import ExplanationTool

    return ExplanationTool
