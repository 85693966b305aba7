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
from retailkit.config import UsageError, UserError
from retailkit.data.table import Word
from retailkit.explain import saliency
from retailkit.models import ProductClassifier
from retailkit.models.pooling import FeatureScaler, Head

CLASSES = ["lean", "extra lean", "medium"]
EVERYWHERE = [m for m in saliency.METHODS if m not in ("windows", "regions")]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "milk", "oat", "lean", "extra", "##y", "ground", "beef"]
TINY = {"model_type": "bert", "vocab_size": len(VOCABULARY), "hidden_size": 16, "intermediate_size": 32,
        "num_attention_heads": 2, "num_hidden_layers": 2, "initializer_range": 0.5}  # fmt: skip


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


def network(name="image", backbone="timm:test_resnet", **options):
    torch.manual_seed(0)
    model = models.build(name, CLASSES, backbone, weights=None, **options).eval()
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
    rows = zip(logits, labels.tolist(), strict=True)
    return torch.stack([row[label] - max(row[k] for k in range(len(row)) if k != label) for row, label in rows])


def words(*texts):
    return [Word(text, (10.0 * i, 0.0, 10.0 * i + 9, 8.0)) for i, text in enumerate(texts)]


# -- Where the answer is known


def test_rise_finds_where_the_model_looks():
    maps = saliency.attribute(Corner(), torch.ones(2, 3, 16, 16), torch.tensor([1, 0]), "rise", masks=2000)
    assert maps[0, :8, :8].mean() > 10 * maps[0, 10:, 10:].abs().mean() and torch.allclose(maps[0], -maps[1])


@pytest.mark.parametrize("method", ["occlusion", "saliency", "smoothgrad"])
def test_evidence_lies_where_the_model_looks(method):
    images = torch.ones(2, 3, 16, 16)
    maps = saliency.attribute(Corner(), images, torch.tensor([1, 1]), method)
    assert maps.shape == (2, 16, 16)
    assert (maps[:, :8, :8] > 0).all() and maps[:, 9:, 9:].abs().max() == 0
    against = saliency.attribute(Corner(), images, torch.tensor([0, 0]), method)
    assert torch.allclose(against, -maps)


def test_gradients_of_a_weighted_sum_are_its_weights():
    model, images, labels = Weighted(8), pictures(4, 8), torch.tensor([0, 1, 2, 1])
    contrast = saliency.runner_up(model(images), labels)
    weights = (model.weights[labels] - model.weights[contrast]).detach()
    plain = saliency.attribute(model, images, labels, "saliency")
    assert torch.allclose(plain, weights.sum(1), atol=1e-5)
    assert torch.allclose(saliency.attribute(model, images, labels, "smoothgrad"), plain, atol=1e-4)
    paths = saliency.attribute(model, images, labels, "integrated_gradients", steps=3)
    assert torch.allclose(paths, ((images - saliency.blurred(images)) * weights).sum(1), atol=1e-5)


def test_occlusion_is_the_plain_loop():
    model, images, labels = Weighted(8), pictures(1, 8), torch.tensor([1])
    contrast = saliency.runner_up(model(images), labels)
    score = lambda x: float((model(x)[0, 1] - model(x)[0, contrast]).detach())  # noqa: E731
    total, covered = torch.zeros(8, 8), torch.zeros(8, 8)
    for y in range(0, 5, 2):
        for x in range(0, 5, 2):
            hidden = images.clone()
            hidden[..., y : y + 4, x : x + 4] = 0.5
            total[y : y + 4, x : x + 4] += score(images) - score(hidden)
            covered[y : y + 4, x : x + 4] += 1
    maps = saliency.attribute(model, images, labels, "occlusion", window=4)
    assert torch.allclose(maps[0], total / covered, atol=1e-4)


def test_integrated_gradients_add_up_to_the_margin():
    model, images, labels = network(), pictures(), torch.tensor([2, 0])
    maps = saliency.attribute(model, images, labels, "integrated_gradients")
    side = 64 / 56
    start = torch.from_numpy(gaussian_filter(images.numpy(), (0, 0, side, side), mode="mirror", radius=(0, 0, 4, 4)))
    with torch.no_grad():
        logits, first = model(images), model(start)
    rows, contrast = torch.arange(2), saliency.runner_up(logits, labels)
    rise = (logits - first)[rows, labels] - (logits - first)[rows, contrast]
    assert torch.allclose(maps.sum((1, 2)), rise, rtol=0.03, atol=0.03 * float(rise.abs().max()))


