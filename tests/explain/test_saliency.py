"""Every method against a plain version of itself, and the state of the model afterwards."""

import copy
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece
from torch import nn

from retailkit import models
from retailkit.config import UsageError
from retailkit.data.table import Word
from retailkit.explain import saliency
from retailkit.models import Features, ProductClassifier
from retailkit.models.encoders import CharNgramEncoder
from retailkit.models.pooling import FeatureScaler, Head

CLASSES = ["lean", "extra lean", "medium"]
EVERYWHERE = [m for m in saliency.METHODS if m not in ("windows", "regions")]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "milk", "oat", "lean", "extra", "##y", "ground", "beef"]
TINY = {
    "model_type": "bert",
    "vocab_size": len(VOCABULARY),
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "initializer_range": 0.5,
}


class Corner(nn.Module):
    """Class 1 is the brightness of the upper left quarter, class 0 is nothing."""

    def forward(self, images, texts=None):
        score = images[:, :, :8, :8].mean((1, 2, 3))
        return torch.stack([torch.zeros_like(score), score], 1)


class Weighted(nn.Module):
    """Logits are weighted sums of the pixels."""

    def __init__(self, side, classes=3):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weights = nn.Parameter(torch.randn(classes, 3, side, side, generator=generator))

    def forward(self, images, texts=None):
        return torch.einsum("bchw,kchw->bk", images, self.weights)


class Product(Head):
    """Logits of the picture times logits of the text: each modality changes what the other says."""

    def __init__(self, scalers, n_classes):
        super().__init__(scalers)
        self.image = nn.Linear(len(scalers["image"].mean), n_classes)
        self.text = nn.Linear(len(scalers["text"].mean), n_classes)

    def forward(self, features):
        logits = self.text(self.scalers["text"](features["text"]))
        if "image" in features:
            logits = logits * (1 + self.image(self.scalers["image"](features["image"])))
        return logits


def pictures(count=2, side=64, seed=0):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def network(name="image", backbone="resnet18", **options):
    torch.manual_seed(0)
    options = {"weights": None, **options}
    model = models.build(name, CLASSES, backbone, **options).eval()
    if model.image_encoder is not None:
        for layer in model.image_encoder.modules():  # a fresh network's maps are all but constant
            if isinstance(layer, nn.BatchNorm2d):
                nn.init.uniform_(layer.weight, 0.5, 1.5)
                nn.init.uniform_(layer.bias, -0.5, 0.5)
    return model


