"""FineGrainOCR: photos of a checkout's camera with the words that Google Vision read on them.

Known layouts, with `Images` holding photos and `Text` their words, class folders named by article number (GTIN):

- the repository's samples: `samples/Images/<gtin>/<stem>.jpg` and `samples/Text/<gtin>/<stem>.json`;
- the full set: the same with a folder for the split, `Images/train/<gtin>/...`. It was not at hand when this was
  written; others report a split folder and a kind folder in each path, so either order is read, and any folder around.
"""

from __future__ import annotations

import io
import json
import os
import random
import re
import threading
import warnings
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image
from tqdm.auto import tqdm

from retailkit.cache import replacing
from retailkit.config import UsageError
from retailkit.data.folder import SPLIT_NAMES, SUFFIXES
from retailkit.data.table import COLUMNS, SPLITS, DataError, ProductData, Word

FINEGRAINOCR = {
    "licence": "CC0-1.0",
    "citation": "T. Pettersson, M. Riveiro, T. Löfström: Multimodal fine-grained grocery product recognition using "
    "image and OCR text. Machine Vision and Applications 35:79, 2024",
    "url": "https://github.com/Tubbias/finegrainocr",
    "size": "256 classes, 73,378 training and 18,416 validation photos with words, 53.7 GB; 12 samples, 7 MB",
}
PER_CLASS = (100, 50)  # training and validation photos a class
PLAN = "subset.json"  # what `copy_subset` drew, in the order of the draw
QUALITY = 90  # JPEG quality of photos made smaller
KINDS = {"images": "image", "image": "image", "text": "text", "texts": "text"}
SPLIT_FOLDERS = SPLIT_NAMES | {"training": "train"}
CURE = "restore the file, or delete it: its photo then has no text"
DAY = re.compile(r"(\d{8})_\d{6}")  # in file names: date and time of the photo

Place = tuple[str, str]  # split and class


@dataclass(frozen=True)
class Photo:
    """A photo and its words in some layout.

    Attributes:
        split: `train`, `val` or `test`.
        label: name of the class folder.
        image: path below the root, with forward slashes.
        text: likewise, of its JSON; "" where there is none.
    """

    split: str
    label: str
    image: str
    text: str

    @property
    def name(self) -> str:
        """File name of the photo."""
        return self.image.rpartition("/")[2]

    @property
    def copy(self) -> Photo:
        """Where `copy_subset` puts this photo and its words."""
        place, stem = f"{self.split}/{self.label}", self.name.rpartition(".")[0]
        text = f"Text/{place}/{stem}.json" if self.text else ""
        return Photo(self.split, self.label, f"Images/{place}/{self.name}", text)


def load_finegrainocr(
    root: str | Path, *, per_class_train: int | None = None, per_class_val: int | None = None
) -> ProductData:
    """Read FineGrainOCR: its samples, the full set, or a subset that `retailkit fetch finegrainocr --from` drew.

    `text` is the words that Google Vision read, joined by spaces in its order, and the column `words` has them with
    the upright boxes around their quads, clipped to the picture, and a confidence of 1 (the files tell none). A
    photo without JSON has an empty text. Printed article numbers are in there as read: `text.redact_barcodes` and
    `text.redact_words` remove them. Class and file names never become `text`.

    Classes are the class folders (GTIN): neither names nor look-alike pairs are published, so `family` is empty.
    `group` is the photos of a class on one day, by the date in the file names. Photos without a split, as the
    samples, are for training only.

    A subset is drawn as by the repository's `create_dataset_subset_symbolic_links.py`: the file names of a class,
    sorted, shuffled by `random.Random(0)`, the first n. The paper's experiments use 50, 100, 200 and 400 for training;
    to limit validation as well is ours. The draws contain each other, also in a folder drawn before.

    Args:
        root: folder of the data set, or one around it.
        per_class_train: at most so many training photos a class; None takes all.
        per_class_val: the same for validation.

    Raises:
        UsageError: fewer than one photo a class, or more than a drawn subset can give.
        DataError: no data set there, a subset not copied to its end, or a JSON that is not Google Vision's.
    """
    root, limits = Path(root), {"train": per_class_train, "val": per_class_val}
    _check_limits(limits)
    classes = _classes_below(root, limits)
    chosen = [photo for place in sorted(classes) for photo in _first(classes[place], limits.get(place[0]))]
    rows = [_row(root, photo) for photo in tqdm(chosen, "finegrainocr", delay=2, leave=False)]
    table = pd.DataFrame(rows, columns=[*COLUMNS, "words"])
    _warn_of_single_photos(table)
    hints = {
        "missing_val": "the samples are for training only; the full set has val",
        "missing_test": "FineGrainOCR publishes none",
    }
    return ProductData("finegrainocr", table, sorted(set(table["label"])), FINEGRAINOCR | hints)


