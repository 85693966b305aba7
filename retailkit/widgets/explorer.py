"""Explorers for notebooks: controls wired to one pure function that draws a figure.

The figure is shown in an `Image` widget: with `Output` and `interact`, one headless run in about fifty never ends.
"""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets as W
from matplotlib.figure import Figure
from PIL import Image

from retailkit.plots import png

STATES = 5  # of an explorer that a page without a kernel shows
WIDTH = 560  # of their pictures in pixels


def _control(name: str, values: Sequence[Any] | bool) -> W.ValueWidget:
    label = name.replace("_", " ")
    if isinstance(values, bool):
        return W.Checkbox(value=values, description=label, indent=False)
    if isinstance(values, range):
        low, high = values.start, values.stop - 1
        return W.IntSlider(low, low, high, values.step, description=label, continuous_update=False)
    return W.Dropdown(options=list(values), description=label)


def _offered(control: W.ValueWidget) -> list[Any]:
    if isinstance(control, W.Checkbox):
        return [False, True]
    if isinstance(control, W.IntSlider):
        return list(range(control.min, control.max + 1, control.step))
    return list(control.options)


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
        names, first = list(self.controls), {name: widget.value for name, widget in self.controls.items()}
        states: list[dict[str, Any]] = []
        for step in range(STATES * len(names)):
            name = names[step % len(names)]
            offered = _offered(self.controls[name])
            moved = (offered.index(first[name]) + 1 + step // len(names)) % len(offered)
            if (state := first | {name: offered[moved]}) not in [first, *states] and len(states) < STATES:
                states.append(state)
        return "".join(self._state(state, opened=state is states[0]) for state in states)

    def _state(self, state: dict[str, Any], opened: bool) -> str:
        image = Image.open(io.BytesIO(png(self.render(**state)))).convert("RGB")
        image.thumbnail((WIDTH, 2 * WIDTH))
        stream = io.BytesIO()
        image.save(stream, "jpeg", quality=55, optimize=True)
        said = ", ".join(f"{self.controls[name].description}: {value}" for name, value in state.items())
        source = "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
        said = html.escape(said)
        return (
            f"<details{' open' if opened else ''}><summary>{said}</summary>"
            f'<img alt="{said}" src="{source}" style="max-width: 100%"></details>'
        )

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
