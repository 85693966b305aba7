"""A gallery against plain loops; thresholds of unknown products; products that are added."""

import math

import numpy as np
import pytest
import torch

from retailkit import models
from retailkit.config import UsageError
from retailkit.models import Features
from retailkit.models.gallery import GalleryHead
from retailkit.models.pooling import FeatureScaler


def features(count, seed, dim=6):
    return Features.present(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)) + 1)


def filled(neighbours=0, **options):
    """A head with a gallery of four photos of each of three classes."""
    scaler, seen = FeatureScaler(6), features(12, 0)
    scaler.fit(seen)
    head = GalleryHead({"image": scaler}, 3, neighbours, **options)
    head.fill({"image": seen}, torch.arange(12) % 3)
    return head, seen


def plain_unit(head, seen, values):
    """Whitened unit vectors of values; the photos of the gallery, `seen`, are of the classes 0, 1, 2, 0, 1, 2, ..."""

    def unit(each):
        scaled = [(v - head.scalers["image"].mean) / head.scalers["image"].std for v in each]
        return np.array([(v / v.norm()).numpy() for v in scaled])

    photos = unit(seen)
    within = np.concatenate([photos[k::3] - photos[k::3].mean(0) for k in range(3)])
    covariance = within.T @ within / len(photos)
    shrunk = 0.7 * covariance + 0.3 * np.trace(covariance) / 6 * np.eye(6)
    white = unit(values) @ np.linalg.cholesky(np.linalg.inv(shrunk))  # dot products: x' inv(covariance) y
    return white / np.linalg.norm(white, axis=1, keepdims=True)


@pytest.mark.parametrize("neighbours", [0, 1, 3, 100])
def test_answers_are_those_of_plain_loops(neighbours):
    head, seen = filled(neighbours)
    asked = features(5, 1)
    gallery, queries = (plain_unit(head, seen.values, values) for values in (seen.values, asked.values))
    probs = head({"image": asked}).softmax(1).numpy()
    similarity = head.similarity({"image": asked}).numpy()
    for row, query in enumerate(queries):
        cosines = gallery @ query
        if neighbours == 0:
            means = [gallery[k::3].sum(0) / np.linalg.norm(gallery[k::3].sum(0)) for k in range(3)]
            expected = [mean @ query for mean in means]
            votes = [math.exp(16 * cosine) for cosine in expected]
        else:
            nearest = sorted(range(12), key=lambda photo: -cosines[photo])[:neighbours]
            votes = [sum(math.exp(16 * cosines[photo]) for photo in nearest if photo % 3 == k) for k in range(3)]
            expected = [cosines[k::3].max() for k in range(3)]
        assert np.allclose(similarity[row], expected, atol=1e-5)
        assert np.allclose(probs[row], np.array(votes) / sum(votes), atol=1e-4)


def test_directions_in_which_photos_of_a_class_differ_count_less():
    """The first value is the light, which varies much; the second one tells the classes apart."""
    rng = np.random.default_rng(0)
    labels = torch.arange(200) % 2
    values = np.stack([rng.normal(0, 3, 200), 0.3 * (2 * labels.numpy() - 1) + rng.normal(0, 0.1, 200)], 1)
    values = torch.from_numpy(np.hstack([values, rng.normal(0, 0.1, (200, 4))])).float()
    scaler = FeatureScaler(6)  # one scale for all: only the whitening is judged
    head = GalleryHead({"image": scaler}, 2)
    head.fill({"image": Features.present(values[:100])}, labels[:100])
    right = head({"image": Features.present(values[100:])}).argmax(1) == labels[100:]
    head.whitening.copy_(torch.eye(6))
    head._hold(head.embed({"image": Features.present(values[:100])}), labels[:100])
    plain = head({"image": Features.present(values[100:])}).argmax(1) == labels[100:]
    assert right.float().mean() > 0.9 > plain.float().mean() + 0.1


def test_one_photo_of_each_class_whitens_nothing():
    scaler, seen = FeatureScaler(6), features(3, 0)
    scaler.fit(seen)
    head = GalleryHead({"image": scaler}, 3)
    head.fill({"image": seen}, torch.arange(3))
    assert torch.equal(head.whitening, torch.eye(6)) and head({"image": seen}).argmax(1).tolist() == [0, 1, 2]


