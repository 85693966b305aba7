"""Fusion heads against loops over rows and units; missing modalities; texts that would name the class."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.nn import functional

from retailkit import data, models, training
from retailkit.config import UserError
from retailkit.models import Features
from retailkit.models import fusion as fusion_module
from retailkit.models.fusion import Concatenation, EmbraceNet, ScoreFusion
from retailkit.models.pooling import FeatureScaler
from retailkit.training import TrainConfig, TrainSpec

WIDTHS = {"image": 5, "text": 3}
CLASSES = ["lean", "extra lean", "medium", "regular"]
FUSIONS = ("score_fusion", "concat", "embracenet")
SMALL = {"backbone": "shufflenet_v2_x1_0", "weights": None, "text_encoder": "char_ngrams"}


def head(kind):
    torch.manual_seed(0)
    return kind({m: FeatureScaler(d) for m, d in WIDTHS.items()}, len(CLASSES)).eval()


def features(rows=6, missing_text=()):
    generator = torch.Generator().manual_seed(1)
    image, text = (Features.present(torch.randn(rows, dim, generator=generator)) for dim in WIDTHS.values())
    for part in text:
        part[list(missing_text)] = 0
    return {"image": image, "text": text}


def test_score_fusion_is_the_weighted_mean_of_two_softmaxes():
    fusion, seen = head(ScoreFusion), features(missing_text=[2])
    fusion.shares.copy_(torch.tensor([0.7, 0.3]))
    image, text = (fusion.linear[m](seen[m].values).softmax(1) for m in WIDTHS)
    expected = 0.7 * image + 0.3 * text
    expected[2] = image[2]
    assert torch.allclose(fusion(seen).softmax(1), expected, atol=1e-6)
    fusion.shares.copy_(torch.tensor([1.0, 0.0]))
    assert torch.allclose(fusion(seen).softmax(1), image, atol=1e-6)
    seen = features()
    alone = fusion.linear["text"](seen["text"].values).softmax(1)
    assert torch.allclose(fusion({"text": seen["text"]}).softmax(1), alone, atol=1e-6), "words alone, at share zero"


def test_each_classifier_of_score_fusion_learns_from_its_own_rows():
    fusion, seen, labels = head(ScoreFusion), features(missing_text=[0, 1]), torch.arange(6) % 4
    image = functional.cross_entropy(fusion.linear["image"](seen["image"].values), labels)
    text = functional.cross_entropy(fusion.linear["text"](seen["text"].values[2:]), labels[2:])
    assert torch.allclose(fusion.loss(seen, labels, functional.cross_entropy), (image + text) / 2)


def test_shares_are_tuned_by_likelihood_on_rows_with_both():
    fusion, seen = head(ScoreFusion), features(rows=60, missing_text=[0])
    labels = fusion.linear["text"](seen["text"].values).argmax(1)
    fusion.linear["text"].weight.data *= 4
    tried, likely = np.linspace(0, 1, 21), []
    for share in tried:
        fusion.shares.copy_(torch.tensor([share, 1 - share]))
        likely.append(-functional.cross_entropy(fusion(seen)[1:], labels[1:]).item())
    fusion.tune(seen, labels)
    assert fusion.shares[0].item() == pytest.approx(tried[int(np.argmax(likely))])
    assert fusion.shares[1] > 0.8 and fusion.shares.sum() == 1


def test_concatenation_balances_and_puts_the_average_in_place_of_what_is_missing():
    fusion, seen = head(Concatenation), features(missing_text=[1])
    image, text = seen["image"].values * (8 / 2 / 5) ** 0.5, seen["text"].values * (8 / 2 / 3) ** 0.5
    assert torch.allclose(fusion(seen), fusion.linear(torch.cat([image, text], 1)), atol=1e-6)
    without = torch.cat([image, torch.zeros(6, 3)], 1)
    assert torch.allclose(fusion({"image": seen["image"]}), fusion.linear(without))
    fusion.scalers["text"].fit(Features.present(seen["text"].values + 5))
    assert torch.allclose(fusion(seen)[1], fusion.linear(without)[1], atol=1e-6), "zero after scaling, not before"


def docked(fusion, seen):
    return [functional.relu(fusion.docking[m](seen[m].values)) for m in WIDTHS]


def test_the_expected_embracement_is_the_mean_of_many_draws(monkeypatch):
    monkeypatch.setattr(fusion_module, "MODALITY_DROPOUT", 0)
    fusion, seen = head(EmbraceNet), features(missing_text=[3])
    with torch.no_grad():
        exact = fusion(seen)
        fusion.train()
        mean = torch.stack([fusion(seen) for _ in range(3000)]).mean(0)
    assert torch.allclose(mean, exact, atol=0.03) and torch.equal(exact, fusion.eval()(seen))
    image, text = docked(fusion, seen)
    assert torch.allclose(exact[0], fusion.linear((image[0] + text[0]) / 2), atol=1e-6)
    assert torch.allclose(exact[3], fusion.linear(image[3]), atol=1e-6), "nobody takes from what is missing"


@pytest.mark.parametrize("dropout", [0, 1])
def test_an_embracement_unit_is_a_unit_of_one_modality_and_with_dropout_all_of_a_row_are(dropout, monkeypatch):
    monkeypatch.setattr(fusion_module, "MODALITY_DROPOUT", dropout)
    fusion, seen = head(EmbraceNet).train(), features(rows=40, missing_text=[0])
    fusion.linear = torch.nn.Identity()
    joint = fusion(seen)
    image, text = (joint == each for each in docked(fusion, seen))
    assert (image | text).all() and image[0].all() and not image.all() and not text.all()
    assert bool((image.all(1) | text.all(1)).all()) is bool(dropout)


# -- On the whole model.


@pytest.fixture(scope="module")
def products(tmp_path_factory):
    """Images that say the half of it and words that say the other half."""
    root, rows, rng = tmp_path_factory.mktemp("products"), [], np.random.default_rng(0)
    for k, label in enumerate(CLASSES):
        for split, i in [("train", i) for i in range(10)] + [("val", i) for i in range(6)]:
            name = f"{k}_{split}_{i}.png"
            pixels = np.clip(rng.normal(60 if k < 2 else 200, 20, (40, 40, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name)
            text = "" if i == 0 else ("WHOLE MILK" if k % 2 else "ground beef 4006381333931")
            rows.append({"image": name, "label": label, "split": split, "text": text})
    pd.DataFrame(rows).to_csv(root / "products.csv", index=False)
    return data.load("folder", root / "products.csv")


def small(name, **options):
    torch.manual_seed(0)
    return models.build(name, CLASSES, **SMALL, **options).eval()


@pytest.mark.parametrize("name", FUSIONS)
def test_fusion_learns_what_neither_modality_knows(name, products, tmp_path):
    config, val = TrainConfig(epochs=40, batch_size=8, lr=1e-2), products.split("val", 40)
    spec = TrainSpec(model=name, model_options=SMALL, size=40, config=config)
    model, history = training.fit_or_load(spec, products)
    correct = training.evaluate(model, val).correct
    assert correct[val.table["text"].ne("").to_numpy()].mean() > 0.7, "either modality alone can reach 0.5"
    again, _, _ = training.load_checkpoint(training.save_checkpoint(model, tmp_path / "model.safetensors", history))
    given = torch.stack([val[i].image for i in range(3)]), [val[i].text for i in range(3)]
    with torch.no_grad():
        assert torch.allclose(again(*given), model(*given), atol=1e-5)


@pytest.mark.parametrize("name", FUSIONS)
@torch.no_grad()
def test_one_modality_may_be_missing_at_test_time_and_not_both(name):
    model, images = small(name), torch.rand(2, 3, 40, 40)
    for given in ((images,), (None, ["MILK", "BEEF"]), (images, ["", "word " * 300])):
        assert model(*given).isfinite().all()
    with pytest.raises(UserError, match="image and text"):
        model()
    with pytest.raises(UserError, match="1 of 2 rows have no image or text"):
        model(texts=["MILK", "  "])


def test_a_printed_barcode_never_reaches_the_text_encoder(monkeypatch):
    model, seen = small("concat"), []
    real = model.text_encoder.forward
    monkeypatch.setattr(model.text_encoder, "forward", lambda texts: seen.extend(texts) or real(texts))
    found = model.encode_text(["LEAN 060383059330 BEEF", "4006381333931", "EXTRA"])
    assert seen == ["LEAN BEEF", "EXTRA"] and found.available.tolist() == [True, False, True]


def test_shares_are_tuned_after_nts_has_learned_as_well(products):
    """Tuning asked for kept features, which NTS-Net does not have, and failed after the last epoch."""
    model = small("score_fusion", pooling="nts", propose=3, parts=1)
    config = TrainConfig(mode="finetune", epochs=1, batch_size=40)
    training.fit(model, products.split("train", 96), products.split("val", 96), config)
    assert model.head.shares.sum() == 1 and not torch.equal(model.head.shares, torch.tensor([0.5, 0.5]))
