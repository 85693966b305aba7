"""The drawing layer: data in, Axes out. Nothing here reads files, computes results or opens a window.

One style for the whole workbook, readable for colour-blind people: `COLOURS` (Okabe and Ito 2008) for categories,
`cividis` for amounts, and a blue-to-orange scale for signed values, symmetric around zero: orange speaks for a class,
blue against it. Notebooks call `use_style()` once.

Throughout, `pixels` is an image (3,H,W) in [0,1], boxes are x0, y0, x1, y1 in its pixels, and `ax` is where to draw;
None makes a figure. Class names, OCR words and file names come from users: what draws them ends with `literal`.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.text import Text
from scipy.ndimage import gaussian_filter
from skimage.segmentation import find_boundaries
from torchvision.utils import draw_segmentation_masks, make_grid

from retailkit.data.table import ProductDataset, Sample, Word
from retailkit.metrics import Evaluation

if TYPE_CHECKING:  # drawing an explanation does not need what makes it
    from retailkit.explain.classes import ClassExplanation
    from retailkit.explain.lime import LocalExplanation

COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#444444"]
GOOD, BAD, QUIET = "#009E73", "#D55E00", "#8A8F98"
FOR, AGAINST = "#D55E00", "#0072B2"  # ends of the signed scale
SIGNED = LinearSegmentedColormap.from_list("signed", [AGAINST, "#F7F7F7", FOR])
SIGNS = {"above zero": (GOOD, "o"), "below zero": (BAD, "X"), "not decided": (QUIET, "D")}  # of an interval
VERDICTS = {"as claimed": (GOOD, "o"), "the opposite": (BAD, "X"), "not decided": (QUIET, "D")}
WEAK = 0.3  # a surrogate with a lower held-out R² is only a hint
COSTS = {"minutes": "training, min", "ms": "ms per image", "MB": "MB"}  # of one step of an ablation
LAYERS = {"mask": "#56B4E9", "twin_patch": "#D55E00", "shadow": "#444444", "reflection": "#CC79A7"}


def use_style() -> None:
    """Set the workbook's style for the current session."""
    sns.set_theme(style="white", palette=COLOURS, context="notebook")
    plt.rcParams.update(
        {
            "figure.dpi": 80,
            "savefig.dpi": 100,
            "figure.constrained_layout.use": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": 11,
            "axes.titleweight": "bold",
            "axes.labelsize": 10,
            "xtick.labelsize": 9,
            "ytick.labelsize": 9,
            "legend.frameon": False,
            "font.size": 10,
        }
    )


def literal(ax: Axes) -> Axes:
    """Make `ax` draw all its texts as they are written: a `$` in a class name or an OCR word starts no formula."""
    for text in ax.findobj(Text):
        text.set_parse_math(False)
    return ax


