"""`retailkit check --deep`: planted faults are found, and nothing else."""

from __future__ import annotations

import re

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from retailkit import audit
from retailkit.cache import check_output
from retailkit.data.table import make_table

CLASSES = ("lean beef", "extra lean beef", "milk 3 %", "milk 1.5 %")


def package(seed):
    """A made-up photo: soft patches of light with a grain, (120,90,3) uint8."""
    rng = np.random.default_rng(seed)
    soft = cv2.resize(rng.uniform(40, 215, (6, 5, 3)).astype(np.float32), (90, 120), interpolation=cv2.INTER_CUBIC)
    return np.clip(soft + rng.normal(0, 4, soft.shape), 0, 255).astype(np.uint8)


def stored(path, pixels, scale=1.0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    photo = Image.fromarray(pixels)
    photo.resize((round(photo.width * scale), round(photo.height * scale))).save(path, **options)
    return str(path)


def table(images, labels, splits=None, groups=None):
    splits, groups = splits or ["train"] * len(images), groups or images
    parts = zip(images, labels, splits, groups, strict=True)
    return make_table([dict(zip(("image", "label", "split", "group"), row, strict=True)) for row in parts])


def another_word(pixels):
    pixels = pixels.copy()
    pixels[70:82, 20:50] = 255 - pixels[70:82, 20:50]
    return pixels


COPIES = {  # what was done to a photo: the change, scale and quality of its JPEG, and whether it still is the same one
    "stored again": (lambda pixels: pixels, 1.0, 40, True),
    "smaller": (lambda pixels: pixels, 0.7, 70, True),
    "larger": (lambda pixels: pixels, 1.3, 90, True),
    "darker": (lambda pixels: (pixels * 0.8).astype(np.uint8), 0.9, 80, True),
    "another word": (another_word, 1.0, 95, False),
    "a step aside": (lambda pixels: np.roll(pixels, 6, axis=1), 1.0, 95, False),
}


@pytest.mark.parametrize("how", COPIES)
def test_one_photo_in_two_splits_is_told_from_a_burst_and_from_a_look_alike(tmp_path, how):
    change, scale, quality, same = COPIES[how]
    photos = [stored(tmp_path / f"{k}.png", package(k)) for k in range(4)]
    copy = stored(tmp_path / "copy.jpg", change(package(0)), scale, quality=quality)
    rows = audit.near_duplicates(table([*photos, copy], ["a"] * 4 + ["b"], ["train"] * 4 + ["test"]))
    assert [(row["image"], row["split"], row["other_image"]) for row in rows] == [(copy, "test", photos[0])] * same
    for row in rows:
        assert row["kind"] == "near-duplicate across splits" and "the labels differ: a" in row["reason"]
        assert 0.8 <= row["score"] <= 1


def test_copies_in_one_split_are_another_kind_and_flat_photos_are_compared_too(tmp_path):
    white = [stored(tmp_path / f"{k}.png", np.full((40, 40, 3), 250 + k, np.uint8)) for k in range(2)]
    (row,) = audit.near_duplicates(table(white, ["a", "a"]))
    assert row["kind"] == "near-duplicate" and "labels" not in row["reason"]


@pytest.fixture
def clean():
    """Names, unit vectors (80,16) and labels of photos without a fault, of classes that are easy to tell apart."""
    rng = np.random.default_rng(0)
    centres = np.linalg.qr(rng.normal(size=(16, 16)))[0][: len(CLASSES)]
    vectors = np.repeat(centres, 20, 0) + rng.normal(0, 0.0875, (80, 16))
    names = [f"{k}.jpg" for k in range(80)]
    return names, vectors / np.linalg.norm(vectors, axis=1, keepdims=True), list(np.repeat(CLASSES, 20))


def test_swapped_labels_are_found_with_their_own_class_and_a_clean_set_has_none(clean):
    images, vectors, labels = clean
    assert audit.label_errors(table(images, labels), vectors) == ([], [])
    at = set(np.random.default_rng(1).choice(80, 10, replace=False))
    wrong = [CLASSES[(CLASSES.index(label) + 1) % 4] if k in at else label for k, label in enumerate(labels)]
    rows, _ = audit.label_errors(table(images, wrong), vectors)
    found = {images.index(row["image"]): row for row in rows}
    assert len(at & set(found)) >= 8 and set(found) <= at
    assert all(row["suggested_label"] == labels[k] for k, row in found.items())
    assert all(labels[images.index(row["other_image"])] == row["suggested_label"] for row in rows)


def test_a_burst_with_a_wrong_label_does_not_confirm_itself(clean):
    images, vectors, labels = clean
    vectors[1:5] = vectors[0]
    rows, _ = audit.label_errors(
        table(images, [CLASSES[2]] * 5 + labels[5:], groups=["burst"] * 5 + images[5:]), vectors
    )
    assert {row["image"] for row in rows} == set(images[:5])


def test_classes_with_too_few_photos_are_named_and_not_judged(clean):
    images, vectors, labels = clean
    rows, notes = audit.label_errors(table(images, ["rare", "rare", *labels[2:]]), vectors)
    assert not rows and len(notes) == 1 and "'rare'" in notes[0]
    rows, notes = audit.label_errors(table(images[:2], ["a", "b"]), vectors[:2])
    assert not rows and "two classes" in notes[1]


def test_a_photo_that_resembles_no_other_is_an_outlier(clean):
    images, vectors, labels = clean
    assert audit.outliers(table(images, labels), vectors) == []
    vectors[7] = -vectors.mean(0) / np.linalg.norm(vectors.mean(0))
    (row,) = audit.outliers(table(images, labels), vectors)
    assert row["image"] == "7.jpg" and row["score"] > 1
    assert audit.outliers(table(images[:1], labels[:1]), vectors[:1]) == []


def test_an_unreadable_text_is_a_row_and_a_missing_one_is_not():
    rows = table([f"{k}.jpg" for k in range(6)], ["a"] * 6)
    rows["text"] = ["HALVORS GROUND BEEF"] * 4 + ["|/. ~'-_ B", ""]
    (row,) = audit.texts(rows)
    assert row["image"] == "4.jpg" and row["kind"] == "unreadable text" and "more signs" in row["reason"]


def test_the_command_writes_a_page_and_a_table_and_ends_well(command, tmp_path):
    """For 12 photos of two classes in two splits, with one planted copy."""
    photos = tmp_path / "photos"
    for n, label in enumerate(("lean beef", "=extra <lean>")):
        for split, count in (("train", 4), ("test", 2)):
            for k in range(count):
                stored(photos / split / label / f"{k}.png", package(100 * n + k + 50 * (split == "test")))
    stored(photos / "test" / "lean beef" / "copy.jpg", package(3), 0.8, quality=60)
    code, out, err = command("check", "--root", photos, "--deep", "--output", "found/look.html")
    assert code == 0, err
    rows = pd.read_csv("found/look.csv", keep_default_na=False)
    assert list(rows) == audit.COLUMNS and "written: found/look.html and found/look.csv" in out
    copies = rows[rows["kind"] == "near-duplicate across splits"]
    assert copies["image"].tolist() == [str(photos / "test" / "lean beef" / "copy.jpg")]
    assert copies["other_image"].tolist() == [str(photos / "train" / "lean beef" / "3.png")]
    page = (tmp_path / "found" / "look.html").read_text()
    assert page.count("data:image/png;base64,") == len(rows) and "color-scheme:light dark" in page
    assert not re.search(r"<script|<link|https?:|src=\"(?!data:)|<lean>", page)
    for name in ("look.html", "look.csv"):
        check_output(tmp_path / "found" / name)  # the same command may replace its own files


BAD = {
    ("--deep",): (2, "--deep needs a data set; add --root or --dataset"),
    ("--root", "photos", "--output", "a.html"): (2, "--output goes with --deep"),
    ("--root", "photos", "--deep", "--output", "a.pdf"): (2, "unknown suffix; use .html"),
    ("--root", "photos", "--deep", "--output", "photos/a.html"): (2, "lies in the data folder"),
    ("--root", "photos", "--deep", "--output", "mine.html"): (2, "not written by retailkit"),
    ("--root", "photos", "--deep"): (1, "1 to be mended, see above; --deep looks at the photos after that"),
}


@pytest.mark.parametrize("words", BAD)
def test_a_bad_call_of_deep_ends_in_one_line(command, tmp_path, words):
    stored(tmp_path / "photos" / "a" / "0.png", package(0))
    (tmp_path / "photos" / "a" / "broken.png").write_text("no image")
    (tmp_path / "mine.csv").write_text("my own table")
    code, _, err = command("check", *words)
    assert (code, err.count("\n")) == (BAD[words][0], 1) and BAD[words][1] in err, err
    assert not (tmp_path / "check.html").exists()
