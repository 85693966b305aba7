"""Faults of long runs: what is finished is kept, nothing half-written is read, and a rerun does what is missing.

Tests with the mark `fault` are the rows of the table in docs/faults.md, wherever they are.
"""

import ast
import errno
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from retailkit import training
from retailkit.cache import RESUMED, replacing
from retailkit.config import UserError
from retailkit.explain import lime
from retailkit.explain.lime import LocalExplanation

ASKED = "--root photos.csv --split train --checkpoint photos/model.safetensors --budget 400 --classes top1 --json"
TESTS = Path(__file__).parent


@pytest.fixture
def explain(coloured, own_cache, tmp_path, monkeypatch):
    """Return a function that starts `retailkit explain` for nine photos, into the folder `out`."""
    monkeypatch.chdir(tmp_path)
    data, checkpoint = coloured
    photos = data.split("train").table[["image", "label", "split"]]
    shutil.copytree(checkpoint.parent, "photos")
    photos.assign(image=[f"photos/{Path(path).name}" for path in photos["image"]]).to_csv("photos.csv", index=False)

    def start(*words, out="out"):
        command = [sys.executable, "-m", "retailkit", "explain", *ASKED.split()]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
        return subprocess.Popen([*command, "--output", out, *words], **pipes)

    return start


def ended(process):
    """Exit code of a command, the facts in its last line, and what it said of an error."""
    out, err = process.communicate(timeout=500)
    assert "Traceback" not in err, err
    return process.returncode, json.loads(out.splitlines()[-1]) if out.strip() else {}, err


def finished(folder="out"):
    """The explanations in a folder, each of which is whole, and when they were written."""
    files = {path.name: path.stat().st_mtime_ns for path in Path(folder).glob("[!.]*.safetensors")}
    for name in files:
        LocalExplanation.load(Path(folder, name))
    return files


def wait_for(condition, seconds=500):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}


@pytest.fixture
def photos(coloured, tmp_path):
    """Return a function that explains nine photos in this process, into the folder `out`; returns how many it made."""
    data, checkpoint = coloured
    predictor = training.load_checkpoint(checkpoint)[0]

    def made():
        before = finished(tmp_path / "out")
        try:
            lime.explain_dataset(predictor, data.split("train", 48), tmp_path / "out", budget=16, n_segments=4)
        finally:
            after = finished(tmp_path / "out")
            assert before.items() <= after.items(), "what is finished is not made again"
            assert len(after) == len(list((tmp_path / "out").iterdir())), "nothing half-written is left"
            made.count = len(after) - len(before)
        return made.count

    yield made
    RESUMED.clear()


def fails(monkeypatch, name, error, after):
    """Let a function of `os` fail from the given call on."""
    real, calls = getattr(os, name), itertools.count()
    monkeypatch.setattr(os, name, lambda *given: real(*given) if next(calls) < after else throw(error))


def throw(error):
    raise error


BROKEN = [("fsync", errno.ENOSPC), ("fsync", errno.EDQUOT), ("fsync", errno.EFBIG), ("replace", errno.EROFS)]


@pytest.mark.fault("the disk is full")
@pytest.mark.fault("the folder becomes read-only")
def test_a_disk_that_is_full_or_read_only_keeps_what_is_finished(photos, monkeypatch):
    for after, (name, reason) in zip((4, 1, 1, 1), BROKEN, strict=True):
        with monkeypatch.context() as patch:
            fails(patch, name, OSError(reason, os.strerror(reason)), after)
            with pytest.raises(UserError, match=r"safetensors: cannot be written \(.*free some space"):
                photos()
        assert photos.count == after
    assert photos() == 2 and RESUMED[-1] == "7 of 9 explanations were there already"


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root mounts a disk")
@pytest.mark.fault("a small disk is full")
def test_a_small_disk_that_is_full_keeps_what_is_finished(photos, tmp_path):
    photos()
    size = sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "out").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size // 2}", "none", str(tmp_path / "out")]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this root may not mount a disk")
    try:
        with pytest.raises(UserError, match=r"cannot be written \(No space left"):
            photos()
        assert 0 < photos.count < 9
        subprocess.run(["mount", "-o", f"remount,size={2 * size}", str(tmp_path / "out")], check=True)
        assert photos() == 9 - len(finished(tmp_path / "out")) + photos.count
    finally:
        subprocess.run(["umount", str(tmp_path / "out")], check=True)


