"""What all tests of backgrounds share."""

import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Nothing is taken from the user's cache, and nothing is left there."""
    monkeypatch.setenv("RETAILKIT_CACHE", str(tmp_path / "cache"))
