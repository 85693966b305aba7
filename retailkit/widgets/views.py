"""What the explanation tool shows: pure functions, data in, HTML or pixels or a figure out.

Orange speaks for the class and blue against it, on one scale for the superpixels and words of a
model. HTML carries its own style, so that the same pieces make the tool and the pages it writes.
"""

from __future__ import annotations

import base64
import html
import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib import font_manager
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from skimage.segmentation import find_boundaries
from torch import Tensor

from retailkit import plots
from retailkit.explain.classes import ClassExplanation
from retailkit.explain.lime import LocalExplanation
from retailkit.widgets.desk import Change, Photo, steadiness

STYLE = """<style>
.rk{font:14px/1.35 system-ui,sans-serif;color:#1f2328;background:#fff;max-width:100%}
.rk h3{font-size:15px;margin:.2em 0}.rk p{margin:.2em 0}.rk small{color:#57606a}
.rk table{border-collapse:collapse}.rk td,.rk th{padding:1px 6px;text-align:left;border:0;background:#fff;color:#1f2328}
.rk .num{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.rk .badge{display:inline-block;border-radius:9px;padding:1px 8px;margin:2px 4px 2px 0;border:1px solid #d0d7de}
.rk .good{background:#d8f3e8;border-color:#009E73}.rk .fair{background:#fff3d6;border-color:#E69F00}
.rk .poor{background:#fbe3d3;border-color:#D55E00}
.rk .bar{position:relative;height:13px;background:#f0f2f4;border-radius:2px;overflow:hidden}
.rk .bar i{position:absolute;top:0;bottom:0;display:block}.rk .bar b{position:absolute;top:0;bottom:0;width:2px;background:#1f2328}
.rk .scale{height:10px;border-radius:2px;background:linear-gradient(90deg,#0072B2,#F7F7F7,#D55E00)}
.rk .problem{background:#fbe3d3;border-left:4px solid #D55E00;padding:6px 10px}
.rk figure{display:inline-block;margin:4px 10px 4px 0;vertical-align:top}.rk figcaption{font-size:12px}
.rk .side{display:flex;gap:18px;flex-wrap:wrap}.rk .side>div{flex:0 1 300px}
</style>"""  # noqa: E501
STEADY, SHAKY = 0.8, 0.5  # rank correlation of explanations with other masks
CLEAR = 0.6  # held-out R² from which the line fits well
MORE_WORDS = 12  # shown of a photo


def escape(text: Any) -> str:
    """Return a text that is safe inside HTML."""
    return html.escape(str(text))


def block(*parts: str) -> str:
    """Return pieces of HTML as one that carries the style of the tool."""
    return f'<div class="rk">{"".join(parts)}</div>'


def problem(message: str) -> str:
    """Return a message about something that went wrong."""
    return block(f'<p class="problem" role="alert">{escape(message)}</p>')


def page(title: str, *parts: str) -> str:
    """Return a page of HTML that needs nothing else."""
    head = f'<meta charset="utf-8"><title>{escape(title)}</title>{STYLE}'
    body = block(f"<h1>{escape(title)}</h1>", *parts)
    return f'<!doctype html><html lang="en"><head>{head}</head><body style="margin:2rem">{body}</body></html>'


def beside(*parts: str) -> str:
    """Return pieces of HTML side by side, or below each other where there is no room."""
    return f'<div class="side">{"".join(f"<div>{part}</div>" for part in parts)}</div>'


def image_tag(pixels: np.ndarray, alt: str) -> str:
    """Return pixels (H,W,3) uint8 as a tag that holds them."""
    code = base64.b64encode(png_of(pixels)).decode()
    return f'<img src="data:image/png;base64,{code}" alt="{escape(alt)}" style="max-width:100%">'


