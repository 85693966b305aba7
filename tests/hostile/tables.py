"""Tables and JSON made by code; a list is what is read: the classes of a table, in the order of the alphabet."""

from __future__ import annotations

import copy
import json
from functools import partial
from typing import Any

from hostile import CLASSES

ROWS = [("image", "label"), *((f"photos/{label}/{n}.png", label) for label in CLASSES for n in range(3))]
TABLE = "\n".join(",".join(row) for row in ROWS)
BOTH, QUOTE, FIELDS = ["milk", "soup"], "a double quote does not end", "fields, but the header has"
UTF8, NUL = "not UTF-8 text; save the table as CSV UTF-8", "holds a NUL character"
CONTROL = "the control character"
MISSING, KIND = "is missing; restore it", "is not a known kind of image"
FIRST = "photos/milk/0.png"


def with_columns(count: int) -> str:
    header, *rows = TABLE.split("\n")
    return "\n".join([header + "".join(f",c{n}" for n in range(count)), *rows])


def with_path(path: str) -> str:
    return TABLE.replace(FIRST, path)


def labelled(label: str) -> str:
    return TABLE.replace(",milk", f",{label}")


TABLES: dict[str, tuple[str | bytes, Any]] = {
    # Encodings.
    "UTF-8": (labelled("crème"), ["crème", "soup"]),
    "UTF-8 with a mark": (b"\xef\xbb\xbf" + TABLE.encode(), BOTH),
    "UTF-16 little end": (TABLE.encode("utf-16"), BOTH),
    "UTF-16 big end": (b"\xfe\xff" + TABLE.encode("utf-16-be"), BOTH),
    "UTF-16 without a mark": (TABLE.encode("utf-16-le"), NUL),
    "UTF-16 of odd length": (TABLE.encode("utf-16")[:-1], UTF8),
    "UTF-32": (TABLE.encode("utf-32"), NUL),
    "Windows-1252": (labelled("crème").encode("cp1252"), UTF8),
    "Shift JIS": (labelled("牛乳").encode("shift_jis"), UTF8),
    "UTF-7": (labelled("crème").encode("utf-7"), ["cr+AOg-me", "soup"]),
    "lone surrogate": (TABLE.encode().replace(b"milk\n", b"\xed\xa0\x80\n"), UTF8),
    "accents apart and together": (
        labelled("cr\u00e8me").replace("1.png,cr\u00e8me", "1.png,cre\u0300me"),
        ["crème", "soup"],
    ),
    # Separators, quotes, line ends.
    "semicolons": (TABLE.replace(",", ";"), BOTH),
    "tabs": (TABLE.replace(",", "\t"), BOTH),
    "bars": (TABLE.replace(",", "|"), BOTH),
    "sep=": ("sep=,\n" + TABLE, BOTH),
    "sep= of another sign": ("sep=;\n" + TABLE, "no column 'image'"),
    "old Macintosh": (TABLE.replace("\n", "\r"), BOTH),
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
    "labels like numbers": (labelled("007"), ["007", "soup"]),
    "labels like nothing": (labelled("NA"), ["NA", "soup"]),
    "label of a formula": (labelled("'=1+1"), ["=1+1", "soup"]),
    "label of a page": (labelled("<script>alert(1)</script>"), ["<script>alert(1)</script>", "soup"]),
    "label of 100,000 signs": (labelled("x" * 100_000), ["soup", "x" * 100_000]),
    "labels alike but for case": (TABLE.replace("0.png,milk", "0.png,Milk"), ["Milk", "milk", "soup"]),
    "label of no width": (labelled("\u200b"), ["soup", "\u200b"]),
    "label that turns the line": (labelled("\u202emilk"), ["soup", "\u202emilk"]),
    "label of a bell": (labelled("mi\alk"), CONTROL),
    "label that clears a terminal": (labelled("mi\x1b[2Jlk"), CONTROL),
    "cell of 1 MB": (TABLE.replace("label", "label,text", 1).replace("0.png,milk", "0.png,milk," + "x" * 10**6), QUOTE),
    # Paths.
    "missing file": (with_path("none.png"), MISSING),
    "folder": (with_path("photos/milk"), KIND),
    "device": (with_path("/dev/zero"), KIND),
    "device called an image": (with_path("/dev/zero.png"), MISSING),
    "no image": (with_path("t.csv"), KIND),
    "path up and down": (with_path("../shop/photos/milk/0.png"), BOTH),
    "path out of the folder": (with_path("../../../../../../etc/passwd"), KIND),
    "path out that is called an image": (with_path("../../../../../../etc/passwd.png"), MISSING),
    "path of Windows": (TABLE.replace("/", "\\"), BOTH),
    "drive of Windows": (with_path("C:\\photos\\0.png"), MISSING),
    "address": (with_path("https://example.org/0.png"), MISSING),
    "file address": (with_path("file:///etc/0.png"), MISSING),
    "home": (with_path("~/0.png"), MISSING),
    "variable": (with_path("$HOME/0.png"), MISSING),
    "path of NUL": (with_path("a\0.png"), NUL),
    "path of 5,000 signs": (with_path("x" * 5000 + ".png"), MISSING),
    "path of two lines": (with_path('"a\n.png"'), MISSING),
    "formula as a path": (TABLE + "\n=1+1,milk", KIND),
    "the same photo twice": (TABLE + f"\n{FIRST},soup", BOTH),
}  # fmt: skip
SUFFIXES = {"t.xlsx": (b"PK\x03\x04", "neither a folder nor a CSV"), "t.csv.gz": (b"\x1f\x8b", "neither a folder")}

