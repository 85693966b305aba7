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
from torch import nn

from retailkit.config import UsageError, UserError
from retailkit.data.table import Word
from retailkit.explain.lime import SHAPES, LocalExplanation, Options, explain, explain_dataset
from retailkit.explain.masking import masks
from retailkit.explain.surrogate import KERNELS, Samples, Surrogate, words_share
from retailkit.inference import Predictor
from retailkit.models import Features

CLASSES = ["lean", "extra lean", "medium"]
SIDE = 24
WORDS = [Word("w0", (0.0, 0.0, 5.5, 3.0), 0.5, True), Word("w1", (np.float32(8), 9.0, 20.0, 15.0))]


class Known(nn.Module):
    """Logits (N,K), or (N,) of the first class alone, are a function of what is kept of image (N,S) and text (N,T)."""

    def __init__(self, function, modalities):
        super().__init__()
        self.function, self.modalities, self.classes = function, modalities, CLASSES
        self.head, self.build_args = SimpleNamespace(answers_without_features=True), {"name": "known"}
        self.register_buffer("version", torch.tensor(0.0))

    def classify(self, image=None, text=None):
        image, text = (None if part is None else part.values.numpy() for part in (image, text))
        logits = np.asarray(self.function(image, text), np.float32)
        return torch.from_numpy(logits if logits.ndim == 2 else logits[:, None] * np.eye(3, dtype=np.float32)[0])


class Puzzle(Predictor):
    """Sees in an image, white on grey, which of its superpixels are left, and in a text which of its words are."""

    def __init__(self, function, segments, words, labels=None):
        self.labels = np.arange(SIDE**2).reshape(SIDE, SIDE) * segments // SIDE**2 if labels is None else labels
        self.words, self.size = [f"w{n}" for n in range(words)], SIDE
        self.model = Known(function, tuple(m for m, n in (("image", segments), ("text", words)) if n))
        self.seen = self.read = 0  # masked images and texts
        self.image = torch.ones(3, SIDE, SIDE) if segments else None
        self.own = {"segments": self.labels, "baseline": "grey", "feather": 0, "classes": "lean", "contrast": None}

    def encode_perturbed(self, image, masks, baseline):
        self.seen += len(masks)
        shown = (baseline + masks * (image - baseline))[:, 0].flatten(1).double().numpy()
        left = np.stack([np.bincount(self.labels.ravel(), row) for row in shown]) / np.bincount(self.labels.ravel())
        return Features.present(torch.from_numpy(2 * left - 1))

    def encode_text(self, texts):
        self.read += len(texts)
        left = [[float(word in text.split()) for word in self.words] for text in texts]
        return Features(torch.tensor(left, dtype=torch.float64), torch.tensor([bool(text) for text in texts]))

    def explain(self, words=None, **options):
        return explain(self, self.image, words or " ".join(self.words), progress=False, **(self.own | options))


def additive(image=(), text=()):
    """3 plus the weights of what is kept."""
    return lambda seen, read: 3 + sum(p @ np.array(w, float) for p, w in ((seen, image), (read, text)) if len(w))


def tangled(features, seed=0):
    """A small random network of all that is kept."""
    rng = np.random.default_rng(seed)
    into, out = rng.normal(size=(features, 6)), rng.normal(size=6)
    return lambda *kept: np.tanh((np.hstack([p for p in kept if p is not None]) - 0.5) @ into) @ out


def joint(explanation, row=0):
    return np.concatenate([explanation.image_weights[row], explanation.text_weights[row]])


def ends(explanation):
    return np.concatenate([explanation.image_intervals[0], explanation.text_intervals[0]])


def least_squares(found, kernel, values=None):
    kept, values = found.samples.kept, found.samples.logits[:, 0] if values is None else values
    return LinearRegression().fit(kept, values.astype(float), sample_weight=KERNELS[kernel](kept)).coef_


