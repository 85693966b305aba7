"""Explanations of every photo of a split, on several processes or machines."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from retailkit import cluster, recipes, training
from retailkit.cache import file_identity, replacing
from retailkit.config import UserError
from retailkit.data import ocr
from retailkit.data.spreadsheet import write_table
from retailkit.data.table import ProductData
from retailkit.explain import lime
from retailkit.inference import Predictor

TABLE = "explanations.csv"


@dataclass(frozen=True)
class Job:
    """Which photos are explained, by path, so that every worker opens them by itself.

    `identity` of the checkpoint (see `file_identity`) makes sure that it opens the same one.
    """

    checkpoint: Path
    identity: str
    dataset: str
    root: Path | None
    split: str
    output: Path
    options: lime.Options


def explain_split(
    checkpoint: Path,
    dataset: str,
    root: Path | None,
    split: str,
    output: Path,
    options: lime.Options,
    jobs: int | None = None,
    scheduler: str = "",
) -> tuple[int, list[str]]:
    """Explain every photo of a split into a folder: one file per photo (`LocalExplanation.load`), and a table of all.

    Files that are there for the same photo, words, model and options are used again. What a file holds depends on these
    alone: not on the order of the photos, nor on the number of processes.

    Args:
        checkpoint: what `retailkit train` wrote.
        dataset: name of the data set, with its `root` and `split`.
        root: None takes the default.
        split: `test`, or several as in `val+test`.
        output: folder.
        options: of each explanation.
        jobs: photos at a time; None takes the number of cores, at most 4.
        scheduler: address of a dask scheduler, whose workers then take the place of `jobs` processes.

    Returns:
        How many photos are explained, and a line for each that could not be.
    """
    output.mkdir(parents=True, exist_ok=True)
    root = Path(root).resolve() if root else None
    job = Job(
        checkpoint.resolve(), file_identity(checkpoint.resolve()), dataset, root, split, output.resolve(), options
    )
    table = _opened(job)[1].table
    pieces = [(job, row) for row in range(len(table))]
    jobs = max(1, min(jobs or min(os.cpu_count() or 1, 4), len(pieces)))
    rows, failed = {}, {}
    with cluster.workers(jobs, scheduler, job.output) as pool:
        for (_, row), found in pool.as_done(_explain, pieces, "explain"):
            if isinstance(found, UserError):
                failed[row] = f"{table['image'].iloc[row]}: {found}"
            elif isinstance(found, Exception):
                raise found
            else:
                rows[row] = found
    with replacing(output / TABLE) as draft:
        write_table(pd.DataFrame([rows[row] for row in sorted(rows)]), draft)
    return len(rows), [failed[row] for row in sorted(failed)]


def _explain(piece: tuple[Job, int]) -> dict[str, Any]:
    """Explain one photo, or find that it has been; return its row of the table."""
    (job, row) = piece
    predictor, photos, facts, key = _opened(job)
    photo = photos.select(np.array([row]))
    if "text" in predictor.model.modalities:
        photo = ocr.add_text(photo)
    sample = photo.split("test", facts["size"], facts["fit"])[0]
    found, path = lime.explain_once(predictor, sample, job.output, job.options, key)
    told = {name: " ".join(value) if isinstance(value, list) else value for name, value in gist(found).items()}
    image, label = photo.table[["image", "label"]].iloc[0]
    return {"image": str(image), "label": label, "predicted": told.pop("label"), **told, "file": path.name}


@lru_cache(maxsize=1)
def _opened(job: Job) -> tuple[Predictor, ProductData, dict[str, Any], str]:
    """Return the model, the photos of the split, the facts of the checkpoint, and what decides explanations."""
    if file_identity(job.checkpoint) != job.identity:
        raise cluster.ClusterError(f"{job.checkpoint}: a worker sees no such file or another one; share the disk")
    model, _, facts = training.load_checkpoint(job.checkpoint)
    products = recipes.load_for([(model, facts)], job.dataset, job.root, job.split, read=False)
    products = training.with_classes(products, model)
    wanted = products.select(products.split(job.split, facts["size"], facts["fit"]).rows)
    photos = replace(wanted, table=wanted.table.assign(split="test"))
    predictor = Predictor(model, facts["size"])
    return predictor, photos, facts, lime.deciding(predictor, job.options)


def gist(found: lime.LocalExplanation) -> dict[str, Any]:
    """Return the gist of a local explanation: the answer, the words that count, and how far to trust it."""
    words = found.words()
    return {
        "label": found.classes[found.explained[0]],
        "probability": round(float(found.probs[found.explained[0]]), 4),
        "question": found.question,
        "speaks_for": words["text"][words["low"] > 0].head(3).tolist(),
        "speaks_against": words["text"][words["high"] < 0].tail(3).tolist()[::-1],
        "r2": None if found.nothing else round(float(found.r2[0]), 3),
        "nothing": found.nothing,
        **found.evaluations,
    }
