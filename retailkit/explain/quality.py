"""How far to trust a saliency map: does it point at what is known to matter, and does it depend on the model?

Every game comes with its chance: what a map scores that knows nothing. Truth is a mask of the pixels that matter, such
as the product or the patch that tells twins apart.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from scipy.stats import spearmanr
from torch import nn

from retailkit.config import UsageError
from retailkit.models.pooling import FeatureScaler

NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


# -- Pointing games


def pointing_game(attr: Any, truth: Any, tolerance: int = 0) -> np.ndarray:
    """Ask whether a map's maximum lies in the truth (Zhang et al. 2018, section 4.1); higher is better.

    Where several pixels share the maximum the result is the share of them that hits: a flat superpixel that touches
    the truth is no full hit, and a map of one value scores chance.

    Args:
        attr: (B,H,W) signed.
        truth: (B,H,W) bool.
        tolerance: pixels by which the maximum may miss the truth; the paper takes 15. Chance grows with it.

    Returns:
        (B,) in [0,1]; NaN where the truth is empty. Chance is `chance(truth, tolerance)`.

    Raises:
        UsageError: shapes differ, the map holds NaN, or the tolerance is negative.
    """
    attr, truth = _checked(attr, truth)
    top = attr == attr.max((1, 2), keepdims=True)
    hits = (top & _grown(truth, tolerance)).sum((1, 2)) / top.sum((1, 2))
    return np.where(truth.any((1, 2)), hits, np.nan)


def energy_pointing(attr: Any, truth: Any) -> np.ndarray:
    """Return the share of the positive attribution inside the truth (Wang et al. 2020, section 4.3); higher is better.

    Args:
        attr: (B,H,W) signed; what is negative counts nowhere.
        truth: (B,H,W) bool.

    Returns:
        (B,) in [0,1]; NaN where the truth is empty, or nothing is positive. Chance is `chance(truth)`.

    Raises:
        UsageError: shapes differ, or the map holds NaN.
    """
    attr, truth = _checked(attr, truth)
    positive = attr.clip(min=0)
    total = positive.sum((1, 2))
    known = truth.any((1, 2)) & (total > 0)
    return np.where(known, (positive * truth).sum((1, 2)) / np.where(known, total, 1), np.nan)


def chance(truth: Any, tolerance: int = 0) -> np.ndarray:
    """Return what a map scores that knows nothing: the share of the picture that is truth, (B,); NaN where empty.

    A map that always points at the middle scores more wherever photographers put the product there.

    Args:
        truth: (B,H,W) bool.
        tolerance: of `pointing_game`.
    """
    truth = _array(truth, bool)
    return np.where(truth.any((1, 2)), _grown(truth, tolerance).mean((1, 2)), np.nan)


def scattered(attr: Any, seed: int) -> np.ndarray:
    """Return the control: each map (B,H,W) with its values at random places, which scores chance in both games."""
    attr = _maps(attr)
    flat = np.random.default_rng(seed).permuted(attr.reshape(len(attr), -1), axis=1)
    return flat.reshape(attr.shape)


def _grown(truth: np.ndarray, tolerance: int) -> np.ndarray:
    """Return the pixels at most `tolerance` from a true one."""
    if tolerance < 0:
        raise UsageError(f"tolerance={tolerance} is negative; use 0 pixels or more")
    if not tolerance:
        return truth
    return np.stack([distance_transform_edt(~t) <= tolerance if t.any() else t for t in truth])


def _checked(attr: Any, truth: Any) -> tuple[np.ndarray, np.ndarray]:
    attr, truth = _maps(attr), _array(truth, bool)
    if attr.shape != truth.shape:
        raise UsageError(f"maps are {attr.shape} and the truth is {truth.shape}; give both as (B,H,W)")
    return attr, truth


def _array(values: Any, kind: type) -> np.ndarray:
    return np.asarray(values.detach().cpu() if isinstance(values, torch.Tensor) else values, dtype=kind)


def _maps(attr: Any) -> np.ndarray:
    attr = _array(attr, float)
    if attr.ndim != 3 or 0 in attr.shape[1:]:
        raise UsageError(f"maps are {attr.shape}; give them as (B,H,W)")
    if bad := np.isnan(attr).any((1, 2)).sum():
        raise UsageError(f"{bad} of {len(attr)} maps hold NaN; leave those pictures out")
    return attr


# -- Does the map depend on what the model has learned?


def stages(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the parts of a model that have weights, by name, from its answer down to its input.

    Head, pooling, text encoder, and the image network block by block. Of any other module, its children from the last.
    """
    if not hasattr(model, "head"):
        return _with_weights(model, "")
    parts = [(name, getattr(model, name, None)) for name in ("head", "pooling", "text_encoder")]
    above = [(name, part) for name, part in parts if part is not None and _has_weights(part)]
    encoder = getattr(model, "image_encoder", None)
    return above + ([] if encoder is None else _with_weights(encoder.network, "image_encoder."))


