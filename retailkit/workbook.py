"""What the notebooks share: the data set at the size of the profile, the reference model, and the first step of a run.

A notebook asks for data and models by profile here, so that sixteen notebooks agree on both and the slow parts
(rendering, OCR, frozen features) happen once.
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from sklearn.cluster import AgglomerativeClustering
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from retailkit import data as datasets
from retailkit import models, training
from retailkit.config import UsageError, data_root, profile
from retailkit.data import ocr
from retailkit.data.table import ProductData, ProductDataset
from retailkit.data.text import misread
from retailkit.inference import Predictor
from retailkit.metrics import Evaluation
from retailkit.models import Features, ProductClassifier
from retailkit.models.pooling import Head
from retailkit.training import EncodedDataset, TrainConfig, TrainSpec

if TYPE_CHECKING:
    from retailkit.explain.lime import LocalExplanation
    from retailkit.explain.masking import MaskedModel


def load(
    dataset: str = "synthetic",
    root: str | Path | None = None,
    profile_name: str = "fast",
    seed: int = 0,
    **options: Any,
) -> ProductData:
    """Load a data set as large as the profile allows.

    Args:
        dataset: name in `data.DATASETS`.
        root: its folder; empty or None takes the default.
        profile_name: `fast` or `full`.
        seed: of the built-in set's pictures.
        **options: the reader's options; they win over the profile's.
    """
    if dataset == "synthetic":
        options = {"per_class": profile(profile_name).per_class, "seed": seed} | options
    return datasets.load(dataset, root or None, **options)


def read(data: ProductData, profile_name: str = "fast") -> ProductData:
    """Return `data` with the words that the OCR engine reads, on as many pictures as the profile allows."""
    return ocr.add_text(data, limit=profile(profile_name).ocr_limit)


def probe(
    dataset: str = "synthetic",
    root: str | Path | None = None,
    profile_name: str = "fast",
    seed: int = 0,
    backbone: str | None = None,
    weights: str | None = "auto",
    **config: Any,
) -> TrainSpec:
    """Return the reference model: a linear classifier on features of a frozen backbone.

    Args:
        dataset: name in `data.DATASETS`.
        root: its folder.
        profile_name: gives backbone and epochs.
        seed: of the head and the order of images.
        backbone: another one than the profile's.
        weights: of the backbone; None starts it at random.
        **config: changes of `TrainConfig`.
    """
    chosen = profile(profile_name)
    settings = {"mode": "frozen", "epochs": chosen.epochs, "batch_size": 128, "seed": seed} | config
    return TrainSpec(
        dataset=dataset,
        root=str(root) if root else None,
        model="image",
        model_options={"backbone": backbone or chosen.backbone, "weights": weights},
        config=TrainConfig(**settings),
    )


def finetune(
    dataset: str = "synthetic",
    root: str | Path | None = None,
    profile_name: str = "fast",
    seed: int = 0,
    backbone: str | None = None,
    **config: Any,
) -> TrainSpec:
    """Return the reference fine-tuning: the whole network learns on augmented pictures smaller than the test ones.

    Args:
        dataset: name in `data.DATASETS`.
        root: its folder.
        profile_name: gives backbone, epochs and training size.
        seed: of the head, the order of images and augmentation.
        backbone: another one than the profile's.
        **config: changes of `TrainConfig`.
    """
    chosen = profile(profile_name)
    settings = {
        "mode": "finetune",
        "epochs": chosen.finetune_epochs,
        "augment": "standard",
        "train_size": chosen.finetune_size,
        "ema": 0.99 if chosen.finetune_epochs > 5 else 0.0,
        "seed": seed,
    }
    return TrainSpec(
        dataset=dataset,
        root=str(root) if root else None,
        model="image",
        model_options={"backbone": backbone or chosen.backbone, "dropout": 0.3},
        config=TrainConfig(**(settings | config)),
    )


def packshot_head(
    dataset: str,
    root: str | Path | None,
    model: str,
    backbone: str,
    seed: int,
    size: int = 160,
    criterion: str = "cross_entropy",
    criterion_options: dict[str, Any] | None = None,
    epochs: int = 10,
    mode: str = "frozen",
    **options: Any,
) -> TrainSpec:
    """Return a head that learns from augmented packshots on features of a backbone; see `resample`.

    Args:
        dataset: name in `data.DATASETS`.
        root: its folder.
        model: `image` or `lca`.
        backbone: whose features or maps.
        seed: of the head, the order of images and augmentation.
        size: side of training and test pictures.
        criterion: name in `losses.CRITERIA`.
        criterion_options: its options.
        epochs: passes over all views.
        mode: `frozen`, or `finetune` where the backbone learns too.
        **options: of the model, such as `width` of `lca`.
    """
    return TrainSpec(
        dataset=dataset,
        root=str(root) if root else None,
        model=model,
        model_options={"backbone": backbone, **options},
        size=size,
        config=TrainConfig(
            mode=mode,
            epochs=epochs,
            batch_size=64 if mode == "frozen" else 32,
            lr=1e-3,
            criterion=criterion,
            criterion_options=criterion_options or {},
            augment="packshot",
            train_size=size,
            seed=seed,
        ),
    )


def resample(data: ProductData, times: int, seed: int) -> ProductData:
    """Return `data` with a bootstrap sample of its training pictures, `times` as many as there are.

    Few packshots under random augmentation: each occurs about `times` times, each time looking different.
    """
    train = np.flatnonzero(data.table["split"] == "train")
    rest = np.flatnonzero(data.table["split"] != "train")
    drawn = np.random.default_rng(seed).choice(train, times * len(train))
    return data.select(np.concatenate([np.sort(drawn), rest]))


def folds(data: ProductData, count: int = 5, clusters: int = 5, seed: int = 0) -> np.ndarray:
    """Deal the pictures of `data` into folds so that those that look alike stay together.

    Photos of one shop are near-copies of each other, and a fold that holds the copy of a training photo tests memory.
    So each class is cut into `clusters` of similar pictures (Ward linkage of frozen EfficientNet-Lite0 features), and
    whole clusters go to a fold.

    Args:
        data: all of its pictures are dealt, whatever their split.
        count: folds, three at least.
        clusters: in each class; fewer are harder.
        seed: of the dealing.

    Returns:
        (N,) fold of each row, 0 to count - 1.

    Raises:
        UsageError: fewer than three folds.
    """
    if count < 3:
        raise UsageError(f"{count} folds are too few: one is judged, one chooses, the others are learned from; use 3")
    model = models.build("image", data.classes)
    everything = data.split("+".join(data.splits), model.input_size)
    seen = training.encode_cached(model, everything, 1, TrainConfig()).image.values
    vectors, labels = torch.nn.functional.normalize(seen, dim=1).numpy(), everything.labels
    groups = np.empty(len(labels), dtype=int)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        size = min(clusters, len(rows))
        parts = AgglomerativeClustering(size).fit_predict(vectors[rows]) if size > 1 else 0
        groups[rows] = label * clusters + parts
    dealt = np.empty(len(data), dtype=int)
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    for fold, (_, rows) in enumerate(splitter.split(vectors, labels, groups)):
        dealt[everything.rows[rows]] = fold
    return dealt


def repetition(data: ProductData, seed: int, count: int = 5) -> ProductData:
    """Return the data of one repetition: as they are where there is a test split, else with a fold as the test split.

    Args:
        data: the data set.
        seed: of the repetition; it decides the fold, so that five seeds see every picture once.
        count: folds; see `folds`.
    """
    if "test" in data.splits:
        return data
    split = np.where(folds(data, count) == seed % count, "test", "train")
    return replace(data, table=data.table.assign(split=split))


def inside_train(data: ProductData, count: int = 5) -> list[ProductData]:
    """Return a data set for each fold of the training pictures: it is `test`, the next one `val`, the others `train`.

    What is chosen on these has seen none of the other splits; look-alikes stay together (see `folds`).
    """
    shown = data.select((data.table["split"] == "train").to_numpy())
    dealt = folds(shown, count)
    parts = []
    for fold in range(count):
        split = np.select([dealt == fold, dealt == (fold + 1) % count], ["test", "val"], "train")
        parts.append(replace(shown, table=shown.table.assign(split=split)))
    return parts


@dataclass(frozen=True)
class CrossValidation:
    """One head a fold on features that were encoded once: each picture is judged by the head that has not seen it.

    Attributes:
        model: with the encoders, and a head that has learned nothing.
        heads: one a fold.
        folds: (N,) fold of each picture.
        seen: what the encoders say of all pictures.
    """

    model: ProductClassifier
    heads: list[Head]
    folds: np.ndarray
    seen: EncodedDataset

    def evaluate(self, words: Features | None = None, pictures: bool = True) -> Evaluation:
        """Judge every picture by the head that has not seen it.

        Args:
            words: what `encode_texts` made of N other texts; None keeps those that were read.
            pictures: False leaves the pictures out, so that the words speak alone; a picture without words then has
                no answer.
        """
        image, text = self.seen.image if pictures else None, words or self.seen.text
        probs = torch.zeros(len(self.seen), len(self.model.classes))
        given = self.model.by_modality(image, text)
        answered = torch.stack([f.available for f in given.values()]).any(0) | self.model.head.answers_without_features
        for fold, head in enumerate(self.heads):
            rows = torch.from_numpy(self.folds == fold) & answered
            if rows.any():
                some = [features and features.rows(rows) for features in (image, text)]
                with torch.inference_mode():
                    probs[rows] = self.with_head(head).classify(*some).softmax(1)
        return Evaluation(probs.numpy(), self.seen.labels.numpy(), list(self.model.classes), self.seen.rows)

    def with_head(self, head: Head) -> ProductClassifier:
        """Return the whole model with one of the heads."""
        whole = self.model
        parts = (whole.image_encoder, whole.pooling, whole.text_encoder)
        return ProductClassifier(whole.classes, head, *parts, build_args=whole.build_args).eval()


def encode_texts(model: ProductClassifier, texts: Sequence[str]) -> Features:
    """Return what a model's encoder says of many texts, a few at a time."""
    with torch.inference_mode():
        parts = [model.encode_text(texts[i : i + 64]) for i in range(0, len(texts), 64)]
    return Features.joined(parts)


