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


def test_on_this_machine_no_token_is_needed(launched, capsys):
    app.serve({}, port=0, browser=False)
    assert option(launched, "token") == "" and option(launched, "Voila.ip") == "127.0.0.1"
    assert re.search(r"http://127\.0\.0\.1:\d+/ ", capsys.readouterr().out)


def test_a_page_that_others_reach_always_has_a_token(launched, capsys):
    app.serve({}, ip="0.0.0.0", port=0, browser=False)
    token = option(launched, "token")
    assert len(token) >= 32 and f"?token={token}" in capsys.readouterr().out
    launched.clear()
    app.serve({}, ip="0.0.0.0", port=0, token="mine", browser=False)
    assert option(launched, "token") == "mine" and "?token=mine " in capsys.readouterr().out
    assert option(launched, "Voila.ip") == "0.0.0.0" and "'allow_remote_access': True" in option(launched, "settings")


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


def test_names_of_other_hosts_are_refused_unless_a_token_is_asked_for(launched):
    app.serve({}, port=0, browser=False)
    assert "'allow_remote_access': False" in option(launched, "settings")
    launched.clear()
    app.serve({}, port=0, token="secret", browser=False)
    assert "'allow_remote_access': True" in option(launched, "settings")


def test_an_address_chooses_no_template_and_no_file(launched):
    """Formerly `?template=` took templates, which are programs, from any folder of the machine."""
    app.serve({}, port=0, browser=False)
    assert option(launched, "VoilaConfiguration.allow_template_override") == "NO"
    assert option(launched, "VoilaConfiguration.allow_theme_override") == "NO"
    assert option(launched, "VoilaConfiguration.file_allowlist") == "[]"


def test_kernels_are_few():
    kernels = app.Kernels(starting=app.KERNELS)
    with pytest.raises(HTTPError, match="pages of the tool are open"):
        asyncio.run(kernels.start_kernel())


def test_a_missing_folder_or_checkpoint_is_said_before_the_server_starts(launched, tmp_path, own_cache):
    with pytest.raises(UserError, match="no such folder or CSV"):
        app.serve({"DATASET": "folder", "ROOT": str(tmp_path / "none")}, port=0, browser=False)
    with pytest.raises(UserError, match="no such checkpoint"):
        app.serve({"CHECKPOINT": str(tmp_path / "none")}, port=0, browser=False)
    assert not launched and not (tmp_path / "cache" / "data").exists(), "nothing was rendered before"
