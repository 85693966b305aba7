"""Training the presets of `config.PRESETS`: their members one after the other, and then their vote."""

from __future__ import annotations

import resource
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from retailkit import data as datasets
from retailkit import training
from retailkit.config import PRESETS, Member, Preset, UserError, pick
from retailkit.data.table import ProductData
from retailkit.models.committee import Committee
from retailkit.training import History, TrainConfig, TrainSpec


def spec(preset: Preset, member: Member, root: str | Path | None = None, seed: int = 0) -> TrainSpec:
    """Return the training run of one member of a preset."""
    config = TrainConfig(**{**member.config, "seed": seed})
    where = {"dataset": preset.dataset, "root": str(root) if root else None}
    return TrainSpec(**where, model=member.model, model_options=dict(member.options), size=member.size, config=config)


def train(
    name: str, root: str | Path | None = None, seed: int = 0, hold_out: bool = False, data: ProductData | None = None
) -> tuple[Committee, History, dict[str, Any]]:
    """Train a preset, or load what is trained already; an interrupted training goes on.

    Args:
        name: key of `PRESETS`.
        root: folder of its data set; None takes the default.
        seed: of weights, order and augmentation.
        hold_out: the members learn from `train` alone, and their weights are chosen on `val`: what the preset's own
            values were chosen by. Otherwise they learn from all splits of `learn_from` and have the preset's weights.
        data: the data set, if it is loaded already.

    Returns:
        The committee, the epochs of all members (column `member`), and facts: input size, fit, seconds of each member
        and the most memory the process had, in MB.

    Raises:
        UserError: the data set has no `val` to hold out.
    """
    preset = PRESETS[pick(PRESETS, name, "preset")]
    data = data or datasets.load(preset.dataset, root)
    if hold_out and "val" not in data.splits:
        raise UserError(f"{data.name!r} has no split 'val' to hold out; train without it")
    shown = data if hold_out else _merged(data, preset.learn_from)
    members, histories = [], []
    for number, member in enumerate(preset.members, 1):
        print(f"member {number} of {len(preset.members)}: {member.model} {member.options.get('backbone', '')}")
        model, history = training.fit_or_load(spec(preset, member, root, seed), shown)
        model.input_size = member.size
        members.append(model)
        histories.append(history)
    committee = Committee(members, [member.flip for member in preset.members]).eval()
    committee.weights.copy_(torch.tensor([member.weight for member in preset.members]))
    started = time.monotonic()
    if hold_out:
        seen = training.encode_cached(committee, data.split("val", committee.input_size), 1, TrainConfig())
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
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    return committee, whole, facts


def _merged(data: ProductData, splits: tuple[str, ...]) -> ProductData:
    """Return the data with some splits as the training split."""
    split = data.table["split"]
    return replace(data, table=data.table.assign(split=split.where(~split.isin(splits), "train")))
