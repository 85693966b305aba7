"""Capture conditions: what the paper says of them, and that they never waver."""

import numpy as np
import pytest

from retailkit import data
from retailkit.config import UsageError
from retailkit.data import conditions
from retailkit.data.conditions import CONDITIONS, apply_condition


@pytest.fixture
def picture():
    rng = np.random.default_rng(0)
    return np.kron(rng.integers(20, 236, (24, 32, 3), np.uint8), np.ones((10, 10, 1), np.uint8))


@pytest.mark.parametrize("name", CONDITIONS)
@pytest.mark.parametrize("level", [1, 3, 5])
def test_shape_and_type_stay_and_the_result_is_always_the_same(picture, name, level):
    before = picture.copy()
    one, two = (apply_condition(picture, name, level) for _ in range(2))
    assert one.shape == picture.shape and one.dtype == np.uint8
    assert np.array_equal(one, two) and np.array_equal(picture, before)
    assert np.array_equal(one, picture) == (name == "front")


@pytest.mark.parametrize(("side", "kept"), [(448, 78), (348, 60), (600, 80)])
def test_blurry_keeps_the_papers_pixels(side, kept, monkeypatch):
    sizes = []
    resize = conditions.cv2.resize
    monkeypatch.setattr(conditions.cv2, "resize", lambda *a, **k: sizes.append(a[1]) or resize(*a, **k))
    apply_condition(np.zeros((side, side // 2, 3), np.uint8), "blurry")
    assert max(sizes[0]) == kept and sizes[1] == (side // 2, side)
    assert np.prod(sizes[0]) <= 0.031 * side * side / 2


def test_dark_is_a_gain_on_linear_light():
    grey = np.full((64, 64, 3), 188, np.uint8)  # half of the light
    for level, gain in enumerate(conditions.GAIN, start=1):
        value = apply_condition(grey, "dark", level) / 255
        seen = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4).mean()
        assert seen == pytest.approx(0.503 * gain, rel=0.06)


@pytest.mark.parametrize("name", [name for name in CONDITIONS if name != "front"])
def test_severity_grows(picture, name):
    change = [np.abs(apply_condition(picture, name, level).astype(int) - picture).mean() for level in (1, 3, 5)]
    assert change[0] < change[1] < change[2]


def test_side_leaves_a_narrow_front():
    stripes = np.zeros((100, 100, 3), np.uint8)
    stripes[:, ::10] = 255
    columns = apply_condition(stripes, "side")[50].astype(int)
    changing = np.flatnonzero(np.abs(np.diff(columns[:, 0])) > 10)
    assert np.ptp(changing) < 30  # a quarter, and a little for perspective


@pytest.mark.parametrize(("name", "level", "says"), [("drak", 3, "did you mean 'dark'"), ("dark", 6, "severity 6")])
def test_wrong_calls_are_named(picture, name, level, says):
    with pytest.raises(UsageError, match=says):
        apply_condition(picture, name, level)


def test_a_split_under_a_condition(tmp_path):
    shop = data.load("synthetic", tmp_path, per_class=(0, 0, 1), families=1, size=96).split("test", 96)
    dark, side = (shop.with_options(condition=(name, 3))[0] for name in ("dark", "side"))
    assert dark.image.mean() < 0.6 * shop[0].image.mean()
    assert dark.mask is not None and dark.truth is not None
    assert side.mask is None and side.truth is None and side.label == shop[0].label
