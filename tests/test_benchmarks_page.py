"""The page of the benchmarks says what its tables say."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("benchmarks_page", DOCS / "benchmarks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_the_benchmarks_is_that_of_its_tables(script):
    ratios, *others = (pd.read_csv(path) for path in (script.RATIOS, script.GROWTH, script.LIME))
    assert script.page(ratios, *others) == script.PAGE.read_text(encoding="utf-8")
    assert np.allclose(ratios["baseline_seconds"] / ratios["seconds"], ratios["ratio"], rtol=0.05)


def test_exponents_are_slopes_of_the_logarithms(script):
    for name, part in pd.read_csv(script.GROWTH).groupby("curve"):
        size, seconds = np.log(part["size"]), np.log(part["seconds"])
        slope = np.cov(size, seconds)[0, 1] / size.var()
        assert part["exponent"].unique() == pytest.approx(slope, abs=0.006), name


def test_the_chart_has_a_line_for_each_curve(script):
    growth = pd.read_csv(script.GROWTH)
    figure = script.chart(growth)
    assert sum(len(ax.lines) for ax in figure.axes) == growth["curve"].nunique()