# -- The fit.


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("counts", [(14, 5), (14, 0), (0, 14)])
def test_linear_weights_are_found(counts, kernel):
    rng = np.random.default_rng(5)
    image, text = (rng.normal(size=n) for n in counts)
    found = Puzzle(additive(image, text), *counts).explain(kernel=kernel, budget=120)
    assert found.image_weights[0] == pytest.approx(image, abs=1e-5)  # logits are float32
    assert found.text_weights[0] == pytest.approx(text, abs=1e-5)
    assert np.abs(ends(found) - joint(found)[:, None]).max() < 1e-4 and found.r2[0] == pytest.approx(1)
    assert found.nothing == "" and (found.explained, found.contrasts) == ((0,), (-1,))
    share = np.abs(text).sum() / (np.abs(image).sum() + np.abs(text).sum())
    assert [found.share[0], *found.share_intervals[0]] == pytest.approx([share] * 3, abs=1e-4)
    if 0 in counts:
        part = "images" if counts[0] else "texts"
        assert found.evaluations == {"images": 0, "texts": 0, "pairs": 120} | {part: 120}


@pytest.mark.parametrize("kernel", KERNELS)
def test_neighbours_share_strength(kernel):
    labels = np.kron(np.arange(16).reshape(4, 4), np.ones((6, 6), int))
    weights = np.random.default_rng(1).normal(size=16)
    puzzle, spread = Puzzle(additive(weights, [3.0, -1.0]), 16, 2, labels), []
    for smooth in (0, 0.1, 1.0, 1e9):
        found = puzzle.explain(smooth=smooth, kernel=kernel, budget=100)
        grid = found.image_weights[0].reshape(4, 4)
        spread.append(sum((np.diff(grid, axis=axis) ** 2).sum() for axis in (0, 1)))
        assert found.text_weights[0] == pytest.approx([3, -1], abs=0.6)  # words have no neighbours
        assert smooth or grid.ravel() == pytest.approx(weights, abs=2e-6)
    assert grid == pytest.approx(np.full((4, 4), grid.mean()), abs=1e-5)
    assert grid.mean() == pytest.approx(weights.mean(), abs=0.3)
    assert spread[0] > spread[1] > spread[2] > spread[3] and spread[2] > spread[0] / 1000  # whatever the kernel's scale


@pytest.mark.parametrize("counts", [(4, 4), (6, 2), (8, 0), (0, 7)])
def test_all_masks_give_shapley_values(counts):
    value, features = tangled(sum(counts)), sum(counts)
    found, wanted = Puzzle(value, *counts).explain(kernel="shap", budget=2000), np.zeros(features)
    for player, kept in itertools.product(range(features), itertools.product((0.0, 1.0), repeat=features)):
        without, joined = np.array(kept), np.array(kept)
        without[player], joined[player] = 0, 1
        gain = value(joined[None])[0] - value(without[None])[0]
        wanted[player] += gain / features / comb(features - 1, without.sum()) / 2  # each comes with and without it
    assert joint(found) == pytest.approx(wanted, abs=5e-6)  # the ends are met by a large weight; logits are float32
    assert len(found.samples.pairs) == 2**features
    assert ends(found) == pytest.approx(np.stack([joint(found)] * 2, 1))  # all masks: nothing is left to chance


def test_pairs_are_closed_under_complementing_both_parts_so_that_even_effects_cancel():
    """A product of a centred superpixel and a centred word belongs to no weight of a single feature."""
    puzzle = Puzzle(lambda z, t: 4 * (2 * z[:, 3] - 1) * (2 * t[:, 2] - 1) + z[:, 5], 14, 8)
    found = puzzle.explain(budget=60, kernel="uniform")
    pairs = {tuple(pair) for pair in found.samples.pairs.tolist()}
    assert {(image ^ 1, text ^ 1) for image, text in pairs} == pairs
    assert joint(found) == pytest.approx(np.eye(22)[5], abs=1e-5)


# -- What is explained.


