"""Factors one at a time: other masks, light that goes with the class, heads on features, what is read off them."""

import matplotlib

matplotlib.use("agg")
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from retailkit import models, training
from retailkit.backgrounds import Scenes, apply_variant, degrade, factor_study
from retailkit.config import UsageError, UserError
from retailkit.data.table import COLUMNS, ProductData
from retailkit.metrics import Evaluation
from retailkit.training import EncodedDataset

SIDE = 32


@pytest.fixture
def data(tmp_path):
    """Twelve pictures of noise a split with a coloured rectangle, red for class a and blue for class b."""
    rng, rows = np.random.default_rng(0), []
    for number in range(24):
        label, split = "ab"[number % 2], "train" if number < 12 else "test"
        pixels = rng.integers(60, 180, (SIDE, SIDE, 3), dtype=np.uint8)
        mask = np.zeros((SIDE, SIDE), bool)
        mask[6:24, 9 : 19 + number % 5] = True
        pixels[mask] = (220, 20, 20) if label == "a" else (20, 20, 220)
        picture, outline = tmp_path / f"{number}.png", tmp_path / f"{number}_mask.png"
        Image.fromarray(pixels).save(picture)
        Image.fromarray(mask).save(outline)
        rows.append({"image": str(picture), "label": label, "split": split, "mask": str(outline)})
    return ProductData("rectangles", pd.DataFrame(rows).reindex(columns=COLUMNS).fillna(""), ["a", "b"], {}, "stretch")


@pytest.fixture
def scenes(data):
    return Scenes(data.split("train", SIDE), seed=3)


def test_recut_changes_masks_as_new_scenes_would_and_leaves_the_old_alone(data, scenes):
    before, plain = scenes.masks.clone(), scenes.variant("only_fg").appearance
    worse, read_again = (
        scenes.with_recut("noise", 0.05),
        Scenes(data.split("train", SIDE), 3, recut=("noise", 0.05)),
    )
    assert torch.equal(worse.masks, read_again.masks) and worse.rows.tolist() == read_again.rows.tolist()
    assert worse.recut == read_again.recut and torch.equal(scenes.masks, before)
    ours, theirs = (s.variant("only_fg") for s in (worse, read_again))
    assert ours.appearance == theirs.appearance != plain  # cached features are shared, and not with the true masks'
    ours, theirs = (split[2].image for split in (ours, theirs))
    assert torch.equal(ours, theirs)
    with pytest.raises(UserError, match="use a smaller amount"):
        scenes.with_recut("erosion", 0.9)


def test_recut_leaves_out_masks_that_vanish(scenes):
    narrow = scenes.with_recut("erosion", 5.2 / SIDE)
    assert 0 < len(narrow) < len(scenes) and narrow.left_out == len(scenes) - len(narrow)
    wanted = degrade(scenes.masks, "erosion", 5.2 / SIDE).flatten(1).any(1)
    assert narrow.rows.tolist() == scenes.rows[wanted.numpy()].tolist()
    assert narrow.labels.tolist() == scenes.labels[wanted].tolist()


def test_cutouts_are_black_behind_the_product_whatever_its_size(scenes):
    alone = factor_study.Cutouts(scenes)
    assert torch.equal(alone.variant("original")[1].image, scenes.variant("only_fg")[1].image)
    small = alone.variant("object_size", scale=0.5)[1].image
    on_ground = scenes.variant("object_size", scale=0.5)[1].image
    shown = small.sum(0) > 0
    assert 0.15 < shown.sum() / scenes.masks[1].sum() < 0.45
    core = small.amax(0) > 0.85  # the edges are mixed
    assert torch.allclose(small[:, core], on_ground[:, core], atol=0.02)
    assert alone.variant("original").appearance != scenes.variant("original").appearance
    assert torch.equal(alone.at(16).variant("original")[0].image, scenes.at(16).variant("only_fg")[0].image)


def test_cutouts_with_worse_masks_are_told_from_scenes_with_them(scenes):
    worse, worse_cutouts = (s.with_recut("dilation", 0.1) for s in (scenes, factor_study.Cutouts(scenes)))
    assert torch.equal(worse.masks, worse_cutouts.masks)
    assert not torch.equal(worse.variant("only_fg")[0].image, worse_cutouts.variant("only_fg")[0].image)
    assert worse.variant("only_fg").appearance != worse_cutouts.variant("only_fg").appearance
    assert worse_cutouts.at(16).recut == ("dilation", 0.1)


