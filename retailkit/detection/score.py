"""Exact scores of detections: average precision, and how well the boxes of targets fit, near a region's edge or not.

Detections are a list, one dict per image: `boxes` (N,4), `labels` (N,), `scores` (N,), best first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torchvision.ops import box_iou

from retailkit.data.boxes import Scenes
from retailkit.metrics import Interval, crossed_draws, crossed_means, middle

THRESHOLDS = tuple(np.arange(0.5, 1.0, 0.05).round(2))  # COCO's: AP is the mean over these
SURE = 0.5  # score from which on a detection counts as an answer
NEAR = 0.1  # of a target's size: so close to the region's edge it is called near
DRAWS = 500  # of images and seeds

Detections = Sequence[dict[str, np.ndarray]]


@dataclass(frozen=True)
class Ranking:
    """All detections of a class, best first."""

    hits: np.ndarray  # (N,T) bool, one column per threshold
    image: np.ndarray  # (N,) where each was made
    truths: np.ndarray  # (P,) number of true boxes of each image

    def average_precision(self, weights: np.ndarray | None = None) -> np.ndarray:
        """Return AP, (B,T), the area below the precision reached at each recall or beyond; NaN without truths.

        `weights` (B,P) says how often each image counts, as draws of a bootstrap do; None counts each once.
        """
        weights = np.ones((1, len(self.truths))) if weights is None else weights
        total, counts = weights @ self.truths, weights[:, self.image]
        seen = np.maximum(counts.cumsum(1), 1e-12)
        columns = []
        for hit in self.hits.T:
            gained = counts * hit
            precision = gained.cumsum(1) / seen
            reached = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            columns.append((gained * reached).sum(1))
        areas = np.array(columns)
        return np.divide(areas, total, out=np.full_like(areas, np.nan), where=total > 0).T


def rank(detections: Detections, scenes: Scenes, label: int) -> Ranking:
    """Rank a class's detections and say which are hits.

    As COCO does, an image's detections choose in the order of their scores, each the free true box that it overlaps
    most, by at least the threshold; every further detection of a taken box is a miss.
    """
    hits, scores, images, truths = [], [], [], []
    for index, detected in enumerate(detections):
        true = scenes.boxes[index][scenes.labels[index] == label]
        own = detected["labels"] == label
        order = np.argsort(-detected["scores"][own], kind="stable")
        overlaps = _iou(detected["boxes"][own][order], true.numpy())
        hits.append(np.stack([_greedy(overlaps, t) for t in THRESHOLDS], axis=1))
        scores.append(detected["scores"][own][order])
        images.append(np.full(len(order), index))
        truths.append(len(true))
    best = np.argsort(-np.concatenate(scores), kind="stable")
    return Ranking(np.concatenate(hits)[best], np.concatenate(images)[best], np.array(truths))


def _iou(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Return intersection over union, (N,M), of boxes (N,4) and (M,4)."""
    ours, theirs = (torch.as_tensor(np.asarray(part, dtype=np.float64)).reshape(-1, 4) for part in (ours, theirs))
    return box_iou(ours, theirs).numpy()


def _greedy(overlaps: np.ndarray, threshold: float) -> np.ndarray:
    """Return which of N detections, best first, find a free true box of M; `overlaps` is (N,M)."""
    free, hits = np.ones(overlaps.shape[1], bool), np.zeros(len(overlaps), bool)
    for place, row in enumerate(overlaps):
        open_to = np.where(free & (row >= threshold), row, -1.0)
        if open_to.size and open_to.max() >= 0:
            free[open_to.argmax()], hits[place] = False, True
    return hits


def precision_by_class(runs: Sequence[Detections], scenes: Scenes, seed: int = 0) -> pd.DataFrame:
    """Return AP of each class that occurs, averaged over the runs of several seeds on the same images.

    Columns: `name`, `ap` (COCO's thresholds), `low`, `high` (95 %, bootstrap over images and seeds), `ap50`, `ap75`,
    `n` (true boxes).
    """
    present = sorted({int(label) for row in scenes.labels for label in row})
    rows = []
    for label in present:
        rankings = [rank(run, scenes, label) for run in runs]
        each = np.mean([r.average_precision()[0] for r in rankings], axis=0)
        low, high = middle(_draws(rankings, seed))
        facts = (each.mean(), low, high, each[0], each[THRESHOLDS.index(0.75)], int(rankings[0].truths.sum()))
        rows.append((scenes.classes[label - 1], *facts))
    return pd.DataFrame(rows, columns=["name", "ap", "low", "high", "ap50", "ap75", "n"])


