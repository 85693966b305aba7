"""Local explanations of functions of which everything is known: a predictor sees which parts are left, no more."""

import itertools
import json
import math
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save
from scipy.special import comb
from sklearn.linear_model import LinearRegression
from sklearn.metrics import pairwise_distances, r2_score
from torch import nn

from retailkit.config import UsageError, UserError
from retailkit.data.table import Word
from retailkit.explain.lime import LocalExplanation, Options, explain, explain_dataset
from retailkit.explain.masking import masks
from retailkit.explain.surrogate import KERNELS, Samples, Surrogate, words_share
from retailkit.inference import Predictor
from retailkit.models import Features

CLASSES = ["lean", "extra lean", "medium"]
SIDE = 24


class Known(nn.Module):
    """Logits of the first class: a function of what is kept, image (N,S) and text (N,T); of the others: 0."""

    def __init__(self, function, modalities, version=0):
        super().__init__()
        self.function, self.modalities, self.classes = function, modalities, CLASSES
        self.head, self.build_args = SimpleNamespace(answers_without_features=True), {"name": "known"}
        self.register_buffer("version", torch.tensor(float(version)))

    def classify(self, image=None, text=None):
        image, text = (None if part is None else part.values.numpy() for part in (image, text))
        logits = torch.from_numpy(np.asarray(self.function(image, text), float)).float()
        return torch.stack([logits, torch.zeros_like(logits), torch.zeros_like(logits)], 1)


class Seer(Predictor):
    """Recovers from an image, white on grey, which superpixels are left, and from a text which words are."""

    def __init__(self, function, segments, words, modalities, version=0):
        self.model, self.size = Known(function, modalities, version), SIDE
        self.segments, self.vocabulary = segments, words
        self.pictures, self.read = 0, 0

    def encode_perturbed(self, image, masks, baseline):
        self.pictures += len(masks)
        shown = (baseline + masks * (image - baseline))[:, 0].flatten(1).double().numpy()
        flat = self.segments.ravel()
        left = 2 * np.stack([np.bincount(flat, weights=row) for row in shown]) / np.bincount(flat) - 1
        return Features(torch.from_numpy(left), torch.ones(len(left), dtype=torch.bool))

    def encode_text(self, texts):
        self.read += len(texts)
        left = [[float(word in text.split()) for word in self.vocabulary] for text in texts]
        return Features(torch.tensor(left, dtype=torch.float64), torch.tensor([bool(text) for text in texts]))


