"""Criteria against scipy and hand formulas."""

import pytest
import torch
from scipy.stats import entropy as scipy_entropy

from retailkit.config import UsageError
from retailkit.losses import criterion, entropy


@pytest.fixture
def logits():
    return torch.randn(5, 7, generator=torch.Generator().manual_seed(0)) * 3


def test_entropy_is_scipys_and_survives_certainty(logits):
    expected = scipy_entropy(logits.softmax(-1).double().numpy(), axis=1)
    assert entropy(logits).double().numpy() == pytest.approx(expected, abs=1e-6)
    assert entropy(torch.tensor([[1e4, 0.0, 0.0]])).item() == 0.0
    without = torch.tensor([[0.0, 0.0, -torch.inf]], requires_grad=True)
    assert entropy(without).item() == pytest.approx(entropy(without[:, :2]).item()), "a class that is ruled out"
    entropy(without).sum().backward()
    assert without.grad.isfinite().all()


def test_label_smoothing_mixes_in_the_uniform_distribution(logits):
    labels, eps = torch.arange(5), 0.2
    log_probs = logits.log_softmax(-1)
    expected = -(1 - eps) * log_probs[torch.arange(5), labels] - eps * log_probs.mean(1)
    assert torch.allclose(criterion("label_smoothing", eps=eps)(logits, labels), expected.mean(), atol=1e-6)


def test_max_entropy_has_the_gradient_of_the_formula(logits):
    logits, labels, gamma = logits.double().requires_grad_(), torch.arange(5), 0.4
    criterion("max_entropy", gamma=gamma)(logits, labels).backward()
    p = logits.detach().softmax(-1)
    expected = p - torch.eye(7, dtype=torch.float64)[:5] + gamma * p * (p.log() - (p * p.log()).sum(-1, keepdim=True))
    assert torch.allclose(logits.grad, expected / 5)


@pytest.mark.parametrize(("gamma", "classes", "confidence"), [(0.3, 81, 0.660), (1, 81, 0.288), (0.3, 120, 0.628)])
def test_max_entropy_holds_a_fitted_sample_at_its_stationary_confidence(gamma, classes, confidence):
    logits = torch.zeros(1, classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = criterion("max_entropy", gamma=gamma)(logits, torch.tensor([0]))
        value.backward()
        return value

    optimizer.step(loss)
    assert logits.softmax(-1)[0, 0].item() == pytest.approx(confidence, abs=1e-3)


def test_confidence_penalty_is_max_entropy_and_a_constant(logits):
    labels = torch.arange(5)
    penalty = criterion("confidence_penalty", beta=0.2)(logits, labels)
    shifted = criterion("max_entropy", gamma=0.2)(logits, labels) + 0.2 * torch.tensor(7.0).log()
    assert torch.allclose(penalty, shifted, atol=1e-6) and penalty >= 0


def test_an_unknown_criterion_names_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'cross_entropy'"):
        criterion("crossentropy")
