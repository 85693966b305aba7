"""One property of the background (or of the product's size and light) at a time.

The experiments of *Object Recognition With Help From Background*: colour, blur and size of the background, generic
backgrounds, object size, shadow, reflection; and occlusion. Lengths are shares of the picture's longer side.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
from skimage.color import deltaE_ciede2000, rgb2lab
from torch import Tensor

from retailkit.backgrounds.paper import Pictures, mixed, only_bg_t
from retailkit.config import UsageError, pick

CONTRASTS = {"high": np.argmax, "low": np.argmin}
STEPS = np.linspace(0, 1, 5, dtype=np.float32)
PALETTE = np.stack(np.meshgrid(STEPS, STEPS, STEPS, indexing="ij"), axis=-1).reshape(-1, 3)  # 125 colours


def coloured(pictures: Pictures, *, colour: str | Sequence[float] | Tensor = "high") -> Tensor:
    """Paste the product onto one colour.

    Args:
        pictures: the batch.
        colour: `high` or `low` contrast to each product (see `contrast_colours`), (r, g, b) in [0,1] for all, or
            (B,3) one each.

    Raises:
        UsageError: none of these.
    """
    if isinstance(colour, str):
        colour = contrast_colours(pictures.images, pictures.masks, colour)
    colour = torch.as_tensor(colour).to(pictures.images)
    if colour.shape not in ((3,), (len(pictures.images), 3)) or not ((colour >= 0) & (colour <= 1)).all():
        raise UsageError(f"colour of shape {tuple(colour.shape)}; give (r, g, b) in [0,1], one each, high or low")
    return torch.where(pictures.masks, pictures.images, colour.view(-1, 3, 1, 1))


def contrast_colours(images: Tensor, masks: Tensor, contrast: str = "high") -> Tensor:
    """Choose for each product the colour of a palette that differs most, or least, from its mean colour.

    The measure is CIEDE2000 in CIELAB; the mean is taken there as well. The palette has 5 levels a channel.

    Args:
        images: (B,3,H,W) in [0,1].
        masks: (B,1,H,W) bool, none of them empty.
        contrast: `high` or `low`.

    Returns:
        (B,3) in [0,1].
    """
    best = CONTRASTS[pick(CONTRASTS, contrast, "contrast")]
    palette = rgb2lab(PALETTE)
    chosen = []
    for image, mask in zip(images, masks, strict=True):
        mean = rgb2lab(image[:, mask[0]].T.float().cpu().numpy()).mean(axis=0)
        chosen.append(PALETTE[best(deltaE_ciede2000(np.broadcast_to(mean, palette.shape), palette))])
    return torch.from_numpy(np.stack(chosen)).to(images)


def blurred(pictures: Pictures, *, sigma: float = 0.04) -> Tensor:
    """Blur the background by a Gaussian and paste the sharp product onto it.

    The product takes no part in the blur: blur(image (1 - mask)) / blur(1 - mask), so it leaves no halo.

    Args:
        pictures: the batch.
        sigma: standard deviation, in shares of the longer side; 0 or more.
    """
    _within("sigma", sigma, 0, np.inf)
    return _each(pictures, lambda image, mask, box: _blurred(image, mask, sigma * max(mask.shape)))


def _blurred(image: np.ndarray, mask: np.ndarray, sigma: float) -> np.ndarray:
    weight = np.float32(~mask)
    summed = _gauss(image * weight[..., None], sigma) / np.maximum(_gauss(weight, sigma), 1e-6)[..., None]
    return np.where(mask[..., None], image, summed.clip(0, 1))


def region_reduced(pictures: Pictures, *, reach: float = 0.05) -> Tensor:
    """Keep the product and what lies within a distance of it; the rest is black.

    Args:
        pictures: the batch.
        reach: distance, in shares of the longer side: 0 keeps the product only, infinity everything.
    """
    _within("reach", reach, 0, np.inf)
    return _each(pictures, lambda image, mask, box: image * near(mask, reach * max(mask.shape))[..., None])


def near(mask: np.ndarray, distance: float) -> np.ndarray:
    """Return the pixels (H,W) bool that lie within `distance` pixels of a mask that is not empty."""
    outside = cv2.distanceTransform(np.uint8(~mask), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return outside <= distance


def paste_own(pictures: Pictures) -> Tensor:
    """Paste the product onto its own finished background: what pasting alone does, the control of `generic_paste`."""
    return torch.where(pictures.masks, pictures.images, only_bg_t(pictures))


def generic_paste(pictures: Pictures) -> Tensor:
    """Paste the product onto a background of one unrelated class; `choose_donors(..., from_class=...)` chooses it."""
    return mixed(pictures)


def object_size(pictures: Pictures, *, scale: float = 0.5) -> Tensor:
    """Shrink or enlarge the product about the centre of its box, on its own finished background.

    Args:
        pictures: the batch.
        scale: of its sides, above 0; 1 is `paste_own`. What leaves the picture is cut off.
    """
    _within("scale", scale, 1e-3, 1e3)
    grounds = iter(only_bg_t(pictures))
    return _each(pictures, lambda image, mask, box: _scaled(image, mask, box, _as_array(next(grounds)), scale))


def _scaled(image: np.ndarray, mask: np.ndarray, box: Sequence[int], ground: np.ndarray, scale: float) -> np.ndarray:
    """Return `ground` with the product of `image` over it, its box scaled."""
    x0, y0, x1, y1 = box
    size = (max(1, round((x1 - x0) * scale)), max(1, round((y1 - y0) * scale)))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    product = np.dstack([image * mask[..., None], mask.astype(np.float32)])[y0:y1, x0:x1]
    product = cv2.resize(product, size, interpolation=how)
    left, top = (x0 + x1 - size[0]) // 2, (y0 + y1 - size[1]) // 2
    seen = product[max(0, -top) : mask.shape[0] - top, max(0, -left) : mask.shape[1] - left]
    left, top = max(0, left), max(0, top)
    result = ground.copy()
    place = result[top : top + seen.shape[0], left : left + seen.shape[1]]
    place[:] = place * (1 - seen[..., 3:]) + seen[..., :3]
    return result


def shadow(
    pictures: Pictures, *, angle: float = 45, distance: float = 0.06, softness: float = 0.02, strength: float = 0.6
) -> Tensor:
    """Darken the background where the product, moved aside, covers it.

    Args:
        pictures: the batch.
        angle: to which side, in degrees: 0 is right, 90 is down.
        distance: how far, in shares of the longer side.
        softness: standard deviation of the blurred edge, in shares of the longer side.
        strength: share of the light that is taken away, in [0,1].
    """
    _within("strength", strength, 0, 1)
    _within("softness", softness, 0, 1)

    def paint(image: np.ndarray, mask: np.ndarray, box: Sequence[int]) -> np.ndarray:
        side = max(mask.shape)
        dx, dy = (round(distance * side * turn(np.deg2rad(angle))) for turn in (np.cos, np.sin))
        moved = cv2.warpAffine(np.float32(mask), np.float32([[1, 0, dx], [0, 1, dy]]), mask.shape[::-1])
        shade = strength * _gauss(moved, softness * side) * ~mask
        return image * (1 - shade[..., None])

    return _each(pictures, paint)


def reflection(pictures: Pictures, *, strength: float = 0.35, softness: float = 0.005) -> Tensor:
    """Put a mirrored copy below the product that fades to nothing over the product's height.

    Args:
        pictures: the batch; where a box touches the lower edge there is no room, and the picture stays.
        strength: opacity just below the product, in [0,1].
        softness: standard deviation of its blur, in shares of the longer side.
    """
    _within("strength", strength, 0, 1)
    _within("softness", softness, 0, 1)

    def paint(image: np.ndarray, mask: np.ndarray, box: Sequence[int]) -> np.ndarray:
        y0, y1 = box[1], box[3]
        height = min(y1 - y0, len(mask) - y1)
        if not height:
            return image
        product = np.dstack([image * mask[..., None], mask.astype(np.float32)])
        mirrored = _gauss(product[y1 - height : y1][::-1], softness * max(mask.shape))
        fade = strength * (1 - (np.arange(height, dtype=np.float32) + 0.5) / (y1 - y0))
        mirrored *= fade[:, None, None]
        result = image.copy()
        result[y1 : y1 + height] = image[y1 : y1 + height] * (1 - mirrored[..., 3:]) + mirrored[..., :3]
        return result

    return _each(pictures, paint)


def occlusion(pictures: Pictures, *, share: float = 0.3, colour: Sequence[float] = (0.5, 0.5, 0.5)) -> Tensor:
    """Cover a share of the product by a rectangle.

    It has the shape of the product's box and lies about a pixel of the product that the picture and the seed choose,
    so a picture is covered in the same way in every batch. Of the rectangles that grow there by about a pixel each
    the one is taken whose share comes nearest.

    Args:
        pictures: the batch.
        share: of the product's pixels, in [0,1].
        colour: (r, g, b) of the rectangle, in [0,1].
    """
    _within("share", share, 0, 1)

    def paint(image: np.ndarray, mask: np.ndarray, box: Sequence[int]) -> np.ndarray:
        rng = np.random.default_rng([pictures.seed, zlib.crc32(np.rint(image * 255).astype(np.uint8).tobytes())])
        x0, y0, x1, y1 = _covering(mask, box, share, rng)
        result = image.copy()
        result[y0:y1, x0:x1] = colour
        return result

    return _each(pictures, paint)


def _covering(mask: np.ndarray, box: Sequence[int], share: float, rng: np.random.Generator) -> tuple[int, ...]:
    """Return x0, y0, x1, y1 of the rectangle that covers about `share` of the mask."""
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
    """Return the ends of the pixels within `reach` of the middle one, inside the picture."""
    first, last = np.ceil(middle - reach), np.floor(middle + reach) + 1
    return first.clip(0, length).astype(int), last.clip(0, length).astype(int)


def _each(pictures: Pictures, paint: Callable[[np.ndarray, np.ndarray, Sequence[int]], np.ndarray]) -> Tensor:
    """Paint pictures one by one: paint(image (H,W,3) float32, mask (H,W), box) returns (H,W,3)."""
    rows = zip(pictures.images, pictures.masks.cpu().numpy(), pictures.boxes.tolist(), strict=True)
    painted = [paint(_as_array(image), mask[0], box) for image, mask, box in rows]
    return torch.from_numpy(np.stack(painted)).permute(0, 3, 1, 2).contiguous().to(pictures.images)


def _as_array(image: Tensor) -> np.ndarray:
    """Return (3,H,W) as (H,W,3) float32."""
    return np.ascontiguousarray(image.float().cpu().permute(1, 2, 0).numpy())


def _gauss(plane: np.ndarray, sigma: float) -> np.ndarray:
    """Blur (H,W) or (H,W,C) by a Gaussian of `sigma` pixels; the picture is mirrored at its edges."""
    return cv2.GaussianBlur(plane, (0, 0), sigma) if sigma > 0 else plane.copy()


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise UsageError(f"{name}={value} is out of range; use {low:g} to {high:g}")
