"""The runner with real, tiny notebooks; records; expectations."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest

from retailkit import runs
from retailkit.config import UsageError, UserError
from retailkit.runs import pages
from retailkit.runs.execute import data_identity, parse_parameters
from retailkit.runs.record import FIGURE_BYTES

BODY = """from retailkit import runs
run = runs.start({name!r})
{code}
run.metric("value", VALUE, n=1)
run.finish()"""


@pytest.fixture
def workbook(tmp_path, monkeypatch):
    """A checkout with no notebook yet; `add(name, code)` writes one."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RETAILKIT_RUN_DIR", raising=False)
    monkeypatch.setenv("RETAILKIT_DEVICE", "cpu")  # torch need not be imported to know

    def add(name, code=""):
        knobs = 'PROFILE = "fast"  # p\nDATASET = "synthetic"  # d\nROOT = ""  # r\nSEED = 0  # s\nVALUE = 0.5  # v'
        cells = [nbformat.v4.new_code_cell(knobs), nbformat.v4.new_code_cell(BODY.format(name=name, code=code))]
        cells[0].metadata["tags"] = ["parameters"]
        notebook = nbformat.v4.new_notebook(cells=cells)
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, folder / f"{name}.ipynb")
        return folder / f"{name}.ipynb"

    return add


def record(name, run="fast-synthetic"):
    return json.loads(Path("papermill_runs/latest", run, f"{name}.json").read_text())


def test_a_failed_notebook_is_kept_and_the_others_go_on(workbook):
    files = [workbook("10_good"), workbook("20_bad", "1 / 0")]
    good, bad = runs.execute(files, jobs=2, say=lambda line: None)
    assert (good.status, bad.status) == ("ok", "failed")
    assert "ZeroDivisionError: division by zero" in bad.error
    assert record("10_good")["status"] == "ok" and record("10_good")["metrics"]["value"]["value"] == 0.5
    assert record("10_good")["parameters"] == {"PROFILE": "fast", "DATASET": "synthetic", "SEED": 0, "VALUE": 0.5}
    assert record("20_bad")["status"] == "failed"
    assert "ZeroDivisionError" in Path("papermill_runs/latest/fast-synthetic/20_bad.ipynb").read_text()


def test_a_rerun_does_only_what_is_not_done(workbook):
    files = [workbook("10_good"), workbook("20_bad", "1 / 0")]
    prepared = []
    runs.execute(files, jobs=2, say=lambda line: None, prepare=lambda: prepared.append(1))
    files[1] = workbook("20_bad")
    again = runs.execute(files, jobs=2, say=lambda line: None, prepare=lambda: prepared.append(1))
    assert [r.status for r in again] == ["kept", "ok"] and prepared == [1], "one alone makes what it needs itself"
    third = runs.execute(files, jobs=2, say=lambda line: None, prepare=lambda: prepared.append(1))
    assert [r.status for r in third] == ["kept", "kept"] and prepared == [1]
    changed = runs.execute(files[:1], extra={"VALUE": 0.75}, say=lambda line: None)
    assert changed[0].status == "ok" and record("10_good")["metrics"]["value"]["value"] == 0.75


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
    (result,) = runs.execute([workbook("10_long", "import time; time.sleep(60)")], timeout=2, say=lambda line: None)
    assert result.status == "failed" and record("10_long")["error"] == result.error
    assert "more than 2 seconds" in result.error and "--cell-seconds" in result.error


SLOW = "open('started', 'w').close(); import time; time.sleep(60)"


def test_an_interrupted_run_ends_its_kernels_and_resumes(workbook, tmp_path):
    first, second = (
        workbook("10_first"),
        workbook("20_second", SLOW),
    )
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
    again = runs.execute([first, second], say=lambda line: None)
    assert [r.status for r in again] == ["kept", "ok"]


def test_notebooks_are_found_by_number_and_misspelt_names_get_a_hint(workbook):
    path = workbook("20_training")
    assert runs.notebooks(["20"]) == [path] == runs.notebooks(["20_training"]) == runs.notebooks()
    with pytest.raises(UsageError, match="did you mean '20_training'"):
        runs.notebooks(["20_trainig"])


