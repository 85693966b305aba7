"""Whole families of faults, made by code: images, tables, folders, checkpoints, caches, options, outputs.

Single cases are in `hostile`. Whatever comes in, a command ends with exit code 0, 1 or 2 within a minute, says what is
wrong in lines of its own and never in a traceback, and reads nothing wrongly without a word.
"""

import itertools
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hostile import CLASSES
from hostile.files import CHECKPOINTS, header
from hostile.images import FORMATS, saved
from hostile.tables import ROWS
from PIL import Image

from retailkit import config
from retailkit.config import UserError
from retailkit.explain import lime

pytestmark = pytest.mark.timeout(60)

# -- Images.


def damaged(content, kind, amount):
    rng, data = np.random.default_rng(amount), bytearray(content)
    start = len(data) * amount // 100
    if kind == "cut":
        del data[start:]
    elif kind == "flip":
        for place in rng.integers(0, len(data), 1 + len(data) // 200):
            data[place] ^= 1 << int(rng.integers(8))
    elif kind == "zero":
        data[start : start + 64] = bytes(len(data[start : start + 64]))
    else:
        data[:0] = bytes(rng.integers(0, 256, amount, dtype=np.uint8))
    return bytes(data)


DAMAGES = {"cut": (0, 1, 10, 50, 90), "flip": range(4), "zero": (0, 30), "junk": (9,)}


@pytest.mark.parametrize("kind, amount", [(kind, amount) for kind, amounts in DAMAGES.items() for amount in amounts])
@pytest.mark.parametrize("suffix", FORMATS)
def test_a_damaged_image_is_read_or_named(shop, suffix, kind, amount):
    with Image.open("photos/milk/0.png") as image:
        content = saved(image, FORMATS[suffix])
    Path(f"photos/milk/x.{suffix}").write_bytes(damaged(content, kind, amount))
    code, out, _ = shop.call("check", "--root", "photos")
    assert code in (0, 1) and ("every row can be read" in out) == (code == 0)
    assert code == 0 or f"x.{suffix}" in out
    assert code == 1 or kind != "cut" or amount > 50, "half an image is no image"


# -- Tables and folders.

DIALECTS = itertools.product(",;\t|", ["\n", "\r\n", "\r"], ["utf-8", "utf-8-sig", "utf-16", "cp1252"])


@pytest.mark.parametrize("separator, end, encoding", DIALECTS)
def test_a_table_is_read_whatever_the_spreadsheet(shop, separator, end, encoding):
    text = end.join(separator.join([image, '"crème, 3 %"' if kind == "soup" else kind]) for image, kind in ROWS)
    Path("t.csv").write_bytes(text.encode(encoding))
    code, out, err = shop.call("check", "--root", "t.csv")
    if encoding == "cp1252":
        assert code == 1 and "save the table as CSV UTF-8" in out + err
    else:
        assert code == 0 and "6 images of 2 classes" in out


LAYOUTS = {  # what is done to the folder `photos`: the exit code that is right, if one is, and what is said
    "hidden files": (lambda p: (p / "milk/.DS_Store").write_bytes(b"x"), 0, "8 images of"),
    "hidden folder": (lambda p: shutil.copytree(p / "milk", p / "milk/@eaDir"), 0, "8 images of"),
    "loose photo": (lambda p: shutil.copy(p / "milk/0.png", p / "loose.png"), 0, "loose.png"),
    "a note": (lambda p: (p / "milk/notes.txt").write_text("x"), 1, "notes.txt"),
    "a folder too many": (lambda p: shutil.move(p, p.parent / "q/a/b") and (p.parent / "q").rename(p), None, ""),
    "splits": (lambda p: [shutil.copytree(p / c, p / s / c) for s in ("Training", "Testing") for c in CLASSES]
               and [shutil.rmtree(p / c) for c in CLASSES], 0, "2 classes"),
    "a split beside classes": (lambda p: shutil.copytree(p / "milk", p / "train/milk"), 1, "train"),
    "empty class": (lambda p: (p / "tea").mkdir(), 0, "8 images of"),
    "no photo": (lambda p: [shutil.rmtree(p / c) for c in CLASSES], 1, "photos"),
    "a rendered set": (lambda p: (p / "0123456789abcdef/images").mkdir(parents=True), 1, "0123456789abcdef"),
    "a loop": (lambda p: (p / "milk/loop").symlink_to(p), None, ""),
    "not UTF-8": (lambda p: shutil.copy(p / "milk/0.png", p / "milk" / os.fsdecode(b"\xe9.png")), None, ""),
    "a file": (lambda p: shutil.rmtree(p) or p.write_text("x"), 1, "photos"),
    "a pipe": (lambda p: shutil.rmtree(p) or os.mkfifo(p), 1, "photos"),
}  # fmt: skip


@pytest.mark.parametrize("case", LAYOUTS)
def test_a_folder_is_read_rightly_or_refused(shop, case):
    spoil, expected, part = LAYOUTS[case]
    spoil(shop.folder / "photos")
    code, out, err = shop.call("check", "--root", "photos")
    assert expected in (None, code) and part in out + err, out + err


# -- Checkpoints and explanations.


def leaves(value, path=()):
    """Places of all parts of a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        yield (*path, key)
        yield from leaves(part, (*path, key))


def spoil(file, path, new, **of):
    try:
        header(*path, value=STRANGE[new], **of)(Path(file))
    except (KeyError, IndexError, TypeError):
        pytest.skip("this file has no such part")


STRANGE = [..., None, [], {}, "x", -1, 10**9, 0.5, True, [[]], "a/../../b", {"x": 1}]  # ... takes the part away
BUILD = {"name": 0, "classes": [0, 1], "backbone": 0, "weights": 0}
CHECKPOINT = {"build": BUILD, "history": {}, "facts": {"size": 0, "fit": 0}, "format": 0}


@pytest.mark.check
@pytest.mark.parametrize("path", leaves(CHECKPOINT), ids=str)
@pytest.mark.parametrize("new", range(len(STRANGE)))
def test_a_strange_header_of_a_checkpoint_is_refused(shop, path, new):
    spoil("m.safetensors", path, new)
    code, out, err = shop.call("evaluate", "--root", "photos", "--checkpoint", "m.safetensors", "--json")
    assert '"n": 2' in out if code == 0 else "m.safetensors" in err or "unknown" in err, out + err


@pytest.mark.parametrize("how", ["empty", "cut off", "weights of NaN", "zip", "pipe", "folder", "device"])
@pytest.mark.parametrize("line", ["export --root photos", "explain photos/milk/0.png --budget 8"])
def test_a_damaged_checkpoint_is_refused_by_every_command(shop, how, line):
    CHECKPOINTS[how][0](Path("m.safetensors"))
    code, _, err = shop.call(*line.split(), "--checkpoint", "m.safetensors")
    assert code == 1 and "m.safetensors" in err


OPTIONS = dict.fromkeys(["seed", "budget", "kernel", "classes", "n_segments"], 0)
EXPLANATION = {"classes": [0, 1], "explained": [0], "contrasts": [0], "nothing": 0, "tokens": [], "options": OPTIONS}


@pytest.mark.parametrize("path", leaves(EXPLANATION), ids=str)
@pytest.mark.parametrize("new", range(0, len(STRANGE), 3))
def test_a_strange_explanation_is_refused_or_loaded(shop, path, new):
    spoil("e.safetensors", path, new, key="explanation")
    try:
        lime.LocalExplanation.load("e.safetensors")
    except UserError as error:
        assert "e.safetensors" in str(error)


# -- Caches.


@pytest.mark.fault("a file of the cache is cut off")
def test_damaged_caches_are_made_again(shop, own_cache, tmp_path):
    """Whatever is kept: features of images and texts, trainings, words that were read."""
    train = ("train", "--root", "photos", "--frozen", "--epochs", 2, "--model", "concat", "--output", "new.safetensors")
    assert shop.call(*train)[0] == 0
    before = safetensors.torch.load_file("new.safetensors")
    for turn in range(2):
        Path("new.safetensors").unlink()
        kept = sorted(path for path in (tmp_path / "cache").rglob("*") if path.is_file())
        assert {path.relative_to(tmp_path / "cache").parts[0] for path in kept} >= {"ocr", "features"}
        for number, path in enumerate(kept):
            content, other = path.read_bytes(), next(p for p in kept if p.suffix == path.suffix and p != path)
            pieces = [content[: len(content) // 2], other.read_bytes(), b"", b"[1]"]
            path.write_bytes(pieces[(number + turn) % 4 if path.suffix != ".json" else (0, 2, 3)[number % 3]])
        assert shop.call(*train)[0] == 0
        after = safetensors.torch.load_file("new.safetensors")
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_cache_in_the_home_folder_is_found(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RETAILKIT_CACHE", "~/cache")
    assert config.cache_dir("a") == tmp_path / "cache" / "a"


# -- Options.

NUMBERS = {
    "run": ["--jobs", "--cell-seconds"],
    "train": ["--epochs", "--seed"],
    "explain photos/milk/0.png --checkpoint m.safetensors": ["--budget", "--seed"],
    "matrix": ["--size", "--seeds"],
    "app": ["--port"],
}


@pytest.mark.parametrize("line, option", [(line, option) for line in NUMBERS for option in NUMBERS[line]])
@pytest.mark.parametrize("value", ["-1", str(10**20), "abc", "1.5", "nan", ""])
def test_a_number_out_of_range_is_bad_usage(shop, line, option, value):
    code, _, err = shop.call(*line.split(), option, value)
    assert code == 2 and option in err


NAMED = [
    "check --root photos --dataset",
    "train --root photos --model",
    "train --root photos --backbone",
    "train --preset",
    "evaluate --root photos --checkpoint m.safetensors --split",
    "explain photos/milk/0.png --checkpoint m.safetensors --budget 8 --classes",
    "explain photos/milk/0.png --checkpoint m.safetensors --budget 8 --contrast",
    "matrix --root photos --train",
]
WORDS = ["", " ", "$HOME", "../..", "x" * 300, "a\nb", "é\u0301", "\udcff", "{}", "0"]


@pytest.mark.parametrize("value", WORDS, ids=ascii)
@pytest.mark.parametrize("line", NAMED)
def test_an_unknown_name_is_one_line(shop, line, value):
    if not value.strip() and ("--preset" in line or "--dataset" in line):
        pytest.skip("an empty name takes the default")
    code, _, err = shop.call(*line.split(), value)
    assert code == 2, err


# -- Outputs.

OUTPUTS = {
    "a user's file": lambda path: path.write_text("mine"),
    "a folder": Path.mkdir,
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/full"),
    "a loop": lambda path: path.symlink_to(path),
    "a link to a user's file": lambda path: path.with_name("mine").write_text("mine") and path.symlink_to("mine"),
}
WRITERS = {
    "train --root photos --frozen --output": "out.safetensors",
    "evaluate --root photos --checkpoint m.safetensors --predictions": "out.csv",
    "explain photos/milk/0.png --checkpoint m.safetensors --budget 8 --output": "out.html",
    "export --root photos --checkpoint m.safetensors --output": "out/report.json",
    "matrix --root photos --csv": "out.csv",
}
NAMES = ["m.safetensors/x", "/proc/x", "/dev/null/x", "n" * 260, "photos/milk/0.png/x"]


def files(folder):
    return {path: (path.lstat().st_mode, path.read_bytes() if path.is_file() else None) for path in folder.rglob("*")}


@pytest.mark.parametrize("case", [*OUTPUTS, *NAMES], ids=lambda case: case[:30])
@pytest.mark.parametrize("line", WRITERS, ids=lambda line: line.split()[0])
def test_an_output_that_would_destroy_something_is_refused_before_any_work(shop, line, case):
    written = Path(WRITERS[line])
    if case in OUTPUTS:
        written.parent.mkdir(exist_ok=True)
        OUTPUTS[case](shop.folder / written)
        path = Path(written.parts[0])
    else:
        path = Path(case if len(written.parts) > 1 else case + written.suffix)
    before = files(shop.folder)
    code, _, err = shop.call(*line.split(), path)
    assert code in (1, 2) and len(err.splitlines()) == 1, err
    assert before == files(shop.folder)
