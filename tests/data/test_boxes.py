"""Images with boxes: rendered scenes whose boxes are exact, and files in COCO's format."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from retailkit.config import UsageError, UserError
from retailkit.data import DataError, synthetic
from retailkit.data.boxes import load_coco
from retailkit.data.synthetic.boxes import TARGET

ANNOTATION = {"id": 5, "image_id": 7, "category_id": 3, "bbox": [10, 5, 20, 30]}
NOWHERE = ANNOTATION | {"image_id": 8}


def test_the_same_seed_draws_the_same_scenes_and_another_seed_others():
    one, same, other = (synthetic.render_scenes(3, "carrier", size=96, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one.images + one.boxes, same.images + same.boxes, strict=True))
    assert not torch.equal(one.images[0], other.images[0])
    first = synthetic.render_scenes(1, "carrier", size=96, seed=1).images[0]
    assert torch.equal(first, one.images[0]), "the number of scenes matters"


def presence(scenes):
    """Whether each scene shows the region, and whether it shows a target."""
    target = scenes.classes.index(TARGET) + 1
    return [(bool((row == scenes.region_label).any()), bool((row == target).any())) for row in scenes.labels]


@pytest.mark.parametrize("relation", synthetic.RELATIONS)
def test_the_region_comes_with_its_targets_and_only_with_them_unless_a_coin_decides(relation):
    shown = presence(synthetic.render_scenes(40, relation, size=96, seed=0))
    assert all(region == target for region, target in shown)
    assert 20 < sum(region for region, _ in shown) < 40
    free = presence(synthetic.render_scenes(60, relation, size=96, correlation=0, seed=0))
    assert set(free) == {(True, True), (True, False), (False, True), (False, False)}


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
    whole = synthetic.render_scenes(8, "carrier", size=128, seed=4)
    placed = synthetic.boxes._placed
    target = whole.classes.index(TARGET) + 1
    index = next(k for k, labels in enumerate(whole.labels) if (labels == target).sum() == 1)
    monkeypatch.setattr(synthetic.boxes, "_placed", lambda stand, *rest: placed(stand, *rest) * (stand[0] != TARGET))
    empty = synthetic.render_scenes(8, "carrier", size=128, seed=4)
    changed = (whole.images[index].int() - empty.images[index].int()).abs().amax(0).numpy() > 24
    x0, y0, x1, y1 = whole.boxes[index][whole.labels[index] == target][0].int().tolist()
    ys, xs = np.nonzero(changed)
    assert np.abs(np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) - (x0, y0, x1, y1)).max() <= 2


@pytest.mark.parametrize("options", [{"relation": "under"}, {"size": 8}, {"correlation": 2}])
def test_wrong_options_of_scenes_say_so(options):
    with pytest.raises(UsageError, match=next(iter(options))):
        synthetic.render_scenes(**({"count": 1, "relation": "overlap"} | options))


# -- COCO files


def coco(tmp_path, **changes):
    Image.new("RGB", (60, 40), (200, 30, 30)).save(tmp_path / "one.png")
    door = ANNOTATION | {"category_id": 90, "bbox": [0, 0, 60.4, 40]}
    content = {
        "images": [{"id": 7, "file_name": "one.png", "width": 60, "height": 40}],
        "categories": [{"id": 3, "name": "milk"}, {"id": 90, "name": "door"}],
        "annotations": [ANNOTATION, door, ANNOTATION | {"bbox": [0, 0, 5, 5], "iscrowd": 1}],
    }
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(content | changes), encoding="utf-8-sig")
    return path


def test_a_coco_file_becomes_scenes_with_labels_from_one_on(tmp_path):
    scenes = load_coco(coco(tmp_path), tmp_path, region="door")
    assert scenes.classes == ["milk", "door"] and scenes.targets == ("milk",) and scenes.region_label == 2
    assert scenes.boxes[0].tolist() == [[10, 5, 30, 35], [0, 0, 60, 40]] and scenes.labels[0].tolist() == [1, 2]
    assert scenes.image(0).shape == (3, 40, 60) and scenes.sizes == [(40, 60)]
    both, products = scenes.annotation(0), scenes.annotation(0, region=False)
    assert both["boxes"].dtype == torch.float32 and both["labels"].dtype == torch.int64
    assert (len(both["labels"]), products["labels"].tolist()) == (2, [1])


IMAGE = {"id": 7, "file_name": "one.png"}
FAULTY = [  # those that tests/hostile leaves out, and one of each kind
    ({"images": [IMAGE | {"file_name": "two.png"}]}, "two.png"),
    ({"images": [IMAGE | {"width": 600, "height": 400}]}, "60x40 pixels but"),
    ({"images": []}, "lists no images"),
    ({"annotations": [ANNOTATION | {"bbox": [50, 5, 20, 30]}]}, r"annotation 5: bbox .* outside .* 60x40"),
    ({"annotations": [ANNOTATION | {"bbox": [10, 5, 0, 30]}, NOWHERE]}, r"(?s)is empty.*8 is not among the images"),
    ({"annotations": [ANNOTATION | {"bbox": [10, 5, 20]}]}, "is not four numbers"),
    ({"annotations": [ANNOTATION | {"category_id": 4}]}, r"unknown category_id 4 \(known: 3, 90\)"),
    ({"categories": {}}, "no list 'categories'"),
    ({"images": [IMAGE] * 2}, "images has the id 7 more than once"),
    ({"annotations": [ANNOTATION | {"image_id": [7]}]}, r"annotations\[0\] lacks image_id"),
    ({"annotations": [ANNOTATION | {"image_id": "7"}]}, "image_id '7' is not among"),
    ({"annotations": [ANNOTATION | {"bbox": [0.2, 0.1, 0.3, 0.6]}]}, "give pixels, not shares"),
]


@pytest.mark.parametrize("changes, says", FAULTY)
def test_a_faulty_coco_file_is_refused_with_place_and_cure(tmp_path, changes, says):
    with pytest.raises(DataError, match=says):
        load_coco(coco(tmp_path, **changes), tmp_path)


@pytest.mark.parametrize("size", [{}, {"width": None, "height": None}, {"width": "60", "height": 40.0}])
def test_sizes_may_be_missing_or_text_folders_windows_and_flags_text(tmp_path, size):
    (tmp_path / "a").mkdir()
    rows = [ANNOTATION | {"iscrowd": "0"}, ANNOTATION | {"iscrowd": "1"}]
    path = coco(tmp_path, images=[{"id": 7, "file_name": "a\\one.png"} | size], annotations=rows)
    (tmp_path / "one.png").rename(tmp_path / "a" / "one.png")
    scenes = load_coco(path, tmp_path)
    assert scenes.sizes == [(40, 60)] and scenes.boxes[0].tolist() == [[10, 5, 30, 35]]


def test_files_are_read_upright_and_in_eight_bits_as_everywhere_else(tmp_path):
    path, exif = coco(tmp_path), Image.Exif()
    exif[0x0112] = 6
    Image.new("I;16", (40, 60), 65535).save(tmp_path / "one.png", exif=exif)
    assert load_coco(path, tmp_path).image(0).min() == 1 and load_coco(path, tmp_path).sizes == [(40, 60)]


def test_a_missing_file_no_json_and_an_unknown_region_say_so(tmp_path):
    (tmp_path / "text.json").write_text("milk")
    for name, says in (("none.json", "No such file"), ("text.json", "not JSON"), (".", "not a regular file")):
        with pytest.raises(UserError, match=says):
            load_coco(tmp_path / name, tmp_path)
    with pytest.raises(UsageError, match="'dor'; did you mean 'door'"):
        load_coco(coco(tmp_path), tmp_path, region="dor")
