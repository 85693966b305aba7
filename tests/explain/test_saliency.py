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

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "milk", "oat", "lean", "extra", "##y", "ground", "beef"]
TINY = {"model_type": "bert", "vocab_size": len(VOCABULARY), "hidden_size": 16, "intermediate_size": 32,
        "num_attention_heads": 2, "num_hidden_layers": 2, "initializer_range": 0.5}  # fmt: skip
READER = {"text_encoder": "minilm", "text_weights": None, "text_config": TINY}
QUICK = {"rise": {"masks": 24}, "smoothgrad": {"samples": 3}, "integrated_gradients": {"steps": 3},
         "occlusion": {"window": 32}}  # fmt: skip


class Corner(nn.Module):
    """Class 1 is the brightness of the upper left quarter, class 0 is nothing."""

    def forward(self, images, texts=None):
        score = images[:, :, :8, :8].mean((1, 2, 3))
        return torch.stack([torch.zeros_like(score), score], 1)


class Weighted(nn.Module):
    """Logits are weighted sums of the pixels of images of 8 x 8."""

    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1)))

    def forward(self, images, texts=None):
        return torch.einsum("bchw,kchw->bk", images, self.weights)


class Product(Head):
    """Logits of the image times logits of the text: each modality changes what the other says."""

    def __init__(self, scalers, n_classes):
        super().__init__(scalers)
        self.image = nn.Linear(len(scalers["image"].mean), n_classes)
        self.text = nn.Linear(len(scalers["text"].mean), n_classes)

    def forward(self, features):
        logits = self.text(self.scalers["text"](features["text"]))
        if "image" in features:
            logits = logits * (1 + self.image(self.scalers["image"](features["image"])))
        return logits


@pytest.fixture
def reads(network):
    """Return a function that builds a model whose text encoder is a tiny transformer with seven words."""
    tokenizer = Tokenizer(WordPiece({w: i for i, w in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])

    def build(name):
        model = network(name, **READER)
        model.text_encoder.set_extra_state(torch.tensor(list(tokenizer.to_str().encode()), dtype=torch.uint8))
        return model.eval()

    return build


@pytest.fixture
def reader(reads):
    return reads("text")


@pytest.fixture
def fused(network, reader):
    """A model of both modalities, with the smallest head there is."""
    both = network()
    torch.manual_seed(3)
    head = Product({"image": FeatureScaler(both.image_encoder.dim), "text": FeatureScaler(16)}, 3)
    return ProductClassifier(both.classes, head, both.image_encoder, both.pooling, reader.text_encoder).eval()


def margins(logits, labels):
    """The margin by a loop over images."""
    rows = zip(logits, labels.tolist(), strict=True)
    return torch.stack([row[label] - max(row[k] for k in range(len(row)) if k != label) for row, label in rows])


def words(*texts):
    return [Word(text, (10.0 * i, 0.0, 10.0 * i + 9, 8.0)) for i, text in enumerate(texts)]


def near(found, expected, tolerance):
    """Whether maps are equal up to a share of the largest value, which is not 0."""
    largest = float(expected.abs().max())
    return largest > 0 and torch.allclose(found, expected, atol=tolerance * largest)


# -- Where the answer is known


@pytest.mark.parametrize("method", ["occlusion", "saliency", "smoothgrad", "rise"])
def test_evidence_lies_where_the_model_looks(method):
    images, options = torch.ones(2, 3, 16, 16), {"masks": 2000} if method == "rise" else {}
    maps = saliency.attribute(Corner(), images, torch.tensor([1, 0]), method, **options)
    assert maps.shape == (2, 16, 16) and torch.allclose(maps[0], -maps[1])
    if method == "rise":
        assert maps[0, :8, :8].mean() > 10 * maps[0, 10:, 10:].abs().mean()
    else:
        assert (maps[0, :8, :8] > 0).all() and maps[:, 9:, 9:].abs().max() == 0


@torch.no_grad()
def test_occlusion_is_the_plain_loop(pictures):
    model, images, labels = Weighted(), pictures(1, 8), torch.tensor([1])
    contrast = saliency.runner_up(model(images), labels)
    total, covered = torch.zeros(8, 8), torch.zeros(8, 8)
    for y, x in np.ndindex(3, 3):
        window = slice(2 * y, 2 * y + 4), slice(2 * x, 2 * x + 4)
        hidden = images.clone()
        hidden[..., *window] = 0.5
        fall = (model(images) - model(hidden))[0]
        total[window] += fall[1] - fall[contrast[0]]
        covered[window] += 1
    maps = saliency.attribute(model, images, labels, "occlusion", window=4)
    assert torch.allclose(maps[0], total / covered, atol=1e-4)


def test_integrated_gradients_add_up_to_the_margin(network, pictures):
    model, images, labels = network(), pictures(2), torch.tensor([2, 0])
    maps = saliency.attribute(model, images, labels, "integrated_gradients")
    side = 64 / 56
    start = torch.from_numpy(gaussian_filter(images.numpy(), (0, 0, side, side), mode="mirror", radius=(0, 0, 4, 4)))
    with torch.no_grad():
        logits, first = model(images), model(start)
    rows, contrast = torch.arange(2), saliency.runner_up(logits, labels)
    rise = (logits - first)[rows, labels] - (logits - first)[rows, contrast]
    assert torch.allclose(maps.sum((1, 2)), rise, rtol=0.03, atol=0.03 * float(rise.abs().max()))


def test_smoothgrad_is_the_mean_over_seeded_noise(network, pictures):
    model, images, labels = network(), pictures(2), torch.tensor([2, 0])
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
    """Grad-CAM by autograd, on the map of the whole image."""
    maps = []
    handle = model.image_encoder.map_layer.register_forward_hook(lambda *call: maps.append(call[2]))
    rise = margins(model(images.clone().requires_grad_()), labels).sum()
    handle.remove()
    (slope,) = torch.autograd.grad(rise, maps[0])
    cam = (slope.mean((2, 3), keepdim=True) * maps[0]).sum(1, keepdim=True).detach()
    return F.interpolate(cam.relu() if positive else cam, images.shape[2:], mode="bilinear")[:, 0]


@pytest.mark.parametrize(("name", "options"), [("image", {}), ("lca", {}), ("nts", {"propose": 4, "parts": 2})])
@pytest.mark.parametrize("freeze", [False, True])
def test_gradcam_is_autograd_on_the_whole_image(network, pictures, name, options, freeze):
    model, images, labels = network(name, freeze=freeze, **options), pictures(2, 96), torch.tensor([2, 0])
    maps = saliency.attribute(model, images, labels, "gradcam")
    assert near(maps, by_hand_gradcam(model, images, labels), 1e-4)
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


def with_guided_rectifiers(model):
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, (nn.ReLU, nn.ReLU6)):
            top = 6.0 if isinstance(module, nn.ReLU6) else float("inf")
            module.forward = lambda x, top=top: GuidedRectifier.apply(x, top)
    return model


