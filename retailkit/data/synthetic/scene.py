"""Images of products in a shop: shelves, perspective, shadow, reflection, light, what stands in front.

Lengths are shares of the image's side until they become pixels; y points down on images and shelves.
Every effect draws from a random stream of its own, so that switching one off leaves all others as they were, and
two look-alikes rendered from one seed differ inside their `twin_patch` only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, reduce

import cv2
import numpy as np

from retailkit.data.synthetic import packaging
from retailkit.data.synthetic.catalogue import FAMILIES, Product, goods_of
from retailkit.data.synthetic.packaging import ANGULAR
from retailkit.data.synthetic.shelf import CANVAS, FLOOR, SHELVES, extent, over, resized, scaled, shelf, studio
from retailkit.data.table import bounding_box

STREAMS = ("scene", "camera", "pose", "light", "shadow", "occluder", "noise")
DISTANCE = 2.6  # from the camera to the product, in sides of the image
EYE = 0.42  # height of the camera above the board
WIDEST = 0.66  # of a product, before the camera goes nearer
LEGIBLE = (2.5, 5.0)  # pixels a character is wide and high at least
FAINT = 0.05  # shadow and reflection weaker than this are not in the masks


@dataclass(frozen=True)
class Effects:
    """What may happen to an image; a switch that is off leaves no trace of its effect."""

    shadow: bool = True  # of the product
    reflection: bool = True  # of the product in the board
    lighting: bool = True  # differs between images; without it all are lit evenly and neutrally
    occlusion: bool = True  # now and then something hides a little of the product
    noise: bool = True  # the camera adds blur and noise


@dataclass(frozen=True)
class Difficulty:
    """How hard it is to recognise products in images of shops; packshots have the level `hard`."""

    near: float | None  # side of the image that the product fills; None: photos from the same distance, large or small
    turn: float  # factor of the angle by which a product's front is turned away from the camera
    light: float  # how much of the difference between lights is left, 0 to 1
    covered: float  # share of images on which something hides a little of the product
    coded: bool  # the words of a variant stand on a field of its colour


LEVELS = {
    "easy": Difficulty(near=0.95, turn=0.25, light=0.2, covered=0.1, coded=True),
    "medium": Difficulty(near=0.78, turn=0.6, light=0.6, covered=0.2, coded=True),
    "hard": Difficulty(near=None, turn=1.0, light=1.0, covered=0.3, coded=False),
}

Streams = Callable[..., np.random.Generator]  # name of a stream -> its generator
Words = list[tuple[str, tuple[float, float, float, float], bool]]


@dataclass(frozen=True)
class Rendered:
    """An image of side S and the exact truth about it."""

    image: np.ndarray  # (S,S,3) uint8 RGB
    mask: np.ndarray  # (S,S) bool, True where the product covers at least half of the pixel and nothing hides it
    planes: dict[str, np.ndarray]  # (S,S) bool: `twin_patch` (inside `mask`), `shadow`, `reflection` (outside it)
    words: Words  # text, (x0,y0,x1,y1) in pixels, whether it tells look-alikes apart; no hidden or tiny ones
    facts: dict[str, str]  # `pose`, `background`, `lighting`


LIGHTS = {
    "neutral": (1.0, 1.0, 1.0),
    "warm": (1.06, 0.97, 0.80),
    "cool": (0.90, 0.98, 1.08),
    "dim": (0.55, 0.55, 0.58),
    "gradient": (1.05, 1.03, 1.0),
    "spot": (1.12, 1.08, 1.0),
}


def compose(
    product: Product,
    key: Sequence[int],
    *,
    size: int,
    background: str,
    pose: str = "front",
    shot: int = 0,
    effects: Effects = Effects(),
    difficulty: str = "hard",
) -> Rendered:
    """Render an image of `size` pixels of a product (`front` or `side`) in a department, or in the clean `studio`.

    The non-negative integers `key` fix everything random; the product is no part of it. Shots of one key, the images of
    a burst, differ by a small movement of the camera and by noise.
    """

    def draw(stream: str, jitter: bool = False) -> np.random.Generator:
        """Return the generator of a stream; with `jitter` it also depends on the shot."""
        return np.random.default_rng([*key, STREAMS.index(stream), *([1 + shot] if jitter else [])])

    calm = background == "studio"
    level = LEVELS["hard" if calm else difficulty]
    product = replace(product, coded=level.coded)
    number = int(draw("scene").integers(SHELVES))
    canvas = studio(number, size) if calm else shelf(background, number, size)
    camera = _Camera.aimed_at(product, draw, level, size, calm)
    seen = cv2.warpAffine(canvas, camera.matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    image, gloss = seen[..., :3].astype(np.float32), seen[..., 3]
    yaw = _yaw(product, draw, pose, calm) * (1.0 if pose == "side" else level.turn)
    subject = _Subject.placed(product, yaw, pose, camera, size)
    front = _occluder(subject, draw, background, level.covered) if effects.occlusion and not calm else None
    mask, nothing = subject.mask, np.zeros((size, size), bool)
    planes = {"twin_patch": subject.patch, "shadow": nothing, "reflection": nothing}
    if effects.shadow:
        shade = _shade(subject, draw)
        image *= (1 - shade)[..., None]
        planes["shadow"] = (shade > FAINT) & ~mask
    if effects.reflection:
        mirrored = subject.mirrored(gloss)
        image = over(image, mirrored)
        planes["reflection"] = (mirrored[..., 3] > 255 * FAINT) & ~mask
    image = over(image, subject.layer)
    if front is not None:
        image, free = over(image, front), front[..., 3] < 127.5
        mask = mask & free
        planes = {name: plane & free for name, plane in planes.items()}
    light = "neutral"
    if effects.lighting:
        light, gain = _light(draw, size, calm)
        image *= np.float32(1 - level.light) + np.float32(level.light) * gain
    if effects.noise and not calm:
        image = _expose(image, draw, light)
        planes["twin_patch"] = grow(planes["twin_patch"], 1) & mask
    image = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    words = [word for word in subject.words if _legible(*word[:2], mask)]
    return Rendered(image, mask, planes, words, {"pose": pose, "background": background, "lighting": light})


# -- The product in its place


@dataclass(frozen=True)
class _Camera:
    matrix: np.ndarray  # (2,3) affine map from shelf to image
    stand: np.ndarray  # (2,) where the product stands, in pixels of the image
    near: float  # how much nearer than usual it is

    @classmethod
    def aimed_at(cls, product: Product, draw: Streams, level: Difficulty, size: int, calm: bool) -> _Camera:
        width, tall = extent(product)
        near = min(level.near / tall, 0.94 * level.near / min(width, WIDEST)) if level.near else 1.0
        rng, shake, reach = draw("camera"), draw("camera", jitter=True), 0.3 if calm else 1.0
        zoom = near * (1 + (reach if near == 1 else 0.3) * rng.uniform(-0.08, 0.12) + shake.normal(0, 0.012))
        roll = np.deg2rad(reach * (rng.normal(0, 1.2) + shake.normal(0, 0.5)))
        shelf_point = size * np.array([CANVAS[1] * rng.uniform(0.32, 0.68), FLOOR])
        x = 0.5 + reach * rng.uniform(-0.08, 0.08) + shake.normal(0, 0.012)
        y = 0.875 + reach * rng.uniform(-0.03, 0.02) + (0 if near == 1 else 0.08)
        turn = zoom * np.array([[np.cos(roll), -np.sin(roll)], [np.sin(roll), np.cos(roll)]])
        stand = size * np.array([x, y])
        return cls(np.column_stack([turn, stand - turn @ shelf_point]), stand, near)


@dataclass(frozen=True)
class _Subject:
    product: Product
    layer: np.ndarray  # (S,S,4) float32
    patch: np.ndarray  # (S,S) bool, a subset of `mask`
    words: Words  # see `Rendered`
    mirrors: dict[str, np.ndarray]  # face name -> (4,2) corners of its reflection on the image
    camera: _Camera
    width: float  # in pixels

    @property
    def mask(self) -> np.ndarray:
        """(S,S) bool: at least half covered, or part of the patch."""
        return (self.layer[..., 3] >= 127.5) | self.patch

    @classmethod
    def placed(cls, product: Product, yaw: float, pose: str, camera: _Camera, size: int) -> _Subject:
        """Put a product, turned by `yaw`, in front of a camera."""
        tall = extent(product)[1]
        upright, mirrors = (_walls(product, pose, yaw, high) for high in (tall, -tall))
        spread = np.ptp(np.concatenate(list(upright.values())), axis=0)[0]
        shrink = min(1.0, WIDEST / spread)
        for faces in (upright, mirrors):
            faces |= {k: camera.stand + size * (shrink * quad) @ camera.matrix[:, :2].T for k, quad in faces.items()}
        patch, words = np.zeros((size, size), bool), []
        for name, quad in upright.items():
            words += _warp_words(packaging.face(product, name), quad, size)
        if "front" in upright:
            flat = resized(packaging.face(product, "front").patch.astype(np.float32), _rows(upright)) > 0
            # Rounding may differ between look-alikes by one pixel beyond the patch.
            patch = grow(_warp(flat * np.uint8(255), upright["front"], size) > 0, 1)
        whole = _faces_layer(product, upright, size)
        patch &= whole[..., 3] > 0
        return cls(product, whole, patch, words, mirrors, camera, camera.near * size * shrink * spread)

    def mirrored(self, gloss: np.ndarray) -> np.ndarray:
        """Return the reflection as a layer: fading downwards, only where the ground is glossy.

        All look-alikes have the reflection of the first one, so that it does not tell them apart.
        """
        size = len(gloss)
        first = replace(FAMILIES[self.product.family][0], coded=self.product.coded)
        whole = _faces_layer(first, self.mirrors, size)
        depth = (np.arange(size, dtype=np.float32) - np.float32(self.camera.stand[1])) / np.float32(0.16 * size)
        fade = np.float32(0.36 / 255) * np.clip(1 - depth, 0, 1) ** 1.5
        return whole * (fade[:, None] * gloss)[..., None]


def _yaw(product: Product, draw: Streams, pose: str, calm: bool) -> float:
    """Return by how much the product is turned, in radians; positive shows its right side."""
    rng, shake = draw("pose"), draw("pose", jitter=True)
    sign, amount = rng.choice([-1, 1]), rng.uniform()
    if product.shape in ANGULAR:
        span = (64, 74) if pose == "side" else (2, 10) if calm else (3, 32)
    else:
        span = (0, 12) if product.shape in ("pouch", "tray") else (0, 2)
    return float(np.deg2rad(sign * (span[0] + amount * (span[1] - span[0])) + shake.normal(0, 1.2)))


def _walls(product: Product, pose: str, yaw: float, tall: float) -> dict[str, np.ndarray]:
    """Return the corners (4,2) of each face that is seen of a product at the origin, clockwise from its top left.

    y points down; a negative height gives the reflection.
    """
    width, angular = extent(product)[0], product.shape in ANGULAR
    x, z = width / 2, (width * product.size_cm[2] / product.size_cm[0] if angular else 0.0) / 2
    feet = {"front" if angular else pose: ((-x, -z), (x, -z))}  # left and right end of each face on the ground
    if angular:
        feet["side"] = ((x, -z), (x, z)) if yaw > 0 else ((-x, z), (-x, -z))
    quads = {}
    for name, (left, right) in feet.items():
        ground = np.array([left, right, right, left])
        across = ground[:, 0] * np.cos(yaw) + ground[:, 1] * np.sin(yaw)
        away = -ground[:, 0] * np.sin(yaw) + ground[:, 1] * np.cos(yaw)
        scale = DISTANCE / (DISTANCE + away)
        y = np.array([tall, tall, 0.0, 0.0])
        quads[name] = np.column_stack([across * scale, -(EYE + (y - EYE) * scale)])
    return quads


def _rows(quads: dict[str, np.ndarray]) -> int:
    """Return the face height to warp from: a little above that on the image, in few distinct values."""
    tallest = max(np.ptp(quad[:, 1]) for quad in quads.values())
    return min(int(np.ceil(1.1 * tallest / 16)) * 16, packaging.HEIGHT)


def _faces_layer(product: Product, quads: dict[str, np.ndarray], size: int) -> np.ndarray:
    """Return the faces of a product in their places as one layer, the front over the side."""
    layers, rows = [], _rows(quads)
    for name in sorted(quads, reverse=True):
        quad, beside = quads[name].copy(), name == "side" and "front" in quads
        if beside:  # the shared edge lies slightly behind the front, so that no gap shows
            right = quad[:, 0].mean() > quads["front"][:, 0].mean()
            quad[[0, 3] if right else [1, 2], 0] -= 1.5 if right else -1.5
        part = _warp(scaled(product, name, rows), quad, size).astype(np.float32)
        part[..., :3] *= np.float32(0.8 if beside else 1)
        layers.append(part)
    return reduce(over, layers)


def _homography(shape: tuple[int, ...], quad: np.ndarray) -> np.ndarray:
    height, width = shape[:2]
    corners = np.float32([(0, 0), (width, 0), (width, height), (0, height)])
    return cv2.getPerspectiveTransform(corners - np.float32(0.5), quad.astype(np.float32) - np.float32(0.5))


def _warp(face: np.ndarray, quad: np.ndarray, size: int) -> np.ndarray:
    return cv2.warpPerspective(face, _homography(face.shape, quad), (size, size), flags=cv2.INTER_LINEAR)


def _warp_words(face: packaging.Face, quad: np.ndarray, size: int) -> Words:
    """Return a face's words with the boxes around them on the image."""
    transform = _homography(face.alpha.shape, quad)
    words = []
    for text, (x0, y0, x1, y1), discriminative in face.words:
        points = np.float32([[(x0, y0), (x1, y0), (x1, y1), (x0, y1)]]) - np.float32(0.5)
        points = np.clip(cv2.perspectiveTransform(points, transform)[0] + 0.5, 0, size)
        words.append((text, bounding_box(points), discriminative))
    return words


