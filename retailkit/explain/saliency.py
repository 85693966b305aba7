"""Saliency of pixels and words, mostly through captum, behind one call each.

What is explained is the margin: the logit of a class minus that of its runner-up, the most probable other class.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from captum.attr import (
    IntegratedGradients,
    LayerAttribution,
    LayerGradCam,
    LayerIntegratedGradients,
    Occlusion,
    Saliency,
)
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.ops import clip_boxes_to_image
from torchvision.transforms.v2.functional import gaussian_blur

from retailkit.config import UsageError, pick
from retailkit.data.table import Word
from retailkit.data.text import without_barcodes
from retailkit.inference import CompiledEncoder, compiled, in_range
from retailkit.models.classifier import Features, ProductClassifier, evaluating
from retailkit.models.lca import LocalConceptsAccumulation
from retailkit.models.nts import NavigatedParts

BATCH = 16  # images, or steps of them, in memory at a time
TOKEN_BATCH = 8  # steps of one text: attention over 256 tokens is large
GREY = 0.5  # the value of a covered pixel
NOISE = 0.1  # standard deviation, on the scale of the images; SmoothGrad's paper takes 0.1 to 0.2
CELLS = 7  # of a mask of RISE, in either direction


def runner_up(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the most probable class other than `labels (B,)` in `logits (B,K)`."""
    return logits.scatter(1, labels[:, None], float("-inf")).argmax(1)


