"""The card: its counts by hand, its verdicts, and what it says of things that nobody measured."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from retailkit.config import UsageError
from retailkit.deploy import criteria, evidence
from retailkit.deploy.card import model_card
from retailkit.deploy.criteria import GO, NO_GO, NOT_DECIDED, NOT_MEASURED, Measured
from retailkit.metrics import Evaluation, wilson

NAMES = ["<b>milk</b> | whole", "milk", "tea"]
# label, prediction: 5 of 8 right; milk and whole milk are confused three times, twice in one direction.
ANSWERS = [(0, 0), (0, 1), (0, 1), (1, 1), (1, 0), (1, 1), (2, 2), (2, 2)]


def evaluation(answers=ANSWERS, sure=0.8):
    probs = np.full((len(answers), 3), (1 - sure) / 2)
    probs[np.arange(len(answers)), [p for _, p in answers]] = sure
    return Evaluation(probs, np.array([y for y, _ in answers]), NAMES, np.arange(len(answers)))


def rows(answers=ANSWERS, **columns):
    table = pd.DataFrame({"label": [NAMES[y] for y, _ in answers], "family": "", "condition": ""})
    return table.assign(**columns)


def card(found=None, table=None, folders=(), **options):
    found = evaluation() if found is None else found
    table = rows() if table is None else table
    return model_card(found, table, "A card", {"data": "<script>"}, "shelf", folders=list(folders), **options)


def write(folder, notebook, metrics, status="ok"):
    folder.mkdir(exist_ok=True)
    facts = {"notebook": notebook, "status": status, "metrics": metrics, "profile": "fast", "dataset": "shelf"}
    (folder / f"{notebook}.json").write_text(json.dumps(facts))


def test_counts_are_those_counted_by_hand():
    table = rows(
        condition=["dark", "dark", "dark", "front", "front", "front", "front", ""], family=["m"] * 6 + ["t"] * 2
    )
    facts = card(table=table).facts
    assert facts["evaluation"]["top1"] == 5 / 8 and facts["evaluation"]["n"] == 8
    by_class = {row["label"]: (row["accuracy"], row["n"]) for row in facts["by_class"]}
    assert by_class == {NAMES[0]: (pytest.approx(1 / 3), 3), "milk": (pytest.approx(2 / 3), 3), "tea": (1, 2)}
    assert [(r["condition"], r["n"], r["accuracy"]) for r in facts["by_condition"]] == [
        ("dark", 3, pytest.approx(1 / 3)),
        ("front", 4, 0.75),
    ]
    (pair,) = facts["confused"]
    assert (pair["first_as_second"], pair["second_as_first"], pair["errors"], pair["n"]) == (2, 1, 3, 6)
    assert pair["rate"] == 0.5 and pair["family"] == "m"
    assert (pair["low"], pair["high"]) == pytest.approx(wilson(3, 6))
    assert "3 of 3 errors stay within a family" in card(table=table).markdown()
    # Each photo is sure by 0.8, and 5 of 8 are right.
    assert facts["evaluation"]["calibration_error"] == evaluation().calibration_error()


def test_no_confusion_among_few_photos_is_no_go_for_twins():
    """What no pair confused is judged by the photos of a pair, not by all."""
    right = [(k, k) for k in range(3) for _ in range(40)] + [(0, 0)] * 400
    for answers, verdict in ((right, GO), (right[:42], NOT_DECIDED), ([(0, 0)] * 400, NOT_DECIDED)):
        twins = card(evaluation(answers), rows(answers)).checklist.set_index("criterion").loc["twins"]
        assert (twins["value"], twins["verdict"]) == (0.0, verdict), len(answers)


def test_a_model_that_is_as_sure_as_it_is_right_is_no_no_go():
    """Errors of bins add up even where the model is calibrated, and a bootstrap adds them once more."""
    rng = np.random.default_rng(0)
    for _ in range(6):
        probs = rng.dirichlet([0.3] * 3, size=192)
        labels = np.array([rng.choice(3, p=p) for p in probs])
        found = Evaluation(probs, labels, NAMES, np.arange(192))
        table = pd.DataFrame({"label": [NAMES[y] for y in labels], "family": "", "condition": ""})
        assert card(found, table).checklist.set_index("criterion").loc["calibration", "verdict"] != NO_GO
    assert (
        card(evaluation([(0, 1)] * 60), rows([(0, 1)] * 60))
        .checklist.set_index("criterion")
        .loc["calibration", "verdict"]
        == NO_GO
    )


def test_names_cannot_break_the_page_or_a_table():
    page, text = card().html(), card().markdown()
    assert "<b>milk" not in page and "&lt;b&gt;milk&lt;/b&gt; | whole" in page and "<script>" not in page
    assert "<b>" not in text and r"&lt;b&gt;milk&lt;/b&gt; \| whole" in text
    for line in (line for line in text.splitlines() if "milk" in line and line.startswith("|")):
        header = re.split(r"(?<!\\)\|", line)
        assert len(header) in (5, 8)


def test_figures_are_inside_the_page_with_words_for_those_who_do_not_see_them():
    made = card()
    shown = re.findall(r'<img src="data:image/png;base64,[\w+/=]+" alt="([^"]+)">', made.html())
    assert shown == [picture.alt for picture in made.pictures] and len(shown) == 2 and all(shown)
    assert all(f"]({picture.name})" in made.markdown() for picture in made.pictures)
    assert all(picture.png.startswith(b"\x89PNG") for picture in made.pictures)


def test_a_data_set_without_conditions_says_so():
    text = card().markdown()
    assert "the table of this data set names no conditions" in text
    answers = card().checklist.set_index("criterion")["verdict"]
    assert answers["worst_condition"] == NOT_MEASURED and answers["milliseconds"] == NOT_MEASURED


def test_a_class_without_a_photo_is_never_a_go():
    answers = [(k, k) for k in (0, 1) for _ in range(200)]
    made = card(evaluation(answers), rows(answers))
    assert "1 of 3 classes have no photo in this split" in made.markdown()
    assert made.checklist.set_index("criterion").loc["worst_class", ["low", "verdict"]].tolist() == [0.0, NOT_DECIDED]


def test_missing_records_say_how_to_get_them(tmp_path):
    write(tmp_path / "runs", "60_background_variants", {"gap_original": {"value": 0.3}}, status="running")
    for text in (card(folders=[tmp_path / "runs"]).markdown(), card(folders=[tmp_path / "none"]).html()):
        for number in (50, 51, 52, 60, 61):
            assert f"retailkit run {number} --dataset shelf" in text
    answers = card(folders=[tmp_path / "runs"]).checklist.set_index("criterion")["verdict"]
    assert answers["background"] == NOT_MEASURED


def test_records_are_shown_with_where_they_come_from(tmp_path):
    gap = {"value": 0.05, "interval": [0.02, 0.08], "n": 90, "chance": 0.0}
    write(tmp_path / "first", "60_background_variants", {"gap_original": gap, "unknown_metric": {"value": 1.0}})
    write(tmp_path / "second", "60_background_variants", {"gap_original": {"value": 0.9}})
    looked = {"value": 0.4, "interval": [0.35, 0.45], "chance": 0.3, "n": 20}
    write(tmp_path / "second", "61_background_factors", {"energy_original": looked})
    made = card(folders=[tmp_path / "first", tmp_path / "second"])
    answers = made.checklist.set_index("criterion")
    assert answers.loc["background", ["value", "verdict"]].tolist() == [0.05, GO]
    assert answers.loc["looks_at", ["value", "low", "high"]].tolist() == pytest.approx([0.1, 0.05, 0.15])
    assert "0.050 (0.020 to 0.080)" in made.markdown() and "not from the model of this card" in made.markdown()
    assert "unknown_metric" not in made.markdown()
    found = evidence.find(evidence.BACKGROUND, "shelf", [tmp_path / "first", tmp_path / "second"])
    assert found.missing == [] and len(found.sources) == 2


@pytest.mark.parametrize(
    "measured, at_least, expected",
    [
        ((0.95, 0.91, 0.97), True, GO),
        ((0.95, 0.89, 0.97), True, NOT_DECIDED),
        ((0.85, 0.80, 0.89), True, NO_GO),
        ((0.85, 0.80, 0.90), False, GO),
        ((0.95, 0.89, 0.97), False, NOT_DECIDED),
        ((0.95, 0.91, 0.97), False, NO_GO),
        ((0.95, None, None), True, NOT_DECIDED),
        (None, True, NOT_MEASURED),
    ],
)
def test_a_verdict_needs_the_whole_interval(measured, at_least, expected):
    assert criteria.verdict(measured and Measured(*measured), 0.9, at_least) == expected


def test_one_failing_criterion_is_a_no_go_and_only_all_are_a_go():
    good = {"accuracy": Measured(0.97, 0.95, 0.99), "calibration": Measured(0.01, 0.0, 0.02)}
    assert criteria.decision(criteria.checklist(good)) == GO
    assert criteria.decision(criteria.checklist(good | {"twins": Measured(0.5, 0.4, 0.6)})) == NO_GO
    assert criteria.decision(criteria.checklist(good | {"twins": None})) == NOT_DECIDED
    assert criteria.decision(criteria.checklist(good | {"twins": Measured(0.1, 0.0, 0.2)})) == NOT_DECIDED
    assert criteria.decision(criteria.checklist(good, criteria.limits(["accuracy=0.995"]))) == NO_GO
    assert card(limits=criteria.limits(["worst_class=1"])).decision == NO_GO


@pytest.mark.parametrize(
    "pair, part", [("acuracy=1", "did you mean 'accuracy'"), ("accuracy", "no number"), ("twins=a", "no number")]
)
def test_a_limit_that_cannot_be_read_is_refused(pair, part):
    with pytest.raises(UsageError, match=part):
        criteria.limits([pair])


def test_a_perfect_model_and_a_single_class_make_a_card_as_well():
    perfect = card(evaluation([(k, k) for k in (0, 1, 2, 0)]), rows([(k, k) for k in (0, 1, 2, 0)]))
    assert "None of 4 photos was taken for another class" in perfect.markdown()
    alone = Evaluation(np.ones((3, 1)), np.zeros(3, int), ["milk"], np.arange(3))
    text = card(alone, pd.DataFrame({"label": ["milk"] * 3, "family": "", "condition": ""})).markdown()
    assert "with a single class no label can be wrong" in text
