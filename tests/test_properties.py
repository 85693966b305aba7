"""What holds for every input: hypothesis draws masks, boxes, superpixels, texts and tables, the same ones each time."""

import io
import json
import math
import unicodedata
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from retailkit.backgrounds import masks
from retailkit.cache import to_json
from retailkit.config import CONTROL, DataError, UserError
from retailkit.data import images, text
from retailkit.data.boxes import Scenes
from retailkit.data.spreadsheet import read_table, write_table
from retailkit.data.table import Word
from retailkit.detection import score
from retailkit.explain import masking, phrases


def always(*strategies):
    """What holds for all that the strategies draw: the same examples in every run."""
    steady = settings(derandomize=True, database=None, deadline=None, max_examples=40)
    return lambda test: steady(given(*strategies)(test))


sides = st.integers(1, 12)
shapes = st.tuples(sides, sides)
bool_masks = shapes.flatmap(lambda shape: arrays.arrays(bool, shape))
pairs = shapes.flatmap(lambda shape: st.tuples(arrays.arrays(bool, shape), arrays.arrays(bool, shape)))
labels = shapes.flatmap(lambda shape: arrays.arrays(np.int64, shape, elements=st.integers(-3, 9)))
letters = st.characters(codec="utf-8", exclude_categories=["Cs"])
any_text = st.text(letters, max_size=20)
marks = st.text("0123456789 -ab%,.O", max_size=30)
corners = st.tuples(*[st.integers(0, 20)] * 4)


def box(corner):
    x, y, width, height = corner
    return (float(x), float(y), float(x + width + 1), float(y + height + 1))


def batch(mask):
    return torch.from_numpy(mask)[None, None]


# -- Masks.


@always(pairs)
def test_iou_of_masks_is_that_of_sets(both):
    one, other = (set(zip(*np.nonzero(mask), strict=True)) for mask in both)
    expected = len(one & other) / len(one | other) if one | other else 1.0
    found = masks.iou(batch(both[0]), batch(both[1])).item()
    assert found == pytest.approx(expected) and found == masks.iou(batch(both[1]), batch(both[0])).item()


@always(bool_masks, st.floats(0, 0.5))
def test_a_mask_shrinks_and_grows_around_itself(mask, amount):
    smaller, larger = (masks.degrade(batch(mask), how, amount)[0, 0].numpy() for how in ("erosion", "dilation"))
    assert not (smaller & ~mask).any() and not (mask & ~larger).any()
    if amount == 0:
        assert (smaller == mask).all() and (larger == mask).all()


@always(bool_masks, st.sampled_from(["npy", "255", "1", "cut-out"]))
def test_a_mask_is_read_as_it_was_written(tmp_path_factory, mask, kind):
    assume(max(mask.shape) <= 100 * min(mask.shape) and mask.any() and (kind != "cut-out" or not mask.all()))
    path = tmp_path_factory.getbasetemp() / ("mask.npy" if kind == "npy" else "mask.png")
    if kind == "npy":
        np.save(path, mask)
    else:
        black = np.zeros((*mask.shape, 3), np.uint8)
        pixels = np.dstack([black, np.uint8(255) * mask]) if kind == "cut-out" else np.uint8(int(kind)) * mask
        images.Image.fromarray(pixels).save(path)
    assert (images.read_mask(path, mask.shape) == mask).all()


# -- Boxes.


@always(st.lists(corners, min_size=1, max_size=5), st.lists(st.tuples(corners, st.integers(0, 9)), max_size=6))
def test_detections_are_ranked_as_a_plain_loop_does(true, detected):
    true, own = [box(c) for c in true], [(box(c), s / 10) for c, s in detected]
    ones = torch.ones(len(true)).long()
    scenes = Scenes(["milk"], [torch.zeros(3, 50, 50)], [(50, 50)], [torch.tensor(true)], [ones])
    boxes, scores = np.array([b for b, _ in own], np.float32).reshape(-1, 4), np.array([s for _, s in own])
    ranking = score.rank([{"boxes": boxes, "scores": scores, "labels": np.ones(len(own), int)}], scenes, 1)
    for column, threshold in enumerate(score.THRESHOLDS):
        free, hits = list(true), []
        for shape, _ in sorted(own, key=lambda one: -one[1]):
            fitting = [b for b in free if overlap(shape, b) >= threshold]
            hits.append(bool(fitting))
            if fitting:
                free.remove(max(fitting, key=lambda b: overlap(shape, b)))
        assert ranking.hits[:, column].tolist() == hits
    assert ((ranking.average_precision() >= 0) & (ranking.average_precision() <= 1 + 1e-9)).all()


def overlap(a, b):
    """Intersection over union of two boxes of whole numbers, as sets of pixels."""
    one, other = ({(x, y) for x in range(int(s[0]), int(s[2])) for y in range(int(s[1]), int(s[3]))} for s in (a, b))
    return len(one & other) / len(one | other)


# -- Superpixels.


@always(labels)
def test_superpixels_keep_their_shapes_and_are_numbered_without_gaps(given_labels):
    found = masking.segment(torch.zeros(3, *given_labels.shape), given_labels)
    assert sorted(set(found.ravel())) == list(range(found.max() + 1))
    assert len({*zip(found.ravel(), given_labels.ravel(), strict=True)}) == found.max() + 1


