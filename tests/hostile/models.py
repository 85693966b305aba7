"""The doors for models, archives, an exported program, notebook parameters, uploads, the environment and caches."""

from __future__ import annotations

import contextlib
import functools
import http.server
import importlib.util
import json
import os
import shutil
import sys
import threading
from dataclasses import replace
from pathlib import Path

from hostile import Refused, cases
from hostile.doors import put
from hostile.files import ARCHIVES, CHECKPOINTS, MODEL, PREPARATION, PREPARED, PROGRAMS, SHOWN, SMALL, WEIGHTS, graph
from hostile.images import PNG, RED, animation, photo, png, turned
from hostile.tables import nested


def checkpoint(shop, name, given, value) -> str:
    given(shop.folder / "m.safetensors")
    words = ("--root", "photos", "--checkpoint", "m.safetensors", "--json")
    said = shop.cli("evaluate", *words, names="" if "no name" in name else "m.safetensors")
    assert not (shop.folder / "made").exists()
    if value:
        assert json.loads(said.splitlines()[-1])["n"] == 2
    return said.splitlines()[0]


def weights(shop, name, given, value) -> str:
    put(shop.folder / "w.pth", given)
    words = ("--frozen", "--epochs", 1, "--backbone", "resnet18", "--weights", "w.pth", "--output", "n.safetensors")
    try:
        return shop.cli("train", "--root", "photos", *words, names="w.pth")
    finally:
        assert not (shop.folder / "made").exists() and not (shop.folder / "n.safetensors").exists()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *words) -> None:
        pass


