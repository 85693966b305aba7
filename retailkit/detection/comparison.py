"""The same detector with and without a class among its labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pandas as pd
from torch import nn

from retailkit.data.boxes import Scenes
from retailkit.detection.detector import DetectorConfig, detect, encode, fit, held_out_losses
from retailkit.detection.score import Detections


@dataclass(frozen=True)
class Detectors:
    """Detectors of several seeds, trained alike but for the region's boxes, and what they do on the same pictures.

    Attributes:
        models: one a seed.
        history: the losses of training, one row a step and `seed`.
        found: what each finds on the test pictures.
        held_out: `own labels` (what it learned) and `products only` -> losses of each test picture, one table a seed.
    """

    models: list[nn.Module]
    history: pd.DataFrame
    found: list[Detections]
    held_out: dict[str, list[pd.DataFrame]]


def train_detectors(
    draw: Callable[[int], Scenes],
    test: Scenes,
    config: DetectorConfig,
    seeds: Sequence[int],
    learn_region: bool = True,
) -> dict[str, Detectors]:
    """Train detectors with and without the region's boxes on the very same pictures, with the same seeds.

    Args:
        draw: returns the training pictures of a seed.
        test: pictures that all are judged on.
        config: how to train; its seed is replaced.
        seeds: of the repetitions.
        learn_region: False leaves the region's boxes out of both, which then are one and the same.

    Returns:
        `with` and `without`.
    """
    seen = encode(test, config) if config.weights else None
    made = {name: Detectors([], pd.DataFrame(), [], {}) for name in ("with", "without")}
    histories: dict[str, list[pd.DataFrame]] = {name: [] for name in made}
    for seed in seeds:
        train, own = draw(seed), replace(config, seed=seed)
        maps = encode(train, own)
        judged = encode(test, own) if seen is None else seen  # without weights each seed has a trunk of its own
        for name, kind in made.items():
            region = learn_region and name == "with"
            model, history = fit(train, own, maps, region)
            kind.models.append(model)
            kind.found.append(detect(model, test, judged))
            histories[name].append(history.assign(seed=seed))
            for ruler, counted in (("own labels", region), ("products only", False)):
                losses = held_out_losses(model, test, judged, counted)
                kind.held_out.setdefault(ruler, []).append(losses)
    return {name: replace(kind, history=pd.concat(histories[name])) for name, kind in made.items()}
