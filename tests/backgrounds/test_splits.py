"""A split as a variant shows it, and whose background an image gets."""

import numpy as np
import pytest
import torch
from PIL import Image

from retailkit import models, training
from retailkit.backgrounds import PAPER, VariantSplit, apply_variant, choose_donors, degrade
from retailkit.config import UsageError, UserError
from retailkit.data import table
from retailkit.data.augment import AUGMENTATIONS

LABELS = torch.arange(600) % 6


@pytest.fixture
def split(data):
    return data.split("train", 32)


@pytest.fixture
def images(split):
    return VariantSplit.read(split, seed=3)


def test_images_of_which_no_variant_can_be_made_are_left_out(data, split):
    Image.fromarray(np.ones((32, 32), bool)).save(data.table["mask"][3])
    data.table.loc[4, "mask"] = ""
    images = VariantSplit.read(split)
    assert images.rows.tolist() == [0, 1, 2, 5, 6, 7, 8, 9, 10, 11] and images.left_out == 2
    assert images.labels.tolist() == [0, 1, 2, 2, 0, 1, 2, 0, 1, 2] and len(images) == 10
    worse = images.degraded("erosion", 0.05)
    assert worse.rows.tolist() == images.rows.tolist() and worse.left_out == 2, "image 3 does not come back"
    data.table["mask"] = ""
    with pytest.raises(UserError, match="no image of 'boxes' has a product mask"):
        VariantSplit.read(split)


def test_each_image_is_decoded_once(split, monkeypatch):
    seen, read = [], table.read_image
    monkeypatch.setattr(table, "read_image", lambda path: seen.append(path) or read(path))
    images = VariantSplit.read(split)
    for some in (images, images.variant("mixed_rand"), images.cut_out(), images.degraded("noise", 0.05)):
        list(some)
    assert len(seen) == len(set(seen)) == 12


@pytest.mark.parametrize("name", [*PAPER, "blurred"])
def test_samples_are_what_apply_variant_makes(images, name):
    split, plain, donors = images.variant(name), images.images.float() / 255, None
    if name.startswith("mixed"):
        donors = apply_variant(plain, images.masks, "only_bg_t")[choose_donors(images.labels, name, seed=3)]
    wanted = apply_variant(plain, images.masks, name, donors)
    for position in range(len(split)):
        sample = split[position]
        assert torch.allclose(sample.image, wanted[position], atol=0.5001 / 255)
        assert torch.equal(sample.mask, images.masks[position]) and sample.index == images.rows[position]
        assert sample.label == split.labels[position]


def test_a_generic_background_comes_from_the_class_asked_for(images):
    shown = images.variant("generic_paste", from_class=1)
    for position in range(len(images)):
        hidden = ~images.masks[position].expand(3, -1, -1)
        givers = images.backgrounds[images.labels == 1]
        assert any(torch.equal(shown.image(position)[hidden], giver[hidden]) for giver in givers)


def test_each_image_may_have_options_of_its_own(images):
    turned = images.variant("shadow", each=[{"angle": 30.0 * k, "strength": 0.9} for k in range(len(images))])
    for position in (0, 7):
        alone = images.variant("shadow", angle=30.0 * position, strength=0.9)
        assert torch.equal(turned[position].image, alone[position].image)
    assert turned.appearance != alone.appearance
    assert turned.variant("only_fg").options == {}


def test_a_wrong_option_fails_at_once(images):
    with pytest.raises(TypeError, match="radius"):
        images.variant("blurred", radius=3)


def test_degraded_masks_cut_another_product_and_those_that_vanish_are_left_out(images):
    before, eroded = images.masks.clone(), images.degraded("erosion", 4.2 / 32)
    wanted = degrade(images.masks, "erosion", 4.2 / 32, seed=3)
    kept = wanted.flatten(1).any(1)
    assert 0 < len(eroded) < len(images) and eroded.left_out == len(images) - len(eroded)
    assert torch.equal(eroded.masks, wanted[kept]) and eroded.rows.tolist() == images.rows[kept.numpy()].tolist()
    assert torch.equal(images.masks, before) and torch.equal(eroded.images, images.images[kept])
    found = images.degraded("grabcut").masks
    assert ((found & images.masks).sum() / (found | images.masks).sum()) > 0.8
    with pytest.raises(UserError, match="all masks of 'boxes' are empty"):
        images.degraded("erosion", 0.9)


def test_products_that_were_cut_out_are_black_behind_whatever_their_size(images):
    alone = images.cut_out()
    assert torch.equal(alone[1].image, images.variant("only_fg")[1].image)
    small, on_ground = (part.variant("object_size", scale=0.5)[1].image for part in (alone, images))
    assert images.variant("object_size")[1].mask is None, "the product is not where its mask says"
    assert 0.15 < (small.sum(0) > 0).sum() / images.masks[1].sum() < 0.45
    core = small.amax(0) > 0.69  # the edges are mixed
    assert torch.allclose(small[:, core], on_ground[:, core], atol=0.02)


