"""Models by name: `build(name, classes)` puts encoders, a pooling and a head together."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from retailkit.config import UsageError, pick
from retailkit.models.classifier import ProductClassifier
from retailkit.models.encoders import TEXT_ENCODERS, build_image_encoder, build_text_encoder
from retailkit.models.ensemble import Ensemble
from retailkit.models.fusion import Concatenation, EmbraceNet, ScoreFusion
from retailkit.models.gallery import GalleryHead
from retailkit.models.lca import LocalConceptsAccumulation
from retailkit.models.matching import KeypointMatcher, LocalNaiveBayes
from retailkit.models.nts import NavigatedParts, from_reference
from retailkit.models.pooling import FeatureScaler, GlobalAveragePool, Head, LastBlocks, LinearHead
from retailkit.models.weights import load_state, read_state

POOLINGS = {"gap": GlobalAveragePool, "lca": LocalConceptsAccumulation, "nts": NavigatedParts}


class ModelSpec(NamedTuple):
    """What a model name stands for."""

    modalities: tuple[str, ...]  # `image`, `text` or both
    head: Callable[..., Head]  # called as `head(scalers, n_classes, **options)`; its further arguments are options
    pooling: str = "gap"  # key of `POOLINGS` unless `build` is told another one


MODELS: dict[str, ModelSpec] = {
    "image": ModelSpec(("image",), LinearHead),
    "lca": ModelSpec(("image",), LinearHead, "lca"),
    "nts": ModelSpec(("image",), LinearHead, "nts"),
    "text": ModelSpec(("text",), LinearHead),
    "score_fusion": ModelSpec(("image", "text"), ScoreFusion),
    "concat": ModelSpec(("image", "text"), Concatenation),
    "embracenet": ModelSpec(("image", "text"), EmbraceNet),
    "gallery": ModelSpec(("image",), GalleryHead),
}
MATCHERS = {"matching": KeypointMatcher, "nbnn": LocalNaiveBayes}


def build(
    name: str,
    classes: Sequence[str],
    backbone: str = "auto",
    pooling: str = "auto",
    text_encoder: str = "auto",
    *,
    weights: str | None = "auto",
    text_weights: str | None = "auto",
    text_config: Mapping[str, Any] | None = None,
    freeze: bool = False,
    learn: int = 0,
    **options: Any,
) -> ProductClassifier:
    """Build a model by name from what is on this machine; nothing is downloaded.

    Args:
        name: key of `MODELS`; or one of `MATCHERS`: keypoints and a gallery instead of encoders and a head; or
            `ensemble`, whose option `members` holds the arguments of each member, its `size` and `flip`.
        classes: class names in the order of the logits.
        backbone: key of `BACKBONES`, or `timm:NAME`; `auto` is EfficientNet-Lite0, whose weights come in a package.
        pooling: key of `POOLINGS`; `auto` is the model's own, else `gap`.
        text_encoder: one of `TEXT_ENCODERS`; `auto` is MiniLM, whose weights come in a package.
        weights: of the backbone: `auto`, a variant, a local file, or None; see `build_image_encoder`.
        text_weights: of the text encoder: `auto`, a local folder, or None; see `build_text_encoder`.
        text_config: architecture of the text encoder where `text_weights` is None.
        freeze: the encoders do not learn and keep their batch statistics.
        learn: last blocks of an EfficientNet that learn above its frozen ones, with `gap` or `lca`; see `LastBlocks`.
        **options: of the model's head, such as `dropout`, or of its pooling, such as `parts` of `nts`.

    Raises:
        UsageError: an unknown name or option, with the nearest known one; no classes, or one twice.
        UserError: weights are not on this machine; the message says which command fetches them.
    """
    pick((*MODELS, *MATCHERS, "ensemble"), name, "model")
    classes = list(classes)
    if not classes:
        raise UsageError("a model needs at least one class, and got none")
    if twice := [name for name, count in Counter(classes).items() if count > 1]:
        raise UsageError(f"class {min(twice)!r} is named twice; give each class once")
    if name == "ensemble":
        return _build_ensemble(classes, weights, **options)
    if name in MATCHERS:
        (options,) = _options_of([MATCHERS[name]], {"weights": weights} | options, name)
        return MATCHERS[name](classes, **options)
    pooling = MODELS[name].pooling if pooling == "auto" else pooling
    arguments = {
        "name": name,
        "classes": classes,
        "backbone": "efficientnet_lite0" if backbone == "auto" else backbone,
        "pooling": pick(POOLINGS, pooling, "pooling"),
        "text_encoder": pick(TEXT_ENCODERS, "minilm" if text_encoder == "auto" else text_encoder, "text encoder"),
        "weights": weights and str(weights),
        "text_weights": text_weights and str(text_weights),
        "text_config": text_config,
        "freeze": freeze,
        "learn": learn,
    }
    return _build_classifier(arguments, options)


def _build_classifier(arguments: dict[str, Any], options: dict[str, Any]) -> ProductClassifier:
    spec, pooling, count = MODELS[arguments["name"]], POOLINGS[arguments["pooling"]], len(arguments["classes"])
    takers = [spec.head, pooling] if "image" in spec.modalities else [spec.head]
    of_head, *of_pooling = _options_of(takers, options, arguments["name"])
    parts: dict[str, Any] = {}
    scalers: dict[str, FeatureScaler] = {}
    if "image" in spec.modalities:
        encoder = build_image_encoder(arguments["backbone"], arguments["weights"])
        parts = {"image_encoder": encoder, "pooling": pooling(encoder, count, **of_pooling[0])}
        if arguments["learn"]:
            parts["pooling"] = LastBlocks(encoder, parts["pooling"], arguments["learn"])
        scalers["image"] = FeatureScaler(parts["pooling"].dim)
    if "text" in spec.modalities:
        reader = build_text_encoder(arguments["text_encoder"], arguments["text_weights"], arguments["text_config"])
        parts["text_encoder"], arguments["text_config"] = reader, reader.config
        scalers["text"] = FeatureScaler(reader.dim, shared=reader.sparse)
    head = spec.head(scalers, count, **of_head)
    model = ProductClassifier(arguments["classes"], head, **parts, build_args=arguments | options)
    return model.freeze(arguments["freeze"])


def _build_ensemble(classes: list[str], weights: str | None, members: Sequence[Mapping[str, Any]]) -> Ensemble:
    made = []
    for member in members:
        own = {key: value for key, value in member.items() if key not in ("size", "flip")}
        model = build(**{**own, "classes": classes, "weights": weights and own.get("weights", weights)})
        model.input_size = member["size"]
        made.append(model)
    return Ensemble(made, [member.get("flip", False) for member in members])


def _options_of(takers: Sequence[Callable[..., nn.Module]], given: Mapping[str, Any], model: str) -> list[dict]:
    """Return those of the given options that each of several classes takes; `UsageError` for one that none takes."""
    known = [[p.name for p in inspect.signature(t).parameters.values() if p.default is not p.empty] for t in takers]
    for option in given:
        pick([name for own in known for name in own], option, f"option of model {model!r}")
    return [{option: value for option, value in given.items() if option in own} for own in known]


def rebuild(build_args: Mapping[str, Any]) -> ProductClassifier:
    """Build the architecture that `build_args` of a model describe; its weights come from a checkpoint."""
    return build(**{**build_args, "weights": None, "text_weights": None})


def load_nts_checkpoint(
    path: str | Path, classes: Sequence[str] | None = None, backbone: str = "resnet50"
) -> ProductClassifier:
    """Load a checkpoint of the authors' NTS-Net (yangze0930/NTS-Net, for CUB-200 at 448 px).

    The number of parts is read from the shape of its classifier. Give it images as the authors do:
    `data.split("test", 448, "stretch_crop")`. Their `Dropout` stayed on in evaluation; ours does not.

    Args:
        path: their `model.ckpt`, or a plain state dict of that layout.
        classes: names in the order of their labels; None numbers them.
        backbone: the trunk that it was trained with.

    Raises:
        UserError: not such a checkpoint, or another trunk or number of classes; the message names the tensor.
    """
    state = from_reference(read_state(Path(path)), str(path))
    n_classes, width = state["head.linear.weight"].shape
    names = list(classes) if classes is not None else [f"class {k:03d}" for k in range(n_classes)]
    parts = width // build_image_encoder(backbone, None).dim - 1
    model = build("nts", names, backbone, weights=None, propose=max(parts, 6), parts=parts)
    scalers = {name: value for name, value in model.state_dict().items() if name.startswith("head.scalers.")}
    load_state(model, scalers | state, Path(path))
    model.input_size = 448
    return model.eval()
