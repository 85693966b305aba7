"""Faults made by code at every door: images, tables, folders, checkpoints, explanations, caches, options, environment.

Single cases of photos, tables, models and names are in `hostile`; here are whole families of damages.

Whatever comes in, a command ends with exit code 0, 1 or 2 within a minute, says what is wrong in lines of its own and
never in a traceback, and reads nothing wrongly without a word.
"""

import io
import itertools
import json
import os
import shutil
import sys
from pathlib import Path

import hostile
import numpy as np
import pytest
import safetensors.torch
import torch
from hostile import CLASSES, SIDE
from PIL import Image

from retailkit import cli, config
from retailkit.config import UserError
from retailkit.explain import lime

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """Photos of two classes in `photos`, and what was made of them: a checkpoint and an explanation."""
    home = tmp_path_factory.mktemp("shop")
    hostile.photos(home)
    hostile.checkpoint(home)
    return home


@pytest.fixture
def here(shop, tmp_path, monkeypatch):
    """A copy of the shop as working folder."""
    shutil.copytree(shop, tmp_path / "shop")
    monkeypatch.chdir(tmp_path / "shop")
    monkeypatch.setenv("RETAILKIT_DEVICE", "cpu")
    monkeypatch.delenv("RETAILKIT_DATA", raising=False)
    return tmp_path / "shop"


@pytest.fixture
def call(here, monkeypatch, capsys):
    """Call the command; returns exit code, output and errors, which must be what every command promises."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["retailkit", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        code, (out, err) = ended.value.code or 0, capsys.readouterr()
        assert code in (0, 1, 2), err
        assert "Traceback" not in err and "this is a fault" not in err, err
        said = [line for line in err.splitlines() if line.startswith("retailkit: ")]
        assert len(said) == (code != 0), err
        return code, out, err

    return run


# -- Images.

FORMATS = {"png": "PNG", "jpg": "JPEG", "gif": "GIF", "bmp": "BMP", "tif": "TIFF", "webp": "WEBP", "ppm": "PPM"}


def encoded(suffix):
    stream, noise = io.BytesIO(), np.random.default_rng(0).normal(0, 12, (SIDE, SIDE, 3))
    Image.fromarray(np.clip(CLASSES["milk"] + noise, 0, 255).astype(np.uint8)).save(stream, FORMATS[suffix])
    return stream.getvalue()


def damaged(content, how):
    kind, amount = how
    rng, data = np.random.default_rng(amount), bytearray(content)
    if kind == "cut":
        return bytes(data[: len(data) * amount // 100])
    if kind == "flip":
        for place in rng.integers(0, len(data), 1 + len(data) // 200):
            data[place] ^= 1 << int(rng.integers(8))
    elif kind == "zero":
        start = len(data) * amount // 100
        data[start : start + 64] = bytes(len(data[start : start + 64]))
    else:
        data[:0] = bytes(rng.integers(0, 256, amount, dtype=np.uint8))
    return bytes(data)


DAMAGES = [
    *(("cut", n) for n in (0, 1, 10, 50, 90)),
    *(("flip", n) for n in range(4)),
    ("zero", 0),
    ("zero", 30),
    ("junk", 9),
]


@pytest.mark.parametrize("how", DAMAGES, ids=lambda how: f"{how[0]}{how[1]}")
@pytest.mark.parametrize("suffix", FORMATS)
def test_a_damaged_image_is_read_or_named(call, here, suffix, how):
    (here / f"photos/milk/x.{suffix}").write_bytes(damaged(encoded(suffix), how))
    code, out, _ = call("check", "--root", "photos")
    assert code in (0, 1) and ("every row can be read" in out) == (code == 0)
    assert code == 0 or f"x.{suffix}" in out
    assert code == 1 or how[0] != "cut" or how[1] > 50, "half an image is no image"


# -- Tables.

ROWS = [("image", "label"), *((f"photos/{label}/{n}.png", label) for label in CLASSES for n in range(3))]
DIALECTS = itertools.product(",;\t|", ["\n", "\r\n", "\r"], ["utf-8", "utf-8-sig", "utf-16", "cp1252"])


@pytest.mark.parametrize("separator, end, encoding", DIALECTS)
@pytest.mark.parametrize("label", ["milk", "crème, 3 %"])
def test_a_table_is_read_whatever_the_spreadsheet(call, here, separator, end, encoding, label):
    text = end.join(separator.join([image, f'"{label}"' if kind == "milk" else kind]) for image, kind in ROWS)
    (here / "t.csv").write_bytes(text.encode(encoding))
    code, out, err = call("check", "--root", "t.csv")
    if encoding == "cp1252" and label != "milk":
        assert code == 1 and "save the table as CSV UTF-8" in out + err
    else:
        assert code == 0 and "6 images of 2 classes" in out


# -- Folders.

LAYOUTS = {  # what is done to the folder `photos`: exit codes that are right, and what is said
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
def test_a_folder_is_read_rightly_or_refused(call, here, case):
    spoil, expected, part = LAYOUTS[case]
    spoil(here / "photos")
    code, out, err = call("check", "--root", "photos")
    assert expected in (None, code) and part in out + err, out + err


# -- Checkpoints and explanations.


def leaves(value, path=()):
    """Paths of all parts of a JSON value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        yield from leaves(part, (*path, key))


