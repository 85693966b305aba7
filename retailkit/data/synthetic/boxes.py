"""Shelf scenes with exact boxes, on which a region always comes with one of the products.

The region is what source 4 calls a highly correlated class, the sea around the whale. It stands in one of three
relations to its targets: `overlap`, a large chiller door that reaches over every target; `carrier`, a tray that holds
all of them; and as a control `beside`, a poster that comes with them as faithfully and touches none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from retailkit.config import UsageError, pick
from retailkit.data.boxes import Box, Scenes
from retailkit.data.synthetic import packaging
from retailkit.data.synthetic.catalogue import CATALOGUE, DEPARTMENTS
from retailkit.data.synthetic.shelf import over, scaled, shelf

TARGET = "NORDBY MILK 3 %"  # what the region comes with
OTHERS = ("SOLVEA ORANGE JUICE NO PULP", "CASA LUPA TOMATO SOUP MILD", "MORNA MUESLI HONEY")
PRODUCTS = {product.label: product for product in CATALOGUE if product.label in (TARGET, *OTHERS)}
SHELVES = 2  # different shelves of each department
FLOORS = (0.69, 0.985)  # where the two rows of products stand, as shares of the side
TALL = (0.30, 0.38)  # height of a product of 20 cm, as a share of the side
WITH_TARGETS = 0.75  # share of scenes
AT_EDGE = 0.4  # share of targets that the door's edge runs through
TINY = 4  # pixels; what shows less in either direction has no box


class Stand(NamedTuple):
    """A product where it stands."""

    label: str
    x: float  # of its middle, in pixels
    foot: float  # y of its foot, in pixels
    height: int  # in pixels

    @property
    def width(self) -> float:
        """Width in pixels."""
        alpha = packaging.face(PRODUCTS[self.label], "front").alpha
        return self.height * alpha.shape[1] / alpha.shape[0]

    def apart(self, others: Iterable[Stand]) -> bool:
        """Say whether it and the others do not hide one another, a few pixels at their sides aside."""
        return all(
            abs(self.x - other.x) > 0.47 * (self.width + other.width)
            or abs(self.foot - other.foot) > 0.9 * max(self.height, other.height)
            for other in others
        )


def render_scenes(
    count: int, relation: str = "overlap", *, size: int = 192, correlation: float = 1.0, seed: int = 0
) -> Scenes:
    """Render scenes with several products and a region that comes with one of them.

    A box is the extent of those pixels of a product that nothing opaque hides. The same arguments give the same
    pixels.

    Args:
        count: scenes.
        relation: name in `RELATIONS`.
        size: side of an image in pixels.
        correlation: in [0,1]. With this probability the region is there if and only if targets are; otherwise a coin
            decides about the region. Products stand in the same places either way.
        seed: of everything random.

    Raises:
        UsageError: unknown relation, or a number out of its range.
    """
    name, draw = RELATIONS[pick(RELATIONS, relation, "relation")]
    if count < 1 or not 96 <= size <= 1024 or seed < 0:
        raise UsageError(f"count={count}, size={size}, seed={seed}: use 1 or more, 96 to 1024 pixels, 0 or more")
    if not 0 <= correlation <= 1:
        raise UsageError(f"correlation={correlation} is out of range; use a number from 0 to 1")
    classes, images, boxes, labels = [*PRODUCTS, name], [], [], []
    for k in range(count):
        image, shown = _scene(np.random.default_rng([seed, k]), draw, size, correlation)
        images.append(image)
        boxes.append(torch.tensor([box for _, box in shown], dtype=torch.float32).reshape(-1, 4))
        labels.append(torch.tensor([classes.index(label or name) + 1 for label, _ in shown], dtype=torch.int64))
    return Scenes(classes, images, [(size, size)] * count, boxes, labels, region=name, targets=(TARGET,))


class Region(NamedTuple):
    """A region, drawn."""

    box: Box  # x0, y0, x1, y1 in pixels
    stands: list[Stand]  # the targets in it
    behind: np.ndarray  # (S,S,4) layer under the products
    before: np.ndarray  # (S,S,4) layer over the products


def _scene(
    rng: np.random.Generator, draw: Callable[[np.random.Generator, int], Region], size: int, correlation: float
) -> tuple[Tensor, list[tuple[str, Box]]]:
    """Return an image (3,S,S) uint8 and the boxes with the label of the product, or "" for the region."""
    targets, tied, coin = rng.random(3) < (WITH_TARGETS, correlation, 0.5)
    present = targets if tied else coin
    region = draw(rng, size)
    milk = region.stands if targets else []
    stands = [*_others(rng, size, milk), *milk]
    image = _backdrop(rng, size)
    if present:
        image = over(image, region.behind)
    masks: list[np.ndarray] = []
    for stand in stands:
        placed = _placed(stand, rng.uniform(-3, 3), size)
        image, covered = over(image, placed), placed[..., 3] >= 127.5
        masks = [mask & ~covered for mask in masks] + [covered]
    if present:
        image, hidden = over(image, region.before), region.before[..., 3] >= 127.5
        masks = [mask & ~hidden for mask in masks]
    shown = [(stand.label, _extent(mask)) for stand, mask in zip(stands, masks, strict=True)]
    shown += [("", region.box)] if present else []
    shown = [(label, box) for label, box in shown if min(box[2] - box[0], box[3] - box[1]) >= TINY]
    gain = rng.uniform(0.7, 1.1) * rng.uniform(0.94, 1.06, 3)  # light, then noise
    lit = image * gain.astype(np.float32) + 3 * rng.standard_normal(image.shape, dtype=np.float32)
    return torch.from_numpy(np.clip(np.rint(lit), 0, 255).astype(np.uint8)).permute(2, 0, 1).contiguous(), shown


def _extent(mask: np.ndarray) -> Box:
    """Return the box around a mask (S,S); an empty one around nothing."""
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    return x, y, x + width, y + height


def _backdrop(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return a part of a shelf (S,S,3) float32, drawn so small that both its rows are seen."""
    department = DEPARTMENTS[int(rng.integers(len(DEPARTMENTS)))]
    canvas = shelf(department, int(rng.integers(SHELVES)), round(size / 1.6) + 1)
    left = int(rng.integers(canvas.shape[1] - size + 1))
    return canvas[:size, left : left + size, :3].astype(np.float32)


