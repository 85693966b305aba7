"""A small shop and three models that have learned a little, for the tests of the tool."""

import io
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from retailkit import data, models, training, widgets
from retailkit.data.table import Word
from retailkit.inference import Predictor
from retailkit.widgets.model import Desk

CLASSES = ["lean", "extra lean", "milk"]
SIZE = 64


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="session")
def shop(tmp_path_factory):
    """Three classes of six coloured photos with a mask; each has its name for words. The first two are twins."""
    root, rows = tmp_path_factory.mktemp("shop"), []
    for number, label in enumerate(CLASSES):
        for shot in range(6):
            rng = np.random.default_rng(10 * number + shot)
            pixels = rng.integers(0, 80, (SIZE, SIZE, 3), np.uint8)
            pixels[16:48, 16:48, number] += 150
            mask = np.zeros((SIZE, SIZE), np.uint8)
            mask[16:48, 16:48] = 255
            for name, array in (("photo", pixels), ("mask", mask)):
                Image.fromarray(array).save(root / f"{name}-{number}-{shot}.png")
            row = {"image": f"photo-{number}-{shot}.png", "mask": f"mask-{number}-{shot}.png", "label": label}
            row |= {"family": "ham" if number < 2 else "dairy", "split": "train" if shot < 2 else "test"}
            rows.append(row | {"text": f"{label} brand"})
    pd.DataFrame(rows).to_csv(root / "photos.csv", index=False)
    shop = data.load("folder", root / "photos.csv")
    boxes = [(4.0, 4.0, 20.0, 10.0), (24.0, 4.0, 40.0, 10.0), (44.0, 4.0, 60.0, 10.0)]
    words = [[Word(w, box) for w, box in zip(text.split(), boxes, strict=False)] for text in shop.table["text"]]
    return replace(shop, table=shop.table.assign(words=words))


@pytest.fixture(scope="session")
def predictors(shop):
    """A model that sees and reads, one that sees, and one that reads; they have learned a little."""
    found = {}
    for name in ("score_fusion", "image", "text"):
        torch.manual_seed(0)
        parts = {} if name == "image" else {"text_encoder": "char_ngrams"}
        model = models.build(name, shop.classes, "timm:test_resnet", **parts,
                             weights=None, freeze=True)  # fmt: skip
        training.fit(model, shop.split("train", SIZE), config=training.TrainConfig(epochs=20))
        found[name] = Predictor(model.eval(), SIZE)
    return found


@pytest.fixture
def tool(shop, predictors):
    made = widgets.ExplanationTool(shop, predictors, budget=64)
    yield made
    made.stop()


@pytest.fixture
def without_words():
    """Return a function that returns a photo without its words."""
    return lambda photo: replace(photo, tokens=(), sample=replace(photo.sample, words=[], text=""))


@pytest.fixture
def png():
    """An image of one colour as the content of a PNG file."""
    stream = io.BytesIO()
    Image.new("RGB", (200, 100), 90).save(stream, "png")
    return stream.getvalue()


@pytest.fixture
def desk(shop, predictors):
    return Desk(shop, predictors)


@pytest.fixture
def photo(desk):
    return desk.photo(0)
