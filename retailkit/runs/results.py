"""What was measured, gathered from the records, beside what the papers claim."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from retailkit.runs.record import home, read_record, run_dir

HERE = Path(__file__).parent
COLUMNS = ["run", "notebook", "metric", "value", "low", "high", "n", "chance", "better", "status"]


def collect(profile: str = "fast", dataset: str = "synthetic") -> pd.DataFrame:
    """Return every metric of the latest run and of all committed ones, one row per metric, see `COLUMNS`.

    The latest run takes the place of the committed one of the same profile and data set.
    """
    rows = []
    for run, record in _records(profile, dataset):
        for name, metric in record.get("metrics", {}).items():
            low, high = metric.get("interval", (None, None))
            known = metric["value"], low, high, metric.get("n"), metric.get("chance"), metric["better"]
            rows.append((run, record["notebook"], name, *known, record["status"]))
    return pd.DataFrame(rows, columns=COLUMNS)


def tables(name: str, profile: str = "fast", dataset: str = "synthetic") -> dict[str, pd.DataFrame]:
    """Return the tables of one name that notebooks left, by run and notebook; see `collect` for which runs."""
    found = {}
    for run, record in _records(profile, dataset):
        if table := record.get("tables", {}).get(name):
            found[f"{run}, {record['notebook']}"] = pd.DataFrame(table["data"], columns=table["columns"])
    return found


def _records(profile: str, dataset: str) -> list[tuple[str, dict]]:
    folders = {path.name: path for path in (home() / "papermill_runs").glob("*-*") if path.is_dir()}
    folders[f"{profile}-{dataset}"] = run_dir(profile, dataset)
    paths = [(run, path) for run in sorted(folders) for path in sorted(folders[run].glob("[0-9][0-9]_*.json"))]
    return [(run, record) for run, path in paths if (record := read_record(path))]


def published() -> pd.DataFrame:
    """Return published test results of the data sets, with their sources."""
    return pd.read_csv(HERE / "published.csv")


def claims(records: pd.DataFrame) -> pd.DataFrame:
    """Return what the papers claim beside what was measured in finished `records`, one row per claim and run.

    Our own questions, which no paper answers, have the source `our question` and the sign 0 in `claims.csv`.

    Columns: `source`, `claim`, `published` (as the paper says it, "" where it gives no number), `run`, `here` (above
    zero where it supports the claim), `low`, `high`, `n` (missing where the notebook recorded none) and `verdict` (see
    `metrics.verdict`; "no interval" where there is none).
    """
    from retailkit.metrics import verdict  # brings scikit-learn, which notebooks that only record do not need

    stated, finished = pd.read_csv(HERE / "claims.csv").fillna(""), records[records["status"] == "ok"]
    found = stated.merge(finished, on=["notebook", "metric"])
    reverse = found["sign"] < 0  # measured the other way round
    found.loc[reverse, "value"] *= -1
    found.loc[reverse, ["low", "high"]] = -found.loc[reverse, ["high", "low"]].to_numpy()
    found["verdict"] = [
        verdict(row.low, row.high, abs(row.sign)) if pd.notna(row.low) else "no interval" for row in found.itertuples()
    ]
    columns = ["source", "claim", "published", "run", "here", "low", "high", "n", "verdict"]
    return found.rename(columns={"value": "here"}).astype({"n": "Int64"})[columns]
