"""An image that tells Python which of its regions was clicked; the part that runs in the browser is picture.js."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import anywidget
import numpy as np
import traitlets

NOWHERE = 65535  # label of pixels that belong to no region


class Picture(anywidget.AnyWidget):
    """An image of regions; a click, or Enter after the arrow keys, sets `clicked`."""

    _esm = Path(__file__).with_name("picture.js")
    _css = Path(__file__).with_name("picture.css")
    png = traitlets.Bytes().tag(sync=True)
    labels = traitlets.Bytes().tag(sync=True)  # uint16 of rows x columns: the region of each pixel, or `NOWHERE`
    shape = traitlets.List([0, 0]).tag(sync=True)  # rows and columns of `labels`; the image may be larger
    names = traitlets.List().tag(sync=True)  # text for each region under the mouse
    hint = traitlets.Unicode().tag(sync=True)  # text where there is none
    alt = traitlets.Unicode().tag(sync=True)  # what the image shows, for screen readers
    clicked = traitlets.List([-1, 0]).tag(sync=True)  # region and number of the click

    def show(self, png: bytes, labels: np.ndarray, names: Sequence[str], alt: str, hint: str = "") -> None:
        """Show another image.

        `labels` (h,w) are of the same proportions, -1 for no region; there is one of `names` per region.
        """
        plain = np.where(labels < 0, NOWHERE, labels).astype("<u2")
        with self.hold_sync():
            self.labels, self.shape = plain.tobytes(), list(plain.shape)
            self.names, self.alt, self.hint, self.png = list(names), alt, hint, png

    def on_click(self, act: Callable[[int], None]) -> None:
        """Call `act` with the region of each click."""
        self.observe(lambda change: act(change["new"][0]), names="clicked")
