"""What is on screen in the explanation tool: a value, from which pictures, pages and files follow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from retailkit.explain.classes import ClassExplanation
from retailkit.explain.lime import LocalExplanation
from retailkit.widgets.desk import Change, Photo

FRESH = Change()


@dataclass(frozen=True)
class State:
    """What is on screen.

    Attributes:
        models: names, the first one being the one that is asked first.
        found: positions of the photos that pass the filters.
        photo: the one that is looked at.
        label: index of the class that is asked about.
        rival: index of the class that it is contrasted with.
        before: what models say of the photo, (K,) by name.
        change: what if?
        after: what models say then.
        explanations: by name; what a model could not explain is missing.
        problems: why, by name.
        summed: what a class is recognised by, and the deletion check of that; or None.
        remembered: photos and explanations of them so far, by what to call them, the latest last.
    """

    models: tuple[str, ...]
    found: tuple[int, ...]
    photo: Photo
    label: int
    rival: int
    before: Mapping[str, np.ndarray]
    change: Change = FRESH
    after: Mapping[str, np.ndarray] = field(default_factory=dict)
    explanations: Mapping[str, LocalExplanation] = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=dict)
    summed: tuple[ClassExplanation, pd.DataFrame] | None = None
    remembered: Mapping[str, tuple[Photo, LocalExplanation]] = field(default_factory=dict)

    @property
    def truth(self) -> int:
        """Index of the photo's class, -1 where it is not known."""
        return self.photo.sample.label if self.photo.known else -1