# -- Boxes, as COCO writes them.

COCO = {
    "images": [{"id": 7, "file_name": "photos/milk/0.png", "width": 48, "height": 48}],
    "categories": [{"id": 3, "name": "milk"}],
    "annotations": [{"id": 5, "image_id": 7, "category_id": 3, "bbox": [10, 5, 20, 30], "iscrowd": 0}],
}


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


coco = partial(damaged, COCO)


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def box(*sides: Any) -> str:
    return coco("annotations", 0, "bbox", value=list(sides))


JSON, OUTSIDE = "JSON", ("box", "bbox")
BOXES: dict[str, tuple[str | bytes, Any]] = {
    "as it should be": (json.dumps(COCO), [(10.0, 5.0, 30.0, 35.0)]),
    "with a mark": (b"\xef\xbb\xbf" + json.dumps(COCO).encode(), [(10.0, 5.0, 30.0, 35.0)]),
    "over the edge by a part of a pixel": (box(-0.4, 0, 20, 30), [(0.0, 0.0, 19.6, 30.0)]),
    "UTF-16": (json.dumps(COCO).encode("utf-16"), "b.json"),
    "empty": ("", "b.json"),
    "cut off": (json.dumps(COCO)[:80], "b.json"),
    "a list": ("[]", "b.json"),
    "nested 100,000 times": (nested(100_000), "b.json"),
    "a number of 10,000 digits": ("9" * 10_000, "b.json"),
    "NaN": (box(float("nan"), 0, 9, 9), OUTSIDE),
    "infinite": (box(0, 0, 1e999, 9), OUTSIDE),
    "negative width": (box(10, 5, -20, 30), OUTSIDE),
    "empty box": (box(10, 5, 0, 30), OUTSIDE),
    "outside": (box(100, 100, 20, 30), OUTSIDE),
    "10**30": (box(10**30, 5, 20, 30), OUTSIDE),
    "five numbers": (box(1, 2, 3, 4, 5), OUTSIDE),
    "texts": (box("1", "2", "3", "4"), OUTSIDE),
    "no box": (coco("annotations", 0, "bbox", value=...), "bbox"),
    "unknown image": (coco("annotations", 0, "image_id", value=99), "99"),
    "unknown category": (coco("annotations", 0, "category_id", value=99), "99"),
    "category of no name": (coco("categories", 0, "name", value=None), "name"),
    "image of another size": (coco("images", 0, "width", value=4800), "4800x48"),
    "path out of the folder": (coco("images", 0, "file_name", value="../../../etc/passwd"), "passwd"),
    "device": (coco("images", 0, "file_name", value="/dev/zero"), "not a regular file"),
    "NUL in a path": (coco("images", 0, "file_name", value="a\0.png"), "cannot be read"),
}

# -- Words, as Google Vision gives them.

WORD = {"description": "MILK", "bounding_poly": {"vertices": [{"x": 1, "y": 2}, {"x": 9, "y": 2}, {"x": 9, "y": 8}]}}


