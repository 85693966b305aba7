"""Pointing games, deletion and insertion, stability and randomised models against plain versions and chance."""

import copy
import math
from itertools import combinations, permutations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import rankdata
from torch import nn

from retailkit import models
from retailkit.config import UsageError
from retailkit.data.table import Word
from retailkit.explain import metrics, saliency
from retailkit.models import Features

CLASSES = ["lean", "extra lean", "medium"]


def square(top, left, side, size=20):
    truth = np.zeros((1, size, size), dtype=bool)
    truth[:, top : top + side, left : left + side] = True
    return truth


# -- Pointing


def test_pointing_games_are_plain_loops():
    rng = np.random.default_rng(0)
    attr = rng.integers(-3, 4, (30, 9, 7)).astype(float)  # many ties
    truth = rng.random((30, 9, 7)) < 0.05
    truth[:2], attr[29] = False, -1
    assert truth[29].any()
    hits, base = metrics.pointing_game(attr, truth), metrics.chance(truth)
    energy = metrics.energy_pointing(torch.from_numpy(attr), torch.from_numpy(truth))
    for b in range(30):
        cells = [(attr[b, y, x], truth[b, y, x]) for y in range(9) for x in range(7)]
        positive = sum(v for v, _ in cells if v > 0)
        if not truth[b].any():
            assert np.isnan([hits[b], base[b], energy[b]]).all()
            continue
        assert hits[b] == pytest.approx(np.mean([t for v, t in cells if v == attr[b].max()]))
        assert base[b] == pytest.approx(truth[b].mean()) and (b == 29) == (not positive) == np.isnan(energy[b])
        assert b == 29 or energy[b] == pytest.approx(sum(v for v, t in cells if t and v > 0) / positive)


def test_maps_that_know_nothing_score_chance():
    rng = np.random.default_rng(0)
    truth = np.repeat(square(2, 3, 8), 2000, 0)
    values = np.repeat((truth[:1] + rng.random((1, 20, 20))).reshape(1, -1), 2000, 0)
    scattered = rng.permuted(values, axis=1).reshape(truth.shape)
    for game in (metrics.pointing_game, metrics.energy_pointing):
        assert game(scattered, truth).mean() == pytest.approx(metrics.chance(truth)[0], abs=0.03)
        assert game(np.ones((1, 20, 20)), truth[:1]) == pytest.approx(metrics.chance(truth)[:1])
        assert game(truth[:1].astype(float), truth[:1]) == [1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.pointing_game(np.ones((2, 4, 4)), np.ones((2, 4, 5))), r"\(2, 4, 4\) and the truth is"),
        (lambda: metrics.pointing_game(np.ones((4, 4)), np.ones((4, 4))), r"maps are \(4, 4\); give them as"),
        (lambda: metrics.energy_pointing(np.full((1, 2, 2), np.nan), np.ones((1, 2, 2))), "1 of 1 maps hold NaN"),
        (lambda: metrics.rank_correlation(np.ones((1, 4, 4)), np.ones((1, 2, 2))), "at one size"),
        (lambda: metrics.stability([[1, np.nan], [1, 2]]), "finite, with R of 2"),
    ],
)
def test_a_wrong_call_says_what_to_change(call, message):
    with pytest.raises(UsageError, match=message):
        call()


# -- Superpixels and words

SEGMENTS = np.array([[0, 0, 0, 1], [2, 2, 1, 1]])
MASK = np.array([[1, 1, 0, 0], [1, 0, 0, 0]], dtype=bool)  # two thirds of 0, nothing of 1, half of 2


def unit(*boxes):
    return SimpleNamespace(words=tuple(Word("a", box) for box in boxes))


def explanation(
    image=((3.0, 1.0, 2.0), (-1.0, 0.0, 0.0)), text=((0.5, -1.0, 1.5, 1.5), (0.0, 0.0, 0.0, 0.0)), **changes
):
    units = (unit((0, 0, 2, 1)), unit((4, 4, 8, 8)), unit((9, 9, 12, 12), (1, 0, 3, 1)), unit((0, 0, 0, 0)))
    content = {"segments": SEGMENTS, "tokens": units, "image_weights": np.array(image), "text_weights": np.array(text)}
    return SimpleNamespace(**{"explained": (0, 1)} | content | changes)


