"""What each notebook must show: bounds on its metrics, kept in `tests/expected.yml`.

    fast-synthetic:
      20_training:
        top1_frozen: {kind: bound, min: 0.4, reason: "chance 0.04; lowest of 5 seeds minus 2 sd"}
        gain_pretrained: {kind: direction, min: 0.1, switched_off: {PRETRAINED: false}, reason: "..."}

`exact` needs `value`; `bound` and `direction` need `min` or `max`. A direction names the parameter (`switched_off`)
that switches its cause off: a test runs the notebook that way and sees the check fail.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from retailkit.config import UserError, home, pick, read_yaml

KINDS = {"exact": ("value",), "bound": (), "direction": ("switched_off",)}


def expectations(path: Path | None = None) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """Read the expectations: run (`fast-synthetic`) -> notebook -> metric -> what is expected."""
    path = path or home() / "tests" / "expected.yml"
    if not path.is_file():
        return {}
    content = read_yaml(path) or {}
    for run, by_notebook in _items(content, path.name):
        for notebook, metrics in _items(by_notebook, f"{path.name}: {run}"):
            for metric, entry in _items(metrics, f"{path.name}: {run} / {notebook}"):
                _check_entry(dict(_items(entry, where := f"{path.name}: {run} / {notebook} / {metric}")), where)
    return content


def _items(value: Any, where: str) -> Iterable[tuple[str, Any]]:
    if not isinstance(value, dict):
        raise UserError(f"{where}: {type(value).__name__} in place of a mapping; correct it")
    return value.items()


def _check_entry(entry: dict[str, Any], where: str) -> None:
    pick(KINDS, entry.get("kind", ""), f"kind of expectation ({where})")
    missing = [key for key in (*KINDS[entry["kind"]], "reason") if key not in entry]
    if entry["kind"] in ("bound", "direction") and not {"min", "max"} & entry.keys():
        missing.append("min or max")
    if missing:
        raise UserError(f"{where}: lacks {', '.join(missing)}")
    for name in {"min", "max", "value"} & entry.keys():
        if not isinstance(entry[name], int | float):
            raise UserError(f"{where}: {name} is {str(entry[name])[:60]!r}, no number; correct it")


def check_record(record: dict[str, Any], expected: dict[str, dict[str, Any]]) -> list[str]:
    """Return one line for each expectation (metric -> entry) that a record does not meet."""
    failures = []
    if record.get("status") != "ok":
        failures.append(f"status is {record.get('status')!r}, not 'ok'")
    metrics = record.get("metrics", {})
    odd = {name: why for name, metric in metrics.items() if (why := _implausible(metric))}
    failures += [f"{name} {why}" for name, why in odd.items()]
    for name, entry in expected.items():
        if name in odd:
            continue
        why = _violation(float(metrics[name]["value"]), entry) if name in metrics else "is not in the record"
        if why:
            failures.append(f"{name} {why} ({entry['kind']}: {entry['reason']})")
    return failures


def _implausible(metric: dict[str, Any]) -> str:
    """Say why a metric cannot be right whatever is expected: not finite, or no fraction and no unit."""
    value = float(metric["value"])
    if not math.isfinite(value):
        return f"is {value}"
    if metric.get("unit") or metric.get("better", "higher") == "none":
        return ""
    lowest = -1 if metric.get("chance") == 0 else 0  # a difference: knowing nothing would give 0
    return "" if lowest <= value <= 1 else f"is {value:.4g}, no fraction (a percentage?)"


def _violation(value: float, entry: dict[str, Any]) -> str:
    if entry["kind"] == "exact" and value != entry["value"]:
        return f"is {value:g}, not {entry['value']:g}"
    if value < entry.get("min", -math.inf):
        return f"is {value:.4g}, below {entry['min']:g}"
    if value > entry.get("max", math.inf):
        return f"is {value:.4g}, above {entry['max']:g}"
    return ""
