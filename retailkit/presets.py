"""Training the presets of `config.PRESETS`: their members one after the other, and then their vote."""

from __future__ import annotations

import copy
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from retailkit import data as datasets
from retailkit import metrics, training
from retailkit.config import PRESETS, Member, Preset, UserError, pick
from retailkit.data.table import ProductData, ProductDataset
from retailkit.inference import Predictor
from retailkit.metrics import Evaluation
from retailkit.models import MATCHERS
from retailkit.models.committee import Committee
from retailkit.models.matching import KeypointMatcher
from retailkit.models.pooling import Features
from retailkit.training import EncodedDataset, History, TrainConfig, TrainSpec


def spec(
    preset: Preset,
    member: Member,
    root: str | Path | None = None,
    seed: int = 0,
    finetune: Mapping[str, Any] | None = None,
) -> TrainSpec:
    """Return the training run of one member of a preset; see `train`."""
    changes = (finetune or {}) if member.config.get("mode") == "finetune" else {}
    config = TrainConfig(**{**member.config, **changes, "seed": seed})
    where = {"dataset": preset.dataset, "root": str(root) if root else None}
    return TrainSpec(**where, model=member.model, model_options=dict(member.options), size=member.size, config=config)


def load(name: str, root: str | Path | None = None) -> ProductData:
    """Load the data set of a preset."""
    preset = PRESETS[pick(PRESETS, name, "preset")]
    return datasets.load(preset.dataset, root, **preset.data_options)


def described(member: Member) -> str:
    """Return what a member is, in a few words."""
    if member.model in MATCHERS:
        how = {"matching": "matching", "nbnn": "votes of single points"}[member.model]
        return f"{member.options.get('detector', 'sift').upper()} {how}"
    how = "fine-tuned" if member.config.get("mode") == "finetune" else "frozen"
    views = f", {member.config['views']} views" if member.config.get("views", 1) > 1 else ""
    return f"{member.options['backbone'].replace('efficientnet_lite', 'EfficientNet-Lite')}, {how}{views}"


def train(
    name: str,
    root: str | Path | None = None,
    seed: int = 0,
    hold_out: bool = False,
    data: ProductData | None = None,
    finetune: Mapping[str, Any] | None = None,
) -> tuple[Committee, History, dict[str, Any]]:
    """Train a preset, or load what is trained already; an interrupted training goes on.

    Args:
        name: key of `PRESETS`.
        root: folder of its data set; None takes the default.
        seed: of weights, order and augmentation.
        hold_out: the members learn from `train` alone, and their weights are chosen on `val`: what the preset's own
            values were chosen by. Otherwise they learn from all splits of `learn_from` and have the preset's weights.
        data: the data set, if it is loaded already.
        finetune: fields of `TrainConfig` that fine-tuned members get in place of the preset's, fewer epochs, say.

    Returns:
        The committee, the epochs of all members (column `member`), and facts: input size, fit, seconds of each member
        and the most memory the process had, in MB.

    Raises:
        UserError: the data set has no `val` to hold out.
    """
    preset = PRESETS[pick(PRESETS, name, "preset")]
    data = data or load(name, root)
    if hold_out and "val" not in data.splits:
        raise UserError(f"{data.name!r} has no split 'val' to hold out; train without it")
    shown = data if hold_out else _all_shown(data, preset.learn_from)
    members, histories = [], []
    for number, member in enumerate(preset.members, 1):
        print(f"member {number} of {len(preset.members)}: {described(member)}")
        model, history = training.fit_or_load(spec(preset, member, root, seed, finetune), shown)
        model.input_size = member.size
        members.append(model)
        histories.append(history)
    committee = Committee(members, [member.flip for member in preset.members]).eval()
    committee.weights.copy_(torch.tensor([member.weight for member in preset.members]))
    started = time.monotonic()
    if hold_out:
        seen = evidence(committee, data.split("val", committee.input_size))
        committee.tune(seen.image, seen.labels)
    seconds = [history.seconds for history in histories]
    epochs = [history.epochs.assign(member=number) for number, history in enumerate(histories)]
    whole = History(pd.concat(epochs, ignore_index=True), 0, sum(seconds) + time.monotonic() - started)
    facts = {
        "preset": name,
        "hold_out": hold_out,
        "size": committee.input_size,
        "fit": data.fit,
        "seconds_of_members": seconds,
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        / (1 << 20 if sys.platform == "darwin" else 1 << 10),
    }
    return committee, whole, facts


