"""Your own photos: a folder per class, ready-made splits of such folders, or a CSV."""

from __future__ import annotations

import os
import unicodedata
import warnings
import zlib
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from retailkit.config import CONTROL, DataError, UsageError
from retailkit.data import spreadsheet
from retailkit.data.advice import advise, short, some
from retailkit.data.images import SUFFIXES, files_beside
from retailkit.data.table import COLUMNS, RENDERING, SPLITS, ProductData, make_table

# Of file managers and drives; what starts with a dot as well.
CLUTTER = ("thumbs.db", "desktop.ini", "__macosx", "@eadir", "lost+found", "system volume information", "$recycle.bin")
SPLIT_NAMES = dict.fromkeys(("train", "training"), "train")
SPLIT_NAMES |= dict.fromkeys(("val", "valid", "validation"), "val") | dict.fromkeys(("test", "testing"), "test")
OWN = {"licence": "your own", "citation": "", "url": "", "size": ""}
CURE = "use a folder per class, train/val/test folders with a folder per class, or a CSV with image,label"
OF_PHONES = (".heic", ".heif", ".avif")  # photos that are not read here
COMPARED = 20_000  # photos whose content is compared whenever they are loaded; a check compares any number
CONVERT = f"convert it to JPEG or PNG (known: {' '.join(SUFFIXES)})"


class Found(NamedTuple):
    """What lies in a folder or a CSV."""

    rows: list[dict[str, str]] | pd.DataFrame  # one per image
    faults: list[str]  # what has to be mended
    notes: list[str]  # what is left out


def load(root: str | Path, *, val: float = 0.15, test: float = 0.15, seed: int = 0) -> ProductData:
    """Read your own photos.

    Where no split is given, each class is split at random, the same way for the same seed; rows of one `group` stay
    together. From two images per class on, at least one goes to `test`, from three on one to `val` as well; a
    class with one image (or one group) is for training only. What is left out and what looks doubtful (see
    `advice.advise`) is a warning.

    Args:
        root: a folder with a folder per class (deeper folders belong to their class); or one with `train`, `val` and
            `test` (any of them) that hold a folder per class; or a CSV with the columns `image`, `label` and any others
            of `COLUMNS`, whose paths are relative to it.
        val: share of each class for choosing settings, in [0, 1).
        test: share of each class for the final result, in [0, 1).
        seed: of the split.

    Raises:
        UsageError: the shares leave nothing to train on.
        DataError: the folder is missing or empty, the CSV lacks a column, or files are missing or of an unknown kind;
            the message lists every broken row or file, one per line, with its cure.
    """
    root = Path(root)
    if not (val >= 0 and test >= 0 and val + test < 1):
        raise UsageError(f"val={val} and test={test} leave nothing to train on; use shares that sum to less than 1")
    data, faults, notes = read(root, val, test, seed)
    if faults:
        raise DataError.listing(faults)
    for note in (*notes, *advise(data.table, COMPARED)):
        warnings.warn(f"{root}: {note}", stacklevel=2)
    return data


def read(root: Path, val: float = 0.15, test: float = 0.15, seed: int = 0) -> tuple[ProductData, list[str], list[str]]:
    """Return what can be read of a folder or a CSV, what has to be mended, and what is left out; see `load`.

    Raises:
        DataError: there is nothing to be read at all.
    """
    if not os.path.exists(root):
        raise DataError(f"{root}: no such folder or CSV; check --root")
    if why := _unprintable(root):
        raise DataError(f"{root}: {why}; rename it")
    found = _read_folder(root) if root.is_dir() else _read_csv(root)
    table = make_table(found.rows)
    table["group"] = table["group"].where(table["group"] != "", table["image"])
    if (table["split"] == "").all():
        table["split"] = _split_by_class(table, val, test, seed)
    else:
        table["split"] = table["split"].replace("", "train")
    hint = f"give {root} images of it, or no splits at all to have them made"
    info = OWN | {"size": f"{len(table)} images"} | {f"missing_{split}": hint for split in SPLITS}
    return ProductData("folder", table, sorted(set(table["label"])), info), found.faults, found.notes


def _split_by_class(table: pd.DataFrame, val: float, test: float, seed: int) -> pd.Series:
    """Return `train`, `val` or `test` for each row: stratified by `label`, whole by `group`.

    A class's split depends on its own rows, so a class added later does not move the others. A group that
    holds several classes goes where the first of them (in alphabetical order) puts it.
    """
    split_of: dict[str, str] = {}
    for label, groups in table["group"].groupby(table["label"]):
        sizes = Counter(groups)
        free = [group for group in sorted(sizes) if group not in split_of]
        rng = np.random.default_rng([seed, zlib.crc32(str(label).encode())])
        left = [free[i] for i in rng.permutation(len(free))][::-1]
        total = sum(sizes[group] for group in left)
        for split, share in (("test", test), ("val", val)):  # each gets a group where one is left for training
            have = 0
            while share and len(left) > 1 and (have == 0 or have + sizes[left[-1]] / 2 <= share * total):
                have += sizes[left[-1]]
                split_of[left.pop()] = split
        split_of |= dict.fromkeys(left, "train")
    return table["group"].map(split_of)


