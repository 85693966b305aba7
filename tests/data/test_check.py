"""What `retailkit check` says of a folder: everything at once, on one page."""

from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image

from retailkit.data.check import report


def draw(path, seed=0, size=(24, 20)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def spoilt(tmp_path):
    """A folder with a dozen faults of different kinds."""
    root = tmp_path / "photos"
    for k, name in enumerate(("milk 1.5%", "milk 1.5 %", "soup")):
        for n in range(4):
            draw(root / name / f"{n}.jpg", 10 * k + n)
    cut = root / "soup" / "cut.jpg"
    draw(cut, 50, (200, 200))
    cut.write_bytes(cut.read_bytes()[:500])
    (root / "soup" / "phone.heic").write_bytes(b"x")
    (root / "soup" / "text.png").write_text("no picture")
    draw(root / "soup" / "thin.png", 51, (1, 4000))
    os.mkfifo(root / "soup" / "pipe.jpg")
    (root / "gone").symlink_to(tmp_path / "nowhere")
    draw(root / "0123456789abcdef" / "images" / "a.jpg", 52)
    draw(root / "loose.jpg", 53)
    draw(root / "soup" / "@eaDir" / "small.jpg", 54)
    draw(root / "rare" / "only.jpg", 55)
    (root / "empty").mkdir()
    (root / "soup" / "copy of milk.jpg").write_bytes((root / "milk 1.5%" / "0.jpg").read_bytes())
    (root / "soup" / "copy of soup.jpg").write_bytes((root / "soup" / "0.jpg").read_bytes())
    return root


FAULTS = (
    "cut.jpg: cannot be decoded",
    "phone.heic: not a known kind of image",
    "text.png: not an image that can be read",
    "thin.png: 4000 x 1 pixels are too narrow",
    "pipe.jpg: not a regular file",
    "gone: a link that leads nowhere",
    "0123456789abcdef: images of the built-in data set",
)
NOTES = (
    "in no class folder: 1 images ('loose.jpg')",
    "hidden by a program: 1 images",
    "classes that look the same: 'milk 1.5 %', 'milk 1.5%'",
    "one image only, which is used for training: 'rare'",
    "'empty' holds no image",
    "the same photo in more than one class: 1 photo, as 'milk 1.5%/0.jpg = soup/copy of milk.jpg'",
    "soup/copy of soup.jpg",
)


def test_a_folder_with_ten_faults_is_told_on_one_page(spoilt, command):
    code, page, error = command("check", "--root", spoilt)
    assert code == 1 and "7 to be mended" in error and "Traceback" not in error
    assert f"to be mended ({len(FAULTS)}):" in page and "worth a look" in page
    for part in (*FAULTS, *NOTES):
        assert part in page, part
    assert "Warning" not in page + error and len(page.splitlines()) < 40
    counts = report("folder", spoilt).counts
    assert list(counts) == ["train", "val", "test"]
    assert list(counts.index) == ["milk 1.5 %", "milk 1.5%", "rare", "soup"]
    assert counts.loc["milk 1.5%"].tolist() == [2, 1, 1] and counts.loc["rare"].tolist() == [1, 0, 0]


def test_every_broken_row_and_mask_of_a_table_is_listed(tmp_path):
    """`check` used to stop at missing files, before it had decoded the others."""
    for n, name in enumerate(("good.png", "good2.png")):
        draw(tmp_path / name, n)
    (tmp_path / "bad.png").write_bytes(b"x")
    Image.new("L", (20, 24)).save(tmp_path / "black.png")
    Image.new("L", (4, 4)).save(tmp_path / "small.png")
    rows = ["gone.jpg,a,,", "x.heic,a,,", "bad.png,a,,", "good.png,a,,black.png"]
    rows += ["good2.png,b,dev,", "good2.png,b,,small.png"]
    (tmp_path / "t.csv").write_text("\n".join(["image,label,split,mask", *rows]))
    faults = "\n".join(report("folder", tmp_path / "t.csv").faults)
    says = ["row 2: ", "row 3: 'x.heic'", "row 6: unknown split 'dev'", "bad.png: not an image", "black.png: no pixel"]
    assert all(part in faults for part in [*says, "small.png: mask of 4x4 for an image of 20x24"])


def test_other_data_sets_are_counted_too(tmp_path):
    for n, part in enumerate(("train/a", "train/b", "test/a", "test/b")):
        draw(tmp_path / part / "0.png", n)
    found = report("capg_gp", tmp_path)
    assert not found.faults and found.counts.to_numpy().tolist() == [[1, 0, 1]] * 2
    assert "4 images of 2 classes: train 2, val 0, test 2" in str(found)
