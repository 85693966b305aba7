"""FineGrainOCR on small folders and zips of its layout, and on the 12 real samples where they lie."""

from __future__ import annotations

import itertools
import json
import random
import runpy
import sys
import warnings
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from retailkit.data import load
from retailkit.data.table import DataError, Word

pytestmark = pytest.mark.filterwarnings("ignore:.*have one photo")
GTINS = ("060249018457", "060249018464")
COUNTS = {"train": 9, "val": 5}


def entry(word: str, *corners: tuple[int, int]) -> dict:
    """Return a word as Google Vision gives it: coordinates that are 0 are left out."""
    vertices = [{k: v for k, v in zip("xy", corner, strict=True) if v} for corner in corners]
    return {"description": word, "bounding_poly": {"vertices": vertices}}


LEAN, BEEF = Word("LEAN", (18.0, 0.0, 40.0, 12.0)), Word("BEEF", (0.0, 20.0, 16.0, 30.0))
WHOLE = entry("LEAN\nBEEF\n", (1, 1))
WORDS = [WHOLE, entry("LEAN", (20, 0), (40, 4), (38, 12), (18, 8)), entry("BEEF", (0, 20), (16, 20), (16, 30), (0, 30))]


def put(image: Path, words: object = WORDS, colour: int = 0) -> None:
    """Write a photo below `Images`, and its words below `Text`, unless they are None."""
    text = Path(str(image).replace("Images", "Text").replace("images", "text")).with_suffix(".json")
    for path in (image, text):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 48), (colour * 20, 90, 90)).save(image)
    if words is not None:
        text.write_bytes(words if isinstance(words, bytes) else json.dumps(words).encode())


def stems(count: int) -> list[str]:
    return [f"rgb_201907{16 + n // 3}_10000{n}" for n in range(count)]


@pytest.fixture
def full(tmp_path) -> Path:
    """The full set's layout, with two classes, and a folder around it."""
    root = tmp_path / "full" / "FineGrainOCR"
    for (split, count), label in itertools.product(COUNTS.items(), GTINS):
        for n, stem in enumerate(stems(count)):
            put(root / "Images" / split / label / f"{stem}.jpg", colour=n)
    return root.parent


def test_samples_train_only_and_say_so_once(tmp_path):
    for label, stem in zip(GTINS, stems(2), strict=True):
        put(tmp_path / "repository/samples/Images" / label / f"{stem}.jpg")
    with pytest.warns(UserWarning, match="2 of 2 classes have one photo") as said:
        data = load("finegrainocr", tmp_path / "repository")
    assert len(said) == 1 and data.classes == list(GTINS) and data.splits == ["train"]
    assert load("finegrainocr", tmp_path / "repository/samples").classes == list(GTINS)
    with pytest.raises(DataError, match=r"no 'val' split.*samples"):
        data.split("val")


READ = [  # what is beside a photo, and the text and words that are read
    (WORDS, "LEAN BEEF", [LEAN, BEEF]),
    ([WHOLE, entry("MILK", (-5, 40), (70, 40), (70, 60), (-5, 60))], "MILK", [Word("MILK", (0.0, 40.0, 64.0, 48.0))]),
    *((nothing, "", []) for nothing in (None, [], [{"description": ""}])),
    ([{"description": "LEAN\nGROUND BEEF\n"}], "LEAN GROUND BEEF", []),
    ([{"description": "LEAN\n"}, {"description": "LEAN"}], "LEAN", [Word("LEAN", (0.0, 0.0, 0.0, 0.0))]),
]


@pytest.mark.parametrize("given, text, words", READ)
def test_words_are_upright_boxes_clipped_to_the_image(tmp_path, given, text, words):
    put(tmp_path / "Images/1/a.jpg", given)
    row = load("finegrainocr", tmp_path).table.iloc[0]
    assert row["text"] == text and row["words"] == words


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"7", b'["LEAN"]', b'[{"locale": "en"}]', b'[{"description": "\xff"}]']
)
def test_a_broken_json_names_file_and_cure(tmp_path, content):
    put(tmp_path / "Images/1/a.jpg", content)
    with pytest.raises(DataError, match=r"Google Vision.*delete it") as error:
        load("finegrainocr", tmp_path)
    assert str(tmp_path / "Text/1/a.json") in str(error.value) and "\n" not in str(error.value)