@always(labels, st.lists(st.tuples(corners, st.booleans()), max_size=4))
def test_words_are_cut_out_of_superpixels(given_labels, places):
    segments = masking.segment(torch.zeros(3, *given_labels.shape), given_labels)
    words = [Word("w", box(c) if full else (3.0, 3.0, 3.0, 3.0)) for c, full in places]
    found, links = masking.cut_out(segments, [masking.Token("w", (word,)) for word in words])
    owner = np.full(segments.shape, -1)
    for number, word in enumerate(words):
        if word.box[0] < word.box[2]:
            x0, y0, x1, y1 = map(int, word.box)
            owner[y0:y1, x0:x1] = number
    assert sorted(set(found.ravel())) == list(range(found.max() + 1))
    for number, link in enumerate(links):
        assert ((found == link) == (owner == number)).all() if link >= 0 else not (owner == number).any()
    outside = owner < 0
    assert (np.unique(segments[outside], return_inverse=True)[1] == found[outside]).all()


# -- Texts.


@always(st.lists(marks, max_size=5))
def test_barcodes_are_removed_and_nothing_else_is(texts):
    words = [Word(t, (0.0, 0.0, 1.0, 1.0)) for t in " ".join(texts).split()]
    left = text.without_barcodes(words)
    joined = " ".join(word.text for word in words)
    for printed, rest in zip(
        [*(word.text for word in words), joined], [*left, text.redact_barcodes(joined)], strict=True
    ):
        assert [c for c in rest if c.isalpha()] == [c for c in printed if c.isalpha()]


@always(any_text, st.integers(0, 99))
def test_a_text_is_misread_the_same_way_each_time(given_text, seed):
    assert text.misread(given_text, 0.0, seed) == given_text
    once = text.misread(given_text, 0.5, seed)
    assert once == text.misread(given_text, 0.5, seed) and len(once) <= len(given_text)


@always(st.lists(st.tuples(st.text("ABCDE01", min_size=1, max_size=8), corners), max_size=5))
def test_words_that_are_read_as_printed_have_no_character_errors(found):
    words = [Word(t, box(c)) for t, c in found]
    edits, count = text.character_errors(words, words)
    assert edits == 0 and count == sum(len(t) for t, _ in found)
    assert text.character_errors(words, []) == (count, count)


readings = st.lists(st.text("ABEILMORS05 3%.", max_size=14), max_size=8)


@always(readings, st.randoms(use_true_random=False))
def test_every_reading_is_in_one_group_of_spellings(texts, order):
    groups = phrases.group(texts)
    shown = Counter(name for t in texts if (name := phrases.normalise(t)))
    held = Counter()
    for found in groups:
        held.update(found.variants)
        assert found.canonical in found.variants and found.count == sum(found.variants.values())
    assert held == shown and sum(len(found.variants) for found in groups) == len(shown)
    mixed = list(texts)
    order.shuffle(mixed)
    assert phrases.group(mixed) == groups
    for t, place in zip(texts, phrases.match(texts, groups), strict=True):
        assert phrases.normalise(t) in groups[place].variants if place >= 0 else not t.strip()


@always(any_text)
def test_spellings_are_normalised_once_and_for_all(given_text):
    once = phrases.normalise(given_text)
    assert phrases.normalise(once) == once or unicodedata.normalize("NFC", given_text.upper()) != given_text.upper()


@always(st.text(st.characters(), max_size=20))
def test_every_message_can_be_printed(given_text):
    shown = str(UserError(given_text))
    assert not CONTROL.search(shown)
    assert all(part in (0x5C, *given_text.encode("utf-8", "backslashreplace")) or chr(part) in "x0123456789abcdef"
               for part in shown.encode())  # fmt: skip


# -- Tables.

cells = st.text(letters.filter(lambda c: not CONTROL.match(c) and c not in "\x0b\x0c\x1c\x1d\x1e\x1f\x85\u2028\u2029"),
                max_size=12)  # fmt: skip


@always(st.lists(st.tuples(cells, cells), min_size=1, max_size=4), st.sampled_from(["label", "image"]))
def test_a_table_comes_back_as_it_was_written_or_is_refused(tmp_path_factory, rows, name):
    path = tmp_path_factory.getbasetemp() / "round.csv"
    frame = pd.DataFrame([("a.png", *row) for row in rows], columns=["first", name, "text"])
    write_table(frame, path)
    try:
        found = read_table(path)
    except DataError as error:
        assert "double quote" in str(error)  # a line in a cell looks like a row
        return
    for row, (first, second, third) in zip(found.to_numpy(), frame.to_numpy(), strict=True):
        assert [row[0], row[2]] == [first, clean(third)]
        assert row[1] == clean(second) or (name == "image" and row[1] == "./" + clean(second))


def clean(cell):
    return unicodedata.normalize("NFC", cell).replace("\r\n", "\n").replace("\r", "\n").strip()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=8,
)


@always(json_values)
def test_what_is_written_as_json_is_standard_json(value):
    def refuse(constant):
        raise AssertionError(constant)

    found = json.loads(to_json(value), parse_constant=refuse)
    assert found == finite(value)


def finite(value):
    if isinstance(value, dict):
        return {name: finite(part) for name, part in value.items()}
    if isinstance(value, list):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


pixels = st.tuples(st.integers(2, 8), st.integers(2, 8), st.just(3)).flatmap(lambda s: arrays.arrays(np.uint8, s))


@always(pixels, st.sampled_from(["PNG", "BMP", "PPM", "TIFF"]))
def test_an_image_without_loss_comes_back_pixel_by_pixel(pixels, kind):
    stream = io.BytesIO()
    images.Image.fromarray(pixels).save(stream, kind)
    stream.seek(0)
    assert (images.read_image(stream) == pixels).all()