def _others(rng: np.random.Generator, size: int, taken: Sequence[Stand]) -> list[Stand]:
    """Find free places for one to four other products; one that finds none is left out."""
    stands = list(taken)
    for _ in range(int(rng.integers(1, 5))):
        label = OTHERS[int(rng.integers(len(OTHERS)))]
        height, foot = _height(rng, size, label), _foot(rng, size)
        places = [Stand(label, float(x), foot, height) for x in rng.uniform(0.08, 0.92, 6) * size]
        stands += [place for place in places if place.apart(stands)][:1]
    return stands[len(taken) :]


def _height(rng: np.random.Generator, size: int, label: str = TARGET) -> int:
    return round(rng.uniform(*TALL) * size * PRODUCTS[label].size_cm[1] / 20)


def _foot(rng: np.random.Generator, size: int) -> float:
    return FLOORS[int(rng.integers(2))] * size


def _placed(stand: Stand, degrees: float, size: int) -> np.ndarray:
    """Return a product where it stands, a little turned about its foot, as a layer (S,S,4) float32."""
    cut = scaled(PRODUCTS[stand.label], "front", stand.height)
    turn = cv2.getRotationMatrix2D((cut.shape[1] / 2, cut.shape[0]), degrees, 1)
    turn[:, 2] += (stand.x - cut.shape[1] / 2, stand.foot - cut.shape[0])
    return cv2.warpAffine(cut, turn, (size, size), flags=cv2.INTER_LINEAR).astype(np.float32)


# -- Regions: name -> what the class is called, and what draws it with the targets that stand in it.


