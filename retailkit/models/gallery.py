"""A gallery in place of weights: a product is recognised by the photos that it resembles, and added in seconds."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from retailkit.config import UsageError
from retailkit.models.pooling import Features, FeatureScaler, Head

SCALES = tuple(2 ** (k / 4) for k in range(33))  # values from 1 to 256 that `tune` tries for the scale
SHRINKAGE = 0.3  # of the covariance within classes, towards the same spread in all directions
FLOOR = -1.0  # cosine with which a photo counts for all classes but its own


class GalleryHead(Head):
    """Compare an image with the photos of a gallery, by the cosine of whitened features.

    Features are standardised, divided by their length, and whitened: directions in which photos of one class differ,
    such as the shop and the light, count less (within-class covariance normalisation; Hatch et al. 2006).

    With `neighbours=0` each class is the normalised mean of its photos (nearest class mean; Snell et al. 2017). With k
    above 0 the k most similar photos vote, each with exp(scale * cosine) (Wu et al. 2018).

    Args:
        scalers: one, of the image features.
        n_classes: K.
        neighbours: photos that vote; 0 compares with class means.
        false_accepts: share of photos of products outside the gallery that may be taken for a known one; it decides
            `threshold`.

    Attributes:
        whitening: (D,D) matrix that the photos of `fill` have decided; products that are added do not change it.
        vectors: (G,D) unit vectors of the photos, and `labels` (G,) their classes.
        judges: (V,D) unit vectors of the photos that decide the threshold, and `judge_labels` (V,) their classes.
        threshold: similarity below which a product is unknown.
        scale: factor from similarities to logits.
    """

    tunes = True
    remembers = True

    def __init__(
        self, scalers: Mapping[str, FeatureScaler], n_classes: int, neighbours: int = 0, false_accepts: float = 0.05
    ) -> None:
        super().__init__(scalers)
        ((self.modality, scaler),) = scalers.items()
        if not 0 < false_accepts < 1 or neighbours < 0:
            raise UsageError(f"false_accepts={false_accepts} and neighbours={neighbours}; use (0, 1), and 0 or more")
        self.n_classes, self.neighbours, self.false_accepts = n_classes, int(neighbours), float(false_accepts)
        self.register_buffer("threshold", torch.tensor(FLOOR))
        self.register_buffer("scale", torch.tensor(16.0))
        self.register_buffer("whitening", torch.eye(len(scaler.mean)))
        for keep in (self._hold, self._judge_by):
            keep(torch.zeros(0, len(scaler.mean)), torch.zeros(0))

    def _hold(self, vectors: Tensor, labels: Tensor) -> None:
        self.register_buffer("vectors", vectors)
        self.register_buffer("labels", labels.long())
        means = vectors.new_zeros(self.n_classes, vectors.shape[1]).index_add(0, self.labels, vectors)
        self.register_buffer("means", functional.normalize(means, dim=1), persistent=False)
        there = torch.zeros(self.n_classes, device=vectors.device).index_fill(0, self.labels, 1.0) > 0
        self.register_buffer("there", there, persistent=False)  # (K,) classes with a photo

    def _judge_by(self, vectors: Tensor, labels: Tensor) -> None:
        self.register_buffer("judges", vectors)
        self.register_buffer("judge_labels", labels.long())

    def _load_from_state_dict(self, state_dict, prefix, *rest) -> None:
        parts = [prefix + name for name in ("vectors", "labels", "judges", "judge_labels")]
        if set(parts) <= state_dict.keys():
            vectors, labels, judges, judge_labels = (state_dict[name].clone() for name in parts)
            self._hold(vectors, labels)
            self._judge_by(judges, judge_labels)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def embed(self, features: Mapping[str, Features]) -> Tensor:
        """Return unit vectors (B,D)."""
        return functional.normalize(self._unit(features) @ self.whitening, dim=1)

    def _unit(self, features: Mapping[str, Features]) -> Tensor:
        return functional.normalize(self.scalers[self.modality](features[self.modality]), dim=1)

    @torch.no_grad()
    def fill(self, features: Mapping[str, Features], labels: Tensor) -> None:
        """Make a gallery of the training photos; a threshold from these holds until `tune` chooses a better one."""
        self.whitening.copy_(_whitening(self._unit(features), labels.to(self.whitening.device)))
        self._hold(self.embed(features), labels.to(self.whitening.device))
        self._judge_by(self.vectors.clone(), self.labels.clone())
        self._choose_threshold()

    @torch.no_grad()
    def add(self, features: Mapping[str, Features], label: int) -> None:
        """Add photos of one class, where `label` = K makes a new one, and choose the threshold again."""
        if not 0 <= label <= self.n_classes:
            raise UsageError(f"label {label} is out of range; use 0 to {self.n_classes}")
        vectors, self.n_classes = self.embed(features), max(self.n_classes, label + 1)
        labels = torch.full((len(vectors),), label, device=vectors.device)
        self._hold(torch.cat([self.vectors, vectors]), torch.cat([self.labels, labels]))
        self._choose_threshold()

    def similarity(self, features: Mapping[str, Features]) -> Tensor:
        """Return (B,K) cosines with class means or, with neighbours, most similar photos; -1 where a class has none."""
        return self._similarity(self.embed(features))

    def _similarity(self, vectors: Tensor) -> Tensor:
        if not self.neighbours:
            return torch.where(self.there, vectors @ self.means.T, FLOOR)
        found = vectors.new_full((len(vectors), self.n_classes), FLOOR)
        return found.scatter_reduce(1, self.labels.expand(len(vectors), -1), vectors @ self.vectors.T, "amax")

    def forward(self, features: Mapping[str, Features]) -> Tensor:
        """Return logits (B,K) of the features by modality."""
        return self._logits(features, self.scale)

    def _logits(self, features: Mapping[str, Features], scale: Tensor | float) -> Tensor:
        if not self.neighbours or not len(self.vectors):
            return scale * self.similarity(features)
        cosines = self.embed(features) @ self.vectors.T
        nearest, photos = cosines.topk(min(self.neighbours, len(self.vectors)), dim=1)
        own = functional.one_hot(self.labels, self.n_classes).bool()[photos]  # (B,k,K)
        return (scale * torch.where(own, nearest[..., None], FLOOR)).logsumexp(1)

    @torch.no_grad()
    def tune(self, features: Mapping[str, Features], labels: Tensor) -> None:
        """Choose the scale (lowest cross entropy) and the threshold of unknown products on validation images."""
        losses = [float(functional.cross_entropy(self._logits(features, s), labels)) for s in SCALES]
        self.scale.fill_(SCALES[losses.index(min(losses))])
        self._judge_by(self.embed(features), labels.to(self.vectors.device))
        self._choose_threshold()

    def _choose_threshold(self) -> None:
        """Choose the similarity that a share of `false_accepts` of the judges exceeds if their class were not there."""
        others = self._similarity(self.judges).scatter(1, self.judge_labels[:, None], FLOOR).amax(1)
        known = self.n_classes > 1 and len(others)
        self.threshold.fill_(others.quantile(1 - self.false_accepts) if known else FLOOR)


def _whitening(vectors: Tensor, labels: Tensor) -> Tensor:
    """Return the matrix (D,D) that gives the differences within classes the same spread in all directions.

    The covariance of vectors (N,D) around their class means is shrunk first: there may be fewer photos than dimensions.
    Where each class has one photo, nothing is known, and the matrix is that of no change.
    """
    counts = labels.bincount().clamp(min=1)
    means = vectors.new_zeros(len(counts), vectors.shape[1]).index_add(0, labels, vectors) / counts[:, None]
    within = vectors - means[labels]
    covariance, one = within.T @ within / len(vectors), torch.eye(vectors.shape[1], device=vectors.device)
    spread = covariance.trace() / len(one)
    if spread < 1e-9:
        return one
    factor = torch.linalg.cholesky(covariance.lerp(spread * one, SHRINKAGE) / spread)
    return torch.linalg.solve_triangular(factor.T, one, upper=True)
