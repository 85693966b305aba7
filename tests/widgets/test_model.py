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


def test_filters_find_photos_by_class_and_mistake(desk):
    labels = desk.judged["text"].labels
    assert desk.find("text", "milk") == np.flatnonzero(labels == desk.classes.index("milk")).tolist()
    probs = np.eye(3)[np.where(labels == 0, 2, labels)]
    desk.judged["text"] = Evaluation(probs, labels, desk.classes, desk.judged["text"].indices)
    assert desk.find("text", show="wrong") == desk.find("text", desk.classes[0])
    with pytest.raises(UsageError, match="filter"):
        desk.find("text", show="wrnog")


def test_the_twin_is_the_most_probable_class_of_the_family(desk):
    lean, extra, milk = (desk.classes.index(name) for name in CLASSES)
    probs = np.zeros(3)
    probs[[lean, extra, milk]] = 0.6, 0.1, 0.3
    assert desk.runner_up(lean, probs) == extra
    assert desk.runner_up(milk, probs) == lean, "milk has no twin"


def test_models_must_agree_and_are_in_evaluation_mode_from_the_start(shop, predictors):
    model = predictors["image"].model.train()
    Desk(shop, {"image": predictors["image"]})
    assert not any(part.training for part in model.modules())
    with pytest.raises(UsageError, match="input size"):
        Desk(shop, {"a": predictors["image"], "b": Predictor(model, 96)})
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


def explanation(weights, error):
    """What `stability` looks at: weights with 95 % intervals of `error`, a standard deviation."""
    spans = np.stack([weights - 1.96 * error, weights + 1.96 * error], 1)[None]
    return SimpleNamespace(image_weights=weights[None, :9], text_weights=weights[None, 9:], nothing="",
                           image_intervals=spans[:, :9], text_intervals=spans[:, 9:])  # fmt: skip


@pytest.mark.parametrize("signal, strong", [(0, 40), (1, 40), (2, 40), (10, 5)])
def test_stability_is_what_two_explanations_have_in_common(signal, strong):
    rng, promised, found = np.random.default_rng(0), [], []
    for _ in range(40):
        truth = signal * rng.standard_normal(40) * (np.arange(40) < strong)
        one, other = truth + rng.standard_normal((2, 40))
        promised.append(desks.stability(explanation(one, 1.0)))
        found.append(explain_metrics.stability([one, other]).spearman)
    assert np.mean(promised) == pytest.approx(np.mean(found), abs=0.12)
    assert desks.stability(explanation(one, 0.0)) == pytest.approx(1)
    assert np.isnan(desks.stability(explanation(one, np.nan)))


def test_a_word_lies_over_the_superpixels_at_its_place(photo):
    labels = photo.regions()
    x0, y0, x1, y1 = (round(edge) for edge in photo.tokens[1].words[0].box)
    assert (labels[y0:y1, x0:x1] == photo.n_segments + 1).all()
    outside = labels < photo.n_segments
    assert np.array_equal(labels[outside], photo.segments[outside])


def test_a_coarse_answer_of_every_model_comes_first(desk):
    steps = desks.explaining(desk.predictors, desk.photo(0), 0, 1, 96)
    first = dict(next(steps) for _ in range(3))
    assert list(first) == ["score_fusion", "image", "text"]
    assert all(desks.spent(found) <= desks.PREVIEW for found in first.values())
    last = dict(steps)
    assert desks.spent(last["score_fusion"]) == desks.spent(last["image"]) == 96


def test_a_model_that_only_reads_needs_words(desk, photo, without_words):
    found = dict(desks.explaining({"text": desk.predictors["text"]}, without_words(photo), 0, 1, 64))
    assert "nothing to explain" in found["text"]
