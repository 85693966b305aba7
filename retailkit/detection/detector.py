"""A small Faster R-CNN on a frozen trunk, whose training records its four losses.

The trunk never learns, so that its maps are computed once (`encode`) and shared by every detector that is trained on
the same pictures; a step then costs some hundredths of a second on one core.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from tqdm.auto import tqdm

from retailkit.cache import code_fingerprint, digest, file_identity, replacing
from retailkit.config import UsageError, cache_dir, device
from retailkit.data.boxes import Scenes
from retailkit.models.encoders import build_image_encoder

LOSSES = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg")
STAGES = (2, 3, 4)  # of EfficientNet-Lite0: 40, 112 and 320 channels at strides 8, 16 and 32
CHANNELS = (40, 112, 320)
WIDTH, HIDDEN, POOLED = 48, 128, 5  # channels of the pyramid, units of the box head, cells of a region
ANCHORS = ((24, 40), (56, 80), (112, 160))  # sides in pixels at a picture side of 192, by stage
RATIOS = (0.5, 1.0, 2.0)
KEPT_EVERY = 50  # steps


@dataclass(frozen=True)
class DetectorConfig:
    """How to train a detector.

    Attributes:
        steps: updates.
        batch_size: pictures an update.
        lr: peak learning rate (AdamW, linear warm-up over a tenth of all steps, cosine decay to zero).
        weight_decay: decoupled weight decay.
        size: side in pixels to which pictures are squeezed, a multiple of 32.
        weights: of the trunk; see `models.encoders.build_image_encoder`.
        seed: of weights, order of pictures, and what torchvision samples of anchors and proposals.
    """

    steps: int = 200
    batch_size: int = 4
    lr: float = 1e-3
    weight_decay: float = 1e-4
    size: int = 192
    weights: str | None = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise UsageError(f"steps={self.steps}, batch_size={self.batch_size}: use at least 1")
        if self.size < 64 or self.size % 32:  # the stride of the last stage: anchors lie on its cells
            raise UsageError(
                f"size={self.size}: use a multiple of 32 from 64 on, such as {max(64, self.size // 32 * 32)}"
            )


class Trunk(nn.Module):
    """A frozen EfficientNet-Lite0 below a feature pyramid that learns (Lin et al. 2017).

    Given a dict of maps that `maps` made before, `forward` takes them as they are.
    """

    out_channels = WIDTH

    def __init__(self, weights: str | Path | None) -> None:
        super().__init__()
        self.encoder = build_image_encoder("efficientnet_lite0", weights).freeze().eval()
        self.pyramid = FeaturePyramidNetwork(list(CHANNELS), WIDTH)

    @torch.no_grad()
    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """Return the maps of normalised images (B,3,S,S), by stage."""
        images = images.contiguous(memory_format=torch.channels_last)
        found = self.encoder.network.forward_intermediates(images, indices=list(STAGES), intermediates_only=True)
        return {str(k): m.contiguous() for k, m in zip(STAGES, found, strict=True)}

    def forward(self, images: Tensor | dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the pyramid's maps, `WIDTH` channels each."""
        return self.pyramid(images if isinstance(images, dict) else self.maps(images))


def build(classes: int, config: DetectorConfig) -> FasterRCNN:
    """Return an untrained detector; the same seed gives the same weights.

    Args:
        classes: how many, without the background.
        config: `size`, `weights` and `seed` count here.
    """
    with _own_randomness():
        torch.manual_seed(config.seed)
        trunk = Trunk(config.weights)
        sides = [tuple(round(side * config.size / 192) for side in level) for level in ANCHORS]
        encoder = trunk.encoder
        return FasterRCNN(
            trunk,
            min_size=config.size,
            max_size=config.size,
            fixed_size=(config.size, config.size),
            image_mean=encoder.mean.flatten().tolist(),
            image_std=encoder.std.flatten().tolist(),
            rpn_anchor_generator=AnchorGenerator(tuple(sides), (RATIOS,) * len(sides)),
            rpn_pre_nms_top_n_train=200,
            rpn_post_nms_top_n_train=100,
            rpn_pre_nms_top_n_test=200,
            rpn_post_nms_top_n_test=100,
            rpn_batch_size_per_image=128,
            box_roi_pool=MultiScaleRoIAlign([str(k) for k in STAGES], POOLED, 1),
            box_head=TwoMLPHead(WIDTH * POOLED**2, HIDDEN),
            box_predictor=FastRCNNPredictor(HIDDEN, classes + 1),
            box_batch_size_per_image=32,
            box_detections_per_img=30,
        )


