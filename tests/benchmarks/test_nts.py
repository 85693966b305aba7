"""NTS-Net against a straightforward version: suppression image by image, parts one by one, float32."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from retailkit import models
from retailkit.inference import compiled
from retailkit.models import nts

SIDE, STRIDE, PAD = 448, 32, 224


def whole(boxes):
    """The same boxes as (x0, y0, x1, y1), on whole pixels."""
    return boxes.floor().long()[..., [1, 0, 3, 2]]


def suppress(scores, boxes, count):
    """Greedy suppression of one image on the host, as the authors' code does it, on whole pixels."""
    boxes = np.floor(boxes)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    order, chosen = np.argsort(-scores, kind="stable"), []
    while len(order) and len(chosen) < count:
        best = order[0]
        chosen.append(best)
        low = np.maximum(boxes[order, :2], boxes[best, :2])
        high = np.minimum(boxes[order, 2:], boxes[best, 2:])
        shared = np.clip(high - low, 0, None).prod(1)
        order = order[shared / (areas[order] + areas[best] - shared) < nts.IOU]
    return chosen


def suppress_each(scores, boxes, count):
    return torch.tensor(np.array([suppress(row, boxes.numpy(), count) for row in scores.numpy()]))


def cut_one_by_one(images, boxes, size, fill):
    padded = F.pad(images - fill, (PAD,) * 4)
    rows = []
    for image, own in zip(padded, boxes, strict=True):
        crops = [image[None, :, y0:y1, x0:x1] for x0, y0, x1, y1 in (own + PAD).tolist()]
        rows.append(torch.cat([F.interpolate(c, (size, size), mode="bilinear", align_corners=True) for c in crops]))
    return torch.stack(rows) + fill


@pytest.mark.benchmark
def test_selection(compare_cpu):
    boxes, overlapping = nts.anchors((SIDE, SIDE), STRIDE), nts.overlapping((SIDE, SIDE), STRIDE)
    scores = torch.randn(32, len(boxes), generator=torch.Generator().manual_seed(0))
    case, baseline = f"selection: 6 of {len(boxes)} anchors, 32 images", "suppression image by image"
    ways = lambda: suppress_each(scores, boxes, 6), lambda: nts.select(scores, overlapping, 6)
    assert compare_cpu("nts", case, baseline, *ways, repeat=5) >= 10


@pytest.mark.benchmark
def test_crops(compare_cpu):
    torch.manual_seed(0)
    images, fill = torch.rand(8, 3, SIDE, SIDE), torch.full((3, 1, 1), 0.5)
    every = nts.anchors((SIDE, SIDE), STRIDE)
    boxes = whole(every[torch.randint(len(every), (8, 6))])
    ways = [lambda cut=cut: cut(images, boxes, 224, fill) for cut in (cut_one_by_one, nts.cut)]
    case, baseline = "crops: 48 parts of 224 px", "one interpolation a part"
    assert compare_cpu("nts", case, baseline, *ways, repeat=5, tolerance=2e-4) >= 0.95


@pytest.mark.benchmark
@pytest.mark.parametrize("backbone", ["efficientnet_lite0", "resnet18"])  # the workbook uses the first one
def test_evaluation(compare_cpu, quick, backbone):
    side, count = (160, 8) if quick else (224, 16)
    torch.manual_seed(0)
    model = models.build("nts", ["a", "b", "c"], backbone, weights=None).eval()
    encoder, pooling = model.image_encoder, model.pooling
    images = torch.rand(count, 3, side, side)
    boxes = nts.anchors((side, side), STRIDE)

    def features(images):
        return encoder.network.forward_features((images - encoder.mean) / encoder.std)

    @torch.no_grad()
    def straightforward():
        maps = features(images)
        chosen = suppress_each(pooling.navigator(maps), boxes, pooling.propose)
        parts = cut_one_by_one(images, whole(boxes[chosen]), side // 2, encoder.mean)
        parts = features(parts.flatten(0, 1)).mean((2, 3)).view(count, pooling.propose, -1)
        vectors = torch.cat([parts[:, : pooling.parts].flatten(1), maps.mean((2, 3))], 1)
        return model.head.linear(vectors)

    fast = compiled(model)  # as `training.evaluate` does for a split of more than a few images

    @torch.no_grad()
    def ours():
        return fast(images)

    ours()  # compiles
    case = f"evaluation: {count} images of {side} px, {backbone}"
    assert compare_cpu("nts", case, "float32, part by part", straightforward, ours, repeat=3) >= 2
