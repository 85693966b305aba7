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

PASTED = ("mixed_same", "mixed_rand", "mixed_next", "generic_paste")
SIZES = [(9, 14), (17, 11), (1, 7), (8, 1), (15, 15)]  # height and width


def random_batch(height, width, count=4, seed=0):
    """Random images with ragged masks whose boxes leave a strip, on any of the four sides."""
    rng = np.random.default_rng([seed, height, width])
    images = torch.from_numpy(rng.random((count, 3, height, width), dtype=np.float32))
    masks = np.zeros((count, 1, height, width), dtype=bool)
    for mask in masks[:, 0]:
        y0, x0 = rng.integers(height), rng.integers(width)
        y1, x1 = rng.integers(y0, height) + 1, rng.integers(x0, width) + 1
        if (y1 - y0, x1 - x0) == (height, width):
            y1, x1 = (y1 - 1, x1) if height > 1 else (y1, x1 - 1)
        mask[y0:y1, x0:x1] = rng.random((y1 - y0, x1 - x0)) < 0.6
        mask[y0, x0] = True
    return images, torch.from_numpy(masks)


def product_in(box, height=24, width=30, seed=0):
    """One random image with a ragged product whose box x0, y0, x1, y1 is known."""
    x0, y0, x1, y1 = box
    rng = np.random.default_rng(seed)
    mask = np.zeros((height, width), dtype=bool)
    mask[y0:y1, x0:x1] = rng.random((y1 - y0, x1 - x0)) < 0.7
    mask[y0, x0] = mask[y1 - 1, x1 - 1] = True
    image = rng.random((3, height, width), dtype=np.float32)
    return torch.from_numpy(image)[None], torch.from_numpy(mask)[None, None]


def each(reference, images, masks, *arguments):
    """The reference applied image by image."""
    pairs = zip(images.numpy(), masks[:, 0].numpy(), strict=True)
    return np.stack([reference(image, mask, *arguments) for image, mask in pairs])


# -- The reference: slow, and written from the papers' text.


def box_of(mask):
    """x0, y0, x1, y1 of a (H,W) mask that is not empty."""
    height, width = mask.shape
    places = [(y, x) for y in range(height) for x in range(width) if mask[y, x]]
    ys, xs = [y for y, _ in places], [x for _, x in places]
    return min(xs), min(ys), max(xs) + 1, max(ys) + 1


def paint(image, colour_at):
    """Return the image (3,H,W) whose pixel (y, x) is `colour_at(y, x)`; None keeps it."""
    result = image.copy()
    for y in range(image.shape[1]):
        for x in range(image.shape[2]):
            colour = colour_at(y, x)
            if colour is not None:
                result[:, y, x] = colour
    return result


def only_bg_b(image, mask):
    x0, y0, x1, y1 = box_of(mask)
    return paint(image, lambda y, x: 0 if y0 <= y < y1 and x0 <= x < x1 else None)


def only_bg_t(image, mask):
    height, width = mask.shape
    x0, y0, x1, y1 = box_of(mask)
    strips = {  # area, left, top, right, bottom; the first of the largest
        "below": ((height - y1) * width, 0, y1, width, height),
        "above": (y0 * width, 0, 0, width, y0),
        "right": ((width - x1) * height, x1, 0, width, height),
        "left": (x0 * height, 0, 0, x0, height),
    }
    _, left, top, right, bottom = max(strips.values(), key=lambda strip: strip[0])

    def tiled(y, x):
        if y0 <= y < y1 and x0 <= x < x1:
            return image[:, top + y % (bottom - top), left + x % (right - left)]
        return None

    return paint(image, tiled)


def no_fg(image, mask):
    return paint(image, lambda y, x: 0 if mask[y, x] else None)


def only_fg(image, mask):
    return paint(image, lambda y, x: None if mask[y, x] else 0)


def mixed(image, mask, ground):
    return paint(image, lambda y, x: None if mask[y, x] else ground[:, y, x])


def coloured_ground(image):
    return np.broadcast_to(np.float32([[[0.2]], [[0.4]], [[0.9]]]), image.shape)


def gauss(plane, sigma):
    """A (H,W) plane blurred; it is mirrored about its outermost pixels."""
    return gaussian_filter(plane.astype(float), sigma, mode="mirror", truncate=6)


