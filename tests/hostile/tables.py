"""Tables, JSON and YAML made by code; a list is what is read, such as the classes of a table in alphabetical order."""

from __future__ import annotations

import copy
import json
import os
from functools import partial
from pathlib import Path
from typing import Any

from hostile import CLASSES, door, put
from hostile.images import JPEG

ROWS = [("image", "label"), *((f"photos/{label}/{n}.png", label) for label in CLASSES for n in range(3))]
TABLE = "\n".join(",".join(row) for row in ROWS)
BOTH, QUOTE, FIELDS = ["milk", "soup"], "a double quote does not end", "fields, but the header has"
UTF8, NUL, CONTROL = "not UTF-8 text; save the table as CSV UTF-8", "holds a NUL character", "the control character"
MISSING, KIND = "is missing; restore it", "is not a known kind of image"
LABELS = ("007", "NA", "<script>alert(1)</script>", "x" * 100_000, "\u200b", "\u202emilk")
FIRST = "photos/milk/0.png"
NO_FILES = ("none.png", "/dev/zero.png", "../../../../../../etc/passwd.png", "C:\\p\\0.png", "~/0.png", "$HOME/0.png",
            "https://example.org/0.png", "file:///etc/0.png", f"{'x' * 5000}.png", '"a\n.png"')  # fmt: skip
NO_IMAGES = ("photos/milk", "/dev/zero", "t.csv", "../../../../../../etc/passwd", "=1+1")


def with_columns(count: int) -> str:
    header, *rows = TABLE.split("\n")
    return "\n".join([header + "".join(f",c{n}" for n in range(count)), *rows])


def with_path(path: str) -> str:
    return TABLE.replace(FIRST, path)


def labelled(label: str) -> str:
    return TABLE.replace(",milk", f",{label}")


TABLES = {
    # Encodings, separators, quotes, line ends; `test_faults` has all that spreadsheets write.
    "UTF-8": (labelled("crème"), ["crème", "soup"]),
    "UTF-16 big end": (b"\xfe\xff" + TABLE.encode("utf-16-be"), BOTH),
    "UTF-16 without a mark": (TABLE.encode("utf-16-le"), NUL),
    "UTF-16 of odd length": (TABLE.encode("utf-16")[:-1], UTF8),
    "UTF-32": (TABLE.encode("utf-32"), NUL),
    "Shift JIS": (labelled("牛乳").encode("shift_jis"), UTF8),
    "UTF-7": (labelled("crème").encode("utf-7"), ["cr+AOg-me", "soup"]),
    "lone surrogate": (TABLE.encode().replace(b"milk\n", b"\xed\xa0\x80\n"), UTF8),
    "accents apart and together": (labelled("crème").replace("1.png,crème", "1.png,cre\u0300me"), ["crème", "soup"]),
    "sep=": ("sep=,\n" + TABLE, BOTH),
    "sep= of another sign": ("sep=;\n" + TABLE, "no column 'image'"),
    "mixed line ends": (TABLE.replace("\n", "\r\n", 3), BOTH),
    "quoted comma": (labelled('"milk, 3 %"'), ["milk, 3 %", "soup"]),
    "bare comma": (labelled("milk, 3 %"), FIELDS),
    "open quote": (TABLE.replace("0.png,milk", '0.png,"milk'), QUOTE),
    "quote over rows": (TABLE.replace("0.png,", '0.png,"').replace("2.png,milk", '2.png,milk"'), QUOTE),
    "doubled quotes": (labelled('"12"" milk"'), ['12" milk', "soup"]),
    "backslash before a quote": (labelled('"mi\\"lk"'), QUOTE),
    "ragged rows": (TABLE.replace("1.png,milk", "1.png,milk,x,y"), FIELDS),
    "short rows": (TABLE.replace("1.png,milk", "1.png"), "no label; fill it in"),
    "blank rows": (TABLE.replace("\n", "\n\n"), BOTH),
    "blanks around values": (TABLE.replace(",", " , "), BOTH),
    "empty columns at the end": (TABLE.replace("\n", ",,,\n"), BOTH),
    "no line end": (TABLE + "\n" * 9, BOTH),
    "rows of commas": (TABLE.replace("\n", "\n,,,\n"), BOTH),
    # Headers.
    "empty": ("", "empty; name the columns"),
    "header alone": ("image,label\n", "no rows; add one"),
    "no header": (TABLE.partition("\n")[2], "no column 'image'"),
    "header twice": (TABLE.replace("image,label", "image,label,Label"), "more than one column 'label'"),
    "1,000 columns": (with_columns(1000), BOTH),
    "100,000 columns": (with_columns(100_000), "is the separator right?"),
    "formula in the header": (TABLE.replace("image,label", "image,label,=cmd()"), BOTH),
    "split of no name": (TABLE.replace("label", "label,split", 1).replace(",milk", ",milk,trian"), "unknown split"),
    # What is in the cells.
    "NUL": (labelled("mi\0lk"), NUL),
    "nothing but bytes": (b"\x01\x02\x03" * 99, CONTROL),
    "a program": (b"\x7fELF\x02\x01\x01" + bytes(99), CONTROL),
    **{f"label {ascii(text)[:20]}": (labelled(text), sorted([text, "soup"])) for text in LABELS},
    **{f"label {text!a}": (labelled(text), CONTROL) for text in ("mi\alk", "mi\x1b[2Jlk")},
    "label of a formula": (labelled("'=1+1"), ["=1+1", "soup"]),
    "labels alike but for case": (TABLE.replace("0.png,milk", "0.png,Milk"), ["Milk", "milk", "soup"]),
    "cell of 1 MB": (TABLE.replace("label", "label,text", 1).replace("0.png,milk", "0.png,milk," + "x" * 10**6), QUOTE),
    # Paths.
    **{f"path {path[:40]!a}": (with_path(path), MISSING) for path in NO_FILES},
    **{f"path {path!a}": (with_path(path), KIND) for path in NO_IMAGES},
    "path up and down": (with_path("../shop/photos/milk/0.png"), BOTH),
    "path of Windows": (TABLE.replace("/", "\\"), BOTH),
    "path of NUL": (with_path("a\0.png"), NUL),
    "the same photo twice": (TABLE + f"\n{FIRST},soup", BOTH),
    # Names of the file itself.
    "t.xlsx": (b"PK\x03\x04", "neither a folder nor a CSV"),
    "t.csv.gz": (b"\x1f\x8b", "neither a folder"),
}


