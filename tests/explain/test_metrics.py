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

from retailkit.config import UsageError
from retailkit.data.table import Word
from retailkit.explain import metrics
from retailkit.models import Features

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
    rng, truth = np.random.default_rng(0), np.zeros((2000, 20, 20), dtype=bool)
    truth[:, 2:10, 3:11] = True
    values = np.repeat((truth[:1] + rng.random((1, 20, 20))).reshape(1, -1), 2000, 0)
    scattered = rng.permuted(values, axis=1).reshape(truth.shape)
    for game in (metrics.pointing_game, metrics.energy_pointing):
        assert game(scattered, truth).mean() == pytest.approx(metrics.chance(truth)[0], abs=0.03)
        assert game(np.ones((1, 20, 20)), truth[:1]) == pytest.approx(metrics.chance(truth)[:1])
        assert game(truth[:1].astype(float), truth[:1]) == [1]


@pytest.mark.parametrize(("call", "arguments", "message"), [
    (metrics.pointing_game, (np.ones((2, 4, 4)), np.ones((2, 4, 5))), r"\(2, 4, 4\) and the truth is"),
    (metrics.pointing_game, (np.ones((4, 4)), np.ones((4, 4))), r"maps are \(4, 4\); give them as"),
    (metrics.energy_pointing, (np.full((1, 2, 2), np.nan), np.ones((1, 2, 2))), "1 of 1 maps hold NaN"),
    (metrics.rank_correlation, (np.ones((1, 4, 4)), np.ones((1, 2, 2))), "at one size"),
    (metrics.stability, ([[1, np.nan], [1, 2]],), "finite, with R of 2"),
    (metrics.faithfulness, (SimpleNamespace(masked_model=None),), "no model with it, as after loading"),
])  # fmt: skip
def test_a_wrong_call_says_what_to_change(call, arguments, message):
    with pytest.raises(UsageError, match=message):
        call(*arguments)


# -- Superpixels and words

SEGMENTS = np.array([[0, 0, 0, 1], [2, 2, 1, 1]])
MASK = np.array([[1, 1, 0, 0], [1, 0, 0, 0]], dtype=bool)  # two thirds of 0, nothing of 1, half of 2


def token(*boxes):
    return SimpleNamespace(words=tuple(Word("a", box) for box in boxes))


TOKENS = (token((0, 0, 2, 1)), token((4, 4, 8, 8)), token((9, 9, 12, 12), (1, 0, 3, 1)), token((0, 0, 0, 0)))


def explanation(image=(3.0, 1.0, 2.0), text=(0.5, -1.0, 1.5, 1.5), segments=SEGMENTS, tokens=TOKENS):
    weights = {"image_weights": np.array([image]), "text_weights": np.array([text])}
    return SimpleNamespace(segments=segments, tokens=tokens, **weights)


@pytest.mark.parametrize(("boxes", "expected"), [
    ([(0, 0, 2, 1)], [1, 0, 1, 0]),  # the third token's second word shares half of both
    ([(0, 0, 1.9, 1)], [1, 0, 0, 0]),  # 0.9 of 1.9
    ([(5, 5, 6, 6)], [0, 1, 0, 0]),  # a small box within a large one
    ([(6.1, 4, 10.1, 8)], [0, 0, 0, 0]),
    ([(0, 0, 0, 0)], [0, 0, 0, 0]),  # cropped away: as is the last token
    ([(-5, -5, 50, 50)], [1, 1, 1, 0]),
    (torch.tensor([[0, 0, 1.9, 1], [5, 5, 6, 6]]), [1, 1, 0, 0]), ([], [0, 0, 0, 0]),
])  # fmt: skip
def test_a_token_is_discriminative_where_half_of_the_smaller_box_is_shared(boxes, expected):
    assert metrics.discriminative_tokens(TOKENS, boxes).tolist() == [bool(e) for e in expected]
    assert metrics.discriminative_tokens((), boxes).shape == (0,)


