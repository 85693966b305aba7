"""Images and what lies on them: masks, words, boxes, superpixels."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from skimage.segmentation import find_boundaries

from retailkit.plots.style import AGAINST, BAD, COLOURS, GOOD, array, as_written, axes_of, canvas, literal, rectangle

if TYPE_CHECKING:  # an explorer of plain figures needs no torch, which takes seconds to import
    from retailkit.data.table import ProductDataset, Sample, Word
    from retailkit.metrics import Evaluation

LAYERS = {"mask": "#56B4E9", "twin_patch": "#D55E00", "shadow": "#444444", "reflection": "#CC79A7"}


def image(pixels: Any, title: str = "", ax: Axes | None = None, correct: bool | None = None) -> Axes:
    """Show one image, (3,H,W) in [0,1] or (H,W,3) uint8, without ticks.

    `correct=True` adds a tick to the title and a green frame, False a cross and an orange frame.
    """
    ax = axes_of(ax, (3, 3))
    pixels = np.asarray(pixels)
    ax.imshow(pixels.transpose(1, 2, 0) if pixels.shape[0] == 3 else pixels, interpolation="antialiased")
    ax.autoscale(False)  # boxes of words may overhang
    ax.set_xticks([])
    ax.set_yticks([])
    sign, colour = ("", None) if correct is None else ("✓ ", GOOD) if correct else ("✗ ", BAD)
    for spine in ax.spines.values():
        spine.set_visible(colour is not None)
        spine.set(color=colour or "none", linewidth=2.5)
    ax.set_title(sign + title, fontsize=8, fontweight="normal", color=colour or "black")
    return literal(ax)


def contact_sheet(
    images: Sequence[Any],
    titles: Sequence[str] | None = None,
    columns: int = 6,
    width: float = 12,
    correct: Sequence[bool | None] | None = None,
    title: str = "",
) -> Figure:
    """Lay images out in a grid `width` inches wide; None leaves a place empty, `correct` is as in `image`."""
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    cell = width / columns
    titles = ["\n".join(textwrap.fill(line, int(12 * cell)) for line in t.split("\n")) for t in titles or []]
    lines = max((t.count("\n") + 1 for t in titles), default=0)
    figure, grid = plt.subplots(rows, columns, figsize=(width, rows * (cell + 0.15 * lines)), squeeze=False)
    for i, ax in enumerate(grid.flat):
        if i < len(images) and images[i] is not None:
            image(images[i], titles[i] if titles else "", ax, None if correct is None else correct[i])
        else:
            ax.set_visible(False)
    if title:
        as_written(figure.suptitle(title, fontsize=12, fontweight="bold"))
    return figure


def sample_sheet(dataset: ProductDataset, positions: Sequence[int], columns: int = 6, **options: Any) -> Figure:
    """Lay out samples of a split with their class names."""
    samples = [dataset[int(i)] for i in positions]
    titles = [dataset.classes[s.label] for s in samples]
    return contact_sheet([s.image for s in samples], titles, columns, **options)


def outline(mask: Any, colour: str, ax: Axes) -> Axes:
    """Draw the border of a bool mask (H,W) or (1,H,W)."""
    mask = np.asarray(mask).reshape(np.asarray(mask).shape[-2:])
    line = ListedColormap(["none", colour])
    ax.imshow(find_boundaries(mask, mode="inner"), cmap=line, interpolation="nearest", vmin=0, vmax=1)
    return ax


def words(found: Sequence[Word], ax: Axes, colour: str = COLOURS[2], label: bool = True) -> Axes:
    """Draw word boxes with their text above, discriminative words in orange."""
    for word in visible(found):
        x0, y0, *_ = word.box
        shade = BAD if word.discriminative else colour
        rectangle(word.box, ax, fill=False, edgecolor=shade, linewidth=1.2)
        if label:
            box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.6}
            as_written(ax.text(x0, y0 - 1, word.text, fontsize=6, color=shade, va="bottom", bbox=box, clip_on=True))
    return ax


def visible(found: Sequence[Word]) -> list[Word]:
    """Return the words whose boxes have an area; hidden words have none."""
    return [word for word in found if word.box[2] > word.box[0] and word.box[3] > word.box[1]]


def boxes(
    pixels: Any, corners: Any, labels: Any = None, classes: Sequence[str] = (), ax: Axes | None = None, title: str = ""
) -> Axes:
    """Draw boxes (N,4) over an image: ranked regions, or the products of a scene in one colour per class.

    `labels` (N,) count from 1: label k is named by the first word of `classes[k - 1]`. None numbers the boxes, which
    may overhang the image, from the first.
    """
    ax, shades = image(pixels, title, ax), [*COLOURS[:4], *COLOURS[5:]]  # no two blues
    corners = array(corners).reshape(-1, 4)
    if labels is None:
        names, colours = range(1, len(corners) + 1), [BAD] * len(corners)
    else:
        names = [classes[int(k) - 1].split()[0].lower() for k in labels]
        colours = [shades[(int(k) - 1) % len(shades)] for k in labels]
    for box, name, colour in zip(corners, names, colours, strict=True):
        rectangle(box, ax, fill=False, edgecolor=colour, linewidth=2)
        ax.text(max(box[0], 0), max(box[1], 0), str(name), fontsize=7, color="white", va="top",
                bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.8})  # fmt: skip
    return literal(ax)


def parts(
    pixels: Any,
    segments: np.ndarray,
    read: Sequence[Word],
    hidden: Sequence[int] = (),
    unread: Sequence[Word] = (),
    ax: Axes | None = None,
    title: str = "",
) -> Axes:
    """Show an image with thin borders of its superpixels (H,W) and words; what is hidden or unread is crossed out."""
    ax = image(pixels, title, axes_of(ax, (4, 4)))
    for label in np.unique(segments)[1:]:
        ax.contour(segments == label, [0.5], colors="white", linewidths=0.7, alpha=0.6)
    if hidden:
        off = np.isin(segments, list(hidden)).astype(float)
        ax.contourf(off, levels=[0.5, 1.5], colors="none", hatches=["///"])
    for word in visible(read):
        rectangle(word.box, ax, fill=False, edgecolor=COLOURS[0], linewidth=1.5)
    for word in visible(unread):
        x0, y0, x1, y1 = word.box
        rectangle(word.box, ax, fill=False, edgecolor=BAD, linewidth=1.5)
        ax.plot([x0, x1], [y1, y0], color=BAD, linewidth=1.5)
    return ax


def strip(images: Sequence[Any], chosen: int = -1, side: int = 118) -> Axes:
    """Lay images (3,H,W) of one size side by side, each `side` pixels wide; the chosen one has a blue frame."""
    import torch
    from torchvision.utils import make_grid

    grid = make_grid([torch.as_tensor(i) for i in images], nrow=len(images), padding=2, pad_value=0.5)
    step = (grid.shape[2] - 2) / len(images)
    ax = image(grid, "", canvas(side * len(images), side))
    ax.set_aspect("auto")
    if chosen >= 0:
        rectangle((chosen * step, 0, (chosen + 1) * step, step), ax, fill=False, edgecolor=AGAINST, linewidth=5)
    return ax


def ground_truth(sample: Sample, ax: Axes | None = None, legend: bool = True) -> Axes:
    """Draw what is known of a rendered image: product, discriminative patch, shadow, reflection and words."""
    import torch
    from torchvision.utils import draw_segmentation_masks

    layers = {"mask": sample.mask}
    if sample.truth is not None:
        layers |= {name: getattr(sample.truth, name) for name in ("shadow", "reflection", "twin_patch")}
    shown = {name: torch.as_tensor(m) for name, m in layers.items() if m is not None and bool(np.asarray(m).any())}
    pixels = torch.as_tensor(sample.image)
    for name in shown.keys() - {"mask"}:
        pixels = draw_segmentation_masks(pixels, shown[name][0], alpha=0.3, colors=LAYERS[name])
    ax = image(pixels, "", axes_of(ax, (4, 4)))
    for name, mask in shown.items():
        outline(mask, LAYERS[name], ax)
    if sample.truth is not None:
        words(sample.truth.words, ax, label=False)
    if legend:
        names = {"mask": "product", "twin_patch": "differs between twins"}
        handles = [Patch(color=LAYERS[n], label=names.get(n, n)) for n in shown]
        ax.legend(handles=handles, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=2)
    return ax


def confusion_pairs(evaluation: Evaluation, dataset: ProductDataset, pairs: int = 4) -> Figure:
    """Show the most confused pairs of classes: misclassified images beside typical ones of the other class.

    A row is a pair. The typical image of a class is the one that the model is most sure of.
    """
    table, images, titles = evaluation.confusion_pairs(pairs), [], []
    for row in table.itertuples():
        a, b = evaluation.classes.index(row.first), evaluation.classes.index(row.second)
        for true, other in ((a, b), (b, a)):
            missed = np.flatnonzero((evaluation.labels == true) & (evaluation.predicted == other))
            if not len(missed):
                images, titles = [*images, None, None], [*titles, "", ""]
                continue
            typical = np.flatnonzero(evaluation.labels == other)
            worst = missed[evaluation.probs[missed, other].argmax()]
            best = typical[evaluation.probs[typical, other].argmax()] if len(typical) else worst
            name, wrong = evaluation.classes[true], evaluation.classes[other]
            images += [dataset[int(worst)].image, dataset[int(best)].image]
            titles += [f"{name}\nclassified as the one to the right, p = {evaluation.probs[worst, other]:.2f}"]
            titles += [f"{wrong}\na typical image"]
    return contact_sheet(images, titles, 4, 11, [None if k is None else i % 2 > 0 for i, k in enumerate(images)])
