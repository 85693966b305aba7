"""Occlusion against the plain loop, and on a model whose answer depends on one corner only."""

import pytest
import torch
from torch import nn

from retailkit.config import UsageError
from retailkit.explain import saliency


class Corner(nn.Module):
    """Class 1 is the brightness of the upper left quarter, class 0 is nothing."""

    def forward(self, images, texts=None):
        score = images[:, :, :8, :8].mean((1, 2, 3))
        return torch.stack([torch.zeros_like(score), score], 1)


def test_evidence_lies_where_the_model_looks():
    images = torch.ones(2, 3, 16, 16)
    maps = saliency.attribute(Corner(), images, torch.tensor([1, 1]))
    assert maps.shape == (2, 16, 16)
    assert (maps[:, :8, :8] > 0).all() and maps[:, 9:, 9:].abs().max() == 0
    against = saliency.attribute(Corner(), images, torch.tensor([0, 0]))
    assert torch.allclose(against, -maps)


def test_occlusion_is_the_plain_loop():
    images = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    score = lambda x: (x * torch.arange(64.0).view(8, 8)).sum((1, 2, 3))  # noqa: E731
    total, covered = torch.zeros(8, 8), torch.zeros(8, 8)
    for y in range(0, 5, 2):
        for x in range(0, 5, 2):
            hidden = images.clone()
            hidden[..., y : y + 4, x : x + 4] = 0.5
            total[y : y + 4, x : x + 4] += score(images) - score(hidden)
            covered[y : y + 4, x : x + 4] += 1
    assert torch.allclose(saliency.occlusion(score, images, window=4)[0], total / covered, atol=1e-3)


def test_the_models_mode_is_restored():
    model = Corner().train()
    saliency.attribute(model, torch.ones(1, 3, 16, 16), torch.tensor([1]))
    assert model.training


def test_an_unknown_method_names_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'occlusion'"):
        saliency.attribute(Corner(), torch.ones(1, 3, 16, 16), torch.tensor([1]), method="oclusion")