def png_of(pixels: np.ndarray) -> bytes:
    """Return pixels (H,W,3) uint8 as a PNG."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png", compress_level=3)
    return stream.getvalue()


# -- Pictures.


def enlarged(image: Any, side: int) -> np.ndarray:
    """Return a picture (3,H,W) in [0,1] or (H,W,3) as (h,w,3) uint8, its longer side being `side` pixels."""
    pixels = np.asarray(image.cpu() if isinstance(image, Tensor) else image, dtype=float)
    pixels = pixels.transpose(1, 2, 0) if pixels.shape[0] == 3 else pixels
    scale = side / max(pixels.shape[:2])
    size = (round(pixels.shape[1] * scale), round(pixels.shape[0] * scale))
    return np.asarray(Image.fromarray((255 * pixels).round().astype(np.uint8)).resize(size, Image.Resampling.BICUBIC))


def strongest(explanation: LocalExplanation) -> float:
    """Return the largest absolute weight in the first row of an explanation: its full colour. 0 where there is none.

    Logits of models have different scales, so that each model has a scale of its own.
    """
    return max(float(np.abs(part[0]).max(initial=0)) for part in (explanation.image_weights, explanation.text_weights))


def tint(weight: float, limit: float) -> str:
    """Return the colour (hex) of a weight on the signed scale that ends at `limit`."""
    return to_hex(plots.SIGNED(0.5 + 0.5 * float(np.clip(weight / limit, -1, 1)) if limit else 0.5))


def signed_map(explanation: LocalExplanation, side: int, image: Tensor) -> np.ndarray:
    """Lay the weights of superpixels over the picture in grey, and those of words over their boxes.

    Args:
        explanation: its first row is shown; superpixels and words share one scale.
        side: of the result in pixels.
        image: (3,H,W) to show for a model that has no picture of its own.

    Returns:
        (side,side,3) uint8.
    """
    shown, limit = explanation.image if explanation.image is not None else image, strongest(explanation)
    grey = 0.35 + 0.65 * shown.mean(0).cpu().numpy()
    pixels = np.repeat(grey[..., None], 3, 2)
    if explanation.image is not None and limit:
        heat = explanation.heat() / limit
        alpha = 0.85 * np.abs(heat).clip(0, 1)[..., None]
        pixels = (1 - alpha) * pixels + alpha * plots.SIGNED(0.5 + 0.5 * heat.clip(-1, 1))[..., :3]
    canvas = Image.fromarray(enlarged(pixels, side))
    for unit, weight in zip(explanation.tokens, explanation.text_weights[0], strict=True):
        _word_boxes(canvas, unit.words, side / grey.shape[1], tint(weight, limit), abs(weight) / limit if limit else 0)
    return np.asarray(canvas)


def _word_boxes(canvas: Image.Image, words: Sequence[Any], scale: float, colour: str, strength: float) -> None:
    """Fill and frame the boxes of words: the stronger, the fuller."""
    cover = Image.new("RGBA", canvas.size)
    pen = ImageDraw.Draw(cover)
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    for word in words:
        box = [scale * edge for edge in word.box]
        if box[2] > box[0] and box[3] > box[1]:
            pen.rectangle(box, (red, green, blue, int(170 * min(1, strength))), (60, 60, 60, 255), 1)
    canvas.paste(Image.alpha_composite(canvas.convert("RGBA"), cover).convert("RGB"))


def changed_picture(image: Tensor, photo: Photo, change: Change, side: int = 320) -> np.ndarray:
    """Show a picture after a change, with thin borders of superpixels and words; what is switched off is crossed out.

    Args:
        image: (3,H,W) after the change.
        photo: has the superpixels and words.
        change: what was changed.
        side: of the result in pixels.

    Returns:
        (side,side,3) uint8.
    """
    canvas = Image.fromarray(enlarged(image, side))
    scale = side / image.shape[-1]
    rows = (np.arange(side) / scale).astype(int).clip(0, image.shape[-1] - 1)
    large = photo.segments[rows][:, rows]
    pixels = np.asarray(canvas).astype(float)
    pixels[find_boundaries(large, mode="inner")] = 0.6 * pixels[find_boundaries(large, mode="inner")] + 0.4 * 255
    off = np.isin(large, list(change.hidden))
    stripes = (np.add.outer(np.arange(side), np.arange(side)) % 14) < 2
    pixels[off & stripes] = 40
    canvas = Image.fromarray(pixels.astype(np.uint8))
    pen = ImageDraw.Draw(canvas)
    for number, unit in enumerate(photo.tokens):
        gone = number in change.unread and change.text is None
        for word in unit.words:
            box = [scale * edge for edge in word.box]
            if box[2] > box[0] and box[3] > box[1]:
                pen.rectangle(box, None, "#D55E00" if gone else "#0072B2", 2)
                if gone:
                    pen.line([(box[0], box[3]), (box[2], box[1])], "#D55E00", 2)
    return np.asarray(canvas)


def regions(photo: Photo) -> np.ndarray:
    """Return which part each pixel belongs to, (H,W): superpixels 0..S-1, words from S on, a word over its place."""
    labels, first = photo.segments.copy(), int(photo.segments.max()) + 1
    for number, unit in enumerate(photo.tokens):
        for word in unit.words:
            x0, y0, x1, y1 = (max(0, round(edge)) for edge in word.box)
            labels[y0:y1, x0:x1] = first + number
    return labels


def region_names(photo: Photo, explanation: LocalExplanation | None, change: Change) -> list[str]:
    """Return what is said of each part under the mouse: what it is, its weight, and what a click does."""
    count = int(photo.segments.max()) + 1
    seen, read = ({}, {})
    if explanation is not None:
        if explanation.image is not None:
            seen = dict(enumerate(explanation.image_weights[0]))
        read = dict(enumerate(explanation.text_weights[0]))
    names = []
    for number in range(count + len(photo.tokens)):
        word = number - count
        weight = (seen if word < 0 else read).get(number if word < 0 else word)
        name = f"part {number}" if word < 0 else f"word {photo.tokens[word].text}"
        off = number in change.hidden if word < 0 else word in change.unread
        told = "" if weight is None else f", weight {weight:+.2f}"
        names.append(f"{name}{told}: click to switch {'on' if off else 'off'}")
    return names


def thumbnails(
    images: Sequence[Any], captions: Sequence[str], marks: Sequence[bool | None], chosen: int = -1, side: int = 112
) -> tuple[np.ndarray, np.ndarray]:
    """Lay photos side by side, each with a caption and a mark: a tick in green, a cross in orange.

    Args:
        images: (3,H,W) each.
        captions: one a photo; cut where they are too long.
        marks: True for right, False for wrong, None for neither.
        chosen: which of them has a frame.
        side: of a photo in pixels.

    Returns:
        Pixels (h,w,3) uint8, and (h,w) int which photo each of them belongs to, -1 for none.
    """
    gap, below = 6, 34
    width = max(1, len(images)) * (side + gap) + gap
    sheet = Image.new("RGB", (width, side + below + 2 * gap), "white")
    pen, labels = ImageDraw.Draw(sheet), np.full((sheet.height, width), -1)
    for number, (image, caption, mark) in enumerate(zip(images, captions, marks, strict=True)):
        x = gap + number * (side + gap)
        labels[:, x : x + side] = number
        sheet.paste(Image.fromarray(enlarged(image, side)), (x, gap))
        if number == chosen:
            pen.rectangle((x - 3, gap - 3, x + side + 2, gap + side + 2), outline="#0072B2", width=3)
        sign, shade = {True: ("✓ ", "#00674B"), False: ("✗ ", "#A34700"), None: ("", "#444444")}[mark]
        for line, text in enumerate(_lines(sign + caption, side)):
            pen.text((x, gap + side + 3 + 15 * line), text, shade, _font(12))
    return np.asarray(sheet), labels


def _lines(text: str, width: int, most: int = 2) -> list[str]:
    """Break a text into lines of at most `width` pixels; what is too long ends in an ellipsis."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if _font(12).getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    shown = lines[:most]
    if len(lines) > most:
        shown[-1] += " …"
    for number, line in enumerate(shown):
        while _font(12).getlength(line) > width:
            line = line.removesuffix("…")[:-1] + "…"
        shown[number] = line
    return shown


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size)


