"""A model card with a go / no-go checklist: facts in, Markdown and HTML out. No number in it is typed by hand."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from retailkit import plots
from retailkit.deploy import label_check
from retailkit.deploy.criteria import NOT_MEASURED, Measured, checklist, decision
from retailkit.deploy.evidence import BACKGROUND, LOOKS_AT, Evidence, find
from retailkit.deploy.measure import FLOAT32, INT8
from retailkit.metrics import Evaluation, bootstrap, wilson
from retailkit.runs.record import compress

INTERVAL = re.compile(r"(\(-?[\d.]+) to (-?[\d.]+\))")  # which no line should break
CLASSES_SHOWN = 20
PAIRS_SHOWN = 10
DRAWS = 500
OURS = "The limits are ours: change them with --criterion NAME=VALUE to what an error costs you."
FOREIGN = (
    "These numbers come from the notebooks' own models on this data set, not from the model of this card: "
    "they say what this kind of model tends to do."
)


@dataclass(frozen=True)
class Table:
    """A table of texts, ready to be shown.

    Attributes:
        caption: above it.
        frame: texts.
    """

    caption: str
    frame: pd.DataFrame


@dataclass(frozen=True)
class Picture:
    """A drawn figure.

    Attributes:
        name: of its file.
        alt: what it shows, for those who do not see it.
        png: its bytes.
    """

    name: str
    alt: str
    png: bytes


@dataclass(frozen=True)
class Section:
    """A part of a card: a title, sentences, tables, pictures, and notes in small print."""

    title: str
    lines: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Card:
    """A finished card.

    Attributes:
        title: in one line.
        decision: `go`, `no-go` or `not decided`.
        checklist: from `criteria.checklist`.
        sections: what is shown, in order.
        facts: everything as numbers, ready for JSON.
    """

    title: str
    decision: str
    checklist: pd.DataFrame
    sections: list[Section]
    facts: dict[str, Any]

    @property
    def pictures(self) -> list[Picture]:
        """All pictures, to be written beside the Markdown."""
        return [picture for section in self.sections for picture in section.pictures]

    def markdown(self) -> str:
        """Return the card as Markdown, whose pictures lie beside it."""
        parts = [f"# {_md(self.title)}", f"**Decision: {self.decision}.**"]
        for section in self.sections:
            parts += [f"## {_md(section.title)}", *map(_md, section.lines)]
            for table in section.tables:
                parts += [f"{_md(table.caption)}:", _md_table(table.frame)]
            parts += [f"![{_md(p.alt)}]({p.name})" for p in section.pictures]
            parts += [f"*{_md(note)}*" for note in section.notes]
        return "\n\n".join(parts) + "\n"

    def html(self) -> str:
        """Return the card as one page that needs nothing else."""
        from jinja2 import Environment, PackageLoader

        environment = Environment(loader=PackageLoader("retailkit.deploy", "templates"), autoescape=True)
        environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
        environment.filters["whole"] = lambda text: INTERVAL.sub("\\1\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}\\2", text)
        return environment.get_template("card.html.j2").render(card=self)


def model_card(
    evaluation: Evaluation,
    table: pd.DataFrame,
    title: str,
    about: Mapping[str, str],
    dataset: str,
    files: pd.DataFrame | None = None,
    limits: Mapping[str, float] | None = None,
    folders: Sequence[Path] | None = None,
) -> Card:
    """Make a card; nothing is exported and no file is written.

    Args:
        evaluation: of the model on one split.
        table: the rows of that split, in the order of `evaluation`: `label`, `family`, `condition`.
        title: of the card.
        about: what the model is, as lines of name and value.
        dataset: its name, for the commands that fill a gap.
        files: from `measure.compare`, if the model was exported.
        limits: from `criteria.limits`; None means the defaults.
        folders: of run records; see `evidence.find`.
    """
    families = _families(table, evaluation.classes)
    looks, background = (find(wanted, dataset, folders) for wanted in (LOOKS_AT, BACKGROUND))
    conditions = table["condition"].mask(table["condition"] == "")
    by_condition = evaluation.by_group(conditions, "condition").sort_values(
        ["accuracy", "condition"], ignore_index=True
    )
    confused, labels = twins(evaluation, families), _label_check(evaluation, families)
    calibration = Measured(evaluation.calibration_error(), *_calibration_interval(evaluation))
    measured = {
        "accuracy": Measured(evaluation.top1, *evaluation.interval),
        "worst_class": _worst_class(evaluation),
        "worst_condition": _worst(by_condition),
        "twins": _worst_pair(evaluation, confused),
        "calibration": calibration,
        "label_misses": _label_misses(labels),
        "looks_at": _beyond_chance(looks, "energy_original"),
        "background": _from_record(background, "gap_original"),
        **_of_files(files),
    }
    answers = checklist(measured, limits)
    sections = [
        Section("Go or no-go", [_tally(answers), OURS], [Table("Checklist", _shown_checklist(answers))]),
        _what_it_is(about, files),
        _accuracy(evaluation, by_condition),
        _confused(evaluation, confused, families),
        _calibration(evaluation, calibration),
        _photo_and_label(evaluation, labels),
        _recorded("What it looks at", looks),
        _recorded("What the background does", background),
    ]
    facts = {
        "title": title,
        "decision": decision(answers),
        "about": dict(about),
        "checklist": _plain(answers),
        "files": [] if files is None else _plain(files),
        "evaluation": evaluation.summary(),
        "by_class": _plain(evaluation.per_class),
        "by_condition": _plain(by_condition),
        "confused": _plain(confused),
        "reliability": _plain(evaluation.reliability()),
        "label_check": _plain(labels[0]) if labels else [],
        "looks_at": {"metrics": _plain(looks.table), "missing": looks.missing},
        "background": {"metrics": _plain(background.table), "missing": background.missing},
    }
    return Card(title, decision(answers), answers, sections, facts)


# -- What is computed.


def twins(evaluation: Evaluation, families: Sequence[str] | None = None, top: int = PAIRS_SHOWN) -> pd.DataFrame:
    """Return the pairs of classes most often confused.

    Columns: `first`, `second`, `first_as_second`, `second_as_first`, `errors`, `n` (photos of both), `rate`, `low`,
    `high`, `family` (the one that both belong to, or "").
    """
    place = {name: k for k, name in enumerate(evaluation.classes)}
    counts = np.bincount(evaluation.labels, minlength=len(place))
    rows = []
    for pair in evaluation.confusion_pairs(top).itertuples():
        a, b = place[pair.first], place[pair.second]
        n = int(counts[a] + counts[b])
        same = families[a] if families is not None and families[a] == families[b] else ""
        there, back = int(evaluation.confusion[a, b]), int(evaluation.confusion[b, a])
        rows.append((pair.first, pair.second, there, back, pair.errors, n, pair.rate, *wilson(pair.errors, n), same))
    columns = ["first", "second", "first_as_second", "second_as_first", "errors", "n", "rate", "low", "high", "family"]
    return pd.DataFrame(rows, columns=columns)


def _families(table: pd.DataFrame, classes: Sequence[str]) -> list[str] | None:
    """Return the family of each class, "" for those without; None where the table has no families."""
    known = table.groupby("label")["family"].first().to_dict()
    found = [str(known.get(name, "") or "") for name in classes]
    return found if any(found) else None


def _label_check(evaluation: Evaluation, families: Sequence[str] | None) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """Return operating points and the whole curve; None with a single class, which no label can miss."""
    claims = label_check.wrong_labels(evaluation.probs, evaluation.labels, families)
    if not claims:
        return None
    given = evaluation.probs, evaluation.labels, claims
    return label_check.operating_points(*given, draws=DRAWS), label_check.sweep(*given)


def _calibration_interval(evaluation: Evaluation) -> tuple[float, float]:
    """Return the basic bootstrap interval, which takes the bias off: binned errors add up even where there is none."""

    def error(rows: np.ndarray) -> float:
        part = Evaluation(evaluation.probs[rows], evaluation.labels[rows], evaluation.classes, rows)
        return part.calibration_error()

    low, high = bootstrap(np.arange(evaluation.n), error, DRAWS)
    twice = 2 * evaluation.calibration_error()
    return max(0.0, twice - high), max(0.0, twice - low)


# -- What the checklist asks for.


def _worst(table: pd.DataFrame) -> Measured | None:
    return Measured(*table[["accuracy", "low", "high"]].iloc[0].tolist()) if len(table) else None


def _worst_class(evaluation: Evaluation) -> Measured:
    """Return the accuracy of the hardest class; where a class has no photo, nobody knows how low that is."""
    worst = _worst(evaluation.per_class)
    unseen = len(evaluation.per_class) < len(evaluation.classes)
    return worst._replace(low=0.0) if unseen else worst


def _worst_pair(evaluation: Evaluation, confused: pd.DataFrame) -> Measured:
    """Return the errors of the pair most often confused; without any, what the pair with the fewest photos allows."""
    if not len(confused):
        counts = np.bincount(evaluation.labels, minlength=len(evaluation.classes))
        fewest = int(np.sort(counts)[:2].sum())
        return Measured(0.0, *(wilson(0, fewest) if fewest else (0.0, 1.0)))
    return Measured(*confused[["rate", "low", "high"]].iloc[0].tolist())


def _label_misses(labels: tuple[pd.DataFrame, pd.DataFrame] | None) -> Measured | None:
    if labels is None:
        return None
    points = labels[0]
    row = points[(points["claim"] == label_check.LIKELIEST) & (points["allowed"] == label_check.CHECKED_RATE)].iloc[0]
    return Measured(row["misses"], row["low"], row["high"])


def _from_record(evidence: Evidence, metric: str) -> Measured | None:
    rows = evidence.table[evidence.table["metric"] == metric]
    if not len(rows):
        return None
    value, low, high = (None if pd.isna(x) else float(x) for x in rows.iloc[0][["value", "low", "high"]])
    return Measured(value, low, high)


def _beyond_chance(evidence: Evidence, metric: str) -> Measured | None:
    found = _from_record(evidence, metric)
    if found is None:
        return None
    chance = evidence.table.loc[evidence.table["metric"] == metric, "chance"].iloc[0] or 0.0
    return Measured(*(None if x is None else x - chance for x in found))


def _of_files(files: pd.DataFrame | None) -> dict[str, Measured | None]:
    """Return what is asked of files: their speed, and what int8 loses where there is such a file."""
    if files is None:
        return {"milliseconds": None}
    rows = files.set_index("name")
    found = {"milliseconds": Measured(*rows.loc[FLOAT32, ["milliseconds", "fastest", "slowest"]].tolist())}
    if INT8 in rows.index:
        found["int8_loss"] = Measured(*rows.loc[INT8, ["loss", "loss_low", "loss_high"]].tolist())
    return found


# -- What is shown.


def _what_it_is(about: Mapping[str, str], files: pd.DataFrame | None) -> Section:
    facts = pd.DataFrame({"": list(about), "value": list(about.values())})
    if files is None:
        return Section("What it is", [], [Table("Model and data", facts)], notes=["The model was not exported."])
    shown = pd.DataFrame(
        {
            "": files["name"],
            "file": files["file"],
            "MB": [_number(x, 1) for x in files["megabytes"]],
            "ms a photo": [_with_interval(r.milliseconds, r.fastest, r.slowest, 1) for r in files.itertuples()],
            "accuracy": [_with_interval(r.accuracy, r.low, r.high) for r in files.itertuples()],
            "same first guess": [_number(x) for x in files["agreement"]],
            "largest difference": [f"{x:.1e}" for x in files["difference"]],
        }
    )
    note = (
        "Medians with 95 % intervals, one photo at a time on one core, all in turns in one run; first guesses and "
        "differences in probability are compared with the first line, on every photo of the split."
    )
    return Section("What it is", [], [Table("Model and data", facts), Table("Files", shown)], notes=[note])


def _accuracy(evaluation: Evaluation, by_condition: pd.DataFrame) -> Section:
    lines = [
        f"{_with_interval(evaluation.top1, *evaluation.interval)} of {evaluation.n} photos are recognised "
        f"(macro F1 {_number(evaluation.macro_f1)}; chance {_number(1 / len(evaluation.classes))})."
    ]
    classes = evaluation.per_class
    shown = _rated(classes.head(CLASSES_SHOWN), "label", "class")
    some = f"the hardest {CLASSES_SHOWN} of {len(classes)}; all are in report.json" if len(classes) > len(shown) else ""
    tables = [Table("By class, hardest first" + (f" ({some})" if some else ""), shown)]
    if len(by_condition):
        tables.append(Table("By condition", _rated(by_condition, "condition", "condition")))
    else:
        lines.append("By condition: not measured; the table of this data set names no conditions.")
    unseen = [name for name in evaluation.classes if name not in set(classes["label"])]
    if unseen:
        lines.append(
            f"{len(unseen)} of {len(evaluation.classes)} classes have no photo in this split: nothing is known."
        )
    return Section("Accuracy", lines, tables)


def _confused(evaluation: Evaluation, confused: pd.DataFrame, families: Sequence[str] | None) -> Section:
    wrong = int((~evaluation.correct).sum())
    if not len(confused):
        return Section("Confusable twins", [f"None of {evaluation.n} photos was taken for another class."])
    lines = []
    if families is not None:
        names = np.array(families)
        missed = ~evaluation.correct & evaluation.answered & (names[evaluation.labels] != "")
        inside = int((names[evaluation.labels[missed]] == names[evaluation.predicted[missed]]).sum())
        lines.append(f"{inside} of {wrong} errors stay within a family of look-alikes.")
    columns = {
        "first": confused["first"],
        "second": confused["second"],
        "first taken for second": confused["first_as_second"],
        "second for first": confused["second_as_first"],
        "errors of photos of both": [_with_interval(r.rate, r.low, r.high) for r in confused.itertuples()],
        "n": confused["n"],
    }
    if families is not None:
        columns["family"] = confused["family"]
    return Section("Confusable twins", lines, [Table("Pairs most often confused", pd.DataFrame(columns).astype(str))])


def _calibration(evaluation: Evaluation, error: Measured) -> Section:
    confidence = evaluation.probs.max(1).mean()
    tendency = "more sure than it is right" if confidence > evaluation.top1 else "less sure than it is right"
    lines = [
        f"Calibration error {_with_interval(*error)} over ten bins of as many photos each: mean confidence "
        f"{_number(confidence)} beside an accuracy of {_number(evaluation.top1)}; on average it is {tendency}."
    ]
    drawn = _drawn(
        "reliability.png", plots.reliability({"model": evaluation}), "Accuracy against confidence in ten bins"
    )
    return Section("Calibration", lines, pictures=[drawn])


def _photo_and_label(evaluation: Evaluation, labels: tuple[pd.DataFrame, pd.DataFrame] | None) -> Section:
    title = "Does the photo match the scanned label?"
    if labels is None:
        return Section(title, [f"{NOT_MEASURED}: with a single class no label can be wrong."])
    points, curve = labels
    lines = [
        "A label passes where the model gives it at least a threshold of probability. A false alarm is a right label "
        "that does not pass, a miss is a wrong one that does."
    ]
    shown = pd.DataFrame(
        {
            "false alarms allowed": [_number(x, 2) for x in points["allowed"]],
            "wrong label": points["claim"],
            "threshold": [f"{x:.3g}" for x in points["threshold"]],
            "false alarms": [_number(x) for x in points["false_alarms"]],
            "misses": [_with_interval(r.misses, r.low, r.high) for r in points.itertuples()],
            "n": points["n"].astype(str),
        }
    )
    alt = "Share of wrong labels that pass against the share of right labels that raise an alarm"
    drawn = _drawn("label_check.png", plots.false_alarms_and_misses(curve, label_check.RATES), alt)
    note = (
        f"The thresholds were chosen on these {evaluation.n} photos: check them on new ones. Intervals are of a "
        "bootstrap over photos that chooses the threshold anew each time."
    )
    return Section(
        title, lines, [Table("At the highest threshold that allows so many false alarms", shown)], [drawn], [note]
    )


def _recorded(title: str, evidence: Evidence) -> Section:
    shown = pd.DataFrame(
        {
            "what": evidence.table["what"],
            "value": [_measured(r) for r in evidence.table.itertuples()],
            "chance": [_number(x) for x in evidence.table["chance"]],
            "n": [_number(x, 0) for x in evidence.table["n"]],
            "record": evidence.table["notebook"],
        }
    )
    tables = [Table("From the records of the notebooks", shown)] if len(shown) else []
    notes = [FOREIGN, "Read: " + "; ".join(evidence.sources) + "."] if len(shown) else []
    return Section(title, evidence.missing, tables, notes=notes)


def _shown_checklist(answers: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for row in answers.itertuples():
        unit, digits = (f" {row.unit}", 1) if row.unit else ("", 3)
        limit = f"at {'least' if row.at_least else 'most'} {row.limit:g}{unit}"
        value = "" if row.value is None or pd.isna(row.value) else _with_interval(row.value, row.low, row.high, digits)
        rows.append((row.criterion, row.says, limit, value + (unit if value else ""), row.verdict))
    return pd.DataFrame(rows, columns=["criterion", "what", "limit", "found", "verdict"])


def _tally(answers: pd.DataFrame) -> str:
    counts = answers["verdict"].value_counts()
    found = ", ".join(f"{n} {name}" for name, n in counts.items())
    return (
        f"{decision(answers)}: {found}. Only a whole interval on the right side of its limit is a go, and all must be."
    )


def _rated(table: pd.DataFrame, column: str, name: str) -> pd.DataFrame:
    accuracy = [_with_interval(r.accuracy, r.low, r.high) for r in table.itertuples()]
    return pd.DataFrame({name: table[column], "accuracy": accuracy, "n": table["n"].astype(str)})


def _measured(row: Any) -> str:
    unit = f" {row.unit}" if row.unit else ""
    return _with_interval(row.value, row.low, row.high) + unit


def _with_interval(value: float, low: float | None = None, high: float | None = None, digits: int = 3) -> str:
    if low is None or high is None or pd.isna(low) or pd.isna(high):
        return _number(value, digits)
    return f"{_number(value, digits)} ({_number(low, digits)} to {_number(high, digits)})"


def _number(value: float | None, digits: int = 3) -> str:
    return "" if value is None or pd.isna(value) else f"{value:.{digits}f}"


def _drawn(name: str, ax: Axes, alt: str) -> Picture:
    png, _ = compress(ax.figure, limit=10**9)  # small enough for a palette in any case
    plots.plt.close(ax.figure)
    return Picture(name, alt, png)


def _plain(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return json.loads(frame.to_json(orient="records"))


def _md(text: str) -> str:
    """Return a text that Markdown shows as it is."""
    return re.sub(r"([\\`*\[\]|])", r"\\\1", html.escape(str(text), quote=False)).replace("\n", " ")


def _md_table(frame: pd.DataFrame) -> str:
    lines = [list(frame.columns), ["---"] * frame.shape[1], *frame.astype(str).to_numpy().tolist()]
    cells = [[cell if number == 1 else _md(cell) for cell in line] for number, line in enumerate(lines)]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)
