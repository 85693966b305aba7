"""Go or no-go: what a model has to reach before a shop relies on it, each against an interval.

The limits are ours, to be changed; a shop knows better what an error costs it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd

from retailkit.config import UsageError, pick
from retailkit.deploy.label_check import CHECKED_RATE, LIKELIEST

GO, NO_GO, NOT_DECIDED, NOT_MEASURED = "go", "no-go", "not decided", "not measured"


class Measured(NamedTuple):
    """A number with its 95 % interval, whose ends are None where nobody computed them."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Criterion:
    """One line of the checklist.

    Attributes:
        says: what is measured.
        at_least: True where more is better.
        limit: what has to be reached.
        unit: "" for shares.
    """

    says: str
    at_least: bool
    limit: float
    unit: str = ""


CRITERIA: dict[str, Criterion] = {
    "accuracy": Criterion("photos that are recognised", True, 0.9),
    "worst_class": Criterion("photos of the hardest class that are recognised", True, 0.5),
    "worst_condition": Criterion("photos of the hardest condition that are recognised", True, 0.8),
    "twins": Criterion("errors between the two classes most often confused, of their photos", False, 0.1),
    "calibration": Criterion("calibration error", False, 0.05),
    "label_misses": Criterion(f"wrong labels that pass: {LIKELIEST}, false alarms {CHECKED_RATE:g}", False, 0.1),
    "looks_at": Criterion("attribution on the product beyond its share of the picture (notebooks' models)", True, 0.0),
    "background": Criterion("accuracy lost when the background is of another class (notebooks' models)", False, 0.1),
    "milliseconds": Criterion("time a photo on one core, float32", False, 500.0, "ms"),
    "int8_loss": Criterion("accuracy that int8 loses", False, 0.02),
}


def limits(pairs: Sequence[str] = ()) -> dict[str, float]:
    """Return the limit of each criterion.

    Args:
        pairs: `NAME=VALUE`, in place of the default.

    Raises:
        UsageError: an unknown name, no value, or a value that is no number.
    """
    chosen = {name: criterion.limit for name, criterion in CRITERIA.items()}
    for pair in pairs:
        name, _, value = pair.partition("=")
        pick(CRITERIA, name.strip(), "criterion")
        try:
            chosen[name.strip()] = float(value)
        except ValueError:
            raise UsageError(f"criterion {pair!r} has no number; write NAME=VALUE, such as accuracy=0.95") from None
    return chosen


def verdict(measured: Measured | None, limit: float, at_least: bool) -> str:
    """Say what an interval makes of a limit: it has to lie wholly on one side to decide."""
    if measured is None:
        return NOT_MEASURED
    if measured.low is None or measured.high is None:
        return NOT_DECIDED
    low, high = measured.low, measured.high
    if (low >= limit) if at_least else (high <= limit):
        return GO
    return NO_GO if (high < limit if at_least else low > limit) else NOT_DECIDED


def checklist(measured: Mapping[str, Measured | None], chosen: Mapping[str, float] | None = None) -> pd.DataFrame:
    """Return the checklist.

    Args:
        measured: by name of the criterion; None for what was not measured. One that is left out does not apply.
        chosen: from `limits`; None means the defaults.

    Returns:
        One row a criterion: `criterion`, `says`, `at_least`, `limit`, `unit`, `value`, `low`, `high`, `verdict`.
    """
    chosen = limits() if chosen is None else chosen
    rows = []
    for name, criterion in CRITERIA.items():
        if name not in measured:
            continue
        found, limit = measured[name], chosen[name]
        value = found or (None, None, None)
        answer = verdict(found, limit, criterion.at_least)
        rows.append((name, criterion.says, criterion.at_least, limit, criterion.unit, *value, answer))
    columns = ["criterion", "says", "at_least", "limit", "unit", "value", "low", "high", "verdict"]
    return pd.DataFrame(rows, columns=columns)


def decision(table: pd.DataFrame) -> str:
    """Return `go` if every criterion of a checklist says so, `no-go` if one says so, else `not decided`."""
    answers = set(table["verdict"])
    if answers == {GO}:
        return GO
    return NO_GO if NO_GO in answers else NOT_DECIDED
