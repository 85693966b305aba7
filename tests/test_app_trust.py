"""The app among strangers: what it serves, to whom, and that two visitors do not meet."""

import asyncio
import http.client
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import hostile
import numpy as np
import pytest
from PIL import Image
from served import ROOT, opened_browser, served

from retailkit.runs import app

TOKEN, SECRET = "a token/with?signs&", b"nobody may read this"
SECRETS = ["secret.png", "secret.ipynb", "secret.js", "conf.json"]
KERNEL = "/api/kernels/00000000-0000-0000-0000-000000000000"
SCRIPT = "import sys; from retailkit.runs import app; app.serve({}, '127.0.0.1', int(sys.argv[1]), sys.argv[2], False)"
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder for the server's temporary files, with secrets beside them."""
    folder = tmp_path_factory.mktemp("server")
    for name in SECRETS:
        (folder / name).write_bytes(SECRET)
    return folder


@pytest.fixture(scope="module")
def server(place):
    """Return the port of an app with a token."""
    port = app.free_port("127.0.0.1", 0)
    environment = os.environ | {"TMPDIR": str(place), "RETAILKIT_DEVICE": "cpu"}
    words = ["-c", SCRIPT, str(port), TOKEN]
    with served(words, place / "log", f"http://127.0.0.1:{port}/login", env=environment):
        yield port


def get(port, path, method="GET", **headers):
    """Return the status, the headers and the body of an answer; the path is sent as it is."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.putrequest(method, path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    return answer.status, answer.headers, answer.read()


KEY = {"Authorization": f"token {TOKEN}"}
UP = ["../", "%2e%2e%2f", "..%5c", "..%252f"]
DOORS = ["/voila/files/", "/voila/static/", "/voila/templates/lab/static/", "/voila/templates/../static/",
         "/voila/labextensions/", "/voila/api/themes/", "/static/", "/files/", "/voila/render/", "/voila/tree/",
         "/api/contents/", "/voila/api/contents/", "/"]  # fmt: skip


@pytest.mark.parametrize("door", DOORS)
def test_no_file_outside_its_own_folder_is_served(server, place, door):
    paths = [f"{door}{up * depth}secret.png" for up in UP for depth in (1, 9)]
    paths += [f"{door}{name}" for name in SECRETS]
    paths += [f"{door}{start}{place}/{name}" for start in ("", "%2f") for name in SECRETS[:2]]
    paths += [f"{door}{up * 12}etc/passwd" for up in UP] + [f"{door}/etc/passwd", f"{door}%2fetc/passwd%00.png"]
    for path in paths if door != "/" else [p for p in paths if p.lstrip("/")]:
        status, _, body = get(server, path, **KEY)  # a visitor with the token sees no more files than a stranger
        assert SECRET not in body and b"root:x:0" not in body, path
        assert status >= 300, (path, status)


def test_its_own_files_are_served_and_the_notebook_is_not(server):
    assert get(server, "/voila/static/voila.js")[0] == 200
    for name in ("explanation_tool.ipynb", "log"):
        assert get(server, f"/voila/files/{name}", **KEY)[0] in (403, 404)


@pytest.mark.parametrize(
    "method, path",
    [("GET", "/"), ("GET", KERNEL), ("DELETE", KERNEL), ("POST", KERNEL + "/restart"), ("GET", KERNEL + "/channels"),
     ("POST", KERNEL.replace("/api/kernels", "/voila/api/shutdown")), ("GET", "/?token=wrong"), ("GET", "/?token=")],
)  # fmt: skip
def test_strangers_get_nothing_without_the_token(server, method, path):
    more = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "x"}
    for headers in ({}, {"Authorization": "token wrong"}, {"Cookie": "username=x"}):
        status, found, body = get(server, path, method, **headers, **(more if "channels" in path else {}))
        assert status in (302, 403, 404, 405) and b"kernel" not in body.lower().replace(b"/api/kernels", b""), body
        assert status != 302 or found["Location"].startswith("/login?next=")


@pytest.mark.parametrize("path", ["/api", "/api/kernels", "/api/sessions", "/api/terminals", "/api/config/x", "/lab"])
def test_there_is_no_list_of_kernels_and_no_other_part_of_jupyter(server, path):
    status, found, body = get(server, path, **KEY)
    assert status in (302, 403, 404) and not body.startswith((b"[", b'{"id'))
    assert status != 302 or found["Location"].startswith("/voila/files/")


def test_the_login_leads_nowhere_else_and_no_other_page_may_show_this_one(server):
    elsewhere = "//elsewhere.example", "https://elsewhere.example", "/\\elsewhere.example", "https:elsewhere.example"
    for target in elsewhere:
        _, found, _ = get(server, f"/login?token={quote(TOKEN, safe='')}&next={quote(target, safe='')}")
        assert "elsewhere" not in found.get("Location", "").split("?")[0] or found["Location"].startswith("/"), target
    _, found, _ = get(server, "/login")
    assert "frame-ancestors 'self'" in found["Content-Security-Policy"] and found["Referrer-Policy"] == "same-origin"


def test_the_printed_link_opens_the_page_whatever_signs_the_token_has(server, place):
    link = re.search(r"http://127.0.0.1:\d+(/\?token=\S+)", (place / "log").read_text())[1]
    assert link == "/?token=a%20token%2Fwith%3Fsigns%26"
    status, _, _ = get(server, link.replace("/?", "/login?"))
    assert status in (200, 302)


# -- Two visitors.

SLOW = 480_000  # ms: machines that test are busy


@pytest.fixture(scope="module")
def visitors(tmp_path_factory):
    """Two pages of one app in two browsers that share nothing, and the app's port."""
    home, port = tmp_path_factory.mktemp("home"), app.free_port("127.0.0.1", 0)
    hostile.photos(home)
    hostile.checkpoint(home)
    words = ["-m", "retailkit", "app", "--root", "photos", "--checkpoint", "m.safetensors", "--port", str(port)]
    environment = os.environ | {"RETAILKIT_TOKEN": TOKEN, "RETAILKIT_DEVICE": "cpu", "PYTHONPATH": str(ROOT)}
    address = f"http://127.0.0.1:{port}/"
    with (
        opened_browser() as browser,
        served([*words, "--no-browser"], home / "log", f"{address}login", cwd=home, env=environment),
    ):
        pages = [browser.new_context().new_page() for _ in range(2)]
        for page in pages:
            page.set_default_timeout(SLOW)
            page.goto(f"{address}?token={quote(TOKEN, safe='')}", timeout=SLOW, wait_until="commit")
        for page in pages:
            page.locator(".rk-tool .rk-picture canvas").first.wait_for()
        yield pages, port


