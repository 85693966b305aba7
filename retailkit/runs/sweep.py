"""Sweeps: every combination of some values of parameters, and tables of what the runs with them measured."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from retailkit.cache import replacing
from retailkit.config import UsageError
from retailkit.runs.parameters import parse_parameters
from retailkit.runs.record import read_record
from retailkit.runs.runner import Result

MOST = 1000  # settings of one sweep
RANGE = re.compile(r"\s*(\d+)\s*\.\.\s*(\d+)\s*")


def parse_sweep(given: Sequence[str]) -> list[dict[str, str]]:
    """Return the settings of `SEED=0..4` (both ends belong to it) and `K=0,2,4`: all combinations of the values.

    Raises:
        UsageError: no values, a range that runs backwards, a parameter given twice, or more than `MOST` settings.
    """
    values: dict[str, list[str]] = {}
    for pair in given:
        ((name, text),) = parse_parameters([pair]).items()
        if name in values:
            raise UsageError(f"--sweep {pair}: {name} is swept twice; give all its values at once, with commas")
        values[name] = [value for part in text.split(",") for value in _expanded(pair, part)]
        if len(values[name]) > MOST:
            raise UsageError(f"--sweep {pair}: more than {MOST} values; sweep in parts")
    settings = list(itertools.islice(itertools.product(*values.values()), MOST + 1))
    if len(settings) > MOST:
        raise UsageError(f"--sweep: more than {MOST} combinations; sweep in parts")
    return [dict(zip(values, setting, strict=True)) for setting in settings]


def _expanded(pair: str, part: str) -> Sequence[str]:
    if not (ends := RANGE.fullmatch(part)):
        return [part]
    first, last = map(int, ends.groups())
    if last < first:
        raise UsageError(f"--sweep {pair}: {part.strip()} runs backwards; write the smaller number first")
    return list(map(str, range(first, min(last, first + MOST) + 1)))


def measured(results: Sequence[Result]) -> pd.DataFrame:
    """Return the metrics of runs that are done: `notebook`, a column per swept parameter, `metric`, `value`."""
    rows = []
    for result in results:
        record = None if result.status == "failed" else read_record(result.folder / f"{result.notebook}.json")
        for name, metric in (record or {"metrics": {}})["metrics"].items():
            rows.append({"notebook": result.notebook, **result.setting, "metric": name, "value": metric["value"]})
    swept = list(results[0].setting) if results else []
    return pd.DataFrame(rows, columns=["notebook", *swept, "metric", "value"])


def ranges(table: pd.DataFrame) -> pd.DataFrame:
    """Return what a sweep says of each metric, of the table that `measured` returns.

    One row per metric: `notebook`, `metric`, `lowest`, `highest`, `seeds` (values of SEED in the sweep), `mean`, `sd`
    (of a sample; empty for one run) and `runs`.
    """
    seed = "SEED" if "SEED" in table else "metric"  # all rows of a metric name the same one: one seed
    found = table.groupby(["notebook", "metric"], sort=False).agg(
        lowest=("value", "min"),
        highest=("value", "max"),
        seeds=(seed, "nunique"),
        mean=("value", "mean"),
        sd=("value", "std"),
        runs=("value", "size"),
    )
    return found.reset_index()


def write_sweep(results: Sequence[Result], folder: Path) -> list[Path]:
    """Write `sweep.csv` (see `measured`) and `sweep_ranges.csv` (see `ranges`) into a folder; return their paths."""
    table, paths = measured(results), []
    for name, frame in (("sweep.csv", table), ("sweep_ranges.csv", ranges(table))):
        paths.append(folder / name)
        with replacing(paths[-1]) as draft:
            frame.to_csv(draft, index=False)
    return paths
