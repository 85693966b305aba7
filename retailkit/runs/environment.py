"""What is on this machine: the list behind `retailkit check`."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import pandas as pd

from retailkit.config import UserError, cache_dir, data_root, device

PACKAGES = ("torch", "torchvision", "timm", "transformers", "captum", "papermill", "jupyterlab", "ipywidgets")
OFFLINE = ("efficientnet_lite0", "efficientnet_lite2")
AGAIN = "delete .venv and run make run: it installs again"


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
        *(_tried(name, partial(version, name)) for name in PACKAGES),
        *(_tried(f"weights {name}", partial(weights.find_weights, name), "here, checksum correct") for name in OFFLINE),
        _tried("weights minilm", partial(weights.find_folder, "minilm"), "here, checksum correct"),
        _tried("OCR engine", _read_nothing),
        ("space for the cache", f"{free:.0f} GB", free > 2, "free some space or set RETAILKIT_CACHE"),
    ]
    for name in data.DATASETS:
        if name not in ("synthetic", "folder"):
            there = data_root(name).is_dir() and any(data_root(name).iterdir())
            rows.append((f"data set {name}", "here" if there else "not here (optional)", True, ""))
    table = pd.DataFrame(rows, columns=["what", "found", "fine", "cure"])
    return table.assign(cure=table["cure"].where(~table["fine"], ""))


def _tried(what: str, look: Callable[[], Any], found: str = "") -> tuple[str, str, bool, str]:
    """Return the row of something that raises where it is missing or broken; without `found`, `look` returns that."""
    try:
        seen = look()
        return what, found or seen, True, ""
    except PackageNotFoundError:
        return what, "missing", False, AGAIN
    except UserError as error:
        return what, "missing or damaged", False, str(error)
    except Exception as error:  # whatever a foreign runtime raises: it belongs on the list
        return what, f"fails: {type(error).__name__}", False, AGAIN


def _read_nothing() -> str:
    """Let the OCR engine read an empty image: a broken engine shows when it starts."""
    from retailkit.data import ocr

    engine = f"rapidocr {version('rapidocr')}"
    ocr.read_words(np.full((64, 64, 3), 255, np.uint8))
    return engine
