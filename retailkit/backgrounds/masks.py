"""Masks of photos that come without: GrabCut, when to trust it, and masks made worse on purpose."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from retailkit.cache import digest, open_file, replacing
from retailkit.config import UsageError, UserError, cache_dir, pick
from retailkit.data.images import image_size, read_image, read_mask
from retailkit.data.table import DataError, ProductData

ROUNDS = 5  # of GrabCut
RETRIES = 10
LEAST_SHARE = 0.1  # of the box, or of the image
MOST_SHARE = 0.9  # of the image
CENTRAL = (0.8, 0.9)  # sides of the two boxes, in shares of the image's
AGREEMENT = 0.7  # intersection over union of what they find
SIDE = 256  # GrabCut sees a photo with this short side in pixels, never enlarged
_RECIPE = 2  # raise when a mask changes for the same photo and settings


def grabcut(image: np.ndarray, box: Sequence[float], seed: int = 0) -> np.ndarray:
    """Cut what is inside a box (x0, y0, x1, y1) out of an image (H,W,3) uint8 (Rother et al. 2004).

    GrabCut starts from random clusters, again until the mask fills a tenth of the box (Xiao et al., appendix A).
    Returns (H,W) bool, empty where no try gives such a mask.
    """
    height, width = image.shape[:2]
    x0, y0, x1, y1 = (round(end) for end in box)
    area = (x1 - x0) * (y1 - y0)
    if 0 < area < width * height:  # something inside, and something outside to tell it from
        for attempt in range(1 + RETRIES):
            mask = _one_try(image, (x0, y0, x1 - x0, y1 - y0), seed + attempt)
            if mask.sum() >= LEAST_SHARE * area:
                return mask
    return np.zeros((height, width), bool)


def _one_try(image: np.ndarray, rectangle: tuple[int, int, int, int], seed: int) -> np.ndarray:
    """Return the mask (H,W) bool of one GrabCut, empty where it fails."""
    mask = np.zeros(image.shape[:2], np.uint8)
    cv2.setRNGSeed(seed)
    try:
        cv2.grabCut(image, mask, rectangle, np.zeros((1, 65)), np.zeros((1, 65)), ROUNDS, cv2.GC_INIT_WITH_RECT)
    except cv2.error:
        mask[:] = cv2.GC_BGD
    return (mask == cv2.GC_FGD) | (mask == cv2.GC_PR_FGD)


def central_grabcut(image: np.ndarray) -> np.ndarray:
    """Cut out of an image (H,W,3) uint8 a product that is taken to be in the middle, as no box is known.

    GrabCut starts once from each of the central boxes of 80 and of 90 % of the sides. The masks must agree
    (intersection over union of 0.7), and the larger box's mask, which is the result (H,W) bool, must fill between 10
    and 90 % of the image; else the result is empty.
    """
    height, width = image.shape[:2]

    def cut(side: float) -> np.ndarray:
        left, top = round((1 - side) / 2 * width), round((1 - side) / 2 * height)
        return _one_try(image, (left, top, width - 2 * left, height - 2 * top), seed=0)

    outer = cut(CENTRAL[1])
    if LEAST_SHARE <= outer.mean() <= MOST_SHARE:
        inner = cut(CENTRAL[0])
        if (inner & outer).sum() >= AGREEMENT * (inner | outer).sum():
            return outer
    return np.zeros_like(outer)


def iou(masks: Tensor, others: Tensor) -> Tensor:
    """Return (B,) the intersection over union of masks (B,1,H,W) bool; 1 where both are empty."""
    both, either = (part.flatten(1).sum(1) for part in (masks & others, masks | others))
    return torch.where(either > 0, both / either, 1.0)


# -- Masks of a data set.


def masked(data: ProductData) -> ProductData:
    """Return the data set with a mask file for each photo that has none, unless it is rejected; see `central_grabcut`.

    Masks are cached by the file's bytes, so a killed run goes on where it was. A photo that cannot be read raises
    DataError.
    """
    table, folder = data.table.copy(), cache_dir("masks")
    bare = np.flatnonzero(table["mask"] == "")
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        found = pool.map(lambda row: _mask_file(data, row, folder), bare)
        bar = tqdm(found, desc="masks", total=len(bare), delay=2, mininterval=2)
        table.loc[bare, "mask"] = np.array(list(bar), dtype=object)
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupt does not wait for all other photos
    return replace(data, table=table)


def _mask_file(data: ProductData, row: int, folder: Path) -> str:
    """Return the path of one photo's mask, made if it is not in the cache or damaged; "" where it was rejected.

    A rejected mask is kept without any pixel of product, so that nobody tries again.
    """
    photo = data.table["image"].iloc[row]
    rule = [SIDE, ROUNDS, LEAST_SHARE, MOST_SHARE, CENTRAL, AGREEMENT, _RECIPE, cv2.__version__]
    try:
        with open_file(photo) as file:
            path = folder / f"{digest(rule, file.read())}.png"
        size = image_size(photo)[::-1]
        try:
            mask = read_mask(path, size)
        except DataError:  # not there, or damaged
            mask = _cut_out(read_image(photo))
            with replacing(path) as draft:
                Image.fromarray(mask).save(draft, format="PNG")
    except UserError as error:
        raise DataError(f"row {row} of {data.name!r}: {error}") from None
    return str(path) if mask.any() else ""


def _cut_out(image: np.ndarray) -> np.ndarray:
    """Return the mask of a photo at its full size, empty where it is rejected; it is found at a reduced size."""
    height, width = image.shape[:2]
    scale = min(1.0, SIDE / min(height, width))
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else image
    mask = np.float32(central_grabcut(small))
    return cv2.resize(mask, (width, height), interpolation=cv2.INTER_LINEAR) >= 0.5


# -- Degraded masks.


def degrade(masks: Tensor, how: str, amount: float, seed: int = 0) -> Tensor:
    """Make masks (B,1,H,W) bool worse, each by itself: the same mask always comes out the same.

    The outline moves by `amount`, in shares of the image's longer side (0 changes nothing); `how` is a key of
    `DEGRADATIONS`, and for `noise` the amount is the standard deviation. An eroded mask may come out empty.
    """
    change = DEGRADATIONS[pick(DEGRADATIONS, how, "way to degrade masks")]
    if not amount >= 0:
        raise UsageError(f"amount={amount} is negative; use 0 or more, in shares of the image's side")
    worse = []
    for mask in masks[:, 0].cpu().numpy():
        rng = np.random.default_rng([seed, zlib.crc32(np.packbits(mask).tobytes())])
        worse.append(change(mask, amount * max(mask.shape), rng))
    return torch.from_numpy(np.stack(worse))[:, None].to(masks.device)


def _noise(mask: np.ndarray, pixels: float, rng: np.random.Generator) -> np.ndarray:
    """Move the outline in and out by a smooth random field of unit variance, with bumps of a 25th of the side."""
    bumps = cv2.GaussianBlur(rng.standard_normal(mask.shape), (0, 0), max(mask.shape) / 25)
    bumps = (bumps - bumps.mean()) / max(bumps.std(), 1e-9)
    signed = np.where(mask, _depth(mask) - 0.5, 0.5 - _depth(~mask))
    return signed + pixels * bumps > 0


def _depth(mask: np.ndarray) -> np.ndarray:
    """Return (H,W) how far a pixel of the mask is from the next one outside it, in pixels; 0 outside.

    The edge of the image is no outline: a product that it cuts goes on beyond.
    """
    if mask.all():
        return np.full(mask.shape, np.inf)
    return cv2.distanceTransform(np.uint8(mask), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)


# Called as change(mask (H,W) bool, pixels, generator) -> (H,W) bool.
DEGRADATIONS: dict[str, Callable[[np.ndarray, float, np.random.Generator], np.ndarray]] = {
    "erosion": lambda mask, pixels, rng: _depth(mask) > pixels,
    "dilation": lambda mask, pixels, rng: _depth(~mask) <= pixels,
    "noise": _noise,
}
