"""Draws the elements of `artwork.yaml` on a sheet: shapes, words, motifs, and patterns that are scattered at random."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageColor, ImageDraw
from PIL.ImageFont import FreeTypeFont

from retailkit.config import read_yaml
from retailkit.data.synthetic.catalogue import FAMILIES, Product
from retailkit.data.synthetic.sheet import SCALE, Box, Points, Sheet, drawn_once, fill_polygon, mix, smooth, typeface_of

ARTWORK = read_yaml(Path(__file__).with_name("artwork.yaml"))
SHARE = re.compile(r"(?:(-?[\d.]+)%)?\s*([+-]?)\s*([\d.]+)?")

Length = float | str
Colour = str | list


def share_of(text: str, whole: float) -> float:
    """Return the pixels that a length such as "20", "55%" or "100% - 4" means of a side of `whole` pixels."""
    share, sign, offset = SHARE.fullmatch(text).groups()
    return float(share or 0) / 100 * whole + float(f"{sign}{offset or 0}")


@dataclass(frozen=True)
class Pen:
    """Draws elements on a sheet; its methods are the elements, in the pen's own coordinates."""

    sheet: Sheet
    product: Product
    names: dict[str, str]  # colours and words that elements call by a name
    x: float  # origin of all coordinates, in pixels of the sheet
    y: float = 0.0
    r: float = 1.0  # pixels of a unit
    turn: float = 0.0  # by how much everything is turned, in radians

    @classmethod
    def on_paper(cls, width: int, height: int, ground: str, product: Product) -> Pen:
        """Return a pen on a new sheet, whose x counts from the middle of the sheet and y from its top."""
        colours = dict(zip(("main", "dark", "paper", "accent"), product.palette, strict=True))
        names = {"white": "#ffffff", "black": "#000000", "tint": product.tint, "brand": product.brand} | colours
        return cls(Sheet(width, height, names.get(ground, ground)), product, names, width / 2)

    def draw(self, elements: Sequence[dict[str, dict[str, Any]]]) -> None:
        """Draw elements one over the other; each is `{kind: options}`."""
        for element in elements:
            ((kind, options),) = element.items()
            if kind in ARTWORK["motifs"]:
                self.motif(kind, **options)
            else:
                (PATTERNS.get(kind) or getattr(Pen, kind))(self, **options)

    # -- Places, outlines and colours

    def point(self, at: Sequence[Length]) -> tuple[float, float]:
        """Return a point in pixels of the sheet."""
        a = (share_of(at[0], self.sheet.width) - self.x) / self.r if isinstance(at[0], str) else at[0]
        b = (share_of(at[1], self.sheet.height) - self.y) / self.r if isinstance(at[1], str) else at[1]
        cos, sin = np.cos(self.turn) * self.r, np.sin(self.turn) * self.r
        return self.x + a * cos - b * sin, self.y + a * sin + b * cos

    def at(self, place: Sequence[Length], r: float = 1.0, turn: float = 0.0) -> Pen:
        """Return a pen whose origin is at a place, with units r times as large and turned further, in degrees."""
        x, y = self.point(place)
        return replace(self, x=x, y=y, r=r * self.r, turn=self.turn + float(np.deg2rad(turn)))

    def box(self, box: Sequence[Length]) -> Box:
        """Return a box in pixels of the sheet."""
        return (*self.point(box[:2]), *self.point(box[2:]))

    def outline(self, parts: Sequence[Any]) -> Points:
        """Return the corners of an outline in pixels of the sheet; see the head of `artwork.yaml`."""
        corners: list[tuple[float, float]] = []
        for part in parts:
            match part:
                case {"curve": places}:
                    corners += smooth([self.point(at) for at in places], closed=False)
                case {"loop": places}:
                    corners += smooth([self.point(at) for at in places])
                case {"star": radii, "corners": count}:
                    t = np.arange(count) * 2 * np.pi / count
                    radius = np.resize(radii, count)
                    corners += [self.point(at) for at in zip(radius * np.cos(t), radius * np.sin(t), strict=True)]
                case {"arc": place, **options}:
                    corners += self._arc(*place, **options)
                case place:
                    corners.append(self.point(place))
        return corners

    def _arc(
        self, x: Length, y: float, rx: Length, ry: float, start=0.0, stop=360.0, corners: int = 40, power: float = 1.0
    ) -> Points:
        t = np.linspace(np.deg2rad(start), np.deg2rad(stop), corners)
        rx = share_of(rx, self.sheet.width) / self.r if isinstance(rx, str) else rx
        rise = np.sin(t) if power == 1 else np.sin(t) ** power
        centre = self.at((x, y))
        return [centre.point(at) for at in zip(rx * np.cos(t), ry * rise, strict=True)]

    def colour(self, value: Colour) -> str:
        """Return a colour as #rrggbb."""
        if isinstance(value, list):
            one, other, share = value
            return mix(self.colour(one), self.colour(other), share)
        return self.names.get(value, value)

    # -- Elements

    @property
    def _ink(self) -> ImageDraw.ImageDraw:
        return ImageDraw.Draw(self.sheet.image)

    def rect(self, box: Sequence[Length], fill: Colour, radius: float = 0) -> None:
        """Fill a rectangle, with round corners if asked."""
        self._ink.rounded_rectangle([v * SCALE for v in self.box(box)], radius * self.r * SCALE, self.colour(fill))

    def ellipse(self, box: Sequence[Length], fill: Colour) -> None:
        """Fill the ellipse inside a box."""
        self._ink.ellipse([v * SCALE for v in self.box(box)], self.colour(fill))

    def disc(self, at: Sequence[Length], r: float, fill: Colour) -> None:
        """Fill a circle."""
        (x, y), r = self.point(at), r * self.r
        self._ink.ellipse([v * SCALE for v in (x - r, y - r, x + r, y + r)], self.colour(fill))

    def line(self, outline: Sequence[Any], fill: Colour, width: float) -> None:
        """Draw a line along an outline."""
        points = [(x * SCALE, y * SCALE) for x, y in self.outline(outline)]
        self._ink.line(points, self.colour(fill), max(round(width * self.r * SCALE), 1), joint="curve")

    def gradient(self, box: Sequence[Length], top: Colour, bottom: Colour) -> None:
        """Fill a rectangle with a vertical gradient."""
        x0, y0, x1, y1 = (round(v * SCALE) for v in self.box(box))
        ends = (ImageColor.getrgb(self.colour(end)) for end in (top, bottom))
        column = np.linspace(*ends, y1 - y0).round().astype(np.uint8)
        self.sheet.image.paste(Image.fromarray(np.repeat(column[:, None], x1 - x0, axis=1)), (x0, y0))

    def poly(self, outline: Sequence[Any], fill: Colour, opacity: float = 1.0, blur: float = 0.0) -> None:
        """Fill an outline; with less opacity what is below shines through, with blur its edge is soft."""
        fill_polygon(self.sheet.image, self.outline(outline), self.colour(fill), opacity, blur * self.r)

    def oval(self, at: Sequence[float], radii: Sequence[float], fill: Colour, **soft: float) -> None:
        """Fill an ellipse that turns with the pen."""
        self.poly([{"arc": [*at, *radii]}], fill, **soft)

    def text(
        self,
        words: str,
        at: Sequence[Length],
        cap: float,
        fill: Colour,
        width: float = 1e9,
        font: str = "sans",
        anchor: str = "m",
        discriminative: bool = False,
        shade: Colour | None = None,
    ) -> None:
        """Print a line of words, with capitals `cap` high; letters are condensed where it is wider than `width`.

        `at` is the middle (anchor m), left end (l) or right end (r) of its baseline, `shade` the colour of the shadow
        of the letters, and `discriminative` says whether the words tell look-alikes apart.
        """
        (x, base), cap, words = self.point(at), cap * self.r, self.names.get(words, words).split()
        face, gap = typeface_of(font, cap * SCALE), 0.32 * cap
        lengths = [face.getlength(word) / SCALE for word in words]
        natural = sum(lengths) + gap * (len(lengths) - 1)
        squeeze = min(1.0, width * self.r / natural)
        x -= natural * squeeze * {"l": 0.0, "m": 0.5, "r": 1.0}[anchor]
        for word, length in zip(words, lengths, strict=True):
            if shade:
                self._print(word, face, x + 0.04 * cap, base + 0.045 * cap, squeeze, shade)
            self.sheet.words.append((word, self._print(word, face, x, base, squeeze, fill), discriminative))
            x += (length + gap) * squeeze

    def _print(self, word: str, face: FreeTypeFont, x: float, base: float, squeeze: float, fill: Colour) -> Box:
        """Print a word from x on; return the box around it."""
        left, top, right, bottom = face.getbbox(word, anchor="ls")
        ink = Image.new("L", (right - left, bottom - top))
        ImageDraw.Draw(ink).text((-left, -top), word, 255, face, anchor="ls")
        ink = ink.resize((max(round(ink.width * squeeze), 1), ink.height), Image.Resampling.LANCZOS)
        corner = (round(x * SCALE + left * squeeze), round(base * SCALE + top))
        self.sheet.image.paste(self.colour(fill), corner, ink)
        x0, y0 = (v / SCALE for v in corner)
        return x0, y0, x0 + ink.width / SCALE, y0 + ink.height / SCALE

    def slot(self, box: Sequence[Length]) -> None:
        """Say where look-alikes differ."""
        self.sheet.slots.append(self.box(box))

    def variant(self, box: Sequence[float], fill: Colour) -> None:
        """Print the discriminative words into a box, which is a slot."""
        x0, y0, x1, y1 = box
        if self.product.coded:
            fill, box = "white", (x0 - 14, y0 - 5, x1 + 14, y1 + 5)
            self.rect(box, "tint", radius=6)
        words, at = " ".join(self.product.variant), ((x0 + x1) / 2, y1 - 0.08 * (y1 - y0))
        self.text(words, at, 0.84 * (y1 - y0), fill, width=x1 - x0 - 2, discriminative=True)
        self.slot(box)

    def band(self, box: Sequence[Length], radius: float) -> None:
        """Print a small band in the variant's colour, which is a slot."""
        self.rect(box, "tint", radius)
        self.slot(box)

    def motif(self, kind: str, at: Sequence[Length], r: float, turn: float = 0.0, **names: Colour) -> None:
        """Draw a motif with its own unit and colours."""
        named = {name: self.colour(value) for name, value in names.items()}
        replace(self.at(at, r, turn), names=self.names | named).draw(ARTWORK["motifs"][kind])

    def repeat(
        self, draw: Sequence[dict], *, filled: Sequence[int] = (), empty: Colour = "white", **where: Any
    ) -> None:
        """Draw elements several times: `at` places, `times` from `first` to `last`, or in `turns` around a point.

        `filled` says for each variant of a family how many of them have the tint as their colour `mark`; the others
        have the colour `empty`.
        """
        rank = self.product.index - FAMILIES[self.product.family][0].index
        for k, pen in enumerate(self._places(**where)):
            mark = "tint" if filled and k < filled[rank] else empty
            replace(pen, names=self.names | {"mark": self.colour(mark)}).draw(draw)

    def _places(self, at=(), times: int = 0, first=(0, 0), last=(0, 0), turns: int = 0, start=0.0, around=(0, 0)):
        yield from (self.at(place) for place in [*at, *np.linspace(first, last, times)])
        yield from (self.at(around, turn=start + k * 360 / turns) for k in range(turns))


