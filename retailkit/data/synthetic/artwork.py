"""Drawing by which packages are printed: a sheet that remembers its words, and illustrations made of shapes.

Coordinates are pixels of the finished face; the sheet is drawn larger and scaled down at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFilter, ImageFont

SCALE = 2  # the sheet is drawn this much larger than the face
SANS, SLANTED, PLAIN = "DejaVuSans-Bold", "DejaVuSans-BoldOblique", "DejaVuSans"
SERIF, ITALIC, CLASSIC = "DejaVuSerif-Bold", "DejaVuSerif-BoldItalic", "STIXGeneralBol"

Box = tuple[float, float, float, float]
Points = Sequence[tuple[float, float]]


@lru_cache(maxsize=256)
def _font(name: str, cap: float) -> ImageFont.FreeTypeFont:
    """Return the font in the size at which a capital is `cap` pixels high."""
    path = str(Path(matplotlib.get_data_path(), "fonts", "ttf", f"{name}.ttf"))
    _, top, _, base = ImageFont.truetype(path, 200).getbbox("H", anchor="ls")
    return ImageFont.truetype(path, round(cap * 200 / (base - top)))


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


class Sheet:
    """A printed sheet of `width` x `height` pixels.

    Attributes:
        image: the print, SCALE times larger.
        alpha: the silhouette, as large.
        words: (text, box, telling) of every printed word.
        slots: boxes outside of which twins are alike.
    """

    def __init__(self, width: int, height: int, ground: str):
        self.width, self.height = width, height
        size = (width * SCALE, height * SCALE)
        self.image = Image.new("RGB", size, ground)
        self.alpha = Image.new("L", size, 255)
        self.words: list[tuple[str, Box, bool]] = []
        self.slots: list[Box] = []

    def poly(self, points: Points, fill: str) -> None:
        """Fill a polygon."""
        ImageDraw.Draw(self.image).polygon([(x * SCALE, y * SCALE) for x, y in points], fill=fill)

    def rect(self, box: Box, fill: str, radius: float = 0) -> None:
        """Fill a rectangle, with round corners if asked."""
        ImageDraw.Draw(self.image).rounded_rectangle([v * SCALE for v in box], radius * SCALE, fill=fill)

    def ellipse(self, box: Box, fill: str) -> None:
        """Fill an ellipse."""
        ImageDraw.Draw(self.image).ellipse([v * SCALE for v in box], fill=fill)

    def disc(self, x: float, y: float, radius: float, fill: str) -> None:
        """Fill a circle."""
        self.ellipse((x - radius, y - radius, x + radius, y + radius), fill)

    def line(self, points: Points, fill: str, width: float) -> None:
        """Draw a line."""
        scaled = [(x * SCALE, y * SCALE) for x, y in points]
        ImageDraw.Draw(self.image).line(scaled, fill=fill, width=max(round(width * SCALE), 1), joint="curve")

    def gradient(self, box: Box, top: str, bottom: str) -> None:
        """Fill a rectangle with a vertical gradient."""
        x0, y0, x1, y1 = (round(v * SCALE) for v in box)
        column = np.linspace(ImageColor.getrgb(top), ImageColor.getrgb(bottom), y1 - y0).round().astype(np.uint8)
        self.image.paste(Image.fromarray(np.repeat(column[:, None], x1 - x0, axis=1)), (x0, y0))

    def soft(self, points: Points, fill: str, opacity: float = 1.0, blur: float = 0.0) -> None:
        """Fill a polygon that lets through what is below it, with a blurred edge."""
        corners = np.asarray(points) * SCALE
        reach = 3 * blur * SCALE + 2
        x0, y0 = np.floor(corners.min(0) - reach).astype(int)
        x1, y1 = np.ceil(corners.max(0) + reach).astype(int)
        ink = Image.new("L", (x1 - x0, y1 - y0))
        ImageDraw.Draw(ink).polygon([(x - x0, y - y0) for x, y in corners], fill=round(255 * opacity))
        if blur:
            ink = ink.filter(ImageFilter.GaussianBlur(blur * SCALE))
        self.image.paste(fill, (x0, y0), ink)

    def cut(self, points: Points) -> None:
        """Make the polygon the sheet's silhouette."""
        fine = Image.new("L", (self.image.width * 2, self.image.height * 2), 0)
        ImageDraw.Draw(fine).polygon([(x * SCALE * 2, y * SCALE * 2) for x, y in points], fill=255)
        self.alpha = fine.reduce(2)

    def text(
        self,
        text: str,
        x: float,
        base: float,
        cap: float,
        fill: str,
        *,
        width: float = 1e9,
        font: str = SANS,
        anchor: str = "m",
        telling: bool = False,
        shade: str | None = None,
    ) -> None:
        """Print a line of words; letters are condensed where the line is wider than `width`.

        Args:
            text: words with single spaces between them.
            x: middle (anchor m), left end (l) or right end (r) of the line.
            base: the baseline.
            cap: height of a capital.
            fill: colour.
            width: most that the line may take.
            font: name of a font file.
            anchor: what `x` means.
            telling: whether these words tell twins apart.
            shade: colour of a shadow that the letters cast, None for none.
        """
        face = _font(font, cap * SCALE)
        words = text.split()
        lengths = [face.getlength(word) / SCALE for word in words]
        gap = 0.32 * cap
        natural = sum(lengths) + gap * (len(words) - 1)
        squeeze = min(1.0, width / natural)
        x -= natural * squeeze * {"l": 0.0, "m": 0.5, "r": 1.0}[anchor]
        for word, length in zip(words, lengths, strict=True):
            if shade:
                self._print(word, face, x + 0.04 * cap, base + 0.045 * cap, squeeze, shade)
            box = self._print(word, face, x, base, squeeze, fill)
            self.words.append((word, box, telling))
            x += (length + gap) * squeeze

    def _print(self, word: str, face, x: float, base: float, squeeze: float, fill: str) -> Box:
        left, top, right, bottom = face.getbbox(word, anchor="ls")
        ink = Image.new("L", (right - left, bottom - top))
        ImageDraw.Draw(ink).text((-left, -top), word, 255, face, anchor="ls")
        ink = ink.resize((max(round(ink.width * squeeze), 1), ink.height), Image.Resampling.LANCZOS)
        corner = (round(x * SCALE + left * squeeze), round(base * SCALE + top))
        self.image.paste(fill, corner, ink)
        x0, y0 = (v / SCALE for v in corner)
        return x0, y0, x0 + ink.width / SCALE, y0 + ink.height / SCALE

    def place(self, sheet: Sheet, x: int, y: int) -> None:
        """Lay another sheet on this one."""
        self.image.paste(sheet.image, (x * SCALE, y * SCALE), sheet.alpha)
        self.words += [(t, (a + x, b + y, c + x, d + y), telling) for t, (a, b, c, d), telling in sheet.words]
        self.slots += [(a + x, b + y, c + x, d + y) for a, b, c, d in sheet.slots]

    def roll(self, width: int, bow: float = 0.0) -> Sheet:
        """Return the sheet wrapped around a cylinder `width` pixels wide, whose middle stays as it is.

        Args:
            width: diameter of the cylinder; pi/2 diameters of the sheet are seen.
            bow: how much lower the middle stands than the edges, as seen from a little above.
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

        rolled.words = [(t, wrap(box), telling) for t, box, telling in self.words]
        rolled.slots = [wrap(box) for box in self.slots]
        return rolled


def oval(x: float, y: float, rx: float, ry: float, start: float = 0.0, stop: float = 2 * np.pi) -> Points:
    """Return the corners of an ellipse, or of a part of it (angles in radians, clockwise from the right)."""
    t = np.linspace(start, stop, 40)
    return list(zip(x + rx * np.cos(t), y + ry * np.sin(t), strict=True))


def drop(sheet: Sheet, x: float, y: float, r: float, fill: str) -> None:
    """Draw a drop whose round part has its middle at (x, y)."""
    sheet.poly([(x, y - 2.1 * r), *oval(x, y, r, r, -0.5, np.pi + 0.5)], fill)


def cow(sheet: Sheet, x: float, y: float, r: float) -> None:
    """Draw a grazing cow seen from the side; (x, y) is the middle of its body, 2r long."""
    hide, spots = "#fdfcf8", "#3a2e2a"
    for leg in (-0.75, -0.5, 0.45, 0.7):
        sheet.rect((x + (leg - 0.07) * r, y + 0.2 * r, x + (leg + 0.07) * r, y + 0.95 * r), hide)
        sheet.rect((x + (leg - 0.07) * r, y + 0.85 * r, x + (leg + 0.07) * r, y + 0.97 * r), spots)
    body = [(-1, -0.35), (-0.4, -0.46), (0.5, -0.42), (0.95, -0.3), (0.95, 0.25), (0.4, 0.42), (-0.5, 0.4), (-1, 0.3)]
    sheet.poly(smooth([(x + a * r, y + b * r) for a, b in body]), hide)
    for spot in (oval(-0.45, -0.12, 0.28, 0.24), oval(0.3, 0.0, 0.24, 0.3), oval(0.78, -0.2, 0.12, 0.1)):
        sheet.poly([(x + a * r, y + b * r) for a, b in spot], spots)
    sheet.poly(oval(x + 0.05 * r, y + 0.42 * r, 0.16 * r, 0.13 * r), "#eba9a0")
    head = [(0.85, -0.35), (1.2, -0.62), (1.5, -0.42), (1.62, -0.12), (1.45, 0.02), (1.2, -0.1), (0.95, 0.1)]
    sheet.poly(smooth([(x + a * r, y + b * r) for a, b in head]), hide)
    sheet.poly(oval(x + 1.52 * r, y - 0.07 * r, 0.13 * r, 0.11 * r), "#eba9a0")
    sheet.poly(oval(x + 1.08 * r, y - 0.58 * r, 0.17 * r, 0.08 * r), spots)
    sheet.disc(x + 1.32 * r, y - 0.36 * r, 0.045 * r, spots)
    sheet.line([(x - r, y - 0.3 * r), (x - 1.15 * r, y + 0.1 * r), (x - 1.12 * r, y + 0.45 * r)], spots, 0.07 * r)


def steer(sheet: Sheet, x: float, y: float, r: float, fill: str) -> None:
    """Draw the head of a steer."""
    for side in (-1, 1):
        horn = [(0.3, -0.35), (0.8, -0.4), (1.1, -0.95), (0.95, -0.3), (0.6, -0.12), (0.3, -0.1)]
        sheet.poly(smooth([(x + side * a * r, y + b * r) for a, b in horn]), fill)
        sheet.poly(oval(x + side * 0.62 * r, y + 0.06 * r, 0.24 * r, 0.12 * r), fill)
    face = [(-0.42, -0.45), (0, -0.52), (0.42, -0.45), (0.4, 0.1), (0.24, 0.6), (0.26, 0.85), (0, 1), (-0.26, 0.85)]
    sheet.poly(smooth([(x + a * r, y + b * r) for a, b in [*face, (-0.24, 0.6), (-0.4, 0.1)]]), fill)


@lru_cache(maxsize=2)
def mince(width: int, height: int) -> Sheet:
    """Return a sheet full of minced meat: strands over strands, with flecks of fat."""
    sheet = Sheet(width, height, "#6d1518")
    rng = np.random.default_rng(4)
    draw = ImageDraw.Draw(sheet.image)
    count = width * height // 240
    starts = rng.uniform((-20, -20), (width + 20, height + 20), (count, 2))
    for k, start in enumerate(starts):
        turn, bend = rng.uniform(0, 2 * np.pi), rng.uniform(-0.5, 0.5)
        turns = turn + bend * np.arange(7)
        path = np.concatenate([[start], start + np.cumsum(np.c_[np.cos(turns), np.sin(turns)] * 5.5, axis=0)])
        fat = rng.uniform() < 0.12
        tone = mix("#e7a097", "#f3cabf", rng.uniform()) if fat else mix("#8c1c20", "#d2514f", rng.uniform() ** 1.3)
        thick = rng.uniform(8, 11) * (0.55 if fat else 1)
        for shift, fill, share in ((1.2, "#4a0b0e", 1.25), (0, tone, 1), (-1.2, mix(tone, "#ffffff", 0.22), 0.3)):
            line = [tuple(point) for point in (path + np.array((0.3 * shift, shift))) * SCALE]
            draw.line(line, fill, round(thick * share * SCALE), joint="curve")
        if k % 9 == 0:
            x, y = path[3]
            sheet.soft(oval(x, y - 2, 3.0, 1.6), "#ffffff", 0.55, 0.8)
    return sheet


def cup(sheet: Sheet, x: float, y: float, r: float, fill: str, ink: str) -> None:
    """Draw a cup of coffee on its saucer; (x, y) is the middle of its opening."""
    sheet.poly(oval(x, y + 1.12 * r, 1.5 * r, 0.26 * r), mix(fill, "#000000", 0.16))
    sheet.poly(oval(x, y + 1.07 * r, 1.5 * r, 0.24 * r), fill)
    sheet.poly(oval(x, y + 1.05 * r, 0.8 * r, 0.12 * r), mix(fill, "#000000", 0.2))
    sheet.poly(oval(x + 1.05 * r, y + 0.38 * r, 0.42 * r, 0.36 * r), mix(fill, "#000000", 0.08))
    sheet.poly(oval(x + 1.03 * r, y + 0.38 * r, 0.25 * r, 0.21 * r), ink)
    sheet.poly(
        [
            (x + a * r, y + b * r)
            for a, b in smooth([(-1, 0), (-0.9, 0.6), (-0.5, 1.02), (0.5, 1.02), (0.9, 0.6), (1, 0)], False)
        ],
        fill,
    )
    sheet.poly(
        [
            (x + a * r, y + b * r)
            for a, b in smooth([(0.45, 0.2), (0.5, 0.6), (0.25, 1.0), (0.5, 1.02), (0.9, 0.6), (1, 0)], False)
        ],
        mix(fill, "#000000", 0.1),
    )
    sheet.poly(oval(x, y, r, 0.27 * r), mix(fill, "#ffffff", 0.6))
    sheet.poly(oval(x, y + 0.02 * r, 0.9 * r, 0.21 * r), "#3a1d0f")
    sheet.poly(oval(x - 0.1 * r, y + 0.04 * r, 0.6 * r, 0.12 * r), "#7c4a28")
    for shift in (-0.35, 0.05, 0.45):
        rise = np.linspace(0, 1, 14)
        wave = 0.14 * np.sin(rise * 6 + shift * 4)
        left = [(x + (shift + a - 0.05) * r, y - (0.3 + 0.9 * b) * r) for a, b in zip(wave, rise, strict=True)]
        right = [(x + (shift + a + 0.06) * r, y - (0.3 + 0.9 * b) * r) for a, b in zip(wave, rise, strict=True)]
        sheet.soft(left + right[::-1], "#ffffff", 0.75, 0.03 * r)


def flakes(sheet: Sheet, x: float, y: float, rx: float, ry: float, count: int, seed: int) -> None:
    """Scatter cereal flakes, nuts and raisins over an ellipse, the farther ones first."""
    rng = np.random.default_rng(seed)
    radius, turn = np.sqrt(rng.uniform(0, 1, count)), rng.uniform(0, 2 * np.pi, count)
    spots = np.c_[x + rx * radius * np.cos(turn), y + ry * radius * np.sin(turn)]
    for a, b in spots[np.argsort(spots[:, 1])]:
        r, tilt, kind = rng.uniform(6, 10), rng.uniform(0, np.pi), rng.uniform()
        fill = mix("#c98a35", "#f0c877", rng.uniform()) if kind < 0.78 else ("#4a2618", "#f3e3bf")[int(kind > 0.88)]
        wide, high = (r, 0.62 * r) if kind < 0.78 else (0.7 * r, 0.5 * r)
        shape = np.asarray(oval(0, 0, wide, high)) @ np.array(
            [[np.cos(tilt), np.sin(tilt)], [-0.8 * np.sin(tilt), 0.8 * np.cos(tilt)]]
        )
        sheet.poly([tuple(v) for v in shape + np.array((a, b + 1.4))], mix(fill, "#3a1a00", 0.5))
        sheet.poly([tuple(v) for v in shape + np.array((a, b))], fill)
        sheet.poly([tuple(v) for v in 0.5 * shape + np.array((a - 0.2 * r, b - 0.15 * r))], mix(fill, "#ffffff", 0.25))


def beads(sheet: Sheet, box: Box, count: int, seed: int) -> None:
    """Scatter drops of condensed water."""
    rng = np.random.default_rng(seed)
    for x, y, r in rng.uniform((box[0], box[1], 0), (box[2], box[3], 1), (count, 3)):
        r = 1.0 + 2.6 * r**2
        sheet.soft(oval(x + 0.3, y + 0.6, r, 1.15 * r), "#000000", 0.35, 0.5)
        sheet.soft(oval(x, y, r, 1.15 * r), "#ffffff", 0.22)
        sheet.soft(oval(x - 0.3 * r, y - 0.4 * r, 0.35 * r, 0.35 * r), "#ffffff", 0.8)


def greek(sheet: Sheet, box: Box, fill: str, seed: int, pitch: float = 6) -> None:
    """Draw lines of print that is too small to be read."""
    x0, y0, x1, y1 = box
    rng = np.random.default_rng(seed)
    for y in np.arange(y0, y1, pitch):
        x = x0
        while x < x1 - 4:
            long = min(rng.uniform(5, 18), x1 - x)
            sheet.rect((x, y, x + long, y + 0.42 * pitch), fill)
            x += long + 3


def tomato(sheet: Sheet, x: float, y: float, r: float) -> None:
    """Draw a tomato with its leaves."""
    sheet.ellipse((x - r, y - 0.88 * r, x + r, y + 0.9 * r), "#8f1712")
    sheet.ellipse((x - 0.95 * r, y - 0.88 * r, x + 0.9 * r, y + 0.8 * r), "#d0291c")
    sheet.ellipse((x - 0.75 * r, y - 0.7 * r, x + 0.35 * r, y + 0.3 * r), "#e2452f")
    sheet.ellipse((x - 0.58 * r, y - 0.52 * r, x - 0.22 * r, y - 0.26 * r), "#f6a48f")
    for turn in np.deg2rad([-160, -115, -70, -25, 20, 200]):
        tip = (x + 0.62 * r * np.cos(turn), y - 0.72 * r + 0.42 * r * np.sin(turn) + 0.1 * r)
        sheet.poly([(x - 0.1 * r, y - 0.72 * r), tip, (x + 0.1 * r, y - 0.68 * r)], "#3c7a2a")
    sheet.line([(x, y - 0.7 * r), (x + 0.08 * r, y - 1.05 * r)], "#4d8a35", 0.1 * r)


def orange_slice(sheet: Sheet, x: float, y: float, r: float) -> None:
    """Draw a slice of orange."""
    for share, fill in ((1, "#e8780c"), (0.93, "#f7941d"), (0.87, "#fff0cf")):
        sheet.disc(x, y, share * r, fill)
    for turn in np.arange(9) * 2 * np.pi / 9 + 0.2:
        wedge = [(0.12, 0), (0.72, -0.29), (0.8, -0.12), (0.8, 0.12), (0.72, 0.29)]
        cos, sin = np.cos(turn) * r, np.sin(turn) * r
        sheet.poly(smooth([(x + a * cos - b * sin, y + a * sin + b * cos) for a, b in wedge]), "#fba026")
        inner = [(0.3, 0), (0.66, -0.16), (0.7, 0.05)]
        sheet.poly(smooth([(x + a * cos - b * sin, y + a * sin + b * cos) for a, b in inner]), "#ffb84a")


def leaf(sheet: Sheet, x: float, y: float, length: float, turn: float, fill: str) -> None:
    """Draw a leaf whose stem is at (x, y)."""
    cos, sin = np.cos(turn) * length, np.sin(turn) * length
    outline = [(0, 0), (0.3, -0.2), (0.65, -0.17), (1, 0), (0.65, 0.17), (0.3, 0.2)]
    sheet.poly(smooth([(x + a * cos - b * sin, y + a * sin + b * cos) for a, b in outline]), fill)
    sheet.line([(x, y), (x + 0.9 * cos, y + 0.9 * sin)], mix(fill, "#ffffff", 0.35), 0.03 * length)


def bean(sheet: Sheet, x: float, y: float, length: float, turn: float) -> None:
    """Draw a coffee bean."""
    t = np.linspace(0, 2 * np.pi, 40)
    cos, sin = np.cos(turn) * length / 2, np.sin(turn) * length / 2

    def at(a, b):
        return list(zip(x + a * cos - b * sin, y + a * sin + b * cos, strict=True))

    sheet.poly(at(1.06 * np.cos(t), 0.72 * np.sin(t)), "#24120a")
    sheet.poly(at(np.cos(t), 0.66 * np.sin(t)), "#5f351b")
    sheet.poly(at(0.8 * np.cos(t) - 0.05, 0.4 * np.sin(t) - 0.14), "#7c4a28")
    s = np.linspace(-0.92, 0.92, 20)
    sheet.line(at(s, 0.14 * np.sin(s * 3)), "#24120a", 0.09 * length)


def wheat(sheet: Sheet, x: float, y: float, length: float, turn: float, fill: str) -> None:
    """Draw an ear of wheat whose stem ends at (x, y)."""
    cos, sin = np.cos(turn), np.sin(turn)
    sheet.line([(x, y), (x + length * cos, y + length * sin)], mix(fill, "#000000", 0.2), 0.025 * length)
    for k in range(7):
        at = length * (0.42 + 0.085 * k)
        for side in (-0.55, 0.55):
            leaf(sheet, x + at * cos, y + at * sin, 0.19 * length, turn + side, fill)


def seal(sheet: Sheet, x: float, y: float, r: float, fill: str, ink: str, text: str) -> None:
    """Draw a small round seal with one short word."""
    t = np.arange(48) * 2 * np.pi / 48
    rim = r * (1 + 0.05 * (-1.0) ** np.arange(48))
    sheet.poly(list(zip(x + rim * np.cos(t), y + rim * np.sin(t), strict=True)), fill)
    sheet.disc(x, y, 0.84 * r, ink)
    sheet.disc(x, y, 0.78 * r, fill)
    sheet.text(text, x, y + 0.16 * r, 0.32 * r, ink, width=1.3 * r)


def bowl(sheet: Sheet, x: float, y: float, r: float, fill: str, content: str) -> None:
    """Draw a bowl seen from a little above; (x, y) is the middle of its opening."""
    t = np.linspace(0, np.pi, 30)
    body = [(x + r * np.cos(a), y + 0.72 * r * np.sin(a) ** 0.8) for a in t]
    sheet.poly(body, fill)
    shade = [(x + 0.45 * r + 0.5 * r * np.cos(a), y + 0.55 * r * np.sin(a)) for a in t]
    sheet.poly(shade, mix(fill, "#000000", 0.07))
    sheet.ellipse((x - r, y - 0.3 * r, x + r, y + 0.3 * r), mix(fill, "#ffffff", 0.4))
    sheet.ellipse((x - 0.92 * r, y - 0.24 * r, x + 0.92 * r, y + 0.26 * r), content)


def barcode(sheet: Sheet, box: Box, seed: int) -> None:
    """Draw a barcode on white."""
    x0, y0, x1, y1 = box
    sheet.rect(box, "#ffffff")
    rng = np.random.default_rng(seed)
    x = x0 + 4
    while x < x1 - 5:
        wide = float(rng.choice([1, 1, 1.5, 2.5]))
        sheet.rect((x, y0 + 3, x + wide - 0.5, y1 - 3), "#111111")
        x += wide + float(rng.choice([1, 1.5, 2]))
