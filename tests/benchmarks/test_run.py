"""How fast notebooks are executed."""

import os
from pathlib import Path

import pytest

from retailkit import runs
from retailkit.runs.prepare import prepare

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


@pytest.mark.benchmark
@pytest.mark.timeout(2 * 3600)
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two workers need two cores")
def test_the_main_job(compare, quick, monkeypatch, tmp_path):
    """All notebooks as `make run` executes them, with nothing in the cache and one thread for each worker."""
    if quick:
        pytest.skip("takes half an hour; run it without --quick")
    monkeypatch.chdir(Path(__file__).parents[2])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def execute(jobs):
        monkeypatch.setenv("RETAILKIT_CACHE", str(tmp_path / f"cache{jobs}"))
        done = runs.execute(runs.notebooks(), jobs=jobs, prepare=prepare, output=tmp_path / f"by{jobs}")
        return [result.status for result in done]

    both = {"reference": lambda: execute(1), "ours": lambda: execute(2)}
    case, failed = "all notebooks, nothing in the cache", lambda a, b: sum(status != "ok" for status in a + b)
    assert compare("run", case, "one worker", **both, agreement=failed, repeat=1) > 1.5
