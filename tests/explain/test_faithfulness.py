"""Deletion, insertion and their gain on games that are solved by hand."""

import math
from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest

from retailkit.config import UsageError
from retailkit.explain.metrics import MODALITIES, curves, faithfulness


class Additive:
    """Logits: what the kept features are worth, plus 3; and 1. Counts how often it is asked."""

    def __init__(self, image=(), text=(), areas=None, factor=1.0):
        self.image, self.text, self.factor = np.array(image, dtype=float), np.array(text, dtype=float), factor
        self.n_segments, self.n_tokens = len(self.image), len(self.text)
        self.areas = np.full(self.n_segments, 1 / max(self.n_segments, 1)) if areas is None else np.array(areas)
        self.asked = []

    def logits(self, image_keep, text_keep):
        self.asked.append(np.hstack([image_keep, text_keep]))
        worth = self.factor * (3 + image_keep @ self.image + text_keep @ self.text)
        return np.stack([worth, np.ones(len(worth))], axis=1).astype(np.float32)

    def with_baseline(self, baseline):
        self.filled = Additive(self.image, self.text, self.areas, {"mean": 1.0, "blur": 0.5}[baseline])
        return self.filled


def first(logits):
    return logits[:, 0]


def plain(game, weights, modality, order):
    """Deletion and insertion, a feature at a time, without a game that is asked at once."""
    worth = np.concatenate([game.image, game.text])
    played = {"image": range(game.n_segments), "text": range(game.n_segments, len(worth)), "joint": range(len(worth))}
    size = np.concatenate([np.ones(game.n_segments), np.ones(game.n_tokens)])
    if game.n_segments:
        size[: game.n_segments] = game.areas * game.n_segments
    total, areas = sum(size[i] for i in played[modality]), []
    for hide in (True, False):
        kept = set(range(len(worth))) - (set() if hide else set(played[modality]))
        area, score = 0.0, 3 + sum(worth[i] for i in kept)
        for feature in order:
            kept = kept ^ {feature}
            after = 3 + sum(worth[i] for i in kept)
            area, score = area + size[feature] / total * (score + after) / 2, after
        areas.append(area)
    return areas


@pytest.mark.parametrize("modality", MODALITIES)
def test_the_areas_are_those_of_a_plain_loop(modality):
    rng = np.random.default_rng(0)
    game = Additive(rng.normal(size=5), rng.normal(size=3), areas=[0.1, 0.3, 0.2, 0.15, 0.25])
    weights = rng.normal(size=8)
    found = curves(game, weights[:5], weights[5:], first, modality)
    played = {"image": np.arange(5), "text": np.arange(5, 8), "joint": np.arange(8)}[modality]
    order = played[np.argsort(-weights[played])]
    assert [found.deletion_auc[0], found.insertion_auc[0]] == pytest.approx(plain(game, weights, modality, order))
    # hiding from the least important one on, the other way round, is the same area
    assert plain(game, weights, modality, order[::-1])[0] == pytest.approx(found.insertion_auc[0])
    assert found.srg[0] == pytest.approx(found.insertion_auc[0] - found.deletion_auc[0])
    assert found.features == len(played) and (found.share[:, 0] == 0).all() and found.share[:, -1] == pytest.approx(1)
    rows, others = game.asked[0], np.setdiff1d(np.arange(8), played)
    assert rows[:, others].all() and not rows[:, played].all()


def test_the_gain_of_the_true_weights_has_a_closed_form():
    worth = np.array([4.0, -1.0, 2.5, 0.5, -3.0, 1.0])
    found = curves(Additive(worth[:4], worth[4:]), worth[:4], worth[4:], first)
    ranked, rank, features = np.sort(worth)[::-1], np.arange(1, 7), 6
    assert found.deletion_auc[0] == pytest.approx(3 + ranked @ (2 * rank - 1) / (2 * features))
    assert found.srg[0] == pytest.approx(ranked @ (features - 2 * rank + 1) / features)
    assert (found.full, found.empty) == (pytest.approx(7), pytest.approx(3))
    assert found.normalised().srg[0] == pytest.approx(found.srg[0] / 4)
    assert found.normalised().deletion[:, [0, -1]] == pytest.approx(np.tile([1.0, 0.0], (6, 1)))


