"""How to train, and what happened."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from retailkit.config import UsageError, pick
from retailkit.data.augment import AUGMENTATIONS

MODES = ("frozen", "finetune")


@dataclass(frozen=True)
class TrainConfig:
    """How to train. Sizes are pixels, rates are per step.

    Attributes:
        mode: `frozen` (encoders stay as they are) or `finetune`.
        epochs: passes over the training split.
        batch_size: images per step.
        lr: peak learning rate of the head (AdamW, linear warm-up, cosine decay to zero).
        encoder_lr: peak learning rate of the encoders in `finetune` mode.
        weight_decay: decoupled weight decay.
        warmup: share of all steps that the learning rate takes to rise.
        criterion: name in `losses.CRITERIA`.
        criterion_options: its options.
        augment: name in `AUGMENTATIONS`.
        train_size: side of training images; None takes the split's. Smaller is faster, and test images may be larger
            (Touvron et al. 2019).
        views: augmented views per image whose features are kept, in `frozen` mode.
        ema: decay of the exponential moving average of weights; 0 keeps the last weights.
        seed: of weights, order and augmentation.
    """

    mode: str = "frozen"
    epochs: int = 60
    batch_size: int = 32
    lr: float = 2e-3
    encoder_lr: float = 5e-4
    weight_decay: float = 0.02
    warmup: float = 0.1
    criterion: str = "label_smoothing"
    criterion_options: dict[str, Any] = field(default_factory=dict)
    augment: str = "none"
    train_size: int | None = None
    views: int = 1
    ema: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        pick(MODES, self.mode, "training mode")
        pick(AUGMENTATIONS, self.augment, "augmentation")
        if min(self.epochs, self.batch_size, self.views) < 1:
            raise UsageError("epochs, batch_size and views must be at least 1")


@dataclass
class History:
    """What happened while training.

    Attributes:
        epochs: one row per epoch: `epoch`, `loss` (mean of the steps), `lr`, `seconds`, and `val_top1`, `val_loss`
            where there is a validation split.
        best_epoch: epoch whose weights were kept.
        seconds: wall time of all epochs, encoding included.
    """

    epochs: pd.DataFrame
    best_epoch: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON."""
        rows = json.loads(self.epochs.to_json(orient="records"))
        return {"epochs": rows, "best_epoch": self.best_epoch, "seconds": self.seconds}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> History:
        """Read what `to_dict` wrote."""
        return cls(pd.DataFrame(plain["epochs"]), plain["best_epoch"], plain["seconds"])