def test_features_of_variants_are_kept_apart(split, images):
    """A cached feature belongs to the image as the variant shows it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = models.build("image", split.classes, backbone="timm:test_resnet", weights=None)
    looks = [images.variant(name) for name in PAPER]
    looks += [images.variant("blurred", sigma=sigma) for sigma in (0.02, 0.1)]
    looks += [images.degraded("dilation", 0.1).variant("only_fg"), images.cut_out().variant("object_size")]
    looks += [VariantSplit.read(split, seed=2).variant("mixed_rand")]
    computed, kept = ([training.encode(model, look) for look in looks] for _ in range(2))
    assert all(torch.equal(one.image.values, other.image.values) for one, other in zip(computed, kept, strict=True))
    assert all(seen.rows.tolist() == images.rows.tolist() for seen in kept)
    assert len(torch.stack([seen.image.values for seen in kept]).flatten(1).unique(dim=0)) == len(looks)


def test_augmentation_comes_after_the_variant_and_decides_the_size(images):
    shown = images.variant("only_fg").with_options(size=24, augment=AUGMENTATIONS["light"](24))
    assert shown[0].image.shape == (3, 24, 24) and not torch.equal(shown[0].image, shown[0].image)
    assert (shown[0].image < 0.02).float().mean() > 0.3
    assert torch.equal(shown.with_options(augment=None)[0].image, images.variant("only_fg")[0].image)
    with pytest.raises(UsageError, match="read at 32 pixels; read the split at 24"):
        images.with_options(size=24)
    model = models.build("image", images.classes, backbone="timm:test_resnet", weights=None)
    config = training.TrainConfig(mode="finetune", epochs=1, batch_size=4, train_size=24, augment="light")
    history = training.fit(model, images.variant("mixed_rand"), None, config)
    assert len(history.epochs) == 1


# -- Donors.


@pytest.mark.parametrize("name", ["mixed_same", "mixed_rand", "mixed_next"])
def test_donors_follow_the_seed(name):
    one, same, other = (choose_donors(LABELS, name, seed) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other) and one.dtype == torch.int64


def test_every_other_image_of_the_own_class_is_equally_likely():
    labels = torch.tensor([0, 0, 1, 0, 0, 0])
    draws = np.stack([choose_donors(labels, "mixed_same", seed) for seed in range(2000)])
    assert (draws[:, 2] == 2).all(), "alone in its class"
    for image in (0, 1, 3, 4, 5):
        counts = np.bincount(draws[:, image], minlength=6)
        assert counts[image] == counts[2] == 0
        assert (np.abs(np.delete(counts, [image, 2]) - 500) < 100).all()  # 5 standard deviations


def test_any_class_is_equally_likely_whatever_its_size_and_the_own_one_may_be_left_out():
    labels = torch.tensor([0] * 900 + [1] * 90 + [2] * 10)
    donors = choose_donors(labels, "mixed_rand", 0)
    assert (np.abs(np.bincount(labels[donors], minlength=3) - 1000 / 3) < 75).all()
    assert (donors != torch.arange(1000)).all()
    own = (LABELS[choose_donors(LABELS, "mixed_rand", 0)] == LABELS).float().mean()
    assert own == pytest.approx(1 / 6, abs=0.06)
    others = LABELS[choose_donors(LABELS, "mixed_rand", 0, own_class=False)]
    counts = np.bincount(others[LABELS == 2], minlength=6)
    assert (others != LABELS).all() and (np.delete(counts, 2) > 8).all(), "the other five equally"


def test_the_next_class_gives_and_the_first_follows_the_last():
    assert torch.equal(LABELS[choose_donors(LABELS, "mixed_next", 0)], (LABELS + 1) % 6)
    gap = torch.tensor([0, 2, 5, 0])  # classes that are not there are skipped
    assert gap[choose_donors(gap, "mixed_next", 0)].tolist() == [2, 5, 0, 2]


def test_one_unrelated_class_gives_to_all():
    donors = choose_donors(LABELS, "generic_paste", 0, from_class=4)
    assert (LABELS[donors] == 4).all() and (donors != torch.arange(600)).all() and len(set(donors.tolist())) > 60


@pytest.mark.parametrize(
    ("labels", "options", "says"),
    [
        (LABELS, {"name": "only_fg"}, "variant with donors 'only_fg'"),
        (LABELS, {"name": "generic_paste", "from_class": 6}, r"from_class=6 .* use one of 0, 1, 2, 3, 4, 5"),
        (torch.zeros(4), {"name": "mixed_next"}, "only one class"),
        (torch.zeros(4), {"name": "mixed_rand", "own_class": False}, "only one class"),
    ],
)
def test_what_cannot_be_chosen_is_named(labels, options, says):
    with pytest.raises(UserError, match=says):
        choose_donors(labels, **options)
