"""Small networks and images that tests of explanations share."""

import pytest
import torch
from torch import nn

from retailkit import models


@pytest.fixture(scope="session")
def network():
    """Return a function that builds a model without pretrained weights whose feature maps are not constant."""

    def build(name="image", backbone="timm:test_resnet", **options):
        torch.manual_seed(0)
        model = models.build(name, ["lean", "extra lean", "medium"], backbone, weights=None, **options).eval()
        for layer in model.image_encoder.modules() if model.image_encoder else ():
            if isinstance(layer, nn.BatchNorm2d):
                nn.init.uniform_(layer.weight, 0.5, 1.5)
                nn.init.uniform_(layer.bias, -0.5, 0.5)
        return model

    return build


@pytest.fixture(scope="session")
def pictures():
    """Return a function that draws random images (B,3,side,side)."""
    return lambda count=1, side=64, seed=0: torch.rand(
        count, 3, side, side, generator=torch.Generator().manual_seed(seed)
    )