def copy_subset(
    source: str | Path,
    root: str | Path,
    per_class: tuple[int | None, int | None] = PER_CLASS,
    long_edge: int | None = None,
    jobs: int | None = None,
) -> Path:
    """Copy the drawn photos of the full set and their words, or go on with a copy that stopped.

    `root` then holds `Images/<split>/<class>/`, `Text/<split>/<class>/` and `subset.json`, the draw. A larger draw
    later adds to it. With `long_edge`, photos are made smaller (Lanczos, JPEG quality 90; never larger) and the
    corners of their words are scaled by the same factors; without it, files are copied byte by byte.

    Args:
        source: the unpacked full set, or its zip, which is read in place.
        root: where the subset goes.
        per_class: training and validation photos a class, drawn as by `load_finegrainocr`; None takes all.
        long_edge: longest side of the copies in pixels (512 is a setting of the paper); None keeps the photos.
        jobs: photos at a time; None takes one for each core.

    Returns:
        `root`.

    Raises:
        UsageError: fewer than one photo a class, a long edge below 8, or a `root` with other photos.
        DataError: `source` is no FineGrainOCR, or a file in it is broken; files that were complete stay.
    """
    source, root, limits = Path(source), Path(root), dict(zip(("train", "val"), per_class, strict=True))
    _check_limits(limits)
    if long_edge is not None and long_edge < 8:
        raise UsageError(f"long edge {long_edge} is too small; use at least 8 pixels")
    with _opened(source) as (paths, read):
        classes = {place: _drawn(photos) for place, photos in _by_class(paths).items()}
        if not classes:
            raise DataError(f"{source}: no FineGrainOCR photos in it; give the full set's zip or its unpacked folder")
        chosen = {place: _first(photos, limits.get(place[0])) for place, photos in sorted(classes.items())}
        _write_plan(source, root, chosen, limits, long_edge)
        photos = [photo for some in chosen.values() for photo in some]
        missing = [photo for photo in photos if not (root / photo.copy.image).is_file()]
        print(f"{len(photos)} photos, {len(missing)} of them to copy -> {root}")
        _copy_all(missing, lambda photo: _copy(photo, read, root, long_edge), jobs)
    return root


def _check_limits(limits: dict[str, int | None]) -> None:
    for split, limit in limits.items():
        if limit is not None and limit < 1:
            raise UsageError(f"{limit} {split} photos a class are too few; use 1 or more, or None for all")


def _classes_below(root: Path, limits: dict[str, int | None]) -> dict[Place, list[Photo]]:
    """Return the photos below `root` by split and class, in the order of the draw."""
    found, plan = _by_class(_files_below(root)), _read_plan(root)
    if plan is not None:
        return _planned(root, plan, found, limits)
    if not found:
        raise DataError(
            f"{root}: no FineGrainOCR here (Images/<class>/*.jpg, or with train and val below Images); "
            "run `retailkit fetch finegrainocr` or point --root at the folder with Images and Text"
        )
    return {place: _drawn(photos) for place, photos in found.items()}


def _files_below(root: Path) -> list[str]:
    """Return the files below `root`, relative to it with forward slashes."""
    found = []
    for at, _, names in os.walk(root, followlinks=True):
        folder = Path(at).relative_to(root).as_posix()
        found += [f"{folder}/{name}" for name in names]
    return found


def _by_class(paths: Iterable[str]) -> dict[Place, list[Photo]]:
    """Find photos and their words in a list of files; where some are in split folders, others are left out."""
    found = {"image": {}, "text": {}}
    for path in paths:
        if (place := _place(path)) is not None:
            kind, *key = place
            found[kind][tuple(key)] = path
    split_known = any(split for split, _, _ in found["image"])
    classes = defaultdict(list)
    for (split, label, stem), image in sorted(found["image"].items()):
        if split or not split_known:
            text = found["text"].get((split, label, stem), "")
            classes[split or "train", label].append(Photo(split or "train", label, image, text))
    return dict(classes)


