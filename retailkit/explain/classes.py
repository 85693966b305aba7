"""Global explanations: by which features a model recognises a class, from the local explanations of its photos.

Superpixels of different photos are matched by the features of an image encoder, words by their spelling (see
`retailkit.explain.phrases`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.cluster import AgglomerativeClustering
from torch.nn.functional import adaptive_avg_pool2d, one_hot

from retailkit.config import UsageError, UserError, pick
from retailkit.explain import metrics
from retailkit.explain.lime import LocalExplanation
from retailkit.explain.masking import MaskedModel
from retailkit.explain.phrases import Spelling, group, match, normalise
from retailkit.models.encoders import ImageEncoder

KINDS = ("image", "text")
SCORES = ("accuracy", "margin")  # of the deletion check
DROPS = [f"{score}_{by}" for score in SCORES for by in ("drop", "random_drop")]
THRESHOLD = 0.6  # cosine distance from a cluster's centre up to which a superpixel belongs to it
NO_ENCODER = "no encoder was given, and without one superpixels of different photos cannot be matched"
NO_IMAGES = "the explanations hold no superpixels"


@dataclass(frozen=True)
class Assignment:
    """Which global features the parts of one photo belong to: (S,) clusters and (T,) phrases, -1 for none."""

    segments: np.ndarray
    tokens: np.ndarray


@dataclass(eq=False)
class ClassExplanation:
    """By which features a model recognises a class; see `explain_class`.

    Both tables are sorted by absolute weight. They have the columns `weight`, `share` (of the absolute weight of all
    parts of this kind) and `part` (of the absolute weight of all parts of both kinds).

    Attributes:
        contrasts: names of the classes that it was contrasted with, and on how many photos each. Several mean that the
            weights of different photos answer different questions.
        photos: positions of the photos that were used, among those given; `skipped` photos had nothing to explain.
        image_features: clusters of superpixels, also with `cluster` (number), `support` (photos that show it), `area`
            (its share of the images that show it), and `medoid`, the (photo, segment) nearest to its centre.
        text_features: phrases, also with `canonical`, `samples` (photos that hold it), and `variants`, the number of
            photos on which each spelling was read.
        text_share: mean over photos of the text's share in all absolute weight; NaN where all weights are zero.
        image_note: "" or why there are no image features.
        mean: (D,) features of the mean superpixel.
        centres: (C,D+1) unit vectors, in the order of `image_features`; `phrases` are in that of `text_features`.
        explanations: those used.
    """

    label: int
    name: str
    contrasts: dict[str, int]
    photos: tuple[int, ...]
    skipped: int
    image_features: pd.DataFrame
    text_features: pd.DataFrame
    text_share: float
    image_note: str
    top: int
    mean: np.ndarray = field(repr=False)
    centres: np.ndarray = field(repr=False)
    phrases: tuple[Spelling, ...] = field(repr=False)
    explanations: tuple[LocalExplanation, ...] = field(repr=False)
    encoder: ImageEncoder | None = field(repr=False)
    vocabulary: frozenset[str] = field(repr=False)


def explain_class(
    explanations: Sequence[LocalExplanation],
    label: int,
    encoder: ImageEncoder | None = None,
    top: int = 5,
    vocabulary: Collection[str] = (),
) -> ClassExplanation:
    """Combine local explanations of photos of one class.

    A feature is a phrase, or a cluster of superpixels with similar encoder features. Its weight is that of NormLIME
    (Ahern et al. 2019): the mean over all photos of w² / ‖w‖₁, with the sign of the sum of w. Here w is the summed
    weight of the feature's parts in a photo, and ‖w‖₁ the absolute weight of all its superpixels and words.

    A superpixel is described by the encoder's last map, averaged over the cells that it covers, as the direction in
    which it differs from the mean superpixel of the class. Clustering is agglomerative, with average linkage of cosine
    distances. In the end each superpixel, also of a new photo, belongs to the nearest centre within `THRESHOLD`.

    Args:
        explanations: of photos of the class; those with nothing to explain are skipped.
        label: index of the class.
        encoder: in evaluation mode, best the model's own; without one there are no image features.
        top: how many features of a kind to show; all are kept.
        vocabulary: words that were read often on photos of other classes, and are therefore no misreadings.

    Raises:
        UsageError: photos are of different models, or the class was not explained in one of them.
        UserError: no photo has anything to explain.
    """
    used = {at: explanation for at, explanation in enumerate(explanations) if not explanation.nothing}
    if not used:
        reason = f": {explanations[0].nothing}" if len(explanations) else "; give at least one explanation"
        raise UserError(f"none of {len(explanations)} photos has anything to explain{reason}")
    names = list(next(iter(used.values())).classes)
    if other := next((at for at, explanation in used.items() if list(explanation.classes) != names), None):
        raise UsageError(f"photo {other} was explained by a model with other classes; use one model for all photos")
    rows = [(explanation, explanation.row(label)) for explanation in used.values()]
    images, texts = ([getattr(e, f"{kind}_weights")[row] for e, row in rows] for kind in KINDS)
    totals = np.array([[np.abs(own).sum() for own in weights] for weights in (images, texts)])
    shares = np.array([e.share[row] for e, row in rows], dtype=float)
    contrasts = [names[e.contrasts[row]] for e, row in rows if e.contrasts[row] >= 0]
    text_features, phrases = _phrases(list(used.values()), texts, totals, vocabulary)
    return ClassExplanation(
        label=label,
        name=names[label],
        contrasts=pd.Series(contrasts, dtype=object).value_counts().to_dict(),
        photos=tuple(used),
        skipped=len(explanations) - len(used),
        text_features=text_features,
        text_share=float(np.nanmean(shares)) if np.isfinite(shares).any() else np.nan,
        top=top,
        phrases=phrases,
        explanations=tuple(used.values()),
        encoder=encoder,
        vocabulary=frozenset(vocabulary),
        **_clusters(used, images, totals, encoder),
    )


# -- Features: what parts of different photos have in common.


def _clusters(
    used: Mapping[int, LocalExplanation], weights: list[np.ndarray], totals: np.ndarray, encoder: ImageEncoder | None
) -> dict[str, Any]:
    """Return what `ClassExplanation` holds of clusters."""
    note = NO_ENCODER if encoder is None else "" if any(map(len, weights)) else NO_IMAGES
    parts, mean, centres = _parts(weights).assign(distance=0.0), np.zeros(0), np.zeros((0, 1))
    shown = [(e, len(own)) for e, own in zip(used.values(), weights, strict=True) if len(own)]
    if not note:
        described = np.concatenate([_describe(e, count, encoder) for e, count in shown])
        mean = described.mean(0)
        directions = _directions(described, mean)
        centres = _centres(directions)
        parts["feature"], parts["distance"] = _nearest(directions, centres)
    table, order = _ranked(parts, totals[0], totals.sum(0), len(centres))
    parts["area"] = np.concatenate([np.zeros(0), *(_areas(e, count) for e, count in shown)])
    table["cluster"], table["support"] = np.arange(len(order)), table.pop("samples")
    table["area"] = _sums(parts, "area", len(used), len(centres)).sum(0)[order] / table["support"]
    medoids = parts.loc[parts.groupby("feature")["distance"].idxmin()[order], ["photo", "number"]].to_numpy().tolist()
    table["medoid"] = [(list(used)[photo], number) for photo, number in medoids]
    return {"image_features": table, "mean": mean, "centres": centres[order], "image_note": note}


def _phrases(
    explanations: list[LocalExplanation], weights: list[np.ndarray], totals: np.ndarray, vocabulary: Collection[str]
) -> tuple[pd.DataFrame, tuple[Spelling, ...]]:
    """Return phrases by weight: their table and their spellings."""
    texts = [[normalise(token.text) for token in explanation.tokens] for explanation in explanations]
    groups = group([text for own in texts for text in dict.fromkeys(own)], vocabulary=vocabulary)
    place = {variant: number for number, found in enumerate(groups) for variant in found.variants}
    parts = _parts(weights)
    parts["feature"] = np.array([place.get(text, -1) for own in texts for text in own], dtype=int)
    table, order = _ranked(parts, totals[1], totals.sum(0), len(groups))
    groups = tuple(groups[number] for number in order)
    table["canonical"] = [found.canonical for found in groups]
    table["variants"] = [dict(found.variants) for found in groups]
    return table, groups


def _parts(weights: list[np.ndarray]) -> pd.DataFrame:
    """Return one row per part: its `photo`, from 0 on, its `number` in it, its `weight`, and no `feature` yet, -1."""
    counts = [len(own) for own in weights]
    photos, numbers = np.repeat(np.arange(len(counts)), counts), np.concatenate([np.arange(n) for n in counts])
    return pd.DataFrame({"photo": photos, "number": numbers, "weight": np.concatenate(weights), "feature": -1})


def _ranked(
    parts: pd.DataFrame, of_kind: np.ndarray, totals: np.ndarray, count: int
) -> tuple[pd.DataFrame, np.ndarray]:
    """Return the table of those of `count` features that have parts, by absolute weight, and their order.

    `totals` are the absolute weights of the N photos, and `of_kind` those of their parts of this kind.
    """
    parts = parts.assign(size=parts["weight"].abs(), one=1.0)
    summed, sizes, counts = (_sums(parts, column, len(totals), count) for column in ("weight", "size", "one"))
    absolute, samples = sizes.sum(0), (counts > 0).sum(0)
    normlime = np.sign(summed.sum(0)) * (summed**2 / np.where(totals > 0, totals, 1)[:, None]).mean(0)
    order = np.argsort(-np.abs(normlime), kind="stable")
    order = order[samples[order] > 0]
    table = {
        "weight": normlime[order],
        "share": absolute[order] / (sum(of_kind) or 1),
        "part": absolute[order] / (totals.sum() or 1),
        "samples": samples[order],
    }
    return pd.DataFrame(table), order


def _sums(parts: pd.DataFrame, column: str, photos: int, count: int) -> np.ndarray:
    """Return (N,F): a column of the parts of each photo, summed by feature."""
    known = parts[parts["feature"] >= 0]
    cells = known["photo"] * count + known["feature"]
    return np.bincount(cells, known[column], photos * count).reshape(photos, count)


def _describe(item: LocalExplanation | MaskedModel, count: int, encoder: ImageEncoder) -> np.ndarray:
    """Return (S,D): the encoder's last map, averaged over each of `count` superpixels by its area in each cell."""
    if encoder.training:
        raise UsageError("the encoder is in training mode; call encoder.eval() first")
    parameter = next(encoder.parameters(), torch.zeros(0))
    with torch.inference_mode():
        cells = encoder.forward_map(item.image[None].to(parameter.device))[0].cpu().double()
    planes = one_hot(torch.from_numpy(item.segments).long())[..., :count].permute(2, 0, 1).double()
    shares = adaptive_avg_pool2d(planes, cells.shape[1:]).flatten(1)
    return (shares / shares.sum(1, keepdim=True) @ cells.flatten(1).T).numpy()