@pytest.mark.parametrize("backbone", ["resnet18", "efficientnet_lite0", "efficientnet_b0"])
def test_guided_gradcam_lets_no_negative_gradient_through_a_rectifier(network, pictures, backbone):
    model, images, labels, expected = network(backbone=backbone), pictures(2), torch.tensor([2, 0]), []
    maps = saliency.attribute(model, images, labels, "guided_gradcam")
    cam = by_hand_gradcam(model, images, labels, positive=True)
    for net in (with_guided_rectifiers(model), model):
        pixels = images.clone().requires_grad_()
        expected.append(torch.autograd.grad(margins(net(pixels), labels).sum(), pixels)[0].sum(1) * cam)
    assert near(maps, expected[0], 1e-4)
    assert near(maps, expected[1], 1e-4) == (backbone == "efficientnet_b0")  # no rectifier there


def painted(boxes, values, side):
    """Each value spread evenly over its box, one after the other."""
    map_ = torch.zeros(side, side)
    for (x0, y0, x1, y1), value in zip(boxes.tolist(), values, strict=True):
        map_[y0:y1, x0:x1] += value / ((x1 - x0) * (y1 - y0))
    return map_


@pytest.mark.parametrize("side", [80, 64])
def test_windows_are_their_contributions_painted_one_by_one(network, pictures, side):
    """At 80 pixels the last cells of the map end at 96: windows are clipped to the image."""
    model, images, labels = network("lca"), pictures(2, side), torch.tensor([2, 0])
    maps = saliency.attribute(model, images, labels, "windows")
    with torch.no_grad():
        contrast = saliency.runner_up(model(images), labels)
    boxes, own = model.window_contributions(images, labels)
    contributions = own - model.window_contributions(images, contrast)[1]
    assert boxes.min() == 0 and boxes.max() == side and (boxes[:, 2:] > boxes[:, :2]).all()
    assert near(maps, torch.stack([painted(boxes, own, side) for own in contributions]), 1e-5)
    assert torch.allclose(maps.sum((1, 2)), contributions.sum(1), rtol=1e-3)


