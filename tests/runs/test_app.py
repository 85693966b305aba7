"""The page of the explanation tool: what is on it, and who may see it."""

import asyncio
import re
import socket

import pytest
from tornado.web import HTTPError

from retailkit.config import UsageError, UserError
from retailkit.runs import app


def test_the_page_holds_the_tool_and_nothing_else_of_the_notebook():
    page = app.page({"DATASET": "folder", "ROOT": "photos"})
    sources = [cell.source for cell in page.cells]
    assert sources[-1] == "tool" and not any("runs.start" in source for source in sources)
    assert all(cell.cell_type == "code" for cell in page.cells)
    injected = next(cell.source for cell in page.cells if "injected-parameters" in cell.metadata.get("tags", []))
    assert 'DATASET = "folder"' in injected and 'ROOT = "photos"' in injected


def test_without_the_notebook_the_page_says_where_to_run(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no such notebook"):
        app.page({})


@pytest.fixture
def launched(monkeypatch):
    """What Voilà is started with."""
    from voila.app import Voila

    given = []
    monkeypatch.setattr(Voila, "launch_instance", lambda argv, **more: given.extend([*argv, f"--settings={more}"]))
    return given


def option(given, name):
    return next(word for word in given if word.startswith(f"--{name}=")).split("=", 1)[1]


@pytest.mark.parametrize("ip", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize("token", ["", "mine"])
def test_whoever_comes_from_outside_needs_a_token_and_other_names_need_one_too(launched, capsys, ip, token):
    app.serve({}, ip=ip, port=0, token=token, browser=False)
    used, printed = option(launched, "token"), capsys.readouterr().out
    assert used == token or (ip == "0.0.0.0" and len(used) >= 32)
    assert option(launched, "Voila.ip") == ip and f"'allow_remote_access': {bool(used)}" in option(launched, "settings")
    assert re.search(rf"http://{ip}:\d+/" + (rf"\?token={used} " if used else " "), printed)


@pytest.mark.parametrize("ip", ["127.0.0.1", "localhost", "::1", "0.0.0.0", "192.168.1.4", "my-host"])
def test_an_address_is_this_machines_own_or_not(ip):
    assert app.is_loopback(ip) == (ip in ("127.0.0.1", "localhost", "::1"))


def test_a_wrong_address_and_a_busy_port_get_one_line(launched):
    """Formerly a traceback, and the link of another server with its token."""
    with pytest.raises(UsageError, match="no address of this machine"):
        app.serve({}, ip="300.1.1.1", browser=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"--port {port} is in use"):
            app.serve({}, port=port, browser=False)
    assert not launched


def test_kernels_are_few():
    kernels = app.Kernels(starting=app.KERNELS)
    with pytest.raises(HTTPError, match="pages of the tool are open"):
        asyncio.run(kernels.start_kernel())


def test_a_missing_folder_or_checkpoint_is_said_before_the_server_starts(launched, tmp_path):
    with pytest.raises(UserError, match="no such folder or CSV"):
        app.serve({"DATASET": "folder", "ROOT": str(tmp_path / "none")}, port=0, browser=False)
    with pytest.raises(UserError, match="no such checkpoint"):
        app.serve({"CHECKPOINT": str(tmp_path / "none")}, port=0, browser=False)
    assert not launched
