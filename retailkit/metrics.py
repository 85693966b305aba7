"""Accuracy with intervals, confusion pairs, calibration. Every value is a fraction in [0,1]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, f1_score

from retailkit.config import UsageError

Interval = tuple[float, float]
DRAWS = 2000  # of a bootstrap
LARGE = 10  # images of a group that may be the worst


def wilson(hits: int, n: int) -> Interval:
    """Return Wilson's 95 % interval of a share of `hits` in `n` independent trials."""
    low, high = binomtest(int(hits), int(n)).proportion_ci(0.95, method="wilson")
    return float(low), float(high)


def middle(draws: Sequence[float]) -> Interval:
    """Return the 2.5 % and the 97.5 % quantile of bootstrap draws; NaN among them are left out."""
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return float(low), float(high)


def bootstrap(values: np.ndarray, statistic=np.mean, seed: int = 0) -> Interval:
    """Return the 95 % percentile bootstrap interval of `statistic` over the rows of `values (N,...)`.

    The mean of equal values gets the interval of `_of_mean`.
    """
    values = np.asarray(values)
    rng = np.random.default_rng(seed)
    draws = [statistic(values[rng.integers(len(values), size=len(values))]) for _ in range(DRAWS)]
    return _of_mean(draws, len(values), -1) if statistic is np.mean else middle(draws)


def _of_mean(draws: Sequence[float], n: int, least: float) -> Interval:
    """Return the 95 % interval of a mean of `n` values from `least` to 1, from its bootstrap draws.

    Those of equal values have no width, and few equal answers prove little: five correct ones of five leave a true
    share from 0.57 to 1. Of shares the interval is then Wilson's, of paired differences Tango's (1998); both are near
    the rule of three.
    """
    low, high = middle(draws)
    if not high - low < 1e-9:
        return low, high
    if not least <= low <= 1:  # no share and no difference of shares
        return low, low
    reach = 1 - wilson(n, n)[0]
    return low - (low - least) * reach, low + (1 - low) * reach


def crossed_draws(shape: tuple[int, int], draws: int, seed: int) -> list[np.ndarray]:
    """Return how often each of P images (B,P) and each of S seeds (B,S) is drawn, both with replacement."""
    rng = np.random.default_rng(seed)
    return [rng.multinomial(count, np.full(count, 1 / count), size=draws) for count in shape]