def stripes(count):
    return (np.arange(SIDE**2) * count // SIDE**2).reshape(SIDE, SIDE)


class Puzzle:
    """A known function of S superpixels and T words, and how it is explained."""

    def __init__(self, function, segments, words, version=0, labels=None):
        self.labels = stripes(segments) if labels is None else labels
        self.words = [f"w{n}" for n in range(words)]
        used = tuple(m for m, count in (("image", segments), ("text", words)) if count)
        self.seer = Seer(function, self.labels, self.words, used, version)
        self.image = torch.ones(3, SIDE, SIDE) if segments else None
        self.own = {"segments": self.labels, "baseline": "grey", "feather": 0, "classes": "lean", "contrast": None}
        self.own |= {"progress": False}

    def explain(self, **options):
        return explain(self.seer, self.image, " ".join(self.words), **(self.own | options))


def additive(image=(), text=()):
    image, text = np.array(image, float), np.array(text, float)

    def function(seen, read):
        return 3 + (seen @ image if len(image) else 0) + (read @ text if len(text) else 0)

    return function


def tangled(segments, words=0, seed=0, width=6):
    """A small random network of the superpixels; of the words, too, if there are any."""
    rng = np.random.default_rng(seed)
    into, out = rng.normal(size=(segments + words, width)), rng.normal(size=width)

    def function(seen, read):
        parts = np.hstack([seen, read] if words else [seen]) - 0.5
        return np.tanh(parts @ into) @ out

    return function


def joint(explanation, row=0):
    return np.concatenate([explanation.image_weights[row], explanation.text_weights[row]])


def ends(explanation, row=0):
    return np.concatenate([explanation.image_intervals[row], explanation.text_intervals[row]])


@pytest.fixture
def linear():
    rng = np.random.default_rng(5)
    image, text = rng.normal(size=14), rng.normal(size=5)
    return Puzzle(additive(image, text), 14, 5), image, text


# -- The fit.


@pytest.mark.parametrize("kernel", KERNELS)
def test_linear_weights_are_found(linear, kernel):
    puzzle, image, text = linear
    found = puzzle.explain(kernel=kernel, budget=120)
    assert found.image_weights[0] == pytest.approx(image, abs=1e-5)  # logits are float32
    assert found.text_weights[0] == pytest.approx(text, abs=1e-5)
    assert np.abs(ends(found) - joint(found)[:, None]).max() < 1e-4 and found.r2[0] == pytest.approx(1)
    assert found.nothing == "" and (found.explained, found.contrasts) == ((0,), (-1,))
    share = np.abs(text).sum() / (np.abs(image).sum() + np.abs(text).sum())
    assert found.share[0] == pytest.approx(share, abs=1e-4)
    assert found.share_intervals[0] == pytest.approx([share, share], abs=1e-4)


@pytest.mark.parametrize("part", ["image", "text"])
def test_a_model_of_one_modality_gets_all_masks_and_exact_weights(part):
    weights = np.random.default_rng(6).normal(size=30)
    puzzle = Puzzle(additive(weights), 30, 0) if part == "image" else Puzzle(additive((), weights), 0, 30)
    found = puzzle.explain(budget=64)
    assert joint(found) == pytest.approx(weights, abs=1e-5) and found.share[0] == (part == "text")
    assert found.evaluations == {"images": 0, "texts": 0, "pairs": 64} | {f"{part}s": 64}


@pytest.mark.parametrize("kernel", ["lime", "uniform"])
@pytest.mark.parametrize("counts", [(14, 6), (15, 0), (3, 2)])
def test_weights_are_those_of_least_squares(counts, kernel):
    puzzle = Puzzle(lambda z, t: sum((p @ np.arange(p.shape[1])) ** 2 / 50 for p in (z, t) if p is not None), *counts)
    found = puzzle.explain(kernel=kernel, budget=150)
    assert joint(found) == pytest.approx(least_squares(found, kernel), abs=1e-7)


def least_squares(found, kernel, values=None):
    kept, values = found.samples.kept, found.samples.logits[:, 0] if values is None else values
    weights = KERNELS[kernel](kept)
    return LinearRegression().fit(kept, values.astype(float), sample_weight=weights).coef_


def test_the_kernel_is_that_of_lime():
    """lime_image: sqrt(exp(-d²/0.25²)) of the cosine distance from the row of ones."""
    kept = masks(20, 200)
    distance = pairwise_distances(kept, np.ones((1, 20)), metric="cosine").ravel()
    assert KERNELS["lime"](kept) == pytest.approx(np.sqrt(np.exp(-(distance**2) / 0.25**2)), abs=1e-12)


@pytest.mark.parametrize("kernel", KERNELS)
def test_neighbours_share_strength(kernel):
    labels = np.kron(np.arange(16).reshape(4, 4), np.ones((6, 6), int))
    weights = np.random.default_rng(1).normal(size=16)
    puzzle = Puzzle(additive(weights, [3.0, -1.0]), 16, 2, labels=labels)
    spread = []
    for smooth in (0, 0.1, 1.0, 1e9):
        found = puzzle.explain(smooth=smooth, kernel=kernel, budget=100)
        grid = found.image_weights[0].reshape(4, 4)
        spread.append(sum((np.diff(grid, axis=axis) ** 2).sum() for axis in (0, 1)))
        assert found.text_weights[0] == pytest.approx([3, -1], abs=0.6)  # words have no neighbours
    assert found.image_weights[0] == pytest.approx(np.full(16, found.image_weights.mean()), abs=1e-5)
    assert found.image_weights.mean() == pytest.approx(weights.mean(), abs=0.3)
    assert spread[0] > spread[1] > spread[2] > spread[3] and spread[2] > spread[0] / 1000  # whatever the kernel's scale
    assert puzzle.explain(smooth=0, kernel=kernel, budget=100).image_weights[0] == pytest.approx(weights, abs=2e-6)


# -- What is explained.


class Logits(Known):
    """Three classes with weights of their own."""

    def __init__(self, weights):
        super().__init__(None, ("image",))
        self.weights = weights

    def classify(self, image=None, text=None):
        return (image.values @ torch.from_numpy(self.weights)).float()


@pytest.fixture
def three():
    puzzle = Puzzle(None, 13, 0)
    weights = np.random.default_rng(3).normal(size=(13, 3))
    weights[0] += [0, 9, 5] - weights.sum(0)  # everything kept: 0, 9 and 5
    puzzle.seer.model = Logits(weights)
    return puzzle, weights


def test_margins_logits_and_probs(three):
    puzzle, weights = three
    how = {"classes": "top3", "contrast": "runner_up", "budget": 80}
    found = puzzle.explain(**how)
    assert (found.explained, found.contrasts) == ((1, 2, 0), (2, 1, 1))
    assert found.logits == pytest.approx([0, 9, 5], abs=1e-5) and found.probs.argmax() == 1
    assert found.probs == pytest.approx(np.exp([0, 9, 5]) / np.exp([0, 9, 5]).sum(), abs=1e-5)
    assert found.image_weights == pytest.approx((weights[:, [1, 2, 0]] - weights[:, [2, 1, 1]]).T, abs=1e-5)
    assert found.question == "why extra lean rather than medium" and (found.row("medium"), found.row(0)) == (1, 2)
    plain = puzzle.explain(**how | {"contrast": None})
    assert plain.image_weights == pytest.approx(weights[:, [1, 2, 0]].T, abs=1e-5)
    assert plain.question == "why extra lean"
    against = puzzle.explain(**how | {"contrast": "lean"})
    assert against.contrasts == (0, 0, 1)  # lean itself has its runner-up
    for target, of_probs in (("prob", np.positive), ("sqrt_prob", np.sqrt), ("log_prob", np.log)):
        probs = puzzle.explain(**how | {"target": target})
        values = of_probs(torch.from_numpy(probs.samples.logits).double().softmax(1)[:, 1].numpy())
        assert probs.image_weights[0] == pytest.approx(least_squares(probs, "lime", values), abs=1e-8)
    with pytest.raises(UsageError, match="was not explained, only extra lean"):
        puzzle.explain(**how | {"classes": "top1"}).row("lean")


@pytest.mark.parametrize("wrong", ["leen", "3", "top", "top0", ["lean", "milk"]])
def test_an_unknown_class_is_refused(three, wrong):
    with pytest.raises(UsageError, match=r"unknown class .*known: extra lean, lean, medium"):
        three[0].explain(classes=wrong)


@pytest.mark.parametrize("kernel", KERNELS)
def test_another_kernel_needs_no_further_evaluation(kernel):
    puzzle = Puzzle(tangled(14, 3), 14, 3)
    found, fresh = puzzle.explain(budget=100), puzzle.explain(budget=100, kernel=kernel)
    before = puzzle.seer.pictures, puzzle.seer.read
    other = found.with_kernel(kernel)
    assert np.array_equal(joint(other), joint(fresh)) and other.options == fresh.options
    assert other.samples is found.samples and (puzzle.seer.pictures, puzzle.seer.read) == before
    with pytest.raises(UsageError, match="known: lime, shap, uniform"):
        found.with_kernel("shapley")


# -- KernelSHAP.


def brute_force(value, players):
    """Shapley values by their definition."""
    found = np.zeros(players)
    for player, kept in itertools.product(range(players), itertools.product((0.0, 1.0), repeat=players)):
        without, joined = np.array(kept), np.array(kept)
        without[player], joined[player] = 0, 1
        weight = players * comb(players - 1, int(without.sum()))
        found[player] += (
            (value(joined) - value(without)) / weight / 2
        )  # each coalition comes with and without the player
    return found


@pytest.mark.parametrize("counts", [(4, 4), (6, 2), (8, 0), (0, 7)])
def test_all_masks_give_shapley_values(counts):
    segments, words = counts
    inner = tangled(segments + words)

    def function(seen, read):
        return inner(np.hstack([part for part in (seen, read) if part is not None]), None)

    found = Puzzle(function, *counts).explain(kernel="shap", budget=2000)
    wanted = brute_force(lambda kept: inner(kept[None], None)[0], segments + words)
    assert joint(found) == pytest.approx(wanted, abs=5e-6)  # the ends are met by a large weight; logits are float32
    assert len(found.samples.pairs) == 2 ** (segments + words)
    assert ends(found) == pytest.approx(np.stack([joint(found)] * 2, 1))  # all masks: nothing is left to chance


def test_pairs_are_closed_under_complementing_both_parts_so_that_even_effects_cancel():
    """A product of a centred superpixel and a centred word belongs to no weight of a single feature."""
    puzzle = Puzzle(lambda z, t: 4 * (2 * z[:, 3] - 1) * (2 * t[:, 2] - 1) + z[:, 5], 14, 8)
    found = puzzle.explain(budget=60, kernel="uniform")
    pairs = {tuple(pair) for pair in found.samples.pairs.tolist()}
    assert {(image ^ 1, text ^ 1) for image, text in pairs} == pairs
    assert joint(found) == pytest.approx(np.eye(22)[5], abs=1e-5)


# -- What the words have to do with it.


def covers(found, share):
    low, high = found.share_intervals[0]
    return low <= share <= high


def test_a_model_that_ignores_the_text():
    shares = []
    for seed in range(12):
        network = tangled(20, seed=seed)
        found = Puzzle(lambda z, t, network=network: network(z, None), 20, 8).explain(budget=150, seed=seed)
        naive = np.abs(found.text_weights).sum() / np.abs(joint(found)).sum()
        shares.append((found.share[0], naive, covers(found, 0), found.share_intervals[0, 1]))
    corrected, naive, covered, high = np.array(shares).T
    assert covered.all() and corrected.mean() < naive.mean() / 2 and naive.min() > 0.005 and np.median(high) < 0.1


# -- How sure it is.


def noisy(seed, share):
    """A surrogate of a linear function with noise per pair, image mask and text mask, and its weights (28,).

    Most parts do nothing, as on real photos; noise alone would make all shares alike.
    """
    rng = np.random.default_rng(seed)
    weights = np.abs(np.random.default_rng(1).normal(size=28)) + 0.2
    weights[2:20] = weights[22:] = 0
    weights[:20] *= (1 - share) / weights[:20].sum() * 28
    weights[20:] *= share / weights[20:].sum() * 28
    images, texts = masks(20, 120, seed), masks(8, 48, seed + 1)
    pairs = np.array(sorted({(i, t) for i in range(120) for t in rng.choice(48, 8, replace=False).tolist()}))
    kept = np.hstack([images[pairs[:, 0]], texts[pairs[:, 1]]])
    by_image, by_text, by_pair = (rng.normal(size=n) for n in (len(images), len(texts), len(pairs)))
    values = (kept @ weights + by_image[pairs[:, 0]] + by_text[pairs[:, 1]] + by_pair)[:, None]
    samples = Samples(images, texts, pairs, values.astype(np.float32))
    return Surrogate(samples, values, np.ones(len(kept)), np.zeros((28, 28))), weights


@pytest.mark.parametrize("share", [0, 0.5, *(pytest.param(share, marks=pytest.mark.check) for share in (0.1, 0.9))])
def test_95_percent_of_intervals_hold_the_weights_and_the_share(share):
    inside, hits, shares = [], 0, []
    for seed in range(40):
        surrogate, weights = noisy(seed, share)
        draws = surrogate.bootstrap(seed)
        low, high = surrogate.intervals(draws)[0].T
        inside.append((low <= weights) & (weights <= high))
        found, intervals = words_share(surrogate.weights, draws, 20)
        shares.append(found[0])
        hits += intervals[0, 0] <= share <= intervals[0, 1]
    inside = np.array(inside)
    assert 0.92 < inside[:, :20].mean() < 0.99 and 0.9 < inside[:, 20:].mean() < 0.99
    assert hits >= 36 and np.mean(shares) == pytest.approx(share, abs=0.045)


def test_too_few_masks_have_no_intervals():
    """Ten masks of twenty superpixels leave their weights open."""
    found = Puzzle(additive(np.arange(20), [2.0, 3.0]), 20, 2).explain(budget=10)
    assert np.isnan(found.image_intervals).all()
    assert math.isnan(found.share[0]) and found.share_intervals[0].tolist() == [0, 1]
    found = Puzzle(additive(np.arange(20)), 20, 0).explain(budget=2)
    assert np.isnan(found.image_intervals).all() and np.isfinite(found.image_weights).all()


@pytest.mark.parametrize("order", ["odd", "even", pytest.param("network", marks=pytest.mark.check)])
def test_intervals_hold_what_many_masks_give(order):
    """No noise but what a straight line misses; complements miss it alike, or in opposite ways."""
    rng = np.random.default_rng(0)
    triples, factors = [rng.choice(16, 3, False) for _ in range(25)], rng.normal(size=25)
    square, network = rng.normal(size=(16, 16)), tangled(16)

    def function(seen, read):
        signs = 2 * seen - 1
        if order == "odd":
            return sum(f * signs[:, t].prod(1) for t, f in zip(triples, factors, strict=True))
        return ((signs @ square) * signs).sum(1) if order == "even" else network(seen, None)

    puzzle = Puzzle(function, 16, 0)
    everything = np.array(list(itertools.product([0, 1], repeat=16)))
    wanted = LinearRegression().fit(everything, function(everything, None)).coef_
    inside = []
    for seed in range(12):
        low, high = ends(puzzle.explain(kernel="uniform", budget=160, seed=seed)).T
        inside.append((low - 1e-6 <= wanted) & (wanted <= high + 1e-6))
    assert np.mean(inside) > 0.9


@pytest.mark.parametrize("kernel", KERNELS)
def test_r2_is_that_of_masks_left_out(kernel):
    found = Puzzle(tangled(15), 15, 0).explain(budget=200, kernel=kernel)
    kept, values = found.samples.kept, found.samples.logits[:, 0].astype(float)
    inner, weights, predicted = kept.any(1) & ~kept.all(1), KERNELS[kernel](kept), np.zeros(200)
    for fold in range(5):
        judged = (np.arange(200) // 2 % 5 == fold) & inner
        fit = LinearRegression().fit(kept[~judged], values[~judged], sample_weight=weights[~judged])
        predicted[judged] = fit.predict(kept[judged])
    wanted = r2_score(values[inner], predicted[inner], sample_weight=weights[inner])
    assert found.r2[0] == pytest.approx(wanted, abs=1e-4) and 0.2 < found.r2[0] < 0.999


def test_an_explanation_that_fits_worse_than_a_constant_is_not_to_be_shown():
    """Few masks of a function of many interactions gave strong colours at R² -1571, called "a hint"."""
    assert Puzzle(tangled(15), 15, 0).explain(budget=200).verdict() == ""
    parity = Puzzle(lambda z, t: (2 * z - 1).prod(1), 20, 0)
    found = parity.explain(budget=46)
    assert found.r2[0] < 0 and "Raise the budget" in found.verdict() and f"R² {found.r2[0]:.2f}" in found.verdict()
    assert "too few masks" in parity.explain(budget=10).verdict()
    assert "is only one part to hide" in Puzzle(additive([2.0]), 1, 0).explain().verdict()


# -- The budget.


def test_refining_adds():
    puzzle = Puzzle(tangled(14, 8), 14, 8)
    first = puzzle.explain(budget=70)
    assert puzzle.seer.pictures == 70 == first.evaluations["images"]
    more, whole = first.refine(50), Puzzle(tangled(14, 8), 14, 8).explain(budget=120)
    assert puzzle.seer.pictures == 120 == more.evaluations["images"]  # only those that are new
    for name in ("image_masks", "text_masks"):
        old, new, at_once = (getattr(e.samples, name) for e in (first, more, whole))
        assert np.array_equal(new[: len(old)], old) and np.array_equal(new, at_once)
    pairs = more.samples.pairs
    assert np.array_equal(pairs[: len(first.samples.pairs)], first.samples.pairs)
    assert len(np.unique(pairs, axis=0)) == len(pairs) == pytest.approx(len(whole.samples.pairs), rel=0.1)
    assert more.options == whole.options and more.explained == first.explained
    with pytest.raises(UsageError, match="budget=-1"):
        first.refine(-1)


# -- Files.


def test_what_is_saved_is_loaded(tmp_path):
    puzzle = Puzzle(tangled(14, 2), 14, 2)
    options = puzzle.own | {"classes": ["lean", 2], "contrast": 1, "budget": 60, "smooth": 0.1}
    for more in ({}, {"link_ocr": True}, {"token": "line"}, {"seed": np.int64(3), "budget": 4}):
        found = explain(puzzle.seer, puzzle.image, WORDS, **options | more)
        found.save(tmp_path / "e.safetensors")
        loaded = LocalExplanation.load(str(tmp_path / "e.safetensors"))
        same(found, loaded)
        assert loaded.masked_model is None and loaded.options.classes == ("lean", 2)
        assert np.array_equal(loaded.heat(), found.heat()) and loaded.words().equals(found.words())
        assert loaded.with_kernel("uniform").options.kernel == "uniform"


def same(one, other):
    for name in LocalExplanation.__dataclass_fields__:
        a, b = getattr(one, name), getattr(other, name)
        if name == "masked_model":
            continue
        if name == "samples":
            for part in ("image_masks", "text_masks", "pairs", "logits"):
                x, y = getattr(a, part), getattr(b, part)
                assert np.array_equal(x, y) and x.dtype == y.dtype
        elif isinstance(a, np.ndarray):
            assert a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f"), name
        elif isinstance(a, torch.Tensor):
            assert torch.allclose(a, b, atol=1 / 500) and a.dtype == b.dtype
        else:
            assert a == b, name


WORDS = [Word("w0", (0.0, 0.0, 5.5, 3.0), 0.5, True), Word("w1", (np.float32(8), 9.0, 20.0, 15.0))]


@pytest.fixture
def saved(tmp_path):
    """The path of a sound file."""
    path = tmp_path / "e.safetensors"
    Puzzle(tangled(14, 5), 14, 5).explain(budget=40).save(path)
    return path


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:5],
        lambda content: content[:900],
        lambda content: content[:-1],
        lambda content: np.random.default_rng(0).bytes(5000),
        lambda content: content.replace(b'"nothing', b'"nithing'),
        lambda content: b"{}",
        *(lambda content, facts=facts: save({"weight": torch.zeros(3)}, facts) for facts in (
            None, {}, {"explanation": "["}, {"explanation": "[]"}, {"explanation": json.dumps({"units": 3})})),
    ],
)  # fmt: skip
def test_a_file_that_is_none_is_named(saved, damage):
    saved.write_bytes(damage(saved.read_bytes()))
    with pytest.raises(UserError, match=r"e.safetensors: no explanation"):
        LocalExplanation.load(saved)


