"""How fast models learn."""

from contextlib import contextmanager

import pytest
import torch

from retailkit import data, models, training


@contextmanager
def plain_autocast(device_type, bf16):
    with torch.autocast(device_type, torch.bfloat16, enabled=bf16):
        yield


@pytest.mark.benchmark
def test_a_step_of_fine_tuning(tmp_path, compare, quick, monkeypatch):
    """Wide depthwise convolutions in float32, against all of them in bfloat16."""
    shop = data.load("synthetic", tmp_path, per_class=(1, 0, 0), families=4 if quick else 8, size=224)
    images = shop.split("train", 160 if quick else 224)
    batch = training.collate([images[i] for i in range(len(images))])
    torch.manual_seed(0)
    model = models.build("image", shop.classes, backbone="efficientnet_lite2").train()
    step = training.TrainingStep(model, training.criterion("cross_entropy"), bf16=True)
    ours = training._autocast

    def gradient(autocast):
        monkeypatch.setattr(training, "_autocast", autocast)
        model.zero_grad()
        torch.manual_seed(0)
        step(batch).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    def angle(a, b):
        return 1 - torch.nn.functional.cosine_similarity(a, b, dim=0)

    gradient(plain_autocast), gradient(ours)
    case = f"a step on {len(images)} images of {images.size} px, efficientnet_lite2"
    compare("train", case, "bfloat16 throughout", lambda: gradient(plain_autocast), lambda: gradient(ours), angle)


@pytest.mark.benchmark
def test_frozen_features(tmp_path, compare, quick, monkeypatch):
    """A head on features that are encoded once, against encoding the images again in each of the epochs."""
    monkeypatch.setenv("RETAILKIT_CACHE", str(tmp_path / "cache"))
    epochs = 2 if quick else 5
    shop = data.load("synthetic", tmp_path, per_class=(4, 0, 0), families=4, size=224)
    train = shop.split("train", 224)
    model = models.build("image", shop.classes, backbone="efficientnet_lite0")

    def encoding_each_time():
        for _ in range(epochs):
            training.encode(model, train, bf16=True)

    def once():
        training.fit(model, train, config=training.TrainConfig(mode="frozen", epochs=epochs))

    ratio = compare("train", f"{epochs} epochs of a head", "encoding anew", encoding_each_time, once, repeat=1)
    assert ratio > epochs / 2
