"""Background variants by name: the eight of Xiao et al. and one factor at a time.

The eight are those of *Noise or Signal* (Xiao et al., ICLR 2021, section 2 and figure 1), the others experiments of
*Object Recognition With Help From Background*, and occlusion. Lengths are shares of the image's longer side.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from skimage.color import deltaE_ciede2000, rgb2lab
from torch import Tensor
from torchvision.ops import masks_to_boxes

from retailkit.config import UsageError, UserError, pick

LARGEST_BOX = 0.9  # of the image: with a larger box Xiao et al. drop an image from the background sets (appendix A)
CONTRASTS = {"high": np.argmax, "low": np.argmin}
LEVELS = np.linspace(0, 1, 5, dtype=np.float32)
PALETTE = np.stack(np.meshgrid(LEVELS, LEVELS, LEVELS, indexing="ij"), axis=-1).reshape(-1, 3)  # 125 colours


@dataclass(frozen=True)
class MaskedImages:
    """Images (B,3,H,W) in [0,1], masks (B,1,H,W) bool, their boxes (B,4), and donors (B,3,H,W), if any: see `boxes`."""

    images: Tensor
    masks: Tensor
    boxes: Tensor
    donors: Tensor | None = None
    seed: int = 0


# -- The paper's eight.


def only_bg_b(batch: MaskedImages) -> Tensor:
    """Paint the box black."""
    result = batch.images.clone()
    for image, (x0, y0, x1, y1) in zip(result, batch.boxes.tolist(), strict=True):
        image[:, y0:y1, x0:x1] = 0
    return result


def only_bg_t(batch: MaskedImages) -> Tensor:
    """Fill the box with the background beside it.

    Of the four strips beside the box, of full height or full width, the largest tiles the image from the top left
    corner, and the tiles are kept inside the box only. Of equal strips the lower comes first, as in the authors' code.
    """
    result = batch.images.clone()
    for image, source, box in zip(result, batch.images, batch.boxes.tolist(), strict=True):
        x0, y0, x1, y1 = box
        axis, start, length = _largest_strip(box, *source.shape[1:])
        inside = torch.arange(*((x0, x1) if axis == 2 else (y0, y1)))
        tiled = (start + inside % length).to(source.device)
        strip = source[:, y0:y1] if axis == 2 else source[:, :, x0:x1]
        image[:, y0:y1, x0:x1] = strip.index_select(axis, tiled)
    return result


def _largest_strip(box: Sequence[int], height: int, width: int) -> tuple[int, int, int]:
    """Return the axis (2 = beside, 1 = above or below), the start and the length of the strip that tiles."""
    x0, y0, x1, y1 = box
    if max(x0, width - x1) * height > max(y0, height - y1) * width:
        return (2, 0, x0) if x0 > width - x1 else (2, x1, width - x1)
    return (1, 0, y0) if y0 > height - y1 else (1, y1, height - y1)


def mixed(batch: MaskedImages) -> Tensor:
    """Paste the product onto the background of its donor; which image that is, `choose_donors` says."""
    return torch.where(batch.masks, batch.images, batch.donors)


# -- One factor at a time.


def coloured(batch: MaskedImages, *, colour: str | Sequence[float] = "high") -> Tensor:
    """Paint the product onto one colour: (r, g, b) in [0,1], or the one of highest or lowest contrast.

    `high` and `low` are the colours of a palette of 125 that differ most, or least, from each product's mean colour by
    CIEDE2000 (the mean is taken in CIELAB as well).
    """
    best = CONTRASTS[pick(CONTRASTS, colour, "contrast")] if isinstance(colour, str) else None

    def paint(image: np.ndarray, mask: np.ndarray, box: Sequence[int]) -> np.ndarray:
        chosen = colour
        if best:
            palette, mean = rgb2lab(PALETTE), rgb2lab(image[mask]).mean(axis=0)
            chosen = PALETTE[best(deltaE_ciede2000(np.broadcast_to(mean, palette.shape), palette))]
        return np.where(mask[..., None], image, np.float32(chosen))

    return _paint_each(batch, paint)


def blurred(batch: MaskedImages, *, sigma: float = 0.04) -> Tensor:
    """Blur the background by a Gaussian and paste the sharp product onto it.

    The product takes no part in the blur: blur(image (1 - mask)) / blur(1 - mask), so it leaves no halo. `sigma` is the
    standard deviation.
    """
    _check_range("sigma", sigma, 0, np.inf)

    def paint(image: np.ndarray, mask: np.ndarray, box: Sequence[int]) -> np.ndarray:
        weight, pixels = np.float32(~mask)[..., None], sigma * max(mask.shape)
        mean = _gauss(image * weight, pixels) / np.maximum(_gauss(weight[..., 0], pixels), 1e-6)[..., None]
        return np.where(mask[..., None], image, mean.clip(0, 1))

    return _paint_each(batch, paint)


def region_reduced(batch: MaskedImages, *, reach: float = 0.05) -> Tensor:
    """Keep the product and what lies within a distance of it, 0 to infinity; the rest is black."""
    _check_range("reach", reach, 0, np.inf)

    def paint(image: np.ndarray, mask: np.ndarray, box: Sequence[int]) -> np.ndarray:
        distance = cv2.distanceTransform(np.uint8(~mask), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        return image * (distance <= reach * max(mask.shape))[..., None]

    return _paint_each(batch, paint)


def paste_own(batch: MaskedImages) -> Tensor:
    """Paste the product onto its own tiled background: the control of `generic_paste`, with the same seams."""
    return torch.where(batch.masks, batch.images, only_bg_t(batch))


def object_size(batch: MaskedImages, *, scale: float = 0.5) -> Tensor:
    """Scale the product's sides about the centre of its box, on its own tiled background; 1 is `paste_own`."""
    _check_range("scale", scale, 1e-3, 1e3)
    backgrounds = iter(only_bg_t(batch))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR

    def paint(image: np.ndarray, mask: np.ndarray, box: Sequence[int]) -> np.ndarray:
        x0, y0, x1, y1 = box
        size = (max(1, round((x1 - x0) * scale)), max(1, round((y1 - y0) * scale)))
        product = cv2.resize(_cut_out(image, mask)[y0:y1, x0:x1], size, interpolation=how)
        left, top = (x0 + x1 - size[0]) // 2, (y0 + y1 - size[1]) // 2
        product = product[max(0, -top) : mask.shape[0] - top, max(0, -left) : mask.shape[1] - left]
        result, left, top = _to_array(next(backgrounds)).copy(), max(0, left), max(0, top)
        part = result[top : top + product.shape[0], left : left + product.shape[1]]
        part[:] = part * (1 - product[..., 3:]) + product[..., :3]
        return result

    return _paint_each(batch, paint)


