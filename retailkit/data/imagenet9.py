"""Reader of ImageNet-9 and its background variants, as their authors released them."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from retailkit.config import pick
from retailkit.data.table import COLUMNS, DataError, ProductData

IMAGENET9 = {
    "licence": "that of ImageNet: research and education, not commercial",
    "citation": "K. Xiao, L. Engstrom, A. Ilyas, A. Madry: Noise or Signal: The Role of Image Backgrounds in Object "
    "Recognition. ICLR 2021",
    "url": "https://github.com/MadryLab/backgrounds_challenge",
    "size": "9 classes; 5,045 training and 450 test images each in every variant, 224x224",
}
# Variant -> whether the foreground is to be seen, and its mask is of use.
VARIANTS = {
    "original": True,
    "mixed_same": True,
    "mixed_rand": True,
    "mixed_next": True,
    "only_fg": True,
    "only_bg_b": False,
    "only_bg_t": False,
    "no_fg": False,
    "in9l": True,
}
SPLITS = {"train": "train", "val": "test"}  # folder -> split: what is released as `val` is what the paper tests on
SUFFIXES = (".jpeg", ".jpg", ".png")
CLASS = re.compile(r"\d\d_\w+")
PASTED = re.compile(r"fg_(.+)_bg_.+")


def load_imagenet9(root: str | Path, *, variant: str = "original") -> ProductData:
    """Read one variant of ImageNet-9: `<root>/<variant>/{train,val}/<NN_class>/*.JPEG`.

    Classes keep their number (`00_dog`), so that the next class of `mixed_next` is the next one here. The released
    `val` is the test split; there is no other to choose settings on. `mask` is `<root>/fg_mask/<split>/<class>/
    <stem>.npy` where there is one and the variant shows the foreground, of a pasted picture that of its foreground.
    `group` is the photo that the foreground (or, without one, the background) is from.

    Args:
        root: the folder with a folder for each variant.
        variant: key of `VARIANTS`; `in9l` is the larger set of originals.

    Raises:
        UsageError: unknown variant.
        DataError: the folder is missing or holds no images in class folders; the message names it and the cure.
    """
    pick(VARIANTS, variant, "variant of ImageNet-9")
    root, cure = Path(root), f"get it from {IMAGENET9['url']}, or point --root at the folder with the variants"
    if not root.is_dir():
        raise DataError(f"{root}: no ImageNet-9 here; {cure}")
    if not (root / variant).is_dir():
        have = ", ".join(name for name in VARIANTS if (root / name).is_dir()) or "none"
        raise DataError(f"{root / variant}: no such variant here (there: {have}); {cure}")
    rows = [row for folder in SPLITS for row in _read_split(root, variant, folder)]
    if not rows:
        raise DataError(f"{root / variant}: no images (train or val/<NN_class>/*.JPEG); {cure}")
    table = pd.DataFrame(rows, columns=list(COLUMNS)).astype(object).fillna("")
    hints = {
        "missing_train": f"{root / variant / 'train'} is not there; {cure}",
        "missing_val": "ImageNet-9 has none; hold out part of train",
        "missing_test": f"{root / variant / 'val'} is not there; {cure}",
    }
    # The paper shows the released pictures whole: they are 224 px wide and high, and no rim is cut off.
    return ProductData("imagenet9", table, sorted(set(table["label"])), IMAGENET9 | hints, fit="stretch")


def _read_split(root: Path, variant: str, folder: str) -> list[dict[str, str]]:
    """List the images of one split by class and name."""
    place = root / variant / folder
    if not place.is_dir():
        return []
    rows = []
    for named in sorted(path for path in place.iterdir() if path.is_dir() and not path.name.startswith(".")):
        if not CLASS.fullmatch(named.name):
            raise DataError(f"{named}: not a class of ImageNet-9 (such as 00_dog); move it out of {place}")
        there = _masks(root / "fg_mask" / folder / named.name) if VARIANTS[variant] else {}
        for path in sorted(path for path in named.iterdir() if path.suffix.lower() in SUFFIXES):
            pasted = PASTED.fullmatch(path.stem)
            photo = pasted[1] if pasted else path.stem
            rows.append(
                {
                    "image": str(path),
                    "label": named.name,
                    "split": SPLITS[folder],
                    "mask": there.get(photo, ""),
                    "group": f"{folder}/{photo}",
                }
            )
    return rows


def _masks(folder: Path) -> dict[str, str]:
    """Return mask files by photo; empty where there is no such folder."""
    return {path.stem.removeprefix("fg_"): str(path) for path in folder.glob("*.npy")}