@door("table", TABLES)
def table(shop, case) -> str:
    from retailkit.data import load

    path = put(shop.folder / (case.name if case.name.startswith("t.") else "t.csv"), case.given)
    shop.cli(f"check --root {path.name}", names=path.name)
    data = load("folder", path.name)
    assert data.classes == case.value, data.classes
    return f"{len(data)} images of {len(case.value)} classes"


def damaged(content: dict, *path: Any, value: Any) -> str:
    """JSON with another value at a place; Ellipsis takes the place away."""
    content = copy.deepcopy(content)
    part = content
    for key in path[:-1]:
        part = part[key]
    if value is ...:
        del part[path[-1]]
    else:
        part[path[-1]] = value
    return json.dumps(content)


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


NAN, INFINITE = float("nan"), float("inf")
NO_JSON = {  # which no door takes
    "empty": "",
    "cut off": '{"images": [{',
    "list of a number": "[7]",
    "nested 100,000 times": nested(100_000),
    "number of 10,000 digits": "9" * 10_000,
    "Windows-1252": '[{"description": "è"}]'.encode("cp1252"),
}


def no_json(says: str) -> dict[str, tuple[Any, str]]:
    return {name: (given, says) for name, given in NO_JSON.items()}


# -- Boxes, as COCO writes them.

COCO = {
    "images": [{"id": 7, "file_name": "photos/milk/0.png", "width": 48, "height": 48}],
    "categories": [{"id": 3, "name": "milk"}],
    "annotations": [{"id": 5, "image_id": 7, "category_id": 3, "bbox": [10, 5, 20, 30], "iscrowd": 0}],
}
coco = partial(damaged, COCO)
NO_BOXES = [[NAN, 0, 9, 9], [0, 0, INFINITE, 9], [10, 5, -20, 30], [10, 5, 0, 30], [100, 100, 20, 30],
            [10**30, 5, 20, 30], [1, 2, 3, 4, 5], ["1", "2", "3", "4"], ...]  # fmt: skip
