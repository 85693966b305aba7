"""What a record must show: each kind of expectation can fail."""

import pytest

from retailkit import runs
from retailkit.config import UserError

GOOD = {"status": "ok", "metrics": {"m": {"value": 0.5}}}
KINDS = {
    "bound": {"kind": "bound", "min": 0.4, "reason": "r"},
    "ceiling": {"kind": "bound", "max": 0.6, "reason": "r"},
    "direction": {"kind": "direction", "min": 0.1, "switched_off": {"X": False}, "reason": "r"},
    "exact": {"kind": "exact", "value": 0.5, "reason": "r"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_expectation_passes_and_fails(kind):
    entry = {"m": KINDS[kind]}
    assert runs.check_record(GOOD, entry) == []
    wrong = 0.9 if kind == "ceiling" else 0.0
    for value in (wrong, float("nan")):
        assert len(runs.check_record({"status": "ok", "metrics": {"m": {"value": value}}}, entry)) == 1
    assert "not in the record" in runs.check_record({"status": "ok", "metrics": {}}, entry)[0]
    assert "status is 'running'" in runs.check_record(GOOD | {"status": "running"}, entry)[0]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{kind: bond, min: 1, reason: r}", "did you mean 'bound'"),
        ("{kind: bound, reason: r}", "lacks min or max"),
        ("{kind: direction, min: 0, reason: r}", "lacks switched_off"),
        ("{kind: exact, value: 1}", "lacks reason"),
    ],
)
def test_malformed_expectations_are_named(tmp_path, entry, message):
    (tmp_path / "expected.yml").write_text(f"fast-synthetic:\n  20_training:\n    top1: {entry}\n")
    with pytest.raises(UserError, match=message):
        runs.expectations(tmp_path / "expected.yml")
