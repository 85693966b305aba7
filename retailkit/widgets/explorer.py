"""Explorers for notebooks: controls wired to one pure function that draws a figure.

The figure is shown in an `Image` widget: with `Output` and `interact`, one headless run in about fifty never ends.
"""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ipywidgets as W
from matplotlib.figure import Figure
from PIL import Image

from retailkit.plots import png

STATES = 5  # of an explorer that a page without a kernel shows
WIDTH = 560  # of their pictures in pixels


def _control(name: str, offered: Sequence[Any] | bool) -> W.ValueWidget:
    label = name.replace("_", " ")
    if isinstance(offered, bool):
        return W.Checkbox(value=offered, description=label, indent=False)
    if isinstance(offered, range):
        low, high = offered.start, offered.stop - 1
        return W.IntSlider(low, low, high, offered.step, description=label, continuous_update=False)
    return W.Dropdown(options=list(offered), description=label)


class Explorer(W.VBox):
    """Controls above a picture and the message of an error; setting `controls[name].value` drives it from code."""

    def __init__(self, render: Callable[..., Figure], offered: Mapping[str, Sequence[Any] | bool]) -> None:
        self.render = render
        self.offered = {name: [False, True] if isinstance(v, bool) else list(v) for name, v in offered.items()}
        self.controls = {name: _control(name, values) for name, values in offered.items()}
        self.picture = W.Image(format="png", layout=W.Layout(max_width="100%"))
        self.message = W.HTML()
        for widget in self.controls.values():
            widget.observe(self._refresh, names="value")
        bar = W.HBox(list(self.controls.values()), layout=W.Layout(flex_flow="row wrap"))
        super().__init__([bar, self.message, self.picture])
        self._draw()  # an error in the first figure fails the notebook
        # Set by the runner. IPython would hide an error of `_repr_mimebundle_`, so that the page is made here.
        self.states = self.page() if "RETAILKIT_RUN_DIR" in os.environ else ""

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        """Return the widget, and in a run without a screen some of its states as HTML, for pages without a kernel."""
        bundle = super()._repr_mimebundle_(**options)
        return bundle | ({"text/html": self.states} if self.states else {})

    def page(self) -> str:
        """Return some states as HTML that needs no script: each is a line that opens to its picture.

        In each a single control is moved away from where it stands, so that the picture shows what it does. A notebook
        shows the picture of the controls as they stand just before.
        """
        first = self._values()
        states: list[dict[str, Any]] = []
        for moved in range(1, STATES + 1):
            for name, offered in self.offered.items():
                state = first | {name: offered[(offered.index(first[name]) + moved) % len(offered)]}
                if state not in [first, *states]:
                    states.append(state)
        return "".join(self._state(state, opened=state is states[0]) for state in states[:STATES])

    def _values(self) -> dict[str, Any]:
        return {name: widget.value for name, widget in self.controls.items()}

    def _state(self, state: dict[str, Any], opened: bool) -> str:
        image = Image.open(io.BytesIO(png(self.render(**state)))).convert("RGB")
        image.thumbnail((WIDTH, 2 * WIDTH))
        stream = io.BytesIO()
        image.save(stream, "jpeg", quality=55, optimize=True)
        said = html.escape(", ".join(f"{self.controls[name].description}: {value}" for name, value in state.items()))
        source = "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
        return (
            f"<details{' open' if opened else ''}><summary>{said}</summary>"
            f'<img alt="{said}" src="{source}" style="max-width: 100%"></details>'
        )

    def _draw(self) -> None:
        self.picture.value = png(self.render(**self._values()))
        self.message.value = ""

    def _refresh(self, _: Any) -> None:
        try:
            self._draw()
        except Exception as error:  # a callback's traceback would vanish in the browser's console
            self.message.value = f"<b>{type(error).__name__}</b>: {html.escape(str(error))}"


def explorer(render: Callable[..., Figure], **values: Sequence[Any] | bool) -> Explorer:
    """Return controls wired to `render`, a pure function of one keyword per control that returns a Figure.

    Each of `values` is what a control offers: a checkbox for True or False, a slider for a `range`, else a menu.
    """
    return Explorer(render, values)