def blurred(image, mask, sigma):
    """Each background pixel becomes the weighted mean of the background pixels about it."""
    weight = gauss(~mask, sigma)
    means = [gauss(channel * ~mask, sigma) / np.maximum(weight, 1e-6) for channel in image]
    return np.where(mask, image, means)


def region_reduced(image, mask, distance):
    return image * (distance_transform_edt(~mask) <= distance)


def object_halved(image, mask):
    """The product at half its size, each pixel the mean of four; its box has even sides and leaves a strip."""
    x0, y0, x1, y1 = box_of(mask)
    width, height = (x1 - x0) // 2, (y1 - y0) // 2
    left, top = (x0 + x1 - width) // 2, (y0 + y1 - height) // 2
    ground = only_bg_t(image, mask)

    def small(y, x):
        if not (top <= y < top + height and left <= x < left + width):
            return None
        v, u = y0 + 2 * (y - top), x0 + 2 * (x - left)
        four = [(v, u), (v + 1, u), (v, u + 1), (v + 1, u + 1)]
        covered = sum(float(mask[p]) for p in four) / 4
        colour = sum(image[:, p[0], p[1]] * float(mask[p]) for p in four) / 4
        return colour + (1 - covered) * ground[:, y, x]

    return paint(ground, small)


def shadow(image, mask, dx, dy, sigma, strength):
    height, width = mask.shape
    moved = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            if 0 <= y - dy < height and 0 <= x - dx < width:
                moved[y, x] = mask[y - dy, x - dx]
    shade = gauss(moved, sigma) if sigma else moved
    return paint(image, lambda y, x: None if mask[y, x] else image[:, y, x] * (1 - strength * shade[y, x]))


def reflection(image, mask, strength):
    """The sharp reflection: without blur each pixel stands alone."""
    _, y0, _, y1 = box_of(mask)

    def mirrored(y, x):
        source = 2 * y1 - 1 - y
        if y < y1 or source < y0 or not mask[source, x]:
            return None
        opacity = strength * (1 - (y - y1 + 0.5) / (y1 - y0))
        return (1 - opacity) * image[:, y, x] + opacity * image[:, source, x]

    return paint(image, mirrored)


# -- The paper's eight.


# Name, options and the reference, called with image, mask, donor and the longer side.
REFERENCES = [
    ("only_bg_b", {}, lambda image, mask, donor, side: only_bg_b(image, mask)),
    ("only_bg_t", {}, lambda image, mask, donor, side: only_bg_t(image, mask)),
    ("no_fg", {}, lambda image, mask, donor, side: no_fg(image, mask)),
    ("only_fg", {}, lambda image, mask, donor, side: only_fg(image, mask)),
    *((name, {}, lambda image, mask, donor, side: mixed(image, mask, donor)) for name in PASTED),
    ("coloured", {"colour": (0.2, 0.4, 0.9)}, lambda image, mask, *_: mixed(image, mask, coloured_ground(image))),
    ("blurred", {"sigma": 0.08}, lambda image, mask, donor, side: blurred(image, mask, 0.08 * side)),
    *(
        ("region_reduced", {"reach": r}, lambda image, mask, donor, side, r=r: region_reduced(image, mask, r * side))
        for r in (0.06, 0.17, 0.31)
    ),
]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name, options, reference", REFERENCES)
def test_a_variant_equals_the_reference(name, options, reference, size):
    images, masks = random_batch(*size, count=8)
    donors = random_batch(*size, count=8, seed=1)[0]
    parts = zip(images.numpy(), masks[:, 0].numpy(), donors.numpy(), strict=True)
    expected = np.stack([reference(*part, max(size)) for part in parts])
    made = apply_variant(images, masks, name, donors, **options).numpy()
    np.testing.assert_allclose(made, expected, atol=1e-3 if name == "blurred" else 1e-7)
    assert not np.array_equal(expected, images.numpy()), "the case would prove nothing"


def test_the_original_is_the_image_and_needs_no_mask():
    images, masks = random_batch(9, 14)
    assert torch.equal(apply_variant(images, torch.zeros_like(masks), "original"), images)


