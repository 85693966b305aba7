"""The loop: what learns, what is kept, interrupts, devices; evaluation."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from retailkit import losses, training
from retailkit.config import UsageError, UserError
from retailkit.data.table import Batch
from retailkit.training import TrainConfig, TrainingError, encoded
from retailkit.training.loop import computes_bf16, warm_cosine

FROZEN = TrainConfig(epochs=30, batch_size=8, lr=1e-2)
TUNED = TrainConfig(mode="finetune", epochs=3, batch_size=8, encoder_lr=1e-3, augment="light")


def same(one, other, atol=0.0):
    """Say whether two modules have the same weights."""
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.allclose(a.float(), b.float(), rtol=0, atol=atol) for a, b in pairs)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_frozen_training_learns_and_leaves_the_encoder_alone(small_model, train, val, optimizer):
    model = small_model()
    history = training.fit(model, train, val, replace(FROZEN, optimizer=optimizer))
    result, epochs = training.evaluate(model, val), history.epochs.set_index("epoch")
    assert result.top1 > 0.9 and not model.training
    assert len(epochs) == 30 and epochs["loss"].iloc[-1] < epochs["loss"].iloc[0]
    assert epochs.loc[history.best_epoch, "val_top1"] == epochs["val_top1"].max()
    assert result.top1 == pytest.approx(epochs["val_top1"].max()), "the best epoch is kept"
    assert same(model.image_encoder, small_model().image_encoder)


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("optimizer", "adam", "did you mean 'adamw'"),
        ("epochs", 0, "at least 1"),
        ("seed", -1, "seed=-1"),
        ("seed", 10**20, "seed=1000"),
    ],
)
def test_options_out_of_range_are_named(option, value, says):
    with pytest.raises(UsageError, match=says):
        TrainConfig(**{option: value})


def test_lca_learns_on_kept_feature_maps(small_model, data):
    """What is kept of frozen encoders are maps, so that the layer inside the pooling learns as well."""
    model = small_model(name="lca")
    train, val = data.split("train", 96), data.split("val", 96)
    training.fit(model, train, val, replace(FROZEN, epochs=15))
    features = training.encode(model, val)
    assert features.image.values.shape == (12, 1024, 3, 3)
    assert not same(model.pooling.fc, small_model(name="lca").pooling.fc)
    kept, anew = training.evaluate(model, features), training.evaluate(model, val)
    assert np.allclose(kept.probs, anew.probs, atol=1e-4) and anew.top1 > 0.6


LAST_BLOCKS = {"name": "lca", "backbone": "efficientnet_lite0", "learn": 2}


def test_the_last_blocks_learn_above_kept_maps(small_model, data):
    model, fresh = (small_model(**LAST_BLOCKS).eval() for _ in range(2))
    images, whole = torch.rand(2, 3, 64, 64), small_model(**LAST_BLOCKS | {"learn": 0}).eval()
    with torch.no_grad():
        assert torch.allclose(model(images), whole(images), atol=1e-6), "the same network in two parts"
    training.fit(model, data.split("train", 48), None, replace(FROZEN, epochs=1, encoder_lr=1e-3))
    assert same(model.image_encoder, fresh.image_encoder)
    assert not any(same(*pair) for pair in zip(model.pooling.learned, fresh.pooling.learned, strict=True))


def test_nts_learns_where_to_look_and_not_on_kept_features(small_model, data):
    model = small_model(name="nts", propose=3, parts=1)
    train, val, before = data.split("train", 96), data.split("val", 96), copy.deepcopy(model.pooling.navigator)
    tuned = replace(TUNED, epochs=1, batch_size=23)  # 24 images: the last batch holds one
    history = training.fit(model, train, val, tuned)
    assert np.isfinite(history.epochs["loss"]).all() and not same(before, model.pooling.navigator)
    with pytest.raises(UsageError, match="mode='finetune'"):
        training.fit(model, train, None, FROZEN)
    kept = training.evaluate(model, training.encode(model, val, pooled=True))
    assert np.allclose(kept.probs, training.evaluate(model, val).probs, atol=1e-4)


def test_finetuning_changes_the_encoder_lowers_the_loss_and_repeats_itself(small_model, train):
    model, again, averaged, fixed = small_model(), small_model(), small_model(), small_model(freeze=True)
    before, state = next(model.image_encoder.parameters()).clone(), torch.get_rng_state()
    history = training.fit(model, train, None, TUNED)
    assert torch.equal(torch.get_rng_state(), state), "the caller's random numbers are untouched"
    assert not torch.equal(before, next(model.image_encoder.parameters())) and not model.training
    assert history.epochs["loss"].iloc[-1] < history.epochs["loss"].iloc[0]
    training.fit(again, train, None, TUNED)
    assert same(model, again)
    training.fit(averaged, train, None, replace(TUNED, ema=0.9))
    assert not same(model.head, averaged.head)
    training.fit(fixed, train, None, TUNED)
    assert torch.equal(before, next(fixed.image_encoder.parameters())), "asked to stay frozen below parts that learn"


def test_training_reads_a_mask_only_where_augmentation_may_ask_for_it(small_model, data, train, val):
    data.table["mask"] = str(Path(data.table["image"][0]).with_name("nowhere.png"))
    assert training.evaluate(small_model(), val).n == 12
    with pytest.raises(UserError, match="nowhere"):
        training.fit(small_model(), train, None, TUNED)


def test_evaluation_is_what_the_model_says_image_by_image_and_restores_the_mode(small_model, val):
    model = small_model()
    with torch.no_grad():
        alone = [model.eval()(val[i].image[None]).softmax(1)[0] for i in range(len(val))]
    result = training.evaluate(model.train(), val)
    assert np.allclose(result.probs, torch.stack(alone), atol=1e-5) and model.training
    assert result.indices.tolist() == val.rows.tolist()


def test_the_rate_rises_and_falls_to_zero():
    rate = warm_cosine(100)
    rates = [rate(step) for step in range(101)]
    assert rates[:10] == pytest.approx(np.arange(1, 11) / 10) and rates[100] == pytest.approx(0.0)
    assert (np.diff(rates[10:]) <= 0).all() and rates[55] == pytest.approx(0.5)


def test_a_loss_that_is_not_a_number_stops_with_the_step(small_model, train, monkeypatch):
    monkeypatch.setitem(losses.CRITERIA, "broken", lambda z, y: z.sum() * float("nan"))
    with pytest.raises(TrainingError, match=r"loss is nan at step 1 \(epoch 1\); lower lr"):
        training.fit(small_model(), train, None, replace(TUNED, criterion="broken"))


@pytest.mark.parametrize("kind", [{}, LAST_BLOCKS], ids=["network", "last blocks"])
def test_an_interrupted_run_ends_with_the_same_weights(small_model, train, val, tmp_path, monkeypatch, kind):
    config = replace(TUNED, mode="frozen", augment="none") if kind else TUNED
    whole, state, calls = small_model(**kind), tmp_path / "state.pt", []
    training.fit(whole, train, val, config)

    def interrupted(logits, labels, **_):
        calls.append(1)
        if len(calls) == 7:  # three steps per epoch: in the third one
            raise KeyboardInterrupt
        return losses.label_smoothing(logits, labels)

    monkeypatch.setitem(losses.CRITERIA, "label_smoothing", interrupted)
    with pytest.raises(KeyboardInterrupt):
        training.fit(small_model(**kind), train, val, config, resume=state)
    before = torch.load(state, weights_only=True)["seconds"]
    resumed = small_model(**kind, seed=0 if kind else 9)  # other weights: all that learn come from the file
    history = training.fit(resumed, train, val, config, resume=state)
    assert history.epochs["epoch"].tolist() == [1, 2, 3] and history.seconds > before > 0
    assert same(whole, resumed, atol=1e-6)


def test_the_loop_trains_on_the_device_that_was_asked_for(small_model, train, val, monkeypatch):
    """RETAILKIT_DEVICE=cuda:1 was taken for cuda:0 by the loop."""
    asked = []
    move = torch.nn.Module.to

    def to(module, *where, **options):
        asked.extend(str(place) for place in where)
        return move(module, **options)

    monkeypatch.setattr(encoded, "device", lambda: "cuda:1")
    monkeypatch.setattr(torch.nn.Module, "to", to)
    monkeypatch.setattr(Batch, "to", lambda batch, where: asked.append(f"batch {where}") or batch)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    training.fit(small_model(), train, val, replace(TUNED, epochs=1))
    assert set(asked) == {"cuda:1", "batch cuda:1", "cpu"} and asked[-1] == "cpu"


@pytest.mark.parametrize(
    ("kind", "units", "expected"), [("cpu", True, False), ("cuda", False, False), ("cuda", True, True)]
)
def test_bfloat16_is_for_gpus_that_have_it(kind, units, expected, monkeypatch):
    """GPUs without bfloat16 units were taken to have them, and CPUs with them rounded what was published."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: units or including_emulation)
    assert computes_bf16(torch.device(kind)) is expected


def test_a_damaged_state_of_an_interrupted_run_is_made_again(small_model, train, tmp_path, capsys):
    """The file ended the same command with a traceback, again and again."""
    whole, state, config = small_model(), tmp_path / "state.pt", replace(TUNED, epochs=1)
    training.fit(whole, train, None, config, resume=state)
    content, kept = state.read_bytes(), torch.load(state, weights_only=True)
    for damaged in (content[:1000], [1, 2], kept | {"rows": None}, kept | {"schedule": {}, "optimizer": {}}):
        state.write_bytes(damaged) if isinstance(damaged, bytes) else torch.save(damaged, state)
        again = small_model()
        training.fit(again, train, None, config, resume=state)
        assert "state.pt: the interrupted training cannot be read" in capsys.readouterr().out
        assert same(whole, again)
