"""Average precision and the fit of boxes, beside slow references."""

import numpy as np
import pytest
import torch

from retailkit import detection
from retailkit.data.boxes import Scenes
from retailkit.detection.score import THRESHOLDS, rank


def average_precision(found, scenes, label):
    """Ours, at each of COCO's thresholds."""
    return rank(found, scenes, label).average_precision()[0]


def slow_average_precision(found, scenes, label, threshold):
    """AP by its definition: loops over every detection, then the area of the step function, recall by recall."""
    events, truths = [], 0
    for number, entry in enumerate(found):
        free = [tuple(box.tolist()) for box in scenes.boxes[number][scenes.labels[number] == label]]
        truths += len(free)
        own = entry["labels"] == label
        for s, box in sorted(zip(entry["scores"][own], entry["boxes"][own], strict=True), key=lambda pair: -pair[0]):
            best, where = -1.0, None
            for other in free:
                width = min(box[2], other[2]) - max(box[0], other[0])
                height = min(box[3], other[3]) - max(box[1], other[1])
                inside = max(width, 0) * max(height, 0)
                both = (box[2] - box[0]) * (box[3] - box[1]) + (other[2] - other[0]) * (other[3] - other[1]) - inside
                if inside / both >= threshold and inside / both > best:
                    best, where = inside / both, other
            if where is not None:
                free.remove(where)
            events.append((s, where is not None))
    events.sort(key=lambda pair: -pair[0])
    curve, hits = [], 0
    for count, (_, hit) in enumerate(events, start=1):
        hits += hit
        curve.append((hits / truths, hits / count))
    return sum(max([p for r, p in curve if r >= k / truths - 1e-9], default=0.0) for k in range(1, truths + 1)) / truths


def invented(seed, images=12):
    """Random truths of two classes, and detections that are shifted copies of some of them, with strays."""
    rng = np.random.default_rng(seed)
    boxes, labels, found = [], [], []
    for _ in range(images):
        corner, side = rng.uniform(0, 60, (5, 2)), rng.uniform(12, 40, (5, 2))
        true, kinds = np.hstack([corner, corner + side]), rng.integers(1, 3, 5)
        copies = np.vstack([true, true[:3], np.sort(rng.uniform(0, 90, (3, 4)))])[:, [0, 1, 2, 3]]
        copies = copies + rng.normal(0, 3, copies.shape)
        copies[:, 2:] = np.maximum(copies[:, 2:], copies[:, :2] + 2)
        named = np.concatenate([kinds, kinds[:3], rng.integers(1, 3, 3)])
        boxes.append(torch.tensor(true, dtype=torch.float32))
        labels.append(torch.tensor(kinds))
        found.append({"boxes": copies, "labels": named, "scores": rng.uniform(0.05, 1, len(named))})
    blank = [torch.zeros(3, 100, 100, dtype=torch.uint8)] * images
    return Scenes(["a", "b"], blank, [(100, 100)] * images, boxes, labels), found


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_equals_a_slow_reference(seed):
    scenes, found = invented(seed)
    table = detection.precision_by_class([found, found], scenes).set_index("name")
    for label in (1, 2):
        expected = [slow_average_precision(found, scenes, label, threshold) for threshold in THRESHOLDS]
        np.testing.assert_allclose(average_precision(found, scenes, label), expected, atol=1e-12)
        assert table.loc[scenes.classes[label - 1], "ap"] == pytest.approx(np.mean(expected), abs=1e-12)


def test_a_weighted_average_precision_is_that_of_images_repeated():
    scenes, found = invented(7, images=5)
    counts = [2, 0, 1, 3, 1]
    numbers = np.repeat(np.arange(5), counts)
    expected = average_precision([found[k] for k in numbers], scenes.select(numbers), 1)
    ours = rank(found, scenes, 1).average_precision(np.array([counts], float))[0]
    np.testing.assert_allclose(ours, expected, atol=1e-9)


def test_perfect_detections_score_one_none_score_zero_and_an_absent_class_has_no_score():
    scenes, _ = invented(0)
    truth = zip(scenes.boxes, scenes.labels, strict=True)
    perfect = [{"boxes": b.numpy(), "labels": k.numpy(), "scores": np.ones(len(k))} for b, k in truth]
    nothing = [{"boxes": np.zeros((0, 4)), "labels": np.zeros(0, int), "scores": np.zeros(0)}] * len(scenes)
    assert (average_precision(perfect, scenes, 1) == 1).all()
    assert (average_precision(nothing, scenes, 1) == 0).all()
    assert np.isnan(average_precision(perfect, scenes, 3)).all()
    value, (low, high) = detection.ap_change([perfect], [nothing], scenes, ["a", "b"])
    assert value == low == high == 1
    assert detection.ap_change([perfect], [perfect], scenes, ["a"]) == (0, (0, 0))


def test_targets_are_near_where_the_regions_edge_runs_through_or_beside_them():
    scenes = Scenes(
        ["milk", "soup", "door"],
        [torch.zeros(3, 100, 200, dtype=torch.uint8)],
        [(100, 200)],
        [torch.tensor([[10.0, 10, 30, 30], [90, 40, 110, 60], [101, 70, 121, 90], [50, 40, 70, 60], [0, 0, 100, 100]])],
        [torch.tensor([1, 1, 1, 2, 3])],
        region="door",
        targets=("milk",),
    )
    found = [{"boxes": np.array([[10.0, 10, 30, 20]]), "labels": np.array([1]), "scores": np.array([0.9])}]
    table = detection.match_targets(found, scenes)
    assert table["edge"].tolist() == pytest.approx([0.5, 0, 0.05, 1.5])
    assert table["near"].tolist() == [False, True, True, False]
    assert table["target"].tolist() == [True, True, True, False]
    assert table["iou"].tolist() == pytest.approx([0.5, 0, 0, 0])


def test_a_gap_is_the_difference_of_means_and_its_interval_that_of_plain_resampling():
    rng = np.random.default_rng(0)
    one, other = rng.normal(0.3, 1, (40, 3)), rng.normal(0, 1, (40, 3))
    one[::3, :2], other[5] = np.nan, np.nan
    value, (low, high) = detection.gap(one, other)
    drawn = []
    for _ in range(4000):
        rows, columns = rng.integers(40, size=40), rng.integers(3, size=3)
        a, b = (np.array([v[i, j] for i in rows for j in columns]) for v in (one, other))
        drawn.append(a[~np.isnan(a)].mean() - b[~np.isnan(b)].mean())
    assert value == pytest.approx(np.nanmean(one) - np.nanmean(other))
    assert [low, high] == pytest.approx(np.quantile(drawn, [0.025, 0.975]).tolist(), abs=0.06)


def test_fits_are_means_by_picture_and_seed_with_gaps_where_an_image_shows_none():
    scenes, found = invented(2, images=3)
    table = detection.match_targets(found, scenes).query("name == 'a'")
    fits = detection.fit_by_image([found, found], scenes.select([0, 1, 2]), "name == 'a'")
    assert fits.shape == (3, 2) and np.array_equal(fits[:, 0], fits[:, 1], equal_nan=True)
    for image in range(3):
        rows = table[table["image"] == image]["iou"]
        np.testing.assert_allclose(fits[image, 0], rows.mean() if len(rows) else np.nan)
    assert np.isnan(detection.fit_by_image([found], scenes, "name == 'c'")).all()
