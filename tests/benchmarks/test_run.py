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


def execute(paths, **options):
    return [result.status for result in runs.execute(paths, **options)]


def failures(one, other):
    return sum(status not in ("ok", "kept") for status in one + other)


@pytest.mark.benchmark
def test_run(checkout, compare, monkeypatch):
    monkeypatch.delenv("RETAILKIT_DEVICE")  # every notebook finds it out, as a user's do
    names = ("10_one", "11_two", "12_three", "13_four")
    paths = [checkout(name, KNOBS, BODY.format(name=name)) for name in names]

    def afresh(**options):
        return execute(paths, fresh=True, **options)

    compare("run", "4 small notebooks", "one at a time", lambda: afresh(jobs=1), afresh, failures, repeat=1)
    case, again = "4 notebooks, nothing changed", lambda: execute(paths)
    assert compare("run", case, "afresh", afresh, again, failures, repeat=1) > 5


@pytest.mark.benchmark
@pytest.mark.timeout(2 * 3600)
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two workers need two cores")
def test_the_main_job(compare, quick, monkeypatch, tmp_path):
    """All notebooks as `make run` executes them, with nothing in the cache and one thread for each worker."""
    if quick:
        pytest.skip("takes half an hour; run it without --quick")
    monkeypatch.chdir(Path(__file__).parents[2])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def job(jobs):
        monkeypatch.setenv("RETAILKIT_CACHE", str(tmp_path / f"cache{jobs}"))
        return execute(runs.notebooks(), jobs=jobs, prepare=prepare, output=tmp_path / f"by{jobs}")

    case, ways = "all notebooks, nothing in the cache", (lambda: job(1), lambda: job(2))
    assert compare("run", case, "one worker", *ways, failures, repeat=1) > 1.5
