"""`retailkit compare`: paired numbers beside plain references, and pages that show what differs."""

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from retailkit import comparison, metrics, models, training
from retailkit.config import UserError
from retailkit.metrics import Evaluation

RECORD = Path(__file__).parents[1] / "papermill_runs" / "fast-synthetic" / "20_training.json"


def evaluation(correct):
    probs = np.where(np.array(correct)[:, None], [0.9, 0.1], [0.1, 0.9])
    return Evaluation(probs, np.zeros(len(correct), int), ["a", "b"], np.arange(len(correct)))


@pytest.mark.parametrize("only_first, only_second", [(0, 0), (1, 0), (0, 6), (3, 9), (7, 7), (12, 2)])
def test_mcnemar_is_the_binomial_test_of_the_discordant_images(only_first, only_second):
    first = evaluation([True] * 5 + [True] * only_first + [False] * only_second)
    second = evaluation([True] * 5 + [False] * only_first + [True] * only_second)
    n = only_first + only_second
    tail = sum(math.comb(n, k) for k in range(min(only_first, only_second) + 1)) / 2**n
    one, other, p_value = metrics.mcnemar(first, second)
    assert (one, other) == (only_first, only_second) and np.isclose(p_value, min(1, 2 * tail))


def test_the_interval_of_an_unpaired_difference_is_newcombes():
    """His first example (1998, table II, method 10): 56 of 70 and 48 of 80."""
    low, high = metrics.difference_interval(56 / 70, metrics.wilson(56, 70), 48 / 80, metrics.wilson(48, 80))
    assert (round(low, 4), round(high, 4)) == (0.0524, 0.3339)


def compared(only_b, both=196, known=(0, 0)):
    first = evaluation([True] * both + [False] * only_b)
    second = evaluation([True] * (both + only_b))
    photos = pd.DataFrame({"a": ["a"] * both + ["b"] * only_b, "b": "a"})
    photos["outcome"] = ["the same answer"] * both + ["only B is correct"] * only_b
    return comparison.Comparison(("a", "b"), (first, second), photos, known)


@pytest.mark.parametrize("only_b, known, decided", [(4, (0, 0), False), (12, (0, 0), True), (12, (0, 208), False)])
def test_the_verdict_agrees_with_the_p_value_and_photos_that_trained_a_model_decide_nothing(only_b, known, decided):
    """With 4 photos against none the bootstrap misses zero, and the exact test has p = 0.125."""
    found = compared(only_b, known=known)
    assert found.summary()["interval"][0] > 0
    assert ("B is better on such photos." in found.sentences()) == decided
    assert any("do not decide" in sentence for sentence in found.sentences()) != decided


def rearranged(checkpoint, path, rows, classes):
    """Write a checkpoint with some rows of the head of another one, for `classes`."""
    model, history, _ = training.load_checkpoint(checkpoint)
    other = models.build("image", classes, "timm:test_resnet", weights=None)
    state = model.state_dict()
    other.load_state_dict(state | {key: state[key][rows] for key in state if key.startswith("head.linear")})
    training.save_checkpoint(other, path, history, size=48, fit="crop")


@pytest.fixture(scope="module")
def pair(coloured, tmp_path_factory):
    """A folder with photos of three colours, a good checkpoint, and one whose head is mixed up."""
    data, good = coloured
    folder = tmp_path_factory.mktemp("pair")
    for path, label in zip(data.table["image"], data.table["label"], strict=True):
        (folder / "photos" / "test" / label).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / "photos" / "test" / label)
    rearranged(good, folder / "bad.safetensors", [2, 0, 1], ["blue", "green", "red"])
    shutil.copy(good, folder / "good.safetensors")
    return folder


def test_two_checkpoints_are_compared_photo_by_photo(pair, command, tmp_path):
    line = ["compare", pair / "bad.safetensors", pair / "good.safetensors", "--root", pair / "photos"]
    code, out, err = command(*line, "--csv", "d.csv", "--html", "d.html", "--json")
    assert code == 0, err
    facts, rows = json.loads(out.splitlines()[-1]), pd.read_csv("d.csv")
    right = [rows[letter] == rows["label"] for letter in "ab"]
    assert facts["n"] == len(rows) == 12 and np.isclose(facts["difference"], right[1].mean() - right[0].mean())
    assert facts["only_b"] == (right[1] & ~right[0]).sum() == (rows["outcome"] == "only B is correct").sum()
    assert facts["difference"] > 0.5 and facts["interval"][0] > 0 and facts["p_value"] < 0.05
    assert "B is better on such photos." in out
    page = (tmp_path / "d.html").read_text()
    assert page.count("data:image/png;base64,") == facts["differ"] == (rows["a"] != rows["b"]).sum()
    assert "McNemar" in page and "http" not in page.replace("http-equiv", "")
    assert command(*line, "--csv", "d.csv", "--html", "d.html")[0] == 0, "its own files are replaced"
    same = [*line[:2], line[1], *line[3:]]
    code, out, _ = command(*same)
    assert code == 0 and "B minus A: +0.000" in out and "p = 1." in out and "The answers differ on 0 photos" in out


