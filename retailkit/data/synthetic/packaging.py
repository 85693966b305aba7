"""The packages of the built-in data set: what is printed on them, folded into their shapes.

A front is a flat print of its family, wrapped around a package shape and shaded. Twins' fronts are the same outside
of `Face.patch`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from retailkit.data.synthetic import artwork
from retailkit.data.synthetic.artwork import SANS, SERIF, SLAB, Box, Sheet, mix, smooth
from retailkit.data.synthetic.catalogue import Product

HEIGHT = 480  # of every face, in pixels
MARGIN = 3  # pixels around a slot that scaling down may touch


@dataclass(frozen=True, eq=False)
class Face:
    """One side of a package, seen head-on.

    Attributes:
        pixels: (H,W,3) uint8 RGB.
        alpha: (H,W) uint8, 255 inside the silhouette.
        patch: (H,W) bool, where twins differ; nowhere on sides.
        words: text, (x0, y0, x1, y1) in pixels, and whether it tells twins apart; one entry a printed word.
    """

    pixels: np.ndarray
    alpha: np.ndarray
    patch: np.ndarray
    words: tuple[tuple[str, Box, bool], ...]


@lru_cache(maxsize=None)
def front(product: Product) -> Face:
    """Return the front of a product."""
    return FORMS[product.shape](product, PRINTS[product.family])


@lru_cache(maxsize=None)
def side(product: Product) -> Face:
    """Return the side of a product: a nutrition table that says little; the same for all twins."""
    return FORMS[product.shape](product, _back)


def _finish(sheet: Sheet, light: np.ndarray | float = 1.0, gloss: np.ndarray | float = 0.0) -> Face:
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
    words = tuple((t, tuple(round(float(v), 1) for v in box), telling) for t, box, telling in sheet.words)
    return Face(np.clip(lit + 0.5, 0, 255).astype(np.uint8), alpha, patch & (alpha > 0), words)


def _across(width: int) -> np.ndarray:
    """Return positions from -1 (left) to 1 (right), one a pixel."""
    return (np.arange(width, dtype=np.float32) + 0.5) / width * 2 - 1


def _bump(values: np.ndarray, middle: float, spread: float) -> np.ndarray:
    return np.exp(-(((values - middle) / spread) ** 2)).astype(np.float32)


def _width(product: Product) -> int:
    return round(HEIGHT * product.size_cm[0] / product.size_cm[1])


# --- Forms: from a flat print to a package --------------------------------------------------------------------------

Print = Callable[[Product, int, int], Sheet]


def _carton(product: Product, print_: Print) -> Face:
    main, dark, paper, accent = product.palette
    turned = print_ is _back
    width = round(HEIGHT * product.size_cm[2 if turned else 0] / product.size_cm[1])
    roof, fin = 92, 22
    sheet = Sheet(width, HEIGHT, main)
    sheet.place(print_(product, width, HEIGHT - roof), 0, roof)
    if turned:
        sheet.gradient((0, fin, width, roof), mix(main, "#000000", 0.35), mix(main, "#000000", 0.15))
        sheet.poly([(0, roof), (width / 2, fin + 6), (width, roof)], mix(main, "#000000", 0.05))
        sheet.line([(0, roof), (width / 2, fin + 6), (width, roof)], mix(main, "#000000", 0.3), 1.5)
        outline = [(0, HEIGHT), (0, roof), (width * 0.42, fin), (width * 0.45, 0), (width * 0.55, 0)]
        outline += [(width * 0.58, fin), (width, roof), (width, HEIGHT)]
    else:
        sheet.gradient((0, fin, width, roof), mix(main, "#ffffff", 0.28), mix(main, "#ffffff", 0.1))
        sheet.ellipse((width / 2 - 30, 36, width / 2 + 30, 84), mix(main, "#000000", 0.35))
        sheet.ellipse((width / 2 - 29, 30, width / 2 + 29, 76), "#c9d3dc")
        sheet.ellipse((width / 2 - 25, 30, width / 2 + 25, 68), "#f4f7fa")
        outline = [(0, HEIGHT), (0, roof), (5, fin), (4, 0), (width - 4, 0), (width - 5, fin), (width, roof)]
        outline += [(width, HEIGHT)]
    sheet.gradient((0, 0, width, fin), mix(main, "#ffffff", 0.5), mix(main, "#ffffff", 0.2))
    sheet.line([(0, fin), (width, fin)], mix(main, "#000000", 0.4), 2)
    sheet.line([(0, roof), (width, roof)], mix(main, "#000000", 0.3), 1.5)
    sheet.cut(outline)
    x = _across(width)
    return _finish(sheet, 1 - 0.08 * (x + 0.3) ** 2 - 0.12 * _bump(x, 1, 0.05), 0.05 * _bump(x, -0.97, 0.04))


def _box(product: Product, print_: Print) -> Face:
    turned = print_ is _back
    width = round(HEIGHT * product.size_cm[2 if turned else 0] / product.size_cm[1])
    sheet = Sheet(width, HEIGHT, product.palette[0])
    sheet.place(print_(product, width, HEIGHT), 0, 0)
    sheet.line([(0, 1), (width, 1)], mix(product.palette[0], "#ffffff", 0.5), 2)
    x = _across(width)
    return _finish(sheet, 1.02 - 0.05 * (x + 0.4) ** 2 - 0.1 * _bump(x, 1, 0.03), 0.08 * _bump(x, -0.99, 0.03))


def _can(product: Product, print_: Print) -> Face:
    width = _width(product)
    slim = product.size_cm[1] / product.size_cm[0] > 1.6  # a drink, not a tin
    sheet = Sheet(width, HEIGHT, "#b9bec4")
    neck, top, bottom = (22, 34, 462) if slim else (6, 26, 456)
    flat = print_(product, round(width * np.pi / 2), bottom - top)
    sheet.place(flat.roll(width, 9), 0, top)
    for y in (0, bottom):
        sheet.gradient((0, y, width, y + (top if y == 0 else HEIGHT - bottom)), "#d6dade", "#8d949c")
    arc = np.linspace(0, np.pi, 40)
    bow = [(width / 2 - width / 2 * np.cos(a), 9 * np.sin(a)) for a in arc]
    sheet.poly([(0, top - 12), *((x, top - 8 + y) for x, y in bow), (width, top - 12)], "#aab0b7")
    sheet.ellipse((neck, 2, width - neck, 24), "#e4e7ea")
    sheet.ellipse((neck + 7, 6, width - neck - 7, 21), "#9aa1a8")
    sheet.ellipse((neck + 12, 8, width - neck - 12, 20), "#c3c8cd")
    lip = [(width - neck - (width - 2 * neck) * (1 - np.cos(a)) / 2, 12 - 11 * np.sin(a)) for a in arc]
    foot = [(neck + (width - 2 * neck) * (1 - np.cos(a)) / 2, 468 + 10 * np.sin(a)) for a in arc]
    sheet.cut([(0, bottom), (0, top + 6), (neck, 13), *lip[::-1], (width - neck, 13), (width, top + 6)]
              + [(width, bottom), *foot[::-1]])
    return _finish(sheet, *_round_light(width))


def _round_light(width: int) -> tuple[np.ndarray, np.ndarray]:
    x = _across(width)
    light = 0.42 + 0.6 * np.sqrt(np.clip(1 - np.abs(x + 0.12) ** 2.6 / 1.3, 0, 1))
    return light, 0.30 * _bump(x, -0.52, 0.10) + 0.10 * _bump(x, 0.72, 0.08)


def _bottle(product: Product, print_: Print) -> Face:
    return (_round_bottle if product.size_cm[0] == product.size_cm[2] else _flat_bottle)(product, print_)


def _round_bottle(product: Product, print_: Print) -> Face:
    main, dark, paper, accent = product.palette
    width = _width(product)
    half, top, bottom = width / 2, 168, 436
    sheet = Sheet(width, HEIGHT, main)
    sheet.gradient((0, 60, width, HEIGHT), mix(main, "#ffffff", 0.15), mix(main, "#8a3c00", 0.25))
    sheet.place(print_(product, round(width * np.pi / 2), bottom - top).roll(width, 5), 0, top)
    sheet.gradient((0, 40, width, 74), mix(main, "#ffffff", 0.6), mix(main, "#ffffff", 0.3))
    sheet.rect((half - 38, 0, half + 38, 44), dark, 6)
    for x in np.linspace(-34, 34, 15):
        sheet.line([(half + x, 6), (half + x, 42)], mix(dark, "#000000", 0.3), 1.5)
    sheet.rect((half - 41, 44, half + 41, 53), mix(dark, "#ffffff", 0.15), 3)
    edge = smooth([(36, 54), (36, 78), (52, 104), (82, 132), (98, 168)], closed=False)
    right = [(half + min(x, half), y) for x, y in edge] + [(width, HEIGHT - 14), (width - 9, HEIGHT)]
    cap = [(half + 38, 0), (half + 38, 44), (half + 41, 45), (half + 41, 53)]
    outline = cap + right
    sheet.cut(outline + [(width - x, y) for x, y in outline[::-1]])
    return _finish(sheet, *_round_light(width))


def _flat_bottle(product: Product, print_: Print) -> Face:
    main, dark, paper, accent = product.palette
    width = _width(product)
    half, top = width / 2, 118
    sheet = Sheet(width, HEIGHT, main)
    sheet.place(print_(product, width, HEIGHT - top), 0, top)
    sheet.gradient((0, 0, width, 86), mix(paper, "#ffffff", 0.3), mix(paper, "#000000", 0.08))
    sheet.line([(0, 86), (width, 86)], mix(dark, "#000000", 0.2), 2)
    sheet.line([(half - 44, 28), (half + 44, 28)], mix(paper, "#000000", 0.25), 2)
    edge = smooth([(46, 86), (62, 90), (88, 108), (98, 140), (100, 250), (98, 400), (92, 460), (84, 480)], closed=False)
    outline = [(40, 0), (44, 4), (46, 86), *((min(x, half), y) for x, y in edge)]
    sheet.cut([(half + x, y) for x, y in outline] + [(half - x, y) for x, y in outline[::-1]])
    x = _across(width)
    return _finish(sheet, 1.02 - 0.42 * np.abs(x) ** 5, 0.22 * _bump(x, -0.72, 0.07) + 0.08 * _bump(x, 0.8, 0.05))


def _pouch(product: Product, print_: Print) -> Face:
    main, dark, paper, accent = product.palette
    width = _width(product)
    sheet = Sheet(width, HEIGHT, main)
    sheet.place(print_(product, width, HEIGHT), 0, 0)
    sheet.gradient((0, 0, width, 34), mix(main, "#ffffff", 0.25), mix(main, "#ffffff", 0.08))
    for y in range(6, 34, 5):
        sheet.line([(0, y), (width, y)], mix(main, "#000000", 0.25), 1)
    edge = smooth([(5, 0), (5, 40), (13, 90), (8, 240), (2, 400), (6, 470), (12, 480)], closed=False)
    sheet.cut(edge + [(width - x, y) for x, y in edge[::-1]])
    y, x = np.mgrid[0:HEIGHT, 0:width].astype(np.float32)
    u, v = x / width * 2 - 1, y / HEIGHT
    folds = _bump(u - 0.25 * (v - 0.15), 0.75, 0.05) - _bump(u + 0.2 * (v - 0.1), -0.82, 0.05)
    light = 1.03 - 0.38 * np.abs(u) ** 4 + 0.07 * folds * (v > 0.07) - 0.15 * _bump(v, 0.985, 0.03)
    return _finish(sheet, light, 0.12 * _bump(u + 0.12 * np.sin(5 * v), -0.62, 0.09) * (v > 0.08))


def _tray(product: Product, print_: Print) -> Face:
    width = _width(product)
    sheet = Sheet(width, HEIGHT, "#15161a")
    sheet.place(print_(product, width, HEIGHT), 0, 0)
    corner = 34
    t = np.linspace(0, np.pi / 2, 12)
    arc = [(corner * (1 - np.cos(a)), corner * (1 - np.sin(a))) for a in t]
    left = arc + [(x, HEIGHT - y) for x, y in arc[::-1]]
    sheet.cut([(x, y) for x, y in left[::-1]] + [(width - x, y) for x, y in left])
    y, x = np.mgrid[0:HEIGHT, 0:width].astype(np.float32)
    u, v = x / width, y / HEIGHT
    gloss = 0.28 * _bump(u + 0.35 * v, 0.22, 0.025) + 0.16 * _bump(u + 0.35 * v, 0.30, 0.012)
    gloss += 0.2 * _bump(u + 0.35 * v, 1.16, 0.03)
    return _finish(sheet, 1.0, gloss)


FORMS = {"carton": _carton, "box": _box, "can": _can, "bottle": _bottle, "pouch": _pouch, "tray": _tray}


# --- Prints: what is on the fronts ----------------------------------------------------------------------------------


def _variant(sheet: Sheet, product: Product, box: Box, ink: str, *, font: str = SANS) -> None:
    """Print the telling words into `box`, which is a slot."""
    x0, y0, x1, y1 = box
    cap = (y1 - y0) * 0.8
    text = " ".join(product.variant)
    sheet.text(text, (x0 + x1) / 2, y1 - 0.1 * (y1 - y0), cap, ink, width=x1 - x0 - 4, font=font, telling=True)
    sheet.slots.append(box)


def _band(sheet: Sheet, product: Product, box: Box, radius: float = 0) -> None:
    """Print a small band in the variant's colour."""
    sheet.rect(box, product.tint, radius)
    sheet.slots.append(box)