def _place(path: str) -> tuple[str, str, str, str] | None:
    """Return kind (`image`, `text`), split or "", class and stem of a file; None for a file of another kind."""
    *folders, label, name = ["", *path.split("/")]
    near, (stem, _, suffix) = [folder.lower() for folder in folders[-2:]], name.rpartition(".")
    kind = next((KINDS[folder] for folder in near if folder in KINDS), "")
    known = {"image": SUFFIXES, "text": (".json",), "": ()}[kind]
    if f".{suffix.lower()}" not in known or name.startswith(".") or label.startswith(".") or "__MACOSX" in folders:
        return None
    return kind, next((SPLIT_FOLDERS[folder] for folder in near if folder in SPLIT_FOLDERS), ""), label, stem


def _drawn(photos: Iterable[Photo]) -> list[Photo]:
    """Return a class's photos in the order in which the published script draws them."""
    order = sorted(photos, key=lambda photo: photo.name)
    random.Random(0).shuffle(order)
    return order


def _first(photos: list[Photo], limit: int | None) -> list[Photo]:
    return photos if limit is None else photos[:limit]


def _row(root: Path, photo: Photo) -> dict[str, Any]:
    path = root / photo.image
    text, words = "", []
    if photo.text:
        found = _annotations(_read(root / photo.text), root / photo.text)
        words = _words(found, _size(path))
        text = " ".join(word.text for word in words) or " ".join(found[0]["description"].split() if found else [])
    day = DAY.search(photo.name)
    group = f"{photo.split}/{photo.label}/{day[1] if day else photo.name}"
    own = {"image": str(path), "label": photo.label, "split": photo.split, "text": text, "words": words, "group": group}
    return dict.fromkeys(COLUMNS, "") | own


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; {CURE}") from None


def _annotations(content: bytes, where: str | Path) -> list[dict[str, Any]]:
    """Return what Google Vision found: the whole text, then a word an entry, each with `description` and `vertices`.

    The latter are its corners (x, y); a file may leave out coordinates that are 0.
    """
    try:
        found = json.loads(content)
        if not isinstance(found, list):
            raise TypeError
        for entry in found:
            entry["description"].split  # noqa: B018 (raises for what is no text)
            corners = entry.get("bounding_poly", {}).get("vertices", [])
            entry["vertices"] = [(float(v.get("x", 0)), float(v.get("y", 0))) for v in corners]
        return found
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{where}: not a list of words as Google Vision gives it; {CURE}") from None


def _words(found: list[dict[str, Any]], size: tuple[int, int]) -> list[Word]:
    """Return the words with the upright boxes around their corners, clipped to a picture of `size` (W,H)."""
    words = []
    for entry in found[1:]:
        if text := " ".join(entry["description"].split()):
            xs, ys = zip(*entry["vertices"] or [(0.0, 0.0)], strict=True)
            box = (min(xs), min(ys), max(xs), max(ys))
            words.append(Word(text, tuple(min(max(v, 0.0), float(size[i % 2])) for i, v in enumerate(box))))
    return words


def _size(path: Path) -> tuple[int, int]:
    """Return (W,H) by the file's header; endless for a broken file, which is reported when its pixels are read."""
    try:
        with Image.open(path) as picture:
            return picture.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return (2**31, 2**31)


def _warn_of_single_photos(table: pd.DataFrame) -> None:
    counts = Counter(table["label"])
    single = sum(count == 1 for count in counts.values())
    if single:
        warnings.warn(f"{single} of {len(counts)} classes have one photo: they are for training only", stacklevel=4)


@contextmanager
def _opened(source: Path) -> Iterator[tuple[list[str], Callable[[str], bytes]]]:
    """Yield the files of a folder or zip and a function that reads one, which threads may share."""
    if source.is_dir():
        yield _files_below(source), lambda path: _readable(source, path, lambda: (source / path).read_bytes())
        return
    if not source.is_file():
        raise DataError(f"{source}: no such folder or zip; check --from")
    try:
        archive = zipfile.ZipFile(source)
    except zipfile.BadZipFile:
        raise DataError(f"{source}: not a zip, or cut off; get all of it, or give its unpacked folder") from None
    with archive:
        lock = threading.Lock()

        def read(path: str) -> bytes:
            with lock:
                return _readable(source, path, lambda: archive.read(path))

        yield archive.namelist(), read


def _readable(source: Path, path: str, read: Callable[[], bytes]) -> bytes:
    try:
        return read()
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{source}: {path} cannot be read ({error}); get the data set again") from None


def _read_plan(root: Path) -> dict[str, Any] | None:
    """Return what `copy_subset` drew for `root`; None for a folder that it did not make."""
    path = root / PLAN
    if not path.is_file():
        return None
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
        return {key: plan[key] for key in ("long_edge", "per_class", "photos")}
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{path}: not the list of a drawn subset; delete it and fetch the subset again") from None


