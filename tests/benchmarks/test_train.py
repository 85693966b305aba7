"""How fast models learn."""

import pytest
import torch

from retailkit import data, models, training
from retailkit.training import loop
from retailkit.training.encoded import load_batches


@pytest.mark.benchmark
@pytest.mark.usefixtures("own_cache")
def test_frozen_features(tmp_path, compare, quick):
    """A head on features that are encoded once, against encoding the images again in each of the epochs."""
    epochs = 2 if quick else 5
    shop = data.load("synthetic", tmp_path, per_class=(4, 0, 0), families=4, size=224)
    train = shop.split("train", 224)
    model = models.build("image", shop.classes, backbone="efficientnet_lite0").eval()

    def each_time():
        for _ in range(epochs):
            for batch in load_batches(train, 32):
                model.encode_image(batch.images)

    def once():
        training.fit(model, train, config=training.TrainConfig(mode="frozen", epochs=epochs))

    assert compare("train", f"{epochs} epochs of a head", "encoding anew", each_time, once, None, 1) > epochs / 2


def in_pytorchs_layout(steps):
    steps.model.to(memory_format=torch.contiguous_format)


def in_bfloat16(steps):
    steps.loss_of = torch.autocast("cpu", torch.bfloat16)(steps.loss_of)


def compiled(steps):
    steps.loss_of = torch.compile(steps.loss_of)


OTHER_WAYS = {
    "PyTorch's own layout of memory": in_pytorchs_layout,
    "bfloat16": in_bfloat16,
    "torch.compile, compiled before the clock starts": compiled,
}


@pytest.fixture
def batches(tmp_path):
    """Training images of 192 px of a small data set, in batches of up to 32."""
    shop = data.load("synthetic", tmp_path, per_class=(4, 0, 0), families=4, size=192)
    return load_batches(shop.split("train", 192), 32, shuffle=True)


def steps_of(batches, change=lambda steps: None):
    """Return a loop that fine-tunes, changed or as `training.fit` has it: float32, channels last."""
    torch.manual_seed(0)
    model = models.build("image", batches.dataset.classes, backbone="efficientnet_lite0")
    config = training.TrainConfig(mode="finetune", epochs=100)
    steps = loop._Loop(model.train(), batches, None, config, torch.device("cpu"), None)
    change(steps)
    return steps


@pytest.mark.benchmark
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("all_cores")
@pytest.mark.parametrize("other", OTHER_WAYS)
def test_a_step_of_fine_tuning(batches, compare, quick, other):
    batch, ways = next(iter(batches)), (steps_of(batches, OTHER_WAYS[other]), steps_of(batches))
    for steps in ways:
        steps._step(batch)  # memory is taken and, where it is, the network is compiled
    calls = [lambda steps=steps: steps._step(batch) for steps in ways]
    case = f"a step of {len(batch)} images of 192 px, efficientnet_lite0, float32, channels last"
    compare("train", case, other, *calls, agreement=None, repeat=3 if quick else 9)


@pytest.mark.benchmark
@pytest.mark.usefixtures("all_cores")
def test_reading_of_images_does_not_keep_training_waiting(batches, compare):
    steps, in_memory = steps_of(batches), list(batches)

    def epoch(batches):
        for batch in batches:
            steps._step(batch)

    case, ways = "an epoch of fine-tuning, images in memory", (lambda: epoch(batches), lambda: epoch(in_memory))
    assert compare("train", case, "images read from files", *ways, agreement=None, repeat=5) < 1.25