def test_the_true_order_beats_every_other_one():
    worth = np.array([2.0, -1.0, 0.7, 0.1])
    gains = {}
    for ranks in permutations(range(4)):  # two superpixels and two words: all take a quarter of the axis
        weights = np.array(ranks, dtype=float)
        gains[ranks] = curves(Additive(worth[:2], worth[2:]), weights[:2], weights[2:], first).srg[0]
    best = max(gains, key=gains.get)
    assert best == tuple(worth.argsort().argsort()) and sorted(gains.values())[-2] < gains[best]
    assert gains[tuple((-worth).argsort().argsort())] == pytest.approx(-gains[best])
    assert np.mean(list(gains.values())) == pytest.approx(0)


def test_words_weigh_no_more_than_superpixels():
    """With half of the axis for two words among six features, hiding them first would not be best."""
    worth = np.array([0.9, 0.8, 0.1, -0.2, 1.0, 0.3])
    true = curves(Additive(worth[:4], worth[4:]), worth[:4], worth[4:], first).srg[0]
    for late in (0.85, 0.5, -1.0):
        assert curves(Additive(worth[:4], worth[4:]), worth[:4], [late, 0.3], first).srg[0] < true


def test_text_that_the_model_ignores_gains_nothing():
    game = Additive([1.0, 2.0], [0.0, 0.0, 0.0])
    found = curves(game, [1.0, 2.0], [5.0, -1.0, 2.0], first, "text")
    assert found.srg == pytest.approx(np.zeros(6)) and found.deletion_auc == pytest.approx(np.full(6, 6.0))
    assert np.isnan(found.normalised().srg).all()  # nothing falls when all words are gone


def test_normalising_knows_nothing_where_the_score_rises():
    assert np.isnan(curves(Additive([-1.0, -2.0]), [-1.0, -2.0], [], first).normalised().deletion).all()


def test_random_orders_score_chance():
    worth = np.random.default_rng(3).normal(size=12)
    found = curves(Additive(worth[:8], worth[8:]), worth[:8], worth[8:], first, controls=600)
    middle, spread = (found.full + found.empty) / 2, found.srg[1:].std() / math.sqrt(600)
    assert found.deletion_auc[1:].mean() == pytest.approx(middle, abs=2 * spread)
    assert found.insertion_auc[1:].mean() == pytest.approx(middle, abs=2 * spread)
    assert found.srg[1:].mean() == pytest.approx(0, abs=4 * spread)
    # an order is drawn without replacement: variance of sum(w_i (P+1-2 rank_i)) / P
    slopes = (13 - 2 * np.arange(1, 13)) / 12
    assert found.srg[1:].std() == pytest.approx(12 * worth.std() * slopes.std() / math.sqrt(11), rel=0.15)
    assert found.srg[0] > found.srg[1:].max()


def test_weights_that_say_nothing_are_ordered_by_chance():
    worth = np.arange(10.0)
    gains = [curves(Additive(worth), np.zeros(10), [], first, seed=seed).srg[0] for seed in range(60)]
    assert abs(np.mean(gains)) < 3 * np.std(gains) / math.sqrt(60) and np.std(gains) > 0
    again = [curves(Additive(worth), np.zeros(10), [], first, seed=4).srg for _ in range(2)]
    assert np.array_equal(*again) and again[0][0] == gains[4]


def test_all_masks_are_asked_for_at_once():
    game = Additive(np.arange(5.0), np.arange(3.0))
    curves(game, np.arange(5.0), np.arange(3.0), first, controls=7)
    assert len(game.asked) == 1 and game.asked[0].shape == (2 * 8 * 9, 8)


def test_many_features_go_several_at_a_time():
    worth = np.random.default_rng(0).normal(size=130)
    game = Additive(worth[:100], worth[100:])
    found = curves(game, worth[:100], worth[100:], first, steps=64)
    assert found.share.shape == (6, 65) and found.features == 130
    gone = (~game.asked[0]).sum(1).reshape(2, 6, 65)
    assert set(np.diff(gone[0], axis=1).ravel()) == {2, 3} and (gone[0] + gone[1] == 130).all()
    ranked, rank = np.sort(worth)[::-1], np.arange(1, 131)
    assert found.srg[0] == pytest.approx(ranked @ (131 - 2 * rank) / 130, rel=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modality": "words"}, "unknown modality 'words'"),
        ({"image_weights": [1.0]}, r"weights are \(1,\) and \(0,\); this masked model needs \(2,\) and \(0,\)"),
        ({"modality": "text"}, "0 weights for 'text'"),
        ({"image_weights": [1.0, np.nan]}, "2 weights for 'joint'; give at least one, and only finite"),
        ({"controls": 4}, "controls=4; use at least 1 and 5"),
        ({"steps": 0}, "steps=0"),
    ],
)
def test_a_wrong_call_says_what_to_change(options, message):
    with pytest.raises(UsageError, match=message):
        curves(**{"game": Additive([1, 2]), "image_weights": [1, 2], "text_weights": [], "target": first} | options)


