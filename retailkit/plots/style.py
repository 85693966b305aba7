"""The workbook's style, readable for colour-blind people, and what all plots are drawn with.

`COLOURS` (Okabe and Ito 2008) are for categories, `cividis` for amounts, and `SIGNED`, from blue to orange and
symmetric around zero, for signed values.
"""

from __future__ import annotations

import io
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.patches import Rectangle
from matplotlib.text import Text

COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#444444"]
GOOD, BAD, QUIET = "#009E73", "#D55E00", "#8A8F98"
FOR, AGAINST = "#D55E00", "#0072B2"  # ends of the signed scale
SIGNED = LinearSegmentedColormap.from_list("signed", [AGAINST, "#F7F7F7", FOR])
# Tried for what the first font lacks: signs, then Chinese, Japanese and Korean letters of Linux, macOS and Windows.
FALLBACKS = ("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Micro Hei", "PingFang SC",
             "Hiragino Sans GB", "Arial Unicode MS", "Microsoft YaHei", "Malgun Gothic")  # fmt: skip


def use_style() -> None:
    """Set the workbook's style for the current session."""
    import seaborn as sns  # here, because it takes longer to import than all else that draws

    own = {
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
    sns.set_theme(style="white", palette=COLOURS, context="notebook", rc=own)


def literal(ax: Axes) -> Axes:
    """Make `ax` draw all its texts as they are written, see `as_written`."""
    for axis in (ax.xaxis, ax.yaxis):
        names = [label.get_text() for label in axis.get_ticklabels()]
        if names != (shown := [as_written(label).get_text() for label in axis.get_ticklabels()]):
            axis.set_ticks(axis.get_ticklocs(), shown)
    for text in ax.findobj(Text):
        as_written(text)
    return ax


def as_written(text: Text) -> Text:
    r"""Make a text that comes from users be drawn as it is: a `$` in a class name or an OCR word starts no formula.

    A character that neither its font nor one of `FALLBACKS` has is replaced by its escape, such as `\u5c71`.
    """
    text.set_parse_math(False)
    if not (characters := text.get_text()).isascii():
        installed = {font.name for font in fontManager.ttflist}
        families = list(dict.fromkeys([*text.get_fontfamily(), *(name for name in FALLBACKS if name in installed)]))
        looks = {"style": text.get_fontstyle(), "weight": text.get_fontweight()}
        fonts = [get_font(findfont(FontProperties(family=[family], **looks))) for family in families]
        drawn = {c for c in characters if c.isascii() or any(font.get_char_index(ord(c)) for font in fonts)}
        text.set_fontfamily(families)
        text.set_text("".join(c if c in drawn else c.encode("ascii", "backslashreplace").decode() for c in characters))
    return text


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
    figure = Figure(figsize=(width / 100, (height or width) / 100), layout="none")
    return figure.add_axes((0, 0, 1, 1))


def axes_of(ax: Axes | None, size: tuple[float, float] = (6, 4)) -> Axes:
    """Return `ax`, or that of a new figure of `size` inches."""
    return ax if ax is not None else plt.subplots(figsize=size)[1]


def array(values: Any) -> np.ndarray:
    """Return a tensor or an array as float64."""
    return np.asarray(values.detach().cpu().numpy() if hasattr(values, "detach") else values, dtype=float)


def rectangle(box: Any, ax: Axes, **style: Any) -> None:
    """Add a rectangle to `ax`; `style` is that of matplotlib's `Rectangle`."""
    x0, y0, x1, y1 = box
    ax.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, **style))
