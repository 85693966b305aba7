"""How far to trust an explanation: does it point at what is known to matter, is it stable, does it need the model?

Every score comes with its chance: what an explanation scores that knows nothing.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.integrate import trapezoid
from scipy.stats import rankdata
from torch import nn

from retailkit.config import UsageError
from retailkit.data.text import same_place
from retailkit.explain.lime import LocalExplanation
from retailkit.explain.masking import MaskedModel, Token, targets
from retailkit.models.classifier import ProductClassifier
from retailkit.models.pooling import FeatureScaler

NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
MODALITIES = ("image", "text", "joint")
BASELINES = ("mean", "blur")  # of hidden superpixels: the one of explanations, and another one
RANDOM_ORDERS = 5
OVERLAP = 0.5  # of the smaller box: from here on a word that was read is the word that is printed there


# -- Pointing games


def pointing_game(attr: Any, truth: Any) -> np.ndarray:
    """Say whether a map's maximum lies in the truth (Zhang et al. 2018, section 4.1); higher is better.

    Takes maps (B,H,W), signed, and truth (B,H,W) bool, the pixels that matter. Returns (B,) in [0,1], the share of the
    pixels with the maximum that hit; NaN where the truth is empty. Chance is `chance(truth)`.
    """
    attr, truth = _checked(attr, truth)
    top = attr == attr.max((1, 2), keepdims=True)
    hits = (top & truth).sum((1, 2)) / top.sum((1, 2))
    return np.where(truth.any((1, 2)), hits, np.nan)


def energy_pointing(attr: Any, truth: Any) -> np.ndarray:
    """Return the share of the positive attribution inside the truth (Wang et al. 2020, section 4.3); higher is better.

    Takes the same as `pointing_game`. Returns (B,) in [0,1], NaN where the truth is empty, or nothing is positive.
    Chance is `chance(truth)`.
    """
    attr, truth = _checked(attr, truth)
    positive = attr.clip(min=0)
    total = np.where(truth.any((1, 2)), positive.sum((1, 2)), 0)
    return (positive * truth).sum((1, 2)) / np.where(total > 0, total, np.nan)


def chance(truth: Any) -> np.ndarray:
    """Return what a random map scores in both games: the share of the image that is truth, (B,); NaN where empty."""
    truth = _array(truth, bool)
    return np.where(truth.any((1, 2)), truth.mean((1, 2)), np.nan)


def _checked(attr: Any, truth: Any) -> tuple[np.ndarray, np.ndarray]:
    attr, truth = _maps(attr), _array(truth, bool)
    if attr.shape != truth.shape:
        raise UsageError(f"maps are {attr.shape} and the truth is {truth.shape}; give both as (B,H,W)")
    return attr, truth


def _array(values: Any, kind: type) -> np.ndarray:
    return np.asarray(values.detach().cpu() if isinstance(values, torch.Tensor) else values, dtype=kind)


def _maps(attr: Any) -> np.ndarray:
    attr = _array(attr, float)
    if attr.ndim != 3 or 0 in attr.shape[1:]:
        raise UsageError(f"maps are {attr.shape}; give them as (B,H,W)")
    if bad := np.isnan(attr).any((1, 2)).sum():
        raise UsageError(f"{bad} of {len(attr)} maps hold NaN; leave those images out")
    return attr


# -- Pointing with superpixels and words


def discriminative_tokens(tokens: Sequence[Token], boxes: Any) -> np.ndarray:
    """Return which tokens show a word that tells look-alikes apart, (T,) bool.

    One of the token's words and one of the `boxes` (M,4: x0, y0, x1, y1) share at least half of the smaller of both.
    Empty boxes, of words without a place or cropped away, share nothing.
    """
    owners = [number for number, token in enumerate(tokens) for _ in token.words]
    read = [word.box for token in tokens for word in token.words]
    hits = same_place(read, _array(boxes, float), OVERLAP).any(1)
    return np.bincount(owners, hits, len(tokens)) > 0


def energy_on(explanation: LocalExplanation, mask: Any, boxes: Any = ()) -> pd.DataFrame:
    """Return the share of the positive weights that lies on what tells look-alikes apart; higher is better.

    `energy_pointing` for features instead of pixels: a superpixel's weight is spread evenly over its pixels; a token
    lies on the truth or not, see `discriminative_tokens`. The first class is judged. `mask` (H,W) bool are the
    discriminative pixels (ignored where the explanation has no image), `boxes` (M,4) the discriminative words.

    Returns:
        Rows `image`, `text` and `joint`. `share` in [0,1]; `chance`: the share of equal weights for all features of one
        size; `ratio` of both, 1 for chance. NaN where no feature shows truth, or no weight is positive.
    """
    weights = [explanation.image_weights[0].clip(min=0), explanation.text_weights[0].clip(min=0)]
    truths = [np.zeros(0), discriminative_tokens(explanation.tokens, boxes).astype(float)]
    sizes, count = [np.zeros(0), np.ones(len(weights[1]))], len(weights[0])
    if explanation.segments is not None:
        labels, inside = explanation.segments.ravel(), _array(mask, bool).ravel()
        pixels = np.bincount(labels, minlength=count)[:count]
        truths[0] = np.bincount(labels, weights=inside, minlength=count)[:count] / pixels
        sizes[0] = pixels / pixels.mean()
    rows = {}
    for modality, kinds in {"image": [0], "text": [1], "joint": [0, 1]}.items():
        weight, truth, size = (np.concatenate([of[kind] for kind in kinds]) for of in (weights, truths, sizes))
        share, chance = math.nan, math.nan
        if truth.any() and weight.any():
            share, chance = float(weight @ truth / weight.sum()), float(size @ truth / size.sum())
        rows[modality] = {"share": share, "chance": chance, "ratio": share / chance}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("modality")


def rank_of_discriminative_word(explanation: LocalExplanation, boxes: Any) -> tuple[float, float]:
    """Return the rank of the best token that tells look-alikes apart, and the chance that it is first.

    Tokens are sorted by signed weight, 1 is first and best; those of equal weight share the mean of their ranks. In a
    random order one of m such tokens among T is first with chance m/T. The rank is 1 to T, NaN where no such token was
    read. Arguments as of `energy_on`.
    """
    ranks = rankdata(-explanation.text_weights[0])
    hits = discriminative_tokens(explanation.tokens, boxes)
    return (float(ranks[hits].min()), float(hits.mean())) if hits.any() else (math.nan, 0.0)


# -- Does the model change its answer when the explained parts are hidden?


class Areas(NamedTuple):
    """Areas under curves of deletion and insertion, (1+R,): of an explanation's order, and of R random ones (chance).

    Attributes:
        full: score with nothing hidden, and `empty`, with all features hidden.
        deletion: hidden from the most important feature on (MoRF, Petsiuk et al. 2018); lower is better.
        insertion: shown from the most important feature on, which has the area of hiding the least important ones first
            (LeRF); higher is better.
        srg: symmetric relevance gain, insertion less deletion (Blücher et al. 2024); higher is better. What a hidden
            part looks like shifts both alike and cancels, so that chance is 0 for every model.
        normalised_srg: divided by what hiding everything costs, to compare images; NaN where it costs nothing.
    """

    full: float
    empty: float
    deletion: np.ndarray
    insertion: np.ndarray
    srg: np.ndarray
    normalised_srg: np.ndarray


AREAS = Areas._fields[2:]


def areas(
    masked: MaskedModel,
    image_weights: np.ndarray,
    text_weights: np.ndarray,
    target: Callable[[np.ndarray], np.ndarray],
    modality: str = "joint",
    steps: int = 64,
) -> Areas:
    """Hide and show features in order of their signed weights, and in random orders.

    A superpixel takes as much of the axis as it has of the image, and a token 1/T. Jointly each modality takes the
    share that it has of the features: no order beats that of the true weights where features add up and superpixels
    have one size.

    Args:
        masked: what is explained; it is asked once, with all masks.
        image_weights: (S,) signed.
        text_weights: (T,) signed.
        target: takes logits (N,K) and returns the scores (N,) that are explained.
        modality: `image` and `text` hide features of theirs and keep the others; `joint` hides all.
        steps: points of a curve at most; with more features several go at a time. A curve costs two evaluations a step.
    """
    split = masked.n_segments
    varied = np.repeat([modality != "text", modality != "image"], [split, masked.n_tokens])
    weights = np.concatenate([image_weights, text_weights]).astype(float)[varied]
    turns = _turns(weights, steps, np.random.default_rng(0))
    hidden = turns[:, None] < np.arange(turns.max() + 2)[:, None]  # (1+R,G+1,P)
    keep = np.ones((2, *hidden.shape[:2], len(varied)), dtype=bool)
    keep[..., varied] = np.stack([~hidden, hidden])  # deletion; insertion shows what deletion hides
    rows = keep.reshape(-1, len(varied))
    scores = target(masked.logits(rows[:, :split], rows[:, split:]))
    deletion, insertion = np.asarray(scores, dtype=float).reshape(keep.shape[:3])
    sizes = masked.areas * split / masked.areas.sum() if split else np.zeros(0)
    axis = np.concatenate([sizes, np.ones(masked.n_tokens)])[varied]
    deleted, inserted = (trapezoid(curve, hidden @ axis / axis.sum(), axis=1) for curve in (deletion, insertion))
    full, empty = float(deletion[0, 0]), float(deletion[0, -1])
    gap = full - empty
    cost = gap if gap > 1e-6 * max(abs(full), abs(empty), 1) else math.nan
    return Areas(full, empty, deleted, inserted, inserted - deleted, (inserted - deleted) / cost)


def _turns(weights: np.ndarray, steps: int, rng: np.random.Generator) -> np.ndarray:
    """Return at which step each feature goes, (1+R,P): by decreasing weight, equal ones at random, and in R orders."""
    features = len(weights)
    turn = np.repeat(np.arange(min(features, steps)), [len(g) for g in np.array_split(weights, min(features, steps))])
    chance = rng.random((1 + RANDOM_ORDERS, features))
    first = np.lexsort((chance[0], -weights))
    orders = np.stack([first, *chance[1:].argsort(axis=1)])
    return turn[orders.argsort(axis=1)]


def faithfulness(explanation: LocalExplanation, steps: int = 64) -> pd.DataFrame:
    """Score the first explained class by what the model says about hidden features, beside random orders; see `areas`.

    The score is what is explained, usually the logit of the class less that of its contrast class. The second baseline
    shows whether the explanation holds for the model or for one way to hide.

    Returns:
        One row per modality and baseline: `modality`, `baseline`, `features`, `full`, `empty` (scores), the `AREAS`,
        and each of them for random orders as `random_...` (mean, chance) and `random_..._sd`. NaN without features.

    Raises:
        UsageError: the explanation has no masked model, as after loading.
    """
    if explanation.masked_model is None:
        raise UsageError("this explanation has no model with it, as after loading; use refine(budget, model)")
    ours, contrast, asked = explanation.explained[:1], explanation.contrasts[:1], explanation.options.target
    image, text = explanation.image_weights[0], explanation.text_weights[0]
    rows = []
    for baseline in BASELINES:
        masked = explanation.masked_model.with_baseline(baseline)
        for modality, count in zip(MODALITIES, (len(image), len(text), len(image) + len(text)), strict=True):
            rows.append({"modality": modality, "baseline": baseline, "features": count})
            if count:
                found = areas(masked, image, text, lambda v: targets(v, ours, contrast, asked)[:, 0], modality, steps)
                rows[-1] |= {"full": found.full, "empty": found.empty}
                for name in AREAS:
                    area, random = getattr(found, name)[0], getattr(found, name)[1:]
                    rows[-1] |= {name: area, f"random_{name}": random.mean(), f"random_{name}_sd": random.std(ddof=1)}
    controls = [f"random_{name}{sd}" for name in AREAS for sd in ("", "_sd")]
    return pd.DataFrame(rows, columns=["modality", "baseline", "features", "full", "empty", *AREAS, *controls])


# -- Does it come out the same again?


class Stability(NamedTuple):
    """How alike explanations of one input are; see `stability`. Read all of it: each value alone can be had cheaply.

    Attributes:
        spearman: rank correlation of all signed weights, in [-1,1]; higher is better, chance 0.
        jaccard: of the features with the k strongest weights, in [0,1]; higher is better, chance about k / (2P - k).
        vsi: variables stability index, percent of the k strongest that are shared (Visani et al. 2022); higher is
            better, chance 100 k / P.
        csi: coefficients stability index, percent of the intervals that overlap (Visani et al. 2022); higher is
            better, but wide intervals always overlap.
        interval_width: mean width of the intervals, in units of the weights; lower is better.
        sign_flips: share of the weights with opposite signs, in [0,1]; lower is better, chance 0.5.
    """

    spearman: float
    jaccard: float
    vsi: float
    csi: float
    interval_width: float
    sign_flips: float


def stability(weights: Any, k: int = 5, intervals: Any = None) -> Stability:
    """Compare R explanations of one input under several seeds, as means over all pairs in which a value exists.

    Args:
        weights: (R,P) signed.
        k: how many features are the strongest, by size of their weight; a weight of 0 never is.
        intervals: (R,P,2) low and high of each weight, both NaN where unknown; without any that are known, `csi` and
            `interval_width` are NaN.

    Raises:
        UsageError: fewer than two explanations, no features, or values that are not finite.
    """
    weights = _array(weights, float)
    if weights.ndim != 2 or len(weights) < 2 or not weights.size or not np.isfinite(weights).all():
        raise UsageError(f"weights are {weights.shape}; give (R,P), finite, with R of 2 or more and P of 1 or more")
    a, b = np.triu_indices(len(weights), 1)  # all pairs
    ranks = np.argsort(np.argsort(-np.abs(weights), 1, kind="stable"), 1)
    top = ranks < np.minimum(k, np.count_nonzero(weights, 1))[:, None]
    common, either = (top[a] & top[b]).sum(1), (top[a] | top[b]).sum(1)
    larger = np.maximum(top[a].sum(1), top[b].sum(1))
    unknown = np.full((*weights.shape, 2), math.nan)
    low, high = np.moveaxis(unknown if intervals is None else _array(intervals, float), -1, 0)
    gaps = np.maximum(low[a], low[b]) - np.minimum(high[a], high[b])
    return Stability(
        spearman=_mean_known(_spearman(weights)[a, b]),
        jaccard=_mean_known(common / np.where(either, either, np.nan)),
        vsi=100 * _mean_known(common / np.where(larger, larger, np.nan)),
        csi=100 * _mean_known(np.where(np.isnan(gaps), np.nan, gaps <= 0)),
        interval_width=_mean_known(high - low),
        sign_flips=float(np.mean(weights[a] * weights[b] < 0)),
    )


def _mean_known(values: Any) -> float:
    values = np.asarray(values, dtype=float)
    return float(values[~np.isnan(values)].mean()) if not np.isnan(values).all() else math.nan


# -- Does the explanation depend on what the model has learned?


def stages(model: ProductClassifier) -> list[tuple[str, nn.Module]]:
    """Return a model's parts with weights: head, pooling, text encoder, image network block by block from its end."""
    parts = [(name, getattr(model, name)) for name in ("head", "pooling", "text_encoder")]
    network = [] if model.image_encoder is None else model.image_encoder.network.named_children()
    for name, child in reversed(list(network)):
        rows = child.named_children() if isinstance(child, nn.Sequential) else ()
        blocks = [(f"image_encoder.{name}.{n}", block) for n, block in rows] or [(f"image_encoder.{name}", child)]
        parts += reversed(blocks)
    return [(name, part) for name, part in parts if part is not None and [*part.parameters()]]


