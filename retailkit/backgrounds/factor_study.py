"""Train and test on one property of the background at a time, and compare picture by picture.

What *Object Recognition With Help From Background* does for each of its factors: the same pictures, the same network,
and one factor that is changed in the training and in the test pictures alike.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch

from retailkit import models, training
from retailkit.backgrounds.splits import Scenes, VariantSplit
from retailkit.cache import code_fingerprint, digest
from retailkit.config import UserError, cache_dir, device, pick
from retailkit.data.table import ProductDataset, Sample
from retailkit.inference import compiled
from retailkit.metrics import Evaluation, crossed_bootstrap, hits
from retailkit.models import ProductClassifier
from retailkit.training import EncodedDataset, History, TrainConfig

# Changes in accuracy that *Object Recognition With Help From Background* reports, as fractions (low, high).
PUBLISHED = {
    "only_fg": (0.03, 0.03),  # 11 classes of ImageNet with good masks
    "generic_paste": (-0.25, -0.20),  # 4 classes on the backgrounds of cash machines, EfficientNet-B0
    "small_without_background": (-0.05, -0.05),  # microscopy, where the object is small
}

# -- Pictures: other masks, no background, other options for each picture.


class Cutouts(Scenes):
    """Scenes whose background is black before a factor is applied: small products without their background, say.

    Args:
        scenes: what the products are cut out of.
    """

    def __init__(self, scenes: Scenes) -> None:
        self.__dict__.update(vars(scenes))
        self._hold(scenes.rows, scenes.images * scenes.masks, scenes.masks, scenes.labels)
        self.source = scenes

    @cached_property
    def outlines(self) -> str:
        """Return what tells cached features apart: by which masks they were cut out, and the masks now."""
        return f"cut out {self.source.outlines} {super().outlines}"

    def _read_at(self, size: int) -> Cutouts:
        cut = Cutouts(self.source.at(size))
        return cut if self.recut == self.source.recut else cut.with_recut(*self.recut)


class DealtSplit(ProductDataset):
    """A split in which each picture has options of its own, such as a shadow to a side that its class chooses.

    Args:
        scenes: the pictures.
        name: of a variant.
        options: those that are dealt.
        dealt: (N,) which of them each picture gets.
    """

    def __init__(self, scenes: Scenes, name: str, options: Sequence[dict[str, Any]], dealt: Sequence[int]) -> None:
        self.parts = [scenes.variant(name, **some) for some in options]
        self.scenes, self.name, self.options, self.dealt = scenes, name, list(options), np.asarray(dealt)
        self.__dict__.update({k: v for k, v in vars(self.parts[0]).items() if k not in vars(self)})

    def with_options(self, **changes: Any) -> DealtSplit:
        """Return a copy with another `size`; `reads` changes nothing, and augmentation is none."""
        size = changes.get("size", self.size)
        scenes = self.scenes if size == self.size else self.scenes.at(size)
        return DealtSplit(scenes, self.name, self.options, self.dealt)

    @property
    def appearance(self) -> list[Any]:
        """Return what pictures depend on besides their files."""
        return [*self.parts[0].appearance, repr(self.options), self.dealt.tolist()]

    def __getitem__(self, position: int) -> Sample:
        return self.parts[self.dealt[position]][position]


# Options that class k of K chooses, for factors that light leaves behind a product.
LIGHT: dict[str, Callable[[int, int], dict[str, float]]] = {
    "shadow": lambda k, count: {"angle": 360 * k / count, "distance": 0.2, "strength": 0.9},
    "reflection": lambda k, count: {"strength": 0.9 * k / max(1, count - 1)},
}


def lit(scenes: Scenes, name: str, how: str, seed: int = 0) -> DealtSplit:
    """Return the pictures with a shadow or a reflection that goes with the class, or does not.

    Each class has a side that its shadows fall to, or a strength of its reflections.

    Args:
        scenes: the pictures.
        name: key of `LIGHT`.
        how: `own` gives each picture what its class chooses, `other` what another class chooses, drawn for each
            picture, and `any` what any class chooses.
        seed: of the draws.
    """
    count, rng = len(scenes.split.classes), np.random.default_rng(seed)
    own = scenes.labels.numpy()
    shift = {
        "own": lambda: np.zeros(len(own), dtype=int),
        "other": lambda: rng.integers(1, max(2, count), len(own)),
        "any": lambda: rng.integers(count, size=len(own)),
    }
    dealt = (own + shift[pick(shift, how, "way of light")]()) % count
    make = LIGHT[pick(LIGHT, name, "factor of light")]
    return DealtSplit(scenes, name, [make(k, count) for k in range(count)], dealt)


# -- Learning.


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
        self, train: Scenes, test: Scenes, backbone: str, seeds: Sequence[int] = (0,), epochs: int = 20
    ) -> None:
        self.train, self.test, self.backbone = train, test, backbone
        self.config, self.seeds = TrainConfig(epochs=epochs, batch_size=128, bf16=False), list(seeds)
        self.model = models.build("image", train.split.classes, backbone, freeze=True).to(device()).eval()
        self.fast = self._quickly(train.split.size)

    def _quickly(self, size: int) -> ProductClassifier:
        """Return the model with an encoder that is exact and twice as fast on a CPU; PyTorch itself on a GPU."""
        return compiled(self.model)

    def on(self, train: Scenes, test: Scenes) -> Study:
        """Return the study of other pictures, at their size, with the same encoder."""
        other = copy.copy(self)
        other.train, other.test = train, test
        if train.split.size != self.train.split.size:
            other.fast = self._quickly(train.split.size)
        return other

    def recut(self, how: str, amount: float) -> Study:
        """Return the study of the same pictures with worse masks, of those to learn from and to judge by alike."""
        return self.on(self.train.with_recut(how, amount), self.test.with_recut(how, amount))

    def cut_out(self) -> Study:
        """Return the study of the products on black."""
        return self.on(Cutouts(self.train), Cutouts(self.test))

    def encoded(self, split: ProductDataset) -> EncodedDataset:
        """Return what the encoder sees of a split, from the cache where it has seen it."""
        return training.encode_cached(self.fast, split, 1, self.config)

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
    files = training.data_fingerprint(train.data, train.rows, text=False)
    key = digest(backbone, config, train.appearance, files, code_fingerprint(__name__))
    path = cache_dir("factors") / f"{key}.safetensors"
    if path.exists():
        try:
            return training.load_checkpoint(path)[:2]
        except UserError:
            path.unlink()  # cut off by a kill: trained again below
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = models.build("image", train.classes, backbone, weights=None)
    return model, training.fit_and_save(model, path, train, None, config, path.with_suffix(".pt"))


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


def gain_beyond(
    ours: Sequence[Evaluation],
    theirs: Sequence[Evaluation],
    control_ours: Sequence[Evaluation],
    control_theirs: Sequence[Evaluation],
) -> tuple[float, float, float]:
    """Return how much larger a difference in accuracy is than that of a control, and its 95 % interval.

    All four have seen the same pictures with the same seeds; the comparison is by picture and seed.
    """
    a, b, c, d = (hits(part) for part in (ours, theirs, control_ours, control_theirs))
    values = ((a - b) - (c - d)).to_numpy()
    return float(np.nanmean(values)), *crossed_bootstrap(values)


def between(accuracies: Sequence[float], lower: float, upper: float) -> float:
    """Return how far inside two bounds all accuracies lie: the smallest distance to a bound, negative outside."""
    return min(min(upper - accuracy, accuracy - lower) for accuracy in accuracies)


def published(name: str | None) -> str:
    """Return what source 4 prints of a change in accuracy; empty where it prints nothing.

    Args:
        name: key of `PUBLISHED`, or None.
    """
    if name is None:
        return ""
    return " to ".join(f"{value:+.2f}" for value in dict.fromkeys(PUBLISHED[pick(PUBLISHED, name, "published change")]))
