"""Scenes with exact boxes, a small Faster R-CNN, and average precision, on tiny pictures and without weights."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from retailkit import detection, plots
from retailkit.config import UsageError
from retailkit.data import synthetic
from retailkit.data.boxes import Scenes, load_coco
from retailkit.data.synthetic.boxes import TARGET
from retailkit.data.table import DataError
from retailkit.detection import detector, score

TINY = detection.DetectorConfig(steps=12, batch_size=2, size=96, weights=None)


@pytest.fixture(scope="module")
def scenes():
    return synthetic.render_scenes(6, "overlap", size=96, seed=3)


@pytest.fixture(scope="module")
def maps(scenes):
    return detection.encode(scenes, TINY)


# -- Scenes


def test_the_same_seed_draws_the_same_scenes_and_another_seed_others():
    one, same, other = (synthetic.render_scenes(3, "carrier", size=96, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one.images + one.boxes, same.images + same.boxes, strict=True))
    assert not torch.equal(one.images[0], other.images[0])
    assert torch.equal(synthetic.render_scenes(1, "carrier", size=96, seed=1).images[0], one.images[0]), "count matters"


@pytest.mark.parametrize("relation", synthetic.RELATIONS)
def test_the_region_comes_with_its_targets_and_only_with_them(relation):
    scenes = synthetic.render_scenes(40, relation, size=96, seed=0)
    target = scenes.classes.index(TARGET) + 1
    with_region = [bool((labels == scenes.region_label).any()) for labels in scenes.labels]
    with_target = [bool((labels == target).any()) for labels in scenes.labels]
    assert with_region == with_target and 20 < sum(with_region) < 40


def test_without_correlation_the_region_comes_and_goes_by_itself():
    scenes = synthetic.render_scenes(60, "overlap", size=96, correlation=0, seed=0)
    target = scenes.classes.index(TARGET) + 1
    pairs = {(bool((labels == scenes.region_label).any()), bool((labels == target).any())) for labels in scenes.labels}
    assert pairs == {(True, True), (True, False), (False, True), (False, False)}


def shares_inside(relation):
    """What share of each target's box lies in the region's."""
    scenes, shares = synthetic.render_scenes(40, relation, size=128, seed=5), []
    target = scenes.classes.index(TARGET) + 1
    for boxes, labels in zip(scenes.boxes, scenes.labels, strict=True):
        for region in boxes[labels == scenes.region_label]:
            for box in boxes[labels == target]:
                low, high = torch.maximum(box[:2], region[:2]), torch.minimum(box[2:], region[2:])
                shares.append(float((high - low).clamp(min=0).prod() / (box[2:] - box[:2]).prod()))
    return np.array(shares)


def test_a_door_overlaps_every_target_a_tray_holds_them_and_a_poster_touches_none():
    door, tray, poster = (shares_inside(relation) for relation in ("overlap", "carrier", "beside"))
    assert (door > 0.1).all() and (door < 0.95).mean() > 0.2 and (door == 1).any()
    assert (tray > 0.97).all()
    assert (poster == 0).all()


def test_a_box_is_the_extent_of_the_pixels_that_change_when_its_product_is_left_out(monkeypatch):
    module = synthetic.boxes
    whole = synthetic.render_scenes(8, "carrier", size=128, seed=4)
    placed = module._placed
    target = whole.classes.index(TARGET) + 1
    number = next(k for k, labels in enumerate(whole.labels) if (labels == target).sum() == 1)
    monkeypatch.setattr(module, "_placed", lambda stand, *rest: placed(stand, *rest) * (stand[0] != TARGET))
    empty = synthetic.render_scenes(8, "carrier", size=128, seed=4)
    changed = (whole.images[number].int() - empty.images[number].int()).abs().amax(0).numpy() > 24
    x0, y0, x1, y1 = whole.boxes[number][whole.labels[number] == target][0].int().tolist()
    ys, xs = np.nonzero(changed)
    assert np.abs(np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) - (x0, y0, x1, y1)).max() <= 2


def test_annotations_are_what_torchvision_expects_with_and_without_the_region(scenes):
    number = next(k for k, labels in enumerate(scenes.labels) if (labels == scenes.region_label).any())
    both, products = scenes.annotation(number), scenes.annotation(number, region=False)
    assert both["boxes"].dtype == torch.float32 and both["labels"].dtype == torch.int64 and both["labels"].min() > 0
    assert len(both["labels"]) == len(products["labels"]) + 1
    assert scenes.region_label not in products["labels"]


@pytest.mark.parametrize(
    "options", [{"relation": "under"}, {"size": 8}, {"correlation": 2}, {"count": 0}, {"seed": -1}]
)
def test_wrong_options_of_scenes_say_so(options):
    with pytest.raises(UsageError, match=next(iter(options))):
        synthetic.render_scenes(**({"count": 1, "relation": "overlap"} | options))


# -- Training


def test_with_and_without_the_region_see_the_same_pixels_and_start_from_the_same_weights(
    scenes, maps, monkeypatch, tmp_path
):
    seen = {True: [], False: []}
    losses = detector._losses

    def spy(model, given, given_maps, numbers, region):
        seen[region].append((tuple(numbers), {k: v.clone() for k, v in model.rpn.state_dict().items()}))
        return losses(model, given, given_maps, numbers, region)

    monkeypatch.setattr(detector, "_losses", spy)
    histories = {region: detection.fit(scenes, TINY, maps, region, tmp_path / f"{region}.pt")[1] for region in seen}
    assert [numbers for numbers, _ in seen[True]] == [numbers for numbers, _ in seen[False]]
    first = [seen[region][0][1] for region in seen]
    assert all(torch.equal(first[0][k], first[1][k]) for k in first[0])
    assert not histories[True]["total"].equals(histories[False]["total"])


def test_every_picture_is_seen_once_before_any_is_seen_again():
    drawn = [k for step in range(9) for k in detector._batch(6, TINY, step)]
    assert [sorted(drawn[i : i + 6]) for i in (0, 6, 12)] == [list(range(6))] * 3


def test_a_few_steps_lower_the_total_loss_which_is_the_sum_of_four(scenes, maps, tmp_path):
    config = detection.DetectorConfig(steps=40, batch_size=2, size=96, weights=None, lr=2e-3)
    _, history = detection.fit(scenes, config, maps, path=tmp_path / "a.pt")
    assert history["total"].iloc[-8:].mean() < 0.8 * history["total"].iloc[:4].mean()
    np.testing.assert_allclose(history["total"], history[list(detection.LOSSES)].sum(axis=1))
    assert list(history["step"]) == list(range(1, 41))


def test_an_interrupted_training_ends_with_the_same_weights(scenes, maps, monkeypatch, tmp_path):
    monkeypatch.setattr(detector, "KEPT_EVERY", 5)
    straight, history = detection.fit(scenes, TINY, maps, path=tmp_path / "straight.pt")
    losses, calls = detector._losses, []

    def stop(*args):
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return losses(*args)

    monkeypatch.setattr(detector, "_losses", stop)
    with pytest.raises(KeyboardInterrupt):
        detection.fit(scenes, TINY, maps, path=tmp_path / "cut.pt")
    calls.clear()
    monkeypatch.setattr(detector, "_losses", lambda *args: calls.append(1) or losses(*args))
    resumed, again = detection.fit(scenes, TINY, maps, path=tmp_path / "cut.pt")
    assert len(calls) == TINY.steps - 5, "it did not go on from its last kept step"
    assert all(torch.equal(v, resumed.state_dict()[k]) for k, v in straight.state_dict().items())
    assert again.equals(history)
    calls.clear()
    detection.fit(scenes, TINY, maps, path=tmp_path / "cut.pt")
    assert not calls, "a finished training was repeated"


def test_a_file_of_another_training_or_a_broken_one_is_not_used(scenes, maps, tmp_path):
    path = tmp_path / "kept.pt"
    _, without = detection.fit(scenes, TINY, maps, region=False, path=path)
    _, over_other = detection.fit(scenes, TINY, maps, region=True, path=path)
    path.write_bytes(b"cut off")
    _, over_broken = detection.fit(scenes, TINY, maps, region=True, path=path)
    assert over_other.equals(over_broken) and not over_other.equals(without)


def test_training_leaves_the_trunk_and_the_callers_randomness_alone(scenes, maps, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fresh = detection.build(len(scenes.classes), TINY).state_dict()
    trained = detection.fit(scenes, TINY, maps, path=tmp_path / "a.pt")[0].state_dict()
    assert torch.equal(torch.rand(3), expected)
    same = {k: torch.equal(fresh[k], trained[k]) for k in fresh if "num_batches" not in k}
    assert all(same[k] for k in same if k.startswith("backbone.encoder"))
    assert not any(v for k, v in same.items() if k.startswith("backbone.pyramid") and k.endswith("weight"))


def test_cached_maps_give_what_torchvisions_own_forward_pass_gives(scenes, maps, tmp_path):
    model, _ = detection.fit(scenes, TINY, maps, path=tmp_path / "a.pt")
    for ours, plain in zip(detection.detect(model, scenes, maps), detection.detect(model, scenes), strict=True):
        assert len(ours["boxes"]) == len(plain["boxes"]) > 0
        np.testing.assert_allclose(ours["boxes"], plain["boxes"], atol=0.05)
        np.testing.assert_allclose(ours["scores"], plain["scores"], atol=1e-3)
    model.transform.torch_choice = lambda sides: sides[0]  # it would draw from what samples anchors below
    torch.manual_seed(0)
    ours = detector._losses(model.train(), scenes, maps, [0, 1], True)
    torch.manual_seed(0)
    plain = model([scenes.image(k) for k in (0, 1)], [scenes.annotation(k) for k in (0, 1)])
    assert set(ours) == set(plain) == set(detection.LOSSES)
    assert all(ours[k].item() == pytest.approx(plain[k].item(), rel=1e-3, abs=1e-5) for k in plain)


def test_pictures_of_other_sizes_are_boxed_in_their_own_pixels(scenes, maps, tmp_path):
    model, _ = detection.fit(scenes, TINY, maps, path=tmp_path / "a.pt")
    wide = Scenes(
        scenes.classes,
        [torch.zeros(3, 60, 300, dtype=torch.uint8)],
        [(60, 300)],
        [torch.tensor([[30.0, 6, 270, 54]])],
        [torch.tensor([1])],
    )
    scaled = detector._scaled(wide, 0, 96, True, "cpu")["boxes"]
    assert scaled[0].tolist() == pytest.approx([9.6, 9.6, 86.4, 86.4])
    for found in (detection.detect(model, wide), detection.detect(model, wide, detection.encode(wide, TINY))):
        assert (found[0]["boxes"][:, 2] <= 300).all() and (found[0]["boxes"][:, 3] <= 60).all()


def test_held_out_losses_are_repeatable_and_count_what_they_are_told_to(scenes, maps, tmp_path):
    model, _ = detection.fit(scenes, TINY, maps, path=tmp_path / "a.pt")
    one, same = (detection.held_out_losses(model, scenes, maps) for _ in range(2))
    assert one.equals(same) and len(one) == len(scenes) and not model.training
    assert not one.equals(detection.held_out_losses(model, scenes, maps, region=True))


def test_wrong_sizes_of_a_training_say_so():
    with pytest.raises(UsageError, match="steps=0"):
        detection.DetectorConfig(steps=0)
    for size in (32, 200):  # maps of 200 pixels hold 7 cells of 32, and anchors would lie 29 apart
        with pytest.raises(UsageError, match=rf"size={size}: use a multiple of 32"):
            detection.DetectorConfig(size=size)


def test_another_trunk_is_another_training(scenes, tmp_path):
    keys = {detector._key(scenes, TINY, True, detection.build(len(scenes.classes), TINY)) for _ in range(2)}
    model = detection.build(len(scenes.classes), TINY)
    model.backbone.encoder.network.conv_stem.weight.data.mul_(2)
    assert len(keys) == 1 and detector._key(scenes, TINY, True, model) not in keys


# -- Average precision


def slow_average_precision(found, scenes, label, threshold):
    """AP by its definition: loops over every detection, then the area of the step function, recall by recall."""
    events, truths = [], 0
    for number, entry in enumerate(found):
        free = [
            tuple(b.tolist()) for b, k in zip(scenes.boxes[number], scenes.labels[number], strict=True) if k == label
        ]
        truths += len(free)
        own = [
            (s, tuple(b))
            for b, k, s in zip(entry["boxes"], entry["labels"], entry["scores"], strict=True)
            if k == label
        ]
        for s, box in sorted(own, key=lambda pair: -pair[0]):
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


def invented(seed, pictures=12):
    """Random truths of two classes, and detections that are shifted copies of some of them, with strays."""
    rng = np.random.default_rng(seed)
    boxes, labels, found = [], [], []
    for _ in range(pictures):
        corner, side = rng.uniform(0, 60, (5, 2)), rng.uniform(12, 40, (5, 2))
        true, kinds = np.hstack([corner, corner + side]), rng.integers(1, 3, 5)
        copies = np.vstack([true, true[:3], np.sort(rng.uniform(0, 90, (3, 4)))])[:, [0, 1, 2, 3]]
        copies = copies + rng.normal(0, 3, copies.shape)
        copies[:, 2:] = np.maximum(copies[:, 2:], copies[:, :2] + 2)
        named = np.concatenate([kinds, kinds[:3], rng.integers(1, 3, 3)])
        boxes.append(torch.tensor(true, dtype=torch.float32))
        labels.append(torch.tensor(kinds))
        found.append({"boxes": copies, "labels": named, "scores": rng.uniform(0.05, 1, len(named))})
    blank = [torch.zeros(3, 100, 100, dtype=torch.uint8)] * pictures
    return Scenes(["a", "b"], blank, [(100, 100)] * pictures, boxes, labels), found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("threshold", [0.5, 0.75, 0.9])
def test_average_precision_equals_a_slow_reference(seed, threshold):
    scenes, found = invented(seed)
    for label in (1, 2):
        expected = slow_average_precision(found, scenes, label, threshold)
        assert detection.average_precision(found, scenes, label, [threshold]) == pytest.approx(expected, abs=1e-12)
    table = detection.precision_by_class([found, found], scenes, draws=10)
    levels = [slow_average_precision(found, scenes, 1, t) for t in np.arange(0.5, 1, 0.05).round(2)]
    assert table.set_index("name").loc["a", "ap"] == pytest.approx(np.mean(levels), abs=1e-12)


def test_a_weighted_average_precision_is_that_of_pictures_repeated():
    scenes, found = invented(7, pictures=5)
    counts = [2, 0, 1, 3, 1]
    numbers = np.repeat(np.arange(5), counts)
    expected = detection.average_precision([found[k] for k in numbers], scenes.select(numbers), 1)
    ours = score.rank(found, scenes, 1).average_precision(np.array([counts], float)).mean()
    assert ours == pytest.approx(expected, abs=1e-9)


def test_perfect_detections_score_one_none_score_zero_and_an_absent_class_has_no_score():
    scenes, _ = invented(0)
    perfect = [
        {"boxes": b.numpy(), "labels": k.numpy(), "scores": np.ones(len(k))}
        for b, k in zip(scenes.boxes, scenes.labels, strict=True)
    ]
    nothing = [{"boxes": np.zeros((0, 4)), "labels": np.zeros(0, int), "scores": np.zeros(0)}] * len(scenes)
    assert detection.average_precision(perfect, scenes, 1) == 1
    assert detection.average_precision(nothing, scenes, 1) == 0
    assert np.isnan(detection.average_precision(perfect, scenes, 3))
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
    value, (low, high) = detection.gap(one, other, draws=4000)
    drawn = []
    for _ in range(4000):
        rows, columns = rng.integers(40, size=40), rng.integers(3, size=3)
        a, b = (np.array([v[i, j] for i in rows for j in columns]) for v in (one, other))
        drawn.append(a[~np.isnan(a)].mean() - b[~np.isnan(b)].mean())
    assert value == pytest.approx(np.nanmean(one) - np.nanmean(other))
    assert [low, high] == pytest.approx(np.quantile(drawn, [0.025, 0.975]).tolist(), abs=0.04)


def test_fits_are_means_by_picture_and_seed_with_gaps_where_a_picture_shows_none():
    scenes, found = invented(2, pictures=3)
    table = detection.match_targets(found, scenes).query("name == 'a'")
    fits = detection.fit_by_picture([found, found], scenes.select([0, 1, 2]), "name == 'a'")
    assert fits.shape == (3, 2) and np.array_equal(fits[:, 0], fits[:, 1], equal_nan=True)
    for picture in range(3):
        rows = table[table["picture"] == picture]["iou"]
        np.testing.assert_allclose(fits[picture, 0], rows.mean() if len(rows) else np.nan)
    assert np.isnan(detection.fit_by_picture([found], scenes, "name == 'c'")).all()


# -- COCO files


def coco(tmp_path, **changes):
    Image.new("RGB", (60, 40), (200, 30, 30)).save(tmp_path / "one.png")
    content = {
        "images": [{"id": 7, "file_name": "one.png", "width": 60, "height": 40}],
        "categories": [{"id": 3, "name": "milk"}, {"id": 90, "name": "door"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 3, "bbox": [10, 5, 20, 30]},
            {"id": 2, "image_id": 7, "category_id": 90, "bbox": [0, 0, 60.4, 40]},
            {"id": 3, "image_id": 7, "category_id": 3, "bbox": [0, 0, 5, 5], "iscrowd": 1},
        ],
    }
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(content | changes), encoding="utf-8-sig")
    return path


def test_a_coco_file_becomes_scenes_with_labels_from_one_on(tmp_path):
    scenes = load_coco(coco(tmp_path), tmp_path, region="door")
    assert scenes.classes == ["milk", "door"] and scenes.targets == ("milk",) and scenes.region_label == 2
    assert scenes.boxes[0].tolist() == [[10, 5, 30, 35], [0, 0, 60, 40]] and scenes.labels[0].tolist() == [1, 2]
    assert scenes.image(0).shape == (3, 40, 60) and scenes.sizes[0] == (40, 60)
    assert len(scenes.annotation(0, region=False)["labels"]) == 1


def test_photos_of_a_coco_file_can_be_learned_from(tmp_path, monkeypatch):
    monkeypatch.setenv("RETAILKIT_CACHE", str(tmp_path / "cache"))
    scenes = load_coco(coco(tmp_path), tmp_path, region="door")
    model, history = detection.fit(scenes, detection.DetectorConfig(steps=2, batch_size=1, size=96, weights=None))
    assert len(history) == 2 and len(detection.detect(model, scenes)) == 1


ANNOTATION = {"id": 5, "image_id": 7, "category_id": 3, "bbox": [10, 5, 20, 30]}


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"images": [{"id": 7, "file_name": "two.png"}]}, "two.png: cannot be read"),
        ({"images": [{"id": 7, "file_name": "boxes.json"}]}, "not an image"),
        ({"images": [{"id": 7, "file_name": "one.png", "width": 600, "height": 400}]}, "60x40 pixels but"),
        ({"images": []}, "lists no images"),
        (
            {"annotations": [ANNOTATION | {"bbox": [50, 5, 20, 30]}]},
            r"annotation 5: bbox .* outside its image of 60x40",
        ),
        ({"annotations": [ANNOTATION | {"bbox": [10, 5, 0, 30]}]}, "is empty"),
        ({"annotations": [ANNOTATION | {"bbox": [10, 5, 20]}]}, "is not four numbers"),
        ({"annotations": [ANNOTATION | {"category_id": 4}]}, r"unknown category_id 4 \(known: 3, 90\)"),
        ({"annotations": [ANNOTATION | {"image_id": 8}]}, "image_id 8 is not among the images"),
        ({"annotations": [{"image_id": 7, "category_id": 3}]}, r"annotations\[0\] lacks bbox"),
        ({"categories": {}}, "no list 'categories'"),
    ],
)
def test_a_faulty_coco_file_is_refused_with_place_and_cure(tmp_path, changes, says):
    with pytest.raises(DataError, match=says):
        load_coco(coco(tmp_path, **changes), tmp_path)


def test_a_missing_file_no_json_and_an_unknown_region_say_so(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        load_coco(tmp_path / "none.json", tmp_path)
    (tmp_path / "text.json").write_text("milk")
    with pytest.raises(DataError, match="not JSON"):
        load_coco(tmp_path / "text.json", tmp_path)
    with pytest.raises(UsageError, match="'dor'; did you mean 'door'"):
        load_coco(coco(tmp_path), tmp_path, region="dor")


# -- Pictures


def test_scenes_curves_and_intervals_are_drawn(scenes, maps, tmp_path):
    ax = plots.boxes(scenes.image(0), scenes.boxes[0], scenes.labels[0], scenes.classes)
    assert len(ax.patches) == len(ax.texts) == len(scenes.boxes[0])
    _, history = detection.fit(scenes, TINY, maps, path=tmp_path / "a.pt")
    runs, losses = {"with": history, "without": history}, dict.fromkeys(detection.LOSSES, "loss")
    axes = plots.learning_curves(runs, losses, plt.subplots(1, 4)[1], "step", smooth=0.05)
    assert [len(ax.lines) for ax in axes] == [2] * 4
    table = detection.precision_by_class([invented(1)[1]], invented(1)[0], draws=20)
    both = pd.concat([table.assign(run="with"), table.query("name == 'a'").assign(run="without")])
    ax = plots.intervals(both, "ap", "AP", "run")
    assert [len(line.get_xdata()) for line in ax.lines] == [2, 1]
    plt.close("all")


def test_detectors_differ_by_the_regions_boxes_alone(scenes, tmp_path, monkeypatch):
    monkeypatch.setenv("RETAILKIT_CACHE", str(tmp_path))
    test = synthetic.render_scenes(3, "overlap", size=96, seed=9)

    def trained(learn_region):
        return detection.train_detectors(lambda seed: scenes, test, TINY, [0, 1], learn_region)

    both, neither = trained(True), trained(False)
    for kinds in (both, neither):
        assert kinds["with"].history["seed"].value_counts().to_dict() == {0: 12, 1: 12}
        assert len(kinds["with"].found) == 2 and len(kinds["with"].found[0]) == len(test)
    assert not both["with"].history.equals(both["without"].history)
    assert both["without"].history.equals(neither["with"].history)
    assert neither["with"].history.equals(neither["without"].history)
    assert both["with"].held_out["own labels"][0]["total"].gt(0).all()
