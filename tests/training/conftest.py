"""A small real data set of drawn images, and a small model."""

import pytest
import torch

from retailkit import models

SMALL = {"backbone": "shufflenet_v2_x1_0", "weights": None}


@pytest.fixture(autouse=True)
def a_cache_of_its_own(own_cache):
    pass


@pytest.fixture
def data(tmp_path, draw):
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
            return models.build(name, data.classes, **SMALL | options)

    return build