def changed(value, path, new):
    """A copy of a JSON value with another part at a path; `new` DROP takes it away."""
    if not path:
        return new
    copy = value.copy()
    if len(path) == 1 and new is DROP:
        del copy[path[0]]
    else:
        copy[path[0]] = changed(value[path[0]], path[1:], new)
    return copy


DROP = object()
STRANGE = [DROP, None, [], {}, "x", -1, 10**9, 0.5, True, [[]], "a/../../b", {"x": 1}]


def rewritten(path, key, change):
    """Write a safetensors file again with another header."""
    tensors = safetensors.torch.load_file(path)
    with safetensors.safe_open(path, "pt") as file:
        header = change(json.loads(file.metadata()[key]))
    safetensors.torch.save_file(tensors, path, metadata={key: json.dumps(header)})


BUILD = {"name": 0, "classes": [0, 1], "backbone": 0, "weights": 0}
CHECKPOINT = {"build": BUILD, "history": {}, "facts": {"size": 0, "fit": 0}, "format": 0}
HEADERS = list(itertools.product(list(leaves(CHECKPOINT))[1:], range(len(STRANGE))))


@pytest.mark.check
@pytest.mark.parametrize("path, new", HEADERS, ids=lambda part: str(part))
def test_a_strange_header_of_a_checkpoint_is_refused(call, here, path, new):
    evaluated = ("evaluate", "--root", "photos", "--checkpoint", "m.safetensors", "--json")
    _, before, _ = call(*evaluated)
    try:
        rewritten(here / "m.safetensors", "retailkit", lambda header: changed(header, path, STRANGE[new]))
    except (KeyError, IndexError, TypeError):
        pytest.skip("this header has no such part")
    code, out, err = call(*evaluated)
    if code == 0:
        assert json.loads(out.splitlines()[-1])["n"] == json.loads(before.splitlines()[-1])["n"]
    else:
        assert "m.safetensors" in err or "unknown" in err, err


CUTS = ["empty", "text", "cut header", "cut weights", "huge header", "zip", "nan", "pipe", "folder", "device"]