# -- Patterns: what is scattered at random, or follows a wave.


def steam(pen: Pen) -> None:
    """Draw three wisps of steam above the origin."""
    for shift in (-0.35, 0.05, 0.45):
        rise = np.linspace(0, 1, 14)
        wave = shift + 0.14 * np.sin(rise * 6 + shift * 4)
        left, right = (list(zip(wave + side, -(0.3 + 0.9 * rise), strict=True)) for side in (-0.05, 0.06))
        pen.poly(left + right[::-1], "white", 0.75, 0.03)


def bean(pen: Pen, at: Sequence[float], length: float, turn: float) -> None:
    """Draw a coffee bean."""
    pen = pen.at(at, length / 2, turn)
    pen.oval((0, 0), (1.06, 0.72), "#24120a")
    pen.oval((0, 0), (1, 0.66), "#5f351b")
    pen.oval((-0.05, -0.14), (0.8, 0.4), "#7c4a28")
    s = np.linspace(-0.92, 0.92, 20)
    pen.line(list(zip(s, 0.14 * np.sin(s * 3), strict=True)), "#24120a", 0.18)


def beans(pen: Pen, top: float, seed: int) -> None:
    """Fill the sheet with coffee beans from `top` down."""
    rng, width = np.random.default_rng(seed), pen.sheet.width
    for y in np.arange(top, pen.sheet.height + 16, 15):
        for x in np.arange(0, width + 20, 23):
            dx, dy = rng.uniform(-6, 6, 2)
            place = (x + dx - pen.x, y + dy + 8 * np.cos(x / width * 6))
            bean(pen, place, 27, np.rad2deg(rng.uniform(0, 3.1)))


