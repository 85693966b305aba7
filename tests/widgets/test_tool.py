"""The explanation tool: what it shows follows from its state, and every control does what its method does."""

import html
import re
import threading
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from retailkit import widgets
from retailkit.config import UsageError, UserError
from retailkit.metrics import Evaluation
from retailkit.widgets import model as desks
from retailkit.widgets import page as pages
from retailkit.widgets.model import Change
from retailkit.widgets.picture import NOWHERE, Picture


def click(picture, part):
    picture.clicked = [part, picture.clicked[1] + 1]


def send(tool, content, name):
    """What the browser does with a chosen file."""
    tool.upload_button._handle_custom_msg({"name": name}, [memoryview(content)])


def until(holds, seconds=60):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture
def reads_milk(monkeypatch):
    """The OCR engine reads `milk` on every uploaded photo."""
    monkeypatch.setattr(desks.ocr, "add_text", lambda data, **_: replace(data, table=data.table.assign(text="milk")))


def test_a_photo_without_an_answer_is_named_as_no_class(tool):
    judged = tool.desk.judged["image"]
    unknown = judged.probs.copy()
    unknown[0] = 1 / 3
    tool.desk.judged["image"] = Evaluation(unknown, judged.labels, judged.classes, judged.indices)
    tool.use("image")
    captions = tool.captions.value.split("<div>")[1:]
    assert "no answer" in captions[0] and not any("no answer" in caption for caption in captions[1:])


def test_the_screen_shows_what_the_pages_make_of_the_state(tool):
    panel = tool.panels[0]
    assert "Not explained yet" in panel.foot.value
    tool.explain()
    found = tool.state.explanations["score_fusion"]
    assert panel.picture.png == pages.explained(found, tool.state.photo.sample.image).images[0].png
    assert all(html.escape(line) in panel.foot.value for line in pages.trust(found))
    assert all(text[:24] in panel.foot.value for text in found.words()["text"])
    assert "After your changes" not in panel.head.value
    tool.switch(segment=1)
    tool.switch(word=0)
    now = tool.state
    assert tool.scene.png == pages.parts(now.photo, now.change, 400).png
    assert all(f"{p:.2f}" in tool.bars.value for p in tool.probabilities()["after"])
    assert now.change.words(now.photo) == tool.controls["text"].value
    moved = not np.allclose(now.before["score_fusion"], now.after["score_fusion"], atol=5e-4)
    assert ("After your changes" in panel.head.value) == moved
    names = panel.picture.names
    assert names[1].endswith("click to show it") and names[0].endswith("click to hide it") and "weight" in names[0]
    assert names[now.photo.n_segments].startswith(f"word {now.photo.tokens[0].text}, weight ")


def test_what_comes_from_outside_is_escaped(tool):
    tool._update(photo=replace(tool.state.photo, name="<img>"))
    tool._show_strip()
    assert "<img>" not in tool.told.value and "&lt;img&gt;" in tool.told.value
    tool.desk.classes[tool.state.label] = "<i>$5 and $6</i>"
    tool._show_scene()
    tool._show_why()
    assert "<i>" not in tool.bars.value + tool.panels[0].head.value + tool.legend.value


def test_a_model_that_has_no_words_left_says_so(tool):
    tool.change(Change(text=""))
    assert "this model uses only words" in tool.bars.value
    tool.undo()
    assert "this model uses only words" not in tool.bars.value


def test_uploaded_photos_are_read_and_explained(tool, png, reads_milk):
    for size in ((200, 100), (100, 100)):
        tool.upload(png(size), "image.jpg")
        assert tool.state.photo.truth == -1 and tool.state.photo.text == "milk" and "not known" in tool.told.value
        tool.explain(64)
        assert len(tool.state.explanations) == 3


def test_an_upload_that_is_no_picture_is_named_and_the_photo_stays(tool):
    before = tool.state
    send(tool, b"%PDF", "list.pdf")
    assert "list.pdf: not an image" in tool.message.value and 'role="alert"' in tool.message.value
    assert tool.state is before


def test_an_own_photo_stays_when_a_model_is_unticked(tool, png, reads_milk):
    send(tool, png((200, 100)), "mine.png")
    tool.models.children[1].value = False
    assert tool.state.photo.name == "mine.png" and tool.state.models == ("image", "text")


def test_what_a_photo_without_a_mask_does_not_offer_has_its_reason(tool, png, reads_milk):
    assert not tool.controls["background"].disabled and not tool.reason.value
    send(tool, png((200, 100)), "mine.png")
    assert tool.controls["background"].disabled and "need a product mask" in tool.reason.value


