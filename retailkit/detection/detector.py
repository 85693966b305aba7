"""A small Faster R-CNN on a frozen trunk, whose training records its four losses.

The trunk is never trained, so its feature maps are computed once (`encode`) and shared by every detector that is
trained on the same images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

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

from retailkit.cache import code_fingerprint, digest, file_identity, kept_tensors
from retailkit.config import UsageError, device
from retailkit.data.boxes import Scenes
from retailkit.models.encoders import build_image_encoder
from retailkit.training.encoded import seeded
from retailkit.training.loop import warm_cosine

LOSSES = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg")
STAGES = (2, 3, 4)  # of EfficientNet-Lite0: 40, 112 and 320 channels at strides 8, 16 and 32
CHANNELS = (40, 112, 320)
WIDTH, HIDDEN, POOLED = 48, 128, 5  # channels of the pyramid, units of the box head, cells of a region
ANCHORS = ((24, 40), (56, 80), (112, 160))  # sides in pixels for an image side of 192, by stage
RATIOS = (0.5, 1.0, 2.0)

Maps = dict[str, Tensor]  # stage -> (N,C,h,w): what the trunk makes of N images


@dataclass(frozen=True)
class DetectorConfig:
    """How to train a detector.

    `lr` is the peak learning rate (AdamW, linear warm-up over a tenth of all steps, cosine decay to zero), `size` the
    side in pixels to which images are stretched, a multiple of 32, and `weights` those of the trunk. The `seed` is that
    of weights, order of images, and what torchvision samples of anchors and proposals.
    """

    steps: int = 200
    batch_size: int = 4
    lr: float = 1e-3
    size: int = 192
    weights: str | None = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise UsageError(f"steps={self.steps}, batch_size={self.batch_size}: use at least 1")
        if self.size < 64 or self.size % 32:  # the stride of the last stage: anchors lie on its cells
            fitting = max(64, self.size // 32 * 32)
            raise UsageError(f"size={self.size}: use a multiple of 32 from 64 on, such as {fitting}")


class Trunk(nn.Module):
    """A frozen EfficientNet-Lite0 below a feature pyramid that is trained (Lin et al. 2017)."""

    out_channels = WIDTH

    def __init__(self, weights: str | Path | None) -> None:
        super().__init__()
        self.encoder = build_image_encoder("efficientnet_lite0", weights).freeze().eval()
        self.pyramid = FeaturePyramidNetwork(list(CHANNELS), WIDTH)

    @torch.no_grad()
    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """Return the feature maps of normalised images (B,3,S,S), by stage."""
        images = images.contiguous(memory_format=torch.channels_last)
        maps = self.encoder.network.forward_intermediates(images, indices=list(STAGES), intermediates_only=True)
        return {str(k): m.contiguous() for k, m in zip(STAGES, maps, strict=True)}

    def forward(self, images: Tensor | dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the pyramid's maps, `WIDTH` channels each, of images or of maps that `maps` made before."""
        return self.pyramid(images if isinstance(images, dict) else self.maps(images))


def build(classes: int, config: DetectorConfig) -> FasterRCNN:
    """Return an untrained detector of `classes` classes and the background; the same seed gives the same weights."""
    with seeded(config.seed):
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


def encode(scenes: Scenes, config: DetectorConfig) -> Maps:
    """Return the trunk's feature maps of all images, 0.2 MB each at 192 px."""
    model, parts = build(len(scenes.classes), config).eval().to(device()), []
    indices = range(len(scenes))
    for start in tqdm(indices[:: config.batch_size], "maps", mininterval=2, leave=False, disable=len(scenes) < 100):
        images = [scenes.image(i).to(device()) for i in indices[start : start + config.batch_size]]
        parts.append({k: m.cpu() for k, m in model.backbone.maps(model.transform(images)[0].tensors).items()})
    return {k: torch.cat([part[k] for part in parts]) for k in parts[0]}


def fit(scenes: Scenes, config: DetectorConfig, maps: Maps, region: bool = True) -> tuple[FasterRCNN, pd.DataFrame]:
    """Train a detector, or load it if the very same training has been done before.

    With and without the region's boxes a detector has the same first weights, sees the same images in the same order,
    and has an output for the region. `maps` is what `encode` made of `scenes`.

    Returns:
        The detector in evaluation mode, and one row per step: `step`, the four losses of torchvision's Faster R-CNN
        (Ren et al. 2015), and `total`, their sum.
    """
    model = build(len(scenes.classes), config)
    images = [image if isinstance(image, Tensor) else file_identity(image) for image in scenes.images]
    boxes = [list(scenes.boxes), list(scenes.labels), scenes.classes, scenes.region]
    key = digest(config, region, images, boxes, model.state_dict(), code_fingerprint(__name__))
    kept = kept_tensors("detection", key, lambda: _train(model.to(device()), scenes, config, maps, region))
    losses = pd.DataFrame(kept.pop("losses").numpy(), columns=list(LOSSES))
    model.load_state_dict(kept, strict=False)  # what was trained; all else is as it was built
    losses.insert(0, "step", np.arange(1, len(losses) + 1))
    return model.to(device()).eval(), losses.assign(total=losses[list(LOSSES)].sum(axis=1))


