"""Saliency of pixels and words through captum, each behind one call.

What is explained is the margin: the logit of a class minus that of the most probable other one. Attributions are
signed: positive where a pixel or a word speaks for the class, negative where it speaks against it.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from captum.attr import (
    GuidedBackprop,
    GuidedGradCam,
    IntegratedGradients,
    LayerAttribution,
    LayerGradCam,
    LayerIntegratedGradients,
    Occlusion,
    Saliency,
)
from torch import Tensor, nn
from torchvision.transforms.v2.functional import gaussian_blur

from retailkit.config import UsageError, pick
from retailkit.data.table import Word
from retailkit.data.text import kept_apart, without_barcodes
from retailkit.models.classifier import Features
from retailkit.models.lca import LocalConceptsAccumulation
from retailkit.models.nts import NavigatedParts

BATCH = 16  # pictures, or steps of them, in memory at a time
TOKEN_BATCH = 8  # steps of one text: attention over 256 tokens is large
GREY = 0.5  # what a hidden pixel looks like


def runner_up(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the most probable class other than `labels (B,)` in `logits (B,K)`."""
    return logits.scatter(1, labels[:, None], float("-inf")).argmax(1)


class Margin(nn.Module):
    """What captum sees of a model: pictures -> logit of a class minus that of its runner-up.

    Args:
        model: a product classifier in evaluation mode.
        images: (B,3,H,W) in [0,1]; they decide who the runner-up is.
        labels: (B,) the classes that are explained.
        texts: of the B pictures, for models that read; None leaves the text out.

    Attributes:
        map: passes on the last feature map of the whole pictures: the layer of Grad-CAM. NTS-Net encodes its parts by
            the same network afterwards, so that the encoder's own layer would show the parts.
        rivals: (B,) the runner-up.
    """

    def __init__(self, model: nn.Module, images: Tensor, labels: Tensor, texts: Sequence[str] | None = None) -> None:
        super().__init__()
        self.model, self.labels, self.map = model, labels, nn.Identity()
        with torch.no_grad():
            reads = texts is not None and "text" in getattr(model, "modalities", ())
            self.text = model.encode_text(list(texts)) if reads else None
            logits = self._logits(images, torch.arange(len(images), device=images.device))
        _check_labels(labels, logits)
        self.rivals = runner_up(logits, labels)

    def forward(self, images: Tensor, rows: Tensor) -> Tensor:
        """Return margins (N,) of images (N,3,H,W), perturbations of the pictures `rows (N,)`."""
        with self._first_map():
            margins = self._difference(self._logits(images, rows), rows)
        if torch.is_grad_enabled() and images.requires_grad and not margins.requires_grad:
            raise UsageError("this model's logits have no gradient; use method='occlusion', which needs none")
        return margins

    def gradient(self, features: Tensor) -> Tensor:
        """Return the gradient (B,D) of the margins by the image features (B,D) of the pictures."""
        rows = torch.arange(len(features), device=features.device)
        with torch.enable_grad():
            features = features.detach().requires_grad_()
            margins = self._difference(self._classify(features, rows), rows)
            return torch.autograd.grad(margins.sum(), features)[0]

    def _difference(self, logits: Tensor, rows: Tensor) -> Tensor:
        at = torch.arange(len(rows), device=rows.device)
        return logits[at, self.labels[rows]] - logits[at, self.rivals[rows]]

    def _logits(self, images: Tensor, rows: Tensor) -> Tensor:
        if self.text is None:
            return self.model(images)
        return self._classify(self.model.encode_image(images).values, rows)

    def _classify(self, features: Tensor, rows: Tensor) -> Tensor:
        text = None if self.text is None else Features(*(part[rows] for part in self.text))
        there = torch.ones(len(features), dtype=torch.bool, device=features.device)
        return self.model.classify(Features(features, there), text)

    @contextmanager
    def _first_map(self) -> Iterator[None]:
        """Lead the first output of the encoder's map layer through `map`."""
        encoder = getattr(self.model, "image_encoder", None)
        if encoder is None:
            yield
            return

        def lead(layer: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
            handle.remove()
            return self.map(output)

        handle = encoder.map_layer.register_forward_hook(lead)
        try:
            yield
        finally:
            handle.remove()


# -- Pixels: each method takes a margin and its pictures (B,3,H,W), and returns (B,H,W).


def saliency(margin: Margin, images: Tensor) -> Tensor:
    """Return the gradient, summed over the colour channels (Simonyan et al. 2014, with its sign).

    The sum says how fast the margin grows when the pixel gets brighter: its sign is that of light, not of evidence.
    """
    return Saliency(margin).attribute(images, abs=False, additional_forward_args=_rows(images)).sum(1)


def smoothgrad(margin: Margin, images: Tensor, samples: int = 16, noise: float = 0.1, seed: int = 0) -> Tensor:
    """Return the mean of `saliency` over noisy copies of the pictures (Smilkov et al. 2017).

    Args:
        margin: what is explained.
        images: (B,3,H,W) in [0,1].
        samples: noisy copies.
        noise: standard deviation on the scale of the pictures; the paper takes 0.1 to 0.2.
        seed: of the noise, which is the same for every picture of a size.
    """
    _require(samples >= 1, f"samples={samples}", "use at least 1")
    generator = torch.Generator().manual_seed(seed)  # captum's NoiseTunnel draws from the global state
    total = torch.zeros_like(images[:, 0])
    for _ in range(samples):
        speckle = torch.randn(images.shape[1:], generator=generator).to(images)
        total += saliency(margin, (images.detach() + noise * speckle).requires_grad_())
    return total / samples


def integrated_gradients(margin: Margin, images: Tensor, steps: int = 32, baseline: float | None = None) -> Tensor:
    """Return integrated gradients, summed over the colour channels (Sundararajan et al. 2017, equation 1).

    A picture's values add up to its margin minus that of the baseline, but for the error of `steps` steps.

    Args:
        margin: what is explained.
        images: (B,3,H,W) in [0,1].
        steps: of the Gauss-Legendre quadrature.
        baseline: None starts from the blurred picture, without its print and edges (Sturmfels et al. 2020). A grey
            level in [0,1] starts from an even picture, to which networks trained on photos answer wildly: the margin
            jumps on the first few hundredths of the way, and 400 steps are not enough to add up.
    """
    _require(steps >= 1, f"steps={steps}", "use at least 1")
    start = blurred(images.detach()) if baseline is None else float(baseline)
    method = IntegratedGradients(margin)
    options = {"additional_forward_args": _rows(images), "internal_batch_size": max(BATCH, len(images))}
    return method.attribute(images, start, n_steps=steps, **options).sum(1)


def blurred(images: Tensor) -> Tensor:
    """Return images (B,3,H,W) after a Gaussian blur, whose standard deviation is 1/56 of the shorter side."""
    sigma = min(images.shape[2:]) / 56  # 4 pixels of 224
    return gaussian_blur(images, 2 * math.ceil(3 * sigma) + 1, sigma)


def gradcam(margin: Margin, images: Tensor) -> Tensor:
    """Return Grad-CAM of the last feature map, enlarged bilinearly (Selvaraju et al. 2017, equations 1 and 2).

    Without the paper's final ReLU, so that evidence against the class stays visible.
    """
    _require_maps(margin)
    maps = LayerGradCam(margin, margin.map).attribute(images, additional_forward_args=_rows(images))
    return LayerAttribution.interpolate(maps, tuple(images.shape[2:]), "bilinear")[:, 0]


class _GuidedRectifiers(GuidedBackprop):
    """Guided backpropagation that guides ReLU6 as well, which captum leaves alone."""

    def _register_hooks(self, module: nn.Module) -> None:
        super()._register_hooks(module)
        if isinstance(module, nn.ReLU6):
            self.backward_hooks.append(module.register_forward_pre_hook(_no_negative_gradient))


def _no_negative_gradient(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """Hand a copy of the input on that lets positive gradients through only; it may be overwritten in place."""
    copy = inputs[0].clone()
    if copy.requires_grad:
        copy.register_hook(torch.relu)
    return (copy,)


def guided_gradcam(margin: Margin, images: Tensor) -> Tensor:
    """Return guided backpropagation times the positive part of Grad-CAM, summed over the colour channels.

    Selvaraju et al. 2017, section 3.2. Guided means that no negative gradient passes a rectifier: the modules ReLU
    (ResNets, ShuffleNet) and ReLU6 (EfficientNet-Lite). A network without them, such as EfficientNet-B0 with its
    SiLU, has nothing to guide: there this is the plain gradient times Grad-CAM. A picture whose Grad-CAM is nowhere
    positive gets zeros. Guided backpropagation alone shows edges whatever the weights (Adebayo et al. 2018): judge it
    beside a randomised model.
    """
    _require_maps(margin)
    method = GuidedGradCam(margin, margin.map)
    method.guided_backprop = _GuidedRectifiers(margin)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Setting backward hooks")
        attr = method.attribute(images, additional_forward_args=_rows(images), interpolate_mode="bilinear")
    return attr.sum(1)


def occlusion(margin: Margin, images: Tensor, window: int = 0) -> Tensor:
    """Cover one square after another in mid grey and note how far the margin falls (Zeiler and Fergus 2014).

    Args:
        margin: what is explained.
        images: (B,3,H,W) in [0,1].
        window: side of the square in pixels; 0 takes a sixth of the picture. Squares overlap by half.

    Returns:
        (B,H,W), the mean fall over the squares that cover a pixel.
    """
    side = window or max(1, min(images.shape[2:]) // 6)
    _require(0 < side <= min(images.shape[2:]), f"window={window}", f"use 1 to {min(images.shape[2:])} pixels")
    attr = Occlusion(margin).attribute(
        images,
        sliding_window_shapes=(3, side, side),
        strides=(3, max(1, side // 2), max(1, side // 2)),
        baselines=GREY,
        perturbations_per_eval=max(1, BATCH // len(images)),
        additional_forward_args=_rows(images),
    )
    return attr.mean(1)


def windows(margin: Margin, images: Tensor) -> Tensor:
    """Return what the windows of an `lca` pooling say, each spread evenly over its area.

    A window's contribution is its share of the pooled vector along the gradient of the margin. With a linear head a
    picture's values add up to the margin but for a constant of the head. Windows overlap more in the middle.
    """
    pooling = getattr(margin.model, "pooling", None)
    if not isinstance(pooling, LocalConceptsAccumulation):
        raise UsageError("method 'windows' needs windows; build the model with pooling='lca', or use 'gradcam'")
    encoder = margin.model.image_encoder
    with torch.no_grad():
        maps = pooling.look(encoder, images)
        direction = margin.gradient(pooling.pool(maps))
        boxes, contributions = pooling.window_contributions(maps, direction)
    return paint((boxes * encoder.stride).expand(len(images), -1, -1), contributions, tuple(images.shape[2:]))


def regions(margin: Margin, images: Tensor) -> Tensor:
    """Return what the features of an `nts` pooling's K regions add to the margin, each spread evenly over its box.

    A region adds the gradient of the margin by its features, times what lifts them above the mean of the head's scaler
    (zeros where that was not fitted): exact for a linear head, first order otherwise. What the picture as a whole adds
    is left out, for it lies nowhere.
    """
    pooling = getattr(margin.model, "pooling", None)
    if not isinstance(pooling, NavigatedParts):
        raise UsageError("method 'regions' needs regions; build the model with pooling='nts', or use 'gradcam'")
    if not pooling.parts:
        raise UsageError("method 'regions' needs regions, and this model has parts=0; build it with parts=4")
    with torch.no_grad():
        features = margin.model.encode_image(images).values
        boxes = margin.model.regions(images).boxes[:, : pooling.parts]
    distance = features - margin.model.head.scalers["image"].mean
    added = (margin.gradient(features) * distance).unflatten(1, (pooling.parts + 1, -1)).sum(2)
    return paint(boxes, added[:, :-1], tuple(images.shape[2:]))  # the last is the whole picture


def paint(boxes: Tensor, values: Tensor, size: tuple[int, int]) -> Tensor:
    """Spread values evenly over boxes and add up what overlaps.

    Args:
        boxes: (B,N,4) int64 as x0, y0, x1, y1 in pixels; what overhangs the picture is cut off first.
        values: (B,N), what each box holds in all.
        size: height and width of the picture.

    Returns:
        (B,H,W).
    """
    height, width = size
    x0, x1 = boxes.cpu()[..., 0::2].clamp(0, width).unbind(-1)
    y0, y1 = boxes.cpu()[..., 1::2].clamp(0, height).unbind(-1)
    density = values.detach().cpu().double() / ((x1 - x0) * (y1 - y0)).clamp(min=1)
    steps = torch.zeros(len(boxes), height + 1, width + 1, dtype=torch.float64)
    picture = torch.arange(len(boxes))[:, None].expand_as(x0)
    for x, y, sign in ((x0, y0, 1), (x1, y1, 1), (x0, y1, -1), (x1, y0, -1)):
        steps.index_put_((picture, y, x), sign * density, accumulate=True)
    return steps.cumsum(1).cumsum(2)[:, :height, :width].to(values)


METHODS: dict[str, Callable[..., Tensor]] = {
    "saliency": saliency,
    "smoothgrad": smoothgrad,
    "integrated_gradients": integrated_gradients,
    "gradcam": gradcam,
    "guided_gradcam": guided_gradcam,
    "occlusion": occlusion,
    "windows": windows,
    "regions": regions,
}


def attribute(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    method: str = "occlusion",
    texts: Sequence[str] | None = None,
    **options: Any,
) -> Tensor:
    """Attribute the margin between a class and its runner-up to the pixels.

    Gradients reach the pixels on the way of the whole picture: NTS-Net cuts its parts out without gradient, so that
    only `occlusion` and `regions` know of them.

    Args:
        model: a product classifier; in evaluation mode for the call, and as it was afterwards.
        images: (B,3,H,W) float in [0,1].
        labels: (B,) the class that is explained.
        method: one of `METHODS`; `windows` needs an `lca` pooling, `regions` an `nts` pooling.
        texts: of the B pictures, for models that read; they stay as they are while pixels change.
        **options: of the method, such as `seed` and `samples` of `smoothgrad`; see its function.

    Returns:
        (B,H,W) float32, signed. The unit is logits, save for `saliency`, `smoothgrad` and `guided_gradcam`.

    Raises:
        UsageError: an unknown method or option, a class that the model does not have, pictures of another shape or
            range, lists of unequal length, a model that has not what the method needs.
    """
    attributor = _method(METHODS, method, "saliency method", options)
    if getattr(model, "modalities", ("image",)) == ("text",):
        raise UsageError("this model does not look at pictures; explain its words by attribute_words")
    labels = _checked(images, labels, texts)
    maps = [images.new_zeros(0, *images.shape[2:])]
    with evaluating(model):
        for start in range(0, len(images), BATCH):
            part = slice(start, start + BATCH)
            few = images[part].detach().clone()
            margin = Margin(model, few, labels[part], None if texts is None else texts[part])
            maps.append(attributor(margin, few.requires_grad_(), **options).detach())
    return torch.cat(maps).float()


# -- Words


class Token(NamedTuple):
    """A piece of the text as the encoder reads it.

    Attributes:
        text: as the tokenizer writes it.
        start: of its characters in the joined words.
        end: after its last character.
        word: position of its word; -1 for the marks that the tokenizer adds.
        value: signed attribution in logits.
    """

    text: str
    start: int
    end: int
    word: int
    value: float


class TextMargin:
    """Texts -> logit of a class minus that of its runner-up, beside one picture that stays as it is.

    Args:
        model: a product classifier that reads, in evaluation mode.
        text: decides, with the picture, who the runner-up is.
        label: the class that is explained, a tensor of no dimension.
        image: features of the picture, one row; None for none.
    """

    def __init__(self, model: nn.Module, text: str, label: Tensor, image: Features | None) -> None:
        self.model, self.image = model, image
        with torch.no_grad():
            logits = model.classify(image, model.encode_text([text]))
        _check_labels(label[None], logits)
        self.label, self.rival = int(label), int(runner_up(logits, label[None].to(logits.device)))

    def __call__(self, text: Features) -> Tensor:
        """Return margins (N,) of N texts' features."""
        count = len(text.values)
        image = None if self.image is None else Features(*(part.expand(count, *part.shape[1:]) for part in self.image))
        logits = self.model.classify(image, text)
        return logits[:, self.label] - logits[:, self.rival]

    def tokens(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return margins (N,) of N rows of token ids (N,T)."""
        values = self.model.text_encoder.encode_tokens(ids, mask)
        return self(Features(values, torch.ones(len(values), dtype=torch.bool, device=values.device)))


def joined(words: Sequence[Word]) -> tuple[str, np.ndarray]:
    """Return the text that the model reads, words with a space between, and each word's (start, end) in it, (N,2)."""
    lengths = np.array([len(w.text) for w in words], dtype=int)
    ends = np.cumsum(lengths + 1) - 1
    return " ".join(w.text for w in words), np.stack([ends - lengths, ends], 1)


def read_tokens(margin: TextMargin, words: Sequence[Word], steps: int = 32) -> list[Token]:
    """Return integrated gradients of the word embeddings, summed over their dimensions, token by token.

    The baseline is a text of the same length that says nothing: every token is padding, the marks at both ends stay.
    Tokens' values add up to the margin of the text minus that of the baseline.

    Args:
        margin: what is explained; its encoder is a transformer.
        words: of the text.
        steps: of the Gauss-Legendre quadrature.
    """
    _require(steps >= 1, f"steps={steps}", "use at least 1")
    encoder = margin.model.text_encoder
    text, spans = joined(words)
    (found,) = encoder.tokenize([text])
    ids = torch.tensor([found.ids], device=encoder.network.device)
    special = torch.tensor([found.special_tokens_mask], device=ids.device).bool()
    baseline = ids.where(special, encoder.network.config.pad_token_id or 0)
    values = LayerIntegratedGradients(margin.tokens, encoder.embedding).attribute(
        ids,
        baseline,
        additional_forward_args=torch.ones_like(ids),
        n_steps=steps,
        internal_batch_size=TOKEN_BATCH,
    )
    places = [-1 if mark else _word_at(spans, end) for mark, (_, end) in zip(special[0], found.offsets, strict=True)]
    parts = zip(found.tokens, found.offsets, places, values.sum(2)[0].tolist(), strict=True)
    return [Token(token, *offsets, place, value) for token, offsets, place, value in parts]


def _word_at(spans: np.ndarray, end: int) -> int:
    """Return the word that holds the character before `end`, -1 for none."""
    word = int(np.searchsorted(spans[:, 0], end - 1, side="right")) - 1
    return word if word >= 0 and end - 1 < spans[word, 1] else -1


def words_by_gradient(margin: TextMargin, words: Sequence[Word], steps: int = 32) -> np.ndarray:
    """Return (N,), each word's sum of `read_tokens`."""
    total = np.zeros(len(words))
    for token in read_tokens(margin, words, steps):
        if token.word >= 0:
            total[token.word] += token.value
    return total


@torch.no_grad()
def words_left_out(margin: TextMargin, words: Sequence[Word]) -> np.ndarray:
    """Return (N,), how far the margin falls when a word is left out.

    A text that has lost its only word is missing, and the model does what it does without a text. Where it has no
    picture to go by either, the average training text stands in.
    """
    texts = [words, *([*words[:i], *words[i + 1 :]] for i in range(len(words)))]
    left = [kept_apart(joined(some)[0]) for some in texts]
    read = [margin.model.encode_text(left[start : start + BATCH]) for start in range(0, len(left), BATCH)]
    text = Features(*(torch.cat(parts) for parts in zip(*read, strict=True)))
    if margin.image is None:
        average = margin.model.head.scalers["text"].mean
        text = Features(torch.where(text.available[:, None], text.values, average), torch.ones_like(text.available))
    margins = margin(text).double().cpu().numpy()
    return margins[0] - margins[1:]


WORD_METHODS: dict[str, Callable[..., np.ndarray]] = {
    "integrated_gradients": words_by_gradient,
    "leave_one_out": words_left_out,
}


def attribute_words(
    model: nn.Module,
    words: Sequence[Sequence[Word]],
    labels: Tensor,
    images: Tensor | None = None,
    method: str = "auto",
    **options: Any,
) -> list[np.ndarray]:
    """Attribute the margin between a class and its runner-up to the words on each picture.

    The model reads a picture's words with a space between. Words that it does not read get 0: barcodes, those behind
    the longest text of its tokenizer, and those of which the tokenizer leaves nothing.

    Args:
        model: a product classifier that reads; in evaluation mode for the call, and as it was afterwards.
        words: for each of B pictures its words, maybe none.
        labels: (B,) the class that is explained.
        images: (B,3,H,W) in [0,1], for models that look as well; None leaves the picture out.
        method: one of `WORD_METHODS`; `auto` is `integrated_gradients` for transformers, else `leave_one_out`.
        **options: of the method: `steps` of `integrated_gradients`.

    Returns:
        For each picture one signed value a word, in logits: a float64 array, empty without words.

    Raises:
        UsageError: as `attribute` does, and for an encoder without embeddings.
    """
    attributor = _word_method(model, method, options)
    return _by_picture(model, words, labels, images, partial(attributor, **options), np.zeros)


def attribute_tokens(
    model: nn.Module,
    words: Sequence[Sequence[Word]],
    labels: Tensor,
    images: Tensor | None = None,
    **options: Any,
) -> list[list[Token]]:
    """Return what `attribute_words` adds up with `integrated_gradients`: each picture's tokens, with their words."""
    _word_method(model, "integrated_gradients", options)
    return _by_picture(model, words, labels, images, partial(read_tokens, **options), lambda count: [])


def _word_method(model: nn.Module, method: str, options: dict[str, Any]) -> Callable[..., np.ndarray]:
    encoder = getattr(model, "text_encoder", None)
    if encoder is None:
        raise UsageError("this model does not read words; explain its pixels by attribute")
    embeds = hasattr(encoder, "embedding")
    if method == "auto":
        method = "integrated_gradients" if embeds else "leave_one_out"
    attributor = _method(WORD_METHODS, method, "word method", options)
    if attributor is words_by_gradient and not embeds:
        raise UsageError(f"text encoder {encoder.name!r} has no word embeddings; use method='leave_one_out'")
    return attributor


def _by_picture(
    model: nn.Module,
    words: Sequence[Sequence[Word]],
    labels: Tensor,
    images: Tensor | None,
    explain: Callable[[TextMargin, Sequence[Word]], Any],
    nothing: Callable[[int], Any],
) -> list[Any]:
    """Return what `explain` says of each picture's words, and `nothing` of so many words without a character."""
    labels = _checked_labels(labels, len(words), "lists of words")
    looks = images is not None and "image" in model.modalities
    if looks:
        _check_images(images, len(words))
    found = []
    with evaluating(model):
        for i, read in enumerate(words):
            some = [replace(word, text=left) for word, left in zip(read, without_barcodes(read), strict=True)]
            text = joined(some)[0]
            if not text.strip():
                found.append(nothing(len(some)))
                continue
            with torch.no_grad():
                image = model.encode_image(images[i : i + 1]) if looks else None
            found.append(explain(TextMargin(model, text, labels[i], image), some))
    return found


# -- What both share


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode; afterwards each of its modules is in the mode it was in."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in before:
            module.training = mode


def _rows(images: Tensor) -> Tensor:
    """Return the numbers of the pictures; captum repeats them as it repeats the pictures."""
    return torch.arange(len(images), device=images.device)


def _method(registry: dict[str, Callable], name: str, what: str, options: dict[str, Any]) -> Callable:
    function = registry[pick(registry, name, what)]
    known = list(inspect.signature(function).parameters)[2:]
    for option in options:
        if not known:
            raise UsageError(f"{what} {name!r} has no options, and got {option!r}; leave it out")
        pick(known, option, f"option of {name!r}")
    return function


def _require(fine: bool, given: str, cure: str) -> None:
    if not fine:
        raise UsageError(f"{given} is out of range; {cure}")


def _require_maps(margin: Margin) -> None:
    if getattr(margin.model, "image_encoder", None) is None:
        raise UsageError("this model has no feature maps for Grad-CAM; use method='occlusion'")


def _checked(images: Tensor, labels: Tensor, texts: Sequence[str] | None) -> Tensor:
    """Return the labels on the pictures' device, after checking all three."""
    labels = _checked_labels(labels, len(images), "images")
    _check_images(images, len(labels))
    if texts is not None and len(texts) != len(images):
        raise UsageError(f"{len(texts)} texts for {len(images)} images; give one each, '' where there is none")
    return labels.to(images.device)


def _check_images(images: Tensor, count: int) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise UsageError(f"images are {images.dtype} of {tuple(images.shape)}; give float ones of (B,3,H,W)")
    if len(images) != count:
        raise UsageError(f"{len(images)} images for {count} lists of words; give one each")
    if images.numel() and not ((images >= -0.01) & (images <= 1.01)).all():  # NaN is outside too
        low, high = float(images.min()), float(images.max())
        raise UsageError(f"images run from {low:.3g} to {high:.3g}; give them in [0,1], encoders normalise themselves")


def _checked_labels(labels: Tensor, count: int, of: str) -> Tensor:
    labels = torch.as_tensor(labels)
    if labels.ndim != 1 or len(labels) != count or labels.is_floating_point() or labels.is_complex():
        given = f"labels are {labels.dtype} of {tuple(labels.shape)} for {count} {of}"
        raise UsageError(f"{given}; give one class index each, as (B,) integers")
    return labels.long()


def _check_labels(labels: Tensor, logits: Tensor) -> None:
    count = logits.shape[1]
    if count < 2:
        raise UsageError("a model of one class has no runner-up to explain it against; build it with two or more")
    wrong = labels[(labels < 0) | (labels >= count)]
    if len(wrong):
        raise UsageError(f"class {int(wrong[0])} is not one of this model's {count}; give labels from 0 to {count - 1}")
