"""Shelves of a shop, filled with goods of other brands: what stands behind a product.

A layer is (H,W,4) in [0,255]: red, green and blue already multiplied by coverage, then coverage.
"""

from __future__ import annotations

from functools import cache, lru_cache
from types import SimpleNamespace

import cv2
import numpy as np
from PIL import Image, ImageDraw

from retailkit.data.synthetic import packaging
from retailkit.data.synthetic.catalogue import CONTENT, DEPARTMENTS, Product, goods_of
from retailkit.data.synthetic.sheet import drawn_once, typeface

SHELVES = 6  # different shelves a department
CANVAS = (1.6, 2.4)  # height and width of a shelf
FLOOR = 1.1  # where products stand on a shelf
BOARD = 0.07  # of board seen in front of them
BACK_ROW = 0.055  # how much higher the next row of products stands
# How each department looks: `panel`, `board`, `rail` and `tag` as RGB, `pattern` and `glow` of the back wall.
STYLES = {name: SimpleNamespace(**department["look"]) for name, department in CONTENT["departments"].items()}


@drawn_once
def shelf(department: str, number: int, size: int) -> np.ndarray:
    """Draw a shelf, twice as wide as an image, with other products on it.

    What stands there depends on the department and the number only, never on the product that will be put in front, so
    that the background tells no more about a product than its department. (H,W,4) uint8 are RGB and how glossy it is:
    255 on the board in front.
    """
    rng = np.random.default_rng([DEPARTMENTS.index(department), number])
    style, px = STYLES[department], lambda share: round(share * size)
    height, width = px(CANVAS[0]), px(CANVAS[1])
    image = _panel(style, height, width, size)
    upper, back = FLOOR - rng.uniform(0.80, 0.88), FLOOR - BACK_ROW
    _fill_row(image, department, rng, px(upper - 0.03), size, 0.9, 0.95)
    _rail(image, style, rng, px(upper - 0.03), px(0.09), size)
    shade = image[px(upper + 0.06) : px(upper + 0.16)]
    shade *= np.linspace(0.55, 1, len(shade))[:, None, None]
    _fill_row(image, department, rng, px(back), size, 0.78, 0.93)
    image[: px(back)] = cv2.GaussianBlur(image[: px(back)], (0, 0), max(size / 260, 0.4))
    board = image[px(back) : px(FLOOR + BOARD)]  # dark below the back row, bright at its front edge
    board[:] = np.array(style.board, np.float32) * np.linspace(0.45, 1.05, len(board), dtype=np.float32)[:, None, None]
    _rail(image, style, rng, px(FLOOR + BOARD), px(0.10), size)
    below = px(FLOOR + BOARD + 0.10)
    image[below:] = 0.25 * np.array(style.panel)
    lowest = below + px(0.05)
    _fill_row(image[lowest:], department, rng, px(CANVAS[0] + 0.35) - lowest, size, 0.55, 0.95)
    gloss = np.zeros((height, width), np.float32)
    gloss[px(back) : px(FLOOR + BOARD)] = 255
    return np.clip(np.dstack([image, gloss]), 0, 255).astype(np.uint8)