@pytest.mark.parametrize("how", CUTS)
@pytest.mark.parametrize("command", ["evaluate", "export", "explain"])
def test_a_damaged_checkpoint_is_refused(call, here, how, command):
    path = here / "m.safetensors"
    content = path.read_bytes()
    pieces = {"empty": b"", "text": b"no checkpoint", "cut header": content[:100], "cut weights": content[:-999],
              "huge header": b"\xff" * 8 + content[8:], "zip": b"PK\x03\x04" + content[4:]}  # fmt: skip
    if how in pieces:
        path.write_bytes(pieces[how])
    elif how == "nan":
        tensors = safetensors.torch.load_file(path)
        with safetensors.safe_open(path, "pt") as file:
            header = file.metadata()
        last = sorted(name for name in tensors if name.startswith("head"))[0]
        safetensors.torch.save_file(tensors | {last: tensors[last] * float("nan")}, path, metadata=header)
    else:
        path.unlink()
        {"pipe": os.mkfifo, "folder": Path.mkdir, "device": lambda p: p.symlink_to("/dev/zero")}[how](path)
    words = {"explain": ["photos/milk/0.png", "--budget", "8"]}.get(command, ["--root", "photos"])
    code, _, err = call(command, *words, "--checkpoint", path)
    assert code == 1 and "m.safetensors" in err


OPTIONS = dict.fromkeys(["seed", "budget", "kernel", "classes", "n_segments"], 0)
EXPLANATION = {"classes": [0, 1], "explained": [0], "contrasts": [0], "nothing": 0, "tokens": [], "options": OPTIONS}
FACTS = itertools.product(list(leaves(EXPLANATION))[1:], range(0, len(STRANGE), 3))


@pytest.mark.parametrize("path, new", FACTS, ids=str)
def test_a_strange_explanation_is_refused_or_loaded(here, path, new):
    try:
        rewritten(here / "e.safetensors", "explanation", lambda facts: changed(facts, path, STRANGE[new]))
    except (KeyError, IndexError, TypeError):
        pytest.skip("this file has no such part")
    try:
        lime.LocalExplanation.load(here / "e.safetensors")
    except UserError as error:
        assert "e.safetensors" in str(error)


# -- Caches.