def test_smoothgrad_is_the_mean_over_seeded_noise():
    model, images, labels = network(), pictures(), torch.tensor([2, 0])
    maps = saliency.attribute(model, images, labels, "smoothgrad", samples=3, seed=5)
    contrast = saliency.runner_up(model(images), labels)
    generator, total = torch.Generator().manual_seed(5), 0
    for _ in range(3):
        noisy = (images + 0.1 * torch.randn(3, 64, 64, generator=generator)).requires_grad_()
        logits = model(noisy)
        rise = sum(logits[i, labels[i]] - logits[i, contrast[i]] for i in range(2))
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


@pytest.mark.parametrize(("name", "options"), [("image", {}), ("lca", {}), ("nts", {"propose": 4, "parts": 2})])
@pytest.mark.parametrize("freeze", [False, True])
def test_gradcam_is_autograd_on_the_whole_picture(name, options, freeze):
    model, images, labels = network(name, freeze=freeze, **options), pictures(side=96), torch.tensor([2, 0])
    maps = saliency.attribute(model, images, labels, "gradcam")
    expected = by_hand_gradcam(model, images, labels)
    assert expected.abs().max() > 0
    assert torch.allclose(maps, expected, atol=1e-4 * float(expected.abs().max()))
    assert maps.min() < 0 < maps.max() or name != "image"


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


@pytest.mark.parametrize("side", [80, 64])
def test_windows_are_their_contributions_painted_one_by_one(side):
    """At 80 pixels the last cells of the map end at 96: windows are clipped to the image."""
    model, images, labels = network("lca"), pictures(side=side), torch.tensor([2, 0])
    maps = saliency.attribute(model, images, labels, "windows")
    with torch.no_grad():
        contrast = saliency.runner_up(model(images), labels)
    boxes, own = model.window_contributions(images, labels)
    contributions = own - model.window_contributions(images, contrast)[1]
    assert boxes.min() == 0 and boxes.max() == side and (boxes[:, 2:] > boxes[:, :2]).all()
    expected = torch.zeros(2, side, side)
    for b in range(2):
        for (x0, y0, x1, y1), c in zip(boxes.tolist(), contributions[b], strict=True):
            expected[b, y0:y1, x0:x1] += c / ((x1 - x0) * (y1 - y0))
    assert torch.allclose(maps, expected, atol=1e-5 * float(expected.abs().max()))
    assert torch.allclose(maps.sum((1, 2)), contributions.sum(1), rtol=1e-3)


def test_regions_add_up_to_the_margin_less_the_whole_picture():
    model, images, labels = network("nts", propose=4, parts=2), pictures(side=96), torch.tensor([2, 0])
    model.head.scalers["image"].fit(model.encode_image(pictures(6, 96, seed=1)))
    maps = saliency.attribute(model, images, labels, "regions")
    scaled = model.head.scalers["image"](model.encode_image(images))
    linear = model.head.linear
    boxes = model.regions(images).boxes[:, :2].clamp(0, 96)
    for b in range(2):
        contrast = int(saliency.runner_up(linear(scaled), labels)[b])
        weights = linear.weight[labels[b]] - linear.weight[contrast]
        parts = (weights * scaled[b]).view(3, -1).sum(1)[:2].detach()
        expected = torch.zeros(96, 96)
        for (x0, y0, x1, y1), value in zip(boxes[b].tolist(), parts, strict=True):
            expected[y0:y1, x0:x1] += value / ((x1 - x0) * (y1 - y0))
        assert torch.allclose(maps[b], expected, atol=1e-5 * float(expected.abs().max()))
        assert maps[b].sum() == pytest.approx(float(parts.sum()), rel=1e-3)


# -- Behaviour


QUICK = {
    "rise": {"masks": 24},
    "smoothgrad": {"samples": 3},
    "integrated_gradients": {"steps": 3},
    "occlusion": {"window": 32},
}


def example(method, count=2):
    """A model that the method suits, pictures and labels, and options that make it quick."""
    model = network({"windows": "lca", "regions": "nts"}.get(method, "image"))
    side = 96 if method == "regions" else 64
    return model, pictures(count, side), torch.tensor([2, 0, 1])[:count], QUICK.get(method, {})


def close(a, b):
    """Equal but for a few pixels: rounding differs with the size of a batch, and may open or shut a rectifier."""
    return bool((a - b).abs().mean() <= 0.01 * b.abs().mean())


