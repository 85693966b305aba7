"""Words and features that workers make ahead are those of one process, and nothing is made again."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from retailkit import training
from retailkit.config import DataError, cache_dir
from retailkit.data import ocr
from retailkit.data.table import Word
from retailkit.training import TrainConfig, TrainSpec, encoded

SPEC = TrainSpec(model_options={"backbone": "timm:test_resnet", "weights": None}, size=48, config=TrainConfig(epochs=3))


@pytest.fixture
def engine(monkeypatch):
    """An engine that reads how bright an image is; returns how often it did."""
    calls = []

    def read(image):
        calls.append(1)
        return [Word(f"grey{image.mean():.0f}", (1, 1, 9, 9), 0.5)]

    monkeypatch.setattr(ocr, "read_words", read)
    return calls


def test_words_that_others_read_are_found_here(data, engine, elsewhere, monkeypatch, tmp_path):
    data.table.loc[3, "text"] = "milk"
    read = ocr.add_text(data).table
    monkeypatch.setenv("RETAILKIT_CACHE", str(tmp_path / "another"))
    training.read_words(data, 1)
    assert not elsewhere, "one process uses threads"
    monkeypatch.chdir(tmp_path)  # a root may be given relative to here
    data = data.moved(lambda path: path.relative_to(tmp_path))
    for _ in range(2):
        training.read_words(data, 2)
        assert [len(part.photos) for part in elsewhere] == [32, 3] and len(engine) == 70
    again = ocr.add_text(data).table
    assert len(engine) == 70 and again[["text", "words"]].equals(read[["text", "words"]])


def test_a_broken_photo_stops_no_other_and_is_named_as_ever(data, engine, elsewhere):
    Path(data.table["image"][5]).write_bytes(b"no photo")
    training.read_words(data, 2)
    assert len(engine) == 35
    with pytest.raises(DataError, match=f"row 5 of 'drawn': {data.table['image'][5]}"):
        ocr.add_text(data)
    with pytest.raises(DataError, match=f"row 5 of 'drawn': {data.table['image'][5]}"):
        training.encode_splits(SPEC, data, 2)


def test_features_that_others_encode_are_found_here(data, elsewhere, monkeypatch, tmp_path):
    data = data.select(np.tile(np.arange(36), 3))
    monkeypatch.setattr("retailkit.training.ahead.ENCODED", 32)
    model, history = training.fit_or_load(SPEC, data)
    monkeypatch.setenv("RETAILKIT_CACHE", str(tmp_path / "another"))
    training.encode_splits(SPEC, data, 1)
    assert not elsewhere
    for _ in range(2):
        training.encode_splits(SPEC, data, 1, "tcp://somewhere")
        assert [len(part.photos) for part in elsewhere] == [32, 32, 8, 32, 4]
    monkeypatch.setattr(encoded, "load_batches", None)  # nothing is encoded any more
    again, same = training.fit_or_load(SPEC, data)
    assert all(map(torch.equal, model.state_dict().values(), again.state_dict().values()))
    assert same.epochs["loss"].tolist() == history.epochs["loss"].tolist()


@pytest.mark.check
def test_a_machine_with_its_own_disk_reads_and_encodes_as_one_process_does(command, machines, monkeypatch, tmp_path):
    for number in range(20):
        label, colour = (("MILK", "white"), ("JUICE", "orange"))[number % 2]
        photo = Image.new("RGB", (160, 120), colour)
        ImageDraw.Draw(photo).text((15 + number, 40), f"{label} {number}", "black", ImageFont.load_default(size=30))
        (tmp_path / "photos" / label).mkdir(parents=True, exist_ok=True)
        photo.save(tmp_path / "photos" / label / f"{number}.png")
    scheduler, worker = machines
    (_, address), (_, place) = scheduler(), worker("one")

    def trained(*words):
        monkeypatch.setenv("RETAILKIT_CACHE", str(tmp_path / words[0]))
        line = ("train", "--root", "photos", "--frozen", "--model", "concat", "--epochs", "3", "--output")
        code, _, err = command(*line, f"{words[0]}.safetensors", *words[1:])
        assert code == 0, err
        model, _, _ = training.load_checkpoint(tmp_path / f"{words[0]}.safetensors")
        return model.state_dict().values(), {path.name: path.read_bytes() for path in cache_dir("ocr").rglob("*.json")}

    weights, read = trained("alone")
    monkeypatch.setattr(ocr, "read_words", None)  # nothing is read in this process
    for ways in (("machine", "--scheduler", address), ("processes", "--jobs", "2")):
        own, found = trained(*ways)
        assert all(map(torch.equal, weights, own)) and found == read
    assert len(read) == 20 and list((place / "cache" / "features").iterdir())


@pytest.mark.parametrize("words", [("--jobs", "2"), ("--scheduler", "tcp://127.0.0.1:9")])
def test_workers_without_work_are_refused(command, words):
    for line, says in (("--root photos", "--jobs and --scheduler read words"), ("--preset grozi_best", "--preset")):
        code, _, err = command("train", *line.split(), *words)
        assert code == 2 and says in err
