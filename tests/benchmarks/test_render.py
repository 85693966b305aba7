"""How fast the built-in data set is rendered."""

from __future__ import annotations

import time

import pytest

from retailkit import data

TARGET = 40  # images a second and core at 224 px, files with all ground truth written


@pytest.mark.benchmark
def test_render_speed(tmp_path):
    options = {"size": 224, "workers": 1}
    # The first set also draws all packages and shelves, which a process does once.
    seconds = {}
    for case, per_class in (("cold", (16, 4, 8)), ("warm", (16, 4, 7))):
        start = time.process_time()
        images = len(data.load("synthetic", tmp_path, per_class=per_class, **options))
        seconds[case] = (time.process_time() - start) / images
        print(f"{case}: {1 / seconds[case]:.0f} images a second and core ({images} images)")
    assert 1 / seconds["cold"] >= TARGET
