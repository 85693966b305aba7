"""ImageNet-9 and its variants, on a small folder of the released layout."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from retailkit.config import UsageError
from retailkit.data import DataError, load
from retailkit.data.images import read_mask

CLASSES = ["00_dog", "01_bird", "02_vehicle"]
COLOURS = {"original": "red", "only_bg_b": "black", "mixed_rand": "blue"}


@pytest.fixture
def root(tmp_path):
    """Three variants, two photos a class in train and val; masks of val's."""
    base = tmp_path / "in9"
    for split in ("train", "val"):
        for number, label in enumerate(CLASSES):
            for n in (1, 2):
                stem = f"n0{number}_{n}{split}"
                names = dict.fromkeys(("original", "only_bg_b"), stem)
                names["mixed_rand"] = f"fg_{stem}_bg_n09_{n}"
                for variant, name in names.items():
                    folder = base / variant / split / label
                    folder.mkdir(parents=True, exist_ok=True)
                    Image.new("RGB", (24, 20), COLOURS[variant]).save(folder / f"{name}.JPEG")
                if split == "val":
                    (base / "fg_mask/val" / label).mkdir(parents=True, exist_ok=True)
                    mask = np.zeros((20, 24), np.uint8)
                    mask[:5, : 6 * n] = 1
                    np.save(base / "fg_mask/val" / label / f"{stem}.npy", mask)
    return base


def test_classes_keep_their_number_and_val_is_what_is_tested_on(root):
    data = load("imagenet9", root)
    assert data.classes == CLASSES and data.splits == ["train", "test"]
    assert data.table.groupby("split").size().to_dict() == {"train": 6, "test": 6}
    assert data.split("test", size=16).labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert (data.table["text"] == "").all()


@pytest.mark.parametrize("variant", ["original", "mixed_rand"])
def test_masks_belong_to_the_foreground_photo(root, variant):
    data = load("imagenet9", root, variant=variant)
    test = data.table[data.table["split"] == "test"]
    assert (data.table.loc[data.table["split"] == "train", "mask"] == "").all()
    for n, path in enumerate(test["mask"]):
        assert read_mask(path, (20, 24)).sum() == 5 * 6 * (n % 2 + 1)
    sample = data.split("test", size=16)[1]  # no rim is cut off
    assert sample.mask[0, :4, :8].all() and not sample.mask[0, 5:].any()
    assert test["group"].tolist() == load("imagenet9", root).table.query("split == 'test'")["group"].tolist()


def test_a_background_without_product_has_no_mask(root):
    data = load("imagenet9", root, variant="only_bg_b")
    assert not data.has("mask") and data.split("train", size=16)[0].image.max() < 0.1


def test_a_set_without_train_says_so(root):
    shutil.rmtree(root / "mixed_rand/train")
    data = load("imagenet9", root, variant="mixed_rand")
    assert data.splits == ["test"]
    with pytest.raises(DataError, match=r"no 'train' split.*mixed_rand.train is not there; get it from https"):
        data.split("train")
    with pytest.raises(DataError, match=r"no 'val' split.*hold out part of train"):
        data.split("val")


def test_what_is_missing_is_named_with_its_cure(root, tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no ImageNet-9 here; get it from https.*--root"):
        load("imagenet9", tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no_fg: no such variant here \(there: original, mixed_rand, only_bg_b\)"):
        load("imagenet9", root, variant="no_fg")
    with pytest.raises(UsageError, match="did you mean 'mixed_rand'"):
        load("imagenet9", root, variant="mixed_rnd")
    (root / "only_fg/val").mkdir(parents=True)
    with pytest.raises(DataError, match=r"only_fg: no images \(train or val"):
        load("imagenet9", root, variant="only_fg")
    (root / "original/val/dogs").mkdir()
    with pytest.raises(DataError, match=r"dogs: not a class of ImageNet-9 \(such as 00_dog\); move it"):
        load("imagenet9", root)
