"""Pointing games, stability and randomised models against plain versions, and against chance."""

import copy
import math
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import rankdata
from torch import nn

from retailkit import models
from retailkit.config import UsageError
from retailkit.data.table import COLUMNS, DataError, ProductData, Word
from retailkit.explain import metrics, saliency
from retailkit.models import Features

CLASSES = ["lean", "extra lean", "medium"]


def square(top, left, side, size=20):
    truth = np.zeros((1, size, size), dtype=bool)
    truth[:, top : top + side, left : left + side] = True
    return truth


# -- Pointing


def test_the_pointing_game_is_the_plain_loop():
    rng = np.random.default_rng(0)
    attr = rng.integers(-3, 4, (30, 9, 7)).astype(float)  # many ties
    truth = rng.random((30, 9, 7)) < 0.05
    truth[:2] = False
    found, base = metrics.pointing_game(attr, truth), metrics.chance(truth)
    for b in range(30):
        inside = list(zip(*np.nonzero(truth[b]), strict=True))
        if not inside:
            assert np.isnan(found[b]) and np.isnan(base[b])
            continue
        tops = [truth[b, y, x] for y in range(9) for x in range(7) if attr[b, y, x] == attr[b].max()]
        assert found[b] == pytest.approx(sum(tops) / len(tops))
        assert base[b] == pytest.approx(truth[b].mean())
    assert np.isnan(found[:2]).all() and not np.isnan(found).all()


def test_a_flat_superpixel_that_touches_the_truth_is_no_full_hit():
    attr = square(0, 0, 10).astype(float)
    assert metrics.pointing_game(attr, square(9, 9, 5)) == pytest.approx([0.01])
    assert metrics.pointing_game(attr, square(0, 0, 12)) == [1]


def test_energy_is_the_positive_share():
    rng = np.random.default_rng(0)
    attr, truth = rng.normal(size=(5, 6, 8)), rng.random((5, 6, 8)) < 0.3
    truth[3], attr[4] = False, -1
    found = metrics.energy_pointing(torch.from_numpy(attr), torch.from_numpy(truth))
    for b in range(3):
        cells = [(attr[b, y, x], truth[b, y, x]) for y in range(6) for x in range(8) if attr[b, y, x] > 0]
        assert found[b] == pytest.approx(sum(v for v, t in cells if t) / sum(v for v, _ in cells))
    assert np.isnan(found[3:]).all()


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
        (lambda: metrics.discriminative_tokens((), np.ones((2, 3))), r"boxes are \(2, 3\); give \(M,4\)"),
        (lambda: metrics.energy_on(explanation(), np.ones((3, 4))), r"mask is \(3, 4\) and the image \(2, 4\)"),
        (lambda: metrics.energy_on(explanation(), np.ones((2, 4)), row=2), "row=2 is out of range"),
        (lambda: metrics.rank_of_discriminative_word(explanation(), [], row=-1), "row=-1 is out of range"),
        (lambda: metrics.stability(np.ones((1, 4))), r"weights are \(1, 4\); give \(R,P\)"),
        (lambda: metrics.stability(np.ones((2, 0))), r"weights are \(2, 0\)"),
        (lambda: metrics.stability([[1, np.nan], [1, 2]]), "finite, with R of 2"),
        (lambda: metrics.stability(np.ones((2, 4)), k=0), "k=0 is too small"),
        (lambda: metrics.stability(np.ones((2, 4)), intervals=np.ones((2, 4))), r"give \(2, 4, 2\), low before high"),
        (lambda: metrics.stability(np.ones((2, 1)), intervals=[[[0, 1]], [[2, 1]]]), "low before high"),
        (lambda: metrics.stability(np.ones((2, 1)), intervals=[[[0, 1]], [[0, np.nan]]]), "low before high"),
        (lambda: metrics.randomised(nn.Identity(), 0), "no weights to randomise"),
        (lambda: metrics.randomised(network(), 0, top=99), "top=99 is out of range; this model has"),
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


def test_a_unit_is_telling_where_half_of_the_smaller_box_is_shared():
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
    inside, truth = 3 * 2 / 3 + 2 / 2, 3 / 8  # of the picture
    assert found.loc["image"].tolist() == pytest.approx([inside / 6, truth, inside / 6 / truth])
    assert found.loc["text"].tolist() == pytest.approx([0.5 / 3.5, 1 / 4, 4 * 0.5 / 3.5])
    assert found.loc["joint", "share"] == pytest.approx((inside + 0.5) / 9.5)
    assert found.loc["joint", "chance"] == pytest.approx((3 * truth + 1) / 7)
    density = np.array([3 / 3, 1 / 3, 2 / 2])[SEGMENTS]  # a weight, spread over its pixels
    assert metrics.energy_pointing(density[None], MASK[None]) == pytest.approx(found.loc["image", "share"])


def test_equal_weights_score_chance():
    rng = np.random.default_rng(0)
    segments = np.arange(12).reshape(3, 4).repeat(2, 0).repeat(2, 1)
    mask, units = rng.random((6, 8)) < 0.3, tuple(unit((9 * n, 0, 9 * n + 5, 5)) for n in range(5))
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


