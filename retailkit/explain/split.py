"""Explanations of every photo of a split, on several processes or machines."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from retailkit import cluster, recipes, training
from retailkit.cache import content_hash, digest, file_identity, replacing
from retailkit.config import UserError
from retailkit.data import ocr
from retailkit.data.spreadsheet import write_table
from retailkit.data.table import ProductData
from retailkit.explain import lime
from retailkit.inference import Predictor

TABLE = "explanations.csv"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, known by its `identity` (see `file_identity`), wherever it lies."""

    path: Path = field(compare=False)
    identity: str


@dataclass(frozen=True)
class Job:
    """One photo to be explained into `output / file`, by path, so that a worker opens it; see `cluster.Portable`."""

    checkpoint: Checkpoint
    photo: ProductData  # of one row
    output: Path
    file: str
    options: lime.Options

    def inputs(self) -> list[Path]:
        """Return the files that it reads."""
        return [self.checkpoint.path, *self.photo.files()]

    def moved(self, place: Callable[[Path], Path], output: Path) -> Job:
        """Return the same job for a disk where each input lies at `place(path)`."""
        checkpoint = replace(self.checkpoint, path=place(self.checkpoint.path))
        return replace(self, checkpoint=checkpoint, photo=self.photo.moved(place), output=output)


def explain_split(
    checkpoint: Path,
    dataset: str,
    root: Path | None,
    split: str,
    output: Path,
    options: lime.Options,
    jobs: int | None = None,
    scheduler: str = "",
) -> tuple[int, int, list[str]]:
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
        How many photos are explained, how many of them were before, and a line for each that could not be.
    """
    output.mkdir(parents=True, exist_ok=True)
    root = Path(root).resolve() if root else None
    plan, failed = _planned(checkpoint.resolve(), dataset, root, split, output.resolve(), options), {}
    made = {job.file: job for job in plan if not lime.kept_explanation(output / job.file)}
    if made:
        jobs = max(1, min(jobs or min(os.cpu_count() or 1, 4), len(made)))
        with cluster.workers(jobs, scheduler, output.resolve()) as pool:
            for job, fault in pool.as_done(_explain, list(made.values()), "explain"):
                if isinstance(fault, UserError):
                    failed[job.file] = fault
                elif fault:
                    raise fault
    rows = [_row(job) for job in plan if job.file not in failed]
    with replacing(output / TABLE) as draft:
        write_table(pd.DataFrame(rows), draft)
    images = [(str(job.photo.table["image"].iloc[0]), job.file) for job in plan]
    kept = len(plan) - sum(job.file in made for job in plan)
    return len(rows), kept, [f"{image}: {failed[file]}" for image, file in images if file in failed]


def _planned(
    checkpoint: Path, dataset: str, root: Path | None, split: str, output: Path, options: lime.Options
) -> list[Job]:
    """Return a job for each photo; the name of its file changes with all that decides the explanation."""
    known = Checkpoint(checkpoint, file_identity(checkpoint))
    predictor, facts = _opened(known)
    products = recipes.load_for([(predictor.model, facts)], dataset, root, split, read=False)
    products = training.with_classes(products, predictor.model)
    wanted = products.select(products.split(split, facts["size"], facts["fit"]).rows)
    photos = replace(wanted, table=wanted.table.assign(split="test", mask="", truth=""))
    key, reads, plan = lime.deciding(predictor, options), "text" in predictor.model.modalities, []
    for row, image, text in photos.table[["image", "text"]].itertuples():
        photo = photos.select(np.array([row]))
        shown = ocr.reading_key(photos.name, row, image) if reads else content_hash(image)
        words = [asdict(word) for word in photo.table["words"].iloc[0]] if "words" in photo.table else []
        file = f"{digest(key, facts['size'], photos.fit, facts['fit'], shown, text, words)}.safetensors"
        plan.append(Job(known, photo, output, file, options))
    return plan


def _explain(job: Job) -> None:
    """Explain one photo, unless it has been meanwhile."""
    predictor, facts = _opened(job.checkpoint)
    photo = ocr.add_text(job.photo) if "text" in predictor.model.modalities else job.photo
    sample = photo.split("test", facts["size"], facts["fit"])[0]
    lime.explain_once(predictor, sample, job.output / job.file, job.options)


def _row(job: Job) -> dict[str, Any]:
    """Return the row of the table for a photo that has been explained."""
    found = lime.LocalExplanation.load(job.output / job.file)
    summary = {name: " ".join(value) if isinstance(value, list) else value for name, value in gist(found).items()}
    image, label = job.photo.table[["image", "label"]].iloc[0]
    return {"image": str(image), "label": label, "predicted": summary.pop("label"), **summary, "file": job.file}


@lru_cache(maxsize=1)
def _opened(checkpoint: Checkpoint) -> tuple[Predictor, dict[str, Any]]:
    """Return a model, and the facts of its checkpoint."""
    if file_identity(checkpoint.path) != checkpoint.identity:
        raise cluster.ClusterError(f"{checkpoint.path}: a worker sees another file than here; share the disk")
    model, _, facts = training.load_checkpoint(checkpoint.path)
    return Predictor(model, facts["size"]), facts


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
