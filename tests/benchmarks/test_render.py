"""How fast the built-in data set is rendered, files with all ground truth written."""

import itertools
import time
from pathlib import Path

import pytest

from retailkit import data

TARGET = 40  # images a second and core at 224 px


@pytest.mark.benchmark
def test_render(tmp_path, compare, quick):
    per_class = (8, 2, 4) if quick else (16, 4, 8)
    # The first set also draws all packages and shelves, which a process does once.
    for case in ("first", "further"):
        start = time.process_time()
        images = len(data.load("synthetic", tmp_path / case, per_class=per_class, size=224, workers=1))
        rate = images / (time.process_time() - start)
        print(f"\nrender: {case} set: {rate:.0f} images a second and core ({images} images)")
        assert rate >= TARGET

    folders = itertools.count()

    def render(workers):
        folder = tmp_path / str(next(folders))
        images = data.load("synthetic", folder, per_class=(4, 2, 2), size=224, workers=workers).table["image"]
        return [*map(Path, images)]

    def different_files(one, other):
        return sum(a.read_bytes() != b.read_bytes() for a, b in zip(one, other, strict=True))

    ways = lambda: render(1), lambda: render(None)
    compare("render", "192 images at 224 px", "one thread", *ways, different_files, repeat=3)
