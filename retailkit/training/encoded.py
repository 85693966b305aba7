"""Splits as features: what frozen encoders say about them, computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from retailkit.cache import code_fingerprint, digest, file_identity, kept_tensors
from retailkit.config import cache_dir, device
from retailkit.data.table import Batch, ProductData, ProductDataset, collate
from retailkit.inference import compiled
from retailkit.models.classifier import Features, ProductClassifier, evaluating

VIEWS = 10_007  # more than one seed has, so that no two seeds share an augmented view


@dataclass
class EncodedDataset(torch.utils.data.Dataset):
    """A split as features. A part of it, given by positions, is of the same kind and stands in for a `Batch`."""

    image: Features | None  # None for what the model does not use
    text: Features | None
    labels: Tensor  # (N,) class indices
    rows: np.ndarray | None = None  # (N,) of the data set's table; None counts them

    def __post_init__(self) -> None:
        self.rows = np.arange(len(self.labels)) if self.rows is None else self.rows

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, positions: Sequence[int] | Tensor | np.ndarray) -> EncodedDataset:
        chosen = torch.as_tensor(positions)
        image, text = (features and features.rows(chosen) for features in (self.image, self.text))
        return EncodedDataset(image, text, self.labels[chosen], self.rows[chosen.numpy()])

    def to(self, device: str | torch.device) -> EncodedDataset:
        """Return the same features on `device`."""
        return self.from_tensors({name: value.to(device) for name, value in self.tensors().items()}, self.rows)

    def tensors(self) -> dict[str, Tensor]:
        """Return everything but the rows, by name."""
        parts = {"image": self.image, "text": self.text}
        given = {f"{name}.{part}": t for name, f in parts.items() if f for part, t in f._asdict().items()}
        return {"labels": self.labels} | given

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], rows: np.ndarray | None = None) -> EncodedDataset:
        """Return the split whose `tensors` these are."""
        image, text = (
            Features(tensors[f"{name}.values"], tensors[f"{name}.available"]) if f"{name}.values" in tensors else None
            for name in ("image", "text")
        )
        return cls(image, text, tensors["labels"], rows)


def joined(parts: Iterable[EncodedDataset]) -> dict[str, Tensor]:
    """Return the `tensors` of a split that is given in parts."""
    parts = [part.tensors() for part in parts]
    return {name: torch.cat([part[name] for part in parts]).contiguous() for name in parts[0]}


def encode(
    model: ProductClassifier, dataset: ProductDataset, views: int = 1, seed: int = 0, pooled: bool = False
) -> EncodedDataset:
    """Return what frozen encoders say about a split, in float32; computed once and kept in the cache.

    Args:
        model: it is used in evaluation mode, on the fastest device.
        dataset: the split, at the size it was made with.
        views: passes over the split, laid end to end; with an `augment` each sees other random changes.
        seed: of the augmentation.
        pooled: keep finished features, as `encode_image` gives them. Only NTS-Net needs it: its regions depend on what
            it has learned, so that there is nothing to keep before.
    """

    def batches() -> Iterator[EncodedDataset]:
        with placed(model) as where, evaluating(model):
            fast = compiled(model, frozen_only=not pooled)
            encode_image = fast.encode_image if pooled else fast.encode_frozen
            for view in range(views):
                with seeded(seed * VIEWS + view):
                    for batch in bar(load_batches(dataset, 32), "encode"):
                        yield encode_batch(fast, batch.to(where), encode_image).to("cpu")

    key = features_file(model, dataset, views, seed, pooled).stem
    kept = kept_tensors("features", key, lambda: joined(batches()))
    return EncodedDataset.from_tensors(kept, np.tile(dataset.rows, views))


def features_file(
    model: ProductClassifier, dataset: ProductDataset, views: int = 1, seed: int = 0, pooled: bool = False
) -> Path:
    """Return the file of the cache in which `encode` keeps what it returns."""
    key = digest(
        fingerprint(model) if pooled else encoder_fingerprint(model),
        identity(dataset, model),
        views,
        seed * VIEWS if dataset.augment else None,
        code_fingerprint("retailkit.inference", "retailkit.data.table"),
    )
    return cache_dir("features") / f"{key}.safetensors"


def encode_batch(model: ProductClassifier, batch: Batch, encode_image: Callable[[Tensor], Features]) -> EncodedDataset:
    """Return the features of a batch."""
    image = encode_image(batch.images) if "image" in model.modalities else None
    text = model.encode_text(batch.texts) if "text" in model.modalities else None
    return EncodedDataset(image, text, batch.labels)


# -- What identifies splits and models.


def data_fingerprint(data: ProductData, rows: np.ndarray | None = None, text: bool = True) -> str:
    """Return a hash of a data set: labels, splits, content of images and masks, the text if it matters."""
    table = data.table if rows is None else data.table.iloc[rows]
    columns = ["label", "split"] + (["text"] if text else [])
    files = [file_identity(path) for column in ("image", "mask") for path in table[column] if path]
    return digest(table[columns].to_numpy().tolist(), list(data.classes), files)


def encoder_fingerprint(model: ProductClassifier) -> str:
    """Return a hash of what a model's encoders are: their weights, or all of a model that has none, and their kind."""
    whole = model.image_encoder is None and model.text_encoder is None
    kind = [type(model).__name__, list(model.modalities), type(model.pooling).__name__]
    kind += [model.build_args, code_fingerprint("retailkit.models")] if whole else [None]
    return digest(kind, {n: t for n, t in model.state_dict().items() if whole or "_encoder." in n})


def fingerprint(model: ProductClassifier) -> str:
    """Return a hash of a model: how it was built, its classes, and all its weights."""
    return digest(type(model).__name__, model.build_args, model.classes, model.state_dict())


def identity(split: ProductDataset | EncodedDataset, model: ProductClassifier) -> list[Any]:
    """Return what a model is shown of a split."""
    if isinstance(split, EncodedDataset):
        return [split.tensors()]
    return [data_fingerprint(split.data, split.rows, text="text" in model.modalities), split.appearance]


# -- What passes over a split need.


def bar(loader: DataLoader, what: str) -> tqdm:
    """Return a loader under a progress bar that shows after two seconds."""
    return tqdm(loader, desc=what, delay=2, mininterval=2, leave=False)


@contextmanager
def placed(model: nn.Module) -> Iterator[torch.device]:
    """Lend a model that is on the CPU to the fastest device (`$RETAILKIT_DEVICE`); then it is back where it was."""
    home = next(model.parameters(), torch.empty(0)).device
    where = torch.device(device()) if home.type == "cpu" else home
    try:
        model.to(where)
        yield where
    finally:
        model.to(home)


def load_batches(dataset: ProductDataset, batch_size: int, shuffle: bool = False) -> DataLoader:
    """Return a loader of `Batch`."""
    # Models take images and texts; only augmentation may ask for the mask.
    dataset = dataset.with_options(reads=("mask",) if dataset.augment else ())
    return DataLoader(dataset, batch_size, shuffle, collate_fn=collate)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's generators for the block only; the caller's random numbers go on untouched."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield
