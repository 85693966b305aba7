"""A printed sheet that remembers its words, and the colours and curves it is drawn with.

Coordinates are pixels of the finished face; the sheet is drawn larger and scaled down at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from pathlib import Path
from threading import RLock
from typing import Any

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFilter, ImageFont

SCALE = 2  # the sheet is drawn this much larger than the face
FONTS = {
    "sans": "DejaVuSans-Bold",
    "slanted": "DejaVuSans-BoldOblique",
    "plain": "DejaVuSans",
    "serif": "DejaVuSerif-Bold",
    "italic": "DejaVuSerif-BoldItalic",
    "classic": "STIXGeneralBol",
}

Box = tuple[float, float, float, float]
Points = Sequence[tuple[float, float]]


def drawn_once(function: Callable) -> Callable:
    """Keep every result, as `functools.cache` does; threads that ask for one that is being drawn wait for it."""
    kept: dict[tuple, Any] = {}
    locks: dict[tuple, RLock] = {}

    @wraps(function)
    def drawn(*args: Any) -> Any:
        with locks.setdefault(args, RLock()):
            if args not in kept:
                kept[args] = function(*args)
            return kept[args]

    return drawn


@lru_cache(maxsize=256)
def typeface(name: str, size: int) -> ImageFont.FreeTypeFont:
    """Return a font of `FONTS` in a size in pixels."""
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", f"{FONTS[name]}.ttf"), size)


@lru_cache(maxsize=256)
def typeface_of(name: str, cap: float) -> ImageFont.FreeTypeFont:
    """Return a font in the size at which a capital is `cap` pixels high."""
    _, top, _, base = typeface(name, 200).getbbox("H", anchor="ls")
    return typeface(name, round(cap * 200 / (base - top)))


def mix(a: str, b: str, share: float) -> str:
    """Return the colour that lies `share` of the way from `a` to `b`, as #rrggbb."""
    pairs = zip(ImageColor.getrgb(a), ImageColor.getrgb(b), strict=True)
    return "#" + "".join(f"{round(x + (y - x) * share):02x}" for x, y in pairs)


def smooth(points: Points, closed: bool = True, steps: int = 12) -> list[tuple[float, float]]:
    """Return a Catmull-Rom curve through the points."""
    p = np.asarray(points, float)
    p = np.concatenate([p[-1:], p, p[:2]]) if closed else np.concatenate([p[:1], p, p[-1:]])
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    parts = [
        0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
        for a, b, c, d in zip(p, p[1:], p[2:], p[3:], strict=False)
    ]
    end = [] if closed else [p[-1:]]
    return [tuple(point) for point in np.concatenate(parts + end)]


def fill_polygon(image: Image.Image, outline: Points, fill: str, opacity: float = 1.0, blur: float = 0.0) -> None:
    """Fill an outline on a print; with less opacity what is below shines through, with blur its edge is soft."""
    corners = np.asarray(outline) * SCALE
    if opacity == 1 and not blur:
        ImageDraw.Draw(image).polygon([tuple(corner) for corner in corners], fill=fill)
        return
    reach = 3 * blur * SCALE + 2
    x0, y0 = np.floor(corners.min(0) - reach).astype(int)
    x1, y1 = np.ceil(corners.max(0) + reach).astype(int)
    ink = Image.new("L", (x1 - x0, y1 - y0))
    ImageDraw.Draw(ink).polygon([(x - x0, y - y0) for x, y in corners], fill=round(255 * opacity))
    if blur:
        ink = ink.filter(ImageFilter.GaussianBlur(blur * SCALE))
    image.paste(fill, (x0, y0), ink)


class Sheet:
    """A printed sheet of `width` x `height` pixels."""

    def __init__(self, width: int, height: int, ground: str):
        self.width, self.height = width, height
        size = (width * SCALE, height * SCALE)
        self.image = Image.new("RGB", size, ground)  # the print
        self.alpha = Image.new("L", size, 255)  # the silhouette
        self.words: list[tuple[str, Box, bool]] = []  # text, box, discriminative, of every printed word
        self.slots: list[Box] = []  # outside of them look-alikes are the same

    def cut(self, points: Points) -> None:
        """Make the polygon the sheet's silhouette."""
        fine = Image.new("L", (self.image.width * 2, self.image.height * 2), 0)
        ImageDraw.Draw(fine).polygon([(x * SCALE * 2, y * SCALE * 2) for x, y in points], fill=255)
        self.alpha = fine.reduce(2)

    def place(self, sheet: Sheet, top: int) -> None:
        """Lay another sheet on this one, `top` pixels below its upper edge."""
        self.image.paste(sheet.image, (0, top * SCALE), sheet.alpha)
        self.words += [(text, (a, b + top, c, d + top), key) for text, (a, b, c, d), key in sheet.words]
        self.slots += [(a, b + top, c, d + top) for a, b, c, d in sheet.slots]

    def roll(self, width: int, bow: float) -> Sheet:
        """Return the sheet wrapped around a cylinder `width` pixels wide, of which pi/2 diameters are seen.

        The middle stands `bow` pixels lower than the edges, as seen from a little above.
        """
        rolled = Sheet(width, self.height, "#000000")
        radius = width / 2
        angle = np.arcsin((np.arange(width * SCALE) + 0.5) / (width * SCALE) * 2 - 1)
        xs = (self.width / 2 + radius * angle) * SCALE - 0.5
        rise = bow * (1 - np.cos(angle)) * SCALE
        ys = np.arange(self.height * SCALE)[:, None] + rise
        maps = np.broadcast_to(xs, ys.shape).astype(np.float32), ys.astype(np.float32)
        print_ = cv2.remap(np.asarray(self.image), *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        alpha = cv2.remap(np.asarray(self.alpha), *maps, cv2.INTER_LINEAR, borderValue=0)
        rolled.image, rolled.alpha = Image.fromarray(print_), Image.fromarray(alpha)

        def wrap(box: Box) -> Box:
            x0, y0, x1, y1 = box
            angles = np.clip((np.array([x0, x1]) - self.width / 2) / radius, -np.pi / 2, np.pi / 2)
            left, right = radius + radius * np.sin(angles)
            rises = bow * (1 - np.cos(angles))
            flat = 0.0 if angles[0] * angles[1] < 0 else rises.min()
            return float(left), float(y0 - rises.max()), float(right), float(y1 - flat)

        rolled.words = [(t, wrap(box), key) for t, box, key in self.words]
        rolled.slots = [wrap(box) for box in self.slots]
        return rolled