# -- The table


def explanation(game, changes=(), target="margin"):
    weights = {"image_weights": np.stack([game.image, -game.image]), "text_weights": np.stack([game.text, -game.text])}
    return SimpleNamespace(
        **{"masked_model": game, "explained": (0, 1), "contrasts": (1, -1), "options": SimpleNamespace(target=target)}
        | weights
        | dict(changes)
    )


def test_the_table_has_a_row_for_each_modality_and_baseline():
    game = Additive([4.0, -1.0, 2.0], [1.0, 0.5])
    table = faithfulness(explanation(game), seed=5).set_index(["modality", "baseline"])
    assert list(table.index) == [(m, b) for b in ("mean", "blur") for m in MODALITIES]
    assert list(table["features"]) == [3, 2, 5] * 2
    for (modality, baseline), row in table.iterrows():
        found = curves(
            game.with_baseline(baseline), game.image, game.text, lambda v: v[:, 0] - v[:, 1], modality, seed=5
        )
        assert row["full"] == found.full == {"mean": 8.5, "blur": 3.75}[baseline]
        assert row["empty"] == found.empty
        areas = {"deletion": found.deletion_auc, "insertion": found.insertion_auc, "srg": found.srg}
        for name, area in (areas | {"normalised_srg": found.normalised().srg}).items():
            assert row[name] == pytest.approx(area[0])
            assert row[f"random_{name}"] == pytest.approx(np.mean(area[1:]))
            assert row[f"random_{name}_sd"] == pytest.approx(np.std(area[1:], ddof=1))
    for modality in MODALITIES:  # the fuzzy picture says half as much
        assert table.loc[(modality, "blur"), "srg"] == pytest.approx(table.loc[(modality, "mean"), "srg"] / 2)


@pytest.mark.parametrize(
    ("target", "row", "score"),
    [
        ("margin", 0, lambda worth: worth - 1),
        ("margin", 1, lambda worth: 1),  # without a rival
        ("prob", 0, lambda worth: 1 / (1 + math.exp(1 - worth))),
        ("prob", 1, lambda worth: 1 / (1 + math.exp(worth - 1))),
        ("log_prob", 0, lambda worth: -math.log1p(math.exp(1 - worth))),
        ("sqrt_prob", 0, lambda worth: (1 + math.exp(1 - worth)) ** -0.5),
    ],
)
def test_the_score_is_what_is_explained(target, row, score):
    game = Additive([4.0, -1.0, 2.0], [-5.0, 0.5])
    found = faithfulness(explanation(game, target=target), row, baselines=["mean"], modalities=["joint"]).iloc[0]
    assert (found["full"], found["empty"]) == pytest.approx((score(3.5), score(3)))


def test_a_row_is_judged_by_its_own_weights():
    worth = np.array([4.0, -1.0, 2.0])
    turned = explanation(Additive(worth), {"contrasts": (1, 0)})  # the second row's weights are the first's, negated
    gains = [faithfulness(turned, row, baselines=["mean"], modalities=["image"])["srg"].item() for row in (0, 1)]
    assert gains[0] == pytest.approx(gains[1]) and gains[0] > 3


def test_a_modality_without_features_has_no_score():
    table = faithfulness(explanation(Additive([4.0, -1.0])), baselines=["mean"]).set_index("modality")
    assert table.loc["text", "features"] == 0 and table.loc["text"].iloc[2:].isna().all()
    assert table.loc["image", "srg"] == table.loc["joint", "srg"] == 2.5
    nothing = faithfulness(explanation(Additive()), baselines=["mean"])
    assert list(nothing) == list(table.reset_index()) and nothing["srg"].isna().all()


def test_a_baseline_is_asked_once_for_each_modality():
    game = Additive([4.0, -1.0, 2.0], [1.0, 0.5])
    faithfulness(explanation(game), baselines=["mean"])
    assert len(game.filled.asked) == 3 and not game.asked


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        ({}, {"masked_model": None}, "no model with it, as after loading"),
        ({"row": 2}, {}, "row=2 is out of range; this explanation has 2 classes"),
        ({"modalities": ["words"]}, {}, "unknown modality 'words'"),
    ],
)
def test_a_wrong_table_says_what_to_change(options, changes, message):
    with pytest.raises(UsageError, match=message):
        faithfulness(explanation(Additive([1.0, 2.0]), changes), **options)
