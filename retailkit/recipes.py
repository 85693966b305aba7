"""Recipes: the best recognisers that packaged weights allow, as data. `retailkit train --preset NAME` follows one."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from retailkit import data as datasets
from retailkit import training
from retailkit.config import UserError, pick
from retailkit.data import ocr
from retailkit.data.synthetic.catalogue import CATALOGUE
from retailkit.data.table import ProductData, ProductDataset
from retailkit.models.classifier import ProductClassifier
from retailkit.models.ensemble import Ensemble
from retailkit.models.pooling import Features
from retailkit.training import EncodedDataset, History, TrainConfig, TrainSpec

RSS_UNIT = 1 << 20 if sys.platform == "darwin" else 1 << 10  # of `ru_maxrss` in a megabyte
_TUNED = {"mode": "finetune", "epochs": 8, "augment": "standard", "train_size": 256, "encoder_lr": 1e-3, "ema": 0.99}
_SHORTER = {"epochs": 5}  # of a member that is only trained to find a temperature
_PROBE = {"epochs": 60, "batch_size": 128}
_PACKSHOTS = {"epochs": 10, "batch_size": 64, "lr": 1e-3, "augment": "packshot", "views": 8}


@dataclass(frozen=True)
class Member:
    """One model of an ensemble."""

    model: str  # name for `models.build`
    options: Mapping[str, Any]  # of `models.build`
    size: int  # side of its images in pixels
    config: Mapping[str, Any] = field(default_factory=dict)  # fields of `training.TrainConfig`
    flip: bool = False  # it also sees the mirror image
    weight: float = 1.0  # in the ensemble

    def __str__(self) -> str:
        if what := {"matching": "matching", "nbnn": "nearest-neighbour votes"}.get(self.model):
            name = self.options.get("detector", "sift")
            detector = "XFeat" if name == "xfeat" else name.upper()
            return f"{detector} {what}" + " with colour" * bool(self.options.get("colour"))
        blocks = f"last {learn} blocks " if (learn := self.options.get("learn")) else ""
        how = f"{blocks}fine-tuned" if self.config.get("mode") == "finetune" else "frozen"
        views = f", {self.config['views']} views" if "views" in self.config else ""
        return f"{self.options['backbone'].replace('efficientnet_lite', 'EfficientNet-Lite')}, {how}{views}"


@dataclass(frozen=True)
class Recipe:
    """How the ensemble for one data set is trained."""

    dataset: str  # name in `data.DATASETS`
    learn_from: tuple[str, ...]  # by the final members; every choice was made before, with `val` held out
    members: tuple[Member, ...]
    data_options: Mapping[str, Any] = field(default_factory=dict)  # of the data set's reader


def _last_blocks(backbone: str, blocks: int) -> dict[str, Any]:
    return {"backbone": backbone, "freeze": True, "learn": blocks, "dropout": 0.3}


RECIPES = {
    "grocery_best": Recipe(
        "grocery_store",
        ("train", "val"),
        (
            Member("image", _last_blocks("efficientnet_lite2", 15), 320, _TUNED, flip=True),
            Member("image", _last_blocks("efficientnet_lite0", 11), 320, _TUNED, flip=True),
            Member("image", {"backbone": "efficientnet_lite0"}, 224, _PROBE, flip=True, weight=0.25),
            Member("image", {"backbone": "efficientnet_lite2"}, 260, _PROBE, flip=True, weight=0.0625),
        ),
    ),
    "grozi_best": Recipe(
        "grozi120",
        ("train",),
        (
            Member("image", {"backbone": "efficientnet_lite0"}, 160, _PACKSHOTS, weight=0.25),
            Member("image", {"backbone": "efficientnet_lite2"}, 160, _PACKSHOTS, weight=0.5),
            Member("matching", {"keypoints": 200}, 240, weight=0.5),
            Member("nbnn", {"keypoints": 200}, 240, weight=2.0),
            Member("nbnn", {"detector": "xfeat", "keypoints": 300, "colour": 1.0}, 240, weight=4.0),
        ),
    ),
    "synthetic_best": Recipe(
        "synthetic",
        ("train",),
        (
            Member("image", {"backbone": "efficientnet_lite0"}, 160, _PACKSHOTS | {"views": 3}),
            Member("matching", {"keypoints": 200}, 240, weight=2.0),
        ),
        {"regime": "packshot", "difficulty": "hard"},
    ),
}


def load(name: str, root: str | Path | None = None) -> ProductData:
    """Load the data set of a recipe."""
    recipe = RECIPES[pick(RECIPES, name, "preset")]
    return datasets.load(recipe.dataset, root, **recipe.data_options)


def load_for(
    checkpoints: Sequence[tuple[ProductClassifier, Mapping[str, Any]]],
    dataset: str,
    root: Path | None,
    split: str,
    read: bool = True,
) -> ProductData:
    """Load a data set to judge checkpoints (model and facts) on a split, whose words are read if one of them reads.

    Without `read`, no words are read.

    Raises:
        UserError: the split holds a class that one of them does not know.
    """
    built_in = {product.label for product in CATALOGUE}
    if dataset == "synthetic" and not root and any(built_in.isdisjoint(model.classes) for model, _ in checkpoints):
        cure = "name your photos with --root, or another data set with --dataset"
        raise UserError(f"the built-in data set holds none of the classes of a checkpoint; {cure}")
    recipes = [RECIPES.get(facts.get("preset")) for _, facts in checkpoints]
    options = next((recipe.data_options for recipe in recipes if recipe and recipe.dataset == dataset), {})
    products = datasets.load(dataset, root, **options)
    for model, _ in checkpoints:
        training.with_classes(products, model, split)  # refuses before words are read
    if read and any("text" in model.modalities for model, _ in checkpoints):
        products = ocr.add_text(products.select(products.table["split"].isin(split.split("+")).to_numpy()))
    return products


def fit(
    name: str,
    root: str | Path | None = None,
    seed: int = 0,
    hold_out: bool = False,
    data: ProductData | None = None,
    finetune: Mapping[str, Any] | None = None,
) -> tuple[Ensemble, History, dict[str, Any]]:
    """Train the ensemble of a recipe; finished members are loaded and an interrupted training goes on.

    Args:
        name: key of `RECIPES`.
        root: folder of its data set; None takes the default.
        seed: of weights, order and augmentation.
        hold_out: the members learn from `train` alone and their weights are chosen on `val`. Otherwise they learn from
            all splits of `learn_from` and have the weights of the recipe. If `val` is among these splits, the weights
            are divided by their temperature, for which the members are trained a second time, without `val` and with
            fewer epochs of fine-tuning: photos that members learned from say nothing about confidence.
        data: the data set, if it is loaded already.
        finetune: fields of `TrainConfig` that fine-tuned members get instead of the recipe's, such as fewer epochs.

    Returns:
        The ensemble, the epochs of all members (column `member`), and facts for the checkpoint.
    """
    recipe = RECIPES[pick(RECIPES, name, "preset")]
    data, finetune = data or load(name, root), dict(finetune or {})
    if hold_out and "val" not in data.splits:
        raise UserError(f"{data.name!r} has no split 'val' to hold out; train without it")
    learned = data
    if not hold_out:  # what they learn from is the training split and nothing else, so that no image chooses an epoch
        learned = data.select(data.table["split"].isin(recipe.learn_from).to_numpy())
        learned = replace(learned, table=learned.table.assign(split="train"))
    ensemble, histories = _trained(recipe, learned, root, seed, finetune)
    started = time.monotonic()
    if hold_out:
        encoded = log_probs(ensemble, data.split("val", ensemble.input_size))
        ensemble.tune(encoded.image, encoded.labels)
    else:
        ensemble.weights.copy_(torch.tensor([member.weight for member in recipe.members]))
        if "val" in recipe.learn_from and "val" in data.splits:
            print("once more with 'val' held out, to calibrate the probabilities")
            held, _ = _trained(recipe, data, root, seed, _SHORTER | finetune)
            held.weights.copy_(ensemble.weights)
            encoded = log_probs(held, data.split("val", held.input_size))
            held.calibrate(encoded.image, encoded.labels)
            ensemble.weights.copy_(held.weights)
    seconds = [history.seconds for history in histories]
    epochs = [history.epochs.assign(member=number) for number, history in enumerate(histories)]
    whole = History(pd.concat(epochs, ignore_index=True), 0, sum(seconds) + time.monotonic() - started)
    facts = {
        "preset": name,
        "hold_out": hold_out,
        "size": ensemble.input_size,
        "fit": data.fit,
        "photos": training.photo_hashes(learned.split("train")),
        "seconds_of_members": seconds,
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / RSS_UNIT,
    }
    return ensemble, whole, facts


def _trained(
    recipe: Recipe, data: ProductData, root: str | Path | None, seed: int, finetune: Mapping[str, Any]
) -> tuple[Ensemble, list[History]]:
    """Return the members of a recipe, trained or loaded, as an ensemble of equal weights."""
    members, histories = [], []
    for number, member in enumerate(recipe.members, 1):
        print(f"member {number} of {len(recipe.members)}: {member}")
        changes = finetune if member.config.get("mode") == "finetune" else {}
        config = TrainConfig(**{**member.config, **changes, "seed": seed})
        where = recipe.dataset, str(root) if root else None
        spec = TrainSpec(*where, member.model, dict(member.options), member.size, config)
        model, history = training.fit_or_load(spec, data)
        model.input_size = member.size
        members.append(model)
        histories.append(history)
    return Ensemble(members, [member.flip for member in recipe.members]).eval(), histories


def train(name: str, output: Path, root: str | Path | None, seed: int, hold_out: bool) -> dict[str, Any]:
    """Write the ensemble of a recipe to `output`; return what it cost, and its accuracy on photos that it held out."""
    products = load(name, root)
    print(products)
    ensemble, history, made = fit(name, root, seed, hold_out, products)
    training.save_checkpoint(ensemble, output, history, **made)
    facts = {"checkpoint": str(output), "seconds": round(history.seconds, 1), "megabytes": round(made["megabytes"])}
    facts["weights"] = ensemble.weights.tolist()
    if hold_out or "val" not in RECIPES[name].learn_from:
        facts["val"] = training.evaluate(ensemble, products.split("val", ensemble.input_size)).summary()
    return facts


def log_probs(ensemble: Ensemble, photos: ProductDataset) -> EncodedDataset:
    """Return what `ensemble.encode_image` gives of a split; the cache holds the log-probabilities of each member."""
    singles = [Ensemble([m], [f]).eval() for m, f in zip(ensemble.members, ensemble.flips, strict=True)]
    parts = [training.encode(single, photos) for single in singles]
    values = torch.cat([part.image.values for part in parts], 1)
    return EncodedDataset(Features(values, parts[0].image.available), None, parts[0].labels, parts[0].rows)
