"""False alarms and misses, beside loops over every photo and label."""

import numpy as np
import pytest

from retailkit.config import UserError
from retailkit.deploy import label_check
from retailkit.deploy.label_check import ANY, LIKELIEST, TWIN

FAMILIES = ["milk", "milk", "milk", "", "tea"]


@pytest.fixture
def answers():
    rng = np.random.default_rng(3)
    probs = rng.dirichlet(np.full(5, 0.5), 40).round(2)  # ties on purpose
    return probs, rng.integers(0, 5, 40)


def brute_force(probs, labels, threshold, kind):
    """False alarms and misses at a threshold, photo by photo and label by label."""
    alarms = [probs[i, y] < threshold for i, y in enumerate(labels)]
    missed = []
    for i, y in enumerate(labels):
        others = [k for k in range(5) if k != y]
        if kind == TWIN:
            others = [k for k in others if FAMILIES[k] and FAMILIES[k] == FAMILIES[y]]
        elif kind == LIKELIEST:
            others = [max(others, key=lambda k: (probs[i, k], -k))]
        if others:
            missed.append(np.mean([probs[i, k] >= threshold for k in others]))
    return np.mean(alarms), np.mean(missed)


@pytest.mark.parametrize("kind", [ANY, TWIN, LIKELIEST])
def test_the_curve_equals_a_loop_over_photos_and_labels(answers, kind):
    claims = label_check.wrong_labels(*answers, FAMILIES)
    curve = label_check.sweep(*answers, {kind: claims[kind]}, thresholds=np.linspace(0, 1, 21).round(2))
    for row in curve.itertuples():
        expected = brute_force(*answers, row.threshold, kind)
        assert (row.false_alarms, row.misses) == pytest.approx(expected, abs=1e-12), row.threshold


def test_the_curve_reaches_from_all_passes_to_nothing_passes(answers):
    curve = label_check.sweep(*answers, label_check.wrong_labels(*answers))
    for _, part in curve.groupby("claim"):
        assert part["false_alarms"].iloc[0] == 0 and part["false_alarms"].iloc[-1] == 1
        assert part["misses"].iloc[0] == 1 and part["misses"].is_monotonic_decreasing


def test_a_threshold_is_the_highest_that_its_false_alarms_allow(answers):
    points = label_check.operating_points(*answers, label_check.wrong_labels(*answers, FAMILIES), draws=50)
    probs, labels = answers
    right = probs[np.arange(40), labels]
    for row in points.itertuples():
        alarms, misses = brute_force(*answers, row.threshold, row.claim)
        assert alarms == row.false_alarms <= row.allowed and misses == pytest.approx(row.misses)
        assert all((right < t).mean() > row.allowed for t in right[right > row.threshold])
        assert row.low <= row.misses <= row.high
    assert list(points["allowed"].unique()) == [0.01, 0.02, 0.05]


def test_a_photo_without_a_twin_claims_no_twin():
    probs, labels = np.full((3, 5), 0.2), np.array([0, 3, 4])
    claims = label_check.wrong_labels(probs, labels, FAMILIES)
    assert claims[TWIN].tolist() == [[0, 0.5, 0.5, 0, 0], [0] * 5, [0] * 5]
    points = label_check.operating_points(probs, labels, {TWIN: claims[TWIN]}, draws=20)
    assert set(points["n"]) == {1} and set(points["misses"]) == {1.0}
    assert list(label_check.wrong_labels(np.ones((2, 1)), np.zeros(2, int))) == []


def test_a_rate_that_is_no_share_is_refused(answers):
    with pytest.raises(UserError, match=r"1\.5"):
        label_check.operating_points(*answers, label_check.wrong_labels(*answers), rates=[1.5])
