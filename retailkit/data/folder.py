"""Your own photos: a folder per class, ready-made splits of such folders, or a CSV."""

from __future__ import annotations

import os
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from retailkit.config import DataError, UsageError
from retailkit.data import spreadsheet
from retailkit.data.images import SUFFIXES
from retailkit.data.table import SPLITS, ProductData, make_table

CLUTTER = ("thumbs.db", "desktop.ini", "__macosx", "@eadir")  # of file managers; what starts with a dot as well
SPLIT_NAMES = dict.fromkeys(("train", "training"), "train")
SPLIT_NAMES |= dict.fromkeys(("val", "valid", "validation"), "val") | dict.fromkeys(("test", "testing"), "test")
OWN = {"licence": "your own", "citation": "", "url": "", "size": ""}
CURE = "use a folder per class, train/val/test folders with a folder per class, or a CSV with image,label"
CONVERT = f"convert it to JPEG or PNG (known: {' '.join(SUFFIXES)})"


def load(root: str | Path, *, val: float = 0.15, test: float = 0.15, seed: int = 0) -> ProductData:
    """Read your own photos.

    Where no split is given, each class is split at random, the same way for the same seed; rows of one `group` stay
    together. From two images per class on, at least one goes to `test`, from three on one to `val` as well; a
    class with one image (or one group) is for training only, with a warning.

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
    if not root.exists():
        raise DataError(f"{root}: no such folder or CSV; check --root")
    table = _read_folder(root) if root.is_dir() else _read_csv(root)
    if (table["split"] == "").all():
        table["split"] = _split_by_class(table, val, test, seed)
    _warn_of_doubtful(table)
    hint = f"give {root} images of it, or no splits at all to have them made"
    info = OWN | {"size": f"{len(table)} images"} | {f"missing_{split}": hint for split in SPLITS}
    return ProductData("folder", table, sorted(set(table["label"])), info)


def _split_by_class(table: pd.DataFrame, val: float, test: float, seed: int) -> pd.Series:
    """Return `train`, `val` or `test` for each row: stratified by `label`, whole by `group`.

    A class's split depends on its own rows, so a class added later does not move the others. A group that
    holds several classes goes where the first of them (in alphabetical order) puts it.
    """
    split_of: dict[str, str] = {}
    for label, groups in table["group"].groupby(table["label"]):
        free = [group for group in sorted(set(groups)) if group not in split_of]
        rng = np.random.default_rng([seed, zlib.crc32(str(label).encode())])
        sizes = groups.value_counts()
        split_of |= _fill([free[i] for i in rng.permutation(len(free))], sizes, {"test": test, "val": val})
        if len(sizes) == 1 and val + test > 0 and split_of[groups.iloc[0]] == "train":
            kind = "image" if len(groups) == 1 else "group"
            warnings.warn(f"class {label!r} has one {kind}: it is used for training only", stacklevel=3)
    return table["group"].map(split_of)


def _fill(groups: list[str], sizes: pd.Series, shares: dict[str, float]) -> dict[str, str]:
    """Fill each share in turn, with at least one group where one is left over for training, and train with the rest."""
    total, split_of = sum(sizes[group] for group in groups), {}
    for split, share in shares.items():
        want, have = share * total, 0
        while share and len(groups) > 1 and (have == 0 or have + sizes[groups[0]] / 2 <= want):
            group = groups.pop(0)
            split_of[group], have = split, have + sizes[group]
    return split_of | dict.fromkeys(groups, "train")


def photos(paths: Sequence[str | Path], classes: Sequence[str]) -> ProductData:
    """Return photos of unknown products as a data set, to ask a model about them.

    All are in `test`, labelled with the first of the model's `classes`, which means nothing.

    Raises:
        DataError: a file is missing.
    """
    for path in paths:
        if not Path(path).is_file():
            raise DataError(f"{path}: no such photo; check the path")
    rows = [{"image": str(p), "label": classes[0], "split": "test", "condition": "front"} for p in paths]
    return ProductData("photos", make_table(rows), list(classes), OWN)


def files_in_csv(path: Path) -> list[Path]:
    """Return the image and mask files that a CSV names and that are there, sorted."""
    table = spreadsheet.read_table(path)
    named = {name for column in ("image", "mask") if column in table for name in table[column] if name}
    return sorted(file for name in named if (file := _file(path, name)).is_file())


def _warn_of_doubtful(table: pd.DataFrame) -> None:
    learned = set(table.loc[table["split"] == "train", "label"])
    if learned and (never := sorted(set(table["label"]) - learned)):
        warnings.warn(f"{_some(never)} never in train, so that no model learns it; add photos", stacklevel=4)
    for column, trouble in (("split", "in more than one split"), ("label", "listed under more than one label")):
        values = table.groupby("image")[column].nunique()
        if several := list(values.index[values > 1]):
            warnings.warn(f"{_some(several, 3)} {trouble}; keep one row for each image", stacklevel=4)


def _some(names: Sequence[str], shown: int = 5) -> str:
    """Return names for a message, the first few of many, and their verb."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return f"{', '.join(repr(name) for name in names[:shown])}{more} {'is' if len(names) == 1 else 'are'}"