def cross_validate(
    name: str,
    data: ProductData,
    dealt: np.ndarray,
    backbone: str,
    seed: int = 0,
    epochs: int = 60,
    size: int | None = None,
    **options: Any,
) -> CrossValidation:
    """Train a head of a model for each fold on frozen features; see `folds`.

    The fold after the one that is judged chooses epoch and fusion weights, the others are learned from. No encoder
    learns anything from the data, so that no fold knows of another.

    Args:
        name: of a model with frozen encoders, such as `image`, `text`, `concat`.
        data: its pictures, whatever their split, are the N that `dealt` speaks of.
        dealt: (N,) fold of each row, 0 to the number of folds - 1.
        backbone: of the pictures.
        seed: of the head's weights and the order of pictures.
        epochs: passes over the training folds.
        size: side of the pictures; None takes the encoder's.
        **options: of the model.
    """
    config = TrainConfig(epochs=epochs, batch_size=128, seed=seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = models.build(name, data.classes, backbone, freeze=True, **options).eval()
    everything = data.split("+".join(data.splits), size or model.input_size)
    seen = training.encode_cached(model, everything, 1, config)
    dealt, heads = dealt[everything.rows], []
    for fold in range(int(dealt.max()) + 1):
        choose = (fold + 1) % (int(dealt.max()) + 1)
        light = ProductClassifier(data.classes, copy.deepcopy(model.head), pooling=model.pooling)
        parts = (seen.select(np.flatnonzero(rows)) for rows in (~np.isin(dealt, (fold, choose)), dealt == choose))
        training.fit(light, *parts, config)
        heads.append(light.head)
    return CrossValidation(model, heads, dealt, seen)


def one_shot(
    name: str,
    data: ProductData,
    backbone: str,
    views: int,
    seed: int = 0,
    epochs: int = 60,
    size: int | None = None,
    **options: Any,
) -> CrossValidation:
    """Train one head on augmented views of every picture, for data with one picture a class.

    Words of each view but the first are misread a little. No picture is unseen: nothing can be said about accuracy.

    Args:
        name: of a model with frozen encoders.
        data: all of its pictures are learned from.
        backbone: of the pictures.
        views: of each picture.
        seed: of the views, the head's weights and the order of pictures.
        epochs: passes over all views.
        size: side of the pictures; None takes the encoder's.
        **options: of the model.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = models.build(name, data.classes, backbone, freeze=True, **options).eval()
    size = size or model.input_size
    several = data.select(np.repeat(np.arange(len(data)), views))
    texts = [misread(text, 0.1 * (k % views > 0), seed + k) for k, text in enumerate(several.table["text"])]
    several = replace(several, table=several.table.assign(split="train", text=texts))
    training.fit(
        model,
        several.split("train", size),
        config=TrainConfig(epochs=epochs, batch_size=128, seed=seed, augment="light", train_size=size),
    )
    seen = training.encode_cached(model, data.split("+".join(data.splits), size), 1, TrainConfig())
    return CrossValidation(model, [model.head], np.zeros(len(data), dtype=int), seen)


def lime_superpixels(
    classify: Callable[[np.ndarray], np.ndarray],
    image: torch.Tensor,
    segments: np.ndarray,
    label: int,
    samples: int = 1000,
    seed: int = 0,
) -> np.ndarray:
    """Return the weight (S,) that the package lime gives each superpixel for a class, with its defaults.

    Args:
        classify: takes batches (B,H,W,3) float64 and returns probs (B,K).
        image: (3,H,W) in [0,1].
        segments: (H,W) labels 0..S-1.
        label: index of the class.
        samples: masks.
        seed: of the masks.
    """
    from lime.lime_image import LimeImageExplainer

    pixels = image.permute(1, 2, 0).double().numpy()
    with contextlib.redirect_stderr(io.StringIO()):  # its bar cannot be switched off
        told = LimeImageExplainer(random_state=seed).explain_instance(
            pixels, classify, (label,), top_labels=None, num_samples=samples, segmentation_fn=lambda _: segments
        )
    weights = dict(told.local_exp[label])
    return np.array([weights[part] for part in range(len(weights))])


def lime_words(
    classify: Callable[[list[str]], np.ndarray], words: Sequence[str], label: int, samples: int = 1000, seed: int = 0
) -> np.ndarray:
    """Return the weight (T,) that the package lime gives each word for a class; each place is a word of its own.

    Args:
        classify: takes texts and returns probs (B,K).
        words: T, without spaces.
        label: index of the class.
        samples: masks.
        seed: of the masks.
    """
    from lime.lime_text import LimeTextExplainer

    explainer = LimeTextExplainer(random_state=seed, bow=False, split_expression=lambda text: text.split(" "))
    told = explainer.explain_instance(" ".join(words), classify, (label,), num_features=len(words), num_samples=samples)
    weights = dict(told.local_exp[label])
    return np.array([weights[part] for part in range(len(words))])


class SharedPredictor(Predictor):
    """A predictor for many heads on the same frozen encoders: what is encoded once is encoded for all of them."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._known: dict[tuple[int, int, int], torch.Tensor] = {}
        self._read: dict[str | None, Features] = {}

    def with_model(self, model: ProductClassifier) -> SharedPredictor:
        """Return the same predictor for another model; its encoders must have the same weights."""
        other = copy.copy(self)
        other.model = model
        return other

    def encode_perturbed(self, image: torch.Tensor, masks: torch.Tensor, baseline: torch.Tensor) -> Features:
        """Return features of N variants of one picture, see `Predictor`."""
        picture = tuple(hash(part.numpy().tobytes()) for part in (image, baseline))
        keys = [(*picture, hash(mask.numpy().tobytes())) for mask in masks]
        if fresh := [row for row, key in enumerate(keys) if key not in self._known]:
            found = super().encode_perturbed(image, masks[fresh], baseline).values
            self._known.update((keys[row], value) for row, value in zip(fresh, found, strict=True))
        values = torch.stack([self._known[key] for key in keys])
        return Features(values, torch.ones(len(keys), dtype=torch.bool, device=values.device))

    def encode_text(self, texts: Sequence[str | None]) -> Features:
        """Return features of texts, see `Predictor`."""
        if fresh := [text for text in dict.fromkeys(texts) if text not in self._read]:
            found = super().encode_text(fresh)
            self._read.update((text, found.rows(slice(row, row + 1))) for row, text in enumerate(fresh))
        return Features.joined([self._read[text] for text in texts])


def explain_unseen(
    judge: CrossValidation, pictures: ProductDataset, rows: np.ndarray, shared: SharedPredictor, **options: Any
) -> tuple[dict[int, LocalExplanation], dict[int, MaskedModel]]:
    """Explain pictures, each by the head that has not seen it; finished ones come from the cache.

    Args:
        judge: the heads.
        pictures: all N that `judge` speaks of, in their order.
        rows: positions of those to explain.
        shared: does the work.
        **options: of `lime.explain`.

    Returns:
        Explanation by position; those from the cache have no `masked_model`. MaskedModel by position, for all.
    """
    from retailkit.explain import lime  # few notebooks need it

    found, games = {}, {}
    for fold in np.unique(judge.folds[rows]):
        own = rows[judge.folds[rows] == fold]
        part = pictures.with_options(rows=pictures.rows[own])
        predictor = shared.with_model(judge.with_head(judge.heads[fold]))
        for row, e in zip(own.tolist(), lime.explain_dataset(predictor, part, **options), strict=True):
            found[row] = e
            games[row] = e.rebuilt(predictor)
    return found, games


def contradicting(data: ProductData, seed: int = 0) -> np.ndarray:
    """Return for each picture another one whose words would name the wrong product, (N,) positions.

    A twin where there is one (same family, else same coarse class), else any picture of another class; always one with
    words.

    Args:
        data: with texts.
        seed: of the choice.
    """
    rng, table = np.random.default_rng(seed), data.table
    near = np.where(table["family"] == "", table["coarse"], table["family"])
    label, readable = table["label"].to_numpy(), table["text"].ne("").to_numpy()
    chosen = np.empty(len(table), dtype=int)
    for row in range(len(table)):
        others = readable & (label != label[row])
        twins = np.flatnonzero(others & (near == near[row]) & (near[row] != ""))
        chosen[row] = rng.choice(twins if len(twins) else np.flatnonzero(others))
    return chosen


def navigated(
    dataset: str,
    root: str | Path | None,
    profile_name: str,
    seed: int,
    model: str = "nts",
    size: int = 0,
    epochs: int = 0,
    **options: Any,
) -> TrainSpec:
    """Return NTS-Net, or the plain backbone trained alike (`model="image"`).

    Args:
        dataset: name in `data.DATASETS`.
        root: its folder.
        profile_name: gives size, epochs, and whether the backbone learns.
        seed: of the weights, the order of images and augmentation.
        model: `nts` or `image`.
        size: side of training and test pictures; 0 takes the profile's.
        epochs: passes over the training split; 0 takes the profile's.
        **options: of the model, such as `propose`, `parts` and `navigate`.
    """
    chosen = profile(profile_name)
    size = size or chosen.nts_size
    config = TrainConfig(
        mode="finetune",
        epochs=epochs or chosen.nts_epochs,
        batch_size=16,
        lr=3e-3 if chosen.nts_frozen else 1e-3,  # two passes are few, and there is no backbone to spoil
        augment="light",
        train_size=size,
        criterion="cross_entropy",
        seed=seed,
    )
    return TrainSpec(
        dataset=dataset,
        root=str(root) if root else None,
        model=model,
        model_options={"backbone": "efficientnet_lite0", "freeze": chosen.nts_frozen, **options},
        size=size,
        config=config,
    )


def look(model: ProductClassifier, *splits: ProductDataset) -> list[EncodedDataset]:
    """Return what a model sees of pictures of one size: finished features, for `by_parts`."""
    predictor = Predictor(model, splits[0].size)
    return [training.encode(model, split, see=predictor.encode_image) for split in splits]


def by_parts(
    model: ProductClassifier, train: EncodedDataset, tests: Sequence[EncodedDataset], counts: Sequence[int]
) -> dict[int, list[Evaluation]]:
    """Judge how many parts of an `nts` model are worth looking at: one logistic regression for each number.

    All of them share the backbone and the navigator, so that only K differs; K = 0 sees the whole picture alone.

    Args:
        model: with an `nts` pooling, or a plain one, which has no parts.
        train: what `look` saw of the pictures to fit on.
        tests: what it saw of the pictures to judge on.
        counts: values of K, at most the model's own.

    Returns:
        K -> one evaluation a test.
    """
    width = model.image_encoder.dim
    fitted, *judged = (s.image.values.unflatten(1, (-1, width)).numpy() for s in (train, *tests))
    results = {}
    for count in counts:
        chosen = [*range(count), -1]  # (N,K+1,D), the whole picture last
        regression = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300))
        regression.fit(fitted[:, chosen].reshape(len(fitted), -1), train.labels.numpy())
        results[count] = []
        for test, values in zip(tests, judged, strict=True):
            probs = np.zeros((len(values), len(model.classes)))
            probs[:, regression.classes_] = regression.predict_proba(values[:, chosen].reshape(len(values), -1))
            results[count].append(Evaluation(probs, test.labels.numpy(), list(model.classes), test.rows))
    return results


