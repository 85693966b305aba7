"""Fast prediction: every backend agrees with the model's own code, or gives way to it and says why."""

import copy

import pytest
import torch

from retailkit import inference, models
from retailkit.config import UsageError, UserError
from retailkit.inference import BACKENDS, Predictor
from retailkit.models.classifier import Features

SIZE = 64
CLASSES = ["lean", "extra lean", "oat", "soy"]
NETS = ("resnet18", "efficientnet_lite0")


def make(backbone="resnet18", pooling="gap", **options):
    """A model of random weights whose features and probabilities differ from picture to picture."""
    torch.manual_seed(0)
    model = models.build("image", CLASSES, backbone, pooling=pooling, weights=None, **options)
    liven(model, inference._made_up(SIZE))
    return model.eval()


@torch.no_grad()
def liven(model, pictures):
    """Give batch normalisation real statistics, and logits a standard deviation of 1."""
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
        norm.weight.uniform_(0.5, 1.5), norm.bias.uniform_(-0.2, 0.2)
    model.train()
    model.image_encoder.forward_map(torch.cat([pictures, 1 - pictures]))
    model.eval()
    features = model.encode_image(torch.cat([pictures, 1 - pictures]))
    model.head.scalers["image"].fit(features)
    model.head.linear.weight.div_(model.classify(features).std())


@pytest.fixture(scope="module")
def pictures():
    generator = torch.Generator().manual_seed(3)
    blobs = torch.rand(6, 3, 8, 8, generator=generator)
    return torch.nn.functional.interpolate(blobs, (SIZE, SIZE), mode="bilinear").clamp(0, 1)


@pytest.fixture(scope="module")
def masks():
    cells = torch.rand(11, 1, 4, 4, generator=torch.Generator().manual_seed(4)) < 0.6
    return cells.repeat_interleave(SIZE // 4, 2).repeat_interleave(SIZE // 4, 3)


@pytest.fixture(scope="module")
def model():
    return make()


@pytest.fixture
def fresh_timings(monkeypatch):
    monkeypatch.setattr(inference, "_SECONDS", {})


@torch.inference_mode()
def plain(model, images, texts=None):
    return model(images, texts).softmax(-1)


def need(backend):
    if backend == "onnx":
        pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")
    if backend == "bf16" and not inference._computes_bf16("cpu"):
        pytest.skip("this CPU does not compute in bfloat16")


@pytest.mark.parametrize("pooling", ["gap", "lca", "nts"])
@pytest.mark.parametrize("backbone", NETS)
@pytest.mark.parametrize("backend", ["folded", "onnx"])
def test_exact_backends_give_what_the_model_gives(backend, backbone, pooling, pictures):
    need(backend)
    # The 64 px pictures have two cells a side, too few for NTS's six parts at its usual sizes: fewer parts.
    model = make(backbone, pooling, **({"propose": 2, "parts": 1} if pooling == "nts" else {}))
    predictor = Predictor(model, SIZE, backend)
    assert predictor.backend == backend, predictor.report.to_string()
    reference = plain(model, pictures)
    assert reference.std(0).max() > 0.02, "all pictures look alike to this model, so that agreement says nothing"
    assert torch.allclose(predictor(pictures), reference, atol=1e-4)


@pytest.mark.parametrize("pooling", ["gap", "lca"])
def test_bf16_agrees_as_far_as_it_can(pooling, pictures):
    need("bf16")
    model = make(pooling=pooling)
    predictor = Predictor(model, SIZE, "bf16", tolerance=0.2)
    assert predictor.backend == "bf16", predictor.report.to_string()
    difference = (predictor(pictures) - plain(model, pictures)).abs().max()
    assert 0 < difference < 0.1


def test_other_libraries_networks_fold(pictures):
    model = make("shufflenet_v2_x1_0")
    folded = inference.fold(model.image_encoder, SIZE)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules())
    with torch.no_grad():
        assert torch.allclose(folded(pictures), model.image_encoder(pictures), atol=1e-4)


def test_auto_takes_the_fastest_that_agrees(model, pictures, fresh_timings):
    predictor = Predictor(model, SIZE)
    report = predictor.report
    assert set(report["backend"]) == set(BACKENDS) and report["chosen"].sum() == 1
    chosen = report[report["chosen"]].iloc[0]
    assert chosen["backend"] == predictor.backend and chosen["agreement"] <= 0.005
    fine = report[(report["agreement"] <= 0.005) & report["seconds"].notna()]
    assert chosen["seconds"] == fine["seconds"].min()
    assert (predictor(pictures) - plain(model, pictures)).abs().max() <= 0.01