def _milk(product: Product, width: int, height: int) -> Sheet:
    main, dark, paper, accent = product.palette
    sheet, half = Sheet(width, height, paper), width / 2
    sheet.gradient((0, 0, width, 190), mix(main, "#ffffff", 0.05), mix(main, "#ffffff", 0.35))
    sheet.text(product.brand, half, 58, 36, "#ffffff", width=width - 30, font=SERIF)
    sheet.text("MILK", half, 140, 58, "#ffffff", width=width - 46)
    sheet.poly([*smooth([(-20, 200), (40, 178), (110, 205), (170, 180), (250, 200)], False), (250, 400), (-20, 400)],
               paper)
    sheet.poly([*smooth([(-20, 330), (60, 310), (130, 335), (250, 305)], False), (250, 400), (-20, 400)], accent)
    _variant(sheet, product, (half - 70, 225, half + 70, 272), dark)
    _band(sheet, product, (half - 50, 280, half + 50, 288), 4)
    sheet.text("1 L", 20, height - 14, 18, "#ffffff", anchor="l")
    return sheet


def _beef(product: Product, width: int, height: int) -> Sheet:
    main, dark, paper, accent = product.palette
    sheet, half = Sheet(width, height, "#15161a"), width / 2
    sheet.rect((20, 20, width - 20, height - 20), "#7d1b1c", 24)
    rng = np.random.default_rng(4)
    for _ in range(700):
        x, y, turn = rng.uniform(24, width - 24), rng.uniform(24, height - 24), rng.uniform(0, 6.3)
        tone = mix("#8e1f20", "#d8595a", float(rng.uniform()))
        bend = [(x, y), (x + 12 * np.cos(turn), y + 12 * np.sin(turn)),
                (x + 22 * np.cos(turn + 0.6), y + 22 * np.sin(turn + 0.6))]
        sheet.line(smooth(bend, False), mix(tone, "#400808", 0.5), 9)
        sheet.line(smooth(bend, False), tone, 6)
    sheet.rect((half - 190, 120, half + 190, 410), paper, 10)
    sheet.rect((half - 190, 120, half + 190, 180), dark, 10)
    sheet.text(product.brand, half, 165, 34, accent, width=300, font=SERIF)
    sheet.text("GROUND BEEF", half, 250, 50, main, width=350)
    _variant(sheet, product, (half - 165, 270, half + 165, 325), dark)
    _band(sheet, product, (half - 165, 330, half + 165, 338))
    sheet.text("500 g", half - 150, 390, 24, dark, anchor="l")
    return sheet