def shadow(
    batch: MaskedImages, *, angle: float = 45, distance: float = 0.06, softness: float = 0.02, strength: float = 0.6
) -> Tensor:
    """Darken the background where the product, moved aside, covers it.

    It moves by `distance` in the direction `angle` in degrees (0 is right, 90 is down). `softness` is the standard
    deviation of the blurred edge, `strength` the share of the light that is taken away, in [0,1].
    """
    _check_range("strength", strength, 0, 1)
    _check_range("softness", softness, 0, 1)

    def paint(image: np.ndarray, mask: np.ndarray, box: Sequence[int]) -> np.ndarray:
        side = max(mask.shape)
        dx, dy = (round(distance * side * turn(np.deg2rad(angle))) for turn in (np.cos, np.sin))
        moved = cv2.warpAffine(np.float32(mask), np.float32([[1, 0, dx], [0, 1, dy]]), mask.shape[::-1])
        shade = strength * _gauss(moved, softness * side) * ~mask
        return image * (1 - shade[..., None])

    return _paint_each(batch, paint)


def reflection(batch: MaskedImages, *, strength: float = 0.35, softness: float = 0.005) -> Tensor:
    """Put a mirrored copy below the product that fades to nothing over the product's height.

    `strength` is the opacity just below the product, in [0,1], `softness` the standard deviation of the copy's blur.
    """
    _check_range("strength", strength, 0, 1)
    _check_range("softness", softness, 0, 1)

    def paint(image: np.ndarray, mask: np.ndarray, box: Sequence[int]) -> np.ndarray:
        y0, y1 = box[1], box[3]
        height = min(y1 - y0, len(mask) - y1)
        if not height:
            return image
        mirrored = _gauss(_cut_out(image, mask)[y1 - height : y1][::-1], softness * max(mask.shape))
        fade = strength * (1 - (np.arange(height, dtype=np.float32) + 0.5) / (y1 - y0))
        mirrored *= fade[:, None, None]
        result = image.copy()
        result[y1 : y1 + height] = image[y1 : y1 + height] * (1 - mirrored[..., 3:]) + mirrored[..., :3]
        return result

    return _paint_each(batch, paint)