def test_energy_of_superpixels_and_words_by_hand():
    found = metrics.energy_on(explanation(), MASK, [(0, 0, 1.9, 1)])
    inside, truth = 3 * 2 / 3 + 2 / 2, 3 / 8  # of the image
    assert found.loc["image"].tolist() == pytest.approx([inside / 6, truth, inside / 6 / truth])
    assert found.loc["text"].tolist() == pytest.approx([0.5 / 3.5, 1 / 4, 4 * 0.5 / 3.5])
    assert found.loc["joint", ["share", "chance"]].tolist() == pytest.approx(
        [(inside + 0.5) / 9.5, (3 * truth + 1) / 7]
    )
    density = np.array([3 / 3, 1 / 3, 2 / 2])[SEGMENTS]  # a weight, spread over its pixels
    assert metrics.energy_pointing(density[None], MASK[None]) == pytest.approx(found.loc["image", "share"])
    cut = metrics.energy_on(explanation([3.0, 1.0]), MASK)  # label 2 is a box of a word, and no superpixel
    assert cut.loc["image", ["share", "chance"]].tolist() == pytest.approx([2 / 4, 2 / 6])


def test_equal_weights_score_chance():
    segments = np.arange(12).reshape(3, 4).repeat(2, 0).repeat(2, 1)
    mask = np.random.default_rng(0).random((6, 8)) < 0.3
    equal = explanation(np.ones(12), np.ones(5), segments, [token((9 * n, 0, 9 * n + 5, 5)) for n in range(5)])
    assert metrics.energy_on(equal, mask, [(9, 0, 14, 5)])["ratio"].tolist() == pytest.approx([1, 1, 1])


FIRST, SECOND = (0, 0, 1.9, 1), (5, 5, 6, 6)  # boxes of the first and the second token


@pytest.mark.parametrize(("boxes", "text", "expected"), [
    ([FIRST], (0.5, -1.0, 1.5, 1.5), (3, 1 / 4)), ([SECOND], (0.5, -1.0, 1.5, 1.5), (4, 1 / 4)),
    ([(0, 0, 2, 1)], (0.5, -1.0, 1.5, 1.5), (1.5, 2 / 4)),  # the last two share the first two ranks
    ([FIRST, SECOND], (0.5, -1.0, 1.5, 1.5), (3, 2 / 4)), ([FIRST], (0, 0, 0, 0), (2.5, 1 / 4)),
    ([(20, 20, 30, 30)], (0.5, -1.0, 1.5, 1.5), (math.nan, 0)),
])  # fmt: skip
def test_the_rank_of_the_best_discriminative_word(boxes, text, expected):
    found = metrics.rank_of_discriminative_word(explanation(text=text), boxes)
    assert found == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("count", [1, 2])
def test_the_chance_of_the_discriminative_word_first_is_m_of_t(count):
    drawn = [explanation(text=weights) for weights in permutations((0.5, -1.0, 1.5, 2.0))]
    found = [metrics.rank_of_discriminative_word(e, [FIRST, SECOND][:count]) for e in drawn]
    ranks, chances = np.array(found).T
    assert np.mean(ranks) == (4 + 1) / (count + 1)
    assert np.mean(ranks == 1) == chances[0] == count / 4


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
    # features whose intervals of length 1 overlap: 0 and 2 of the first pair, 1 of the second, 1 of the third
    assert found.csi == pytest.approx(100 * (2 + 1 + 1) / 12)
    assert found.interval_width == pytest.approx(1) and found.sign_flips == pytest.approx(2 / 12)
    plain = [np.corrcoef(rankdata(a), rankdata(b))[0, 1] for a, b in combinations(weights, 2)]
    assert found.spearman == pytest.approx(np.mean(plain))


@pytest.mark.parametrize(("weights", "jaccard", "vsi"), [
    ([[0, 0, 0, 1, 0], [0, 0, 0, 0, 1.0]], 0, 0), ([[0, 0, 0, 1, 0]] * 2, 1, 100),
    ([[0, 1, 0, 1, 0], [0, 1, 0, 0, 0]], 0.5, 50),
])  # fmt: skip
def test_zeros_share_no_top(weights, jaccard, vsi):
    """Two sparse explanations of different features would share the zeros that come first otherwise."""
    assert metrics.stability(weights, k=3)[1:3] == (jaccard, vsi)


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


