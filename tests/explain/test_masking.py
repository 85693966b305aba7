"""Superpixels, tokens, baselines, masks and the masked model, each against a plain version."""

import functools
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from retailkit import models
from retailkit.config import UsageError, UserError
from retailkit.data.table import Word
from retailkit.explain import masking
from retailkit.explain.masking import (
    SEGMENTERS,
    MaskedModel,
    Token,
    as_predictor,
    baseline_image,
    masks,
    segment,
    tokens_of,
)
from retailkit.inference import Predictor
from retailkit.models.classifier import Features

CLASSES = ["lean", "extra lean", "medium"]
SIDE = 32
QUARTERS = np.kron([[0, 1], [2, 3]], np.ones((SIDE // 2, SIDE // 2), int))
WORDS = [Word("oat", (1, 2, 9, 7)), Word("milk", (20.4, 10.2, 29.5, 14)), Word("bio", (0, 0, 0, 0))]


def picture(side=SIDE, seed=0):
    return torch.rand(3, side, side, generator=torch.Generator().manual_seed(seed))


@functools.cache
def network(name="concat", **options):
    torch.manual_seed(0)
    options = {"text_encoder": "char_ngrams", "weights": None} | options
    model = models.build(name, CLASSES, "timm:test_resnet", **options).eval()
    for layer in model.modules():  # a fresh network says all but the same of everything
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.5, 0.5)
    if model.text_encoder is not None:
        model.text_encoder.prepare(["oat milk bio lean beef", "extra lean ground", "medium milk oat"])
        for scaler in model.head.scalers.values():
            scaler.std.fill_(0.2)
    return model


class Counted(Predictor):
    """A predictor that counts what goes through its encoders."""

    def __init__(self, model, size=SIDE):
        super().__init__(model, size)
        self.pictures, self.read = 0, []

    def encode_perturbed(self, image, masks, baseline):
        self.pictures += len(masks)
        return super().encode_perturbed(image, masks, baseline)

    def encode_text(self, texts):
        self.read += texts
        return super().encode_text(texts)


@pytest.fixture(scope="module")
def both():
    return network()


# -- Superpixels.


@pytest.mark.parametrize("name", SEGMENTERS)
def test_labels_have_no_gaps(name):
    flat = torch.nn.functional.interpolate(picture(4)[None], 40)[0]
    for image in (flat, picture(40), torch.full((3, 40, 40), 0.3), flat[:, :24]):
        labels = segment(image, name, 12)
        assert labels.shape == image.shape[1:] and np.issubdtype(labels.dtype, np.integer)
        assert set(labels.ravel()) == set(range(labels.max() + 1))
        assert np.array_equal(labels, segment(image, name, 12))


def test_boxes_become_segments():
    units = (
        Token("a b", (Word("a", (1.2, 0.0, 2.5, 1.0)), Word("b", (3.0, 2.0, 9.0, 3.1)))),  # leaves the picture
        Token("none", (Word("none", (2.0, 2.0, 2.0, 4.0)),)),  # an empty box
        Token("over", (Word("over", (2.0, 0.0, 3.0, 2.0)),)),  # lies on the first
        Token("away", (Word("away", (-5.0, -5.0, -1.0, 3.0)),)),
    )
    labels, links = masking.cut_out(np.array([[0, 0, 1, 1]] * 4), units)
    assert labels.tolist() == [[0, 2, 3, 1], [0, 0, 3, 1], [0, 0, 1, 2], [0, 0, 1, 2]]
    assert links.tolist() == [2, -1, 3, -1]


def test_labels_are_numbered_without_gaps_or_refused():
    given = np.array([[7, 7, -2], [100, 7, -2]])
    assert segment(torch.rand(3, 2, 3), given).tolist() == [[1, 1, 0], [2, 1, 0]]
    for wrong in (np.zeros((3, 2), int), np.zeros((2, 3))):
        with pytest.raises(UsageError, match=r"segments are .* give integers of \(2, 3\)"):
            segment(torch.rand(3, 2, 3), wrong)
    with pytest.raises(UsageError, match="n_segments=0"):
        segment(picture(), "slic", 0)


# -- Tokens.


def test_words_are_tokens():
    units = tokens_of(WORDS)
    assert [u.text for u in units] == ["oat", "milk", "bio"] and [u.words for u in units] == [(w,) for w in WORDS]
    assert tokens_of(None) == tokens_of([]) == tokens_of("") == tokens_of("  \n") == ()
    blank = [WORDS[0], Word("  ", (10, 2, 12, 7)), WORDS[1]]
    assert [u.text for u in tokens_of(blank)] == [u.text for u in tokens_of(blank, "line")] == ["oat", "milk"]


def test_lines_are_words_side_by_side():
    words = [
        Word("whole", (10, 10, 40, 20)),
        Word("grain", (50, 12, 80, 22)),  # a character's space
        Word("oats", (84, 9, 99, 19)),
        Word("500", (130, 10, 150, 20)),  # far away
        Word("g", (152, 30, 160, 40)),  # on the next line
        Word("net", (100, 30, 130, 40)),  # to the left of the word before
        Word("huge", (131, 0, 190, 90)),  # as high as all lines: half of the smaller one's height decides
    ]
    assert [u.text for u in tokens_of(words, "line")] == ["whole grain oats", "500", "g", "net huge"]
    assert tokens_of(words, "line")[0].words == tuple(words[:3])


# -- Baselines.


def test_the_mean_is_that_of_each_segment():
    image, labels = picture(), np.random.default_rng(0).integers(0, 5, (SIDE, SIDE))
    filled = baseline_image(image, labels, "mean")
    for label, channel in itertools.product(range(5), range(3)):
        here = torch.from_numpy(labels == label)
        assert filled[channel][here].numpy() == pytest.approx(float(image[channel][here].double().mean()), abs=1e-6)


def test_inpainting_takes_the_surroundings():
    image, labels = torch.full((3, SIDE, SIDE), 0.4), np.zeros((SIDE, SIDE), int)
    labels[10:16, 8:20] = 1
    image[:, 10:16, 8:20] = picture()[:, 10:16, 8:20]
    filled = baseline_image(image, labels, "inpaint")
    assert filled[:, 10:16, 8:20].numpy() == pytest.approx(0.4, abs=2.1 / 255)  # bytes, rounded twice
    image[:, 10:16, 8:20] = 1.0
    again = baseline_image(image, labels, "inpaint")
    assert torch.equal(again[:, 10:16, 8:20], filled[:, 10:16, 8:20]), "something leaks"


def test_rounding_of_a_baseline_hides_nothing():
    """An even image and its blurred copy differ by 1e-7, which a network's answers show and R² took for a fit."""
    image = torch.full((3, SIDE, SIDE), 0.7)
    for name in ("mean", "blur"):
        assert torch.equal(baseline_image(image, QUARTERS, name), image)
    assert not torch.equal(baseline_image(picture(), QUARTERS, "blur"), picture())


# -- Masks.


@pytest.mark.parametrize("features", [13, 16, 40])
def test_masks_are_pairs_of_complements_in_which_features_are_uncorrelated(features):
    order = 1 << features.bit_length()
    rows = masks(features, 2 + 4 * order)
    assert rows[0].all() and len(np.unique(rows, axis=0)) == len(rows) and np.array_equal(rows[::2], ~rows[1::2])
    signs = 2 * rows[2 : 2 + 2 * order].astype(int) - 1
    assert np.array_equal(signs.T @ signs, len(signs) * np.eye(features, dtype=int)) and not signs.sum(0).any()
    assert np.array_equal(masks(features, 51), rows[:50]) and not np.array_equal(masks(features, 51, 1), rows[:50])


@pytest.mark.parametrize("features", [2, 8, 12])
def test_few_features_have_all_their_masks(features):
    rows = masks(features, 10_000)
    assert len(rows) == len(np.unique(rows, axis=0)) == 2**features and rows[0].all()
    half = len(rows) // 2
    assert np.array_equal(rows[::2], ~rows[1::2]) and np.array_equal(masks(features, half), rows[:half])


# -- The masked model.


def every_mask(players):
    return np.array(list(itertools.product([True, False], repeat=players)), dtype=bool).reshape(-1, players)


def all_pairs(game):
    image, text = every_mask(game.n_segments), every_mask(game.n_tokens)
    return np.repeat(image, len(text), 0), np.tile(text, (len(image), 1))


def test_pairs_say_what_the_model_says_of_each(both):
    image, tokens = picture(), tokens_of(WORDS)
    game = MaskedModel(Counted(both), image, QUARTERS, tokens, feather=0)
    pairs = all_pairs(game)
    found, wanted, baseline = game.logits(*pairs), [], baseline_image(image, QUARTERS, "mean")
    for seen, read in zip(*pairs, strict=True):
        shown = torch.where(torch.from_numpy(seen[QUARTERS]), image, baseline)
        with torch.inference_mode():
            wanted.append(
                both(shown[None], [" ".join(t.text for t, keep in zip(tokens, read, strict=True) if keep)])[0]
            )
    wanted = torch.stack(wanted).numpy()
    assert found.dtype == np.float32 and found.shape == (128, 3)
    assert found == pytest.approx(wanted, abs=1e-4) and np.ptp(wanted, axis=0).min() > 0.1
    assert np.ptp(found.reshape(16, 8, 3), axis=0).min() > 1e-3 and np.ptp(found.reshape(16, 8, 3), axis=1).min() > 1e-3


def test_each_mask_is_encoded_once(both, monkeypatch):
    monkeypatch.setattr(masking, "IMAGES_AT_ONCE", 3)
    monkeypatch.setattr(masking, "PAIRS_AT_ONCE", 10)
    predictor = Counted(both)
    game = MaskedModel(predictor, picture(), QUARTERS, tokens_of("oat milk oat"))
    image, text = all_pairs(game)
    first = game.logits(image[:40], text[:40])
    assert (predictor.pictures, len(predictor.read)) == (5, 7)  # eight masks of the text, of which two leave "oat"
    again = game.logits(image, text)
    assert np.array_equal(again[:40], first)
    assert predictor.pictures == 16 and len(predictor.read) == len(set(predictor.read))
    order = np.random.default_rng(0).permutation(len(image))
    assert np.allclose(game.logits(image[order], text[order]), again[order], atol=1e-6) and predictor.pictures == 16


@pytest.mark.parametrize("feather", [0.0, 1.0, 2.0, 30.0])
def test_everything_kept_is_the_input_itself(both, feather):
    image = picture()
    game = MaskedModel(Predictor(both, SIDE), image, QUARTERS, tokens_of(WORDS), None, "blur", feather)
    whole, none = game.logits([[True] * 4, [False] * 4], [[True] * 3, [False] * 3])
    with torch.inference_mode():
        own = both(image[None], ["oat milk bio"])[0].numpy()
        empty = both(baseline_image(image, QUARTERS, "blur")[None], [None])[0].numpy()
    assert whole == pytest.approx(own, abs=1e-4) and none == pytest.approx(empty, abs=1e-4)
    assert game.logits([[True] * 4])[0] == pytest.approx(whole, abs=1e-5)  # without masks of the text all is read
    assert torch.allclose(game.images([[True] * 4]), image[None], atol=1e-5)


def test_soft_edges_add_up_to_one():
    def kept(keep, feather=2):
        white = MaskedModel(
            Predictor(network("image"), SIDE), torch.ones(3, SIDE, SIDE), QUARTERS, (), None, "grey", feather
        )
        return 2 * white.images(keep)[:, 0].numpy() - 1

    alone = kept(np.eye(4, dtype=bool))
    assert alone.sum(0) == pytest.approx(1, abs=1e-5) and 0.4 < alone[0, 4, 15] < 0.6
    assert alone[0, 0, 0] == pytest.approx(1) and alone[0, 31, 31] == 0
    # not as one superpixel after the other: the seam between two that are kept does not show
    assert kept([[True, True, False, False]])[0, 4] == pytest.approx(1, abs=1e-5)
    assert np.array_equal(kept(np.eye(4, dtype=bool), 0), np.eye(4)[:, QUARTERS])


def test_a_superpixel_is_hidden_as_the_masked_model_hides_it():
    game = MaskedModel(Predictor(network("image"), SIDE), picture(), QUARTERS, feather=2)
    shown = masking.hide(picture(), QUARTERS, [0, 3], feather=2)
    assert torch.allclose(shown, game.images([[False, True, True, False]])[0], atol=1e-5)
    assert torch.allclose(masking.hide(picture(), QUARTERS, []), picture(), atol=1e-6)
    mean = baseline_image(picture(), QUARTERS, "mean")
    assert torch.allclose(masking.hide(picture(), QUARTERS, [0, 1, 2, 3]), mean, atol=1e-5)


def linked_model(predictor, segments, tokens):
    """A masked model that hides words on the image together with their text, in grey and with sharp edges."""
    labels, links = masking.cut_out(segments, tokens)
    return MaskedModel(predictor, picture(), labels, tokens, links, "grey", 0)


def test_linked_words_are_hidden_on_the_picture(both):
    image, units = picture(), tokens_of(WORDS)
    predictor = Counted(both)
    linked = linked_model(predictor, QUARTERS, units)
    assert (linked.n_segments, linked.n_tokens) == (4, 3) and linked.links.tolist() == [4, 5, -1]
    keep = np.ones((1, 4), bool), np.array([[True, False, True]])
    shown = linked.images(*keep)[0]
    box = np.zeros((SIDE, SIDE), bool)
    box[10:14, 20:30] = True  # milk: edges go outwards
    assert (shown[:, box] == 0.5).all() and torch.equal(shown[:, ~box], image[:, ~box])
    # a box is no part of the superpixel that it lies on
    shown = linked.images([[False] * 4], [[False, True, False]])[0]
    assert torch.equal(shown[:, box], image[:, box]) and (shown[:, ~box] == 0.5).all()
    free = MaskedModel(predictor, image, QUARTERS, units, None, "grey", 0)
    assert torch.equal(free.images(*keep)[0], image)
    assert (free.links == -1).all() and free.n_segments == 4
    with torch.inference_mode():
        own = both(linked.images(*keep), ["oat bio"]).numpy()
    assert linked.logits(*keep) == pytest.approx(own, abs=1e-4)


def test_areas_are_shares_of_the_picture(both):
    labels = np.zeros((SIDE, SIDE), int)
    labels[:, 8:] = 1
    predictor = Predictor(both, SIDE)
    assert MaskedModel(predictor, picture(), labels, tokens_of(WORDS)).areas.tolist() == [0.25, 0.75]
    linked = linked_model(predictor, labels, tokens_of(WORDS)).areas
    assert linked * SIDE**2 == pytest.approx([256 - 7 * 5, 768 - 1 * 5 - 10 * 4])
    assert MaskedModel(Predictor(network("text")), tokens=tokens_of("a b")).areas.tolist() == []
    assert MaskedModel(predictor, picture()).areas.tolist() == [1.0]


def test_another_baseline_is_the_same_masked_model(both):
    predictor = Counted(both)
    game = MaskedModel(predictor, picture(), QUARTERS, tokens_of("oat milk"))
    masks_ = all_pairs(game)
    game.logits(*masks_)
    read = len(predictor.read)
    other = game.with_baseline("grey")
    fresh = MaskedModel(Predictor(both, SIDE), picture(), QUARTERS, tokens_of("oat milk"), None, "grey")
    assert np.allclose(other.logits(*masks_), fresh.logits(*masks_), atol=1e-5)
    assert len(predictor.read) == read and predictor.pictures == 32
    assert np.abs(game.logits(*masks_) - other.logits(*masks_)).max() > 1e-2


def test_a_reader_that_has_nothing_to_read_says_nothing():
    model = network("text")
    game = MaskedModel(Predictor(model), picture(50), QUARTERS, tokens_of("oat milk"))
    assert (game.image, game.segments, game.n_segments) == (None, None, 0)
    found = game.logits(np.zeros((3, 0), bool), [[True, False], [False, False], [True, True]])
    with torch.inference_mode():
        own = model(None, ["oat", "oat milk"]).numpy()
    assert found[[0, 2]] == pytest.approx(own, abs=1e-6) and not found[1].any()
    assert not game.logits(np.zeros((2, 0), bool), np.zeros((2, 2), bool)).any()
    prior = network("text", missing="prior")
    game = MaskedModel(Predictor(prior), tokens=tokens_of("oat milk"))
    with torch.inference_mode():
        own = prior(None, [None]).numpy()
    assert game.logits(np.zeros((1, 0), bool), [[False, False]]) == pytest.approx(own, abs=1e-6)


def test_a_model_that_only_looks_has_no_tokens():
    predictor = Predictor(network("image"), SIDE)
    game = MaskedModel(predictor, picture(), QUARTERS, tokens_of(WORDS))
    assert game.n_tokens == 0 and game.logits(np.ones((2, 4), bool)).shape == (2, 3)
    # unless hiding them hides something of the picture
    linked = linked_model(predictor, QUARTERS, tokens_of(WORDS))
    assert [u.text for u in linked.tokens] == ["oat", "milk"] and linked.links.tolist() == [4, 5]
    found = linked.logits(np.ones((2, 4), bool), [[True, True], [False, True]])
    with torch.inference_mode():
        own = predictor.model(linked.images([[True] * 4] * 2, [[True] * 2, [False, True]])).numpy()
    assert found == pytest.approx(own, abs=1e-4)
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_masks_of_another_size_are_refused(both):
    game = MaskedModel(Predictor(both, SIDE), picture(), QUARTERS, tokens_of(WORDS))
    for wrong in (((2, 3), (2, 3)), ((2, 4), (2, 4)), ((2, 4), (1, 3)), ((4,), (3,))):
        with pytest.raises(UsageError, match=r"masks are .*; give \("):
            game.logits(*(np.ones(shape, bool) for shape in wrong))


def test_nothing_to_play_with_is_an_error(both):
    for model, given in (
        (network("text"), {"image": picture()}),
        (network("image"), {"tokens": tokens_of("a")}),
        (both, {}),
    ):
        with pytest.raises(UserError, match="nothing to explain by: the model uses"):
            MaskedModel(Predictor(model, SIDE), **given)


# -- Predictors.


def test_a_predictor_for_a_picture(both):
    given, reader = Predictor(both, SIDE), network("text")
    assert as_predictor(given, picture()) is given and as_predictor(given, None) is given
    assert as_predictor(network("image"), picture(40)).size == 40
    assert as_predictor(reader, torch.rand(3, 20, 30)).model is reader  # what it does not look at may have any shape
    assert as_predictor(both, None).model is both


@pytest.mark.parametrize("shape", [(3, 20, 30), (1, 3, 32, 32), (1, 32, 32), (32, 32, 3), (32, 32)])
def test_a_picture_that_is_not_square_is_refused(both, shape):
    for model in (both, Predictor(both, SIDE)):
        with pytest.raises(UserError, match=r"the image is \("):
            as_predictor(model, torch.rand(shape))


def test_numbers_on_both_sides_of_a_hidden_word_stay():
    """Side by side they would look like a barcode, which models never read."""
    reader = network("text")
    game = MaskedModel(Predictor(reader), tokens=tokens_of("1046 lean 2501"))
    with torch.inference_mode():
        both = reader.classify(None, Features(reader.text_encoder(["1046 2501"]), torch.tensor([True])))
    assert torch.allclose(torch.as_tensor(game.logits([[]], [[True, False, True]])), both, atol=1e-5)