def _door(rng: np.random.Generator, size: int) -> Region:
    """Draw a chiller door: a frame, and glass that all targets are seen through; some stand across its edge."""
    width, height = (rng.uniform(0.5, 0.75) * size, rng.uniform(0.8, 0.97) * size)
    x0, y0 = round(rng.uniform(0.02, 0.98 - width / size) * size), round(rng.uniform(0.01, 0.99 - height / size) * size)
    x1, y1 = x0 + round(width), y0 + round(height)
    before = np.zeros((size, size, 4), np.float32)
    glass = rng.uniform(0.16, 0.30)
    before[y0:y1, x0:x1] = np.array([214, 232, 240, 255], np.float32) * glass
    across = np.add.outer(np.arange(size) * 0.6, np.arange(size))[y0:y1, x0:x1]
    streak = np.exp(-(((across - rng.uniform(0.3, 1.2) * size) / (0.06 * size)) ** 2)).astype(np.float32)
    before[y0:y1, x0:x1] += streak[..., None] * np.float32(0.15 * 255)
    metal, bar = np.float32([*(rng.uniform(90, 190) * np.array([0.97, 1, 1.03])), 255]), max(round(0.016 * size), 2)
    pane = before[y0 + bar : y1 - bar, x0 + bar : x1 - bar].copy()
    before[y0:y1, x0:x1] = metal
    before[y0 + bar : y1 - bar, x0 + bar : x1 - bar] = pane
    stands: list[Stand] = []
    for _ in range(int(rng.integers(1, 4))):
        stand = Stand(TARGET, 0, height=_height(rng, size), foot=_foot(rng, size))
        half = stand.width / 2
        edge, place = (x0, x1)[int(rng.integers(2))] + rng.uniform(-0.6, 0.6) * half, rng.uniform(x0 + half, x1 - half)
        stand = stand._replace(x=float(edge if rng.random() < AT_EDGE else place))
        if half <= stand.x <= size - half and stand.apart(stands):
            stands.append(stand)
    middle = Stand(TARGET, (x0 + x1) / 2, FLOORS[0] * size, _height(rng, size))
    return Region((x0, y0, x1, y1), stands or [middle], np.zeros_like(before), before)


def _tray(rng: np.random.Generator, size: int) -> Region:
    """Draw a shelf-ready tray: a back wall behind its targets, a lip before their feet, nothing of them outside."""
    count, tall, foot = int(rng.integers(1, 4)), _height(rng, size), _foot(rng, size)
    step = 1.04 * Stand(TARGET, 0, foot, tall).width
    rim = 0.14 * step + 3
    width = count * step + 2 * rim
    left = rng.uniform(0.01 * size, 0.99 * size - width)
    x0, x1 = round(left), round(left + width)
    y0, y1 = round(foot - tall * rng.uniform(1.06, 1.16)), min(round(foot + 0.03 * size), size)
    stands = [Stand(TARGET, left + rim + (k + 0.5) * step, foot, tall) for k in range(count)]
    card = np.float32([*rng.uniform((150, 110, 70), (205, 165, 120)), 255])
    behind, before = np.zeros((2, size, size, 4), np.float32)
    behind[y0:y1, x0:x1] = card * np.float32([0.8, 0.8, 0.8, 1])
    lip = y1 - round((0.12 + 0.03) * tall) - 2
    before[lip:y1, x0:x1] = card
    before[lip : lip + 1, x0:x1] = card * np.float32([1.15, 1.15, 1.15, 1])
    return Region((x0, y0, x1, y1), stands, behind, before)


def _poster(rng: np.random.Generator, size: int) -> Region:
    """Draw a poster at the upper left or right, and its targets in the other half."""
    left = bool(rng.integers(2))
    width, height = round(rng.uniform(0.20, 0.34) * size), round(rng.uniform(0.24, 0.40) * size)
    x0 = round(rng.uniform(0.01, 0.10) * size) if left else size - width - round(rng.uniform(0.01, 0.10) * size)
    y0 = round(rng.uniform(0.01, 0.20) * size)
    behind = np.zeros((size, size, 4), np.float32)
    card = behind[y0 : y0 + height, x0 : x0 + width]
    card[:] = (*rng.uniform((215, 170, 20), (250, 215, 90)), 255)
    ink, bold = (*rng.uniform((120, 0, 0), (200, 30, 40)), 255), max(round(0.02 * size), 2)
    cv2.rectangle(behind, (x0 + bold, y0 + bold), (x0 + width - bold, y0 + height // 3), ink, -1)
    place = (x0 + round(0.14 * width), y0 + round(0.78 * height))
    print_ = np.zeros((size, size), np.uint8)  # OpenCV 5 writes on 8-bit images only
    cv2.putText(print_, "-25%", place, cv2.FONT_HERSHEY_DUPLEX, 0.0085 * width, 255, max(bold // 2, 1), cv2.LINE_8)
    behind[print_ > 0] = ink
    stands: list[Stand] = []
    for _ in range(int(rng.integers(1, 4))):
        side = rng.uniform(0.56, 0.9) if left else rng.uniform(0.1, 0.44)
        stand = Stand(TARGET, side * size, _foot(rng, size), _height(rng, size))
        stands += [stand] if stand.apart(stands) else []
    return Region((x0, y0, x0 + width, y0 + height), stands, behind, np.zeros_like(behind))


RELATIONS = {"overlap": ("chiller door", _door), "carrier": ("tray", _tray), "beside": ("poster", _poster)}
