"""The packages of the built-in data set: what is printed on them, folded into their shapes.

A front is a flat print of its family, wrapped around a package shape and shaded. Twins' fronts are the same outside
of `Face.patch`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

from retailkit.data.synthetic import artwork
from retailkit.data.synthetic.artwork import CLASSIC, ITALIC, PLAIN, SANS, SERIF, SLANTED, Box, Sheet, mix, oval, smooth
from retailkit.data.synthetic.catalogue import FAMILIES, Product

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


@cache
def front(product: Product) -> Face:
    """Return the front of a product."""
    return FORMS[product.shape](product, PRINTS[product.family][1])


@cache
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
    main = product.palette[0]
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
    sheet.cut(
        [
            *((0, bottom), (0, top + 6), (neck, 13), *lip[::-1]),
            *((width - neck, 13), (width, top + 6), (width, bottom), *foot[::-1]),
        ]
    )
    return _finish(sheet, *_round_light(width))


def _round_light(width: int) -> tuple[np.ndarray, np.ndarray]:
    x = _across(width)
    light = 0.42 + 0.6 * np.sqrt(np.clip(1 - np.abs(x + 0.12) ** 2.6 / 1.3, 0, 1))
    return light, 0.30 * _bump(x, -0.52, 0.10) + 0.10 * _bump(x, 0.72, 0.08)


def _bottle(product: Product, print_: Print) -> Face:
    return (_round_bottle if product.size_cm[0] == product.size_cm[2] else _flat_bottle)(product, print_)


def _round_bottle(product: Product, print_: Print) -> Face:
    main, dark, _, _ = product.palette
    width = _width(product)
    half, top, bottom = width / 2, 168, 436
    sheet = Sheet(width, HEIGHT, main)
    sheet.gradient((0, 60, width, HEIGHT), mix(main, "#ffffff", 0.15), mix(main, "#8a3c00", 0.25))
    sheet.place(print_(product, round(width * np.pi / 2), bottom - top).roll(width, 5), 0, top)
    for y in (top - 3, bottom + 1):
        sheet.rect((0, y, width, y + 2), mix(main, "#7a3300", 0.45))
    for x in np.linspace(-0.8, 0.8, 7):
        sheet.soft(oval(half + x * half, HEIGHT + 2, 9, 26), "#7a3300", 0.35, 3)
    sheet.gradient((0, 40, width, 74), mix(main, "#ffffff", 0.6), mix(main, "#ffffff", 0.3))
    sheet.rect((half - 38, 0, half + 38, 44), dark, 6)
    for x in np.linspace(-34, 34, 15):
        sheet.line([(half + x, 6), (half + x, 42)], mix(dark, "#000000", 0.3), 1.5)
    sheet.rect((half - 41, 44, half + 41, 53), mix(dark, "#ffffff", 0.15), 3)
    edge = smooth([(36, 54), (36, 78), (52, 104), (82, 132), (98, 168)], closed=False)
    right = [(half + min(x, half), y) for x, y in edge] + [
        (width, HEIGHT - 26),
        (width - 3, HEIGHT - 10),
        (width - 12, HEIGHT),
    ]
    cap = [(half + 38, 0), (half + 38, 44), (half + 41, 45), (half + 41, 53)]
    outline = cap + right
    sheet.cut(outline + [(width - x, y) for x, y in outline[::-1]])
    return _finish(sheet, *_round_light(width))


def _flat_bottle(product: Product, print_: Print) -> Face:
    main, dark, paper, _ = product.palette
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
    main = product.palette[0]
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
    arc = [(corner * (1 - np.sin(a)), corner * (1 - np.cos(a))) for a in t]
    left = arc + [(x, HEIGHT - y) for x, y in arc[::-1]]
    sheet.cut([(x, y) for x, y in left[::-1]] + [(width - x, y) for x, y in left])
    y, x = np.mgrid[0:HEIGHT, 0:width].astype(np.float32)
    u, v = x / width, y / HEIGHT
    gloss = 0.28 * _bump(u + 0.35 * v, 0.22, 0.025) + 0.16 * _bump(u + 0.35 * v, 0.30, 0.012)
    gloss += 0.2 * _bump(u + 0.35 * v, 1.16, 0.03)
    return _finish(sheet, 1.0, gloss)


FORMS = {"carton": _carton, "box": _box, "can": _can, "bottle": _bottle, "pouch": _pouch, "tray": _tray}


# --- Prints: what is on the packages --------------------------------------------------------------------------------
# A ground is colours and pictures without words.


def _variant(sheet: Sheet, product: Product, box: Box, ink: str, font: str = SANS) -> None:
    """Print the telling words into `box`, which is a slot."""
    x0, y0, x1, y1 = box
    text = " ".join(product.variant)
    cap, base = 0.84 * (y1 - y0), y1 - 0.08 * (y1 - y0)
    sheet.text(text, (x0 + x1) / 2, base, cap, ink, width=x1 - x0 - 2, font=font, telling=True)
    sheet.slots.append(box)


def _band(sheet: Sheet, product: Product, box: Box, radius: float = 0) -> None:
    """Print a small band in the variant's colour."""
    sheet.rect(box, product.tint, radius)
    sheet.slots.append(box)


