"""Checkpoint files: what is in them, and what is said about bad ones."""

import subprocess
import sys
import textwrap

import pandas as pd
import pytest
import torch

from retailkit import training
from retailkit.config import UserError
from retailkit.data.table import ProductData
from retailkit.training import TrainConfig

NOTHING = training.History(pd.DataFrame(), 0, 0.0)


def test_a_checkpoint_holds_all_that_is_needed(small_model, train, tmp_path):
    model = small_model()
    history = training.fit(model, train, None, TrainConfig(epochs=2, batch_size=8))
    training.save_checkpoint(model, tmp_path / "model.safetensors", history, size=48)
    loaded, again, facts = training.load_checkpoint(tmp_path / "model.safetensors")
    images = torch.rand(2, 3, 48, 48)
    assert torch.allclose(model(images), loaded(images), atol=1e-4)
    assert loaded.classes == model.classes and facts["size"] == 48
    pd.testing.assert_frame_equal(again.epochs, history.epochs)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_a_file_that_is_no_checkpoint_is_named(tmp_path, content):
    path = tmp_path / "model.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors: (no such|not a retailkit) checkpoint"):
        training.load_checkpoint(path)


def test_a_checkpoint_with_the_weights_of_another_model_is_named(small_model, tmp_path):
    model = small_model()
    model.build_args = model.build_args | {"backbone": "resnet18"}
    path = training.save_checkpoint(model, tmp_path / "model.safetensors", NOTHING)
    with pytest.raises(UserError, match=r"model\.safetensors: its weights are those of another model"):
        training.load_checkpoint(path)


def test_a_label_the_checkpoint_never_saw_is_named(small_model, data):
    table = data.table.copy()
    table.loc[3, "label"] = "violet"
    strange = ProductData("strange", table, [*data.classes, "violet"], {})
    with pytest.raises(UserError, match=r"_train_3\.png: label 'violet' is unknown to this checkpoint of 3 classes"):
        training.with_classes(strange, small_model())


def test_a_full_disk_keeps_the_old_checkpoint(small_model, tmp_path):
    """A real limit on file size in a process of its own, as a full disk would give."""
    path = tmp_path / "model.safetensors"
    training.save_checkpoint(small_model(), path, NOTHING, note="old")
    script = textwrap.dedent(
        f"""
        import resource, signal
        from retailkit import training
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
