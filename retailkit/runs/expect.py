"""What each notebook must show: bounds on its metrics, kept in `tests/expected.yml`.

    fast-synthetic:
      20_training:
        top1_frozen: {kind: bound, min: 0.4, reason: "chance 0.04; lowest of 5 seeds minus 2 sd"}
        gain_pretrained: {kind: direction, min: 0.1, switched_off: {PRETRAINED: false}, reason: "..."}

`exact` needs `value`; `bound` and `direction` need `min` or `max`. A direction names the parameter (`switched_off`)
that switches its cause off: a test runs the notebook that way and sees the check fail.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from retailkit.config import UserError, home, pick, read_yaml

KINDS = {"exact": ("value",), "bound": (), "direction": ("switched_off",)}  # kind -> what else it needs
NUMBERS = ("min", "max", "value")


def expectations(path: Path | None = None) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """Read the expectations: run (`fast-synthetic`) -> notebook -> metric -> what is expected."""
    path = path or home() / "tests" / "expected.yml"
    content = (read_yaml(path) or {}) if path.is_file() else {}
    for run, by_notebook in _items(content, path.name):
        for notebook, metrics in _items(by_notebook, f"{path.name}: {run}"):
            for metric, entry in _items(metrics, where := f"{path.name}: {run} / {notebook}"):
                _check_entry(dict(_items(entry, f"{where} / {metric}")), f"{where} / {metric}")
    return content


def _items(value: Any, where: str) -> Iterable[tuple[str, Any]]:
    if not isinstance(value, dict):
        raise UserError(f"{where}: {type(value).__name__} in place of a mapping; correct it")
    return value.items()


def _check_entry(entry: dict[str, Any], where: str) -> None:
    kind = pick(KINDS, entry.get("kind", ""), f"kind of expectation ({where})")
    missing = [key for key in (*KINDS[kind], "reason") if key not in entry]
    missing += ["min or max"] if kind != "exact" and not {"min", "max"} & entry.keys() else []
    if missing:
        raise UserError(f"{where}: lacks {', '.join(missing)}")
    for name in NUMBERS:
        if not isinstance(entry.get(name, 0), int | float):
            raise UserError(f"{where}: {name} is {str(entry[name])[:60]!r}, no number; correct it")


def check_record(record: dict[str, Any], expected: dict[str, dict[str, Any]]) -> list[str]:
    """Return one line for each expectation (metric -> entry) that a record does not meet."""
    failures = [] if record.get("status") == "ok" else [f"status is {record.get('status')!r}, not 'ok'"]
    metrics = record.get("metrics", {})
    odd = {name: why for name, metric in metrics.items() if (why := _implausible(metric))}
    failures += [f"{name} {why}" for name, why in odd.items()]
    for name, entry in expected.items():
        why = _violation(float(metrics[name]["value"]), entry) if name in metrics else "is not in the record"
        if why and name not in odd:
            failures.append(f"{name} {why} ({entry['kind']}: {entry['reason']})")
    return failures


def _implausible(metric: dict[str, Any]) -> str:
    """Say why a metric cannot be right whatever is expected: it has no unit, and is no fraction."""
    if metric.get("unit") or metric.get("better", "higher") == "none":
        return ""
    lowest = -1 if metric.get("chance") == 0 else 0  # a difference: knowing nothing would give 0
    return "" if lowest <= metric["value"] <= 1 else f"is {metric['value']:.4g}, no fraction (a percentage?)"


def _violation(value: float, entry: dict[str, Any]) -> str:
    if entry["kind"] == "exact" and value != entry["value"]:
        return f"is {value:g}, not {entry['value']:g}"
    if "min" in entry and not value >= entry["min"]:  # nor is NaN
        return f"is {value:.4g}, below {entry['min']:g}"
    if "max" in entry and not value <= entry["max"]:
        return f"is {value:.4g}, above {entry['max']:g}"
    return ""
