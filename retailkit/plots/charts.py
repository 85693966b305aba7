"""Numbers: bars, dots with intervals, lines and grids, each drawn by one function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from retailkit.plots.style import AGAINST, BAD, COLOURS, FOR, GOOD, QUIET, array, axes_of, literal, rectangle

if TYPE_CHECKING:
    from retailkit.metrics import Evaluation

SIGNS = {"above zero": (GOOD, "o"), "below zero": (BAD, "X"), "not decided": (QUIET, "D")}  # of an interval
VERDICTS = {"as claimed": (GOOD, "o"), "the opposite": (BAD, "X"), "not decided": (QUIET, "D")}
VERDICTS |= {"more": (COLOURS[0], "^"), "less": (COLOURS[1], "v")}  # where no paper claims a direction
COSTS = {"minutes": "training, min", "ms": "ms per image", "MB": "MB"}  # of one step of an ablation


def bars(ax: Axes, names: Sequence[str], values: Any, colours: Any, low: Any = None, high: Any = None) -> Axes:
    """Draw one horizontal bar per row, the first on top, with its interval where `low` and `high` are given."""
    values, at = array(values), np.arange(len(names))
    ax.barh(at, values, color=colours, height=0.7)
    if low is not None:
        ax.errorbar(values, at, xerr=np.abs(np.vstack([values - array(low), array(high) - values])), fmt="none",
                    ecolor="#333333", elinewidth=1.2, capsize=3)  # fmt: skip
    ax.set_yticks(at, names)
    ax.set_ylim(len(names) - 0.4, -0.6)
    return literal(ax)


def diagram(boxes: Mapping[str, tuple[float, float]], arrows: Sequence[tuple[str, ...]], title: str = "") -> Figure:
    """Draw a block diagram.

    Args:
        boxes: text of each box -> its column and row, from 0, the first row on top. A star at the end of a text colours
            a box that has weights to learn; it is not shown.
        arrows: (from, to) or (from, to, label), by the texts of the boxes.
        title: of the whole figure.
    """
    columns, rows = np.array(list(boxes.values())).max(axis=0) + 1
    figure, ax = plt.subplots(figsize=(1.9 * columns, 0.9 * rows + 0.3))
    ax.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5), title=title)
    ax.set_axis_off()
    drawn = {}
    for text, (x, y) in boxes.items():
        style = {"boxstyle": "round,pad=0.5", "fc": COLOURS[4] if text.endswith("*") else "white", "ec": QUIET}
        drawn[text] = ax.text(x, y, text.strip(" *"), ha="center", va="center", fontsize=9, bbox=style)
    for start, end, *label in arrows:
        ends = {"patchA": drawn[start].get_bbox_patch(), "patchB": drawn[end].get_bbox_patch()}
        ax.annotate(
            "", boxes[end], boxes[start], arrowprops={"arrowstyle": "-|>", "color": QUIET, "shrinkB": 1, **ends}
        )
        x, y = np.add(boxes[start], boxes[end]) / 2
        ax.text(x, y - 0.08, "".join(label), fontsize=8, ha="center", va="bottom")
    return figure


def accuracy_bars(table: pd.DataFrame, ax: Axes | None = None, chance: float | None = None) -> Axes:
    """Draw `accuracy` with its interval, one bar per row of columns `name`, `accuracy`, `low` and `high`."""
    ax = axes_of(ax, (7, 0.42 * len(table) + 1.2))
    bars(ax, table["name"], table["accuracy"], COLOURS[0], table["low"], table["high"])
    for y, row in enumerate(table.itertuples()):
        ax.text(row.high + 0.012, y, f"{row.accuracy:.3f}", va="center", fontsize=8)
    if chance is not None:
        ax.axvline(chance, color=QUIET, linestyle=":")
        ax.text(chance, -0.6, "chance", color=QUIET, fontsize=8, ha="center", va="bottom")
    ax.set(xlim=(0, min(1.1, 1.12 * float(table["high"].max())) or 1.0), xlabel="accuracy (95 % interval)")
    return ax


def probabilities(probs: Any, classes: Sequence[str], true: int | None = None, ax: Axes | None = None) -> Axes:
    """Draw the five largest of K probabilities as bars; the class of index `true` is green and has a tick."""
    ax, probs = axes_of(ax, (5, 3)), array(probs)
    order = np.argsort(-probs)[:5]
    names = [("✓ " if i == true else "") + classes[i] for i in order]
    bars(ax, names, probs[order], [GOOD if i == true else QUIET for i in order])
    ax.set(xlim=(0, 1), xlabel="probability")
    ax.tick_params(axis="y", labelsize=8)
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
        value: name of the column.
        xlabel: below the axis.
        by: column that colours the dots and labels them. "" colours differences by their sign: green where the interval
            lies above zero, orange where below, grey where it holds zero.
        looks: colour and marker of each value of `by`; None takes the palette and dots.
        ax: where to draw.
    """
    names = list(dict.fromkeys(table["name"]))
    ax = axes_of(ax, (9, 0.32 * len(names) + 1.2))
    if by:
        kind = table[by]
        shades = cycle(COLOURS)  # again from the first where they run out
        looks = looks or {key: (shade, "o") for key, shade in zip(kind.unique(), shades, strict=False)}
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


