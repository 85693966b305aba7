"""The explanation tool: what it shows follows from its state, every control does what its method does."""

import io
import re
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from retailkit import data, models, widgets
from retailkit.config import UsageError, UserError
from retailkit.data.table import Word
from retailkit.explain import metrics as explain_metrics
from retailkit.explain.masking import MaskedModel
from retailkit.inference import Predictor
from retailkit.metrics import Evaluation
from retailkit.widgets import desk as desks
from retailkit.widgets import uploads, views
from retailkit.widgets.controls import SIDE as WIDE
from retailkit.widgets.desk import Change, Desk
from retailkit.widgets.picture import NOWHERE, Picture

CLASSES = ["lean", "extra lean", "milk"]
SIZE = 64


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """Three classes of six coloured photos with a mask; each has its name for words. The first two are twins."""
    root, rows = tmp_path_factory.mktemp("shop"), []
    for number, label in enumerate(CLASSES):
        for shot in range(6):
            rng = np.random.default_rng(10 * number + shot)
            pixels = rng.integers(0, 80, (SIZE, SIZE, 3), np.uint8)
            pixels[16:48, 16:48, number] += 150
            mask = np.zeros((SIZE, SIZE), np.uint8)
            mask[16:48, 16:48] = 255
            for name, array in (("photo", pixels), ("mask", mask)):
                Image.fromarray(array).save(root / f"{name}-{number}-{shot}.png")
            row = {"image": f"photo-{number}-{shot}.png", "mask": f"mask-{number}-{shot}.png", "label": label}
            row |= {"family": "ham" if number < 2 else "dairy", "split": "train" if shot < 2 else "test"}
            rows.append(row | {"text": f"{label} brand", "condition": "front" if shot < 5 else "dark"})
    pd.DataFrame(rows).to_csv(root / "photos.csv", index=False)
    shop = data.load("folder", root / "photos.csv")
    boxes = [(4.0, 4.0, 20.0, 10.0), (24.0, 4.0, 40.0, 10.0), (44.0, 4.0, 60.0, 10.0)]
    words = [[Word(w, box) for w, box in zip(text.split(), boxes, strict=False)] for text in shop.table["text"]]
    return replace(shop, table=shop.table.assign(words=words))


@pytest.fixture(scope="module")
def predictors(shop):
    """A model that sees and reads, one that sees, and one that reads; they have learned a little."""
    from retailkit import training

    found = {}
    for name in ("score_fusion", "image", "text"):
        torch.manual_seed(0)
        parts = {} if name == "image" else {"text_encoder": "char_ngrams"}
        model = models.build(name, shop.classes, "efficientnet_lite0", **parts,
                             weights=None, freeze=True)  # fmt: skip
        training.fit(model, shop.split("train", SIZE), config=training.TrainConfig(epochs=20))
        found[name] = Predictor(model.eval(), SIZE)
    return found


@pytest.fixture
def tool(shop, predictors):
    made = widgets.explanation_tool(shop, predictors, budget=64)
    yield made
    made.stop()


@pytest.fixture
def photo(shop, predictors):
    return Desk(shop, predictors).photo(0)


def pixels_of(picture):
    return np.array(Image.open(io.BytesIO(picture.png)))


# -- The desk.


def test_photos_are_those_that_no_model_has_learned_from(tool):
    assert len(tool.desk) == 12 and set(tool.desk.pictures.table["split"]) == {"test"}


def test_filters_find_photos_by_class_condition_and_mistake(tool):
    desk = tool.desk
    assert desk.find("text", "milk") == [
        p for p in range(12) if desk.judged["text"].labels[p] == desk.classes.index("milk")
    ]
    assert len(desk.find("text", condition="dark")) == 3
    wrong = desk.find("image", show="wrong")
    assert wrong == np.flatnonzero(~desk.judged["image"].correct).tolist()
    assert desk.shows("image")[3:] == list(desk.pairs("image"))
    for show, pair in desk.pairs("image").items():
        rows = desk.find("image", show=show)
        assert rows and set(rows) <= set(wrong)
        assert {desk.judged["image"].labels[p] for p in rows} <= set(pair)
    with pytest.raises(UsageError, match="filter"):
        desk.find("image", show="wrnog")


def confusing(desk, name, one, other):
    """Let a model take all photos of one class for another one, and know the rest; return those photos."""
    labels = desk.judged[name].labels
    probs = np.eye(len(desk.classes))[np.where(labels == one, other, labels)]
    desk.judged[name] = Evaluation(probs, labels, desk.classes, desk.judged[name].indices)
    return np.flatnonzero(labels == one).tolist()


