"""`retailkit export`: a trained image model as a folder that works without this package.

    model.onnx           from images in [0,1] to probabilities; normalisation and softmax are inside
    preprocessing.json   how a photo becomes the model's input, and the class names
    predict.py           the same as a small program that needs numpy, Pillow and onnxruntime
    card.md              model card: accuracy, confusions and calibration on one split, speed, licences
    report.json          the numbers of the card

Everything is measured before anything is written: an ONNX model that disagrees with PyTorch is never written.
"""

from __future__ import annotations

import html
import itertools
import re
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from retailkit import data, training
from retailkit.cache import check_output, replacing, to_json
from retailkit.config import UsageError, UserError
from retailkit.data.table import CROP_FRACTION, ProductDataset, collate
from retailkit.export import predict
from retailkit.inference import to_onnx
from retailkit.metrics import Evaluation
from retailkit.models.classifier import Features, ProductClassifier, evaluating

FILES = ("model.onnx", "preprocessing.json", "predict.py", "report.json", "card.md")
TOLERANCE = 1e-4  # largest accepted difference in any probability between PyTorch and ONNX Runtime
POOLINGS = ("gap", "lca")  # NTS-Net changes tensors in place, which the exporter cannot follow
TIMED, ROUNDS = 8, 40  # images and passes behind a latency
TRIED = 16  # photos that predict.py is compared on
PAD_LEVEL = 128  # grey that the data set pads with
Classifier = Callable[[Tensor], np.ndarray]


def export(
    checkpoint: str | Path,
    folder: str | Path,
    dataset: str = "synthetic",
    root: str | Path | None = None,
    split: str = "test",
    force: bool = False,
) -> dict[str, Any]:
    """Export a checkpoint to `folder`, compare it with PyTorch on a split, and write its model card.

    Returns the content of `report.json`. An earlier export is replaced; other files only with `force`.

    Raises:
        UsageError: a model that cannot be exported, or a folder with files of somebody else.
        UserError: no such checkpoint or split, or an ONNX model that disagrees with PyTorch.
    """
    folder = Path(folder)
    check_output(folder / "report.json", (checkpoint, root), force)
    for name in FILES:
        check_output(folder / name, (checkpoint, root), force or (folder / "report.json").is_file())
    model, _, facts = training.load_checkpoint(checkpoint)
    require_exportable(model)
    products = training.with_classes(data.load(dataset, root), model, split)
    size = facts.get("size", model.input_size)
    photos = products.split(split, size, facts.get("fit"))

    for_size = model.with_parts(image_encoder=model.image_encoder.for_side(size, size))
    graph = to_onnx(_Probabilities(for_size), {"images": torch.full((2, 3, size, size), 0.5)}, "probs")
    preparation = preprocessing(model, size, photos.fit)
    expected = _probabilities(_pytorch(model), photos)
    probs = _probabilities(_onnx(graph, torch.get_num_threads()), photos)
    differences = {
        "model.onnx": float(np.abs(probs - expected).max()),
        "predict.py": _try_program(graph, preparation, photos, expected),
    }
    for name, difference in differences.items():
        if not difference <= TOLERANCE:  # NaN too
            raise UserError(
                f"{name} and PyTorch differ by {difference:.3g} in a probability (accepted: {TOLERANCE:g}), so nothing "
                "was written; update torch, onnx and onnxruntime, or train with another backbone"
            )
    evaluation = Evaluation(probs, photos.labels, list(photos.classes), photos.rows)
    images = torch.stack([photos[i].image for i in range(min(TIMED, len(photos)))])
    report = {
        "title": f"{model.build_args['name']} on {dataset}",
        "model": {name: model.build_args.get(name) for name in ("name", "backbone", "pooling")},
        "checkpoint": training.fingerprint(model)[:16],
        "data": {"name": dataset, "split": split, "licence": products.info.get("licence", "")},
        "difference_from_pytorch": differences,
        "megabytes": len(graph) / 1e6,
        "milliseconds": {"pytorch": _latency(_pytorch(model), images), "onnx": _latency(_onnx(graph, 1), images)},
        **measurements(evaluation, photos.table),
    }
    _write(folder, graph, preparation, report)
    return report


def require_exportable(model: nn.Module) -> None:
    """Raise `UsageError` unless a model is one image network and a head that the exporter can follow."""
    arguments = getattr(model, "build_args", {})
    name, pooling = arguments.get("name", type(model).__name__), arguments.get("pooling")
    if not isinstance(model, ProductClassifier):
        reason = "is not one network, so it cannot become one graph"
    elif model.modalities != ("image",):
        reason = "reads text, which needs an OCR engine and a tokenizer"
    elif pooling not in POOLINGS:
        reason = f"has the pooling {pooling!r}, which cannot be exported"
    else:
        return
    raise UsageError(f"model {name!r} {reason}; train `image` or `lca`, which can be exported")


