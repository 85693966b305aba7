"""The controls and views of the explanation tool, and how they show its state; what controls do is in `tool`."""

from __future__ import annotations

import html
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import ipywidgets as W
import numpy as np

from retailkit import plots
from retailkit.config import UserError
from retailkit.explain.lime import LocalExplanation
from retailkit.widgets import page as pages
from retailkit.widgets.model import BACKGROUNDS, MEGABYTES, SHOWS, SIDE_BY_SIDE, Change, Desk, Photo, State
from retailkit.widgets.page import SIDE, VIEWS, Section, fragment
from retailkit.widgets.picture import Picture, Upload

TEXTS = ("about", "message", "told", "captions", "legend", "bars", "reason", "status", "summary", "link")
NO_MASK = "Background and occlusion need a product mask; this photo has none."
AT_ONCE = 8  # thumbnails
THUMBNAIL = 118  # pixels
SETTINGS = ("brightness", "blur", "background", "occlusion")
ROW = {"flex_flow": "row wrap", "align_items": "center"}
STYLE = f"""<style>{pages.STYLE}
.rk-captions {{ display: grid; grid-template-columns: repeat({AT_ONCE}, 1fr); font: 12px/1.3 system-ui, sans-serif;
  color: var(--jp-content-font-color1, inherit); }}
.rk-thumbnails {{ overflow-x: auto; max-width: 100%; }}
.rk-thumbnails > * {{ width: {AT_ONCE * THUMBNAIL}px; flex: none; }}
.rk-tool {{ --jp-widgets-horizontal-tab-width: auto; }}
.rk-captions div {{ overflow-wrap: anywhere; padding: 2px 4px; }}
</style>"""


def controls(datasets: Sequence[str], budget: int) -> dict[str, Any]:
    """Return the controls by name, not yet connected."""
    style = {"description_width": "80px"}
    wide = {"layout": W.Layout(width="330px"), "style": style}
    short = {"layout": W.Layout(width="230px"), "style": style}

    def slider(name: str, value: float, low: float, high: float, step: float) -> W.FloatSlider:
        return W.FloatSlider(value, min=low, max=high, step=step, description=name, continuous_update=False,
                             readout_format=".3f" if step < 0.01 else ".2f", **wide)  # fmt: skip

    def button(name: str, tip: str, icon: str, **options: Any) -> W.Button:
        return W.Button(description=name, tooltip=tip, icon=icon, layout=W.Layout(width="auto"), **options)

    return {
        "dataset": W.Dropdown(options=datasets, description="Data set", **short),
        "label": W.Dropdown(description="True class", **wide),
        "show": W.Dropdown(options=SHOWS, description="Show", **short),
        "back": button("Previous", "show the photos before these", "chevron-left"),
        "on": button("Next", "show the photos after these", "chevron-right"),
        "class": W.Dropdown(description="Why", **wide),
        "contrast": W.Dropdown(description="rather than", **wide),
        "masks": W.IntSlider(budget, 64, 2048, 32, description="Masks", continuous_update=False, **wide),
        "explain": button("Explain", "explain the answer of each model", "play", button_style="primary"),
        "stop": button("Stop", "keep the explanations so far", "stop"),
        "refine": button("Refine", "use as many further masks", "plus"),
        "text": W.Textarea(description="OCR words", continuous_update=False, rows=6, **wide),
        "brightness": slider("Brightness", 1.0, 0.1, 2.0, 0.05),
        "blur": slider("Blur", 0.0, 0.0, 0.05, 0.002),
        "background": W.Dropdown(options=list(BACKGROUNDS), description="Background", **wide),
        "occlusion": slider("Occlusion", 0.0, 0.0, 0.9, 0.05),
        "undo": button("Undo all changes", "show the photo as it is", "undo"),
        "of": W.Dropdown(description="Model", **short),
        "photos": W.IntSlider(6, 2, 40, description="Photos", continuous_update=False, **wide),
        "explain_class": button("Explain the class", "explain some of its photos and summarise them", "play"),
        "html": button("Save as HTML", "save the open view as a page", "download"),
    }  # fmt: skip


def problem(text: str, role: str = "alert") -> str:
    """Return a message as HTML; `role` is that of ARIA."""
    return f'<div class="rk"><p class="problem" role="{role}">{html.escape(text)}</p></div>'


def _row(*children: W.Widget) -> W.HBox:
    return W.HBox(children, layout=W.Layout(**ROW))


