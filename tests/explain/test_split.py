"""Explanations of a whole split: the same files whatever the number of processes."""

import pandas as pd
import pytest

from retailkit.explain.lime import LocalExplanation

ASKED = ("--split", "train", "--budget", "24", "--classes", "top1")


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.check
def test_two_processes_explain_a_split_as_one_does_and_go_on_where_files_are(coloured, command, tmp_path):
    data, checkpoint = coloured
    data.table[["image", "label", "split"]].to_csv("photos.csv", index=False)
    where = ("explain", "--root", "photos.csv", "--checkpoint", checkpoint, *ASKED)
    code, out, err = command(*where, "--jobs", "2", "--output", "two")
    assert code == 0 and "explained: 9" in out, err
    table = pd.read_csv("two/explanations.csv")
    assert table["image"].tolist() == data.split("train").table["image"].tolist()
    assert (table["predicted"] == table["label"]).mean() > 0.9 and table["file"].nunique() == 9
    found = LocalExplanation.load(tmp_path / "two" / table["file"][0])
    assert found.classes[found.explained[0]] == table["predicted"][0]
    (tmp_path / "one").mkdir()
    kept = tmp_path / "two" / table["file"][1]
    (tmp_path / "one" / kept.name).write_bytes(kept.read_bytes())
    before = (tmp_path / "one" / kept.name).stat().st_mtime_ns
    assert command(*where, "--jobs", "1", "--output", "one")[0] == 0
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert (tmp_path / "one" / kept.name).stat().st_mtime_ns == before, "what is there is not made again"


@pytest.mark.parametrize("words, reason", [((), "give a photo"), (("x.png", "--root", "photos"), "not both")])
def test_explain_takes_a_photo_or_a_data_set(command, words, reason):
    code, _, err = command("explain", *words, "--checkpoint", "m.safetensors")
    assert code == 2 and reason in err
