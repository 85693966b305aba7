"""The packages of the built-in data set: what is printed on them, folded into their shapes.

A front is a flat print of its family, wrapped around a package shape and lit. The fronts of look-alikes are the same
outside of `Face.patch`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from retailkit.data.synthetic.catalogue import CONTENT, Product
from retailkit.data.synthetic.drawing import ARTWORK, Pen, barcode, small_print
from retailkit.data.synthetic.sheet import SCALE, Box, Sheet, drawn_once

HEIGHT = 480  # of every face, in pixels
MARGIN = 3  # pixels around a slot that scaling down may touch
ANGULAR = ("carton", "box")  # these have a side of their own; the side of all others is the back


@dataclass(frozen=True, eq=False)
class Face:
    """One side of a package, seen head-on."""

    pixels: np.ndarray  # (H,W,3) uint8 RGB
    alpha: np.ndarray  # (H,W) uint8, 255 inside the silhouette
    patch: np.ndarray  # (H,W) bool, where look-alikes differ; nowhere on sides
    words: tuple[tuple[str, Box, bool], ...]  # text, box in pixels, whether it tells look-alikes apart


@drawn_once
def face(product: Product, name: str) -> Face:
    """Return the `front` of a product, or its `side`: a table that says little, the same for all look-alikes."""
    shapes = ARTWORK["shapes"]
    form = shapes.get(f"{product.shape}_{name}") or shapes[product.shape]
    across = 2 if name == "side" and product.shape in ANGULAR else 0
    width = round(HEIGHT * product.size_cm[across] / product.size_cm[1])
    pen = Pen.on_paper(width, HEIGHT, form.get("base", "main"), product)
    pen.draw(form.get("under", ()))
    top, bottom = form["label"]
    if "roll" in form:  # half of the print is seen
        label = _print(product, name, round(width * np.pi / 2), bottom - top).roll(width, form["roll"])
    else:
        label = _print(product, name, width, bottom - top)
    pen.sheet.place(label, top)
    pen.draw(form.get("over", ()))
    if "outline" in form:
        outline = [(min(x, width), y) for x, y in pen.outline(form["outline"])]
        pen.sheet.cut(outline + [(width - x, y) for x, y in outline[::-1]] if form.get("mirror") else outline)
    return _lit(pen.sheet, *_light(form["light"], width))


def _lit(sheet: Sheet, light: np.ndarray | float, gloss: np.ndarray | float) -> Face:
    """Scale a sheet down and light it: `light` multiplies, `gloss` in [0,1] lightens towards white; both (H,W)."""
    size = (sheet.width, sheet.height)
    print_ = np.asarray(sheet.image.resize(size, Image.Resampling.LANCZOS), np.float32)
    alpha = np.asarray(sheet.alpha.resize(size, Image.Resampling.BOX))
    light, gloss = (np.broadcast_to(np.asarray(v, np.float32), alpha.shape)[..., None] for v in (light, gloss))
    lit = print_ * light
    lit = lit + (255 - lit) * gloss
    patch = np.zeros(alpha.shape, bool)
    for x0, y0, x1, y1 in sheet.slots:
        patch[int(y0) - MARGIN : int(y1) + MARGIN + 1, int(x0) - MARGIN : int(x1) + MARGIN + 1] = True
    words = tuple((t, tuple(round(float(v), 1) for v in box), key) for t, box, key in sheet.words)
    return Face(np.clip(lit + 0.5, 0, 255).astype(np.uint8), alpha, patch & (alpha > 0), words)


# -- Prints


def _print(product: Product, name: str, width: int, height: int) -> Sheet:
    drawing = ARTWORK["faces"][product.family]
    pen = Pen.on_paper(width, height, drawing["base"], product)
    pen.draw(drawing["ground"])
    if name == "front":
        pen.draw(drawing["front"])
    else:
        _print_side(pen)
    return pen.sheet


def _print_side(pen: Pen) -> None:
    """Print the brand, a table of four lines, small print and a barcode."""
    image, width, height = pen.sheet.image, pen.sheet.width, pen.sheet.height
    wide = min(width - 18, max(172, 0.4 * width))
    x, top, bottom = wide / 2, 0.5 * height - 106, 0.5 * height + 126
    if height > 300:
        shade = image.convert("L").getpixel((image.width // 2, round(top - 20) * SCALE))
        pen.text("brand", (0, top - 14), 20, "white" if shade < 140 else "dark", width=wide - 10, font="classic")
    pen.rect((-x, top, x, bottom), "#fbfaf6", 5)
    pen.rect((6 - x, top + 6, x - 6, top + 28), "dark", 3)
    ((header, rows),) = CONTENT["families"][pen.product.family]["side"].items()
    pen.text(header, (0, top + 23), 12, "white", width=wide - 26)
    for k, (name, amount) in enumerate(rows.items()):
        y = top + 47 + 21 * k
        pen.text(name, (8 - x, y), 9.5, "#222222", anchor="l", font="plain", width=x)
        if amount:
            pen.text(amount, (x - 8, y), 9.5, "#222222", anchor="r", font="plain", width=x - 14)
        pen.rect((6 - x, y + 6, x - 6, y + 6.8), "#a9a9a3")
    small_print(pen, (8 - x, top + 128, x - 8, top + 168), "#8d8d88", seed=len(pen.product.family))
    narrow = min(wide, 120) / 2 - 6
    barcode(pen, (-narrow, bottom - 58, narrow, bottom - 8), seed=5)


# -- Light


def _light(shape: str, width: int) -> tuple[np.ndarray | float, np.ndarray]:
    """Return what a package's shape multiplies the colours by, and how far it lightens them: (W,) or (H,W)."""
    x = (np.arange(width, dtype=np.float32) + 0.5) / width * 2 - 1  # from -1 (left) to 1 (right)
    rows, columns = np.mgrid[0:HEIGHT, 0:width].astype(np.float32)
    v, share = rows / HEIGHT, columns / width
    if shape == "carton":
        return 1 - 0.08 * (x + 0.3) ** 2 - 0.12 * _bump(x, 1, 0.05), 0.05 * _bump(x, -0.97, 0.04)
    if shape == "box":
        return 1.02 - 0.05 * (x + 0.4) ** 2 - 0.1 * _bump(x, 1, 0.03), 0.08 * _bump(x, -0.99, 0.03)
    if shape == "round":
        light = 0.42 + 0.6 * np.sqrt(np.clip(1 - np.abs(x + 0.12) ** 2.6 / 1.3, 0, 1))
        return light, 0.30 * _bump(x, -0.52, 0.10) + 0.10 * _bump(x, 0.72, 0.08)
    if shape == "flat":
        return 1.02 - 0.42 * np.abs(x) ** 5, 0.22 * _bump(x, -0.72, 0.07) + 0.08 * _bump(x, 0.8, 0.05)
    if shape == "pouch":
        u = share * 2 - 1
        folds = _bump(u - 0.25 * (v - 0.15), 0.75, 0.05) - _bump(u + 0.2 * (v - 0.1), -0.82, 0.05)
        light = 1.03 - 0.38 * np.abs(u) ** 4 + 0.07 * folds * (v > 0.07) - 0.15 * _bump(v, 0.985, 0.03)
        return light, 0.12 * _bump(u + 0.12 * np.sin(5 * v), -0.62, 0.09) * (v > 0.08)
    slant = share + 0.35 * v  # reflections on a tray's film run from the upper right to the lower left
    gloss = 0.28 * _bump(slant, 0.22, 0.025) + 0.16 * _bump(slant, 0.30, 0.012)
    return 1.0, gloss + 0.2 * _bump(slant, 1.16, 0.03)


def _bump(values: np.ndarray, middle: float, spread: float) -> np.ndarray:
    return np.exp(-(((values - middle) / spread) ** 2)).astype(np.float32)
