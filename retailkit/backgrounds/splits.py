"""A split as a background variant shows it, to train and to test on like any other split."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from tqdm.auto import tqdm

from retailkit.backgrounds.masks import degrade, grabcut
from retailkit.backgrounds.variants import VARIANTS, apply_variant, boxes, usable
from retailkit.cache import code_fingerprint, digest
from retailkit.config import UsageError, UserError, pick
from retailkit.data.table import ProductDataset, Sample


@dataclass(eq=False, repr=False)
class VariantSplit(ProductDataset):
    """The images of a split and their product masks in memory, as one background variant shows them.

    `read` decodes each image once; `variant`, `degraded` and `cut_out` return other versions of the same images.
    Words are left out, as variants move or hide them.

    Attributes:
        source: the split that was read, with only the rows that are used; `left_out` counts the others.
        images: (N,3,S,S) uint8, before the variant.
        masks: (N,1,S,S) bool.
        backgrounds: (N,3,S,S) uint8: the variant `only_bg_t` of each image, which others are pasted onto.
        content: digest of images and masks, to tell cached features apart.
        seed: of donors and of what variants draw.
        options: of the variant `name`: the same for all images, or N, one for each.
        donors: (N,) whose background an image is pasted onto, or None.
        augment: random transform after the variant, as if the variant were what the camera saw.
        own_class: see `choose_donors`.
    """

    source: ProductDataset
    images: Tensor
    masks: Tensor
    backgrounds: Tensor
    left_out: int
    content: str
    seed: int = 0
    name: str = "original"
    options: Mapping[str, Any] | Sequence[Mapping[str, Any]] = field(default_factory=dict)
    donors: Tensor | None = None
    augment: v2.Transform | None = None
    own_class: bool = True

    def __post_init__(self) -> None:
        source = self.source
        super().__init__(source.data, source.rows, source.size, source.fit, self.augment, source.condition)

    @classmethod
    def read(cls, split: ProductDataset, seed: int = 0, own_class: bool = True) -> VariantSplit:
        """Read the images of a split that have a product mask of which all variants of the paper can be made.

        Raises:
            UserError: no image has such a mask.
        """
        rows = split.rows[(split.table["mask"] != "").to_numpy()]
        if not len(rows):
            raise UserError(f"no image of {split.data.name!r} has a product mask; make some with backgrounds.masked")
        source = split.with_options(rows=rows, augment=None, reads=("mask",))
        images = torch.empty(len(rows), 3, split.size, split.size, dtype=torch.uint8)
        masks = torch.empty(len(rows), 1, split.size, split.size, dtype=torch.bool)
        for i in tqdm(range(len(rows)), desc="read images", delay=2, mininterval=2, leave=False):
            sample = source[i]
            images[i], masks[i] = _to_bytes(sample.image), sample.mask
        left_out = len(split) - len(rows)
        return cls(source, images, masks, images, left_out, "", seed, own_class=own_class)._remade(images, masks)

    def _remade(self, images: Tensor, masks: Tensor) -> VariantSplit:
        """Return the split with other images and masks; those whose mask is of no use are left out."""
        good = usable(masks)
        if not good.any():
            raise UserError(f"all masks of {self.data.name!r} are empty or leave no background; check them")
        source, images, masks = self.source.with_options(rows=self.rows[good.numpy()]), images[good], masks[good]
        pairs = zip(images.split(1), masks.split(1), strict=True)
        backgrounds = torch.cat([_to_bytes(apply_variant(i.float() / 255, m, "only_bg_t")) for i, m in pairs])
        left_out, content = self.left_out + len(self) - len(images), digest(images, masks)
        return VariantSplit(source, images, masks, backgrounds, left_out, content, self.seed, own_class=self.own_class)

    def degraded(self, how: str, amount: float = 0.0) -> VariantSplit:
        """Return the original images with worse masks; those whose mask is of no use any more are left out.

        Arguments are those of `masks.degrade`; `grabcut` gives the masks that GrabCut finds in the boxes of these.
        """
        if how == "grabcut":
            pairs = zip(self.images.permute(0, 2, 3, 1).contiguous().numpy(), boxes(self.masks).tolist(), strict=True)
            found = np.stack([grabcut(image, box, self.seed) for image, box in pairs])
            return self._remade(self.images, torch.from_numpy(found)[:, None])
        return self._remade(self.images, degrade(self.masks, how, amount, self.seed))

    def cut_out(self) -> VariantSplit:
        """Return the products on black, to make variants of: small products without their background, say."""
        return self._remade(self.images * self.masks, self.masks)

    def variant(self, name: str, each: Sequence[Mapping[str, Any]] | None = None, **options: Any) -> VariantSplit:
        """Return the same images as another variant, a key of `VARIANTS`, shows them.

        Options (see the variant's function; `generic_paste` takes `from_class`) are those of all images, or of `each`
        one, such as a shadow to a side that its class chooses.
        """
        donors = None
        if VARIANTS[pick(VARIANTS, name, "variant")].donors:
            donors = choose_donors(self.labels, name, self.seed, self.own_class, options.pop("from_class", 0))
        result = replace(self, name=name, options=each or options, donors=donors)
        result.image(0)  # a wrong option fails here
        return result

    def image(self, position: int) -> Tensor:
        """Return one image (3,S,S) uint8 of the variant, before augmentation."""
        options = self.options if isinstance(self.options, Mapping) else self.options[position]
        donor = None if self.donors is None else self.backgrounds[self.donors[position]][None].float() / 255
        image, mask = self.images[position][None].float() / 255, self.masks[position][None]
        return _to_bytes(apply_variant(image, mask, self.name, donor, self.seed, **options)[0])

    def __getitem__(self, position: int) -> Sample:
        parts = {"image": tv_tensors.Image(self.image(position)), "mask": tv_tensors.Mask(self.masks[position])}
        parts = self.augment(parts) if self.augment else parts
        image, mask = parts["image"].as_subclass(Tensor).float() / 255, parts["mask"].as_subclass(Tensor).bool()
        mask = None if VARIANTS[self.name].moves else mask
        row = int(self.rows[position])
        return Sample(image, self._class_index[self.data.table["label"].iloc[row]], "", [], mask, None, row)

    @property
    def appearance(self) -> list[Any]:
        """What images depend on besides their files."""
        donors = None if self.donors is None else self.donors.tolist()
        variant = [self.name, repr(self.options), donors, self.seed, self.content, code_fingerprint(__name__)]
        return super().appearance + variant

    def with_options(self, **changes: Any) -> VariantSplit:
        """Return a copy with another `augment`, which then decides the size; `reads` changes nothing.

        Raises:
            UsageError: another size without an augmentation: images stay as they were read.
        """
        augment = changes.get("augment", self.augment)
        if augment is None and (size := changes.get("size", self.size)) != self.size:
            raise UsageError(f"images were read at {self.size} pixels; read the split at {size} pixels instead")
        return replace(self, augment=augment)


def _to_bytes(image: Tensor) -> Tensor:
    return image.mul(255).round().byte()


# -- Donors.


def choose_donors(
    labels: Tensor | Sequence[int], name: str, seed: int = 0, own_class: bool = True, from_class: int = 0
) -> Tensor:
    """Choose for each image the one whose background it gets (Xiao et al., section 2).

    `mixed_same` draws from the own class, `mixed_rand` from a class drawn uniformly (the own one among them, as in the
    paper, unless `own_class` is False), `mixed_next` from the next class (and the first after the last), and
    `generic_paste` from `from_class` for all. Takes labels (N,) and returns (N,) int64 indices into them. No image is
    its own donor, unless it is the only one of its class.

    Raises:
        UsageError: the variant takes no donors, or `from_class` is none of the labels.
        UserError: a background of another class is asked for, and there is only one class.
    """
    pick([variant for variant in VARIANTS if VARIANTS[variant].donors], name, "variant with donors")
    labels = np.asarray(labels)
    classes, rng = np.unique(labels), np.random.default_rng([seed, zlib.crc32(name.encode())])
    if len(classes) < 2 and (name == "mixed_next" or (name == "mixed_rand" and not own_class)):
        raise UserError(f"{name} takes backgrounds of another class, and there is only one class; add classes")
    if name == "mixed_same":
        targets = labels
    elif name == "mixed_next":
        targets = classes[np.searchsorted(classes, labels, side="right") % len(classes)]
    elif name == "generic_paste":
        if from_class not in classes:
            raise UsageError(f"from_class={from_class} has no image; use one of {', '.join(map(str, classes))}")
        targets = np.full(len(labels), from_class)
    elif own_class:
        targets = classes[rng.integers(len(classes), size=len(labels))]
    else:
        drawn = rng.integers(np.full(len(labels), len(classes) - 1))
        targets = classes[drawn + (drawn >= np.searchsorted(classes, labels))]
    pool = np.argsort(labels, kind="stable")  # the images class by class
    starts, counts = np.unique(labels[pool], return_index=True, return_counts=True)[1:]
    rank = pd.Series(labels).groupby(labels).cumcount().to_numpy()  # of an image within its class
    place = np.searchsorted(classes, targets)  # of the class that gives
    skips = (labels == targets) & (counts[place] > 1)
    drawn = rng.integers(counts[place] - skips)
    return torch.from_numpy(pool[starts[place] + drawn + (skips & (drawn >= rank))])