def png(figure: Figure, dpi: int = 80) -> bytes:
    """Return `figure` as PNG bytes and close it."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=dpi)
    plt.close(figure)
    return stream.getvalue()


def canvas(width: int, height: int | None = None) -> Axes:
    """Return an Axes that fills a figure of `width` x `height` pixels at 100 dpi, for `png(ax.figure, 100)`.

    The figure is not known to pyplot, so that threads may draw on one each.
    """
    figure = Figure(figsize=(width / 100, (height or width) / 100))
    return figure.add_axes((0, 0, 1, 1))


def _axes(ax: Axes | None, size: tuple[float, float] = (6, 4)) -> Axes:
    return ax if ax is not None else plt.subplots(figsize=size)[1]


def _numbers(values: Any) -> np.ndarray:
    """Return a tensor or an array as float64."""
    return np.asarray(values.detach().cpu().numpy() if hasattr(values, "detach") else values, dtype=float)


# -- Images


def image(pixels: Any, title: str = "", ax: Axes | None = None, correct: bool | None = None) -> Axes:
    """Show one image, (3,H,W) in [0,1] or (H,W,3) uint8, without ticks.

    `correct=True` adds a tick to the title and a green frame, False a cross and an orange frame.
    """
    ax = _axes(ax, (3, 3))
    pixels = np.asarray(pixels)
    ax.imshow(pixels.transpose(1, 2, 0) if pixels.shape[0] == 3 else pixels, interpolation="antialiased")
    ax.set_xticks([])
    ax.set_yticks([])
    sign, colour = {True: ("✓ ", GOOD), False: ("✗ ", BAD), None: ("", None)}[
        correct if correct is None else bool(correct)
    ]
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
    if not len(images):
        raise ValueError("a contact sheet needs at least one image")
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
        figure.suptitle(title, fontsize=12, fontweight="bold", parse_math=False)
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
    for word in _visible(found):
        x0, y0, *_ = word.box
        shade = BAD if word.telling else colour
        _rectangle(word.box, ax, fill=False, edgecolor=shade, linewidth=1.2)
        if label:
            box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.6}
            ax.text(x0, y0 - 1, word.text, fontsize=6, color=shade, va="bottom", bbox=box, clip_on=True,
                    parse_math=False)  # fmt: skip
    return ax


def boxes(
    pixels: Any, corners: Any, labels: Any = None, classes: Sequence[str] = (), ax: Axes | None = None, title: str = ""
) -> Axes:
    """Draw boxes (N,4) over an image: ranked regions, or the products of a scene in one colour per class.

    `labels` (N,) count from 1: label k is named by the first word of `classes[k - 1]`. None numbers the boxes, which
    may overhang the image, from the first.
    """
    ax, shades = image(pixels, title, ax), [*COLOURS[:4], *COLOURS[5:]]  # no two blues
    corners = _numbers(corners).reshape(-1, 4)
    if labels is None:
        names, colours = range(1, len(corners) + 1), [BAD] * len(corners)
    else:
        names = [classes[int(k) - 1].split()[0].lower() for k in labels]
        colours = [shades[(int(k) - 1) % len(shades)] for k in labels]
    height, width = np.asarray(pixels).shape[1:]
    for box, name, colour in zip(corners, names, colours, strict=True):
        _rectangle(box, ax, fill=False, edgecolor=colour, linewidth=2)
        ax.text(max(box[0], 0), max(box[1], 0), str(name), fontsize=7, color="white", va="top",
                bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.8})  # fmt: skip
    ax.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    return literal(ax)


def _visible(found: Sequence[Word]) -> list[Word]:
    """Return the words whose boxes have an area; hidden words have none."""
    return [word for word in found if word.box[2] > word.box[0] and word.box[3] > word.box[1]]


def _rectangle(box: Any, ax: Axes, **style: Any) -> None:
    x0, y0, x1, y1 = box
    ax.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, **style))


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
    ax = image(pixels, title, _axes(ax, (4, 4)))
    line = ListedColormap(["none", "white"])
    ax.imshow(find_boundaries(segments, mode="inner"), cmap=line, alpha=0.4, interpolation="nearest", vmin=0, vmax=1)
    if hidden:
        off = np.isin(segments, list(hidden)).astype(float)
        ax.contourf(off, levels=[0.5, 1.5], colors="none", hatches=["///"])
    for word in _visible(read):
        _rectangle(word.box, ax, fill=False, edgecolor=COLOURS[0], linewidth=1.5)
    for word in _visible(unread):
        x0, y0, x1, y1 = word.box
        _rectangle(word.box, ax, fill=False, edgecolor=BAD, linewidth=1.5)
        ax.plot([x0, x1], [y1, y0], color=BAD, linewidth=1.5)
    return ax


def strip(images: Sequence[Any], chosen: int = -1, side: int = 118) -> Axes:
    """Lay images (3,H,W) of one size side by side, each `side` pixels wide; the chosen one has a blue frame."""
    grid = make_grid([torch.as_tensor(i) for i in images], nrow=len(images), padding=2, pad_value=0.5)
    step = (grid.shape[2] - 2) / len(images)
    ax = image(grid, "", canvas(side * len(images), side))
    ax.set_aspect("auto")
    if chosen >= 0:
        _rectangle((chosen * step, 0, (chosen + 1) * step, step), ax, fill=False, edgecolor=AGAINST, linewidth=5)
    return ax


def ground_truth(sample: Sample, ax: Axes | None = None, legend: bool = True) -> Axes:
    """Draw what is known of a rendered image: product, discriminative patch, shadow, reflection and words."""
    layers = {"mask": sample.mask}
    if sample.truth is not None:
        layers |= {name: getattr(sample.truth, name) for name in ("shadow", "reflection", "twin_patch")}
    shown = {name: torch.as_tensor(m) for name, m in layers.items() if m is not None and bool(np.asarray(m).any())}
    pixels = torch.as_tensor(sample.image)
    for name in shown.keys() - {"mask"}:
        pixels = draw_segmentation_masks(pixels, shown[name][0], alpha=0.3, colors=LAYERS[name])
    ax = image(pixels, "", _axes(ax, (4, 4)))
    for name, mask in shown.items():
        outline(mask, LAYERS[name], ax)
    if sample.truth is not None:
        words(sample.truth.words, ax, label=False)
    if legend:
        names = {"mask": "product", "twin_patch": "differs between twins"}
        handles = [Patch(color=LAYERS[n], label=names.get(n, n)) for n in shown]
        ax.legend(handles=handles, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=2)
    return ax


# -- Numbers: bars, dots with intervals, lines and grids


def _bars(ax: Axes, names: Sequence[str], values: Any, colours: Any, low: Any = None, high: Any = None) -> Axes:
    """Draw one horizontal bar per row, the first on top, with its interval where `low` and `high` are given."""
    values, at = _numbers(values), np.arange(len(names))
    ax.barh(at, values, color=colours, height=0.7)
    if low is not None:
        ax.errorbar(values, at, xerr=np.abs(np.vstack([values - _numbers(low), _numbers(high) - values])), fmt="none",
                    ecolor="#333333", elinewidth=1.2, capsize=3)  # fmt: skip
    ax.set_yticks(at, names)
    ax.set_ylim(len(names) - 0.4, -0.6)
    return literal(ax)


def accuracy_bars(table: pd.DataFrame, ax: Axes | None = None, chance: float | None = None) -> Axes:
    """Draw `accuracy` with its interval, one bar per row of columns `name`, `accuracy`, `low` and `high`."""
    ax = _axes(ax, (7, 0.42 * len(table) + 1.2))
    _bars(ax, table["name"], table["accuracy"], COLOURS[0], table["low"], table["high"])
    for y, row in enumerate(table.itertuples()):
        ax.text(row.high + 0.012, y, f"{row.accuracy:.3f}", va="center", fontsize=8)
    if chance is not None:
        ax.axvline(chance, color=QUIET, linestyle=":")
        ax.text(chance, -0.6, "chance", color=QUIET, fontsize=8, ha="center", va="bottom")
    ax.set(xlim=(0, min(1.1, 1.12 * float(table["high"].max())) or 1.0), xlabel="accuracy (95 % interval)")
    return ax


def intervals(
    table: pd.DataFrame,
    value: str = "difference",
    xlabel: str = "",
    by: str = "",
    looks: Mapping[str, tuple[str, str]] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the column `value` as dots with their intervals; rows of one name share a line.

    Args:
        table: columns `name`, `low`, `high` (NaN for no interval), `value`, and `n` if it is to be written.
        value: column to draw.
        xlabel: below the axis.
        by: column that colours the dots and labels them for a legend. "" colours differences by their sign: green
            where the interval lies above zero, orange where below, grey where it holds zero.
        looks: colour and marker of each value of `by`; None takes the palette and dots.
        ax: where to draw.
    """
    names = list(dict.fromkeys(table["name"]))
    ax = _axes(ax, (9, 0.32 * len(names) + 1.2))
    if by:
        kind = table[by]
        looks = looks or {k: (colour, "o") for k, colour in zip(kind.unique(), _palette(kind.nunique()), strict=True)}
    else:
        kind, looks = np.select([table["low"] > 0, table["high"] < 0], list(SIGNS)[:2], "not decided"), SIGNS
    several = len(names) < len(table)
    groups = table.assign(_kind=kind).groupby("_kind", sort=False)
    for (key, part), shift in zip(groups, np.linspace(-0.14, 0.14, len(groups)), strict=True):
        colour, marker = looks.get(key, (QUIET, "D"))
        y = np.array([names.index(name) for name in part["name"]]) + several * shift
        ax.hlines(y, part["low"], part["high"], color=colour, linewidth=2)
        ax.plot(part[value], y, marker, color=colour, linestyle="none", markersize=5, label=key if by else None)
    if not by:
        ax.axvline(0, color=QUIET, linestyle=":")
        for y, n in enumerate(table.get("n", ())):
            ax.text(1.01, y, f"n = {n}", transform=ax.get_yaxis_transform(), fontsize=8, va="center")
    ax.set_yticks(range(len(names)), names, fontsize=8)
    ax.set(xlabel=xlabel, ylim=(len(names) - 0.5, -0.5))
    return literal(ax)


