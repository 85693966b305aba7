"""Local-Concepts-Accumulation: a pooling that gives every part of the picture its own say.

Srivastava 2020, *Bag of Tricks for Retail Product Image Classification*, section 3.1 and figure 2: the last feature
map is averaged over every rectangular window larger than one cell, each average passes the same fully connected
layer and a ReLU, and all results are averaged with equal weight. A 7x7 map has 735 such windows.

The layer is linear before its ReLU, so that it can be applied to the cells (49) instead of the windows (735), and a
mean over a rectangle is a mean along one axis of means along the other. Both leave every number as it is.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from retailkit.config import UsageError
from retailkit.models.encoders import ImageEncoder
from retailkit.models.pooling import Features, FeatureScaler, Pooling

CHANNELS = 512  # handled at a time: what is added up stays in the cache


class LocalConceptsAccumulation(Pooling):
    """Average over windows of ReLU(FC(mean of the window)).

    Args:
        encoder: whose last map is pooled.
        n_classes: not used.
        width: length of the result; 0 takes the number of channels, as the paper's figure suggests.
        include_1x1: count the single cells as windows too.
        per_kernel: first take the largest value over the positions of a kernel, as the public TensorFlow
            implementation does, instead of averaging over all windows alike. Windows lie at stride 1 here as well.
        relu: False leaves the ReLU out: the layer then collapses to a centre-weighted mean and a linear layer.

    Attributes:
        dim: length of the result.
        fc: the shared fully connected layer.
    """

    def __init__(
        self,
        encoder: ImageEncoder,
        n_classes: int = 0,
        width: int = 0,
        include_1x1: bool = False,
        per_kernel: bool = False,
        relu: bool = True,
    ) -> None:
        super().__init__(encoder, n_classes)
        if width < 0:
            raise UsageError(f"width={width} is negative; use 0 for as many as the map has channels")
        self.dim = width or encoder.dim
        self.include_1x1, self.per_kernel, self.relu = include_1x1, per_kernel, relu
        self.scaler = FeatureScaler(encoder.dim)
        self.fc = nn.Linear(encoder.dim, self.dim)

    def look(self, encoder: ImageEncoder, images: Tensor) -> Tensor:
        """Return the last feature maps (B,D,h,w) of images (B,3,H,W) in [0,1]."""
        return encoder.forward_map(images)

    def fit(self, seen: Features) -> None:
        """Bring the channels of training maps (N,D,h,w) to mean 0 and standard deviation 1 from now on."""
        cells = seen.values.permute(0, 2, 3, 1).flatten(0, 2)
        self.scaler.fit(Features(cells, torch.ones(len(cells), dtype=torch.bool)))

    def pool(self, maps: Tensor) -> Tensor:
        """Return (B,dim) of feature maps (B,D,h,w).

        Raises:
            UsageError: a map of a single cell has no window larger than one cell.
        """
        height, width = self._checked(maps)
        if self.per_kernel:
            return self._activate(self.fc(self.scaler.scale(self._strongest(maps)))).mean(1)
        cells = self._cells(maps)
        sums = [self._without_memory(part) for part in cells.split(CHANNELS, dim=-1)]
        return torch.cat(sums, 1) / count_windows(height, width, self.include_1x1)

    def speakers(self, maps: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        """Say how much each window adds to the pooled vector along `direction`.

        With the gradient of a class's logit by the pooled vector as direction, these are the windows that spoke for
        the class; they add up to `pool(maps) @ direction`.

        Args:
            maps: (B,D,h,w).
            direction: (dim,) or (B,dim).

        Returns:
            Boxes (N,4) as x0, y0, x1, y1 in cells, and contributions (B,N).
        """
        if self.per_kernel:
            raise UsageError("with per_kernel=True a kernel speaks, not a window; build the default reading")
        height, width = self._checked(maps)
        along = direction.expand(len(maps), self.dim)
        parts = [
            torch.einsum("bpqd,bd->bpq", self._activate(sums), along).flatten(1) / kernel
            for kernel, sums in self._by_height(self._cells(maps))
        ]
        boxes = windows(height, width, self.include_1x1).to(maps.device)
        return boxes, torch.cat(parts, 1) / len(boxes)

    def _checked(self, maps: Tensor) -> tuple[int, int]:
        height, width = maps.shape[2:]
        if height * width == 1 and not self.include_1x1:
            raise UsageError("the feature map has one cell and no larger window; use larger images or include_1x1")
        return height, width

    def _activate(self, vectors: Tensor) -> Tensor:
        return vectors.relu() if self.relu else vectors

    def _cells(self, maps: Tensor) -> Tensor:
        """Return the layer applied to every cell, (B,h,w,dim): scale, weights and bias all survive a mean."""
        return self.fc(self.scaler.scale(maps.permute(0, 2, 3, 1)))

    def _by_height(self, cells: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield each window height with its windows' sums of row means, (B,positions,runs,channels).

        Divided by the height they are the layer's outputs. Each height's sums are those of the one before and a row.

        Args:
            cells: the layer applied to every cell, (B,h,w,channels).
        """
        height, width = cells.shape[1:3]
        rows = run_means(width, cells) @ cells
        sums = rows
        for kernel in range(1, height + 1):
            if kernel > 1:
                sums = sums[:, :-1] + rows[:, kernel - 1 :]
            single = width if kernel == 1 and not self.include_1x1 else 0  # the first runs are the single cells
            yield kernel, sums[:, :, single:]

    def _sum(self, cells: Tensor) -> Tensor:
        """Return the activations of all windows added up, (B,channels)."""
        # A ReLU lets positive factors through, so that the division can wait for the sum.
        return sum(self._activate(sums).sum((1, 2)) / kernel for kernel, sums in self._by_height(cells))

    def _without_memory(self, cells: Tensor) -> Tensor:
        """Return `_sum`; its many intermediate values are computed again when the gradient asks for them."""
        if torch.is_grad_enabled() and cells.requires_grad:
            return checkpoint(self._sum, cells, use_reentrant=False)
        return self._sum(cells)

    def _strongest(self, maps: Tensor) -> Tensor:
        """Return the largest mean of each kernel over its positions, (B,kernels,D)."""
        height, width = maps.shape[2:]
        kernels = [(a, b) for a in range(1, height + 1) for b in range(1, width + 1)]
        kernels = kernels if self.include_1x1 else kernels[1:]
        return torch.stack([F.avg_pool2d(maps, kernel, 1).amax((2, 3)) for kernel in kernels], 1)


def windows(height: int, width: int, include_1x1: bool = False) -> Tensor:
    """Return every window of a map as x0, y0, x1, y1 in cells, (N,4) int64.

    N is H(H+1)/2 * W(W+1)/2, less H*W without the single cells: 735 for 7x7. Ordered by window height, top row,
    window width, left column.
    """
    boxes = [
        (x, y, x + b, y + a)
        for a in range(1, height + 1)
        for y in range(height - a + 1)
        for b in range(1, width + 1)
        for x in range(width - b + 1)
        if include_1x1 or a * b > 1
    ]
    return torch.tensor(boxes, dtype=torch.int64).reshape(-1, 4)


def count_windows(height: int, width: int, include_1x1: bool = False) -> int:
    """Return the number of windows of a map; see `windows`."""
    return height * (height + 1) // 2 * (width * (width + 1) // 2) - (0 if include_1x1 else height * width)


def run_means(length: int, like: Tensor) -> Tensor:
    """Return the (N,length) matrix whose rows average each run of consecutive cells, shortest runs first."""
    kernels = range(1, length + 1)
    rows = [[(x <= i < x + k) / k for i in range(length)] for k in kernels for x in range(length - k + 1)]
    return torch.tensor(rows, dtype=like.dtype, device=like.device)
