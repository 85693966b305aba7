"""The built-in data set: rendered products in shops, with exact ground truth, made at first use and kept.

Families of look-alikes (`catalogue`) get packages (`packaging`, drawn from `artwork.yaml`) and are put into shops
(`scene`, in front of a `shelf`) or on shelves with boxes (`boxes`). Nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm.auto import tqdm

from retailkit.cache import code_fingerprint, digest, replacing
from retailkit.config import DataError, UsageError, pick
from retailkit.data.synthetic.boxes import RELATIONS, render_scenes
from retailkit.data.synthetic.catalogue import CATALOGUE, DEPARTMENTS, FAMILIES
from retailkit.data.synthetic.scene import LEVELS, Effects, compose
from retailkit.data.table import RENDERING, SPLITS, ProductData, make_table, write_truth

__all__ = ["LEVELS", "REGIMES", "RELATIONS", "load", "render_scenes"]

# Training images: photos of shelves, or a few clean images per class, as a supplier's catalogue has them.
REGIMES = {"shelf": None, "packshot": 5, "oneshot": 1}
RANGES = {"correlation": (0, 1), "side": (0, 1), "size": (64, 1024), "families": (1, len(FAMILIES)), "seed": (0, 2**63)}
SHOTS = 2  # of one burst
INFO = {"licence": "MIT", "citation": "Rendered by retailkit; all brands are fictional.", "url": ""}
JPEG_QUALITY = 92
SUMS = "sums.json"  # name of the list of checksums beside the images


@dataclass(frozen=True)
class Shot:
    """One image to be rendered; everything random about it follows from `key` and `shot`."""

    product: int
    split: str
    key: tuple[int, ...]
    shot: int
    background: str
    pose: str

    @property
    def name(self) -> str:
        """File name without suffix: says nothing about the product."""
        return hashlib.blake2b(repr(self).encode(), digest_size=8).hexdigest()

    @property
    def group(self) -> str:
        """The burst."""
        return "-".join(map(str, self.key))

    def files(self, folder: Path) -> dict[str, Path]:
        """The files that belong to it, by column of the table."""
        suffixes = {"image": ".jpg", "mask": ".mask.png", "truth": ".truth.png"}
        return {column: folder / "images" / f"{self.name}{suffix}" for column, suffix in suffixes.items()}

    def row(self, folder: Path) -> dict[str, str]:
        """Its row of the table."""
        product = CATALOGUE[self.product]
        files = {column: str(path) for column, path in self.files(folder).items()}
        names = {"label": product.label, "coarse": product.department, "family": product.family}
        return files | names | {"split": self.split, "condition": self.pose, "group": self.group}


def load(
    root: str | Path,
    *,
    regime: str = "shelf",
    difficulty: str = "easy",
    per_class: tuple[int, int, int] = (48, 4, 8),
    correlation: float = 0.8,
    side: float = 1 / 8,
    size: int = 288,
    families: int = 8,
    seed: int = 0,
    workers: int | None = None,
    **effects: bool,
) -> ProductData:
    """Load the built-in data set; render it below `root` if these options were not rendered before.

    Images come in bursts of two similar shots, which share a `group`. The same options give the same bytes, with
    any number of workers. An interrupted rendering continues where it stopped; damaged files are rendered again.

    Args:
        root: folder for rendered images; those of one look (`difficulty`, `size`, effects) share a folder in it, so
            that a set with more images per class renders only what is new.
        regime: `shelf` (training images taken in shops), `packshot` (5 training images per class, on a clean
            ground) or `oneshot` (1 of these); validation and test images are always taken in shops.
        difficulty: `easy`, `medium` or `hard`: how far the camera is, how far products are turned away from it, how
            much the light differs between shop images, and how often something hides a little of a product.
        per_class: images per class in train, val and test; the first is ignored where `regime` fixes it.
        correlation: in [0, 1]. With this probability a product stands in its own department, otherwise in one drawn
            evenly from all departments (its own among them): 0 makes background and product independent, 1 ties
            them.
        side: share of shop images that show the product's side (condition `side`).
        size: side of the images in pixels.
        families: how many families of look-alikes, from the first on.
        seed: of everything random.
        workers: threads that render; None takes one per core.
        **effects: False switches `shadow`, `reflection`, `lighting`, `occlusion` or `noise` off; see `scene.Effects`.

    Raises:
        UsageError: unknown regime, or a number out of its range.
        DataError: the folder holds anything but rendered sets.
    """
    pick(REGIMES, regime, "regime")
    pick(LEVELS, difficulty, "difficulty")
    _check(per_class, correlation=correlation, side=side, size=size, families=families, seed=seed)
    shots = plan(regime, per_class, correlation, side, families, seed)
    _check_place(Path(root))
    how = {"size": size, "effects": Effects(**effects), "difficulty": difficulty}
    folder = Path(root) / digest(how, LEVELS[difficulty], code_fingerprint(__name__))[:16]
    _render(folder, shots, how, workers)
    table = make_table([shot.row(folder) for shot in shots])
    info = INFO | {"size": f"{len(table)} images of {size}x{size} pixels"}
    return ProductData("synthetic", table, sorted(set(table["label"])), info, fit="stretch")


def _check_place(root: Path) -> None:
    """Refuse to render into a folder that holds anything else, such as somebody's photos."""
    others = [path.name for path in (root.iterdir() if root.is_dir() else ()) if not RENDERING.fullmatch(path.name)]
    if others := sorted(name for name in others if not name.startswith(".")):
        cure = "for photos of your own say --dataset folder (in Python: load('folder', root)), or give an empty folder"
        raise DataError(f"{root}: holds {others[0]!r}, and the built-in data set is not rendered beside it; {cure}")