@pytest.fixture
def trained(network):
    """A model with windows, changed as by training: no weight is where it started."""
    model = network("lca", "resnet18")
    model.head.scalers["image"].fit(Features.present(torch.rand(9, 512)))
    for module in model.modules():
        for weight in module.parameters(recurse=False):
            weight.data += 0.1 * torch.rand_like(weight)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean += 0.3
    return model


def test_every_weight_is_re_initialised_and_the_original_stays(trained):
    trained.image_encoder.requires_grad_(False)
    before, chance = copy.deepcopy(trained.state_dict()), torch.get_rng_state()
    twin = metrics.randomised(trained, 1)
    assert torch.equal(torch.get_rng_state(), chance)
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())
    assert not [n for n, p in twin.named_parameters() if torch.equal(p, trained.get_parameter(n))]
    assert (twin.head.scalers["image"].std == 1).all() and (twin.head.scalers["image"].mean == 0).all()
    assert (twin.image_encoder.network.bn1.running_mean == 0).all()
    assert torch.equal(twin.image_encoder.mean, trained.image_encoder.mean)  # how images are normalised is no weight
    assert not next(twin.image_encoder.parameters()).requires_grad and next(twin.head.parameters()).requires_grad
    again, other = metrics.randomised(trained, 1).state_dict(), metrics.randomised(trained, 2).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in twin.state_dict().items())
    assert not torch.equal(other["head.linear.weight"], again["head.linear.weight"])


def test_the_cascade_goes_down_from_the_answer(trained):
    names = [name for name, _ in metrics.stages(trained)]
    assert names[:3] == ["head", "pooling", "image_encoder.layer4.1"] and names[-1] == "image_encoder.conv1"
    for top in (0, 1, 3, len(names)):
        pairs = zip(metrics.stages(metrics.randomised(trained, 0, top)), metrics.stages(trained), strict=True)
        changed = [
            any(not torch.equal(p, q) for p, q in zip(part.parameters(), old.parameters(), strict=True))
            for (_, part), (_, old) in pairs
        ]
        assert changed == [True] * top + [False] * (len(names) - top)
    whole = sum(p.numel() for _, part in metrics.stages(trained) for p in part.parameters())
    assert whole == sum(p.numel() for p in trained.parameters())


@pytest.mark.parametrize("absolute", [False, True])
def test_rank_correlation_is_that_of_the_ranks(absolute):
    rng = np.random.default_rng(0)
    a, b = rng.integers(-4, 5, (4, 6, 5)).astype(float), rng.normal(size=(4, 6, 5))
    b[1], b[2], b[3] = -a[1], a[2] ** 3, 7
    found = metrics.rank_correlation(a, torch.from_numpy(b), absolute)
    for i in range(3):
        x, y = (np.abs(m[i]).ravel() if absolute else m[i].ravel() for m in (a, b))
        assert found[i] == pytest.approx(np.corrcoef(rankdata(x), rankdata(y))[0, 1])
    assert found[1:] == pytest.approx([1 if absolute else -1, 1, np.nan], nan_ok=True)


# -- Deletion, insertion and their gain on masked models that are solved by hand


class Additive:
    """Logits: what the kept features are worth, plus 3; and 1. Keeps the masks that it is asked about."""

    def __init__(self, image=(), text=(), areas=None, factor=1.0):
        self.image, self.text, self.factor = np.array(image, dtype=float), np.array(text, dtype=float), factor
        self.worth = np.concatenate([self.image, self.text])
        self.n_segments, self.n_tokens = len(self.image), len(self.text)
        self.areas = np.full(self.n_segments, 1 / max(self.n_segments, 1)) if areas is None else np.array(areas)
        self.asked = []

    def logits(self, image_keep, text_keep):
        self.asked.append(np.hstack([image_keep, text_keep]))
        worth = self.factor * (3 + self.asked[-1] @ self.worth)
        return np.stack([worth, np.ones(len(worth))], axis=1).astype(np.float32)

    def with_baseline(self, baseline):
        return Additive(self.image, self.text, self.areas, {"mean": 1.0, "blur": 0.5}[baseline])

    def areas_by(self, weights, modality="joint", **options):
        """Return the areas of the first logit."""
        parts = np.split(np.array(weights, dtype=float), [self.n_segments])
        return metrics.areas(self, *parts, lambda logits: logits[:, 0], modality, **options)