def test_a_token_is_discriminative_where_half_of_the_smaller_box_is_shared():
    units = explanation().tokens
    found = {
        (0, 0, 2, 1): [1, 0, 1, 0],  # the third unit's second word shares half of both
        (0, 0, 1.9, 1): [1, 0, 0, 0],  # 0.9 of 1.9
        (5, 5, 6, 6): [0, 1, 0, 0],  # a small box within a large one
        (6.1, 4, 10.1, 8): [0, 0, 0, 0],
        (0, 0, 0, 0): [0, 0, 0, 0],  # cropped away: as is the last unit
        (-5, -5, 50, 50): [1, 1, 1, 0],
    }
    for box, expected in found.items():
        assert metrics.discriminative_tokens(units, [box]).tolist() == [bool(e) for e in expected], box
    both = metrics.discriminative_tokens(units, torch.tensor([[0, 0, 1.9, 1], [5, 5, 6, 6]]))
    assert both.tolist() == [True, True, False, False]
    assert metrics.discriminative_tokens(units, []).tolist() == [False] * 4
    assert metrics.discriminative_tokens((), [(0, 0, 1, 1)]).shape == (0,)


def test_energy_of_superpixels_and_words_by_hand():
    found = metrics.energy_on(explanation(), MASK, [(0, 0, 1.9, 1)])
    inside, truth = 3 * 2 / 3 + 2 / 2, 3 / 8  # of the image
    assert found.loc["image"].tolist() == pytest.approx([inside / 6, truth, inside / 6 / truth])
    assert found.loc["text"].tolist() == pytest.approx([0.5 / 3.5, 1 / 4, 4 * 0.5 / 3.5])
    assert found.loc["joint", "share"] == pytest.approx((inside + 0.5) / 9.5)
    assert found.loc["joint", "chance"] == pytest.approx((3 * truth + 1) / 7)
    density = np.array([3 / 3, 1 / 3, 2 / 2])[SEGMENTS]  # a weight, spread over its pixels
    assert metrics.energy_pointing(density[None], MASK[None]) == pytest.approx(found.loc["image", "share"])


def test_equal_weights_score_chance():
    segments = np.arange(12).reshape(3, 4).repeat(2, 0).repeat(2, 1)
    rng = np.random.default_rng(0)
    mask, units = rng.random((6, 8)) < 0.3, [unit((9 * n, 0, 9 * n + 5, 5)) for n in range(5)]
    flat = explanation(np.ones((1, 12)), np.ones((1, 5)), segments=segments, tokens=units)
    assert metrics.energy_on(flat, mask, [(9, 0, 14, 5)])["ratio"].tolist() == pytest.approx([1, 1, 1])
    ratios = [
        metrics.energy_on(
            explanation(rng.normal(size=(1, 12)), rng.normal(size=(1, 5)), segments=segments, tokens=units),
            mask,
            [(9, 0, 14, 5)],
        )["ratio"]
        for _ in range(3000)
    ]
    assert np.nanmean(ratios, axis=0) == pytest.approx([1, 1, 1], abs=0.08)


def test_boxes_of_words_within_the_image_are_no_superpixels():
    cut = explanation(np.array([[3.0, 1.0]]))  # label 2 belongs to a word
    found = metrics.energy_on(cut, MASK)
    assert found.loc["image", ["share", "chance"]].tolist() == pytest.approx([2 / 4, 2 / 6])


def test_the_rank_of_the_best_discriminative_word():
    # weights 0.5, -1, 1.5, 1.5: the last two share the first two ranks
    for box, rank in {(0, 0, 1.9, 1): 3, (5, 5, 6, 6): 4, (0, 0, 2, 1): 1.5}.items():
        assert metrics.rank_of_discriminative_word(explanation(), [box]).rank == rank
    assert metrics.rank_of_discriminative_word(explanation(), [(0, 0, 1.9, 1), (5, 5, 6, 6)]) == (3, 2 / 4)
    flat = explanation(text=np.zeros((1, 4)))
    assert metrics.rank_of_discriminative_word(flat, [(0, 0, 1.9, 1)]).rank == 2.5
    assert np.isnan(metrics.rank_of_discriminative_word(explanation(), [(20, 20, 30, 30)]).rank)


