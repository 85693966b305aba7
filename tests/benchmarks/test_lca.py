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


def saved_bytes(call):
    """Bytes kept for the backward pass."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = call()
    assert result.requires_grad
    return sum(kept.values())


@pytest.fixture(scope="module")
def pool():
    torch.manual_seed(0)
    return LocalConceptsAccumulation(SimpleNamespace(dim=DIM), 10)


@pytest.mark.benchmark
@pytest.mark.parametrize(("side", "batch", "target"), [(7, 8, 10), (14, 2, 25)])
def test_lca(pool, compare_cpu, side, batch, target):
    maps = torch.randn(batch, DIM, side, side).relu()
    ways, case = (lambda: loop(pool, maps), lambda: pool.pool(maps)), f"{DIM}x{side}x{side} -> {DIM}, forward"
    with torch.no_grad():
        ratio = compare_cpu("lca", f"{case}, {batch} maps", "loop over avg_pool2d", *ways, tolerance=1e-5)
    assert ratio >= target


@pytest.mark.benchmark
def test_lca_in_training(pool, compare_cpu):
    maps = torch.randn(8, DIM, 7, 7).relu().requires_grad_()
    ways = lambda: loop(pool, maps), lambda: pool.pool(maps)
    assert saved_bytes(ways[1]) <= saved_bytes(ways[0])
    gradients = [lambda way=way: torch.autograd.grad(way().square().sum(), maps)[0] for way in ways]
    compare_cpu("lca", f"{DIM}x7x7 -> {DIM}, forward and backward, 8 maps", "loop over avg_pool2d", *gradients)
