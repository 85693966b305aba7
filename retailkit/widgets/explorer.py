"""Explorers for notebooks: controls wired to one pure function that draws a figure.

The figure is shown in an `Image` widget: with `Output` and `interact`, one headless run in about fifty never ends.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets as W
from matplotlib.figure import Figure

from retailkit.plots import png


def _control(name: str, values: Sequence[Any] | bool) -> W.ValueWidget:
    label = name.replace("_", " ")
    if isinstance(values, bool):
        return W.Checkbox(value=values, description=label, indent=False)
    if isinstance(values, range):
        low, high = values.start, values.stop - 1
        return W.IntSlider(low, low, high, values.step, description=label, continuous_update=False)
    return W.Dropdown(options=list(values), description=label)


class Explorer(W.VBox):
    """Controls above a picture and the message of an error; setting `controls[name].value` drives it from code."""

    def __init__(self, render: Callable[..., Figure], controls: dict[str, W.ValueWidget]) -> None:
        self.render, self.controls = render, controls
        self.picture = W.Image(format="png", layout=W.Layout(max_width="100%"))
        self.message = W.HTML()
        for widget in controls.values():
            widget.observe(self.refresh, names="value")
        bar = W.HBox(list(controls.values()), layout=W.Layout(flex_flow="row wrap"))
        super().__init__([bar, self.message, self.picture])
        self.draw()  # an error in the first figure fails the notebook

    def draw(self) -> None:
        """Draw with the controls' values."""
        self.picture.value = png(self.render(**{name: widget.value for name, widget in self.controls.items()}))
        self.message.value = ""

    def refresh(self, change: Any = None) -> None:
        """Draw again and show an error instead of raising it."""
        try:
            self.draw()
        except Exception as error:  # a callback's traceback would vanish in the browser's console
            self.message.value = f"<b>{type(error).__name__}</b>: {html.escape(str(error))}"


def explorer(render: Callable[..., Figure], **values: Sequence[Any] | bool) -> Explorer:
    """Return controls wired to `render`, a pure function of one keyword per control that returns a Figure.

    Each of `values` is what a control offers: a checkbox for True or False, a slider for a `range`, else a menu.
    """
    return Explorer(render, {name: _control(name, offered) for name, offered in values.items()})
