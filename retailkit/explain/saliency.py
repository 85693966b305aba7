"""Saliency of pixels through captum, behind one call.

An attribution is signed: positive where a pixel speaks for the class, negative where it speaks against it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from captum.attr import Occlusion
from torch import Tensor, nn

from retailkit.config import pick


def margin(model: nn.Module, labels: Tensor, rivals: Tensor, texts: Sequence[str] | None) -> Callable[[Tensor], Tensor]:
    """Return the function images (B,3,H,W) -> logit of `labels` minus logit of `rivals`, each (B,)."""

    def forward(images: Tensor) -> Tensor:
        repeat = len(images) // len(labels)  # captum stacks several perturbations of the batch
        words = None if texts is None else list(texts) * repeat
        logits = model(images, words)
        rows = torch.arange(len(images), device=images.device)
        return logits[rows, labels.repeat(repeat)] - logits[rows, rivals.repeat(repeat)]

    return forward


def runner_up(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the most probable class other than `labels (B,)` in `logits (B,K)`."""
    return logits.scatter(1, labels[:, None], float("-inf")).argmax(1)


def occlusion(score: Callable[[Tensor], Tensor], images: Tensor, window: int = 0) -> Tensor:
    """Cover one square after another in mid grey and note how far the score falls (Zeiler and Fergus 2014).

    Args:
        score: images -> (B,).
        images: (B,3,H,W) in [0,1].
        window: side of the square in pixels; 0 takes a sixth of the picture. Squares overlap by half.

    Returns:
        (B,H,W), the mean fall over the squares that cover a pixel.
    """
    side = window or images.shape[-1] // 6
    attr = Occlusion(score).attribute(
        images,
        sliding_window_shapes=(3, side, side),
        strides=(3, max(1, side // 2), max(1, side // 2)),
        baselines=0.5,
        perturbations_per_eval=16,
    )
    return attr.mean(1)


METHODS: dict[str, Callable[..., Tensor]] = {"occlusion": occlusion}


def attribute(
    model: nn.Module, images: Tensor, labels: Tensor, method: str = "occlusion", texts: Sequence[str] | None = None
) -> Tensor:
    """Attribute the margin between a class and its runner-up to the pixels.

    Args:
        model: a product classifier; put into evaluation mode for the call.
        images: (B,3,H,W) in [0,1].
        labels: (B,) the class that is explained.
        method: one of `METHODS`.
        texts: words on each picture, for models that read.

    Returns:
        (B,H,W) signed attributions in logits.
    """
    attributor = METHODS[pick(METHODS, method, "saliency method")]
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            rivals = runner_up(model(images, texts), labels)
            return attributor(margin(model, labels, rivals, texts), images).float()
    finally:
        model.train(training)