def flakes(pen: Pen, at: Sequence[float], radii: Sequence[float], count: int, seed: int) -> None:
    """Scatter cereal flakes, nuts and raisins over an ellipse, the farther ones first."""
    rng, (x, y), (rx, ry) = np.random.default_rng(seed), pen.point(at), radii
    radius, turn = np.sqrt(rng.uniform(0, 1, count)), rng.uniform(0, 2 * np.pi, count)
    spots = np.c_[x + rx * radius * np.cos(turn), y + ry * radius * np.sin(turn)]
    circle = np.linspace(0, 2 * np.pi, 40)
    for a, b in spots[np.argsort(spots[:, 1])]:
        r, tilt, kind = rng.uniform(6, 10), rng.uniform(0, np.pi), rng.uniform()
        fill = mix("#c98a35", "#f0c877", rng.uniform()) if kind < 0.78 else ("#4a2618", "#f3e3bf")[int(kind > 0.88)]
        wide, high = (r, 0.62 * r) if kind < 0.78 else (0.7 * r, 0.5 * r)
        cos, sin = np.cos(tilt), np.sin(tilt)
        shape = np.c_[wide * np.cos(circle), high * np.sin(circle)] @ np.array([[cos, sin], [-0.8 * sin, 0.8 * cos]])
        fill_polygon(pen.sheet.image, shape + np.array((a, b + 1.4)), mix(fill, "#3a1a00", 0.5))
        fill_polygon(pen.sheet.image, shape + np.array((a, b)), fill)
        fill_polygon(pen.sheet.image, 0.5 * shape + np.array((a - 0.2 * r, b - 0.15 * r)), mix(fill, "#ffffff", 0.25))