@dataclass(frozen=True)
class Rung:
    """One step of the ladder from frozen features to the whole preset.

    Attributes:
        name: what it adds.
        committee: all that is there by then.
        result: on the pictures that nothing was learned from.
        seconds: of training, of all that is there by then.
        milliseconds: a photo takes on one core, with the networks in ONNX Runtime.
        megabytes: of the checkpoint.
    """

    name: str
    committee: Committee
    result: Evaluation
    seconds: float
    milliseconds: float
    megabytes: float


def ladder(
    name: str,
    root: str | Path | None = None,
    seed: int = 0,
    judge: str = "val",
    data: ProductData | None = None,
    matching: bool = True,
    finetune: Mapping[str, Any] | None = None,
) -> list[Rung]:
    """Climb from frozen features of EfficientNet-Lite0 to the preset, a member at a time, mirror images last.

    Members learn from `train` alone; the weights of several are chosen on `val`.

    Args:
        name: key of `PRESETS`.
        root: folder of its data set; None takes the default.
        seed: of weights, order and augmentation.
        judge: split that rungs are judged on; judged on `val`, their one weight a member flatters them a little.
        data: the data set, if it is loaded already.
        matching: False leaves keypoint matching out.
        finetune: see `train`.
    """
    preset = PRESETS[pick(PRESETS, name, "preset")]
    data = data or load(name, root)
    plain = TrainSpec(preset.dataset, str(root) if root else None, config=TrainConfig(seed=seed, batch_size=128))
    first, history = training.fit_or_load(plain, data)
    whole, _, facts = train(name, root, seed, hold_out=True, data=data, finetune=finetune)
    kept = [k for k, member in enumerate(preset.members) if matching or member.model not in MATCHERS]
    members, flips = [whole.members[k] for k in kept], [whole.flips[k] for k in kept]
    costs = np.cumsum([facts["seconds_of_members"][k] for k in kept])
    steps = [("EfficientNet-Lite0, frozen", Committee([first], [False]), history.seconds)]
    for count, (k, seconds) in enumerate(zip(kept, costs, strict=True), 1):
        step = "+ " * (count > 1) + described(preset.members[k])
        steps.append((step, Committee(members[:count], [False] * count), float(seconds)))
    if any(flips):
        steps.append(("+ mirror images", Committee(members, flips), float(costs[-1])))
    times = milliseconds([committee for _, committee, _ in steps], data.split(judge, whole.input_size))
    rungs = []
    for (step, committee, seconds), took in zip(steps, times, strict=True):
        committee.eval()
        tuned_on, judged_on = (evidence(committee, data.split(split, whole.input_size)) for split in ("val", judge))
        if len(committee.members) > 1:
            committee.tune(tuned_on.image, tuned_on.labels)
        size = sum(t.numel() * t.element_size() for t in committee.state_dict().values()) / 1e6
        rungs.append(Rung(step, committee, training.evaluate(committee, judged_on), seconds, took, size))
    return rungs


