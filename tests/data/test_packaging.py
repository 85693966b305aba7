"""The packages of the built-in data set: look-alikes differ where the truth says so."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from threading import Barrier
from time import sleep

import numpy as np
import pytest
from PIL import Image

from retailkit.data.synthetic.catalogue import CATALOGUE, DEPARTMENTS, FAMILIES, Product, goods_of
from retailkit.data.synthetic.packaging import ANGULAR, HEIGHT, face
from retailkit.data.synthetic.sheet import drawn_once

each = pytest.mark.parametrize("product", CATALOGUE, ids=lambda product: product.label)


def ink(seen, box) -> float:
    """Return how much a box holds: the spread of its brightness."""
    x0, y0, x1, y1 = (round(v) for v in box)
    return float(np.ptp(seen.pixels[y0:y1, x0:x1].astype(float).mean(-1)))


def test_catalogue_has_eight_families_of_three_whose_tints_are_about_equally_light():
    assert [len(products) for products in FAMILIES.values()] == [3] * 8
    assert [product.index for product in CATALOGUE] == list(range(len(CATALOGUE)))
    assert len({product.label for product in CATALOGUE}) == len(CATALOGUE)
    assert {product.department for product in CATALOGUE} == set(DEPARTMENTS)
    other_brands = {product.brand for department in DEPARTMENTS for product in goods_of(department)}
    assert not other_brands & {product.brand for product in CATALOGUE}
    for products in FAMILIES.values():
        assert np.ptp([Image.new("RGB", (1, 1), p.tint).convert("L").getpixel((0, 0)) for p in products]) < 50


@each
def test_face_is_a_silhouette_of_the_right_form_with_a_small_patch(product: Product):
    seen = face(product, "front")
    height, width = seen.alpha.shape
    assert seen.pixels.shape == (HEIGHT, width, 3) and height == HEIGHT
    assert width / height == pytest.approx(product.size_cm[0] / product.size_cm[1], abs=0.01)
    assert seen.pixels.dtype == seen.alpha.dtype == np.uint8
    assert (seen.alpha > 127).mean() > 0.7 and (seen.alpha[HEIGHT // 2, [8, -9]] == 255).all()
    assert not seen.patch[seen.alpha == 0].any()
    assert 0.02 <= seen.patch.sum() / (seen.alpha > 127).sum() <= 0.08


@each
def test_words_are_printed_where_the_truth_says(product: Product):
    seen = face(product, "front")
    assert {*product.brand.split(), *product.title, *product.variant} <= {text for text, _, _ in seen.words}
    assert tuple(text for text, _, key in seen.words if key) == product.variant
    for text, box, key in seen.words:
        x0, y0, x1, y1 = (round(v) for v in box)
        assert 0 <= box[0] < box[2] <= seen.alpha.shape[1] and 0 <= box[1] < box[3] <= HEIGHT, text
        assert seen.alpha[y0:y1, x0:x1].min() == 255 and ink(seen, box) > 60, text
        covered = seen.patch[y0:y1, x0:x1]
        assert covered.all() and box[3] - box[1] >= HEIGHT / 15 if key else covered.mean() < 0.2, text
    for (_, one, _), (_, other, _) in combinations(seen.words, 2):
        apart = min(one[2], other[2]) <= max(one[0], other[0]) or min(one[3], other[3]) <= max(one[1], other[1]) + 1
        assert apart, (one, other)


@pytest.mark.parametrize("family", FAMILIES)
def test_sides_tell_nothing_about_the_variant(family):
    first, *others = (face(product, "side") for product in FAMILIES[family])
    for other in others:
        assert np.array_equal(other.pixels, first.pixels) and np.array_equal(other.alpha, first.alpha)
        assert other.words == first.words and not other.patch.any()
    assert not first.patch.any() and not any(key for _, _, key in first.words)
    assert len(first.words) >= 5 and all(ink(first, box) > 60 for _, box, _ in first.words)
    product = FAMILIES[family][0]
    if product.shape in ANGULAR:
        depth = HEIGHT * product.size_cm[2] / product.size_cm[1]
        assert first.alpha.shape == (HEIGHT, pytest.approx(depth, abs=1))


def test_threads_that_ask_for_the_same_picture_draw_it_once():
    together, drawn = Barrier(4), []

    @drawn_once
    def picture(name):
        drawn.append(name)
        sleep(0.05)  # the others ask in the meantime
        return [name]

    def ask(name):
        together.wait()
        return picture(name)

    with ThreadPoolExecutor(4) as pool:
        one, two, three, other = pool.map(ask, ("milk", "milk", "milk", "soup"))
    assert one is two is three and other == ["soup"] and sorted(drawn) == ["milk", "soup"]
