"""The doors for photos, tables and JSON; see `hostile.models` and `hostile.names` for the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hostile import Case, cases
from hostile.images import HEAVY, IMAGES, SIDE
from hostile.tables import BOXES, RECORD, RECORDS, SUFFIXES, TABLES, WORDS, YAML


def put(path: Path, given: Any) -> Path:
    """Write a text or bytes, or make what a function makes there."""
    if callable(given):
        given(path)
    else:
        path.write_bytes(given.encode("utf-8", "surrogatepass") if isinstance(given, str) else given)
    return path


def image(shop, name, given, value) -> str:
    from retailkit.data.images import read_image

    path = put(shop.folder / "photos" / "milk" / name, given)
    said = shop.cli("check", "--root", "photos", names=name)
    if value is None:
        return said.splitlines()[0]
    size, colour = value if isinstance(value[0], tuple) else ((SIDE, SIDE), value)
    pixels = read_image(path)
    assert pixels.shape[1::-1] == size and abs(pixels[0, 0].astype(int) - colour).max() <= 3, pixels[0, 0]
    return f"{size[0]} x {size[1]} pixels, {tuple(map(int, colour))} at the top left"


def table(shop, name, given, value) -> str:
    from retailkit.data import load

    path = put(shop.folder / (name if name in SUFFIXES else "t.csv"), given)
    shop.cli("check", "--root", path.name, names=path.name)
    data = load("folder", path.name)
    assert data.classes == value, data.classes
    return f"{len(data)} images of {len(value)} classes"


def boxes(shop, name, given, value) -> str:
    from retailkit.data.boxes import load_coco

    found = load_coco(put(shop.folder / "b.json", given), shop.folder)
    rows = [tuple(round(side, 3) for side in row) for row in found.boxes[0].tolist()]
    assert rows == value, rows
    return f"{len(rows)} box: {rows[0]}"


def words(shop, name, given, value) -> str:
    """The words beside a photo of FineGrainOCR."""
    from retailkit.data import load, ocr

    for kind, suffix in (("Images", "jpg"), ("Text", "json")):
        (shop.folder / "f" / kind / "milk").mkdir(parents=True)
        content = IMAGES["upper case.JPG"][0] if suffix == "jpg" else given
        put(shop.folder / "f" / kind / "milk" / f"1.{suffix}", content)
    shop.cli("check", "--dataset", "finegrainocr", "--root", "f", names="json")
    found = load("finegrainocr", "f")
    shop.patch.setattr(ocr, "read_words", lambda pixels: [])
    text = ocr.add_text(found).table["text"].tolist()
    assert text == value, text
    return f"text {text[0]!r}"


def record(shop, name, given, value) -> str:
    put(shop.folder / "a.json", given)
    put(shop.folder / "b.json", json.dumps(RECORD))
    said = shop.cli("compare", "a.json", "b.json", "--html", "c.html", names="a.json")
    assert "<img src=x>" not in (shop.folder / "c.html").read_text()
    return " ".join(said.splitlines()[0].split())


def expected(shop, name, given, value) -> str:
    """What notebooks must show, where a run ends."""
    from retailkit.runs.expect import expectations

    put(shop.folder / "expected.yml", given)
    found = expectations(shop.folder / "expected.yml")
    assert not (shop.folder / "made").exists()
    return f"expectations of {', '.join(found['fast-synthetic'])}"


CASES: list[Case] = [
    *cases("photo", image, IMAGES, HEAVY),
    *cases("table", table, TABLES | SUFFIXES),
    *cases("boxes", boxes, BOXES),
    *cases("OCR words of a data set", words, WORDS),
    *cases("record", record, RECORDS),
    *cases("YAML", expected, YAML),
]
