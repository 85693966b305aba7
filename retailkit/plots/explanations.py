"""Explanations: orange speaks for the class, blue against it, on one scale that is symmetric around zero."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.ndimage import gaussian_filter

from retailkit.plots.charts import bars
from retailkit.plots.images import image, outline, visible
from retailkit.plots.style import AGAINST, FOR, QUIET, SIGNED, array, as_written, axes_of, rectangle

if TYPE_CHECKING:  # drawing an explanation does not need what makes it
    from retailkit.data.table import Word
    from retailkit.explain.classes import ClassExplanation
    from retailkit.explain.lime import LocalExplanation

GOOD_FIT, WEAK_FIT = 0.6, 0.3  # held-out R² of a surrogate


def attribution(
    pixels: Any,
    attr: Any,
    ax: Axes | None = None,
    limit: float | None = None,
    title: str = "",
    blur: float = 0.0,
) -> Axes:
    """Lay a signed attribution (H,W) over an image (3,H,W) that is paled to grey.

    `limit` is the value of the full colour on both sides, to be shared across a grid; None takes the strength that one
    pixel in 200 exceeds, so that a few extreme pixels do not pale all others. `blur` is the standard deviation in
    pixels by which the map is blurred first, since gradients of single pixels are too fine to see.
    """
    attr = gaussian_filter(array(attr), blur)
    strength = np.abs(attr)
    limit = limit or float(np.quantile(strength, 0.995)) or float(strength.max())
    ax = image(_paled(pixels), title if limit else f"{title} (no effect anywhere)", ax)
    if limit:
        ax.imshow(attr, cmap=SIGNED, vmin=-limit, vmax=limit, alpha=0.85 * np.clip(strength / limit, 0, 1))
    return ax


def word_attributions(pixels: Any, found: Sequence[Word], values: Any, ax: Axes | None = None, title: str = "") -> Axes:
    """Tint N words on an image by their signed values (N,), with full colour for the largest."""
    values = array(values)
    limit = float(np.abs(values).max(initial=0.0))
    ax = image(_paled(pixels), title if limit else f"{title} (no effect anywhere)", axes_of(ax, (4, 4)))
    _tint_words(found, values, ax, limit)
    return ax


def _tint_words(found: Sequence[Word], values: Any, ax: Axes, limit: float) -> None:
    for word, value in zip(found, values, strict=True):
        if visible([word]):
            shade = (*_shade(value, limit)[:3], 0.6 * min(1.0, abs(value) / limit) if limit else 0.0)
            rectangle(word.box, ax, facecolor=shade, edgecolor="#333333", linewidth=0.8)


def _shade(value: float, limit: float) -> tuple[float, ...]:
    """Return the colour (red, green, blue, 1) of a value on the signed scale that ends at `limit`."""
    return SIGNED(0.5 + 0.5 * float(np.clip(value / limit, -1, 1)) if limit else 0.5)


def _paled(pixels: Any) -> np.ndarray:
    """Return an image (3,H,W) in light grey, for colours to lie on."""
    return np.repeat(0.35 + 0.65 * array(pixels).mean(0, keepdims=True), 3, 0)


def window_map(pixels: Any, corners: Any, contributions: Any, title: str = "") -> Axes:
    """Lay the contributions (N,) of LCA's windows (N,4) over an image and frame the three largest.

    Each contribution to the logit of the class is spread evenly over its window.
    """
    corners, contributions = np.asarray(corners), array(contributions)
    spread = np.zeros(np.asarray(pixels).shape[1:])
    for (x0, y0, x1, y1), c in zip(corners, contributions, strict=True):
        spread[y0:y1, x0:x1] += c / ((x1 - x0) * (y1 - y0))
    ax = attribution(pixels, spread, title=title)
    for box in corners[np.argsort(-contributions)[:3]]:
        rectangle(box, ax, fill=False, edgecolor=FOR, linewidth=1.4)
    return ax


def explanation_map(
    explanation: LocalExplanation, row: int = 0, ax: Axes | None = None, pixels: Any = None, title: str = ""
) -> Axes:
    """Lay the weights of superpixels and words over the image, on one scale that ends at the strongest of them.

    Where `explanation.verdict` says that they must not be shown, the image is shown alone. `pixels` is the image to
    show under the words of a model that only reads, which has none of its own.
    """
    limit, shown = strongest(explanation, row), explanation.image if explanation.image is not None else pixels
    if explanation.verdict(row):
        return image(shown, title, ax)
    heat = explanation.heat(row) if explanation.image is not None else np.zeros(shown.shape[-2:])
    ax = attribution(shown, heat, ax, limit or 1.0, title)
    for token, weight in zip(explanation.tokens, explanation.text_weights[row], strict=True):
        _tint_words(token.words, [weight] * len(token.words), ax, limit)
    return ax


def strongest(explanation: LocalExplanation, row: int = 0) -> float:
    """Return the largest absolute weight of any superpixel or word: the full colour. 0 where there is none."""
    weights = np.concatenate([explanation.image_weights[row], explanation.text_weights[row]])
    return float(np.abs(weights).max(initial=0))


def local_explanation(explanation: LocalExplanation, axes: Sequence[Axes] | None = None, pixels: Any = None) -> Figure:
    """Show why a model prefers the first class to its contrast class: superpixels, words, and how far to trust it.

    `axes` are two, for the image and the words; `pixels` is as in `explanation_map`.
    """
    if axes is None:
        axes = plt.subplots(1, 2, figsize=(9, 4.2), width_ratios=(1, 1.1))[1]
    names = [explanation.classes[i] for i in (explanation.explained[0], explanation.contrasts[0]) if i >= 0]
    title = "\nrather than ".join(names)
    if explanation.image is None and pixels is None:
        axes[0].set_axis_off()
        as_written(axes[0].set_title(title, fontsize=8, fontweight="normal"))
    else:
        explanation_map(explanation, 0, axes[0], pixels, title)
    _word_bars(explanation, axes[1])
    return axes[0].figure


def local_explanations(found: Mapping[str, tuple[Any, LocalExplanation]]) -> Figure:
    """Draw explanations side by side, maps above words: name -> the image (3,H,W) and its explanation."""
    figure, axes = plt.subplots(2, len(found), figsize=(4.3 * len(found), 7.2), squeeze=False)
    for (name, (pixels, explanation)), column in zip(found.items(), axes.T, strict=True):
        local_explanation(explanation, column, pixels)
        title = (name, explanation.question, f"p = {explanation.probs[explanation.explained[0]]:.2f}")
        as_written(column[0].set_title("\n".join(textwrap.fill(line, 40) for line in title), fontsize=9))
    return figure


def strongest_words(explanation: LocalExplanation, row: int = 0) -> pd.DataFrame:
    """Return the twelve words of the largest absolute weights: `text`, `weight`, `low` and `high`, largest first."""
    table = explanation.words(row)
    return table.loc[table["weight"].abs().nlargest(12).index].sort_values("weight", ascending=False)


def _word_bars(explanation: LocalExplanation, ax: Axes) -> None:
    """Draw the strongest words with their 95 % intervals, and below them what the explanation rests on."""
    table, limit = strongest_words(explanation), strongest(explanation)
    names, shades = [text[:24] for text in table["text"]], [_shade(weight, limit) for weight in table["weight"]]
    bars(ax, names, table["weight"], shades, table["low"], table["high"])
    ax.tick_params(axis="y", labelsize=8)
    if table.empty:
        ax.text(0.5, 0.5, "no words", fontsize=9, color=QUIET, ha="center", transform=ax.transAxes)
        ax.set_xticks([])
    ax.axvline(0, color=QUIET, linewidth=0.8)
    lines = [f"weight in the {explanation.options.target}", *trust(explanation)]
    ax.set_xlabel("\n".join(textwrap.fill(line, 60) for line in lines), fontsize=8)


def trust(explanation: LocalExplanation, row: int = 0) -> list[str]:
    """Return lines on how far to trust an explanation: its fit, the share of the words, and what it rests on."""
    if verdict := explanation.verdict(row):
        return [verdict]
    fit, count, (low, high) = explanation.r2[row], explanation.evaluations, explanation.share_intervals[row]
    grade = "good fit" if fit >= GOOD_FIT else "moderate fit" if fit >= WEAK_FIT else "weak fit, only a hint"
    lines, made = [f"held-out R² {fit:.2f}: {grade}"], []
    if math.isnan(fit):
        lines = ["every possible mask was evaluated"]
    if count["images"] and count["texts"] and not math.isnan(explanation.share[row]):
        lines.append(f"words carry {explanation.share[row]:.0%} of the weight ({low:.0%} to {high:.0%})")
    if count["images"]:
        made.append(f"{count['images']} images with hidden parts")
    if count["texts"]:
        made.append(f"{count['texts']} texts with hidden words")
    return [*lines, f"from {' and '.join(made)}"]


def class_explanation(explained: ClassExplanation, images: int = 3, texts: int = 6) -> Figure:
    """Show what a class is recognised by: a typical photo of each image feature, and bars of its text features.

    At most `images` and `texts` features are drawn, the heaviest that two photos show.
    """
    seen = _shown_twice(explained, explained.image_features, "support").head(images)
    read = _shown_twice(explained, explained.text_features, "samples").head(texts)
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
    as_written(figure.suptitle(title, fontsize=11, fontweight="bold"))
    return figure


def _shown_twice(explained: ClassExplanation, features: pd.DataFrame, photos: str) -> pd.DataFrame:
    """Return the features that at least two photos show, or all where only one photo was explained."""
    return features[features[photos] >= min(2, len(explained.photos))]


def class_comparison(explained: Mapping[str, ClassExplanation], table: pd.DataFrame) -> Figure:
    """Show side by side what models recognise one class by: two typical photos above, the same phrases below.

    `explained` holds the class for each model, `table` is what `classes.compare` makes of them.
    """
    parts = table[table.index.get_level_values("kind") == "text"].droplevel("kind").head(8)
    limit = 1.1 * float(parts.abs().to_numpy().max(initial=0)) or 1.0
    figure = plt.figure(figsize=(4.4 * len(explained), 2.8 + 0.3 * len(parts)))
    columns = figure.subfigures(1, len(explained), squeeze=False)[0]
    for part, (name, found) in zip(columns, explained.items(), strict=True):
        share = "" if np.isnan(found.text_share) else f": words have {found.text_share:.0%} of its weight"
        as_written(part.suptitle(f"{name}{share}", fontsize=10, fontweight="bold"))
        seen = _shown_twice(found, found.image_features, "support").head(2)
        grid = part.add_gridspec(2, 2, height_ratios=(2.1, 0.3 * len(parts) + 0.5))
        for place in range(2):
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
    ax.set_axis_off()
    ax.text(0.5, 0.5, text, fontsize=9, color=QUIET, ha="center", transform=ax.transAxes)


def _spellings(row: Any) -> str:
    spellings = f", {len(row.variants)} spellings" if len(row.variants) > 1 else ""
    photos = "photo" if row.samples == 1 else "photos"
    return f"{textwrap.shorten(row.canonical, 26, placeholder='…')}  ({row.samples} {photos}{spellings})"


def _phrase_bars(names: Sequence[str], values: Any, ax: Axes, xlabel: str, limit: float | None = None) -> None:
    values = array(values)
    limit = limit or 1.1 * float(np.abs(values).max(initial=0)) or 1.0
    bars(ax, names, values, [FOR if value > 0 else AGAINST for value in values])
    ax.tick_params(axis="y", labelsize=8)
    ax.axvline(0, color=QUIET, linewidth=0.8)
    ax.set(xlim=(-limit, limit))
    ax.set_xlabel(xlabel, fontsize=8)
    ax.locator_params(axis="x", nbins=5)


def typical_superpixel(explained: ClassExplanation, number: int, ax: Axes, title: bool = True) -> Axes:
    """Show the most typical superpixel of image feature `number` on its photo, whose rest is paled."""
    row = explained.image_features.loc[number]
    photo, segment = row["medoid"]
    own = explained.explanations[explained.photos.index(photo)]
    inside, pixels = own.segments == segment, array(own.image)
    shade = FOR if row["weight"] > 0 else AGAINST
    side, photos = "for" if row["weight"] > 0 else "against", "photo" if row["support"] == 1 else "photos"
    text = f"{side}: {row['share']:.0%} of weight\n{row['support']} {photos}" if title else ""
    image(np.where(inside, pixels, 0.7 + 0.3 * pixels), text, ax)
    ax.title.set_color(shade)
    return outline(inside, shade, ax)
