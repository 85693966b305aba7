"""Train or load: the same training is done once."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from retailkit import training
from retailkit.cache import sources
from retailkit.config import UserError, cache_dir
from retailkit.training import TrainConfig, TrainSpec, runs

SMALL = {"backbone": "timm:test_resnet", "weights": None}
SPEC = TrainSpec(model_options=SMALL, size=48, config=TrainConfig(epochs=3, batch_size=8, lr=1e-2))


@pytest.fixture
def trainings(monkeypatch):
    """The number of trainings that were done."""
    done, fit = [], runs.fit
    monkeypatch.setattr(runs, "fit", lambda *a, **k: done.append(a[3].seed) or fit(*a, **k))
    return done


def test_the_same_run_is_trained_once_and_another_one_anew(data, trainings):
    first, history = training.fit_or_load(SPEC, data)
    again, loaded = training.fit_or_load(SPEC, data)
    assert torch.equal(first.head.linear.weight, again.head.linear.weight) and not again.training
    pd.testing.assert_frame_equal(loaded.epochs, history.epochs)
    read = replace(data, table=data.table.assign(text="words"))  # this model does not read
    fewer, seed = data.select(np.arange(len(data)) != 0), replace(SPEC, config=replace(SPEC.config, seed=1))
    for spec, photos, trained in ((SPEC, read, 1), (SPEC, fewer, 2), (seed, data, 3)):
        training.fit_or_load(spec, photos)
        assert len(trainings) == trained
    other = SPEC.build(data.classes)
    other.head.linear.weight.data += 1
    training.fit_once(other, data.split("train", 48), data.split("val", 48), SPEC.config)
    assert len(trainings) == 4, "other weights"


def test_a_training_outlives_a_checkpoint_that_cannot_be_written(data, tmp_path, trainings):
    spec = replace(SPEC, config=replace(SPEC.config, mode="finetune", augment="light"))
    with pytest.raises(UserError, match=f"{tmp_path}: not a regular file"):
        training.fit_or_load(spec, data, tmp_path)  # a folder
    assert len(list(cache_dir("partial").iterdir())) == 1
    _, history = training.fit_or_load(spec, data, tmp_path / "model.safetensors")
    assert history.epochs["epoch"].tolist() == [1, 2, 3]
    assert not list(cache_dir("partial").iterdir()), "dropped once the checkpoint is there"


def test_a_file_that_another_training_made_is_replaced(data, tmp_path, trainings):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"cut off")
    for seed in (0, 1, 1):
        trained, history = training.fit_or_load(replace(SPEC, config=replace(SPEC.config, seed=seed)), data, path)
    assert trainings == [0, 1]
    model, again, facts = training.load_checkpoint(path)
    assert facts["spec"]["config"]["seed"] == 1 and facts["size"] == 48 and model.classes == data.classes
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in trained.state_dict().items())
    pd.testing.assert_frame_equal(again.epochs, history.epochs)


def test_heads_share_the_encoders_and_nothing_else(small_model, data, train, val, trainings):
    model = small_model()
    parts = [training.encode(model, split) for split in (train, val)]
    before = model.head.linear.weight.clone()
    heads = [training.fit_head(model, *parts, replace(SPEC.config, seed=seed))[0] for seed in (0, 1, 0)]
    assert trainings == [0, 1], "the third was loaded"
    assert torch.equal(model.head.linear.weight, before) and heads[0].image_encoder is model.image_encoder
    assert torch.equal(heads[0].head.linear.weight, heads[2].head.linear.weight)
    assert not torch.equal(heads[0].head.linear.weight, heads[1].head.linear.weight)
    assert np.allclose(training.evaluate(heads[0], val).probs, training.evaluate(heads[0], parts[1]).probs, atol=1e-4)
    alone = small_model()
    training.fit(alone, *parts, SPEC.config)
    assert torch.equal(alone.head.linear.weight, heads[0].head.linear.weight)


def test_reference_runs_take_what_the_profile_and_the_caller_say():
    probe = training.reference("probe", "synthetic", "", "fast", 3, "text", options={"missing": "prior"}, epochs=2)
    assert (probe.root, probe.model, probe.model_options["missing"]) == (None, "text", "prior")
    assert (probe.config.mode, probe.config.epochs, probe.config.seed) == ("frozen", 2, 3)
    nts = training.reference("nts", profile_name="full", size=96)
    assert (nts.model, nts.size, nts.config.train_size, nts.model_options["freeze"]) == ("nts", 96, 96, False)


def test_a_bootstrap_sample_draws_training_images_only(data):
    sample = training.resample(data, 5, seed=0)
    train = sample.table[sample.table["split"] == "train"]
    assert len(train) == 5 * 24 and train["image"].nunique() <= 24
    rest = [given.table.loc[given.table["split"] == "val", "image"].tolist() for given in (sample, data)]
    assert rest[0] == rest[1]
    assert not training.resample(data, 5, seed=1).table.equals(sample.table)


def test_a_change_of_any_kind_of_model_makes_another_training(data, monkeypatch):
    """A gallery or a matcher that had been prepared by other code was loaded."""
    asked, fingerprint = [], runs.code_fingerprint
    monkeypatch.setattr(runs, "code_fingerprint", lambda *names: asked.append(names) or fingerprint(*names))
    training.fit_or_load(SPEC, data)
    read = {path.name for path in sources(*asked[0])}
    assert {"loop.py", "matching.py", "neighbours.py", "gallery.py", "fusion.py", "registry.py", "lca.py"} <= read