@contextlib.contextmanager
def served(folder: Path):
    """Serve a folder on loopback; yields its address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def archive(shop, name, given, value) -> str:
    from retailkit.data import fetch, load

    for path, content in SMALL.items():
        (shop.folder / "right" / path).parent.mkdir(parents=True)
        put(shop.folder / "right" / path, content)
    known, right = fetch.ARCHIVES["finegrainocr"], shop.folder / "right"
    shop.patch.setenv("RETAILKIT_CACHE", str(shop.folder / "cache"))
    put(shop.folder / "archive.zip", given)
    with served(shop.folder) as address:
        sha256 = fetch.list_sha256(right, known.files(right))
        small = replace(known, url=f"{address}/archive.zip", sha256=sha256)
        shop.patch.setitem(fetch.ARCHIVES, "finegrainocr", small)
        try:
            shop.cli("fetch", "finegrainocr", "--root", "in/it")
        finally:
            outside = [path for path in shop.folder.parent.rglob("*out.txt*") if "in/it" not in str(path)]
            assert not outside, outside
    found = load("finegrainocr", "in/it")
    assert len(found) == value
    return f"{value} photo, no file outside"


def program(shop, name, given, value) -> str:
    """The program that `retailkit export` writes, in a folder of its own."""
    from retailkit.export import predict

    here = shop.folder / "shop"
    here.mkdir()
    changes = given() if callable(given) else given
    (shop.folder.parent / "secret.bin").write_bytes(bytes(24))
    right = {MODEL: graph(), PREPARED: json.dumps(PREPARATION), SHOWN: photo(size=(20, 30))}
    for file, content in (right | changes).items():
        if content is not None:
            put(here / file, content)
    shutil.copy(predict.__file__, here / "predict.py")
    spec = importlib.util.spec_from_file_location("shop_predict", here / "predict.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    shop.patch.setattr(sys, "argv", ["predict.py", str(here / SHOWN)])
    shop.capsys.readouterr()
    code = ""
    try:
        module.main()
    except SystemExit as ended:
        code = ended.code
    out, err = shop.capsys.readouterr()
    if code:
        line = err.strip() if code is True else code
        assert "\n" not in line and "Traceback" not in line
        raise Refused(line)
    share = RED[0] / 255 / 3 + (RED[1] + RED[2]) / 255 / 3
    assert f"milk {share:.4f}" in out, out
    return out.partition(": ")[2]


# -- Parameters of notebooks.

CELL = (
    'SEED = 0  # of all\nN = 3  # a number\nSHARE = 0.5  # a share\nDEEP = False  # or not\nNAME = "milk"  # a text\n'
)
TOUCH = "'; import os; os.system('touch made'); '"
PARAMETERS = {
    "whole number": ("N=7", {"N": 7}),
    "number for a share": ("SHARE=1", {"SHARE": 1.0}),
    "yes": ("DEEP=yes", {"DEEP": True}),
    "text": ("NAME=crème brûlée", {"NAME": "crème brûlée"}),
    "text with an equals sign": ("NAME=a=b", {"NAME": "a=b"}),
    "no text": ("NAME=", {"NAME": ""}),
    "text of a program": (f"NAME={TOUCH}", {"NAME": TOUCH}),
    "text of quotes": ('NAME="""\\"', {"NAME": '"""\\"'}),
    "text of two lines": ("NAME=a\nimport os", {"NAME": "a\nimport os"}),
    "text of a page": ("NAME=<script>alert(1)</script>", {"NAME": "<script>alert(1)</script>"}),
    "text of braces": ("NAME={0.__class__}%s$HOME", {"NAME": "{0.__class__}%s$HOME"}),
    "text of paths": ("NAME=../../../../etc/passwd", {"NAME": "../../../../etc/passwd"}),
    "text of 100,000 signs": ("NAME=" + "x" * 100_000, {"NAME": "x" * 100_000}),
    "no value": ("N", "write NAME=VALUE"),
    "unknown": ("M=7", "unknown parameter"),
    "no name": ("=7", "unknown parameter"),
    "name of Python": ("__builtins__=7", "unknown parameter"),
    "name with a program": ("N;import os=7", "unknown parameter"),
    "name of a path": ("../N=7", "unknown parameter"),
    "small letters": ("n=7", "unknown parameter"),
    "option": ("ROOT=/etc", "use --root"),
    "text for a number": ("N=seven", "give a whole number"),
    "share for a number": ("N=7.5", "give a whole number"),
    "number of 5,000 digits": ("N=" + "9" * 5000, "give a whole number"),
    "2**32": (f"N={2**32}", "give a whole number"),
    "NaN": ("SHARE=nan", "give a finite number"),
    "infinite": ("SHARE=1e999", "give a finite number"),
    "program for a number": ("N=__import__('os').system('touch made')", "give a whole number"),
    "perhaps": ("DEEP=perhaps", "give true or false"),
    "negative seed": ("SEED=-1", "give a whole number from 0"),
    "seed of 2**30": (f"SEED={2**30}", "give a whole number from 0"),
}  # fmt: skip


def parameter(shop, name, given, value) -> str:
    import nbformat
    from papermill.parameterize import parameterize_notebook

    from retailkit import runs
    from retailkit.runs.parameters import typed as brought

    cell = nbformat.v4.new_code_cell(CELL, metadata={"tags": ["parameters"]})
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    (shop.folder / "notebooks").mkdir()
    path = shop.folder / "notebooks" / "00_small.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=kernel), path)
    if value is None:
        return shop.cli("run", "00", "-p", given)
    from papermill.iorw import load_notebook_node

    typed = brought(path, runs.parse_parameters([given]))
    made, names = parameterize_notebook(load_notebook_node(str(path)), typed), {}
    exec("\n".join(cell.source for cell in made.cells), names)
    assert {key: names[key] for key in value} == value and not (shop.folder / "made").exists()
    return " ".join(f"{key} = {part!r}" for key, part in value.items())


# -- Uploads of the tool: what a page sends, which need not be ours.