@dataclass(frozen=True)
class Maps:
    """What a frozen trunk says of pictures: 0.2 MB each at 192 px.

    Attributes:
        maps: stage -> (P,C,h,w), in the order of the scenes.
        size: side in pixels that the pictures were squeezed to.
    """

    maps: dict[str, Tensor]
    size: int

    def rows(self, numbers: Any, where: str) -> tuple[dict[str, Tensor], list[tuple[int, int]]]:
        """Return the maps of some pictures on a device, and the size of each."""
        return {k: m[numbers].to(where) for k, m in self.maps.items()}, [(self.size, self.size)] * len(numbers)


def encode(scenes: Scenes, config: DetectorConfig) -> Maps:
    """Run the trunk over all pictures once.

    Args:
        scenes: the pictures.
        config: `size`, `weights` and, for a trunk without weights, `seed` count here.
    """
    model, parts = build(len(scenes.classes), config).eval().to(device()), []
    numbers = range(len(scenes))
    for start in tqdm(numbers[:: config.batch_size], "maps", mininterval=2, leave=False, disable=len(scenes) < 100):
        images = [scenes.image(i).to(device()) for i in numbers[start : start + config.batch_size]]
        parts.append({k: m.cpu() for k, m in model.backbone.maps(model.transform(images)[0].tensors).items()})
    return Maps({k: torch.cat([part[k] for part in parts]) for k in parts[0]}, config.size)


def fit(
    scenes: Scenes,
    config: DetectorConfig,
    maps: Maps | None = None,
    region: bool = True,
    path: str | Path | None = None,
) -> tuple[FasterRCNN, pd.DataFrame]:
    """Train a detector, or load it if the very same training has been done before.

    An interrupted training goes on from its last kept step and ends with the same weights. With and without the
    region's boxes a detector has the same first weights, sees the same pictures in the same order, and has an output
    for the region.

    Args:
        scenes: pictures with boxes.
        config: how to train.
        maps: what `encode` made of `scenes`; None makes it.
        region: whether the region's boxes are learned.
        path: file for weights and losses; None keeps it in the cache folder under the training's key.

    Returns:
        The detector in evaluation mode, and one row a step: `step`, the four losses of torchvision's Faster R-CNN
        (Ren et al. 2015), and `total`, their sum.
    """
    maps = maps or encode(scenes, config)
    model, where = build(len(scenes.classes), config), device()
    key = _key(scenes, config, region, model)
    path = Path(path) if path else cache_dir("detection") / f"{key}.pt"
    model = model.to(where).train()
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=config.lr, weight_decay=config.weight_decay)
    rows = _restore(path, key, model, optimizer)
    steps = range(len(rows), config.steps)
    with _own_randomness():
        for step in tqdm(steps, "detector", mininterval=5, leave=False, disable=len(steps) < 50):
            torch.manual_seed(1_000_003 * config.seed + step)
            for group in optimizer.param_groups:
                group["lr"] = config.lr * _rate(step, config.steps)
            losses = _losses(model, scenes, maps, _batch(len(scenes), config, step), region)
            total = sum(losses.values())
            optimizer.zero_grad()
            total.backward()
            nn.utils.clip_grad_norm_(learned, 5.0)
            optimizer.step()
            rows.append([losses[name].item() for name in LOSSES])
            if (step + 1) % KEPT_EVERY == 0 or step + 1 == config.steps:
                _keep(path, key, model, optimizer, rows)
    frame = pd.DataFrame(rows, columns=list(LOSSES))
    frame.insert(0, "step", np.arange(1, len(frame) + 1))
    return model.eval(), frame.assign(total=frame[list(LOSSES)].sum(axis=1))


def _losses(model: FasterRCNN, scenes: Scenes, maps: Maps, numbers: Any, region: bool) -> dict[str, Tensor]:
    """Return the four losses of some pictures: torchvision's own forward pass behind the trunk."""
    where = next(model.parameters()).device
    features, sizes = maps.rows(numbers, where)
    targets = [_scaled(scenes, int(i), maps.size, region, where) for i in numbers]
    features = model.backbone(features)
    images = ImageList(torch.empty(len(sizes), 3, *sizes[0], device=where), sizes)
    proposals, first = model.rpn(images, features, targets)
    _, second = model.roi_heads(features, proposals, sizes, targets)
    return first | second