@pytest.mark.fault("power is cut while a file is written")
def test_a_power_cut_leaves_the_old_file_or_the_new_one(photos, monkeypatch, tmp_path):
    """A new name could reach the disk before the content did: the file was empty or full of zeros after a power cut."""
    steps = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *given, name=name, real=real: steps.append(name) or real(*given))
    assert photos() == 9 and steps == ["fsync", "replace"] * 9
    for stop in ("write", "fsync", "replace"):
        path = tmp_path / "file"
        path.write_text("old")
        with monkeypatch.context() as patch:
            if stop != "write":
                fails(patch, stop, KeyboardInterrupt, after=0)
            patch.setattr(Path, "unlink", lambda *given, **more: None)  # nobody tidies up without power
            with pytest.raises(KeyboardInterrupt), replacing(path) as draft:
                draft.write_text("new, but")
                assert stop != "write" or throw(KeyboardInterrupt)
        assert path.read_text() == "old" and draft.exists()
        draft.unlink()


@pytest.mark.fault("the clock jumps")
def test_a_clock_that_jumps_changes_nothing(photos, monkeypatch, tmp_path):
    now = time.time()
    with monkeypatch.context() as patch:
        fails(patch, "fsync", OSError(errno.ENOSPC, "full"), after=4)
        with pytest.raises(UserError):
            photos()
    for path in (tmp_path / "out").iterdir():
        os.utime(path, (now + 9e8, now + 9e8))
    for jump, made in ((3e8, 5), (-3e8, 0)):
        monkeypatch.setattr(time, "time", lambda jump=jump: now + jump)
        assert photos() == made


BOTH = """
import torch
from retailkit.cache import kept_tensors
made = lambda i: {"a": torch.full((50_000,), float(i))}
print([kept_tensors("both", f"key{i}", lambda: made(i))["a"].mean().item() for i in range(60)])
"""


@pytest.mark.fault("two runs use one cache at once")
def test_two_processes_on_one_cache_agree(own_cache, tmp_path):
    command = [sys.executable, "-c", BOTH]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [json.loads(process.communicate(timeout=60)[0]) for process in both] == [[float(i) for i in range(60)]] * 2
    assert len(list((tmp_path / "cache" / "both").iterdir())) == 60


@pytest.mark.check
@pytest.mark.fault("a machine of a scheduler that shares no disk is gone")
def test_machines_with_own_disks_explain_as_one_process_does_and_one_may_be_killed(explain, machines):
    scheduler, worker = machines
    _, address = scheduler()
    (first, _), (_, folder) = worker("one"), worker("two")
    run = explain("--scheduler", address)
    wait_for(lambda: finished() or run.poll() is not None)
    os.killpg(first.pid, signal.SIGKILL)
    code, told, err = ended(run)
    assert (code, told.get("explained"), told.get("failed")) == (0, 9, 0), err
    assert len(list((folder / "cache" / "received" / "files").rglob("*"))) > 9, "its inputs came by their content"
    assert ended(explain("--jobs", "1", out="one"))[0] == 0
    assert contents("one") == contents("out")


@pytest.mark.check
@pytest.mark.fault("the scheduler is killed")
def test_a_killed_scheduler_ends_the_command_and_a_rerun_goes_on(explain, machines):
    scheduler, worker = machines
    process, address = scheduler()
    worker("one"), worker("two")
    run = explain("--scheduler", address)
    wait_for(lambda: finished() or run.poll() is not None)
    process.kill()
    process.wait()
    code, _, err = ended(run)
    before = finished()
    assert code == 1 and "the scheduler is gone" in err and 1 <= len(before) < 9
    code, told, err = ended(explain("--jobs", "1"))
    assert (code, told["explained"], told["kept"]) == (0, 9, len(before)), err
    assert before.items() <= finished().items()


def faults():
    """What the tests call their faults, in their order."""
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.fault":
                told = [*node.args, *(part.value for part in node.keywords if part.arg == "fault")]
                yield ast.literal_eval(told[0])


def test_the_table_of_faults_has_a_row_for_each_of_the_tests():
    text = (TESTS.parent / "docs" / "faults.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]
    assert [row[0] for row in rows] == list(faults()) and {len(row) for row in rows} == {4}
