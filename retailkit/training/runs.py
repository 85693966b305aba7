"""Train, or load what was trained before."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from retailkit import data as datasets
from retailkit import models
from retailkit.cache import RESUMED, code_fingerprint, digest
from retailkit.config import DataError, Profile, UserError, cache_dir, pick, profile, rank
from retailkit.data.table import ProductData, ProductDataset
from retailkit.models.classifier import ProductClassifier
from retailkit.training.checkpoints import LaterFormatError, photo_hashes, read_checkpoint, save_checkpoint
from retailkit.training.encoded import EncodedDataset, fingerprint, identity, seeded
from retailkit.training.loop import History, TrainConfig, fit


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
    `path` is the checkpoint file; None keeps it in the cache under the training's key. An existing file is loaded if
    the same training made it, and replaced otherwise. `facts` are written into its header.

    Raises:
        DataError: the model has one class only, so that there is nothing to tell apart.
    """
    if len(model.classes) < 2:
        raise DataError(f"there is one class only, {model.classes[0]!r}; give photos of two or more (see --root)")
    config = config or TrainConfig()
    splits = [None if split is None else identity(split, model) for split in (train, val)]
    key = digest(fingerprint(model), *splits, config, code_fingerprint("retailkit.training.loop", "retailkit.models"))
    path = Path(path) if path else cache_dir("trained") / f"{key}.safetensors"
    if path.exists():
        try:
            header, weights = read_checkpoint(path)
            if header["facts"].get("key") == key:
                model.load_state_dict(weights)
                model.eval()
                return History.from_dict(header["history"])
        except LaterFormatError:
            raise
        except UserError:
            pass  # unreadable: trained again below, replaced only once the new one is whole
    partial = cache_dir("partial") / f"{key}.pt"
    if partial.exists():
        RESUMED.append(f"training {partial.stem} went on after an interrupt")
    history = fit(model, train, val, config, partial)
    if not rank():
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

    `model` stays as it is: the head (and a pooling with weights) starts from a copy of its own.
    """
    head, pooling = copy.deepcopy((model.head, model.pooling))
    learner = model.with_parts(head=head, pooling=pooling)
    history = fit_once(learner.with_parts(image_encoder=None, text_encoder=None), train, val, config)
    return learner.eval(), history


@dataclass(frozen=True)
class TrainSpec:
    """A training run, written down: data, model and configuration."""

    dataset: str = "synthetic"  # name for `data.load`
    root: str | None = None  # its folder; None takes the default
    model: str = "image"  # name for `models.build`
    model_options: dict[str, Any] = field(default_factory=dict)  # `backbone`, `pooling`, `weights`, ...
    size: int | None = None  # side of validation and test images in pixels; None takes the encoder's
    config: TrainConfig = field(default_factory=TrainConfig)

    def build(self, classes: Sequence[str]) -> ProductClassifier:
        """Return the model before training; the configuration's seed decides its random weights."""
        with seeded(self.config.seed):
            return models.build(self.model, classes, **self.model_options)


def fit_or_load(
    spec: TrainSpec, data: ProductData | None = None, path: str | Path | None = None
) -> tuple[ProductClassifier, History]:
    """Train what `spec` says, or load it if the very same run has been done before; see `fit_once`.

    `data` is the data set if it is loaded already (with its OCR text, say).
    """
    data = data or datasets.load(spec.dataset, spec.root)
    model = spec.build(data.classes)
    size = spec.size or model.input_size
    val = data.split("val", size) if "val" in data.splits else None
    train = data.split("train", size)
    facts = {"spec": json.loads(json.dumps(asdict(spec), default=str)), "size": size, "fit": data.fit}
    return model, fit_once(model, train, val, spec.config, path, **facts, photos=photo_hashes(train))


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
    runs = _reference_runs(chosen := profile(profile_name))
    own = runs[pick(runs, name, "reference run")]
    size = size or own.size
    changes = {"seed": seed, "train_size": size if own.size else own.config.train_size}
    if name == "packshots" and config.get("mode") == "finetune":
        changes["batch_size"] = 32
    return replace(
        own,
        dataset=dataset,
        root=str(root) if root else None,
        model=model or own.model,
        model_options={"backbone": chosen.backbone} | own.model_options | dict(options or {}),
        size=size,
        config=replace(own.config, **(changes | config)),
    )


def _reference_runs(chosen: Profile) -> dict[str, TrainSpec]:
    ema = 0.99 if chosen.finetune_epochs > 5 else 0.0
    nts_lr = 3e-3 if chosen.nts_frozen else 1e-3  # two passes are few, and there is no backbone to spoil
    tuned = {"epochs": chosen.finetune_epochs, "train_size": chosen.finetune_size, "augment": "standard", "ema": ema}
    packshots = {"epochs": 10, "batch_size": 64, "lr": 1e-3, "augment": "packshot"}
    nts = {"mode": "finetune", "epochs": chosen.nts_epochs, "batch_size": 16, "lr": nts_lr, "augment": "light"}
    navigated = {"backbone": "efficientnet_lite0", "freeze": chosen.nts_frozen}
    plain = {"criterion": "cross_entropy"}
    return {
        "probe": TrainSpec(config=TrainConfig(epochs=chosen.epochs, batch_size=128)),
        "finetune": TrainSpec(model_options={"dropout": 0.3}, config=TrainConfig("finetune", **tuned)),
        "packshots": TrainSpec(size=160, config=TrainConfig(**packshots, **plain)),
        "nts": TrainSpec(
            model="nts", model_options=navigated, size=chosen.nts_size, config=TrainConfig(**nts, **plain)
        ),
    }
