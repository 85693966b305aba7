"""Local-Concepts-Accumulation against the plain loop over windows."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from retailkit import models
from retailkit.config import UsageError
from retailkit.models.lca import LocalConceptsAccumulation, windows


def layer(dim=6, **options):
    torch.manual_seed(0)
    return LocalConceptsAccumulation(SimpleNamespace(dim=dim), 3, **options)


def plain(pool, maps):
    """The paper's text, window by window."""
    height, width = maps.shape[2:]
    vectors = []
    for a in range(1, height + 1):
        for b in range(1, width + 1):
            if a * b > 1:
                means = F.avg_pool2d(maps, (a, b), stride=1)
                vectors += [pool.fc(means[:, :, y, x]) for y in range(means.shape[2]) for x in range(means.shape[3])]
    vectors = torch.stack(vectors, 1)
    return (vectors.relu() if pool.relu else vectors).mean(1)


@pytest.mark.parametrize("shape", [(7, 7), (4, 6), (1, 5), (5, 1)])
@pytest.mark.parametrize("options", [{}, {"width": 3}, {"relu": False}])
def test_every_window_counts_once(shape, options):
    pool, maps = layer(**options), torch.randn(2, 6, *shape)
    assert torch.allclose(pool.pool(maps), plain(pool, maps), atol=1e-5)


def test_gradients_are_those_of_the_plain_loop():
    pool = layer().double()
    maps = torch.randn(2, 6, 4, 5, dtype=torch.float64, requires_grad=True)
    gradients = []
    for result in (pool.pool(maps), plain(pool, maps)):
        gradients.append(torch.autograd.grad(result.square().sum(), [maps, *pool.parameters()]))
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.allclose(ours, theirs)


@pytest.mark.parametrize(("side", "count"), [(4, 84), (5, 200), (6, 405), (7, 735), (8, 1232), (14, 10829)])
def test_the_number_of_windows(side, count):
    boxes = windows(side, side)
    assert len(boxes) == count == len({tuple(b) for b in boxes.tolist()})


def test_without_its_relu_it_is_a_centre_weighted_mean():
    pool, maps = layer(relu=False), torch.randn(1, 6, 5, 5)
    weight = torch.zeros(5, 5)
    for x0, y0, x1, y1 in windows(5, 5).tolist():
        weight[y0:y1, x0:x1] += 1 / ((x1 - x0) * (y1 - y0))
    mean = (maps * weight / weight.sum()).sum((2, 3))
    assert torch.allclose(pool.pool(maps), pool.fc(mean), atol=1e-5)
    assert weight[2, 2] > weight[0, 0]


def test_window_contributions_sum_to_the_logit():
    pool, maps, direction = layer(), torch.randn(2, 6, 4, 3), torch.randn(6)
    boxes, parts = pool.window_contributions(maps, direction)
    assert boxes.shape == (len(windows(4, 3)), 4) and parts.shape == (2, len(boxes))
    assert torch.allclose(parts.sum(1), pool.pool(maps) @ direction, atol=1e-5)
    x0, y0, x1, y1 = boxes[7].tolist()
    vector = pool.fc(maps[:, :, y0:y1, x0:x1].mean((2, 3))).relu() / len(boxes)
    assert torch.allclose(parts[:, 7], vector @ direction, atol=1e-6)


def test_a_single_cell_has_no_window():
    with pytest.raises(UsageError, match="use larger images"):
        layer().pool(torch.randn(1, 6, 1, 1))


def test_the_contributions_to_a_class_sum_to_its_logit():
    model = models.build("lca", ["a", "b", "c"], "timm:test_resnet", weights=None, width=6).eval()
    torch.nn.init.normal_(model.head.linear.weight)
    images, labels = torch.rand(2, 3, 96, 96), torch.tensor([2, 0])
    boxes, contributions = model.window_contributions(images, labels)
    logits = model(images).gather(1, labels[:, None])[:, 0]
    bias = model.head.linear.bias[labels]
    assert torch.allclose(contributions.sum(1) + bias, logits, atol=1e-5)
    assert boxes.max() == 96 and contributions.shape == (2, len(boxes))
    with pytest.raises(UsageError, match="pooling='lca'"):
        models.build("image", ["a"], "timm:test_resnet", weights=None).window_contributions(images, labels)
