"""What the records of the notebooks say about what models look at and what the background does to them.

Records are of the notebooks' own models on a data set, not of the checkpoint that is exported; a card says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from retailkit import runs
from retailkit.config import UserError

COLUMNS = ["what", "value", "low", "high", "chance", "unit", "n", "notebook", "metric"]
# Notebook -> what its metrics mean, in the words of a card.
LOOKS_AT = {
    "50_saliency": {
        "energy_product_gradcam": "share of the attribution (Grad-CAM) that lies on the product",
        "energy_product_gradcam_randomised": "the same of a network without training",
        "pointing_product_gradcam": "photos whose strongest point (Grad-CAM) lies on the product",
        "energy_patch_gradcam": "share of the attribution on the patch that tells twins apart",
        "telling_words": "share of the words' attribution on words that tell twins apart",
    },
    "51_local_explanations": {
        "first_word": "explanations whose first word is one that tells twins apart",
        "energy": "weight on the patch and the words that tell twins apart, as a multiple of chance",
        "r2": "fit of the explanations on masked pictures that they did not see",
    },
    "52_global_explanations": {
        "telling_word_in_top_5": "classes with a telling word among their five strongest",
        "classes_that_need_their_top_word": "classes that lose accuracy without their strongest word",
    },
    "61_background_factors": {
        "energy_original": "share of the saliency on the product, trained on photos as they are",
        "energy_foreground_only": "the same, trained on cut-out products",
    },
}
BACKGROUND = {
    "60_background_variants": {
        "top1_original_on_original": "accuracy on photos as they are",
        "top1_original_on_only_bg_t": "accuracy on backgrounds alone",
        "gap_original": "accuracy lost when the background comes from another class instead of the same",
        "background_required_original": "photos that need their background to be recognised",
        "not_fooled_original": "photos that no background of another class can fool",
        "gap_mixed_rand": "accuracy lost to other backgrounds after training on random ones",
    },
    "61_background_factors": {
        "gain_foreground_only": "accuracy gained by cutting products out",
        "gain_generic_over_pasting": "accuracy gained by pasting onto general backgrounds",
        "drop_shadow_beyond_control": "accuracy lost to shadows, beyond a control",
        "drop_reflection_beyond_control": "accuracy lost to reflections, beyond a control",
    },
}


@dataclass(frozen=True)
class Evidence:
    """What was found on one question.

    Attributes:
        table: one row a metric: `what`, `value`, `low`, `high`, `chance`, `unit`, `n`, `notebook`, `metric`.
        sources: one line a record that was read: notebook, profile, commit.
        missing: one line a notebook without a finished record, with the command that makes one.
    """

    table: pd.DataFrame
    sources: list[str]
    missing: list[str]


def record_folders(dataset: str) -> list[Path]:
    """Return where records on a data set lie: latest runs before kept ones, the full profile before the fast one."""
    try:
        base = runs.record.home() / "papermill_runs"
    except UserError:
        return []
    names = [f"{profile}-{dataset}" for profile in ("full", "fast")]
    return [folder / name for name in names for folder in (base / "latest", base)]


def find(wanted: dict[str, dict[str, str]], dataset: str, folders: Sequence[Path] | None = None) -> Evidence:
    """Gather metrics from records.

    Args:
        wanted: `LOOKS_AT` or `BACKGROUND`.
        dataset: name, for the commands.
        folders: where records lie, the most telling first; None means `record_folders`.
    """
    folders = record_folders(dataset) if folders is None else folders
    rows, sources, missing = [], [], []
    for notebook, meanings in wanted.items():
        record = _finished(notebook, folders)
        if record is None:
            missing.append(f"{notebook}: not measured; run: retailkit run {notebook[:2]} --dataset {dataset}")
            continue
        commit = f", commit {record['git']}" if record.get("git") else ""
        sources.append(f"{notebook}, {record['profile']} profile on {record['dataset']}{commit}")
        rows += [_row(what, name, record) for name, what in meanings.items() if name in record["metrics"]]
    return Evidence(pd.DataFrame(rows, columns=COLUMNS), sources, missing)


def _finished(notebook: str, folders: Sequence[Path]) -> dict[str, Any] | None:
    records = (runs.read_record(folder / f"{notebook}.json") for folder in folders)
    return next((r for r in records if r and r.get("status") == "ok"), None)


def _row(what: str, name: str, record: dict[str, Any]) -> tuple:
    metric = record["metrics"][name]
    low, high = metric.get("interval", (None, None))
    facts = metric.get("chance"), metric.get("unit", ""), metric.get("n")
    return (what, metric["value"], low, high, *facts, record["notebook"], name)