def test_the_index_shows_expectations_and_survives_markup(workbook, tmp_path):
    runs.execute([workbook("10_good"), workbook("20_bad", "raise ValueError('<b>boom</b>')")], say=lambda line: None)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/expected.yml").write_text(
        "fast-synthetic:\n  10_good:\n    value: {kind: bound, min: 0.9, reason: 'it should be high'}\n"
    )
    failures = runs.publish(Path("papermill_runs/latest/fast-synthetic"), "fast", "synthetic")
    assert any("10_good: value is 0.5, below 0.9" in f for f in failures)
    page = Path("papermill_runs/latest/fast-synthetic/index.html").read_text()
    assert "<b>boom" not in page and "&lt;b&gt;boom" in page and "unmet" in page
    executed = Path("papermill_runs/latest/fast-synthetic/10_good.html").read_text()
    assert "cdnjs" not in executed and "unpkg" not in executed
    with pytest.raises(UserError, match="not updated"):
        runs.publish(Path("papermill_runs/latest/fast-synthetic"), "fast", "synthetic", update=True)


def test_photos_of_others_are_never_kept(workbook, tmp_path):
    code = """
import matplotlib.pyplot as plt
run.figure("chart", plt.figure(), alt="a chart")
run.figure("photo", plt.figure(), alt="a photo", photos=True)
import ipywidgets
from tqdm.notebook import tqdm
for _ in tqdm(range(2)):
    pass
display(ipywidgets.VBox())"""
    runs.execute([workbook("10_good", code)], dataset="grozi120", root=tmp_path, say=lambda line: None)
    runs.publish(Path("papermill_runs/latest/fast-grozi120"), "fast", "grozi120", update=True)
    page = Path("papermill_runs/latest/fast-grozi120/10_good.html").read_text()
    assert page.count("An explorer stands here") == 1, "a progress bar leaves nothing behind"
    assert re.findall('<img alt="([^"]*)"', page) == ["a chart", "a photo"]
    assert [p.name for p in Path("figures").glob("*.png")] == ["grozi120__10_good__chart.png"]
    assert list(json.loads(Path("figures/index.json").read_text())) == ["grozi120__10_good__chart.png"]
    assert [p.name for p in Path("papermill_runs/fast-grozi120").iterdir()] == ["10_good.json"]
    assert str(tmp_path) not in Path("papermill_runs/fast-grozi120/10_good.json").read_text()


# -- Records.


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("RETAILKIT_RUN_DIR", str(tmp_path))
    return runs.Run("10_test", {"PROFILE": "fast", "DATASET": "synthetic", "ROOT": "somewhere", "SEED": 3})


def test_a_record_is_running_until_it_is_finished(run, tmp_path):
    run.metric("top1", 0.5, n=10, chance=0.1, interval=(0.2, 0.8))
    assert runs.read_record(tmp_path / "10_test.json")["status"] == "running"
    run.finish()
    kept = runs.read_record(tmp_path / "10_test.json")
    assert kept["status"] == "ok" and kept["parameters"] == {"PROFILE": "fast", "DATASET": "synthetic", "SEED": 3}
    assert kept["metrics"]["top1"] == {"value": 0.5, "better": "higher", "n": 10, "chance": 0.1, "interval": [0.2, 0.8]}
    assert kept["versions"]["torch"] and kept["device"] == "cpu"


@pytest.fixture
def committed(monkeypatch):
    """The committed records stand in for the latest run."""
    home = Path(__file__).parents[1]
    monkeypatch.chdir(home)
    monkeypatch.setenv("RETAILKIT_RUN_DIR", str(home / "papermill_runs" / "fast-synthetic"))


