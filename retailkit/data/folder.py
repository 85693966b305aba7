"""Your own photos: a folder per class, ready-made splits of such folders, or a CSV."""

from __future__ import annotations

import difflib
import os
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from retailkit.config import UsageError
from retailkit.data.table import COLUMNS, SPLITS, DataError, ProductData

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
CLUTTER = ("thumbs.db", "desktop.ini", "__macosx", "@eadir")  # of file managers; what starts with a dot as well
SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
CURE = "use a folder per class, train/val/test folders with a folder per class, or a CSV with image,label"


def load(root: str | Path, *, val: float = 0.15, test: float = 0.15, seed: int = 0) -> ProductData:
    """Read your own photos.

    `root` is one of

    - a folder with a folder per class (deeper folders belong to their class),
    - a folder with `train`, `val` and `test` (any of them) that hold a folder per class,
    - a CSV with the columns `image` and `label` and, optionally, `coarse`, `family`, `split`, `text`, `mask`,
      `condition` and `group`; paths are relative to the CSV.

    Where no split is given, each class is split at random, the same way for the same seed; rows of one `group` stay
    together. From two images a class on, at least one goes to `test`, from three on one to `val` as well; a
    class with one image (or one group) is for training only, with a warning.

    Args:
        root: folder or CSV.
        val: share of each class for choosing settings, in [0, 1).
        test: share of each class for the final figure, in [0, 1).
        seed: of the split.

    Raises:
        UsageError: the shares leave nothing to train on.
        DataError: the folder is missing or empty, the CSV lacks a column, or a row names a file that is missing or
            of an unknown kind; the message names file, row and cure.
    """
    root = Path(root)
    if not (val >= 0 and test >= 0 and val + test < 1):
        raise UsageError(f"val={val} and test={test} leave nothing to train on; use shares that sum to less than 1")
    if not root.exists():
        raise DataError(f"{root}: no such folder or CSV; check --root")
    table = _read_folder(root) if root.is_dir() else _read_csv(root)
    if (table["split"] == "").all():
        table["split"] = split_by_class(table, val, test, seed)
    classes = sorted(set(table["label"]))
    learned = set(table.loc[table["split"] == "train", "label"])
    if learned and (never := sorted(set(classes) - learned)):
        warnings.warn(f"{_some(never)} never in train, so that no model learns it; add photos", stacklevel=3)
    hint = f"give {root} images of it, or no splits at all to have them made"
    info = {"licence": "your own", "citation": "", "url": "", "size": f"{len(table)} images"}
    return ProductData("folder", table, classes, info | {f"missing_{split}": hint for split in SPLITS})


def split_by_class(table: pd.DataFrame, val: float, test: float, seed: int) -> pd.Series:
    """Return `train`, `val` or `test` for each row: stratified by `label`, whole by `group`.

    A class's split depends on its own rows, so a class added later does not move the others. A group that
    holds several classes goes where the first of them (in alphabetical order) puts it.
    """
    units = table["group"]
    place: dict[str, str] = {}
    for label, members in units.groupby(table["label"]):
        free = [unit for unit in sorted(set(members)) if unit not in place]
        rng = np.random.default_rng([seed, zlib.crc32(str(label).encode())])
        sizes = members.value_counts()
        place |= _deal([free[i] for i in rng.permutation(len(free))], sizes, {"test": test, "val": val})
        if len(sizes) == 1 and val + test > 0 and place[members.iloc[0]] == "train":
            kind = "image" if len(members) == 1 else "group"
            warnings.warn(f"class {label!r} has one {kind}: it is used for training only", stacklevel=3)
    return units.map(place)


def _some(names: Sequence[str], shown: int = 5) -> str:
    """Return names for a message, the first few of many, and their verb."""
    listed = ", ".join(repr(name) for name in names[:shown]) + (
        f" and {len(names) - shown} more" * (len(names) > shown)
    )
    return f"{listed} {'is' if len(names) == 1 else 'are'}"


def _deal(units: list[str], sizes: pd.Series, shares: dict[str, float]) -> dict[str, str]:
    """Fill each share in turn, at least one unit where one is left over for training, and train with the rest."""
    total, place = sum(sizes[unit] for unit in units), {}
    for split, share in shares.items():
        want, have = share * total, 0
        while share and len(units) > 1 and (have == 0 or have + sizes[units[0]] / 2 <= want):
            unit = units.pop(0)
            place[unit], have = split, have + sizes[unit]
    return place | dict.fromkeys(units, "train")


def photos(paths: Sequence[str | Path], classes: Sequence[str]) -> ProductData:
    """Return photos of unknown products as a data set, to ask a model about them; all are in `test`.

    Args:
        paths: image files.
        classes: of the model; every photo gets the first as its label, which means nothing.

    Raises:
        DataError: a file is missing.
    """
    for path in paths:
        if not Path(path).is_file():
            raise DataError(f"{path}: no such photo; check the path")
    table = pd.DataFrame("", index=range(len(paths)), columns=list(COLUMNS))
    table = table.assign(image=[str(p) for p in paths], label=classes[0], split="test", condition="front")
    return ProductData("photos", table, list(classes), {"licence": "your own", "citation": "", "url": "", "size": ""})


