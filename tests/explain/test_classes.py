"""Class explanations of made-up photos: the encoder sees colours, the model is linear, so the answer is known."""

import math
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

CLASSES = ["lean", "extra lean", "medium"]
COLOURS = {"r": (1.0, 0.0, 0.0), "g": (0.0, 1.0, 0.0), "b": (0.0, 0.0, 1.0), "w": (1.0, 1.0, 1.0), "k": (0.0,) * 3}
SIDE = 16  # of a superpixel in pixels


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
    """A masked model: the class's logit is the sum of the weights of what is kept."""

    def __init__(self, scene, texts, image_weights, text_weights, label=0, classes=CLASSES, other=1.0):
        self.image, self.segments = scene
        self.tokens, self.classes = texts, classes
        self.n_segments, self.n_tokens = len(image_weights), len(text_weights)
        self.weights, self.label, self.other = (np.array(image_weights), np.array(text_weights)), label, other
        self.calls = 0

    def logits(self, image_keep, text_keep):
        self.calls += 1
        assert image_keep.shape[1] == self.n_segments and text_keep.shape[1] == self.n_tokens
        logits = np.full((len(image_keep), len(self.classes)), self.other, np.float32)
        logits[:, self.label] = image_keep @ self.weights[0] + text_keep @ self.weights[1]
        return logits


def painted(letters, width=4):
    """An image of square superpixels of these colours, row by row, and their labels."""
    segments = np.arange(len(letters)).reshape(-1, width).repeat(SIDE, 0).repeat(SIDE, 1)
    colours = torch.tensor([COLOURS[letter] for letter in letters])
    return colours[torch.from_numpy(segments)].permute(2, 0, 1), segments


def made(letters, image_weights, texts=(), text_weights=(), label=0, nothing="", scene=None, **more):
    """An explanation."""
    scene = scene or painted(letters)
    units = tuple(SimpleNamespace(text=text, words=()) for text in texts)
    image, text = (np.array([weights], float).reshape(1, -1) for weights in (image_weights, text_weights))
    total = np.abs(image).sum() + np.abs(text).sum()
    found = SimpleNamespace(
        classes=CLASSES,
        explained=(label,),
        contrasts=(-1,),
        image=scene[0],
        segments=scene[1],
        tokens=units,
        image_weights=image,
        text_weights=text,
        share=np.array([np.abs(text).sum() / total if total else np.nan]),
        nothing=nothing,
        masked_model=Linear(scene, units, image_weights, text_weights, label),
    )
    found.heat = lambda row=0: found.image_weights[row][found.segments]
    found.row = lambda index: row_of(found, index)
    found.__dict__.update(more)
    return found


def row_of(found, index):
    if index not in found.explained:
        raise UsageError(f"{found.classes[index]!r} was not explained; pass classes=[...]")
    return found.explained.index(index)


def photos():
    """Red speaks for the class in all, blue against it in one, green and white do little; words of known weights."""
    return [
        made("rggggggg", [4, 0, 0, 0, 0, 0, 0, 0.5], ["LEAN", "BEEF"], [2, 0.1]),
        made("ggggrrgg", [0, 0, 0.5, 0, 2, 2, 0, 0], ["LE4N", "BEEF", "lean"], [1.5, -0.1, 0.5]),
        made("gggggggg", [1] * 8, nothing="there is only one part to hide"),
        made("gbgggggr", [0, -3, 0, 0, 0, 0, 0, 3], ["BEEF"], [0.2]),
    ]


def explain_class(explanations, label=0, encoder=None, **options):
    return classes.explain_class(explanations, label, encoder, **options)


def everything():
    encoder = Colours()
    return explain_class(photos(), encoder=encoder), encoder


# -- What a class is recognised by


