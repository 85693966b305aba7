"""Splits as variants show them, to train and to test on like any other split."""

from __future__ import annotations

import copy
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from tqdm.auto import tqdm

from retailkit.backgrounds.masks import degrade, grabcut_of
from retailkit.backgrounds.paper import boxes, choose_donors
from retailkit.backgrounds.variants import PAPER, VARIANTS, PaperVariants, apply_variant, usable
from retailkit.cache import code_fingerprint, digest
from retailkit.config import UsageError, UserError, pick
from retailkit.data.table import ProductDataset, Sample

Recut = tuple[str, float]


class Scenes:
    """The pictures of a split with their product masks, in memory once for all variants.

    Pictures without a mask, and those of which a variant of the paper cannot be made, are left out of all variants,
    so that these can be compared.

    Args:
        split: pictures with masks.
        seed: of donors.
        own_class: see `choose_donors`.
        recut: masks made worse: a key of `masks.DEGRADATIONS` and its amount, or `("grabcut", 0)` for masks that
            GrabCut finds in the boxes of the given ones. None takes them as they are.

    Attributes:
        rows: (N,) of the data set's table, of the pictures that are used.
        left_out: how many are not.
        images: (N,3,size,size) uint8.
        masks: (N,1,size,size) bool.
        labels: (N,) class indices.

    Raises:
        UserError: no picture is usable.
    """

    def __init__(
        self, split: ProductDataset, seed: int = 0, own_class: bool = True, recut: Recut | None = None
    ) -> None:
        self.split, self.seed, self.own_class, self.recut = split, seed, own_class, None
        with_masks = split.rows[(split.table["mask"] != "").to_numpy()]
        plain = split.with_options(rows=with_masks, augment=None, reads=("mask",))
        bar = tqdm(range(len(plain)), desc="read pictures", delay=2, mininterval=2, leave=False)
        samples = [(plain[i].image.mul(255).round().byte(), plain[i].mask) for i in bar]
        if not samples:
            raise UserError(f"no picture of {split.data.name!r} has a product mask; make some with backgrounds.masked")
        images, masks = (torch.stack(part) for part in zip(*samples, strict=True))
        self._hold(with_masks, images, masks, torch.tensor(plain.labels))
        if recut:
            self._cut_again(recut)

    def _hold(self, rows: np.ndarray, images: Tensor, masks: Tensor, labels: Tensor) -> None:
        """Keep the pictures whose mask is of use, and what follows from them."""
        good = usable(masks, "only_bg_t")
        if not good.any():
            how = "changed by {} {:g} ".format(*self.recut) if self.recut else ""
            cure = "use a smaller amount" if self.recut else "check the masks"
            raise UserError(f"masks of {self.split.data.name!r} {how}are empty or leave no background; {cure}")
        self.rows, self.images, self.masks, self.labels = rows[good.numpy()], images[good], masks[good], labels[good]
        self.left_out = len(self.split) - len(self.rows)
        self.__dict__.pop("outlines", None)  # of the masks before
        self._at: dict[int, Scenes] = {}
        self._generic: dict[int | None, Tensor] = {}
        self._paper = PaperVariants(self.images, self.masks, self.labels, self.seed, self.own_class)

    def with_recut(self, how: str, amount: float) -> Scenes:
        """Return the scenes with worse masks, without reading the pictures again; these stay as they are.

        Args:
            how: see `recut` of `Scenes`.
            amount: see `degrade`; GrabCut has none.

        Raises:
            UserError: no mask is left that is of use.
        """
        changed = copy.copy(self)
        changed._cut_again((how, amount))
        return changed

    def _cut_again(self, recut: Recut) -> None:
        self.recut = recut
        self._hold(self.rows, self.images, _recut(self.images, self.masks, recut, self.seed), self.labels)

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def outlines(self) -> str:
        """Return a digest of the masks, to tell cached features apart."""
        return digest(self.masks)

    @property
    def donors(self) -> dict[str, Tensor]:
        """Return (N,) positions of the pictures that give their background, by mixed variant."""
        return self._paper.donors

    @property
    def backgrounds(self) -> Tensor:
        """Return (N,3,size,size) uint8 finished backgrounds: `only_bg_t` of each picture."""
        return self._paper.backgrounds

    def variant(self, name: str, **options: Any) -> VariantSplit:
        """Return the pictures as a variant shows them; `options` are those of `apply_variant`.

        Raises:
            UsageError: an unknown variant or option; the paper's eight have none.
        """
        if options and pick(VARIANTS, name, "variant") in PAPER:
            raise UsageError(f"{name} has no option {next(iter(options))!r}; what its donors may be, Scenes is told")
        return VariantSplit(self, pick(VARIANTS, name, "variant"), options)

    def picture(self, position: int, name: str, options: dict[str, Any]) -> Tensor:
        """Return one picture (3,size,size) uint8 of a variant."""
        row = slice(position, position + 1)
        if name in PAPER:
            return self._paper.make(name, row)[0]
        donors = self._generic_donors(options.get("from_class"))[position] if VARIANTS[name].donors else None
        changed = apply_variant(
            self.images[row].float() / 255,
            self.masks[row],
            name,
            None if donors is None else self.backgrounds[donors][None].float() / 255,
            self.seed,
            **{option: value for option, value in options.items() if option != "from_class"},
        )
        return changed[0].mul(255).round().byte()

    def _generic_donors(self, from_class: int | None) -> Tensor:
        if from_class not in self._generic:
            self._generic[from_class] = choose_donors(self.labels, "generic_paste", self.seed, from_class=from_class)
        return self._generic[from_class]

    def at(self, size: int) -> Scenes:
        """Return the same at another size."""
        if size not in self._at:
            self._at[size] = self._read_at(size)
        return self._at[size]

    def _read_at(self, size: int) -> Scenes:
        return Scenes(self.split.with_options(size=size), self.seed, self.own_class, self.recut)


