"""An ensemble: the weighted sum of the log-probabilities of networks and of the scores of keypoint matchers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.nn import functional

from retailkit.config import UsageError
from retailkit.models.classifier import ImageScorer
from retailkit.models.pooling import Features

WEIGHTS = (0.0, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # values that `Ensemble.tune` tries for each member
ROUNDS = 3


class Ensemble(ImageScorer):
    """Add up the log-probabilities of trained members that see the same image, each at its own input size.

    The softmax of the sum is the normalised product of the members' probabilities, each raised to its weight (Kittler
    et al. 1998). With `flip`, a member's log-probabilities are the mean over the image and its mirror image.

    Args:
        members: image models of the same classes in the same order, each with its `input_size` set.
        flips: which members also see the mirror image.

    Attributes:
        weights: (M,) of the members; all 1 until `tune` chooses them. Their ratios decide the order of the classes,
            their size how confident the ensemble is.
        input_size: side in pixels of the images it expects: the largest of the members'.

    Raises:
        UsageError: no members, members of other classes, or members that read texts.
    """

    def __init__(self, members: Sequence[nn.Module], flips: Sequence[bool]) -> None:
        super().__init__()
        if not members or len(flips) != len(members):
            raise UsageError(f"{len(members)} members and {len(flips)} flips; an ensemble needs one flip per member")
        for member in members:
            if list(member.classes) != list(members[0].classes):
                raise UsageError("the members have different classes; train them on the same data")
            if member.modalities != ("image",):
                raise UsageError("a member reads texts; an ensemble is made of image models")
        self.members, self.flips, self.classes = nn.ModuleList(members), list(flips), list(members[0].classes)
        # Where weights came from does not belong to the architecture: a loaded and a trained member are the same.
        described = [
            m.build_args | {"weights": None, "text_weights": None, "size": m.input_size, "flip": flip}
            for m, flip in zip(members, flips, strict=True)
        ]
        self.build_args = {"name": "ensemble", "classes": self.classes, "members": described}
        self.input_size = max(m.input_size for m in members)
        self.register_buffer("weights", torch.ones(len(members)))

    def with_members(self, members: Sequence[nn.Module]) -> Ensemble:
        """Return an ensemble of other members with the same weights."""
        twin = Ensemble(members, self.flips)
        twin.weights, twin.training = self.weights, self.training
        return twin

    def encode_image(self, images: Tensor) -> Features:
        """Return the log-probabilities (B,M*K) of all members side by side, for images (B,3,H,W) in [0,1]."""
        parts = [self._log_probs(m, flip, images) for m, flip in zip(self.members, self.flips, strict=True)]
        return Features.present(torch.cat([part.float() for part in parts], 1))

    def score(self, values: Tensor) -> Tensor:
        """Return logits (B,K): the weighted sum over the members."""
        return torch.einsum("bmk,m->bk", self._by_member(values), self.weights)

    @torch.no_grad()
    def tune(self, encoded: Features, labels: Tensor) -> None:
        """Choose the weights that classify most of the given images correctly; no member may have learned from them.

        Coordinate search over what `encode_image` gave and labels (B,): one weight after the other over `WEIGHTS`, for
        `ROUNDS` rounds. Ties go to the weights with the lowest cross entropy. `calibrate` ends it.
        """
        log_probs = self._by_member(encoded.values)
        weights = torch.ones(len(self.members), device=log_probs.device)

        def quality(logits: Tensor) -> tuple[int, float]:
            return int((logits.argmax(1) == labels).sum()), -float(functional.cross_entropy(logits, labels))

        for _, m in itertools.product(range(ROUNDS), range(len(self.members))):
            tried = weights.repeat(len(WEIGHTS), 1)
            tried[:, m] = torch.tensor(WEIGHTS, device=log_probs.device)
            qualities = [quality(logits) for logits in torch.einsum("bmk,tm->tbk", log_probs, tried)]
            weights = tried[qualities.index(max(qualities))]
        self.weights.copy_(weights)
        self.calibrate(encoded, labels)

    @torch.no_grad()
    def calibrate(self, encoded: Features, labels: Tensor) -> None:
        """Divide all weights by the temperature with the lowest cross entropy (Guo et al. 2017), from 0.05 to 20.

        Takes the same as `tune`; the order of the classes stays the same.
        """
        logits = self.score(encoded.values).double()
        scale = minimize_scalar(lambda s: float(functional.cross_entropy(logits * math.exp(s), labels)), bounds=(-3, 3))
        self.weights.mul_(math.exp(scale.x))

    def _by_member(self, values: Tensor) -> Tensor:
        return values.view(len(values), len(self.members), len(self.classes))

    def _log_probs(self, member: nn.Module, flip: bool, images: Tensor) -> Tensor:
        if images.shape[-1] != member.input_size:
            images = functional.interpolate(images, [member.input_size] * 2, mode="bilinear", antialias=True)
        log_probs = member(images).log_softmax(1)
        return (log_probs + member(images.flip(-1)).log_softmax(1)) / 2 if flip else log_probs
