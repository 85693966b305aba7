"""Does the photo match the scanned label? False alarms on right labels against wrong labels that pass.

A label is accepted where the model gives it at least a threshold of probability. Which wrong labels people try is not
known, so that misses are counted for several kinds of them; see `wrong_labels`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from retailkit.config import UserError

RATES = (0.01, 0.02, 0.05)
CHECKED_RATE = RATES[1]  # that the checklist looks at
LIKELIEST = "the most probable other label"
ANY = "any other label"
TWIN = "a label of the same family"


def wrong_labels(probs: np.ndarray, labels: np.ndarray, families: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Return how often each wrong label is claimed for each photo, (N,K) a kind of claim; rows sum to 1.

    Kinds: any other label with equal chance; any other of the same family, for a photo that has one (else its row
    is 0); and always the label that the model finds most probable after the right one, the worst case.

    Args:
        probs: (N,K).
        labels: (N,) right ones.
        families: K names, "" for classes without; None leaves that kind out.
    """
    photos, classes = probs.shape
    wrong = np.ones((photos, classes), bool)
    wrong[np.arange(photos), labels] = False
    kinds = {ANY: wrong}
    if families is not None:
        names = np.asarray(families, dtype=str)
        kinds[TWIN] = wrong & (names[None] == names[labels][:, None]) & (names[labels] != "")[:, None]
    kinds[LIKELIEST] = np.zeros((photos, classes), bool)
    if classes > 1:
        likeliest = np.where(wrong, probs, -1).argmax(1)
        kinds[LIKELIEST][np.arange(photos), likeliest] = True
    shares = {kind: claims / np.maximum(claims.sum(1, keepdims=True), 1) for kind, claims in kinds.items()}
    return {kind: share for kind, share in shares.items() if share.any()}


def sweep(
    probs: np.ndarray, labels: np.ndarray, claims: Mapping[str, np.ndarray], thresholds: Sequence[float] | None = None
) -> pd.DataFrame:
    """Return false alarms and misses over thresholds, one row a threshold and kind of claim.

    Args:
        probs: (N,K).
        labels: (N,) right ones.
        claims: from `wrong_labels`.
        thresholds: None takes up to 200 at which false alarms change.

    Returns:
        Columns `threshold`, `claim`, `false_alarms`, `misses`: shares.
    """
    right = np.sort(probs[np.arange(len(labels)), labels])
    if thresholds is None:
        steps = np.quantile(right, np.linspace(0, 1, 200), method="inverted_cdf")
        thresholds = np.unique([0.0, *steps, np.nextafter(right[-1], 2)])
    alarms = np.searchsorted(right, thresholds, side="left") / len(right)
    parts = []
    for claim, shares in claims.items():
        there = shares > 0
        values, weights = probs[there], shares[there] / (shares.sum(1) > 0).sum()
        order = np.argsort(values)
        below = np.append(0, np.cumsum(weights[order]))[np.searchsorted(values[order], thresholds, side="left")]
        columns = {"threshold": thresholds, "claim": claim, "false_alarms": alarms, "misses": (1 - below).clip(0, 1)}
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def operating_points(
    probs: np.ndarray,
    labels: np.ndarray,
    claims: Mapping[str, np.ndarray],
    rates: Sequence[float] = RATES,
    draws: int = 500,
    seed: int = 0,
) -> pd.DataFrame:
    """Return what passes when at most a share of right labels may raise an alarm.

    The threshold is the highest that these photos allow. Intervals are percentiles of a bootstrap over photos that
    chooses the threshold anew in each draw.

    Args:
        probs: (N,K).
        labels: (N,) right ones.
        claims: from `wrong_labels`.
        rates: shares of false alarms that are allowed.
        draws: of the bootstrap.
        seed: of the draws.

    Returns:
        One row a rate and claim: `allowed`, `claim`, `threshold`, `false_alarms`, `misses`, `low`, `high`, `n` photos.

    Raises:
        UserError: a rate outside [0, 1).
    """
    if bad := [rate for rate in rates if not 0 <= rate < 1]:
        raise UserError(f"false alarm rate {bad[0]} is out of range; use 0 to below 1")
    photos, right = len(labels), probs[np.arange(len(labels)), labels]
    rng, rows = np.random.default_rng(seed), []
    drawn = rng.integers(photos, size=(draws, photos))
    ranks = [_allowed(rate, photos) for rate in rates]
    again = np.sort(right[drawn], axis=1)[:, ranks]  # (draws,rates)
    chosen = np.sort(right)[ranks]
    for claim, shares in claims.items():
        misses = _Misses(probs, shares, min(again.min(), chosen.min()))
        spread = np.array([misses.at(t, np.bincount(d, minlength=photos)) for t, d in zip(again, drawn, strict=True)])
        low, high = np.nanquantile(spread, [0.025, 0.975], axis=0)
        found = misses.at(chosen, np.ones(photos))
        for k, rate in enumerate(rates):
            alarms = float((right < chosen[k]).mean())
            n = int((shares.sum(1) > 0).sum())
            rows.append((rate, claim, float(chosen[k]), alarms, float(found[k]), float(low[k]), float(high[k]), n))
    columns = ["allowed", "claim", "threshold", "false_alarms", "misses", "low", "high", "n"]
    return pd.DataFrame(rows, columns=columns).sort_values("allowed", kind="stable", ignore_index=True)


def _allowed(rate: float, photos: int) -> int:
    return int(np.floor(rate * photos + 1e-9))


class _Misses:
    """Shares of wrong labels accepted, for photos that count a varying number of times."""

    def __init__(self, probs: np.ndarray, shares: np.ndarray, least: float) -> None:
        rows, columns = np.nonzero((shares > 0) & (probs >= least))  # no threshold is lower
        values = probs[rows, columns]
        order = np.argsort(values)
        self.values, self.rows, self.weights = values[order], rows[order], shares[rows, columns][order]
        self.claimed = shares.sum(1) > 0

    def at(self, thresholds: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Return misses at each threshold where photo i counts `counts[i]` times; NaN where none has a claim."""
        total = counts[self.claimed].sum()
        if not total:
            return np.full(len(thresholds), np.nan)
        above = np.append(np.cumsum((self.weights * counts[self.rows])[::-1])[::-1], 0.0)
        return above[np.searchsorted(self.values, thresholds, side="left")] / total
