"""From feature maps to one vector per image: the interface of a pooling, and the plain mean."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from retailkit.config import UsageError, pick
from retailkit.models.encoders import ImageEncoder

Criterion = Callable[[Tensor, Tensor], Tensor]


class Features(NamedTuple):
    """What an encoder says about a batch."""

    values: Tensor  # (B,D) float; zeros where unavailable
    available: Tensor  # (B,) bool; False where there was nothing to encode

    def rows(self, index: Tensor | slice) -> Features:
        """Return the features of some rows."""
        return Features(self.values[index], self.available[index])

    @staticmethod
    def present(values: Tensor) -> Features:
        """Return features of which every row is available."""
        return Features(values, torch.ones(len(values), dtype=torch.bool, device=values.device))

    @staticmethod
    def joined(parts: Sequence[Features]) -> Features:
        """Return the features of several batches as those of one."""
        return Features(torch.cat([p.values for p in parts]), torch.cat([p.available for p in parts]))


class FeatureScaler(nn.Module):
    """Brings D features to mean 0 and standard deviation 1; does nothing until `fit` is called.

    With `shared`, one standard deviation serves all: rare features of a sparse encoder would become hundreds.
    """

    def __init__(self, dim: int, shared: bool = False) -> None:
        super().__init__()
        self.shared = shared
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))

    @torch.no_grad()
    def fit(self, features: Features) -> None:
        """Measure the available rows of (N,D) features."""
        values = features.values[features.available].float().to(self.mean.device)
        if len(values) < 2:
            return
        variance = values.var(0, correction=0)
        std = (variance.mean().expand_as(variance) if self.shared else variance).sqrt()
        self.mean.copy_(values.mean(0))
        self.std.copy_(torch.where(std > 1e-8, std, 1.0))  # a constant feature is centred, not divided

    def forward(self, features: Features) -> Tensor:
        """Return scaled values (B,D); an unavailable row becomes zeros, the average of the training rows."""
        return self.scale(features.values) * features.available[:, None]

    def scale(self, values: Tensor) -> Tensor:
        """Return scaled values (...,D)."""
        return (values - self.mean) / self.std


class Pooling(nn.Module):
    """Turns what an encoder sees into vectors of length `dim`.

    `look` uses the encoder and nothing that the pooling learns, so that its result may be kept while the encoder is
    frozen; `pool` does the rest. NTS-Net looks at the images again, has no such division and overrides `forward`.

    Args:
        encoder: whose maps are pooled.
        n_classes: K, for poolings that learn from the labels directly.
    """

    def __init__(self, encoder: ImageEncoder, n_classes: int) -> None:
        super().__init__()
        self.dim = encoder.dim

    def look(self, encoder: ImageEncoder, images: Tensor) -> Tensor:
        """Return what can be kept of images (B,3,H,W) in [0,1]: by default, the last feature maps (B,D,h,w)."""
        return encoder.forward_map(images)

    def fit(self, seen: Features) -> None:
        """Adapt to what `look` returned for the training images, before anything is learned."""

    def pool(self, seen: Tensor) -> Tensor:
        """Return vectors (B,dim) of what `look` returned; by default, that is what these are."""
        return seen

    def forward(self, encoder: ImageEncoder, images: Tensor) -> Tensor:
        """Return vectors (B,dim) of images (B,3,H,W) in [0,1]."""
        return self.pool(self.look(encoder, images))

    def learn(
        self, encoder: ImageEncoder, images: Tensor, labels: Tensor, criterion: Criterion
    ) -> tuple[Tensor, Tensor | float]:
        """Return vectors as `forward` does, and the loss of what the pooling learns besides them."""
        return self(encoder, images), 0.0


class GlobalAveragePool(Pooling):
    """The mean of the last feature map."""

    def look(self, encoder: ImageEncoder, images: Tensor) -> Tensor:
        """Return (B,D) of images (B,3,H,W) in [0,1]."""
        return encoder(images)

    def pool(self, seen: Tensor) -> Tensor:
        """Return (B,D) of what `look` returned, or of maps (B,D,h,w)."""
        return seen.mean((2, 3)) if seen.ndim == 4 else seen


class LastBlocks(Pooling):
    """The last blocks of an EfficientNet, which learn although the encoder is frozen, before another pooling.

    What the blocks below them give is computed once, so that fine-tuning costs a fraction of that of the whole network.
    The blocks move out of the encoder, whose maps are from now on those that enter them.
    """

    def __init__(self, encoder: ImageEncoder, inner: Pooling, blocks: int) -> None:
        super().__init__(encoder, 0)
        network, self.dim, self.inner = encoder.network, inner.dim, inner
        if not all(hasattr(network, part) for part in ("blocks", "conv_head", "bn2")):
            raise UsageError(f"learn={blocks} needs an EfficientNet, not {encoder.name!r}; leave it out")
        if type(inner).forward is not Pooling.forward:
            raise UsageError(f"learn={blocks} works with the poolings gap and lca, not {type(inner).__name__}")
        single = [block for stage in network.blocks for block in stage]
        if not 1 <= blocks < len(single):
            raise UsageError(f"learn={blocks} is out of range; {encoder.name} has {len(single)} blocks, one must stay")
        self.learned = nn.Sequential(*single[-blocks:], network.conv_head, network.bn2)
        network.blocks = nn.Sequential(*single[:-blocks])
        network.conv_head = network.bn2 = nn.Identity()

    def pool(self, seen: Tensor) -> Tensor:
        """Return (B,dim) of the maps (B,D,h,w) that enter the learned blocks."""
        return self.inner.pool(self.learned(seen.contiguous(memory_format=torch.channels_last)))

    def rejoined(self, encoder: ImageEncoder) -> ImageEncoder:
        """Return a copy of the encoder with these blocks back in it: `inner` makes the same vectors of its maps."""
        whole, (*blocks, conv_head, bn2) = copy.deepcopy((encoder, self.learned))
        network = whole.network
        network.blocks, network.conv_head, network.bn2 = nn.Sequential(*network.blocks, *blocks), conv_head, bn2
        whole.frozen = False
        return whole


class Head(nn.Module):
    """Turns the features of the modalities into logits; subclasses say how.

    Args:
        scalers: one per modality, in the order of the model's modalities. A subclass also takes `n_classes`, K, and may
            take options such as `dropout`, the share of features left out in training.
    """

    answers_without_features = False  # True where a row without any feature gets logits instead of an error
    tunes = False  # True where `tune` does something
    remembers = False  # True where `fill` keeps the training images and nothing is learned by gradient

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
        """Choose on validation images, after training, what is not learned by gradient."""


class LinearHead(Head):
    """Scale, drop out, one linear layer: logistic regression on the features of a single modality.

    A row without features gets what `missing` says: `raise` an error, or the `prior`: the logits of the average row.
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
