"""Explorers and the explanation tool: the only room that imports ipywidgets.

An explorer (`explorer`) connects controls to one function that draws a figure. The tool consists of `model` (photos,
models and what is computed from them, without widgets), `page` (what each view shows), `picture` (an image that can be
clicked), `layout` (controls and their places), `tool` (what they do) and `start` (its data sets and models).
"""

from retailkit.widgets.explorer import Explorer, control, explorer
from retailkit.widgets.tool import ExplanationTool

__all__ = ["ExplanationTool", "Explorer", "control", "explorer"]
