"""A gallery against plain loops; thresholds of unknown products; products that are added."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from retailkit import models
from retailkit.config import UsageError
from retailkit.models import Features
from retailkit.models.gallery import GalleryHead
from retailkit.models.pooling import FeatureScaler

THREE = torch.arange(12) % 3


def features(count, seed):
    return {"image": Features.present(torch.randn(count, 6, generator=torch.Generator().manual_seed(seed)) + 1)}


def filled(labels=THREE, **options):
    """A head whose gallery has a photo of each label; the classes are 0, 1 and 2."""
    scaler, seen = FeatureScaler(6), features(len(labels), 0)
    scaler.fit(seen["image"])
    head = GalleryHead({"image": scaler}, 3, **options)
    head.fill(seen, labels)
    return head, seen


def tuned(**options):
    head, _ = filled(**options)
    seen, labels = features(40, 2), torch.arange(40) % 3
    head.tune(seen, labels)
    return head, seen, labels


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
    (head, seen), asked = filled(neighbours=neighbours), features(5, 1)
    gallery, queries = (plain_unit(head, seen["image"].values, part["image"].values) for part in (seen, asked))
    probs, similarity = head(asked).softmax(1).numpy(), head.similarity(asked).numpy()
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
    rng, labels = np.random.default_rng(0), torch.arange(200) % 2
    values = np.stack([rng.normal(0, 3, 200), 0.3 * (2 * labels.numpy() - 1) + rng.normal(0, 0.1, 200)], 1)
    values = torch.from_numpy(np.hstack([values, rng.normal(0, 0.1, (200, 4))])).float()
    known, asked = ({"image": Features.present(part)} for part in values.split(100))
    head = GalleryHead({"image": FeatureScaler(6)}, 2)  # one scale for all: only the whitening is judged
    head.fill(known, labels[:100])
    right = head(asked).argmax(1) == labels[100:]
    head.whitening.copy_(torch.eye(6))
    head._hold(head.embed(known), labels[:100])
    plain = head(asked).argmax(1) == labels[100:]
    assert right.float().mean() > 0.9 > plain.float().mean() + 0.1


def test_one_photo_of_each_class_whitens_nothing():
    head, seen = filled(torch.arange(3))
    assert torch.equal(head.whitening, torch.eye(6)) and head(seen).argmax(1).tolist() == [0, 1, 2]


def test_a_class_without_a_neighbour_has_a_finite_logit():
    """At a high scale the votes of nobody were log(0), and an explanation ended in a traceback."""
    head, _ = filled(neighbours=1)
    head.scale.fill_(256.0)
    assert head(features(5, 1)).isfinite().all()


def test_classes_without_photos_are_never_the_answer_and_an_empty_gallery_prefers_none():
    """The mean of no photos was zero, and so was its cosine, which beat classes that look different."""
    head, seen = filled(torch.arange(12) % 2)
    opposite = {"image": Features.present(-seen["image"].values)}
    assert (head.similarity(opposite)[:, 2] == -1).all() and (head(opposite).argmax(1) != 2).all()
    model = models.build("gallery", ["a", "b"], "timm:test_resnet", weights=None).eval()
    assert torch.allclose(model(torch.rand(2, 3, 64, 64)).softmax(1), torch.full((2, 2), 0.5))


@pytest.mark.parametrize("neighbours", [0, 2])
def test_the_threshold_lets_through_the_stated_share_of_products_that_are_not_there(neighbours):
    """Of each validation photo the own class is taken away: what is left is an unknown product."""
    head, seen, labels = tuned(neighbours=neighbours, false_accepts=0.25)
    similarity = head.similarity(seen).numpy()
    others = [np.delete(row, label).max() for row, label in zip(similarity, labels.tolist(), strict=True)]
    assert sum(value > float(head.threshold) + 1e-6 for value in others) == 10


def test_tuning_keeps_the_scale_with_the_lowest_loss():
    head, seen, labels = tuned()
    loss = {scale: float(cross_entropy(scale * head.similarity(seen), labels)) for scale in (1, 2, 4, 8, 16, 32, 64)}
    assert float(cross_entropy(head(seen), labels)) <= min(loss.values()) + 1e-6


def test_an_added_class_changes_no_similarity_with_the_others():
    (head, _), asked = filled(), features(5, 1)
    before = head.similarity(asked)
    head.add(features(2, 3), 3)
    assert head.similarity(asked).shape == (5, 4) and torch.allclose(head.similarity(asked)[:, :3], before)
    assert head(features(2, 3)).argmax(1).tolist() == [3, 3]
    with pytest.raises(UsageError, match="label 5 is out of range"):
        head.add(features(2, 3), 5)


@pytest.mark.parametrize("neighbours", [0, 2])
def test_the_threshold_follows_the_classes_that_are_added(neighbours):
    """It stayed that of three classes, so that more unknown products passed with each class that was added."""
    head, seen, labels = tuned(neighbours=neighbours, false_accepts=0.25)
    before = float(head.threshold)
    for label in range(3, 8):
        head.add(features(2, label), label)
    nearest = head.similarity(seen).scatter(1, labels[:, None], -2.0).amax(1)
    assert float(head.threshold) > before and int((nearest > head.threshold + 1e-6).sum()) == 10
    copy = GalleryHead({"image": FeatureScaler(6)}, 8, neighbours, 0.25)
    copy.load_state_dict(head.state_dict())
    for each in (copy, head):
        each.add(features(1, 9), 0)
    assert torch.equal(copy.threshold, head.threshold), "a loaded gallery still has its judges"