@pytest.mark.parametrize("count", [1, 2])
def test_the_chance_of_the_discriminative_word_first_is_m_of_t(count):
    boxes = [(0, 0, 1.9, 1), (5, 5, 6, 6)][:count]
    drawn = [explanation(text=[weights]) for weights in permutations((0.5, -1.0, 1.5, 2.0))]
    ranks, chances = zip(*(metrics.rank_of_discriminative_word(e, boxes) for e in drawn), strict=True)
    assert np.mean(ranks) == (4 + 1) / (count + 1)
    assert np.mean(np.equal(ranks, 1)) == chances[0] == count / 4


# -- Stability


def test_the_same_explanation_is_stable_and_its_reverse_is_not():
    weights = np.array([3.0, -2.0, 1.0, 0.5, -0.2, 0.1])
    bounds = np.stack([weights - 0.1, weights + 0.1], axis=-1)
    same = metrics.stability([weights] * 4, 3, [bounds] * 4)
    assert same == pytest.approx((1, 1, 100, 100, 0.2, 0))
    turned = metrics.stability([weights, -weights], 3, [bounds, -bounds[:, ::-1]])
    assert turned == pytest.approx((-1, 1, 100, 100 / 6, 0.2, 1))  # only the last one's intervals touch


def test_stability_by_hand():
    weights = np.array([[4.0, 3, 2, 1], [4, 1, 2, 3], [-1, 2, 3, 4]])
    low = np.array([[3.0, 2, 1, 0], [3.5, 0, 1, 2], [-2, 1, 2.5, 3.5]])
    found = metrics.stability(torch.from_numpy(weights), 2, np.stack([low, low + 1], axis=-1))
    # tops {0,1}, {0,3}, {3,2}
    assert found.jaccard == pytest.approx((1 / 3 + 0 + 1 / 3) / 3)
    assert found.vsi == pytest.approx(100 * (1 / 2 + 0 + 1 / 2) / 3)
    # players whose intervals of length 1 overlap: 0 and 2 of the first pair, 1 of the second, 1 of the third
    assert found.csi == pytest.approx(100 * (2 + 1 + 1) / 12)
    assert found.interval_width == pytest.approx(1) and found.sign_flips == pytest.approx(2 / 12)
    plain = [np.corrcoef(rankdata(a), rankdata(b))[0, 1] for a, b in combinations(weights, 2)]
    assert found.spearman == pytest.approx(np.mean(plain))


def test_zeros_share_no_top():
    """Two sparse explanations of different players would share the zeros that come first otherwise."""
    found = metrics.stability([[0, 0, 0, 1, 0], [0, 0, 0, 0, 1.0]], k=3)
    assert (found.jaccard, found.vsi) == (0, 0)
    assert metrics.stability([[0, 0, 0, 1, 0]] * 2, k=3)[1:3] == (1, 100)
    assert metrics.stability([[0, 1, 0, 1, 0], [0, 1, 0, 0, 0]], k=3)[1:3] == (0.5, 50)


def test_intervals_that_are_not_known_count_neither_way():
    nan = [np.nan, np.nan]
    found = metrics.stability([[1, 2, 3], [1, 2, 3]], k=1, intervals=[[[0, 2], nan, [2, 4]], [[1, 3], [1, 3], [5, 6]]])
    assert found.csi == 50 and found.interval_width == pytest.approx((2 + 2 + 2 + 2 + 1) / 5)
    bare = metrics.stability([[1, 2], [1, 2]], k=1, intervals=[[nan, nan], [nan, nan]])
    assert np.isnan(bare.csi) and np.isnan(bare.interval_width)


def test_random_explanations_are_stable_by_chance():
    found = metrics.stability(np.random.default_rng(0).normal(size=(120, 20)), k=5)
    assert found.spearman == pytest.approx(0, abs=0.02) and found.sign_flips == pytest.approx(0.5, abs=0.02)
    assert found.vsi == pytest.approx(100 * 5 / 20, abs=1)
    expected = sum(math.comb(5, i) * math.comb(15, 5 - i) / math.comb(20, 5) * i / (10 - i) for i in range(6))
    assert found.jaccard == pytest.approx(expected, abs=0.02) and expected == pytest.approx(5 / 35, abs=0.02)


