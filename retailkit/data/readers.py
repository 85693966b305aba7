"""Readers of published data sets, in the layout in which they are published."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from retailkit.config import DataError, pick, read_yaml
from retailkit.data import spreadsheet
from retailkit.data.folder import load as load_folder
from retailkit.data.table import SPLITS, ProductData, make_table

# What each published set is: `licence`, `citation`, `url` and `size`.
PUBLISHED = read_yaml(Path(__file__).with_name("published.yaml"))


# -- Grocery Store.

SUBSETS = ("fruit", "packages", "vegetables")  # folders of the photos, there with a capital
RUN = 5  # photos per group


def load_grocery_store(root: str | Path, *, subset: str | None = None) -> ProductData:
    """Read the Grocery Store data set: 81 fine and 43 coarse classes of fruit, vegetables and cartons.

    Splits are the published ones. `group` is a run of five consecutive file numbers of a class. (The published numbers
    look shuffled, so that such a run keeps fewer near-duplicates together than one would hope.)

    Args:
        root: the folder with `classes.csv`, `train.txt` and so on (`dataset` in the repository).
        subset: `fruit`, `packages` (31 cartons) or `vegetables`; None or "" keeps all 81 classes.

    Raises:
        UsageError: unknown subset.
        DataError: the folder, a list (but `test.txt`) or a listed photo is missing, or a line is broken.
    """
    root, cure = Path(root), "run `retailkit fetch grocery_store` or point --root at the folder with classes.csv"
    area = pick(SUBSETS, subset, "subset").capitalize() if subset else ""
    if not (root / "classes.csv").is_file():
        raise DataError(f"{root}: no Grocery Store data set here (classes.csv is missing); {cure}")
    table = spreadsheet.read_table(root / "classes.csv")
    if table.shape[1] < 3:
        raise DataError(f"{root / 'classes.csv'}: not the published table of classes; delete it and {cure}")
    names = {number: (fine, coarse) for fine, number, coarse, *_ in table.itertuples(index=False)}
    rows = []
    for split in SPLITS:
        if (root / f"{split}.txt").is_file():
            rows += _read_grocery_list(root, split, names, area, cure)
        elif split != "test":
            raise DataError(f"{root / split}.txt: missing; {cure}")
    classes = {row["label"] for row in rows} if subset else {fine for fine, _ in names.values()}
    hints = {f"missing_{split}": f"{root / split}.txt is not there, {cure}" for split in SPLITS}
    return ProductData("grocery_store", make_table(rows), sorted(classes), PUBLISHED["grocery_store"] | hints)


def _read_grocery_list(
    root: Path, split: str, names: Mapping[str, tuple[str, str]], area: str, cure: str
) -> list[dict[str, str]]:
    """Read `<split>.txt`: lines of photo, fine and coarse class number; `names` has the classes by fine number."""
    path, rows = root / f"{split}.txt", []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if not line.strip():
            continue
        photo, *fields = (field.strip() for field in line.split(","))
        if len(fields) != 2 or fields[0] not in names:
            what = f"{line!r} is not a photo, its class (a number in classes.csv) and its coarse class"
            raise DataError(f"{path} line {number}: {what}; {cure}")
        if not (root / photo).is_file():
            raise DataError(f"{path} line {number}: {root / photo} is missing; restore it or {cure}")
        label, coarse = names[fields[0]]
        digits = re.search(r"(\d+)\.\w+$", photo)
        run = (int(digits[1]) - 1) // RUN if digits else 0  # files are numbered from 1
        row = {"image": str(root / photo), "label": label, "coarse": coarse, "split": split}
        if f"/{area}/" in photo or not area:
            rows.append(row | {"group": f"{split}/{label}/{run}"})
    return rows


# -- Grozi-120.

LISTS = ("recog_val_test.json", "recog_val_test_classes_files.json")  # of the crops: github.com/jonathan016/rpdr


def load_grozi120(root: str | Path) -> ProductData:
    """Read Grozi-120: packshots of 120 products to learn from, crops of shelf videos to recognise.

    The packshots (`inVitro`) are the training split. The first half of each class's crops (`inSitu`) by file number is
    `val` and the second half `test`; crops are video frames, so a cut in the middle keeps similar frames together.
    `group` is a run of consecutive frames in one split; each packshot is its own.

    A published list names 1,200 crops to test on, ten of each product, and up to ten others each to choose settings
    on. Where its two files (`LISTS`) lie in the folder or in its `val_test`, they decide the split instead, and all
    other crops are left out. It deals the frames of a video at random: those of `val` and `test` are often neighbours.

    Masks are `inVitro/<id>/web/masks/maskN.png`, where there. Labels are the names of `Index/UPC_index.txt`, else
    `grozi-001` and so on.

    Args:
        root: the folder with `inVitro` and `inSitu`; images may be JPEG or PNG.

    Raises:
        DataError: the folder is missing or holds no packshots, a list is broken, or some of its crops are missing.
    """
    root, cure = Path(root), "get Grozi-120 from its page (see `retailkit fetch grozi120`) or point --root at it"
    if not (root / "inVitro").is_dir():
        raise DataError(f"{root}: no Grozi-120 data set here (inVitro is missing); {cure}")
    rows = []
    for number, folder in _numbered_folders(root / "inVitro"):
        masks = _numbered_files(folder / "web" / "masks", "mask")
        shots = _numbered_files(folder / "web" / "PNG", "web") | _numbered_files(folder / "web" / "JPEG", "web")
        for n, path in sorted(shots.items()):
            row = {"image": path, "label": number, "split": "train", "mask": masks.get(n, "")}
            rows.append(row | {"group": f"packshot/{number}/{n}"})
    if not rows:
        raise DataError(f"{root / 'inVitro'}: no packshots (<id>/web/JPEG/webN.jpg or <id>/web/PNG/webN.png); {cure}")
    crops = {number: _numbered_files(at / "video", "video") for number, at in _numbered_folders(root / "inSitu")}
    listed = _read_grozi_lists(root, crops)
    for number, files in crops.items():
        before, run = None, 0
        for n, split in sorted((_halves(files) if listed is None else listed.get(number, {})).items()):
            if n in files:
                run = run if before == (split, n - 1) else n
                before = split, n
                group = f"video/{number}/{run}"
                rows.append({"image": files[n], "label": number, "split": split, "group": group})
    names, table = _read_grozi_names(root / "Index" / "UPC_index.txt"), make_table(rows)
    table["label"] = [names.get(number, f"grozi-{number:03d}") for number in table["label"]]
    hint = f"{root / 'inSitu'} has no crops of it (<id>/video/videoN.png), {cure}"
    info = PUBLISHED["grozi120"] | {"missing_test": hint, "missing_val": hint}
    return ProductData("grozi120", table, sorted(set(table["label"])), info, fit="pad")


def _read_grozi_names(path: Path) -> dict[int, str]:
    """Return product names by number from lines of number, UPC and name; empty without the file."""
    if not path.is_file():
        return {}
    lines = re.findall(r"^\s*(\d+)[\s,;]+\d+[\s,;]+(\S.*?)\s*$", path.read_text(errors="replace"), re.MULTILINE)
    twice = Counter(name for _, name in lines)
    return {int(n): name if twice[name] == 1 else f"{name} ({n})" for n, name in lines}


def _read_grozi_lists(root: Path, crops: Mapping[int, Mapping[int, str]]) -> dict[int, dict[int, str]] | None:
    """Return the split of each listed crop by product and file number; None where there are no lists."""
    found = [path for name in LISTS for path in (root / name, root / "val_test" / name) if path.is_file()]
    if not found:
        return None
    if [path.name for path in found] != list(LISTS):
        raise DataError(f"{root}: {' and '.join(LISTS)} make the list together; put each there once, or neither")
    listed: dict[int, dict[int, str]] = {}
    try:
        splits, files = (json.loads(path.read_text()) for path in found)
        for product, parts in splits.items():  # counted from 0
            for split in ("val", "test"):
                for index in parts[split]:
                    owner, name = files["classes_files"][index]  # of the crop at this place among all crops
                    if owner != int(product):
                        raise ValueError(name)
                    listed.setdefault(owner + 1, {})[int(re.fullmatch(r"video(\d+)\.jpg", name)[1])] = split
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        cure = "get both again or remove both"
        raise DataError(f"{found[0]}: it and {LISTS[1]} are not the published list; {cure}") from None
    for split in ("val", "test"):  # a part of its crops would be another list
        wanted = [(product, n) for product, numbers in listed.items() for n in numbers if numbers[n] == split]
        lacking = [(product, n) for product, n in wanted if n not in crops.get(product, {})]
        if 0 < len(lacking) < len(wanted):
            what = f"{len(lacking)} crops that {LISTS[0]} has in {split} are missing, the first: {{}}/video/video{{}}"
            raise DataError(f"{root / 'inSitu'}: {what.format(*lacking[0])}; restore them, or remove the list")
    return listed


def _halves(crops: Mapping[int, str]) -> dict[int, str]:
    """Return the split of each crop of a product by file number."""
    return {n: "val" if i < len(crops) // 2 else "test" for i, n in enumerate(sorted(crops))}


def _numbered_folders(folder: Path) -> list[tuple[int, Path]]:
    return sorted((int(path.name), path) for path in folder.glob("*/") if path.name.isdecimal())


def _numbered_files(folder: Path, stem: str) -> dict[int, str]:
    """Return the images `<stem>N.jpg` or `.png` of a folder by N; empty where there is no such folder."""
    pattern = re.compile(rf"{stem}(\d+)\.(?:jpe?g|png)", re.IGNORECASE)
    return {int(match[1]): str(path) for path in folder.glob("*") if (match := pattern.fullmatch(path.name))}


# -- CAPG-GP and DM4VM. Their images were not at hand when this was written, so that their layout is not certain.


def _load_folders(root: str | Path, *, name: str) -> ProductData:
    """Read `train` and `test` folders with a folder per class, or a `mapping.csv` with image, label and split."""
    root, mapping = Path(root), Path(root) / "mapping.csv"
    if not mapping.is_file() and not all((root / split).is_dir() for split in ("train", "test")):
        cure = "put `train` and `test` with a folder per class there, or a mapping.csv with image, label and split"
        raise DataError(f"{root}: no {name} data set here; {cure}")
    found = load_folder(mapping if mapping.is_file() else root)
    return replace(found, name=name, info=found.info | PUBLISHED[name])


load_capg_gp = partial(_load_folders, name="capg_gp")
load_dm4vm = partial(_load_folders, name="dm4vm")


# -- ImageNet-9.

VARIANTS = ("original", "mixed_same", "mixed_rand", "mixed_next", "only_fg", "only_bg_b", "only_bg_t", "no_fg", "in9l")
WITHOUT_FOREGROUND = ("only_bg_b", "only_bg_t", "no_fg")  # here a mask of the foreground is of no use
RELEASED = {"train": "train", "val": "test"}  # folder -> split: the paper tests on what is released as `val`


def load_imagenet9(root: str | Path, *, variant: str = "original") -> ProductData:
    """Read one variant of ImageNet-9: `<root>/<variant>/{train,val}/<NN_class>/*.JPEG`.

    Classes keep their number (`00_dog`), so that the next class of `mixed_next` is the next one here. The released
    `val` is the test split. `mask` is `<root>/fg_mask/<split>/<class>/<stem>.npy` where there is one and the variant
    shows the foreground; `group` is the photo that the foreground (or, without one, the background) is from.

    Args:
        root: the folder with a folder for each variant.
        variant: key of `VARIANTS`; `in9l` is the larger set of originals.

    Raises:
        UsageError: unknown variant.
        DataError: the folder is missing or holds no images in class folders; the message names it and the cure.
    """
    pick(VARIANTS, variant, "variant of ImageNet-9")
    root, info = Path(root), PUBLISHED["imagenet9"]
    cure = f"get it from {info['url']}, or point --root at the folder with the variants"
    if not root.is_dir():
        raise DataError(f"{root}: no ImageNet-9 here; {cure}")
    if not (root / variant).is_dir():
        have = ", ".join(name for name in VARIANTS if (root / name).is_dir()) or "none"
        raise DataError(f"{root / variant}: no such variant here (there: {have}); {cure}")
    rows = []
    for folder in RELEASED:
        for at in sorted(path for path in (root / variant / folder).glob("*/") if not path.name.startswith(".")):
            if not re.fullmatch(r"\d\d_\w+", at.name):
                raise DataError(f"{at}: not a class of ImageNet-9 (such as 00_dog); move it out of {at.parent}")
            rows += _read_imagenet9_class(root, variant, folder, at)
    if not rows:
        raise DataError(f"{root / variant}: no images (train or val/<NN_class>/*.JPEG); {cure}")
    hints = {f"missing_{RELEASED[folder]}": f"{root / variant / folder} is not there; {cure}" for folder in RELEASED}
    hints["missing_val"] = "ImageNet-9 has none; hold out part of train"
    classes = sorted({row["label"] for row in rows})
    # The released images are 224 px wide and high; the paper uses them whole.
    return ProductData("imagenet9", make_table(rows), classes, info | hints, fit="stretch")


def _read_imagenet9_class(root: Path, variant: str, folder: str, at: Path) -> list[dict[str, str]]:
    masks = {} if variant in WITHOUT_FOREGROUND else (root / "fg_mask" / folder / at.name).glob("*.npy")
    there, rows = {path.stem.removeprefix("fg_"): str(path) for path in masks}, []
    for path in sorted(path for path in at.iterdir() if path.suffix.lower() in (".jpeg", ".jpg", ".png")):
        pasted = re.fullmatch(r"fg_(.+)_bg_.+", path.stem)
        photo = pasted[1] if pasted else path.stem
        row = {"image": str(path), "label": at.name, "split": RELEASED[folder]}
        rows.append(row | {"mask": there.get(photo, ""), "group": f"{folder}/{photo}"})
    return rows
