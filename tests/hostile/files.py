"""Models, archives and exported programs, damaged in many ways."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import runpy
import shutil
import stat
import struct
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hostile import Refused, door, put
from hostile.images import RED, linked, photo, png, zipped
from hostile.tables import damaged, nested


class Program:
    """A pickle that would run a program."""

    def __reduce__(self):
        return os.system, ("touch made",)


PICKLED = pickle.dumps({"weight": Program()})

# -- Checkpoints: what is done to the file of a sound one.

Change = Callable[[Path], None]


def content(change: Callable[[bytes], bytes]) -> Change:
    return lambda path: path.write_bytes(change(path.read_bytes()))


def place(make: Change) -> Change:
    return lambda path: path.unlink() or make(path)


def tensors(change: Callable[[dict], Any]) -> Change:
    """Other entries of the file's own header, which says where each tensor lies."""

    def changed(data: bytes) -> bytes:
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        new = json.dumps(change(header) or header).encode()
        return struct.pack("<Q", len(new)) + new + data[8 + size :]

    return content(changed)


def tensor(**changes: Any) -> Change:
    """The first tensor's entry with other values."""
    return tensors(lambda header: header[min(header.keys() - {"__metadata__"})].update(changes))


def ours(change: Callable[[str], str], key: str = "retailkit") -> Change:
    """Our own header, a text of JSON, changed."""
    return tensors(lambda found: found["__metadata__"].update({key: change(found["__metadata__"][key])}))


def header(*path: Any, value: Any, **of: str) -> Change:
    """Our header with another value at a place; Ellipsis takes the place away."""
    return ours(lambda text: damaged(json.loads(text), *path, value=value), **of)


NO_CHECKPOINT, NO_MODEL, OTHER = "not a retailkit checkpoint", "describes no model", "of another model than its header"
DAMAGED: dict[str, Change] = {  # on disk
    "empty": content(lambda data: b""),
    "text": content(lambda data: b"no checkpoint"),
    "pickle": content(lambda data: PICKLED),
    "zip": content(lambda data: zipped({"data.pkl": PICKLED})),
    "cut off": content(lambda data: data[:-999]),
    "cut in its header": content(lambda data: data[:100]),
    "more at its end": content(lambda data: data + bytes(8)),
    "header of 2**63 bytes": content(lambda data: b"\xff" * 7 + b"\x7f" + data[8:]),
    "header of nothing": content(lambda data: bytes(8) + data[8:]),
    "header that is no JSON": content(lambda data: data[:8] + b"[" + data[9:]),
    "header nested 100,000 times": ours(lambda text: nested(100_000)),
    "tensor outside of the file": tensor(data_offsets=[0, 2**40]),
    "tensor of negative place": tensor(data_offsets=[-8, 0]),
    "tensor backwards": tensor(data_offsets=[8, 0]),
    "tensor of another size": tensor(shape=[3]),
    "tensor of 2**62 numbers": tensor(shape=[2**31, 2**31]),
    "tensor of an unknown kind": tensor(dtype="F3"),
    "no header of ours": tensors(lambda found: found.pop("__metadata__") and None),
}
PLACES: dict[str, tuple[Change, str]] = {
    "pipe": (place(os.mkfifo), "not a regular file"),
    "folder": (place(Path.mkdir), "m.safetensors"),
    "device": (place(linked("/dev/zero")), "not a regular file"),
    "link to itself": (place(lambda path: path.symlink_to(path)), "no such checkpoint"),
}
CLASSES = ("build", "classes")
HEADERS = [  # a place in our header, the value there, and what is said of it; see also `test_faults`
    (("format",), 99, "update retailkit"),
    (CLASSES, ..., "header.build.classes is missing"),
    (CLASSES, [], (NO_MODEL, OTHER, NO_CHECKPOINT)),
    (CLASSES, [1, 2], "not a str"),
    (CLASSES, ["milk", "soup", "tea"], OTHER),
    (CLASSES, ["milk", "milk"], (NO_MODEL, OTHER, NO_CHECKPOINT)),
    (CLASSES, ["mi\x1b[2Jlk", "soup"], "control characters"),
    (("build", "name"), "__class__", "__class__"),
    (("build", "backbone"), "timm:../../etc/passwd", NO_MODEL),
    (("build", "backbone"), "timm:hf_hub:evil/model", NO_MODEL),
    (("build", "__import__"), "os", NO_MODEL),
    (("facts", "size"), 10**9, "header.facts.size"),
    (("facts", "size"), "48", "header.facts.size"),
    (("facts", "fit"), "../pad", "unknown fit"),
    (("history",), "x", "header.history"),
]
CHECKPOINTS = {
    "as it should be": (lambda path: None, ["milk", "soup"]),
    **{name: (change, NO_CHECKPOINT) for name, change in DAMAGED.items()},
    "weights of NaN": (content(lambda data: data[:-4] + b"\xff" * 4), "not finite numbers"),
    **{f"{'.'.join(path)} {'missing' if value is ... else value!a}": (header(*path, value=value), says)
       for path, value, says in HEADERS},
    **PLACES,
}  # fmt: skip