def before_after(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw probabilities after a change as bars, before it as black lines: `model`, `label`, `before`, `after`.

    The first label is that of the class, in orange, the second that of its contrast class, in blue.
    """
    import seaborn as sns

    ax = axes_of(ax, (5, 4))
    of = {"y": "model", "hue": "label", "ax": ax}
    sns.barplot(table, x="after", palette=[FOR, AGAINST], **of)
    sns.stripplot(table, x="before", dodge=True, jitter=False, marker="|", size=16, linewidth=2, legend=False,
                  palette=["black"] * 2, **of)  # fmt: skip
    ax.set(xlim=(0, 1), xlabel="probability; black line: before the change", ylabel="")
    ax.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1))
    return literal(ax)


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
        bars(ax, table["name"], table[cost], QUIET)
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
    import seaborn as sns

    ax, colours = axes_of(ax, (5.5, 3.6)), sns.color_palette(COLOURS, table[by].nunique())
    sns.lineplot(table, x=x, y=y, hue=by, palette=colours, marker=marker, errorbar=None, legend=False, ax=ax)
    lines, groups = ax.lines[-len(colours) :], table.groupby(by, sort=False)
    for line, (name, part), colour in zip(lines, groups, colours, strict=True):
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

    `histories` are tables by the name of the run; rows of one `x`, such as seeds, are averaged. `columns` gives the
    title of each column's Axes, where a run without the column is left out. `smooth` is the share of a run over which
    a line is averaged.
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


def reliability(evaluations: Mapping[str, Evaluation]) -> Axes:
    """Draw accuracy against confidence, bin by bin (Guo et al. 2017, figure 1)."""
    ax = axes_of(None, (4.6, 4.4))
    tables = {f"{n} (error {e.calibration_error():.3f})": e.reliability() for n, e in evaluations.items()}
    table = pd.concat(tables, names=["name"]).reset_index("name")[["name", "confidence", "accuracy"]]
    curves(table.dropna(), "confidence", "confidence", ax)
    ax.plot([0, 1], [0, 1], color=QUIET, linestyle=":", label="perfectly calibrated", zorder=0)
    ax.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy", title="reliability")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), fontsize=8)
    return ax


def accuracy_grid(table: pd.DataFrame, rows: str, columns: str, ax: Axes | None = None) -> Axes:
    """Draw the column `accuracy` as a grid of numbers; `rows` and `columns` name the columns of its two sides."""
    grid = table.pivot(index=rows, columns=columns, values="accuracy")
    grid = grid.reindex(index=table[rows].unique(), columns=table[columns].unique())
    ax = axes_of(ax, (1.6 * grid.shape[1] + 2.5, 0.34 * len(grid) + 1))
    return _heatmap(grid, grid.index, grid.columns, ax, "accuracy", annot=True, fmt=".2f", annot_kws={"fontsize": 8})


def confusion(evaluation: Evaluation, groups: Sequence[str] | None = None) -> Axes:
    """Draw the confusion matrix as shares of each true class; classes of one group stand together in a frame."""
    families = np.asarray(groups if groups is not None else [""] * len(evaluation.classes))
    order = np.lexsort((evaluation.classes, families))
    counts = evaluation.confusion[np.ix_(order, order)]
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    labels = [evaluation.classes[i].title() for i in order] if len(order) <= 40 else []
    ax = _heatmap(shares, labels, [], axes_of(None, (7.2, 6.4)), "share of the true class", square=True)
    for family in np.unique(families[families != ""]):
        start, length = np.flatnonzero(families[order] == family)[0], int((families == family).sum())
        rectangle((start, start, start + length, start + length), ax, fill=False, edgecolor="white", linewidth=1.6)
    ax.set(xlabel="predicted", ylabel="true")
    return ax


def _heatmap(values: Any, rows: Sequence[str], columns: Sequence[str], ax: Axes, label: str, **options: Any) -> Axes:
    """Draw shares as a heat map. Names are set here, since seaborn measures its own before they can be made literal."""
    import seaborn as sns

    sns.heatmap(values, cmap="cividis", vmin=0, vmax=1, ax=ax, xticklabels=False, yticklabels=False,
                cbar_kws={"label": label}, **options)  # fmt: skip
    ax.set_yticks(np.arange(len(rows)) + 0.5, rows, fontsize=8)
    ax.set_xticks(np.arange(len(columns)) + 0.5, columns)
    ax.set(xlabel="", ylabel="")
    return literal(ax)
