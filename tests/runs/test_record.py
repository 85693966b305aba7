"""Records of runs, and what is gathered from them."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from retailkit import runs
from retailkit.runs.record import FIGURE_BYTES, write_record

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("RETAILKIT_RUN_DIR", str(tmp_path))
    return runs.Run("10_test", {"PROFILE": "fast", "DATASET": "synthetic", "ROOT": "somewhere", "SEED": 3})


def test_a_record_is_running_until_it_is_finished(run, tmp_path):
    run.metric("top1", 0.5, n=10, chance=0.1, interval=(0.2, 0.8))
    run.table("t", pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}))
    run.skip("the section", "no photos")
    assert runs.read_record(tmp_path / "10_test.json")["status"] == "running"
    run.finish()
    kept = runs.read_record(tmp_path / "10_test.json")
    assert kept["status"] == "ok" and kept["parameters"] == {"PROFILE": "fast", "DATASET": "synthetic", "SEED": 3}
    assert kept["metrics"]["top1"] == {"value": 0.5, "better": "higher", "n": 10, "chance": 0.1, "interval": [0.2, 0.8]}
    assert kept["tables"]["t"] == {"columns": ["a", "b"], "data": [[1, "x"], [2, "y"]]}
    assert kept["skipped"] == {"the section": "no photos"} and kept["versions"]["torch"] and kept["device"] == "cpu"


def test_finish_says_which_expectations_are_not_met(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "tests").mkdir()
    entry = "{kind: bound, min: 0.6, reason: five seeds}"
    expected = f"fast-synthetic: {{10_test: {{low: {entry}, high: {entry}}}}}"
    (tmp_path / "tests" / "expected.yml").write_text(expected)
    monkeypatch.chdir(tmp_path)
    run.metric("low", 0.5)
    run.metric("high", 0.7)
    run.finish()
    printed = capsys.readouterr().out
    assert "2; not met: 1" in printed and "low is 0.5, below 0.6 (bound: five seeds)" in printed
    assert "high is" not in printed


@pytest.mark.parametrize("value, message", [(float("nan"), "finite"), (float("inf"), "finite"), (50.0, "percentages")])
def test_only_finite_fractions_are_recorded(run, value, message):
    with pytest.raises(ValueError, match=f"'top1' is .*{message}"):
        run.metric("top1", value)


def test_figures_are_small_files_with_alternative_text(run, tmp_path):
    figure, ax = plt.subplots(figsize=(12, 9))
    ax.imshow(np.random.default_rng(0).random((400, 500, 3)))  # as hard to compress as it gets
    run.figure("noise", figure, alt="noise")
    (entry,) = run.record["figures"]
    assert entry == {"file": "10_test__noise.jpg", "alt": "noise", "photos": False}
    assert (tmp_path / "figures" / entry["file"]).stat().st_size < 1.7 * FIGURE_BYTES
    assert figure.number not in plt.get_fignums()


# -- What the committed records say together.


@pytest.fixture(scope="module")
def records():
    """The metrics of the committed records, which stand in for the latest run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("RETAILKIT_RUN_DIR", str(ROOT / "papermill_runs" / "fast-synthetic"))
        yield runs.collect()


def test_every_claim_has_a_record_and_a_verdict_of_its_interval(records):
    found = runs.claims(records)
    stated = pd.read_csv(Path(runs.__file__).with_name("claims.csv"))
    assert set(stated["claim"]) == set(found["claim"]), "a claim whose metric no committed record has"
    ours = found["source"] == "our question"
    assert set(stated["sign"]) == {-1, 0, 1} and (stated["sign"] == 0).equals(stated["source"] == "our question")
    opposite = ~ours & (found["high"] < 0) & (found["q"] <= 0.05)
    assert (found["verdict"] == "the opposite").equals(opposite), "above zero speaks for the claim"
    assert set(found.loc[ours, "verdict"]) <= {"more", "less", "not decided"}, "no paper claims these"
    keys = ["run", "notebook", "metric"]
    merged = found.merge(stated, on="claim").merge(records, on=keys, suffixes=("", "_measured"))
    assert len(merged) == len(found) and np.allclose(merged["here"], merged["sign"].replace(0, 1) * merged["value"])
    assert (merged["low"] <= merged["here"]).all() and (merged["here"] <= merged["high"]).all()
    unfinished = runs.claims(records.assign(status="running"))
    assert unfinished.empty and list(unfinished.columns) == list(found.columns)
    assert set(runs.claims(records.assign(low=np.nan, high=np.nan))["verdict"]) == {"no interval"}
    # `n=None` in a claimed metric used to raise.
    lacking = runs.claims(records.assign(n=records["n"].mask(records["metric"] == "gain_lca")))
    assert (lacking["n"].isna() == (lacking["claim"] == "LCA helps")).all() and lacking["n"].isna().any()
    assert len(runs.claims(records.assign(n=None))) == len(found)


