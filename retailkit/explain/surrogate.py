"""The linear surrogate of a local explanation: kernels, weighted least squares, and how far to trust the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.spatial.distance import cdist
from scipy.stats import t as student_t
from skimage import color
from torch import Tensor

KERNEL_WIDTH = 0.25  # of LIME, on cosine distances
SHARP = 10  # times the mean that the weight of one mask may be in KernelSHAP
ENDS = 1e6  # weight of the untouched and the empty input in KernelSHAP: their values are met exactly
NEAR, ALIKE = 0.1, 15.0  # neighbouring superpixels: distance in image sides, and in CIELAB
FOLDS = 5  # of the held-out R²
DRAWS = 300  # of the bootstrap


class Drawn(NamedTuple):
    """Masks that were drawn independently of others."""

    features: np.ndarray  # which they hide
    pair: np.ndarray  # (N,) of complements, for each evaluation
    complete: bool  # whether these are all possible masks
    freedom: int  # how many pairs there are beyond those that determine the weights


@dataclass(frozen=True)
class Samples:
    """Which masks have been evaluated, and the model's answers."""

    image_masks: np.ndarray  # (U,S) bool, True = kept; rows 2n and 2n+1 are complements
    text_masks: np.ndarray  # (V,T) bool, likewise; where boxes are hidden with their words, row n of both is one mask
    pairs: np.ndarray  # (N,2) int, rows of the two that were combined, none twice
    logits: np.ndarray  # (N,K) float32 of each pair

    @property
    def kept(self) -> np.ndarray:
        """Return (N,S+T) bool: which features each evaluation kept, superpixels first."""
        return np.concatenate([self.image_masks[self.pairs[:, 0]], self.text_masks[self.pairs[:, 1]]], 1)

    def drawn(self) -> list[Drawn]:
        """Return what was drawn independently: image masks and text masks, or masks of both."""
        image, features = self.image_masks.shape[1], np.arange(self.kept.shape[1])
        parts = [(features[:image], len(self.image_masks)), (features[image:], len(self.text_masks))]
        if np.array_equal(*self.pairs.T):
            parts = [(features, len(self.image_masks))]
        return [
            Drawn(own, self.pairs[:, n] // 2, count == 2 ** len(own), count // 2 - len(own) - 1)
            for n, (own, count) in enumerate(parts)
        ]


# -- Kernels: how evaluations are weighted.


def _lime(kept: np.ndarray) -> np.ndarray:
    """Weight by an exponential kernel of width 0.25 on the cosine distance from the untouched input, as lime does."""
    distance = 1 - np.sqrt(kept.mean(1))
    return np.sqrt(np.exp(-((distance / KERNEL_WIDTH) ** 2)))


def _shapley(kept: np.ndarray) -> np.ndarray:
    """Weight so that least squares gives Shapley values: masks of size k have the mass (P-1)/(k(P-k)) together.

    Unless all masks are there, none counts more than `SHARP` times the mean: a single mask of a rare size would carry
    the mass of all masks of that size.
    """
    features, sizes, between = kept.shape[1], kept.sum(1), inner(kept)
    weights = (features - 1) / (sizes * (features - sizes)).clip(1) / np.bincount(sizes)[sizes]
    if len(kept) < 2**features and between.any():
        weights = np.minimum(weights, SHARP * weights[between].mean())
    return np.where(between, weights, ENDS)


# Called as kernel(kept (N,P) bool) -> (N,) weights. All alike, with random masks, give Banzhaf values.
KERNELS = {"lime": _lime, "shap": _shapley, "uniform": lambda kept: np.ones(len(kept))}


def inner(kept: np.ndarray) -> np.ndarray:
    """Say which masks (N,P) keep some and hide some."""
    return kept.any(1) & ~kept.all(1)


# -- The fit.


def roughness(image: Tensor, segments: np.ndarray, count: int) -> np.ndarray:
    """Return the Laplacian (S,S) of a graph of superpixels, on average 1 for each.

    The weight of an edge is a Gaussian of the distances of two centres and of two mean colours.
    """
    height, width = segments.shape
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    colours = color.rgb2lab(image.permute(1, 2, 0).cpu().numpy(), channel_axis=-1)
    facts = np.dstack([rows / NEAR, columns / NEAR, colours / ALIKE]).reshape(-1, 5).T
    areas = np.bincount(segments.ravel())[:count]
    means = np.stack([np.bincount(segments.ravel(), fact)[:count] / areas for fact in facts], 1)
    edges = np.exp(-cdist(means, means, "sqeuclidean") / 2)
    np.fill_diagonal(edges, 0)
    return (np.diag(edges.sum(1)) - edges) * count / max(edges.sum(), math.ulp(1.0))


class Surrogate:
    """Weighted least squares with an intercept, all C classes at once, of N evaluations of P features.

    Takes `values` (N,C), what is explained, `kernel` (N,), the weights of evaluations, and a `penalty` (P,P) on
    products of `weights` (C,P).
    """

    def __init__(self, samples: Samples, values: np.ndarray, kernel: np.ndarray, penalty: np.ndarray) -> None:
        self.samples, self.values, self.kernel = samples, values, kernel
        self.design = np.pad(samples.kept.astype(float), ((0, 0), (1, 0)), constant_values=1.0)
        self.penalty = np.pad(penalty, ((1, 0), (1, 0)))
        self.coefficients = self.fit(kernel)  # (C,1+P), the intercept first
        self.weights = self.coefficients[:, 1:]

    def fit(self, kernel: np.ndarray) -> np.ndarray:
        """Return coefficients (C,1+P) for other weights (N,); the shortest where many fit equally well."""
        weighted = self.design * kernel[:, None]
        gram, moments = weighted.T @ self.design + self.penalty, weighted.T @ self.values
        return np.linalg.lstsq(gram, moments, rcond=1e-12)[0].T

    def bootstrap(self, seed: int) -> np.ndarray:
        """Return weights (DRAWS,C,P) as they could be with other masks; NaN where masks are too few to say.

        Pairs of complements get random weights of mean 1 and variance 1 (Bayesian bootstrap, Rubin 1981), and the
        surrogate is fitted again; for image masks and text masks apart, and the changes add up. Changes are enlarged
        because residuals of a fit with many unknowns are too small, and reduced where a good part of all possible masks
        has been evaluated.
        """
        rng, draws = np.random.default_rng(seed), np.repeat(self.coefficients[None], DRAWS, 0)
        weighted = self.design * self.kernel[:, None]
        for drawn in self.samples.drawn():
            if drawn.complete:
                continue
            order = np.argsort(drawn.pair, kind="stable")
            groups = np.split(order, np.flatnonzero(np.diff(drawn.pair[order])) + 1)
            grams = [weighted[rows].T @ self.design[rows] for rows in groups]
            moments = [weighted[rows].T @ self.values[rows] for rows in groups]
            freedom = max(1, drawn.freedom)
            unseen = max(0.0, 1 - freedom / 2 ** (len(drawn.features) - 1))
            random = 1 + math.sqrt(unseen) * (rng.exponential(size=(DRAWS, len(groups))) - 1)
            gram = np.tensordot(random, np.stack(grams), 1) + self.penalty
            gram += 1e-12 * np.abs(gram).max() * np.eye(gram.shape[1])  # also where the masks leave weights open
            found = np.linalg.solve(gram, np.tensordot(random, np.stack(moments), 1)).transpose(0, 2, 1)
            draws += math.sqrt(len(groups) / freedom) * (found - self.coefficients)
            if drawn.freedom < 1:
                draws[..., 1 + drawn.features] = math.nan
        return draws[..., 1:]

    def intervals(self, draws: np.ndarray) -> np.ndarray:
        """Return 95 % intervals (C,P,2) of the weights from draws of `bootstrap`; NaN where masks were too few."""
        reach = np.zeros(self.design.shape[1] - 1)
        for drawn in self.samples.drawn():
            reach[drawn.features] = 1.96 if drawn.complete else student_t.ppf(0.975, max(1, drawn.freedom))
        return self.weights[..., None] + (reach * draws.std(0))[..., None] * np.array([-1.0, 1.0])

    def held_out(self) -> np.ndarray:
        """Return (C,) weighted R² over folds of masks that the fit has not seen; complements stay together.

        Image masks and text masks are left out at once, unless there are too few of one kind. The untouched and the
        empty input are in every fit and judged in none.
        """
        pairs, between = self.samples.pairs, inner(self.samples.kept)
        image, text = pairs.T // 2 % FOLDS
        counts = pairs.max(0) + 1
        if counts.min() < 4 * FOLDS:
            image = text = text if counts[1] > counts[0] else image
        predicted = np.full_like(self.values, math.nan)
        for fold in range(FOLDS):
            known = ((image != fold) & (text != fold)) | ~between
            judged = (image == fold) & (text == fold) & between
            if known.sum() > self.design.shape[1] and judged.any():
                predicted[judged] = self.design[judged] @ self.fit(self.kernel * known).T
        judged = ~np.isnan(predicted[:, 0])
        if judged.sum() < 2:
            return np.full(self.values.shape[1], math.nan)
        weights, values = self.kernel[judged, None], self.values[judged]
        residual = (weights * (values - predicted[judged]) ** 2).sum(0)
        total = (weights * (values - np.average(values, 0, weights[:, 0])) ** 2).sum(0)
        return 1 - residual / np.where(total > 0, total, math.nan)


def words_share(weights: np.ndarray, draws: np.ndarray, split: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the words' share (C,) of all absolute weight and its interval (C,2), [0, 1] where nothing is known."""
    count, features = weights.shape
    if split in (0, features):
        alone = np.full(count, float(split == 0))
        return alone, np.stack([alone, alone], 1)
    errors = draws.std(0)
    share = _part(weights, errors, split)
    drawn = _part(draws, math.sqrt(2) * errors, split)  # a drawn weight carries the noise twice
    away = drawn - np.median(np.nan_to_num(drawn, nan=0.5), axis=0)
    low = share + np.quantile(np.nan_to_num(away, nan=-2), 0.025, axis=0)
    high = share + np.quantile(np.nan_to_num(away, nan=2), 0.975, axis=0)
    return share.clip(0, 1), np.stack([np.nan_to_num(low, nan=0), np.nan_to_num(high, nan=1)], 1).clip(0, 1)


def _part(weights: np.ndarray, errors: np.ndarray, split: int) -> np.ndarray:
    """Return the words' part of the sum of absolute weights, not clipped to [0, 1]; NaN where nothing is left of it.

    Mere noise of standard error e has on average the size e √(2/π), and exp(-(weight/e)²) then the value 1/√3: what is
    subtracted leaves nothing of it on average, and all of a weight far above.
    """
    far = np.divide(weights, errors, out=np.full_like(weights, math.inf), where=errors > 0)
    strength = np.abs(weights) - math.sqrt(6 / math.pi) * errors * np.exp(-(far**2))
    text, total = strength[..., split:].sum(-1), strength.sum(-1)
    return text / np.where(total > 0, total, math.nan)