def test_a_black_product_pixel_stays_product():
    """The authors' generator takes black pixels for background after it has resized."""
    image, mask = product_in((8, 6, 20, 18))
    image[:, :, 8:12, 10:16] = 0
    donors = torch.full_like(image, 0.7)
    pasted = apply_variant(image, mask, "mixed_rand", donors)
    assert (pasted[:, :, 8:12, 10:16][mask[:, :, 8:12, 10:16].expand(-1, 3, -1, -1)] == 0).all()
    assert (pasted[~mask.expand(-1, 3, -1, -1)] == 0.7).all()


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


def test_the_blurred_background_has_no_halo_of_the_product():
    image, mask = product_in((8, 6, 20, 18))
    bright = torch.where(mask, 1.0, image)
    one, other = (apply_variant(i, mask, "blurred", sigma=0.1) for i in (image, bright))
    assert torch.equal(torch.where(mask, 0, one), torch.where(mask, 0, other))
    flat = torch.where(mask, image, 0.3)
    assert torch.allclose(apply_variant(flat, mask, "blurred", sigma=0.1), flat, atol=1e-5)
    assert torch.equal(torch.where(mask, one, 0), torch.where(mask, image, 0)), "the product stays sharp"
    outside = ~mask[0, 0]
    assert one[0, :, outside].std() < 0.5 * image[0, :, outside].std(), "and the background does not"
    assert torch.equal(apply_variant(image, mask, "blurred", sigma=0), image)


def test_region_reduced_lies_between_the_product_and_the_image():
    images, masks = random_batch(17, 11)
    made = {reach: apply_variant(images, masks, "region_reduced", reach=reach) for reach in (0, 0.1, 0.3, math.inf)}
    assert torch.equal(made[0], apply_variant(images, masks, "only_fg"))
    assert torch.equal(made[math.inf], images)
    kept = [(made[reach] > 0).sum() for reach in made]
    assert kept[0] < kept[1] < kept[2] < kept[3]


def test_paste_own_is_the_product_on_its_own_background():
    images, masks = random_batch(9, 14)
    own = apply_variant(images, masks, "only_bg_t")
    assert torch.equal(apply_variant(images, masks, "paste_own"), apply_variant(images, masks, "mixed_same", own))
    assert torch.equal(apply_variant(images, masks, "object_size", scale=1), apply_variant(images, masks, "paste_own"))


@pytest.mark.parametrize("box", [(4, 6, 20, 18), (0, 0, 12, 24), (12, 2, 30, 16)])
def test_half_the_object_size_equals_the_reference(box):
    image, mask = product_in(box)
    expected = each(object_halved, image, mask)
    assert np.allclose(apply_variant(image, mask, "object_size", scale=0.5), expected, atol=1e-5)


def test_an_enlarged_object_is_cut_off_at_the_edge_and_keeps_its_centre():
    mask = torch.zeros(1, 1, 21, 25, dtype=torch.bool)
    mask[..., 8:13, 9:16] = True
    image = torch.where(mask, torch.ones(1, 3, 1, 1), 0.0)
    seen = apply_variant(image, mask, "object_size", scale=3)[0, 0] > 0.5
    assert seen.nonzero().amin(0).tolist() == [3, 2] and seen.nonzero().amax(0).tolist() == [17, 22]
    assert apply_variant(image, mask, "object_size", scale=50).min() == 1
    small = apply_variant(image, mask, "object_size", scale=0.2)[0, 0] > 0.5
    assert small.nonzero().tolist() == [[10, 12]]


@pytest.mark.parametrize(("angle", "dx", "dy"), [(0, 3, 0), (90, 0, 3), (45, 2, 2), (180, -3, 0)])
@pytest.mark.parametrize("softness", [0, 0.04])
def test_shadow_equals_the_reference(angle, dx, dy, softness):
    image, mask = product_in((8, 6, 20, 18))
    made = apply_variant(image, mask, "shadow", angle=angle, distance=0.1, softness=softness, strength=0.5)
    expected = each(shadow, image, mask, dx, dy, softness * 30, 0.5)
    assert np.allclose(made, expected, atol=1e-3)
    assert torch.equal(torch.where(mask, made, 0), torch.where(mask, image, 0))