def test_two_tools_share_nothing(shop, predictors):
    one, other = (widgets.ExplanationTool(shop, predictors, budget=64) for _ in range(2))
    before = other.state
    one.select(5)
    one.switch(segment=0)
    one.controls["label"].value = "milk"
    assert other.state is before and other.controls["label"].value == ""


def test_clicks_open_photos_and_switch_parts_off_and_on(tool):
    click(tool.strip, 3)
    assert tool.state.photo.position == tool.state.found[3]
    count = tool.state.photo.n_segments
    click(tool.scene, 2)
    click(tool.panels[0].picture, count)
    assert tool.state.change == Change(hidden=frozenset({2}), unread=frozenset({0}))
    click(tool.scene, 2)
    assert tool.state.change.hidden == frozenset()
    tool.controls["undo"].click()
    assert tool.state.change == Change() and tool.controls["text"].value == tool.state.photo.text
    tool.controls["on"].click()
    assert tool.state.photo.position == tool.state.found[8]


def test_controls_change_the_photo_and_the_probabilities(tool):
    tool.controls["text"].value = "milk milk milk"
    table = tool.probabilities()
    reads, sees = (table[table["model"] == name] for name in ("text", "image"))
    assert (reads["before"] - reads["after"]).abs().max() > 0.01
    assert np.allclose(sees["before"], sees["after"])
    values = {"brightness": 0.3, "background": "none (product only)", "occlusion": 0.5, "blur": 0.02}
    for name, value in values.items():
        tool.controls[name].value = value
    assert tool.state.change == Change(text="milk milk milk", **values) and not tool.message.value


def test_the_question_the_filters_and_the_models_follow_their_controls(tool):
    tool.explain()
    label, contrast = tool.controls["class"].value, tool.controls["contrast"].value
    other = next(name for name in tool.desk.classes if name not in (label, contrast))
    tool.controls["contrast"].value = other
    assert tool.desk.classes[tool.state.contrast] == other and not tool.state.explanations
    tool.controls["class"].value = other
    assert "is chosen twice" in tool.message.value
    tool.controls["label"].value = "milk"
    assert list(tool.state.found) == tool.desk.find("image", "milk")
    boxes = tool.models.children[1:]
    boxes[0].value = False
    assert tool.state.models == ("image", "text")
    boxes[1].value = boxes[2].value = False
    assert "choose 1 to 3" in tool.message.value and tool.state.models == ("text",)


def test_explaining_goes_on_in_the_background_and_can_be_stopped_and_refined(tool):
    tool.use("score_fusion")
    tool.controls["masks"].value = 2048
    tool.controls["explain"].click()
    until(lambda: tool.state.explanations)
    tool.controls["stop"].click()
    spent = desks.spent(tool.state.explanations["score_fusion"])
    assert spent < 2048 and "the explanations so far are kept" in tool.status.value and not tool._worker.is_alive()
    assert tool.page("why")
    tool.refine(64)
    assert desks.spent(tool.state.explanations["score_fusion"]) == spent + 64 and "Done" in tool.status.value


def test_choosing_another_photo_ends_what_goes_on(tool):
    tool.explain(2048, wait=False)
    until(lambda: tool.state.explanations)
    tool.select(4)
    assert not tool.state.explanations and not tool._worker.is_alive()


def test_a_bar_that_is_done_does_not_stand_beside_another_photo(tool):
    assert tool.progress.layout.display == "none"
    tool.explain()
    assert "Done" in tool.status.value and tool.progress.layout.display == "none"
    tool.select(3)
    assert not tool.status.value


def test_a_stopped_explanation_of_a_class_says_that_nothing_is_kept(tool, monkeypatch):
    def endless(*_):
        while True:
            time.sleep(0.01)
            yield 1, None, pd.DataFrame()

    monkeypatch.setattr(tool.desk, "explaining_class", endless)
    for act in (tool.stop, lambda: tool.select(4)):
        tool.explain_class("milk", photos=3, wait=False)
        until(lambda: "1 of 3 photos" in tool.status.value)
        act()
        assert "Stopped: 1 of 3 photos; " in tool.status.value and "nothing is kept" in tool.status.value


def test_a_problem_in_the_background_is_shown(tool, monkeypatch):
    def fails(*_):
        raise UserError("no <luck>")
        yield

    monkeypatch.setattr(desks, "explaining", fails)
    tool.explain(wait=False)
    tool._worker.join()
    assert "no &lt;luck&gt;" in tool.message.value


def test_refining_nothing_and_unknown_parts_are_named(tool):
    with pytest.raises(UserError, match="Choose Explain first"):
        tool.refine()
    for part, said in (({"segment": 999}, "superpixel 999"), ({"word": 9}, "word 9 ")):
        with pytest.raises(UsageError, match=said):
            tool.switch(**part)