def _palette(count: int) -> list[Any]:
    """Return `count` colours, again from the first where they run out."""
    return list(sns.color_palette(COLOURS, count))


def ablation(table: pd.DataFrame, chance: float | None = None) -> Figure:
    """Draw an ablation: how accurate each step is, what it gains over the one before, and what it costs in all.

    One row per step: columns `name`, `accuracy`, `low`, `high`, `gain`, `gain_low`, `gain_high` (NaN in the first row),
    and those of `COSTS` that are known.
    """
    costs = [name for name in COSTS if name in table]
    widths = [3, 2.2, *[1] * len(costs)]
    figure, axes = plt.subplots(1, len(widths), width_ratios=widths, figsize=(12, 0.42 * len(table) + 1.2))
    accuracy_bars(table, axes[0], chance)
    gains = table[["name"]].assign(difference=table["gain"], low=table["gain_low"], high=table["gain_high"])
    intervals(gains, xlabel="gain of the step (95 % interval)", ax=axes[1])
    for ax, cost in zip(axes[2:], costs, strict=True):
        _bars(ax, table["name"], table[cost], QUIET)
        ax.bar_label(ax.containers[0], fmt="%.3g", fontsize=8, padding=2)
        ax.set(xlabel=COSTS[cost], xticks=[], xlim=(0, 1.5 * float(table[cost].max()) or 1.0))
    for ax in axes[1:]:
        ax.set(yticks=[], ylim=axes[0].get_ylim())
    return figure