def _level(product: Product) -> int:
    """Return 1, 2 or 3: which of its family's variants a product is."""
    return product.index - FAMILIES[product.family][0].index + 1


def _milk_ground(product: Product, width: int, height: int) -> Sheet:
    main, _, paper, accent = product.palette
    sheet = Sheet(width, height, paper)
    sheet.gradient((0, 0, width, 180), main, mix(main, "#ffffff", 0.55))
    hills = [(-20, 0), (0.2 * width, -14), (0.55 * width, 6), (0.8 * width, -12), (width + 20, 2)]
    sky = smooth([(x, 158 + y) for x, y in hills], False)
    sheet.poly([*sky, (width + 20, height), (-20, height)], mix(main, "#ffffff", 0.8))
    sheet.poly([*((x, y + 9) for x, y in sky), (width + 20, height), (-20, height)], paper)
    for y, share in ((296, 0.25), (318, 0.0), (352, -0.2)):
        tone = mix(accent, "#ffffff", share) if share >= 0 else mix(accent, "#1d5a1d", -share)
        turned = [(width - x, y + (1.2 if share else -0.9) * v) for x, v in hills[::-1]]
        sheet.poly([*smooth(turned, False), (width + 20, height + 9), (-20, height + 9)], tone)
    return sheet


def _milk(product: Product, width: int, height: int) -> Sheet:
    main, dark, _, accent = product.palette
    sheet, half = _milk_ground(product, width, height), width / 2
    sheet.poly(oval(half, 36, 98, 27), "#ffffff")
    sheet.poly(oval(half, 36, 94, 23.5), dark)
    sheet.text(product.brand, half, 49, 26, "#ffffff", width=150, font=SLANTED)
    sheet.text("MILK", half, 134, 58, "#ffffff", width=width - 40, shade=mix(dark, main, 0.4))
    for x, y, r in ((30, 176, 4), (45, 187, 2.5), (width - 34, 178, 5), (width - 22, 194, 2.5)):
        sheet.disc(x, y, r, mix(main, "#ffffff", 0.75))
    _variant(sheet, product, (half - 62, 196, half + 62, 242), dark)
    for k in range(3):
        artwork.drop(sheet, half - 20 + 20 * k, 262, 5.5, product.tint if k < 4 - _level(product) else "#d4d9de")
    sheet.slots.append((half - 27, 250, half + 27, 269))
    artwork.cow(sheet, 66, 312, 25)
    artwork.seal(sheet, width - 38, 300, 23, "#ffffff", "#2d6b2f", "FRESH")
    sheet.text("1 L", 16, height - 14, 17, "#ffffff", anchor="l")
    artwork.greek(sheet, (width - 96, height - 27, width - 16, height - 14), mix(accent, "#ffffff", 0.6), 3)
    return sheet


def _beef_ground(product: Product, width: int, height: int) -> Sheet:
    sheet = Sheet(width, height, "#141518")
    sheet.rect((9, 9, width - 9, height - 9), "#26282d", 30)
    sheet.rect((17, 17, width - 17, height - 17), "#0b0c0e", 26)
    meat = artwork.mince(width - 48, height - 48)
    corners = Sheet(width - 48, height - 48, "#000000")
    corners.image.paste(0, (0, 0, *corners.image.size))
    corners.rect((0, 0, width - 48, height - 48), "#ffffff", 34)
    sheet.image.paste(meat.image, (24 * artwork.SCALE,) * 2, corners.image.convert("L"))
    return sheet


