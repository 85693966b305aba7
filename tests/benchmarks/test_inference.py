"""Masked variants of one image through `Predictor`, against the loop that one writes without it.

That loop is float32 in PyTorch's own layout, in batches of 32; the same with our image encoder, which uses the
channels-last layout, is measured besides. The lite nets have their weights and a trained classifier; ResNet-50, whose
weights come with no package, has random ones.
"""

import copy

import pytest
import torch

from retailkit import data, models, training
from retailkit.inference import Predictor

# Backbone, size, how many times as fast. ResNet-50 gains less: its convolutions take all that the processor has.
CASES = [("efficientnet_lite0", 224, 3), ("efficientnet_lite2", 260, 3), ("resnet50", 224, 1.3)]
KEPT = 0.8  # of the image: enough that classes compete


def trained(backbone, shop, size):
    """A linear classifier trained on frozen features, so that probabilities mean something."""
    torch.manual_seed(0)
    model = models.build("image", shop.classes, backbone)
    training.fit(model, shop.split("train", size), config=training.TrainConfig(epochs=30))
    return model.eval()


@torch.no_grad()
def untrained(backbone, shop, size):
    """A network of random weights that tells images apart: real statistics, logits of standard deviation 1."""
    torch.manual_seed(0)
    model = models.build("image", shop.classes, backbone, weights=None)
    train = shop.split("train", size)
    images = torch.stack([train[i].image for i in range(0, len(train), 2)])
    for name, norm in model.named_modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.momentum = None
            if name.endswith("bn3"):  # timm starts with 0: every block would be switched off
                torch.nn.init.constant_(norm.weight, 0.25)
    model.train().image_encoder.forward_map(images)
    features = model.eval().encode_image(images)
    model.fit_scalers(features)
    model.head.linear.weight.div_(model.classify(features).std())
    return model


@pytest.mark.benchmark
@pytest.mark.usefixtures("all_cores")
@pytest.mark.parametrize(("backbone", "size", "target"), CASES)
def test_inference(tmp_path, compare_cpu, quick, monkeypatch, backbone, size, target):
    monkeypatch.setenv("RETAILKIT_CACHE", str(tmp_path / "cache"))
    count = 32 if quick else 64
    shop = data.load("synthetic", tmp_path, per_class=(4, 0, 1), families=4, size=size)
    model = (trained if "lite" in backbone else untrained)(backbone, shop, size)
    encoder, test = model.image_encoder, shop.split("test", size)
    image = test[0].image
    baseline = image.mean((1, 2), keepdim=True)
    cells = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(0)) < KEPT
    masks = torch.nn.functional.interpolate(cells.float(), (size, size)).bool()

    plain = copy.deepcopy(encoder.network).to(memory_format=torch.contiguous_format)  # training changed the layout

    @torch.inference_mode()
    def eager():
        probs = []
        for part in masks.split(32):
            variants = torch.where(part, image, baseline)
            maps = plain.forward_features((variants - encoder.mean) / encoder.std)
            scaled = (maps.mean((2, 3)) - model.head.scalers["image"].mean) / model.head.scalers["image"].std
            probs.append(model.head.linear(scaled).softmax(-1))
        return torch.cat(probs)

    @torch.inference_mode()
    def ours_in_eager():
        return torch.cat([model(torch.where(p, image, baseline)).softmax(-1) for p in masks.split(32)])

    predictor = Predictor(model, size)

    def fast():
        return predictor.classify(predictor.encode_perturbed(image, masks, baseline))

    def difference(a, b):
        return (a - b).abs().max()

    reference = eager()
    assert torch.allclose(reference, ours_in_eager(), atol=1e-4)
    assert reference.std(0).max() > 0.02, "the model does not mind the masks, so that agreement says nothing"
    assert difference(reference, fast()) <= 1e-3
    case = f"{count} masks, {backbone}, {size} px, {torch.get_num_threads()} threads"
    repeat = 1 if quick else 3
    compare_cpu("inference", case, "channels last, batches of 32", ours_in_eager, fast, difference, repeat, 1e-3)
    ratio = compare_cpu("inference", case, "PyTorch, float32, batches of 32", eager, fast, difference, repeat, 1e-3)
    assert ratio >= target
