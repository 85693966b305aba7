"""What is on this machine: the list behind `retailkit check`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from retailkit.config import UserError, cache_dir, data_root, device

PACKAGES = ("torch", "torchvision", "timm", "transformers", "captum", "papermill", "jupyterlab", "ipywidgets")
OFFLINE = ("efficientnet_lite0", "efficientnet_lite2")
AGAIN = "delete .venv and run make run: it installs again"
Row = tuple[str, str, bool, str]


def environment() -> pd.DataFrame:
    """Return one row per check: `what`, `found`, `fine` (bool) and, where it is not fine, the `cure`."""
    from retailkit import data  # here, as they bring PyTorch, which recording a run does not need
    from retailkit.models import weights

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    free = shutil.disk_usage(cache_dir()).free / 1e9
    rows = [
        ("Python", platform.python_version(), sys.version_info >= (3, 11), "install Python 3.11 or newer"),
        ("device", device(), True, ""),
        ("cores", str(os.cpu_count()), True, ""),
        ("memory", f"{memory:.0f} GB", memory > 4, "close other programs: notebooks take up to 4 GB"),
        *(_package(name) for name in PACKAGES),
        *(_weights(name, weights.find_weights) for name in OFFLINE),
        _weights("minilm", weights.find_folder),
        _ocr(),
        ("space for the cache", f"{free:.0f} GB", free > 2, "free some space or set RETAILKIT_CACHE"),
    ]
    for name in data.DATASETS:
        if name not in ("synthetic", "folder"):
            there = data_root(name).is_dir() and any(data_root(name).iterdir())
            rows.append((f"data set {name}", "here" if there else "not here (optional)", True, ""))
    table = pd.DataFrame(rows, columns=["what", "found", "fine", "cure"])
    return table.assign(cure=table["cure"].where(~table["fine"], ""))


def _package(name: str) -> Row:
    try:
        return name, importlib.metadata.version(name), True, ""
    except importlib.metadata.PackageNotFoundError:
        return name, "missing", False, AGAIN


def _weights(name: str, find: Callable[[str], Path]) -> Row:
    """Compare packaged weights with their sha256."""
    try:
        find(name)
    except UserError as error:
        return f"weights {name}", "missing or damaged", False, str(error)
    return f"weights {name}", "here, checksum correct", True, ""


def _ocr() -> Row:
    """Let the OCR engine read an empty image: a broken engine shows when it starts."""
    from retailkit.data import ocr

    name, version, there, cure = _package("rapidocr")
    if there:
        try:
            ocr.read_words(np.full((64, 64, 3), 255, np.uint8))
        except Exception as error:  # whatever a foreign runtime raises: it belongs on the list
            return "OCR engine", f"{name} {version} fails: {type(error).__name__}", False, AGAIN
    return "OCR engine", f"{name} {version}", there, cure
