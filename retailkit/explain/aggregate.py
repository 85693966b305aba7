"""Global explanations: what a model recognises a class by, from the local explanations of its photos.

Superpixels of different photos have nothing in common, so they are matched by what an image encoder makes of them.
Words are matched by spelling, see `retailkit.explain.phrases`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from sklearn.cluster import AgglomerativeClustering
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, one_hot

from retailkit.config import UsageError, UserError
from retailkit.config import pick as pick_name
from retailkit.explain import metrics
from retailkit.explain.phrases import Spelling, group, match, normalise
from retailkit.metrics import bootstrap

if TYPE_CHECKING:
    from retailkit.explain.lime import LocalExplanation
    from retailkit.explain.masking import MaskedModel
    from retailkit.models.encoders import ImageEncoder

MOST = 4000  # superpixels that are clustered: their distances fill 64 MB
MEDOIDS = 12  # kept of a cluster
PALE = 0.25  # contrast that is left around the superpixel of a crop
MARGIN = 0.15  # of a crop's longer side, around its superpixel
NO_ENCODER = "no encoder was given, and without one superpixels of different photos cannot be matched"
NO_PICTURES = "the explanations hold no superpixels"
IMAGE_COLUMNS = ("cluster", "weight", "share", "support", "area", "medoids")
TEXT_COLUMNS = ("canonical", "weight", "share", "samples", "variants")


@dataclass(frozen=True)
class Assignment:
    """Which global features the parts of one photo belong to, -1 for none.

    Attributes:
        segments: (S,) clusters.
        tokens: (T,) rows of `ClassExplanation.text_features`.
    """

    segments: np.ndarray
    tokens: np.ndarray


@dataclass(eq=False)
class ClassExplanation:
    """What a model recognises a class by; see `explain_class`.

    Attributes:
        label: index of the class.
        name: its name.
        photos: positions of the photos that were used, among those given.
        skipped: how many photos had nothing to explain.
        image_features: clusters of superpixels, the heaviest (of either sign) first: `cluster` (its number), `weight`,
            `share` of all absolute weight of superpixels, `support` (photos that show it), `area` (its share of the
            pictures that show it), and `medoids`, (photo, segment) of the most typical superpixels, best first.
        text_features: phrases, the heaviest first: `canonical`, `weight`, `share` of all absolute weight of the text,
            `samples` (photos that hold it), and `variants`, on how many photos each spelling was read.
        text_share: mean over photos of the text's share in all weight; NaN where nothing weighs.
        image_note: "" or why there are no image features.
        top: how many features of a kind are shown.
        threshold: cosine distance from a cluster's centre up to which a superpixel belongs to it.
        mean: (D,) the mean superpixel.
        centres: (C,D+1) unit vectors, in the order of `image_features`.
        phrases: groups of spellings, in the order of `text_features`.
        members: of each photo used, which feature each part is.
        explanations: those used.
        encoder: what matches superpixels, or None.
    """

    label: int
    name: str
    photos: tuple[int, ...]
    skipped: int
    image_features: pd.DataFrame
    text_features: pd.DataFrame
    text_share: float
    image_note: str
    top: int
    threshold: float
    mean: np.ndarray = field(repr=False)
    centres: np.ndarray = field(repr=False)
    phrases: tuple[Spelling, ...] = field(repr=False)
    members: tuple[Assignment, ...] = field(repr=False)
    explanations: tuple[LocalExplanation, ...] = field(repr=False)
    encoder: ImageEncoder | None = field(repr=False)

    def to_frame(self) -> pd.DataFrame:
        """Return the top features of both kinds: `kind`, `feature`, `weight`, `share`, `samples`."""
        image, text = self.image_features.head(self.top), self.text_features.head(self.top)
        image = image.rename(columns={"cluster": "feature", "support": "samples"}).assign(kind="image")
        text = text.rename(columns={"canonical": "feature"}).assign(kind="text")
        columns = ["kind", "feature", "weight", "share", "samples"]
        rows = image[columns].to_dict("records") + text[columns].to_dict("records")
        return pd.DataFrame(rows, columns=columns)

    def facts(self) -> dict[str, Any]:
        """Return the top features and what they rest on, ready for JSON."""
        image = self.image_features.head(self.top).to_dict("records")
        return {
            "label": self.name,
            "photos": len(self.photos),
            "skipped": self.skipped,
            "text_share": None if np.isnan(self.text_share) else self.text_share,
            "image_note": self.image_note,
            "image": [{**row, "medoids": [list(place) for place in row["medoids"]]} for row in image],
            "text": self.text_features.head(self.top).to_dict("records"),
        }

    def crops(self, cluster: int, count: int = 3) -> list[Tensor]:
        """Return the most typical superpixels of a cluster: of different photos first, then further ones of these.

        Args:
            cluster: its number.
            count: crops at most.

        Returns:
            (3,h,w) in [0,1]: bounding boxes with a margin; all but the superpixel is paled towards white.

        Raises:
            UsageError: no such cluster.
        """
        if not 0 <= cluster < len(self.image_features):
            raise UsageError(f"cluster={cluster} is out of range; there are {len(self.image_features)} clusters")
        medoids = self.image_features["medoids"][cluster]
        seen = [photo for photo, _ in medoids]
        order = sorted(range(len(medoids)), key=lambda i: seen[:i].count(seen[i]))
        chosen = [medoids[i] for i in order[:count]]
        return [_crop(self.explanations[self.photos.index(photo)], segment) for photo, segment in chosen]


def explain_class(
    explanations: Sequence[LocalExplanation],
    label: int | str | None = None,
    encoder: ImageEncoder | None = None,
    top: int = 5,
    threshold: float = 0.6,
) -> ClassExplanation:
    """Sum up local explanations of photos of one class.

    A feature is a phrase, or a cluster of superpixels that look alike to the encoder. Its weight is NormLIME's (Ahern
    et al. 2019): the mean over all photos of w² / ‖w‖₁, with the sign of the sum of the w. Here w is the summed weight
    of the feature's parts in a photo, 0 where it has none, and ‖w‖₁ the absolute weight of all parts of that photo,
    superpixels and words. So what counts is to be strong and common. Parts are summed before they are squared, lest a
    feature lose by being cut into several superpixels.

    A superpixel is described by the encoder's last map, averaged over the cells that it covers, and by the direction in
    which that differs from the mean superpixel of the class. Clustering is agglomerative, with average linkage of
    cosine distances: its one parameter is a distance, by which superpixels of new photos can also be like no cluster,
    where k-means needs a number of clusters and puts everything somewhere. Of more than 4,000 superpixels, the heaviest
    ones of each photo found the clusters. In the end each superpixel belongs to the nearest centre within `threshold`.

    Args:
        explanations: of photos of the class; those with nothing to explain are skipped.
        label: index or name of the class; None takes the class that is explained first, which must be the same in all.
        encoder: in evaluation mode, best the model's own; without one there are no image features.
        top: how many features of a kind to show; all are kept.
        threshold: cosine distance within clusters, between 0 and 2; 1 is nothing in common.

    Raises:
        UsageError: photos are of different classes or models, the class was not explained in one of them, the encoder
            is in training mode, or a number is out of range.
        UserError: no photo has anything to explain.
    """
    if top < 1 or not 0 < threshold < 2:
        raise UsageError(f"top={top} or threshold={threshold} is out of range; use 1 or more, and between 0 and 2")
    used = {at: explanation for at, explanation in enumerate(explanations) if not explanation.nothing}
    if not used:
        reason = f": {explanations[0].nothing}" if len(explanations) else "; give at least one explanation"
        raise UserError(f"none of {len(explanations)} photos has anything to explain{reason}")
    names, index = _class_of(used, label)
    photos = [_Photo(at, explanation, _row(explanation, index, at)) for at, explanation in used.items()]
    note = NO_ENCODER if encoder is None else "" if any(len(photo.image) for photo in photos) else NO_PICTURES
    clusters = _no_clusters(photos) if note else _clusters(photos, encoder, threshold)
    phrases = _phrases(photos)
    return ClassExplanation(
        label=index,
        name=names[index],
        photos=tuple(used),
        skipped=len(explanations) - len(used),
        image_features=clusters.table,
        text_features=phrases.table,
        text_share=_mean_share(photos),
        image_note=note,
        top=top,
        threshold=threshold,
        mean=clusters.mean,
        centres=clusters.centres,
        phrases=phrases.groups,
        members=tuple(map(Assignment, clusters.members, phrases.members)),
        explanations=tuple(used.values()),
        encoder=encoder,
    )


@dataclass(frozen=True)
class _Photo:
    """A local explanation, its position among those given, and the row of weights that explains the class."""

    position: int
    explanation: LocalExplanation
    row: int

    @property
    def image(self) -> np.ndarray:
        """Return (S,) weights."""
        return self.explanation.image_weights[self.row]

    @property
    def text(self) -> np.ndarray:
        """Return (T,) weights."""
        return self.explanation.text_weights[self.row]

    @property
    def total(self) -> float:
        """Return the absolute weight of all parts."""
        return float(np.abs(self.image).sum() + np.abs(self.text).sum())


def _class_of(used: Mapping[int, LocalExplanation], label: int | str | None) -> tuple[list[str], int]:
    """Return the names of all classes and the index of the one that is explained."""
    names = list(next(iter(used.values())).classes)
    for at, explanation in used.items():
        if list(explanation.classes) != names:
            raise UsageError(f"photo {at} was explained by a model with other classes; use one model for all photos")
    if isinstance(label, str):
        return names, names.index(pick_name(names, label, "class"))
    if label is not None:
        if not 0 <= label < len(names):
            raise UsageError(f"label={label} is out of range; there are {len(names)} classes")
        return names, int(label)
    first = {at: names[explanation.explained[0]] for at, explanation in used.items()}
    (one, name), *others = first.items()
    for at, other in others:
        if other != name:
            raise UsageError(f"photo {one} explains {name!r} first and photo {at} {other!r}; say which by label=...")
    return names, names.index(name)


def _row(explanation: LocalExplanation, index: int, at: int) -> int:
    if index not in explanation.explained:
        name = explanation.classes[index]
        raise UsageError(f"photo {at} has no explanation of {name!r}; explain it with classes=[{name!r}]")
    return explanation.explained.index(index)


def _mean_share(photos: list[_Photo]) -> float:
    shares = np.array([photo.explanation.share[photo.row] for photo in photos], dtype=float)
    return float(np.nanmean(shares)) if np.isfinite(shares).any() else float("nan")


# -- Features: what parts of different photos have in common.


@dataclass(frozen=True)
class _Clusters:
    """Clusters of superpixels: their table, and which one each superpixel of each photo is."""

    table: pd.DataFrame
    mean: np.ndarray
    centres: np.ndarray
    members: list[np.ndarray]


@dataclass(frozen=True)
class _Phrases:
    """Groups of spellings: their table, and which one each unit of each photo is."""

    table: pd.DataFrame
    groups: tuple[Spelling, ...]
    members: list[np.ndarray]


def _no_clusters(photos: list[_Photo]) -> _Clusters:
    members = [np.full(len(photo.image), -1) for photo in photos]
    return _Clusters(pd.DataFrame(columns=list(IMAGE_COLUMNS)), np.zeros(0), np.zeros((0, 1)), members)


def _clusters(photos: list[_Photo], encoder: ImageEncoder, threshold: float) -> _Clusters:
    described = [_describe(photo.explanation, len(photo.image), encoder) for photo in photos]
    mean = np.concatenate([values for values in described if len(values)]).mean(0)
    units = [_directions(values, mean) for values in described]
    centres = _centres(units, [photo.image for photo in photos], threshold)
    members = [_nearest(values, centres, threshold) for values in units]
    order, members = _by_weight(photos, "image", members, len(centres))
    centres = centres[order]
    table = _table(photos, "image", members, len(order))
    areas = [_areas(photo.explanation, len(photo.image)) for photo in photos]
    table["cluster"], table["support"] = np.arange(len(order)), table.pop("samples")
    table["area"] = _sums(areas, members, len(order)).sum(0) / table["support"]
    table["medoids"] = [_medoids(photos, units, members, k, centre) for k, centre in enumerate(centres)]
    return _Clusters(table[list(IMAGE_COLUMNS)], mean, centres, members)


def _describe(item: LocalExplanation | MaskedModel, count: int, encoder: ImageEncoder) -> np.ndarray:
    """Return (S,D): the encoder's last map, averaged over each of `count` superpixels by its area in each cell."""
    if encoder.training:
        raise UsageError("the encoder is in training mode; call encoder.eval() first")
    if not count:
        return np.zeros((0, 0))
    device = next(itertools.chain(encoder.parameters(), encoder.buffers()), torch.zeros(0)).device
    with torch.inference_mode():
        cells = encoder.forward_map(item.image[None].to(device))[0].cpu().double()
    planes = one_hot(torch.from_numpy(item.segments).long())[..., :count].permute(2, 0, 1).double()
    shares = adaptive_avg_pool2d(planes, cells.shape[1:]).flatten(1)
    return (shares / shares.sum(1, keepdim=True) @ cells.flatten(1).T).numpy()


