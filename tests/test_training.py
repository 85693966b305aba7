"""The loop on a small real data set of drawn pictures: learning, resuming, checkpoints, several processes."""

import os
import shutil
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from retailkit import models, training
from retailkit.config import UsageError, UserError
from retailkit.data.table import COLUMNS, ProductData
from retailkit.training import TrainConfig, TrainingError, TrainSpec

COLOURS = {"blue": (30, 60, 200), "green": (30, 180, 60), "red": (200, 40, 40)}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RETAILKIT_CACHE", str(tmp_path / "cache"))


def draw(folder: Path, per_split: dict[str, int]) -> ProductData:
    """Pictures of one colour a class, with noise: learnable, but not by a model that never looks."""
    rng, rows = np.random.default_rng(0), []
    for label, colour in COLOURS.items():
        for split, count in per_split.items():
            for i in range(count):
                path = folder / f"{label}_{split}_{i}.png"
                noise = rng.normal(0, 40, (48, 48, 3))
                Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)).save(path)
                rows.append({"image": str(path), "label": label, "split": split})
    table = pd.DataFrame(rows).reindex(columns=COLUMNS).fillna("")
    return ProductData("drawn", table, sorted(COLOURS), {})


@pytest.fixture
def data(tmp_path):
    (tmp_path / "pictures").mkdir()
    return draw(tmp_path / "pictures", {"train": 8, "val": 4})


