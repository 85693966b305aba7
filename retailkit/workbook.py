"""What some notebooks share: the package lime beside ours, and what the explanation tool starts with."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from retailkit import data as datasets
from retailkit import models, training
from retailkit.config import data_root, profile
from retailkit.data import ocr
from retailkit.data.table import ProductData, ProductDataset
from retailkit.inference import Predictor
from retailkit.models import Features, ProductClassifier

if TYPE_CHECKING:
    from retailkit.explain.lime import LocalExplanation
    from retailkit.explain.masking import MaskedModel


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
    judge: training.CrossValidation, pictures: ProductDataset, rows: np.ndarray, shared: SharedPredictor, **options: Any
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
        predictor = shared.with_model(judge.models[fold])
        for row, e in zip(own.tolist(), lime.explain_dataset(predictor, part, **options), strict=True):
            found[row] = e
            games[row] = e.rebuilt(predictor)
    return found, games


def prepare(profile_name: str = "fast", dataset: str = "synthetic", root: str | Path | None = None) -> None:
    """Do once what every notebook needs: render or find the images, read words, encode features, train the probe."""
    chosen, where = profile(profile_name), (dataset, root, profile_name)
    data = ocr.add_text(datasets.load(*where), limit=chosen.ocr_limit)
    for size in (None, chosen.explain_size):
        model, _ = training.fit_or_load(training.reference("probe", *where, size=size), data)
        if "test" in data.splits:
            training.encode(model, data.split("test", size or model.input_size))
    if dataset == "synthetic":
        packshots = training.resample(datasets.load(*where, regime="packshot"), chosen.views, seed=0)
        for name in ("image", "lca"):
            training.fit_or_load(training.reference("packshots", *where, model=name), packshots)


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
        options = {"missing": "prior"} if name == "text" else {}  # a photo without words is answered by the prior
        spec = training.reference("probe", dataset, root, profile_name, seed, name, size, options)
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
    data = ocr.add_text(datasets.load(dataset, root, profile_name), limit=profile(profile_name).ocr_limit)
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