def test_times_are_measured_once_but_agreement_for_each_model(model, fresh_timings, monkeypatch):
    monkeypatch.setattr(inference, "BACKENDS", {n: BACKENDS[n] for n in ("eager", "folded")})
    first = Predictor(model, SIZE).report
    monkeypatch.setattr(Predictor, "_time", lambda self, candidates, examples: None)
    other = Predictor(make(), SIZE).report
    assert other["seconds"].tolist() == first["seconds"].tolist() and other["seconds"].notna().all()
    assert other.loc[other["chosen"], "agreement"].notna().all()


def test_a_wrong_backend_is_refused_and_reported(model, pictures, fresh_timings, monkeypatch):
    def broken(encoder, size):
        zeros = torch.zeros(4, encoder.dim, size // encoder.stride, size // encoder.stride)
        return lambda images: zeros[: len(images)]  # very fast

    monkeypatch.setattr(inference, "BACKENDS", {"eager": BACKENDS["eager"], "broken": broken})
    for asked in ("auto", "broken"):
        predictor = Predictor(model, SIZE, asked)
        row = predictor.report.set_index("backend").loc["broken"]
        assert predictor.backend == "eager" and not row["chosen"]
        assert row["agreement"] > 0.01 and "accepted is 0.005" in row["note"]
        assert torch.equal(predictor(pictures), plain(model, pictures))
    assert predictor.report["backend"].iloc[0] == "broken", "the fastest row comes first"
    assert Predictor(model, SIZE, "broken", tolerance=1).backend == "eager", "half of the tolerance is accepted"


@pytest.mark.parametrize("when", ["built", "run", "nan"])
def test_a_failing_backend_never_fails_the_prediction(model, pictures, when, fresh_timings, monkeypatch):
    def failing(encoder, size):
        if when == "built":
            raise RuntimeError("cannot export\nmore")

        def forward_map(images):
            if when == "run":
                raise RuntimeError("cannot export")
            return encoder.forward_map(images) * float("nan")

        return forward_map

    monkeypatch.setattr(inference, "BACKENDS", {"eager": BACKENDS["eager"], "failing": failing})
    predictor = Predictor(model, SIZE)
    assert predictor.backend == "eager"
    note = predictor.report.set_index("backend").loc["failing", "note"]
    assert note == ("probabilities differ by nan; accepted is 0.005" if when == "nan" else "cannot export")
    assert torch.equal(predictor(pictures), plain(model, pictures))


def test_without_the_onnx_package_the_note_says_what_to_install(model, fresh_timings, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    note = Predictor(model, SIZE, "onnx").report.set_index("backend").loc["onnx", "note"]
    assert "pip install onnx" in note


@pytest.mark.parametrize("kind", ["bool", "float", "3d", "colour"])
def test_masks_equal_a_loop(model, pictures, masks, kind):
    image, baseline = pictures[0], pictures[1]
    if kind == "float":
        masks = masks.float() * 0.5 + 0.25
    if kind == "3d":
        masks = masks[:, 0]
    if kind == "colour":
        baseline = torch.tensor([0.2, 0.5, 0.7]).view(3, 1, 1)
    expected = []
    for mask in masks:
        mixed = torch.empty_like(image)
        for channel in range(3):
            kept = mask.reshape(SIZE, SIZE).float()
            mixed[channel] = kept * image[channel] + (1 - kept) * baseline.expand_as(image)[channel]
        expected.append(plain(model, mixed[None])[0])
    found = Predictor(model, SIZE, "folded").perturbed(image, masks, baseline)
    assert torch.allclose(found, torch.stack(expected), atol=1e-4)


def test_batch_size_changes_nothing_and_bounds_what_is_held(model, pictures, masks, monkeypatch):
    seen = []
    monkeypatch.setattr(inference, "composite", lambda *a, f=inference.composite: seen.append(len(a[1])) or f(*a))
    results = []
    for batch in (1, 4, 64):
        seen.clear()
        results.append(Predictor(model, SIZE, "folded", batch).perturbed(pictures[0], masks, pictures[1]))
        assert max(seen) == min(batch, 11) and sum(seen) == 11
    assert torch.allclose(results[0], results[1], atol=1e-5) and torch.allclose(results[0], results[2], atol=1e-5)


def test_features_are_encoded_once_and_classified_often(model, pictures):
    predictor = Predictor(model, SIZE, "folded")
    features = predictor.encode_image(pictures)
    rows = torch.tensor([0, 0, 5])
    probs = predictor.classify(Features(features.values[rows], features.available[rows]))
    assert torch.allclose(probs, plain(model, pictures[rows]), atol=1e-4)
    assert not probs.is_inference() and not features.values.is_inference()


def test_texts():
    model = models.build("text", CLASSES, text_encoder="char_ngrams").eval()
    torch.nn.init.normal_(model.head.linear.weight)
    predictor, texts = Predictor(model), ["lean beef", "oat", "lean beef"]
    assert predictor.backend == "eager" and "no image encoder" in predictor.report["note"].iloc[0]
    assert torch.allclose(predictor(texts=texts), plain(model, None, texts))
    assert torch.allclose(predictor(texts="oat"), plain(model, None, ["oat"]))
    with pytest.raises(UserError, match="nothing to classify"):
        predictor()


def test_texts_are_encoded_once_beside_texts_of_their_length(monkeypatch):
    model = models.build("text", CLASSES, text_encoder="char_ngrams").eval()
    encode, seen = model.encode_text, []
    monkeypatch.setattr(model, "encode_text", lambda texts: seen.append(texts) or encode(texts))
    texts = [" ".join(["beef"] * n) for n in (*range(40, 0, -1), *range(0, 30, 3))] + [None]
    found = Predictor(model).encode_text(texts)
    with torch.inference_mode():
        wanted = encode(texts)
    assert torch.allclose(found.values, wanted.values) and torch.equal(found.available, wanted.available)
    lengths = [len(text or "") for batch in seen for text in batch]
    assert len(found.values) == 51 and len(lengths) == 42 and lengths == sorted(lengths)
    assert max(map(len, seen)) == inference.TEXTS_AT_ONCE
    assert len(Predictor(model).encode_text([]).values) == 0


def test_matching_has_no_encoder_to_make_fast():
    model = models.build("matching", CLASSES)
    assert Predictor(model).backend == "eager"


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_untouched(pictures, masks, training):
    model = make("resnet18").train(training)
    before, modules = copy.deepcopy(model.state_dict()), list(model.modules())
    modes = [m.training for m in modules]
    learning = [p.requires_grad for p in model.parameters()]
    predictor = Predictor(model, SIZE)
    predictor.perturbed(pictures[0], masks, pictures[1])
    assert list(model.modules()) == modules and [m.training for m in modules] == modes
    assert [p.requires_grad for p in model.parameters()] == learning
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.train()
    model(pictures).sum().backward()  # nothing inside is an inference tensor now
    assert all(p.grad is not None for p in model.parameters())


BAD = {
    "size": (lambda p, x, m: p(x[:, :, :32]), r"\(6, 3, 32, 64\), not \(N, 3, 64, 64\)"),
    "channels": (lambda p, x, m: p(x[:, :1]), r"\(6, 1, 64, 64\)"),
    "one picture": (lambda p, x, m: p(x[0]), r"\(3, 64, 64\)"),
    "bytes": (lambda p, x, m: p((x * 255).byte()), "divide bytes by 255"),
    "too bright": (lambda p, x, m: p(x * 255), r"images: values reach from .* to \d+.*, not within \[0, 1\]"),
    "negative": (lambda p, x, m: p(x - 0.5), "not within"),
    "nan": (lambda p, x, m: p(x * float("nan")), "not within"),
    "none": (lambda p, x, m: p(), "nothing to classify"),
    "empty": (lambda p, x, m: p(x[:0]), "at least one"),
    "no masks": (lambda p, x, m: p.perturbed(x[0], m[:0], x[1]), "at least one"),
    "two pictures": (lambda p, x, m: p.perturbed(x[:2], m, x[1]), r"image: .* not \(1, 3, 64, 64\)"),
    "mask size": (lambda p, x, m: p.perturbed(x[0], m[..., :32], x[1]), r"masks: .* not \(N, 64, 64\)"),
    "mask channels": (lambda p, x, m: p.perturbed(x[0], m.expand(-1, 3, -1, -1), x[1]), "masks: the shape"),
    "mask values": (lambda p, x, m: p.perturbed(x[0], m * 2.0, x[1]), "masks: values reach from 0 to 2"),
    "mask bytes": (lambda p, x, m: p.perturbed(x[0], m.byte(), x[1]), "masks: values are torch.uint8"),
    "baseline size": (lambda p, x, m: p.perturbed(x[0], m, x[1, :, :9]), r"baseline is \(3, 9, 64\)"),
    "baseline values": (lambda p, x, m: p.perturbed(x[0], m, x[1] + 1), "the baseline: values reach"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_with_its_cure(model, pictures, masks, case):
    call, message = BAD[case]
    with pytest.raises(UserError, match=message):
        call(Predictor(model, SIZE, "eager"), pictures, masks)


def test_bad_options(model, pictures):
    with pytest.raises(UsageError, match="did you mean 'folded'"):
        Predictor(model, SIZE, "foldd")
    for options in ({"size": 0}, {"batch_size": 0}, {"tolerance": 2}):
        with pytest.raises(UsageError, match="must be at least 1"):
            Predictor(model, **options)
    with pytest.raises(UserError, match="examples: the shape"):
        Predictor(model, 128, examples=pictures)
