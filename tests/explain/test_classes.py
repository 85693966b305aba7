"""Class explanations of made-up photos: the encoder sees colours, the model is linear, so the answer is known."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn.functional import avg_pool2d

from retailkit.config import UsageError, UserError
from retailkit.explain import classes
from retailkit.explain.classes import assign, compare, deletion_check
from retailkit.explain.lime import LocalExplanation

CLASSES = ["lean", "extra lean", "medium"]
COLOURS = {"r": (1.0, 0.0, 0.0), "g": (0.0, 1.0, 0.0), "b": (0.0, 0.0, 1.0), "w": (1.0, 1.0, 1.0)}


class Colours(nn.Module):
    """An encoder whose features are colours."""

    def __init__(self):
        super().__init__()
        self.passes = 0
        self.eval()

    def forward_map(self, images):
        self.passes += len(images)
        return avg_pool2d(images, 4)


class Linear:
    """A masked model: the logit of class 0 is the sum of the weights of what is kept, that of the others `other`."""

    def __init__(self, image, segments, tokens, weights, other=1.0):
        self.image, self.segments, self.tokens, self.classes = image, segments, tokens, CLASSES
        self.n_segments, self.n_tokens = map(len, weights)
        self.weights, self.other, self.calls = weights, other, 0

    def logits(self, image_keep, text_keep):
        self.calls += 1
        logits = np.full((len(image_keep), len(self.classes)), self.other, np.float32)
        logits[:, 0] = image_keep @ self.weights[0] + text_keep @ self.weights[1]
        return logits


def made(letters, image_weights, texts=(), text_weights=(), nothing="", other=1.0, **changes):
    """An explanation of an image of square superpixels of these colours, row by row; of words alone without any."""
    image = segments = None
    if letters:
        width = 4 if len(letters) % 4 == 0 else len(letters)
        segments = np.arange(len(letters)).reshape(-1, width).repeat(16, 0).repeat(16, 1)
        image = torch.tensor([COLOURS[letter] for letter in letters])[torch.from_numpy(segments)].permute(2, 0, 1)
    tokens = tuple(SimpleNamespace(text=text, words=()) for text in texts)
    weights = np.array(image_weights, float), np.array(text_weights, float)
    total = sum(np.abs(own).sum() for own in weights)
    facts = {
        "classes": CLASSES, "explained": (0,), "contrasts": (-1,), "image": image, "segments": segments,
        "tokens": tokens, "links": np.full(len(tokens), -1), "logits": np.zeros(3), "samples": None, "options": None,
        "image_weights": weights[0][None], "text_weights": weights[1][None], "nothing": nothing,
        "share": np.array([np.abs(weights[1]).sum() / total if total else np.nan]),
        "masked_model": Linear(image, segments, tokens, weights, other),
    }  # fmt: skip
    return LocalExplanation(**facts | changes)


def photos():
    """Red speaks for the class in all, blue against it in one, green and white do little; words of known weights."""
    return [
        made("rggggggg", [4, 0, 0, 0, 0, 0, 0, 0.5], ["LEAN", "BEEF"], [2, 0.1]),
        made("ggggrrgg", [0, 0, 0.5, 0, 2, 2, 0, 0], ["LE4N", "BEEF", "lean"], [1.5, -0.1, 0.5]),
        made("gggggggg", [1] * 8, nothing="there is only one part to hide"),
        made("gbgggggr", [0, -3, 0, 0, 0, 0, 0, 3], ["BEEF"], [0.2]),
    ]


def words(*texts, weights=None):
    """Explanations by a model that only reads, of one word each."""
    return [made("", [], [text], [w]) for text, w in zip(texts, weights or [1.0] * len(texts), strict=True)]


def explain_class(explanations, label=0, encoder=None, **options):
    return classes.explain_class(explanations, label, encoder, **options)


@pytest.fixture
def found():
    return explain_class(photos(), encoder=Colours())


# -- What a class is recognised by


def test_clusters_are_the_colours_and_their_weights_are_normlime(found):
    assert (found.label, found.name, found.photos, found.skipped) == (0, "lean", (0, 1, 3), 1)
    assert found.encoder.passes == 3 and found.image_note == ""
    table = found.image_features
    assert list(table["cluster"]) == [0, 1, 2]
    totals = np.array([6.6, 6.6, 6.2])
    sums = {"r": [4, 4, 3], "b": [0, 0, -3], "g": [0.5, 0.5, 0]}
    weights = {c: np.sign(sum(w)) * np.mean(np.square(w) / totals) for c, w in sums.items()}
    assert table["weight"].tolist() == pytest.approx([weights["r"], weights["b"], weights["g"]])
    assert table["share"].tolist() == pytest.approx([11 / 15, 3 / 15, 1 / 15])
    assert table["support"].tolist() == [3, 1, 3]
    assert table["area"].tolist() == pytest.approx([4 / 24, 1 / 8, 19 / 24])
    assert table["medoid"][0] in [(0, 0), (1, 4), (1, 5), (3, 7)] and table["medoid"][1] == (3, 1)


def test_phrases_join_their_spellings(found):
    table = found.text_features
    assert table["canonical"].tolist() == ["LEAN", "BEEF"]
    weights = [(2**2 / 6.6 + 2**2 / 6.6) / 3, (0.01 / 6.6 + 0.01 / 6.6 + 0.04 / 6.2) / 3]
    assert table["weight"].tolist() == pytest.approx(weights)
    assert table["share"].tolist() == pytest.approx([4 / 4.4, 0.4 / 4.4])
    assert table["samples"].tolist() == [2, 3]
    assert table["variants"].tolist() == [{"LEAN": 2, "LE4N": 1}, {"BEEF": 3}]
    assert found.text_share == pytest.approx(np.mean([2.1 / 6.6, 2.1 / 6.6, 0.2 / 6.2]))


def test_every_part_has_its_feature_and_those_of_a_new_photo_have_one_or_none(found, monkeypatch):
    members = [assign(found, own) for own in found.explanations]
    for own, colours in zip(members, ("rggggggg", "ggggrrgg", "gbgggggr"), strict=True):
        assert own.segments.tolist() == [{"r": 0, "b": 1, "g": 2}[c] for c in colours]
    assert [own.tokens.tolist() for own in members] == [[0, 1], [0, 1, 0], [1]]
    new = made("grbw", [0] * 4, ["LEAN.", "EXTRA LEAN", "BEEF", " "], [0] * 4)
    for item in (new, new.masked_model):
        own = assign(found, item)
        assert own.segments.tolist()[:3] == [2, 0, 1] and own.tokens.tolist() == [0, -1, 1, -1]
    monkeypatch.setattr(classes, "THRESHOLD", 0.05)
    assert assign(found, new).segments.tolist() == [2, 0, 1, -1]


def test_a_feature_loses_nothing_by_being_cut_into_several_superpixels():
    whole, cut = (explain_class([e], encoder=Colours()) for e in (made("rg", [4, 1]), made("rrg", [2, 2, 1])))
    assert whole.image_features["weight"].tolist() == pytest.approx([16 / 5, 1 / 5])
    assert cut.image_features["weight"].tolist() == pytest.approx([16 / 5, 1 / 5])


def test_without_an_encoder_or_without_images_there_are_no_image_features_and_it_says_so(found):
    unseen = explain_class(photos())
    assert unseen.image_features.empty and unseen.image_note == classes.NO_ENCODER
    assert list(unseen.image_features.columns) == list(found.image_features.columns)
    assert unseen.text_features.equals(found.text_features)
    assert all((assign(unseen, own).segments == -1).all() for own in unseen.explanations)
    read = words("LEAN", "BEEF", weights=[2.0, -4.0])
    blind = explain_class(read, encoder=Colours())
    assert blind.image_note == classes.NO_IMAGES and blind.image_features.empty
    assert blind.text_features["weight"].tolist() == [-2, 1] and blind.text_share == 1
    checked = deletion_check(blind, [photo.masked_model for photo in read])
    assert checked["n"].tolist() == [0, 0], "nothing else could be hidden"


def test_contrast_classes_are_counted():
    """Margins against different classes answer different questions; who adds them up must be able to say so."""
    some = photos()
    for explanation, contrast in zip(some, (1, 2, 1, 1), strict=True):
        explanation.contrasts = (contrast,)
    assert explain_class(some).contrasts == {"extra lean": 2, "medium": 1}, "the third photo is skipped"
    assert explain_class(photos()).contrasts == {}


def test_the_class_is_the_one_that_is_asked_for():
    two = {"explained": (1, 2), "contrasts": (2, 1), "share": np.zeros(2), "text_weights": np.zeros((2, 0))}
    both = replace(made("rggg", [0] * 4), image_weights=np.array([[1.0, 0, 0, 0], [0, 0, 0, 5.0]]), **two)
    assert explain_class([both], 1, encoder=Colours()).name == "extra lean"
    found = explain_class([both], 2, encoder=Colours())
    assert found.label == 2 and found.image_features["weight"].tolist() == pytest.approx([5, 0])


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda: explain_class([]), UserError, "none of 0 photos .*give at least one"),
    (lambda: explain_class(photos()[2:3]), UserError, "none of 1 photos has anything .* only one part"),
    (lambda: explain_class(photos(), 2), UsageError, r"'medium' was not explained.*classes="),
    (lambda: explain_class(photos(), encoder=Colours().train()), UsageError, r"call encoder.eval\(\)"),
    (lambda: explain_class([*photos(), made("rggg", [1] * 4, classes=["a"])]), UsageError, "photo 4 .*other"),
    (lambda: compare({"a": explain_class(photos()), "b": explain_class([made("rg", [1, 0], explained=(1,))], 1)}),
     UsageError, "explanations are of extra lean and lean; compare models on one class"),
])  # fmt: skip
def test_a_wrong_call_says_what_to_change(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_words_of_other_classes_are_no_misreadings():
    some, (new,) = words("SMOKED", "SMOKED", "SMOKEY"), words("SMOKEY")
    joined, apart = explain_class(some), explain_class(some, vocabulary=["SMOKEY", "BACON"])
    assert (len(joined.text_features), len(apart.text_features)) == (1, 2)
    without = explain_class(some[:2], vocabulary=["SMOKEY"])
    assert [assign(found, new).tokens.tolist() for found in (joined, apart, without)] == [[0], [1], [-1]]


# -- Deletion


@pytest.fixture
def held_out():
    """Photos of 16 superpixels of equal size and 4 words; red weighs 3 in all, LEAN 2, all else nothing."""
    found = []
    for n in range(8):
        letters = ["g"] * 16
        letters[n], letters[n + 8] = "r", "b"
        texts = ["LEAN" if n % 2 else "LE4N", "BEEF", "FRESH", "CUT"]
        found.append(made(letters, [3.0 * (c == "r") for c in letters], texts, [2.0, 0, 0, 0], other=2.5))
    return found


def test_hiding_what_matters_costs_what_it_weighs_and_chance_costs_nothing(held_out):
    found = explain_class(held_out[:4], encoder=Colours(), top=2)
    masked_models = [e.masked_model for e in held_out[4:]]
    table = deletion_check(found, masked_models, repeats=5)
    assert [masked.calls for masked in masked_models] == [1, 1, 1, 1]
    assert table["kind"].tolist() == ["image", "image", "text", "text"] and table["n"].tolist() == [4, 4, 4, 4]
    red, lean = table.iloc[0], table.iloc[2]
    assert (red["feature"], lean["feature"]) == (0, "LEAN")
    assert red["hidden"] == red["random_hidden"] == pytest.approx(1 / 16)
    assert lean["hidden"] == lean["random_hidden"] == 1
    # Kept, the class has 5 and its other 2.5: without red it loses, without LEAN it wins by less.
    expected = {"margin_drop": 3, "margin_random_drop": 0, "margin_difference": 3}
    expected |= {"accuracy_drop": 1, "accuracy_random_drop": 0, "accuracy_difference": 1}
    assert dict(red[list(expected)]) == pytest.approx(expected)
    assert lean["margin_drop"] == 2 and lean["accuracy_drop"] == 0 and lean["margin_random_drop"] == 0
    assert (table.iloc[[1, 3]]["margin_drop"] == 0).all()


def test_photos_without_the_feature_and_single_photos_are_told(held_out):
    found = explain_class(held_out[:4], encoder=Colours(), top=1)
    bare = made("ggggbbgg", [0] * 8, ["BEEF", "FRESH"], [0, 0])
    none = deletion_check(found, [bare.masked_model])
    assert none["n"].tolist() == [0, 0] and none["margin_drop"].isna().all()
    one = deletion_check(found, [bare.masked_model, held_out[5].masked_model])
    assert one["n"].tolist() == [1, 1] and one["margin_drop"].tolist() == [3, 2]


def test_the_same_seed_draws_the_same_sets(held_out):
    rng, masked_models = np.random.default_rng(0), [e.masked_model for e in held_out]
    for masked in masked_models:
        masked.weights = (rng.normal(size=16), rng.normal(size=4))
    found = explain_class(held_out, encoder=Colours())
    one, again, other = (deletion_check(found, masked_models, seed=seed) for seed in (3, 3, 4))
    pd.testing.assert_frame_equal(one, again)
    assert not one["margin_random_drop"].equals(other["margin_random_drop"])


# -- Models


def test_models_are_compared_on_common_axes():
    reader = [made("rggg", [1, 0, 0, 0], ["LEAN", "BEEF"], [6, -3]), made("gggr", [0, 0, 0, 0], ["LE4N"], [10])]
    looker = [made("rggg", [8, 0, 0, -2], ["LEAN", "EXTRA"], [0, 0]), made("gggr", [0, 0, 1, 9], ["LE4N"], [0])]
    a, b = (explain_class(some, encoder=Colours(), top=2) for some in (reader, looker))
    table = compare({"reader": a, "looker": b})
    assert list(table.columns) == ["reader", "looker"] and table.loc["text"].index[0] == "LEAN"
    expected = {("share", "text"): [(0.9 + 1) / 2, 0], ("text", "LEAN"): [16 / 20, 0], ("text", "BEEF"): [-3 / 20, 0]}
    for row, values in (expected | {("image", 0): [1 / 20, 17 / 20]}).items():
        assert table.loc[row].tolist() == pytest.approx(values), row
    assert table.loc["heat"].to_numpy().diagonal() == pytest.approx([1, 1])
    heats = [[1, 0, 0, 0], [8, 0, 0, -2]]  # the second photo's heat of the reader is flat: no correlation
    rank = pd.DataFrame(np.array(heats).T).corr("spearman").iloc[0, 1]
    assert table.loc[("heat", "reader"), "looker"] == table.loc[("heat", "looker"), "reader"] == pytest.approx(rank)


def test_heat_maps_are_compared_only_on_the_same_photos_and_superpixels():
    own = made("rggg", [1, 2, 3, 4])
    cut_otherwise = made("rggg", [1, 2, 3, 4], image=own.image, segments=own.segments[:, ::-1].copy())
    others = {"same": made("rggg", [4, 3, 2, 1]), "painted": made("rggb", [1, 2, 3, 4]), "cut": cut_otherwise}
    table = compare({name: explain_class([e]) for name, e in ({"one": own} | others).items()})
    assert table.loc[("heat", "one")].tolist() == pytest.approx([1, -1, math.nan, math.nan], nan_ok=True)
    assert "image" not in table.index.get_level_values("kind"), "without an encoder"
