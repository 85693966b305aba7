"""The page of the explanation tool: what is on it, and who may see it."""

import asyncio
import re
import socket

import pytest
from tornado.web import HTTPError

from retailkit.config import UsageError, UserError
from retailkit.runs import app


def test_the_page_holds_the_tool_and_nothing_else_of_the_notebook(tmp_path, monkeypatch):
    page = app.page({"DATASET": "folder", "ROOT": "photos"})
    sources = [cell.source for cell in page.cells]
    assert sources[-1] == "tool" and not any("runs.start" in source for source in sources)
    assert all(cell.cell_type == "code" for cell in page.cells)
    injected = next(cell.source for cell in page.cells if "injected-parameters" in cell.metadata.get("tags", []))
    assert 'DATASET = "folder"' in injected and 'ROOT = "photos"' in injected
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no such notebook; run this in a checkout"):
        app.page({})


@pytest.fixture
def launched(monkeypatch):
    """What Voilà is started with."""
    from voila.app import Voila

    given = []
    monkeypatch.setattr(Voila, "launch_instance", lambda argv, **more: given.extend([*argv, f"--settings={more}"]))
    return given


@pytest.mark.parametrize(
    "options, token",
    [
        ({}, ""),
        ({"token": "a secret"}, "a secret"),
        ({"ip": "0.0.0.0"}, None),
        ({"ip": "0.0.0.0", "token": "a secret"}, "a secret"),
    ],
)
def test_a_page_that_others_reach_has_a_token_and_without_one_names_of_other_hosts_are_refused(
    launched, capsys, options, token
):
    app.serve({}, port=0, browser=False, **options)
    given = dict(word.removeprefix("--").split("=", 1) for word in launched[1:])
    assert given["token"] == token if token is not None else len(given["token"]) >= 32
    assert given["Voila.ip"] == options.get("ip", "127.0.0.1")
    asked = rf"\?token={given['token'].replace(' ', '%20')}" if given["token"] else ""
    assert re.search(rf"http://{given['Voila.ip']}:\d+/{asked} ", capsys.readouterr().out)
    assert f"'allow_remote_access': {bool(given['token'])}" in given["settings"]
    # Formerly `?template=` took templates, which are programs, from any folder of the machine.
    known = ("allow_template_override", "allow_theme_override", "file_allowlist")
    assert [given[f"VoilaConfiguration.{name}"] for name in known] == ["NO", "NO", "[]"]


def test_an_address_is_this_machines_own_or_not():
    asked = ("127.0.0.1", "localhost", "::1", "0.0.0.0", "192.168.1.4", "my-host")
    assert list(map(app.is_loopback, asked)) == [True] * 3 + [False] * 3


def test_what_cannot_be_served_is_said_before_the_server_starts(launched, tmp_path, own_cache):
    """Formerly a traceback, and the link of another server with its token."""
    gone = str(tmp_path / "none")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for given, options, message in (
            ({}, {"ip": "300.1.1.1"}, "no address of this machine"),
            ({}, {"port": port}, f"--port {port} is in use"),
            ({"DATASET": "folder", "ROOT": gone}, {"port": 0}, "no such folder or CSV"),
            ({"CHECKPOINT": gone}, {"port": 0}, "no such checkpoint"),
        ):
            with pytest.raises(UserError, match=message) as refused:
                app.serve(given, browser=False, **options)
            assert isinstance(refused.value, UsageError) == (not given)
    assert not launched and not (tmp_path / "cache" / "data").exists(), "nothing was rendered before"


def test_kernels_are_few():
    kernels = app.Kernels(starting=app.KERNELS)
    with pytest.raises(HTTPError, match="pages of the tool are open"):
        asyncio.run(kernels.start_kernel())