@pytest.mark.parametrize("name", factor_study.LIGHT)
def test_light_is_that_of_the_own_class_of_another_or_of_any(scenes, name):
    own, other, anyone = (factor_study.lit(scenes, name, how, seed=1) for how in ("own", "other", "any"))
    assert np.array_equal(own.dealt, scenes.labels)
    assert (other.dealt != scenes.labels.numpy()).all()
    assert 0 < (anyone.dealt == scenes.labels.numpy()).mean() < 1
    options = factor_study.LIGHT[name](int(scenes.labels[3]), 2)
    wanted = apply_variant(scenes.images[3:4].float() / 255, scenes.masks[3:4], name, **options)[0]
    assert torch.allclose(own[3].image, wanted, atol=1 / 255)
    assert own.appearance != other.appearance and len(own) == len(scenes)
    assert own.with_options(size=16)[0].image.shape == (3, 16, 16)
    with pytest.raises(UsageError, match="own"):
        factor_study.lit(scenes, name, "owm")


def test_a_study_learns_what_is_easy_and_compares_the_same_pictures(data, scenes, monkeypatch):
    monkeypatch.setattr(factor_study.models, "build", _without_weights)
    test = Scenes(data.split("test", SIDE), seed=3)
    study = factor_study.Study(scenes, test, "shufflenet_v2_x1_0", seeds=(0, 1), epochs=20)
    coloured = study.learn("only_fg")
    assert len(coloured) == 2 and all(e.top1 > 0.8 for e in coloured)
    assert coloured[0].indices.tolist() == test.rows.tolist()
    curve = study.curve("only_fg")
    assert list(curve.columns) == ["epoch", "loss", "accuracy"] and len(curve) == 20
    assert curve["accuracy"].iloc[-1] == pytest.approx(coloured[0].top1)  # the last epoch is what counts
    heads = study.fit(scenes.variant("only_fg"))
    whole = training.evaluate(study.whole(heads[0]), test.variant("only_fg"))
    assert np.allclose(whole.probs, study.judge(heads, test.variant("only_fg"))[0].probs, atol=1e-2)
    assert study.recut("noise", 0.03).train.recut == ("noise", 0.03)
    assert isinstance(study.cut_out().test, factor_study.Cutouts)


_build = models.build


def _without_weights(*args, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return _build(*args, **{**options, "weights": None})


def test_a_network_from_scratch_is_trained_once(scenes, monkeypatch):
    first, history = factor_study.from_scratch(scenes.variant("only_fg"), "shufflenet_v2_x1_0", epochs=1)
    monkeypatch.setattr(factor_study.training, "fit", None)
    again, same = factor_study.from_scratch(scenes.variant("only_fg"), "shufflenet_v2_x1_0", epochs=1)
    assert same.epochs["loss"].tolist() == pytest.approx(history.epochs["loss"].tolist())
    images = torch.rand(2, 3, SIDE, SIDE)
    with torch.inference_mode():
        assert torch.allclose(first.eval()(images), again(images), atol=1e-5)


def test_spread_is_what_a_loop_finds():
    rng = np.random.default_rng(0)
    values, labels = rng.normal(size=(9, 4)), np.array([0, 0, 0, 1, 1, 1, 2, 2, 3])
    scaled = values / values.std(0, ddof=1)
    wanted = []
    for i in range(9):
        same = [j for j in range(9) if j != i and labels[j] == labels[i]]
        rest = [j for j in range(9) if j != i]
        near = np.linalg.norm(scaled[i] - scaled[same].mean(0)) if same else np.nan
        wanted.append(near / np.linalg.norm(scaled[i] - scaled[rest].mean(0)))
    features = models.Features(torch.tensor(values), torch.ones(9, dtype=torch.bool))
    found = factor_study.spread(EncodedDataset(features, None, torch.tensor(labels)))
    assert np.allclose(found, wanted, equal_nan=True) and np.isnan(found[-1])


def test_a_difference_beyond_a_control_is_that_of_differences():
    rng = np.random.default_rng(1)

    def guess():
        return Evaluation(rng.dirichlet(np.ones(3), 40), rng.integers(0, 3, 40), list("xyz"), np.arange(40))

    four = [[guess(), guess()] for _ in range(4)]
    value, low, high = factor_study.gain_beyond(*four)
    a, b, c, d = (np.mean([e.top1 for e in runs]) for runs in four)
    assert value == pytest.approx((a - b) - (c - d)) and low < value < high
    assert factor_study.gain_beyond(four[0], four[1], four[0], four[1]) == (0, 0, 0)


def test_between_is_negative_outside():
    assert factor_study.between([0.6, 0.8], 0.5, 0.9) == pytest.approx(0.1)
    assert factor_study.between([0.7, 0.95], 0.5, 0.9) == pytest.approx(-0.05)
    assert factor_study.between([0.7], 0.9, 0.5) < 0  # the bounds are the other way round


def test_published_changes_are_printed_as_they_are_given():
    assert factor_study.published("generic_paste") == "-0.25 to -0.20"
    assert factor_study.published("only_fg") == "+0.03" and factor_study.published(None) == ""
    with pytest.raises(UsageError, match="generic_paste"):
        factor_study.published("generic_past")
