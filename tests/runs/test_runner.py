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
from retailkit.config import UsageError
from retailkit.runs.runner import data_identity, parse_parameters


def record(name, run="fast-synthetic"):
    return json.loads(Path("papermill_runs/latest", run, f"{name}.json").read_text())


def test_a_failed_notebook_is_kept_and_a_rerun_does_only_what_is_not_done(workbook):
    prepared = []

    def execute(*files, **options):
        results = runs.execute(files, jobs=2, prepare=lambda *where: prepared.append(where), **options)
        return [result.status for result in results]

    good, bad = workbook("10_good"), workbook("20_bad", "1 / 0")
    assert execute(good, bad) == ["ok", "failed"] and prepared == [("fast", "synthetic", None)]
    assert record("10_good")["status"] == "ok" and record("10_good")["metrics"]["value"]["value"] == 0.5
    assert record("10_good")["parameters"] == {"PROFILE": "fast", "DATASET": "synthetic", "SEED": 0, "VALUE": 0.5}
    assert record("20_bad")["status"] == "failed"
    assert "ZeroDivisionError: division by zero" in record("20_bad")["error"]
    assert "ZeroDivisionError" in Path("papermill_runs/latest/fast-synthetic/20_bad.ipynb").read_text()
    workbook("20_bad")
    assert execute(good, bad) == ["kept", "ok"]
    assert execute(good, bad) == ["kept", "kept"] and len(prepared) == 1, "one alone makes what it needs itself"
    assert execute(good, extra={"VALUE": 0.75}) == ["ok"] and record("10_good")["metrics"]["value"]["value"] == 0.75


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


def test_unknown_parameters_stop_everything_before_it_starts(workbook):
    with pytest.raises(UsageError, match=r"unknown parameter of 10_good 'VALU'; did you mean 'VALUE'"):
        runs.execute([workbook("10_good")], extra={"VALU": 1})
    assert not Path("papermill_runs").exists()


def test_a_cell_that_never_ends_is_stopped(workbook):
    (result,) = runs.execute([workbook("10_long", "import time; time.sleep(60)")], timeout=2)
    assert result.status == "failed" and record("10_long")["error"] == result.error
    assert "more than 2 seconds" in result.error and "--cell-seconds" in result.error


SLOW = "open('started', 'w').close(); import time; time.sleep(60)"


def test_an_interrupted_run_ends_its_kernels_and_resumes(workbook, tmp_path):
    first, second = workbook("10_first"), workbook("20_second", SLOW)
    script = (
        "from pathlib import Path; from retailkit import runs\n"
        f"runs.execute([Path({str(first)!r}), Path({str(second)!r})], jobs=1)"
    )
    child = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    flag = tmp_path / "notebooks" / "started"
    deadline = time.time() + 90
    while not flag.exists() and time.time() < deadline:
        time.sleep(0.1)
    assert flag.exists()
    child.send_signal(signal.SIGTERM)
    assert child.wait(30) != 0
    assert record("10_first")["status"] == "ok" and record("20_second")["status"] == "running"
    left = subprocess.run(["pgrep", "-f", str(tmp_path / "notebooks")], capture_output=True, text=True).stdout.split()
    assert not [pid for pid in left if int(pid) != os.getpid()]
    workbook("20_second")
    again = runs.execute([first, second])
    assert [r.status for r in again] == ["kept", "ok"]


def test_notebooks_are_found_by_number_and_misspelt_names_get_a_hint(workbook):
    path = workbook("20_training")
    assert runs.notebooks(["20"]) == [path] == runs.notebooks(["20_training"]) == runs.notebooks()
    with pytest.raises(UsageError, match="did you mean '20_training'"):
        runs.notebooks(["20_trainig"])


def test_parameters_are_read_as_yaml():
    assert parse_parameters(["A=3", "B=false", "C=x=y", "D="]) == {"A": 3, "B": False, "C": "x=y", "D": ""}
    with pytest.raises(UsageError, match="NAME=VALUE"):
        parse_parameters(["A"])
