"""Checkpoints: weights as safetensors, with JSON in the header that says how to build the model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from retailkit import models
from retailkit.cache import content_hash, read_tensors, replacing
from retailkit.config import CONTROL, UserError
from retailkit.data.table import ProductData, ProductDataset
from retailkit.models.classifier import ProductClassifier
from retailkit.models.weights import one_line
from retailkit.training.loop import History

FORMAT = 1  # of the header; a later one may mean other things by the same keys
TRAIN_AGAIN = "train again or give another file"


class LaterFormatError(UserError):
    """A checkpoint was written by a later version of this package."""


# What a header may hold. A checkpoint may come from anybody, and its header decides what is built before a weight is
# read. A rule is a type, the lowest and the highest number, a list of one rule and the largest length, or a mapping;
# `?` marks a key that may be missing.
_TRANSFORMER = {
    "model_type": str,
    "vocab_size?": (1, 500_000),
    "max_position_embeddings?": (1, 16_384),
    "type_vocab_size?": (1, 64),
    **dict.fromkeys(("hidden_size?", "dim?"), (1, 4096)),
    **dict.fromkeys(("intermediate_size?", "hidden_dim?"), (1, 16_384)),
    **dict.fromkeys(("num_attention_heads?", "n_heads?", "num_hidden_layers?", "n_layers?"), (1, 64)),
}
_MODEL = {
    "name": str,
    "classes": [str, 100_000],
    **dict.fromkeys(("backbone?", "pooling?", "text_encoder?", "detector?", "missing?"), str),
    **dict.fromkeys(("freeze?", "relu?", "navigate?", "flip?"), bool),
    "text_config?": _TRANSFORMER,
    "dropout?": (0, 1),
    "colour?": (0, 100),
    "width?": (0, 16_384),
    "propose?": (1, 64),
    "parts?": (0, 64),
    "learn?": (0, 64),
    "keypoints?": (1, 10_000),
    "size?": (8, 2048),
    "neighbours?": (0, 10_000),
    "false_accepts?": (0, 1),
}
SCHEMA = {
    "format": (1, FORMAT),
    "build": {**_MODEL, "members?": [_MODEL, 32]},
    "history": {"epochs": [dict, 1_000_000], "best_epoch": int, "seconds": (0, float("inf"))},
    "facts": {
        "size?": (8, 2048),
        "fit?": str,
        "key?": str,
        "preset?": str,
        "added?": (0, 10_000_000),
        "photos?": [str, 10_000_000],
    },
}


def save_checkpoint(model: ProductClassifier, path: str | Path, history: History, **facts: Any) -> Path:
    """Write one safetensors file, in one step, whose header holds all that is needed to build the model again."""
    header = {"build": model.build_args, "history": history.to_dict(), "facts": facts, "format": FORMAT}
    weights = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    with replacing(path) as draft:
        draft.write_bytes(safetensors.torch.save(weights, metadata={"retailkit": json.dumps(header)}))
    return Path(path)


def load_checkpoint(path: str | Path) -> tuple[ProductClassifier, History, dict[str, Any]]:
    """Read what `save_checkpoint` wrote; the encoders' own weight files are not needed.

    Returns:
        The model in evaluation mode, its history, and the facts, among them `size` and `fit` for `ProductData.split`.

    Raises:
        UserError: the file is missing, cut off, no retailkit checkpoint, of a later version, or its weights are not
            finite or not those of the model that its header describes.
    """
    header, weights = read_checkpoint(path)
    other = f"{path}: its weights are those of another model than its header describes"
    with one_line(f"{path}: its header describes no model", TRAIN_AGAIN), torch.device("meta"):  # takes no memory
        described = sum(value.numel() for value in models.rebuild(header["build"]).state_dict().values())
    if described > sum(value.numel() for value in weights.values()):
        raise UserError(f"{other} ({described:,} of them); {TRAIN_AGAIN}")
    with one_line(other, TRAIN_AGAIN):
        model = models.rebuild(header["build"])
        model.load_state_dict(weights)
    known = {name: value for name, value in header["facts"].items() if value is not None}
    facts = {"size": model.input_size, "fit": None} | known
    return model.eval(), History.from_dict(header["history"]), facts


def read_checkpoint(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the header and the weights of a checkpoint, both checked; see `load_checkpoint`."""
    if not Path(path).exists():
        raise UserError(f"{path}: no such checkpoint; train one with `retailkit train`")
    with one_line(f"{path}: not a retailkit checkpoint", TRAIN_AGAIN, but=UserError):
        metadata, weights = read_tensors(path)
        header = json.loads(metadata["retailkit"])
    if isinstance(header, dict) and isinstance(later := header.get("format"), int) and later > FORMAT:
        raise LaterFormatError(f"{path}: of format {later}, and this retailkit reads up to {FORMAT}; update retailkit")
    if fault := next(_faults(header, SCHEMA, "header"), ""):
        raise UserError(f"{path}: not a retailkit checkpoint ({fault}); {TRAIN_AGAIN}")
    for name, value in weights.items():
        if not value.isfinite().all():
            raise UserError(f"{path}: {name} holds values that are not finite numbers; {TRAIN_AGAIN}")
    return header, weights


def _faults(value: Any, rule: Any, key: str) -> Iterator[str]:
    """Yield what is wrong with a value of a header by a rule of `SCHEMA`."""
    wrong = f"{key} is {str(value)[:60]!r}, not"
    if isinstance(rule, dict):
        if not isinstance(value, dict):
            yield f"{wrong} a mapping"
            return
        for name, inner in rule.items():
            plain = name.removesuffix("?")
            if value.get(plain) is not None:
                yield from _faults(value[plain], inner, f"{key}.{plain}")
            elif plain == name:
                yield f"{key}.{name} is missing"
    elif isinstance(rule, list):
        if not isinstance(value, list) or len(value) > rule[1]:
            yield f"{wrong} a list of at most {rule[1]:,}"
            return
        for i, part in enumerate(value):
            yield from _faults(part, rule[0], f"{key}[{i}]")
    elif isinstance(rule, tuple):
        if not (isinstance(value, int | float) and rule[0] <= value <= rule[1]):
            yield f"{wrong} a number from {rule[0]} to {rule[1]}"
    elif not isinstance(value, rule):
        yield f"{wrong} a {rule.__name__}"
    elif isinstance(value, str) and CONTROL.search(value):
        yield f"{key} is {value[:60]!r}, which holds control characters"


def with_classes(data: ProductData, model: ProductClassifier, split: str = "") -> ProductData:
    """Return `data` with the model's class order; `UserError` names the first row whose label it has never seen.

    With a `split`, such as `test` or `val+test`, only the rows of this split need a label that the model knows.
    """
    strange = ~data.table["label"].isin(model.classes)
    strange &= data.table["split"].isin(split.split("+")) if split else True
    if strange.any():
        row = data.table[strange].iloc[0]
        raise UserError(
            f"{row['image']}: label {row['label']!r} is unknown to this checkpoint of {len(model.classes)} classes; "
            "train with this class or drop the row"
        )
    return replace(data, classes=list(model.classes))


def photo_hashes(split: ProductData | ProductDataset) -> list[str]:
    """Return a hash of the content of each image of a split, for the facts of a checkpoint (`photos`)."""
    return [content_hash(path)[:16] for path in split.table["image"]]


def learned_from(facts: dict[str, Any], split: ProductData | ProductDataset) -> list[str]:
    """Return the images of a split that a checkpoint was trained on, by their content."""
    known = set(facts.get("photos", ()))
    return [path for path, photo in zip(split.table["image"], photo_hashes(split), strict=True) if photo in known]
