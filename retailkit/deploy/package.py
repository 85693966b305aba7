"""`retailkit export`: a folder with everything that a shop's software needs, checked before it is written.

model.onnx           float32, from pictures in [0,1] to probabilities
model.int8.onnx      the same in int8
preprocessing.json   how a photo becomes the model's input, and the class names
predict.py           the same as a small program without retailkit
report.json          all numbers
card.html, card.md   model card and checklist, with their figures
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retailkit import data, training
from retailkit.config import UserError
from retailkit.data.table import CROP_FRACTION, ProductData, ProductDataset
from retailkit.deploy import graph, measure, predict
from retailkit.deploy.card import Card, model_card
from retailkit.metrics import Evaluation
from retailkit.models.classifier import ProductClassifier
from retailkit.models.encoders import BACKBONES

MADE = ("model.onnx", "model.int8.onnx", "preprocessing.json", "predict.py", "report.json", "card.md", "card.html",
        "reliability.png", "label_check.png")  # fmt: skip
VERSIONS = ("torch", "torchvision", "timm", "onnx", "onnxruntime", "numpy", "pillow")
SEEN = {"train": ", which the model learned from: expect less", "val": ", which chose the epoch: expect a little less"}
PAD_LEVEL = 128
TRIED = 8  # photos that the small program is tried on
TIMED = 8  # photos that times are measured on
BATCH = 8  # training photos at a time, for calibration


@dataclass(frozen=True)
class Export:
    """What an export made.

    Attributes:
        folder: where it lies.
        card: the model card.
        files: from `measure.compare`: PyTorch, float32 and int8.
        script: largest difference in a probability between `predict.py` and PyTorch, over a few photos.
        no_int8: why there is no int8 file; "" if there is one.
    """

    folder: Path
    card: Card
    files: Any
    script: float
    no_int8: str = ""

    def summary(self) -> dict[str, Any]:
        """Return the gist for the command line."""
        rows = self.files.set_index("name")
        facts: dict[str, Any] = {"output": str(self.folder), "decision": self.card.decision}
        for name, label in ((measure.PYTORCH, "pytorch"), (measure.FLOAT32, "float32"), (measure.INT8, "int8")):
            if name in rows.index:
                row = rows.loc[name]
                facts[label] = {"top1": row["accuracy"], "interval": [row["low"], row["high"]]}
                facts[label] |= {"milliseconds": row["milliseconds"]}
                if row["file"]:
                    facts[label] |= {k: row[k] for k in ("megabytes", "agreement", "difference")}
        facts |= {"n": self.card.facts["evaluation"]["n"], "script_difference": self.script, "no_int8": self.no_int8}
        verdicts = self.card.checklist.groupby("verdict")["criterion"].apply(list)
        return facts | {"criteria": {name: list(verdicts[name]) for name in verdicts.index}}


def export(
    checkpoint: str | Path,
    folder: str | Path,
    dataset: str = "synthetic",
    root: str | Path | None = None,
    split: str = "test",
    int8: bool = True,
    limits: Mapping[str, float] | None = None,
    records: Sequence[Path] | None = None,
) -> Export:
    """Export a checkpoint, check it on a split, and write its card; on any failure the folder stays as it was.

    Args:
        checkpoint: what `training.save_checkpoint` wrote.
        folder: to write; one that an export made before is replaced, one with other files in it is refused.
        dataset: name for `data.load`.
        root: its folder; None takes the default.
        split: photos that everything is measured on.
        int8: also make the int8 file, calibrated on training photos.
        limits: of the checklist, from `criteria.limits`; None means the defaults.
        records: folders of run records; None looks in the checkout.

    Raises:
        UsageError: a model that cannot be exported.
        UserError: no such checkpoint or split, another file in the folder, or an ONNX model that disagrees.
    """
    folder = Path(folder)
    _require_ours(folder)
    model, _, facts = training.load_checkpoint(checkpoint)
    graph.require_exportable(model)
    products = training.with_classes(data.load(dataset, root), model)
    side, fit = facts.get("size", model.input_size), facts.get("fit", model.fit)
    photos = products.split(split, side, fit)
    graphs = {measure.FLOAT32: ("model.onnx", graph.float32_graph(model, side))}
    no_int8 = "not asked for"
    if int8:
        no_int8 = _add_int8(graphs, products, side, fit)
    found, files = _compared(model, graphs, photos)
    told = preprocessing(model, facts, products, side, fit)
    with _replacing_folder(folder) as draft:
        for file, content in graphs.values():
            (draft / file).write_bytes(content)
        _write_json(draft / "preprocessing.json", told)
        shutil.copyfile(predict.__file__, draft / "predict.py")
        script = _try_script(graphs[measure.FLOAT32][1], told, photos, found[measure.PYTORCH])
        about = _about(told, products, split, photos, script, no_int8)
        title = f"Model card: {told['model']['name']} on {dataset}"
        card = model_card(found[measure.FLOAT32], photos.table, title, about, dataset, files, limits, records)
        _write_card(draft, card)
        _write_json(draft / "report.json", card.facts | {"split": split, "script_difference": script})
    return Export(folder, card, files, script, no_int8)


def preprocessing(
    model: ProductClassifier, facts: Mapping[str, Any], products: ProductData, side: int, fit: str
) -> dict[str, Any]:
    """Return what a program has to know to use the model; the same checkpoint gives the same content.

    Args:
        model: the exported one.
        facts: of its checkpoint.
        products: the data set that it was made for.
        side: of its pictures in pixels.
        fit: how photos are brought to that square.
    """
    encoder = model.image_encoder
    return {
        "format": 1,
        "model": {name: model.build_args.get(name) for name in ("name", "backbone", "pooling")},
        "checkpoint": training.fingerprint(model),
        "input": {"name": "images", "shape": ["batch", 3, side, side], "type": "float32", "range": [0, 1],
                  "colours": "RGB", "layout": "batch, colour, row, column"},
        "output": {"name": "probs", "shape": ["batch", len(model.classes)], "type": "float32",
                   "means": "probabilities in the order of `classes`"},
        "side": side,
        "fit": fit,
        **{"crop": {"short_side": round(side / CROP_FRACTION)}, "pad": {"pad_level": PAD_LEVEL}}.get(fit, {}),
        "steps": _steps(fit, side),
        "normalisation": {"where": "inside the graph: do not normalise", "mean": encoder.mean.flatten().tolist(),
                          "std": encoder.std.flatten().tolist()},
        "classes": list(model.classes),
        "licence": {"data": products.info.get("licence", ""), "weights": _weights_licence(model, facts),
                    "note": "the model was learned from both: check that your use is allowed by each"},
        "versions": {name: importlib.metadata.version(name) for name in VERSIONS},
    }  # fmt: skip


def _steps(fit: str, side: int) -> list[str]:
    short = round(side / CROP_FRACTION)
    brought = {
        "crop": [
            f"resize so that the short side is {short} pixels; the long side is rounded down",
            f"cut out the central {side} x {side} pixels",
        ],
        "pad": [
            f"pad the short side evenly to a square of grey level {PAD_LEVEL}, an odd pixel right or below",
            f"resize to {side} x {side} pixels",
        ],
        "squeeze": [f"resize to {side} x {side} pixels, whatever the aspect ratio"],
    }
    return [
        "decode, turn upright as EXIF says, convert to RGB of 8 bits; lay transparent parts onto white",
        *brought[fit],
        "resizing is bilinear with antialiasing, columns first, rounded to 8 bits after columns and after rows",
        "divide by 255 and put the colours first",
    ]


def _weights_licence(model: ProductClassifier, facts: Mapping[str, Any]) -> str:
    options = facts.get("spec", {}).get("model_options", {})
    published, chosen = BACKBONES[model.image_encoder.name].weights, options.get("weights", "auto")
    if chosen is None:
        return "none: trained from scratch"
    chosen = next(iter(published)) if chosen == "auto" else chosen
    return published[chosen].licence if chosen in published else f"that of {Path(chosen).name}"


def _about(
    told: Mapping[str, Any], products: ProductData, split: str, photos: ProductDataset, script: float, no_int8: str
) -> dict[str, str]:
    """Return the first table of the card."""
    model, licence = told["model"], told["licence"]
    facts = {
        "model": f"{model['name']}: {model['backbone']}, pooling {model['pooling']}",
        "weights before training": licence["weights"],
        "classes": str(len(told["classes"])),
        "data": f"{products.name}, {len(products)} photos",
        "licence of the data": licence["data"],
        "citation": products.info.get("citation", ""),
        "measured on": f"{len(photos)} photos of the {split} split{SEEN.get(split, '')}",
        "input": f"{told['side']} x {told['side']} pixels, fit {told['fit']}",
        "checkpoint": told["checkpoint"][:16],
        "times measured on": measure.machine(),
        "predict.py": f"within {script:.1e} of PyTorch in every probability, on {min(TRIED, len(photos))} photos",
        "int8": no_int8 and f"not made: {no_int8}",
    }
    return {name: value for name, value in facts.items() if value}


def _add_int8(graphs: dict[str, tuple[str, bytes]], products: ProductData, side: int, fit: str) -> str:
    """Add the int8 file to `graphs`; returns why not, or ""."""
    if "train" not in products.splits:
        return f"data set {products.name!r} has no training photos to calibrate on"
    seen = products.split("train", side, fit).with_options(reads=())
    # A data set lists class by class: photos evenly over the list are photos of all classes.
    chosen = measure.spread(seen, graph.CALIBRATION)
    try:
        small = graph.int8_graph(graphs[measure.FLOAT32][1], _batches(seen, chosen))
    except ImportError as error:
        return f"onnxruntime.quantization needs the package {error.name}; run: pip install {error.name}"
    graphs[measure.INT8] = ("model.int8.onnx", small)
    return ""


def _batches(dataset: ProductDataset, positions: Sequence[int]) -> Iterator[Tensor]:
    for start in range(0, len(positions), BATCH):
        yield torch.stack([dataset[p].image for p in positions[start : start + BATCH]])


def _compared(
    model: ProductClassifier, graphs: Mapping[str, tuple[str, bytes]], photos: ProductDataset
) -> tuple[dict[str, Evaluation], Any]:
    """Return evaluations by name and the table that compares them; raise where float32 disagrees with PyTorch."""
    reference = {measure.PYTORCH: measure.pytorch(model)}
    threads = torch.get_num_threads()
    found = measure.evaluations(
        reference | {name: measure.onnx(content, threads) for name, (_, content) in graphs.items()}, photos
    )
    measure.require_agreement(found[measure.FLOAT32], found[measure.PYTORCH])
    single = reference | {name: measure.onnx(content, 1) for name, (_, content) in graphs.items()}
    (images,) = _batches(photos.with_options(reads=()), measure.spread(photos, TIMED))
    return found, measure.compare(found, measure.latency(single, images), graphs)


def _try_script(content: bytes, told: Mapping[str, Any], photos: ProductDataset, reference: Evaluation) -> float:
    """Return by how much `predict.py` differs from PyTorch in a probability, over a few photos."""
    classify, files = measure.onnx(content, 1), photos.table["image"].tolist()
    differences = [
        np.abs(classify(torch.from_numpy(predict.prepare(files[p], told)))[0] - reference.probs[p]).max()
        for p in measure.spread(photos, TRIED)
    ]
    return float(max(differences))


def _write_card(folder: Path, card: Card) -> None:
    (folder / "card.md").write_text(card.markdown(), encoding="utf-8")
    (folder / "card.html").write_text(card.html(), encoding="utf-8")
    for picture in card.pictures:
        (folder / picture.name).write_bytes(picture.png)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _require_ours(folder: Path) -> None:
    """Make sure that replacing a folder loses nothing but an older export."""
    if folder.is_file():
        raise UserError(f"{folder}: a file is in the way; choose another folder")
    others = sorted(path.name for path in folder.iterdir() if path.name not in MADE) if folder.is_dir() else []
    if others:
        raise UserError(f"{folder}: holds {others[0]!r}, which no export made; choose an empty or a new folder")


@contextmanager
def _replacing_folder(folder: Path) -> Iterator[Path]:
    """Yield a new folder beside `folder`; on success it takes its place, on failure nothing is left of it."""
    folder = folder.resolve()
    draft, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{kind}") for kind in ("tmp", "old"))
    try:
        draft.mkdir(parents=True)
        yield draft
        if folder.exists():
            folder.rename(old)
        draft.rename(folder)
    except OSError as error:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise UserError(f"{folder}: cannot be written ({error.strerror or error}); choose another folder") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
