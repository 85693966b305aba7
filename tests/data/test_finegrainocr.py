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

SIZE = (64, 48)
GTINS = ("060249018457", "060249018464")
COUNTS = {"train": 9, "val": 5}


def vision(*words: tuple[str, list[tuple[int, int]]]) -> list[dict]:
    """Return words as Google Vision lists them; coordinates that are 0 are left out, as in its format."""
    places = [[{k: v for k, v in zip("xy", corner, strict=True) if v} for corner in corners] for _, corners in words]
    text = "\n".join(word for word, _ in words) + "\n"
    whole = {"locale": "en", "description": text, "bounding_poly": {"vertices": [{"x": 1, "y": 1}] * 4}}
    pairs = zip(words, places, strict=True)
    return [whole] + [{"description": w, "bounding_poly": {"vertices": corners}} for (w, _), corners in pairs]


WORDS = vision(("LEAN", [(20, 0), (40, 4), (38, 12), (18, 8)]), ("BEEF", [(0, 20), (16, 20), (16, 30), (0, 30)]))


def put(root: Path, place: str, label: str, stem: str, words: object = WORDS, colour: int = 0) -> None:
    """Write a photo below `root/Images/place` and its words below `root/Text/place`."""
    image = root / "Images" / place / label / f"{stem}.jpg"
    image.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE, (colour * 20, 90, 90)).save(image)
    if words is not None:
        text = root / "Text" / place / label / f"{stem}.json"
        text.parent.mkdir(parents=True, exist_ok=True)
        text.write_text(json.dumps(words), encoding="utf-8")


def stems(count: int) -> list[str]:
    return [f"rgb_201907{16 + n // 3}_10000{n}" for n in range(count)]


@pytest.fixture
def samples(tmp_path) -> Path:
    """The repository's layout: one photo a class, no split."""
    for label, stem in zip(GTINS, stems(2), strict=True):
        put(tmp_path / "repository" / "samples", "", label, stem)
    return tmp_path / "repository"


@pytest.fixture
def full(tmp_path) -> Path:
    """The full set's layout, with two classes, and a folder around it."""
    root = tmp_path / "full" / "FineGrainOCR"
    for (split, count), label in itertools.product(COUNTS.items(), GTINS):
        for n, stem in enumerate(stems(count)):
            put(root, split, label, stem, colour=n)
    return root.parent


def test_samples_train_only_and_say_so_once(samples):
    with pytest.warns(UserWarning, match="2 of 2 classes have one photo") as said:
        data = load("finegrainocr", samples)
    assert len(said) == 1 and data.classes == list(GTINS) and data.splits == ["train"]
    assert load("finegrainocr", samples / "samples").classes == list(GTINS)
    with pytest.raises(DataError, match=r"no 'val' split.*samples"):
        data.split("val")


def test_words_are_upright_boxes_in_pixels_with_confidence_one(samples):
    put(samples / "samples", "", GTINS[1], stems(2)[1], vision(("MILK", [(-5, 40), (70, 40), (70, 60), (-5, 60)])))
    table = load("finegrainocr", samples).table
    assert table["text"].tolist() == ["LEAN BEEF", "MILK"]
    assert table["words"][0] == [Word("LEAN", (18.0, 0.0, 40.0, 12.0)), Word("BEEF", (0.0, 20.0, 16.0, 30.0))]
    assert table["words"][1] == [Word("MILK", (0.0, 40.0, 64.0, 48.0))], "clipped to the image"


WITHOUT_PLACES = [
    *((nothing, "", []) for nothing in (None, [], vision(), [{"description": ""}])),
    ([{"description": "LEAN\nGROUND BEEF\n"}], "LEAN GROUND BEEF", []),
    ([{"description": "LEAN\n"}, {"description": "LEAN"}], "LEAN", [Word("LEAN", (0.0, 0.0, 0.0, 0.0))]),
]


@pytest.mark.parametrize("given, text, words", WITHOUT_PLACES)
def test_no_words_are_an_empty_text_and_a_text_without_places_is_still_a_text(tmp_path, given, text, words):
    put(tmp_path, "", "1", "a", given)
    row = load("finegrainocr", tmp_path).table.iloc[0]
    assert row["text"] == text and row["words"] == words


NO_WORDS = [b"", b"{}", b"7", b'["LEAN"]', b'[{"description": 5}]', b'[{"locale": "en"}]']
NO_TEXT = b'[{"description": "\xff\xfe\xfa"}]'
NO_PLACE = b'[{"description": "A", "bounding_poly": {"vertices": [{"x": "left"}]}}]'