def _directions(values: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Return (S,D+1) unit vectors: how each superpixel (S,D) differs from the mean one.

    A small constant comes last: superpixels that do not differ from the mean are alike, and not of chance direction.
    """
    if not len(values):
        return np.zeros((0, len(mean) + 1))
    constant = np.full((len(values), 1), 1e-4 * (np.linalg.norm(mean) or 1.0))
    found = np.concatenate([values - mean, constant], 1)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def _centres(units: list[np.ndarray], weights: list[np.ndarray], threshold: float) -> np.ndarray:
    """Return the centres (C,D+1) of clusters of superpixels, the heaviest of each photo if there are too many."""
    most = MOST if sum(map(len, units)) <= MOST else MOST // sum(len(values) > 0 for values in units)
    heaviest = [np.sort(np.argsort(-np.abs(weight), kind="stable")[: max(most, 1)]) for weight in weights]
    chosen = np.concatenate([values[rows] for values, rows in zip(units, heaviest, strict=True)])
    labels = np.zeros(len(chosen), int)
    if len(chosen) > 1:
        clustering = AgglomerativeClustering(None, metric="cosine", linkage="average", distance_threshold=threshold)
        labels = clustering.fit_predict(chosen)
    centres = np.stack([chosen[labels == label].mean(0) for label in range(labels.max() + 1)])
    return centres / np.linalg.norm(centres, axis=1, keepdims=True)


def _nearest(units: np.ndarray, centres: np.ndarray, threshold: float) -> np.ndarray:
    """Return (S,) the nearest centre of each unit vector, -1 where none is within the threshold."""
    if not len(units) or not len(centres):
        return np.full(len(units), -1)
    distances = 1 - units @ centres.T
    return np.where(distances.min(1) <= threshold, distances.argmin(1), -1)


def _medoids(
    photos: list[_Photo], units: list[np.ndarray], members: list[np.ndarray], number: int, centre: np.ndarray
) -> list[tuple[int, int]]:
    """Return (photo, segment) of the superpixels of a cluster that are nearest to its centre."""
    near = [
        (round(float(1 - values[segment] @ centre), 9), photo.position, int(segment))
        for photo, values, own in zip(photos, units, members, strict=True)
        for segment in np.flatnonzero(own == number)
    ]
    return [(photo, segment) for _, photo, segment in sorted(near)[:MEDOIDS]]


def _phrases(photos: list[_Photo]) -> _Phrases:
    texts = [[normalise(unit.text) for unit in photo.explanation.tokens] for photo in photos]
    groups = group([text for own in texts for text in dict.fromkeys(own)])
    place = {variant: number for number, found in enumerate(groups) for variant in found.variants}
    members = [np.array([place.get(text, -1) for text in own], dtype=int) for own in texts]
    order, members = _by_weight(photos, "text", members, len(groups))
    groups = tuple(groups[number] for number in order)
    table = _table(photos, "text", members, len(order))
    table["canonical"] = [found.canonical for found in groups]
    table["variants"] = [dict(found.variants) for found in groups]
    return _Phrases(table[list(TEXT_COLUMNS)], groups, members)


def _sums(values: list[np.ndarray], members: list[np.ndarray], count: int) -> np.ndarray:
    """Return (N,F): the values of the parts of each photo, summed by feature."""
    found = np.zeros((len(values), count))
    for row, own, features in zip(found, values, members, strict=True):
        np.add.at(row, features[features >= 0], own[features >= 0])
    return found


def _normlime(photos: list[_Photo], kind: str, members: list[np.ndarray], count: int) -> np.ndarray:
    """Return (F,) weights; see `explain_class`."""
    summed = _sums([getattr(photo, kind) for photo in photos], members, count)
    totals = np.array([photo.total for photo in photos])[:, None]
    return np.sign(summed.sum(0)) * (summed**2 / np.where(totals > 0, totals, 1)).mean(0)


def _by_weight(
    photos: list[_Photo], kind: str, members: list[np.ndarray], count: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the features that have parts, the heaviest first, and `members` renumbered so."""
    found = np.unique(np.concatenate(members)) if members else np.zeros(0, int)
    found = found[found >= 0]
    weights = np.abs(_normlime(photos, kind, members, count))[found]
    order = found[np.argsort(-weights, kind="stable")]
    number = np.full(count + 1, -1)  # the last one is that of -1
    number[order] = np.arange(len(order))
    return order, [number[own] for own in members]


def _table(photos: list[_Photo], kind: str, members: list[np.ndarray], count: int) -> pd.DataFrame:
    weights = [getattr(photo, kind) for photo in photos]
    absolute = _sums([np.abs(own) for own in weights], members, count).sum(0)
    total = sum(np.abs(own).sum() for own in weights)
    present = _sums([np.ones(len(own)) for own in weights], members, count) > 0
    table = {
        "weight": _normlime(photos, kind, members, count),
        "share": absolute / total if total else np.zeros(count),
        "samples": present.sum(0),
    }
    return pd.DataFrame(table)


def _areas(item: LocalExplanation | MaskedModel, count: int) -> np.ndarray:
    """Return (S,) the share of the picture that is each superpixel."""
    if item.segments is None:
        return np.zeros(0)
    return np.bincount(item.segments.ravel(), minlength=count)[:count] / item.segments.size


def _crop(explanation: LocalExplanation, segment: int) -> Tensor:
    inside = torch.from_numpy(explanation.segments == segment)
    (y0, y1), (x0, x1) = ((int(at.min()), int(at.max()) + 1) for at in torch.nonzero(inside, as_tuple=True))
    margin = round(MARGIN * max(y1 - y0, x1 - x0))
    box = slice(max(y0 - margin, 0), y1 + margin), slice(max(x0 - margin, 0), x1 + margin)
    picture = explanation.image[:, *box]
    return torch.where(inside[box], picture, 1 - PALE * (1 - picture))


def assign(explained: ClassExplanation, item: LocalExplanation | MaskedModel) -> Assignment:
    """Say which global features the parts of a photo belong to; it may be new.

    Args:
        explained: has the features.
        item: a local explanation, or the game of one.

    Raises:
        UsageError: the encoder is in training mode.
    """
    if (at := next((n for n, own in enumerate(explained.explanations) if own is item), None)) is not None:
        return explained.members[at]
    count = item.n_segments if hasattr(item, "n_segments") else item.image_weights.shape[1]
    segments = np.full(count, -1)
    if count and len(explained.centres):
        units = _directions(_describe(item, count, explained.encoder), explained.mean)
        segments = _nearest(units, explained.centres, explained.threshold)
    texts = [unit.text for unit in item.tokens]
    return Assignment(segments, np.array(match(texts, explained.phrases), dtype=int))


# -- Which photos to show.


def pick(explanations: Sequence[LocalExplanation], features: ClassExplanation, count: int) -> list[int]:
    """Pick photos that together show the important features: submodular pick (Ribeiro et al. 2016, section 4).

    A photo shows a feature by those of its parts whose 95 % interval excludes 0. The importance of a feature is the
    square root of its absolute weight by such parts, summed over photos. The coverage of some photos is the importance
    of all features that any of them shows. Photos are picked greedily, which reaches at least 1 - 1/e of the best
    coverage.

    Args:
        explanations: of photos of the class; those with nothing to explain are never picked.
        features: of the class.
        count: photos at most; there are fewer where further photos would show nothing new.

    Returns:
        Positions of photos, the one that shows most first.

    Raises:
        UsageError: `count` is less than 1, or a photo has no explanation of the class.
    """
    if count < 1:
        raise UsageError(f"count={count} is too small; use 1 or more")
    weights = np.stack([_sure_weights(e, features, at) for at, e in enumerate(explanations)])
    importance = np.sqrt(weights.sum(0))
    shown, chosen = np.zeros(len(importance), bool), []
    while len(chosen) < count:
        gains = (importance * ((weights > 0) & ~shown)).sum(1)
        best = int(gains.argmax())
        if gains[best] <= 0:
            break
        chosen.append(best)
        shown |= weights[best] > 0
    return chosen


def _sure_weights(explanation: LocalExplanation, features: ClassExplanation, at: int) -> np.ndarray:
    """Return (F,) absolute weights of clusters, then phrases, by parts whose interval excludes 0."""
    counts = len(features.image_features), len(features.text_features)
    if explanation.nothing:
        return np.zeros(sum(counts))
    row, own = _row(explanation, features.label, at), assign(features, explanation)
    found = []
    for kind, members, count in zip(("image", "text"), (own.segments, own.tokens), counts, strict=True):
        low, high = np.moveaxis(getattr(explanation, f"{kind}_intervals")[row], -1, 0)
        weights = np.abs(getattr(explanation, f"{kind}_weights")[row]) * ((low > 0) | (high < 0))
        found.append(_sums([weights], [members], count)[0])
    return np.concatenate(found)


# -- Does the model need what it is said to recognise the class by?

SCORES = ("accuracy", "margin")


def deletion_check(
    explained: ClassExplanation, games: Sequence[MaskedModel], repeats: int = 10, seed: int = 0
) -> pd.DataFrame:
    """Hide the top features in held-out photos of the class, and compare with hiding as much at random.

    Random sets are drawn from the other superpixels of the same photo until their area is as near as can be to the
    feature's, or from its other units until they are as many. Photos without the feature say nothing about it, nor do
    photos that have nothing else to hide; they are left out.

    Args:
        explained: the class and its features; the top ones of each kind are checked.
        games: of photos of the class, best such that were not explained (`LocalExplanation.masked_model`).
        repeats: random sets a photo and feature.
        seed: of the random sets.

    Returns:
        A row a feature: `kind`, `feature`, `n` photos, `hidden` and `random_hidden` (area, or number of units). For
        `accuracy` and `margin` (logit of the class less the highest other one) `..._drop`, the drop by hiding the
        feature, `..._random_drop`, `..._difference` of the two, and its 95 % interval `..._low` and `..._high`,
        bootstrapped over photos, NaN below two photos.

    Raises:
        UsageError: there are no games, one is None (an explanation that was loaded from a file), `repeats` is less
            than 1, or a game's model does not know the class.
    """
    if repeats < 1 or not len(games):
        raise UsageError(f"repeats={repeats} and {len(games)} games; use at least 1 of both")
    top = [("image", n) for n in explained.image_features.index[: explained.top]]
    top += [("text", n) for n in explained.text_features.index[: explained.top]]
    drops = [drop for at, game in enumerate(games) for drop in _drops(explained, top, game, at, repeats, seed)]
    return pd.DataFrame([_checked_feature(explained, *feature, drops) for feature in top])


@dataclass(frozen=True)
class _Drop:
    """What hiding a feature does on one photo: `scores` (2,2), of `SCORES`, by hiding it and at random."""

    kind: str
    number: int
    hidden: float
    random_hidden: float
    scores: np.ndarray


def _drops(
    explained: ClassExplanation, top: list[tuple[str, int]], game: MaskedModel | None, at: int, repeats: int, seed: int
) -> Iterator[_Drop]:
    """Yield what hiding each feature does on one photo; all masks are judged at once."""
    if game is None:
        raise UsageError(f"photo {at} has no game; explain it again rather than load it")
    label = list(game.classes).index(pick_name(game.classes, explained.name, "class"))
    own, rng = assign(explained, game), np.random.default_rng([seed, at])
    sizes = {"image": _areas(game, game.n_segments), "text": np.ones(game.n_tokens)}
    members = {"image": own.segments, "text": own.tokens}
    plans = []
    for kind, number in top:
        feature = members[kind] == number
        if feature.any() and not feature.all():
            random = [_random_like(feature, sizes[kind], rng) for _ in range(repeats)]
            plans.append((kind, number, np.stack([feature, *random])))
    hidden = {kind: [np.zeros((1, len(sizes[kind])), bool)] for kind in sizes}
    for kind, _, masks in plans:
        for each in sizes:
            hidden[each].append(masks if each == kind else np.zeros((len(masks), len(sizes[each])), bool))
    scores = _scores(game.logits(*(~np.concatenate(hidden[kind]) for kind in ("image", "text"))), label)
    for n, (kind, number, masks) in enumerate(plans):
        drop = scores[0] - scores[1 + n * (1 + repeats) :][: 1 + repeats]
        much = masks @ sizes[kind]
        yield _Drop(kind, number, much[0], much[1:].mean(), np.stack([drop[0], drop[1:].mean(0)], 1))


def _random_like(feature: np.ndarray, sizes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return other parts (S,) bool, in random order as many as are nearest in size to the feature."""
    order = rng.permutation(np.flatnonzero(~feature))
    many = int(np.abs(np.cumsum(sizes[order]) - sizes[feature].sum()).argmin()) + 1
    found = np.zeros(len(feature), bool)
    found[order[:many]] = True
    return found


def _scores(logits: np.ndarray, label: int) -> np.ndarray:
    """Return (N,2): whether the class wins, and by how much."""
    margin = logits[:, label] - np.delete(logits, label, 1).max(1)
    return np.stack([margin > 0, margin], 1).astype(float)


def _checked_feature(explained: ClassExplanation, kind: str, number: int, drops: list[_Drop]) -> dict[str, Any]:
    own = [drop for drop in drops if (drop.kind, drop.number) == (kind, number)]
    name = number if kind == "image" else explained.phrases[number].canonical
    nan = float("nan")
    row = {"kind": kind, "feature": name, "n": len(own)}
    for column in ("hidden", "random_hidden"):
        row[column] = float(np.mean([getattr(drop, column) for drop in own])) if own else nan
    for place, score in enumerate(SCORES):
        ours, random = np.array([drop.scores[place] for drop in own]).reshape(-1, 2).T
        low, high = bootstrap(ours - random) if len(own) > 1 else (nan, nan)
        means = [float(values.mean()) if own else nan for values in (ours, random, ours - random)]
        names = ("drop", "random_drop", "difference", "low", "high")
        row |= {f"{score}_{name}": value for name, value in zip(names, (*means, low, high), strict=True)}
    return row


# -- Models


def compare(explained: Mapping[str, ClassExplanation]) -> pd.DataFrame:
    """Compare what models recognise one class by.

    Weights of different models have different scales, so what is compared is a feature's part of all absolute weight,
    with the sign of its weight.

    Args:
        explained: name of each model, and what it recognises the class by.

    Returns:
        A column a model, and rows by `kind` and `feature`:

        - `share`, `text`: `ClassExplanation.text_share`.
        - `text`, phrase: part of each phrase that is among the top ones of any model; 0 where a model does not use it.
          Phrases are matched by spelling.
        - `image`, number: part of each model's cluster of that number. Encoders see differently, so that clusters of
          one number have nothing else in common.
        - `heat`, model: rank correlation of the heat maps of the two models, mean over photos that both explain with
          the same superpixels; NaN where there are none.

    Raises:
        UsageError: no model, or explanations of different classes.
    """
    if not explained:
        raise UsageError("no class explanation was given; give at least one")
    names = {found.name for found in explained.values()}
    if len(names) > 1:
        raise UsageError(f"explanations are of {' and '.join(sorted(names))}; compare models on one class")
    rows = {("share", "text"): {model: found.text_share for model, found in explained.items()}}
    rows |= {("text", phrase): parts for phrase, parts in _text_parts(explained).items()}
    for number in range(max(min(len(found.image_features), found.top) for found in explained.values())):
        parts = {model: _parts(found, "image") for model, found in explained.items()}
        rows["image", number] = {model: own[number] for model, own in parts.items() if number < len(own)}
    for model, found in explained.items():
        rows["heat", model] = {other: _agreement(found, theirs) for other, theirs in explained.items()}
    index = pd.MultiIndex.from_tuples(list(rows), names=["kind", "feature"])
    return pd.DataFrame(list(rows.values()), index=index, columns=list(explained))


def _parts(found: ClassExplanation, kind: str) -> np.ndarray:
    """Return (F,) the part of each feature in all absolute weight of the class, signed."""
    photos = [
        _Photo(at, e, e.explained.index(found.label)) for at, e in zip(found.photos, found.explanations, strict=True)
    ]
    total = sum(photo.total for photo in photos)
    own = sum(np.abs(getattr(photo, kind)).sum() for photo in photos)
    table = found.image_features if kind == "image" else found.text_features
    signed = np.sign(table["weight"].to_numpy(float)) * table["share"].to_numpy(float)
    return signed * own / total if total else signed


def _text_parts(explained: Mapping[str, ClassExplanation]) -> dict[str, dict[str, float]]:
    """Return the parts of phrases by model, for phrases among the top ones of any of them."""
    seen = [item for found in explained.values() for phrase in found.phrases for item in phrase.variants.items()]
    groups = group([text for text, _ in seen], [count for _, count in seen])
    place = {variant: group.canonical for group in groups for variant in group.variants}
    parts: dict[str, dict[str, float]] = {group.canonical: dict.fromkeys(explained, 0.0) for group in groups}
    top = set()
    for model, found in explained.items():
        for number, (phrase, part) in enumerate(zip(found.phrases, _parts(found, "text"), strict=True)):
            parts[place[phrase.canonical]][model] += float(part)
            if number < found.top:
                top.add(place[phrase.canonical])
    order = sorted(top, key=lambda phrase: (-max(map(abs, parts[phrase].values())), phrase))
    return {phrase: parts[phrase] for phrase in order}


def _agreement(a: ClassExplanation, b: ClassExplanation) -> float:
    """Return the mean rank correlation of heat maps of photos that both explain with the same superpixels."""
    theirs = dict(zip(b.photos, b.explanations, strict=True))
    found = []
    for photo, one in zip(a.photos, a.explanations, strict=True):
        other = theirs.get(photo)
        if other is not None and _same_picture(one, other):
            heats = [e.heat(e.explained.index(c.label))[None] for e, c in ((one, a), (other, b))]
            found.append(metrics.rank_correlation(*heats)[0])
    found = np.array(found)
    return float(np.nanmean(found)) if np.isfinite(found).any() else float("nan")


def _same_picture(a: LocalExplanation, b: LocalExplanation) -> bool:
    if a.segments is None or b.segments is None or a.segments.shape != b.segments.shape:
        return False
    return bool(np.array_equal(a.segments, b.segments) and torch.equal(a.image, b.image))