@door("checkpoint", CHECKPOINTS)
def checkpoint(shop, case) -> str:
    case.given(shop.folder / "m.safetensors")
    names = "m.safetensors" if "__class__" not in case.name and "../pad" not in case.name else ""
    said = shop.cli("evaluate --root photos --checkpoint m.safetensors --json", names=names)
    assert json.loads(said.splitlines()[-1])["n"] == len(case.value)
    return said.splitlines()[0]


# -- Weights of a backbone, which come from anywhere.


def torch_file(make: Callable[[Any], Any]) -> Change:
    def write(path: Path) -> None:
        import torch

        torch.save(make(torch), path)

    return write


READ = "w.pth: cannot be read as weights"
WEIGHTS = {
    "pickle with a program": (PICKLED, READ),
    "zip with a program": (zipped({"w/data.pkl": PICKLED, "w/version": b"3"}), READ),
    "saved by PyTorch with a program": (torch_file(lambda torch: Program()), READ),
    "empty": (b"", READ),
    "text": (b"no weights", READ),
    "a list": (torch_file(lambda torch: [torch.zeros(2)]), "not a state dict"),
    "numbers": (torch_file(lambda torch: {"a": 7}), "not a state dict"),
    "names that are no texts": (torch_file(lambda torch: {7: torch.zeros(2)}), "not a state dict"),
    "wrapped in itself": (torch_file(lambda torch: {"model": {"model": {}}}), "w.pth"),
    "of another network": (torch_file(lambda torch: {"a.weight": torch.zeros(2)}), "w.pth"),
    "10**12 zeros in no bytes": (torch_file(lambda torch: {"a": torch.zeros(1).expand(10**12)}), "w.pth"),
    "pipe": (os.mkfifo, "no such weights file"),
}


@door("weights", WEIGHTS)
def weights(shop, case) -> str:
    put(shop.folder / "w.pth", case.given)
    options = "--frozen --epochs 1 --backbone resnet18 --weights w.pth --output n.safetensors"
    try:
        return shop.cli(f"train --root photos {options}", names="w.pth")
    finally:
        assert not (shop.folder / "n.safetensors").exists()


# -- Archives of data sets.

SMALL = {"Images/milk/1.jpg": photo("JPEG"), "Text/milk/1.json": b"[]"}


