"""What all tests of backgrounds share."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from retailkit.data.table import COLUMNS, ProductData


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Nothing is taken from the user's cache, and nothing is left there."""
    monkeypatch.setenv("RETAILKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RETAILKIT_DEVICE", "cpu")


@pytest.fixture
def data(tmp_path):
    """Three kinds of L on backgrounds that go with them; 12 images to learn from and 9 to judge by."""
    rng, rows = np.random.default_rng(0), []
    for number in range(21):
        kind, pixels = number % 3, rng.integers(0, 90, (32, 32, 3))
        mask = np.zeros((32, 32), bool)
        mask[8:24, 10 : 18 + number % 5] = True
        mask[8:11, 14:] = False
        pixels[..., kind] += 60
        pixels[mask] = 120 + 60 * np.eye(3, dtype=int)[(kind + 1) % 3]
        files = tmp_path / f"{number}.png", tmp_path / f"{number}_mask.png"
        for array, file in zip((pixels.astype(np.uint8), mask), files, strict=True):
            Image.fromarray(array).save(file)
        facts = {"image": str(files[0]), "mask": str(files[1]), "label": "abc"[kind], "coarse": "xxy"[kind]}
        rows.append(facts | {"split": "train" if number < 12 else "test"})
    return ProductData("boxes", pd.DataFrame(rows).reindex(columns=COLUMNS).fillna(""), list("abc"), {}, fit="stretch")
