"""Pictures: data in, Axes out. Nothing here reads files, computes results or shows a window.

One style for the whole workbook, readable for colour-blind people: `COLOURS` (Okabe and Ito 2008) for categories,
`cividis` for amounts, and a blue-to-orange scale for signed values. Notebooks call `use_style()` once.
"""

from __future__ import annotations

import base64
import html
import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import cycle
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from scipy.ndimage import gaussian_filter
from skimage.segmentation import find_boundaries

from retailkit.data.table import ProductDataset, Sample, Word
from retailkit.metrics import Evaluation

if TYPE_CHECKING:  # pictures of explanations do not need what makes them
    from retailkit.explain.aggregate import ClassExplanation
    from retailkit.explain.lime import LocalExplanation

COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#444444"]
GOOD, BAD, QUIET = "#009E73", "#D55E00", "#8A8F98"
SIGNED = LinearSegmentedColormap.from_list("signed", ["#0072B2", "#F7F7F7", "#D55E00"])
WEAK = 0.3  # held-out R² below which a surrogate is a hint at best
COSTS = {"minutes": "training, min", "ms": "ms a photo", "MB": "MB"}  # of a rung
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


def _axes(ax: Axes | None, size: tuple[float, float] = (6, 4)) -> Axes:
    return ax if ax is not None else plt.subplots(figsize=size)[1]


def picture(image: Any, title: str = "", ax: Axes | None = None, colour: str | None = None) -> Axes:
    """Show one picture without ticks.

    Args:
        image: (3,H,W) in [0,1] or (H,W,3) uint8.
        title: above the picture.
        ax: where to draw.
        colour: of the title and a frame, to mark right and wrong.
    """
    ax = _axes(ax, (3, 3))
    pixels = np.asarray(image)
    ax.imshow(pixels.transpose(1, 2, 0) if pixels.shape[0] == 3 else pixels, interpolation="antialiased")
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(colour is not None)
        spine.set(color=colour or "none", linewidth=2.5)
    ax.set_title(title, fontsize=8, fontweight="normal", color=colour or "black")
    return ax


def contact_sheet(
    images: Sequence[Any],
    titles: Sequence[str] | None = None,
    columns: int = 6,
    width: float = 12,
    colours: Sequence[str | None] | None = None,
    title: str = "",
) -> Figure:
    """Lay pictures out in a grid.

    Args:
        images: pictures as `picture` takes them.
        titles: one a picture.
        columns: pictures a row.
        width: of the figure in inches.
        colours: frame of each picture, or None for none.
        title: of the sheet.
    """
    if not len(images):
        raise ValueError("a contact sheet needs at least one picture")
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    cell = width / columns
    titles = ["\n".join(textwrap.fill(line, int(12 * cell)) for line in t.split("\n")) for t in titles or []]
    lines = max((t.count("\n") + 1 for t in titles), default=0)
    figure, grid = plt.subplots(rows, columns, figsize=(width, rows * (cell + 0.15 * lines)), squeeze=False)
    for ax in grid.flat[len(images) :]:
        ax.set_visible(False)
    for i, (ax, image) in enumerate(zip(grid.flat, images, strict=False)):
        picture(image, titles[i] if titles else "", ax, colours[i] if colours else None)
    if title:
        figure.suptitle(title, fontsize=12, fontweight="bold")
    return figure


def sample_sheet(dataset: ProductDataset, positions: Sequence[int], columns: int = 6, **options: Any) -> Figure:
    """Lay out samples of a split with their class names."""
    samples = [dataset[int(i)] for i in positions]
    titles = [dataset.classes[s.label] for s in samples]
    return contact_sheet([s.image for s in samples], titles, columns, **options)


def outline(mask: Any, colour: str, ax: Axes, fill: float = 0.0) -> Axes:
    """Draw the border of a bool mask (H,W) or (1,H,W), and tint its inside by `fill` in [0,1]."""
    mask = np.asarray(mask).reshape(np.asarray(mask).shape[-2:])
    line = ListedColormap(["none", colour])
    if fill:
        ax.imshow(mask, cmap=line, alpha=fill, interpolation="nearest", vmin=0, vmax=1)
    ax.imshow(find_boundaries(mask, mode="inner"), cmap=line, interpolation="nearest", vmin=0, vmax=1)
    return ax


def words(found: Sequence[Word], ax: Axes, colour: str = COLOURS[2], label: bool = True) -> Axes:
    """Draw word boxes, telling words in orange, with their text above."""
    for word in found:
        x0, y0, x1, y1 = word.box
        if x1 <= x0 or y1 <= y0:
            continue
        shade = BAD if word.telling else colour
        ax.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=shade, linewidth=1.2))
        if label:
            box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.6}
            ax.text(x0, y0 - 1, word.text, fontsize=6, color=shade, va="bottom", bbox=box, clip_on=True)
    return ax


