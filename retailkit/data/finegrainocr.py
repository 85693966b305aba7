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
from retailkit.data.table import ProductData, Word, bounding_box, make_table

FINEGRAINOCR = {
    "licence": "CC0-1.0",
    "citation": "T. Pettersson, M. Riveiro, T. Löfström: Multimodal fine-grained grocery product recognition using "
    "image and OCR text. Machine Vision and Applications 35:79, 2024",
    "url": "https://github.com/Tubbias/finegrainocr",
    "size": "256 classes, 73,378 training and 18,416 validation photos with words, 53.7 GB; 12 samples, 7 MB",
}
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
    root = Path(root)
    faults: list[str] = []
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
    return ProductData("finegrainocr", table, sorted(counts.index), FINEGRAINOCR | hints)


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
    text, words = "", []
    if json_file := files.get(photo._replace(kind="text")):
        annotations = _annotations(root / json_file)
        words = _words(annotations, image)
        text = " ".join(word.text for word in words) or (annotations[0][0] if annotations else "")
    day = DAY.search(image.name)
    group = f"{split}/{photo.label}/{day[1] if day else image.name}"
    return {"image": str(image), "label": photo.label, "split": split, "text": text, "words": words, "group": group}


def _annotations(path: Path) -> list[tuple[str, list[tuple[float, float]]]]:
    """Return what Google Vision read: first the whole text, then one word per entry, with their corners (x, y)."""
    try:
        with open_file(path, limit=1 << 26) as file:
            entries = json.load(file)
        if not isinstance(entries, list):
            raise TypeError
        found = []
        for entry in entries:
            vertices = entry.get("bounding_poly", {}).get("vertices", [])
            corners = [(float(v.get("x", 0)), float(v.get("y", 0))) for v in vertices]  # a 0 may be left out
            if not np.isfinite(corners).all():
                raise ValueError(corners)
            entry["description"].encode()  # half of a pair of signs could not be written
            found.append((" ".join(entry["description"].split()), corners))
        return found
    except UserError as error:
        raise DataError(str(error)) from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        cure = "restore the file, or delete it: its photo then has no text"
        raise DataError(f"{path}: not a list of words as Google Vision gives it; {cure}") from None


def _words(annotations: list[tuple[str, list[tuple[float, float]]]], image: Path) -> list[Word]:
    """Return the words with the upright boxes around their corners, clipped to the image."""
    try:
        width, height = image_size(image)
    except DataError:  # reported when its pixels are read
        width = height = 2**31
    clipped = [(text, np.clip(corners or [(0, 0)], 0, (width, height))) for text, corners in annotations[1:] if text]
    return [Word(text, bounding_box(corners)) for text, corners in clipped]
