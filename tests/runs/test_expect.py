"""What a record must show: each kind of expectation can fail."""

import pytest

from retailkit import runs
from retailkit.config import UserError

KINDS = {  # kind of expectation: what is written, and a value that does not meet it
    "bound": ({"kind": "bound", "min": 0.4}, 0.0),
    "ceiling": ({"kind": "bound", "max": 0.6}, 0.9),
    "direction": ({"kind": "direction", "min": 0.1, "switched_off": {"X": False}}, 0.0),
    "exact": ({"kind": "exact", "value": 0.5}, 0.0),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_expectation_passes_and_fails(kind):
    entry, wrong = KINDS[kind]

    def check(status="ok", **metrics):
        return runs.check_record({"status": status, "metrics": metrics}, {"m": entry | {"reason": "r"}})

    assert check(m={"value": 0.5}) == []
    for metric in ({"value": wrong}, {"value": float("nan")}, {"value": float("nan"), "unit": "s"}):
        assert len(check(m=metric)) == 1
    assert "not in the record" in check()[0]
    assert "status is 'running'" in check("running", m={"value": 0.5})[0]
    (line,) = check(m={"value": 0.5}, other={"value": 50.0})
    assert "other is 50, no fraction" in line


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{kind: bond, min: 1, reason: r}", "did you mean 'bound'"),
        ("{kind: bound, reason: r}", "lacks min or max"),
        ("{kind: direction, min: 0, reason: r}", "lacks switched_off"),
        ("{kind: exact, value: 1}", "lacks reason"),
        ("{kind: bound, min: high, reason: r}", "min is 'high', no number"),
        ("7", "int in place of a mapping"),
    ],
)
def test_malformed_expectations_are_named(tmp_path, entry, message):
    (tmp_path / "expected.yml").write_text(f"fast-synthetic:\n  20_training:\n    top1: {entry}\n")
    with pytest.raises(UserError, match=f"fast-synthetic / 20_training / top1.*{message}"):
        runs.expectations(tmp_path / "expected.yml")