def ground_truth(sample: Sample, ax: Axes | None = None, legend: bool = True) -> Axes:
    """Draw what is known of a rendered picture: product, twin-telling patch, shadow, reflection and words."""
    ax = picture(sample.image, "", _axes(ax, (4, 4)))
    layers = {"mask": sample.mask}
    if sample.truth is not None:
        layers |= {name: getattr(sample.truth, name) for name in ("shadow", "reflection", "twin_patch")}
    shown = {name: m for name, m in layers.items() if m is not None and bool(np.asarray(m).any())}
    for name, mask in shown.items():
        outline(mask, LAYERS[name], ax, fill=0.0 if name == "mask" else 0.3)
    if sample.truth is not None:
        words(sample.truth.words, ax, label=False)
    if legend:
        names = {"mask": "product", "twin_patch": "tells twins apart"}
        handles = [Patch(color=LAYERS[n], label=names.get(n, n)) for n in shown]
        ax.legend(handles=handles, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=2)
    return ax


def class_balance(table: pd.DataFrame, ax: Axes | None = None, top: int = 40) -> Axes:
    """Draw images a class and split as stacked bars; beyond `top` classes only the largest and smallest."""
    counts = table.groupby(["label", "split"]).size().unstack(fill_value=0)
    counts = counts[[s for s in ("train", "val", "test") if s in counts]]
    counts = counts.loc[counts.sum(axis=1).sort_values(ascending=False).index]
    if len(counts) > top:
        counts = pd.concat([counts.iloc[: top // 2], counts.iloc[-top // 2 :]])
    ax = _axes(ax, (8, 0.22 * len(counts) + 1))
    counts.plot.barh(stacked=True, ax=ax, width=0.8, color=COLOURS[: counts.shape[1]])
    ax.invert_yaxis()
    ax.set(xlabel="images", ylabel="")
    ax.tick_params(axis="y", labelsize=7)
    ax.legend(title="", loc="lower right", bbox_to_anchor=(1, 1), ncols=3)
    return ax


def learning_curves(histories: Mapping[str, pd.DataFrame], axes: Sequence[Axes] | None = None) -> Sequence[Axes]:
    """Draw training loss and validation top-1 by epoch for several runs.

    Args:
        histories: name of the run -> `History.epochs`.
        axes: two Axes, for loss and accuracy.
    """
    if axes is None:
        axes = plt.subplots(1, 2, figsize=(10, 3.6))[1]
    for (name, epochs), colour in zip(histories.items(), cycle(COLOURS), strict=False):
        axes[0].plot(epochs["epoch"], epochs["loss"], color=colour, label=name)
        if "val_top1" in epochs:
            axes[1].plot(epochs["epoch"], epochs["val_top1"], color=colour, label=name)
            best = epochs[epochs["val_top1"] == epochs["val_top1"].max()]
            kept = best.loc[best["val_loss"].idxmin()] if "val_loss" in best else best.iloc[0]
            axes[1].plot(kept["epoch"], kept["val_top1"], "o", color=colour, markersize=6)
    axes[0].set(title="training loss", xlabel="epoch", yscale="log")
    axes[1].set(title="validation top-1 (dot: epoch kept)", xlabel="epoch")
    axes[1].legend(loc="lower right")
    return axes


def reliability(evaluations: Mapping[str, Evaluation], bins: int = 10, ax: Axes | None = None) -> Axes:
    """Draw accuracy against confidence with the share of images in each bin (Guo et al. 2017, figure 1)."""
    ax = _axes(ax, (4.6, 4.4))
    ax.plot([0, 1], [0, 1], color=QUIET, linestyle=":", label="as confident as right")
    for (name, evaluation), colour in zip(evaluations.items(), cycle(COLOURS), strict=False):
        table = evaluation.reliability(bins)
        label = f"{name} (error {evaluation.calibration_error(bins):.3f})"
        ax.plot(table["confidence"], table["accuracy"], "o-", color=colour, label=label, markersize=5)
    ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy", title="reliability")
    ax.legend(loc="upper left", fontsize=8)
    return ax


def accuracy_bars(table: pd.DataFrame, ax: Axes | None = None, chance: float | None = None) -> Axes:
    """Draw one bar a row with its interval.

    Args:
        table: columns `name`, `accuracy`, `low`, `high`, and `n` if known.
        ax: where to draw.
        chance: a dotted line, if given.
    """
    ax = _axes(ax, (7, 0.42 * len(table) + 1.2))
    centre = table["accuracy"].to_numpy(float)
    spread = np.abs(np.vstack([centre - table["low"].to_numpy(float), table["high"].to_numpy(float) - centre]))
    ax.barh(
        table["name"], centre, xerr=spread, color=COLOURS[0], alpha=0.85, error_kw={"elinewidth": 1.2, "capsize": 3}
    )
    for y, (value, high) in enumerate(zip(centre, table["high"], strict=True)):
        ax.text(high + 0.012, y, f"{value:.3f}", va="center", fontsize=8)
    if chance is not None:
        ax.axvline(chance, color=QUIET, linestyle=":")
        ax.text(chance, -0.6, "chance", color=QUIET, fontsize=8, ha="center", va="bottom")
    ax.set(xlim=(0, min(1.1, 1.12 * float(table["high"].max())) or 1.0), xlabel="accuracy (95 % interval)")
    ax.invert_yaxis()
    return ax


def ladder(table: pd.DataFrame, chance: float | None = None) -> Figure:
    """Draw an ablation ladder: how good each rung is, what its step bought, and what all that is there by then costs.

    Args:
        table: a row a rung; columns `name`, `accuracy`, `low`, `high`, `gain`, `gain_low`, `gain_high` (NaN in the
            first row), and those of `COSTS` that are known.
        chance: a dotted line, if given.
    """
    costs = [name for name in COSTS if name in table]
    widths = [3, 2.2, *[1] * len(costs)]
    figure, axes = plt.subplots(1, len(widths), sharey=True, width_ratios=widths, figsize=(12, 0.42 * len(table) + 1.2))
    accuracy_bars(table, axes[0], chance)
    for y, row in enumerate(table.itertuples()):
        _difference(axes[1], y, row.gain, row.gain_low, row.gain_high)
    axes[1].axvline(0, color=QUIET, linestyle=":")
    axes[1].set_xlabel("gain of the step (95 % interval)")
    for ax, cost in zip(axes[2:], costs, strict=True):
        ax.bar_label(ax.barh(table["name"], table[cost], color=QUIET, alpha=0.6), fmt="%.3g", fontsize=8, padding=2)
        ax.set(xlabel=COSTS[cost], xticks=[], xlim=(0, 1.5 * float(table[cost].max()) or 1.0))
    return figure


def confusion(evaluation: Evaluation, groups: Sequence[str] | None = None, ax: Axes | None = None) -> Axes:
    """Draw the confusion matrix as shares of each true class, groups of classes framed.

    Args:
        evaluation: what to draw.
        groups: the family of each class; classes are ordered by it, and each family gets a frame.
        ax: where to draw.
    """
    families = np.asarray(groups if groups is not None else [""] * len(evaluation.classes))
    order = np.lexsort((evaluation.classes, families))
    counts = evaluation.confusion[np.ix_(order, order)]
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    ax = _axes(ax, (7.2, 6.4))
    side = len(order)
    labels = [evaluation.classes[i].title() for i in order] if side <= 40 else False
    sns.heatmap(shares, cmap="cividis", vmin=0, vmax=1, square=True, ax=ax, xticklabels=False, yticklabels=labels,
                cbar_kws={"label": "share of the true class", "shrink": 0.7})  # fmt: skip
    for family in np.unique(families[families != ""]):
        start, length = np.flatnonzero(families[order] == family)[0], int((families == family).sum())
        ax.add_patch(Rectangle((start, start), length, length, fill=False, edgecolor="white", linewidth=1.6))
    ax.tick_params(axis="y", labelsize=7)
    ax.set(xlabel="predicted", ylabel="true")
    return ax


def confusion_pairs(evaluation: Evaluation, dataset: ProductDataset, pairs: int = 4, width: float = 11) -> Figure:
    """Show the most confused pairs of classes: a missed photo of each beside one that was right.

    Each row is a pair: the photo taken for the other class (orange frame) and a typical photo of that class.
    """
    table = evaluation.confusion_pairs(pairs)
    if table.empty:
        raise ValueError("no confused pair: every image was classified correctly")
    figure, grid = plt.subplots(len(table), 4, figsize=(width, len(table) * width / 4.4), squeeze=False)
    index = {name: k for k, name in enumerate(evaluation.classes)}
    for row, axes in zip(table.itertuples(), grid, strict=True):
        a, b = index[row.first], index[row.second]
        for (true, other), pair in zip(((a, b), (b, a)), (axes[:2], axes[2:]), strict=True):
            _confused(evaluation, dataset, true, other, pair)
        axes[0].set_ylabel(f"{row.errors} errors", fontsize=9)
    return figure


def _confused(evaluation: Evaluation, dataset: ProductDataset, true: int, other: int, axes: Sequence[Axes]) -> None:
    missed = np.flatnonzero((evaluation.labels == true) & (evaluation.predicted == other))
    typical = np.flatnonzero(evaluation.labels == other)
    for ax in axes:
        ax.set_axis_off()
    if not len(missed):
        return
    worst = missed[evaluation.probs[missed, other].argmax()]
    share = evaluation.probs[worst, other]
    for ax in axes:
        ax.set_axis_on()
    name, wrong = evaluation.classes[true], evaluation.classes[other]
    picture(dataset[int(worst)].image, f"{name}\ntaken for the right-hand one, p = {share:.2f}", axes[0], BAD)
    best = typical[evaluation.probs[typical, other].argmax()] if len(typical) else worst
    picture(dataset[int(best)].image, f"{wrong}\na typical photo", axes[1], GOOD)


def attribution(
    image: Any,
    attr: Any,
    ax: Axes | None = None,
    limit: float | None = None,
    title: str = "",
    blur: float = 0.0,
) -> Axes:
    """Lay a signed attribution over a picture: orange speaks for the class, blue against it.

    Args:
        image: (3,H,W) in [0,1].
        attr: (H,W) signed.
        ax: where to draw.
        limit: value of the full colour on both sides; None takes the strength that one pixel in 200 exceeds, so that a
            few extreme pixels do not pale all others. Share it across a grid of one unit.
        title: above the picture.
        blur: standard deviation in pixels by which the map is blurred first: gradients of single pixels are too fine
            to see. A blur keeps signs, so that neighbours of opposite signs cancel.
    """
    ax = _axes(ax, (3, 3))
    attr = gaussian_filter(_numbers(attr), blur)
    strength = np.abs(attr)
    limit = limit or float(np.quantile(strength, 0.995)) or float(strength.max())
    ax.imshow(_paled(image), cmap="gray", vmin=0, vmax=1)
    if limit > 0:
        alpha = 0.85 * np.clip(strength / limit, 0, 1)
        ax.imshow(attr, cmap=SIGNED, vmin=-limit, vmax=limit, alpha=alpha)
    else:
        title = f"{title} (no effect anywhere)"
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_title(title, fontsize=8, fontweight="normal")
    return ax


def word_attributions(
    image: Any,
    words: Sequence[Word],
    values: Any,
    ax: Axes | None = None,
    limit: float | None = None,
    title: str = "",
) -> Axes:
    """Tint the words on a picture by their signed attribution: orange speaks for the class, blue against it.

    Args:
        image: (3,H,W) in [0,1].
        words: N words with boxes in its pixels.
        values: (N,) signed.
        ax: where to draw.
        limit: value of the full colour on both sides; None takes the largest. Share it across a grid.
        title: above the picture.

    Raises:
        ValueError: not one value a word.
    """
    ax = _axes(ax, (4, 4))
    values = _numbers(values)
    limit = limit or float(np.abs(values).max(initial=0.0))
    ax.imshow(_paled(image), cmap="gray", vmin=0, vmax=1)
    for word, value in zip(words, values, strict=True):
        x0, y0, x1, y1 = word.box
        if x1 <= x0 or y1 <= y0:
            continue
        strength = min(1.0, abs(value) / limit) if limit else 0.0
        shade = SIGNED(0.5 + 0.5 * math.copysign(strength, value))
        box = Rectangle((x0, y0), x1 - x0, y1 - y0, facecolor=(*shade[:3], 0.85 * strength), edgecolor=QUIET)
        ax.add_patch(box)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_title(title if limit else f"{title} (no effect anywhere)", fontsize=8, fontweight="normal")
    return ax


def local_explanation(explanation: LocalExplanation, row: int = 0, axes: Sequence[Axes] | None = None) -> Figure:
    """Show why a model says a class and not its rival: superpixels and words on one scale, and how far to trust it.

    Args:
        explanation: of one photo.
        row: which of the explained classes.
        axes: two, for the picture and the words; None makes a figure.
    """
    if axes is None:
        axes = plt.subplots(1, 2, figsize=(9, 4.2), width_ratios=(1, 1.1))[1]
    parts = [explanation.image_weights[row], explanation.text_weights[row]]
    limit = max((float(np.abs(part).max(initial=0)) for part in parts), default=0) or None
    name, rival = (
        explanation.classes[i] if i >= 0 else "" for i in (explanation.explained[row], explanation.contrasts[row])
    )
    title = f"{name}\nand not {rival}" if rival else name
    if explanation.image is None:
        axes[0].set_axis_off()
        axes[0].set_title(title, fontsize=8, fontweight="normal")
    else:
        attribution(explanation.image, explanation.heat(row), axes[0], limit, title)
        for unit, weight in zip(explanation.tokens, explanation.text_weights[row], strict=True):
            words(unit.words, axes[0], SIGNED(0.5 + 0.5 * weight / limit) if limit else QUIET, label=False)
    word_bars(explanation, row, axes[1], limit)
    return axes[0].figure


def word_bars(
    explanation: LocalExplanation, row: int = 0, ax: Axes | None = None, limit: float | None = None, top: int = 12
) -> Axes:
    """Draw the weights of the words with their 95 % intervals, and below them what the explanation rests on.

    Args:
        explanation: of one photo.
        row: which of the explained classes.
        ax: where to draw.
        limit: weight of the full colour; None takes the largest.
        top: words shown, the heaviest of either sign.
    """
    ax = _axes(ax, (4.6, 4))
    table = explanation.words(row)
    table = table.loc[table["weight"].abs().nlargest(top).index].sort_values("weight")
    limit = limit or float(table["weight"].abs().max()) if len(table) else 1.0
    shades = [SIGNED(0.5 + 0.5 * float(np.clip(w / limit, -1, 1))) if limit else QUIET for w in table["weight"]]
    spread = np.abs(table[["low", "high"]].to_numpy().T - table["weight"].to_numpy())
    ax.barh(range(len(table)), table["weight"], xerr=spread if len(table) else None, color=shades, ecolor=QUIET,
            edgecolor=QUIET, linewidth=0.5, error_kw={"linewidth": 1})  # fmt: skip
    ax.set_yticks(range(len(table)), [text[:24] for text in table["text"]], fontsize=8)
    ax.axvline(0, color=QUIET, linewidth=0.8)
    ax.set_xlabel(f"weight in the {explanation.options.target}\n{_trust(explanation, row)}", fontsize=8)
    return ax


def _trust(explanation: LocalExplanation, row: int) -> str:
    """Return a few lines on how far to trust an explanation."""
    if explanation.nothing:
        return f"nothing to explain: {explanation.nothing}"
    count, (low, high) = explanation.evaluations, explanation.share_intervals[row]
    weak = ": weak, read it as a hint" if not explanation.r2[row] >= WEAK else ""
    line = f"held-out R² {explanation.r2[row]:.2f}{weak}"
    if count["images"] and count["texts"]:
        line = f"words' share {explanation.share[row]:.2f} ({low:.2f} to {high:.2f})\n{line}"
    return f"{line}\n{count['images']} masked pictures, {count['texts']} masked texts, {count['pairs']} pairs"


def explanation_page(explanation: LocalExplanation) -> str:
    """Return one page of HTML that needs nothing else: a figure for each explained class, and what it was made with."""
    parts = [f"<h1>{html.escape(explanation.question.capitalize())}</h1>"]
    for row, label in enumerate(explanation.explained):
        figure, drawn = local_explanation(explanation, row), io.BytesIO()
        figure.savefig(drawn, format="png", dpi=110, bbox_inches="tight")
        plt.close(figure)
        code, name = base64.b64encode(drawn.getvalue()).decode(), html.escape(explanation.classes[label])
        parts += [f"<h2>{name}: probability {explanation.probs[label]:.3f}</h2>"]
        parts += [f'<img src="data:image/png;base64,{code}" alt="Superpixels and words that speak for {name}">']
        parts += [explanation.words(row).round(3).to_html(index=False)] if explanation.tokens else []
    options = pd.Series(asdict(explanation.options)).astype(str).rename("value").to_frame().to_html()
    style = "body{font:15px system-ui;max-width:60rem;margin:2rem auto}img{max-width:100%}td,th{padding:.1rem .6rem}"
    head = f'<meta charset="utf-8"><title>{html.escape(explanation.question)}</title><style>{style}</style>'
    body = "".join([*parts, "<h2>Made with</h2>", options])
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>'


def _paled(image: Any) -> np.ndarray:
    """Return a picture (3,H,W) in light grey, for colours to lie on."""
    return 0.35 + 0.65 * _numbers(image).mean(0)


def _numbers(values: Any) -> np.ndarray:
    """Return a tensor or an array as float64."""
    return np.asarray(values.detach().cpu().numpy() if hasattr(values, "detach") else values, dtype=float)


def probabilities(
    probs: Any, classes: Sequence[str], true: int | None = None, ax: Axes | None = None, top: int = 5
) -> Axes:
    """Draw the `top` most probable classes as bars, the true one in green.

    Args:
        probs: (K,) probabilities.
        classes: K names.
        true: index of the true class, if known.
        ax: where to draw.
        top: bars.
    """
    ax = _axes(ax, (5, 3))
    order = np.argsort(-np.asarray(probs))[:top]
    ax.barh([classes[i] for i in order], np.asarray(probs)[order], color=[GOOD if i == true else QUIET for i in order])
    ax.invert_yaxis()
    ax.set(xlim=(0, 1), xlabel="probability")
    ax.tick_params(axis="y", labelsize=8)
    return ax


def boxes(image: Any, boxes: Any, ax: Axes | None = None, title: str = "") -> Axes:
    """Draw ranked boxes over a picture, such as the regions of NTS-Net.

    Args:
        image: (3,H,W) in [0,1].
        boxes: (N,4) as x0, y0, x1, y1 in pixels, best first; they may overhang.
        ax: where to draw.
        title: above the picture.
    """
    ax = picture(image, title, ax)
    height, width = np.asarray(image).shape[1:]
    for rank, (x0, y0, x1, y1) in enumerate(np.asarray(boxes, dtype=float), start=1):
        ax.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=BAD, linewidth=2.2))
        ax.text(max(x0, 0) + 2, max(y0, 0) + 2, str(rank), fontsize=7, color=BAD, va="top", fontweight="bold")
    ax.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    return ax


def window_map(
    image: Any, boxes: Any, contributions: Any, ax: Axes | None = None, title: str = "", top: int = 3
) -> Axes:
    """Lay over a picture what the windows of LCA say for a class, each spread over its area, and frame the `top`.

    Args:
        image: (3,H,W) in [0,1].
        boxes: (N,4) as x0, y0, x1, y1 in pixels.
        contributions: (N,) to the logit of the class.
        ax: where to draw.
        title: above the picture.
        top: windows to frame, those that say most for the class.
    """
    boxes, contributions = np.asarray(boxes), np.asarray(contributions, dtype=float)
    height, width = np.asarray(image).shape[1:]
    spread = np.zeros((height, width))
    for (x0, y0, x1, y1), c in zip(boxes, contributions, strict=True):
        spread[y0:y1, x0:x1] += c / ((x1 - x0) * (y1 - y0))
    ax = attribution(image, spread - np.median(spread), ax, title=title)
    for x0, y0, x1, y1 in boxes[np.argsort(-contributions)[:top]]:
        ax.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=BAD, linewidth=1.4))
    return ax