def test_clusters_are_the_colours_and_their_weights_are_normlime():
    found, encoder = everything()
    assert (found.label, found.name, found.photos, found.skipped) == (0, "lean", (0, 1, 3), 1)
    assert encoder.passes == 3 and found.image_note == ""
    table = found.image_features
    assert list(table["cluster"]) == [0, 1, 2]
    totals = np.array([6.6, 6.6, 6.2])
    sums = {"r": [4, 4, 3], "b": [0, 0, -3], "g": [0.5, 0.5, 0]}
    weights = {c: np.sign(sum(w)) * np.mean(np.square(w) / totals) for c, w in sums.items()}
    assert table["weight"].tolist() == pytest.approx([weights["r"], weights["b"], weights["g"]])
    assert table["share"].tolist() == pytest.approx([11 / 15, 3 / 15, 1 / 15])
    assert table["support"].tolist() == [3, 1, 3]
    assert table["area"].tolist() == pytest.approx([4 / 24, 1 / 8, 19 / 24])
    assert sorted(table["medoids"][0]) == [(0, 0), (1, 4), (1, 5), (3, 7)] and table["medoids"][1] == [(3, 1)]
    assert len(table["medoids"][2]) == classes.MEDOIDS


def test_phrases_join_their_spellings():
    found, _ = everything()
    table = found.text_features
    assert table["canonical"].tolist() == ["LEAN", "BEEF"]
    weights = [(2**2 / 6.6 + 2**2 / 6.6) / 3, (0.01 / 6.6 + 0.01 / 6.6 + 0.04 / 6.2) / 3]
    assert table["weight"].tolist() == pytest.approx(weights)
    assert table["share"].tolist() == pytest.approx([4 / 4.4, 0.4 / 4.4])
    assert table["samples"].tolist() == [2, 3]
    assert table["variants"].tolist() == [{"LEAN": 2, "LE4N": 1}, {"BEEF": 3}]
    assert found.text_share == pytest.approx(np.mean([2.1 / 6.6, 2.1 / 6.6, 0.2 / 6.2]))


def test_every_part_has_its_feature():
    found, _ = everything()
    letters = ["rggggggg", "ggggrrgg", "gbgggggr"]
    members = [assign(found, own) for own in found.explanations]
    for own, colours in zip(members, letters, strict=True):
        assert own.segments.tolist() == [{"r": 0, "b": 1, "g": 2}[c] for c in colours]
    assert [own.tokens.tolist() for own in members] == [[0, 1], [0, 1, 0], [1]]


def test_a_feature_loses_nothing_by_being_cut_into_several_superpixels():
    whole = explain_class([made("rg", [4, 1], scene=painted("rg", 2))], encoder=Colours())
    cut = explain_class([made("rrg", [2, 2, 1], scene=painted("rrg", 3))], encoder=Colours())
    assert whole.image_features["weight"].tolist() == pytest.approx(cut.image_features["weight"].tolist())
    assert whole.image_features["weight"].tolist() == pytest.approx([16 / 5, 1 / 5])


def test_superpixels_are_averaged_by_the_area_they_have_in_each_cell():
    rng = np.random.default_rng(0)
    segments = rng.integers(0, 5, (24, 16))
    image = torch.rand(3, 24, 16, generator=torch.Generator().manual_seed(0))
    item = SimpleNamespace(image=image, segments=segments)
    found = classes._describe(item, 5, Colours())
    cells = avg_pool2d(image[None], 4)[0].repeat_interleave(4, 1).repeat_interleave(4, 2).numpy()
    for segment in range(5):
        assert found[segment] == pytest.approx(cells[:, segments == segment].mean(1), abs=1e-6)
    assert classes._describe(item, 3, Colours()) == pytest.approx(found[:3])  # the others are boxes of linked words


def test_without_an_encoder_there_are_no_image_features_and_it_says_so():
    found, seen = explain_class(photos()), everything()[0]
    assert found.image_features.empty and found.image_note == classes.NO_ENCODER
    assert list(found.image_features.columns) == list(seen.image_features.columns)
    assert found.text_features.equals(seen.text_features)
    assert all((assign(found, own).segments == -1).all() for own in found.explanations)


def test_a_model_that_only_reads_has_only_phrases():
    blind = [made("", [], [text], [w], scene=(None, None)) for text, w in (("LEAN", 2.0), ("BEEF", -4.0))]
    found = explain_class(blind, encoder=Colours())
    assert found.image_note == classes.NO_IMAGES and found.image_features.empty
    assert found.text_features["weight"].tolist() == [-2, 1] and found.text_share == 1
    checked = deletion_check(found, [photo.masked_model for photo in blind])
    assert checked["n"].tolist() == [0, 0], "nothing else could be hidden"


