"""FineGrainOCR on small folders and zips of its layout, and on the 12 real samples where they lie."""

from __future__ import annotations

import hashlib
import io
import json
import random
import sys
import threading
import warnings
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retailkit import cli
from retailkit.config import UsageError
from retailkit.data import download, finegrainocr, load
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
    for split, count in COUNTS.items():
        for label in GTINS:
            for n, stem in enumerate(stems(count)):
                put(root, split, label, stem, colour=n)
    return root.parent


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
    names = sorted(names)
    random.Random(0).shuffle(names)
    return names[:count]


def names_of(data, split: str, label: str) -> set[str]:
    rows = data.table[(data.table["split"] == split) & (data.table["label"] == label)]
    return {Path(path).name for path in rows["image"]}


def test_samples_train_only_and_say_so_once(samples):
    with pytest.warns(UserWarning, match="2 of 2 classes have one photo") as said:
        data = load("finegrainocr", samples)
    assert len(said) == 1 and data.classes == list(GTINS) and data.splits == ["train"]
    assert load("finegrainocr", samples / "samples").classes == list(GTINS)
    with pytest.raises(DataError, match=r"no 'val' split.*samples"):
        data.split("val")


def test_words_are_upright_boxes_in_pixels_with_confidence_one(samples):
    row = load("finegrainocr", samples).table.iloc[0]
    assert row["text"] == "LEAN BEEF"
    assert row["words"] == [Word("LEAN", (18.0, 0.0, 40.0, 12.0)), Word("BEEF", (0.0, 20.0, 16.0, 30.0))]
    assert {word.confidence for word in row["words"]} == {1.0}


def test_boxes_move_with_the_picture(samples):
    sample = load("finegrainocr", samples).split("train", size=32, fit="stretch")[0]
    assert sample.text == "LEAN BEEF"
    np.testing.assert_allclose(sample.words[0].box, (9.0, 0.0, 20.0, 8.0), atol=1e-4)


def test_corners_outside_the_picture_are_clipped(samples):
    put(samples / "samples", "", GTINS[0], stems(1)[0], vision(("MILK", [(-5, 40), (70, 40), (70, 60), (-5, 60)])))
    assert load("finegrainocr", samples).table["words"][0][0].box == (0.0, 40.0, 64.0, 48.0)


@pytest.mark.parametrize("words", [None, [], vision(), [{"description": ""}]])
def test_no_words_are_an_empty_text(tmp_path, words):
    put(tmp_path, "", "1", "a", words)
    row = load("finegrainocr", tmp_path).table.iloc[0]
    assert row["text"] == "" and row["words"] == []


def test_a_text_without_places_is_still_a_text(tmp_path):
    put(tmp_path, "", "1", "a", [{"description": "LEAN\nGROUND BEEF\n"}])
    put(tmp_path, "", "1", "b", [{"description": "LEAN\n"}, {"description": "LEAN"}])
    table = load("finegrainocr", tmp_path).table
    assert table["text"].tolist() == ["LEAN GROUND BEEF", "LEAN"]
    assert table["words"].tolist() == [[], [Word("LEAN", (0.0, 0.0, 0.0, 0.0))]]


@pytest.mark.parametrize("content", ["", "{", "{}", "7", '["LEAN"]', '[{"description": 5}]', '[{"locale": "en"}]'])
def test_a_broken_json_names_file_and_cure(samples, content):
    path = samples / "samples" / "Text" / GTINS[1] / f"{stems(2)[1]}.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"Google Vision.*delete it") as error:
        load("finegrainocr", samples)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_broken_coordinates_are_an_error_and_bytes_that_are_no_text_too(samples):
    path = samples / "samples" / "Text" / GTINS[1] / f"{stems(2)[1]}.json"
    path.write_text(json.dumps(vision(("A", [(1, 1)]))).replace('"x": 1', '"x": "left"'))
    with pytest.raises(DataError, match="Google Vision"):
        load("finegrainocr", samples)
    path.write_bytes(b'[{"description": "\xff\xfe\xfa"}]')
    with pytest.raises(DataError, match="Google Vision"):
        load("finegrainocr", samples)


