"""Train, or load what was trained before."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from retailkit import data as datasets
from retailkit import models
from retailkit.cache import code_fingerprint, digest
from retailkit.config import UserError, cache_dir, pick, profile
from retailkit.data.table import ProductData, ProductDataset
from retailkit.models.classifier import ProductClassifier
from retailkit.training.checkpoints import read_checkpoint, save_checkpoint
from retailkit.training.config import History, TrainConfig
from retailkit.training.encoded import EncodedDataset, fingerprint, identity, seeded
from retailkit.training.loop import fit


def fit_once(
    model: ProductClassifier,
    train: ProductDataset | EncodedDataset,
    val: ProductDataset | EncodedDataset | None = None,
    config: TrainConfig | None = None,
    path: str | Path | None = None,
    **facts: Any,
) -> History:
    """Train `model` in place as `fit` does, or load the very same training into it if it has been done before.

    The same training has the same model (weights included), splits, configuration, sources and library versions.

    Args:
        model: as it is before training.
        train: see `fit`.
        val: see `fit`.
        config: see `fit`.
        path: checkpoint file; None keeps it in the cache under the training's key. An existing file is loaded if the
            same training made it, and replaced otherwise.
        **facts: what else to write into the checkpoint's header.
    """
    config = config or TrainConfig()
    splits = [None if split is None else identity(split, model) for split in (train, val)]
    key = digest(fingerprint(model), *splits, config, code_fingerprint("retailkit.training.loop"))
    path = Path(path) if path else cache_dir("trained") / f"{key}.safetensors"
    if path.exists():
        try:
            header, weights = read_checkpoint(path)
            if header["facts"].get("key") == key:
                model.load_state_dict(weights)
                model.eval()
                return History.from_dict(header["history"])
        except UserError:
            pass  # unreadable: trained again below, replaced only once the new one is whole
    partial = cache_dir("partial") / f"{key}.pt"
    history = fit(model, train, val, config, partial)
    save_checkpoint(model, path, history, key=key, **facts)
    partial.unlink(missing_ok=True)
    return history


def fit_head(
    model: ProductClassifier,
    train: EncodedDataset,
    val: EncodedDataset | None = None,
    config: TrainConfig | None = None,
) -> tuple[ProductClassifier, History]:
    """Return a model with the same encoders and a head of its own that learned from encoded features, or was loaded.

    Args:
        model: stays as it is; the head (and a pooling with weights) starts from a copy of its own.
        train: what `encode` made of the images to learn from.
        val: the same for images that choose the epoch.
        config: how to train.
    """
    head, pooling = copy.deepcopy((model.head, model.pooling))
    learner = ProductClassifier(model.classes, head, pooling=pooling, build_args=model.build_args)
    history = fit_once(learner, train, val, config)
    parts = (model.image_encoder, pooling, model.text_encoder)
    return ProductClassifier(model.classes, head, *parts, build_args=model.build_args).eval(), history


@dataclass(frozen=True)
class TrainSpec:
    """A training run, written down: data, model and configuration.

    Attributes:
        dataset: name for `data.load`.
        root: its folder; None takes the default.
        model: name for `models.build`.
        model_options: its options (`backbone`, `pooling`, `weights`, ...).
        size: side of validation and test images; None takes the encoder's.
        config: how to train.
    """

    dataset: str = "synthetic"
    root: str | None = None
    model: str = "image"
    model_options: dict[str, Any] = field(default_factory=dict)
    size: int | None = None
    config: TrainConfig = field(default_factory=TrainConfig)

    def build(self, classes: Sequence[str]) -> ProductClassifier:
        """Return the model before training; the configuration's seed decides its random weights."""
        with seeded(self.config.seed):
            return models.build(self.model, classes, **self.model_options)