def plain(masked, played, order):
    """Deletion and insertion, a feature at a time, without a model that is asked at once."""
    size = np.concatenate([masked.areas * masked.n_segments, np.ones(masked.n_tokens)])
    total, areas = size[played].sum(), []
    for hide in (True, False):
        kept = set(range(len(size))) - (set() if hide else set(played))
        area, score = 0.0, 3 + masked.worth[list(kept)].sum()
        for feature in order:
            kept = kept ^ {feature}
            after = 3 + masked.worth[list(kept)].sum()
            area, score = area + size[feature] / total * (score + after) / 2, after
        areas.append(area)
    return areas


@pytest.mark.parametrize("modality", metrics.MODALITIES)
def test_the_areas_are_those_of_a_plain_loop(modality):
    rng = np.random.default_rng(0)
    masked = Additive(rng.normal(size=5), rng.normal(size=3), areas=[0.1, 0.3, 0.2, 0.15, 0.25])
    weights, worth = rng.normal(size=8), masked.worth
    found = masked.areas_by(weights, modality)
    played = {"image": np.arange(5), "text": np.arange(5, 8), "joint": np.arange(8)}[modality]
    order = played[np.argsort(-weights[played])]
    assert [found.deletion[0], found.insertion[0]] == pytest.approx(plain(masked, played, order))
    # hiding from the least important one on, the other way round, is the same area
    assert plain(masked, played, order[::-1])[0] == pytest.approx(found.insertion[0])
    assert found.srg[0] == pytest.approx(found.insertion[0] - found.deletion[0])
    ends = 3 + worth.sum(), 3 + worth.sum() - worth[played].sum()
    assert (found.full, found.empty) == pytest.approx(ends)
    costs = ends[0] - ends[1] if ends[0] > ends[1] else np.nan
    assert found.normalised_srg[0] == pytest.approx(found.srg[0] / costs, rel=1e-4, nan_ok=True)  # float32
    (rows,), others = masked.asked, np.setdiff1d(np.arange(8), played)
    assert rows[:, others].all() and not rows[:, played].all()
    gone = (~rows[:, played]).reshape(2, 1 + metrics.RANDOM_ORDERS, -1, len(played))
    assert not gone[0, :, 0].any() and gone[0, :, -1].all()  # from nothing hidden to everything


def test_the_true_order_beats_every_other_one():
    worth = np.array([2.0, -1.0, 0.7, 0.1])  # two superpixels and two words: all take a quarter of the axis
    gains = {ranks: Additive(worth[:2], worth[2:]).areas_by(ranks).srg[0] for ranks in permutations(range(4))}
    best = max(gains, key=gains.get)
    assert best == tuple(worth.argsort().argsort()) and sorted(gains.values())[-2] < gains[best]
    assert gains[tuple((-worth).argsort().argsort())] == pytest.approx(-gains[best])
    assert np.mean(list(gains.values())) == pytest.approx(0)


def test_text_that_the_model_ignores_gains_nothing():
    found = Additive([1.0, 2.0], [0.0, 0.0, 0.0]).areas_by([1.0, 2.0, 5.0, -1.0, 2.0], "text")
    assert found.srg == pytest.approx(np.zeros(6)) and found.deletion == pytest.approx(np.full(6, 6.0))
    assert np.isnan(found.normalised_srg).all()  # nothing falls when all words are gone


