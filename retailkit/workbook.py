"""What the notebooks share: the data set at the size of the profile, the reference model, and the first step of a run.

A notebook asks for data and models by profile here, so that fifteen notebooks agree on both and the slow parts
(rendering, OCR, frozen features) happen once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from retailkit import data as datasets
from retailkit import training
from retailkit.config import profile
from retailkit.data import ocr
from retailkit.data.table import ProductData
from retailkit.training import TrainConfig, TrainSpec


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


def prepare(profile_name: str = "fast", dataset: str = "synthetic", root: str | Path | None = None) -> None:
    """Do once what every notebook needs: render or find the pictures, read words, encode features, fit the probe."""
    data = load(dataset, root, profile_name)
    read(data, profile_name)
    model, _ = training.fit_or_load(probe(dataset, root, profile_name), data)
    if "test" in data.splits:
        training.encode_cached(model, data.split("test", model.input_size), 1, TrainConfig())