def matches(query: Any, gallery: Any, source: Any, target: Any, ax: Axes | None = None, title: str = "") -> Axes:
    """Draw lines between matched points of two pictures laid side by side.

    Args:
        query: (3,H,W) in [0,1].
        gallery: the same, of the same size.
        source: (N,2) x, y in the query.
        target: (N,2) x, y in the gallery picture.
        ax: where to draw.
        title: above the pictures.
    """
    width = np.asarray(query).shape[2]
    ax = picture(np.concatenate([np.asarray(query), np.asarray(gallery)], axis=2), title, _axes(ax, (6, 3)))
    for (x0, y0), (x1, y1) in zip(np.asarray(source), np.asarray(target), strict=True):
        ax.plot([x0, x1 + width], [y0, y1], color=GOOD, linewidth=0.7, alpha=0.8)
    return ax


def curves(table: pd.DataFrame, x: str, xlabel: str, ax: Axes | None = None) -> Axes:
    """Draw accuracy with its interval against `x`, one line a name.

    Args:
        table: columns `name`, `accuracy`, `low`, `high` and `x`.
        x: its column on the horizontal axis.
        xlabel: its label.
        ax: where to draw.
    """
    ax = _axes(ax, (5.5, 3.6))
    for (name, part), colour in zip(table.groupby("name", sort=False), cycle(COLOURS), strict=False):
        ax.plot(part[x], part["accuracy"], "o-", color=colour, label=name, markersize=4)
        ax.fill_between(part[x], part["low"], part["high"], color=colour, alpha=0.12, linewidth=0)
    ax.set(xlabel=xlabel, ylabel="accuracy (95 % interval)", ylim=(0, 1))
    ax.legend(fontsize=8)
    return ax


