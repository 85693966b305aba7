"""The tables of the README and of `docs/results.md` say what the records say."""

import importlib.util
import json
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("RETAILKIT_RUN_DIR", str(ROOT / "papermill_runs" / "fast-synthetic"))
    spec = importlib.util.spec_from_file_location("results_page", ROOT / "docs" / "results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["README.md", "docs/results.md"])
def test_the_tables_of_a_page_are_those_of_the_records(script, page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert len(script.ROW.findall(text)) > 10
    assert script.refreshed(text) == text, "run docs/results.py"


def test_a_row_holds_value_interval_range_over_seeds_and_n(script):
    row = "| data | model | 0.1 (0.0 to 0.2) | 1 | `{}/20_training.json` `{}` |"
    asked = [("fast-synthetic", "top1_frozen"), ("full-grocery_store", "top1_logistic")]
    told = script.refreshed("\n".join(row.format(*one) for one in asked)).splitlines()
    ranges = pd.read_csv(ROOT / "docs" / "seed_ranges.csv").set_index(["notebook", "metric"])
    lowest, highest, seeds = ranges.loc[("20_training", "top1_frozen"), ["lowest", "highest", "seeds"]]
    spreads = [f"; {seeds:.0f} seeds: {lowest:.3f} to {highest:.3f}", ""]  # only the first run is swept
    for (run, name), spread, line in zip(asked, spreads, told, strict=True):
        metric = json.loads((ROOT / "papermill_runs" / run / "20_training.json").read_text())["metrics"][name]
        low, high = metric["interval"]
        numbers = f"{metric['value']:.3f} ({low:.3f} to {high:.3f}{spread}) | {metric['n']}"
        assert line == f"| data | model | {numbers} | `{run}/20_training.json` `{name}` |"
