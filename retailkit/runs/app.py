"""The explanation tool as a web page: the tool of notebook 80, served by Voilà."""

from __future__ import annotations

import ipaddress
import secrets
import tempfile
from pathlib import Path
from typing import Any

from retailkit.config import UserError
from retailkit.runs.record import home

NOTEBOOK = "80_explanation_tool"
SHOWN = {"parameters", "app"}  # tags of the cells that make the tool
LARGEST = 20_000_000  # bytes of a message: an uploaded photo is one


def page(parameters: dict[str, Any]) -> Any:
    """Return the notebook of the tool, with values for its parameters cell, without everything but the tool."""
    from papermill.iorw import load_notebook_node
    from papermill.parameterize import parameterize_notebook

    path = home() / "notebooks" / f"{NOTEBOOK}.ipynb"
    if not path.is_file():
        raise UserError(f"{path}: no such notebook; run this in a checkout of the workbook")
    notebook = load_notebook_node(str(path))
    notebook.cells = [cell for cell in notebook.cells if SHOWN & set(cell.metadata.get("tags", []))]
    notebook.metadata["title"] = "Explanation tool"
    return parameterize_notebook(notebook, parameters)


def is_loopback(ip: str) -> bool:
    """Say whether an address is reached from this machine only."""
    try:
        return ip == "localhost" or ipaddress.ip_address(ip).is_loopback
    except ValueError:
        return False


def serve(parameters: dict[str, Any], ip: str = "127.0.0.1", port: int = 8866, token: str = "", browser: bool = True):
    """Serve the tool until it is interrupted.

    Whoever reaches its address can use the tool, and the kernel behind it, so that any address but this machine's own
    needs a token: visitors have to give it, and where it is "" one is made up.
    """
    import nbformat
    from voila.app import Voila

    token = token or ("" if is_loopback(ip) else secrets.token_urlsafe(24))
    with tempfile.TemporaryDirectory(prefix="retailkit") as folder:
        path = Path(folder, "explanation_tool.ipynb")
        nbformat.write(page(parameters), path)
        link = f"http://{ip}:{port}/" + (f"?token={token}" if token else "")
        print(f"explanation tool: {link} (it takes a while to open; interrupt with Ctrl-C)", flush=True)
        Voila.launch_instance(
            [
                str(path),
                f"--Voila.ip={ip}",
                f"--port={port}",
                f"--token={token}",
                "--template=lab",
                f"--Voila.open_browser={browser}",
                f"--Voila.tornado_settings={{'websocket_max_message_size': {LARGEST}}}",
            ]
        )
