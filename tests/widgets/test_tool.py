"""The explanation tool: what it shows follows from its state, and every control does what its method does."""

import html
import re
import threading
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from retailkit import widgets
from retailkit.config import UsageError, UserError
from retailkit.metrics import Evaluation
from retailkit.widgets import layout
from retailkit.widgets import model as desks
from retailkit.widgets import page as pages
from retailkit.widgets.model import Change
from retailkit.widgets.picture import NOWHERE, Picture


def without_words(photo):
    return replace(photo, tokens=(), sample=replace(photo.sample, words=[], text=""))


def confusing(desk, name, one, other):
    """Let a model predict `other` for all photos of class `one`, and be correct on the rest."""
    labels = desk.judged[name].labels
    probs = np.eye(len(desk.classes))[np.where(labels == one, other, labels)]
    desk.judged[name] = Evaluation(probs, labels, desk.classes, desk.judged[name].indices)


def test_a_photo_without_an_answer_is_named_as_no_class(tool):
    judged = tool.desk.judged["image"]
    unknown = judged.probs.copy()
    unknown[0] = 1 / 3
    tool.desk.judged["image"] = Evaluation(unknown, judged.labels, judged.classes, judged.indices)
    tool.use("image")
    captions = tool.captions.value.split("<div>")[1:]
    assert "no answer" in captions[0] and not any("no answer" in caption for caption in captions[1:])


@pytest.mark.parametrize("state", ["fresh", "explained", "changed"])
def test_the_screen_shows_what_the_pages_make_of_the_state(tool, state):
    if state != "fresh":
        tool.explain()
    if state == "changed":
        tool.switch(segment=1)
        tool.switch(word=0)
    now, panel = tool.state, tool.panels[0]
    if state == "fresh":
        assert "Not explained yet" in panel.foot.value
    else:
        found = now.explanations["score_fusion"]
        assert panel.picture.png == pages.explanation_map(found, now.photo.sample.image).png
        assert all(html.escape(line) in panel.foot.value for line in pages.trust(found))
        assert all(text[:24] in panel.foot.value for text in found.words()["text"])
    assert tool.scene.png == pages.parts(now.photo, now.change, 400).png
    table = tool.probabilities()
    assert all(f"{p:.2f}" in tool.bars.value for p in table["after"])
    assert now.change.words(now.photo) == tool.controls["text"].value
    moved = not np.allclose(now.before["score_fusion"], now.after["score_fusion"], atol=5e-4)
    assert ("After your changes" in panel.head.value) == moved


def test_what_comes_from_outside_is_escaped(tool):
    tool._update(photo=replace(tool.state.photo, name="<img>"))
    tool._show_strip()
    assert "<img>" not in tool.told.value and "&lt;img&gt;" in tool.told.value
    tool.desk.classes[tool.state.label] = "<i>$5 and $6</i>"
    tool._show_scene()
    tool._show_why()
    assert "<i>" not in tool.bars.value + tool.panels[0].head.value + tool.legend.value


def test_a_model_that_has_no_words_left_says_so(tool):
    tool.set_text("")
    assert "this model uses only words" in tool.bars.value
    tool.undo()
    assert "this model uses only words" not in tool.bars.value


def test_regions_say_what_a_click_does(photo):
    names = layout.region_names(photo, None, Change(hidden=frozenset({2}), unread=frozenset({0})))
    assert len(names) == photo.n_segments + len(photo.tokens)
    assert names[2].endswith("click to show it") and names[3].endswith("click to hide it")
    assert names[photo.n_segments] == f"word {photo.tokens[0].text}: click to show it"


def test_the_pairs_on_offer_are_those_of_the_first_model(tool):
    confusing(tool.desk, "image", 0, 1)
    confusing(tool.desk, "text", 1, 2)
    for name in ("image", "text"):
        tool.use(name)
        pair = tool.desk.shows(name)[-1]
        assert list(tool.controls["show"].options) == tool.desk.shows(name)
        tool.filter(show=pair)
        assert tool.controls["show"].value == pair


def test_an_uploaded_photo_can_be_asked_about(tool, png, monkeypatch):
    monkeypatch.setattr(desks.ocr, "add_text", lambda data, **_: replace(data, table=data.table.assign(text="milk")))
    tool.upload(png((200, 100)), "mine.png")
    assert tool.state.photo.name == "mine.png" and not tool.state.photo.known and tool.state.photo.text == "milk"
    assert set(tool.state.before) == {"score_fusion", "image", "text"}
    assert "not known" in tool.told.value


def test_photos_of_one_name_are_told_apart(tool, png, monkeypatch):
    monkeypatch.setattr(desks.ocr, "add_text", lambda data, **_: replace(data, table=data.table.assign(text="milk")))
    for size in ((200, 100), (100, 100)):
        tool.upload(png(size), "image.jpg")
        tool.explain(64)
    assert tool.state.photo.name == "image.jpg (2)" and len(tool.state.remembered) == 6


