"""Measure two ways of doing the same thing side by side, in one run."""

import os
import time
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch

COLUMNS = ("name", "case", "baseline", "baseline_seconds", "seconds", "ratio", "agreement")
QUICK = os.environ.get("RETAILKIT_BENCH_QUICK") == "1"


@pytest.fixture
def quick():
    """True where the whole suite should stay under five minutes."""
    return QUICK


@pytest.fixture
def all_cores():
    """The threads that a user has; tests have one each."""
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count())
    yield
    torch.set_num_threads(before)


@pytest.fixture
def compare():
    """Return `_compare`."""
    return _compare


@pytest.fixture
def compare_cpu():
    """Return `_compare` by processor time, for work that is all of this process: other programs matter little then."""
    return partial(_compare, clock=time.process_time)


def _difference(one, other):
    """The largest difference of two tensors, or how many rows of two lists differ."""
    if isinstance(one, torch.Tensor):
        return (one - other).abs().max()
    return sum(a != b for a, b in zip(one, other, strict=True))


def _compare(name, case, baseline, reference, ours, agreement=_difference, repeat=1 if QUICK else 3, tolerance=1e-4,
             clock=time.perf_counter):  # fmt: skip
    """Time `reference` and `ours` in turn, write a row and return how many times faster `ours` is, by the medians.

    `case` says what was measured, `baseline` what `reference` is. `agreement` is a function of both results, 0 where
    they are the same and at most `tolerance`; None where results cannot differ.
    """
    seconds, results = {"reference": [], "ours": []}, {}
    for _ in range(repeat):
        for who, call in (("reference", reference), ("ours", ours)):
            start = clock()
            results[who] = call()
            seconds[who].append(clock() - start)
    slow, fast = (sorted(seconds[who])[repeat // 2] for who in ("reference", "ours"))
    differ = None if agreement is None else float(agreement(results["reference"], results["ours"]))
    shown = "" if differ is None else f"{differ:.3g}"
    row = (name, case, baseline, f"{slow:.4f}", f"{fast:.4f}", f"{slow / fast:.3f}", shown)
    print(f"\n{name}: {case}: {fast:.3f} s against {slow:.3f} s ({baseline}): {slow / fast:.2f} times as fast")
    if path := os.environ.get("RETAILKIT_BENCH_CSV"):
        pd.DataFrame([row], columns=COLUMNS).to_csv(path, mode="a", header=not Path(path).exists(), index=False)
    assert differ is None or differ <= tolerance, f"{name}: {case}: results differ by {shown}"
    return slow / fast