BOXES = {
    "as it should be": (json.dumps(COCO), [(10.0, 5.0, 30.0, 35.0)]),
    "with a mark": (b"\xef\xbb\xbf" + json.dumps(COCO).encode(), [(10.0, 5.0, 30.0, 35.0)]),
    "over the edge by a part of a pixel": (coco("annotations", 0, "bbox", value=[-0.4, 0, 20, 30]),
                                           [(0.0, 0.0, 19.6, 30.0)]),
    "UTF-16": (json.dumps(COCO).encode("utf-16"), "b.json"),
    **no_json("b.json"),
    **{f"box {'missing' if box is ... else box}": (coco("annotations", 0, "bbox", value=box), "bbox")
       for box in NO_BOXES},
    "unknown image": (coco("annotations", 0, "image_id", value=99), "99"),
    "unknown category": (coco("annotations", 0, "category_id", value=99), "99"),
    "category of no name": (coco("categories", 0, "name", value=None), "name"),
    "image of another size": (coco("images", 0, "width", value=4800), "4800x48"),
    "path out of the folder": (coco("images", 0, "file_name", value="../../../etc/passwd"), "passwd"),
    "device": (coco("images", 0, "file_name", value="/dev/zero"), "not a regular file"),
    "NUL in a path": (coco("images", 0, "file_name", value="a\0.png"), "cannot be read"),
}  # fmt: skip


@door("boxes", BOXES)
def boxes(shop, case) -> str:
    from retailkit.data.boxes import load_coco

    found = load_coco(put(shop.folder / "b.json", case.given), shop.folder)
    rows = [tuple(round(side, 3) for side in row) for row in found.boxes[0].tolist()]
    assert rows == case.value, rows
    return f"{len(rows)} box: {rows[0]}"


# -- Words, as Google Vision gives them.


def words(description: Any = "MILK", corner: Any = {"x": 1, "y": 2}) -> str:  # noqa: B006
    vertices = [corner, {"x": 9, "y": 2}, {"x": 9, "y": 8}]
    return json.dumps([{"description": "MILK"}, {"description": description, "bounding_poly": {"vertices": vertices}}])


NO_CORNERS = ({"x": "left"}, {"x": NAN, "y": 1}, {"x": INFINITE, "y": 1}, {"x": 10**400, "y": 1})
NO_WORDS = "not a list of words"
WORDS = {
    "as it should be": (words(), ["MILK"]),
    "no words": ("[]", [""]),
    "corners outside": (words(corner={"x": -50, "y": 1e6}), ["MILK"]),
    "page as a word": (words("<img src=x>"), ["<img src=x>"]),
    "barcode": (words("4006381333931"), [""]),
    **no_json(NO_WORDS),
    "a mapping": ("{}", NO_WORDS),
    "half of a pair of signs": (words("\ud800"), NO_WORDS),
    "number as a word": (words(7), NO_WORDS),
    **{f"corner {str(corner)[:20]}": (words(corner=corner), NO_WORDS) for corner in NO_CORNERS},
}


@door("OCR words of a data set", WORDS)
def words_beside_photos(shop, case) -> str:
    """The words beside a photo of FineGrainOCR."""
    from retailkit.data import load, ocr

    put(shop.folder / "f" / "Images" / "milk" / "1.jpg", JPEG)
    put(shop.folder / "f" / "Text" / "milk" / "1.json", case.given)
    shop.cli("check --dataset finegrainocr --root f", names="json")
    shop.patch.setattr(ocr, "read_words", lambda pixels: [])
    text = ocr.add_text(load("finegrainocr", "f")).table["text"].tolist()
    assert text == case.value, text
    return f"text {text[0]!r}"


# -- Records of notebooks.

METRIC = {"value": 0.5, "better": "higher", "interval": [0.4, 0.6], "n": 100}
RECORD = {"notebook": "20_training", "profile": "fast", "dataset": "synthetic", "status": "ok", "seconds": 1.0,
          "metrics": {"top1": METRIC}, "figures": [], "tables": {}, "skipped": {}, "parameters": {}}  # fmt: skip
record = partial(damaged, RECORD)
NO_RECORD = "no record of a notebook"
NO_METRICS = {"value": [NAN, "0.5", 10**400], "better": ["up"], "interval": ["ab", [0.4], None, [NAN, 1]]}
RECORDS = {
    "as it should be": (json.dumps(RECORD), ["top1"]),
    "name of a metric as a page": (record("metrics", "<img src=x>", value=METRIC), ["top1"]),
    "UTF-16": (json.dumps(RECORD).encode("utf-16"), ["top1"]),
    **no_json(NO_RECORD),
    "no notebook": (record("notebook", value=...), NO_RECORD),
    **{f"{field} of a metric: {str(value)[:20]}": (record("metrics", "top1", field, value=value), NO_RECORD)
       for field, values in NO_METRICS.items() for value in values},
    "metric that is no mapping": (record("metrics", "top1", value=0.5), NO_RECORD),
    "figure that is no mapping": (record("figures", value=[7]), NO_RECORD),
    "table that is no mapping": (record("tables", value={"a": 7}), NO_RECORD),
}  # fmt: skip


