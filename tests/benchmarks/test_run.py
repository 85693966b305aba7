"""How fast notebooks are executed."""

import pytest

from retailkit import runs

KNOBS = 'PROFILE = "fast"  # p\nDATASET = "synthetic"  # d\nROOT = ""  # r\nSEED = 0  # s'
BODY = """from retailkit import runs
import torch
run = runs.start({name!r})
run.finish()"""


@pytest.mark.benchmark
def test_run(checkout, compare, monkeypatch):
    monkeypatch.delenv("RETAILKIT_DEVICE")  # every notebook finds it out, as a user's do
    names = ("10_one", "11_two", "12_three", "13_four")
    paths = [checkout(name, KNOBS, BODY.format(name=name)) for name in names]

    def execute(**options):
        results = runs.execute(paths, **options)
        return [r.status for r in results]

    def failures(a, b):
        return sum(status not in ("ok", "kept") for status in a + b)

    side_by_side = {"reference": lambda: execute(jobs=1, fresh=True), "ours": lambda: execute(fresh=True)}
    compare("run", "4 small notebooks", "one at a time", **side_by_side, agreement=failures, repeat=1)
    rerun = {"reference": lambda: execute(fresh=True), "ours": execute}
    assert compare("run", "4 notebooks, nothing changed", "afresh", **rerun, agreement=failures, repeat=1) > 5
