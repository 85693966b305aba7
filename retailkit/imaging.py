"""Compositing and masks, shared by rendering, augmentation, backgrounds and explanations.

A layer is (H,W,4) float32 in [0,255]: red, green and blue already multiplied by coverage, then coverage.
"""

from __future__ import annotations

import cv2
import numpy as np


def layer(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Return pixels (H,W,3) uint8 with coverage `alpha` (H,W) uint8 as a layer of uint8."""
    covered = cv2.multiply(pixels, cv2.merge([alpha] * 3), scale=1 / 255)
    return np.dstack([covered, alpha])


def over(image: np.ndarray, top: np.ndarray) -> np.ndarray:
    """Return `image` (H,W,3) float32 with the layer `top` (H,W,4) laid over it."""
    return image * (1 - top[..., 3:] * np.float32(1 / 255)) + top[..., :3]


def under(top: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return `mask` (H,W) bool without the pixels that the layer `top` covers by half or more."""
    return mask & (top[..., 3] < 127.5)


def grow(mask: np.ndarray, radius: int) -> np.ndarray:
    """Return `mask` (H,W) bool grown by `radius` pixels in every direction, corners included."""
    return cv2.dilate(mask.astype(np.uint8), np.ones((2 * radius + 1,) * 2, np.uint8)) > 0