def curves(
    table: pd.DataFrame,
    x: str,
    xlabel: str = "",
    ax: Axes | None = None,
    y: str = "accuracy",
    by: str = "name",
    marker: str | None = "o",
) -> Axes:
    """Draw column `y` against `x`, one line per value of `by`, with a band from `low` to `high` if there."""
    ax, colours = _axes(ax, (5.5, 3.6)), _palette(table[by].nunique())
    sns.lineplot(table, x=x, y=y, hue=by, palette=colours, marker=marker, errorbar=None, legend=False, ax=ax)
    for line, (name, part), colour in zip(
        ax.lines[-len(colours) :], table.groupby(by, sort=False), colours, strict=True
    ):
        line.set_label(name)
        if "low" in part:
            ax.fill_between(part[x], part["low"], part["high"], color=colour, alpha=0.12, linewidth=0)
    ax.set(xlabel=xlabel or x, ylabel=y)
    if y == "accuracy":
        ax.set(ylabel="accuracy (95 % interval)" if "low" in table else y, ylim=(0, 1))
    ax.legend(fontsize=8)
    return literal(ax)


def learning_curves(
    histories: Mapping[str, pd.DataFrame],
    columns: Mapping[str, str],
    axes: Sequence[Axes],
    x: str = "epoch",
    smooth: float = 0.0,
) -> Sequence[Axes]:
    """Draw training histories, one Axes per column and one line per run; a dot marks the epoch that was kept.

    Args:
        histories: name of the run -> columns `x` and those of `columns`. Rows of one x, such as seeds, are averaged.
        columns: column -> title of its Axes; a run that lacks the column is left out there.
        axes: where to draw.
        x: column on the horizontal axis.
        smooth: share of the run over which a line is averaged, 0 for none.
    """
    for ax, (column, title) in zip(axes, columns.items(), strict=False):
        lines = {name: epochs.groupby(x)[column].mean() for name, epochs in histories.items() if column in epochs}
        if smooth:
            lines = {n: v.rolling(max(1, int(smooth * len(v))), 1, center=True).mean() for n, v in lines.items()}
        together = pd.concat(lines, names=["run"]).reset_index()
        curves(together, x, x, ax, column, "run", marker=None)
        ax.set(title=title, ylabel="")
        if column == "val_top1":
            for line in list(ax.lines):
                epochs = histories[line.get_label()]
                best = epochs[epochs["val_top1"] == epochs["val_top1"].max()]
                kept = best.loc[best["val_loss"].idxmin()] if "val_loss" in best else best.iloc[0]
                ax.plot(kept[x], kept["val_top1"], "o", color=line.get_color(), markersize=6)
    return axes


def reliability(evaluations: Mapping[str, Evaluation], bins: int = 10, ax: Axes | None = None) -> Axes:
    """Draw accuracy against confidence, bin by bin (Guo et al. 2017, figure 1)."""
    ax = _axes(ax, (4.6, 4.4))
    tables = {f"{n} (error {e.calibration_error(bins):.3f})": e.reliability(bins) for n, e in evaluations.items()}
    table = pd.concat(tables, names=["name"]).reset_index("name")[["name", "confidence", "accuracy"]]
    curves(table.dropna(), "confidence", "confidence", ax)
    ax.plot([0, 1], [0, 1], color=QUIET, linestyle=":", label="perfectly calibrated", zorder=0)
    ax.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy", title="reliability")
    ax.legend(loc="upper left", fontsize=8)
    return ax