@pytest.fixture
def three():
    """Three classes with weights of their own: everything kept gives 0, 9 and 5."""
    weights = np.random.default_rng(3).normal(size=(13, 3))
    weights[0] += [0, 9, 5] - weights.sum(0)
    return Puzzle(lambda z, t: z @ weights, 13, 0), weights


def test_margins_logits_and_probs(three):
    puzzle, weights = three
    how = {"classes": "top3", "contrast": "runner_up", "budget": 80}
    found = puzzle.explain(**how)
    assert (found.explained, found.contrasts) == ((1, 2, 0), (2, 1, 1))
    assert found.logits == pytest.approx([0, 9, 5], abs=1e-5)
    assert found.probs == pytest.approx(np.exp([0, 9, 5]) / np.exp([0, 9, 5]).sum(), abs=1e-5)
    assert found.image_weights == pytest.approx((weights[:, [1, 2, 0]] - weights[:, [2, 1, 1]]).T, abs=1e-5)
    assert found.question == "why extra lean rather than medium" and (found.row("medium"), found.row(0)) == (1, 2)
    plain = puzzle.explain(**how | {"contrast": None})
    assert plain.image_weights == pytest.approx(weights[:, [1, 2, 0]].T, abs=1e-5)
    assert plain.question == "why extra lean"
    assert puzzle.explain(**how | {"contrast": "lean"}).contrasts == (0, 0, 1)  # lean itself has its runner-up
    for target, of_probs in (("prob", np.positive), ("sqrt_prob", np.sqrt), ("log_prob", np.log)):
        probs = puzzle.explain(**how | {"target": target})
        values = of_probs(torch.from_numpy(probs.samples.logits).double().softmax(1)[:, 1].numpy())
        assert probs.image_weights[0] == pytest.approx(least_squares(probs, "lime", values), abs=1e-8)
    with pytest.raises(UsageError, match="was not explained, only extra lean"):
        puzzle.explain(**how | {"classes": "top1"}).row("lean")


@pytest.mark.parametrize(("options", "message"), [
    ({"budget": 1}, "budget=1: use 2 to 100,000"), ({"budget": 10**9}, "budget=1000000000: use 2 to"),
    ({"kernel": "gauss"}, "unknown kernel .*known: lime, shap, uniform"), ({"target": "logits"}, "unknown target"),
    ({"segments": "slick"}, "did you mean 'slic'"), ({"baseline": "gray"}, "unknown baseline"),
    ({"segments": np.zeros((3, 3), int)}, r"give integers of \(24, 24\)"), ({"classes": []}, "classes is empty"),
    ({"classes": 3}, "out of range; the model has 3: 0 to 2"), ({"token": "letter"}, "unknown kind of token"),
    ({"contrast": "leen"}, "did you mean 'lean'"),
    *(({"classes": c}, "unknown class .*known: extra lean, lean, medium") for c in ("leen", "top0", ["lean", "milk"])),
])  # fmt: skip
def test_wrong_options_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        Puzzle(additive(np.arange(5), np.arange(3)), 5, 3).explain(**options)


@pytest.mark.parametrize("kernel", KERNELS)
def test_another_kernel_needs_no_further_evaluation(kernel):
    puzzle = Puzzle(tangled(17), 14, 3)
    found, fresh = puzzle.explain(budget=100), puzzle.explain(budget=100, kernel=kernel)
    before = puzzle.seen, puzzle.read
    other = found.with_kernel(kernel)
    assert np.array_equal(joint(other), joint(fresh)) and other.options == fresh.options
    assert other.samples is found.samples and (puzzle.seen, puzzle.read) == before