# -- A folder per class.


def _read_folder(root: Path) -> pd.DataFrame:
    splits = [p for p in _folders(root) if p.name.lower() in SPLIT_NAMES and _folders(p)]  # a class holds images
    others = [p.name for p in _folders(root) if p not in splits and any(_is_image(f) for f in _files_below(p))]
    if splits and others:
        kept = ", ".join(p.name for p in splits)
        raise DataError(f"{root}: {_some(others)} no split, beside {kept}; move it out, or name each photo in a CSV")
    parts = [(SPLIT_NAMES[p.name.lower()], p) for p in splits] or [("", root)]
    rows = [row for split, part in parts for row in _read_classes(part, split)]
    if not rows:
        tables = sorted(root.glob("*.csv"))
        hint = f"point --root at {tables[0]}" if tables else CURE
        raise DataError(f"{root}: no images in class folders; {hint}")
    if unknown := [row["image"] for row in rows if not _is_image(Path(row["image"]))]:
        cure = f"{CONVERT}, or move it out of the classes"
        raise DataError.listing([f"{path}: not a known kind of image; {cure}" for path in unknown])
    return _with_groups(make_table(rows))


def _read_classes(root: Path, split: str) -> list[dict[str, str]]:
    """List the files of a folder per class."""
    if loose := [p.name for p in sorted(root.iterdir()) if p.is_file() and _is_image(p) and not _is_clutter(p.name)]:
        warnings.warn(f"{root}: {_some(loose)} in no class folder and left out; move it into one", stacklevel=5)
    return [
        {"image": str(path), "label": folder.name, "split": split}
        for folder in _folders(root)
        for path in _files_below(folder)
    ]


def _folders(root: Path) -> list[Path]:
    return [path for path in sorted(root.iterdir()) if path.is_dir() and not _is_clutter(path.name)]


def _files_below(folder: Path) -> list[Path]:
    """Return the files of a folder and of the folders in it, without what file managers hide there."""
    found = []
    for at, inner, names in os.walk(folder):
        inner[:] = sorted(name for name in inner if not _is_clutter(name))
        found += [Path(at) / name for name in sorted(names) if not _is_clutter(name)]
    return found


def _is_clutter(name: str) -> bool:
    return name.startswith(".") or name.lower() in CLUTTER


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


# -- A CSV.


def _read_csv(path: Path) -> pd.DataFrame:
    if path.suffix.lower() not in spreadsheet.SUFFIXES:
        raise DataError(f"{path}: neither a folder nor a CSV; {CURE}")
    table = spreadsheet.read_table(path, required=("image", "label"))
    if table.empty:
        raise DataError(f"{path}: no rows; add one for each image")
    rows = zip(table.index, table.to_dict("records"), strict=True)
    if problems := [f"{path} row {number}: {problem}" for number, row in rows for problem in _problems(path, row)]:
        raise DataError.listing(problems)
    for column in {"image", "mask"} & set(table.columns):
        table[column] = [str(_file(path, name)) if name else "" for name in table[column]]
    if "split" in table:
        table["split"] = table["split"].str.lower().map({"": ""} | SPLIT_NAMES)
    return _with_groups(make_table(table.to_dict("records")))


def _file(table: Path, name: str) -> Path:
    """Return the file that a CSV names, also where it writes the path as Windows does."""
    path, other = table.parent / name, table.parent / name.replace("\\", "/")
    return other if other.exists() and not path.exists() else path


def _problems(path: Path, row: dict[str, str]) -> list[str]:
    found = [] if row["label"] else ["no label; fill it in or drop the row"]
    known = _is_image(Path(row["image"]))
    if not known:
        found.append(f"{row['image']!r} is not a known kind of image; {CONVERT}")
    for name in filter(None, (row["image"] if known else "", row.get("mask"))):
        if not _file(path, name).is_file():
            found.append(f"{_file(path, name)} is missing; restore it, correct its path below the CSV or drop the row")
    if (split := row.get("split", "")) and split.lower() not in SPLIT_NAMES:
        found.append(f"unknown split {split!r}; use train, val or test")
    return found


def _with_groups(table: pd.DataFrame) -> pd.DataFrame:
    """Make a row without a group one of its own, and one without a split among others one for training."""
    table["group"] = table["group"].where(table["group"] != "", table["image"])
    if (table["split"] != "").any():
        table["split"] = table["split"].replace("", "train")
    return table