# -- Randomised models


def network(name="image", **options):
    torch.manual_seed(0)
    model = models.build(name, CLASSES, "resnet18", weights=None, **options)
    with torch.no_grad():
        for module in model.modules():  # as after training: no weight is where it started
            for weight in module.parameters(recurse=False):
                weight.add_(0.1 * torch.rand_like(weight))
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean += 0.3
    return model.eval()


def test_every_weight_is_drawn_anew_and_the_original_stays():
    model = network("lca")
    model.head.scalers["image"].fit(Features.present(torch.rand(9, 512)))
    model.image_encoder.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(5)
    chance = torch.get_rng_state()
    twin = metrics.randomised(model, 1)
    assert torch.equal(torch.get_rng_state(), chance)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    kept = [n for n, p in twin.named_parameters() if torch.equal(p, model.get_parameter(n))]
    assert kept == []
    assert (twin.head.scalers["image"].std == 1).all() and (twin.head.scalers["image"].mean == 0).all()
    assert (twin.image_encoder.network.bn1.running_mean == 0).all()
    assert torch.equal(twin.image_encoder.mean, model.image_encoder.mean)  # how pictures are normalised is no weight
    assert not next(twin.image_encoder.parameters()).requires_grad and next(twin.head.parameters()).requires_grad
    again, other = metrics.randomised(model, 1).state_dict(), metrics.randomised(model, 2).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in twin.state_dict().items())
    assert not torch.equal(other["head.linear.weight"], again["head.linear.weight"])


def test_the_cascade_goes_down_from_the_answer():
    model = network("lca")
    names = [name for name, _ in metrics.stages(model)]
    assert names[:3] == ["head", "pooling", "image_encoder.layer4.1"] and names[-1] == "image_encoder.conv1"
    for top in (0, 1, 3, len(names)):
        twin = metrics.randomised(model, 0, top)
        pairs = zip(metrics.stages(twin), metrics.stages(model), strict=True)
        changed = [
            any(not torch.equal(p, q) for p, q in zip(part.parameters(), old.parameters(), strict=True))
            for (_, part), (_, old) in pairs
        ]
        assert changed == [True] * top + [False] * (len(names) - top)
    whole = sum(p.numel() for _, part in metrics.stages(model) for p in part.parameters())
    assert whole == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("absolute", [False, True])
def test_rank_correlation_is_that_of_the_ranks(absolute):
    rng = np.random.default_rng(0)
    a, b = rng.integers(-4, 5, (4, 6, 5)).astype(float), rng.normal(size=(4, 6, 5))
    b[1], b[2], b[3] = -a[1], a[2] ** 3, 7
    found = metrics.rank_correlation(a, torch.from_numpy(b), absolute)
    for i in range(3):
        x, y = (np.abs(m[i]).ravel() if absolute else m[i].ravel() for m in (a, b))
        assert found[i] == pytest.approx(np.corrcoef(rankdata(x), rankdata(y))[0, 1])
    assert found[1] == pytest.approx(1 if absolute else -1) and found[2] == pytest.approx(1)
    assert np.isnan(found[3])


def test_maps_of_a_randomised_model_are_others():
    model, images = network(), torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(6) % 3
    first, again, random = (
        saliency.attribute(m, images, labels, "saliency") for m in (model, model, metrics.randomised(model, 0))
    )
    assert metrics.rank_correlation(first, again).min() == pytest.approx(1)
    assert abs(metrics.rank_correlation(first, random).mean()) < 0.3


# -- Deletion, insertion and their gain on masked models that are solved by hand


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


def plain(masked, weights, modality, order):
    """Deletion and insertion, a feature at a time, without a model that is asked at once."""
    worth = np.concatenate([masked.image, masked.text])
    played = {
        "image": range(masked.n_segments),
        "text": range(masked.n_segments, len(worth)),
        "joint": range(len(worth)),
    }
    size = np.concatenate([np.ones(masked.n_segments), np.ones(masked.n_tokens)])
    if masked.n_segments:
        size[: masked.n_segments] = masked.areas * masked.n_segments
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