def _read_folder(root: Path) -> pd.DataFrame:
    splits = [p for p in _folders(root) if p.name.lower() in SPLIT_NAMES and _folders(p)]  # a class holds pictures
    others = [
        p.name for p in _folders(root) if p not in splits and any(f.suffix.lower() in SUFFIXES for f in p.rglob("*"))
    ]
    if splits and others:
        kept = ", ".join(p.name for p in splits)
        raise DataError(f"{root}: {_some(others)} no split, beside {kept}; move it out, or name each photo in a CSV")
    parts = [(SPLIT_NAMES[p.name.lower()], p) for p in splits] or [("", root)]
    rows = [row for split, part in parts for row in _read_classes(part, split)]
    if not rows:
        tables = sorted(root.glob("*.csv"))
        hint = f"point --root at {tables[0]}" if tables else CURE
        raise DataError(f"{root}: no images in class folders; {hint}")
    return _table(pd.DataFrame(rows))


def _folders(root: Path) -> list[Path]:
    found = sorted(p for p in root.iterdir() if p.is_dir())
    return [p for p in found if not p.name.startswith(".") and p.name.lower() not in CLUTTER]


def _read_classes(root: Path, split: str) -> list[dict[str, str]]:
    """List the images of a folder per class."""
    rows = []
    for folder in _folders(root):
        for at, inner, names in os.walk(folder):
            inner.sort()
            for name in sorted(names):
                if name.startswith(".") or name.lower() in CLUTTER:
                    continue
                path = Path(at) / name
                if path.suffix.lower() not in SUFFIXES:
                    raise DataError(f"{path}: not a known kind of image; {_convert()}, or move it out of the classes")
                rows.append({"image": str(path), "label": folder.name, "split": split})
    return rows


def _read_csv(path: Path) -> pd.DataFrame:
    table = _parse_csv(path)
    for column in ("image", "label"):
        if column not in table:
            near = difflib.get_close_matches(column, table.columns, n=1, cutoff=0.5)
            hint = f"rename {near[0]!r}" if near else "add it"
            raise DataError(f"{path}: no column {column!r} (found: {', '.join(table.columns)}); {hint}")
    if table.empty:
        raise DataError(f"{path}: no rows; add one for each image")
    for row, entry in zip(table.index, table.to_dict("records"), strict=True):
        _check_row(path, row + 2, entry)
    for column in {"image", "mask"} & set(table.columns):
        table[column] = [str(path.parent / name) if name else "" for name in table[column]]
    if "split" in table:
        table["split"] = table["split"].str.lower().map({"": ""} | SPLIT_NAMES)
    return _table(table)


def _parse_csv(path: Path) -> pd.DataFrame:
    """Read any of the usual CSV dialects, everything as text ("NA" is a good label)."""
    if path.suffix.lower() not in (".csv", ".tsv", ".txt"):
        raise DataError(f"{path}: neither a folder nor a CSV; {CURE}")
    try:
        header = path.read_text(encoding="utf-8-sig").partition("\n")[0]
        separator = max(",;\t", key=header.count)
        table = pd.read_csv(
            path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False
        )
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 text; save the table as CSV UTF-8") from None
    except pd.errors.EmptyDataError:
        raise DataError(f"{path}: empty; {CURE}") from None
    except pd.errors.ParserError as error:
        raise DataError(f"{path}: not a proper CSV ({str(error).strip()}); put texts with commas in quotes") from None
    table.columns = table.columns.str.strip().str.lower()
    return table.apply(lambda column: column.fillna("").str.strip())


def _check_row(path: Path, row: int, entry: dict[str, str]) -> None:
    """Check one row of the CSV; `row` counts as spreadsheets do, the header being row 1."""
    if not entry["label"]:
        raise DataError(f"{path} row {row}: no label; fill it in or drop the row")
    if Path(entry["image"]).suffix.lower() not in SUFFIXES:
        raise DataError(f"{path} row {row}: {entry['image']!r} is not a known kind of image; {_convert()}")
    for name in filter(None, (entry["image"], entry.get("mask"))):
        if not (path.parent / name).is_file():
            raise DataError(f"{path} row {row}: {path.parent / name} is missing; restore it or drop the row")
    if (split := entry.get("split", "")) and split.lower() not in SPLIT_NAMES:
        raise DataError(f"{path} row {row}: unknown split {split!r}; use train, val or test")


def _table(frame: pd.DataFrame) -> pd.DataFrame:
    """Bring a frame to the contract's columns.

    A row without a split among rows with one is for training; one without a group is a group of its own.
    """
    frame = frame.reindex(columns=list(COLUMNS)).astype(object).fillna("")
    frame["group"] = frame["group"].where(frame["group"] != "", frame["image"])
    if (frame["split"] != "").any():
        frame["split"] = frame["split"].replace("", "train")
    return frame


def _convert() -> str:
    return f"convert it to JPEG or PNG (known: {' '.join(SUFFIXES)})"