# -- What an explanation says.


def question(classes: Sequence[str], label: int, rival: int) -> str:
    """Return the question that is explained."""
    return f"Why {classes[label]} and not {classes[rival]}?"


def legend(classes: Sequence[str], label: int, rival: int) -> str:
    """Return the scale of colours."""
    ends = f"<td>◀ for {escape(classes[rival])}</td><td style='width:160px'><div class='scale'></div></td>"
    ends += f"<td>for {escape(classes[label])} ▶</td>"
    return f"<table><tr>{ends}</tr></table>"


def said(name: str, classes: Sequence[str], before: np.ndarray | None, after: np.ndarray | None, truth: int) -> str:
    """Return what a model says of a photo, and of the changed photo.

    Args:
        name: of the model.
        classes: K names.
        before: (K,) probabilities, or None for no answer.
        after: the same after a change.
        truth: index of the true class, -1 if it is not known.
    """
    if before is None:
        return f"<h3>{escape(name)}</h3><p>no answer: this model only reads, and there is nothing to read</p>"
    top = int(before.argmax())
    mark = "" if truth < 0 else " ✓" if top == truth else f" ✗ <small>it is {escape(classes[truth])}</small>"
    line = f"<p>says <b>{escape(classes[top])}</b> p = {before[top]:.2f}{mark}</p>"
    if after is not None and not np.allclose(before, after, atol=5e-4):
        now = int(after.argmax())
        line += f"<p>with your changes: <b>{escape(classes[now])}</b> p = {after[now]:.2f}</p>"
    return f"<h3>{escape(name)}</h3>{line}"