def test_what_the_model_does_not_use_is_left_out():
    looks, reads = Puzzle(additive(np.arange(5.0)), 5, 0), Puzzle(additive((), np.arange(5.0)), 0, 5)
    found = looks.explain("some words here")
    assert found.tokens == () and found.image_weights[0] == pytest.approx(np.arange(5), abs=1e-5)
    found = explain(reads, torch.rand(3, 7, 9), " ".join(reads.words), classes="lean")
    assert (found.image, found.segments, found.heat().tolist()) == (None, None, [[0]]) and found.share[0] == 1
    for puzzle, image, words in ((looks, None, "w0 w1"), (reads, None, None), (reads, looks.image, "")):
        with pytest.raises(UserError, match="nothing to explain by: the model uses"):
            explain(puzzle, image, words, progress=False)


def test_linked_words_are_hidden_with_their_superpixel_of_the_image():
    puzzle = Puzzle(additive(np.arange(1.0, 7), [10.0, 20.0]), 6, 2)
    linked = puzzle.explain([Word("w0", (0, 0, 24, 2)), Word("w1", (3, 3, 3, 3))], link_ocr=True)
    assert linked.text_weights[0] == pytest.approx([10.5, 20], abs=1e-4)
    assert linked.image_weights[0] == pytest.approx([0.5, 2, 3, 4, 5, 6], abs=1e-4)
    heat = linked.heat()
    assert heat[:2] == pytest.approx(10.5, abs=1e-4) and heat[2:4] == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize("kind", [np.asarray, torch.Tensor.double, torch.Tensor.half, torch.Tensor.requires_grad_])
def test_an_image_may_be_a_tensor_or_array_of_any_float(kind):
    puzzle = Puzzle(additive(np.arange(5.0)), 5, 0)
    for inference in (False, True):
        with torch.inference_mode(inference):
            found = explain(puzzle, kind(torch.ones(3, SIDE, SIDE)), **puzzle.own)
        assert found.image_weights[0] == pytest.approx(np.arange(5), abs=1e-5)
    with pytest.raises(UserError, match=r"the image: values are torch.uint8; give floats in \[0, 1\]"):
        explain(puzzle, np.zeros((3, SIDE, SIDE), np.uint8), **puzzle.own)


# -- How sure it is.


def test_the_share_of_words_that_a_model_ignores_is_corrected_for_noise():
    shares = []
    for seed in range(12):
        network = tangled(20, seed)
        found = Puzzle(lambda z, t, network=network: network(z), 20, 8).explain(budget=150, seed=seed)
        naive = np.abs(found.text_weights).sum() / np.abs(joint(found)).sum()
        shares.append((found.share[0], naive, *found.share_intervals[0]))
    corrected, naive, low, high = np.array(shares).T
    assert not low.any() and corrected.mean() < naive.mean() / 2 and naive.min() > 0.005 and np.median(high) < 0.1


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


@pytest.mark.parametrize("order", ["odd", "even", pytest.param("network", marks=pytest.mark.check)])
def test_intervals_hold_what_many_masks_give(order):
    """No noise but what a straight line misses; complements miss it alike, or in opposite ways."""
    rng = np.random.default_rng(0)
    triples, factors = [rng.choice(16, 3, False) for _ in range(25)], rng.normal(size=25)
    square, network = rng.normal(size=(16, 16)), tangled(16)

    def function(seen, read=None):
        signs = 2 * seen - 1
        if order == "odd":
            return sum(f * signs[:, t].prod(1) for t, f in zip(triples, factors, strict=True))
        return ((signs @ square) * signs).sum(1) if order == "even" else network(seen)

    puzzle, inside = Puzzle(function, 16, 0), []
    everything = np.array(list(itertools.product([0, 1], repeat=16)))
    wanted = LinearRegression().fit(everything, function(everything)).coef_
    for seed in range(12):
        low, high = ends(puzzle.explain(kernel="uniform", budget=160, seed=seed)).T
        inside.append((low - 1e-6 <= wanted) & (wanted <= high + 1e-6))
    assert np.mean(inside) > 0.9