def fit_or_load(
    spec: TrainSpec, data: ProductData | None = None, path: str | Path | None = None
) -> tuple[ProductClassifier, History]:
    """Train what `spec` says, or load it if the very same run has been done before.

    Args:
        spec: data, model and configuration.
        data: the data set if it is loaded already (with its OCR text, say); None loads it.
        path: checkpoint file; see `fit_once`.

    Returns:
        The model in evaluation mode and its history.
    """
    data = data or datasets.load(spec.dataset, spec.root)
    model = spec.build(data.classes)
    size = spec.size or model.input_size
    val = data.split("val", size) if "val" in data.splits else None
    facts = {"spec": json.loads(json.dumps(asdict(spec), default=str)), "size": size, "fit": data.fit}
    return model, fit_once(model, data.split("train", size), val, spec.config, path, **facts)


def resample(data: ProductData, times: int, seed: int) -> ProductData:
    """Return `data` with a bootstrap sample of its training images, `times` as many as there are.

    Few packshots under random augmentation: each occurs about `times` times, each time looking different.
    """
    train = np.flatnonzero(data.table["split"] == "train")
    rest = np.flatnonzero(data.table["split"] != "train")
    drawn = np.random.default_rng(seed).choice(train, times * len(train))
    return data.select(np.concatenate([np.sort(drawn), rest]))


def reference(
    name: str,
    dataset: str = "synthetic",
    root: str | Path | None = None,
    profile_name: str = "fast",
    seed: int = 0,
    model: str = "",
    size: int | None = None,
    options: Mapping[str, Any] | None = None,
    **config: Any,
) -> TrainSpec:
    """Return a training run that several notebooks share, so that the same model has the same accuracy in each.

    Args:
        name: `probe`, a linear classifier on features of a frozen backbone; `finetune`, the whole network on augmented
            images smaller than the test ones; `packshots`, a head on augmented packshots; or `nts`, NTS-Net.
        dataset: name in `data.DATASETS`.
        root: its folder; empty or None takes the default.
        profile_name: `fast` or `full`; it gives backbone, sizes and epochs.
        seed: of weights, order and augmentation.
        model: another one than the run's own, such as `lca`.
        size: side of the test images; None takes the run's own.
        options: of the model, such as `backbone`, `weights` or `parts`.
        **config: changes of `TrainConfig`.
    """
    chosen = profile(profile_name)
    probe = {"mode": "frozen", "epochs": chosen.epochs, "batch_size": 128}
    finetune = {
        "mode": "finetune",
        "epochs": chosen.finetune_epochs,
        "augment": "standard",
        "train_size": chosen.finetune_size,
        "ema": 0.99 if chosen.finetune_epochs > 5 else 0.0,
    }
    packshots = {
        "epochs": 10,
        "batch_size": 64 if config.get("mode", "frozen") == "frozen" else 32,
        "lr": 1e-3,
        "criterion": "cross_entropy",
        "augment": "packshot",
        "train_size": size or 160,
    }
    nts = {
        "mode": "finetune",
        "epochs": chosen.nts_epochs,
        "batch_size": 16,
        "lr": 3e-3 if chosen.nts_frozen else 1e-3,  # two passes are few, and there is no backbone to spoil
        "augment": "light",
        "train_size": size or chosen.nts_size,
        "criterion": "cross_entropy",
    }
    runs = {  # name -> model, options, size, configuration
        "probe": ("image", {}, None, probe),
        "finetune": ("image", {"dropout": 0.3}, None, finetune),
        "packshots": ("image", {}, 160, packshots),
        "nts": ("nts", {"backbone": "efficientnet_lite0", "freeze": chosen.nts_frozen}, chosen.nts_size, nts),
    }
    own_model, own_options, own_size, own_config = runs[pick(runs, name, "reference run")]
    return TrainSpec(
        dataset=dataset,
        root=str(root) if root else None,
        model=model or own_model,
        model_options={"backbone": chosen.backbone} | own_options | dict(options or {}),
        size=size or own_size,
        config=TrainConfig(**(own_config | {"seed": seed} | config)),
    )
