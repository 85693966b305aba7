"""Views of the explanation tool as figures and as pages that need nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from retailkit import plots
from retailkit.config import UserError, pick
from retailkit.explain.classes import ClassExplanation
from retailkit.explain.lime import LocalExplanation
from retailkit.widgets import desk as desks
from retailkit.widgets import views
from retailkit.widgets.controls import SIDE
from retailkit.widgets.desk import Change, Photo
from retailkit.widgets.state import FRESH, State

VIEWS = {"why": "Why?", "what_if": "What if?", "class": "The whole class", "compare": "Compare"}
NOTHING = "nothing is explained yet; choose Explain first"
Explained = tuple[Photo, LocalExplanation]
CHANGED = 400  # pixels of a photo as changed


def figure(view: str, state: State, classes: Sequence[str], pair: Sequence[str] = ()) -> Figure:
    """Return a view as a figure.

    Args:
        view: key of `VIEWS`.
        state: what is on screen.
        classes: K names.
        pair: names of the two explanations to compare.

    Raises:
        UsageError: an unknown view.
        UserError: there is nothing to show in it yet.
    """
    pick(VIEWS, view, "view")
    if view == "what_if":
        asked = (state.before, state.after, classes, state.label, state.rival)
        texts = (state.photo.text, state.change.read(state.photo))
        return views.what_if_figure([changed(state, c) for c in (FRESH, state.change)], *asked, texts)
    if view == "class":
        return plots.class_explanation(_summed(state)[0])
    found = dict(_two(state, pair)) if view == "compare" else _explained(state)
    return views.why_figure({name: (photo.sample.image, explanation) for name, (photo, explanation) in found.items()})


def html(view: str, state: State, classes: Sequence[str], pair: Sequence[str] = ()) -> str:
    """Return a view as the body of a page; arguments and errors as those of `figure`."""
    if view == "class":
        return views.class_summary(*_summed(state))
    if view == "compare":
        return comparison(state, pair)
    if view == "what_if":
        bars = views.probabilities(state.before, state.after, classes, state.label, state.rival)
        return views.beside(_shown(state, "as it is", FRESH), _shown(state, "what if", state.change), bars)
    parts = [
        views.said(name, classes, state.before.get(name), None, state.truth) + _explanation(photo, explanation)
        for name, (photo, explanation) in _explained(state).items()
    ]
    return views.legend(classes, state.label, state.rival) + views.beside(*parts)


def comparison(state: State, pair: Sequence[str]) -> str:
    """Return two remembered explanations side by side, and how much alike they are.

    Raises:
        UserError: nothing is explained yet.
    """
    two = _two(state, pair)
    parts = [f"<h3>{views.escape(name)}</h3>{_explanation(*found)}" for name, found in two]
    return views.beside(*parts) + views.comparison(*(explanation for _, (_, explanation) in two), pair)


def changed(state: State, change: Change) -> np.ndarray:
    """Return the photo as `change` makes it, (H,W,3) uint8."""
    return views.changed_picture(desks.changed(state.photo, change), state.photo, change, CHANGED)


def _shown(state: State, name: str, change: Change) -> str:
    read = views.escape(change.read(state.photo))
    return f"<h3>{name}</h3>{views.image_tag(changed(state, change), name)}<p>It reads: {read}</p>"


def _explanation(photo: Photo, explanation: LocalExplanation) -> str:
    pixels = views.signed_map(explanation, SIDE, photo.sample.image)
    shown = views.image_tag(pixels, f"What speaks for and against: {explanation.question}")
    return shown + views.badges(explanation) + views.word_weights(explanation)


def _explained(state: State) -> Mapping[str, Explained]:
    return _or_nothing({name: (state.photo, explanation) for name, explanation in state.explanations.items()})


def _two(state: State, pair: Sequence[str]) -> list[tuple[str, Explained]]:
    found = _or_nothing(state.remembered)
    return [(name, found[name]) for name in pair]


def _or_nothing(found: Mapping[str, Explained]) -> Mapping[str, Explained]:
    if not found:
        raise UserError(NOTHING)
    return found


def _summed(state: State) -> tuple[ClassExplanation, pd.DataFrame]:
    if state.summed is None:
        raise UserError("no class is explained yet; choose Explain the class first")
    return state.summed