def test_too_few_masks_have_no_intervals():
    """Ten masks of twenty superpixels leave their weights open."""
    found = Puzzle(additive(np.arange(20), [2.0, 3.0]), 20, 2).explain(budget=10)
    assert np.isnan(found.image_intervals).all()
    assert math.isnan(found.share[0]) and found.share_intervals[0].tolist() == [0, 1]
    found = Puzzle(additive(np.arange(20)), 20, 0).explain(budget=2)
    assert np.isnan(found.image_intervals).all() and np.isfinite(found.image_weights).all()


def test_an_explanation_that_fits_worse_than_a_constant_is_not_to_be_shown():
    """Few masks of a function of many interactions gave strong colours at R² -1571, called "a hint"."""
    assert Puzzle(tangled(15), 15, 0).explain(budget=200).verdict() == ""
    parity = Puzzle(lambda z, t: (2 * z - 1).prod(1), 20, 0)
    found = parity.explain(budget=46)
    assert found.r2[0] < 0 and "Raise the budget" in found.verdict() and f"R² {found.r2[0]:.2f}" in found.verdict()
    assert "too few masks" in parity.explain(budget=10).verdict()


def test_a_single_part_cannot_be_explained():
    found = Puzzle(additive([2.0], [5.0, -1.0]), 1, 2).explain()
    assert joint(found) == pytest.approx([2, 5, -1], abs=1e-5) and found.evaluations["images"] == 2
    alone = Puzzle(additive([2.0]), 1, 0).explain()
    assert alone.nothing == "there is only one part to hide" and alone.nothing in alone.verdict()
    assert alone.heat().shape == (SIDE, SIDE) and not alone.heat().any()
    assert np.isnan(alone.r2).all() and alone.evaluations["pairs"] == 0
    assert alone.with_kernel("shap").nothing == alone.refine(50).nothing == alone.nothing
    assert Puzzle(additive((), [2.0]), 0, 1).explain().nothing == alone.nothing


@pytest.mark.parametrize("size", [1.0, 30.0])
def test_rounding_is_not_explained(size):
    """A network answers equal inputs with logits that differ by the rounding of float32, relative to their size."""
    noise = tangled(17)
    puzzle = Puzzle(lambda z, t: size * (1 + 1e-6 * noise(z, t)), 14, 3)
    assert puzzle.explain(budget=60).nothing and not puzzle.explain(budget=60, target="prob").image_weights.any()
    assert not Puzzle(lambda z, t: size * (1 + 1e-3 * noise(z, t)), 14, 3).explain(budget=60).nothing


# -- Refining, and files.


def same(one, other):
    """Assert that two explanations hold the same, but for the rounding of the image in a file."""
    for name in SHAPES:
        a, b = (getattr(e.samples, name.removeprefix("samples.")) if "." in name else getattr(e, name)
                for e in (one, other))  # fmt: skip
        assert a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f"), name
    for name in ("classes", "explained", "contrasts", "tokens", "options", "nothing"):
        assert getattr(one, name) == getattr(other, name), name
    assert np.array_equal(one.heat(), other.heat()) and one.words().equals(other.words())
    assert one.image is other.image is None or torch.allclose(one.image, other.image, atol=1 / 500)


def test_refining_adds():
    puzzle = Puzzle(tangled(22), 14, 8)
    first = puzzle.explain(budget=70)
    assert puzzle.seen == 70 == first.evaluations["images"]
    more, whole = first.refine(50), Puzzle(tangled(22), 14, 8).explain(budget=120)
    assert puzzle.seen == 120 == more.evaluations["images"]  # only those that are new
    for name in ("image_masks", "text_masks"):
        old, new, at_once = (getattr(e.samples, name) for e in (first, more, whole))
        assert np.array_equal(new[: len(old)], old) and np.array_equal(new, at_once)
    pairs = more.samples.pairs
    assert np.array_equal(pairs[: len(first.samples.pairs)], first.samples.pairs)
    assert len(np.unique(pairs, axis=0)) == len(pairs) == pytest.approx(len(whole.samples.pairs), rel=0.1)
    assert more.options == whole.options and more.explained == first.explained
    with pytest.raises(UsageError, match="budget=-1"):
        first.refine(-1)