def test_a_folder_without_the_layout_names_the_cure(tmp_path):
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError, match=r"retailkit fetch finegrainocr.*--root"):
            load("finegrainocr", root)


LAYOUTS = ["Images/train Images/val", "train/Images val/Images", "x/images/train x/images/val",
           "Images/training Images/Validation"]  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_split_and_kind_may_be_in_either_order(tmp_path, layout):
    for folder in layout.split():
        put(tmp_path / folder / "7" / "a.jpg")
    table = load("finegrainocr", tmp_path).table
    assert table["split"].tolist() == ["train", "val"] and table["text"].tolist() == ["LEAN BEEF"] * 2


def test_the_full_set_has_its_published_splits_and_samples_beside_are_left_out(full):
    put(full / "FineGrainOCR/samples/Images/9/a.jpg")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = load("finegrainocr", full)
    assert data.table["split"].value_counts().to_dict() == {"train": 18, "val": 10}
    assert data.classes == list(GTINS) and (data.table["family"] == "").all()
    groups = data.table.groupby("group")
    assert (groups[["label", "split"]].nunique() == 1).all().all() and len(groups) == 2 * (3 + 2)


def test_the_real_words_lie_in_their_pictures(real_data):
    for row in load("finegrainocr", real_data("finegrainocr")).table.itertuples():
        width, height = Image.open(row.image).size
        read = json.loads(Path(row.image.replace("Images", "Text")).with_suffix(".json").read_text(encoding="utf-8"))
        for word, entry in zip(row.words, read[1:], strict=True):
            x0, y0, x1, y1 = word.box
            assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
            corners = [(v.get("x", 0), v.get("y", 0)) for v in entry["bounding_poly"]["vertices"]]
            assert all(x0 <= x <= x1 and y0 <= y <= y1 for x, y in corners)


# -- The script that copies a subset.

SCRIPT = Path(__file__).parents[2] / "docs" / "finegrainocr_subset.py"


@pytest.fixture
def copy(full, tmp_path, monkeypatch):
    """Return a function that runs the script on a zip of the full set and returns the photos that it copied."""
    with zipfile.ZipFile(tmp_path / "FineGrainOCR.zip", "w") as file:
        for item in sorted(full.rglob("*")):
            file.write(item, item.relative_to(full))
        file.writestr("__MACOSX/FineGrainOCR/Images/train/1/._a.jpg", b"")

    def run(root: Path, *options: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", [SCRIPT.name, str(tmp_path / "FineGrainOCR.zip"), str(root), *options])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        return sorted(path.relative_to(root / "Images").as_posix() for path in root.rglob("*.jpg"))

    return run


def test_the_subset_is_the_published_draw_byte_by_byte(copy, full, tmp_path):
    photos, wanted = copy(tmp_path / "subset", "--per-class", "4", "2"), []
    for (split, count), label in itertools.product({"train": 4, "val": 2}.items(), GTINS):
        random.Random(0).shuffle(names := sorted(f"{stem}.jpg" for stem in stems(COUNTS[split])))  # as published
        wanted += [f"{split}/{label}/{name}" for name in names[:count]]
    assert photos == sorted(wanted)
    for photo in photos:
        own = full / "FineGrainOCR" / "Images" / photo
        assert (tmp_path / "subset" / "Images" / photo).read_bytes() == own.read_bytes()
    table = load("finegrainocr", tmp_path / "subset").table
    assert table["text"].eq("LEAN BEEF").all() and len(table) == 12


def test_smaller_photos_keep_their_words_in_place_and_a_copy_goes_on(copy, tmp_path):
    root, options = tmp_path / "subset", ("--per-class", "2", "1", "--long-edge", "32")
    photos = copy(root, *options)
    row = load("finegrainocr", root).table.iloc[0]
    assert Image.open(row["image"]).size == (32, 24) and row["words"][0].box == (9.0, 0.0, 20.0, 6.0)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*.jpg")}
    (root / "Images" / photos[0]).unlink()
    assert copy(root, *options) == photos
    changed = [path for path in root.rglob("*.jpg") if path.stat().st_mtime_ns != before[path]]
    assert changed == [root / "Images" / photos[0]]
