"""Random transforms of training images."""

import pytest
import torch
from torchvision import tv_tensors

from retailkit.data.augment import AUGMENTATIONS, LoseResolution, OnShelf


@pytest.fixture
def parts():
    mask = torch.zeros(1, 60, 50, dtype=torch.bool)
    mask[:, 10:50, 10:40] = True
    return {"image": tv_tensors.Image(torch.full((3, 60, 50), 200, dtype=torch.uint8)), "mask": tv_tensors.Mask(mask)}


def test_a_shelf_behind_a_packshot_leaves_the_product(parts):
    changed = OnShelf(share=1.0)(parts)
    inside = parts["mask"].expand(3, -1, -1).as_subclass(torch.Tensor)
    assert (changed["image"].as_subclass(torch.Tensor)[inside] == 200).all()
    assert changed["image"].as_subclass(torch.Tensor)[~inside].float().std() > 5
    assert OnShelf(share=1.0)({"image": parts["image"]})["image"] is parts["image"]


def test_less_resolution_keeps_the_size(parts):
    noise = {"image": tv_tensors.Image(torch.randint(0, 256, (3, 60, 50), dtype=torch.uint8))}
    coarse = LoseResolution(least=0.2)(noise)["image"]
    assert coarse.shape == (3, 60, 50) and coarse.float().std() < noise["image"].float().std()


def test_the_packshot_policy_follows_torchs_seed(parts):
    policy = AUGMENTATIONS["packshot"](32)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(policy(parts)["image"])
    assert results[0].shape == (3, 32, 32)
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])
    assert "object at" not in repr(policy), "its repr is part of a cache key"
