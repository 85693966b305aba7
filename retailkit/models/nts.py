"""NTS-Net: a navigator proposes regions, a teacher judges them, a scrutiniser looks at the best ones again.

Yang et al. 2018, *Learning to Navigate for Fine-grained Classification*, with the conventions of the authors' code
where the paper is silent: anchors without regression, hard non-maximum suppression, M = 6 regions that teach, K = 4
that are looked at, parts cut from the input and encoded by the same backbone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_iou

from retailkit.config import UsageError, UserError
from retailkit.models.encoders import ImageEncoder
from retailkit.models.pooling import Pooling

RATIOS = (0.667, 1.0, 1.5)  # width by height, as rounded in the authors' code
THIRDS = (2 ** (1 / 3), 2 ** (2 / 3))
# Stride in cells of the last map, base side as a share of the input, scales: p3, p4, p5 of the authors' code.
LEVELS = ((1, 48 / 448, THIRDS), (2, 96 / 448, THIRDS), (4, 192 / 448, (1.0, *THIRDS)))
IOU = 0.25


class Regions(NamedTuple):
    """What the navigator chose, best first."""

    boxes: Tensor  # (B,M,4) int64 as x0, y0, x1, y1 in pixels of the input; they may overhang it
    scores: Tensor  # (B,M) the navigator's, unbounded


def anchors(size: tuple[int, int], stride: int) -> Tensor:
    """Return the fixed boxes of an input of height and width `size`, (N,4) float as y0, x0, y1, x1 in pixels.

    The order is that of the navigator's flattened maps: level, scale, ratio, row, column. 1,614 boxes at 448 px and
    a stride of 32 pixels per cell, 426 at 224.
    """
    boxes = []
    for cells, share, scales in LEVELS:
        step, side = stride * cells, share * math.sqrt(size[0] * size[1])
        centres = torch.cartesian_prod(*(step / 2 + step * torch.arange(math.ceil(s / step)).double() for s in size))
        for scale, ratio in itertools.product(scales, RATIOS):
            half = torch.tensor([side * scale / math.sqrt(ratio), side * scale * math.sqrt(ratio)]).double() / 2
            boxes.append(torch.cat([centres - half, centres + half], 1))
    return torch.cat(boxes).float()


@lru_cache(maxsize=8)
def overlapping(size: tuple[int, int], stride: int) -> Tensor:
    """Return which anchors overlap too much to be both chosen, (N,N) bool: it never changes.

    As in the authors' code, boxes are cut down to whole pixels before, and an overlap of exactly `IOU` is too much.
    """
    boxes = anchors(size, stride).floor().double()
    return box_iou(boxes, boxes) >= IOU


def select(scores: Tensor, overlaps: Tensor, count: int) -> Tensor:
    """Greedy hard non-maximum suppression of a whole batch: `count` indices (B,M) by scores (B,N), best first.

    `overlaps` (N,N) come from `overlapping`. Where fewer than M boxes survive, the best suppressed ones follow;
    `UsageError` where there are fewer at all.
    """
    if count > scores.shape[1]:
        raise UsageError(f"M={count} regions of {scores.shape[1]} anchors; use larger images or a smaller M")
    left = scores.detach().float().clone()
    step_down = left.amax() - left.amin() + 1
    suppressed, chosen = torch.zeros_like(left, dtype=torch.bool), []
    for _ in range(count):
        best = torch.where(suppressed, left - step_down, left).argmax(1)
        chosen.append(best)
        suppressed |= overlaps[best]
        left.scatter_(1, best[:, None], -math.inf)
    return torch.stack(chosen, 1)


def cut(images: Tensor, boxes: Tensor, size: int, fill: Tensor) -> Tensor:
    """Cut boxes out of images and bring each to `size` pixels, in one call.

    Equal to padding with the colour `fill` (3,1,1), slicing and `F.interpolate(..., align_corners=True)` box by box.
    Images (B,3,H,W) and `boxes` (B,M,4) as in `Regions` give (B,M,3,size,size).
    """
    batch, count = boxes.shape[:2]
    height, width = images.shape[2:]
    x0, y0, x1, y1 = (edge[..., None].to(images.dtype) for edge in boxes.unbind(-1))
    steps = torch.linspace(0, 1, size, dtype=images.dtype, device=images.device)
    xs = 2 * (x0 + steps * (x1 - 1 - x0) + 0.5) / width - 1  # (B,M,size)
    ys = 2 * (y0 + steps * (y1 - 1 - y0) + 0.5) / height - 1
    xs, ys = torch.broadcast_tensors(xs[:, :, None], ys[..., None])  # (B,M,size,size)
    grid = torch.stack([xs, ys], -1).flatten(1, 2)
    parts = F.grid_sample(images - fill, grid, align_corners=False) + fill
    return parts.view(batch, 3, count, size, size).transpose(1, 2)


class Navigator(nn.Module):
    """Scores every anchor from the last feature map; layers are named as in the authors' checkpoints."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.down1 = nn.Conv2d(dim, 128, 3, 1, 1)
        self.down2 = nn.Conv2d(128, 128, 3, 2, 1)
        self.down3 = nn.Conv2d(128, 128, 3, 2, 1)
        channels = [len(scales) * len(RATIOS) for _, _, scales in LEVELS]
        self.tidy1, self.tidy2, self.tidy3 = (nn.Conv2d(128, count, 1) for count in channels)

    def forward(self, maps: Tensor) -> Tensor:
        """Return scores (B,N) of maps (B,D,h,w), in the order of `anchors`."""
        scores = []
        for down, tidy in ((self.down1, self.tidy1), (self.down2, self.tidy2), (self.down3, self.tidy3)):
            maps = down(maps).relu()
            scores.append(tidy(maps).flatten(1))
        return torch.cat(scores, 1)