def photos(paths: Sequence[str | Path], classes: Sequence[str], checked: bool = True) -> ProductData:
    """Return photos of unknown products as a data set, to ask a model about them.

    All are in `test`, labelled with the first of the model's `classes`, which means nothing.

    Raises:
        DataError: a file is missing, unless `checked` is False.
    """
    for path in paths:
        if checked and not os.path.isfile(path):
            raise DataError(f"{path}: no such photo; check the path")
    rows = [{"image": str(p), "label": classes[0], "split": "test", "condition": "front"} for p in paths]
    return ProductData("photos", make_table(rows), list(classes), OWN)


def reason(error: DataError) -> str:
    """Return what is wrong with one of `photos` and the cure, without the row of a table that nobody has written."""
    return str(error).partition(": ")[2].replace("drop its row", "leave it out")


def gather(paths: Sequence[Path], faults: list[str] | None = None) -> tuple[list[Path], list[Path]]:
    """Return the photos that are named, or that lie in the folders that are named, and the other files in these.

    Each file is returned once, in the order given; those of a folder are sorted. Photos of a kind that cannot be read
    are among them, so that whoever reads them names them. Folders that cannot be listed are added to `faults`.

    Raises:
        DataError: a folder cannot be listed and there are no `faults` to name it in, or there is no photo at all.
    """
    files, others, unlisted = [], [], [] if faults is None else faults
    for path in paths:
        for file in files_below(path, unlisted) if os.path.isdir(path) else [path]:
            photo = file == path or _is_image(file) or file.suffix.lower() in OF_PHONES
            (files if photo else others).append(file)
    if unlisted and (faults is None or not files):
        raise DataError.listing(unlisted)
    if not files:
        raise DataError(f"{some(list(map(str, paths)))}: no photo there; name photos, or a folder that holds some")
    return list(dict.fromkeys(files)), list(dict.fromkeys(others))


def files_in_csv(path: Path) -> list[Path]:
    """Return the image and mask files that a CSV names and that are there, sorted."""
    table = spreadsheet.read_table(path)
    named = {name for column in ("image", "mask") if column in table for name in table[column] if name}
    return sorted(map(Path, files_beside(path.parent, named).values()))


# -- A folder per class.


def _read_folder(root: Path) -> Found:
    found, (folders, _) = Found([], [], []), _inside(root)
    splits = [p for p in folders if p.name.lower() in SPLIT_NAMES and _inside(p)[0]]  # a class holds images
    for part in (root, *splits):
        _read_loose(part, found)
    for part in splits or [root]:
        _read_classes(part, SPLIT_NAMES[part.name.lower()] if splits else "", found)
    for other in (p for p in folders if splits and p not in splits):
        if any(_is_image(file) for file in files_below(other, found.faults)):
            kept = ", ".join(p.name for p in splits)
            found.faults.append(f"{other}: no split, beside {kept}; move it out, or name each photo in a CSV")
    if not found.rows and not found.faults:
        tables = sorted(root.glob("*.csv"))
        hint = f"point --root at {tables[0]}" if tables else CURE
        raise DataError(f"{root}: no images in class folders; {hint}")
    return found


def _read_loose(root: Path, found: Found) -> None:
    """Tell what lies beside the class folders."""
    files = _inside(root)[1]
    found.faults.extend(
        f"{path}: a link that leads nowhere; correct or delete it" for path in files if not path.exists()
    )
    if loose := [path.name for path in files if path.exists() and _is_image(path)]:
        found.notes.append(f"left out, as in no class folder: {len(loose)} images ({some(loose)}); move them")


def _read_classes(root: Path, split: str, found: Found) -> None:
    """Add the files of a folder per class to what was found."""
    hidden, inner = _hidden(root), {}
    for folder in _inside(root)[0]:
        if RENDERING.fullmatch(folder.name) and (folder / "images").is_dir():
            cure = "it was rendered here by mistake: delete this folder"
            found.faults.append(f"{folder}: images of the built-in data set, none of yours; {cure}")
            continue
        files = files_below(folder, found.faults, hidden)
        inner[folder.name] = {p.relative_to(folder).parts[0] for p in files if p.parent != folder}
        if not files:
            found.notes.append(f"{folder.name!r} holds no image and is no class; add photos or delete it")
        for path in files:
            if why := _unprintable(path):
                found.faults.append(f"{path}: {why}; rename it")
            elif not _is_image(path):
                found.faults.append(f"{path}: not a known kind of image; {CONVERT}, or move it out of the classes")
            else:
                label = unicodedata.normalize("NFC", folder.name)
                found.rows.append({"image": str(path), "label": label, "split": split})
    if hidden:
        found.notes.append(f"left out, as hidden by a program: {len(hidden)} images ({some(hidden)})")
    deeper = sorted(set.intersection(*inner.values())) if inner else []
    if len(deeper) > 1 and (len(inner) < 3 or SPLIT_NAMES.keys() & {name.lower() for name in deeper}):
        cure = "if these are classes or splits, point --root at what holds them, or write a CSV"
        found.notes.append(f"{some(sorted(inner))} as a class, with the folders {some(deeper)} in it; {cure}")


