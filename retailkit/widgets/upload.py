"""A button that uploads a photo, says so, and refuses one that is too large; its part in the browser is upload.js."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anywidget
import traitlets

LONGEST = 255  # characters of a name


class Upload(anywidget.AnyWidget):
    """Sends one photo at a time to Python."""

    _esm = Path(__file__).with_name("upload.js")
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