def ranking_loss(scores: Tensor, losses: Tensor) -> Tensor:
    """Return the pairwise hinge loss of the navigator (equation 2), averaged over the batch.

    A region that the teacher finds easier must score higher by one: the sum over pairs with losses_j > losses_i of
    relu(1 - scores_i + scores_j), for scores (B,M) and the teacher's cross entropy `losses` (B,M) on each part.
    """
    harder = losses[:, None, :] > losses[:, :, None]  # [b,i,j]
    gap = 1 - scores[:, :, None] + scores[:, None, :]
    return (gap.relu() * harder).sum() / len(scores)


class NavigatedParts(Pooling):
    """NTS-Net as a pooling: the features of the K best regions, then that of the whole image.

    Args:
        encoder, n_classes: see `Pooling`.
        propose: M, regions that the teacher judges.
        parts: K, regions that the scrutiniser looks at; 0 leaves the whole image alone.
        ranking_weight: lambda, of the navigator's loss.
        part_weight: mu, of the teacher's loss.
        navigate: False takes regions at random: what is left of the method without its navigator.

    Raises:
        UsageError: more parts than proposals.
    """

    def __init__(
        self,
        encoder: ImageEncoder,
        n_classes: int,
        propose: int = 6,
        parts: int = 4,
        ranking_weight: float = 1.0,
        part_weight: float = 1.0,
        navigate: bool = True,
    ) -> None:
        super().__init__(encoder, n_classes)
        if not 0 <= parts <= propose or propose < 1:
            raise UsageError(f"parts={parts} (K) is out of range; use 0 to propose={propose} (M), and M from 1 on")
        self.propose, self.parts, self.navigate = propose, parts, navigate
        self.ranking_weight, self.part_weight = ranking_weight, part_weight
        self.navigator, self.dropout = Navigator(encoder.dim), nn.Dropout(0.5)
        self.whole_head, self.part_head = nn.Linear(encoder.dim, n_classes), nn.Linear(encoder.dim, n_classes)
        self.dim = encoder.dim * (parts + 1)

    def look(self, encoder: ImageEncoder, images: Tensor) -> Tensor:
        """Raise `UsageError`: which regions are looked at depends on what the navigator has learned."""
        raise UsageError("NavigatedParts looks at images again; train it with mode='finetune'")

    def forward(self, encoder: ImageEncoder, images: Tensor) -> Tensor:
        """Return (B,(K+1)*D): parts from the best on, then the whole image."""
        maps = encoder.forward_map(images)
        whole = maps.mean((2, 3))
        if not self.parts:
            return whole
        boxes = self._navigate(encoder, maps, images).boxes[:, : self.parts]
        return torch.cat([self._encode(encoder, images, boxes).flatten(1), whole], 1)

    def learn(
        self, encoder: ImageEncoder, images: Tensor, labels: Tensor, criterion: Callable[..., Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return vectors as `forward` does, and the weighted sum of the whole, part and ranking losses."""
        maps = encoder.forward_map(images)
        regions = self._navigate(encoder, maps, images)
        parts = self.dropout(self._encode(encoder, images, regions.boxes))  # (B,M,D)
        whole = self.dropout(maps.mean((2, 3)))
        logits = self.part_head(parts).float()
        repeated = labels.repeat_interleave(self.propose)
        judged = F.cross_entropy(logits.flatten(0, 1), repeated, reduction="none").view(len(labels), -1)
        part_loss = criterion(logits.flatten(0, 1), repeated)  # the mean over M, as in the authors' code
        further = (
            criterion(self.whole_head(whole).float(), labels)
            + self.part_weight * part_loss
            + self.ranking_weight * ranking_loss(regions.scores.float(), judged.detach())
        )
        return torch.cat([parts[:, : self.parts].flatten(1), whole], 1), further

    @torch.no_grad()
    def regions(self, encoder: ImageEncoder, images: Tensor) -> Regions:
        """Return the M regions that the navigator proposes on images (B,3,H,W) in [0,1]."""
        return self._navigate(encoder, encoder.forward_map(images), images)

    def _navigate(self, encoder: ImageEncoder, maps: Tensor, images: Tensor) -> Regions:
        size = tuple(images.shape[2:])
        boxes = anchors(size, encoder.stride).to(maps.device)
        scores = self.navigator(maps.detach())  # the ranking loss trains the navigator only
        if scores.shape[1] != len(boxes):
            raise UsageError(f"{encoder.name} gives a map of {tuple(maps.shape[2:])} cells, too few for {size} pixels")
        order = scores
        if not self.navigate:  # the same random order for every call, so that an evaluation can be repeated
            generator = torch.Generator().manual_seed(len(boxes))
            order = torch.rand(len(boxes), generator=generator).to(scores).expand_as(scores)
        chosen = select(order, overlapping(size, encoder.stride).to(maps.device), self.propose)
        return Regions(boxes[chosen].floor().long()[..., [1, 0, 3, 2]], scores.gather(1, chosen))

    def _encode(self, encoder: ImageEncoder, images: Tensor, boxes: Tensor) -> Tensor:
        # At half the side of the input; no gradient goes to the pixels.
        parts = cut(images.detach(), boxes, images.shape[-1] // 2, encoder.mean)
        return encoder(parts.flatten(0, 1)).view(len(images), boxes.shape[1], -1)


REFERENCE_PREFIXES = {  # of the names in the authors' checkpoints, and ours; what follows is the same
    "pretrained_model.fc.": "pooling.whole_head.",
    "pretrained_model.": "image_encoder.network.",
    "proposal_net.": "pooling.navigator.",
    "partcls_net.": "pooling.part_head.",
    "concat_net.": "head.linear.",
}


def from_reference(state: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """Rename the tensors of a checkpoint of the authors' code to those of our `nts` model; `UserError` for another.

    The layouts agree: anchors in the same order, parts before the whole image in the classifier.
    """
    renamed = {}
    for name, value in state.items():
        prefix = next((p for p in REFERENCE_PREFIXES if name.startswith(p)), None)
        if prefix is None:
            raise UserError(f"{source}: {name!r} is no tensor of the authors' NTS-Net; give their model.ckpt")
        renamed[REFERENCE_PREFIXES[prefix] + name.removeprefix(prefix)] = value
    if "head.linear.weight" not in renamed:
        raise UserError(f"{source}: no tensor 'concat_net.weight', so no checkpoint of NTS-Net; give model.ckpt")
    return renamed
