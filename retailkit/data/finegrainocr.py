"""FineGrainOCR: photos of a checkout's camera with the words that Google Vision read on them.

The repository's samples are `Images/<gtin>/<stem>.jpg` and `Text/<gtin>/<stem>.json`, by article number (GTIN). The
full set was not at hand: others report a folder for the split, before or after the kind, so either order is read.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm.auto import tqdm

from retailkit.cache import open_file
from retailkit.config import DataError, UserError
from retailkit.data.folder import SPLIT_NAMES, files_below
from retailkit.data.images import SUFFIXES, image_size
from retailkit.data.readers import PUBLISHED
from retailkit.data.table import ProductData, Word, bounding_box, make_table

KINDS = {"images": "image", "image": "image", "text": "text", "texts": "text"}
DAY = re.compile(r"(\d{8})_\d{6}")  # in file names: date and time of the photo


class Place(NamedTuple):
    """What a path says of its file: `split` is "" where no folder names one, `kind` is `image` or `text`."""

    kind: str
    split: str
    label: str
    stem: str


def load(root: str | Path) -> ProductData:
    """Read FineGrainOCR: its samples, the full set, or part of it (`docs/finegrainocr_subset.py` copies a part).

    `text` is the words that Google Vision read, joined by spaces in its order, and the column `words` has them with
    the upright boxes around their quads, clipped to the image, and a confidence of 1 (the files tell none). A
    photo without JSON has an empty text. Printed article numbers are still in there (see `text.redact_barcodes`).

    Classes are the class folders (GTIN). `group` is the photos of a class on one day, by the date in the file names.
    Photos without a split, as the samples, train; where some are in split folders, the others are left out.

    Args:
        root: folder of the data set, or one around it.

    Raises:
        DataError: no data set there, or a JSON that is not Google Vision's.
    """
    root, faults = Path(root), []
    below = files_below(root, faults) if root.is_dir() else []
    if faults:
        raise DataError.listing(faults)
    files = {place(path): path for path in sorted(path.relative_to(root).as_posix() for path in below)}
    photos = sorted(found for found in files if found and found.kind == "image")
    if not photos:
        cure = "run `retailkit fetch finegrainocr` or point --root at the folder with Images and Text"
        raise DataError(f"{root}: no FineGrainOCR here (Images/<class>/*.jpg, or train and val below Images); {cure}")
    if any(photo.split for photo in photos):
        photos = [photo for photo in photos if photo.split]
    rows = [_row(root, photo, files) for photo in tqdm(photos, "finegrainocr", delay=2, leave=False)]
    table = make_table(rows).assign(words=[row["words"] for row in rows])
    counts = table["label"].value_counts()
    if single := int((counts == 1).sum()):
        warnings.warn(f"{single} of {len(counts)} classes have one photo: they are for training only", stacklevel=2)
    hints = {"missing_val": "the samples are for training only; the full set has val"}
    hints["missing_test"] = "FineGrainOCR publishes none"
    return ProductData("finegrainocr", table, sorted(counts.index), PUBLISHED["finegrainocr"] | hints)


def place(path: str) -> Place | None:
    """Return what a path of the data set, with forward slashes, says of its file; None for a file of another kind."""
    *folders, label, name = ["", *path.split("/")]
    near, (stem, _, suffix) = [folder.lower() for folder in folders[-2:]], name.rpartition(".")
    kind = next((KINDS[folder] for folder in near if folder in KINDS), "")
    suffixes = {"image": SUFFIXES, "text": (".json",), "": ()}[kind]
    if f".{suffix.lower()}" not in suffixes or name.startswith(".") or label.startswith(".") or "__MACOSX" in folders:
        return None
    return Place(kind, next((SPLIT_NAMES[folder] for folder in near if folder in SPLIT_NAMES), ""), label, stem)


def _row(root: Path, photo: Place, files: Mapping[Place | None, str]) -> dict[str, Any]:
    image, split = root / files[photo], photo.split or "train"
    words_file = files.get(photo._replace(kind="text"))
    text, words = _read_words(root / words_file, image) if words_file else ("", [])
    day = DAY.search(image.name)
    group = f"{split}/{photo.label}/{day[1] if day else image.name}"
    return {"image": str(image), "label": photo.label, "split": split, "text": text, "words": words, "group": group}


def _read_words(path: Path, image: Path) -> tuple[str, list[Word]]:
    """Return the text that Google Vision read, and its words in upright boxes, clipped to the image."""
    try:
        size = image_size(image)
    except DataError:  # reported when its pixels are read
        size = (np.inf, np.inf)
    found = []
    try:
        with open_file(path, limit=1 << 26) as file:
            entries = json.load(file)
        if not isinstance(entries, list):
            raise TypeError
        for entry in entries:  # the first is the whole text, each other one a word
            entry["description"].encode()  # half of a pair of signs could not be written
            vertices = entry.get("bounding_poly", {}).get("vertices", []) or [{}]
            corners = np.array([(float(v.get("x", 0)), float(v.get("y", 0))) for v in vertices])  # a 0 may be left out
            if not np.isfinite(corners).all():
                raise ValueError
            found.append(Word(" ".join(entry["description"].split()), bounding_box(np.clip(corners, 0, size))))
    except UserError as error:
        raise DataError(str(error)) from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        cure = "restore the file, or delete it: its photo then has no text"
        raise DataError(f"{path}: not a list of words as Google Vision gives it; {cure}") from None
    words = [word for word in found[1:] if word.text]
    return " ".join(word.text for word in words or found[:1]), words