def _tray_bottom(product: Product, width: int, height: int) -> Sheet:
    tone = "#1b1c20"
    sheet = Sheet(width, height, tone)
    sheet.rect((26, 26, width - 26, height - 26), mix(tone, "#ffffff", 0.12), 40)
    sheet.rect((30, 31, width - 28, height - 26), mix(tone, "#ffffff", 0.03), 38)
    for y in range(64, height - 50, 26):
        sheet.rect((58, y, width - 58, y + 9), mix(tone, "#000000", 0.14), 5)
        sheet.rect((58, y + 8, width - 58, y + 10), mix(tone, "#ffffff", 0.2), 2)
    return sheet


def _beef(product: Product, width: int, height: int) -> Sheet:
    main, dark, paper, accent = product.palette
    sheet, half = _beef_ground(product, width, height), width / 2
    sheet.soft([(half - 196, 92), (half + 202, 92), (half + 202, 398), (half - 196, 398)], "#000000", 0.6, 5)
    sheet.rect((half - 200, 84, half + 200, 390), paper, 12)
    sheet.rect((half - 200, 84, half + 200, 168), dark, 12)
    sheet.rect((half - 200, 150, half + 200, 168), dark)
    sheet.rect((half - 200, 168, half + 200, 172), accent)
    artwork.steer(sheet, half - 152, 122, 27, accent)
    sheet.text(product.brand, half + 30, 143, 38, accent, width=270, font=CLASSIC)
    sheet.text("GROUND BEEF", half, 238, 50, main, width=368)
    sheet.rect((half - 186, 254, half + 186, 255.5), accent)
    _variant(sheet, product, (half - 155, 264, half + 155, 314), dark)
    _band(sheet, product, (half - 100, 321, half + 100, 329), 4)
    sheet.text("500 g", half - 180, 374, 26, dark, anchor="l")
    artwork.greek(sheet, (half - 60, 350, half + 60, 376), "#9a8f7e", 5)
    artwork.barcode(sheet, (half + 84, 340, half + 184, 378), 8)
    return sheet


def _juice_ground(product: Product, width: int, height: int) -> Sheet:
    _, dark, paper, accent = product.palette
    sheet = Sheet(width, height, paper)
    sheet.gradient((0, 0, width, height), "#fffdf4", mix(paper, accent, 0.35))
    sheet.rect((0, 0, width, 54), dark)
    sheet.rect((0, 54, width, 57), accent)
    sheet.rect((0, height - 10, width, height), dark)
    return sheet


def _juice(product: Product, width: int, height: int) -> Sheet:
    _, dark, _, _ = product.palette
    sheet, half = _juice_ground(product, width, height), width / 2
    sheet.text(product.brand, half, 42, 30, "#ffffff", width=138, font=CLASSIC)
    sheet.text("ORANGE", half, 108, 42, "#d4600a", width=158)
    sheet.text("JUICE", half, 154, 38, dark, width=124)
    artwork.leaf(sheet, half - 98, 190, 44, -0.7, "#4d8f3f")
    artwork.leaf(sheet, half + 104, 196, 44, -2.4, "#3f7d36")
    artwork.orange_slice(sheet, half - 104, 214, 44)
    artwork.orange_slice(sheet, half + 108, 218, 40)
    _variant(sheet, product, (half - 52, 164, half + 52, 206), dark)
    sheet.text("PULP", half, 242, 28, dark, width=104)
    _band(sheet, product, (half - 34, 247, half + 34, 253), 3)
    return sheet


def _soup_ground(product: Product, width: int, height: int) -> Sheet:
    main, _, paper, accent = product.palette
    sheet = Sheet(width, height, paper)
    sheet.gradient((0, 0, width, 214), mix(main, "#ffffff", 0.04), mix(main, "#000000", 0.12))
    sheet.rect((0, 208, width, 216), accent)
    sheet.rect((0, 219, width, 221), accent)
    for x in np.arange(8, width, 16):
        sheet.poly(
            [(x - 5, height - 9), (x, height - 16), (x + 5, height - 9), (x, height - 2)], mix(accent, paper, 0.3)
        )
    return sheet


