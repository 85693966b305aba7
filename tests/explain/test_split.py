"""Explanations of a whole split; that any number of processes writes the same files is shown in `test_survival.py`."""

import pandas as pd
import pytest

from retailkit.explain.lime import LocalExplanation


@pytest.mark.check
def test_two_processes_explain_a_split_and_list_it(coloured, command, tmp_path):
    data, checkpoint = coloured
    data.table[["image", "label", "split"]].to_csv("photos.csv", index=False)
    where = ("--root", "photos.csv", "--split", "train", "--checkpoint", checkpoint, "--jobs", "2", "--output", "two")
    code, out, err = command("explain", *where, "--budget", "24", "--classes", "top1")
    assert code == 0 and "explained: 9" in out, err
    table = pd.read_csv("two/explanations.csv")
    assert table["image"].tolist() == data.split("train").table["image"].tolist()
    assert (table["predicted"] == table["label"]).mean() > 0.9 and table["file"].nunique() == 9
    found = LocalExplanation.load(tmp_path / "two" / table["file"][0])
    assert found.classes[found.explained[0]] == table["predicted"][0]


@pytest.mark.parametrize("words, reason", [((), "give a photo"), (("x.png", "--root", "photos"), "not both")])
def test_explain_takes_a_photo_or_a_data_set(command, words, reason):
    code, _, err = command("explain", *words, "--checkpoint", "m.safetensors")
    assert code == 2 and reason in err
