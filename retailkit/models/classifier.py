"""A product classifier: two encoders and a head.

    images -> image_encoder + pooling -> Features --+
                                                    +-> head -> logits
    texts  -> text_encoder ------------> Features --+

The encoders do the heavy work and know nothing of the classes; the head is cheap. So explanations and training
on frozen features encode once and classify often.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image

from retailkit.config import UsageError, UserError
from retailkit.data.text import redact_barcodes
from retailkit.models.encoders import ImageEncoder, TextEncoder
from retailkit.models.lca import LocalConceptsAccumulation
from retailkit.models.nts import NavigatedParts, Regions
from retailkit.models.pooling import Criterion, Features, Head, Pooling

if TYPE_CHECKING:
    from retailkit.data.table import Batch, ProductDataset


class ProductClassifier(nn.Module):
    """Two encoders and a head; see `build`. What the head does not use is None.

    Attributes:
        classes: names in the order of the logits.
        modalities: what the head uses, of `image` and `text`.
        input_size: side in pixels of the images it expects by default.
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
        # A model that uses no images still gets batches with images: small ones are cheap.
        self.input_size: int = image_encoder.size if image_encoder else 32

    def freeze(self, frozen: bool = True) -> ProductClassifier:
        """Stop (or resume) the learning of the encoders; a pooling with weights goes on learning."""
        for encoder in filter(None, (self.image_encoder, self.text_encoder)):
            encoder.freeze(frozen)
        return self

    def with_parts(self, **parts: nn.Module | None) -> ProductClassifier:
        """Return a model that shares all parts with this one but the given ones, such as `image_encoder=None`."""
        own = {name: getattr(self, name) for name in ("head", "image_encoder", "pooling", "text_encoder")}
        twin = ProductClassifier(self.classes, **own | parts, build_args=self.build_args)
        twin.input_size, twin.training = self.input_size, self.training
        return twin

    def prepare(self, train: ProductDataset) -> None:
        """Learn from the training split what is not learned by gradient: the text encoder's vocabulary."""
        if self.text_encoder is not None:
            self.text_encoder.prepare([redact_barcodes(str(t)) for t in train.table["text"]])

    def fit_scalers(self, image_features: Features | None = None, text_features: Features | None = None) -> None:
        """Standardise from now on by what `encode_frozen` and `encode_text` gave for the training images.

        A pooling that learns standardises its own input: what it gives changes while it learns.
        """
        for modality, features in self.by_modality(image_features, text_features).items():
            own = modality == "image" and any(True for _ in self.pooling.parameters())
            (self.pooling if own else self.head.scalers[modality]).fit(features)

    def encode_image(self, images: Tensor) -> Features:
        """Encode images (B,3,H,W) in [0,1]; every one is available."""
        if self.image_encoder is None:
            raise UsageError("this model does not look at images; build one of another name")
        return Features.present(self.pooling(self.image_encoder, images))

    def encode_text(self, texts: Sequence[str | None]) -> Features:
        """Encode B texts; one that is None or blank is unavailable and does not reach the encoder.

        Runs of digits that look like barcodes are taken out first: a printed barcode names the class.
        """
        if self.text_encoder is None:
            raise UsageError("this model does not read texts; build one of another name")
        texts, device = [redact_barcodes(t or "") for t in texts], next(self.head.buffers()).device
        available = torch.tensor([bool(t) for t in texts], dtype=torch.bool, device=device)
        values = torch.zeros(len(texts), self.text_encoder.dim, device=device)
        if available.any():
            encoded = self.text_encoder([t for t in texts if t])
            values = values.to(encoded.dtype).masked_scatter(available[:, None], encoded)
        return Features(values, available)

    def classify(self, image_features: Features | None = None, text_features: Features | None = None) -> Tensor:
        """Return logits (B,K) of what `encode_image` and `encode_text` gave; `UserError` for a row without either."""
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
        """Return the regions of images (B,3,H,W) in [0,1] that an `nts` pooling looks at."""
        if not isinstance(self.pooling, NavigatedParts):
            raise UsageError("this model chooses no regions; build it with pooling='nts'")
        return self.pooling.regions(self.image_encoder, images)

    def window_contributions(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the windows of an `lca` pooling and how much each adds to the logits of `labels (B,)`.

        Images are (B,3,H,W) in [0,1]. Boxes are (N,4) as x0, y0, x1, y1 in pixels, contributions (B,N).
        """
        if not isinstance(self.pooling, LocalConceptsAccumulation):
            raise UsageError("this model has no windows; build it with pooling='lca'")
        with torch.no_grad():
            maps = self.pooling.look(self.image_encoder, images)
            pooled = self.pooling.pool(maps)
        pooled.requires_grad_()
        logits = self.classify(Features.present(pooled))
        (direction,) = torch.autograd.grad(logits.gather(1, labels[:, None]).sum(), pooled)
        with torch.no_grad():
            boxes, contributions = self.pooling.window_contributions(maps, direction)
        # The last cells of a map may overhang the image: at 260 pixels and a stride of 32 they end at 288.
        return clip_boxes_to_image(boxes * self.image_encoder.stride, tuple(images.shape[2:])), contributions

    def training_loss(self, batch: Batch, criterion: Criterion) -> Tensor:
        """Return the loss of one batch: that of the head, and what the pooling learns from besides."""
        image, further = None, 0.0
        if "image" in self.modalities:
            values, further = self.pooling.learn(self.image_encoder, batch.images, batch.labels, criterion)
            image = Features.present(values)
        text = self.encode_text(batch.texts) if "text" in self.modalities else None
        return self.loss(image, text, batch.labels, criterion) + further

    def encode_frozen(self, images: Tensor) -> Features:
        """Return what frozen encoders give for images, before anything that learns: vectors, or maps for LCA."""
        return Features.present(self.pooling.look(self.image_encoder, images))

    def pool(self, frozen: Features | None) -> Features | None:
        """Finish what `encode_frozen` began: the pooled features that `classify` takes."""
        return None if frozen is None else Features(self.pooling.pool(frozen.values), frozen.available)

    def _answerable(self, image_features: Features | None, text_features: Features | None) -> dict[str, Features]:
        features = self.by_modality(image_features, text_features)
        if not features:
            raise UserError(f"nothing to classify: this model uses {' and '.join(self.modalities)}, and got neither")
        some = torch.stack([f.available for f in features.values()]).any(0)
        if not (self.head.answers_without_features or some.all()):
            raise UserError(
                f"{int((~some).sum())} of {len(some)} rows have no {' or '.join(self.modalities)} to classify; "
                "leave them out (data.select), or build the text model with missing='prior'"
            )
        return features

    def by_modality(self, image: Features | None, text: Features | None) -> dict[str, Features]:
        """Return the given features that this model uses."""
        given = {"image": image, "text": text}
        return {m: given[m] for m in self.modalities if given[m] is not None}


class ImageScorer(nn.Module):
    """The part of the interface of `ProductClassifier` that needs neither gradients nor texts.

    A subclass has `classes`, `build_args`, `encode_image(images)`, and `score`, from feature values to scores (B,K).
    """

    modalities = ("image",)
    image_encoder = text_encoder = pooling = None

    def encode_frozen(self, images: Tensor) -> Features:
        """Return what `encode_image` does."""
        return self.encode_image(images)

    def pool(self, frozen: Features) -> Features:
        """Return the features as they are."""
        return frozen

    def classify(self, image_features: Features | None = None, text_features: Features | None = None) -> Tensor:
        """Return scores (B,K) of what `encode_image` gave."""
        if image_features is None:
            raise UserError("nothing to classify: this model uses images, and got none")
        return self.score(image_features.values)

    def forward(self, images: Tensor, texts: Sequence[str | None] | None = None) -> Tensor:
        """Return scores (B,K) of images (B,3,H,W) in [0,1]; texts are ignored."""
        return self.classify(self.encode_image(images))


@contextmanager
def evaluating(model: nn.Module, gradients: bool = False) -> Iterator[None]:
    """Put a model into evaluation mode for the block, without gradients unless they are asked for.

    Afterwards each of its modules is in the mode it was in.
    """
    learning = [part for part in model.modules() if part.training]
    if learning:
        model.eval()
    try:
        with torch.inference_mode(not gradients):
            yield
    finally:
        for part in learning:
            part.training = True