def _soup(product: Product, width: int, height: int) -> Sheet:
    _, dark, _, accent = product.palette
    sheet, half = _soup_ground(product, width, height), width / 2
    sheet.poly(
        [(half - 150, 22), (half + 150, 22), (half + 136, 43), (half + 150, 64), (half - 150, 64), (half - 136, 43)],
        accent,
    )
    sheet.text(product.brand, half, 57, 28, dark, width=236, font=CLASSIC)
    sheet.text("TOMATO", half, 130, 52, "#fffaf0", width=284, font=SERIF)
    sheet.text("SOUP", half, 192, 48, "#fffaf0", width=210, font=SERIF)
    artwork.tomato(sheet, half - 128, 296, 40)
    artwork.tomato(sheet, half + 130, 298, 38)
    artwork.tomato(sheet, half + 84, 318, 27)
    for turn in (-2.7, -2.2):
        artwork.leaf(sheet, half - 84, 338, 46, turn, "#4b8a3b")
    sheet.soft(oval(half, 346, 70, 7), "#7a5a30", 0.5, 4)
    artwork.bowl(sheet, half, 282, 82, "#f7f1e6", "#c9401f")
    sheet.poly(oval(half - 14, 284, 40, 8), "#d8593a")
    sheet.line(smooth([(half - 30, 281), (half - 8, 288), (half + 14, 280), (half + 30, 287)], False), "#f6dcc0", 4)
    for turn in (-0.4, 2.6):
        artwork.leaf(sheet, half + 4, 281, 20, turn, "#4f9440")
    _variant(sheet, product, (half - 92, 354, half + 92, 398), dark)
    _band(sheet, product, (half - 92, 402, half + 92, 410), 4)
    sheet.text("400 g", half + 178, 400, 17, dark)
    artwork.seal(sheet, half - 172, 372, 25, accent, dark, "100%")
    return sheet


def _cola_ground(product: Product, width: int, height: int) -> Sheet:
    main, dark, paper, accent = product.palette
    sheet = Sheet(width, height, main)
    sheet.gradient((0, 0, width, height), mix(main, "#a03050", 0.22), dark)
    for shift, fill in ((0, accent), (14, mix(accent, "#ffffff", 0.45)), (20, paper)):
        top = smooth(
            [(-20, 300 + shift), (0.3 * width, 250 + shift), (0.65 * width, 275 + shift), (width + 20, 215 + shift)],
            False,
        )
        low = smooth([(-20, 322 - 0.3 * shift), (0.3 * width, 284), (0.65 * width, 300), (width + 20, 256)], False)
        sheet.poly([*top, *low[::-1]], fill)
    return sheet


def _cola(product: Product, width: int, height: int) -> Sheet:
    main, dark, paper, accent = product.palette
    sheet, half = _cola_ground(product, width, height), width / 2
    rng = np.random.default_rng(2)
    for x, y, r in rng.uniform((20, 20, 2), (width - 20, height - 30, 8), (40, 3)):
        sheet.soft(oval(x, y, r, r), "#ffffff", 0.10)
        sheet.soft(oval(x, y, 0.8 * r, 0.8 * r), dark, 0.10)
    artwork.beads(sheet, (0, 0, width, 330), 150, 6)
    sheet.poly(
        [
            (half - 6, 28),
            (half + 14, 28),
            (half + 3, 46),
            (half + 13, 46),
            (half - 13, 76),
            (half - 3, 53),
            (half - 14, 53),
        ],
        accent,
    )
    sheet.text(product.brand, half, 140, 52, paper, width=206, font=SLANTED)
    sheet.text("COLA", half, 214, 56, paper, width=176, font=SLANTED)
    _variant(sheet, product, (half - 78, 331, half + 78, 372), paper)
    _band(sheet, product, (half - 40, 379, half + 40, 387), 4)
    sheet.text("330 ml", half, 416, 15, mix(paper, main, 0.2))
    return sheet


def _coffee_ground(product: Product, width: int, height: int) -> Sheet:
    main = product.palette[0]
    sheet = Sheet(width, height, main)
    sheet.gradient((0, 0, width, height), mix(main, "#ffffff", 0.06), mix(main, "#000000", 0.3))
    rng = np.random.default_rng(7)
    for y in np.arange(412, height + 16, 15):
        for x in np.arange(0, width + 20, 23):
            jitter = rng.uniform(-6, 6, 2)
            artwork.bean(sheet, x + jitter[0], y + jitter[1] + 8 * np.cos(x / width * 6), 27, rng.uniform(0, 3.1))
    return sheet


