"""Heads: from the features of the modalities to logits. Those that join modalities live in `fusion`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from retailkit.config import pick
from retailkit.models.pooling import Features, FeatureScaler

Criterion = Callable[[Tensor, Tensor], Tensor]


class Head(nn.Module):
    """Turns the features of the modalities into logits; subclasses say how.

    Args:
        scalers: one a modality, in the order of the model's modalities.

    Attributes:
        answers_without_features: True where a row without any feature gets logits instead of an error.
        tunes: True where `tune` does something.
    """

    answers_without_features = False
    tunes = False

    def __init__(self, scalers: Mapping[str, FeatureScaler]) -> None:
        super().__init__()
        self.scalers = nn.ModuleDict(scalers)

    def forward(self, features: Mapping[str, Features]) -> Tensor:
        """Return logits (B,K) of the features by modality."""
        raise NotImplementedError

    def loss(self, features: Mapping[str, Features], labels: Tensor, criterion: Criterion) -> Tensor:
        """Return what this head learns from: by default, the loss of its logits."""
        return criterion(self(features).float(), labels)

    def tune(self, features: Mapping[str, Features], labels: Tensor) -> None:
        """Choose on validation pictures, after training, what is not learned by gradient."""


class LinearHead(Head):
    """Scale, drop out, one linear layer: logistic regression on the features of a single modality.

    Args:
        scalers: of the one modality.
        n_classes: K.
        dropout: share of features left out in training.
        missing: what a row without features gets: `raise` an error, or `prior`, the logits of the average
            training row.
    """

    def __init__(
        self, scalers: Mapping[str, FeatureScaler], n_classes: int, dropout: float = 0.0, missing: str = "raise"
    ) -> None:
        super().__init__(scalers)
        ((self.modality, scaler),) = scalers.items()
        self.answers_without_features = pick(("raise", "prior"), missing, "choice for missing features") == "prior"
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(len(scaler.mean), n_classes)

    def forward(self, features: Mapping[str, Features]) -> Tensor:
        """Return logits (B,K) of the features by modality."""
        return self.linear(self.dropout(self.scalers[self.modality](features[self.modality])))
