"""Readers of published data sets, on small folders of their layout and on the real photos where they lie."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retailkit.config import UsageError
from retailkit.data import load, ocr
from retailkit.data.images import read_mask
from retailkit.data.readers import LISTS
from retailkit.data.table import DataError, Word

CLASSES = [("Kiwi", "Kiwi", "Fruit"), ("Apple-Juice", "Juice", "Packages"), ("Orange-Juice", "Juice", "Packages")]


def draw(path: Path, colour: str = "red", size: tuple[int, int] = (16, 12)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def store(tmp_path) -> Path:
    """A Grocery Store of three classes: 12 train and 2 val photos each, no test.txt."""
    root = tmp_path / "store"
    lines = ["Class Name (str),Class ID (int),Coarse Class Name (str),Coarse Class ID (int),Iconic,Description"]
    lines += [f"{fine},{i},{coarse},{i > 0:d},/i.jpg,/d.txt" for i, (fine, coarse, _) in enumerate(CLASSES)]
    root.mkdir()
    (root / "classes.csv").write_bytes("\r\n".join(lines).encode())
    for split, count in (("train", 12), ("val", 2)):
        rows = []
        for i, (fine, coarse, area) in enumerate(CLASSES):
            for n in range(1, count + 1):
                name = f"{split}/{area}/{coarse}/{fine}/{fine}_{n:03d}.jpg"
                draw(root / name)
                rows.append(f"{name}, {i}, {i > 0:d}\n")
        (root / f"{split}.txt").write_text("".join(rows))
    return root


def test_grocery_store_has_published_labels_splits_groups_and_subsets(store):
    data = load("grocery_store", store)
    assert data.classes == ["Apple-Juice", "Kiwi", "Orange-Juice"]
    assert data.table["split"].value_counts().to_dict() == {"train": 36, "val": 6}
    juice = data.table[data.table["label"] == "Apple-Juice"]
    assert set(juice["coarse"]) == {"Juice"} and juice["image"].str.contains("Apple-Juice").all()
    assert load("grocery_store", store, subset="packages").classes == ["Apple-Juice", "Orange-Juice"]
    with pytest.raises(UsageError, match="did you mean 'packages'"):
        load("grocery_store", store, subset="package")
    groups = data.table.groupby("group")
    assert groups.size().max() == 5 and len(groups) == 3 * 3 + 3, "runs of five file numbers"
    assert (groups[["label", "split"]].nunique() == 1).all().all()


def test_only_the_test_list_may_be_missing(store):
    data = load("grocery_store", store)
    with pytest.raises(DataError, match=r"no 'test' split.*test\.txt.*retailkit fetch grocery_store"):
        data.split("test")
    (store / "train.txt").unlink()
    with pytest.raises(DataError, match=r"train\.txt: missing"):
        load("grocery_store", store)
    (store / "classes.csv").write_text("name;id\nKiwi;0\n")
    with pytest.raises(DataError, match=r"classes\.csv: not the published"):
        load("grocery_store", store)


BROKEN = {
    "999.jpg, 0, 0": r"Kiwi_999\.jpg is missing",
    "005.jpg, 81, 0": r"005\.jpg, 81, 0' is not a photo, its class",
    "005.jpg, ², 0": "², 0' is not a photo",
    "005.jpg, 0": r"005\.jpg, 0' is not a photo",
}


@pytest.mark.parametrize(("line", "message"), BROKEN.items())
def test_a_broken_line_names_list_line_and_cure(store, line, message):
    text = (store / "train.txt").read_text()
    (store / "train.txt").write_text(text.replace("005.jpg, 0, 0", line, 1))
    with pytest.raises(DataError, match=rf"train\.txt line 5: .*{message}.*retailkit fetch") as error:
        load("grocery_store", store)
    assert "\n" not in str(error.value)


def test_descriptions_iconic_texts_and_file_names_never_become_text(store, monkeypatch):
    """What names the class may not come in as text: only what the engine reads on the photo itself."""
    (store / "d.txt").write_text("A juice of oranges without pulp")
    draw(store / "i.jpg")
    monkeypatch.setattr(ocr, "read_words", lambda image: [Word("PULP", (1, 1, 9, 9))])
    raw = load("grocery_store", store)
    assert (raw.table["text"] == "").all()
    read = ocr.add_text(raw)
    assert (read.table["text"] == "PULP").all() and not read.table["image"].str.endswith("i.jpg").any()
    folders = load("folder", Path(raw.table["image"][0]).parent.parent)
    assert (folders.table["text"] == "").all(), "nor does the name of a folder or file"


@pytest.fixture
def grozi(tmp_path) -> Path:
    """Grozi-120 with two products: packshots with and without masks, JPEG and PNG, 5 and 1 crops."""
    root = tmp_path / "grozi"
    for packshot in ("1/web/JPEG/web1.jpg", "1/web/JPEG/web2.jpg", "2/web/PNG/web1.png"):
        draw(root / "inVitro" / packshot)
    draw(root / "inVitro/1/web/masks/mask2.png", "white")
    for crop in (*(f"1/video/video{n}.png" for n in (1, 2, 3, 10, 11)), "2/video/video7.jpg"):
        draw(root / "inSitu" / crop)
    return root


def crops_of(data) -> dict[str, list[str]]:
    table = data.table
    return {s: [Path(p).stem for p in table.loc[table["split"] == s, "image"]] for s in ("val", "test")}


def test_grozi_packshots_train_and_crops_test_in_halves_by_frame_number(grozi):
    draw(grozi / "inVitro/1/web/PNG/web1.png")  # a cut-out of web1.jpg: the photo is preferred
    data = load("grozi120", grozi)
    train = data.table[data.table["split"] == "train"]
    assert data.classes == ["grozi-001", "grozi-002"]
    assert [Path(p).name for p in train["image"]] == ["web1.jpg", "web2.jpg", "web1.png"]
    assert [Path(p).name if p else "" for p in train["mask"]] == ["", "mask2.png", ""]
    assert data.split("train", size=16)[1].mask.shape == (1, 16, 16)
    assert crops_of(data) == {"val": ["video1", "video2"], "test": ["video3", "video10", "video11", "video7"]}
    groups = data.table.query("split != 'train'").groupby("group")
    assert (groups["split"].nunique() == 1).all() and len(groups) == 4  # 1-2, 3, 10-11 and 7


def published(root: Path, val: list[int], test: list[int], product: int = 0) -> None:
    """Write a list as published: places among all crops, which are sorted by name, products counted from 0."""
    names = [[0, f"video{n}.jpg"] for n in (1, 10, 11, 2, 3)] + [[1, "video7.jpg"]]
    root.mkdir(exist_ok=True)
    (root / LISTS[1]).write_text(json.dumps({"classes_files": names}))
    (root / LISTS[0]).write_text(json.dumps({str(product): {"val": val, "test": test}}))


@pytest.mark.parametrize("folder", ["", "val_test"])
def test_grozi_takes_its_crops_from_the_published_list(grozi, folder):
    published(grozi / folder, val=[4, 3], test=[0, 1])
    data = load("grozi120", grozi)
    wanted = {"val": ["video2", "video3"], "test": ["video1", "video10"]}
    assert crops_of(data) == wanted, "by number; the others are left out"
    groups = data.table.query("split != 'train'").groupby("group")
    assert (groups["split"].nunique() == 1).all() and len(groups) == 3  # 1, 2-3 and 10


def test_grozi_with_one_split_of_the_list_alone(grozi):
    """The crops of one split may be all that somebody has; part of a split would be another list."""
    published(grozi, val=[4, 3], test=[0, 1])
    for n in (1, 10):
        (grozi / f"inSitu/1/video/video{n}.png").unlink()
    data = load("grozi120", grozi)
    assert data.splits == ["train", "val"]
    with pytest.raises(DataError, match="has no crops"):
        data.split("test")
    draw(grozi / "inSitu/1/video/video1.png")
    says = r"1 crops that recog_val_test\.json has in test are missing, the first: 1/video/video10; restore"
    with pytest.raises(DataError, match=says):
        load("grozi120", grozi)


def test_grozi_with_a_broken_list_or_without_packshots(grozi):
    def refused(says):
        with pytest.raises(DataError, match=says):
            load("grozi120", grozi)

    published(grozi, val=[0], test=[5])  # a crop of the other product
    refused(r"recog_val_test\.json: .* not the published list")
    (grozi / LISTS[0]).write_text("[1, 2]")
    refused("not the published list")
    (grozi / LISTS[0]).unlink()
    refused("make the list together")
    shutil.rmtree(grozi / "inVitro")
    refused(r"inVitro is missing.*retailkit fetch grozi120")
    (grozi / "inVitro").mkdir()
    refused("no packshots")


def test_grozi_takes_names_from_its_index(grozi):
    (grozi / "Index").mkdir()
    (grozi / "Index/UPC_index.txt").write_text("1\t012345678905\tCheerios\n2\t012345678912\tTide, small\n")
    assert load("grozi120", grozi).classes == ["Cheerios", "Tide, small"]
    (grozi / "Index/UPC_index.txt").write_text("1 012345678905 Snickers\n2 012345678912 Snickers\n")
    assert load("grozi120", grozi).classes == ["Snickers (1)", "Snickers (2)"]


def test_the_real_grocery_store(real_data):
    data = load("grocery_store", real_data("grocery_store"))
    counts = data.table["split"].value_counts()
    assert (counts["train"], counts["val"], len(data.classes)) == (2640, 296, 81)
    assert data.table["coarse"].nunique() == 43
    assert data.split("val")[7].image.shape == (3, 224, 224)
    assert len(load("grocery_store", real_data("grocery_store"), subset="packages").classes) == 31


def test_the_real_grozi120(real_data):
    data = load("grozi120", real_data("grozi120"))
    counts = data.table["split"].value_counts()
    assert counts["train"] == 675 and len(data.classes) == 120 and counts["val"] + counts["test"] >= 1169
    assert data.split("test")[7].image.shape == (3, 224, 224)


@pytest.mark.parametrize("name", ["capg_gp", "dm4vm"])
def test_sets_of_uncertain_layout_read_class_folders_or_a_mapping(tmp_path, name):
    for place in ("train/cola", "train/soda", "test/cola", "test/soda"):
        draw(tmp_path / place / "1.jpg")
    found = load(name, tmp_path)
    assert found.name == name and found.classes == ["cola", "soda"] and found.splits == ["train", "test"]
    assert "Srivastava" in found.info["citation"]
    rows = ["image,label,split", "train/cola/1.jpg,tonic,train", "test/soda/1.jpg,tonic,test"]
    (tmp_path / "mapping.csv").write_text("\n".join(rows))
    assert load(name, tmp_path).classes == ["tonic"]
    with pytest.raises(DataError, match=r"mapping\.csv"):
        load(name, tmp_path / "train")


# -- ImageNet-9.

ANIMALS = ["00_dog", "01_bird", "02_vehicle"]
COLOURS = {"original": "red", "only_bg_b": "black", "mixed_rand": "blue"}


@pytest.fixture
def imagenet9(tmp_path):
    """Three variants, two photos a class in train and val; masks of val's."""
    base = tmp_path / "in9"
    for split in ("train", "val"):
        for number, label in enumerate(ANIMALS):
            for n in (1, 2):
                stem = f"n0{number}_{n}{split}"
                for variant, colour in COLOURS.items():
                    name = f"fg_{stem}_bg_n09_{n}" if variant == "mixed_rand" else stem
                    draw(base / variant / split / label / f"{name}.JPEG", colour, (24, 20))
                if split == "val":
                    (base / "fg_mask/val" / label).mkdir(parents=True, exist_ok=True)
                    mask = np.zeros((20, 24), np.uint8)
                    mask[:5, : 6 * n] = 1
                    np.save(base / "fg_mask/val" / label / f"{stem}.npy", mask)
    return base


