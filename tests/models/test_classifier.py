"""The product classifier: building, features, missing modalities, scaling, rebuilding."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler
from torch.nn import functional

from retailkit import models
from retailkit.config import UsageError, UserError
from retailkit.models import Features, weights
from retailkit.models.pooling import FeatureScaler

CLASSES = ["lean", "extra lean", "oat"]
TEXTS = ["lean beef", "extra lean beef", "oat milk"]


@pytest.fixture
def images():
    return torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def build(name="image", **options):
    return models.build(name, CLASSES, "resnet18", weights=None, text_encoder="char_ngrams", **options).eval()


def test_images_and_texts_are_encoded_and_classified(images):
    model, reader = build(), build("text")
    features = model.encode_image(images)
    assert features.values.shape == (4, 512) and features.available.all()
    assert torch.equal(model.classify(features, None), model(images, ["never read"] * 4))
    assert (model.modalities, model.input_size, model.classes) == (("image",), 224, CLASSES)
    assert torch.equal(reader(None, TEXTS), reader(images[:3], TEXTS)) and reader.modalities == ("text",)
    features = reader.encode_text([*TEXTS, "", None, "  "])
    assert features.available.tolist() == [True] * 3 + [False] * 3 and not features.values[3:].any()
    assert torch.equal(features.values[:3], reader.text_encoder(TEXTS))
    assert reader.encode_text(["", None]).values.shape == (2, reader.text_encoder.dim)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda images: build("text")(None, ["lean", ""]), UserError, "1 of 2 rows have no text"),
        (lambda images: build("text")(images), UserError, "nothing to classify"),
        (
            lambda images: build().classify(Features(torch.zeros(2, 512), torch.zeros(2, dtype=torch.bool))),
            UserError,
            "2 of 2 rows have no image",
        ),
        (lambda images: build().encode_text(["lean"]), UsageError, "does not read texts"),
        (lambda images: build("text").encode_image(images), UsageError, "does not look at images"),
    ],
)
def test_what_a_model_cannot_answer_is_an_error(call, error, says, images):
    with pytest.raises(error, match=says):
        call(images)


def test_missing_prior_answers_with_the_average_row():
    model = build("text", missing="prior")
    model.fit_scalers(None, model.encode_text(TEXTS))
    logits = model(None, ["", *TEXTS])
    assert torch.allclose(logits[0], model.head.linear.bias)
    assert torch.allclose(logits[1:].mean(0), logits[0], atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"name": "imge"}, "unknown model 'imge'; did you mean 'image'"),
        ({"backbone": "resnet-18"}, "unknown backbone 'resnet-18'; did you mean 'resnet18'"),
        ({"pooling": "gop"}, "unknown pooling 'gop'; did you mean 'gap'"),
        ({"text_encoder": "minilmm"}, "unknown text encoder 'minilmm'; did you mean 'minilm'"),
        ({"droput": 0.1}, "unknown option of model 'image' 'droput'; did you mean 'dropout'"),
        ({"missing": "prio"}, "did you mean 'prior'"),
        ({"classes": []}, "at least one class"),
        ({"classes": ["a", "b", "a"]}, "class 'a' is named twice"),
        ({"name": "nts", "parts": 7}, "parts=7"),
        ({"name": "nts", "propose": 0, "parts": 0}, "M from 1 on"),
        ({"name": "nts", "navgate": 1}, "did you mean 'navigate'"),
        ({"name": "gallery", "false_accepts": 0.0}, "false_accepts=0.0 .* use"),
        ({"name": "gallery", "false_accepts": 1.5}, "false_accepts=1.5 .* use"),
        ({"name": "gallery", "neighbours": -1}, "neighbours=-1; use"),
        ({"name": "matching", "detector": "sfit"}, "did you mean 'sift'"),
        ({"name": "matching", "keypoint": 9}, "did you mean 'keypoints'"),
        ({"name": "matching", "colour": -0.5}, "colour=-0.5.*use 0 to 100"),
        ({"name": "matching", "colour": float("nan")}, "colour=nan"),
        ({"name": "matching", "colour": 0.3, "detector": "orb"}, "colour=0.3, detector=orb.*with descriptors of bits"),
        ({"learn": 9}, "learn=9 needs an EfficientNet, not 'resnet18'"),
        ({"learn": 16, "backbone": "efficientnet_lite0"}, "learn=16 is out of range; efficientnet_lite0 has 16 blocks"),
        ({"learn": 1, "backbone": "efficientnet_lite0", "pooling": "nts"}, "gap and lca, not NavigatedParts"),
    ],
)
def test_wrong_calls_name_the_value_and_the_cure(arguments, says):
    with pytest.raises(UsageError, match=says):
        models.build(**{"name": "image", "classes": CLASSES, "backbone": "resnet18", "weights": None} | arguments)


def test_gradients_reach_what_learns(images):
    batch = SimpleNamespace(images=images, texts=[""] * 4, labels=torch.tensor([0, 1, 2, 0]))
    model, frozen = build().train(), build(freeze=True)
    model.training_loss(batch, functional.cross_entropy).backward()
    assert all(p.grad is not None for p in model.parameters())
    statistics = frozen.image_encoder.network.bn1.running_mean
    before = statistics.clone()
    frozen.train().training_loss(batch, functional.cross_entropy).backward()
    assert torch.equal(before, statistics) and not frozen.image_encoder.training and frozen.head.training
    assert {n for n, p in frozen.named_parameters() if p.grad is not None} == {"head.linear.weight", "head.linear.bias"}
    frozen.freeze(False).train()(images)
    assert not torch.equal(before, statistics) and all(p.requires_grad for p in frozen.parameters())


def test_scaler_is_the_standard_scaler():
    values = np.random.default_rng(0).normal(3, [1, 5, 0], (50, 3))
    available = np.arange(50) % 5 > 0
    scaler, features = FeatureScaler(3), Features(torch.from_numpy(values).float(), torch.from_numpy(available))
    assert torch.equal(scaler(features)[available], features.values[available]), "not the identity before fit"
    scaler.fit(features)
    scaled, expected = scaler(features).numpy(), StandardScaler().fit(values[available]).transform(values[available])
    assert np.allclose(scaled[available], expected, atol=1e-4) and not scaled[~available].any()


def test_shared_scale_keeps_rare_features_small():
    values = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    values[:, 1] = torch.eye(200)[0]  # one text in 200 has it
    scaled = []
    for shared in (True, False):
        scaler = FeatureScaler(2, shared)
        scaler.fit(Features.present(values))
        scaled.append(scaler(Features.present(values))[0, 1])
    assert scaled[0] < 2 < 10 < scaled[1]


@pytest.mark.parametrize("name", ["image", "text"])
def test_rebuilt_model_needs_no_file(name, images, monkeypatch):
    model = models.build(name, CLASSES, "efficientnet_lite0", text_encoder="minilm", dropout=0.2, freeze=True).eval()
    texts = [*TEXTS, "1.5 %"]
    model.fit_scalers(**{f"{name}_features": getattr(model, f"encode_{name}")(images if name == "image" else texts)})
    monkeypatch.setattr(weights, "_packaged", lambda place: pytest.fail("looked for a weights file"))
    again = models.rebuild(json.loads(json.dumps(model.build_args)))
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(images, texts), model(images, texts))
    assert (again.image_encoder or again.text_encoder).frozen and again.head.dropout.p == 0.2