def test_among_many_claims_one_that_misses_zero_by_chance_is_not_decided(records):
    """Benjamini and Hochberg by hand: sort the p-values; the i-th of m counts with m/i times itself."""
    found = runs.claims(records)
    errors = np.where(found["here"] > 0, found["here"] - found["low"], found["high"] - found["here"]) / 1.959964
    for _, rows in found.assign(p=2 * norm.sf(np.abs(found["here"] / errors))).groupby("run"):
        p = np.sort(rows["p"].to_numpy())
        by_hand = [min(p[j] * len(p) / (j + 1) for j in range(i, len(p))) for i in range(len(p))]
        assert np.allclose(np.sort(rows["q"]), by_hand, atol=1e-6)
        assert (rows["q"] >= rows["p"] - 1e-12).all()
    outside = (found["low"] > 0) | (found["high"] < 0)
    assert (found["verdict"] == "not decided").equals(~outside | (found["q"] > 0.05))
    alone = runs.claims(records[records["metric"] == "gain_lca"].groupby("run").head(1))["verdict"]
    lca = outside[found["claim"] == "LCA helps"]
    assert len(lca) and (alone != "not decided").equals(lca.reset_index(drop=True))


def test_tables_are_found_by_name_and_written_as_csv_and_latex_by_one_call(records, tmp_path):
    names = {path.name for path in runs.write_tables(tmp_path)}
    own = "full-grozi120__30_bag_of_tricks__table_1"
    assert f"{own}.csv" in names and "fast-synthetic__90_results__claims.tex" in names
    table = runs.tables("table_1")["full-grozi120, 30_bag_of_tricks"]
    assert "method" in table and runs.tables("no such table") == {}
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / f"{own}.csv"), table, check_dtype=False)
    latex = (tmp_path / f"{own}.tex").read_text()
    assert r"\toprule" in latex and latex.count(r"\\") == len(table) + 1
    assert "_" not in latex.split("label")[1].split("}", 1)[1].replace(r"\_", "")


def test_our_test_results_stand_beside_the_published_ones(records):
    beside, published = runs.beside_published(records), runs.published()
    assert len(beside) == len(published) + 2 and list(beside) == list(published)
    ours = beside[beside["method"].str.startswith("this workbook")].set_index("dataset")
    record = runs.read_record(ROOT / "papermill_runs/test-grozi120/33_best_recogniser.json")
    assert ours.loc["grozi120", "top1"] == record["metrics"]["top1"]["value"] == record["answer"]["top1"]
    assert runs.beside_published(records[:0]).shape == published.shape


def test_ranges_over_seeds_stand_beside_the_numbers_that_they_hold(tmp_path, monkeypatch):
    folder, others = (tmp_path / "papermill_runs" / name for name in ("fast-synthetic", "full-grocery_store"))
    for name in ("32_capture_conditions", "40_multimodal"):
        record = runs.read_record(ROOT / "papermill_runs" / "fast-synthetic" / f"{name}.json")
        write_record(folder / f"{name}.json", record)
        write_record(others / f"{name}.json", record)
    for made in ("notebooks", "docs"):
        (tmp_path / made).mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RETAILKIT_RUN_DIR", str(folder))
    bare = runs.collect()
    assert bare[["lowest", "highest", "seeds"]].isna().all(axis=None), "without the file there are no ranges"
    value = bare[bare["run"] == "fast-synthetic"].set_index("metric")["value"]
    dark, fusion = value["drop_dark"], value["gain_score_fusion_over_better"]
    table = [
        ("32_capture_conditions", "drop_dark", dark - 0.02, dark + 0.01, 5),
        ("40_multimodal", "gain_score_fusion_over_better", fusion - 0.01, fusion, 5),
        ("40_multimodal", "top1_text", value["top1_text"] + 0.1, value["top1_text"] + 0.2, 5),
    ]
    table = pd.DataFrame(table, columns=["notebook", "metric", "lowest", "highest", "seeds"])
    table.to_csv(tmp_path / "docs" / "seed_ranges.csv", index=False)
    found = runs.collect()
    known = found.dropna(subset=["seeds"])
    assert set(known["run"]) == {"fast-synthetic"} and len(found) == len(bare)
    assert set(known["metric"]) == {"drop_dark", "gain_score_fusion_over_better"}, "not one without the value"
    told = runs.claims(found).query("run == 'fast-synthetic'").set_index("claim")["over_seeds"]
    held = {
        "the dark hardly costs accuracy (here: plain network)": f"5 seeds: {-dark - 0.01:.3f} to {-dark + 0.02:.3f}",
        "score fusion beats the better of image and words": f"5 seeds: {fusion - 0.01:.3f} to {fusion:.3f}",
    }
    assert told.to_dict() == dict.fromkeys(told.index, "") | held
