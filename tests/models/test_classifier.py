"""The product classifier: building, features, missing modalities, scaling, rebuilding."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler
from torch.nn import functional

from retailkit import models
from retailkit.config import UsageError, UserError
from retailkit.models import Features
from retailkit.models.pooling import FeatureScaler

CLASSES = ["lean", "extra lean", "oat"]


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def image_model():
    return models.build("image", CLASSES, "resnet18", weights=None).eval()


def text_model(**options):
    return models.build("text", CLASSES, text_encoder="char_ngrams", **options).eval()


def test_image_model(image_model, images):
    logits = image_model(images, ["never read"] * 4)
    assert logits.shape == (4, 3)
    features = image_model.encode_image(images)
    assert features.values.shape == (4, 512) and features.available.all()
    assert torch.equal(image_model.classify(features, None), logits)
    assert (image_model.modalities, image_model.input_size) == (("image",), 224)
    assert image_model.classes == CLASSES


def test_text_model(images):
    model = text_model()
    texts = ["lean beef", "extra lean beef", "oat milk"]
    assert torch.equal(model(None, texts), model(images[:3], texts))
    assert model.modalities == ("text",)
    features = model.encode_text([*texts, "", None, "  "])
    assert features.available.tolist() == [True] * 3 + [False] * 3
    assert features.values[3:].abs().sum() == 0
    assert torch.equal(features.values[:3], model.text_encoder(texts))
    assert model.encode_text(["", None]).values.shape == (2, model.text_encoder.dim)


def test_nothing_to_classify_raises(image_model, images):
    with pytest.raises(UserError, match="1 of 2 rows have no text"):
        text_model()(None, ["lean", ""])
    with pytest.raises(UserError, match="nothing to classify"):
        text_model()(images)
    nothing = Features(torch.zeros(2, 512), torch.zeros(2, dtype=torch.bool))
    with pytest.raises(UserError, match="2 of 2 rows have no image"):
        image_model.classify(nothing)
    with pytest.raises(UsageError, match="does not read texts"):
        image_model.encode_text(["lean"])


def test_missing_prior_answers_with_the_average_row():
    model = text_model(missing="prior")
    train = ["lean beef", "extra lean beef", "oat milk"]
    model.fit_scalers(None, model.encode_text(train))
    logits = model(None, ["", *train])
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
    ],
)
def test_wrong_calls_name_the_nearest(arguments, says):
    with pytest.raises(UsageError, match=says):
        models.build(**{"name": "image", "classes": CLASSES, "backbone": "resnet18", "weights": None} | arguments)


def test_gradients_reach_what_learns(images):
    labels, criterion = torch.tensor([0, 1, 2, 0]), functional.cross_entropy
    batch = SimpleNamespace(images=images, texts=[""] * 4, labels=labels)
    model = models.build("image", CLASSES, "resnet18", weights=None)
    model.training_loss(batch, criterion).backward()
    assert all(p.grad is not None for p in model.parameters())
    frozen = models.build("image", CLASSES, "resnet18", weights=None, freeze=True)
    before = frozen.image_encoder.network.bn1.running_mean.clone()
    frozen.train().training_loss(batch, criterion).backward()
    assert torch.equal(before, frozen.image_encoder.network.bn1.running_mean)
    assert not frozen.image_encoder.training and frozen.head.training
    assert {n for n, p in frozen.named_parameters() if p.grad is not None} == {"head.linear.weight", "head.linear.bias"}
    assert all(p.requires_grad for p in frozen.freeze(False).parameters())


def test_scaler_is_the_standard_scaler():
    values = np.random.default_rng(0).normal(3, [1, 5, 0], (50, 3))
    available = np.arange(50) % 5 > 0
    scaler = FeatureScaler(3)
    features = Features(torch.from_numpy(values).float(), torch.from_numpy(available))
    assert torch.equal(scaler(features)[available], features.values[available]), "not the identity before fit"
    scaler.fit(features)
    scaled = scaler(features).numpy()
    assert np.allclose(
        scaled[available], StandardScaler().fit(values[available]).transform(values[available]), atol=1e-4
    )
    assert not scaled[~available].any()


def test_shared_scale_keeps_rare_features_small():
    values = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    values[:, 1] = 0
    values[0, 1] = 1  # one text in 200 has it
    features = Features(values, torch.ones(200, dtype=torch.bool))
    shared, each = FeatureScaler(2, shared=True), FeatureScaler(2)
    shared.fit(features)
    each.fit(features)
    assert shared(features)[0, 1] < 2 < 10 < each(features)[0, 1]


@pytest.mark.parametrize("name", ["image", "text"])
def test_rebuilt_model_needs_no_file(name, images, monkeypatch):
    from retailkit.models import weights

    options = {"backbone": "efficientnet_lite0", "dropout": 0.2, "freeze": True}
    model = models.build(name, CLASSES, text_encoder="minilm", **options).eval()
    texts = ["oat milk", "lean beef", "1.5 %", "x"]
    features = model.encode_image(images) if name == "image" else model.encode_text(texts)
    model.fit_scalers(**{f"{name}_features": features})
    build_args = json.loads(json.dumps(model.build_args))
    monkeypatch.setattr(weights, "_packaged", lambda place: pytest.fail("looked for a weights file"))
    again = models.rebuild(build_args)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(images, texts), model(images, texts))
    encoder = again.image_encoder or again.text_encoder
    assert encoder.frozen and again.head.dropout.p == 0.2
