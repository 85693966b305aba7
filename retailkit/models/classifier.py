"""A product classifier: two encoders and a head.

    images -> image_encoder + pooling -> Features --+
                                                    +-> head -> logits
    texts  -> text_encoder ------------> Features --+

The encoders do the heavy work and know nothing of the classes; the head is cheap. So explanations and training
on frozen features encode once and classify often.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from retailkit.config import UsageError, UserError, pick
from retailkit.data.text import redact_barcodes
from retailkit.models.encoders import (
    BACKBONES,
    TEXT_ENCODERS,
    ImageEncoder,
    TextEncoder,
    build_image_encoder,
    build_text_encoder,
    read_state,
    require_same_shapes,
)
from retailkit.models.ensemble import Ensemble
from retailkit.models.fusion import Concatenation, EmbraceNet, ScoreFusion
from retailkit.models.lca import LocalConceptsAccumulation
from retailkit.models.matching import KeypointMatcher, LocalNaiveBayes
from retailkit.models.nts import NavigatedParts, Regions, from_reference
from retailkit.models.pooling import Criterion, Features, FeatureScaler, GlobalAveragePool, Head, LinearHead, Pooling

if TYPE_CHECKING:
    from retailkit.data.table import Batch, ProductDataset

DEFAULT_BACKBONE = "efficientnet_lite0"
DEFAULT_TEXT_ENCODER = "minilm"
TEXT_ONLY_SIZE = 32  # a model that looks at no picture still gets batches with pictures: keep them cheap


POOLINGS: dict[str, type[Pooling]] = {
    "gap": GlobalAveragePool,
    "lca": LocalConceptsAccumulation,
    "nts": NavigatedParts,
}


@dataclass(frozen=True)
class ModelSpec:
    """What a model name stands for.

    Attributes:
        modalities: `image`, `text` or both.
        head: called as `head(scalers, n_classes, **options)`; its further arguments are the model's options.
        pooling: key of `POOLINGS` unless `build` is told another one.
    """

    modalities: tuple[str, ...]
    head: Callable[..., Head]
    pooling: str = "gap"


MODELS: dict[str, ModelSpec] = {
    "image": ModelSpec(("image",), LinearHead),
    "lca": ModelSpec(("image",), LinearHead, "lca"),
    "nts": ModelSpec(("image",), LinearHead, "nts"),
    "text": ModelSpec(("text",), LinearHead),
    "score_fusion": ModelSpec(("image", "text"), ScoreFusion),
    "concat": ModelSpec(("image", "text"), Concatenation),
    "embracenet": ModelSpec(("image", "text"), EmbraceNet),
}
MATCHERS = {"matching": KeypointMatcher, "nbnn": LocalNaiveBayes}


class ProductClassifier(nn.Module):
    """Two encoders and a head; see `build`.

    Attributes:
        classes: names; a logit's index is an index into them.
        modalities: what the head uses, of `image` and `text`.
        image_encoder: None where pictures are not used.
        pooling: from the encoder's last map to a vector; None where pictures are not used.
        text_encoder: None where texts are not used.
        head: from features to logits.
        input_size: side in pixels of the pictures it expects by default.
        fit: how pictures are best brought to that square.
        build_args: JSON-able arguments from which `rebuild` makes the same architecture.
    """

    def __init__(
        self,
        classes: Sequence[str],
        head: Head,
        image_encoder: ImageEncoder | None = None,
        pooling: Pooling | None = None,
        text_encoder: TextEncoder | None = None,
        build_args: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.classes = list(classes)
        self.image_encoder, self.pooling, self.text_encoder, self.head = image_encoder, pooling, text_encoder, head
        self.modalities = tuple(head.scalers)
        self.build_args = build_args or {}
        self.input_size: int = image_encoder.size if image_encoder else TEXT_ONLY_SIZE
        self.fit = image_encoder.fit if image_encoder else "stretch"

    @property
    def frozen(self) -> bool:
        """True where nothing before the head learns, so that features may be computed once and kept."""
        parts = (self.image_encoder, self.pooling, self.text_encoder)
        return not any(p.requires_grad for part in parts if part is not None for p in part.parameters())

    def freeze(self, frozen: bool = True) -> ProductClassifier:
        """Stop (or resume) the learning of the encoders; a pooling with weights goes on learning."""
        for encoder in (self.image_encoder, self.text_encoder):
            if encoder is not None:
                encoder.freeze(frozen)
        return self

    def prepare(self, train: ProductDataset, val: ProductDataset | None = None) -> None:
        """Learn from the training split what is not learned by gradient: the text encoder's vocabulary."""
        if self.text_encoder is not None:
            self.text_encoder.prepare([redact_barcodes(str(t)) for t in train.table["text"]])

    def fit_scalers(self, image_features: Features | None = None, text_features: Features | None = None) -> None:
        """Standardise from now on by what `encode_frozen` and `encode_text` gave for the training pictures.

        A pooling that learns standardises its own input: what it gives changes while it learns.
        """
        for modality, features in self.by_modality(image_features, text_features).items():
            own = modality == "image" and any(True for _ in self.pooling.parameters())
            (self.pooling if own else self.head.scalers[modality]).fit(features)

    def encode_image(self, images: Tensor) -> Features:
        """Encode images (B,3,H,W) in [0,1]; every one is available."""
        if self.image_encoder is None:
            raise UsageError("this model does not look at images; build one of another name")
        values = self.pooling(self.image_encoder, images)
        return Features(values, torch.ones(len(images), dtype=torch.bool, device=values.device))

    def encode_text(self, texts: Sequence[str | None]) -> Features:
        """Encode B texts; one that is None or blank is unavailable and does not reach the encoder.

        Runs of digits that look like barcodes are taken out first: a printed barcode names the class.
        """
        if self.text_encoder is None:
            raise UsageError("this model does not read texts; build one of another name")
        texts = [redact_barcodes(t or "") for t in texts]
        there = [bool(t) for t in texts]
        device = next(self.head.buffers()).device
        available = torch.tensor(there, dtype=torch.bool, device=device)
        if not any(there):
            return Features(torch.zeros(len(there), self.text_encoder.dim, device=device), available)
        encoded = self.text_encoder([t for t, ok in zip(texts, there, strict=True) if ok])
        values = encoded.new_zeros(len(there), self.text_encoder.dim)
        return Features(values.masked_scatter(available[:, None], encoded), available)

    def classify(self, image_features: Features | None = None, text_features: Features | None = None) -> Tensor:
        """Return logits (B,K).

        Args:
            image_features: from `encode_image`; None where no image is given.
            text_features: from `encode_text`; None where no text is given.

        Raises:
            UserError: some row has nothing that this model uses, and its head has no answer to that.
        """
        return self.head(self._answerable(image_features, text_features))

    def loss(
        self, image_features: Features | None, text_features: Features | None, labels: Tensor, criterion: Criterion
    ) -> Tensor:
        """Return what the head learns from, given the same features as `classify`, and `labels (B,)`."""
        return self.head.loss(self._answerable(image_features, text_features), labels, criterion)

    def tune(self, image_features: Features | None, text_features: Features | None, labels: Tensor) -> None:
        """Let the head choose on validation features what it does not learn by gradient, such as fusion weights."""
        self.head.tune(self.by_modality(image_features, text_features), labels)

    def forward(self, images: Tensor | None = None, texts: Sequence[str | None] | None = None) -> Tensor:
        """Return logits (B,K) of images (B,3,H,W) in [0,1] and B texts; what the model does not use is ignored."""
        image = self.encode_image(images) if "image" in self.modalities and images is not None else None
        text = self.encode_text(texts) if "text" in self.modalities and texts is not None else None
        return self.classify(image, text)

    def regions(self, images: Tensor) -> Regions:
        """Return the regions of images (B,3,H,W) in [0,1] that an `nts` pooling looks at.

        Raises:
            UsageError: another pooling chooses no regions.
        """
        if not isinstance(self.pooling, NavigatedParts):
            raise UsageError("this model chooses no regions; build it with pooling='nts'")
        return self.pooling.regions(self.image_encoder, images)

    def window_contributions(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Say how much each window of an `lca` pooling adds to the logits of `labels (B,)`.

        Args:
            images: (B,3,H,W) in [0,1].
            labels: (B,) classes to speak for.

        Returns:
            Boxes (N,4) as x0, y0, x1, y1 in pixels, and contributions (B,N).

        Raises:
            UsageError: another pooling has no windows.
        """
        if not isinstance(self.pooling, LocalConceptsAccumulation):
            raise UsageError("this model has no windows; build it with pooling='lca'")
        with torch.no_grad():
            maps = self.pooling.look(self.image_encoder, images)
            pooled = self.pooling.pool(maps)
        pooled.requires_grad_()
        logits = self.classify(Features(pooled, torch.ones(len(pooled), dtype=torch.bool, device=pooled.device)))
        (direction,) = torch.autograd.grad(logits.gather(1, labels[:, None]).sum(), pooled)
        with torch.no_grad():
            boxes, contributions = self.pooling.window_contributions(maps, direction)
        return boxes * self.image_encoder.stride, contributions

    def training_loss(self, batch: Batch, criterion: Criterion) -> Tensor:
        """Return the loss of one batch: that of the head, and what the pooling learns from besides."""
        image, further = None, 0.0
        if "image" in self.modalities:
            values, further = self.pooling.learn(self.image_encoder, batch.images, batch.labels, criterion)
            image = Features(values, torch.ones(len(values), dtype=torch.bool, device=values.device))
        text = self.encode_text(batch.texts) if "text" in self.modalities else None
        return self.loss(image, text, batch.labels, criterion) + further

    def encode_frozen(self, images: Tensor) -> Features:
        """Return what frozen encoders say of images, before anything that learns: vectors, or maps for LCA."""
        values = self.pooling.look(self.image_encoder, images)
        return Features(values, torch.ones(len(images), dtype=torch.bool, device=values.device))

    def pool(self, frozen: Features | None) -> Features | None:
        """Finish what `encode_frozen` began: the pooled features that `classify` takes."""
        return None if frozen is None else Features(self.pooling.pool(frozen.values), frozen.available)

    def _answerable(self, image_features: Features | None, text_features: Features | None) -> dict[str, Features]:
        """Return the features by modality; raise where the head has nothing to go by."""
        features = self.by_modality(image_features, text_features)
        if not features:
            raise UserError(f"nothing to classify: this model uses {' and '.join(self.modalities)}, and got neither")
        if not self.head.answers_without_features:
            some = torch.stack([f.available for f in features.values()]).any(0)
            if not some.all():
                raise UserError(
                    f"{int((~some).sum())} of {len(some)} rows have no {' or '.join(self.modalities)} to classify; "
                    "leave them out (data.select), or build the text model with missing='prior'"
                )
        return features

    def by_modality(self, image: Features | None, text: Features | None) -> dict[str, Features]:
        """Return the given features that this model uses."""
        given = {"image": image, "text": text}
        return {m: given[m] for m in self.modalities if given[m] is not None}


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
    **options: Any,
) -> ProductClassifier:
    """Build a model by name from what is on this machine; nothing is downloaded.

    Args:
        name: key of `MODELS`; or one of `MATCHERS`: keypoints and a gallery instead of encoders and a head; or
            `ensemble`, whose option `members` holds the arguments of each member, its `size` and `flip`.
        classes: class names in the order of the logits.
        backbone: key of `BACKBONES`; `auto` is EfficientNet-Lite0, whose weights come in a package.
        pooling: key of `POOLINGS`; `auto` is the model's own, else `gap`.
        text_encoder: one of `TEXT_ENCODERS`; `auto` is MiniLM, whose weights come in a package.
        weights: of the backbone: `auto`, a variant, a local file, or None; see `build_image_encoder`.
        text_weights: of the text encoder: `auto`, a local folder, or None; see `build_text_encoder`.
        text_config: architecture of the text encoder where `text_weights` is None.
        freeze: the encoders do not learn and keep their batch statistics.
        **options: of the model's head, such as `dropout`, or of its pooling, such as `parts` of `nts`.

    Raises:
        UsageError: an unknown name or option, with the nearest known one; no classes, or one twice.
        UserError: weights are not on this machine; the message says which command fetches them.
    """
    if pick((*MODELS, *MATCHERS, "ensemble"), name, "model") in MATCHERS:
        return _build_matcher(name, _checked_classes(classes), {"weights": weights} | options)
    if name == "ensemble":
        return _build_ensemble(_checked_classes(classes), weights, **options)
    spec = MODELS[name]
    backbone = pick(BACKBONES, DEFAULT_BACKBONE if backbone == "auto" else backbone, "backbone")
    pooling = pick(POOLINGS, spec.pooling if pooling == "auto" else pooling, "pooling")
    text_encoder = DEFAULT_TEXT_ENCODER if text_encoder == "auto" else text_encoder
    text_encoder = pick(TEXT_ENCODERS, text_encoder, "text encoder")
    classes = _checked_classes(classes)
    of_head = list(inspect.signature(spec.head).parameters)[2:]
    of_pooling = list(inspect.signature(POOLINGS[pooling]).parameters)[2:] if "image" in spec.modalities else []
    for option in options:
        pick([*of_head, *of_pooling], option, f"option of model {name!r}")

    parts: dict[str, Any] = {}
    scalers: dict[str, FeatureScaler] = {}
    if "image" in spec.modalities:
        parts["image_encoder"] = build_image_encoder(backbone, weights)
        chosen = {option: value for option, value in options.items() if option in of_pooling}
        parts["pooling"] = POOLINGS[pooling](parts["image_encoder"], len(classes), **chosen)
        scalers["image"] = FeatureScaler(parts["pooling"].dim)
    if "text" in spec.modalities:
        encoder = parts["text_encoder"] = build_text_encoder(text_encoder, text_weights, text_config)
        scalers["text"] = FeatureScaler(encoder.dim, shared=encoder.sparse)
        text_config = encoder.config
    build_args = {
        "name": name,
        "classes": classes,
        "backbone": backbone,
        "pooling": pooling,
        "text_encoder": text_encoder,
        "weights": None if weights is None else str(weights),
        "text_weights": None if text_weights is None else str(text_weights),
        "text_config": text_config,
        "freeze": freeze,
        **options,
    }
    head = spec.head(scalers, len(classes), **{o: value for o, value in options.items() if o in of_head})
    model = ProductClassifier(classes, head, **parts, build_args=build_args)
    return model.freeze(freeze)


def _build_matcher(name: str, classes: list[str], options: Mapping[str, Any]) -> KeypointMatcher:
    for option in options:
        pick(list(inspect.signature(MATCHERS[name]).parameters)[1:], option, f"option of model {name!r}")
    return MATCHERS[name](classes, **options)


def _build_ensemble(classes: list[str], weights: str | None, members: Sequence[Mapping[str, Any]]) -> Ensemble:
    made = []
    for member in members:
        own = {key: value for key, value in member.items() if key not in ("size", "flip")}
        model = build(**{**own, "classes": classes, "weights": weights and own.get("weights", weights)})
        model.input_size = member["size"]
        made.append(model)
    return Ensemble(made, [member.get("flip", False) for member in members])


def rebuild(build_args: Mapping[str, Any]) -> ProductClassifier:
    """Build the architecture that `build_args` of a model describe; its weights come from a checkpoint."""
    return build(**{**build_args, "weights": None, "text_weights": None})


def load_nts_checkpoint(
    path: str | Path, classes: Sequence[str] | None = None, backbone: str = "resnet50"
) -> ProductClassifier:
    """Load a checkpoint of the authors' NTS-Net (yangze0930/NTS-Net, for CUB-200 at 448 px).

    The number of parts is read from the shape of its classifier. Its `Dropout` stayed on in evaluation; ours does not.

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
    parts = width // BACKBONES[pick(BACKBONES, backbone, "backbone")].dim - 1
    model = build("nts", names, backbone, weights=None, propose=max(parts, 6), parts=parts)
    own = {k: v for k, v in model.state_dict().items() if k in state or not k.startswith("head.scalers")}
    own = {k: v for k, v in own.items() if not k.endswith("num_batches_tracked")}
    require_same_shapes(own, state, Path(path))
    model.load_state_dict(state, strict=False)
    model.input_size = 448
    return model.eval()


def _checked_classes(classes: Sequence[str]) -> list[str]:
    names = list(classes)
    if not names:
        raise UsageError("a model needs at least one class, and got none")
    if twice := {c for c in names if names.count(c) > 1}:
        raise UsageError(f"class {min(twice)!r} is named twice; give each class once")
    return names


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode for the block, in which no gradients are kept."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)
