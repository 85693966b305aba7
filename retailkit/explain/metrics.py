"""How far to trust an explanation: does it point at what is known to matter, is it stable, does it need the model?

Every score comes with its chance: what an explanation scores that knows nothing. Truth is a mask of the pixels that
matter, such as the product or the patch that tells look-alikes apart, and the boxes of the words that do.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.integrate import trapezoid
from scipy.stats import rankdata, spearmanr
from torch import nn

from retailkit.config import UsageError, pick
from retailkit.data.table import DataError, ProductData
from retailkit.explain.masking import targets
from retailkit.models.pooling import FeatureScaler

if TYPE_CHECKING:
    from retailkit.explain.lime import LocalExplanation
    from retailkit.explain.masking import MaskedModel, Token

NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
MODALITIES = ("image", "text", "joint")
AREAS = ("deletion", "insertion", "srg", "normalised_srg")
CONTROLS = tuple(f"random_{name}{sd}" for name in AREAS for sd in ("", "_sd"))
OVERLAP = 0.5  # of the smaller box: from here on a word that was read is the word that is printed there


# -- Pointing games


def pointing_game(attr: Any, truth: Any) -> np.ndarray:
    """Say whether a map's maximum lies in the truth (Zhang et al. 2018, section 4.1); higher is better.

    Where several pixels share the maximum the result is the share of them that hits: a flat superpixel that touches
    the truth is no full hit, and a map of one value scores chance.

    Args:
        attr: (B,H,W) signed.
        truth: (B,H,W) bool.

    Returns:
        (B,) in [0,1]; NaN where the truth is empty. Chance is `chance(truth)`.

    Raises:
        UsageError: shapes differ, or the map holds NaN.
    """
    attr, truth = _checked(attr, truth)
    top = attr == attr.max((1, 2), keepdims=True)
    hits = (top & truth).sum((1, 2)) / top.sum((1, 2))
    return np.where(truth.any((1, 2)), hits, np.nan)


def energy_pointing(attr: Any, truth: Any) -> np.ndarray:
    """Return the share of the positive attribution inside the truth (Wang et al. 2020, section 4.3); higher is better.

    Args:
        attr: (B,H,W) signed; what is negative counts nowhere.
        truth: (B,H,W) bool.

    Returns:
        (B,) in [0,1]; NaN where the truth is empty, or nothing is positive. Chance is `chance(truth)`.

    Raises:
        UsageError: shapes differ, or the map holds NaN.
    """
    attr, truth = _checked(attr, truth)
    positive = attr.clip(min=0)
    total = positive.sum((1, 2))
    known = truth.any((1, 2)) & (total > 0)
    return np.where(known, (positive * truth).sum((1, 2)) / np.where(known, total, 1), np.nan)


def chance(truth: Any) -> np.ndarray:
    """Return what a random map scores in both games: the share of the image that is truth, (B,); NaN where empty.

    A map that always points at the middle scores more wherever photographers put the product there.
    """
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

    One of the token's words and one of the boxes share at least half of the smaller of both. Empty boxes, of words
    without a place or cropped away, share nothing.

    Args:
        tokens: T of them, with boxes.
        boxes: (M,4) x0, y0, x1, y1 in the same pixels; M may be 0.

    Raises:
        UsageError: boxes of another shape.
    """
    boxes = _array(boxes, float)
    if boxes.size and boxes.shape[1:] != (4,):
        raise UsageError(f"boxes are {boxes.shape}; give (M,4)")
    words = [(number, word.box) for number, token in enumerate(tokens) for word in token.words]
    read = np.array([box for _, box in words], dtype=float).reshape(-1, 1, 4)
    boxes = boxes.reshape(1, -1, 4)
    sides = np.minimum(read[..., 2:], boxes[..., 2:]) - np.maximum(read[..., :2], boxes[..., :2])
    areas = [(b[..., 2:] - b[..., :2]).clip(0).prod(-1) for b in (read, boxes)]
    shared = sides.clip(0).prod(-1)
    hits = ((shared > 0) & (shared >= OVERLAP * np.minimum(*areas))).any(1)
    return np.isin(np.arange(len(tokens)), [number for (number, _), hit in zip(words, hits, strict=True) if hit])