def _recut(images: Tensor, masks: Tensor, recut: Recut, seed: int) -> Tensor:
    if recut[0] == "grabcut":
        return grabcut_of(images / 255, boxes(masks), seed)[0]
    return degrade(masks, *recut, seed)


class VariantSplit(ProductDataset):
    """A split in one variant; see `Scenes.variant`. Words are left out, as variants move or hide them.

    Augmentation comes after the variant, as if the variant were what the camera saw.
    """

    def __init__(self, scenes: Scenes, name: str, options: dict[str, Any], augment: Any = None) -> None:
        split = scenes.split
        super().__init__(split.data, scenes.rows, split.size, split.fit, augment, split.condition)
        self.scenes, self.name, self.options = scenes, name, options
        scenes.picture(0, name, options)  # a wrong name or option fails here

    def with_options(self, **changes: Any) -> VariantSplit:
        """Return a copy with another `size` or `augment`; `reads` changes nothing."""
        unknown = set(changes) - {"size", "augment", "reads"}
        if unknown:
            raise TypeError(f"a variant cannot change {', '.join(sorted(unknown))}; change the split it is made of")
        size = changes.get("size", self.size)
        scenes = self.scenes if size == self.size else self.scenes.at(size)
        return VariantSplit(scenes, self.name, self.options, changes.get("augment", self.augment))

    @property
    def appearance(self) -> list[Any]:
        """Return what pictures depend on besides their files."""
        own = self.scenes
        return [
            *super().appearance,
            self.name,
            repr(self.options),
            own.seed,
            own.own_class,
            own.outlines,
            code_fingerprint(__name__),
        ]

    def __getitem__(self, position: int) -> Sample:
        parts = {
            "image": tv_tensors.Image(self.scenes.picture(position, self.name, self.options)),
            "mask": tv_tensors.Mask(self.scenes.masks[position]),
        }
        parts = self.augment(parts) if self.augment else parts
        image, mask = parts["image"].as_subclass(Tensor).float() / 255, parts["mask"].as_subclass(Tensor).bool()
        label = int(self.scenes.labels[position])
        mask = None if VARIANTS[self.name].moves else mask
        return Sample(image, label, "", [], mask, None, int(self.rows[position]))
