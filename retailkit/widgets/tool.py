"""The explanation tool: what its controls do. Each calls a method that a script can call as well."""

from __future__ import annotations

import base64
import html
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any

import pandas as pd

from retailkit.config import UsageError, UserError, pick
from retailkit.data.table import ProductData
from retailkit.explain.classes import ClassExplanation
from retailkit.explain.lime import LocalExplanation
from retailkit.widgets import model as desks
from retailkit.widgets import page as pages
from retailkit.widgets.layout import AT_ONCE, SETTINGS, Screen, problem
from retailkit.widgets.model import SIDE_BY_SIDE, Change, Desk, Photo, State
from retailkit.widgets.page import VIEWS, Section, fragment

Loader = Callable[[], tuple[ProductData, Mapping[str, Any]]]
STOPPED = {"masks": "the explanations so far are kept", "photos": "nothing is kept: a class is summarised at the end"}


class ExplanationTool(Screen):
    """Show it as the last line of a cell, or use its methods. Positions count the photos from 0.

    `explain`, `refine` and `explain_class` return when they are done, or work in the background where `wait` is False.
    `desk` holds photos and models, `state` is what is on the screen, and `controls` are its widgets by name.

    Args:
        data: with words, if models read.
        models: by name: models, or predictors of them, for the same classes and input size.
        others: further data sets to choose from: each function returns one with its models.
        budget: masks per explanation.

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
        super().__init__(list(self._loaders), budget)
        self.desk = Desk(data, models)
        self._connect()
        self._open()

    # -- What scripts and controls call

    def load(self, name: str) -> None:
        """Change the data set, and the models with it."""
        self.stop()
        loader = self._loaders[pick(self._loaders, name, "data set")]
        self.message.value = problem(f"{name} is being loaded. The first time takes minutes.", "status")
        self.desk = Desk(*loader())
        self._set(dataset=name)
        self._open()

    def use(self, *models: str) -> None:
        """Choose the models to show, up to three; raise UsageError for an unknown model, none, or too many."""
        for name in models:
            pick(self.desk.predictors, name, "model")
        if not 1 <= len(models) <= SIDE_BY_SIDE:
            raise UsageError(f"{len(models)} models are chosen; choose 1 to {SIDE_BY_SIDE}")
        self._set(label="", show="all")
        self._look(self.state.photo, models=models, found=tuple(self.desk.find(models[0])))

    def filter(self, label: str = "", show: str = "all") -> None:
        """Choose the photos to show, see `Desk.find`, and select the first; raise UserError where none passes."""
        found = self.desk.find(self.state.models[0], label, show)
        if not found:
            raise UserError("No photo passes these filters. Choose others.")
        self._update(found=tuple(found))
        self._set(label=label, show=show)
        self.select(found[0])

    def select(self, position: int) -> None:
        """Show a photo of the data set."""
        self._look(self.desk.photo(position))

    def upload(self, content: bytes, name: str) -> None:
        """Show a photo that is given as the content of a file; errors are those of `model.decode`."""
        self._look(self.desk.own_photo(content, name))

    def ask(self, label: str, contrast: str) -> None:
        """Choose the class to explain and another one as its contrast class; raise UsageError for an unknown one."""
        if label == contrast:
            raise UsageError(f"{label!r} is chosen twice; choose two different classes")
        self.stop()
        index = self.desk.index
        self._update(label=index(label), contrast=index(contrast), explanations={}, problems={})
        self._show()

    def explain(self, wait: bool = True) -> None:
        """Explain the answer of each model, coarsely first, with as many masks each as the slider says."""
        self.stop()
        state, budget = self.state, self.controls["masks"].value
        self._update(explanations={}, problems={})
        steps = desks.explaining(self._predictors, state.photo, state.label, state.contrast, budget)
        self._work(self._explained(steps), budget * len(state.models), "masks", wait)

    def refine(self, wait: bool = True) -> None:
        """Improve the explanations by as many further masks; raise UserError where there is none yet."""
        self.stop()
        found = self.state.explanations
        if not found:
            raise UserError(pages.NOTHING)
        goal = self.controls["masks"].value + max(desks.spent(e) for e in found.values())
        self._work(self._explained(desks.refining(found, goal)), goal * len(found), "masks", wait)

    def stop(self) -> None:
        """End the work in the background; the explanations of a photo so far are kept, those of a class are not."""
        self._stopped.set()
        if self._worker is not None and self._worker is not threading.current_thread():
            self._worker.join()

    def switch(self, segment: int | None = None, word: int | None = None) -> None:
        """Hide a superpixel or a word, or show it again; raise UsageError where there is no such part.

        Where a word is given, a text that was typed is dropped.
        """
        change, photo = self.state.change, self.state.photo
        for part, count, what in ((segment, photo.n_segments, "superpixel"), (word, len(photo.tokens), "word")):
            if part is not None and part not in range(count):
                raise UsageError(f"{what} {part} is out of range; there are {count}: 0 to {count - 1}")
        if segment is not None:
            change = replace(change, hidden=change.hidden ^ {segment})
        if word is not None:
            change = replace(change, unread=change.unread ^ {word}, text=None)
        self.change(change)

    def change(self, change: Change) -> None:
        """Change the photo and let the models answer again; errors are those of `Change.image`."""
        photo = self.state.photo
        after = desks.answers(self._predictors, change.image(photo), change.words(photo))
        self._update(change=change, after=after)
        self._show()

    def undo(self) -> None:
        """Show the photo as it is."""
        self.change(Change())

    def probabilities(self) -> pd.DataFrame:
        """Return the probabilities of the class and its contrast class: `model`, `label`, `before`, `after`."""
        return self.state.probabilities(self.desk.classes)

    def explain_class(self, photos: int = 6, model: str | None = None, wait: bool = True) -> None:
        """Explain up to `photos` of the class of Why? and summarise them; None takes the first model.

        A third of the class is left for the deletion check.
        """
        self.stop()
        name = pick(self.desk.predictors, model or self.state.models[0], "model")
        steps = self.desk.explaining_class(name, self.state.label, photos, self.controls["masks"].value)
        self._work(self._summed(steps, name), photos, "photos", wait)

    def page(self, view: str) -> str:
        """Return a view as an HTML page that needs no other file; see `page.sections`."""
        shown = pages.sections(view, self.state, self.desk.classes)
        return pages.page(f"{VIEWS[view]} {self.state.photo.name}", shown)

    # -- Work in the background

    def _work(self, steps: Iterator[int], total: int, unit: str, wait: bool) -> None:
        """Take `steps`, which yield how much of `total` is done, until they end or `stop` is called."""
        self._stopped = stopped = threading.Event()

        def work() -> None:
            self.message.value = self.link.value = ""
            self.progress.layout.display = None
            self.progress.max = total
            for done in chain([0], steps):
                self.progress.value = min(done, total)
                counted = f"{self.progress.value} of {total} {unit}"
                self._say(counted)
                if stopped.is_set():
                    self._end(f"Stopped: {counted}; {STOPPED[unit]}.")
                    return
            self._end("Done.")

        if wait:
            work()
        else:
            self._worker = threading.Thread(target=self._safely(work), daemon=True)
            self._worker.start()

    def _end(self, text: str) -> None:
        self.progress.layout.display = "none"
        self._say(text)

    def _say(self, text: str) -> None:
        self.status.value = fragment(Section(text=[text]))

    def _explained(self, steps: Iterator[tuple[str, LocalExplanation | str]]) -> Iterator[int]:
        for name, found in steps:
            kind = "problems" if isinstance(found, str) else "explanations"
            self._update(**{kind: {**getattr(self.state, kind), name: found}})
            self._show_why()
            yield sum(desks.spent(e) for e in self.state.explanations.values())

    def _summed(self, steps: Iterator[tuple[int, ClassExplanation | None, pd.DataFrame]], model: str) -> Iterator[int]:
        for count, summed, check in steps:
            if summed is not None:
                self._update(summed=(model, summed, check))
                self._show_class()
            yield count

    # -- What is on the screen

    def _open(self) -> None:
        """Begin with the first photos of the desk."""
        models = tuple(self.desk.predictors)[:SIDE_BY_SIDE]
        self._fill_menus(models)
        self._set(label="", show="all", of=models[0])
        for box in self.models.children[1:]:
            box.observe(self._safely(self._use_ticked), names="value")
        found = tuple(self.desk.find(models[0]))
        self._look(self.desk.photo(found[0]), models=models, found=found, summed=None)
        self._show_class()

    def _look(self, photo: Photo, **chosen: Any) -> None:
        """Show a photo as it is; `chosen` are further fields of the state, and the others stay as they are."""
        self.message.value = self.status.value = ""
        self.progress.layout.display = "none"
        self.stop()  # and say so, where something was running
        kept = {name: getattr(self.state, name) for name in ("models", "found", "summed") if name not in chosen}
        fields = kept | chosen
        predictors = {name: self.desk.predictors[name] for name in fields["models"]}
        probs = desks.answers(predictors, photo.sample.image, photo.text)
        label, contrast = self.desk.question(photo, probs.get(fields["models"][0]))
        self.state = State(photo=photo, label=label, contrast=contrast, before=probs, after=probs, **fields)
        self._show()

    @property
    def _predictors(self) -> dict[str, Any]:
        return {name: self.desk.predictors[name] for name in self.state.models}

    def _update(self, **fields: Any) -> None:
        with self._lock:
            self.state = replace(self.state, **fields)

    # -- Controls

    def _connect(self) -> None:
        c = self.controls
        changes = {
            ("dataset",): lambda _: self.load(c["dataset"].value),
            ("label", "show"): lambda _: self.filter(c["label"].value, c["show"].value),
            ("class", "contrast"): lambda _: self.ask(c["class"].value, c["contrast"].value),
        }
        for name in ("text", *SETTINGS):
            changes[(name,)] = lambda new, name=name: self.change(replace(self.state.change, **{name: new["new"]}))
        for names, act in changes.items():
            for name in names:
                c[name].observe(self._safely(act), names="value")
        clicks = {
            "back": lambda _: self._turn(-1),
            "on": lambda _: self._turn(1),
            "explain": lambda _: self.explain(wait=False),
            "stop": lambda _: self.stop(),
            "refine": lambda _: self.refine(wait=False),
            "undo": lambda _: self.undo(),
            "explain_class": lambda _: self.explain_class(c["photos"].value, c["of"].value, wait=False),
            "html": lambda _: self._offer(),
        }
        for name, act in clicks.items():
            c[name].on_click(self._safely(act))
        self.upload_button.on_upload(self._safely(self.upload))
        self.tabs.observe(self._safely(lambda _: self.link.set_trait("value", "")), names="selected_index")
        self.strip.on_click(self._safely(lambda place: self.select(self._shown[place])))
        for picture in (self.scene, *(panel.picture for panel in self.panels)):
            picture.on_click(self._safely(self._switch_part))

    def _switch_part(self, part: int) -> None:
        count = self.state.photo.n_segments
        self.switch(segment=part) if part < count else self.switch(word=part - count)

    def _use_ticked(self, _: Any) -> None:
        self.use(*[box.description for box in self.models.children[1:] if box.value])

    def _turn(self, step: int) -> None:
        self.select(self.state.found[(self._first + step * AT_ONCE) % len(self.state.found)])

    def _offer(self) -> None:
        view = list(VIEWS)[self.tabs.selected_index]
        code = base64.b64encode(self.page(view).encode()).decode()
        name = html.escape(re.sub(r"[\s/\\]+", "_", f"{view}_{self.state.photo.name}.html"))
        self.link.value = f'<a class="rk-link" download="{name}" href="data:text/html;base64,{code}">Save {name}</a>'
