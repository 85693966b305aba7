"""Folds that keep look-alikes together, and heads that judge only images that they have not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from sklearn.cluster import AgglomerativeClustering
from sklearn.model_selection import StratifiedGroupKFold

from retailkit import models
from retailkit.config import UsageError
from retailkit.data.table import ProductData
from retailkit.data.text import misread
from retailkit.metrics import Evaluation
from retailkit.models import Features, ProductClassifier
from retailkit.training.encoded import EncodedDataset, encode
from retailkit.training.runs import TrainSpec, fit_head, fit_once

CLUSTERS = 5  # of similar images in each class; fewer make folds harder


def folds(data: ProductData, count: int = 5, groups: Sequence[str] | None = None) -> np.ndarray:
    """Deal all images of `data` into three or more folds so that those that look alike stay together.

    Photos of one shop are near-copies of each other, and a fold that holds the copy of a training photo tests memory.
    So each class is cut into clusters of similar images (Ward linkage of frozen EfficientNet-Lite0 features), and
    whole clusters go to a fold. The result (N,) is the fold of each row, 0 to count - 1.

    `groups` (N,) says what stays together where that is known, such as bursts of rendered images; None makes clusters.
    """
    if count < 3:
        raise UsageError(f"{count} folds are too few: one tests, one validates, the others train; use at least 3")
    groups = _look_alikes(data) if groups is None else groups
    splitter, fold_of = StratifiedGroupKFold(count, shuffle=True, random_state=0), np.empty(len(data), dtype=int)
    for fold, (_, rows) in enumerate(splitter.split(fold_of, data.table["label"], groups)):
        fold_of[rows] = fold
    return fold_of


def _look_alikes(data: ProductData) -> np.ndarray:
    """Return the number of the cluster of each image, (N,)."""
    model = models.build("image", data.classes)
    images = data.split("+".join(data.splits), model.input_size)
    vectors = torch.nn.functional.normalize(encode(model, images).image.values, dim=1).numpy()
    clusters = np.empty(len(data), dtype=int)
    for label in np.unique(images.labels):
        rows = np.flatnonzero(images.labels == label)
        size = min(CLUSTERS, len(rows))
        parts = AgglomerativeClustering(size).fit_predict(vectors[rows]) if size > 1 else 0
        clusters[rows] = label * CLUSTERS + parts
    return clusters


def repetition(data: ProductData, seed: int) -> ProductData:
    """Return the data of one repetition: as they are where there is a test split, else with a fold as the test split.

    The seed decides the fold, so that five seeds test every image once.
    """
    if "test" in data.splits:
        return data
    split = np.where(folds(data) == seed % 5, "test", "train")
    return replace(data, table=data.table.assign(split=split))


@dataclass(frozen=True)
class CrossValidation:
    """One model per fold, all with the same frozen encoders: each image is judged by the one that has not seen it."""

    models: list[ProductClassifier]
    folds: np.ndarray  # (N,) fold of each image
    encoded: EncodedDataset  # all N images

    def evaluate(self, text: Features | None = None, images: bool = True) -> Evaluation:
        """Classify every image by the model that has not seen it.

        Args:
            text: features of N other texts; None keeps those that were read.
            images: False leaves the images out; an image without a text then has no answer.
        """
        image, text = self.encoded.image if images else None, text or self.encoded.text
        model = self.models[0]
        probs = torch.zeros(len(self.encoded), len(model.classes))
        given = model.by_modality(image, text)
        answered = torch.stack([f.available for f in given.values()]).any(0) | model.head.answers_without_features
        for fold, model in enumerate(self.models):
            rows = torch.from_numpy(self.folds == fold) & answered
            if rows.any():
                some = [features and features.rows(rows) for features in (image, text)]
                with torch.inference_mode():
                    probs[rows] = model.classify(*some).softmax(1)
        return Evaluation(probs.numpy(), self.encoded.labels.numpy(), list(model.classes), self.encoded.rows)


def cross_validate(spec: TrainSpec, data: ProductData, fold_of: np.ndarray) -> CrossValidation:
    """Train (or load) a head for each fold on frozen features.

    The fold after the one that tests chooses epoch and fusion weights, the others are for training. No encoder learns
    anything from the data, so that no fold knows of another. `fold_of` (N,) comes from `folds`.
    """
    model = spec.build(data.classes).freeze().eval()
    images = data.split("+".join(data.splits), spec.size or model.input_size)
    encoded = encode(model, images)
    fold_of, trained = fold_of[images.rows], []
    for fold in range(fold_of.max() + 1):
        validates = (fold + 1) % (fold_of.max() + 1)
        train, val = ~np.isin(fold_of, (fold, validates)), fold_of == validates
        parts = (encoded[np.flatnonzero(rows)] for rows in (train, val))
        trained.append(fit_head(model, *parts, spec.config)[0])
    return CrossValidation(trained, fold_of, encoded)


def one_shot(spec: TrainSpec, data: ProductData, views: int) -> CrossValidation:
    """Train (or load) one head on augmented views of every image, for data with one image per class.

    Words of each view but the first are misread a little. No image is unseen: this says nothing about accuracy.
    """
    model = spec.build(data.classes).freeze()
    size, seed = spec.size or model.input_size, spec.config.seed
    several = data.select(np.repeat(np.arange(len(data)), views))
    texts = [misread(text, 0.1 * (k % views > 0), seed + k) for k, text in enumerate(several.table["text"])]
    several = replace(several, table=several.table.assign(split="train", text=texts))
    config = replace(spec.config, augment="light", train_size=size)
    fit_once(model, several.split("train", size), config=config)
    encoded = encode(model, data.split("+".join(data.splits), size))
    return CrossValidation([model], np.zeros(len(data), dtype=int), encoded)