def energy_on(explanation: LocalExplanation, mask: Any, boxes: Any = (), row: int = 0) -> pd.DataFrame:
    """Return the share of the positive weights that lies on what tells look-alikes apart; higher is better.

    `energy_pointing` for features instead of pixels: a superpixel's weight is spread evenly over its pixels; a token
    lies on the truth or not, see `discriminative_tokens`. Negative weights count nowhere. For the highest superpixel
    give `explanation.heat(row)` to `pointing_game`.

    Args:
        explanation: S superpixels, T tokens.
        mask: (H,W) bool, the discriminative pixels, as the explanation's image; ignored where there is none.
        boxes: (M,4) of the discriminative words, in pixels of the image.
        row: which of the explained classes.

    Returns:
        Rows `image`, `text` and `joint`. `share` in [0,1]; `chance`: the share of equal weights for all features of one
        size; `ratio` of both, 1 for chance. NaN where no feature shows truth, or no weight is positive.

    Raises:
        UsageError: the mask has another shape, or there is no such row.
    """
    weights = [w.clip(min=0) for w in _weights(explanation, row)]
    truths = [np.zeros(0), discriminative_tokens(explanation.tokens, boxes).astype(float)]
    size = np.zeros(0)
    if explanation.segments is not None:
        truths[0], size = _covered(explanation.segments, _array(mask, bool), len(weights[0]))
    sizes = [size, np.ones(len(weights[1]))]
    parts = {"image": [0], "text": [1], "joint": [0, 1]}
    return pd.DataFrame(
        [_energy(*(np.concatenate([x[i] for i in part]) for x in (weights, truths, sizes))) for part in parts.values()],
        columns=["share", "chance", "ratio"],
        index=pd.Index(parts, name="modality"),
    )


def _weights(explanation: LocalExplanation, row: int) -> tuple[np.ndarray, np.ndarray]:
    if not 0 <= row < len(explanation.explained):
        raise UsageError(f"row={row} is out of range; this explanation has {len(explanation.explained)} classes")
    return explanation.image_weights[row], explanation.text_weights[row]