def test_random_orders_score_chance(monkeypatch):
    monkeypatch.setattr(metrics, "RANDOM_ORDERS", 600)
    worth = np.random.default_rng(3).normal(size=12)
    found = Additive(worth[:8], worth[8:]).areas_by(worth)
    middle, spread = (found.full + found.empty) / 2, found.srg[1:].std() / math.sqrt(600)
    assert [found.deletion[1:].mean(), found.insertion[1:].mean()] == pytest.approx([middle] * 2, abs=2 * spread)
    assert found.srg[1:].mean() == pytest.approx(0, abs=4 * spread) and found.srg[0] > found.srg[1:].max()
    # an order is drawn without replacement: variance of sum(w_i (P+1-2 rank_i)) / P
    slopes = (13 - 2 * np.arange(1, 13)) / 12
    assert found.srg[1:].std() == pytest.approx(12 * worth.std() * slopes.std() / math.sqrt(11), rel=0.15)


def test_many_features_go_several_at_a_time():
    worth = np.random.default_rng(0).normal(size=130)
    masked = Additive(worth[:100], worth[100:])
    found = masked.areas_by(worth, steps=64)
    gone = (~masked.asked[0]).sum(1).reshape(2, 6, 65)
    assert (gone[0, :, 0] == 0).all() and (gone[0, :, -1] == 130).all()
    assert set(np.diff(gone[0], axis=1).ravel()) == {2, 3} and (gone[0] + gone[1] == 130).all()
    ranked, rank = np.sort(worth)[::-1], np.arange(1, 131)
    assert found.srg[0] == pytest.approx(ranked @ (131 - 2 * rank) / 130, rel=0.01)


# -- The table


def faithfulness(masked, target="margin", contrast=1):
    weights = {"image_weights": masked.image[None], "text_weights": masked.text[None]}
    facts = {"explained": (0,), "contrasts": (contrast,), "options": SimpleNamespace(target=target)}
    table = metrics.faithfulness(SimpleNamespace(masked_model=masked, **facts, **weights))
    return table.set_index(["modality", "baseline"])


def test_the_table_has_a_row_for_each_modality_and_baseline():
    masked = Additive([4.0, -1.0, 2.0], [1.0, 0.5])
    table = faithfulness(masked)
    assert list(table.index) == [(m, b) for b in ("mean", "blur") for m in metrics.MODALITIES]
    assert list(table["features"]) == [3, 2, 5] * 2 and not masked.asked
    for (modality, baseline), row in table.iterrows():
        target = lambda logits: logits[:, 0] - logits[:, 1]  # noqa: E731
        found = metrics.areas(masked.with_baseline(baseline), masked.image, masked.text, target, modality)
        assert row["full"] == found.full == {"mean": 8.5, "blur": 3.75}[baseline] and row["empty"] == found.empty
        for name in metrics.AREAS:
            area, shown = getattr(found, name), [row[name], row[f"random_{name}"], row[f"random_{name}_sd"]]
            assert shown == pytest.approx([area[0], np.mean(area[1:]), np.std(area[1:], ddof=1)])
    for modality in metrics.MODALITIES:  # the blurred image says half as much
        assert table.loc[(modality, "blur"), "srg"] == pytest.approx(table.loc[(modality, "mean"), "srg"] / 2)
    empty = faithfulness(Additive([4.0, -1.0]))
    assert empty.loc[("text", "mean"), "features"] == 0 and empty.loc[("text", "mean")].iloc[1:].isna().all()
    assert empty.loc[("image", "mean"), "srg"] == empty.loc[("joint", "mean"), "srg"] == 2.5


@pytest.mark.parametrize(("target", "contrast", "score"), [
    ("margin", 1, lambda worth: worth - 1), ("margin", -1, lambda worth: worth),
    ("prob", 1, lambda worth: 1 / (1 + math.exp(1 - worth))),
])  # fmt: skip
def test_the_score_is_what_is_explained(target, contrast, score):
    found = faithfulness(Additive([4.0, -1.0, 2.0], [-5.0, 0.5]), target, contrast)
    assert tuple(found.loc[("joint", "mean"), ["full", "empty"]]) == pytest.approx((score(3.5), score(3)))
