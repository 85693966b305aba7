"""What the explanation tool starts with: data sets on this machine, and models trained once and kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from retailkit import data as datasets
from retailkit import models, training
from retailkit.config import data_root, profile
from retailkit.data import ocr
from retailkit.data.table import ProductData
from retailkit.inference import Predictor

NAMES = ("embracenet", "image", "text")


def explanation_desk(
    dataset: str = "synthetic",
    root: str | Path | None = None,
    profile_name: str = "fast",
    names: Sequence[str] = NAMES,
    seed: int = 0,
    checkpoint: str | Path = "",
) -> tuple[ProductData, dict[str, Predictor]]:
    """Return a data set and models for the explanation tool: that of a checkpoint, or heads on frozen encoders.

    Heads are trained once for each of `names` and kept; `seed` is theirs. For them, photos on which nothing was read
    are left out, unless that is all of them: then only models that see are trained.

    Raises:
        UserError: the data set cannot be read, or the checkpoint knows other classes.
    """
    data = datasets.load(dataset, root, profile_name)
    if checkpoint:
        model, _, facts = training.load_checkpoint(checkpoint)
        data = replace(training.with_classes(data, model), fit=facts["fit"])
        data = replace(data, info=data.info | {"learned": training.learned_from(facts, data)})
        if "text" in model.modalities:
            data = ocr.add_text(data)
        return data, {Path(checkpoint).stem: Predictor(model, facts["size"])}
    size = profile(profile_name).explain_size
    data = ocr.add_text(data, limit=profile(profile_name).ocr_limit)
    readable = data.table["text"].ne("").to_numpy()
    if readable.any():
        left_out = f"{(~readable).sum()} photos on which no word was read are left out."
        data = replace(data.select(readable), info=data.info | {"left_out": "" if readable.all() else left_out})
    else:
        names = [name for name in names if "text" not in models.MODELS[name].modalities] or ["image"]
    found = {}
    for name in names:
        options = {"missing": "prior"} if name == "text" else {}  # a photo without words is answered by the prior
        spec = training.reference("probe", dataset, root, profile_name, seed, name, size, options)
        found[name] = Predictor(training.fit_or_load(spec, data)[0], size)
    return data, found


def other_desks(
    dataset: str, profile_name: str = "fast", names: Sequence[str] = NAMES
) -> dict[str, Callable[[], tuple[ProductData, dict[str, Predictor]]]]:
    """Return what loads each of the other data sets that are on this machine, for the tool's menu."""
    known = [name for name in datasets.DATASETS if name not in (dataset, "folder")]
    there = [name for name in known if name == "synthetic" or data_root(name).exists()]
    return {name: partial(explanation_desk, name, None, profile_name, names) for name in there}
