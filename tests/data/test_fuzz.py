"""Hundreds of damaged inputs at the doors: each is read rightly or refused in a line that can be printed."""

from __future__ import annotations

import io
import json
import random

import numpy as np
import pytest
from PIL import Image

from retailkit.config import UserError
from retailkit.data import load
from retailkit.data.boxes import load_coco
from retailkit.data.images import read_image, read_mask
from retailkit.data.spreadsheet import read_table

ROWS = [["image", "label", "text"], *([f"p{n}.jpg", f"milk {n % 3}", f"fresh {n}"] for n in range(8))]
PIECES = [b'"', b",", b";", b"\n", b"\r\n", b"\0", b"\xff", b'""', b',"', b'",', b" ", b"=", b"\xef\xbb\xbf", b"a,b"]
MODES = {"JPEG": "RGB", "PNG": "RGBA", "WEBP": "RGB", "BMP": "RGB", "GIF": "P", "TIFF": "F", "PPM": "RGB"}


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Change a few bytes, zero some, cut the end off, put some before, or repeat a part."""
    content, start = bytearray(content), rng.randrange(len(content))
    if rng.random() < 0.2:
        content[start : start + 64] = bytes(len(content[start : start + 64]))
    if rng.random() < 0.1:
        content[:0] = rng.randbytes(9)
    for _ in range(rng.choice([1, 1, 3, 20])):
        content[rng.randrange(len(content))] = rng.randrange(256)
    if rng.random() < 0.3:
        content = content[: rng.randrange(len(content))]
    if rng.random() < 0.1:
        content += content[rng.randrange(len(content) + 1) :]
    return bytes(content)


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


@pytest.mark.parametrize("kind", MODES)
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.filterwarnings("ignore")
def test_damaged_images_are_read_or_refused(tmp_path, kind, seed):
    out, rng = io.BytesIO(), random.Random(f"{kind}{seed}")
    noise = np.random.default_rng(seed).integers(0, 255, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(noise).convert(MODES[kind]).save(out, kind)
    (tmp_path / "x").write_bytes(out.getvalue()[: out.tell() // 2])
    assert refused(read_image, tmp_path / "x") is None, "half an image is no image"
    (tmp_path / "x").write_bytes(damaged(out.getvalue(), rng))
    pixels = refused(read_image, tmp_path / "x")
    assert pixels is None or (pixels.dtype == np.uint8 and pixels.shape[2] == 3)
    mask = refused(read_mask, tmp_path / "x", (20, 24))
    assert mask is None or (mask.dtype == bool and mask.shape == (20, 24))


@pytest.mark.parametrize("seed", range(30))
def test_damaged_mask_arrays_are_read_or_refused(tmp_path, seed):
    np.save(tmp_path / "m.npy", np.eye(12))
    (tmp_path / "m.npy").write_bytes(damaged((tmp_path / "m.npy").read_bytes()[:300], random.Random(seed)))
    refused(read_mask, tmp_path / "m.npy", (12, 12))


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