def _legible(text: str, box: tuple[float, float, float, float], mask: np.ndarray) -> bool:
    """True where at least half of the box shows product and its characters are large enough to be told apart."""
    x0, y0, x1, y1 = (round(edge) for edge in box)
    large = box[3] - box[1] >= LEGIBLE[1] and box[2] - box[0] >= LEGIBLE[0] * len(text)
    return large and mask[y0:y1, x0:x1].mean() >= 0.5


# -- Effects


def _shade(subject: _Subject, draw: Streams) -> np.ndarray:
    """Return how much the product darkens what lies behind and below it, (S,S) float32 in [0,1]."""
    rng, size, stand = draw("shadow"), len(subject.layer), subject.camera.stand / 4
    away = rng.choice([-1, 1]) * rng.uniform(0.03, 0.10)
    strength, unit = rng.uniform(0.35, 0.55), size / 4
    quarter = cv2.resize(subject.layer[..., 3], None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA) / 255
    # The silhouette falls sideways onto the goods behind; at the ground it joins the product.
    fall = np.float32([[1, -away, away * stand[1]], [0, 0.97, 0.03 * stand[1]]])
    cast = cv2.warpAffine(quarter, fall, quarter.shape[::-1])
    cast = strength * cv2.GaussianBlur(cast, (0, 0), 0.018 * unit)
    contact = np.zeros_like(quarter)
    centre = (round(stand[0]), round(stand[1] + 0.008 * unit))
    axes = (max(round(0.53 * subject.width / 4), 1), max(round(0.026 * unit), 1))
    cv2.ellipse(contact, centre, axes, 0, 0, 360, 0.75, -1)
    contact = cv2.GaussianBlur(contact, (0, 0), 0.016 * unit)
    return cv2.resize(np.maximum(cast, contact), (size, size), interpolation=cv2.INTER_LINEAR)