def accuracy_grid(table: pd.DataFrame, rows: str, columns: str, ax: Axes | None = None) -> Axes:
    """Draw accuracy as a grid of numbers.

    Args:
        table: columns `accuracy`, `n`, and those named by `rows` and `columns`.
        rows: its column with the name of a row.
        columns: its column with the name of a column.
        ax: where to draw.
    """
    grid = table.pivot(index=rows, columns=columns, values="accuracy")
    grid = grid.reindex(index=table[rows].unique(), columns=table[columns].unique())
    ax = _axes(ax, (1.6 * grid.shape[1] + 2.5, 0.34 * len(grid) + 1))
    sns.heatmap(grid, cmap="cividis", vmin=0, vmax=1, annot=True, fmt=".2f", ax=ax, cbar_kws={"label": "accuracy"},
                annot_kws={"fontsize": 8})  # fmt: skip
    ax.set(xlabel="", ylabel="")
    ax.tick_params(axis="y", labelsize=8, rotation=0)
    return ax


def class_explanation(explained: ClassExplanation, images: int = 3, texts: int = 6, least: int = 2) -> Figure:
    """Show what a class is recognised by: a typical photo of each image feature, and bars of its text features.

    Args:
        explained: the class.
        images: image features, the heaviest; none are drawn where there are none.
        texts: text features, the heaviest; 0 draws none.
        least: photos that must show a feature; fewer will do where there are fewer.
    """
    least = min(least, len(explained.photos))
    seen = explained.image_features[explained.image_features["support"] >= least].head(images)
    read = explained.text_features[explained.text_features["samples"] >= least].head(texts)
    widths = [1.0] * len(seen) + [1.7] * bool(len(read)) or [1.0]
    height = max(3.2 if len(seen) else 1, 0.34 * len(read) + 1.1)
    figure, axes = plt.subplots(1, len(widths), figsize=(2.6 * sum(widths), height), width_ratios=widths, squeeze=False)
    for ax, number in zip(axes[0], seen.index, strict=False):
        _typical(explained, int(number), ax)
    if len(read):
        _phrase_bars([_spelled(row) for row in read.itertuples()], np.sign(read["weight"]) * read["share"], axes[0][-1])
        axes[0][-1].set_xlabel("share of the words' weight", fontsize=8)
    elif not len(seen):
        axes[0][0].set_axis_off()
    figure.suptitle(f"{explained.name} ({len(explained.photos)} photos)", fontsize=11, fontweight="bold")
    return figure


