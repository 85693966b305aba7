"""Photos, models and changes of the explanation tool, without widgets."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from retailkit.config import UsageError, UserError
from retailkit.explain import metrics as explain_metrics
from retailkit.explain.masking import MaskedModel
from retailkit.inference import Predictor
from retailkit.metrics import Evaluation
from retailkit.widgets import model as desks
from retailkit.widgets.model import Change, Desk

CLASSES = ["lean", "extra lean", "milk"]


def test_photos_are_those_that_no_model_has_learned_from(desk):
    assert len(desk.images) == 12 and set(desk.images.table["split"]) == {"test"}


def test_filters_find_photos_by_class_and_mistake(desk):
    labels = desk.judged["text"].labels
    assert desk.find("text", "milk") == np.flatnonzero(labels == desk.classes.index("milk")).tolist()
    probs = np.eye(3)[np.where(labels == 0, 2, labels)]
    desk.judged["text"] = Evaluation(probs, labels, desk.classes, desk.judged["text"].indices)
    assert desk.find("text", show="wrong") == desk.find("text", desk.classes[0])
    with pytest.raises(UsageError, match="filter"):
        desk.find("text", show="wrnog")


def test_models_are_in_evaluation_mode_from_the_start(shop, predictors):
    model = predictors["image"].model.train()
    Desk(shop, {"image": predictors["image"]})
    assert not any(part.training for part in model.modules())


def test_the_twin_is_the_most_probable_class_of_the_family(desk):
    lean, extra, milk = (desk.classes.index(name) for name in CLASSES)
    probs = np.zeros(3)
    probs[[lean, extra, milk]] = 0.6, 0.1, 0.3
    assert desk.runner_up(lean, probs) == extra
    assert desk.runner_up(milk, probs) == lean, "milk has no twin"


def test_models_must_agree_in_classes_and_size(shop, predictors):
    other = Predictor(predictors["image"].model, 96)
    with pytest.raises(UsageError, match="input size"):
        Desk(shop, {"a": predictors["image"], "b": other})
    with pytest.raises(UsageError, match="at least one"):
        Desk(shop, {})


def test_hidden_superpixels_look_as_they_do_in_explanations(photo, predictors):
    hidden = frozenset({0, 3})
    game = MaskedModel(predictors["image"], photo.sample.image, photo.segments, photo.tokens)
    kept = ~np.isin(np.arange(game.n_segments), list(hidden))
    assert torch.allclose(Change(hidden=hidden).image(photo), game.images(kept[None])[0], atol=1e-5)


def test_a_change_does_what_it_says(photo):
    image, mask = photo.sample.image, photo.sample.mask[0]
    assert torch.equal(Change().image(photo), image)
    assert torch.allclose(Change(brightness=0.5).image(photo), image / 2)
    assert Change(blur=0.05).image(photo).std() < image.std()
    alone = Change(background="none (product only)").image(photo)
    assert torch.equal(alone[:, mask], image[:, mask]) and not alone[:, ~mask].any()
    covered = Change(occlusion=0.5).image(photo)
    assert 0.3 < (covered != image).any(0)[mask].float().mean() < 0.7
    assert Change(unread=frozenset({0})).words(photo) == photo.text.split(" ", 1)[1]
    assert Change(unread=frozenset({0}), text="5901234123457 milk").words(photo) == "milk", "no barcodes"
    with pytest.raises(UserError, match="no product mask"):
        Change(background="blurred").image(replace(photo, sample=replace(photo.sample, mask=None)))


def test_stability_falls_with_the_width_of_the_intervals(desk):
    one = {"score_fusion": desk.predictors["score_fusion"]}
    *_, (_, found) = desks.explaining(one, desk.photo(0), 0, 1, 128)

    def widened(factor):
        spans = {}
        for kind in ("image", "text"):
            middle = getattr(found, f"{kind}_weights")[..., None]
            spans[f"{kind}_intervals"] = middle + factor * (getattr(found, f"{kind}_intervals") - middle)
        return replace(found, **spans)

    assert desks.stability(widened(0)) == pytest.approx(1)
    assert desks.stability(widened(0)) > desks.stability(widened(2)) > desks.stability(widened(20))
    unknown = replace(found, image_intervals=np.full_like(found.image_intervals, np.nan))
    assert np.isnan(desks.stability(unknown))


@pytest.mark.parametrize("signal, strong", [(0, 40), (1, 40), (2, 40), (10, 5)])
def test_stability_is_what_two_explanations_have_in_common(signal, strong):
    rng, promised, found = np.random.default_rng(0), [], []
    for _ in range(40):
        truth = signal * rng.standard_normal(40) * (np.arange(40) < strong)
        one, other = truth + rng.standard_normal((2, 40))
        spans = np.stack([one - 1.96, one + 1.96], 1)[None]
        made = SimpleNamespace(image_weights=one[None, :9], text_weights=one[None, 9:], nothing="",
                               image_intervals=spans[:, :9], text_intervals=spans[:, 9:])  # fmt: skip
        promised.append(desks.stability(made))
        found.append(explain_metrics.stability([one, other]).spearman)
    assert np.mean(promised) == pytest.approx(np.mean(found), abs=0.12)


BAD_FILES = {
    "empty": (b"", "is empty"),
    "a page that says it is a picture": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
    "too large": (b"\x89PNG\r\n\x1a\n" + bytes(10_000_000), "9 MB"),
    "a bomb": (((20000, 20000), "1"), "pixels"),
    "more pixels than a photo": (((8000, 8000), "1"), "60 megapixels"),
    "too small": (((8, 8), "RGB"), "too few"),
    "cut off": (((400, 400), "cut off"), "cannot be decoded"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_file_that_is_no_sound_photo_gets_a_clear_message(case, png):
    content, message = BAD_FILES[case]
    if isinstance(content, tuple):
        size, mode = content
        content = png(size)[:300] if mode == "cut off" else png(size, mode)
    with pytest.raises(UserError, match=message) as error:
        desks.decode(content, "photo.jpg")
    assert str(error.value).startswith("photo.jpg: ") and len(str(error.value)) < 200


def test_an_uploaded_photo_is_brought_to_a_size_that_is_enough(png):
    assert desks.decode(png((6000, 3000), "1"), "photo.png").shape == (1024, 2048, 3)


def test_a_word_lies_over_the_superpixels_at_its_place(photo):
    labels = photo.regions()
    x0, y0, x1, y1 = (round(edge) for edge in photo.tokens[1].words[0].box)
    assert (labels[y0:y1, x0:x1] == photo.n_segments + 1).all()
    outside = labels < photo.n_segments
    assert np.array_equal(labels[outside], photo.segments[outside])


def test_a_coarse_answer_of_every_model_comes_first(desk):
    steps = desks.explaining(desk.predictors, desk.photo(0), 0, 1, 96)
    first = [next(steps) for _ in range(3)]
    assert [name for name, _ in first] == ["score_fusion", "image", "text"]
    assert all(desks.spent(found) <= desks.PREVIEW for _, found in first)
    last = dict(steps)
    assert desks.spent(last["score_fusion"]) == desks.spent(last["image"]) == 96


def test_a_model_that_only_reads_needs_words(desk, photo, without_words):
    found = dict(desks.explaining({"text": desk.predictors["text"]}, without_words(photo), 0, 1, 64))
    assert "nothing to explain" in found["text"]
