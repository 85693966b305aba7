"""Variants by name: the paper's eight and the factors, alone or all eight at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from retailkit.backgrounds import factors, paper
from retailkit.backgrounds.paper import Pictures, boxes, choose_donors
from retailkit.config import UsageError, UserError, pick

LARGEST_BOX = 0.9  # of the picture: from here on the paper drops a picture from its background sets (appendix A)


@dataclass(frozen=True)
class Variant:
    """How a variant is made and what that takes.

    Attributes:
        make: of `Pictures` and options; returns (B,3,H,W).
        mask: the product must be somewhere.
        background: there must be something beside the product's box.
        donors: backgrounds of other pictures are pasted.
        moves: the product is not where its mask says any more.
    """

    make: Callable[..., Tensor]
    mask: bool = True
    background: bool = False
    donors: bool = False
    moves: bool = False


VARIANTS: dict[str, Variant] = {
    "original": Variant(paper.original, mask=False),
    "only_bg_b": Variant(paper.only_bg_b, background=True),
    "only_bg_t": Variant(paper.only_bg_t, background=True),
    "no_fg": Variant(paper.no_fg),
    "only_fg": Variant(paper.only_fg),
    "mixed_same": Variant(paper.mixed, donors=True),
    "mixed_rand": Variant(paper.mixed, donors=True),
    "mixed_next": Variant(paper.mixed, donors=True),
    "coloured": Variant(factors.coloured),
    "blurred": Variant(factors.blurred),
    "region_reduced": Variant(factors.region_reduced),
    "generic_paste": Variant(factors.generic_paste, donors=True),
    "paste_own": Variant(factors.paste_own, background=True),
    "object_size": Variant(factors.object_size, background=True, moves=True),
    "shadow": Variant(factors.shadow),
    "reflection": Variant(factors.reflection),
    "occlusion": Variant(factors.occlusion),
}
PAPER = tuple(VARIANTS)[:8]


def apply_variant(
    images: Tensor, masks: Tensor, name: str, donors: Tensor | None = None, seed: int = 0, **options: Any
) -> Tensor:
    """Return pictures as a variant shows them. What becomes of a picture does not depend on its batch.

    Args:
        images: (B,3,H,W) in [0,1]; the paper's eight also take uint8, and return it.
        masks: (B,1,H,W) bool, True = product.
        name: key of `VARIANTS`.
        donors: (B,3,H,W) finished backgrounds (`only_bg_t`) of the pictures that `choose_donors` chose; for the
            variants that paste them.
        seed: of what a variant draws (`occlusion`).
        **options: of the variant; see its function in `paper` and `factors`.

    Returns:
        (B,3,H,W) of the type of `images`, which stay as they are (`original` returns them).

    Raises:
        UsageError: unknown variant or option, tensors that do not fit, donors missing or not needed.
        UserError: a mask is empty, or its box leaves no background; the message gives the place in the batch.
    """
    variant = VARIANTS[pick(VARIANTS, name, "variant")]
    known = list(signature(variant.make).parameters)[1:]
    for option in options:
        pick(known, option, f"option of {name}")
    _check_tensors(images, masks, name)
    _check_donors(images, donors, name)
    around = boxes(masks)
    _check_masks(around, masks, name)
    return variant.make(Pictures(images, masks, around, donors, seed), **options)


def usable(masks: Tensor, name: str, largest_box: float = LARGEST_BOX) -> Tensor:
    """Tell of which pictures a variant can be made. The others are dropped, as the paper does.

    What every one of the paper's eight can be made of is what `only_bg_t` can be made of; a donor must be, too. (The
    paper also drops a picture whose centre crop loses more than half of the box, which a mask does not tell.)

    Args:
        masks: (B,1,H,W) bool.
        name: key of `VARIANTS`.
        largest_box: share of the picture that a box may fill where the background is to be seen, in [0,1]; 1 drops
            only those that `apply_variant` refuses.

    Returns:
        (B,) bool on the CPU.
    """
    variant = VARIANTS[pick(VARIANTS, name, "variant")]
    shares = _box_shares(boxes(masks), masks)
    good = torch.ones(len(masks), dtype=torch.bool)
    if variant.mask:
        good &= shares > 0
    if variant.background:
        good &= (shares <= largest_box) & (shares < 1)
    return good


class PaperVariants:
    """The paper's eight variants of a set of pictures, each made when it is asked for.

    Finished backgrounds are made once and shared, and donors are chosen once among all pictures.

    Args:
        images: (N,3,H,W) in [0,1] or uint8.
        masks: (N,1,H,W) bool; all must be usable for `only_bg_t`.
        labels: (N,) class indices.
        seed: of the donors.
        own_class: see `choose_donors`.

    Attributes:
        backgrounds: (N,3,H,W) `only_bg_t` of each picture.
        donors: (N,) int64 by name of the mixed variants: whose background a picture gets.

    Raises:
        UsageError: tensors that do not fit.
        UserError: a picture is not usable; the message gives its place.
    """

    def __init__(
        self, images: Tensor, masks: Tensor, labels: Tensor | Sequence[int], seed: int = 0, own_class: bool = True
    ) -> None:
        self.images, self.masks, self.boxes = images, masks, boxes(masks)
        _check_tensors(images, masks, "only_bg_t")
        _check_masks(self.boxes, masks, "only_bg_t")
        mixes = [name for name in PAPER if VARIANTS[name].donors]
        self.donors = {name: choose_donors(labels, name, seed, own_class=own_class) for name in mixes}
        self.backgrounds = paper.only_bg_t(Pictures(images, masks, self.boxes))

    def __len__(self) -> int:
        return len(self.images)

    def make(self, name: str, rows: slice | Tensor = slice(None)) -> Tensor:
        """Return one variant of the pictures, or of some of them.

        Args:
            name: one of `PAPER`.
            rows: slice or indices into the pictures.

        Returns:
            (R,3,H,W) of the type of the pictures.
        """
        pick(PAPER, name, "variant of the paper")
        if name == "only_bg_t":
            return self.backgrounds[rows]
        donors = self.backgrounds[self.donors[name][rows]] if name in self.donors else None
        return VARIANTS[name].make(Pictures(self.images[rows], self.masks[rows], self.boxes[rows], donors))


def _check_tensors(images: Tensor, masks: Tensor, name: str) -> None:
    shape = (len(images), 1, *images.shape[2:])
    if images.ndim != 4 or images.shape[1] != 3:
        raise UsageError(f"images are {tuple(images.shape)}; give (B, 3, H, W)")
    if masks.dtype != torch.bool or tuple(masks.shape) != shape:
        raise UsageError(f"masks are {masks.dtype} {tuple(masks.shape)}; give torch.bool {shape}")
    if not images.is_floating_point() and not (name in PAPER and images.dtype == torch.uint8):
        raise UsageError(f"{name} of {images.dtype} images; give floats in [0,1]")


def _check_donors(images: Tensor, donors: Tensor | None, name: str) -> None:
    needed = VARIANTS[name].donors
    if needed and (donors is None or (donors.shape, donors.dtype) != (images.shape, images.dtype)):
        given = "none" if donors is None else f"{donors.dtype} {tuple(donors.shape)}"
        raise UsageError(
            f"{name} needs donors of {images.dtype} {tuple(images.shape)}, given: {given}; take only_bg_t of the "
            "pictures that choose_donors gives"
        )
    if not needed and donors is not None:
        raise UsageError(f"{name} pastes no backgrounds; leave donors out")


def _check_masks(around: Tensor, masks: Tensor, name: str) -> None:
    variant, shares = VARIANTS[name], _box_shares(around, masks)
    cure = "drop it (backgrounds.usable finds such images)"
    if variant.mask and (shares == 0).any():
        place = int((shares == 0).nonzero()[0])
        raise UserError(f"{name}, image {place} of the batch: its mask is empty; {cure} or mend the mask")
    if variant.background and (shares == 1).any():
        place = int((shares == 1).nonzero()[0])
        raise UserError(f"{name}, image {place} of the batch: its box leaves no strip of background; {cure}")


def _box_shares(around: Tensor, masks: Tensor) -> Tensor:
    """Return (B,) the share of the picture that each box fills; 0 where the mask is empty."""
    x0, y0, x1, y1 = around.unbind(1)
    return (x1 - x0) * (y1 - y0) / (masks.shape[2] * masks.shape[3])
