"""The runner with real, tiny notebooks."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from retailkit import runs
from retailkit.runs.runner import data_identity


def record(name):
    return json.loads(Path("papermill_runs/latest/fast-synthetic", f"{name}.json").read_text())


def test_a_failed_notebook_is_kept_and_a_rerun_does_only_what_is_not_done(workbook):
    prepared = []

    def execute(*files, **options):
        results = runs.execute(files, jobs=2, prepare=lambda: prepared.append("once"), **options)
        return [result.status for result in results]

    good, bad = workbook("10_good"), workbook("20_bad", "1 / 0")
    assert execute(good, bad) == ["ok", "failed"] and prepared == ["once"]
    done, failed = record("10_good"), record("20_bad")
    assert done["status"] == "ok" and done["metrics"]["value"]["value"] == 0.5
    assert done["parameters"] == {"PROFILE": "fast", "DATASET": "synthetic", "SEED": 0, "VALUE": 0.5}
    assert failed["status"] == "failed" and "ZeroDivisionError: division by zero" in failed["error"]
    assert "ZeroDivisionError" in Path("papermill_runs/latest/fast-synthetic/20_bad.ipynb").read_text()
    assert execute(bad) == ["failed"]
    assert record("20_bad")["resumed"][0].startswith("an earlier run ended as failed after ")
    workbook("20_bad")
    assert execute(good, bad) == ["kept", "ok"]
    assert execute(good, bad) == ["kept", "kept"] and len(prepared) == 1, "one alone makes what it needs itself"


@pytest.mark.parametrize("root", ["photos", "photos/list.csv"])
def test_a_photo_of_the_same_size_makes_another_data_set(tmp_path, root):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"one")
    (tmp_path / "photos" / "list.csv").write_text(f"image,label,text\na.png,milk,{'long ' * 200}\n")
    given = {"DATASET": "folder", "ROOT": str(tmp_path / root)}
    before = data_identity(given)
    (tmp_path / "photos" / "a.png").write_bytes(b"two")
    assert data_identity(given) != before
    (tmp_path / "photos").rename(tmp_path / "moved")
    (tmp_path / "moved" / "a.png").write_bytes(b"one")
    assert data_identity(given | {"ROOT": str(tmp_path / root.replace("photos", "moved"))}) == before


@pytest.mark.usefixtures("in_process")
def test_a_cell_that_never_ends_is_stopped(workbook):
    (result,) = runs.execute([workbook("10_long", "import time; time.sleep(60)")], timeout=2)
    assert result.status == "failed" and record("10_long")["error"] == result.error
    assert "more than 2 seconds" in result.error and "--cell-seconds" in result.error


SLOW = """
import os, time
with open("started.part", "w") as file:
    file.write(f"{os.getpid()} {os.getppid()}")
os.rename("started.part", "started")
time.sleep(60)"""


def is_running(process):
    """Say whether a process is there and no zombie."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", process], capture_output=True, text=True).stdout
    return state.strip()[:1] not in ("", "Z")


def within(seconds, condition):
    """Wait until a condition holds; say whether it did in time."""
    deadline = time.time() + seconds
    while not (held := condition()) and time.time() < deadline:
        time.sleep(0.1)
    return held


@pytest.mark.fault(
    fault="a run is interrupted",
    injected="Ctrl-C, SIGTERM or SIGKILL while the second of two notebooks runs",
    lost="nothing",
    repeated="the notebook that was running; trainings go on from their last epoch",
)
@pytest.mark.parametrize(
    "how", [*(pytest.param(how, marks=pytest.mark.check) for how in ("SIGTERM", "SIGKILL")), "Ctrl-C"]
)
def test_an_interrupted_run_leaves_no_process_and_resumes(workbook, tmp_path, how):
    """Kernels and workers lived on after `kill -9`; Ctrl-C, which reaches every process of the terminal, hung."""
    first, second = workbook("10_first"), workbook("90_second", SLOW)
    command = [sys.executable, "-m", "retailkit", "run", "--jobs", "1"]
    child = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    flag = tmp_path / "notebooks" / "started"
    assert within(120, flag.exists)
    if how == "Ctrl-C":
        os.killpg(child.pid, signal.SIGINT)
    else:
        child.send_signal(getattr(signal, how))
    assert child.wait(30) != 0
    if how == "Ctrl-C":
        assert "the same command goes on from here" in child.stderr.read()
    assert within(15, lambda: not any(map(is_running, flag.read_text().split())))
    assert record("10_first")["status"] == "ok" and record("90_second")["status"] == "running"
    workbook("90_second")
    assert [r.status for r in runs.execute([first, second])] == ["kept", "ok"]
    assert "resumed" not in record("10_first") and "resumed" not in record("90_second"), "its sources are others now"


@pytest.mark.usefixtures("in_process")
def test_the_kernel_is_this_python_whatever_is_installed_as_python3(workbook, tmp_path, monkeypatch):
    """JupyterHub and Nix put a `python3` first that is another Python; a long TMPDIR leaves no room for a socket."""
    spec = tmp_path / "others" / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text('{"argv": ["/bin/false", "{connection_file}"], "display_name": "other", "language": "python"}')
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "others"))
    long = tmp_path / ("temporary" * 12)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    (result,) = runs.execute([workbook("10_python", f"import sys\nassert sys.executable == {sys.executable!r}")])
    assert result.status == "ok", result.error


DAMAGED = {
    "cut record": ("json", lambda text: text[:50]),
    "record of another kind": ("json", lambda text: "[1]"),
    "record without fields": ("json", lambda text: '{"notebook": "10_good", "status": "ok", "metrics": {"a": {}}}'),
    "cut notebook": ("ipynb", lambda text: text[:200]),
    "empty notebook": ("ipynb", lambda text: ""),
}


@pytest.mark.fault(
    fault="a record or an executed notebook is cut off",
    injected="the file is cut, emptied, or holds something else",
    lost="that result",
    repeated="that notebook",
)
@pytest.mark.usefixtures("in_process")
def test_a_damaged_result_breaks_nothing_and_is_made_again(workbook):
    """A cut executed notebook or a record with missing fields broke every later `run` and `list`."""
    path = workbook("10_good")
    runs.execute([path])
    folder = Path("papermill_runs/latest/fast-synthetic")
    for suffix, damage in DAMAGED.values():
        result = folder / f"10_good.{suffix}"
        whole = result.read_text()
        result.write_text(damage(whole))
        failures = runs.publish(folder, "fast", "synthetic")
        assert len(failures) == (suffix == "json") and len(runs.collect()) == (suffix != "json")
        assert (folder / "10_good.html").is_file() == (suffix == "json")
        result.write_text(whole)
    (folder / "10_good.ipynb").write_text("")
    assert [r.status for r in runs.execute([path])] == ["ok"]


def test_notebooks_are_found_by_number_and_by_name(workbook):
    path = workbook("20_training")
    assert runs.notebooks(["20"]) == [path] == runs.notebooks(["20_training"]) == runs.notebooks()