def test_two_tools_share_nothing(shop, predictors):
    one, other = (widgets.ExplanationTool(shop, predictors, budget=64) for _ in range(2))
    before = other.state
    one.select(5)
    one.switch(segment=0)
    one.controls["show"].value = "unsure"
    assert other.state is before and other.controls["show"].value == "all"


def click(picture, part):
    picture.clicked = [part, picture.clicked[1] + 1]


def test_a_click_on_a_thumbnail_opens_its_photo(tool):
    click(tool.strip, 3)
    assert tool.state.photo.position == tool.state.found[3]


def test_a_click_on_a_part_switches_it_off_and_on(tool):
    count = tool.state.photo.n_segments
    click(tool.scene, 2)
    click(tool.panels[0].picture, count)
    assert tool.state.change == Change(hidden=frozenset({2}), unread=frozenset({0}))
    click(tool.scene, 2)
    assert tool.state.change.hidden == frozenset()
    tool.controls["undo"].click()
    assert tool.state.change == Change() and tool.controls["text"].value == tool.state.photo.text


def test_controls_change_the_photo_and_the_probabilities(tool):
    tool.controls["text"].value = "milk milk milk"
    table = tool.probabilities()
    reads = table[table["model"] == "text"]
    assert (reads["before"] - reads["after"]).abs().max() > 0.01
    sees = table[table["model"] == "image"]
    assert np.allclose(sees["before"], sees["after"])
    tool.controls["brightness"].value = 0.3
    tool.controls["background"].value = "none (product only)"
    tool.controls["occlusion"].value = 0.5
    tool.controls["blur"].value = 0.02
    change = tool.state.change
    assert (change.text, change.brightness, change.background) == ("milk milk milk", 0.3, "none (product only)")
    assert (change.occlusion, change.blur) == (0.5, 0.02) and not tool.message.value


def test_a_question_can_be_changed(tool):
    tool.explain()
    other = next(k for k in range(3) if k not in (tool.state.label, tool.state.contrast))
    tool.controls["contrast"].value = other
    assert tool.state.contrast == other and not tool.state.explanations
    tool.controls["class"].value = other
    assert "is chosen twice" in tool.message.value


def test_filters_and_models_follow_their_controls(tool):
    tool.controls["label"].value = "milk"
    assert {tool.desk.judged["image"].labels[p] for p in tool.state.found} == {tool.desk.classes.index("milk")}
    boxes = tool.models.children[1:]
    boxes[0].value = False
    assert tool.state.models == ("image", "text")
    boxes[1].value = boxes[2].value = False
    assert "choose 1 to 3" in tool.message.value and tool.state.models == ("text",)


def test_an_upload_that_is_no_picture_is_named_and_the_photo_stays(tool):
    before = tool.state
    tool.controls["upload"].value = (
        {"name": "list.pdf", "type": "application/pdf", "size": 4, "content": memoryview(b"%PDF"),
         "last_modified": pd.Timestamp("2026-01-01", tz="UTC").to_pydatetime()},
    )  # fmt: skip
    assert "list.pdf: not an image" in tool.message.value and 'role="alert"' in tool.message.value
    assert tool.state is before


def test_explaining_goes_on_in_the_background_and_can_be_stopped_and_refined(tool):
    tool.use("score_fusion")
    tool.controls["masks"].value = 2048
    tool.controls["explain"].click()
    until(lambda: tool.state.explanations)
    tool.controls["stop"].click()
    spent = desks.spent(tool.state.explanations["score_fusion"])
    assert spent < 2048 and "the explanations so far are kept" in tool.status.value and not tool._worker.is_alive()
    assert tool.controls["left"].value in tool.state.remembered and tool.rendered("compare", ".html")
    tool.refine(64)
    assert desks.spent(tool.state.explanations["score_fusion"]) == spent + 64 and "Done" in tool.status.value


def until(holds, seconds=60):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_choosing_another_photo_ends_what_goes_on(tool):
    tool.explain(2048, wait=False)
    until(lambda: tool.state.explanations)
    tool.select(4)
    assert not tool.state.explanations and threading.active_count() < 10 and not tool._worker.is_alive()


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


