"""The packages of the built-in data set: look-alikes differ where the truth says so."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from retailkit.data.synthetic.catalogue import CATALOGUE, DEPARTMENTS, FAMILIES, Product, goods_of
from retailkit.data.synthetic.packaging import ANGULAR, HEIGHT, Face, front, side

each_family = pytest.mark.parametrize("family", FAMILIES)
each = pytest.mark.parametrize("product", CATALOGUE, ids=lambda product: product.label)


def ink(face: Face, box: tuple[float, float, float, float]) -> float:
    """Return how much a box holds: the spread of its brightness."""
    x0, y0, x1, y1 = (round(v) for v in box)
    return float(np.ptp(face.pixels[y0:y1, x0:x1].astype(float).mean(-1)))


def test_catalogue_has_eight_families_of_three():
    assert len(FAMILIES) == 8
    assert all(len(products) == 3 for products in FAMILIES.values())
    assert [product.index for product in CATALOGUE] == list(range(len(CATALOGUE)))
    assert len({product.label for product in CATALOGUE}) == len(CATALOGUE)
    assert {product.department for product in CATALOGUE} == set(DEPARTMENTS)
    other_brands = {product.brand for department in DEPARTMENTS for product in goods_of(department)}
    assert not other_brands & {product.brand for product in CATALOGUE}


@each_family
def test_tints_of_a_family_are_about_equally_light(family):
    tones = [Image.new("RGB", (1, 1), product.tint).convert("L").getpixel((0, 0)) for product in FAMILIES[family]]
    assert max(tones) - min(tones) < 50


@each_family
def test_look_alikes_are_the_same_outside_the_patch_and_differ_inside(family):
    for one, other in combinations([front(product) for product in FAMILIES[family]], 2):
        assert np.array_equal(one.patch, other.patch)
        assert np.array_equal(one.alpha, other.alpha)
        differs = (one.pixels != other.pixels).any(-1)
        assert not differs[~one.patch].any()
        assert differs[one.patch].mean() > 0.05


@each
def test_face_is_a_silhouette_of_the_right_form_with_a_small_patch(product: Product):
    face = front(product)
    height, width = face.alpha.shape
    assert height == HEIGHT
    assert width / height == pytest.approx(product.size_cm[0] / product.size_cm[1], abs=0.01)
    assert face.pixels.shape == (height, width, 3)
    assert face.pixels.dtype == face.alpha.dtype == np.uint8
    assert 0.7 < (face.alpha > 127).mean() <= 1
    assert (face.alpha[HEIGHT // 2, [8, -9]] == 255).all()
    assert not face.patch[face.alpha == 0].any()
    assert 0.02 <= face.patch.sum() / (face.alpha > 127).sum() <= 0.08


@each
def test_words_are_printed_where_the_truth_says(product: Product):
    face = front(product)
    texts = [text for text, _, _ in face.words]
    assert set((*product.brand.split(), *product.title, *product.variant)) <= set(texts)
    assert tuple(text for text, _, key in face.words if key) == product.variant
    for text, box, _ in face.words:
        x0, y0, x1, y1 = box
        assert 0 <= x0 < x1 <= face.alpha.shape[1], text
        assert 0 <= y0 < y1 <= face.alpha.shape[0], text
        assert face.alpha[round(y0) : round(y1), round(x0) : round(x1)].min() == 255, text
        assert ink(face, box) > 60, text
    for (_, one, _), (_, other, _) in combinations(face.words, 2):
        apart = min(one[2], other[2]) <= max(one[0], other[0]) or min(one[3], other[3]) <= max(one[1], other[1]) + 1
        assert apart, (one, other)


@each
def test_discriminative_words_lie_in_the_patch_and_are_large(product: Product):
    face = front(product)
    for text, (x0, y0, x1, y1), key in face.words:
        covered = face.patch[round(y0) : round(y1), round(x0) : round(x1)]
        if key:
            assert covered.all(), text
            assert y1 - y0 >= HEIGHT / 15, text
        else:
            assert covered.mean() < 0.2, text


@each_family
def test_sides_tell_nothing_about_the_variant(family):
    faces = [side(product) for product in FAMILIES[family]]
    for face in faces:
        assert np.array_equal(face.pixels, faces[0].pixels)
        assert np.array_equal(face.alpha, faces[0].alpha)
        assert face.words == faces[0].words
        assert not face.patch.any()
        assert not any(key for _, _, key in face.words)
    assert len(faces[0].words) >= 5
    assert all(ink(faces[0], box) > 60 for _, box, _ in faces[0].words)
    product = FAMILIES[family][0]
    if product.shape in ANGULAR:
        depth = HEIGHT * product.size_cm[2] / product.size_cm[1]
        assert faces[0].alpha.shape == (HEIGHT, pytest.approx(depth, abs=1))