def badges(explanation: LocalExplanation) -> str:
    """Return how far to trust an explanation: fit, steadiness, the words' share, and what was asked."""
    if explanation.nothing:
        return f'<span class="badge poor">nothing to explain: {escape(explanation.nothing)}</span>'
    r2, steady, counts = float(explanation.r2[0]), steadiness(explanation), explanation.evaluations
    fit = _badge("held-out R²", r2, CLEAR, plots.WEAK, "the line fits", "a hint", "weak, read it as a hint at best")
    hold = _badge("steadiness", steady, STEADY, SHAKY, "steady", "fairly steady", "shaky, refine it")
    share, (low, high) = explanation.share[0], explanation.share_intervals[0]
    parts = [fit, hold]
    if counts["images"] and counts["texts"]:
        told = "words' share unknown" if math.isnan(share) else f"words {share:.0%} ({low:.0%} to {high:.0%}) of weight"
        parts.append(f'<span class="badge">{told}</span>')
    asked = f"{counts['images']} masked pictures, {counts['texts']} masked texts, {counts['pairs']} pairs"
    return "".join([*parts, f"<p><small>{asked}</small></p>"])


def _badge(name: str, value: float, high: float, low: float, good: str, fair: str, poor: str) -> str:
    if math.isnan(value):
        return f'<span class="badge poor">{name} not known yet</span>'
    kind, words = ("good", good) if value >= high else ("fair", fair) if value >= low else ("poor", poor)
    return f'<span class="badge {kind}">{name} {value:.2f}: {words}</span>'


def word_weights(explanation: LocalExplanation, top: int = MORE_WORDS) -> str:
    """Return the heaviest words as bars, from the one that says most for the class down.

    Args:
        explanation: of one photo; its first row is shown. A full bar is its strongest weight, of any part.
        top: words shown.
    """
    table, limit = explanation.words(), strongest(explanation)
    if table.empty:
        return "<p><small>this model reads no words</small></p>"
    shown = table.loc[table["weight"].abs().nlargest(top).index].sort_values("weight", ascending=False)
    rows = [_word_row(word, limit) for word in shown.itertuples()]
    rest = len(table) - len(shown)
    more = f"<p><small>and {rest} lighter ones</small></p>" if rest else ""
    return f'<table aria-label="weights of words">{"".join(rows)}</table>{more}'


def _word_row(word: Any, limit: float) -> str:
    part = 50 * min(1, abs(word.weight) / limit) if limit else 0
    left = 50 if word.weight > 0 else 50 - part
    bar = f'<i style="left:{left:.1f}%;width:{part:.1f}%;background:{tint(word.weight, limit)}"></i>'
    told = "" if math.isnan(word.low) else f"95 % interval {word.low:.2f} to {word.high:.2f}"
    cells = f'<td>{escape(word.text[:24])}</td><td style="width:110px"><div class="bar">{bar}</div></td>'
    return f'<tr title="{told}">{cells}<td class="num">{word.weight:+.2f}</td></tr>'


def probabilities(
    before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray], classes: Sequence[str], label: int, rival: int
) -> str:
    """Return the probabilities of the class and its twin as bars: a line where it was, the bar where it is now.

    Args:
        before: (K,) by model, of the photo as it is.
        after: (K,) by model, of the changed photo; a model that has no answer is missing.
        classes: K names.
        label: index of the class, in orange.
        rival: index of the twin, in blue.
    """
    parts = []
    for name, old in before.items():
        new = after.get(name)
        parts.append(f"<h3>{escape(name)}</h3>")
        if new is None:
            parts.append("<p>no answer: there is nothing left that this model goes by</p>")
            continue
        shown = list(dict.fromkeys([label, rival, int(new.argmax())]))
        rows = [_probability_row(classes[i], old[i], new[i], i, label, rival) for i in shown]
        parts.append(f'<table aria-label="probabilities before and after">{"".join(rows)}</table>')
    return "".join(parts)


