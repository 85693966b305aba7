"""Your own photos: folders, given splits and CSVs, good and bad."""

from __future__ import annotations

import os
import unicodedata
import warnings
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from retailkit import training
from retailkit.config import UsageError
from retailkit.data import folder, load
from retailkit.data.advice import advise
from retailkit.data.check import report
from retailkit.data.table import DataError


def draw(path: Path, colour: str = "red") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), colour).save(path)


def folders(root: Path, **counts: int) -> Path:
    for label, count in counts.items():
        for n in range(count):
            draw(root / label / f"{n:02d}.jpg", f"hsl({7 * n}, {100 - len(label)}%, 50%)")
    return root


def table(root: Path, header: str, *rows: str, images: int = 6) -> Path:
    """Write a CSV beside photos 0.jpg, 1.jpg, ..."""
    for n in range(images):
        draw(root / f"{n}.jpg", f"hsl({7 * n}, 100%, 50%)")
    (root / "my.csv").write_text("\n".join((header, *rows)), encoding="utf-8")
    return root / "my.csv"


def whole(root: Path):
    return load("folder", root, val=0, test=0)


# -- Splits that are made.


def test_a_folder_per_class_is_split_by_its_seed_and_a_new_class_moves_no_other(tmp_path):
    data = load("folder", folders(tmp_path, cola=20, fanta=20))
    assert data.classes == ["cola", "fanta"] and data.split("train", size=16)[0].image.shape == (3, 16, 16)
    counts = data.table.groupby(["label", "split"]).size().unstack()
    assert counts.loc["cola"].to_dict() == counts.loc["fanta"].to_dict() == {"test": 3, "train": 14, "val": 3}
    assert data.table["group"].is_unique, "photos without groups were one group, which no five folds can share"
    again, other = (load("folder", tmp_path, seed=seed).table["split"].tolist() for seed in (0, 1))
    assert data.table["split"].tolist() == again != other
    after = load("folder", folders(tmp_path, beer=5)).table.set_index("image")["split"]
    assert after[data.table["image"]].tolist() == again


@pytest.mark.parametrize("splits", [["test", "train"], ["test", "train", "val"]])
def test_small_classes_are_in_as_many_splits_as_they_can(tmp_path, splits):
    assert sorted(load("folder", folders(tmp_path, rare=len(splits))).table["split"]) == splits


def test_rows_of_a_group_stay_together(tmp_path):
    lines = [f"{n}.jpg,{'ab'[n % 2]},g{n // 4}" for n in range(48)]
    data = load("folder", table(tmp_path, "image,label,group", *lines, images=48), val=0.2, test=0.2)
    assert (data.table.groupby("group")["split"].nunique() == 1).all()
    assert set(data.table["split"]) == {"train", "val", "test"}


def test_shares_may_be_zero_but_not_everything(tmp_path):
    assert whole(folders(tmp_path, cola=6)).splits == ["train"]
    with pytest.raises(UsageError, match="nothing to train on"):
        load("folder", tmp_path, val=0.5, test=0.5)


def test_a_group_goes_where_its_first_class_puts_it(tmp_path):
    rows = [f"{n}.jpg,apple,g{n}\n{n + 4}.jpg,pear{n},g{n}" for n in range(4)]
    with pytest.warns(UserWarning, match="never in train, so that no model learns it: 'pear"):
        load("folder", table(tmp_path, "image,label,group", *rows, images=8))


# -- Folders.


@pytest.mark.parametrize(("train", "known"), [("train", "test, train"), ("Training", "Training, test")])
def test_a_folder_beside_the_splits_is_no_class(tmp_path, train, known):
    folders(tmp_path / train, cola=4, fanta=4)
    folders(tmp_path / "test", cola=2)
    draw(tmp_path / "__MACOSX" / "train" / "a.png")
    (tmp_path / "notes").mkdir()
    data = load("folder", tmp_path)
    assert data.classes == ["cola", "fanta"] and data.splits == ["train", "test"]
    with pytest.raises(DataError, match="no 'val' split"):
        data.split("val")
    draw(tmp_path / "masks" / "a.png")
    with pytest.raises(DataError, match=rf"masks: no split, beside {known}; move it out"):
        load("folder", tmp_path)