def test_a_class_is_summed_up_and_checked_on_other_photos(tool):
    tool.explain_class("milk", photos=3)
    _, explained, check = tool.state.summed
    assert explained.name == "milk" and len(explained.photos) <= 3 and set(check["kind"]) <= {"image", "text"}
    assert "milk" in tool.summary.value and "Text features" in tool.summary.value
    tool.select(0)
    assert tool.state.summed[1:] == (explained, check) and tool.page("class")


def test_a_class_is_summed_up_and_checked_where_a_photo_has_no_words(tool, monkeypatch, without_words):
    *_, without = tool.desk.find("text", "milk")
    laid = tool.desk.photo
    monkeypatch.setattr(tool.desk, "photo", lambda row: without_words(laid(row)) if row == without else laid(row))
    tool.explain_class("milk", photos=2, model="text")
    _, explained, check = tool.state.summed
    assert len(explained.photos) == 2 and check["n"].max() == 1


def test_a_control_works_while_the_background_sets_others(tool):
    quiet, done = threading.Event(), threading.Event()

    def background():
        with tool._not_following():
            quiet.set()
            done.wait(60)

    thread = threading.Thread(target=background)
    thread.start()
    assert quiet.wait(60)
    tool.controls["brightness"].value = 1.5
    with tool._not_following():
        done.set()
        thread.join()
    tool.controls["blur"].value = 0.03
    assert (tool.state.change.brightness, tool.state.change.blur) == (1.5, 0.03)


def test_every_view_can_be_saved(tool):
    for view in ("why", "class"):
        with pytest.raises(UserError):
            tool.page(view)
    tool.explain()
    tool.explain_class(photos=2)
    for view in pages.VIEWS:
        page = tool.page(view)
        assert page.startswith("<!doctype html>") and not re.search(r'(?:src|href)="(?!data:)', page), view
        assert all("alt=" in tag for tag in re.findall(r"<img[^>]*>", page)), view
    assert len(pages.what_if_figure(tool.state, tool.desk.classes).axes) == 3


def test_a_view_is_offered_as_a_link(tool):
    tool.controls["html"].click()
    assert "Choose Explain first" in tool.message.value
    tool.tabs.selected_index = 1
    tool.controls["html"].click()
    assert re.search(r'download="what_if_photo-0-2.png.html" href="data:text/html;base64,', tool.link.value)
    tool._update(photo=replace(tool.state.photo, name="<img>"))
    tool.controls["html"].click()
    assert "Save what_if_&lt;img&gt;.html" in tool.link.value and "<img" not in tool.link.value
    tool.tabs.selected_index = 0
    assert not tool.link.value and not tool.message.value, "they belong to another view"
    tool.controls["html"].click()
    tool.switch(segment=0)
    assert not tool.link.value, "it shows what was on the screen before"


def test_it_says_which_photos_are_shown_and_what_their_files_are(tool):
    assert "12 of 18 photos (split test: no model learns from these)" in tool.about.value
    assert "photo-0-2.png (photo 1 of 12)" in tool.told.value and tool.strip.names[1].startswith("photo-0-3.png: ")


def test_the_former_class_stays_among_the_bars(tool):
    tool.use("text")
    former = tool.desk.classes[tool.state.before["text"].argmax()]
    tool.change(Change(text="milk milk milk milk"))
    assert tool.desk.classes[tool.state.after["text"].argmax()] == "milk" != former and former in tool.bars.value


def test_another_data_set_brings_its_own_models(shop, predictors):
    fewer = shop.select((shop.table["label"] != "milk").to_numpy())
    others = {"second": lambda: (fewer, {"image": predictors["image"]})}
    made = widgets.ExplanationTool(shop, predictors, others, budget=64)
    made.explain_class("milk", photos=2)
    made.controls["dataset"].value = "second"
    assert made.state.models == ("image",) and len(made.desk.images) == 8 and not made.message.value
    assert made.state.summed is None and not made.summary.value, "milk is a class of the other one"
    made.load(shop.name)
    assert len(made.desk.images) == 12 and made.controls["dataset"].value == shop.name


def test_a_picture_holds_regions_and_pixels_of_no_region():
    picture, hit = Picture(), []
    picture.on_click(hit.append)
    picture.show(b"png", np.array([[0, -1], [1, 1]]), ["a", "b"], "two parts")
    assert np.frombuffer(picture.labels, "<u2").tolist() == [0, NOWHERE, 1, 1] and picture.shape == [2, 2]
    click(picture, 1)
    click(picture, 1)
    assert hit == [1, 1], "a second click on the same part counts"
