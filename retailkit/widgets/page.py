"""What each view of the explanation tool shows, as sections of a page; and the page of one explanation.

One template makes HTML of sections and escapes what comes from outside. A saved page holds what the tool shows.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image as Pixels

from retailkit import plots
from retailkit.config import UserError, pick
from retailkit.data.images import read_image
from retailkit.explain.classes import ClassExplanation
from retailkit.explain.lime import LocalExplanation
from retailkit.widgets.model import Change, Photo, State, stability

HERE = Path(__file__).parent
STYLE = (HERE / "page.css").read_text(encoding="utf-8")
TEMPLATE = jinja2.Environment(autoescape=True).from_string((HERE / "page.html.j2").read_text(encoding="utf-8"))
THUMBNAIL = 160  # longer side in pixels of a small photo
SIDE = 280  # pixels of an image; three of them fit beside each other in JupyterLab on a screen of 1366
VIEWS = {"why": "Why?", "what_if": "What if?", "class": "The whole class"}
NOTHING = "Nothing is explained yet. Choose Explain first."
STABLE, UNSTABLE = 0.8, 0.5  # rank correlation of explanations from other masks
DELETION = {  # columns of the deletion check, and what they are called on a page
    "feature": "hidden",
    "n": "photos",
    "margin_drop": "the margin falls by",
    "margin_random_drop": "as much hidden at random",
}
PLACES = (("top left", "top", "top right"), ("left", "centre", "right"), ("bottom left", "bottom", "bottom right"))


@dataclass(frozen=True)
class Image:
    """A PNG with what it shows, for those who do not see it, and a caption."""

    png: bytes
    alt: str
    caption: str = ""

    @property
    def code(self) -> str:
        """Return the PNG as base64."""
        return base64.b64encode(self.png).decode()


@dataclass(frozen=True)
class Section:
    """A part of a page; `tables` are pieces of HTML as pandas writes them."""

    heading: str = ""
    text: Sequence[str] = ()
    images: Sequence[Image] = ()
    tables: Sequence[str] = ()


def fragment(*sections: Section) -> str:
    """Return sections as a piece of HTML."""
    return TEMPLATE.render(sections=sections)


def page(title: str, sections: Sequence[Section]) -> str:
    """Return sections as a page that needs no other file and no network."""
    return TEMPLATE.render(title=title, sections=sections, style=STYLE)


def table(frame: pd.DataFrame, bars: str = "", limit: float = 1.0, signed: bool = False) -> str:
    """Return a table as HTML, numbers with two decimals, texts escaped.

    `bars` is the column that gets bars behind its numbers, full at `limit`; `signed` draws them from the middle, in
    orange above zero and blue below.
    """
    same = hashlib.sha1(f"{frame.to_csv()}{limit}".encode()).hexdigest()[:8]  # the same table is the same HTML
    style = frame.style.set_uuid(same).format(precision=2, escape="html", na_rep="").hide(axis="index")
    style = style.format_index(axis=1, escape="html")
    if bars:
        colours, align, low = plots.QUIET + "90", "left", 0.0
        if signed:
            colours, align, low = [plots.AGAINST + "90", plots.FOR + "90"], "zero", -limit
        style = style.bar(bars, color=colours, align=align, vmin=low, vmax=limit, props="min-width: 7em;")
    return style.to_html()


# -- Pieces


def thumbnail(files: Sequence[str | Path], alt: str, caption: str = "") -> Image:
    """Return photos, side by side, as one image; each is made small enough for a square of `THUMBNAIL` pixels."""
    photos = [Pixels.fromarray(read_image(file)) for file in files]
    for photo in photos:
        photo.thumbnail((THUMBNAIL, THUMBNAIL))
    gap, stream = 4, io.BytesIO()
    whole = Pixels.new("RGBA", (sum(p.width + gap for p in photos) - gap, max(p.height for p in photos)))
    left = 0
    for photo in photos:
        whole.paste(photo, (left, 0))
        left += photo.width + gap
    whole.save(stream, "PNG")
    return Image(stream.getvalue(), alt, caption)


def picture(ax: Any, alt: str, caption: str = "") -> Image:
    """Return what was drawn on a canvas as an image."""
    return Image(plots.png(ax.figure, 100), alt, caption)


def finding(explanation: LocalExplanation, row: int = 0) -> str:
    """Return in a sentence or two which words and places support a class most and which speak against it."""
    words = [f"the word {token.text[:24]}" for token in explanation.tokens]
    areas = [] if explanation.segments is None else np.setdiff1d(explanation.segments, explanation.links)
    names = [*(_place(explanation.segments == area) for area in areas), *words]
    weights = np.concatenate([explanation.image_weights[row], explanation.text_weights[row]])
    spans = np.concatenate([explanation.image_intervals[row], explanation.text_intervals[row]])
    sure = ~((spans[:, 0] <= 0) & (spans[:, 1] >= 0)) & (np.abs(weights) > 0.1 * np.abs(weights).max(initial=0))
    totals = pd.Series(weights[sure], [name for name, fine in zip(names, sure, strict=True) if fine])
    totals = totals.groupby(level=0, sort=False).sum().sort_values(key=abs, ascending=False, kind="stable")
    sides = [totals.index[totals * sign > 0][:3].tolist() for sign in (1, -1)]
    label = explanation.classes[explanation.explained[row]]
    if not any(sides):
        return f"No word and no part of the photo clearly supports {label}."
    starts = (f"What supports {label} most:", "What speaks against it most:")
    return " ".join(f"{start} {', '.join(side)}." for start, side in zip(starts, sides, strict=True) if side)


def _place(mask: np.ndarray) -> str:
    """Return where in the photo a part (H,W) lies, by its centre."""
    row, column = (min(2, int(3 * at.mean() / side)) for at, side in zip(np.nonzero(mask), mask.shape, strict=True))
    return f"the {PLACES[row][column]}"


def parts(photo: Photo, change: Change, side: int = SIDE, caption: str = "") -> Image:
    """Return a photo after a change as an image; see `draw_parts`."""
    ax = draw_parts(photo, change, plots.canvas(side))
    alt = f"{photo.name} after changes: {len(change.hidden)} superpixels and {len(change.unread)} words hidden"
    return picture(ax, alt, caption)


def draw_parts(photo: Photo, change: Change, ax: Any, title: str = "") -> Any:
    """Draw a photo after a change, with its superpixels and words; what is hidden is crossed out."""
    unread = change.unread if change.text is None else ()
    words = {True: [], False: []}  # hidden or not -> words
    for number, token in enumerate(photo.tokens):
        words[number in unread] += token.words
    return plots.parts(change.image(photo), photo.segments, words[False], sorted(change.hidden), words[True], ax, title)


def word_table(explanation: LocalExplanation, row: int = 0) -> str:
    """Return the twelve strongest words of an explanation with their weights and 95 % intervals as a table."""
    words = plots.strongest_words(explanation, row)
    spans = [f"{low:.2f} to {high:.2f}" if np.isfinite(low) else "" for low, high in words[["low", "high"]].to_numpy()]
    shown = pd.DataFrame({"word": words["text"].str.slice(0, 24), "weight": words["weight"], "95 % interval": spans})
    return table(shown, "weight", plots.strongest(explanation, row) or 1.0, signed=True)


def legend(label: str, contrast: str = "") -> str:
    """Return what the colours mean."""
    return f"Orange supports {label}, blue {f'supports {contrast}' if contrast else 'speaks against it'}."


def answer(classes: Sequence[str], probs: np.ndarray | None, truth: int = -1) -> str:
    """Return what a model answers, and whether that is correct where the true class is known."""
    if probs is None:
        return "No answer: this model uses only words, and there are none."
    top = int(probs.argmax())
    sign = "" if truth < 0 else "✓ " if top == truth else "✗ "
    true = f"; the true class is {classes[truth]}" if sign == "✗ " else ""
    return f"{sign}{classes[top]}, probability {probs[top]:.2f}{true}"


def trust(explanation: LocalExplanation, row: int = 0) -> list[str]:
    """Return how far to trust an explanation, line by line: as `plots.trust`, and its stability."""
    lines, stable = plots.trust(explanation, row), stability(explanation, row)
    if not explanation.verdict(row) and not math.isnan(stable):
        grade = "stable" if stable >= STABLE else "fairly stable" if stable >= UNSTABLE else "unstable, use more masks"
        lines.insert(1, f"rank correlation with an explanation from other masks {stable:.2f}: {grade}")
    return [line[0].upper() + line[1:] for line in lines]


def explained(
    explanation: LocalExplanation, pixels: Any, heading: str = "", text: Sequence[str] = (), row: int = 0
) -> Section:
    """Return the section of one explanation; where it must not be shown, only the sentence that says why."""
    if explanation.verdict(row):
        return Section(heading, [*text, *trust(explanation, row)])
    found = finding(explanation, row)
    drawn = plots.explanation_map(explanation, row, plots.canvas(SIDE), pixels)
    tables = [word_table(explanation, row)] if explanation.tokens else []
    shown = [picture(drawn, f"Map of the photo. {found}")]
    return Section(heading, [*text, found, *trust(explanation, row)], shown, tables)


def probabilities(state: State, classes: Sequence[str]) -> Section:
    """Return the probabilities before and after a change as a table."""
    found = state.probabilities(classes, others=True)
    silent = [name for name in state.models if name not in state.after]
    why = "all words are hidden, and this model uses only words. Show at least one again."
    text = [f"{name}: {why}" for name in silent]
    found = found[~found["model"].isin(silent)].rename(columns={"label": "class"})
    found["model"] = found["model"].where(~found["model"].duplicated(), "")
    return Section(text=text, tables=[table(found, "after")])


# -- Views


def sections(view: str, state: State, classes: Sequence[str]) -> list[Section]:
    """Return a view, a key of `VIEWS`, as sections.

    Raises:
        UserError: there is nothing to show in it yet.
    """
    photo = state.photo
    if pick(VIEWS, view, "view") == "what_if":
        before, after = parts(photo, Change(), caption="unchanged"), parts(photo, state.change, caption="changed")
        text = [f"Words: {photo.text}", f"Words after changes: {state.change.words(photo)}"]
        return [Section(text=text, images=[before, after]), probabilities(state, classes)]
    if view == "class":
        if state.summed is None:
            raise UserError("No class is explained yet. Choose Explain the class first.")
        return class_sections(*state.summed)
    if not state.explanations:
        raise UserError(NOTHING)
    shown = [Section(text=[legend(classes[state.label], classes[state.contrast])])]
    for name, explanation in state.explanations.items():
        said = answer(classes, state.before.get(name), photo.truth)
        shown.append(explained(explanation, photo.sample.image, name, [said]))
    return shown


def what_if_figure(state: State, classes: Sequence[str]) -> Figure:
    """Return the photo before and after a change beside the probabilities as a figure."""
    drawn, axes = plots.plt.subplots(1, 3, figsize=(12, 4.2), width_ratios=(1, 1, 1.3))
    for ax, title, change in zip(axes[:2], ("unchanged", "changed"), (Change(), state.change), strict=True):
        draw_parts(state.photo, change, ax, title)
        ax.set_xlabel(textwrap.fill(change.words(state.photo), 50, max_lines=3), fontsize=7)
        plots.literal(ax)
    plots.before_after(state.probabilities(classes).dropna(), axes[2])
    return drawn


def class_sections(model: str, found: ClassExplanation, check: pd.DataFrame) -> list[Section]:
    """Return what a model recognises a class by: typical superpixels, phrases with their spellings, the deletion check.

    `model` is its name; `check` is that of `classes.deletion_check`, empty where no photo was left for it.
    """
    intro = [f"{model}: summary of {_photos(len(found.photos))}."]
    if found.skipped:
        intro.append(f"In {found.skipped} more there was nothing to explain.")
    if contrasts := ", ".join(f"{name} ({_photos(count)})" for name, count in found.contrasts.items()):
        intro.append(f"Compared with {contrasts}.")
    if not math.isnan(found.text_share):
        intro.append(f"Words carry {found.text_share:.0%} of the weight.")
    images = []
    for row in found.image_features.head(found.top).itertuples():
        drawn = plots.typical_superpixel(found, row.Index, plots.canvas(SIDE // 2), title=False)
        said = f"{_side(row.weight)}, {row.share:.0%} of the image's weight, in {_photos(row.support)}"
        images.append(picture(drawn, f"Typical superpixel of part {row.cluster}", f"part {row.cluster}: {said}"))
    read = found.text_features.head(found.top)
    phrases = pd.DataFrame({"phrase": read["canonical"], "for or against": read["weight"].map(_side)})
    phrases["share"], phrases["photos"] = read["share"].map("{:.0%}".format), read["samples"]
    phrases["spellings"] = [", ".join(f"{text} × {n}" for text, n in spelt.items()) for spelt in read["variants"]]
    return [
        Section(found.name, [" ".join(intro)]),
        Section("Image features", [f"None: {found.image_note}"] if found.image_note else [], images),
        Section("Text features", [] if len(read) else ["None."], [], [table(phrases)] if len(read) else []),
        _deletion(check),
    ]


def _photos(count: int) -> str:
    return f"{count} photo" if count == 1 else f"{count} photos"


def _side(weight: float) -> str:
    return "for" if weight > 0 else "against"


def _deletion(check: pd.DataFrame) -> Section:
    title = "Deletion check: each feature is hidden in photos that were not explained"
    tested = check[check["n"] > 0] if len(check) else check
    if not len(tested):
        return Section(title, ["No other photo of this class shows any of these features."])
    names = [f"part {row.feature}" if row.kind == "image" else row.feature for row in tested.itertuples()]
    shown = tested.assign(feature=names)[list(DELETION)].rename(columns=DELETION)
    return Section(title, [], [], [table(shown)])


def explanation_page(explanation: LocalExplanation, pixels: Any) -> str:
    """Return an explanation of one photo (3,H,W) as a page: the photo, and a map and the words of each class."""
    classes, probs = explanation.classes, explanation.probs
    photo = picture(plots.image(pixels, ax=plots.canvas(SIDE)), "The photo as the model sees it")
    shown = [Section("The photo", [f"The model answers: {answer(classes, probs)}."], [photo])]
    for row, (label, contrast) in enumerate(zip(explanation.explained, explanation.contrasts, strict=True)):
        colours = legend(classes[label], classes[contrast] if contrast >= 0 else "")
        text = [] if explanation.verdict(row) else [colours]
        shown.append(explained(explanation, pixels, f"{classes[label]}: probability {probs[label]:.3f}", text, row))
    question = explanation.question
    return page(question[0].upper() + question[1:], shown)