def _panel(style: SimpleNamespace, height: int, width: int, size: int) -> np.ndarray:
    """Return the back wall (H,W,3) float32, brighter below the lamp at the top."""
    fall = 1 + style.glow * np.linspace(1, -1, height, dtype=np.float32) ** 3
    image = np.array(style.panel, np.float32) * fall[:, None, None] * np.ones((1, width, 1), np.float32)
    step = max(size // 22, 4)
    if style.pattern == "slats":
        image[::step] *= 0.9
    elif style.pattern == "holes":
        image[step // 2 :: step, step // 2 :: step] *= 0.6
    return image


def _rail(
    image: np.ndarray, style: SimpleNamespace, rng: np.random.Generator, top: int, height: int, size: int
) -> None:
    """Draw a price rail with tags."""
    ramp = 1.12 - 0.3 * np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    image[top : top + height] = np.array(style.rail, np.float32) * ramp
    image[top : top + max(height // 12, 1)] = 245
    x, tag_height = int(rng.integers(0, size // 3)), round(height * 0.78)
    while x < image.shape[1]:
        tag = _price_tag(style.tag, tag_height, int(rng.integers(49, 1299)))
        y = top + (height - tag.shape[0]) // 2 + 1
        room = image.shape[1] - x
        image[y : y + tag.shape[0], x : x + tag.shape[1]] = tag[:, :room]
        x += tag.shape[1] + int(rng.integers(size // 12, size // 3))


def _price_tag(colour: tuple[int, int, int], height: int, cents: int) -> np.ndarray:
    """Return a tag (h,w,3) with a price and the lines of small print."""
    width = round(height * 2.1)
    tag = Image.new("RGB", (width, height), tuple(colour))
    pen = ImageDraw.Draw(tag)
    price, bold = f"{cents / 100:.2f}", typeface("sans", round(height * 0.58))
    pen.text((width * 0.93, height * 0.5), price, (20, 20, 20), bold, anchor="rm")
    for y in (0.2, 0.45, 0.62):
        pen.line((width * 0.06, height * y, width * 0.24, height * y), (90, 90, 90), max(height // 14, 1))
    pen.rectangle((0, 0, width - 1, height - 1), outline=(120, 120, 120))
    return np.asarray(tag)


def _fill_row(
    image: np.ndarray, department: str, rng: np.random.Generator, base: int, size: int, dim: float, scale: float
) -> None:
    """Stand facings of a department's goods side by side, from edge to edge."""
    goods, x = goods_of(department), -int(rng.integers(0, size // 4))
    while x < image.shape[1]:
        product = goods[int(rng.integers(len(goods)))]
        height = round(scale * extent(product)[1] * size)
        pack = scaled(product, "front", height)
        for _ in range(int(rng.integers(1, 4))):
            _stand(image, pack, x, base + int(rng.integers(-1, 2)), dim * rng.uniform(0.92, 1.04))
            x += round(pack.shape[1] * rng.uniform(1.01, 1.05))
        x += int(rng.integers(0, max(size // 30, 1)))


def _stand(image: np.ndarray, pack: np.ndarray, x: int, base: int, dim: float) -> None:
    """Paste a pack with its lower left corner at (x, base), cut at the image's edges."""
    height, width = pack.shape[:2]
    y = base - height
    y0, y1 = max(y, 0), min(base, image.shape[0])
    x0, x1 = max(x, 0), min(x + width, image.shape[1])
    if y0 < y1 and x0 < x1:
        part = pack[y0 - y : y1 - y, x0 - x : x1 - x].astype(np.float32)
        part[..., :3] *= dim
        image[y0:y1, x0:x1] = over(image[y0:y1, x0:x1], part)


@cache
def studio(number: int, size: int) -> np.ndarray:
    """Draw a seamless ground without an edge; same shape and meaning as `shelf`."""
    height, width = round(CANVAS[0] * size), round(CANVAS[1] * size)
    y = np.linspace(0, CANVAS[0], height, dtype=np.float32)[:, None, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :, None]
    tone = np.array([(250, 250, 250), (232, 233, 235), (214, 219, 224)][number % 3], np.float32)
    fall = 1 - 0.10 * np.exp(-(((y - FLOOR - 0.02) / 0.16) ** 2)) - 0.06 * x**2
    gloss = np.where(y > FLOOR - BACK_ROW, 255.0, 0.0) * np.ones_like(x)
    return np.clip(np.concatenate([tone * fall, gloss], axis=2), 0, 255).astype(np.uint8)


def extent(product: Product) -> tuple[float, float]:
    """Return width and height on the image: real proportions, real sizes drawn closer together."""
    face = packaging.face(product, "front")
    height, width = face.alpha.shape
    tall = np.clip(0.66 * (product.size_cm[1] / 22) ** 0.3, 0.46, 0.72)
    tall = min(tall, 0.62 * height / width)
    return tall * width / height, tall


@lru_cache(maxsize=4096)
def scaled(product: Product, kind: str, height: int) -> np.ndarray:
    """Return a face as a layer (h,w,4) of uint8, `height` pixels high."""
    face = packaging.face(product, kind)
    covered = cv2.multiply(face.pixels, cv2.merge([face.alpha] * 3), scale=1 / 255)
    return resized(np.dstack([covered, face.alpha]), height)


def resized(image: np.ndarray, height: int) -> np.ndarray:
    """Return an image, `height` pixels high, in its proportions."""
    width = max(round(image.shape[1] * height / image.shape[0]), 1)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def over(image: np.ndarray, top: np.ndarray) -> np.ndarray:
    """Return an image (H,W,3) or layer (H,W,4), float32, with the layer `top` laid over it."""
    return image * (1 - top[..., 3:] * np.float32(1 / 255)) + top[..., : image.shape[2]]