def class_comparison(
    explained: Mapping[str, ClassExplanation], table: pd.DataFrame, images: int = 2, texts: int = 8, least: int = 2
) -> Figure:
    """Show side by side what models recognise one class by: typical photos above, the same phrases below.

    Args:
        explained: name of each model, and what it recognises the class by.
        table: what `aggregate.compare` makes of them.
        images: image features of each model.
        texts: phrases, those that any model uses most.
        least: as of `class_explanation`.
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
                _typical(found, int(seen.index[place]), ax)
            else:
                ax.set_axis_off()
        if not len(seen):
            ax.text(0, 0.5, "no picture", fontsize=9, color=QUIET, ha="center", transform=ax.transAxes)
        ax = part.add_subplot(grid[1, :])
        if len(found.text_features) and len(parts):
            _phrase_bars(list(parts.index), parts[name], ax, limit)
            ax.set_xlabel("share of all weight", fontsize=8)
        else:
            ax.set_axis_off()
            ax.text(0.5, 0.5, "no words", fontsize=9, color=QUIET, ha="center", transform=ax.transAxes)
    return figure


def _spelled(row: Any) -> str:
    """Return a phrase with the photos that hold it and its spellings, if there are several."""
    spellings = f", {len(row.variants)} spellings" if len(row.variants) > 1 else ""
    photos = "photo" if row.samples == 1 else "photos"
    return f"{textwrap.shorten(row.canonical, 26, placeholder='…')}  ({row.samples} {photos}{spellings})"


def _phrase_bars(names: Sequence[str], values: Any, ax: Axes, limit: float | None = None) -> Axes:
    """Draw signed bars, the first on top: orange speaks for the class, blue against it."""
    values = _numbers(values)
    limit = limit or 1.1 * float(np.abs(values).max(initial=0)) or 1.0
    ax.barh(range(len(values)), values, color=[BAD if value > 0 else COLOURS[0] for value in values], height=0.65)
    ax.set_yticks(range(len(values)), names, fontsize=8)
    ax.set_ylim(len(values) - 0.4, -0.6)
    ax.axvline(0, color=QUIET, linewidth=0.8)
    ax.set(xlim=(-limit, limit))
    ax.locator_params(axis="x", nbins=5)
    return ax


def _typical(explained: ClassExplanation, number: int, ax: Axes) -> Axes:
    """Show the most typical superpixel of an image feature on its photo, whose rest is paled."""
    row = explained.image_features.loc[number]
    photo, segment = row["medoids"][0]
    own = explained.explanations[explained.photos.index(photo)]
    inside, image = own.segments == segment, _numbers(own.image)
    shade = BAD if row["weight"] > 0 else COLOURS[0]
    side, photos = "for" if row["weight"] > 0 else "against", "photo" if row["support"] == 1 else "photos"
    title = f"{side}: {row['share']:.0%} of weight\n{row['support']} {photos}"
    picture(np.where(inside, image, 0.7 + 0.3 * image), title, ax)
    ax.title.set_color(shade)
    return outline(inside, shade, ax)


def differences(table: pd.DataFrame, xlabel: str, ax: Axes | None = None) -> Axes:
    """Draw one difference a row with its interval, green where that lies above zero, orange where below, and its n.

    Args:
        table: columns `name`, `difference`, `low`, `high` (NaN for no interval) and `n`.
        xlabel: below the axis.
        ax: where to draw.
    """
    ax = _axes(ax, (9, 0.32 * len(table) + 1.2))
    for y, row in enumerate(table.itertuples()):
        _difference(ax, y, row.difference, row.low, row.high)
        ax.text(1.01, y, f"n = {row.n}", transform=ax.get_yaxis_transform(), fontsize=8, va="center")
    ax.set_yticks(range(len(table)), table["name"], fontsize=8)
    ax.invert_yaxis()
    ax.axvline(0, color=QUIET, linestyle=":")
    ax.set_xlabel(xlabel)
    return ax


def _difference(ax: Axes, y: float, value: float, low: float, high: float) -> None:
    """Draw a difference and its interval, green where that lies above zero, orange where below."""
    shade = GOOD if low > 0 else BAD if high < 0 else QUIET
    ax.plot([low, high], [y, y], color=shade, linewidth=2)
    ax.plot(value, y, "o", color=shade)


def verdicts(table: pd.DataFrame, xlabel: str, ax: Axes | None = None) -> Axes:
    """Draw one difference a row with its interval, coloured and marked by what it makes of a claim.

    Args:
        table: columns `name`, `difference`, `low`, `high` and `verdict` (see `metrics.verdict`).
        xlabel: below the axis.
        ax: where to draw.
    """
    ax = _axes(ax, (9, 0.25 * len(table) + 1.2))
    looks = {"as claimed": (GOOD, "o"), "the opposite": (BAD, "X")}
    for y, row in enumerate(table.itertuples()):
        shade, marker = looks.get(row.verdict, (QUIET, "."))
        label = row.verdict if row.verdict not in ax.get_legend_handles_labels()[1] else None
        ax.plot([row.low, row.high], [y, y], color=shade, linewidth=2)
        ax.plot(row.difference, y, marker, color=shade, linestyle="none", label=label)
    ax.set_yticks(range(len(table)), table["name"], fontsize=7)
    ax.invert_yaxis()
    ax.axvline(0, color=QUIET, linestyle=":")
    ax.set_xlabel(xlabel)
    ax.legend(fontsize=8, loc="lower right")
    return ax


def scene(image: Any, boxes: Any, labels: Any, classes: Sequence[str], ax: Axes | None = None, title: str = "") -> Axes:
    """Draw the boxes of a scene, one colour a class, with the first word of its name.

    Args:
        image: (3,H,W) in [0,1].
        boxes: (N,4) as x0, y0, x1, y1 in pixels.
        labels: (N,) from 1 on.
        classes: names; label k is `classes[k - 1]`.
        ax: where to draw.
        title: above the picture.
    """
    ax, shades = picture(image, title, ax), [*COLOURS[:4], *COLOURS[5:]]  # no two blues
    for (x0, y0, x1, y1), label in zip(_numbers(boxes).reshape(-1, 4), np.asarray(labels, dtype=int), strict=True):
        colour = shades[(label - 1) % len(shades)]
        ax.add_patch(Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=1.8))
        ax.text(x0, y0 - 1.5, classes[label - 1].split()[0].lower(), fontsize=6, color="white", va="bottom",
                bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.8})  # fmt: skip
    return ax


def loss_curves(histories: Mapping[str, pd.DataFrame], losses: Sequence[str], axes: Sequence[Axes]) -> Sequence[Axes]:
    """Draw each loss over the steps of training, a line a history, smoothed over a twentieth of all steps.

    Args:
        histories: name -> columns `step` and the losses; a step may come once a seed, and the mean is drawn.
        losses: columns to draw, one Axes each.
        axes: where to draw.
    """
    for ax, loss in zip(axes, losses, strict=True):
        shades = cycle((COLOURS[5], COLOURS[0], *COLOURS[1:4]))
        for (name, frame), colour in zip(histories.items(), shades, strict=False):
            line = frame.groupby("step")[loss].mean()
            ax.plot(line.rolling(max(1, len(line) // 20), min_periods=1, center=True).mean(), color=colour, label=name)
        ax.set(xlabel="step", title=loss.removeprefix("loss_").replace("_", " "))
        ax.set_ylim(bottom=0)
    return axes


def side_by_side(tables: Mapping[str, pd.DataFrame], value: str, xlabel: str, ax: Axes | None = None) -> Axes:
    """Draw the same rows of several tables as points with their intervals, one colour a table.

    Args:
        tables: name -> columns `name`, `low`, `high` and `value`; a row that one table lacks is left out there.
        value: column to draw.
        xlabel: below the axis.
        ax: where to draw.
    """
    names = list(dict.fromkeys(name for table in tables.values() for name in table["name"]))
    ax = _axes(ax, (6, 0.4 * len(names) + 1.2))
    shift, shades = np.linspace(-0.14, 0.14, len(tables)), cycle((COLOURS[5], COLOURS[0], *COLOURS[1:4]))
    for (label, table), dy, colour in zip(tables.items(), shift, shades, strict=False):
        y = [names.index(name) + dy for name in table["name"]]
        ax.hlines(y, table["low"], table["high"], color=colour, linewidth=2)
        ax.plot(table[value], y, "o", color=colour, label=label, markersize=5)
    ax.set_yticks(range(len(names)), names, fontsize=8)
    ax.set(xlabel=xlabel, ylim=(len(names) - 0.5, -0.5))
    return ax


def stacked_shares(table: pd.DataFrame, xlabel: str, ax: Axes | None = None) -> Axes:
    """Draw a bar a row, divided by its columns; the last column is that of no interest, in grey.

    Args:
        table: shares in [0,1] that add up to 1 in each row.
        xlabel: below the axis.
        ax: where to draw.
    """
    ax = _axes(ax, (9, 0.45 * len(table) + 1.5))
    start = np.zeros(len(table))
    for name, colour in zip(table.columns, [*COLOURS[: table.shape[1] - 1], "#D0D3D8"], strict=True):
        ax.barh(table.index, table[name], left=start, color=colour, label=name)
        start += table[name].to_numpy(float)
    ax.set(xlabel=xlabel, xlim=(0, 1))
    ax.invert_yaxis()
    ax.legend(ncols=table.shape[1], fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1))
    return ax


def between_bounds(
    table: pd.DataFrame, x: str, xlabel: str, bounds: Mapping[str, Mapping[str, float]], ax: Axes | None = None
) -> Axes:
    """Draw accuracy with its interval against `x`, and the bounds it should lie between as lines with their intervals.

    Args:
        table: columns `accuracy`, `low`, `high` and `x`.
        x: its column on the horizontal axis.
        xlabel: its label.
        bounds: name -> `accuracy`, `low` and `high`.
        ax: where to draw.
    """
    ax = _axes(ax, (7, 3.8))
    for (name, bound), colour in zip(bounds.items(), cycle((GOOD, BAD, *COLOURS[3:])), strict=False):
        ax.axhline(bound["accuracy"], color=colour, linestyle="--", label=name)
        ax.axhspan(bound["low"], bound["high"], color=colour, alpha=0.12, linewidth=0)
    spread = np.abs(table[["low", "high"]].to_numpy(float).T - table["accuracy"].to_numpy(float))
    ax.errorbar(table[x], table["accuracy"], yerr=spread, fmt="o-", color=COLOURS[0], capsize=3)
    ax.set(xlabel=xlabel, ylabel="accuracy (95 % interval)")
    ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def by_epoch(histories: Mapping[str, pd.DataFrame], axes: Sequence[Axes]) -> Sequence[Axes]:
    """Draw training loss by epoch, a line a history, and test accuracy where it was watched.

    Args:
        histories: name -> columns `epoch`, `loss` and maybe `accuracy`.
        axes: for loss and, if there are two, accuracy.
    """
    for (name, epochs), colour in zip(histories.items(), cycle([*COLOURS[:6], COLOURS[7]]), strict=False):
        for ax, column in zip(axes, ("loss", "accuracy"), strict=False):
            ax.plot(epochs["epoch"], epochs[column], color=colour, label=name)
    for ax, title in zip(axes, ("training loss", "test accuracy"), strict=False):
        ax.set(title=title, xlabel="epoch")
    axes[-1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return axes


def gaps(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw how far each network leans on the background against how accurate it is.

    Args:
        table: columns `network`, `accuracy`, `gap`, `low` and `high` (of the gap).
        ax: where to draw.
    """
    ax = _axes(ax, (6, 3.8))
    ax.vlines(table["accuracy"], table["low"], table["high"], color=QUIET)
    ax.plot(table["accuracy"], table["gap"], "o", color=COLOURS[0])
    for row in table.itertuples():
        ax.annotate(row.network.replace("_", " "), (row.accuracy, row.gap), fontsize=8, xytext=(5, 5),
                    textcoords="offset points")  # fmt: skip
    ax.axhline(0, color=QUIET, linestyle=":")
    ax.margins(x=0.25)
    ax.set(xlabel="accuracy on untouched pictures", ylabel="BG-gap (95 % interval)")
    return ax
