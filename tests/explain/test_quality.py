"""Pointing games and randomised models against plain versions, and against chance."""

import copy

import numpy as np
import pytest
import torch
from scipy.stats import rankdata
from torch import nn

from retailkit import models
from retailkit.config import UsageError
from retailkit.explain import quality, saliency
from retailkit.models import Features

CLASSES = ["lean", "extra lean", "medium"]


def square(top, left, side, size=20):
    truth = np.zeros((1, size, size), dtype=bool)
    truth[:, top : top + side, left : left + side] = True
    return truth


# -- Pointing


@pytest.mark.parametrize("tolerance", [0, 3])
def test_the_pointing_game_is_the_plain_loop(tolerance):
    rng = np.random.default_rng(0)
    attr = rng.integers(-3, 4, (30, 9, 7)).astype(float)  # many ties
    truth = rng.random((30, 9, 7)) < 0.05
    truth[:2] = False
    found, base = quality.pointing_game(attr, truth, tolerance), quality.chance(truth, tolerance)
    for b in range(30):
        inside = list(zip(*np.nonzero(truth[b]), strict=True))
        if not inside:
            assert np.isnan(found[b]) and np.isnan(base[b])
            continue
        near = [
            [min((y - v) ** 2 + (x - u) ** 2 for v, u in inside) <= tolerance**2 for x in range(7)] for y in range(9)
        ]
        tops = [near[y][x] for y in range(9) for x in range(7) if attr[b, y, x] == attr[b].max()]
        assert found[b] == pytest.approx(sum(tops) / len(tops))
        assert base[b] == pytest.approx(np.mean(near))
    assert np.isnan(found[:2]).all() and not np.isnan(found).all()


def test_a_flat_superpixel_that_touches_the_truth_is_no_full_hit():
    attr = square(0, 0, 10).astype(float)
    assert quality.pointing_game(attr, square(9, 9, 5)) == pytest.approx([0.01])
    assert quality.pointing_game(attr, square(0, 0, 12)) == [1]


def test_energy_is_the_positive_share():
    rng = np.random.default_rng(0)
    attr, truth = rng.normal(size=(5, 6, 8)), rng.random((5, 6, 8)) < 0.3
    truth[3], attr[4] = False, -1
    found = quality.energy_pointing(torch.from_numpy(attr), torch.from_numpy(truth))
    for b in range(3):
        cells = [(attr[b, y, x], truth[b, y, x]) for y in range(6) for x in range(8) if attr[b, y, x] > 0]
        assert found[b] == pytest.approx(sum(v for v, t in cells if t) / sum(v for v, _ in cells))
    assert np.isnan(found[3:]).all()


def test_maps_that_know_nothing_score_chance():
    rng = np.random.default_rng(0)
    truth = np.repeat(square(2, 3, 8), 2000, 0)
    scattered = quality.scattered(np.repeat(truth[:1].astype(float) + rng.random((1, 20, 20)), 2000, 0), seed=0)
    for game in (quality.pointing_game, quality.energy_pointing):
        assert game(scattered, truth).mean() == pytest.approx(quality.chance(truth)[0], abs=0.03)
        assert game(np.ones((1, 20, 20)), truth[:1]) == pytest.approx(quality.chance(truth)[:1])
        assert game(truth[:1].astype(float), truth[:1]) == [1]