def test_a_broken_photo_is_found_when_it_is_read(samples):
    photo = samples / "samples" / "Images" / GTINS[0] / f"{stems(1)[0]}.jpg"
    photo.write_bytes(b"no photo")
    data = load("finegrainocr", samples)
    with pytest.raises(DataError, match=r"row 0 of 'finegrainocr'.*not an image"):
        data.split("train")[0]


def test_a_folder_without_the_layout_names_the_cure(tmp_path):
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError, match=r"retailkit fetch finegrainocr.*--root"):
            load("finegrainocr", root)


def test_names_never_become_text(full):
    put(full / "FineGrainOCR", "train", GTINS[0], "no_words", None)
    for row in load("finegrainocr", full).table.itertuples():
        assert row.text == ("" if Path(row.image).stem == "no_words" else "LEAN BEEF")


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


@pytest.mark.parametrize("count", [1, 4, 9, 20])
def test_the_subset_is_the_published_draw(full, count):
    data = load("finegrainocr", full, per_class_train=count, per_class_val=2)
    for label in GTINS:
        expected = published([f"{stem}.jpg" for stem in stems(COUNTS["train"])], count)
        assert names_of(data, "train", label) == set(expected)
        # The script draws texts from a folder of their own: the same names have to come out.
        drawn = published([f"{stem}.json" for stem in stems(COUNTS["train"])], count)
        assert {Path(name).stem for name in drawn} == {Path(name).stem for name in expected}
        assert names_of(data, "val", label) == set(published([f"{s}.jpg" for s in stems(COUNTS["val"])], 2))


@pytest.mark.parametrize("options", [{"per_class_train": 0}, {"per_class_val": -1}])
def test_less_than_one_photo_a_class_is_refused(full, options):
    with pytest.raises(UsageError, match="use 1 or more"):
        load("finegrainocr", full, **options)


@pytest.fixture(params=["folder", "zip"])
def source(request, full, archive) -> Path:
    return full if request.param == "folder" else archive


def test_the_subset_is_copied_byte_by_byte(source, full, tmp_path, capsys):
    root = download.fetch("finegrainocr", tmp_path / "subset", source=source, per_class=(4, 2))
    said = capsys.readouterr().out
    assert "CC0-1.0" in said and "12 photos, 12 of them to copy" in said
    drawn = load("finegrainocr", full, per_class_train=4, per_class_val=2)
    copied = load("finegrainocr", root)
    for split in ("train", "val"):
        for label in GTINS:
            assert names_of(copied, split, label) == names_of(drawn, split, label)
    assert copied.table["words"].tolist() == drawn.table["words"].tolist() and len(copied) == 12
    for path in copied.table["image"]:
        own = full / "FineGrainOCR" / Path(path).relative_to(root)
        assert Path(path).read_bytes() == own.read_bytes()
        text = Path(str(own).replace("Images", "Text")).with_suffix(".json")
        assert (root / text.relative_to(full / "FineGrainOCR")).read_bytes() == text.read_bytes()
    assert len(list(root.rglob("*.jpg"))) == len(list(root.rglob("*.json"))) - 1 == 12
    assert not list(root.rglob("*.tmp"))


def test_smaller_photos_keep_their_words_in_place(source, tmp_path):
    root = download.fetch("finegrainocr", tmp_path / "subset", source=source, per_class=(2, 1), long_edge=32)
    row = load("finegrainocr", root).table.iloc[0]
    assert Image.open(row["image"]).size == (32, 24)
    assert row["text"] == "LEAN BEEF" and row["words"][0].box == (9.0, 0.0, 20.0, 6.0)


def test_photos_are_never_enlarged(full, tmp_path):
    root = download.fetch("finegrainocr", tmp_path / "subset", source=full, per_class=(1, 1), long_edge=512)
    row = load("finegrainocr", root).table.iloc[0]
    assert Image.open(row["image"]).size == SIZE and row["words"][0].box == (18.0, 0.0, 40.0, 12.0)


def test_a_copy_goes_on_where_it_stopped(source, tmp_path, capsys):
    root = download.fetch("finegrainocr", tmp_path / "subset", source=source, per_class=(4, 2), long_edge=32)
    photos = sorted(root.rglob("*.jpg"))
    before = {path: path.stat().st_mtime_ns for path in photos[1:]}
    photos[0].unlink()
    with pytest.raises(DataError, match=r"1 of 12 photos of the subset are missing.*goes on where it stopped"):
        load("finegrainocr", root)
    capsys.readouterr()
    download.fetch("finegrainocr", root, source=source, per_class=(4, 2), long_edge=32)
    assert "12 photos, 1 of them to copy" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in photos[1:]} == before
    assert len(load("finegrainocr", root)) == 12


