"""Where real photos lie, for the tests that look at some."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture
def real_data():
    """Return a function from a data set's name to its folder of real photos; it skips the test without them."""

    def find(name: str) -> Path:
        places = [Path(__file__).resolve().parents[3] / "shared" / "data" / name]
        if base := os.environ.get("RETAILKIT_DATA"):
            places.insert(0, Path(base) / name)
        return next((p for p in places if p.exists()), None) or pytest.skip(f"no real {name} here")

    return find