@pytest.mark.parametrize(("name", "method"), zip(("image", "lca"), saliency.FORWARD_ONLY, strict=True))
def test_methods_without_gradient_give_in_the_compiled_encoder_what_pytorch_gives(name, method, monkeypatch):
    model, (_, images, labels, options) = network(name), example(method)
    fast = saliency.attribute(model, images, labels, method, **options)
    monkeypatch.setattr(saliency, "compiled", lambda model: model)
    slow = saliency.attribute(model, images, labels, method, **options)
    assert slow.std() > 0 and (fast - slow).abs().max() <= 1e-3 * slow.abs().max()


def state(model):
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()]
    weights = [(p.requires_grad, p.grad) for p in model.parameters()]
    return hooks, weights, [m.training for m in model.modules()], [float(b.sum()) for b in model.buffers()]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("method", saliency.METHODS)
def test_a_map_depends_neither_on_its_batch_nor_on_chance_and_leaves_the_model_as_it_was(method, monkeypatch):
    model, images, labels, options = example(method, 3)
    model.train()
    model.image_encoder.map_layer.eval()  # a mode of its own survives too
    next(model.parameters()).requires_grad_(False)
    torch.manual_seed(1)
    before, chance = state(model), torch.get_rng_state()
    together = saliency.attribute(model, images, labels, method, **options)
    assert torch.equal(torch.get_rng_state(), chance)
    torch.manual_seed(2)
    assert torch.equal(saliency.attribute(model, images, labels, method, **options), together)
    monkeypatch.setattr(saliency, "BATCH", 2)  # two and one
    assert close(saliency.attribute(model, images, labels, method, **options), together)
    assert together.std() > 0 and together.dtype == torch.float32 and not together.requires_grad
    assert state(model) == before


@pytest.mark.parametrize("method", EVERYWHERE)
def test_texts_stay_with_their_pictures(fused, method):
    images, labels, texts, options = pictures(), torch.tensor([2, 0]), ["oat milk", "lean beef"], QUICK.get(method, {})
    together = saliency.attribute(fused, images, labels, method, texts, **options)
    for i in range(2):
        alone = saliency.attribute(fused, images[i : i + 1], labels[i : i + 1], method, texts[i : i + 1], **options)
        assert close(alone[0], together[i])
    assert not close(saliency.attribute(fused, images, labels, method, texts[::-1], **options), together)


def test_the_model_is_left_as_it_was_after_an_error(monkeypatch):
    model, images, labels, _ = example("gradcam")
    model.train()
    before, works = state(model), model.image_encoder.network.forward_features

    def fails_at_the_gradient(given):
        if torch.is_grad_enabled():
            raise RuntimeError("out of memory")
        return works(given)

    monkeypatch.setattr(model.image_encoder.network, "forward_features", fails_at_the_gradient)
    for method in ("gradcam", "guided_gradcam"):
        with pytest.raises(RuntimeError, match="out of memory"):
            saliency.attribute(model, images, labels, method)
    assert state(model) == before


@pytest.mark.parametrize("method", ["gradcam", "saliency", "occlusion"])
@pytest.mark.parametrize("kind", [np.asarray, torch.Tensor.double, torch.Tensor.requires_grad_])
def test_images_may_be_tensors_or_arrays_of_any_float(method, kind):
    model, labels, options = network(), torch.tensor([1]), QUICK.get(method, {})
    expected = saliency.attribute(model, pictures(1), labels, method, **options)
    given = pictures(1)
    with torch.inference_mode():
        found = saliency.attribute(model, kind(given), np.array([1]), method, **options)
    assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))
    with pytest.raises(UserError, match=r"images: values are torch.uint8"):
        saliency.attribute(model, np.zeros((1, 3, 64, 64), np.uint8), labels, method)


