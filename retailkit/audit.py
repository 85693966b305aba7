"""What deserves a second look once photos are compared: near-duplicates, wrong labels, outliers, unreadable text.

The findings are advice. Limits were chosen on 21 classes of Grocery Store and checked on the 60 others: sets of ten
classes without faults give an empty list; all sixty at once give 12 labels of 1,200, no outlier and no near-duplicate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.neighbors import NearestNeighbors
from tqdm.auto import tqdm

from retailkit import models, training
from retailkit.data.advice import short, some
from retailkit.data.images import read_image
from retailkit.data.table import SPLITS, ProductData
from retailkit.data.text import unreadable
from retailkit.widgets.page import Section, page, thumbnail

COLUMNS = ["image", "split", "label", "kind", "score", "reason", "suggested_label", "other_image"]
KINDS = {  # in the order of the report -> what to do
    "near-duplicate across splits": "A photo that training has seen says nothing about new ones: keep one of each.",
    "label error": "Look at each photo, and at the one beside it. Move the photo where its label is wrong.",
    "near-duplicate": "Copies in one split count a photo twice: keep one of each.",
    "outlier": "No other photo is similar. Delete what shows no product, and keep a rare view.",
    "unreadable text": "Read the photo again, or correct the text in the table.",
}
SHOWN = 60  # photos of one kind on a page; the table has all
SIDE, CONTRAST = 32, 4.0  # pixels of the grey thumbnails that are compared; grey levels that count as contrast
DIFFERENCE = 0.2  # of two thumbnails at any pixel, in standard deviations; bursts differ by more
GROUPS, FOLDS = 3, 5  # groups that a class needs, so that its labels can be judged
ODDS = 6.0  # as many times more probable than its label another class has to be
ALONE, SPREADS = 0.5, 7.0  # of an outlier: least cosine distance; median absolute deviations from the median


@dataclass(frozen=True)
class Audit:
    """What was found in a data set."""

    rows: pd.DataFrame  # one row per finding: `COLUMNS`, the most important first
    images: int  # that were looked at
    notes: list[str]  # what could not be judged

    def sentences(self) -> list[str]:
        """Return what was found in plain sentences."""
        said = [f"{self.images} images were compared: {len(self.rows) or 'no'} findings."]
        for kind, rows in self.rows.groupby("kind", sort=False):
            said.append(f"{kind}: {len(rows)} ({some([short(path) for path in rows['image']])}).")
        return said + self.notes

    def to_html(self) -> str:
        """Return a page with thumbnails of the findings, at most `SHOWN` of each kind."""
        sections = [Section("", self.sentences())]
        for kind, rows in self.rows.groupby("kind", sort=False):
            left = f", the first {SHOWN}" if len(rows) > SHOWN else ""
            images = [_thumbnail(row) for row in rows.head(SHOWN).itertuples()]
            sections.append(Section(f"{kind.capitalize()}: {len(rows)}{left}", [KINDS[kind]], images))
        return page("Photos that deserve a second look", sections)


def audit(data: ProductData) -> Audit:
    """Look for near-duplicates, likely label errors, outliers and unreadable text.

    Labels and outliers are judged by the frozen features that `training` keeps in the cache.

    Args:
        data: a data set whose images can all be read.
    """
    model = models.build("image", data.classes)
    split = data.split("+".join(data.splits), model.input_size)
    vectors = torch.nn.functional.normalize(training.encode(model, split).image.values, dim=1).numpy()
    table = split.table.reset_index(drop=True)
    found = near_duplicates(table)
    errors, notes = label_errors(table, vectors)
    rows = pd.DataFrame([*found, *errors, *outliers(table, vectors), *texts(table)], columns=COLUMNS)
    order = rows["kind"].map(list(KINDS).index)
    rows = rows.assign(order=order).sort_values(["order", "score"], ascending=[True, False], kind="stable")
    return Audit(rows[COLUMNS].reset_index(drop=True), len(table), notes)


def _row(table: pd.DataFrame, at: int, kind: str, score: float, reason: str, **more: str) -> dict[str, Any]:
    facts = table.loc[at, ["image", "split", "label"]].to_dict()
    blank = {"suggested_label": "", "other_image": ""}
    return facts | {"kind": kind, "score": round(float(score), 4), "reason": reason} | blank | more


def near_duplicates(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a row for each pair of photos that are one photo, stored, resized or brightened in another way.

    Photos are compared as grey thumbnails. No pixel may differ by more than `DIFFERENCE` of the contrast, so that
    photos of one burst, and look-alikes with the same package design, are no duplicates. The score is 1 minus the
    largest difference. Cropped, turned and mirrored copies are not found.
    """
    bar = tqdm(table["image"], "near-duplicates", delay=2, leave=False)
    grey = np.stack([_grey(read_image(file)).ravel() for file in bar])
    # No pair that is close at every pixel lies further apart than this.
    near = NearestNeighbors(radius=DIFFERENCE * SIDE).fit(grey).radius_neighbors(return_distance=False)
    rank = table["split"].map(SPLITS[::-1].index).to_numpy()  # the test photo is named first
    rows = []
    for i, j in ((i, j) for i, others in enumerate(near) for j in others if (rank[i], i) < (rank[j], j)):
        if (difference := np.abs(grey[i] - grey[j]).max()) <= DIFFERENCE:
            one, other = table.loc[i], table.loc[j]
            torn = one["split"] != other["split"]
            reason = f"the same photo as {short(other['image'])}" + (f" in {other['split']}" if torn else "")
            reason += f"; the labels differ: {other['label']}" if one["label"] != other["label"] else ""
            kind = "near-duplicate across splits" if torn else "near-duplicate"
            rows.append(_row(table, i, kind, 1 - difference, reason, other_image=other["image"]))
    return rows


