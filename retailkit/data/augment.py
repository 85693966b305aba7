"""Random transforms of training images, and what makes a packshot look like a photo of a shelf."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from retailkit.data.synthetic.shelf import DEPARTMENTS, SHELVES, shelf

SIDE = 224  # of a rendered shelf, in pixels
# Erasing leaves words and masks as they are; torchvision warns that this may change one day.
warnings.filterwarnings("ignore", message=r"RandomErasing\(\) is currently passing through")


def standard(size: int) -> v2.Transform:
    """Return crops, mirror images, colour jitter and erasing, as for photos of any kind."""
    crop, jitter = v2.RandomResizedCrop(size, scale=(0.35, 1.0)), v2.ColorJitter(0.3, 0.3, 0.3, 0.02)
    return v2.Compose([crop, v2.RandomHorizontalFlip(), jitter, v2.RandomErasing(p=0.25, scale=(0.02, 0.2))])


def light(size: int) -> v2.Transform:
    """Return mild crops and colour jitter for products that carry words: no mirror images, most of the label stays."""
    crop = v2.RandomResizedCrop(size, scale=(0.6, 1.0), ratio=(0.85, 1.18))
    return v2.Compose([crop, v2.ColorJitter(0.2, 0.2, 0.2, 0.02)])


@dataclass(frozen=True)
class OnShelf:
    """Put a product with a mask in front of a rendered shelf, `share` of the time."""

    share: float = 0.5

    def __call__(self, parts: dict[str, Any]) -> dict[str, Any]:
        """Return the parts of a sample with another background; unchanged without a mask."""
        if "mask" not in parts or torch.rand(()) >= self.share:
            return parts
        department = DEPARTMENTS[int(torch.randint(len(DEPARTMENTS), ()))]
        canvas = shelf(department, int(torch.randint(SHELVES, ())), SIDE)[..., :3]
        background = v2.RandomCrop(SIDE)(torch.from_numpy(canvas).permute(2, 0, 1))
        image, product = parts["image"], parts["mask"].as_subclass(torch.Tensor).bool()
        background = v2.functional.resize(background, list(image.shape[-2:]))
        joined = torch.where(product, image.as_subclass(torch.Tensor), background)
        return parts | {"image": tv_tensors.wrap(joined, like=image)}


@dataclass(frozen=True)
class LoseResolution:
    """Bring the image down to between `least` of its side and all of it, and up again."""

    least: float = 0.25

    def __call__(self, parts: dict[str, Any]) -> dict[str, Any]:
        """Return the parts of a sample with a coarser image."""
        image = parts["image"]
        scale = self.least + (1 - self.least) * float(torch.rand(()))
        small = [max(1, round(s * scale)) for s in image.shape[-2:]]
        coarse = v2.functional.resize(image.as_subclass(torch.Tensor), small)
        coarse = v2.functional.resize(coarse, list(image.shape[-2:]))
        return parts | {"image": tv_tensors.wrap(coarse, like=image)}


def packshot(size: int) -> v2.Transform:
    """Return what makes a packshot look like a photo of a shelf (Srivastava 2020, section 4).

    Shelf background (where there is a mask), perspective, low light, blur, loss of resolution and occlusion.
    """
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.7, 1.0), ratio=(0.8, 1.25)),  # small images are fast
            OnShelf(),
            v2.RandomPerspective(0.3, p=0.5, fill={tv_tensors.Image: 128, "others": 0}),
            v2.ColorJitter((0.4, 1.2), 0.3, 0.3),
            v2.RandomApply([v2.GaussianBlur(5, (0.3, 1.8))], 0.3),
            v2.RandomApply([LoseResolution()], 0.3),
            v2.RandomErasing(p=0.3, scale=(0.02, 0.15)),
        ]
    )


# Name -> function of the side in pixels that returns a random transform, or None for the plain fit.
AUGMENTATIONS: dict[str, Callable[[int], v2.Transform | None]] = {
    "none": lambda size: None,
    "light": light,
    "standard": standard,
    "packshot": packshot,
}
