"""Does hiding what an explanation calls important change what the model says?

Superpixels and units of text, the players, are hidden in order of their weights. Every score comes with that of random
orders: what an explanation scores that knows nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.integrate import trapezoid

from retailkit.config import UsageError, pick
from retailkit.explain.perturb import targets

if TYPE_CHECKING:
    from retailkit.explain.local import LocalExplanation
    from retailkit.explain.perturb import Game

MODALITIES = ("image", "text", "joint")
AREAS = ("deletion", "insertion", "srg", "normalised_srg")
CONTROLS = tuple(f"random_{name}{sd}" for name in AREAS for sd in ("", "_sd"))


@dataclass(frozen=True)
class Curves:
    """What the model says while players are hidden, or shown, from the most important one to the least.

    Row 0 is the order of an explanation, the other R rows are random orders. Showing the most important players first
    is hiding the least important ones first (LeRF), read backwards: the area under both is one and the same.

    Attributes:
        share: (1+R,G+1) share of the axis that is hidden (deletion) or shown (insertion), from 0 to 1.
        deletion: (1+R,G+1) scores; hidden from the most important player on (MoRF).
        insertion: (1+R,G+1) scores; shown from the most important player on.
        players: how many parts were ordered.
    """

    share: np.ndarray
    deletion: np.ndarray
    insertion: np.ndarray
    players: int

    @property
    def full(self) -> float:
        """Return the score with nothing hidden."""
        return float(self.deletion[0, 0])

    @property
    def empty(self) -> float:
        """Return the score with all players hidden."""
        return float(self.deletion[0, -1])

    @property
    def deletion_auc(self) -> np.ndarray:
        """Return the area under deletion, (1+R,) (RISE, Petsiuk et al. 2018); lower is better.

        Chance is the mean of the random orders; (full + empty) / 2 where players only add up.
        """
        return trapezoid(self.deletion, self.share, axis=1)

    @property
    def insertion_auc(self) -> np.ndarray:
        """Return the area under insertion, (1+R,) (RISE, Petsiuk et al. 2018); higher is better.

        Chance is the same as for deletion, in every game.
        """
        return trapezoid(self.insertion, self.share, axis=1)

    @property
    def srg(self) -> np.ndarray:
        """Return the symmetric relevance gain LeRF - MoRF, (1+R,) (Blücher et al. 2024); higher is better.

        What a hidden part looks like shifts both areas alike and cancels. Chance is 0 in every game.
        """
        return self.insertion_auc - self.deletion_auc

    def normalised(self) -> Curves:
        """Return the curves on a scale from 0, everything hidden, to 1, nothing hidden: comparable between pictures.

        NaN where the score does not fall when everything is hidden: there is nothing to explain it by.
        """
        gap = self.full - self.empty
        if gap <= 1e-6 * max(abs(self.full), abs(self.empty), 1):
            gap = np.nan
        scaled = {name: (getattr(self, name) - self.empty) / gap for name in ("deletion", "insertion")}
        return replace(self, **scaled)


def curves(
    game: Game,
    image_weights: np.ndarray,
    text_weights: np.ndarray,
    target: Callable[[np.ndarray], np.ndarray],
    modality: str = "joint",
    steps: int = 64,
    controls: int = 5,
    seed: int = 0,
) -> Curves:
    """Hide and show players in order of their signed weights, and in random orders.

    A superpixel takes as much of the axis as it has of the picture, and a unit of text 1/T. Jointly each modality takes
    the share that it has of the players. So all players count about alike, and no order beats that of the true weights
    where players add up and superpixels have one size. With a half for each modality, a word would take more of the
    axis than a superpixel of its weight, and the true order would lose.

    Args:
        game: what is explained; it is asked once, with all masks.
        image_weights: (S,) signed.
        text_weights: (T,) signed.
        target: takes logits (N,K) and returns the scores (N,) that are explained.
        modality: `image` and `text` hide players of theirs and keep the others; `joint` hides all.
        steps: points of a curve at most; with more players several go at a time. A curve costs two evaluations a step.
        controls: random orders, at least 5.
        seed: of the random orders, and of the order of players with equal weights.

    Raises:
        UsageError: weights that do not fit the game, nothing to hide, or too few steps or controls.
    """
    pick(MODALITIES, modality, "modality")
    wanted = ((game.n_segments,), (game.n_units,))
    if (given := (np.shape(image_weights), np.shape(text_weights))) != wanted:
        raise UsageError(f"weights are {given[0]} and {given[1]}; this game needs {wanted[0]} and {wanted[1]}")
    if steps < 1 or controls < 5:
        raise UsageError(f"steps={steps} and controls={controls}; use at least 1 and 5")
    played = np.repeat([modality != "text", modality != "image"], [game.n_segments, game.n_units])
    weights = np.concatenate([image_weights, text_weights]).astype(float)[played]
    if not len(weights) or not np.isfinite(weights).all():
        raise UsageError(f"{len(weights)} weights for {modality!r}; give at least one, and only finite ones")
    turns = _turns(weights, steps, controls, np.random.default_rng(seed))
    hidden = turns[:, None] < np.arange(turns.max() + 2)[:, None]  # (1+R,G+1,P)
    keep = np.ones((2, *hidden.shape[:2], len(played)), dtype=bool)
    keep[..., played] = np.stack([~hidden, hidden])  # deletion; insertion shows what deletion hides
    rows = keep.reshape(-1, len(played))
    scores = target(game.logits(rows[:, : game.n_segments], rows[:, game.n_segments :]))
    deletion, insertion = np.asarray(scores, dtype=float).reshape(keep.shape[:3])
    return Curves(hidden @ _axis(game)[played] / _axis(game)[played].sum(), deletion, insertion, len(weights))


def _turns(weights: np.ndarray, steps: int, controls: int, rng: np.random.Generator) -> np.ndarray:
    """Return at which step each player goes, (1+R,P): by decreasing weight, equal ones at random, and in R orders."""
    players = len(weights)
    turn = np.repeat(np.arange(min(players, steps)), [len(g) for g in np.array_split(weights, min(players, steps))])
    chance = rng.random((1 + controls, players))
    first = np.lexsort((chance[0], -weights))
    orders = np.stack([first, *chance[1:].argsort(axis=1)])
    return turn[orders.argsort(axis=1)]


def _axis(game: Game) -> np.ndarray:
    """Return how much of the axis each of the players takes, (S+T,), but for a factor."""
    areas = game.areas * game.n_segments / game.areas.sum() if game.n_segments else np.zeros(0)
    return np.concatenate([areas, np.ones(game.n_units)])


def faithfulness(
    explanation: LocalExplanation,
    row: int = 0,
    baselines: Sequence = ("mean", "blur"),
    modalities: Sequence[str] = MODALITIES,
    steps: int = 64,
    controls: int = 5,
    seed: int = 0,
) -> pd.DataFrame:
    """Score an explanation by what it says about hidden players, beside random orders; see `curves`.

    The score is what is explained, as a rule the logit of the class less that of its rival. A baseline other than the
    explanation's own tells whether it holds for the model or for one way to hide.

    Args:
        explanation: with its game, as `explain` returns it.
        row: which of its classes.
        baselines: what shows where players are hidden; see `fill`. Text that is not on the picture just goes.
        modalities: of `MODALITIES`.
        steps: of `curves`.
        controls: of `curves`.
        seed: of the random orders.

    Returns:
        One row a modality and baseline: `modality`, `baseline`, `players`, `full`, `empty` (scores), `deletion` (lower
        is better), `insertion`, `srg`, `normalised_srg` (higher is better), and each of the last four for random
        orders as `random_...` (mean, chance) and `random_..._sd`. Without players, or where `normalised_srg` is
        undefined, NaN.

    Raises:
        UsageError: the explanation has no game, there is no such row, or an argument of `curves` is wrong.
    """
    if explanation.game is None:
        raise UsageError("this explanation has no model with it, as after loading; use refine(budget, model)")
    if not 0 <= row < len(explanation.explained):
        raise UsageError(f"row={row} is out of range; this explanation has {len(explanation.explained)} classes")
    target = _target(explanation, row)
    weights = {"image": explanation.image_weights[row], "text": explanation.text_weights[row]}
    weights["joint"] = np.concatenate([*weights.values()])
    rows = []
    for baseline in baselines:
        game = explanation.game.with_baseline(baseline)
        for modality in modalities:
            players = len(weights[pick(MODALITIES, modality, "modality")])
            rows.append({"modality": modality, "baseline": baseline, "players": players})
            if players:
                both = weights["image"], weights["text"]
                rows[-1] |= _summary(curves(game, *both, target, modality, steps, controls, seed))
    return pd.DataFrame(rows, columns=["modality", "baseline", "players", "full", "empty", *AREAS, *CONTROLS])


def _target(explanation: LocalExplanation, row: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return what is explained as a function of logits (N,K)."""
    ours, rival = [explanation.explained[row]], [explanation.rivals[row]]
    return lambda logits: targets(logits, ours, rival, explanation.options.target)[:, 0]


def _summary(found: Curves) -> dict[str, float]:
    areas = (found.deletion_auc, found.insertion_auc, found.srg, found.normalised().srg)
    random = [value for area in areas for value in (area[1:].mean(), area[1:].std(ddof=1))]
    named = zip(AREAS + CONTROLS, [area[0] for area in areas] + random, strict=True)
    return {"full": found.full, "empty": found.empty} | dict(named)
