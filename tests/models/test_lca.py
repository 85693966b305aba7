"""Local-Concepts-Accumulation against the plain loop over windows."""

from types import SimpleNamespace

import pytest
import torch

from retailkit import models
from retailkit.config import UsageError
from retailkit.models.lca import LocalConceptsAccumulation, count_windows, windows


def layer(**options):
    torch.manual_seed(0)
    return LocalConceptsAccumulation(SimpleNamespace(dim=6), 3, **options).double()


def plain(pool, maps):
    """The paper's text, window by window."""
    boxes = windows(*maps.shape[2:]).tolist()
    vectors = torch.stack([pool.fc(maps[:, :, y0:y1, x0:x1].mean((2, 3))) for x0, y0, x1, y1 in boxes], 1)
    return (vectors.relu() if pool.relu else vectors).mean(1)


@pytest.mark.parametrize("shape", [(7, 7), (4, 6), (1, 5), (5, 1)])
@pytest.mark.parametrize("options", [{}, {"width": 3}, {"relu": False}])
def test_every_window_counts_once_and_gradients_are_those_of_the_plain_loop(shape, options):
    pool, maps = layer(**options), torch.randn(2, 6, *shape, dtype=torch.float64, requires_grad=True)
    ours, theirs = pool.pool(maps), plain(pool, maps)
    assert torch.allclose(ours, theirs)
    gradients = (torch.autograd.grad(result.square().sum(), [maps, *pool.parameters()]) for result in (ours, theirs))
    assert all(torch.allclose(one, other) for one, other in zip(*gradients, strict=True))


@pytest.mark.parametrize(("side", "count"), [(4, 84), (5, 200), (6, 405), (7, 735), (8, 1232), (14, 10829)])
def test_the_windows_are_all_rectangles_but_single_cells(side, count):
    boxes = windows(side, side)
    assert len({tuple(b) for b in boxes.tolist()}) == len(boxes) == count == count_windows(side, side)
    size = boxes[:, 2:] - boxes[:, :2]
    assert boxes.min() == 0 and boxes.max() == side and size.min() == 1 and size.prod(1).min() == 2


def test_without_its_relu_it_is_a_centre_weighted_mean():
    pool, maps, weight = layer(relu=False), torch.randn(1, 6, 5, 5, dtype=torch.float64), torch.zeros(5, 5).double()
    for x0, y0, x1, y1 in windows(5, 5).tolist():
        weight[y0:y1, x0:x1] += 1 / ((x1 - x0) * (y1 - y0))
    assert torch.allclose(pool.pool(maps), pool.fc((maps * weight / weight.sum()).sum((2, 3))))
    assert weight[2, 2] > weight[0, 0]


def test_window_contributions_sum_to_the_logit():
    pool, maps, direction = layer(), torch.randn(2, 6, 4, 3).double(), torch.randn(6).double()
    boxes, parts = pool.window_contributions(maps, direction)
    assert boxes.shape == (len(windows(4, 3)), 4) and parts.shape == (2, len(boxes))
    assert torch.allclose(parts.sum(1), pool.pool(maps) @ direction)
    x0, y0, x1, y1 = boxes[7].tolist()
    vector = pool.fc(maps[:, :, y0:y1, x0:x1].mean((2, 3))).relu() / len(boxes)
    assert torch.allclose(parts[:, 7], vector @ direction)


def test_the_contributions_to_a_class_sum_to_its_logit():
    model = models.build("lca", ["a", "b", "c"], "timm:test_resnet", weights=None, width=6).eval()
    torch.nn.init.normal_(model.head.linear.weight)
    images, labels = torch.rand(2, 3, 96, 96), torch.tensor([2, 0])
    boxes, contributions = model.window_contributions(images, labels)
    logits = model(images).gather(1, labels[:, None])[:, 0]
    assert torch.allclose(contributions.sum(1) + model.head.linear.bias[labels], logits, atol=1e-5)
    assert boxes.max() == 96 and contributions.shape == (2, len(boxes))
    with pytest.raises(UsageError, match="use larger images"):
        model(torch.rand(1, 3, 32, 32))
    with pytest.raises(UsageError, match="pooling='lca'"):
        models.build("image", ["a"], "timm:test_resnet", weights=None).window_contributions(images, labels)
