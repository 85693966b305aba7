"""Matching one image with a whole gallery, against OpenCV's brute-force matcher image by image."""

import cv2
import numpy as np
import pytest
import torch

from retailkit import data, models
from retailkit.config import has_bfloat16
from retailkit.models import matching


def by_opencv(query, gallery, power):
    """Mutual nearest neighbours that pass the ratio test, (G,Q): the point of each gallery image, -1 for none.

    `power` is 2 for bits as signs: their Hamming distance is the square of the Euclidean one.
    """
    matcher = cv2.BFMatcher(cv2.NORM_L2)
    found = torch.full((len(gallery), len(query)), -1)
    for row, descriptors in zip(found, gallery, strict=True):
        back = [match.trainIdx for match in matcher.match(descriptors, query)]
        for first, second in matcher.knnMatch(query, descriptors, k=2):
            if (
                back[first.trainIdx] == first.queryIdx
                and first.distance**power < matching.RATIO * second.distance**power
            ):
                row[first.queryIdx] = first.trainIdx
    return found


@pytest.mark.benchmark
@pytest.mark.usefixtures("all_cores")
@pytest.mark.parametrize("detector", ["sift", "orb"])
def test_matching(tmp_path, compare_cpu, quick, detector):
    shop = data.load("synthetic", tmp_path, per_class=(2 if quick else 8, 0, 1), size=240)
    matcher = models.build("matching", shop.classes, detector=detector)
    matcher.prepare(shop.split("train", 240))
    query = matcher._describe(shop.split("test", 240)[0].image)
    gallery = [d[:n].numpy() for d, n in zip(matcher.descriptors, matcher.counts, strict=True) if n > 1]

    def theirs():
        return by_opencv(query.descriptors, gallery, 1 + matcher.binary)

    def ours():
        return matcher._matches(query, torch.arange(len(matcher.counts)))[matcher.counts > 1]

    def differ(one, other):
        return (one != other).float().mean()

    case = f"{len(query.points)} {detector} points with each of {len(gallery)} images"
    ties = 0.01  # distances that tie in float32
    assert compare_cpu("matching", case, "cv2.BFMatcher image by image", theirs, ours, differ, 5, ties) > 1


def gallery_and_query(images, seed=0):
    """Return unit vectors (images, 200, 128) as RootSIFT has them, and a query of 200: noisy copies of one image's."""
    generator = torch.Generator().manual_seed(seed)
    known = torch.rand(images, 200, 128, generator=generator) ** 4
    query = known[images // 2] + 0.05 * torch.rand(200, 128, generator=generator)
    points = 240 * torch.rand(images, 200, 2, generator=generator)
    unit = torch.nn.functional.normalize
    found = matching.Keypoints(points[images // 2].numpy(), np.ones(200, np.float32), unit(query, dim=1).numpy())
    return points, unit(known, dim=2), found


def formerly(matcher, query):
    """Match every image of the gallery, test the 20 with most matches, and sort all similarities for the votes."""
    descriptors, scores = torch.from_numpy(query.descriptors), torch.zeros(len(matcher.labels))
    chunks = zip(matcher.descriptors.split(64), matcher.counts.split(64), strict=True)
    pairs = torch.cat([matching.mutual_matches(descriptors, d, c, matching.RATIO) for d, c in chunks])
    for g in (pairs >= 0).sum(1).argsort(descending=True, stable=True)[:20].tolist():
        scores[g] = int(matching.inliers(*matcher._pair(query, g, pairs[g])).sum())
    labels = matcher.labels.repeat_interleave(matcher.counts)
    votes = matching.local_naive_bayes(descriptors, matcher.descriptors.flatten(0, 1), labels, len(matcher.classes), 4)
    return int(scores.argmax()), votes


@pytest.mark.benchmark
def test_matching_and_votes_of_one_photo(compare_cpu):
    """As large as the gallery of Grozi-120, on one core."""
    images = 675  # as many packshots as Grozi-120 has
    classes = [str(k) for k in range(images // 5)]
    points, descriptors, query = gallery_and_query(images)
    matcher, voter = (models.build(name, classes, keypoints=200) for name in ("matching", "nbnn"))
    for model in (matcher, voter):
        model._fill(points, descriptors, torch.full((images,), 200), torch.arange(images) // 5)
        model._scores(query)

    def ours():
        matcher._search._last = None  # nothing is left of the call before
        return int(matcher._scores(query).argmax()), voter._scores(query)

    def differ(one, other):
        return float(one[0] != other[0]) + float((one[1] - other[1]).abs().max())

    case = f"matching and votes of 200 points, {images} images with 200 points each, one core"
    baseline = "the former code: every image matched, all similarities sorted"
    ratio = compare_cpu("matching", case, baseline, lambda: formerly(matcher, query), ours, differ, 5)
    assert ratio > (4 if has_bfloat16() else 1)
