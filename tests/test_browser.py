"""The explanation tool in a real browser, in JupyterLab and as an app; `SHOTS` keeps screenshots.

With RETAILKIT_TOOL_PICTURE=docs/tool.jpg in the environment, `-k "app and picture"` makes the README's picture anew.
"""

import os
import re
import urllib.error
import urllib.request

import nbformat
import numpy as np
import pytest
from PIL import Image
from served import ROOT, opened_browser, served, until

from retailkit import data
from retailkit.data.table import read_truth
from retailkit.plots.images import visible
from retailkit.runs import app

pytest.importorskip("playwright", reason="playwright is missing; run: pip install playwright")
from playwright.sync_api import expect

SHOTS = ROOT / "papermill_runs" / "latest" / "screenshots"
SLOW = 180_000  # ms: machines that test are busy
TOKEN = "for-this-test"
MODELS = "embracenet,text"

expect.set_options(timeout=SLOW)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def browser():
    with opened_browser() as opened:
        yield opened


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


APP = ["-m", "retailkit", "app", "--dataset", "folder", "--no-browser"]
LAB = ["-m", "jupyterlab", "--ip=127.0.0.1", "--no-browser", "--allow-root", "--ServerApp.port_retries=0",
       f"--IdentityProvider.token={TOKEN}",
       "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]  # fmt: skip


@pytest.fixture(params=["lab", "app"], scope="module")
def place(request, browser, photos, tmp_path_factory):
    """Return the page of the tool, opened in JupyterLab or as an app, and its name."""
    where, folder, port = request.param, tmp_path_factory.mktemp(request.param), app.free_port("127.0.0.1", 0)
    address = f"http://127.0.0.1:{port}"
    if where == "lab":
        nbformat.write(app.page({"DATASET": "folder", "ROOT": str(photos), "MODELS": MODELS}), folder / "tool.ipynb")
        prepare_lab(folder / "config" / "lab" / "@jupyterlab" / "apputils-extension")
        words = [*LAB, f"--port={port}", f"--ServerApp.root_dir={folder}"]
        opened = f"lab/tree/tool.ipynb?token={TOKEN}&reset"
    else:
        words = [*APP, "--root", str(photos), "--models", MODELS, "--port", str(port), "--token", TOKEN]
        opened = f"?token={TOKEN}"
    settings = {"JUPYTER_CONFIG_DIR": folder / "config", "JUPYTERLAB_SETTINGS_DIR": folder / "config" / "lab"}
    environment = os.environ | {name: str(value) for name, value in settings.items()}
    with served(words, folder / "log", f"{address}/api", env=environment):
        page = browser.new_context(viewport={"width": 1366, "height": 900}, accept_downloads=True).new_page()
        page.set_default_timeout(SLOW)
        page.route(re.compile(r"^https?://(?!127\.0\.0\.1)"), lambda route: route.abort())
        try:
            page.goto(f"{address}/{opened}", timeout=SLOW)
            if where == "lab":
                run_all(page)
            page.locator(".rk-tool .rk-picture canvas").first.wait_for()
            shot(page, where, "opened")
            yield page, where
        except BaseException:
            print((folder / "log").read_text()[-3000:])
            shot(page, where, "failed")
            raise
        finally:
            page.close()


@pytest.fixture
def page(place):
    return place[0]


def prepare_lab(folder):
    """No pop-up of news over the notebook, and the dark theme; the app is light."""
    folder.mkdir(parents=True)
    (folder / "notification.jupyterlab-settings").write_text('{"fetchNews": "false", "checkForUpdates": false}')
    (folder / "themes.jupyterlab-settings").write_text('{"theme": "JupyterLab Dark"}')


def run_all(page):
    page.locator(".jp-NotebookPanel .jp-Cell").first.wait_for()
    expect(page.locator("#jp-main-statusbar")).to_contain_text("| Idle")
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()


def shot(page, where, name):
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{where}_{name}.png")


def tab(page, name):
    page.locator(".rk-tool").get_by_role("tab", name=name).click()


def part(page, of="rk-what_if"):
    return page.locator(f".rk-tool .{of} canvas").first


def choose(page, number):
    page.locator(".rk-tool .rk-strip canvas").click(position={"x": 118 * number - 58, "y": 60})
    expect(page.locator(".rk-tool .rk-told")).to_contain_text(f"photo {number} of")


def undo(page):
    page.locator("button.rk-undo").click()
    expect(part(page)).to_have_attribute("aria-label", re.compile("0 superpixels and 0 words hidden"))


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
    expect(page.locator(".rk-tool .rk-status")).to_contain_text("Done")
    assert page.locator(".rk-panel p:has-text('R²')").count() == 2
    expect(page.locator(".rk-panel table").first).to_be_visible()
    assert "Map of the photo" in part(page, "rk-panel").get_attribute("aria-label")
    shot(page, where, "explained")


def test_clicks_and_keys_switch_superpixels_off(place):
    page, where = place
    tab(page, "What if?")
    part(page).click(position={"x": 200, "y": 200})
    expect(page.locator(".rk-what_if .rk-hint")).to_contain_text("click to show it")
    expect(part(page)).to_have_attribute("aria-label", re.compile("1 superpixels and 0 words hidden"))
    shot(page, where, "what_if")
    undo(page)
    part(page).focus()
    for key in ("ArrowRight", "ArrowRight", "Enter"):
        page.keyboard.press(key)
    expect(part(page)).to_have_attribute("aria-label", re.compile("1 superpixels"))
    undo(page)


def test_the_answer_follows_the_twins_word_and_the_tool_poses_for_its_picture(place):
    page, where = place
    choose(page, 5)
    expect(page.locator(".rk-tool .rk-told")).to_have_text(re.compile(r"photo 5 of \d+\): NORDBY MILK 0.5 %"))
    tab(page, "What if?")
    expect(part(page)).to_have_attribute("aria-label", re.compile("0 superpixels and 0 words hidden"))
    before, text = page.locator(".rk-bars tbody tr").all_inner_texts(), page.locator(".rk-text textarea")
    text.fill(text.input_value().replace("0.5%", "3%"))
    text.blur()
    expect(page.locator(".rk-bars tbody tr")).not_to_have_text(before, use_inner_text=True)
    if where == "app" and (path := os.environ.get("RETAILKIT_TOOL_PICTURE")):
        part(page).click(position={"x": 200, "y": 260})
        expect(page.locator(".rk-what_if .rk-hint")).to_contain_text("click to show it")
        page.wait_for_timeout(1000)  # the bars follow
        shown = {"x": 0, "y": 15, "width": 1366, "height": 840}
        page.screenshot(path=ROOT / path, type="jpeg", quality=85, clip=shown)
    undo(page)


def test_a_running_explanation_can_be_stopped_and_a_view_saved(page, tmp_path):
    tab(page, "Why?")
    take_masks(page, 2048)
    page.locator("button.rk-explain").click()
    page.locator(".rk-panel p:has-text('R²')").first.wait_for()
    page.locator("button.rk-stop").click()
    expect(page.locator(".rk-tool .rk-status")).to_contain_text("Stopped")
    page.locator("button.rk-html").click()
    link = page.locator(".rk-tool a.rk-link")
    expect(link).to_contain_text(".html")
    with page.expect_download() as caught:
        link.click()
    caught.value.save_as(tmp_path / "view")
    assert (tmp_path / "view").read_bytes().startswith(b"<!doctype html>")


def test_a_bad_file_gets_a_clear_message_and_a_good_one_is_shown(page, tmp_path):
    (tmp_path / "list.jpg").write_bytes(b"%PDF-1.7 this is no photo")
    field = page.locator(".rk-tool input[type=file]")
    field.set_input_files(tmp_path / "list.jpg")
    expect(page.locator(".rk-tool [role=alert]")).to_contain_text("list.jpg: not an image")
    noise = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "mine.png")
    (tmp_path / "large.jpg").write_bytes(bytes(30_000_000))
    field.set_input_files(tmp_path / "large.jpg")
    expect(page.locator(".rk-tool [role=status]:has-text('large.jpg')")).to_contain_text("30.0 MB is more than 9 MB")
    field.set_input_files(tmp_path / "mine.png")
    expect(page.locator(".rk-tool .rk-told")).to_contain_text("mine.png")
    expect(page.locator(".rk-tool [role=alert]")).to_have_count(0)
    expect(page.locator(".rk-tool button.rk-upload ~ [role=status]")).to_be_empty(timeout=SLOW)


def test_a_kernel_ends_with_its_tab_and_other_names_of_the_host_are_refused(browser, photos, tmp_path):
    """Formerly each visit kept a gigabyte, and a page of somebody else could reach the tool by its own name."""
    port, asked = app.free_port("127.0.0.1", 0), []
    words, address = [*APP, "--root", str(photos), "--models", "text", "--port", str(port)], f"http://127.0.0.1:{port}/"
    with served(words, tmp_path / "log", f"{address}api"):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(urllib.request.Request(address, headers={"Host": "elsewhere.example"}))
        page = browser.new_context().new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.set_default_timeout(SLOW)
        page.goto(address)
        page.locator(".rk-tool .rk-picture canvas").first.wait_for()
        assert all(url.startswith((address, "data:", "blob:")) for url in asked)
        page.goto("about:blank")
        until(lambda: "Kernel shutdown" in (tmp_path / "log").read_text())