def test_contrast_classes_are_counted():
    """Margins against different classes answer different questions; who adds them up must be able to say so."""
    some = photos()
    for explanation, contrast in zip(some, (1, 2, 1, 1), strict=True):
        explanation.contrasts = (contrast,)
    assert explain_class(some).contrasts == {"extra lean": 2, "medium": 1}, "the third photo is skipped"
    assert explain_class(photos()).contrasts == {}


def test_the_class_is_the_one_that_is_asked_for():
    both = made("rggg", [1, 0, 0, 0])
    both.explained, both.image_weights = (1, 2), np.array([[1.0, 0, 0, 0], [0, 0, 0, 5.0]])
    both.text_weights, both.share, both.contrasts = np.zeros((2, 0)), np.zeros(2), (2, 1)
    assert explain_class([both], 1, encoder=Colours()).name == "extra lean"
    found = explain_class([both], 2, encoder=Colours())
    assert found.label == 2 and found.image_features["weight"].tolist() == pytest.approx([5, 0])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: explain_class([]), UserError, "none of 0 photos .*give at least one"),
        (lambda: explain_class(photos()[2:3]), UserError, "none of 1 photos has anything .* only one part"),
        (lambda: explain_class(photos(), 2), UsageError, r"'medium' was not explained.*classes="),
        (lambda: explain_class(photos(), encoder=Colours().train()), UsageError, r"call encoder.eval\(\)"),
        (lambda: explain_class([*photos(), made("rggg", [1, 0, 0, 0], classes=["a"])]), UsageError, "photo 4 .*other"),
    ],
)  # fmt: skip
def test_a_wrong_call_says_what_to_change(call, error, message):
    with pytest.raises(error, match=message):
        call()


# -- New photos


def test_parts_of_a_new_photo_find_their_feature_or_none(monkeypatch):
    found, _ = everything()
    new = made("grbw", [0] * 4, ["LEAN.", "EXTRA LEAN", "BEEF", " "], [0] * 4)
    own = assign(found, new)
    assert own.segments.tolist()[:3] == [2, 0, 1] and own.tokens.tolist() == [0, -1, 1, -1]
    monkeypatch.setattr(classes, "THRESHOLD", 0.05)
    assert assign(found, new).segments.tolist() == [2, 0, 1, -1]
    monkeypatch.undo()
    masked = assign(found, new.masked_model)
    assert np.array_equal(masked.segments, own.segments) and np.array_equal(masked.tokens, own.tokens)


# -- Deletion


def held_out(other):
    """Photos of 15 superpixels of equal size and 4 words; red weighs 3 in all, LEAN 2, all else nothing."""
    found = []
    for n in range(8):
        letters = ["g"] * 16
        letters[n], letters[n + 8] = "r", "b"
        weights = [{"r": 3.0, "b": 0.0, "g": 0.0}[c] for c in letters]
        texts = ["LEAN" if n % 2 else "LE4N", "BEEF", "FRESH", "CUT"]
        found.append(made("".join(letters), weights, texts, [2.0, 0, 0, 0]))
        found[-1].masked_model.other = other
    return found


def test_hiding_what_matters_costs_what_it_weighs_and_chance_costs_nothing():
    explanations = held_out(2.5)
    found = explain_class(explanations[:4], encoder=Colours(), top=2)
    masked_models = [e.masked_model for e in explanations[4:]]
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
    for name, value in expected.items():
        assert red[name] == pytest.approx(value), name
    assert lean["margin_drop"] == 2 and lean["accuracy_drop"] == 0 and lean["margin_random_drop"] == 0
    others = table.iloc[[1, 3]]
    assert (others["margin_drop"] == 0).all()


def test_words_of_other_classes_are_no_misreadings():
    some = [made("", [], [text], [1.0], scene=(None, None)) for text in ("SMOKED", "SMOKED", "SMOKEY")]
    new = made("", [], ["SMOKEY"], [0], scene=(None, None))
    joined, apart = explain_class(some), explain_class(some, vocabulary=["SMOKEY", "BACON"])
    assert (len(joined.text_features), len(apart.text_features)) == (1, 2)
    assert [assign(found, new).tokens.tolist() for found in (joined, apart)] == [[0], [1]]
    without = explain_class(some[:2], vocabulary=["SMOKEY"])
    assert assign(without, new).tokens.tolist() == [-1]


