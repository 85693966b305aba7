"""The explanation tool in a real browser, in JupyterLab and as an app; `SHOTS` keeps screenshots.

With RETAILKIT_TOOL_PICTURE=docs/tool.jpg in the environment, `-k "app and picture"` makes the README's picture anew.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image

from retailkit import data
from retailkit.data.table import read_truth
from retailkit.plots.images import visible
from retailkit.runs import app

pytest.importorskip("playwright", reason="playwright is missing; run: pip install playwright")
from playwright.sync_api import expect, sync_playwright

ROOT = Path(__file__).parents[1]
SHOTS = ROOT / "papermill_runs" / "latest" / "screenshots"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
             "--disable-background-networking", "--disable-component-update"]  # fmt: skip
SLOW = 180_000  # ms: machines that test are busy
TOKEN = "for-this-test"
MODELS = "embracenet,text"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def find_browser():
    """Return the path of a browser; skip with the command that installs one where there is none."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    return found or pytest.skip("no browser was found; run: make browser")


@pytest.fixture(scope="module")
def browser():
    path = find_browser()
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A CSV of rendered products with the words that are printed on them, so that nothing has to be read."""
    root = tmp_path_factory.mktemp("photos")
    shop = data.load("synthetic", root, per_class=(4, 0, 2), families=2)
    printed = [visible(read_truth(path)[1]["words"]) for path in shop.table["truth"]]
    table = shop.table.assign(text=[" ".join(word.text for word in words) for words in printed])
    columns = ["image", "label", "family", "split", "text", "mask"]
    for column in ("image", "mask"):
        table[column] = [os.path.relpath(path, root) for path in table[column]]
    table[columns].to_csv(root / "photos.csv", index=False)
    return root / "photos.csv"


@pytest.fixture(params=["lab", "app"], scope="module")
def place(request, browser, photos, tmp_path_factory):
    """Return the page of the tool, opened in JupyterLab or as an app, and its name."""
    folder, port = tmp_path_factory.mktemp(request.param), app.free_port("127.0.0.1", 0)
    parameters = {"DATASET": "folder", "ROOT": str(photos), "MODELS": MODELS}
    settings = {"JUPYTER_CONFIG_DIR": folder / "config", "JUPYTERLAB_SETTINGS_DIR": folder / "config" / "lab"}
    environment = os.environ | {name: str(value) for name, value in settings.items()}
    if request.param == "lab":
        nbformat.write(app.page(parameters), folder / "tool.ipynb")
        prepare_lab(folder / "config" / "lab" / "@jupyterlab" / "apputils-extension")
        options = [f"--port={port}", "--ip=127.0.0.1", "--no-browser", "--allow-root", "--ServerApp.port_retries=0",
                   f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={folder}",
                   "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]  # fmt: skip
        command = [sys.executable, "-m", "jupyterlab", *options]
        address = f"http://127.0.0.1:{port}/lab/tree/tool.ipynb?token={TOKEN}&reset"
    else:
        options = ["--dataset", "folder", "--root", str(photos), "--models", MODELS, "--port", str(port)]
        command = [sys.executable, "-m", "retailkit", "app", *options, "--no-browser", "--token", TOKEN]
        address = f"http://127.0.0.1:{port}/?token={TOKEN}"
    server = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=(folder / "log").open("w"), stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    page = browser.new_context(viewport={"width": 1366, "height": 900}, accept_downloads=True).new_page()
    page.set_default_timeout(SLOW)
    page.route(re.compile(r"^https?://(?!127\.0\.0\.1)"), lambda route: route.abort())
    try:
        wait_for(port, server)
        page.goto(address, timeout=SLOW)
        if request.param == "lab":
            run_all(page)
        page.locator(".rk-tool .rk-picture canvas").first.wait_for()
        shot(page, request.param, "opened")
        yield page, request.param
    except BaseException:
        print((folder / "log").read_text()[-3000:])
        shot(page, request.param, "failed")
        raise
    finally:
        page.close()
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


@pytest.fixture
def page(place):
    return place[0]


def prepare_lab(folder):
    """No pop-up of news over the notebook, and the dark theme; the app is light."""
    folder.mkdir(parents=True)
    (folder / "notification.jupyterlab-settings").write_text('{"fetchNews": "false", "checkForUpdates": false}')
    (folder / "themes.jupyterlab-settings").write_text('{"theme": "JupyterLab Dark"}')


def wait_for(port, server):
    for _ in range(240):
        assert server.poll() is None, "the server has ended"
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/api", timeout=5)
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError("the server does not answer")


def run_all(page):
    page.locator(".jp-NotebookPanel .jp-Cell").first.wait_for()
    expect(page.locator("#jp-main-statusbar")).to_contain_text("| Idle", timeout=SLOW)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()


def shot(page, where, name):
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{where}_{name}.png")


def tab(page, name):
    page.locator(".rk-tool").get_by_role("tab", name=name).click()


def part(page, of="rk-what_if"):
    return page.locator(f".rk-tool .{of} canvas").first


def bars(page):
    return page.locator(".rk-bars tbody tr").all_inner_texts()


def changed(page):
    rows = [re.findall(r"\d\.\d\d", row)[-2:] for row in bars(page)]  # before and after
    return any(before != after for before, after in rows)


def until(page, holds):
    for _ in range(SLOW // 200):
        if holds():
            return
        page.wait_for_timeout(200)
    raise AssertionError("it did not come to hold")


def choose(page, number):
    page.locator(".rk-tool .rk-strip canvas").click(position={"x": 118 * number - 58, "y": 60})
    expect(page.locator(".rk-tool .rk-told")).to_contain_text(f"photo {number} of", timeout=SLOW)


def undo(page):
    page.locator("button.rk-undo").click()
    expect(part(page)).to_have_attribute("aria-label", re.compile("0 superpixels and 0 words hidden"), timeout=SLOW)


def test_a_click_on_a_thumbnail_opens_that_photo(page):
    expect(page.locator(".rk-tool .rk-told")).to_contain_text("photo 1 of")
    choose(page, 3)


def take_masks(page, count):
    readout = page.locator(".rk-masks .widget-readout")
    readout.click()
    readout.fill(str(count))
    readout.press("Enter")


def test_an_explanation_comes_with_its_words_and_badges(place):
    page, where = place
    choose(page, 1)
    tab(page, "Why?")
    take_masks(page, 640)  # with few, or on the next photos, the fit is too bad for a map
    page.locator("button.rk-explain").click()
    expect(page.locator(".rk-tool .rk-status")).to_contain_text("Done", timeout=SLOW)
    assert page.locator(".rk-panel p:has-text('R²')").count() == 2
    expect(page.locator(".rk-panel table").first).to_be_visible()
    assert "Map of the photo" in part(page, "rk-panel").get_attribute("aria-label")
    shot(page, where, "explained")


def test_a_click_switches_a_superpixel_off(place):
    page, where = place
    tab(page, "What if?")
    part(page).click(position={"x": 200, "y": 200})
    expect(page.locator(".rk-what_if .rk-hint")).to_contain_text("click to show it", timeout=SLOW)
    expect(part(page)).to_have_attribute("aria-label", re.compile("1 superpixels and 0 words hidden"))
    shot(page, where, "what_if")
    undo(page)


def test_the_answer_follows_the_twins_word_and_the_tool_poses_for_its_picture(place):
    page, where = place
    choose(page, 5)
    expect(page.locator(".rk-tool .rk-told")).to_have_text(re.compile(r"photo 5 of \d+\): NORDBY MILK 0.5 %"))
    tab(page, "What if?")
    expect(part(page)).to_have_attribute("aria-label", re.compile("0 superpixels and 0 words hidden"), timeout=SLOW)
    before, text = bars(page), page.locator(".rk-text textarea")
    text.fill(text.input_value().replace("0.5%", "3%"))
    text.blur()
    until(page, lambda: bars(page) != before)
    if where == "app" and (path := os.environ.get("RETAILKIT_TOOL_PICTURE")):
        part(page).click(position={"x": 200, "y": 260})
        expect(page.locator(".rk-what_if .rk-hint")).to_contain_text("click to show it", timeout=SLOW)
        page.wait_for_timeout(1000)  # the bars follow
        shown = {"x": 0, "y": 15, "width": 1366, "height": 840}
        page.screenshot(path=ROOT / path, type="jpeg", quality=85, clip=shown)
    undo(page)


def test_a_slider_changes_the_picture_and_the_answer(page):
    tab(page, "What if?")
    until(page, lambda: not changed(page))
    readout = page.locator(".rk-brightness .widget-readout")
    readout.fill("0.3")
    readout.press("Enter")
    until(page, lambda: changed(page))
    page.locator("button.rk-undo").click()
    until(page, lambda: not changed(page))


def test_the_keyboard_reaches_every_part(page):
    tab(page, "What if?")
    part(page).focus()
    for key in ("ArrowRight", "ArrowRight", "Enter"):
        page.keyboard.press(key)
    expect(part(page)).to_have_attribute("aria-label", re.compile("1 superpixels"), timeout=SLOW)
    undo(page)


def test_a_running_explanation_can_be_stopped(page):
    tab(page, "Why?")
    take_masks(page, 2048)
    page.locator("button.rk-explain").click()
    page.locator(".rk-panel p:has-text('R²')").first.wait_for()
    page.locator("button.rk-stop").click()
    expect(page.locator(".rk-tool .rk-status")).to_contain_text("Stopped", timeout=SLOW)


def test_a_view_can_be_saved(page, tmp_path):
    tab(page, "Why?")
    page.locator("button.rk-html").click()
    link = page.locator(".rk-tool a.rk-link")
    expect(link).to_contain_text(".html", timeout=SLOW)
    with page.expect_download() as caught:
        link.click()
    caught.value.save_as(tmp_path / "view")
    assert (tmp_path / "view").read_bytes().startswith(b"<!doctype html>")


def test_a_bad_file_gets_a_clear_message_and_a_good_one_is_shown(page, tmp_path):
    (tmp_path / "list.jpg").write_bytes(b"%PDF-1.7 this is no photo")
    field = page.locator(".rk-tool input[type=file]")
    field.set_input_files(tmp_path / "list.jpg")
    expect(page.locator(".rk-tool [role=alert]")).to_contain_text("list.jpg: not an image", timeout=SLOW)
    noise = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "mine.png")
    (tmp_path / "large.jpg").write_bytes(bytes(30_000_000))
    field.set_input_files(tmp_path / "large.jpg")
    expect(page.locator(".rk-tool [role=status]:has-text('large.jpg')")).to_contain_text("30.0 MB is more than 9 MB")
    field.set_input_files(tmp_path / "mine.png")
    expect(page.locator(".rk-tool .rk-told")).to_contain_text("mine.png", timeout=SLOW)
    expect(page.locator(".rk-tool [role=alert]")).to_have_count(0)
    expect(page.locator(".rk-tool button.rk-upload ~ [role=status]")).to_be_empty(timeout=SLOW)


def test_a_whole_class_is_explained_on_the_page(place):
    page, where = place
    if where != "app":
        pytest.skip("takes a minute; the app has the same tab")
    choose(page, 1)
    tab(page, "The whole class")
    page.locator("button.rk-explain_class").click()
    expect(page.locator(".rk-tool .rk-summary")).to_contain_text("Text features", timeout=SLOW)
    shot(page, where, "class")


def test_the_app_asks_strangers_for_the_token(place):
    page, where = place
    if where != "app":
        pytest.skip("JupyterLab has a login of its own")
    address = page.url.split("?")[0]
    try:
        answer = urllib.request.urlopen(address, timeout=30)
    except urllib.error.HTTPError as refused:
        assert refused.code in (401, 403)
    else:
        assert "/login" in answer.url


def test_a_kernel_ends_with_its_tab_and_other_names_of_the_host_are_refused(browser, photos, tmp_path):
    """Formerly each visit kept a gigabyte, and a page of somebody else could reach the tool by its own name."""
    port = app.free_port("127.0.0.1", 0)
    options = ["--dataset", "folder", "--root", str(photos), "--models", "text", "--port", str(port), "--no-browser"]
    with subprocess.Popen([sys.executable, "-m", "retailkit", "app", *options], cwd=ROOT,
                          stdout=(tmp_path / "log").open("w"), stderr=subprocess.STDOUT) as server:  # fmt: skip
        try:
            wait_for(port, server)
            address, asked = f"http://127.0.0.1:{port}/", []
            with pytest.raises(urllib.error.HTTPError, match="403"):
                urllib.request.urlopen(urllib.request.Request(address, headers={"Host": "elsewhere.example"}))
            page = browser.new_context().new_page()
            page.on("request", lambda request: asked.append(request.url))
            page.goto(address, timeout=SLOW)
            page.locator(".rk-tool .rk-picture canvas").first.wait_for(timeout=SLOW)
            assert all(url.startswith((address, "data:", "blob:")) for url in asked)
            page.goto("about:blank")
            until(page, lambda: "Kernel shutdown" in (tmp_path / "log").read_text())
        finally:
            server.terminate()