def test_scattering_moves_values_within_their_picture():
    rng = np.random.default_rng(0)
    attr = rng.normal(size=(3, 5, 4))
    one, again, other = (quality.scattered(attr, seed) for seed in (0, 0, 1))
    assert np.array_equal(one, again) and not np.array_equal(one, other)
    assert np.array_equal(np.sort(one.reshape(3, -1)), np.sort(attr.reshape(3, -1)))
    assert not np.array_equal(one, attr)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quality.pointing_game(np.ones((2, 4, 4)), np.ones((2, 4, 5))), r"\(2, 4, 4\) and the truth is"),
        (lambda: quality.pointing_game(np.ones((4, 4)), np.ones((4, 4))), r"maps are \(4, 4\); give them as"),
        (lambda: quality.energy_pointing(np.full((1, 2, 2), np.nan), np.ones((1, 2, 2))), "1 of 1 maps hold NaN"),
        (lambda: quality.pointing_game(np.ones((1, 4, 4)), np.ones((1, 4, 4)), -1), "tolerance=-1 is negative"),
        (lambda: quality.rank_correlation(np.ones((1, 4, 4)), np.ones((1, 2, 2))), "at one size"),
        (lambda: quality.randomised(nn.Identity(), 0), "no weights to randomise"),
        (lambda: quality.randomised(network(), 0, top=99), "top=99 is out of range; this model has"),
    ],
)
def test_a_wrong_call_says_what_to_change(call, message):
    with pytest.raises(UsageError, match=message):
        call()


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
    model = network("lca", width=8)
    model.head.scalers["image"].fit(Features(torch.rand(9, 8), torch.ones(9, dtype=torch.bool)))
    model.image_encoder.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(5)
    chance = torch.get_rng_state()
    twin = quality.randomised(model, 1)
    assert torch.equal(torch.get_rng_state(), chance)
    assert all(same(value, before[name]) for name, value in model.state_dict().items())
    kept = [n for n, p in twin.named_parameters() if same(p, model.get_parameter(n))]
    assert kept == []
    assert (twin.head.scalers["image"].std == 1).all() and (twin.head.scalers["image"].mean == 0).all()
    assert (twin.image_encoder.network.bn1.running_mean == 0).all()
    assert same(twin.image_encoder.mean, model.image_encoder.mean)  # how pictures are normalised is no weight
    assert not next(twin.image_encoder.parameters()).requires_grad and next(twin.head.parameters()).requires_grad
    again, other = quality.randomised(model, 1).state_dict(), quality.randomised(model, 2).state_dict()
    assert all(same(value, again[name]) for name, value in twin.state_dict().items())
    assert not same(other["head.linear.weight"], again["head.linear.weight"])


def test_a_random_networks_answer_neither_vanishes_nor_explodes():
    for name in ("efficientnet_lite0", "resnet50"):
        model = models.build("image", CLASSES, name, weights=None).eval()
        with torch.no_grad():
            logits = quality.randomised(model, 0)(torch.rand(2, 3, 64, 64))
        assert logits.isfinite().all() and 1e-3 < logits.abs().max() < 1e6


def test_the_cascade_goes_down_from_the_answer():
    model = network("lca", width=8)
    names = [name for name, _ in quality.stages(model)]
    assert names[:3] == ["head", "pooling", "image_encoder.layer4.1"] and names[-1] == "image_encoder.conv1"
    for top in (0, 1, 3, len(names)):
        twin = quality.randomised(model, 0, top)
        pairs = zip(quality.stages(twin), quality.stages(model), strict=True)
        changed = [
            any(not same(p, q) for p, q in zip(part.parameters(), old.parameters(), strict=True))
            for (_, part), (_, old) in pairs
        ]
        assert changed == [True] * top + [False] * (len(names) - top)
    whole = sum(p.numel() for _, part in quality.stages(model) for p in part.parameters())
    assert whole == sum(p.numel() for p in model.parameters())


def test_readers_and_plain_networks_have_stages_too():
    torch.manual_seed(0)
    config = {"model_type": "bert", "vocab_size": 9, "hidden_size": 8, "intermediate_size": 8}
    config |= {"num_attention_heads": 2, "num_hidden_layers": 1}
    reader = models.build("text", CLASSES, text_encoder="minilm", text_weights=None, text_config=config)
    assert [name for name, _ in quality.stages(reader)] == ["head", "text_encoder"]
    twin = quality.randomised(reader, 0, top=2)
    assert not same(twin.text_encoder.embedding.weight, reader.text_encoder.embedding.weight)
    plain = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1)))
    assert [name for name, _ in quality.stages(plain)] == ["2.1", "2.0", "0"]


@pytest.mark.parametrize("absolute", [False, True])
def test_rank_correlation_is_that_of_the_ranks(absolute):
    rng = np.random.default_rng(0)
    a, b = rng.integers(-4, 5, (4, 6, 5)).astype(float), rng.normal(size=(4, 6, 5))
    b[1], b[2], b[3] = -a[1], a[2] ** 3, 7
    found = quality.rank_correlation(a, torch.from_numpy(b), absolute)
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
        saliency.attribute(m, images, labels, method, **options) for m in (model, model, quality.randomised(model, 0))
    )
    assert quality.rank_correlation(first, again).min() == pytest.approx(1)
    assert abs(quality.rank_correlation(first, random).mean()) < 0.3
