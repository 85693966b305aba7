"""Heads that join image and words: score fusion, feature concatenation, EmbraceNet.

All three stand on the same two encoders, so that what differs between them is the joint alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from retailkit.models.pooling import Criterion, Features, FeatureScaler, Head

SHARES = torch.linspace(0, 1, 21)  # weights of the image that `ScoreFusion.tune` tries
WIDTH = 256  # of EmbraceNet's joint vector, the paper's c
MODALITY_DROPOUT = 0.5  # chance that a training batch of EmbraceNet shows one modality per row


class ScoreFusion(Head):
    """Two classifiers that never meet: the weighted mean of their probabilities.

    Each classifier learns by itself, from the rows that have its modality. A row with one modality gets the answer of
    that classifier alone. The logits are log probabilities of the mean, so that their softmax is that mean.
    The `shares`, in the order of the modalities, sum to 1 and are equal until `tune` is called.
    """

    tunes = True

    def __init__(self, scalers: Mapping[str, FeatureScaler], n_classes: int) -> None:
        super().__init__(scalers)
        self.linear = nn.ModuleDict({m: nn.Linear(len(s.mean), n_classes) for m, s in scalers.items()})
        self.register_buffer("shares", torch.full((len(scalers),), 1 / len(scalers)))

    def forward(self, features: Mapping[str, Features]) -> Tensor:
        """Return logits (B,K) of the features by modality."""
        shares = dict(zip(self.scalers, self.shares.clamp(min=1e-12), strict=True))  # a share of 0 answers where alone
        weights = torch.stack([shares[m] * f.available for m, f in features.items()])  # (M,B)
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
        probs = [self._logits(m, f)[there].float().softmax(1) for m, f in features.items()]
        one, two = (p.gather(1, labels[there, None])[:, 0] for p in probs)
        likely = torch.stack([(s * one + (1 - s) * two).clamp(min=1e-12).log().mean() for s in SHARES.tolist()])
        best = float(SHARES[likely.argmax().cpu()])
        self.shares.copy_(torch.tensor([best, 1 - best]))

    def _logits(self, modality: str, features: Features) -> Tensor:
        return self.linear[modality](self.scalers[modality](features))


class Concatenation(Head):
    """One linear layer over the features of all modalities laid end to end.

    Modalities are scaled to the same total variance, so that a longer vector does not count more. A missing
    modality is replaced by the average of the training rows, which is zero after scaling.
    """

    def __init__(self, scalers: Mapping[str, FeatureScaler], n_classes: int) -> None:
        super().__init__(scalers)
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
        return self.linear(torch.cat(parts, 1))


class EmbraceNet(Head):
    """EmbraceNet (Choi and Lee, Information Fusion 2019).

    A docking layer brings each modality to the same width. Each unit of the joint vector is then the unit of one
    modality that is there, drawn at random with equal chances; in evaluation it is the mean over all draws, so that the
    same image always gets the same answer. Half of the training batches show a single modality per row.
    """

    def __init__(self, scalers: Mapping[str, FeatureScaler], n_classes: int) -> None:
        super().__init__(scalers)
        self.docking = nn.ModuleDict({m: nn.Linear(len(s.mean), WIDTH) for m, s in scalers.items()})
        self.linear = nn.Linear(WIDTH, n_classes)

    def forward(self, features: Mapping[str, Features]) -> Tensor:
        """Return logits (B,K) of the features by modality."""
        available = torch.stack([f.available for f in features.values()], 1)  # (B,M)
        docked = [functional.relu(self.docking[m](self.scalers[m](f))) for m, f in features.items()]
        docked = torch.stack(docked, 1)  # (B,M,c)
        if self.training:
            if torch.rand(()) < MODALITY_DROPOUT:
                kept = torch.multinomial(available.float(), 1)  # of those that are there, each with the same chance
                available = torch.zeros_like(available).scatter(1, kept, True)
            drawn = torch.multinomial(available.float(), WIDTH, replacement=True)  # (B,c)
            joint = docked.gather(1, drawn[:, None]).squeeze(1)
        else:
            chances = available / available.sum(1, keepdim=True)
            joint = (docked * chances[..., None]).sum(1)
        return self.linear(joint)