UPLOADS = {
    "photo": (({"name": "a.png"}, [photo(size=(40, 50))]), (50, 40)),
    "photo turned by its EXIF block": (({"name": "a.jpg"}, [turned(6, side=40)]), (80, 40)),
    "large photo": (({"name": "a.jpg"}, [photo("JPEG", size=(4096, 1024))]), (512, 2048)),
    "animation": (({"name": "a.gif"}, [animation("GIF", 40)]), (40, 40)),
    "empty": (({"name": "a.png"}, [b""]), "the file is empty"),
    "no content": (({"name": "a.png"}, []), "the file is empty"),
    "two contents": (({"name": "a.png"}, [photo(size=(40, 50)), b"x"]), (50, 40)),
    "9 MB and a byte": (({"name": "a.png"}, [bytes(9_000_001)]), "more than 9 MB"),
    "60000 x 60000": (({"name": "a.png"}, [png(60_000, 60_000)]), "too many pixels"),
    "8000 x 7900": (({"name": "a.png"}, [png(8000, 7900)]), "more than 60 megapixels"),
    "16 x 16": (({"name": "a.png"}, [photo(size=(16, 16))]), "too few"),
    "65500 x 1": (({"name": "a.png"}, [png(65_500, 1)]), "too many"),
    "cut off": (({"name": "a.png"}, [PNG[:60]]), ("cannot be decoded", "not an image")),
    "PDF": (({"name": "a.png"}, [b"%PDF-1.7"]), "not an image"),
    "SVG": (({"name": "a.svg"}, [b"<svg onload='alert(1)'/>"]), "not an image"),
    "PostScript": (({"name": "a.eps"}, [b"%!PS-Adobe-3.0 EPSF-3.0"]), "not an image"),
    "pickle": (({"name": "a.pkl"}, [b"\x80\x04cos\nsystem\n(S'touch made'\ntR."]), "not an image"),
    "bomb of pixels": (({"name": "a.png"}, [png(7000, 7000, pixels=bytes(7000 * 21_001))]), (2048, 2048)),
    "name of a path": (({"name": "../../../etc/a.png"}, [b"x"]), "../../../etc/a.png: not an image"),
    "name of a page": (({"name": "<img src=x>"}, [b"x"]), "<img src=x>: not an image"),
    "name of 1 MB": (({"name": "n" * 10**6}, [b"x"]), "not an image"),
    "no name": (({}, [b"x"]), "photo: not an image"),
    "name of a number": (({"name": 7}, [b"x"]), "7: not an image"),
    "a text in place of a message": (("x", [b"x"]), "photo: not an image"),
}


def upload(shop, name, given, value) -> str:
    from retailkit.config import UserError
    from retailkit.widgets.model import decode
    from retailkit.widgets.picture import LONGEST, Upload

    found, button = [], Upload(megabytes=9)

    def act(content: bytes, called: str) -> None:
        try:
            found.append(decode(content, called))
        except UserError as error:  # the tool shows it
            found.append(error)

    shop.patch.setattr(button, "send", lambda content: found.append(content))
    button.on_upload(act)
    message, buffers = given
    button._handle_custom_msg(message, [memoryview(buffer) for buffer in buffers])
    read, answer = found
    assert len(answer["done"]) <= LONGEST  # the page is told in any case
    if isinstance(read, UserError):
        raise read
    assert [read.shape[:2]] == value, read.shape
    return f"{read.shape[1]} x {read.shape[0]} pixels"


# -- What the environment says.

ENVIRONMENT = {
    "device": ("RETAILKIT_DEVICE=cpu", []),
    "device of no name": ("RETAILKIT_DEVICE=gpu", "RETAILKIT_DEVICE=gpu is no device"),
    "device of no number": ("RETAILKIT_DEVICE=cuda:99", "is no device"),
    "device of a program": ("RETAILKIT_DEVICE=$(touch made)", "is no device"),
    "cache that is a file": ("RETAILKIT_CACHE=m.safetensors", "set RETAILKIT_CACHE to a folder"),
    "cache in a device": ("RETAILKIT_CACHE=/dev/null/x", "set RETAILKIT_CACHE to a folder"),
    "cache of 300 signs": ("RETAILKIT_CACHE=" + "x" * 300, "set RETAILKIT_CACHE to a folder"),
    "threads of nothing": ("OMP_NUM_THREADS=0", "OMP_NUM_THREADS=0 is no number of threads"),
    "threads of a text": ("OMP_NUM_THREADS=many", "is no number of threads"),
    "threads of 10**20": (f"OMP_NUM_THREADS={10**20}", "is no number of threads"),
    "threads of two levels": ("OMP_NUM_THREADS=1,2", []),
    "data that is not there": ("RETAILKIT_DATA=/nowhere", "grocery_store"),
}