def plan(
    regime: str, per_class: Sequence[int], correlation: float, side: float, families: int, seed: int
) -> list[Shot]:
    """Return every image of a data set, class by class; see `load`."""
    shots = []
    products = [product for name in list(FAMILIES)[:families] for product in FAMILIES[name]]
    for product, (place, split) in itertools.product(products, enumerate(SPLITS)):
        clean = split == "train" and REGIMES[regime] is not None
        for number in range(REGIMES[regime] if clean else per_class[place]):
            burst, shot = (number, 0) if clean else divmod(number, SHOTS)
            key, background, pose = (seed, product.index, place, burst), "studio", "front"
            if not clean:
                rng = np.random.default_rng([*key, len(SPLITS) + 1000])
                own, other = rng.uniform() < correlation, DEPARTMENTS[int(rng.integers(len(DEPARTMENTS)))]
                background = product.department if own else other
                turn = product.index + burst  # side views are spread evenly over consecutive numbers
                pose = "side" if int((turn + 1) * side) > int(turn * side) else "front"
            shots.append(Shot(product.index, split, key, shot, background, pose))
    return shots


def _check(per_class: Sequence[int], **options: float) -> None:
    if len(per_class) != len(SPLITS) or min(per_class) < 0 or not sum(per_class):
        raise UsageError(f"per_class={per_class} is not (train, val, test) counts; use for example (16, 4, 8)")
    for name, value in options.items():
        low, high = RANGES[name]
        if not low <= value <= high:
            raise UsageError(f"{name}={value} is out of range; use {low} to {high}")


def _render(folder: Path, shots: list[Shot], how: dict[str, Any], workers: int | None) -> None:
    """Render, in threads that share packages and shelves, what is not there yet or not as it was written."""
    sums = _read_sums(folder / SUMS)
    files = {shot: list(shot.files(folder).values()) for shot in shots}
    # One without a checksum is of an interrupted rendering.
    whole = {p: p.is_file() and sums.get(p.name) in (None, _sum(p)) for paths in files.values() for p in paths}
    missing = [shot for shot, paths in files.items() if not all(whole[path] for path in paths)]
    if not missing and all(path.name in sums for path in whole):
        return
    folder.joinpath("images").mkdir(parents=True, exist_ok=True)
    cv_threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    pool = ThreadPoolExecutor(workers or os.cpu_count())
    try:
        written = pool.map(lambda shot: _write_shot(folder, shot, how), missing)
        for _ in tqdm(written, "render", len(missing), unit="image", mininterval=2, disable=not missing):
            pass
    finally:
        pool.shutdown(cancel_futures=True)
        cv2.setNumThreads(cv_threads)
    own = {path.name: _sum(path) for path in whole}
    with replacing(folder / SUMS) as draft:  # other sets of this look may have been rendered meanwhile
        draft.write_text(json.dumps(_read_sums(folder / SUMS) | own))


def _read_sums(path: Path) -> dict[str, str]:
    """Return the checksum of each rendered file; empty where the list is not there or damaged."""
    with suppress(OSError, ValueError, TypeError):
        return dict(json.loads(path.read_bytes()))
    return {}


def _sum(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()


def _write_shot(folder: Path, shot: Shot, how: dict[str, Any]) -> None:
    """Render an image and write it with its mask and truth; the image comes last, when all else is there."""
    look = {"background": shot.background, "pose": shot.pose, "shot": shot.shot}
    made = compose(CATALOGUE[shot.product], shot.key, **how, **look)
    files = shot.files(folder)
    with replacing(files["mask"]) as draft:
        draft.write_bytes(cv2.imencode(".png", made.mask.astype(np.uint8) * 255)[1])
    with replacing(files["truth"]) as draft:
        words = [[text, [round(x, 2) for x in box], key] for text, box, key in made.words]
        write_truth(draft, made.planes, made.facts | {"words": words})
    with replacing(files["image"]) as draft:
        jpeg = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
        draft.write_bytes(cv2.imencode(".jpg", made.image[..., ::-1], jpeg)[1])
