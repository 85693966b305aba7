"""Superpixels, tokens, baselines, masks and the masked model, each against a plain version."""

import itertools

import numpy as np
import pytest
import torch

from retailkit.config import UsageError, UserError
from retailkit.data.table import Word
from retailkit.explain import masking
from retailkit.explain.masking import SEGMENTERS, MaskedModel, Token, as_predictor, baseline_image, masks, tokens_of
from retailkit.inference import Predictor

SIDE = 32
QUARTERS = np.kron([[0, 1], [2, 3]], np.ones((SIDE // 2, SIDE // 2), int))
WORDS = [Word("oat", (1, 2, 9, 7)), Word("milk", (20.4, 10.2, 29.5, 14)), Word("bio", (0, 0, 0, 0))]


class Counted(Predictor):
    """A predictor that counts what goes through its encoders."""

    def __init__(self, model):
        super().__init__(model, SIDE)
        self.seen, self.read = 0, []

    def encode_perturbed(self, image, masks, baseline):
        self.seen += len(masks)
        return super().encode_perturbed(image, masks, baseline)

    def encode_text(self, texts):
        self.read += texts
        return super().encode_text(texts)


@pytest.fixture(scope="module")
def image(pictures):
    return pictures(1, SIDE)[0]


@pytest.fixture(scope="module")
def predictors(network):
    """Return a function that makes a predictor of a model: `concat`, `image` or `text`."""

    def predictor(name, **options):
        model = network(name, **({} if name == "image" else {"text_encoder": "char_ngrams"}), **options)
        if model.text_encoder is not None:
            model.text_encoder.prepare(["oat milk bio lean beef", "extra lean ground", "medium milk oat"])
            for scaler in model.head.scalers.values():
                scaler.std.fill_(0.2)
        return Counted(model)

    return predictor


@pytest.fixture
def both(predictors):
    return predictors("concat")


def answers(predictor, images, texts=None):
    with torch.inference_mode():
        return predictor.model(images, texts).numpy()


# -- Superpixels and tokens.


@pytest.mark.parametrize("name", SEGMENTERS)
def test_labels_have_no_gaps(name, pictures):
    (noise,), flat = pictures(1, 40), torch.nn.functional.interpolate(pictures(1, 4), 40)[0]
    for shown in (flat, noise, torch.full((3, 40, 40), 0.3), flat[:, :24]):
        labels = masking.segment(shown, name, 12)
        assert labels.shape == shown.shape[1:] and np.issubdtype(labels.dtype, np.integer)
        assert set(labels.ravel()) == set(range(labels.max() + 1))
        assert np.array_equal(labels, masking.segment(shown, name, 12))


@pytest.mark.parametrize(("segments", "count", "message"), [
    (np.zeros((3, 2), int), 50, r"segments are .* give integers of \(2, 3\)"),
    (np.zeros((2, 3)), 50, "segments are float64"), ("slic", 0, "n_segments=0"),
])  # fmt: skip
def test_wrong_labels_are_refused(segments, count, message):
    with pytest.raises(UsageError, match=message):
        masking.segment(torch.rand(3, 2, 3), segments, count)


def test_boxes_become_segments():
    tokens = (
        Token("a b", (Word("a", (1.2, 0.0, 2.5, 1.0)), Word("b", (3.0, 2.0, 9.0, 3.1)))),  # leaves the image
        Token("none", (Word("none", (2.0, 2.0, 2.0, 4.0)),)),  # an empty box
        Token("over", (Word("over", (2.0, 0.0, 3.0, 2.0)),)),  # lies on the first
        Token("away", (Word("away", (-5.0, -5.0, -1.0, 3.0)),)),
    )
    labels, links = masking.cut_out(np.array([[0, 0, 1, 1]] * 4), tokens)
    assert labels.tolist() == [[0, 2, 3, 1], [0, 0, 3, 1], [0, 0, 1, 2], [0, 0, 1, 2]]
    assert links.tolist() == [2, -1, 3, -1]


def test_words_are_tokens_and_lines_are_words_side_by_side():
    assert [(t.text, t.words) for t in tokens_of(WORDS)] == [(word.text, (word,)) for word in WORDS]
    assert tokens_of(None) == tokens_of([]) == tokens_of("") == tokens_of("  \n") == ()
    blank = [WORDS[0], Word("  ", (10, 2, 12, 7)), WORDS[1]]
    assert [t.text for t in tokens_of(blank)] == [t.text for t in tokens_of(blank, "line")] == ["oat", "milk"]
    words = [
        Word("whole", (10, 10, 40, 20)),
        Word("grain", (50, 12, 80, 22)),  # a character's space
        Word("oats", (84, 9, 99, 19)),
        Word("500", (130, 10, 150, 20)),  # far away
        Word("g", (152, 30, 160, 40)),  # on the next line
        Word("net", (100, 30, 130, 40)),  # to the left of the word before
        Word("huge", (131, 0, 190, 90)),  # as high as all lines: half of the smaller one's height decides
    ]
    assert [t.text for t in tokens_of(words, "line")] == ["whole grain oats", "500", "g", "net huge"]
    assert tokens_of(words, "line")[0].words == tuple(words[:3])


# -- Baselines.


def test_inpainting_takes_the_surroundings(image):
    shown, labels = torch.full((3, SIDE, SIDE), 0.4), np.zeros((SIDE, SIDE), int)
    labels[10:16, 8:20], filled = 1, []
    for content in (image[:, 10:16, 8:20], 1.0):
        shown[:, 10:16, 8:20] = content
        filled.append(baseline_image(shown, labels, "inpaint")[:, 10:16, 8:20])
    assert filled[0].numpy() == pytest.approx(0.4, abs=2.1 / 255)  # bytes, rounded twice
    assert torch.equal(*filled), "something leaks"
    mean = baseline_image(image, 0 * labels, "mean")  # nothing surrounds the whole image
    assert torch.equal(baseline_image(image, 0 * labels, "inpaint"), mean)


def test_rounding_of_a_baseline_hides_nothing(image):
    """An even image and its blurred copy differ by 1e-7, which a network's answers show and R² took for a fit."""
    even = torch.full((3, SIDE, SIDE), 0.7)
    for name in ("mean", "blur"):
        assert torch.equal(baseline_image(even, QUARTERS, name), even)
    assert not torch.equal(baseline_image(image, QUARTERS, "blur"), image)


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


def all_pairs(masked):
    image, text = (
        np.array(list(itertools.product([True, False], repeat=n)), dtype=bool).reshape(-1, n)
        for n in (masked.n_segments, masked.n_tokens)
    )
    return np.repeat(image, len(text), 0), np.tile(text, (len(image), 1))


def test_pairs_say_what_the_model_says_of_each(both, image):
    tokens = tokens_of(WORDS)
    masked, baseline, wanted = MaskedModel(both, image, QUARTERS, tokens, feather=0), None, []
    pairs, baseline = all_pairs(masked), baseline_image(image, QUARTERS, "mean")
    found = masked.logits(*pairs)
    for seen, read in zip(*pairs, strict=True):
        shown = torch.where(torch.from_numpy(seen[QUARTERS]), image, baseline)
        text = " ".join(token.text for token, keep in zip(tokens, read, strict=True) if keep)
        wanted.append(answers(both, shown[None], [text])[0])
    assert found.dtype == np.float32 and found.shape == (128, 3)
    assert found == pytest.approx(np.stack(wanted), abs=1e-4) and np.ptp(wanted, axis=0).min() > 0.1
    for axis in (0, 1):  # both kinds of masks matter
        assert np.ptp(found.reshape(16, 8, 3), axis=axis).min() > 1e-3


def test_each_mask_is_encoded_once(both, image, monkeypatch):
    monkeypatch.setattr(masking, "IMAGES_AT_ONCE", 3)
    monkeypatch.setattr(masking, "PAIRS_AT_ONCE", 10)
    masked = MaskedModel(both, image, QUARTERS, tokens_of("oat milk oat"))
    images, texts = all_pairs(masked)
    first = masked.logits(images[:40], texts[:40])
    assert (both.seen, len(both.read)) == (5, 7)  # eight masks of the text, of which two leave "oat"
    again = masked.logits(images, texts)
    assert np.array_equal(again[:40], first)
    assert both.seen == 16 and len(both.read) == len(set(both.read))
    order = np.random.default_rng(0).permutation(len(images))
    assert np.allclose(masked.logits(images[order], texts[order]), again[order], atol=1e-6) and both.seen == 16


@pytest.mark.parametrize("feather", [0.0, 1.0, 2.0, 30.0])
def test_everything_kept_is_the_input_itself(both, image, feather):
    masked = MaskedModel(both, image, QUARTERS, tokens_of(WORDS), None, "blur", feather)
    whole, none = masked.logits([[True] * 4, [False] * 4], [[True] * 3, [False] * 3])
    assert whole == pytest.approx(answers(both, image[None], ["oat milk bio"])[0], abs=1e-4)
    empty = baseline_image(image, QUARTERS, "blur")
    assert none == pytest.approx(answers(both, empty[None], [None])[0], abs=1e-4)
    assert masked.logits([[True] * 4])[0] == pytest.approx(whole, abs=1e-5)  # without masks of the text all is read
    assert torch.allclose(masked.images([[True] * 4]), image[None], atol=1e-5)


def test_soft_edges_add_up_to_one(predictors):
    def kept(keep, feather=2):
        white = torch.ones(3, SIDE, SIDE)
        masked = MaskedModel(predictors("image"), white, QUARTERS, (), None, "grey", feather)
        return 2 * masked.images(keep)[:, 0].numpy() - 1

    alone = kept(np.eye(4, dtype=bool))
    assert alone.sum(0) == pytest.approx(1, abs=1e-5) and 0.4 < alone[0, 4, 15] < 0.6
    assert alone[0, 0, 0] == pytest.approx(1) and alone[0, 31, 31] == 0
    # not as one superpixel after the other: the seam between two that are kept does not show
    assert kept([[True, True, False, False]])[0, 4] == pytest.approx(1, abs=1e-5)
    assert np.array_equal(kept(np.eye(4, dtype=bool), 0), np.eye(4)[:, QUARTERS])


def test_a_superpixel_is_hidden_as_the_masked_model_hides_it(predictors, image):
    masked, every = MaskedModel(predictors("image"), image, QUARTERS, feather=2), range(4)
    for hidden in ([0, 3], [], [*every]):
        shown = masked.images([[n not in hidden for n in every]])[0]
        assert torch.allclose(masking.hide(image, QUARTERS, hidden, feather=2), shown, atol=1e-5)


def linked_model(predictor, image, segments):
    """A masked model that hides words on the image together with their text, in grey and with sharp edges."""
    labels, links = masking.cut_out(segments, tokens_of(WORDS))
    return MaskedModel(predictor, image, labels, tokens_of(WORDS), links, "grey", 0)


def test_linked_words_are_hidden_on_the_image(both, image):
    linked = linked_model(both, image, QUARTERS)
    assert (linked.n_segments, linked.n_tokens) == (4, 3) and linked.links.tolist() == [4, 5, -1]
    keep = np.ones((1, 4), bool), np.array([[True, False, True]])
    shown, box = linked.images(*keep), np.zeros((SIDE, SIDE), bool)
    box[10:14, 20:30] = True  # milk: edges go outwards
    assert (shown[0][:, box] == 0.5).all() and torch.equal(shown[0][:, ~box], image[:, ~box])
    assert linked.logits(*keep) == pytest.approx(answers(both, shown, ["oat bio"]), abs=1e-4)
    # a box is no part of the superpixel that it lies on
    alone = linked.images([[False] * 4], [[False, True, False]])[0]
    assert torch.equal(alone[:, box], image[:, box]) and (alone[:, ~box] == 0.5).all()
    free = MaskedModel(both, image, QUARTERS, tokens_of(WORDS), None, "grey", 0)
    assert torch.equal(free.images(*keep)[0], image) and (free.links == -1).all() and free.n_segments == 4


def test_areas_are_shares_of_the_image(both, predictors, image):
    labels = np.zeros((SIDE, SIDE), int)
    labels[:, 8:] = 1
    assert MaskedModel(both, image, labels, tokens_of(WORDS)).areas.tolist() == [0.25, 0.75]
    linked = linked_model(both, image, labels).areas
    assert linked * SIDE**2 == pytest.approx([256 - 7 * 5, 768 - 1 * 5 - 10 * 4])
    assert MaskedModel(predictors("text"), tokens=tokens_of("a b")).areas.tolist() == []
    assert MaskedModel(both, image).areas.tolist() == [1.0]


def test_another_baseline_is_the_same_masked_model(both, image):
    masked = MaskedModel(both, image, QUARTERS, tokens_of("oat milk"))
    pairs = all_pairs(masked)
    before, read = masked.logits(*pairs), len(both.read)
    after = masked.with_baseline("grey").logits(*pairs)
    assert len(both.read) == read and both.seen == 32
    fresh = MaskedModel(both, image, QUARTERS, tokens_of("oat milk"), None, "grey")
    assert np.allclose(after, fresh.logits(*pairs), atol=1e-5) and np.abs(before - after).max() > 1e-2


@pytest.mark.parametrize("missing", [{}, {"missing": "prior"}])
def test_a_model_of_texts_that_has_nothing_to_read_says_nothing_or_its_prior(predictors, pictures, missing):
    reads = predictors("text", **missing)
    masked = MaskedModel(reads, pictures(1, 50)[0], QUARTERS, tokens_of("oat milk"))
    assert (masked.image, masked.segments, masked.n_segments) == (None, None, 0)
    found = masked.logits(np.zeros((3, 0), bool), [[True, False], [False, False], [True, True]])
    assert found[[0, 2]] == pytest.approx(answers(reads, None, ["oat", "oat milk"]), abs=1e-6)
    nothing = answers(reads, None, [None])[0] if missing else np.zeros(3)
    assert found[1] == pytest.approx(nothing, abs=1e-6)
    assert masked.logits(np.zeros((1, 0), bool), [[False, False]])[0] == pytest.approx(nothing, abs=1e-6)


def test_a_model_that_only_looks_has_no_tokens(predictors, image):
    predictor = predictors("image")
    masked = MaskedModel(predictor, image, QUARTERS, tokens_of(WORDS))
    assert masked.n_tokens == 0 and masked.logits(np.ones((2, 4), bool)).shape == (2, 3)
    # unless hiding them hides something of the image
    linked, keep = linked_model(predictor, image, QUARTERS), (np.ones((2, 4), bool), [[True] * 2, [False, True]])
    assert [t.text for t in linked.tokens] == ["oat", "milk"] and linked.links.tolist() == [4, 5]
    found = linked.logits(*keep)
    assert found == pytest.approx(answers(predictor, linked.images(*keep)), abs=1e-4)
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_numbers_on_both_sides_of_a_hidden_word_stay(predictors):
    """Side by side they would look like a barcode, which models never read."""
    reads = predictors("text")
    masked = MaskedModel(reads, tokens=tokens_of("1046 lean 2501"))
    found = masked.logits([[], []], [[True, False, True], [False, False, False]])
    with torch.inference_mode():
        features = masking.Features.present(reads.model.text_encoder(["1046 2501"]))
        assert found[0] == pytest.approx(reads.model.classify(None, features)[0].numpy(), abs=1e-5)


# -- Wrong inputs.


@pytest.mark.parametrize("shapes", [((2, 3), (2, 3)), ((2, 4), (2, 4)), ((2, 4), (1, 3)), ((4,), (3,))])
def test_masks_of_another_size_are_refused(both, image, shapes):
    masked = MaskedModel(both, image, QUARTERS, tokens_of(WORDS))
    with pytest.raises(UsageError, match=r"masks are .*; give \("):
        masked.logits(*(np.ones(shape, bool) for shape in shapes))


@pytest.mark.parametrize(("name", "given"), [("text", "image"), ("image", "tokens"), ("concat", "")])
def test_nothing_that_the_model_uses_is_an_error(predictors, image, name, given):
    known = {"image": image, "tokens": tokens_of("a")}
    with pytest.raises(UserError, match="nothing to explain by: the model uses"):
        MaskedModel(predictors(name), **{given: known[given]} if given else {})


def test_a_predictor_for_an_image(both, predictors, pictures, image):
    text = predictors("text").model
    assert as_predictor(both, image) is both and as_predictor(both, None) is both
    assert as_predictor(both.model, pictures(1, 40)[0]).size == 40
    assert as_predictor(text, torch.rand(3, 20, 30)).model is text  # what it does not look at may have any shape
    assert as_predictor(both.model, None).model is both.model
    for shape in ((3, 20, 30), (1, 3, 32, 32), (1, 32, 32), (32, 32, 3), (32, 32)):
        for given in (both, both.model):
            with pytest.raises(UserError, match=r"the image is \("):
                as_predictor(given, torch.rand(shape))
