"""What becomes of words after they were read: barcodes, misread labels and the character error rate."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import compress
from typing import Any

import numpy as np
from rapidfuzz import fuzz
from rapidfuzz.distance import Levenshtein
from scipy.sparse.csgraph import connected_components

from retailkit.data.table import ProductData, Word, read_truth

# Article numbers (GTIN-8 to GTIN-14) name the class. Longer unbroken runs hold one, so they go as well; with
# spaces the limit of 14 keeps the number that follows a barcode ("0 60383 05933 0 500 g").
BARCODE = re.compile(r"(?<!\d)(?:\d(?:[ -]?\d){7,13}|\d{15,})(?!\d)")
CONFUSED = ("O0", "Il", "S5", "B8", "EF", "Z2", "GC", "UV", "ao", "nh", "rt")  # by OCR engines
LOOK_ALIKES = {"1": "l"} | {one: other for a, b in CONFUSED for one, other in ((a, b), (b, a))}
RESEMBLES = 0.5  # similarity of two words, in [0, 1], from which on one may be the other, misread
OVERLAP = 0.3  # of the smaller box: from here on a read word and a printed word are the same place


def redact_barcodes(text: str) -> str:
    """Remove runs of 8 to 14 digits (single spaces and hyphens between them allowed) and longer unbroken ones."""
    return " ".join(BARCODE.sub(" ", text).split())


def kept_apart(text: str) -> str:
    """Return a redacted text of which `redact_barcodes` takes no more: numbers beside a hidden word are no barcode."""
    return text.replace(" ", "  ")


def redact_words(words: Sequence[Word]) -> list[Word]:
    """Remove barcodes from a list of words, also those that spread over several; words left empty are dropped."""
    return [replace(word, text=left) for word, left in zip(words, without_barcodes(words), strict=True) if left]


def without_barcodes(words: Sequence[Word]) -> list[str]:
    """Return the text of each word without barcodes, "" where nothing is left."""
    text = " ".join(word.text for word in words)
    clean = BARCODE.sub(lambda run: "\0" * len(run.group()), text)
    left, start = [], 0
    for word in words:
        left.append(clean[start : start + len(word.text)].replace("\0", ""))
        start += len(word.text) + 1
    return left


def misread(text: str, rate: float, seed: int = 0) -> str:
    """Make a text worse: each character but spaces fails with probability `rate`, in [0, 1].

    A character that fails becomes a look-alike (0 and O, 5 and S, 8 and B, ...) where it has one, else it is lost. The
    same text, rate and seed always give the same result.
    """
    rng = np.random.default_rng([seed, *text.encode()[:64]])
    fails = rng.random(len(text)) < rate
    return "".join(c if c == " " or not bad else LOOK_ALIKES.get(c, "") for c, bad in zip(text, fails, strict=True))


def unreadable(texts: Sequence[str]) -> list[tuple[float, str]]:
    """Return for each text of one class how unreadable it is, in [0, 1], and why; "" where it can be read.

    A text is unreadable if most of it is signs, or if none of its words resembles (`RESEMBLES`) a word that at least
    half of the other texts share. The second needs five texts.
    """
    words = [set(re.findall(r"[^\W\d_]{3,}", text.casefold())) for text in texts]
    counts, found = Counter(word for some in words for word in some), []
    for text, own in zip(texts, words, strict=True):
        signs = 1 - sum(c.isalnum() for c in text) / max(1, len("".join(text.split())))
        usual = [word for word, n in counts.items() if n - (word in own) >= (len(texts) - 1) / 2]
        best = max((fuzz.ratio(word, other) / 100 for word in own for other in usual), default=0.0)
        if signs > 0.5:
            found.append((signs, "more signs than letters and digits"))
        elif usual and len(texts) >= 5 and best < RESEMBLES:
            found.append((1 - best, f"no word like those of its class ({', '.join(sorted(usual)[:3])})"))
        else:
            found.append((0.0, ""))
    return found


def character_errors(truth: Sequence[Word], read: Sequence[Word]) -> tuple[int, int]:
    """Count wrong characters on one image.

    Printed and read words that overlap by `OVERLAP` of the smaller box belong together; each connected group is
    compared as one string without spaces, so that "EXTRALEAN" for "EXTRA LEAN" is no error. A printed word that was not
    read counts in full. Text read where the truth has none (other products, price tags) does not count.

    Returns:
        Levenshtein distance and number of printed characters; case matters, words cropped away do not.
    """
    truth = [word for word in truth if word.box[2] > word.box[0] and word.box[3] > word.box[1]]
    touching = np.zeros((len(truth) + len(read),) * 2, dtype=bool)
    touching[: len(truth), len(truth) :] = same_place([w.box for w in truth], [w.box for w in read], OVERLAP)
    count, groups = connected_components(touching, directed=False)
    edits = 0
    for group in range(count):
        printed = _joined(compress(truth, groups[: len(truth)] == group))
        found = _joined(compress(read, groups[len(truth) :] == group))
        edits += Levenshtein.distance(printed, found) if printed else 0
    return edits, len(_joined(truth))


def error_rate(data: ProductData) -> tuple[float, int]:
    """Return the character error rate over all images with true words that were read, and the number of these words.

    `data` is what `ocr.add_text` returned. The rate is NaN where no word is printed or no image was read.
    """
    if "read" not in data.table:
        return float("nan"), 0
    rows = data.table[data.table["read"] & (data.table["truth"] != "")]  # an image without a word read counts, too
    printed = [read_truth(path)[1]["words"] for path in rows["truth"]]
    counts = [character_errors(truth, read) for truth, read in zip(printed, rows["words"], strict=True)]
    edits, length = np.sum(counts, axis=0) if counts else (0, 0)
    return float(edits / length) if length else float("nan"), sum(map(len, printed))


def same_place(boxes: Any, others: Any, overlap: float) -> np.ndarray:
    """Return (N,M) bool: which boxes (N,4) and others (M,4) share so much of the smaller one; empty ones share none."""
    boxes, others = np.reshape(boxes, (-1, 1, 4)).astype(float), np.reshape(others, (1, -1, 4)).astype(float)
    sides = np.minimum(boxes[..., 2:], others[..., 2:]) - np.maximum(boxes[..., :2], others[..., :2])
    smaller = np.minimum(*((part[..., 2:] - part[..., :2]).clip(0).prod(-1) for part in (boxes, others)))
    shared = sides.clip(0).prod(-1)
    return (shared > 0) & (shared >= overlap * smaller)


def _joined(words: Iterable[Word]) -> str:
    """Join words from left to right, without spaces."""
    return "".join(word.text.replace(" ", "") for word in sorted(words, key=lambda w: w.box[0] + w.box[2]))