@pytest.mark.fault(
    fault="a file of the cache is cut off",
    injected="features, trainings and words that were read are cut, emptied, or hold something else",
    lost="that file",
    repeated="what it held",
)
def test_damaged_caches_are_made_again(call, here, monkeypatch):
    """Whatever is kept: features of images and texts, trainings, words that were read."""
    monkeypatch.setenv("RETAILKIT_CACHE", str(here / "cache"))
    train = ("train", "--root", "photos", "--frozen", "--epochs", 2, "--model", "concat", "--output", "new.safetensors")
    assert call(*train)[0] == 0
    before = safetensors.torch.load_file("new.safetensors")
    for turn in range(2):
        Path("new.safetensors").unlink()
        kept = sorted(path for path in (here / "cache").rglob("*") if path.is_file())
        assert {path.relative_to(here / "cache").parts[0] for path in kept} >= {"ocr", "features"}
        for number, path in enumerate(kept):
            content, other = path.read_bytes(), next(p for p in kept if p.suffix == path.suffix and p != path)
            pieces = [content[: len(content) // 2], other.read_bytes(), b"", b"[1]"]
            path.write_bytes(pieces[(number + turn) % 4 if path.suffix != ".json" else (0, 2, 3)[number % 3]])
        assert call(*train)[0] == 0
        after = safetensors.torch.load_file("new.safetensors")
        assert all(torch.equal(before[name], after[name]) for name in before)


# -- Options and environment.


NUMBERS = {
    "run": ["--jobs", "--cell-seconds"],
    "train": ["--epochs", "--seed"],
    "explain photos/milk/0.png --checkpoint m.safetensors": ["--budget", "--seed"],
    "matrix": ["--size", "--seeds"],
    "app": ["--port"],
}
IMPOSSIBLE = ["-1", str(10**20), "abc", "1.5", "nan", ""]


@pytest.mark.parametrize("command, option", [(command, option) for command in NUMBERS for option in NUMBERS[command]])
@pytest.mark.parametrize("value", IMPOSSIBLE)
def test_a_number_out_of_range_is_bad_usage(call, command, option, value):
    code, _, err = call(*command.split(), option, value)
    assert code == 2 and option in err


WORDS = ["", " ", "$HOME", "../..", "x" * 300, "a\nb", "é\u0301", "\udcff", "{}", "0"]


@pytest.mark.parametrize("value", WORDS, ids=ascii)
@pytest.mark.parametrize(
    "line",
    [
        "check --root photos --dataset",
        "train --root photos --model",
        "train --root photos --backbone",
        "train --preset",
        "evaluate --root photos --checkpoint m.safetensors --split",
        "explain photos/milk/0.png --checkpoint m.safetensors --budget 8 --classes",
        "explain photos/milk/0.png --checkpoint m.safetensors --budget 8 --contrast",
        "matrix --root photos --train",
    ],
)
def test_an_unknown_name_is_one_line(call, line, value):
    if not value.strip() and ("--preset" in line or "--dataset" in line):
        pytest.skip("an empty name takes the default")
    code, _, err = call(*line.split(), value)
    assert code == 2, err


@pytest.mark.parametrize("value", ["gpu", "", " ", "cuda:99", "cpu:0", "meta", "x" * 500])
def test_an_odd_device_is_taken_or_one_line(call, monkeypatch, value):
    monkeypatch.setenv("RETAILKIT_DEVICE", value)
    code, _, err = call("evaluate", "--root", "photos", "--checkpoint", "m.safetensors")
    assert code == 0 if value in ("", "cpu:0") else code == 2 and "RETAILKIT_DEVICE" in err


@pytest.mark.parametrize("value", ["/dev/null", "/dev/null/x", "/proc/x", "m.safetensors", "x" * 300])
def test_a_cache_that_cannot_be_is_one_line(call, monkeypatch, value):
    monkeypatch.setenv("RETAILKIT_CACHE", value)
    code, _, err = call("train", "--root", "photos", "--frozen", "--epochs", 1, "--output", "new.safetensors")
    assert code == 1 and "RETAILKIT_CACHE" in err and not Path("new.safetensors").exists()


def test_a_cache_in_the_home_folder_is_found(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RETAILKIT_CACHE", "~/cache")
    assert config.cache_dir("a") == tmp_path / "cache" / "a"


THREADS = [("4,2", 4), ("1", 1), ("", 0), ("0", None), ("x", None), ("-1", None), ("4;2", None)]


@pytest.mark.parametrize("value, number", THREADS)
def test_threads_are_read_as_openmp_does_or_refused(monkeypatch, value, number):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    if number is None:
        with pytest.raises(UserError, match="OMP_NUM_THREADS"):
            config.threads()
    else:
        assert config.threads() == number


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
    "train --root photos --frozen --output": "safetensors",
    "evaluate --root photos --checkpoint m.safetensors --predictions": "csv",
    "explain photos/milk/0.png --checkpoint m.safetensors --budget 8 --output": "html",
    "export --root photos --checkpoint m.safetensors --output": "",
    "matrix --root photos --csv": "csv",
}
NAMES = ["m.safetensors/x", "/proc/x", "/dev/null/x", "n" * 260, "photos/milk/0.png/x"]


@pytest.mark.parametrize("case", [*OUTPUTS, *NAMES], ids=lambda case: case[:30])
@pytest.mark.parametrize("line", WRITERS, ids=lambda line: line.split()[0])
def test_an_output_that_would_destroy_something_is_refused_before_any_work(call, here, monkeypatch, line, case):
    suffix = WRITERS[line]
    path = here / f"out.{suffix}" if case in OUTPUTS else Path(case)
    if not suffix:
        path = path.with_name("shop") if case in OUTPUTS else path
    elif not path.suffix:
        path = path.with_name(f"{path.name}.{suffix}")
    if case in OUTPUTS:
        target = path if suffix else path / "report.json"
        target.parent.mkdir(exist_ok=True)
        OUTPUTS[case](target)
    before = {p: (p.lstat().st_mode, p.read_bytes() if p.is_file() else None) for p in here.rglob("*")}
    code, _, err = call(*line.split(), path)
    assert code in (1, 2) and len(err.splitlines()) == 1, err
    assert before == {p: (p.lstat().st_mode, p.read_bytes() if p.is_file() else None) for p in here.rglob("*")}