class Panel(W.VBox):
    """What one model answers, and why."""

    def __init__(self) -> None:
        self.head, self.picture, self.foot = W.HTML(), Picture(), W.HTML()
        width = f"{SIDE + 14}px"
        super().__init__([self.head, self.picture, self.foot], layout=W.Layout(width=width, padding="0 8px 0 0"))
        self.add_class("rk-panel")

    def show(self, state: State, name: str, classes: Sequence[str]) -> None:
        """Show the answer of the model `name` and its explanation; `classes` are K names."""
        photo, found = state.photo, state.explanations.get(name)
        before, after = state.before.get(name), state.after.get(name)
        text = [pages.answer(classes, before, photo.truth)]
        if before is not None and after is not None and not np.allclose(before, after, atol=5e-4):
            text.append(f"After your changes: {pages.answer(classes, after)}")
        self.head.value = fragment(Section(name, text))
        shown = Section(text=[state.problems.get(name, "Not explained yet.")])
        if found is not None:
            shown = pages.explained(found, photo.sample.image)
        if shown.images:
            (drawn,) = shown.images
        else:
            drawn = pages.picture(plots.image(photo.sample.image, ax=plots.canvas(SIDE)), photo.name)
        self.foot.value = fragment(replace(shown, images=()))
        self.picture.show(drawn.png, photo.regions(), region_names(photo, found, state.change), f"{name}: {drawn.alt}")


def region_names(photo: Photo, found: LocalExplanation | None, change: Change) -> list[str]:
    """Return what is said of each part under the mouse: what it is, its weight, what a click does."""
    names = [f"superpixel {number}" for number in range(photo.n_segments)] + [f"word {t.text}" for t in photo.tokens]
    weights = np.full(len(names), np.nan)
    if found is not None and found.image is not None:
        weights[: photo.n_segments] = found.image_weights[0]
    if found is not None and found.tokens:
        weights[photo.n_segments :] = found.text_weights[0]
    known = ["" if np.isnan(weight) else f", weight {weight:+.2f}" for weight in weights]
    off = {*change.hidden, *(photo.n_segments + word for word in change.unread)}
    acts = ["show" if part in off else "hide" for part in range(len(names))]
    return [f"{name}{weight}: click to {act} it" for name, weight, act in zip(names, known, acts, strict=True)]


