"""What was measured, gathered from the records, beside what the papers claim."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from retailkit.cache import replacing
from retailkit.config import home
from retailkit.runs.record import read_record, read_records, run_dir
from retailkit.runs.runner import Result

HERE = Path(__file__).parent
COLUMNS = ["run", "notebook", "metric", "value", "low", "high", "n", "chance", "better", "status"]
ROUNDED = 0.0005  # of ranges with three decimals
SWEPT = "fast-synthetic"  # the run that `docs/seed_ranges.csv` repeats with other seeds


def collect(profile: str = "fast", dataset: str = "synthetic") -> pd.DataFrame:
    """Return every metric of the latest run and of all committed ones, one row per metric.

    The latest run takes the place of the committed one of the same profile and data set. Columns are `COLUMNS`, and
    `lowest`, `highest` and `seeds` of `docs/seed_ranges.csv` (see `write_sweep`), where it has the metric. A range
    that does not hold the value comes from another version of the notebook: it is left out.
    """
    rows = []
    for run, record in _records(profile, dataset):
        for name, metric in record["metrics"].items():
            low, high = metric.get("interval", (None, None))
            known = metric["value"], low, high, metric.get("n"), metric.get("chance"), metric["better"]
            rows.append((run, record["notebook"], name, *known, record["status"]))
    found = pd.DataFrame(rows, columns=COLUMNS)
    keys, spread = ["run", "notebook", "metric"], ["lowest", "highest", "seeds"]
    path = home() / "docs" / "seed_ranges.csv"
    ranges = pd.read_csv(path) if path.is_file() else pd.DataFrame(columns=[*keys, *spread])
    found = found.merge(ranges.assign(run=SWEPT)[[*keys, *spread]], "left", keys)
    known = found[spread].astype(float)
    holds = found["value"].between(known["lowest"] - ROUNDED, known["highest"] + ROUNDED)
    found[spread] = known.where(holds)
    return found.astype({"seeds": "Int64"})


def tables(name: str, profile: str = "fast", dataset: str = "synthetic") -> dict[str, pd.DataFrame]:
    """Return the tables of one name that notebooks left, by run and notebook; see `collect` for which runs."""
    return {f"{run}, {notebook}": frame for run, notebook, own, frame in _tables(profile, dataset) if own == name}


def write_tables(folder: str | Path, profile: str = "fast", dataset: str = "synthetic") -> list[Path]:
    """Write every table of every record as CSV and as LaTeX (booktabs) into `folder`, and return the files.

    A file is called after its run, notebook and table: `fast-synthetic__30_bag_of_tricks__table_1.tex`. In LaTeX
    numbers have three decimals and signs such as `_` are escaped. See `collect` for which runs.
    """
    written = []
    for *names, frame in _tables(profile, dataset):
        label = re.sub(r"[^\w.=,+-]", "_", "__".join(names))  # a file's, and LaTeX's
        latex = frame.style.hide(axis="index").format(precision=3, na_rep="", escape="latex")
        latex = latex.format_index(axis=1, escape="latex").to_latex(hrules=True, label=f"tab:{label}")
        for suffix, text in ((".csv", frame.to_csv(index=False)), (".tex", latex)):
            path = Path(folder) / (label + suffix)
            with replacing(path) as draft:
                draft.write_text(text, encoding="utf-8")
            written.append(path)
    return written


def _tables(profile: str, dataset: str) -> Iterator[tuple[str, str, str, pd.DataFrame]]:
    """Yield each table with its run, notebook and name."""
    for run, record in _records(profile, dataset):
        for name, table in record["tables"].items():
            yield run, record["notebook"], name, pd.DataFrame(table["data"], columns=table["columns"])


def _records(profile: str, dataset: str) -> list[tuple[str, dict]]:
    folders = {path.name: path for path in (home() / "papermill_runs").glob("*-*") if path.is_dir()}
    folders[f"{profile}-{dataset}"] = run_dir(profile, dataset)
    return [(run, record) for run in sorted(folders) for record in read_records(folders[run]).values() if record]


def write_sweep(results: Sequence[Result], folder: Path) -> list[Path]:
    """Write what the runs of a sweep measured, as far as they are done, into a folder; return the paths.

    `sweep.csv` has the columns `notebook`, one per swept parameter, `metric` and `value`; `sweep_ranges.csv` has a row
    per metric: `notebook`, `metric`, `lowest`, `highest`, `seeds` (values of SEED in the sweep), `mean`, `sd` (of a
    sample; empty for one run) and `runs`.
    """
    rows = []
    for result in results:
        record = None if result.status == "failed" else read_record(result.folder / f"{result.notebook}.json")
        for name, metric in record["metrics"].items() if record else ():
            rows.append({"notebook": result.notebook, **result.setting, "metric": name, "value": metric["value"]})
    swept = results[0].setting if results else ()
    table = pd.DataFrame(rows, columns=["notebook", *swept, "metric", "value"])
    ranges = table.groupby(["notebook", "metric"], sort=False).agg(
        lowest=("value", "min"),
        highest=("value", "max"),
        seeds=("SEED" if "SEED" in table else "metric", "nunique"),  # all rows of a metric name the same one: one seed
        mean=("value", "mean"),
        sd=("value", "std"),
        runs=("value", "size"),
    )
    paths = [folder / "sweep.csv", folder / "sweep_ranges.csv"]
    for path, frame in zip(paths, (table, ranges.reset_index()), strict=True):
        with replacing(path) as draft:
            frame.to_csv(draft, index=False)
    return paths


def published() -> pd.DataFrame:
    """Return published test results of the data sets, with their sources."""
    return pd.read_csv(HERE / "published.csv")


def beside_published(records: pd.DataFrame) -> pd.DataFrame:
    """Return `published` with a row for each of `records` that judged test images of a published split.

    Those are the runs `test-<data set>`; see `collect`.
    """
    ours = records[records["run"].str.startswith("test-") & (records["metric"] == "top1")]
    rows = (
        ours[["value"]]
        .rename(columns={"value": "top1"})
        .assign(
            dataset=ours["run"].str.removeprefix("test-"),
            split="test",
            method="this workbook, " + ours["notebook"],
            source=[f"95 % interval {row.low:.3f} to {row.high:.3f}, {row.n:.0f} images" for row in ours.itertuples()],
        )
    )
    return pd.concat([published(), rows], ignore_index=True)


def claims(records: pd.DataFrame) -> pd.DataFrame:
    """Return what the papers claim beside what was measured in finished `records`, one row per claim and run.

    Our own questions, which no paper answers, have the source `our question` and the sign 0 in `claims.csv`.

    Columns: `source`, `claim`, `published` (as the paper says it, "" where it gives no number), `run`, `here` (above
    zero where it supports the claim), `low`, `high`, `over_seeds` (the lowest and highest value over several seeds, ""
    where they are not known; see `collect`), `n` (missing where the notebook recorded none), `q` and `verdict` (see
    `metrics.verdict`; "no interval" where there is none). Of many intervals of 95 % some miss zero by chance, so a row
    is decided only if its `q` is at most 0.05: the p-value after the correction of Benjamini and Hochberg (1995)
    for all rows of its run. The p-value is that of a normal distribution which gives the end of the interval that is
    nearer to zero.
    """
    from retailkit.metrics import verdict  # brings scikit-learn, which notebooks that only record do not need

    stated, finished = pd.read_csv(HERE / "claims.csv").fillna(""), records[records["status"] == "ok"]
    found = stated.merge(finished, on=["notebook", "metric"])
    reverse = found["sign"] < 0  # measured the other way round
    found.loc[reverse, "value"] *= -1
    for low, high in (("low", "high"), ("lowest", "highest")):
        found.loc[reverse, [low, high]] = -found.loc[reverse, [high, low]].to_numpy()
    found["over_seeds"] = [over_seeds(row.lowest, row.highest, row.seeds) for row in found.itertuples()]
    found["q"] = np.nan
    for _, rows in found.dropna(subset=["low", "high"]).groupby("run"):
        found.loc[rows.index, "q"] = _q_values(rows)
    decided = [verdict(row.low, row.high, abs(row.sign)) for row in found.itertuples()]
    found["verdict"] = np.select([found["q"].isna(), found["q"] > 0.05], ["no interval", "not decided"], decided)
    columns = ["source", "claim", "published", "run", "here", "low", "high", "over_seeds", "n", "q", "verdict"]
    return found.rename(columns={"value": "here"}).astype({"n": "Int64"})[columns]


def over_seeds(lowest: float, highest: float, seeds: float) -> str:
    """Return a range over seeds in words, "" where there is none."""
    return "" if pd.isna(seeds) else f"{seeds} seeds: {lowest:.3f} to {highest:.3f}"


def _q_values(rows: pd.DataFrame) -> np.ndarray:
    """Return the corrected p-values of the differences of one run."""
    from scipy.stats import false_discovery_control, norm

    reach = np.where(rows["value"] > 0, rows["value"] - rows["low"], rows["high"] - rows["value"])
    errors = np.maximum(reach, 1e-12) / norm.isf(0.025)
    return false_discovery_control(2 * norm.sf(rows["value"].abs() / errors))
