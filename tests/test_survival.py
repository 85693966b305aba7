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
from retailkit.cache import RESUMED, _remove_old_drafts, replacing
from retailkit.config import UserError
from retailkit.explain import lime
from retailkit.explain.lime import LocalExplanation

ASKED = ("--root", "photos.csv", "--split", "train", "--budget", "400", "--classes", "top1")
TESTS = Path(__file__).parent


@pytest.fixture
def explain(coloured, tmp_path, monkeypatch):
    """Return a function that starts `retailkit explain` for nine photos, into the folder `out`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RETAILKIT_CACHE", str(tmp_path / "cache"))
    data, checkpoint = coloured
    photos = data.split("train").table[["image", "label", "split"]]
    (tmp_path / "photos").mkdir()
    for path in photos["image"]:
        (tmp_path / "photos" / Path(path).name).write_bytes(Path(path).read_bytes())
    photos.assign(image=[f"photos/{Path(path).name}" for path in photos["image"]]).to_csv("photos.csv", index=False)
    (tmp_path / "m.safetensors").write_bytes(checkpoint.read_bytes())

    def start(*words, out="out"):
        command = [sys.executable, "-m", "retailkit", "explain", *ASKED, "--checkpoint", "m.safetensors", "--json"]
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

    return made


def fails(monkeypatch, name, error, after):
    """Let a function of `os` fail from the given call on."""
    real, calls = getattr(os, name), itertools.count()
    monkeypatch.setattr(os, name, lambda *given: real(*given) if next(calls) < after else throw(error))


def throw(error):
    raise error


@pytest.mark.fault(
    fault="the disk is full",
    injected="ENOSPC when the fifth file is written out",
    lost="nothing",
    repeated="the file that did not fit, which is named",
)
@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_keeps_what_is_finished(photos, monkeypatch, reason):
    with monkeypatch.context() as patch:
        fails(patch, "fsync", OSError(reason, os.strerror(reason)), after=4)
        with pytest.raises(UserError, match=r"safetensors: cannot be written \(.*free some space"):
            photos()
    assert photos.count == 4 and photos() == 5
    assert RESUMED.pop() == "4 of 9 explanations were there already"


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root mounts a disk")
@pytest.mark.fault(
    fault="a small disk is full",
    injected="results on a mounted tmpfs of a few hundred kB (as root only)",
    lost="nothing",
    repeated="the file that did not fit, which is named",
)
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
    RESUMED.clear()


@pytest.mark.fault(
    fault="the folder becomes read-only",
    injected="EROFS when the fifth file is put in its place",
    lost="nothing",
    repeated="the file that could not be written, which is named",
)
def test_a_folder_that_becomes_read_only_keeps_what_is_finished(photos, monkeypatch):
    with monkeypatch.context() as patch:
        fails(patch, "replace", OSError(errno.EROFS, "Read-only file system"), after=4)
        with pytest.raises(UserError, match="cannot be written"):
            photos()
    assert photos.count == 4 and photos() == 5
    RESUMED.clear()


@pytest.mark.fault(
    fault="power is cut while a file is written",
    injected="the write ends at any of its steps: half a draft, a whole draft, before and after the new name",
    lost="nothing",
    repeated="the file that was being written",
)
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


@pytest.mark.fault(
    fault="the clock jumps",
    injected="time.time runs ten years ahead, then ten back, and files bear times of the future",
    lost="nothing",
    repeated="nothing",
)
def test_a_clock_that_jumps_changes_nothing(photos, monkeypatch, tmp_path):
    now = time.time()
    with monkeypatch.context() as patch:
        fails(patch, "fsync", OSError(errno.ENOSPC, "full"), after=4)
        with pytest.raises(UserError):
            photos()
    for path in (tmp_path / "out").iterdir():
        os.utime(path, (now + 9e8, now + 9e8))
    for jump in (3e8, -3e8):
        monkeypatch.setattr(time, "time", lambda jump=jump: now + jump)
        (tmp_path / f"f{jump}").mkdir()
        with replacing(tmp_path / f"f{jump}" / "a") as draft:  # a draft of a process that runs is never removed
            draft.write_text("a")
            _remove_old_drafts.__wrapped__(draft.parent)
    assert photos() == 5 and photos() == 0
    RESUMED.clear()


BOTH = """
import torch
from retailkit.cache import kept_tensors
made = lambda i: {"a": torch.full((50_000,), float(i))}
print([kept_tensors("both", f"key{i}", lambda: made(i))["a"].mean().item() for i in range(60)])
"""


@pytest.mark.fault(
    fault="two runs use one cache at once",
    injected="two processes make, keep and read the same files, sixty times",
    lost="nothing",
    repeated="what both began before either had finished",
)
def test_two_processes_on_one_cache_agree(own_cache, tmp_path):
    command = [sys.executable, "-c", BOTH]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [json.loads(process.communicate(timeout=60)[0]) for process in both] == [[float(i) for i in range(60)]] * 2
    assert len(list((tmp_path / "cache" / "both").iterdir())) == 60


@pytest.mark.check
@pytest.mark.fault(
    fault="a machine of a scheduler that shares no disk is gone",
    injected="SIGKILL for the dask worker and its processes, after the first result",
    lost="nothing",
    repeated="the piece that it had begun, by another machine in the same run",
)
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
@pytest.mark.fault(
    fault="the scheduler is killed",
    injected="SIGKILL for `dask scheduler`, after the first result",
    lost="nothing",
    repeated="the pieces that were under way",
)
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


def rows():
    """The faults in the order of the tests: what, injected how, lost, repeated."""
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.fault":
                told = {part.arg: ast.literal_eval(part.value) for part in node.keywords}
                yield [told[name] for name in ("fault", "injected", "lost", "repeated")]


def test_the_table_of_faults_is_that_of_the_tests():
    text = (TESTS.parent / "docs" / "faults.md").read_text(encoding="utf-8")
    table = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]
    assert table == list(rows())