def test_a_pair_of_classes_is_found_whatever_they_are_called(tool):
    desk = tool.desk
    desk.classes = ["MILK 1 / 2 L", "extra lean", "milk"]
    wrong = confusing(desk, "image", 0, 2)
    assert desk.shows("image")[3:] == ["MILK 1 / 2 L / milk"]
    assert desk.find("image", show="MILK 1 / 2 L / milk") == wrong


def test_the_pairs_on_offer_are_those_of_the_first_model(tool):
    confusing(tool.desk, "image", 0, 1)
    confusing(tool.desk, "text", 1, 2)
    for name in ("image", "text"):
        tool.use(name)
        pair = tool.desk.shows(name)[-1]
        assert list(tool.controls["show"].options) == tool.desk.shows(name)
        tool.filter(show=pair)
        assert tool.controls["show"].value == pair


def test_a_photo_without_an_answer_is_named_as_no_class(tool, monkeypatch):
    judged, told = tool.desk.judged["image"], []
    unknown = judged.probs.copy()
    unknown[0] = 1 / 3
    tool.desk.judged["image"] = Evaluation(unknown, judged.labels, judged.classes, judged.indices)
    draw = views.thumbnails
    monkeypatch.setattr(views, "thumbnails", lambda images, captions, *rest: told.append(captions) or draw(
        images, captions, *rest))  # fmt: skip
    tool.use("image")
    assert told[-1][0] == "no answer" and "no answer" not in told[-1][1:]


def test_models_are_in_evaluation_mode_from_the_start(shop, predictors):
    model = predictors["image"].model.train()
    Desk(shop, {"image": predictors["image"]})
    assert not any(part.training for part in model.modules())


def test_the_twin_is_the_most_probable_class_of_the_family(tool):
    lean, extra, milk = (tool.desk.classes.index(name) for name in CLASSES)
    probs = np.zeros(3)
    probs[[lean, extra, milk]] = 0.6, 0.1, 0.3
    assert tool.desk.twin(lean, probs) == extra
    assert tool.desk.twin(milk, probs) == lean, "milk has no twin"


def test_models_must_agree_in_classes_and_size(shop, predictors):
    other = Predictor(predictors["image"].model, 96)
    with pytest.raises(UsageError, match="size of their pictures"):
        Desk(shop, {"a": predictors["image"], "b": other})
    with pytest.raises(UsageError, match="at least one"):
        Desk(shop, {})


def test_hidden_superpixels_look_as_they_do_in_explanations(photo, predictors):
    hidden = frozenset({0, 3})
    game = MaskedModel(predictors["image"], photo.sample.image, photo.segments, photo.tokens)
    kept = ~np.isin(np.arange(game.n_segments), list(hidden))
    assert torch.allclose(desks.changed(photo, Change(hidden=hidden)), game.pictures(kept[None])[0], atol=1e-5)


def test_a_change_does_what_it_says(photo):
    image, mask = photo.sample.image, photo.sample.mask[0]
    assert torch.equal(desks.changed(photo, Change()), image)
    assert torch.allclose(desks.changed(photo, Change(brightness=0.5)), image / 2)
    assert desks.changed(photo, Change(blur=0.05)).std() < image.std()
    alone = desks.changed(photo, Change(background="only the product"))
    assert torch.equal(alone[:, mask], image[:, mask]) and not alone[:, ~mask].any()
    covered = desks.changed(photo, Change(occlusion=0.5))
    assert 0.3 < (covered != image).any(0)[mask].float().mean() < 0.7
    assert Change(unread=frozenset({0})).read(photo) == photo.text.split(" ", 1)[1]
    assert Change(unread=frozenset({0}), text="5901234123457 milk").read(photo) == "milk", "no barcodes"


def test_a_photo_without_a_mask_keeps_its_background(photo):
    bare = replace(photo, sample=replace(photo.sample, mask=None))
    with pytest.raises(UserError, match="no product mask"):
        desks.changed(bare, Change(background="blurred"))