def test_photos_without_the_feature_and_single_photos_are_told():
    explanations = held_out(2.5)
    found = explain_class(explanations[:4], encoder=Colours(), top=1)
    bare = made("ggggbbgg", [0] * 8, ["BEEF", "FRESH"], [0, 0])
    none = deletion_check(found, [bare.masked_model])
    assert none["n"].tolist() == [0, 0] and none["margin_drop"].isna().all()
    one = deletion_check(found, [bare.masked_model, explanations[5].masked_model])
    assert one["n"].tolist() == [1, 1] and one["margin_drop"].tolist() == [3, 2]


def test_the_same_seed_draws_the_same_sets():
    explanations = held_out(2.5)
    rng = np.random.default_rng(0)
    for e in explanations:
        e.masked_model.weights = (rng.normal(size=16), rng.normal(size=4))
    found, masked_models = explain_class(explanations, encoder=Colours()), [e.masked_model for e in explanations]
    one, again, other = (deletion_check(found, masked_models, seed=seed) for seed in (3, 3, 4))
    pd.testing.assert_frame_equal(one, again)
    assert not one["margin_random_drop"].equals(other["margin_random_drop"])


# -- Models


def test_models_are_compared_on_common_axes():
    reader = [made("rggg", [1, 0, 0, 0], ["LEAN", "BEEF"], [6, -3]), made("gggr", [0, 0, 0, 0], ["LE4N"], [10])]
    looker = [made("rggg", [8, 0, 0, -2], ["LEAN", "EXTRA"], [0, 0]), made("gggr", [0, 0, 1, 9], ["LE4N"], [0])]
    a, b = (explain_class(some, encoder=Colours(), top=2) for some in (reader, looker))
    table = compare({"reader": a, "looker": b})
    assert list(table.columns) == ["reader", "looker"]
    assert table.loc[("share", "text")].tolist() == pytest.approx([(0.9 + 1) / 2, 0])
    assert table.loc[("text", "LEAN")].tolist() == pytest.approx([16 / 20, 0])
    assert table.loc[("text", "BEEF")].tolist() == pytest.approx([-3 / 20, 0])
    assert table.loc["text"].index[0] == "LEAN"
    assert table.loc[("image", 0)].tolist() == pytest.approx([1 / 20, 17 / 20])
    assert table.loc["heat"].to_numpy().diagonal() == pytest.approx([1, 1])
    heats = [[1, 0, 0, 0], [8, 0, 0, -2]]  # the second photo's heat of the reader is flat: no correlation
    rank = pd.DataFrame(np.array(heats).T).corr("spearman").iloc[0, 1]
    assert table.loc[("heat", "reader"), "looker"] == table.loc[("heat", "looker"), "reader"] == pytest.approx(rank)


def test_heat_maps_are_compared_only_on_the_same_photos_and_superpixels():
    one = explain_class([made("rggg", [1, 2, 3, 4])])
    same = explain_class([made("rggg", [4, 3, 2, 1])])
    painted_otherwise = explain_class([made("rggb", [1, 2, 3, 4])])
    cut_otherwise = explain_class([made("rggg", [1, 2, 3, 4], scene=(one.explanations[0].image,
                                   one.explanations[0].segments[:, ::-1].copy()))])  # fmt: skip
    table = compare({"one": one, "same": same, "painted": painted_otherwise, "cut": cut_otherwise})
    assert table.loc[("heat", "one")].tolist() == pytest.approx([1, -1, math.nan, math.nan], nan_ok=True)
    assert "image" not in table.index.get_level_values("kind"), "without an encoder"


def test_models_of_different_classes_are_not_compared():
    other = explain_class([made("rggg", [1, 0, 0, 0], label=1)], 1)
    with pytest.raises(UsageError, match="explanations are of extra lean and lean; compare models on one class"):
        compare({"a": explain_class(photos()), "b": other})