@pytest.mark.parametrize("name", ["r2", "text_weights", "samples.pairs", "samples.logits", "segments", "image"])
def test_parts_that_do_not_fit_are_named(saved, name):
    with safe_open(saved, "pt") as file:
        facts, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    tensors[name] = tensors[name][:-1] if name != "samples.pairs" else tensors[name] + 99
    saved.write_bytes(save(tensors, facts))
    with pytest.raises(UserError, match=r"e.safetensors: no explanation.* does not fit the rest"):
        LocalExplanation.load(saved)


def test_what_is_no_file_is_named(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, message in ((tmp_path / "none", "none: .*No such file"), (tmp_path, tmp_path.name),
                          (tmp_path / "pipe", "pipe: not a regular file")):  # fmt: skip
        with pytest.raises(UserError, match=message):
            LocalExplanation.load(path)


@pytest.mark.parametrize("more", [{}, {"link_ocr": True}])
def test_a_loaded_explanation_can_be_refined_with_its_model(tmp_path, more):
    puzzle = Puzzle(tangled(14, 2), 14, 2)
    options = puzzle.own | {"budget": 50} | more
    found = explain(puzzle.seer, puzzle.image, WORDS, **options)
    found.save(tmp_path / "e.safetensors")
    loaded = LocalExplanation.load(tmp_path / "e.safetensors")
    with pytest.raises(UsageError, match=r"loaded from a file; give its model, as in refine\(budget, model\)"):
        loaded.refine(30)
    puzzle.seer.model.classes = ["milk", "oats", "rice"]
    with pytest.raises(UsageError, match="other classes"):
        loaded.refine(30, puzzle.seer)
    puzzle.seer.model.classes = CLASSES
    before = puzzle.seer.pictures
    more = loaded.refine(30, puzzle.seer)
    assert 20 < puzzle.seer.pictures - before <= 33  # new masks, though they meet old texts in old pictures
    same(found.refine(30), more)
    assert np.array_equal(more.samples.image_masks[:50], found.samples.image_masks) and more.masked_model is not None


# -- Odd inputs.


def test_a_single_segment():
    whole = {"segments": np.zeros((SIDE, SIDE), int)}
    puzzle = Puzzle(additive([2.0], [5.0, -1.0]), 1, 2)
    found = puzzle.explain(**whole)
    assert joint(found) == pytest.approx([2, 5, -1], abs=1e-5) and found.evaluations["images"] == 2
    alone = Puzzle(additive([2.0]), 1, 0).explain(**whole)
    assert alone.nothing == "there is only one part to hide" and not alone.heat().any()
    assert alone.heat().shape == (SIDE, SIDE) and np.isnan(alone.r2).all() and alone.evaluations["pairs"] == 0
    assert alone.with_kernel("shap").nothing == alone.refine(50).nothing == alone.nothing
    assert Puzzle(additive((), [2.0]), 0, 1).explain().nothing == "there is only one part to hide"


@pytest.mark.parametrize("counts", [(5, 2), (20, 20), (20, 0), (0, 20)])
def test_a_model_that_always_says_the_same(tmp_path, counts):
    puzzle = Puzzle(lambda z, t: np.full(len(t if z is None else z), 4.0), *counts)
    found = puzzle.explain(classes="top2")
    assert found.nothing == "the model says the same whatever is hidden"
    assert not found.heat().any() and not found.heat(1).any() and not joint(found, 1).any()
    assert np.isnan(found.share).all() and np.isnan(found.r2).all()
    assert found.heat().shape == ((SIDE, SIDE) if counts[0] else (1, 1))
    found.save(tmp_path / "e.safetensors")
    loaded = LocalExplanation.load(tmp_path / "e.safetensors")
    same(found, loaded)
    assert loaded.nothing and loaded.heat().shape == found.heat().shape
    assert loaded.with_kernel("shap").nothing == loaded.nothing


@pytest.mark.parametrize("size", [1.0, 30.0])
def test_rounding_is_not_explained(size):
    """A network answers equal inputs with logits that differ by the rounding of float32, relative to their size."""
    noise = tangled(14, 3)
    puzzle = Puzzle(lambda z, t: size * (1 + 1e-6 * noise(z, t)), 14, 3)
    assert puzzle.explain(budget=60).nothing and not puzzle.explain(budget=60, target="prob").image_weights.any()
    assert not Puzzle(lambda z, t: size * (1 + 1e-3 * noise(z, t)), 14, 3).explain(budget=60).nothing


@pytest.mark.parametrize(("options", "message"), [
    ({"budget": 1}, "budget=1: use 2 to 100,000"), ({"budget": 10**9}, "budget=1000000000: use 2 to"),
    ({"kernel": "gauss"}, "unknown kernel"), ({"target": "logits"}, "unknown target"),
    ({"segments": "slick"}, "did you mean 'slic'"), ({"baseline": "gray"}, "unknown baseline"),
    ({"segments": np.zeros((3, 3), int)}, r"give integers of \(24, 24\)"), ({"classes": []}, "classes is empty"),
    ({"classes": 3}, "out of range; the model has 3: 0 to 2"), ({"token": "letter"}, "unknown kind of token"),
    ({"contrast": "leen"}, "did you mean 'lean'"),
])  # fmt: skip
def test_wrong_options_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        Puzzle(additive(np.arange(5), np.arange(3)), 5, 3).explain(**options)
    with pytest.raises(TypeError, match="n_superpixels"):
        Options(n_superpixels=3)


def test_what_the_model_does_not_use_is_left_out():
    looks = Puzzle(additive(np.arange(5.0)), 5, 0)
    found = explain(looks.seer, looks.image, "some words here", **looks.own)
    assert found.tokens == () and found.share[0] == 0
    assert found.image_weights[0] == pytest.approx(np.arange(5), abs=1e-5)
    reads = Puzzle(additive((), np.arange(5.0)), 0, 5)
    found = explain(reads.seer, torch.rand(3, 7, 9), " ".join(reads.words), **reads.own | {"segments": "slic"})
    assert (found.image, found.segments, found.heat().tolist()) == (None, None, [[0]]) and found.share[0] == 1
    for puzzle, image, words in ((looks, None, "w0 w1"), (reads, None, None), (reads, looks.image, "")):
        with pytest.raises(UserError, match="nothing to explain by: the model uses"):
            explain(puzzle.seer, image, words, progress=False)


def test_linked_words_are_hidden_with_their_superpixel_of_the_image():
    puzzle = Puzzle(additive(np.arange(1.0, 7), [10.0, 20.0]), 6, 2)
    words = [Word("w0", (0, 0, 24, 2)), Word("w1", (3, 3, 3, 3))]
    linked = explain(puzzle.seer, puzzle.image, words, **puzzle.own | {"link_ocr": True})
    assert linked.text_weights[0] == pytest.approx([10.5, 20], abs=1e-4)
    assert linked.image_weights[0] == pytest.approx([0.5, 2, 3, 4, 5, 6], abs=1e-4)
    heat = linked.heat()
    assert heat[:2] == pytest.approx(10.5, abs=1e-4) and heat[2:4] == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize("kind", [np.asarray, torch.Tensor.double, torch.Tensor.half, torch.Tensor.requires_grad_])
@pytest.mark.parametrize("inference", [False, True])
def test_an_image_may_be_a_tensor_or_array_of_any_float(kind, inference):
    puzzle = Puzzle(additive(np.arange(5.0)), 5, 0)
    with torch.inference_mode(inference):
        found = explain(puzzle.seer, kind(torch.ones(3, SIDE, SIDE)), **puzzle.own)
    assert found.image_weights[0] == pytest.approx(np.arange(5), abs=1e-5)
    with pytest.raises(UserError, match=r"the image: values are torch.uint8; give floats in \[0, 1\]"):
        explain(puzzle.seer, np.zeros((3, SIDE, SIDE), np.uint8), **puzzle.own)


# -- Data sets.


class Photos(list):
    """Samples as a data set gives them."""

    def __init__(self, texts):
        generator = torch.Generator().manual_seed(0)
        for n, text in enumerate(texts):
            image = torch.ones(3, SIDE, SIDE) - 0.1 * torch.rand(3, 1, 1, generator=generator)
            words = [Word(word, (at, 0, at + 2, 2)) for at, word in enumerate(text.split())] if n % 2 else []
            self.append(SimpleNamespace(image=image, words=words, text=text))


@pytest.fixture
def shelf(tmp_path):
    puzzle = Puzzle(tangled(6, 3), 6, 3)
    options = {name: value for name, value in puzzle.own.items() if name != "progress"} | {"budget": 40}
    return puzzle.seer, Photos(["w0 w1", "w2", "w1 w2 w0", ""]), options, tmp_path / "kept"


def test_a_data_set_is_explained_once(shelf):
    seer, photos, options, folder = shelf
    first = explain_dataset(seer, photos, folder, **options)
    assert [[u.text for u in e.tokens] for e in first] == [["w0", "w1"], ["w2"], ["w1", "w2", "w0"], []]
    for found, photo in zip(first, photos, strict=True):
        same(found, explain(seer, photo.image, photo.words or photo.text, **options, progress=False))
    before, files = (seer.pictures, seer.read), sorted(folder.iterdir())
    again = explain_dataset(seer, photos, str(folder), **options)
    assert (seer.pictures, seer.read) == before and sorted(folder.iterdir()) == files and len(files) == 4
    for one, other in zip(first, again, strict=True):
        same(one, other)
        assert one.masked_model is not None and other.masked_model is None
    assert explain_dataset(seer, photos[:0], folder, **options) == []


def test_a_file_that_is_missing_or_damaged_is_made_again(shelf):
    seer, photos, options, folder = shelf
    first = explain_dataset(seer, photos, folder, **options)
    gone, broken, *_ = files = sorted(folder.iterdir())
    gone.unlink()
    content = broken.read_bytes()
    broken.write_bytes(content[:700])
    with pytest.warns(UserWarning, match=f"{broken.name}.*made again"):
        again = explain_dataset(seer, photos[::-1], folder, **options)  # in another order
    assert broken.read_bytes() == content and sum(e.masked_model is not None for e in again) == 2
    for one, other in zip(first, again[::-1], strict=True):
        same(one, other)
    assert sorted(folder.iterdir()) == files


def test_what_changes_an_explanation_changes_its_file(shelf):
    seer, photos, options, folder = shelf
    explain_dataset(seer, photos[:1], folder, **options)
    other = Seer(seer.model.function, seer.segments, seer.vocabulary, seer.model.modalities, version=1)
    photo = SimpleNamespace(**vars(photos[0]))
    changed = [
        (seer, photo, {"budget": 42}),
        (seer, photo, {"seed": 1}),
        (seer, photo, {"segments": seer.segments[::-1].copy()}),
        (other, photo, {}),
        (seer, SimpleNamespace(image=photo.image, words=[], text="w1 w0"), {}),
        (seer, SimpleNamespace(image=photo.image * 0.9, words=[], text=photo.text), {}),
        (seer, SimpleNamespace(image=photo.image, words=[Word("w0", (0, 0, 1, 1))], text=photo.text), {}),
    ]
    for count, (predictor, sample, more) in enumerate(changed, 2):
        (found,) = explain_dataset(predictor, [sample], folder, **options | more)
        assert found.masked_model is not None and len(list(folder.iterdir())) == count


def test_a_photo_that_cannot_be_explained_is_named(tmp_path):
    reads = Puzzle(additive((), np.arange(3.0)), 0, 3)
    with pytest.raises(UserError, match="photo 3: nothing to explain by: the model uses text"):
        explain_dataset(reads.seer, Photos(["w0 w1", "w1 w2", "w2 w0", ""]), tmp_path, budget=10)
    assert len(list(tmp_path.iterdir())) == 3
    with pytest.raises(UsageError, match="unknown kernel"):
        explain_dataset(reads.seer, Photos(["w0 w1"]), tmp_path, kernel="x")
