"""What deserves a second look in a data set's table: leaks between splits, copies, names that look the same."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from math import inf

import pandas as pd

from retailkit.cache import content_hash

SEPARATORS = " _-"


def advise(table: pd.DataFrame, compared: float = inf) -> list[str]:
    """Return one line for each doubt about a data set's table, whose `split` is filled in; empty where all is well.

    Photos are compared by their files' content, so that a copy under another name is found. Where there are more than
    `compared`, which would all have to be read, only a file that is listed twice is found.
    """
    lines, labels = [], sorted(set(table["label"]))
    if len(labels) == 1:
        lines.append(f"there is one class only, {labels[0]!r}; a recogniser needs two: is --root one folder too high?")
    for names in _same_names(labels):
        lines.append(f"classes that look the same: {some(names)}; rename one of them if they are one class")
    if table["image"].nunique() <= compared:
        rows = table.assign(content=contents(table["image"]))
    else:
        rows = table.assign(content=table["image"])
        lines.append(f"copies were not looked for among {len(table):,} photos; `retailkit check` does so")
    for column, what in (("split", "more than one split"), ("label", "more than one class")):
        if twice := _spread(rows, "content", column):
            lines.append(f"the same photo in {what}: {_count(twice, 'photo')}, as {some(twice)}; keep one of each")
    alike = rows.loc[rows.duplicated(["content", "label", "split"]), "image"].unique()
    if copies := sorted(set(map(short, alike))):
        lines.append(f"copies in one class and split: {_count(copies, 'photo')}, as {some(copies)}; delete them")
    if torn := _spread(rows[rows["group"] != rows["image"]], "group", "split"):
        lines.append(f"groups in more than one split: {_count(torn, 'group')}, as {some(torn)}; give each one split")
    learned = set(table.loc[table["split"] == "train", "label"])
    if learned and (never := [label for label in labels if label not in learned]):
        lines.append(f"never in train, so that no model learns it: {some(never)}; add photos of it")
    sizes = table.groupby("label")["group"].agg(["size", "nunique"])
    for kind, one in (("image", sizes["size"] == 1), ("group", (sizes["nunique"] == 1) & (sizes["size"] > 1))):
        if single := [label for label in sizes.index[one] if label in learned]:
            lines.append(f"one {kind} only, which is used for training: {some(single)}; take more photos")
    return lines


def _spread(rows: pd.DataFrame, key: str, column: str) -> list[str]:
    """Return an example for each `key` that has several values of `column`: an image of each value."""
    rows = rows.drop_duplicates([key, column])
    several: dict[str, list[str]] = {}
    for value, image in rows.loc[rows.duplicated(key, keep=False), [key, "image"]].itertuples(index=False):
        several.setdefault(value, []).append(short(image))
    return [" = ".join(images) for images in several.values()]


def short(path: str) -> str:
    """Return the end of a path that tells an image from others."""
    return "/".join(path.rsplit("/", 2)[-2:])


def contents(files: Iterable[str]) -> list[str]:
    """Return a key for each file that files with the same bytes share; only files of one size are read."""
    files, keys = list(files), {}
    sizes = {path: os.path.getsize(path) for path in set(files) if os.path.isfile(path)}
    shared = Counter(sizes.values())
    for path, size in sizes.items():
        with suppress(OSError):  # reported when its pixels are read
            keys[path] = content_hash(path) if shared[size] > 1 else path
    return [keys.get(path, path) for path in files]


def _same_names(names: Iterable[str]) -> list[list[str]]:
    """Return groups of names that differ in case, spaces, hyphens, underscores or invisible characters only."""
    alike: dict[str, list[str]] = {}
    for name in names:
        plain = unicodedata.normalize("NFKC", name).casefold()
        kept = (c for c in plain if c not in SEPARATORS and unicodedata.category(c) not in ("Cf", "Zs", "Cc"))
        alike.setdefault("".join(kept), []).append(name)
    return [group for group in alike.values() if len(group) > 1]


def some(names: Sequence[str], shown: int = 3) -> str:
    """Return names for a message, the first few of many."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(map(repr, names[:shown])) + more


def _count(names: Sequence[str], what: str) -> str:
    return f"{len(names)} {what}{'' if len(names) == 1 else 's'}"