def _probability_row(name: str, old: float, new: float, index: int, label: int, rival: int) -> str:
    shade = {label: "#D55E00", rival: "#0072B2"}.get(index, "#8A8F98")
    bar = f'<i style="left:0;width:{100 * new:.1f}%;background:{shade}"></i>'
    bar += f'<b style="left:{100 * min(old, 0.99):.1f}%"></b>'
    told = f"{old:.2f} → <b>{new:.2f}</b>"
    return (
        f'<tr data-class="{escape(name)}"><td style="width:150px">{escape(name)}</td>'
        f'<td style="width:200px"><div class="bar">{bar}</div></td><td class="num">{told}</td></tr>'
    )


def class_summary(explained: ClassExplanation, check: pd.DataFrame) -> str:
    """Return what a class is recognised by: typical superpixels, phrases with their spellings, and the deletion check.

    Args:
        explained: the class.
        check: of `classes.deletion_check`; empty where no photo was left for it.
    """
    share = "" if math.isnan(explained.text_share) else f", words have {explained.text_share:.0%} of the weight"
    skipped = f", {explained.skipped} had nothing to explain" if explained.skipped else ""
    parts = [f"<h3>{escape(explained.name)}</h3><p>{_photos(len(explained.photos))}{share}{skipped}</p>"]
    parts += ["<h3>What it sees</h3>", _seen(explained), "<h3>What it reads</h3>", _phrases(explained)]
    parts += ["<h3>Does it need that? Hidden on photos that were not explained</h3>", _check(check)]
    return "".join(parts)


def _photos(count: int) -> str:
    return f"{count} photo" + "s" * (count != 1)


def _seen(explained: ClassExplanation) -> str:
    if explained.image_note:
        return f"<p>nothing: {escape(explained.image_note)}</p>"
    figures = []
    for row in explained.image_features.head(explained.top).itertuples():
        crops = "".join(image_tag(enlarged(c, 84), f"typical part {row.cluster}") for c in explained.crops(row.cluster))
        side = "for" if row.weight > 0 else "against"
        told = f"part {row.cluster}: {side}, {row.share:.0%} of the picture's weight, on {_photos(row.support)}"
        figures.append(f"<figure>{crops}<figcaption>{told}</figcaption></figure>")
    return "".join(figures)


def _phrases(explained: ClassExplanation) -> str:
    table = explained.text_features.head(explained.top)
    if table.empty:
        return "<p>no words</p>"
    head = "<tr><th>phrase</th><th>side</th><th>share</th><th>photos</th><th>read as</th></tr>"
    rows = []
    for row in table.itertuples():
        spelt = ", ".join(f"{escape(text)} × {count}" for text, count in row.variants.items())
        side = "for" if row.weight > 0 else "against"
        rows.append(
            f"<tr><td><b>{escape(row.canonical)}</b></td><td>{side}</td><td class='num'>{row.share:.0%}</td>"
            f"<td class='num'>{row.samples}</td><td>{spelt}</td></tr>"
        )
    return f"<table>{head}{''.join(rows)}</table>"


def _check(check: pd.DataFrame) -> str:
    tested = check[check["n"] > 0] if len(check) else check
    if not len(tested):
        return "<p>no other photo of this class shows any of it</p>"
    head = "<tr><th>what is hidden</th><th>photos</th><th>margin falls by</th><th>by as much at random</th></tr>"
    rows = []
    for row in tested.itertuples():
        name = f"part {row.feature}" if row.kind == "image" else row.feature
        rows.append(
            f"<tr><td>{escape(name)}</td><td class='num'>{row.n}</td><td class='num'>{row.margin_drop:.2f}</td>"
            f"<td class='num'>{row.margin_random_drop:.2f}</td></tr>"
        )
    return f"<table>{head}{''.join(rows)}</table>"


