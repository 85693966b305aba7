"""Explorers and the explanation tool: the only room that imports ipywidgets.

An explorer (`explorer`) wires controls to one function that draws a figure. The tool (`tool`) wires its `controls` to
`desk`, which knows photos and models and no widget, and keeps a `state`, from which `views` make HTML and pixels and
`documents` figures and pages: pure functions. `picture` is a picture that can be clicked, `uploads` checks a photo from
outside.
"""

from retailkit.widgets.explorer import Explorer, control, explorer
from retailkit.widgets.tool import ExplanationTool, explanation_tool

__all__ = ["ExplanationTool", "Explorer", "control", "explanation_tool", "explorer"]