def _juice(product: Product, width: int, height: int) -> Sheet:
    main, dark, paper, accent = product.palette
    sheet, half = Sheet(width, height, paper), width / 2
    sheet.rect((0, 0, width, 44), dark)
    sheet.text(product.brand, half, 36, 28, "#ffffff", width=150, font=SERIF)
    sheet.text("ORANGE", half, 98, 44, "#d9650a", width=160)
    sheet.text("JUICE", half, 152, 44, dark, width=150)
    _variant(sheet, product, (half - 55, 166, half + 55, 210), dark)
    sheet.text("PULP", half, 246, 30, dark, width=150)
    _band(sheet, product, (half - 55, 254, half + 55, 262))
    artwork.orange_slice(sheet, half - 110, 200, 44)
    artwork.orange_slice(sheet, half + 110, 215, 44)
    return sheet


def _soup(product: Product, width: int, height: int) -> Sheet:
    main, dark, paper, accent = product.palette
    sheet, half = Sheet(width, height, main), width / 2
    sheet.rect((0, 205, width, height), paper)
    sheet.rect((0, 200, width, 208), accent)
    sheet.text(product.brand, half, 60, 40, accent, width=260, font=SERIF)
    sheet.text("TOMATO", half, 128, 54, "#ffffff", width=280)
    sheet.text("SOUP", half, 190, 46, "#ffffff", width=200)
    for x in (-90, 90):
        artwork.tomato(sheet, half + x, 300, 44)
    artwork.bowl(sheet, half, 280, 60, "#f4efe6", "#c6391f")
    _variant(sheet, product, (half - 95, 360, half + 95, 410), dark)
    _band(sheet, product, (half - 95, 414, half + 95, 422))
    return sheet


