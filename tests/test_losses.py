"""Criteria against scipy and hand formulas."""

import pytest
import torch
from scipy.stats import entropy as scipy_entropy

from retailkit.config import UsageError
from retailkit.losses import CRITERIA, criterion, entropy


@pytest.fixture
def logits():
    return torch.randn(5, 7, generator=torch.Generator().manual_seed(0)) * 3


def test_entropy_is_scipys_and_survives_certainty(logits):
    expected = scipy_entropy(logits.softmax(-1).double().numpy(), axis=1)
    assert entropy(logits).double().numpy() == pytest.approx(expected, abs=1e-6)
    assert entropy(torch.tensor([[1e4, 0.0, 0.0]])).item() == 0.0


def test_label_smoothing_mixes_in_the_uniform_distribution(logits):
    labels, eps = torch.arange(5), 0.2
    log_probs = logits.log_softmax(-1)
    expected = -(1 - eps) * log_probs[torch.arange(5), labels] - eps * log_probs.mean(1)
    actual = criterion("label_smoothing", eps=eps)(logits, labels, reduction="none")
    assert torch.allclose(actual, expected, atol=1e-6)


@pytest.mark.parametrize("name", sorted(CRITERIA))
def test_every_criterion_takes_a_reduction(name, logits):
    labels = torch.arange(5)
    each = criterion(name)(logits, labels, reduction="none")
    assert each.shape == (5,)
    assert torch.allclose(each.mean(), criterion(name)(logits, labels))


def test_an_unknown_criterion_names_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'cross_entropy'"):
        criterion("crossentropy")
