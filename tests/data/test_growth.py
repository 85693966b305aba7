"""The page on scale shows the numbers that were measured."""

from pathlib import Path

import numpy as np
import pandas as pd

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_shows_the_growth_of_tables_that_was_measured():
    page, measured = (DOCS / "scale.md").read_text(encoding="utf-8"), pd.read_csv(DOCS / "growth_of_tables.csv")
    for rows, files, load, split, sample, megabytes in measured.to_numpy():
        line = (
            f"| {rows:,.0f} | {files:,.0f} | {load:.1f} | {split * 1000:.0f} | {sample * 1000:.1f} | {megabytes:.0f} |"
        )
        assert line in page
    few = measured[(measured["files"] == 100) & (measured["rows"] >= 10**4)]
    power = np.polyfit(np.log(few["rows"]), np.log(few["load"]), 1)[0]
    assert f"to the power of {power:.2f}." in page and power < 1.3