def test_steadiness_falls_with_the_width_of_the_intervals(tool):
    tool.use("score_fusion")
    tool.explain(128)
    found = tool.state.explanations["score_fusion"]

    def widened(factor):
        spans = {}
        for kind in ("image", "text"):
            middle = getattr(found, f"{kind}_weights")[..., None]
            spans[f"{kind}_intervals"] = middle + factor * (getattr(found, f"{kind}_intervals") - middle)
        return replace(found, **spans)

    assert desks.steadiness(widened(0)) == pytest.approx(1)
    assert desks.steadiness(widened(0)) > desks.steadiness(widened(2)) > desks.steadiness(widened(20))
    unknown = replace(found, image_intervals=np.full_like(found.image_intervals, np.nan))
    assert np.isnan(desks.steadiness(unknown))


@pytest.mark.parametrize("signal, strong", [(0, 40), (1, 40), (2, 40), (10, 5)])
def test_steadiness_is_what_two_explanations_have_in_common(signal, strong):
    rng, promised, found = np.random.default_rng(0), [], []
    for _ in range(40):
        truth = signal * rng.standard_normal(40) * (np.arange(40) < strong)
        one, other = truth + rng.standard_normal((2, 40))
        spans = np.stack([one - 1.96, one + 1.96], 1)[None]
        made = SimpleNamespace(image_weights=one[None, :9], text_weights=one[None, 9:], nothing="",
                               image_intervals=spans[:, :9], text_intervals=spans[:, 9:])  # fmt: skip
        promised.append(desks.steadiness(made, 10))
        found.append(explain_metrics.stability([one, other]).spearman)
    assert np.mean(promised) == pytest.approx(np.mean(found), abs=0.12)


# -- Photos from outside.


def png(size, mode="RGB"):
    stream = io.BytesIO()
    Image.new(mode, size, 90).save(stream, "png")
    return stream.getvalue()