def _covered(segments: np.ndarray, mask: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the share of each of `count` superpixels that is truth, and their sizes, which are 1 on average."""
    if mask.shape != segments.shape:
        raise UsageError(f"the mask is {mask.shape} and the image {segments.shape}; give (H,W) as in the explanation")
    pixels = np.bincount(segments.ravel(), minlength=count)[:count]
    inside = np.bincount(segments.ravel(), weights=mask.ravel(), minlength=count)[:count]
    return inside / pixels, pixels / pixels.mean()


def _energy(weights: np.ndarray, truth: np.ndarray, size: np.ndarray) -> tuple[float, float, float]:
    if not truth.any() or not weights.any():
        return math.nan, math.nan, math.nan
    share, chance = float(weights @ truth / weights.sum()), float(size @ truth / size.sum())
    return share, chance, share / chance


class WordRank(NamedTuple):
    """Rank of the best discriminative token by signed weight, 1 is first and best, and the chance that it is first."""

    rank: float
    chance_first: float


def rank_of_discriminative_word(explanation: LocalExplanation, boxes: Any, row: int = 0) -> WordRank:
    """Return where the best token that tells look-alikes apart stands among all tokens, sorted by signed weight.

    Tokens of equal weight share the mean of their ranks, so that weights of 0 throughout are not first. In a random
    order one of m such tokens among T is first with chance m/T.

    Args:
        explanation: T tokens.
        boxes: (M,4) of the discriminative words, in pixels of the image; see `discriminative_tokens`.
        row: which of the explained classes.

    Returns:
        Rank 1 to T, NaN where no such token was read; chance m/T.

    Raises:
        UsageError: boxes of another shape, or no such row.
    """
    ranks = rankdata(-_weights(explanation, row)[1])
    hits = discriminative_tokens(explanation.tokens, boxes)
    return WordRank(float(ranks[hits].min()), float(hits.mean())) if hits.any() else WordRank(math.nan, 0.0)


# -- Does the model change its answer when the explained parts are hidden?


@dataclass(frozen=True)
class Curves:
    """What the model says while features are hidden, or shown, from the most important one to the least.

    Row 0 is the order of an explanation, the other R rows are random orders. Showing the most important features first
    is hiding the least important ones first (LeRF), read backwards: the area under both is one and the same.

    Attributes:
        share: (1+R,G+1) share of the axis that is hidden (deletion) or shown (insertion), from 0 to 1.
        deletion: (1+R,G+1) scores; hidden from the most important feature on (MoRF).
        insertion: (1+R,G+1) scores; shown from the most important feature on.
        features: how many were ordered.
    """

    share: np.ndarray
    deletion: np.ndarray
    insertion: np.ndarray
    features: int

    @property
    def full(self) -> float:
        """Return the score with nothing hidden."""
        return float(self.deletion[0, 0])

    @property
    def empty(self) -> float:
        """Return the score with all features hidden."""
        return float(self.deletion[0, -1])

    @property
    def deletion_auc(self) -> np.ndarray:
        """Return the area under deletion, (1+R,) (RISE, Petsiuk et al. 2018); lower is better.

        Chance is the mean of the random orders; (full + empty) / 2 where features only add up.
        """
        return trapezoid(self.deletion, self.share, axis=1)

    @property
    def insertion_auc(self) -> np.ndarray:
        """Return the area under insertion, (1+R,) (RISE, Petsiuk et al. 2018); higher is better.

        Chance is the same as for deletion, for every model.
        """
        return trapezoid(self.insertion, self.share, axis=1)

    @property
    def srg(self) -> np.ndarray:
        """Return the symmetric relevance gain LeRF - MoRF, (1+R,) (Blücher et al. 2024); higher is better.

        What a hidden part looks like shifts both areas alike and cancels. Chance is 0 for every model.
        """
        return self.insertion_auc - self.deletion_auc

    def normalised(self) -> Curves:
        """Return the curves on a scale from 0, everything hidden, to 1, nothing hidden: comparable between images.

        NaN where the score does not fall when everything is hidden: there is nothing to explain it by.
        """
        gap = self.full - self.empty
        if gap <= 1e-6 * max(abs(self.full), abs(self.empty), 1):
            gap = np.nan
        scaled = {name: (getattr(self, name) - self.empty) / gap for name in ("deletion", "insertion")}
        return replace(self, **scaled)


def curves(
    game: MaskedModel,
    image_weights: np.ndarray,
    text_weights: np.ndarray,
    target: Callable[[np.ndarray], np.ndarray],
    modality: str = "joint",
    steps: int = 64,
    controls: int = 5,
    seed: int = 0,
) -> Curves:
    """Hide and show features in order of their signed weights, and in random orders.

    A superpixel takes as much of the axis as it has of the image, and a token 1/T. Jointly each modality takes
    the share that it has of the features. So all count about alike, and no order beats that of the true weights where
    features add up and superpixels have one size. With a half for each modality, a word would take more of the
    axis than a superpixel of its weight, and the true order would lose.

    Args:
        game: what is explained; it is asked once, with all masks.
        image_weights: (S,) signed.
        text_weights: (T,) signed.
        target: takes logits (N,K) and returns the scores (N,) that are explained.
        modality: `image` and `text` hide features of theirs and keep the others; `joint` hides all.
        steps: points of a curve at most; with more features several go at a time. A curve costs two evaluations a step.
        controls: random orders, at least 5.
        seed: of the random orders, and of the order of features with equal weights.

    Raises:
        UsageError: weights that do not fit the masked model, nothing to hide, or too few steps or controls.
    """
    pick(MODALITIES, modality, "modality")
    wanted = ((game.n_segments,), (game.n_tokens,))
    if (given := (np.shape(image_weights), np.shape(text_weights))) != wanted:
        raise UsageError(f"weights are {given[0]} and {given[1]}; this masked model needs {wanted[0]} and {wanted[1]}")
    if steps < 1 or controls < 5:
        raise UsageError(f"steps={steps} and controls={controls}; use at least 1 and 5")
    varied = np.repeat([modality != "text", modality != "image"], [game.n_segments, game.n_tokens])
    weights = np.concatenate([image_weights, text_weights]).astype(float)[varied]
    if not len(weights) or not np.isfinite(weights).all():
        raise UsageError(f"{len(weights)} weights for {modality!r}; give at least one, and only finite ones")
    turns = _turns(weights, steps, controls, np.random.default_rng(seed))
    hidden = turns[:, None] < np.arange(turns.max() + 2)[:, None]  # (1+R,G+1,P)
    keep = np.ones((2, *hidden.shape[:2], len(varied)), dtype=bool)
    keep[..., varied] = np.stack([~hidden, hidden])  # deletion; insertion shows what deletion hides
    rows = keep.reshape(-1, len(varied))
    scores = target(game.logits(rows[:, : game.n_segments], rows[:, game.n_segments :]))
    deletion, insertion = np.asarray(scores, dtype=float).reshape(keep.shape[:3])
    return Curves(hidden @ _axis(game)[varied] / _axis(game)[varied].sum(), deletion, insertion, len(weights))


def _turns(weights: np.ndarray, steps: int, controls: int, rng: np.random.Generator) -> np.ndarray:
    """Return at which step each feature goes, (1+R,P): by decreasing weight, equal ones at random, and in R orders."""
    features = len(weights)
    turn = np.repeat(np.arange(min(features, steps)), [len(g) for g in np.array_split(weights, min(features, steps))])
    chance = rng.random((1 + controls, features))
    first = np.lexsort((chance[0], -weights))
    orders = np.stack([first, *chance[1:].argsort(axis=1)])
    return turn[orders.argsort(axis=1)]


def _axis(game: MaskedModel) -> np.ndarray:
    """Return how much of the axis each of the features takes, (S+T,), but for a factor."""
    areas = game.areas * game.n_segments / game.areas.sum() if game.n_segments else np.zeros(0)
    return np.concatenate([areas, np.ones(game.n_tokens)])


def faithfulness(
    explanation: LocalExplanation,
    row: int = 0,
    baselines: Sequence = ("mean", "blur"),
    modalities: Sequence[str] = MODALITIES,
    steps: int = 64,
    controls: int = 5,
    seed: int = 0,
) -> pd.DataFrame:
    """Score an explanation by what it says about hidden features, beside random orders; see `curves`.

    The score is what is explained, usually the logit of the class less that of its contrast class. A baseline other
    than the explanation's own shows whether it holds for the model or for one way to hide.

    Args:
        explanation: with its game, as `explain` returns it.
        row: which of its classes.
        baselines: what shows where features are hidden; see `masking.BASELINES`. Hidden text is left out.
        modalities: of `MODALITIES`.
        steps: of `curves`.
        controls: of `curves`.
        seed: of the random orders.

    Returns:
        One row a modality and baseline: `modality`, `baseline`, `features`, `full`, `empty` (scores), `deletion` (lower
        is better), `insertion`, `srg`, `normalised_srg` (higher is better), and each of the last four for random
        orders as `random_...` (mean, chance) and `random_..._sd`. Without features, or where `normalised_srg` is
        undefined, NaN.

    Raises:
        UsageError: the explanation has no game, there is no such row, or an argument of `curves` is wrong.
    """
    if explanation.masked_model is None:
        raise UsageError("this explanation has no model with it, as after loading; use refine(budget, model)")
    if not 0 <= row < len(explanation.explained):
        raise UsageError(f"row={row} is out of range; this explanation has {len(explanation.explained)} classes")
    target = _target(explanation, row)
    weights = {"image": explanation.image_weights[row], "text": explanation.text_weights[row]}
    weights["joint"] = np.concatenate([*weights.values()])
    rows = []
    for baseline in baselines:
        game = explanation.masked_model.with_baseline(baseline)
        for modality in modalities:
            count = len(weights[pick(MODALITIES, modality, "modality")])
            rows.append({"modality": modality, "baseline": baseline, "features": count})
            if count:
                both = weights["image"], weights["text"]
                rows[-1] |= _summary(curves(game, *both, target, modality, steps, controls, seed))
    return pd.DataFrame(rows, columns=["modality", "baseline", "features", "full", "empty", *AREAS, *CONTROLS])


def _target(explanation: LocalExplanation, row: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return what is explained as a function of logits (N,K)."""
    ours, contrast = [explanation.explained[row]], [explanation.contrasts[row]]
    return lambda logits: targets(logits, ours, contrast, explanation.options.target)[:, 0]


def _summary(found: Curves) -> dict[str, float]:
    areas = (found.deletion_auc, found.insertion_auc, found.srg, found.normalised().srg)
    random = [value for area in areas for value in (area[1:].mean(), area[1:].std(ddof=1))]
    named = zip(AREAS + CONTROLS, [area[0] for area in areas] + random, strict=True)
    return {"full": found.full, "empty": found.empty} | dict(named)


# -- Does it come out the same again?


class Stability(NamedTuple):
    """How alike explanations of one input are; see `stability`. Read all of it: each figure alone can be had cheaply.

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
    """Compare explanations of one input under several seeds, as means over all pairs of them.

    Pairs in which a figure does not exist are left out: the rank correlation of a vector of one value, the strongest
    of two vectors of zeros. A weight of 0 is never among the strongest.

    Args:
        weights: (R,P) signed, R explanations of the same P features.
        k: how many features are the strongest, by size of their weight; all where there are fewer.
        intervals: (R,P,2) low and high of each weight, both NaN where unknown; without any that are known, `csi` and
            `interval_width` are NaN.

    Returns:
        Six figures, NaN where no pair has one.

    Raises:
        UsageError: fewer than two explanations, no features, values that are not finite, or other intervals.
    """
    weights = _array(weights, float)
    if weights.ndim != 2 or len(weights) < 2 or not weights.size or not np.isfinite(weights).all():
        raise UsageError(f"weights are {weights.shape}; give (R,P), finite, with R of 2 or more and P of 1 or more")
    if k < 1:
        raise UsageError(f"k={k} is too small; use 1 or more")
    tops = [set(np.argsort(-np.abs(w), kind="stable")[: min(k, np.count_nonzero(w))]) for w in weights]
    pairs = list(combinations(range(len(weights)), 2))
    common = np.array([len(tops[a] & tops[b]) for a, b in pairs])
    either = [len(tops[a] | tops[b]) for a, b in pairs]
    larger = [max(len(tops[a]), len(tops[b])) for a, b in pairs]
    return Stability(
        _mean_known([_spearman(weights[a], weights[b]) for a, b in pairs]),
        _mean_known(common / np.where(either, either, np.nan)),
        100 * _mean_known(common / np.where(larger, larger, np.nan)),
        *_intervals(intervals, weights.shape, pairs),
        float(np.mean([weights[a] * weights[b] < 0 for a, b in pairs])),
    )


def _intervals(intervals: Any, shape: tuple[int, ...], pairs: list[tuple[int, int]]) -> tuple[float, float]:
    """Return the percent of intervals that overlap, and their mean width, of those that are known (not NaN)."""
    if intervals is None:
        return math.nan, math.nan
    intervals = _array(intervals, float)
    unknown = np.isnan(intervals).all(-1) if intervals.shape == (*shape, 2) else np.zeros(1, bool)
    if intervals.shape != (*shape, 2) or not (unknown | (intervals[..., 0] <= intervals[..., 1])).all():
        raise UsageError(f"intervals are {intervals.shape}; give {(*shape, 2)}, low before high")
    low, high = intervals[..., 0], intervals[..., 1]
    overlap = [
        np.where(unknown[a] | unknown[b], np.nan, np.maximum(low[a], low[b]) <= np.minimum(high[a], high[b]))
        for a, b in pairs
    ]
    return 100 * _mean_known(overlap), _mean_known(high - low)


def _mean_known(values: Any) -> float:
    values = np.asarray(values, dtype=float)
    return float(values[~np.isnan(values)].mean()) if not np.isnan(values).all() else math.nan


# -- Does the explanation depend on what the model has learned?


def stages(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the parts of a model that have weights, by name, from its answer down to its input.

    Head, pooling, text encoder, and the image network block by block. Of any other module, its children from the last.
    """
    if not hasattr(model, "head"):
        return _with_weights(model, "")
    parts = [(name, getattr(model, name, None)) for name in ("head", "pooling", "text_encoder")]
    above = [(name, part) for name, part in parts if part is not None and _has_weights(part)]
    encoder = getattr(model, "image_encoder", None)
    return above + ([] if encoder is None else _with_weights(encoder.network, "image_encoder."))


def _with_weights(network: nn.Module, prefix: str) -> list[tuple[str, nn.Module]]:
    """Return the children of a network from the last; rows of blocks block by block."""
    found = []
    for name, child in reversed(list(network.named_children())):
        rows = child.named_children() if isinstance(child, nn.Sequential) else ()
        blocks = [(f"{prefix}{name}.{number}", block) for number, block in rows] or [(prefix + name, child)]
        found += [(where, block) for where, block in reversed(blocks) if _has_weights(block)]
    return found


def _has_weights(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def randomised(model: nn.Module, seed: int, top: int | None = None) -> nn.Module:
    """Return a copy of a model with re-initialised weights; the original stays as it is.

    A map that looks the same for the copy shows the image, not the model (Adebayo et al. 2018, section 3): its
    `rank_correlation` with the original's should be near 0. Weights are drawn anew as for a fresh start (He et al.
    2015), biases are 0, normalisations do nothing, and feature scalers forget what they measured.

    Args:
        model: any module.
        seed: of the new weights.
        top: cascade: only so many of `stages(model)`, from the answer down; None draws everything anew.

    Raises:
        UsageError: the model has no weights, or not so many stages.
    """
    other = copy.deepcopy(model)
    parts = [part for _, part in stages(other)]
    if not parts:
        raise UsageError("this model has no weights to randomise")
    if top is not None and not 0 <= top <= len(parts):
        raise UsageError(f"top={top} is out of range; this model has {len(parts)} stages")
    generator = torch.Generator().manual_seed(seed)
    for part in [other] if top is None else parts[:top]:
        _initialise(part, generator)
    return other


@torch.no_grad()
def _initialise(part: nn.Module, generator: torch.Generator) -> None:
    """Start every module inside afresh."""
    for module in part.modules():
        if isinstance(module, FeatureScaler):
            module.mean.zero_()
            module.std.fill_(1)
        elif isinstance(module, NORMS):
            module.reset_parameters()
        else:
            for name, weight in module.named_parameters(recurse=False):
                _draw(name, weight, generator)


def _draw(name: str, weight: nn.Parameter, generator: torch.Generator) -> None:
    if name == "bias":
        weight.zero_()
        return
    inputs = weight[0].numel() if weight.ndim > 1 else 1
    weight.copy_(torch.randn(weight.shape, generator=generator) * math.sqrt(2 / inputs))


def shuffled_labels(data: ProductData, seed: int) -> ProductData:
    """Return a data set whose training labels are noise; the original stays as it is.

    A model can only learn it by heart: an explanation that stays the same shows the image, not what the model has
    learned (Adebayo et al. 2018, the data randomization test). Labels change places within the training split with what
    belongs to them, `coarse` and `family`: each class keeps its size, validation and test keep their labels.

    Args:
        data: with a training split.
        seed: of the permutation.

    Raises:
        DataError: there is no training split.
    """
    rows = np.flatnonzero(data.table["split"] == "train")
    if not len(rows):
        raise DataError(f"data set {data.name!r} has no training split; shuffle one that has")
    table, named = data.table.copy(), ["label", "coarse", "family"]
    table.loc[rows, named] = table.loc[np.random.default_rng(seed).permutation(rows), named].to_numpy()
    return replace(data, table=table)


def rank_correlation(a: Any, b: Any, absolute: bool = False) -> np.ndarray:
    """Return Spearman's correlation of two maps of each picture: 1 for the same order of pixels, 0 for chance.

    Neighbouring pixels are alike, so that maps of nothing in common scatter widely around 0: average over images.

    Args:
        a: (B,H,W).
        b: (B,H,W).
        absolute: compare strengths without their signs. Gradients flip their sign easily, so that edges shown by both
            go unnoticed otherwise.

    Returns:
        (B,) in [-1,1]; NaN where a map has one value throughout.

    Raises:
        UsageError: shapes differ, or a map holds NaN.
    """
    a, b = _maps(a), _maps(b)
    if a.shape != b.shape:
        raise UsageError(f"maps are {a.shape} and {b.shape}; compare maps of the same images at one size")
    if absolute:
        a, b = np.abs(a), np.abs(b)
    return np.array([_spearman(x.ravel(), y.ravel()) for x, y in zip(a, b, strict=True)])


def _spearman(x: np.ndarray, y: np.ndarray) -> float:
    flat = x.min() == x.max() or y.min() == y.max()
    return math.nan if flat else float(spearmanr(x, y).statistic)