def _directions(values: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Return (S,D+1) unit vectors: how each superpixel (S,D) differs from the mean one.

    The last entry is a small constant, so that superpixels equal to the mean are similar.
    """
    constant = np.full((len(values), 1), 1e-4 * (np.linalg.norm(mean) or 1.0))
    found = np.concatenate([values - mean, constant], 1)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def _centres(directions: np.ndarray) -> np.ndarray:
    """Return the centres (C,D+1) of clusters of superpixels; time and memory grow with their number squared."""
    labels = np.zeros(len(directions), int)
    if len(directions) > 1:
        clustering = AgglomerativeClustering(None, metric="cosine", linkage="average", distance_threshold=THRESHOLD)
        labels = clustering.fit_predict(directions)
    centres = np.stack([directions[labels == label].mean(0) for label in range(labels.max() + 1)])
    return centres / np.linalg.norm(centres, axis=1, keepdims=True)


def _nearest(directions: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (S,) the nearest centre of each unit vector, -1 where none is within the threshold, and its distance."""
    distances = 1 - directions @ centres.T
    nearest = distances.min(1)
    return np.where(nearest <= THRESHOLD, distances.argmin(1), -1), nearest.round(9)


def _areas(item: LocalExplanation | MaskedModel, count: int) -> np.ndarray:
    """Return (S,) the share of the image that each superpixel covers."""
    if item.segments is None:
        return np.zeros(0)
    return np.bincount(item.segments.ravel(), minlength=count)[:count] / item.segments.size


def assign(explained: ClassExplanation, item: LocalExplanation | MaskedModel) -> Assignment:
    """Return which global features the parts of a photo, maybe a new one, belong to."""
    count = item.n_segments if hasattr(item, "n_segments") else item.image_weights.shape[1]
    segments = np.full(count, -1)
    if count and len(explained.centres):
        directions = _directions(_describe(item, count, explained.encoder), explained.mean)
        segments, _ = _nearest(directions, explained.centres)
    texts = [token.text for token in item.tokens]
    return Assignment(segments, np.array(match(texts, explained.phrases, explained.vocabulary), dtype=int))


# -- Does the model need the features by which it is said to recognise the class?


def deletion_check(
    explained: ClassExplanation, masked_models: Sequence[MaskedModel], repeats: int = 10, seed: int = 0
) -> pd.DataFrame:
    """Hide the top features of each kind in held-out photos of the class, and compare with hiding as much at random.

    `repeats` random sets per photo and feature are drawn from the other superpixels of the photo until their area is as
    near as possible to the feature's, or from its other tokens until they are as many. Photos without the feature, and
    photos with nothing else to hide, are left out.

    Returns:
        One row per feature: `kind`, `feature`, `n` photos, and means over photos of `hidden` and `random_hidden` (area,
        or number of tokens), and, for `accuracy` and `margin` (logit of the class minus the highest other one), of
        `..._drop`, the drop by hiding the feature, `..._random_drop`, and `..._difference` of the two.
    """
    top = [("image", n) for n in explained.image_features.index[: explained.top]]
    top += [("text", n) for n in explained.text_features.index[: explained.top]]
    drops = [
        row
        for at, masked in enumerate(masked_models)
        for row in _drops(explained, top, masked, repeats, np.random.default_rng([seed, at]))
    ]
    table = pd.DataFrame(drops, columns=["kind", "number", "hidden", "random_hidden", *DROPS])
    rows = []
    for kind, number in top:
        own = table[(table["kind"] == kind) & (table["number"] == number)]
        name = number if kind == "image" else explained.phrases[number].canonical
        rows.append({"kind": kind, "feature": name, "n": len(own)} | dict(own.iloc[:, 2:].astype(float).mean()))
    checked = pd.DataFrame(rows)
    for score in SCORES if rows else ():
        checked[f"{score}_difference"] = checked[f"{score}_drop"] - checked[f"{score}_random_drop"]
    return checked


def _drops(
    explained: ClassExplanation, top: list[tuple[str, int]], masked: MaskedModel, repeats: int, rng: np.random.Generator
) -> list[tuple[Any, ...]]:
    """Return what hiding each feature does on one photo, (kind, number, hidden, random_hidden, *DROPS)."""
    label = list(masked.classes).index(pick(masked.classes, explained.name, "class"))
    own, split = assign(explained, masked), masked.n_segments
    members, kinds = np.concatenate([own.segments, own.tokens]), np.repeat(KINDS, [split, masked.n_tokens])
    sizes = np.concatenate([_areas(masked, split), np.ones(masked.n_tokens)])
    tests = []
    for kind, number in top:
        feature, others = (kinds == kind) & (members == number), (kinds == kind) & (members != number)
        if feature.any() and others.any():
            masks = [feature]
            for order in (rng.permutation(np.flatnonzero(others)) for _ in range(repeats)):
                near = np.abs(np.cumsum(sizes[order]) - sizes[feature].sum()).argmin()  # as large as the feature
                masks.append(np.isin(np.arange(len(sizes)), order[: near + 1]))
            tests.append((kind, number, np.stack(masks)))
    hidden = np.concatenate([np.zeros((1, len(sizes)), bool), *(masks for *_, masks in tests)])  # row 0: nothing
    logits = masked.logits(~hidden[:, :split], ~hidden[:, split:])
    margin = logits[:, label] - np.delete(logits, label, 1).max(1)
    scores = np.stack([margin > 0, margin], 1).astype(float)  # (rows, SCORES)
    found = []
    for n, (kind, number, masks) in enumerate(tests):
        drop = scores[0] - scores[1 + n * len(masks) :][: len(masks)]
        size = masks @ sizes
        by_score = np.stack([drop[0], drop[1:].mean(0)], 1).ravel()
        found.append((kind, number, size[0], size[1:].mean(), *by_score))
    return found


# -- Several models.


def compare(explained: Mapping[str, ClassExplanation]) -> pd.DataFrame:
    """Compare by which features several models recognise one class.

    Weights of different models have different scales. So each feature is given by its part of all absolute weight, with
    the sign of its weight.

    Returns:
        One column per model, and rows by `kind` and `feature`:

        - `share`, `text`: `ClassExplanation.text_share`.
        - `text`, phrase: part of each phrase that is among the top ones of any model, matched by spelling; 0 where a
          model does not use it.
        - `image`, number: part of each model's cluster of that number; clusters have nothing else in common.
        - `heat`, model: rank correlation of the heat maps of the two models, mean over photos that both explain with
          the same superpixels; NaN where there are none.

    Raises:
        UsageError: explanations of different classes.
    """
    names = {found.name for found in explained.values()}
    if len(names) > 1:
        raise UsageError(f"explanations are of {' and '.join(sorted(names))}; compare models on one class")
    rows = {("share", "text"): {model: found.text_share for model, found in explained.items()}}
    rows |= {("text", phrase): parts for phrase, parts in _text_parts(explained).items()}
    for model, found in explained.items():
        for number, part in enumerate(_signed_parts(found.image_features.head(found.top))):
            rows.setdefault(("image", number), {})[model] = part
    for model, found in explained.items():
        rows["heat", model] = {other: _agreement(found, theirs) for other, theirs in explained.items()}
    index = pd.MultiIndex.from_tuples(list(rows), names=["kind", "feature"])
    return pd.DataFrame(list(rows.values()), index=index, columns=list(explained))


def _signed_parts(table: pd.DataFrame) -> np.ndarray:
    return np.sign(table["weight"].to_numpy(float)) * table["part"].to_numpy(float)


def _text_parts(explained: Mapping[str, ClassExplanation]) -> dict[str, dict[str, float]]:
    """Return the parts of phrases by model, for phrases among the top ones of any of them."""
    spellings = [item for found in explained.values() for phrase in found.phrases for item in phrase.variants.items()]
    vocabulary = frozenset().union(*(found.vocabulary for found in explained.values()))
    groups = group([text for text, _ in spellings], [count for _, count in spellings], vocabulary)
    place = {variant: found.canonical for found in groups for variant in found.variants}
    parts: dict[str, dict[str, float]] = {found.canonical: dict.fromkeys(explained, 0.0) for found in groups}
    top = set()
    for model, found in explained.items():
        for number, (phrase, part) in enumerate(zip(found.phrases, _signed_parts(found.text_features), strict=True)):
            parts[place[phrase.canonical]][model] += float(part)
            if number < found.top:
                top.add(place[phrase.canonical])
    order = sorted(top, key=lambda phrase: (-max(map(abs, parts[phrase].values())), phrase))
    return {phrase: parts[phrase] for phrase in order}


def _agreement(a: ClassExplanation, b: ClassExplanation) -> float:
    """Return the mean rank correlation of heat maps of photos that both explain with the same superpixels."""
    ours, theirs = (dict(zip(c.photos, c.explanations, strict=True)) for c in (a, b))
    found = []
    for one, other in ((ours[photo], theirs[photo]) for photo in a.photos if photo in theirs):
        same = one.segments is not None and np.array_equal(one.segments, other.segments)
        if same and torch.equal(one.image, other.image):
            heats = [e.heat(e.row(c.label))[None] for e, c in ((one, a), (other, b))]
            found.append(metrics.rank_correlation(*heats)[0])
    return float(np.nanmean(found)) if np.isfinite(found).any() else np.nan
