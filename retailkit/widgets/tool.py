"""The explanation tool: what its controls do.

Every control calls a method that a script can call as well. Methods replace `ExplanationTool.state`; what is on the
screen follows from it.
"""

from __future__ import annotations

import base64
import html
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from retailkit import plots
from retailkit.cache import replacing
from retailkit.config import UsageError, UserError, pick
from retailkit.data.table import ProductData
from retailkit.explain.classes import ClassExplanation
from retailkit.explain.lime import LocalExplanation
from retailkit.widgets import model as desks
from retailkit.widgets import page as pages
from retailkit.widgets.layout import AT_ONCE, SETTINGS, Screen
from retailkit.widgets.model import SIDE_BY_SIDE, Change, Desk, Photo, State
from retailkit.widgets.page import VIEWS, Section, fragment

Loader = Callable[[], tuple[ProductData, Mapping[str, Any]]]
REMEMBERED = 20  # explanations that can be compared
STOPPED = {"masks": "the explanations so far are kept", "photos": "nothing is kept: a class is summarised at the end"}


class ExplanationTool(Screen):
    """Show it as the last line of a cell, or use its methods. Positions count the photos from 0.

    Args:
        data: with words, if models read.
        models: by name: models, or predictors of them, for the same classes and input size.
        others: further data sets to choose from: each function returns one with its models.
        budget: masks per explanation.

    Attributes:
        desk: photos and models.
        state: what is on the screen.
        controls: name -> widget.
        message: the `HTML` widget that names a problem.

    Raises:
        UsageError: see `Desk`.
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
        self._unit = "masks"  # that progress is counted in, or "photos"
        super().__init__(list(self._loaders), budget)
        self.desk = Desk(data, models)
        self._connect()
        self._open()

    # -- What scripts and controls call

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
        """Choose the models to show, up to three.

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
        """Choose the photos to show, and select the first of them.

        Args:
            label: their class; "" takes all.
            show: `all`, `wrong`, `unsure`, or a pair of classes as in the menu.
            condition: capture condition; "" takes all.

        Raises:
            UsageError: unknown values.
            UserError: no photo passes.
        """
        found = self.desk.find(self.state.models[0], label, show, condition)
        if not found:
            raise UserError("No photo passes these filters. Choose others.")
        self._update(found=tuple(found))
        self._set(label=label, show=show, condition=condition)
        self.select(found[0])

    def select(self, photo: int | str | Path) -> None:
        """Show a photo.

        Args:
            photo: its position, or the path of a photo of your own.

        Raises:
            UsageError: there is no such photo.
            UserError: the file cannot be read; see `model.decode`.
        """
        if isinstance(photo, int | np.integer):
            self._look(self.desk.photo(int(photo)))
            return
        path = Path(photo)
        if not path.is_file():
            raise UserError(f"{path}: no such photo; check the path")
        self.upload(path.read_bytes(), path.name)

    def upload(self, content: bytes, name: str) -> None:
        """Show a photo that is given as the content of a file.

        Raises:
            UserError: it is no image, or too large; see `model.decode`.
        """
        self._look(self.desk.own_photo(content, name))

    def ask(self, label: str | int, contrast: str | int) -> None:
        """Choose the class to explain and its contrast class.

        Raises:
            UsageError: an unknown class, or one class twice.
        """
        ours, theirs = self._index(label), self._index(contrast)
        if ours == theirs:
            raise UsageError(f"{self.desk.classes[ours]!r} is chosen twice; choose two different classes")
        self.stop()
        self._update(label=ours, contrast=theirs, explanations={}, problems={})
        self._show()

    def explain(self, budget: int | None = None, wait: bool = True) -> None:
        """Explain the answer of each model: a coarse explanation first, then better ones.

        Args:
            budget: masks per model; None takes the slider's.
            wait: return when it is done; False works in the background until `stop`.
        """
        self.stop()
        state, budget = self.state, budget or self.controls["masks"].value
        self._update(explanations={}, problems={})
        steps = desks.explaining(self._predictors, state.photo, state.label, state.contrast, budget)
        self._work(self._explained(steps, budget * len(state.models)), wait)

    def refine(self, budget: int = 160, wait: bool = True) -> None:
        """Improve the explanations by further masks.

        Args:
            budget: further masks per model.
            wait: as of `explain`.

        Raises:
            UserError: there is nothing to refine yet.
        """
        self.stop()
        found = self.state.explanations
        if not found:
            raise UserError(pages.NOTHING)
        goal = budget + max(desks.spent(e) for e in found.values())
        self._work(self._explained(desks.refining(found, goal), goal * len(found)), wait)

    def stop(self) -> None:
        """End the work in the background; the explanations of a photo so far are kept, those of a class are not."""
        self._stopped.set()
        if self._worker is not None and self._worker is not threading.current_thread():
            self._worker.join()

    def switch(self, segment: int | None = None, word: int | None = None) -> None:
        """Hide a superpixel or a word, or show it again.

        Args:
            segment: number of the superpixel.
            word: number of the word, in reading order. A text that was typed is dropped.

        Raises:
            UsageError: there is no such part.
        """
        change, photo = self.state.change, self.state.photo
        if segment is not None:
            _within(segment, photo.n_segments, "superpixel")
            change = replace(change, hidden=change.hidden ^ {segment})
        if word is not None:
            _within(word, len(photo.tokens), "word")
            change = replace(change, unread=change.unread ^ {word}, text=None)
        self.change(change)

    def set_text(self, text: str | None) -> None:
        """Give the models another text; None takes the photo's words again."""
        self.change(replace(self.state.change, text=text))

    def adjust(self, **values: float | str) -> None:
        """Set `brightness`, `blur`, `background` or `occlusion`; see `Change`.

        Raises:
            UsageError: something else, or a value out of range.
            UserError: the photo has no product mask.
        """
        for name in values:
            pick(SETTINGS, name, "setting")
        self.change(replace(self.state.change, **values))

    def undo(self) -> None:
        """Show the photo as it is."""
        self.change(Change())

    def change(self, change: Change) -> None:
        """Change the photo and let the models answer again; see `adjust`, `switch` and `set_text`."""
        photo = self.state.photo
        after = desks.answers(self._predictors, change.image(photo), change.words(photo))
        self._update(change=change, after=after)
        self._show()

    def probabilities(self) -> pd.DataFrame:
        """Return the probabilities of the class and its contrast class: `model`, `label`, `before`, `after`."""
        return self.state.probabilities(self.desk.classes)

    def explain_class(
        self, label: str | int | None = None, photos: int = 6, model: str | None = None, wait: bool = True
    ) -> None:
        """Explain photos of a class and summarise them.

        Args:
            label: the class; None takes the one of Why?.
            photos: to explain at most; a third of the class is left for the deletion check.
            model: its name; None takes the first.
            wait: as of `explain`.

        Raises:
            UsageError: an unknown class or model.
        """
        self.stop()
        index = self.state.label if label is None else self._index(label)
        name = pick(self.desk.predictors, model or self.state.models[0], "model")
        steps = self.desk.explaining_class(name, index, photos, self.controls["masks"].value)
        self._work(self._summed(steps, name, photos), wait)

    def compare(self, left: str, right: str) -> None:
        """Show two explanations side by side, of two models or two photos. They stay when more are made.

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
            path: ends in `.png` or `.html`; a page needs no other file.
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
            return plots.png(self.figure(view), 110)
        shown = pages.sections(view, self.state, self.desk.classes, self._pair)
        return pages.page(f"{VIEWS[view]} {self.state.photo.name}", shown).encode()

    def figure(self, view: str) -> Figure:
        """Return a view as a figure; see `page.figure`."""
        return pages.figure(view, self.state, self.desk.classes, self._pair)

    # -- Work in the background

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
                    self.status.value = fragment(Section(text=[f"Stopped: {self._counted}; {STOPPED[self._unit]}."]))
                    return
        except Exception as error:  # nobody would see what a thread raises
            self._complain(error)

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
        self._end("Done. Choose Refine where an explanation is weak or unstable.")

    def _remember(self, name: str, found: LocalExplanation) -> None:
        state = self.state
        called = f"{state.photo.name}, {name}: {found.question}"
        kept = {key: e for key, e in state.remembered.items() if key != called} | {called: (state.photo, found)}
        kept = dict(list(kept.items())[-REMEMBERED:])
        self._update(explanations={**state.explanations, name: found}, remembered=kept)

    def _summed(
        self, steps: Iterator[tuple[int, ClassExplanation | None, pd.DataFrame]], model: str, total: int
    ) -> Iterator[None]:
        self._begin(total, "photos")
        for count, summed, check in steps:
            self._advance(count)
            if summed is None:
                yield
            else:
                self._update(summed=(model, summed, check))
                self._show_class()
        self._end("Done.")

    def _begin(self, total: int, unit: str) -> None:
        self.message.value, self.progress.bar_style = "", ""
        self.progress.max, self._unit = total, unit
        self._advance(0)

    def _advance(self, done: int) -> None:
        self.progress.value = min(done, self.progress.max)
        self.status.value = fragment(Section(text=[self._counted]))

    @property
    def _counted(self) -> str:
        return f"{self.progress.value} of {self.progress.max} {self._unit}"

    def _end(self, message: str) -> None:
        self.progress.value, self.progress.bar_style = self.progress.max, "success"
        self.status.value = fragment(Section(text=[message]))

    # -- What is on the screen

    def _open(self) -> None:
        """Begin with the first photos of the desk."""
        desk = self.desk
        models = tuple(desk.predictors)[:SIDE_BY_SIDE]
        self._fill_menus(models)
        self._set(label="", show="all", condition="", of=models[0])
        for box in self.models.children[1:]:
            box.observe(self._safely(self._use_ticked), names="value")
        found = tuple(desk.find(models[0]))
        self._look(desk.photo(found[0]), models, found)

    def _look(self, photo: Photo, models: tuple[str, ...] = (), found: tuple[int, ...] = ()) -> None:
        self.message.value = self.status.value = self.link.value = ""
        self.stop()  # and say so, where something was running
        before = getattr(self, "state", None)
        models, found = models or before.models, found or before.found
        asked = {name: self.desk.predictors[name] for name in models}
        probs = desks.answers(asked, photo.sample.image, photo.text)
        label, contrast = self.desk.question(photo, models[0])
        kept = {"summed": before.summed, "remembered": before.remembered} if before else {}
        self.state = State(models, found, photo, label, contrast, probs, after=probs, **kept)
        self._show()

    @property
    def _predictors(self) -> dict[str, Any]:
        return {name: self.desk.predictors[name] for name in self.state.models}

    def _index(self, label: str | int) -> int:
        if isinstance(label, str):
            return self.desk.classes.index(pick(self.desk.classes, label, "class"))
        _within(int(label), len(self.desk.classes), "class")
        return int(label)

    # -- Controls

    def _update(self, **fields: Any) -> None:
        with self._lock:
            self.state = replace(self.state, **fields)

    def _connect(self) -> None:
        c = self.controls
        values = {
            "dataset": lambda: self.load(c["dataset"].value),
            "label": self._filter_chosen,
            "show": self._filter_chosen,
            "condition": self._filter_chosen,
            "class": self._ask_chosen,
            "contrast": self._ask_chosen,
            "text": lambda: self.set_text(c["text"].value),
            "upload": self._upload_chosen,
            "left": lambda: self.compare(c["left"].value, c["right"].value),
            "right": lambda: self.compare(c["left"].value, c["right"].value),
        }
        values |= {name: lambda name=name: self.adjust(**{name: c[name].value}) for name in SETTINGS}
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
        count = self.state.photo.n_segments
        self.switch(segment=part) if part < count else self.switch(word=part - count)

    def _use_ticked(self) -> None:
        ticked = [box.description for box in self.models.children[1:] if box.value]
        self.use(*ticked)

    def _filter_chosen(self) -> None:
        self.filter(*(self.controls[name].value for name in ("label", "show", "condition")))

    def _ask_chosen(self) -> None:
        self.ask(self.controls["class"].value, self.controls["contrast"].value)

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
        name = html.escape(f"{view}_{self.state.photo.name}".replace(" ", "_") + suffix)
        self.link.value = f'<a class="rk-link" download="{name}" href="data:{kind};base64,{code}">Save {name}</a>'


def _within(number: int, count: int, what: str) -> None:
    if not 0 <= number < count:
        raise UsageError(f"{what} {number} is out of range; there are {count}: 0 to {count - 1}")
