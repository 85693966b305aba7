"""What a recogniser answers about photos of products that nobody has named yet."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from retailkit.cache import replacing, to_json
from retailkit.config import DataError
from retailkit.data import folder, ocr
from retailkit.data.spreadsheet import write_table
from retailkit.data.table import Sample, collate
from retailkit.models.classifier import ProductClassifier, evaluating
from retailkit.training.encoded import encode_batch, placed

AT_ONCE = 32  # photos that are read, then classified together
READERS = 4  # photos decoded at a time: a large one takes more than a gigabyte
COLUMNS = ["image", "label", "probability", "runner_up", "runner_up_probability", "unknown"]


class Answers(NamedTuple):
    """What was answered about photos, and which photos could not be read."""

    table: pd.DataFrame  # one row per photo: `image`, `label`, `probability`, `runner_up`, ..., see `predict`
    failed: dict[str, str]  # path of a photo -> what is wrong with it, and the cure


def predict(
    model: ProductClassifier, facts: Mapping[str, Any], files: Sequence[str | Path], unknown: float | None = None
) -> Answers:
    """Classify photos; those that cannot be read are listed, and the rest is done.

    Args:
        model: in evaluation mode. For a model that reads, the OCR engine reads the photos.
        facts: of its checkpoint: `size` and `fit` of the images.
        files: paths of photos.
        unknown: an answer is marked as unknown where its probability (of a gallery model: its similarity) is below this
            value in [0,1]; None takes the model's own threshold, and without one marks only what gets no answer at all.

    Returns:
        A table with `image`, `label`, `probability`, `runner_up`, `runner_up_probability`, `unknown` (bool), the
        `similarity` of a gallery model, and the `text` for models that read; and what failed.
    """
    photos = folder.photos(files, model.classes, checked=False)
    split = photos.split("test", facts["size"], facts["fit"])
    rows, failed = [], {}

    def read(row: int) -> Sample | DataError:
        try:
            return split[row]
        except DataError as error:
            return error

    bar = tqdm(total=len(files), desc="predict", unit="photo", delay=2, mininterval=2, leave=False)
    with bar, placed(model) as where, ThreadPoolExecutor(min(READERS, os.cpu_count() or 1)) as pool:
        for start in range(0, len(files), AT_ONCE):
            at = range(start, min(start + AT_ONCE, len(files)))
            seen = dict(zip(at, pool.map(read, at), strict=True))
            failed |= {str(files[row]): folder.reason(e) for row, e in seen.items() if isinstance(e, DataError)}
            found = [row for row in at if isinstance(seen[row], Sample)]
            samples = [seen[row] for row in found]
            if found and "text" in model.modalities:
                texts = ocr.add_text(photos.select(np.array(found))).table["text"]
                samples = [replace(sample, text=text) for sample, text in zip(samples, texts, strict=True)]
            if found:
                rows += _answers(model, samples, [str(files[row]) for row in found], where, unknown)
            bar.update(len(at))
    return Answers(pd.DataFrame(rows, columns=None if rows else COLUMNS), failed)


def _answers(model, samples: list[Sample], files: list[str], where, unknown: float | None) -> list[dict[str, Any]]:
    batch = collate(samples)
    with evaluating(model):
        part = encode_batch(model, batch.to(where), model.encode_image)
        probs = model.classify(part.image, part.text).softmax(-1).float().cpu().numpy()
        head, similarity = getattr(model, "head", None), None
        if hasattr(head, "similarity"):  # of each image to the nearest product of a gallery
            similarity = head.similarity(model.by_modality(part.image, part.text)).amax(1).cpu().numpy()
    threshold = float(getattr(head, "threshold", 0.0)) if unknown is None else unknown
    rows = []
    for row, (file, sample) in enumerate(zip(files, samples, strict=True)):
        first, *others = np.argsort(-probs[row], kind="stable")[:2]
        answered = not others or np.ptp(probs[row]) > 0
        sure = probs[row, first] if similarity is None else similarity[row]
        answer = {
            "image": file,
            "label": model.classes[first] if answered else "",
            "probability": round(float(probs[row, first]), 6),
            "runner_up": model.classes[others[0]] if others and answered else "",
            "runner_up_probability": round(float(probs[row, others[0]]), 6) if others else 0.0,
            "unknown": bool(not answered or sure < threshold),
        }
        answer |= {} if similarity is None else {"similarity": round(float(sure), 6)}
        rows.append(answer | ({"text": sample.text} if "text" in model.modalities else {}))
    return rows


def save(answers: Answers, path: Path, **facts: Any) -> None:
    """Write answers as `.csv` or as `.json`, which also holds what failed, and the given facts."""
    with replacing(path) as draft:
        if path.suffix.lower() == ".csv":
            write_table(answers.table, draft)
        else:
            rows = answers.table.to_dict("records")
            failed = [{"image": image, "reason": reason} for image, reason in answers.failed.items()]
            content = {"retailkit": "predict", **facts, "answers": rows, "failed": failed}
            draft.write_text(to_json(content, indent=1) + "\n", encoding="utf-8")
