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