def _spot(pen: Pen, x: float, y: float, rx: float, ry: float, fill: str, opacity: float, blur: float = 0.0) -> None:
    """Draw an oval at a place in pixels of the sheet."""
    replace(pen, x=x, y=y).oval((0, 0), (rx, ry), fill, opacity=opacity, blur=blur)


def bubbles(
    pen: Pen, box: Sequence[Length], radii: Sequence[float], count: int, seed: int, fill: str, shade: str
) -> None:
    """Scatter bubbles."""
    x0, y0, x1, y1 = pen.box(box)
    spots = np.random.default_rng(seed).uniform((x0, y0, radii[0]), (x1, y1, radii[1]), (count, 3))
    for x, y, r in spots:
        _spot(pen, x, y, r, r, fill, 0.10)
        _spot(pen, x, y, 0.8 * r, 0.8 * r, shade, 0.10)


def beads(pen: Pen, box: Sequence[Length], count: int, seed: int) -> None:
    """Scatter drops of condensed water."""
    x0, y0, x1, y1 = pen.box(box)
    for x, y, share in np.random.default_rng(seed).uniform((x0, y0, 0), (x1, y1, 1), (count, 3)):
        r = 1.0 + 2.6 * share**2
        _spot(pen, x + 0.3, y + 0.6, r, 1.15 * r, "black", 0.35, 0.5)
        _spot(pen, x, y, r, 1.15 * r, "white", 0.22)
        _spot(pen, x - 0.3 * r, y - 0.4 * r, 0.35 * r, 0.35 * r, "white", 0.8)


