"""Where real photos lie, for the tests that look at some."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture
def real_data():
    """Return a function from a data set's name to its folder of real photos; it skips the test without them."""

    def find(name: str) -> Path:
        place = Path(os.environ.get("RETAILKIT_DATA", "")) / name
        if not os.environ.get("RETAILKIT_DATA") or not place.exists():
            pytest.skip(f"no real {name} here; set RETAILKIT_DATA to test with it")
        return place

    return find