def _grey(pixels: np.ndarray) -> np.ndarray:
    """Return a photo as (SIDE,SIDE) grey values with mean 0 and standard deviation 1 (less where it is flat)."""
    grey = cv2.resize(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    grey = grey.astype(np.float32) - grey.mean()
    return grey / max(grey.std(), CONTRAST)


def label_errors(table: pd.DataFrame, vectors: np.ndarray) -> tuple[list[dict[str, Any]], list[str]]:
    """Return a row for each label that is likely wrong, and what could not be judged.

    Each photo is classified by a logistic regression that was fitted to other groups of photos. A label is doubtful if
    another class is at least `ODDS` times more probable. Ranking by out-of-sample probabilities is that of confident
    learning (C. Northcutt, L. Jiang, I. Chuang. JAIR 2021); its own rule, which estimates how many labels of each class
    are wrong, finds fewer of them in classes of twenty photos. The score is 1 minus the odds of the label.
    """
    groups = table["group"].where(table["group"] != "", table["image"])
    sizes = groups.groupby(table["label"]).nunique()
    few = sorted(sizes.index[sizes < GROUPS])
    notes = [f"Labels of classes with fewer than {GROUPS} photos or groups are not judged: {some(few)}."] if few else []
    at = np.flatnonzero(~table["label"].isin(few))
    names, labels = np.unique(table["label"].to_numpy(dtype=str)[at], return_inverse=True)
    if len(names) < 2:
        return [], [*notes, "Labels are not judged: that needs two classes with enough photos."]
    probs = _out_of_fold(vectors[at], labels, groups.to_numpy()[at], min(FOLDS, int(sizes.max())))
    own = probs[np.arange(len(at)), labels]
    odds = own / probs.max(1)  # of the label
    rows = []
    # A label that no other group of the fold has gets no probability at all: nothing is known about it.
    for k in np.flatnonzero((own > 0) & (odds <= 1 / ODDS)):
        suggested = probs[k].argmax()
        there = at[labels == suggested]
        nearest = there[(vectors[there] @ vectors[at[k]]).argmax()]
        reason = f"looks like {names[suggested]} ({probs[k, suggested]:.2f}), not like its label ({own[k]:.2f})"
        shown = {"suggested_label": names[suggested], "other_image": table.at[nearest, "image"]}
        rows.append(_row(table, at[k], "label error", 1 - odds[k], reason, **shown))
    return rows, notes


def _out_of_fold(vectors: np.ndarray, labels: np.ndarray, groups: np.ndarray, folds: int) -> np.ndarray:
    """Return the probabilities (N,K) of each photo, from photos of other groups."""
    probs = np.zeros((len(labels), labels.max() + 1))
    splits = list(StratifiedGroupKFold(folds, shuffle=True, random_state=0).split(vectors, labels, groups))
    for train, test in tqdm(splits, "labels", delay=2, leave=False):
        model = LogisticRegression(C=30, max_iter=1000).fit(vectors[train], labels[train])
        probs[np.ix_(test, model.classes_)] = model.predict_proba(vectors[test])
    return probs


def outliers(table: pd.DataFrame, vectors: np.ndarray) -> list[dict[str, Any]]:
    """Return a row for each photo that no other photo resembles; the score is the cosine distance to the nearest."""
    if len(table) < 3:
        return []
    distances = NearestNeighbors(n_neighbors=2, metric="cosine").fit(vectors).kneighbors(vectors)[0][:, 1]
    usual = np.median(distances)
    spread = 1.4826 * np.median(np.abs(distances - usual))  # the standard deviation, if they were normal
    limit = max(ALONE, usual + SPREADS * spread)
    reason = "the most similar photo has a cosine similarity of {:.2f}; {:.2f} is usual here"
    return [
        _row(table, k, "outlier", distances[k], reason.format(1 - distances[k], 1 - usual))
        for k in np.flatnonzero(distances > limit)
    ]


def texts(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a row for each text that cannot be read; photos without a text are left out."""
    rows = []
    for _, part in table[table["text"] != ""].groupby("label"):
        for at, (share, reason) in zip(part.index, unreadable(part["text"].tolist()), strict=True):
            if reason:
                rows.append(_row(table, at, "unreadable text", share, f"{reason}: {table.at[at, 'text'][:40]!r}"))
    return rows


def _thumbnail(row: Any) -> Any:
    """Return a photo, beside the other one if there is one, as an image of a page."""
    files = [row.image, *([row.other_image] if row.other_image else [])]
    return thumbnail(files, f"Photo of {row.label}", f"{row.label}, {short(row.image)} ({row.split}): {row.reason}")
