"""How time and memory grow with the size of the work, on one thread.

Seconds are those of the processor, so that other programs matter little. The exponent is the slope of a straight line
through the logarithms of size and seconds (least squares). Beside it stands the one to expect: the slope, at the same
sizes, of how many operations the method has. `memory_mb` is the largest resident memory of a call, less what the
process held before: libraries, model and inputs. The table goes into a file of its own whose name ends in `_growth`.
"""

import ctypes
import gc
import itertools
import os
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import psutil
import pytest
import torch

from retailkit import backgrounds, data, models
from retailkit.explain import lime, masking
from retailkit.inference import Predictor
from retailkit.models.lca import LocalConceptsAccumulation, count_windows

WORSE = 0.3  # by which a fitted exponent may be above the expected one: caches end, other programs disturb
CLASSES = [f"class {k}" for k in range(64)]
WORDS = "fresh whole milk one litre three percent fat organic farm keep cool"


# -- What is measured: each function prepares a size, and returns the call.


def lca(side=14, channels=64):
    torch.manual_seed(0)
    pool = LocalConceptsAccumulation(SimpleNamespace(dim=channels), 10)
    maps = torch.randn(4, channels, side, side).relu()
    return lambda: pool.pool(maps)


def nts(side=128, parts=4):
    torch.manual_seed(0)
    model = models.build("nts", CLASSES, "resnet18", weights=None, parts=parts, propose=max(6, parts)).eval()
    images = torch.rand(2, 3, side, side)
    return lambda: model(images)


def explanation(side=64, masks=64, classes=1, words=""):
    torch.manual_seed(0)
    options = {"text_encoder": "char_ngrams"} if words else {}
    model = models.build("concat" if words else "image", CLASSES, "resnet18", weights=None, **options).eval()
    predictor, image = Predictor(model, side), torch.rand(3, side, side)
    segments = masking.segment(image, np.arange(side * side).reshape(side, side) * 40 // side**2)
    asked = {"segments": segments, "budget": masks, "classes": f"top{classes}", "progress": False}
    return lambda: lime.explain(predictor, image, words or None, **asked)


def variants(side=64, images=8):
    generator = torch.Generator().manual_seed(0)
    photos, masks = torch.rand(images, 3, side, side, generator=generator), torch.zeros(images, 1, side, side).bool()
    masks[..., side // 4 : side // 2, side // 4 : side // 2] = True
    return lambda: [backgrounds.apply_variant(photos, masks, name, photos.flip(0)) for name in backgrounds.PAPER]


def rendering(side=96, images=2):
    folder, places = tempfile.TemporaryDirectory(), itertools.count()
    shape = {"size": side, "per_class": (images, 0, 0), "families": 1, "workers": 1}
    return lambda: data.load("synthetic", Path(folder.name, str(next(places))), **shape)


def matching(images):
    generator = torch.Generator().manual_seed(0)
    known = torch.nn.functional.normalize(torch.rand(images, 100, 128, generator=generator) ** 4, dim=2)
    points = 240 * torch.rand(images, 100, 2, generator=generator)
    matcher = models.build("matching", CLASSES)
    matcher._fill(points, known, torch.full((images,), 100), torch.arange(images) % len(CLASSES))
    query = SimpleNamespace(points=points[0].numpy(), descriptors=known[0].numpy())

    def call():
        matcher._scores(query)
        matcher._search._last = None  # nothing is left of the call before

    return call


# Method and what grows, how a size is prepared, sizes, operations of a size up to a factor.
CURVES = {
    "LCA, side of the map": (lambda n: lca(side=n), (14, 20, 28, 40, 56), lambda n: count_windows(n, n)),
    "LCA, channels": (lambda n: lca(side=7, channels=n), (512, 1024, 2048, 4096), lambda n: n**2),
    "NTS-Net, image side": (lambda n: nts(side=n), (128, 192, 256, 384), lambda n: n**2),
    "NTS-Net, parts": (lambda n: nts(parts=n), (4, 8, 16, 32), lambda n: 1 + n / 4),
    "local explanation, masks": (lambda n: explanation(masks=n), (64, 128, 256, 512), lambda n: n),
    "local explanation, image side": (lambda n: explanation(side=n), (64, 96, 128, 192), lambda n: n**2),
    "local explanation, classes": (lambda n: explanation(classes=n), (1, 4, 16, 64), lambda n: 1),
    "joint explanation, masks": (lambda n: explanation(masks=n, words=WORDS), (64, 128, 256, 512), lambda n: n),
    "background variants, image side": (lambda n: variants(side=n), (64, 128, 256, 512), lambda n: n**2),
    "background variants, images": (lambda n: variants(images=n), (8, 16, 32, 64), lambda n: n),
    "rendering, image side": (lambda n: rendering(side=n), (96, 192, 384), lambda n: n**2),
    "rendering, images of a class": (lambda n: rendering(images=n), (2, 4, 8, 16), lambda n: n),
    "matching, images of the gallery": (matching, (250, 500, 1000, 2000), lambda n: n),
}


class Peak(threading.Thread):
    """Watch how much memory a block adds, in MB, after what is free has gone back to the system."""

    def __enter__(self):
        gc.collect()
        getattr(ctypes.CDLL(None), "malloc_trim", lambda keep: 0)(0)  # of Linux's C library
        self.memory, self.added, self.done = psutil.Process().memory_info, 0.0, threading.Event()
        self.before = self.memory().rss
        self.start()
        return self

    def run(self):
        while not self.done.wait(0.005):
            self.added = max(self.added, (self.memory().rss - self.before) / 1e6)

    def __exit__(self, *error):
        self.done.set()
        self.join()


def exponent(sizes, values):
    """The slope of the logarithms."""
    return round(float(np.polyfit(np.log(sizes), np.log(values), 1)[0]), 2)


@pytest.mark.benchmark
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", CURVES)
@torch.no_grad()
def test_growth(quick, name):
    prepare, sizes, operations = CURVES[name]
    rows = []
    for size in sizes[: 3 if quick else None]:
        call = prepare(size)
        call()  # compiles, and fills caches
        with Peak() as peak:
            start = time.process_time()
            call()
            seconds = time.process_time() - start
        rows.append({"curve": name, "size": size, "seconds": round(seconds, 5), "memory_mb": round(peak.added, 1)})
    table = pd.DataFrame(rows)
    fitted, expected = (exponent(table["size"], y) for y in (table["seconds"], table["size"].map(operations)))
    table = table.assign(exponent=fitted, expected=expected)
    print(f"\n{table.to_string(index=False)}")
    if path := os.environ.get("RETAILKIT_BENCH_CSV"):
        path = Path(path).with_name(f"{Path(path).stem}_growth.csv")
        fresh = name == next(iter(CURVES))
        table.to_csv(path, mode="w" if fresh else "a", header=fresh, index=False)
    assert fitted <= expected + WORSE
