"""Checkpoint files: what is in them, and what is said about bad ones."""

import os
import resource
import shutil
from dataclasses import replace

import pandas as pd
import pytest
import torch
from hostile.files import header

from retailkit import training
from retailkit.config import UserError
from retailkit.training import TrainConfig, TrainSpec
from retailkit.training.checkpoints import read_checkpoint

SMALL = {"backbone": "shufflenet_v2_x1_0", "weights": None}
NOTHING = training.History(pd.DataFrame(), 0, 0.0)


@pytest.fixture
def saved(small_model, tmp_path):
    return training.save_checkpoint(small_model(), tmp_path / "model.safetensors", NOTHING, size=48, note="old")


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        ("build", [], "header.build is '.*', not a mapping"),
        ("build classes", "milk", "header.build.classes is 'milk', not a list"),
        ("build propose", 10**6, "header.build.propose is '1000000', not a number from 1"),
        ("build text_config", {"model_type": "bert", "hidden_size": 60_000}, "hidden_size is '60000'"),
        ("build members", [{"name": "image", "classes": ["a"], "size": 10**5}], r"members\[0\].size is '100000'"),
        ("build backbone", "resnet", "its header describes no model .*'resnet50'"),
        ("build backbone", "resnet18", "its weights are those of another model"),
        ("build classes", ["a", "b"], "its weights are those of another model .*size mismatch for head"),
        ("build backbone", "timm:convnext_xxlarge", r"its weights are those of another model .*\(84\d,\d+,\d+ of"),
        ("history", {"epochs": [], "best_epoch": 1}, "header.history.seconds is missing"),
        ("format", ..., "header.format is missing"),
    ],
)
def test_a_header_that_is_not_ours_is_named_by_key_and_value(saved, place, value, says):
    """A hidden size of 60,000 or a million parts took all memory. More of this kind is in `hostile`."""
    header(*place.split(), value=value)(saved)
    with pytest.raises(UserError, match=rf"model\.safetensors: .*{says}"):
        training.load_checkpoint(saved)


def test_a_checkpoint_that_is_cut_off_while_it_is_in_use_ends_nothing(small_model, saved):
    """A mapped file ended the program with SIGBUS."""
    _, weights = read_checkpoint(saved)
    os.truncate(saved, 10)
    assert all(torch.equal(value, weights[name]) for name, value in small_model().state_dict().items())


def test_photos_that_were_trained_on_are_known_by_their_content(small_model, data, tmp_path):
    spec = TrainSpec(model_options=SMALL, size=48, config=TrainConfig(epochs=1))
    training.fit_or_load(spec, data, tmp_path / "model.safetensors")
    facts = training.load_checkpoint(tmp_path / "model.safetensors")[2]
    val = data.split("val", 48)
    assert not training.learned_from(facts, val)
    copy = shutil.copy(data.split("train", 48).table["image"].iloc[5], tmp_path / "copy.png")
    data.table.loc[val.rows[2], "image"] = str(copy)
    assert training.learned_from(facts, val) == [str(copy)]


def test_a_label_the_checkpoint_never_saw_is_named(small_model, data):
    data.table.loc[3, "label"] = "violet"
    with pytest.raises(UserError, match=r"_train_3\.png: label 'violet' is unknown to this checkpoint of 3 classes"):
        training.with_classes(replace(data, classes=[*data.classes, "violet"]), small_model())


def test_a_full_disk_keeps_the_old_checkpoint(saved, tmp_path):
    """A real limit on file size, as a full disk would give."""
    model, history, _ = training.load_checkpoint(saved)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(UserError, match=r"model\.safetensors: cannot be written"):
            training.save_checkpoint(model, saved, history, note="new")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert training.load_checkpoint(saved)[2]["note"] == "old"
    assert [p.name for p in tmp_path.glob("*model*")] == ["model.safetensors"]
