"""What `retailkit check` says of a data set, on one page: how much there is, what is broken, what looks doubtful."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from retailkit.config import DataError, data_root, on_one_line
from retailkit.data import folder, load
from retailkit.data.advice import advise
from retailkit.data.images import read_image, read_mask
from retailkit.data.table import SPLITS, ProductData

MOST_CLASSES = 40  # that are listed one by one


@dataclass(frozen=True)
class Report:
    """What is known of a data set."""

    counts: pd.DataFrame  # images of each class (rows) in each split (columns)
    faults: list[str]  # what has to be mended before anything can be trained
    notes: list[str]  # what is left out, and what looks doubtful
    data: ProductData  # what can be read of its table

    def __str__(self) -> str:
        """Return the page."""
        total, sizes = self.counts.sum(), self.counts.sum(axis=1)
        images = ", ".join(f"{split} {count}" for split, count in total.items())
        classes = "1 class" if len(sizes) == 1 else f"{len(sizes)} classes"
        lines = [f"{total.sum()} images of {classes}: {images}"]
        if 0 < len(sizes) <= MOST_CLASSES:
            lines.append(self.counts.to_string())
        elif len(sizes):
            lines.append(f"{sizes.min()} to {sizes.max()} images per class; the fewest of {sizes.idxmin()!r}")
        for title, found in (("to be mended", self.faults), ("worth a look", self.notes)):
            lines += [f"\n{title} ({len(found)}):", *(f"- {on_one_line(line)}" for line in found)] if found else []
        return "\n".join(lines)


def report(name: str, root: str | Path | None = None) -> Report:
    """Read every image and mask of a data set, and return all that is wrong with it at once.

    Raises:
        DataError: there is nothing to be read at all.
        UsageError: unknown data set.
    """
    if name == "folder":
        data, faults, notes = folder.read(Path(root) if root else data_root(name))
    else:
        data, faults, notes = load(name, root), [], []
    pairs = list(zip(data.table["image"], data.table["mask"], strict=True))
    for image, mask in tqdm(pairs, "check", delay=2, leave=False):
        try:
            pixels = read_image(image)
            if mask and not read_mask(mask, pixels.shape[:2]).any():
                raise DataError(f"{mask}: no pixel of this mask is product; replace it or leave it out")
        except DataError as error:
            faults.append(str(error))
    counts = pd.crosstab(data.table["label"], data.table["split"]).reindex(columns=list(SPLITS), fill_value=0)
    return Report(counts.rename_axis(index=None, columns=None), faults, [*notes, *advise(data.table)], data)
