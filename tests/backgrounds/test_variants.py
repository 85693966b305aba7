"""Every variant beside the same image made pixel by pixel, and what must hold for all of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt, gaussian_filter
from skimage.color import deltaE_ciede2000, rgb2lab

from retailkit import backgrounds, config
from retailkit.backgrounds import VARIANTS, apply_variant, usable

SIZES = [(9, 14), (17, 11), (1, 7), (8, 1), (15, 15)]  # height and width


def random_batch(height, width, count=4, seed=0):
    """Random images, some pixels black, with ragged masks whose boxes leave a strip, on any of the four sides."""
    rng = np.random.default_rng([seed, height, width])
    images = rng.random((count, 3, height, width), dtype=np.float32) * (rng.random((count, 1, height, width)) > 0.1)
    masks = np.zeros((count, 1, height, width), dtype=bool)
    for mask in masks[:, 0]:
        y0, x0 = rng.integers(height), rng.integers(width)
        y1, x1 = rng.integers(y0, height) + 1, rng.integers(x0, width) + 1
        if (y1 - y0, x1 - x0) == (height, width):
            y1, x1 = (y1 - 1, x1) if height > 1 else (y1, x1 - 1)
        mask[y0:y1, x0:x1] = rng.random((y1 - y0, x1 - x0)) < 0.6
        mask[y0, x0] = True
    return torch.from_numpy(images.astype(np.float32)), torch.from_numpy(masks)


def product_in(x0, y0, x1, y1):
    """One random image of 30 x 24 pixels with a ragged product whose box is known."""
    rng = np.random.default_rng(0)
    mask = torch.zeros(1, 1, 24, 30, dtype=torch.bool)
    mask[..., y0:y1, x0:x1] = torch.from_numpy(rng.random((y1 - y0, x1 - x0)) < 0.7)
    mask[..., y0, x0] = mask[..., y1 - 1, x1 - 1] = True
    return torch.from_numpy(rng.random((1, 3, 24, 30), dtype=np.float32)), mask


# -- The references: slow, and written from the papers' text, for an image (3,H,W), its mask (H,W) and a donor.


def box_of(mask):
    """x0, y0, x1, y1 of a mask that is not empty."""
    (y0, x0), (y1, x1) = np.argwhere(mask).min(0), np.argwhere(mask).max(0) + 1
    return int(x0), int(y0), int(x1), int(y1)


def only_bg_b(image, mask, donor):
    (x0, y0, x1, y1), (ys, xs) = box_of(mask), np.indices(mask.shape)
    return np.where((y0 <= ys) & (ys < y1) & (x0 <= xs) & (xs < x1), 0, image)


def only_bg_t(image, mask, donor):
    """Tile everything by the largest strip beside the box, and look at the tiles through the box."""
    x0, y0, x1, y1 = box_of(mask)
    strips = [image[:, y1:], image[:, :y0], image[:, :, x1:], image[:, :, :x0]]  # the first of the largest
    tiles = np.tile(max(strips, key=np.size), (1, *mask.shape))[:, : mask.shape[0], : mask.shape[1]]
    result = image.copy()
    result[:, y0:y1, x0:x1] = tiles[:, y0:y1, x0:x1]
    return result


def mixed(image, mask, donor):
    return np.where(mask, image, donor)


def gauss(plane, sigma):
    """A (H,W) plane blurred; it is mirrored about its outermost pixels."""
    return gaussian_filter(plane.astype(float), sigma, mode="mirror", truncate=6) if sigma else plane


def blurred(image, mask, donor):
    """Each background pixel becomes the weighted mean of the background pixels about it."""
    sigma = 0.08 * max(mask.shape)
    weight = gauss(~mask, sigma)
    return np.where(mask, image, [gauss(plane * ~mask, sigma) / np.maximum(weight, 1e-6) for plane in image])


def region(reach):
    return lambda image, mask, donor: image * (distance_transform_edt(~mask) <= reach * max(mask.shape))


def reflection(image, mask, donor):
    """The sharp reflection: without blur each pixel stands alone."""
    (_, y0, _, y1), result = box_of(mask), image.copy()
    for y in range(y1, min(2 * y1 - y0, len(mask))):
        source, opacity = 2 * y1 - 1 - y, 0.4 * (1 - (y - y1 + 0.5) / (y1 - y0))
        seen = mask[source]
        result[:, y, seen] = (1 - opacity) * image[:, y, seen] + opacity * image[:, source, seen]
    return result


REFERENCES = [
    ("only_bg_b", {}, only_bg_b),
    ("only_bg_t", {}, only_bg_t),
    ("no_fg", {}, lambda image, mask, donor: image * ~mask),
    ("only_fg", {}, lambda image, mask, donor: image * mask),
    *((name, {}, mixed) for name in ("mixed_same", "mixed_rand", "mixed_next", "generic_paste")),
    ("paste_own", {}, lambda image, mask, donor: mixed(image, mask, only_bg_t(image, mask, donor))),
    (
        "coloured",
        {"colour": (0.2, 0.4, 0.9)},
        lambda image, mask, donor: mixed(image, mask, np.reshape((0.2, 0.4, 0.9), (3, 1, 1))),
    ),
    ("blurred", {"sigma": 0.08}, blurred),
    *(("region_reduced", {"reach": reach}, region(reach)) for reach in (0.06, 0.17, 0.31)),
    ("reflection", {"strength": 0.4, "softness": 0}, reflection),
]


@pytest.mark.parametrize("name, options, reference", REFERENCES)
def test_a_variant_equals_the_reference(name, options, reference):
    for size in SIZES:
        images, masks = random_batch(*size, count=8)
        donors = random_batch(*size, count=8, seed=1)[0]
        parts = zip(images.numpy(), masks[:, 0].numpy(), donors.numpy(), strict=True)
        expected = np.stack([reference(*part) for part in parts])
        made = apply_variant(images, masks, name, donors, **options).numpy()
        np.testing.assert_allclose(made, expected, atol=1e-3 if name == "blurred" else 1e-6)
        seen = name != "reflection" or min(size) > 1  # one row has no room below
        assert not seen or not np.array_equal(expected, images.numpy()), "the case would prove nothing"


@pytest.mark.parametrize(("angle", "dx", "dy"), [(0, 3, 0), (90, 0, 3), (45, 2, 2), (180, -3, 0)])
@pytest.mark.parametrize("softness", [0, 0.04])
def test_shadow_equals_the_reference(angle, dx, dy, softness):
    image, mask = product_in(8, 6, 20, 18)
    moved = np.roll(mask[0, 0].numpy(), (dy, dx), (0, 1))  # nothing reaches the edge
    expected = image * (1 - 0.5 * gauss(moved, softness * 30) * ~mask.numpy())
    made = apply_variant(image, mask, "shadow", angle=angle, distance=0.1, softness=softness, strength=0.5)
    np.testing.assert_allclose(made, expected, atol=1e-3)


@pytest.mark.parametrize("box", [(4, 6, 20, 18), (0, 0, 12, 24), (12, 2, 30, 16)])
def test_half_the_object_size_is_the_mean_of_four_pixels(box):
    image, mask = product_in(*box)
    x0, y0, x1, y1 = box
    height, width = (y1 - y0) // 2, (x1 - x0) // 2
    left, top = (x0 + x1 - width) // 2, (y0 + y1 - height) // 2
    expected = only_bg_t(image[0].numpy(), mask[0, 0].numpy(), None)

    def small(plane):
        return plane[..., y0:y1, x0:x1].reshape(-1, height, 2, width, 2).mean((2, 4)).numpy()

    part = expected[:, top : top + height, left : left + width]
    part[:] = small((image * mask)[0]) + (1 - small(mask[0].float())) * part
    np.testing.assert_allclose(apply_variant(image, mask, "object_size", scale=0.5)[0], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "same_as"),
    [
        ("region_reduced", {"reach": 0}, "only_fg"),
        ("region_reduced", {"reach": math.inf}, "original"),
        ("blurred", {"sigma": 0}, "original"),
        ("object_size", {"scale": 1}, "paste_own"),
        ("shadow", {"strength": 0}, "original"),
        ("reflection", {"strength": 0}, "original"),
        ("occlusion", {"share": 0}, "original"),
    ],
)
def test_factors_end_at_other_variants(name, options, same_as):
    images, masks = random_batch(17, 11)
    assert torch.equal(apply_variant(images, masks, name, **options), apply_variant(images, masks, same_as))


# -- Factors.


@pytest.mark.parametrize("contrast", ["high", "low"])
def test_colours_have_the_highest_or_lowest_contrast_of_the_palette(contrast):
    images, masks = random_batch(9, 14, count=5)
    images = images * torch.rand(5, 3, 1, 1, generator=torch.Generator().manual_seed(3))  # products of several colours
    painted = apply_variant(images, masks, "coloured", colour=contrast)
    palette = np.array([(r, g, b) for r in range(5) for g in range(5) for b in range(5)]) / 4
    for image, mask, shown in zip(images.numpy(), masks.numpy(), painted.numpy(), strict=True):
        (colour,) = np.unique(shown[:, ~mask[0]], axis=1).T
        mean = np.mean([rgb2lab(image[:, y, x]) for y, x in np.argwhere(mask[0])], axis=0)
        distances = [deltaE_ciede2000(mean, rgb2lab(c)) for c in palette]
        wanted = max(distances) if contrast == "high" else min(distances)
        assert deltaE_ciede2000(mean, rgb2lab(colour)) == pytest.approx(wanted, abs=0.01)


def test_an_enlarged_object_is_cut_off_at_the_edge_and_keeps_its_centre():
    mask = torch.zeros(1, 1, 21, 25, dtype=torch.bool)
    mask[..., 8:13, 9:16] = True
    image = mask.expand(1, 3, -1, -1).float()
    seen = apply_variant(image, mask, "object_size", scale=3)[0, 0] > 0.5
    assert seen.nonzero().amin(0).tolist() == [3, 2] and seen.nonzero().amax(0).tolist() == [17, 22]
    assert apply_variant(image, mask, "object_size", scale=50).min() == 1
    assert (apply_variant(image, mask, "object_size", scale=0.2)[0, 0] > 0.5).nonzero().tolist() == [[10, 12]]


def test_a_soft_reflection_stays_below_the_product_and_a_product_without_room_has_none():
    image, mask = product_in(8, 6, 20, 12)
    made = apply_variant(image, mask, "reflection", softness=0.03)
    assert torch.equal(made[:, :, :12], image[:, :, :12])
    assert not torch.equal(made, apply_variant(image, mask, "reflection", softness=0))
    low, low_mask = product_in(8, 6, 20, 24)
    assert torch.equal(apply_variant(low, low_mask, "reflection"), low)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.7])
def test_occlusion_covers_its_share_by_one_rectangle_that_follows_the_seed(share):
    mask, covers = torch.zeros(1, 1, 90, 70, dtype=torch.bool), set()
    mask[..., 10:80, 15:60] = True
    image = torch.rand(1, 3, 90, 70, generator=torch.Generator().manual_seed(0)) * 0.4
    for seed in range(5):
        changed = (apply_variant(image, mask, "occlusion", seed=seed, share=share) == 0.5).all(1)[0]
        rows, columns = changed.any(1).nonzero(), changed.any(0).nonzero()
        assert (changed & mask[0, 0]).sum() / mask.sum() == pytest.approx(share, abs=0.04)
        assert len(rows) * len(columns) == changed.sum()
        covers.add((int(rows[0]), int(columns[0])))
    assert len(covers) > 1


# -- What holds for all.


def any_variant(images, masks, name):
    return apply_variant(images, masks, name, images.flip(-1) if VARIANTS[name].donors else None, seed=3)


@pytest.mark.parametrize("name", VARIANTS)
def test_an_image_comes_out_the_same_in_every_batch_and_memory_layout(name):
    images, masks = random_batch(17, 11, count=5)
    before = images.clone()
    together = any_variant(images, masks, name)
    assert together.shape == images.shape and together.dtype == images.dtype
    alone = torch.cat([any_variant(images[i : i + 1], masks[i : i + 1], name) for i in range(5)])
    strided = any_variant(images.contiguous(memory_format=torch.channels_last), masks, name)
    assert torch.equal(together, alone) and torch.equal(together, strided)
    assert torch.equal(images, before), "the images given stay as they are"
    assert together.min() >= 0 and together.max() <= 1


@pytest.mark.parametrize("name", VARIANTS)
def test_empty_and_full_masks(name):
    images, masks = random_batch(9, 14)
    masks[2] = False
    if name == "original":
        assert torch.equal(any_variant(images, masks, name), images)
        return
    with pytest.raises(config.UserError, match=rf"{name}, image 2 of the batch: its mask is empty; leave it out"):
        any_variant(images, masks, name)
    masks[2] = True
    if name in ("only_bg_b", "only_bg_t", "paste_own", "object_size"):
        with pytest.raises(config.UserError, match=rf"{name}, image 2 of the batch: .* no strip of background"):
            any_variant(images, masks, name)
    elif name != "occlusion":
        assert torch.equal(any_variant(images, masks, name)[2], images[2] * (name != "no_fg"))


def test_boxes_are_the_tightest_and_large_ones_are_dropped_from_background_sets_as_the_paper_does():
    masks = random_batch(17, 11, count=8)[1]
    masks[3] = False
    expected = [list(box_of(m[0])) if m.any() else [0, 0, 0, 0] for m in masks.numpy()]
    assert backgrounds.boxes(masks).tolist() == expected
    masks = torch.zeros(4, 1, 10, 10, dtype=torch.bool)
    masks[0, :, :9], masks[1, :, :9], masks[2, :, :2] = True, True, True
    masks[1, :, 9, :5] = True
    assert usable(masks).tolist() == [True, False, True, False]  # boxes of 0.9, 1 and 0.2, and none


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": "mixed_sane"}, "did you mean 'mixed_same'"),
        ({"name": "mixed_rand"}, "needs donors .*given: none.*choose_donors"),
        ({"name": "mixed_rand", "donors": torch.zeros(4, 3, 9, 13)}, r"given: \(4, 3, 9, 13\)"),
        ({"name": "only_fg", "masks": torch.ones(4, 9, 14)}, r"masks torch.float32 .*give images \(B,3,H,W\)"),
        ({"name": "only_fg", "images": torch.ones(4, 1, 9, 14)}, r"images are \(4, 1, 9, 14\)"),
        ({"name": "coloured", "colour": "hugh"}, "did you mean 'high'"),
        ({"name": "region_reduced", "reach": -1}, "reach=-1 is out of range"),
        ({"name": "shadow", "strength": 2}, "strength=2 is out of range; use 0 to 1"),
        ({"name": "occlusion", "share": float("nan")}, "share=nan"),
        ({"name": "object_size", "scale": 0}, "scale=0"),
    ],
)
def test_wrong_calls_are_named(change, says):
    images, masks = random_batch(9, 14)
    with pytest.raises(config.UsageError, match=says):
        apply_variant(**({"images": images, "masks": masks} | change))
