"""Explorers and the explanation tool: the only room that imports ipywidgets.

The tool consists of `model` (what is known and computed, without widgets), `page` (what each view shows), `layout`
(controls and their places), `tool` (what they do) and `start` (its data sets and models).
"""

from retailkit.widgets.explorer import Explorer, explorer
from retailkit.widgets.tool import ExplanationTool

__all__ = ["ExplanationTool", "Explorer", "explorer"]