@pytest.mark.parametrize("box", [(8, 6, 20, 12), (8, 10, 20, 22), (3, 0, 9, 9)])
def test_reflection_equals_the_reference(box):
    image, mask = product_in(box)
    made = apply_variant(image, mask, "reflection", strength=0.4, softness=0)
    assert np.allclose(made, each(reflection, image, mask, 0.4), atol=1e-6)
    assert not torch.equal(made, image)


def test_a_soft_reflection_stays_below_the_product_and_a_product_without_room_has_none():
    image, mask = product_in((8, 6, 20, 12))
    made = apply_variant(image, mask, "reflection", softness=0.03)
    assert torch.equal(made[:, :, :12], image[:, :, :12])
    assert not torch.equal(made, apply_variant(image, mask, "reflection", softness=0))
    low, low_mask = product_in((8, 6, 20, 24))
    assert torch.equal(apply_variant(low, low_mask, "reflection"), low)


@pytest.mark.parametrize("share", [0, 0.1, 0.3, 0.7])
def test_occlusion_covers_its_share_by_one_rectangle(share):
    mask = torch.zeros(1, 1, 90, 70, dtype=torch.bool)
    mask[..., 10:80, 15:60] = True
    for seed in range(5):
        image = torch.rand(1, 3, 90, 70, generator=torch.Generator().manual_seed(seed)) * 0.4
        changed = (apply_variant(image, mask, "occlusion", share=share) == 0.5).all(1)[0]
        rows, columns = changed.any(1).nonzero(), changed.any(0).nonzero()
        assert (changed & mask[0, 0]).sum() / mask.sum() == pytest.approx(share, abs=0.04 * (share > 0))
        assert not share or len(rows) * len(columns) == changed.sum() > 0


def test_occlusion_follows_the_seed():
    images, masks = random_batch(17, 11)
    one, same, other = (apply_variant(images, masks, "occlusion", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


# -- What holds for all.


def any_variant(images, masks, name):
    return apply_variant(images, masks, name, images.flip(-1) if VARIANTS[name].donors else None, seed=3)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_image_comes_out_the_same_in_every_batch_and_memory_layout(name):
    images, masks = random_batch(17, 11, count=5)
    before = images.clone()
    together = any_variant(images, masks, name)
    assert together.shape == images.shape and together.dtype == images.dtype
    alone = torch.cat([any_variant(images[i : i + 1], masks[i : i + 1], name) for i in range(5)])
    strided = any_variant(images.contiguous(memory_format=torch.channels_last), masks, name)
    assert torch.equal(together, alone) and torch.equal(together, strided)
    assert torch.equal(images, before), "the images given stay as they are"
    assert together.min() >= 0 and together.max() <= 1


@pytest.mark.parametrize("name", [n for n in VARIANTS if n != "original"])
def test_an_empty_mask_is_named(name):
    images, masks = random_batch(9, 14)
    masks[2] = False
    with pytest.raises(config.UserError, match=rf"{name}, image 2 of the batch: its mask is empty; leave it out"):
        any_variant(images, masks, name)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_full_mask_leaves_no_background(name):
    images, masks = random_batch(9, 14)
    masks[1] = True
    if name in ("only_bg_b", "only_bg_t", "paste_own", "object_size"):
        with pytest.raises(config.UserError, match=rf"{name}, image 1 of the batch: .* no strip of background"):
            any_variant(images, masks, name)
        return
    made = any_variant(images, masks, name)[1]
    if name == "no_fg":
        assert (made == 0).all()
    elif name != "occlusion":
        assert torch.equal(made, images[1])


def test_large_boxes_are_dropped_from_background_sets_as_the_paper_does():
    masks = torch.zeros(4, 1, 10, 10, dtype=torch.bool)
    masks[0, :, :9], masks[1, :, :9], masks[2, :, :2] = True, True, True
    masks[1, :, 9, :5] = True
    assert usable(masks).tolist() == [True, False, True, False]  # boxes of 0.9, 1 and 0.2, and none


def test_boxes_are_the_tightest():
    masks = random_batch(17, 11, count=8)[1]
    masks[3] = False
    expected = [(0, 0, 0, 0) if not m.any() else box_of(m[0]) for m in masks.numpy()]
    assert backgrounds.boxes(masks).tolist() == [list(box) for box in expected]


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
