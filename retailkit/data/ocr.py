"""Words on pictures: the OCR engine, its cache, barcode redaction and the character error rate.

The engine is RapidOCR (PP-OCR models inside its wheel, nothing is downloaded).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing, contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
from rapidfuzz.distance import Levenshtein
from scipy.sparse.csgraph import connected_components
from tqdm.auto import tqdm

from retailkit.config import cache_dir
from retailkit.data.table import DataError, ProductData, Word, read_image, read_truth

# Packs stand upright, so the classifier of upside-down lines costs time and loses words; pictures smaller than
# `limit_side_len` are enlarged to it before text is searched.
SETTINGS = {
    "Det.limit_side_len": 512,
    "Global.use_cls": False,
    "EngineConfig.onnxruntime.intra_op_num_threads": 1,
    "EngineConfig.onnxruntime.inter_op_num_threads": 1,
    "Global.log_level": "critical",
}
# Article numbers (GTIN-8 to GTIN-14) name the class. Longer unbroken runs hold one, so they go as well; with
# spaces the limit of 14 keeps the number that follows a barcode ("0 60383 05933 0 500 g").
BARCODE = re.compile(r"(?<!\d)(?:\d(?:[ -]?\d){7,13}|\d{15,})(?!\d)")
OVERLAP = 0.3  # of the smaller box: from here on a read word and a printed word are the same place

_resting: list = []  # engines that wait for work: one is never shared by two threads, and building one takes a while


def read_words(image: np.ndarray) -> list[Word]:
    """Read the words on one picture.

    A line's words get the boxes that the recogniser's columns give; where the engine does not tell words apart
    (scripts read character by character), the line's box is divided in proportion to the characters.

    Args:
        image: (H,W,3) uint8 RGB.

    Returns:
        Words in reading order (lines from top to bottom), with axis-aligned boxes in pixels, barcodes included;
        empty where no text is found.
    """
    with _engine() as engine:
        found = engine(np.ascontiguousarray(image[..., ::-1]), return_word_box=True)
    if not found.txts:
        return []
    lines = zip(found.txts, found.scores, found.boxes, found.word_results, strict=True)
    return [word for line in lines for word in _split_line(*line, shape=image.shape[:2])]


def add_text(
    data: ProductData, limit: int | None = None, jobs: int | None = None, progress: bool = True
) -> ProductData:
    """Return the data set with `text` and `words` read from its pictures, and `read`: whether the engine looked at it.

    Each picture is read once: results are cached by the file's bytes, the settings and the engine's version.
    Barcodes are redacted from both columns. `text` is the words in reading order, joined by spaces. Rows that come
    with a text of their own keep it, and the words that come with it; the engine does not look at them.

    Args:
        data: the data set; it is not changed.
        limit: read at most this many pictures, spread evenly over splits and classes; the others keep an
            empty text. None reads all.
        jobs: threads, each with an engine that computes on one core; None takes one for each core.
        progress: show a bar while pictures are read that are not in the cache.

    Raises:
        DataError: a picture cannot be read; the message names file and row. What was read before is cached.
    """
    table = data.table.copy()
    words = [redact_words(found) if isinstance(found, list) else [] for found in table.get("words", table["text"])]
    rows = _spread(table, limit)
    read = _read_files(data.name, table["image"].iloc[rows], jobs, progress)
    for row in rows:
        words[row] = redact_words(read[row])
    table["words"], table["read"] = words, np.isin(np.arange(len(table)), rows)
    texts = [" ".join(word.text for word in found) for found in words]
    table["text"] = [redact_barcodes(own) or text for own, text in zip(table["text"], texts, strict=True)]
    return replace(data, table=table)


def redact_barcodes(text: str) -> str:
    """Remove runs of 8 to 14 digits (single spaces and hyphens between them allowed) and longer unbroken ones."""
    return " ".join(BARCODE.sub(" ", text).split())


def kept_apart(text: str) -> str:
    """Return a redacted text of which `redact_barcodes` takes no more: numbers beside a hidden word are no barcode."""
    return text.replace(" ", "  ")


def redact_words(words: Sequence[Word]) -> list[Word]:
    """Remove barcodes from a list of words: also those that spread over several words. What is empty then, goes."""
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


PAIRS = ("O0", "Il", "S5", "B8", "EF", "Z2", "GC", "UV", "ao", "nh", "rt")  # that readers take for each other
LOOK_ALIKES = {"1": "l"} | {one: other for a, b in PAIRS for one, other in ((a, b), (b, a))}


def misread(text: str, rate: float, seed: int = 0) -> str:
    """Read a text worse than it was read: each character but spaces fails with chance `rate`.

    A character that fails becomes a look-alike (0 and O, 5 and S, 8 and B, ...) where it has one, else it is lost.

    Args:
        text: what was read.
        rate: in [0, 1].
        seed: the same text and seed always give the same result.
    """
    rng = np.random.default_rng([seed, *text.encode()[:64]])
    fails = rng.random(len(text)) < rate
    return "".join(c if c == " " or not bad else LOOK_ALIKES.get(c, "") for c, bad in zip(text, fails, strict=True))


def character_errors(truth: Sequence[Word], read: Sequence[Word]) -> tuple[int, int]:
    """Count wrong characters on one picture.

    Printed and read words that overlap by `OVERLAP` of the smaller box belong together; what hangs together so is
    compared as one string without spaces, so that "EXTRALEAN" for "EXTRA LEAN" is no error. A printed word that
    nobody read counts in full. Text read where the truth has none (neighbours, price tags) does not count.

    Returns:
        Levenshtein distance and number of printed characters; case matters, words cropped away do not.
    """
    truth = [word for word in truth if word.box[2] > word.box[0] and word.box[3] > word.box[1]]
    count, groups = connected_components(_touching(truth, read), directed=False)
    edits = 0
    for group in range(count):
        printed = _joined(word for word, g in zip(truth, groups[: len(truth)], strict=True) if g == group)
        found = _joined(word for word, g in zip(read, groups[len(truth) :], strict=True) if g == group)
        edits += Levenshtein.distance(printed, found) if printed else 0
    return edits, sum(len(word.text.replace(" ", "")) for word in truth)


def error_rate(data: ProductData) -> tuple[float, int]:
    """Return the character error rate over all pictures with true words that were read, and how many words that was.

    Args:
        data: what `add_text` returned, of a data set with `truth`.

    Returns:
        Rate (NaN where no word is printed, or none was read) and number of printed words.
    """
    if "read" not in data.table:
        return float("nan"), 0
    rows = data.table[data.table["read"] & (data.table["truth"] != "")]  # nothing found on one is an error, too
    printed = [read_truth(path)[1]["words"] for path in rows["truth"]]
    counts = [character_errors(truth, read) for truth, read in zip(printed, rows["words"], strict=True)]
    edits, length = np.sum(counts, axis=0) if counts else (0, 0)
    return float(edits / length) if length else float("nan"), sum(map(len, printed))


@contextmanager
def _engine() -> Iterator[Callable]:
    """Lend an engine, a rested one if there is one."""
    try:
        engine = _resting.pop()
    except IndexError:
        from rapidocr import RapidOCR

        engine = RapidOCR(params=SETTINGS)
    try:
        yield engine
    finally:
        _resting.append(engine)


def _split_line(text: str, score: float, quad: np.ndarray, found: Sequence, shape: tuple[int, int]) -> list[Word]:
    """Turn one line as the engine reports it into words.

    Args:
        text: the line.
        score: confidence of the line.
        quad: (4,2) corners from the top left, clockwise.
        found: (text, confidence, quad) of its parts, as the engine cut them.
        shape: (H,W) of the picture, to which boxes are clipped.
    """
    parts = text.split()
    if [part for part, _, _ in found] != parts:
        quads = _divide(np.asarray(quad, dtype=float), text)
        found = [(part, score, q) for part, q in zip(parts, quads, strict=True)]
    return [Word(part, _bounds(q, shape), min(float(conf), 1.0)) for part, conf, q in found]


def _divide(quad: np.ndarray, text: str) -> list[np.ndarray]:
    """Cut a line's quad (4,2) into those of its words, each character being equally wide."""
    top_left, top_right, bottom_right, bottom_left = quad
    at = lambda a, b, share: a + (b - a) * share  # noqa: E731
    spans = [(m.start() / len(text), m.end() / len(text)) for m in re.finditer(r"\S+", text)]
    return [
        np.array(
            [
                at(top_left, top_right, x0),
                at(top_left, top_right, x1),
                at(bottom_left, bottom_right, x1),
                at(bottom_left, bottom_right, x0),
            ]
        )
        for x0, x1 in spans
    ]