def _coffee(product: Product, width: int, height: int) -> Sheet:
    main, dark, paper, accent = product.palette
    sheet, half = _coffee_ground(product, width, height), width / 2
    sheet.disc(half, 60, 12, mix(main, "#000000", 0.35))
    sheet.disc(half, 60, 9, mix(main, "#ffffff", 0.12))
    for x in (-3, 0, 3):
        sheet.disc(half + x, 60, 1, dark)
    sheet.soft([(33, 92), (width - 31, 92), (width - 31, 396), (33, 396)], "#000000", 0.5, 4)
    sheet.rect((31, 86, width - 31, 392), accent, 8)
    sheet.rect((35, 90, width - 35, 388), paper, 6)
    sheet.text(product.brand, half, 140, 40, dark, width=186, font=CLASSIC)
    sheet.rect((half - 90, 151, half - 12, 153), accent)
    sheet.rect((half + 12, 151, half + 90, 153), accent)
    artwork.bean(sheet, half, 152, 15, -0.6)
    sheet.text("COFFEE", half, 211, 47, "#8a4f1d", width=192)
    artwork.cup(sheet, half - 30, 250, 27, "#ffffff", paper)
    sheet.text("250 g", half + 66, 252, 15, dark)
    artwork.greek(sheet, (half + 40, 260, half + 92, 277), mix(dark, paper, 0.5), 9)
    _variant(sheet, product, (half - 80, 295, half + 80, 340), dark)
    sheet.text("ROAST", half - 32, 377, 25, dark, width=110)
    for k in range(3):
        sheet.disc(half + 44 + 19 * k, 364.5, 7.5, product.tint if k < _level(product) else mix(paper, dark, 0.15))
    sheet.slots.append((half + 35, 355, half + 92, 374))
    return sheet


def _muesli_ground(product: Product, width: int, height: int) -> Sheet:
    main, _, _, accent = product.palette
    sheet = Sheet(width, height, main)
    sheet.gradient((0, 0, width, height), mix(main, "#fff3c4", 0.7), main)
    for turn in np.linspace(0, 2 * np.pi, 24, endpoint=False):
        ray = [(width / 2 + 700 * np.cos(turn + d), 300 + 700 * np.sin(turn + d)) for d in (-0.06, 0.06)]
        sheet.soft([(width / 2, 300), *ray], "#ffffff", 0.22)
    sheet.rect((0, height - 12, width, height), accent)
    return sheet


def _muesli(product: Product, width: int, height: int) -> Sheet:
    _, dark, paper, accent = product.palette
    sheet, half = _muesli_ground(product, width, height), width / 2
    sheet.poly([(0, 0), (width, 0), *smooth([(width, 66), (half, 88), (0, 66)], False)], mix(accent, "#000000", 0.25))
    sheet.poly([(0, 0), (width, 0), *smooth([(width, 61), (half, 83), (0, 61)], False)], accent)
    sheet.text(product.brand, half, 64, 40, "#ffffff", width=230, font=ITALIC)
    sheet.text("CRUNCHY", half, 144, 42, dark, width=272)
    sheet.text("MUESLI", half, 207, 54, dark, width=290)
    for turn in (-2.5, -2.2):
        artwork.wheat(sheet, 130, 372, 150, turn, "#d79a32")
        artwork.wheat(sheet, width - 130, 372, 150, np.pi - turn, "#d79a32")
    sheet.soft(oval(half, 396, 104, 10), "#6a3d00", 0.5, 5)
    artwork.bowl(sheet, half, 300, 126, "#ffffff", "#fffaf0")
    sheet.poly(oval(half, 300, 112, 30), "#fdf3e0")
    artwork.flakes(sheet, half, 293, 104, 24, 150, 3)
    sheet.poly(oval(half, 357, 74, 13, 0.15, np.pi - 0.15), accent)
    _variant(sheet, product, (half - 78, 408, half + 78, 452), dark)
    _band(sheet, product, (half - 78, 455, half + 78, 463), 4)
    sheet.text("450 g", width - 10, 390, 15, dark, anchor="r")
    artwork.seal(sheet, 40, 434, 26, paper, "#4c7a34", "OATS")
    return sheet


def _shampoo_ground(product: Product, width: int, height: int) -> Sheet:
    main, dark, paper, _ = product.palette
    sheet = Sheet(width, height, main)
    sheet.gradient((0, 0, width, height), main, mix(main, dark, 0.5))
    for k, share in enumerate((0.16, 0.28, 0.4)):
        y = 286 + 24 * k
        wave = smooth([(-20, y + 10), (0.25 * width, y - 22), (0.6 * width, y + 18), (width + 20, y - 16)], False)
        sheet.poly([*wave, (width + 20, height + 9), (-20, height + 9)], mix(mix(main, dark, 0.4), paper, share))
    return sheet