def test_a_broken_file_stops_the_copy_and_what_was_complete_stays(full, tmp_path):
    name = published([f"{stem}.jpg" for stem in stems(9)], 4)[2]
    photo = full / "FineGrainOCR" / "Images" / "train" / GTINS[1] / name
    content = photo.read_bytes()
    photo.write_bytes(content[:100])
    with pytest.raises(DataError, match=f"{name}: cannot be decoded.*get the data set again"):
        finegrainocr.copy_subset(full, tmp_path / "subset", (4, 2), long_edge=32, jobs=1)
    there = list((tmp_path / "subset").rglob("*.jpg"))
    assert len(there) >= 6 and not (tmp_path / "subset" / "Images" / "train" / GTINS[1] / name).exists()
    photo.write_bytes(content)
    assert len(load("finegrainocr", finegrainocr.copy_subset(full, tmp_path / "subset", (4, 2), 32))) == 12


def test_a_damaged_zip_is_one_clear_line(archive, tmp_path):
    content = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as file:
        first = next(i for i in file.infolist() if i.filename.endswith(".jpg"))
    content[first.header_offset + 200] ^= 255
    archive.write_bytes(content)
    with pytest.raises(DataError, match=r"\.jpg cannot be read .*get the data set again"):
        finegrainocr.copy_subset(archive, tmp_path / "a", (None, None))
    archive.write_bytes(content[:-30])
    with pytest.raises(DataError, match="cut off"):
        finegrainocr.copy_subset(archive, tmp_path / "b")


def test_smaller_draws_are_in_larger_ones(full, tmp_path):
    root = finegrainocr.copy_subset(full, tmp_path / "subset", (6, None))
    expected = load("finegrainocr", full, per_class_train=3)
    found = load("finegrainocr", root, per_class_train=3)
    assert [names_of(found, s, g) for s in COUNTS for g in GTINS] == [
        names_of(expected, s, g) for s in COUNTS for g in GTINS
    ]
    with pytest.raises(UsageError, match=r"draw of 6 train photos a class, not 7.*--per-class"):
        load("finegrainocr", root, per_class_train=7)
    finegrainocr.copy_subset(full, root, (7, None))
    assert len(load("finegrainocr", root, per_class_train=7)) == 2 * (7 + 5)
    finegrainocr.copy_subset(full, root, (2, 1))
    assert len(load("finegrainocr", root)) == 2 * (2 + 1)  # what lies there from the larger draw is not of it


def test_photos_of_another_size_are_never_mixed(full, tmp_path):
    root = finegrainocr.copy_subset(full, tmp_path / "subset", (2, 1), 32)
    for edge in (None, 24):
        with pytest.raises(UsageError, match=r"holds other photos.*--root"):
            finegrainocr.copy_subset(full, root, (2, 1), edge)
    for other in (full / "FineGrainOCR", full):
        with pytest.raises(UsageError, match="holds other photos"):
            finegrainocr.copy_subset(full, other, (2, 1))
    assert not list(full.rglob(finegrainocr.PLAN))


def test_a_spoilt_list_of_the_subset_names_the_cure(full, tmp_path):
    root = finegrainocr.copy_subset(full, tmp_path / "subset", (2, 1))
    (root / finegrainocr.PLAN).write_text("[]")
    with pytest.raises(DataError, match=r"subset\.json.*delete it and fetch"):
        load("finegrainocr", root)


