"""Masked variants of one image through `Predictor`, against the loop that one writes without it.

That loop is float32 in PyTorch's own layout, in batches of 32.
"""

import copy

import pytest
import torch

from retailkit import data, models, training
from retailkit.inference import Predictor

KEPT = 0.8  # of the image: enough that classes compete


@pytest.mark.benchmark
@pytest.mark.usefixtures("all_cores")
@pytest.mark.parametrize("backbone, size", [("efficientnet_lite0", 224), ("efficientnet_lite2", 260)])
def test_inference(tmp_path, compare, quick, monkeypatch, backbone, size):
    monkeypatch.setenv("RETAILKIT_CACHE", str(tmp_path / "cache"))
    count = 32 if quick else 64
    shop = data.load("synthetic", tmp_path, per_class=(4, 0, 1), families=4, size=size)
    torch.manual_seed(0)
    model = models.build("image", shop.classes, backbone)
    training.fit(model, shop.split("train", size), config=training.TrainConfig(epochs=30))
    encoder, image = model.eval().image_encoder, shop.split("test", size)[0].image
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

    predictor = Predictor(model, size)

    def fast():
        return predictor.classify(predictor.encode_perturbed(image, masks, baseline))

    reference = eager()
    assert reference.std(0).max() > 0.02, "the model does not mind the masks, so that agreement says nothing"
    assert torch.allclose(reference, fast(), atol=1e-3)
    case = f"{count} masks, {backbone}, {size} px, {torch.get_num_threads()} threads"
    baseline_name = "PyTorch, float32, batches of 32"
    ratio = compare("inference", case, baseline_name, eager, fast, lambda a, b: (a - b).abs().max(), 1 if quick else 3)
    assert ratio >= 1.5