@door("record", RECORDS)
def compared(shop, case) -> str:
    put(shop.folder / "a.json", case.given)
    put(shop.folder / "b.json", json.dumps(RECORD))
    said = shop.cli("compare a.json b.json --html c.html", names="a.json")
    assert "<img src=x>" not in (shop.folder / "c.html").read_text()
    return " ".join(said.splitlines()[0].split())


# -- YAML: what notebooks must show.

ENTRY = "fast-synthetic: {00_small: {top1: {kind: bound, min: 0.4, reason: x}}}"
MANY_LISTS = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10))
YAML = {
    "as it should be": (ENTRY, ["00_small"]),
    "a program": ("!!python/object/apply:os.system ['touch made']", "expected.yml"),
    "another program": ("a: !!python/name:os.system", "expected.yml"),
    "not closed": ("a: [", "expected.yml"),
    "a list": ("[7]", "expected.yml"),
    "a number": ("7", "expected.yml"),
    "entry that is no mapping": ("fast-synthetic: {00_small: {top1: 7}}", "expected.yml"),
    "run that is no mapping": ("fast-synthetic: 7", "expected.yml"),
    "kind of no name": (ENTRY.replace("bound", "bond"), "unknown kind"),
    "bound of a text": (ENTRY.replace("0.4", "high"), "expected.yml"),
    "no bound": (ENTRY.replace("min: 0.4, ", ""), "lacks min or max"),
    "nine lists of nine, nine times": (MANY_LISTS, "expected.yml"),
    "nested 10,000 times": (nested(10_000), "expected.yml"),
    "not UTF-8": (ENTRY.replace("x", "è").encode("cp1252"), "UTF-8"),
    "NUL": (ENTRY.replace("x", "\0"), "expected.yml"),
}


@door("YAML", YAML)
def expected(shop, case) -> str:
    """What notebooks must show, where a run ends."""
    from retailkit.runs.expect import expectations

    found = [*expectations(put(shop.folder / "expected.yml", case.given))["fast-synthetic"]]
    assert found == case.value
    return f"expectations of {', '.join(found)}"


# -- What lies in the cache where words of a photo are kept.


def kept(content: str) -> Any:
    """Write a content with its right checksum."""
    from retailkit.cache import digest

    return lambda path: path.write_text(f"{digest(content)}\n{content}")


PLACE = "not a regular file, so it is not replaced"
WORD = json.dumps([["MILK", [1, 2, 9, 8], 0.9]])
OCR = {
    "as it should be": (kept(WORD), ["MILK"]),
    "cut in the middle": (lambda path: path.write_bytes(path.read_bytes()[:30]), ["READ AGAIN"]),
    "of another photo": (WORD, ["READ AGAIN"]),
    **{name: (given, ["READ AGAIN"]) for name, given in NO_JSON.items()},
    **{f"right checksum of {content[:12]}": (kept(content), ["READ AGAIN"])
       for content in ("7", "[[1], [2]]", nested(100_000))},
    "pipe": (lambda path: path.unlink() or os.mkfifo(path), PLACE),
    "device": (lambda path: path.unlink() or path.symlink_to("/dev/zero"), PLACE),
}  # fmt: skip


@door("cached words", OCR)
def words_kept(shop, case) -> str:
    from retailkit.data import load, ocr
    from retailkit.data.table import Word

    def read(text: str) -> str:
        shop.patch.setattr(ocr, "read_words", lambda pixels: [Word(text, (0.0, 0.0, 1.0, 1.0))])
        return ocr.add_text(load("folder", "one")).table["text"].item()

    shop.patch.setenv("RETAILKIT_CACHE", str(shop.folder / "cache"))
    put(shop.folder / "one" / "milk" / "0.png", Path(FIRST).read_bytes())
    read("AGAIN")
    (file,) = (shop.folder / "cache" / "ocr").rglob("*.json")
    put(file, case.given)
    text = read("READ AGAIN")
    assert [text] == case.value, text
    return f"text {text!r}"