def archive(more: str = "", data: bytes = b"x", mode: int = 0) -> bytes:
    """The zip of a small data set, with a file more in it."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in SMALL.items():
            packed.writestr(f"shop-1/samples/{name}", content)
        if more:
            info = zipfile.ZipInfo(f"shop-1/samples/{more}")
            info.external_attr = mode << 16
            packed.writestr(info, data)
    return out.getvalue()


def patched(pattern: bytes, new: bytes) -> bytes:
    """The archive with other bytes after each place that a pattern matches."""
    return re.sub(b"(?s)(" + pattern + b").{%d}" % len(new), lambda found: found[1] + new, archive())


NOT_ZIP, UNPUBLISHED = "not a whole zip", "not the published files"
ARCHIVES = {
    "as it should be": (archive(), 1),
    "empty": (b"", NOT_ZIP),
    "a page of an error": (b"<!doctype html>404", NOT_ZIP),
    "cut off": (archive()[:300], NOT_ZIP),
    "of no files": (zipped({}), UNPUBLISHED),
    "path up": (archive("../../../out.txt"), 1),
    "path from the root": (archive("/etc/out.txt"), 1),
    "path of Windows": (archive("..\\..\\out.txt"), 1),
    "name of 300 signs": (archive("n" * 300), "cannot be written"),
    "link to passwords": (archive("Images/milk/2.jpg", b"/etc/passwd", stat.S_IFLNK | 0o777), UNPUBLISHED),
    "file in the place of a folder": (archive("Images/milk"), "not a regular file"),
    "photo that was changed": (archive("Images/milk/1.jpg", photo("JPEG", colour=(1, 2, 3))), UNPUBLISHED),
    "photo too many": (archive("Images/tea/1.jpg", photo("JPEG")), UNPUBLISHED),
    "file of 4 GB": (patched(b"PK\1\2.{20}", b"\xf0\xff\xff\xff"), "which is not the published data set"),
    "bytes that do not unpack": (patched(b"^.*?1[.]jpg", b"\xff" * 40), NOT_ZIP),
    "with a password": (patched(b"PK\3\4.{2}|PK\1\2.{4}", b"\1"), NOT_ZIP),
    "of an unknown compression": (patched(b"PK\3\4.{4}|PK\1\2.{6}", b"c"), NOT_ZIP),
}


@door("archive", ARCHIVES)
def fetched(shop, case) -> str:
    """What `fetch` makes of an archive that it has downloaded."""
    import pooch

    from retailkit.data import fetch, load

    known, right = fetch.ARCHIVES["finegrainocr"], shop.folder / "right"
    for path, content in SMALL.items():
        put(right / path, content)
    small = replace(known, url="https://example.org/a.zip", sha256=fetch.list_sha256(right, known.files(right)))
    shop.patch.setitem(fetch.ARCHIVES, "finegrainocr", small)
    shop.patch.setattr(pooch.HTTPDownloader, "__call__", lambda self, url, output, of: put(Path(output), case.given))
    shop.patch.setenv("RETAILKIT_CACHE", str(shop.folder / "cache"))
    try:
        shop.cli("fetch finegrainocr --root in/it")
    finally:
        outside = [path for path in shop.folder.parent.rglob("*out.txt*") if "in/it" not in str(path)]
        assert not outside, outside
    assert len(load("finegrainocr", "in/it")) == case.value
    return f"{case.value} photo, no file outside"


# -- An exported program: model.onnx, preprocessing.json, a photo.


def graph(name="images", kind="FLOAT", outputs=2, external="", operator="ReduceMean") -> bytes:
    """A model that answers with the mean of red and the rest."""
    from onnx import TensorProto, helper, numpy_helper

    axes = numpy_helper.from_array(np.array([2, 3]), "axes")
    weight = numpy_helper.from_array(np.ones((3, outputs), np.float32) / 3, "weight")
    if external:
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value=external)
    nodes = [
        helper.make_node(operator, [name, "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "weight"], ["probs"]),
    ]
    inputs = [helper.make_tensor_value_info(name, getattr(TensorProto, kind), ["n", 3, 16, 16])]
    found = [helper.make_tensor_value_info("probs", TensorProto.FLOAT, ["n", outputs])]
    made = helper.make_graph(nodes, "g", inputs, found, [axes, weight])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=8).SerializeToString()


MODEL, PREPARED, SHOWN = "model.onnx", "preprocessing.json", "x.png"
PREPARATION = {"size": 16, "fit": "crop", "short_side": 18, "pad_level": 128, "classes": ["milk", "soup"]}
DEVICE, RIGHT = linked("/dev/zero"), photo(size=(20, 30))
MODELS = {  # how each is made, later
    "missing": lambda: None,
    "empty": lambda: b"",
    "of text": lambda: b"no model",
    "a page": lambda: b"<!doctype html>",
    "a device": lambda: DEVICE,
    "cut off": lambda: graph()[:-60],
    "with weights outside": lambda: graph(external="../../secret.bin"),
    "with weights at the root": lambda: graph(external="/etc/passwd"),
    "of another input": lambda: graph(name="pixels"),
    "of whole numbers": lambda: graph(kind="INT64"),
    "of more classes": lambda: graph(outputs=5),
    "of an unknown operator": lambda: graph(operator="Evil"),
}
SETTINGS = [("size", ...), ("size", "16"), ("size", 10**6), ("size", 0), ("classes", 7)]
DESCRIPTIONS = {"missing": None, "cut off": b'{"size": 1', "nested 100,000 times": nested(100_000)} | {
    f"{name} {'missing' if value is ... else value!r}": damaged(PREPARATION, name, value=value)
    for name, value in SETTINGS
}
PHOTOS = {"missing": None, "empty": b"", "of text": b"no photo", "a device": DEVICE, "a pipe": os.mkfifo,
          "of 15000 x 15000": png(15_000, 15_000)}  # fmt: skip
PROGRAMS = {
    "as it should be": (dict, ["milk", "soup"]),
    **{f"model {name}": (lambda make=make: {MODEL: make()}, MODEL) for name, make in MODELS.items()},
    **{
        f"description {name}": (lambda given=given: {PREPARED: given}, PREPARED) for name, given in DESCRIPTIONS.items()
    },
    **{f"photo {name}": (lambda given=given: {SHOWN: given}, SHOWN) for name, given in PHOTOS.items()},
}


@door("exported program", PROGRAMS)
def program(shop, case) -> str:
    """The program that `retailkit export` writes, in a folder of its own."""
    from retailkit.export import predict

    here = shop.folder / "shop"
    here.mkdir()
    (shop.folder.parent / "secret.bin").write_bytes(bytes(24))
    right = {MODEL: graph(), PREPARED: json.dumps(PREPARATION), SHOWN: RIGHT}
    for name, content in (right | case.given()).items():
        if content is not None:
            put(here / name, content)
    shutil.copy(predict.__file__, here / "predict.py")
    shop.patch.setattr(sys, "argv", ["predict.py", str(here / SHOWN)])
    shop.capsys.readouterr()
    code = ""
    try:
        runpy.run_path(str(here / "predict.py"), run_name="__main__")
    except SystemExit as ended:
        code = ended.code
    out, err = shop.capsys.readouterr()
    if code:
        line = err.strip() if code is True else code
        assert "\n" not in line and "Traceback" not in line
        raise Refused(line)
    assert f"milk {sum(RED) / 255 / 3:.4f}" in out, out
    return out.partition(": ")[2]
