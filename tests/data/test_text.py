"""Barcodes, misread labels and the character error rate."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from rapidfuzz.distance import Levenshtein

from retailkit import data
from retailkit.data import ocr
from retailkit.data.table import Word, read_truth
from retailkit.data.text import character_errors, error_rate, misread, redact_barcodes, redact_words, unreadable

pytestmark = pytest.mark.usefixtures("own_cache")


def test_misreading_is_as_bad_as_asked_and_repeatable():
    text = "EXTRA LEAN GROUND BEEF 500 G " * 20
    assert misread(text, 0) == text and misread("EXTRA LEAN 1 %", 1.0) == "F F l "
    worse = misread(text, 0.2, seed=1)
    assert worse == misread(text, 0.2, seed=1) != misread(text, 0.2, seed=2)
    wrong = Levenshtein.distance(text, worse) / len(text.replace(" ", ""))
    assert 0.13 < wrong < 0.27 and worse.count(" ") == text.count(" ")


def test_a_text_is_unreadable_if_none_of_its_words_resembles_those_of_its_class():
    texts = [f"HALVORS GROUND BEEF {grade} 500 G" for grade in ("LEAN", "EXTRA LEAN", "MEDIUM", "LEAN", "LEAN")]
    worse = misread(texts[0], 0.3, seed=2)
    found = unreadable([*texts, worse, "XQZW VV1I", "|/. ~'-_", "HALV0RS"])
    assert [bool(reason) for _, reason in found] == [False] * 6 + [True, True, False]
    assert "beef, ground, halvors" in found[6][1] and "signs" in found[7][1]
    assert all(0 <= share <= 1 for share, _ in found)
    assert unreadable(["XQZW", "HALVORS BEEF"]) == [(0.0, "")] * 2, "two texts say nothing about a class"


BARCODES = {
    "LEAN 060383059330 BEEF": "LEAN BEEF",
    "0 60383 05933 0": "",
    "GTIN:4006381333931.": "GTIN: .",
    "40063813-33931": "",
    "0 60383 05933 0 500 g": "500 g",
    "123456789012345678": "",
    "1234567 g": "1234567 g",
    "2,5 % 1 500 g 2025": "2,5 % 1 500 g 2025",
    "": "",
}


@pytest.mark.parametrize(("text", "clean"), BARCODES.items())
def test_runs_of_eight_digits_and_more_are_redacted(text, clean):
    assert redact_barcodes(text) == clean
    words = redact_words([Word(part, (0, 0, 1, 1)) for part in text.split()])
    assert "".join(w.text for w in words) == clean.replace(" ", "")


def line(*texts: str, y: float = 0) -> list[Word]:
    """Words of ten pixels a character, side by side."""
    words, x = [], 0
    for text in texts:
        words.append(Word(text, (x, y, x + 10 * len(text), y + 10)))
        x += 10 * len(text) + 10
    return words


TWO = line("EXTRA", "LEAN")
READINGS = [  # what is printed, what is read, and how many characters are wrong
    (TWO, TWO, 0),
    (TWO, line("EXTRR", "LEAN"), 1),
    (TWO, [Word("EXTRALEAN", (0, 0, 100, 10))], 0),
    ([Word("EXTRALEAN", (0, 0, 100, 10))], TWO[::-1], 0),
    (TWO, line("EXTRA"), 4),
    (line("EXTRA"), line("extra"), 5),
    (line("EXTRA"), line("EXTRA") + line("PRICE", y=50), 0),
    (line("EXTRA"), line("EXTRA", y=50), 5),
    (line("EXTRA"), [], 5),
    ([*line("EXTRA"), Word("GONE", (7, 7, 7, 9))], line("EXTRA"), 0),
    ([], line("x"), 0),
]


@pytest.mark.parametrize(("truth", "read", "edits"), READINGS)
def test_character_errors(truth, read, edits):
    length = sum(len(w.text) for w in truth if w.box[0] < w.box[2])
    assert character_errors(truth, read) == (edits, length)


def test_the_error_rate_of_a_set_is_that_of_all_its_characters(tmp_path):
    shop = data.load("synthetic", tmp_path, per_class=(0, 0, 1), families=1, side=0)
    read = ocr.add_text(shop)
    pairs = [(read_truth(t)[1]["words"], w) for t, w in zip(read.table["truth"], read.table["words"], strict=True)]
    counts = [character_errors(*pair) for pair in pairs]
    rate, words = error_rate(read)
    assert rate == pytest.approx(sum(e for e, _ in counts) / sum(n for _, n in counts)) and rate < 0.5
    assert words == sum(len(truth) for truth, _ in pairs) > 0
    assert math.isnan(error_rate(shop)[0])
    blind = replace(read, table=read.table.assign(words=[[]] * len(read), text=""))
    assert error_rate(blind) == (1.0, words), "where nothing was found, everything is wrong"
    one = ocr.add_text(shop, limit=1)
    assert one.table["read"].sum() == 1 and error_rate(one)[1] < words
