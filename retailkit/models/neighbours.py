"""Nearest neighbours among the descriptors of a whole gallery, on one core in milliseconds."""

from __future__ import annotations

from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.nn import functional

from retailkit.cache import digest
from retailkit.config import has_bfloat16

BLOCK = 16  # consecutive vectors of which the first pass keeps only the largest similarity
SPARE = 8  # blocks beyond those that are needed: the first pass rounds
AT_ONCE = 4096  # vectors of a matrix product: its result then stays in the processor's cache


class Neighbours:
    """Search the vectors that are most similar to a query.

    Two passes are five times as fast as one product in float32 and a complete sort. The first computes all similarities
    in bfloat16 where the processor has it, and keeps the maximum of each block of vectors. The k nearest vectors lie in
    the k blocks with the largest maxima. The second computes the similarities within these blocks, and `SPARE` more, in
    float32. Of many near-copies another one may take the place of a nearest one: it is as similar up to 0.004.

    Args:
        vectors: (N,D) float32 unit vectors.
    """

    def __init__(self, vectors: Tensor) -> None:
        self.vectors = vectors.contiguous()
        self.coarse = self.vectors.to(torch.bfloat16 if has_bfloat16() else torch.float32)
        self._last: tuple[Tensor, tuple[Tensor, Tensor]] | None = None

    def __call__(self, query: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return the similarities (Q,k) of query (Q,D) to its nearest vectors, largest first, and their numbers (Q,k).

        There are fewer columns where there are fewer vectors. Two members of an ensemble share the last answer.
        """
        k = min(k, len(self.vectors))
        last = self._last  # read once: another thread may be asking something else
        if last is None or last[1][0].shape[1] != k or not torch.equal(last[0], query):
            last = self._last = query, self._search(query, k)
        return last[1]

    def _search(self, query: Tensor, k: int) -> tuple[Tensor, Tensor]:
        maxima = self._maxima(query)
        blocks = maxima.topk(min(k + SPARE, maxima.shape[1]), dim=1).indices
        numbers = (blocks[:, :, None] * BLOCK + torch.arange(BLOCK)).flatten(1)
        missing = numbers >= len(self.vectors)  # the last block may be shorter
        numbers = numbers.clamp(max=len(self.vectors) - 1)
        candidates = self.vectors[numbers.flatten()].view(*numbers.shape, -1)
        similarity = torch.bmm(candidates, query[:, :, None])[..., 0].masked_fill(missing, -torch.inf)
        best, where = similarity.topk(k, dim=1)
        return best, numbers.gather(1, where)

    def _maxima(self, query: Tensor) -> Tensor:
        """Return the largest similarity with each block of vectors, (Q, number of blocks), rounded."""
        columns = query.to(self.coarse.dtype).T.contiguous()
        memory = torch.empty(AT_ONCE, len(query), dtype=self.coarse.dtype)
        maxima = []
        for part in self.coarse.split(AT_ONCE):
            similarity = torch.mm(part, columns, out=memory[: len(part)])
            if short := -len(part) % BLOCK:  # only of the last part; padding by nothing would copy it, too
                similarity = functional.pad(similarity, (0, 0, 0, short), value=-torch.inf)
            maxima.append(similarity.view(-1, BLOCK, len(query)).amax(1))
        return torch.cat(maxima).T.contiguous()


_SHARED: WeakValueDictionary[str, Neighbours] = WeakValueDictionary()


def shared(vectors: Tensor) -> Neighbours:
    """Return the search among some vectors; models with the same gallery share one."""
    key = digest(vectors)
    return _SHARED.setdefault(key, _SHARED.get(key) or Neighbours(vectors))
