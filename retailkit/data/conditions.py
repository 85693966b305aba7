"""Capture conditions of test images: front, side, dark and blurry, as Table 3 of source 2 has them, by severity.

- `blurry`: 3 % of the original's pixels and at most 80 pixels on the longer side (the paper's values): a loss of
  resolution. `defocus` and `motion` are real blur, for comparison.
- `dark`: linear light times a gain, with the noise that a camera adds in the dark (the paper gives no values).
- `side`: the built-in data set renders it. On photos it is approximated by an oblique view: the front is turned away
  until a quarter of its width is left, and its own edge colours fill the place of the side panel, which no photo shows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import cv2
import numpy as np

from retailkit.config import UsageError, pick

# Severity 1 to 5; 3 is the condition of the paper.
PIXEL_SHARE = (0.25, 0.10, 0.03, 0.01, 0.005)
LONGEST = (None, None, 80, 48, 32)
GAIN = (0.5, 0.25, 0.1, 0.05, 0.02)
YAW = (45, 62, 76, 80, 83)  # degrees
DEFOCUS = (0.006, 0.012, 0.02, 0.03, 0.045)  # radius, in shares of the longer side
MOTION = (0.02, 0.04, 0.07, 0.10, 0.15)  # length, in shares of the longer side


def front(image: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    """Return the image as it is."""
    return image


def blurry(image: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    """Lose resolution: keep a share of the pixels, at most `LONGEST` on the longer side, and enlarge again."""
    height, width = image.shape[:2]
    scale = min(1.0, PIXEL_SHARE[level - 1] ** 0.5, (LONGEST[level - 1] or np.inf) / max(height, width))
    small = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(cv2.resize(image, small, interpolation=cv2.INTER_AREA), (width, height))


def dark(image: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    """Take light away: a gain on linear light, photon and read noise, and 8 bits again."""
    value = image.astype(np.float32) / 255  # sRGB to linear light in [0,1] and back: IEC 61966-2-1
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4) * GAIN[level - 1]
    photons = 4000.0  # that saturate a pixel
    noisy = np.clip(rng.poisson(linear * photons) / photons + rng.normal(0, 0.0008, image.shape), 0, 1)
    value = np.where(noisy <= 0.0031308, 12.92 * noisy, 1.055 * noisy ** (1 / 2.4) - 0.055)
    return np.rint(255 * value).astype(np.uint8)


def side(image: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    """Turn the front away (an approximation, see above)."""
    height, width = image.shape[:2]
    yaw = np.deg2rad(YAW[level - 1])
    sign = rng.choice([-1, 1])
    left, right = 1 / (1 - sign * 0.18 * np.sin(yaw)), 1 / (1 + sign * 0.18 * np.sin(yaw))  # nearer is larger
    corners = np.float32([(0, 0), (width, 0), (width, height), (0, height)])
    middle = np.float32([width / 2, height / 2])
    turned = (corners - middle) * [np.cos(yaw), 1] * np.array([left, right, right, left])[:, None]
    matrix = cv2.getPerspectiveTransform(corners, middle + np.float32(turned))
    return cv2.warpPerspective(image, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE)


def defocus(image: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    """Blur by a disc, as a lens out of focus does."""
    radius = max(1, round(DEFOCUS[level - 1] * max(image.shape[:2])))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1,) * 2).astype(np.float32)
    return cv2.filter2D(image, -1, disc / disc.sum())


def motion(image: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    """Blur along a line, as a moving hand does."""
    length = max(3, round(MOTION[level - 1] * max(image.shape[:2])))
    kernel = np.zeros((length, length), np.float32)
    kernel[length // 2] = 1
    turn = cv2.getRotationMatrix2D(((length - 1) / 2,) * 2, float(rng.uniform(0, 180)), 1)
    kernel = cv2.warpAffine(kernel, turn, (length, length))
    return cv2.filter2D(image, -1, kernel / kernel.sum())


CONDITIONS: dict[str, Callable[[np.ndarray, int, np.random.Generator], np.ndarray]] = {
    condition.__name__: condition for condition in (front, side, dark, blurry, defocus, motion)
}
MOVES_PIXELS = {"side"}


def apply_condition(image: np.ndarray, name: str, level: int = 3) -> np.ndarray:
    """Return an image as taken under a condition; the same image always gives the same result.

    Args:
        image: (H,W,3) uint8 RGB.
        name: key of `CONDITIONS`.
        level: severity from 1 to 5; 3 is the paper's condition.

    Raises:
        UsageError: unknown condition or severity.
    """
    condition = CONDITIONS[pick(CONDITIONS, name, "capture condition")]
    if level not in range(1, 6):
        raise UsageError(f"severity {level} of {name}; use 1 (mild) to 5 (severe)")
    if condition is front:
        return image  # nothing is drawn, so that no seed is needed
    digest = hashlib.blake2b(image.tobytes(), digest_size=8).digest()
    return condition(image, level, np.random.default_rng(int.from_bytes(digest, "little")))