def _bounds(quad: Sequence, shape: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return the axis-aligned box around a quad, clipped to the picture."""
    points = np.clip(np.asarray(quad, dtype=float), 0, (shape[1], shape[0]))
    return (*map(float, points.min(axis=0)), *map(float, points.max(axis=0)))


def _touching(truth: Sequence[Word], read: Sequence[Word]) -> np.ndarray:
    """Return the (N+M,N+M) adjacency of N printed and M read words."""
    t = np.array([word.box for word in truth], dtype=float).reshape(-1, 1, 4)
    r = np.array([word.box for word in read], dtype=float).reshape(1, -1, 4)
    sides = np.minimum(t[..., 2:], r[..., 2:]) - np.maximum(t[..., :2], r[..., :2])
    shared = sides.clip(0).prod(axis=-1)
    area = np.minimum((t[..., 2:] - t[..., :2]).prod(axis=-1), (r[..., 2:] - r[..., :2]).prod(axis=-1))
    graph = np.zeros((len(truth) + len(read),) * 2, dtype=bool)
    graph[: len(truth), len(truth) :] = shared >= OVERLAP * np.maximum(area, 1e-9)
    return graph


def _joined(words: Iterable[Word]) -> str:
    """Join words from left to right, without spaces."""
    return "".join(word.text.replace(" ", "") for word in sorted(words, key=lambda w: w.box[0] + w.box[2]))


def _spread(table, limit: int | None) -> np.ndarray:
    """Return positions of the rows to read: those without a text, `limit` of them in turn from each class."""
    empty = np.flatnonzero(table["text"] == "")
    if limit is None or limit >= len(empty):
        return empty
    turn = table.iloc[empty].groupby(["split", "label"], sort=False).cumcount().to_numpy()
    return np.sort(empty[np.argsort(turn, kind="stable")[:limit]])


def _read_files(name: str, files, jobs: int | None, progress: bool) -> dict[int, list[Word]]:
    """Return the words of each file by its row (the series' index)."""
    keys = {row: _key(name, row, path) for row, path in files.items()}
    with closing(_Cache(cache_dir("ocr") / "words.sqlite")) as cache:
        known = cache.get(set(keys.values()))
        missing = {key: row for row, key in keys.items() if key not in known}
        with ThreadPoolExecutor(jobs or os.cpu_count()) as pool:
            tasks = {pool.submit(_read_file, name, row, files[row]): key for key, row in missing.items()}
            shown = {"desc": "OCR", "mininterval": 2, "disable": not (progress and tasks), "leave": False}
            bar = tqdm(as_completed(tasks), total=len(tasks), **shown)
            try:
                for task in bar:
                    known[tasks[task]] = task.result()
                    cache.put(tasks[task], task.result())
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return {row: known[key] for row, key in keys.items()}


def _read_file(name: str, row: int, path: str) -> list[Word]:
    try:
        return read_words(read_image(path))
    except DataError as error:
        raise DataError(f"row {row} of {name!r}: {error}") from None


def _key(name: str, row: int, path: str) -> str:
    """Return what the words of a file depend on, as one digest."""
    recipe = json.dumps([SETTINGS, version("rapidocr"), _RECIPE], sort_keys=True)
    try:
        return hashlib.sha256(recipe.encode() + Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"row {row} of {name!r}: {path}: {error.strerror}; restore the file or drop its row") from None


_RECIPE = 1  # raise when `read_words` changes what it makes of the engine's result


class _Cache:
    """Words by key in one sqlite file, written entry by entry: a kill loses at most the picture at work.

    Several processes may share it. A damaged file is replaced, a damaged entry counts as missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._open()
        except sqlite3.OperationalError:
            raise  # busy or not writable, not damaged
        except sqlite3.DatabaseError:
            path.unlink(missing_ok=True)
            self._open()

    def _open(self) -> None:
        self.base = sqlite3.connect(self.path, timeout=60, isolation_level=None)
        try:
            self.base.execute("CREATE TABLE IF NOT EXISTS words (key TEXT PRIMARY KEY, value TEXT)")
            if (state := self.base.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
                raise sqlite3.DatabaseError(state)
        except sqlite3.DatabaseError:
            self.base.close()
            raise

    def get(self, keys: set[str]) -> dict[str, list[Word]]:
        """Return those of `keys` that are there and sound."""
        found = {}
        for key in keys:
            row = self.base.execute("SELECT value FROM words WHERE key = ?", (key,)).fetchone()
            try:
                found[key] = [Word(text, tuple(box), conf) for text, box, conf in json.loads(row[0])]
            except (TypeError, ValueError):
                continue
        return found

    def put(self, key: str, words: Sequence[Word]) -> None:
        """Keep the words of one picture."""
        value = json.dumps([[word.text, word.box, word.confidence] for word in words])
        self.base.execute("INSERT OR REPLACE INTO words VALUES (?, ?)", (key, value))

    def close(self) -> None:
        """Let go of the file."""
        self.base.close()
