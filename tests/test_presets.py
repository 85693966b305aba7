"""Presets on a small set of drawn pictures: what learns from what, and what a second call does."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from retailkit import config, presets, training, workbook
from retailkit.config import PRESETS, Member, Preset, UsageError, UserError
from retailkit.data.table import COLUMNS, ProductData
from retailkit.models.encoders import BACKBONES
from retailkit.training import TrainConfig, TrainSpec

TUNED = {"mode": "finetune", "epochs": 1, "batch_size": 8, "bf16": False}
SMALL = {"backbone": "shufflenet_v2_x1_0", "weights": None}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RETAILKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def data(tmp_path):
    rng, rows = np.random.default_rng(0), []
    for label, shade in (("dark", 40), ("light", 200)):
        for split, count in (("train", 6), ("val", 4), ("test", 3)):
            for i in range(count):
                path = tmp_path / f"{label}_{split}_{i}.png"
                Image.fromarray(np.clip(shade + rng.normal(0, 30, (48, 48, 3)), 0, 255).astype(np.uint8)).save(path)
                rows.append({"image": str(path), "label": label, "split": split})
    table = pd.DataFrame(rows).reindex(columns=COLUMNS).fillna("")
    return ProductData("drawn", table, ["dark", "light"], {})


@pytest.fixture
def tiny(monkeypatch):
    """A preset of two members, whose training is watched."""
    members = (Member("image", SMALL, 48, TUNED, flip=True, weight=0.5), Member("matching", {}, 64, {}, weight=2.0))
    monkeypatch.setitem(config.PRESETS, "tiny", Preset("drawn", ("train", "val"), members))
    seen, fit = [], training.fit
    monkeypatch.setattr(training, "fit", lambda *a, **k: (seen.append((a[1], a[2])), fit(*a, **k))[1])
    return seen


def test_the_final_members_learn_from_all_splits_named_and_never_from_test(data, tiny):
    committee, history, facts = presets.train("tiny", data=data)
    for train, val in tiny:
        assert set(train.table["image"].str.extract(r"_(train|val|test)_")[0]) == {"train", "val"} and val is None
    assert committee.weights.tolist() == [0.5, 2.0] and facts["hold_out"] is False and len(tiny) == 2
    assert (facts["size"], len(facts["seconds_of_members"]), list(history.epochs["member"])) == (64, 2, [0])
    assert facts["megabytes"] > 100


def test_pictures_that_are_not_to_be_learned_from_choose_no_epoch(data, tiny, monkeypatch):
    monkeypatch.setitem(config.PRESETS, "tiny", replace(config.PRESETS["tiny"], learn_from=("train",)))
    presets.train("tiny", data=data)
    assert [val for _, val in tiny] == [None, None]


def test_held_out_pictures_choose_the_weights_and_teach_nothing(data, tiny):
    committee, _, facts = presets.train("tiny", hold_out=True, data=data)
    for train, val in tiny:
        assert train.table["image"].str.contains("_train_").all() and val.table["image"].str.contains("_val_").all()
    assert facts["hold_out"] is True and committee.weights.tolist() != [0.5, 2.0]


def test_a_second_call_trains_nothing_and_says_the_same(data, tiny):
    first, second = (presets.train("tiny", data=data)[0] for _ in range(2))
    image = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        assert len(tiny) == 2 and torch.equal(first(image), second(image))
    presets.train("tiny", seed=1, data=data)
    assert len(tiny) == 4


def test_the_ladder_adds_one_thing_a_rung_and_judges_all_on_the_same_photos(data, tiny, monkeypatch):
    monkeypatch.setattr(
        presets, "TrainSpec", lambda *a, **k: TrainSpec(*a, **({"model_options": SMALL, "size": 48} | k))
    )
    rungs = presets.ladder("tiny", judge="test", data=data)
    assert [len(rung.committee.members) for rung in rungs] == [1, 1, 2, 2]
    assert [rung.name[:2] for rung in rungs[2:]] == ["+ ", "+ "] and rungs[3].name == "+ mirror images"
    assert [rung.committee.flips for rung in rungs[2:]] == [[False, False], [True, False]]
    assert all(rung.result.n == 6 and rung.milliseconds > 0 and rung.megabytes > 0 for rung in rungs)
    assert rungs[1].seconds <= rungs[2].seconds == rungs[3].seconds
    assert [len(r.committee.members) for r in presets.ladder("tiny", data=data, matching=False)] == [1, 1, 1]
    whole = rungs[-1].committee
    again = training.evaluate(whole, data.split("test", 64))
    assert np.allclose(again.probs, rungs[-1].result.probs, atol=1e-4)
    one, other = presets.alone(whole, data.split("test", 64))
    assert one.n == other.n == 6 and len(one.probs[0]) == 2


def test_ladders_of_folds_are_judged_together_on_every_training_picture_once(data, tiny, monkeypatch):
    monkeypatch.setattr(
        presets, "TrainSpec", lambda *a, **k: TrainSpec(*a, **({"model_options": SMALL, "size": 48} | k))
    )
    monkeypatch.setattr(presets, "milliseconds", lambda committees, photos: [1.0] * len(committees))
    parts = workbook.inside_train(data, 3)
    assert all(len(part) == 12 and part.splits == ["train", "val", "test"] for part in parts)
    epochs = {"epochs": 2}
    climbed = [presets.ladder("tiny", judge="test", data=part, finetune=epochs) for part in parts]
    assert {len(train.table) for train, _ in tiny} == {len(part.split("train", 48)) for part in parts}
    whole = presets.pooled(climbed)
    assert [rung.name for rung in whole] == [rung.name for rung in climbed[0]]
    for k, rung in enumerate(whole):
        assert sorted(rung.result.indices) == list(range(12))
        assert rung.result.correct.sum() == sum(rungs[k].result.correct.sum() for rungs in climbed)
    member = presets.PRESETS["tiny"].members[0]
    assert presets.spec(presets.PRESETS["tiny"], member, finetune=epochs).config.epochs == 2


def test_evidence_of_a_loaded_member_comes_from_the_cache(data, tiny, monkeypatch):
    photos, encoded = data.split("test", 64), []
    first = presets.evidence(presets.train("tiny", data=data)[0], photos)
    monkeypatch.setattr(training, "encode", lambda *a, **k: encoded.append(a))
    again = presets.evidence(presets.train("tiny", data=data)[0], photos)
    assert not encoded and torch.equal(first.image.values, again.image.values)


def test_the_fast_twin_says_the_same(data, tiny):
    committee = presets.train("tiny", data=data)[0]
    images = torch.rand(3, 3, 64, 64)
    with torch.inference_mode():
        assert torch.allclose(presets.fast(committee)(images), committee(images), atol=1e-3)


def test_errors_say_what_to_do(data, tiny):
    with pytest.raises(UsageError, match="grocery_best"):
        presets.train("grocery_bets", data=data)
    left = replace(data, table=data.table[data.table["split"] != "val"])
    with pytest.raises(UserError, match="no split 'val' to hold out"):
        presets.train("tiny", hold_out=True, data=left)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_need_nothing_that_has_to_be_downloaded_and_nothing_of_a_test_split(name):
    preset = PRESETS[name]
    assert "test" not in preset.learn_from
    if preset.dataset == "grozi120":
        assert preset.learn_from == ("train",), "photos of shelves never teach"
    for member in preset.members:
        TrainConfig(**member.config)
        if backbone := member.options.get("backbone"):
            assert next(iter(BACKBONES[backbone].weights.values())).package
