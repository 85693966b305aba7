"""The contract of a data set: a table with one row per image, its classes, and the samples and batches made from them.

A reader fills the table and reads no pixels. Image, mask, ground truth and words go through one geometric transform.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image, PngImagePlugin
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from retailkit.config import DataError, UsageError, pick
from retailkit.data.conditions import MOVES_PIXELS, apply_condition
from retailkit.data.images import opened, read_image, read_mask

COLUMNS = ("image", "label", "coarse", "family", "split", "text", "mask", "truth", "condition", "group")
SPLITS = ("train", "val", "test")
FITS = ("crop", "pad", "stretch", "stretch_crop")
FORMER_FITS = {"squeeze": "stretch"}  # in older checkpoints
CROP_FRACTION = 0.875  # 224 / 256: the share of the resized short side that `crop` keeps
STRETCH_CROP_FRACTION = 448 / 600  # the share of each side that `stretch_crop` keeps

RENDERING = re.compile("[0-9a-f]{16}")  # name of a folder with rendered images: what they depend on
# Bit planes of a truth file; see `write_truth`.
TRUTH_PLANES = {"twin_patch": 1, "shadow": 2, "reflection": 4}


@dataclass(frozen=True)
class Word:
    """A word on an image."""

    text: str  # as read, or as printed in `Truth.words`
    box: tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels of its image; empty (x0 == x1) when cropped away
    confidence: float = 1.0  # of the OCR engine, in [0, 1]; 1 for ground truth
    discriminative: bool = False  # True where the word tells look-alikes apart; known for ground truth only


def bounding_box(points: np.ndarray) -> tuple[float, float, float, float]:
    """Return x0, y0, x1, y1 around points (N,2)."""
    return (*map(float, points.min(axis=0)), *map(float, points.max(axis=0)))


@dataclass(frozen=True)
class Truth:
    """What the renderer knows and no photo tells. Masks are (1,H,W) bool."""

    twin_patch: Tensor  # pixels that tell the product from its look-alikes
    shadow: Tensor  # pixels darkened by the product's shadow, outside the product
    reflection: Tensor  # pixels that show the product's reflection, outside the product
    words: list[Word] = field(default_factory=list)  # every printed word that can be read
    pose: str = ""  # `front` or `side`
    background: str = ""  # name of the scene behind the product
    lighting: str = ""  # name of the light


@dataclass(frozen=True)
class Sample:
    """One image and all that is known of it."""

    image: Tensor  # (3,H,W) float32 in [0,1]
    label: int  # index into the data set's classes
    text: str  # OCR text of the whole image, may be ""
    words: list[Word]  # OCR words with boxes in this image's pixels
    mask: Tensor | None  # (1,H,W) bool, True = product
    truth: Truth | None  # of rendered images
    index: int  # row of the data set's table


@dataclass
class Batch:
    """Samples, stacked: tensors become (B,...), all else a list; `masks` is None unless every sample has a mask."""

    images: Tensor
    labels: Tensor
    texts: list[str]
    words: list[list[Word]]
    masks: Tensor | None
    truths: list[Truth | None]
    indices: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: str | torch.device) -> Batch:
        """Return this batch with its tensors on `device`."""
        masks = None if self.masks is None else self.masks.to(device)
        return replace(self, images=self.images.to(device), labels=self.labels.to(device), masks=masks)


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples of one size into a `Batch`."""
    columns = zip(*(vars(sample).values() for sample in samples), strict=True)
    images, labels, texts, words, masks, truths, indices = map(list, columns)
    stacked = None if any(mask is None for mask in masks) else torch.stack(masks)
    return Batch(torch.stack(images), torch.tensor(labels), texts, words, stacked, truths, torch.tensor(indices))


