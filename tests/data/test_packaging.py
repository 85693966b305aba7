"""The packages of the built-in data set: twins are twins, and the truth about them holds."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from retailkit.data.synthetic.catalogue import CATALOGUE, DEPARTMENTS, FAMILIES, Product
from retailkit.data.synthetic.drawing import ARTWORK
from retailkit.data.synthetic.packaging import HEIGHT, Face, front, side

twins_of = pytest.mark.parametrize("family", FAMILIES)
each = pytest.mark.parametrize("product", CATALOGUE, ids=lambda product: product.label)
of_families = pytest.mark.parametrize("product", [twins[0] for twins in FAMILIES.values()], ids=lambda p: p.family)


def ink(face: Face, box: tuple[float, float, float, float]) -> float:
    """Return how much a box holds: the spread of its brightness."""
    x0, y0, x1, y1 = (round(v) for v in box)
    return float(np.ptp(face.pixels[y0:y1, x0:x1].astype(float).mean(-1)))


def lightness(colour: str) -> float:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return 0.299 * red + 0.587 * green + 0.114 * blue


def test_catalogue_has_eight_families_of_three():
    assert len(FAMILIES) == 8
    assert all(len(twins) == 3 for twins in FAMILIES.values())
    assert [product.index for product in CATALOGUE] == list(range(len(CATALOGUE)))
    assert len({product.label for product in CATALOGUE}) == len(CATALOGUE)
    assert {product.shape for product in CATALOGUE} == {
        shape for shape in ARTWORK["shapes"] if not shape.endswith("_side")
    }
    assert {product.department for product in CATALOGUE} == set(DEPARTMENTS)


@twins_of
def test_twins_differ_in_variant_and_tint_only(family):
    own = {"label", "variant", "tint", "index"}
    shared = [{k: v for k, v in vars(product).items() if k not in own} for product in FAMILIES[family]]
    assert shared[0] == shared[1] == shared[2]
    assert len({product.variant for product in FAMILIES[family]}) == 3


@twins_of
def test_tints_do_not_scream(family):
    tones = [lightness(product.tint) for product in FAMILIES[family]]
    assert max(tones) - min(tones) < 50


@twins_of
def test_twins_are_alike_outside_the_patch_and_differ_inside(family):
    for one, other in combinations([front(product) for product in FAMILIES[family]], 2):
        assert np.array_equal(one.patch, other.patch)
        assert np.array_equal(one.alpha, other.alpha)
        differs = (one.pixels != other.pixels).any(-1)
        assert not differs[~one.patch].any()
        assert differs[one.patch].mean() > 0.05


@each
def test_patch_is_a_small_part_of_the_package(product: Product):
    face = front(product)
    assert not face.patch[face.alpha == 0].any()
    assert 0.02 <= face.patch.sum() / (face.alpha > 127).sum() <= 0.08


@each
def test_face_is_a_silhouette_of_the_right_form(product: Product):
    face = front(product)
    height, width = face.alpha.shape
    assert height == HEIGHT
    assert width / height == pytest.approx(product.size_cm[0] / product.size_cm[1], abs=0.01)
    assert face.pixels.shape == (height, width, 3)
    assert face.pixels.dtype == face.alpha.dtype == np.uint8
    assert 0.7 < (face.alpha > 127).mean() <= 1
    assert (face.alpha[HEIGHT // 2, [8, -9]] == 255).all()


@each
def test_words_are_printed_where_the_truth_says(product: Product):
    face = front(product)
    texts = [text for text, _, _ in face.words]
    assert set((*product.brand.split(), *product.title, *product.variant)) <= set(texts)
    assert tuple(text for text, _, telling in face.words if telling) == product.variant
    for text, box, _ in face.words:
        x0, y0, x1, y1 = box
        assert 0 <= x0 < x1 <= face.alpha.shape[1], text
        assert 0 <= y0 < y1 <= face.alpha.shape[0], text
        assert face.alpha[round(y0) : round(y1), round(x0) : round(x1)].min() == 255, text
        assert ink(face, box) > 60, text


@each
def test_words_do_not_overlap(product: Product):
    for (_, a, _), (_, b, _) in combinations(front(product).words, 2):
        assert min(a[2], b[2]) <= max(a[0], b[0]) or min(a[3], b[3]) <= max(a[1], b[1]) + 1, (a, b)


@each
def test_telling_words_lie_in_the_patch_and_are_large(product: Product):
    face = front(product)
    for text, (x0, y0, x1, y1), telling in face.words:
        covered = face.patch[round(y0) : round(y1), round(x0) : round(x1)]
        if telling:
            assert covered.all(), text
            assert y1 - y0 >= HEIGHT / 15, text
        else:
            assert covered.mean() < 0.2, text


@twins_of
def test_sides_tell_nothing_about_the_variant(family):
    faces = [side(product) for product in FAMILIES[family]]
    for face in faces:
        assert np.array_equal(face.pixels, faces[0].pixels)
        assert np.array_equal(face.alpha, faces[0].alpha)
        assert face.words == faces[0].words
        assert not face.patch.any()
        assert not any(telling for _, _, telling in face.words)


@of_families
def test_side_has_a_table_of_words(product: Product):
    face = side(product)
    assert face.alpha.shape[0] == HEIGHT
    assert len(face.words) >= 5
    for text, box, _ in face.words:
        assert ink(face, box) > 60, text
    if product.shape in ("carton", "box"):
        assert face.alpha.shape[1] == pytest.approx(HEIGHT * product.size_cm[2] / product.size_cm[1], abs=1)


def test_drawing_is_deterministic():
    product = CATALOGUE[3]
    first = front(product)
    front.cache_clear()
    again = front(product)
    assert again is not first
    assert np.array_equal(first.pixels, again.pixels)
    assert first.words == again.words