def test_energy_without_truth_or_weights_is_unknown():
    nowhere = metrics.energy_on(explanation(), np.zeros((2, 4)), [(0, 0, 2, 1)])
    assert nowhere.loc["image"].isna().all() and nowhere.loc["text", "share"] == pytest.approx(2 / 3.5)
    assert nowhere.loc["joint", "share"] == pytest.approx(2 / 9.5)
    assert metrics.energy_on(explanation(), np.zeros((2, 4)))["share"].isna().all()
    assert metrics.energy_on(explanation(), MASK, [(0, 0, 2, 1)], row=1)["share"].isna().all()
    reader = explanation(np.ones((1, 0)), segments=None)
    found = metrics.energy_on(reader, None, [(0, 0, 1.9, 1)])
    assert found.loc["image"].isna().all() and found.loc["text"].tolist() == found.loc["joint"].tolist()
    looker = explanation(text=np.ones((1, 0)), tokens=())
    found = metrics.energy_on(looker, torch.from_numpy(MASK))
    assert found.loc["text"].isna().all() and found.loc["image"].tolist() == found.loc["joint"].tolist()


def test_boxes_of_words_within_the_picture_are_no_superpixels():
    cut = explanation(np.array([[3.0, 1.0]]))  # label 2 belongs to a word
    found = metrics.energy_on(cut, MASK)
    assert found.loc["image", ["share", "chance"]].tolist() == pytest.approx([2 / 4, 2 / 6])


def test_the_rank_of_the_best_discriminative_word():
    # weights 0.5, -1, 1.5, 1.5: the last two share the first two ranks
    for box, rank in {(0, 0, 1.9, 1): 3, (5, 5, 6, 6): 4, (0, 0, 2, 1): 1.5}.items():
        assert metrics.rank_of_discriminative_word(explanation(), [box]).rank == rank
    assert metrics.rank_of_discriminative_word(explanation(), [(0, 0, 1.9, 1), (5, 5, 6, 6)]) == (3, 2 / 4)
    assert metrics.rank_of_discriminative_word(explanation(), [(0, 0, 1.9, 1)], row=1).rank == 2.5
    assert np.isnan(metrics.rank_of_discriminative_word(explanation(), [(20, 20, 30, 30)]).rank)


def test_the_chance_of_the_discriminative_word_first_is_m_of_t():
    rng, boxes = np.random.default_rng(0), [(0, 0, 1.9, 1), (5, 5, 6, 6)]
    for telling in (1, 2):
        drawn = [explanation(text=rng.normal(size=(1, 4))) for _ in range(2000)]
        ranks, chances = zip(*(metrics.rank_of_discriminative_word(e, boxes[:telling]) for e in drawn), strict=True)
        assert np.mean(ranks) == pytest.approx((4 + 1) / (telling + 1), abs=0.1)
        assert np.mean(np.array(ranks) == 1) == pytest.approx(chances[0], abs=0.05) and chances[0] == telling / 4


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


def test_unknown_pairs_are_left_out():
    rising, flat = np.arange(1.0, 5), np.ones(4)
    found = metrics.stability([rising, rising, flat], k=2)
    assert found.spearman == pytest.approx(1) and np.isnan([found.csi, found.interval_width]).all()
    assert np.isnan(metrics.stability([flat, flat]).spearman)
    empty = metrics.stability(np.zeros((3, 4)))
    assert np.isnan(empty[:5]).all() and empty.sign_flips == 0
    assert metrics.stability([[0, 0, 0], [1, 2, 0]]).jaccard == 0


def test_zeros_share_no_top():
    """Two sparse explanations of different players would share the zeros that come first otherwise."""
    found = metrics.stability([[0, 0, 0, 1, 0], [0, 0, 0, 0, 1.0]], k=3)
    assert (found.jaccard, found.vsi) == (0, 0)
    assert metrics.stability([[0, 0, 0, 1, 0]] * 2, k=3)[1:3] == (1, 100)
    assert metrics.stability([[0, 1, 0, 1, 0], [0, 1, 0, 0, 0]], k=3)[1:3] == (0.5, 50)


def test_more_than_all_players_are_all_of_them():
    rng = np.random.default_rng(0)
    assert metrics.stability(rng.normal(size=(4, 3)), k=9)[1:3] == (1, 100)


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


# -- Labels that are noise


def noisy_table(splits):
    rows = [{"image": f"{n}.png", "label": f"class {n % 6}", "split": split} for n, split in enumerate(splits)]
    table = pd.DataFrame(rows).reindex(columns=COLUMNS, fill_value="")
    table["family"], table["coarse"] = table["label"].str[-1] + "f", table["label"].str[-1] + "c"
    return ProductData("noise", table, sorted(set(table["label"])), {})