def test_a_class_is_summed_up_and_checked_where_a_photo_has_no_words(tool, monkeypatch):
    *_, without = tool.desk.find("text", "milk")
    laid = tool.desk.photo
    monkeypatch.setattr(tool.desk, "photo", lambda row: without_words(laid(row)) if row == without else laid(row))
    tool.explain_class("milk", photos=2, model="text")
    _, explained, check = tool.state.summed
    assert len(explained.photos) == 2 and check["n"].max() == 1


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
    with pytest.raises(UsageError, match="superpixel 999"):
        tool.switch(segment=999)
    with pytest.raises(UsageError, match="word 9 "):
        tool.switch(word=9)
    with pytest.raises(UsageError, match="setting"):
        tool.adjust(brigthness=1)
    with pytest.raises(UsageError, match="out of range"):
        tool.select(99)
    with pytest.raises(UserError, match="no such photo"):
        tool.select("nowhere.jpg")


def test_a_class_is_summed_up_and_checked_on_other_photos(tool):
    tool.explain_class("milk", photos=3)
    _, explained, check = tool.state.summed
    assert explained.name == "milk" and len(explained.photos) <= 3 and set(check["kind"]) <= {"image", "text"}
    assert "milk" in tool.summary.value and "Text features" in tool.summary.value
    tool.select(0)
    assert tool.state.summed[1:] == (explained, check) and tool.rendered("class", ".html")


def test_two_explanations_are_compared(tool):
    tool.explain()
    names = list(tool.state.remembered)
    assert len(names) == 3
    tool.compare(names[0], names[1])
    assert "Rank correlation" in tool.compared.value
    left, right, third = (tool.state.remembered[name][1] for name in names)
    assert pages.rank_agreement(left, left) == pytest.approx(1) and pages.rank_agreement(left, right) is not None
    assert pages.rank_agreement(left, third) is None, "the third one only reads"


def test_a_chosen_comparison_stays_when_something_else_is_explained(tool):
    tool.explain()
    names = list(tool.state.remembered)
    for side in ("left", "right"):
        tool.controls[side].value = names[0]
    tool.select(1)
    tool.explain()
    assert len(tool.state.remembered) == 6
    assert [tool.controls[side].value for side in ("left", "right")] == names[:1] * 2
    assert tool.compared.value.count(f"<h3>{names[0]}</h3>") == 2


def test_a_comparison_shows_each_explanation_on_the_photo_it_is_of(tool):
    tool.explain()
    name = next(name for name in tool.state.remembered if ", text:" in name)
    tool.compare(name, name)
    shown, drawn = tool.compared.value, tool.rendered("compare", ".png")
    tool.select(5)
    assert tool.compared.value == shown and tool.rendered("compare", ".png") == drawn


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


@pytest.mark.parametrize("view", ["why", "what_if", "class", "compare"])
def test_every_view_can_be_saved(tool, tmp_path, view):
    if view in ("why", "class", "compare"):
        with pytest.raises(UserError):
            tool.export(tmp_path / "none.png", view)
    tool.explain()
    if view == "class":
        tool.explain_class(photos=2)
    shown = Image.open(tool.export(tmp_path / "view.png", view))
    assert min(shown.size) > 100
    page = tool.export(tmp_path / "view.html", view).read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") and not re.search(r'(?:src|href)="(?!data:)', page)
    assert all("alt=" in tag for tag in re.findall(r"<img[^>]*>", page))
    with pytest.raises(UsageError, match="not a format"):
        tool.export(tmp_path / "view.pdf", view)


def test_a_view_is_offered_as_a_link(tool):
    tool.controls["html"].click()
    assert "Choose Explain first" in tool.message.value
    tool.tabs.selected_index = 1
    tool.controls["html"].click()
    assert re.search(r'download="what_if_photo_1.html" href="data:text/html;base64,', tool.link.value)
    tool._update(photo=replace(tool.state.photo, name="<img>"))
    tool.controls["html"].click()
    assert "Save what_if_&lt;img&gt;.html" in tool.link.value and "<img" not in tool.link.value


def test_another_data_set_brings_its_own_models(shop, predictors):
    fewer = shop.select((shop.table["label"] != "milk").to_numpy())
    others = {"second": lambda: (fewer, {"image": predictors["image"]})}
    made = widgets.ExplanationTool(shop, predictors, others, budget=64)
    made.explain_class("milk", photos=2)
    made.controls["dataset"].value = "second"
    assert made.state.models == ("image",) and len(made.desk) == 8 and not made.message.value
    assert made.state.summed is None and not made.summary.value, "milk is a class of the other one"
    made.load(shop.name)
    assert len(made.desk) == 12 and made.controls["dataset"].value == shop.name


def test_a_picture_holds_regions_and_pixels_of_no_region():
    picture, hit = Picture(), []
    picture.on_click(hit.append)
    picture.show(b"png", np.array([[0, -1], [1, 1]]), ["a", "b"], "two parts")
    assert np.frombuffer(picture.labels, "<u2").tolist() == [0, NOWHERE, 1, 1] and picture.shape == [2, 2]
    click(picture, 1)
    click(picture, 1)
    assert hit == [1, 1], "a second click on the same part counts"
