"""The first step of a run: what every notebook needs, done once."""

from __future__ import annotations

from pathlib import Path

from retailkit import data as datasets
from retailkit import training
from retailkit.config import profile
from retailkit.data import ocr


def prepare(profile_name: str = "fast", dataset: str = "synthetic", root: str | Path | None = None) -> None:
    """Do once what every notebook needs: render or find the images, read words, encode features, train the probe."""
    chosen, where = profile(profile_name), (dataset, root, profile_name)
    data = ocr.add_text(datasets.load(*where), limit=chosen.ocr_limit)
    for size in (None, chosen.explain_size):
        model, _ = training.fit_or_load(training.reference("probe", *where, size=size), data)
        if "test" in data.splits:
            training.encode(model, data.split("test", size or model.input_size))
    if dataset == "synthetic":
        packshots = training.resample(datasets.load(*where, regime="packshot", difficulty="hard"), chosen.views, seed=0)
        for name in ("image", "lca"):
            training.fit_or_load(training.reference("packshots", *where, model=name), packshots)
