"""Local features: points on a picture with descriptors, from OpenCV or SuperPoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from retailkit.config import UserError, pick
from retailkit.models.encoders import find_folder


class Keypoints(NamedTuple):
    """What a detector found on one picture.

    Attributes:
        points: (N,2) float32 x, y in pixels.
        descriptors: (N,D) float32 unit vectors; their dot product is the similarity.
    """

    points: Tensor
    descriptors: Tensor


def root_sift(descriptors: np.ndarray) -> np.ndarray:
    """Return RootSIFT (Arandjelovic and Zisserman 2012): unit vectors whose dot product is Hellinger's kernel."""
    return np.sqrt(descriptors / np.maximum(descriptors.sum(1, keepdims=True), 1e-9))


def signs(descriptors: np.ndarray) -> np.ndarray:
    """Return bits as unit vectors of +-1: their dot product falls linearly with the Hamming distance."""
    bits = np.unpackbits(descriptors, axis=1).astype(np.float32) * 2 - 1
    return bits / np.sqrt(bits.shape[1])


class Found(NamedTuple):
    """What a detector returns of one grey picture: (N,2) x and y, (N,) strengths, (N,D) unit descriptors."""

    points: np.ndarray
    strengths: np.ndarray
    descriptors: np.ndarray


@dataclass(frozen=True)
class OpenCVDetector:
    """A detector of OpenCV: how it is made, and what turns its descriptors into unit vectors."""

    create: str
    unit: Callable[[np.ndarray], np.ndarray]
    options: dict

    def __call__(self, grey: np.ndarray) -> Found:
        """Describe a grey picture (H,W) uint8."""
        found, raw = getattr(cv2, self.create)(**self.options).detectAndCompute(grey, None)
        if raw is None or not len(found):
            return Found(np.zeros((0, 2), np.float32), np.zeros(0, np.float32), np.zeros((0, 1), np.float32))
        points, strengths = np.float32([k.pt for k in found]), np.float32([k.response for k in found])
        return Found(points, strengths, self.unit(raw).astype(np.float32))


OPENCV_DETECTORS = {
    "sift": OpenCVDetector("SIFT_create", root_sift, {"contrastThreshold": 0.02}),
    "orb": OpenCVDetector("ORB_create", signs, {"fastThreshold": 5}),
    "brisk": OpenCVDetector("BRISK_create", signs, {"thresh": 15}),
    "akaze": OpenCVDetector("AKAZE_create", signs, {"threshold": 5e-4}),
}
DETECTORS = (*OPENCV_DETECTORS, "superpoint")


class SuperPoint(nn.Module):
    """SuperPoint (DeTone et al. 2018) through `transformers`; it does not learn here.

    Args:
        weights: `auto` for the fetched folder (Magic Leap's licence: non-commercial), a local Hugging Face folder,
            or None for a random start, into which a checkpoint can be loaded.
    """

    def __init__(self, weights: str | Path | None = "auto") -> None:
        super().__init__()
        from transformers import SuperPointConfig, SuperPointForKeypointDetection
        from transformers.utils import logging

        logging.disable_progress_bar()
        if weights is None:
            network = SuperPointForKeypointDetection(SuperPointConfig())
        else:
            folder = find_folder("superpoint", weights)
            try:
                network = SuperPointForKeypointDetection.from_pretrained(folder, local_files_only=True)
            except (OSError, ValueError, RuntimeError) as error:
                raise UserError(
                    f"{folder}: cannot be read as SuperPoint ({str(error).splitlines()[0][:120]})"
                ) from None
        self.network = network.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, grey: np.ndarray) -> Found:
        """Describe a grey picture (H,W) uint8."""
        device = next(self.parameters()).device
        pixels = torch.from_numpy(grey).to(device).float().div(255).expand(1, 3, -1, -1)
        seen = self.network(pixels)
        here = seen.mask[0].bool()
        points = seen.keypoints[0][here] * torch.tensor(grey.shape[::-1], device=device)
        return Found(*(part.cpu().numpy() for part in (points, seen.scores[0][here], seen.descriptors[0][here])))


def build_detector(name: str, weights: str | Path | None = "auto") -> Callable[[np.ndarray], Found]:
    """Return a detector by name; `weights` are SuperPoint's, see there.

    Raises:
        UsageError: unknown name.
        UserError: the weights are not on this machine; the message says which command fetches them.
    """
    return SuperPoint(weights) if pick(DETECTORS, name, "keypoint detector") == "superpoint" else OPENCV_DETECTORS[name]


def detect(image: np.ndarray, detector: Callable[[np.ndarray], Found], limit: int = 300, side: int = 240) -> Keypoints:
    """Find local features.

    Args:
        image: (H,W,3) uint8 RGB.
        detector: from `build_detector`.
        limit: keep at most this many, the strongest.
        side: smaller pictures are enlarged until their shorter side has this many pixels; points stay in pixels of
            the original.
    """
    scale = max(1.0, side / min(image.shape[:2]))
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    if scale > 1:
        grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    found = detector(grey)
    best = np.argsort(-found.strengths, kind="stable")[:limit]
    return Keypoints(
        torch.from_numpy(found.points[best] / np.float32(scale)), torch.from_numpy(found.descriptors[best])
    )