def test_a_class_without_a_neighbour_has_a_finite_logit():
    """At a high scale the votes of nobody were log(0), and an explanation ended in a traceback."""
    head, _ = filled(1)
    head.scale.fill_(256.0)
    assert head({"image": features(5, 1)}).isfinite().all()


@pytest.mark.parametrize("neighbours", [0, 2])
def test_the_threshold_lets_through_the_stated_share_of_products_that_are_not_there(neighbours):
    """Of each validation photo the own class is taken away: what is left is an unknown product."""
    head, _ = filled(neighbours, false_accepts=0.25)
    seen, labels = features(40, 2), torch.arange(40) % 3
    head.tune({"image": seen}, labels)
    accepted = 0
    for row, label in enumerate(labels.tolist()):
        others = np.delete(head.similarity({"image": seen.rows(slice(row, row + 1))}).numpy()[0], label)
        accepted += others.max() > float(head.threshold) + 1e-6
    assert accepted == 10


def test_tuning_keeps_the_scale_with_the_lowest_loss():
    head, _ = filled()
    seen, labels = features(40, 2), torch.arange(40) % 3
    head.tune({"image": seen}, labels)

    def loss(scale):
        return float(torch.nn.functional.cross_entropy(scale * head.similarity({"image": seen}), labels))

    assert all(loss(float(head.scale)) <= loss(scale) + 1e-6 for scale in (1, 2, 4, 8, 16, 32, 64))


def test_an_added_class_changes_no_similarity_with_the_others():
    head, _ = filled()
    asked = {"image": features(5, 1)}
    before = head.similarity(asked)
    head.add({"image": features(2, 3)}, 3)
    after = head.similarity(asked)
    assert after.shape == (5, 4) and torch.allclose(after[:, :3], before)
    assert int(head({"image": features(2, 3)}).argmax(1).float().mean()) == 3
    with pytest.raises(UsageError, match="label 5 is out of range"):
        head.add({"image": features(2, 3)}, 5)


@pytest.mark.parametrize("neighbours", [0, 2])
def test_the_threshold_follows_the_classes_that_are_added(neighbours):
    """It stayed that of three classes, so that more unknown products passed with each class that was added."""
    head, _ = filled(neighbours, false_accepts=0.25)
    seen, labels = features(40, 2), torch.arange(40) % 3
    head.tune({"image": seen}, labels)
    before = float(head.threshold)
    for label in range(3, 8):
        head.add({"image": features(2, label)}, label)
    nearest = head.similarity({"image": seen}).scatter(1, labels[:, None], -2.0).amax(1)
    assert float(head.threshold) > before and int((nearest > head.threshold + 1e-6).sum()) == 10
    copy = GalleryHead({"image": FeatureScaler(6)}, 8, neighbours, 0.25)
    copy.load_state_dict(head.state_dict())
    copy.add({"image": features(1, 9)}, 0)
    head.add({"image": features(1, 9)}, 0)
    assert torch.equal(copy.threshold, head.threshold), "a loaded gallery still has its judges"


@pytest.mark.parametrize("options", [{"false_accepts": 0.0}, {"false_accepts": 1.5}, {"neighbours": -1}])
def test_impossible_options_are_refused(options):
    with pytest.raises(UsageError, match="use"):
        models.build("gallery", ["a", "b"], "timm:test_resnet", weights=None, **options)


def test_a_class_without_photos_is_never_the_answer():
    """Its mean was zero, and so was its cosine, which beat classes that look different."""
    scaler, seen = FeatureScaler(6), features(12, 0)
    head = GalleryHead({"image": scaler}, 3)
    head.fill({"image": seen}, torch.arange(12) % 2)
    opposite = Features.present(-seen.values)
    assert (head.similarity({"image": opposite})[:, 2] == -1).all()
    assert (head({"image": opposite}).argmax(1) != 2).all()


def test_an_empty_gallery_prefers_no_class():
    model = models.build("gallery", ["a", "b"], "timm:test_resnet", weights=None).eval()
    probs = model(torch.rand(2, 3, 64, 64)).softmax(1)
    assert torch.allclose(probs, torch.full((2, 2), 0.5))