def accuracy_grid(table: pd.DataFrame, rows: str, columns: str, ax: Axes | None = None) -> Axes:
    """Draw the column `accuracy` as a grid of numbers; `rows` and `columns` name the columns of its two sides."""
    grid = table.pivot(index=rows, columns=columns, values="accuracy")
    grid = grid.reindex(index=table[rows].unique(), columns=table[columns].unique())
    ax = _axes(ax, (1.6 * grid.shape[1] + 2.5, 0.34 * len(grid) + 1))
    return _heatmap(grid, grid.index, grid.columns, ax, "accuracy", annot=True, fmt=".2f", annot_kws={"fontsize": 8})


def confusion(evaluation: Evaluation, groups: Sequence[str] | None = None, ax: Axes | None = None) -> Axes:
    """Draw the confusion matrix as shares of each true class; classes of one group stand together in a frame."""
    families = np.asarray(groups if groups is not None else [""] * len(evaluation.classes))
    order = np.lexsort((evaluation.classes, families))
    counts = evaluation.confusion[np.ix_(order, order)]
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    labels = [evaluation.classes[i].title() for i in order] if len(order) <= 40 else []
    ax = _heatmap(shares, labels, [], _axes(ax, (7.2, 6.4)), "share of the true class", square=True)
    for family in np.unique(families[families != ""]):
        start, length = np.flatnonzero(families[order] == family)[0], int((families == family).sum())
        _rectangle((start, start, start + length, start + length), ax, fill=False, edgecolor="white", linewidth=1.6)
    ax.set(xlabel="predicted", ylabel="true")
    return ax


def _heatmap(values: Any, rows: Sequence[str], columns: Sequence[str], ax: Axes, label: str, **options: Any) -> Axes:
    """Draw shares as a heat map. Names are set here, since seaborn measures its own before they can be made literal."""
    sns.heatmap(values, cmap="cividis", vmin=0, vmax=1, ax=ax, xticklabels=False, yticklabels=False,
                cbar_kws={"label": label}, **options)  # fmt: skip
    ax.set_yticks(np.arange(len(rows)) + 0.5, rows, fontsize=8)
    ax.set_xticks(np.arange(len(columns)) + 0.5, columns)
    ax.set(xlabel="", ylabel="")
    return literal(ax)


def confusion_pairs(evaluation: Evaluation, dataset: ProductDataset, pairs: int = 4, width: float = 11) -> Figure:
    """Show the most confused pairs of classes: misclassified images beside typical ones of the other class.

    A row is a pair. The typical image of a class is the one that the model is most sure of.
    """
    table, images, titles = evaluation.confusion_pairs(pairs), [], []
    if table.empty:
        raise ValueError("no confused pair: every image was classified correctly")
    for row in table.itertuples():
        a, b = evaluation.classes.index(row.first), evaluation.classes.index(row.second)
        for true, other in ((a, b), (b, a)):
            missed = np.flatnonzero((evaluation.labels == true) & (evaluation.predicted == other))
            typical = np.flatnonzero(evaluation.labels == other)
            if not len(missed):
                images, titles = [*images, None, None], [*titles, "", ""]
                continue
            worst = missed[evaluation.probs[missed, other].argmax()]
            best = typical[evaluation.probs[typical, other].argmax()] if len(typical) else worst
            name, wrong = evaluation.classes[true], evaluation.classes[other]
            images += [dataset[int(worst)].image, dataset[int(best)].image]
            titles += [f"{name}\nclassified as the one to the right, p = {evaluation.probs[worst, other]:.2f}"]
            titles += [f"{wrong}\na typical image"]
    return contact_sheet(images, titles, 4, width, [None if k is None else i % 2 > 0 for i, k in enumerate(images)])


def probabilities(
    probs: Any, classes: Sequence[str], true: int | None = None, ax: Axes | None = None, top: int = 5
) -> Axes:
    """Draw the `top` of K probabilities as bars; the class of index `true` is green and has a tick."""
    ax, probs = _axes(ax, (5, 3)), _numbers(probs)
    order = np.argsort(-probs)[:top]
    names = [("✓ " if i == true else "") + classes[i] for i in order]
    _bars(ax, names, probs[order], [GOOD if i == true else QUIET for i in order])
    ax.set(xlim=(0, 1), xlabel="probability")
    ax.tick_params(axis="y", labelsize=8)
    return ax


