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


def test_without_validation_photos_the_gallery_gives_the_threshold_and_gradients_reach_the_image(
    small_model, train, val
):
    model = small_model(name="gallery")
    training.fit(model, train)
    assert -1 < float(model.head.threshold) < 1
    images = torch.stack([val[i].image for i in range(2)])
    for method in ("gradcam", "integrated_gradients"):
        attr = saliency.attribute(model, images, torch.tensor([0, 1]), method)
        assert attr.shape == (2, 48, 48) and attr.abs().sum() > 0


def test_a_frozen_gallery_is_filled_and_loaded_again_and_not_fine_tuned(data, train):
    spec = TrainSpec(model="gallery", model_options=SMALL | {"freeze": True}, size=48)
    (first, _), (again, _) = (training.fit_or_load(spec, data) for _ in range(2))
    assert len(first.head.vectors) == len(train) and torch.equal(first.head.vectors, again.head.vectors)
    with pytest.raises(UsageError, match="mode='frozen'"):
        training.fit(first, train, config=TrainConfig(mode="finetune"))


def test_a_gallery_with_labels_that_it_has_no_class_for_is_no_checkpoint(small_model, train, tmp_path):
    model = small_model(name="gallery")
    history = training.fit(model, train)
    model.head.labels[0] = 99
    training.save_checkpoint(model, tmp_path / "m.safetensors", history, size=48)
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


TRAIN = ("train", "--root", "shop", "--model", "gallery", "--output")


@pytest.mark.parametrize("neighbours", [0, 3])
def test_a_product_is_added_and_recognised(shop, command, neighbours):
    def done(*words):
        code, out, err = command(*words, "--json")
        assert code == 0, err
        return json.loads(out.splitlines()[-1])

    train, more = (*TRAIN, "g.safetensors", "--neighbours", neighbours), ("--checkpoint", "more.safetensors")
    done(*train)
    before = (shop / "g.safetensors").read_bytes()
    photos = ("white/0.png", "white/1.png", "--checkpoint", "g.safetensors", "--output", "more.safetensors")
    facts = done("add", "white wine", *photos)
    assert (facts["new"], facts["added"], facts["products"]) == (True, 2, 4)
    assert facts["closest"] in ("blue", "green", "red") and (shop / "g.safetensors").read_bytes() == before
    assert command("predict", "white/2.png", "shop/val", *more, "--output", "a.csv")[0] == 0
    answers = pd.read_csv("a.csv")
    assert answers.loc[0, "label"] == "white wine" and not answers.loc[0, "unknown"]
    true = [path.split("/")[-2] for path in answers["image"][1:]]
    assert (answers["label"][1:] == true).mean() > 0.6 and answers["similarity"].between(-1, 1).all()
    facts = done("add", "white wine", "white", *more)
    assert (facts["new"], facts["added"], facts["known"], facts["photos"]) == (False, 1, 2, 3)
    for name in ("evaluate", "export"):
        done(name, "--root", "shop", "--split", "val", *more)
    assert done("explain", "white/2.png", *more, "--budget", "32")["label"] == "white wine"
    train = [word.replace("g.safetensors", "more.safetensors") for word in map(str, train)]
    code, _, err = command(*train)
    assert code == 2 and "more.safetensors: 3 photos were added to this gallery and would be lost" in err
    assert done(*train, "--force")["output"] == "replaced", "the same training does not take it for its own"


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
    assert command(*TRAIN, "g.safetensors")[0] == 0
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