def comparison(left: LocalExplanation, right: LocalExplanation, names: Sequence[str]) -> str:
    """Return how two explanations differ, in a table: what was asked, trust, the words' share and the words.

    Args:
        left: one explanation.
        right: the other one.
        names: what to call them.
    """
    sides = (left, right)
    rows = {
        "asks": [escape(e.question) for e in sides],
        "probability": [f"{e.probs[e.explained[0]]:.2f}" for e in sides],
        "held-out R²": [f"{e.r2[0]:.2f}" for e in sides],
        "words' share": [f"{e.share[0]:.0%}" if np.isfinite(e.share[0]) else "not known" for e in sides],
        "heaviest words": [escape(", ".join(_heaviest(e)) or "none") for e in sides],
    }
    cells = "".join(f"<tr><th>{name}</th><td>{a}</td><td>{b}</td></tr>" for name, (a, b) in rows.items())
    both = [word for word in _heaviest(left) if word in _heaviest(right)]
    told = f"Words among the heaviest of both: {escape(', '.join(both) or 'none')}."
    if (alike := same_order(left, right)) is not None:
        told += f" Their maps agree by a rank correlation of {alike:.2f} (1: same order, 0: as by chance)."
    head = f"<tr><th></th><th>{escape(names[0])}</th><th>{escape(names[1])}</th></tr>"
    return f"<table>{head}{cells}</table><p>{told}</p>"


def _heaviest(explanation: LocalExplanation, count: int = 5) -> list[str]:
    table = explanation.words()
    return table.loc[table["weight"].abs().nlargest(count).index, "text"].tolist()


def same_order(left: LocalExplanation, right: LocalExplanation) -> float | None:
    """Return the rank correlation of two maps of one picture; None where pictures or superpixels differ."""
    if left.image is None or right.image is None or not np.array_equal(left.segments, right.segments):
        return None
    if not bool((left.image == right.image).all()):
        return None
    ranks = [pd.Series(e.image_weights[0]).rank() for e in (left, right)]
    return float(ranks[0].corr(ranks[1]))


# -- Figures: for files and for the notebook.


def why_figure(explained: Mapping[str, tuple[Tensor, LocalExplanation]]) -> Figure:
    """Draw explanations side by side: maps above, words below.

    Args:
        explained: pictures, (3,H,W), and their explanations, by name; at least one.
    """
    figure, axes = plt.subplots(2, len(explained), figsize=(4.3 * len(explained), 7.2), squeeze=False)
    for (name, (image, explanation)), (top, below) in zip(explained.items(), axes.T, strict=True):
        top.imshow(signed_map(explanation, 480, image))
        top.set_xticks([])
        top.set_yticks([])
        probability = explanation.probs[explanation.explained[0]]
        title = (name, explanation.question, f"p = {probability:.2f}")
        top.set_title("\n".join(textwrap.fill(line, 40) for line in title), fontsize=9)
        plots.word_bars(explanation, 0, below)
    return figure


def what_if_figure(
    pictures: Sequence[np.ndarray],
    before: Mapping[str, np.ndarray],
    after: Mapping[str, np.ndarray],
    classes: Sequence[str],
    label: int,
    rival: int,
    texts: Sequence[str] = ("", ""),
) -> Figure:
    """Draw a photo before and after a change, and the probabilities of the class and its twin.

    Args:
        pictures: (H,W,3) uint8, before and after.
        before: (K,) by model.
        after: (K,) by model.
        classes: K names.
        label: index of the class.
        rival: index of its twin.
        texts: what is read, before and after.
    """
    figure, axes = plt.subplots(1, 3, figsize=(12, 4.2), width_ratios=(1, 1, 1.3))
    for ax, pixels, title, text in zip(axes, pictures, ("as it is", "what if"), texts, strict=False):
        plots.image(pixels, title, ax)
        ax.set_xlabel("\n".join(_lines(text, 330, 3)), fontsize=7)
    names = [name for name in before if name in after]
    for number, name in enumerate(names):
        for offset, index, shade in ((-0.2, label, plots.BAD), (0.2, rival, plots.COLOURS[0])):
            axes[2].barh(number + offset, after[name][index], 0.36, color=shade)
            axes[2].plot([before[name][index]] * 2, [number + offset - 0.18, number + offset + 0.18], color="black")
    axes[2].set_yticks(range(len(names)), names, fontsize=9)
    axes[2].set(xlim=(0, 1), xlabel="probability; black line: before the change")
    axes[2].invert_yaxis()
    handles = [plt.Rectangle((0, 0), 1, 1, color=shade) for shade in (plots.BAD, plots.COLOURS[0])]
    axes[2].legend(handles, [classes[label], classes[rival]], fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1))
    return figure