def test_sources_that_are_none(full, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no FineGrainOCR photos in it"):
        finegrainocr.copy_subset(tmp_path / "empty", tmp_path / "a")
    with pytest.raises(DataError, match="no such folder or zip"):
        finegrainocr.copy_subset(tmp_path / "nowhere.zip", tmp_path / "a")
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(DataError, match="not a zip"):
        finegrainocr.copy_subset(tmp_path / "text.zip", tmp_path / "a")
    with pytest.raises(UsageError, match="long edge 4"):
        finegrainocr.copy_subset(full, tmp_path / "a", long_edge=4)
    assert not (tmp_path / "a").exists()


def test_options_of_the_subset_need_its_source(full, tmp_path):
    with pytest.raises(UsageError, match="give it by --from"):
        download.fetch("finegrainocr", tmp_path, long_edge=512)
    with pytest.raises(UsageError, match="for finegrainocr only"):
        download.fetch("grocery_store", tmp_path, source=full)


def test_the_command_copies_the_subset(archive, tmp_path, monkeypatch, capsys):
    root = tmp_path / "subset"
    call = ["fetch", "finegrainocr", "--from", str(archive), "--per-class", "3", "0", "--root", str(root)]
    monkeypatch.setattr(sys, "argv", ["retailkit", *call, "--long-edge", "32"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0 and capsys.readouterr().out.splitlines()[-1] == str(root)
    assert load("finegrainocr", root).table["split"].value_counts().to_dict() == {"train": 6, "val": 10}


def test_the_packaged_manifest_lists_the_samples():
    entries = download.read_manifest(Path(download.__file__).parent / download.FINEGRAINOCR_MANIFEST)
    pairs = {entry.path.rpartition(".")[0].partition("/")[2] for entry in entries}
    assert len(entries) == 24 and len(pairs) == 12
    assert all(entry.path.startswith(("Images/", "Text/")) and entry.expected.sha256 for entry in entries)


@pytest.fixture
def server(samples):
    """Serve the samples' folder on loopback; `asked` lists the paths."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args) -> None:
            asked.append(self.path)

    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(samples / "samples")))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def test_the_samples_are_downloaded_once_and_the_full_set_is_explained(server, samples, tmp_path, capsys):
    url, asked = server
    manifest = download.make_manifest(samples / "samples")
    for _ in range(2):
        root = download.fetch("finegrainocr", tmp_path / "data", base_url=url, manifest=manifest, retries=0)
    assert len(asked) == len(manifest) == 4
    assert load("finegrainocr", root).table["text"].tolist() == ["LEAN BEEF"] * 2
    said = capsys.readouterr().out
    assert "CC0-1.0" in said and download.FINEGRAINOCR_COMMIT[:12] in said and "--from" in said


@pytest.fixture
def real(real_data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load("finegrainocr", real_data("finegrainocr"))


def vision_file(row) -> list[dict]:
    return json.loads(Path(row.image.replace("Images", "Text")).with_suffix(".json").read_text(encoding="utf-8"))


def test_the_real_samples_have_the_words_of_their_description(real):
    assert len(real) == 12 and len(real.classes) == 12 and real.splits == ["train"]
    for row in real.table.itertuples():
        described = vision_file(row)[0]["description"].split()
        assert row.text.split() == described == [word.text for word in row.words]
        assert row.label not in row.text


def test_the_real_words_lie_in_their_pictures(real):
    for row in real.table.itertuples():
        width, height = Image.open(row.image).size
        for word, entry in zip(row.words, vision_file(row)[1:], strict=True):
            x0, y0, x1, y1 = word.box
            assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
            corners = [(v.get("x", 0), v.get("y", 0)) for v in entry["bounding_poly"]["vertices"]]
            assert all(x0 <= x <= x1 and y0 <= y <= y1 for x, y in corners)


def test_the_real_samples_are_those_of_the_manifest(real_data):
    root = real_data("finegrainocr")
    for entry in download.read_manifest(Path(download.__file__).parent / download.FINEGRAINOCR_MANIFEST):
        assert hashlib.sha256((root / entry.path).read_bytes()).hexdigest() == entry.expected.sha256


def test_a_real_photo_made_smaller_keeps_its_words_in_place(real, real_data, tmp_path):
    root = finegrainocr.copy_subset(real_data("finegrainocr"), tmp_path / "small", (1, 1), 512)
    small = finegrainocr.load_finegrainocr(root)
    assert small.table["text"].tolist() == real.table["text"].tolist()
    for one, other in zip(small.table["words"], real.table["words"], strict=True):
        np.testing.assert_allclose([w.box for w in one], np.array([w.box for w in other]) * 512 / 2592, atol=0.01)
    assert {Image.open(path).size for path in small.table["image"]} == {(512, 384)}
    assert sum(path.stat().st_size for path in root.rglob("*.jpg")) < 1_000_000
    with Image.open(io.BytesIO(Path(small.table["image"][0]).read_bytes())) as picture:
        assert picture.format == "JPEG"
