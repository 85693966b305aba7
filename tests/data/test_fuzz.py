"""Hundreds of damaged inputs at the doors: each is read rightly or refused in a line that can be printed."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from PIL import Image

from retailkit.config import UserError
from retailkit.data import load
from retailkit.data.boxes import load_coco
from retailkit.data.images import read_mask
from retailkit.data.spreadsheet import read_table

ROWS = [["image", "label", "text"], *([f"p{n}.jpg", f"milk {n % 3}", f"fresh {n}"] for n in range(8))]
PIECES = [b'"', b",", b";", b"\n", b"\r\n", b"\0", b"\xff", b'""', b',"', b'",', b" ", b"=", b"\xef\xbb\xbf", b"a,b"]


def refused(read, *arguments):
    """Return what was read, or None where it was refused in a message that can be printed."""
    try:
        return read(*arguments)
    except UserError as error:
        assert str(error).encode() and "\n" not in str(error).replace("\\n", "")
        return None


def solid(text: str) -> str:
    return "".join(sorted(c for c in text if c not in '",; \n\r\ufeff='))


@pytest.mark.parametrize("seed", range(200))
def test_damaged_tables_lose_nothing_without_a_word(tmp_path, seed):
    rng = random.Random(seed)
    content = "\n".join(",".join(row) for row in ROWS).encode()
    for _ in range(rng.choice([1, 2, 3])):
        at = rng.randrange(len(content))
        content = content[:at] + rng.choice(PIECES) + content[at + rng.choice([0, 0, 1]) :]
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    table = refused(read_table, path)
    if table is not None:
        values = [*table.columns, *table.to_numpy().ravel()]
        assert solid("".join(values).lower()) == solid(content.decode().lower())
        assert all(value.count(".jpg") <= 1 for value in values), "a row was swallowed"


@pytest.mark.parametrize("seed", range(30))
def test_damaged_mask_arrays_are_read_or_refused(tmp_path, seed):
    rng = random.Random(seed)
    np.save(tmp_path / "m.npy", np.eye(12))
    content = bytearray((tmp_path / "m.npy").read_bytes()[: rng.choice([60, 300, 2000])])
    for _ in range(rng.choice([0, 1, 20])):
        content[rng.randrange(len(content))] = rng.randrange(256)
    (tmp_path / "m.npy").write_bytes(content)
    mask = refused(read_mask, tmp_path / "m.npy", (12, 12))
    assert mask is None or (mask.dtype == bool and mask.shape == (12, 12))


WRONG = [None, True, -1, 1e400, "7", [], {}, "x" * 5000, 10**30, float("nan"), "\ud800"]


@pytest.mark.parametrize("seed", range(60))
def test_damaged_boxes_are_read_or_refused(tmp_path, seed):
    rng = random.Random(seed)
    Image.new("RGB", (60, 40)).save(tmp_path / "a.png")
    content = {
        "images": [{"id": 7, "file_name": "a.png", "width": 60, "height": 40}],
        "categories": [{"id": 3, "name": "milk"}],
        "annotations": [{"id": 5, "image_id": 7, "category_id": 3, "bbox": [10, 5, 20, 30], "iscrowd": 0}],
    }
    part = rng.choice([content, *(row for rows in content.values() for row in rows), content["annotations"][0]["bbox"]])
    key = rng.choice(list(part) if isinstance(part, dict) else range(4))
    part[key] = rng.choice(WRONG)
    (tmp_path / "b.json").write_text(json.dumps(content))
    scenes = refused(load_coco, tmp_path / "b.json", tmp_path)
    assert scenes is None or (scenes.sizes == [(40, 60)] and scenes.classes)


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.filterwarnings("ignore")
def test_folders_of_odd_names_and_files_are_read_or_refused(tmp_path, seed):
    rng, root = random.Random(seed), tmp_path / "photos"
    names = ["milk", "tea", "train", "$5", "[b]", "-p", "a\nb", "é", "e\u0301", "CON", "x" * 200, " ", "test", "%s{}"]
    count = 0
    for label in rng.sample(names, 4):
        for name in rng.sample(names, 3):
            count += 1
            (root / label).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (9, 9), (count * 9, 0, 0)).save(root / label / f"{name}.png")
    data = refused(load, "folder", root)
    if data is not None:
        assert len(data) == count and data.split("train", 16)[0].image.shape == (3, 16, 16)
