"""The page of the explanation tool: what is on it, and who may see it."""

import pytest

from retailkit.config import UserError
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
    monkeypatch.setattr(Voila, "launch_instance", given.extend)
    return given


def option(given, name):
    return next(word for word in given if word.startswith(f"--{name}=")).split("=", 1)[1]


def test_on_this_machine_no_token_is_needed(launched, capsys):
    app.serve({}, browser=False)
    assert option(launched, "token") == "" and option(launched, "Voila.ip") == "127.0.0.1"
    assert "http://127.0.0.1:8866/ " in capsys.readouterr().out


def test_a_page_that_others_reach_always_has_a_token(launched, capsys):
    app.serve({}, ip="0.0.0.0", browser=False)
    token = option(launched, "token")
    assert len(token) >= 32 and f"?token={token}" in capsys.readouterr().out
    launched.clear()
    app.serve({}, ip="0.0.0.0", token="mine", browser=False)
    assert option(launched, "token") == "mine"


@pytest.mark.parametrize("ip", ["127.0.0.1", "localhost", "::1", "0.0.0.0", "192.168.1.4", "my-host"])
def test_an_address_is_this_machines_own_or_not(ip):
    assert app.is_loopback(ip) == (ip in ("127.0.0.1", "localhost", "::1"))
