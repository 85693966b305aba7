"""Local-Concepts-Accumulation against the plain loop over kernels."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from retailkit.models.lca import LocalConceptsAccumulation

DIM = 2048


def loop(pool, maps):
    """Every kernel's averages through the layer, window by window of the paper's text."""
    height, width = maps.shape[2:]
    total, count = 0, 0
    for a in range(1, height + 1):
        for b in range(1, width + 1):
            if a * b > 1:
                means = F.avg_pool2d(maps, (a, b), stride=1).permute(0, 2, 3, 1)
                total = total + pool.fc(means).relu().sum((1, 2))
                count += means.shape[1] * means.shape[2]
    return total / count


@pytest.mark.benchmark
@pytest.mark.parametrize("side, batch, backward, target", [(7, 8, False, 5), (14, 2, False, 10), (7, 8, True, 1)])
def test_lca(compare, quick, side, batch, backward, target):
    torch.manual_seed(0)
    pool = LocalConceptsAccumulation(SimpleNamespace(dim=DIM), 10)
    maps = torch.randn(batch, DIM, side, side).relu().requires_grad_(backward)

    def result(function):
        with torch.set_grad_enabled(backward):
            pooled = function(pool, maps) if function is loop else pool.pool(maps)
            return torch.autograd.grad(pooled.square().sum(), maps)[0] if backward else pooled

    ratio = compare(
        "lca",
        f"{DIM}x{side}x{side} -> {DIM}, forward{' and backward' * backward}, {batch} maps",
        "loop over avg_pool2d",
        lambda: result(loop),
        lambda: result(None),
        lambda a, b: (a - b).abs().max(),
        repeat=1 if quick else 3,
    )
    assert ratio >= target
