"""Criteria for classification. Each takes `logits (B,K)`, `labels (B,)` and a `reduction`.

All of them lean on `torch.nn.functional.cross_entropy`, so confidence enters through log-softmax and never
through `log(p + eps)`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from retailkit.config import pick

Criterion = Callable[..., Tensor]


def entropy(logits: Tensor) -> Tensor:
    """Return the Shannon entropy in nats of softmax(`logits (B,K)`), a non-negative (B,)."""
    log_probs = logits.log_softmax(-1)
    return -(log_probs.exp() * log_probs).sum(-1)


def label_smoothing(logits: Tensor, labels: Tensor, eps: float = 0.1, reduction: str = "mean") -> Tensor:
    """Cross entropy against (1 - eps) one-hot + eps uniform (Szegedy et al. 2016, section 7)."""
    return F.cross_entropy(logits, labels, label_smoothing=eps, reduction=reduction)


CRITERIA: dict[str, Criterion] = {
    "cross_entropy": F.cross_entropy,
    "label_smoothing": label_smoothing,
}


def criterion(name: str, **options: Any) -> Criterion:
    """Return the criterion called `name` with its options bound (`label_smoothing`, `eps=0.1`)."""
    return partial(CRITERIA[pick(CRITERIA, name, "criterion")], **options)
