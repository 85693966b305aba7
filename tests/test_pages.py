"""The tables of the README and of the pages on results, benchmarks and scale say what was measured."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def results(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("RETAILKIT_RUN_DIR", str(ROOT / "papermill_runs" / "fast-synthetic"))
    return script("results")


@pytest.mark.parametrize("page", ["README.md", "docs/results.md"])
def test_the_tables_of_a_page_are_those_of_the_records(results, page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert len(results.ROW.findall(text)) > 10
    assert results.refreshed(text) == text, "run docs/results.py"


def test_a_row_holds_value_interval_range_over_seeds_and_n(results):
    ranges = pd.read_csv(ROOT / "docs" / "seed_ranges.csv").set_index(["notebook", "metric"])
    lowest, highest, seeds = ranges.loc[("20_training", "top1_frozen"), ["lowest", "highest", "seeds"]]
    swept = f"; {seeds:.0f} seeds: {lowest:.3f} to {highest:.3f}"
    for run, name, spread in (("fast-synthetic", "top1_frozen", swept), ("full-grocery_store", "top1_logistic", "")):
        metric = json.loads((ROOT / "papermill_runs" / run / "20_training.json").read_text())["metrics"][name]
        low, high = metric["interval"]
        numbers = f"{metric['value']:.3f} ({low:.3f} to {high:.3f}{spread}) | {metric['n']}"
        row = "| data | model | {} | " + f"`{run}/20_training.json` `{name}` |"
        assert results.refreshed(row.format("0.1 (0.0 to 0.2) | 1")) == row.format(numbers)


def test_the_page_of_the_benchmarks_is_that_of_its_tables_and_its_chart_has_every_curve():
    page = script("benchmarks")
    ratios, growth, lime = (pd.read_csv(path) for path in (page.RATIOS, page.GROWTH, page.LIME))
    assert page.page(ratios, growth, lime) == page.PAGE.read_text(encoding="utf-8")
    assert np.allclose(ratios["baseline_seconds"] / ratios["seconds"], ratios["ratio"], rtol=0.05)
    for name, part in growth.groupby("curve"):
        slope = np.polyfit(np.log(part["size"]), np.log(part["seconds"]), 1)[0]
        assert part["exponent"].unique() == pytest.approx(slope, abs=0.006), name
    assert sum(len(ax.lines) for ax in page.chart(growth).axes) == growth["curve"].nunique()


def test_the_page_shows_the_growth_of_tables_that_was_measured():
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    measured = pd.read_csv(ROOT / "docs" / "growth_of_tables.csv")
    for rows, files, load, split, sample, megabytes in measured.to_numpy():
        line = (
            f"| {rows:,.0f} | {files:,.0f} | {load:.1f} | {split * 1000:.0f} | {sample * 1000:.1f} | {megabytes:.0f} |"
        )
        assert line in page
    few = measured[(measured["files"] == 100) & (measured["rows"] >= 10**4)]
    power = np.polyfit(np.log(few["rows"]), np.log(few["load"]), 1)[0]
    assert f"to the power of {power:.2f}." in page and power < 1.3
