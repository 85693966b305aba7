"""Keypoint matching as a classifier: no learning, a gallery of reference pictures instead.

The baseline of Srivastava 2020 (section 4): local features of a query are matched against those of every gallery
picture; the class of the picture with the most geometrically consistent matches wins. Descriptors are compared as
one matrix product for many gallery pictures at a time, and only the best few pictures pass on to RANSAC.

Local naive Bayes nearest neighbour (McCann and Lowe 2012) asks the same descriptors in another way: each point of the
query votes by itself for the classes of the points nearest to it in the whole gallery, wherever they lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from retailkit.config import UsageError, UserError
from retailkit.models.keypoints import Keypoints, build_detector, detect
from retailkit.models.pooling import Features

if TYPE_CHECKING:
    from retailkit.data.table import ProductDataset


CHUNK = 64  # gallery pictures compared at a time


def mutual_matches(query: Tensor, gallery: Tensor, counts: Tensor, ratio: float) -> Tensor:
    """Match one picture with many.

    A match is mutual: each is the other's nearest neighbour. With a ratio below 1 it must also be clearly nearer
    than the second nearest in its picture (Lowe 2004, section 7.1; distances, not similarities).

    Args:
        query: (Q,D) unit vectors.
        gallery: (G,N,D) unit vectors.
        counts: (G,) real points in each picture.
        ratio: of nearest to second nearest distance; 1 switches the test off.

    Returns:
        (G,Q) int64: index of the matching point in each picture, -1 for none.
    """
    similarity = torch.einsum("qd,gnd->gqn", query, gallery)
    absent = torch.arange(gallery.shape[1], device=query.device) >= counts[:, None]
    similarity.masked_fill_(absent[:, None], -2)
    best, nearest = similarity.max(2)  # (G,Q)
    back = similarity.argmax(1)  # (G,N): nearest query point of each gallery point
    mutual = back.gather(1, nearest) == torch.arange(len(query), device=query.device)
    good = mutual & (best > -2)
    if ratio < 1 and gallery.shape[1] > 1:
        second = similarity.scatter(2, nearest[..., None], -2).amax(2)
        distance = (2 - 2 * torch.stack([best, second])).clamp(min=0).sqrt()
        good &= distance[0] < ratio * distance[1]
    return torch.where(good, nearest, -1)


def inliers(source: np.ndarray, target: np.ndarray, tolerance: float = 5.0) -> np.ndarray:
    """Return which matches (N,2) one plausible homography explains, (N,) bool; none where there is no such one."""
    none = np.zeros(len(source), dtype=bool)
    if len(source) < 4:
        return none
    matrix, kept = cv2.findHomography(source, target, cv2.USAC_MAGSAC, tolerance, maxIters=1000, confidence=0.995)
    return kept[:, 0] > 0 if matrix is not None and _plausible(matrix, source) else none


def _plausible(matrix: np.ndarray, source: np.ndarray) -> bool:
    """False for a homography that mirrors, squashes or folds the box around the source points."""
    (x0, y0), (x1, y1) = source.min(0), source.max(0)
    corners = np.float32([[(x0, y0), (x1, y0), (x1, y1), (x0, y1)]])
    seen = cv2.perspectiveTransform(corners, matrix)[0]
    area = cv2.contourArea(seen, oriented=True) / max(cv2.contourArea(corners[0], oriented=True), 1e-6)
    return bool(cv2.isContourConvex(seen)) and 0.02 < area < 50


def local_naive_bayes(query: Tensor, gallery: Tensor, labels: Tensor, classes: int, neighbours: int) -> Tensor:
    """Return by how much a picture's points are nearer to each class than to the gallery at large, (K,).

    Algorithm 2 of McCann and Lowe 2012: a point adds to each class among its nearest neighbours the squared distance
    of the one just beyond them, less that of the nearest neighbour of the class.

    Args:
        query: (Q,D) unit vectors.
        gallery: (N,D) unit vectors; rows of zeros stand for no point, and are as far as can be.
        labels: (N,) class indices.
        classes: K.
        neighbours: of each point.
    """
    similarity, nearest = (query @ gallery.T).topk(min(neighbours + 1, len(gallery)), dim=1)
    margin = 2 * (similarity[:, :-1] - similarity[:, -1:])  # of squared distances, as all are unit vectors
    votes = query.new_zeros(len(query), classes)
    return votes.scatter_reduce_(1, labels[nearest[:, :-1]], margin, "amax").sum(0)


class KeypointMatcher(nn.Module):
    """Classify by the gallery picture with the most consistent matches; `prepare` fills the gallery.

    It has that part of the interface of `ProductClassifier` that needs neither gradients nor texts: `encode_image`
    gives the inliers with every gallery picture, `classify` the most of each class. A row of zeros is "unknown".
    Matching is the costly part and no part of it learns: `training.encode_cached` keeps its result on disk.

    Args:
        classes: names.
        detector: one of `keypoints.DETECTORS`.
        weights: of SuperPoint; see `keypoints.SuperPoint`.
        keypoints: at most this many a picture.
        ratio: Lowe's test; 1 leaves it out.
        unknown_below: fewer inliers than this count as none.
        shortlist: gallery pictures, those with the most matches, that RANSAC looks at for each query.
        tolerance: pixels by which an inlier may miss its place.

    Attributes:
        points: (G,N,2) of the G gallery pictures, padded.
        descriptors: (G,N,D); zeros where there is no point.
        counts: (G,) real points a picture.
        labels: (G,) their classes.
    """

    modalities = ("image",)
    image_encoder = text_encoder = pooling = None
    input_size, fit = 240, "pad"

    def __init__(
        self,
        classes: Sequence[str],
        detector: str = "sift",
        weights: str | Path | None = "auto",
        keypoints: int = 300,
        ratio: float = 0.9,
        unknown_below: int = 5,
        shortlist: int = 20,
        tolerance: float = 5.0,
    ) -> None:
        super().__init__()
        if not 0 < ratio <= 1:
            raise UsageError(f"ratio={ratio} is out of range; use a number above 0, at most 1")
        self.build_args = {key: value for key, value in locals().items() if key not in ("self", "__class__")}
        self.build_args |= {"name": "matching", "classes": list(classes), "weights": weights and str(weights)}
        self.detector = build_detector(detector, weights)
        self.classes, self.keypoints, self.ratio = list(classes), keypoints, ratio
        self.unknown_below, self.shortlist, self.tolerance = unknown_below, shortlist, tolerance
        self._fill(torch.zeros(0, 0, 2), torch.zeros(0, 0, 0), torch.zeros(0), torch.zeros(0))

    def _fill(self, points: Tensor, descriptors: Tensor, counts: Tensor, labels: Tensor) -> None:
        self.register_buffer("points", points)
        self.register_buffer("descriptors", descriptors)
        self.register_buffer("counts", counts.long())
        self.register_buffer("labels", labels.long())

    def _apply(self, fn, recurse=True) -> KeypointMatcher:
        """Stay in main memory whatever `to` says: OpenCV works there."""
        return self

    def _load_from_state_dict(self, state_dict, prefix, *rest) -> None:
        self._fill(*(state_dict[prefix + name] for name in ("points", "descriptors", "counts", "labels")))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def prepare(self, train: ProductDataset, val: ProductDataset | None = None) -> None:
        """Describe every training picture once.

        Raises:
            UserError: no picture has a keypoint.
        """
        found = [
            self._describe(train[i].image)
            for i in tqdm(range(len(train)), "gallery", mininterval=2, leave=False, disable=len(train) < 100)
        ]
        length = max(len(k.points) for k in found)
        if not length:
            raise UserError(
                f"no keypoint on any of {len(found)} gallery pictures; "
                f"try another detector than {self.build_args['detector']}"
            )
        depth = max(k.descriptors.shape[1] for k in found)
        points, descriptors = torch.zeros(len(found), length, 2), torch.zeros(len(found), length, depth)
        for row, k in enumerate(found):
            points[row, : len(k.points)] = k.points
            descriptors[row, : len(k.points), : k.descriptors.shape[1]] = k.descriptors
        self._fill(points, descriptors, torch.tensor([len(k.points) for k in found]), torch.tensor(train.labels))

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Features:
        """Return the inliers with each gallery picture, (B,G); one without keypoints has none with any.

        Raises:
            UsageError: the gallery is empty.
        """
        if not len(self.labels):
            raise UsageError("the gallery is empty; call prepare(train) or fit first")
        with torch.autocast(images.device.type, enabled=False):  # nearest neighbours need every digit
            scores = torch.stack([self._scores(self._describe(image)) for image in images])
        scores = scores.to(images.device)
        return Features(scores, torch.ones(len(images), dtype=torch.bool, device=images.device))

    def classify(self, image_features: Features | None = None, text_features: Features | None = None) -> Tensor:
        """Return logits (B,K): the most inliers with any gallery picture of a class, 0 below `unknown_below`."""
        if image_features is None:
            raise UserError("nothing to classify: this model uses image, and got none")
        return self._by_class(image_features.values)

    encode_frozen = encode_image

    def pool(self, frozen: Features) -> Features:
        """Return what `encode_frozen` gave: there is nothing left to learn."""
        return frozen

    def forward(self, images: Tensor, texts: Sequence[str | None] | None = None) -> Tensor:
        """Return logits (B,K) of images (B,3,H,W) in [0,1]; texts are ignored."""
        return self.classify(self.encode_image(images))

    def evidence(self, images: Tensor) -> Tensor:
        """Return (B,K) what it adds to a vote; the more points agree, the less one more of them says."""
        return self(images).log1p()

    def _describe(self, image: Tensor) -> Keypoints:
        pixels = (image.permute(1, 2, 0).cpu().numpy() * 255).round().astype(np.uint8)
        return detect(pixels, self.detector, self.keypoints)

    def matched(self, image: Tensor) -> tuple[int, np.ndarray, np.ndarray]:
        """Return the gallery picture that an image (3,H,W) matches best, and the points (N,2) of both that agree."""
        query = self._describe(image)
        best = int(self._inliers(query).argmax())
        source, target = self._pair(query, best, self._matches(query)[best])
        kept = inliers(source, target, self.tolerance)
        return best, source[kept], target[kept]

    def _matches(self, query: Keypoints) -> Tensor:
        """Return (G,Q) index of the matching point in each gallery picture, -1 for none."""
        chunks = zip(self.descriptors.split(CHUNK), self.counts.split(CHUNK), strict=True)
        return torch.cat([mutual_matches(query.descriptors, d, c, self.ratio) for d, c in chunks])

    def _pair(self, query: Keypoints, g: int, partners: Tensor) -> tuple[np.ndarray, np.ndarray]:
        here = partners >= 0
        return query.points[here].numpy(), self.points[g, partners[here]].numpy()

    def _scores(self, query: Keypoints) -> Tensor:
        """Return what `encode_image` says of one picture."""
        return self._inliers(query)

    def _by_class(self, scores: Tensor) -> Tensor:
        """Return (B,K) of what `encode_image` says."""
        best = scores.new_zeros(len(scores), len(self.classes))
        labels = self.labels.to(scores.device).expand(len(scores), -1)
        best = best.scatter_reduce(1, labels, scores, "amax")
        return torch.where(best >= self.unknown_below, best, 0.0)

    def _inliers(self, query: Keypoints) -> Tensor:
        """Return (G,) inliers, and a fraction below one that breaks ties by the number of mutual matches."""
        scores = torch.zeros(len(self.labels))
        if not len(query.points):
            return scores
        pairs = self._matches(query)
        matches = (pairs >= 0).sum(1)
        for g in matches.argsort(descending=True, stable=True)[: self.shortlist].tolist():
            scores[g] = int(inliers(*self._pair(query, g, pairs[g]), self.tolerance).sum())
        return scores + (scores > 0) * matches / (1 + matches.max())


class LocalNaiveBayes(KeypointMatcher):
    """Classify by the votes of single points; see `local_naive_bayes`.

    It needs no geometry, so that it also answers where too few points of one gallery picture are seen. `encode_image`
    gives the votes for each class, (B,K), and they are the logits.

    Args:
        classes: names.
        detector: one of `keypoints.DETECTORS`.
        weights: of SuperPoint; see `keypoints.SuperPoint`.
        keypoints: at most this many a picture.
        neighbours: in the gallery, of each point.

    Attributes:
        points, descriptors, counts, labels: of the gallery, as in `KeypointMatcher`.
    """

    def __init__(
        self,
        classes: Sequence[str],
        detector: str = "sift",
        weights: str | Path | None = "auto",
        keypoints: int = 300,
        neighbours: int = 4,
    ) -> None:
        super().__init__(classes, detector, weights, keypoints)
        if neighbours < 1:
            raise UsageError(f"neighbours={neighbours}; use 1 or more")
        given = {"detector": detector, "weights": weights and str(weights), "keypoints": keypoints}
        self.build_args = {"name": "nbnn", "classes": list(classes), **given, "neighbours": neighbours}
        self.neighbours = neighbours

    def _scores(self, query: Keypoints) -> Tensor:
        """Return the votes for each class, (K,); a picture without keypoints has none."""
        if not len(query.points):
            return torch.zeros(len(self.classes))
        labels = self.labels.repeat_interleave(self.descriptors.shape[1])
        gallery = self.descriptors.flatten(0, 1)
        return local_naive_bayes(query.descriptors, gallery, labels, len(self.classes), self.neighbours)

    def _by_class(self, scores: Tensor) -> Tensor:
        return scores

    def evidence(self, images: Tensor) -> Tensor:
        """Return (B,K) what it adds to a vote: votes grow with the number of points, and their root less so."""
        return self(images).sqrt()