def randomised(model: ProductClassifier, seed: int, top: int | None = None) -> ProductClassifier:
    """Return a copy of a model with re-initialised weights; the original stays as it is.

    A map that looks the same for the copy shows the image, not the model (Adebayo et al. 2018, section 3): its
    `rank_correlation` with the original's should be near 0. Weights are initialised as by He et al. (2015), biases are
    0, normalisations do nothing, and feature scalers forget what they measured. `top` randomises only so many of
    `stages(model)`, from the answer down (cascade); None takes all weights.
    """
    other = copy.deepcopy(model)
    parts = [other] if top is None else [part for _, part in stages(other)[:top]]
    generator = torch.Generator().manual_seed(seed)
    for module in (module for part in parts for module in part.modules()):
        _initialise(module, generator)
    return other


@torch.no_grad()
def _initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Re-initialise what a module holds itself, without the modules inside."""
    if isinstance(module, FeatureScaler):
        module.mean.zero_()
        module.std.fill_(1)
    elif isinstance(module, NORMS):
        module.reset_parameters()
    else:
        for name, weight in module.named_parameters(recurse=False):
            if name == "bias":
                weight.zero_()
            else:
                inputs = weight[0].numel() if weight.ndim > 1 else 1
                weight.copy_(torch.randn(weight.shape, generator=generator) * math.sqrt(2 / inputs))


def rank_correlation(a: Any, b: Any, absolute: bool = False) -> np.ndarray:
    """Return Spearman's correlation (B,) of two maps (B,H,W) of each image: 1 for one order of pixels, 0 for chance.

    NaN where a map has one value throughout. Maps of nothing in common scatter widely around 0: average over images.
    `absolute` compares strengths without their signs, which gradients flip easily.
    """
    a, b = _maps(a), _maps(b)
    if a.shape != b.shape:
        raise UsageError(f"maps are {a.shape} and {b.shape}; compare maps of the same images at one size")
    if absolute:
        a, b = np.abs(a), np.abs(b)
    return np.array([_spearman(np.stack([x.ravel(), y.ravel()]))[0, 1] for x, y in zip(a, b, strict=True)])


def _spearman(rows: np.ndarray) -> np.ndarray:
    """Return Spearman's correlations (R,R) of rows (R,P), NaN for those that have one value throughout."""
    return pd.DataFrame(rows.T).corr("spearman").to_numpy()