def small_model(data, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return models.build("image", data.classes, backbone="shufflenet_v2_x1_0", weights=None)


FROZEN = TrainConfig(epochs=30, batch_size=8, lr=1e-2)
TUNED = TrainConfig(mode="finetune", epochs=3, batch_size=8, encoder_lr=1e-3, augment="light", bf16=False)


def test_frozen_training_learns_and_leaves_the_encoder_alone(data):
    model = small_model(data)
    before = {k: v.clone() for k, v in model.image_encoder.state_dict().items()}
    history = training.fit(model, data.split("train", 48), data.split("val", 48), FROZEN)
    assert training.evaluate(model, data.split("val", 48)).top1 > 0.9
    assert len(history.epochs) == 30 and history.epochs["loss"].iloc[-1] < history.epochs["loss"].iloc[0]
    after = model.image_encoder.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_a_frozen_trunk_is_computed_fast_while_other_parts_learn_and_with_the_same_result(data, monkeypatch):
    def trained():
        model = small_model(data).freeze()
        learners = []
        loop = training._Loop.__init__
        monkeypatch.setattr(training._Loop, "__init__", lambda own, m, *rest: learners.append(m) or loop(own, m, *rest))
        history = training.fit(model, data.split("train", 48), data.split("val", 48), replace(TUNED, ema=0.5))
        monkeypatch.setattr(training._Loop, "__init__", loop)
        return model, learners[0], history

    fast, learner, history = trained()
    assert "forward_map" in vars(learner.image_encoder), "the learner computes maps in another way"
    assert "forward_map" not in vars(fast.image_encoder), "the model itself does not"
    monkeypatch.setattr(training, "_with_fast_encoder", lambda model, config: model)
    plain, learner, expected = trained()
    assert learner is plain
    np.testing.assert_allclose(history.epochs["loss"], expected.epochs["loss"], rtol=1e-3)
    probs = [training.evaluate(model, data.split("val", 48)).probs for model in (fast, plain)]
    np.testing.assert_allclose(*probs, atol=1e-3)


def test_lca_learns_on_kept_feature_maps(data):
    """What is kept of frozen encoders are maps, so that the layer inside the pooling learns as well."""
    model = models.build("lca", data.classes, backbone="shufflenet_v2_x1_0", weights=None, width=16)
    before = model.pooling.fc.weight.detach().clone()
    training.fit(model, data.split("train", 96), data.split("val", 96), replace(FROZEN, epochs=15))
    encoded = training.encode(model, data.split("val", 96))
    assert encoded.image.values.shape == (12, 1024, 3, 3)
    assert not torch.equal(before, model.pooling.fc.weight)
    kept, anew = training.evaluate(model, encoded), training.evaluate(model, data.split("val", 96))
    assert np.allclose(kept.probs, anew.probs, atol=1e-5) and anew.top1 > 0.6


def test_features_encoded_ahead_leave_only_heads_to_train(data, monkeypatch):
    network = {"backbone": "shufflenet_v2_x1_0", "weights": None}
    spec = TrainSpec("drawn", model_options=network, size=48, config=replace(FROZEN, epochs=2))
    training.encode_ahead(spec, data)
    monkeypatch.setattr(training, "encode", None)
    model, _ = training.fit_or_load(spec, data)
    kept = training.encode_cached(model, data.split("val", 48), 1, spec.config)
    assert training.evaluate(model, kept).n == 12
    with pytest.raises(TypeError, match="not callable"):
        training.fit_or_load(replace(spec, size=64), data)


def test_a_head_learns_from_kept_features_as_from_pictures(data):
    config = replace(FROZEN, epochs=5)
    one, two = small_model(data), small_model(data)
    two.load_state_dict(one.state_dict())
    training.fit(one, data.split("train", 48), data.split("val", 48), config)
    kept = [training.encode_cached(two, data.split(name, 48), 1, config) for name in ("train", "val")]
    training.fit(two, *kept, config)
    assert torch.equal(one.head.linear.weight, two.head.linear.weight)
    assert kept[0].select(np.array([5, 2])).rows.tolist() == [5, 2]
    with pytest.raises(UsageError, match="needs pictures"):
        training.fit(two, *kept, TUNED)


def test_training_reads_an_outline_only_where_augmentation_may_ask_for_it(data):
    data.table["mask"] = str(Path(data.table["image"][0]).with_name("nowhere.png"))
    assert training.evaluate(small_model(data), data.split("val", 48)).n == 12
    with pytest.raises(UserError, match="nowhere"):
        training.fit(small_model(data), data.split("train", 48), None, TUNED)


def test_nts_learns_where_to_look_and_not_on_kept_features(data):
    model = models.build("nts", data.classes, backbone="shufflenet_v2_x1_0", weights=None, propose=3, parts=1)
    before = model.pooling.navigator.down1.weight.detach().clone()
    tuned = replace(TUNED, epochs=1, batch_size=23)  # 24 pictures: the last batch holds one
    history = training.fit(model, data.split("train", 96), data.split("val", 96), tuned)
    assert np.isfinite(history.epochs["loss"]).all() and not torch.equal(before, model.pooling.navigator.down1.weight)
    with pytest.raises(UsageError, match="mode='finetune'"):
        training.fit(model, data.split("train", 96), None, FROZEN)


def test_finetuning_changes_the_encoder_and_lowers_the_loss(data):
    model = small_model(data)
    before = next(model.image_encoder.parameters()).clone()
    history = training.fit(model, data.split("train", 48), None, TUNED)
    assert not torch.equal(before, next(model.image_encoder.parameters()))
    assert history.epochs["loss"].iloc[-1] < history.epochs["loss"].iloc[0]
    assert not model.training


def test_the_same_seed_gives_the_same_weights(data):
    runs = []
    for _ in range(2):
        model = small_model(data)
        training.fit(model, data.split("train", 48), None, replace(TUNED, epochs=1))
        runs.append(torch.cat([p.flatten() for p in model.parameters()]))
    assert torch.equal(*runs)


def test_training_does_not_touch_the_callers_random_numbers(data):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    training.fit(small_model(data), data.split("train", 48), None, replace(FROZEN, epochs=2))
    assert torch.equal(torch.rand(3), expected)


def test_the_best_epoch_is_kept(data, monkeypatch):
    model = small_model(data)
    history = training.fit(model, data.split("train", 48), data.split("val", 48), FROZEN)
    best = history.epochs["val_top1"].max()
    assert history.epochs.set_index("epoch").loc[history.best_epoch, "val_top1"] == best
    assert training.evaluate(model, data.split("val", 48)).top1 == pytest.approx(best)


def test_patience_ends_a_training_after_as_many_epochs_without_a_better_one(data, tmp_path):
    config = replace(FROZEN, patience=2, lr=0.0)
    splits = data.split("train", 48), data.split("val", 48)
    history = training.fit(small_model(data), *splits, config)
    assert history.best_epoch == 1 and history.epochs["epoch"].tolist() == [1, 2, 3]
    config, resume = replace(TUNED, patience=1, lr=0.0, encoder_lr=0.0), tmp_path / "state.pt"
    before = training.fit(small_model(data), *splits, config, resume)
    again = training.fit(small_model(data), *splits, config, resume)  # killed before the checkpoint was written
    assert len(again.epochs) == len(before.epochs) == before.best_epoch + 1


def test_two_seeds_share_no_augmented_view(data):
    """The second view of one seed was the first of the next."""
    model, views = small_model(data), {}
    pictures = data.split("train", 48)
    pictures = pictures.with_options(augment=training.AUGMENTATIONS["light"](48))
    for seed in (0, 1):
        seen = training.encode_cached(model, pictures, 2, replace(FROZEN, seed=seed)).image.values
        views |= {(seed, view): part for view, part in enumerate(seen.chunk(2))}
    assert not torch.equal(views[0, 1], views[1, 0])
    assert not torch.equal(views[0, 0], views[0, 1])


def test_rounded_encoders_make_no_ties(data, monkeypatch):
    """What encoders say may be rounded to bfloat16; logits in it would tie, and the first class would win."""
    model = small_model(data)
    kept, classify = [], model.classify

    def spy(image, text):
        kept.append(classify(image, text))
        return kept[-1]

    monkeypatch.setattr(model, "classify", spy)
    monkeypatch.setattr(training, "_computes_bf16", lambda kind: True)
    training.evaluate(model, data.split("val", 48), bf16=True)
    assert all(logits.dtype == torch.float32 for logits in kept) and kept


def test_weight_averaging_gives_other_weights(data):
    plain, averaged = small_model(data), small_model(data)
    training.fit(plain, data.split("train", 48), None, TUNED)
    training.fit(averaged, data.split("train", 48), None, replace(TUNED, ema=0.9))
    assert not torch.equal(plain.head.linear.weight, averaged.head.linear.weight)


def test_evaluation_does_not_depend_on_the_batch_size_and_restores_the_mode(data):
    model = small_model(data).train()
    one = training.evaluate(model, data.split("val", 48), batch_size=1)
    many = training.evaluate(model, data.split("val", 48), batch_size=12)
    assert np.allclose(one.probs, many.probs, atol=1e-5) and model.training


def test_a_loss_that_is_not_a_number_stops_with_the_step(data, monkeypatch, tmp_path):
    monkeypatch.setitem(training.criterion.__globals__["CRITERIA"], "broken", lambda z, y: z.sum() * float("nan"))
    with pytest.raises(TrainingError, match=r"loss is nan at step 1 \(epoch 1\); lower lr"):
        training.fit(small_model(data), data.split("train", 48), None, replace(TUNED, criterion="broken"))


def test_an_interrupted_run_goes_on_and_ends_with_the_same_weights(data, tmp_path, monkeypatch):
    whole = small_model(data)
    training.fit(whole, data.split("train", 48), data.split("val", 48), TUNED)

    state, stopped = tmp_path / "state.pt", small_model(data)
    real_epoch = training._Loop._epoch

    def interrupted(loop, epoch):
        if epoch == 2:
            raise KeyboardInterrupt
        return real_epoch(loop, epoch)

    monkeypatch.setattr(training._Loop, "_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        training.fit(stopped, data.split("train", 48), data.split("val", 48), TUNED, resume=state)
    monkeypatch.setattr(training._Loop, "_epoch", real_epoch)

    before = torch.load(state, weights_only=True)["seconds"]
    resumed = small_model(data, seed=9)  # other weights: all must come from the file
    history = training.fit(resumed, data.split("train", 48), data.split("val", 48), TUNED, resume=state)
    assert history.epochs["epoch"].tolist() == [1, 2, 3] and history.seconds > before > 0
    for name, value in whole.state_dict().items():
        assert torch.allclose(value.float(), resumed.state_dict()[name].float(), atol=1e-6), name


def test_a_training_outlives_a_checkpoint_that_cannot_be_written(data, tmp_path, monkeypatch):
    spec = TrainSpec(model_options={"backbone": "shufflenet_v2_x1_0", "weights": None}, size=48, config=TUNED)
    with pytest.raises(UserError, match=f"{tmp_path}: cannot be written"):
        training.fit_or_load(spec, data, tmp_path)  # a folder
    monkeypatch.setattr(training._Loop, "_epoch", lambda *_: pytest.fail("trained again"))
    _, history = training.fit_or_load(spec, data, tmp_path / "model.safetensors")
    assert history.epochs["epoch"].tolist() == [1, 2, 3]
    assert not list(training.cache_dir("partial").glob(f"{spec.key(data)}*"))


def test_worse_masks_train_another_model(data, tmp_path):
    """Augmentation of packshots cuts products out by their masks."""
    mask = tmp_path / "mask.png"
    Image.new("L", (48, 48), 255).save(mask)
    masked = replace(data, table=data.table.assign(mask=str(mask)))
    keys = {TrainSpec().key(data), TrainSpec().key(masked)}
    Image.new("L", (48, 40), 255).save(mask)
    assert len(keys | {TrainSpec().key(masked)}) == 3


def test_fit_or_load_trains_once_and_again_when_the_data_change(data):
    spec = TrainSpec(model_options={"backbone": "shufflenet_v2_x1_0", "weights": None}, size=48, config=FROZEN)
    first, history = training.fit_or_load(spec, data)
    again, loaded = training.fit_or_load(spec, data)
    assert torch.equal(first.head.linear.weight, again.head.linear.weight)
    pd.testing.assert_frame_equal(loaded.epochs, history.epochs)
    fewer = data.select(np.arange(len(data)) != 0)
    assert spec.key(fewer) != spec.key(data)
    assert replace(spec, config=replace(FROZEN, seed=1)).key(data) != spec.key(data)


def test_data_copied_elsewhere_are_the_same_data_and_a_changed_picture_is_not(data, tmp_path):
    """Archives, clones and copies give files new times."""
    copies = [shutil.copyfile(path, tmp_path / Path(path).name) for path in data.table["image"]]
    copied = replace(data, table=data.table.assign(image=[str(path) for path in copies]))
    assert TrainSpec().key(copied) == TrainSpec().key(data)
    picture = copies[0].read_bytes()
    copies[0].write_bytes(picture[:-20] + bytes([picture[-20] ^ 1]) + picture[-19:])
    assert TrainSpec().key(copied) != TrainSpec().key(data)


def test_a_checkpoint_holds_all_that_is_needed(data, tmp_path):
    model = small_model(data)
    history = training.fit(model, data.split("train", 48), None, replace(FROZEN, epochs=2))
    training.save_checkpoint(model, tmp_path / "model.safetensors", history, size=48)
    loaded, _, facts = training.load_checkpoint(tmp_path / "model.safetensors")
    images = torch.rand(2, 3, 48, 48)
    assert torch.allclose(model(images), loaded(images), atol=1e-4)
    assert loaded.classes == data.classes and facts["size"] == 48


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_a_file_that_is_no_checkpoint_is_named(tmp_path, content):
    path = tmp_path / "model.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors: (no such|not a retailkit) checkpoint"):
        training.load_checkpoint(path)


def test_a_checkpoint_with_the_weights_of_another_model_is_named(data, tmp_path):
    model = small_model(data)
    history = training.fit(model, data.split("train", 48), None, replace(FROZEN, epochs=1))
    model.build_args = model.build_args | {"backbone": "resnet18"}
    path = training.save_checkpoint(model, tmp_path / "model.safetensors", history)
    with pytest.raises(UserError, match=r"model\.safetensors: its weights are those of another model"):
        training.load_checkpoint(path)


def test_a_label_the_checkpoint_never_saw_is_named(data):
    table = data.table.copy()
    table.loc[3, "label"] = "violet"
    strange = ProductData("strange", table, [*data.classes, "violet"], {})
    with pytest.raises(UserError, match=r"_train_3\.png: label 'violet' is unknown to this checkpoint of 3 classes"):
        training.check_labels(small_model(data), strange)


def test_unknown_names_are_usage_errors():
    with pytest.raises(UsageError, match="did you mean 'frozen'"):
        TrainConfig(mode="frozn")
    with pytest.raises(UsageError, match="unknown augmentation"):
        TrainConfig(augment="wild")


def test_a_full_disk_keeps_the_old_checkpoint(data, tmp_path):
    """A real limit on file size in a process of its own, as a full disk would give."""
    path = tmp_path / "model.safetensors"
    model, history = small_model(data), training.History(pd.DataFrame(), 0, 0.0)
    training.save_checkpoint(model, path, history, note="old")
    script = textwrap.dedent(
        f"""
        import resource, signal
        import pandas as pd
        from retailkit import models, training
        from retailkit.config import UserError
        model, history, _ = training.load_checkpoint({str(path)!r})
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            training.save_checkpoint(model, {str(path)!r}, history, note="new")
        except UserError as error:
            print("CLEAR", error)
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert "CLEAR" in done.stdout and "model.safetensors: cannot be written" in done.stdout, done.stderr
    assert training.load_checkpoint(path)[2]["note"] == "old"
    assert [p.name for p in tmp_path.glob("*model*")] == ["model.safetensors"]


def test_two_processes_share_the_gradients(data, tmp_path):
    """Both ranks end with the same weights although each saw other images."""
    script = tmp_path / "two.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys
            from pathlib import Path
            import torch
            sys.path.insert(0, sys.argv[1])
            from test_training import TUNED, draw, small_model
            from dataclasses import replace
            from retailkit import training
            place = Path(sys.argv[2])
            place.mkdir(exist_ok=True)
            data = draw(place, {"train": 8})
            model = small_model(data)
            training.fit(model, data.split("train", 48), None, replace(TUNED, epochs=1, batch_size=4))
            weights = torch.cat([p.detach().flatten() for p in model.parameters()])
            everyone = [torch.empty_like(weights) for _ in range(2)]
            torch.distributed.all_gather(everyone, weights)
            print("SAME" if torch.equal(*everyone) else "DIFFERENT", flush=True)
            torch.distributed.destroy_process_group()
            """
        )
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29571"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "RETAILKIT_DEVICE": "cpu"}
    folders = [str(Path(__file__).parent), str(tmp_path / "shared")]
    done = subprocess.run(
        [*command, str(script), *folders], capture_output=True, text=True, env=environment, timeout=240
    )
    assert done.stdout.count("SAME") == 2, done.stdout + done.stderr[-2000:]
