"""NTS-Net against straightforward versions of its parts; notebook 31 has those of anchors, parts and ranking loss."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from retailkit import models
from retailkit.config import UserError
from retailkit.data.table import ProductData, make_table
from retailkit.models import nts

CLASSES = ["lean", "extra lean", "medium"]
TINY = "timm:test_resnet"  # a map of 96 channels and stride 32


@pytest.fixture
def model():
    torch.manual_seed(0)
    return models.build("nts", CLASSES, TINY, weights=None, propose=4, parts=2).eval()


@pytest.mark.parametrize(
    ("side", "count"), [(448, 1614), (384, 1161), (320, 831), (256, 516), (224, 426), (160, 240), (128, 129), (96, 87)]
)
def test_the_number_of_anchors(side, count):
    assert len(nts.anchors((side, side), 32)) == count


def too_much(one, other):
    """The rule of the authors' `hard_nms`, written out: integer boxes, and an IoU of 0.25 is too much."""
    (top, left, bottom, right), (y0, x0, y1, x1) = ([math.floor(edge) for edge in box] for box in (one, other))
    height, width = min(bottom, y1) - max(top, y0), min(right, x1) - max(left, x0)
    shared = height * width if height >= 0 and width >= 0 else 0
    return shared / ((bottom - top) * (right - left) + (y1 - y0) * (x1 - x0) - shared) >= 0.25


def greedy(scores, overlaps, count):
    """Hard suppression of one image, box by box; then the best that were suppressed."""
    order, kept = scores.argsort(descending=True).tolist(), []
    for i in order:
        if not any(overlaps[i][j] for j in kept):
            kept.append(i)
    return (kept + [i for i in order if i not in kept])[:count]


@pytest.mark.parametrize(("side", "count"), [(224, 6), (96, 6), (96, 40)])
def test_selection_is_greedy_suppression_by_the_authors_rule(side, count):
    """Float boxes and a strict > gave other regions in 14 of 400 random score fields."""
    boxes = nts.anchors((side, side), 32).tolist()
    expected, overlaps = [[too_much(one, other) for other in boxes] for one in boxes], nts.overlapping((side, side), 32)
    assert overlaps.tolist() == expected
    scores = torch.randn(5, len(boxes), generator=torch.Generator().manual_seed(count))
    assert nts.select(scores, overlaps, count).tolist() == [greedy(row, expected, count) for row in scores]


@pytest.mark.parametrize("navigate", [True, False])
@torch.no_grad()
def test_evaluation_does_not_depend_on_the_batch(model, navigate):
    model.pooling.navigate = navigate
    images = torch.rand(3, 3, 128, 128)
    together, alone = model(images), torch.cat([model(image[None]) for image in images])
    assert torch.allclose(together, alone, atol=1e-4) and torch.equal(together, model(images))
    regions = model.regions(images)
    assert regions.boxes.shape == (3, 4, 4) and regions.scores.shape == (3, 4)
    for row, image in enumerate(images):
        assert torch.equal(model.regions(image[None]).boxes[0], regions.boxes[row])


def test_gradients_go_where_the_paper_sends_them(model):
    model.train()
    images, labels = torch.rand(2, 3, 128, 128), torch.tensor([0, 2])
    pooling, encoder = model.pooling, model.image_encoder
    _, scores = pooling._navigate(encoder, encoder.forward_map(images), images)
    nts.ranking_loss(scores, torch.rand(2, 4)).backward()
    assert all(p.grad is None for p in encoder.parameters())
    assert all(p.grad is not None for p in pooling.navigator.parameters())
    loss = model.training_loss(SimpleNamespace(images=images, texts=None, labels=labels), F.cross_entropy)
    loss.backward()
    assert torch.isfinite(loss) and all(p.grad is not None for p in model.parameters())


def test_k_of_zero_classifies_by_the_whole_image(model):
    whole, images = models.build("nts", CLASSES, TINY, weights=None, parts=0).eval(), torch.rand(2, 3, 96, 96)
    assert torch.allclose(whole.encode_image(images).values, whole.image_encoder(images))
    assert model.encode_image(images).values.shape == (2, 3 * 96)


