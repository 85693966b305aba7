"""Write the numbers of the committed records into the tables of `docs/results.md` and the README."""

from __future__ import annotations

import os
import re
from pathlib import Path

from retailkit import runs
from retailkit.runs.results import over_seeds

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "docs" / "results.md")
# | 0.714 (0.646 to 0.773; 4 seeds: 0.677 to 0.714) | 192 | `fast-synthetic/20_training.json` `top1_frozen` |
ROW = re.compile(r"\| [\d.]+ \([^|]*\) \| \d+ (?=\| `([\w-]+)/(\w+)\.json` `(\w+)` \|$)", re.M)


def refreshed(page: str) -> str:
    """Return a page with the value, interval, range over seeds and n of each row that names a record and a metric."""
    records = runs.collect().set_index(["run", "notebook", "metric"])

    def row(found: re.Match[str]) -> str:
        metric = records.loc[found.groups()]
        seeds = over_seeds(metric["lowest"], metric["highest"], metric["seeds"])
        spread = f"{metric['low']:.3f} to {metric['high']:.3f}" + f"; {seeds}" * bool(seeds)
        return f"| {metric['value']:.3f} ({spread}) | {metric['n']:.0f} "

    return ROW.sub(row, page)


if __name__ == "__main__":
    os.environ["RETAILKIT_RUN_DIR"] = str(ROOT / "papermill_runs" / "fast-synthetic")  # not the latest run
    for path in PAGES:
        path.write_text(refreshed(path.read_text(encoding="utf-8")), encoding="utf-8")