@pytest.mark.check
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_visitors_do_not_see_each_others_photos_and_run_no_code(visitors, tmp_path):
    pages, port = visitors
    names = ["of_anna.png", "of_ben.png"]
    for page, name, colour in zip(pages, names, ((200, 0, 0), (0, 0, 200)), strict=True):
        Image.fromarray(np.full((90, 120, 3), colour, np.uint8)).save(tmp_path / name)
        page.locator(".rk-tool input[type=file]").set_input_files(tmp_path / name)
    for page, own, other in zip(pages, names, names[::-1], strict=True):
        page.locator(".rk-tool .rk-told", has_text=own).wait_for()
        assert own in page.content() and other not in page.content()
    kernels = [json.loads(page.locator("#jupyter-config-data").text_content())["kernelId"] for page in pages]
    assert kernels[0] != kernels[1]
    assert kernels[1] not in pages[0].content() and kernels[0] not in pages[1].content()
    assert get(port, f"/api/kernels/{kernels[0]}")[0] == 403, "a stranger who guesses an id"
    with ThreadPoolExecutor() as pool:  # playwright has a loop of its own here
        tried = pool.submit(asyncio.run, refuses_code(port, kernels[0], tmp_path / "made"))
        assert tried.result(), "messages of widgets pass, code does not"


async def refuses_code(port, kernel, made):
    """Send a program to a visitor's kernel, then a message that is allowed; return whether only that was answered."""
    from jupyter_client.session import Session
    from tornado.httpclient import HTTPRequest
    from tornado.websocket import websocket_connect

    address = f"ws://127.0.0.1:{port}/api/kernels/{kernel}/channels"
    socket = await websocket_connect(HTTPRequest(address, headers=KEY))
    session, channels = Session(), []
    program = {"code": f"open({str(made)!r}, 'w').close()", "silent": False, "store_history": False,
               "user_expressions": {}, "allow_stdin": False}  # fmt: skip
    for channel in ("shell", "control"):
        message = session.msg("execute_request", program) | {"channel": channel, "buffers": []}
        await socket.write_message(json.dumps(message, default=str))
    question = session.msg("kernel_info_request", {}) | {"channel": "shell", "buffers": []}
    await socket.write_message(json.dumps(question, default=str))
    answered = False
    while not answered:
        answer = json.loads(await asyncio.wait_for(socket.read_message(), 300))
        channels.append(answer["header"]["msg_type"])
        own = answer["parent_header"].get("msg_id") == question["header"]["msg_id"]
        answered = own and channels[-1] == "kernel_info_reply"
    socket.close()
    return not made.exists() and "execute_reply" not in channels