@pytest.mark.parametrize("modality", metrics.MODALITIES)
def test_the_areas_are_those_of_a_plain_loop(modality):
    rng = np.random.default_rng(0)
    masked = Additive(rng.normal(size=5), rng.normal(size=3), areas=[0.1, 0.3, 0.2, 0.15, 0.25])
    weights = rng.normal(size=8)
    found = metrics.areas(masked, weights[:5], weights[5:], first, modality)
    played = {"image": np.arange(5), "text": np.arange(5, 8), "joint": np.arange(8)}[modality]
    order = played[np.argsort(-weights[played])]
    assert [found.deletion[0], found.insertion[0]] == pytest.approx(plain(masked, weights, modality, order))
    # hiding from the least important one on, the other way round, is the same area
    assert plain(masked, weights, modality, order[::-1])[0] == pytest.approx(found.insertion[0])
    assert found.srg[0] == pytest.approx(found.insertion[0] - found.deletion[0])
    worth = np.concatenate([masked.image, masked.text])
    ends = 3 + worth.sum(), 3 + worth.sum() - worth[played].sum()
    assert (found.full, found.empty) == pytest.approx(ends)
    costs = ends[0] - ends[1] if ends[0] > ends[1] else np.nan
    assert found.normalised_srg[0] == pytest.approx(found.srg[0] / costs, rel=1e-4, nan_ok=True)  # float32
    rows, others = masked.asked[0], np.setdiff1d(np.arange(8), played)
    assert rows[:, others].all() and not rows[:, played].all()
    gone = (~rows[:, played]).reshape(2, 1 + metrics.RANDOM_ORDERS, -1, len(played))
    assert not gone[0, :, 0].any() and gone[0, :, -1].all()  # from nothing hidden to everything


def test_the_gain_of_the_true_weights_has_a_closed_form():
    worth = np.array([4.0, -1.0, 2.5, 0.5, -3.0, 1.0])
    found = metrics.areas(Additive(worth[:4], worth[4:]), worth[:4], worth[4:], first)
    ranked, rank, features = np.sort(worth)[::-1], np.arange(1, 7), 6
    assert found.deletion[0] == pytest.approx(3 + ranked @ (2 * rank - 1) / (2 * features))
    assert found.srg[0] == pytest.approx(ranked @ (features - 2 * rank + 1) / features)
    assert (found.full, found.empty) == (pytest.approx(7), pytest.approx(3))
    assert found.normalised_srg[0] == pytest.approx(found.srg[0] / 4)


def test_the_true_order_beats_every_other_one():
    worth = np.array([2.0, -1.0, 0.7, 0.1])
    gains = {}
    for ranks in permutations(range(4)):  # two superpixels and two words: all take a quarter of the axis
        weights = np.array(ranks, dtype=float)
        gains[ranks] = metrics.areas(Additive(worth[:2], worth[2:]), weights[:2], weights[2:], first).srg[0]
    best = max(gains, key=gains.get)
    assert best == tuple(worth.argsort().argsort()) and sorted(gains.values())[-2] < gains[best]
    assert gains[tuple((-worth).argsort().argsort())] == pytest.approx(-gains[best])
    assert np.mean(list(gains.values())) == pytest.approx(0)


def test_text_that_the_model_ignores_gains_nothing():
    found = metrics.areas(Additive([1.0, 2.0], [0.0, 0.0, 0.0]), [1.0, 2.0], [5.0, -1.0, 2.0], first, "text")
    assert found.srg == pytest.approx(np.zeros(6)) and found.deletion == pytest.approx(np.full(6, 6.0))
    assert np.isnan(found.normalised_srg).all()  # nothing falls when all words are gone


def test_random_orders_score_chance(monkeypatch):
    monkeypatch.setattr(metrics, "RANDOM_ORDERS", 600)
    worth = np.random.default_rng(3).normal(size=12)
    found = metrics.areas(Additive(worth[:8], worth[8:]), worth[:8], worth[8:], first)
    middle, spread = (found.full + found.empty) / 2, found.srg[1:].std() / math.sqrt(600)
    assert [found.deletion[1:].mean(), found.insertion[1:].mean()] == pytest.approx([middle] * 2, abs=2 * spread)
    assert found.srg[1:].mean() == pytest.approx(0, abs=4 * spread) and found.srg[0] > found.srg[1:].max()
    # an order is drawn without replacement: variance of sum(w_i (P+1-2 rank_i)) / P
    slopes = (13 - 2 * np.arange(1, 13)) / 12
    assert found.srg[1:].std() == pytest.approx(12 * worth.std() * slopes.std() / math.sqrt(11), rel=0.15)


