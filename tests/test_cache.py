"""What decides a key, how files are opened and replaced, and the feature cache."""

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from retailkit import cache
from retailkit.cache import check_output, code_fingerprint, digest, file_identity, kept_tensors, open_file, replacing
from retailkit.config import UsageError, UserError, cache_dir


@dataclass
class Options:
    lr: float = 0.1


PARTS = {
    "number and text": (1, "1"),
    "boundary": (["ab", "c"], ["a", "bc"]),
    "bytes": (b"a", b"b"),
    "path": (Path("a"), Path("b")),
    "values": (torch.zeros(2), torch.ones(2)),
    "shape": (torch.zeros(2, 3), torch.zeros(3, 2)),
    "kind": (torch.zeros(4), torch.zeros(4, dtype=torch.int32)),
    "half": (torch.zeros(3, dtype=torch.bfloat16), torch.ones(3, dtype=torch.bfloat16)),
    "array": (np.zeros(2), np.ones(2)),
    "names": ({"a": torch.zeros(1)}, {"b": torch.zeros(1)}),
    "options": (Options(), Options(0.2)),
}


@pytest.mark.parametrize("case", PARTS)
def test_a_digest_changes_with_its_parts_and_with_nothing_else(case):
    one, other = PARTS[case]
    assert digest(one) == digest(one) != digest(other)
    assert digest({"a": one, "b": 1}) == digest({"b": 1, "a": one})
    with pytest.raises(TypeError, match="object has no digest"):
        digest([one, object()])


@pytest.mark.parametrize("place", [0, 1 << 20, -1])
def test_one_byte_anywhere_in_a_large_file_tells_it_from_another(place, tmp_path):
    """Only both ends of a large file were hashed."""
    path, content = tmp_path / "photo.bmp", bytearray(3 << 20)
    path.write_bytes(content)
    identity = file_identity(path)
    content[place] = 1
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))
    assert file_identity(path) != identity
    assert file_identity(tmp_path / "missing.png") == str(tmp_path / "missing.png")
    (tmp_path / "copy").mkdir()
    assert file_identity(path) == file_identity(shutil.copy(path, tmp_path / "copy"))


def test_sources_follow_imports(tmp_path, monkeypatch):
    """Two lists of sources had to be kept by hand, and each missed a file."""
    package = tmp_path / "shop"
    files = {"a": "from shop import b\nimport os", "b": "def f():\n    from shop.c.d import x", "c/d": "x = 1"}
    for name, text in (files | dict.fromkeys(["__init__", "c/__init__", "lonely"], "")).items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / f"{name}.py").write_text(text)
    (package / "c/faces.yaml").write_text("a: 1")
    monkeypatch.setattr(cache, "PACKAGE", package)
    found = [path.relative_to(package).as_posix() for path in cache.sources("shop.a")]
    assert found == ["__init__.py", "a.py", "b.py", "c/d.py", "c/faces.yaml"]
    before = code_fingerprint.__wrapped__("shop.a")
    (package / "lonely.py").write_text("y = 2")
    assert code_fingerprint.__wrapped__("shop.a") == before
    (package / "c/d.py").write_text("x = 2")
    assert code_fingerprint.__wrapped__("shop.a") != before
    monkeypatch.undo()
    names = {path.name for path in cache.sources("retailkit.models")}
    assert {"encoders.py", "classifier.py", "config.py"} <= names and not {"cli.py", "charts.py"} & names


@pytest.mark.parametrize("damage", [lambda whole: whole[:-4], lambda whole: b"", lambda whole: b"[1]"])
def test_damaged_features_are_made_again(own_cache, damage):
    made, path = [], cache_dir("features") / "key.safetensors"

    def kept(key):
        values = kept_tensors("features", key, lambda: made.append(key) or {"values": torch.arange(3.0)})["values"]
        assert torch.equal(values, torch.arange(3.0))

    kept("key")
    kept("key")
    shutil.copy(path, path.with_stem("other"))
    kept("other")
    path.write_bytes(damage(path.read_bytes()))
    kept("key")
    assert made == ["key", "other", "key"]
    assert {p.name for p in path.parent.iterdir()} == {"key.safetensors", "other.safetensors"}


def test_a_file_is_replaced_in_one_step(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    with replacing(path) as draft:
        draft.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as draft:
        draft.write_text("half")
        raise KeyboardInterrupt
    with pytest.raises(FileNotFoundError), replacing(path):
        pass  # a writer that wrote nothing
    assert path.read_text() == "old" and len(list(path.parent.iterdir())) == 1


def test_a_link_stays_and_a_device_is_not_replaced(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "device").symlink_to("/dev/null")
    with replacing(tmp_path / "link") as draft:
        draft.write_text("new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "new"
    with pytest.raises(UserError, match="not a regular file"), replacing(tmp_path / "device"):
        pass
    assert (tmp_path / "device").is_symlink()


def test_drafts_of_killed_processes_are_removed(tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    (tmp_path / f".young.csv.{ended.pid}-1.tmp").touch()
    for process in (ended.pid, 1):
        draft = tmp_path / f".old.csv.{process}-1.tmp"
        draft.touch()
        os.utime(draft, (0, 0))
    with replacing(tmp_path / "new.csv") as draft:
        draft.touch()
    left = [".old.csv.1-1.tmp", f".young.csv.{ended.pid}-1.tmp", "new.csv"]
    assert sorted(path.name for path in tmp_path.iterdir()) == left


def test_an_output_is_checked_before_any_work(tmp_path):
    """`evaluate --root p.csv --predictions p.csv` lost the user's own file."""
    own, ours, data = tmp_path / "own.csv", tmp_path / "ours.csv", tmp_path / "photos"
    data.mkdir()
    own.write_text("image,label\n")
    ours.write_text("row,label,predicted,confidence,correct\n")
    (tmp_path / "hard link.csv").hardlink_to(ours)
    for path, inputs in ((ours, [ours]), (tmp_path / "hard link.csv", [None, ours]), (data / "new", [data]), (own, [])):
        with pytest.raises(UsageError, match=r"also an input|lies in the data|not written by retailkit"):
            check_output(path, inputs)
    for path, force in ((ours, False), (own, True), (tmp_path / "new" / "deep" / "p.csv", False)):
        check_output(path, [data, None, ""], force)
    assert own.read_text() and not (tmp_path / "new").exists()


def test_json_holds_no_nan_and_knows_numpy():
    given = {"a": [float("nan"), np.float32(0.5), (np.int64(1), float("-inf"))], "b": "NaN"}
    assert json.loads(cache.to_json(given)) == {"a": [None, 0.5, [1, None]], "b": "NaN"}


@pytest.mark.timeout(20)
def test_what_is_no_regular_file_or_too_large_is_refused_and_does_not_hang(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    with open_file(path, 5) as file:
        assert file.read() == b"12345"
    with pytest.raises(UserError, match="5 bytes, and at most 4 are read"):
        open_file(path, 4)
    with pytest.raises(UserError, match=r"below: cannot be written"), replacing(path / "below") as draft:
        draft.write_text("")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (tmp_path / "pipe", tmp_path / "loop", tmp_path, "/dev/zero", tmp_path / "no", "a\0b", "x" * 5000):
        with pytest.raises(UserError, match=r"cannot be read|not a regular file"):
            open_file(path)