@pytest.mark.parametrize("more", [{}, {"link_ocr": True}, {"token": "line"}, {"seed": np.int64(3), "budget": 4}])
def test_what_is_saved_is_loaded_and_can_be_refined_with_its_model(tmp_path, more):
    puzzle = Puzzle(tangled(16), 14, 2)
    options = {"classes": ["lean", 2], "contrast": 1, "budget": 60, "smooth": 0.1}
    found = puzzle.explain(WORDS, **options | more)
    found.save(tmp_path / "e.safetensors")
    loaded = LocalExplanation.load(str(tmp_path / "e.safetensors"))
    same(found, loaded)
    assert loaded.masked_model is None and loaded.options.classes == ("lean", 2)
    with pytest.raises(UsageError, match=r"loaded from a file; give its model, as in refine\(budget, model\)"):
        loaded.refine(30)
    puzzle.model.classes = ["milk", "oats", "rice"]
    with pytest.raises(UsageError, match="other classes"):
        loaded.refine(30, puzzle)
    puzzle.model.classes, before = CLASSES, puzzle.seen
    again = loaded.refine(30, puzzle)
    new = puzzle.seen - before  # new masks, though they meet old texts in old images
    assert 20 < new <= (33 if "budget" not in more else 30 + 4)
    same(found.refine(30), again)
    assert again.masked_model is not None


@pytest.mark.parametrize("counts", [(5, 2), (20, 20), (20, 0), (0, 20)])
def test_a_model_that_always_says_the_same_is_saved_as_such(tmp_path, counts):
    found = Puzzle(lambda z, t: np.full(len(t if z is None else z), 4.0), *counts).explain(classes="top2")
    assert found.nothing == "the model says the same whatever is hidden"
    assert not found.heat().any() and not found.heat(1).any() and not joint(found, 1).any()
    assert np.isnan(found.share).all() and np.isnan(found.r2).all()
    assert found.heat().shape == ((SIDE, SIDE) if counts[0] else (1, 1))
    found.save(tmp_path / "e.safetensors")
    same(found, LocalExplanation.load(tmp_path / "e.safetensors"))


def changed(name, change):
    """Damage one array of a file."""

    def damage(path):
        with safe_open(path, "pt") as file:
            facts, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return save(tensors | {name: change(tensors[name])}, facts)

    return damage


DAMAGES = [
    *(lambda path, end=end: path.read_bytes()[:end] for end in (0, 5, 900, -1)),
    lambda path: np.random.default_rng(0).bytes(5000),
    lambda path: path.read_bytes().replace(b'"nothing', b'"nithing'),
    *(lambda path, facts=facts: save({"weight": torch.zeros(3)}, facts) for facts in (
        None, {"explanation": "["}, {"explanation": "[]"}, {"explanation": json.dumps({"units": 3})})),
]  # fmt: skip
MISFITS = [changed(name, lambda array: array[:-1]) for name in (*SHAPES, "segments", "image")]
MISFITS += [changed("samples.pairs", lambda pairs: pairs + 99), changed("segments", lambda labels: labels + 1)]


@pytest.mark.parametrize(("damage", "why"), [*((d, "") for d in DAMAGES), *((d, ".*the rest") for d in MISFITS)])
def test_a_file_that_is_none_or_whose_parts_do_not_fit_is_named(tmp_path, damage, why):
    path = tmp_path / "e.safetensors"
    Puzzle(tangled(19), 14, 5).explain(budget=40).save(path)
    path.write_bytes(damage(path))
    with pytest.raises(UserError, match=f"e.safetensors: no explanation{why}"):
        LocalExplanation.load(path)


