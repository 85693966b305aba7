"""Matching one image with a whole gallery, against OpenCV's brute-force matcher image by image."""

import cv2
import pytest
import torch

from retailkit import data, models
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
def test_matching(tmp_path, compare, quick, detector):
    shop = data.load("synthetic", tmp_path, per_class=(2 if quick else 8, 0, 1), size=240)
    matcher = models.build("matching", shop.classes, detector=detector)
    matcher.prepare(shop.split("train", 240))
    query = matcher._describe(shop.split("test", 240)[0].image)
    gallery = [d[:n].numpy() for d, n in zip(matcher.descriptors, matcher.counts, strict=True) if n > 1]
    ratio = compare(
        "matching",
        f"{len(query.points)} {detector} points with each of {len(gallery)} images",
        "cv2.BFMatcher image by image",
        lambda: by_opencv(query.descriptors, gallery, 1 + matcher.binary),
        lambda: matcher._matches(query, torch.arange(len(matcher.counts)))[matcher.counts > 1],
        lambda a, b: (a != b).float().mean(),
        repeat=5,
        tolerance=0.01,  # distances that tie in float32
    )
    assert ratio > 1
