"""Models, archives and the files of an exported program, damaged in many ways."""

from __future__ import annotations

import io
import json
import os
import pickle
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hostile.images import linked, photo
from hostile.tables import damaged, nested


class Program:
    """A pickle that would run a program."""

    def __reduce__(self):
        return os.system, ("touch made",)


def pickled() -> bytes:
    return pickle.dumps({"weight": Program()})


def zipped(entries: dict[str, bytes], **options: Any) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, **options) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return out.getvalue()


def torch_file(make: Callable[[Any], Any]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        import torch

        torch.save(make(torch), path)

    return write


# -- Checkpoints: what is done to the file of a sound one.

Change = Callable[[Path], None]


def content(change: Callable[[bytes], bytes]) -> Change:
    return lambda path: path.write_bytes(change(path.read_bytes()))


def whole(given: bytes) -> Change:
    return lambda path: path.write_bytes(given)


def place(make: Change) -> Change:
    def put(path: Path) -> None:
        path.unlink()
        make(path)

    return put


def tensors(change: Callable[[dict], Any]) -> Change:
    """Other entries of the file's own header, which says where each tensor lies."""

    def write(path: Path) -> None:
        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        changed = json.dumps(change(header) or header).encode()
        path.write_bytes(struct.pack("<Q", len(changed)) + changed + data[8 + size :])

    return write


def tensor(**changes: Any) -> Change:
    """The first tensor's entry with other values."""
    return tensors(lambda header: header[min(header.keys() - {"__metadata__"})].update(changes))


def header(*path: Any, value: Any) -> Change:
    """Our header with another value at a place; Ellipsis takes the place away."""

    def change(found: dict) -> None:
        ours = json.loads(found["__metadata__"]["retailkit"])
        found["__metadata__"]["retailkit"] = damaged(ours, *path, value=value)

    return tensors(change)


def ours(text: str) -> Change:
    return tensors(lambda found: found["__metadata__"].update(retailkit=text))


def of_nan(path: Path) -> None:
    import safetensors.torch

    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    found = safetensors.torch.load_file(path)
    name = min(name for name in found if name.startswith("head"))
    safetensors.torch.save_file(found | {name: found[name] * float("nan")}, path, metadata=metadata)


NO_CHECKPOINT, NO_MODEL, OTHER = "not a retailkit checkpoint", "describes no model", "of another model than its header"
CHECKPOINTS: dict[str, tuple[Change, Any]] = {
    "as it should be": (lambda path: None, ["milk", "soup"]),
    "empty": (whole(b""), NO_CHECKPOINT),
    "text": (whole(b"no checkpoint"), NO_CHECKPOINT),
    "pickle": (whole(pickled()), NO_CHECKPOINT),
    "zip": (whole(zipped({"data.pkl": pickled()})), NO_CHECKPOINT),
    "cut off": (content(lambda data: data[:-999]), NO_CHECKPOINT),
    "cut in its header": (content(lambda data: data[:100]), NO_CHECKPOINT),
    "more at its end": (content(lambda data: data + bytes(8)), NO_CHECKPOINT),
    "header of 2**63 bytes": (content(lambda data: b"\xff" * 7 + b"\x7f" + data[8:]), NO_CHECKPOINT),
    "header of nothing": (content(lambda data: bytes(8) + data[8:]), NO_CHECKPOINT),
    "header that is no JSON": (content(lambda data: data[:8] + b"[" + data[9:]), NO_CHECKPOINT),
    "header nested 100,000 times": (ours(nested(100_000)), NO_CHECKPOINT),
    "tensor outside of the file": (tensor(data_offsets=[0, 2**40]), NO_CHECKPOINT),
    "tensor of negative place": (tensor(data_offsets=[-8, 0]), NO_CHECKPOINT),
    "tensor backwards": (tensor(data_offsets=[8, 0]), NO_CHECKPOINT),
    "tensor of another size": (tensor(shape=[3]), NO_CHECKPOINT),
    "tensor of 2**62 numbers": (tensor(shape=[2**31, 2**31]), NO_CHECKPOINT),
    "tensor of an unknown kind": (tensor(dtype="F3"), NO_CHECKPOINT),
    "weights of NaN": (of_nan, "not finite numbers"),
    "no header of ours": (tensors(lambda found: found.pop("__metadata__") and None), NO_CHECKPOINT),
    "header of a later version": (header("format", value=99), "update retailkit"),
    "no classes": (header("build", "classes", value=...), "header.build.classes is missing"),
    "classes of nobody": (header("build", "classes", value=[]), (NO_MODEL, OTHER, NO_CHECKPOINT)),
    "classes of numbers": (header("build", "classes", value=[1, 2]), "not a str"),
    "a class too many": (header("build", "classes", value=["milk", "soup", "tea"]), OTHER),
    "the same class twice": (header("build", "classes", value=["milk", "milk"]), (NO_MODEL, OTHER, NO_CHECKPOINT)),
    "class that clears a terminal": (header("build", "classes", value=["mi\x1b[2Jlk", "soup"]), "control characters"),
    "model of no name": (header("build", "name", value="__class__"), "__class__"),
    "backbone of a path": (header("build", "backbone", value="timm:../../etc/passwd"), NO_MODEL),
    "backbone from the hub": (header("build", "backbone", value="timm:hf_hub:evil/model"), NO_MODEL),
    "argument of no name": (header("build", "__import__", value="os"), NO_MODEL),
    "photo size of 10**9": (header("facts", "size", value=10**9), "header.facts.size"),
    "photo size of a text": (header("facts", "size", value="48"), "header.facts.size"),
    "way to a square of no name": (header("facts", "fit", value="../pad"), "unknown fit"),
    "history of a text": (header("history", value="x"), "header.history"),
    "pipe": (place(os.mkfifo), "not a regular file"),
    "folder": (place(Path.mkdir), "m.safetensors"),
    "device": (place(linked("/dev/zero")), "not a regular file"),
    "link to itself": (place(lambda path: path.symlink_to(path)), "no such checkpoint"),
}

# -- Weights of a backbone, which come from anywhere.

READ = "w.pth: cannot be read as weights"
WEIGHTS: dict[str, tuple[Any, str]] = {
    "pickle with a program": (pickled(), READ),
    "zip with a program": (zipped({"w/data.pkl": pickled(), "w/version": b"3"}), READ),
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

# -- Archives of data sets.


def member(name: str, **changes: Any) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(f"shop-1/{name}")
    for key, value in changes.items():
        setattr(info, key, value)
    return info


def archive(*more: tuple[Any, bytes], compression=zipfile.ZIP_DEFLATED) -> bytes:
    """The zip of a small data set with more in it."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as packed:
        for name, data in SMALL.items():
            packed.writestr(f"shop-1/samples/{name}", data)
        for info, data in more:
            packed.writestr(info if isinstance(info, zipfile.ZipInfo) else f"shop-1/{info}", data)
    return out.getvalue()


SMALL = {"Images/milk/1.jpg": photo("JPEG"), "Text/milk/1.json": b"[]"}
LINK = member("samples/Images/milk/2.jpg", external_attr=(stat.S_IFLNK | 0o777) << 16)
GOOD = archive()


def huge() -> bytes:
    """An archive whose directory says that each file has 4 GB."""
    first, *others = GOOD.split(b"PK\x01\x02")
    return b"PK\x01\x02".join([first, *(part[:20] + b"\xf0\xff\xff\xff" + part[24:] for part in others)])


def encrypted() -> bytes:
    at = GOOD.index(b"PK\x01\x02")
    return GOOD[:6] + b"\1" + GOOD[7 : at + 8] + b"\1" + GOOD[at + 9 :]


def packed_as(method: int) -> bytes:
    at = GOOD.index(b"PK\x01\x02")
    return GOOD[:8] + bytes([method]) + GOOD[9 : at + 10] + bytes([method]) + GOOD[at + 11 :]


def garbled() -> bytes:
    at = GOOD.index(b"1.jpg") + 5
    return GOOD[:at] + b"\xff" * 40 + GOOD[at + 40 :]


NOT_ZIP, UNPUBLISHED = "not a whole zip", "not the published files"
ARCHIVES: dict[str, tuple[bytes, Any]] = {
    "as it should be": (GOOD, 1),
    "empty": (b"", NOT_ZIP),
    "a page of an error": (b"<!doctype html>404", NOT_ZIP),
    "cut off": (GOOD[:300], NOT_ZIP),
    "of no files": (zipped({}), UNPUBLISHED),
    "path up": (archive(("samples/../../../out.txt", b"x")), 1),
    "path from the root": (archive((member("x"), b""), ("samples//etc/out.txt", b"x")), 1),
    "path of Windows": (archive(("samples/..\\..\\out.txt", b"x")), 1),
    "name of 300 signs": (archive(("samples/" + "n" * 300, b"x")), "cannot be written"),
    "link to passwords": (archive((LINK, b"/etc/passwd")), UNPUBLISHED),
    "file in the place of a folder": (archive(("samples/Images/milk", b"x")), "not a regular file"),
    "photo that was changed": (archive(("samples/Images/milk/1.jpg", photo("JPEG", colour=(1, 2, 3)))), UNPUBLISHED),
    "photo too many": (archive(("samples/Images/tea/1.jpg", photo("JPEG"))), UNPUBLISHED),
    "file of 4 GB": (huge(), "which is not the published data set"),
    "bytes that do not unpack": (garbled(), NOT_ZIP),
    "with a password": (encrypted(), NOT_ZIP),
    "of an unknown compression": (packed_as(99), NOT_ZIP),
}

# -- An exported program: model.onnx, preprocessing.json, a photo.


def graph(name="images", kind="FLOAT", outputs=2, external="", operator="ReduceMean") -> bytes:
    """A model that answers with the mean of red and the rest."""
    import onnx
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
    size = ["n", 3, 16, 16]
    inputs = [helper.make_tensor_value_info(name, getattr(TensorProto, kind), size)]
    found = [helper.make_tensor_value_info("probs", TensorProto.FLOAT, ["n", outputs])]
    made = helper.make_graph([*nodes], "g", inputs, found, [axes, weight])
    return onnx.helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=8).SerializeToString()


PREPARATION = {"size": 16, "fit": "crop", "short_side": 18, "pad_level": 128, "classes": ["milk", "soup"]}


def prepared(**changes: Any) -> dict[str, Any]:
    return {"preprocessing.json": json.dumps({k: v for k, v in (PREPARATION | changes).items() if v is not ...})}


MODEL, PREPARED, SHOWN = "model.onnx", "preprocessing.json", "x.png"
PROGRAMS: dict[str, tuple[dict[str, Any] | Callable[[], dict[str, Any]], Any]] = {
    "as it should be": ({}, ["milk", "soup"]),
    "model missing": ({MODEL: None}, MODEL),
    "model empty": ({MODEL: b""}, MODEL),
    "model of text": ({MODEL: b"no model"}, MODEL),
    "model that is a page": ({MODEL: b"<!doctype html>"}, MODEL),
    "model cut off": (lambda: {MODEL: graph()[:-60]}, MODEL),
    "model with weights outside": (lambda: {MODEL: graph(external="../../secret.bin")}, MODEL),
    "model with weights at the root": (lambda: {MODEL: graph(external="/etc/passwd")}, MODEL),
    "model of another input": (lambda: {MODEL: graph(name="pixels")}, MODEL),
    "model of whole numbers": (lambda: {MODEL: graph(kind="INT64")}, MODEL),
    "model of more classes": (lambda: {MODEL: graph(outputs=5)}, MODEL),
    "model of an unknown operator": (lambda: {MODEL: graph(operator="Evil")}, MODEL),
    "model that is a device": ({MODEL: linked("/dev/zero")}, MODEL),
    "description missing": ({PREPARED: None}, PREPARED),
    "description cut off": ({PREPARED: b'{"size": 1'}, PREPARED),
    "description nested 100,000 times": ({PREPARED: nested(100_000)}, PREPARED),
    "size missing": (prepared(size=...), PREPARED),
    "size of a text": (prepared(size="16"), PREPARED),
    "size of 10**6": (prepared(size=10**6), PREPARED),
    "size of nothing": (prepared(size=0), PREPARED),
    "classes of a number": (prepared(classes=7), PREPARED),
    "photo missing": ({SHOWN: None}, SHOWN),
    "photo empty": ({SHOWN: b""}, SHOWN),
    "photo of text": ({SHOWN: b"no photo"}, SHOWN),
    "photo that is a device": ({SHOWN: linked("/dev/zero")}, SHOWN),
    "photo that is a pipe": ({SHOWN: os.mkfifo}, SHOWN),
    "photo of 15000 x 15000": (lambda: {SHOWN: _large()}, SHOWN),
}


def _large() -> bytes:
    from hostile.images import png

    return png(15_000, 15_000)
