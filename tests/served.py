"""Pages of tests: a server in a process of its own, and a browser."""

import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
             "--disable-background-networking", "--disable-component-update"]  # fmt: skip


def until(holds, seconds=240):
    """Wait until `holds()` is true."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come to hold"
        time.sleep(0.2)


@contextmanager
def served(words, log, address, **options):
    """Run Python with `words` until the block ends, which begins once `address` answers; `log` holds what it says."""
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, *words], stdout=stream, stderr=stream, start_new_session=True, **{"cwd": ROOT} | options
        )

    def answers():
        assert process.poll() is None, f"the server has ended: {log.read_text()[-3000:]}"
        try:
            urllib.request.urlopen(address, timeout=5).close()
        except urllib.error.HTTPError:
            pass
        except OSError:
            return False
        return True

    try:
        until(answers)
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


@contextmanager
def opened_browser():
    """Yield a browser; skip with the command that installs one where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is missing; run: pip install playwright")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not path:
        pytest.skip("no browser was found; run: make browser")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()