def small_print(pen: Pen, box: Sequence[float], fill: Colour, seed: int) -> None:
    """Draw lines of print that is too small to be read."""
    (x0, y0, x1, y1), rng = box, np.random.default_rng(seed)
    for y in np.arange(y0, y1, 6):
        x = x0
        while x < x1 - 4:
            length = min(rng.uniform(5, 18), x1 - x)
            pen.rect((x, y, x + length, y + 2.52), fill)
            x += length + 3


def barcode(pen: Pen, box: Sequence[float], seed: int) -> None:
    """Draw a barcode on white."""
    pen.rect(box, "white")
    (x0, y0, x1, y1), rng = box, np.random.default_rng(seed)
    x = x0 + 4
    while x < x1 - 5:
        width = float(rng.choice([1, 1, 1.5, 2.5]))
        pen.rect((x, y0 + 3, x + width - 0.5, y1 - 3), "#111111")
        x += width + float(rng.choice([1, 1.5, 2]))


def mince(pen: Pen, box: Sequence[Length], radius: float, seed: int) -> None:
    """Fill a box with round corners with minced meat."""
    x0, y0, x1, y1 = (round(v) for v in pen.box(box))
    meat = _meat(x1 - x0, y1 - y0, seed)
    shape = Image.new("L", meat.size)
    ImageDraw.Draw(shape).rounded_rectangle((0, 0, *meat.size), radius * SCALE, 255)
    pen.sheet.image.paste(meat, (x0 * SCALE, y0 * SCALE), shape)


@drawn_once
def _meat(width: int, height: int, seed: int) -> Image.Image:
    """Return strands of minced meat over strands, with flecks of fat."""
    image, rng = Image.new("RGB", (width * SCALE, height * SCALE), "#6d1518"), np.random.default_rng(seed)
    pen = ImageDraw.Draw(image)
    starts = rng.uniform((-20, -20), (width + 20, height + 20), (width * height // 240, 2))
    circle = np.linspace(0, 2 * np.pi, 40)
    for k, start in enumerate(starts):
        turn, bend = rng.uniform(0, 2 * np.pi), rng.uniform(-0.5, 0.5)
        turns = turn + bend * np.arange(7)
        path = np.concatenate([[start], start + np.cumsum(np.c_[np.cos(turns), np.sin(turns)] * 5.5, axis=0)])
        fat = rng.uniform() < 0.12
        tone = mix("#e7a097", "#f3cabf", rng.uniform()) if fat else mix("#8c1c20", "#d2514f", rng.uniform() ** 1.3)
        thick = rng.uniform(8, 11) * (0.55 if fat else 1)
        for shift, fill, share in ((1.2, "#4a0b0e", 1.25), (0, tone, 1), (-1.2, mix(tone, "#ffffff", 0.22), 0.3)):
            line = [tuple(point) for point in (path + np.array((0.3 * shift, shift))) * SCALE]
            pen.line(line, fill, round(thick * share * SCALE), joint="curve")
        if k % 9 == 0:
            x, y = path[3]
            fleck = np.c_[x + 3.0 * np.cos(circle), y - 2 + 1.6 * np.sin(circle)]
            fill_polygon(image, fleck, "#ffffff", 0.55, 0.8)
    return image


PATTERNS: dict[str, Callable[..., None]] = {
    pattern.__name__: pattern for pattern in (steam, bean, beans, flakes, bubbles, beads, small_print, barcode, mince)
}
