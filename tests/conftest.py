"""No test reaches beyond this machine, and none touches the user's cache."""

import os
import socket

os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest

LONGEST = ("test_notebooks.py", "test_browser.py")
LOCAL = ("127.", "::1", "localhost")


@pytest.fixture(autouse=True, scope="session")
def offline():
    """Refuse every connection that is not to this machine."""
    connect = socket.socket.connect

    def guarded(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and not str(address[0]).startswith(LOCAL):
            raise OSError(f"a test tried to reach {address[0]}: tests work offline")
        return connect(self, address)

    socket.socket.connect = guarded
    yield
    socket.socket.connect = connect


@pytest.fixture(autouse=True, scope="session")
def session_cache(tmp_path_factory):
    """One cache for the whole session and all its workers; a test that needs its own sets RETAILKIT_CACHE itself."""
    before, base = os.environ.get("RETAILKIT_CACHE"), tmp_path_factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    os.environ["RETAILKIT_CACHE"] = str(shared / "cache")
    yield
    if before is None:
        del os.environ["RETAILKIT_CACHE"]
    else:
        os.environ["RETAILKIT_CACHE"] = before


def pytest_collection_modifyitems(items):
    """Start with the longest files, so that no worker waits for them at the end."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))
