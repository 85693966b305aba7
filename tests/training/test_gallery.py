"""Gallery models from training to a product that is added: they work wherever a trained head does."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from retailkit import training
from retailkit.config import UsageError, UserError
from retailkit.explain import saliency
from retailkit.training import TrainConfig, TrainSpec

SMALL = {"backbone": "timm:test_resnet", "weights": None}


@pytest.mark.parametrize("neighbours", [0, 3])
def test_a_checkpoint_holds_the_gallery(small_model, train, val, tmp_path, neighbours):
    model = small_model(name="gallery", neighbours=neighbours)
    history = training.fit(model, train, val)
    training.save_checkpoint(model, tmp_path / "model.safetensors", history, size=48)
    loaded, _, _ = training.load_checkpoint(tmp_path / "model.safetensors")
    images = torch.stack([val[i].image for i in range(4)])
    assert torch.equal(model(images), loaded(images)) and len(loaded.head.vectors) == len(train)
    assert torch.equal(model.head.threshold, loaded.head.threshold) and float(model.head.threshold) > -1
    assert training.evaluate(loaded, val).top1 > 0.6, "three colours"


def test_gradients_reach_the_image(small_model, train, val):
    model = small_model(name="gallery")
    training.fit(model, train)
    images = torch.stack([val[i].image for i in range(2)])
    for method in ("gradcam", "integrated_gradients"):
        attr = saliency.attribute(model, images, torch.tensor([0, 1]), method)
        assert attr.shape == (2, 48, 48) and attr.abs().sum() > 0


def test_without_validation_photos_the_gallery_itself_gives_the_threshold(small_model, train):
    model = small_model(name="gallery")
    training.fit(model, train)
    assert -1 < float(model.head.threshold) < 1


def test_a_frozen_gallery_is_filled_and_loaded_again(data, train, val):
    spec = TrainSpec(model="gallery", model_options=SMALL | {"freeze": True}, size=48)
    first, _ = training.fit_or_load(spec, data)
    again, _ = training.fit_or_load(spec, data)
    assert len(first.head.vectors) == len(train) and torch.equal(first.head.vectors, again.head.vectors)


def test_a_gallery_is_not_fine_tuned(small_model, train):
    with pytest.raises(UsageError, match="mode='frozen'"):
        training.fit(small_model(name="gallery"), train, config=TrainConfig(mode="finetune"))


def test_a_gallery_with_labels_that_it_has_no_class_for_is_no_checkpoint(small_model, train, tmp_path):
    model = small_model(name="gallery")
    training.save_checkpoint(model, tmp_path / "m.safetensors", training.fit(model, train), size=48)
    model.head.labels[0] = 99
    training.save_checkpoint(model, tmp_path / "m.safetensors", training.History(pd.DataFrame(), 0, 0.0), size=48)
    with pytest.raises(UserError, match="its weights are those of another model"):
        training.load_checkpoint(tmp_path / "m.safetensors")


@pytest.fixture
def shop(data, tmp_path):
    """Photos of three colours in a folder per class, and of a fourth one outside."""
    for path, label, split in data.table[["image", "label", "split"]].itertuples(index=False):
        (tmp_path / "shop" / split / label).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "shop" / split / label)
    (tmp_path / "white").mkdir()
    for n in range(3):
        noise = np.random.default_rng(n).normal(235, 12, (48, 48, 3))
        Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8)).save(tmp_path / "white" / f"{n}.png")
    return tmp_path


ADD = ["add", "white wine", "white/0.png", "white/1.png"]


@pytest.mark.parametrize("neighbours", [0, 3])
def test_a_product_is_added_and_recognised(shop, command, neighbours):
    train = ["train", "--root", "shop", "--model", "gallery", "--neighbours", neighbours, "--output"]
    code, _, err = command(*train, "g.safetensors")
    assert code == 0, err
    before = (shop / "g.safetensors").read_bytes()
    code, out, err = command(*ADD, "--checkpoint", "g.safetensors", "--output", "more.safetensors", "--json")
    facts = json.loads(out.splitlines()[-1])
    assert code == 0 and (facts["new"], facts["added"], facts["products"]) == (True, 2, 4), err
    assert facts["closest"] in ("blue", "green", "red") and (shop / "g.safetensors").read_bytes() == before
    code, out, _ = command(
        "predict", "white/2.png", "shop/val", "--checkpoint", "more.safetensors", "--output", "a.csv"
    )
    answers = pd.read_csv("a.csv")
    assert code == 0 and answers.loc[0, "label"] == "white wine" and not answers.loc[0, "unknown"]
    true = [path.split("/")[-2] for path in answers["image"][1:]]
    assert (answers["label"][1:] == true).mean() > 0.6 and answers["similarity"].between(-1, 1).all()
    code, out, _ = command("add", "white wine", "white", "--checkpoint", "more.safetensors", "--json")
    facts = json.loads(out.splitlines()[-1])
    assert code == 0 and (facts["new"], facts["added"], facts["known"], facts["photos"]) == (False, 1, 2, 3)
    assert command("evaluate", "--root", "shop", "--split", "val", "--checkpoint", "more.safetensors")[0] == 0
    code, _, err = command("export", "--root", "shop", "--split", "val", "--checkpoint", "more.safetensors")
    assert code == 0, err
    line = ["explain", "white/2.png", "--checkpoint", "more.safetensors", "--budget", "32", "--json"]
    code, out, err = command(*line)
    assert code == 0 and json.loads(out.splitlines()[-1])["label"] == "white wine", err
    code, out, err = command(*train, "more.safetensors")
    assert code == 2 and "more.safetensors: 3 photos were added to this gallery and would be lost" in err
    code, out, err = command(*train, "more.safetensors", "--force")
    assert code == 0 and "output: replaced" in out, "the same training does not take it for its own"


BAD = {
    (): (2, "Missing"),
    ("wine", "white", "--checkpoint", "image.safetensors"): (2, "model 'image' has no gallery"),
    ("wine", "none.png", "--checkpoint", "g.safetensors"): (1, "none.png: no such photo"),
    ("wine", "broken.png", "--checkpoint", "g.safetensors"): (1, "broken.png: not an image that can be read"),
    ("wine", "white/0.png", "white/0.png", "--checkpoint", "none.safetensors"): (1, "no such checkpoint"),
    ("red", "shop/train/red", "--checkpoint", "g.safetensors"): (1, "the gallery holds these photos already"),
    ("wine", "shop/train/red", "--checkpoint", "g.safetensors"): (1, "the gallery holds this photo as 'red'"),
    (" ", "white", "--checkpoint", "g.safetensors"): (2, "no name of a product"),
    ("wine", "white", "--checkpoint", "g.safetensors", "--output", "white/g.safetensors"): (2, "lies in the data"),
}


def test_a_bad_call_ends_in_one_line_and_changes_nothing(shop, command, small_model):
    assert command("train", "--root", "shop", "--model", "gallery", "--output", "g.safetensors")[0] == 0
    nothing = training.History(pd.DataFrame(), 0, 0.0)
    training.save_checkpoint(small_model(), shop / "image.safetensors", nothing, size=48)
    (shop / "broken.png").write_text("no image")
    before = (shop / "g.safetensors").read_bytes()
    for words, (expected, part) in BAD.items():
        code, _, err = command("add", *words)
        assert (code, err.count("\n")) == (expected, 1) and part in err, err
    assert (shop / "g.safetensors").read_bytes() == before
    code, _, err = command("train", "--root", "shop", "--frozen", "--neighbours", "3", "--output", "x.safetensors")
    assert code == 2 and "unknown option of model 'image' 'neighbours'" in err