def crossed_means(values: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Return (B,) means of `values (P,S)` over images and seeds that are drawn; NaN where nothing is left."""
    values = np.asarray(values, dtype=float)
    there = ~np.isnan(values)
    images, seeds = crossed_draws(values.shape, draws, seed)
    totals = np.einsum("np,ps,ns->n", images, np.where(there, values, 0), seeds, optimize=True)
    counts = np.einsum("np,ps,ns->n", images, there.astype(float), seeds, optimize=True)
    return np.divide(totals, counts, out=np.full(draws, np.nan), where=counts > 0)


def crossed_bootstrap(values: np.ndarray, least: float = -1) -> Interval:
    """Return the 95 % percentile bootstrap interval of the mean over images and seeds.

    `values` (P,S) have one row per image and one column per seed; NaN where a seed did not test an image (another
    fold). With a single seed the interval covers the choice of the images and not that of the seed. Equal values get
    the interval of `_of_mean`; `least` is the lowest possible one: 0 of answers, -1 of differences between answers.
    """
    return _of_mean(crossed_means(values, DRAWS, 0), len(values), least)


def verdict(low: float, high: float, sign: int) -> str:
    """Say what the interval of a difference makes of a claim: `sign` above 0 a gain, below 0 a loss, 0 for no claim.

    Returns `as claimed` or `the opposite`, without a claim `more` or `less`, and `not decided` where 0 lies inside, or
    an end is NaN.
    """
    if not (low > 0 or high < 0):
        return "not decided"
    if not sign:
        return "more" if low > 0 else "less"
    return "as claimed" if (low > 0) == (sign > 0) else "the opposite"


@dataclass(frozen=True)
class Evaluation:
    """How a classifier did on one split.

    Attributes:
        probs: (N,K) predicted probabilities of the K `classes`.
        labels: (N,) true class indices.
        indices: (N,) rows of the data set's table.
        probabilistic: False for scores that only order the classes, as keypoint matching gives: no calibration.
    """

    probs: np.ndarray
    labels: np.ndarray
    classes: list[str]
    indices: np.ndarray
    probabilistic: bool = True

    @staticmethod
    def joined(parts: Sequence[Evaluation]) -> Evaluation:
        """Return evaluations of different images as one."""
        arrays = {name: np.concatenate([getattr(e, name) for e in parts]) for name in ("probs", "labels", "indices")}
        return replace(parts[0], **arrays)

    def select(self, rows: np.ndarray) -> Evaluation:
        """Return the evaluation of only the images given as a boolean mask or positions."""
        return replace(self, probs=self.probs[rows], labels=self.labels[rows], indices=self.indices[rows])

    @property
    def n(self) -> int:
        """Number of images."""
        return len(self.labels)

    @cached_property
    def answered(self) -> np.ndarray:
        """(N,) bool; False where every class is as probable as any other: the classifier does not know."""
        return np.ptp(self.probs, axis=1) > 0 if len(self.classes) > 1 else np.ones(self.n, bool)

    @property
    def coverage(self) -> float:
        """Share of images with an answer."""
        return float(self.answered.mean())

    @cached_property
    def predicted(self) -> np.ndarray:
        """(N,) predicted class indices, -1 without an answer: counts as wrong and as no class."""
        return np.where(self.answered, self.probs.argmax(1), -1)

    @cached_property
    def correct(self) -> np.ndarray:
        """(N,) bool."""
        return self.predicted == self.labels

    @property
    def top1(self) -> float:
        """Share of images whose most probable class is the true one."""
        return float(self.correct.mean())

    def top(self, k: int) -> float:
        """Return the share of images whose true class is among the `k` most probable ones.

        Among equally probable classes the true one is in a random place.
        """
        own = self.probs[np.arange(self.n), self.labels][:, None]
        before, equal = (self.probs > own).sum(1), (self.probs == own).sum(1)
        return float(np.clip((k - before) / equal, 0, 1).mean())

    def coarse(self, groups: Sequence[str]) -> float:
        """Return the share of images that are put into the right group, such as a department; `groups` (K,) name it."""
        names = np.array([*groups, None], dtype=object)  # the last one: no answer
        return float((names[self.predicted] == names[self.labels]).mean())

    @property
    def interval(self) -> Interval:
        """95 % Wilson interval of `top1`: it covers the choice of the images, not that of the random seed."""
        return wilson(self.correct.sum(), self.n)

    @property
    def macro_f1(self) -> float:
        """Mean F1 over the classes that occur among the labels."""
        present = np.unique(self.labels)
        return float(f1_score(self.labels, self.predicted, labels=present, average="macro", zero_division=0))

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood in nats."""
        return float(-np.log(self.probs[np.arange(self.n), self.labels].clip(1e-12)).mean())

    @cached_property
    def confusion(self) -> np.ndarray:
        """(K,K) counts of the answered images; rows are true classes, columns predicted ones."""
        return confusion_matrix(self.labels, self.predicted, labels=np.arange(len(self.classes)))

    @property
    def per_class(self) -> pd.DataFrame:
        """One row per class that occurs: n, accuracy and its Wilson interval, hardest first."""
        frame = self.by_group([self.classes[k] for k in self.labels], "label")
        return frame.sort_values(["accuracy", "label"], ignore_index=True)

    def by_group(self, groups: Sequence, name: str = "group") -> pd.DataFrame:
        """Return the accuracy of each name in `groups` (N,): `name`, `n`, `accuracy`, `low`, `high` (95 %, Wilson).

        A categorical keeps its order; a sample without a name is left out.
        """
        names = pd.Series(groups).reset_index(drop=True)
        groups = pd.Series(self.correct).groupby(names, observed=True)
        rows = [(group, len(right), right.mean(), *wilson(right.sum(), len(right))) for group, right in groups]
        return pd.DataFrame(rows, columns=[name, "n", "accuracy", "low", "high"])

    def confusion_pairs(self, top: int = 10) -> pd.DataFrame:
        """Return the `top` pairs of classes most often confused: `first`, `second`, `errors` (both directions), `rate`.

        `rate` is that of errors over images of both classes.
        """
        errors = self.confusion + self.confusion.T
        first, second = np.triu_indices(len(self.classes), k=1)
        counts, totals = errors[first, second], np.bincount(self.labels, minlength=len(self.classes))
        order = np.argsort(-counts, kind="stable")[:top]
        order = order[counts[order] > 0]
        one, other, errors = first[order], second[order], counts[order]
        names, rate = np.asarray(self.classes, dtype=object), errors / (totals[one] + totals[other])
        return pd.DataFrame({"first": names[one], "second": names[other], "errors": errors, "rate": rate})

    def reliability(self) -> pd.DataFrame:
        """Return mean `confidence`, `accuracy`, `n` of ten equally populated bins (Guo et al. 2017: equally wide)."""
        confidence = self.probs.max(1)
        order = np.array_split(np.argsort(confidence, kind="stable"), min(10, self.n))
        rows = [(confidence[i].mean(), self.correct[i].mean(), len(i)) for i in order]
        return pd.DataFrame(rows, columns=["confidence", "accuracy", "n"])

    def calibration_error(self) -> float:
        """Return the expected calibration error over the bins of `reliability`; NaN without probabilities."""
        if not self.probabilistic:
            return np.nan
        table = self.reliability()
        return float(np.average((table["confidence"] - table["accuracy"]).abs(), weights=table["n"]))

    def sentences(self, split: str = "test") -> list[str]:
        """Return what was found in plain sentences: how many images are correct, how sure that is, what is confused."""
        hits, (low, high) = int(self.correct.sum()), self.interval
        share = f"{hits} of {self.n} {split} photos are classified correctly"
        bound = f"may be as low as {100 * low:.0f} %" + (f" and as high as {100 * high:.0f} %" if hits < self.n else "")
        lines = [f"{share}; with {self.n} photos the true share {bound}."]
        if unanswered := int((~self.answered).sum()):
            lines.append(f"{unanswered} photos get no answer.")
        pairs = self.confusion_pairs(5)
        for pair in pairs.itertuples():
            of = pair.errors / pair.rate
            lines.append(f"{pair.first} and {pair.second} are confused in {pair.errors} of {of:.0f} photos.")
        return lines if len(pairs) else [*lines, "No pair is confused."]

    def to_frame(self) -> pd.DataFrame:
        """Return one row per image: `row` of the table, `label`, `predicted` ("" without), `confidence`, `correct`."""
        names = np.asarray([*self.classes, ""])
        answers = {"row": self.indices, "label": names[self.labels], "predicted": names[self.predicted]}
        return pd.DataFrame(answers | {"confidence": self.probs.max(1), "correct": self.correct})

    def summary(self) -> dict[str, float | int | list[float]]:
        """Return the values worth a record: top1, macro_f1, n, interval, calibration_error, coverage."""
        facts = {"top1": self.top1, "macro_f1": self.macro_f1, "n": self.n, "interval": list(self.interval)}
        error = self.calibration_error() if self.probabilistic else None
        return facts | {"calibration_error": error, "coverage": self.coverage}


def hits(evaluations: Sequence[Evaluation]) -> pd.DataFrame:
    """Return what several seeds classified correctly: one row per image, one column per seed, NaN if not tested."""
    return pd.DataFrame({k: pd.Series(e.correct.astype(float), index=e.indices) for k, e in enumerate(evaluations)})


def summarise(rows: Mapping[str, Sequence[Evaluation]], baseline: str | None = None) -> pd.DataFrame:
    """Return one row per method, pooled over its seeds.

    `rows` holds one evaluation per seed; with folds each seed has other images. With a `baseline`, the methods are
    compared with it image by image and seed by seed.

    Returns:
        Columns `name`, `accuracy`, `low`, `high` (see `crossed_bootstrap`), `macro_f1`, `confidence`,
        `calibration_error`, `coverage`, `n` (images), `seeds`, and with a baseline `gain`, `gain_low`, `gain_high`
        (NaN in the row of the baseline).
    """
    table = []
    for name, runs in rows.items():
        right = hits(runs)
        low, high = crossed_bootstrap(right.to_numpy(), 0)
        each = {
            "macro_f1": [e.macro_f1 for e in runs],
            "confidence": [e.probs.max(1).mean() for e in runs],
            "calibration_error": [e.calibration_error() for e in runs],
            "coverage": [e.coverage for e in runs],
        }
        facts = {"name": name, "accuracy": float(np.nanmean(right)), "low": low, "high": high}
        facts |= {key: float(np.mean(values)) for key, values in each.items()} | {"n": len(right), "seeds": len(runs)}
        if baseline not in (None, name):
            low, high = gain_interval(runs, rows[baseline])
            facts |= {"gain": gain(runs, rows[baseline]), "gain_low": low, "gain_high": high}
        table.append(facts)
    return pd.DataFrame(table)


def gain(ours: Sequence[Evaluation], theirs: Sequence[Evaluation]) -> float:
    """Return the mean difference in accuracy over the images and seeds that both have."""
    return float(np.nanmean(_difference(ours, theirs)))


def gain_interval(ours: Sequence[Evaluation], theirs: Sequence[Evaluation]) -> Interval:
    """Return the 95 % interval of `gain`, paired by image and seed; see `crossed_bootstrap`."""
    return crossed_bootstrap(_difference(ours, theirs))


def worst_group(evaluation: Evaluation, groups: Sequence[str], least: int = LARGE) -> pd.Series:
    """Return the row of `Evaluation.by_group` with the lowest accuracy (Sagawa et al. 2020).

    Groups (N,), such as class and background, of fewer than `least` images are left out: of many small groups, one is
    the worst by chance.

    Raises:
        UsageError: no group is large enough.
    """
    table = evaluation.by_group(np.where(_large(groups, least), np.asarray(groups, dtype=object), None))
    return table.loc[table["accuracy"].idxmin()]


def worst_group_gain(
    ours: Sequence[Evaluation], theirs: Sequence[Evaluation], groups: Sequence[str]
) -> tuple[float, float, float]:
    """Return by how much our worst group is more accurate than theirs, and the ends of the 95 % interval.

    `groups` (N,) name the images of each evaluation, one evaluation per seed. Each method is judged by its own worst
    group, averaged over its seeds: the group that is theirs would favour us, since a group that is the worst by chance
    as well does better next time. A draw of the bootstrap takes the same images and seeds for both.
    """
    names = np.asarray(groups)
    rows = [np.flatnonzero(names == name) for name in np.unique(names[_large(groups)])]
    right = [hits(runs).to_numpy() for runs in (ours, theirs)]  # (P,S)
    images, seeds = crossed_draws(right[0].shape, DRAWS, 0)
    images, seeds = (np.vstack([np.ones_like(drawn[:1]), drawn]) for drawn in (images, seeds))  # first all, once each
    worst = []
    for values in right:
        weighted = images * (seeds @ values.T) / seeds.sum(1, keepdims=True)
        with np.errstate(invalid="ignore"):  # a group of which no image is drawn
            worst.append(np.min([weighted[:, part].sum(1) / images[:, part].sum(1) for part in rows], axis=0))
    difference, *draws = worst[0] - worst[1]
    return float(difference), *_of_mean(draws, min(map(len, rows)), -1)


def _large(groups: Sequence[str], least: int = LARGE) -> np.ndarray:
    """Return which images are of a group with at least `least` of them, (N,) bool."""
    names = pd.Series(groups).reset_index(drop=True)
    large = (names.map(names.value_counts()) >= least).to_numpy()
    if not large.any():
        raise UsageError(f"no group has {least} images; take larger groups, more images or a lower `least`")
    return large


def mcnemar(ours: Evaluation, theirs: Evaluation) -> tuple[int, int, float]:
    """Return on how many images only the first is correct, on how many only the second, and McNemar's exact p value.

    Where both are equally good, each image on which one of them is correct is a fair coin toss: the p value is that of
    the two-sided binomial test. Only images that both evaluations have are counted.
    """
    a, b = hits([ours]).align(hits([theirs]), join="inner")
    first, second = (int(((one > other).to_numpy()).sum()) for one, other in ((a, b), (b, a)))
    return first, second, float(binomtest(first, first + second).pvalue) if first + second else 1.0


def difference_interval(first: float, of_first: Interval, second: float, of_second: Interval) -> Interval:
    """Return the 95 % interval of `first - second`, two independent values with 95 % intervals (Newcombe 1998).

    The distances to the ends of the two intervals are added as squares (his method 10).
    """
    (low, high), (other_low, other_high) = of_first, of_second
    down = np.hypot(first - low, other_high - second)
    up = np.hypot(high - first, second - other_low)
    return float(first - second - down), float(first - second + up)


def _difference(ours: Sequence[Evaluation], theirs: Sequence[Evaluation]) -> np.ndarray:
    """Return (P,S) differences; a method without randomness has one column, which stands beside every other."""
    a, b = hits(ours), hits(theirs)
    a, b = a.align(b, axis=0 if 1 in (a.shape[1], b.shape[1]) else None)
    return a.to_numpy() - b.to_numpy()