def _with_weights(network: nn.Module, prefix: str) -> list[tuple[str, nn.Module]]:
    """Return the children of a network from the last; rows of blocks block by block."""
    found = []
    for name, child in reversed(list(network.named_children())):
        rows = child.named_children() if isinstance(child, nn.Sequential) else ()
        blocks = [(f"{prefix}{name}.{number}", block) for number, block in rows] or [(prefix + name, child)]
        found += [(where, block) for where, block in reversed(blocks) if _has_weights(block)]
    return found


def _has_weights(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def randomised(model: nn.Module, seed: int, top: int | None = None) -> nn.Module:
    """Return a copy of a model that has forgotten what it learned; the original stays as it is.

    A map that looks the same for the copy shows the picture, not the model (Adebayo et al. 2018, section 3): its
    `rank_correlation` with the original's should be near 0. Weights are drawn anew as for a fresh start (He et al.
    2015), biases are 0, normalisations do nothing, and feature scalers forget what they measured.

    Args:
        model: any module.
        seed: of the new weights.
        top: cascade: only so many of `stages(model)`, from the answer down; None draws everything anew.

    Raises:
        UsageError: the model has no weights, or not so many stages.
    """
    twin = copy.deepcopy(model)
    parts = [part for _, part in stages(twin)]
    if not parts:
        raise UsageError("this model has no weights to randomise")
    if top is not None and not 0 <= top <= len(parts):
        raise UsageError(f"top={top} is out of range; this model has {len(parts)} stages")
    generator = torch.Generator().manual_seed(seed)
    for part in [twin] if top is None else parts[:top]:
        _forget(part, generator)
    return twin


@torch.no_grad()
def _forget(part: nn.Module, generator: torch.Generator) -> None:
    """Start every module inside afresh."""
    for module in part.modules():
        if isinstance(module, FeatureScaler):
            module.mean.zero_()
            module.std.fill_(1)
        elif isinstance(module, NORMS):
            module.reset_parameters()
        else:
            for name, weight in module.named_parameters(recurse=False):
                _draw(name, weight, generator)


def _draw(name: str, weight: nn.Parameter, generator: torch.Generator) -> None:
    if name == "bias":
        weight.zero_()
        return
    inputs = weight[0].numel() if weight.ndim > 1 else 1
    weight.copy_(torch.randn(weight.shape, generator=generator) * math.sqrt(2 / inputs))


def rank_correlation(a: Any, b: Any, absolute: bool = False) -> np.ndarray:
    """Return Spearman's correlation of two maps of each picture: 1 for the same order of pixels, 0 for chance.

    Neighbouring pixels are alike, so that maps of nothing in common scatter widely around 0: average over pictures.

    Args:
        a: (B,H,W).
        b: (B,H,W).
        absolute: compare strengths without their signs. Gradients flip their sign easily, so that edges shown by both
            go unnoticed otherwise.

    Returns:
        (B,) in [-1,1]; NaN where a map has one value throughout.

    Raises:
        UsageError: shapes differ, or a map holds NaN.
    """
    a, b = _maps(a), _maps(b)
    if a.shape != b.shape:
        raise UsageError(f"maps are {a.shape} and {b.shape}; compare maps of the same pictures at one size")
    if absolute:
        a, b = np.abs(a), np.abs(b)
    return np.array([_spearman(x.ravel(), y.ravel()) for x, y in zip(a, b, strict=True)])


def _spearman(x: np.ndarray, y: np.ndarray) -> float:
    flat = x.min() == x.max() or y.min() == y.max()
    return math.nan if flat else float(spearmanr(x, y).statistic)
