"""Your own photos: folders, given splits and CSVs, good and bad."""

from __future__ import annotations

import os
import unicodedata
import warnings
from pathlib import Path

import pytest
from PIL import Image

from retailkit import training
from retailkit.config import UsageError
from retailkit.data import folder, load
from retailkit.data.check import report
from retailkit.data.folder import files_in_csv
from retailkit.data.table import DataError


def draw(path: Path, colour: str = "red") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), colour).save(path)


def folders(root: Path, **counts: int) -> Path:
    for label, count in counts.items():
        for n in range(count):
            draw(root / label / f"{n:02d}.jpg", f"hsl({7 * n}, {100 - len(label)}%, 50%)")
    return root


def table(root: Path, text: str, images: int = 6) -> Path:
    """Write a CSV beside photos 0.jpg, 1.jpg, ..."""
    for n in range(images):
        draw(root / f"{n}.jpg", f"hsl({7 * n}, 100%, 50%)")
    (root / "my.csv").write_text(text, encoding="utf-8")
    return root / "my.csv"


def test_a_folder_per_class(tmp_path):
    data = load("folder", folders(tmp_path, cola=20, fanta=20))
    assert data.classes == ["cola", "fanta"]
    counts = data.table.groupby(["label", "split"]).size().unstack()
    assert counts.loc["cola"].to_dict() == counts.loc["fanta"].to_dict() == {"test": 3, "train": 14, "val": 3}
    assert data.split("train", size=16)[0].image.shape == (3, 16, 16)
    assert data.table["group"].is_unique, "photos without groups were one group, which no five folds can share"


def test_the_split_is_the_same_for_the_same_seed_and_no_other(tmp_path):
    folders(tmp_path, cola=20, fanta=20)
    splits = [load("folder", tmp_path, seed=seed).table["split"].tolist() for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]


def test_a_new_class_moves_no_other(tmp_path):
    before = load("folder", folders(tmp_path, cola=20, fanta=20)).table.set_index("image")["split"]
    after = load("folder", folders(tmp_path, beer=5)).table.set_index("image")["split"]
    assert (after[before.index] == before).all()


@pytest.mark.parametrize("splits", [["test", "train"], ["test", "train", "val"]])
def test_small_classes_are_in_as_many_splits_as_they_can(tmp_path, splits):
    assert sorted(load("folder", folders(tmp_path, rare=len(splits))).table["split"]) == splits


@pytest.mark.parametrize(("rows", "what"), [("0.jpg,rare,g\n", "image"), ("0.jpg,rare,g\n1.jpg,rare,g\n", "group")])
def test_a_class_of_one_image_or_group_trains_with_a_warning(tmp_path, rows, what):
    with pytest.warns(UserWarning, match=f"one {what} only, which is used for training: 'rare'"):
        data = load("folder", table(tmp_path, f"image,label,group\n{rows}2.jpg,b,h\n3.jpg,b,i\n"))
    assert set(data.table.loc[data.table["label"] == "rare", "split"]) == {"train"}


def test_rows_of_a_group_stay_together(tmp_path):
    lines = [f"{n}.jpg,{'ab'[n % 2]},g{n // 4}" for n in range(48)]
    data = load("folder", table(tmp_path, "image,label,group\n" + "\n".join(lines), 48), val=0.2, test=0.2)
    assert (data.table.groupby("group")["split"].nunique() == 1).all()
    assert set(data.table["split"]) == {"train", "val", "test"}


def test_shares_may_be_zero_but_not_everything(tmp_path):
    folders(tmp_path, cola=6)
    assert load("folder", tmp_path, val=0, test=0).splits == ["train"]
    with pytest.raises(UsageError, match="nothing to train on"):
        load("folder", tmp_path, val=0.5, test=0.5)


@pytest.mark.parametrize(("train", "known"), [("train", "test, train"), ("Training", "Training, test")])
def test_a_folder_beside_the_splits_is_no_class(tmp_path, train, known):
    folders(tmp_path / train, cola=4, fanta=4)
    folders(tmp_path / "test", cola=2)
    draw(tmp_path / "__MACOSX" / "train" / "a.png")
    (tmp_path / "notes").mkdir()
    data = load("folder", tmp_path)
    assert data.classes == ["cola", "fanta"] and data.splits == ["train", "test"]
    draw(tmp_path / "masks" / "a.png")
    with pytest.raises(DataError, match=rf"masks: no split, beside {known}; move it out"):
        load("folder", tmp_path)


