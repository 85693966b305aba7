"""The built-in data set: the truth that comes with each image is what its pixels show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from retailkit import cache, data
from retailkit.config import UserError
from retailkit.data import synthetic
from retailkit.data.synthetic import scene
from retailkit.data.synthetic.catalogue import CATALOGUE, DEPARTMENTS, FAMILIES
from retailkit.data.synthetic.scene import LEVELS, Effects, compose, grow

SIZE = 112
SMALL = {"per_class": (4, 2, 2), "families": 2, "side": 0.25, "size": SIZE, "workers": 1}
BARE = {"shadow": False, "reflection": False, "lighting": False, "occlusion": False, "noise": False}
ONE_PER_FAMILY = [products[0].label for products in FAMILIES.values()]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    root = tmp_path_factory.mktemp("synthetic")
    return root, data.load("synthetic", root, **SMALL)


def render(label, *, seed=0, size=SIZE, pose="front", shot=0, difficulty="hard", **effects):
    """One image of a product in its own department."""
    product = next(product for product in CATALOGUE if product.label == label)
    look = {"background": product.department, "pose": pose, "shot": shot, "difficulty": difficulty}
    return compose(product, [seed], size=size, effects=Effects(**effects), **look)


def folder_of(root):
    return next(path.parent for path in root.glob("*/sums.json"))


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def written(folder):
    """When each file was written last."""
    return {path: path.stat().st_mtime_ns for path in (folder / "images").iterdir()}


def differs(a, b):
    return (a != b).any(axis=-1)


def test_same_seed_same_bytes_with_any_number_of_workers(small, tmp_path):
    root, loaded = small
    options = SMALL | {"per_class": (11, 0, 0), "size": 64}
    for workers in (1, 2):
        data.load("synthetic", tmp_path / str(workers), **options | {"workers": workers})
    one, two = (content(folder_of(tmp_path / str(workers))) for workers in (1, 2))
    assert one == two and len(one) == 3 * 66 + 1
    other = data.load("synthetic", root, **SMALL | {"seed": 1})
    names, others = ({Path(path).name for path in found.table["image"]} for found in (loaded, other))
    assert not names & others


def test_table_and_samples_carry_the_truth(small):
    _, loaded = small
    table = loaded.table
    assert loaded.classes == sorted(p.label for products in list(FAMILIES.values())[:2] for p in products)
    assert table["split"].value_counts().to_dict() == {"train": 24, "val": 12, "test": 12}
    assert (table.groupby("group")["split"].nunique() == 1).all() and (table["group"].value_counts() == 2).all()
    assert (table["text"] == "").all() and loaded.fit == "stretch" and loaded.info["licence"] == "MIT"
    assert set(table["condition"]) == {"front", "side"} and set(table["coarse"]) <= set(DEPARTMENTS)
    names = "".join(Path(path).name for path in table["image"]).upper()
    assert table["image"].is_unique and not any(product.brand in names for product in CATALOGUE)
    sample = loaded.split("test", size=SIZE)[0]
    made = next(shot for shot in synthetic.plan("shelf", (4, 2, 2), 0.8, 0.25, 2, 0) if shot.split == "test")
    look = {"background": made.background, "pose": made.pose, "shot": made.shot, "difficulty": "easy"}
    again = compose(CATALOGUE[made.product], made.key, size=SIZE, **look)
    assert (sample.mask[0].numpy() == again.mask).all()
    for name, plane in again.planes.items():
        assert (getattr(sample.truth, name)[0].numpy() == plane).all()
    assert [w.text for w in sample.truth.words] == [text for text, _, _ in again.words]
    assert (sample.truth.pose, sample.truth.background) == (made.pose, made.background)
    assert np.abs(sample.image.permute(1, 2, 0).numpy() * 255 - again.image).mean() < 6, "compressed"


def test_bursts_are_alike_but_not_the_same():
    places = ((3, 0), (3, 1), (4, 0))
    first, second, elsewhere = (render(ONE_PER_FAMILY[0], seed=seed, shot=shot) for seed, shot in places)
    assert first.facts == second.facts
    apart = [np.abs(first.image.astype(int) - other.image).mean() for other in (second, elsewhere)]
    assert 0 < apart[0] < apart[1]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pose", ["front", "side"])
@pytest.mark.parametrize("difficulty", ["easy", "hard"])
def test_look_alikes_differ_inside_their_patch_only(family, pose, difficulty):
    for seed in range(2):
        one, *others = [render(p.label, seed=seed, pose=pose, difficulty=difficulty) for p in FAMILIES[family]]
        for other in others:
            assert not (differs(one.image, other.image) & ~one.planes["twin_patch"]).any()
            assert (one.mask == other.mask).all()
            if pose == "front":
                assert differs(one.image, other.image).sum() > 20


@pytest.mark.parametrize("label", ONE_PER_FAMILY)
def test_mask_is_what_the_product_changes(label, monkeypatch):
    for seed in range(3):
        whole = render(label, seed=seed, **BARE)
        with monkeypatch.context() as without:
            without.setattr(scene, "over", lambda image, top: image)
            empty = render(label, seed=seed, **BARE)
        changed = differs(whole.image, empty.image)
        # Pixels of little coverage at the rim change a little, too.
        assert not (changed & ~grow(whole.mask, 3)).any()
        assert changed[whole.mask].mean() > 0.98


@pytest.mark.parametrize("label", ONE_PER_FAMILY)
@pytest.mark.parametrize(("difficulty", "most"), [("easy", 0.9), ("medium", 0.75), ("hard", 0.6)])
def test_truth_is_consistent(label, difficulty, most):
    for seed in range(4):
        made = render(label, seed=seed, size=2 * SIZE, difficulty=difficulty)
        assert 0.05 < made.mask.mean() < most
        assert made.planes["twin_patch"].any() and not (made.planes["twin_patch"] & ~made.mask).any()
        for name in ("shadow", "reflection"):
            assert made.planes[name].any() and not (made.planes[name] & made.mask).any()
        product = next(p for p in CATALOGUE if p.label == label)
        assert {text for text, _, key in made.words if key} == set(product.variant)
        for text, (x0, y0, x1, y1), _ in made.words:
            part = made.mask[round(y0) : round(y1), round(x0) : round(x1)]
            assert part.mean() >= 0.5, text


def test_switches_leave_nothing_and_touch_nothing_else():
    label = FAMILIES["CASA LUPA TOMATO SOUP"][0].label
    bare = render(label, seed=5, **BARE)
    assert bare.facts["lighting"] == "neutral"
    assert not bare.planes["shadow"].any() and not bare.planes["reflection"].any()
    for name in ("shadow", "reflection"):
        lit = render(label, seed=5, **BARE | {name: True})
        changed = differs(lit.image, bare.image)
        assert changed[lit.planes[name]].mean() > 0.9
        assert not changed[~grow(~bare.mask, 2)].any()
        assert (lit.mask == bare.mask).all()
    full, unlit = (render(label, seed=5, lighting=on) for on in (True, False))
    assert (full.mask == unlit.mask).all() and (full.planes["shadow"] == unlit.planes["shadow"]).all()
    lights = {render(label, seed=seed, size=64).facts["lighting"] for seed in range(30)}
    assert {"warm", "dim", "spot"} <= lights


def test_something_hides_a_product_now_and_then():
    hidden = 0
    for seed in range(30):
        free, made = (render(ONE_PER_FAMILY[0], seed=seed, size=64, occlusion=on) for on in (False, True))
        assert not (made.mask & ~free.mask).any()
        assert made.mask.sum() > 0.6 * free.mask.sum()
        hidden += made.mask.sum() < free.mask.sum()
    assert 2 <= hidden <= 20


def test_harder_images_show_less_of_what_tells_look_alikes_apart_and_differ_more_in_light():
    for label in ONE_PER_FAMILY:
        made = {name: [render(label, seed=seed, difficulty=name) for seed in range(4)] for name in LEVELS}
        products = [np.mean([image.mask.mean() for image in images]) for images in made.values()]
        patches = [np.mean([image.planes["twin_patch"].mean() for image in images]) for images in made.values()]
        assert products[0] > 1.2 * products[1] > 1.44 * products[2], label
        assert patches[0] > patches[1] > patches[2], label
    light = {}
    for name in ("easy", "hard"):
        lit = [render(ONE_PER_FAMILY[0], seed=seed, size=64, difficulty=name, shadow=False) for seed in range(12)]
        light[name] = np.std([image.image[image.mask].mean() for image in lit])
    assert light["easy"] < 0.6 * light["hard"]
    easy, *others = (compose(CATALOGUE[0], [0], size=64, background="studio", difficulty=name).image for name in LEVELS)
    assert all((easy == other).all() for other in others), "a packshot is the same at every level"


@pytest.mark.parametrize(("correlation", "share"), [(1, 1), (0, 1 / len(DEPARTMENTS)), (0.5, 0.6)])
def test_correlation(correlation, share):
    shots = synthetic.plan("shelf", (40, 0, 0), correlation, 0, 8, 0)
    own = np.mean([shot.background == CATALOGUE[shot.product].department for shot in shots])
    assert own == pytest.approx(share, abs=0.07 * (correlation < 1))


@pytest.mark.parametrize(("regime", "train"), [("shelf", 7), ("packshot", 5), ("oneshot", 1)])
def test_regimes(regime, train):
    shots = pd.DataFrame(synthetic.plan(regime, (7, 3, 4), 0.8, 1 / 8, 3, 0))
    counts = shots.groupby("split").size() / 9
    assert counts.to_dict() == {"train": train, "val": 3, "test": 4}
    clean = shots["background"] == "studio"
    assert clean.equals(shots["split"].eq("train") & (regime != "shelf"))
    assert (shots.loc[clean, "pose"] == "front").all()
    if regime == "shelf":
        assert shots["pose"].eq("side").mean() == pytest.approx(1 / 8, abs=0.04)


@pytest.mark.parametrize("sums", [None, "", '{"a', "[1]"])
def test_lost_and_damaged_files_are_rendered_again(tmp_path, sums):
    """A table that was cut dropped five of nine images; what a damaged file holds was used as it was."""
    options = SMALL | {"families": 1}
    table = data.load("synthetic", tmp_path, **options).table
    folder = folder_of(tmp_path)
    before = content(folder)
    for row, column in ((0, "image"), (3, "mask"), (5, "truth")):
        Path(table[column][row]).unlink()
    if sums is None:  # with the checksums a changed file is noticed, too
        for row, column in ((1, "image"), (4, "mask"), (6, "truth")):
            Path(table[column][row]).write_bytes(Path(table[column][row]).read_bytes()[:-20] + bytes(20))
    else:
        (folder / "sums.json").write_text(sums)
    times = written(folder)
    pd.testing.assert_frame_equal(data.load("synthetic", tmp_path, **options).table, table)
    assert content(folder) == before
    assert sum(written(folder)[path] == time for path, time in times.items()) >= len(before) - 20


def test_a_larger_set_renders_only_what_is_new(tmp_path):
    options = SMALL | {"families": 1}
    first = data.load("synthetic", tmp_path, **options | {"per_class": (2, 0, 1)}).table
    folder = folder_of(tmp_path)
    times = written(folder)
    larger = data.load("synthetic", tmp_path, **options | {"per_class": (4, 0, 2)}).table
    assert set(first["image"]) < set(larger["image"]) and times.items() < written(folder).items()
    times = written(folder)
    Path(first["image"][0]).write_bytes(b"damaged")  # both sets know its checksum
    assert data.load("synthetic", tmp_path, **options | {"per_class": (2, 0, 1)}).table.equals(first)
    assert Path(first["image"][0]).stat().st_size > 1000
    assert written(folder)[Path(larger["image"].iloc[-1])] == times[Path(larger["image"].iloc[-1])]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"regime": "pakshot"}, "did you mean 'packshot'"),
        ({"difficulty": "eazy"}, "did you mean 'easy'"),
        ({"correlation": 1.2}, "correlation=1.2"),
        ({"per_class": (1, 2)}, "per_class"),
        ({"size": 8}, "size=8"),
        ({}, r"holds 'milk', and the built-in .* not rendered beside it; .*--dataset folder"),
    ],
)
def test_bad_options_and_a_folder_of_photos(tmp_path, options, message):
    (tmp_path / "milk").mkdir()
    with pytest.raises(UserError, match=message):
        data.load("synthetic", tmp_path, **SMALL | options)
    assert [path.name for path in tmp_path.iterdir()] == ["milk"]


def test_the_drawings_decide_where_images_are_kept_too():
    files = {path.name for path in cache.sources("retailkit.data.synthetic")}
    assert {"artwork.yaml", "catalogue.yaml", "drawing.py", "packaging.py", "shelf.py", "scene.py"} <= files
