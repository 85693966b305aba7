"""Heads that join image and words: score fusion, feature concatenation, EmbraceNet.

All three stand on the same two encoders, so that what differs between them is the joint alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from retailkit.config import UsageError, pick
from retailkit.models.pooling import Criterion, Features, FeatureScaler, Head

SHARES = torch.linspace(0, 1, 21)  # weights of the image that `ScoreFusion.tune` tries


class ScoreFusion(Head):
    """Two classifiers that never meet: the weighted mean of their probabilities.

    Each classifier learns by itself, from the rows that have its modality. A row with one modality gets the answer of
    that classifier alone. The logits are log probabilities of the mean, so that their softmax is that mean.

    Args:
        scalers: one a modality.
        n_classes: K.
        dropout: share of features left out in training.

    Attributes:
        shares: weight of each modality, in their order; they sum to 1. Equal until `tune` is called.
    """

    tunes = True

    def __init__(self, scalers: Mapping[str, FeatureScaler], n_classes: int, dropout: float = 0.0) -> None:
        super().__init__(scalers)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.ModuleDict({m: nn.Linear(len(s.mean), n_classes) for m, s in scalers.items()})
        self.register_buffer("shares", torch.full((len(scalers),), 1 / len(scalers)))

    def forward(self, features: Mapping[str, Features]) -> Tensor:
        """Return logits (B,K) of the features by modality."""
        weights = torch.stack([share * features[m].available for m, share in self._shares(features)])  # (M,B)
        # A share of 0 is not silence: where nothing else is there, this modality answers.
        weights = weights.clamp(min=1e-12) * torch.stack([f.available for f in features.values()])
        weights = weights / weights.sum(0).clamp(min=1e-12)
        scores = torch.stack([self._logits(m, f).log_softmax(1) for m, f in features.items()])  # (M,B,K)
        return torch.logsumexp(scores + weights.log()[..., None], 0)

    def loss(self, features: Mapping[str, Features], labels: Tensor, criterion: Criterion) -> Tensor:
        """Return the mean of the losses of the classifiers, each over the rows that have its modality."""
        losses = [
            criterion(self._logits(m, f)[f.available].float(), labels[f.available])
            for m, f in features.items()
            if f.available.any()
        ]
        return torch.stack(losses).mean()

    @torch.no_grad()
    def tune(self, features: Mapping[str, Features], labels: Tensor) -> None:
        """Choose the shares under which validation rows with both modalities are most likely (`SHARES` are tried)."""
        there = torch.stack([f.available for f in features.values()]).all(0)
        if len(features) != 2 or not there.any():
            return
        one, two = (self._logits(m, f)[there].float().softmax(1) for m, f in features.items())
        rows = torch.arange(len(one), device=one.device)
        likely = [(s * one + (1 - s) * two)[rows, labels[there]].clamp(min=1e-12).log().mean() for s in SHARES.tolist()]
        best = float(SHARES[int(torch.stack(likely).argmax())])
        self.shares.copy_(torch.tensor([best, 1 - best]))

    def _shares(self, features: Mapping[str, Features]) -> list[tuple[str, Tensor]]:
        shares = dict(zip(self.scalers, self.shares, strict=True))
        return [(m, shares[m]) for m in features]

    def _logits(self, modality: str, features: Features) -> Tensor:
        return self.linear[modality](self.dropout(self.scalers[modality](features)))


class Concatenation(Head):
    """One linear layer over the features of all modalities laid end to end.

    Modalities are scaled to the same total variance, lest the one with the longer vector outvote the other. A missing
    modality is replaced by the average of the training rows, which is zero after scaling.

    Args:
        scalers: one a modality.
        n_classes: K.
        dropout: share of features left out in training.
    """

    def __init__(self, scalers: Mapping[str, FeatureScaler], n_classes: int, dropout: float = 0.0) -> None:
        super().__init__(scalers)
        self.dropout = nn.Dropout(dropout)
        widths = {m: len(s.mean) for m, s in scalers.items()}
        self.linear = nn.Linear(sum(widths.values()), n_classes)
        self.balance = {m: (sum(widths.values()) / (len(widths) * width)) ** 0.5 for m, width in widths.items()}

    def forward(self, features: Mapping[str, Features]) -> Tensor:
        """Return logits (B,K) of the features by modality."""
        rows = len(next(iter(features.values())).values)
        parts = [
            scaler(features[m]) * self.balance[m] if m in features else scaler.mean.new_zeros(rows, len(scaler.mean))
            for m, scaler in self.scalers.items()
        ]
        return self.linear(self.dropout(torch.cat(parts, 1)))


class EmbraceNet(Head):
    """EmbraceNet (Choi and Lee, Information Fusion 2019).

    A docking layer brings each modality to the same width. Each unit of the joint vector is then the unit of one
    modality, drawn at random by the selection probabilities of those that are there. A missing modality is never drawn,
    so that the others fill its place.

    Args:
        scalers: one a modality.
        n_classes: K.
        width: of the joint vector, the paper's c.
        mode: `sampled`: draw; `expected`: the mean over all draws; `auto`: draw in training, else the mean, so that
            the same image always gets the same answer.
        modality_dropout: chance that a training batch shows one modality a row, drawn from those that are there.
        shares: selection probability of each modality in their order, as in (0.5, 0.5); None makes them equal.
        dropout: share of the joint vector's units left out in training.

    Raises:
        UsageError: unknown mode, or shares that are no probabilities.
    """

    def __init__(
        self,
        scalers: Mapping[str, FeatureScaler],
        n_classes: int,
        width: int = 256,
        mode: str = "auto",
        modality_dropout: float = 0.5,
        shares: tuple[float, ...] | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(scalers)
        self.mode = pick(("auto", "sampled", "expected"), mode, "mode of EmbraceNet")
        self.modality_dropout = modality_dropout
        given = [1 / len(scalers)] * len(scalers) if shares is None else [float(s) for s in shares]
        if len(given) != len(scalers) or min(given) < 0 or abs(sum(given) - 1) > 1e-6:
            raise UsageError(f"shares={shares} are no probabilities of {', '.join(scalers)}; give one each, sum 1")
        self.register_buffer("shares", torch.tensor(given))
        self.docking = nn.ModuleDict({m: nn.Linear(len(s.mean), width) for m, s in scalers.items()})
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(width, n_classes)

    def forward(self, features: Mapping[str, Features]) -> Tensor:
        """Return logits (B,K) of the features by modality."""
        shares = dict(zip(self.scalers, self.shares, strict=True))
        available = torch.stack([f.available for f in features.values()], 1)  # (B,M)
        if self.training and torch.rand(()) < self.modality_dropout:
            available = _one_of(available)
        # A modality with share 0 answers where it is alone.
        chances = available * torch.stack([shares[m] for m in features]).clamp(min=1e-9)
        chances = chances / chances.sum(1, keepdim=True)
        docked = torch.stack([self._dock(m, f) for m, f in features.items()], 1)  # (B,M,c)
        if self.mode == "sampled" or (self.mode == "auto" and self.training):
            drawn = torch.multinomial(chances, docked.shape[2], replacement=True)  # (B,c)
            joint = docked.gather(1, drawn[:, None]).squeeze(1)
        else:
            joint = (docked * chances[..., None]).sum(1)
        return self.linear(self.dropout(joint))

    def _dock(self, modality: str, features: Features) -> Tensor:
        return functional.relu(self.docking[modality](self.scalers[modality](features)))


def _one_of(available: Tensor) -> Tensor:
    """Keep one of the modalities that are there, (B,M) bool, each with the same chance."""
    kept = torch.multinomial(available.float(), 1)
    return torch.zeros_like(available).scatter(1, kept, True)