def _shampoo(product: Product, width: int, height: int) -> Sheet:
    _, dark, _, accent = product.palette
    sheet, half = _shampoo_ground(product, width, height), width / 2
    for turn in (-2.5, -1.57, -0.64):
        artwork.leaf(sheet, half, 40, 26 if turn == -1.57 else 22, turn, accent)
    sheet.text(product.brand, half, 82, 32, "#ffffff", width=160, font=CLASSIC)
    sheet.rect((half - 70, 92, half + 70, 93.5), accent)
    sheet.text("SHAMPOO", half, 150, 48, "#ffffff", width=172)
    _variant(sheet, product, (half - 54, 181, half + 54, 221), accent)
    sheet.text("HAIR", half, 259, 29, accent, width=110)
    artwork.drop(sheet, half, 299, 9.5, product.tint)
    sheet.poly(oval(half - 3, 300, 2.2, 3.5), mix(product.tint, "#ffffff", 0.55))
    sheet.slots.append((half - 11, 278, half + 11, 310))
    sheet.text("250 ml", half, 346, 15, dark)
    return sheet


# family: what its back is printed on, and its front
PRINTS: dict[str, tuple[Print, Print]] = {
    "NORDBY MILK": (_milk_ground, _milk),
    "HALVORS GROUND BEEF": (_tray_bottom, _beef),
    "SOLVEA ORANGE JUICE": (_juice_ground, _juice),
    "CASA LUPA TOMATO SOUP": (_soup_ground, _soup),
    "VOLTO COLA": (_cola_ground, _cola),
    "KORVO COFFEE": (_coffee_ground, _coffee),
    "MORNA MUESLI": (_muesli_ground, _muesli),
    "AVELLA SHAMPOO": (_shampoo_ground, _shampoo),
}

FACTS = ("NUTRITION", ("Energy", "kJ"), ("Protein", "g"), ("Fibre", "g"), ("Salt", "g"))
CONTENTS = ("CONTENTS", ("Aqua", ""), ("Glycerin", ""), ("Citric acid", ""), ("Parfum", ""))
AMOUNTS = {  # in 100 g or 100 ml; the same for all twins
    "NORDBY MILK": ("190", "3.4", "0", "0.1"),
    "HALVORS GROUND BEEF": ("780", "19", "0", "0.2"),
    "SOLVEA ORANGE JUICE": ("180", "0.7", "0.3", "0"),
    "CASA LUPA TOMATO SOUP": ("210", "1.1", "0.9", "0.7"),
    "VOLTO COLA": ("90", "0", "0", "0"),
    "KORVO COFFEE": ("8", "0.1", "0", "0"),
    "MORNA MUESLI": ("1690", "9.8", "8.1", "0.3"),
}


def _back(product: Product, width: int, height: int) -> Sheet:
    _, dark, _, _ = product.palette
    ground, _ = PRINTS[product.family]
    sheet, half = ground(product, width, height), width / 2
    wide = min(width - 18, max(172, 0.4 * width))
    x0, x1 = half - wide / 2, half + wide / 2
    top, bottom = 0.5 * height - 106, 0.5 * height + 126
    if height > 300:
        shade = sheet.image.convert("L").getpixel((sheet.image.width // 2, round(top - 20) * artwork.SCALE))
        sheet.text(product.brand, half, top - 14, 20, "#ffffff" if shade < 140 else dark, width=wide - 10, font=CLASSIC)
    sheet.rect((x0, top, x1, bottom), "#fbfaf6", 5)
    sheet.rect((x0 + 6, top + 6, x1 - 6, top + 28), dark, 3)
    header, *rows = FACTS if product.family in AMOUNTS else CONTENTS
    sheet.text(header, half, top + 23, 12, "#ffffff", width=wide - 26)
    amounts = AMOUNTS.get(product.family, [""] * len(rows))
    for k, ((name, unit), amount) in enumerate(zip(rows, amounts, strict=True)):
        y = top + 47 + 21 * k
        sheet.text(name, x0 + 8, y, 9.5, "#222222", anchor="l", font=PLAIN, width=wide / 2)
        if unit:
            sheet.text(f"{amount} {unit}", x1 - 8, y, 9.5, "#222222", anchor="r", font=PLAIN, width=wide / 2 - 14)
        sheet.rect((x0 + 6, y + 6, x1 - 6, y + 6.8), "#a9a9a3")
    artwork.greek(sheet, (x0 + 8, top + 128, x1 - 8, top + 168), "#8d8d88", len(product.family))
    artwork.barcode(sheet, (half - min(wide, 120) / 2 + 6, bottom - 58, half + min(wide, 120) / 2 - 6, bottom - 8), 5)
    return sheet
