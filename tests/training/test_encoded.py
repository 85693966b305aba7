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

FROZEN = TrainConfig(epochs=30, batch_size=8, lr=1e-2)


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
    config = replace(FROZEN, epochs=5)
    one, two = small_model(), small_model()
    training.fit(one, train, val, config)
    training.fit(two, training.encode(two, train), training.encode(two, val), config)
    assert torch.equal(one.head.linear.weight, two.head.linear.weight)


def test_two_seeds_share_no_augmented_view(small_model, train):
    """The second view of one seed was the first of the next."""
    model, views = small_model(), {}
    train = train.with_options(augment=AUGMENTATIONS["light"](48))
    for seed in (0, 1):
        values = training.encode(model, train, views=2, seed=seed).image.values
        views |= {(seed, view): part for view, part in enumerate(values.chunk(2))}
    assert not torch.equal(views[0, 1], views[1, 0])
    assert not torch.equal(views[0, 0], views[0, 1])


def test_compiling_an_encoder_changes_no_augmented_view(small_model, data):
    """The exporter drew its example image from the random numbers of augmentation."""
    rows = np.tile(np.arange(24), 2)  # more than one batch
    train = data.select(rows).split("train", 48).with_options(augment=AUGMENTATIONS["light"](48))
    model = small_model()
    inference._NETWORKS.clear()
    shutil.rmtree(cache_dir("graphs"))
    first = training.encode(model, train)
    shutil.rmtree(cache_dir("features"))
    again = training.encode(model, train)  # compiled before
    torch.testing.assert_close(first.image.values, again.image.values)


def test_worse_masks_are_other_data(data, tmp_path):
    """Augmentation of packshots cuts products out by their masks."""
    mask = tmp_path / "mask.png"
    Image.new("L", (48, 48), 255).save(mask)
    masked = replace(data, table=data.table.assign(mask=str(mask)))
    keys = {training.data_fingerprint(data), training.data_fingerprint(masked)}
    Image.new("L", (48, 40), 255).save(mask)
    assert len(keys | {training.data_fingerprint(masked)}) == 3


def test_data_copied_elsewhere_are_the_same_data_and_a_changed_image_is_not(data, tmp_path):
    """Archives, clones and copies give files new times."""
    copies = [shutil.copyfile(path, tmp_path / Path(path).name) for path in data.table["image"]]
    copied = replace(data, table=data.table.assign(image=[str(path) for path in copies]))
    assert training.data_fingerprint(copied) == training.data_fingerprint(data)
    image = copies[0].read_bytes()
    copies[0].write_bytes(image[:-20] + bytes([image[-20] ^ 1]) + image[-19:])
    assert training.data_fingerprint(copied) != training.data_fingerprint(data)