def _inside(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the folders and the files that lie directly in a folder."""
    try:
        inside = sorted(path for path in folder.iterdir() if not _is_clutter(path.name))
    except OSError as error:
        raise DataError(_unlisted(error)) from None
    return [path for path in inside if path.is_dir()], [path for path in inside if not path.is_dir()]


def _unlisted(error: OSError) -> str:
    return f"{error.filename}: cannot be listed ({error.strerror}); correct its permissions"


def files_below(folder: Path, faults: list[str], hidden: list[str] | None = None) -> list[Path]:
    """Return the files of a folder and of the folders in it, without what file managers hide there.

    Links are followed, and a folder is read once, so that a loop of links ends. Folders that cannot be listed are added
    to `faults`, and the names of hidden images to `hidden`.
    """
    files, seen = [], set()
    for at, inner, names in os.walk(folder, onerror=lambda error: faults.append(_unlisted(error)), followlinks=True):
        status = os.stat(at)
        if (status.st_dev, status.st_ino) in seen:
            inner.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        if hidden is not None:
            hidden += _hidden(Path(at))
        inner[:] = sorted(name for name in inner if not _is_clutter(name))
        files += [Path(at) / name for name in sorted(names) if not _is_clutter(name)]
    return files


def _hidden(folder: Path) -> list[str]:
    """Return the names of images that are hidden in a folder, by their own name or in a hidden folder of it."""
    outside = [path for path in sorted(folder.iterdir()) if _is_clutter(path.name)]
    files = [file for path in outside for file in (path, *sorted(path.rglob("*"))) if _is_image(file)]
    return [short(str(file)) for file in files if file.is_file()]


def _is_clutter(name: str) -> bool:
    return name.startswith(".") or name.lower() in CLUTTER


def _is_image(path: str | Path) -> bool:
    return os.path.splitext(path)[1].lower() in SUFFIXES


def _unprintable(path: Path) -> str:
    """Say why a path cannot be printed and written into tables, "" where it can."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return "not UTF-8"
    return "holds control characters" if CONTROL.search(str(path)) else ""


# -- A CSV.


def _read_csv(path: Path) -> Found:
    if path.suffix.lower() not in spreadsheet.SUFFIXES:
        raise DataError(f"{path}: neither a folder nor a CSV; {CURE}")
    table = spreadsheet.read_table(path, required=("image", "label"))
    if table.empty:
        raise DataError(f"{path}: no rows; add one for each image")
    known = [name for name in COLUMNS if name != "truth"]  # which only the renderer writes
    unused = [name for name in table.columns if name and name not in known]
    table = table.reindex(columns=known, fill_value="")
    images = files_beside(path.parent, filter(_is_image, table["image"].unique()))
    masks = files_beside(path.parent, filter(None, table["mask"].unique()))
    of_all = {"image": images, "mask": masks | {"": ""}, "split": SPLIT_NAMES | {"": ""}}
    lower = table.assign(split=table["split"].str.lower())
    rows = lower.assign(**{column: lower[column].map(values) for column, values in of_all.items()})
    sound = rows.notna().all(axis=1) & (table["label"] != "")
    faults = [
        f"{path} row {number}: {problem}"
        for number, row in table[~sound].to_dict("index").items()
        for problem in _problems(path.parent, row, images, masks)
    ]
    notes = [f"columns that are not used: {some(unused)} (known: {', '.join(known)})"] if unused else []
    return Found(rows[sound].reset_index(drop=True), faults, notes)


def _problems(folder: Path, row: dict[str, str], images: Container[str], masks: Container[str]) -> Iterator[str]:
    if not row["label"]:
        yield "no label; fill it in or drop the row"
    missing = "is missing; restore it, correct its path below the CSV or drop the row"
    if not _is_image(row["image"]):
        yield f"{row['image']!r} is not a known kind of image; {CONVERT}"
    elif row["image"] not in images:
        yield f"{folder / row['image']} {missing}"
    if row["mask"] and row["mask"] not in masks:
        yield f"{folder / row['mask']} {missing}"
    if row["split"] and row["split"].lower() not in SPLIT_NAMES:
        yield f"unknown split {row['split']!r}; use train, val or test"
