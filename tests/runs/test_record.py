"""Records of runs, and what is gathered from them."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from retailkit import runs
from retailkit.runs.record import FIGURE_BYTES, write_record


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


def test_finish_says_which_expectations_are_not_met(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "tests").mkdir()
    lines = ["fast-synthetic:", "  10_test:"]
    lines += [f"    {name}: {{kind: bound, min: 0.6, reason: five seeds}}" for name in ("low", "high")]
    (tmp_path / "tests" / "expected.yml").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    run.metric("low", 0.5)
    run.metric("high", 0.7)
    run.finish()
    printed = capsys.readouterr().out
    assert "2; not met: 1" in printed and "low is 0.5, below 0.6 (bound: five seeds)" in printed
    assert "high is" not in printed


@pytest.fixture
def committed(monkeypatch):
    """The committed records stand in for the latest run."""
    home = Path(__file__).parents[2]
    monkeypatch.chdir(home)
    monkeypatch.setenv("RETAILKIT_RUN_DIR", str(home / "papermill_runs" / "fast-synthetic"))


def test_every_claim_has_a_record_and_a_verdict_of_its_interval(committed):
    records = runs.collect()
    found = runs.claims(records)
    stated = pd.read_csv(Path(runs.__file__).with_name("claims.csv"))
    assert set(stated["claim"]) == set(found["claim"]), "a claim whose metric no committed record has"
    ours = found["source"] == "our question"
    assert set(stated["sign"]) == {-1, 0, 1} and (stated["sign"] == 0).equals(stated["source"] == "our question")
    opposite = ~ours & (found["high"] < 0) & (found["q"] <= 0.05)
    assert (found["verdict"] == "the opposite").equals(opposite), "above zero speaks for the claim"
    assert set(found.loc[ours, "verdict"]) <= {"more", "less", "not decided"}, "no paper claims these"
    merged = found.merge(stated, on="claim").merge(
        records, on=["run", "notebook", "metric"], suffixes=("", "_measured")
    )
    assert len(merged) == len(found) and np.allclose(merged["here"], merged["sign"].replace(0, 1) * merged["value"])
    assert (merged["low"] <= merged["here"]).all() and (merged["here"] <= merged["high"]).all()
    unfinished = runs.claims(records.assign(status="running"))
    assert unfinished.empty and list(unfinished.columns) == list(found.columns)
    bare = runs.claims(records.assign(low=np.nan, high=np.nan))
    assert set(bare["verdict"]) == {"no interval"}


def test_among_many_claims_one_that_misses_zero_by_chance_is_not_decided(committed):
    """Benjamini and Hochberg by hand: sort the p-values; the i-th of m counts with m/i times itself."""
    records = runs.collect()
    found = runs.claims(records)
    errors = np.where(found["here"] > 0, found["here"] - found["low"], found["high"] - found["here"]) / 1.959964
    for _, rows in found.assign(p=2 * norm.sf(np.abs(found["here"] / errors))).groupby("run"):
        p = np.sort(rows["p"].to_numpy())
        by_hand = [min(p[j] * len(p) / (j + 1) for j in range(i, len(p))) for i in range(len(p))]
        assert np.allclose(np.sort(rows["q"]), by_hand, atol=1e-6)
        assert (rows["q"] >= rows["p"] - 1e-12).all()
    outside = (found["low"] > 0) | (found["high"] < 0)
    assert (found["verdict"] == "not decided").equals(~outside | (found["q"] > 0.05))
    alone = records[records["metric"] == "gain_lca"].groupby("run").head(1)
    assert len(alone) and (runs.claims(alone)["verdict"] != "not decided").equals(
        outside[found["claim"] == "LCA helps"].reset_index(drop=True)
    )


def test_all_tables_are_written_as_csv_and_latex_by_one_call(committed, tmp_path):
    files = runs.write_tables(tmp_path)
    names = {path.name for path in files}
    assert "full-grozi120__30_bag_of_tricks__table_1.csv" in names and "fast-synthetic__90_results__claims.tex" in names
    table = runs.tables("table_1")["full-grozi120, 30_bag_of_tricks"]
    read = pd.read_csv(tmp_path / "full-grozi120__30_bag_of_tricks__table_1.csv")
    pd.testing.assert_frame_equal(read, table, check_dtype=False)
    latex = (tmp_path / "full-grozi120__30_bag_of_tricks__table_1.tex").read_text()
    assert (
        r"\toprule" in latex
        and latex.count(r"\\") == len(table) + 1
        and "_" not in latex.split("label")[1].split("}", 1)[1].replace(r"\_", "")
    )


def test_our_test_results_stand_beside_the_published_ones(committed):
    beside = runs.beside_published(runs.collect())
    assert len(beside) == len(runs.published()) + 2
    ours = beside[beside["method"].str.startswith("this workbook")].set_index("dataset")
    record = runs.read_record(Path("papermill_runs/test-grozi120/33_best_recogniser.json"))
    assert ours.loc["grozi120", "top1"] == record["metrics"]["top1"]["value"] == record["answer"]["top1"]
    assert runs.beside_published(runs.collect()[:0]).shape == runs.published().shape


def test_a_claimed_metric_without_n_has_a_verdict_too(committed):
    """`n=None` in a claimed metric used to raise."""
    records = runs.collect()
    found = runs.claims(records.assign(n=records["n"].mask(records["metric"] == "gain_lca")))
    lacking = found.loc[found["claim"] == "LCA helps", "n"]
    assert len(lacking) and lacking.isna().all() and found["n"].notna().any()
    assert len(runs.claims(records.assign(n=None))) == len(found)


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


def test_ranges_over_seeds_stand_beside_the_numbers_that_they_hold(tmp_path, monkeypatch):
    committed, folder = Path(__file__).parents[2] / "papermill_runs", tmp_path / "papermill_runs" / "fast-synthetic"
    for name in ("32_capture_conditions", "40_multimodal"):
        record = runs.read_record(committed / "fast-synthetic" / f"{name}.json")
        write_record(folder / f"{name}.json", record)
        write_record(tmp_path / "papermill_runs" / "full-grocery_store" / f"{name}.json", record)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RETAILKIT_RUN_DIR", str(folder))
    bare = runs.collect()
    assert bare[["lowest", "highest", "seeds"]].isna().all(axis=None), "without the file there are no ranges"
    value = bare[bare["run"] == "fast-synthetic"].set_index("metric")["value"]
    around = {"drop_dark": (-0.02, 0.01), "gain_score_fusion_over_better": (-0.01, 0.0), "top1_text": (0.1, 0.2)}
    rows = [(metric, value[metric] + low, value[metric] + high, 5) for metric, (low, high) in around.items()]
    notebooks = ["32_capture_conditions", "40_multimodal", "40_multimodal"]
    (tmp_path / "docs").mkdir()
    table = pd.DataFrame(rows, columns=["metric", "lowest", "highest", "seeds"]).assign(notebook=notebooks)
    table.to_csv(tmp_path / "docs" / "seed_ranges.csv", index=False)
    found = runs.collect()
    known = found.dropna(subset=["seeds"])
    assert set(known["run"]) == {"fast-synthetic"} and len(found) == len(bare)
    assert set(known["metric"]) == {"drop_dark", "gain_score_fusion_over_better"}, "not one without the value"
    told = runs.claims(found).query("run == 'fast-synthetic'").set_index("claim")["over_seeds"]
    dark, fusion = value["drop_dark"], value["gain_score_fusion_over_better"]
    held = {
        "the dark hardly costs accuracy (here: plain network)": f"5 seeds: {-dark - 0.01:.3f} to {-dark + 0.02:.3f}",
        "score fusion beats the better of image and words": f"5 seeds: {fusion - 0.01:.3f} to {fusion:.3f}",
    }
    assert told.to_dict() == dict.fromkeys(told.index, "") | held