def test_classes_may_be_called_test_and_jpegs_jfif(tmp_path):
    (folders(tmp_path, cola=4, test=4) / "cola" / "00.jpg").rename(tmp_path / "cola" / "00.jfif")
    data = whole(tmp_path)
    assert data.classes == ["cola", "test"] and data.split("train", 16)[0].image.shape == (3, 16, 16)


def test_deeper_folders_belong_to_their_class_and_clutter_to_none(tmp_path):
    draw(tmp_path / "cola" / "monday" / "a.JPG")
    draw(tmp_path / "cola" / "b.png")
    for name in (".DS_Store", "Thumbs.db"):
        (tmp_path / "cola" / name).write_bytes(b"x")
    for hidden in ("cola/.ipynb_checkpoints", "cola/@eaDir/0.jpg", "cola/__MACOSX", "@eaDir"):
        draw(tmp_path / hidden / "0.jpg")
    with pytest.warns(UserWarning, match="hidden by a program: 4 images"):
        data = whole(tmp_path)
    assert sorted(Path(p).name for p in data.table["image"]) == ["a.JPG", "b.png"] and data.classes == ["cola"]


def test_linked_folders_vanished_and_loops_of_links_hung(tmp_path):
    folders(tmp_path / "elsewhere", tea=2)
    root = folders(tmp_path / "photos", milk=2)
    (root / "tea").symlink_to(tmp_path / "elsewhere" / "tea")
    (root / "milk" / "again").symlink_to(root / "milk")
    assert load("folder", root).table["label"].tolist() == ["milk"] * 2 + ["tea"] * 2
    (root / "lost").symlink_to(tmp_path / "nowhere")
    (root / "milk" / "self").symlink_to("self")
    with pytest.raises(DataError, match=r"(?s)lost: a link that leads nowhere.*self: not a known kind of image"):
        load("folder", root)


