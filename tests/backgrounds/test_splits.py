"""Splits as variants show them."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from retailkit import models, training
from retailkit.backgrounds import PAPER, Scenes, apply_variant
from retailkit.config import UsageError, UserError
from retailkit.data.table import COLUMNS, ProductData


@pytest.fixture
def data(tmp_path):
    """Ten pictures of noise; the product is L-shaped, of picture 3 everything, and picture 4 has no mask."""
    rng, rows = np.random.default_rng(0), []
    for number in range(10):
        picture = tmp_path / f"{number}.png"
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(picture)
        mask = np.zeros((40, 40), bool)
        mask[10:30, 12 : 20 + number] = True
        mask[10:20, 16:] = False
        mask |= number == 3
        outline = tmp_path / f"{number}_mask.png"
        Image.fromarray(mask).save(outline)
        label = "ab"[number % 2]
        rows.append({"image": str(picture), "label": label, "split": "train", "mask": str(outline)})
    rows[4]["mask"] = ""
    table = pd.DataFrame(rows).reindex(columns=COLUMNS).fillna("")
    return ProductData("noise", table, ["a", "b"], {}, fit="stretch")


def test_scenes_leave_out_what_no_variant_can_be_made_of(data):
    scenes = Scenes(data.split("train", 40))
    assert scenes.rows.tolist() == [0, 1, 2, 5, 6, 7, 8, 9] and scenes.left_out == 2
    assert scenes.labels.tolist() == [0, 1, 0, 1, 0, 1, 0, 1]
    data.table["mask"] = ""
    with pytest.raises(UserError, match="no picture of 'noise' has a product mask"):
        Scenes(data.split("train", 40))


@pytest.mark.parametrize("name", [*PAPER, "blurred"])
def test_samples_are_what_apply_variant_makes(data, name):
    scenes = Scenes(data.split("train", 40), seed=3)
    split = scenes.variant(name)
    images, donors = scenes.images.float() / 255, None
    if name in scenes.donors:
        backgrounds = apply_variant(images, scenes.masks, "only_bg_t")
        donors = backgrounds[scenes.donors[name]]
    wanted = apply_variant(images, scenes.masks, name, donors)
    for position in range(len(split)):
        sample = split[position]
        assert torch.allclose(sample.image, wanted[position], atol=1 / 255)
        assert torch.equal(sample.mask, scenes.masks[position]) and sample.index == scenes.rows[position]
        assert sample.label == split.labels[position]


def test_a_generic_background_comes_from_the_class_asked_for(data):
    scenes = Scenes(data.split("train", 40))
    givers = scenes.backgrounds[scenes.labels == 1]
    for position in range(len(scenes)):
        shown = scenes.variant("generic_paste", from_class=1)[position].image.mul(255).round().byte()
        hidden = ~scenes.masks[position].expand(3, -1, -1)
        assert any(torch.equal(shown[hidden], giver[hidden]) for giver in givers)


def test_wrong_names_fail_at_once(data):
    scenes = Scenes(data.split("train", 40))
    with pytest.raises(UsageError, match="unknown variant 'only_foreground'"):
        scenes.variant("only_foreground")
    with pytest.raises(UsageError, match="option of blurred"):
        scenes.variant("blurred", radius=3)
    with pytest.raises(UsageError, match="mixed_rand has no option 'own_class'"):
        scenes.variant("mixed_rand", own_class=False)


def test_worse_masks_cut_another_product(data):
    split = data.split("train", 40)
    plain, eroded = Scenes(split), Scenes(split, recut=("erosion", 0.05))
    assert (eroded.masks.sum((1, 2, 3)) < plain.masks.sum((1, 2, 3))).all()
    assert not torch.equal(eroded.variant("only_fg")[0].image, plain.variant("only_fg")[0].image)


def test_masks_made_worse_never_bring_back_a_picture(data):
    """Picture 3 is all product, and would leave a background once its mask is eroded."""
    split = data.split("train", 40)
    read_so, made_so = Scenes(split, recut=("erosion", 0.05)), Scenes(split).with_recut("erosion", 0.05)
    assert read_so.rows.tolist() == made_so.rows.tolist() == made_so.at(32).rows.tolist()
    assert 3 not in read_so.rows


def test_a_product_that_was_moved_has_no_mask(data):
    scenes = Scenes(data.split("train", 40))
    assert scenes.variant("object_size", scale=0.5)[0].mask is None and scenes.variant("shadow")[0].mask is not None


def test_features_of_variants_are_kept_apart(data):
    """A cached feature belongs to the picture as the variant shows it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = models.build("image", data.classes, backbone="shufflenet_v2_x1_0", weights=None)
    split, config = data.split("train", 40), training.TrainConfig(bf16=False)
    scenes = Scenes(split)
    looks = [scenes.variant(name) for name in PAPER]
    looks += [scenes.variant("blurred", sigma=sigma) for sigma in (0.02, 0.1)]
    looks += [Scenes(split, recut=("dilation", 0.1)).variant("only_fg"), Scenes(split, seed=2).variant("mixed_rand")]
    for _ in range(2):  # computed, then from the cache
        found = [training.encode_cached(model, look, 1, config) for look in looks]
        for encoded, look in zip(found, looks, strict=True):
            assert encoded.rows.tolist() == scenes.rows.tolist()
            fresh = training.encode(model, look)
            torch.testing.assert_close(encoded.image.values, fresh.image.values, rtol=1e-3, atol=1e-9)
        values = torch.stack([encoded.image.values for encoded in found]).flatten(1)
        assert len(values.unique(dim=0)) == len(looks)


def test_training_sees_the_variant_at_its_own_size_and_augmented(data):
    scenes = Scenes(data.split("train", 40))
    small = scenes.variant("only_fg").with_options(size=24, augment=training.AUGMENTATIONS["light"](24))
    assert small[0].image.shape == (3, 24, 24) and small.with_options(augment=None)[0].image.shape == (3, 24, 24)
    assert not torch.equal(small[0].image, small[0].image)
    model = models.build("image", data.classes, backbone="shufflenet_v2_x1_0", weights=None)
    config = training.TrainConfig(mode="finetune", epochs=1, batch_size=4, train_size=32, augment="light")
    history = training.fit(model, scenes.variant("mixed_rand"), None, replace(config, bf16=False))
    assert len(history.epochs) == 1
