"""A small real data set of drawn images, and a small model."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from retailkit import models
from retailkit.data.table import COLUMNS, ProductData

COLOURS = {"blue": (30, 60, 200), "green": (30, 180, 60), "red": (200, 40, 40)}
SMALL = {"backbone": "shufflenet_v2_x1_0", "weights": None}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RETAILKIT_CACHE", str(tmp_path / "cache"))


def draw(folder: Path, per_split: dict[str, int]) -> ProductData:
    """Images of one colour per class, with noise: learnable, but not by a model that never looks."""
    rng, rows = np.random.default_rng(0), []
    for label, colour in COLOURS.items():
        for split, count in per_split.items():
            for i in range(count):
                path = folder / f"{label}_{split}_{i}.png"
                noise = rng.normal(0, 40, (48, 48, 3))
                Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)).save(path)
                rows.append({"image": str(path), "label": label, "split": split})
    table = pd.DataFrame(rows).reindex(columns=COLUMNS).fillna("")
    return ProductData("drawn", table, sorted(COLOURS), {})


@pytest.fixture
def data(tmp_path):
    (tmp_path / "images").mkdir()
    return draw(tmp_path / "images", {"train": 8, "val": 4})


@pytest.fixture
def train(data):
    return data.split("train", 48)


@pytest.fixture
def val(data):
    return data.split("val", 48)


@pytest.fixture
def small_model(data):
    """Return a function of the seed that builds a model."""

    def build(seed=0, name="image", **options):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return models.build(name, data.classes, **SMALL, **options)

    return build
