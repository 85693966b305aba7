"""The explanation tool: choose a photo, see why, ask what if, and what a class is recognised by.

Every control calls a method that a script can call as well. What is on screen follows from `ExplanationTool.state`,
which methods replace, by the functions of `views`.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ipywidgets as W
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from retailkit.cache import replacing
from retailkit.config import UsageError, UserError, pick
from retailkit.data.table import ProductData
from retailkit.explain.classes import ClassExplanation
from retailkit.explain.lime import LocalExplanation
from retailkit.plots import png
from retailkit.widgets import controls, documents, views
from retailkit.widgets import desk as desks
from retailkit.widgets.desk import SIDE_BY_SIDE, Change, Desk, Photo
from retailkit.widgets.documents import VIEWS
from retailkit.widgets.picture import Picture
from retailkit.widgets.state import FRESH, State

Loader = Callable[[], tuple[ProductData, Mapping[str, Any]]]
AT_ONCE = 8  # thumbnails
REMEMBERED = 20  # explanations that can be compared
STOPPED = {"masks": "what they say is kept", "photos": "a class is summed up at the end only, so nothing is kept"}


def explanation_tool(
    data: ProductData, models: Mapping[str, Any], others: Mapping[str, Loader] | None = None, budget: int = 160
) -> ExplanationTool:
    """Return the tool; show it as the last line of a cell, or drive it by its methods.

    Args:
        data: with words, if models read.
        models: by name: models, or predictors of them, for the same classes and size of pictures.
        others: further data sets to choose from: each function returns one with its models.
        budget: masks an explanation.

    Raises:
        UsageError: see `Desk`.
    """
    return ExplanationTool(data, models, others, budget)


class ExplanationTool(W.VBox):
    """See `explanation_tool`. Positions of photos are those among the photos that no model has learned from.

    Attributes:
        desk: photos and models.
        state: what is on screen.
        controls: name -> widget.
        message: the `HTML` widget that names a problem.
    """

    def __init__(
        self,
        data: ProductData,
        models: Mapping[str, Any],
        others: Mapping[str, Loader] | None = None,
        budget: int = 160,
    ) -> None:
        self._loaders: dict[str, Loader] = {data.name: lambda: (data, models), **(others or {})}
        self._stopped, self._worker = threading.Event(), None
        self._lock = threading.RLock()  # the state changes in the page's thread and in the background's
        self._quiet = threading.local()  # each thread sets controls for itself
        self._compared: tuple[str, ...] = ()  # the pair that somebody chose
        self._unit = "masks"  # that progress is counted in, or "photos"
        self.desk = Desk(data, models)
        c = self.controls = controls.controls(list(self._loaders), budget)
        self.message, self.told = W.HTML(), W.HTML()
        self.strip, self.scene = Picture(), Picture()
        self.panels = [controls.Panel() for _ in range(SIDE_BY_SIDE)]
        self.legend, self.bars, self.status = W.HTML(), W.HTML(), W.HTML()
        self.summary, self.compared, self.link = W.HTML(), W.HTML(), W.HTML()
        self.progress = W.IntProgress(layout=W.Layout(width="160px"))
        self.models = W.HBox(layout=W.Layout(flex_flow="row wrap"))
        tabs = [
            controls.why(c, self.progress, self.status, self.legend, self.panels),
            controls.what_if(c, self.scene, self.bars),
            controls.whole_class(c, self.summary),
            controls.compare(c, self.compared),
        ]
        self.tabs = W.Tab(tabs, titles=list(VIEWS.values()))
        chosen = controls.choosing(c, self.models, self.strip, self.told)
        super().__init__([W.HTML(views.STYLE), *chosen, self.message, self.tabs, controls.exporting(c, self.link)])
        self.add_class("rk-tool")
        parts = {name: getattr(self, name) for name in ("strip", "told", "status", "bars", "summary", "compared")}
        for name, widget in (self.controls | parts | {"what_if": self.scene}).items():
            widget.add_class(f"rk-{name}")
        for panel in self.panels:
            panel.add_class("rk-panel")
        self._wire()
        self._open()

    # -- What a script calls, and what controls call.

    def load(self, name: str) -> None:
        """Change the data set, and the models with it.

        Raises:
            UsageError: unknown name.
        """
        self.stop()
        self.desk = Desk(*self._loaders[pick(self._loaders, name, "data set")]())
        self._set(dataset=name)
        self._update(summed=None)
        self._show_class()
        self._open()

    def use(self, *models: str) -> None:
        """Choose the models that are asked, up to three.

        Raises:
            UsageError: an unknown model, none, or too many.
        """
        for name in models:
            pick(self.desk.predictors, name, "model")
        if not 1 <= len(models) <= SIDE_BY_SIDE:
            raise UsageError(f"{len(models)} models are chosen; choose 1 to {SIDE_BY_SIDE}")
        self.stop()
        self._update(models=models)
        with self._not_following():
            self.controls["show"].options = self.desk.shows(models[0])
        self.filter()

    def filter(self, label: str = "", show: str = "all", condition: str = "") -> None:
        """Choose which photos to choose from, and look at the first of them.

        Args:
            label: their class; "" takes all.
            show: `all`, `wrong`, `unsure`, or a pair of classes as the menu has it.
            condition: how they were taken; "" takes all.

        Raises:
            UsageError: unknown values.
            UserError: no photo is like that.
        """
        found = self.desk.find(self.state.models[0], label, show, condition)
        if not found:
            raise UserError("no photo passes these filters; choose others")
        self._update(found=tuple(found))
        self._set(label=label, show=show, condition=condition)
        self.select(found[0])

    def select(self, photo: int | str | Path) -> None:
        """Look at a photo.

        Args:
            photo: its position, or the path of a photo from outside.

        Raises:
            UsageError: there is no such photo.
            UserError: the file cannot be read, or is no picture; see `uploads`.
        """
        if isinstance(photo, int | np.integer):
            self._look(self.desk.photo(int(photo)))
            return
        path = Path(photo)
        if not path.is_file():
            raise UserError(f"{path}: no such photo; check the path")
        self.upload(path.read_bytes(), path.name)

    def upload(self, content: bytes, name: str) -> None:
        """Look at a photo from outside, given as the content of a file.

        Raises:
            UserError: it is no picture, or too large; see `uploads`.
        """
        self._look(self.desk.own_photo(content, name))

    def ask(self, label: str | int, against: str | int) -> None:
        """Choose the class that is asked about and the one that it is contrasted with.

        Raises:
            UsageError: an unknown class, or one class twice.
        """
        ours, theirs = self._index(label), self._index(against)
        if ours == theirs:
            raise UsageError(f"{self.desk.classes[ours]!r} cannot be told from itself; choose two classes")
        self.stop()
        self._update(label=ours, rival=theirs, explanations={}, problems={})
        self._show()

    def explain(self, budget: int | None = None, wait: bool = True) -> None:
        """Explain the photo by each of the models: a coarse answer first, then better ones.

        Args:
            budget: masks a model; None takes the slider's.
            wait: return when it is done; False goes on in the background, and `stop` ends it.
        """
        self.stop()
        state, budget = self.state, budget or self.controls["masks"].value
        self._update(explanations={}, problems={})
        steps = desks.explaining(self._predictors, state.photo, state.label, state.rival, budget)
        self._work(self._explained(steps, budget * len(state.models)), wait)

    def refine(self, budget: int = 160, wait: bool = True) -> None:
        """Improve the explanations by further masks.

        Args:
            budget: further masks a model.
            wait: as of `explain`.

        Raises:
            UserError: there is nothing to refine yet.
        """
        self.stop()
        found = self.state.explanations
        if not found:
            raise UserError(documents.NOTHING)
        goal = budget + max(desks.spent(e) for e in found.values())
        self._work(self._explained(desks.refining(found, goal), goal * len(found)), wait)

    def stop(self) -> None:
        """End what goes on in the background; what was found of a photo so far stays, of a class nothing."""
        self._stopped.set()
        if self._worker is not None and self._worker is not threading.current_thread():
            self._worker.join()

    def switch(self, segment: int | None = None, word: int | None = None) -> None:
        """Switch a superpixel or a word off, or on again.

        Args:
            segment: number of the superpixel.
            word: number of the word, in reading order. It undoes what was typed as text.

        Raises:
            UsageError: there is no such part.
        """
        change, photo = self.state.change, self.state.photo
        if segment is not None:
            _within(segment, int(photo.segments.max()) + 1, "superpixel")
            change = replace(change, hidden=change.hidden ^ {segment})
        if word is not None:
            _within(word, len(photo.tokens), "word")
            change = replace(change, unread=change.unread ^ {word}, text=None)
        self.change(change)

    def set_text(self, text: str | None) -> None:
        """Let the models read another text; None takes the photo's words again."""
        self.change(replace(self.state.change, text=text))

    def adjust(self, **values: float | str) -> None:
        """Set `brightness`, `blur`, `background` or `occlusion`; see `Change`.

        Raises:
            UsageError: something else, or a value out of range.
            UserError: the photo has no product mask.
        """
        for name in values:
            pick(("brightness", "blur", "background", "occlusion"), name, "setting")
        self.change(replace(self.state.change, **values))

    def undo(self) -> None:
        """Take all changes back."""
        self.change(FRESH)

    def change(self, change: Change) -> None:
        """Ask the models about a changed photo; see `adjust`, `switch` and `set_text`."""
        photo = self.state.photo
        after = desks.answer(self._predictors, desks.changed(photo, change), change.read(photo))
        self._update(change=change, after=after)
        self._show()

    def probabilities(self) -> pd.DataFrame:
        """Return what the models say of the class and its twin: `model`, `label`, `before`, `after`."""
        state, rows = self.state, []
        for name in state.models:
            for index in (state.label, state.rival):
                values = (side[name][index] if name in side else np.nan for side in (state.before, state.after))
                rows.append((name, self.desk.classes[index], *map(float, values)))
        return pd.DataFrame(rows, columns=["model", "label", "before", "after"])

    def explain_class(
        self, label: str | int | None = None, photos: int = 6, model: str | None = None, wait: bool = True
    ) -> None:
        """Explain photos of a class and sum them up.

        Args:
            label: the class; None takes the one that is asked about.
            photos: to explain at most; a third of the class is kept for the deletion check.
            model: its name; None takes the first.
            wait: as of `explain`.

        Raises:
            UsageError: an unknown class or model.
        """
        self.stop()
        index = self.state.label if label is None else self._index(label)
        name = pick(self.desk.predictors, model or self.state.models[0], "model")
        steps = self.desk.explaining_class(name, index, photos, self.controls["masks"].value)
        self._work(self._summed(steps, photos), wait)

    def compare(self, left: str, right: str) -> None:
        """Lay two explanations side by side: of two models, or of two photos. They stay there when others are found.

        Args:
            left: key of `state.remembered`.
            right: the same.

        Raises:
            UsageError: there is no such explanation.
        """
        for name in (left, right):
            pick(self.state.remembered, name, "explanation")
        self._compared = (left, right)
        self._show_compare()

    def export(self, path: str | Path, view: str | None = None) -> Path:
        """Write a view to a file.

        Args:
            path: ends in `.png` or `.html`; a page needs nothing else.
            view: key of `VIEWS`; None takes the one that is open.

        Raises:
            UsageError: an unknown view or suffix.
            UserError: there is nothing to show in it yet.
        """
        path = Path(path)
        content = self.rendered(view or list(VIEWS)[self.tabs.selected_index], path.suffix.lower())
        with replacing(path) as draft:
            draft.write_bytes(content)
        return path

    def rendered(self, view: str, suffix: str) -> bytes:
        """Return a view as the content of a file; see `export`."""
        pick(VIEWS, view, "view")
        if suffix not in (".png", ".html"):
            raise UsageError(f"{suffix or 'no suffix'} is not a format; use .png or .html")
        if suffix == ".png":
            return png(self.figure(view), 110)
        body = documents.html(view, self.state, self.desk.classes, self._pair)
        return views.page(f"{VIEWS[view]} {self.state.photo.name}", body).encode()

    def figure(self, view: str) -> Figure:
        """Return a view as a figure; see `documents.figure`."""
        return documents.figure(view, self.state, self.desk.classes, self._pair)

    # -- What goes on in the background.

    def _work(self, steps: Iterator[None], wait: bool) -> None:
        self._stopped = stopped = threading.Event()
        if wait:
            for _ in steps:
                pass
            return
        self._worker = threading.Thread(target=self._drain, args=(steps, stopped), daemon=True)
        self._worker.start()

    def _drain(self, steps: Iterator[None], stopped: threading.Event) -> None:
        try:
            for _ in steps:
                if stopped.is_set():
                    self.progress.bar_style = "warning"
                    self.status.value = views.block(f"stopped: {self._counted}; {STOPPED[self._unit]}")
                    return
        except Exception as error:  # nobody would see what a thread raises
            self.message.value = views.problem(f"{type(error).__name__}: {error}")

    def _explained(self, steps: Iterator[tuple[str, LocalExplanation | str]], total: int) -> Iterator[None]:
        self._begin(total, "masks")
        for name, found in steps:
            if isinstance(found, str):
                self._update(problems={**self.state.problems, name: found})
            else:
                self._remember(name, found)
            self._advance(sum(desks.spent(e) for e in self.state.explanations.values()))
            self._show_why()
            self._show_compare()
            yield
        self._end("done: better with Refine, if a badge is not green")

    def _remember(self, name: str, found: LocalExplanation) -> None:
        state = self.state
        called = f"{state.photo.name}, {name}: {found.question}"
        kept = {key: e for key, e in state.remembered.items() if key != called} | {called: (state.photo, found)}
        kept = dict(list(kept.items())[-REMEMBERED:])
        self._update(explanations={**state.explanations, name: found}, remembered=kept)

    def _summed(self, steps: Iterator[tuple[int, ClassExplanation | None, pd.DataFrame]], total: int) -> Iterator[None]:
        self._begin(total, "photos")
        for count, summed, check in steps:
            self._advance(count)
            if summed is None:
                yield
            else:
                self._update(summed=(summed, check))
                self._show_class()
        self._end("done")

    def _begin(self, total: int, unit: str) -> None:
        self.message.value, self.progress.bar_style = "", ""
        self.progress.max, self._unit = total, unit
        self._advance(0)

    def _advance(self, done: int) -> None:
        self.progress.value = min(done, self.progress.max)
        self.status.value = views.block(self._counted)

    @property
    def _counted(self) -> str:
        return f"{self.progress.value} of {self.progress.max} {self._unit}"

    def _end(self, message: str) -> None:
        self.progress.value, self.progress.bar_style = self.progress.max, "success"
        self.status.value = views.block(message)

    # -- What is on screen.

    def _open(self) -> None:
        """Begin with the first photos of the desk."""
        desk = self.desk
        models = tuple(desk.predictors)[:SIDE_BY_SIDE]
        with self._not_following():
            boxes = [
                W.Checkbox(value=n in models, description=n, indent=False, layout=W.Layout(width="auto"))
                for n in desk.predictors
            ]
            self.models.children = [W.Label("Models"), *boxes]
            self.controls["label"].options = [("every class", ""), *((name, name) for name in desk.classes)]
            self.controls["show"].options = desk.shows(models[0])
            self.controls["condition"].options = [("any", ""), *((name, name) for name in desk.conditions())]
            for name in ("class", "against"):
                self.controls[name].options = [(text, k) for k, text in enumerate(desk.classes)]
            self.controls["of"].options = list(desk.predictors)
        self._set(label="", show="all", condition="", of=models[0])
        for box in boxes:
            box.observe(self._safely(self._use_ticked), names="value")
        found = tuple(desk.find(models[0]))
        self._look(desk.photo(found[0]), models, found)

    def _look(self, photo: Photo, models: tuple[str, ...] = (), found: tuple[int, ...] = ()) -> None:
        self.message.value = self.status.value = self.link.value = ""
        self.stop()  # and say so, where something was going on
        before = getattr(self, "state", None)
        models, found = models or before.models, found or before.found
        asked = {name: self.desk.predictors[name] for name in models}
        said = desks.answer(asked, photo.sample.image, photo.text)
        label, rival = self.desk.question(photo, models[0])
        kept = {"summed": before.summed, "remembered": before.remembered} if before else {}
        self.state = State(models, found, photo, label, rival, said, after=said, **kept)
        self._show()

    @property
    def _predictors(self) -> dict[str, Any]:
        return {name: self.desk.predictors[name] for name in self.state.models}

    def _index(self, label: str | int) -> int:
        if isinstance(label, str):
            return self.desk.classes.index(pick(self.desk.classes, label, "class"))
        _within(int(label), len(self.desk.classes), "class")
        return int(label)

    def _show(self) -> None:
        state, change = self.state, self.state.change
        self._set(**{"class": state.label, "against": state.rival, "text": change.read(state.photo)})
        self._set(brightness=change.brightness, blur=change.blur, occlusion=change.occlusion)
        self._set(background=change.background)
        for name in ("background", "occlusion"):
            self.controls[name].disabled = state.photo.sample.mask is None
        self._show_strip()
        self._show_why()
        self._show_scene()
        self._show_compare()

    def _show_strip(self) -> None:
        state, desk = self.state, self.desk
        place = state.found.index(state.photo.position) if state.photo.position in state.found else 0
        first = place - place % AT_ONCE
        shown = state.found[first : first + AT_ONCE]
        judged = desk.judged[state.models[0]]
        captions = [
            f"{desk.classes[judged.predicted[p]]} {judged.probs[p].max():.2f}" if judged.answered[p] else "no answer"
            for p in shown
        ]
        images = [desk.pictures[p].image for p in shown]
        chosen = shown.index(state.photo.position) if state.photo.position in shown else -1
        pixels, labels = views.thumbnails(images, captions, [bool(judged.correct[p]) for p in shown], chosen)
        truths = [desk.classes[judged.labels[p]] for p in shown]
        names = [f"photo {p}: {truth}" for p, truth in zip(shown, truths, strict=True)]
        alt = (
            f"photos {first + 1} to {first + len(shown)} of {len(state.found)}; below each what {state.models[0]} says"
        )
        self._shown = shown
        self.strip.show(pixels, labels, names, alt, f"{alt}. Click one to look at it.")
        truth = desk.classes[state.photo.sample.label] if state.photo.known else "not known"
        self.told.value = views.block(
            f"<b>{views.escape(state.photo.name)}</b>: {views.escape(truth)} "
            f"<small>({len(state.found)} photos pass the filters)</small>"
        )

    def _show_why(self) -> None:
        state, classes = self.state, self.desk.classes
        self.legend.value = views.block(views.legend(classes, state.label, state.rival))
        for number, panel in enumerate(self.panels):
            panel.layout.display = "none" if number >= len(state.models) else None
            if number < len(state.models):
                panel.show(state, state.models[number], classes)

    def _show_scene(self) -> None:
        state = self.state
        pixels = documents.changed(state, state.change)
        first = state.explanations.get(state.models[0])
        names = views.region_names(state.photo, first, state.change)
        hint = "Click a part of the picture or a word to switch it off or on; or use the arrow keys and Enter."
        alt = (
            f"{state.photo.name} as changed: {len(state.change.hidden)} parts and {len(state.change.unread)} words off"
        )
        self.scene.show(pixels, views.regions(state.photo), names, alt, hint)
        told = views.probabilities(state.before, state.after, self.desk.classes, state.label, state.rival)
        self.bars.value = views.block(told, "<p><small>black line: as it was</small></p>")

    def _show_class(self) -> None:
        summed = self.state.summed
        self.summary.value = views.block(views.class_summary(*summed)) if summed else ""

    def _show_compare(self) -> None:
        with self._lock:
            names = list(self.state.remembered)
            if not names:
                return
            chosen = self._compared and all(name in names for name in self._compared)
            pair = self._compared if chosen else (names[-min(2, len(names))], names[-1])
            with self._not_following():
                for control, name in zip(("left", "right"), pair, strict=True):
                    if list(self.controls[control].options) != names:
                        self.controls[control].options = names
                    self.controls[control].value = name
            self.compared.value = views.block(documents.comparison(self.state, pair))

    # -- Controls.

    @property
    def _pair(self) -> list[str]:
        return [self.controls[side].value for side in ("left", "right")]

    def _update(self, **fields: Any) -> None:
        with self._lock:
            self.state = replace(self.state, **fields)

    def _set(self, **values: Any) -> None:
        """Set controls without their calling anything."""
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
        """Return `act` so that a problem is shown, and that it stays quiet while controls are set."""

        def call(*_: Any) -> None:
            if getattr(self._quiet, "on", False):
                return
            self.message.value = ""
            try:
                act()
            except Exception as error:  # a callback's traceback would vanish in the browser's console
                told = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
                self.message.value = views.problem(told)

        return call

    def _wire(self) -> None:
        c = self.controls
        values = {
            "dataset": lambda: self.load(c["dataset"].value),
            "label": self._filter_chosen,
            "show": self._filter_chosen,
            "condition": self._filter_chosen,
            "class": self._ask_chosen,
            "against": self._ask_chosen,
            "text": lambda: self.set_text(c["text"].value),
            "upload": self._upload_chosen,
            "left": lambda: self.compare(c["left"].value, c["right"].value),
            "right": lambda: self.compare(c["left"].value, c["right"].value),
        }
        values |= {
            name: lambda name=name: self.adjust(**{name: c[name].value})
            for name in ("brightness", "blur", "background", "occlusion")
        }
        for name, act in values.items():
            c[name].observe(self._safely(act), names="value")
        clicks = {
            "back": lambda: self._turn(-1),
            "on": lambda: self._turn(1),
            "explain": lambda: self.explain(wait=False),
            "stop": self.stop,
            "refine": lambda: self.refine(c["masks"].value, wait=False),
            "undo": self.undo,
            "explain_class": lambda: self.explain_class(None, c["photos"].value, c["of"].value, wait=False),
            "png": lambda: self._offer(".png"),
            "html": lambda: self._offer(".html"),
        }
        for name, act in clicks.items():
            c[name].on_click(self._safely(act))
        self.strip.on_click(lambda place: self._safely(lambda: self.select(self._shown[place]))())
        for picture in (self.scene, *(panel.picture for panel in self.panels)):
            picture.on_click(lambda part: self._safely(lambda: self._switch_part(part))())

    def _switch_part(self, part: int) -> None:
        count = int(self.state.photo.segments.max()) + 1
        self.switch(segment=part) if part < count else self.switch(word=part - count)

    def _use_ticked(self) -> None:
        ticked = [box.description for box in self.models.children[1:] if box.value]
        self.use(*ticked)

    def _filter_chosen(self) -> None:
        self.filter(*(self.controls[name].value for name in ("label", "show", "condition")))

    def _ask_chosen(self) -> None:
        self.ask(self.controls["class"].value, self.controls["against"].value)

    def _upload_chosen(self) -> None:
        for file in self.controls["upload"].value:
            self.upload(bytes(file["content"]), file["name"])

    def _turn(self, step: int) -> None:
        found = self.state.found
        place = found.index(self.state.photo.position) if self.state.photo.position in found else 0
        self.select(found[(place - place % AT_ONCE + step * AT_ONCE) % len(found)])

    def _offer(self, suffix: str) -> None:
        view = list(VIEWS)[self.tabs.selected_index]
        kind = {".png": "image/png", ".html": "text/html"}[suffix]
        code = base64.b64encode(self.rendered(view, suffix)).decode()
        name = views.escape(f"{view}_{self.state.photo.name}".replace(" ", "_") + suffix)
        self.link.value = f'<a class="rk-link" download="{name}" href="data:{kind};base64,{code}">Save {name}</a>'


def _within(number: int, count: int, what: str) -> None:
    if not 0 <= number < count:
        raise UsageError(f"{what} {number} is out of range; there are {count}: 0 to {count - 1}")
