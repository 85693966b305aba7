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


def until(holds, seconds=60):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_the_screen_shows_what_the_pages_make_of_the_state(tool):
    panel = tool.panels[0]
    assert "12 of 18 photos (split test: no model learns from these)" in tool.about.value
    assert "photo-0-2.png (photo 1 of 12)" in tool.told.value and tool.strip.names[1].startswith("photo-0-3.png: ")
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


def test_a_photo_without_an_answer_is_named_as_no_class(tool):
    judged = tool.desk.judged["image"]
    unknown = judged.probs.copy()
    unknown[0] = 1 / 3
    tool.desk.judged["image"] = Evaluation(unknown, judged.labels, judged.classes, judged.indices)
    tool.use("image")
    captions = tool.captions.value.split("<div>")[1:]
    assert ["no answer" in caption for caption in captions] == [True] + [False] * 7


def test_what_comes_from_outside_is_escaped(tool):
    tool._update(photo=replace(tool.state.photo, name="<img>"))
    tool.desk.classes[tool.state.label] = "<i>$5 and $6</i>"
    tool._show_strip()
    tool._show_scene()
    tool._show_why()
    assert "&lt;img&gt;" in tool.told.value
    assert not re.search("<img>|<i>", tool.told.value + tool.bars.value + tool.panels[0].head.value + tool.legend.value)


def test_the_bars_keep_the_former_class_and_name_a_model_that_has_no_words_left(tool):
    tool.use("text")
    former = tool.desk.classes[tool.state.before["text"].argmax()]
    tool.change(Change(text="milk milk milk milk"))
    assert tool.desk.classes[tool.state.after["text"].argmax()] == "milk" != former and former in tool.bars.value
    tool.change(Change(text=""))
    assert "this model uses only words" in tool.bars.value
    tool.undo()
    assert "this model uses only words" not in tool.bars.value


def test_an_uploaded_photo_is_read_shown_and_explained_and_a_bad_file_named(tool, png, monkeypatch):
    monkeypatch.setattr(desks.ocr, "add_text", lambda data, **_: replace(data, table=data.table.assign(text="milk")))
    before, send = tool.state, tool.upload_button._handle_custom_msg
    assert not tool.controls["background"].disabled and not tool.reason.value
    send({"name": "list.pdf"}, [memoryview(b"%PDF")])
    assert "list.pdf: not an image" in tool.message.value and 'role="alert"' in tool.message.value
    assert tool.state is before
    send({"name": "mine.png"}, [memoryview(png)])
    assert tool.state.photo.truth == -1 and tool.state.photo.text == "milk" and "not known" in tool.told.value
    assert tool.controls["background"].disabled and "need a product mask" in tool.reason.value
    tool.explain()
    assert len(tool.state.explanations) == 3
    tool.models.children[1].value = False
    assert tool.state.photo.name == "mine.png" and tool.state.models == ("image", "text")


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
    tool.controls["masks"].value = 64
    tool.refine()
    assert desks.spent(tool.state.explanations["score_fusion"]) == spent + 64 and "Done" in tool.status.value
    assert tool.progress.layout.display == "none"
    tool.select(3)
    assert not tool.state.explanations and not tool.status.value, "nothing of it stands beside another photo"


def test_a_stopped_explanation_of_a_class_says_that_nothing_is_kept(tool, monkeypatch):
    def endless(*_):
        while True:
            time.sleep(0.01)
            yield 1, None, pd.DataFrame()

    monkeypatch.setattr(tool.desk, "explaining_class", endless)
    for act in (tool.stop, lambda: tool.select(4)):
        tool.explain_class(photos=3, wait=False)
        until(lambda: "1 of 3 photos" in tool.status.value)
        act()
        assert "Stopped: 1 of 3 photos; " in tool.status.value and "nothing is kept" in tool.status.value
        assert not tool._worker.is_alive()


def test_a_problem_in_the_background_is_shown(tool, monkeypatch):
    def fails(*_):
        raise UserError("no <luck>")
        yield

    monkeypatch.setattr(desks, "explaining", fails)
    tool.explain(wait=False)
    tool._worker.join()
    assert "no &lt;luck&gt;" in tool.message.value


BAD_CALLS = [  # what a script asks for, and what the error says
    (lambda tool: tool.refine(), UserError, "Choose Explain first"),
    (lambda tool: tool.page("why"), UserError, "Choose Explain first"),
    (lambda tool: tool.page("class"), UserError, "Choose Explain the class first"),
    (lambda tool: tool.switch(segment=999), UsageError, "superpixel 999"),
    (lambda tool: tool.switch(word=9), UsageError, "word 9 "),
    (lambda tool: tool.use("imag"), UsageError, "did you mean 'image'"),
    (lambda tool: tool.filter("mlik"), UsageError, "did you mean 'milk'"),
]


def test_what_cannot_be_done_is_named(tool):
    for act, error, said in BAD_CALLS:
        with pytest.raises(error, match=said):
            act(tool)


def test_a_class_is_summed_up_and_checked_on_other_photos(tool, monkeypatch, without_words):
    *_, without = tool.desk.find("text", "milk")
    laid = tool.desk.photo
    monkeypatch.setattr(tool.desk, "photo", lambda row: without_words(laid(row)) if row == without else laid(row))
    tool.ask("milk", "lean")
    for model in ("text", "score_fusion"):
        tool.explain_class(photos=2, model=model)
        _, explained, check = tool.state.summed
        assert explained.name == "milk" and len(explained.photos) == 2 and set(check["kind"]) <= {"image", "text"}
        assert check["n"].max() == (1 if model == "text" else 2), "a photo without words is none for a model that reads"
    assert "milk" in tool.summary.value and "Text features" in tool.summary.value
    tool.select(0)
    assert tool.state.summed[1:] == (explained, check) and tool.page("class")


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
    tool.explain()
    tool.explain_class(photos=2)
    for view in pages.VIEWS:
        page = tool.page(view)
        assert page.startswith("<!doctype html>") and not re.search(r'(?:src|href)="(?!data:)', page), view
        assert all("alt=" in tag for tag in re.findall(r"<img[^>]*>", page)), view
    assert len(pages.what_if_figure(tool.state, tool.desk.classes).axes) == 3


def test_a_view_is_offered_as_a_link_until_something_else_is_shown(tool):
    tool.controls["html"].click()
    assert "Choose Explain first" in tool.message.value
    tool.tabs.selected_index = 1
    tool._update(photo=replace(tool.state.photo, name="<img>"))
    tool.controls["html"].click()
    assert 'download="what_if_&lt;img&gt;.html" href="data:text/html;base64,' in tool.link.value
    assert "Save what_if_&lt;img&gt;.html" in tool.link.value and "<img" not in tool.link.value
    for act in (lambda: tool.tabs.set_trait("selected_index", 0), lambda: tool.switch(segment=0)):
        act()
        assert not tool.link.value and not tool.message.value
        tool.tabs.selected_index = 1
        tool.controls["html"].click()
        assert tool.link.value


def test_another_data_set_brings_its_own_models(shop, predictors):
    fewer = shop.select((shop.table["label"] != "milk").to_numpy())
    others = {"second": lambda: (fewer, {"image": predictors["image"]})}
    made = widgets.ExplanationTool(shop, predictors, others, budget=64)
    made.ask("milk", "lean")
    made.explain_class(photos=2)
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