def ap_change(
    ours: Sequence[Detections], theirs: Sequence[Detections], scenes: Scenes, names: Sequence[str], seed: int = 0
) -> tuple[float, Interval]:
    """Return by how much AP is higher in `ours`, with its 95 % interval; both are drawn together.

    `ours` and `theirs` are detections of the same seeds on the same images; the mean is taken over the classes `names`,
    each of which must occur.
    """
    labels = [scenes.classes.index(name) + 1 for name in names]
    values, drawn = [], []
    for label in labels:
        one, other = ([rank(run, scenes, label) for run in runs] for runs in (ours, theirs))
        values.append(np.mean([a.average_precision() - b.average_precision() for a, b in zip(one, other, strict=True)]))
        drawn.append(_draws(one, seed) - _draws(other, seed))
    return float(np.mean(values)), middle(np.nanmean(drawn, axis=0))


def _draws(rankings: Sequence[Ranking], seed: int) -> np.ndarray:
    """Return (B,) AP on images and seeds drawn with replacement; the same draws for the same seed."""
    images, seeds = crossed_draws((len(rankings[0].truths), len(rankings)), DRAWS, seed)
    weights, chosen = images.astype(float), seeds / len(rankings)
    return sum(chosen[:, k] * r.average_precision(weights).mean(1) for k, r in enumerate(rankings))


def match_targets(detections: Detections, scenes: Scenes) -> pd.DataFrame:
    """Return how well each product is boxed, one row per true box that is no region.

    Columns: `image`, `name`, `target` (whether the region comes with it), `iou` (of the answer of its class that
    fits best; 0 without an answer), `edge` (distance from the nearest edge of a region's box in units of the
    product's size; 0 where the edge runs through it, NaN without a region) and `near` (`edge` at most `NEAR`).
    """
    rows = []
    for index, detected in enumerate(detections):
        boxes, labels = (part.numpy() for part in (scenes.boxes[index], scenes.labels[index]))
        regions = boxes[labels == scenes.region_label]
        for box, label in zip(boxes, labels, strict=True):
            if label == scenes.region_label:
                continue
            name = scenes.classes[label - 1]
            answers = detected["boxes"][(detected["labels"] == label) & (detected["scores"] >= SURE)]
            iou = float(_iou(answers, box[None]).max(initial=0.0))
            rows.append((index, name, name in scenes.targets, iou, _distance_to_edge(box, regions)))
    table = pd.DataFrame(rows, columns=["image", "name", "target", "iou", "edge"])
    return table.assign(near=table["edge"] <= NEAR)


def fit_by_image(runs: Sequence[Detections], scenes: Scenes, group: str) -> np.ndarray:
    """Return the mean `iou` of a group of products, (P,S) by image and seed; NaN where an image shows none.

    `group` is a query on the columns of `match_targets`, such as `target and near`.
    """
    tables = [match_targets(detected, scenes).query(group) for detected in runs]
    return np.stack([t.groupby("image")["iou"].mean().reindex(range(len(scenes))) for t in tables], axis=1)


def gap(one: np.ndarray, other: np.ndarray, seed: int = 0) -> tuple[float, Interval]:
    """Return by how much the mean of `one` (P,S) exceeds that of `other`, and its 95 % interval.

    Images and seeds are drawn with replacement, the same for both; NaN counts in neither mean.
    """
    ours, theirs = (crossed_means(values, 2 * DRAWS, seed) for values in (one, other))
    return float(np.nanmean(one) - np.nanmean(other)), middle(ours - theirs)


def _distance_to_edge(box: np.ndarray, regions: np.ndarray) -> float:
    """Return how far a box (4,) is from the nearest edge of any region (N,4); see `match_targets`."""
    if not len(regions):
        return float("nan")
    inside = np.hstack([box[:2] - regions[:, :2], regions[:, 2:] - box[2:]]).min(1)
    apart = np.maximum(np.maximum(regions[:, :2] - box[2:], box[:2] - regions[:, 2:]), 0)
    gaps = np.where(inside >= 0, inside, np.hypot(*apart.T))
    return float(gaps.min()) / float(np.sqrt((box[2] - box[0]) * (box[3] - box[1])))