def test_classes_keep_their_number_and_val_is_what_is_tested_on(imagenet9):
    data = load("imagenet9", imagenet9)
    assert data.classes == ANIMALS and data.splits == ["train", "test"]
    assert data.table.groupby("split").size().to_dict() == {"train": 6, "test": 6}
    assert data.split("test", size=16).labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert (data.table["text"] == "").all()


@pytest.mark.parametrize("variant", ["original", "mixed_rand"])
def test_masks_belong_to_the_foreground_photo(imagenet9, variant):
    data = load("imagenet9", imagenet9, variant=variant)
    test = data.table[data.table["split"] == "test"]
    assert (data.table.loc[data.table["split"] == "train", "mask"] == "").all()
    for n, path in enumerate(test["mask"]):
        assert read_mask(path, (20, 24)).sum() == 5 * 6 * (n % 2 + 1)
    sample = data.split("test", size=16)[1]  # no rim is cut off
    assert sample.mask[0, :4, :8].all() and not sample.mask[0, 5:].any()
    assert test["group"].tolist() == load("imagenet9", imagenet9).table.query("split == 'test'")["group"].tolist()


def test_what_is_missing_is_named_with_its_cure(imagenet9, tmp_path):
    shutil.rmtree(imagenet9 / "only_bg_b/train")
    background = load("imagenet9", imagenet9, variant="only_bg_b")
    assert background.splits == ["test"] and not background.has("mask"), "without a product there is no mask"
    (imagenet9 / "mixed_rand/val/dogs").mkdir()
    (imagenet9 / "only_fg").mkdir()
    cases = {
        r"no 'train' split.*only_bg_b.train is not there; get it from https": lambda: background.split("train"),
        r"no 'val' split.*hold out part of train": lambda: background.split("val"),
        r"no ImageNet-9 here; get it from https.*--root": lambda: load("imagenet9", tmp_path / "nowhere"),
        r"no_fg: no such variant here \(there: original,": lambda: load("imagenet9", imagenet9, variant="no_fg"),
        r"dogs: not a class of ImageNet-9 \(such": lambda: load("imagenet9", imagenet9, variant="mixed_rand"),
        r"only_fg: no images": lambda: load("imagenet9", imagenet9, variant="only_fg"),
    }
    for says, read in cases.items():
        with pytest.raises(DataError, match=says):
            read()
    with pytest.raises(UsageError, match="did you mean 'mixed_rand'"):
        load("imagenet9", imagenet9, variant="mixed_rnd")