def region_facts(
    model: ProductClassifier, dataset: ProductDataset, seen: EncodedDataset, seed: int = 0
) -> pd.DataFrame:
    """Say where the regions of an `nts` model lie and what the teacher makes of them, a picture a row.

    Args:
        model: with an `nts` pooling.
        dataset: a split; its masks are used where there are any.
        seen: what `look` saw of it.
        seed: of the control, which lays a picture's regions over another picture.

    Returns:
        Columns `part_right` (share of the K regions that the teacher classifies rightly by themselves), `on_product`
        (share of their area) and `on_other` (the same boxes over another picture's product); the last two are NaN
        without masks.
    """
    parts = seen.image.values.unflatten(1, (-1, model.image_encoder.dim))[:, :-1]  # (N,K,D)
    with torch.inference_mode():
        judged = model.pooling.part_head(parts).argmax(2).cpu()
    table = pd.DataFrame({"part_right": (judged == seen.labels[:, None]).float().mean(1)})
    table["on_product"] = table["on_other"] = np.nan
    samples = [dataset[i] for i in range(len(dataset))]
    if all(sample.mask is not None for sample in samples):
        found = [model.regions(torch.stack([s.image for s in samples[i : i + 32]])) for i in range(0, len(samples), 32)]
        places = torch.cat([regions.boxes for regions in found])[:, : parts.shape[1]]
        products = torch.stack([sample.mask for sample in samples])[:, 0]
        others = np.random.default_rng(seed).permutation(len(table))
        table["on_product"] = _share_inside(products, places)
        table["on_other"] = _share_inside(products[others], places)
    return table