def test_regions_add_up_to_the_margin_less_the_whole_image(network, pictures):
    model, images, labels = network("nts", propose=4, parts=2), pictures(2, 96), torch.tensor([2, 0])
    model.head.scalers["image"].fit(model.encode_image(pictures(6, 96, seed=1)))
    maps, linear = saliency.attribute(model, images, labels, "regions"), model.head.linear
    scaled = model.head.scalers["image"](model.encode_image(images))
    contrast, boxes = saliency.runner_up(linear(scaled), labels), model.regions(images).boxes[:, :2].clamp(0, 96)
    for b in range(2):
        weights = linear.weight[labels[b]] - linear.weight[contrast[b]]
        parts = (weights * scaled[b]).view(3, -1).sum(1)[:2].detach()
        assert near(maps[b], painted(boxes[b], parts, 96), 1e-5)
        assert maps[b].sum() == pytest.approx(float(parts.sum()), rel=1e-3)


# -- Behaviour


def close(a, b):
    """Equal but for a few pixels: rounding differs with the size of a batch, and may open or shut a rectifier."""
    return bool((a - b).abs().mean() <= 0.01 * b.abs().mean())


@pytest.mark.parametrize(("name", "method"), zip(("image", "lca"), saliency.FORWARD_ONLY, strict=True))
def test_methods_without_gradient_give_in_the_compiled_encoder_what_pytorch_gives(
    network, pictures, name, method, monkeypatch
):
    given = network(name), pictures(2), torch.tensor([2, 0]), method
    fast = saliency.attribute(*given, **QUICK[method])
    monkeypatch.setattr(saliency, "compiled", lambda model: model)
    slow = saliency.attribute(*given, **QUICK[method])
    assert slow.std() > 0 and (fast - slow).abs().max() <= 1e-3 * slow.abs().max()


def state(model):
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()]
    weights = [(p.requires_grad, p.grad) for p in model.parameters()]
    return hooks, weights, [m.training for m in model.modules()], [float(b.sum()) for b in model.buffers()]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("method", saliency.METHODS)
def test_a_map_depends_neither_on_its_batch_nor_on_chance_and_leaves_the_model_as_it_was(
    network, pictures, method, monkeypatch
):
    model = network({"windows": "lca", "regions": "nts"}.get(method, "image"))
    given = model, pictures(3, 96 if method == "regions" else 64), torch.tensor([2, 0, 1]), method
    model.train()
    model.image_encoder.map_layer.eval()  # a mode of its own survives too
    next(model.parameters()).requires_grad_(False)
    torch.manual_seed(1)
    before, chance = state(model), torch.get_rng_state()
    together = saliency.attribute(*given, **QUICK.get(method, {}))
    assert torch.equal(torch.get_rng_state(), chance)
    torch.manual_seed(2)
    assert torch.equal(saliency.attribute(*given, **QUICK.get(method, {})), together)
    monkeypatch.setattr(saliency, "BATCH", 2)  # two and one
    assert close(saliency.attribute(*given, **QUICK.get(method, {})), together)
    assert together.std() > 0 and together.dtype == torch.float32 and not together.requires_grad
    assert state(model) == before


@pytest.mark.parametrize("method", [m for m in saliency.METHODS if m not in ("windows", "regions")])
def test_texts_stay_with_their_images(fused, pictures, method):
    def maps(rows, texts):
        return saliency.attribute(fused, pictures(2)[rows], labels[rows], method, texts, **QUICK.get(method, {}))

    labels, texts = torch.tensor([2, 0]), ["oat milk", "lean beef"]
    together = maps([0, 1], texts)
    for i in range(2):
        assert close(maps([i], texts[i : i + 1])[0], together[i])
    assert not close(maps([0, 1], texts[::-1]), together)


def test_the_model_is_left_as_it_was_after_an_error(network, pictures, monkeypatch):
    model = network().train()
    before, works = state(model), model.image_encoder.network.forward_features

    def fails_at_the_gradient(given):
        if torch.is_grad_enabled():
            raise RuntimeError("out of memory")
        return works(given)

    monkeypatch.setattr(model.image_encoder.network, "forward_features", fails_at_the_gradient)
    for method in ("gradcam", "guided_gradcam"):
        with pytest.raises(RuntimeError, match="out of memory"):
            saliency.attribute(model, pictures(2), torch.tensor([2, 0]), method)
    assert state(model) == before