def _write_plan(
    source: Path, root: Path, chosen: dict[Place, list[Photo]], limits: dict[str, int | None], long_edge: int | None
) -> None:
    """Write the draw beside the photos; refuse a folder whose photos are not of this kind."""
    plan, kind = _read_plan(root), "full size" if long_edge is None else f"a long edge of {long_edge}"
    foreign = plan is None and any((root / "Images" / split).is_dir() for split in SPLITS)
    if foreign or source.resolve() == root.resolve() or (plan and plan["long_edge"] != long_edge):
        raise UsageError(f"{root}: holds other photos than copies of {kind}; give another folder by --root")
    photos: dict[str, dict[str, list[str]]] = defaultdict(dict)
    for (split, label), some in chosen.items():
        photos[split][label] = [photo.name for photo in some]
    with replacing(root / PLAN) as draft:
        content = {"long_edge": long_edge, "per_class": limits, "photos": photos}
        draft.write_text(json.dumps(content, indent=0), encoding="utf-8")


def _planned(
    root: Path, plan: dict[str, Any], found: dict[Place, list[Photo]], limits: dict[str, int | None]
) -> dict[Place, list[Photo]]:
    """Return the photos of a drawn subset in the order of the draw."""
    for split, limit in limits.items():
        drawn = plan["per_class"].get(split)
        if drawn is not None and limit is not None and limit > drawn:
            raise UsageError(
                f"{root} holds a draw of {drawn} {split} photos a class, not {limit}; "
                "run `retailkit fetch finegrainocr --from` with a larger --per-class"
            )
    there = {(photo.split, photo.label, photo.name): photo for photos in found.values() for photo in photos}
    places = [(split, label) for split, labels in plan["photos"].items() for label in labels]
    keys = [(split, label, name) for split, label in places for name in plan["photos"][split][label]]
    if missing := [key for key in keys if key not in there]:
        raise DataError(
            f"{root}: {len(missing)} of {len(keys)} photos of the subset are missing ({'/'.join(missing[0])} first); "
            "run the same `retailkit fetch finegrainocr --from` again, it goes on where it stopped"
        )
    classes = defaultdict(list)
    for key in keys:
        classes[key[:2]].append(there[key])
    return dict(classes)


def _copy_all(photos: list[Photo], copy: Callable[[Photo], None], jobs: int | None) -> None:
    with ThreadPoolExecutor(jobs or os.cpu_count()) as pool:
        tasks = [pool.submit(copy, photo) for photo in photos]
        try:
            for task in tqdm(as_completed(tasks), "copy", len(tasks), delay=2):
                task.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _copy(photo: Photo, read: Callable[[str], bytes], root: Path, long_edge: int | None) -> None:
    """Copy one photo, its words first: a photo that is there is complete."""
    picture, words = read(photo.image), read(photo.text) if photo.text else None
    if long_edge is not None:
        picture, words = _shrunk(photo, picture, words, long_edge)
    for path, content in ((photo.copy.text, words), (photo.copy.image, picture)):
        if content is not None:
            with replacing(root / path) as draft:
                draft.write_bytes(content)


def _shrunk(photo: Photo, content: bytes, words: bytes | None, long_edge: int) -> tuple[bytes, bytes | None]:
    """Return a photo of at most `long_edge` pixels a side, and its words in the pixels of that photo."""
    try:
        with Image.open(io.BytesIO(content)) as picture:
            before, kind, out = picture.size, picture.format, io.BytesIO()
            if max(before) <= long_edge:
                return content, words
            picture.thumbnail((long_edge, long_edge), Image.Resampling.LANCZOS)
            picture.save(out, format=kind, quality=QUALITY)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{photo.image}: cannot be decoded ({error}); get the data set again") from None
    if words is None:
        return out.getvalue(), None
    factors = [after / old for after, old in zip(picture.size, before, strict=True)]
    return out.getvalue(), _scaled(_annotations(words, photo.text), *factors)


def _scaled(found: list[dict[str, Any]], fx: float, fy: float) -> bytes:
    """Write words as Google Vision does, with their corners times the factors."""
    for entry in found:
        corners = entry.pop("vertices")
        entry["bounding_poly"] = {"vertices": [{"x": round(x * fx, 2), "y": round(y * fy, 2)} for x, y in corners]}
    return json.dumps(found, ensure_ascii=False, separators=(",", ":")).encode()
