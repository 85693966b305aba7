"""What is on this machine: the list behind `retailkit check`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from retailkit.config import UserError, cache_dir, data_root, device

PACKAGES = ("torch", "torchvision", "timm", "transformers", "captum", "papermill", "jupyterlab", "ipywidgets")
OFFLINE = ("efficientnet_lite0", "efficientnet_lite2")
AGAIN = "delete .venv and run make run: it installs again"
Row = tuple[str, str, bool, str]


def environment() -> pd.DataFrame:
    """Return one row a check: `what`, `found`, `fine` (bool) and, where it is not fine, the `cure`."""
    rows = [*_machine(), *(_package(name) for name in PACKAGES), *_weights(), _ocr(), _cache(), *_data_sets()]
    table = pd.DataFrame(rows, columns=["what", "found", "fine", "cure"])
    return table.assign(cure=table["cure"].where(~table["fine"], ""))


def _machine() -> list[Row]:
    fits = sys.version_info >= (3, 11)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return [
        ("Python", platform.python_version(), fits, "install Python 3.11 or newer"),
        ("device", device(), True, ""),
        ("cores", str(os.cpu_count()), True, ""),
        ("memory", f"{memory:.0f} GB", memory > 4, "close other programs: notebooks take up to 4 GB"),
    ]


def _package(name: str) -> Row:
    try:
        return name, importlib.metadata.version(name), True, ""
    except importlib.metadata.PackageNotFoundError:
        return name, "missing", False, AGAIN


def _weights() -> list[Row]:
    """Compare the packaged weights with their sha256."""
    from retailkit.models import weights

    rows = [_try(f"weights {name}", lambda name=name: weights.find_weights(name)) for name in OFFLINE]
    return [*rows, _try("weights minilm", lambda: weights.find_folder("minilm"))]


def _try(what: str, find: Callable[[], Path]) -> Row:
    try:
        find()
    except UserError as error:
        return what, "missing or damaged", False, str(error)
    return what, "here, checksum right", True, ""


def _ocr() -> Row:
    """Let the OCR engine look at an empty picture: a broken engine shows when it starts."""
    import numpy as np

    from retailkit.data import ocr

    name, version, there, cure = _package("rapidocr")
    if there:
        try:
            ocr.read_words(np.full((64, 64, 3), 255, np.uint8))
        except Exception as error:  # whatever a foreign runtime raises: it belongs on the list
            return "OCR engine", f"{name} {version} fails: {type(error).__name__}", False, AGAIN
    return "OCR engine", f"{name} {version}", there, cure


def _cache() -> Row:
    free = shutil.disk_usage(cache_dir()).free / 1e9
    return "space for the cache", f"{free:.0f} GB", free > 2, "free some space or set RETAILKIT_CACHE"


def _data_sets() -> list[Row]:
    from retailkit import data

    rows = []
    for name in data.DATASETS:
        if name not in ("synthetic", "folder"):
            there = data_root(name).is_dir() and any(data_root(name).iterdir())
            rows.append((f"data set {name}", "here" if there else "not here (optional)", True, ""))
    return rows