def occlusion(batch: MaskedImages, *, share: float = 0.3) -> Tensor:
    """Cover a share of the product's pixels, in [0,1], by a grey rectangle.

    It has the shape of the product's box and lies about a pixel of the product that the image and the seed choose,
    so an image is covered in the same way in every batch.
    """
    _check_range("share", share, 0, 1)

    def paint(image: np.ndarray, mask: np.ndarray, box: Sequence[int]) -> np.ndarray:
        rng = np.random.default_rng([batch.seed, zlib.crc32(np.rint(image * 255).astype(np.uint8).tobytes())])
        x0, y0, x1, y1 = _covering(mask, box, share, rng)
        result = image.copy()
        result[y0:y1, x0:x1] = 0.5
        return result

    return _paint_each(batch, paint)


def _covering(mask: np.ndarray, box: Sequence[int], share: float, rng: np.random.Generator) -> tuple[int, ...]:
    """Return x0, y0, x1, y1: of the rectangles that grow about a pixel, the one that covers nearest to the share."""
    width, height = box[2] - box[0], box[3] - box[1]
    rows, columns = mask.nonzero()
    chosen = rng.integers(len(rows))
    grown = np.arange(max(width, height) + 1) / max(width, height)
    x0, x1 = _interval(columns[chosen], grown * width, mask.shape[1])
    y0, y1 = _interval(rows[chosen], grown * height, mask.shape[0])
    sums = cv2.integral(np.uint8(mask))
    covered = sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0]
    covered[0] = 0  # no rectangle at all
    best = np.abs(covered - share * len(rows)).argmin()
    return (0, 0, 0, 0) if best == 0 else tuple(int(end[best]) for end in (x0, y0, x1, y1))


