"""Masks of photos that come without: GrabCut, when to trust it, and masks made worse on purpose.

Xiao et al. (appendix A) accept a GrabCut mask by its share of a known box. Where no box is known, the product is taken
to be in the middle, and two GrabCuts from central boxes must find the same. Mask quality is what the studies of
backgrounds disagree about, hence `degrade` and `iou`.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from retailkit.cache import replacing
from retailkit.config import UsageError, cache_dir, pick
from retailkit.data.images import read_image
from retailkit.data.table import DataError, ProductData

ROUNDS = 5  # of GrabCut
RETRIES = 10
LEAST_SHARE = 0.1  # of the box, or of the picture
MOST_SHARE = 0.9  # of the picture
CENTRAL = (0.8, 0.9)  # sides of the two boxes, in shares of the picture's
AGREEMENT = 0.7  # intersection over union of what they find
REJECTED = ("drop", "keep")
_RECIPE = 1  # raise when a mask changes for the same picture and settings

Box = tuple[float, float, float, float]


def grabcut(image: np.ndarray, box: Sequence[float], seed: int = 0) -> np.ndarray | None:
    """Cut out what is inside a box (Rother et al. 2004), as Xiao et al. do: until the mask fills enough of the box.

    Args:
        image: (H,W,3) uint8.
        box: x0, y0, x1, y1 in pixels, clipped to the picture.
        seed: of the first try; GrabCut starts from random clusters.

    Returns:
        (H,W) bool of at least a tenth of the box; None where no try gives one.
    """
    height, width = image.shape[:2]
    x0, x1 = np.clip(np.rint(box[0::2]), 0, width).astype(int).tolist()
    y0, y1 = np.clip(np.rint(box[1::2]), 0, height).astype(int).tolist()
    area = (x1 - x0) * (y1 - y0)
    if area <= 0 or area == width * height:
        return None  # nothing inside, or nothing outside to tell it from
    for attempt in range(1 + RETRIES):
        mask = _one_try(image, (x0, y0, x1 - x0, y1 - y0), seed + attempt)
        if mask is not None and mask.sum() >= LEAST_SHARE * area:
            return mask
    return None


def _one_try(image: np.ndarray, rectangle: tuple[int, int, int, int], seed: int) -> np.ndarray | None:
    """Return the mask (H,W) bool of one GrabCut; None where it fails."""
    mask = np.zeros(image.shape[:2], np.uint8)
    cv2.setRNGSeed(seed)
    try:
        cv2.grabCut(image, mask, rectangle, np.zeros((1, 65)), np.zeros((1, 65)), ROUNDS, cv2.GC_INIT_WITH_RECT)
    except cv2.error:
        return None
    return (mask == cv2.GC_FGD) | (mask == cv2.GC_PR_FGD)


def central_grabcut(image: np.ndarray, seed: int = 0) -> tuple[np.ndarray | None, str]:
    """Cut out a product that is taken to be in the middle: no box is known.

    GrabCut starts once from each of the central boxes of 80 and of 90 % of the sides. The masks must agree
    (intersection over union of 0.7), and the larger box's mask, which is the result, must fill between 10 and 90 % of
    the picture.

    Args:
        image: (H,W,3) uint8.
        seed: see `grabcut`.

    Returns:
        (H,W) bool or None, and why: `accepted`, `nothing found`, `no agreement` or `share of the picture`.
    """
    outer = _central(image, CENTRAL[1], seed)
    if outer is None or not outer.any():
        return None, "nothing found"
    if not LEAST_SHARE <= outer.mean() <= MOST_SHARE:
        return None, "share of the picture"
    inner = _central(image, CENTRAL[0], seed)
    if inner is None or (inner & outer).sum() < AGREEMENT * (inner | outer).sum():
        return None, "no agreement"
    return outer, "accepted"


def _central(image: np.ndarray, side: float, seed: int) -> np.ndarray | None:
    """Return what one GrabCut finds in the central box with this share of the sides."""
    height, width = image.shape[:2]
    left, top = round((1 - side) / 2 * width), round((1 - side) / 2 * height)
    return _one_try(image, (left, top, width - 2 * left, height - 2 * top), seed)


def grabcut_of(images: Tensor, boxes: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Cut out of a batch what is inside known boxes, to set it beside true masks.

    Args:
        images: (B,3,H,W) in [0,1].
        boxes: (B,4) x0, y0, x1, y1 in pixels, such as `backgrounds.boxes` of the true masks.
        seed: see `grabcut`.

    Returns:
        Masks (B,1,H,W) bool, empty where no try was accepted, and (B,) bool, True = accepted.
    """
    masks = torch.zeros(len(images), 1, *images.shape[2:], dtype=torch.bool)
    for mask, image, box in zip(masks, images, boxes.tolist(), strict=True):
        pixels = (image.float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().cpu().numpy()
        if (found := grabcut(pixels, box, seed)) is not None:
            mask[0] = torch.from_numpy(found)
    return masks, masks.flatten(1).any(1)


def iou(masks: Tensor, others: Tensor) -> Tensor:
    """Return (B,) the intersection over union of masks (B,1,H,W) bool; 1 where both are empty."""
    both, either = (part.flatten(1).sum(1) for part in (masks & others, masks | others))
    return torch.where(either > 0, both / either, 1.0)


# -- Masks of a data set.


def masked(
    data: ProductData,
    boxes: Sequence[Box | None] | None = None,
    *,
    side: int = 256,
    seed: int = 0,
    rejected: str = "drop",
    jobs: int | None = None,
    progress: bool = True,
) -> ProductData:
    """Return the data set with a mask file for each picture that has none.

    GrabCut starts from the known box of a picture, or else from its middle (`central_grabcut`). Each picture is cut
    out once: masks, and that one was rejected, are cached by the file's bytes and the settings, so a killed run goes
    on where it was. OpenCV lets go of Python's lock, so threads use all cores.

    Args:
        data: the data set; it is not changed. Masks that it brings stay.
        boxes: one for each row of the table: x0, y0, x1, y1 in pixels of the upright picture, or None; None for
            all where none is known.
        side: GrabCut sees the picture with this short side in pixels, never enlarged. 160 takes a fifth of the time
            and is visibly worse.
        seed: see `grabcut`.
        rejected: `drop` the rows whose mask is rejected, or `keep` them without a mask.
        jobs: threads; None takes one for each core.
        progress: show a bar.

    Raises:
        UsageError: boxes that are not one a row, an unknown word for `rejected`, or a side below 16 pixels.
        DataError: a picture cannot be read; the message names file and row. What was done before is cached.
    """
    pick(REJECTED, rejected, "treatment of rejected masks")
    boxes = [None] * len(data) if boxes is None else list(boxes)
    if len(boxes) != len(data):
        raise UsageError(f"{len(boxes)} boxes for {len(data)} rows; give one a row, or None where it is unknown")
    if side < 16:
        raise UsageError(f"side={side} is too small to cut anything out; use at least 16 pixels")
    table, folder = data.table.copy(), cache_dir("masks")
    keys = {row: _key(data, row, boxes[row], side, seed) for row in np.flatnonzero(table["mask"] == "")}
    rows = {key: row for row, key in keys.items()}  # the same photo twice is cut out once
    with ThreadPoolExecutor(jobs or os.cpu_count()) as pool:
        work = ((data, row, boxes[row], side, seed, folder / key) for key, row in rows.items())
        tasks = {pool.submit(_mask_file, *task): task[-1].name for task in work}
        bar = tqdm(as_completed(tasks), "masks", len(tasks), mininterval=2, disable=not (progress and tasks))
        try:
            found = {tasks[task]: task.result() for task in bar}
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    table["mask"] = [found[keys[row]] if row in keys else mask for row, mask in enumerate(table["mask"])]
    result = replace(data, table=table)
    return result if rejected == "keep" else result.select((table["mask"] != "").to_numpy())


def acceptance(before: ProductData, after: ProductData) -> pd.DataFrame:
    """Tell how many pictures of each class have a mask after `masked`.

    Args:
        before: what `masked` was given.
        after: what it returned, rejected rows dropped or kept.

    Returns:
        One row a class, the lowest share first: `label`, `photos`, `accepted`, `share` in [0,1].
    """
    has_mask = set(after.table.loc[after.table["mask"] != "", "image"])
    seen = pd.DataFrame({"label": before.table["label"], "accepted": before.table["image"].isin(has_mask)})
    counts = seen.groupby("label")["accepted"].agg(photos="size", accepted="sum", share="mean")
    return counts.sort_values("share", kind="stable").reset_index()


def _key(data: ProductData, row: int, box: Box | None, side: int, seed: int) -> str:
    """Return what the mask of a picture depends on, as one digest."""
    path = data.table["image"].iloc[row]
    rule = [ROUNDS, RETRIES, LEAST_SHARE, MOST_SHARE, CENTRAL, AGREEMENT, _RECIPE]
    recipe = json.dumps([None if box is None else [float(end) for end in box], side, seed, rule, cv2.__version__])
    try:
        return hashlib.sha256(recipe.encode() + Path(path).read_bytes()).hexdigest()
    except OSError as error:
        place = f"row {row} of {data.name!r}: {path}"
        raise DataError(f"{place}: {error.strerror}; restore the file or drop its row") from None


def _mask_file(data: ProductData, row: int, box: Box | None, side: int, seed: int, stem: Path) -> str:
    """Return the path of one picture's mask, made if it is not in the cache; "" where it was rejected."""
    accepted, refused = stem.with_suffix(".png"), stem.with_suffix(".txt")
    if not accepted.is_file() and not refused.is_file():
        try:
            image = read_image(data.table["image"].iloc[row])
        except DataError as error:
            raise DataError(f"row {row} of {data.name!r}: {error}") from None
        _write(accepted, refused, *_cut_out(image, box, side, seed))
    return str(accepted) if accepted.is_file() else ""


def _cut_out(image: np.ndarray, box: Box | None, side: int, seed: int) -> tuple[np.ndarray | None, str]:
    """Return the mask of a picture at its full size, or None, and why; it is found at a reduced size."""
    height, width = image.shape[:2]
    scale = min(1.0, side / min(height, width))
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else image
    if box is None:
        mask, why = central_grabcut(small, seed)
    else:
        mask = grabcut(small, [end * scale for end in box], seed)
        why = "nothing found" if mask is None else "accepted"
    if mask is not None and scale < 1:
        mask = cv2.resize(np.float32(mask), (width, height), interpolation=cv2.INTER_LINEAR) >= 0.5
    return mask, why


def _write(accepted: Path, refused: Path, mask: np.ndarray | None, why: str) -> None:
    """Write the mask, or that there is none."""
    if mask is None:
        with replacing(refused) as draft:
            draft.write_text(why, encoding="utf-8")
    else:
        with replacing(accepted) as draft:
            Image.fromarray(mask).save(draft, format="PNG")


# -- Worse masks.


def degrade(masks: Tensor, how: str, amount: float, seed: int = 0) -> Tensor:
    """Make masks worse, each by itself: the same mask always comes out the same.

    Args:
        masks: (B,1,H,W) bool.
        how: key of `DEGRADATIONS`.
        amount: by how much the outline moves, in shares of the picture's longer side; 0 changes nothing. For
            `noise` it is the standard deviation.
        seed: of the noise.

    Returns:
        (B,1,H,W) bool. An eroded mask may come out empty; `backgrounds.usable` finds those.

    Raises:
        UsageError: unknown way, or a negative amount.
    """
    change = DEGRADATIONS[pick(DEGRADATIONS, how, "way to degrade masks")]
    if not amount >= 0:
        raise UsageError(f"amount={amount} is negative; use 0 or more, in shares of the picture's side")
    worse = []
    for mask in masks[:, 0].cpu().numpy():
        rng = np.random.default_rng([seed, zlib.crc32(np.packbits(mask).tobytes())])
        worse.append(change(mask, amount * max(mask.shape), rng))
    return torch.from_numpy(np.stack(worse))[:, None].to(masks.device)


def _erosion(mask: np.ndarray, pixels: float, rng: np.random.Generator) -> np.ndarray:
    return _depth(mask) > pixels


def _dilation(mask: np.ndarray, pixels: float, rng: np.random.Generator) -> np.ndarray:
    return _depth(~mask) <= pixels


def _noise(mask: np.ndarray, pixels: float, rng: np.random.Generator) -> np.ndarray:
    """Move the outline in and out by a smooth random field of unit variance, with bumps of a 25th of the side."""
    field = cv2.GaussianBlur(rng.standard_normal(mask.shape), (0, 0), max(mask.shape) / 25)
    field = (field - field.mean()) / max(field.std(), 1e-9)
    signed = np.where(mask, _depth(mask) - 0.5, 0.5 - _depth(~mask))
    return signed + pixels * field > 0


def _depth(mask: np.ndarray) -> np.ndarray:
    """Return (H,W) how far a pixel of the mask is from the next one outside it, in pixels; 0 outside.

    The edge of the picture is no outline: a product that it cuts goes on beyond.
    """
    if mask.all():
        return np.full(mask.shape, np.inf)
    return cv2.distanceTransform(np.uint8(mask), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)


# Called as change(mask (H,W) bool, pixels, generator) -> (H,W) bool.
DEGRADATIONS: dict[str, Callable[[np.ndarray, float, np.random.Generator], np.ndarray]] = {
    "erosion": _erosion,
    "dilation": _dilation,
    "noise": _noise,
}