def test_every_claim_has_a_record_and_a_verdict_of_its_interval(committed):
    records = runs.collect()
    found = runs.claims(records)
    told = pd.read_csv(Path(runs.__file__).parents[1] / "claims.csv")
    assert set(told["claim"]) == set(found["claim"]), "a claim whose metric no committed record has"
    assert set(told["sign"]) <= {-1, 1}
    assert (found["verdict"] == "the opposite").equals(found["high"] < 0), "above zero speaks for the claim"
    merged = found.merge(told, on="claim").merge(records, on=["run", "notebook", "metric"], suffixes=("", "_measured"))
    assert len(merged) == len(found) and np.allclose(merged["here"], merged["sign"] * merged["value"])
    assert (merged["low"] <= merged["here"]).all() and (merged["here"] <= merged["high"]).all()
    unfinished = runs.claims(records.assign(status="running"))
    assert unfinished.empty and list(unfinished.columns) == list(found.columns)
    bare = runs.claims(records.assign(low=np.nan, high=np.nan))
    assert set(bare["verdict"]) == {"no interval"}


def test_tables_are_found_by_name_and_run(committed):
    found = runs.tables("table_1")
    assert "full-grozi120, 30_bag_of_tricks" in found and "method" in found["full-grozi120, 30_bag_of_tricks"]
    assert runs.tables("no such table") == {}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_only_finite_numbers_are_recorded(run, value):
    with pytest.raises(ValueError, match="finite"):
        run.metric("top1", value)


def test_figures_are_small_files_with_alternative_text(run, tmp_path):
    figure, ax = plt.subplots(figsize=(12, 9))
    ax.imshow(np.random.default_rng(0).random((400, 500, 3)))  # as hard to compress as it gets
    run.figure("noise", figure, alt="noise")
    (entry,) = run.record["figures"]
    assert entry == {"file": "10_test__noise.jpg", "alt": "noise", "photos": False}
    assert (tmp_path / "figures" / entry["file"]).stat().st_size < 1.7 * FIGURE_BYTES
    assert not plt.get_fignums()


def test_tables_are_kept(run):
    run.table("t", pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}))
    assert run.record["tables"]["t"] == {"columns": ["a", "b"], "data": [[1, "x"], [2, "y"]]}


# -- Expectations: each kind can fail.

GOOD = {"status": "ok", "metrics": {"m": {"value": 0.5}}}
KINDS = {
    "bound": {"kind": "bound", "min": 0.4, "reason": "r"},
    "ceiling": {"kind": "bound", "max": 0.6, "reason": "r"},
    "direction": {"kind": "direction", "min": 0.1, "switched_off": {"X": False}, "reason": "r"},
    "exact": {"kind": "exact", "value": 0.5, "reason": "r"},
    "golden": {"kind": "golden", "value": 0.5, "rel": 0.05, "reason": "r"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_expectation_passes_and_fails(kind):
    entry = {"m": KINDS[kind]}
    assert runs.check_record(GOOD, entry) == []
    wrong = 0.9 if kind == "ceiling" else 0.0
    for value in (wrong, float("nan")):
        assert len(runs.check_record({"status": "ok", "metrics": {"m": {"value": value}}}, entry)) == 1
    assert "not in the record" in runs.check_record({"status": "ok", "metrics": {}}, entry)[0]
    assert "status is 'running'" in runs.check_record(GOOD | {"status": "running"}, entry)[0]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{kind: bond, min: 1, reason: r}", "did you mean 'bound'"),
        ("{kind: bound, reason: r}", "lacks min or max"),
        ("{kind: direction, min: 0, reason: r}", "lacks switched_off"),
        ("{kind: exact, value: 1}", "lacks reason"),
    ],
)
def test_malformed_expectations_are_named(tmp_path, entry, message):
    (tmp_path / "expected.yml").write_text(f"fast-synthetic:\n  20_training:\n    top1: {entry}\n")
    with pytest.raises(UserError, match=message):
        runs.expectations(tmp_path / "expected.yml")


def test_parameters_are_read_as_yaml():
    assert parse_parameters(["A=3", "B=false", "C=x=y", "D="]) == {"A": 3, "B": False, "C": "x=y", "D": ""}
    with pytest.raises(UsageError, match="NAME=VALUE"):
        parse_parameters(["A"])


def test_widget_state_is_dropped_from_kept_notebooks(tmp_path):
    view = nbformat.v4.new_output("display_data", {pages.WIDGET_VIEW: {"model_id": "1"}, "text/plain": "VBox"})
    assert pages.WIDGET_VIEW not in pages._without_view(view)["data"]