def test_checkpoints_may_order_their_classes_in_another_way(pair, command):
    rearranged(pair / "good.safetensors", "turned.safetensors", [2, 0, 1], ["red", "blue", "green"])
    code, out, err = command("compare", "turned.safetensors", pair / "good.safetensors", "--root", pair / "photos")
    assert code == 0 and "The answers differ on 0 photos" in out, err


def test_a_split_may_hold_only_some_of_the_classes(pair, command, tmp_path):
    """Also where the rest of the data set holds a class that nobody knows, and where one model knows fewer classes."""
    shutil.copytree(pair / "photos", tmp_path / "photos")
    shutil.rmtree(tmp_path / "photos" / "test" / "blue")
    shutil.copytree(tmp_path / "photos" / "test" / "red", tmp_path / "photos" / "train" / "yellow")
    rearranged(pair / "good.safetensors", "fewer.safetensors", [1, 2], ["green", "red"])
    line = ["compare", "fewer.safetensors", pair / "good.safetensors", "--root", "photos"]
    code, out, err = command(*line, "--csv", "d.csv", "--json")
    rows = pd.read_csv("d.csv")
    assert code == 0 and set(rows["label"]) == {"green", "red"} == set(rows["a"]), err
    assert json.loads(out.splitlines()[-1])["a"]["top1"] == (rows["a"] == rows["label"]).mean() > 0.6
    assert command("evaluate", "--root", "photos", "--checkpoint", "fewer.safetensors")[0] == 0
    code, _, err = command(*line, "--split", "train")
    assert code == 1 and "label 'yellow' is unknown to this checkpoint of 2 classes" in err


BAD = {
    ("good.safetensors", "other.json"): (2, "cannot be compared; give two checkpoints"),
    ("none.json", "none.json"): (1, "none.json: no record of a notebook"),
    ("cut.json", "cut.json"): (1, "cut.json: no record of a notebook"),
    ("good.safetensors", "none.safetensors", "--root", "photos"): (1, "none.safetensors: no such checkpoint"),
    ("good.safetensors", "good.safetensors", "--root", "photos", "--split", "val"): (1, "has no 'val' split"),
    ("good.safetensors", "good.safetensors", "--root", "photos", "--csv", "photos/a.csv"): (2, "lies in the data"),
    ("good.safetensors", "good.safetensors", "--root", "photos", "--html", "mine.html"): (2, "--force"),
    ("good.safetensors", "good.safetensors"): (1, "the built-in data set holds none of the classes"),
    ("good.safetensors", "good.safetensors", "--csv", "a.csv", "--html", "a.csv"): (2, "both name a.csv"),
    ("good.safetensors", "good.safetensors", "--root", "other"): (1, "'yellow' is unknown to this checkpoint"),
}


@pytest.mark.parametrize("words", BAD)
def test_a_bad_call_ends_in_one_line(pair, command, tmp_path, words):
    shutil.copytree(pair / "photos", tmp_path / "photos")
    shutil.copytree(pair / "photos" / "test", tmp_path / "other" / "test")
    (tmp_path / "other" / "test" / "red").rename(tmp_path / "other" / "test" / "yellow")
    shutil.copy(pair / "good.safetensors", tmp_path)
    (tmp_path / "mine.html").write_text("<p>mine</p>")
    (tmp_path / "cut.json").write_text(RECORD.read_text()[:500])
    code, _, err = command("compare", *words)
    assert (code, err.count("\n")) == (BAD[words][0], 1) and BAD[words][1] in err, err


def test_two_records_are_compared_on_the_metrics_that_they_share(command, tmp_path):
    record = json.loads(RECORD.read_text())
    was = record["metrics"]["top1_frozen"]
    better = was | {"value": 0.95, "interval": [0.91, 0.98]}
    other = record | {"metrics": {"top1_frozen": better, "of_its_own": {"value": 1.0, "better": "none"}}}
    (tmp_path / "other.json").write_text(json.dumps(other))
    code, out, err = command("compare", RECORD, "other.json", "--csv", "r.csv", "--html", "r.html")
    assert code == 0, err
    (row,) = pd.read_csv("r.csv").to_dict("records")
    assert row["metric"] == "top1_frozen" and row["better"] == "b" and 0 < row["low"] < row["difference"] < row["high"]
    assert "Only one of them has" in out and re.search(rf"top1_frozen +{was['value']:.3f} 0\.950", out)
    assert "top1_frozen" in (tmp_path / "r.html").read_text()
    (tmp_path / "empty.json").write_text(json.dumps(record | {"metrics": {}}))
    with pytest.raises(UserError, match="share no metric; give two records of one notebook"):
        comparison.compare_records(RECORD, tmp_path / "empty.json")


def test_records_of_other_data_sets_say_nothing_about_which_run_is_better():
    runs = RECORD.parents[1]
    paths = [runs / name / "33_best_recogniser.json" for name in ("test-grocery_store", "test-grozi120")]
    rows, said = comparison.compare_records(*paths)
    assert set(rows["better"]) == {""} and any("not the same notebook and data set" in line for line in said)
    rows, _ = comparison.compare_records(RECORD, RECORD)
    assert set(rows["better"]) <= {"", "not decided"} and "not decided" in set(rows["better"])
