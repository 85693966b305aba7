"""How the files of an export compare with the model they come from: answers, speed, size."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from retailkit.config import UserError
from retailkit.data.table import ProductDataset, collate
from retailkit.inference import onnx_session
from retailkit.metrics import Evaluation, bootstrap
from retailkit.models.classifier import ProductClassifier, evaluating

TOLERANCE = 1e-4  # largest difference in any probability between PyTorch and the float32 file
PYTORCH, FLOAT32, INT8 = "PyTorch", "ONNX float32", "ONNX int8"
WARM_UP, ROUNDS = 3, 40
Classifier = Callable[[Tensor], np.ndarray]


def pytorch(model: ProductClassifier) -> Classifier:
    """Return what maps images (B,3,H,W) to probs (B,K) by PyTorch."""

    def classify(images: Tensor) -> np.ndarray:
        with evaluating(model):
            return model(images).float().softmax(-1).numpy()

    return classify


def onnx(graph: bytes, threads: int) -> Classifier:
    """Return what maps images (B,3,H,W) to probs (B,K) by ONNX Runtime on so many threads."""
    session = onnx_session(graph, threads)
    return lambda images: session.run(None, {"images": images.numpy()})[0]


def evaluations(
    classifiers: Mapping[str, Classifier], dataset: ProductDataset, batch: int = 16
) -> dict[str, Evaluation]:
    """Classify a split with each classifier; every photo is read once.

    Args:
        classifiers: by name.
        dataset: the split.
        batch: photos at a time.
    """
    loader = DataLoader(dataset.with_options(reads=()), batch, collate_fn=collate)
    probs: dict[str, list[np.ndarray]] = {name: [] for name in classifiers}
    for part in tqdm(loader, desc="compare", delay=2, mininterval=2, leave=False):
        for name, classify in classifiers.items():
            probs[name].append(classify(part.images))
    facts = dataset.labels, list(dataset.classes), dataset.rows
    return {name: Evaluation(np.concatenate(parts), *facts) for name, parts in probs.items()}


def require_agreement(found: Evaluation, reference: Evaluation, tolerance: float = TOLERANCE) -> None:
    """Make sure that two classifiers give the same probabilities.

    Raises:
        UserError: some probability differs by more than `tolerance`; says by how much.
    """
    difference = float(np.abs(found.probs - reference.probs).max())
    if not difference <= tolerance:  # NaN too
        raise UserError(
            f"the ONNX model and PyTorch differ by {difference:.3g} in a probability, accepted is {tolerance:g}; "
            "nothing was written: update torch, onnx and onnxruntime, or train with another backbone"
        )


def latency(classifiers: Mapping[str, Classifier], images: Tensor, rounds: int = ROUNDS) -> dict[str, np.ndarray]:
    """Return seconds a photo by classifier, (rounds,), on one core; they take turns, so that a busy moment hits all.

    Args:
        classifiers: by name; ONNX ones made with one thread.
        images: (N,3,H,W), one is classified at a time.
        rounds: timed photos a classifier.
    """
    threads = torch.get_num_threads()
    seconds: dict[str, list[float]] = {name: [] for name in classifiers}
    torch.set_num_threads(1)
    try:
        for turn in range(WARM_UP + rounds):
            photo = images[turn % len(images)][None]
            for name, classify in classifiers.items():
                start = time.perf_counter()
                classify(photo)
                seconds[name].append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return {name: np.array(values[WARM_UP:]) for name, values in seconds.items()}


def compare(
    found: Mapping[str, Evaluation], seconds: Mapping[str, np.ndarray], graphs: Mapping[str, tuple[str, bytes]]
) -> pd.DataFrame:
    """Return one row a classifier; the first one is the reference of the others.

    Args:
        found: evaluations by name.
        seconds: from `latency`, by name.
        graphs: file name and content, by name of the classifier.

    Returns:
        Columns `name`, `file`, `megabytes` (NaN without a file), `milliseconds` (median), `fastest`, `slowest` (its
        95 % interval), `difference` (largest, of a probability), `agreement` (share of equal first guesses),
        `accuracy`, `low`, `high`, `loss` (of accuracy), `loss_low`, `loss_high` (paired bootstrap).
    """
    reference, rows = next(iter(found.values())), []
    for name, evaluation in found.items():
        file, content = graphs.get(name, ("", b""))
        times, lost = 1000 * seconds[name], reference.correct.astype(float) - evaluation.correct
        rows.append(
            {
                "name": name,
                "file": file,
                "megabytes": len(content) / 1e6 if content else np.nan,
                "milliseconds": float(np.median(times)),
                **dict(zip(("fastest", "slowest"), bootstrap(times, np.median), strict=True)),
                "difference": float(np.abs(evaluation.probs - reference.probs).max()),
                "agreement": float((evaluation.predicted == reference.predicted).mean()),
                "accuracy": evaluation.top1,
                **dict(zip(("low", "high"), evaluation.interval, strict=True)),
                "loss": float(lost.mean()),
                **dict(zip(("loss_low", "loss_high"), bootstrap(lost), strict=True)),
            }
        )
    return pd.DataFrame(rows)


def machine() -> str:
    """Return what the times were measured on."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            model = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), model)
    except OSError:
        pass  # not Linux
    return f"{platform.system()}, one core of {model}"


def spread(dataset: ProductDataset, count: int) -> Sequence[int]:
    """Return positions of at most `count` photos, evenly over a split."""
    return np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int)).tolist()
