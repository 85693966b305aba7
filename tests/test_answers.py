"""`retailkit predict`: the same answers as `evaluate`, for any files, and no file stops the others."""

import csv
import errno
import io
import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from retailkit import answers, models, training
from retailkit.data import folder, spreadsheet


def test_answers_are_those_of_evaluate(coloured):
    data, checkpoint = coloured
    model, _, facts = training.load_checkpoint(checkpoint)
    split = data.split("train+test", facts["size"], facts["fit"])
    expected = training.evaluate(model, split)
    table, failed = answers.predict(model, facts, split.table["image"].tolist())
    assert not failed and table["label"].tolist() == [data.classes[k] for k in expected.predicted]
    ordered = -np.sort(-expected.probs, axis=1)
    assert np.allclose(table["probability"], ordered[:, 0], atol=1e-5)
    assert np.allclose(table["runner_up_probability"], ordered[:, 1], atol=1e-5)
    assert (table["runner_up"] != table["label"]).all() and not table["unknown"].any()


@pytest.fixture
def photo(coloured):
    return coloured[0].table["image"][0]


@pytest.fixture
def predict(coloured, command):
    """Call `predict` with the checkpoint."""
    return lambda *words: command("predict", "--checkpoint", coloured[1], *words)


def test_what_cannot_be_read_is_listed_and_the_rest_is_done(coloured, predict, tmp_path, monkeypatch):
    monkeypatch.setattr(answers, "AT_ONCE", 2)
    (tmp_path / "new" / "deeper").mkdir(parents=True)
    for path, name in zip(coloured[0].table["image"], ("0", "1", "3", "4", "deeper/5"), strict=False):
        shutil.copy(path, tmp_path / "new" / f"{name}.png")
    whole = (tmp_path / "new" / "1.png").read_bytes()
    (tmp_path / "new" / "1.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "new" / "2.png").write_text("no image")
    (tmp_path / "new" / "b.HEIC").write_bytes(b"....ftypheic")
    (tmp_path / "new" / "notes.txt").write_text("no photo")
    given = ("new", "gone.png", "new/0.png")  # one of them twice
    code, out, err = predict(*given, "--output", "answers.csv")
    assert code == 1 and err.count("\n") == 4 and "Traceback" not in err and "row" not in err
    assert all(name in err for name in ("new/1.png: ", "new/2.png: not an image", "b.HEIC", "gone.png: cannot be read"))
    assert "4 of 8 photos answered, 0 unknown" in out and "notes.txt" in out
    table = pd.read_csv("answers.csv")
    assert table["image"].tolist() == ["new/0.png", "new/3.png", "new/4.png", "new/deeper/5.png"]
    assert predict(*given, "--output", "answers.json")[0] == 1
    content = json.loads((tmp_path / "answers.json").read_text())
    assert [row["image"] for row in content["answers"]] == table["image"].tolist()
    assert [row["image"] for row in content["failed"]] == ["new/1.png", "new/2.png", "new/b.HEIC", "gone.png"]


def test_answers_of_no_photo_replace_those_of_yesterday(photo, predict, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    for name in ("a.csv", "a.json"):
        assert predict(photo, "--output", name)[0] == 0
        code, out, err = predict("broken.png", "--output", name)
        assert code == 1 and "0 of 1 photos answered" in out and "broken.png" in err
    assert (tmp_path / "a.csv").read_text().splitlines() == [",".join(answers.COLUMNS)]
    kept = json.loads((tmp_path / "a.json").read_text())
    assert kept["answers"] == [] and [row["image"] for row in kept["failed"]] == ["broken.png"]
    assert predict(photo, "--output", "a.csv")[0] == 0


def test_a_folder_that_cannot_be_listed_is_named_and_the_rest_is_done(photo, predict, tmp_path, monkeypatch):
    """The superuser may list all: it is acted."""
    (tmp_path / "new" / "closed").mkdir(parents=True)
    shutil.copy(photo, tmp_path / "new")
    shutil.copy(photo, tmp_path / "new" / "closed")
    scandir = os.scandir

    def guarded(path):
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    code, out, err = predict("new", "--output", "a.json")
    assert code == 1 and "1 of 1 photos answered" in out
    assert err == "retailkit: new/closed: cannot be listed (Permission denied); correct its permissions\n"
    kept = json.loads((tmp_path / "a.json").read_text())
    assert len(kept["answers"]) == 1 and kept["unlisted"] == [err.removeprefix("retailkit: ").strip()]
    code, _, err = predict("new/closed")
    assert code == 1 and err.count("\n") == 1 and "new/closed: cannot be listed" in err


def test_links_that_lead_nowhere_or_in_a_circle_stop_nothing(photo, predict, tmp_path):
    (tmp_path / "new").mkdir()
    shutil.copy(photo, tmp_path / "new")
    links = {"again": "new", "self.png": "new/self.png", "self": "new/self", "gone.png": "nowhere.png"}
    for name, target in links.items():
        (tmp_path / "new" / name).symlink_to(tmp_path / target)
    code, out, err = predict("new", "--output", "a.csv")
    assert code == 1 and "1 of 3 photos answered" in out and "1 files ('new/self')" in out
    assert err.count("\n") == 2 and "new/self.png: " in err and "new/gone.png: " in err


def test_without_an_output_the_table_is_all_that_is_on_stdout(coloured, predict):
    code, out, err = predict(*coloured[0].table["image"][:3], "--unknown", "1")
    table = pd.read_csv(io.StringIO(out))
    assert code == 0 and len(table) == 3 and table["unknown"].all() and "3 of 3 photos answered, 3 unknown" in err


NAMES = [
    "=cmd|' !A0.png",
    "a,b.png",
    'quote".png',
    "two\nlines.png",
    "-1.png",
    "+1.png",
    "@sum.png",
    "\tt.png",
    "ö.png",
]


def test_names_are_written_so_that_no_spreadsheet_computes_them(photo, predict, tmp_path):
    for name in (*NAMES, b"\xff.png".decode("utf-8", "surrogateescape")):
        shutil.copy(photo, tmp_path / name)
    code, _, err = predict("--output", "a.csv", "--", *NAMES)
    assert code == 0, err
    with open("a.csv", newline="", encoding="utf-8") as file:
        written = [row["image"] for row in csv.DictReader(file)]
    assert [name.removeprefix("./") for name in written] == NAMES
    assert not any(spreadsheet.FORMULA.match(name) for name in written)
    assert all((tmp_path / name).is_file() for name in written), "they still are paths"
    assert predict(tmp_path)[0] == 0, "a name that is no UTF-8"


def test_what_is_missing_stays_empty_and_a_number_stays_a_number(tmp_path):
    spreadsheet.write_table(pd.DataFrame({"a": ["x", None], "b": [-0.5, "-x"]}), tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text() == "a,b\nx,-0.5\n,'-x\n"


BAD = {  # what is given: exit code, what the line names
    ("photo.png", "--unknown", "1.5"): (2, "--unknown 1.5 is no probability"),
    ("photo.png", "--output", "a.xlsx"): (2, "use .csv or .json"),
    ("photo.png", "--output", "mine.csv"): (2, "mine.csv was not written by retailkit"),
    ("shop", "--output", "shop/a.csv"): (2, "lies in the data folder"),
    ("shop",): (1, "no photo there"),
    (): (2, "Missing argument 'photos"),
    ("photo.png", "--checkpoint", "photo.png"): (1, "not a retailkit checkpoint"),
}


@pytest.mark.parametrize("words", BAD)
def test_a_bad_call_ends_in_one_line(photo, predict, tmp_path, words):
    (tmp_path / "shop").mkdir()
    (tmp_path / "mine.csv").write_text("my own table\n")
    shutil.copy(photo, tmp_path / "photo.png")
    code, _, err = predict(*words)
    assert (code, err.count("\n")) == (BAD[words][0], 1) and BAD[words][1].lower() in err.lower()


def test_a_model_that_reads_gets_the_words_and_writes_them(tmp_path):
    torch.manual_seed(0)
    model = models.build("concat", ["a", "b"], "resnet18", text_encoder="char_ngrams", weights=None).eval()
    picture = Image.new("RGB", (300, 120), "white")
    ImageDraw.Draw(picture).text((20, 30), "LEAN", font=ImageFont.load_default(60), fill="black")
    picture.save(tmp_path / "lean.png")
    (tmp_path / "broken.png").write_text("")
    files = [tmp_path / name for name in ("broken.png", "lean.png")]
    table, failed = answers.predict(model, {"size": 64, "fit": "pad"}, files)
    assert table["text"].tolist() == ["LEAN"] and list(failed) == [str(files[0])]


def test_an_answer_without_any_preference_is_unknown(tmp_path):
    """Keypoint matching finds nothing on a plain image: every class is as probable as any other."""
    Image.new("RGB", (64, 64), "white").save(tmp_path / "plain.png")
    texture = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        Image.fromarray(np.roll(texture, 32 * (label == "b"), 2)).save(tmp_path / label / "0.png")
    data = folder.load(tmp_path, val=0, test=0)
    model = models.build("matching", data.classes)
    model.prepare(data.split("train", 64))
    table, _ = answers.predict(model, {"size": 64, "fit": "crop"}, [tmp_path / "plain.png"])
    assert table.loc[0, ["label", "runner_up", "unknown"]].tolist() == ["", "", True]