def test_what_is_no_file_is_named(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, message in ((tmp_path / "none", "none: .*No such file"), (tmp_path, tmp_path.name),
                          (tmp_path / "pipe", "pipe: not a regular file")):  # fmt: skip
        with pytest.raises(UserError, match=message):
            LocalExplanation.load(path)


# -- Data sets.


@pytest.fixture
def shelf(tmp_path):
    """A predictor, photos as a data set gives them, options, and a folder."""
    puzzle, generator, photos = Puzzle(tangled(9), 6, 3), torch.Generator().manual_seed(0), []
    for n, text in enumerate(["w0 w1", "w2", "w1 w2 w0", ""]):
        image = torch.ones(3, SIDE, SIDE) - 0.1 * torch.rand(3, 1, 1, generator=generator)
        words = [Word(word, (at, 0, at + 2, 2)) for at, word in enumerate(text.split())] if n % 2 else []
        photos.append(SimpleNamespace(image=image, words=words, text=text))
    return puzzle, photos, puzzle.own | {"budget": 40}, tmp_path / "kept"


def test_a_data_set_is_explained_once_and_a_missing_or_damaged_file_is_made_again(shelf):
    puzzle, photos, options, folder = shelf
    first = explain_dataset(puzzle, photos, folder, **options)
    for found, photo in zip(first, photos, strict=True):
        same(found, explain(puzzle, photo.image, photo.words or photo.text, **options, progress=False))
        assert found.masked_model is not None
    before, (gone, broken, *_) = (puzzle.seen, puzzle.read), (files := sorted(folder.iterdir()))
    again = explain_dataset(puzzle, photos, str(folder), **options)
    assert (puzzle.seen, puzzle.read) == before and sorted(folder.iterdir()) == files and len(files) == 4
    assert all(found.masked_model is None for found in again)
    assert explain_dataset(puzzle, photos[:0], folder, **options) == []
    content = broken.read_bytes()
    gone.unlink()
    broken.write_bytes(content[:700])
    with pytest.warns(UserWarning, match=f"{broken.name}.*made again"):
        mended = explain_dataset(puzzle, photos[::-1], folder, **options)[::-1]  # in another order
    assert broken.read_bytes() == content and sum(e.masked_model is not None for e in mended) == 2
    for one, *others in zip(first, again, mended, strict=True):
        for other in others:
            same(one, other)
    assert sorted(folder.iterdir()) == files


def test_what_changes_an_explanation_changes_its_file(shelf):
    puzzle, (photo, *_), options, folder = shelf
    explain_dataset(puzzle, [photo], folder, **options)
    other = Puzzle(puzzle.model.function, 6, 3)
    other.model.version += 1
    changes = [
        (puzzle, {}, {"budget": 42}), (puzzle, {}, {"seed": 1}), (puzzle, {}, {"segments": puzzle.labels[::-1].copy()}),
        (other, {}, {}), (puzzle, {"text": "w1 w0"}, {}), (puzzle, {"image": photo.image * 0.9}, {}),
        (puzzle, {"words": [Word("w0", (0, 0, 1, 1))]}, {}),
    ]  # fmt: skip
    for count, (predictor, change, more) in enumerate(changes, 2):
        sample = SimpleNamespace(**vars(photo) | change)
        (found,) = explain_dataset(predictor, [sample], folder, **options | more)
        assert found.masked_model is not None and len(list(folder.iterdir())) == count


def test_a_photo_that_cannot_be_explained_is_named(shelf, tmp_path):
    reads = Puzzle(additive((), np.arange(3.0)), 0, 3)
    with pytest.raises(UserError, match="photo 3: nothing to explain by: the model uses text"):
        explain_dataset(reads, shelf[1], tmp_path, budget=10)
    assert len(list(tmp_path.iterdir())) == 3
    with pytest.raises(UsageError, match="unknown kernel"):
        explain_dataset(reads, shelf[1], tmp_path, kernel="x")
    with pytest.raises(TypeError, match="n_superpixels"):
        Options(n_superpixels=3)
