"""Words on images: the OCR engine (RapidOCR, whose models come with its wheel) and its cache."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from retailkit.cache import digest, open_file, replacing
from retailkit.config import DataError, UserError, cache_dir
from retailkit.data.images import read_image
from retailkit.data.table import ProductData, Word, bounding_box
from retailkit.data.text import redact_barcodes, redact_words

# Packs stand upright, so the classifier of upside-down lines costs time and loses words; images smaller than
# `limit_side_len` are enlarged to it before text is searched. A line is padded to the last number of `rec_img_shape`
# before it is read: 96 takes a quarter less time than the default, 320, as most lines on packs are shorter.
SETTINGS = {
    "Det.limit_side_len": 512,
    "Rec.rec_img_shape": [3, 48, 96],
    "Global.use_cls": False,
    "EngineConfig.onnxruntime.intra_op_num_threads": 1,
    "EngineConfig.onnxruntime.inter_op_num_threads": 1,
    "Global.log_level": "critical",
}
RECIPE = 1  # raise it when `read_words` changes what it makes of the engine's result

_idle: list = []  # engines that wait for work: threads do not share one, and building one takes a while


def read_words(image: np.ndarray) -> list[Word]:
    """Read the words on one image (H,W,3) uint8 RGB, in reading order, barcodes included.

    Where the engine does not tell the words of a line apart (scripts read character by character), the line's box is
    divided in proportion to the characters. Boxes are axis-aligned, in pixels.
    """
    try:
        engine = _idle.pop()
    except IndexError:
        from rapidocr import RapidOCR

        engine = RapidOCR(params=SETTINGS)
    try:
        found = engine(np.ascontiguousarray(image[..., ::-1]), return_word_box=True)
    finally:
        _idle.append(engine)
    if not found.txts:
        return []
    lines = zip(found.txts, found.scores, found.boxes, found.word_results, strict=True)
    return [word for line in lines for word in _split_line(*line, shape=image.shape[:2])]


def add_text(data: ProductData, limit: int | None = None) -> ProductData:
    """Return the data set with `text` and `words` read from its images, and `read`: whether the engine read a row.

    Each image is read once: results are cached by the file's bytes, the settings and the engine's version.
    Barcodes are redacted from both columns. `text` is the words in reading order, joined by spaces. Rows that come
    with a text of their own keep it and its words; the engine does not read them.

    Args:
        data: the data set; it is not changed.
        limit: read at most this many images, spread evenly over splits and classes; None reads all.

    Raises:
        DataError: an image cannot be read; the message names file and row. What was read before is cached.
    """
    table, rows = data.table.copy(), _to_read(data.table, limit)
    read = _read_files(data.name, table["image"].iloc[rows])
    given = [found if isinstance(found, list) else [] for found in table.get("words", table["text"])]
    table["words"] = [redact_words(read.get(row, found)) for row, found in enumerate(given)]
    table["read"] = table.index.isin(rows)
    texts = [" ".join(word.text for word in found) for found in table["words"]]
    table["text"] = [redact_barcodes(own) or text for own, text in zip(table["text"], texts, strict=True)]
    return replace(data, table=table)


def _split_line(text: str, score: float, quad: np.ndarray, found: Sequence, shape: tuple[int, int]) -> list[Word]:
    """Turn a line into words clipped to an image of `shape` (H,W).

    `found` is (text, confidence, quad) of its parts as the engine cut them; a quad (4,2) has corners from the top left,
    clockwise.
    """
    if [part for part, _, _ in found] != text.split():
        top_left, top_right, bottom_right, bottom_left = np.asarray(quad, dtype=float)
        found = []
        for word in re.finditer(r"\S+", text):  # all characters of the line are equally wide
            ends = np.array([[word.start()], [word.end()]]) / len(text)
            sides = top_left + (top_right - top_left) * ends, bottom_left + (bottom_right - bottom_left) * ends
            found.append((word.group(), score, np.vstack(sides)))
    boxes = [bounding_box(np.clip(np.asarray(corners, float), 0, shape[::-1])) for _, _, corners in found]
    return [Word(part, box, min(float(sure), 1.0)) for (part, sure, _), box in zip(found, boxes, strict=True)]


def _to_read(table: pd.DataFrame, limit: int | None) -> np.ndarray:
    """Return positions of the rows to read: those without a text, `limit` of them in turn from each class."""
    empty = np.flatnonzero(table["text"] == "")
    if limit is None or limit >= len(empty):
        return empty
    turn = table.iloc[empty].groupby(["split", "label"], sort=False).cumcount().to_numpy()
    return np.sort(empty[np.argsort(turn, kind="stable")[:limit]])


# -- The cache: one small file per image, so that an interrupt loses at most the image being read.


def _read_files(name: str, files: pd.Series) -> dict[int, list[Word]]:
    """Return the words of each file by its row (the series' index)."""
    keys = {row: reading_key(name, row, path) for row, path in files.items()}
    known = {key: words for key in set(keys.values()) if (words := _cached(key)) is not None}
    missing = {key: row for row, key in keys.items() if key not in known}
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        tasks = {pool.submit(_read_file, name, row, files[row], key): key for key, row in missing.items()}
        for task in tqdm(as_completed(tasks), "OCR", len(tasks), delay=2, leave=False, disable=len(tasks) < 2):
            known[tasks[task]] = task.result()
    finally:
        pool.shutdown(cancel_futures=True)
    return {row: known[key] for row, key in keys.items()}


def _read_file(name: str, row: int, path: str, key: str) -> list[Word]:
    """Read one file and keep its words below their checksum."""
    try:
        words = read_words(read_image(path))
    except DataError as error:
        raise DataError(f"row {row} of {name!r}: {error}") from None
    content = json.dumps([[word.text, word.box, word.confidence] for word in words])
    with replacing(_place(key)) as draft:
        draft.write_text(f"{digest(content)}\n{content}", encoding="utf-8")
    return words


def words_file(name: str, row: int, path: str) -> Path:
    """Return the file of the cache that holds the words of an image once they are read."""
    return _place(reading_key(name, row, path))


def reading_key(name: str, row: int, path: str) -> str:
    """Return a digest of what the words of a file depend on."""
    try:
        with open_file(path) as file:
            content = file.read()
    except UserError as error:
        raise DataError(f"row {row} of {name!r}: {error}, or drop its row") from None
    return digest(SETTINGS, version("rapidocr"), RECIPE, content)


def _cached(key: str) -> list[Word] | None:
    """Return the words kept under a key; None where there are none, or where the file is damaged."""
    try:
        with open_file(_place(key), limit=1 << 26) as file:
            checksum, _, content = file.read().decode().partition("\n")
        if checksum != digest(content):
            return None
        return [Word(text, tuple(box), score) for text, box, score in json.loads(content)]
    except (ValueError, TypeError, RecursionError):  # no such file, not UTF-8, or no list of words
        return None


def _place(key: str) -> Path:
    return cache_dir("ocr", key[:2]) / f"{key}.json"
