"""Sweeps: what their settings are, and what their runs leave."""

from pathlib import Path

import pandas as pd
import pytest

from retailkit import runs
from retailkit.config import UsageError

SETTINGS = {  # what is given: the values of SEED and K in each run
    (): [{}],
    ("SEED=0..2",): [{"SEED": "0"}, {"SEED": "1"}, {"SEED": "2"}],
    ("K=0,2, 5..6",): [{"K": "0"}, {"K": "2"}, {"K": "5"}, {"K": "6"}],
    ("K=0.5,.75",): [{"K": "0.5"}, {"K": ".75"}],
    ("SEED=3..4", "K=0,2"): [{"SEED": seed, "K": k} for seed in "34" for k in "02"],
}
WRONG = {
    ("SEED",): "NAME=VALUE",
    ("SEED=4..0",): "runs backwards",
    ("SEED=0..999999999999",): "more than 1000",
    ("SEED=0..1000",): "more than 1000",
    ("PROFILE=fast,full",): "--profile",
    ("SEED=0", "SEED=1"): "swept twice",
    tuple(f"{name}=0..999" for name in "ABCDEFGH"): "more than 1000 combinations",
}


def test_a_sweep_is_every_combination_of_its_values_unless_it_grows_too_large():
    for given, settings in SETTINGS.items():
        assert runs.parse_sweep(given) == settings
    for given, message in WRONG.items():
        with pytest.raises(UsageError, match=message):
            runs.parse_sweep(given)


@pytest.mark.parametrize(
    "given, message",
    [("VALU=1,2", "did you mean 'VALUE'"), ("SEED=0,one", "SEED=one"), ("VALUE=0.5,0.50", "would run twice")],
)
def test_values_of_a_sweep_are_checked_before_anything_runs(workbook, command, given, message):
    workbook("10_good")
    code, _, err = command("run", "10", "--sweep", given)
    assert code == 2 and message in err and not Path("papermill_runs").exists()


def test_a_sweep_leaves_ordinary_runs_and_tables(workbook, command, monkeypatch):
    """A value that is the default belongs to the ordinary run; a failed run stops no other."""
    monkeypatch.setattr("retailkit.runs.prepare.prepare", lambda *where: None)  # renders the built-in data set
    workbook("10_good", "assert SEED != 2, 'two is bad'\nVALUE = 0.25 + SEED / 2")
    code, out, _ = command("run", "10", "--sweep", "SEED=0..2", "--jobs", "2")
    latest = Path("papermill_runs/latest")
    assert code == 1 and "10_good SEED=2: cell 3: AssertionError: two is bad" in out and "2 of 3 runs are done" in out
    assert runs.read_record(latest / "fast-synthetic,SEED=1" / "10_good.json")["parameters"]["SEED"] == 1
    assert (latest / "fast-synthetic,SEED=2" / "10_good.ipynb").is_file()
    table = pd.read_csv(latest / "fast-synthetic,SEED=0..2" / "sweep.csv")
    assert table.values.tolist() == [["10_good", 0, "value", 0.25], ["10_good", 1, "value", 0.75]]
    (row,) = pd.read_csv(latest / "fast-synthetic,SEED=0..2" / "sweep_ranges.csv").to_dict("records")
    assert row.pop("sd") == pytest.approx(0.125**0.5)
    about = {"notebook": "10_good", "metric": "value", "lowest": 0.25, "highest": 0.75, "seeds": 2, "mean": 0.5}
    assert row == about | {"runs": 2}
    code, out, _ = command("run", "10", "--sweep", "SEED=0,1")
    assert code == 0 and out.count("kept") == 2
    assert [result.status for result in runs.execute([Path("notebooks/10_good.ipynb").resolve()])] == ["kept"]


@pytest.mark.check
def test_machines_with_own_disks_run_a_sweep_as_one_process_does(workbook, machines, tmp_path):
    scheduler, worker = machines
    _, address = scheduler()
    worker("one"), worker("two")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"a photo")
    code = "from pathlib import Path\nVALUE = SEED / 4 + len(Path(ROOT, 'a.png').read_bytes()) / 28"
    path = workbook("10_good", code)

    def records(**how):
        given = {"dataset": "folder", "root": tmp_path / "photos", "sweep": [{"SEED": "1"}, {"SEED": "2"}]}
        results = runs.execute([path], **given, **how)
        found = [runs.read_record(result.folder / "10_good.json") for result in results]
        return [r.status for r in results], [record | {"seconds": 0} for record in found]

    done, apart = records(scheduler=address)
    assert done == ["ok", "ok"] and [record["metrics"]["value"]["value"] for record in apart] == [0.5, 0.75]
    assert records(jobs=1)[0] == ["kept", "kept"]
    assert records(jobs=1, fresh=True)[1] == apart
