"""Pages and pieces of HTML from sections of text, images and tables; everything that comes from outside is escaped."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd

from retailkit import plots
from retailkit.explain.lime import LocalExplanation

HERE = Path(__file__).parent
STYLE = (HERE / "page.css").read_text(encoding="utf-8")
SIDE = 300  # pixels of an image; three of them fit beside each other on a screen of 1366
LEGEND = "Orange supports {}, blue speaks against it{}. The stronger the colour, the larger the weight."


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
    return _template().render(sections=sections)


def page(title: str, sections: Sequence[Section]) -> str:
    """Return sections as a page that needs no other file and no network."""
    return _template().render(title=title, sections=sections, style=STYLE)


def _template() -> jinja2.Template:
    return jinja2.Environment(autoescape=True).from_string((HERE / "page.html.j2").read_text(encoding="utf-8"))


def table(frame: pd.DataFrame, bars: str = "", limit: float = 1.0, signed: bool = False, index: bool = False) -> str:
    """Return a table as HTML, numbers with two decimals.

    Args:
        frame: what to show; texts are escaped.
        bars: column that gets bars behind its numbers; "" for none.
        limit: value of a full bar.
        signed: draw bars from the middle, in orange above zero and blue below.
        index: show the row labels.
    """
    style = frame.style.format(precision=2, escape="html", na_rep="").format_index(escape="html")
    if bars:
        colours = [plots.AGAINST + "90", plots.FOR + "90"] if signed else plots.QUIET + "90"
        style = style.bar(bars, color=colours, align="zero" if signed else "left", vmin=-limit if signed else 0,
                          vmax=limit, props="min-width: 7em")  # fmt: skip
    return (style if index else style.hide(axis="index")).to_html()


def explanation_map(explanation: LocalExplanation, pixels: Any, row: int = 0, caption: str = "") -> Image:
    """Return the map of an explanation as an image that carries its meaning in words."""
    ax = plots.explanation_map(explanation, row, plots.canvas(SIDE), pixels)
    alt = f"{explanation.classes[explanation.explained[row]]}: {plots.trust(explanation, row)}".replace("\n", ", ")
    return Image(plots.png(ax.figure, 100), f"Weights of superpixels and words for {alt}", caption)


def word_table(explanation: LocalExplanation, row: int = 0, top: int = 12) -> str:
    """Return the strongest words of an explanation with their weights and 95 % intervals as a table."""
    words = explanation.words(row)
    words = words.loc[words["weight"].abs().nlargest(top).index].sort_values("weight", ascending=False)
    spans = [f"{low:.2f} to {high:.2f}" if np.isfinite(low) else "" for low, high in words[["low", "high"]].to_numpy()]
    shown = pd.DataFrame({"word": words["text"].str.slice(0, 24), "weight": words["weight"], "95 % interval": spans})
    return table(shown, "weight", plots.strongest(explanation, row) or 1.0, signed=True)


def legend(label: str, contrast: str = "") -> str:
    """Return what the colours mean."""
    return LEGEND.format(label, f" and supports {contrast}" if contrast else "")


def explanation_page(explanation: LocalExplanation, pixels: Any) -> str:
    """Return an explanation as a page: the photo, and a map and the words of each explained class.

    Args:
        explanation: of one photo.
        pixels: the photo, (3,H,W).
    """
    top = int(explanation.probs.argmax())
    shown = plots.png(plots.image(pixels, ax=plots.canvas(SIDE)).figure, 100)
    sections = [
        Section(
            text=[f"The model says {explanation.classes[top]} with probability {explanation.probs[top]:.2f}."],
            images=[Image(shown, "The photo as the model sees it")],
        )
    ]
    for row, label in enumerate(explanation.explained):
        name, contrast = explanation.classes[label], explanation.contrasts[row]
        text = [legend(name, explanation.classes[contrast] if contrast >= 0 else ""), *trust_lines(explanation, row)]
        sections.append(
            Section(
                f"{name}: probability {explanation.probs[label]:.3f}",
                text,
                [] if explanation.nothing else [explanation_map(explanation, pixels, row)],
                [word_table(explanation, row)] if explanation.tokens else [],
            )
        )
    question = explanation.question
    return page(question[0].upper() + question[1:], sections)


def trust_lines(explanation: LocalExplanation, row: int = 0) -> list[str]:
    """Return how far to trust an explanation, line by line."""
    return plots.trust(explanation, row).split("\n")
