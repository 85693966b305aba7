"""Faults of long runs: what is finished is kept, nothing half-written is read, and a rerun does what is missing.

Tests with the mark `fault` are the rows of the table in docs/faults.md, wherever they are.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

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
    fault="a worker process is killed",
    injected="SIGKILL for one process of `--jobs 2`, after the first result",
    lost="nothing",
    repeated="the piece that it had begun, which is named",
)
def test_a_killed_process_fails_its_piece_alone(explain):
    run = explain("--jobs", "2")
    wait_for(lambda: finished() or run.poll() is not None)
    children = subprocess.run(["pgrep", "-P", str(run.pid), "-f", "spawn_main"], capture_output=True, text=True)
    os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
    code, told, err = ended(run)
    assert (code, told["explained"], told["failed"]) == (1, 8, 1) and "its process was killed" in err
    before = finished()
    code, told, err = ended(explain("--jobs", "2"))
    assert (code, told["explained"], told["kept"]) == (0, 9, 8)
    assert before.items() <= finished().items()


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