def _interval(middle: int, reach: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of the pixels within `reach` of the middle one, inside the image."""
    first, last = np.ceil(middle - reach), np.floor(middle + reach) + 1
    return first.clip(0, length).astype(int), last.clip(0, length).astype(int)


def _paint_each(batch: MaskedImages, paint: Callable[[np.ndarray, np.ndarray, Sequence[int]], np.ndarray]) -> Tensor:
    """Return the batch painted image by image: paint(image (H,W,3) float32, mask (H,W), box) returns (H,W,3)."""
    rows = zip(batch.images, batch.masks.cpu().numpy(), batch.boxes.tolist(), strict=True)
    painted = [paint(_to_array(image), mask[0], box) for image, mask, box in rows]
    return torch.from_numpy(np.stack(painted)).permute(0, 3, 1, 2).contiguous().to(batch.images)


def _to_array(image: Tensor) -> np.ndarray:
    """Return (3,H,W) as (H,W,3) float32."""
    return np.ascontiguousarray(image.float().cpu().permute(1, 2, 0).numpy())


def _cut_out(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return (H,W,4): the product's pixels on black, and how far each pixel is covered by it."""
    return np.dstack([image * mask[..., None], mask.astype(np.float32)])


def _gauss(plane: np.ndarray, sigma: float) -> np.ndarray:
    """Blur (H,W) or (H,W,C) by a Gaussian of `sigma` pixels; the image is mirrored at its edges."""
    return cv2.GaussianBlur(plane, (0, 0), sigma) if sigma > 0 else plane.copy()


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise UsageError(f"{name}={value} is out of range; use {low:g} to {high:g}")


# -- Variants by name.


@dataclass(frozen=True)
class Variant:
    """How a variant is made of `MaskedImages` and options, (B,3,H,W), and what that takes."""

    make: Callable[..., Tensor]
    mask: bool = True  # the product must be somewhere
    background: bool = False  # there must be something beside the product's box
    donors: bool = False  # backgrounds of other images are pasted
    moves: bool = False  # the product is not where its mask says any more


VARIANTS: dict[str, Variant] = {
    "original": Variant(lambda batch: batch.images, mask=False),
    "only_bg_b": Variant(only_bg_b, background=True),
    "only_bg_t": Variant(only_bg_t, background=True),
    "no_fg": Variant(lambda batch: torch.where(batch.masks, 0, batch.images)),
    "only_fg": Variant(lambda batch: torch.where(batch.masks, batch.images, 0)),
    "mixed_same": Variant(mixed, donors=True),
    "mixed_rand": Variant(mixed, donors=True),
    "mixed_next": Variant(mixed, donors=True),
    "coloured": Variant(coloured),
    "blurred": Variant(blurred),
    "region_reduced": Variant(region_reduced),
    "generic_paste": Variant(mixed, donors=True),
    "paste_own": Variant(paste_own, background=True),
    "object_size": Variant(object_size, background=True, moves=True),
    "shadow": Variant(shadow),
    "reflection": Variant(reflection),
    "occlusion": Variant(occlusion),
}
PAPER = tuple(VARIANTS)[:8]


def apply_variant(
    images: Tensor, masks: Tensor, name: str, donors: Tensor | None = None, seed: int = 0, **options: Any
) -> Tensor:
    """Return images as a variant shows them. What becomes of an image does not depend on its batch.

    Args:
        images: (B,3,H,W) float in [0,1].
        masks: (B,1,H,W) bool, True = product.
        name: key of `VARIANTS`.
        donors: (B,3,H,W) the backgrounds to paste onto: `only_bg_t` of the images that `choose_donors` chose.
        seed: of what a variant draws (`occlusion`).
        **options: of the variant; see its function in this module.

    Returns:
        (B,3,H,W); `images` stay as they are (`original` returns them).

    Raises:
        UsageError: unknown variant, tensors that do not fit, or donors missing.
        UserError: a mask is empty, or its box leaves no background; the message gives the place in the batch.
    """
    variant = VARIANTS[pick(VARIANTS, name, "variant")]
    if masks.dtype != torch.bool or masks.shape != (len(images), 1, *images.shape[2:]) or images.shape[1] != 3:
        shapes = f"images are {tuple(images.shape)}, masks {masks.dtype} {tuple(masks.shape)}"
        raise UsageError(f"{shapes}; give images (B,3,H,W) and torch.bool masks (B,1,H,W)")
    if variant.donors and (donors is None or donors.shape != images.shape):
        given = "none" if donors is None else tuple(donors.shape)
        cure = "use only_bg_t of the images that choose_donors chooses"
        raise UsageError(f"{name} needs donors {tuple(images.shape)}, given: {given}; {cure}")
    batch = MaskedImages(images, masks, boxes(masks), donors, seed)
    shares = _box_shares(batch.boxes, masks)
    empty, full = variant.mask & (shares == 0), variant.background & (shares == 1)
    if (empty | full).any():
        place = int((empty | full).nonzero()[0])
        why = "mask is empty" if empty[place] else "box leaves no strip of background"
        raise UserError(f"{name}, image {place} of the batch: its {why}; leave it out or mend its mask")
    return variant.make(batch, **options)


def usable(masks: Tensor) -> Tensor:
    """Return (B,) bool on the CPU: of which images every variant can be made; the others are dropped, as in the paper.

    There must be a product, and its box may fill at most 90 % of the image. `masks` are (B,1,H,W) bool.
    """
    shares = _box_shares(boxes(masks), masks)
    return (shares > 0) & (shares <= LARGEST_BOX)


def boxes(masks: Tensor) -> Tensor:
    """Return the smallest boxes around masks (B,1,H,W) bool: (B,4) int64 on the CPU, all 0 where the mask is empty.

    x0, y0, x1, y1 are in pixels, x1 and y1 just outside.
    """
    found, there = torch.zeros(len(masks), 4, dtype=torch.int64), masks.flatten(1).any(1)
    found[there.cpu()] = masks_to_boxes(masks[there, 0]).cpu().long() + torch.tensor([0, 0, 1, 1])
    return found


def _box_shares(around: Tensor, masks: Tensor) -> Tensor:
    """Return (B,) the share of the image that each box fills; 0 where the mask is empty."""
    x0, y0, x1, y1 = around.unbind(1)
    return (x1 - x0) * (y1 - y0) / (masks.shape[2] * masks.shape[3])