def _scaled(scenes: Scenes, number: int, size: int, region: bool, where: str) -> dict[str, Tensor]:
    """Return a picture's annotation in pixels of the squeezed picture."""
    given, (height, width) = scenes.annotation(number, region), scenes.sizes[number]
    factor = torch.tensor([size / width, size / height] * 2)
    return {"boxes": (given["boxes"] * factor).to(where), "labels": given["labels"].to(where)}


def _batch(count: int, config: DetectorConfig, step: int) -> list[int]:
    """Return the pictures of a step: every picture once before any comes again."""
    first = step * config.batch_size
    places = range(first, first + config.batch_size)
    orders = {e: np.random.default_rng([config.seed, e]).permutation(count) for e in {p // count for p in places}}
    return [int(orders[p // count][p % count]) for p in places]


def _rate(step: int, steps: int) -> float:
    rise = max(1, steps // 10)
    return (step + 1) / rise if step < rise else 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


@torch.no_grad()
def held_out_losses(model: FasterRCNN, scenes: Scenes, maps: Maps, region: bool = False, seed: int = 0) -> pd.DataFrame:
    """Return the four losses of each picture, without learning anything.

    Counted without the region's boxes they are one ruler for detectors that did and did not learn these: the losses
    of training are not, since they are averages over other boxes. For one seed every detector is asked about the same
    anchors; proposals are its own.

    Args:
        model: a detector; given back in evaluation mode.
        scenes: pictures with boxes.
        maps: what `encode` made of `scenes`.
        region: whether the region's boxes are counted.
        seed: of what torchvision samples.
    """
    model.train()
    with _own_randomness():
        rows = []
        for number in range(len(scenes)):
            torch.manual_seed(1_000_003 * seed + number)
            losses = _losses(model, scenes, maps, [number], region)
            rows.append([losses[name].item() for name in LOSSES])
    model.eval()
    frame = pd.DataFrame(rows, columns=list(LOSSES))
    return frame.assign(total=frame.sum(axis=1))


@torch.no_grad()
def detect(model: FasterRCNN, scenes: Scenes, maps: Maps | None = None) -> list[dict[str, np.ndarray]]:
    """Return what a detector finds on each picture.

    Args:
        model: in evaluation mode.
        scenes: the pictures; their boxes are not looked at.
        maps: what `encode` made of `scenes`; None computes it.

    Returns:
        A picture's `boxes` (N,4) in its own pixels, `labels` (N,) and `scores` (N,), best first.
    """
    found, where = [], next(model.parameters()).device
    for number in range(len(scenes)):
        if maps is None:
            (result,) = model([scenes.image(number).to(where)])
        else:
            features, sizes = maps.rows([number], where)
            features = model.backbone(features)
            images = ImageList(torch.empty(1, 3, *sizes[0], device=where), sizes)
            proposals, _ = model.rpn(images, features)
            results, _ = model.roi_heads(features, proposals, sizes)
            (result,) = model.transform.postprocess(results, sizes, [scenes.sizes[number]])
        found.append({k: v.cpu().numpy() for k, v in result.items()})
    return found


# -- What makes a training the same, and its file.


@contextmanager
def _own_randomness() -> Iterator[None]:
    """Let torch's generators be seeded inside the block only."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        yield


def _key(scenes: Scenes, config: DetectorConfig, region: bool, model: FasterRCNN) -> str:
    """Return a hash of pictures, boxes, configuration, first weights, our sources and the libraries."""
    plain = [config, scenes.classes, scenes.region, region]
    images = [image if isinstance(image, Tensor) else file_identity(image) for image in scenes.images]
    pictures = [images, list(scenes.boxes), list(scenes.labels)]
    return digest(plain, pictures, model.state_dict(), code_fingerprint(__name__))


def _keep(path: Path, key: str, model: FasterRCNN, optimizer: torch.optim.Optimizer, rows: list) -> None:
    learned = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    with replacing(path) as draft:
        torch.save({"key": key, "model": learned, "optimizer": optimizer.state_dict(), "rows": rows}, draft)


def _restore(path: Path, key: str, model: FasterRCNN, optimizer: torch.optim.Optimizer) -> list:
    """Load the last kept step of the same training; anything else in that file is overwritten later."""
    try:
        state = torch.load(path, map_location=device(), weights_only=True)
    except Exception:  # none yet, or cut off: a damaged file fails in many ways
        return []
    if state.get("key") != key:
        return []
    model.load_state_dict(state["model"], strict=False)
    optimizer.load_state_dict(state["optimizer"])
    return state["rows"]