NO_IMAGES = "no images in class folders"
REFUSED = {  # what is done to a folder with the class milk, what is loaded, and what is said of it
    "nothing there": (lambda p: None, "nowhere", "nowhere: no such folder"),
    "empty": (lambda p: (p / "empty").mkdir(), "empty", f"empty: {NO_IMAGES}; use a folder per class"),
    "a photo": (lambda p: None, "milk/00.jpg", r"00\.jpg: neither a folder nor a CSV"),
    "a CSV beside photos": (lambda p: (p / "milk/a.csv").touch(), "milk", rf"{NO_IMAGES}; point --root at .*a\.csv"),
    "a CSV of no rows": (lambda p: table(p, "image,label"), "my.csv", r"my\.csv: no rows; add one"),
    "no UTF-8": (lambda p: draw(Path(os.fsdecode(b"%s/milk/\xe9.jpg" % os.fsencode(p)))), ".", "not UTF-8; rename it"),
    "a bell": (lambda p: (p / "milk").rename(p / "mi\alk"), "mi\alk", "holds control characters; rename it"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_folder_of_photos_names_itself_and_the_cure(tmp_path, case):
    spoil, place, says = REFUSED[case]
    spoil(folders(tmp_path, milk=2))
    with pytest.raises(DataError, match=says) as error:
        load("folder", tmp_path / place)
    assert str(error.value).encode()


def test_folders_that_cannot_be_listed_vanished(tmp_path, monkeypatch):
    folders(tmp_path, milk=2, tea=2)
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("tea"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    says = r"tea: cannot be listed \(Permission denied\); correct its permissions"
    for read in (lambda: load("folder", tmp_path), lambda: folder.gather([tmp_path])):
        with pytest.raises(DataError, match=says):
            read()
    assert len(folder.gather([tmp_path], unlisted := [])[0]) == 2 and len(unlisted) == 1


def test_photos_of_nobody_are_gathered_once_and_in_order(tmp_path):
    folders(tmp_path, milk=2)
    (tmp_path / "milk" / "a.heic").touch()
    (tmp_path / "milk" / "notes.txt").touch()
    files, others = folder.gather([tmp_path / "milk" / "01.jpg", tmp_path])
    assert [file.name for file in files] == ["01.jpg", "00.jpg", "a.heic"] and [file.name for file in others] == [
        "notes.txt"
    ]
    assert folder.photos(files[:1], ["b", "a"]).split("test", 16)[0].label == 0
    with pytest.raises(DataError, match="no such photo"):
        folder.photos(["nowhere.jpg"], ["a"])
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="no photo there"):
        folder.gather([tmp_path / "none"])


def test_accents_of_both_kinds_are_one_class_and_found(tmp_path):
    one, two = (unicodedata.normalize(form, "crème") for form in ("NFC", "NFD"))
    photos = folders(tmp_path / "photos", **{one: 2, two: 2, "milk": 2})
    assert load("folder", photos).classes == [one, "milk"]
    for file in (photos / one).iterdir():
        file.unlink()
    (photos / one).rmdir()
    rows = f"photos/{one}/00.jpg,{one}", f"0.jpg,{two}", "1.jpg,milk"
    assert whole(table(tmp_path, "image,label", *rows)).classes == [one, "milk"]


# -- CSVs.


def test_a_csv_with_every_column(tmp_path):
    draw(tmp_path / "m.png", "white")
    rows = [
        '0.jpg,NA,train,"LEAN, 10 %",m.png,meat,g1,front',
        "1.jpg,NA,Valid,,,meat,g2,dark",
        "2.jpg,0012,test,x,,milk,g3,",
    ]
    data = load("folder", table(tmp_path, "Image,Label,split,text,mask,coarse,group,condition", *rows))
    assert data.table["split"].tolist() == ["train", "val", "test"]
    assert data.classes == ["0012", "NA"]  # as text: neither a number nor a missing value
    assert data.table.loc[0, ["text", "coarse"]].tolist() == ["LEAN, 10 %", "meat"]
    assert data.table["condition"].tolist() == ["front", "dark", ""]
    sample = data.split("train", size=16)[0]
    assert sample.mask.all() and sample.text == "LEAN, 10 %"


def test_given_splits_in_a_csv_warn_of_nothing(tmp_path):
    rows = ["0.jpg,a,test", "1.jpg,a,", "2.jpg,b,test", "3.jpg,b,train"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = load("folder", table(tmp_path, "image,label,split", *rows))
    assert data.table["split"].tolist() == ["test", "train", "test", "train"]


def test_a_table_lists_each_folder_once_and_asks_for_no_file(tmp_path, monkeypatch):
    rows = [f"./{n % 6}.jpg,c{n % 5},{n // 3}" for n in range(3000)]
    path, listed, scan = table(tmp_path, "image,label,group", *rows), [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda place: listed.append(place) or scan(place))
    monkeypatch.setattr(os.path, "isfile", None)
    data, faults, _ = folder.read(path)
    assert not faults and len(data) == 3000 and listed == [tmp_path]
    assert set(data.table["image"]) == {str(tmp_path / f"{n}.jpg") for n in range(6)}


def test_paths_as_windows_writes_them_are_found(tmp_path):
    draw(tmp_path / "milk" / "1.jpg")
    path = table(tmp_path, "image,label", "milk\\1.jpg,milk", ".\\0.jpg,tea")
    assert whole(path).classes == ["milk", "tea"]
    assert folder.files_in_csv(path) == [tmp_path / "0.jpg", tmp_path / "milk" / "1.jpg"]


def test_every_broken_row_is_listed_at_once(tmp_path):
    rows = ["0.jpg,,,", "9.jpg,a,,", "x.heic,b,,", "1.jpg,b,dev,", "2.jpg,b,,no.png", "3.jpg,b,,"]
    with pytest.raises(DataError) as error:
        load("folder", table(tmp_path, "image,label,split,mask", *rows))
    says = ["no label", "9.jpg is missing; restore it", "'x.heic' is not a known kind of image; convert"]
    says += ["unknown split 'dev'; use train, val or test", "no.png is missing"]
    for number, (line, part) in enumerate(zip(str(error.value).split("\n"), says, strict=True), start=2):
        assert f"my.csv row {number}: " in line and part in line


# -- What is read, and deserves a second look.

ADVICE = {  # image, label, split and group of two rows -> what is said; 2.jpg and copy.jpg are one photo
    "0.jpg,a,train,g 0.jpg,a,test,h": "the same photo in more than one split: 1 photo, as '0.jpg = 0.jpg'",
    "0.jpg,a,train,g 0.jpg,b,train,g": "the same photo in more than one class: 1 photo, as",
    "2.jpg,a,train,g copy.jpg,a,test,h": "in more than one split: 1 photo, as '2.jpg = copy.jpg'; keep one of each",
    "2.jpg,a,train,g copy.jpg,a,train,h": "copies in one class and split: 1 photo, as 'copy.jpg'; delete",
    "2.jpg,a,train,g 3.jpg,a,val,g": "groups in more than one split: 1 group, as '2.jpg = 3.jpg'",
    "0.jpg,a,train,g 3.jpg,b,val,h": "one image only, which is used for training: 'a'; take more",
    "0.jpg,a,train,g 3.jpg,a,train,g": "one group only, which is used for training: 'a'; take more",
    "0.jpg,a,train,h 3.jpg,b,val,h": "never in train, so that no model learns it: 'b'; add photos",
    "0.jpg,a,train,g 3.jpg,a,train,h": "there is one class only, 'a'; a recogniser needs two",
    "0.jpg,a_1.5%,train,g 3.jpg,a1.5%,val,g 2.jpg,a15%,val,h": "that look the same: 'a1.5%', 'a_1.5%'; rename one",
    "0.jpg,Milk,train,g 3.jpg,milk,train,g": "that look the same: 'Milk', 'milk'; rename one",
    "0.jpg,milk,train,g 3.jpg,mi\u200blk,train,g": "that look the same: 'milk', 'mi\\u200blk'; rename one",
}


@pytest.mark.parametrize("rows", ADVICE, ids=ADVICE.get)
def test_what_looks_doubtful_is_said_in_one_line(tmp_path, monkeypatch, rows):
    monkeypatch.chdir(tmp_path)
    for name, colour in {"0": "red", "2": "blue", "3": "green", "copy": "blue"}.items():
        draw(Path(f"{name}.jpg"), colour)
    table = [row.split(",") for row in rows.split()]
    found = advise(pd.DataFrame(table, columns=["image", "label", "split", "group"]))
    assert sum(ADVICE[rows] in line for line in found) == 1, found


@pytest.mark.filterwarnings("ignore")
def test_copies_among_many_photos_are_left_to_the_check(tmp_path, monkeypatch):
    """Loading read all photos, which takes hours where there are a million."""
    path = table(tmp_path, "image,label,split", "0.jpg,a,train", "1.jpg,a,train", "2.jpg,b,train", "3.jpg,b,test")
    (tmp_path / "3.jpg").write_bytes((tmp_path / "0.jpg").read_bytes())
    monkeypatch.setattr(folder, "COMPARED", 3)
    with pytest.warns(UserWarning, match="copies were not looked for among 4 photos; `retailkit check` does"):
        load("folder", path)
    assert any("the same photo in more than one split" in note for note in report("folder", path).notes)


def test_one_folder_too_many_gave_one_class_and_full_marks(tmp_path):
    folders(tmp_path / "photos", milk=3, tea=3)
    with pytest.warns(UserWarning, match="'photos' as a class, with the folders 'milk', 'tea' in it"):
        data = load("folder", tmp_path)
    with pytest.raises(DataError, match="one class only, 'photos'; give photos of two"):
        training.fit_or_load(training.reference("probe", "folder", tmp_path), data)


def test_splits_inside_of_classes_and_misspelt_columns_are_a_warning(tmp_path):
    for name in ("milk", "soup", "tea"):
        folders(tmp_path / "photos" / name, train=2, test=1)
    with pytest.warns(UserWarning, match=r"with the folders 'test', 'train' in it; if these are classes or splits"):
        load("folder", tmp_path / "photos")
    with pytest.warns(UserWarning, match=r"columns that are not used: 'spilt', 'truth' \(known: image, label"):
        load("folder", table(tmp_path, "image,label,spilt,truth", "0.jpg,a,test,x", "1.jpg,b,train,"))