def _cola(product: Product, width: int, height: int) -> Sheet:
    main, dark, paper, accent = product.palette
    sheet, half = Sheet(width, height, main), width / 2
    sheet.text(product.brand, half, 120, 50, paper, width=190, font=SERIF)
    sheet.text("COLA", half, 200, 56, paper, width=180)
    _variant(sheet, product, (half - 90, 300, half + 90, 346), paper)
    _band(sheet, product, (half - 90, 352, half + 90, 362))
    return sheet


def _coffee(product: Product, width: int, height: int) -> Sheet:
    main, dark, paper, accent = product.palette
    sheet, half = Sheet(width, height, main), width / 2
    sheet.rect((40, 70, width - 40, 420), paper, 6)
    sheet.text(product.brand, half, 130, 44, dark, width=180, font=SERIF)
    sheet.text("COFFEE", half, 200, 48, accent, width=190)
    _variant(sheet, product, (half - 90, 300, half + 90, 350), dark)
    _band(sheet, product, (half - 90, 354, half + 90, 362))
    sheet.text("ROAST", half, 396, 28, dark)
    return sheet


def _muesli(product: Product, width: int, height: int) -> Sheet:
    main, dark, paper, accent = product.palette
    sheet, half = Sheet(width, height, main), width / 2
    sheet.text(product.brand, half, 70, 40, accent, width=240, font=SERIF)
    sheet.text("CRUNCHY", half, 140, 50, dark, width=290)
    sheet.text("MUESLI", half, 205, 54, dark, width=290)
    artwork.bowl(sheet, half, 300, 100, "#f4efe6", "#d9a55a")
    _variant(sheet, product, (half - 90, 410, half + 90, 460), dark)
    _band(sheet, product, (half - 90, 464, half + 90, 472))
    return sheet


