"""Calibrated answers: against scikit-learn and plain loops, and with the coverage that the theory promises."""

import numpy as np
import pytest
from sklearn.metrics import top_k_accuracy_score

from retailkit import calibration
from retailkit.config import UsageError
from retailkit.metrics import Evaluation


def made(n, seed, sharpness=1.0, classes=5):
    """Labels that follow a model's probabilities, which are then sharpened: overconfident above 1."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(n, classes))
    true = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = np.array([rng.choice(classes, p=p) for p in true])
    sharp = np.exp(sharpness * logits)
    probs = sharp / sharp.sum(1, keepdims=True)
    return Evaluation(probs, labels, list("abcdefghij")[:classes], np.arange(n))


@pytest.mark.parametrize("sharpness", [0.4, 1.0, 3.0])
def test_the_temperature_undoes_a_sharpening(sharpness):
    seen = made(4000, 0, sharpness)
    T = calibration.temperature(seen)
    assert abs(T / sharpness - 1) < 0.1
    after = calibration.scaled(seen, T)
    assert (after.predicted == seen.predicted).all() and after.calibration_error() < 0.03
    assert after.loss <= min(calibration.scaled(seen, t).loss for t in np.linspace(0.2, 5, 49)) + 1e-4


def test_the_threshold_is_that_of_split_conformal_prediction():
    for n, alpha in ((9, 0.1), (50, 0.1), (50, 0.3), (8, 0.1)):
        seen = made(n, 1)
        scores = sorted(1 - seen.probs[i, y] for i, y in enumerate(seen.labels))  # as the literature states it
        rank = int(np.ceil((n + 1) * (1 - alpha) - 1e-9))
        expected = scores[rank - 1] if rank <= n else 1.0
        assert np.isclose(calibration.conformal_threshold(seen, alpha), 1 - expected)
    for alpha in (0, 1, -0.5):
        with pytest.raises(UsageError, match="between 0 and 1"):
            calibration.conformal_threshold(seen, alpha)


def test_answer_sets_reach_their_coverage_on_new_photos():
    """On average over calibrations at least 1 - alpha, and little more."""
    shares = []
    for seed in range(200):
        whole = made(160, seed, sharpness=2.5)
        first, second = (whole.select(rows) for rows in (np.arange(60), np.arange(160) >= 60))
        sets = calibration.answer_sets(second, calibration.conformal_threshold(first, 0.1))
        shares.append(calibration.covered(second, sets).mean())
    assert 0.9 - 0.01 < np.mean(shares) < 0.9 + 1 / 61 + 0.01
    assert np.isclose(np.std(shares), calibration.coverage_error(0.1, 60, 100), rtol=0.2)


def test_risk_falls_with_coverage_and_ends_at_the_error_rate():
    seen = made(300, 2)
    curve = calibration.risk_coverage(seen)
    order = sorted(range(300), key=lambda i: -seen.probs[i].max())
    for count in (1, 50, 299):
        wrong = sum(seen.probs[i].argmax() != seen.labels[i] for i in order[:count])
        assert np.isclose(curve["risk"][count - 1], wrong / count)
    assert np.isclose(curve["risk"].iloc[-1], 1 - seen.top1) and curve["coverage"].iloc[-1] == 1
    assert curve["risk"][:100].mean() < curve["risk"].iloc[-1]


def test_photos_without_an_answer_are_the_least_confident():
    probs = np.array([[0.5, 0.5], [0.6, 0.4]])
    curve = calibration.risk_coverage(Evaluation(probs, np.array([0, 0]), ["a", "b"], np.arange(2)))
    assert curve["risk"].tolist() == [0.0, 0.5] and curve["threshold"].tolist() == [0.6, 0.0]


def test_top_k_is_that_of_scikit_learn_and_a_tie_is_a_random_place():
    seen = made(200, 3)
    for k in (1, 2, 4):
        assert np.isclose(seen.top(k), top_k_accuracy_score(seen.labels, seen.probs, k=k, labels=range(5)))
    tied = Evaluation(np.full((1, 4), 0.25), np.array([3]), list("abcd"), np.arange(1))
    assert seen.top(5) == 1.0 and [tied.top(k) for k in (1, 2, 4, 9)] == [0.25, 0.5, 1.0, 1.0]


def test_coarse_accuracy_forgives_errors_within_a_group():
    probs = np.eye(3)[[0, 1, 2, 0]]
    seen = Evaluation(probs, np.array([1, 1, 0, 0]), list("abc"), np.arange(4))
    assert seen.top1 == 0.5 and seen.coarse(["milk", "milk", "juice"]) == 0.75
    nothing = Evaluation(np.full((1, 2), 0.5), np.array([0]), ["a", "b"], np.arange(1))
    assert nothing.coarse(["milk", "milk"]) == 0.0
