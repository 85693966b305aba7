"""The eight variants of Xiao et al. (section 2 and figure 1), and which picture gives its background to which.

The mask travels with the picture: a black pixel of the product stays product.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from retailkit.config import UsageError, UserError, pick


@dataclass(frozen=True)
class Pictures:
    """A batch that a variant is made of.

    Attributes:
        images: (B,3,H,W).
        masks: (B,1,H,W) bool, True = product.
        boxes: (B,4) of the masks; see `boxes`.
        donors: (B,3,H,W) finished backgrounds, or None.
        seed: of what a variant draws.
    """

    images: Tensor
    masks: Tensor
    boxes: Tensor
    donors: Tensor | None = None
    seed: int = 0


def boxes(masks: Tensor) -> Tensor:
    """Return the smallest boxes around masks.

    Args:
        masks: (B,1,H,W) bool.

    Returns:
        (B,4) int64 on the CPU: x0, y0, x1, y1 in pixels, x1 and y1 just outside; all 0 where the mask is empty.
    """
    planes = masks[:, 0].cpu().numpy()
    ends = []
    for hit in (planes.any(1), planes.any(2)):  # columns, rows
        first, last = hit.argmax(1), hit.shape[1] - hit[:, ::-1].argmax(1)
        ends.append((first, np.where(hit.any(1), last, 0)))
    (x0, x1), (y0, y1) = ends
    return torch.from_numpy(np.stack([x0, y0, x1, y1], axis=1))


def original(pictures: Pictures) -> Tensor:
    """Return the pictures as they are."""
    return pictures.images


def only_bg_b(pictures: Pictures) -> Tensor:
    """Paint the box black."""
    result = pictures.images.clone()
    for image, (x0, y0, x1, y1) in zip(result, pictures.boxes.tolist(), strict=True):
        image[:, y0:y1, x0:x1] = 0
    return result


def only_bg_t(pictures: Pictures) -> Tensor:
    """Fill the box with the background beside it.

    Of the strips of full height or width beside the box the largest is taken (of equal ones the lower before the
    right, the left and the upper, as the authors' generator does). It tiles the picture from the top left corner,
    and the tiles are kept inside the box only.
    """
    result = pictures.images.clone()
    for image, source, box in zip(result, pictures.images, pictures.boxes.tolist(), strict=True):
        x0, y0, x1, y1 = box
        axis, start, length = _largest_strip(box, *source.shape[1:])
        inside = torch.arange(*((x0, x1) if axis == 2 else (y0, y1)))
        tiled = (start + inside % length).to(source.device)
        strip = source[:, y0:y1] if axis == 2 else source[:, :, x0:x1]
        image[:, y0:y1, x0:x1] = strip.index_select(axis, tiled)
    return result


def _largest_strip(box: Sequence[int], height: int, width: int) -> tuple[int, int, int]:
    """Return the axis (2 = beside, 1 = above or below), the start and the length of the strip that tiles."""
    x0, y0, x1, y1 = box
    if max(x0, width - x1) * height > max(y0, height - y1) * width:
        return (2, 0, x0) if x0 > width - x1 else (2, x1, width - x1)
    return (1, 0, y0) if y0 > height - y1 else (1, y1, height - y1)


def no_fg(pictures: Pictures) -> Tensor:
    """Paint the product black."""
    return torch.where(pictures.masks, 0, pictures.images)


def only_fg(pictures: Pictures) -> Tensor:
    """Paint everything but the product black."""
    return torch.where(pictures.masks, pictures.images, 0)


def mixed(pictures: Pictures) -> Tensor:
    """Paste the product onto the background of its donor."""
    return torch.where(pictures.masks, pictures.images, pictures.donors)


# -- Donors.


def choose_donors(
    labels: Tensor | Sequence[int],
    name: str,
    seed: int = 0,
    *,
    own_class: bool = True,
    from_class: int | None = None,
    givers: Tensor | np.ndarray | None = None,
) -> Tensor:
    """Choose for each picture the one whose background it gets (Xiao et al., section 2).

    Args:
        labels: (N,) class indices.
        name: `mixed_same` draws from the own class, `mixed_rand` from a class drawn uniformly, `mixed_next` from
            the next class that gives backgrounds (y + 1, and the first after the last), `generic_paste` from
            `from_class`, whatever the own one is.
        seed: the same labels and seed give the same donors.
        own_class: `mixed_rand` may draw the own class, 1 time in K, as the paper's text has it.
        from_class: the unrelated class of `generic_paste`.
        givers: (N,) bool, the pictures with a background to give; None takes all.

    Returns:
        (N,) int64 indices into `labels`. No picture is its own donor, unless it is the only one of its class to
        give a background.

    Raises:
        UsageError: the variant takes no donors, `from_class` is missing or holds nobody.
        UserError: no picture of a class that is asked for gives a background.
    """
    pick(DONORS, name, "variant with donors")
    labels = np.asarray(labels)
    givers = np.ones(len(labels), dtype=bool) if givers is None else np.asarray(givers)
    classes, rng = np.unique(labels[givers]), np.random.default_rng([seed, zlib.crc32(name.encode())])
    if name == "generic_paste" and from_class not in classes:
        raise UsageError(f"from_class={from_class} gives no background; use one of {', '.join(map(str, classes))}")
    if len(classes) < 2 and (name == "mixed_next" or (name == "mixed_rand" and not own_class)):
        raise UserError(f"{name} takes backgrounds of another class, but only {len(classes)} can give any; add classes")
    targets = {
        "mixed_same": lambda: labels,
        "mixed_rand": lambda: _any_class(rng, labels, classes, own_class),
        "mixed_next": lambda: classes[np.searchsorted(classes, labels, side="right") % len(classes)],
        "generic_paste": lambda: np.full(len(labels), from_class),
    }[name]()
    if len(lost := np.setdiff1d(targets, classes)):
        raise UserError(f"{name}: no picture of class {lost[0]} has a background to give; drop the class or add some")
    return torch.from_numpy(_one_each(rng, labels, targets, givers))


DONORS = ("mixed_same", "mixed_rand", "mixed_next", "generic_paste")


def _any_class(rng: np.random.Generator, labels: np.ndarray, classes: np.ndarray, own_class: bool) -> np.ndarray:
    """Return a class for each label, all equally likely; without the own one where that is asked for."""
    if own_class:
        return classes[rng.integers(len(classes), size=len(labels))]
    own = np.searchsorted(classes, labels)
    known = np.isin(labels, classes)
    drawn = rng.integers(len(classes) - known)
    return classes[drawn + (known & (drawn >= own))]


def _one_each(rng: np.random.Generator, labels: np.ndarray, targets: np.ndarray, givers: np.ndarray) -> np.ndarray:
    """Return for each picture a giver of its target class, not itself where there is another."""
    pool = np.flatnonzero(givers)
    pool = pool[np.argsort(labels[pool], kind="stable")]
    classes, starts, counts = np.unique(labels[pool], return_index=True, return_counts=True)
    rank = np.zeros(len(labels), dtype=np.int64)
    rank[pool] = np.arange(len(pool)) - np.repeat(starts, counts)
    place = np.searchsorted(classes, targets)
    skips = givers & (labels == targets) & (counts[place] > 1)
    drawn = rng.integers(counts[place] - skips)
    return pool[starts[place] + drawn + (skips & (drawn >= rank))]