def _shampoo(product: Product, width: int, height: int) -> Sheet:
    main, dark, paper, accent = product.palette
    sheet, half = Sheet(width, height, main), width / 2
    sheet.text(product.brand, half, 70, 34, "#ffffff", width=160, font=SERIF)
    sheet.text("SHAMPOO", half, 130, 48, accent, width=170)
    _variant(sheet, product, (half - 65, 230, half + 65, 272), "#ffffff")
    sheet.text("HAIR", half, 315, 32, "#ffffff")
    _band(sheet, product, (half - 65, 322, half + 65, 330))
    return sheet


PRINTS: dict[str, Print] = {
    "NORDBY MILK": _milk,
    "HALVORS GROUND BEEF": _beef,
    "SOLVEA ORANGE JUICE": _juice,
    "CASA LUPA TOMATO SOUP": _soup,
    "VOLTO COLA": _cola,
    "KORVO COFFEE": _coffee,
    "MORNA MUESLI": _muesli,
    "AVELLA SHAMPOO": _shampoo,
}


def _back(product: Product, width: int, height: int) -> Sheet:
    main, dark, paper, accent = product.palette
    sheet, half = Sheet(width, height, main), width / 2
    wide = min(width - 20, 190)
    x0, x1 = half - wide / 2, half + wide / 2
    top = max(height / 2 - 130, 20)
    sheet.rect((x0, top, x1, top + 180), "#fbfaf6", 4)
    sheet.text("NUTRITION", half, top + 24, 14, "#222222", width=wide - 16)
    for k, (name, value) in enumerate([("Energy", "kJ"), ("Fat", "g"), ("Carbs", "g"), ("Protein", "g"), ("Salt", "g")]):
        y = top + 52 + 28 * k
        sheet.line([(x0 + 6, y + 6), (x1 - 6, y + 6)], "#999999", 1)
        sheet.text(name, x0 + 8, y, 11, "#222222", anchor="l", font="DejaVuSans", width=wide / 2)
        sheet.text(value, x1 - 8, y, 11, "#222222", anchor="r", font="DejaVuSans", width=wide / 3)
    artwork.barcode(sheet, (half - min(wide, 120) / 2, top + 194, half + min(wide, 120) / 2, top + 240), len(product.family))
    return sheet