def pooled(ladders: Sequence[list[Rung]]) -> list[Rung]:
    """Return ladders that were judged on different pictures as one; costs are means, committees those of the first."""
    found = []
    for rungs in zip(*ladders, strict=True):
        results = [rung.result for rung in rungs]
        probs, labels, indices = (
            np.concatenate([getattr(result, name) for result in results]) for name in ("probs", "labels", "indices")
        )
        costs = {name: float(np.mean([getattr(r, name) for r in rungs])) for name in ("seconds", "milliseconds")}
        found.append(replace(rungs[0], result=Evaluation(probs, labels, results[0].classes, indices), **costs))
    return found


def ladder_table(rungs: Sequence[Rung]) -> pd.DataFrame:
    """Return a ladder as a table, a row a rung.

    Columns are `name`, `accuracy` with its 95 % interval (`low`, `high`), `gain` over the rung below on the same photos
    (`gain_low`, `gain_high`; NaN in the first row), `minutes` of training, `ms` a photo, `MB` and `weights`.
    """
    rows = []
    for below, rung in zip([None, *rungs], rungs, strict=False):
        gain, gain_low, gain_high = np.nan, np.nan, np.nan
        if below:
            pair = [rung.result], [below.result]
            gain, (gain_low, gain_high) = metrics.gain(*pair), metrics.gain_interval(*pair)
        low, high = rung.result.interval
        rows.append(
            {
                "name": rung.name,
                "accuracy": rung.result.top1,
                "low": low,
                "high": high,
                "gain": gain,
                "gain_low": gain_low,
                "gain_high": gain_high,
                "minutes": rung.seconds / 60,
                "ms": rung.milliseconds,
                "MB": rung.megabytes,
                "weights": ", ".join(f"{weight:g}" for weight in rung.committee.weights.tolist()),
            }
        )
    return pd.DataFrame(rows)


def evidence(committee: Committee, photos: ProductDataset) -> EncodedDataset:
    """Return what `encode_image` says of photos; each member is asked once for each split, and the cache remembers."""
    parts = []
    for member, flip in zip(committee.members, committee.flips, strict=True):
        single = Committee([member], [flip]).eval()
        parts.append(training.encode_cached(single, photos, 1, TrainConfig(bf16=False)))
    values = torch.cat([part.image.values for part in parts], 1)
    return EncodedDataset(Features(values, parts[0].image.available), None, parts[0].labels, parts[0].rows)


def alone(committee: Committee, photos: ProductDataset) -> list[Evaluation]:
    """Judge each member by itself."""
    singles = [Committee([m], [f]).eval() for m, f in zip(committee.members, committee.flips, strict=True)]
    return [training.evaluate(single, evidence(single, photos)) for single in singles]


def fast(committee: Committee) -> Committee:
    """Return a twin, all weights shared, whose networks run in ONNX Runtime where that agrees with PyTorch."""
    twin = copy.copy(committee)
    members = [
        m if isinstance(m, KeypointMatcher) else Predictor(m, m.input_size, backend="onnx").fast
        for m in committee.members
    ]
    twin._modules = {**committee._modules, "members": nn.ModuleList(members)}
    return twin


def milliseconds(committees: Sequence[Committee], photos: ProductDataset, count: int = 8) -> list[float]:
    """Return the median time that a photo takes on one core, of committees by turns; see `fast`."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        twins = [fast(committee) for committee in committees]
        rows = np.linspace(0, len(photos) - 1, count).astype(int)
        taken = np.zeros((count, len(twins)))
        with torch.inference_mode():
            for turn, row in enumerate(rows):
                image = photos[int(row)].image[None]
                for k, twin in enumerate(twins):
                    started = time.perf_counter()
                    twin(image)
                    taken[turn, k] = time.perf_counter() - started
        return (1000 * np.median(taken, 0)).tolist()
    finally:
        torch.set_num_threads(threads)


def _all_shown(data: ProductData, splits: tuple[str, ...]) -> ProductData:
    """Return some splits as the training split and nothing else, so that no other picture chooses an epoch."""
    kept = data.select(data.table["split"].isin(splits).to_numpy())
    return replace(kept, table=kept.table.assign(split="train"))