class _Probabilities(nn.Module):
    """From images in [0,1] to probabilities."""

    def __init__(self, model: ProductClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        values = self.model.pooling(self.model.image_encoder, images)
        available = values[:, 0] == values[:, 0]  # all True; `ones` would be traced for one batch size only
        return self.model.classify(Features(values, available)).float().softmax(-1)


def _pytorch(model: ProductClassifier) -> Classifier:
    def classify(images: Tensor) -> np.ndarray:
        with evaluating(model):
            return model(images).float().softmax(-1).numpy()

    return classify


def _onnx(graph: bytes, threads: int) -> Classifier:
    """Return the graph as ONNX Runtime computes it, which `predict.py` uses."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    # Spinning threads starve others, torch's own among them: with them it takes twice the time.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images.numpy()})[0]


def _probabilities(classify: Classifier, photos: ProductDataset) -> np.ndarray:
    """Return probs (N,K) of a split."""
    batches = DataLoader(photos.with_options(reads=()), 16, collate_fn=collate)
    return np.concatenate([classify(batch.images) for batch in tqdm(batches, "compare", delay=2, leave=False)])


def _latency(classify: Classifier, images: Tensor) -> float:
    """Return the median time per image in milliseconds, one image at a time on one core."""
    threads, turns = torch.get_num_threads(), itertools.cycle(images.split(1))
    torch.set_num_threads(1)
    try:
        seconds = timeit.repeat(lambda: classify(next(turns)), number=1, repeat=ROUNDS)
    finally:
        torch.set_num_threads(threads)
    return 1000 * float(np.median(seconds))


def preprocessing(model: ProductClassifier, size: int, fit: str) -> dict[str, Any]:
    """Return what a program has to know to use the model; `predict.py` follows it. `fit` is as in `to_square`."""
    return {
        "input": f"images (batch, 3, {size}, {size}), float32 in [0, 1], RGB; normalisation is inside the model",
        "output": "probs (batch, classes), float32, in the order of `classes`",
        "size": size,
        "fit": fit,
        "short_side": round(size / CROP_FRACTION),  # fit `crop`: resize the short side to this, then cut the centre
        "pad_level": PAD_LEVEL,  # fit `pad`: grey level of the padding
        "classes": list(model.classes),
    }


def _try_program(graph: bytes, preparation: dict[str, Any], photos: ProductDataset, expected: np.ndarray) -> float:
    """Return by how much `predict.py`, which reads the files itself, differs from PyTorch on a few photos."""
    classify = _onnx(graph, 1)
    chosen = np.unique(np.linspace(0, len(photos) - 1, TRIED).round().astype(int))
    files = photos.table["image"].to_numpy()[chosen]
    probs = np.concatenate([classify(torch.from_numpy(predict.prepare(file, preparation))) for file in files])
    return float(np.abs(probs - expected[chosen]).max())


def measurements(evaluation: Evaluation, table: pd.DataFrame) -> dict[str, Any]:
    """Return the accuracy on one split, whose rows are `table`, by class and condition; its confusions, calibration."""
    conditions = table["condition"].mask(table["condition"] == "").reset_index(drop=True)
    frames = {
        "by_class": evaluation.per_class,
        "by_condition": evaluation.by_group(conditions, "condition").sort_values("accuracy"),
        "confused": evaluation.confusion_pairs(10),
        "reliability": evaluation.reliability(),
    }
    unseen = [name for k, name in enumerate(evaluation.classes) if k not in set(evaluation.labels)]
    facts = {"evaluation": evaluation.summary(), "confidence": float(evaluation.probs.max(1).mean()), "unseen": unseen}
    return facts | {name: frame.to_dict("records") for name, frame in frames.items()}


def model_card(report: dict[str, Any]) -> str:
    """Return a report as a model card in Markdown."""
    template = Path(__file__).with_name("card.md.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(trim_blocks=True)
    environment.filters["md"] = lambda text: re.sub(r"([\\`*\[\]|])", r"\\\1", html.escape(str(text), quote=False))
    return environment.from_string(template).render(report)


def _write(folder: Path, graph: bytes, preparation: dict[str, Any], report: dict[str, Any]) -> None:
    program = Path(predict.__file__).read_bytes()
    described, measured = (to_json(content, indent=1, ensure_ascii=False) + "\n" for content in (preparation, report))
    for name, content in zip(FILES, (graph, described, program, measured, model_card(report)), strict=True):
        with replacing(folder / name) as draft:
            draft.write_bytes(content if isinstance(content, bytes) else content.encode())
