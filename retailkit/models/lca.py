"""Local-Concepts-Accumulation (LCA): a pooling to which every region of the image contributes equally.

Srivastava 2020, *Bag of Tricks for Retail Product Image Classification*, section 3.1 and figure 2. Two identities make
it fast without changing a number. A mean commutes with a linear layer, so the layer runs once per cell (49 times on a
7x7 map) instead of once per window (735 times). And the mean over a rectangle is a mean along one axis of means along
the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from retailkit.config import UsageError
from retailkit.models.encoders import ImageEncoder
from retailkit.models.pooling import Features, FeatureScaler, Pooling

CHANNELS, FEWEST, SUMS = 512, 8, 2**20  # processed at a time: so many channels, fewer where there are many windows,
# so that the running sums stay in the processor's cache


class LocalConceptsAccumulation(Pooling):
    """The mean of ReLU(FC(window mean)) over every rectangular window larger than one cell.

    `width` is the length of the result; 0 takes the number of channels, as the paper's figure suggests. Without `relu`
    the layer equals one linear layer on a centre-weighted mean. `fc` is the shared fully connected layer.
    """

    def __init__(self, encoder: ImageEncoder, n_classes: int, width: int = 0, relu: bool = True) -> None:
        super().__init__(encoder, n_classes)
        self.dim, self.relu = width or encoder.dim, relu
        self.scaler = FeatureScaler(encoder.dim)
        self.fc = nn.Linear(encoder.dim, self.dim)

    def fit(self, seen: Features) -> None:
        """Standardise the channels from now on by those of training maps (N,D,h,w)."""
        self.scaler.fit(Features.present(seen.values.permute(0, 2, 3, 1).flatten(0, 2)))

    def pool(self, maps: Tensor) -> Tensor:
        """Return (B,dim) of feature maps (B,D,h,w); `UsageError` for maps of a single cell."""
        batch, _, height, width = maps.shape
        at_once = SUMS // (batch * height * width * (width + 1) // 2)
        parts, add_up = self._cells(maps).split(min(CHANNELS, max(FEWEST, at_once)), dim=-1), self._sum
        if torch.is_grad_enabled() and parts[0].requires_grad:  # then many intermediate values would have to be kept
            add_up = partial(checkpoint, self._sum, use_reentrant=False)
        return torch.cat([add_up(part) for part in parts], 1) / count_windows(height, width)

    def window_contributions(self, maps: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        """Return all windows, (N,4) as x0, y0, x1, y1 in cells, and what each adds along `direction`, (B,N).

        With the gradient of a class logit with respect to the pooled vector as direction (dim,) or (B,dim), these are
        the contributions of the windows to that logit. They sum to `pool(maps) @ direction`.
        """
        along = direction.expand(len(maps), self.dim)
        parts = [
            torch.einsum("bpqd,bd->bpq", self._activate(sums), along).flatten(1) / kernel
            for kernel, sums in self._by_height(self._cells(maps))
        ]
        boxes = windows(*maps.shape[2:]).to(maps.device)
        return boxes, torch.cat(parts, 1) / len(boxes)

    def _activate(self, vectors: Tensor) -> Tensor:
        return vectors.relu() if self.relu else vectors

    def _cells(self, maps: Tensor) -> Tensor:
        """Return the layer applied to every cell, (B,h,w,dim): a mean commutes with scale, weights and bias."""
        if maps.shape[2] * maps.shape[3] == 1:
            raise UsageError("the feature map has one cell and no larger window; use larger images")
        return self.fc(self.scaler.scale(maps.permute(0, 2, 3, 1)))

    def _by_height(self, cells: Tensor) -> Iterator[tuple[int, Tensor]]:
        # Each window height with the sums of row means of its windows, (B,positions,runs,channels). Divided by it
        # they are the layer's outputs. Each height adds one more row to the sums of the last one.
        height, width = cells.shape[1:3]
        rows = run_means(width, cells) @ cells
        sums = rows
        for kernel in range(1, height + 1):
            if kernel > 1:
                sums = sums[:, :-1] + rows[:, kernel - 1 :]
            yield kernel, sums[:, :, width if kernel == 1 else 0 :]  # the first runs of height 1 are single cells

    def _sum(self, cells: Tensor) -> Tensor:
        # ReLU(x / k) = ReLU(x) / k, so the division can wait for the sum.
        return sum(self._activate(sums).sum((1, 2)) / kernel for kernel, sums in self._by_height(cells))


def windows(height: int, width: int) -> Tensor:
    """Return every window of a map but its single cells as x0, y0, x1, y1 in cells, (N,4) int64.

    N is H(H+1)/2 * W(W+1)/2 - H*W: 735 for 7x7. Ordered by window height, top row, window width, left column.
    """
    boxes = [
        (x, y, x + b, y + a)
        for a in range(1, height + 1)
        for y in range(height - a + 1)
        for b in range(1, width + 1)
        for x in range(width - b + 1)
        if a * b > 1
    ]
    return torch.tensor(boxes, dtype=torch.int64).reshape(-1, 4)


def count_windows(height: int, width: int) -> int:
    """Return the number of windows of a map; see `windows`."""
    return height * (height + 1) // 2 * (width * (width + 1) // 2) - height * width


def run_means(length: int, like: Tensor) -> Tensor:
    """Return the (N,length) matrix whose rows average each run of consecutive cells, shortest runs first."""
    kernels = range(1, length + 1)
    rows = [[(x <= i < x + k) / k for i in range(length)] for k in kernels for x in range(length - k + 1)]
    return torch.tensor(rows, dtype=like.dtype, device=like.device)