def test_a_class_may_be_called_test(tmp_path):
    assert load("folder", folders(tmp_path, cola=4, test=4), val=0, test=0).classes == ["cola", "test"]


def test_classes_that_are_never_learned_are_named(tmp_path):
    """A group goes where its first class puts it, which may leave another class without a training image."""
    rows = [f"{n}.jpg,apple,g{n}\n{n + 4}.jpg,pear{n},g{n}" for n in range(4)]
    with pytest.warns(UserWarning) as warned:
        data = load("folder", table(tmp_path, "image,label,group\n" + "\n".join(rows), 8))
    never = sorted(set(data.classes) - set(data.table.loc[data.table["split"] == "train", "label"]))
    said = next(str(w.message) for w in warned if "never in train" in str(w.message))
    assert never and all(f"'{name}'" in said for name in never)


def test_deeper_folders_belong_to_their_class_and_clutter_to_none(tmp_path):
    draw(tmp_path / "cola" / "monday" / "a.JPG")
    draw(tmp_path / "cola" / "b.png")
    for name in (".DS_Store", "Thumbs.db"):
        (tmp_path / "cola" / name).write_bytes(b"x")
    for hidden in ("cola/.ipynb_checkpoints", "cola/@eaDir/0.jpg", "cola/__MACOSX", "@eaDir"):
        draw(tmp_path / hidden / "0.jpg")
    with pytest.warns(UserWarning, match="hidden by a program: 4 images"):
        data = load("folder", tmp_path, val=0, test=0)
    assert sorted(Path(p).name for p in data.table["image"]) == ["a.JPG", "b.png"]
    assert data.classes == ["cola"]


def test_training_and_testing_are_splits(tmp_path):
    folders(tmp_path / "Training", milk=2, soup=2)
    folders(tmp_path / "Testing", milk=1, soup=1)
    data = load("folder", tmp_path)
    assert data.classes == ["milk", "soup"] and data.splits == ["train", "test"]
    with pytest.raises(DataError, match="no 'val' split"):
        data.split("val")


def test_photos_beside_the_classes_are_left_out_with_a_warning(tmp_path):
    draw(folders(tmp_path, milk=3, soup=3) / "loose.jpg")
    with pytest.warns(UserWarning, match=r"left out, as in no class folder: 1 images \('loose\.jpg'\)"):
        assert len(load("folder", tmp_path)) == 6


def test_a_jpeg_that_windows_called_jfif_is_a_jpeg(tmp_path):
    folders(tmp_path, milk=3, soup=3)
    (tmp_path / "milk" / "00.jpg").rename(tmp_path / "milk" / "00.jfif")
    data = load("folder", tmp_path)
    assert len(data) == 6 and data.split("train", 16)[0].image.shape == (3, 16, 16)


def test_an_unsupported_file_names_itself_and_the_cure(tmp_path):
    folders(tmp_path, cola=2)
    (tmp_path / "cola" / "photo.heic").write_bytes(b"x")
    (tmp_path / "cola" / "z.mov").write_bytes(b"x")
    with pytest.raises(DataError, match=r"photo\.heic: not a known kind of image; convert it to JPEG.*\n.*z\.mov: not"):
        load("folder", tmp_path)


