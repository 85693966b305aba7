"""Recognisers that vote: networks at their own sizes and a keypoint matcher, weighted by what validation says."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from retailkit.config import UsageError, UserError
from retailkit.models.matching import KeypointMatcher
from retailkit.models.pooling import Features

TRIED = (0.0, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # weights of a member
ROUNDS = 3


class Committee(nn.Module):
    """Members see the same picture, each at its own size, and their evidence is added with weights.

    The evidence of a network is its log probabilities, with `flip` the mean of those of the picture and its mirror
    image; that of a matcher is what its method `evidence` says. Like a matcher it has that part of the interface of
    `ProductClassifier` that needs neither gradients nor texts: `encode_image` gives the evidence of all members side by
    side, `classify` adds it up. Members are trained before they join.

    Args:
        members: models of the same classes in the same order, each with its `input_size` set.
        flips: which members also look at the mirror image.

    Attributes:
        build_args: JSON-able arguments from which `models.rebuild` makes the same architecture.
        classes: names; a logit's index is an index into them.
        weights: (M,) of the members' evidence; all 1 until `tune` chooses them or you set them.
        input_size: side in pixels of the pictures it expects: that of the member that sees most.
        fit: how pictures are best brought to that square.

    Raises:
        UsageError: no members, members of other classes, or members that read.
    """

    modalities = ("image",)
    image_encoder = text_encoder = pooling = None

    def __init__(self, members: Sequence[nn.Module], flips: Sequence[bool]) -> None:
        super().__init__()
        if not members or len(flips) != len(members):
            raise UsageError(f"{len(members)} members and {len(flips)} flips; a committee needs one flip for each")
        for member in members:
            if list(member.classes) != list(members[0].classes):
                raise UsageError("the members know different classes; train them on the same data")
            if member.modalities != ("image",):
                raise UsageError("a member reads texts; a committee is made of models that look")
        self.members, self.flips, self.classes = nn.ModuleList(members), list(flips), list(members[0].classes)
        # A member that was loaded and one that was just trained are the same to a cache.
        none = {"weights": None, "text_weights": None}
        of_members = [
            {**m.build_args, **{k: v for k, v in none.items() if k in m.build_args}, "size": m.input_size, "flip": f}
            for m, f in zip(members, flips, strict=True)
        ]
        self.build_args: dict[str, Any] = {"name": "committee", "classes": self.classes, "members": of_members}
        self.input_size, self.fit = max(m.input_size for m in members), members[0].fit
        self.register_buffer("weights", torch.ones(len(members)))

    def encode_image(self, images: Tensor) -> Features:
        """Return the evidence (B,M*K) of all members, side by side, for images (B,3,H,W) in [0,1]."""
        said = [self._evidence(member, flip, images) for member, flip in zip(self.members, self.flips, strict=True)]
        values = torch.cat([part.float() for part in said], 1)
        return Features(values, torch.ones(len(values), dtype=torch.bool, device=values.device))

    encode_frozen = encode_image

    def pool(self, frozen: Features) -> Features:
        """Return what `encode_frozen` gave: there is nothing left to learn."""
        return frozen

    def classify(self, image_features: Features | None = None, text_features: Features | None = None) -> Tensor:
        """Return logits (B,K): the members' evidence, weighted and added."""
        if image_features is None:
            raise UserError("nothing to classify: this model uses image, and got none")
        return torch.einsum("bmk,m->bk", self._by_member(image_features), self.weights)

    def forward(self, images: Tensor, texts: Sequence[str | None] | None = None) -> Tensor:
        """Return logits (B,K) of images (B,3,H,W) in [0,1]; texts are ignored."""
        return self.classify(self.encode_image(images))

    @torch.no_grad()
    def tune(self, seen: Features, labels: Tensor) -> None:
        """Choose the weights under which most pictures are right that no member has learned from.

        Of equally good ones, those under which the right answers are likeliest; not these in the first place, since
        inliers are no probabilities and a wrong place with many of them would cost more than it should. One weight
        after the other, over the values `TRIED`; the members' order does not matter much after `ROUNDS`.

        Args:
            seen: what `encode_image` gave.
            labels: (B,) of the pictures.
        """
        evidence = self._by_member(seen)
        weights = torch.ones(len(self.members), device=evidence.device)
        for _, m in itertools.product(range(ROUNDS), range(len(self.members))):
            tried = weights.repeat(len(TRIED), 1)
            tried[:, m] = torch.tensor(TRIED, device=evidence.device)
            logits = torch.einsum("bmk,tm->tbk", evidence, tried)
            scores = [(int((z.argmax(1) == labels).sum()), -float(functional.cross_entropy(z, labels))) for z in logits]
            weights = tried[scores.index(max(scores))]
        self.weights.copy_(weights)

    def _by_member(self, seen: Features) -> Tensor:
        return seen.values.view(len(seen.values), len(self.members), len(self.classes))

    def _evidence(self, member: nn.Module, flip: bool, images: Tensor) -> Tensor:
        seen = _at(images, member.input_size)
        if isinstance(member, KeypointMatcher):
            return member.evidence(seen)
        said = member(seen).log_softmax(1)
        return (said + member(seen.flip(-1)).log_softmax(1)) / 2 if flip else said


def _at(images: Tensor, size: int) -> Tensor:
    if images.shape[-1] == size:
        return images
    return functional.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
