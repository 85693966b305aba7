"""Masked variants of one image through `Predictor`, against the loop that one writes without it.

That loop is float32 in PyTorch's own layout, in batches of 32; the same with our image encoder, which uses the
channels-last layout, is measured besides. The lite nets have their weights and a trained classifier; ResNet-50, whose
weights come with no package, has random ones.
"""

import copy

import pytest
import torch

from retailkit import data, models, training
from retailkit.inference import Predictor, compiled

# Backbone, size, how many times as fast. ResNet-50 gains less: its convolutions take all that the processor has.
CASES = [("efficientnet_lite0", 224, 3), ("efficientnet_lite2", 260, 3), ("resnet50", 224, 1.3)]
KEPT = 0.8  # of the image: enough that classes compete


def trained(model, train):
    """A linear classifier trained on frozen features, so that probabilities mean something."""
    training.fit(model, train, config=training.TrainConfig(epochs=30))


@torch.no_grad()
def untrained(model, train):
    """A network of random weights that tells images apart: real statistics, logits of standard deviation 1."""
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


@pytest.mark.benchmark
@pytest.mark.usefixtures("all_cores", "own_cache")
@pytest.mark.parametrize(("backbone", "size", "target"), CASES)
def test_inference(tmp_path, compare_cpu, quick, backbone, size, target):
    count = 32 if quick else 64
    shop = data.load("synthetic", tmp_path, per_class=(4, 0, 1), families=4, size=size)
    torch.manual_seed(0)
    model = models.build("image", shop.classes, backbone, **({} if "lite" in backbone else {"weights": None}))
    (trained if "lite" in backbone else untrained)(model, shop.split("train", size))
    encoder, head, image = model.eval().image_encoder, model.head, shop.split("test", size)[0].image
    baseline = image.mean((1, 2), keepdim=True)
    cells = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(0)) < KEPT
    masks = torch.nn.functional.interpolate(cells.float(), (size, size)).bool()
    plain = copy.deepcopy(encoder.network).to(memory_format=torch.contiguous_format)  # training changed the layout

    def without_predictor(images):
        maps = plain.forward_features((images - encoder.mean) / encoder.std)
        return head.linear((maps.mean((2, 3)) - head.scalers["image"].mean) / head.scalers["image"].std)

    @torch.inference_mode()
    def batches(logits):
        return torch.cat([logits(torch.where(part, image, baseline)).softmax(-1) for part in masks.split(32)])

    predictor = Predictor(model, size)

    def fast():
        return predictor.classify(predictor.encode_perturbed(image, masks, baseline))

    assert fast().std(0).max() > 0.02, "the model does not mind the masks, so that agreement says nothing"
    case = f"{count} masks, {backbone}, {size} px, {torch.get_num_threads()} threads"
    ways = {"channels last": model, "PyTorch, float32": without_predictor}
    for name, logits in ways.items():
        baseline_name = f"{name}, batches of 32"
        ratio = compare_cpu("inference", case, baseline_name, lambda way=logits: batches(way), fast, tolerance=1e-3)
    assert ratio >= target


@pytest.mark.benchmark
@pytest.mark.usefixtures("all_cores", "own_cache")
def test_last_blocks(compare_cpu, quick):
    torch.manual_seed(0)
    model = models.build("image", ["a", "b"], "efficientnet_lite2", freeze=True, learn=15).eval()
    images = torch.rand(16 if quick else 64, 3, 224, 224)
    below, whole = compiled(model, frozen_only=True), compiled(model)

    def evaluated(network):
        with torch.inference_mode():
            return torch.cat([network(part) for part in images.split(32)])

    evaluated(below), evaluated(whole)  # compiles
    case = f"{len(images)} images, last 15 blocks of efficientnet_lite2 learned, {torch.get_num_threads()} threads"
    ways = [lambda way=way: evaluated(way) for way in (below, whole)]
    assert compare_cpu("inference", case, "only the frozen blocks compiled", *ways, tolerance=1e-3) >= 1.5