def make_table(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Return rows as a data set's table: `COLUMNS`, with "" for what a row does not say."""
    return pd.DataFrame(rows).reindex(columns=list(COLUMNS)).astype(object).fillna("")


def write_truth(path: str | Path, planes: dict[str, np.ndarray], facts: dict[str, Any]) -> None:
    """Write ground truth as one PNG: (H,W) bool `planes` as bits, the `facts` as JSON in a text chunk.

    Facts are `words` (list of [text, [x0,y0,x1,y1], discriminative]), `pose`, `background` and `lighting`.
    """
    packed = sum(planes[name] * np.uint8(bit) for name, bit in TRUTH_PLANES.items())
    info = PngImagePlugin.PngInfo()
    info.add_text("truth", json.dumps(facts, ensure_ascii=True, sort_keys=True))
    Image.fromarray(packed).save(path, format="PNG", pnginfo=info, compress_level=1)


def read_truth(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read what `write_truth` wrote: (H,W) bool planes and the facts, with words as `Word`."""
    try:
        with opened(path) as image:
            packed, facts = np.array(image), json.loads(image.text["truth"])
    except DataError:
        raise DataError(f"{path}: no ground truth inside; delete the cache folder and load again") from None
    facts["words"] = [Word(t, tuple(box), 1.0, mark) for t, box, mark in facts.get("words", [])]
    return {name: (packed & bit) > 0 for name, bit in TRUTH_PLANES.items()}, facts


def to_square(parts: dict[str, Any], fit: str, size: int) -> dict[str, Any]:
    """Bring an image, and the masks and boxes that go with it, to `size` x `size`.

    Args:
        parts: `image` and whatever else moves with it, as torchvision's `tv_tensors`.
        fit: `crop` resizes the short side to size / 0.875 and keeps the centre; `pad` keeps everything on a
            grey square; `stretch` ignores the aspect ratio; `stretch_crop` stretches to size / 448 * 600 and keeps
            the centre, as NTS-Net's authors do.
        size: side of the result in pixels.
    """
    if fit == "crop":
        return v2.CenterCrop(size)(v2.Resize(round(size / CROP_FRACTION))(parts))
    if fit == "stretch_crop":
        return v2.CenterCrop(size)(v2.Resize([round(size / STRETCH_CROP_FRACTION)] * 2)(parts))
    if fit == "pad":
        height, width = parts["image"].shape[-2:]
        dx, dy = max(height - width, 0), max(width - height, 0)
        grey = {tv_tensors.Image: 128, tv_tensors.Mask: 0, "others": 0}
        parts = v2.Pad([dx // 2, dy // 2, dx - dx // 2, dy - dy // 2], fill=grey)(parts)
    return v2.Resize([size, size])(parts)


@dataclass
class ProductData:
    """A data set: its table, classes and where it comes from."""

    name: str  # of the reader that made it
    table: pd.DataFrame  # one row per image: `COLUMNS`, and `words` (lists of `Word`) where the images were read
    classes: list[str]  # sorted; `label` in the table holds names, tensors hold indices into this list
    info: dict[str, str]  # `licence`, `citation`, `url`, `size`
    fit: str = "crop"  # how images of this set are brought to a square; see `to_square`

    def __post_init__(self) -> None:
        if missing := [c for c in COLUMNS if c not in self.table]:
            raise DataError(f"data set {self.name!r}: table lacks the columns {', '.join(missing)}")
        self.table = self.table.reset_index(drop=True)

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        parts = ", ".join(f"{split} {(self.table['split'] == split).sum()}" for split in self.splits)
        return f"ProductData({self.name!r}, {len(self)} images, {len(self.classes)} classes: {parts})"

    @property
    def splits(self) -> list[str]:
        """Names of the splits that hold at least one image, in the order train, val, test."""
        return [s for s in SPLITS if (self.table["split"] == s).any()]

    def has(self, column: str) -> bool:
        """True where at least one row has a non-empty value in `column` (`mask`, `text`, `truth`, ...)."""
        return bool((self.table[column].astype(str) != "").any())

    def files(self) -> list[Path]:
        """Return the files of its images and masks."""
        return [Path(path) for column in ("image", "mask") for path in self.table[column] if path]

    def moved(self, place: Callable[[Path], Path]) -> ProductData:
        """Return the same data set where each of these files lies at `place(path)`."""
        files = {c: [path and str(place(Path(path))) for path in self.table[c]] for c in ("image", "mask")}
        return replace(self, table=self.table.assign(**files))

    def select(self, rows: pd.Series | np.ndarray) -> ProductData:
        """Return the same data set with only the rows given as a boolean mask or positions."""
        return replace(self, table=self.table.iloc[np.asarray(rows)].copy())

    def split(self, name: str, size: int = 224, fit: str | None = None) -> ProductDataset:
        """Return one split as tensors.

        Args:
            name: `train`, `val` or `test`; joined names such as `train+val` are taken together.
            size: side of the square images in pixels.
            fit: one of `FITS`, see `to_square`; None takes the data set's own.

        Raises:
            DataError: the split is empty or its files are not there.
        """
        wanted = [pick(SPLITS, part, "split") for part in name.split("+")]
        rows = np.flatnonzero(self.table["split"].isin(wanted))
        if not len(rows):
            why = self.info.get(f"missing_{name}", "")
            have = ", ".join(self.splits) or "none"
            raise DataError(f"data set {self.name!r} has no {name!r} split (it has: {have}){'; ' + why if why else ''}")
        return ProductDataset(self, rows, size, fit or self.fit)


class ProductDataset(torch.utils.data.Dataset):
    """One split of a `ProductData` as samples of one size; see `ProductData.split`."""

    def __init__(
        self,
        data: ProductData,
        rows: np.ndarray,
        size: int,
        fit: str,
        augment: v2.Transform | None = None,
        condition: tuple[str, int] = ("front", 3),
        reads: Sequence[str] = ("mask", "truth"),
    ) -> None:
        if size < 8:
            raise UsageError(f"image size {size} is too small; use at least 8 pixels")
        self.data, self.rows, self.size = data, np.asarray(rows), int(size)
        self.fit = pick(FITS, FORMER_FITS.get(fit, fit), "fit")
        self.augment, self.condition, self.reads = augment, condition, tuple(reads)
        self._class_index = {name: i for i, name in enumerate(data.classes)}

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def classes(self) -> list[str]:
        """Class names; a sample's label is an index into them."""
        return self.data.classes

    @property
    def table(self) -> pd.DataFrame:
        """The rows of the data set's table that this split holds, in order."""
        return self.data.table.iloc[self.rows]

    @property
    def labels(self) -> np.ndarray:
        """(N,) int64 class indices, without reading an image."""
        return self.table["label"].map(self._class_index).to_numpy(dtype=np.int64)

    @property
    def appearance(self) -> list[Any]:
        """What images depend on besides their files, to tell cached features apart."""
        return [self.size, self.fit, repr(self.augment), self.condition]

    def with_options(self, **changes: Any) -> ProductDataset:
        """Return a copy with another `size`, `fit`, `augment`, `condition` (name and severity), `rows` or `reads`.

        `reads` names the files that are read beside the image: `mask` and `truth`, or neither, which is faster.
        """
        now = {name: getattr(self, name) for name in ("rows", "size", "fit", "augment", "condition", "reads")}
        return ProductDataset(self.data, **now | changes)

    def __getitem__(self, position: int) -> Sample:
        index = int(self.rows[position])
        row = self.data.table.iloc[index]
        try:
            return self._sample(row, index)
        except DataError as error:
            raise DataError(f"row {index} of {self.data.name!r}: {error}") from None

    def _sample(self, row: pd.Series, index: int) -> Sample:
        pixels = apply_condition(read_image(row["image"]), *self.condition)
        shape = pixels.shape[:2]
        fits = self.condition[0] not in MOVES_PIXELS  # else outlines and boxes lie elsewhere
        words = list(row["words"]) if fits and isinstance(row.get("words"), (list, tuple)) else []
        parts: dict[str, Any] = {"image": tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1))}
        if fits and row["mask"] and "mask" in self.reads:
            parts["mask"] = _as_mask(read_mask(row["mask"], shape))
        facts: dict[str, Any] = {}
        if fits and row["truth"] and "truth" in self.reads:
            planes, facts = read_truth(row["truth"])
            parts |= {name: _as_mask(plane) for name, plane in planes.items()}
            parts["truth_words"] = _as_boxes(facts["words"], shape)
        parts["words"] = _as_boxes(words, shape)
        parts = self.augment(parts) if self.augment else to_square(parts, self.fit, self.size)
        masks = {name: parts[name].as_subclass(Tensor).bool() for name in ("mask", *TRUTH_PLANES) if name in parts}
        mask = masks.pop("mask", None)
        return Sample(
            image=parts["image"].as_subclass(Tensor).float().div(255).clamp(0, 1),
            label=self._class_index[row["label"]],
            text=row["text"],
            words=_moved(words, parts["words"]),
            mask=mask,
            truth=Truth(**masks, **facts | {"words": _moved(facts["words"], parts["truth_words"])}) if facts else None,
            index=index,
        )


def _as_mask(mask: np.ndarray) -> tv_tensors.Mask:
    return tv_tensors.Mask(torch.from_numpy(mask)[None])


def _as_boxes(words: Sequence[Word], shape: tuple[int, int]) -> tv_tensors.BoundingBoxes:
    boxes = torch.tensor([w.box for w in words], dtype=torch.float32).reshape(-1, 4)
    return tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=shape)


def _moved(words: Sequence[Word], boxes: Tensor) -> list[Word]:
    return [replace(w, box=tuple(b)) for w, b in zip(words, boxes.tolist(), strict=True)]
