"""Data sets behind one call: `load(name, root)` gives a `ProductData`."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from retailkit import config
from retailkit.config import DataError, data_root, pick
from retailkit.data.table import Batch, ProductData, ProductDataset, Sample, collate

__all__ = ["DATASETS", "Batch", "DataError", "ProductData", "ProductDataset", "Sample", "collate", "load"]

# name -> "module:function"; the function takes (root, **options) and returns a ProductData.
DATASETS = {
    "synthetic": "retailkit.data.synthetic:load",
    "grocery_store": "retailkit.data.readers:load_grocery_store",
    "grozi120": "retailkit.data.readers:load_grozi120",
    "capg_gp": "retailkit.data.readers:load_capg_gp",
    "dm4vm": "retailkit.data.readers:load_dm4vm",
    "finegrainocr": "retailkit.data.finegrainocr:load",
    "imagenet9": "retailkit.data.readers:load_imagenet9",
    "folder": "retailkit.data.folder:load",
}


def load(name: str, root: str | Path | None = None, profile: str | None = None, **options: Any) -> ProductData:
    """Load a data set by name, from tables and file names only: no pixel is read, nothing is downloaded.

    Args:
        name: one of `DATASETS`.
        root: its folder (or CSV, for `folder`); empty or None takes `$RETAILKIT_DATA/<name>`, then the cache folder.
        profile: `fast` or `full` says how many images the built-in set has; other sets are taken as they are.
        **options: the reader's own options, such as `subset="packages"` for `grocery_store`.

    Raises:
        UsageError: unknown data set.
        DataError: the folder is missing or broken; the message names the file, the row and the cure.
    """
    if profile and name == "synthetic":
        options = {"per_class": config.profile(profile).per_class} | options
    module, function = DATASETS[pick(DATASETS, name, "data set")].split(":")
    reader = getattr(importlib.import_module(module), function)
    return reader(Path(root) if root else data_root(name), **options)