def test_a_missing_and_an_empty_folder(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no such folder"):
        load("folder", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: no images in class folders; use a folder per class"):
        load("folder", tmp_path / "empty")
    draw(tmp_path / "flat" / "x.jpg")
    with pytest.raises(DataError, match=r"x\.jpg: neither a folder nor a CSV"):
        load("folder", tmp_path / "flat" / "x.jpg")
    (tmp_path / "flat" / "a.csv").write_text("image,label")
    with pytest.raises(DataError, match=r"point --root at .*a\.csv"):
        load("folder", tmp_path / "flat")


def test_a_csv_with_every_column(tmp_path):
    draw(tmp_path / "m.png", "white")
    rows = [
        "Image,Label,split,text,mask,coarse,group,condition",
        '0.jpg,NA,train,"LEAN, 10 %",m.png,meat,g1,front',
        "1.jpg,NA,Valid,,,meat,g2,dark",
        "2.jpg,0012,test,x,,milk,g3,",
    ]
    data = load("folder", table(tmp_path, "\n".join(rows)))
    rows = data.table.to_dict("records")
    assert [r["split"] for r in rows] == ["train", "val", "test"]
    assert data.classes == ["0012", "NA"]  # as text: neither a number nor a missing value
    assert rows[0]["text"] == "LEAN, 10 %" and rows[0]["coarse"] == "meat" and rows[1]["condition"] == "dark"
    sample = data.split("train", size=16)[0]
    assert sample.mask.all() and sample.text == "LEAN, 10 %"


def test_given_splits_in_a_csv_warn_of_nothing(tmp_path):
    path = table(tmp_path, "image,label,split\n0.jpg,a,test\n1.jpg,a,\n2.jpg,b,test\n3.jpg,b,train\n4.jpg,b,train")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = load("folder", path)
    assert data.table["split"].tolist() == ["test", "train", "test", "train", "train"]


def test_a_table_lists_each_folder_once_and_asks_for_no_file(tmp_path, monkeypatch):
    listed, scan, rows = [], os.scandir, [f"./{n % 6}.jpg,c{n % 5},{n // 3}" for n in range(3000)]
    path = table(tmp_path, "image,label,group\n" + "\n".join(rows))
    monkeypatch.setattr(os, "scandir", lambda place: listed.append(place) or scan(place))
    monkeypatch.setattr(os.path, "isfile", None)
    data, faults, _ = folder.read(path)
    assert not faults and len(data) == 3000 and listed == [tmp_path]
    assert set(data.table["image"]) == {str(tmp_path / f"{n}.jpg") for n in range(6)}


@pytest.mark.filterwarnings("ignore")
def test_copies_among_many_photos_are_left_to_the_check(tmp_path, monkeypatch):
    """Loading read all photos, which takes hours where there are a million."""
    path = table(tmp_path, "image,label,split\n0.jpg,a,train\n1.jpg,a,train\n2.jpg,b,train\n3.jpg,b,test\n")
    (tmp_path / "3.jpg").write_bytes((tmp_path / "0.jpg").read_bytes())
    monkeypatch.setattr(folder, "COMPARED", 3)
    with pytest.warns(UserWarning, match="copies were not looked for among 4 photos; `retailkit check` does"):
        load("folder", path)
    assert any("the same photo in more than one split" in note for note in report("folder", path).notes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,label\n", "no rows"),
        ("image,label\n0.jpg,a\n9.jpg,b\n", r"row 3: .*9\.jpg is missing; restore it"),
        ("image,label,mask\n0.jpg,a,no.png\n", r"row 2: .*no\.png is missing"),
        ("image,label\n0.jpg,\n", "row 2: no label"),
        ("image,label\n0.txt,a\n", r"row 2: '0\.txt' is not a known kind of image; convert"),
        ("image,label\n,a\n", "row 2: '' is not a known kind of image"),
        ("image,label,split\n0.jpg,a,dev\n", "row 2: unknown split 'dev'; use train, val or test"),
    ],
)
def test_a_broken_csv_names_file_row_and_cure(tmp_path, text, message):
    with pytest.raises(DataError, match=rf"my\.csv.*{message}") as error:
        load("folder", table(tmp_path, text))
    assert "\n" not in str(error.value)


def test_every_broken_row_is_listed_at_once(tmp_path):
    path = table(tmp_path, "image,label\n0.jpg,\n9.jpg,a\nx.heic,b\n1.jpg,b\n")
    with pytest.raises(DataError, match=r"^.* row 2: .*\n.* row 3: .*\n.* row 4: .*$"):
        load("folder", path)


def test_paths_as_windows_writes_them_are_found(tmp_path):
    draw(tmp_path / "milk" / "1.jpg")
    path = table(tmp_path, "image,label\nmilk\\1.jpg,milk\n.\\0.jpg,tea\n")
    assert load("folder", path, val=0, test=0).classes == ["milk", "tea"]
    assert files_in_csv(path) == [tmp_path / "0.jpg", tmp_path / "milk" / "1.jpg"]


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


def test_folders_that_cannot_be_listed_vanished(tmp_path, monkeypatch):
    folders(tmp_path, milk=2, tea=2)
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("tea"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"tea: cannot be listed \(Permission denied\); correct its permissions"):
        load("folder", tmp_path)


def test_names_that_are_not_utf8_ended_in_tracebacks(tmp_path):
    folders(tmp_path, milk=2)
    odd = os.fsdecode(os.fsencode(tmp_path / "milk") + b"/caf\xe9.jpg")
    (tmp_path / "milk" / "00.jpg").rename(odd)
    with pytest.raises(DataError, match=r"not UTF-8; rename it") as error:
        load("folder", tmp_path)
    assert str(error.value).encode()


def test_accents_of_both_kinds_are_one_class_and_found(tmp_path):
    one, two = (unicodedata.normalize(form, "crème") for form in ("NFC", "NFD"))
    folders(tmp_path / "photos", **{one: 2, two: 2, "milk": 2})
    assert load("folder", tmp_path / "photos").classes == [one, "milk"]
    (tmp_path / "photos" / one / "00.jpg").unlink()
    path = table(tmp_path, f"image,label\nphotos/{one}/00.jpg,{one}\n0.jpg,{two}\n1.jpg,milk\n")
    (tmp_path / "photos" / one / "01.jpg").unlink()
    (tmp_path / "photos" / one).rmdir()
    assert load("folder", path, val=0, test=0).classes == [one, "milk"]


LOOK_ALIKE = [("milk 1.5%", "milk 1.5 %"), ("Milk", "milk"), ("milk", "mi\u200blk"), ("oat milk", "oat_milk")]


@pytest.mark.parametrize("names", LOOK_ALIKE)
def test_names_that_look_the_same_are_a_warning(tmp_path, names):
    folders(tmp_path, **dict.fromkeys([*names, "milk 15 %", "m\u00eflk"], 2))
    with pytest.warns(UserWarning, match="classes that look the same") as said:
        load("folder", tmp_path)
    lines = [str(w.message) for w in said if "look the same" in str(w.message)]
    assert len(lines) == 1 and all(repr(name) in lines[0] for name in names)


LEAKS = [
    ("0.jpg,a,train,\n0.jpg,a,test,\n", r"the same photo in more than one split: 1 photo, as '.*0\.jpg = .*0\.jpg'"),
    ("0.jpg,a,train,\n0.jpg,b,train,\n", "the same photo in more than one class: 1 photo, as"),
    ("2.jpg,a,train,\ncopy.jpg,a,test,\n", r"more than one split: 1 photo, as '.*2\.jpg = .*copy\.jpg'; keep one"),
    ("2.jpg,a,train,\ncopy.jpg,a,train,\n", r"copies in one class and split: 1 photo, as '.*copy\.jpg'; delete"),
    ("2.jpg,a,train,g\n3.jpg,a,val,g\n", r"groups in more than one split: 1 group, as .*2\.jpg = .*3\.jpg"),
]


@pytest.mark.parametrize(("rows", "says"), LEAKS)
def test_leaks_between_given_splits_were_never_checked(tmp_path, rows, says):
    path = table(tmp_path, "image,label,split,group\n" + rows)
    for name, colour in {"2": "blue", "3": "green", "copy": "blue"}.items():
        draw(tmp_path / f"{name}.jpg", colour)
    with pytest.warns(UserWarning, match=says):
        load("folder", path)


def test_one_folder_too_many_gave_one_class_and_full_marks(tmp_path):
    folders(tmp_path / "photos", milk=3, tea=3)
    with pytest.warns(UserWarning) as said:
        data = load("folder", tmp_path)
    said = " ".join(str(w.message) for w in said)
    assert "'photos' as a class, with the folders 'milk', 'tea' in it" in said and "one class only, 'photos'" in said
    with pytest.raises(DataError, match="one class only, 'photos'; give photos of two"):
        training.fit_or_load(training.reference("probe", "folder", tmp_path), data)


def test_splits_inside_of_classes_are_no_splits_but_said(tmp_path):
    for name in ("milk", "soup", "tea"):
        folders(tmp_path / name, train=2, test=1)
    with pytest.warns(UserWarning, match=r"with the folders 'test', 'train' in it; if these are classes or splits"):
        load("folder", tmp_path)


def test_a_folder_into_which_the_built_in_set_was_rendered_says_so(tmp_path):
    folders(tmp_path, milk=2)
    folders(tmp_path / "0123456789abcdef", images=2)
    with pytest.raises(DataError, match=r"0123456789abcdef: images of the built-in data set, .* delete this folder"):
        load("folder", tmp_path)


def test_a_misspelt_column_is_named(tmp_path):
    with pytest.warns(UserWarning, match=r"columns that are not used: 'spilt', 'truth' \(known: image, label"):
        load("folder", table(tmp_path, "image,label,spilt,truth\n0.jpg,a,test,x\n1.jpg,b,train,\n"))
