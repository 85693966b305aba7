"""Splits as features: what is computed once, and what tells two of them apart."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from retailkit import inference, training
from retailkit.config import cache_dir
from retailkit.data.augment import AUGMENTATIONS
from retailkit.training import TrainConfig, encoded


def test_features_are_the_encoders_own_and_computed_once(small_model, val, monkeypatch):
    model = small_model().eval()
    first = training.encode(model, val)
    with torch.inference_mode():
        expected = model.encode_image(torch.stack([val[i].image for i in range(len(val))])).values
    assert first.image.values.dtype == torch.float32 and first.text is None
    torch.testing.assert_close(first.image.values, expected, rtol=1e-3, atol=1e-5)
    monkeypatch.setattr(encoded, "load_batches", None)
    again = training.encode(small_model(), val)
    assert torch.equal(first.image.values, again.image.values) and again.rows.tolist() == val.rows.tolist()
    assert again[[5, 2]].rows.tolist() == val.rows[[5, 2]].tolist()


def test_a_head_learns_from_features_as_from_images(small_model, train, val):
    config, one, two = TrainConfig(epochs=5, batch_size=8, lr=1e-2), small_model(), small_model()
    training.fit(one, train, val, config)
    training.fit(two, training.encode(two, train), training.encode(two, val), config)
    assert torch.equal(one.head.linear.weight, two.head.linear.weight)


def test_two_seeds_share_no_augmented_view(small_model, train):
    """The second view of one seed was the first of the next."""
    train = train.with_options(augment=AUGMENTATIONS["light"](48))
    kept = [training.encode(small_model(), train, views=2, seed=seed).image.values for seed in (0, 1)]
    views = torch.cat(kept).reshape(4, -1)
    assert len(views.unique(dim=0)) == 4


def test_compiling_an_encoder_changes_no_augmented_view(small_model, data):
    """The exporter drew its example image from the random numbers of augmentation."""
    rows = np.tile(np.arange(24), 2)  # more than one batch
    train = data.select(rows).split("train", 48).with_options(augment=AUGMENTATIONS["light"](48))
    inference._NETWORKS.clear()
    first = training.encode(small_model(), train)
    shutil.rmtree(cache_dir("features"))
    again = training.encode(small_model(), train)  # compiled before
    torch.testing.assert_close(first.image.values, again.image.values)


def test_data_are_known_by_the_content_of_their_files(data, tmp_path):
    """Archives, clones and copies give files new times; augmentation of packshots cuts products out by their masks."""
    own, keys = training.data_fingerprint(data), set()
    copies = [shutil.copyfile(path, tmp_path / Path(path).name) for path in data.table["image"]]
    copied = replace(data, table=data.table.assign(image=[str(path) for path in copies]))
    assert training.data_fingerprint(copied) == own
    content = bytearray(copies[0].read_bytes())
    content[-20] ^= 1
    copies[0].write_bytes(content)
    masked = replace(data, table=data.table.assign(mask=str(tmp_path / "mask.png")))
    for height in (48, 40):
        Image.new("L", (48, height), 255).save(tmp_path / "mask.png")
        keys.add(training.data_fingerprint(masked))
    assert len(keys | {own, training.data_fingerprint(copied)}) == 4
