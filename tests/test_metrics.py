"""Metrics against hand counts and independent references."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, f1_score

from retailkit import metrics
from retailkit.config import UsageError
from retailkit.metrics import Evaluation, bootstrap, crossed_bootstrap, gain, hits, summarise, wilson


@pytest.fixture
def evaluation():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 200)
    logits = rng.normal(size=(200, 4))
    logits[np.arange(200), labels] += 1.2
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return Evaluation(probs, labels, list("abcd"), np.arange(200))


def answers(right, indices=None):
    """An evaluation of two classes whose hits are given."""
    right = np.asarray(right, dtype=bool)
    indices = np.arange(len(right)) if indices is None else np.asarray(indices)
    return Evaluation(np.eye(2)[np.where(right, 0, 1)], np.zeros(len(right), int), list("ab"), indices)


def test_accuracy_and_f1_are_scikit_learns(evaluation):
    assert evaluation.top1 == accuracy_score(evaluation.labels, evaluation.predicted)
    assert evaluation.macro_f1 == pytest.approx(f1_score(evaluation.labels, evaluation.predicted, average="macro"))
    assert evaluation.interval[0] < evaluation.top1 < evaluation.interval[1]
    few = Evaluation(np.eye(3)[[0, 1]], np.array([0, 1]), list("abc"), np.arange(2))
    assert few.macro_f1 == 1, "classes without images count nowhere"


def test_confusion_pairs_count_both_directions():
    labels = np.array([0, 0, 1, 1, 2, 2])
    predicted = np.array([1, 0, 0, 1, 2, 1])
    pairs = Evaluation(np.eye(3)[predicted], labels, list("abc"), np.arange(6)).confusion_pairs()
    assert pairs.to_dict("records") == [
        {"first": "a", "second": "b", "errors": 2, "rate": 0.5},
        {"first": "b", "second": "c", "errors": 1, "rate": 0.25},
    ]


def test_accuracy_by_group_is_that_of_each_group_alone(evaluation):
    groups = pd.Series(np.where(evaluation.labels < 1, "few", "many"), index=range(500, 700))
    table = evaluation.by_group(groups)
    assert table["group"].tolist() == ["few", "many"]
    for name, *row in table.itertuples(index=False):
        right = evaluation.correct[groups.to_numpy() == name]
        assert row == [len(right), right.mean(), *wilson(right.sum(), len(right))]
    assert evaluation.per_class["accuracy"].is_monotonic_increasing, "the hardest first"


def test_the_worst_group_is_the_lowest_of_those_with_enough_images():
    groups = ["milk x dairy"] * 20 + ["milk x drinks"] * 20 + ["tea x dairy"] * 3
    evaluation = answers([True] * 18 + [False] * 2 + [True] * 12 + [False] * 8 + [False] * 3)
    worst = metrics.worst_group(evaluation, groups)
    assert worst.tolist() == ["milk x drinks", 20, 0.6, *wilson(12, 20)]
    assert metrics.worst_group(evaluation, groups, least=3)["group"] == "tea x dairy"
    with pytest.raises(UsageError, match="no group has 21 images; take"):
        metrics.worst_group(evaluation, groups, least=21)


def test_the_gain_of_the_worst_group_is_that_of_plain_loops():
    rng, groups = np.random.default_rng(0), np.repeat(["a", "b", "few"], [30, 40, 4])
    share = {"ours": [0.7, 0.6, 0.0], "theirs": [0.9, 0.3, 0.0]}
    ours, theirs = (rng.random((74, 3)) < np.repeat(share[name], [30, 40, 4])[:, None] for name in share)
    runs = [[answers(right) for right in table.T] for table in (ours, theirs)]

    def worst(right, images, seeds):
        return min(right[np.ix_(images[groups[images] == name], seeds)].mean() for name in "ab")

    drawn = []
    for _ in range(1000):
        images, seeds = rng.integers(74, size=74), rng.integers(3, size=3)
        drawn.append(worst(ours, images, seeds) - worst(theirs, images, seeds))
    found, low, high = metrics.worst_group_gain(*runs, groups)
    everything = np.arange(74), np.arange(3)
    assert found == pytest.approx(worst(ours, *everything) - worst(theirs, *everything))
    assert np.allclose([low, high], np.quantile(drawn, [0.025, 0.975]), atol=0.04) and low > 0
    shared = [answers([True] * 20)]
    found, low, high = metrics.worst_group_gain(shared, shared, ["a"] * 20)
    assert found == 0 and low < -0.1 and high > 0.1, "equal answers gain nothing and prove little"


def test_calibration_error_is_large_for_a_model_that_is_sure_and_wrong_and_small_for_a_calibrated_one():
    assert answers([0, 1] * 50).calibration_error() == pytest.approx(0.5)
    rng = np.random.default_rng(1)
    p = rng.uniform(0.5, 1, 20_000)
    labels = (rng.uniform(size=len(p)) > p).astype(int)
    assert Evaluation(np.stack([p, 1 - p], 1), labels, ["a", "b"], np.arange(len(p))).calibration_error() < 0.015


def test_bootstrap_covers_the_mean_and_repeats():
    values = np.random.default_rng(2).normal(1.0, 1.0, 400)
    low, high = bootstrap(values, seed=3)
    assert low < 1.0 < high and high - low == pytest.approx(2 * 1.96 / 20, rel=0.2)
    assert (low, high) == bootstrap(values, seed=3)


def test_no_answer_is_no_hit_and_shows_in_the_coverage():
    """All classes equally probable is "unknown": argmax would silently say the first class."""
    probs = np.array([[0.5, 0.5], [0.9, 0.1], [0.5, 0.5], [0.2, 0.8]])
    result = Evaluation(probs, np.array([0, 0, 1, 1]), ["a", "b"], np.arange(4))
    assert result.coverage == 0.5 and result.top1 == 0.5
    assert result.predicted.tolist() == [-1, 0, -1, 1]
    assert result.confusion.tolist() == [[1, 0], [0, 1]] and result.per_class["n"].tolist() == [2, 2]
    assert result.to_frame()["predicted"].tolist() == ["", "a", "", "b"]


def test_folds_pool_to_the_share_of_all_images():
    runs = [answers([1, 1, 0]), answers([0], [3])]
    assert summarise({"m": runs}).loc[0, ["accuracy", "n", "seeds"]].tolist() == [0.5, 4, 2]
    assert hits(runs).isna().sum().sum() == 4


def test_gains_are_paired_by_image_and_seed():
    ours, theirs = [answers([1, 0, 1], [5, 6, 7])], [answers([1, 1, 0], [7, 6, 5])]
    # image 5: 1 - 0, image 6: 0 - 1, image 7: 1 - 1
    assert gain(ours, theirs) == pytest.approx(0)
    twice = [*ours, answers([1, 1, 1], [5, 6, 7])]
    assert gain(twice, theirs) == pytest.approx((0 + 1) / 6 + (1 - 0) / 6 - 1 / 6)


def test_the_crossed_bootstrap_covers_what_varies():
    rng = np.random.default_rng(0)
    images = rng.random((400, 1)) < 0.5
    same = np.repeat(images, 3, axis=1).astype(float)
    expected = wilson(int(images.sum()), 400)
    assert crossed_bootstrap(same) == pytest.approx(expected, abs=0.012), "equal seeds add nothing"
    by_seed = np.tile([0.2, 0.5, 0.8], (400, 1))
    low, high = crossed_bootstrap(by_seed)
    assert low < 0.31 and high > 0.69, "seeds that differ widen it although images do not"
    assert crossed_bootstrap(np.array([[1.0, np.nan], [np.nan, 1.0]]), 0) == pytest.approx(wilson(2, 2))


def test_a_baseline_is_not_compared_with_itself():
    table = summarise({"m": [answers([1, 1, 0])], "baseline": [answers([1, 0, 0])]}, "baseline")
    assert table.loc[0, "gain"] == pytest.approx(1 / 3)
    assert table.loc[1, ["gain", "gain_low", "gain_high"]].isna().all(), "an interval around nothing"


@pytest.mark.parametrize("right", [0, 1])
def test_equal_answers_of_few_images_have_a_wide_interval(right):
    """A bootstrap of five equal answers has no width: 'label_misses 0.000 (0.000 to 0.000)' from five photos."""
    equal = [answers([right] * 5)]
    row = summarise({"m": equal, "baseline": equal}, "baseline").iloc[0]
    assert (row["low"], row["high"]) == pytest.approx(wilson(5 * right, 5))
    reach = 1.96**2 / (5 + 1.96**2)  # Tango's score interval of paired shares without a discordant pair
    assert (row["gain_low"], row["gain_high"]) == pytest.approx((-reach, reach), abs=1e-4)
    assert bootstrap(np.ones(5)) == pytest.approx((1 - 2 * reach, 1), abs=1e-4)
    assert bootstrap(np.full(5, 7.0)) == (7, 7), "no share of images"


def test_an_evaluation_says_in_sentences_what_it_found():
    few, some = answers([1] * 5), answers([1, 0, 1, 0])
    assert few.sentences() == [
        "5 of 5 test photos are classified correctly; with 5 photos the true share may be as low as 57 %.",
        "No pair is confused.",
    ]
    first, second = some.sentences("val")
    assert first.startswith("2 of 4 val photos") and first.endswith("as low as 15 % and as high as 85 %.")
    assert second == "a and b are confused in 2 of 4 photos."


@pytest.mark.parametrize(("low", "high", "sign", "says"), [
    (0.1, 0.2, 1, "as claimed"), (0.1, 0.2, -1, "the opposite"), (-0.1, 0.2, -1, "not decided"),
    (0.1, 0.2, 0, "more"), (-0.2, -0.1, 0, "less"), (float("nan"), float("nan"), 1, "not decided"),
])  # fmt: skip
def test_a_verdict_follows_the_interval(low, high, sign, says):
    assert metrics.verdict(low, high, sign) == says