def before_after(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw probabilities after a change as bars, before it as black lines: `model`, `label`, `before`, `after`.

    The first label is that of the class, in orange, the second that of its contrast class, in blue.
    """
    ax = _axes(ax, (5, 4))
    of = {"y": "model", "hue": "label", "ax": ax}
    sns.barplot(table, x="after", palette=[FOR, AGAINST], **of)
    sns.stripplot(table, x="before", dodge=True, jitter=False, marker="|", size=16, linewidth=2, legend=False,
                  palette=["black"] * 2, **of)  # fmt: skip
    ax.set(xlim=(0, 1), xlabel="probability; black line: before the change", ylabel="")
    ax.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1))
    return literal(ax)


# -- Explanations: orange speaks for the class, blue against it, on one symmetric scale


def attribution(
    pixels: Any,
    attr: Any,
    ax: Axes | None = None,
    limit: float | None = None,
    title: str = "",
    blur: float = 0.0,
) -> Axes:
    """Lay a signed attribution (H,W) over an image (3,H,W) that is paled to grey.

    Args:
        pixels: (3,H,W) in [0,1].
        attr: (H,W) signed.
        ax: where to draw.
        limit: value of the full colour on both sides; None takes the strength that one pixel in 200 exceeds, so that a
            few extreme pixels do not pale all others. Share it across a grid.
        title: above the image.
        blur: standard deviation in pixels by which the map is blurred first: gradients of single pixels are too fine
            to see. A blur keeps signs, so that neighbours of opposite signs cancel.
    """
    attr = gaussian_filter(_numbers(attr), blur)
    strength = np.abs(attr)
    limit = limit or float(np.quantile(strength, 0.995)) or float(strength.max())
    ax = image(_paled(pixels), title if limit else f"{title} (no effect anywhere)", ax)
    if limit:
        ax.imshow(attr, cmap=SIGNED, vmin=-limit, vmax=limit, alpha=0.85 * np.clip(strength / limit, 0, 1))
    return ax


def word_attributions(
    pixels: Any,
    found: Sequence[Word],
    values: Any,
    ax: Axes | None = None,
    limit: float | None = None,
    title: str = "",
) -> Axes:
    """Tint N words on an image by their signed values (N,); `limit` is as in `attribution`, None the largest."""
    values = _numbers(values)
    limit = limit or float(np.abs(values).max(initial=0.0))
    ax = image(_paled(pixels), title if limit else f"{title} (no effect anywhere)", _axes(ax, (4, 4)))
    _tint_words(found, values, ax, limit)
    return ax


def _tint_words(found: Sequence[Word], values: Any, ax: Axes, limit: float) -> None:
    for word, value in zip(found, values, strict=True):
        for shown in _visible([word]):
            shade = (*_shade(value, limit)[:3], 0.85 * min(1.0, abs(value) / limit) if limit else 0.0)
            _rectangle(shown.box, ax, facecolor=shade, edgecolor="#333333", linewidth=0.8)


def _shade(value: float, limit: float) -> tuple[float, ...]:
    """Return the colour (red, green, blue, 1) of a value on the signed scale that ends at `limit`."""
    return SIGNED(0.5 + 0.5 * float(np.clip(value / limit, -1, 1)) if limit else 0.5)


def _paled(pixels: Any) -> np.ndarray:
    """Return an image (3,H,W) in light grey, for colours to lie on."""
    return np.repeat(0.35 + 0.65 * _numbers(pixels).mean(0, keepdims=True), 3, 0)


def window_map(
    pixels: Any, corners: Any, contributions: Any, ax: Axes | None = None, title: str = "", top: int = 3
) -> Axes:
    """Lay the contributions (N,) of LCA's windows (N,4) over an image and frame the `top` of them.

    Each contribution to the logit of the class is spread evenly over its window.
    """
    corners, contributions = np.asarray(corners), _numbers(contributions)
    spread = np.zeros(np.asarray(pixels).shape[1:])
    for (x0, y0, x1, y1), c in zip(corners, contributions, strict=True):
        spread[y0:y1, x0:x1] += c / ((x1 - x0) * (y1 - y0))
    ax = attribution(pixels, spread, ax, title=title)
    for box in corners[np.argsort(-contributions)[:top]]:
        _rectangle(box, ax, fill=False, edgecolor=FOR, linewidth=1.4)
    return ax


def explanation_map(
    explanation: LocalExplanation, row: int = 0, ax: Axes | None = None, pixels: Any = None, title: str = ""
) -> Axes:
    """Lay the weights of superpixels and words over the image, on one scale that ends at the strongest of them.

    `pixels` is the image to show under the words of a model that only reads, which has none of its own.
    """
    limit, shown = strongest(explanation, row), explanation.image if explanation.image is not None else pixels
    heat = explanation.heat(row) if explanation.image is not None else np.zeros(shown.shape[-2:])
    ax = attribution(shown, heat, ax, limit or 1.0, title)
    for token, weight in zip(explanation.tokens, explanation.text_weights[row], strict=True):
        _tint_words(token.words, [weight] * len(token.words), ax, limit)
    return ax


def strongest(explanation: LocalExplanation, row: int = 0) -> float:
    """Return the largest absolute weight of any superpixel or word: the full colour. 0 where there is none."""
    weights = np.concatenate([explanation.image_weights[row], explanation.text_weights[row]])
    return float(np.abs(weights).max(initial=0))


def local_explanation(
    explanation: LocalExplanation, row: int = 0, axes: Sequence[Axes] | None = None, pixels: Any = None
) -> Figure:
    """Show why a model prefers a class to its contrast class: superpixels, words, and how far to trust it.

    `row` is that of the explained class, `axes` are two, for the image and the words; `pixels` is as in
    `explanation_map`.
    """
    if axes is None:
        axes = plt.subplots(1, 2, figsize=(9, 4.2), width_ratios=(1, 1.1))[1]
    names = [explanation.classes[i] for i in (explanation.explained[row], explanation.contrasts[row]) if i >= 0]
    title = "\nrather than ".join(names)
    if explanation.image is None and pixels is None:
        axes[0].set_axis_off()
        axes[0].set_title(title, fontsize=8, fontweight="normal", parse_math=False)
    else:
        explanation_map(explanation, row, axes[0], pixels, title)
    word_bars(explanation, row, axes[1])
    return axes[0].figure


def local_explanations(found: Mapping[str, tuple[Any, LocalExplanation]]) -> Figure:
    """Draw explanations side by side, maps above words: name -> the image (3,H,W) and its explanation."""
    figure, axes = plt.subplots(2, len(found), figsize=(4.3 * len(found), 7.2), squeeze=False)
    for (name, (pixels, explanation)), column in zip(found.items(), axes.T, strict=True):
        local_explanation(explanation, 0, column, pixels)
        title = (name, explanation.question, f"p = {explanation.probs[explanation.explained[0]]:.2f}")
        column[0].set_title("\n".join(textwrap.fill(line, 40) for line in title), fontsize=9)
    return figure


def word_bars(explanation: LocalExplanation, row: int = 0, ax: Axes | None = None, top: int = 12) -> Axes:
    """Draw the `top` strongest words with their 95 % intervals, and below them what the explanation rests on."""
    ax, limit, table = _axes(ax, (4.6, 4)), strongest(explanation, row), explanation.words(row)
    table = table.loc[table["weight"].abs().nlargest(top).index].sort_values("weight", ascending=False)
    names, shades = [text[:24] for text in table["text"]], [_shade(weight, limit) for weight in table["weight"]]
    _bars(ax, names, table["weight"], shades, table["low"], table["high"])
    ax.tick_params(axis="y", labelsize=8)
    ax.axvline(0, color=QUIET, linewidth=0.8)
    ax.set_xlabel(f"weight in the {explanation.options.target}\n{trust(explanation, row)}", fontsize=8)
    return ax


def trust(explanation: LocalExplanation, row: int = 0) -> str:
    """Return a few lines on how far to trust an explanation."""
    if explanation.nothing:
        return f"nothing to explain: {explanation.nothing}"
    count, (low, high) = explanation.evaluations, explanation.share_intervals[row]
    weak = " (weak: only a hint)" if not explanation.r2[row] >= WEAK else ""
    line = f"held-out R² {explanation.r2[row]:.2f}{weak}"
    if count["images"] and count["texts"]:
        line = f"words' share {explanation.share[row]:.2f} ({low:.2f} to {high:.2f})\n{line}"
    return f"{line}\n{count['images']} masked images, {count['texts']} masked texts, {count['pairs']} pairs"


def class_explanation(explained: ClassExplanation, images: int = 3, texts: int = 6, least: int = 2) -> Figure:
    """Show what a class is recognised by: a typical photo of each image feature, and bars of its text features.

    At most `images` and `texts` features are drawn, the heaviest that `least` photos show.
    """
    least = min(least, len(explained.photos))
    seen = explained.image_features[explained.image_features["support"] >= least].head(images)
    read = explained.text_features[explained.text_features["samples"] >= least].head(texts)
    widths = [1.0] * len(seen) + [1.7] * bool(len(read)) or [1.0]
    height = max(3.2 if len(seen) else 1, 0.34 * len(read) + 1.1)
    figure, axes = plt.subplots(1, len(widths), figsize=(2.6 * sum(widths), height), width_ratios=widths, squeeze=False)
    for ax, number in zip(axes[0], seen.index, strict=False):
        typical_superpixel(explained, int(number), ax)
    if len(read):
        names = [_spellings(row) for row in read.itertuples()]
        _phrase_bars(names, np.sign(read["weight"]) * read["share"], axes[0][-1], "share of the words' weight")
    elif not len(seen):
        axes[0][0].set_axis_off()
    title = f"{explained.name} ({len(explained.photos)} photos)"
    figure.suptitle(title, fontsize=11, fontweight="bold", parse_math=False)
    return figure


def class_comparison(
    explained: Mapping[str, ClassExplanation], table: pd.DataFrame, images: int = 2, texts: int = 8, least: int = 2
) -> Figure:
    """Show side by side what models recognise one class by: typical photos above, the same phrases below.

    `explained` holds the class for each model, `table` is what `classes.compare` makes of them.
    """
    parts = table[table.index.get_level_values("kind") == "text"].droplevel("kind").head(texts)
    limit = 1.1 * float(parts.abs().to_numpy().max(initial=0)) or 1.0
    figure = plt.figure(figsize=(4.4 * len(explained), 2.8 + 0.3 * len(parts)))
    columns = figure.subfigures(1, len(explained), squeeze=False)[0]
    for part, (name, found) in zip(columns, explained.items(), strict=True):
        share = "" if np.isnan(found.text_share) else f": words have {found.text_share:.0%} of its weight"
        part.suptitle(f"{name}{share}", fontsize=10, fontweight="bold")
        enough = found.image_features["support"] >= min(least, len(found.photos))
        seen = found.image_features[enough].head(images)
        grid = part.add_gridspec(2, images, height_ratios=(2.1, 0.3 * len(parts) + 0.5))
        for place in range(images):
            ax = part.add_subplot(grid[0, place])
            if place < len(seen):
                typical_superpixel(found, int(seen.index[place]), ax)
            else:
                _note("" if place or len(seen) else "no image features", ax)
        ax = part.add_subplot(grid[1, :])
        if len(found.text_features) and len(parts):
            _phrase_bars(list(parts.index), parts[name], ax, "share of all weight", limit)
        else:
            _note("no words", ax)
    return figure


def _note(text: str, ax: Axes) -> None:
    """Write what is missing in place of it."""
    ax.set_axis_off()
    ax.text(0.5, 0.5, text, fontsize=9, color=QUIET, ha="center", transform=ax.transAxes)


def _spellings(row: Any) -> str:
    """Return a phrase with the photos that hold it and its spellings, if there are several."""
    spellings = f", {len(row.variants)} spellings" if len(row.variants) > 1 else ""
    photos = "photo" if row.samples == 1 else "photos"
    return f"{textwrap.shorten(row.canonical, 26, placeholder='…')}  ({row.samples} {photos}{spellings})"


def _phrase_bars(names: Sequence[str], values: Any, ax: Axes, xlabel: str, limit: float | None = None) -> None:
    values = _numbers(values)
    limit = limit or 1.1 * float(np.abs(values).max(initial=0)) or 1.0
    _bars(ax, names, values, [FOR if value > 0 else AGAINST for value in values])
    ax.tick_params(axis="y", labelsize=8)
    ax.axvline(0, color=QUIET, linewidth=0.8)
    ax.set(xlim=(-limit, limit))
    ax.set_xlabel(xlabel, fontsize=8)
    ax.locator_params(axis="x", nbins=5)


def typical_superpixel(explained: ClassExplanation, number: int, ax: Axes, title: bool = True) -> Axes:
    """Show the most typical superpixel of image feature `number` on its photo, whose rest is paled."""
    row = explained.image_features.loc[number]
    photo, segment = row["medoids"][0]
    own = explained.explanations[explained.photos.index(photo)]
    inside, pixels = own.segments == segment, _numbers(own.image)
    shade = FOR if row["weight"] > 0 else AGAINST
    side, photos = "for" if row["weight"] > 0 else "against", "photo" if row["support"] == 1 else "photos"
    text = f"{side}: {row['share']:.0%} of weight\n{row['support']} {photos}" if title else ""
    image(np.where(inside, pixels, 0.7 + 0.3 * pixels), text, ax)
    ax.title.set_color(shade)
    return outline(inside, shade, ax)
