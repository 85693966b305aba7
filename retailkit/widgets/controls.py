"""The explanation tool's controls and where they stand; what they do is wired in `tool`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ipywidgets as W

from retailkit.widgets import views
from retailkit.widgets.desk import BACKGROUNDS
from retailkit.widgets.picture import Picture
from retailkit.widgets.state import State

SIDE = 290  # pixels of a picture; three of them fit into a notebook on a screen of 1366
ROW = {"flex_flow": "row wrap", "align_items": "center"}

Controls = dict[str, Any]


def controls(datasets: Sequence[str], budget: int) -> Controls:
    """Return the controls by name, not yet wired.

    Args:
        datasets: names to choose from.
        budget: masks an explanation.
    """
    wide, short = W.Layout(width="330px"), W.Layout(width="220px")
    style = {"description_width": "70px"}

    def menu(name: str, layout: W.Layout = wide, options: Sequence[Any] = ()) -> W.Dropdown:
        return W.Dropdown(options=options, description=name, layout=layout, style=style)

    def slider(name: str, value: float, low: float, high: float, step: float, shown: str) -> W.FloatSlider:
        return W.FloatSlider(
            value, min=low, max=high, step=step, description=name, continuous_update=False, readout_format=shown,
            style=style, layout=W.Layout(width="350px"),
        )  # fmt: skip

    def button(name: str, tip: str, icon: str = "", **options: Any) -> W.Button:
        return W.Button(description=name, tooltip=tip, icon=icon, layout=W.Layout(width="auto"), **options)

    return {
        "dataset": menu("Data set", short, datasets),
        "label": menu("Class", short),
        "show": menu("Show", wide),
        "condition": menu("Taken", W.Layout(width="170px")),
        "back": button("", "photos before", "chevron-left"),
        "on": button("", "more photos", "chevron-right"),
        "upload": W.FileUpload(accept="image/*", description="Your own photo", layout=W.Layout(width="auto")),
        "class": menu("Why"),
        "against": menu("and not"),
        "masks": W.IntSlider(
            budget, 64, 2048, 32, description="Masks", continuous_update=False, style=style, layout=wide
        ),
        "explain": button("Explain", "explain this photo by each model", "play", button_style="primary"),
        "stop": button("Stop", "keep what has been found so far", "stop"),
        "refine": button("Refine", "ask about as many masks again", "plus"),
        "text": W.Textarea(description="It reads", continuous_update=False, rows=6, style=style,
                           layout=W.Layout(width="350px")),
        "brightness": slider("Brightness", 1.0, 0.1, 2.0, 0.05, ".2f"),
        "blur": slider("Blur", 0.0, 0.0, 0.05, 0.002, ".3f"),
        "background": W.Dropdown(options=list(BACKGROUNDS), description="Behind it", style=style,
                                 layout=W.Layout(width="350px")),
        "occlusion": slider("Covered", 0.0, 0.0, 0.9, 0.05, ".2f"),
        "undo": button("Take all changes back", "show the photo as it is", "undo"),
        "of": menu("Model", short),
        "photos": W.IntSlider(6, 2, 40, description="Photos", continuous_update=False, style=style, layout=wide),
        "explain_class": button("Explain the class", "explain some of its photos and sum up", "play"),
        "left": menu("Left", W.Layout(width="95%")),
        "right": menu("Right", W.Layout(width="95%")),
        "png": button("View as PNG", "a picture of the open view", "download"),
        "html": button("View as HTML", "a page of the open view that needs nothing else", "download"),
    }  # fmt: skip


def choosing(c: Controls, models: W.Widget, strip: W.Widget, told: W.Widget) -> list[W.Widget]:
    """Return the rows in which data set, models and photo are chosen."""
    filters = [c[name] for name in ("label", "show", "condition", "back", "on", "upload")]
    return [
        W.HBox([c["dataset"], models], layout=W.Layout(**ROW)),
        W.HBox(filters, layout=W.Layout(**ROW)),
        strip,
        told,
    ]


def why(c: Controls, progress: W.Widget, status: W.Widget, legend: W.Widget, panels: Sequence[Panel]) -> W.Widget:
    """Return the tab of local explanations."""
    asked = W.HBox([c["class"], c["against"], c["masks"]], layout=W.Layout(**ROW))
    acts = W.HBox([c["explain"], c["stop"], c["refine"], progress, status], layout=W.Layout(**ROW))
    return W.VBox([asked, acts, legend, W.HBox(panels, layout=W.Layout(flex_flow="row wrap"))])


def what_if(c: Controls, scene: W.Widget, bars: W.Widget) -> W.Widget:
    """Return the tab of changes."""
    names = ("text", "brightness", "blur", "background", "occlusion", "undo")
    middle = W.VBox([c[name] for name in names], layout=W.Layout(width="360px"))
    left = W.VBox([scene], layout=W.Layout(width="420px"))
    return W.HBox([left, middle, bars], layout=W.Layout(flex_flow="row wrap", grid_gap="16px"))


def whole_class(c: Controls, summary: W.Widget) -> W.Widget:
    """Return the tab of global explanations."""
    return W.VBox([W.HBox([c["of"], c["photos"], c["explain_class"]]), summary])


def compare(c: Controls, compared: W.Widget) -> W.Widget:
    """Return the tab of two explanations side by side."""
    return W.VBox([c["left"], c["right"], compared])


def exporting(c: Controls, link: W.Widget) -> W.Widget:
    """Return the row below the tabs."""
    return W.HBox([c["png"], c["html"], link], layout=W.Layout(align_items="center"))


class Panel(W.VBox):
    """What one model says of the photo, and why."""

    def __init__(self) -> None:
        self.head, self.picture, self.foot = W.HTML(), Picture(), W.HTML()
        super().__init__(
            [self.head, self.picture, self.foot], layout=W.Layout(width=f"{SIDE + 14}px", padding="0 8px 0 0")
        )

    def show(self, state: State, name: str, classes: Sequence[str]) -> None:
        """Show a model's panel.

        Args:
            state: what is on screen.
            name: of the model.
            classes: K names.
        """
        photo, explanation = state.photo, state.explanations.get(name)
        told = views.said(name, classes, state.before.get(name), state.after.get(name), state.truth)
        self.head.value = views.block(told)
        names = views.region_names(photo, explanation, state.change)
        if explanation is None:
            pixels = views.enlarged(photo.sample.image, SIDE)
            note = state.problems.get(name, "not explained yet")
            self.foot.value = views.block(f"<p><small>{views.escape(note)}</small></p>")
            alt = photo.name
        else:
            pixels = views.signed_map(explanation, SIDE, photo.sample.image)
            self.foot.value = views.block(views.badges(explanation), views.word_weights(explanation))
            alt = f"{name}: {explanation.question}; orange speaks for it, blue against it"
        self.picture.show(pixels, views.regions(photo), names, alt)
