"""Checkpoints: weights as safetensors, with JSON in the header that says how to build the model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from retailkit import models
from retailkit.cache import replacing
from retailkit.config import UserError
from retailkit.data.table import ProductData
from retailkit.models.classifier import ProductClassifier
from retailkit.training.loop import History


def save_checkpoint(model: ProductClassifier, path: str | Path, history: History, **facts: Any) -> Path:
    """Write weights and what is needed to build the model again as one safetensors file, in one step.

    The JSON in the file's header holds `build` (arguments of `models.rebuild`), `history` and `facts`.
    """
    header = {"build": model.build_args, "history": history.to_dict(), "facts": facts, "format": 1}
    weights = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    with replacing(path) as draft:
        draft.write_bytes(safetensors.torch.save(weights, metadata={"retailkit": json.dumps(header)}))
    return Path(path)


def load_checkpoint(path: str | Path) -> tuple[ProductClassifier, History, dict[str, Any]]:
    """Read what `save_checkpoint` wrote; the encoders' own weight files are not needed.

    Raises:
        UserError: the file is missing, cut off, or not a retailkit checkpoint.
    """
    header, weights = read_checkpoint(path)
    model = models.rebuild(header["build"])
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"{path}: its weights are those of another model than its header describes ({reason}); train again"
        ) from None
    return model.eval(), History.from_dict(header["history"]), header["facts"]


def read_checkpoint(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the header and the weights of a checkpoint."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["retailkit"])
            return header, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint; train one with `retailkit train`") from None
    except (SafetensorError, KeyError, TypeError, OSError, ValueError) as error:
        raise UserError(f"{path}: not a retailkit checkpoint ({error}); train again or give another file") from None


def with_classes(data: ProductData, model: ProductClassifier) -> ProductData:
    """Return `data` with the model's class order, so that labels and logits agree.

    Raises:
        UserError: names the first row whose label the model has never seen.
    """
    strange = ~data.table["label"].isin(model.classes)
    if strange.any():
        row = data.table[strange].iloc[0]
        raise UserError(
            f"{row['image']}: label {row['label']!r} is unknown to this checkpoint of {len(model.classes)} classes; "
            "train with this class or drop the row"
        )
    return replace(data, classes=list(model.classes))
