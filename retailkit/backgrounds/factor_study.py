"""Train and test on one property of the background at a time, and compare picture by picture.

What *Object Recognition With Help From Background* does for each of its factors: the same pictures, the same network,
and one factor that is changed in the training and in the test pictures alike.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from retailkit import models, training
from retailkit.backgrounds.splits import VariantSplit
from retailkit.config import device
from retailkit.data.table import ProductDataset
from retailkit.metrics import Evaluation
from retailkit.models import ProductClassifier
from retailkit.training import EncodedDataset, History, TrainConfig


class Study:
    """A frozen encoder and, for each way of showing the pictures, linear heads that learn from it.

    Args:
        train: pictures to learn from.
        test: pictures to judge by, of the same classes and size.
        backbone: name of the encoder.
        seeds: one head each.
        epochs: passes over the training pictures; the last one is kept, and no picture chooses it.
    """

    def __init__(
        self, train: VariantSplit, test: VariantSplit, backbone: str, seeds: Sequence[int] = (0,), epochs: int = 20
    ) -> None:
        self.train, self.test, self.backbone = train, test, backbone
        self.config, self.seeds = TrainConfig(epochs=epochs, batch_size=128), list(seeds)
        self.model = models.build("image", train.classes, backbone, freeze=True).to(device()).eval()

    def on(self, train: VariantSplit, test: VariantSplit) -> Study:
        """Return the study of other pictures, at their size, with the same encoder."""
        other = copy.copy(self)
        other.train, other.test = train, test
        return other

    def degraded(self, how: str, amount: float) -> Study:
        """Return the study of the same pictures with worse masks, of those to learn from and to judge by alike."""
        return self.on(self.train.degraded(how, amount), self.test.degraded(how, amount))

    def cut_out(self) -> Study:
        """Return the study of the products on black."""
        return self.on(self.train.cut_out(), self.test.cut_out())

    def encoded(self, split: ProductDataset) -> EncodedDataset:
        """Return what the encoder sees of a split, from the cache where it has seen it."""
        return training.encode(self.model, split)

    def fit(self, split: ProductDataset) -> list[ProductClassifier]:
        """Return one head a seed, each as a model of features, that has learned from a split."""
        return [self._fitted(self.encoded(split), None, seed)[0] for seed in self.seeds]

    def judge(self, heads: Sequence[ProductClassifier], split: ProductDataset) -> list[Evaluation]:
        """Return how each head does on a split."""
        return [training.evaluate(head, self.encoded(split)) for head in heads]

    def learn(self, name: str, **options: Any) -> list[Evaluation]:
        """Train and test on the same variant.

        Args:
            name: key of `VARIANTS`.
            **options: of the variant.

        Returns:
            One evaluation a seed.
        """
        return self.judge(self.fit(self.train.variant(name, **options)), self.test.variant(name, **options))

    def curve(self, name: str, **options: Any) -> pd.DataFrame:
        """Return loss and test accuracy by epoch of the first seed: `epoch`, `loss`, `accuracy`.

        The test accuracy is watched and nothing else: it chooses no epoch of any result.
        """
        train, test = (self.encoded(scenes.variant(name, **options)) for scenes in (self.train, self.test))
        history = self._fitted(train, test, self.seeds[0])[1]
        return history.epochs.rename(columns={"val_top1": "accuracy"})[["epoch", "loss", "accuracy"]]

    def whole(self, head: ProductClassifier) -> ProductClassifier:
        """Return a head together with the encoder, to be shown pictures."""
        parts = (self.model.image_encoder, self.model.pooling)
        return ProductClassifier(self.model.classes, head.head, *parts, build_args=self.model.build_args).eval()

    def _fitted(
        self, train: EncodedDataset, test: EncodedDataset | None, seed: int
    ) -> tuple[ProductClassifier, History]:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            head = copy.deepcopy(self.model.head)
            for layer in head.modules():
                if isinstance(layer, torch.nn.Linear):
                    layer.reset_parameters()
        light = ProductClassifier(self.model.classes, head, pooling=self.model.pooling)
        return light, training.fit(light, train, test, replace(self.config, seed=seed))


def from_scratch(
    train: VariantSplit, backbone: str, epochs: int = 20, seed: int = 0
) -> tuple[ProductClassifier, History]:
    """Train a whole network from random weights, or load the very same training from the cache.

    Args:
        train: pictures to learn from, at their size.
        backbone: name of the encoder.
        epochs: passes over them; a training that was stopped goes on after its last one.
        seed: of weights, order and augmentation.
    """
    config = TrainConfig(mode="finetune", epochs=epochs, lr=2e-3, encoder_lr=2e-3, augment="light", seed=seed,
                         train_size=train.size)  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = models.build("image", train.classes, backbone, weights=None)
    return model, training.fit_once(model, train, None, config)


def spread(seen: EncodedDataset) -> np.ndarray:
    """Return (N,) how far each picture is from the others of its class, over how far it is from all others.

    Distances are between a picture's features, each divided by its standard deviation, and the mean of the others:
    1 says that a class is as diverse as all classes together, 0 that its pictures look the same. NaN for the only
    picture of its class.
    """
    values = seen.image.values.double()
    values = values / values.std(0).clamp(min=1e-9)
    labels = seen.labels
    same = (labels[:, None] == labels[None]).double().fill_diagonal_(0)
    others = 1 - torch.eye(len(labels), dtype=torch.float64)
    near, far = ((values - w @ values / w.sum(1, keepdim=True)).norm(dim=1) for w in (same, others))
    return (near / far).numpy()