def read_with_tiny_vocabulary(encoder):
    tokenizer = Tokenizer(WordPiece({w: i for i, w in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    encoder.set_extra_state(torch.tensor(list(tokenizer.to_str().encode()), dtype=torch.uint8))
    return encoder.eval()


@pytest.fixture
def reader():
    """A text model: a tiny transformer with a vocabulary of seven words."""
    torch.manual_seed(0)
    model = models.build("text", CLASSES, text_encoder="minilm", text_weights=None, text_config=TINY, weights=None)
    read_with_tiny_vocabulary(model.text_encoder)
    return model.eval()


@pytest.fixture
def fused(reader):
    """A model of both modalities, with the smallest head there is."""
    both = network()
    torch.manual_seed(3)
    head = Product({"image": FeatureScaler(both.image_encoder.dim), "text": FeatureScaler(16)}, 3)
    return ProductClassifier(CLASSES, head, both.image_encoder, both.pooling, reader.text_encoder).eval()


def margins(logits, labels):
    """The margin by a loop over pictures."""
    found = []
    for row, label in zip(logits, labels.tolist(), strict=True):
        found.append(row[label] - max(row[k] for k in range(len(row)) if k != label))
    return torch.stack(found)


def words(*texts):
    return [Word(text, (10.0 * i, 0.0, 10.0 * i + 9, 8.0)) for i, text in enumerate(texts)]


# -- Where the answer is known


@pytest.mark.parametrize("method", ["occlusion", "integrated_gradients", "saliency", "smoothgrad"])
def test_evidence_lies_where_the_model_looks(method):
    images = torch.ones(2, 3, 16, 16)
    options = {"baseline": 0.0} if method == "integrated_gradients" else {}
    maps = saliency.attribute(Corner(), images, torch.tensor([1, 1]), method, **options)
    assert maps.shape == (2, 16, 16)
    assert (maps[:, :8, :8] > 0).all() and maps[:, 9:, 9:].abs().max() == 0
    against = saliency.attribute(Corner(), images, torch.tensor([0, 0]), method, **options)
    assert torch.allclose(against, -maps)


def test_gradients_of_a_weighted_sum_are_its_weights():
    model, images, labels = Weighted(8), pictures(4, 8), torch.tensor([0, 1, 2, 1])
    rivals = saliency.runner_up(model(images), labels)
    weights = (model.weights[labels] - model.weights[rivals]).detach()
    plain = saliency.attribute(model, images, labels, "saliency")
    assert torch.allclose(plain, weights.sum(1), atol=1e-5)
    assert torch.allclose(saliency.attribute(model, images, labels, "smoothgrad"), plain, atol=1e-4)
    paths = saliency.attribute(model, images, labels, "integrated_gradients", steps=3, baseline=0.2)
    assert torch.allclose(paths, ((images - 0.2) * weights).sum(1), atol=1e-5)


def test_occlusion_is_the_plain_loop():
    model, images, labels = Weighted(8), pictures(1, 8), torch.tensor([1])
    rival = saliency.runner_up(model(images), labels)
    score = lambda x: float((model(x)[0, 1] - model(x)[0, rival]).detach())  # noqa: E731
    total, covered = torch.zeros(8, 8), torch.zeros(8, 8)
    for y in range(0, 5, 2):
        for x in range(0, 5, 2):
            hidden = images.clone()
            hidden[..., y : y + 4, x : x + 4] = 0.5
            total[y : y + 4, x : x + 4] += score(images) - score(hidden)
            covered[y : y + 4, x : x + 4] += 1
    maps = saliency.attribute(model, images, labels, "occlusion", window=4)
    assert torch.allclose(maps[0], total / covered, atol=1e-4)


@pytest.mark.parametrize("baseline", [None, 0.5])
def test_integrated_gradients_add_up_to_the_margin(baseline):
    model, images, labels = network(), pictures(), torch.tensor([2, 0])
    maps = saliency.attribute(model, images, labels, "integrated_gradients", baseline=baseline)
    start = torch.full_like(images, 0.5)
    if baseline is None:
        side = 64 / 56
        smooth = gaussian_filter(images.numpy(), (0, 0, side, side), mode="mirror", radius=(0, 0, 4, 4))
        start = torch.from_numpy(smooth)
    with torch.no_grad():
        logits, first = model(images), model(start)
    rows, rivals = torch.arange(2), saliency.runner_up(logits, labels)
    rise = (logits - first)[rows, labels] - (logits - first)[rows, rivals]
    assert torch.allclose(maps.sum((1, 2)), rise, rtol=0.03, atol=0.03 * float(rise.abs().max()))


def test_smoothgrad_is_the_mean_over_seeded_noise():
    model, images, labels = network(), pictures(), torch.tensor([2, 0])
    maps = saliency.attribute(model, images, labels, "smoothgrad", samples=3, noise=0.2, seed=5)
    rivals = saliency.runner_up(model(images), labels)
    generator, total = torch.Generator().manual_seed(5), 0
    for _ in range(3):
        noisy = (images + 0.2 * torch.randn(3, 64, 64, generator=generator)).requires_grad_()
        logits = model(noisy)
        rise = sum(logits[i, labels[i]] - logits[i, rivals[i]] for i in range(2))
        total = total + torch.autograd.grad(rise, noisy)[0].sum(1)
    assert torch.allclose(maps, total / 3, rtol=1e-3, atol=1e-5 * float(total.abs().max()))


def by_hand_gradcam(model, images, labels, positive=False):
    """Grad-CAM by autograd, on the map of the whole picture."""
    maps = []
    handle = model.image_encoder.map_layer.register_forward_hook(lambda *call: maps.append(call[2]))
    rise = margins(model(images.clone().requires_grad_()), labels).sum()
    handle.remove()
    (slope,) = torch.autograd.grad(rise, maps[0])
    cam = (slope.mean((2, 3), keepdim=True) * maps[0]).sum(1, keepdim=True).detach()
    cam = cam.relu() if positive else cam
    return F.interpolate(cam, images.shape[2:], mode="bilinear")[:, 0]


@pytest.mark.parametrize(
    ("name", "options"), [("image", {}), ("lca", {"width": 8}), ("nts", {"propose": 4, "parts": 2})]
)
@pytest.mark.parametrize("freeze", [False, True])
def test_gradcam_is_autograd_on_the_whole_picture(name, options, freeze):
    model, images, labels = network(name, freeze=freeze, **options), pictures(side=96), torch.tensor([2, 0])
    maps = saliency.attribute(model, images, labels, "gradcam")
    expected = by_hand_gradcam(model, images, labels)
    assert expected.abs().max() > 0
    assert torch.allclose(maps, expected, atol=1e-4 * float(expected.abs().max()))
    assert maps.min() < 0 < maps.max() or name != "image"


@pytest.mark.parametrize("backbone", models.BACKBONES)
def test_every_backbone_has_a_gradcam(backbone):
    model = network(backbone=backbone, freeze=True)
    maps = saliency.attribute(model, pictures(1, 70), torch.tensor([1]), "gradcam")
    assert maps.shape == (1, 70, 70) and maps.isfinite().all() and maps.std() > 0


class GuidedRectifier(torch.autograd.Function):
    """relu (or relu6), and on the way back only positive gradients."""

    @staticmethod
    def forward(ctx, x, top):
        ctx.open = (x > 0) & (x < top)
        return x.clamp(0, top)

    @staticmethod
    def backward(ctx, slope):
        return slope.relu() * ctx.open, None


class Guided(nn.Module):
    def __init__(self, top):
        super().__init__()
        self.top = top

    def forward(self, x):
        return GuidedRectifier.apply(x, self.top)


def with_guided_rectifiers(module):
    for name, child in module.named_children():
        if isinstance(child, (nn.ReLU, nn.ReLU6)):
            setattr(module, name, Guided(6.0 if isinstance(child, nn.ReLU6) else float("inf")))
        else:
            with_guided_rectifiers(child)
    return module


@pytest.mark.parametrize("backbone", ["resnet18", "efficientnet_lite0", "efficientnet_b0"])
def test_guided_gradcam_lets_no_negative_gradient_through_a_rectifier(backbone):
    model, images, labels = network(backbone=backbone), pictures(), torch.tensor([2, 0])
    maps = saliency.attribute(model, images, labels, "guided_gradcam")
    slopes = []
    for net in (with_guided_rectifiers(copy.deepcopy(model)), model):
        pixels = images.clone().requires_grad_()
        slopes.append(torch.autograd.grad(margins(net(pixels), labels).sum(), pixels)[0].sum(1))
    cam = by_hand_gradcam(model, images, labels, positive=True)
    largest = float((slopes[0] * cam).abs().max())
    assert largest > 0
    assert torch.allclose(maps, slopes[0] * cam, atol=1e-4 * largest)
    plain = torch.allclose(maps, slopes[1] * cam, atol=1e-4 * largest)
    assert plain == (backbone == "efficientnet_b0")  # no rectifier there


def test_windows_are_the_speakers_painted_one_by_one():
    model, images, labels = network("lca", width=8), pictures(side=80), torch.tensor([2, 0])
    maps = saliency.attribute(model, images, labels, "windows")
    with torch.no_grad():
        rivals = saliency.runner_up(model(images), labels)
    boxes, own = model.window_contributions(images, labels)
    said = own - model.window_contributions(images, rivals)[1]
    expected = torch.zeros(2, 80, 80)
    for b in range(2):
        for (x0, y0, x1, y1), c in zip(boxes.clamp(max=80).tolist(), said[b], strict=True):  # the map covers 96 px
            expected[b, y0:y1, x0:x1] += c / ((x1 - x0) * (y1 - y0))
    assert torch.allclose(maps, expected, atol=1e-5 * float(expected.abs().max()))
    assert torch.allclose(maps.sum((1, 2)), said.sum(1), rtol=1e-3)


def test_regions_add_up_to_the_margin_less_the_whole_picture():
    model, images, labels = network("nts", propose=4, parts=2), pictures(side=96), torch.tensor([2, 0])
    model.head.scalers["image"].fit(model.encode_image(pictures(6, 96, seed=1)))
    maps = saliency.attribute(model, images, labels, "regions")
    scaled = model.head.scalers["image"](model.encode_image(images))
    linear = model.head.linear
    boxes = model.regions(images).boxes[:, :2].clamp(0, 96)
    for b in range(2):
        rival = int(saliency.runner_up(linear(scaled), labels)[b])
        weights = linear.weight[labels[b]] - linear.weight[rival]
        parts = (weights * scaled[b]).view(3, -1).sum(1)[:2].detach()
        expected = torch.zeros(96, 96)
        for (x0, y0, x1, y1), value in zip(boxes[b].tolist(), parts, strict=True):
            expected[y0:y1, x0:x1] += value / ((x1 - x0) * (y1 - y0))
        assert torch.allclose(maps[b], expected, atol=1e-5 * float(expected.abs().max()))
        assert maps[b].sum() == pytest.approx(float(parts.sum()), rel=1e-3)


# -- Behaviour


QUICK = {"smoothgrad": {"samples": 3}, "integrated_gradients": {"steps": 3}, "occlusion": {"window": 32}}


def example(method, count=2):
    """A model that the method suits, pictures and labels, and options that make it quick."""
    model = network({"windows": "lca", "regions": "nts"}.get(method, "image"))
    side = 96 if method == "regions" else 64
    return model, pictures(count, side), torch.tensor([2, 0, 1])[:count], QUICK.get(method, {})


def close(a, b):
    """Equal but for a few pixels: rounding differs with the size of a batch, and may open or shut a rectifier."""
    return bool((a - b).abs().mean() <= 0.01 * b.abs().mean())


@pytest.mark.parametrize("method", saliency.METHODS)
def test_a_map_does_not_depend_on_its_batch_nor_on_chance(method, monkeypatch):
    model, images, labels, options = example(method, 3)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    together = saliency.attribute(model, images, labels, method, **options)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(saliency.attribute(model, images, labels, method, **options), together)
    monkeypatch.setattr(saliency, "BATCH", 2)  # two and one
    assert close(saliency.attribute(model, images, labels, method, **options), together)
    assert together.std() > 0 and together.dtype == torch.float32 and not together.requires_grad


@pytest.mark.parametrize("method", EVERYWHERE)
def test_texts_stay_with_their_pictures(fused, method):
    images, labels, texts, options = pictures(), torch.tensor([2, 0]), ["oat milk", "lean beef"], QUICK.get(method, {})
    together = saliency.attribute(fused, images, labels, method, texts, **options)
    for i in range(2):
        alone = saliency.attribute(fused, images[i : i + 1], labels[i : i + 1], method, texts[i : i + 1], **options)
        assert close(alone[0], together[i])
    assert not close(saliency.attribute(fused, images, labels, method, texts[::-1], **options), together)


def state(model):
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()]
    modes = [m.training for m in model.modules()]
    weights = [(p.requires_grad, p.grad) for p in model.parameters()]
    return hooks, modes, weights, [float(b.sum()) for b in model.buffers()]


@pytest.mark.parametrize("method", saliency.METHODS)
def test_the_model_is_left_as_it_was(method):
    model, images, labels, options = example(method)
    model.train()
    model.image_encoder.map_layer.eval()  # a mode of its own survives too
    next(model.parameters()).requires_grad_(False)
    before = state(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        saliency.attribute(model, images, labels, method, **options)
    assert state(model) == before


@pytest.mark.parametrize("broken", ["head", "trunk"])
@pytest.mark.parametrize("method", saliency.METHODS)
def test_the_model_is_left_as_it_was_after_an_error(method, broken, monkeypatch):
    model, images, labels, options = example(method)
    model.train()
    before = state(model)
    owner, name = (model, "classify") if broken == "head" else (model.image_encoder.network, "forward_features")
    works, calls = getattr(owner, name), []

    def fail(*given):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return works(*given)

    monkeypatch.setattr(owner, name, fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        saliency.attribute(model, images, labels, method, **options)
    assert state(model) == before


def test_gradients_survive_no_grad_around_the_call():
    model, images, labels = network(freeze=True), pictures(1), torch.tensor([1])
    expected = saliency.attribute(model, images, labels, "saliency")
    with torch.no_grad():
        assert torch.equal(saliency.attribute(model, images, labels, "saliency"), expected)
    assert expected.abs().max() > 0 and not images.requires_grad


def test_the_seed_decides_the_noise():
    model, images, labels = network(), pictures(1), torch.tensor([1])
    one, two = (saliency.attribute(model, images, labels, "smoothgrad", samples=2, seed=s) for s in (0, 1))
    assert not torch.allclose(one, two, atol=1e-2 * float(one.abs().max()))


def test_no_picture_gives_no_map():
    assert saliency.attribute(network(), pictures(0), torch.tensor([], dtype=torch.long)).shape == (0, 64, 64)


IMAGES, LABELS = pictures(2, 16), torch.tensor([1, 0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "oclusion"}, "unknown saliency method 'oclusion'; did you mean 'occlusion'"),
        ({"method": "occlusion", "windw": 3}, "unknown option of 'occlusion' 'windw'; did you mean 'window'"),
        ({"method": "saliency", "steps": 3}, "'saliency' has no options, and got 'steps'"),
        ({"method": "occlusion", "window": 17}, "window=17 is out of range; use 1 to 16"),
        ({"method": "integrated_gradients", "steps": 0}, "steps=0"),
        ({"method": "smoothgrad", "samples": 0}, "samples=0"),
        ({"labels": torch.tensor([1, 2])}, "class 2 is not one of this model's 2; give labels from 0 to 1"),
        ({"labels": torch.tensor([-1, 0])}, "class -1 is not one"),
        ({"labels": torch.tensor([1])}, "for 2 images; give one class index each"),
        ({"labels": torch.tensor([1.0, 0.0])}, "labels are torch.float32"),
        ({"images": IMAGES[0]}, "give one class index each|give float ones of"),
        ({"images": IMAGES[:, :1]}, r"\(2, 1, 16, 16\); give float ones of \(B,3,H,W\)"),
        ({"images": (IMAGES * 255).byte()}, "torch.uint8"),
        ({"images": IMAGES * 5 - 2}, r"images run from -2 to 3; give them in \[0,1\]"),
        ({"images": IMAGES * float("nan")}, "images run from nan"),
        ({"texts": ["milk"]}, "1 texts for 2 images"),
        ({"method": "gradcam"}, "no feature maps"),
        ({"method": "guided_gradcam"}, "no feature maps"),
        ({"method": "windows"}, "build the model with pooling='lca'"),
        ({"method": "regions"}, "build the model with pooling='nts'"),
    ],
)
def test_a_wrong_call_says_what_to_change(changes, message):
    with pytest.raises(UsageError, match=message):
        saliency.attribute(**{"model": Corner(), "images": IMAGES, "labels": LABELS} | changes)


def test_models_without_what_a_method_needs_say_so(reader):
    images, labels = pictures(1), torch.tensor([0])
    with pytest.raises(UsageError, match="build it with parts=4"):
        saliency.attribute(network("nts", parts=0), images, labels, "regions")
    with pytest.raises(UsageError, match="does not look at pictures; explain its words"):
        saliency.attribute(reader, images, labels)
    with pytest.raises(UsageError, match="no runner-up"):
        saliency.attribute(models.build("image", ["milk"], "resnet18", weights=None), images, labels)
    stepped = Corner()
    stepped.forward = lambda images, texts=None: Corner()(images.detach()).round()
    with pytest.raises(UsageError, match="no gradient; use method='occlusion'"):
        saliency.attribute(stepped, images, labels, "saliency")
    assert saliency.attribute(stepped, images, labels).shape == (1, 64, 64)


# -- Words


SENTENCES = [words("Extra", "leany", "beef"), [], words("oat", "milky")]
LABELS3 = torch.tensor([0, 1, 2])


def test_every_token_belongs_to_its_word(reader):
    first, none, third = saliency.attribute_tokens(reader, SENTENCES, LABELS3)
    assert [(t.text, t.word) for t in first] == [
        ("[CLS]", -1),
        ("extra", 0),
        ("lean", 1),
        ("##y", 1),
        ("beef", 2),
        ("[SEP]", -1),
    ]
    assert none == [] and [t.word for t in third] == [-1, 0, 1, 1, -1]
    text = "Extra leany beef"
    assert [text[t.start : t.end] for t in first[1:-1]] == ["Extra", "lean", "y", "beef"]
    assert first[0].value == first[-1].value == 0
    values = saliency.attribute_words(reader, SENTENCES, LABELS3)
    assert [len(v) for v in values] == [3, 0, 2]
    assert values[0] == pytest.approx([first[1].value, first[2].value + first[3].value, first[4].value])


def test_word_gradients_are_the_integral_by_hand(reader):
    label, text = 2, "extra leany beef"
    (found,) = saliency.attribute_tokens(reader, [words(*text.split())], torch.tensor([label]), steps=64)
    encoder, ids = reader.text_encoder, torch.tensor([[2, 8, 7, 9, 11, 3]])
    ends = encoder.embedding(ids).detach(), encoder.embedding(torch.tensor([[2, 0, 0, 0, 0, 3]])).detach()
    rival = int(saliency.runner_up(reader(texts=[text]), torch.tensor([label])))

    def score(vectors):
        states = encoder.network(inputs_embeds=vectors).last_hidden_state.mean(1)
        logits = reader.head.linear(F.normalize(states, dim=1))
        return logits[:, label] - logits[:, rival]

    total, steps = torch.zeros(6), 400
    for k in range(steps):
        at = (ends[1] + (k + 0.5) / steps * (ends[0] - ends[1])).requires_grad_()
        total += (torch.autograd.grad(score(at).sum(), at)[0] * (ends[0] - ends[1])).sum(2)[0] / steps
    values = torch.tensor([t.value for t in found])
    assert torch.allclose(values, total, atol=0.01 * float(total.abs().max()))
    assert float(values.sum()) == pytest.approx((score(ends[0]) - score(ends[1])).item(), rel=0.01)


def test_left_out_words_are_the_plain_loop(fused):
    images, label = pictures(1), torch.tensor([1])
    (values,) = saliency.attribute_words(fused, [SENTENCES[0]], label, images, method="leave_one_out")
    score = lambda text: fused(images, [text])  # noqa: E731
    with torch.no_grad():
        full = score("Extra leany beef")
        rival = int(saliency.runner_up(full, label))
        for value, text in zip(values, ["leany beef", "Extra beef", "Extra leany"], strict=True):
            fall = (full - score(text))[0]
            assert value == pytest.approx(float(fall[1] - fall[rival]), rel=1e-3, abs=1e-5)


def test_the_picture_changes_what_words_say(fused):
    label = torch.tensor([1])
    beside = [
        saliency.attribute_words(fused, [SENTENCES[0]], label, images)[0]
        for images in (pictures(1), pictures(1) * 0.1, None)
    ]
    assert not np.allclose(beside[0], beside[1], rtol=1e-3) and not np.allclose(beside[0], beside[2], rtol=1e-3)


@pytest.mark.parametrize("name", [n for n, spec in models.MODELS.items() if len(spec.modalities) == 2])
def test_every_fusion_is_explained_by_picture_and_words(name):
    model = network(name, text_encoder="minilm", text_weights=None, text_config=TINY)
    read_with_tiny_vocabulary(model.text_encoder)
    images, texts = pictures(3), ["extra leany beef", None, "oat milky"]
    maps = saliency.attribute(model, images, LABELS3, "gradcam", texts)
    assert maps.isfinite().all() and (maps.abs().amax((1, 2)) > 0).all()
    with torch.no_grad():
        full, rest = model(images, texts), model(images, ["leany beef", None, "oat milky"])
    rival = int(saliency.runner_up(full, LABELS3)[0])
    fall = (full - rest)[0]
    values = saliency.attribute_words(model, SENTENCES, LABELS3, images, method="leave_one_out")
    assert values[0][0] == pytest.approx(float(fall[0] - fall[rival]), rel=1e-2, abs=1e-5)
    gradients = saliency.attribute_words(model, SENTENCES, LABELS3, images)
    assert all(np.isfinite(v).all() for v in gradients) and gradients[0].any() and not len(gradients[1])


def test_words_behind_the_longest_text_get_nothing(reader):
    many = words(*["lean", "beef", "milky"] * 100)  # four tokens for three words
    (values,) = saliency.attribute_words(reader, [many], torch.tensor([1]), steps=2)
    (tokens,) = saliency.attribute_tokens(reader, [many], torch.tensor([1]), steps=2)
    assert len(tokens) == 256
    last = max(t.word for t in tokens)
    assert last == 190 and len(values) == 300
    assert (values[: last + 1] != 0).all() and (values[last + 1 :] == 0).all()


@pytest.mark.parametrize("method", saliency.WORD_METHODS)
def test_words_of_which_nothing_is_read_get_nothing(reader, method):
    some = [words("lean", "\u200b", "", "beef"), words("\u200b"), words("", " "), []]
    values = saliency.attribute_words(reader, some, torch.tensor([0, 1, 2, 0]), method=method)
    assert [len(v) for v in values] == [4, 1, 2, 0]
    assert values[0][1] == pytest.approx(0, abs=1e-6) and values[0][2] == pytest.approx(0, abs=1e-6)
    assert abs(values[0][[0, 3]]).min() > 1e-4
    assert (values[2] == 0).all()


@pytest.mark.parametrize("method", saliency.WORD_METHODS)
def test_a_barcode_says_nothing_and_leaves_the_others_as_they_are(reader, method):
    printed = [words("lean", "4006381", "333931", "beef"), words("lean", "beef")]
    values, without = saliency.attribute_words(reader, printed, torch.tensor([1, 1]), method=method)
    assert values[1] == values[2] == 0 and np.allclose(values[[0, 3]], without, atol=1e-6)


def test_a_word_between_numbers_is_not_charged_with_them(reader):
    """Without it they would stand side by side like a barcode, and go as well."""
    numbers = words("1046", "lean", "2501")
    (values,) = saliency.attribute_words(reader, [numbers], torch.tensor([1]), method="leave_one_out")
    margin = saliency.TextMargin(reader, "1046 lean 2501", torch.tensor(1), None)
    with torch.no_grad():
        without = margin(Features(reader.text_encoder(["1046 2501"]), torch.tensor([True])))
        full = margin(reader.encode_text(["1046 lean 2501"]))
    assert values[1] == pytest.approx(float((full - without)[0]), rel=1e-4)


def test_a_word_alone_is_compared_with_the_average_text(reader):
    reader.fit_scalers(None, reader.encode_text(["oat milk", "lean beef", "extra"]))
    (values,) = saliency.attribute_words(reader, [words("lean")], torch.tensor([1]), method="leave_one_out")
    average = Features(reader.head.scalers["text"].mean[None], torch.tensor([True]))
    with torch.no_grad():
        full, base = reader(texts=["lean"]), reader.classify(None, average)
    rival = int(saliency.runner_up(full, torch.tensor([1])))
    fall = (full - base)[0]
    assert values[0] == pytest.approx(float(fall[1] - fall[rival]), rel=1e-4)


def test_auto_leaves_words_out_where_there_are_no_embeddings():
    torch.manual_seed(0)
    model = models.build("text", CLASSES, text_encoder="char_ngrams")
    assert isinstance(model.text_encoder, CharNgramEncoder)
    auto = saliency.attribute_words(model, SENTENCES, LABELS3)
    left_out = saliency.attribute_words(model, SENTENCES, LABELS3, method="leave_one_out")
    assert all(np.array_equal(a, b) for a, b in zip(auto, left_out, strict=True)) and auto[0].any()
    with pytest.raises(UsageError, match="'char_ngrams' has no word embeddings; use method='leave_one_out'"):
        saliency.attribute_words(model, SENTENCES, LABELS3, method="integrated_gradients")


@pytest.mark.parametrize("method", saliency.WORD_METHODS)
def test_the_reader_is_left_as_it_was(reader, method):
    reader.freeze().train()
    before = state(reader)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        once, again = (saliency.attribute_words(reader, SENTENCES, LABELS3, method=method) for _ in range(2))
    assert state(reader) == before
    assert all(np.array_equal(a, b) for a, b in zip(once, again, strict=True)) and once[0].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "leave_two_out"}, "did you mean 'leave_one_out'"),
        ({"method": "leave_one_out", "steps": 3}, "'leave_one_out' has no options"),
        ({"labels": torch.tensor([0, 1])}, "for 3 lists of words"),
        ({"labels": torch.tensor([0, 1, 3])}, "class 3 is not one of this model's 3"),
        ({"labels": torch.tensor([3, 1, 0])}, "class 3 is not one of this model's 3"),
        ({"steps": 0}, "steps=0"),
    ],
)
def test_a_wrong_call_for_words_says_what_to_change(reader, changes, message):
    with pytest.raises(UsageError, match=message):
        saliency.attribute_words(**{"model": reader, "words": SENTENCES, "labels": LABELS3} | changes)


def test_words_need_a_reader_and_as_many_pictures(fused):
    with pytest.raises(UsageError, match="does not read words; explain its pixels"):
        saliency.attribute_words(network(), SENTENCES, LABELS3)
    with pytest.raises(UsageError, match="2 images for 3 lists of words"):
        saliency.attribute_words(fused, SENTENCES, LABELS3, pictures(2))