def _train(model: FasterRCNN, scenes: Scenes, config: DetectorConfig, maps: Maps, region: bool) -> dict[str, Tensor]:
    """Train a detector and return its trained weights by name, and `losses` (steps, 4)."""
    model.train()
    learned = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(learned.values(), lr=config.lr, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warm_cosine(config.steps))
    rows = []
    for step in tqdm(range(config.steps), "detector", mininterval=5, leave=False, disable=config.steps < 50):
        with seeded(1_000_003 * config.seed + step):
            losses = _losses(model, scenes, maps, _batch(len(scenes), config, step), region)
        total = sum(losses.values())
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(learned.values(), 5.0)
        optimizer.step()
        schedule.step()
        rows.append([losses[name].item() for name in LOSSES])
    weights = {name: p.detach().cpu() for name, p in learned.items()}
    return weights | {"losses": torch.tensor(rows, dtype=torch.float64)}


def _batch(count: int, config: DetectorConfig, step: int) -> list[int]:
    """Return the images of a step: every image once before any comes again."""
    first = step * config.batch_size
    places = range(first, first + config.batch_size)
    orders = {e: np.random.default_rng([config.seed, e]).permutation(count) for e in {p // count for p in places}}
    return [int(orders[p // count][p % count]) for p in places]


def _features(model: FasterRCNN, maps: Maps, indices: Sequence[int]) -> tuple[Maps, ImageList]:
    """Return the pyramid's maps of some images, and what torchvision asks to know of the images: their sizes."""
    sizes = [model.transform.fixed_size] * len(indices)
    where = next(model.parameters()).device
    features = model.backbone({k: m[list(indices)].to(where) for k, m in maps.items()})
    return features, ImageList(torch.empty(len(sizes), 3, *sizes[0], device=where), sizes)


def _losses(model: FasterRCNN, scenes: Scenes, maps: Maps, indices: Sequence[int], region: bool) -> dict[str, Tensor]:
    """Return the four losses of some images: torchvision's own forward pass after the trunk."""
    features, images = _features(model, maps, indices)
    targets = []
    for i in indices:
        (height, width), (high, wide) = scenes.sizes[i], model.transform.fixed_size
        given = scenes.annotation(i, region)
        boxes = given["boxes"] * torch.tensor([wide / width, high / height] * 2)
        targets.append({k: v.to(images.tensors.device) for k, v in (given | {"boxes": boxes}).items()})
    proposals, first = model.rpn(images, features, targets)
    _, second = model.roi_heads(features, proposals, images.image_sizes, targets)
    return first | second


@torch.no_grad()
def held_out_losses(model: FasterRCNN, scenes: Scenes, maps: Maps, region: bool = False) -> pd.DataFrame:
    """Return the four losses of each image and their `total`, without training.

    Counted without the region's boxes they compare detectors that did and did not learn these; the losses of training
    do not, since they are averages over other boxes. The detector is in evaluation mode afterwards.
    """
    model.train()
    rows = []
    for i in range(len(scenes)):
        with seeded(i):
            losses = _losses(model, scenes, maps, [i], region)
        rows.append([losses[name].item() for name in LOSSES])
    model.eval()
    frame = pd.DataFrame(rows, columns=list(LOSSES))
    return frame.assign(total=frame.sum(axis=1))


@torch.no_grad()
def detect(model: FasterRCNN, scenes: Scenes, maps: Maps) -> list[dict[str, np.ndarray]]:
    """Return what is detected on each image: `boxes` (N,4) in its own pixels, `labels` (N,), `scores` (N,), best first.

    The detector must be in evaluation mode.
    """
    detections = []
    for i in range(len(scenes)):
        features, images = _features(model, maps, [i])
        proposals, _ = model.rpn(images, features)
        results, _ = model.roi_heads(features, proposals, images.image_sizes)
        (result,) = model.transform.postprocess(results, images.image_sizes, [scenes.sizes[i]])
        detections.append({k: v.cpu().numpy() for k, v in result.items()})
    return detections


# -- The same detector with and without the region's boxes.


@dataclass(frozen=True)
class Detectors:
    """Detectors, one per seed, trained alike but for the region's boxes, and what they do on the same images.

    `history` holds the losses of training, one row per step and `seed`; `held_out` those of each test image, counted by
    `own labels` (what was learned) and `products only`.
    """

    models: list[nn.Module]
    history: pd.DataFrame
    detections: list[list[dict[str, np.ndarray]]]
    held_out: dict[str, list[pd.DataFrame]]


def train_detectors(
    draw: Callable[[int], Scenes], test: Scenes, config: DetectorConfig, seeds: Sequence[int], learn_region: bool = True
) -> dict[str, Detectors]:
    """Train detectors `with` and `without` the region's boxes on the very same images, with the same seeds.

    `draw` returns the training images of a seed; the seed of `config` is replaced by each of `seeds`. Without
    `learn_region` both leave the region's boxes out, and are one and the same.
    """
    names, losses = ("with", "without"), ("own labels", "products only")
    trained = {name: Detectors([], pd.DataFrame(), [], {part: [] for part in losses}) for name in names}
    histories: dict[str, list[pd.DataFrame]] = {name: [] for name in names}
    test_maps = None
    for seed in seeds:
        train, own = draw(seed), replace(config, seed=seed)
        train_maps = encode(train, own)
        if test_maps is None or config.weights is None:  # without weights each seed has a trunk of its own
            test_maps = encode(test, own)
        for name, kind in trained.items():
            region = learn_region and name == "with"
            model, history = fit(train, own, train_maps, region)
            histories[name].append(history.assign(seed=seed))
            kind.models.append(model)
            kind.detections.append(detect(model, test, test_maps))
            kind.held_out["own labels"].append(held_out_losses(model, test, test_maps, region))
            kind.held_out["products only"].append(held_out_losses(model, test, test_maps))
    return {name: replace(kind, history=pd.concat(histories[name])) for name, kind in trained.items()}