@pytest.mark.parametrize("method", ["gradcam", "saliency", "occlusion"])
@pytest.mark.parametrize("kind", [np.asarray, torch.Tensor.double, torch.Tensor.requires_grad_])
def test_images_may_be_tensors_or_arrays_of_any_float(network, pictures, method, kind):
    model, labels, options, given = network(), torch.tensor([1]), QUICK.get(method, {}), pictures(1)
    expected = saliency.attribute(model, pictures(1), labels, method, **options)
    with torch.inference_mode():
        found = saliency.attribute(model, kind(given), np.array([1]), method, **options)
    assert near(found, expected, 1e-4)
    with pytest.raises(UserError, match=r"images: values are torch.uint8"):
        saliency.attribute(model, np.zeros((1, 3, 64, 64), np.uint8), labels, method)


def test_models_without_what_a_method_needs_say_so(network, reader, pictures):
    images, labels, stepped = pictures(1), torch.tensor([0]), Corner()
    stepped.forward = lambda images, texts=None: Corner()(images.detach()).round()
    for model, method, cure in (
        (Corner(), "oclusion", "unknown saliency method 'oclusion'; did you mean 'occlusion'"),
        (Corner(), "gradcam", "no feature maps"),
        (Corner(), "windows", "'lca'"),
        (Corner(), "regions", "parts=4"),
        (network("nts", parts=0), "regions", "parts=4"),
        (reader, "occlusion", "does not use images; explain its words"),
        (stepped, "saliency", "no gradient; use method='occlusion'"),
    ):
        with pytest.raises(UsageError, match=cure):
            saliency.attribute(model, images, labels, method)
    assert saliency.attribute(stepped, images, labels).shape == (1, 64, 64)


# -- Words


SENTENCES = [words("Extra", "leany", "beef"), [], words("oat", "milky")]
LABELS = torch.tensor([0, 1, 2])


def test_every_token_belongs_to_its_word(reader):
    first, none, third = saliency.attribute_tokens(reader, SENTENCES, LABELS)
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
    assert near(values, total, 0.01)
    assert float(values.sum()) == pytest.approx((score(ends[0]) - score(ends[1])).item(), rel=0.01)


@pytest.mark.parametrize("name", [n for n, spec in models.MODELS.items() if len(spec.modalities) == 2])
def test_every_fusion_is_explained_by_image_and_words(reads, pictures, name):
    model, texts = reads(name), ["extra leany beef", None, "oat milky"]
    maps = saliency.attribute(model, pictures(3), LABELS, "gradcam", texts)
    assert maps.isfinite().all() and (maps.abs().amax((1, 2)) > 0).all()
    first, none, _ = saliency.attribute_tokens(model, SENTENCES, LABELS)
    assert np.isfinite([t.value for t in first]).all() and any(t.value for t in first) and none == []


def test_words_of_which_nothing_is_read_have_no_token(reader):
    """So has a barcode, and it leaves the others as they are."""
    some = [words("lean", "\u200b", "", "beef"), words("\u200b"), words("", " "), []]
    some += [words("lean", "4006381", "333931", "beef"), words("lean", "beef")]
    found = saliency.attribute_tokens(reader, some, torch.tensor([0, 1, 2, 0, 1, 1]))
    marked = [[-1, 0, 3, -1], [-1, -1], [], [], [-1, 0, 3, -1], [-1, 0, 1, -1]]
    assert [[t.word for t in tokens] for tokens in found] == marked
    assert [t.value for t in found[4]] == pytest.approx([t.value for t in found[5]])


def test_the_reader_is_left_as_it_was(reader):
    reader.freeze().train()
    before = state(reader)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        once, again = (saliency.attribute_tokens(reader, SENTENCES, LABELS) for _ in range(2))
    assert state(reader) == before and once == again
    with torch.inference_mode():
        assert saliency.attribute_tokens(reader, SENTENCES, LABELS.clone()) == once
    assert state(reader) == before


@pytest.mark.parametrize(("name", "options"), [("image", {}), ("text", {"text_encoder": "char_ngrams"})])
def test_words_need_an_encoder_with_embeddings(network, name, options):
    with pytest.raises(UsageError, match="no word embeddings; explain its words by"):
        saliency.attribute_tokens(network(name, **options), SENTENCES, LABELS)