def _share_inside(masks: torch.Tensor, boxes: torch.Tensor) -> np.ndarray:
    """Return (N,) mean share of the visible area of boxes (N,K,4) that is True in masks (N,H,W)."""
    sums = torch.nn.functional.pad(masks.long().cumsum(1).cumsum(2), (1, 0, 1, 0))
    x0, y0, x1, y1 = boxes.clamp(0, masks.shape[-1]).unbind(-1)
    n = torch.arange(len(boxes))[:, None]
    inside = sums[n, y1, x1] - sums[n, y0, x1] - sums[n, y1, x0] + sums[n, y0, x0]
    return (inside / ((x1 - x0) * (y1 - y0)).clamp(min=1)).mean(1).numpy()


def departments(profile_name: str = "fast", seed: int = 0, correlation: float = 1.0) -> ProductData:
    """Return built-in pictures for questions of the background: few of each product, in `train` and `test`.

    Args:
        profile_name: says how many.
        seed: of the pictures.
        correlation: how faithfully products stand in their own department, 0 (by chance) to 1 (always).
    """
    train, _, test = profile(profile_name).per_class
    counts = (train // 2, 0, test * 3 // 4) if profile_name == "fast" else (train, 0, test)
    return load("synthetic", None, profile_name, seed, per_class=counts, correlation=correlation)


def prepare(profile_name: str = "fast", dataset: str = "synthetic", root: str | Path | None = None) -> None:
    """Do once what every notebook needs: render or find the pictures, read words, encode features, fit the probe."""
    data = load(dataset, root, profile_name)
    read(data, profile_name)
    model, _ = training.fit_or_load(probe(dataset, root, profile_name), data)
    if "test" in data.splits:
        training.encode_cached(model, data.split("test", model.input_size), 1, TrainConfig())
    chosen = profile(profile_name)
    training.encode_ahead(replace(probe(dataset, root, profile_name), size=chosen.explain_size), data)
    if dataset == "synthetic":
        for correlation in (0.0, 1.0):
            departments(profile_name, 0, correlation)
        packshots = resample(load(dataset, root, profile_name, regime="packshot"), chosen.views, seed=0)
        for pooling in ("image", "lca"):
            training.encode_ahead(packshot_head(dataset, root, pooling, chosen.backbone, seed=0), packshots)


def explained_models(
    data: ProductData,
    dataset: str,
    root: str | Path | None,
    profile_name: str,
    names: Sequence[str] = ("score_fusion", "image", "text"),
    seed: int = 0,
) -> dict[str, Predictor]:
    """Return models for the explanation tool: frozen encoders, and a head for each name; trained once and kept.

    Args:
        data: with words, where a model reads.
        dataset: its name.
        root: its folder.
        profile_name: gives backbone, epochs and the size of pictures.
        names: of models in `models.MODELS`.
        seed: of the heads and the order of pictures.
    """
    found, size = {}, profile(profile_name).explain_size
    for name in names:
        spec = probe(dataset, root, profile_name, seed)
        options = {"missing": "prior"} if name == "text" else {}  # a photo without words is answered by the prior
        spec = replace(spec, model=name, size=size, model_options=spec.model_options | options)
        found[name] = Predictor(training.fit_or_load(spec, data)[0], size)
    return found


def explanation_desk(
    dataset: str = "synthetic",
    root: str | Path | None = None,
    profile_name: str = "fast",
    names: Sequence[str] = ("score_fusion", "image", "text"),
    seed: int = 0,
) -> tuple[ProductData, dict[str, Predictor]]:
    """Return a data set and models for the explanation tool; see `explained_models`.

    Photos on which nothing was read are left out, unless that is all of them: then only models that see are trained.
    """
    data = read(load(dataset, root, profile_name), profile_name)
    readable = data.table["text"].ne("").to_numpy()
    if readable.any():
        data = data.select(readable)
    else:
        names = [name for name in names if "text" not in models.MODELS[name].modalities] or ["image"]
    return data, explained_models(data, dataset, root, profile_name, names, seed)


def other_desks(
    dataset: str, profile_name: str = "fast", names: Sequence[str] = ("score_fusion", "image", "text")
) -> dict[str, Callable[[], tuple[ProductData, dict[str, Predictor]]]]:
    """Return what loads each of the other data sets that are on this machine, for the tool's menu."""
    there = [
        n for n in datasets.DATASETS if n not in (dataset, "folder") and (n == "synthetic" or data_root(n).exists())
    ]
    return {name: partial(explanation_desk, name, None, profile_name, names) for name in there}