class Margin(nn.Module):
    """What captum sees of a model: images -> logit of a class minus that of its runner-up.

    Takes a model in evaluation mode, images (B,3,H,W) in [0,1] that decide which class is the runner-up, `labels` (B,)
    and texts (None leaves them out). `map` passes on the last feature map of the whole images, for Grad-CAM: NTS-Net
    encodes its parts by the same network afterwards, so the encoder's own layer would show the parts.
    """

    def __init__(self, model: nn.Module, images: Tensor, labels: Tensor, texts: Sequence[str] | None = None) -> None:
        super().__init__()
        self.model, self.labels, self.map = model, labels, nn.Identity()
        with torch.no_grad():
            reads = texts is not None and "text" in getattr(model, "modalities", ())
            self.text = model.encode_text(list(texts)) if reads else None
            self.contrast = runner_up(self._logits(images, _rows(images)), labels)

    def forward(self, images: Tensor, rows: Tensor) -> Tensor:
        """Return margins (N,) of images (N,3,H,W), perturbations of the images `rows (N,)`."""
        with self._map_of_whole_images():
            margins = self._difference(self._logits(images, rows), rows)
        if torch.is_grad_enabled() and images.requires_grad and not margins.requires_grad:
            raise UsageError("this model's logits have no gradient; use method='occlusion', which needs none")
        return margins

    def gradient(self, features: Tensor) -> Tensor:
        """Return the gradient (B,D) of the margins by the image features (B,D) of the images."""
        with torch.enable_grad():
            features = features.detach().requires_grad_()
            margins = self._difference(self._classify(features, _rows(features)), _rows(features))
            return torch.autograd.grad(margins.sum(), features)[0]

    def _difference(self, logits: Tensor, rows: Tensor) -> Tensor:
        at = _rows(logits)
        return logits[at, self.labels[rows]] - logits[at, self.contrast[rows]]

    def _logits(self, images: Tensor, rows: Tensor) -> Tensor:
        if self.text is None:
            return self.model(images)
        return self._classify(self.model.encode_image(images).values, rows)

    def _classify(self, features: Tensor, rows: Tensor) -> Tensor:
        text = None if self.text is None else self.text.rows(rows)
        return self.model.classify(Features.present(features), text)

    def _map_of_whole_images(self) -> AbstractContextManager:
        """Send the first output of the encoder's map layer through `map`."""
        encoder = getattr(self.model, "image_encoder", None)
        if encoder is None or isinstance(encoder, CompiledEncoder):
            return nullcontext()

        def hook(layer: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
            handle.remove()
            return self.map(output)

        handle = encoder.map_layer.register_forward_hook(hook)
        return handle


# -- Pixels: each method takes a margin and its images (B,3,H,W), and returns (B,H,W).


def saliency(margin: Margin, images: Tensor) -> Tensor:
    """Return the gradient, summed over the colour channels (Simonyan et al. 2014, with its sign).

    It says how fast the margin grows when the pixel gets brighter: its sign is that of light, not of evidence.
    """
    return Saliency(margin).attribute(images, abs=False, additional_forward_args=_rows(images)).sum(1)


def smoothgrad(margin: Margin, images: Tensor, samples: int = 16, seed: int = 0) -> Tensor:
    """Return the mean of `saliency` over noisy copies of the images (Smilkov et al. 2017).

    The noise is the same for every image of a size.
    """
    generator = torch.Generator().manual_seed(seed)  # captum's NoiseTunnel draws from the global state
    total = torch.zeros_like(images[:, 0])
    for _ in range(samples):
        speckle = torch.randn(images.shape[1:], generator=generator).to(images)
        total += saliency(margin, (images.detach() + NOISE * speckle).requires_grad_())
    return total / samples


def integrated_gradients(margin: Margin, images: Tensor, steps: int = 32) -> Tensor:
    """Return integrated gradients, summed over the colour channels (Sundararajan et al. 2017, equation 1).

    An image's values add up to its margin minus that of the baseline, but for the error of `steps` steps. The path
    starts from the blurred image, without edges and small print (Sturmfels et al. 2020): on even grey, networks are
    erratic, and 400 steps are not enough to add up.
    """
    start = blurred(images.detach())
    options = {"additional_forward_args": _rows(images), "internal_batch_size": max(BATCH, len(images))}
    return IntegratedGradients(margin).attribute(images, start, n_steps=steps, **options).sum(1)


def blurred(images: Tensor) -> Tensor:
    """Return images (B,3,H,W) after a Gaussian blur, whose standard deviation is 1/56 of the shorter side."""
    sigma = min(images.shape[2:]) / 56  # 4 pixels of 224
    return gaussian_blur(images, 2 * math.ceil(3 * sigma) + 1, sigma)


def gradcam(margin: Margin, images: Tensor, positive: bool = False) -> Tensor:
    """Return Grad-CAM of the last feature map, enlarged bilinearly (Selvaraju et al. 2017, equations 1 and 2).

    `positive` keeps only evidence for the class, as the paper's final ReLU does.
    """
    if getattr(margin.model, "image_encoder", None) is None:
        raise UsageError("this model has no feature maps for Grad-CAM; use method='occlusion'")
    method = LayerGradCam(margin, margin.map)
    maps = method.attribute(images, additional_forward_args=_rows(images), relu_attributions=positive)
    return LayerAttribution.interpolate(maps, tuple(images.shape[2:]), "bilinear")[:, 0]


def guided_gradcam(margin: Margin, images: Tensor) -> Tensor:
    """Return guided backpropagation times the positive part of Grad-CAM (Selvaraju et al. 2017, section 3.2).

    Guided means that no negative gradient passes a rectifier: ReLU, and ReLU6, which captum's own version leaves alone.
    In a network without them, such as EfficientNet-B0, this is the plain gradient times Grad-CAM. Guided
    backpropagation alone shows edges whatever the weights (Adebayo et al. 2018): judge it beside a randomised model.
    """

    def only_positive_gradients(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        copy = inputs[0].clone()  # the rectifier may work in place
        if copy.requires_grad:
            copy.register_hook(torch.relu)
        return (copy,)

    cam = gradcam(margin, images, positive=True)
    with ExitStack() as hooks:
        for module in margin.modules():
            if isinstance(module, (nn.ReLU, nn.ReLU6)):
                hooks.enter_context(module.register_forward_pre_hook(only_positive_gradients))
        return saliency(margin, images) * cam


def occlusion(margin: Margin, images: Tensor, window: int = 0) -> Tensor:
    """Cover one square after another in mid grey and note how far the margin falls (Zeiler and Fergus 2014).

    Returns the mean fall over the squares that cover a pixel. They overlap by half; `window` is their side in pixels, 0
    takes a sixth of the image.
    """
    side = window or max(1, min(images.shape[2:]) // 6)
    step = max(1, side // 2)
    options = {"additional_forward_args": _rows(images), "perturbations_per_eval": max(1, BATCH // len(images))}
    return Occlusion(margin).attribute(images, (3, side, side), (3, step, step), GREY, **options).mean(1)


def rise(margin: Margin, images: Tensor, masks: int = 512, seed: int = 0) -> Tensor:
    """Return by how much the margin is higher where a pixel is shown, over random masks (Petsiuk et al. 2018).

    Half of the `CELLS` x `CELLS` of a mask are shown, the others black, enlarged bilinearly and shifted at random. The
    margin's mean over masks is subtracted first, so that the map is signed.
    """
    generator, (height, width) = torch.Generator().manual_seed(seed), images.shape[2:]
    grid = (torch.rand(masks, 1, CELLS, CELLS, generator=generator) < 0.5).float()
    step = -(-height // CELLS), -(-width // CELLS)
    large = interpolate(grid, (height + step[0], width + step[1]), mode="bilinear")[:, 0].to(images)
    at = (torch.rand(masks, 2, generator=generator) * torch.tensor(step)).int().tolist()
    with torch.no_grad():
        shown = torch.stack([mask[y : y + height, x : x + width] for mask, (y, x) in zip(large, at, strict=True)])
        margins = torch.stack([margin(images * mask, _rows(images)) for mask in shown])
    return torch.einsum("mb,mhw->bhw", margins - margins.mean(0), shown) / shown.sum(0).clamp_min(1e-6)


def windows(margin: Margin, images: Tensor) -> Tensor:
    """Return the contributions of the windows of an `lca` pooling, each spread evenly over its area.

    A window's contribution is its share of the pooled vector along the gradient of the margin. With a linear head an
    image's values add up to the margin but for a constant of the head. Windows overlap more in the middle.
    """
    pooling = getattr(margin.model, "pooling", None)
    if not isinstance(pooling, LocalConceptsAccumulation):
        raise UsageError("method 'windows' needs windows; build the model with pooling='lca', or use 'gradcam'")
    encoder = margin.model.image_encoder
    with torch.no_grad():
        maps = pooling.look(encoder, images)
        boxes, contributions = pooling.window_contributions(maps, margin.gradient(pooling.pool(maps)))
    return paint((boxes * encoder.stride).expand(len(images), -1, -1), contributions, tuple(images.shape[2:]))


def regions(margin: Margin, images: Tensor) -> Tensor:
    """Return what the features of an `nts` pooling's K regions add to the margin, each spread evenly over its box.

    A region adds the gradient of the margin by its features, times their difference from the mean of the head's scaler:
    exact for a linear head, first order otherwise. What the image as a whole adds is left out, for it lies nowhere.
    """
    pooling = getattr(margin.model, "pooling", None)
    if not isinstance(pooling, NavigatedParts) or not pooling.parts:
        raise UsageError("method 'regions' needs regions; build the model with pooling='nts' and parts, as parts=4")
    with torch.no_grad():
        features = margin.model.encode_image(images).values
        boxes = margin.model.regions(images).boxes[:, : pooling.parts]
    distance = features - margin.model.head.scalers["image"].mean
    added = (margin.gradient(features) * distance).unflatten(1, (pooling.parts + 1, -1)).sum(2)
    return paint(boxes, added[:, :-1], tuple(images.shape[2:]))  # the last is the whole image


def paint(boxes: Tensor, values: Tensor, size: tuple[int, int]) -> Tensor:
    """Spread values (B,N) evenly over boxes (B,N,4: x0, y0, x1, y1) of images of this size, and add up what overlaps.

    What overhangs the image is cut off first. Returns (B,H,W).
    """
    x0, y0, x1, y1 = clip_boxes_to_image(boxes.cpu(), size).unbind(-1)
    density = values.detach().cpu().double() / ((x1 - x0) * (y1 - y0)).clamp(min=1)
    steps = torch.zeros(len(boxes), size[0] + 1, size[1] + 1, dtype=torch.float64)
    image = torch.arange(len(boxes))[:, None].expand_as(x0)
    for x, y, sign in ((x0, y0, 1), (x1, y1, 1), (x0, y1, -1), (x1, y0, -1)):
        steps.index_put_((image, y, x), sign * density, accumulate=True)
    return steps.cumsum(1).cumsum(2)[:, :-1, :-1].to(values)


METHODS: dict[str, Callable[..., Tensor]] = {
    "saliency": saliency,
    "smoothgrad": smoothgrad,
    "integrated_gradients": integrated_gradients,
    "gradcam": gradcam,
    "guided_gradcam": guided_gradcam,
    "occlusion": occlusion,
    "rise": rise,
    "windows": windows,
    "regions": regions,
}
FORWARD_ONLY = ("occlusion", "rise")  # they need no gradient and many forward passes


@torch.inference_mode(False)
def attribute(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    method: str = "occlusion",
    texts: Sequence[str] | None = None,
    **options: Any,
) -> Tensor:
    """Attribute the margin between a class and its runner-up to the pixels.

    NTS-Net cuts its parts out without gradient: only `occlusion`, `rise` and `regions` take them into account.

    Args:
        model: a product classifier; in evaluation mode for the call, and as it was afterwards.
        images: (B,3,H,W) float in [0,1].
        labels: (B,) the class that is explained.
        method: one of `METHODS`; `windows` needs an `lca` pooling, `regions` an `nts` pooling.
        texts: of the B images, for models that use text; they stay as they are while pixels change.
        **options: of the method, such as `seed` and `samples` of `smoothgrad`; see its function.

    Returns:
        (B,H,W) float32, positive where a pixel is evidence for the class. The unit is logits, save for `saliency`,
        `smoothgrad` and `guided_gradcam`.

    Raises:
        UsageError: an unknown method, or a model that has not what the method needs.
    """
    attributor = METHODS[pick(METHODS, method, "saliency method")]
    if getattr(model, "modalities", ("image",)) == ("text",):
        raise UsageError("this model does not use images; explain its words by attribute_tokens")
    images = in_range(torch.as_tensor(images).detach(), "images")
    labels = torch.as_tensor(labels).to(images.device).clone()
    maps = [images.new_zeros(0, *images.shape[2:])]
    with evaluating(model, gradients=True):
        fast = compiled(model) if method in FORWARD_ONLY and isinstance(model, ProductClassifier) else model
        for start in range(0, len(images), BATCH):
            part = slice(start, start + BATCH)
            few = images[part].detach().clone()
            margin = Margin(fast, few, labels[part], None if texts is None else texts[part])
            maps.append(attributor(margin, few.requires_grad_(), **options).detach())
    return torch.cat(maps).float()


# -- Words.


class Token(NamedTuple):
    """A piece of the text as the tokenizer writes it, its characters from `start` to `end` in the joined words.

    `word` is the position of its word, -1 for the marks that the tokenizer adds; `value` is signed, in logits.
    """

    text: str
    start: int
    end: int
    word: int
    value: float


@torch.inference_mode(False)
def attribute_tokens(
    model: nn.Module, words: Sequence[Sequence[Word]], labels: Tensor, steps: int = 32
) -> list[list[Token]]:
    """Return integrated gradients of the word embeddings, summed over their dimensions, token by token.

    The baseline is a text of the same length without content: every token is padding, the marks at both ends stay.
    Tokens' values add up to the margin of the text minus that of the baseline. Barcodes are not read. A model that also
    uses images gets none.

    Args:
        model: a product classifier whose text encoder is a transformer; as it was after the call.
        words: for each of B images its words, maybe none.
        labels: (B,) the class that is explained.
        steps: of the Gauss-Legendre quadrature.
    """
    if not hasattr(getattr(model, "text_encoder", None), "embedding"):
        raise UsageError("this model has no word embeddings; explain its words by explain.lime")
    tokens, labels = [], torch.as_tensor(labels).clone()
    with evaluating(model, gradients=True):
        for i, read in enumerate(words):
            texts = without_barcodes(read)
            tokens.append(_tokens(model, texts, labels[i : i + 1], steps) if "".join(texts).strip() else [])
    return tokens


def _tokens(model: nn.Module, words: list[str], label: Tensor, steps: int) -> list[Token]:
    """Return the tokens of one text."""
    encoder, text = model.text_encoder, " ".join(words)
    with torch.no_grad():
        logits = model.classify(None, model.encode_text([text]))
        contrast = runner_up(logits, label.to(logits.device))

    def margins(ids: Tensor, mask: Tensor) -> Tensor:
        logits = model.classify(None, Features.present(encoder.encode_tokens(ids, mask)))
        return (logits[:, label] - logits[:, contrast])[:, 0]

    (read,) = encoder.tokenize([text])
    ids = torch.tensor([read.ids], device=encoder.network.device)
    special = torch.tensor([read.special_tokens_mask], device=ids.device).bool()
    baseline = ids.where(special, encoder.network.config.pad_token_id or 0)
    options = {"additional_forward_args": torch.ones_like(ids), "internal_batch_size": TOKEN_BATCH}
    values = LayerIntegratedGradients(margins, encoder.embedding).attribute(ids, baseline, n_steps=steps, **options)
    ends = np.cumsum([len(word) + 1 for word in words])  # of each word and the space after it
    marked = zip(special[0], read.offsets, strict=True)
    at = [-1 if mark else int(np.searchsorted(ends, end)) for mark, (_, end) in marked]
    parts = zip(read.tokens, read.offsets, at, values.sum(2)[0].tolist(), strict=True)
    return [Token(token, *offsets, word, value) for token, offsets, word, value in parts]


# -- What both share.


def _rows(values: Tensor) -> Tensor:
    """Return the numbers of the rows; captum repeats them as it repeats the images."""
    return torch.arange(len(values), device=values.device)
