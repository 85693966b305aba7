"""Two recognisers on the same photos, or two records of notebooks: what differs, and whether it may be chance."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from retailkit import metrics, recipes, training
from retailkit.config import UserError
from retailkit.data.advice import some
from retailkit.metrics import Evaluation
from retailkit.runs.record import read_record
from retailkit.widgets.page import Image, Section, page, table, thumbnail

SHOWN = 100  # photos on a page; the table has all
OUTCOMES = ("only A is correct", "only B is correct", "both are wrong, and differ")


@dataclass(frozen=True)
class Comparison:
    """Two models on the same photos."""

    names: tuple[str, str]  # of the checkpoints
    evaluations: tuple[Evaluation, Evaluation]  # of the same images in the same order
    photos: pd.DataFrame  # one row per photo: `image`, `label`, the answers `a` and `b`, their probabilities, `outcome`
    known: tuple[int, int]  # photos that trained each model

    def differing(self) -> pd.DataFrame:
        """Return the photos that get different answers, those first where one of the two is correct."""
        rows = self.photos[self.photos["a"] != self.photos["b"]]
        return rows.sort_values("outcome", key=lambda column: column.map(OUTCOMES.index), kind="stable")

    def summary(self) -> dict[str, Any]:
        """Return the values worth keeping."""
        only_a, only_b, p_value = metrics.mcnemar(*self.evaluations)
        each = {name: e.summary() for name, e in zip(("a", "b"), self.evaluations, strict=True)}
        a, b = ([evaluation] for evaluation in self.evaluations)
        facts = each | {"difference": metrics.gain(b, a), "interval": list(metrics.gain_interval(b, a)), "n": a[0].n}
        return facts | {"only_a": only_a, "only_b": only_b, "p_value": p_value, "differ": len(self.differing())}

    def sentences(self) -> list[str]:
        """Return what was found in plain sentences."""
        found, said = self.summary(), []
        low, high = found["interval"]
        for letter, name, one, known in zip("AB", self.names, self.evaluations, self.known, strict=True):
            hits = f"{int(one.correct.sum())} of {one.n} photos are classified correctly"
            span = " to ".join(f"{end:.3f}" for end in one.interval)
            said.append(f"{letter} ({name}): {hits}, top-1 {one.top1:.3f} ({span}).")
            if known:
                said.append(f"{known} of these photos trained {letter}, so they say nothing about new ones.")
        said.append(f"B minus A: {found['difference']:+.3f} ({low:+.3f} to {high:+.3f}), paired by photo.")
        alone = f"Only A is correct on {found['only_a']} photos, only B on {found['only_b']}"
        said.append(f"{alone}: McNemar's exact test gives p = {found['p_value']:.3g}.")
        better = "B" if low > 0 else "A" if high < 0 else ""
        # With few differences the bootstrap alone misses zero too often.
        decided = better and found["p_value"] < 0.05 and not any(self.known)
        verdict = f"{better} is better on such photos" if decided else "These photos do not decide which one is better"
        return [*said, f"{verdict}.", f"The answers differ on {found['differ']} photos."]

    def to_html(self) -> str:
        """Return a page with the sentences and the photos that get different answers."""
        rows, sections = self.differing(), [Section("", self.sentences())]
        counts = rows["outcome"].value_counts()
        for outcome, shown in rows.head(SHOWN).groupby("outcome", sort=False):
            left = f", the first {len(shown)}" if len(shown) < counts[outcome] else ""
            images = [_thumbnail(row) for row in shown.itertuples()]
            sections.append(Section(f"{outcome.capitalize()}: {counts[outcome]} photos{left}", (), images))
        return page("Two recognisers on the same photos", sections)


def compare(first: Path, second: Path, dataset: str, root: Path | None, split: str) -> Comparison:
    """Evaluate two checkpoints on the same photos of a data set.

    Raises:
        UserError: no such checkpoint or split, or photos of a class that one of them does not know.
    """
    loaded = [training.load_checkpoint(path) for path in (first, second)]
    products = recipes.load_for([(model, facts) for model, _, facts in loaded], dataset, root, split)
    evaluations, known = [], []
    for model, _, facts in loaded:
        part = training.with_classes(products, model, split).split(split, facts["size"], facts["fit"])
        evaluations.append(training.evaluate(model, part))
        known.append(len(training.learned_from(facts, part)))
    photos = part.table[["image", "label"]].reset_index(drop=True)
    for letter, one in zip("ab", evaluations, strict=True):
        frame = one.to_frame()
        photos[letter], photos[f"{letter}_probability"] = frame["predicted"], frame["confidence"].round(6)
    a, b = (one.correct for one in evaluations)
    outcomes = [a & ~b, b & ~a, (photos["a"] != photos["b"]).to_numpy()]
    photos["outcome"] = np.select(outcomes, OUTCOMES, "the same answer")
    photos = photos[["image", "label", "a", "b", "a_probability", "b_probability", "outcome"]]
    return Comparison((str(first), str(second)), tuple(evaluations), photos, tuple(known))


def _thumbnail(row) -> Image:
    a = f"A: {row.a or 'no answer'} ({row.a_probability:.2f})"
    b = f"B: {row.b or 'no answer'} ({row.b_probability:.2f})"
    return thumbnail([row.image], f"Photo of {row.label}", f"{row.label}. {a}. {b}. {Path(row.image).name}")


# -- Records.


def compare_records(first: Path, second: Path) -> tuple[pd.DataFrame, list[str]]:
    """Compare the metrics that two records of notebooks share.

    A record holds no answer of a single photo. The interval of the difference is therefore that of independent values
    (`metrics.difference_interval`), which is too wide where both runs used the same photos.

    Returns:
        A table with `metric`, `a`, `b`, `difference` (b minus a), `low`, `high` (NaN without intervals), and `better`:
        `a`, `b`, `not decided`, or "" where there is no interval or no better direction, or everywhere if the records
        are of different notebooks or data sets; and sentences on the two runs.

    Raises:
        UserError: a file is no record, or the records share no metric.
    """
    records = []
    for path in (first, second):
        records.append(read_record(path) if path.is_file() else None)
        if records[-1] is None:
            raise UserError(f"{path}: no record of a notebook; give a .json file that `retailkit run` wrote")
    a, b = (record["metrics"] for record in records)
    rows = [_row(name, a[name], b[name]) for name in a if name in b]
    if not rows:
        raise UserError(f"{first} and {second} share no metric; give two records of one notebook")
    said = [
        f"{letter} ({path}): notebook {one['notebook']}, profile {one['profile']}, data set {one['dataset']}."
        for letter, path, one in zip("AB", (first, second), records, strict=True)
    ]
    if any(records[0][name] != records[1][name] for name in ("notebook", "dataset")):
        rows = [row | {"better": ""} for row in rows]
        said.append("These are not the same notebook and data set: the values do not say which run is better.")
    if alone := sorted(a.keys() ^ b.keys()):
        said.append(f"Only one of them has {len(alone)} metrics: {some(alone)}.")
    return pd.DataFrame(rows), [*said, "The intervals of the difference take the two runs as independent."]


def _row(name: str, a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    row = {"metric": name, "a": a["value"], "b": b["value"], "difference": b["value"] - a["value"]}
    if not ("interval" in a and "interval" in b):
        return row | {"low": np.nan, "high": np.nan, "better": ""}
    low, high = metrics.difference_interval(b["value"], b["interval"], a["value"], a["interval"])
    sign = {"higher": 1, "lower": -1}.get(a["better"], 0)
    better = {"as claimed": "b", "the opposite": "a"}.get(metrics.verdict(low, high, sign), "not decided")
    return row | {"low": low, "high": high, "better": better if sign else ""}


def records_page(rows: pd.DataFrame, said: list[str]) -> str:
    """Return what `compare_records` found as a page."""
    return page("Two records", [Section("", said, (), [table(rows)])])