class Screen(W.VBox):
    """The controls and views of the tool; `_show` brings them to what `state` says of the photos of `desk`."""

    desk: Desk
    state: State

    def __init__(self, datasets: Sequence[str], budget: int) -> None:
        self._lock = threading.RLock()  # the state changes in the page's thread and in the background
        self._quiet = threading.local()  # each thread sets controls for itself
        self.controls = controls(datasets, budget)
        for name in TEXTS:
            setattr(self, name, W.HTML())
        self.strip, self.scene = Picture(), Picture()
        self.panels = [Panel() for _ in range(SIDE_BY_SIDE)]
        self.upload_button = Upload(megabytes=MEGABYTES)
        self.progress = W.IntProgress(layout=W.Layout(width="160px", display="none"))
        self.models = W.HBox(layout=W.Layout(flex_flow="row wrap"))
        super().__init__(self._rows())
        self.add_class("rk-tool")
        parts = {name: getattr(self, name) for name in ("strip", "told", "status", "bars", "summary")}
        for name, widget in (self.controls | parts | {"what_if": self.scene}).items():
            widget.add_class(f"rk-{name}")

    def _rows(self) -> list[W.Widget]:
        c, wrap = self.controls, W.Layout(flex_flow="row wrap", grid_gap="16px")
        thumbnails = W.VBox([self.strip, self.captions]).add_class("rk-thumbnails")
        settings = [c[name] for name in ("text", *SETTINGS)]
        changes = W.VBox([*settings, self.reason, c["undo"]], layout=W.Layout(width="360px"))
        asked = _row(c["class"], c["contrast"], c["masks"])
        acts = _row(c["explain"], c["stop"], c["refine"], self.progress, self.status)
        views = [
            W.VBox([asked, acts, self.legend, W.HBox(self.panels, layout=W.Layout(flex_flow="row wrap"))]),
            W.HBox([W.VBox([self.scene], layout=W.Layout(width="420px")), changes, self.bars], layout=wrap),
            W.VBox([_row(c["of"], c["photos"], c["explain_class"]), self.summary]),
        ]
        self.tabs = W.Tab(views, titles=list(VIEWS.values()))
        rows = [_row(c["dataset"], self.models), self.about, _row(c["label"], c["show"])]
        rows += [_row(c["back"], c["on"], self.upload_button), thumbnails, self.told, self.message, self.tabs]
        return [W.HTML(STYLE), *rows, _row(c["html"], self.link)]

    def _show(self) -> None:
        state, change = self.state, self.state.change
        classes = self.desk.classes
        self._set(**{"class": classes[state.label], "contrast": classes[state.contrast]})
        self._set(text=change.words(state.photo), **{name: getattr(change, name) for name in SETTINGS})
        bare = state.photo.sample.mask is None
        for name in ("background", "occlusion"):
            self.controls[name].disabled = bare
        self.reason.value = fragment(Section(text=[NO_MASK])) if bare else ""
        self.link.value = ""  # what was saved showed something else
        self._show_strip()
        self._show_why()
        self._show_scene()

    def _show_strip(self) -> None:
        state, desk = self.state, self.desk
        at = state.found.index(state.photo.position) if state.photo.position in state.found else -1
        self._first = first = max(at, 0) // AT_ONCE * AT_ONCE
        self._shown = shown = state.found[first : first + AT_ONCE]
        ax = plots.strip([desk.images[p].image for p in shown], at - first if at >= 0 else -1, THUMBNAIL)
        labels = np.tile(np.repeat(np.arange(len(shown)), 20), (20, 1))
        judged, captions = desk.judged[state.models[0]], []
        for p in shown:
            said = f"{desk.classes[judged.predicted[p]]} {judged.probs[p].max():.2f}"
            said = f"{'✓' if judged.correct[p] else '✗'} {said if judged.answered[p] else 'no answer'}"
            captions.append(f"<div>{html.escape(said)}</div>")
        self.captions.value = f'<div class="rk-captions">{"".join(captions)}</div>'
        names = [f"{desk.names[p]}: {desk.classes[judged.labels[p]]}" for p in shown]
        alt = f"Photos {first + 1} to {first + len(shown)} of {len(state.found)}"
        hint = f"{alt}, each with the answer of {state.models[0]}. Click a photo to choose it."
        self.strip.show(plots.png(ax.figure, 100), labels, names, alt, hint)
        truth = desk.classes[state.photo.truth] if state.photo.truth >= 0 else "true class not known"
        number = f" (photo {state.photo.position + 1} of {len(desk.images)})" if state.photo.truth >= 0 else ""
        self.told.value = fragment(Section(f"{state.photo.name}{number}: {truth}"))

    def _show_why(self) -> None:
        state, classes = self.state, self.desk.classes
        legend = pages.legend(classes[state.label], classes[state.contrast])
        self.legend.value = fragment(Section(text=[legend]))
        for number, panel in enumerate(self.panels):
            panel.layout.display = "none" if number >= len(state.models) else None
            if number < len(state.models):
                panel.show(state, state.models[number], classes)

    def _show_scene(self) -> None:
        state = self.state
        names = region_names(state.photo, state.explanations.get(state.models[0]), state.change)
        hint = "Click a part or a word to hide or show it, or use the arrow keys and Enter."
        drawn = pages.parts(state.photo, state.change, 400)
        self.scene.show(drawn.png, state.photo.regions(), names, drawn.alt, hint)
        self.bars.value = fragment(pages.probabilities(state, self.desk.classes))

    def _show_class(self) -> None:
        summed = self.state.summed
        self.summary.value = fragment(*pages.class_sections(*summed)) if summed else ""

    def _set(self, **values: Any) -> None:
        """Set controls without calling what they are connected to."""
        with self._not_following():
            for name, value in values.items():
                self.controls[name].value = value

    @contextmanager
    def _not_following(self) -> Iterator[None]:
        before, self._quiet.on = getattr(self._quiet, "on", False), True
        try:
            yield
        finally:
            self._quiet.on = before

    def _safely(self, act: Callable[..., None]) -> Callable[..., None]:
        """Return a callback that does `act` and shows its problem, but nothing while the tool sets controls itself."""

        def call(*given: Any) -> None:
            if getattr(self._quiet, "on", False):
                return
            self.message.value = ""
            try:
                act(*given)
            except Exception as error:  # a callback's traceback would vanish in the browser's console
                text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
                self.message.value = problem(text)

        return call

    def _fill_menus(self, models: Sequence[str]) -> None:
        """Offer the models and classes of the desk, `models` being ticked."""
        plain, classes = {"indent": False, "layout": W.Layout(width="auto")}, self.desk.classes
        with self._not_following():
            boxes = [W.Checkbox(value=n in models, description=n, **plain) for n in self.desk.predictors]
            self.models.children = [W.Label("Models"), *boxes]
            self.controls["label"].options = [("all classes", ""), *((name, name) for name in classes)]
            for name in ("class", "contrast"):
                self.controls[name].options = classes
            self.controls["of"].options = list(self.desk.predictors)
        self.about.value = fragment(Section(text=[self.desk.about]))