@pytest.mark.parametrize("side", [32, 40])
def test_images_smaller_than_the_parts_they_were_made_for(model, side):
    """Anchors shrink with the input, so that the largest one overhangs a tiny image no more than a large one."""
    image = torch.rand(1, 3, side, side)
    boxes = model.regions(image).boxes
    assert boxes.shape == (1, 4, 4) and torch.isfinite(model(image)).all()
    assert (boxes[..., 2] - boxes[..., 0]).max() <= 1.05 * side


def reference_state(n_classes=5, parts=2):
    """A made-up state dict in the layout of the authors' checkpoints, on a small trunk."""
    trunk = models.build("image", ["a"], TINY, weights=None).image_encoder
    state = {f"pretrained_model.{k}": torch.randn_like(v.float()) * 0.05 for k, v in trunk.network.state_dict().items()}
    state |= {f"proposal_net.{k}": v for k, v in nts.Navigator(trunk.dim).state_dict().items()}
    layers = {"pretrained_model.fc": trunk.dim, "partcls_net": trunk.dim, "concat_net": trunk.dim * (parts + 1)}
    for name, width in layers.items():
        state |= {f"{name}.weight": torch.randn(n_classes, width), f"{name}.bias": torch.randn(n_classes)}
    return {k: v.abs() if k.endswith("running_var") else v for k, v in state.items()}


@torch.no_grad()
def test_a_checkpoint_of_the_authors_code_is_loaded(tmp_path):
    state = reference_state()
    torch.save({"epoch": 3, "net_state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "model.ckpt")
    model = models.load_nts_checkpoint(tmp_path / "model.ckpt", backbone=TINY)
    assert model.pooling.parts == 2 and model.input_size == 448 and len(model.classes) == 5
    assert torch.equal(model.pooling.navigator.tidy2.weight, state["proposal_net.tidy2.weight"])
    assert torch.equal(model.pooling.whole_head.bias, state["pretrained_model.fc.bias"])
    # The classifier sees the best part first and the whole image last, as theirs does.
    image, encoder = torch.rand(1, 3, 96, 96), model.image_encoder
    parts = nts.cut(image, model.regions(image).boxes[:, :2], 48, encoder.mean).flatten(0, 1)
    joined = torch.cat([encoder(parts).flatten(), encoder(image)[0]])
    expected = state["concat_net.weight"] @ joined + state["concat_net.bias"]
    assert torch.allclose(model(image)[0], expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"concat_net.weight": None}, "no tensor 'concat_net.weight'"),
        ({"extra.weight": torch.ones(1)}, "'extra.weight' is no tensor"),
        ({"proposal_net.down2.bias": None}, "down2.bias"),
        ({"partcls_net.weight": torch.ones(4, 512)}, r"part_head.weight: .*\[4, 512\].*\[5, 96\]"),
    ],
)
def test_another_checkpoint_is_refused(tmp_path, change, says):
    state = {k: v for k, v in (reference_state() | change).items() if v is not None}
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(UserError, match=says):
        models.load_nts_checkpoint(tmp_path / "model.pth", backbone=TINY)


def test_the_authors_transform_goes_through_the_data_path(tmp_path):
    """Resize to 600x600 whatever the shape, then the centre of 448x448."""
    pixels = np.random.default_rng(0).integers(0, 255, (300, 500, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "bird.png")
    table = make_table([{"image": str(tmp_path / "bird.png"), "label": "lean", "split": "test"}])
    sample = ProductData("birds", table, CLASSES, {}).split("test", 448, "stretch_crop")[0]
    theirs = Image.fromarray(pixels).resize((600, 600), Image.Resampling.BILINEAR).crop((76, 76, 524, 524))
    assert np.abs(sample.image.permute(1, 2, 0).numpy() * 255 - np.asarray(theirs)).max() <= 1
