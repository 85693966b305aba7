"""Widgets with a part in the browser: an image whose regions can be clicked, and a button that uploads a photo."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import traitlets

NOWHERE = 65535  # label of pixels that belong to no region
LONGEST = 255  # characters of a file's name
HERE = Path(__file__).parent


class Picture(anywidget.AnyWidget):
    """An image of regions; a click, or Enter after the arrow keys, sets `clicked`."""

    _esm, _css = HERE / "picture.js", HERE / "picture.css"
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


class Upload(anywidget.AnyWidget):
    """A button that sends one photo at a time to Python, says so, and refuses one that is too large."""

    _esm = HERE / "upload.js"
    megabytes = traitlets.Int().tag(sync=True)  # at most; more would end the connection, so the browser keeps it

    def on_upload(self, act: Callable[[bytes, str], None]) -> None:
        """Call `act` with the content and the name of each photo; what a page sends that is not ours may lack both."""

        def receive(_: Any, message: Any, buffers: list[memoryview]) -> None:
            name = str(message.get("name", ""))[:LONGEST] if isinstance(message, dict) else ""
            try:
                act(b"".join(buffers[:1]), name or "photo")
            finally:
                self.send({"done": name})

        self.on_msg(receive)