def test_training_labels_change_places_and_nothing_else_does():
    data = noisy_table(["train", "test", "val", "train", "train", "train", "test"] * 20)
    before, moved, named = data.table.copy(), metrics.shuffled_labels(data, 0), ["label", "coarse", "family"]
    train = (data.table["split"] == "train").to_numpy()
    pd.testing.assert_frame_equal(data.table, before)
    pd.testing.assert_frame_equal(moved.table[~train], before[~train])
    pd.testing.assert_frame_equal(moved.table.drop(columns=named), before.drop(columns=named))
    assert (moved.table["label"].str[-1] + "f" == moved.table["family"]).all()
    assert (moved.table["label"].str[-1] + "c" == moved.table["coarse"]).all()
    assert sorted(moved.table[train]["label"]) == sorted(before[train]["label"])
    kept = (moved.table["label"] == before["label"])[train].mean()
    assert kept < 0.5 and moved.classes == data.classes
    again, other = (metrics.shuffled_labels(data, seed).table["label"] for seed in (0, 1))
    assert again.equals(moved.table["label"]) and not other.equals(again)


def test_without_a_training_split_there_are_no_labels_to_shuffle():
    with pytest.raises(DataError, match="'noise' has no training split"):
        metrics.shuffled_labels(noisy_table(["test", "val"]), 0)


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


def same(a, b):
    return torch.equal(a, b)


def test_every_weight_is_drawn_anew_and_the_original_stays():
    model = network("lca")
    model.head.scalers["image"].fit(Features.present(torch.rand(9, 512)))
    model.image_encoder.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(5)
    chance = torch.get_rng_state()
    twin = metrics.randomised(model, 1)
    assert torch.equal(torch.get_rng_state(), chance)
    assert all(same(value, before[name]) for name, value in model.state_dict().items())
    kept = [n for n, p in twin.named_parameters() if same(p, model.get_parameter(n))]
    assert kept == []
    assert (twin.head.scalers["image"].std == 1).all() and (twin.head.scalers["image"].mean == 0).all()
    assert (twin.image_encoder.network.bn1.running_mean == 0).all()
    assert same(twin.image_encoder.mean, model.image_encoder.mean)  # how pictures are normalised is no weight
    assert not next(twin.image_encoder.parameters()).requires_grad and next(twin.head.parameters()).requires_grad
    again, other = metrics.randomised(model, 1).state_dict(), metrics.randomised(model, 2).state_dict()
    assert all(same(value, again[name]) for name, value in twin.state_dict().items())
    assert not same(other["head.linear.weight"], again["head.linear.weight"])


def test_a_random_networks_answer_neither_vanishes_nor_explodes():
    for name in ("efficientnet_lite0", "resnet50"):
        model = models.build("image", CLASSES, name, weights=None).eval()
        with torch.no_grad():
            logits = metrics.randomised(model, 0)(torch.rand(2, 3, 64, 64))
        assert logits.isfinite().all() and 1e-3 < logits.abs().max() < 1e6


def test_the_cascade_goes_down_from_the_answer():
    model = network("lca")
    names = [name for name, _ in metrics.stages(model)]
    assert names[:3] == ["head", "pooling", "image_encoder.layer4.1"] and names[-1] == "image_encoder.conv1"
    for top in (0, 1, 3, len(names)):
        twin = metrics.randomised(model, 0, top)
        pairs = zip(metrics.stages(twin), metrics.stages(model), strict=True)
        changed = [
            any(not same(p, q) for p, q in zip(part.parameters(), old.parameters(), strict=True))
            for (_, part), (_, old) in pairs
        ]
        assert changed == [True] * top + [False] * (len(names) - top)
    whole = sum(p.numel() for _, part in metrics.stages(model) for p in part.parameters())
    assert whole == sum(p.numel() for p in model.parameters())


def test_readers_and_plain_networks_have_stages_too():
    torch.manual_seed(0)
    config = {"model_type": "bert", "vocab_size": 9, "hidden_size": 8, "intermediate_size": 8}
    config |= {"num_attention_heads": 2, "num_hidden_layers": 1}
    reader = models.build("text", CLASSES, text_encoder="minilm", text_weights=None, text_config=config)
    assert [name for name, _ in metrics.stages(reader)] == ["head", "text_encoder"]
    twin = metrics.randomised(reader, 0, top=2)
    assert not same(twin.text_encoder.embedding.weight, reader.text_encoder.embedding.weight)
    plain = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1)))
    assert [name for name, _ in metrics.stages(plain)] == ["2.1", "2.0", "0"]


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


@pytest.mark.parametrize("method", ["saliency", "smoothgrad", "integrated_gradients"])
def test_maps_of_a_randomised_model_are_others(method):
    model, images = network(), torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(6) % 3
    options = {"integrated_gradients": {"steps": 4}, "smoothgrad": {"samples": 4}}.get(method, {})
    first, again, random = (
        saliency.attribute(m, images, labels, method, **options) for m in (model, model, metrics.randomised(model, 0))
    )
    assert metrics.rank_correlation(first, again).min() == pytest.approx(1)
    assert abs(metrics.rank_correlation(first, random).mean()) < 0.3