def words(**changes: Any) -> str:
    return json.dumps([{"description": "MILK"}, WORD | changes])


def vertices(*found: Any) -> str:
    return words(bounding_poly={"vertices": list(found)})


NO_WORDS = "not a list of words"
WORDS: dict[str, tuple[str | bytes, Any]] = {
    "as it should be": (words(), ["MILK"]),
    "no words": ("[]", [""]),
    "corners outside": (vertices({"x": -50, "y": 1e6}), ["MILK"]),
    "page as a word": (words(description="<img src=x>"), ["<img src=x>"]),
    "barcode": (words(description="4006381333931"), [""]),
    "half of a pair of signs": (words(description="\ud800"), NO_WORDS),
    "cut off": (words()[:30], NO_WORDS),
    "a mapping": ("{}", NO_WORDS),
    "nested 100,000 times": (nested(100_000), NO_WORDS),
    "number as a word": (words(description=7), NO_WORDS),
    "text as a corner": (vertices({"x": "left"}), NO_WORDS),
    "corner of NaN": (vertices({"x": float("nan"), "y": 1}), NO_WORDS),
    "infinite corner": (vertices({"x": float("inf"), "y": 1}), NO_WORDS),
    "corner of 10**400": (vertices({"x": 10**400, "y": 1}), NO_WORDS),
    "Windows-1252": (words(description="x").replace("x", "è").encode("cp1252"), NO_WORDS),
    "10,000 digits": (words().replace("9", "9" * 10_000), NO_WORDS),
}

# -- Records of notebooks.

METRIC = {"value": 0.5, "better": "higher", "interval": [0.4, 0.6], "n": 100}
RECORD = {"notebook": "20_training", "profile": "fast", "dataset": "synthetic", "status": "ok", "seconds": 1.0,
          "metrics": {"top1": METRIC}, "figures": [], "tables": {}, "skipped": {}, "parameters": {}}  # fmt: skip
record = partial(damaged, RECORD)
NO_RECORD = "no record of a notebook"
RECORDS: dict[str, tuple[str | bytes, Any]] = {
    "as it should be": (json.dumps(RECORD), ["top1"]),
    "name of a metric as a page": (record("metrics", "<img src=x>", value=METRIC), ["top1"]),
    "empty": ("", NO_RECORD),
    "cut off": (json.dumps(RECORD)[:60], NO_RECORD),
    "a list": ("[]", NO_RECORD),
    "nested 100,000 times": (nested(100_000), NO_RECORD),
    "UTF-16": (json.dumps(RECORD).encode("utf-16"), ["top1"]),
    "not UTF-8": (b'{"notebook": "\xff"}', NO_RECORD),
    "no notebook": (record("notebook", value=...), NO_RECORD),
    "metric of NaN": (record("metrics", "top1", "value", value=float("nan")), NO_RECORD),
    "metric of a text": (record("metrics", "top1", "value", value="0.5"), NO_RECORD),
    "metric of 10**400": (record("metrics", "top1", "value", value=10**400), NO_RECORD),
    "metric that is no mapping": (record("metrics", "top1", value=0.5), NO_RECORD),
    "direction of no name": (record("metrics", "top1", "better", value="up"), NO_RECORD),
    "interval of a text": (record("metrics", "top1", "interval", value="ab"), NO_RECORD),
    "interval of one number": (record("metrics", "top1", "interval", value=[0.4]), NO_RECORD),
    "interval of nothing": (record("metrics", "top1", "interval", value=None), NO_RECORD),
    "interval of NaN": (record("metrics", "top1", "interval", value=[float("nan"), 1]), NO_RECORD),
    "figure that is no mapping": (record("figures", value=[7]), NO_RECORD),
    "table that is no mapping": (record("tables", value={"a": 7}), NO_RECORD),
}

# -- YAML: what notebooks must show.

ENTRY = "fast-synthetic: {00_small: {top1: {kind: bound, min: 0.4, reason: x}}}"
YAML: dict[str, tuple[str | bytes, Any]] = {
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
    "nine lists of nine, nine times": (
        "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)),
        "expected.yml",
    ),
    "nested 10,000 times": (nested(10_000), "expected.yml"),
    "not UTF-8": (ENTRY.replace("x", "è").encode("cp1252"), "UTF-8"),
    "NUL": (ENTRY.replace("x", "\0"), "expected.yml"),
}