BAD_FILES = {
    "empty": (b"", "is empty"),
    "no picture": (b"%PDF-1.7 not a picture at all", "not a picture"),
    "a page that says it is a picture": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
    "too large": (b"\x89PNG\r\n\x1a\n" + bytes(10_000_000), "9 MB"),
    "a bomb": (png((20000, 20000), "1"), "pixels"),
    "a bigger bomb": (png((8000, 8000), "1"), "60 megapixels"),
    "too small": (png((8, 8)), "too few"),
    "cut off": (png((400, 400))[:-40][:300], "damaged"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_file_that_is_no_sound_photo_gets_a_clear_message(case):
    content, told = BAD_FILES[case]
    with pytest.raises(UserError, match=told) as error:
        uploads.decoded(content, "photo.jpg")
    assert str(error.value).startswith("photo.jpg: ") and len(str(error.value)) < 200


def test_a_photo_is_known_by_its_content_and_not_by_its_name():
    assert uploads.checked(png((64, 64)), "photo.exe") == "PNG"
    assert uploads.decoded(png((64, 48)), "x").shape == (48, 64, 3)


def test_an_uploaded_photo_can_be_asked_about(tool, monkeypatch):
    monkeypatch.setattr(desks.ocr, "add_text", lambda data, **_: replace(data, table=data.table.assign(text="milk")))
    tool.upload(png((200, 100)), "mine.png")
    assert tool.state.photo.name == "mine.png" and not tool.state.photo.known and tool.state.photo.text == "milk"
    assert set(tool.state.before) == {"score_fusion", "image", "text"}
    assert "not known" in tool.told.value


def test_photos_of_one_name_are_told_apart(tool, monkeypatch):
    monkeypatch.setattr(desks.ocr, "add_text", lambda data, **_: replace(data, table=data.table.assign(text="milk")))
    for size in ((200, 100), (100, 100)):
        tool.upload(png(size), "image.jpg")
        tool.explain(64)
    assert tool.state.photo.name == "image.jpg (2)" and len(tool.state.remembered) == 6


# -- Views.


def test_a_click_on_a_word_is_a_click_on_the_word(photo):
    labels, count = views.regions(photo), photo.segments.max() + 1
    x0, y0, x1, y1 = (round(edge) for edge in photo.tokens[1].words[0].box)
    assert (labels[y0:y1, x0:x1] == count + 1).all()
    outside = labels < count
    assert np.array_equal(labels[outside], photo.segments[outside])
    names = views.region_names(photo, None, Change(hidden=frozenset({2}), unread=frozenset({0})))
    assert len(names) == count + len(photo.tokens) and "switch on" in names[2] and "switch off" in names[3]
    assert names[count].startswith(f"word {photo.tokens[0].text}") and "switch on" in names[count]


def test_thumbnails_know_which_photo_was_hit():
    sheet, labels = views.thumbnails(
        [torch.rand(3, 8, 8)] * 3, ["a very long name of a class", "b", "c"], [True, False, None]
    )
    assert sheet.shape[:2] == labels.shape and set(np.unique(labels)) == {-1, 0, 1, 2}
    assert (np.diff(labels[0][labels[0] >= 0]) >= 0).all()


def test_html_escapes_what_comes_from_outside():
    assert "<b>" not in views.problem("<b>bold</b>")
    told = views.probabilities({"m": np.array([0.4, 0.6])}, {"m": np.array([0.7, 0.3])}, ["<i>", "y"], 0, 1)
    assert "<i>" not in told.replace("<i style", "") and "0.40 → <b>0.70</b>" in told and "0.60 → <b>0.30</b>" in told


def test_a_model_that_has_nothing_to_go_by_says_so():
    assert "nothing left" in views.probabilities({"m": np.array([1.0])}, {}, ["x"], 0, 0)
    assert "no answer" in views.said("m", ["x"], None, None, -1)


@pytest.mark.parametrize("state", ["fresh", "explained", "changed"])
def test_the_panels_show_what_the_views_make_of_the_state(tool, state):
    if state != "fresh":
        tool.explain()
    if state == "changed":
        tool.switch(segment=1)
        tool.switch(word=0)
    now, panel = tool.state, tool.panels[0]
    if state == "fresh":
        assert "not explained yet" in panel.foot.value
        assert np.array_equal(pixels_of(panel.picture), views.enlarged(now.photo.sample.image, WIDE))
    else:
        found = now.explanations["score_fusion"]
        assert np.array_equal(pixels_of(panel.picture), views.signed_map(found, WIDE, now.photo.sample.image))
        assert views.badges(found) in panel.foot.value and views.word_weights(found) in panel.foot.value
    shown = views.changed_picture(desks.changed(now.photo, now.change), now.photo, now.change, 400)
    assert np.array_equal(pixels_of(tool.scene), shown)
    bars = views.probabilities(now.before, now.after, tool.desk.classes, now.label, now.rival)
    assert bars in tool.bars.value
    assert now.change.read(now.photo) == tool.controls["text"].value
    assert ("with your changes" in panel.head.value) == (state == "changed" and not np.allclose(
        now.before["score_fusion"], now.after["score_fusion"], atol=5e-4))  # fmt: skip


def test_two_tools_share_nothing(shop, predictors):
    one, other = (widgets.explanation_tool(shop, predictors, budget=64) for _ in range(2))
    before = other.state
    one.select(5)
    one.switch(segment=0)
    one.controls["show"].value = "unsure"
    assert other.state is before and other.controls["show"].value == "all"


# -- Controls.


def click(picture, part):
    picture.clicked = [part, picture.clicked[1] + 1]


def test_a_click_on_a_thumbnail_opens_its_photo(tool):
    click(tool.strip, 3)
    assert tool.state.photo.position == tool.state.found[3]


def test_a_click_on_a_part_switches_it_off_and_on(tool):
    count = int(tool.state.photo.segments.max()) + 1
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
    tool.controls["background"].value = "only the product"
    tool.controls["occlusion"].value = 0.5
    tool.controls["blur"].value = 0.02
    change = tool.state.change
    assert (change.text, change.brightness, change.background) == ("milk milk milk", 0.3, "only the product")
    assert (change.occlusion, change.blur) == (0.5, 0.02) and not tool.message.value


def test_a_question_can_be_changed(tool):
    tool.explain()
    other = next(k for k in range(3) if k not in (tool.state.label, tool.state.rival))
    tool.controls["against"].value = other
    assert tool.state.rival == other and not tool.state.explanations
    tool.controls["class"].value = other
    assert "cannot be told from itself" in tool.message.value


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
    assert "list.pdf: this is not a picture" in tool.message.value and 'role="alert"' in tool.message.value
    assert tool.state is before


# -- Explaining.


def test_a_coarse_answer_of_every_model_comes_first(tool):
    steps = desks.explaining(tool.desk.predictors, tool.state.photo, 0, 1, 96)
    first = [next(steps) for _ in range(3)]
    assert [name for name, _ in first] == ["score_fusion", "image", "text"]
    assert all(desks.spent(found) <= desks.PREVIEW for _, found in first)
    last = dict(steps)
    assert desks.spent(last["score_fusion"]) == desks.spent(last["image"]) == 96


def test_explaining_goes_on_in_the_background_and_can_be_stopped_and_refined(tool):
    tool.use("score_fusion")
    tool.controls["masks"].value = 2048
    tool.controls["explain"].click()
    until(lambda: tool.state.explanations)
    tool.controls["stop"].click()
    spent = desks.spent(tool.state.explanations["score_fusion"])
    assert spent < 2048 and "masks; what they say is kept" in tool.status.value and not tool._worker.is_alive()
    assert tool.controls["left"].value in tool.state.remembered and tool.rendered("compare", ".html")
    tool.refine(64)
    assert desks.spent(tool.state.explanations["score_fusion"]) == spent + 64 and "done" in tool.status.value


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
        assert "stopped: 1 of 3 photos; " in tool.status.value and "nothing is kept" in tool.status.value


def silenced(photo):
    return replace(photo, tokens=(), sample=replace(photo.sample, words=[], text=""))


def test_a_class_is_summed_up_and_checked_where_a_photo_has_no_words(tool, monkeypatch):
    *_, without = tool.desk.find("text", "milk")
    laid = tool.desk.photo
    monkeypatch.setattr(tool.desk, "photo", lambda row: silenced(laid(row)) if row == without else laid(row))
    tool.explain_class("milk", photos=2, model="text")
    explained, check = tool.state.summed
    assert len(explained.photos) == 2 and check["n"].max() == 1


def test_a_model_that_only_reads_needs_words(tool, photo):
    silent = silenced(photo)
    found = dict(desks.explaining({"text": tool.desk.predictors["text"]}, silent, 0, 1, 64))
    assert "nothing to explain" in found["text"]


def test_a_problem_in_the_background_is_shown(tool, monkeypatch):
    def fails(*_):
        raise UserError("no <luck>")
        yield

    monkeypatch.setattr(desks, "explaining", fails)
    tool.explain(wait=False)
    tool._worker.join()
    assert "no &lt;luck&gt;" in tool.message.value


def test_refining_nothing_and_unknown_parts_are_named(tool):
    with pytest.raises(UserError, match="choose Explain first"):
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
    explained, check = tool.state.summed
    assert explained.name == "milk" and len(explained.photos) <= 3 and set(check["kind"]) <= {"image", "text"}
    assert "milk" in tool.summary.value and "What it reads" in tool.summary.value
    tool.select(0)
    assert tool.state.summed == (explained, check) and tool.rendered("class", ".html")


def test_two_explanations_are_compared(tool):
    tool.explain()
    names = list(tool.state.remembered)
    assert len(names) == 3
    tool.compare(names[0], names[1])
    assert "rank correlation" in tool.compared.value
    left, right, third = (tool.state.remembered[name][1] for name in names)
    assert views.same_order(left, left) == pytest.approx(1) and views.same_order(left, right) is not None
    assert views.same_order(left, third) is None, "the third one only reads"


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
    assert "choose Explain first" in tool.message.value
    tool.tabs.selected_index = 1
    tool.controls["html"].click()
    assert re.search(r'download="what_if_photo_0.html" href="data:text/html;base64,', tool.link.value)
    tool._update(photo=replace(tool.state.photo, name="<img>"))
    tool.controls["html"].click()
    assert "Save what_if_&lt;img&gt;.html" in tool.link.value and "<img" not in tool.link.value


def test_another_data_set_brings_its_own_models(shop, predictors):
    fewer = shop.select((shop.table["label"] != "milk").to_numpy())
    others = {"second": lambda: (fewer, {"image": predictors["image"]})}
    made = widgets.explanation_tool(shop, predictors, others, budget=64)
    made.explain_class("milk", photos=2)
    made.controls["dataset"].value = "second"
    assert made.state.models == ("image",) and len(made.desk) == 8 and not made.message.value
    assert made.state.summed is None and not made.summary.value, "milk is a class of the other one"
    made.load(shop.name)
    assert len(made.desk) == 12 and made.controls["dataset"].value == shop.name


def test_a_picture_holds_regions_and_pixels_of_no_region():
    picture, hit = Picture(), []
    picture.on_click(hit.append)
    picture.show(np.zeros((8, 8, 3), np.uint8), np.array([[0, -1], [1, 1]]), ["a", "b"], "two parts")
    assert np.frombuffer(picture.labels, "<u2").tolist() == [0, NOWHERE, 1, 1] and picture.shape == [2, 2]
    click(picture, 1)
    click(picture, 1)
    assert hit == [1, 1], "a second click on the same part counts"