def _occluder(subject: _Subject, draw: Streams, background: str, covered: float) -> np.ndarray | None:
    """Return something that hides a little of the product, as a layer, or None; never what tells look-alikes apart."""
    rng, size = draw("occluder"), len(subject.layer)
    if rng.uniform() > covered:
        return None
    goods = goods_of(background)
    product = goods[int(rng.integers(len(goods)))]
    pack = scaled(product, "front", round(subject.camera.near * 1.08 * extent(product)[1] * size))
    side = rng.choice([-1, 1])
    xs = np.flatnonzero(subject.mask.any(axis=0))
    bite = rng.uniform(0.05, 0.13) * subject.width
    x = xs[0] + bite - pack.shape[1] if side < 0 else xs[-1] - bite
    y = subject.camera.stand[1] + 0.035 * size - pack.shape[0]
    placed = cv2.warpAffine(pack, np.float32([[1, 0, x], [0, 1, y]]), (size, size)).astype(np.float32)
    placed = cv2.GaussianBlur(placed, (0, 0), size / 240)
    return None if (subject.patch & (placed[..., 3] > 0)).any() else placed


def _light(draw: Streams, size: int, calm: bool) -> tuple[str, np.ndarray]:
    """Return a light's name and the factors, (S,S,3) or (3,) float32, by which it changes an image."""
    rng, names = draw("light"), ("neutral", "neutral", "gradient") if calm else tuple(LIGHTS)
    name = names[int(rng.integers(len(names)))]
    colour = np.array(LIGHTS[name], np.float32)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j].astype(np.float32)
    if name == "gradient":
        angle = rng.uniform(0, 2 * np.pi)
        field = 0.86 + 0.24 * (x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle)))
    elif name == "spot":
        dx, dy = rng.uniform(-0.4, 0.4, 2).astype(np.float32)
        field = 0.55 + 0.6 * np.exp(-((x - dx) ** 2 + (y - dy) ** 2) / np.float32(0.9))
    else:
        return name, colour * np.float32(rng.uniform(0.94, 1.04))
    return name, field[..., None] * colour


@lru_cache(maxsize=4)
def _grain(size: int) -> np.ndarray:
    """Return a sheet of unit noise to cut from, (2S,2S,3) float32."""
    return np.random.default_rng(0).standard_normal((2 * size, 2 * size, 3), dtype=np.float32)


def _expose(image: np.ndarray, draw: Streams, light: str) -> np.ndarray:
    """Add what a hand-held camera adds: a little blur, and noise (more of it in dim light)."""
    rng, size = draw("noise", jitter=True), len(image)
    if rng.uniform() < 0.5:
        image = cv2.GaussianBlur(image, (3, 3), rng.uniform(0.35, 0.75))
    y, x = rng.integers(0, size, 2)
    amount = np.float32(rng.uniform(1.0, 3.0) * (1.8 if light == "dim" else 1.0))
    return image + amount * _grain(size)[y : y + size, x : x + size]


def grow(mask: np.ndarray, radius: int) -> np.ndarray:
    """Return `mask` (H,W) bool grown by `radius` pixels in every direction, corners included."""
    return cv2.dilate(mask.astype(np.uint8), np.ones((2 * radius + 1,) * 2, np.uint8)) > 0