def environment(shop, name, given, value) -> str:
    shop.patch.setenv("RETAILKIT_CACHE", str(shop.folder / "cache"))
    shop.patch.setenv(*given.split("=", 1))
    if "DATA" in given:
        return shop.cli("check", "--dataset", "grocery_store")
    from retailkit import config

    for act in (config.device, config.threads, config.cache_dir):
        act()
    assert not (shop.folder / "made").exists()
    return given


# -- Caches: what lies where words of a photo are kept.

PLACE = ("not a regular file, so it is not replaced",)
WORD = [["MILK", [1, 2, 9, 8], 0.9]]
OCR = {
    "as it should be": (lambda path: kept(path, json.dumps(WORD)), "MILK"),
    "empty": (b"", "READ AGAIN"),
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:30]), "READ AGAIN"),
    "of another photo": (json.dumps(WORD), "READ AGAIN"),
    "not UTF-8": (b"\xff\xfe\n[]", "READ AGAIN"),
    "right checksum of a number": (lambda path: kept(path, "7"), "READ AGAIN"),
    "right checksum of other lists": (lambda path: kept(path, "[[1], [2]]"), "READ AGAIN"),
    "right checksum, nested 100,000 times": (lambda path: kept(path, nested(100_000)), "READ AGAIN"),
    "pipe": (lambda path: path.unlink() or os.mkfifo(path), PLACE),
    "device": (lambda path: path.unlink() or path.symlink_to("/dev/zero"), PLACE),
}


def kept(path: Path, content: str) -> None:
    from retailkit.cache import digest

    path.write_text(f"{digest(content)}\n{content}")


def words_kept(shop, name, given, value) -> str:
    from retailkit.data import load, ocr
    from retailkit.data.table import Word

    shop.patch.setenv("RETAILKIT_CACHE", str(shop.folder / "cache"))
    (shop.folder / "one" / "milk").mkdir(parents=True)
    shutil.copy("photos/milk/0.png", "one/milk/0.png")
    shop.patch.setattr(ocr, "read_words", lambda pixels: [Word("AGAIN", (0.0, 0.0, 1.0, 1.0))])
    ocr.add_text(load("folder", "one"))
    (file,) = (shop.folder / "cache" / "ocr").rglob("*.json")
    put(file, given)
    shop.patch.setattr(ocr, "read_words", lambda pixels: [Word("READ AGAIN", (0.0, 0.0, 1.0, 1.0))])
    text = ocr.add_text(load("folder", "one")).table["text"].item()
    assert text == value[0], text
    return f"text {text!r}"


CASES = [
    *cases("checkpoint", checkpoint, CHECKPOINTS),
    *cases("weights", weights, WEIGHTS),
    *cases("archive", archive, ARCHIVES),
    *cases("exported program", program, PROGRAMS),
    *cases("notebook parameter", parameter, PARAMETERS),
    *cases("upload", upload, {n: (g, [v] if isinstance(v, tuple) and isinstance(v[0], int) else v)
                              for n, (g, v) in UPLOADS.items()}, {"bomb of pixels"}),
    *cases("environment", environment, ENVIRONMENT),
    *cases("cached words", words_kept, {n: (given, [t] if isinstance(t, str) else t) for n, (given, t) in OCR.items()}),
]  # fmt: skip