def test_models_without_what_a_method_needs_say_so(reader):
    images, labels = pictures(1), torch.tensor([0])
    with pytest.raises(UsageError, match="unknown saliency method 'oclusion'; did you mean 'occlusion'"):
        saliency.attribute(Corner(), images, labels, "oclusion")
    for method, cure in (("gradcam", "no feature maps"), ("windows", "'lca'"), ("regions", "parts=4")):
        with pytest.raises(UsageError, match=cure):
            saliency.attribute(Corner(), images, labels, method)
    with pytest.raises(UsageError, match="parts=4"):
        saliency.attribute(network("nts", parts=0), images, labels, "regions")
    with pytest.raises(UsageError, match="does not use images; explain its words"):
        saliency.attribute(reader, images, labels)
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
    assert [t.text for t in first] == ["[CLS]", "extra", "lean", "##y", "beef", "[SEP]"]
    assert [t.word for t in first] == [-1, 0, 1, 1, 2, -1]
    assert none == [] and [t.word for t in third] == [-1, 0, 1, 1, -1]
    text = "Extra leany beef"
    assert [text[t.start : t.end] for t in first[1:-1]] == ["Extra", "lean", "y", "beef"]
    assert first[0].value == first[-1].value == 0


def test_word_gradients_are_the_integral_by_hand(reader):
    label, text = 2, "extra leany beef"
    (found,) = saliency.attribute_tokens(reader, [words(*text.split())], torch.tensor([label]), steps=64)
    encoder, ids = reader.text_encoder, torch.tensor([[2, 8, 7, 9, 11, 3]])
    ends = encoder.embedding(ids).detach(), encoder.embedding(torch.tensor([[2, 0, 0, 0, 0, 3]])).detach()
    contrast = int(saliency.runner_up(reader(texts=[text]), torch.tensor([label])))

    def score(vectors):
        states = encoder.network(inputs_embeds=vectors).last_hidden_state.mean(1)
        logits = reader.head.linear(F.normalize(states, dim=1))
        return logits[:, label] - logits[:, contrast]

    total, steps = torch.zeros(6), 400
    for k in range(steps):
        at = (ends[1] + (k + 0.5) / steps * (ends[0] - ends[1])).requires_grad_()
        total += (torch.autograd.grad(score(at).sum(), at)[0] * (ends[0] - ends[1])).sum(2)[0] / steps
    values = torch.tensor([t.value for t in found])
    assert torch.allclose(values, total, atol=0.01 * float(total.abs().max()))
    assert float(values.sum()) == pytest.approx((score(ends[0]) - score(ends[1])).item(), rel=0.01)


@pytest.mark.parametrize("name", [n for n, spec in models.MODELS.items() if len(spec.modalities) == 2])
def test_every_fusion_is_explained_by_image_and_words(name):
    model = network(name, text_encoder="minilm", text_weights=None, text_config=TINY)
    read_with_tiny_vocabulary(model.text_encoder)
    images, texts = pictures(3), ["extra leany beef", None, "oat milky"]
    maps = saliency.attribute(model, images, LABELS3, "gradcam", texts)
    assert maps.isfinite().all() and (maps.abs().amax((1, 2)) > 0).all()
    first, none, _ = saliency.attribute_tokens(model, SENTENCES, LABELS3)
    assert np.isfinite([t.value for t in first]).all() and any(t.value for t in first) and none == []


def test_words_of_which_nothing_is_read_have_no_token(reader):
    some = [words("lean", "\u200b", "", "beef"), words("\u200b"), words("", " "), []]
    tokens = saliency.attribute_tokens(reader, some, torch.tensor([0, 1, 2, 0]))
    assert [t.word for t in tokens[0]] == [-1, 0, 3, -1]
    assert [t.word for t in tokens[1]] == [-1, -1] and tokens[2] == tokens[3] == []


def test_a_barcode_has_no_token_and_leaves_the_others_as_they_are(reader):
    printed = [words("lean", "4006381", "333931", "beef"), words("lean", "beef")]
    tokens, without = saliency.attribute_tokens(reader, printed, torch.tensor([1, 1]))
    assert [t.word for t in tokens] == [-1, 0, 3, -1]
    assert [t.value for t in tokens] == pytest.approx([t.value for t in without])


def test_the_reader_is_left_as_it_was(reader):
    reader.freeze().train()
    before = state(reader)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        once, again = (saliency.attribute_tokens(reader, SENTENCES, LABELS3) for _ in range(2))
    assert state(reader) == before and once == again
    with torch.inference_mode():
        assert saliency.attribute_tokens(reader, SENTENCES, LABELS3.clone()) == once
    assert state(reader) == before


def test_words_need_an_encoder_with_embeddings():
    for model in (network(), models.build("text", CLASSES, text_encoder="char_ngrams")):
        with pytest.raises(UsageError, match="no word embeddings; explain its words by"):
            saliency.attribute_tokens(model, SENTENCES, LABELS3)