@pytest.mark.parametrize("content", [*NO_WORDS, NO_TEXT, NO_PLACE])
def test_a_broken_json_names_file_and_cure(samples, content):
    path = samples / "samples" / "Text" / GTINS[1] / f"{stems(2)[1]}.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"Google Vision.*delete it") as error:
        load("finegrainocr", samples)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_folder_without_the_layout_names_the_cure(tmp_path):
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError, match=r"retailkit fetch finegrainocr.*--root"):
            load("finegrainocr", root)


@pytest.mark.parametrize("layout", ["Images/{}", "{}/Images", "around/images/{}", "Images/{}ing"])
def test_split_and_kind_may_be_in_either_order(tmp_path, layout):
    for split in ("train", "val" if "ing" not in layout else "Validat"):
        photo = tmp_path / layout.format(split).replace("Validating", "Validation") / "7" / "a.jpg"
        text = Path(str(photo).replace("Images", "Text").replace("images", "text")).with_suffix(".json")
        for path in (photo, text):
            path.parent.mkdir(parents=True)
        Image.new("RGB", SIZE).save(photo)
        text.write_text(json.dumps(WORDS))
    table = load("finegrainocr", tmp_path).table
    assert table["split"].tolist() == ["train", "val"] and table["text"].tolist() == ["LEAN BEEF"] * 2


def test_the_full_set_has_its_published_splits(full):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = load("finegrainocr", full)
    assert data.table["split"].value_counts().to_dict() == {"train": 18, "val": 10}
    assert data.classes == list(GTINS) and (data.table["family"] == "").all()
    groups = data.table.groupby("group")
    assert (groups[["label", "split"]].nunique() == 1).all().all() and len(groups) == 2 * (3 + 2)


def test_photos_in_splits_win_over_samples_in_the_same_folder(full):
    put(full / "FineGrainOCR" / "samples", "", "9", "a")
    assert load("finegrainocr", full).classes == list(GTINS)


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
def archive(full) -> Path:
    path = full.parent / "FineGrainOCR.zip"
    with zipfile.ZipFile(path, "w") as file:
        for item in sorted(full.rglob("*")):
            file.write(item, item.relative_to(full))
        file.writestr("__MACOSX/FineGrainOCR/Images/train/1/._a.jpg", b"")
    return path


def published(names: list[str], count: int) -> list[str]:
    """The draw of the repository's script, written again from its description."""
    random.Random(0).shuffle(names := sorted(names))
    return names[:count]


@pytest.fixture
def copy(archive, monkeypatch):
    """Return a function that runs the script and returns the photos below a folder."""

    def run(root: Path, *options: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", [SCRIPT.name, str(archive), str(root), *options])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        return sorted(path.relative_to(root / "Images").as_posix() for path in root.rglob("*.jpg"))

    return run


def test_the_subset_is_the_published_draw_byte_by_byte(copy, full, tmp_path):
    counts = {"train": 4, "val": 2}
    photos = copy(tmp_path / "subset", "--per-class", "4", "2")
    names = {split: published([f"{stem}.jpg" for stem in stems(COUNTS[split])], counts[split]) for split in COUNTS}
    assert photos == sorted(f"{split}/{label}/{name}" for split in COUNTS for label in GTINS for name in names[split])
    for photo in photos:
        own = full / "FineGrainOCR" / "Images" / photo
        assert (tmp_path / "subset" / "Images" / photo).read_bytes() == own.read_bytes()
    table = load("finegrainocr", tmp_path / "subset").table
    assert table["text"].eq("LEAN BEEF").all() and len(table) == 12


def test_smaller_photos_keep_their_words_in_place_and_a_copy_goes_on(copy, tmp_path):
    root = tmp_path / "subset"
    photos = copy(root, "--per-class", "2", "1", "--long-edge", "32")
    row = load("finegrainocr", root).table.iloc[0]
    assert Image.open(row["image"]).size == (32, 24) and row["words"][0].box == (9.0, 0.0, 20.0, 6.0)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*.jpg")}
    (root / "Images" / photos[0]).unlink()
    assert copy(root, "--per-class", "2", "1", "--long-edge", "32") == photos
    after = {path: path.stat().st_mtime_ns for path in root.rglob("*.jpg")}
    assert [path.relative_to(root / "Images").as_posix() for path in after if after[path] != before[path]] == photos[:1]
