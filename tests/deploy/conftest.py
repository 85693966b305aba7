"""A shop of drawn photos, a tiny checkpoint that learned nothing, and an export of it."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from retailkit import deploy, models, training

SIDE = 64
CLASSES = ["<b>bold</b> | milk", "juice", "tea"]


def draw(folder, per_split):
    """A CSV of noisy photos of odd sizes; the condition is `dark` for every other one."""
    folder.mkdir(parents=True)
    rng, rows = np.random.default_rng(0), []
    for k, label in enumerate(CLASSES):
        for split, count in per_split.items():
            for i in range(count):
                name = f"{k}_{split}_{i}.png"
                pixels = rng.normal(60 + 60 * k, 50, (70 + 5 * i, 90 + 3 * k, 3))
                Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / name)
                rows.append((name, label, split, "dark" if i % 2 else "front", "white" if k < 2 else ""))
    table = pd.DataFrame(rows, columns=["image", "label", "split", "condition", "family"])
    table.to_csv(folder / "photos.csv", index=False)
    return folder / "photos.csv"


def _settle(model):
    """Give the normalisation statistics of pictures and the head features of size 1, so that answers vary."""
    images = torch.rand(16, 3, SIDE, SIDE) * torch.rand(16, 3, 1, 1)
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None  # a plain average of what is seen
    with torch.no_grad():
        model.train()(images)
        model.eval().fit_scalers(model.encode_image(images))


def checkpoint(path, name="image", fit="crop", classes=CLASSES, **options):
    """A network with random weights whose head gives varied answers."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = models.build(name, classes, backbone="shufflenet_v2_x1_0", weights=None, **options).eval()
        _settle(model)
    history = training.History(pd.DataFrame(), 0, 0.0)
    return training.save_checkpoint(model, path, history, size=SIDE, fit=fit)


@pytest.fixture(scope="session")
def shop(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("shop") / "photos", {"train": 4, "test": 5})


@pytest.fixture(scope="session")
def exported(tmp_path_factory, shop):
    """An export with int8, and the checkpoint that it is of."""
    folder = tmp_path_factory.mktemp("exported")
    path = checkpoint(folder / "m.safetensors")
    return deploy.export(path, folder / "out", "folder", shop, records=[]), path