def test_many_features_go_several_at_a_time():
    worth = np.random.default_rng(0).normal(size=130)
    masked = Additive(worth[:100], worth[100:])
    found = metrics.areas(masked, worth[:100], worth[100:], first, steps=64)
    gone = (~masked.asked[0]).sum(1).reshape(2, 6, 65)
    assert (gone[0, :, 0] == 0).all() and (gone[0, :, -1] == 130).all()
    assert set(np.diff(gone[0], axis=1).ravel()) == {2, 3} and (gone[0] + gone[1] == 130).all()
    ranked, rank = np.sort(worth)[::-1], np.arange(1, 131)
    assert found.srg[0] == pytest.approx(ranked @ (131 - 2 * rank) / 130, rel=0.01)


# -- The table


def explained(masked, target="margin", contrast=1):
    options = SimpleNamespace(target=target)
    weights = {"image_weights": masked.image[None], "text_weights": masked.text[None]}
    return SimpleNamespace(masked_model=masked, explained=(0,), contrasts=(contrast,), options=options, **weights)


def test_the_table_has_a_row_for_each_modality_and_baseline():
    masked = Additive([4.0, -1.0, 2.0], [1.0, 0.5])
    table = metrics.faithfulness(explained(masked)).set_index(["modality", "baseline"])
    assert list(table.index) == [(m, b) for b in ("mean", "blur") for m in metrics.MODALITIES]
    assert list(table["features"]) == [3, 2, 5] * 2 and not masked.asked
    for (modality, baseline), row in table.iterrows():
        other = masked.with_baseline(baseline)
        found = metrics.areas(other, masked.image, masked.text, lambda v: v[:, 0] - v[:, 1], modality)
        assert row["full"] == found.full == {"mean": 8.5, "blur": 3.75}[baseline]
        assert row["empty"] == found.empty
        for name in metrics.AREAS:
            area = getattr(found, name)
            mine = [row[name], row[f"random_{name}"], row[f"random_{name}_sd"]]
            assert mine == pytest.approx([area[0], np.mean(area[1:]), np.std(area[1:], ddof=1)])
    for modality in metrics.MODALITIES:  # the blurred image says half as much
        assert table.loc[(modality, "blur"), "srg"] == pytest.approx(table.loc[(modality, "mean"), "srg"] / 2)
    loaded = explained(masked)
    loaded.masked_model = None
    with pytest.raises(UsageError, match="no model with it, as after loading"):
        metrics.faithfulness(loaded)


@pytest.mark.parametrize(("target", "contrast", "score"), [
    ("margin", 1, lambda worth: worth - 1), ("margin", -1, lambda worth: worth),
    ("prob", 1, lambda worth: 1 / (1 + math.exp(1 - worth))),
    ("log_prob", 1, lambda worth: -math.log1p(math.exp(1 - worth))),
    ("sqrt_prob", 1, lambda worth: (1 + math.exp(1 - worth)) ** -0.5),
])  # fmt: skip
def test_the_score_is_what_is_explained(target, contrast, score):
    masked = Additive([4.0, -1.0, 2.0], [-5.0, 0.5])
    found = metrics.faithfulness(explained(masked, target, contrast)).set_index(["modality", "baseline"])
    full, empty = found.loc[("joint", "mean"), ["full", "empty"]]
    assert (full, empty) == pytest.approx((score(3.5), score(3)))


def test_a_modality_without_features_has_no_score():
    table = metrics.faithfulness(explained(Additive([4.0, -1.0]))).set_index(["modality", "baseline"])
    assert table.loc[("text", "mean"), "features"] == 0 and table.loc[("text", "mean")].iloc[1:].isna().all()
    assert table.loc[("image", "mean"), "srg"] == table.loc[("joint", "mean"), "srg"] == 2.5
