"""The explanation tool as a web page: the tool of notebook 80, served by Voilà.

A visitor's kernel holds about a gigabyte: it ends with its tab, or after an hour without use, and there are only a few.
"""

from __future__ import annotations

import errno
import ipaddress
import secrets
import socket
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import quote

import nbformat
from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager, utcnow
from tornado.web import HTTPError
from traitlets import Bool, Integer
from voila.app import Voila
from voila.shutdown_kernel_handler import VoilaShutdownKernelHandler

from retailkit import data, training
from retailkit.config import UsageError, UserError, home

NOTEBOOK = "80_explanation_tool"
SHOWN = {"parameters", "app"}  # tags of the cells that make the tool
LARGEST = 20_000_000  # bytes of a message: an uploaded photo is one
KERNELS = 4  # visitors at a time
CLOSED, IDLE = 60, 3600  # seconds after which a kernel ends: without a tab (it may come back), and with one
CSP = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; connect-src 'self' ws: wss: data: blob:; "
    "frame-ancestors 'self'; base-uri 'self'; form-action 'self'"  # no page of somebody else shows this one as its own
)


class Kernels(AsyncMappingKernelManager):
    """The kernels of the page's visitors."""

    cull_connected = Bool(True)
    cull_idle_timeout = Integer(CLOSED)
    cull_interval = Integer(10)
    starting = Integer(0)

    async def start_kernel(self, **options: Any) -> str:
        """Start a kernel, unless there are `KERNELS` already."""
        if len(self) + self.starting >= KERNELS:
            raise HTTPError(503, reason=f"{KERNELS} pages of the tool are open: close one and try again in a minute")
        self.starting += 1
        try:
            return await super().start_kernel(**options)
        finally:
            self.starting -= 1

    def notify_disconnect(self, kernel_id: str) -> None:
        """Count the seconds without a tab from now on."""
        super().notify_disconnect(kernel_id)
        if kernel_id in self:
            self.get_kernel(kernel_id).last_activity = utcnow()

    async def cull_kernel_if_idle(self, kernel_id: str) -> None:
        """End a kernel that has had no tab, or no use, for long enough."""
        self.cull_idle_timeout = IDLE if self._kernel_connections.get(kernel_id) else CLOSED
        await super().cull_kernel_if_idle(kernel_id)


class Goodbye(VoilaShutdownKernelHandler):
    """Ends a kernel as its page closes."""

    def check_xsrf_cookie(self) -> None:
        """Let the request pass: a page that closes cannot send the token, and nobody else knows the kernel's id."""


class Server(Voila):
    """Voilà with templates that ask nothing from other servers."""

    def setup_template_dirs(self) -> None:
        """Look for templates in the folder beside this file first."""
        super().setup_template_dirs()
        self.template_paths.insert(0, str(Path(__file__).with_name("app_page")))

    def init_handlers(self) -> list[tuple]:
        """Let pages say goodbye."""
        ours = {VoilaShutdownKernelHandler: Goodbye}
        return [(path, ours.get(handler, handler), *more) for path, handler, *more in super().init_handlers()]


def page(parameters: dict[str, Any]) -> Any:
    """Return the tool alone out of its notebook, with values for the parameters cell and without what cells print."""
    from papermill.iorw import load_notebook_node
    from papermill.parameterize import parameterize_notebook

    path = home() / "notebooks" / f"{NOTEBOOK}.ipynb"
    if not path.is_file():
        raise UserError(f"{path}: no such notebook; run this in a checkout of the workbook")
    notebook = load_notebook_node(str(path))
    notebook.cells = [cell for cell in notebook.cells if SHOWN & set(cell.metadata.get("tags", []))]
    for cell in notebook.cells[:-1]:
        cell.source = f"%%capture\n{cell.source}" if "app" in cell.metadata["tags"] else cell.source
    notebook.metadata["title"] = "Explanation tool"
    return parameterize_notebook(notebook, parameters)


def is_loopback(ip: str) -> bool:
    """Say whether an address is reached from this machine only."""
    try:
        return ip == "localhost" or ipaddress.ip_address(ip).is_loopback
    except ValueError:
        return False


def free_port(ip: str, port: int) -> int:
    """Return `port`, or for 0 one that is free; raise UsageError where it is taken or this machine has no such `ip`."""
    try:
        family = socket.AF_INET6 if ":" in ip else socket.AF_INET
        with socket.create_server((ip, port), family=family) as probe:
            return probe.getsockname()[1]
    except OSError as error:
        known = {
            errno.EADDRINUSE: f"--port {port} is in use; choose another one",
            errno.EACCES: f"--port {port} is not allowed; choose one above 1023",
        }
        wrong = known.get(error.errno, f"--ip {ip} is no address of this machine; try 127.0.0.1")
        raise UsageError(wrong) from None


def check(dataset: str, root: str, checkpoint: str) -> None:
    """Raise a UserError where a data set that was asked for cannot be read, or a checkpoint knows other classes."""
    model = training.load_checkpoint(checkpoint)[0] if checkpoint else None  # before anything is rendered
    if dataset != "synthetic" or root or model:
        products = data.load(dataset, root)
        if model:
            training.with_classes(products, model)


def serve(parameters: dict[str, Any], ip: str = "127.0.0.1", port: int = 8866, token: str = "", browser: bool = True):
    """Serve the tool until it is interrupted.

    Whoever reaches its address can use the tool, and the kernel behind it, so that any address but this machine's own
    needs a token: visitors have to give it, and where it is "" one is made up. Without a token, requests for a host of
    another name are refused, since a page of somebody else may make its name point here.
    """
    port = free_port(ip, port)
    check(parameters.get("DATASET", "synthetic"), parameters.get("ROOT", ""), parameters.get("CHECKPOINT", ""))
    token = token or ("" if is_loopback(ip) else secrets.token_urlsafe(24))
    with tempfile.TemporaryDirectory(prefix="retailkit") as folder:
        path = Path(folder, "explanation_tool.ipynb")
        nbformat.write(page(parameters), path)
        host = f"[{ip}]" if ":" in ip else ip
        link = f"http://{host}:{port}/" + (f"?token={quote(token, safe='')}" if token else "")
        print(f"explanation tool: {link} (it takes a while to open; interrupt with Ctrl-C)", flush=True)
        Server.launch_instance(
            [
                str(path),
                f"--Voila.ip={ip}",
                f"--port={port}",
                "--Voila.port_retries=0",
                f"--token={token}",
                "--template=lab",
                # Else `?template=` in an address takes templates, which are programs, from any folder of this machine.
                "--VoilaConfiguration.allow_template_override=NO",
                "--VoilaConfiguration.allow_theme_override=NO",
                "--VoilaConfiguration.file_allowlist=[]",  # the page needs no file beside it
                f"--Voila.open_browser={browser}",
                f"--VoilaConfiguration.multi_kernel_manager_class={__name__}.Kernels",
            ],
            tornado_settings={
                "websocket_max_message_size": LARGEST,
                "headers": {"Content-Security-Policy": CSP, "Referrer-Policy": "same-origin"},
                "allow_remote_access": bool(token),
            },
        )
